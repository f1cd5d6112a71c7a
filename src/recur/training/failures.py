"""Losses that are not finite, lack of memory, signals: which batch it was, what came before, and what to try.

The gradient's norm, which is taken in every step anyway, is looked at before the step is made. It is not finite as soon
as one gradient of one rank is not, and the ranks share it: they take the same decision without communicating.
"""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, NoReturn

import lightning.pytorch as pl
import torch
from annotated_types import Ge
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from recur.cli import ECHO, QUEUE, explain, notify, python, rank, trusting
from recur.config.compose import Composed, typed_again
from recur.data.loader import ResumableLoader
from recur.errors import UserError
from recur.nn.packed import Batch
from recur.runs.requeue import keep_place
from recur.tasks.base import Restorable

HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, *QUEUE)


class NotFiniteError(UserError):
    """A loss or gradient that is NaN or infinite."""


class Finite(Callback):
    """Stops a run, or skips a step, whose loss or gradient is NaN or infinite.

    A skipped step leaves weights, optimizer, schedule and averages as they were; batches go on. It is a
    `recur.tasks.base.GradientObserver`: the task asks it, since only the task takes the norm. To skip steps the task
    must be a `recur.tasks.base.Restorable`.

    Args:
        on_nonfinite: `stop` or `skip`.
        remember: gradient norms to show.

    Attributes:
        skipped: steps skipped so far.
    """

    def __init__(self, on_nonfinite: Literal["stop", "skip"] = "stop", remember: Annotated[int, Ge(1)] = 10) -> None:
        self.skip = on_nonfinite == "skip"
        self.skipped = 0
        self.stage, self.batch, self.number = "training", None, 0
        self._norms: deque[Tensor] = deque(maxlen=remember)
        self._loss: Tensor | None = None
        self._losses: list[tuple[Tensor, Any, int]] = []  # of a step's batches, with each one and its number
        self._task: Restorable | None = None
        self._before: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        """What was skipped."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on."""
        self.skipped = state_dict["skipped"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse to skip steps of a task that cannot undo them, of a trainer built by hand, too."""
        self.check_fit(trainer, pl_module)
        self._task = pl_module if isinstance(pl_module, Restorable) else None

    def check_fit(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse to skip steps of a task that cannot undo them.

        Raises:
            UserError: the task is not `Restorable`.
        """
        if self.skip and not isinstance(pl_module, Restorable):
            raise UserError(
                "callbacks.finite.on_nonfinite",
                "skip",
                f"needs a task with snapshot and restore, and {type(pl_module).__name__} has none",
                "set it to stop",
            )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch, and a copy of what a skipped step must not change."""
        self._see("training", batch, batch_idx)
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._loss, self._losses = None, []
            if self.skip and self._task is not None:
                self._before = self._task.snapshot()

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, *rest: Any
    ) -> None:
        """Keep the batch."""
        self._see("validation", batch, batch_idx)

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, *rest: Any
    ) -> None:
        """Keep the batch."""
        self._see("the test", batch, batch_idx)

    def _see(self, stage: str, batch: Any, number: int) -> None:
        self.stage, self.batch, self.number = stage, batch, number

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Add up the step's loss: what is not finite stays so."""
        loss = loss.detach()
        self._loss = loss if self._loss is None else self._loss + loss
        self._losses.append((loss, self.batch, self.number))

    def on_gradient_norm(self, trainer: pl.Trainer, pl_module: pl.LightningModule, norm: Tensor) -> bool:
        """Look at a step before it is made.

        Args:
            trainer: of the run.
            pl_module: its task.
            norm: of the gradient, over all ranks.

        Returns:
            whether the step must be skipped.

        Raises:
            NotFiniteError: it must not be made, and skipping is not allowed.
        """
        assert self._loss is not None
        seen = norm
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            seen = self._loss  # float16: its scaler checks the gradient, and tries too large steps on purpose
            if trainer.world_size > 1:  # one decision for all ranks, as the gradient is one
                seen = trainer.strategy.reduce(seen.clone(), reduce_op="sum")
        elif trainer.world_size == 1:
            seen = norm + 0 * self._loss  # not finite where either is not
        if torch.isfinite(seen):
            self._norms.append(norm.detach())
            return False
        if self.skip and self._task is not None:
            self.skipped += 1
            self._task.restore(self._before)
            if trainer.is_global_zero or not torch.isfinite(self._loss):
                notify(f"skipped step {trainer.global_step + 1}: {self._what(norm)} on {self._where(trainer)}")
            return True
        if trainer.global_rank and torch.isfinite(self._loss):
            raise SystemExit(2)  # rank 0 and the rank whose batch it was report it
        before = ", ".join(f"{float(value):.3g}" for value in self._norms) or "none, it was the first step"
        raise NotFiniteError(
            "",
            rule=f"{self._what(norm)} at step {trainer.global_step + 1} (epoch {trainer.current_epoch + 1}) on "
            f"{self._where(trainer)}; gradient norms of the steps before: {before}. Weights are as they were. Try a "
            "lower optimizer.lr, a smaller trainer.gradient_clip_val, a warm-up (scheduler=cosine), or go on without "
            "such steps",
            remedy="callbacks.finite.on_nonfinite=skip",
        )

    def _what(self, norm: Tensor) -> str:
        return f"loss {float(self._loss if self._loss is not None else norm):.4g}, gradient norm {float(norm):.4g}"

    def _where(self, trainer: pl.Trainer) -> str:
        """The batch whose loss is not finite; where no loss of this process's is, all that the gradient is of."""
        loader: Any = trainer.train_dataloader
        wrong = next((one for one in self._losses if not torch.isfinite(one[0])), None)
        if wrong is None and trainer.world_size > 1:
            return f"another rank's batch than rank {trainer.global_rank}'s, or in the gradient alone"
        if wrong is None and len(self._losses) > 1:
            return f"one of the batches {self._losses[0][2]} to {self._losses[-1][2]}"
        _, batch, number = wrong or (None, self.batch, self.number)
        rank = f"rank {trainer.global_rank}'s " if trainer.world_size > 1 else ""
        return f"{rank}batch {number} ({place(batch, loader, number)})"


def place(batch: Any, loader: Any, number: int) -> str:
    """Which part of the data a batch is; where the loader is not one of ours, how large it is."""
    return loader.where(number) if isinstance(loader, ResumableLoader) else size(batch)


def size(batch: Any) -> str:
    """How large a batch is, in words."""
    if not isinstance(batch, Batch):
        return "unknown size"
    sizes = batch.text.batch_sizes
    return f"{int(sizes[0]):,} {batch.unit}, longest {len(sizes):,} tokens, {len(batch.text.data):,} in all"


# What torch and Gloo say, with a test that holds them to it: they have no classes of their own for these.
_LACKS_MEMORY = re.compile(r"can't allocate|not enough memory|out of memory|_ALLOC(ATION)?_FAILED")
_LOST_RANK = re.compile(r"[Cc]onnection (closed|reset)|Broken pipe")


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error is a lack of memory, on a CPU or a GPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and _LACKS_MEMORY.search(str(error)) is not None


def is_lost_rank(error: BaseException) -> bool:
    """Whether an error is another rank's end, seen from this one."""
    return isinstance(error, RuntimeError) and _LOST_RANK.search(str(error)) is not None


def out_of_memory(error: BaseException, watch: Finite | None) -> UserError:
    """The error that reports a lack of memory.

    Args:
        error: as torch or Python raised it.
        watch: the callback that has seen the batch, None without one.
    """
    where = ""
    lower = "data.batch_size, model.net.hidden_size"
    if watch is not None and watch.batch is not None:
        where = f" in {watch.stage}, batch {watch.number} of {size(watch.batch)}"
        texts = isinstance(watch.batch, Batch) and watch.batch.unit == "texts"
        length = "data.max_length" if texts else "data.bptt"
        if watch.stage == "training":
            lower = f"data.batch_size (and raise trainer.accumulate_grad_batches), {length}, model.net.hidden_size"
            lower += ", or set data.max_tokens" if texts else ""
        else:
            lower = f"data.eval_batch_size{'' if texts else ' or data.eval_bptt'}"
    first = next(iter(str(error).splitlines()), type(error).__name__)[:160]
    return UserError("", rule=f"out of memory{where}", remedy=f"lower {lower} ({first})")


class Stopped(SystemExit):
    """Leaves the process because of a signal, with the exit code that shells give it: 128 and its number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


class Stop:
    """Receives SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2.

    While a model is trained (`patient`) a signal is only recorded, and `LastCheckpoint` saves after the
    step; at other times it ends the process, since nothing would be lost. A second signal ends it at once. SIGHUP stays
    ignored where it was, as under `nohup`.

    Attributes:
        number: of the signal that came, 0 before.
        patient: whether training goes on to the end of the step and then looks at `number`.
        saved: whether a checkpoint of the run was written.
    """

    def __init__(self) -> None:
        self.number = 0
        self.patient = False
        self.saved = False
        self._at = 0.0
        self._followed = False
        self._terminal: list[int] = []

    def listen(self) -> None:
        """Install the handlers; again after another library may have installed its own."""
        if threading.current_thread() is threading.main_thread():
            self._terminal = [output for output in (1, 2) if os.isatty(output)]
            for number in HEARD:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGHUP:
            self._let_go_of_terminal()
        if self.number:
            if self.number in QUEUE and number == signal.SIGTERM and not self._followed:
                self._followed, self._at = True, now  # SLURM's or a sweep's, for the same end: it is on its way
            elif self.number == signal.SIGTERM and number in QUEUE:
                self.number = number  # the warning comes second where a job is preempted
            elif now - self._at > ECHO:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.number, self._at = number, now
        if not self.patient and rank() == 0:
            raise Stopped(number)
        if rank() == 0:  # by hand: a handler may interrupt a print
            line = "\n" if sys.stderr.isatty() else ""  # a bar may stand in this line
            os.write(2, f"{line}recur: {name(number)}: saving after this step; again to end at once\n".encode())

    def _let_go_of_terminal(self) -> None:
        """Write to nowhere what went to a terminal: it is closed, and every line to it would be an error."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for output in self._terminal:
            os.dup2(nowhere, output)
        os.close(nowhere)
        self._terminal = []


def name(number: int) -> str:
    """`SIGTERM` for 15."""
    return signal.Signals(number).name


def leave(stop: Stopped, composed: Composed, words: Sequence[str], *, saved: bool) -> int:
    """Print how to go on with a run that was stopped; return the exit code.

    Args:
        stop: the signal.
        composed: the config of the run.
        words: of the command, as typed.
        saved: whether there is a checkpoint of it to go on from.

    After SLURM's signal the job is queued again. Ranks that Lightning started leave with 0: anything else would make it
    kill rank 0, which may still be saving.
    """
    if rank():  # SLURM's variables are there in a job of one task, too, whose ranks Lightning starts
        own = os.environ.get(_LAUNCHER) == str(os.getppid())
        return 0 if own or ("RANK" not in os.environ and "SLURM_PROCID" not in os.environ) else 128 + stop.number
    folder = composed.folder
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    asked = None
    try:
        if saved:
            keep_place(words, folder)
        asked = requeue() if stop.number in QUEUE else None
    except OSError as error:
        asked = f"SLURM is not asked to start the job again, which would begin a new run: {explain(error)}"
    more = [*trusting(), f"resume={shown}", *typed_again(composed.overrides, composed)]
    if any(word.lstrip("+").startswith("resume=") for word in words) and not _knows_settings(composed):
        more = list(words)
    again = f"go on with: {python()} {shlex.join(['-m', 'recur.train', *more])}"
    notify(
        f"stopped by {name(stop.number)}"
        + (f", saved in {shown}; {again}" if saved else " before there was anything to save; start it again")
        + (f" ({asked})" if asked else "")
    )
    return 128 + stop.number


def _knows_settings(composed: Composed) -> bool:
    """Whether a resumed run's config has been written with what was typed; that is done when training begins."""
    try:
        return (composed.folder / "config.yaml").read_text(encoding="utf-8") == composed.config_text
    except (OSError, UnicodeDecodeError):
        return False


def requeue() -> str | None:
    """Ask SLURM to start this job again; None outside SLURM, else what came of it."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return None
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=False)  # noqa: S603, S607
    except (OSError, subprocess.SubprocessError) as error:
        return f"SLURM could not be asked to start job {job} again: {error}"
    if done.returncode:
        return f"SLURM did not take job {job} again: {done.stderr.strip()}"
    return f"SLURM starts job {job} again"


@contextlib.contextmanager
def explained(trainer: pl.Trainer) -> Iterator[None]:
    """Turn a lack of memory or a lost rank into a `UserError`; leave no rank running.

    Raises:
        UserError: memory ran out, or another rank has gone.
    """
    try:
        yield
    except BaseException as error:
        launcher: Any = getattr(trainer.strategy, "launcher", None)
        if trainer.is_global_zero and hasattr(launcher, "kill") and not isinstance(error, NotFiniteError):
            if isinstance(error, Stopped):  # of all ranks, mostly; Lightning ends this process soon after a killed one
                _await([process for process in launcher.procs if isinstance(process, subprocess.Popen)])
            launcher.kill(signal.SIGKILL)  # where all ranks leave together they have said what they had to
        meant = None
        if is_lack_of_memory(error):
            watching = (callback for callback in trainer.callbacks if isinstance(callback, Finite))  # type: ignore[attr-defined]
            meant = out_of_memory(error, next(watching, None))
        elif is_lost_rank(error):
            meant = UserError("", rule="another rank of this run has ended, see above", remedy="go on with resume=RUN")
        if trainer.global_rank and _would_wait(error):
            _leave_at_once(meant or error)
        if meant is not None:
            raise meant from error
        raise


def _await(processes: Sequence["subprocess.Popen[bytes]"], seconds: float = 5.0) -> None:
    """Wait so long for processes to end by themselves."""
    end = time.monotonic() + seconds
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))


def _would_wait(error: BaseException) -> bool:
    """Whether this rank, alone in its failure, would wait for the others at its end, as NCCL does, and they for it."""
    together = isinstance(error, (NotFiniteError, Stopped, SystemExit))  # of all ranks
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return distributed and not together and "nccl" in str(torch.distributed.get_backend())


def _leave_at_once(error: BaseException) -> NoReturn:
    """Say what happened and end the process without what it does at its end; rank 0 then ends the run."""
    line = explain(error)
    if line is None:
        traceback.print_exception(error)
    else:
        notify(line)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(1 if line is None else 2)


_LAUNCHER = "RECUR_LAUNCHER"  # process id of rank 0, for the ranks that it starts


def leave_with_launcher(seconds: float = 1.0) -> None:
    """End this process when the one that started it as a rank has ended; as rank 0, name it for the ranks to come.

    A rank that waits for others in a collective would otherwise outlive a killed rank 0 by minutes.

    Args:
        seconds: between two checks.
    """
    if rank() == 0:
        os.environ[_LAUNCHER] = str(os.getpid())
        return
    expected = os.environ.get(_LAUNCHER)
    parent = os.getppid()
    if expected is None:  # started by torchrun or SLURM, which look after their ranks
        return

    def watch() -> None:
        while os.getppid() == parent and str(parent) == expected:
            time.sleep(seconds)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="leave-with-launcher").start()
