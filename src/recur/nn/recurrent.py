"""The recurrent stack: cell, layers, directions, dropout sites and carried state over packed sequences.

`Recurrent` is what this project's models use: packed in, packed out. `LSTM`, `GRU` and `RNN` are `torch.nn`'s own
modules with the CPU engine underneath, for use anywhere.
"""

import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from recur.nn import compiled, products, torch_internals
from recur.nn.arguments import ArgumentError
from recur.nn.cells import CELLS, Cell, Weights
from recur.nn.engine import FUSED_CELLS, layer
from recur.nn.packed import Layout
from recur.nn.regularization import dropout, locked_dropout
from recur.nn.state_dropout import run_with_state_dropout

State = list[tuple[Tensor, ...]]
MOST_LAYERS = 256  # thousands of them take minutes to build and cannot be trained
MOST_BIAS = 1000.0  # a sigmoid is 0 or 1 in any precision long before
ENGINES = ("auto", "fused", "torch")
_CUDNN_MODE = {"rnn_relu": 0, "rnn": 1, "lstm": 2, "gru": 3}
_VF: Any = torch._VF


def detach_state(state: State) -> State:
    """Cut a carried state from the graph of the window it came from."""
    return [tuple(part.detach() for part in one) for one in state]


def pick_engine(engine: str, cell: str, rows: Tensor, layout: Layout, hidden_size: int, directions: int = 1) -> str:
    """Name the engine, `fused` or `torch`, that `engine` means for these rows.

    On a CPU the fused engine is the faster one wherever lengths differ and there is some work. Where all are equal
    torch has a dense pass to offer: for the LSTM in float32 oneDNN's whole-layer kernel, which the engine beats in
    bfloat16 alone, and for the others less overhead, which shows while steps are small or few. torch's products use
    every thread, the engine one for each direction and part of the batch: where those are fewer, a step must be the
    larger, and so it must where two directions share the memory. The limits were measured on two Zen 4 and Zen 5 cores;
    `python -m recur.bench shapes` measures both sides anywhere.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine is one of {', '.join(ENGINES)}, got {engine!r}")
    if engine == "torch" or rows.device.type != "cpu":
        return "torch"  # the fused engine is for CPUs
    if engine == "fused":
        return engine
    low = products.wants_bf16()
    dtype = torch.float32 if low and rows.dtype == torch.bfloat16 else rows.dtype  # the states' own
    if dtype not in (torch.float32, torch.float64):
        return "torch"
    kernels = compiled.available(dtype)
    if layout.even and cell == "lstm" and dtype == torch.float32 and torch.backends.mkldnn.is_available():
        low = low and kernels and products.micro_kernel(True) is not None
        threads = torch.get_num_threads()
        used = min(threads, directions * max(1, layout.batch // compiled.SPLIT_ROWS))
        least = (4000 if min(directions, threads) == 1 else 5000) * threads
        return "fused" if low and layout.batch * hidden_size * used >= least else "torch"
    cheap = cell in ("rnn", "rnn_relu") or (cell == "gru" and not torch.is_grad_enabled())
    few = layout.even and len(layout.sizes) < 40 and hidden_size <= 512  # too few to pay for laying out the weights
    if few and cheap and not low and dtype == torch.float32:
        return "torch"
    if torch.is_grad_enabled():
        return "torch" if layout.rows * hidden_size**2 < 200_000 else "fused"
    if kernels and layout.even:
        return "fused" if layout.batch >= 8 and layout.rows * hidden_size >= 20_000 else "torch"
    small = layout.batch * hidden_size <= (16384 if layout.even else 2048)
    return "torch" if small or (layout.even and layout.rows < 1000) else "fused"


def _dropout(data: Tensor, layout: Layout, p: float) -> Tensor:
    return dropout(data, p)


def _quad(weights: Weights) -> list[Tensor | None]:
    return [weights.get(name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]


def _run_torch(
    cell: str,
    rows: Tensor,
    layout: Layout,
    state: tuple[Tensor, ...],
    weights: list[Tensor],
    bias: bool,
    num_layers: int,
    training: bool,
    bidirectional: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run the recurrence of torch itself: on a GPU cuDNN's packed one, on a CPU the dense one where lengths allow."""
    common = (weights, bias, num_layers, 0.0, training, bidirectional)
    function = {"lstm": _VF.lstm, "gru": _VF.gru, "rnn": _VF.rnn_tanh, "rnn_relu": _VF.rnn_relu}[cell]
    # torch's autocast of a GPU's recurrence is to float16, whatever was asked for. Beside bfloat16 there is no loss
    # scaler to keep its gradients from vanishing, so it runs in float32; on a CPU torch has its fast pass in that, too.
    kind = rows.device.type
    half = kind == "cuda" and torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    if not half:  # what autocast made of them
        rows, state = rows.to(weights[0].dtype), tuple(part.to(weights[0].dtype) for part in state)
    initial = state if cell == "lstm" else state[0]
    with torch.autocast(kind, dtype=torch.float16 if half else None, enabled=half):
        if layout.even and kind == "cpu":
            dense = rows.unflatten(0, (-1, layout.batch))  # (time, batch, features)
            output, *last = function(dense, initial, *common, False)
            return output.flatten(0, 1), tuple(last)
        output, *last = function(rows, layout.batch_sizes, initial, *common)
    return output, tuple(last)


def run_fused(
    cell: str, rows: Tensor, layout: Layout, state: tuple[Tensor, ...], weights: list[list[Tensor | None]]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one layer in the engine, in the dtype of its weights whatever autocast made of the rows."""
    assert weights[0][0] is not None
    dtype = weights[0][0].dtype
    return layer(cell, rows.to(dtype), layout, tuple(part.to(dtype) for part in state), weights)


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
        weight_drop: probability of zeroing an entry of each `weight_hh` (each `weight_ih` where a cell has no other)
            for a whole batch (Merity et al. 2018).
        state_dropout: probability of zeroing a feature of the hidden state on its way to the next step, a new mask a
            step. It disturbs what is carried and is not recommended: it is here to be measured. Only the
            cells of torch have it, and training walks step by step.
        output_size: hidden size of the last layer, where it differs.
        forget_bias: initial bias of the forget gates (Jozefowicz et al. 2015): `bias_ih` gets it, `bias_hh` zero.
            None leaves torch's initialisation.
        engine: `auto`, `fused` (this project's, on a CPU) or `torch` (cuDNN on a GPU), for the cells that both have;
            off a CPU always torch's.
        **options: what the cell takes: `window` of a qrnn, `rounds` of a mogrifier.
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
        state_dropout: float = 0.0,
        output_size: int | None = None,
        forget_bias: float | None = 1.0,
        engine: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__()
        if cell not in CELLS:
            raise ArgumentError("cell", f"is one of {', '.join(CELLS)}, got {cell!r}")
        if engine not in ENGINES:
            raise ArgumentError("engine", f"is one of {', '.join(ENGINES)}, got {engine!r}")
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        for name, value in (sizes | ({} if output_size is None else {"output_size": output_size})).items():
            if value < 1:
                raise ArgumentError(name, f"must be at least 1, got {value}")
        if num_layers > MOST_LAYERS:
            raise ArgumentError("num_layers", f"must be at most {MOST_LAYERS}, got {num_layers}")
        known = [name for name in inspect.signature(CELLS[cell]).parameters if name != "name"]
        if unknown := sorted(set(options) - set(known)):
            allowed = ", ".join(known) or "nothing"
            raise ArgumentError("cell_options", f"of {cell} can be {allowed}, got {unknown[0]!r}")
        for name, p in {"dropout": dropout, "weight_drop": weight_drop, "state_dropout": state_dropout}.items():
            if not 0 <= p < 1:
                raise ArgumentError(name, f"is a probability in [0, 1), got {p}")
        if state_dropout and cell not in FUSED_CELLS:
            raise ArgumentError("state_dropout", f"is for {', '.join(FUSED_CELLS)}, got the cell {cell!r}")
        if forget_bias is not None and not abs(forget_bias) <= MOST_BIAS:
            limits = f"must lie between -{MOST_BIAS} and {MOST_BIAS} or be null"
            raise ArgumentError("forget_bias", f"{limits}, got {forget_bias}")
        if dropout and num_layers == 1:
            warnings.warn(
                f"dropout={dropout} lies between recurrent layers and there is one: it does nothing; "
                "set num_layers to 2 or more, or dropout to 0",
                stacklevel=2,
            )
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.cell, self.bidirectional, self.bias, self.engine = cell, bidirectional, bias, engine
        self.dropout, self.locked_dropout, self.weight_drop = dropout, locked_dropout, weight_drop
        self.state_dropout, self.forget_bias = state_dropout, forget_bias
        self.directions = 2 if bidirectional else 1
        self.output_size = hidden_size if output_size is None else output_size
        self.output_dim = self.output_size * self.directions
        widths = [hidden_size] * (num_layers - 1) + [self.output_size]
        inputs = [input_size, *(w * self.directions for w in widths[:-1])]
        self.layer_sizes = list(zip(inputs, widths, strict=True))
        self._kind: Cell = CELLS[cell](cell, **options)
        self.suffixes = ("", "_reverse")[: self.directions]
        for index, (fan_in, width) in enumerate(self.layer_sizes):
            for suffix in self.suffixes:
                for name, shape in self._kind.shapes(fan_in, width).items():
                    if bias or not name.startswith("bias"):
                        self.register_parameter(f"{name}_l{index}{suffix}", nn.Parameter(torch.empty(shape)))
        self.reset_parameters()
        self.flatten_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/sqrt(hidden), 1/sqrt(hidden)) as `torch.nn` does, then set the forget bias."""
        for index, (_, width) in enumerate(self.layer_sizes):
            gate = self._kind.forget_gate(width)
            for own in self._weights(index):
                for name, parameter in own.items():
                    if name.startswith("gain"):
                        nn.init.ones_(parameter)
                    else:
                        nn.init.uniform_(parameter, -(width**-0.5), width**-0.5)
                if gate is not None and self.bias and self.forget_bias is not None:
                    with torch.no_grad():
                        own["bias_ih"][gate] = self.forget_bias
                        if "bias_hh" in own:
                            own["bias_hh"][gate] = 0

    def last_outputs(self, states: PackedSequence, final: State) -> Tensor:
        """The top layer's output at the last step that each direction takes, `(batch, output_dim)` in packed order.

        Args:
            states: what a call gave, rows `(rows, output_dim)`.
            final: the state that it gave.
        """
        if self.output_first:
            return torch.cat(tuple(final[-1][0]), dim=1)  # (directions, batch, hidden) -> (batch, output_dim)
        layout = Layout(states.batch_sizes)
        parts = states.data.chunk(self.directions, 1)
        return torch.cat([part[layout.final_rows(bool(d)).to(part.device)] for d, part in enumerate(parts)], dim=1)

    def _weights(self, index: int) -> list[dict[str, Tensor]]:
        """Parameters of a layer by name, for each direction."""
        names = [n for n in self._kind.shapes(*self.layer_sizes[index]) if self.bias or not n.startswith("bias")]
        return [{name: getattr(self, f"{name}_l{index}{suffix}") for name in names} for suffix in self.suffixes]

    def kernel_weights(self, index: int) -> list[compiled.Quint]:
        """A layer's weights as `recur.nn.compiled` takes them, of each direction, where its kernels walk the cell."""
        return [self._kind.kernel_weights(own) for own in self._weights(index)]

    def _dropped_weights(self, index: int) -> list[dict[str, Tensor]]:
        weights = self._weights(index)
        if self.weight_drop and self.training:
            for own in weights:
                own[self._kind.dropped] = dropout(own[self._kind.dropped], self.weight_drop)
        return weights

    @property
    def output_first(self) -> bool:
        """Whether the first part of a layer's state is its output."""
        return self._kind.output_first

    @property
    def _as_one(self) -> bool:
        """Whether nothing happens between layers, so that cuDNN can be given all of them at once."""
        return self._kind.fused and not self.dropout and self.output_size == self.hidden_size

    def flatten_parameters(self) -> None:
        """Lay the weights out as cuDNN wants them, so that it need not copy them at every call. Only on a GPU."""
        parameters = list(self.parameters())
        if (
            not self._kind.fused
            or not torch_internals.cudnn_wants_flat_weights()
            or not all(p.is_cuda and torch.backends.cudnn.is_acceptable(p) for p in parameters)
        ):
            return
        if len({p.data_ptr() for p in parameters}) != len(parameters):
            return
        groups = [range(self.num_layers)] if self._as_one else [range(i, i + 1) for i in range(self.num_layers)]
        with torch.cuda.device_of(parameters[0]), torch.no_grad():
            for group in groups:
                flat = [w for index in group for own in self._weights(index) for w in own.values()]
                fan_in, width = self.layer_sizes[group[0]]
                each, mode = 4 if self.bias else 2, _CUDNN_MODE[self.cell]
                torch_internals.flatten_for_cudnn(flat, each, fan_in, mode, width, len(group), self.bidirectional)

    def _apply(self, fn: Any, recurse: bool = True) -> "Recurrent":
        super()._apply(fn, recurse)
        self.flatten_parameters()  # a move to a GPU leaves each weight in its own storage
        return self

    def initial_state(self, batch: int, like: Tensor) -> State:
        """Zeros in the dtype and on the device of `like`."""
        return [tuple(like.new_zeros(shape) for shape in shapes) for shapes in self._state_shapes(batch)]

    def _state_shapes(self, batch: int) -> list[list[tuple[int, int, int]]]:
        sizes = [self._kind.state_sizes(*sizes) for sizes in self.layer_sizes]
        return [[(self.directions, batch, size) for size in one] for one in sizes]

    def forward(self, sequence: PackedSequence, state: State | None = None) -> tuple[PackedSequence, State]:
        """Run the stack.

        Args:
            sequence: packed rows, `data` of shape `(rows, input_size)`.
            state: for each layer a tuple of `(directions, batch, size)` tensors in packed order: (h, c) for cells
                like the LSTM, (h,) for the others. None stands for zeros.

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
        stepwise = self.training and self.state_dropout > 0
        fused = self._kind.fused and not stepwise and self.chosen_engine(sequence, layout) == "fused"
        if self._as_one and not fused and not stepwise:
            output, last = self._run_as_one(rows, layout, state)
            return self._packed(output, sequence), last
        output, last = rows, []
        for index in range(self.num_layers):
            if index and self.dropout and self.training:
                drop = locked_dropout if self.locked_dropout else _dropout
                output = drop(output, layout, self.dropout)
            weights = self._dropped_weights(index)
            if fused:
                output, final = run_fused(self.cell, output, layout, state[index], [_quad(own) for own in weights])
            elif stepwise:
                output, final = run_with_state_dropout(
                    self.cell, output, layout, state[index], weights, self.state_dropout
                )
            elif self._kind.fused:
                output, final = self._run_torch(output, layout, state[index], weights, 1)
            else:
                output, final = self._kind.run_layer(output, layout, state[index], weights)
            last.append(final)
        return self._packed(output, sequence), last

    def chosen_engine(self, sequence: PackedSequence, layout: Layout | None = None) -> str:
        """What `engine` means for this input now: `fused` or `torch`."""
        layout = layout or Layout(sequence.batch_sizes)
        return pick_engine(self.engine, self.cell, sequence.data, layout, self.hidden_size, self.directions)

    @staticmethod
    def _packed(rows: Tensor, like: PackedSequence) -> PackedSequence:
        return PackedSequence(rows, like.batch_sizes, like.sorted_indices, like.unsorted_indices)

    def _check_state(self, state: State, batch: int) -> None:
        shapes = self._state_shapes(batch)
        got = [[tuple(part.shape) for part in one] for one in state]
        if got != shapes:
            raise ValueError(f"the state of {self.num_layers} layers must have shapes {shapes}, got {got}")

    def _run_torch(
        self, rows: Tensor, layout: Layout, state: tuple[Tensor, ...], weights: list[Weights], num_layers: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        with warnings.catch_warnings():
            if self.weight_drop and rows.is_cuda:  # dropped weights are new tensors: cuDNN gathers them, as it says
                warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous")
            flat = [w for own in weights for w in own.values()]
            return _run_torch(
                self.cell, rows, layout, state, flat, self.bias, num_layers, self.training, self.bidirectional
            )

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
