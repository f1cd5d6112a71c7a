"""The output layer and its cross-entropy as one function that never holds the full matrix of probabilities.

For an input row $x$, output weights $W$ (vocabulary, features), bias $b$ and target $y$:

    z = W x + b,    nll = log(sum_j exp z_j) - z_y,    d nll / d z = softmax(z) - onehot(y) =: g
    d nll / d x = W^T g,    d nll / d W = g x^T,    d nll / d b = g

`F.cross_entropy(F.linear(x, W, b), y)` keeps `z`, `log softmax(z)` and their gradient for all rows at once: at 5600
rows and 33,278 words, 745 MB each, written and read several times over. Here a block of rows goes through all of it
while it is at hand: its logits become its probabilities in place, the two gradient products are taken at once, and the
same buffer serves the next block. The arithmetic is the same (three matrix products), the result exact.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recur.nn import compiled_loss
from recur.nn.differentiation import differentiable_once

# Measured at 33,278 words on two Zen 4 cores: below 200 rows the gradient of W is added up too often, above 250 the
# buffer is larger than the 32 MiB up to which glibc keeps memory, and each block's is cleared by the kernel anew. Wide
# inputs make that gradient larger, so the block grows with them. A GPU wants longer products.
_MINIMUM_ROWS = {"cpu": 240, "cuda": 1024}
_BUFFER_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20}
# On a CPU, torch's product x W^T is slow for many words: it runs 1.4 times as fast in stripes of the vocabulary.
# oneDNN's, which torch has for float32 but does not take by itself, is 1.5 times as fast again on a Zen 4 (17 against
# 27 ms for 234 rows); the two products of the gradient gain too little to pay for their turned layouts.
_COLUMNS = {"cpu": 1024}
_ONEDNN_LINEAR: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


class TokenLoss(NamedTuple):
    """What one pass over the output layer tells.

    Attributes:
        loss: scalar to differentiate, nats (mean or sum over the rows).
        nll: negative log-likelihood of each target in nats, `(rows,)`, detached.
        correct: whether the likeliest entry is the target, `(rows,)` bool, detached; None unless asked for.
    """

    loss: Tensor
    nll: Tensor
    correct: Tensor | None


def linear_cross_entropy(
    input: Tensor,  # noqa: A002 - torch's own name for it
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    reduction: str = "mean",
    with_correct: bool = False,
    chunk_rows: int | None = None,
) -> TokenLoss:
    """Cross-entropy of `softmax(input @ weight.T + bias)` against `target`, exact, in blocks of rows.

    The gradients are formed during the forward pass and need no second product in the backward pass; a second
    derivative is not available. Under autocast the products run in its dtype, the softmax in float32.

    Args:
        input: rows before the output layer, `(rows, features)`.
        weight: output weights, `(vocabulary, features)`.
        bias: `(vocabulary,)` or None.
        target: class of each row, `(rows,)` int64, every value in `[0, vocabulary)`.
        reduction: "mean" or "sum" over the rows. No rows at all give 0 for either.
        with_correct: also tell which targets are the likeliest entry; costs one more reading of the probabilities.
        chunk_rows: rows a block; by default chosen from the sizes and the device.

    Returns:
        Loss, and each row's negative log-likelihood (and correctness) for metrics without a second pass.

    Raises:
        ValueError: on shapes that do not fit or an unknown reduction.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is mean or sum, got {reduction!r}")
    if input.dim() != 2 or weight.dim() != 2 or input.shape[1] != weight.shape[1]:
        raise ValueError(
            f"input (rows, features) and weight (vocabulary, features) must share their features, got "
            f"{tuple(input.shape)} and {tuple(weight.shape)}"
        )
    if target.shape != input.shape[:1]:
        raise ValueError(f"target must give one class for each of {len(input)} rows, got shape {tuple(target.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be ({len(weight)},), got {tuple(bias.shape)}")
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows must be at least 1, got {chunk_rows}")
    loss, nll, correct = _LinearCrossEntropy.apply(
        input, weight, bias, target, reduction == "mean", with_correct, chunk_rows, torch.is_grad_enabled()
    )
    return TokenLoss(loss, nll, correct if with_correct else None)


def block_rows(rows: int, features: int, vocabulary: int, itemsize: int, device: str) -> int:
    """Rows a block: equal blocks, none above what keeps both the buffer and the traffic of W's gradient small."""
    minimum = _MINIMUM_ROWS.get(device, 1024)
    buffer = _BUFFER_BYTES.get(device, 256 << 20)
    most = max(minimum, min(features, 2 * minimum), buffer // (vocabulary * itemsize))
    blocks = -(-rows // most)
    return -(-rows // max(blocks, 1))


def _own_product(device: str, dtype: torch.dtype, vocabulary: int) -> bool:
    """Whether the logits come from oneDNN, in memory of its own."""
    if _ONEDNN_LINEAR is None or not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    return device == "cpu" and dtype == torch.float32 and vocabulary > _COLUMNS["cpu"]


def _logits(x: Tensor, w: Tensor, b: Tensor | None, out: Tensor | None) -> Tensor:
    """`x W^T + b`, `(rows, vocabulary)`: into `out`, or where that is None from oneDNN."""
    if out is None:
        result: Tensor = _ONEDNN_LINEAR(x, w, b, "none", [], "")
        return result
    columns = _COLUMNS.get(x.device.type, len(w))
    for j in range(0, len(w), columns):
        stripe = slice(j, j + columns)
        if b is None:
            torch.mm(x, w[stripe].t(), out=out[:, stripe])
        else:
            torch.addmm(b[stripe], x, w[stripe].t(), out=out[:, stripe])
    return out


def _by_kernels(
    ctx: Any, tensors: tuple[Tensor, Tensor, Tensor | None], target: Tensor, sizes: Any, with_correct: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What `_LinearCrossEntropy.forward` returns, and the gradients it keeps; `sizes` go to `Blocks`."""
    with torch.autocast("cpu", enabled=False):
        x, w, b = tensors
        own_bias = None if b is None else b.detach()
        nll, correct, gradients = compiled_loss.Blocks(x.detach(), w.detach(), own_bias, *sizes).run(
            target, with_correct
        )
    ctx.dtypes = [None if t is None else t.dtype for t in tensors]
    ctx.save_for_backward(*gradients)
    ctx.mark_non_differentiable(nll, correct)
    return nll.sum() * sizes[0], nll, correct


def _kept(tensor: Tensor, exact: torch.dtype) -> torch.dtype:
    """In what a gradient waits for the backward pass: float16 has no room for it before a loss scaler's factor."""
    return exact if tensor.dtype == torch.float16 else tensor.dtype


def _look_again(nll: Tensor, lost: Tensor, of_all: tuple[Tensor, Tensor, Tensor | None, Tensor], step: int) -> None:
    """Take some rows' losses once more, from their logits."""
    x, w, b, target = of_all
    again = lost.nonzero().squeeze(1)
    for some in again.split(step) if len(again) else ():
        z = nn.functional.linear(x[some], w, b).to(nll.dtype)
        nll[some] = nn.functional.cross_entropy(z, target[some], reduction="none")


def _in_logarithms(device: str) -> bool:
    """Whether to take logarithms of probabilities first.

    It is a pass more over the products. A GPU need not wait for it, as it would for what is looked at a second time.
    """
    return device != "cpu"


class _LinearCrossEntropy(torch.autograd.Function):
    """See the head of this file; `loss` is differentiable, `nll` and `correct` are not."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,  # noqa: A002
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        mean: bool,
        with_correct: bool,
        chunk_rows: int | None,
        training: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        (rows, features), vocabulary, device = input.shape, len(weight), input.device.type
        product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
        exact = torch.promote_types(product, torch.float32)  # of the softmax: float32 or float64
        scale = 1.0 / max(rows, 1) if mean else 1.0
        # needs_input_grad says what requires a gradient, under no_grad too, where none will be asked for
        want_input, want_weight, want_bias = (training and needed for needed in ctx.needs_input_grad[:3])
        if compiled_loss.takes(input, weight, product):
            wants = (want_input, want_weight, want_bias and bias is not None)
            sizes = (scale, product == torch.bfloat16, chunk_rows, wants)
            return _by_kernels(ctx, (input, weight, bias), target, sizes, with_correct)

        with torch.autocast(device, enabled=False):
            x_all, w = input.to(product), weight.to(product)
            b = None if bias is None else bias.to(product)
            grad_input = input.new_empty(rows, features, dtype=_kept(input, exact)) if want_input else None
            fresh = torch.empty_like if rows else torch.zeros_like  # the first block writes, the others add
            grad_weight = fresh(weight, dtype=exact) if want_weight else None
            grad_bias = torch.zeros_like(bias, dtype=exact) if bias is not None and want_bias else None
            of_target = torch.empty(rows, dtype=exact, device=input.device)  # probability of each target, or its log
            softmax = torch.log_softmax if (in_logarithms := _in_logarithms(device)) else torch.softmax
            correct = torch.empty(rows if with_correct else 0, dtype=torch.bool, device=input.device)

            step = chunk_rows or block_rows(rows, features, vocabulary, exact.itemsize, device)
            own = _own_product(device, product, vocabulary)
            buffer = None if own else torch.empty(min(step, rows), vocabulary, dtype=product, device=input.device)
            for start in range(0, rows, max(step, 1)):
                x, y = x_all[start : start + step], target[start : start + step]
                block = slice(start, start + len(y))
                z = q = p = None  # the block before is done with: its memory serves this one
                z = _logits(x, w, b, None if buffer is None else buffer[: len(y)])  # (block, vocabulary)
                q = z.to(exact)
                softmax(q, 1, out=q)
                of_target[block] = q.gather(1, y[:, None]).squeeze(1)
                if with_correct:
                    correct[block] = q.argmax(1) == y
                if not (want_input or want_weight or want_bias):
                    continue
                q = q.exp_() if in_logarithms else q
                # softmax - onehot, before it is rounded: of a target that the model is sure of little is left.
                q[torch.arange(len(y), device=q.device), y] -= 1
                p = q.to(product)
                # Scaled after the product: a probability divided by the number of rows would underflow in float16.
                if grad_input is not None:
                    grad_input[block] = torch.mm(p, w).to(exact).mul_(scale)
                if grad_weight is not None:
                    if product == exact:
                        grad_weight.addmm_(p.t(), x, beta=float(start > 0), alpha=scale)
                    elif start:
                        grad_weight.add_(torch.mm(p.t(), x), alpha=scale)
                    else:
                        grad_weight.copy_(torch.mm(p.t(), x)).mul_(scale)
                if grad_bias is not None:
                    grad_bias.addmv_(q.t(), q.new_ones(len(y)), alpha=scale)  # faster than a sum over rows
            nll = -of_target if in_logarithms else -of_target.log()
            if not in_logarithms:
                lost = of_target < 1e3 * torch.finfo(exact).tiny  # too unlikely to hold digits
                _look_again(nll, lost, (x_all, w, b, target), max(step, 1))
            loss = nll.sum() * scale

        if grad_weight is not None:
            grad_weight = grad_weight.to(_kept(weight, exact))
        if grad_bias is not None and bias is not None:
            grad_bias = grad_bias.to(_kept(bias, exact))
        ctx.dtypes = [input.dtype, weight.dtype, None if bias is None else bias.dtype]
        ctx.save_for_backward(grad_input, grad_weight, grad_bias)
        ctx.mark_non_differentiable(nll, correct)
        return loss, nll, correct

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        grads = ctx.saved_tensors
        # The usual factor is 1: hand the stored tensors over as they are, and autograd need not copy a large one.
        # On a GPU, asking would wait for the device, and the product costs next to nothing.
        if grad_loss.device.type != "cpu" or grad_loss.item() != 1.0:
            grads = tuple(None if grad is None else grad * grad_loss for grad in grads)
        own = (None if grad is None else grad.to(dtype) for grad, dtype in zip(grads, ctx.dtypes, strict=True))
        return *own, None, None, None, None, None
