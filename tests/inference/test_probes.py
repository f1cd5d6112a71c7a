"""Gradients by lag and the gates are those of the net itself."""

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from recur.data.corpus import start_id
from recur.errors import UserError
from recur.inference import probes
from recur.inference.run import load
from recur.nn.gradient_flow import gradient_by_lag
from recur.nn.recurrent import Recurrent
from support.commands import run_command


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm", "mogrifier"])
def test_the_gradient_by_lag_is_autograds(cell):
    """Against one long pass in which the loss depends on a disturbance added to the state by hand."""
    torch.manual_seed(0)
    net = Recurrent(3, 4, cell=cell).double()
    rows = torch.randn(6, 2, 3, dtype=torch.float64)
    norms = gradient_by_lag(net, rows, lambda hidden: hidden.square().sum(1))
    assert norms.shape == (6, 2)
    lag, text = 2, 1
    state = None
    for step in range(6 - lag):
        _, state = net(torch.nn.utils.rnn.PackedSequence(rows[step], torch.tensor([2])), state)
    assert state is not None
    at = state[0][0].detach().clone().requires_grad_(True)
    now = [(at, *state[0][1:])]
    for step in range(6 - lag, 6):
        _, now = net(torch.nn.utils.rnn.PackedSequence(rows[step], torch.tensor([2])), now)
    gradient = torch.autograd.grad(now[0][0].square().sum(), at)[0]
    assert float(norms[lag, text]) == pytest.approx(float(gradient[0, text].norm()), rel=1e-6)
    assert float(norms[0, 0]) > 0


def test_an_rnn_loses_more_than_an_lstm_with_an_open_forget_gate():
    torch.manual_seed(0)
    rows = torch.randn(30, 8, 5)
    lost = {}
    for cell, bias in (("rnn", None), ("lstm", 3.0)):
        norms = gradient_by_lag(Recurrent(5, 16, cell=cell, forget_bias=bias), rows, lambda h: h.sum(1))
        lost[cell] = float((norms[-1] / norms[0]).log10().mean())
    assert lost["rnn"] < lost["lstm"] - 1


def test_a_stack_that_reads_both_ways_is_refused():
    with pytest.raises(ValueError, match="one way"):
        gradient_by_lag(Recurrent(3, 4, bidirectional=True), torch.randn(2, 1, 3), lambda h: h.sum(1))
    with pytest.raises(UserError, match="gru"):
        probes.lstm_gates(Recurrent(3, 4, cell="gru"), torch.randn(2, 3))


@pytest.mark.parametrize("both", [False, True])
def test_the_gates_give_the_nets_own_output(both):
    torch.manual_seed(1)
    net = Recurrent(3, 4, 2, bidirectional=both).double().eval()
    rows = torch.randn(7, 3, dtype=torch.float64)
    gates = probes.lstm_gates(net, rows)
    output, final = net(pack_sequence([rows]))
    top = gates[-net.directions :]
    assert torch.allclose(torch.cat([side.hidden for side in top], 1), output.data, atol=1e-12)
    assert torch.allclose(top[0].cell[-1], final[-1][1][0, 0], atol=1e-12)
    assert all(((gate > 0) & (gate < 1)).all() for one in gates for gate in (one.input, one.forget, one.output))


@pytest.mark.parametrize("keep", ["head", "both"])
def test_a_classifiers_gates_are_those_of_the_text_as_it_is_cut(trained_run, monkeypatch, keep):
    drawn = []
    monkeypatch.setattr(probes, "gates_chart", lambda *parts, **_: drawn.append(parts))
    run = load(trained_run)
    run.config["data"] |= {"max_length": 4, "keep": keep}
    probes.write_gates(run, "the plot was dull but the film was superb", None)
    cut = {"head": "the plot was dull", "both": "the plot was superb"}[keep]
    run.config["data"]["max_length"] = None
    probes.write_gates(run, cut, None)
    (tokens, gates, _), (others, alone, _) = drawn
    assert tokens == others == cut.split()
    assert all(torch.equal(one.hidden, other.hidden) for one, other in zip(gates, alone, strict=True))


def test_a_language_runs_gates_follow_the_start_token(language_run, monkeypatch):
    drawn = []
    monkeypatch.setattr(probes, "gates_chart", lambda *parts, **_: drawn.append(parts))
    run = load(language_run)
    for window, before in ((10, []), (None, [start_id(run.tokenizer)])):  # with which streams alone begin
        monkeypatch.setattr(run.task, "window", window)
        probes.write_gates(run, "the", None)
        tokens, gates, _ = drawn.pop()
        ids = torch.tensor([*before, *run.tokenizer.encode("the")])
        with torch.no_grad():
            output, _ = run.task.net.recurrent(pack_sequence([run.task.net.embedding(ids)]))
        hidden = output.data[len(before) :]
        assert tokens == ["t", "h", "e"] and torch.allclose(gates[-1].hidden, hidden, atol=1e-6)


def test_predict_draws_the_gates(trained_run, tmp_path):
    path = tmp_path / "gates.svg"
    done = run_command("predict", trained_run, "the film was not bad $", "--gates", path)
    assert done.returncode == 0, done.stderr
    assert "<svg" in path.read_text()
    for words in ((), ("a", "b")):
        refused = run_command("predict", trained_run, *words, "--gates", path)
        assert (refused.returncode, "draws one text" in refused.stderr) == (2, True)
