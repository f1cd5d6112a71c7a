"""What is varied: read from Hydra's syntax, listed, drawn, compared."""

import json
import math
import re
from collections import Counter

import pytest

from recur.errors import UserError
from recur.sweeps.space import difference, parse

LR = "optimizer.lr=tag(log, interval(1e-4, 1e-1))"


def test_a_grid_is_every_combination_with_what_is_fixed():
    space = parse({"seed": "0,1"}, ["a=1,2", "b=choice(x,y)", "c=7", "+d=range(1,4)"])
    rows = space.grid()
    assert len(rows) == len(set(rows)) == 2 * 2 * 2 * 3
    assert all("c=7" in row for row in rows)
    assert {text for row in rows for text in row if text.startswith("+d")} == {"+d=1", "+d=2", "+d=3"}


def test_what_is_typed_comes_before_the_sweep_file():
    space = parse({"a": "1,2", "b": "3,4"}, ["a=5", "b=6,7", "resume=somewhere"])
    assert space.grid() == [("a=5", "b=6"), ("a=5", "b=7")]


@pytest.mark.parametrize(
    ("typed", "rows"),
    [
        (["++a=5"], [("++a=5", "+d=3"), ("++a=5", "+d=4")]),
        (["++a=5,6", "++d=7"], [("++d=7", "++a=5"), ("++d=7", "++a=6")]),
        (["~d", "a=8"], [("~d", "a=8")]),
        (["a=5", "++a=6", "+d=1", "++d=2", "++resume=somewhere"], [("++a=6", "++d=2")]),
        (["~d", "+d=1", "a=8"], [("~d", "+d=1", "a=8")]),
    ],
)
def test_what_is_typed_with_a_prefix_comes_before_the_sweep_file_too(typed, rows):
    assert parse({"a": "1,2", "+d": "3,4"}, typed).grid() == rows


def test_draws_stay_inside_repeat_by_seed_and_cross_with_seeds():
    space = parse({}, [LR, "n=int(interval(1,3))", "m=tag(log,int(interval(1,100)))", "model=a,b", "seed=0,1"])
    rows = space.sample(50, seed=1)
    assert rows == space.sample(50, seed=1) != space.sample(50, seed=2)
    assert space.sample(20, seed=1) == rows[:40]
    assert len(rows) == 100
    settings = [dict(text.split("=") for text in row) for row in rows]
    assert all(1e-4 <= float(s["optimizer.lr"]) <= 1e-1 for s in settings)
    assert {s["n"] for s in settings} == {"1", "2", "3"}
    assert all(1 <= int(s["m"]) <= 100 for s in settings)
    assert Counter(s["seed"] for s in settings) == {"0": 50, "1": 50}
    below = sum(float(s["optimizer.lr"]) < 10**-2.5 for s in settings)
    assert 25 < below < 75, "a log interval has its middle at the geometric mean"


def test_seeds_typed_with_a_prefix_are_crossed_too():
    rows = parse({}, [LR, "++seed=0,1"]).sample(5, seed=1)
    assert [row[-1] for row in rows] == ["++seed=0", "++seed=1"] * 5 and len({row[0] for row in rows}) == 5


def test_draws_of_a_sweep_that_is_resumed_do_not_depend_on_how_it_is_typed():
    """With two settings or values exchanged, a random sweep drew others and began anew."""
    began, again = parse({}, [LR, "b=1,2,3", "seed=0,1"]), parse({}, ["seed=1,0", "b=3,1,2", LR])
    record = json.loads(json.dumps(began.as_record()))
    assert difference(record, again.as_record()) == ""
    assert again.sample(6, seed=0) != began.sample(6, seed=0) == again.in_order(record).sample(6, seed=0)
    del record["order"]  # of an earlier version
    assert parse({}, ["seed=0,1", "b=1,2,3", LR]).in_order(record) == began
    for damaged in ({}, {"varied": 5, "order": "b"}, {"varied": {"x": 1}, "order": {"b": ["1", "9"], "seed": 0}}):
        assert again.in_order(damaged) == again


def test_a_small_list_is_taken_whole():
    space = parse({}, ["a=1,2", "b=1,2", "seed=0,1"])
    assert sorted(space.sample(99, seed=0)) == sorted(space.grid())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a=range(5,1)", ["a=range(5,1)", "no values"]),
        ("a=interval(2,1)", ["a=interval(2,1)", "empty"]),
        ("a=tag(log,interval(0,1))", ["log", "above 0"]),
        ("a=1,2,1", ["a=1,2,1", "value 1 twice"]),
        ("lr=0.1,1e-1", ["lr=0.1,1e-1", "twice"]),
        ("seed=range(100000000)", ["10,000 jobs", "100,000,000"]),
        ("a=shuffle(range(100000000))", ["10,000 jobs"]),
        ("a=range(0,1,1e-12)", ["10,000 jobs"]),
        ("a=range(0,1,0)", ["is no range"]),
        ("sweep=a,b", ["sweep=a,b chooses what is swept, once"]),
        ("seed=int(interval(0,9))", ["seed", "seed=0,1,2"]),
    ],
)
def test_an_empty_space_is_refused(text, words):
    with pytest.raises(ValueError, match=".*".join(map(re.escape, words))):
        parse({}, [text])


def test_a_grid_cannot_list_an_interval():
    with pytest.raises(ValueError, match=r"hydra/sweeper=random"):
        parse({}, [LR]).grid()


def test_a_grid_and_draws_have_their_limits():
    with pytest.raises(UserError, match="10,000 jobs, this one would have 1,000,000"):
        parse({}, [f"{key}=range(100)" for key in "abc"]).grid()
    space = parse({}, ["n=int(interval(1,3))"])
    assert len(space.sample(3, seed=0)) == 3
    with pytest.raises(UserError, match="n_trials is more than the 3 settings"):
        space.sample(20, seed=0)


def test_the_difference_of_two_spaces_names_what_changed():
    then, now = parse({}, ["a=1,2", "b=3", "c=1,2"]).as_record(), parse({}, ["a=2,1", "b=4", "c=1,2,3"]).as_record()
    assert difference(then, then) == ""
    assert difference(then, now) == "b: then 3, now 4; c: then 1,2, now 1,2,3"
    assert difference(then, parse({}, ["a=1,2", "b=3"]).as_record()) == "c: then 1,2, now not set"


def test_optuna_reads_the_same_space():
    optuna = pytest.importorskip("optuna")
    from recur.sweeps.study import distribution, probes

    space = parse({}, [LR, "n=tag(log,int(interval(1,8)))", "model=a,b,c", "k=2"])
    made = [distribution(d) for d in space.dimensions]
    assert made[0] == optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)
    assert made[1] == optuna.distributions.IntDistribution(1, 8, log=True)
    assert made[2] == optuna.distributions.CategoricalDistribution(("a", "b", "c"))
    rows = probes(space)
    assert len(rows) == 3
    assert {text for row in rows for text in row if text.startswith("model")} == {"model=a", "model=b", "model=c"}
    assert math.isclose(float(rows[0][1].partition("=")[2]), 1e-4)
    ranges = [distribution(d) for d in parse({}, ["n=range(32,257,32)", "p=range(0,1,0.25)"]).dimensions]
    assert ranges[0] == optuna.distributions.IntDistribution(32, 256, step=32)
    assert ranges[1] == optuna.distributions.FloatDistribution(0, 0.75, step=0.25)
    with pytest.raises(ValueError, match="lucky"):
        distribution(parse({}, ["seed=0,1"]).dimensions[0])


def test_cases_are_points_of_the_grid_and_not_a_product():
    space = parse({}, ["seed=0,1", "c=7"])
    space.cases = [("cell=rnn", "layers=1"), ("cell=lstm", "layers=2")]
    rows = space.grid()
    assert rows == [
        ("c=7", "cell=rnn", "layers=1", "seed=0"),
        ("c=7", "cell=rnn", "layers=1", "seed=1"),
        ("c=7", "cell=lstm", "layers=2", "seed=0"),
        ("c=7", "cell=lstm", "layers=2", "seed=1"),
    ]
    other = parse({}, ["seed=0,1", "c=7"])
    other.cases = [("cell=rnn", "layers=1")]
    assert "cases" in difference(space.as_record(), other.as_record())
    assert not difference(space.as_record(), space.as_record())


def test_what_is_set_once_is_where_cases_begin():
    space = parse({}, ["layers=3", "seed=0,1"])
    space.cases = [("cell=rnn",), ("cell=lstm", "+layers=2")]
    assert space.grid()[::2] == [("layers=3", "cell=rnn", "seed=0"), ("layers=3", "cell=lstm", "+layers=2", "seed=0")]


@pytest.mark.parametrize(
    ("typed", "key"),
    [("layers=1,2", "layers"), ("++layers=1,2", "layers"), ("cell=gru", "cell"), ("+cell=gru", "cell")],
)
def test_a_setting_of_the_cases_is_not_set_beside_them_where_one_would_be_lost(typed, key):
    """The case lost without a word where values were listed beside it, and what every case sets where it was typed."""
    space = parse({}, [typed])
    space.cases = [("cell=rnn",), ("++cell=lstm", "layers=2")]
    with pytest.raises(UserError) as raised:
        space.grid()
    assert str(raised.value) == f"{key} is set by hydra.sweeper.cases and beside them: set it in one place"
