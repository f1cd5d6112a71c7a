"""A disk that is full, or a limit on the size of files: one line that names the file, whatever was being written."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from support.real_sweeps import TINY, environment

pytestmark = pytest.mark.slow  # each is a fresh process, whose files may not grow

SMALL = (*TINY, "trainer.max_epochs=1")


def limited(size: int, module: str, *words: str, cwd: Path, **streams: object) -> "subprocess.CompletedProcess[str]":
    """A command where no file may grow beyond `size` bytes: writing fails as on a full disk, for root too."""
    return subprocess.run(
        [sys.executable, "-m", f"recur.{module}", *words],
        cwd=cwd,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(RECUR_CACHE=str(cwd / "cache"), PYTHONPATH=os.pathsep.join(filter(None, sys.path))),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
        timeout=300,
        check=False,
        **{"stdout": subprocess.PIPE, **streams},  # type: ignore[call-overload]
    )


def check(done: "subprocess.CompletedProcess[str]", *names: str) -> None:
    """One line, code 2, and the name of what could not be written."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("recur: "), done.stderr
    assert any(name in done.stderr for name in names), done.stderr


@pytest.mark.parametrize("size", [40, 700, 3000, 12_000, 40_000])
def test_training(tmp_path: Path, size: int) -> None:
    """The smaller the limit, the earlier the file that hits it: the cache, config, log, curves, checkpoint."""
    done = limited(size, "train", *SMALL, "hydra.run.dir=run", cwd=tmp_path)
    check(done, str(tmp_path / "run"), str(tmp_path / "cache"), "data.cache_dir")


@pytest.mark.parametrize("size", [200, 3000, 20_000])
def test_a_sweep(tmp_path: Path, size: int) -> None:
    done = limited(size, "train", "-m", "seed=0,1", *SMALL, "hydra.sweep.dir=s", cwd=tmp_path)
    if size < 20_000:
        check(done, str(tmp_path / "s"), "s/", "s cannot be written")
    else:  # the sweep can write its own lines; its jobs fail, and say so
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("module", "words", "name"),
    [
        ("predict", ("{run}", "a film", "--out", "answers.csv"), "answers.csv"),
        ("predict", ("{run}", "a film", "--out", "answers.jsonl"), "answers.jsonl"),
        ("predict", ("{run}", "a film", "--html", "page.html"), "page.html"),
        ("predict", ("{run}", "a film", "--gates", "gates.png"), "gates.png"),
        ("results", ("{run}", "--out", "site"), "site"),
        ("export", ("{run}", "--format", "safetensors", "--out", "out"), "out"),
        ("new", ("mine",), "mine"),
    ],
)
def test_what_commands_write(trained_run: Path, tmp_path: Path, module: str, words: tuple[str, ...], name: str) -> None:
    done = limited(10, module, *(word.format(run=trained_run) for word in words), cwd=tmp_path)
    check(done, name)
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".part"]


@pytest.mark.parametrize(
    "words", [("predict", "{run}", "a film"), ("predict", "{run}", "a film", "--json"), ("results", "{run}")]
)
def test_what_commands_print(trained_run: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        module, *rest = words
        more = ("--out", "site") if module == "results" else ()
        filled = (word.format(run=trained_run) for word in (*rest, *more))
        done = limited(1 << 30, module, *filled, cwd=tmp_path, stdout=full)
    check(done, "standard output")
