"""The output layer and its cross-entropy for a block of rows: see `recur.nn.losses`.

Everything is transposed: `z` is (words, rows), so that a word's logits of all rows are one vector, the largest and the
sum over the words need no sums within a vector, and the probabilities are at once the left operand of the gradient of
the weights. A block is cut by words into ranges for threads, and those into tiles that stay in cache.
"""

import numpy as np
from numba import njit

from recur.nn.jit.primitives import call_kernel, compiled, exp, is_bf16, product, put

TILE = 256


@njit(nogil=True, fastmath={"contract", "nsz", "reassoc"}, error_model="numpy", inline="always")
def _sum(values):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for j in range(len(values)):
        total += values[j]
    return total


@compiled
def _raise_top(z, bias, word, top, likeliest, rows):  # type: ignore[no-untyped-def]
    for r in range(rows):
        value = z[r] + bias
        z[r] = value
        higher = value > top[r]
        top[r] = value if higher else top[r]
        likeliest[r] = word if higher else likeliest[r]


@compiled
def _rescale(total, before, top, rows):  # type: ignore[no-untyped-def]
    for r in range(rows):
        total[r] = total[r] * exp(before[r] - top[r])
        before[r] = top[r]


@compiled
def _add_exp(z, top, total, rows):  # type: ignore[no-untyped-def]
    for r in range(rows):
        total[r] += exp(z[r] - top[r])


@compiled
def scores(kernel, w, features, x, panel, rows, first, end, bias, z, top, total, likeliest):  # type: ignore[no-untyped-def]
    """Logits of the words `first` to `end`, and over these the largest, its word, and the sum of exp(z - largest).

    `w` (words, features) and `x`, panels of (features, rows), are operands; `top` comes as -1e30, `total` as zeros.
    """
    bf16 = is_bf16(w)
    size = 2 if bf16 else 4
    before = top.copy()
    for tile in range(first, end, TILE):
        words = min(TILE, end - tile)
        a, c = w.ctypes.data + tile * features * size, z.ctypes.data + 4 * tile * rows
        product(kernel, words, rows, features, a, features, x.ctypes.data, panel, c, rows, 0, bf16)
        for word in range(tile, tile + words):
            _raise_top(z[word * rows : (word + 1) * rows], bias[word], np.int32(word), top, likeliest, rows)
        _rescale(total, before, top, rows)
        for word in range(tile, tile + words):
            _add_exp(z[word * rows : (word + 1) * rows], top, total, rows)


@compiled
def _probabilities(z, log_total, p, rows):  # type: ignore[no-untyped-def]
    target = p.ctypes.data
    for r in range(rows):
        value = exp(z[r] - log_total[r])
        z[r] = value
        put(p, target, r, value)


@compiled
def _pairs(even, odd, pairs, rows):  # type: ignore[no-untyped-def]
    for r in range(rows):
        pairs[2 * r] = even[r]
        pairs[2 * r + 1] = odd[r]


@compiled
def gradients(  # type: ignore[no-untyped-def]
    kernel,
    w_turned,
    words_stride,
    features,
    x,
    panel,
    rows,
    even_rows,
    first,
    end,
    z,
    log_total,
    d_x,
    d_w,
    d_bias,
    p,
    q,
):
    """Gradients through the words `first` to `end`, but for the targets' own part.

    `w_turned` (features, words_stride) and `x`, panels of (even_rows, features), are operands. Adds to `d_x`
    (features, rows) and to `d_w` (words, features), and writes `d_bias`; empty ones are not wanted. `p` (TILE,
    even_rows) and `q` are scratch operands.
    """
    bf16 = is_bf16(p)
    size = 2 if bf16 else 4
    for tile in range(first, end, TILE):
        words = min(TILE, end - tile)
        even = words + words % 2
        for i in range(words):
            row = z[(tile + i) * rows : (tile + i + 1) * rows]
            _probabilities(row, log_total, p[i * even_rows : i * even_rows + rows], rows)
            if len(d_bias):
                d_bias[tile + i] += _sum(row)
        if len(d_w):
            c = d_w.ctypes.data + 4 * tile * features
            a = p.ctypes.data
            product(kernel, words, features, even_rows, a, even_rows, x.ctypes.data, panel, c, features, 1, bf16)
        if not len(d_x):
            continue
        b = p.ctypes.data
        if bf16:
            p[words * even_rows : even * even_rows] = 0
            for i in range(0, even, 2):
                upper, lower = (
                    p[i * even_rows : i * even_rows + rows],
                    p[(i + 1) * even_rows : (i + 1) * even_rows + rows],
                )
                _pairs(upper, lower, q[i * rows : (i + 2) * rows], rows)
            b = q.ctypes.data
        for row in range(0, features, 64):
            height = min(64, features - row)
            a = w_turned.ctypes.data + (row * words_stride + tile) * size
            c = d_x.ctypes.data + 4 * row * rows
            depth = even if bf16 else words
            stride = rows if bf16 else even_rows
            call_kernel(kernel, height, rows, depth, words_stride, stride, rows, 1, a, b, c, bf16)
