"""Benchmarks of what reads memory more than it multiplies, a generated token and the scans, and of a second thread."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from recur.benchmarks.harness import Report, Settings, Times, backward, pack_lengths, race, ratio, spread
from recur.nn import compiled
from recur.nn.language_model import LanguageModel
from recur.nn.losses import linear_cross_entropy
from recur.nn.products import micro_kernel
from recur.nn.recurrent import Recurrent
from recur.nn.stepping import Stepper, stepper

READING = "reading memory"
_TOKENS = 32


def bandwidth(settings: Settings, report: Report) -> None:
    """Generation and scans beside the rate at which memory is read, and one thread beside all."""
    if settings.device != "cpu" or not compiled.available(torch.float32):
        print("\nleft out: it measures the compiled kernels, on a CPU")
        return
    precisions = [bf16 for bf16 in (False, True) if micro_kernel(bf16) is not None]
    _generation(settings, report, precisions)
    _scans(settings, report, precisions)
    _threads(settings, report, precisions)


def _reader(settings: Settings) -> tuple[Callable[[], Any], float]:
    """What reads more than caches hold by all threads, and its bytes."""
    buffer = torch.ones((8 if settings.quick else 256) << 18)
    return buffer.sum, 4.0 * buffer.numel()


def _named(text: str, bf16: bool) -> str:
    return f"{text}, {'bf16-mixed' if bf16 else 'float32'}"


def _in(bf16: bool, run: Callable[[], Any]) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        run()


# -- generation --------------------------------------------------------------------------------------------------------
def _generate(model: Stepper, ids: torch.Tensor) -> None:
    for _ in range(_TOKENS):
        model.step(ids)


def _generation(settings: Settings, report: Report, precisions: list[bool]) -> None:
    """Tokens of one text and of 16: a token reads every weight of the recurrence and of the output layer."""
    words, shapes = (2000, ((32, 1),)) if settings.quick else (33278, ((200, 2), (650, 2)))
    rows: list[dict[str, Any]] = []
    for width, layers in shapes:
        net = LanguageModel(words, embedding_dim=width, hidden_size=width, num_layers=layers).eval()
        for batch in (1, 16):
            steppers = {}
            for bf16 in precisions:
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    made = stepper(net, batch)
                assert made is not None
                made.load(net.recurrent.initial_state(batch, net.embedding.weight))
                steppers[_named("generation", bf16)] = made
            read, volume = _reader(settings)
            ids = torch.arange(batch)
            runs: dict[str, Callable[[], Any]] = {name: partial(_generate, s, ids) for name, s in steppers.items()}
            times = race({**runs, READING: read}, settings.repeats, "cpu")
            rate = volume / statistics.median(times[READING])
            for name, made in steppers.items():
                seconds = statistics.median(times[name]) / _TOKENS
                rows.append(
                    {
                        "hidden x layers": f"{width} x {layers}",
                        "texts": batch,
                        "": name,
                        "tokens/s": batch / seconds,
                        "spread": spread(times[name]),
                        "MB a step": made.bytes() / 1e6,
                        "GB/s": made.bytes() / seconds / 1e9,
                        "of the rate of reading memory": made.bytes() / seconds / rate,
                    }
                )
    report.table(f"generation over {words:,} words; weights that stay in cache are read faster than memory", rows)


# -- scans -------------------------------------------------------------------------------------------------------------
def _scanned(cell: str, rows: int, hidden: int, features: int, grad: bool) -> float:
    """Bytes that a pass cannot do without: inputs, gates and states, each written or read once where it is used."""
    gates = compiled.SHAPES[cell].blocks * hidden
    forward = features + hidden + (gates if grad else 0)
    back = gates + 2 * hidden + 2 * features  # gates, output and its gradient; the inputs and theirs
    return 4.0 * rows * (forward + (back if grad else 0))


def _scans(settings: Settings, report: Report, precisions: list[bool]) -> None:
    """The cells minGRU and QRNN: one product for all steps, then a recurrence of elementwise operations."""
    steps, batch, hidden = (8, 4, 16) if settings.quick else (200, 64, 256)
    table: list[dict[str, Any]] = []
    for cell in ("mingru", "qrnn"):
        stack = Recurrent(hidden, hidden, cell=cell)
        packed = pack_lengths([steps] * batch, hidden)
        for grad in (True, False):

            def scan(stack: Recurrent = stack, packed: Any = packed, grad: bool = grad) -> None:
                with torch.set_grad_enabled(grad):
                    output = stack(packed)[0].data
                if grad:
                    backward(output)

            runs: dict[str, Callable[[], Any]] = {_named(cell, bf16): partial(_in, bf16, scan) for bf16 in precisions}
            read, volume = _reader(settings)
            times = race({**runs, READING: read}, settings.repeats, "cpu")
            rate = volume / statistics.median(times[READING])
            count = _scanned(cell, steps * batch, hidden, hidden, grad)
            operations = 2.0 * steps * batch * sum(w.numel() for w in stack.parameters() if w.dim() == 2)
            for name in runs:
                seconds = statistics.median(times[name])
                table.append(
                    {
                        "": name,
                        "pass": "training" if grad else "evaluation",
                        "ms": seconds * 1e3,
                        "spread": spread(times[name]),
                        "GB/s": count / seconds / 1e9,
                        "of the rate of reading memory": count / seconds / rate,
                        "GFLOP/s of the products": operations * (3 if grad else 1) / seconds / 1e9,
                    }
                )
    report.table(f"scans, {batch} x {steps} x {hidden}: bytes that a pass cannot do without", table)


# -- threads -----------------------------------------------------------------------------------------------------------
def _with(threads: int, run: Callable[[], Any]) -> None:
    torch.set_num_threads(threads)
    run()


def _threads(settings: Settings, report: Report, precisions: list[bool]) -> None:
    """The same passes on one thread and on all that torch has."""
    count = torch.get_num_threads()
    if count == 1:
        print("\none thread: nothing to compare it with")
        return
    quick = settings.quick
    rows, width, words = (64, 16, 9000) if quick else (700, 200, 33278)
    x = torch.randn(rows, width, requires_grad=True)
    w = (torch.randn(words, width) * 0.05).requires_grad_()
    y = torch.randint(words, (rows,))
    lengths = [8] * 4 if quick else [*range(200, 264)]
    passes: dict[str, Callable[[], Any]] = {
        "loss": lambda: torch.autograd.grad(linear_cross_entropy(x, w, None, y).loss, (x, w)),
    }
    for title, both in (("lstm, one direction", False), ("lstm, both directions", True)):
        stack = Recurrent(100, 16 if quick else 256, bidirectional=both)
        packed = pack_lengths(lengths, 100)
        passes[title] = partial(_trained, stack, packed)
    table: list[dict[str, Any]] = []
    try:
        for title, run in passes.items():
            for bf16 in precisions:
                times: Times = race(
                    {str(n): partial(_with, n, partial(_in, bf16, run)) for n in (1, count)}, settings.repeats, "cpu"
                )
                own: dict[str, Any] = {"": _named(title, bf16)}
                own |= {f"{n} threads, ms": statistics.median(times[n]) * 1e3 for n in times}
                table.append({**own, "faster by": ratio(times, "1", str(count))})
    finally:
        torch.set_num_threads(count)
    report.table("one thread against all, forward and backward", table)


def _trained(stack: Recurrent, packed: Any) -> None:
    backward(stack(packed)[0].data)
