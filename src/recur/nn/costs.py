"""What a network's products cost: multiplications a token, and the rate at which a machine does them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_SIZE, _REPEATS = 1024, 3


def multiplications(net: nn.Module) -> int:
    """Multiplications a token in the matrix products of the forward pass: entries of every matrix but embeddings'.

    What is done once a text (a classifier's head) is counted as if it were done once a token; a lookup, and products of
    single features, count nothing. A matrix that two modules share counts once
    where one of them is an embedding: as what multiplies. The backward pass has two products for each.

    Args:
        net: whose parameters have the shapes of its products, as those of `recur.nn` have.
    """
    multiplied = {
        parameter: parameter.numel()
        for module in net.modules()
        if not isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
        if parameter.dim() >= 2
    }
    return sum(multiplied.values())


@contextmanager
def precision_of_cudnn() -> Iterator[None]:
    """Multiply float32 on a GPU as cuDNN's recurrence does, which takes TF32 by default where other products do not.

    The rate of exact ones is no limit for it: TF32 is several times as fast.
    """
    products, recurrence = torch.backends.cuda.matmul, torch.backends.cudnn.rnn
    before = products.fp32_precision
    products.fp32_precision = "tf32" if recurrence.fp32_precision == "tf32" else "ieee"  # type: ignore[attr-defined]
    try:
        yield
    finally:
        products.fp32_precision = before


@torch.no_grad()
def matrix_rate(dtype: torch.dtype, device: torch.device | str = "cpu") -> float:
    """Operations a second in products of large square matrices by the fastest library that torch has: some 20 ms.

    They have 1,024 rows; on a GPU, which would spend more time on starting such a product than on it, 8,192. Their
    entries are random: a GPU multiplies equal ones faster, with less power. Float32 is TF32 where cuDNN's recurrence
    takes it.

    Args:
        dtype: of the operands.
        device: where.
    """
    kind = torch.device(device).type
    size, count = (8 * _SIZE, 4) if kind == "cuda" else (_SIZE, 1)
    generator = torch.Generator(device).manual_seed(0)  # of its own: nobody else's draws change
    a = torch.randn(size, size, device=device, generator=generator).to(dtype)
    products = [lambda: torch.mm(a, a)]
    onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if kind == "cpu" and dtype == torch.float32 and onednn is not None and torch.backends.mkldnn.is_available():
        products.append(lambda: onednn(a, a, None, "none", [], ""))
    fastest = float("inf")
    for product in products:
        for _ in range(_REPEATS + 1):  # the first prepares
            began = time.perf_counter()
            with precision_of_cudnn():
                for _ in range(count):
                    product()
            if kind == "cuda":
                torch.cuda.synchronize(device)
            fastest = min(fastest, time.perf_counter() - began)
    return 2.0 * size**3 * count / fastest
