"""A small writer of ONNX graphs: nodes in the order they are added, tensors shared by name."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from recur import __version__

OPSET = 20
IR_VERSION = 10  # of opset 20; what onnx would write by itself is newer than many runtimes read


class Graph:
    """Nodes and tensors of a graph, or of the body of a `Scan`, which sees the tensors of its parent.

    Args:
        parent: the graph whose tensors and numbering of names a body shares; None for the model's own graph.
    """

    def __init__(self, parent: "Graph | None" = None) -> None:
        self.nodes: list[NodeProto] = []
        self._root: Graph = parent._root if parent else self
        self._tensors: dict[str, TensorProto] = {}
        self._count = 0

    def name(self, stem: str) -> str:
        """A name that no other value of the model has."""
        self._root._count += 1
        return f"{stem.lower()}_{self._root._count}"

    def add(self, operator: str, *inputs: str, outputs: int = 1, named: str | None = None, **attributes: Any) -> Any:
        """Add a node.

        Args:
            operator: of the ONNX opset.
            inputs: names of values; an empty one stands for an optional input that is not given.
            outputs: how many values it has.
            named: name of its one value, where that matters.
            attributes: of the node.

        Returns:
            The name of its value, or a list of names.
        """
        names = [named] if named else [self.name(operator) for _ in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def tensor(self, value: NDArray[Any], name: str | None = None) -> str:
        """Store a constant; a name that is given twice stands for the same tensor and is stored once."""
        name = name or self.name("constant")
        if name not in self._root._tensors:
            self._root._tensors[name] = numpy_helper.from_array(np.array(value, order="C"), name)
        return name

    def integers(self, *values: int) -> str:
        """Store a vector of int64."""
        return self.tensor(np.array(values, dtype=np.int64))

    def body(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> GraphProto:
        """The nodes as the body of a `Scan`."""
        return helper.make_graph(self.nodes, self.name("body"), list(inputs), list(outputs))

    def model(self, inputs: Sequence[Any], outputs: Sequence[Any], name: str) -> ModelProto:
        """The whole as a model."""
        tensors = list(self._tensors.values())
        graph = helper.make_graph(self.nodes, name, list(inputs), list(outputs), initializer=tensors)
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="recur",
            producer_version=__version__,
        )


def value(name: str, shape: Sequence[int | str], kind: int = TensorProto.FLOAT) -> Any:
    """Description of an input or output; a word in `shape` is a size that may differ from call to call."""
    return helper.make_tensor_value_info(name, kind, list(shape))
