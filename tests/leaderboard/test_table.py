"""The leaderboard: grouped over seeds, ranked, and whole where jobs were not."""

import json
import math
import statistics

import pytest

import recur
from recur.leaderboard import reading
from recur.leaderboard.columns import Column, columns
from recur.leaderboard.page import render, write
from recur.leaderboard.reading import Result, Source, plain_config
from recur.leaderboard.table import Leaderboard, brief
from recur.leaderboard.text import as_markdown, as_text, rows, titles
from recur.runs.journal import Journal, append_validation, read
from recur.runs.marks import Mark, write_mark
from support.leaderboards import JOBS, make_run, make_sweep


def test_seeds_are_one_row_with_mean_and_sample_deviation(tmp_path):
    leaderboard = Leaderboard.of([make_sweep(tmp_path / "s", JOBS)])
    assert leaderboard.varied == ["lr", "size"]
    assert [group.settings for group in leaderboard.groups] == [
        {"lr": lr, "size": size} for lr in ("0.02", "0.01") for size in ("2", "1")
    ]
    values = [value for overrides, value in JOBS if overrides[:2] == ["lr=0.02", "size=2"]]
    assert leaderboard.best.mean == statistics.fmean(values)
    assert leaderboard.best.deviation == statistics.stdev(values)
    first = rows(leaderboard)[0]
    assert first == ["1", "71.20 ± 1.00 %", "70.20 %", "0.02", "2", "3", "1 min 00 s", "1,010"]
    assert "12 done; 12 min 00 s" in as_text(leaderboard)


def test_python_gets_the_leaderboard_as_a_frame(tmp_path):
    frame = recur.compare(make_sweep(tmp_path / "s", [*JOBS, (["lr=0.5", "size=2", "seed=0", "fixed=1"], "failed")]))
    leaderboard = Leaderboard.of([tmp_path / "s"])
    assert frame["lr"].tolist() == [0.02, 0.02, 0.01, 0.01, 0.5] and frame["size"].tolist() == [2, 1, 2, 1, 2]
    assert frame["val/accuracy"].tolist()[:4] == [group.mean for group in leaderboard.groups[:4]]
    assert frame["deviation"][0] == leaderboard.best.deviation and math.isnan(frame["val/accuracy"][4])
    assert frame["test/accuracy"][0] == pytest.approx(frame["val/accuracy"][0] - 0.01)
    assert frame["runs"].tolist() == [3, 3, 3, 3, 0] and frame["state"].tolist()[3:] == ["done", "failed"]
    assert [len(places) for places in frame["folders"]] == [3, 3, 3, 3, 1]
    assert recur.compare(tmp_path / "s", metric="val/loss")["val/loss"].dropna().is_monotonic_increasing
    with pytest.raises(recur.UserError, match="no sweep at"):
        recur.compare(tmp_path / "none")


def test_names_of_sweeps_stay_texts_in_a_frame(tmp_path):
    """`001` became 1.0."""
    for name in ("001", "002"):
        make_sweep(tmp_path / name, [(["lr=1"], 0.5), (["lr=2"], 0.6)])
    frame = recur.compare(tmp_path / "001", tmp_path / "002")
    assert sorted(frame["sweep"]) == ["001", "001", "002", "002"] and sorted(frame["lr"]) == [1, 1, 2, 2]


def test_runs_that_repeat_a_seed_count_as_one_seed(tmp_path):
    """Repeated runs of one seed say nothing of how a result varies over seeds."""
    one = Leaderboard.of([make_sweep(tmp_path / "one", [(["lr=1", "seed=0"], 0.5), (["lr=1", "seed=0"], 0.7)])])
    assert one.best.mean == pytest.approx(0.6) and one.best.deviation is None
    assert "±" not in as_text(one)
    page = write(one, tmp_path / "out").read_text()
    assert "seeds" not in page
    jobs = [(["lr=1", f"seed={seed}"], value) for seed, value in ((0, 0.5), (0, 0.7), (0, 0.6), (1, 0.8))]
    two = Leaderboard.of([make_sweep(tmp_path / "two", jobs)])
    assert two.best.mean == pytest.approx(0.7)
    assert two.best.deviation == pytest.approx(statistics.stdev([0.6, 0.8]))
    assert two.best.mean_of("val/loss") == pytest.approx(0.3)
    assert "over 2 seeds" in write(two, tmp_path / "out").read_text()


def test_one_folder_named_in_two_ways_counts_once(tmp_path):
    run = make_run(tmp_path / "runs" / "a", 0.5)
    other = make_run(tmp_path / "runs" / "b", 0.6)
    (tmp_path / "link").symlink_to(run)
    leaderboard = Leaderboard.of([run, other / ".." / "a", tmp_path / "link", tmp_path / "runs"])
    assert sorted(result.value for result in leaderboard.results) == [0.5, 0.6]


def test_what_did_not_end_well_is_shown_and_never_ranked(tmp_path):
    jobs = [
        (["lr=1"], 0.5),
        (["lr=2"], "failed"),
        (["lr=3"], "stopped"),
        (["lr=4"], "unfinished"),
        (["lr=5"], math.nan),
    ]
    leaderboard = Leaderboard.of([make_sweep(tmp_path / "s", jobs, total=7)])
    assert leaderboard.states_text() == "1 done, 2 failed, 1 stopped, 1 unfinished, 2 not started"
    assert leaderboard.seconds == 60 + 60 + 1 + 1  # what failed and what was stopped has cost something, too
    assert [row[0] for row in rows(leaderboard)] == ["1", "", "", "", ""]
    text = as_text(leaderboard)
    assert "job 1 failed, exit code 1" in text
    assert str(tmp_path / "s" / "1" / "output.log") in text
    page = write(leaderboard, tmp_path / "out").read_text()
    assert "<b>no</b>" not in page
    assert "&lt;b&gt;no&lt;/b&gt;" in page


def test_every_objective_of_a_search_has_one_column(tmp_path):
    folder = make_sweep(tmp_path / "s", [(["lr=1"], 0.5), (["lr=2"], 0.6)])
    lines = (folder / "sweep.jsonl").read_text().splitlines()
    objectives = {"val/accuracy": "max", "epochs": "min", "val/loss": "min", "parameters": "min", "wall_seconds": "min"}
    lines[0] = json.dumps(json.loads(lines[0]) | {"objectives": objectives})
    (folder / "sweep.jsonl").write_text("\n".join(lines) + "\n")
    leaderboard = Leaderboard.of([folder])
    measured = ["rank", "val/accuracy", "epochs", "val/loss", "test/accuracy"]
    assert titles(leaderboard) == [*measured, "lr", "runs", "time", "parameters"]
    assert rows(leaderboard)[0][2:4] == ["3", "0.4000"]


def test_a_job_that_lacks_any_objective_failed_as_the_sweep_says(tmp_path):
    folder = make_sweep(tmp_path / "s", [(["lr=1"], 0.5), (["lr=2"], 0.6), (["lr=3"], 0.7)])
    lines = (folder / "sweep.jsonl").read_text().splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | {"objectives": {"val/accuracy": "max", "test/accuracy": "max"}})
    (folder / "sweep.jsonl").write_text("\n".join(lines) + "\n")
    for number, own in enumerate(({"accuracy": 0.7}, {}, {"accuracy": math.nan})):
        path = folder / str(number) / "metrics.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"test": own}))
    reasons = [result.reason for result in Leaderboard.of([folder]).results]
    assert reasons == ["", "it wrote no test/accuracy into metrics.json", "the metric is not finite"]


def test_jobs_that_a_sweep_was_extended_by_are_missed(tmp_path):
    folder = make_sweep(tmp_path / "s", [(["lr=1"], 0.5), (["lr=2"], "stopped")], total=2)
    book = Journal(folder)
    for jobs in (9, 4):
        book.add("extended", jobs=jobs, argv=["-m", f"hydra.sweeper.n_trials={jobs}"])
    book.close()
    assert Leaderboard.of([folder]).states_text() == "1 done, 1 stopped, 2 not started"


def test_a_run_that_was_pruned_is_so_whatever_its_metric(tmp_path):
    """As the sweep says of it (`recur.sweeps.runner.judge`)."""
    folder = make_sweep(tmp_path / "s", [(["lr=1"], 0.5), (["lr=2"], math.nan), (["lr=3"], 0.4)])
    for number in (1, 2):
        record = folder / str(number) / "metrics.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"pruned": True}))
    leaderboard = Leaderboard.of([folder])
    found = [(result.state, result.value, result.reason) for result in leaderboard.results]
    assert found == [("done", 0.5, ""), ("pruned", None, ""), ("pruned", 0.4, "")]


def test_less_can_be_better_and_another_metric_can_be_asked_for(tmp_path):
    folder = make_sweep(tmp_path / "s", JOBS)
    by_loss = Leaderboard.of([folder], "val/loss")
    assert by_loss.mode == "min"
    assert by_loss.best.settings == {"lr": "0.02", "size": "2"}
    assert Leaderboard.of([folder], "parameters").best.mean == 1001
    with pytest.raises(ValueError, match=r"no job wrote the metric 'val/f2': they wrote val/accuracy"):
        Leaderboard.of([folder], "val/f2")


def test_sweeps_are_compared_by_what_either_varied(tmp_path):
    one = make_sweep(tmp_path / "one", [(["lr=1"], 0.5), (["lr=2"], 0.6)])
    two = make_sweep(tmp_path / "two", [(["size=8"], 0.7)])
    for number in ("0", "1"):
        (one / number / "config.yaml").write_text("size: 4\nlr: 1\n")
        (one / number / ".hydra").mkdir()
        (one / number / ".hydra" / "hydra.yaml").write_text("hydra: {runtime: {choices: {}}}\n")
    leaderboard = Leaderboard.of([one, two])
    assert leaderboard.best.settings == {"sweep": "two", "lr": "", "size": "8"}
    assert {group.settings["size"] for group in leaderboard.groups} == {"4", "8"}


def test_what_only_tells_sweeps_apart_is_no_column_where_it_is_much(tmp_path):
    keys = [f"k{n}" for n in range(8)]
    one = make_sweep(tmp_path / "one", [([f"lr={lr}", *(f"{key}=0" for key in keys)], 0.5 + lr) for lr in (0.1, 0.2)])
    two = make_sweep(tmp_path / "two", [(["lr=0.1", *(f"{key}=1" for key in keys)], 0.9)])
    leaderboard = Leaderboard.of([one, two])
    assert leaderboard.varied == ["sweep", "lr"]
    assert leaderboard.between == keys
    assert leaderboard.differences() == [
        f"{name}: " + ", ".join(f"{k}={v}" for k in keys) for name, v in (("one", 0), ("two", 1))
    ]
    assert "two: k0=1, k1=1" in as_text(leaderboard)
    assert "two: k0=1, k1=1" in write(leaderboard, tmp_path / "out").read_text()


def test_sweeps_of_one_name_are_told_apart_and_one_named_twice_counts_once(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = make_sweep(tmp_path / "a" / "s", [(["lr=1"], 0.5)])
    two = make_sweep(tmp_path / "b" / "s", [(["lr=1"], 0.7)])
    leaderboard = Leaderboard.of([one, two, one])
    assert [group.settings["sweep"] for group in leaderboard.groups] == ["b/s", "a/s"]
    assert [len(group.results) for group in leaderboard.groups] == [1, 1]


def test_a_torn_line_costs_itself_alone(tmp_path):
    folder = make_sweep(tmp_path / "s", JOBS)
    path = folder / "sweep.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    book = Journal(folder)
    book.add("end", job=11, state="done")
    book.close()
    events = read(folder)
    assert events[-1]["job"] == 11
    assert len(events) == 1 + 2 * len(JOBS)


def test_a_line_of_a_journal_ends_at_a_line_feed_alone(tmp_path):
    """Lines cut in two were passed over, and the run with them."""
    separators = "a\u2028b\u2029c\u0085d"
    make_sweep(tmp_path / "s", [([f"name={separators}", "lr=1"], 0.5), (["name=x", "lr=1"], 0.6)])
    assert [event["job"] for event in read(tmp_path / "s") if event["event"] == "start"] == [0, 1]
    assert read(tmp_path / "s")[1]["overrides"][0] == f"name={separators}"


def test_runs_of_their_own_are_compared_alone_together_and_with_sweeps(tmp_path):
    outputs = tmp_path / "outputs"
    one = make_run(outputs / "imdb" / "a", 0.7, "optimizer.lr=0.1")
    make_run(outputs / "imdb" / "b", 0.8)
    make_run(outputs / "lm" / "c", 120.0, monitor="val/perplexity")
    alone = Leaderboard.of([one])
    assert (alone.best.mean, alone.best.settings) == (0.7, {})
    together = Leaderboard.of([outputs])
    assert [(group.settings, group.mean) for group in together.groups] == [
        ({"optimizer.lr": "0.5"}, 0.8),
        ({"optimizer.lr": "0.1"}, 0.7),
    ]
    assert "left out: c, which is compared by val/perplexity" in as_text(together)
    assert Leaderboard.of([outputs], "val/perplexity").best.mean == 120.0
    make_sweep(outputs / "sweeps" / "s", [(["optimizer.lr=0.9"], 0.9), (["optimizer.lr=0.8"], 0.6)])
    everything = Leaderboard.of([outputs])
    assert [group.settings["sweep"] for group in everything.groups] == ["s", "", "", "s"]
    page = write(everything, tmp_path / "out").read_text()
    assert 'href="../outputs/imdb/a"' in page


def test_runs_that_look_at_another_metric_are_ranked_with_others_when_asked_alone(tmp_path):
    """A language run's val/loss and a classifier's are one name for two things, and both write it."""
    for name, value in (("a", 0.3), ("b", 0.4), ("c", 0.5)):
        make_run(tmp_path / name, value, f"optimizer.lr={value}", monitor="val/loss")
    make_sweep(tmp_path / "s", [(["optimizer.lr=0.9"], 0.9), (["optimizer.lr=0.8"], 0.8)])
    leaderboard = Leaderboard.of([tmp_path])
    assert [group.mean for group in leaderboard.groups] == [0.3, 0.4, 0.5]
    assert "left out: s, which is compared by val/accuracy (--metric val/accuracy)" in as_text(leaderboard)
    assert len(Leaderboard.of([tmp_path], "val/loss").groups) == 5


def test_runs_of_two_families_are_ranked_with_one_another_when_asked_alone(tmp_path):
    """Nats a token and nats a text were one column where both looked at val/loss."""
    tasks = {"lm": "language_modeling.LanguageModeling", "text": "sentiment.SentimentTask", "own": "mine.Task"}
    for number, name in enumerate(("lm", "text", "lm", "own")):
        run = make_run(tmp_path / f"{name}{number}", 1.0 + number, f"optimizer.lr={number}", monitor="val/loss")
        config = json.loads((run / "config.yaml").read_text())
        target = f"recur.tasks.{tasks[name]}" if name != "own" else tasks[name]
        (run / "config.yaml").write_text(json.dumps(config | {"model": {"_target_": target}}))
    folder = make_sweep(tmp_path / "s", [(["optimizer.lr=9"], 0.9)], monitor="val/loss", mode="min")
    (folder / "0" / "config.yaml").write_text('{"model": {"_target_": "recur.tasks.sentiment.SentimentTask"}}')
    leaderboard = Leaderboard.of([tmp_path / name for name in ("lm0", "text1", "lm2", "own3")])
    assert [group.mean for group in leaderboard.groups] == [1.0, 3.0, 4.0]
    assert "left out: text1, which is compared by val/loss of sentiment (--metric val/loss)" in as_text(leaderboard)
    both = Leaderboard.of([tmp_path / "text1", folder, tmp_path / "own3"])
    assert not both.left_out and len(both.groups) == 3
    assert Leaderboard.of([tmp_path / "lm0", folder, tmp_path / "lm2"]).left_out == {"s": ("val/loss", "sentiment")}
    assert len(Leaderboard.of([tmp_path], "val/loss").groups) == 5


def test_of_many_runs_that_are_left_out_a_few_are_named(tmp_path):
    for number in range(6):
        make_run(tmp_path / f"run{number}", 0.5, monitor="val/accuracy" if number == 5 else "val/perplexity")
    make_sweep(tmp_path / "s", [(["lr=1"], 0.5)] * 6)
    lines = Leaderboard.of([tmp_path]).differences()
    assert lines == [
        "left out: run0, run1, run2 and 2 more, which are compared by val/perplexity (--metric val/perplexity)"
    ]


def test_runs_of_other_config_files_are_no_repeats_of_one_another(tmp_path):
    """Nothing was typed, and a config file edited between the first two and the third."""
    for name, size, seed, lay in (("a", 8, 0, "x"), ("b", 8, 1, "y"), ("c", 16, 0, "x")):
        run = make_run(tmp_path / name, 0.5 + size / 100)
        config = json.loads((run / "config.yaml").read_text())
        config |= {"model": {"net": {"hidden_size": size, "ngrams": None}}, "seed": seed, "name": name}
        config |= {"data": {"train": [f"/{lay}/my.csv"], "cache_dir": f"/{lay}", "seed": seed}}
        config |= {"logger": {name: {"a": 1}}, "trainer": {"precision": lay}}
        if name == "b":  # a setting that came with a later version
            config["data"]["test_fraction"] = 0.0
        (run / "config.yaml").write_text(json.dumps(config))
        record = json.loads((run / "metrics.json").read_text()) | {"seed": seed}
        (run / "metrics.json").write_text(json.dumps(record))
    make_run(tmp_path / "d", 0.1, "optimizer.lr=1")
    leaderboard = Leaderboard.of([tmp_path])
    found = {
        (g.settings["model.net.hidden_size"], g.settings["optimizer.lr"]): len(g.results) for g in leaderboard.groups
    }
    assert found == {("8", "0.5"): 2, ("16", "0.5"): 1, ("", "1"): 1}
    assert leaderboard.varied == ["optimizer.lr", "model.net.hidden_size"]


def test_a_setting_that_is_left_out_or_empty_is_none_that_was_not_typed(tmp_path):
    """A run without the average of weights and one with it became one row of two seeds."""
    jobs = [(["~callbacks.ema", "seed=1"], 0.7), (["seed=0"], 0.9), (["tags=", "seed=0"], 0.5)]
    leaderboard = Leaderboard.of([make_sweep(tmp_path / "s", jobs)])
    assert [(group.mean, len(group.results)) for group in leaderboard.groups] == [(0.9, 1), (0.7, 1), (0.5, 1)]
    assert leaderboard.groups[1].settings["~callbacks.ema"] == "left out"
    assert "left out" in as_text(leaderboard)


@pytest.mark.parametrize("part", ["train", "unlabelled", "pseudo-labelled"])
def test_runs_of_other_files_of_one_name_are_no_repeats(tmp_path, part):
    """Two projects with a `train.csv` each were one row; the same file in another folder is still a repeat."""
    for name, place, seed, texts in (("a", "one", 0, 80), ("b", "moved", 1, 80), ("c", "two", 1, 90)):
        run = make_run(tmp_path / name, 0.5, "data.train=train.csv")
        config = json.loads((run / "config.yaml").read_text())
        data = {"train": f"/{place}/train.csv", "cache_dir": f"/{place}"}
        (run / "config.yaml").write_text(json.dumps(config | {"data": data, "seed": seed}))
        said = {"train": "70 texts", "val": "8 texts", "classes": "bad, good", "val overlap": name}
        said[part] = f"{texts} texts"
        record = json.loads((run / "metrics.json").read_text()) | {"seed": seed, "data": said}
        (run / "metrics.json").write_text(json.dumps(record))
    groups = Leaderboard.of([tmp_path]).groups
    assert {(group.settings[f"read.{part}"], len(group.results)) for group in groups} == {
        ("80 texts", 2),
        ("90 texts", 1),
    }


def write_config(run, said="80 texts", **settings):
    """A config, and a record that says how many texts were read."""
    (run / "config.yaml").write_text(json.dumps({"data": {"train": "/x/my.csv"}, **settings}))
    record = json.loads((run / "metrics.json").read_text())
    record |= {"data": {"train": said, "val": "8 texts"}, "command": "python -m recur.train lr=1"}
    (run / "metrics.json").write_text(json.dumps(record))


@pytest.mark.parametrize("lrs", [(1,), (1, 2)])
def test_jobs_of_a_sweep_whose_data_changed_are_no_repeats(tmp_path, lrs):
    """A file that grew while the sweep ran: two seeds of different data were averaged."""
    jobs = [([f"lr={lr}", "data.train=my.csv", f"seed={seed}"], 0.5 + 0.1 * seed) for lr in lrs for seed in (0, 1)]
    folder = make_sweep(tmp_path / "s", jobs)
    for number in range(len(jobs)):
        write_config(folder / str(number), said="90 texts" if number else "80 texts")
    leaderboard = Leaderboard.of([folder])
    assert leaderboard.varied == ["lr"] * (len(lrs) > 1) + ["read.train"]
    assert [len(group.results) for group in leaderboard.groups if group.settings["read.train"] == "80 texts"] == [1]


@pytest.mark.parametrize("overrides", [["data.limit_train={}"], ["data.split_seed=${{seed}}", "seed={}"]])
def test_jobs_of_a_sweep_that_were_to_read_other_data_have_no_column_of_them(tmp_path, overrides):
    folder = make_sweep(tmp_path / "s", [([text.format(n) for text in overrides], 0.5) for n in (1, 2)])
    for number in (0, 1):
        write_config(folder / str(number), said=f"{80 + number} texts", data={"split_seed": number})
    leaderboard = Leaderboard.of([folder])
    assert not any(key.startswith("read.") for key in leaderboard.varied)
    assert len(leaderboard.groups) == (2 if len(overrides) == 1 else 1)


@pytest.mark.parametrize("typed", [[], ["trainer.max_epochs=10"]])
def test_a_job_of_a_sweep_that_was_extended_by_hand_is_no_repeat(tmp_path, monkeypatch, typed):
    """`resume=SWEEP/0 trainer.max_epochs=20`: its figure and that of another seed were averaged."""
    jobs = [([f"lr={lr}", *typed, f"seed={seed}"], 0.5) for lr in (1, 2) for seed in range(5)]
    folder, opened = make_sweep(tmp_path / "s", jobs), []
    for number in range(len(jobs)):
        write_config(folder / str(number), trainer={"max_epochs": 10}, model={"size": number})
    monkeypatch.setattr(reading, "plain_config", lambda place: opened.append(place) or plain_config(place))
    assert [len(group.results) for group in Leaderboard.of([folder]).groups] == [5, 5]
    assert len(opened) == 1, "no config of thousands of jobs is read"
    extended = folder / "0"
    write_config(extended, trainer={"max_epochs": 20}, model={"size": 0})
    record = json.loads((extended / "metrics.json").read_text())
    record["command"] = f"python -m recur.train resume={extended} trainer.max_epochs=20"
    (extended / "metrics.json").write_text(json.dumps(record))
    (extended / ".hydra").mkdir()
    words = [*jobs[0][0], f"hydra.run.dir={extended}", "trainer.max_epochs=20"]
    (extended / ".hydra" / "overrides.yaml").write_text(json.dumps(words))
    leaderboard = Leaderboard.of([folder])
    assert sorted(leaderboard.varied) == ["lr", "trainer.max_epochs"]
    found = {
        (group.settings["lr"], group.settings["trainer.max_epochs"]): len(group.results) for group in leaderboard.groups
    }
    assert found == {("1", "20"): 1, ("1", "10"): 4, ("2", "10" if typed else ""): 5}


def test_a_metric_of_ones_own_is_ranked_as_its_run_says(tmp_path):
    for name, value in (("a", 0.2), ("b", 0.7)):
        run = make_run(tmp_path / name, value, f"optimizer.lr={value}", monitor="val/mine")  # less is better
        record = json.loads((run / "metrics.json").read_text())
        (run / "metrics.json").write_text(json.dumps(record | {"test": {"mine": value, "accuracy": value}}))
    assert [Leaderboard.of([tmp_path], name).best.mean for name in ("val/mine", "test/mine")] == [0.2, 0.2]
    assert Leaderboard.of([tmp_path], "test/accuracy").best.mean == 0.7


def test_settings_that_tie_are_said_to_tie(tmp_path):
    jobs = [([f"lr={lr}"], value) for lr, value in ((1, 1.0), (2, 1.0), (3, 0.5), (4, 1.0))]
    leaderboard = Leaderboard.of([make_sweep(tmp_path / "s", jobs)])
    assert [row[0] for row in rows(leaderboard)] == ["1", "1", "1", "4"]
    assert "3 settings tie for the best val/accuracy" in as_text(leaderboard)
    page = write(leaderboard, tmp_path / "out").read_text()
    assert "tie of 3 settings" in page
    assert page.count('class="best"') == 3


class Counted(Result):
    """A result that counts how often something of it is looked at."""

    looks = 0

    def __getattribute__(self, name):
        if name in ("value", "record", "state"):
            Counted.looks += 1
        return super().__getattribute__(name)


def many(tmp_path, count, state="done"):
    """A leaderboard of so many settings in one sweep, each of one run."""
    source = Source(tmp_path, "s", "val/accuracy", "max", {"jobs": count}, [])
    results = [
        Counted("s", str(n), tmp_path / str(n), state, {"lr": str(n), "seed": "0"},
                {"val": {"accuracy": n / count}, "wall_seconds": 1.0, "seed": 0}, n % 1000 / 1000, "why")
        for n in range(count)
    ]  # fmt: skip
    return Leaderboard([source], results, "val/accuracy", "max")


def test_work_grows_with_the_settings_and_not_with_their_square(tmp_path):
    looks = []
    for count in (300, 3000):
        Counted.looks = 0
        leaderboard = many(tmp_path, count)
        as_text(leaderboard, 20), as_markdown(leaderboard), render(leaderboard, [], tmp_path)
        looks.append(Counted.looks)
    assert looks[1] <= 11 * looks[0] and looks[1] <= 200 * 3000
    assert [leaderboard.rank(group) for group in leaderboard.groups[:4]] == ["1", "1", "1", "4"]


def test_columns_are_found_once_and_only_rows_that_are_shown_are_made(tmp_path, monkeypatch):
    leaderboard, asked = many(tmp_path, 300), []
    made = columns(leaderboard)
    cell = Column("one", lambda leaderboard, group: asked.append(group) or "text")
    monkeypatch.setattr("recur.leaderboard.text.columns", lambda leaderboard: asked.append("columns") or [*made, cell])
    assert "... and 295 more settings" in as_text(leaderboard, 5)
    assert asked == ["columns", *leaderboard.groups[:5]]


def test_of_many_failures_as_many_are_printed_as_settings(tmp_path):
    leaderboard = many(tmp_path, 50, state="failed")
    text = as_text(leaderboard, 5)
    assert text.count("failed, why; log") == 5 and "... and 45 more failed" in text
    assert as_text(leaderboard).count("failed, why; log") == 50


def test_the_time_of_every_attempt_counts(tmp_path):
    """Of a job that was started again, and of a run of its own that was resumed and killed."""
    folder = make_sweep(tmp_path / "s", [(["lr=1"], 0.5), (["lr=2"], "failed"), (["lr=3"], "failed")])
    book = Journal(folder)
    for number, seconds in ((1, 10.0), (1, math.nan), (2, 100.0), (2, None)):  # None: it is running
        book.add("start", job=number, overrides=[f"lr={number + 1}"], folder=str(number))
        if seconds is not None:
            book.add("end", job=number, state="failed", seconds=seconds, reason="why")
    book.close()
    assert Leaderboard.of([folder]).seconds == 60 + (1 + 10) + (1 + 100)
    run = make_run(tmp_path / "a", 0.5)
    (run / "metrics.json").unlink()
    (run / "checkpoints").mkdir()
    for step, seconds in enumerate((5.0, 9.0, 4.0, 7.0, 11.0, 2.0), start=1):
        entry = {"step": step, "epoch": step, "done": 0.1, "seconds": seconds, "metrics": {"val/accuracy": 0.5}}
        append_validation(run, entry)
    assert Leaderboard.of([run]).seconds == 9 + 11 + 2


def test_a_run_of_its_own_that_exploded_is_there_and_says_why(tmp_path):
    make_run(tmp_path / "a", 0.5, "optimizer.lr=1")
    for name, files in (("b", ()), ("c", ("checkpoints",)), ("d", ("metrics.json",))):
        run = make_run(tmp_path / name, 0.6, f"optimizer.lr={2 if name == 'd' else 9}")
        (run / "not_finite.txt").write_text("loss nan, gradient norm inf at step 3:\n  lower optimizer.lr\n")
        if "metrics.json" not in files:
            (run / "metrics.json").unlink()
        if "checkpoints" in files:
            (run / "checkpoints").mkdir()
    leaderboard = Leaderboard.of([tmp_path])
    assert {result.label: result.state for result in leaderboard.results} == {
        "a": "done", "b": "failed", "c": "failed", "d": "done"
    }  # fmt: skip
    assert as_text(leaderboard).count("failed, loss nan, gradient norm inf at step 3: lower optimizer.lr; log") == 2
    assert Leaderboard.of([tmp_path / "b"]).count("failed") == 1


@pytest.mark.parametrize("metric", [None, "train/epoch_loss"])
def test_a_run_that_looks_at_its_training_is_ranked_by_its_validations(tmp_path, metric):
    """Its record has no such figure: it was shown as failed. Of a part of an epoch no weights were kept."""
    for name, values in (("a", {0.5: 0.1, 1: 0.9, 2: 0.4, 3: 0.6}), ("b", {1: 0.5, 1.5: 0.3}), ("c", {0.5: 0.2})):
        run = make_run(tmp_path / name, 0.5, f"optimizer.lr={name}", monitor="train/epoch_loss")
        (run / "metrics.json").write_text('{"val": {"loss": 0.7}, "seed": 0}')
        for step, (epoch, value) in enumerate(values.items(), start=1):
            entry = {"step": step, "epoch": epoch, "done": 0.5, "seconds": 1}
            append_validation(run, entry | {"metrics": {"train/epoch_loss": value}})
    leaderboard = Leaderboard.of([tmp_path], metric)
    assert [(group.state, group.mean) for group in leaderboard.groups] == [("done", 0.4), ("done", 0.5), ("done", None)]
    assert [row[:2] for row in rows(leaderboard)] == [["1", "0.4000"], ["2", "0.5000"], ["", "done"]]


def test_a_job_that_exploded_after_its_line_was_lost_is_no_unfinished_one(tmp_path):
    folder = make_sweep(tmp_path / "s", [(["lr=1"], "unfinished"), (["lr=2"], "failed"), (["lr=3"], "stopped")])
    for number in range(3):
        (folder / str(number) / "not_finite.txt").write_text("loss nan")
    found = [(result.state, result.reason[:8]) for result in Leaderboard.of([folder]).results]
    assert found == [("failed", "loss nan"), ("failed", "exit cod"), ("stopped", "exit cod")]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("0.999962", "0.999962"),
        ("0.99996234567", "0.99996235"),
        ("1.0000000", "1"),
        ("0.0012345678", "0.001235"),
        ("0.5012345678", "0.5012"),
        ("-1.2345e-05", "-1.234e-05"),
        ("12345678", "12345678"),
        ("-12345678.0", "-12345678"),
        ("12345678.9", "1.235e+07"),
        ("0.3", "0.3"),
        ("infinity", "infinity"),
        ("adaptive", "adaptive"),
    ],
)
def test_a_setting_is_shown_with_the_digits_that_count(text, shown):
    assert brief(text) == shown


def test_a_complete_run_is_done_whatever_the_journal_says_or_has_lost(tmp_path):
    folder = make_sweep(tmp_path / "s", [([f"lr={lr}"], lr / 10) for lr in (1, 2, 3)])
    lines = (folder / "sweep.jsonl").read_text().splitlines()
    header = json.loads(lines[0]) | {"id": "0" * 32}
    failed = [line.replace('"done"', '"failed"') for line in lines[1:] if json.loads(line)["job"] == 0]
    (folder / "sweep.jsonl").write_text("\n".join([json.dumps(header), *failed]) + "\n")
    for number in (1, 2):
        write_mark(folder / str(number), Mark("0" * 32, number, (f"lr={number + 1}",)))
    leaderboard = Leaderboard.of([folder])
    assert leaderboard.states_text() == "3 done"
    assert [group.settings["lr"] for group in leaderboard.groups] == ["3", "2", "1"]


def test_what_no_run_writes_is_no_stack(tmp_path):
    folder = make_sweep(tmp_path / "s", JOBS)
    (folder / "0" / "metrics.json").write_text('{"val": {"accuracy": 1' + 400 * "0" + "}}")
    (folder / "1" / "metrics.json").write_text('{"ceiling": 3, "val": {"accuracy": 0.5}, "wall_seconds": 1e400}')
    with (folder / "sweep.jsonl").open("a") as file:
        file.write("[" * 100_000 + "\n")
    with (folder / "2" / "history.jsonl").open("a") as file:
        file.write('{"step": 9, "epoch": 9, "metrics": {"val/accuracy": 1' + 400 * "0" + "}}\n")
    leaderboard = Leaderboard.of([folder])
    assert leaderboard.count("failed") == 1
    write(leaderboard, tmp_path / "out")


def test_balanced_accuracy_has_a_column_where_runs_wrote_it(tmp_path):
    folder = make_sweep(tmp_path / "s", [(["lr=1"], 0.5), (["lr=2"], 0.6)])
    assert "val/balanced_accuracy" not in titles(Leaderboard.of([folder]))
    for number, value in enumerate((0.4, 0.45)):
        path = folder / str(number) / "metrics.json"
        record = json.loads(path.read_text())
        record["val"]["balanced_accuracy"] = value
        path.write_text(json.dumps(record))
    leaderboard = Leaderboard.of([folder])
    at = titles(leaderboard).index("val/balanced_accuracy")
    assert [float(row[at].split()[0]) for row in rows(leaderboard)] in ([45.0, 40.0], [0.45, 0.4])


def test_a_setting_that_was_typed_equals_the_same_one_that_was_configured(tmp_path):
    """`false`, `False` and `null` as somebody types them, and as another run's config has them."""
    configs = {"a": {"test": False, "limit": None, "tied": True}, "b": {"test": True, "limit": 5, "tied": True}}
    typed = {"a": (), "b": ()} | {"c": ("test=false", "limit=null", "tied=True"), "d": ("test=true", "limit=5")}
    for name, overrides in typed.items():
        run = make_run(tmp_path / name, 0.5, *overrides)
        config = json.loads((run / "config.yaml").read_text()) | configs["a" if name in "ac" else "b"]
        (run / "config.yaml").write_text(json.dumps(config))
    groups = Leaderboard.of([tmp_path]).groups
    found = sorted((group.settings["test"], group.settings["limit"], len(group.results)) for group in groups)
    assert found == [("false", "null", 2), ("true", "5", 2)]
    assert all("tied" not in group.settings for group in groups)


def test_runs_typed_with_two_spellings_of_one_value_are_repeats(tmp_path):
    for seed, words in enumerate([("lr=1e-3", "tied=True"), ("++lr=0.001", "tied=true"), ("lr=2e-3", "tied=false")]):
        make_run(tmp_path / str(seed), 0.5 + 0.1 * seed, *words, f"++seed={seed}")
    groups = Leaderboard.of([tmp_path]).groups
    assert [(group.settings, len(group.results)) for group in groups] == [
        ({"lr": "2e-3", "tied": "false"}, 1),
        ({"lr": "1e-3", "tied": "True"}, 2),
    ]


def test_the_log_of_a_run_of_its_own_is_named(tmp_path):
    make_run(tmp_path / "a", math.nan)
    (tmp_path / "a" / "train.log").touch()
    assert f"log {tmp_path / 'a' / 'train.log'}" in as_text(Leaderboard.of([tmp_path / "a"]))
