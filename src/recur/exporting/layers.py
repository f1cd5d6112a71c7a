"""One recurrent layer as ONNX nodes, on a padded batch that cannot leak.

LSTM (with peepholes or without), GRU and RNN are operators of the opset, which take each sequence's length
(`sequence_lens`). The other cells are written for one step and walked by the operator `Scan`; a step behind a
sequence's end leaves its state as it is. Walked from the end that is an initial state which waits until the sequence's
last token has come. So in both kinds the final state is that of the last real step, and rows behind the end are
not read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from recur.errors import UserError
from recur.exporting.graph import Graph, value
from recur.nn.recurrent import Recurrent

Array = NDArray[np.float32]
Weights = dict[str, Array]
# (body, input of this step, state, names of stored weights) -> (output, new state)
Step = Callable[[Graph, str, Sequence[str], dict[str, str]], tuple[str, list[str]]]

# Where each gate of torch's order stands in ONNX's.
_GATES = {"lstm": (0, 3, 1, 2), "peephole": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,), "rnn_relu": (0,)}


@dataclass(frozen=True)
class Batch:
    """Names of what every layer reads.

    Attributes:
        lengths: of the sequences, `(batch,)` int32.
        mask: whether a step is within its sequence, `(time, batch, 1)` bool.
    """

    lengths: str
    mask: str


def weights_of(recurrent: Recurrent, index: int) -> list[Weights]:
    """Parameters of a layer by name, float32, for each direction."""
    by_direction: list[Weights] = []
    for suffix in recurrent.suffixes:
        ending = f"_l{index}{suffix}"
        own = {name.removesuffix(ending): p for name, p in recurrent.named_parameters() if name.endswith(ending)}
        by_direction.append({name: p.detach().float().cpu().numpy() for name, p in own.items()})
    return by_direction


def layer(
    graph: Graph, recurrent: Recurrent, index: int, rows: str, batch: Batch, state: Sequence[str] | None
) -> tuple[str, list[str]]:
    """Add one layer.

    Args:
        graph: to add to.
        recurrent: the stack.
        index: which of its layers.
        rows: name of the input, `(time, batch, features)`.
        batch: lengths and mask.
        state: names of the initial state's parts, each `(directions, batch, size)`; None for zeros.

    Returns:
        Names of the output `(time, batch, directions * hidden)` and of the final state's parts, shaped as the initial.

    Raises:
        UserError: a cell that is not known here.
    """
    weights = weights_of(recurrent, index)
    if recurrent.cell in _GATES:
        return _operator(graph, recurrent, index, rows, batch, state, weights)
    if recurrent.cell not in SCANNED:
        known = ", ".join([*_GATES, *SCANNED])
        raise UserError("cell", recurrent.cell, f"must be one of {known} for ONNX", "--format safetensors takes any")
    directions = [
        _scanned(graph, recurrent, index, rows, batch, own, d, None if state is None else _one(graph, state, d))
        for d, own in enumerate(weights)
    ]
    output = graph.add("Concat", *(one for one, _ in directions), axis=2) if len(directions) > 1 else directions[0][0]
    final = []
    for parts in zip(*(one for _, one in directions), strict=True):
        stacked = [graph.add("Unsqueeze", part, graph.integers(0)) for part in parts]
        final.append(graph.add("Concat", *stacked, axis=0) if len(stacked) > 1 else stacked[0])
    return output, final


# ------------------------------------------------------------------------------------------- operators of the opset
def _in_onnx_order(array: Array, cell: str) -> Array:
    blocks = np.split(array, len(_GATES[cell]), axis=0)
    return np.concatenate([blocks[place] for place in _GATES[cell]])


def _operator(
    graph: Graph,
    recurrent: Recurrent,
    index: int,
    rows: str,
    batch: Batch,
    state: Sequence[str] | None,
    weights: list[Weights],
) -> tuple[str, list[str]]:
    cell, (_, hidden) = recurrent.cell, recurrent.layer_sizes[index]
    zero = np.zeros(len(_GATES[cell]) * hidden, dtype=np.float32)
    stacked = {
        name: np.stack([_in_onnx_order(own.get(name, zero), cell) for own in weights])
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    w, r = (graph.tensor(stacked[name], f"recurrent.{name}_l{index}") for name in ("weight_ih", "weight_hh"))
    b = graph.tensor(np.concatenate([stacked["bias_ih"], stacked["bias_hh"]], axis=1), f"recurrent.bias_l{index}")
    two = len(weights) == 2
    attributes: dict[str, Any] = {"hidden_size": hidden, "direction": "bidirectional" if two else "forward"}
    if cell == "gru":
        attributes["linear_before_reset"] = 1  # as torch and cuDNN have it
    elif cell in ("rnn", "rnn_relu"):
        attributes["activations"] = ["Relu" if cell == "rnn_relu" else "Tanh"] * len(weights)
    operator = {"lstm": "LSTM", "peephole": "LSTM", "gru": "GRU"}.get(cell, "RNN")
    inputs = [rows, w, r, b, batch.lengths, *(state or ())]
    if cell == "peephole":  # their weights are the eighth input, of the gates i, o, f
        peepholes = [np.concatenate([np.split(own["weight_ch"], 3)[gate] for gate in (0, 2, 1)]) for own in weights]
        inputs += ["", ""][len(state or ()) :]
        inputs.append(graph.tensor(np.stack(peepholes), f"recurrent.weight_ch_l{index}"))
    y, *final = graph.add(operator, *inputs, outputs=3 if operator == "LSTM" else 2, **attributes)
    # (time, directions, batch, hidden) -> (time, batch, directions * hidden)
    joined = graph.add("Reshape", graph.add("Transpose", y, perm=[0, 2, 1, 3]), graph.integers(0, 0, -1))
    return joined, final


# ------------------------------------------------------------------------------------------------- cells of our own
def _one(graph: Graph, state: Sequence[str], direction: int) -> list[str]:
    return [graph.add("Gather", part, graph.tensor(np.array(direction, dtype=np.int64)), axis=0) for part in state]


def _scanned(
    graph: Graph,
    recurrent: Recurrent,
    index: int,
    rows: str,
    batch: Batch,
    weights: Weights,
    direction: int,
    state: list[str] | None,
) -> tuple[str, list[str]]:
    """One direction of a layer, a step at a time."""
    fan_in, hidden = recurrent.layer_sizes[index]
    suffix = recurrent.suffixes[direction]
    stored = {name: graph.tensor(array, f"recurrent.{name}_l{index}{suffix}") for name, array in weights.items()}
    sizes = _state_sizes(recurrent.cell, weights, fan_in, hidden)
    if state is None:
        state = [_zeros(graph, batch, size) for size in sizes]
    body = Graph(graph)
    inside = [body.name("state") for _ in sizes]
    x, within = body.name("input"), body.name("within")
    output, new = SCANNED[recurrent.cell](body, x, inside, stored)
    kept = [body.add("Where", within, after, before) for after, before in zip(new, inside, strict=True)]
    result = body.add("Identity", output)
    inputs = [value(name, ["batch", size]) for name, size in zip(inside, sizes, strict=True)]
    inputs += [value(x, ["batch", fan_in]), value(within, ["batch", 1], TensorProto.BOOL)]
    outputs = [value(name, ["batch", size]) for name, size in zip(kept, sizes, strict=True)]
    outputs.append(value(result, ["batch", hidden]))
    *final, walked = graph.add(
        "Scan",
        *state,
        rows,
        batch.mask,
        outputs=len(sizes) + 1,
        body=body.body(inputs, outputs),
        num_scan_inputs=2,
        scan_input_directions=[direction, direction],
        scan_output_directions=[direction],
    )
    return walked, final


def _state_sizes(cell: str, weights: Weights, fan_in: int, hidden: int) -> list[int]:
    if cell == "mingru":
        return [hidden]
    if cell == "qrnn":
        return [hidden, fan_in] if weights["weight_ih"].shape[1] == 2 * fan_in else [hidden]
    return [hidden, hidden]


def _zeros(graph: Graph, batch: Batch, size: int) -> str:
    number = graph.add("Shape", batch.lengths)
    return graph.add(
        "Expand",
        graph.tensor(np.zeros((1, size), np.float32)),
        graph.add("Concat", number, graph.integers(size), axis=0),
    )


def _linear(body: Graph, x: str, weight: str, bias: str | None = None) -> str:
    name: str = body.add("Gemm", x, weight, *([bias] if bias else []), transB=1)
    return name


def _chunks(body: Graph, gates: str, number: int) -> list[str]:
    names: list[str] = body.add("Split", gates, outputs=number, axis=1, num_outputs=number)
    return names


def _from_one(body: Graph, gate: str) -> str:
    name: str = body.add("Sub", body.tensor(np.ones((), dtype=np.float32), "one"), gate)
    return name


def _mix(body: Graph, keep: str, old: str, new: str) -> str:
    """`keep * old + (1 - keep) * new`."""
    name: str = body.add("Add", body.add("Mul", keep, old), body.add("Mul", _from_one(body, keep), new))
    return name


def _lstm_update(body: Graph, gates: str, c: str) -> tuple[str, str]:
    """New cell state and output gate from pre-activations in torch's order i, f, g, o."""
    i, f, g, o = _chunks(body, gates, 4)
    kept = body.add("Mul", body.add("Sigmoid", f), c)
    added = body.add("Mul", body.add("Sigmoid", i), body.add("Tanh", g))
    return body.add("Add", kept, added), body.add("Sigmoid", o)


def _mingru(body: Graph, x: str, state: Sequence[str], weights: dict[str, str]) -> tuple[str, list[str]]:
    z, candidate = _chunks(body, _linear(body, x, weights["weight_ih"], weights.get("bias_ih")), 2)
    h = _mix(body, body.add("Sigmoid", z), candidate, state[0])
    return h, [h]


def _qrnn(body: Graph, x: str, state: Sequence[str], weights: dict[str, str]) -> tuple[str, list[str]]:
    seen = body.add("Concat", x, state[1], axis=1) if len(state) == 2 else x
    z, f, o = _chunks(body, _linear(body, seen, weights["weight_ih"], weights.get("bias_ih")), 3)
    c = _mix(body, body.add("Sigmoid", f), state[0], body.add("Tanh", z))
    h = body.add("Mul", body.add("Sigmoid", o), c)
    return h, [c, body.add("Identity", x)] if len(state) == 2 else [c]


def _normalized(body: Graph, x: str, gain: str, shift: str | None) -> str:
    """Layer normalisation in its plain steps: the operator of that name loses digits where the variance is small."""
    last = body.integers(-1)
    centred = body.add("Sub", x, body.add("ReduceMean", x, last))
    variance = body.add("ReduceMean", body.add("Mul", centred, centred), last)
    epsilon = body.tensor(np.array(1e-5, dtype=np.float32), "epsilon")
    scale = body.add("Reciprocal", body.add("Sqrt", body.add("Add", variance, epsilon)))
    name: str = body.add("Mul", body.add("Mul", centred, scale), gain)
    return name if shift is None else str(body.add("Add", name, shift))


def _lnlstm(body: Graph, x: str, state: Sequence[str], weights: dict[str, str]) -> tuple[str, list[str]]:
    h, c = state
    inputs = _normalized(body, _linear(body, x, weights["weight_ih"]), weights["gain_ih"], weights.get("bias_ih"))
    carried = _normalized(body, _linear(body, h, weights["weight_hh"]), weights["gain_hh"], weights.get("bias_hh"))
    c, o = _lstm_update(body, body.add("Add", inputs, carried), c)
    h = body.add("Mul", o, body.add("Tanh", _normalized(body, c, weights["gain_c"], weights.get("bias_c"))))
    return h, [h, c]


def _mogrifier(body: Graph, x: str, state: Sequence[str], weights: dict[str, str]) -> tuple[str, list[str]]:
    h, c = state
    two = body.tensor(np.array(2, dtype=np.float32), "two")
    rounds = sum(name.startswith("weight_round") for name in weights)
    for number in range(1, rounds + 1):  # x and h gate each other, x first
        by, gated = (h, x) if number % 2 else (x, h)
        gate = body.add("Mul", two, body.add("Sigmoid", _linear(body, by, weights[f"weight_round{number}"])))
        result = body.add("Mul", gate, gated)
        x, h = (result, h) if number % 2 else (x, result)
    inputs = _linear(body, x, weights["weight_ih"], weights.get("bias_ih"))
    gates = body.add("Add", inputs, _linear(body, h, weights["weight_hh"], weights.get("bias_hh")))
    c, o = _lstm_update(body, gates, c)
    h = body.add("Mul", o, body.add("Tanh", c))
    return h, [h, c]


SCANNED: dict[str, Step] = {"mingru": _mingru, "qrnn": _qrnn, "lnlstm": _lnlstm, "mogrifier": _mogrifier}
