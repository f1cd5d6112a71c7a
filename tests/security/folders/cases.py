"""Folders that no run of this sweep wrote, where a sweep would put its jobs."""

import os
from collections.abc import Callable
from pathlib import Path

from security.arena import Arena, Case
from security.bases import TINY, a_run, a_sweep

_RESUME = (("train", "-m", "resume=s"),)
_ITS_OWN = ("s/0", "s/.locks", "s/sweep.jsonl", "s/results", "s/multirun.yaml")


def _subdir(text: str) -> Callable[[Arena], None]:
    return lambda arena: (a_sweep(arena, [f"hydra.sweep.subdir={text.format(victim=arena.victim)}"]), None)[1]


def _instead(make: Callable[[Arena, Path], object]) -> Callable[[Arena], None]:
    """A sweep in which something else stands where the next job's folder would be."""

    def plant(arena: Arena) -> None:
        make(arena, a_sweep(arena, complete=1) / "1")

    return plant


def _project(arena: Arena, folder: Path) -> None:
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "main.c").write_text("int main(void) { return 0; }\n")


def _file(arena: Arena, folder: Path) -> None:
    folder.write_text("a file\n")


def _other_run(arena: Arena, folder: Path) -> None:
    a_run(arena, "s/1")


def _link(name: str) -> Callable[[Arena, Path], object]:
    return lambda arena, path: os.symlink(arena.victim / name, path)


def _unmarked(arena: Arena) -> None:
    for number in "01":
        _project(arena, arena.work / "project" / number)


def _half(arena: Arena) -> None:
    """One of the jobs' folders is taken; the others are not."""
    _project(arena, arena.work / "project" / "1")


_TYPED = (("train", "-m", "seed=0,1", "hydra.sweep.dir=project", *TINY),)

CASES = [
    Case("a subdir above", _subdir("../victim"), _RESUME, own=("s",)),
    Case("a subdir of somebody", _subdir("{victim}"), _RESUME, own=("s",), quick=True),
    Case("a subdir with the job's number", _subdir("{victim}/${{hydra.job.num}}"), _RESUME, own=("s",)),
    Case("a subdir that is the folder above", _subdir(".."), _RESUME, own=("s",)),
    Case("a subdir that is the home", _subdir("~"), _RESUME, own=("s",)),
    Case("a subdir through a link", _instead(lambda arena, path: os.symlink(arena.victim, path)), _RESUME, own=("s",)),
    Case(
        "a link to a file",
        _instead(lambda arena, path: os.symlink(arena.victim / "letter.txt", path)),
        _RESUME,
        own=("s",),
    ),
    Case("a dangling link", _instead(lambda arena, path: os.symlink(arena.victim / "new", path)), _RESUME, own=("s",)),
    # Whatever stands in a sweep's folder without its mark stays as it is: `own` leaves it out.
    Case(
        "a project where a job would be",
        _instead(_project),
        _RESUME,
        own=_ITS_OWN,
    ),
    Case("a file where a job would be", _instead(_file), _RESUME, own=_ITS_OWN),
    Case(
        "another run where a job would be",
        _instead(_other_run),
        _RESUME,
        own=_ITS_OWN,
    ),
    Case("a project that a typed sweep would take", _unmarked, _TYPED, own=(), codes=(2,)),
    Case("a project in the way of one job", _half, _TYPED, own=(), codes=(2,)),
]
