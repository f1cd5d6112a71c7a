"""What a leaderboard is written as: a page that stands alone, its plots, and how much each setting matters."""

import csv
import json
import math
import os
import sys
from html.parser import HTMLParser
from importlib.resources import files

import pytest

import recur
from recur import results
from recur.leaderboard.importance import importance
from recur.leaderboard.page import write
from recur.leaderboard.plots import coordinates, settings
from recur.leaderboard.table import Leaderboard
from recur.runs.journal import read
from support.leaderboards import JOBS, make_run, make_sweep


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


def test_no_plot_of_an_earlier_leaderboard_stays_beside_a_new_one(tmp_path):
    out = tmp_path / "out"
    write(Leaderboard.of([make_sweep(tmp_path / "s", JOBS)]), out)
    (out / "notes.png").touch()
    assert {"settings.png", "curves.png", "coordinates.png"} <= {path.name for path in out.iterdir()}
    write(Leaderboard.of([make_run(tmp_path / "a", 0.5)]), out)
    assert [path.name for path in out.glob("*.png")] == ["notes.png"]


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


def drawn(leaderboard, key):
    """The axes of the plot of one setting."""
    return settings(leaderboard, [key], {}).axes[0]


def test_categories_are_not_joined_and_numbers_are(tmp_path):
    jobs = [([f"model={m}", f"lr={lr}"], 0.1 * lr) for m in ("a", "b", "c") for lr in (1, 2, 3)]
    leaderboard = Leaderboard.of([make_sweep(tmp_path / "s", jobs)])
    assert drawn(leaderboard, "model").lines[0].get_linestyle() == "None"
    assert drawn(leaderboard, "lr").lines[0].get_linestyle() == "-"


@pytest.mark.slow
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


def test_exploded_runs_get_a_logarithmic_axis_and_a_known_ceiling_a_line(tmp_path):
    jobs = [([f"lr={lr}"], value) for lr, value in ((1, 90.0), (2, 95.0), (3, 1e6))]
    folder = make_sweep(tmp_path / "s", jobs, "val/perplexity", "min")
    for number, (_, value) in enumerate(jobs):
        (folder / str(number) / "metrics.json").write_text(json.dumps({"val": {"perplexity": value}}))
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
    for number in range(3):
        path = calm / str(number) / "metrics.json"
        splits = {"ceiling_by_split": {"val": {}, "test": {"accuracy": 0.97}}}
        path.write_text(json.dumps(json.loads(path.read_text()) | splits))
    assert Leaderboard.of([calm]).ceiling is None, "nothing is known of this split"
    assert len(drawn(Leaderboard.of([calm]), "lr").lines) == lines


def test_a_run_that_learned_nothing_gives_the_others_no_logarithmic_axis(tmp_path):
    """More is better: what is a hundredth of the best is a bad run, and no reason to press the good ones together."""
    jobs = [([f"lr={lr}", f"n={n}"], 0.001 if lr == 1 else 0.8 + lr / 100) for lr in (1, 2, 3) for n in (1, 2)]
    leaderboard = Leaderboard.of([make_sweep(tmp_path / "s", jobs)])
    assert drawn(leaderboard, "lr").get_yscale() == "linear"
    texts = [text.get_text() for text in coordinates(leaderboard, (9, 3)).axes[0].texts]
    assert "41.55 %" in texts, "the middle of a linear axis"


def test_numbers_are_numbers_however_often_each_was_run(tmp_path):
    for values, ticks in ((9, None), (8, 8), (5, 5)):
        for repeats in (1, 3):
            jobs = [([f"lr={lr}", f"n={n}"], lr / 10) for lr in range(1, values + 1) for n in range(repeats)]
            place = drawn(Leaderboard.of([make_sweep(tmp_path / f"{values}.{repeats}", jobs)]), "lr")
            assert bool(place.lines) == (ticks is not None), "each value has a mark and a tick"
            assert ticks is None or len(place.get_xticks()) == ticks


def test_the_wheel_has_the_templates():
    names = [path.name for path in files("recur.leaderboard").joinpath("templates").iterdir()]
    assert sorted(names) == ["page.css", "page.html.jinja", "page.js"]
