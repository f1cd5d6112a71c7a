"""Rows of each cell, forward and backward. The formulas are those at the head of `recur.nn.engine`.

A step's rows of gates, states and gradients begin at the addresses in the table `t`, and move on by its strides.

Forward, `gates` comes as W x + U h without biases and leaves as what backward needs; the new hidden state goes to `h`
and, as operand of the next step's product, to `operand`; a new cell state to `c`, which held the old one, and `kept`.
Backward, `d` takes the gradients of the pre-activations as operand of the products, `sums` adds them up in float32, and
`dh`, `dc` change from the gradients of this step's state to what reaches the previous one beside the recurrent product.
`like` is a pointer to the operands' type.
"""

from recur.nn.jit.primitives import ONE, ZERO, Rows, field, get, put, set_float, sigmoid, tanh

# Places in the table: addresses of a step's first rows (`BEFORE`: previous hidden states; `C_BEFORE`: cell states) ...
GATES, C, KEPT, BEFORE, H, OPERAND, BIAS, PEEP, C_BEFORE, DY, DH, DC, D, SUMS, D_PEEP = range(15)
# ... and bytes from a row to the next (`STATE_STEP`: of rows of `size` floats)
GATES_STEP, STATE_STEP, KEPT_STEP, BEFORE_STEP, OUTPUT_STEP, OPERAND_STEP, D_STEP, TABLE_SIZE = range(15, 23)


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
    """An LSTM whose gates also see the cell state: i and f the old one, o the new one, by the weights `peep`."""
    bias, peep = field(t, BIAS), field(t, PEEP)
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
    peep, d_peep = field(t, PEEP), field(t, D_PEEP)
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
            d_gate = get(dy, j) + get(dh, j) if get(h, j) > ZERO else ZERO
            put(like, d, j, d_gate)
            set_float(sums, j, get(sums, j) + d_gate)


FORWARD = (_lstm, _gru, _rnn, _rnn_relu, _peephole)
BACKWARD = (_lstm_back, _gru_back, _rnn_back, _rnn_relu_back, _peephole_back)
LSTM, GRU, RNN, RNN_RELU, PEEPHOLE = range(5)
"""Places of the cells in both."""
