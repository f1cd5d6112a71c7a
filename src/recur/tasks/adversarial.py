"""Adversarial training of a text classifier: the loss under the worst small change of the word vectors (Miyato 2017).

With the embedded tokens v of a text and the gradient g of its loss with respect to them, the loss at

    v + strength |v| g / |g|        (Euclidean norms over the whole text)

is added to the loss at v. Miyato et al. normalise the embeddings instead, to variance 1, and take a change of length 5:
for a text of 240 tokens in 256 dimensions that is a `strength` of .02.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from recur.nn.classifier import Classifier
from recur.nn.differentiation import differentiable_once
from recur.nn.packed import Layout


class _WithGradients(torch.autograd.Function):
    """A number whose gradients with respect to some tensors are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int, *tensors: Tensor) -> Tensor:
        """`tensors` are `count` gradients and then what they belong to."""
        ctx.save_for_backward(*tensors[:count])
        return value.clone()

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        known = ctx.saved_tensors
        return None, None, *[None] * len(known), *[gradient * factor for gradient in known]


def worst_change(vectors: Tensor, gradient: Tensor, text: PackedSequence, strength: float) -> Tensor:
    """The change of a text's word vectors that raises its loss most, to first order.

    Args:
        vectors: embedded tokens, `(tokens, embedding_dim)`.
        gradient: of the loss with respect to them.
        text: the packed ids, for their layout.
        strength: length of the change, as a part of the vectors' own, over each text.

    Returns:
        `(tokens, embedding_dim)`; zeros for a text whose gradient is zero.
    """
    layout = Layout(text.batch_sizes)
    place = layout.places.to(vectors.device)

    def norms(rows: Tensor) -> Tensor:
        square = rows.to(torch.promote_types(rows.dtype, torch.float32)).square().sum(1)
        return square.new_zeros(layout.batch).index_add_(0, place, square).sqrt()

    # Divided by the largest entry first: the squares of confident texts' gradients would be 0
    unit = gradient / gradient.abs().max().clamp(min=torch.finfo(gradient.dtype).tiny)
    length = norms(unit)
    factor = torch.where(length > 0, strength * norms(vectors) / length.clamp(min=1e-30), length)
    return (unit * factor[place][:, None]).to(vectors.dtype)  # norms of 16 bits are taken in float32


def adversarial_loss(
    net: Classifier,
    text: PackedSequence,
    labels: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    strength: float,
    scale: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A batch's loss, and its loss under the worst change of its word vectors.

    The gradient of the first is taken once, for the change and for the step.

    Args:
        net: in training; the second pass draws dropout masks of its own behind the embedding.
        text: packed ids, longest text first.
        labels: `(batch,)`, in the packed order.
        loss: of logits and labels.
        strength: see `worst_change`.
        scale: what multiplies the step's loss before it is differentiated, float16's loss scaler; None for nothing.

    Returns:
        The logits, `(batch, 1)` or `(batch, num_classes)`; the loss, to differentiate; and the loss under the change,
        to differentiate.
    """
    vectors = net.embed(text)  # (tokens, embedding_dim)
    leaf = vectors.detach().requires_grad_()
    logits = net.classify(leaf, text)
    clean = loss(logits, labels)
    parameters = [p for name, p in net.named_parameters() if p.requires_grad and not name.startswith("embedding.")]
    # This gradient is taken before the scaler sees the step's loss, and would be 0 in float16 without it
    factor = None if scale is None else scale(torch.ones_like(clean))
    gradients = torch.autograd.grad(clean, [leaf, *parameters], factor, allow_unused=True)
    if factor is not None:
        gradients = tuple(None if g is None else g / factor for g in gradients)
    used = [(g, p) for g, p in zip(gradients[1:], parameters, strict=True) if g is not None]
    at_vectors = direction = gradients[0]
    if factor is not None:  # what overflowed has no direction; the scaler, not a loss of NaN, ends such a step
        direction = at_vectors.nan_to_num(0.0, 0.0, 0.0)
    owners: list[Tensor | nn.Parameter] = [vectors, *[p for _, p in used]]
    known = [at_vectors, *[g for g, _ in used]]
    first = _WithGradients.apply(clean.detach(), len(known), *known, *owners)
    changed = net.classify(vectors + worst_change(leaf.detach(), direction, text, strength), text)
    second = loss(changed, labels)
    return logits.detach(), first, second
