r"""The cells: what parameters a layer has, what state it carries, and how one direction of it runs over packed rows.

LSTM, GRU and RNN run in `recur.nn.engine` or in cuDNN. The others come in two kinds.

*Scanned* cells have gates that see the input alone, so that $h_t = a_t h_{t-1} + b_t$ is a linear recurrence and all
products are done for all steps at once; one scan serves them all:

- `mingru` (Feng et al. 2024, "Were RNNs all we needed?"): z = sigma(W_z x + b_z), h = (1 - z) h + z (W_h x + b_h).
- `qrnn` (Bradbury et al. 2017, fo-pooling): z = tanh(W_z *x), f, o = sigma(W_f *x), sigma(W_o *x), c = f c + (1 - f) z,
  h = o c, where * is a convolution over the last `window` inputs (1 or 2).

*Stepwise* cells are written for one step and walked by `walk`, with autograd for the backward pass, where the compiled
kernels of `recur.nn.compiled` do not take them (float32 on a CPU):

- `lnlstm` (Ba et al. 2016): an LSTM whose gates are LN(W x) + LN(U h) + b and whose output is sigma(o) tanh(LN(c)).
- `peephole` (Gers and Schmidhuber 2000): an LSTM whose gates also see the cell state, each through a weight of its own.
- `mogrifier` (Melis et al. 2020): an LSTM whose x and h gate each other in turn for some `rounds` beforehand.

A new cell is a class here with the methods of `Cell`, and a line in `_OWN`. One of your own package is named in its
entry points: `[project.entry-points."recur.cells"]`, `NAME = "PACKAGE.MODULE:CLASS"`.
"""

from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from recur.nn import compiled, mogrifier
from recur.nn.arguments import ArgumentError
from recur.nn.differentiation import differentiable_once
from recur.nn.engine import FUSED_CELLS
from recur.nn.packed import Layout

Weights = dict[str, Tensor]
Step = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, tuple[Tensor, ...]]]


class Cell:
    """What `Recurrent` needs to know of a cell. This one is right for the cells of `torch.nn`.

    Args:
        name: key in `CELLS`.
    """

    dropped = "weight_hh"  # what weight drop drops
    fused = True  # runs in the engine and in cuDNN, not through `run`
    output_first = True  # the first part of the state is the output
    gates: ClassVar[dict[str, int]] = {"lstm": 4, "gru": 3, "rnn": 1, "rnn_relu": 1}

    def __init__(self, name: str) -> None:
        self.name = name

    def shapes(self, input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
        """Parameters of one layer in one direction, in torch's order. Names that start with `bias` are optional."""
        rows = self.gates[self.name] * hidden_size
        return {
            "weight_ih": (rows, input_size),
            "weight_hh": (rows, hidden_size),
            "bias_ih": (rows,),
            "bias_hh": (rows,),
        }

    def state_sizes(self, input_size: int, hidden_size: int) -> tuple[int, ...]:
        """Features of each part of the carried state; the output comes first, where `output_first` says so."""
        return (hidden_size, hidden_size) if self.name == "lstm" else (hidden_size,)

    def forget_gate(self, hidden_size: int) -> slice | None:
        """Rows of the forget gate in `bias_ih`, where there is one that a bias of about 1 should open."""
        return slice(hidden_size, 2 * hidden_size) if self.name == "lstm" else None

    def kernel_weights(self, weights: Weights) -> compiled.Quint:
        """The weights of one direction as the kernels of `recur.nn.compiled` take them, where those walk the cell."""
        return [*(weights.get(name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")), None]

    def run(
        self, rows: Tensor, layout: Layout, state: tuple[Tensor, ...], weights: Weights, reverse: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run one direction over packed rows.

        Args:
            rows: `(rows, input_size)`.
            layout: where the rows lie.
            state: initial state, each part `(batch, size)` in packed order.
            weights: parameters by name.
            reverse: walk from the end of each sequence to its beginning.

        Returns:
            `(rows, hidden_size)` and the final state.
        """
        raise NotImplementedError

    def run_layer(
        self, rows: Tensor, layout: Layout, state: tuple[Tensor, ...], weights: Sequence[Weights]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run all directions of a layer: one after the other, unless a cell knows better.

        Args:
            rows: `(rows, input_size)`.
            layout: where the rows lie.
            state: initial state, each part `(directions, batch, size)` in packed order.
            weights: parameters by name, of each direction.

        Returns:
            `(rows, directions * hidden_size)` and the final state, shaped as the initial one.
        """
        runs = [self.run(rows, layout, tuple(part[d] for part in state), own, bool(d)) for d, own in enumerate(weights)]
        outputs, finals = zip(*runs, strict=True)
        return torch.cat(outputs, 1), tuple(torch.stack(parts) for parts in zip(*finals, strict=True))


def _compiled_layer(
    name: str,
    rows: Tensor,
    layout: Layout,
    state: tuple[Tensor, ...],
    weights: Sequence[compiled.Quint],
    reverse: Sequence[bool] = (False, True),
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A layer by the compiled kernels, in the dtype of its weights whatever autocast made of the rows."""
    assert weights[0][0] is not None
    dtype = weights[0][0].dtype
    return compiled.layer(name, rows.to(dtype), layout, tuple(part.to(dtype) for part in state), weights, reverse)


def _is_compiled(rows: Tensor, weights: Sequence[Weights]) -> bool:
    return rows.device.type == "cpu" and compiled.available(weights[0]["weight_ih"].dtype)


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What gates come from, in the weights' dtype whatever autocast made of the operands.

    A sigmoid near 1 is 1 in bfloat16: a gate that should forget slowly would never forget, and get no gradient.
    """
    return F.linear(rows, weight, bias).to(weight.dtype)


# -- scanned cells -----------------------------------------------------------------------------------------------------
def _scan_by_walking(a: Tensor, b: Tensor, layout: Layout, initial: Tensor, reverse: bool) -> Tensor:
    """One step after the other: least work, and in cache. Right for a CPU."""
    output = b.clone()
    steps = list(zip(layout.sizes, a.split(layout.sizes), output.split(layout.sizes), strict=True))
    before, previous = 0, initial[:0]
    for n, factor, out in reversed(steps) if reverse else steps:
        if n != before:
            previous = previous[:n] if n < before else torch.cat([previous, initial[before:n]])
            before = n
        out.addcmul_(factor, previous)
        previous = out
    return output


def _scan_by_doubling(a: Tensor, b: Tensor, layout: Layout, initial: Tensor, reverse: bool) -> Tensor:
    """Hillis and Steele's scan: after round k every row has met the 2^k rows before it. Right for a GPU.

    It multiplies and adds and never divides or takes a logarithm, so products of many small factors fade to zero as
    they should and signs do not matter.
    """
    entry = layout.entry_rows(reverse).to(a.device)
    output = b.index_add(0, entry, a[entry] * initial)
    factor = a.index_fill(0, entry, 0)  # nothing comes before an entry row
    before = layout.previous_rows(reverse).to(a.device)
    for _ in range((len(layout.sizes) - 1).bit_length()):
        output = torch.addcmul(output, factor, output[before])
        factor = factor * factor[before]
        before = before[before]
    return output


class _Scan(torch.autograd.Function):
    r"""$h_t = a_t h_{t-1} + b_t$; its gradient $d_t = \bar h_t + a_{t+1} d_{t+1}$ is the same scan the other way."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, initial: Tensor, layout: Layout, reverse: bool, method: Any) -> Tensor:
        output = method(a, b, layout, initial, reverse)
        ctx.save_for_backward(a, initial, output)
        ctx.rest = (layout, reverse, method)
        return output

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, ...]:
        a, initial, output = ctx.saved_tensors
        layout, reverse, method = ctx.rest
        entry = layout.entry_rows(reverse).to(a.device)
        following = a[layout.previous_rows(not reverse).to(a.device)]
        d_b = method(following, d_output, layout, torch.zeros_like(initial), not reverse)
        before = output[layout.previous_rows(reverse).to(a.device)].index_copy(0, entry, initial)
        return d_b * before, d_b, d_b[entry] * a[entry], None, None, None


def scan(a: Tensor, b: Tensor, layout: Layout, initial: Tensor, reverse: bool, method: str = "auto") -> Tensor:
    r"""All $h_t = a_t h_{t-1} + b_t$ of packed sequences of any lengths, differentiable.

    Args:
        a: factors, `(rows, size)`, of magnitude at most 1.
        b: what is added, `(rows, size)`.
        layout: where the rows lie.
        initial: `(batch, size)` in packed order.
        reverse: run from each sequence's end to its beginning.
        method: `walk`, `double`, or `auto`, which walks on a CPU.

    Returns:
        `(rows, size)`, in float32 at least: sums of hundreds of terms want it, whatever autocast made of the gates.
    """
    exact = torch.promote_types(a.dtype, torch.float32)
    a, b, initial = a.to(exact), b.to(exact), initial.to(exact)
    walk_it = a.device.type == "cpu" if method == "auto" else method == "walk"
    return _Scan.apply(a, b, initial, layout, reverse, _scan_by_walking if walk_it else _scan_by_doubling)


class MinGRU(Cell):
    """minGRU: a gated average of projections of the input."""

    dropped = "weight_ih"
    fused = False

    def shapes(self, input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
        """Rows z, h."""
        return {"weight_ih": (2 * hidden_size, input_size), "bias_ih": (2 * hidden_size,)}

    def run_layer(
        self, rows: Tensor, layout: Layout, state: tuple[Tensor, ...], weights: Sequence[Weights]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Cell.run_layer`."""
        if not _is_compiled(rows, weights):
            return super().run_layer(rows, layout, state, weights)
        return _compiled_layer(self.name, rows, layout, state, [self.kernel_weights(w) for w in weights])

    def run(
        self, rows: Tensor, layout: Layout, state: tuple[Tensor, ...], weights: Weights, reverse: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Cell.run`."""
        z, candidate = _product(rows, weights["weight_ih"], weights.get("bias_ih")).chunk(2, 1)
        z = z.sigmoid()
        output = scan(1 - z, z * candidate, layout, state[0], reverse).to(weights["weight_ih"].dtype)
        return output, (output[layout.final_rows(reverse).to(rows.device)],)


class QRNN(Cell):
    """Quasi-recurrent network with fo-pooling.

    Args:
        name: key in `CELLS`.
        window: inputs that a gate sees, 1 or 2. With 2 the state is (c, the last input).
    """

    dropped = "weight_ih"
    fused = False
    output_first = False  # the output is o c, and only c is carried

    def __init__(self, name: str, window: int = 1) -> None:
        super().__init__(name)
        if window not in (1, 2):
            raise ArgumentError("window", f"of a qrnn is 1 or 2, got {window}")
        self.window = window

    def shapes(self, input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
        """Rows z, f, o; columns this input, then the one before it."""
        return {"weight_ih": (3 * hidden_size, self.window * input_size), "bias_ih": (3 * hidden_size,)}

    def state_sizes(self, input_size: int, hidden_size: int) -> tuple[int, ...]:
        """(c,), or (c, last input)."""
        return (hidden_size, input_size) if self.window == 2 else (hidden_size,)

    def forget_gate(self, hidden_size: int) -> slice | None:
        """The second block."""
        return slice(hidden_size, 2 * hidden_size)

    def run_layer(
        self, rows: Tensor, layout: Layout, state: tuple[Tensor, ...], weights: Sequence[Weights]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Cell.run_layer`."""
        if not _is_compiled(rows, weights):
            return super().run_layer(rows, layout, state, weights)
        own = [self.kernel_weights(w) for w in weights]
        empty = torch.zeros_like(state[0])
        if self.window == 1:
            output, (_, c) = _compiled_layer(self.name, rows, layout, (empty, state[0]), own)
            return output, (c,)
        outputs, cells, last = [], [], []
        for d in range(len(own)):  # each reads other neighbours
            seen, one = self._seen(rows, layout, state[1][d], bool(d)), slice(d, d + 1)
            initial = (empty[one], state[0][one])
            output, (_, c) = _compiled_layer(self.name, seen, layout, initial, own[one], [bool(d)])
            outputs.append(output)
            cells.append(c)
            last.append(rows[layout.final_rows(bool(d))])
        return torch.cat(outputs, 1), (torch.cat(cells), torch.stack(last))

    def _seen(self, rows: Tensor, layout: Layout, last: Tensor, reverse: bool) -> Tensor:
        """What a gate sees: each row, and with a window of 2 the one before it."""
        if self.window == 1:
            return rows
        entry = layout.entry_rows(reverse).to(rows.device)
        before = rows[layout.previous_rows(reverse).to(rows.device)].index_copy(0, entry, last.to(rows.dtype))
        return torch.cat([rows, before], 1)

    def run(
        self, rows: Tensor, layout: Layout, state: tuple[Tensor, ...], weights: Weights, reverse: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Cell.run`."""
        seen = self._seen(rows, layout, state[-1], reverse)
        z, f, o = _product(seen, weights["weight_ih"], weights.get("bias_ih")).chunk(3, 1)
        f = f.sigmoid()
        c = scan(f, (1 - f) * z.tanh(), layout, state[0], reverse).to(weights["weight_ih"].dtype)
        final = layout.final_rows(reverse).to(rows.device)
        return o.sigmoid() * c, (c[final], rows[final]) if self.window == 2 else (c[final],)


# -- stepwise cells ----------------------------------------------------------------------------------------------------
def walk(
    step: Step, rows: Tensor, layout: Layout, state: tuple[Tensor, ...], reverse: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Apply `step` to each time step of packed rows, under autograd.

    Args:
        step: from inputs `(n, features)` and a state of `(n, size)` tensors to outputs `(n, hidden)` and a new state.
        rows: `(rows, features)`.
        layout: where the rows lie.
        state: initial state, each part `(batch, size)` in packed order.
        reverse: walk from each sequence's end to its beginning.

    Returns:
        `(rows, hidden)` and the final state.
    """
    outputs, ended = [], []
    inputs = rows.split(layout.sizes)
    now = tuple(part[:0] for part in state)
    for inputs_now in reversed(inputs) if reverse else inputs:
        n, before = inputs_now.shape[0], now[0].shape[0]
        if n < before:
            ended.append(tuple(part[n:] for part in now))
            now = tuple(part[:n] for part in now)
        elif n > before:
            now = tuple(torch.cat([part, initial[before:n]]) for part, initial in zip(now, state, strict=True))
        output, now = step(inputs_now, now)
        outputs.append(output)
    final = tuple(torch.cat(parts) for parts in zip(now, *reversed(ended), strict=True))
    return torch.cat(outputs[::-1] if reverse else outputs), final


def _lstm_update(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """New cell state and output gate from pre-activations in torch's order i, f, g, o."""
    i, f, g, o = gates.chunk(4, 1)
    return f.sigmoid() * c + i.sigmoid() * g.tanh(), o.sigmoid()


class _OwnWeights(torch.autograd.Function):
    """Gains and shifts of a layer-norm LSTM as one vector, for `compiled.SHAPES`.

    Their gradients have memory of their own: gradient clipping scales in place, and would scale a shared one twice.
    """

    @staticmethod
    def forward(
        ctx: Any, gain_h: Tensor, gain_x: Tensor, gain_c: Tensor, shift_x: Tensor, shift_h: Tensor, shift_c: Tensor
    ) -> Tensor:
        ctx.size = len(gain_c)
        return torch.cat([gain_h, gain_x, shift_x + shift_h, gain_c, shift_c])

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        gain_h, gain_x, shift, gain_c, shift_c = gradient.split([4 * ctx.size] * 3 + [ctx.size] * 2)
        return gain_h.clone(), gain_x.clone(), gain_c.clone(), shift.clone(), shift.clone(), shift_c.clone()


class LayerNormLSTM(Cell):
    """LSTM with layer normalisation of both products and of the cell state."""

    fused = False

    def shapes(self, input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
        """The LSTM's, and the gains of the three normalisations; their shifts are `bias_ih`, `bias_hh`, `bias_c`."""
        rows = 4 * hidden_size
        return {
            "weight_ih": (rows, input_size),
            "weight_hh": (rows, hidden_size),
            "gain_ih": (rows,),
            "gain_hh": (rows,),
            "gain_c": (hidden_size,),
            "bias_ih": (rows,),
            "bias_hh": (rows,),
            "bias_c": (hidden_size,),
        }

    def state_sizes(self, input_size: int, hidden_size: int) -> tuple[int, ...]:
        """(h, c)."""
        return (hidden_size, hidden_size)

    def forget_gate(self, hidden_size: int) -> slice | None:
        """The LSTM's."""
        return slice(hidden_size, 2 * hidden_size)

    def run_layer(
        self, rows: Tensor, layout: Layout, state: tuple[Tensor, ...], weights: Sequence[Weights]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Cell.run_layer`."""
        if not _is_compiled(rows, weights):
            return super().run_layer(rows, layout, state, weights)
        return _compiled_layer(self.name, rows, layout, state, [self.kernel_weights(w) for w in weights])

    def kernel_weights(self, weights: Weights) -> compiled.Quint:
        """Gains and shifts are one vector of the cell's own."""
        gain_h, gain_x, gain_c = weights["gain_hh"], weights["gain_ih"], weights["gain_c"]
        zero, zero_c = torch.zeros_like(gain_x), torch.zeros_like(gain_c)
        shifts = (weights.get("bias_ih", zero), weights.get("bias_hh", zero), weights.get("bias_c", zero_c))
        own = _OwnWeights.apply(gain_h, gain_x, gain_c, *shifts)
        return [weights["weight_ih"], weights["weight_hh"], None, None, own]

    def run(
        self, rows: Tensor, layout: Layout, state: tuple[Tensor, ...], weights: Weights, reverse: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Cell.run`."""
        w_ih, w_hh, gain_c = weights["weight_ih"], weights["weight_hh"], weights["gain_c"]
        projected = F.layer_norm(_product(rows, w_ih), w_ih.shape[:1], weights["gain_ih"], weights.get("bias_ih"))

        def step(inputs: Tensor, now: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
            hidden, c = now
            recurrent = _product(hidden, w_hh)
            gates = inputs + F.layer_norm(recurrent, w_hh.shape[:1], weights["gain_hh"], weights.get("bias_hh"))
            c, o = _lstm_update(gates, c)
            hidden = o * F.layer_norm(c, gain_c.shape, gain_c, weights.get("bias_c")).tanh()
            return hidden, (hidden, c)

        return walk(step, projected, layout, state, reverse)


class Peephole(Cell):
    """LSTM with peephole connections: i and f see the old cell state, o the new one, feature by feature."""

    fused = False

    def shapes(self, input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
        """The LSTM's, and the peepholes' weights of i, f and o."""
        rows = 4 * hidden_size
        weights = {"weight_ih": (rows, input_size), "weight_hh": (rows, hidden_size)}
        return {**weights, "bias_ih": (rows,), "bias_hh": (rows,), "weight_ch": (3 * hidden_size,)}

    def state_sizes(self, input_size: int, hidden_size: int) -> tuple[int, ...]:
        """(h, c)."""
        return (hidden_size, hidden_size)

    def forget_gate(self, hidden_size: int) -> slice | None:
        """The LSTM's."""
        return slice(hidden_size, 2 * hidden_size)

    def run_layer(
        self, rows: Tensor, layout: Layout, state: tuple[Tensor, ...], weights: Sequence[Weights]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Cell.run_layer`."""
        if not _is_compiled(rows, weights):
            return super().run_layer(rows, layout, state, weights)
        return _compiled_layer(self.name, rows, layout, state, [self.kernel_weights(w) for w in weights])

    def kernel_weights(self, weights: Weights) -> compiled.Quint:
        """The peepholes are the cell's own."""
        return [*super().kernel_weights(weights)[:4], weights["weight_ch"]]

    def run(
        self, rows: Tensor, layout: Layout, state: tuple[Tensor, ...], weights: Weights, reverse: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Cell.run`."""
        projected = F.linear(rows, weights["weight_ih"], weights.get("bias_ih"))
        peep_i, peep_f, peep_o = weights["weight_ch"].chunk(3)

        def step(inputs: Tensor, now: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
            hidden, c = now
            i, f, g, o = (inputs + F.linear(hidden, weights["weight_hh"], weights.get("bias_hh"))).chunk(4, 1)
            c = (f + peep_f * c).sigmoid() * c + (i + peep_i * c).sigmoid() * g.tanh()
            hidden = (o + peep_o * c).sigmoid() * c.tanh()
            return hidden, (hidden, c)

        return walk(step, projected, layout, state, reverse)


class Mogrifier(Cell):
    """Mogrifier LSTM.

    Args:
        name: key in `CELLS`.
        rounds: how often x and h gate each other, x first; 0 is an LSTM.
    """

    fused = False

    def __init__(self, name: str, rounds: int = 5) -> None:
        super().__init__(name)
        if rounds < 0:
            raise ArgumentError("rounds", f"of a mogrifier must not be negative, got {rounds}")
        self.rounds = rounds

    def shapes(self, input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
        """The LSTM's, and a matrix a round: odd ones gate x by h, even ones h by x."""
        rows = 4 * hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, input_size), "weight_hh": (rows, hidden_size)}
        for i in range(1, self.rounds + 1):
            shapes[f"weight_round{i}"] = (input_size, hidden_size) if i % 2 else (hidden_size, input_size)
        return {**shapes, "bias_ih": (rows,), "bias_hh": (rows,)}

    def state_sizes(self, input_size: int, hidden_size: int) -> tuple[int, ...]:
        """(h, c)."""
        return (hidden_size, hidden_size)

    def forget_gate(self, hidden_size: int) -> slice | None:
        """The LSTM's."""
        return slice(hidden_size, 2 * hidden_size)

    def run_layer(
        self, rows: Tensor, layout: Layout, state: tuple[Tensor, ...], weights: Sequence[Weights]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Cell.run_layer`."""
        if not _is_compiled(rows, weights):
            return super().run_layer(rows, layout, state, weights)
        names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
        names += [f"weight_round{i}" for i in range(1, self.rounds + 1)]
        dtype = weights[0]["weight_ih"].dtype
        own = [[w.get(name) for name in names] for w in weights]
        return mogrifier.layer(rows.to(dtype), layout, tuple(part.to(dtype) for part in state), own)

    def run(
        self, rows: Tensor, layout: Layout, state: tuple[Tensor, ...], weights: Weights, reverse: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Cell.run`."""
        w_ih, w_hh = weights["weight_ih"], weights["weight_hh"]
        gating = [weights[f"weight_round{i}"] for i in range(1, self.rounds + 1)]

        def step(x: Tensor, now: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
            hidden, c = now
            for i, matrix in enumerate(gating):
                if i % 2:
                    hidden = 2 * F.linear(x, matrix).sigmoid() * hidden
                else:
                    x = 2 * F.linear(hidden, matrix).sigmoid() * x
            gates = _product(x, w_ih, weights.get("bias_ih")) + _product(hidden, w_hh, weights.get("bias_hh"))
            c, o = _lstm_update(gates, c)
            hidden = o * c.tanh()
            return hidden, (hidden, c)

        return walk(step, rows, layout, state, reverse)


class _Cells(dict[str, Any]):
    """Cells by name; one of another package (entry points `recur.cells`) is imported when it is first asked for."""

    def __getitem__(self, name: str) -> Any:
        cell = super().__getitem__(name)
        if isinstance(cell, metadata.EntryPoint):
            cell = self[name] = cell.load()
        return cell


_OWN: dict[str, Callable[..., Cell]] = {
    **dict.fromkeys(FUSED_CELLS, Cell),
    "mingru": MinGRU,
    "qrnn": QRNN,
    "lnlstm": LayerNormLSTM,
    "peephole": Peephole,
    "mogrifier": Mogrifier,
}
CELLS: dict[str, Callable[..., Cell]] = _Cells(
    {point.name: point for point in metadata.entry_points(group="recur.cells")} | _OWN
)
