"""A model fed token by token gives what it gives by itself, from any state and for every cell that the kernels walk."""

import pytest
import torch

from recur.nn import compiled, products
from recur.nn.language_model import LanguageModel
from recur.nn.stepping import CELLS, stepper

pytest.importorskip("numba")
pytestmark = pytest.mark.skipif(not compiled.available(torch.float32), reason="no compiled kernels on this machine")
bf16_machine = pytest.mark.skipif(products.micro_kernel(True) is None, reason="no bfloat16 products in hardware")


def fed(net, state, tokens, bf16=False):
    """Logits of each step by the stepper, and those of the model itself; `tokens` are (time, batch)."""
    mine, own = [], []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        stepping = stepper(net, tokens.shape[1])
        stepping.load(state)
        for ids in tokens:
            mine.append(stepping.step(ids).clone())
            logits, state = net.step(ids, state)
            own.append(logits)
        return torch.stack(mine), torch.stack(own), stepping.state(), state


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_gives_the_models_own_logits_and_state(cell, batch):
    torch.manual_seed(0)
    net = LanguageModel(131, embedding_dim=9, hidden_size=11, num_layers=2, cell=cell, output_size=9).eval()
    tokens = torch.randint(131, (6, batch))
    _, state = net.step(tokens[0])
    mine, own, after, expected = fed(net, state, tokens)
    torch.testing.assert_close(mine, own, rtol=0, atol=2e-6)
    for got, want in zip(after, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=2e-6)


@bf16_machine
def test_in_bfloat16_under_autocast():
    torch.manual_seed(0)
    net = LanguageModel(131, embedding_dim=9, hidden_size=12, project=True).eval()
    tokens = torch.randint(131, (6, 2))
    _, state = net.step(tokens[0])
    low, _, _, _ = fed(net, state, tokens, bf16=True)
    exact, own, _, _ = fed(net, state, tokens)
    torch.testing.assert_close(exact, own, rtol=0, atol=2e-6)
    assert not torch.equal(low, exact)
    assert (low - exact).norm() < 2e-2 * exact.norm()


def test_the_words_are_shared_out_over_threads(monkeypatch):
    torch.manual_seed(0)
    net = LanguageModel(1000, embedding_dim=8, hidden_size=8).eval()
    tokens = torch.randint(1000, (3, 2))
    _, state = net.step(tokens[0])
    one, *_ = fed(net, state, tokens)
    before = torch.get_num_threads()
    monkeypatch.setattr(compiled, "THREADED_WORK", 0)
    try:
        torch.set_num_threads(3)
        three, *_ = fed(net, state, tokens)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, three)


def test_the_weights_are_those_of_the_moment_it_was_made():
    torch.manual_seed(0)
    net = LanguageModel(50, embedding_dim=8, hidden_size=8).eval()
    ids = torch.tensor([3])
    _, state = net.step(ids)
    stepping = stepper(net, 1)
    stepping.load(state)
    before = stepping.step(ids).clone()
    with torch.no_grad():
        net.recurrent.weight_hh_l0.mul_(2)
    stepping.load(state)
    assert torch.equal(before, stepping.step(ids))
    made = stepper(net, 1)
    made.load(state)
    assert not torch.equal(before, made.step(ids))


@pytest.mark.parametrize("net", [{"cell": "qrnn"}, {"cell": "mogrifier"}, {"double": True}])
def test_what_the_kernels_do_not_walk_is_left_to_the_model(net):
    made = LanguageModel(50, embedding_dim=8, hidden_size=8, cell=net.get("cell", "lstm")).eval()
    assert stepper(made.double() if net.get("double") else made, 1) is None


def test_torchs_default_dtype_does_not_matter(float64_by_default):
    net = LanguageModel(131, embedding_dim=9, hidden_size=11, num_layers=2, tie_weights=False).float().eval()
    tokens = torch.randint(131, (6, 3))
    _, state = net.step(tokens[0])
    mine, own, _, _ = fed(net, state, tokens)
    assert mine.dtype == torch.float32
    torch.testing.assert_close(mine, own, rtol=0, atol=2e-6)
