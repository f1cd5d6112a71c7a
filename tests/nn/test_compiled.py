"""The compiled kernels: every cell, both precisions, any split of the batch; and the walk by torch where they lack."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recur.nn import compiled, drop_in, engine, products
from recur.nn.cells import CELLS
from recur.nn.engine import FUSED_CELLS
from recur.nn.packed import Layout
from recur.nn.recurrent import Recurrent

pytest.importorskip("numba")
pytestmark = pytest.mark.skipif(not compiled.available(torch.float32), reason="no compiled kernels on this machine")
bf16_machine = pytest.mark.skipif(products.micro_kernel(True) is None, reason="no bfloat16 products in hardware")


def problem(cell, sizes, features, hidden, directions, bias=True, seed=0):
    """Leaves of a layer: rows, state, five weights a direction, None for those that the cell lacks."""
    torch.manual_seed(seed)
    shape, width = compiled.SHAPES[cell], hidden**-0.5
    gates = len(shape.order) * hidden
    shapes = [
        (gates, features),
        (gates, hidden) if shape.recurrent else None,
        (gates,) if bias and cell != "lnlstm" else None,
        (gates,) if bias and cell != "lnlstm" and shape.recurrent else None,
        (shape.own * hidden,) if shape.own else None,
    ]
    rows = torch.randn(sum(sizes), features)
    state = [torch.randn(directions, sizes[0], hidden) for _ in range(2 if shape.cell else 1)]
    scale = 1 if cell == "lnlstm" else width
    return rows, state, [[s and torch.randn(s) * scale for s in shapes] for _ in range(directions)]


def run(layer, cell, sizes, rows, state, weights, dtype):
    """Output, final state and all gradients."""
    rows, state = rows.to(dtype).requires_grad_(), [s.to(dtype).requires_grad_() for s in state]
    weights = [[w if w is None else w.to(dtype).requires_grad_() for w in own] for own in weights]
    output, last = layer(cell, rows, Layout(torch.tensor(sizes)), tuple(state), weights)
    torch.manual_seed(1)
    results = [output, *last]
    loss = sum((part * torch.randn(part.shape, dtype=torch.float64)).sum() for part in results)
    leaves = [rows, *state, *(w for own in weights for w in own if w is not None)]
    return results + list(torch.autograd.grad(loss, leaves))


def named(cell, own):
    """A direction's weights by name, as the cells of `recur.nn.cells` have them."""
    w_ih, w_hh, b_ih, b_hh, rest = own
    found = {"weight_ih": w_ih, "weight_hh": w_hh, "bias_ih": b_ih, "bias_hh": b_hh}
    if cell == "peephole":
        found["weight_ch"] = rest
    if cell == "lnlstm":
        hidden = w_hh.shape[1]
        names = ("gain_hh", "gain_ih", "bias_ih", "gain_c", "bias_c")
        found |= zip(names, rest.split([4 * hidden, 4 * hidden, 4 * hidden, hidden, hidden]), strict=True)
        found["bias_hh"] = torch.zeros_like(found["bias_ih"])
    return {name: w for name, w in found.items() if w is not None}


def by_torch(cell, rows, layout, state, weights):
    """The same layer by torch's operations."""
    if cell in FUSED_CELLS:
        hidden, memory = state if len(state) == 2 else (state[0], None)
        flat = [w for own in weights for w in own[:4]]
        output, last, last_cell = engine._Layer.apply(cell, layout, True, rows, hidden, memory, *flat)
        return output, (last,) if last_cell is None else (last, last_cell)
    outputs, finals = [], []
    for d, own in enumerate(weights):
        parts = tuple(part[d] for part in state)
        if cell == "qrnn":  # whose kernels have a hidden state beside, which comes from nowhere
            output, (c,) = CELLS[cell](cell).run(rows, layout, parts[1:], named(cell, own), bool(d))
            final = (output[layout.final_rows(bool(d))] + 0 * parts[0], c)
        else:
            output, final = CELLS[cell](cell).run(rows, layout, parts, named(cell, own), bool(d))
        outputs.append(output)
        finals.append(final)
    return torch.cat(outputs, 1), tuple(torch.stack(parts) for parts in zip(*finals, strict=True))


def relative(got, want, least):
    return ((got.double() - want).norm() / want.norm().clamp_min(least)).item()


def compare(cell, sizes, features, hidden, directions, bias, bf16, bound, least=1e-6):
    """Errors relative to each result's norm, or to `least`: of a few numbers, terms may cancel."""
    leaves = problem(cell, sizes, features, hidden, directions, bias)
    want = run(by_torch, cell, sizes, *leaves, torch.float64)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        got = run(compiled.layer, cell, sizes, *leaves, torch.float32)
    for mine, exact in zip(got, want, strict=True):
        assert mine.dtype == torch.float32 and mine.shape == exact.shape
        assert relative(mine, exact, least) < bound


@pytest.fixture(params=[1, 2, 3])
def split(request, monkeypatch):
    """Walk in so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr(compiled, "THREADED_WORK", 0)
    monkeypatch.setattr(compiled, "SPLIT_ROWS", 1)
    yield request.param
    torch.set_num_threads(before)


SIZES = [7, 7, 6, 5, 5, 3, 1, 1]


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", compiled.SHAPES)
def test_equals_float64_in_any_split(cell, directions, split):
    # A layer norm over six units divides by a deviation that may be small, and scales rounding up with it.
    compare(cell, SIZES, 5, 6, directions, True, False, 2e-6 if cell == "lnlstm" else 1e-6)


@bf16_machine
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", compiled.SHAPES)
def test_bf16_stays_near_float64_in_any_split(cell, directions, split):
    compare(cell, SIZES, 5, 6, directions, True, True, 5e-2 if cell.startswith("rnn") else 2e-2)  # gates damp


@bf16_machine
@pytest.mark.parametrize("cell", ["lstm", "gru", "peephole", "lnlstm", "mingru", "qrnn"])
def test_bf16_at_a_usual_size(cell):
    sizes = [48] * 12 + [31] * 5 + [7] * 20
    compare(cell, sizes, 100, 128, 2, True, True, 1.2e-2 if cell == "lnlstm" else 8e-3)  # which scales small rows up


@bf16_machine
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", [cell for cell in compiled.SHAPES if cell != "lnlstm"])
def test_an_odd_size_has_products_of_bf16_too(cell, directions, monkeypatch):
    """It ran in float32 throughout, and took two and a half times as long as the next even size."""
    rows, state, weights = problem(cell, SIZES, 5, 7, directions)
    seen = []
    kernels = compiled._Direction
    monkeypatch.setattr(compiled, "_Direction", lambda *own: seen.append((own[3], own[5])) or kernels(*own))
    with torch.autocast("cpu", torch.bfloat16):
        compiled.layer(cell, rows, Layout(torch.tensor(SIZES)), tuple(state), weights)
    assert set(seen) == {(True, 8)}
    compare(cell, SIZES, 5, 7, directions, True, True, 5e-2 if cell.startswith("rnn") else 2e-2)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    cell=st.sampled_from(list(compiled.SHAPES)),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9),
    features=st.integers(1, 40),
    hidden=st.integers(1, 40),
    directions=st.integers(1, 2),
    bias=st.booleans(),
    bf16=st.booleans(),
)
def test_any_shape(cell, lengths, features, hidden, directions, bias, bf16):
    sizes = [sum(n > t for n in lengths) for t in range(max(lengths))]
    low = bf16 and products.micro_kernel(True) is not None
    compare(cell, sizes, features, hidden, directions, bias, low, 0.1 if low else 5e-6, least=0.05)


@pytest.mark.parametrize("sizes", [[300, 300, 299], [1] * 700, [65] * 9 + [64] * 9])
def test_steps_larger_and_smaller_than_a_chunk(sizes):
    compare("lstm", sizes, 7, 10, 2, True, False, 2e-6)


@pytest.mark.parametrize("bf16", [False, pytest.param(True, marks=bf16_machine)])
@pytest.mark.parametrize("cell", compiled.SHAPES)
def test_evaluation_gives_the_bits_of_training(cell, bf16, split):
    rows, state, weights = problem(cell, SIZES, 5, 6, 2)
    layout = Layout(torch.tensor(SIZES))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        trained, _ = compiled.layer(cell, rows.requires_grad_(), layout, tuple(state), weights)
        with torch.inference_mode():
            evaluated, _ = compiled.layer(cell, rows, layout, tuple(state), weights)
    assert trained.requires_grad and torch.equal(trained, evaluated)


def test_a_nan_is_carried_on_and_not_clamped_away():
    for cell in compiled.SHAPES:
        rows, state, weights = problem(cell, [2, 2], 3, 4, 1)
        rows[1, 0] = torch.nan
        output, last = compiled.layer(cell, rows, Layout(torch.tensor([2, 2])), tuple(state), weights)
        assert output[1].isnan().all() and output[3].isnan().all() and not output[0].isnan().any()
        assert last[0][0, 1].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_nan_reaches_the_gradients_of_a_rectified_state(dtype):
    fused, reference = drop_in.RNN(5, 7, nonlinearity="relu", engine="fused"), torch.nn.RNN(5, 7, nonlinearity="relu")
    reference.load_state_dict(fused.state_dict())
    for module in (fused.to(dtype), reference.to(dtype)):
        with torch.no_grad():
            module.bias_hh_l0[2] = torch.nan
        module(torch.ones(3, 2, 5, dtype=dtype))[0].sum().backward()
    for mine, other in zip(fused.parameters(), reference.parameters(), strict=True):
        assert torch.equal(mine.grad.isnan(), other.grad.isnan())


def test_gates_far_beyond_saturation_stay_exact():
    rows, state, weights = problem("lstm", [3, 2], 4, 5, 1)
    compare_leaves = (rows * 1e4, state, weights)
    want = run(by_torch, "lstm", [3, 2], *compare_leaves, torch.float64)
    got = run(compiled.layer, "lstm", [3, 2], *compare_leaves, torch.float32)
    torch.testing.assert_close(got[0].double(), want[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("cell", FUSED_CELLS)
def test_without_the_kernels_the_layer_walks_by_torch(cell, monkeypatch):
    leaves = problem(cell, SIZES, 5, 6, 2)
    four = lambda layer: lambda c, r, lay, s, w: layer(c, r, lay, s, [own[:4] for own in w])
    fast = run(four(engine.layer), cell, SIZES, *leaves, torch.float32)
    monkeypatch.setattr(compiled, "available", lambda dtype: False)
    slow = run(four(engine.layer), cell, SIZES, *leaves, torch.float32)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_weight_of_another_shape_is_refused_before_memory_is_touched():
    rows, state, weights = problem("lstm", SIZES, 5, 6, 1)
    layout = Layout(torch.tensor(SIZES))
    good = weights[0]
    for place, wrong in enumerate((torch.zeros(24, 4), torch.zeros(24, 5), torch.zeros(23), torch.zeros(25))):
        own = list(good)
        own[place] = nn.Parameter(wrong)
        with pytest.raises(RuntimeError, match="do not fit"):
            compiled.layer("lstm", rows, layout, tuple(state), [own])
    with pytest.raises(RuntimeError, match="do not fit"):
        compiled.layer("lstm", rows[:-1], layout, tuple(state), [good])
    with pytest.raises(RuntimeError, match="do not fit"):
        compiled.layer("lstm", rows, layout, (state[0][:, :-1], state[1]), [good])


@pytest.mark.parametrize("cell", sorted({*compiled.SHAPES, "mogrifier"}))
def test_no_two_gradients_share_their_storage(cell):
    """Clipping scales gradients in place: a shared one would be scaled twice."""
    torch.manual_seed(0)
    layer = Recurrent(24, 32, 2, cell=cell, bidirectional=True, forget_bias=None)
    texts = nn.utils.rnn.pack_sequence([torch.randn(n, 24) for n in range(40, 8, -1)])
    layer(texts)[0].data.square().sum().backward()
    places = [p.grad.untyped_storage().data_ptr() for p in layer.parameters()]
    assert len(set(places)) == len(places)
