"""Valid artefacts, made once by real commands and then copied: two runs, a text run and a sweep."""

import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from recur.runs.marks import Mark, write_mark
from security.arena import Arena
from support.commands import run_command

TINY = (
    "data.synthetic.train_size=60",
    "data.synthetic.val_size=20",
    "data.synthetic.test_size=20",
    "data.batch_size=20",
    "model.net.embedding_dim=4",
    "model.net.hidden_size=4",
    "trainer.max_epochs=1",
    "trainer=cpu",
    "trainer.log_every_n_steps=1",
)
TINY_TEXT = (
    "data=synthetic_text",
    "model=language_model",
    "trainer=cpu",
    "data.synthetic.train_size=400",
    "data.synthetic.val_size=100",
    "data.synthetic.test_size=100",
    "data.batch_size=4",
    "model.net.embedding_dim=4",
    "model.net.hidden_size=4",
    "trainer.max_epochs=1",
)
RUN = (
    ("train", "resume=r", "trainer.max_epochs=2"),
    ("evaluate", "r"),
    ("predict", "r", "a fine film"),
    ("results", "r"),
)
TEXT_RUN = (
    ("train", "resume=r", "trainer.max_epochs=2"),
    ("evaluate", "r"),
    ("generate", "r", "--tokens", "5"),
    ("predict", "r", "the cat"),
)
NEW = (*TINY, "hydra.run.dir=new")
EXPORT = (
    ("evaluate", "h"),
    ("predict", "h", "a fine film"),
    ("train", "init_from=h", *NEW),
    ("export", "h", "--format", "safetensors", "--out", "out"),
)
FILE = (("evaluate", "a.ckpt"), ("predict", "a.ckpt", "a fine film"))
SWEEP = (("train", "-m", "resume=s"), ("results", "s"))


class Bases:
    """Makes each artefact when it is first asked for.

    Args:
        folder: to keep them in.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, seed: int = 0) -> Path:
        """A sentiment run of one epoch."""
        return self._made(f"run{seed}", *TINY, f"seed={seed}")

    def text_run(self) -> Path:
        """A language run of one epoch."""
        return self._made("text", *TINY_TEXT)

    def export(self) -> Path:
        """The sentiment run as a folder of safetensors."""
        path = self.folder / "hub"
        if not path.is_dir():
            done = run_command("export", self.run(), "--format", "safetensors", "--out", path)
            assert done.returncode == 0, done.stderr
        return path

    def _made(self, name: str, *words: str) -> Path:
        path = self.folder / name
        if not path.is_dir():
            done = run_command("train", *words, f"hydra.run.dir={path}", cwd=self.folder)
            assert done.returncode == 0, done.stderr
        return path


def bases(arena: Arena) -> Bases:
    """Those of an arena."""
    assert isinstance(arena.bases, Bases)
    return arena.bases


# ------------------------------------------------------------------------------------------------------------ mutations


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        import os

        return os.system, (self.command,)


def pickled(arena: Arena) -> bytes:
    """A pickle that leaves the canary."""
    return pickle.dumps(Payload(arena.shell))


def put(node: Any, place: str, value: Any) -> None:
    """Set `a.b.0.c` in plain containers; what is missing on the way is made."""
    *above, last = place.split(".")
    for part in above:
        if isinstance(node, list):
            node = node[int(part)]
        else:
            if not isinstance(node.get(part), (dict, list)):
                node[part] = {}
            node = node[part]
    if isinstance(node, list):
        node[int(last)] = value
    elif last == "*":
        node.clear()
        node.update(value)
    else:
        node[last] = value


def change_yaml(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite a YAML file."""
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def change_checkpoint(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite a checkpoint, as anybody can, with `torch.save` alone."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def change_configs(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the config of a run wherever it keeps it: two files and its checkpoints."""
    for name in (".hydra/config.yaml", "config.yaml"):
        change_yaml(run / name, change)
    for path in sorted((run / "checkpoints").glob("*.ckpt")):
        change_checkpoint(path, lambda content: change(content["recur"]["config"]))


def a_run(arena: Arena, name: str = "r") -> Path:
    """A copy of the valid sentiment run."""
    return arena.copy(bases(arena).run(), name)


def an_export(arena: Arena, name: str = "h") -> Path:
    """A copy of the valid folder of safetensors."""
    return arena.copy(bases(arena).export(), name)


def a_text_run(arena: Arena, name: str = "r") -> Path:
    """A copy of the valid language run."""
    return arena.copy(bases(arena).text_run(), name)


def a_checkpoint(arena: Arena, change: Callable[[dict[str, Any]], object], name: str = "a.ckpt") -> Path:
    """The valid run's best checkpoint, changed."""
    path = arena.path(name)
    path.write_bytes((bases(arena).run() / "checkpoints" / "best.ckpt").read_bytes())
    change_checkpoint(path, change)
    return path


def a_sweep(
    arena: Arena,
    words: Sequence[Any] = (),
    *,
    complete: int = 1,
    start: Mapping[str, Any] | None = None,
    header: Mapping[str, Any] | None = None,
    name: str = "s",
) -> Path:
    """A sweep over two seeds as the command leaves it, which is stopped after `complete` of its jobs.

    Args:
        arena: where.
        words: added to its recorded command line, and consistently to all else that is recorded.
        complete: jobs that are whole; the next resumption runs the others.
        start: fields changed in every recorded start.
        header: fields changed in the first line.
        name: of its folder.
    """
    folder = arena.work / name
    folder.mkdir(parents=True)
    settings = [
        word for word in (*TINY, *words) if isinstance(word, str) and not word.startswith(("hydra", "+hydra", "-"))
    ]
    fixed = {word.partition("=")[0]: word for word in settings}
    events: list[dict[str, Any]] = [
        {
            "event": "sweep",
            "format": 1,
            "id": "5" * 32,
            "search": "grid",
            "space": {"fixed": fixed, "varied": {"seed": ["0", "1"]}},
            "jobs": 2,
            "monitor": "val/accuracy",
            "mode": "max",
            "objectives": {"val/accuracy": "max"},
            "command": "python -m recur.train -m seed=0,1",
            "argv": ["-m", "seed=0,1", f"hydra.sweep.dir={name}", *TINY, *words],
            "time": 1.0,
            **(header or {}),
        }
    ]
    for seed in range(complete):
        overrides = [*settings, f"seed={seed}"]
        begun = {"job": seed, "overrides": overrides, "folder": str(seed), "place": "cpu 0"}
        events.append({"event": "start", **begun, **(start or {}), "time": 2.0})
        events.append(
            {"event": "end", "job": seed, "state": "done", "value": 0.5, "seconds": 1.0, "reason": "", "time": 3.0}
        )
        arena.copy(bases(arena).run(seed), f"{name}/{seed}")
        write_mark(folder / str(seed), Mark("5" * 32, seed, tuple(overrides)))
    (folder / "sweep.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder
