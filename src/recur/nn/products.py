"""The matrix products of the engine and of the losses, at the rate of the fastest library that torch brings along.

torch multiplies float32 matrices on a CPU through MKL, which runs AMD processors far below their rate; oneDNN, which
torch also has, does not. The way in used here is the *micro-kernel* that torch's own attention and compiled models call
(`at::native::cpublas::brgemm`): C = A B or C += A B for small row-major matrices, float32, or bfloat16 operands with a
float32 result. It writes in place, with any strides, and needs no copy of A. B is cut into *panels* (see `pack`). The
compiled walks and losses call it for every product.

Whether it is used depends on what the processor and the library can do, never on a vendor's name or a clock: a run and
its resumption on one machine take the same path. Before the first use a small product is compared with a plain one.
"""

import ctypes
import math
import os
import platform
import time
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_FLOAT = "_ZN2at6native7cpublas6brgemmEllllllbPKfS3_Pfb"
_BFLOAT16 = "_ZN2at6native7cpublas6brgemmEllllllbPKN3c108BFloat16ES5_Pfb"
_RELEASE = "_ZN2at6native7cpublas14brgemm_releaseEb"
BF16_MARGIN = 1.3
"""`auto` takes bfloat16 where its products are at least so many times as fast as float32's: 2 where the processor
multiplies bfloat16 pairs, .01 where it only emulates them. Nothing known lies in between, where a clock's noise would
decide."""


def _onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)


@cache
def _library() -> ctypes.CDLL | None:
    """The library of torch, where its processor's calling convention is the one the walks use."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    limited = {"ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"} & os.environ.keys()  # then the kernel may be refused
    if platform.machine() != "x86_64" or platform.system() != "Linux" or limited or not path.is_file():
        return None
    return ctypes.CDLL(str(path))


def has_bf16() -> bool:
    """Whether the processor multiplies pairs of bfloat16 in hardware."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return bool(supported())


@cache
def micro_kernel(bf16: bool) -> int | None:
    """Address of the micro-kernel for bfloat16 or float32 operands; None where it is missing or wrong."""
    library = _library()
    able = has_bf16() if bf16 else "AVX" in torch.backends.cpu.get_cpu_capability()
    if library is None or not able or not _onednn():
        return None
    try:
        function = library[_BFLOAT16 if bf16 else _FLOAT]
    except AttributeError:
        return None
    address = ctypes.cast(function, ctypes.c_void_p).value
    return address if address is not None and _agrees(address, bf16) else None


def _call(address: int, a: Tensor, panels: Tensor, panel: int, out: Tensor, add: bool, bf16: bool) -> None:
    """One product of the micro-kernel, `out` (m, n) of one panel, for probes."""
    long, pointer, flag = ctypes.c_int64, ctypes.c_void_p, ctypes.c_bool
    kernel = ctypes.CFUNCTYPE(None, *[long] * 6, flag, pointer, pointer, pointer, flag)(address)
    (m, n), k = out.shape, a.shape[1]
    kernel(m, n, k, k, panel, n, add, a.data_ptr(), panels.data_ptr(), out.data_ptr(), bf16)


def _agrees(address: int, bf16: bool) -> bool:
    """Whether a product at `address` is the plain one's, to rounding."""
    a = torch.arange(5 * 34, dtype=torch.float32).reshape(5, 34).sin()
    b = torch.arange(34 * 48, dtype=torch.float32).reshape(34, 48).cos()
    panels, panel = pack(b, bf16)
    left = operand(a, bf16)
    out = torch.ones(5, 48, dtype=torch.float32)
    _call(address, left, panels, panel, out, True, bf16)
    right = b.bfloat16().double() if bf16 else b.double()
    return bool((out - (left.double() @ right + 1)).abs().max() < 1e-4)


def release() -> None:
    """Give back what the micro-kernel holds of this thread: on processors with matrix tiles, their state."""
    library = _library()
    if library is not None:
        library[_RELEASE](ctypes.c_bool(True))


@cache
def bf16_pays() -> bool:
    """Whether products of bfloat16 operands are faster here by `BF16_MARGIN`: a few milliseconds, once a process."""
    if micro_kernel(True) is None or micro_kernel(False) is None:
        return False
    a, b, out = (torch.ones(shape, dtype=torch.float32) for shape in ((64, 256), (256, 256), (64, 256)))
    operands = [(micro_kernel(bf16), operand(a, bf16), *pack(b, bf16), bf16) for bf16 in (False, True)]
    fastest = [math.inf, math.inf]
    for _ in range(48):  # in turn, and each one's fastest: what else the machine does only ever adds
        for place, (address, left, panels, panel, bf16) in enumerate(operands):
            assert address is not None
            began = time.perf_counter()
            _call(address, left, panels, panel, out, False, bf16)
            fastest[place] = min(fastest[place], time.perf_counter() - began)
    return fastest[0] > BF16_MARGIN * fastest[1]


def wants_bf16() -> bool:
    """Whether autocast asks for bfloat16 products here and now."""
    return bool(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16)


def panel_width(rows: int, columns: int, bf16: bool) -> int:
    """Columns of a panel of a matrix `(rows, columns)`: a panel stays in cache while the rows of A pass by."""
    widest = (256 if rows <= 1024 else 128 if rows <= 2048 else 64) if bf16 else 256 if rows <= 512 else 128
    return min(widest, -(-columns // 16) * 16)


def pack(matrix: Tensor, bf16: bool, width: int | None = None) -> tuple[Tensor, int]:
    """Cut a right operand `(k, n)` into panels.

    Args:
        matrix: of any strides; in bfloat16 an odd `k` is padded to an even one.
        bf16: the precision of the panels. Two rows are interleaved: the processor multiplies pairs.
        width: columns of a panel, a multiple of 16; None for what suits products of many rows.

    Returns:
        The panels one after the other, flat; int16 where they are bfloat16, since numpy knows none. And the columns of
        a panel, the last one padded with zeros.
    """
    k, n = matrix.shape
    width = width or panel_width(k, n, bf16)
    count, even = -(-n // width), k + k % 2 if bf16 else k
    if bf16:
        matrix = matrix.to(torch.bfloat16)
    if even != k or count * width != n:
        padded = matrix.new_zeros(even, count * width)
        padded[:k, :n] = matrix
        matrix = padded
    if not bf16:
        return matrix.reshape(k, count, width).transpose(0, 1).reshape(-1), width
    paired = matrix.reshape(even // 2, 2, count, width).permute(2, 0, 3, 1)
    return paired.reshape(-1).view(torch.int16), width


def operand(matrix: Tensor, bf16: bool) -> Tensor:
    """A left operand `(m, k)`: contiguous, and in bfloat16 `k` padded to an even number."""
    if not bf16:
        return matrix.contiguous()
    if matrix.shape[1] % 2:
        return torch.nn.functional.pad(matrix.to(torch.bfloat16), (0, 1))
    return matrix.to(torch.bfloat16).contiguous()
