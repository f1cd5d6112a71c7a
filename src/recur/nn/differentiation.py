"""Backward passes written by hand, of which there is no derivative."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


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
