"""The stack equals torch.nn, and what it adds to it holds."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from recur.nn import compiled, products
from recur.nn.packed import Layout
from recur.nn.recurrent import Recurrent, detach_state, pick_engine

REFERENCE = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn": nn.RNN,
    "rnn_relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k),
}


def packed(lengths, size, dtype=torch.float64, seed=0, requires_grad=True):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(n, size, dtype=dtype, generator=generator) for n in sorted(lengths, reverse=True)]
    sequence = pack_sequence(rows)
    return PackedSequence(sequence.data.requires_grad_(requires_grad), sequence.batch_sizes)


def random_state(reference, batch, like, cell):
    directions = 2 if reference.bidirectional else 1
    shape = (reference.num_layers, directions, batch, reference.hidden_size)
    parts = [torch.randn(shape, dtype=like.dtype) for _ in range(2 if cell == "lstm" else 1)]
    return [tuple(p[i] for p in parts) for i in range(reference.num_layers)]


@pytest.mark.parametrize("engine", ["fused", "torch"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", REFERENCE)
def test_equals_torch_with_carried_state(cell, bidirectional, engine):
    torch.manual_seed(1)
    reference = REFERENCE[cell](6, 5, 3, bidirectional=bidirectional).double()
    ours = Recurrent(6, 5, 3, cell=cell, bidirectional=bidirectional, engine=engine).double()
    ours.load_state_dict(reference.state_dict())
    batch = packed([9, 1, 4, 4, 7], 6)
    state = random_state(reference, 5, batch.data, cell)
    joint = [torch.cat(parts) for parts in zip(*state, strict=True)]
    expected, last = reference(batch, tuple(joint) if cell == "lstm" else joint[0])
    answer, final = ours(batch, state)
    torch.testing.assert_close(answer.data, expected.data, rtol=0, atol=1e-10)
    for part, want in zip(zip(*final, strict=True), last if cell == "lstm" else (last,), strict=True):
        torch.testing.assert_close(torch.cat(part), want, rtol=0, atol=1e-10)
    weight = torch.randn_like(expected.data)
    for rows in (expected, answer):
        (rows.data * weight).sum().backward()
    for (name, want), got in zip(reference.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=0, atol=1e-10, msg=name)


def test_same_seed_gives_torchs_own_initialisation():
    torch.manual_seed(3)
    reference = nn.LSTM(4, 6, 2, bidirectional=True)
    torch.manual_seed(3)
    ours = Recurrent(4, 6, 2, bidirectional=True, forget_bias=None)
    assert all(torch.equal(a, b) for a, b in zip(reference.parameters(), ours.parameters(), strict=True))


def test_forget_bias_counts_once():
    ours = Recurrent(4, 6, 2, bidirectional=True, forget_bias=1.5)
    for name, parameter in ours.named_parameters():
        if name.startswith("bias"):
            assert (parameter[6:12] == (1.5 if "ih" in name else 0)).all()


@pytest.mark.parametrize("engine", ["fused", "torch"])
def test_windows_with_carried_state_equal_one_pass(engine):
    torch.manual_seed(0)
    stack = Recurrent(3, 4, 2, output_size=6, engine=engine).double()
    whole = packed([12, 12, 12], 3)
    expected, _ = stack(whole)
    state, pieces = None, []
    for rows in whole.data.split(3 * 5):
        steps = len(rows) // 3
        window, state = stack(PackedSequence(rows, torch.full((steps,), 3)), state)
        state = detach_state(state)
        pieces.append(window.data)
    torch.testing.assert_close(torch.cat(pieces), expected.data, rtol=0, atol=1e-12)


def test_last_layer_may_have_another_size():
    stack = Recurrent(3, 4, 3, bidirectional=True, output_size=2)
    output, state = stack(packed([3, 2], 3, torch.float32))
    assert stack.output_dim == 4
    assert output.data.shape == (5, 4)
    assert [one[0].shape[2] for one in state] == [4, 4, 2]


@pytest.mark.parametrize("locked", [False, True])
def test_dropout_lies_between_layers_and_is_reproducible(locked):
    stack = Recurrent(3, 8, 2, dropout=0.5, locked_dropout=locked)
    batch = packed([6, 3], 3, torch.float32)
    torch.manual_seed(5)
    first = stack(batch)[0].data
    torch.manual_seed(5)
    again = stack(batch)[0].data
    other = stack(batch)[0].data
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    stack.eval()
    assert torch.equal(stack(batch)[0].data, stack(batch)[0].data)


def test_weight_drop_trains_the_raw_weight_and_rests_in_evaluation():
    stack = Recurrent(3, 8, 2, weight_drop=0.5)
    plain = Recurrent(3, 8, 2)
    plain.load_state_dict(stack.state_dict())
    batch = packed([6, 3], 3, torch.float32)
    stack(batch)[0].data.sum().backward()
    zeros = (stack.weight_hh_l0.grad == 0).float().mean()
    assert 0.3 < zeros < 0.7
    stack.eval()
    assert torch.equal(stack(batch)[0].data, plain(batch)[0].data)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="cell is one of"):
        Recurrent(3, 4, cell="lsmt")
    with pytest.raises(ValueError, match="packed rows of 3 features"):
        Recurrent(3, 4)(packed([2], 5, torch.float32))
    with pytest.raises(ValueError, match="must have shapes"):
        Recurrent(3, 4)(packed([2], 3, torch.float32), [(torch.zeros(1, 2, 4), torch.zeros(1, 2, 4))])
    with pytest.raises(ValueError, match="dropout is a probability"):
        Recurrent(3, 4, dropout=1.0)


@pytest.mark.parametrize("lengths", [[4, 4, 4], [5, 3, 1]])
@pytest.mark.parametrize("cell", REFERENCE)
def test_engines_agree_and_auto_is_one_of_them(cell, lengths):
    torch.manual_seed(0)
    stack = Recurrent(3, 4, 2, cell=cell, bidirectional=True)
    batch = packed(lengths, 3, torch.float32)
    answers = []
    for engine in ("auto", "fused", "torch"):
        stack.engine = engine
        answers.append(stack(batch)[0].data)
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(answers[1], answers[2], rtol=0, atol=1e-6)
    assert torch.equal(answers[0], answers[1]) or torch.equal(answers[0], answers[2])


def test_auto_picks_by_device_dtype_and_shape():
    even, uneven = Layout(torch.tensor([64, 64])), Layout(torch.tensor([64, 63]))
    tiny = Layout(torch.tensor([2, 1]))
    rows = torch.zeros(1, 1)
    assert pick_engine("auto", "lstm", rows, uneven, 256) == "fused"
    assert pick_engine("auto", "lstm", rows, even, 256) == "torch"
    assert pick_engine("auto", "lstm", rows.double(), even, 256) == "fused"
    assert pick_engine("auto", "lstm", rows.bfloat16(), uneven, 256) == "torch"
    assert pick_engine("auto", "gru", rows, even, 256) == "fused"
    assert pick_engine("auto", "rnn", rows, even, 256) == "torch"  # few steps, and cheap ones
    assert pick_engine("auto", "rnn", rows, Layout(torch.tensor([64] * 50)), 256) == "fused"
    assert pick_engine("auto", "rnn", rows, uneven, 256) == "fused"
    assert pick_engine("auto", "lstm", rows.to("meta"), uneven, 256) == "torch"
    assert pick_engine("torch", "lstm", rows, uneven, 256) == "torch"
    assert pick_engine("auto", "lstm", rows, tiny, 64) == "torch"
    assert pick_engine("fused", "lstm", rows, tiny, 64) == "fused"
    with torch.no_grad():
        assert pick_engine("auto", "gru", rows, even, 64) == "torch"
        assert pick_engine("auto", "gru", rows, uneven, 64) == "fused"


@pytest.mark.skipif(
    products.micro_kernel(True) is None or not compiled.available(torch.float32), reason="no bfloat16 kernels here"
)
@pytest.mark.parametrize(
    ("threads", "batch", "hidden", "directions", "expected"),
    [
        (1, 20, 200, 1, "fused"),
        (1, 10, 200, 1, "torch"),  # small steps
        (2, 20, 200, 1, "torch"),  # the engine would use one thread, torch's float32 products two
        (2, 40, 200, 1, "fused"),  # two parts of the batch
        (2, 20, 200, 2, "torch"),  # a direction each, and small steps
        (2, 32, 200, 2, "fused"),
        (2, 20, 400, 1, "fused"),
        (16, 64, 256, 2, "fused"),
        (16, 20, 1024, 1, "torch"),
    ],
)
def test_auto_in_bfloat16_takes_torch_where_threads_would_idle(threads, batch, hidden, directions, expected):
    before = torch.get_num_threads()
    layout = Layout(torch.tensor([batch] * 35))
    try:
        torch.set_num_threads(threads)
        with torch.autocast("cpu", torch.bfloat16):
            assert pick_engine("auto", "lstm", torch.zeros(1, 1), layout, hidden, directions) == expected
        assert pick_engine("auto", "lstm", torch.zeros(1, 1), layout, hidden, directions) == "torch"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("cell", REFERENCE)
def test_torchs_engine_has_the_same_dropout_weight_drop_and_sizes(cell):
    """The road a GPU takes, layer by layer, walked on a CPU."""
    arguments = {"cell": cell, "dropout": 0.3, "locked_dropout": True, "weight_drop": 0.4, "output_size": 3}
    stack = Recurrent(4, 5, 3, bidirectional=True, **arguments).double()
    batch = packed([7, 4, 4, 1], 4)
    results = []
    for engine in ("fused", "torch"):
        stack.engine = engine
        stack.zero_grad()
        torch.manual_seed(2)
        output, state = stack(batch)
        (output.data.square().sum() + state[1][0].sum()).backward()
        results.append([output.data, *(part for one in state for part in one), *(p.grad for p in stack.parameters())])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
