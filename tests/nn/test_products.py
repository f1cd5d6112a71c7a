"""The micro-kernel that the compiled walks call, and what they hand it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recur.nn import products

PRECISIONS = [b for b in (False, True) if products.micro_kernel(b) is not None]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(k=st.integers(1, 600), n=st.integers(1, 600), bf16=st.booleans())
def test_panels_hold_every_entry_once_and_zeros(k, n, bf16):
    matrix = torch.arange(1.0, k * n + 1).reshape(k, n) % 251  # whole numbers that bfloat16 holds
    panels, width = products.pack(matrix, bf16)
    even = k + k % 2 if bf16 else k
    flat = panels.view(torch.bfloat16).float() if bf16 else panels
    blocks = flat.reshape(-1, even // 2, width, 2).transpose(2, 3).flatten(1, 2) if bf16 else flat.view(-1, even, width)
    back = blocks.transpose(0, 1).flatten(1)  # (even, columns with padding)
    assert torch.equal(back[:k, :n], matrix)
    assert not back[k:].any() and not back[:, n:].any()


@pytest.mark.parametrize("bf16", PRECISIONS)
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (64, 256, 48), (3, 7, 5), (13, 130, 16)])
def test_a_product_adds_in_float32(m, k, n, bf16):
    torch.manual_seed(0)
    a, b, out = torch.randn(m, k), torch.randn(k, n), torch.randn(m, n)
    left, (panels, width) = products.operand(a, bf16), products.pack(b, bf16)
    assert width >= n
    want = out.double() + left[:, :k].double() @ (b.bfloat16() if bf16 else b).double()
    products._call(products.micro_kernel(bf16), left, panels, width, out, True, bf16)
    torch.testing.assert_close(out.double(), want, rtol=0, atol=1e-5 * k**0.5)


def test_bfloat16_is_rounded_as_torch_rounds():
    pytest.importorskip("numba")
    import numpy as np
    from numba import njit

    from recur.nn.jit.primitives import to_bf16

    convert = njit(lambda x: to_bf16(x))
    torch.manual_seed(0)
    values = torch.cat([torch.randn(2000), torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e38, 3.39e38, 1e-40])])
    values = torch.cat([values, torch.tensor([1.00390625, 1.01171875])])  # halfway: to even
    mine = np.array([convert(np.float32(v)) for v in values.tolist()], dtype=np.int16)
    assert torch.equal(torch.from_numpy(mine), values.bfloat16().view(torch.int16))
    assert torch.from_numpy(np.array([convert(np.float32("nan"))], dtype=np.int16)).view(torch.bfloat16).isnan().all()


def test_activations_to_rounding():
    pytest.importorskip("numba")
    import numpy as np
    from numba import njit

    from recur.nn.jit.primitives import exp, expm1, sigmoid, tanh

    x = torch.cat([torch.linspace(-30, 30, 601), torch.tensor([-200.0, 200.0, -torch.inf, torch.inf])])
    for mine, exact, bound in ((sigmoid, torch.sigmoid, 2e-7), (tanh, torch.tanh, 4e-7)):
        call = njit(lambda v, f=mine: f(v))
        got = torch.tensor([float(call(np.float32(v))) for v in x.tolist()], dtype=torch.float64)
        assert (got - exact(x.double())).abs().max() < bound
    near = torch.cat([torch.logspace(-20, 0, 101), -torch.logspace(-20, 0, 101)])
    for mine, exact in ((expm1, torch.expm1), (tanh, torch.tanh)):  # relative: what is small counts too
        call = njit(lambda v, f=mine: f(v))
        got = torch.tensor([float(call(np.float32(v))) for v in near.tolist()], dtype=torch.float64)
        assert (got / exact(near.double()) - 1).abs().max() < 5e-7
    call = njit(lambda v: exp(v))
    small = x[x.abs() <= 30]
    got = torch.tensor([float(call(np.float32(v))) for v in small.tolist()], dtype=torch.float64)
    assert (got / small.double().exp() - 1).abs().max() < 2e-7


def test_a_processor_limited_by_hand_is_not_asked_for_more(monkeypatch):
    """oneDNN would refuse the kernel by an exception that no Python frame can catch."""
    caches = (products._library, products.micro_kernel, products.bf16_pays)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    for cached in caches:
        cached.cache_clear()
    try:
        assert products.micro_kernel(False) is None
        assert products.bf16_pays() is False
    finally:
        for cached in caches:
            cached.cache_clear()


def test_the_probe_says_the_same_again():
    first = products.bf16_pays()
    products.bf16_pays.cache_clear()
    assert products.bf16_pays() == first


@pytest.mark.parametrize("bf16", PRECISIONS)
def test_the_kernel_is_recognised_whatever_torchs_default_dtype(bf16, float64_by_default):
    assert products.micro_kernel.__wrapped__(bf16) == products.micro_kernel(bf16)
