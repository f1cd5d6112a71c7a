"""Dropout inside the recurrence: a mask a step on the hidden state that goes into the next one.

It is what the guides warn of. Gal and Ghahramani (2016) draw one mask a sequence instead, Merity et al. (2018) drop
weights (`weight_drop`), and both leave alone what is carried from step to step.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from recur.nn.cells import Weights, walk
from recur.nn.packed import Layout
from recur.nn.regularization import dropout

_STEPS: dict[str, Callable[..., Any]] = {
    "lstm": torch.lstm_cell,
    "gru": torch.gru_cell,
    "rnn": torch.rnn_tanh_cell,
    "rnn_relu": torch.rnn_relu_cell,
}


def run_with_state_dropout(
    cell: str, rows: Tensor, layout: Layout, state: tuple[Tensor, ...], weights: Sequence[Weights], p: float
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer, step by step, in the dtype of its weights.

    A GPU's autocast would carry the states in 16 bits from step to step; torch's own recurrence beside bfloat16 is in
    float32, too.

    Args:
        cell: one of torch's cells.
        rows: `(rows, input_size)`.
        layout: where the rows lie.
        state: initial state, each part `(directions, batch, hidden)`.
        weights: of each direction, by name.
        p: probability of zeroing a feature of the hidden state; the others are scaled by 1 / (1 - p).

    Returns:
        `(rows, directions * hidden)` and the final state; outputs and the final state are not dropped.
    """
    dtype = weights[0]["weight_hh"].dtype
    rows, state = rows.to(dtype), tuple(part.to(dtype) for part in state)
    runs = []
    for direction, own in enumerate(weights):
        four = [own.get(name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]

        def step(inputs: Tensor, now: tuple[Tensor, ...], four: list[Any] = four) -> tuple[Tensor, tuple[Tensor, ...]]:
            hidden = dropout(now[0], p)
            if cell == "lstm":
                after: tuple[Tensor, ...] = _STEPS[cell](inputs, (hidden, now[1]), *four)
            else:
                after = (_STEPS[cell](inputs, hidden, *four),)
            return after[0], after

        with torch.autocast(rows.device.type, enabled=False):
            runs.append(walk(step, rows, layout, tuple(part[direction] for part in state), bool(direction)))
    outputs, finals = zip(*runs, strict=True)
    return torch.cat(outputs, 1), tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
