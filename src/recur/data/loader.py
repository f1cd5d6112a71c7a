"""The resumable loader."""

from collections.abc import Callable, Iterator
from typing import Any

from recur.nn.packed import TokenWindow


class _Loader:
    """What stream and window loaders share: an epoch, a place in it, and saving both.

    Iterating starts at the epoch's first window, or, once after `load_state_dict`, where that state was taken.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._epoch = 0
        self._given = 0  # windows handed out in this epoch
        self._resume_at = 0
        self.before_batch: Callable[[], None] | None = None  # called whenever the next window is asked for

    batch_sampler = None  # Lightning asks whatever has a sampler for it

    @property
    def sampler(self) -> "_Loader":
        """The loader itself: Lightning calls `set_epoch` on a loader's sampler, never on the loader."""
        return self

    def __len__(self) -> int:
        """Windows of an epoch, the same in every epoch and on every rank."""
        raise NotImplementedError

    def _windows(self, first: int) -> Iterator[TokenWindow]:
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Name the epoch to come. Naming the one under way keeps the place in it."""
        if epoch != self._epoch:
            self._epoch, self._given, self._resume_at = epoch, 0, 0

    def __iter__(self) -> Iterator[TokenWindow]:
        """Windows to come. Nothing happens until the first is asked for: Lightning sets the epoch after `iter`."""
        first, self._resume_at = self._resume_at, 0
        self._given = first
        for window in self._windows(first):
            if self.before_batch is not None:
                self.before_batch()
            # Counted before it is handed out. Lightning asks for one batch at a time from a loader with a length, so
            # at a checkpoint the windows handed out are those trained on.
            self._given += 1
            yield window

    def state_dict(self) -> dict[str, Any]:
        """The place: epoch, windows handed out, and what the windows were made from. The same on every rank."""
        return {"epoch": self._epoch, "given": self._given, "plan": dict(self._settings)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place.

        Raises:
            ValueError: in mid-epoch, with settings or text that make other windows.
        """
        if 0 < state["given"] < len(self) and state["plan"] != self._settings:
            name = next(name for name in self._settings if state["plan"].get(name) != self._settings[name])
            raise ValueError(
                f"cannot go on in the middle of epoch {state['epoch']}: {name} was {state['plan'].get(name)} and is "
                f"{self._settings[name]}: resume with the same text, batch_size, bptt, seed and number of devices"
            )
        self._epoch = state["epoch"]
        self._given = self._resume_at = state["given"]


def check_sizes(**sizes: int) -> None:
    """Refuse sizes below 1.

    Raises:
        ValueError: names the first.
    """
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {size!r}")
