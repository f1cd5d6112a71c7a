"""Dropout inside the recurrence: off it changes nothing, on it touches the state and not the output."""

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from recur.nn.recurrent import Recurrent
from recur.nn.state_dropout import run_with_state_dropout


@pytest.fixture
def texts():
    torch.manual_seed(0)
    return pack_sequence([torch.randn(n, 3, dtype=torch.float64) for n in (6, 4, 1)])


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn", "rnn_relu"])
@pytest.mark.parametrize("both", [False, True])
def test_without_dropping_it_is_the_layer_itself(cell, both, texts, monkeypatch):
    net = Recurrent(3, 4, 2, cell=cell, bidirectional=both, state_dropout=0.5).double()
    output, final = net.eval()(texts)
    monkeypatch.setattr("recur.nn.recurrent.run_with_state_dropout", lambda *a: run_with_state_dropout(*a[:-1], 0.0))
    stepwise, last = net.train()(texts)
    assert torch.allclose(output.data, stepwise.data, atol=1e-12)
    for a, b in zip(final, last, strict=True):
        assert all(torch.allclose(x, y, atol=1e-12) for x, y in zip(a, b, strict=True))


def test_it_acts_in_training_from_the_second_step_on(texts):
    net = Recurrent(3, 4, state_dropout=0.9).double()
    with torch.no_grad():
        calm, wild = net.eval()(texts)[0].data, net.train()(texts)[0].data
    first = int(texts.batch_sizes[0])
    assert torch.allclose(calm[:first], wild[:first], atol=1e-12), "the first step comes from a state of zeros"
    assert not torch.allclose(calm[first:], wild[first:], atol=1e-3)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn", "rnn_relu"])
def test_mixed_precision_leaves_the_recurrence_in_float32(cell, texts):
    """A GPU's autocast has these steps in its list: it would carry the states in 16 bits."""
    net = Recurrent(3, 4, 2, cell=cell, bidirectional=True, state_dropout=0.5)
    rows = texts.data.bfloat16()
    outputs = []
    for low in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            output, final = net(texts._replace(data=rows if low else rows.float()))
        outputs.append((output.data, *(part for layer in final for part in layer)))
    for exact, lower in zip(*outputs, strict=True):
        assert lower.dtype == torch.float32 and torch.equal(lower, exact)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="state_dropout"):
        Recurrent(3, 4, state_dropout=1.0)
    with pytest.raises(ValueError, match="mingru"):
        Recurrent(3, 4, cell="mingru", state_dropout=0.1)
