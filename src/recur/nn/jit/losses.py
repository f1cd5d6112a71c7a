"""The output layer and its cross-entropy for a block of rows: see `recur.nn.losses`.

Everything is transposed: `p` is (words, rows), so that a word's logits of all rows are one vector, the sum over the
words needs no sums within a vector, and `p` is at once an operand of both products of the gradient. A block is cut by
words into ranges for threads, and those into tiles that stay in cache.

A tile's logits never leave the cache. What is kept of them is p = exp(z - reference), in the precision of the products,
with a *reference* for each row: any number such that no p overflows will do, since p times exp(reference - log total)
is the probability. That factor goes into the other operand of one product and into the result of the other, and `p` is
written once and read once. Where a tile exceeds a row's reference by so much that p might overflow, the row gets a new
one; the tiles before are scaled to it when the gradients read them.

In bfloat16 `p` holds two words in turn, as the micro-kernel wants its right operands. `rows` is a multiple of 16.
"""

import numpy as np

from recur.nn.jit.primitives import (
    as_bits,
    as_float,
    call_kernel,
    compiled,
    exp,
    exp_from,
    get,
    get_bits,
    is_bf16,
    product,
    put,
    set_bits,
    set_float,
    set_short,
    summing,
    transpose_16,
    wide_vectors,
)

TILE = 256
TURNED_STRIDE = TILE + 32  # words from row to row of a transposed tile: a power of two would crowd the cache
_LIMIT = np.float32(1e13)  # of a tile's sum of p: sums of all tiles and products with weights stay far below 3e38
# No p is smaller than e^-60: beside sums of at least 1 this is nothing, and products with it are no denormal numbers,
# which take a processor a hundred times as long.
_FLOOR = np.float32(-60)
_LOWEST = np.float32(-1e30)  # the logit of a word that is none
_HALF, _UPPER, _SIXTEEN = np.uint32(0x8000), np.uint32(0xFFFF0000), np.uint32(16)
_ZERO = np.float32(0)


@compiled
def _raise_top(z, bias, word, top, likeliest, rows):  # type: ignore[no-untyped-def]
    for r in range(rows):
        value = get(z, r) + bias
        higher = value > top[r]
        top[r] = value if higher else top[r]
        likeliest[r] = word if higher else likeliest[r]


@compiled
def _add_exp(z, bias, reference, total, rows):  # type: ignore[no-untyped-def]
    for r in range(rows):
        set_float(total, r, get(total, r) + exp_from(get(z, r) + bias - get(reference, r), _FLOOR))


@compiled
def _keep_exp(z, bias, reference, total, out, rows):  # type: ignore[no-untyped-def]
    """The same, and p in float32."""
    for r in range(rows):
        value = exp_from(get(z, r) + bias - get(reference, r), _FLOOR)
        set_float(total, r, get(total, r) + value)
        set_float(out, r, value)


@compiled
def _keep_pair(z, even_bias, odd_bias, reference, total, out, rows):  # type: ignore[no-untyped-def]
    """The same of two words, and both p in bfloat16: rounded, half upwards."""
    for r in range(rows):
        even = exp_from(get(z, r) + even_bias - get(reference, r), _FLOOR)
        odd = exp_from(get(z, r + rows) + odd_bias - get(reference, r), _FLOOR)
        set_float(total, r, get(total, r) + (even + odd))
        set_bits(out, r, ((as_bits(even) + _HALF) >> _SIXTEEN) | ((as_bits(odd) + _HALF) & _UPPER))


@compiled
def _tile(z, bias, first, words, reference, total, p, rows):  # type: ignore[no-untyped-def]
    """Sums of exp(z - reference) over the words of a tile, and p unless it is empty."""
    for r in range(rows):
        set_float(total, r, _ZERO)
    if not len(p):
        for i in range(words):
            _add_exp(z + 4 * i * rows, bias[first + i], reference, total, rows)
    elif is_bf16(p):
        for i in range(0, words, 2):
            odd = bias[first + i + 1] if i + 1 < words else _LOWEST
            out = p.ctypes.data + 2 * (first + i) * rows
            _keep_pair(z + 4 * i * rows, bias[first + i], odd, reference, total, out, rows)
    else:
        for i in range(words):
            out = p.ctypes.data + 4 * (first + i) * rows
            _keep_exp(z + 4 * i * rows, bias[first + i], reference, total, out, rows)


@compiled
def _raise_references(z, bias, first, words, reference, total, sums, rows):  # type: ignore[no-untyped-def]
    """Give rows whose p are too large the tile's largest logit as reference; whether there was one."""
    raised = False
    for r in range(rows):
        if sums[r] > _LIMIT:
            top = _LOWEST
            for i in range(words):
                top = max(top, z[i * rows + r] + bias[first + i])
            total[r] *= exp(reference[r] - top)
            reference[r] = top
            raised = True
    return raised


@compiled
def scores(  # type: ignore[no-untyped-def]
    kernel,
    w,
    depth,
    x,
    rows,
    first,
    end,
    bias,
    targets,
    of_target,
    p,
    references,
    raised,
    total,
    scratch,
    top,
    likeliest,
):
    """Sums over the words `first` to `end` of exp(logit - reference), and what is to be known of the logits.

    Args:
        kernel: the micro-kernel's address.
        w: left operand (words, depth).
        depth: features, and what a left operand is padded by.
        x: right operand (depth, rows), one panel.
        rows: of the block.
        first: word, a multiple of `TILE`.
        end: word after the last.
        bias: (words,).
        targets: (rows,) words.
        of_target: (rows,), takes the logits of the targets among the words.
        p: (words, rows), takes exp(logit - reference); empty if it is not wanted.
        references: (tiles, rows); that of the range's first tile comes filled, the others take what p was taken with.
        raised: (tiles,), takes how many tiles of the range had to raise references, up to each one.
        total: (rows,) zeros, takes the sums, for the last tile's references.
        scratch: (TILE + 1, rows), for a tile's logits and sums.
        top: (rows,), comes as -1e30 and takes the largest logits; empty if they are not wanted.
        likeliest: (rows,), takes the first word that has it.
    """
    bf16 = is_bf16(w)
    size, count = 2 if bf16 else 4, 0
    z, sums = scratch[: TILE * rows], scratch[TILE * rows :]
    logits = z.ctypes.data
    for tile in range(first, end, TILE):
        words, place = min(TILE, end - tile), tile // TILE
        reference = references[place * rows : (place + 1) * rows]
        if tile > first:
            before = references[(place - 1) * rows : place * rows]
            for r in range(rows):
                reference[r] = before[r]
        a = w.ctypes.data + tile * depth * size
        product(kernel, words, rows, depth, a, depth, x.ctypes.data, rows, logits, rows, 0, bf16)
        if words % 2:  # the pair of the last word
            for r in range(rows):
                z[words * rows + r] = _ZERO
        for r in range(rows):
            if tile <= targets[r] < tile + words:
                of_target[r] = z[(targets[r] - tile) * rows + r] + bias[targets[r]]
        if len(top):
            for i in range(words):
                _raise_top(logits + 4 * i * rows, bias[tile + i], np.int32(tile + i), top, likeliest, rows)
        _tile(logits, bias, tile, words, reference.ctypes.data, sums.ctypes.data, p, rows)
        if _raise_references(z, bias, tile, words, reference, total, sums, rows):
            count += 1
            _tile(logits, bias, tile, words, reference.ctypes.data, sums.ctypes.data, p, rows)
        raised[place] = count
        for r in range(rows):
            total[r] += sums[r]


@compiled
def _rescale(p, first, words, factor, rows):  # type: ignore[no-untyped-def]
    """Multiply a tile of p by a factor for each row."""
    if is_bf16(p):
        for i in range(0, words, 2):
            at = p.ctypes.data + 2 * (first + i) * rows
            for r in range(rows):
                pair = get_bits(at, r)
                even, odd = as_float(pair << _SIXTEEN) * factor[r], as_float(pair & _UPPER) * factor[r]
                set_bits(at, r, ((as_bits(even) + _HALF) >> _SIXTEEN) | ((as_bits(odd) + _HALF) & _UPPER))
    else:
        for i in range(words):
            row = p[(first + i) * rows : (first + i + 1) * rows]
            for r in range(rows):
                row[r] *= factor[r]


@summing
def _weighted(row, scale, rows):  # type: ignore[no-untyped-def]
    """The sum of a word's p times scale."""
    wide_vectors()
    total = _ZERO
    for r in range(rows):
        total += get(row, r) * get(scale, r)
    return total


@summing
def _weighted_pair(pairs, scale, even, odd, rows):  # type: ignore[no-untyped-def]
    """The same of two words, whose p are written apart to `even` and `odd`."""
    wide_vectors()
    total, other = _ZERO, _ZERO
    for r in range(rows):
        pair = get_bits(pairs, r)
        total += as_float(pair << _SIXTEEN) * get(scale, r)
        other += as_float(pair & _UPPER) * get(scale, r)
        set_short(even, r, np.int16(pair))
        set_short(odd, r, np.int16(pair >> _SIXTEEN))
    return total, other


@compiled
def _turn(w, first, words, depth, features, turned):  # type: ignore[no-untyped-def]
    """Write the tile `first` to `first + words` of w (words, depth) to `turned` (features, TURNED_STRIDE)."""
    size = 2 if is_bf16(w) else 4
    wide = 64 // size
    for i in range(0, words, 16):
        whole = features // wide * wide if i + 16 <= words else 0
        source = w.ctypes.data + (first + i) * depth * size
        target = turned.ctypes.data + i * size
        for j in range(0, whole, wide):
            at = target + j * TURNED_STRIDE * size
            transpose_16(source + j * size, depth * size, at, TURNED_STRIDE * size, w)
        for j in range(whole, features):
            for k in range(i, min(i + 16, words)):
                turned[j * TURNED_STRIDE + k] = w[(first + k) * depth + j]
    if words % 2:  # products of bfloat16 take two words at a time
        for j in range(features):
            turned[j * TURNED_STRIDE + words] = 0


@compiled
def gradients(  # type: ignore[no-untyped-def]
    kernel,
    w,
    depth,
    features,
    x,
    panel,
    rows,
    first,
    end,
    p,
    references,
    raised,
    scale,
    d_x,
    d_w,
    d_bias,
    scratch,
    turned,
    add,
):
    """Gradients through the words `first` to `end`, but for the targets' own part.

    Args:
        kernel: the micro-kernel's address.
        w: as in `scores`.
        depth: as in `scores`.
        features: of a row.
        x: right operand (rows, features), each row times its `scale`; panels.
        panel: columns of a panel.
        rows: of the block.
        first: as in `scores`.
        end: as in `scores`.
        p: from `scores`.
        references: from `scores`.
        raised: from `scores`.
        scale: (rows,) exp(last reference - log total), and what else a gradient is multiplied by.
        d_x: (features, rows) zeros, takes what is to be multiplied by `scale`; empty if it is not wanted.
        d_w: (words, features), takes or (`add`) is given more; empty if it is not wanted.
        d_bias: (words,), likewise.
        scratch: at least (TILE, rows) like `p`, for bfloat16.
        turned: scratch (features, TURNED_STRIDE) like `p`, unless d_x is empty.
        add: whether there was a block before.
    """
    bf16, last = is_bf16(p), (end - 1) // TILE
    size = 2 if bf16 else 4
    factor = np.empty(rows, np.float32)
    for tile in range(first, end, TILE):
        words, place = min(TILE, end - tile), tile // TILE
        if raised[place] != raised[last]:
            for r in range(rows):
                factor[r] = exp(references[place * rows + r] - references[last * rows + r])
            _rescale(p, tile, words, factor, rows)
        b = p.ctypes.data + tile * rows * size
        a = b
        if bf16:
            a = scratch.ctypes.data
            for i in range(0, words, 2):
                at = a + 2 * i * rows
                even, odd = _weighted_pair(b + 2 * i * rows, scale.ctypes.data, at, at + 2 * rows, rows)
                if len(d_bias):
                    d_bias[tile + i] = even + (d_bias[tile + i] if add else _ZERO)
                    if i + 1 < words:
                        d_bias[tile + i + 1] = odd + (d_bias[tile + i + 1] if add else _ZERO)
        elif len(d_bias):
            for i in range(words):
                total = _weighted(a + 4 * i * rows, scale.ctypes.data, rows)
                d_bias[tile + i] = total + (d_bias[tile + i] if add else _ZERO)
        if len(d_w):
            c = d_w.ctypes.data + 4 * tile * features
            product(kernel, words, features, rows, a, rows, x.ctypes.data, panel, c, features, int(add), bf16)
        if len(d_x):
            _turn(w, tile, words, depth, features, turned)
            inner = words + words % 2 if bf16 else words
            for row in range(0, features, 64):
                height, c = min(64, features - row), d_x.ctypes.data + 4 * row * rows
                a = turned.ctypes.data + row * TURNED_STRIDE * size
                call_kernel(kernel, height, rows, inner, TURNED_STRIDE, rows, rows, 1, a, b, c, bf16)


@compiled
def left_operand(w, features, first, end, depth, left):  # type: ignore[no-untyped-def]
    """Rows `first` to `end` of w (words, features) in bfloat16 to `left` (words, depth), zeros where it is padded."""
    target = left.ctypes.data
    for word in range(first, end):
        row = w.ctypes.data + 4 * word * features
        for j in range(features):
            put(left, target + word * depth * 2, j, get(row, j))
