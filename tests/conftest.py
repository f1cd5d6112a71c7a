"""Fixtures for the tests of every package."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from support.commands import run_command

try:
    from hypothesis import settings
except ImportError:  # `make gpu` runs on machines that have pytest alone
    pass
else:  # The same examples each time: what lands must not hang on luck. `make test-all` explores.
    settings.register_profile("fixed", derandomize=True)
    settings.load_profile("fixed")

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several tests run at once, one a core

ROOT = Path(__file__).resolve().parents[1]

# An easy corpus (one plain clause a review) and a small model: a minute of nothing becomes a second of learning.
EASY = [
    *(f"data.synthetic.{key}=0" for key in ("contrast", "negation", "gap", "distractors", "noise")),
    "data.synthetic.train_size=800",
    "data.synthetic.val_size=200",
    "data.synthetic.test_size=150",
    "data.batch_size=20",
    "model.net.embedding_dim=16",
    "model.net.hidden_size=16",
    "optimizer.lr=0.01",
    "trainer.max_epochs=3",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=2",
    "baseline=false",
]


def pytest_configure(config: pytest.Config) -> None:
    """Let the fast tests write into memory where there is plenty of it: they wait for a disk a sixth of their time."""
    memory = Path("/dev/shm")
    if config.option.markexpr == "not slow" and memory.is_dir() and shutil.disk_usage(memory).free > 4 << 30:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(memory))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real data sets beside the checkout; tests that need it skip where it is absent."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no real data at {path}")
    return path


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests' tokens out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECUR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def train(folder: Path, *overrides: str) -> "CompletedProcess[str]":
    """Train by the real command into `folder`; fails with its output where it fails."""
    done = run_command("train", f"hydra.run.dir={folder}", *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a sentiment run on the embedded data that has learnt something (nearly everything: it is easy)."""
    folder = tmp_path_factory.mktemp("runs") / "easy"
    train(folder, *EASY)
    return folder


@pytest.fixture(scope="session")
def language_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a language run on one sentence, a character a token."""
    folder = tmp_path_factory.mktemp("runs") / "sentence"
    small = ("model.net.hidden_size=16", "model.net.embedding_dim=16", "trainer.max_epochs=1", "logger=none")
    train(folder, "experiment=char_sentence", *small, "trainer.check_val_every_n_epoch=1")
    return folder
