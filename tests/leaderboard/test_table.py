"""The leaderboard: grouped over seeds, ranked, escaped, and whole where jobs were not."""

import csv
import json
import math
import statistics
import sys
from html.parser import HTMLParser

import pytest

from recur import results
from recur.leaderboard.page import write
from recur.leaderboard.table import Leaderboard
from recur.runs import journal
from recur.runs.journal import Journal, read


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
    first = leaderboard.rows()[0]
    assert first == ["1", "0.7120 ± 0.0100", "0.7020", "0.02", "2", "3", "1 min 00 s", "1,010"]
    assert "12 done; 12 min 00 s" in leaderboard.as_text()


def test_importance_is_the_share_of_variance_between_values(tmp_path):
    leaderboard = Leaderboard.of([make_sweep(tmp_path / "s", JOBS)])
    shares = leaderboard.importance()
    values = [value for _, value in JOBS]
    between = 6 * 2 * 0.05**2  # two values of lr, 0.05 from the mean each
    total = sum((v - statistics.fmean(values)) ** 2 for v in values)
    assert math.isclose(shares["lr"], between / total)
    assert list(shares) == ["lr", "size"]


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
    assert [row[0] for row in leaderboard.rows()] == ["1", "", "", "", ""]
    text = leaderboard.as_text()
    assert "job 1 failed, exit code 1" in text
    assert str(tmp_path / "s" / "1" / "output.log") in text
    page = write(leaderboard, tmp_path / "out").read_text()
    assert "<b>no</b>" not in page
    assert "&lt;b&gt;no&lt;/b&gt;" in page


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
    assert "two: k0=1, k1=1" in leaderboard.as_text()
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
    jobs.append((["name=tame", "lr=1", "n=1"], 0.3))
    leaderboard = Leaderboard.of([make_sweep(tmp_path / "s", jobs)])
    page = write(leaderboard, tmp_path / "out").read_text()
    checker = Checker()
    checker.feed(page)
    assert not checker.fetched
    assert len(checker.ids) == len(set(checker.ids)), "drawings share ids"
    assert evil not in page
    assert page.count("<svg") == 3 == page.count("</svg>")
    assert "currentColor" in page
    for name in ("settings.png", "curves.png", "coordinates.png", "importance.png", "leaderboard.md", "runs.csv"):
        assert (tmp_path / "out" / name).stat().st_size > 100, name
    rows = list(csv.DictReader((tmp_path / "out" / "runs.csv").read_text().splitlines()))
    assert [float(row["val/accuracy"]) for row in rows] == [value for _, value in jobs]
    assert rows[0]["name"] == evil


def test_the_door_prints_writes_and_refuses_in_one_line(tmp_path, capsys, monkeypatch):
    folder = make_sweep(tmp_path / "s", JOBS)
    monkeypatch.setattr(sys, "argv", ["results", str(folder)])
    results.main()
    assert "0.7120 ± 0.0100" in capsys.readouterr().out
    assert (folder / "results" / "index.html").is_file()
    for wrong, words in (
        (tmp_path, "is not a sweep"),
        (tmp_path / "none", "no sweep at"),
        (folder / "0", "single run"),
    ):
        monkeypatch.setattr(sys, "argv", ["results", str(wrong)])
        with pytest.raises(SystemExit) as caught:
            results.main()
        assert caught.value.code == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert words in message


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
