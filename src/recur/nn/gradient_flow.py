"""How much of a gradient comes back through the steps of a recurrent stack."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from recur.nn.recurrent import Recurrent, State


def gradient_by_lag(recurrent: Recurrent, rows: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    r"""Norm of $\partial L_T / \partial h_t$ by the lag T - t, for a loss at the last step alone.

    The stack is run a step at a time with carried state, which is the same function as one long pass, so that every
    h_t is a tensor whose gradient can be asked for. For the LSTM h_t is the hidden state; what flows through the cell
    state counts where it comes back to h.

    Args:
        recurrent: a stack that reads one way.
        rows: embedded texts of one length, `(time, batch, input_size)`.
        loss: from the top layer's last hidden state, `(batch, hidden)`, to one loss a text, `(batch,)`.

    Returns:
        `(time, batch)`: row k holds the norm, over the top layer's features, for lag k.

    Raises:
        ValueError: the stack reads both ways: then a step knows what comes after it.
    """
    if recurrent.bidirectional:
        raise ValueError("gradient_by_lag needs a stack that reads one way, this one reads both ways")
    length, batch, _ = rows.shape
    state: State = recurrent.initial_state(batch, rows)
    hidden: list[Tensor] = []
    sizes = torch.tensor([batch])
    with torch.enable_grad():
        rows = rows.detach().requires_grad_(True)  # whether or not the weights are frozen
        for step in range(length):
            _, state = recurrent(PackedSequence(rows[step], sizes), state)
            hidden.append(state[-1][0])  # (1, batch, hidden)
        total = loss(hidden[-1][0]).sum()
        gradients = torch.autograd.grad(total, hidden, allow_unused=True)
    norms = [torch.zeros(batch) if g is None else g[0].norm(dim=1).cpu() for g in gradients]
    return torch.stack(norms[::-1]).detach()
