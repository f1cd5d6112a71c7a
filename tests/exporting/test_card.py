"""The model card of a run whose figures are not all numbers, or are bounded."""

import json
import shutil
from pathlib import Path

import yaml

from recur.exporting.card import card
from recur.runs.run import Run


def test_a_figure_that_is_not_finite_is_an_empty_cell(trained_run: Path, tmp_path: Path) -> None:
    shutil.copytree(trained_run, tmp_path / "run")
    history = tmp_path / "run" / "history.jsonl"
    entries = [json.loads(line) for line in history.read_text().splitlines()]
    entries[0]["metrics"]["val/loss"] = None  # as a NaN is written
    history.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    record["val"]["auroc"], record["test"]["auroc"] = float("nan"), None
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(record))
    text = card(Run.open(tmp_path / "run"), ["true"])
    front = yaml.safe_load(text.split("---\n")[1])
    named = [metric["name"] for metric in front["model-index"][0]["results"][0]["metrics"]]
    assert "val/loss" in named and "val/auroc" not in named and "test/auroc" not in named
    assert "| auroc |  |  |" in text and "nan" not in text
    assert f"| {entries[0]['step']:,} |" in text and "|  |" in text.partition("## Validations")[2]


def test_what_bounds_a_split_is_of_that_split(trained_run: Path, tmp_path: Path) -> None:
    shutil.copytree(trained_run, tmp_path / "run")
    file = tmp_path / "run" / "metrics.json"
    record = json.loads(file.read_text())

    def said(**bounds: object) -> str:
        file.write_text(json.dumps({**record, **bounds}))
        return card(Run.open(tmp_path / "run"), ["true"]).partition("The best that is possible")[2].partition("\n")[0]

    best = {"val": {"accuracy": 0.9}, "test": {"accuracy": 0.8}}
    assert said(ceiling_by_split=best, ceiling=best["test"]) == ": accuracy 0.9000 on val; accuracy 0.8000 on test."
    assert said(ceiling_by_split={"val": {}, "test": {}}, ceiling={}) == ""
    del record["ceiling_by_split"]  # as earlier versions wrote it
    assert said(ceiling=best["test"]) == ": accuracy 0.8000 on test."
