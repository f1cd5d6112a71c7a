"""The compiled loss against float64: any shape, any reach of the logits, any number of threads, both precisions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from recur.nn import compiled, compiled_loss, products
from recur.nn.compiled_loss import rows_a_block
from recur.nn.losses import linear_cross_entropy

pytest.importorskip("numba")
pytestmark = pytest.mark.skipif(not compiled.available(torch.float32), reason="no compiled kernels on this machine")
PRECISIONS = [b for b in (False, True) if products.micro_kernel(b) is not None]


def problem(rows, features, words, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, w = torch.randn(rows, features, generator=generator), torch.randn(words, features, generator=generator)
    b = torch.randn(words, generator=generator)
    return x, w * features**-0.5, b, torch.randint(words, (rows,), generator=generator)


def exact(x, w, b, y):
    """Negative log-likelihoods and gradients of their mean, in float64."""
    leaves = [t.double().requires_grad_() for t in (x, w, b) if t is not None]
    nll = F.cross_entropy(F.linear(*leaves), y, reduction="none")
    return nll.detach(), torch.autograd.grad(nll.mean(), leaves)


def fused(x, w, b, y, bf16=False, **options):
    leaves = [t.clone().requires_grad_() for t in (x, w, b) if t is not None]
    assert compiled_loss.takes(leaves[0], leaves[1], torch.bfloat16 if bf16 else torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss, nll, _ = linear_cross_entropy(*leaves[:2], None if b is None else leaves[2], y, **options)
    torch.testing.assert_close(loss, nll.mean(), equal_nan=True)
    return nll, torch.autograd.grad(loss, leaves)


def compare(x, w, b, y, bf16, nll_bound, bound, least=0.0, **options):
    """Errors of the likelihoods, absolute or relative, and of the gradients, relative to their norm or to `least`."""
    nll, gradients = fused(x, w, b, y, bf16, **options)
    want, want_gradients = exact(x, w, b, y)
    torch.testing.assert_close(nll.double(), want, rtol=nll_bound, atol=nll_bound)
    for mine, theirs in zip(gradients, want_gradients, strict=True):
        assert ((mine.double() - theirs).norm() / theirs.norm().clamp_min(least)).item() < bound


@pytest.fixture(params=[1, 2, 3])
def threads(request, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr(compiled, "THREADED_WORK", 0)
    monkeypatch.setattr(compiled_loss, "_WORDS_A_THREAD", 400)
    yield request.param
    torch.set_num_threads(before)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 90),
    features=st.integers(1, 70),
    words=st.integers(1024, 1600),
    chunk_rows=st.one_of(st.none(), st.integers(1, 100)),
    biased=st.booleans(),
    bf16=st.sampled_from(PRECISIONS),
    seed=st.integers(0, 99),
)
def test_any_shape(rows, features, words, chunk_rows, biased, bf16, seed):
    x, w, b, y = problem(rows, features, words, seed)
    bounds = (3e-2, 8e-3) if bf16 else (5e-6, 3e-6)
    # of one row and one feature, a gradient is the difference of two numbers that may be close
    compare(x, w, b if biased else None, y, bf16, *bounds, least=0.3, chunk_rows=chunk_rows)


@pytest.mark.parametrize("bf16", PRECISIONS)
def test_any_number_of_threads_gives_the_same(bf16, threads):
    x, w, b, y = problem(150, 40, 1999)
    compare(x, w, b, y, bf16, *((3e-2, 8e-3) if bf16 else (5e-6, 1e-6)), chunk_rows=64)
    nll, gradients = fused(x, w, b, y, bf16, chunk_rows=64)
    torch.set_num_threads(1)
    alone, alone_gradients = fused(x, w, b, y, bf16, chunk_rows=64)
    torch.testing.assert_close(nll, alone, rtol=1e-6, atol=1e-6)
    for mine, theirs in zip(gradients, alone_gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


SLOPES = {
    "last tile": lambda words: 300.0 * (torch.arange(words) >= words - words % 256),
    "first tile": lambda words: 300.0 * (torch.arange(words) < 256),
    "every tile": lambda words: 0.2 * torch.arange(words),  # 51 a tile
    "every tile down": lambda words: -0.2 * torch.arange(words),
    "one word": lambda words: 1000.0 * (torch.arange(words) == 1300),
    "a hill": lambda words: -0.1 * (torch.arange(words) - 700).abs(),
}


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("bf16", PRECISIONS)
def test_logits_that_differ_by_hundreds(slope, bf16, threads):
    """Whatever reference a tile was taken with, the likelihoods are exact, those of hopeless targets too."""
    x, w, _, y = problem(50, 20, 1501)
    b = SLOPES[slope](1501)
    y[:20] = (b.argmax() - torch.arange(20) % 2).abs()  # likely targets, the others are hopeless
    compare(x, w, b, y, bf16, *((3e-2, 2e-2) if bf16 else (5e-6, 5e-6)))


@pytest.mark.parametrize("bf16", PRECISIONS)
def test_words_ruled_out_by_their_bias_get_nothing(bf16, threads):
    x, w, b, y = problem(30, 16, 1501)
    barred = torch.arange(1501) % 3 == 1
    b[barred] = -torch.inf
    y = y // 3 * 3
    nll, (d_x, d_w, d_b) = fused(x, w, b, y, bf16)
    left = (~barred).nonzero().squeeze(1)
    want, (want_x, *_) = exact(x, w[left], b[left], torch.searchsorted(left, y))
    torch.testing.assert_close(nll.double(), want, rtol=3e-2 if bf16 else 5e-6, atol=0)
    torch.testing.assert_close(d_x.double(), want_x, rtol=1e-1 if bf16 else 1e-4, atol=1e-3 if bf16 else 1e-6)
    assert d_w[barred].abs().max() < 1e-20 and d_b[barred].abs().max() < 1e-20
    y[0] = 1
    assert fused(x, w, b, y, bf16)[0][0] == torch.inf  # and for a target that cannot be, the truth


@pytest.mark.parametrize("bf16", PRECISIONS)
def test_what_is_no_number_stays_none(bf16):
    x, w, b, y = problem(9, 8, 1100)
    x[4, 2] = torch.nan
    nll, (d_x, d_w, _) = fused(x, w, b, y, bf16)
    assert nll.isnan().tolist() == [i == 4 for i in range(9)]
    assert d_x[4].isnan().all() and not d_x[5].isnan().any() and d_w.isnan().all()
    x[4, 2], w[1000] = 0.0, torch.inf
    assert fused(x, w, b, y, bf16)[0].isnan().all()


@pytest.mark.slow
@pytest.mark.parametrize("bf16", PRECISIONS)
def test_the_likeliest_is_the_first_of_equals(bf16, threads):
    x, w, b, _ = problem(40, 8, 1501)
    w[1200:1240], b[1200:1240] = w[:40], b[:40] + 100.0
    w[700:740], b[700:740] = w[:40], b[:40] + 100.0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        first = torch.stack(
            [linear_cross_entropy(x, w, b, torch.full((40,), k), with_correct=True)[2] for k in range(1501)]
        )
    assert (first.sum(0) == 1).all() and first[700:740].any(0).all()


@pytest.mark.parametrize("bf16", PRECISIONS)
def test_evaluation_gives_the_likelihoods_of_training(bf16):
    x, w, b, y = problem(70, 24, 1300)
    nll, _ = fused(x, w, b, y, bf16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        torch.testing.assert_close(linear_cross_entropy(x, w, b, y).nll, nll, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("wants", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1)])
@pytest.mark.parametrize("bf16", PRECISIONS)
def test_a_gradient_does_not_depend_on_which_others_are_wanted(wants, bf16):
    *leaves, y = problem(33, 20, 1200)
    for leaf, want in zip(leaves, wants, strict=True):
        leaf.requires_grad_(bool(want))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        linear_cross_entropy(*leaves, y).loss.backward()
    everything = fused(*(t.detach() for t in leaves), y, bf16)[1]
    for leaf, want, alone in zip(leaves, wants, everything, strict=True):
        assert (leaf.grad is not None) == bool(want)
        if want:
            torch.testing.assert_close(leaf.grad, alone, rtol=0, atol=0)


@pytest.mark.parametrize("target", [-1, 1100])
def test_a_target_that_is_no_word_is_refused(target):
    x, w, b, y = problem(5, 8, 1100)
    y[3] = target
    with pytest.raises(IndexError):
        linear_cross_entropy(x, w, b, y)


@given(rows=st.integers(1, 9000), words=st.integers(1024, 300_000), bf16=st.booleans())
def test_blocks_are_even_and_what_is_kept_of_one_stays_small(rows, words, bf16):
    block, unit = rows_a_block(rows, words, bf16), 32 if bf16 else 16
    assert block % unit == 0 and block <= 512
    assert block * words * (2 if bf16 else 4) <= max(32 << 20, 256 * words * (2 if bf16 else 4))
    count = -(-rows // block)
    assert count * block - rows < count * unit


def test_matrices_are_transposed_by_vectors():
    import numpy as np
    from numba import njit

    from recur.nn.jit.primitives import transpose_16

    turn = njit(lambda a, lda, b, ldb, like: transpose_16(a, lda, b, ldb, like))
    for dtype, columns in ((np.float32, 16), (np.int16, 32)):
        size = np.dtype(dtype).itemsize
        source = np.arange(16 * (columns + 3), dtype=dtype).reshape(16, columns + 3)
        target = np.zeros((columns, 18), dtype)
        turn(source.ctypes.data, size * (columns + 3), target.ctypes.data, size * 18, source.ravel())
        assert (target[:, :16] == source[:, :columns].T).all() and not target[:, 16:].any()


def test_wide_vectors_are_asked_for():
    from numba import njit

    from recur.nn.jit.primitives import wide_vectors

    function = njit(lambda: wide_vectors())
    function()
    assert '"prefer-vector-width"="512"' in next(iter(function.inspect_llvm().values()))


@pytest.mark.parametrize("bf16", PRECISIONS)
def test_torchs_default_dtype_does_not_matter(bf16, float64_by_default):
    x, w, b, y = problem(70, 20, 1300)
    compare(x.float(), w.float(), b.float(), y, bf16, 0.05 if bf16 else 2e-6, 0.02 if bf16 else 2e-6)
