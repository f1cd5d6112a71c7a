"""The mark of a job: a small file in its folder that says which sweep made the folder, and for what settings.

A sweep deletes and reuses only folders with its own mark, and a job whose lines in the sweep's journal are lost is
still known by its mark.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from recur.runs.files import read_regular, write_atomic

NAME = ".recur-job.json"
_LONGEST = 1 << 20  # bytes
_KEY = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Mark:
    """What a mark says.

    Attributes:
        sweep: the key of the sweep, 32 hexadecimal digits.
        job: its number in the sweep.
        overrides: its settings, as typed.
    """

    sweep: str
    job: int
    overrides: tuple[str, ...]


def is_key(text: object) -> bool:
    """Whether this can be the key of a sweep."""
    return isinstance(text, str) and _KEY.fullmatch(text) is not None


def write_mark(folder: Path, mark: Mark) -> None:
    """Mark a job's folder, which exists."""
    content = {"sweep": mark.sweep, "job": mark.job, "overrides": list(mark.overrides)}
    write_atomic(folder / NAME, json.dumps(content, ensure_ascii=False) + "\n")


def read_mark(folder: Path) -> Mark | None:
    """The mark of a folder; None where there is none or it is damaged."""
    try:
        if folder.is_symlink() or (folder / NAME).is_symlink():
            return None
        content = json.loads(read_regular(folder / NAME, _LONGEST))
        mark = Mark(content["sweep"], content["job"], tuple(content["overrides"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    whole = is_key(mark.sweep) and type(mark.job) is int and mark.job >= 0
    return mark if whole and all(isinstance(text, str) for text in mark.overrides) else None


def holds_nothing(folder: Path) -> bool:
    """Whether a folder is empty but for a mark that a kill or a power cut has kept from being written."""
    for entry in folder.iterdir():
        unfinished = entry.name.startswith(f".{NAME}.") or (entry.name == NAME and entry.stat().st_size == 0)
        if not unfinished:
            return False
    return True


def marked_folders(sweep_folder: Path, key: str) -> dict[int, tuple[Path, Mark]]:
    """The folders inside a sweep's folder that carry its mark, by the number of the job."""
    marked = {}
    for pattern in (f"*/{NAME}", f"*/*/{NAME}"):  # hydra.sweep.subdir may have two parts
        for file in sorted(sweep_folder.glob(pattern)):
            mark = read_mark(file.parent)
            if mark is not None and mark.sweep == key:
                marked[mark.job] = (file.parent, mark)
    return marked
