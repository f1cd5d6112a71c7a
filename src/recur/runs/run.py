"""A run is a folder: what is written into it, and how it is opened again with nothing but its path.

    config.yaml        the resolved config            tokenizer.json   the whole tokenizer
    checkpoints/       best.ckpt and last.ckpt        metrics.json     the result
    events.out...      for TensorBoard                train.log        what the terminal showed

A checkpoint stands alone: its key `recur` holds the resolved config, the tokenizer and what the model has to know of
the data; everything in it is a tensor or a plain value, so it loads with `weights_only=True`.
"""

import atexit
import math
import os
import pickle
import platform
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from filelock import lock_descriptor

from recur.cli import rank
from recur.errors import UserError
from recur.runs import checkpoint as checkpoints
from recur.runs import files, hub, limits
from recur.runs.build import build
from recur.runs.metrics import read_record
from recur.runs.trust import check_targets

FORMAT = 2
_WARNINGS = threading.RLock()  # `catch_warnings` is of the process: two at once could leave it without warnings
_claimed: dict[Path, Any] = {}  # folders held by this process, with the open files that hold them


def checkpoint_of(path: str | Path) -> Path:
    """The checkpoint of a run: itself, or the best (else the last) one of a run folder.

    Raises:
        UserError: there is no such path, or the folder holds no checkpoint.
    """
    path = Path(os.path.expanduser(path))
    if path.is_file():
        return path
    if not path.exists():
        raise UserError("", rule=f"there is no run at {path}", remedy="give a run folder or a .ckpt file")
    if hub.is_hub_folder(path):
        return path / hub.WEIGHTS
    for name in ("best.ckpt", "last.ckpt"):
        if (path / "checkpoints" / name).is_file():
            return path / "checkpoints" / name
    raise UserError(str(path), rule="is not a run folder", remedy="it has no checkpoints/best.ckpt or last.ckpt")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running any code from it.

    Raises:
        UserError: not a checkpoint of ours, damaged, or of a newer format.
    """
    import torch

    try:
        if path.name == hub.WEIGHTS:
            return _of_known_format(path, hub.read(path.parent))
        checkpoints.check(path)  # torch.load would not notice a flipped bit
        limits.check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except checkpoints.DamagedError as error:
        raise UserError("", rule=f"{error}{checkpoints.instead_of(path)}") from None
    except pickle.UnpicklingError:  # whose message advises to load it all the same
        rule = "cannot be read as a checkpoint: it is unsafe or damaged, it holds more than tensors and plain values"
        raise UserError(str(path), rule=rule, remedy="loading such a file could run any code") from None
    except UserError:
        raise
    except Exception as error:  # with a damaged file the reader can raise anything
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(str(path), rule=checkpoints.UNREADABLE, remedy=first[:200]) from None
    return _of_known_format(path, content)


def _of_known_format(path: Path, content: Any) -> dict[str, Any]:
    """What was read, if it is a checkpoint of a format that this version knows.

    Raises:
        UserError: it is not.
    """
    if not isinstance(content, dict) or "recur" not in content or "state_dict" not in content:
        raise UserError("", rule=f"{path} is no checkpoint of recur: its key 'recur' is missing")
    written = content["recur"].get("format") if isinstance(content["recur"], dict) else None
    if not isinstance(written, int):
        raise UserError("", rule=f"{path} is damaged: its format is {written!r}, not a number")
    if written != FORMAT:
        remedy = "update recur" if written > FORMAT else "train it again"
        raise UserError(str(path), rule=f"has checkpoint format {written}, this version reads {FORMAT}", remedy=remedy)
    return content


@dataclass
class Run:
    """A trained model, opened for use.

    Attributes:
        checkpoint: the file it came from.
        folder: the run's folder, None where only a checkpoint was given.
        config: the resolved config, plain values.
        data: what the model has to know of the data: `vocab_size`, `class_names`, ...
        tokenizer: a `recur.data.text.Tokenizer`.
        task: the LightningModule with its weights, in evaluation mode.
        fingerprint: of the data it was trained on, see `recur.runs.fingerprint`; None where none was kept.
        opened_in: the working folder then, from which `checkpoint` and `folder` are found.
    """

    checkpoint: Path
    folder: Path | None
    config: dict[str, Any]
    data: dict[str, Any]
    tokenizer: Any
    task: Any
    fingerprint: dict[str, Any] | None = None
    opened_in: Path = field(default_factory=Path.cwd, compare=False)

    def place(self, path: Path) -> Path:
        """Where a path of the run is, whatever folder the process works in now."""
        return self.opened_in / path

    @property
    def family(self) -> str:
        """`sentiment` or `language`."""
        return str(self.task.family)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a run folder or a checkpoint.

        Raises:
            UserError: no run there, a damaged or newer checkpoint, or one that names foreign code.
        """
        import torch

        from recur.data.text import Tokenizer

        checkpoint = checkpoint_of(path)
        content = load_checkpoint(checkpoint)
        own = content["recur"]
        for key, kind in (("config", dict), ("data", dict), ("tokenizer", str)):
            if not isinstance(own.get(key), kind):
                raise UserError("", rule=f"{checkpoint} is damaged: its {key} is not what a run writes")
        config, data = own["config"], own["data"]
        for key in ("model", "data"):
            if not isinstance(config.get(key), dict):
                raise UserError("", rule=f"{checkpoint} is damaged: its config has no {key}")
        try:
            check_targets(config["model"], "model")
            tokenizer = Tokenizer.from_json(own["tokenizer"])
        except ValueError as error:
            raise UserError("", rule=f"{checkpoint}: {error}") from None
        weights = content["state_dict"]
        try:
            limits.check_tensors(weights)
            limits.check_counts(config["model"], len(weights))
            with torch.device("meta"):  # without memory, whatever sizes the description names
                described = _built(checkpoint, config["model"], data)
            limits.check_shapes(weights, described)
            task = _built(checkpoint, config["model"], data)
            task.load_state_dict(weights)
        except UserError:
            raise
        except (ValueError, RuntimeError, TypeError) as error:
            details = " ".join(str(error).split()[:40])
            raise UserError("", rule=f"{checkpoint}: its weights are not those of its model: {details}") from None
        if tokenizer.vocab_size != data.get("vocab_size"):
            sizes = f"{tokenizer.vocab_size} tokens, its model {data.get('vocab_size')}"
            raise UserError("", rule=f"{checkpoint}: its tokenizer has {sizes}")
        task.eval()
        folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else None
        kept = own.get("fingerprint")
        return cls(checkpoint, folder, config, data, tokenizer, task, kept if isinstance(kept, dict) else None)

    def record(self) -> dict[str, Any] | None:
        """`metrics.json`, where its figures are of these weights; else None.

        A run measures the checkpoint that its folder is opened with, not the others that lie there.
        """
        if self.checkpoint.name == hub.WEIGHTS:
            return read_record(self.place(self.checkpoint.parent))
        if self.folder is None:
            return None
        folder = self.place(self.folder)
        try:
            own = checkpoint_of(folder).samefile(self.place(self.checkpoint))
        except (OSError, UserError):  # no run's folder, or none any more
            return None
        return read_record(folder) if own else None

    def require(self, family: str, command: str) -> None:
        """Refuse a run of the other family.

        Raises:
            UserError: the run is not of this family.
        """
        if self.family != family:
            raise UserError("", rule=f"recur.{command} wants a {family} run, {self.checkpoint} is a {self.family} run")

    def require_finite(self) -> None:
        """Refuse weights of which some are NaN or infinite.

        Raises:
            UserError: names the first.
        """
        spoilt = next((name for name, tensor in self.task.state_dict().items() if not _is_finite(tensor)), None)
        if spoilt is not None:
            raise UserError(str(self.checkpoint), rule=f"is of no use: its weights {spoilt} are not all finite")

    def require_forward(self) -> None:
        """Refuse a language model that reads from the end of a text, where one is wanted that goes on with it.

        Raises:
            UserError: it was trained with `data.reverse=true`.
        """
        if self.config["data"].get("reverse"):
            rule = "reads texts from the end (data.reverse=true), and this wants a model that continues them"
            raise UserError(str(self.checkpoint), rule=rule, remedy="name a run without data.reverse")


def _is_finite(tensor: Any) -> bool:
    return (
        not tensor.is_floating_point() or math.isfinite(float(tensor.double().sum())) or bool(tensor.isfinite().all())
    )


def _built(checkpoint: Path, model: dict[str, Any], data: dict[str, Any]) -> Any:
    """The task that a checkpoint describes, without its weights.

    Raises:
        UserError: its classes refuse the description.
    """
    import torch

    try:
        net = {**model["net"]}
        if net.get("freeze_vectors"):  # the vectors are in the weights
            net["freeze_vectors"] = False
        # Initial weights are drawn, and then replaced: to open a run must not move the caller's random numbers.
        with _WARNINGS, warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # what was odd about the settings was said when it was trained
            return build({**model, "net": net, "_partial_": True}, "model")(**data)
    except Exception as error:  # with a description of unknown origin a constructor can raise anything
        raise UserError(str(checkpoint), rule=f"describes no model: {error}") from error


def device(name: str) -> Any:
    """The `torch.device` of this name, once it has been tried.

    Raises:
        UserError: it cannot be used.
    """
    import torch

    try:
        place = torch.device(name)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:  # an assertion where torch was built without CUDA
        first = next(iter(str(error).splitlines()), "it is not there")
        raise UserError("", rule=f"--device {name} cannot be used: {first}") from None
    return place


def claim(folder: Path) -> None:
    """Hold a run's folder until this process ends, however it ends. A second call for it does nothing.

    Ranks other than 0 write nothing and hold nothing. Of the folder's files none is changed.

    Raises:
        UserError: another process holds it.
    """
    folder = folder.resolve()
    if rank() or folder in _claimed:
        return
    files.check_links(folder)  # before anything in it is opened
    handle = files.open_inside(folder, ".lock", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    file = open(handle, "a+", encoding="utf-8")  # noqa: SIM115 (held until the process ends)
    try:
        held = lock_descriptor(handle, blocking=False)
    except OSError:  # a file system without locks
        file.close()
        return
    if not held:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        remedy = "wait until that run has ended, or name another folder with hydra.run.dir=..."
        raise UserError(str(folder), rule=f"is in use by {holder}", remedy=remedy)
    _claimed[folder] = file


def name_holder(folder: Path) -> None:
    """Write into a folder's lock, if this process holds it, who it is that holds it."""
    file = _claimed.get(folder.resolve())
    if file is not None:
        with files.naming(folder / ".lock"):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()


def release(folder: Path) -> None:
    """Let go of a run's folder that this process holds."""
    file = _claimed.pop(folder.resolve(), None)
    if file is not None:
        file.close()


@atexit.register
def _release_all() -> None:
    for folder in list(_claimed):  # else Python warns of files that nobody closed
        release(folder)
