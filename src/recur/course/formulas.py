"""The quiz and the shapes: formulas against autograd and finite differences, and what the layers of torch give back.

The formulas are those at the head of `recur.nn.engine`; here they are written out once more for a single step, and the
engine itself is asked as well.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence, pad_sequence

from recur.nn import LSTM
from recur.nn.recurrent import Recurrent

_DIFFERENT = "h_n of padded texts and of each text alone"  # where a distance is wanted


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + torch.exp(-x))


def sigmoid_slope(x: Tensor) -> Tensor:
    """sigma(x) (1 - sigma(x))."""
    return sigmoid(x) * (1 - sigmoid(x))


def tanh(x: Tensor) -> Tensor:
    """2 sigma(2x) - 1."""
    return 2 * sigmoid(2 * x) - 1


def tanh_slope(x: Tensor) -> Tensor:
    """1 - tanh(x)^2."""
    return 1 - tanh(x) ** 2


def lstm_step(x: Tensor, h: Tensor, c: Tensor, w: Tensor, u: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """One step of an LSTM, gates in the order i, f, g, o.

    Args:
        x: input, `(batch, input)`.
        h: hidden state, `(batch, hidden)`.
        c: cell state, `(batch, hidden)`.
        w: `(4 * hidden, input)`.
        u: `(4 * hidden, hidden)`.
        b: `(4 * hidden,)`.

    Returns:
        new hidden and cell state.
    """
    i, f, g, o = (x @ w.T + h @ u.T + b).chunk(4, 1)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def lstm_step_gradient(
    x: Tensor, h: Tensor, c: Tensor, w: Tensor, u: Tensor, b: Tensor, dh: Tensor, dc: Tensor
) -> dict[str, Tensor]:
    """Gradients of one step by hand, from those that arrive at the new hidden (`dh`) and cell state (`dc`)."""
    i, f, g, o = (x @ w.T + h @ u.T + b).chunk(4, 1)
    i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
    squashed = tanh(f * c + i * g)
    dc = dc + dh * o * (1 - squashed**2)
    d = torch.cat([dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g**2), dh * squashed * o * (1 - o)], 1)
    return {"x": d @ w, "h": d @ u, "c": dc * f, "w": d.T @ x, "u": d.T @ h, "b": d.sum(0)}


def _finite(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-6) -> Tensor:
    """Central differences of a scalar function, entry by entry."""
    slopes = torch.zeros_like(at)
    for index in range(at.numel()):
        moved = torch.zeros_like(at).flatten()
        moved[index] = step
        moved = moved.view_as(at)
        slopes.view(-1)[index] = (function(at + moved) - function(at - moved)) / (2 * step)
    return slopes


def _error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().abs().max() / theirs.abs().max().clamp_min(1e-300))


def quiz(seed: int) -> list[dict[str, Any]]:
    """Errors of formulas and finite differences against autograd, relative to the largest entry, in float64.

    Args:
        seed: of the inputs and weights.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    rows: list[dict[str, Any]] = []
    x = random(64).requires_grad_(True)
    for name, function, slope in (("sigmoid", torch.sigmoid, sigmoid_slope), ("tanh", torch.tanh, tanh_slope)):
        truth = torch.autograd.grad(function(x).sum(), x)[0]
        near = _finite(lambda v, f=function: f(v).sum(), x.detach())  # type: ignore[misc]
        rows.append({"arm": "formula", "x": f"{name}'", "error": _error(slope(x.detach()), truth)})
        rows.append({"arm": "finite differences", "x": f"{name}'", "error": _error(near, truth)})
    inputs = {"x": random(3, 5), "h": random(3, 4), "c": random(3, 4), "w": random(16, 5), "u": random(16, 4)}
    inputs["b"] = random(16)
    dh, dc = random(3, 4), random(3, 4)

    def scalar(**values: Tensor) -> Tensor:
        h, c = lstm_step(**values)
        return (h * dh).sum() + (c * dc).sum()

    tracked = {name: value.clone().requires_grad_(True) for name, value in inputs.items()}
    truths = dict(zip(tracked, torch.autograd.grad(scalar(**tracked), list(tracked.values())), strict=True))
    by_hand = lstm_step_gradient(**inputs, dh=dh, dc=dc)
    for name, truth in truths.items():
        near = _finite(lambda v, n=name: scalar(**{**inputs, n: v}), inputs[name])  # type: ignore[misc]
        rows.append({"arm": "formula", "x": f"LSTM step, d{name}", "error": _error(by_hand[name], truth)})
        rows.append({"arm": "finite differences", "x": f"LSTM step, d{name}", "error": _error(near, truth)})
    rows += _engine(seed)
    worst = {arm: max(row["error"] for row in rows if row["arm"] == arm) for arm in {row["arm"] for row in rows}}
    return [*rows, *({"arm": arm, "x": "all", "error": error} for arm, error in worst.items())]


def _engine(seed: int) -> list[dict[str, Any]]:
    """The engine's gradients on packed sequences of unequal length against torch's own."""
    rows = []
    for cell in ("lstm", "gru", "rnn"):
        torch.manual_seed(seed)
        nets = [Recurrent(5, 4, cell=cell, engine=engine).double() for engine in ("fused", "torch")]
        nets[1].load_state_dict(nets[0].state_dict())
        texts = pack_sequence([torch.randn(length, 5, dtype=torch.float64) for length in (7, 4, 2)])
        gradients = []
        for net in nets:
            output, _ = net(texts)
            gradients.append(torch.autograd.grad(output.data.square().sum(), list(net.parameters())))
        error = max(_error(ours, theirs) for ours, theirs in zip(*gradients, strict=True))
        rows.append({"arm": "engine", "x": f"{cell} over time", "error": error})
    return rows


def shapes(seed: int) -> list[dict[str, Any]]:
    """What the guides' shape blocks print and say, as numbers: 0 wrong shapes, no distance where things are equal.

    Args:
        seed: of the inputs and weights.

    Returns:
        rows with `distance`; what is asked of torch's layer and of recur's has `x`, and at `worst` the worse of both.
    """
    torch.manual_seed(seed)
    x = torch.randn(32, 10, 50)  # (batch, time, features)
    stacked = nn.LSTM(50, 100, num_layers=4, batch_first=True)
    both = nn.LSTM(50, 100, num_layers=2, batch_first=True, bidirectional=True)
    two, gru = nn.LSTM(50, 100, 2, batch_first=True), nn.GRU(50, 100, 2, batch_first=True)
    output, (h, c) = two(x)
    output_gru, h_gru = gru(x)
    output_both, (h_both, _) = both(x)
    pairs = [
        (stacked(x)[0], (32, 10, 100)),
        (output, (32, 10, 100)),
        (h, (2, 32, 100)),
        (c, (2, 32, 100)),
        (output_gru, (32, 10, 100)),
        (h_gru, (2, 32, 100)),
        (output_both, (32, 10, 200)),
        (h_both, (4, 32, 100)),
        *_notebook(),
    ]
    dropped = nn.LSTM(50, 100, num_layers=4, batch_first=True, dropout=0.3)
    one = Recurrent(50, 100, 2, bidirectional=True, engine="fused")  # not torch's own pass against itself
    one.load_state_dict(both.state_dict())
    ours, final = one(pack_sequence(list(x)))
    distances = {
        "shapes that differ from the guides'": float(sum(tuple(got.shape) != wanted for got, wanted in pairs)),
        "last output and h_n": _gap(output[:, -1], h[-1]),
        "forward half of the last output and h_n[-2]": _gap(output_both[:, -1, :100], h_both[-2]),
        "backward half of the first output and h_n[-1]": _gap(output_both[:, 0, 100:], h_both[-1]),
        "backward half of the last output and h_n[-1]": _gap(output_both[:, -1, 100:], h_both[-1]),
        "train and eval outputs under dropout": _gap(dropped.train()(x)[0], dropped.eval()(x)[0]),
        "recur's output and torch's": _gap(ours.data, output_both.transpose(0, 1).flatten(0, 1)),
        "recur's final state and h_n": _gap(torch.cat([layer[0] for layer in final]), h_both),
    }
    rows: list[dict[str, Any]] = [{"arm": name, "distance": distance} for name, distance in distances.items()]
    layers: dict[str, Callable[..., nn.LSTM]] = {"torch": nn.LSTM, "recur": partial(LSTM, engine="fused")}
    said = {name: _said(layer, seed) for name, layer in layers.items()}
    for arm in said["torch"]:
        own = {name: values[arm] for name, values in said.items()}
        worst = min(own.values()) if arm == _DIFFERENT else max(own.values())
        rows += [{"arm": arm, "x": name, "distance": value} for name, value in {**own, "worst": worst}.items()]
    return rows


def _notebook() -> list[tuple[Tensor, tuple[int, ...]]]:
    """What the notebook's BiLSTM_Classifier computes on its own batch, and the shapes it is said to have."""
    words = nn.Embedding(40, 256)(torch.randint(40, (4, 10)))
    output, (h, c) = nn.LSTM(256, 256, batch_first=True, bidirectional=True)(words)
    logits = nn.Linear(512, 2)(torch.cat([h[-2], h[-1]], 1))
    shapes = ((4, 10, 256), (4, 10, 512), (2, 4, 256), (2, 4, 256), (4, 2))
    return list(zip((words, output, h, c, logits), shapes, strict=True))


def _said(layer: Callable[..., nn.LSTM], seed: int) -> dict[str, float]:
    """What the guides say of packed texts, of the order of h_n and of dropout, for a class like `nn.LSTM`.

    The texts have the lengths of the guide's own, 7, 4 and 2.
    """
    torch.manual_seed(seed)
    texts = [torch.randn(length, 10) for length in (7, 4, 2)]
    reader = layer(10, 20)
    output, (h, _) = reader(pack_sequence(texts))
    unpacked, lengths = pad_packed_sequence(output, batch_first=True, total_length=8)
    ends = list(zip(unpacked.detach(), lengths.tolist(), strict=True))
    alone = torch.cat([reader(text[:, None])[1][0] for text in texts], 1)
    stack = layer(10, 20, 2, bidirectional=True)
    dropped = layer(10, 20, 2, dropout=0.5)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="dropout option adds dropout after all but last")
        single = layer(10, 20, 1, dropout=0.5)
    x = pad_sequence(texts)  # (time, batch, features)
    return {
        "largest output behind a text's end": max(float(row[n:].abs().max()) for row, n in ends),
        "h_n of packed texts and of each text alone": _gap(h, alone),
        _DIFFERENT: _gap(reader(x)[1][0], alone),
        "h_n and one-layer nets in the order said": _gap(stack(x)[1][0], _by_layer(stack, x)),
        "train and eval outputs of one layer with dropout": _gap(single.train()(x)[0], single.eval()(x)[0]),
        "share of zeros in the top layer's output under dropout": float((dropped.train()(x)[0] == 0).double().mean()),
    }


def _by_layer(stack: nn.LSTM, x: Tensor) -> Tensor:
    """The h_n of a bidirectional stack from nets of one layer and one direction that have its weights.

    In the guide's order: forward layer 0, backward layer 0, forward layer 1, backward layer 1.
    """
    final = []
    for layer in range(stack.num_layers):
        outputs = []
        for suffix in ("", "_reverse"):
            net = nn.LSTM(x.shape[2], stack.hidden_size)
            names = {name: name.replace("_l0", f"_l{layer}{suffix}") for name in net.state_dict()}
            net.load_state_dict({name: stack.state_dict()[other] for name, other in names.items()})
            output, (h, _) = net(x.flip(0) if suffix else x)
            outputs.append(output.flip(0) if suffix else output)
            final.append(h)
        x = torch.cat(outputs, 2)
    return torch.cat(final)


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max().detach())
