"""Every private name of torch that this package uses; `torch.nn.RNNBase` uses the same two of its cuDNN interface."""

from typing import Any

import torch
from torch import Tensor


def is_transformed() -> bool:
    """Whether a transform of `torch.func` or forward-mode differentiation is under way."""
    return bool(torch._C._are_functorch_transforms_active()) or torch.autograd.forward_ad._current_level >= 0


def is_batched(tensor: Tensor) -> bool:
    """Whether this stands for a batch of tensors, of `torch.func.vmap` or of gradients taken together."""
    internals = torch._C._functorch
    return bool(internals.is_batchedtensor(tensor) or internals.is_legacy_batchedtensor(tensor))


def cudnn_wants_flat_weights() -> bool:
    """Whether this torch lays a recurrent layer's weights out for cuDNN at all."""
    return bool(torch._use_cudnn_rnn_flatten_weight())


def flatten_for_cudnn(
    weights: list[Tensor], each: int, features: int, mode: int, hidden: int, layers: int, bidirectional: bool
) -> None:
    """Give the weights of some layers one piece of memory, in the order in which cuDNN reads them.

    Args:
        weights: on a GPU; `each` of them a direction and layer.
        each: 4 with biases, 2 without.
        features: size of the first layer's input.
        mode: cuDNN's number of the cell.
        hidden: size of the hidden state.
        layers: how many.
        bidirectional: whether there are two directions.
    """
    torch._cudnn_rnn_flatten_weight(weights, each, features, mode, hidden, 0, layers, False, bidirectional)


def unscales_gradients(optimizer: Any) -> bool:
    """Whether an optimizer divides its gradients by the scale of a float16 loss in its own step, as a fused one does.

    Until then they are multiplied by it; `torch.amp.GradScaler` asks the same.
    """
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))
