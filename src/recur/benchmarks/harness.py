"""How the benchmarks time: rivals in alternation, ratios of medians, tables, JSON and a plot."""

import contextlib
import io
import json
import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from recur.errors import UserError
from recur.runs.metrics import provenance

Times = dict[str, list[float]]
# Tokens of the 25,000 IMDB training reviews under `basic_english`: the shortest of each 1/64 of them, then the tail.
IMDB_LENGTHS = (
    *(11, 54, 64, 73, 83, 92, 102, 112, 119, 124, 129, 133, 136, 139, 142, 145, 147, 150, 153, 156, 158, 161, 164, 167),
    *(170, 174, 178, 181, 185, 189, 193, 198, 202, 207, 213, 218, 223, 230, 236, 243, 250, 258, 266, 275, 284, 294),
    *(304, 316, 329, 342, 357, 371, 390, 407, 427, 452, 479, 507, 543, 584, 637, 706, 804, 961),
    *(1049, 1113, 1160, 1247, 2752),
)
IMDB_SHARES = (*(i / 64 for i in range(64)), 0.99, 0.994, 0.997, 0.999, 1.0)


@dataclass(frozen=True)
class Settings:
    """What a benchmark is to do.

    Attributes:
        quick: small shapes, to try it; no bar is judged.
        repeats: rounds of each race.
        device: cpu or cuda.
        imdb: folder of the real reviews; None for the embedded lengths.
        wikitext: folder or hub id of WikiText.
        out: folder to write to.
    """

    quick: bool
    repeats: int
    device: str
    imdb: str | None = None
    wikitext: str | None = None
    out: str = "outputs/bench"


def usable_device(name: str) -> str:
    """`cpu` or `cuda` by name; `auto` takes a GPU where there is one.

    Raises:
        UserError: another name, or there is no GPU.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise UserError("--device", name, "must be cpu, cuda (where there is one) or auto")
    return name


# -- how things are measured -------------------------------------------------------------------------------------------
class Report:
    """What a section measured: tables as lists of rows, and bars met or missed."""

    def __init__(self, quick: bool) -> None:
        self.quick = quick  # too small to judge by
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.bars: list[dict[str, Any]] = []

    def table(self, title: str, rows: list[dict[str, Any]]) -> None:
        """Keep a table and print it as Markdown."""
        self.tables[title] = rows
        names = list(dict.fromkeys(name for row in rows for name in row))
        print(f"\n**{title}**\n\n| {' | '.join(names)} |\n|{'---|' * len(names)}")
        for row in rows:
            print("| " + " | ".join(_figure(row.get(name, "")) for name in names) + " |", flush=True)

    def bar(self, name: str, measured: float, bar: float, *, at_most: bool = False) -> None:
        """Keep a bar: at least `bar`, or at most."""
        met = None if self.quick else bool(measured <= bar if at_most else measured >= bar)
        self.bars.append({"name": name, "measured": measured, "bar": f"{'<=' if at_most else '>='} {bar}", "met": met})

    def print_bars(self) -> None:
        """Say which targets were met."""
        for bar in self.bars:
            verdict = {True: "met", False: "MISSED", None: "not judged"}[bar["met"]]
            print(f"\n- {verdict}: {bar['name']}: {_figure(bar['measured'])} (target {bar['bar']})", end="")
        print(flush=True)


def _figure(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


class Record:
    """`bench.json` and `bench.png` of a folder, quick ones of `quick` in it; sections measured before stay.

    Args:
        settings: of the benchmarks.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings, self._folder = settings, Path(settings.out, "quick" if settings.quick else "")
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path = self._folder / "bench.json"
        self._content = json.loads(self._path.read_text()) if self._path.is_file() else {"sections": {}}
        print(f"# recur.bench\n\n{describe(machine(settings.device))}")

    def measure(self, name: str, section: Callable[[Settings, "Report"], None]) -> None:
        """Measure a section, print it and write it down."""
        print(f"\n## {name}", flush=True)
        facts = machine(self._settings.device)  # with the load before this one
        began = time.perf_counter()
        report = Report(self._settings.quick)
        section(self._settings, report)
        if report.tables or report.bars:  # one that lacks what it measures leaves what was measured before
            self._content["sections"][name] = {
                "machine": facts,
                "commit": provenance()["commit"],
                "quick": self._settings.quick,
                "repeats": self._settings.repeats,
                "seconds": round(time.perf_counter() - began, 1),
                "when": time.strftime("%Y-%m-%d %H:%M:%S"),
                "bars": report.bars,
                "tables": report.tables,
            }
        report.print_bars()
        self._path.write_text(json.dumps(self._content, indent=1) + "\n", encoding="utf-8")

    def close(self) -> None:
        """Draw the plot."""
        draw(self._content, self._folder / "bench.png")
        print(f"\nwritten: {self._path} and {self._folder / 'bench.png'}")


def machine(device: str) -> dict[str, Any]:
    """What the figures were taken on."""
    import torch

    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        model = names[0] if names else model
    facts = {
        "device": device,
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vector": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = torch.version.cuda
    return facts


def describe(facts: dict[str, Any]) -> str:
    """One line about the machine."""
    gpu = f"{facts['gpu']}, CUDA {facts['cuda']}; " if "gpu" in facts else ""
    return (
        f"{gpu}{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads, {facts['vector']}; "
        f"torch {facts['torch']}, Python {facts['python']}; load {facts['load']} at the start"
    )


def race(rivals: dict[str, Callable[[], Any]], repeats: int, device: str, *, warm: bool = True) -> Times:
    """Time each rival `repeats` times, in turn, so that whatever else the machine does meets them alike."""
    import torch

    def once(run: Callable[[], Any]) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    if warm:
        for run in rivals.values():
            run()
    times: Times = {name: [] for name in rivals}
    for _ in range(repeats):
        for name, run in rivals.items():
            times[name].append(once(run))
    return times


def ratio(times: Times, slower: str, faster: str) -> float:
    """How many times as long `slower` took: the median over rounds, each a pair taken one after the other."""
    return statistics.median(a / b for a, b in zip(times[slower], times[faster], strict=True))


def spread(values: Sequence[float]) -> str:
    """Slowest and fastest against the median, in percent."""
    middle = statistics.median(values)
    return f"-{100 * (1 - min(values) / middle):.0f}/+{100 * (max(values) / middle - 1):.0f} %"


def matrix_products(
    device: str, bf16: bool = False, *, recurrent: bool = False
) -> tuple[dict[str, Callable[[], Any]], float]:
    """Large products to compare with, by every library that torch has for this precision, and their operations.

    Args:
        device: cpu or cuda.
        bf16: of bfloat16 operands, else float32.
        recurrent: what is compared is a recurrence, which on a GPU may multiply in TF32.
    """
    import torch

    from recur.nn.costs import precision_of_cudnn

    size, count = (2048, 4) if device == "cpu" else (8192, 4)
    dtype = torch.bfloat16 if bf16 else torch.float32
    a, b = torch.randn(size, size, device=device).to(dtype), torch.randn(size, size, device=device).to(dtype)

    def repeated(product: Callable[..., Any], *rest: Any) -> Callable[[], Any]:
        def run() -> None:
            with precision_of_cudnn() if recurrent else contextlib.nullcontext():
                for _ in range(count):
                    product(a, b, *rest)

        return run

    word = "bfloat16" if bf16 else "float32"
    runs = {f"torch.mm, {word}": repeated(torch.mm)}
    if device == "cpu" and torch.backends.mkldnn.is_available() and not bf16:
        onednn = getattr(torch.ops.mkldnn, "_linear_pointwise")  # noqa: B009 - `torch.mm` takes it for bfloat16 alone
        runs[f"oneDNN, {word}"] = repeated(onednn, None, "none", [], "")
    return runs, 2.0 * size**3 * count


def best_rate(times: Times, runs: Iterable[str], operations: float) -> float:
    """Operations a second of the fastest of `runs`."""
    return operations / min(statistics.median(times[name]) for name in runs)


def imdb_lengths(settings: Settings) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Lengths of the IMDB training reviews: read from the given data, else from the embedded distribution."""
    import numpy as np

    if settings.imdb:
        data = _imdb(settings.imdb)
        return np.asarray(data.texts("train").lengths, dtype=np.int64)
    ranks = (np.arange(25_000) + 0.5) / 25_000
    return np.interp(ranks, IMDB_SHARES, IMDB_LENGTHS).round().astype(np.int64)


def _imdb(path: str) -> Any:
    from recur.data.sentiment import SentimentData

    data = SentimentData(
        path, max_length=None, val_fraction=0.1, tokenizer={"kind": "basic_english", "min_frequency": 2}
    )
    data.prepare_data()
    data.setup("fit")
    return data


def pack_lengths(lengths: Sequence[int], features: int, device: str = "cpu") -> "PackedSequence":
    """Random rows for sequences of these lengths, packed."""
    import torch
    from torch.nn.utils.rnn import PackedSequence

    order = sorted((int(n) for n in lengths), reverse=True)
    sizes = [sum(n > t for n in order) for t in range(order[0])]
    rows = torch.randn(sum(order), features, device=device, requires_grad=True)
    return PackedSequence(rows, torch.tensor(sizes))


def backward(output: "Tensor") -> None:
    """A backward pass from a gradient of ones."""
    import torch

    output.backward(torch.ones_like(output))


def peak_bytes(run: Callable[[], Any], device: str) -> int:
    """Most bytes that tensors made during `run` held at once."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    held = peak = 0
    assert profile.profiler is not None
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def synchronize(tensor: "Tensor") -> None:
    """Wait until a GPU has done what led to this tensor."""
    import torch

    if tensor.is_cuda:
        torch.cuda.synchronize()


# -- plot --------------------------------------------------------------------------------------------------------------
def draw(record: dict[str, Any], path: Path) -> None:
    """Useful rates of the recurrence, and every bar with what was measured."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    bars = [bar for section in record["sections"].values() for bar in section["bars"]]
    tables = record["sections"].get("engine", {}).get("tables", {})
    rows: list[dict[str, Any]] = next(iter(tables.values()), [])
    figure, axes = plt.subplots(1, 2, figsize=(13, max(3.0, 0.3 * max(len(rows), len(bars)))), layout="constrained")
    names = [f"{row['batch']}: {row['']}" for row in rows]
    shares = [row["of the best library's rate"] for row in rows]
    axes[0].barh(names, shares, color=["#1f6f8b" if str(row[""]).startswith("recur") else "#b8bfc6" for row in rows])
    axes[0].invert_yaxis()
    axes[0].set_xlim(0, 1)
    axes[0].set_title("LSTM on IMDB lengths, forward and backward")
    axes[0].set_xlabel("useful work as a share of the best library's rate of matrix products")
    margins = []
    for bar in bars:
        limit = float(bar["bar"].split()[1])
        better = limit / max(bar["measured"], 1e-9) if bar["bar"].startswith("<=") else bar["measured"] / limit
        margins.append(min(max(better, 0.01), 100.0))
    axes[1].barh(
        [bar["name"] for bar in bars],
        margins,
        color=[{True: "#3a7d44", False: "#b23a48", None: "#b8bfc6"}[bar["met"]] for bar in bars],
    )
    axes[1].invert_yaxis()
    axes[1].axvline(1, color="black", linewidth=1)
    axes[1].set_xscale("log")
    axes[1].set_title("targets: better than asked by")
    axes[1].tick_params(axis="y", labelsize=7)
    axes[0].tick_params(axis="y", labelsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    path.write_bytes(buffer.getvalue())
