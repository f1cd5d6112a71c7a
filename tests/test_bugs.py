"""A bug of ours, planted inside each command, keeps its stack and ends with exit code 1; it is nobody's mistake."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import EASY
from support import commands


def _bug(*arguments: Any, **settings: Any) -> None:
    list(zip([1], [1, 2], strict=True))


def _enter(place: str, *rest: Any) -> None:
    module, _, name = place.rpartition(".")
    right = getattr(importlib.import_module(module), name)
    for other in [other for key, other in sys.modules.items() if key.partition(".")[0] == "recur"]:
        if vars(other).get(name) is right:  # there, and wherever it has been imported
            setattr(other, name, _bug)
    commands._enter(*rest)


def _run(place: str, module: str, words: list[str], folder: Path) -> tuple[int | None, str]:
    """Exit code of a command with a bug in this place, and what it printed to standard error."""
    streams = [str(folder / name) for name in ("in", "out", "err")]
    Path(streams[0]).touch()
    import os

    arguments = (place, f"recur.{module}", words, str(folder), dict(os.environ), streams)
    process = commands.server().Process(target=_enter, args=arguments)
    process.start()
    process.join(120)
    return process.exitcode, Path(streams[2]).read_text()


@pytest.mark.parametrize(
    ("module", "words", "place"),
    [
        ("train", [*EASY, "hydra.run.dir=new"], "recur.training.report.opening"),
        ("train", [*EASY, "hydra.run.dir=new"], "recur.config.schema.check_run"),
        ("train", ["-m", "seed=0,1", "hydra.sweep.dir=new"], "recur.runs.metrics.check_metric"),
        ("evaluate", ["{run}"], "recur.inference.run.load"),
        ("predict", ["{run}", "a film"], "recur.inference.run.load"),
        ("generate", ["{run}"], "recur.inference.run.load"),
        ("results", ["{run}"], "recur.runs.metrics.metric_names"),
        ("bench", ["engine", "--quick"], "recur.benchmarks.harness.machine"),
    ],
)
def test_a_bug_has_a_stack_and_exit_code_1(trained_run, tmp_path, module, words, place) -> None:
    code, said = _run(place, module, [word.format(run=trained_run) for word in words], tmp_path)
    assert code == 1, said
    assert "Traceback" in said and "zip() argument 2 is longer" in said
