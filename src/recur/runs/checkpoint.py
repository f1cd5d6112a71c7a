"""Checkpoint files that are whole or not there.

A checkpoint is what `torch.save` writes, a zip archive, and as the archive's comment the sha256 of everything before
it: its seal. `torch.load` reads such a file as any other, but checks no checksum of the archive (a flipped bit in a
weight goes unnoticed), so `check` reads the seal first. Files are written under a name of their own in the same folder,
synced, and renamed; `last.ckpt` leaves its predecessor behind as `last.previous.ckpt`.
"""

import contextlib
import hashlib
import os
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO

from recur.errors import UserError, reason
from recur.runs.files import create

LAST, PREVIOUS = "last.ckpt", "last.previous.ckpt"
_MARK = b"recur sha256 "
_SEAL = len(_MARK) + 64
UNREADABLE = "cannot be read as a checkpoint, it is truncated, damaged or unsafe"
_END = 22  # bytes of a zip archive's last record, the last two of them the length of the comment that follows


class DamagedError(UserError):
    """A checkpoint whose bytes are not those that were written."""


class _Sealed:
    """What `torch.save` writes to: passes bytes on, and knows their hash.

    The first failure to write is kept for `seal`: an exception in the middle of torch's writer would be followed by
    others, of the archive it then cannot end.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, hashlib.sha256()
        self._held = b""  # the last bytes given, which may be the archive's last record
        self._failure: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if len(view) < _END:
            view = memoryview(self._held + bytes(view))
            self._pass_on(view[:-_END])
        else:
            self._pass_on(self._held)
            self._pass_on(view[:-_END])
        self._held = bytes(view[-_END:])
        return len(data)

    def flush(self) -> None:
        """Nothing is buffered."""

    def _pass_on(self, data: Any) -> None:
        if self._failure is None and len(data):
            try:
                self._file.write(data)
            except OSError as error:
                self._failure = error
            self._hash.update(data)

    def seal(self) -> None:
        assert _ends_archive(self._held), "torch.save writes no zip archive"
        self._pass_on(self._held[:-2] + struct.pack("<H", _SEAL))
        if self._failure is not None:
            raise self._failure
        self._file.write(_MARK + self._hash.hexdigest().encode())


def write(content: dict[str, Any], path: Path, keep: str | None = None) -> None:
    """Write a checkpoint: a reader sees the former file or this one, whole, whatever happens meanwhile.

    Args:
        content: what `torch.save` takes.
        path: file to write.
        keep: name for the former file, in the same folder; None to remove it.

    Raises:
        UserError: the disk is full, the folder cannot be written, ...; the former file is as it was.
    """
    import torch

    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(create(part), "wb") as file:
            sealed = _Sealed(file)
            torch.save(content, sealed)  # type: ignore[arg-type]
            sealed.seal()
            file.flush()
            os.fsync(file.fileno())
        if keep and path.is_file():
            _keep(path, path.with_name(keep))
        part.replace(path)
        _sync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            left = f"; {path.name} of before is whole" if path.is_file() else ""
            raise UserError("", rule=f"cannot write {path}: {reason(error)}{left}") from None
        raise


def _keep(path: Path, former: Path) -> None:
    """Give a file a second name. Both names exist at every moment, where the file system has hard links."""
    link = former.with_name(f".{former.name}.part")
    link.unlink(missing_ok=True)
    try:
        link.hardlink_to(path)
    except OSError:
        path.replace(former)
        return
    link.replace(former)
    link.unlink(missing_ok=True)  # still there where both were names of one file already


def _sync(folder: Path) -> None:
    """Make a rename durable, where folders can be synced."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check(path: Path) -> bool:
    """Compare a checkpoint with its seal.

    Returns:
        whether it has one. A whole archive without one was saved with `torch.save` alone.

    Raises:
        DamagedError: it is cut off, or its bytes have changed.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _SEAL))
        tail = file.read()
        seal = re.fullmatch(re.escape(_MARK) + rb"([0-9a-f]{64})", tail)
        if seal is None:
            file.seek(0)
            if file.read(4) != b"PK\x03\x04":
                raise DamagedError(str(path), rule=UNREADABLE, remedy="it is no archive")
            if _ends_archive(tail[-_END:]):
                return False
            raise DamagedError(str(path), rule=UNREADABLE, remedy="its seal is gone")
        file.seek(0)
        digest, left = hashlib.sha256(), size - _SEAL
        while left:
            data = file.read(min(left, 1 << 20))
            if not data:
                break
            digest.update(data)
            left -= len(data)
    if digest.hexdigest().encode() != seal[1]:
        raise DamagedError(str(path), rule=UNREADABLE, remedy="its bytes do not match their sha256")
    return True


def _ends_archive(data: bytes) -> bool:
    """Whether this is the last record of a zip archive without a comment."""
    return data[:4] == b"PK\x05\x06" and data[-2:] == b"\0\0"


def whole(path: Path) -> bool:
    """Whether there is a checkpoint that is not damaged."""
    try:
        return path.is_file() and (check(path) or True)
    except (DamagedError, OSError):
        return False


def to_resume(folder: Path) -> tuple[Path, str | None]:
    """The checkpoint from which the run in a folder goes on.

    Args:
        folder: of the run.

    Returns:
        the file, and what is to be said where it is not the last one.

    Raises:
        UserError: there is none, or none is whole; its cause is the system's error where one could not be read.
    """
    last, former = (folder / "checkpoints" / name for name in (LAST, PREVIOUS))
    if not last.is_file() and not former.is_file():
        raise UserError("", rule=f"cannot resume {folder}: it has no checkpoints/{LAST} yet; start it again")
    trouble, unread = None, None
    try:
        if last.is_file():
            check(last)
            return last, None
        trouble = f"{last} is missing"
    except DamagedError as error:
        trouble = str(error)
    except OSError as error:
        trouble, unread = str(error), error
    try:
        if former.is_file():
            check(former)
            return former, f"{trouble}; going on from the one before, {former.name}"
    except DamagedError:
        pass
    except OSError as error:
        unread = unread or error
    more = f"{former.name} is damaged too" if former.is_file() else f"there is no {former.name}"
    raise UserError(
        "", rule=f"cannot resume {folder}: {trouble}, and {more}: start it again in another folder"
    ) from unread


def instead_of(path: Path) -> str:
    """What to use in place of a damaged checkpoint, as the end of a sentence."""
    others = [path.with_name(name) for name in ("best.ckpt", LAST, PREVIOUS)]
    other = next((other for other in others if other != path and whole(other)), None)
    return f": use {other} instead" if other else ": it has to be trained again"
