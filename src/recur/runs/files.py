"""Files of a run or a sweep: written inside its folder and nowhere else.

Folders are shared, and a link in one could lead anywhere: to a shell's start file, to another's data. So a folder is
looked through before anything in it is opened (`check_links`), and whatever this package opens itself it opens without
following links, step by step from the folder (`open_inside`).
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from recur.errors import UserError

_REMEDY = "remove it, or put in its place what it points to"
_HARD_REMEDY = "put a copy in its place, or it would be changed under both names"
_REPLACED = (".ckpt", ".part")  # never written in place: a new file takes the name


def is_inside(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Whether a path, all links followed, is a folder or lies in it; neither has to exist."""
    real, whole = os.path.realpath(path), os.path.realpath(folder)
    return real == whole or real.startswith(whole.rstrip(os.sep) + os.sep)


def check_links(folder: Path) -> None:
    """Look through a folder before anything is written into it. One that does not exist holds nothing.

    Args:
        folder: of a run or a sweep. It may be reached through links itself.

    Raises:
        UserError: a link in it leads out of it, a file in it has a further name elsewhere (a hard link), or something
            in it is neither a file nor a folder.
    """
    waiting = [str(folder)]
    names: dict[tuple[int, int], list[str]] = {}  # of files with several, by device and number
    while waiting:
        try:
            entries = list(os.scandir(waiting.pop()))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            if entry.is_symlink():
                if not is_inside(entry.path, folder):
                    target = os.readlink(entry.path)
                    raise UserError(entry.path, rule=f"is a link to {target}, out of {folder}", remedy=_REMEDY)
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            elif not entry.is_file(follow_symlinks=False):
                raise UserError(entry.path, rule="is neither a file nor a folder", remedy="remove it")
            elif not entry.name.endswith(_REPLACED):
                state = entry.stat(follow_symlinks=False)
                if state.st_nlink > 1:
                    names.setdefault((state.st_dev, state.st_ino), []).append(entry.path)
    for paths in names.values():
        if os.stat(paths[0], follow_symlinks=False).st_nlink > len(paths):
            raise UserError(
                paths[0], rule=f"is a hard link: the same file has a name outside {folder}", remedy=_HARD_REMEDY
            )


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a file, links followed; a pipe, which could make a reader wait for ever, is none.

    Args:
        path: of the file.
        limit: most bytes that it may have.

    Raises:
        ValueError: it is no regular file, or larger.
        OSError: it cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode):
            raise ValueError(f"{path} is no file")
        if state.st_size > limit:
            raise ValueError(f"{path} is too large")
        with open(handle, "rb", closefd=False) as file:
            return file.read(limit)
    finally:
        os.close(handle)


def open_inside(folder: Path, name: str, flags: int) -> int:
    """Open a file of a folder, following no link on the way from the folder to it.

    Args:
        folder: where to begin.
        name: the file's path from there.
        flags: as for `os.open`.

    Returns:
        its descriptor.

    Raises:
        UserError: a part of the path is a link, or it is no file.
        OSError: it cannot be opened; the error names the whole path.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        *above, last = Path(name).parts
        for part in above:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
            os.close(handle)
            handle = inner
        # Without blocking: a pipe without a reader would wait for ever.
        file = os.open(last, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644, dir_fd=handle)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise UserError(str(folder / name), rule="is no file", remedy=_REMEDY) from None
        error.filename = str(folder / name)  # the system knows the part alone, which it was given
        raise
    finally:
        os.close(handle)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise UserError(str(folder / name), rule="is no file", remedy=_REMEDY)
    return file


def create(path: Path) -> int:
    """Open a new file for writing, in place of whatever had this name; a link there is removed, not followed."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the new one, whole.

    Raises:
        OSError: it cannot be written; the error names the file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(create(temporary), "w", encoding="utf-8") as file:
            file.write(text)
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):  # a full disk is noticed by `write`, which knows no name
            error.filename = str(path)
        raise


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Add the file's name to an error of the system that has none: `write` to a full disk knows only a number."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
