"""Every test and benchmark for a GPU in one command: `python -m recur.benchmarks.gpu`, or `make gpu`.

It needs no installation: `PYTHONPATH=src` and torch, numpy, matplotlib and pytest are enough. One JSON file takes the
results. Without a GPU the same tests and the quick benchmarks run on the CPU, which shows that they would run, and the
file says that nothing was measured on a GPU.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
TESTS = ("tests/nn/test_gpu.py",)
SECTIONS = ("engine", "loss")
LIMIT = 500  # seconds of everything: under nine minutes


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


def run_benchmarks(device: str, quick: bool, deadline: float) -> dict[str, Any]:
    """Run the sections that are about the device, as long as there is time."""
    from recur.benchmarks import kernels
    from recur.benchmarks.harness import Report, Settings, machine

    results: dict[str, Any] = {"machine": machine(device)}
    settings = Settings(quick=quick, repeats=2 if quick else 5, device=device)
    for name in SECTIONS:
        if time.monotonic() > deadline:
            results[name] = "no time left"
            continue
        report = Report(quick)
        getattr(kernels, name)(settings, report)
        results[name] = {"bars": report.bars, "tables": report.tables}
    return results


def main() -> int:
    """Entry point. Exit code 1 where a test failed."""
    import torch

    parser = argparse.ArgumentParser(description="Test and measure on a GPU; without one, show that it would run.")
    parser.add_argument("--out", default="outputs/gpu.json", help="file of the results")
    parser.add_argument("--quick", action="store_true", help="small shapes, as without a GPU")
    arguments = parser.parse_args()
    began = time.monotonic()
    on_gpu = torch.cuda.is_available()
    record: dict[str, Any] = {"measured_on_a_gpu": on_gpu, "tests": run_tests(LIMIT / 2)}
    quick = arguments.quick or not on_gpu
    record["bench"] = run_benchmarks("cuda" if on_gpu else "cpu", quick, began + LIMIT * 0.8)
    record["seconds"] = round(time.monotonic() - began, 1)
    path = Path(arguments.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten: {path} ({'on a GPU' if on_gpu else 'a dry run on a CPU: nothing was measured on a GPU'})")
    tests = record["tests"]
    return int(tests.get("timed_out", False) or tests["exit_code"] != 0)  # pytest's own, also where it was aborted


if __name__ == "__main__":
    sys.exit(main())
