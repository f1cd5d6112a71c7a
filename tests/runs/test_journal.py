"""The lines of a sweep and of a run: whole, or apart from those that were cut."""

import json
import os
from contextlib import closing
from pathlib import Path

import pytest

from recur.runs import journal


def entry(step: int) -> dict:
    return {"step": step, "epoch": 0.5, "metrics": {"val/loss": 1.0}}


def steps(folder: Path) -> list[int]:
    return [one["step"] for one in journal.read_validations(folder)]


def test_a_line_that_was_cut_costs_itself_alone(tmp_path: Path) -> None:
    (tmp_path / journal.VALIDATIONS).write_text(f'{json.dumps(entry(1))}\n{{"step": 2, "ep')
    journal.append_validation(tmp_path, entry(3))
    journal.append_validation(tmp_path, entry(4))
    assert steps(tmp_path) == [1, 3, 4]
    assert (tmp_path / journal.VALIDATIONS).read_text().count("\n") == 4


def test_what_a_write_did_not_take_is_written_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:7]))
    journal.append_validation(tmp_path, entry(1))
    with closing(journal.Journal(tmp_path)) as book:
        book.add("sweep", monitor="val/loss", mode="min")
    assert steps(tmp_path) == [1] and journal.read(tmp_path)[0]["mode"] == "min"


def test_validations_after_a_step_are_left_out(tmp_path: Path) -> None:
    for step in (1, 3, 2, 5):
        journal.append_validation(tmp_path, entry(step))
    journal.cut_validations(tmp_path, 2)
    assert steps(tmp_path) == [1, 2]
    journal.append_validation(tmp_path, entry(4))
    assert steps(tmp_path) == [1, 2, 4]
    journal.cut_validations(tmp_path / "absent", 2)
