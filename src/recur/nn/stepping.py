"""A language model fed one token of each text at a time, as generation does: its weights are laid out once.

A token costs the products of every weight with one row a text: the processor reads the weights and does little else. So
the layouts that the kernels want are made when a `Stepper` is, not at every token, and the output layer's words are
shared out over the threads. The numbers are the model's own but for rounding.
"""

from functools import partial

import torch
from torch import Tensor

from recur.nn import compiled, products
from recur.nn.language_model import LanguageModel
from recur.nn.recurrent import State

CELLS = ("lstm", "gru", "rnn", "rnn_relu", "peephole", "lnlstm", "mingru")
"""Those that carry the state that their kernels do."""
WIDTH = 64
"""Columns of the output layer's panels: one row of x reads each panel once, from its beginning to its end."""


class Stepper:
    """A language model, to be fed one token a text.

    It holds a copy of the weights: those of the moment in which it was made. Make it by `stepper`.

    Args:
        net: the model, in evaluation mode.
        batch: texts.
        bf16: whether products round their operands to bfloat16.
    """

    def __init__(self, net: LanguageModel, batch: int, bf16: bool) -> None:
        stack = net.recurrent
        self._net, self._batch, self._bf16 = net, batch, bf16
        self._layers = [
            compiled.Step(stack.cell, stack.kernel_weights(index)[0], batch, width, bf16)
            for index, (_, width) in enumerate(stack.layer_sizes)
        ]
        weight = net.decoder.weight.detach()
        self._words = len(weight)
        self._panels, _ = products.pack(weight.t(), bf16, WIDTH)
        self._stride = -(-self._words // WIDTH) * WIDTH
        self._bias = torch.zeros(self._stride, dtype=torch.float32)
        self._bias[: self._words] = net.decoder.bias.detach()
        self._logits = torch.zeros(batch, self._stride, dtype=torch.float32)
        threads = max(1, torch.get_num_threads())
        step = -(-self._stride // WIDTH // threads) * WIDTH
        self._ranges = [(i, min(i + step, self._stride)) for i in range(0, self._stride, step)]

    def load(self, state: State) -> None:
        """Begin from a state of the model."""
        for layer, own in zip(self._layers, state, strict=True):
            layer.load([part[0] for part in own])

    def state(self) -> State:
        """The state after the last token, as the model itself would give it."""
        parts = [(layer.hidden, layer.cell) for layer in self._layers]
        return [tuple(part.clone()[None] for part in one if part is not None) for one in parts]

    def bytes(self) -> int:
        """Bytes of weights that a token reads."""
        return sum(layer.bytes for layer in self._layers) + self._panels.numel() * self._panels.element_size()

    @torch.no_grad()
    def step(self, ids: Tensor) -> Tensor:
        """Feed a token of each text, `(batch,)` int64; gives the logits of the next, `(batch, vocabulary)`.

        The answer lies in memory that the next call writes.
        """
        with torch.autocast("cpu", enabled=False):
            rows = self._net.embedding(ids)
            for layer in self._layers:
                rows = layer.run(rows)
            if self._net.projection is not None:
                rows = self._net.projection(rows)
            x = products.operand(rows, self._bf16)
            run = compiled.kernels().linear
            kernel = products.micro_kernel(self._bf16)
            arrays = [compiled.numpy_of(t) for t in (x, self._panels)]
            bias, out = compiled.numpy_of(self._bias), compiled.numpy_of(self._logits)

            def job(first: int, end: int) -> None:
                run(kernel, self._batch, x.shape[1], *arrays, WIDTH, first, end, bias, out, self._stride)
                products.release()

            work = 4.0 * self._panels.numel()  # reading a weight takes as long as several multiplications
            compiled.side_by_side([partial(job, *part) for part in self._ranges], work)
        return self._logits[:, : self._words]


def stepper(net: LanguageModel, batch: int) -> Stepper | None:
    """What feeds this model `batch` texts token by token; None where it has to be called itself.

    That is on a GPU, in float64, without the compiled kernels, and for cells that they do not walk. Under autocast to
    bfloat16 the operands of products are rounded to it.
    """
    weight = net.decoder.weight
    stack = net.recurrent
    if weight.device.type != "cpu" or not compiled.available(weight.dtype) or stack.cell not in CELLS:
        return None
    even = all(width % 2 == 0 for _, width in stack.layer_sizes)
    bf16 = products.wants_bf16() and even and products.micro_kernel(True) is not None
    return Stepper(net, batch, bf16)
