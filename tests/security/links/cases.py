"""Links, pipes and devices in place of the files and folders of a run, a sweep or its results."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from security.arena import Arena, Case
from security.bases import RUN, a_run, a_sweep

RUN_FILES = (
    "train.log",
    ".lock",
    "history.jsonl",
    "hparams.yaml",
    "config.yaml",
    "metrics.json",
    "tokenizer.json",
    "projector_config.pbtxt",
    ".hydra/config.yaml",
    ".hydra.config.yaml",
    "plots/val_confusion.png",
    "plots/.val_confusion.png",
    "projector/tensors.tsv",
    "projector/metadata.tsv",
    "checkpoints/last.ckpt",
    "checkpoints/.last.ckpt.part",
    "checkpoints/last.previous.ckpt",
    "checkpoints/.last.previous.ckpt.part",
    "checkpoints/best.ckpt",
    "checkpoints/.best.ckpt.part",
)
RUN_FOLDERS = ("plots", "projector", "checkpoints", ".hydra")
SWEEP_FILES = (
    "sweep.jsonl",
    "multirun.yaml",
    ".locks/sweep",
    ".locks/0",
    ".locks/1",
    "1/output.log",
    "1/train.log",
    "1/.lock",
    "0/output.log",
    "results/leaderboard.md",
    "results/runs.csv",
    "results/index.html",
    "results/curves.png",
)
SWEEP_FOLDERS = (".locks", "results", "0", "1")


def replace(path: Path, make: Callable[[Path], object]) -> None:
    """Something else where a file or folder was."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)


def _to(arena: Arena, name: str) -> Callable[[Path], None]:
    return lambda path: os.symlink(arena.victim / name, path)


def _moved(arena: Arena, path: Path, name: str) -> None:
    """The real file lies in somebody's folder, and a link in its place: it reads as before."""
    target = arena.victim / name
    if path.exists():
        shutil.move(path, target)
    elif name.endswith("folder"):
        target.mkdir()
    else:
        target.write_text("")
    replace(path, lambda path: os.symlink(target, path))


def _twin(arena: Arena, path: Path) -> None:
    """The real file, which somebody has under another name too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.link(path, arena.victim / "twin")


KINDS: dict[str, Callable[[Arena, Path], object]] = {
    "to a letter": lambda arena, path: replace(path, _to(arena, "letter.txt")),
    "to nothing yet": lambda arena, path: replace(path, _to(arena, "new")),
    "moved out": lambda arena, path: _moved(arena, path, "moved"),
}
HARD_KINDS: dict[str, Callable[[Arena, Path], object]] = {
    "is a letter's other name": lambda arena, path: replace(path, lambda p: os.link(arena.victim / "letter.txt", p)),
    "has another name": lambda arena, path: _twin(arena, path),
}
FOLDER_KINDS: dict[str, Callable[[Arena, Path], object]] = {
    "to somebody's": lambda arena, path: replace(path, lambda path: os.symlink(arena.victim, path)),
    "moved out": lambda arena, path: _moved(arena, path, "moved folder"),
    "to nothing yet": lambda arena, path: replace(path, _to(arena, "new")),
}


def _in_run(name: str, kind: Callable[[Arena, Path], object]) -> Callable[[Arena], None]:
    def plant(arena: Arena) -> None:
        run = a_run(arena)
        kind(arena, next(run.glob("events.out.*")) if name == "events" else run / name)

    return plant


def _in_sweep(name: str, kind: Callable[[Arena, Path], object]) -> Callable[[Arena], None]:
    def plant(arena: Arena) -> None:
        sweep = a_sweep(arena, complete=1 if name.startswith(("1", ".locks")) else 2)
        kind(arena, sweep / name)

    return plant


def _pipe(arena: Arena, path: Path) -> None:
    replace(path, os.mkfifo)


def _class_names(arena: Arena) -> None:
    """The attack of the issue: what a log says of its classes is run by the next shell."""
    run = a_run(arena)
    replace(run / "train.log", lambda path: os.symlink(arena.home / ".bashrc", path))


_RESUME = RUN[:1]
_SWEEP = (("train", "-m", "resume=s"), ("results", "s"))
CASES = [Case("the log is the shell's start file", _class_names, RUN, quick=True)]
CASES += [
    Case(f"{name} {kind}", _in_run(name, make), RUN[:2])
    for name in (*RUN_FILES, "events")
    for kind, make in KINDS.items()
]
CASES += [
    Case(f"{name} {kind}", _in_run(name, make), RUN[:2])
    for name in (*RUN_FILES, "events")
    for kind, make in HARD_KINDS.items()
    if name.endswith(("log", "lock", "jsonl", "events", "hparams.yaml", "png", "tsv"))
]
CASES += [
    Case(f"sweep's {name} {kind}", _in_sweep(name, make), _SWEEP, own=("s",))
    for name in ("sweep.jsonl", ".locks/sweep", "1/output.log", "1/train.log", "results/curves.png", "results/runs.csv")
    for kind, make in HARD_KINDS.items()
]
CASES += [
    Case(
        "a checkpoint that has another name, never written in place",
        _in_run("checkpoints/best.ckpt", HARD_KINDS["has another name"]),
        RUN[:2],
        codes=(0,),
    )
]
CASES += [
    Case(f"folder {name} {kind}", _in_run(name, make), RUN[:2])
    for name in RUN_FOLDERS
    for kind, make in FOLDER_KINDS.items()
]
CASES += [
    Case(f"sweep's {name} {kind}", _in_sweep(name, make), _SWEEP, own=("s",))
    for name in SWEEP_FILES
    for kind, make in KINDS.items()
    if kind != "moved out" or name in ("sweep.jsonl", "0/output.log")
]
CASES += [
    Case(f"sweep's folder {name} {kind}", _in_sweep(name, make), _SWEEP, own=("s",))
    for name in SWEEP_FOLDERS
    for kind, make in FOLDER_KINDS.items()
]
CASES += [
    Case(f"{name} is a pipe", _in_run(name, _pipe), (*_RESUME, ("results", "r"), ("predict", "r", "a film")))
    for name in (
        "train.log",
        ".lock",
        "history.jsonl",
        "metrics.json",
        "config.yaml",
        ".hydra/overrides.yaml",
        ".recur-job.json",
        "checkpoints/last.ckpt",
        "events",
    )
]


def _two_steps(arena: Arena) -> None:
    """A link inside the folder to a link out of it."""
    run = a_run(arena)
    os.symlink(arena.victim, run / "inner")
    replace(run / "plots", lambda path: os.symlink("inner/deep", path))


def _up_and_down(arena: Arena) -> None:
    run = a_run(arena)
    replace(run / "train.log", lambda path: os.symlink("../../victim/letter.txt", path))


def _whole_folder(arena: Arena) -> None:
    """The run is named by a link, as a user may: it is his."""
    run = a_run(arena, "real")
    os.symlink(run, arena.work / "r")


def _another_log(arena: Arena) -> None:
    """A log of another name that TensorBoard's writer would go on with."""
    run = a_run(arena)
    os.symlink(arena.victim / "letter.txt", run / "events.out.tfevents.9999999999.evil.1.0")


CASES += [
    Case("two steps out", _two_steps, RUN[:2]),
    Case("up and down", _up_and_down, RUN[:2]),
    Case("another log of curves", _another_log, RUN[:2]),
    Case("a user's own link to a run", _whole_folder, RUN[:3], own=("r", "real"), codes=(0,)),
]
