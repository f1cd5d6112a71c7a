"""The leaderboard: grouped over seeds, ranked, escaped, and whole where jobs were not."""

import csv
import json
import math
import os
import statistics
import sys
from html.parser import HTMLParser
from importlib.resources import files

import pytest

import recur
from recur import results
from recur.leaderboard.columns import Column, columns
from recur.leaderboard.importance import importance
from recur.leaderboard.page import render, write
from recur.leaderboard.plots import settings
from recur.leaderboard.reading import Result, Source
from recur.leaderboard.table import Leaderboard
from recur.leaderboard.text import as_markdown, as_text, rows, titles
from recur.runs import journal
from recur.runs.journal import Journal, read
from recur.runs.marks import Mark, write_mark


def make_sweep(folder, jobs, monitor="val/accuracy", mode="max", total=None):
    """A sweep as the launcher leaves it; jobs are (overrides, value or state)."""
    book = Journal(folder)
    book.add(
        "sweep", format=1, search="grid", space={}, jobs=total or len(jobs), monitor=monitor, mode=mode, command="typed"
    )
    for number, (overrides, value) in enumerate(jobs):
        run = folder / str(number)
        run.mkdir()
        book.add("start", job=number, overrides=overrides, folder=str(number))
        if isinstance(value, str):
            if value != "unfinished":
                book.add("end", job=number, state=value, seconds=1.0, reason="exit code 1: <b>no</b> luck")
            continue
        record = {
            "val": {"accuracy": value, "loss": 1 - value},
            "test": {"accuracy": value - 0.01},
            "wall_seconds": 60.0,
        }
        record |= {"parameters": {"trainable": 1000 + number, "all": 2000}, "epochs": 3, "seed": 0}
        (run / "metrics.json").write_text(json.dumps(record))
        for epoch in (1, 2, 3):
            entry = {"step": 10 * epoch, "epoch": epoch, "done": epoch / 3, "seconds": epoch}
            journal.append_validation(run, entry | {"metrics": {"val/accuracy": value * epoch / 3}})
        book.add("end", job=number, state="done", seconds=61.0, value=value)
    book.close()
    return folder


JOBS = [([f"lr={lr}", f"size={size}", f"seed={seed}", "fixed=1"], 0.5 + 10 * lr + 0.001 * size + 0.01 * seed)
        for lr in (0.01, 0.02) for size in (1, 2) for seed in (0, 1, 2)]  # fmt: skip


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


def graded(lr=str, size=str, model=str, seeds=1):
    """Jobs of 54 settings: all of the best have one `lr`, and neither of the others; the functions spell the values."""
    return [
        ([f"lr={lr(a)}", f"size={size(b)}", f"model={model(c)}", f"seed={seed}"], a / 10 + 5 * b % 9 / 1e3 + c / 1e4)
        for a in (1, 2, 3) for b in range(1, 10) for c in (0, 1) for seed in range(seeds)
    ]  # fmt: skip


def test_importance_is_optunas_and_none_for_few_settings(tmp_path):
    pytest.importorskip("optuna")
    few = [job for job in graded(seeds=3) if "lr=1" not in job[0]]
    assert len(few) > 100 and importance(Leaderboard.of([make_sweep(tmp_path / "few", few)])) == {}
    shares = importance(Leaderboard.of([make_sweep(tmp_path / "s", graded())]))
    assert next(iter(shares)) == "lr"
    assert shares["lr"] > 0.5
    assert math.isclose(sum(shares.values()), 1)
    alike = [(overrides, 0.5) for overrides, _ in graded()]
    assert importance(Leaderboard.of([make_sweep(tmp_path / "alike", alike)])) == {}


def test_importance_asks_neither_how_values_are_spelled_nor_how_often_they_were_run(tmp_path):
    pytest.importorskip("optuna")
    plain = importance(Leaderboard.of([make_sweep(tmp_path / "plain", graded())]))
    spelled = (
        graded(lr=lambda value: "abc"[value - 1], model=lambda value: ("gru", "lstm")[value]),
        graded(lr=lambda value: f"1e{value}", size=lambda value: f"{value**3}.0"),
        graded(seeds=2),
    )
    for number, jobs in enumerate(spelled):
        shares = importance(Leaderboard.of([make_sweep(tmp_path / str(number), jobs)]))
        assert shares == pytest.approx(plain), number


def test_a_word_of_each_run_explains_nothing(tmp_path):
    """Each value was only ever run once: those of the best are the best's by definition."""
    pytest.importorskip("optuna")
    jobs = [([*overrides, f"note=n{n}"], value) for n, (overrides, value) in enumerate(graded())]
    shares = importance(Leaderboard.of([make_sweep(tmp_path / "s", jobs)]))
    assert next(iter(shares)) == "lr" and shares["note"] == 0


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


class Checker(HTMLParser):
    """Collects what the page would fetch, and whether its tags close."""

    VOID = ("meta", "link", "br", "img", "use", "path", "input")

    def __init__(self):
        super().__init__()
        self.fetched, self.open, self.ids = [], [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.fetched += [values[k] for k in ("src", "xlink:href") if values.get(k, "#")[0] != "#"]
        self.fetched += [values["href"]] if tag == "link" else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            while self.open and self.open.pop() != tag:
                pass


def test_the_page_stands_alone_and_escapes(tmp_path):
    evil = '<script>alert("x")</script>'
    jobs = [([f"name={evil}", f"lr={lr}", f"n={n}"], 0.1 * n + lr) for lr in (1, 2) for n in (1, 2, 3)]
    jobs.append((["name=plain", "lr=1", "n=1"], 0.3))
    leaderboard = Leaderboard.of([make_sweep(tmp_path / "s", jobs)])
    page = write(leaderboard, tmp_path / "out").read_text()
    checker = Checker()
    checker.feed(page)
    assert not checker.fetched
    assert len(checker.ids) == len(set(checker.ids)), "drawings share ids"
    assert evil not in page
    assert page.count("<svg") == 5 == page.count("</svg>"), "one a setting, curves, coordinates"
    assert "currentColor" in page
    for name in ("settings.png", "curves.png", "coordinates.png", "leaderboard.md", "runs.csv"):
        assert (tmp_path / "out" / name).stat().st_size > 100, name
    rows = list(csv.DictReader((tmp_path / "out" / "runs.csv").read_text().splitlines()))
    assert [float(row["val/accuracy"]) for row in rows] == [value for _, value in jobs]
    assert rows[0]["name"] == evil


def test_the_command_prints_writes_and_refuses_in_one_line(tmp_path, capsys, monkeypatch):
    folder = make_sweep(tmp_path / "s", JOBS)
    monkeypatch.setattr(sys, "argv", ["results", str(folder)])
    results.main()
    assert "71.20 ± 1.00 %" in capsys.readouterr().out
    assert (folder / "results" / "index.html").is_file()
    (tmp_path / "empty").mkdir()
    for wrong, words in ((tmp_path / "empty", "is not a sweep and not a run"), (tmp_path / "none", "no sweep at")):
        monkeypatch.setattr(sys, "argv", ["results", str(wrong)])
        with pytest.raises(SystemExit) as caught:
            results.main()
        assert caught.value.code == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert words in message


@pytest.mark.parametrize("out", [[], ["--out", "cmp"]])
@pytest.mark.parametrize("theirs", ["index.html", "leaderboard.md", "curves.png"])
def test_somebodys_files_are_not_replaced(out, theirs, tmp_path, capsys, monkeypatch):
    make_sweep(tmp_path / "s", JOBS)
    place = tmp_path / (out[1] if out else "results")
    place.mkdir()
    (place / theirs).write_text("mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["results", ".", *out])
    with pytest.raises(SystemExit) as caught:
        results.main()
    message = capsys.readouterr().err
    assert caught.value.code == 2 and message.count("\n") == 1 and theirs in message and "--out" in message
    assert [path.read_text() for path in place.iterdir()] == ["mine"]


def test_what_was_interrupted_can_be_written_again(tmp_path, capsys, monkeypatch):
    folder = make_sweep(tmp_path / "s", JOBS[:4])
    monkeypatch.setattr(sys, "argv", ["results", str(folder), "--out", str(tmp_path / "cmp")])
    with monkeypatch.context() as patch:

        def interrupted(*_):
            raise KeyboardInterrupt

        patch.setattr("recur.leaderboard.page.draw", interrupted)
        with pytest.raises(SystemExit) as caught:
            results.main()
        assert caught.value.code == 130
    assert (tmp_path / "cmp" / "leaderboard.md").is_file()
    results.main()
    whole = (tmp_path / "cmp" / "index.html").read_text()
    assert "not finished" not in whole and "val/accuracy" in whole
    with monkeypatch.context() as patch:  # an earlier page stays until there is another
        patch.setattr("recur.leaderboard.page.draw", interrupted)
        with pytest.raises(SystemExit):
            results.main()
    assert (tmp_path / "cmp" / "index.html").read_text() == whole


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


def make_run(folder, value, *overrides, monitor="val/accuracy"):
    """A run of its own, as `recur.train` leaves it."""
    (folder / ".hydra").mkdir(parents=True)
    config = {"monitor": monitor, "mode": "max" if monitor == "val/accuracy" else "min", "optimizer": {"lr": 0.5}}
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps([*overrides, f"hydra.run.dir={folder}"]))
    split, name = monitor.split("/")
    (folder / "metrics.json").write_text(json.dumps({split: {name: value}, "seed": 0, "wall_seconds": 2.0}))
    return folder


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


def test_runs_of_other_files_of_one_name_are_no_repeats(tmp_path):
    """Two projects with a `train.csv` each were one row; the same file in another folder is still a repeat."""
    for name, place, seed, texts in (("a", "one", 0, 80), ("b", "moved", 1, 80), ("c", "two", 1, 90)):
        run = make_run(tmp_path / name, 0.5, "data.train=train.csv")
        config = json.loads((run / "config.yaml").read_text())
        data = {"train": f"/{place}/train.csv", "cache_dir": f"/{place}"}
        (run / "config.yaml").write_text(json.dumps(config | {"data": data, "seed": seed}))
        said = {"train": f"{texts} texts", "val": "8 texts", "classes": "bad, good", "val overlap": name}
        record = json.loads((run / "metrics.json").read_text()) | {"seed": seed, "data": said}
        (run / "metrics.json").write_text(json.dumps(record))
    groups = Leaderboard.of([tmp_path]).groups
    assert {(group.settings["read.train"], len(group.results)) for group in groups} == {
        ("80 texts", 2),
        ("90 texts", 1),
    }


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


def test_a_stranger_s_texts_and_numbers_end_no_page_and_reorder_nothing(tmp_path, capsys, monkeypatch):
    """Lone surrogates, bidirectional overrides, numbers that JSON does not know, and a folder that is not UTF-8."""
    folder = make_sweep(tmp_path / os.fsdecode(b"s\xff"), [(["lr=1"], 0.5), (["lr=2"], "failed")])
    path = folder / "sweep.jsonl"
    events = [json.loads(line) for line in path.read_bytes().decode("utf-8", "surrogateescape").splitlines()]
    events[0] |= {"command": "\ud800 \u202etxt.exe", "jobs": math.inf}
    events[1]["overrides"].append("x=\u202e\ud800")
    events[-1]["reason"] = "\udfff\u2066"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    with (folder / "0" / "history.jsonl").open("a") as file:
        for step, epoch in (("Infinity", 1), ("NaN", 1), (7, "Infinity"), (8, "1" + 400 * "0")):
            file.write(f'{{"step": {step}, "epoch": {epoch}, "metrics": {{"val/accuracy": 1}}}}\n')
    monkeypatch.setattr(sys, "argv", ["results", str(folder)])
    results.main()
    assert r"s\udcff" in capsys.readouterr().out
    page = (folder / "results" / "index.html").read_text(encoding="utf-8")
    assert r"\ud800 \u202etxt.exe" in page and not any(sign in page for sign in "\u202e\u2066")
    assert 'href="../0"' in page
    other = write(Leaderboard.of([folder]), tmp_path / "out").read_text(encoding="utf-8")
    assert 'href="../s%FF/0"' in other
    events[1]["folder"] = "\ud800"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    with pytest.raises(recur.UserError, match="leads out of"):
        read(folder)


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


def drawn(leaderboard, key):
    """The axes of the plot of one setting."""
    return settings(leaderboard, [key], {}).axes[0]


def test_categories_are_not_joined_and_numbers_are(tmp_path):
    jobs = [([f"model={m}", f"lr={lr}"], 0.1 * lr) for m in ("a", "b", "c") for lr in (1, 2, 3)]
    leaderboard = Leaderboard.of([make_sweep(tmp_path / "s", jobs)])
    assert drawn(leaderboard, "model").lines[0].get_linestyle() == "None"
    assert drawn(leaderboard, "lr").lines[0].get_linestyle() == "-"


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


def test_the_best_of_unlike_runs_is_named_in_a_few_words(tmp_path):
    make_run(tmp_path / "a", 0.9, *[f"k{n}={n}" for n in range(9)])
    make_run(tmp_path / "b", 0.5, "other=1")
    page = write(Leaderboard.of([tmp_path]), tmp_path / "results").read_text()
    assert "0, 1, 2, 3<" in page and "k0, k1, k2, k3, and 5 more" in page


def test_settings_whose_names_end_alike_are_both_named(tmp_path):
    make_run(tmp_path / "a", 0.9, "scheduler.patience=1", "callbacks.early_stopping.patience=3", "lr=2")
    make_run(tmp_path / "b", 0.5, "other=1")
    page = write(Leaderboard.of([tmp_path]), tmp_path / "results").read_text()
    assert "scheduler.patience, early_stopping.patience, lr<" in page and "<th>early_stopping.patience</th>" in page


def test_the_log_of_a_run_of_its_own_is_named(tmp_path):
    make_run(tmp_path / "a", math.nan)
    (tmp_path / "a" / "train.log").touch()
    assert f"log {tmp_path / 'a' / 'train.log'}" in as_text(Leaderboard.of([tmp_path / "a"]))


def test_exploded_runs_get_a_logarithmic_axis_and_a_known_ceiling_a_line(tmp_path):
    folder = make_sweep(tmp_path / "s", [([f"lr={lr}"], value) for lr, value in ((1, 90.0), (2, 95.0), (3, 1e6))])
    assert drawn(Leaderboard.of([folder]), "lr").get_yscale() == "log"
    calm = make_sweep(tmp_path / "t", [([f"lr={lr}"], 0.1 * lr) for lr in (1, 2, 3)])
    assert drawn(Leaderboard.of([calm]), "lr").get_yscale() == "linear"
    lines = len(drawn(Leaderboard.of([calm]), "lr").lines)
    for number in range(3):
        path = calm / str(number) / "metrics.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"ceiling": {"accuracy": 0.97}}))
    place = drawn(Leaderboard.of([calm]), "lr")
    assert len(place.lines) == lines + 1
    assert place.lines[-1].get_ydata()[0] == 0.97
    for number in range(3):
        path = calm / str(number) / "metrics.json"
        splits = {"ceiling_by_split": {"val": {"accuracy": 0.96}, "test": {"accuracy": 0.97}}}
        path.write_text(json.dumps(json.loads(path.read_text()) | splits))
    assert drawn(Leaderboard.of([calm]), "lr").lines[-1].get_ydata()[0] == 0.96
    assert any("97.00 %" in text.get_text() for text in place.texts)


def test_the_wheel_has_the_templates():
    names = [path.name for path in files("recur.leaderboard").joinpath("templates").iterdir()]
    assert sorted(names) == ["page.css", "page.html.jinja", "page.js"]
