"""Runs that are killed again and again, and what is left of them.

The real command runs in a process of its own, which SIGKILLs itself at a chosen moment: in the k-th training
batch, between two micro-batches of one step, before the k-th optimizer step, in a validation, after so many writes of a
checkpoint, before a rename, or simply after some time. Nothing can be tidied up then, exactly as if somebody had pulled
the plug; with two ranks the other one dies too. The run is started again, from its last checkpoint where it has one,
until it ends, and then compared with one that was never killed.
"""

import contextlib
import json
import os
import random
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recur.runs import journal
from recur.runs.run import FORMAT, load_checkpoint
from support import commands

PHASES = ("training", "accumulating", "stepping", "validation", "writing", "renaming", "between", "scoring")
_CLOCKS = (
    *("seconds", "wall_seconds", "train_seconds", "tokens_per_second", "flop_per_second", "matrix_rate"),
    *("peak_memory_mib", "command", "commit"),
)


@dataclass(frozen=True)
class Moment:
    """When to die.

    Attributes:
        phase: one of `PHASES`, or `any`; others only spoil a number or count.
        count: at its so-manieth occurrence in the life of the process; for `any`, milliseconds after training began.
        rank: whose hand it is.
        signal: what it does. Any other than SIGKILL the run may answer.
    """

    phase: str
    count: int
    rank: int = 0
    signal: int = signal.SIGKILL


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        hit: where the signal came (`phase`, `step`), None where the run was quicker.
        codes: exit code of each rank.
        out: what rank 0 printed.
        said: what all ranks printed to standard error.
    """

    hit: dict[str, Any] | None
    codes: list[int]
    out: str
    said: str


def moments(seed: int, number: int, ranks: int = 1) -> list[Moment]:
    """A random course: every phase comes up, in random order and at random counts."""
    draw = random.Random(seed)
    phases: list[str] = []
    while len(phases) < number:
        some = ["training", "accumulating", "stepping", "validation", "writing", "renaming", "between", "any"]
        draw.shuffle(some)
        phases += some
    most = {"writing": 200, "renaming": 3, "validation": 5, "any": 400}
    alone = ("writing", "renaming")  # what rank 0 does for all
    return [
        Moment(phase, draw.randint(1, most.get(phase, 9)), 0 if phase in alone else draw.randrange(ranks))
        for phase in phases[:number]
    ]


# ------------------------------------------------------------------------------------------ inside the killed command


class _Death:
    def __init__(self, moment: Moment, record: str) -> None:
        self.moment, self.record, self.seen = moment, record, 0
        self.phase, self.step = "starting", 0

    def note(self, phase: str, trainer: Any = None) -> None:
        self.phase = phase
        if trainer is not None:
            self.step = trainer.global_step
        if phase == self.moment.phase:
            self.seen += 1
            if self.seen == self.moment.count:
                self.die()

    def die(self) -> None:
        phase = f"{self.phase} (by the clock)" if self.moment.phase == "any" else self.phase
        with open(self.record, "w") as file:
            json.dump({"phase": phase, "step": self.step}, file)
        os.kill(os.getpid(), self.moment.signal)

    def spoil(self, what: str, trainer: Any) -> bool:
        """Whether the so-manieth of these things is to go wrong, without anybody's death."""
        if what != self.moment.phase:
            return False
        self.seen += 1
        if self.seen == self.moment.count:
            with open(self.record, "w") as file:
                json.dump({"phase": what, "step": trainer.global_step}, file)
        return self.seen == self.moment.count

    def wait(self) -> None:
        time.sleep(self.moment.count / 1000)
        self.die()


def _arm(death: _Death) -> None:
    """Stand at the places where the process may die."""
    from recur.data import language
    from recur.data import sentiment as sentiment_data
    from recur.runs import checkpoint as checkpoints
    from recur.tasks import language_modeling, sentiment
    from recur.training.checkpointing import LastCheckpoint

    def before(owner: Any, name: str, tell: Any) -> None:
        original = getattr(owner, name)

        def standing(*arguments: Any, **named: Any) -> Any:
            tell(*arguments)
            return original(*arguments, **named)

        setattr(owner, name, standing)

    def training(task: Any, batch: Any, number: int) -> None:
        trainer = task.trainer
        if death.moment.phase == "any" and death.seen == 0:
            death.seen = 1
            threading.Thread(target=death.wait, daemon=True).start()
        if death.moment.phase == "soak" and trainer.global_step % 20 == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            with open(death.record, "a") as file:
                print(trainer.global_step, pages, len(os.listdir("/proc/self/fd")), file=file)
        death.note("accumulating" if number % trainer.accumulate_grad_batches else "training", trainer)

    def validation(task: Any, *rest: Any) -> None:
        if task.trainer.state.fn == "fit" and not task.trainer.sanity_checking:
            death.note("validation", task.trainer)
            if death.spoil("memory-validation", task.trainer):
                raise MemoryError("no more")
        elif task.trainer.state.fn != "fit":
            death.note("scoring", task.trainer)

    def spoiled(original: Any) -> Any:
        def step(task: Any, *rest: Any) -> Any:
            loss = original(task, *rest)
            for what, value in (("nan-loss", torch.nan), ("inf-loss", torch.inf)):
                if death.spoil(what, task.trainer):
                    sums = task.train_loss.mean_value if task.family == "sentiment" else task.train_statistics.nll
                    sums.fill_(value)
                    loss = loss * value
            if death.spoil("memory", task.trainer):
                torch.empty(1 << 60)
            return loss

        return step

    def gradient(task: Any, *rest: Any) -> None:
        death.note("stepping", task.trainer)
        if death.spoil("nan-gradient", task.trainer):
            next(p for p in task.parameters() if p.grad is not None).grad.view(-1)[0] = torch.nan

    for task in (sentiment.SentimentTask, language_modeling.LanguageModelingTask):
        task.training_step = spoiled(task.training_step)  # type: ignore[attr-defined]
        before(task, "training_step", training)
        before(task, "validation_step", validation)
        before(task, "test_step", validation)
        before(task, "configure_gradient_clipping", gradient)
    for data in (sentiment_data.SentimentData, language.LanguageData):
        before(data, "prepare_data", lambda *rest: death.note("preparing"))
    before(LastCheckpoint, "_between", lambda last, trainer: death.note("between", trainer))
    before(checkpoints._Sealed, "_pass_on", lambda *rest: death.note("writing"))
    before(checkpoints, "_keep", lambda *rest: death.note("renaming"))
    before(checkpoints, "_sync", lambda *rest: death.note("renaming"))


def _enter(moment: Moment | None, record: str, *rest: Any) -> None:
    if moment is not None:
        _arm(_Death(moment, record))
    commands._enter(*rest)


def _write(folder: str, count: int, tally: str) -> None:
    from recur.runs import checkpoint as checkpoints

    seen = 0

    def counted(function: Any) -> Any:
        def standing(*arguments: Any, **named: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return standing

    checkpoints._Sealed._pass_on = counted(checkpoints._Sealed._pass_on)  # type: ignore[method-assign]
    for name in ("replace", "hardlink_to", "unlink"):
        setattr(Path, name, counted(getattr(Path, name)))
    os.fsync = counted(os.fsync)
    for number in (1, 2):
        content = {"recur": {"format": FORMAT}, "state_dict": {}, "number": number}
        checkpoints.write(content, Path(folder) / checkpoints.LAST, keep=checkpoints.PREVIOUS)
    Path(tally).write_text(str(seen))


def written_until(folder: Path, count: int, tally: Path) -> int:
    """Write two checkpoints and die at the so-manieth write, sync, rename or link, 0 for never; gives the exit code."""
    process = commands.server().Process(target=_write, args=(str(folder), count, str(tally)))
    process.start()
    process.join()
    return int(process.exitcode or 0)


# ------------------------------------------------------------------------------------------------------ the other side


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(
    folder: Path,
    words: list[str],
    ranks: int = 1,
    moment: Moment | None = None,
    more: Sequence[str] = (),
    limit: float = 600,
) -> Ended:
    """Start a run in `folder` with these words, or go on with the one that is there (`more`), and wait until it ends.

    With two ranks both are started here, as `torchrun` does, so that neither has to import torch anew. What takes over
    `limit` seconds hangs, on a busy machine too, and is killed.
    """
    again = (folder / "checkpoints" / "last.ckpt").is_file()
    command = [f"resume={folder}", *more] if again else [*words, f"hydra.run.dir={folder}"]
    with tempfile.TemporaryDirectory() as scratch:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
        processes = []
        record = Path(scratch) / "record"
        for rank in range(ranks):
            streams = [f"{scratch}/{name}{rank}" for name in ("in", "out", "err")]
            Path(streams[0]).touch()
            mine = [] if rank == 0 else ["hydra.output_subdir=null", f"hydra.job.name=rank{rank}"]
            surroundings = {**os.environ, "OMP_NUM_THREADS": "1"}
            if ranks > 1:
                surroundings |= {**place, "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
            doomed = moment if moment is not None and moment.rank == rank else None
            arguments = (doomed, str(record), "recur.train", [*command, *mine], scratch, surroundings, streams)
            process = commands.server().Process(target=_enter, args=arguments)
            process.start()
            processes.append(process)
        try:
            until = time.monotonic() + limit
            while any(process.exitcode is None for process in processes) and time.monotonic() < until:
                if any(process.exitcode == -signal.SIGKILL for process in processes):
                    break
                time.sleep(0.01)
        finally:
            for process in processes:
                with contextlib.suppress(AttributeError):
                    process.kill()
                process.join()
        if moment is not None and moment.phase == "soak":
            hit = {"seen": [[int(word) for word in line.split()] for line in record.read_text().splitlines()]}
        else:
            hit = json.loads(record.read_text()) if record.is_file() else None
        said = "".join(Path(f"{scratch}/err{rank}").read_text() for rank in range(ranks))
        out = Path(f"{scratch}/out0").read_text()
        return Ended(hit, [int(process.exitcode or 0) for process in processes], out, said)


def finish(folder: Path, words: list[str], ranks: int = 1) -> Ended:
    """Let a run end by itself, well."""
    ended = start(folder, words, ranks)
    assert not any(ended.codes), f"{ended.codes}\n{ended.said[-6000:]}"
    return ended


def torture(folder: Path, words: list[str], ranks: int, course: list[Moment]) -> list[dict[str, Any]]:
    """Kill a run at each of these moments, then let it end; tells where it was killed."""
    kills = []
    for moment in course:
        if (folder / "metrics.json").is_file():
            break
        ended = start(folder, words, ranks, moment)
        if ended.hit is None:
            assert not any(ended.codes), f"{ended.codes}\n{ended.said[-6000:]}"
            break
        kills.append({**ended.hit, "rank": moment.rank})
    if not (folder / "metrics.json").is_file():
        finish(folder, words, ranks)
    return kills


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every curve of a run as TensorBoard shows it."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag != "train/tokens_per_second"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(kept) for key, kept in value.items() if key not in _CLOCKS}
    return value


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two structures of tensors and plain values differ; a NaN equals a NaN."""
    if isinstance(one, dict) and isinstance(other, dict):
        found = [f"{path}: only one has {key}" for key in one.keys() ^ other.keys()]
        return found + [
            d for key in one.keys() & other.keys() for d in differences(one[key], other[key], f"{path}/{key}")
        ]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return [f"{path}: {len(one)} and {len(other)} items"]
        return [d for i, pair in enumerate(zip(one, other, strict=True)) for d in differences(*pair, f"{path}[{i}]")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = (
            one.dtype == other.dtype and one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
        )
        return [] if same else [f"{path}: {one.flatten()[:3].tolist()} and {other.flatten()[:3].tolist()}"]
    return [] if one == other or (one != one and other != other) else [f"{path}: {one} and {other}"]


def _content(run: Path, name: str) -> dict[str, Any]:
    """A checkpoint without what tells the time or the folder."""
    content = load_checkpoint(run / "checkpoints" / name)
    content.pop("recur")
    content["callbacks"] = {
        key: {k: str(v).replace(str(run), "RUN") if isinstance(v, str) else v for k, v in state.items()}
        for key, state in content["callbacks"].items()
        if key != "Throughput"
    }
    for state in content["callbacks"].values():
        if "best_k_models" in state:
            state["best_k_models"] = {k.replace(str(run), "RUN"): v for k, v in state["best_k_models"].items()}
    if "reached" in content:
        content["reached"].pop("curves")
        content["reached"]["metrics"].pop("train/tokens_per_second", None)
    return content


def compare(whole: Path, parts: Path) -> list[str]:
    """Every difference between two runs but those of the clock: all that is in their checkpoints, figures, curves."""
    found = []
    for name in ("last.ckpt", "best.ckpt"):
        one, other = _content(whole, name), _content(parts, name)
        if name == "best.ckpt":  # whose loops show in how many processes it was made
            one, other = ({k: v for k, v in content.items() if k != "loops"} for content in (one, other))
        found += differences(one, other, name)
    one, other = (_timeless(json.loads((run / "metrics.json").read_text())) for run in (whole, parts))
    found += differences(one, other, "metrics.json")
    found += differences(scalars(whole), scalars(parts), "curves")
    one, other = (_timeless({"all": journal.read_validations(run)}) for run in (whole, parts))
    for entry in (*one["all"], *other["all"]):
        entry.pop("seconds")
        entry["metrics"].pop("train/tokens_per_second", None)
    return found + differences(one, other, "history.jsonl")
