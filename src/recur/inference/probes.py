"""The gates of an LSTM over a text."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from recur.data.corpus import start_id
from recur.errors import UserError
from recur.inference.classification import places_read
from recur.inference.language import read_tokens
from recur.nn.recurrent import Recurrent
from recur.runs.files import naming

GATES_TOKENS = 300  # each takes half a centimetre of the chart
_PROGRAM = "recur.predict"  # by which a chart of ours is known


class Gates(NamedTuple):
    """The gates of one layer and direction of an LSTM over one text.

    Attributes:
        input: i, `(tokens, hidden)`.
        forget: f.
        candidate: g.
        output: o.
        cell: the cell state after each token.
        hidden: the hidden state after each token.
    """

    input: Tensor
    forget: Tensor
    candidate: Tensor
    output: Tensor
    cell: Tensor
    hidden: Tensor


@torch.no_grad()
def lstm_gates(recurrent: Recurrent, rows: Tensor) -> list[Gates]:
    """The gates of every layer and direction over one text, in the order of `h_n`.

    Args:
        recurrent: a stack of LSTM layers.
        rows: the embedded text, `(tokens, input_size)`.

    Raises:
        UserError: the cells are no LSTMs.
    """
    if recurrent.cell != "lstm":
        raise UserError("--gates", rule=f"are those of an LSTM, this run has {recurrent.cell} cells")
    weights = dict(recurrent.named_parameters())
    gates: list[Gates] = []
    for layer in range(recurrent.num_layers):
        sides = []
        for suffix in recurrent.suffixes:
            parts = [
                weights.get(f"{name}_l{layer}{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            ]
            sides.append(_walk(rows, parts, reverse=bool(suffix)))
        gates += sides
        rows = torch.cat([side.hidden for side in sides], 1)
    return gates


def _walk(rows: Tensor, weights: list[Any], *, reverse: bool) -> Gates:
    w_ih, w_hh, b_ih, b_hh = weights
    h = rows.new_zeros(w_hh.shape[1])
    c = torch.zeros_like(h)
    steps = []
    for row in rows.flip(0) if reverse else rows:
        i, f, g, o = (F.linear(row, w_ih, b_ih) + F.linear(h, w_hh, b_hh)).chunk(4)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c = f * c + i * g
        h = o * c.tanh()
        steps.append((i, f, g, o, c, h))
    columns = [torch.stack(column) for column in zip(*steps, strict=True)]
    return Gates(*(column.flip(0) if reverse else column for column in columns))


def gates_chart(tokens: list[str], gates: list[Gates], path: Any, *, bidirectional: bool) -> None:
    """Write a chart of the mean input, forget and output gate, and of the size of the cell state, token by token.

    Args:
        tokens: of the text.
        gates: of `lstm_gates`.
        path: file to write; its suffix says whether PNG, SVG or PDF.
        bidirectional: whether every second entry reads backwards.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    names = ("forget", "input", "output", "|cell|")
    figure = Figure(figsize=(max(4.5, 1.6 + 0.42 * len(tokens)), 0.7 + 1.35 * len(gates)), layout="constrained")
    axes = figure.subplots(len(gates), 1, squeeze=False)[:, 0]
    for index, (one, axis) in enumerate(zip(gates, axes, strict=True)):
        means = [one.forget.mean(1), one.input.mean(1), one.output.mean(1), one.cell.abs().tanh().mean(1)]
        image = axis.imshow(torch.stack(means).cpu().numpy(), vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axis.set_yticks(range(len(names)), names)
        layer = index // 2 if bidirectional else index
        axis.set_title(f"layer {layer + 1}" + (", backward" if bidirectional and index % 2 else ""), loc="left", size=9)
        last = index == len(gates) - 1
        shown = [token.replace("$", r"\$") for token in tokens]
        axis.set_xticks(range(len(tokens)), shown if last else [], rotation=60, ha="right", rotation_mode="anchor")
    figure.colorbar(image, ax=list(axes), label="mean over units, 0 closed to 1 open", fraction=0.05)
    by = "Software" if Path(path).suffix == ".png" else "Creator"
    with naming(path):
        figure.savefig(path, dpi=150, facecolor="white", metadata={by: _PROGRAM})


def check_chart(path: str) -> None:
    """Refuse a file for a chart that holds something else than such a chart.

    Raises:
        UserError: it is another file.
    """
    place = Path(path)
    if place.exists() and not (place.is_file() and _PROGRAM.encode() in place.read_bytes()):
        raise UserError("--gates", path, "is no chart of recur.predict", "remove it, or give another name")


def _as_read(run: Any, text: str) -> tuple[list[int], list[str]]:
    """The ids that a run reads of a text, of streams after the start token, and the tokens of the text."""
    if run.family == "language":
        run.require_forward()
        ids, tokens = read_tokens(run.tokenizer, text)
        return [*([] if run.task.window is not None else [start_id(run.tokenizer)]), *ids], tokens
    ids, tokens = run.tokenizer.encode(text), run.tokenizer.tokens(text)
    kept = places_read(run, len(ids)).tolist()
    return [ids[place] for place in kept], [tokens[place] for place in kept]


def write_gates(run: Any, text: str, path: Any) -> None:
    """Write the chart of a run's gates over one text.

    Args:
        run: a trained run, of either family.
        text: to be read.
        path: file to write; its suffix says the format.

    Raises:
        UserError: the run is no LSTM or reads from the end of texts, or the text has no token or more than
            `GATES_TOKENS`.
    """
    net = run.task.net
    ids, tokens = _as_read(run, text)
    if not 0 < len(tokens) <= GATES_TOKENS:
        raise UserError("--gates", rule=f"needs a text of 1 to {GATES_TOKENS} tokens, got {len(tokens):,}")
    if not (isinstance(getattr(net, "recurrent", None), Recurrent) and hasattr(net, "embedding")):
        raise UserError("--gates", rule=f"are those of an LSTM, this run's network is a {type(net).__name__}")
    with torch.no_grad():
        rows = net.embedding(torch.tensor(ids, device=net.embedding.weight.device))
    gates = [Gates(*(rows[-len(tokens) :] for rows in one)) for one in lstm_gates(net.recurrent, rows)]
    gates_chart(tokens, gates, path, bidirectional=net.recurrent.bidirectional)
