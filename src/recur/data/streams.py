"""A long text as parallel streams of tokens, cut into windows for truncated back-propagation through time.

The tokens 0 to N - 1 of a split are dealt to `batch_size * world_size` streams, each a contiguous piece; pieces differ
by one token at most, longer ones first. A stream's input is its piece moved back by one token (the first stream of all
begins with the start token), so that every token of the split is predicted exactly once, those behind a cut included:

    tokens             a b c d e f g          stream 0   inputs  ^ a b c   targets  a b c d
    two streams        a b c d | e f g        stream 1   inputs  d e f     targets  e f g

A window is the same steps of all of a rank's streams. Every rank has the same number of windows: they are counted on
the short streams, and a long stream's extra token joins the last window. Windows are a pure function of the number of
tokens and of (seed, epoch, world size); a number of windows done is then a place, all that is needed to go on there.
"""

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import PackedSequence

from recur.data.checks import Count, hold
from recur.data.loader import ResumableLoader
from recur.errors import UserError
from recur.nn.packed import TokenWindow

_SHORTEST = 5  # steps of a random window
_SHOWN = 8  # streams named in a message
_FORGET = 1 << 22  # bytes of tokens after which the pages read so far are given back


def random_lengths(steps: int, bptt: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Window lengths as AWD-LSTM draws them (Merity et al. 2018), adding up to `steps`.

    Each is N(bptt, 5), or one time in twenty N(bptt / 2, 5), and at least 5. Lightning counts an epoch's batches once,
    so every epoch has the same number of windows: the drawn lengths are stretched a little to end where the text ends.
    """
    count = max(1, round(steps / (0.95 * max(bptt, _SHORTEST) + 0.05 * max(bptt / 2, _SHORTEST))))
    middle = np.where(random.random(count) < 0.95, bptt, bptt / 2)
    drawn = np.maximum(_SHORTEST, random.normal(middle, 5.0).astype(np.int64))
    ends = np.rint(np.cumsum(drawn) * (steps / drawn.sum())).astype(np.int64)
    return np.diff(ends, prepend=0)


class StreamLoader(ResumableLoader[TokenWindow]):
    """Windows of one rank's streams, in order.

    Args:
        tokens: ids of the split, `(tokens,)`, usually memory-mapped; only the present windows are held in memory.
        batch_size: streams a rank.
        bptt: steps of a window.
        start_id: what stands before the first token.
        random_length: draw each window's length (see `random_lengths`) and report it in `TokenWindow.lr_scale`.
        seed: of the random lengths.
        repeat: see `ResumableLoader`.
        rank: whose streams.
        world_size: number of ranks.

    Raises:
        UserError: fewer tokens than streams.
    """

    def __init__(
        self,
        tokens: NDArray[Any],
        *,
        batch_size: Count,
        bptt: Count,
        start_id: int = 0,
        random_length: bool = False,
        seed: int = 0,
        repeat: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Deal the tokens to streams."""
        hold(StreamLoader.__init__, {"batch_size": batch_size, "bptt": bptt})
        streams = batch_size * world_size
        if len(tokens) < streams:
            raise UserError(
                "batch_size",
                batch_size,
                f"must be at most {len(tokens) // world_size} for {len(tokens)} tokens and {world_size} process(es)",
                "lower it, or give more text",
            )
        super().__init__(
            {
                "batch_size": batch_size,
                "bptt": bptt,
                "random_length": random_length,
                "seed": seed,
                "world_size": world_size,
                "tokens": len(tokens),
            },
            repeat=repeat,
        )
        self._map: Any = getattr(tokens, "_mmap", None)
        self._tokens = np.asarray(tokens)  # a view: indexing a memmap object is slower than an array's
        self.bptt, self.start_id, self.rank = bptt, start_id, rank
        self._steps, longer = divmod(len(tokens), streams)  # steps of a short stream; streams with one more
        own = np.arange(rank * batch_size, (rank + 1) * batch_size)
        self._starts = own * self._steps + np.minimum(own, longer)  # (streams,)
        self._longer = int(np.clip(longer - rank * batch_size, 0, batch_size))
        self._mean_longer = longer / world_size

    def __len__(self) -> int:
        """Windows of an epoch."""
        return len(self.lengths())

    def lengths(self) -> NDArray[np.int64]:
        """Steps of each window of the present epoch, `(windows,)`; the last may have one more on some ranks."""
        if self._plan["random_length"]:
            return random_lengths(
                self._steps, self.bptt, np.random.default_rng([self._plan["seed"], self.planned_epoch])
            )
        full, rest = divmod(self._steps, self.bptt)
        return np.array([self.bptt] * full + [rest] * (rest > 0), dtype=np.int64)

    def where(self, number: int) -> str:
        """Which tokens of the split a window of the present epoch has."""
        lengths = self.lengths()
        first = int(lengths[:number].sum())
        starts = ", ".join(str(start + first) for start in self._starts[:_SHOWN])
        more = f" and {len(self._starts) - _SHOWN} more" if len(self._starts) > _SHOWN else ""
        return f"the {int(lengths[number])} training tokens from {starts}{more}, a stream each"

    def batches(self, first: int) -> Iterator[TokenWindow]:
        """Consecutive windows of this rank's streams."""
        lengths = self.lengths()
        starts = np.cumsum(lengths) - lengths
        read = 0
        for number in range(first, len(lengths)):
            steps, start = int(lengths[number]), int(starts[number])
            last = number == len(lengths) - 1
            window = self._window(start, steps, float(lengths[number] / self.bptt), last=last)
            read += len(window.targets) * self._tokens.itemsize
            if self._map is not None and read > _FORGET:
                # Pages stay in the file cache; only this process no longer counts (and holds) all it ever read.
                self._map.madvise(mmap.MADV_DONTNEED)
                read = 0
            yield window

    def _window(self, start: int, steps: int, lr_scale: float, *, last: bool) -> TokenWindow:
        streams, extra = len(self._starts), self._longer if last else 0
        where = self._starts + np.arange(start - 1, start + steps + (extra > 0))[:, None]  # (steps + 1, streams)
        ids = self._tokens[np.minimum(where, len(self._tokens) - 1)].astype(np.int64)
        if where[0, 0] < 0:
            ids[0, 0] = self.start_id
        rows = steps * streams + extra  # the extra step has the first streams only
        sizes = torch.full((steps + (extra > 0),), streams, dtype=torch.int64)
        if extra:
            sizes[-1] = extra
        inputs = torch.from_numpy(ids[:-1].reshape(-1)[:rows])
        targets = torch.from_numpy(ids[1:].reshape(-1)[:rows])
        mean_rows = steps * streams + (self._mean_longer if last else 0)
        return TokenWindow(
            PackedSequence(inputs, sizes),
            targets,
            first=start == 0,
            lr_scale=lr_scale if self._plan["random_length"] else 1.0,
            scale=rows / mean_rows,
        )


class WindowLoader(ResumableLoader[TokenWindow]):
    """Every run of `window` tokens with the token that follows, each starting from an empty state.

    `TokenWindow.targets` has one id a window: the rows of the last step are the ones that predict.

    Args:
        tokens: ids of the split, `(tokens,)`.
        window: tokens of a window.
        batch_size: windows a batch and rank.
        shuffle: another order each epoch.
        seed: of the order.
        repeat: see `ResumableLoader`.
        rank: whose windows.
        world_size: number of ranks.

    Raises:
        UserError: a text too short for one window a rank.
    """

    def __init__(
        self,
        tokens: NDArray[Any],
        *,
        window: Count,
        batch_size: Count,
        shuffle: bool = False,
        seed: int = 0,
        repeat: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Count the windows."""
        hold(WindowLoader.__init__, {"batch_size": batch_size, "window": window})
        self._count = len(tokens) - window
        if self._count < world_size:
            raise UserError(
                "window",
                window,
                f"must leave a next token for each of {world_size} process(es) in {len(tokens)} tokens",
                "lower it, or give more text",
            )
        super().__init__(
            {
                "batch_size": batch_size,
                "window": window,
                "shuffle": shuffle,
                "seed": seed,
                "world_size": world_size,
                "tokens": len(tokens),
            },
            repeat=repeat,
        )
        self._tokens = np.asarray(tokens)
        self.rank = rank

    def __len__(self) -> int:
        """Batches of an epoch."""
        world_size = self._plan["world_size"]
        return min(-(-self._count // (self._plan["batch_size"] * world_size)), self._count // world_size)

    def _batches(self) -> list[NDArray[np.int64]]:
        """First tokens of the windows of every step and rank."""
        order = np.arange(self._count)
        if self._plan["shuffle"]:
            order = np.random.default_rng([self._plan["seed"], self.planned_epoch]).permutation(self._count)
        return np.array_split(order, len(self) * self._plan["world_size"])

    def where(self, number: int) -> str:
        """Which tokens of the split a batch of the present epoch has."""
        starts = self._batches()[number * self._plan["world_size"] + self.rank]
        more = f" and {len(starts) - _SHOWN} more" if len(starts) > _SHOWN else ""
        return f"windows from the training tokens {', '.join(map(str, starts[:_SHOWN]))}{more}"

    def batches(self, first: int) -> Iterator[TokenWindow]:
        """Batches of windows, each from an empty state."""
        settings, world_size = self._plan, self._plan["world_size"]
        batches = self._batches()
        for step in range(first, len(self)):
            of_ranks = batches[step * world_size : (step + 1) * world_size]
            starts = of_ranks[self.rank]
            scale = len(starts) * world_size / sum(map(len, of_ranks))
            ids = self._tokens[starts + np.arange(settings["window"] + 1)[:, None]].astype(np.int64)  # (time, batch)
            sizes = torch.full((settings["window"],), len(starts), dtype=torch.int64)
            text = PackedSequence(torch.from_numpy(ids[:-1].reshape(-1)), sizes)
            yield TokenWindow(text, torch.from_numpy(ids[-1]), first=True, lr_scale=1.0, scale=scale)
