"""Small nets of torch that a claim builds, measures and perhaps trains itself: growth, inputs, and luck."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_SENTENCE = "hello pytorch, this is a simple character-level language model."  # the guide's
_WINDOW = 10


def growth(
    seed: int, rates: Sequence[float], steps: int = 40, hidden: int = 64, batch: int = 8
) -> list[dict[str, Any]]:
    """How fast a gradient shrinks or grows on its way back through a recurrence h' = f(U h + x), by the size of U.

    U is `rate` times an orthogonal matrix, which turns a vector and multiplies its length by the rate; f is the
    identity, tanh or ReLU, and x is noise of a tenth.

    Args:
        seed: of matrix, inputs, and the gradient at the last step.
        rates: what U multiplies lengths by.
        steps: that the gradient goes back.
        hidden: features.
        batch: texts.

    Returns:
        rows with `slope`, the change of the decimal logarithm of the gradient's norm a step, by least squares over all
        lags; `beyond`, what that is more than the rate's own logarithm, and its size `off`; and a curve with `lag` and
        `norm`, which is divided by that at lag 0 (geometric means over texts).
    """
    rows: list[dict[str, Any]] = []
    functions = {"identity": nn.Identity(), "tanh": nn.Tanh(), "relu": nn.ReLU()}
    for rate in rates:
        for arm, function in functions.items():
            torch.manual_seed(seed)
            matrix = rate * nn.init.orthogonal_(torch.empty(hidden, hidden, dtype=torch.float64))
            state = torch.randn(batch, hidden, dtype=torch.float64, requires_grad=True)
            states = [state]
            for _ in range(steps):
                noise = 0.1 * torch.randn(batch, hidden, dtype=torch.float64)
                states.append(function(states[-1] @ matrix.T + noise))
            last = torch.randn(batch, hidden, dtype=torch.float64)
            norms = [g.norm(dim=1) for g in torch.autograd.grad(states[-1], states, last)]
            logs = torch.stack(norms[::-1]).clamp_min(1e-300).log10()
            logs = (logs - logs[0]).mean(1)
            lags = torch.arange(steps + 1, dtype=torch.float64)
            centred = lags - lags.mean()
            curve = [{"lag": float(lag), "norm": 10 ** float(log)} for lag, log in zip(lags, logs, strict=True)]
            slope = round(float((centred * logs).sum() / centred.square().sum()), 12)  # what is less is rounding
            beyond = round(slope - math.log10(rate), 12)
            rows.append({"arm": arm, "x": rate, "slope": slope, "beyond": beyond, "off": abs(beyond), "curve": curve})
    return rows


class _Characters(nn.Module):
    """The guide's CharModel with one of three inputs: logits of the next character from ten.

    Args:
        kind: `scalar` (the index over the number of characters, as the guide's code has it), `one-hot` or `embedding`.
        count: different characters.
        hidden: width of both layers.
    """

    def __init__(self, kind: str, count: int, hidden: int) -> None:
        super().__init__()
        self.kind, self.count = kind, count
        sizes = {"scalar": 1, "one-hot": count, "embedding": 32}
        self.lstm = nn.LSTM(sizes[kind], hidden, num_layers=2, batch_first=True)
        self.fc = nn.Linear(hidden, count)
        self.embed = nn.Embedding(count, 32) if kind == "embedding" else None

    def forward(self, ids: Tensor) -> Tensor:
        """Logits `(windows, characters)` of windows of ids, `(windows, 10)`."""
        dtype = self.fc.weight.dtype
        if self.embed is not None:
            x = self.embed(ids)
        elif self.kind == "one-hot":
            x = nn.functional.one_hot(ids, self.count).to(dtype)
        else:
            x = ids[..., None].to(dtype) / self.count
        logits: Tensor = self.fc(self.lstm(x)[0][:, -1])
        return logits


def _windows() -> tuple[Tensor, Tensor, int]:
    """The guide's sentence as 53 windows of ten characters, the character after each, and how many there are."""
    known = {character: index for index, character in enumerate(sorted(set(_SENTENCE)))}
    ids = torch.tensor([known[character] for character in _SENTENCE])
    return ids.unfold(0, _WINDOW, 1)[:-1], ids[_WINDOW:], len(known)


def _learned(net: _Characters, x: Tensor, y: Tensor, epochs: int) -> list[dict[str, float]]:
    """Train as the guide does, all windows at once, and give loss and accuracy before each step and at the end."""
    optimizer = torch.optim.Adam(net.parameters(), lr=0.005)
    curve = []
    for epoch in range(epochs + 1):
        logits = net(x)
        loss = nn.functional.cross_entropy(logits, y)
        right = float((logits.argmax(1) == y).double().mean())
        curve.append({"epoch": float(epoch), "loss": float(loss.detach()), "accuracy": right})
        if epoch < epochs:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return curve


def characters(seed: int, epochs: int = 200, hidden: int = 256) -> list[dict[str, Any]]:
    """What the guide's CharModel learns of its sentence from characters as one number, one-hot, and embedded.

    Args:
        seed: of the weights.
        epochs: of Adam, each a step on all windows.
        hidden: width.

    Returns:
        rows with `loss` in nats and `accuracy` at the end, on the windows that were learned, `learned`, the first epoch
        from which every character is right (one more than there are where that does not come), and a curve by `epoch`.
    """
    x, y, count = _windows()
    rows: list[dict[str, Any]] = []
    for kind in ("scalar", "one-hot", "embedding"):
        torch.manual_seed(seed)
        curve = _learned(_Characters(kind, count, hidden), x, y, epochs)
        learned = 1 + max((point["epoch"] for point in curve if point["accuracy"] < 1), default=-1.0)
        end = {name: curve[-1][name] for name in ("loss", "accuracy")}
        rows.append({"arm": kind, **end, "learned": learned, "curve": curve[::5]})
    return rows


def luck(seed: int, count: int = 4, epochs: int = 60, hidden: int = 64, kind: str = "one-hot") -> list[dict[str, Any]]:
    """How far the losses of equal nets lie apart by their first weights, and by what another machine changes.

    Another machine rounds in other places: here by summing over the windows in another order, or in 64 bits.

    Args:
        seed: which nets.
        count: nets that differ in nothing but their first weights.
        epochs: of Adam.
        hidden: width.
        kind: of the inputs, as `characters` names them.

    Returns:
        rows with `distance` in nats: `other weights`, the standard deviation over the nets; `other order` and
        `64 bits`, the mean distance of a net from itself.
    """
    x, y, different = _windows()
    losses: dict[str, list[float]] = {"as it is": [], "other order": [], "64 bits": []}
    for index in range(count):
        for arm, own in losses.items():
            torch.manual_seed(seed * count + index)
            net = _Characters(kind, different, hidden)
            order = torch.arange(len(y)).flip(0) if arm == "other order" else torch.arange(len(y))
            net = net.double() if arm == "64 bits" else net
            own.append(_learned(net, x[order], y[order], epochs)[-1]["loss"])
    own = losses.pop("as it is")
    apart = {
        arm: statistics.fmean(abs(a - b) for a, b in zip(own, other, strict=True)) for arm, other in losses.items()
    }
    apart["other weights"] = statistics.stdev(own)
    return [{"arm": arm, "distance": distance} for arm, distance in apart.items()]
