"""The cache is built once, shared, and never believed when it is damaged."""

import errno
import json
import logging
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recur.data.cache import Ragged, TokenCache, cache_folder, id_dtype
from recur.errors import UserError


def write_numbers(folder: Path) -> None:
    Ragged.save(folder, "tokens", [np.arange(5), np.arange(0), np.arange(3)], np.int32)


@given(rows=st.lists(st.lists(st.integers(0, 70_000)), max_size=6))
@settings(deadline=None)
def test_rows_come_back_as_they_were_saved(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("ragged")
    Ragged.save(folder, "tokens", [np.array(row, dtype=np.int64) for row in rows], np.int32)
    ragged = Ragged.open(folder, "tokens")
    assert [ragged[row].tolist() for row in range(len(ragged))] == rows
    assert ragged.lengths.tolist() == [len(row) for row in rows]


def test_ids_take_no_more_room_than_they_need():
    assert id_dtype(65_536) is np.uint16
    assert id_dtype(65_537) is np.int32


def test_an_entry_is_built_once_a_key(tmp_path):
    built = []
    cache = TokenCache(tmp_path)

    def build(folder):
        built.append(folder)
        write_numbers(folder)

    first = cache.entry({"a": 1}, build)
    assert cache.entry({"a": 1}, build) == first
    assert TokenCache(tmp_path).entry({"a": 1}, build) == first
    assert cache.entry({"a": 2}, build) != first
    assert len(built) == 2


def test_what_a_killed_build_left_is_taken_away_by_the_next(tmp_path):
    cache = TokenCache(tmp_path)

    def killed(folder):
        write_numbers(folder)
        os._exit(1)

    for _ in range(2):
        if (child := os.fork()) == 0:
            cache.entry({"a": 1}, killed)
        os.waitpid(child, 0)
    other = tmp_path / "tokens" / "another.0.draft"
    other.mkdir()
    left = {path.name for path in (tmp_path / "tokens").glob("*.draft")}
    assert len(left) == 2
    cache.entry({"a": 1}, write_numbers)
    assert [path.name for path in (tmp_path / "tokens").glob("*.draft")] == ["another.0.draft"]


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_entry_is_noticed_and_built_again(tmp_path, caplog, harm):
    cache = TokenCache(tmp_path)
    place = cache.entry({}, write_numbers)
    file = place / "tokens.bin"
    whole = file.read_bytes()
    if harm == "flip":
        file.write_bytes(whole[:7] + bytes([whole[7] ^ 1]) + whole[8:])
    elif harm == "truncate":
        file.write_bytes(whole[:-1])
    elif harm == "remove":
        file.unlink()
    else:
        (place / "entry.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert cache.entry({}, write_numbers) == place
    assert "is damaged: building it again" in caplog.text
    assert file.read_bytes() == whole


def test_a_failed_build_leaves_nothing(tmp_path):
    cache = TokenCache(tmp_path)

    def fail(folder):
        write_numbers(folder)
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        cache.entry({}, fail)
    assert [path.name for path in (tmp_path / "tokens").iterdir() if path.is_dir()] == []
    assert len(Ragged.open(cache.entry({}, write_numbers), "tokens")) == 3


def _contend(root: str, log: str) -> None:
    def build(folder: Path) -> None:
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.2)
        write_numbers(folder)

    assert Ragged.open(TokenCache(root).entry({"shared": True}, build), "tokens")[0].tolist() == [0, 1, 2, 3, 4]


def test_processes_started_together_build_an_entry_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "builders"
    workers = [context.Process(target=_contend, args=(str(tmp_path / "cache"), str(log))) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(log.read_text().splitlines()) == 1


def test_facts_are_kept_and_computed_again_when_unreadable(tmp_path):
    cache = TokenCache(tmp_path)
    assert cache.fact({"x": 1}, lambda: [1, "a"]) == [1, "a"]
    assert cache.fact({"x": 1}, lambda: "other") == [1, "a"]
    (file,) = (tmp_path / "facts").iterdir()
    file.write_text("[]")
    assert cache.fact({"x": 1}, lambda: "other") == "other"
    assert json.loads(file.read_text())["value"] == "other"


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    cache = TokenCache(tmp_path / "file" / "below")
    with pytest.raises(ValueError, match=r"data.cache_dir must be a folder that can be written .*RECUR_CACHE"):
        cache.entry({}, write_numbers)
    assert cache.fact({}, lambda: 5) == 5


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("RECUR_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "recur"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/recur")
    monkeypatch.setenv("RECUR_CACHE", "/r")
    assert cache_folder() == Path("/r")
    assert cache_folder(tmp_path) == tmp_path


@pytest.mark.parametrize(("place", "blamed"), [("inside", True), ("source.csv", False)])
def test_only_its_own_errors_are_those_of_a_cache(tmp_path, place, blamed):
    """A source that may not be read is no cache that cannot be written."""
    cache = TokenCache(tmp_path / "cache")

    def build(folder):
        path = folder / "tokens" if place == "inside" else tmp_path / place
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with pytest.raises(UserError if blamed else PermissionError, match="data.cache_dir" if blamed else "source.csv"):
        cache.entry({}, build)


def test_what_one_user_built_others_may_read(tmp_path):
    """As far as the umask lets them: what `tempfile` makes is for one user alone, and a shared cache was of no use."""
    cache = TokenCache(tmp_path)
    before = os.umask(0o022)
    try:
        entry = cache.entry({"a": 1}, write_numbers)
        cache.fact({"a": 1}, lambda: 5)
    finally:
        os.umask(before)
    (fact,) = (tmp_path / "facts").iterdir()
    assert [path.stat().st_mode & 0o777 for path in (entry, fact)] == [0o755, 0o644]
