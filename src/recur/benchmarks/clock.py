"""Callbacks that time a training command from inside it, and processes that train by turns."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recur.benchmarks.harness import synchronize

TURN = 100  # steps


class Turns:
    """Two processes that train by turns: a word in a file says whose turn it is, and waiting is not counted.

    Args:
        path: the file.
        name: who this is.
        other: who the other is.
        alone: whether the other process has ended, and is not to be waited for.
    """

    def __init__(self, path: Path, name: str, other: str, alone: Callable[[], bool]) -> None:
        self.path, self.name, self.other, self.alone = path, name, other, alone
        self.away = 0.0

    def now(self) -> float:
        """Seconds, those of waiting left out."""
        return time.perf_counter() - self.away

    def wait(self) -> None:
        """Until it is this one's turn."""
        began = time.perf_counter()
        while self.path.read_text(encoding="utf-8") not in (self.name, "anybody") and not self.alone():
            time.sleep(0.01)
        self.away += time.perf_counter() - began

    def leave(self, *, done: bool = False) -> None:
        """Give the turn to the other, for good where this one is done; keep it where the other is."""
        if self.path.read_text(encoding="utf-8") == "anybody":
            return
        beside = self.path.with_suffix("." + self.name)
        beside.write_text("anybody" if done else self.other, encoding="utf-8")
        beside.replace(self.path)


def clock(path: str, turns: str | None = None) -> Any:
    """A callback that writes when each training step ended, how many tokens it had and its loss, to a JSON file.

    Args:
        path: the file, with `began`, the moment before the first step, and `steps`.
        turns: file of `Turns` with the process that started this one; None never waits.
    """
    from lightning.pytorch import Callback

    parent = os.getppid()
    shared = Turns(Path(turns), "command", "plain", lambda: os.getppid() != parent) if turns else None
    now = shared.now if shared else time.perf_counter

    class Clock(Callback):
        def __init__(self) -> None:
            self.began, self.steps = 0.0, list[tuple[float, int, float]]()

        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.began = now()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            synchronize(batch.text.data)
            self.steps.append((now(), batch.text.data.shape[0], float(outputs["loss"])))
            if shared and len(self.steps) % TURN == 0:
                shared.leave()
                shared.wait()

        def on_train_end(self, trainer: Any, module: Any) -> None:
            Path(path).write_text(json.dumps({"began": self.began, "steps": self.steps}), encoding="utf-8")

    return Clock()


def first_step(path: str) -> Any:
    """A callback that writes when the first training step is done and ends the process."""
    from lightning.pytorch import Callback

    class FirstStep(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            synchronize(batch.text.data)
            Path(path).write_text(str(time.time()), encoding="utf-8")
            os._exit(0)

    return FirstStep()
