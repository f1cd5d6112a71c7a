"""The fused output layer and cross-entropy of `recur.nn.losses` in the kernels of `recur.nn.jit.losses`.

A block of rows is treated in two calls, each cut by words over the threads. The first forms the logits, tile by tile,
and keeps of them exp(z - reference) alone, in the precision of the products: half the bytes in bfloat16. The second
takes the two products of the gradient; the softmax's denominators go into operands that have no word in their shape.
"""

import math
from collections.abc import Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recur.nn import compiled, products

FEWEST_WORDS = 1024
"""Fewer are not worth the kernels' preparation."""
_BUFFER_BYTES = (
    32 << 20
)  # up to which glibc keeps memory: a larger buffer would be cleared by the kernel time and again
_FEWEST_ROWS, _MOST_ROWS = 240, 512  # of a block: fewer add to W's gradient too often, more leave the cache
_TILE = 256  # words that a kernel treats at once
_WORDS_A_THREAD = 4096
_NO_LOGIT = -1e30


@cache
def _kernels() -> Any:
    from recur.nn.jit import losses

    return losses


def takes(input: Tensor, weight: Tensor, product: torch.dtype) -> bool:  # noqa: A002 - torch's own name for it
    """Whether the compiled kernels take this loss: float32 tensors on a CPU, many words, and products they have."""
    if input.device.type != "cpu" or input.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    if len(weight) < FEWEST_WORDS or not len(input) or not compiled.available(input.dtype):
        return False
    low = product == torch.bfloat16 and products.micro_kernel(True) is not None
    return product == torch.float32 or low


def _rounded(count: int, to: int) -> int:
    return -(-count // to) * to


def rows_a_block(rows: int, words: int, bf16: bool) -> int:
    """Rows a block: equal blocks, of what vectors and tiles divide."""
    unit = 32 if bf16 else 16
    fitting = _BUFFER_BYTES // (words * (2 if bf16 else 4)) // unit * unit
    most = min(max(fitting, _FEWEST_ROWS), _MOST_ROWS)
    return _rounded(-(-rows // -(-rows // most)), unit)


class _Logits(NamedTuple):
    """What the logits of a block tell; `rows` are padded, `ranges` those of the threads.

    Attributes:
        of_target: each target's logit, `(rows,)`.
        references: `(tiles, rows)`, see the kernels.
        raised: `(tiles,)` int32, see the kernels.
        total: sum over a range's words of exp(logit - its last reference), `(ranges, rows)`.
        top: the largest logit of a range, likewise; without columns unless wanted.
        likeliest: its word, int32, likewise.
    """

    of_target: Tensor
    references: Tensor
    raised: Tensor
    total: Tensor
    top: Tensor
    likeliest: Tensor


class Blocks:
    """The loss of some rows.

    Args:
        x: rows, `(rows, features)`.
        w: output weights, `(words, features)`.
        b: `(words,)` or None.
        scale: factor of the gradients.
        bf16: precision of the products.
        block: rows a block; None for what suits the sizes.
        wants: which of the gradients of x, w and b.
    """

    def __init__(
        self,
        x: Tensor,
        w: Tensor,
        b: Tensor | None,
        scale: float,
        bf16: bool,
        block: int | None,
        wants: Sequence[bool],
    ) -> None:
        self.x, self.scale, self.bf16, self.wants = x, scale, bf16, wants
        self.source, (self.words, self.features) = w.contiguous(), w.shape
        self.block = block or rows_a_block(len(x), self.words, bf16)
        self.dtype, self.unit = (torch.bfloat16, 32) if bf16 else (torch.float32, 16)
        threads = max(1, min(torch.get_num_threads(), self.words // _WORDS_A_THREAD))
        step = _rounded(-(-self.words // threads), _TILE)
        self.ranges = [(i, min(i + step, self.words)) for i in range(0, self.words, step)]
        self.ends = [(end - 1) // _TILE for _, end in self.ranges]  # their last tiles
        self.bias = w.new_zeros(self.words) if b is None else b.contiguous()
        self.depth = _rounded(self.features, 32) if bf16 else self.features  # the micro-kernel's tiles are 32 deep
        self.left = self.left_operand()
        rows = _rounded(min(self.block, len(x)), self.unit)
        kept = _rounded(self.words, 2) if any(wants) else 0
        self.p = torch.empty(kept * rows, dtype=self.dtype)
        self.scratch = x.new_empty(len(self.ranges), (_TILE + 1) * rows)
        self.grad_x = torch.empty_like(x, memory_format=torch.contiguous_format) if wants[0] else None
        self.grad_w = torch.empty_like(self.source) if wants[1] else None
        self.grad_b = torch.empty_like(self.bias) if wants[2] else None

    def left_operand(self) -> Tensor:
        """The weights, `(words, depth)`, in the precision of the products."""
        if not self.bf16:
            return self.source
        left = torch.empty(self.words, self.depth, dtype=self.dtype)
        left[:, self.features :] = 0
        source, target = (compiled.numpy_of(t) for t in (self.source, left))

        def job(begin: int, end: int) -> None:
            _kernels().left_operand(source, self.features, begin, end, self.depth, target)

        compiled.side_by_side([partial(job, *part) for part in self.ranges], math.inf)
        return left

    def padded(self, x: Tensor, columns: int) -> Tensor:
        """Rows of a block with zeros behind, and beside."""
        result = x.new_zeros(_rounded(len(x), self.unit), columns)
        result[: len(x), : x.shape[1]] = x
        return result

    def scores(self, x: Tensor, targets: Tensor, of_targets: Tensor, with_top: bool) -> _Logits:
        """Go through the logits of the rows `x`; leaves p. `of_targets` are the targets' rows of the weights."""
        matrix, count = self.padded(x, self.depth), len(self.ranges)
        rows, tiles = len(matrix), -(-self.words // _TILE)
        panel, _ = products.pack(matrix.t(), self.bf16, rows)
        logits = _Logits(
            of_target=x.new_zeros(rows),
            references=x.new_empty(tiles, rows),
            raised=torch.zeros(tiles, dtype=torch.int32),
            total=x.new_zeros(count, rows),
            top=x.new_full((count, rows if with_top else 0), _NO_LOGIT),
            likeliest=torch.zeros(count, rows if with_top else 0, dtype=torch.int32),
        )
        # The first reference is the target's logit: never above the largest one, and seldom far below.
        near = (x.to(self.dtype).float() * of_targets).sum(1).add_(self.bias[targets])
        first = x.new_full((rows,), -_NO_LOGIT)  # padding gives no p to speak of
        first[: len(x)] = near.clamp_(min=_NO_LOGIT)
        logits.references[[begin // _TILE for begin, _ in self.ranges]] = first
        words = targets.new_full((rows,), -1)
        words[: len(x)] = targets
        kernel, numpy = products.micro_kernel(self.bf16), compiled.numpy_of
        given = (self.bias, words, logits.of_target, self.p, logits.references, logits.raised)
        w, b, *shared = (numpy(t) for t in (self.left, panel, *given))
        own = [[numpy(t[i]) for t in (logits.total, self.scratch, logits.top, logits.likeliest)] for i in range(count)]

        def job(i: int) -> None:
            _kernels().scores(kernel, w, self.depth, b, rows, *self.ranges[i], *shared, *own[i])
            products.release()

        compiled.side_by_side([partial(job, i) for i in range(count)], self.work(rows))
        return logits

    def gradients(self, block: slice, logits: _Logits, to_probability: Tensor) -> None:
        """Add what a block's rows give to the gradients, all but the targets' own part.

        `to_probability` (ranges, rows) is the factor that makes p of a range a probability.
        """
        x, count = self.x[block], len(self.ranges)
        matrix = self.padded(x, self.features)
        rows = len(matrix)
        scale = x.new_zeros(count, rows)
        scale[:, : len(x)] = to_probability.mul_(self.scale)
        if self.grad_w is not None:  # what the product will read, for the one-hot part to be rounded like it
            highest = scale.amax(0)[: len(x), None]
            self.rounded[block] = (x * highest).to(self.dtype).float().mul_(self.scale / highest)
        # Where no reference was raised one operand serves all ranges.
        packed = [
            products.pack(matrix * own[:, None], self.bf16) for own in (scale if logits.raised.any() else scale[:1])
        ]
        d_x = x.new_zeros(count, self.features if self.wants[0] else 0, rows)
        kernel, numpy = products.micro_kernel(self.bf16), compiled.numpy_of
        outputs = (x.new_empty(0) if t is None else t for t in (self.grad_w, self.grad_b))
        w, p, references, raised, d_w, d_b = (
            numpy(t) for t in (self.left, self.p, logits.references, logits.raised, *outputs)
        )
        scratch = self.scratch.view(torch.int16) if self.bf16 else self.scratch
        turned = torch.empty(count, self.features * _kernels().TURNED_STRIDE, dtype=self.dtype)
        own = [[numpy(t[i]) for t in (scale, d_x, scratch, turned)] for i in range(count)]
        panels = [(numpy(matrix), width) for matrix, width in packed]

        def job(i: int) -> None:
            factor, d_own, *rooms = own[i]
            sizes = (self.depth, self.features, *panels[i % len(panels)], rows, *self.ranges[i])
            _kernels().gradients(
                kernel, w, *sizes, p, references, raised, factor, d_own, d_w, d_b, *rooms, block.start > 0
            )
            products.release()

        compiled.side_by_side([partial(job, i) for i in range(count)], 2 * self.work(rows))
        if self.grad_x is not None:
            self.grad_x[block] = d_x.mul_(scale[:, None]).sum(0)[:, : len(x)].t()

    def work(self, rows: int) -> float:
        """Multiplications of one product of some rows."""
        return 1.0 * rows * self.words * self.features

    def run(self, target: Tensor, with_correct: bool) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
        """Each row's negative log-likelihood, its correctness, and the gradients of input, weight and bias."""
        nll = self.x.new_empty(len(self.x))
        correct = torch.empty(len(self.x) if with_correct else 0, dtype=torch.bool)
        self.rounded = torch.empty_like(self.x if self.wants[1] else self.x[:0])
        of_targets = self.source.index_select(0, target).to(self.dtype).float()  # which refuses what is no word
        for start in range(0, len(self.x), self.block):
            block = slice(start, min(start + self.block, len(self.x)))
            x, y = self.x[block], target[block]
            logits = self.scores(x, y, of_targets[block], with_correct)
            last = logits.references[self.ends, : len(x)]  # (ranges, rows)
            highest = last.amax(0)
            share = (last - highest).exp_()
            total = (logits.total[:, : len(x)] * share).sum(0)  # of exp(logit - highest)
            nll[block] = total.log() + (highest - logits.of_target[: len(x)])
            if with_correct:
                which = logits.top[:, : len(x)].max(0).indices  # the first of equals
                correct[block] = logits.likeliest.gather(0, which[None])[0] == y
            if any(self.wants):
                self.gradients(block, logits, share.div_(total))
        if self.grad_x is not None:
            self.grad_x.sub_(of_targets, alpha=self.scale)
        if self.grad_w is not None:
            self.grad_w.index_add_(0, target, self.rounded, alpha=-1.0)
        if self.grad_b is not None:
            self.grad_b.index_add_(0, target, self.x.new_full((len(target),), -self.scale))
        return nll, correct, (self.grad_x, self.grad_w, self.grad_b)
