"""What the README of a folder of data may ask for: it may come from anybody, and `datasets` does all that it says."""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recur.errors import UserError

_LARGEST = 16 << 20  # bytes
_MOST_VALUES = 1_000_000  # of a YAML file, those counted again that an alias repeats
_FILES = ("README.md", ".huggingface.yaml")
_FRONT_MATTER = re.compile(r"\s*---[^\S\n]*\r?\n(.*?)\r?\n---[^\S\n]*(\r?\n|$)", re.DOTALL)


def check_card(folder: Path) -> None:
    """Refuse a README that would have something fetched, or that is made to exhaust whoever reads it.

    Raises:
        UserError: names what it asks for.
    """
    for name in _FILES:
        path = folder / name
        if not os.path.lexists(path):
            continue
        state = path.stat()
        if not stat.S_ISREG(state.st_mode) or state.st_size > _LARGEST:
            raise UserError(str(path), rule="is no file of a usual size", remedy="remove it")
        text = path.read_text(encoding="utf-8", errors="replace")
        if name == "README.md":
            front = _FRONT_MATTER.match(text)
            text = front[1] if front else ""
        check_aliases(path, text)
        for place in _places(text):
            if "://" in place or "::" in place:
                raise UserError(
                    str(path), rule=f"names {place[:80]!r}, which is not in its folder", remedy="fetch it yourself"
                )


def check_aliases(path: Path, text: str) -> None:
    """Refuse YAML whose aliases stand for more than a machine can hold.

    Args:
        path: where it stands, for the message.
        text: YAML; what is none is left to whoever reads it.

    Raises:
        UserError: it unfolds to too much, or refers to itself.
    """
    if "*" not in text or "&" not in text:
        return
    import yaml

    try:
        root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        too_large = root is not None and _unfolded(root, {}) > _MOST_VALUES
    except (yaml.YAMLError, ValueError):
        return
    except RecursionError:
        too_large = True
    if too_large:
        raise UserError(
            str(path), rule="has aliases (*) that unfold to more than a million values", remedy="write less"
        )


def _unfolded(node: Any, known: dict[int, int]) -> int:
    """How many values a node stands for; one that stands within itself counts without end."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = _MOST_VALUES + 1  # until it is counted
    inner = node.value if isinstance(node.value, list) else []
    parts = [part for one in inner for part in (one if isinstance(one, tuple) else (one,))]
    known[id(node)] = min(_MOST_VALUES + 1, 1 + sum(_unfolded(part, known) for part in parts))
    return known[id(node)]


def _places(text: str) -> Iterator[str]:
    """Every text in the settings that name files."""
    import yaml

    try:
        content = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 (both are safe)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return
    waiting = [content.get(key) for key in ("configs", "data_files")] if isinstance(content, dict) else []
    while waiting:
        node = waiting.pop()
        if isinstance(node, str):
            yield node
        waiting += list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
