"""Every private name of numba that this package uses: those of where a function's machine code lies on disk.

numba takes machine code for up to date as long as the file that its function stands in has not changed. But functions
of other files are compiled into it, and when those change it goes stale unnoticed. And numba numbers the variants of a
function in an index, which two processes that compile at the same time write over each other: a number then leads to
another variant's code. Here a variant's file is named after all that its code is made from, and there is no index.

`tests/nn/test_numba_internals.py` holds numba to each name: that it exists, and that it does what is relied on.
"""

import contextlib
import hashlib
import inspect
import os
import pickle
import shutil
import sys
import uuid
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.serialize import dumps

_DIGEST = 32  # bytes of a hash before the content


@cache
def stamp(sources: Path = Path(__file__).parent) -> str:
    """A hash of what all machine code of this package is made from: every file of `nn.jit`, and the compiler."""
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__} {sys.version}".encode())
    for path in sorted(sources.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


class CodeFiles:
    """Stands in for numba's `IndexDataCacheFile`: the machine code of one function, a file for each of its variants.

    A file is written whole or not at all, and checked when it is read, so that processes need not wait for each other:
    two that compile the same variant write the same file. Code of former versions is removed when the first file of a
    new one is written.

    Args:
        folder: where numba would put its files.
        name: of the function, which no other of the folder has.
        version: hash of what the code is made from.
    """

    def __init__(self, folder: Path, name: str, version: str) -> None:
        self._python = f"recur-{sys.implementation.cache_tag}-"
        self._folder, self._name = folder / f"{self._python}{version}", name

    def _path(self, key: Any) -> Path:
        return self._folder / f"{self._name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.code"

    def load(self, key: Any) -> Any:
        """The content saved under a key; None where there is none, or a damaged one."""
        try:
            content = self._path(key).read_bytes()
        except OSError:
            return None
        if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
            return None
        saved, data = pickle.loads(content[_DIGEST:])  # noqa: S301 - our own, as numba reads its files
        return data if saved == key else None

    def save(self, key: Any, data: Any) -> None:
        """Keep content under a key. Where it cannot be written the next process compiles again."""
        body = dumps((key, data))
        path = self._path(key)
        temporary = path.with_name(f".{uuid.uuid4().hex}")
        with contextlib.suppress(OSError):
            if not self._folder.is_dir():
                self._make_folder()
            try:
                temporary.write_bytes(hashlib.sha256(body).digest() + body)
                os.replace(temporary, path)
            except OSError:
                temporary.unlink(missing_ok=True)

    def _make_folder(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for former in self._folder.parent.glob(f"{self._python}*"):
            if former != self._folder:
                shutil.rmtree(former, ignore_errors=True)

    def flush(self) -> None:
        """Remove the function's files."""
        for path in self._folder.glob(f"{self._name}-*.code"):
            path.unlink(missing_ok=True)


def keep_on_disk(function: Any) -> Any:
    """Let a function keep its machine code on disk, where a place can be written.

    Args:
        function: what `njit` gives, or a `CFunc`, before it is compiled.

    Returns:
        the function.
    """
    with contextlib.suppress(RuntimeError):  # numba finds no folder
        function.enable_caching()
        kept, written = function._cache, inspect.unwrap(function)
        name = f"{written.__module__}.{written.__qualname__}-{written.__code__.co_firstlineno}"
        kept._cache_file = CodeFiles(Path(kept.cache_path), name, stamp())
    return function
