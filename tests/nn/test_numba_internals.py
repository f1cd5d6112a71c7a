"""Machine code on disk: up to date whichever file changes, and safe where several processes compile at once."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("numba")

from recur.nn.jit import numba_internals, primitives

SOURCES = Path(primitives.__file__).parent
CALLER = """
from recur.nn.jit.primitives import Rows, compiled, get, sigmoid

@compiled
def call(x):
    return sigmoid(x)

@Rows
def rows(n, t, size, like):
    return
"""
PROCESS = """
import numpy as np
from recur.nn.jit import caller

assert caller.rows.address(False) and caller.rows.address(True)
callbacks = [built.cache_hits for built in caller.rows._built.values()]
print(float(caller.call(np.float32(1))), sum(caller.call.stats.cache_hits.values()), *callbacks)
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the kernels, with one more that calls a function of another file."""
    folder = tmp_path / "recur" / "nn" / "jit"
    shutil.copytree(SOURCES, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for parent in (folder.parent, folder.parent.parent):
        (parent / "__init__.py").touch()
    (folder / "caller.py").write_text(CALLER)
    return folder


def run(package: Path) -> list[float]:
    """In a process of its own: what the function gives, and how often code was found on disk."""
    path = {**os.environ, "PYTHONPATH": str(package.parents[2])}
    done = subprocess.run([sys.executable, "-c", PROCESS], env=path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [float(word) for word in done.stdout.split()]


def code_files(package: Path) -> list[Path]:
    return sorted((package / "__pycache__").rglob("*.code"))


@pytest.mark.slow
def test_code_is_read_from_disk_until_any_file_changes(package):
    """Also one that only holds what is compiled into the function."""
    value, *hits = run(package)
    assert value == pytest.approx(0.7310586) and hits == [0, 0, 0]
    first = code_files(package)
    value, *hits = run(package)
    assert value == pytest.approx(0.7310586) and hits == [1, 1, 1]
    with open(package / "primitives.py", "a") as file:
        file.write("\n\n@inlined\ndef sigmoid(x):\n    return x - x\n")
    value, *hits = run(package)
    assert value == 0 and hits == [0, 0, 0]
    assert len(code_files(package)) == len(first) and not {*first} & {*code_files(package)}  # the former are gone


def test_the_stamp_covers_every_file(package):
    before = numba_internals.stamp(package)
    numba_internals.stamp.cache_clear()
    assert numba_internals.stamp(package) == before
    for path in sorted(package.glob("*.py")):
        path.write_text(path.read_text() + "\n# changed\n")
        numba_internals.stamp.cache_clear()
        before, earlier = numba_internals.stamp(package), before
        assert before != earlier, path.name


def test_what_several_processes_save_at_once_is_all_there_and_nothing_is_mixed_up(tmp_path):
    """numba's own index loses variants here, or gives one the code of another."""
    start = threading.Barrier(8)

    def work(worker: int) -> None:
        files = numba_internals.CodeFiles(tmp_path, "function", "version")
        start.wait()
        for number in range(10):
            files.save((worker, number), f"code of {worker}, {number}")

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files = numba_internals.CodeFiles(tmp_path, "function", "version")
    for worker in range(8):
        for number in range(10):
            assert files.load((worker, number)) == f"code of {worker}, {number}"
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 80


def test_a_damaged_file_is_compiled_anew_and_a_full_disk_does_not_stop_a_run(tmp_path):
    files = numba_internals.CodeFiles(tmp_path, "function", "version")
    files.save("key", b"code" * 100)
    assert files.load("key") == b"code" * 100 and files.load("other") is None
    (path,) = tmp_path.rglob("*.code")
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:50] + b"x" + whole[51:]):
        path.write_bytes(damaged)
        assert files.load("key") is None
    files.save("key", "code")
    assert files.load("key") == "code"
    files.flush()
    assert files.load("key") is None
    (tmp_path / "file").touch()
    numba_internals.CodeFiles(tmp_path / "file", "function", "version").save("key", "code")


def test_numba_has_the_names_that_are_used():
    from numba import njit
    from numba.core.caching import FunctionCache, IndexDataCacheFile

    function = numba_internals.keep_on_disk(njit(lambda x: x))
    assert isinstance(function._cache, FunctionCache)
    assert isinstance(function._cache._cache_file, numba_internals.CodeFiles)
    used = [name for name in vars(numba_internals.CodeFiles) if not name.startswith("_")]
    assert all(callable(getattr(IndexDataCacheFile, name)) for name in used)
