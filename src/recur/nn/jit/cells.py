"""Rows of each cell, forward and backward. The formulas are those at the head of `recur.nn.engine`.

The rows of a step lie one after the other; each argument is the address of its first row, and moves on by a stride.

Forward, `gates` comes as W x + U h without biases and leaves as what backward needs; the new hidden state goes to `h`
and, as operand of the next step's product, to `operand`; a new cell state to `c`, which held the old one, and `kept`.
Backward, `d` takes the gradients of the pre-activations as operand of the products, `sums` adds them up in float32, and
`dh`, `dc` change from the gradients of this step's state to what reaches the previous one beside the recurrent product.
`like` is any array of the operands' dtype.
"""

from typing import NamedTuple

from recur.nn.jit.primitives import ONE, ZERO, compiled, get, put, set_float, sigmoid, tanh

LSTM, GRU, RNN, RNN_RELU, PEEPHOLE = range(5)


class Forward(NamedTuple):
    """Addresses of a step's first rows."""

    gates: int
    c: int
    kept: int
    before: int  # previous hidden state
    h: int
    operand: int
    bias: int
    peep: int


class Strides(NamedTuple):
    """Bytes from a row to the next."""

    gates: int
    state: int  # rows of `size` floats
    kept: int
    before: int
    output: int
    operand: int
    d: int


class Backward(NamedTuple):
    """Addresses of a step's first rows."""

    gates: int
    c: int
    c_before: int
    before: int
    h: int
    dy: int
    dh: int
    dc: int
    d: int
    sums: int
    peep: int
    d_peep: int


@compiled
def _lstm(n, at, step, like, size):  # type: ignore[no-untyped-def]
    """Gates i, f, g, o."""
    bias = at.bias
    for k in range(n):
        gates, c, kept = at.gates + k * step.gates, at.c + k * step.state, at.kept + k * step.kept
        h, operand = at.h + k * step.output, at.operand + k * step.operand
        for j in range(size):
            i = sigmoid(get(gates, j) + get(bias, j))
            f = sigmoid(get(gates, j + size) + get(bias, j + size))
            g = tanh(get(gates, j + 2 * size) + get(bias, j + 2 * size))
            o = sigmoid(get(gates, j + 3 * size) + get(bias, j + 3 * size))
            cell = f * get(c, j) + i * g
            hidden = o * tanh(cell)
            set_float(c, j, cell)
            set_float(kept, j, cell)
            set_float(h, j, hidden)
            put(like, operand, j, hidden)
            set_float(gates, j, i)
            set_float(gates, j + size, f)
            set_float(gates, j + 2 * size, g)
            set_float(gates, j + 3 * size, o)


@compiled
def _lstm_back(n, at, step, like, size):  # type: ignore[no-untyped-def]
    sums = at.sums
    for k in range(n):
        gates, d = at.gates + k * step.gates, at.d + k * step.d
        c, c_before = at.c + k * step.state, at.c_before + k * step.state
        dy, dh, dc = at.dy + k * step.output, at.dh + k * step.state, at.dc + k * step.state
        for j in range(size):
            i, f, g, o = get(gates, j), get(gates, j + size), get(gates, j + 2 * size), get(gates, j + 3 * size)
            squashed = tanh(get(c, j))
            d_hidden = get(dy, j) + get(dh, j)
            d_cell = get(dc, j) + d_hidden * o * (ONE - squashed * squashed)
            d_i = d_cell * g * i * (ONE - i)
            d_f = d_cell * get(c_before, j) * f * (ONE - f)
            d_g = d_cell * i * (ONE - g * g)
            d_o = d_hidden * squashed * o * (ONE - o)
            set_float(dc, j, d_cell * f)
            put(like, d, j, d_i)
            put(like, d, j + size, d_f)
            put(like, d, j + 2 * size, d_g)
            put(like, d, j + 3 * size, d_o)
            set_float(sums, j, get(sums, j) + d_i)
            set_float(sums, j + size, get(sums, j + size) + d_f)
            set_float(sums, j + 2 * size, get(sums, j + 2 * size) + d_g)
            set_float(sums, j + 3 * size, get(sums, j + 3 * size) + d_o)


@compiled
def _peephole(n, at, step, like, size):  # type: ignore[no-untyped-def]
    """An LSTM whose gates also see the cell state: i and f the old one, o the new one, by the weights `peep`."""
    bias, peep = at.bias, at.peep
    for k in range(n):
        gates, c, kept = at.gates + k * step.gates, at.c + k * step.state, at.kept + k * step.kept
        h, operand = at.h + k * step.output, at.operand + k * step.operand
        for j in range(size):
            i = sigmoid(get(gates, j) + get(bias, j) + get(peep, j) * get(c, j))
            f = sigmoid(get(gates, j + size) + get(bias, j + size) + get(peep, j + size) * get(c, j))
            g = tanh(get(gates, j + 2 * size) + get(bias, j + 2 * size))
            cell = f * get(c, j) + i * g
            o = sigmoid(get(gates, j + 3 * size) + get(bias, j + 3 * size) + get(peep, j + 2 * size) * cell)
            hidden = o * tanh(cell)
            set_float(c, j, cell)
            set_float(kept, j, cell)
            set_float(h, j, hidden)
            put(like, operand, j, hidden)
            set_float(gates, j, i)
            set_float(gates, j + size, f)
            set_float(gates, j + 2 * size, g)
            set_float(gates, j + 3 * size, o)


@compiled
def _peephole_back(n, at, step, like, size):  # type: ignore[no-untyped-def]
    peep, d_peep = at.peep, at.d_peep
    sums = at.sums
    for k in range(n):
        gates, d = at.gates + k * step.gates, at.d + k * step.d
        c, c_before = at.c + k * step.state, at.c_before + k * step.state
        dy, dh, dc = at.dy + k * step.output, at.dh + k * step.state, at.dc + k * step.state
        for j in range(size):
            i, f, g, o = get(gates, j), get(gates, j + size), get(gates, j + 2 * size), get(gates, j + 3 * size)
            squashed = tanh(get(c, j))
            d_hidden = get(dy, j) + get(dh, j)
            old = get(c_before, j)
            d_o = d_hidden * squashed * o * (ONE - o)
            d_cell = get(dc, j) + d_hidden * o * (ONE - squashed * squashed) + d_o * get(peep, j + 2 * size)
            d_i = d_cell * g * i * (ONE - i)
            d_f = d_cell * old * f * (ONE - f)
            d_g = d_cell * i * (ONE - g * g)
            set_float(dc, j, d_cell * f + d_i * get(peep, j) + d_f * get(peep, j + size))
            set_float(d_peep, j, get(d_peep, j) + d_i * old)
            set_float(d_peep, j + size, get(d_peep, j + size) + d_f * old)
            set_float(d_peep, j + 2 * size, get(d_peep, j + 2 * size) + d_o * get(c, j))
            put(like, d, j, d_i)
            put(like, d, j + size, d_f)
            put(like, d, j + 2 * size, d_g)
            put(like, d, j + 3 * size, d_o)
            set_float(sums, j, get(sums, j) + d_i)
            set_float(sums, j + size, get(sums, j + size) + d_f)
            set_float(sums, j + 2 * size, get(sums, j + 2 * size) + d_g)
            set_float(sums, j + 3 * size, get(sums, j + 3 * size) + d_o)


@compiled
def _gru(n, at, step, like, size):  # type: ignore[no-untyped-def]
    """Gates u = U_n h + d_n, r, z, n."""
    bias = at.bias
    for k in range(n):
        gates, before = at.gates + k * step.gates, at.before + k * step.before
        h, operand = at.h + k * step.output, at.operand + k * step.operand
        for j in range(size):
            u = get(gates, j) + get(bias, j)
            r = sigmoid(get(gates, j + size) + get(bias, j + size))
            z = sigmoid(get(gates, j + 2 * size) + get(bias, j + 2 * size))
            n_gate = tanh(get(gates, j + 3 * size) + get(bias, j + 3 * size) + r * u)
            hidden = n_gate + z * (get(before, j) - n_gate)
            set_float(h, j, hidden)
            put(like, operand, j, hidden)
            set_float(gates, j, u)
            set_float(gates, j + size, r)
            set_float(gates, j + 2 * size, z)
            set_float(gates, j + 3 * size, n_gate)


@compiled
def _gru_back(n, at, step, like, size):  # type: ignore[no-untyped-def]
    sums = at.sums
    for k in range(n):
        gates, d, before = at.gates + k * step.gates, at.d + k * step.d, at.before + k * step.before
        dy, dh = at.dy + k * step.output, at.dh + k * step.state
        for j in range(size):
            u, r, z, n_gate = get(gates, j), get(gates, j + size), get(gates, j + 2 * size), get(gates, j + 3 * size)
            d_hidden = get(dy, j) + get(dh, j)
            d_n = d_hidden * (ONE - z) * (ONE - n_gate * n_gate)
            d_z = d_hidden * (get(before, j) - n_gate) * z * (ONE - z)
            d_u = d_n * r
            d_r = d_n * u * r * (ONE - r)
            set_float(dh, j, d_hidden * z)
            put(like, d, j, d_u)
            put(like, d, j + size, d_r)
            put(like, d, j + 2 * size, d_z)
            put(like, d, j + 3 * size, d_n)
            set_float(sums, j, get(sums, j) + d_u)
            set_float(sums, j + size, get(sums, j + size) + d_r)
            set_float(sums, j + 2 * size, get(sums, j + 2 * size) + d_z)
            set_float(sums, j + 3 * size, get(sums, j + 3 * size) + d_n)


@compiled
def _rnn(n, at, step, like, size):  # type: ignore[no-untyped-def]
    bias = at.bias
    for k in range(n):
        gates, h, operand = at.gates + k * step.gates, at.h + k * step.output, at.operand + k * step.operand
        for j in range(size):
            hidden = tanh(get(gates, j) + get(bias, j))
            set_float(h, j, hidden)
            put(like, operand, j, hidden)


@compiled
def _rnn_back(n, at, step, like, size):  # type: ignore[no-untyped-def]
    sums = at.sums
    for k in range(n):
        d, h = at.d + k * step.d, at.h + k * step.output
        dy, dh = at.dy + k * step.output, at.dh + k * step.state
        for j in range(size):
            d_gate = (get(dy, j) + get(dh, j)) * (ONE - get(h, j) * get(h, j))
            put(like, d, j, d_gate)
            set_float(sums, j, get(sums, j) + d_gate)


@compiled
def _rnn_relu(n, at, step, like, size):  # type: ignore[no-untyped-def]
    bias = at.bias
    for k in range(n):
        gates, h, operand = at.gates + k * step.gates, at.h + k * step.output, at.operand + k * step.operand
        for j in range(size):
            a = get(gates, j) + get(bias, j)
            hidden = ZERO if a < ZERO else a  # NaN stays NaN
            set_float(h, j, hidden)
            put(like, operand, j, hidden)


@compiled
def _rnn_relu_back(n, at, step, like, size):  # type: ignore[no-untyped-def]
    sums = at.sums
    for k in range(n):
        d, h = at.d + k * step.d, at.h + k * step.output
        dy, dh = at.dy + k * step.output, at.dh + k * step.state
        for j in range(size):
            d_gate = get(dy, j) + get(dh, j) if get(h, j) > ZERO else ZERO
            put(like, d, j, d_gate)
            set_float(sums, j, get(sums, j) + d_gate)


@compiled
def forward_rows(kind, n, at, step, like, size):  # type: ignore[no-untyped-def]
    """The new states of `n` rows, by the kind of cell."""
    if kind == LSTM:
        _lstm(n, at, step, like, size)
    elif kind == GRU:
        _gru(n, at, step, like, size)
    elif kind == RNN:
        _rnn(n, at, step, like, size)
    elif kind == RNN_RELU:
        _rnn_relu(n, at, step, like, size)
    else:
        _peephole(n, at, step, like, size)


@compiled
def backward_rows(kind, n, at, step, like, size):  # type: ignore[no-untyped-def]
    """The gradients of `n` rows, by the kind of cell."""
    if kind == LSTM:
        _lstm_back(n, at, step, like, size)
    elif kind == GRU:
        _gru_back(n, at, step, like, size)
    elif kind == RNN:
        _rnn_back(n, at, step, like, size)
    elif kind == RNN_RELU:
        _rnn_relu_back(n, at, step, like, size)
    else:
        _peephole_back(n, at, step, like, size)
