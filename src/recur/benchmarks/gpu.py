"""Every test and benchmark for a GPU in one command: `python -m recur.benchmarks.gpu`, or `make gpu`.

It needs no installation: `PYTHONPATH=src` and torch, numpy, matplotlib and pytest are enough. One JSON file takes the
results; it is written after each part, one that failed or ran out of time too, with its `error`. Without a GPU the same
tests and the quick benchmarks run on the CPU, which shows that they would run, and the file says that nothing was
measured on a GPU.
"""

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
TESTS = ("tests/nn/test_gpu.py",)
LIMIT = 500  # seconds of everything: under nine minutes
SECTIONS = {"engine": 0.85, "loss": 1.0}  # by what share of them each must have ended


def run_tests(limit: float) -> dict[str, Any]:
    """Run the GPU tests; returns each one's outcome, and how many there are of each."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", *TESTS, "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        try:
            done = subprocess.run(command, cwd=ROOT, timeout=limit, check=False)  # noqa: S603
        except subprocess.TimeoutExpired:
            return {"timed_out": True}
        cases = ET.parse(report).getroot().iter("testcase") if report.is_file() else []  # noqa: S314 - our own file
        outcomes = {}
        for case in cases:
            states = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
            outcomes[str(case.get("name"))] = states[0] if states else "passed"
    counts = {state: list(outcomes.values()).count(state) for state in sorted(set(outcomes.values()))}
    return {"counts": counts, "tests": outcomes, "exit_code": done.returncode}


@contextlib.contextmanager
def stopped_at(deadline: float) -> Iterator[None]:
    """Stop what is still running at a time of `time.monotonic`, in the main thread and where the system has alarms.

    Raises:
        TimeoutError: the time has come.
    """

    def stop(*_: Any) -> None:
        raise TimeoutError("no time left")

    left = deadline - time.monotonic()
    if left <= 0:
        stop()
    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, left)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(part: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """What a part measured; where it failed, what it had by then and its `error`: the other parts go on."""
    result: dict[str, Any] = {}
    try:
        part(result)
    except Exception as error:
        traceback.print_exc()
        result["error"] = f"{type(error).__name__}: {error}"
    return result


def describe_machine(device: str, result: dict[str, Any]) -> None:
    """What the figures are taken on."""
    from recur.benchmarks.harness import machine

    result |= machine(device)


def run_section(name: str, device: str, quick: bool, deadline: float, result: dict[str, Any]) -> None:
    """Run a section that is about the device, as long as there is time."""
    from recur.benchmarks import kernels
    from recur.benchmarks.harness import Report, Settings

    report = Report(quick)
    result |= {"bars": report.bars, "tables": report.tables}
    with stopped_at(deadline):
        getattr(kernels, name)(Settings(quick=quick, repeats=2 if quick else 5, device=device), report)


def run_all(record: dict[str, Any], quick: bool, write: Callable[[], None]) -> bool:
    """Run every part, and write after each what there is by then.

    Args:
        record: to fill.
        quick: small shapes.
        write: the record.

    Returns:
        whether a test failed, or a part did.
    """
    began = time.monotonic()
    device = "cuda" if record["measured_on_a_gpu"] else "cpu"
    bench: dict[str, Any] = {}
    parts: dict[str, Callable[[dict[str, Any]], Any]] = {
        "tests": lambda result: result.update(run_tests(LIMIT / 2)),
        "machine": partial(describe_machine, device),
        **{name: partial(run_section, name, device, quick, began + share * LIMIT) for name, share in SECTIONS.items()},
    }
    for name, part in parts.items():
        (record if name == "tests" else bench)[name] = attempt(part)
        record |= {"bench": bench, "seconds": round(time.monotonic() - began, 1)}
        write()
    tests = record["tests"]  # the exit code is pytest's own, also where it was aborted
    return tests.get("exit_code") != 0 or any("error" in result for result in bench.values())


def main() -> int:
    """Entry point. Exit code 1 where a test or another part failed."""
    import torch

    parser = argparse.ArgumentParser(description="Test and measure on a GPU; without one, show that it would run.")
    parser.add_argument("--out", default="outputs/gpu.json", help="file of the results")
    parser.add_argument("--quick", action="store_true", help="small shapes, as without a GPU")
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    path = Path(arguments.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"measured_on_a_gpu": on_gpu}

    def write() -> None:
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    failed = run_all(record, arguments.quick or not on_gpu, write)
    print(f"\nwritten: {path} ({'on a GPU' if on_gpu else 'a dry run on a CPU: nothing was measured on a GPU'})")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
