"""Which texts make which batch, on which rank, in which step; and the packing of a batch.

Texts of like length belong together: a packed batch of them has few steps at which only a handful of sequences still
run, and ranks that wait for each other finish together. So an epoch is a list of rows sorted by length, cut into
steps, each step cut into one batch a rank.

- The order is blurred each epoch: before sorting, every length is multiplied by a random factor within `BLUR` of one.
  So a row shares its batch with other rows every time, while the lengths in a batch stay within a few percent.
- A step holds `batch_size * world_size` rows (the last rows are spread over all steps: they differ by at most one
  row). Inside a step the ranks get equal numbers of *tokens*, not of rows: a rank with longer texts has fewer.
  Averaging gradients over ranks therefore needs each rank's mean loss weighted by `TextBatch.scale`.
- Steps come in random order, but the largest comes first in epoch 0: memory runs out at once or not at all.
- To evaluate, lengths are not blurred, but rows of equal length and then the steps are shuffled, once, by the seed:
  whatever the order of the source (often sorted by class), the first batches are a fair sample of the split.

All this is a function of the lengths and of (seed, epoch, world size); a rank and a number of steps done are then a
place in it, which is all that has to be saved to go on from there.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import PackedSequence

from recur.data.cache import Ragged
from recur.data.checks import Count, hold
from recur.data.loader import ResumableLoader
from recur.errors import UserError
from recur.nn.packed import TextBatch

BLUR = 0.01
_SHOWN = 8  # rows named in a message
Keep = Literal["head", "tail", "both"]


@dataclass(frozen=True)
class Plan:
    """An epoch: batch of `rank` in `step` is `order[bounds[step, rank, 0]:bounds[step, rank, 1]]`.

    Attributes:
        order: row numbers, `(rows,)` int64; each row once.
        bounds: first and last-but-one position of each batch in `order`, `(steps, world_size, 2)` int64.
    """

    order: NDArray[np.int64]
    bounds: NDArray[np.int64]

    @property
    def steps(self) -> int:
        """Number of steps, the same on every rank."""
        return len(self.bounds)

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.bounds.shape[1]

    def batch(self, step: int, rank: int = 0) -> NDArray[np.int64]:
        """Row numbers of one batch."""
        first, end = self.bounds[step, rank]
        return self.order[first:end]

    def scale(self, step: int, rank: int = 0) -> float:
        """Rows of this batch over the mean of all ranks' in this step: the weight of its mean loss."""
        sizes = self.bounds[step, :, 1] - self.bounds[step, :, 0]
        return float(sizes[rank] * len(sizes) / sizes.sum())

    def tokens(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of each batch, `(steps, world_size)`."""
        total = np.concatenate([[0], np.cumsum(lengths[self.order])])
        return total[self.bounds[..., 1]] - total[self.bounds[..., 0]]

    def waste(self, lengths: NDArray[np.int64]) -> float:
        """Share of pads, were every batch laid out densely at its longest text's length."""
        flat = self.bounds.reshape(-1, 2)
        flat = flat[np.argsort(flat[:, 0])]
        longest = np.maximum.reduceat(lengths[self.order], flat[:, 0])
        dense = int((longest * (flat[:, 1] - flat[:, 0])).sum())
        return 1.0 - int(lengths.sum()) / dense


def count_steps(lengths: NDArray[np.int64], batch_size: int, world_size: int = 1, max_tokens: int | None = None) -> int:
    """Number of steps of an epoch; the same in every epoch."""
    if max_tokens is not None:
        return len(_token_sizes(lengths, max_tokens, world_size)) // world_size
    # Every rank needs a row in every step, even where that makes some batches larger by a row.
    return min(-(-len(lengths) // (batch_size * world_size)), len(lengths) // world_size)


def plan_epoch(
    lengths: NDArray[np.int64],
    batch_size: int,
    *,
    seed: int = 0,
    epoch: int = 0,
    world_size: int = 1,
    max_tokens: int | None = None,
    shuffle: bool = True,
) -> Plan:
    """Lay out one epoch.

    Args:
        lengths: tokens of each row, `(rows,)`.
        batch_size: rows a rank and step, on average over the ranks. Not used with `max_tokens`.
        seed: of the run.
        epoch: which epoch; each has its own order.
        world_size: number of ranks.
        max_tokens: instead of `batch_size`, most tokens a batch (a longer text is a batch of its own).
        shuffle: blur lengths and put the largest step of epoch 0 first, to train. Off for evaluation.

    Raises:
        UserError: fewer rows than ranks.
    """
    rows = len(lengths)
    _check_processes(rows, world_size)
    random = np.random.default_rng([seed, epoch])
    keys = lengths * random.uniform(1 - BLUR, 1 + BLUR, rows) if shuffle else lengths
    order = random.permutation(rows)  # rows of equal length change places, too
    order = order[np.argsort(-keys[order], kind="stable")]
    if max_tokens is None:
        bounds = _row_bounds(lengths[order], batch_size, world_size)
    else:
        sizes = _token_sizes(lengths, max_tokens, world_size)
        bounds = np.concatenate([[0], np.cumsum(sizes)])
        bounds = np.stack([bounds[:-1], bounds[1:]], axis=1).reshape(-1, world_size, 2)
    if world_size > 1:  # else rank 0 would always have a step's longest texts
        turn = (np.arange(world_size) + random.integers(world_size, size=(len(bounds), 1))) % world_size
        bounds = np.take_along_axis(bounds, turn[..., None], axis=1)
    bounds = bounds[random.permutation(len(bounds))]
    plan = Plan(order, bounds)
    if shuffle and epoch == 0:
        largest = int(plan.tokens(lengths).max(axis=1).argmax())
        bounds[[0, largest]] = bounds[[largest, 0]]
    return plan


def _check_processes(rows: int, world_size: int) -> None:
    if rows < world_size:
        raise UserError(
            "trainer.devices", world_size, f"needs a text for each process, there are {rows}", "use fewer devices"
        )


def _row_bounds(lengths: NDArray[np.int64], batch_size: int, world_size: int) -> NDArray[np.int64]:
    """Cut sorted rows into steps of equally many rows, and each step into batches of equally many tokens."""
    rows = len(lengths)
    steps = count_steps(lengths, batch_size, world_size)
    edges = np.arange(steps + 1) * rows // steps
    total = np.concatenate([[0], np.cumsum(lengths)])
    share = np.arange(world_size + 1) / world_size
    goals = total[edges[:-1], None] + share * np.diff(total[edges])[:, None]  # (steps, world_size + 1)
    # The cut nearest to the goal: count the rows whose middle lies before it.
    middles = (total[1:] + total[:-1]) / 2
    cuts = np.searchsorted(middles, goals)
    # One row at least for every rank: push cuts apart, from the left, then back from the right.
    place = np.arange(world_size + 1)
    cuts[:, 0], cuts[:, -1] = edges[:-1], edges[1:]
    cuts = np.maximum.accumulate(cuts - place, axis=1) + place
    room = edges[1:, None] - (world_size - place)
    cuts = np.minimum(cuts, room)
    return np.stack([cuts[:, :-1], cuts[:, 1:]], axis=2)


def _token_sizes(lengths: NDArray[np.int64], max_tokens: int, world_size: int) -> NDArray[np.int64]:
    """Rows of each batch, longest texts first, so that no batch has more tokens, blurred as it may be.

    The k-th longest of the blurred lengths is at most `1 + BLUR` times the k-th longest of the lengths, and its own
    length at most that over `1 - BLUR`: so batches cut from the exact order under a budget smaller by that factor
    keep the budget in every epoch, and their number never changes.
    """
    budget = max_tokens * (1 - BLUR) / (1 + BLUR)
    total = np.concatenate([[0], np.cumsum(np.sort(lengths)[::-1])])
    rows = len(lengths)
    sizes: list[int] = []
    first = 0
    while first < rows:
        end = max(int(np.searchsorted(total, total[first] + budget, side="right")) - 1, first + 1)
        sizes.append(end - first)
        first = end
    while len(sizes) % world_size:  # every rank needs a batch in every step: halve the one with the most rows
        largest = int(np.argmax(sizes))
        if sizes[largest] == 1:
            raise UserError(
                "data.max_tokens",
                max_tokens,
                f"must leave a batch for each of {world_size} processes of {rows} texts",
                "lower it, or use fewer devices",
            )
        sizes[largest : largest + 1] = [sizes[largest] - sizes[largest] // 2, sizes[largest] // 2]
    return np.array(sizes, dtype=np.int64)


class Texts:
    """Token ids of many texts, cut to a greatest length without copying.

    Args:
        tokens: the texts.
        rows: which of them, in this order; None for all.
        max_length: most tokens of a text; None for no limit.
        keep: which part of a longer text stays: its `head`, its `tail`, or `both` ends (half of `max_length` each).

    Attributes:
        lengths: tokens of each text after cutting, `(rows,)` int64.
    """

    def __init__(
        self,
        tokens: Ragged,
        rows: NDArray[np.int64] | None = None,
        *,
        max_length: Count | None = None,
        keep: Keep = "head",
    ) -> None:
        """Find where each text's kept part lies."""
        hold(Texts.__init__, {"max_length": max_length, "keep": keep})
        self._values = np.asarray(tokens.values)  # a view: indexing a memmap object is slower than an array's
        starts, full = tokens.offsets[:-1], tokens.lengths
        if rows is not None:
            starts, full = starts[rows], full[rows]
        self.lengths: NDArray[np.int64] = full if max_length is None else np.minimum(full, max_length)
        over = full - self.lengths
        self._starts = starts + over if keep == "tail" else starts
        self._head, self._gaps = (self.lengths + 1) // 2, over  # read only where both ends are kept
        self._both = keep == "both" and bool(over.any())

    @classmethod
    def joined(cls, parts: Sequence["Texts"]) -> "Texts":
        """The texts of several, one after the other; their ids are copied, and no others."""
        parts = [part._alone() for part in parts]
        whole = cls.__new__(cls)
        whole._values = np.concatenate([part._values for part in parts])
        firsts = np.cumsum([0, *(len(part._values) for part in parts[:-1])])
        whole._starts = np.concatenate([part._starts + first for part, first in zip(parts, firsts, strict=True)])
        whole.lengths = np.concatenate([part.lengths for part in parts])
        whole._head = np.concatenate([part._head for part in parts])
        whole._gaps = np.concatenate([part._gaps for part in parts])
        whole._both = any(part._both for part in parts)
        return whole

    def chosen(self, rows: NDArray[np.int64]) -> "Texts":
        """Some of the texts, whose ids are not copied."""
        some = copy.copy(self)
        for name in ("lengths", "_starts", "_head", "_gaps"):
            setattr(some, name, getattr(self, name)[rows])
        return some

    def _alone(self) -> "Texts":
        """These texts with a copy of their own ids, where there are those of others beside them."""
        spans = self.lengths + (self._gaps if self._both else 0)
        size = int(spans.sum())
        if 2 * size >= len(self._values):  # what is saved would not be worth the indices
            return self
        own, firsts = copy.copy(self), np.cumsum(spans) - spans
        own._values = self._values[np.repeat(self._starts - firsts, spans) + np.arange(size)]
        own._starts = firsts
        return own

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.lengths)

    def __getitem__(self, row: int) -> NDArray[Any]:
        """Token ids of one text as a batch would have them."""
        return self._gather(np.array([row]), self.lengths[[row]], np.arange(self.lengths[row]))

    def pack(self, rows: NDArray[np.int64]) -> tuple[PackedSequence, NDArray[np.int64]]:
        """Pack texts, longest first; also gives the rows in the order in which they were packed."""
        rows = rows[np.argsort(-self.lengths[rows], kind="stable")]
        lengths = self.lengths[rows]
        begins = np.cumsum(lengths) - lengths
        step = np.arange(lengths.sum()) - np.repeat(begins, lengths)  # 0, 1, ... in each text
        ids = self._gather(rows, lengths, step)
        # Step t holds the texts longer than t: in sequence, every text's token at t lies after those of earlier texts.
        sizes = len(rows) - np.searchsorted(lengths[::-1], np.arange(lengths[0]), side="right")
        place = (np.cumsum(sizes) - sizes)[step] + np.repeat(np.arange(len(rows)), lengths)
        data = np.empty(len(ids), dtype=np.int64)
        data[place] = ids
        return PackedSequence(torch.from_numpy(data), torch.from_numpy(sizes)), rows

    def _gather(
        self, rows: NDArray[np.int64], lengths: NDArray[np.int64], step: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        where = np.repeat(self._starts[rows], lengths) + step
        if self._both:
            where += np.where(step >= np.repeat(self._head[rows], lengths), np.repeat(self._gaps[rows], lengths), 0)
        return self._values[where]


class TextLoader(ResumableLoader[TextBatch]):
    """Batches of texts for one rank.

    Args:
        texts: the texts.
        labels: class of each text, `(rows,)` int64; -1 where it has none.
        targets: probability of each class of each text to train on, `(rows, classes)` float32; None for the labels.
        numbers: for messages, the number of each text's row in its source, from 1; one source after the other, each by
            what its rows are called. None for the texts' own order.
        batch_size: see `plan_epoch`.
        max_tokens: see `plan_epoch`.
        shuffle: True to train, each epoch in another order; False to evaluate, always in the same order.
        seed: see `plan_epoch`.
        repeat: see `ResumableLoader`.
        rank: which rank's batches.
        world_size: number of ranks.

    Raises:
        UserError: fewer texts than ranks.
    """

    def __init__(
        self,
        texts: Texts,
        labels: NDArray[np.int64],
        *,
        targets: NDArray[np.float32] | None = None,
        numbers: Mapping[str, NDArray[np.int64]] | None = None,
        batch_size: int,
        max_tokens: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        repeat: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Count the steps; the plan is laid out when an epoch starts."""
        assert len(texts) == len(labels)
        _check_processes(len(texts), world_size)  # Lightning would pass over a loader without a batch
        assert targets is None or len(targets) == len(labels)
        self._numbers = {"training rows": np.arange(1, len(labels) + 1)} if numbers is None else numbers
        assert sum(map(len, self._numbers.values())) == len(labels)
        self._settings: dict[str, Any] = {
            "batch_size": batch_size,
            "seed": seed,
            "world_size": world_size,
            "max_tokens": max_tokens,
            "shuffle": shuffle,
        }
        size = {"rows": len(texts), "tokens": int(texts.lengths.sum())}
        super().__init__({**self._settings, **size}, repeat=repeat or not shuffle)
        self.texts = texts
        self.labels = labels
        self.targets = targets
        self.labelled = float((labels >= 0).mean())
        self.rank = rank
        self._steps = count_steps(texts.lengths, batch_size, world_size, max_tokens)

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self._steps

    def plan(self, epoch: int | None = None) -> Plan:
        """The plan of an epoch, by default the present one."""
        epoch = self.planned_epoch if epoch is None else epoch
        return plan_epoch(self.texts.lengths, epoch=epoch, **self._settings)

    def batches(self, first: int) -> Iterator[TextBatch]:
        """Packed batches with their labels and row numbers."""
        plan = self.plan()
        for step in range(first, plan.steps):
            text, rows = self.texts.pack(plan.batch(step, self.rank))
            yield TextBatch(
                text,
                torch.from_numpy(self.labels[rows]),
                torch.from_numpy(rows),
                plan.scale(step, self.rank),
                None if self.targets is None else torch.from_numpy(self.targets[rows]),
                self.labelled,
            )

    def where(self, number: int) -> str:
        """Rows of a batch, by their numbers in their sources."""
        rows = np.sort(self.plan().batch(number, self.rank))
        parts, first, shown = [], 0, 0
        for name, numbers in self._numbers.items():
            own = numbers[rows[(rows >= first) & (rows < first + len(numbers))] - first][: _SHOWN - shown].tolist()
            parts += [f"{name} {', '.join(map(str, own))}"] if own else []
            first, shown = first + len(numbers), shown + len(own)
        more = f" and {len(rows) - shown} more" if len(rows) > shown else ""
        return f"{', '.join(parts)}{more}"
