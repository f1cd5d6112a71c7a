"""The two models on padded tensors in plain torch, for `torch.export`.

Steps behind a text's end leave its state as it is, so that no pad is ever seen; a walk from the end begins in an
initial state that waits until the text's last token has come. The inputs and outputs are those of `models`.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recur.errors import ABSENT, UserError
from recur.exporting.torch_internals import scan
from recur.nn.classifier import Classifier
from recur.nn.language_model import LanguageModel
from recur.nn.recurrent import Recurrent

Parts = tuple[Tensor, ...]
# From the input's part of the gates (batch, gates), the hidden part and the state to the new state, hidden first.
_Update = Callable[[Tensor, Tensor, Parts], Parts]


def _lstm(inputs: Tensor, carried: Tensor, state: Parts) -> Parts:
    i, f, g, o = (inputs + carried).chunk(4, 1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(inputs: Tensor, carried: Tensor, state: Parts) -> Parts:
    (r, z, n), (r_h, z_h, n_h) = inputs.chunk(3, 1), carried.chunk(3, 1)
    z = (z + z_h).sigmoid()
    new = (n + (r + r_h).sigmoid() * n_h).tanh()
    return (new + z * (state[0] - new),)


def _rnn(inputs: Tensor, carried: Tensor, state: Parts) -> Parts:
    return ((inputs + carried).tanh(),)


def _rnn_relu(inputs: Tensor, carried: Tensor, state: Parts) -> Parts:
    return ((inputs + carried).relu(),)


_UPDATES: dict[str, _Update] = {"lstm": _lstm, "gru": _gru, "rnn": _rnn, "rnn_relu": _rnn_relu}


class _Stack(nn.Module):
    """The recurrent layers on `(time, batch, features)`."""

    def __init__(self, recurrent: Recurrent) -> None:
        super().__init__()
        if recurrent.cell not in _UPDATES:
            raise UserError(
                "cell",
                recurrent.cell,
                f"must be one of {', '.join(_UPDATES)} for torch.export",
                "--format onnx has all",
            )
        self.recurrent = recurrent
        self.update = _UPDATES[recurrent.cell]

    def forward(self, rows: Tensor, mask: Tensor, state: list[Parts] | None) -> tuple[Tensor, list[Parts]]:
        finals = []
        for index in range(self.recurrent.num_layers):
            initial = None if state is None else state[index]
            walks = [self._walk(rows, mask, index, d, initial) for d in range(self.recurrent.directions)]
            rows = torch.cat([output for output, _ in walks], 2)
            finals.append(tuple(torch.stack(parts) for parts in zip(*(final for _, final in walks), strict=True)))
        return rows, finals

    def _walk(self, rows: Tensor, mask: Tensor, index: int, d: int, initial: Parts | None) -> tuple[Tensor, Parts]:
        suffix = f"_l{index}{self.recurrent.suffixes[d]}"
        w_ih, w_hh = (getattr(self.recurrent, name + suffix) for name in ("weight_ih", "weight_hh"))
        b_ih, b_hh = (getattr(self.recurrent, name + suffix, None) for name in ("bias_ih", "bias_hh"))
        width = self.recurrent.layer_sizes[index][1]
        if initial is None:
            number = 2 if self.recurrent.cell == "lstm" else 1
            start = tuple(rows.new_zeros(rows.shape[1], width) for _ in range(number))
        else:
            start = tuple(part[d].clone() for part in initial)

        def step(state: Parts, now: tuple[Tensor, Tensor]) -> tuple[Parts, Tensor]:
            inputs, within = now
            new = self.update(inputs, F.linear(state[0], w_hh, b_hh), state)
            kept = tuple(torch.where(within, after, before) for after, before in zip(new, state, strict=True))
            return kept, kept[0].clone()

        final, output = scan(step, start, (F.linear(rows, w_ih, b_ih), mask), reverse=bool(d))
        return output, final


def _read(net: Any, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Word vectors `(time, batch, embedding_dim)` and which of them are within a text, `(time, batch, 1)`."""
    turned = ids.T
    within = torch.arange(ids.shape[1])[:, None] < lengths
    return net.embedding(turned.where(within, turned.new_zeros(()))), within[:, :, None]


class DenseClassifier(nn.Module):
    """Logits and probabilities, `(batch, classes)`, from padded ids and lengths.

    Raises:
        UserError: a cell that is not known here.
    """

    def __init__(self, net: Classifier) -> None:
        super().__init__()
        self.net, self.stack = net, _Stack(net.recurrent)

    def forward(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Answer a batch: `(batch, time)` and `(batch,)` int64."""
        vectors, within = _read(self.net, ids, lengths)
        rows, final = self.stack(vectors, within, None)
        last = torch.cat(final[-1][0].unbind(0), 1)
        largest = rows.masked_fill(~within, -torch.inf).amax(0)
        mean = rows.masked_fill(~within, 0).sum(0) / lengths[:, None].to(rows.dtype)
        kinds = {"last": [last], "max": [largest], "mean": [mean], "concat": [last, largest, mean]}
        logits = self.net.head(torch.cat(kinds[self.net.pooling], 1))
        if logits.shape[1] > 1:
            return logits, logits.softmax(1)
        return logits, torch.cat([(-logits).sigmoid(), logits.sigmoid()], 1)


class DenseLanguageModel(nn.Module):
    """Logits `(batch, time, vocabulary)` and the state after each text, from padded ids, lengths and a state.

    Raises:
        UserError: a cell that is not known here.
    """

    def __init__(self, net: LanguageModel) -> None:
        super().__init__()
        self.net, self.stack = net, _Stack(net.recurrent)

    def forward(self, ids: Tensor, lengths: Tensor, state: list[Parts]) -> tuple[Tensor, list[Parts]]:
        """Read a batch: `(batch, time)` and `(batch,)` int64, and for each layer its parts `(1, batch, size)`."""
        vectors, within = _read(self.net, ids, lengths)
        rows, final = self.stack(vectors, within, state)
        features = rows if self.net.projection is None else self.net.projection(rows)
        return self.net.logits(features).transpose(0, 1), final


def check_ngrams(net: Any) -> None:
    """Refuse a classifier with n-gram scores: their hashes have no form outside of this package.

    Raises:
        UserError: it has them.
    """
    if isinstance(net, Classifier) and net.ngrams is not None:
        raise UserError(
            "model.net.ngrams",
            ABSENT,
            "have no form outside of recur",
            "use --format safetensors, or train with =null",
        )


def export(net: Any) -> Any:
    """The `torch.export.ExportedProgram` of a network, for any batch and any number of steps.

    Raises:
        UserError: a network or a cell that is not known here.
    """
    if type(net) not in (Classifier, LanguageModel):
        raise UserError("model.net", type(net).__name__, "is no network of this package", "use --format safetensors")
    check_ngrams(net)
    ids, lengths = torch.zeros(3, 5, dtype=torch.int64), torch.tensor([5, 2, 3])
    batch, time = torch.export.Dim.DYNAMIC, torch.export.Dim.DYNAMIC
    model: nn.Module
    arguments: tuple[Any, ...]
    shapes: tuple[Any, ...]
    if isinstance(net, LanguageModel):
        model = DenseLanguageModel(net).eval()
        state = net.recurrent.initial_state(3, net.embedding.weight.detach())
        arguments = (ids, lengths, state)
        shapes = ({0: batch, 1: time}, {0: batch}, [tuple({1: batch} for _ in one) for one in state])
    else:
        model, arguments, shapes = DenseClassifier(net).eval(), (ids, lengths), ({0: batch, 1: time}, {0: batch})
    with torch.no_grad():
        return torch.export.export(model, arguments, dynamic_shapes=shapes, strict=False)


def answers(program: Any, net: Any) -> Callable[[Any, Any], Any]:
    """What an exported program gives, as `agreement.compare` takes it."""
    module = program.module()

    def answer(ids: Any, lengths: Any) -> Any:
        arguments: list[Any] = [torch.from_numpy(ids), torch.from_numpy(lengths)]
        if isinstance(net, LanguageModel):
            arguments.append(net.recurrent.initial_state(len(ids), net.embedding.weight.detach()))
        with torch.inference_mode():
            return module(*arguments)[0].numpy()

    return answer
