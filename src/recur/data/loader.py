"""The resumable loader that both families share: an epoch, a place in it, and saving both.

What the batches of an epoch are is a pure function of the loader's settings, its rank and the epoch; so the number of
batches handed out is all that has to be saved to go on in the middle of one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from recur.errors import UserError
from recur.nn.packed import Batch

Given = TypeVar("Given", bound=Batch)


class ResumableLoader(ABC, Generic[Given]):
    """Batches of an epoch for one rank, resumable in mid-epoch.

    Iterating starts at the epoch's first batch, or, once after `load_state_dict`, where that state was taken.

    Args:
        plan: what the batches are made from, plain values: another plan cannot go on in the middle of this one's epoch.
        repeat: make every epoch's batches those of epoch 0, as `trainer.overfit_batches` wants them.
    """

    def __init__(self, plan: dict[str, Any], *, repeat: bool = False) -> None:
        self._plan = plan
        self._repeat = repeat
        self._epoch = 0
        self._given = 0  # batches handed out in this epoch
        self._resume_at = 0
        self.before_batch: Callable[[], None] | None = None  # called whenever the next batch is asked for

    batch_sampler = None  # Lightning asks whatever has a sampler for it

    @property
    def sampler(self) -> "ResumableLoader[Given]":
        """The loader itself: Lightning calls `set_epoch` on a loader's sampler, never on the loader."""
        return self

    @property
    def planned_epoch(self) -> int:
        """The epoch whose batches are handed out."""
        return 0 if self._repeat else self._epoch

    @abstractmethod
    def __len__(self) -> int:
        """Batches of an epoch, the same in every epoch and on every rank."""

    @abstractmethod
    def batches(self, first: int) -> Iterator[Given]:
        """This rank's batches of the present epoch, from number `first` on."""

    @abstractmethod
    def where(self, number: int) -> str:
        """Which part of the data a batch of the present epoch holds, for a message."""

    def set_epoch(self, epoch: int) -> None:
        """Name the epoch to come. Naming the one under way keeps the place in it."""
        if epoch != self._epoch:
            self._epoch, self._given, self._resume_at = epoch, 0, 0

    def __iter__(self) -> Iterator[Given]:
        """Batches to come. Nothing happens until the first is asked for: Lightning sets the epoch after `iter`."""
        first, self._resume_at = self._resume_at, 0
        self._given = first
        for batch in self.batches(first):
            if self.before_batch is not None:
                self.before_batch()
            # Counted before it is handed out. Lightning asks for one batch at a time from a loader with a length, so
            # at a checkpoint the batches handed out are those trained on.
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The place: epoch, batches handed out, of how many, and what they are made from. The same on every rank."""
        return {"epoch": self._epoch, "given": self._given, "steps": len(self), "plan": dict(self._plan)}

    def check_place(self, state: Any, *, validating: bool = False) -> None:
        """Refuse a place to which this loader cannot go.

        Args:
            state: as `state_dict` gives it, from a checkpoint of unknown origin.
            validating: whether an epoch of which all batches were handed out is not over: its validation is to come.

        Raises:
            UserError: in mid-epoch, with settings or data that make other batches; or it is no such state.
        """
        kinds = {"epoch": int, "given": int, "plan": dict, "steps": int}
        if isinstance(state, dict):
            state = {"steps": len(self), **state}  # earlier versions did not keep how many batches the epoch had
        if not isinstance(state, dict) or any(not isinstance(state.get(key), kind) for key, kind in kinds.items()):
            raise UserError("resume", rule="has a checkpoint that does not say which batches were trained on")
        under_way = 0 < state["given"] < state["steps"] + validating
        if under_way and state["plan"] != self._plan:
            names = {**self._plan, **state["plan"]}  # one that came from elsewhere can have others
            name = next(name for name in names if state["plan"].get(name) != self._plan.get(name))
            raise UserError(
                "resume",
                rule=f"cannot go on in the middle of epoch {state['epoch']}: {name} was {state['plan'].get(name)} and "
                f"is {self._plan.get(name)}",
                remedy="resume with the same data, batch settings, seed and number of devices",
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place.

        Raises:
            UserError: as `check_place`.
        """
        self.check_place(state)
        self._epoch = state["epoch"]
        self._given = state["given"]
        # An epoch that is over, or not begun, says nothing about where another plan's batches go on
        self._resume_at = self._given if state["plan"] == self._plan else 0
