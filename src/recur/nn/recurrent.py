"""The recurrent stack: cell, layers, directions, dropout sites and carried state over packed sequences.

`Recurrent` is what this project's models use: packed in, packed out. `LSTM`, `GRU` and `RNN` are `torch.nn`'s own
modules with the CPU engine underneath, for use anywhere.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from recur.nn.engine import FUSED_CELLS, Layout, layer

State = list[tuple[Tensor, ...]]

ENGINES = ("auto", "fused", "torch")
_GATES = {"lstm": 4, "gru": 3, "rnn": 1, "rnn_relu": 1}
_CUDNN_MODE = {"rnn_relu": 0, "rnn": 1, "lstm": 2, "gru": 3}
_VF: Any = torch._VF


def detach_state(state: State) -> State:
    """Cut a carried state from the graph of the window it came from."""
    return [tuple(part.detach() for part in one) for one in state]


def pick_engine(engine: str, cell: str, rows: Tensor, sizes: Sequence[int]) -> str:
    """Name the engine, `fused` or `torch`, that `engine` means for these rows and step sizes."""
    if engine not in ENGINES:
        raise ValueError(f"engine is one of {', '.join(ENGINES)}, got {engine!r}")
    if engine != "auto":
        return engine
    return "fused" if rows.device.type == "cpu" and rows.dtype in (torch.float32, torch.float64) else "torch"


def locked_dropout(data: Tensor, layout: Layout, p: float) -> Tensor:
    """Drop the same features of a sequence at all of its steps (Gal and Ghahramani 2016). `data`: `(rows, size)`."""
    mask = F.dropout(data.new_ones(layout.batch, data.shape[1]), p)
    if layout.even:
        return (data.unflatten(0, (-1, layout.batch)) * mask).flatten(0, 1)
    return data * mask[layout.places.to(data.device)]


def _run_torch(
    cell: str,
    rows: Tensor,
    layout: Layout,
    state: tuple[Tensor, ...],
    weights: Sequence[Sequence[Tensor | None]],
    num_layers: int,
    training: bool,
    bidirectional: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run the packed recurrence of torch itself: on a GPU, cuDNN's. `weights`: a list a layer and direction."""
    flat = [w for own in weights for w in own if w is not None]
    has_bias = weights[0][2] is not None
    common = (flat, has_bias, num_layers, 0.0, training, bidirectional)
    if cell == "lstm":
        output, hidden, memory = _VF.lstm(rows, layout.batch_sizes, state, *common)
        return output, (hidden, memory)
    function = {"gru": _VF.gru, "rnn": _VF.rnn_tanh, "rnn_relu": _VF.rnn_relu}[cell]
    output, hidden = function(rows, layout.batch_sizes, state[0], *common)
    return output, (hidden,)


class Recurrent(nn.Module):
    """A stack of recurrent layers from packed rows to packed rows.

    Parameters are named and laid out as in `torch.nn.LSTM`, `GRU` and `RNN`, so a `state_dict` moves either way.

    Args:
        input_size: features of a row.
        hidden_size: features of a direction's hidden state.
        num_layers: layers, each fed with the one below.
        cell: a key of `CELLS`.
        bidirectional: also walk each sequence from its end, and concatenate.
        bias: have the bias vectors.
        dropout: probability of zeroing a feature between layers (not after the last), drawn from torch's generator.
        locked_dropout: draw one mask a sequence for all of its steps instead of one a step.
        weight_drop: probability of zeroing an entry of each `weight_hh` for a whole batch (Merity et al. 2018).
        output_size: hidden size of the last layer, where it differs.
        forget_bias: initial bias of the forget gates (Jozefowicz et al. 2015): `bias_ih` gets it, `bias_hh` zero.
            None leaves torch's initialisation.
        engine: `auto`, `fused` (this project's, on a CPU) or `torch` (cuDNN on a GPU).
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        cell: str = "lstm",
        bidirectional: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
        locked_dropout: bool = False,
        weight_drop: float = 0.0,
        output_size: int | None = None,
        forget_bias: float | None = 1.0,
        engine: str = "auto",
    ) -> None:
        super().__init__()
        if cell not in _GATES:
            raise ValueError(f"cell is one of {', '.join(CELLS)}, got {cell!r}")
        if engine not in ENGINES:
            raise ValueError(f"engine is one of {', '.join(ENGINES)}, got {engine!r}")
        for name, value in {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name, p in {"dropout": dropout, "weight_drop": weight_drop}.items():
            if not 0 <= p < 1:
                raise ValueError(f"{name} is a probability in [0, 1), got {p}")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.cell, self.bidirectional, self.bias, self.engine = cell, bidirectional, bias, engine
        self.dropout, self.locked_dropout, self.weight_drop = dropout, locked_dropout, weight_drop
        self.forget_bias = forget_bias
        self.directions = 2 if bidirectional else 1
        self.output_size = output_size or hidden_size
        self.output_dim = self.output_size * self.directions
        widths = [hidden_size] * (num_layers - 1) + [self.output_size]
        inputs = [input_size, *(w * self.directions for w in widths[:-1])]
        self.layer_sizes = list(zip(inputs, widths, strict=True))
        for index, (fan_in, width) in enumerate(self.layer_sizes):
            for suffix in ("", "_reverse")[: self.directions]:
                rows = _GATES[cell] * width
                for name, shape in {
                    "weight_ih": (rows, fan_in),
                    "weight_hh": (rows, width),
                    "bias_ih": (rows,),
                    "bias_hh": (rows,),
                }.items():
                    if bias or name.startswith("weight"):
                        self.register_parameter(f"{name}_l{index}{suffix}", nn.Parameter(torch.empty(shape)))
        self.reset_parameters()
        self.flatten_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/sqrt(hidden), 1/sqrt(hidden)) as `torch.nn` does, then set the forget bias."""
        for index, (_, width) in enumerate(self.layer_sizes):
            for parameter in (p for own in self._weights(index) for p in own if p is not None):
                nn.init.uniform_(parameter, -(width**-0.5), width**-0.5)
            if self.cell == "lstm" and self.bias and self.forget_bias is not None:
                for _, _, b_ih, b_hh in self._weights(index):
                    assert b_ih is not None
                    assert b_hh is not None
                    with torch.no_grad():
                        b_ih[width : 2 * width].fill_(self.forget_bias)
                        b_hh[width : 2 * width].zero_()

    def _weights(self, index: int) -> list[list[Tensor | None]]:
        """w_ih, w_hh, b_ih, b_hh of a layer, for each direction."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        suffixes = ("", "_reverse")[: self.directions]
        return [[getattr(self, f"{name}_l{index}{suffix}", None) for name in names] for suffix in suffixes]

    def _dropped_weights(self, index: int) -> list[list[Tensor | None]]:
        weights = self._weights(index)
        if self.weight_drop and self.training:
            for own in weights:
                own[1] = F.dropout(own[1], self.weight_drop)  # type: ignore[arg-type]
        return weights

    @property
    def _as_one(self) -> bool:
        """Whether nothing happens between layers, so that cuDNN can be given all of them at once."""
        return not self.dropout and self.output_size == self.hidden_size

    def flatten_parameters(self) -> None:
        """Lay the weights out as cuDNN wants them, so that it need not copy them at every call. Only on a GPU."""
        parameters = list(self.parameters())
        if not all(p.is_cuda and torch.backends.cudnn.is_acceptable(p) for p in parameters):
            return
        if len({p.data_ptr() for p in parameters}) != len(parameters):
            return
        groups = [range(self.num_layers)] if self._as_one else [range(i, i + 1) for i in range(self.num_layers)]
        with torch.cuda.device_of(parameters[0]), torch.no_grad():
            for group in groups:
                flat = [w for index in group for own in self._weights(index) for w in own if w is not None]
                fan_in, width = self.layer_sizes[group[0]]
                torch._cudnn_rnn_flatten_weight(
                    flat,
                    4 if self.bias else 2,
                    fan_in,
                    _CUDNN_MODE[self.cell],
                    width,
                    0,
                    len(group),
                    False,
                    self.bidirectional,
                )

    def _apply(self, fn: Any, recurse: bool = True) -> "Recurrent":
        super()._apply(fn, recurse)
        self.flatten_parameters()  # a move to a GPU leaves each weight in its own storage
        return self

    def initial_state(self, batch: int, like: Tensor) -> State:
        """Zeros in the dtype and on the device of `like`."""
        parts = 2 if self.cell == "lstm" else 1
        return [tuple(like.new_zeros(self.directions, batch, w) for _ in range(parts)) for _, w in self.layer_sizes]

    def forward(self, sequence: PackedSequence, state: State | None = None) -> tuple[PackedSequence, State]:
        """Run the stack.

        Args:
            sequence: packed rows, `data` of shape `(rows, input_size)`.
            state: for each layer a tuple of `(directions, batch, size)` tensors in packed order: (h, c) for the LSTM,
                (h,) for GRU and RNN. None stands for zeros.

        Returns:
            Packed rows, `data` of shape `(rows, output_dim)`, and the final state, shaped as the initial one.

        Raises:
            ValueError: the input or the state does not fit.
        """
        rows = sequence.data
        if rows.dim() != 2 or rows.shape[1] != self.input_size:
            raise ValueError(f"expected packed rows of {self.input_size} features, got {tuple(rows.shape)}")
        layout = Layout(sequence.batch_sizes)
        if state is None:
            state = self.initial_state(layout.batch, rows)
        self._check_state(state, layout.batch)
        fused = pick_engine(self.engine, self.cell, rows, layout.sizes) == "fused"
        if not fused and self._as_one:
            output, last = self._run_as_one(rows, layout, state)
        else:
            output, last = rows, []
            for index in range(self.num_layers):
                weights = self._dropped_weights(index)
                if fused:
                    output, final = layer(self.cell, output, layout, state[index], weights)
                else:
                    output, final = self._run_torch(output, layout, state[index], weights, 1)
                last.append(final)
                if index + 1 < self.num_layers and self.dropout and self.training:
                    if self.locked_dropout:
                        output = locked_dropout(output, layout, self.dropout)
                    else:
                        output = F.dropout(output, self.dropout)
        return PackedSequence(output, sequence.batch_sizes, sequence.sorted_indices, sequence.unsorted_indices), last

    def _check_state(self, state: State, batch: int) -> None:
        for index, (one, (_, width)) in enumerate(zip(state, self.layer_sizes, strict=True)):
            want = (self.directions, batch, width)
            for part in one:
                if tuple(part.shape) != want:
                    raise ValueError(f"state of layer {index} must have shape {want}, got {tuple(part.shape)}")

    def _run_torch(
        self,
        rows: Tensor,
        layout: Layout,
        state: tuple[Tensor, ...],
        weights: list[list[Tensor | None]],
        num_layers: int,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        with warnings.catch_warnings():
            if self.weight_drop and rows.is_cuda:  # dropped weights are new tensors: cuDNN gathers them, as it says
                warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous")
            return _run_torch(self.cell, rows, layout, state, weights, num_layers, self.training, self.bidirectional)

    def _run_as_one(self, rows: Tensor, layout: Layout, state: State) -> tuple[Tensor, State]:
        weights = [own for index in range(self.num_layers) for own in self._dropped_weights(index)]
        joint = tuple(torch.cat(parts) for parts in zip(*state, strict=True))  # (layers * directions, batch, hidden)
        output, last = self._run_torch(rows, layout, joint, weights, self.num_layers)
        split = [part.split(self.directions) for part in last]
        return output, [tuple(parts) for parts in zip(*split, strict=True)]

    def extra_repr(self) -> str:
        """Show what differs from the defaults."""
        parts = [f"{self.cell}, {self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"]
        for name, default in {
            "bidirectional": False,
            "dropout": 0.0,
            "weight_drop": 0.0,
            "output_size": self.hidden_size,
            "engine": "auto",
        }.items():
            if getattr(self, name) != default:
                parts.append(f"{name}={getattr(self, name)}")
        return ", ".join(parts)


CELLS = dict.fromkeys(FUSED_CELLS)
