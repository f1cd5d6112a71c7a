"""Adversarial training of a text classifier: the loss under the worst small change of the word vectors.

Both kinds are those of Miyato, Dai & Goodfellow 2017, "Adversarial training methods for semi-supervised text
classification" (arXiv 1605.07725).

**Adversarial training.** With the embedded tokens v of a text and the gradient g of its loss with respect to them, the
loss at

    v + strength |v| g / |g|        (Euclidean norms over the whole text)

is added to the loss at v. Miyato et al. normalise the embeddings instead, to variance 1, and take a change of length 5:
for a text of 240 tokens in 256 dimensions that is a `strength` of .02.

**Virtual adversarial training** asks for no label, so that texts without any are trained on, too. Added is the mean
over all texts of

    KL(p(.|v) || p(.|v + r)),    r = strength |v| g / |g|,    g = gradient at d of KL(p(.|v) || p(.|v + d))

where p(.|v), what the net says of the text as it is, is a constant, and d has a random normal direction. At d = 0 the
divergence is least and its gradient 0; one step of the power iteration from a random d turns towards the direction in
which it grows fastest. In exact arithmetic any small d would do. This one is as long as r, strength |v|: the gradient
is made of the difference between both passes' probabilities, and a random change moves these some fifty times less than
r does. In a small net of five classes, d of .001 |v| under bfloat16 gave a direction whose cosine to the exact one was
.5; with .02 |v| it was .99, and r raised the divergence as much as with any shorter d in float64. All three passes drop
the same units: the change, and not the masks, is what parts them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
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


def change_along(vectors: Tensor, direction: Tensor, text: PackedSequence, strength: float) -> Tensor:
    """A change of a text's word vectors; along the gradient of its loss the one that raises it most, to first order.

    Args:
        vectors: embedded tokens, `(tokens, embedding_dim)`.
        direction: of the change of each text, likewise, of any length.
        text: the packed ids, for their layout.
        strength: length of the change, as a part of the vectors' own, over each text.

    Returns:
        `(tokens, embedding_dim)`; zeros for a text whose direction is zero.
    """
    layout = Layout(text.batch_sizes)
    place = layout.places.to(vectors.device)

    def norms(rows: Tensor) -> Tensor:
        square = rows.to(torch.promote_types(rows.dtype, torch.float32)).square().sum(1)
        return square.new_zeros(layout.batch).index_add_(0, place, square).sqrt()

    # Divided by the largest entry first: the squares of confident texts' gradients would be 0
    unit = direction / direction.abs().max().clamp(min=torch.finfo(direction.dtype).tiny)
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
        strength: see `change_along`.
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
    changed = net.classify(vectors + change_along(leaf.detach(), direction, text, strength), text)
    second = loss(changed, labels)
    return logits.detach(), first, second


def virtual_adversarial_loss(net: Classifier, text: PackedSequence, strength: float) -> tuple[Tensor, Tensor]:
    """What a net says of a batch of texts, and how far the worst change of their word vectors turns that.

    Args:
        net: in training; its masks are the same for the texts as they are and as they are changed.
        text: packed ids, longest text first.
        strength: see `change_along`.

    Returns:
        The logits, `(batch, 1)` or `(batch, num_classes)`, to differentiate; and the mean divergence in nats, of at
        least 32 bits, to differentiate, in which the probabilities of these logits are constants.
    """
    vectors = net.embed(text)  # (tokens, embedding_dim)
    fixed = vectors.detach()
    leaf = (fixed + change_along(fixed, torch.randn_like(fixed), text, strength)).requires_grad_()
    gpus = [fixed.device] if fixed.device.type == "cuda" else []
    with torch.random.fork_rng(gpus):
        logits = net.classify(vectors, text)
    with torch.random.fork_rng(gpus), _frozen(net):
        turned = net.classify(leaf, text)
        (gradient,) = torch.autograd.grad(divergences(logits.detach(), turned).sum(), turned)
        # Only a direction is wanted: of any length, hence of one that float16 holds
        gradient = gradient / gradient.abs().amax(1, keepdim=True).clamp(min=torch.finfo(gradient.dtype).tiny)
        (direction,) = torch.autograd.grad(turned, leaf, gradient)
    changed = net.classify(vectors + change_along(fixed, direction, text, strength), text)
    mean = divergences(logits.detach(), changed).mean()
    return logits, mean.to(torch.promote_types(logits.dtype, torch.float32))


def divergences(fixed: Tensor, logits: Tensor) -> Tensor:
    """KL(p || q) of each text, in nats and float64: beside 1, the probability of a sure text's class, little is lost.

    Args:
        fixed: logits of p, `(batch, 1)` for two classes, else `(batch, num_classes)`.
        logits: of q, likewise.
    """

    def logs(values: Tensor) -> Tensor:
        values = values.double()
        return (torch.cat([torch.zeros_like(values), values], 1) if values.shape[1] == 1 else values).log_softmax(1)

    return F.kl_div(logs(logits), logs(fixed), reduction="none", log_target=True).sum(1)


@contextmanager
def _frozen(net: nn.Module) -> Iterator[None]:
    """Take no gradients of a net's parameters: half of a backward pass."""
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
