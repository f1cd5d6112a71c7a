"""Backward passes written by hand, of which there is no derivative."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recur.nn import torch_internals


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Make a second derivative an error, whatever the gradient that comes in.

    torch's `once_differentiable` raises only where the incoming gradient is itself differentiable. With a constant one,
    as from a mean or a sum, the derivative of a penalty on the gradient would be 0, without a word.

    Args:
        backward: of a `torch.autograd.Function`.
    """
    once = once_differentiable(backward)

    @functools.wraps(backward)
    def guarded(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():  # a graph of the gradients is wanted
            gradients = tuple(
                part.detach().requires_grad_() if isinstance(part, Tensor) and part.is_floating_point() else part
                for part in gradients
            )
        return once(ctx, *gradients)

    return guarded


def one_gradient_at_a_time(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse several gradients as one batch, `is_grads_batched` or `vectorize` of torch, which kernels cannot read.

    Args:
        backward: of a `torch.autograd.Function`.
    """

    @functools.wraps(backward)
    def guarded(ctx: Any, *gradients: Any) -> Any:
        if any(isinstance(part, Tensor) and torch_internals.is_batched(part) for part in gradients):
            raise RuntimeError("batched gradients need engine='torch', or float64 with a cell that torch has not")
        return backward(ctx, *gradients)

    return guarded
