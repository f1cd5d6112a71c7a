"""All steps of one direction of a Mogrifier LSTM over packed rows, for the sequences `first` to `end` of the batch.

Before a step of the LSTM its input x and its hidden state h gate each other in turn: in round i, x <- 2 sigma(Q_i h) x
where i is odd and h <- 2 sigma(Q_i x) h where it is even. So x depends on the step before, and nothing can be projected
for many steps at once. Kept for the way back are the sigmoids of the rounds beside what an LSTM keeps; the gated x and
h follow from them. As in `walks`, the gradients of the gates and of the rounds live for one chunk of steps.

Matrices come in one order: W, U, then Q of each round. A row of `gated`, and of the chunk's gradients behind those of
the gates, holds the rounds on x, then those on h. A row of `left` holds the versions of x from the ungated one on, then
those of h: what the matrices were multiplied with.
"""

from typing import Any, NamedTuple

import numpy as np

from recur.nn.jit import cells as at
from recur.nn.jit.primitives import (
    ONE,
    TWO,
    call_rows,
    compiled,
    get,
    is_bf16,
    product,
    put,
    set_float,
    sigmoid,
    to_panels,
    transpose,
)


class Walk(NamedTuple):
    """What a walk is over."""

    kernel: int  # address of the micro-kernel
    cell: int  # address of the LSTM's function of rows
    reverse: bool
    first: int
    end: int
    size: int
    features: int
    rounds: int
    column: int  # of this direction in the output
    stride: int  # of the output
    chunk: int  # rows of the chunk's buffers


class Tensors(NamedTuple):
    """Flat arrays of a walk; `hidden` and `cell` are the initial state."""

    offsets: Any  # first row of each step, and the number of rows
    chunks: Any  # first step of each chunk, and the number of steps
    rows: Any  # (rows, features)
    panels: Any  # of all matrices, in the precision of the products
    starts: Any  # of each matrix in `panels`
    widths: Any  # columns of a panel of each
    bias: Any  # (4 * size,)
    hidden: Any  # (batch, size)
    cell: Any  # (batch, size)
    output: Any  # (rows, stride)
    gates: Any  # (rows, 4 * size), or one step's
    gated: Any  # (rows, width of the rounds), or one step's
    cells: Any  # (rows, size): every cell state, or none


class Scratch(NamedTuple):
    """Flat arrays that a walk works in: the state of the sequences, and one step's x and h, plain and as operands."""

    hidden: Any  # (batch, size); forward, it comes as the initial state
    cell: Any  # (batch, size): forward the state, backward its gradient
    x: Any  # (2 * sequences, features); backward, all versions, one after the other
    h: Any  # (2 * sequences, size); backward, all versions
    x_operand: Any
    h_operand: Any


class Gradients(NamedTuple):
    """Flat arrays of a walk back; those of the chunk are scratch."""

    output: Any  # (rows, stride)
    hidden: Any  # (batch, size): of the last state, then of the initial one
    rows: Any  # (rows, features)
    weights: Any  # of all matrices, each transposed
    starts: Any  # of each matrix in `weights`, and their end
    bias: Any  # (4 * size,)
    d: Any  # operand (chunk, 4 * size and the rounds)
    left: Any  # operand (chunk, versions of x and of h)
    d_panels: Any
    widths: Any  # columns of a panel of each matrix's gradients
    turned: Any  # operand (features or size, chunk)


@compiled
def _running(w, offsets, step):  # type: ignore[no-untyped-def]
    """How many of the walk's sequences are in a step."""
    if step < 0 or step >= len(offsets) - 1:
        return np.int64(0)
    return max(min(offsets[step + 1] - offsets[step], w.end) - w.first, 0)


@compiled
def _round_column(w, i):  # type: ignore[no-untyped-def]
    """Where round `i`, counted from 1, begins in a row of `gated`."""
    if i % 2:
        return (i // 2) * w.features
    return ((w.rounds + 1) // 2) * w.features + (i // 2 - 1) * w.size


@compiled
def _round_width(w):  # type: ignore[no-untyped-def]
    return ((w.rounds + 1) // 2) * w.features + (w.rounds // 2) * w.size


@compiled
def _times(w, t, matrix, n, k, columns, a, lda, target, stride, add):  # type: ignore[no-untyped-def]
    """The product of `n` rows at `a` with a matrix's panels."""
    size = 2 if is_bf16(t.panels) else 4
    panels = t.panels.ctypes.data + t.starts[matrix] * size
    product(w.kernel, n, columns, k, a, lda, panels, t.widths[matrix], target, stride, add, is_bf16(t.panels))


@compiled
def _load(like, source, stride, n, width, target, operand, operand_stride):  # type: ignore[no-untyped-def]
    """Copy `n` rows from an address to `target`, and as operands to `operand`."""
    for k in range(n):
        row, copy, low = source + k * stride, target + 4 * k * width, operand + k * operand_stride
        for j in range(width):
            value = get(row, j)
            set_float(copy, j, value)
            put(like, low, j, value)


@compiled
def _gate_rows(like, gates, stride, n, width, before, after, operand, operand_stride):  # type: ignore[no-untyped-def]
    """`after` = 2 sigma(gates) `before`, plain and as operand; the sigmoids take the place of their arguments."""
    for k in range(n):
        row, old, new = gates + k * stride, before + 4 * k * width, after + 4 * k * width
        low = operand + k * operand_stride
        for j in range(width):
            s = sigmoid(get(row, j))
            value = TWO * s * get(old, j)
            set_float(row, j, s)
            set_float(new, j, value)
            put(like, low, j, value)


@compiled
def _rounds(w, t, s, row, n):  # type: ignore[no-untyped-def]
    """Gate the `n` rows of x and h, and leave the sigmoids in the rows of `t.gated` from `row` on.

    The versions take turns in two places: in one, the compiler could not tell that rows do not depend on each other.
    """
    size = 2 if is_bf16(t.panels) else 4
    width = _round_width(w)
    x_low, h_low = s.x_operand.ctypes.data, s.h_operand.ctypes.data
    for i in range(1, w.rounds + 1):
        target = t.gated.ctypes.data + 4 * (row * width + _round_column(w, i))
        if i % 2:
            _times(w, t, i + 1, n, w.size, w.features, h_low, w.size, target, width, 0)
            old, new = (i // 2) % 2 * n * w.features, (i // 2 + 1) % 2 * n * w.features
            x = s.x.ctypes.data
            _gate_rows(t.panels, target, 4 * width, n, w.features, x + 4 * old, x + 4 * new, x_low, size * w.features)
        else:
            _times(w, t, i + 1, n, w.features, w.size, x_low, w.features, target, width, 0)
            old, new = (i // 2 - 1) % 2 * n * w.size, (i // 2) % 2 * n * w.size
            h = s.h.ctypes.data
            _gate_rows(t.panels, target, 4 * width, n, w.size, h + 4 * old, h + 4 * new, h_low, size * w.size)


@compiled
def forward(w, t, s, save):  # type: ignore[no-untyped-def]
    """Walk forward; without `save` the buffers of gates hold one step."""
    bf16 = is_bf16(t.panels)
    low = 2 if bf16 else 4
    steps, size, wide = len(t.offsets) - 1, w.size, 4 * w.size
    table = np.zeros(at.TABLE_SIZE, np.int64)
    table[at.BIAS] = t.bias.ctypes.data
    table[at.GATES_STEP], table[at.STATE_STEP], table[at.OUTPUT_STEP] = 4 * wide, 4 * size, 4 * w.stride
    table[at.OPERAND_STEP] = low * size
    for index in range(steps):
        step = steps - 1 - index if w.reverse else index
        n = _running(w, t.offsets, step)
        if n == 0:
            continue
        row = t.offsets[step] + w.first
        kept = row if save else np.int64(0)
        x_low, h_low = s.x_operand.ctypes.data, s.h_operand.ctypes.data
        state = s.hidden.ctypes.data + 4 * w.first * size
        source = t.rows.ctypes.data + 4 * row * w.features
        _load(t.panels, source, 4 * w.features, n, w.features, s.x.ctypes.data, x_low, low * w.features)
        _load(t.panels, state, 4 * size, n, size, s.h.ctypes.data, h_low, low * size)
        _rounds(w, t, s, kept, n)
        gates = t.gates.ctypes.data + 4 * kept * wide
        _times(w, t, 0, n, w.features, wide, x_low, w.features, gates, wide, 0)
        _times(w, t, 1, n, size, wide, h_low, size, gates, wide, 1)
        output = t.output.ctypes.data + 4 * (row * w.stride + w.column)
        table[at.GATES], table[at.C] = gates, s.cell.ctypes.data + 4 * w.first * size
        table[at.KEPT] = t.cells.ctypes.data + 4 * row * size if save else s.h.ctypes.data
        table[at.KEPT_STEP] = 4 * size if save else np.int64(0)
        table[at.H], table[at.OPERAND] = output, h_low
        call_rows(w.cell, n, table.ctypes.data, size)
        _load(t.panels, output, 4 * w.stride, n, size, state, h_low, low * size)


@compiled
def _gate_again(like, sigmoids, stride, n, width, after, operand, operand_stride):  # type: ignore[no-untyped-def]
    """`after` from the `n` rows before it and their sigmoids, plain and as operand."""
    for k in range(n):
        row, new, low = sigmoids + k * stride, after + 4 * k * width, operand + k * operand_stride
        old = new - 4 * n * width
        for j in range(width):
            value = TWO * get(row, j) * get(old, j)
            set_float(new, j, value)
            put(like, low, j, value)


@compiled
def _again(w, t, s, g, row, n, before, local):  # type: ignore[no-untyped-def]
    """Every version of a step's x and h, from the sigmoids: plain in `s`, as operands in the chunk's rows."""
    low = 2 if is_bf16(t.panels) else 4
    size, features, width = w.size, w.features, _round_width(w)
    of_x, of_h = (w.rounds + 1) // 2, w.rounds // 2
    stride = (of_x + 1) * features + (of_h + 1) * size
    left = g.left.ctypes.data + low * local * stride
    running = min(_running(w, t.offsets, before), n)
    sigmoids = t.gated.ctypes.data + 4 * row * width
    x, h = s.x.ctypes.data, s.h.ctypes.data
    _load(t.panels, t.rows.ctypes.data + 4 * row * features, 4 * features, n, features, x, left, low * stride)
    for _ in range(of_x):
        x += 4 * n * features
        left += low * features
        _gate_again(t.panels, sigmoids, 4 * width, n, features, x, left, low * stride)
        sigmoids += 4 * features
    left += low * features
    source = t.output.ctypes.data + 4 * ((t.offsets[before] + w.first) * w.stride + w.column) if running else h
    _load(t.panels, source, 4 * w.stride, running, size, h, left, low * stride)
    begun, target = t.hidden.ctypes.data + 4 * (w.first + running) * size, h + 4 * running * size
    _load(t.panels, begun, 4 * size, n - running, size, target, left + low * running * stride, low * stride)
    for _ in range(of_h):
        h += 4 * n * size
        left += low * size
        _gate_again(t.panels, sigmoids, 4 * width, n, size, h, left, low * stride)
        sigmoids += 4 * size


@compiled
def _gate_back(like, d_value, gates, stride, n, width, before, d, d_stride):  # type: ignore[no-untyped-def]
    """From the gradient of a gated row: that of the gates' arguments to `d`, and in place that of the row before."""
    for k in range(n):
        row, sigmoids = d_value + 4 * k * width, gates + k * stride
        old, target = before + 4 * k * width, d + k * d_stride
        for j in range(width):
            sigma, gradient = get(sigmoids, j), TWO * get(row, j)
            put(like, target, j, gradient * get(old, j) * sigma * (ONE - sigma))
            set_float(row, j, gradient * sigma)


@compiled
def _rounds_back(w, t, s, g, row, n, local):  # type: ignore[no-untyped-def]
    """From the gradients of the gated x and h to those of the step's input and the state before, in place."""
    low = 2 if is_bf16(t.panels) else 4
    size, features, width = w.size, w.features, _round_width(w)
    stride = 4 * size + width
    d_x, d_h = g.rows.ctypes.data + 4 * row * features, g.hidden.ctypes.data + 4 * w.first * size
    for index in range(w.rounds):
        i = w.rounds - index
        column = _round_column(w, i)
        gates = t.gated.ctypes.data + 4 * (row * width + column)
        d = g.d.ctypes.data + low * (local * stride + 4 * size + column)
        if i % 2:
            before = s.x.ctypes.data + 4 * (i // 2) * n * features
            _gate_back(t.panels, d_x, gates, 4 * width, n, features, before, d, low * stride)
            _times(w, t, i + 1, n, features, size, d, stride, d_h, size, 1)
        else:
            before = s.h.ctypes.data + 4 * (i // 2 - 1) * n * size
            _gate_back(t.panels, d_h, gates, 4 * width, n, size, before, d, low * stride)
            _times(w, t, i + 1, n, size, features, d, stride, d_x, features, 1)


@compiled
def _cells_back(w, t, s, g, table, row, n, before, local):  # type: ignore[no-untyped-def]
    """One step of the LSTM back, to the gradients of its gates."""
    low = 2 if is_bf16(t.panels) else 4
    size = w.size
    stride = 4 * size + _round_width(w)
    running = min(_running(w, t.offsets, before), n)
    for part in range(2):  # the rows that ran before, then those that began here
        begin, end = (np.int64(0), running) if part == 0 else (running, n)
        if begin == end:
            continue
        here, sequence = row + begin, w.first + begin
        table[at.GATES] = t.gates.ctypes.data + 16 * here * size
        table[at.C] = t.cells.ctypes.data + 4 * here * size
        table[at.C_BEFORE] = t.cell.ctypes.data + 4 * sequence * size
        if part == 0:
            table[at.C_BEFORE] = t.cells.ctypes.data + 4 * (t.offsets[before] + w.first) * size
        table[at.DY] = g.output.ctypes.data + 4 * (here * w.stride + w.column)
        table[at.DH] = g.hidden.ctypes.data + 4 * sequence * size
        table[at.DC] = s.cell.ctypes.data + 4 * sequence * size
        table[at.D] = g.d.ctypes.data + low * (local + begin) * stride
        call_rows(w.cell, end - begin, table.ctypes.data, size)


@compiled
def _weight_gradients(w, t, g, count):  # type: ignore[no-untyped-def]
    """Add what a chunk of `count` rows gives to the gradient of every matrix."""
    size, features, bf16 = w.size, w.features, is_bf16(t.panels)
    of_x, of_h = (w.rounds + 1) // 2, w.rounds // 2
    stride, left_stride = 4 * size + _round_width(w), (of_x + 1) * features + (of_h + 1) * size
    rows = (count + 31) // 32 * 32  # few different sizes, an even number of rows
    g.d[count * stride : rows * stride] = 0
    for matrix in range(w.rounds + 2):
        i = matrix - 1  # the round
        if matrix < 2:
            left = of_x * features if matrix == 0 else (of_x + 1) * features + of_h * size
            first, columns, on_h = np.int64(0), 4 * size, matrix == 1
        elif i % 2:
            left, first, columns, on_h = (of_x + 1) * features + (i // 2) * size, 4 * size, features, True
        else:
            left, first, columns, on_h = (i // 2) * features, 4 * size, size, False
        if matrix >= 2:
            first += _round_column(w, i)
        inputs = size if on_h else features
        transpose(g.left[left:], left_stride, g.turned, w.chunk, count, inputs)
        for row in range(inputs):
            g.turned[row * w.chunk + count : row * w.chunk + rows] = 0
        to_panels(g.d, g.d_panels, rows, first, columns, stride, g.widths[matrix])
        a, b = g.turned.ctypes.data, g.d_panels.ctypes.data
        target = g.weights.ctypes.data + 4 * g.starts[matrix]
        product(w.kernel, inputs, columns, rows, a, w.chunk, b, g.widths[matrix], target, columns, 1, bf16)


@compiled
def backward(w, t, s, g):  # type: ignore[no-untyped-def]
    """Walk back; `s.cell` comes as the gradient of the last cell state and leaves as that of the initial one."""
    low = 2 if is_bf16(t.panels) else 4
    size, n_chunks = w.size, len(t.chunks) - 1
    stride = 4 * size + _round_width(w)
    table = np.zeros(at.TABLE_SIZE, np.int64)
    sums = np.zeros(4 * size, np.float32)
    table[at.SUMS], table[at.D_STEP] = sums.ctypes.data, low * stride
    table[at.GATES_STEP], table[at.STATE_STEP], table[at.OUTPUT_STEP] = 16 * size, 4 * size, 4 * w.stride
    for index in range(n_chunks):
        chunk = index if w.reverse else n_chunks - 1 - index
        begin, end = t.chunks[chunk], t.chunks[chunk + 1]
        count = np.int64(0)
        for step_index in range(end - begin):
            step = begin + step_index if w.reverse else end - 1 - step_index
            n = _running(w, t.offsets, step)
            if n == 0:
                continue
            row, before = t.offsets[step] + w.first, step + 1 if w.reverse else step - 1
            _again(w, t, s, g, row, n, before, count)
            _cells_back(w, t, s, g, table, row, n, before, count)
            d = g.d.ctypes.data + low * count * stride
            d_x, d_h = g.rows.ctypes.data + 4 * row * w.features, g.hidden.ctypes.data + 4 * w.first * size
            _times(w, t, 0, n, 4 * size, w.features, d, stride, d_x, w.features, 0)
            _times(w, t, 1, n, 4 * size, size, d, stride, d_h, size, 0)
            _rounds_back(w, t, s, g, row, n, count)
            count += n
        for j in range(4 * size):
            g.bias[j] += sums[j]
            sums[j] = 0
        if count:
            _weight_gradients(w, t, g, count)
