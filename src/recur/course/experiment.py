"""From a claim to its observations: an ordinary sweep in processes of its own, or a function called once a seed.

Both resume. A folder is named after what is run, so a changed claim begins another one; a function or a probe whose
file has changed is called again.
"""

import hashlib
import importlib
import inspect
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from recur.cli import ECHO, handling
from recur.course.claim import Claim, Sweep, is_place
from recur.course.verdict import Observation
from recur.errors import UserError
from recur.runs import journal
from recur.runs.files import write_atomic
from recur.runs.folder import NOT_FINITE
from recur.runs.limits import read_yaml
from recur.runs.metrics import metric, metric_names, provenance, read_record

_SAID_NOT_FINITE = re.compile(r"loss \S+, gradient norm \S+ at step \d")
_ORIGIN = ("commit", "python", "versions", "device", "threads")  # the keys of `provenance`


def command(claim: Claim, folder: Path) -> list[str]:
    """What anyone could type to run the claim's sweep into `folder`."""
    from recur.config.words import quoted

    sweep = claim.sweep
    assert sweep is not None
    words = [*sweep.base]
    cases = [list(words) for words in sweep.arms.values()]
    if cases != [[]]:
        lists = ",".join("[" + ",".join(json.dumps(word, ensure_ascii=False) for word in case) + "]" for case in cases)
        words.append(f"hydra.sweeper.cases=[{lists}]")
    if sweep.vary:
        words.append(f"{sweep.vary}={','.join(sweep.values)}")
    words.append(f"seed={','.join(str(seed) for seed in sweep.seeds)}")
    words.append(f"hydra.sweep.dir={quoted(str(folder))}")
    return ["python", "-m", "recur.train", "-m", *words]


def shown_command(claim: Claim, further: int = 0) -> str:
    """What a reader types to run the claim again, also on so many further seeds."""
    parts = ["python -m recur.claims", claim.name, *(["--quick"] if claim.quick else []), claim.needs]
    parts += [f"--further {further}"] if further else []
    return " ".join(part for part in parts if part)


def observe(claim: Claim, out: Path, extra: Sequence[str] = ()) -> tuple[list[Observation], float]:
    """Run what is missing of a claim and read it all.

    Args:
        claim: the claim.
        out: folder of all claims.
        extra: overrides of every run, such as `data.path=FOLDER`.

    Returns:
        the observations, and the seconds of computing that they took, now or earlier.

    Raises:
        UserError: a run failed where failures are no observations, or the sweep did not come to its end.
        KeyboardInterrupt: it was stopped.
    """
    folder = _folder(claim, out)
    folder.mkdir(parents=True, exist_ok=True)
    if claim.function is not None:
        return _call(claim, folder)
    _run_sweep(claim, folder / "sweep", extra)
    return _read_sweep(claim, folder / "sweep")


def origins(claim: Claim, out: Path) -> list[dict[str, Any]]:
    """Where and when each run of a claim, or each call of its function, was measured, the oldest first.

    Each has what `recur.runs.metrics.provenance` says, and `when` in seconds since 1970; those that do not say so are
    left out.
    """
    folder, places = _folder(claim, out), []
    if claim.function is not None:
        for seed in claim.function.seeds:
            content = json.loads((folder / f"seed-{seed}.json").read_text(encoding="utf-8"))
            places.append({key: content[key] for key in (*_ORIGIN, "when") if key in content})
    else:
        sweep = folder / "sweep"
        ends = {event["job"]: event for event in journal.read(sweep) if event["event"] == "end"}
        for job, start in _starts(sweep).items():
            record = read_record(sweep / start["folder"]) or {}
            own = {key: record[key] for key in _ORIGIN if key in record}
            places.append({**own, "when": ends.get(job, start).get("time")})
    whole = [one for one in places if all(key in one for key in _ORIGIN) and isinstance(one.get("when"), (int, float))]
    return sorted(whole, key=lambda one: one["when"])


def _folder(claim: Claim, out: Path) -> Path:
    return out / claim.name / f"{claim.key}{'-quick' if claim.quick else ''}"


# ---------------------------------------------------------------------------------------------------------- functions


def _function(name: str, package: str = "recur.course") -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(f"{package}.{module}"), attribute)


def _source(function: Any) -> str:
    """Hash of the file that a function stands in."""
    return hashlib.blake2b(Path(inspect.getfile(function)).read_bytes(), digest_size=8).hexdigest()


def _call(claim: Claim, folder: Path) -> tuple[list[Observation], float]:
    assert claim.function is not None
    observations: list[Observation] = []
    total = 0.0
    function = _function(claim.function.name)
    source = _source(function)
    for seed in claim.function.seeds:
        path = folder / f"seed-{seed}.json"
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if content.get("source") != source:  # several claims ask their reader to change the function
            began = time.perf_counter()
            rows = function(seed=seed, **claim.function.arguments)
            content = {"seconds": time.perf_counter() - began, "rows": rows, "when": time.time(), "source": source}
            write_atomic(path, json.dumps({**content, **provenance()}, indent=1) + "\n")
        total += content["seconds"]
        for row in content["rows"]:
            measures = {key: float(value) for key, value in row.items() if key not in ("arm", "x", "curve")}
            observations.append(Observation(row["arm"], seed, str(row.get("x", "")), measures, row.get("curve", ())))
    return observations, total


# ------------------------------------------------------------------------------------------------------------- sweeps


def _run_sweep(claim: Claim, folder: Path, extra: Sequence[str]) -> None:
    """Start the sweep, or go on with it, until every run has ended.

    Raises:
        UserError: there are runs on other data, or runs are missing in the end, and not because one failed, of which
            `_read_sweep` says more.
        KeyboardInterrupt: it was stopped.
    """
    from recur.config.words import quoted

    assert claim.sweep is not None
    if (folder / journal.NAME).is_file():
        missing = _missing(claim.sweep, folder)
        _check_data(claim, folder, extra, missing=missing)
        if not missing:
            return
        extra = _as_begun(folder, extra)
        again = [f"resume={quoted(str(folder))}"]
    else:
        again = []
    words = [*command(claim, folder)[1:], *extra, *again]
    with (folder.parent / "sweep.log").open("a", encoding="utf-8") as log:
        print("$", shlex.join(["python", *words]), file=log, flush=True)
        code = _exit_code(words, log)
    begun = (folder / journal.NAME).is_file()
    if begun and not _missing(claim.sweep, folder):
        return
    if begun and code == 1 and set(_failures(folder)) - _observed_failures(claim.sweep, folder):
        return
    last = (folder.parent / "sweep.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1]
    how = "run to its end" if begun else "run"
    raise UserError(claim.name, rule=f"could not be {how} (exit code {code})", remedy=last[:300])


def _exit_code(words: Sequence[str], log: TextIO) -> int:
    """Run Python with these words to its end.

    A signal goes to it alone, once: it stops its jobs, which save what they have, and a second one would end them. So
    it has a process group of its own, which a terminal's Ctrl-C and end do not reach.

    Raises:
        KeyboardInterrupt: it was stopped, or was to be.
    """
    heard: list[int] = []
    times: list[float] = []
    started: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: Any) -> None:
        heard.append(number)
        times.append(time.monotonic())
        if len(times) > 1 and times[-1] - times[0] < ECHO:  # a terminal that is closed sends it twice
            return
        for process in started:
            process.send_signal(number)

    with handling(pass_on, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        started.append(process)
        for number in heard[:1]:  # which came before there was a process
            process.send_signal(number)
        code = process.wait()
    if heard or code in (129, 130, 143, -1, -2, -15):
        raise KeyboardInterrupt
    return code


def _as_begun(folder: Path, extra: Sequence[str]) -> list[str]:
    """What was typed, with the places of data as the sweep has them: spelled otherwise it would be another sweep.

    A path that leads elsewhere from here stays as it was typed, and is refused as that.
    """
    space = journal.read(folder)[0].get("space")
    fixed = space.get("fixed") if isinstance(space, dict) else None
    words = [str(word) for word in fixed.values() if is_place(str(word))] if isinstance(fixed, dict) else []
    begun = {word.partition("=")[0]: word for word in words}
    typed = {word.partition("=")[0]: word for word in extra if is_place(word)}
    path = typed.get("data.path")
    if path is not None and _leads_to(path) != _leads_to(begun.get("data.path", "")):
        begun["data.path"] = path
    elif path is None:
        begun.pop("data.path", None)
    return [*(word for word in extra if not is_place(word)), *begun.values()]


def _leads_to(word: str) -> str:
    """The file or folder that an override names, from here."""
    return os.path.realpath(os.path.expanduser(word.partition("=")[2].strip("'\"")))


def _check_data(claim: Claim, folder: Path, extra: Sequence[str], *, missing: bool) -> None:
    """Refuse to give out runs on other data than what is typed for the claim. Where the cache lies is no matter.

    Data that was moved will do where no run is missing.

    Raises:
        UserError: names both.
    """
    typed = next((word.partition("=")[2].strip("'\"") for word in extra if word.startswith("data.path=")), "")
    if not typed:
        return
    for start in _starts(folder).values():
        try:
            before = read_yaml(folder / start["folder"] / "config.yaml")["data"]["path"]
        except (OSError, ValueError, KeyError, TypeError):  # it was refused before it began
            continue
        same = os.path.realpath(str(before)) == os.path.realpath(os.path.expanduser(typed))
        if not same and (missing or os.path.exists(str(before))):
            rule = f"is other data than {claim.name} ran on, which was {before}"
            raise UserError(f"data.path={typed}", rule=rule, remedy="choose another folder with --out")


def _starts(folder: Path) -> dict[int, dict[str, Any]]:
    return {event["job"]: event for event in journal.read(folder) if event["event"] == "start"}


def _failures(folder: Path) -> dict[int, dict[str, Any]]:
    """The last event of each job that failed and was not started again since."""
    last = {event["job"]: event for event in journal.read(folder) if event["event"] in ("start", "end")}
    return {job: event for job, event in last.items() if event["event"] == "end" and event["state"] == "failed"}


def _observed_failures(sweep: Sweep, folder: Path) -> set[int]:
    """The jobs whose failure is an observation: those that met a number that is not finite, where the claim asks.

    Runs of earlier versions have no file that says so, but their sweep has what they said last.
    """
    starts, failed = _starts(folder), _failures(folder) if sweep.failures else {}
    return {
        job
        for job, event in failed.items()
        if (job in starts and (folder / starts[job]["folder"] / NOT_FINITE).is_file())
        or _SAID_NOT_FINITE.search(str(event.get("reason", "")))
    }


def _missing(sweep: Sweep, folder: Path) -> bool:
    """Whether runs are missing; one whose failure is an observation counts as done."""
    done = {job for job, start in _starts(folder).items() if read_record(folder / start["folder"]) is not None}
    done |= _observed_failures(sweep, folder)
    return len(done) < len(sweep.arms) * max(1, len(sweep.values)) * len(sweep.seeds)


def _read_sweep(claim: Claim, folder: Path) -> tuple[list[Observation], float]:
    sweep = claim.sweep
    assert sweep is not None
    failures, observed = _failures(folder), _observed_failures(sweep, folder)
    probe = _function(f"probes.{sweep.probe}") if sweep.probe else None
    observations: list[Observation] = []
    total = 0.0
    for job, start in sorted(_starts(folder).items()):
        words = [str(word) for word in start["overrides"]]
        arm, x, seed = _place(sweep, words)
        run = folder / start["folder"]
        record = read_record(run)
        if record is None:
            if job not in failures:  # killed, or stopped with its sweep: that says nothing of its settings
                raise UserError(f"{claim.name}: run {job} ({arm})", rule="has not ended", remedy=f"see {run}")
            reason = str(failures[job].get("reason", ""))
            if job not in observed:  # a full disk, say: that says nothing of its settings either
                raise UserError(f"{claim.name}: run {job} ({arm})", rule=f"failed: {reason}", remedy=f"see {run}")
            total += float(failures[job].get("seconds", 0.0))
            observations.append(Observation(arm, seed, x, {"failed": 1.0}, _curve(run), reason))
            continue
        measures = {name: value for name in metric_names(record) if (value := metric(record, name)) is not None}
        total += float(measures.get("wall_seconds", 0.0))
        curve: Sequence[Mapping[str, float]] = _curve(run)
        if probe is not None:
            more, points = _probed(probe, run, sweep.probe)
            measures, curve = {**measures, **more}, points or curve
        observations.append(Observation(arm, seed, x, {**measures, "failed": 0.0}, curve))
    return observations, total


def _probed(probe: Any, run: Path, name: str) -> tuple[dict[str, float], list[dict[str, float]]]:
    """What a probe measured on a run; read again where the same probe has measured it before."""
    path, source = run / f"probe-{name}.json", _source(probe)
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not content or content.get("source", source) != source:  # earlier versions did not keep it
        measures, curve = probe(run)
        content = {"measures": measures, "curve": curve, "source": source}
        write_atomic(path, json.dumps(content) + "\n")
    return content["measures"], content["curve"]


def _place(sweep: Sweep, words: Sequence[str]) -> tuple[str, str, int]:
    """The arm, the x value and the seed of a run, by its overrides."""
    seed = next(int(word.removeprefix("seed=")) for word in words if word.startswith("seed="))
    x = next((word.partition("=")[2] for word in words if sweep.vary and word.startswith(f"{sweep.vary}=")), "")
    # Of a setting that is given twice the last is in force.
    last = {word.partition("=")[0].lstrip("+~"): word for word in words}
    fits = [arm for arm, own in sweep.arms.items() if all(word in last.values() for word in own)]
    if not fits:
        raise UserError(" ".join(words), rule="fits no arm", remedy="quote it in the claim's file as Hydra reads it")
    return max(fits, key=lambda arm: len(sweep.arms[arm])), x, seed


def _curve(run: Path) -> list[dict[str, float]]:
    return [
        {"epoch": entry["epoch"], "step": entry["step"], **{k: v for k, v in entry["metrics"].items() if v is not None}}
        for entry in journal.read_validations(run)
    ]
