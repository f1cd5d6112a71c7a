"""What is counted of a network's products, against torch's own counter."""

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils.flop_counter import FlopCounterMode

from recur.nn import CELLS
from recur.nn.classifier import Classifier
from recur.nn.costs import matrix_rate, multiplications
from recur.nn.language_model import LanguageModel
from recur.nn.recurrent import Recurrent

STEPS, BATCH = 7, 5


def _counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("sizes", [{}, {"output_size": 12}, {"bidirectional": True}], ids=str)
@pytest.mark.parametrize("cell", sorted(set(CELLS) - {"qrnn"}))
def test_a_pass_multiplies_what_is_counted(cell, sizes):
    """Every product of every row, whatever the cell: in torch's own operations, which its counter sees."""
    torch.manual_seed(0)
    net = Recurrent(8, 16, 2, cell=cell, **sizes).double()  # no kernel of ours or of oneDNN takes float64
    rows = torch.randn(STEPS * BATCH, 8, dtype=torch.float64)
    text = PackedSequence(rows, torch.full((STEPS,), BATCH))
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr("recur.nn.compiled.available", lambda dtype: False)
        counted = _counted(lambda: net(text))
    if not counted:
        pytest.skip("torch counts nothing inside of its own recurrent layers")
    assert counted == pytest.approx(2 * STEPS * BATCH * multiplications(net))


def test_a_tied_output_layer_counts_and_an_embedding_does_not():
    tied = LanguageModel(100, embedding_dim=8, hidden_size=8, num_layers=1)
    untied = LanguageModel(100, embedding_dim=8, hidden_size=8, num_layers=1, tie_weights=False)
    assert multiplications(tied) == multiplications(untied) == 100 * 8 + 4 * 8 * 16
    classifier = Classifier(100, 2, embedding_dim=8, hidden_size=8, bidirectional=False, ngrams={})
    assert multiplications(classifier) == 4 * 8 * 16 + 8


def test_the_rate_of_products_is_one_of_this_planet():
    assert 1e8 < matrix_rate(torch.float32) < 1e16


@pytest.mark.parametrize(("allowed", "expected"), [(True, "tf32"), (False, "ieee")])
def test_the_rate_is_that_of_products_as_cudnn_has_them(allowed, expected, monkeypatch):
    seen, before, drawn = [], torch.backends.cuda.matmul.fp32_precision, torch.get_rng_state()

    def product(a, b):
        assert a.shape == (1024, 1024) and a.std() == pytest.approx(1, abs=0.01), "of random numbers"
        seen.append(torch.backends.cuda.matmul.fp32_precision)

    monkeypatch.setattr(torch, "mm", product)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
        matrix_rate(torch.float32)
    assert set(seen) == {expected}
    assert torch.backends.cuda.matmul.fp32_precision == before and torch.equal(torch.get_rng_state(), drawn)
