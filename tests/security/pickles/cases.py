"""Pickles, wherever a file is read: checkpoints, data, vectors, journals."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from security.arena import Arena, Case
from security.bases import FILE, TINY, Payload, a_checkpoint, a_run, a_sweep, pickled

CSV = "text,label\n" + "a fine film,1\na dull film,0\n" * 20


def _file(write: Callable[[Arena, Path], object]) -> Callable[[Arena], None]:
    return lambda arena: (write(arena, arena.path("a.ckpt")), None)[1]


def _in_checkpoint(change: Callable[[Arena, dict[str, Any]], object]) -> Callable[[Arena], object]:
    return lambda arena: a_checkpoint(arena, lambda content: change(arena, content))


def _member(name: str) -> Callable[[Arena], None]:
    """A valid archive in which a member's bytes are a pickle that runs."""

    def plant(arena: Arena) -> None:
        whole = a_checkpoint(arena, lambda content: None).read_bytes()
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(whole)) as source, zipfile.ZipFile(out, "w") as target:
            for info in source.infolist():
                data = pickled(arena) if info.filename.endswith(name) else source.read(info)
                target.writestr(info.filename, data)
        arena.path("a.ckpt").write_bytes(out.getvalue())

    return plant


def _evil(arena: Arena) -> Payload:
    return Payload(arena.shell)


CHECKPOINTS: dict[str, Callable[[Arena], object]] = {
    "alone": _file(lambda arena, path: path.write_bytes(pickled(arena))),
    "in an archive": _file(lambda arena, path: torch.save(_evil(arena), path)),
    "in an archive of the old kind": _file(
        lambda arena, path: torch.save(_evil(arena), path, _use_new_zipfile_serialization=False)
    ),
    "among the weights": _in_checkpoint(lambda arena, c: c["state_dict"].update(x=_evil(arena))),
    "as the weights": _in_checkpoint(lambda arena, c: c.update(state_dict=_evil(arena))),
    "as the tokenizer": _in_checkpoint(lambda arena, c: c["recur"].update(tokenizer=_evil(arena))),
    "as the config": _in_checkpoint(lambda arena, c: c["recur"].update(config=_evil(arena))),
    "in the state of a callback": _in_checkpoint(lambda arena, c: c["callbacks"].update(x=_evil(arena))),
    "as the format": _in_checkpoint(lambda arena, c: c["recur"].update(format=_evil(arena))),
    "as data.pkl": _member("data.pkl"),
    "as a tensor's bytes": _member("data/0"),
    "as the version": _member("version"),
}


def _as_last(plant: Callable[[Arena], object]) -> Callable[[Arena], None]:
    def both(arena: Arena) -> None:
        plant(arena)
        run = a_run(arena)
        for name in ("last.ckpt", "last.previous.ckpt", "best.ckpt"):
            (run / "checkpoints" / name).write_bytes(arena.path("a.ckpt").read_bytes())

    return both


CASES = [
    Case(f"checkpoint {name}", plant, FILE, own=("a.ckpt",), quick=name == "in an archive")
    for name, plant in CHECKPOINTS.items()
] + [
    Case(f"last checkpoint {name}", _as_last(plant), (("train", "resume=r"), ("evaluate", "r")), own=("r", "a.ckpt"))
    for name, plant in CHECKPOINTS.items()
]


# ------------------------------------------------------------------------------------------------- data and vectors


def _data(name: str) -> Callable[[Arena], None]:
    return lambda arena: (arena.path(name).write_bytes(pickled(arena)), a_run(arena), None)[2]


def _vectors(name: str, write: Callable[[Arena, Path], object]) -> Callable[[Arena], None]:
    def plant(arena: Arena) -> None:
        write(arena, arena.path(name))
        arena.path("a.csv").write_text(CSV)

    return plant


def _array(arena: Arena, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([_evil(arena)], dtype=object), allow_pickle=True)


_NEW = (*TINY[4:], "hydra.run.dir=new")
CASES += [
    Case(
        f"data as a.{suffix}",
        _data(f"a.{suffix}"),
        (
            ("train", "data=files", f"data.train=a.{suffix}", *_NEW),
            ("train", "data=text_files", "model=language_model", f"data.train=a.{suffix}", *_NEW),
            ("evaluate", "r", "--data", f"a.{suffix}"),
            ("predict", "r", "--file", f"a.{suffix}"),
        ),
        own=("r", "new"),
    )
    for suffix in ("csv", "tsv", "jsonl", "json", "parquet", "pkl", "txt", "npy", "arrow")
]
for _name in ("v.pt", "v.npy", "v.pkl", "v.model", "v.bin", "v.vec", "v.txt"):
    _write = _array if _name in ("v.npy", "v.vec") else lambda arena, path: path.write_bytes(pickled(arena))
    CASES.append(
        Case(
            f"vectors as {_name}",
            _vectors(_name, _write),
            (("train", "data=files", "data.train=a.csv", f"data.vectors={_name}", *_NEW),),
            own=("new",),
        )
    )

# ---------------------------------------------------------------------------------------------- a sweep's own files


def _in_sweep(name: str) -> Callable[[Arena], None]:
    return lambda arena: ((a_sweep(arena, complete=2) / name).write_bytes(pickled(arena)), None)[1]


CASES += [
    Case(f"a sweep's {name}", _in_sweep(name), (("train", "-m", "resume=s"), ("results", "s")), own=("s",))
    for name in ("sweep.jsonl", "optuna.journal", "0/metrics.json", "0/history.jsonl", "0/config.yaml", "multirun.yaml")
]
