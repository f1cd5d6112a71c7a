"""The record of a sweep: `sweep.jsonl` in its folder, one JSON object a line, only ever added to.

    {"event": "sweep", ...}   first line: what the sweep is
    {"event": "start", "job": 3, "overrides": [...], "folder": "3", "place": "gpu 1", "time": ...}
    {"event": "end", "job": 3, "state": "done" | "pruned" | "failed" | "stopped", "seconds": ..., "reason": ...}
    {"event": "extended", "jobs": 6, "argv": [...]}  the sweep was resumed by a command with settings of its own

Whether a run is complete is seen from its own `metrics.json`; the journal says what there should be.
"""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from recur.errors import UserError
from recur.runs.files import is_inside, naming, open_inside, read_regular, write_atomic
from recur.runs.limits import JSON_BYTES, parse_json

VALIDATIONS = "history.jsonl"
NAME = "sweep.jsonl"
FORMAT = 1
# What `read` checks of each event.
_FIELDS: dict[str, dict[str, type]] = {
    "sweep": {"monitor": str, "mode": str},
    "start": {"job": int, "overrides": list, "folder": str},
    "end": {"job": int, "state": str},
    "extended": {"jobs": int, "argv": list},
}


class Journal:
    """`sweep.jsonl`, opened for adding.

    Args:
        folder: the sweep's folder, made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / NAME
        self._file = open_inside(folder, NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND)

    @classmethod
    def begin(cls, folder: Path, **header: Any) -> "Journal":
        """A new one with its first line: the file appears with it or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / NAME, _line("sweep", header))
        return cls(folder)

    def add(self, event: str, **fields: Any) -> None:
        """Add one line with a single write: a kill leaves the whole line or none of it."""
        with naming(self.path):
            _add_line(self._file, _line(event, fields))

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def _add_line(file: int, line: str) -> None:
    """Add a line to an open file; one that was cut before, by a power failure or a full disk, stays apart."""
    size = os.fstat(file).st_size
    torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
    data = (b"\n" if torn else b"") + line.encode()
    while data:  # where not all of it was taken, the next write raises what is in its way
        data = data[os.write(file, data) :]


def _line(event: str, fields: dict[str, Any]) -> str:
    return json.dumps({"event": event, **fields, "time": round(time.time(), 3)}, ensure_ascii=False) + "\n"


def read(folder: Path) -> list[dict[str, Any]]:
    """The events of a sweep, oldest first; a torn line is passed over.

    Raises:
        UserError: the folder is no sweep, or one of a newer format.
    """
    path = folder / NAME
    if not folder.exists():
        raise UserError("", rule=f"there is no sweep at {folder}")
    if not path.is_file():
        raise UserError(str(folder), rule=f"is not a sweep: it has no {NAME}", remedy="a sweep is what `-m` makes")
    try:
        text = read_regular(path, JSON_BYTES).decode("utf-8", "replace")
    except ValueError as error:
        raise UserError(str(path), rule="is damaged", remedy=str(error)) from None
    events = []
    for line in text.split("\n"):  # `splitlines` cuts at U+2028 too, which JSON leaves as it is in a text
        try:
            event = parse_json(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            events.append(event)
    if not events or events[0]["event"] != "sweep":
        raise UserError(str(path), rule="does not begin with a sweep", remedy="it is damaged")
    written = events[0].get("format", 0)
    if not isinstance(written, int) or written > FORMAT:
        raise UserError(str(path), rule=f"has format {written}, this version reads up to {FORMAT}")
    for number, event in enumerate(events, start=1):
        needed = _FIELDS.get(str(event["event"]), {})
        wrong = next((key for key, kind in needed.items() if not isinstance(event.get(key), kind)), None)
        if wrong is None and not isinstance(event.get("space", {}), dict):
            wrong, needed = "space", {"space": dict}
        if wrong is not None:
            what = f"event {number} ({event['event']}) has {wrong} {event.get(wrong)!r}"
            raise UserError(str(path), rule=f"is damaged: {what}, which must be {needed[wrong].__name__}")
        if "job" in needed and (isinstance(event["job"], bool) or not 0 <= event["job"] < 2**31):
            what = f"event {number} has job {event['job']}, which is no number of a job"
            raise UserError(str(path), rule=f"is damaged: {what}")
        if "folder" in needed and not (_is_name(event["folder"]) and is_inside(folder / event["folder"], folder)):
            what = f"event {number} has folder {event['folder']!r}, which leads out of {folder}"
            raise UserError(str(path), rule=f"is damaged: {what}")
    return events


def last_typed(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The first line of a sweep's events, with the number of jobs and the command that were typed last."""
    header = dict(events[0])
    for event in events:
        if event["event"] == "extended":
            header |= {key: event[key] for key in ("jobs", "argv", "command") if key in event}
    return header


def _is_name(text: str) -> bool:
    """Whether a text can be the path of a file at all."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def read_validations(folder: Path) -> list[dict[str, Any]]:
    """The validations of a run in the order of their steps; a step that a resumed run took again counts once.

    Each has `step`, `epoch` (1.5: in the middle of the second), `done` (part of the whole run), `seconds` (spent by the
    process so far) and `metrics`, by name. `training` says that its training figures are of the epoch so far; without
    it they are of the epoch before, as earlier versions wrote them.
    """
    try:
        lines = read_regular(folder / VALIDATIONS, JSON_BYTES).decode("utf-8", "replace").split("\n")
    except (OSError, ValueError):
        return []
    steps: dict[int, dict[str, Any]] = {}
    for line in lines:
        try:
            entry = parse_json(line)
            entry["epoch"] = float(entry["epoch"])
            if isinstance(entry["metrics"], dict) and math.isfinite(entry["epoch"]):
                steps[int(entry["step"])] = entry
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
    return [steps[step] for step in sorted(steps)]


def append_validation(folder: Path, entry: dict[str, Any]) -> None:
    """Add one validation with a single write."""
    file = open_inside(folder, VALIDATIONS, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    try:
        with naming(folder / VALIDATIONS):
            _add_line(file, json.dumps(entry) + "\n")
    finally:
        os.close(file)


def cut_validations(folder: Path, last: int) -> None:
    """Leave out the validations after a step: a run that goes on from there may validate at other steps than before."""
    try:
        lines = read_regular(folder / VALIDATIONS, JSON_BYTES).decode("utf-8", "replace").splitlines()
    except (OSError, ValueError):
        return
    kept = [line for line in lines if _step(line) <= last]
    if len(kept) < len(lines):
        write_atomic(folder / VALIDATIONS, "".join(f"{line}\n" for line in kept))


def _step(line: str) -> float:
    """The step of a validation's line; infinity for a line that is none."""
    try:
        return int(parse_json(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return math.inf
