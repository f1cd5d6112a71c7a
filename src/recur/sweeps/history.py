"""`history.jsonl`: what every validation of a run said, one JSON object a line. A sweep watches its jobs by it."""

import json
import os
from pathlib import Path
from typing import Any

VALIDATIONS = "history.jsonl"


def read_validations(folder: Path) -> list[dict[str, Any]]:
    """The validations of a run in the order of their steps; a step that a resumed run took again counts once.

    Each has `step`, `epoch` (1.5: in the middle of the second), `done` (part of the whole run), `seconds` (spent by the
    process so far) and `metrics`, by name.
    """
    try:
        lines = (folder / VALIDATIONS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    steps: dict[int, dict[str, Any]] = {}
    for line in lines:
        try:
            entry = json.loads(line)
            entry["epoch"] = float(entry["epoch"])
            if isinstance(entry["metrics"], dict):
                steps[int(entry["step"])] = entry
        except (ValueError, KeyError, TypeError):
            continue
    return [steps[step] for step in sorted(steps)]


def append_validation(folder: Path, entry: dict[str, Any]) -> None:
    """Add one validation with a single write."""
    file = os.open(folder / VALIDATIONS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, (json.dumps(entry) + "\n").encode())
    finally:
        os.close(file)
