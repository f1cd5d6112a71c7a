"""All steps of one direction of a layer over packed rows, for the sequences `first` to `end` of the batch.

Buffers of the state have a row a sequence: a step works on the rows of the sequences that still run, and the others
keep what they have, which is the initial state before a sequence begins and its last one after it ended. Backward, the
gradients of the state are kept so, and end as those of the initial state.

The gradients of the gates live for one chunk of steps only, small enough to stay in cache: what they give to the input
and to the weights is taken before the next chunk.
"""

from typing import Any, NamedTuple

import numpy as np

from recur.nn.jit import cells as at
from recur.nn.jit.primitives import call_rows, compiled, get, is_bf16, product, put, to_panels, transpose
from recur.nn.jit.primitives import linear as linear


class Walk(NamedTuple):
    """What a walk is over.

    Of a row's `width` columns of gates, the products of the input and of the hidden state fill a range each. `inputs`
    is the width of the input as operand of a product: even in bfloat16, as all others then are anyway.
    """

    kernel: int  # address of the micro-kernel
    kind: int  # of cell
    cell: int  # address of its function of rows
    reverse: bool
    first: int
    end: int
    size: int  # of the hidden state
    width: int
    input_first: int
    input_width: int
    hidden_width: int
    features: int
    inputs: int
    panel_in: int
    panel_rec: int
    panel_d: int  # of the gate gradients as operand of the weights' gradients
    column: int  # of this direction in the output
    stride: int  # of the output


class Tensors(NamedTuple):
    """Flat arrays of a walk. Operands of products are int16 where they are in bfloat16."""

    offsets: Any  # first row of each step, and the number of rows
    chunks: Any  # first step of each chunk, and the number of steps
    rows: Any  # operand (rows, inputs)
    w_in: Any  # panels
    w_rec: Any  # panels
    bias: Any  # (width,)
    own: Any  # the cell's own weights, or none
    hidden: Any  # initial (batch, size)
    cell: Any  # initial (batch, size) or none
    output: Any  # (rows, stride)
    gates: Any  # (rows, width), or a chunk's
    cells: Any  # (rows, size): every cell state, or none
    scratch: Any  # (size,)


class Gradients(NamedTuple):
    """Flat arrays of a walk back: `d*` of the chunk are scratch."""

    output: Any  # (rows, stride)
    hidden: Any  # (batch, size): of the last state, then of the initial one
    cell: Any
    rows: Any  # (rows, features) or none
    w_in: Any  # (inputs, input_width), transposed, or none
    w_rec: Any  # (size, hidden_width), transposed
    bias: Any  # (width,)
    own: Any
    d: Any  # operand (chunk, width)
    d_panels: Any
    turned: Any  # operand (inputs or size, chunk)
    before: Any  # operand (chunk, size): previous hidden states
    chunk: int


@compiled
def _running(w, offsets, step):  # type: ignore[no-untyped-def]
    """How many of the walk's sequences are in a step."""
    if step < 0 or step >= len(offsets) - 1:
        return np.int64(0)
    return max(min(offsets[step + 1] - offsets[step], w.end) - w.first, 0)


@compiled
def _project(w, t, row, rows, gates):  # type: ignore[no-untyped-def]
    """W x of some rows, at address `gates`."""
    bf16 = is_bf16(t.rows)
    size = 2 if bf16 else 4
    x = t.rows.ctypes.data + row * w.inputs * size
    target = gates + 4 * w.input_first
    product(
        w.kernel, rows, w.input_width, w.inputs, x, w.inputs, t.w_in.ctypes.data, w.panel_in, target, w.width, 0, bf16
    )


@compiled
def _table(w, t):  # type: ignore[no-untyped-def]
    """What stays the same for all steps of the table that the cells read."""
    table = np.zeros(at.TABLE_SIZE, np.int64)
    size = 2 if is_bf16(t.rows) else 4
    table[at.BIAS], table[at.OWN] = t.bias.ctypes.data, t.own.ctypes.data
    table[at.GATES_STEP], table[at.STATE_STEP], table[at.OUTPUT_STEP] = 4 * w.width, 4 * w.size, 4 * w.stride
    table[at.OPERAND_STEP], table[at.D_STEP] = size * w.size, size * w.width
    return table


@compiled
def _step(w, t, table, operand, cell, row, n, before, gate_row):  # type: ignore[no-untyped-def]
    """One step: U h, then the rows' cells. `before` is the step walked before, `gate_row` the first in the buffer."""
    bf16 = is_bf16(t.rows)
    size, width = w.size, w.width
    a = operand.ctypes.data + w.first * size * (2 if bf16 else 4)
    gates = t.gates.ctypes.data + 4 * gate_row * width
    if w.kind == at.GRU:  # nothing was projected into its first block
        for k in range(n):
            start = (gate_row + k) * width
            t.gates[start : start + size] = 0
    if w.hidden_width:
        add = 0 if w.kind == at.LNLSTM else 1  # whose two products stand side by side
        product(w.kernel, n, w.hidden_width, size, a, size, t.w_rec.ctypes.data, w.panel_rec, gates, width, add, bf16)
    running = min(_running(w, t.offsets, before), n)
    row_before = t.offsets[before] + w.first if running else np.int64(0)
    keeps = len(t.cells) > 0
    kept = t.cells.ctypes.data + 4 * row * size if keeps else t.scratch.ctypes.data
    kept_stride = 4 * size if keeps else np.int64(0)
    output = t.output.ctypes.data + 4 * w.column
    for part in range(2):  # the rows that ran before, then those that begin here
        begin, end = (np.int64(0), running) if part == 0 else (running, n)
        if begin == end:
            continue
        sequence = w.first + begin
        table[at.GATES] = gates + 4 * begin * width
        table[at.C] = cell.ctypes.data + 4 * sequence * size
        table[at.KEPT], table[at.KEPT_STEP] = kept + kept_stride * begin, kept_stride
        table[at.BEFORE] = t.hidden.ctypes.data + 4 * sequence * size if part else output + 4 * row_before * w.stride
        table[at.BEFORE_STEP] = 4 * size if part else 4 * w.stride
        table[at.H] = output + 4 * (row + begin) * w.stride
        table[at.OPERAND] = a + begin * size * (2 if bf16 else 4)
        call_rows(w.cell, end - begin, table.ctypes.data, size)


@compiled
def forward(w, t, operand, cell, save):  # type: ignore[no-untyped-def]
    """Walk forward. `operand` (batch, size) and `cell` come as the initial state; `cell` leaves as the last."""
    n_chunks = len(t.chunks) - 1
    table = _table(w, t)
    whole = w.first == 0 and w.end >= t.offsets[1]
    for count in range(n_chunks):
        chunk = n_chunks - 1 - count if w.reverse else count
        begin, end = t.chunks[chunk], t.chunks[chunk + 1]
        base = np.int64(0) if save else t.offsets[begin]  # row of the batch that is the gate buffer's first
        if whole:
            start = t.offsets[begin]
            _project(w, t, start, t.offsets[end] - start, t.gates.ctypes.data + 4 * (start - base) * w.width)
        for index in range(end - begin):
            step = end - 1 - index if w.reverse else begin + index
            n = _running(w, t.offsets, step)
            if n == 0:
                continue
            row = t.offsets[step] + w.first
            if not whole:
                _project(w, t, row, n, t.gates.ctypes.data + 4 * (row - base) * w.width)
            _step(w, t, table, operand, cell, row, n, step + 1 if w.reverse else step - 1, row - base)


@compiled
def _keep_states(w, t, g, address, stride, local, n):  # type: ignore[no-untyped-def]
    """Copy previous hidden states to the operand `g.before`, from its row `local` on."""
    size = 2 if is_bf16(t.rows) else 4
    for k in range(n):
        source, target = address + k * stride, g.before.ctypes.data + (local + k) * w.size * size
        for j in range(w.size):
            put(t.rows, target, j, get(source, j))


@compiled
def _step_back(w, t, g, table, row, n, before, local):  # type: ignore[no-untyped-def]
    """One step back: the rows' cells, then U^T d. `local` is the chunk's row of the step's first."""
    bf16 = is_bf16(t.rows)
    size, width = w.size, w.width
    running = min(_running(w, t.offsets, before), n)
    row_before = t.offsets[before] + w.first if running else np.int64(0)
    output = t.output.ctypes.data + 4 * w.column
    d = g.d.ctypes.data + local * width * (2 if bf16 else 4)
    for part in range(2):  # the rows that ran before, then those that began here
        begin, end = (np.int64(0), running) if part == 0 else (running, n)
        if begin == end:
            continue
        here, sequence = row + begin, w.first + begin
        hidden = t.hidden.ctypes.data + 4 * sequence * size if part else output + 4 * row_before * w.stride
        stride = 4 * size if part else 4 * w.stride
        table[at.GATES] = t.gates.ctypes.data + 4 * here * width
        table[at.C] = t.cells.ctypes.data + 4 * here * size
        old = t.cell.ctypes.data + 4 * sequence * size if part else t.cells.ctypes.data + 4 * row_before * size
        table[at.C_BEFORE] = old
        table[at.BEFORE], table[at.BEFORE_STEP] = hidden, stride
        table[at.H] = output + 4 * here * w.stride
        table[at.DY] = g.output.ctypes.data + 4 * (here * w.stride + w.column)
        table[at.DH] = g.hidden.ctypes.data + 4 * sequence * size
        table[at.DC] = g.cell.ctypes.data + 4 * sequence * size
        table[at.D] = d + begin * width * (2 if bf16 else 4)
        call_rows(w.cell, end - begin, table.ctypes.data, size)
        if len(g.w_rec):
            _keep_states(w, t, g, hidden, stride, local + begin, end - begin)
    if w.hidden_width == 0:
        return
    product(
        w.kernel,
        n,
        size,
        w.hidden_width,
        d,
        width,
        t.w_rec.ctypes.data,
        w.panel_rec,
        g.hidden.ctypes.data + 4 * w.first * size,
        size,
        1 if w.kind == at.GRU else 0,  # a GRU's state also flows past the product
        bf16,
    )


@compiled
def _input_gradient(w, t, g, row, n, local):  # type: ignore[no-untyped-def]
    """W^T d of some rows."""
    bf16 = is_bf16(t.rows)
    d = g.d.ctypes.data + (local * w.width + w.input_first) * (2 if bf16 else 4)
    target = g.rows.ctypes.data + 4 * row * w.features
    b = t.w_in.ctypes.data
    product(w.kernel, n, w.features, w.input_width, d, w.width, b, w.panel_in, target, w.features, 0, bf16)


@compiled
def _weight_gradient(w, g, operands, count, first, columns, target):  # type: ignore[no-untyped-def]
    """Add `operands`^T d of the chunk's `count` rows, for the gates' columns from `first` on."""
    bf16 = is_bf16(g.d)
    rows = (count + 31) // 32 * 32  # few different sizes, an even number of rows
    to_panels(g.d, g.d_panels, rows, first, columns, w.width, w.panel_d)
    a, b = g.turned.ctypes.data, g.d_panels.ctypes.data
    product(w.kernel, operands, columns, rows, a, g.chunk, b, w.panel_d, target.ctypes.data, columns, 1, bf16)


@compiled
def _turn_inputs(w, t, g, begin, end, count, whole):  # type: ignore[no-untyped-def]
    """The chunk's input rows, transposed, in `g.turned`."""
    if whole:
        transpose(t.rows[t.offsets[begin] * w.inputs :], w.inputs, g.turned, g.chunk, count, w.inputs)
        return
    done = np.int64(0)
    for step in range(begin, end):
        n = _running(w, t.offsets, step)
        if n:
            row = t.offsets[step] + w.first
            transpose(t.rows[row * w.inputs :], w.inputs, g.turned[done:], g.chunk, n, w.inputs)
            done += n


@compiled
def _chunk_gradients(w, t, g, begin, end, count, whole):  # type: ignore[no-untyped-def]
    """What a chunk's gate gradients give to the input and to the weights."""
    if whole and len(g.rows):
        _input_gradient(w, t, g, t.offsets[begin], count, np.int64(0))
    rows = (count + 31) // 32 * 32
    g.d[count * w.width : rows * w.width] = 0
    if len(g.w_in):
        _turn_inputs(w, t, g, begin, end, count, whole)
        for column in range(w.inputs):
            g.turned[column * g.chunk + count : column * g.chunk + rows] = 0
        _weight_gradient(w, g, w.inputs, count, w.input_first, w.input_width, g.w_in)
    if len(g.w_rec):
        transpose(g.before, w.size, g.turned, g.chunk, count, w.size)
        for column in range(w.size):
            g.turned[column * g.chunk + count : column * g.chunk + rows] = 0
        _weight_gradient(w, g, w.size, count, np.int64(0), w.hidden_width, g.w_rec)


@compiled
def backward(w, t, g):  # type: ignore[no-untyped-def]
    """Walk back."""
    n_chunks = len(t.chunks) - 1
    whole = w.first == 0 and w.end >= t.offsets[1]
    table = _table(w, t)
    # Of a chunk first, then in all: fewer terms to one sum. The scratch lies behind.
    sums = np.zeros(w.width + len(g.own) + at.ROOM * w.size, np.float32)
    table[at.SUMS], table[at.D_OWN] = sums.ctypes.data, sums.ctypes.data + 4 * w.width
    table[at.SCRATCH] = table[at.D_OWN] + 4 * len(g.own)
    for index in range(n_chunks):
        chunk = index if w.reverse else n_chunks - 1 - index
        begin, end = t.chunks[chunk], t.chunks[chunk + 1]
        count = np.int64(0)
        for step in range(begin, end):
            count += _running(w, t.offsets, step)
        if count == 0:
            continue
        local = np.int64(0) if w.reverse else count
        for step_index in range(end - begin):
            step = begin + step_index if w.reverse else end - 1 - step_index
            n = _running(w, t.offsets, step)
            if n == 0:
                continue
            row = t.offsets[step] + w.first
            local = local if w.reverse else local - n
            _step_back(w, t, g, table, row, n, step + 1 if w.reverse else step - 1, local)
            if len(g.rows) and not whole:
                _input_gradient(w, t, g, row, n, local)
            local = local + n if w.reverse else local
        for j in range(w.width):
            g.bias[j] += sums[j]
        for j in range(len(g.own)):
            g.own[j] += sums[w.width + j]
        sums[:] = 0
        _chunk_gradients(w, t, g, begin, end, count, whole)
