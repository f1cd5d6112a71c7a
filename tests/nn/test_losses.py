"""The fused output layer against the plain one: same loss, same gradients, a fraction of the memory."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from recur.nn.losses import block_rows, linear_cross_entropy


def problem(rows: int, features: int, vocabulary: int, dtype: torch.dtype = torch.float64, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, features, generator=generator, dtype=dtype)
    w = torch.randn(vocabulary, features, generator=generator, dtype=dtype)
    b = torch.randn(vocabulary, generator=generator, dtype=dtype)
    y = torch.randint(vocabulary, (rows,), generator=generator)
    return x.requires_grad_(), w.requires_grad_(), b.requires_grad_(), y


def largest_difference(a, b) -> float:
    return max((p - q).abs().max().item() for p, q in zip(a, b, strict=True))


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(1, 40),
    features=st.integers(1, 9),
    vocabulary=st.integers(1, 70),
    chunk_rows=st.one_of(st.none(), st.integers(1, 50)),
    reduction=st.sampled_from(["mean", "sum"]),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_the_plain_loss_and_its_gradients(rows, features, vocabulary, chunk_rows, reduction, biased, seed):
    x, w, b, y = problem(rows, features, vocabulary, seed=seed)
    inputs = (x, w, b) if biased else (x, w)
    plain = F.cross_entropy(F.linear(x, w, b if biased else None), y, reduction=reduction)
    fused, nll, correct = linear_cross_entropy(
        x, w, b if biased else None, y, reduction=reduction, with_correct=True, chunk_rows=chunk_rows
    )
    assert correct is not None
    torch.testing.assert_close(fused, plain, rtol=1e-12, atol=1e-12)
    assert largest_difference(torch.autograd.grad(3 * fused, inputs), torch.autograd.grad(3 * plain, inputs)) < 1e-12
    with torch.no_grad():
        z = F.linear(x, w, b if biased else None)
        torch.testing.assert_close(nll, F.cross_entropy(z, y, reduction="none"), rtol=1e-12, atol=1e-12)
        assert torch.equal(correct, z.argmax(1) == y)


def test_wide_vocabulary_in_float32_runs_in_stripes_and_blocks():
    x, w, b, y = problem(300, 16, 5000, torch.float32)
    plain = F.cross_entropy(F.linear(x, w, b), y)
    fused = linear_cross_entropy(x, w, b, y).loss
    torch.testing.assert_close(fused, plain, rtol=1e-6, atol=0)
    assert largest_difference(torch.autograd.grad(fused, (x, w, b)), torch.autograd.grad(plain, (x, w, b))) < 1e-6


def test_gradcheck():
    x, w, b, y = problem(5, 3, 7)
    assert torch.autograd.gradcheck(lambda *t: linear_cross_entropy(*t, y, chunk_rows=2).loss, (x, w, b))


def test_only_the_gradients_asked_for_are_formed():
    x, w, b, y = problem(6, 3, 5)
    w.requires_grad_(False)
    linear_cross_entropy(x, w, b, y).loss.backward()
    assert x.grad is not None and b.grad is not None and w.grad is None
    loss = linear_cross_entropy(x.detach(), w, b.detach(), y).loss
    assert not loss.requires_grad


def test_evaluation_pays_for_no_gradient():
    x, w, b, y = problem(60, 8, 500, torch.float32)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode, Watched() as watched:
            linear_cross_entropy(x, w, b, y, chunk_rows=20)
        assert watched.calls["addmm"] == 3 and not watched.calls["mm"] + watched.calls["addmm_"]  # x W^T alone


def test_backward_twice_over_a_kept_graph_adds_up():
    x, w, b, y = problem(6, 3, 5)
    loss = linear_cross_entropy(x, w, b, y).loss
    loss.backward(retain_graph=True)
    once = w.grad.clone()
    loss.backward()
    torch.testing.assert_close(w.grad, 2 * once)


def test_extreme_logits_stay_exact():
    x = torch.tensor([[3e4], [-3e4]], dtype=torch.float64, requires_grad=True)
    w = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    for target in ([0, 1], [1, 0]):
        y = torch.tensor(target)
        fused = linear_cross_entropy(x, w, None, y)
        torch.testing.assert_close(fused.nll, F.cross_entropy(x @ w.T, y, reduction="none"), rtol=0, atol=0)
        torch.testing.assert_close(
            torch.autograd.grad(fused.loss, x)[0], torch.autograd.grad(F.cross_entropy(x @ w.T, y), x)[0]
        )


def test_no_rows_give_zero():
    x, w, b, y = problem(0, 3, 5)
    loss, nll, correct = linear_cross_entropy(x, w, b, y, with_correct=True)
    loss.backward()
    assert loss.item() == 0 and nll.shape == correct.shape == (0,) and not w.grad.any()


def test_autocast_runs_the_products_low_and_the_softmax_high():
    x, w, b, y = problem(64, 16, 90, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = linear_cross_entropy(x, w, b, y, chunk_rows=20)
        plain = F.cross_entropy(F.linear(x, w, b), y)
    assert fused.loss.dtype == fused.nll.dtype == torch.float32
    torch.testing.assert_close(fused.loss, plain, rtol=1e-3, atol=0)
    for mine, theirs in zip(
        torch.autograd.grad(fused.loss, (x, w, b)), torch.autograd.grad(plain, (x, w, b)), strict=True
    ):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("vocabulary", [500, 2000])
@pytest.mark.parametrize("certainty", [8.0, 16.0])
def test_the_gradient_of_targets_that_are_nearly_sure_survives_bfloat16(vocabulary, certainty):
    """Of a probability near 1, less 1, bfloat16 has nothing left."""
    torch.manual_seed(0)
    w = torch.nn.functional.normalize(torch.randn(vocabulary, 64), dim=1)
    target = torch.randint(vocabulary, (256,))
    x = certainty * w[target] + 0.05 * torch.randn(256, 64)
    exact = [t.double().requires_grad_() for t in (x, w)]
    F.cross_entropy(exact[0] @ exact[1].T, target).backward()
    low = [t.clone().requires_grad_() for t in (x, w)]
    with torch.autocast("cpu", torch.bfloat16):
        linear_cross_entropy(low[0], low[1], None, target).loss.backward()
    for mine, other in zip(low, exact, strict=True):
        assert (mine.grad.double() - other.grad).norm() < 0.05 * other.grad.norm()


@pytest.mark.parametrize("factor", [1.0, 2.0**16])
def test_float16_gradients_survive_until_a_loss_scalers_factor(factor):
    """Those of small numbers and a mean over many rows have few digits in float16, unless they are scaled first."""
    x, w, b, y = (t.detach() for t in problem(600, 8, 50, torch.float16))
    leaves = [t.requires_grad_() for t in (x * 1e-4, w * 1e-4, b)]
    mine = torch.autograd.grad(linear_cross_entropy(*leaves, y, chunk_rows=250).loss, leaves, torch.tensor(factor))
    exact = [t.detach().double().requires_grad_() for t in leaves]
    loss = F.cross_entropy(F.linear(*exact), y)
    for got, want in zip(mine, torch.autograd.grad(loss, exact, torch.tensor(factor).double()), strict=True):
        assert got.dtype == torch.float16
        assert (got.double() - want).norm() < (0.005 if factor > 1 else 0.2) * want.norm()


class Watched(TorchDispatchMode):
    """Notes the number of elements of the largest storage any operation returned, and counts the operations."""

    elements = 0

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls[func.overloadpacket.__name__] += 1
        if isinstance(out, Tensor):
            self.elements = max(self.elements, out.untyped_storage().nbytes() // out.itemsize)
        return out


def test_the_full_matrix_never_exists():
    rows, features, vocabulary = 4000, 4, 9000
    x, w, b, y = problem(rows, features, vocabulary, torch.float32)
    with Watched() as watched:
        linear_cross_entropy(x, w, b, y).loss.backward()
    assert vocabulary * features <= watched.elements <= rows * vocabulary // 4


def test_blocks_are_even_and_cover_the_rows():
    assert block_rows(700, 200, 33278, 4, "cpu") == 234  # three blocks
    assert block_rows(6400, 512, 65, 4, "cpu") == 6400  # a small vocabulary needs no blocks
    assert block_rows(0, 8, 10, 4, "cpu") == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reduction": "none"}, "mean or sum"),
        ({"weight": torch.zeros(5, 4)}, "share their features"),
        ({"target": torch.zeros(3, dtype=torch.int64)}, "one class for each of 2 rows"),
        ({"bias": torch.zeros(4)}, r"bias must be \(5,\)"),
        ({"chunk_rows": 0}, "at least 1"),
    ],
)
def test_a_mistake_is_named(change, message):
    arguments = {
        "input": torch.zeros(2, 3),
        "weight": torch.zeros(5, 3),
        "bias": None,
        "target": torch.zeros(2, dtype=torch.int64),
    }
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**{**arguments, **change})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("mean", [True, False])
def test_in_logarithms_as_on_a_gpu_it_is_the_same_loss(monkeypatch, dtype, mean):
    torch.manual_seed(0)
    x, w, b = (
        torch.randn(s, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        for s in ((50, 16), (300, 16), (300,))
    )
    x[0] *= 300  # whose target has no digits left as a probability
    y = torch.randint(300, (50,))
    monkeypatch.setattr("recur.nn.compiled_loss.takes", lambda *_: False)
    found = []
    for way in (False, True):
        monkeypatch.setattr("recur.nn.losses._in_logarithms", lambda _, way=way: way)
        own = [part.clone().requires_grad_() for part in (x, w, b)]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss, nll, correct = linear_cross_entropy(
                *own, y, reduction="mean" if mean else "sum", with_correct=True, chunk_rows=7
            )
        loss.backward()
        found.append([loss.detach(), nll, correct.double(), *(part.grad for part in own)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(
            one, other, rtol=1e-9 if dtype == torch.float64 else 1e-2, atol=1e-9 if dtype == torch.float64 else 1e-3
        )
