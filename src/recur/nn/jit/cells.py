"""Rows of each cell, forward and backward. The formulas are those at the head of `recur.nn.engine`.

A step's rows of gates, states and gradients begin at the addresses in the table `t`, and move on by its strides.

Forward, `gates` comes as W x + U h without biases and leaves as what backward needs; the new hidden state goes to `h`
and, as operand of the next step's product, to `operand`; a new cell state to `c`, which held the old one, and `kept`.
Backward, `d` takes the gradients of the pre-activations as operand of the products, `sums` adds them up in float32, and
`dh`, `dc` change from the gradients of this step's state to what reaches the previous one beside the recurrent product.
`like` is a pointer to the operands' type.

The cells without a recurrent product leave `operand` alone. The layer-norm LSTM leaves both products in `gates` as they
are, W x behind U h, and works out the rest again on the way back: nothing is saved that the products did not write.
"""

import math

import numpy as np

from recur.nn.jit.primitives import ONE, ZERO, Rows, field, get, inlined, put, set_float, sigmoid, summing, tanh

# Places in the table: addresses of a step's first rows (`BEFORE`: previous hidden states; `C_BEFORE`: cell states), of
# the bias and the cell's own weights, their gradients, and `ROOM` floats of scratch a feature ...
GATES, C, KEPT, BEFORE, H, OPERAND, BIAS, OWN, C_BEFORE, DY, DH, DC, D, SUMS, D_OWN, SCRATCH = range(16)
# ... and bytes from a row to the next (`STATE_STEP`: of rows of `size` floats)
GATES_STEP, STATE_STEP, KEPT_STEP, BEFORE_STEP, OUTPUT_STEP, OPERAND_STEP, D_STEP, TABLE_SIZE = range(16, 24)
ROOM = 5


@Rows
def _lstm(n, t, size, like):  # type: ignore[no-untyped-def]
    """Gates i, f, g, o."""
    bias = field(t, BIAS)
    for k in range(n):
        gates, c, kept = (
            field(t, GATES) + k * field(t, GATES_STEP),
            field(t, C) + k * field(t, STATE_STEP),
            field(t, KEPT) + k * field(t, KEPT_STEP),
        )
        h, operand = field(t, H) + k * field(t, OUTPUT_STEP), field(t, OPERAND) + k * field(t, OPERAND_STEP)
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


@Rows
def _lstm_back(n, t, size, like):  # type: ignore[no-untyped-def]
    sums = field(t, SUMS)
    for k in range(n):
        gates, d = field(t, GATES) + k * field(t, GATES_STEP), field(t, D) + k * field(t, D_STEP)
        c, c_before = field(t, C) + k * field(t, STATE_STEP), field(t, C_BEFORE) + k * field(t, STATE_STEP)
        dy, dh, dc = (
            field(t, DY) + k * field(t, OUTPUT_STEP),
            field(t, DH) + k * field(t, STATE_STEP),
            field(t, DC) + k * field(t, STATE_STEP),
        )
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


@Rows
def _peephole(n, t, size, like):  # type: ignore[no-untyped-def]
    """An LSTM whose gates also see the cell state: i and f the old one, o the new one, by weights of their own."""
    bias, peep = field(t, BIAS), field(t, OWN)
    for k in range(n):
        gates, c, kept = (
            field(t, GATES) + k * field(t, GATES_STEP),
            field(t, C) + k * field(t, STATE_STEP),
            field(t, KEPT) + k * field(t, KEPT_STEP),
        )
        h, operand = field(t, H) + k * field(t, OUTPUT_STEP), field(t, OPERAND) + k * field(t, OPERAND_STEP)
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


@Rows
def _peephole_back(n, t, size, like):  # type: ignore[no-untyped-def]
    peep, d_peep = field(t, OWN), field(t, D_OWN)
    sums = field(t, SUMS)
    for k in range(n):
        gates, d = field(t, GATES) + k * field(t, GATES_STEP), field(t, D) + k * field(t, D_STEP)
        c, c_before = field(t, C) + k * field(t, STATE_STEP), field(t, C_BEFORE) + k * field(t, STATE_STEP)
        dy, dh, dc = (
            field(t, DY) + k * field(t, OUTPUT_STEP),
            field(t, DH) + k * field(t, STATE_STEP),
            field(t, DC) + k * field(t, STATE_STEP),
        )
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


@Rows
def _gru(n, t, size, like):  # type: ignore[no-untyped-def]
    """Gates u = U_n h + d_n, r, z, n."""
    bias = field(t, BIAS)
    for k in range(n):
        gates, before = field(t, GATES) + k * field(t, GATES_STEP), field(t, BEFORE) + k * field(t, BEFORE_STEP)
        h, operand = field(t, H) + k * field(t, OUTPUT_STEP), field(t, OPERAND) + k * field(t, OPERAND_STEP)
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


@Rows
def _gru_back(n, t, size, like):  # type: ignore[no-untyped-def]
    sums = field(t, SUMS)
    for k in range(n):
        gates, d, before = (
            field(t, GATES) + k * field(t, GATES_STEP),
            field(t, D) + k * field(t, D_STEP),
            field(t, BEFORE) + k * field(t, BEFORE_STEP),
        )
        dy, dh = field(t, DY) + k * field(t, OUTPUT_STEP), field(t, DH) + k * field(t, STATE_STEP)
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


@Rows
def _rnn(n, t, size, like):  # type: ignore[no-untyped-def]
    bias = field(t, BIAS)
    for k in range(n):
        gates, h, operand = (
            field(t, GATES) + k * field(t, GATES_STEP),
            field(t, H) + k * field(t, OUTPUT_STEP),
            field(t, OPERAND) + k * field(t, OPERAND_STEP),
        )
        for j in range(size):
            hidden = tanh(get(gates, j) + get(bias, j))
            set_float(h, j, hidden)
            put(like, operand, j, hidden)


@Rows
def _rnn_back(n, t, size, like):  # type: ignore[no-untyped-def]
    sums = field(t, SUMS)
    for k in range(n):
        d, h = field(t, D) + k * field(t, D_STEP), field(t, H) + k * field(t, OUTPUT_STEP)
        dy, dh = field(t, DY) + k * field(t, OUTPUT_STEP), field(t, DH) + k * field(t, STATE_STEP)
        for j in range(size):
            d_gate = (get(dy, j) + get(dh, j)) * (ONE - get(h, j) * get(h, j))
            put(like, d, j, d_gate)
            set_float(sums, j, get(sums, j) + d_gate)


@Rows
def _rnn_relu(n, t, size, like):  # type: ignore[no-untyped-def]
    bias = field(t, BIAS)
    for k in range(n):
        gates, h, operand = (
            field(t, GATES) + k * field(t, GATES_STEP),
            field(t, H) + k * field(t, OUTPUT_STEP),
            field(t, OPERAND) + k * field(t, OPERAND_STEP),
        )
        for j in range(size):
            a = get(gates, j) + get(bias, j)
            hidden = ZERO if a < ZERO else a  # NaN stays NaN
            set_float(h, j, hidden)
            put(like, operand, j, hidden)


@Rows
def _rnn_relu_back(n, t, size, like):  # type: ignore[no-untyped-def]
    sums = field(t, SUMS)
    for k in range(n):
        d, h = field(t, D) + k * field(t, D_STEP), field(t, H) + k * field(t, OUTPUT_STEP)
        dy, dh = field(t, DY) + k * field(t, OUTPUT_STEP), field(t, DH) + k * field(t, STATE_STEP)
        for j in range(size):
            d_gate = ZERO if get(h, j) <= ZERO else get(dy, j) + get(dh, j)  # NaN stays
            put(like, d, j, d_gate)
            set_float(sums, j, get(sums, j) + d_gate)


EPSILON = np.float32(1e-5)  # that of torch's layer_norm


@summing
def _moments(row, n):  # type: ignore[no-untyped-def]
    """Mean of the `n` floats at an address, and one over their standard deviation."""
    total = ZERO
    for j in range(n):
        total += get(row, j)
    mean = total / np.float32(n)
    squares = ZERO
    for j in range(n):
        off = get(row, j) - mean
        squares += off * off
    return mean, ONE / math.sqrt(squares / np.float32(n) + EPSILON)


@summing
def _projected(d, gain, row, n, mean, scale):  # type: ignore[no-untyped-def]
    """Means of d gain and of d gain x^, x^ the normalised row: what a layer norm takes out of its gradient."""
    plain, along = ZERO, ZERO
    for j in range(n):
        part = get(d, j) * get(gain, j)
        plain += part
        along += part * ((get(row, j) - mean) * scale)
    return plain / np.float32(n), along / np.float32(n)


@inlined
def _normed(gates, own, j, wide, mean_h, scale_h, mean_x, scale_x):  # type: ignore[no-untyped-def]
    """A gate's pre-activation: both products normalised, each with its gain, and the sum of their shifts."""
    recurrent = (get(gates, j) - mean_h) * scale_h * get(own, j)
    projected = (get(gates, j + wide) - mean_x) * scale_x * get(own, j + wide)
    return recurrent + projected + get(own, j + 2 * wide)


@Rows
def _lnlstm(n, t, size, like):  # type: ignore[no-untyped-def]
    """Own weights: the gains of U h and W x, their shifts' sum (4 size each), the cell state's gain and shift."""
    own, wide = field(t, OWN), 4 * size
    gain_c, shift_c = own + 12 * 4 * size, own + 13 * 4 * size
    for k in range(n):
        gates, c, kept = (
            field(t, GATES) + k * field(t, GATES_STEP),
            field(t, C) + k * field(t, STATE_STEP),
            field(t, KEPT) + k * field(t, KEPT_STEP),
        )
        h, operand = field(t, H) + k * field(t, OUTPUT_STEP), field(t, OPERAND) + k * field(t, OPERAND_STEP)
        mean_h, scale_h = _moments(gates, wide)
        mean_x, scale_x = _moments(gates + 4 * wide, wide)
        for j in range(size):
            i = sigmoid(_normed(gates, own, j, wide, mean_h, scale_h, mean_x, scale_x))
            f = sigmoid(_normed(gates, own, j + size, wide, mean_h, scale_h, mean_x, scale_x))
            g = tanh(_normed(gates, own, j + 2 * size, wide, mean_h, scale_h, mean_x, scale_x))
            o = sigmoid(_normed(gates, own, j + 3 * size, wide, mean_h, scale_h, mean_x, scale_x))
            cell = f * get(c, j) + i * g
            set_float(c, j, cell)
            set_float(kept, j, cell)
            set_float(h, j, o)
        mean, scale = _moments(c, size)
        for j in range(size):
            hidden = get(h, j) * tanh((get(c, j) - mean) * scale * get(gain_c, j) + get(shift_c, j))
            set_float(h, j, hidden)
            put(like, operand, j, hidden)


@Rows
def _lnlstm_back(n, t, size, like):  # type: ignore[no-untyped-def]
    own, d_own, room, wide = field(t, OWN), field(t, D_OWN), field(t, SCRATCH), 4 * size
    gain_c, shift_c, d_normed = own + 12 * 4 * size, own + 13 * 4 * size, room + 4 * wide
    d_gain_c, d_shift_c = d_own + 12 * 4 * size, d_own + 13 * 4 * size
    for k in range(n):
        gates, d = field(t, GATES) + k * field(t, GATES_STEP), field(t, D) + k * field(t, D_STEP)
        c, c_before = field(t, C) + k * field(t, STATE_STEP), field(t, C_BEFORE) + k * field(t, STATE_STEP)
        dy, dh, dc = (
            field(t, DY) + k * field(t, OUTPUT_STEP),
            field(t, DH) + k * field(t, STATE_STEP),
            field(t, DC) + k * field(t, STATE_STEP),
        )
        inputs = gates + 4 * wide
        mean_h, scale_h = _moments(gates, wide)
        mean_x, scale_x = _moments(inputs, wide)
        mean, scale = _moments(c, size)
        for j in range(size):
            o = sigmoid(_normed(gates, own, j + 3 * size, wide, mean_h, scale_h, mean_x, scale_x))
            normed = (get(c, j) - mean) * scale
            squashed = tanh(normed * get(gain_c, j) + get(shift_c, j))
            d_hidden = get(dy, j) + get(dh, j)
            d_shift = d_hidden * o * (ONE - squashed * squashed)
            set_float(d_gain_c, j, get(d_gain_c, j) + d_shift * normed)
            set_float(d_shift_c, j, get(d_shift_c, j) + d_shift)
            set_float(d_normed, j, d_shift)
            set_float(room, j + 3 * size, d_hidden * squashed * o * (ONE - o))
        plain, along = _projected(d_normed, gain_c, c, size, mean, scale)
        for j in range(size):
            i = sigmoid(_normed(gates, own, j, wide, mean_h, scale_h, mean_x, scale_x))
            f = sigmoid(_normed(gates, own, j + size, wide, mean_h, scale_h, mean_x, scale_x))
            g = tanh(_normed(gates, own, j + 2 * size, wide, mean_h, scale_h, mean_x, scale_x))
            inner = get(d_normed, j) * get(gain_c, j) - plain - (get(c, j) - mean) * scale * along
            d_cell = get(dc, j) + scale * inner
            set_float(room, j, d_cell * g * i * (ONE - i))
            set_float(room, j + size, d_cell * get(c_before, j) * f * (ONE - f))
            set_float(room, j + 2 * size, d_cell * i * (ONE - g * g))
            set_float(dc, j, d_cell * f)
        plain_h, along_h = _projected(room, own, gates, wide, mean_h, scale_h)
        plain_x, along_x = _projected(room, own + 4 * wide, inputs, wide, mean_x, scale_x)
        for j in range(wide):
            d_gate = get(room, j)
            normed_h, normed_x = (get(gates, j) - mean_h) * scale_h, (get(inputs, j) - mean_x) * scale_x
            set_float(d_own, j, get(d_own, j) + d_gate * normed_h)
            set_float(d_own, j + wide, get(d_own, j + wide) + d_gate * normed_x)
            set_float(d_own, j + 2 * wide, get(d_own, j + 2 * wide) + d_gate)
            put(like, d, j, scale_h * (d_gate * get(own, j) - plain_h - normed_h * along_h))
            put(like, d, j + wide, scale_x * (d_gate * get(own, j + wide) - plain_x - normed_x * along_x))


@Rows
def _mingru(n, t, size, like):  # type: ignore[no-untyped-def]
    """Gates z, and the candidate."""
    bias = field(t, BIAS)
    for k in range(n):
        gates, before, h = (
            field(t, GATES) + k * field(t, GATES_STEP),
            field(t, BEFORE) + k * field(t, BEFORE_STEP),
            field(t, H) + k * field(t, OUTPUT_STEP),
        )
        for j in range(size):
            z = sigmoid(get(gates, j) + get(bias, j))
            candidate = get(gates, j + size) + get(bias, j + size)
            set_float(gates, j, z)
            set_float(gates, j + size, candidate)
            set_float(h, j, get(before, j) + z * (candidate - get(before, j)))


@Rows
def _mingru_back(n, t, size, like):  # type: ignore[no-untyped-def]
    sums = field(t, SUMS)
    for k in range(n):
        gates, d, before = (
            field(t, GATES) + k * field(t, GATES_STEP),
            field(t, D) + k * field(t, D_STEP),
            field(t, BEFORE) + k * field(t, BEFORE_STEP),
        )
        dy, dh = field(t, DY) + k * field(t, OUTPUT_STEP), field(t, DH) + k * field(t, STATE_STEP)
        for j in range(size):
            z = get(gates, j)
            d_hidden = get(dy, j) + get(dh, j)
            d_z = d_hidden * (get(gates, j + size) - get(before, j)) * z * (ONE - z)
            d_candidate = d_hidden * z
            set_float(dh, j, d_hidden - d_candidate)
            put(like, d, j, d_z)
            put(like, d, j + size, d_candidate)
            set_float(sums, j, get(sums, j) + d_z)
            set_float(sums, j + size, get(sums, j + size) + d_candidate)


@Rows
def _qrnn(n, t, size, like):  # type: ignore[no-untyped-def]
    """Gates z, f, o; the state is the cell state alone."""
    bias = field(t, BIAS)
    for k in range(n):
        gates, c, kept, h = (
            field(t, GATES) + k * field(t, GATES_STEP),
            field(t, C) + k * field(t, STATE_STEP),
            field(t, KEPT) + k * field(t, KEPT_STEP),
            field(t, H) + k * field(t, OUTPUT_STEP),
        )
        for j in range(size):
            z = tanh(get(gates, j) + get(bias, j))
            f = sigmoid(get(gates, j + size) + get(bias, j + size))
            o = sigmoid(get(gates, j + 2 * size) + get(bias, j + 2 * size))
            cell = z + f * (get(c, j) - z)
            set_float(c, j, cell)
            set_float(kept, j, cell)
            set_float(h, j, o * cell)
            set_float(gates, j, z)
            set_float(gates, j + size, f)
            set_float(gates, j + 2 * size, o)


@Rows
def _qrnn_back(n, t, size, like):  # type: ignore[no-untyped-def]
    sums = field(t, SUMS)
    for k in range(n):
        gates, d = field(t, GATES) + k * field(t, GATES_STEP), field(t, D) + k * field(t, D_STEP)
        c, c_before = field(t, C) + k * field(t, STATE_STEP), field(t, C_BEFORE) + k * field(t, STATE_STEP)
        dy, dh, dc = (
            field(t, DY) + k * field(t, OUTPUT_STEP),
            field(t, DH) + k * field(t, STATE_STEP),
            field(t, DC) + k * field(t, STATE_STEP),
        )
        for j in range(size):
            z, f, o = get(gates, j), get(gates, j + size), get(gates, j + 2 * size)
            d_hidden = get(dy, j) + get(dh, j)
            d_cell = get(dc, j) + d_hidden * o
            d_z = d_cell * (ONE - f) * (ONE - z * z)
            d_f = d_cell * (get(c_before, j) - z) * f * (ONE - f)
            d_o = d_hidden * get(c, j) * o * (ONE - o)
            set_float(dh, j, ZERO)
            set_float(dc, j, d_cell * f)
            put(like, d, j, d_z)
            put(like, d, j + size, d_f)
            put(like, d, j + 2 * size, d_o)
            set_float(sums, j, get(sums, j) + d_z)
            set_float(sums, j + size, get(sums, j + size) + d_f)
            set_float(sums, j + 2 * size, get(sums, j + 2 * size) + d_o)


FORWARD = (_lstm, _gru, _rnn, _rnn_relu, _peephole, _lnlstm, _mingru, _qrnn)
BACKWARD = (
    _lstm_back,
    _gru_back,
    _rnn_back,
    _rnn_relu_back,
    _peephole_back,
    _lnlstm_back,
    _mingru_back,
    _qrnn_back,
)
LSTM, GRU, RNN, RNN_RELU, PEEPHOLE, LNLSTM, MINGRU, QRNN = range(8)
"""Places of the cells in both."""
