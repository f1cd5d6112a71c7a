"""The Mogrifier LSTM in compiled kernels: what the cell gives under autograd, in any split, direction and precision."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recur.nn import compiled, mogrifier, products
from recur.nn.cells import Mogrifier
from recur.nn.packed import Layout
from recur.nn.recurrent import Recurrent

pytest.importorskip("numba")
pytestmark = pytest.mark.skipif(not compiled.available(torch.float32), reason="no compiled kernels on this machine")
bf16_machine = pytest.mark.skipif(products.micro_kernel(True) is None, reason="no bfloat16 products in hardware")
SIZES = [7, 7, 6, 5, 5, 3, 1, 1]


def problem(rounds, sizes, features, hidden, directions, bias=True):
    torch.manual_seed(0)
    shapes = [(4 * hidden, features), (4 * hidden, hidden), *[(4 * hidden,) if bias else None] * 2]
    shapes += [(hidden, features) if i % 2 else (features, hidden) for i in range(rounds)]
    rows, state = torch.randn(sum(sizes), features), [torch.randn(directions, sizes[0], hidden) for _ in range(2)]
    return rows, state, [[s and torch.randn(s) * hidden**-0.5 for s in shapes] for _ in range(directions)]


def by_autograd(rows, layout, state, weights):
    cell = Mogrifier("mogrifier", len(weights[0]) - 4)
    names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", *(f"weight_round{i + 1}" for i in range(cell.rounds))]
    outputs, finals = [], []
    for d, own in enumerate(weights):
        named = {name: w for name, w in zip(names, own, strict=True) if w is not None}
        output, final = cell.run(rows, layout, tuple(part[d] for part in state), named, bool(d))
        outputs.append(output)
        finals.append(final)
    return torch.cat(outputs, 1), tuple(torch.stack(parts) for parts in zip(*finals, strict=True))


def run(layer, sizes, rows, state, weights, dtype):
    """Output, final state and all gradients."""
    rows, state = rows.to(dtype).requires_grad_(), [s.to(dtype).requires_grad_() for s in state]
    weights = [[w if w is None else w.to(dtype).requires_grad_() for w in own] for own in weights]
    output, last = layer(rows, Layout(torch.tensor(sizes)), tuple(state), weights)
    torch.manual_seed(1)
    results = [output, *last]
    loss = sum((part * torch.randn(part.shape, dtype=torch.float64)).sum() for part in results)
    leaves = [rows, *state, *(w for own in weights for w in own if w is not None)]
    return results + list(torch.autograd.grad(loss, leaves))


def compare(sizes, features, hidden, rounds, directions, bias, bf16, bound):
    leaves = problem(rounds, sizes, features, hidden, directions, bias)
    want = run(by_autograd, sizes, *leaves, torch.float64)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        got = run(mogrifier.layer, sizes, *leaves, torch.float32)
    for mine, exact in zip(got, want, strict=True):
        assert mine.dtype == torch.float32 and mine.shape == exact.shape
        assert ((mine.double() - exact).norm() / exact.norm().clamp_min(1e-6)).item() < bound


@pytest.fixture(params=[1, 3])
def split(request, monkeypatch):
    """Walk in so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr(compiled, "THREADED_WORK", 0)
    monkeypatch.setattr(compiled, "SPLIT_ROWS", 1)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("rounds", [0, 1, 2, 5, 6])
def test_equals_autograd_in_float64(rounds, directions, split):
    compare(SIZES, 5, 6, rounds, directions, True, False, 2e-6)


@bf16_machine
@pytest.mark.parametrize("rounds", [1, 4, 5])
def test_bf16_stays_near_float64(rounds, split):
    compare(SIZES, 8, 6, rounds, 2, True, True, 3e-2)
    compare([48] * 12 + [31] * 5 + [7] * 20, 60, 64, rounds, 1, True, True, 1.5e-2)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9),
    features=st.integers(1, 40),
    hidden=st.integers(1, 40),
    rounds=st.integers(0, 6),
    directions=st.integers(1, 2),
    bias=st.booleans(),
    bf16=st.booleans(),
)
def test_any_shape(lengths, features, hidden, rounds, directions, bias, bf16):
    sizes = [sum(n > t for n in lengths) for t in range(max(lengths))]
    low = bf16 and products.micro_kernel(True) is not None
    compare(sizes, features, hidden, rounds, directions, bias, low, 0.1 if low else 1e-5)


@pytest.mark.parametrize("sizes", [[300, 300, 299], [1] * 700, [65] * 9 + [64] * 9])
def test_steps_larger_and_smaller_than_a_chunk(sizes):
    compare(sizes, 7, 10, 3, 2, True, False, 4e-6)


def test_evaluation_gives_the_bits_of_training(split):
    rows, state, weights = problem(5, SIZES, 5, 6, 2)
    layout = Layout(torch.tensor(SIZES))
    trained, _ = mogrifier.layer(rows.requires_grad_(), layout, tuple(state), weights)
    with torch.inference_mode():
        evaluated, _ = mogrifier.layer(rows, layout, tuple(state), weights)
    assert trained.requires_grad and torch.equal(trained, evaluated)


def test_a_stack_takes_the_kernels_and_gives_what_it_gives_without(monkeypatch):
    torch.manual_seed(0)
    stack = Recurrent(6, 8, 2, cell="mogrifier", bidirectional=True)
    batch = torch.nn.utils.rnn.pack_sequence([torch.randn(n, 6) for n in (5, 3, 3)])
    fast, _ = stack(batch)
    fast.data.sum().backward()
    gradients = [p.grad.clone() for p in stack.parameters()]
    stack.zero_grad()
    monkeypatch.setattr(compiled, "available", lambda dtype: False)
    slow, _ = stack(batch)
    slow.data.sum().backward()
    assert type(fast.data.grad_fn) is not type(slow.data.grad_fn)
    torch.testing.assert_close(fast.data, slow.data, rtol=0, atol=1e-6)
    for got, parameter in zip(gradients, stack.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=1e-4, atol=1e-5)


def test_a_weight_of_another_shape_is_refused_before_memory_is_touched():
    rows, state, weights = problem(2, SIZES, 5, 6, 1)
    layout = Layout(torch.tensor(SIZES))
    for place, wrong in enumerate((torch.zeros(24, 4), torch.zeros(24, 5), torch.zeros(23), torch.zeros(25))):
        own = list(weights[0])
        own[place] = wrong
        with pytest.raises(RuntimeError, match="do not fit"):
            mogrifier.layer(rows, layout, tuple(state), [own])
    with pytest.raises(RuntimeError, match="do not fit"):
        mogrifier.layer(rows[:-1], layout, tuple(state), weights)
    with pytest.raises(RuntimeError, match="float32"):
        mogrifier.layer(rows.double(), layout, tuple(state), weights)


def test_torchs_default_dtype_does_not_matter(float64_by_default):
    compare(SIZES, 5, 6, 5, 2, True, False, 2e-6)
