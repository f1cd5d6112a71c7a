"""Layers of recurrence in the kernels of `recur.nn.jit`: the products and the cells of all steps in one compiled call.

A walk holds no GIL and makes no torch call: directions, and parts of the batch where there are more threads than
directions, run side by side. The kernels need numba (the extra `fast`), float32 states and a micro-kernel for the
products (`recur.nn.products`); where one is missing, `recur.nn.engine` walks by torch's operations instead.

Under autocast to bfloat16 the operands of all products (inputs, hidden states, gate gradients, weights) are rounded to
bfloat16 where the processor multiplies those; sums, gates, states, gradients and weights stay in float32.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from recur.nn import products
from recur.nn.differentiation import differentiable_once, one_gradient_at_a_time
from recur.nn.packed import Layout

CHUNK_ROWS = 256
"""Rows whose gate gradients are held at once: in float32 256 of 4 x 256 fill a 1 MB cache."""
THREADED_WORK = 20_000_000
"""Multiplications of a walk below which a second thread costs more than it saves: some tenths of a millisecond."""
SPLIT_ROWS = 16
"""Sequences a part of the batch has at least: the micro-kernel wants some rows."""


class Shape(NamedTuple):
    """How a cell's blocks of gates lie.

    Attributes:
        kind: number in `recur.nn.jit.cells`.
        blocks: of a row of the gate buffer.
        first: block where the input's product begins.
        order: for each block of the hidden state's product, its gate in torch's order.
        cell: whether there is a cell state.
        gates: whether backward needs the gates.
        own: weights a feature that the cell has besides the two matrices and biases.
        recurrent: whether there is a product of the hidden state.
    """

    kind: int
    blocks: int
    first: int
    order: tuple[int, ...]
    cell: bool
    gates: bool = True
    own: int = 0
    recurrent: bool = True


SHAPES = {
    "lstm": Shape(0, 4, 0, (0, 1, 2, 3), cell=True),
    "gru": Shape(1, 4, 1, (2, 0, 1), cell=False),
    "rnn": Shape(2, 1, 0, (0,), cell=False, gates=False),
    "rnn_relu": Shape(3, 1, 0, (0,), cell=False, gates=False),
    "peephole": Shape(4, 4, 0, (0, 1, 2, 3), cell=True, own=3),
    "lnlstm": Shape(5, 8, 4, (0, 1, 2, 3), cell=True, own=14),
    "mingru": Shape(6, 2, 0, (0, 1), cell=False, recurrent=False),
    "qrnn": Shape(7, 3, 0, (0, 1, 2), cell=True, recurrent=False),
}
"""The cells of the kernels. A `peephole`'s own weights are those of i, f and o; an `lnlstm`'s the gains of both
products, the sum of their shifts (four a feature each), gain and shift of the cell state; a `qrnn`'s hidden state is
carried nowhere: any will do as the initial one."""
Quint = Sequence[Tensor | None]  # w_ih, w_hh, b_ih, b_hh, the cell's own weights


@cache
def kernels() -> Any:
    """The module of the walks, or None without numba (or with one whose compiler was not tried)."""
    try:
        from recur.nn.jit import walks
    except ImportError:
        return None
    return walks


def available(dtype: torch.dtype) -> bool:
    """Whether the kernels can run for this dtype of states and weights."""
    return dtype == torch.float32 and products.micro_kernel(False) is not None and kernels() is not None


def _ordered(weight: Tensor, order: Sequence[int]) -> Tensor:
    """Blocks of rows in another order, for the GRU; the same tensor where nothing moves."""
    if list(order) == sorted(order):
        return weight
    parts = weight.chunk(len(order))
    return torch.cat([parts[i] for i in order])


def numpy_of(tensor: Tensor) -> Any:
    """The flat array over a contiguous tensor's memory."""
    tensor = tensor.detach()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).view(-1).numpy()


def _numpy(tensor: Tensor | None, like: Tensor) -> Any:
    """The same; of none, an empty one."""
    return numpy_of(like.new_empty(0) if tensor is None else tensor)


def split_batch(layout: Layout, directions: int, work: float) -> list[tuple[int, int]]:
    """Ranges of sequences that are walked side by side: of about equal numbers of tokens."""
    threads = torch.get_num_threads()
    count = min(threads // directions, layout.batch // SPLIT_ROWS) if work / directions > THREADED_WORK else 1
    if count <= 1:
        return [(0, layout.batch)]
    tokens = layout.lengths.cumsum(0)
    goals = torch.arange(1, count) * (layout.rows / count)
    cuts = [0, *(torch.searchsorted(tokens.double(), goals.double()) + 1).tolist(), layout.batch]
    return [(a, b) for a, b in pairwise(cuts) if b > a]


def chunk_steps(layout: Layout, first: int, end: int) -> tuple[Tensor, int]:
    """First steps of runs of steps with at most `CHUNK_ROWS` rows of a part, and most rows of one, a multiple of 32."""
    starts, rows, most = [0], 0, 0
    for step, size in enumerate(layout.sizes):
        n = min(size, end) - first
        if n <= 0:
            break
        if rows and rows + n > CHUNK_ROWS:
            starts.append(step)
            rows = 0
        rows += n
        most = max(most, rows)
    return torch.tensor([*starts, len(layout.sizes)]), -(-most // 32) * 32


_pool: ThreadPoolExecutor | None = None


def _drop_pool() -> None:
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_drop_pool)


def side_by_side(jobs: Sequence[Callable[[], Any]], work: float) -> list[Any]:
    """Run the jobs, in as many threads as torch has if the work is worth it. They make no torch call."""
    global _pool
    threads = min(torch.get_num_threads(), len(jobs))
    if threads == 1 or work < THREADED_WORK:
        return [job() for job in jobs]
    if _pool is None:
        _pool = ThreadPoolExecutor(max(torch.get_num_threads(), os.cpu_count() or 1), thread_name_prefix="recur-walk")
    others = [_pool.submit(job) for job in jobs[1:]]
    return [jobs[0](), *(other.result() for other in others)]


class _Direction:
    """One direction of a layer: its weights as the kernels want them, and its walks."""

    def __init__(
        self, cell: str, layout: Layout, reverse: bool, bf16: bool, weights: Quint, size: int, column: int, stride: int
    ) -> None:
        w_ih, w_hh, b_ih, b_hh, own = (None if w is None else w.detach() for w in weights)
        assert w_ih is not None
        self.shape, self.layout, self.reverse, self.bf16 = SHAPES[cell], layout, reverse, bf16
        self.size, self.features = size, w_ih.shape[1]
        self.column, self.stride = column, stride
        self.w_ih = w_ih
        self.w_hh = w_ih.new_empty(0, size) if w_hh is None else _ordered(w_hh, self.shape.order)
        self.width = self.shape.blocks * self.size
        self.in_columns = slice(self.shape.first * self.size, self.shape.first * self.size + len(w_ih))
        self.bias = w_ih.new_zeros(self.width)
        self.biased = b_ih is not None, b_hh is not None
        if b_ih is not None:
            self.bias[self.in_columns] += b_ih
        if b_hh is not None:
            self.bias[: len(self.w_hh)] += _ordered(b_hh, self.shape.order)
        self.own, self.scratch = own, w_ih.new_empty(self.size).numpy()

    def walk(self, part: tuple[int, int], inputs: int, panels: tuple[int, int, int], functions: Sequence[Any]) -> Any:
        kernel = products.micro_kernel(self.bf16)
        first, widths = self.shape.first * self.size, (len(self.w_ih), len(self.w_hh))
        return kernels().Walk(
            kernel,
            self.shape.kind,
            functions[self.shape.kind].address(self.bf16),
            self.reverse,
            *part,
            self.size,
            self.width,
            first,
            *widths,
            self.features,
            inputs,
            *panels,
            self.column,
            self.stride,
        )

    def _panels(self, matrix: Tensor) -> tuple[Tensor, int]:
        """A matrix as panels; of a cell without a recurrent product none, and a width to divide by."""
        if matrix.numel():
            return products.pack(matrix, self.bf16)
        return matrix.new_empty(0, dtype=torch.int16 if self.bf16 else matrix.dtype), 16

    def tensors(self, chunks: Tensor, rows: Tensor, panels: Sequence[Tensor], *rest: Tensor | None) -> Any:
        """`rest`: initial hidden and cell state, output, gates, cell states."""
        hidden, cell, output, gates, cells = (_numpy(t, self.bias) for t in rest)
        w_in, w_rec = (p.numpy() for p in panels)
        bounds, parts = self.layout.bounds.numpy(), chunks.numpy()
        weights = (w_in, w_rec, self.bias.numpy(), _numpy(self.own, self.bias))
        return kernels().Tensors(
            bounds, parts, _numpy(rows, self.bias), *weights, hidden, cell, output, gates, cells, self.scratch
        )

    def forward(
        self,
        parts: list[tuple[int, int]],
        rows: Tensor,
        hidden: Tensor,
        cell: Tensor | None,
        output: Tensor,
        save: bool,
        state: tuple[Tensor, Tensor | None] | None = None,
    ) -> tuple[list[Callable[[], None]], Tensor | None, Tensor | None, Tensor | None]:
        """Jobs that fill `output`; the gates, the cell states and the last cell state that they fill too.

        `state` is what a walk changes: the hidden state as operand, and the cell state; None for new ones.
        """
        save = save and self.shape.gates
        (w_in, panel_in), (w_rec, panel_rec) = (self._panels(w.t()) for w in (self.w_ih, self.w_hh))
        operand, last = state or (
            products.operand(hidden.clone(), self.bf16),
            None if cell is None else cell.clone(memory_format=torch.contiguous_format),
        )
        gates = self.bias.new_empty(self.layout.rows * self.width) if save else None
        cells = self.bias.new_empty(self.layout.rows * self.size) if save and self.shape.cell else None
        jobs: list[Callable[[], None]] = []
        for part in parts:
            chunks, _ = chunk_steps(self.layout, *part)
            own = gates
            if own is None:
                steps = self.layout.bounds[chunks]
                own = self.bias.new_empty(int((steps[1:] - steps[:-1]).max()) * self.width)
            walk = self.walk(part, rows.shape[1], (panel_in, panel_rec, 0), kernels().at.FORWARD)
            tensors = self.tensors(chunks, rows, (w_in, w_rec), hidden, cell, output, own, cells)
            changing = (_numpy(operand, self.bias), _numpy(last, self.bias))

            def job(walk: Any = walk, tensors: Any = tensors, changing: Any = changing) -> None:
                kernels().forward(walk, tensors, *changing, save)
                products.release()

            jobs.append(job)
        return jobs, gates, cells, last

    def backward(
        self,
        parts: list[tuple[int, int]],
        saved: Sequence[Tensor | None],
        d_output: Tensor,
        d_last: tuple[Tensor | None, Tensor | None],
        needs: Sequence[bool],
    ) -> tuple[list[Callable[[], None]], Callable[[], list[Tensor | None]]]:
        """Jobs, and what then gives the gradients of rows, hidden, cell, w_ih, w_hh, b_ih, b_hh and own weights.

        `saved`: operand rows, hidden, cell, output, gates, cells.
        """
        rows, hidden, cell, output, gates, cells = saved
        assert rows is not None
        assert hidden is not None
        (w_in, panel_in), (w_rec, panel_rec) = (self._panels(w) for w in (self.w_ih, self.w_hh))
        d_hidden, d_cell = (
            hidden.new_zeros(hidden.shape) if d is None else d.clone(memory_format=torch.contiguous_format)
            for d in d_last
        )
        d_rows = hidden.new_empty(self.layout.rows, self.features) if needs[0] else None
        jobs: list[Callable[[], None]] = []
        sums = []
        for part in parts:
            chunks, capacity = chunk_steps(self.layout, *part)
            panel_d = products.panel_width(capacity, len(self.w_ih), self.bf16)
            walk = self.walk(part, rows.shape[1], (panel_in, panel_rec, panel_d), kernels().at.BACKWARD)
            tensors = self.tensors(chunks, rows, (w_in, w_rec), hidden, cell, output, gates, cells)
            w_grads = [
                hidden.new_zeros(width, len(w)) if need else None
                for width, w, need in ((rows.shape[1], self.w_ih, needs[3]), (self.size, self.w_hh, needs[4]))
            ]
            b_grad, own_grad = torch.zeros_like(self.bias), None if self.own is None else torch.zeros_like(self.own)
            columns = -(-max(len(self.w_ih), len(self.w_hh)) // panel_d) * panel_d
            scratch = [
                rows.new_empty(capacity, width)
                for width in (self.width, columns, max(rows.shape[1], self.size), self.size)
            ]
            targets = [d_output, d_hidden, d_cell, d_rows, *w_grads, b_grad, own_grad]
            gradients = kernels().Gradients(*(_numpy(t, self.bias) for t in (*targets, *scratch)), capacity)

            def job(walk: Any = walk, tensors: Any = tensors, gradients: Any = gradients) -> None:
                kernels().backward(walk, tensors, gradients)
                products.release()

            jobs.append(job)
            sums.append((*w_grads, b_grad, own_grad))

        def collect() -> list[Tensor | None]:
            g_ih, g_hh, bias, own = (total(same) for same in zip(*sums, strict=True))
            g_ih = None if g_ih is None else g_ih[: self.features].t()
            back = [self.shape.order.index(i) for i in range(len(self.shape.order))]
            g_hh = None if g_hh is None else _ordered(g_hh.t(), back)
            assert bias is not None
            # Two tensors: gradient clipping scales in place, and would scale a shared one twice.
            b_ih = bias[self.in_columns].clone() if self.biased[0] else None
            b_hh = _ordered(bias[: len(self.w_hh)], back) if self.biased[1] else None
            return [d_rows, d_hidden, d_cell if cell is not None else None, g_ih, g_hh, b_ih, b_hh, own]

        return jobs, collect


class Step:
    """One step of one direction of a layer, over and over: the weights are laid out once, in a copy.

    Args:
        cell: one of `SHAPES`.
        weights: five, as in `layer`.
        batch: sequences.
        size: of the hidden state.
        bf16: whether products round their operands to bfloat16.

    Attributes:
        hidden: `(batch, size)`, the hidden state.
        cell: `(batch, size)`, the cell state, or None.
        bytes: of the weights that a step reads.
    """

    def __init__(self, cell: str, weights: Quint, batch: int, size: int, bf16: bool) -> None:
        assert weights[0] is not None
        self.hidden = weights[0].new_zeros(batch, size)
        self.cell = torch.zeros_like(self.hidden) if SHAPES[cell].cell else None
        self._operand = products.operand(self.hidden.clone(), bf16)
        self._output = torch.zeros_like(self.hidden)
        self._features = weights[0].shape[1]
        self._inputs = products.operand(self.hidden.new_zeros(batch, self._features), bf16)
        direction = _Direction(cell, Layout(torch.tensor([batch])), False, bf16, weights, size, 0, size)
        state = (self._operand, self.cell)
        one = [(0, batch)]
        (self._job,), *_ = direction.forward(one, self._inputs, self.hidden, self.cell, self._output, False, state)
        self.bytes = sum(w.numel() for w in weights[:2] if w is not None) * (2 if bf16 else 4)

    def load(self, state: Sequence[Tensor]) -> None:
        """Begin from a hidden state and, for cells that have one, a cell state, `(batch, size)` each."""
        self.hidden.copy_(state[0])
        self._operand.copy_(state[0])
        if self.cell is not None:
            self.cell.copy_(state[1])

    def run(self, rows: Tensor) -> Tensor:
        """One step, from inputs `(batch, features)` to the hidden state, in memory that the next step writes."""
        self._inputs[:, : self._features].copy_(rows)
        self._job()
        return self.hidden.copy_(self._output)


def _stacked(parts: Sequence[Tensor | None]) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    return torch.stack(tensors) if tensors else None


def total(parts: Sequence[Tensor | None]) -> Tensor | None:
    """The sum, in the first one's memory; None where that is missing."""
    result = parts[0]
    for other in parts[1:]:
        if result is not None and other is not None:
            result = result.add_(other)
    return result


class _Layer(torch.autograd.Function):
    """One layer in one or both directions. Five weights a direction: w_ih, w_hh, b_ih, b_hh, the cell's own."""

    @staticmethod
    def forward(
        ctx: Any,
        name: str,
        layout: Layout,
        reverse: Sequence[bool],
        save: bool,
        inputs: Tensor,
        hidden: Tensor,
        cell: Tensor | None,
        *weights: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        count, size = len(weights) // 5, hidden.shape[2]
        bf16 = products.wants_bf16() and size % 2 == 0 and products.micro_kernel(True) is not None
        with torch.autocast("cpu", enabled=False):
            hidden = hidden.contiguous()
            cell = None if cell is None else cell.contiguous()
            rows = products.operand(inputs.detach(), bf16)
            output = inputs.new_empty(layout.rows, count * size)
            own = [weights[5 * d : 5 * d + 5] for d in range(count)]
            work = 1.0 * layout.rows * sum(w.numel() for direction in own for w in direction[:2] if w is not None)
            parts = split_batch(layout, count, work)
            jobs, saved, lasts = [], [], []
            for d in range(count):
                direction = _Direction(name, layout, reverse[d], bf16, own[d], size, d * size, output.shape[1])
                one, gates, cells, last = direction.forward(
                    parts, rows, hidden[d], None if cell is None else cell[d], output, save
                )
                jobs += one
                saved += [gates, cells]
                lasts.append(last)
            side_by_side(jobs, work)
            halves = output.chunk(count, 1)
            last_hidden = torch.stack([halves[d][layout.final_rows(reverse[d])] for d in range(count)])
            last_cell = None if cell is None else torch.stack([t for t in lasts if t is not None])
        if save:
            ctx.save_for_backward(rows, hidden, cell, output, *weights, *saved)
            ctx.name, ctx.layout, ctx.reverse, ctx.bf16, ctx.work, ctx.parts = name, layout, reverse, bf16, work, parts
            ctx.set_materialize_grads(False)
        return output, last_hidden, last_cell

    @staticmethod
    @differentiable_once
    @one_gradient_at_a_time
    def backward(
        ctx: Any, d_output: Tensor | None, d_hidden: Tensor | None, d_cell: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        rows, hidden, cell, output, *rest = ctx.saved_tensors
        count, size = len(ctx.reverse), hidden.shape[2]
        weights, saved = rest[: 5 * count], rest[5 * count :]
        with torch.autocast("cpu", enabled=False):
            d_output = torch.zeros_like(output) if d_output is None else d_output.contiguous()
            jobs, collects = [], []
            needs = ctx.needs_input_grad[4:]
            for d in range(count):
                direction = _Direction(
                    *(ctx.name, ctx.layout, ctx.reverse[d], ctx.bf16, weights[5 * d : 5 * d + 5]),
                    *(size, d * size, output.shape[1]),
                )
                own = (rows, hidden[d], None if cell is None else cell[d], output, *saved[2 * d : 2 * d + 2])
                last = (None if d_hidden is None else d_hidden[d], None if d_cell is None else d_cell[d])
                one, collect = direction.backward(
                    ctx.parts, own, d_output, last, [*needs[:3], *needs[3 + 5 * d : 8 + 5 * d]]
                )
                jobs += one
                collects.append(collect)
            side_by_side(jobs, 2 * ctx.work)
            results = [collect() for collect in collects]
        d_input = total([r[0] for r in results])
        initial = [_stacked([r[k] for r in results]) for k in (1, 2)]
        return (None, None, None, None, d_input, *initial, *(g for r in results for g in r[3:]))


def _check(shape: Shape, inputs: Tensor, layout: Layout, state: tuple[Tensor, ...], weights: Sequence[Quint]) -> None:
    """The kernels read and write by address: nothing may have another shape or dtype than they take it to have."""
    size, gates = state[0].shape[2], len(shape.order) * state[0].shape[2]
    wants = ((gates, inputs.shape[1]), (gates, size), (gates,), (gates,), (shape.own * size,))
    for own in weights:
        got = [None if w is None else tuple(w.shape) for w in own]
        optional = (False, not shape.recurrent, True, True, not shape.own)
        barred = (False, not shape.recurrent, False, not shape.recurrent, not shape.own)
        fits = [
            (free if g is None else g == want and not bar)
            for g, want, free, bar in zip(got, wants, optional, barred, strict=True)
        ]
        if not all(fits):
            raise RuntimeError(f"weights of shapes {got} do not fit, expected {wants}")
    expected = (len(weights), layout.batch, size)
    if len(inputs) != layout.rows or len(state) != 1 + shape.cell or any(s.shape != expected for s in state):
        raise RuntimeError(
            f"{len(inputs)} rows and states {[tuple(s.shape) for s in state]} do not fit {layout.rows} rows and "
            f"{1 + shape.cell} states {expected}"
        )
    if any(t is not None and t.dtype != torch.float32 for own in weights for t in (inputs, *state, *own)):
        raise RuntimeError("inputs, states and weights of the compiled kernels do not fit: all must be float32")


def _evened(
    cell: str,
    inputs: Tensor,
    layout: Layout,
    state: tuple[Tensor, ...],
    weights: Sequence[Quint],
    reverse: Sequence[bool],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A layer of odd size with one more unit, all of whose weights are zero: its state stays zero and adds nothing.

    Products of bfloat16 take their inner dimension two at a time. A layer norm would see the unit, hence not there.
    """
    size = state[0].shape[2]

    def wider(weight: Tensor | None, columns: int) -> Tensor | None:
        """One more unit a block of `size` rows, and so many columns more."""
        if weight is None:
            return None
        blocks = weight.reshape(-1, size, *weight.shape[1:])
        grown = F.pad(blocks, (0, columns, 0, 1) if weight.dim() == 2 else (0, 1))
        return grown.reshape(-1, *grown.shape[2:])

    grown = [[wider(w, int(place == 1)) for place, w in enumerate(own)] for own in weights]
    output, last = layer(cell, inputs, layout, tuple(F.pad(part, (0, 1)) for part in state), grown, reverse)
    return output.view(len(output), -1, size + 1)[..., :size].flatten(1), tuple(part[..., :size] for part in last)


def layer(
    cell: str,
    inputs: Tensor,
    layout: Layout,
    state: tuple[Tensor, ...],
    weights: Sequence[Quint],
    reverse: Sequence[bool] = (False, True),
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One recurrent layer over packed rows, differentiable once, where `available`.

    Args:
        cell: one of `SHAPES`.
        inputs: `(rows, input_size)` packed float32 rows.
        layout: where the rows lie.
        state: initial hidden state `(directions, batch, hidden)`, and for cells that have one the cell state, likewise.
        weights: for each direction w_ih, w_hh, b_ih, b_hh as `torch.nn` lays them out (both biases None without), and
            the cell's own weights or None, see `SHAPES`.
        reverse: whether each direction walks from the end of the sequences.

    Returns:
        `(rows, directions * hidden)` and the final state, shaped as the initial one.
    """
    _check(SHAPES[cell], inputs, layout, state, weights)
    size = state[0].shape[2]
    if size % 2 and cell != "lnlstm" and products.wants_bf16() and products.micro_kernel(True) is not None:
        return _evened(cell, inputs, layout, state, weights, reverse)
    flat = [w for direction in weights for w in direction]
    hidden, memory = state if SHAPES[cell].cell else (state[0], None)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (inputs, hidden, memory, *flat))
    ways = tuple(reverse[: len(weights)])
    output, last_hidden, last_cell = _Layer.apply(cell, layout, ways, save, inputs, hidden, memory, *flat)
    return output, (last_hidden,) if last_cell is None else (last_hidden, last_cell)
