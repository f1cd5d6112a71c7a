"""Composing and training from Python."""

import signal
from pathlib import Path

import pytest

import recur
from conftest import EASY
from recur.errors import UserError


def test_overrides_may_be_words_or_a_mapping() -> None:
    settings = {"optimizer.lr": 0.5, "trainer": "cpu", "data.tokenizer.kind": "whitespace", "hydra.run.dir": "here"}
    typed = recur.compose([f"{key}={value}" for key, value in settings.items()])
    mapped = recur.compose(settings)
    assert typed == mapped and typed["optimizer"]["lr"] == 0.5
    strange = {"data.cache_dir": "a folder, with {marks}: it's", "data.max_length": None, "test": False}
    config = recur.compose({**strange, "optimizer.betas": [0.5, 0.75], "name": ""})
    assert (config["data"]["cache_dir"], config["data"]["max_length"], config["test"]) == (*strange.values(),)
    assert config["optimizer"]["betas"] == [0.5, 0.75] and config["name"] == ""
    for text in ("2024", "true", "null", "1e-3", "jörg's", "a\\b", "a [1] {b}"):  # a text stays one
        assert recur.compose({"name": text})["name"] == text
    assert recur.compose({"data": "files", "data.train": ["/home/jörg/a.csv"]})["data"]["train"] == ["/home/jörg/a.csv"]
    assert recur.compose({"data.cache_dir": Path("2024")})["data"]["cache_dir"].endswith("2024")
    assert recur.compose({"seed": 3, "optimizer.lr": 1e-7})["optimizer"]["lr"] == 1e-7
    with pytest.raises(UserError, match="optimizer"):
        recur.compose(["optimizer.lrr=1"])
    with pytest.raises(TypeError, match="several words"):
        recur.compose("optimizer.lr=1")


def test_a_run_trained_here_is_opened_and_the_signals_are_given_back(tmp_path) -> None:
    before = signal.getsignal(signal.SIGINT)
    run = recur.fit([*EASY, f"hydra.run.dir={tmp_path / 'run'}", "trainer.max_epochs=1"])
    assert signal.getsignal(signal.SIGINT) is before
    assert run.folder == tmp_path / "run" and len(run.history) == 1
    assert run.metrics["test"]["accuracy"] == pytest.approx(run.evaluate(split="test")["test"]["accuracy"], abs=1e-6)
    more = recur.fit([f"resume={run.folder}", "trainer.max_epochs=2"])
    assert more.folder == run.folder and len(more.history) == 2 and more.metrics["epochs"] == 2
    with pytest.raises(UserError, match="must describe one run"):
        recur.fit(["-m", "seed=0,1"])
