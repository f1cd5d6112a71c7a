"""Each cell equals its own naive loop over single sequences: packed, carried, in both directions."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from recur.nn.cells import CELLS, scan
from recur.nn.packed import Layout
from recur.nn.recurrent import Recurrent, detach_state

LENGTHS = [7, 7, 5, 2, 1, 1]
OPTIONS = {
    "mingru": {},
    "qrnn": {"window": 1},
    "qrnn2": {"window": 2},
    "lnlstm": {},
    "peephole": {},
    "mogrifier": {"rounds": 5},
    "mogrifier2": {"rounds": 2},
}


def naive_mingru(w, x, state):
    (h,), out = state, []
    for row in x:
        z, candidate = (w["weight_ih"] @ row + w["bias_ih"]).chunk(2)
        h = (1 - z.sigmoid()) * h + z.sigmoid() * candidate
        out.append(h)
    return torch.stack(out), (h,)


def naive_qrnn(w, x, state):
    window = len(state)
    c, out = state[0], []
    before = state[-1]
    for row in x:
        seen = torch.cat([row, before]) if window == 2 else row
        before = row
        z, f, o = (w["weight_ih"] @ seen + w["bias_ih"]).chunk(3)
        c = f.sigmoid() * c + (1 - f.sigmoid()) * z.tanh()
        out.append(o.sigmoid() * c)
    return torch.stack(out), (c, before)[:window]


def norm(x, gain, bias):
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() * gain + bias


def naive_lnlstm(w, x, state):
    (h, c), out = state, []
    for row in x:
        gates = norm(w["weight_ih"] @ row, w["gain_ih"], w["bias_ih"])
        gates = gates + norm(w["weight_hh"] @ h, w["gain_hh"], w["bias_hh"])
        i, f, g, o = gates.chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * norm(c, w["gain_c"], w["bias_c"]).tanh()
        out.append(h)
    return torch.stack(out), (h, c)


def naive_peephole(w, x, state):
    (h, c), out = state, []
    peep_i, peep_f, peep_o = w["weight_ch"].chunk(3)
    for row in x:
        i, f, g, o = (w["weight_ih"] @ row + w["bias_ih"] + w["weight_hh"] @ h + w["bias_hh"]).chunk(4)
        i, f = i + peep_i * c, f + peep_f * c
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = (o + peep_o * c).sigmoid() * c.tanh()
        out.append(h)
    return torch.stack(out), (h, c)


def naive_mogrifier(w, x, state):
    (h, c), out = state, []
    for row in x:
        number = 1
        while f"weight_round{number}" in w:
            matrix = w[f"weight_round{number}"]
            if number % 2 == 1:
                row = 2 * torch.sigmoid(matrix @ h) * row
            else:
                h = 2 * torch.sigmoid(matrix @ row) * h
            number += 1
        i, f, g, o = (w["weight_ih"] @ row + w["bias_ih"] + w["weight_hh"] @ h + w["bias_hh"]).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        out.append(h)
    return torch.stack(out), (h, c)


NAIVE = {"mingru": naive_mingru, "qrnn": naive_qrnn, "lnlstm": naive_lnlstm, "mogrifier": naive_mogrifier}
NAIVE |= {"peephole": naive_peephole}


def build(name, *sizes, **arguments):
    torch.manual_seed(0)
    stack = Recurrent(*sizes, cell=name.rstrip("2"), **OPTIONS[name], **arguments).double()
    for parameter in stack.parameters():  # gains of one and zero biases would hide mistakes
        torch.nn.init.normal_(parameter, std=0.6)
    return stack


def sequences(size):
    return [torch.randn(n, size, dtype=torch.float64) for n in LENGTHS]


def naive_layer(stack, rows, state, suffix, reverse):
    """One direction of a one-layer stack, one sequence at a time."""
    weights = {n.removesuffix(f"_l0{suffix}"): p for n, p in stack.named_parameters() if n.endswith(f"_l0{suffix}")}
    results = []
    for i, x in enumerate(rows):
        out, last = NAIVE[stack.cell](weights, x.flip(0) if reverse else x, tuple(part[i] for part in state))
        results.append((out.flip(0) if reverse else out, last))
    return results


@pytest.mark.parametrize("name", OPTIONS)
def test_equals_its_naive_loop_in_both_directions_with_gradients(name):
    stack = build(name, 3, 4, bidirectional=True)
    rows = sequences(3)
    state = [tuple(torch.randn_like(part, requires_grad=True) for part in stack.initial_state(6, rows[0])[0])]
    answer, final = stack(pack_sequence(rows), state)
    naive = [
        naive_layer(stack, rows, [part[d] for part in state[0]], suffix, bool(d))
        for d, suffix in enumerate(("", "_reverse"))
    ]
    expected = pack_sequence([torch.cat([f[0], r[0]], 1) for f, r in zip(*naive, strict=True)])
    torch.testing.assert_close(answer.data, expected.data, rtol=0, atol=1e-12)
    for part, got in enumerate(final[0]):
        want = torch.stack([torch.stack([last[part] for _, last in one]) for one in naive])
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    weight = torch.randn_like(answer.data)
    wanted = [*stack.parameters(), *state[0]]
    got = torch.autograd.grad((answer.data * weight).sum() + final[0][0].sum(), wanted)
    loss = (expected.data * weight).sum() + sum(last[0].sum() for one in naive for _, last in one)
    for a, b in zip(got, torch.autograd.grad(loss, wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", [*OPTIONS, "lstm", "gru", "rnn"])
def test_windows_with_carried_state_equal_one_pass(name):
    OPTIONS.setdefault(name, {})
    stack = build(name, 3, 4, 2)
    data = torch.randn(10 * 3, 3, dtype=torch.float64)
    expected, _ = stack(PackedSequence(data, torch.full((10,), 3)))
    state, pieces = None, []
    for rows in data.split(3 * 4):
        output, state = stack(PackedSequence(rows, torch.full((len(rows) // 3,), 3)), state)
        state = detach_state(state)
        pieces.append(output.data)
    torch.testing.assert_close(torch.cat(pieces), expected.data, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [*OPTIONS, "lstm", "gru", "rnn", "rnn_relu"])
def test_a_sequence_does_not_depend_on_its_neighbours(name):
    OPTIONS.setdefault(name, {})
    stack = build(name, 3, 4, 2, bidirectional=True)
    rows = sequences(3)
    together, _ = stack(pack_sequence(rows))
    padded, lengths = torch.nn.utils.rnn.pad_packed_sequence(together)
    for i, x in enumerate(rows):
        alone, _ = stack(pack_sequence([x]))
        torch.testing.assert_close(padded[: lengths[i], i], alone.data, rtol=0, atol=1e-12)


def test_every_cell_is_tested_here():
    assert set(CELLS) == set(NAIVE) | {"lstm", "gru", "rnn", "rnn_relu"}


def test_mogrifier_of_no_rounds_is_an_lstm():
    torch.manual_seed(0)
    plain, gated = Recurrent(3, 4), Recurrent(3, 4, cell="mogrifier", rounds=0)
    gated.load_state_dict(plain.state_dict())
    batch = pack_sequence([torch.randn(5, 3), torch.randn(2, 3)])
    torch.testing.assert_close(plain(batch)[0].data, gated(batch)[0].data)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("method", ["walk", "double"])
def test_scan_equals_a_loop_and_its_gradient_is_right(method, reverse):
    torch.manual_seed(0)
    layout = Layout(pack_sequence([torch.zeros(n) for n in LENGTHS]).batch_sizes)
    a = torch.rand(sum(LENGTHS), 2, dtype=torch.float64, requires_grad=True)
    b = torch.randn(sum(LENGTHS), 2, dtype=torch.float64, requires_grad=True)
    initial = torch.randn(len(LENGTHS), 2, dtype=torch.float64, requires_grad=True)
    answer = scan(a, b, layout, initial, reverse, method)
    for i, length in enumerate(LENGTHS):
        h, mine = initial[i], (layout.places == i).nonzero().squeeze(1)
        assert len(mine) == length
        for row in mine.flip(0) if reverse else mine:
            h = a[row] * h + b[row]
            torch.testing.assert_close(answer[row], h, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *t: scan(*t[:2], layout, t[2], reverse, method), (a, b, initial))


@pytest.mark.parametrize("method", ["walk", "double"])
def test_scan_survives_long_products_of_small_and_zero_factors(method):
    layout = Layout(torch.ones(3000, dtype=torch.int64))
    a, b = torch.full((3000, 1), 1e-3), torch.ones(3000, 1)
    a[1500] = 0
    answer = scan(a.requires_grad_(), b, layout, torch.ones(1, 1), False, method)
    answer.sum().backward()
    torch.testing.assert_close(answer[1:1500], torch.full((1499, 1), 1 / 0.999), rtol=1e-5, atol=1e-2)
    assert answer[1500] == 1
    assert a.grad.isfinite().all()


@pytest.mark.slow
def test_weight_drop_finds_the_weights_of_every_cell():
    for name in NAIVE:
        stack = Recurrent(3, 8, cell=name, weight_drop=0.5)
        batch = PackedSequence(torch.randn(12, 3), torch.tensor([4, 4, 4]))
        stack(batch)[0].data.sum().backward()
        dropped = stack.weight_ih_l0 if name in ("mingru", "qrnn") else stack.weight_hh_l0
        assert 0.25 < (dropped.grad == 0).float().mean() < 0.75, name


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OPTIONS, "lstm", "gru", "rnn"])
def test_autocast_changes_little(name):
    OPTIONS.setdefault(name, {})
    stack = build(name, 3, 4, 2, bidirectional=True).float()
    batch = pack_sequence([x.float() for x in sequences(3)])
    expected, _ = stack(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lower, state = stack(batch._replace(data=batch.data.bfloat16()))
        lower.data.float().sum().backward()
        stack(batch, detach_state(state))
    assert all(p.grad.isfinite().all() for p in stack.parameters())
    torch.testing.assert_close(lower.data.float(), expected.data, rtol=0.1, atol=0.15)


@pytest.mark.parametrize("name", ["mingru", "qrnn", "lnlstm", pytest.param("mogrifier", marks=pytest.mark.slow)])
def test_gates_near_one_are_not_rounded_to_it_under_autocast(name, monkeypatch):
    """Off the compiled kernels, as on a GPU: over 400 steps a gate that keeps everything is another one."""
    monkeypatch.setattr("recur.nn.compiled.available", lambda dtype: False)
    torch.manual_seed(0)
    steps, batch, hidden = 400, 4, 16
    text = PackedSequence(torch.randn(steps * batch, 8), torch.full((steps,), batch))
    stack = Recurrent(8, hidden, cell=name, forget_bias=None)
    gate = slice(hidden) if name == "mingru" else slice(hidden, 2 * hidden)
    with torch.no_grad():
        stack.bias_ih_l0[gate] += -7 if name == "mingru" else 7  # z of a minGRU is what it lets in
    outputs, gradients = [], []
    for low in (False, True):
        stack.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            output = stack(text)[0].data
        output.square().mean().backward()
        outputs.append(output.detach())
        gradients.append(stack.bias_ih_l0.grad[gate])
    exact, lower = outputs
    error = (lower - exact).square().mean().sqrt() / exact.std()
    assert error < 0.02
    assert (gradients[1] - gradients[0]).norm() < 0.2 * gradients[0].norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*OPTIONS, "lstm", "gru", "rnn"])
def test_a_module_of_16_bits_keeps_them(name, dtype):
    OPTIONS.setdefault(name, {})
    stack = build(name, 3, 4, 2, bidirectional=True).to(dtype)
    batch = pack_sequence([x.to(dtype) for x in sequences(3)])
    exact = build(name, 3, 4, 2, bidirectional=True).float()
    exact.load_state_dict(stack.state_dict())
    expected, wanted = exact(batch._replace(data=batch.data.float()))
    answer, final = stack(batch)
    _, later = stack(batch, final)
    finals = [part for one in (final, later) for layer in one for part in layer]
    assert {part.dtype for part in (answer.data, *finals)} == {dtype}
    answer.data.sum().backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in stack.parameters())
    torch.testing.assert_close(answer.data.float(), expected.data, rtol=0.05, atol=0.05)
    for got, want in zip(finals, (part for layer in wanted for part in layer), strict=False):
        torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.05)


def test_options_are_checked():
    with pytest.raises(ValueError, match="window"):
        Recurrent(3, 4, cell="qrnn", window=3)
    with pytest.raises(ValueError, match="rounds"):
        Recurrent(3, 4, cell="mogrifier", rounds=-1)
    with pytest.raises(ValueError, match="rounds"):
        Recurrent(3, 4, cell="lstm", rounds=3)


def test_layer_norm_is_torchs():
    x, gain, bias = torch.randn(8), torch.randn(8), torch.randn(8)
    torch.testing.assert_close(norm(x, gain, bias), F.layer_norm(x, (8,), gain, bias))
