"""What the C library does with memory that is given back."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # as M_TRIM_THRESHOLD and so on in malloc.h
# What glibc comes to by itself in a program of large blocks (mallopt(3)); once one is set, it no longer adapts them.
_AFTERWARDS = {_TRIM_THRESHOLD: 64 << 20, _MMAP_THRESHOLD: 32 << 20, _MMAP_MAX: 65536}
_OWN_SETTINGS = ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


@contextmanager
def keeping_freed_memory() -> Iterator[bool]:
    """Let glibc keep large blocks that are freed, for the next step, which asks for the same again.

    By itself it maps each anew and unmaps it when it is freed, so that the kernel clears every page of every gradient
    and activation in every step: a third of the time of a small net with a large vocabulary. A process then stays as
    large as it was at its peak, until the end, when all is given back.

    Yields:
        whether it could be set: not where the C library is another, or the environment has settings of its own.
    """
    library = _glibc()
    if library is None or any(name in os.environ for name in _OWN_SETTINGS):
        yield False
        return
    # Without a map of its own, a block of any size comes from the heap, the top of which is not trimmed.
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield True
    finally:
        for name, value in _AFTERWARDS.items():
            library.mallopt(name, value)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows
        return None
    names = ("gnu_get_libc_version", "mallopt", "malloc_trim")
    return library if all(hasattr(library, name) for name in names) else None
