"""Intervals, conditions and verdicts; every rule of every claim can fail."""

import math
import statistics
from dataclasses import replace

import pytest

from conftest import ROOT
from recur.course import claim as claims
from recur.course.claim import Claim, Condition
from recur.course.record import effect_text, table
from recur.course.verdict import Observation, confirm, effect, interval, judge
from recur.errors import UserError

FOLDER = ROOT / "conf" / "claims"
NAMES = claims.names(FOLDER)


def seen(arm: str, *values: float, x: str = "", measure: str = "m") -> list[Observation]:
    return [Observation(arm, seed, x, {measure: value}) for seed, value in enumerate(values)]


def test_the_interval_is_students():
    mean, low, high = interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert high - mean == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4) == mean - low
    assert interval([1.0])[1:] == (-math.inf, math.inf)
    assert interval([0.5] * 4) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(30, 2.0423), (31, 2.0395), (40, 2.0211), (60, 2.0003), (120, 1.9799), (100_000, 1.96)]
)
def test_the_interval_of_many_seeds_is_students_too(degrees, quantile):
    values = [float(n % 5) for n in range(degrees + 1)]
    mean, _, high = interval(values)
    assert (high - mean) * math.sqrt(len(values)) / statistics.stdev(values) == pytest.approx(quantile, abs=1e-4)


def test_differences_are_taken_seed_by_seed():
    """Seeds that differ much between each other and little between arms give a narrow interval."""
    found = effect(Condition("t", "b", "m", minus="a", at_least=0.05), [*seen("a", 0, 5, 9), *seen("b", 0.1, 5.1, 9.1)])
    assert (found.kind, found.verdict) == ("difference", "holds")
    assert found.low == pytest.approx(0.1) == found.high
    ratio = effect(Condition("t", "b", "m", over="a", at_most=0.6), [*seen("a", 1, 2, 4), *seen("b", 0.5, 1, 2)])
    assert (ratio.estimate, ratio.verdict) == (pytest.approx(0.5), "holds")


@pytest.mark.parametrize(
    ("values", "verdict"), [((1.0, 1.1, 1.2), "holds"), ((0.1, 0.2, 0.3), "fails"), ((0.1, 0.5, 1.2), "depends")]
)
def test_a_condition_looks_at_the_whole_interval(values, verdict):
    assert effect(Condition("t", "a", "m", at_least=0.6), seen("a", *values)).verdict == verdict


def test_a_claim_holds_only_where_all_conditions_do():
    rule = [Condition("t", "a", "m", at_least=0.6), Condition("t", "b", "m", at_most=0.6)]
    high, low = (1.0, 1.01, 1.02), (0.1, 0.11, 0.12)
    assert judge(rule, [*seen("a", *high), *seen("b", *low)])[0] == "holds"
    assert judge(rule, [*seen("a", *low), *seen("b", *low)])[0] == "depends"
    assert judge(rule, [*seen("a", *low), *seen("b", *high)])[0] == "fails"


@pytest.mark.parametrize(
    ("first", "further", "verdict"),
    [
        ((1.0, 1.1, 1.2), (1.0, 1.1), "holds"),
        ((1.0, 1.1, 1.2), (1.0, 0.1), "depends"),  # all seeds together leave it open
        ((1.0, 1.0, 1.0), (0.59, 0.59), "depends"),  # and here the further ones alone lie on the other side
        ((0.1, 0.2, 0.3), (0.2, 0.2), "fails"),
        ((0.1, 0.2, 0.3), (0.9, 1.9), "depends"),
        ((0.1, 0.5, 1.2), (0.7, 0.8), "depends"),
        ((0.61, 0.9, 1.2), (0.9, 0.9), "depends"),  # what was open stays open, though more seeds would settle it
    ],
)
def test_a_verdict_stays_only_where_further_seeds_bear_it_out(first, further, verdict):
    rule = [Condition("t", "a", "m", at_least=0.6)]
    more = [replace(o, seed=o.seed + 3) for o in seen("a", *further)]
    outcome = confirm(rule, seen("a", *first), more)
    assert outcome.verdict == verdict
    assert outcome.first == judge(rule, seen("a", *first))[0]
    assert outcome.effects[0].estimate == pytest.approx(sum(first + further) / 5)
    assert outcome.means == [pytest.approx(sum(further) / 2)]


def test_places_on_the_axis_are_kept_apart():
    observations = [*seen("a", 1, 1, x="0"), *seen("a", 0.2, 0.2, x="60")]
    assert effect(Condition("t", "a", "m", at="0", than_at="60", at_least=0.5), observations).estimate == pytest.approx(
        0.8
    )


def test_what_was_not_measured_is_said():
    with pytest.raises(UserError, match=r"needs other of a, which nothing measured$"):
        effect(Condition("t", "a", "other", at_least=0), seen("a", 1))


def test_a_place_must_be_named_where_there_are_several():
    """The last one was taken without a word."""
    with pytest.raises(UserError, match=r"t must say at which place a is meant: it can be 0, 60"):
        effect(Condition("t", "a", "m", at_least=0.5), [*seen("a", 1, 1, x="0"), *seen("a", 0.2, 0.2, x="60")])
    assert effect(Condition("t", "a", "m", at_least=0.5), seen("a", 1, 1, x="0")).verdict == "holds"


@pytest.mark.parametrize(
    ("a", "b", "estimate"),
    [
        ((1.0, 2.0), (math.inf, 2.0), 0.0),
        ((math.inf, 2.0), (1.0, 2.0), math.inf),
        ((math.inf, 2.0), (math.inf, 2.0), math.nan),
        ((math.inf, 2.0), (1.0, math.inf), math.nan),
    ],
)
def test_a_ratio_with_an_exploded_run_is_open_and_no_stack(a, b, estimate):
    found = effect(Condition("t", "a", "m", over="b", at_most=1), [*seen("a", *a), *seen("b", *b)])
    assert (found.low, found.high, found.verdict) == (0, math.inf, "depends")
    assert found.estimate == pytest.approx(estimate, nan_ok=True)
    difference = effect(Condition("t", "a", "m", minus="b", at_most=1), [*seen("a", *a), *seen("b", *b)])
    assert difference.verdict == "depends"


def satisfied(rule: tuple[Condition, ...], broken: int | None = None) -> list[Observation]:
    """Observations by which every condition holds with a margin, or all of them but one that is clearly violated."""
    values: dict[tuple[str, str, str], float] = {}
    for _ in range(60):
        for index, c in enumerate(rule):
            own = (c.of, c.at or "", c.measure)
            name = c.over or c.minus or c.of
            other = (name, c.than_at or c.at or "", c.measure)
            bound = c.at_least if c.at_least is not None else c.at_most
            assert bound is not None
            sign = (1 if c.at_least is not None else -1) * (-1 if index == broken else 1)
            margin = 0.1 * abs(bound) + (0.01 if sign > 0 or index == broken else 0)
            base = values.setdefault(other, 1.0) if other != own or c.than_at else 1.0
            wanted = bound + sign * margin
            if c.over:
                now, goal = values.setdefault(own, 1.0) / base, base * wanted
            elif c.minus or c.than_at is not None:
                now, goal = values.setdefault(own, 1.0) - base, base + wanted
            else:
                now, goal = values.setdefault(own, 1.0), wanted
            if sign * (now - bound) < abs(margin) * 0.5:
                values[own] = goal
    places: dict[tuple[str, str], dict[str, float]] = {}
    for (arm, x, measure), value in values.items():
        places.setdefault((arm, x), {})[measure] = value
    return [Observation(arm, seed, x, measures) for (arm, x), measures in places.items() for seed in (0, 1, 2)]


@pytest.mark.parametrize("name", NAMES)
def test_every_rule_can_hold_and_can_fail(name):
    """Results that satisfy the claim are found to hold; with any one comparison turned round they no longer are."""
    claim = claims.load(FOLDER, name)
    assert judge(claim.rule, satisfied(claim.rule))[0] == "holds"
    for index in range(len(claim.rule)):
        verdict, effects = judge(claim.rule, satisfied(claim.rule, broken=index))
        assert effects[index].verdict == "fails"
        assert verdict != "holds"


@pytest.mark.parametrize("name", NAMES)
def test_both_budgets_of_a_claim_are_experiments_of_their_own(name):
    claim: Claim = claims.load(FOLDER, name)
    quick = claims.load(FOLDER, name, quick=True)
    assert len(claim.seeds) >= 3
    assert quick.quick and quick.key != claim.key
    assert replace(claim, quick=True).key != claim.key


def test_a_mistake_in_a_claim_is_refused(tmp_path):
    good = (FOLDER / "quiz.yaml").read_text()
    for wrong, message in (
        (good.replace("title:", "tilte:"), "tilte"),
        (good.replace("at_most: 1.0e-6", "bound: 1"), "bound"),
        (good.replace("function:", "sweep:", 1).replace("sweep:", "swoop:", 1), "swoop"),
    ):
        (tmp_path / "quiz.yaml").write_text(wrong)
        with pytest.raises(UserError, match=message):
            claims.load(tmp_path, "quiz")
    with pytest.raises(UserError, match="did you mean quiz"):
        claims.load(tmp_path, "quizz")


@pytest.mark.parametrize(
    ("name", "now", "wrong", "message"),
    [
        ("carry_state", "of: reset", "of: resett", "rule[1].of must be an arm, got 'resett': did you mean reset?"),
        ("carry_state", "over: carried", "over: carry", "rule[1].over must be an arm"),
        ("carry_state", "measure: val/perplexity", "measure: val/perplexitty", "did you mean val/perplexity?"),
        ("gru_as_good", "measure: parameters", "measure: parameter", "rule[2].measure must be what a run measures"),
        ("pads", "probe: pads", "probe: padz", "sweep.probe must be a probe, got 'padz': did you mean pads?"),
        ("carry_state", "  seeds: [0, 1, 2, 3", "  seed: [0, 1, 2, 3", "sweep.seed is no key of sweep: did you"),
        ("carry_state", "  seeds: [0, 1]", "  sed: [0, 1]", "quick.sed is no key of quick: did you mean seeds?"),
        ("quiz", "  seeds:", "  seedz:", "function.seedz is no key of function"),
        ("quiz", "formulas.quiz", "formulas.quizz", "function.name must be a function of formulas, got 'quizz'"),
        ("quiz", "formulas.quiz", "formula.quiz", "function.name must be MODULE.FUNCTION, got 'formula.quiz'"),
        ("packing", "{spreads: [0, 0.25", "{spread: [0, 0.25", "function.arguments do not suit costs.packing"),
        ("distance", "vary: {data.synthetic.gap: [0, 10", "vary: {seed: [0], k: [0, 10", "vary must be one setting"),
        ("distance", "gap: [0, 10, 20, 40, 80]", "gap: 5", "sweep.vary.data.synthetic.gap must be a list of values"),
        ("distance", "at: 0, than_at: 40", "at: 0, than_at: 30", "rule[4].than_at must be a value of data"),
        ("distance", "minus: rnn, at: 40, at_least", "minus: rnn, at_least", "rule[1].at must say at which data.synth"),
        ("carry_state", "over: carried", "over: carried, minus: reset", "rule[1] has minus and over"),
        ("carry_state", "at_least: 1.01", "at_least: 1.01x", "rule[1].at_least must be a number, got '1.01x'"),
        ("carry_state", "of: reset, ", "", "rule[1].of must be given"),
        ("carry_state", 'title: Carry', 'title: "Carry', "is not YAML in line"),
        ("carry_state", "[data.bptt=8, model.carry_state=false]", "data.bptt=8", "sweep.arms.reset must be a list"),
        ("carry_state", "data.batch_size=20", "data.batch_size=2,4", "sweep.base gives data.batch_size several values"),
        ("carry_state", "[data.bptt=8, model", '["data.bptt=8,9", model', "sweep.arms.carried gives data.bptt several"),
        ("carry_state", "minutes: 2", "minutes: two", "minutes must be a number, got 'two'"),
        ("clipping", "failures: true", "failures: perhaps", "sweep.failures must be true or false"),
        ("carry_state", "  seeds: [0, 1, 2, 3, 4, 5]", "  seeds: [0, 0]", "sweep.seeds must be a list of differ"),
    ],
)  # fmt: skip
def test_a_student_s_slip_is_named_with_what_is_allowed(tmp_path, name, now, wrong, message):
    """Files that their readers are asked to edit: these were accepted, or ended in a stack."""
    text = (FOLDER / f"{name}.yaml").read_text()
    assert now in text
    (tmp_path / f"{name}.yaml").write_text(text.replace(now, wrong, 1))
    with pytest.raises(UserError) as refused:
        claims.load(tmp_path, name, quick="quick" in message)
    assert f"{name}.yaml" in str(refused.value) and message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("word", ["optimizer.lr=1e-3,5e-3", "++optimizer.lr=choice(1e-3,5e-3)"])
def test_a_setting_that_is_typed_for_a_claim_has_one_value(word):
    layers = claims.load(FOLDER, "layers")
    with pytest.raises(UserError, match=r"gives \+*optimizer\.lr several values, and a claim's runs differ by arm, "):
        claims.changed(layers, [word])
    assert claims.changed(layers, ["optimizer.betas=[0.9,0.99]"]).sweep.base[-1] == "optimizer.betas=[0.9,0.99]"


@pytest.mark.parametrize("text", ["", "[]", "just words", "sweep:"])
def test_a_file_that_is_no_claim_is_refused(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=r"mine\.yaml"):
        claims.load(tmp_path, "mine")


@pytest.mark.parametrize(
    ("kind", "values", "bound", "text"),
    [
        ("ratio", (0.9997, 0.9978, 1.0016), 1.0, "× 0.9997 [0.9978, 1.0016]"),
        ("ratio", (1.009, 1.0049, 1.0131), 1.01, "× 1.0090 [1.0049, 1.0131]"),
        ("ratio", (0.99956, 0.99901, 0.99996), 1.0, "× 0.99956 [0.99901, 0.99996]"),
        ("ratio", (0.766, 0.766, 0.766), 0.8, "× 0.766"),
        ("difference", (0.374, 0.327, 0.421), 0.2, "0.374 [0.327, 0.421]"),
        ("difference", (0.2, -0.004, 0.404), 0.0, "0.200 [-0.004, 0.404]"),
        ("difference", (109.2, 107.0, 111.4), 0.0, "109.2 [107.0, 111.4]"),
        ("difference", (1e-16, -1e-16, 3e-16), 0.0, "1.0e-16 [-1.0e-16, 3.0e-16]"),
        ("difference", (2.0, 1.0, float("inf")), 0.0, "2 [1, ∞]"),
        ("value", (999.7, 999.7, 999.7), 1.0, "1,000"),
    ],
)
def test_an_interval_is_shown_on_the_side_of_its_bound(kind, values, bound, text):
    """Three digits of each end made `× 1 [1, 1]` of what lay on both sides of 1, or on one."""
    estimate, low, high = values
    effect = {"kind": kind, "estimate": estimate, "low": low, "high": high, "bound": bound}
    assert effect_text(effect) == text


def test_the_table_says_why_a_verdict_is_not_that_of_its_figures():
    figures = {"text": "t", "estimate": 1.0, "low": 0.9, "high": 1.1, "bound": 0.5, "kind": "value", "verdict": "holds"}
    shown = {"title": "T", "command": "c", "number": "1", "quick": False, "effects": [figures], "seeds": [0, 1, 2]}
    for verdict, first, mean, said in (
        ("holds", "holds", 0.6, "| holds |"),
        ("depends", "depends", 0.6, "| depends (the first 2 seeds alone: depends) |"),
        ("depends", "holds", 0.1, "| depends (the further 1 seeds alone: 0.1) |"),
    ):
        one = {**shown, "verdict": verdict, "further": {"seeds": [2], "first": first, "means": [mean]}}
        assert said in table({"claims": {"demo": one}})
