"""The batch types in which data and tasks meet: packed from the collate function to the loss.

A batch of variable-length text is a `torch.nn.utils.rnn.PackedSequence` of token ids. Its rows lie time-major: the
first tokens of all sequences, then the second tokens of those that have one, and so on; `batch_sizes[t]` says how many
sequences still run at step `t` and always lives on the CPU. There are no pad tokens, masks or length tensors.
"""

import math
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

CHUNK_ROWS = 256


@runtime_checkable
class Batch(Protocol):
    """What the batches of both families have.

    Attributes:
        text: token ids, packed.
        unit: what a sequence of `text` is, in the plural: `texts` or `streams`.
    """

    @property
    def text(self) -> PackedSequence:
        """Token ids, packed."""
        ...

    @property
    def unit(self) -> str:
        """What a sequence is, in the plural."""
        ...


class TextBatch(NamedTuple):
    """Texts with their labels, longest first.

    Attributes:
        text: token ids, `data` of shape `(tokens,)` int64. Built already sorted, so its `sorted_indices` is None.
        labels: class of each text, `(batch,)` int64, in the packed order (longest text first); -1 where it has none.
        rows: number of each text's row in its split, `(batch,)` int64, same order.
        scale: texts in this batch over the mean number of all ranks' in this step. Ranks have equally many tokens and
            so unequally many texts: a mean loss times `scale`, averaged over ranks, is the mean over the step's texts.
        targets: probability of each class to train on, `(batch, classes)` float32, where a model gave it; None where
            `labels` say it all. `labels` then has the most probable class.
        labelled: part of all texts that are trained on that have a label, above 0: a batch of n texts has n times as
            many on average. Where it is 1, none lacks a label.
    """

    text: PackedSequence
    labels: Tensor
    rows: Tensor
    scale: float = 1.0
    targets: Tensor | None = None
    labelled: float = 1.0

    @property
    def unit(self) -> str:
        """What a sequence is, in the plural."""
        return "texts"


class TokenWindow(NamedTuple):
    """A window of parallel token streams for truncated back-propagation through time.

    Attributes:
        text: input ids, `data` of shape `(tokens,)` int64; every step has all streams, but the last step of the last
            window may lack those that are a token shorter.
        targets: the id that follows each input id, `(tokens,)` int64, in the same packed row order. Where only the last
            step of each sequence predicts, it has that step's rows alone, `(sequences,)`.
        first: True where the streams begin, so that the carried state must be dropped.
        lr_scale: factor for this step's learning rate (window length / nominal `bptt`, 1 where windows are fixed).
        scale: targets of this window over the mean number of all ranks' in this step, as in `TextBatch`.
    """

    text: PackedSequence
    targets: Tensor
    first: bool
    lr_scale: float
    scale: float = 1.0

    @property
    def unit(self) -> str:
        """What a sequence is, in the plural."""
        return "streams"


class Layout:
    """Where the rows of a packed batch lie: one for all layers of a stack.

    Args:
        batch_sizes: `(time,)` int64 on the CPU, non-increasing, as in `PackedSequence.batch_sizes`.

    Raises:
        ValueError: they increase, or one is below 1: some rows would never be written.
    """

    def __init__(self, batch_sizes: Tensor) -> None:
        self.batch_sizes = batch_sizes
        self.sizes: list[int] = batch_sizes.tolist()
        self.batch = self.sizes[0]
        self.rows = sum(self.sizes)
        if self.sizes[-1] < 1 or any(former < latter for former, latter in pairwise(self.sizes)):
            shown = ", ".join(map(str, self.sizes[:8])) + (", ..." if len(self.sizes) > 8 else "")
            raise ValueError(f"batch sizes must not increase and be at least 1, got {shown}")

    @cached_property
    def chunks(self) -> list[tuple[list[int], int, int]]:
        """Runs of steps of at most `CHUNK_ROWS` rows (but at least one step): `(sizes, first row, end row)`."""
        chunks: list[tuple[list[int], int, int]] = []
        start, first, rows = 0, 0, 0
        for step, size in enumerate(self.sizes):
            if rows and rows + size > CHUNK_ROWS:
                chunks.append((self.sizes[start:step], first, first + rows))
                start, first, rows = step, first + rows, 0
            rows += size
        chunks.append((self.sizes[start:], first, first + rows))
        return chunks

    @cached_property
    def bounds(self) -> Tensor:
        """First row of each step, then the number of rows, `(time + 1,)`."""
        return torch.cat([self._offsets, torch.tensor([self.rows])])

    @cached_property
    def _offsets(self) -> Tensor:
        """First row of each step, `(time,)`."""
        return self.batch_sizes.cumsum(0) - self.batch_sizes

    @cached_property
    def _steps(self) -> Tensor:
        """Which step each row belongs to, `(rows,)`."""
        return torch.repeat_interleave(torch.arange(len(self.sizes)), self.batch_sizes, output_size=self.rows)

    @cached_property
    def places(self) -> Tensor:
        """Which sequence each row belongs to, `(rows,)`, on the CPU."""
        return torch.arange(self.rows) - self._offsets[self._steps]

    @property
    def even(self) -> bool:
        """Whether all sequences have the same length."""
        return self.sizes[-1] == self.batch

    @cached_property
    def lengths(self) -> Tensor:
        """Length of each sequence, `(batch,)`, longest first."""
        places = torch.arange(self.batch)
        return len(self.sizes) - torch.searchsorted(self.batch_sizes.flip(0).contiguous(), places, right=True)

    @cached_property
    def last_rows(self) -> Tensor:
        """Row of each sequence's last step, `(batch,)`."""
        return self._offsets[self.lengths - 1] + torch.arange(self.batch)

    def entry_rows(self, reverse: bool) -> Tensor:
        """Row at which the walk meets each sequence first, `(batch,)`."""
        return self.last_rows if reverse else torch.arange(self.batch)

    def final_rows(self, reverse: bool) -> Tensor:
        """Row at which the walk leaves each sequence, `(batch,)`."""
        return self.entry_rows(not reverse)

    def previous_rows(self, reverse: bool) -> Tensor:
        """Row the walk visited before each row of the same sequence, `(rows,)`; anything at the entry rows."""
        steps = self._steps + 1 if reverse else self._steps - 1
        return (self._offsets[steps.clamp(0, len(self.sizes) - 1)] + self.places).clamp_(max=self.rows - 1)


class _MaxOverTime(torch.autograd.Function):
    """Largest value of each feature over the steps of each packed sequence.

    A running maximum over contiguous slices: no pads are made, and only the winning row numbers are kept for the
    backward pass, where each output's gradient goes to the first row that attained the maximum.
    """

    @staticmethod
    def forward(ctx, data: Tensor, layout: Layout) -> Tensor:  # type: ignore[no-untyped-def]
        sizes = layout.sizes
        best = data[: sizes[0]].clone()  # (batch, features)
        keep = ctx.needs_input_grad[0]
        winner = torch.arange(sizes[0], device=data.device)[:, None].repeat(1, data.shape[1]) if keep else None
        start = sizes[0]
        for size in sizes[1:]:
            rows = data[start : start + size]
            if winner is not None:
                higher = rows > best[:size]
                numbers = torch.arange(start, start + size, device=data.device)[:, None]
                torch.where(higher, numbers, winner[:size], out=winner[:size])
            torch.maximum(best[:size], rows, out=best[:size])
            start += size
        if winner is not None:
            ctx.save_for_backward(winner)
            ctx.rows = data.shape[0]
        return best

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        (winner,) = ctx.saved_tensors
        full = gradient.new_zeros(ctx.rows, gradient.shape[1])
        return full.scatter_(0, winner, gradient), None


class _SumOverTime(torch.autograd.Function):
    """Sum of each feature over the steps of each packed sequence, a contiguous slice at a time; at least float32."""

    @staticmethod
    def forward(ctx, data: Tensor, layout: Layout) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.layout = layout
        sizes = layout.sizes
        ctx.dtype = data.dtype
        wide = torch.promote_types(data.dtype, torch.float32)  # a sum of bfloat16 numbers soon stands still
        total = data[: sizes[0]].to(wide, copy=True)  # (batch, features)
        for rows in data[sizes[0] :].split(sizes[1:]):
            total[: len(rows)] += rows
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        return gradient.to(ctx.dtype)[ctx.layout.places.to(gradient.device)], None


def max_over_time(packed: PackedSequence) -> Tensor:
    """Maximum over the steps of each sequence: `(rows, features)` packed to `(batch, features)` in packed order."""
    if packed.data.is_cuda:  # one wide kernel beats a launch a step
        dense = torch.nn.utils.rnn.pad_packed_sequence(
            PackedSequence(packed.data, packed.batch_sizes), padding_value=-math.inf
        )[0]  # (time, batch, features)
        return dense.max(0).values
    result: Tensor = _MaxOverTime.apply(packed.data, Layout(packed.batch_sizes))
    return result


def mean_over_time(packed: PackedSequence) -> Tensor:
    """Mean over the steps of each sequence: `(rows, features)` packed to `(batch, features)` in packed order.

    Numbers of less than 32 bits are summed and given as float32.
    """
    layout = Layout(packed.batch_sizes)
    total: Tensor = _SumOverTime.apply(packed.data, layout)
    return total / layout.lengths.to(total)[:, None]
