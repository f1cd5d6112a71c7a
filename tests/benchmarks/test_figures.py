"""The published figures: those of the records, of experiments as they are today."""

import json
import re
from pathlib import Path

import pytest

from conftest import ROOT, train
from recur.benchmarks import figures, publish
from recur.config.compose import command_line, compose_run, conf_dir
from recur.errors import UserError

RESULTS = ROOT / ".github" / "results"
NAMES = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))
SHORT = ["trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1", "logger=none", "model.net.hidden_size=8"]


def _records() -> list[dict]:
    return [json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_has_a_figure_and_it_is_that_of_the_experiment_as_it_is(name):
    record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    assert record["name"] == name
    text = figures.path_of(name).read_text(encoding="utf-8")
    assert figures.with_header(text, figures.header(record)) == text, "run `make results`"
    today = figures.of_experiment(name)
    changed = figures.changes_of(record["settings"], today)
    assert all(f" {key}=" in record["command"] for key in changed), f"{changed} changed since {name} was measured"
    assert (RESULTS / f"{name}.png").is_file()
    if record["epochs"] < record["epochs_of"]:
        assert f"after {record['epochs']} of {record['epochs_of']} epochs" in " ".join(figures.header(record))


def test_a_figure_that_is_not_finite_is_shown_as_no_number():
    assert figures.spread({"runs": {"0": {"val": {"loss": 900.0, "perplexity": None}}}}, "val") == (
        "perplexity nan (900.000 nats)"
    )


def test_the_tables_are_those_of_the_records():
    assert publish.short_table(_records()) in (ROOT / "README.md").read_text(encoding="utf-8")
    assert publish.results_table(_records()) in (RESULTS / "README.md").read_text(encoding="utf-8")


def test_the_page_says_when_its_sections_were_measured():
    """Speed was measured before the kernels were compiled, and nothing said so."""
    bench = json.loads((RESULTS / "bench.json").read_text(encoding="utf-8"))
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    for name, section in bench["sections"].items():
        assert re.search(rf"measured this on .*{section['when'][:10]}( at [\w.-]+)? \([^)]*\b{name}\b", page)
    claims = json.loads((RESULTS / "claims.json").read_text(encoding="utf-8"))["claims"]
    others = ", ".join(f"`{name}`" for name in sorted(claims) if claims[name]["long"] or not claims[name]["further"])
    assert f"; the command beside each measured {others}." in page


def test_a_claim_without_further_seeds_is_not_said_to_be_measured_on_some():
    """`make guides ARGS="--further 2"` would not give its figures, nor did it take part in that one's minutes."""
    claims = json.loads((RESULTS / "claims.json").read_text(encoding="utf-8"))["claims"]
    two = {"quiz": {**claims["quiz"], "seconds": 300}, "distance": {**claims["distance"], "further": None}}
    page = publish.results_page([], None, {"claims": two})
    assert f"in 5 minutes of computing on {two['quiz']['device']}; the command beside each measured `distance`." in page


def test_training_figures_stand_beside_the_validation_of_their_own_epoch():
    """Earlier versions wrote those of the epoch before, which were published as the epoch's own."""
    own = [{"epoch": n, "training": "epoch so far", "metrics": {"val/loss": n, "train/epoch_loss": n}} for n in (1, 2)]
    late = [{"epoch": n, "metrics": {"val/loss": n, **({"train/epoch_loss": n - 1} if n > 1 else {})}} for n in (1, 2)]
    assert figures._history(own) == [{"epoch": n, "train/epoch_loss": n, "val/loss": n} for n in (1, 2)]
    assert figures._history(late) == [{"epoch": 1, "train/epoch_loss": 1, "val/loss": 1}, {"epoch": 2, "val/loss": 2}]


def test_the_page_says_which_sections_ran_how_often():
    sections = {"a": {"repeats": 3}, "b": {"repeats": 5}, "c": {"repeats": 3}, "d": {}}
    assert publish._repeats(sections) == "; with `--repeats 3`: a, c"
    assert publish._repeats({"b": {"repeats": 5}}) == ""


def test_a_section_of_speed_that_measured_nothing_is_passed_over():
    bench = json.loads((RESULTS / "bench.json").read_text(encoding="utf-8"))
    titles = {name: next(iter(bench["sections"][name]["tables"])) for name in ("engine", "language")}
    bench["sections"]["language"] |= {"tables": {}, "bars": []}
    table = publish.speed_tables(bench)
    assert titles["engine"] in table and titles["language"] not in table


def test_a_classifier_s_test_figure_says_on_how_many_texts():
    """The hub's test split of IMDB has 25,000, our copy 13,157."""
    test = {"accuracy": 0.5, "loss": 1.0}
    record = {"data": {"test": "1,234 texts, 9 tokens"}, "runs": {"0": {"test": test}}}
    assert figures.of_texts(record) == " on 1,234 texts"
    assert figures.of_texts({**record, "runs": {"0": {}}}) == ""
    assert figures.of_texts({**record, "data": {"test": "1,234 tokens, 0.00% unknown"}}) == ""


def test_the_best_possible_is_that_of_the_split_whose_figure_is_shown():
    """A run without a test had its validation figure beside the bound of the test."""
    (record,) = (record for record in _records() if record["name"] == "lm")
    best = {"val": {"loss": 1.0, "perplexity": 2.72}, "test": record["ceiling"]}
    of_val, of_test = "perplexity 2.72 (1.000 nats)", "perplexity 5.09 (1.628 nats)"
    untested = {"runs": {seed: {**run, "test": None} for seed, run in record["runs"].items()}}
    for changes, shown in (
        ({}, of_test),
        ({"ceiling_by_split": best}, of_test),
        ({**untested, "ceiling_by_split": best}, of_val),
        ({**untested, "ceiling_by_split": {"val": {}}}, ""),
        (untested, ""),  # an earlier version's, whose only bound is that of the test
    ):
        changed = record | changes
        assert figures.of_ceiling(changed) == shown
        head = " ".join(line.lstrip("# ") for line in figures.header(changed))
        table = publish.results_table([changed])
        assert (f"the best possible: {shown}" in head) if shown else ("best possible" not in head)
        assert f" | {shown} | {figures.of_ngrams(changed)} | " in table
        assert all(other == shown or other not in head + table for other in (of_val, of_test))


def test_the_time_of_a_run_that_begins_with_another_has_that_one_s_beside_it(tmp_path):
    """The 38 minutes of `imdb_language` were left out of those of `imdb_strong`."""
    for name in ("one", "two"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "metrics.json").write_text(json.dumps({"name": f"of_{name}"}))
    (checkpoint := tmp_path / "two" / "checkpoints" / "best.ckpt").touch()
    assert figures._begun_from({}) == figures._begun_from({"init_from": str(tmp_path / "gone")}) == []
    assert figures._begun_from({"init_from": str(tmp_path / "one")}) == ["of_one"]
    assert figures._begun_from({"init_from": [str(tmp_path / "one"), str(checkpoint)]}) == ["of_one", "of_two"]
    other = {"name": "of_one", "train_seconds": 90}
    record = {"name": "x", "train_seconds": 600, "begins_from": ["of_one", "not_published"]}
    assert figures.time(record, [other, record]) == "10.0 minutes after 90 s of `of_one`"
    assert figures.time(other, [other, record]) == "90 s"


@pytest.mark.slow
def test_three_seeds_become_one_record_with_mean_and_deviation(tmp_path):
    runs = []
    for seed in (0, 1):
        runs.append(tmp_path / str(seed))
        train(runs[-1], "experiment=char_sentence", *SHORT, f"seed={seed}")
    record = figures.record_of(runs)
    both = [json.loads((run / "metrics.json").read_text())["val"] for run in runs]
    nats = [own["loss"] for own in both]
    mean, deviation = sum(nats) / 2, abs(nats[0] - nats[1]) / 2**0.5
    assert f"({mean:.3f} ± {deviation:.3f} nats)" in figures.spread(record, "val")
    assert "seeds 0, 1" in figures.seeds(record)
    assert "trainer.max_epochs=2" in record["command"] and "after 2 of 200 epochs" in figures.part(record)
    assert str(tmp_path) not in json.dumps(record)
    assert [entry["epoch"] for entry in record["history"]] == [1, 2]

    other = tmp_path / "other"
    train(other, "experiment=char_sentence", *SHORT, "seed=2", "model.net.hidden_size=9")
    with pytest.raises(Exception, match="has other settings"):
        figures.record_of([*runs, other])


def written(folder: Path, *words: str, **metrics: object) -> Path:
    """A run's settings and figures, as training leaves them."""
    composed = compose_run(command_line(words))
    (folder / ".hydra").mkdir(parents=True)
    for name, content in composed.hydra_files().items():
        (folder / ".hydra" / name).write_text(content)
    (folder / "config.yaml").write_text(composed.config_text)
    record = json.loads((RESULTS / "lm.json").read_text(encoding="utf-8"))
    (folder / "metrics.json").write_text(json.dumps({**record, "seed": 0, **metrics}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["experiment=lm", "optimizer=sgd", "optimizer.lr=5"],
        ["experiment=imdb_fast", "scheduler=none"],
        ["experiment=lm", "+callbacks.averaging={_target_:recur.training.callbacks.NonMonotonicAveraging}"],
        ["experiment=lm", "~callbacks.samples", "model=awd_lstm", "model.net.output_size=128"],
    ],
)
def test_the_command_of_a_run_with_other_groups_gives_its_settings(words, tmp_path):
    run = written(tmp_path / "run", *words)
    settings = figures.settings_of(compose_run(command_line(words)).config)
    typed = figures.words_of(words[0].removeprefix("experiment="), settings, run)
    assert figures.settings_of(compose_run(command_line(typed)).config) == settings
    assert sorted(typed) == sorted(words)


@pytest.mark.slow
def test_runs_that_cannot_be_one_record_are_refused(tmp_path):
    run = written(tmp_path / "one", "experiment=lm")
    assert figures.record_of([run])["command"] == "python -m recur.train experiment=lm"
    for number, (metrics, message) in enumerate(
        [
            ({}, "has the seed 0 of"),
            ({"seed": 1, "precision": "64-true"}, "has other settings than"),
            ({"seed": 1, "world_size": 2}, "has other settings than"),
            ({"seed": 1, "tokens_per_second": None}, "has no times: publish a run with callbacks.throughput"),
        ]
    ):
        other = written(tmp_path / str(number), "experiment=lm", **metrics)
        with pytest.raises(UserError, match=message):
            figures.record_of([run, other])


def test_quick_figures_of_speed_are_refused(tmp_path):
    (tmp_path / "bench.json").write_text('{"sections": {"engine": {"quick": true}}}')
    before = publish.BENCH.read_bytes()
    with pytest.raises(UserError, match=r"has quick figures \(engine\)"):
        publish._run([tmp_path])
    assert publish.BENCH.read_bytes() == before


def test_other_ways_of_measuring_are_named_with_what_they_mean():
    other = {"loss": 1.0, "perplexity": 2.72}
    ways = {"each_window_alone": {**other, "window": 256}, "temperature": {**other, "temperature": 1.0625}}
    record = {"evaluation": {"val": {"loss": 2.0, **ways}, "test": {"neural_cache": {**other, "size": 2000}}}}
    assert figures.adapted(record) == {
        "validation in windows of 256 from empty states": "perplexity 2.72 (1.000 nats)",
        "validation at a temperature of 1.06": "perplexity 2.72 (1.000 nats)",
        "test with a neural cache": "perplexity 2.72 (1.000 nats)",
    }
    assert figures.adapted({"evaluation": {}}) == {}


def test_an_average_with_other_runs_names_them():
    with_both = {
        "with": [{"name": "imdb_fast", "seed": 1}, {"name": "imdb_strong", "seed": 0}],
        "test": {"accuracy": 0.925, "loss": 0.2},
    }
    record = {"name": "imdb_fast", "runs": {"0": {}, "1": {}}, "evaluation": with_both}
    assert figures.adapted(record) == {"test of seed 0 averaged with seed 1, `imdb_strong`": "92.50 %"}


def test_the_guides_log_stands_beside_the_curve_of_their_recipe():
    log = publish.reference("imdb_guide")["accuracy"]["guide's log"]
    assert [epoch for epoch, _ in log] == list(range(1, 31))
    assert max(log, key=lambda point: point[1]) == (27, 0.8941)
    assert publish.reference("lm") == {}


def test_a_head_keeps_what_is_said_before_and_after():
    text = (
        "# @package _global_\n# What it is.\n# Figure: old\n#   more\n# Hardware: old\n# Time: old\ndefaults:\n  - a\n"
    )
    new = figures.with_header(text, ["# Figure: new", "# Time: new"])
    assert new == "# @package _global_\n# What it is.\n# Figure: new\n# Time: new\ndefaults:\n  - a\n"
    with pytest.raises(ValueError, match="Figure"):
        figures.with_header("# nothing\n", [])


def test_a_change_of_a_mapping_is_one_and_can_be_typed():
    today = {"a.b": 1, "net.ngrams.max_n": 3, "net.cell_options": None, "new": 1}
    same = dict(today)
    assert figures.changes_of(same, today) == {}
    without = {"a.b": 2, "net.ngrams": None, "net.cell_options.rounds": 5, "former": 1}
    changes = figures.changes_of(without, today)
    assert changes == {"a.b": 2, "net.ngrams": None, "net.cell_options": {"rounds": 5}}
    assert [figures._typed(value) for value in changes.values()] == ["2", "null", "{rounds:5}"]


def test_a_bench_replaces_its_own_sections_alone_and_nothing_where_one_is_refused(tmp_path, monkeypatch):
    def folder(name, quick=False, **sections):
        (tmp_path / name).mkdir()
        content = {one: {"quick": quick, "value": value} for one, value in sections.items()}
        (tmp_path / name / "bench.json").write_text(json.dumps({"sections": content}))
        return tmp_path / name

    (tmp_path / "README.md").write_text("<!-- results -->\n<!-- /results -->\n")
    places = {"ROOT": tmp_path, "RESULTS": tmp_path / "r", "BENCH": tmp_path / "r" / "bench.json"}
    for name, place in {**places, "CLAIMS": tmp_path / "r" / "claims.json"}.items():
        monkeypatch.setattr(publish, name, place)
    monkeypatch.setattr(publish, "results_page", lambda *_: "")
    publish._run([folder("a", engine=1, train=1), folder("b", loss=1)])
    before = places["BENCH"].read_text()
    for others in ([folder("c", train=2), folder("d", train=3)], [folder("e", train=2), folder("f", quick=True, x=1)]):
        with pytest.raises(UserError):
            publish._run(others)
        assert places["BENCH"].read_text() == before
    publish._run([tmp_path / "c"])
    kept = json.loads(places["BENCH"].read_text())["sections"]
    assert {name: section["value"] for name, section in kept.items()} == {"engine": 1, "loss": 1, "train": 2}
