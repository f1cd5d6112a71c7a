"""What is costly to make and cheap to keep: token arrays and small facts about files, shared by all runs.

An entry is a folder named by the hash of its key. It is built in a folder beside it and renamed into place under a
lock, so that runs started together wait for the first and share its work, and no run sees half an entry. Every file's
size and checksum are kept in the entry; a damaged entry is noticed when it is opened, and built again.
"""

import contextlib
import errno
import hashlib
import inspect
import json
import logging
import os
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from recur.errors import UserError

log = logging.getLogger(__name__)
# Part of every key. Raise it with any change to how files become rows, rows become tokens, tokens become files of an
# entry, or a corpus is generated: what an earlier version wrote is then built anew.
VERSION = 4
_MANIFEST = "entry.json"
_BLOCK = 1 << 22
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)
_UNWRITABLE = (*_FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


def cache_folder(setting: str | os.PathLike[str] | None = None) -> Path:
    """Where the cache is: the setting, else `$RECUR_CACHE`, `$XDG_CACHE_HOME/recur`, `~/.cache/recur`.

    Raises:
        UserError: none is set, and there is no home folder.
    """
    if setting:
        return Path(os.path.expanduser(setting))
    if ours := os.environ.get("RECUR_CACHE"):
        return Path(os.path.expanduser(ours))
    if everyones := os.environ.get("XDG_CACHE_HOME"):
        return Path(os.path.expanduser(everyones)) / "recur"
    try:
        return Path.home() / ".cache" / "recur"
    except RuntimeError:  # a user without an entry, as in some containers
        raise UserError("RECUR_CACHE", rule="must name a folder", remedy="this user has no home folder") from None


def content_key(value: Any) -> str:
    """Hash of plain values (numbers, text, lists, dicts with text keys)."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def source_key(thing: Any) -> str | None:
    """Hash of the file that a class or function is written in; None where it is in none that can be read."""
    try:
        return hashlib.sha256(Path(inspect.getsourcefile(inspect.unwrap(thing)) or "").read_bytes()).hexdigest()
    except (OSError, TypeError):
        return None


def maker_key(maker: Any) -> dict[str, Any]:
    """What names the class of an object whose settings determine a corpus: of another package's its code is a part.

    Ours is meant by `VERSION`, which others cannot raise.
    """
    kind = type(maker)
    if kind.__module__.partition(".")[0] == __name__.partition(".")[0]:
        return {"maker": kind.__name__}
    return {"maker": f"{kind.__module__}.{kind.__qualname__}", "code": source_key(kind)}


class Ragged:
    """Rows of unequal length, one after the other in a memory-mapped file.

    Attributes:
        values: all rows in a row, `(total,)`.
        offsets: row `i` is `values[offsets[i]:offsets[i + 1]]`, `(rows + 1,)` int64.
    """

    def __init__(self, values: NDArray[Any], offsets: NDArray[np.int64]) -> None:
        """Hold the two arrays; `open` maps them from an entry."""
        assert offsets[-1] == len(values)
        self.values = values
        self.offsets = offsets

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[Any]:
        """One row, without copying."""
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Length of each row, `(rows,)`."""
        return np.diff(self.offsets)

    @staticmethod
    def save(folder: Path, name: str, rows: Iterable[NDArray[Any]], dtype: Any) -> NDArray[np.int64]:
        """Write rows as they come; returns their lengths."""
        lengths: list[int] = []
        with (folder / f"{name}.bin").open("wb") as file:
            for row in rows:
                lengths.append(len(row))
                file.write(np.ascontiguousarray(row, dtype=dtype).data)
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        np.save(folder / f"{name}.offsets.npy", offsets)
        (folder / f"{name}.dtype").write_text(np.dtype(dtype).str)
        return np.diff(offsets)

    @classmethod
    def open(cls, folder: Path, name: str) -> "Ragged":
        """Map what `save` wrote."""
        dtype = np.dtype((folder / f"{name}.dtype").read_text())
        offsets = np.load(folder / f"{name}.offsets.npy")
        if offsets[-1] == 0:  # an empty file cannot be mapped
            return cls(np.zeros(0, dtype=dtype), offsets)
        return cls(np.memmap(folder / f"{name}.bin", dtype=dtype, mode="r"), offsets)


def id_dtype(vocab_size: int) -> Any:
    """The smallest of uint16 and int32 that holds every id."""
    return np.uint16 if vocab_size <= 1 << 16 else np.int32


class TokenCache:
    """Entries under one folder.

    Args:
        folder: see `cache_folder`. It is made when the first entry is.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        """Name the folder; nothing is written yet."""
        self.folder = cache_folder(folder)

    def entry(self, key: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
        """The folder of the entry with this key, built first if it is missing or damaged.

        Args:
            key: plain values that determine the content; `VERSION` is added.
            build: writes the entry's files into the folder it is given.

        Raises:
            UserError: the cache folder cannot be written.
        """
        full = {**key, "version": VERSION}
        place = self.folder / "tokens" / content_key(full)
        if _whole(place):
            return place
        try:
            self._make(place.parent)
            with FileLock(f"{place}.lock"):
                if _whole(place):  # another run built it while this one waited
                    return place
                if place.exists():
                    log.warning("cache entry %s is damaged: building it again", place)
                    shutil.rmtree(place)
                for left in place.parent.glob(f"{place.name}.*.draft"):  # by builds that were killed: the lock is ours
                    shutil.rmtree(left, ignore_errors=True)
                draft = Path(tempfile.mkdtemp(prefix=f"{place.name}.", suffix=".draft", dir=place.parent))
                try:
                    share(draft)
                    build(draft)
                    _seal(draft, full)
                    draft.rename(place)
                finally:
                    shutil.rmtree(draft, ignore_errors=True)
        except OSError as error:
            if self._is_own(error):
                raise self._unwritable(error) from error
            raise  # of what is read to build the entry
        return place

    def _is_own(self, error: OSError) -> bool:
        """Whether an error is of writing the cache."""
        if error.filename is not None:
            inside = Path(os.path.realpath(error.filename)).is_relative_to(os.path.realpath(self.folder))
            return error.errno in _UNWRITABLE and inside
        # numpy's own where less was written than it gave has no number
        return error.errno in (*_FULL, *_NO_LOCKS) or (error.errno is None and "requested and" in str(error))

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            "data.cache_dir",
            str(self.folder),
            f"must be a folder that can be written ({error.strerror or error})",
            "set it, or the environment's RECUR_CACHE, to another, or free some space",
        )

    def fact(self, key: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """A small plain value computed once for this key. A cache that cannot be written only costs the time."""
        full = {**key, "version": VERSION}
        place = self.folder / "facts" / f"{content_key(full)}.json"
        try:
            return json.loads(place.read_text())["value"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        value = compute()
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            handle, draft = tempfile.mkstemp(dir=place.parent)
            share(Path(draft))
            with os.fdopen(handle, "w") as file:
                json.dump({"key": full, "value": value}, file)
            Path(draft).replace(place)
        except OSError as error:
            log.debug("not kept: %s", error)
        return value


def share(made: Path) -> None:
    """Let others read what `tempfile` made for this user alone, as far as they may read any new file or folder."""
    mask = os.umask(0o077)  # the system says it only to who sets it
    os.umask(mask)
    mode = made.stat().st_mode
    with contextlib.suppress(OSError):  # some file systems know no modes
        made.chmod((stat.S_IMODE(mode) & stat.S_ISGID) | (0o777 if stat.S_ISDIR(mode) else 0o666) & ~mask)


def _checksum(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            total = zlib.crc32(block, total)
    return total


def _seal(folder: Path, key: Mapping[str, Any]) -> None:
    """Write the manifest, last of all files, and make sure that everything is on the disk."""
    files = {}
    for path in sorted(folder.iterdir()):
        files[path.name] = [path.stat().st_size, _checksum(path)]
        with path.open("rb") as file:
            os.fsync(file.fileno())
    with (folder / _MANIFEST).open("w") as file:
        json.dump({"files": files, "key": dict(key)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _whole(folder: Path) -> bool:
    """Whether every file of the entry is there as it was written."""
    try:
        files = json.loads((folder / _MANIFEST).read_text())["files"]
        return all(
            (folder / name).stat().st_size == size and _checksum(folder / name) == checksum
            for name, (size, checksum) in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
