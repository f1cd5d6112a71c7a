"""Benchmarks of the recurrent engine and of the output layer's loss."""

import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from recur.benchmarks import former_engine
from recur.benchmarks.harness import (
    Report,
    Settings,
    Times,
    backward,
    best_rate,
    imdb_lengths,
    matrix_products,
    pack_lengths,
    peak_bytes,
    race,
    ratio,
    spread,
)
from recur.nn.packed import Layout

LOW, FORMER = "recur, bf16-mixed", "former engine"
DENSE, DENSE_LOW = "torch dense, with pads", "torch dense, with pads, bf16-mixed"
_QUAD = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
BLOCKS = {"lstm": 4, "gru": 3, "rnn": 1}


# -- engine ------------------------------------------------------------------------------------------------------------
def engine(settings: Settings, report: Report) -> None:
    """The recurrence alone, forward and backward, against torch's and against the engine of before the kernels."""
    quick, device = settings.quick, settings.device
    lengths = np.sort(imdb_lengths(settings))
    middle = int(np.searchsorted(np.cumsum(lengths), lengths.sum() / 2))  # half of all tokens lie in shorter texts
    bucketed = lengths[middle - 32 : middle + 32]
    random = np.random.default_rng(0).choice(lengths, 64, replace=False)
    if quick:
        bucketed, random = bucketed // 16, np.maximum(random // 16, 1)
    slow = min(settings.repeats, 2)  # torch's packed pass takes up to a minute and a half a time
    rows: list[dict[str, Any]] = []
    for name, batch in (("bucketed", bucketed), ("random", random)):
        result = _imdb_race(batch, "lstm", 2, settings.repeats, slow, device)
        rows += result.rows(name)
        if device == "cpu":
            _engine_bars(report, name, result)
    report.table("IMDB lengths, batch 64, embedding 100, hidden 256, 2 layers, bidirectional", rows)
    if device == "cpu":
        _widths(settings, report, bucketed)

    rows = []
    for cell in ("gru", "rnn"):
        for name, batch in (("bucketed", bucketed), ("random", random)):
            short = np.maximum(batch // 4, 1)
            result = _imdb_race(short, cell, 1, settings.repeats, slow, device)
            rows += result.rows(f"{cell}, {name}")
            rivals = [rival for rival in result.rivals if rival.startswith("torch") and rival != DENSE_LOW]
            best = min(map(result.against, rivals))
            report.bar(f"{cell}, {name}: times faster than the best rival", best, 0.95)
    report.table("the same at a quarter of the lengths, 1 layer", rows)


def _engine_bars(report: Report, name: str, result: "_Race") -> None:
    ours = [("recur", "float32", 1.5, 25.0 if name == "bucketed" else 60.0, 1.3)]
    if LOW in result.times:
        ours.append((LOW, "bf16-mixed", 2.4, 35.0 if name == "bucketed" else 60.0, 2.0))
    for own, precision, former, packed, dense in ours:
        title = f"lstm, {name}, {precision}: times faster than"
        report.bar(f"{title} the former engine in float32", result.against(FORMER, own), former)
        report.bar(f"{title} torch packed in float32", result.against("torch packed", own), packed)
        report.bar(
            f"{title} torch dense in {precision}", result.against(DENSE_LOW if own == LOW else DENSE, own), dense
        )


def _widths(settings: Settings, report: Report, lengths: Any) -> None:
    """Other hidden sizes, against the former engine."""
    rows: list[dict[str, Any]] = []
    bars = ((64, 1.0, 1.3), (128, 1.0, 1.3), (512, 1.8, 2.9), (1024, 1.8, 2.9))
    for hidden, bar, bar_low in bars if not settings.quick else bars[:1]:
        short = np.maximum(lengths // (1 if hidden < 512 else 4), 1)
        result = _imdb_race(short, "lstm", 1, settings.repeats, 0, settings.device, hidden)
        rows += result.rows(f"hidden {hidden}")
        report.bar(f"lstm, hidden {hidden}: times faster than the former engine", result.against(FORMER), bar)
        if LOW in result.times:
            report.bar(
                f"lstm, hidden {hidden}, bf16-mixed: times faster than the former engine",
                result.against(FORMER, LOW),
                bar_low,
            )
    report.table("bucketed lengths (a quarter of them from hidden 512 on), 1 layer, bidirectional", rows)


class _Race:
    """Times of one batch, and the rates that follow.

    Args:
        times: of our passes, of the rivals', and of the products.
        late: of a second race, of rivals too slow for the first and of our passes beside them; a rival of this one is
            compared with our passes in it.
        flops: useful operations of a pass.
        limits: operations a second of the best library's products, float32 and bfloat16.
    """

    def __init__(self, times: Times, flops: float, limits: tuple[float, float], late: Times | None = None) -> None:
        self.times, self.flops, self.limits, self.late = times, flops, limits, late or {}
        self.rivals = [name for name in times if name not in ("recur", LOW)]

    def against(self, rival: str, own: str = "recur") -> float:
        """How many times as long the rival took, round by round."""
        times = self.late if rival in self.late and rival not in ("recur", LOW) else self.times
        pairs = zip(times[rival], times[own], strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """A row for each rival."""
        result = []
        for rival in self.times:
            seconds = statistics.median(self.times[rival])
            result.append(
                {
                    "batch": name,
                    "": rival,
                    "ms": seconds * 1e3,
                    "spread": spread(self.times[rival]),
                    "useful GFLOP/s": self.flops / seconds / 1e9,
                    "of the best library's rate": self.flops / seconds / self.limits[rival.endswith("bf16-mixed")],
                    "recur is faster by": self.against(rival),
                }
            )
        return result


def _former(stack: Any, batch: PackedSequence) -> Tensor:
    """What `stack` gives for `batch` by the former engine."""
    layout, output = Layout(batch.batch_sizes), batch.data
    states = stack.initial_state(layout.batch, output)
    for index, state in enumerate(states):
        names = [[f"{kind}_l{index}{suffix}" for kind in _QUAD] for suffix in stack.suffixes]
        output, _ = former_engine.layer(
            stack.cell, output, layout, state, [[getattr(stack, n) for n in own] for own in names]
        )
    return output


def _lowered(run: Callable[[], Any]) -> Callable[[], Any]:
    """`run` in mixed precision."""
    import torch

    def low() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            run()

    return low


def _imdb_race(lengths: Any, cell: str, layers: int, repeats: int, slow: int, device: str, hidden: int = 256) -> _Race:
    import torch
    from torch.nn.utils.rnn import pad_packed_sequence

    from recur.nn.recurrent import Recurrent

    features = 100
    theirs = _torch_module(cell, features, hidden, layers, True).to(device)
    ours = Recurrent(features, hidden, layers, cell=cell, bidirectional=True).to(device)
    ours.load_state_dict(theirs.state_dict())
    batch = pack_lengths(lengths, features, device)
    dense = pad_packed_sequence(batch)[0].detach().requires_grad_()  # (time, batch, features)
    order = torch.randperm(len(lengths), device=device)
    unsorted = PackedSequence(batch.data, batch.batch_sizes, order, order.argsort())
    kinds = [matrix_products(device, bf16, recurrent=True) for bf16 in (False, True)[: 1 + _has_bf16(device)]]
    quick_ones = {
        "recur": lambda: backward(ours(batch)[0].data),
        DENSE: lambda: backward(theirs(dense)[0]),
    }
    if device == "cpu":
        quick_ones[FORMER] = lambda: backward(_former(ours, batch))
        if _has_bf16(device):
            quick_ones[LOW] = _lowered(quick_ones["recur"])
            quick_ones[DENSE_LOW] = _lowered(quick_ones[DENSE])
    slow_ones = {
        "torch packed": lambda: backward(theirs(batch)[0].data),
        "torch packed, unsorted": lambda: backward(theirs(unsorted)[0].data),
    }
    times = race({name: run for runs, _ in kinds for name, run in runs.items()} | quick_ones, repeats, device)
    more: Times = {}
    if slow:
        # the slow rivals between two more rounds of ours: they take so long that a warm-up is not worth its time
        own = {name: run for name, run in quick_ones.items() if name in ("recur", LOW)}
        more = race({**slow_ones, **own}, slow, device, warm=device == "cuda")
        times = {**times, **{name: more[name] for name in slow_ones}}
    inputs = [features] + [2 * hidden] * (layers - 1)
    flops = 3 * 2 * float(sum(lengths)) * 2 * BLOCKS[cell] * hidden * sum(n + hidden for n in inputs)
    rates = [best_rate(times, runs, operations) for runs, operations in kinds]
    passes = {name: values for name, values in times.items() if not any(name in runs for runs, _ in kinds)}
    return _Race(passes, flops, (rates[0], rates[-1]), more)


def _has_bf16(device: str) -> bool:
    import torch

    from recur.nn import compiled, products

    return device == "cpu" and products.micro_kernel(True) is not None and compiled.available(torch.float32)


def _torch_module(cell: str, features: int, hidden: int, layers: int, bidirectional: bool) -> "nn.Module":
    from torch import nn

    return {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[cell](features, hidden, layers, bidirectional=bidirectional)


# -- shapes ------------------------------------------------------------------------------------------------------------
def shapes(settings: Settings, report: Report) -> None:
    """Equal lengths, from tiny to large: `auto` must never lose by more than 3 %."""
    import torch

    from recur.nn.recurrent import Recurrent

    quick, device = settings.quick, settings.device
    sizes = [("20 x 35 x 200", 35, 20, 200, 200, 2, False), ("80 x 70 x 1150", 70, 80, 400, 1150, 1, False)]
    for hidden in (64, 256, 1024):
        for batch in (1, 16, 64, 256):
            steps = 50 if hidden * batch < 65536 else 10
            sizes.append((f"{batch} x {steps} x {hidden}, both ways", steps, batch, 100, hidden, 1, True))
    if quick:
        sizes = sizes[:1] + sizes[2:4]
    rows: list[dict[str, Any]] = []
    worst = worst_low = math.inf
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
                if _has_bf16(device):
                    rivals["auto, bf16-mixed"] = _lowered(rivals["auto"])
                # small passes many times over, so that a clock's step and a busy neighbour weigh less
                count = max(1, round(0.05 / max(min(race(rivals, 1, device)[name][0] for name in rivals), 1e-4)))
                many = {name: _repeat(run, count) for name, run in rivals.items()}
                times = race(many, settings.repeats, device, warm=False)
                with torch.set_grad_enabled(grad):
                    choice = stacks["auto"].chosen_engine(packed)
                faster = ratio(times, "torch dense", "auto")
                if choice == "fused":  # where auto chose torch, a ratio off one is noise
                    if faster < 0.97:  # or noise too: look longer, and judge by all rounds
                        for name, more in race(many, 2 * settings.repeats, device, warm=False).items():
                            times[name] += more
                        faster = ratio(times, "torch dense", "auto")
                    worst = min(worst, faster)
                if "auto, bf16-mixed" in times:
                    worst_low = min(worst_low, ratio(times, "auto", "auto, bf16-mixed"))
                row: dict[str, Any] = {"cell": cell, "shape": title, "pass": "training" if grad else "evaluation"}
                row |= {f"{name}, ms": statistics.median(values) / count * 1e3 for name, values in times.items()}
                rows.append({**row, "auto chose": choice, "auto is faster by": faster})
    report.table("equal lengths (batch x steps x hidden): torch dense against auto and the fused engine", rows)
    if worst < math.inf:
        report.bar(
            "equal lengths: auto against torch dense, the worst case where it chose the fused engine", worst, 0.97
        )
    if worst_low < math.inf:
        report.bar("equal lengths: auto in bf16-mixed against auto in float32, the worst case", worst_low, 0.97)


def _runner(module: Any, inputs: Any, grad: bool) -> Callable[[], Any]:
    import torch

    def run() -> None:
        with torch.set_grad_enabled(grad):
            output = module(inputs)[0]
            if grad:
                backward(output if isinstance(output, torch.Tensor) else output.data)

    return run


def _repeat(run: Callable[[], Any], count: int) -> Callable[[], Any]:
    def many() -> None:
        for _ in range(count):
            run()

    return many


# -- loss --------------------------------------------------------------------------------------------------------------
def loss(settings: Settings, report: Report) -> None:
    """The output layer with its cross-entropy, forward and backward."""
    import torch
    import torch.nn.functional as F

    from recur.nn.losses import linear_cross_entropy

    device = settings.device
    shapes = [(700, 200, 33278), (5600, 400, 33278)] if not settings.quick else [(256, 64, 8000)]
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

        kinds = [matrix_products(device, bf16) for bf16 in (False, True)[: 1 + _has_bf16(device)]]
        rivals: dict[str, Callable[[], Any]] = {"fused": fused, "plain": plain}
        if _has_bf16(device):
            rivals |= {"fused, bf16-mixed": _lowered(fused), "plain, bf16-mixed": _lowered(plain)}
        times = race({name: run for runs, _ in kinds for name, run in runs.items()} | rivals, settings.repeats, device)
        limits = [best_rate(times, runs, operations) for runs, operations in kinds]
        # gradients of x, w and b are wanted in any case: what either needs beside them
        gradients = 4 * (x.numel() + w.numel() + b.numel())
        memory = {name: peak_bytes(run, device) - gradients for name, run in rivals.items()}
        title, flops = f"{count} x {width} x {vocabulary}", 3 * 2.0 * count * width * vocabulary
        for name in rivals:
            seconds = statistics.median(times[name])
            rows.append(
                {
                    "shape": title,
                    "": name,
                    "ms": seconds * 1e3,
                    "spread": spread(times[name]),
                    "GFLOP/s": flops / seconds / 1e9,
                    "of the best library's rate": flops / seconds / limits[-1 if "bf16" in name else 0],
                    "extra MB": memory[name] / 1e6,
                }
            )
        report.bar(f"{title}: times faster than plain", ratio(times, "plain", "fused"), 1.6)
        if _has_bf16(device):
            low = ratio(times, "plain", "fused, bf16-mixed")
            report.bar(f"{title}, bf16-mixed: times faster than plain in float32", low, 2.2)
        report.bar(f"{title}: extra memory against plain", memory["fused"] / memory["plain"], 0.25, at_most=True)
    report.table("linear layer and cross-entropy (rows x width x vocabulary)", rows)
