"""The door to measurements: `python -m recur.bench [section ...] [--quick]`; `--help` lists the sections.

Every rival runs in the same process in alternation, several times; tables give the median and the spread. Rates count
useful work only: what is done for padding does not count. The rate of one large float32 matrix product, measured in
between, stands beside them as the limit. A section that has a bar says whether it was met.
"""

import argparse
import concurrent.futures
import contextlib
import io
import itertools
import json
import math
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from recur import cli

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from torch.nn.utils.rnn import PackedSequence

Times = dict[str, list[float]]

# Tokens of the 25,000 IMDB training reviews under `basic_english`: the shortest of each 1/64 of them, then the tail.
IMDB_LENGTHS = (
    *(11, 54, 64, 73, 83, 92, 102, 112, 119, 124, 129, 133, 136, 139, 142, 145, 147, 150, 153, 156, 158, 161, 164, 167),
    *(170, 174, 178, 181, 185, 189, 193, 198, 202, 207, 213, 218, 223, 230, 236, 243, 250, 258, 266, 275, 284, 294),
    *(304, 316, 329, 342, 357, 371, 390, 407, 427, 452, 479, 507, 543, 584, 637, 706, 804, 961),
    *(1049, 1113, 1160, 1247, 2752),
)
IMDB_SHARES = (*(i / 64 for i in range(64)), 0.99, 0.994, 0.997, 0.999, 1.0)

BLOCKS = {"lstm": 4, "gru": 3, "rnn": 1}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `python -m recur.bench`."""
    parser = cli.Parser(prog="recur.bench", description="Measure the speed of everything that has a bar.")
    parser.add_argument("sections", nargs="*", metavar="section", help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="small shapes and few repeats: to try it, not to quote it")
    parser.add_argument("--repeats", type=int, help="rounds of each race (default 5, quick 2)")
    parser.add_argument("--imdb", metavar="FOLDER", help="IMDB as on the hub: real texts for `train`, real lengths")
    parser.add_argument("--wikitext", metavar="PATH", help="WikiText as on the hub, or its id, for `language`")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--out", default="outputs/bench", help="folder of bench.json and bench.png")
    arguments = parser.parse_args(argv)
    cli.guard(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    import torch

    unknown = [name for name in arguments.sections if name not in SECTIONS]
    if unknown:
        raise ValueError(f"there is no section {unknown[0]!r}{cli.nearest(unknown[0], SECTIONS)}")
    if arguments.device == "auto":
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.device not in ("cpu", "cuda") or (arguments.device == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"device is cpu, cuda (where there is one) or auto, got {arguments.device!r}")
    if arguments.repeats is not None and arguments.repeats < 1:
        raise ValueError(f"--repeats must be at least 1, got {arguments.repeats}")
    arguments.repeats = arguments.repeats or (2 if arguments.quick else 5)
    folder = Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "bench.json"
    record = json.loads(path.read_text()) if path.is_file() else {"sections": {}}
    print(f"# recur.bench\n\n{describe(machine(arguments.device))}")
    for name in arguments.sections or SECTIONS:
        print(f"\n## {name}", flush=True)
        began = time.perf_counter()
        report = Report(arguments.quick)
        SECTIONS[name](arguments, report)
        section = {"machine": machine(arguments.device), "quick": arguments.quick, "repeats": arguments.repeats}
        section["seconds"] = round(time.perf_counter() - began, 1)
        section["when"] = time.strftime("%Y-%m-%d %H:%M:%S")
        record["sections"][name] = {**section, "bars": report.bars, "tables": report.tables}
        report.print_bars()
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(record, folder / "bench.png")
    print(f"\nwritten: {path} and {folder / 'bench.png'}")


# -- how things are measured -------------------------------------------------------------------------------------------


class Report:
    """What a section found: tables as lists of rows, and bars met or missed."""

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
        """Say which bars were met."""
        for bar in self.bars:
            verdict = {True: "met", False: "MISSED", None: "not judged"}[bar["met"]]
            print(f"\n- {verdict}: {bar['name']}: {_figure(bar['measured'])} (bar {bar['bar']})", end="")
        print(flush=True)


def _figure(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def machine(device: str) -> dict[str, Any]:
    """What the figures were taken on."""
    import torch

    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        model = names[0] if names else model
    told = {
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
        told["gpu"] = torch.cuda.get_device_name()
        told["cuda"] = torch.version.cuda
    return told


def describe(told: dict[str, Any]) -> str:
    """One line about the machine."""
    gpu = f"{told['gpu']}, CUDA {told['cuda']}; " if "gpu" in told else ""
    return (
        f"{gpu}{told['cpu']}, {told['cores']} cores, {told['threads']} threads, {told['vector']}; "
        f"torch {told['torch']}, Python {told['python']}; load {told['load']} at the start"
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


def matrix_products(device: str) -> tuple[Callable[[], Any], float]:
    """Large float32 products to compare with, and their floating-point operations."""
    import torch

    size, count = (2048, 4) if device == "cpu" else (8192, 4)
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)

    def run() -> None:
        for _ in range(count):
            torch.mm(a, b)

    return run, 2.0 * size**3 * count


def imdb_lengths(arguments: argparse.Namespace) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Lengths of the IMDB training reviews: read from the given data, else from the embedded distribution."""
    import numpy as np

    if arguments.imdb:
        data = _imdb(arguments.imdb)
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


# -- engine ------------------------------------------------------------------------------------------------------------


def engine(arguments: argparse.Namespace, report: Report) -> None:
    """The recurrence alone, forward and backward, against torch's."""
    import numpy as np

    quick, device = arguments.quick, arguments.device
    lengths = np.sort(imdb_lengths(arguments))
    middle = int(np.searchsorted(np.cumsum(lengths), lengths.sum() / 2))  # half of all tokens lie in shorter texts
    bucketed = lengths[middle - 32 : middle + 32]
    random = np.random.default_rng(0).choice(lengths, 64, replace=False)
    if quick:
        bucketed, random = bucketed // 16, np.maximum(random // 16, 1)
    slow = min(arguments.repeats, 2)  # torch's packed pass takes up to a minute and a half a time
    rows: list[dict[str, Any]] = []
    for name, batch, bar, bar_dense in (("bucketed", bucketed, 12.0, None), ("random", random, 15.0, 1.7)):
        found = _imdb_race(batch, "lstm", 2, arguments.repeats, slow, device)
        rows += found.rows(name)
        if device == "cpu":
            report.bar(f"lstm, {name}: times faster than torch packed", found.against("torch packed"), bar)
            if bar_dense:
                dense = found.against("torch dense, with pads")
                report.bar(f"lstm, {name}: times faster than torch dense", dense, bar_dense)
            else:
                report.bar(f"lstm, {name}: share of the matrix-multiply rate", found.share, 0.60)
    report.table("IMDB lengths, batch 64, embedding 100, hidden 256, 2 layers, bidirectional", rows)

    rows = []
    for cell in ("gru", "rnn"):
        for name, batch in (("bucketed", bucketed), ("random", random)):
            short = np.maximum(batch // 4, 1)
            found = _imdb_race(short, cell, 1, arguments.repeats, slow, device)
            rows += found.rows(f"{cell}, {name}")
            best = min(found.against(rival) for rival in found.rivals if rival.startswith("torch"))
            report.bar(f"{cell}, {name}: times faster than the best rival", best, 0.95)
    report.table("the same at a quarter of the lengths, 1 layer", rows)


class _Race:
    """Times of one batch, and the rates that follow."""

    def __init__(self, times: Times, flops: float, product_flops: float) -> None:
        self.times, self.flops, self.product_flops = times, flops, product_flops
        self.rivals = [name for name in times if name not in ("recur", "matrix product")]
        self.limit = product_flops / statistics.median(times["matrix product"])

    @property
    def share(self) -> float:
        """Of the matrix-multiply rate, round by round."""
        pairs = zip(self.times["recur"], self.times["matrix product"], strict=False)
        return statistics.median(self.flops / ours * product / self.product_flops for ours, product in pairs)

    def against(self, rival: str) -> float:
        """How many times as long the rival took, round by round."""
        pairs = zip(self.times[rival], self.times["recur"], strict=False)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """A row for each rival."""
        result = []
        for rival in ("recur", *self.rivals):
            seconds = statistics.median(self.times[rival])
            result.append(
                {
                    "batch": name,
                    "": rival,
                    "ms": seconds * 1e3,
                    "spread": spread(self.times[rival]),
                    "useful GFLOP/s": self.flops / seconds / 1e9,
                    "of the matrix rate": self.flops / seconds / self.limit,
                    "recur is faster by": 1.0 if rival == "recur" else self.against(rival),
                }
            )
        return result


def _imdb_race(lengths: Any, cell: str, layers: int, repeats: int, slow: int, device: str) -> _Race:
    import torch
    from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

    from recur.nn import Recurrent

    features, hidden = 100, 256
    theirs = _torch_module(cell, features, hidden, layers, True).to(device)
    ours = Recurrent(features, hidden, layers, cell=cell, bidirectional=True).to(device)
    ours.load_state_dict(theirs.state_dict())
    batch = pack_lengths(lengths, features, device)
    dense = pad_packed_sequence(batch)[0].detach().requires_grad_()  # (time, batch, features)
    order = torch.randperm(len(lengths), device=device)
    unsorted = PackedSequence(batch.data, batch.batch_sizes, order, order.argsort())
    products, product_flops = matrix_products(device)
    quick_ones = {
        "matrix product": products,
        "recur": lambda: _pass(ours(batch)[0].data),
        "torch dense, with pads": lambda: _pass(theirs(dense)[0]),
    }
    slow_ones = {
        "torch packed": lambda: _pass(theirs(batch)[0].data),
        "torch packed, unsorted": lambda: _pass(theirs(unsorted)[0].data),
    }
    times = race(quick_ones, repeats, device)
    # the slow rivals between two more rounds of ours: they take so long that a warm-up round is not worth its time
    more = race({**slow_ones, "recur": quick_ones["recur"]}, slow, device, warm=device == "cuda")
    times = {**times, **{name: more[name] for name in slow_ones}}
    times["recur"] = times["recur"] + more["recur"]
    inputs = [features] + [2 * hidden] * (layers - 1)
    flops = 3 * 2 * float(sum(lengths)) * 2 * BLOCKS[cell] * hidden * sum(n + hidden for n in inputs)
    return _Race(times, flops, product_flops)


def _torch_module(cell: str, features: int, hidden: int, layers: int, bidirectional: bool) -> "nn.Module":
    from torch import nn

    return {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[cell](features, hidden, layers, bidirectional=bidirectional)


def _pass(output: "Tensor") -> None:
    """Backward, from a gradient of ones."""
    import torch

    output.backward(torch.ones_like(output))


# -- shapes ------------------------------------------------------------------------------------------------------------


def shapes(arguments: argparse.Namespace, report: Report) -> None:
    """Equal lengths, from tiny to large: `auto` must never lose by more than 5 %."""
    import torch

    from recur.nn import Recurrent

    quick, device = arguments.quick, arguments.device
    sizes = [("20 x 35 x 200", 35, 20, 200, 200, 2, False), ("80 x 70 x 1150", 70, 80, 400, 1150, 1, False)]
    for hidden in (64, 256, 1024):
        for batch in (1, 16, 64, 256):
            steps = 50 if hidden * batch < 65536 else 10
            sizes.append((f"{batch} x {steps} x {hidden}, both ways", steps, batch, 100, hidden, 1, True))
    if quick:
        sizes = sizes[:1] + sizes[2:4]
    rows: list[dict[str, Any]] = []
    worst = math.inf
    for cell in ("lstm", "gru", "rnn"):
        for title, steps, batch, features, hidden, layers, both in sizes:
            theirs = _torch_module(cell, features, hidden, layers, both).to(device)
            stacks = {}
            for name in ("auto", "fused", "torch"):
                stacks[name] = Recurrent(
                    features, hidden, layers, cell=cell, bidirectional=both, engine=name, forget_bias=None
                ).to(device)
                stacks[name].load_state_dict(theirs.state_dict())
            packed = pack_lengths([steps] * batch, features, device)
            dense = packed.data.detach().unflatten(0, (steps, batch)).requires_grad_()
            for grad in (True, False):
                rivals: dict[str, Callable[[], Any]] = {"torch dense": _runner(theirs, dense, grad)}
                for name in ("auto", "fused") if device == "cpu" else ("auto",):
                    rivals[name] = _runner(stacks[name], packed, grad)
                # small passes many times over, so that a clock's step and a busy neighbour weigh less
                count = max(1, round(0.05 / max(min(race(rivals, 1, device)[name][0] for name in rivals), 1e-4)))
                many = {name: _repeat(run, count) for name, run in rivals.items()}
                times = race(many, arguments.repeats, device, warm=False)
                with torch.set_grad_enabled(grad):
                    choice = stacks["auto"].chosen_engine(packed)
                found = ratio(times, "torch dense", "auto")
                if choice == "fused":  # where auto chose torch, a ratio off one is noise
                    if found < 0.95:  # or noise too: look longer, and judge by all rounds
                        for name, more in race(many, 2 * arguments.repeats, device, warm=False).items():
                            times[name] += more
                        found = ratio(times, "torch dense", "auto")
                    worst = min(worst, found)
                row: dict[str, Any] = {"cell": cell, "shape": title, "pass": "training" if grad else "evaluation"}
                row |= {f"{name}, ms": statistics.median(values) / count * 1e3 for name, values in times.items()}
                rows.append({**row, "auto chose": choice, "auto is faster by": found})
    report.table("equal lengths (batch x steps x hidden): torch dense against auto and the fused engine", rows)
    if worst < math.inf:
        report.bar(
            "equal lengths: auto against torch dense, the worst case where it chose the fused engine", worst, 0.95
        )


def _runner(module: Any, inputs: Any, grad: bool) -> Callable[[], Any]:
    import torch

    def run() -> None:
        with torch.set_grad_enabled(grad):
            output = module(inputs)[0]
            if grad:
                _pass(output if isinstance(output, torch.Tensor) else output.data)

    return run


def _repeat(run: Callable[[], Any], count: int) -> Callable[[], Any]:
    def many() -> None:
        for _ in range(count):
            run()

    return many


# -- loss --------------------------------------------------------------------------------------------------------------


def loss(arguments: argparse.Namespace, report: Report) -> None:
    """The output layer with its cross-entropy, forward and backward."""
    import torch
    import torch.nn.functional as F

    from recur.nn.losses import linear_cross_entropy

    device = arguments.device
    shapes = [(700, 200, 33278), (5600, 400, 33278)] if not arguments.quick else [(256, 64, 8000)]
    rows: list[dict[str, Any]] = []
    for count, width, vocabulary in shapes:
        x = torch.randn(count, width, device=device, requires_grad=True)
        w = (torch.randn(vocabulary, width, device=device) * 0.05).requires_grad_()
        b = torch.zeros(vocabulary, device=device, requires_grad=True)
        y = torch.randint(vocabulary, (count,), device=device)

        def fresh(value: "Tensor", leaves: "tuple[Tensor, ...]" = (x, w, b)) -> None:
            torch.autograd.grad(value, leaves)

        def plain(x: "Tensor" = x, w: "Tensor" = w, b: "Tensor" = b, y: "Tensor" = y) -> None:
            fresh(F.cross_entropy(F.linear(x, w, b), y))

        def fused(x: "Tensor" = x, w: "Tensor" = w, b: "Tensor" = b, y: "Tensor" = y) -> None:
            fresh(linear_cross_entropy(x, w, b, y).loss)

        products, product_flops = matrix_products(device)
        times = race({"matrix product": products, "fused": fused, "plain": plain}, arguments.repeats, device)
        limit = product_flops / statistics.median(times["matrix product"])
        # gradients of x, w and b are wanted in any case: what either needs beside them
        gradients = 4 * (x.numel() + w.numel() + b.numel())
        memory = {name: peak_bytes(run, device) - gradients for name, run in (("fused", fused), ("plain", plain))}
        title, flops = f"{count} x {width} x {vocabulary}", 3 * 2.0 * count * width * vocabulary
        for name in ("fused", "plain"):
            seconds = statistics.median(times[name])
            rows.append(
                {
                    "shape": title,
                    "": name,
                    "ms": seconds * 1e3,
                    "spread": spread(times[name]),
                    "GFLOP/s": flops / seconds / 1e9,
                    "of the matrix rate": flops / seconds / limit,
                    "extra MB": memory[name] / 1e6,
                }
            )
        report.bar(f"{title}: times faster than plain", ratio(times, "plain", "fused"), 1.3)
        report.bar(f"{title}: extra memory against plain", memory["fused"] / memory["plain"], 0.25, at_most=True)
    report.table("linear layer and cross-entropy (rows x width x vocabulary)", rows)


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


# -- loader ------------------------------------------------------------------------------------------------------------


def loader(arguments: argparse.Namespace, report: Report) -> None:
    """The bucket plan: what padding would waste, how evenly ranks are loaded, how much epochs differ."""
    from recur.data.batching import plan_epoch

    lengths = imdb_lengths(arguments)
    rows: list[dict[str, Any]] = []
    for ranks in (1, 8, 64, 1024):
        if len(lengths) < ranks * 8:
            continue
        began = time.perf_counter()
        plan = plan_epoch(lengths, 64, seed=0, epoch=1, world_size=ranks)
        seconds = time.perf_counter() - began
        other = plan_epoch(lengths, 64, seed=0, epoch=2, world_size=ranks)
        tokens = plan.tokens(lengths)
        imbalance = float((tokens.max(axis=1) / tokens.mean(axis=1)).mean() - 1)  # how much longer the fullest works
        mine, its = _batches(plan), _batches(other)
        shared = len(mine & its) / len(mine)
        waste = plan.waste(lengths)
        rows.append(
            {
                "ranks": ranks,
                "steps": plan.steps,
                "waste of a dense layout, %": 100 * waste,
                "fullest rank above the mean, %": 100 * imbalance,
                "batches shared by two epochs, %": 100 * shared,
                "ms to plan": seconds * 1e3,
            }
        )
        if ranks in (1, 64):
            report.bar(f"{ranks} ranks: waste of a dense layout", waste, 0.03, at_most=True)
            report.bar(f"{ranks} ranks: batches shared by two epochs", shared, 0.05, at_most=True)
        if ranks == 64:
            report.bar("64 ranks: fullest rank above the mean", imbalance, 0.05, at_most=True)
    report.table("IMDB lengths, batch 64 a rank", rows)


def _batches(plan: Any) -> set[frozenset[int]]:
    return {frozenset(plan.batch(s, r).tolist()) for s in range(plan.steps) for r in range(plan.world_size)}


# -- train -------------------------------------------------------------------------------------------------------------


def train(arguments: argparse.Namespace, report: Report) -> None:
    """Whole training steps through the training door, against a bare loop and the guides' own pipeline.

    Door and bare loop take the same steps in turn, and each step's fastest round counts for the overhead: a busy
    neighbour, who costs several times the 5 % looked for, only ever adds to a step.
    """
    steps, quick = (4, True) if arguments.quick else (8, False)
    trainer = "trainer=gpu" if arguments.device == "cuda" else "trainer=cpu"
    reviews = ["model=advanced_lstm", "data.max_length=null", trainer]
    if arguments.imdb:
        reviews += ["data=imdb", f"data.path={Path(arguments.imdb).resolve()}"]
    if quick:
        reviews += ["model.net.hidden_size=32"]
    words = ["data=synthetic_text", "model=language_model", trainer]
    rows: list[dict[str, Any]] = []
    for family, overrides, count in (("sentiment", reviews, steps), ("language", words, steps * 10)):
        rounds: dict[str, list[_Steps]] = {"training door": [], "bare loop": []}
        for _ in range(arguments.repeats):
            for name, run in (("training door", _through_the_door), ("bare loop", _alone(_bare_loop))):
                rounds[name].append(run(overrides, count, arguments.device))
        every = [one for found in rounds.values() for one in found]
        assert all(one.tokens == every[0].tokens for one in every), "the two loops had different batches"
        fastest = {
            name: sum(map(min, zip(*(one.seconds for one in found), strict=True))) for name, found in rounds.items()
        }
        overhead = fastest["training door"] / fastest["bare loop"]
        for name, found in rounds.items():
            values = [sum(one.tokens) / sum(one.seconds) for one in found]
            rows.append(
                {
                    "family": family,
                    "": name,
                    "tokens/s": statistics.median(values),
                    "spread": spread(values),
                    "tokens/s, fastest steps": sum(every[0].tokens) / fastest[name],
                    "last loss": found[-1].loss,
                }
            )
        report.bar(f"{family}: time over the bare loop", overhead - 1, 0.05, at_most=True)
        if family == "sentiment":
            slow = _guides_pipeline(overrides, 1, arguments.device)  # minutes a batch
            rows.append({"family": family, "": "the guides' pipeline", "tokens/s": slow})
            times = rows[0]["tokens/s"] / slow
            if arguments.device == "cpu":
                report.bar("sentiment: times faster than the guides' pipeline", times, 20.0)
    source = "full-length IMDB" if arguments.imdb else "embedded reviews (give --imdb for the real ones)"
    report.table(f"training steps, {source}", rows)


class _Steps(NamedTuple):
    """Tokens and seconds of each step, and the last one's loss."""

    tokens: list[int]
    seconds: list[float]
    loss: float


class _Turns:
    """Two processes that train by turns: a word in a file says whose turn it is, and waiting is not counted.

    Args:
        path: the file.
        name: who this is.
        other: who the other is.
        alone: whether the other has died, and is not to be waited for.
    """

    def __init__(self, path: Path, name: str, other: str, alone: Callable[[], bool]) -> None:
        self.path, self.name, self.other, self.alone = path, name, other, alone
        self.away = 0.0

    def now(self) -> float:
        """Seconds, those of waiting left out."""
        return time.perf_counter() - self.away

    def wait(self) -> None:
        """Until it is this one's turn."""
        began = time.perf_counter()
        while self.path.read_text(encoding="utf-8") not in (self.name, "anybody") and not self.alone():
            time.sleep(0.01)
        self.away += time.perf_counter() - began

    def leave(self, *, done: bool = False) -> None:
        """Give the turn to the other, for good where this one is done; keep it where the other is."""
        if self.path.read_text(encoding="utf-8") == "anybody":
            return
        beside = self.path.with_suffix("." + self.name)
        beside.write_text("anybody" if done else self.other, encoding="utf-8")
        beside.replace(self.path)


def clock(path: str, turns: str | None = None) -> Any:
    """A callback that writes when each training step ended, how many tokens it had and its loss, to a JSON file.

    Args:
        path: the file, with `began`, the moment before the first step, and `steps`.
        turns: file of `_Turns` with the process that started this one; None never waits.
    """
    from lightning.pytorch import Callback

    parent = os.getppid()
    shared = _Turns(Path(turns), "door", "plain", lambda: os.getppid() != parent) if turns else None
    now = shared.now if shared else time.perf_counter

    class Clock(Callback):
        def __init__(self) -> None:
            self.began, self.steps = 0.0, list[tuple[float, int, float]]()

        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.began = now()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            _finish(batch.text.data)
            self.steps.append((now(), batch.text.data.shape[0], float(outputs["loss"])))
            if shared and len(self.steps) % TURN == 0:
                shared.leave()
                shared.wait()

        def on_train_end(self, trainer: Any, module: Any) -> None:
            Path(path).write_text(json.dumps({"began": self.began, "steps": self.steps}), encoding="utf-8")

    return Clock()


def _finish(tensor: "Tensor") -> None:
    import torch

    if tensor.is_cuda:
        torch.cuda.synchronize()


def _alone(run: Callable[..., Any]) -> Callable[..., Any]:
    """The same function in a process of its own: a fresh one, as the training door is, with nothing allocated yet."""

    def apart(*words: Any) -> Any:
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
            return pool.submit(run, *words).result()

    return apart


def _through_the_door(overrides: list[str], count: int, device: str) -> _Steps:
    """`count` steps of `python -m recur.train`, after a step to warm up."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "steps.json")
        command = [
            *(sys.executable, "-m", "recur.train", *overrides),
            *(f"hydra.run.dir={folder}/run", "test=false", "trainer.max_epochs=1", "trainer.limit_val_batches=0"),
            f"trainer.limit_train_batches={count + 1}",
            *("callbacks.best=null", "callbacks.last=null"),
            f"+callbacks.clock={{_target_: recur.bench.clock, path: {path}}}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode or not path.is_file():
            raise ValueError(f"recur.train failed: {done.stderr.strip().splitlines()[-1:]}")
        return _between(json.loads(path.read_text())["steps"])


def _between(ends: list[tuple[float, int, float]]) -> _Steps:
    """Steps from when each ended, its tokens and its loss; the first is not counted."""
    seconds = [end - begin for (begin, _, _), (end, _, _) in itertools.pairwise(ends)]
    return _Steps([tokens for _, tokens, _ in ends[1:]], seconds, ends[-1][2])


def _built(overrides: list[str]) -> tuple[Any, Any, Any]:
    """Config, data and task as the training door builds them."""
    import torch
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    from recur.train import build

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        cfg = compose("train", [*overrides, "hydra.runtime.output_dir=unused"], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    torch.manual_seed(cfg.seed)
    data = build(cfg.data)
    data.prepare_data()
    data.setup("fit")
    task = build(cfg.model, optimizer=build(cfg.optimizer), scheduler=build(cfg.scheduler), **data.model_arguments())
    return cfg, data, task


def _bare_loop(overrides: list[str], count: int, device: str) -> _Steps:
    """The same steps on the same batches with the same network and kernels, and nothing around them."""
    import torch

    cfg, data, task = _built(overrides)
    torch.manual_seed(cfg.seed)
    net = task.net.to(device).train()
    optimizer = task._optimizer(net.parameters())
    clip, state = cfg.trainer.gradient_clip_val, None
    loader = iter(data.train_dataloader())
    ends = []
    for _ in range(count + 1):
        batch = next(loader)
        text = batch.text.to(device)
        if data.family == "sentiment":
            value = task.loss(net(text), batch.labels.to(device))
        else:
            hidden = net(text, state)
            value = task.token_loss(hidden, batch.targets.to(device)).loss
            state = [tuple(part.detach() for part in one) for one in hidden.state]
        optimizer.zero_grad()
        value.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        last = float(value.detach())
        _finish(text.data)
        ends.append((time.perf_counter(), text.data.shape[0], last))
    return _between(ends)


def _guides_pipeline(overrides: list[str], count: int, device: str) -> float:
    """Tokens a second as the guides train: random order, tokenised as batches are collated, packed unsorted."""
    import torch
    from torch import nn
    from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

    cfg, data, _ = _built(overrides)
    numbers = {token: i for i, token in enumerate(data.tokenizer.vocabulary)}
    unknown, pad = data.tokenizer.unk_id, len(numbers)
    net = cfg.model.net
    width, hidden = int(net.embedding_dim), int(net.hidden_size)

    def numericalise(text: str) -> "Tensor":
        words = re.findall(r"[a-z0-9']+|[.,()!?]", text.lower().replace("<br />", " "))
        return torch.tensor([numbers.get(word, unknown) for word in words] or [unknown])

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(pad + 1, width, padding_idx=pad)
            self.lstm = nn.LSTM(width, hidden, 2, bidirectional=True, dropout=0.5, batch_first=True)
            self.fc, self.dropout = nn.Linear(2 * hidden, 1), nn.Dropout(0.5)

        def forward(self, text: "Tensor", lengths: "Tensor") -> "Tensor":
            embedded = self.dropout(self.embedding(text))
            packed = pack_padded_sequence(embedded, lengths.to("cpu"), batch_first=True, enforce_sorted=False)
            _, (last, _) = self.lstm(packed)
            return self.fc(self.dropout(torch.cat((last[-2], last[-1]), dim=1)))

    model = Model().to(device)
    optimizer = torch.optim.Adam(model.parameters())
    order = torch.randperm(len(data.labels("train")), generator=torch.Generator().manual_seed(0)).tolist()
    tokens, began = 0, time.perf_counter()
    for start in range(0, 64 * count, 64):
        chosen = order[start : start + 64]
        texts = [numericalise(data.text("train", row)) for row in chosen]
        lengths = torch.tensor([len(text) for text in texts])
        padded = pad_sequence(texts, batch_first=True, padding_value=pad).to(device)
        labels = torch.as_tensor(data.labels("train")[chosen], device=device).float()
        optimizer.zero_grad()
        value = nn.functional.binary_cross_entropy_with_logits(model(padded, lengths).squeeze(1), labels)
        value.backward()
        optimizer.step()
        _finish(padded)
        tokens += int(lengths.sum())
    return tokens / (time.perf_counter() - began)


# -- startup -----------------------------------------------------------------------------------------------------------


def startup(arguments: argparse.Namespace, report: Report) -> None:
    """Seconds to the composed config, and to the first training step with everything cached."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "steps.json")
        runs = {
            "--cfg job": [sys.executable, "-m", "recur.train", "--cfg", "job"],
            "--help": [sys.executable, "-m", "recur.train", "--help"],
            "import torch and Lightning": [sys.executable, "-c", "import torch, lightning.pytorch"],
        }
        first_step = [
            *(sys.executable, "-m", "recur.train", f"hydra.run.dir={folder}/run", "trainer=cpu", "model=bilstm"),
            *("test=false", "trainer.limit_train_batches=1", "trainer.max_epochs=1", "trainer.limit_val_batches=1"),
            f"+callbacks.first={{_target_: recur.bench.first_step, path: {path}}}",
        ]

        def command(words: list[str]) -> float:
            began = time.perf_counter()
            done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
            if done.returncode:
                raise ValueError(f"{' '.join(words[1:4])} failed: {done.stderr.strip().splitlines()[-1:]}")
            return time.perf_counter() - began

        def until_step() -> float:
            began = time.time()
            command(first_step)
            return float(path.read_text()) - began

        times: Times = {name: [] for name in (*runs, "first training step")}
        for words in runs.values():
            command(words)
        until_step()  # fills the cache
        for _ in range(arguments.repeats):
            for name, words in runs.items():
                times[name].append(command(words))
            times["first training step"].append(until_step())
    rows = [{"": n, "seconds": statistics.median(v), "spread": spread(v)} for n, v in times.items()]
    report.table("from the command line", rows)
    report.bar("seconds to --cfg job", statistics.median(times["--cfg job"]), 1.5, at_most=True)
    pairs = zip(times["first training step"], times["import torch and Lightning"], strict=True)
    beyond = statistics.median(step - imports for step, imports in pairs)
    report.bar("seconds to the first training step beyond the imports", beyond, 3.0, at_most=True)


def first_step(path: str) -> Any:
    """A callback that notes when the first training step is done and ends the process."""
    from lightning.pytorch import Callback

    class FirstStep(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            _finish(batch.text.data)
            Path(path).write_text(str(time.time()), encoding="utf-8")
            os._exit(0)

    return FirstStep()


# -- language ----------------------------------------------------------------------------------------------------------

STREAMS, BPTT, WIDTH, DROPOUT, RATE, CLIP = 20, 35, 200, 0.2, 20.0, 0.25  # of experiment=wikitext2_small
TURN = 100  # steps


def language(arguments: argparse.Namespace, report: Report) -> None:
    """An epoch of WikiText-2, as torch's `word_language_model` example trains it and through the training door.

    The same model and recipe (200 tied, dropout .2, SGD 20, clip .25, 20 streams of 35 tokens), a hundred steps of the
    one and of the other in turn; the door with data, Lightning, logging and checkpoints. Both models are then scored by
    the same evaluation.
    """
    import torch

    from recur.data.language import LanguageData
    from recur.runs import Run

    if not arguments.wikitext:
        print("\nleft out: it takes --wikitext FOLDER (or Salesforce/wikitext) and most of an hour on a laptop")
        return
    steps = 100 if arguments.quick else None
    data = LanguageData(arguments.wikitext, "wikitext-2-v1", batch_size=STREAMS, bptt=BPTT)
    data.prepare_data()
    data.setup()
    ids = torch.from_numpy(data.tokens("train").astype("int64"))
    folder = Path(arguments.out, "wikitext2", time.strftime("%Y-%m-%d_%H-%M-%S")).resolve()
    where = str(Path(arguments.wikitext).resolve()) if Path(arguments.wikitext).exists() else arguments.wikitext
    with tempfile.TemporaryDirectory() as shared:
        turn, ends = Path(shared, "turn"), Path(shared, "steps.json")
        turn.write_text("door", encoding="utf-8")
        words = [
            *(sys.executable, "-m", "recur.train", "experiment=wikitext2_small", f"data.path={where}"),
            *(f"hydra.run.dir={folder}", f"trainer={'gpu' if arguments.device == 'cuda' else 'cpu'}"),
            *("trainer.max_epochs=1", "test=false", *([f"trainer.limit_train_batches={steps}"] if steps else [])),
            f"+callbacks.clock={{_target_: recur.bench.clock, path: {ends}, turns: {turn}}}",
        ]
        door = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # noqa: S603
        turns = _Turns(turn, "plain", "door", lambda: door.poll() is not None)
        model, tokens, seconds = plain_loop(ids, data.vocab_size, steps, arguments.device, turns)
        _, said = door.communicate()
        if door.returncode:
            raise ValueError(f"recur.train failed: {said.strip().splitlines()[-1:]}")
        found = json.loads(ends.read_text(encoding="utf-8"))
    run = Run.open(folder)
    ours = (sum(n for _, n, _ in found["steps"]), found["steps"][-1][0] - found["began"])
    measured = {"recur": (*ours, _perplexity(run.task, data))}
    run.task.net.load_state_dict(model.state_dict())  # the same names
    measured["plain torch loop"] = (tokens, seconds, _perplexity(run.task, data))
    rows = [
        {
            "": name,
            "tokens": tokens,
            "seconds": seconds,
            "tokens/s": tokens / seconds,
            "validation perplexity": perplexity,
        }
        for name, (tokens, seconds, perplexity) in measured.items()
    ]
    report.table("one epoch of WikiText-2, 200 tied", rows)
    best, plain = rows
    report.bar("language: times as fast as the plain loop", best["tokens/s"] / plain["tokens/s"], 1.5)
    surprise = best["validation perplexity"] / plain["validation perplexity"]
    report.bar("language: validation perplexity against the plain loop's", surprise, 1.0, at_most=True)


def plain_loop(
    ids: "Tensor", vocab_size: int, steps: int | None = None, device: str = "cpu", turns: _Turns | None = None
) -> tuple[Any, int, float]:
    """One epoch as torch's example trains: `nn.LSTM`, a full matrix of log-probabilities, SGD by hand.

    Args:
        ids: the training text, `(tokens,)` int64.
        vocab_size: number of words.
        steps: windows to train on; None for all.
        device: cpu or cuda.
        turns: taken with another process; None for none.

    Returns:
        The model, tokens trained on, seconds it took.
    """
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.manual_seed(0)
    embedding, decoder = nn.Embedding(vocab_size, WIDTH), nn.Linear(WIDTH, vocab_size)
    recurrent = nn.LSTM(WIDTH, WIDTH, 2, dropout=DROPOUT)
    model = nn.ModuleDict({"embedding": embedding, "recurrent": recurrent, "decoder": decoder}).to(device)
    decoder.weight = embedding.weight
    nn.init.uniform_(embedding.weight, -0.1, 0.1)
    nn.init.zeros_(decoder.bias)
    length = len(ids) // STREAMS
    source = ids[: length * STREAMS].view(STREAMS, length).t().contiguous().to(device)  # (time, streams)
    if turns:
        turns.wait()
    now = turns.now if turns else time.perf_counter
    state, tokens, began = None, 0, now()
    for number, start in enumerate(list(range(0, length - 1, BPTT))[:steps]):
        if turns and number and number % TURN == 0:
            turns.leave()
            turns.wait()
        size = min(BPTT, length - 1 - start)
        inputs, targets = source[start : start + size], source[start + 1 : start + 1 + size].reshape(-1)
        if state is not None:
            state = tuple(part.detach() for part in state)
        model.zero_grad()
        output, state = recurrent(F.dropout(embedding(inputs), DROPOUT), state)
        logits = decoder(F.dropout(output, DROPOUT)).view(-1, vocab_size)
        loss = F.nll_loss(F.log_softmax(logits, 1), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.data.add_(parameter.grad, alpha=-RATE)
        tokens += len(targets)
    _finish(decoder.weight)
    seconds = now() - began
    if turns:
        turns.leave(done=True)
    return model, tokens, seconds


def _perplexity(task: Any, data: Any) -> float:
    """Of the validation text, state carried, by the evaluation both models share."""
    import torch

    from recur.tasks.language_modeling import TokenStatistics

    statistics, state = TokenStatistics(), None
    with torch.inference_mode():
        for window in data.loader("val"):
            hidden = task.net(window.text, state)
            state = hidden.state
            statistics.update(task.token_loss(hidden, window.targets).nll)
    return float(statistics.compute()["perplexity"])


# -- picture -----------------------------------------------------------------------------------------------------------


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
    shares = [row["of the matrix rate"] for row in rows]
    axes[0].barh(names, shares, color=["#1f6f8b" if row[""] == "recur" else "#b8bfc6" for row in rows])
    axes[0].invert_yaxis()
    axes[0].set_xlim(0, 1)
    axes[0].set_title("LSTM on IMDB lengths, forward and backward")
    axes[0].set_xlabel("useful work as a share of the machine's matrix-multiply rate")
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
    axes[1].set_title("bars: better than asked by")
    axes[1].tick_params(axis="y", labelsize=7)
    axes[0].tick_params(axis="y", labelsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    path.write_bytes(buffer.getvalue())


SECTIONS: dict[str, Callable[[argparse.Namespace, Report], None]] = {
    "engine": engine,
    "shapes": shapes,
    "loss": loss,
    "loader": loader,
    "train": train,
    "startup": startup,
    "language": language,
}


if __name__ == "__main__":
    main()
