"""What the compiled kernels share: the matrix micro-kernel, bfloat16, activations, panels."""

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic, overload

from recur.nn.jit.numba_internals import keep_on_disk

LLVM_VERSION = 22  # the one whose options below were tried: another might not know them, and would end the process
if llvm.llvm_version_info[0] != LLVM_VERSION:
    raise ImportError(f"the compiled kernels were made for LLVM {LLVM_VERSION}, got {llvm.llvm_version_info[0]}")
# A row's loop touches up to twenty arrays. LLVM vectorizes it if it may first check that they do not overlap, and must
# not check so for all rows at once: the gates of a row lie between those of the next.
llvm.set_option("recur", "-runtime-memory-check-threshold=200")
llvm.set_option("recur", "-hoist-runtime-checks=false")

_OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": {"contract", "nsz", "arcp"}, "error_model": "numpy"}


def compiled(function: Callable[..., Any]) -> Any:
    """Compile `function` when it is first called, and keep the machine code on disk where a place can be written."""
    return keep_on_disk(njit(**_OPTIONS)(function))


class Rows:
    """A function of rows of a cell, compiled by itself and called by address: no caller compiles it again.

    Its arguments: how many rows, the address of a table of addresses and strides (see `recur.nn.jit.cells`), the size
    of the state, and a pointer whose type alone counts: that of the operands of products.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self._built = function, dict[bool, Any]()

    def address(self, bf16: bool) -> int:
        """Where the machine code for this precision of operands lies."""
        if bf16 not in self._built:
            like = types.CPointer(types.int16 if bf16 else types.float32)
            signature = types.void(types.int64, types.int64, types.int64, like)
            options = {name: value for name, value in _OPTIONS.items() if name != "nogil"}
            # What `numba.cfunc` does, which would compile before a place on disk can be given.
            built = CFunc(self._function, (signature.args, signature.return_type), locals={}, options=options)
            keep_on_disk(built).compile()
            self._built[bf16] = built
        return int(self._built[bf16].address)


def summing(function: Callable[..., Any]) -> Any:
    """Compile a function that adds up a row: in any order, so that the compiler may take several terms at once."""
    return njit(fastmath={*_OPTIONS["fastmath"], "reassoc"}, error_model="numpy")(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile `function` into those that call it."""
    return njit(inline="always", **_OPTIONS)(function)


@intrinsic
def call_kernel(context, address, m, n, k, lda, ldb, ldc, add, a, b, c, paired):  # type: ignore[no-untyped-def]
    """Call the micro-kernel of `recur.nn.products` at `address`: C (m, n) = A (m, k) B (k, n), or C += A B."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        function = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * 11)
        builder.call(builder.inttoptr(arguments[0], function.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(*([types.int64] * 12)), generate


@intrinsic
def call_rows(context, address, n, table, size):  # type: ignore[no-untyped-def]
    """Call a function of `recur.nn.jit.cells` at its address."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        integer, pointer = ir.IntType(64), ir.IntType(8).as_pointer()
        function = ir.FunctionType(ir.VoidType(), [integer, integer, integer, pointer])
        target = builder.inttoptr(arguments[0], function.as_pointer())
        builder.call(target, [*arguments[1:], ir.Constant(pointer, None)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), generate


@intrinsic
def field(context, table, index):  # type: ignore[no-untyped-def]
    """The int64 number `index` of the table at an address."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load(builder.gep(pointer, [arguments[1]]), align=8)

    return types.int64(types.int64, types.int64), generate


@intrinsic
def _power_of_two(context, x):  # type: ignore[no-untyped-def]
    """2^n, from a float32 whose lowest mantissa bits hold the whole number n."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        integer = ir.IntType(32)
        bits = builder.shl(builder.bitcast(arguments[0], integer), ir.Constant(integer, 23))
        return builder.bitcast(builder.add(bits, ir.Constant(integer, 0x3F800000)), ir.FloatType())

    return types.float32(types.float32), generate


@intrinsic
def to_bf16(context, x):  # type: ignore[no-untyped-def]
    """The bits of the nearest bfloat16, ties to even, as int16."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        integer = ir.IntType(32)

        def constant(value: int) -> ir.Constant:
            return ir.Constant(integer, value)

        bits = builder.bitcast(arguments[0], integer)
        odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
        rounded = builder.lshr(builder.add(bits, builder.add(odd, constant(0x7FFF))), constant(16))
        is_nan = builder.fcmp_unordered("uno", arguments[0], arguments[0])
        return builder.trunc(builder.select(is_nan, constant(0x7FC0), rounded), ir.IntType(16))

    return types.int16(types.float32), generate


@intrinsic
def get(context, address, index):  # type: ignore[no-untyped-def]
    """The float32 number `index` at `address`. Rows come by address: a slice would count references, a row a time."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(arguments[0], ir.FloatType().as_pointer())
        return builder.load(builder.gep(pointer, [arguments[1]]), align=4)

    return types.float32(types.int64, types.int64), generate


def _writer(kind: Any, align: int) -> Any:
    @intrinsic
    def write(context, address, index, value):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            pointer = builder.inttoptr(arguments[0], arguments[2].type.as_pointer())
            builder.store(arguments[2], builder.gep(pointer, [arguments[1]]), align=align)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, kind), generate

    return write


set_float = _writer(types.float32, 4)
set_bits = _writer(types.uint32, 4)
set_short = _writer(types.int16, 2)


@intrinsic
def get_bits(context, address, index):  # type: ignore[no-untyped-def]
    """The uint32 number `index` at `address`."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(arguments[0], ir.IntType(32).as_pointer())
        return builder.load(builder.gep(pointer, [arguments[1]]), align=4)

    return types.uint32(types.int64, types.int64), generate


@intrinsic
def as_bits(context, x):  # type: ignore[no-untyped-def]
    """A float32's bits as uint32."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@intrinsic
def as_float(context, bits):  # type: ignore[no-untyped-def]
    """The float32 that has these bits."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def wide_vectors(context):  # type: ignore[no-untyped-def]
    """Let the compiler take the widest vectors in this function. By itself it takes half of AVX-512's on Intel's.

    What computes an `exp` or writes an operand of a product asks for them by that.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        # llvmlite's own `add` knows no attributes with a value; the set is written out as it is.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), generate


def _transpose(builder: ir.IRBuilder, rows: list[Any]) -> list[Any]:
    """16 vectors of 16: interleaving each with the one eight places on, four times over, transposes them."""
    lanes = [j // 2 + 16 * (j % 2) for j in range(16)]
    vector = ir.VectorType(ir.IntType(32), 16)
    low, high = (ir.Constant(vector, [lane + 8 * half for lane in lanes]) for half in range(2))
    for _ in range(4):
        pairs = zip(rows[:8], rows[8:], strict=True)
        rows = [builder.shuffle_vector(a, b, mask) for a, b in pairs for mask in (low, high)]
    return rows


@intrinsic
def transpose_16(context, source, stride, target, target_stride, like):  # type: ignore[no-untyped-def]
    """Write 16 rows of 64 bytes at the address `source` transposed; the strides count bytes from row to row.

    Where `like` is an array of float32, 16 x 16 of them; in bfloat16, which come in pairs, 16 x 32.
    """
    low = like.dtype != types.float32

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        long, vector = ir.IntType(64), ir.VectorType(ir.IntType(32), 16)
        half = ir.VectorType(ir.IntType(16), 16)

        def row(address: Any, stride: Any, index: int, kind: Any) -> Any:
            step = builder.mul(stride, ir.Constant(long, index))
            return builder.inttoptr(builder.add(address, step), kind.as_pointer())

        source, stride, target, target_stride, _ = arguments
        rows = [builder.load(row(source, stride, i, vector), align=2) for i in range(16)]
        for j, column in enumerate(_transpose(builder, rows)):
            if low:
                builder.store(builder.trunc(column, half), row(target, target_stride, 2 * j, half), align=2)
                upper = builder.lshr(column, ir.Constant(vector, [16] * 16))
                builder.store(builder.trunc(upper, half), row(target, target_stride, 2 * j + 1, half), align=2)
            else:
                builder.store(column, row(target, target_stride, j, vector), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64, like), generate


def put(like, address, index, value):  # type: ignore[no-untyped-def]
    """Write a float32 into an operand of a product, in the precision of the array or pointer `like`."""


@overload(put, inline="always")
def _put(like, address, index, value):  # type: ignore[no-untyped-def]
    if like.dtype == types.float32:

        def write(like, address, index, value):  # type: ignore[no-untyped-def]
            wide_vectors()
            set_float(address, index, value)
    else:

        def write(like, address, index, value):  # type: ignore[no-untyped-def]
            wide_vectors()
            set_short(address, index, to_bf16(value))

    return write


def is_bf16(array):  # type: ignore[no-untyped-def]
    """1 for an operand in bfloat16, else 0: a constant for the compiler."""


@overload(is_bf16, inline="always")
def _is_bf16(array):  # type: ignore[no-untyped-def]
    if array.dtype == types.float32:
        return lambda array: 0
    return lambda array: 1


_F = np.float32
ONE, TWO, ZERO = _F(1), _F(2), _F(0)
_HIGH, _LOW = _F(87), _F(-87)  # beyond, float32's exp is infinite or 0
_LOG2_E, _LN2_HIGH, _LN2_LOW = _F(1.4426950408889634), _F(0.693359375), _F(-2.12194440e-4)
_ROUND = _F(12582912)  # 1.5 * 2^23: adding it rounds to a whole number, which its lowest bits then hold
# exp(r) = 1 + r + r^2 P(r) on |r| <= ln 2 / 2: the minimax polynomial of Moshier's Cephes library
_P0, _P1, _P2 = _F(1.9875691500e-4), _F(1.3981999507e-3), _F(8.3334519073e-3)
_P3, _P4, _P5 = _F(4.1665795894e-2), _F(1.6666665459e-1), _F(5.0000001201e-1)


@inlined
def _scaled(x, low):  # type: ignore[no-untyped-def]
    """e^r - 1 and 2^n for e^x = e^r 2^n with |r| <= ln 2 / 2. NaN stays NaN: the comparisons are false for it."""
    wide_vectors()
    x = low if x < low else x
    x = _HIGH if x > _HIGH else x
    shifted = x * _LOG2_E + _ROUND
    n = shifted - _ROUND
    r = x - n * _LN2_HIGH
    r = r - n * _LN2_LOW
    p = _P0 * r + _P1
    p = p * r + _P2
    p = p * r + _P3
    p = p * r + _P4
    p = p * r + _P5
    return p * (r * r) + r, _power_of_two(shifted)


@inlined
def expm1(x):  # type: ignore[no-untyped-def]
    """e^x - 1 to a few units in the last place, near 0 too."""
    part, scale = _scaled(x, _LOW)
    return part * scale + (scale - ONE)


@inlined
def exp(x):  # type: ignore[no-untyped-def]
    """e^x to one unit in the last place, which `expm1(x) + 1` is not where x < 0."""
    return exp_from(x, _LOW)


@inlined
def exp_from(x, low):  # type: ignore[no-untyped-def]
    """The same, and e^low below `low`."""
    part, scale = _scaled(x, low)
    return (part + ONE) * scale


@inlined
def sigmoid(x):  # type: ignore[no-untyped-def]
    """1 / (1 + e^-x)."""
    return ONE / (ONE + exp(-x))


@inlined
def tanh(x):  # type: ignore[no-untyped-def]
    """e^2x - 1 over e^2x + 1, accurate near 0 too: Adam divides small gradients by their size."""
    t = expm1(TWO * x)
    return t / (t + TWO)


@compiled
def product(address, m, n, k, a, lda, b, panel, c, ldc, add, bf16):  # type: ignore[no-untyped-def]
    """C (m, n) = A (m, k) B, or added to C. A and C are addresses; B that of panels (see `recur.nn.products`)."""
    size = 2 if bf16 else 4
    depth = k if bf16 or k <= 2048 else 1024  # so much of a panel stays in cache
    for column in range(0, n, panel):
        width = min(panel, n - column)
        for row in range(0, m, 64):  # the library compiles one kernel for each number of rows: at most 64 of them
            rows = min(64, m - row)
            target = c + 4 * (column + row * ldc)
            for first in range(0, k, depth):
                part = min(depth, k - first)
                left = a + (row * lda + first) * size
                right = b + (column * k + first * panel) * size
                more = 1 if first else add
                call_kernel(address, rows, width, part, lda, panel, ldc, more, left, right, target, bf16)


@compiled
def linear(address, m, k, x, panels, panel, first, end, bias, out, stride):  # type: ignore[no-untyped-def]
    """Columns `first` to `end`, both where panels begin, of x (m, k) times panels plus bias, to `out` (m, stride)."""
    bf16 = is_bf16(x)
    b, c = panels.ctypes.data + first * k * (2 if bf16 else 4), out.ctypes.data + 4 * first
    product(address, m, end - first, k, x.ctypes.data, k, b, panel, c, stride, 0, bf16)
    for row in range(m):
        for j in range(first, end):
            out[row * stride + j] += bias[j]


@compiled
def to_panels(source, target, rows, first, columns, stride, panel):  # type: ignore[no-untyped-def]
    """Columns `first` to `first + columns` of `source` (rows, stride) as panels of `panel` columns.

    In bfloat16 two rows are interleaved, as the micro-kernel wants them: `rows` must be even.
    """
    for column in range(0, columns, panel):
        width = min(panel, columns - column)
        at = first + column
        if is_bf16(source):
            for row in range(0, rows, 2):
                even = source[row * stride + at : row * stride + at + width]
                odd = source[(row + 1) * stride + at : (row + 1) * stride + at + width]
                pairs = target[column * rows + row * panel : column * rows + (row + 2) * panel]
                for j in range(width):
                    pairs[2 * j] = even[j]
                    pairs[2 * j + 1] = odd[j]
        else:
            for row in range(rows):
                whole = source[row * stride + at : row * stride + at + width]
                copy = target[column * rows + row * panel : column * rows + (row + 1) * panel]
                for j in range(width):  # an assignment of slices would compile numba's message about their shapes
                    copy[j] = whole[j]


@compiled
def transpose(source, stride, target, target_stride, rows, columns):  # type: ignore[no-untyped-def]
    """Write `source` (rows, columns) as (columns, rows)."""
    for first in range(0, rows, 16):
        end = min(first + 16, rows)
        for column in range(columns):
            for row in range(first, end):
                target[column * target_stride + row] = source[row * stride + column]
