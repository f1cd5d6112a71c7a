"""A layer of Mogrifier LSTMs in compiled kernels (`recur.nn.jit.mogrifier`), as `recur.nn.compiled` has other cells.

The kernels need what those of `recur.nn.compiled` need; elsewhere `recur.nn.cells` walks step by step under autograd.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from recur.nn import compiled, products
from recur.nn.compiled import numpy_of
from recur.nn.differentiation import differentiable_once, one_gradient_at_a_time
from recur.nn.packed import Layout

Weights = Sequence[Tensor | None]  # w_ih, w_hh, b_ih, b_hh, the matrix of each round


@cache
def _kernels() -> Any:
    from recur.nn.jit import mogrifier

    return mogrifier


class _Direction:
    """One direction of a layer: its weights as the kernels want them, and its walks."""

    def __init__(self, layout: Layout, reverse: bool, bf16: bool, weights: Weights, column: int, stride: int) -> None:
        w_ih, w_hh, b_ih, b_hh, *rounds = (None if w is None else w.detach() for w in weights)
        assert w_ih is not None
        self.matrices = [w for w in (w_ih, w_hh, *rounds) if w is not None]
        self.layout, self.reverse, self.bf16, self.column, self.stride = layout, reverse, bf16, column, stride
        self.size, self.features = len(w_ih) // 4, w_ih.shape[1]
        self.rounds = len(self.matrices) - 2
        self.on_x, self.on_h = (self.rounds + 1) // 2, self.rounds // 2
        self.width = self.on_x * self.features + self.on_h * self.size
        self.bias = w_ih.new_zeros(len(w_ih)) if b_ih is None or b_hh is None else b_ih + b_hh

    def _panels(self, turned: bool) -> list[Any]:
        """The panels of all matrices (transposed), where each one's begin, and how many columns one has."""
        packed = [products.pack(w.t() if turned else w, self.bf16) for w in self.matrices]
        starts = torch.tensor([0, *(len(panels) for panels, _ in packed)]).cumsum(0)
        widths = torch.tensor([width for _, width in packed])
        return [t.numpy() for t in (torch.cat([panels for panels, _ in packed]), starts, widths)]

    def _walk(self, part: tuple[int, int], functions: Sequence[Any], chunk: int) -> Any:
        kernels = _kernels()
        cell = functions[kernels.at.LSTM].address(self.bf16)
        own = (self.size, self.features, self.rounds, self.column, self.stride, chunk)
        return kernels.Walk(products.micro_kernel(self.bf16), cell, self.reverse, *part, *own)

    def _operand(self, *shape: int) -> Any:
        return numpy_of(self.bias.new_empty(shape, dtype=torch.bfloat16 if self.bf16 else torch.float32))

    def forward(
        self, parts: list[tuple[int, int]], rows: Tensor, hidden: Tensor, cell: Tensor, output: Tensor, save: bool
    ) -> tuple[list[Callable[[], None]], Sequence[Tensor | None], Tensor]:
        """Jobs that fill `output`; the gates, rounds and cell states that they fill, and the last cell state."""
        kernels, panels, new = _kernels(), self._panels(turned=True), self.bias.new_empty
        state, last = hidden.clone(), cell.clone()
        saved = [new(self.layout.rows, width) for width in (4 * self.size, self.width, self.size)] if save else []
        jobs: list[Callable[[], None]] = []
        for part in parts:
            n = part[1] - part[0]
            gates, gated, cells = saved or (new(n, 4 * self.size), new(n, self.width), new(0))
            arrays = [numpy_of(t) for t in (self.bias, hidden, cell, output, gates, gated, cells)]
            offsets = self.layout.bounds.numpy()
            tensors = kernels.Tensors(offsets, offsets[:0], numpy_of(rows), *panels, *arrays)
            plain = [numpy_of(t) for t in (state, last, new(2 * n, self.features), new(2 * n, self.size))]
            scratch = kernels.Scratch(*plain, self._operand(n, self.features), self._operand(n, self.size))
            walk = self._walk(part, kernels.at.FORWARD, 0)

            def job(walk: Any = walk, tensors: Any = tensors, scratch: Any = scratch) -> None:
                kernels.forward(walk, tensors, scratch, save)
                products.release()

            jobs.append(job)
        return jobs, saved or [None] * 3, last

    def backward(
        self,
        parts: list[tuple[int, int]],
        saved: Sequence[Tensor],
        d_output: Tensor,
        d_last: tuple[Tensor | None, Tensor | None],
        biased: bool,
    ) -> tuple[list[Callable[[], None]], Callable[[], list[Tensor | None]]]:
        """Jobs, and what then gives the gradients of rows, hidden, cell and the weights.

        `saved`: rows, hidden, cell, output, gates, rounds, cell states.
        """
        kernels, panels, new = _kernels(), self._panels(turned=False), self.bias.new_empty
        rows, hidden, cell, output, gates, gated, cells = saved
        d_hidden, d_cell = (torch.zeros_like(hidden) if d is None else d.clone() for d in d_last)
        d_rows, d_width = torch.empty_like(rows), 4 * self.size + self.width
        versions = (self.on_x + 1) * self.features + (self.on_h + 1) * self.size
        starts = torch.tensor([0, *(w.numel() for w in self.matrices)]).cumsum(0)
        jobs, sums = list[Callable[[], None]](), list[tuple[Tensor, Tensor]]()
        for part in parts:
            n = part[1] - part[0]
            chunks, capacity = compiled.chunk_steps(self.layout, *part)
            widths = [products.panel_width(capacity, len(w), self.bf16) for w in self.matrices]
            columns = max(-(-len(w) // width) * width for w, width in zip(self.matrices, widths, strict=True))
            own = (self.bias.new_zeros(int(starts[-1])), torch.zeros_like(self.bias))
            arrays = [numpy_of(t) for t in (self.bias, hidden, cell, output, gates, gated, cells)]
            tensors = kernels.Tensors(self.layout.bounds.numpy(), chunks.numpy(), numpy_of(rows), *panels, *arrays)
            room = new((self.on_x + 1) * n, self.features), new((self.on_h + 1) * n, self.size)
            none = self._operand(0)
            scratch = kernels.Scratch(*(numpy_of(t) for t in (d_hidden, d_cell, *room)), none, none)
            targets = [numpy_of(t) for t in (d_output, d_hidden, d_rows, own[0])]
            gradients = kernels.Gradients(
                *targets,
                starts.numpy(),
                numpy_of(own[1]),
                self._operand(capacity, d_width),
                self._operand(capacity, versions),
                self._operand(capacity, columns),
                torch.tensor(widths).numpy(),
                self._operand(max(self.features, self.size), capacity),
            )
            walk = self._walk(part, kernels.at.BACKWARD, capacity)

            def job(walk: Any = walk, tensors: Any = tensors, scratch: Any = scratch, own: Any = gradients) -> None:
                kernels.backward(walk, tensors, scratch, own)
                products.release()

            jobs.append(job)
            sums.append(own)

        def collect() -> list[Tensor | None]:
            flat, bias = (compiled.total(same) for same in zip(*sums, strict=True))
            assert flat is not None
            assert bias is not None
            own: list[Tensor | None] = [
                flat[start : start + w.numel()].view(w.shape[1], len(w)).t()
                for start, w in zip(starts.tolist(), self.matrices, strict=False)
            ]
            # Two tensors: gradient clipping scales in place, and would scale a shared one twice.
            own[2:2] = [bias, bias.clone()] if biased else [None, None]
            return [d_rows, d_hidden, d_cell, *own]

        return jobs, collect


class _Layer(torch.autograd.Function):
    """One layer in one or both directions, with `4 + rounds` weights each."""

    @staticmethod
    def forward(
        ctx: Any, layout: Layout, count: int, save: bool, inputs: Tensor, hidden: Tensor, cell: Tensor, *weights: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        each, size = len(weights) // count, hidden.shape[2]
        even = size % 2 == 0 and inputs.shape[1] % 2 == 0
        bf16 = products.wants_bf16() and even and products.micro_kernel(True) is not None
        with torch.autocast("cpu", enabled=False):
            inputs, hidden, cell = (t.detach().contiguous() for t in (inputs, hidden, cell))
            output = inputs.new_empty(layout.rows, count * size)
            work = 1.0 * layout.rows * sum(w.numel() for w in weights if w is not None)
            parts = compiled.split_batch(layout, count, work)
            jobs, saved, lasts = list[Callable[[], None]](), list[Tensor | None](), list[Tensor]()
            for d in range(count):
                own = weights[each * d : each * (d + 1)]
                direction = _Direction(layout, bool(d), bf16, own, d * size, output.shape[1])
                one, kept, last = direction.forward(parts, inputs, hidden[d], cell[d], output, save)
                jobs += one
                saved += kept
                lasts.append(last)
            compiled.side_by_side(jobs, work)
            halves = output.chunk(count, 1)
            last_hidden = torch.stack([halves[d][layout.final_rows(bool(d))] for d in range(count)])
        if save:
            ctx.save_for_backward(inputs, hidden, cell, output, *weights, *saved)
            ctx.layout, ctx.count, ctx.bf16, ctx.work, ctx.parts = layout, count, bf16, work, parts
            ctx.set_materialize_grads(False)
        return output, last_hidden, torch.stack(lasts)

    @staticmethod
    @differentiable_once
    @one_gradient_at_a_time
    def backward(
        ctx: Any, d_output: Tensor | None, d_hidden: Tensor | None, d_cell: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        inputs, hidden, cell, output, *rest = ctx.saved_tensors
        count, size = ctx.count, hidden.shape[2]
        weights, saved = rest[: -3 * count], rest[-3 * count :]
        each = len(weights) // count
        with torch.autocast("cpu", enabled=False):
            d_output = torch.zeros_like(output) if d_output is None else d_output.contiguous()
            jobs, collects = list[Callable[[], None]](), []
            for d in range(count):
                own = weights[each * d : each * (d + 1)]
                direction = _Direction(ctx.layout, bool(d), ctx.bf16, own, d * size, output.shape[1])
                kept = (inputs, hidden[d], cell[d], output, *saved[3 * d : 3 * d + 3])
                last = (None if d_hidden is None else d_hidden[d], None if d_cell is None else d_cell[d])
                last = tuple(None if part is None else part.contiguous() for part in last)  # type: ignore[assignment]
                one, collect = direction.backward(ctx.parts, kept, d_output, last, own[2] is not None)
                jobs += one
                collects.append(collect)
            compiled.side_by_side(jobs, 2 * ctx.work)
            results = [collect() for collect in collects]
        d_input = compiled.total([r[0] for r in results])
        initial = [torch.stack([t for r in results if (t := r[k]) is not None]) for k in (1, 2)]
        return (None, None, None, d_input, *initial, *(g for r in results for g in r[3:]))


def layer(
    inputs: Tensor, layout: Layout, state: tuple[Tensor, ...], weights: Sequence[Weights]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer over packed rows, differentiable once, where `recur.nn.compiled.available`.

    Args:
        inputs: `(rows, input_size)` packed float32 rows.
        layout: where the rows lie.
        state: initial hidden and cell state, each `(directions, batch, hidden)`.
        weights: for each direction w_ih, w_hh, b_ih, b_hh as `torch.nn.LSTM` lays them out (both biases None without),
            then the matrix of each round: `(input_size, hidden)` of the odd ones, `(hidden, input_size)` of the others.

    Returns:
        `(rows, directions * hidden)` and the final state, shaped as the initial one.

    Raises:
        RuntimeError: a shape or dtype that does not fit: the kernels read and write by address.
    """
    features, size = inputs.shape[1], state[0].shape[2]
    for own in weights:
        rounds = [(size, features) if i % 2 else (features, size) for i in range(len(own) - 4)]
        wants = [(4 * size, features), (4 * size, size), (4 * size,), (4 * size,), *rounds]
        got = [None if w is None else tuple(w.shape) for w in own]
        fits = all(g == want or (g is None and len(want) == 1) for g, want in zip(got, wants, strict=True))
        if not fits or (own[2] is None) != (own[3] is None):
            raise RuntimeError(f"weights of shapes {got} do not fit, expected {wants}")
    shapes = [tuple(part.shape) for part in state]
    flat = [w for direction in weights for w in direction]
    tensors = [t for t in (inputs, *state, *flat) if t is not None]
    if len(inputs) != layout.rows or shapes != [(len(weights), layout.batch, size)] * 2:
        raise RuntimeError(f"{len(inputs)} rows and states {shapes} do not fit {layout.rows} rows")
    if any(t.dtype != torch.float32 for t in tensors):
        raise RuntimeError("inputs, states and weights of the compiled kernels do not fit: all must be float32")
    save = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    output, last_hidden, last_cell = _Layer.apply(layout, len(weights), save, inputs, *state, *flat)
    return output, (last_hidden, last_cell)
