"""What `trainer.precision=auto` comes to, that a run keeps it, and what an evaluation follows."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from recur import evaluate
from recur.config.compose import command_line, compose_run
from recur.nn import compiled, products
from recur.runs import precision
from recur.runs.run import load_checkpoint
from recur.training import start
from recur.training.failures import Stop

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make the machine one with these abilities."""

    def made(*, has: bool = True, pays: bool = True, kernels: bool = True, gpu: bool | None = None) -> None:
        monkeypatch.setattr(products, "has_bf16", lambda: has)
        monkeypatch.setattr(products, "bf16_pays", lambda: pays)
        monkeypatch.setattr(compiled, "available", lambda dtype: kernels)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bool(gpu))

    return made


@pytest.mark.parametrize(
    ("abilities", "accelerator", "expected"),
    [
        ({}, "cpu", "bf16-mixed"),
        ({}, "auto", "bf16-mixed"),
        ({"pays": False}, "cpu", "32-true"),
        ({"kernels": False}, "cpu", "32-true"),
        ({"gpu": True, "pays": False}, "auto", "bf16-mixed"),
        ({"gpu": True, "pays": False}, "cpu", "32-true"),
        ({"gpu": False}, "gpu", "32-true"),
        ({}, "mps", "32-true"),
    ],
)
def test_auto_takes_bf16_where_it_is_faster(machine: Any, abilities: Any, accelerator: str, expected: str) -> None:
    machine(**abilities)
    assert precision.resolve("auto", accelerator) == expected
    assert precision.resolve("64-true", accelerator) == "64-true"


def test_ranks_that_rank_0_starts_take_its_choice(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would else time products by itself, beside the others."""
    composed = compose_run(command_line(["trainer.precision=auto", "trainer.accelerator=cpu"]))
    machine(pays=False)
    monkeypatch.setenv("RECUR_PRECISION", f"{os.getppid()}:bf16-mixed")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert start.with_precision(composed).config["trainer"]["precision"] == "bf16-mixed"
    asked = compose_run(command_line(["trainer.precision=64-true", "trainer.accelerator=cpu"]))
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert start.with_precision(asked).config["trainer"]["precision"] == "64-true"
    assert os.environ["RECUR_PRECISION"] == f"{os.getpid()}:64-true"
    monkeypatch.setenv("LOCAL_RANK", "1")  # of torchrun, which another process started: that one's former run is none
    for former in (os.environ["RECUR_PRECISION"], "bf16-mixed", ""):
        monkeypatch.setenv("RECUR_PRECISION", former)
        assert start.with_precision(composed).config["trainer"]["precision"] == "32-true"
    monkeypatch.setattr(os, "getppid", lambda: 7)
    monkeypatch.setenv("RECUR_PRECISION", "7:64-true")
    assert start.with_precision(composed).config["trainer"]["precision"] == "64-true"


def test_a_run_leaves_no_precision_behind(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`recur.fit` leaves the process as it was."""
    machine()

    def stopped(composed: Any) -> None:
        assert os.environ["RECUR_PRECISION"] == f"{os.getpid()}:bf16-mixed"
        raise KeyboardInterrupt

    monkeypatch.setattr(start, "take_up", stopped)
    for before in (None, "7:32-true"):
        monkeypatch.delenv("RECUR_PRECISION", raising=False)
        if before is not None:
            monkeypatch.setenv("RECUR_PRECISION", before)
        with pytest.raises(KeyboardInterrupt):
            start.run(composed_run(), Stop())
        assert os.environ.get("RECUR_PRECISION") == before


def test_a_config_of_an_earlier_version_means_what_it_meant(machine: Any) -> None:
    machine()
    assert precision.resolve_former("auto", "cpu") == "32-true"
    assert precision.resolve_former("bf16-mixed", "cpu") == "bf16-mixed"
    machine(gpu=True)
    assert precision.resolve_former("auto", "auto") == "bf16-mixed"


def composed_run(*words: str, resumed: bool = False) -> Any:
    return replace(compose_run(command_line(["hydra.run.dir=unused", "trainer=cpu", *words])), resumed=resumed)


def test_a_run_keeps_what_auto_came_to(machine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    machine()
    composed = composed_run()
    begun = start.with_precision(composed)
    assert composed.config["trainer"]["precision"] == composed.cfg.trainer.precision == "auto"
    kept = yaml.safe_load(begun.hydra_files()["config.yaml"])
    assert begun.record()["trainer"]["precision"] == kept["trainer"]["precision"] == "bf16-mixed"
    assert {**kept, "trainer": {**kept["trainer"], "precision": "auto"}} == yaml.safe_load(
        composed.hydra_files()["config.yaml"]
    )
    machine(pays=False)  # the clock says otherwise when it is resumed
    again = start.with_precision(replace(begun, resumed=True))
    assert again.config["trainer"]["precision"] == "bf16-mixed"
    assert capsys.readouterr().err == ""


def test_a_resumed_run_of_before_goes_on_in_float32_unless_asked(machine: Any) -> None:
    machine()
    assert start.with_precision(composed_run(resumed=True)).config["trainer"]["precision"] == "32-true"
    asked = composed_run("trainer.precision=auto", resumed=True)
    assert start.with_precision(asked).config["trainer"]["precision"] == "bf16-mixed"


@pytest.mark.parametrize(("resumed", "rounding"), [(False, False), (True, True)])
def test_a_machine_without_bf16_says_so(machine: Any, capsys: Any, resumed: bool, rounding: bool) -> None:
    machine(has=False, pays=False)
    start.with_precision(composed_run("trainer.precision=bf16-mixed", resumed=resumed))
    line = capsys.readouterr().err
    assert "trainer.precision=bf16-mixed" in line and "trainer.precision=32-true" in line
    assert ("rounds otherwise" in line) is rounding


@pytest.mark.parametrize(
    ("recorded", "has", "expected"),
    [
        ("bf16-mixed", True, ("bf16-mixed", False)),
        ("bf16-mixed", False, ("32-true", True)),
        ("32-true", True, ("32-true", False)),
        ("auto", True, ("32-true", False)),  # of an earlier version
    ],
)
def test_an_evaluation_follows_the_run(machine: Any, recorded: str, has: bool, expected: tuple[str, bool]) -> None:
    machine(has=has)
    assert precision.of_evaluation({"trainer": {"precision": recorded}}, CPU) == expected
    assert precision.of_evaluation({"trainer": "damaged"}, CPU) == ("32-true", False)


def test_a_real_run_records_one_precision_everywhere(trained_run: Path) -> None:
    expected = precision.resolve("auto", "cpu")
    places = [trained_run / "config.yaml", trained_run / ".hydra" / "config.yaml"]
    assert [yaml.safe_load(path.read_text())["trainer"]["precision"] for path in places] == [expected] * 2
    for name in ("best.ckpt", "last.ckpt"):
        kept = load_checkpoint(trained_run / "checkpoints" / name)["recur"]["config"]
        assert kept["trainer"]["precision"] == expected
    assert json.loads((trained_run / "metrics.json").read_text())["precision"] == expected


@pytest.mark.slow
def test_evaluating_where_bf16_is_lacking_says_so(trained_run: Path, monkeypatch: Any, capsys: Any) -> None:
    if precision.resolve("auto", "cpu") != "bf16-mixed":
        pytest.skip("the run did not compute in bfloat16")
    evaluate.main([str(trained_run), "--split", "val"])
    here = capsys.readouterr()
    monkeypatch.setattr(products, "has_bf16", lambda: False)
    evaluate.main([str(trained_run), "--split", "val"])
    there = capsys.readouterr()
    assert json.loads(here.out)["precision"] == "bf16-mixed" and here.err == ""
    assert json.loads(there.out)["precision"] == "32-true" and "bf16-mixed, which cpu lacks" in there.err
    exact, low = (json.loads(one.out)["val"] for one in (there, here))
    assert low["accuracy"] == pytest.approx(exact["accuracy"], abs=0.02) and low["loss"] != exact["loss"]
