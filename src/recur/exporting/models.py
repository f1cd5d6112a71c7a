"""The classifier and the language model as ONNX models.

| model | inputs | outputs |
|---|---|---|
| classifier | `ids` (batch, time) int64, `lengths` (batch,) int64 | `logits`, `probabilities` (batch, classes) |
| language model | the same, and the state | `logits` (batch, time, vocabulary), and the state after each text |

A text's ids stand at the beginning of its row; what follows them is never read, whatever it is. The parts of the state
are called `state_LAYER_PART` on the way in and `next_LAYER_PART` on the way out, `(1, batch, size)` each; zeros begin.
"""

from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto

from recur.errors import UserError
from recur.exporting.dense import check_ngrams
from recur.exporting.graph import Graph, value
from recur.exporting.layers import Batch, layer
from recur.nn.classifier import Classifier
from recur.nn.language_model import LanguageModel
from recur.nn.recurrent import Recurrent

_INPUTS = (
    value("ids", ["batch", "time"], TensorProto.INT64),
    value("lengths", ["batch"], TensorProto.INT64),
)


def build(task: Any) -> ModelProto:
    """The ONNX model of a task.

    Raises:
        UserError: a network or a cell that is not of this package.
    """
    if type(task.net) is Classifier:
        check_ngrams(task.net)
        return classifier(task.net)
    if type(task.net) is LanguageModel:
        return language_model(task.net)
    raise UserError(
        "model.net", type(task.net).__name__, "has no ONNX graph here", "use --format safetensors, or write one"
    )


def _array(parameter: Any) -> Any:
    return parameter.detach().float().cpu().numpy()


def state_parts(recurrent: Recurrent) -> list[list[int]]:
    """Sizes of the parts of each layer's state."""
    return [[int(part.shape[-1]) for part in one] for one in recurrent.initial_state(1, next(recurrent.parameters()))]


def _read(graph: Graph, net: Any) -> tuple[str, Batch]:
    """Word vectors `(time, batch, embedding_dim)`, lengths and mask."""
    table = graph.tensor(_array(net.embedding.weight), "embedding.weight")
    turned = graph.add("Transpose", "ids", perm=[1, 0])
    # What stands behind a text's end may be no id at all: it is looked up as id 0, and not used.
    number = lambda n: graph.tensor(np.array(n, dtype=np.int64))  # noqa: E731
    time = graph.add("Squeeze", graph.add("Shape", turned, start=0, end=1))
    steps = graph.add("Unsqueeze", graph.add("Range", number(0), time, number(1)), graph.integers(1))
    within = graph.add("Less", steps, "lengths")  # (time, batch)
    known = graph.add("Where", within, turned, number(0))
    mask = graph.add("Unsqueeze", within, graph.integers(2))
    lengths = graph.add("Cast", "lengths", to=TensorProto.INT32)
    return graph.add("Gather", table, known), Batch(lengths, mask)


def _dense(graph: Graph, x: str, linear: Any, name: str, named: str | None = None, weight: str = "") -> str:
    """A linear layer on rows `(n, features)`."""
    matrix = weight or graph.tensor(_array(linear.weight), f"{name}.weight")
    bias = [] if linear.bias is None else [graph.tensor(_array(linear.bias), f"{name}.bias")]
    result: str = graph.add("Gemm", x, matrix, *bias, transB=1, named=named)
    return result


def classifier(net: Classifier) -> ModelProto:
    """The text classifier.

    Raises:
        UserError: a pooling or a cell that is not known here.
    """
    graph = Graph()
    rows, batch = _read(graph, net)
    final: list[str] = []
    for index in range(net.recurrent.num_layers):
        rows, final = layer(graph, net.recurrent, index, rows, batch, None)
    last = final[0] if net.recurrent.output_first else _last(graph, net.recurrent, rows, batch)
    pooled = [_pooled(graph, kind, rows, last, batch) for kind in _poolings(net)]
    features = graph.add("Concat", *pooled, axis=1) if len(pooled) > 1 else pooled[0]
    logits = _dense(graph, features, net.head, "head", named="logits")
    classes = max(2, net.head.out_features)
    if net.head.out_features == 1:
        second = graph.add("Sigmoid", logits)
        first = graph.add("Sigmoid", graph.add("Neg", logits))
        graph.add("Concat", first, second, axis=1, named="probabilities")
    else:
        graph.add("Softmax", logits, axis=1, named="probabilities")
    outputs = [value("logits", ["batch", net.head.out_features]), value("probabilities", ["batch", classes])]
    return graph.model(_INPUTS, outputs, "classifier")


def _poolings(net: Classifier) -> list[str]:
    kinds = ["last", "max", "mean"] if net.pooling == "concat" else [net.pooling]
    if unknown := set(kinds) - {"last", "max", "mean"}:
        raise UserError("model.net.pooling", unknown.pop(), "has no ONNX graph here", "use --format safetensors")
    return kinds


def _last(graph: Graph, recurrent: Recurrent, rows: str, batch: Batch) -> str:
    """The outputs `(directions, batch, hidden)` at the last step of each direction, of `(time, batch, width)`."""
    taken = graph.add("Cast", batch.mask, to=TensorProto.INT32)
    steps = graph.add("CumSum", taken, graph.tensor(np.array(0, dtype=np.int64)))  # (time, batch, 1), 1 at first
    lengths = graph.add("Unsqueeze", batch.lengths, graph.integers(1))
    ends = graph.add("And", graph.add("Equal", steps, lengths), batch.mask)
    nothing = graph.tensor(np.array(0, dtype=np.float32))
    own = graph.add("ReduceSum", graph.add("Where", ends, rows, nothing), graph.integers(0), keepdims=1)
    if not recurrent.bidirectional:
        return str(own)
    width, axis = recurrent.output_size, graph.integers(2)
    first = graph.add("Slice", rows, graph.integers(0), graph.integers(1), graph.integers(0))  # (1, batch, width)
    forward = graph.add("Slice", own, graph.integers(0), graph.integers(width), axis)
    backward = graph.add("Slice", first, graph.integers(width), graph.integers(2 * width), axis)
    return str(graph.add("Concat", forward, backward, axis=0))


def _pooled(graph: Graph, kind: str, rows: str, last: str, batch: Batch) -> str:
    """Pool `(time, batch, width)` to `(batch, width)` over each sequence's own steps.

    Args:
        graph: to add to.
        kind: last, max or mean.
        rows: the outputs.
        last: those at the last step of each direction, `(directions, batch, hidden)`.
        batch: lengths and mask.
    """
    if kind == "last":  # (directions, batch, hidden) -> (batch, directions * hidden)
        turned = graph.add("Transpose", last, perm=[1, 0, 2])
        return str(graph.add("Reshape", turned, graph.integers(0, -1)))
    empty = graph.tensor(np.array(-np.inf if kind == "max" else 0, dtype=np.float32))
    own = graph.add("Where", batch.mask, rows, empty)
    if kind == "max":
        return str(graph.add("ReduceMax", own, graph.integers(0), keepdims=0))
    total = graph.add("ReduceSum", own, graph.integers(0), keepdims=0)
    lengths = graph.add("Unsqueeze", graph.add("Cast", batch.lengths, to=TensorProto.FLOAT), graph.integers(1))
    return str(graph.add("Div", total, lengths))


def language_model(net: LanguageModel) -> ModelProto:
    """The language model, its state in and out.

    Raises:
        UserError: a cell that is not known here.
    """
    graph = Graph()
    rows, batch = _read(graph, net)
    inputs, outputs = list(_INPUTS), []
    for index, sizes in enumerate(state_parts(net.recurrent)):
        names = [f"state_{index}_{part}" for part in range(len(sizes))]
        rows, final = layer(graph, net.recurrent, index, rows, batch, names)
        for part, (name, size) in enumerate(zip(names, sizes, strict=True)):
            inputs.append(value(name, [1, "batch", size]))
            graph.add("Identity", final[part], named=f"next_{index}_{part}")
            outputs.append(value(f"next_{index}_{part}", [1, "batch", size]))
    shape = graph.add("Shape", rows, start=0, end=2)  # time, batch
    features = graph.add("Reshape", rows, graph.integers(-1, net.recurrent.output_dim))
    if net.projection is not None:
        features = _dense(graph, features, net.projection, "projection")
    tied = "embedding.weight" if net.decoder.weight is net.embedding.weight else ""
    flat = _dense(graph, features, net.decoder, "decoder", weight=tied)
    vocabulary = net.decoder.out_features
    whole = graph.add("Reshape", flat, graph.add("Concat", shape, graph.integers(vocabulary), axis=0))
    graph.add("Transpose", whole, perm=[1, 0, 2], named="logits")
    outputs.insert(0, value("logits", ["batch", "time", vocabulary]))
    return graph.model(inputs, outputs, "language_model")
