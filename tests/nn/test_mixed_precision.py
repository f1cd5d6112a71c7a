"""bfloat16 products on a CPU: both families learn what they learn in float32, whose states and weights they keep."""

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from recur.nn import compiled, products
from recur.nn.classifier import Classifier
from recur.nn.language_model import LanguageModel
from recur.nn.losses import linear_cross_entropy

pytestmark = pytest.mark.skipif(
    products.micro_kernel(True) is None or not compiled.available(torch.float32),
    reason="no compiled kernels with bfloat16 products on this machine",
)
SEEDS = (0, 1, 2)


def trained(build, batch_of, loss_of, low, seed, steps, rate):
    """Mean loss over the last 20 steps of a short training."""
    torch.manual_seed(seed)
    net = build()
    optimizer = torch.optim.Adam(net.parameters(), rate)
    losses = []
    for step in range(steps):
        torch.manual_seed(1000 * seed + step)
        batch = batch_of()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = loss_of(net, batch)
        assert loss.dtype == torch.float32
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in net.parameters())
    return sum(losses[-20:]) / 20


def reviews():
    """The label is whether token 1 or token 2 stands in the text, among others."""
    labels = torch.randint(2, (16,))
    texts = [torch.randint(3, 40, (int(n),)) for n in torch.randint(5, 30, (16,)).sort(descending=True).values]
    for text, label in zip(texts, labels.tolist(), strict=True):
        text[torch.randint(len(text), (1,))] = 1 + label
    return pack_sequence(texts), labels


def classified(net, batch):
    text, labels = batch
    return torch.nn.functional.binary_cross_entropy_with_logits(net(text).squeeze(1).float(), labels.float())


def words():
    """Each word follows from the one before, but for one in ten."""
    rows = [torch.randint(1200, (8,))]
    for _ in range(20):
        follows = (rows[-1] * 7 + 3) % 60
        rows.append(torch.where(torch.rand(8) < 0.1, torch.randint(60, (8,)), follows))
    ids = torch.stack(rows)  # (time, streams)
    return PackedSequence(ids[:-1].reshape(-1), torch.full((20,), 8)), ids[1:].reshape(-1)


def predicted(net, batch):
    text, targets = batch
    hidden = net(text)
    return linear_cross_entropy(hidden.features, net.decoder.weight, net.decoder.bias, targets).loss


FAMILIES = {
    "sentiment": (lambda: Classifier(40, 2, embedding_dim=16, hidden_size=32), reviews, classified, 120, 0.01),
    "language": (lambda: LanguageModel(1200, embedding_dim=32, hidden_size=32), words, predicted, 120, 0.01),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_learns_what_float32_learns(family):
    build, batch_of, loss_of, steps, rate = FAMILIES[family]
    runs = {low: [trained(build, batch_of, loss_of, low, s, steps, rate) for s in SEEDS] for low in (False, True)}
    exact, low = (torch.tensor(runs[key], dtype=torch.float64) for key in (False, True))
    start = {"sentiment": 0.6931, "language": 7.09}[family]
    assert exact.mean() < 0.7 * start, "float32 has not learnt: the comparison would show nothing"
    standard_error = exact.std() / len(SEEDS) ** 0.5
    assert (low - exact).mean().abs() < max(standard_error.item(), 0.02 * start)
