"""`LSTM`, `GRU` and `RNN` with the signature of `torch.nn`'s, on the packed engine."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from recur.nn import torch_internals
from recur.nn.packed import Layout
from recur.nn.recurrent import ENGINES, pick_engine, run_fused


class _DropIn(nn.RNNBase):
    """A module of `torch.nn` whose packed and dense passes on a CPU may go through the engine.

    Whatever the engine does not do, errors in the arguments included, is left to torch.
    """

    def __init__(self, *args: Any, engine: str = "auto", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if engine not in ENGINES:
            raise ValueError(f"engine is one of {', '.join(ENGINES)}, got {engine!r}")
        if engine == "fused" and self.proj_size:
            raise ValueError(
                f"the fused engine has no projection, got proj_size={self.proj_size}: use engine='auto', "
                "which leaves it to torch"
            )
        self.engine = engine

    @property
    def _cell(self) -> str:
        return {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn", "RNN_RELU": "rnn_relu"}[self.mode]

    def forward(self, input: Any, hx: Any = None, *, lengths: Any = None) -> Any:  # noqa: A002 (torch's own name)
        """Run the layers as `torch.nn` does.

        Args:
            input: a `PackedSequence`, or `(time, batch, features)`, or with `batch_first` `(batch, time, features)`,
                or without a batch `(time, features)`, or a nested tensor of jagged layout, `(batch, lengths, features)`
                whatever `batch_first` says: no pads are made of it.
            hx: initial state as `torch.nn` wants it, zeros by default.
            lengths: with a padded batch, the length of each sequence, in any order: what lies beyond is neither read
                nor written to (the output holds zeros there), and the final states are those of the last real steps.

        Returns:
            The output, in the form of the input, and the final state. The backward pass reads the output, as that of
            torch's dense LSTM does: with gradients on, change a copy of it.

        Raises:
            ValueError: `lengths` is given with something else than a padded batch, or does not fit it; a nested tensor
                is not jagged, not of three dimensions, or holds a sequence without steps.
        """
        if isinstance(input, Tensor) and input.is_nested:
            if lengths is not None:
                raise ValueError("lengths go with a padded batch: a nested tensor has its own")
            return self._nested(input, hx)
        if lengths is not None:
            return self._padded(input, hx, lengths)
        layout = self._layout(input, hx)
        if layout is None:
            return super().forward(input, hx)
        packed = isinstance(input, PackedSequence)
        order = input.sorted_indices if packed else None
        if packed:
            rows = input.data
        else:
            steps = input.transpose(0, 1) if self.batch_first and input.dim() == 3 else input
            rows = steps.reshape(-1, self.input_size)
        shape = (self._directed_layers, layout.batch, self.hidden_size)
        if hx is None:
            state = tuple(rows.new_zeros(shape) for _ in range(2 if self.mode == "LSTM" else 1))
        else:
            state = tuple(part.reshape(shape) for part in (hx if self.mode == "LSTM" else (hx,)))
            state = tuple(part if order is None else part[:, order] for part in state)
        output, last = self._run(rows, layout, state)
        dtype = self._dtype_of_answer(rows, packed)
        output, last = output.to(dtype), tuple(part.to(dtype) for part in last)
        if packed:
            result: Any = PackedSequence(output, input.batch_sizes, order, input.unsorted_indices)
            last = tuple(part if order is None else part[:, input.unsorted_indices] for part in last)
        elif input.dim() == 2:
            result, last = output, tuple(part.squeeze(1) for part in last)
        else:
            result = output.unflatten(0, (-1, layout.batch))  # (time, batch, features)
            result = result.transpose(0, 1) if self.batch_first else result
        return result, last if self.mode == "LSTM" else last[0]

    def _nested(self, nested: Tensor, hx: Any) -> Any:
        """Run over a jagged nested tensor, and give the output as one with the same offsets."""
        if nested.layout != torch.jagged or nested.dim() != 3:
            raise ValueError(
                f"a nested tensor must be jagged, (batch, lengths, features), got {nested.dim()} dimensions and layout "
                f"{nested.layout}: build it with torch.nested.nested_tensor(sequences, layout=torch.jagged)"
            )
        jagged: Any = nested.contiguous()
        offsets = jagged.offsets().cpu()
        lengths = offsets.diff()
        if len(lengths) == 0 or lengths.min() < 1:
            raise ValueError(f"every sequence of a nested tensor must have a step, got lengths {lengths.tolist()}")
        order = lengths.argsort(descending=True, stable=True)
        steps = torch.arange(int(lengths.max()))
        batch_sizes = (lengths[None] > steps[:, None]).sum(1)
        layout = Layout(batch_sizes)
        times = torch.repeat_interleave(steps, batch_sizes, output_size=layout.rows)
        rows = (offsets[order][layout.places] + times).to(nested.device)  # of each packed row in the jagged values
        inverse = torch.empty_like(rows).scatter_(0, rows, torch.arange(len(rows), device=rows.device))
        order = order.to(nested.device)
        packed = PackedSequence(jagged.values()[rows], batch_sizes, order, order.argsort())
        output, last = _DropIn.forward(self, packed, hx)  # hooks are run once, by the call that led here
        values = output.data[inverse]
        # tensors of the same offsets, the very object, can be added
        return torch.nested.nested_tensor_from_jagged(values, jagged.offsets()), last

    def _padded(self, padded: Any, hx: Any, lengths: Any) -> Any:
        if not isinstance(padded, Tensor) or padded.dim() != 3:
            raise ValueError("lengths go with a padded batch of 3 dimensions only")
        batch, time = (0, 1) if self.batch_first else (1, 0)
        lengths = torch.as_tensor(lengths, dtype=torch.int64, device="cpu")
        if (
            lengths.shape != (padded.shape[batch],)
            or not len(lengths)
            or lengths.min() < 1
            or lengths.max() > padded.shape[time]
        ):
            raise ValueError(
                f"a padded batch of {padded.shape[batch]} sequences of at most {padded.shape[time]} steps needs as "
                f"many lengths from 1 to {padded.shape[time]}, got {lengths.tolist()}"
            )
        sequence = pack_padded_sequence(padded, lengths, self.batch_first, enforce_sorted=False)
        output, last = _DropIn.forward(self, sequence, hx)
        return pad_packed_sequence(output, self.batch_first, total_length=padded.shape[time])[0], last

    @property
    def _directed_layers(self) -> int:
        return self.num_layers * (2 if self.bidirectional else 1)

    def _layout(self, sequence: Any, hx: Any) -> Layout | None:
        """Where the rows lie, if the engine takes this call: asked for, able to, and the arguments in order."""
        packed = isinstance(sequence, PackedSequence)
        rows = sequence.data if packed else sequence
        if torch.jit.is_tracing() or torch.compiler.is_exporting():  # which record torch's own operators
            return None
        if torch_internals.is_transformed():
            return None
        if self.engine == "torch" or self.proj_size or not isinstance(rows, Tensor) or rows.device.type != "cpu":
            return None
        if rows.shape[-1] != self.input_size or rows.dtype != self.weight_ih_l0.dtype or not rows.numel():
            return None
        if packed and rows.dim() == 2:
            layout = Layout(sequence.batch_sizes)
        elif not packed and rows.dim() in (2, 3):
            batch, time = rows.shape[:2] if self.batch_first else rows.shape[1::-1]
            batch, time = (1, rows.shape[0]) if rows.dim() == 2 else (batch, time)
            layout = Layout(torch.full((time,), batch))
        else:
            return None
        if packed and hx is not None:
            self.check_forward_args(rows, hx, sequence.batch_sizes)  # torch does not, and may read the wrong memory
        if hx is not None:
            want: tuple[int, ...] = (self._directed_layers, layout.batch, self.hidden_size)
            if not packed and rows.dim() == 2:
                want = (self._directed_layers, self.hidden_size)
            parts = hx if self.mode == "LSTM" else (hx,)
            if len(parts) != (2 if self.mode == "LSTM" else 1):
                return None
            dtypes = (rows.dtype, self._dtype_of_answer(rows, packed))
            if any(part.shape != want or part.dtype not in dtypes for part in parts):
                return None
        chosen = pick_engine(self.engine, self._cell, rows, layout, self.hidden_size, 1 + self.bidirectional)
        return layout if chosen == "fused" else None

    def _dtype_of_answer(self, rows: Tensor, packed: bool) -> torch.dtype:
        """What torch itself answers in, so that it is the same whichever engine a batch's shape picks.

        Under autocast that is the low precision but for its GRU and its walk of a packed LSTM, which carry float32.
        """
        if rows.dtype != torch.float32 or not torch.is_autocast_enabled("cpu"):
            return rows.dtype
        whole = self.mode == "LSTM" and not packed and torch.backends.mkldnn.is_available()
        return torch.get_autocast_dtype("cpu") if whole or self.mode.startswith("RNN") else rows.dtype

    def _run(self, rows: Tensor, layout: Layout, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """All layers. `state` and the answer: `(layers * directions, batch, hidden)` in packed order."""
        directions = 2 if self.bidirectional else 1
        last = []
        for first in range(0, self._directed_layers, directions):
            if first and self.dropout and self.training:
                rows = F.dropout(rows, self.dropout)
            own = slice(first, first + directions)
            weights = [[getattr(self, name) for name in names] for names in self._all_weights[own]]
            weights = [w if self.bias else [*w, None, None] for w in weights]
            rows, final = run_fused(self._cell, rows, layout, tuple(part[own] for part in state), weights)
            last.append(final)
        return rows, tuple(torch.cat(parts) for parts in zip(*last, strict=True))


class LSTM(_DropIn, nn.LSTM):
    """`torch.nn.LSTM`, exact and fast on a CPU. Also takes `engine` (as `Recurrent` does) and, called, `lengths`."""


class GRU(_DropIn, nn.GRU):
    """`torch.nn.GRU`, exact and fast on a CPU. Also takes `engine` (as `Recurrent` does) and, called, `lengths`."""


class RNN(_DropIn, nn.RNN):
    """`torch.nn.RNN`, exact and fast on a CPU. Also takes `engine` (as `Recurrent` does) and, called, `lengths`."""
