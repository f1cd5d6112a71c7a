"""The engine is torch.nn's function: outputs, final states and all gradients, for any lengths."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from recur.nn import compiled, products
from recur.nn.engine import FUSED_CELLS, layer
from recur.nn.packed import Layout
from recur.nn.recurrent import Recurrent

REFERENCE = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn": nn.RNN,
    "rnn_relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k),
}
LENGTHS = {
    "random": [9, 4, 7, 1, 7, 3],
    "batch of one": [6],
    "all equal": [5, 5, 5],
    "length one": [1, 1, 1],
    "one long": [300, 2, 1],
    "wide": [3] * 150 + [2] * 150,
}


def compare(cell, lengths, sizes, num_layers, bidirectional, bias, dtype, atol, carried, sort=True):
    reference = REFERENCE[cell](*sizes, num_layers, bidirectional=bidirectional, bias=bias, dtype=dtype)
    ours = Recurrent(*sizes, num_layers, cell=cell, bidirectional=bidirectional, bias=bias, engine="fused").to(dtype)
    ours.load_state_dict(reference.state_dict())
    lengths = sorted(lengths, reverse=True) if sort else lengths
    batch = pack_sequence([torch.randn(n, sizes[0], dtype=dtype) for n in lengths], enforce_sorted=sort)
    batch = batch._replace(data=batch.data.requires_grad_())
    directions = 2 if bidirectional else 1
    shape = (num_layers * directions, len(lengths), sizes[1])
    count = (2 if cell == "lstm" else 1) if carried else 0
    given_state = [torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(count)]
    order = batch.sorted_indices if batch.sorted_indices is not None else torch.arange(len(lengths))

    hx = None if not carried else tuple(given_state) if cell == "lstm" else given_state[0]
    expected, last = reference(batch, hx)
    last = last if cell == "lstm" else (last,)
    sorted_state = [part[:, order].split(directions) for part in given_state]
    answer, final = ours(batch, list(zip(*sorted_state, strict=True)) if carried else None)
    final = [torch.cat(parts) for parts in zip(*final, strict=True)]
    inverse = order.argsort()
    results = [
        [expected.data, *last],
        [answer.data, *(part[:, inverse] for part in final)],
    ]
    weights = [torch.randn_like(part) for part in results[0]]
    inputs = [[batch.data, *given_state, *module.parameters()] for module in (reference, ours)]
    for own, mine in zip(results, inputs, strict=True):
        loss = sum((part * weight).sum() for part, weight in zip(own, weights, strict=True))
        own.extend(torch.autograd.grad(loss, mine))
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=atol, atol=atol)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("cell", FUSED_CELLS)
def test_equals_torch_in_float64(cell, lengths, bidirectional):
    torch.manual_seed(0)
    compare(cell, LENGTHS[lengths], (5, 4), 2, bidirectional, True, torch.float64, 1e-10, carried=True)


@pytest.mark.parametrize("cell", FUSED_CELLS)
def test_equals_torch_in_float32(cell):
    torch.manual_seed(0)
    compare(cell, [40, 31, 31, 12, 5], (20, 32), 2, True, True, torch.float32, 1e-5, carried=False)


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
def test_unsorted_input_and_depth(num_layers):
    torch.manual_seed(0)
    compare("lstm", [4, 9, 2, 2, 7], (3, 4), num_layers, True, True, torch.float64, 1e-10, carried=True, sort=False)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    cell=st.sampled_from(FUSED_CELLS),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    num_layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    bias=st.booleans(),
    carried=st.booleans(),
    sort=st.booleans(),
)
def test_equals_torch_for_any_shape(cell, lengths, sizes, num_layers, bidirectional, bias, carried, sort):
    compare(cell, lengths, sizes, num_layers, bidirectional, bias, torch.float64, 1e-10, carried, sort)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", FUSED_CELLS)
def test_gradients_equal_finite_differences(cell, bidirectional):
    torch.manual_seed(0)
    directions, blocks = 1 + bidirectional, {"lstm": 4, "gru": 3}.get(cell, 1)
    layout = Layout(torch.tensor([3, 2, 2, 1]))
    shapes = [(blocks * 2, 3), (blocks * 2, 2), (blocks * 2,), (blocks * 2,)] * directions
    state = [(directions, 3, 2)] * (2 if cell == "lstm" else 1)
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in [(8, 3), *state, *shapes]]

    def run(rows, *rest):
        weights = rest[len(state) :]
        quads = [weights[4 * d : 4 * d + 4] for d in range(directions)]
        output, last = layer(cell, rows, layout, rest[: len(state)], quads)
        return (output, *last)

    assert torch.autograd.gradcheck(run, tensors)


def stack_and_batch(**arguments):
    torch.manual_seed(0)
    stack = Recurrent(16, 32, 2, bidirectional=True, engine="fused", **arguments)
    lengths = sorted(torch.randint(1, 60, (20,)).tolist(), reverse=True)
    return stack, pack_sequence([torch.randn(n, 16) for n in lengths])


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["compiled", "torch"])
def always_threaded(request, monkeypatch, two_threads):
    if request.param == "torch":
        monkeypatch.setattr("recur.nn.compiled.available", lambda dtype: False)
    elif not compiled.available(torch.float32):
        pytest.skip("the compiled kernels are not installed")
    monkeypatch.setattr("recur.nn.engine.THREADED_WORK", 0)
    monkeypatch.setattr("recur.nn.engine.THREADED_STEP", 0)
    monkeypatch.setattr("recur.nn.compiled.THREADED_WORK", 0)


@pytest.mark.parametrize("cell", FUSED_CELLS)
def test_same_input_gives_the_same_bits(cell, always_threaded):
    stack, batch = stack_and_batch(cell=cell)

    def once():
        stack.zero_grad()
        output, state = stack(batch)
        output.data.square().sum().backward()
        return [output.data, *(part for one in state for part in one), *(p.grad for p in stack.parameters())]

    first = once()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, once(), strict=True))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("cell", FUSED_CELLS)
def test_evaluation_gives_the_bits_of_training(cell, mode, always_threaded):
    stack, batch = stack_and_batch(cell=cell)
    with mode():
        evaluated, _ = stack(batch)
    assert torch.equal(stack(batch)[0].data, evaluated.data)


def test_threads_are_put_back(always_threaded):
    stack, batch = stack_and_batch()
    stack(batch)[0].data.sum().backward()
    assert torch.get_num_threads() == 2
    seen = []
    other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert seen == [2]


def test_a_failure_in_either_thread_is_raised(always_threaded):
    stack, batch = stack_and_batch()
    for suffix in ("", "_reverse"):
        broken = Recurrent(16, 32, 2, bidirectional=True, engine="fused")
        setattr(broken, f"weight_hh_l0{suffix}", nn.Parameter(torch.zeros(128, 31)))
        with pytest.raises(RuntimeError):
            broken(batch)
        assert torch.get_num_threads() == 2
    stack(batch)


def test_backward_twice_over_a_kept_graph():
    stack, batch = stack_and_batch()
    loss = stack(batch)[0].data.sum()
    first = torch.autograd.grad(loss, list(stack.parameters()), retain_graph=True)
    again = torch.autograd.grad(loss, list(stack.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_frozen_weights_and_inputs_get_no_gradient():
    stack, batch = stack_and_batch()
    stack.requires_grad_(False)
    stack.weight_hh_l1.requires_grad_()
    stack(batch)[0].data.sum().backward()
    assert stack.weight_hh_l1.grad is not None
    assert all(p.grad is None for n, p in stack.named_parameters() if n != "weight_hh_l1")
    stack.requires_grad_(False)
    rows = batch.data.requires_grad_()
    stack(batch._replace(data=rows))[0].data.sum().backward()
    assert rows.grad is not None


def test_autocast_keeps_states_in_float32(always_threaded):
    stack, batch = stack_and_batch()
    expected, _ = stack(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, state = stack(batch)
        lower, _ = stack(batch._replace(data=batch.data.bfloat16()))
        lower.data.sum().backward()
    assert {t.dtype for t in (output.data, lower.data, *state[0], *(p.grad for p in stack.parameters()))} == {
        torch.float32
    }
    torch.testing.assert_close(output.data, expected.data, rtol=0, atol=0.02)
    torch.testing.assert_close(lower.data, expected.data, rtol=0, atol=0.02)
    if products.micro_kernel(True) is None or not compiled.available(torch.float32):
        assert torch.equal(output.data, expected.data)


def peak_bytes(run):
    """Most bytes held at once by tensors made during `run`."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = run()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    del kept
    return peak


@pytest.mark.parametrize("cell", FUSED_CELLS)
def test_evaluation_needs_little_memory_beside_its_output(cell):
    blocks, batch, size = {"lstm": 4, "gru": 3}.get(cell, 1), 64, 32
    weights = [[torch.randn(blocks * size, 16), torch.randn(blocks * size, size), *torch.randn(2, blocks * size)]]
    state = (torch.zeros(1, batch, size), torch.zeros(1, batch, size))[: 2 if cell == "lstm" else 1]

    def beside_output(steps, grad=False):
        rows = torch.randn(steps * batch, 16, requires_grad=grad)
        layout = Layout(torch.full((steps,), batch))
        run = lambda: layer(cell, rows, layout, state, weights)
        with torch.set_grad_enabled(grad):
            run()
            return peak_bytes(run) - steps * batch * size * 4

    short, long = beside_output(40), beside_output(400)
    assert long < 1.3 * short  # some integers a step are allowed
    assert long < 20 * 4 * batch * size * 4 * 2
    if cell in ("lstm", "gru"):
        assert beside_output(400, grad=True) > 10 * long


def test_layout_knows_where_rows_lie():
    lengths = [5, 3, 3, 1]
    layout = Layout(pack_sequence([torch.zeros(n) for n in lengths]).batch_sizes)
    assert layout.sizes == [4, 3, 3, 1, 1]
    assert layout.places.tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 0, 0]
    assert layout.last_rows.tolist() == [11, 8, 9, 3]
    assert layout.previous_rows(False)[4:].tolist() == [0, 1, 2, 4, 5, 6, 7, 10]
    assert layout.previous_rows(True)[[0, 1, 2, 4, 5, 6, 7, 10]].tolist() == [4, 5, 6, 7, 8, 9, 10, 11]
    assert not layout.even
    assert Layout(torch.tensor([2, 2])).even


def test_chunks_cover_all_steps():
    sizes = [400, 300, 200, *[100] * 7, *[1] * 600]
    chunks = Layout(torch.tensor(sizes)).chunks
    assert [n for own, _, _ in chunks for n in own] == sizes
    assert [first for _, first, _ in chunks[1:]] == [end for _, _, end in chunks[:-1]]
    assert all(sum(own) == end - first for own, first, end in chunks)
    assert all(end - first <= 256 or len(own) == 1 for own, first, end in chunks)


def test_packed_sequence_carries_its_order_through():
    stack = Recurrent(3, 4)
    batch = pack_sequence([torch.randn(2, 3), torch.randn(5, 3)], enforce_sorted=False)
    output, _ = stack(batch)
    assert isinstance(output, PackedSequence)
    assert torch.equal(output.sorted_indices, batch.sorted_indices)
