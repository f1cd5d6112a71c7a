r"""Exact recurrence over packed sequences at matrix-multiply speed on a CPU.

`torch.nn.LSTM` walks a packed batch on a CPU through autograd, one small operation and one tape node at a time; that
costs many times what the arithmetic needs. Here each layer is one `autograd.Function` whose backward pass is written
by hand. It is the same function with the same gradients: only the order of the arithmetic differs.

**The packed layout.** Rows lie time-major; step `t` owns the contiguous slice of `batch_sizes[t]` rows, longest
sequence first. Going forward in time sequences drop off the end of the slice; the reverse direction walks the same
slices with time descending, and sequences join at the end of the slice with their initial state. A state buffer of
shape `(batch, hidden)` updated in place on its first `n` rows therefore is right in both directions.

**The formulas.** With $\sigma(x) = 1/(1+e^{-x})$:

    sigma'(x) = sigma(x) (1 - sigma(x))                   so a saved s = sigma(x) suffices
    tanh(x)   = 2 sigma(2x) - 1 = 1 - 2 sigma(-2x)        so one kernel, sigma, serves all gates
    tanh'(x)  = 1 - tanh(x)^2 = 4 sigma(-2x) (1 - sigma(-2x))

LSTM (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000), torch's gate order i, f, g, o:

    i, f, o = sigma(W x + b + U h + d)      g = tanh(W x + b + U h + d)
    c' = f c + i g                          h' = o tanh(c')

and backwards, with dh', dc' the gradients that arrive and a bar for a gate's pre-activation:

    dc  = dc' + dh' o (1 - tanh(c')^2)
    d_i = dc g i (1 - i)     d_f = dc c f (1 - f)     d_g = dc i (1 - g^2)     d_o = dh' tanh(c') o (1 - o)
    dc <- dc f               dh <- U^T [d_i, d_f, d_g, d_o]
    dW = sum_t d_t x_t^T     dU = sum_t d_t h_{t-1}^T          one product each, after the walk

GRU (Cho et al. 2014, in cuDNN's variant that torch uses: the reset gate acts after the product):

    r, z = sigma(W x + b + U h + d)         n = tanh(W_n x + b_n + r (U_n h + d_n))         h' = n + z (h - n)
    d_n = dh' (1 - z) (1 - n^2)             d_r = d_n (U_n h + d_n) r (1 - r)               d_z = dh' (h' - n) (1 - z)
    dh <- dh' z + U^T [d_r, d_z, r d_n]     where (h - n) z = h' - n saves one gather

Elman's RNN: h' = tanh(a) or relu(a), a = W x + b + U h + d; d_a = dh' (1 - h'^2) or dh' [h' > 0]; dh <- U^T d_a.

**How they are computed.** In float32, where numba and a matrix micro-kernel are at hand, by `recur.nn.compiled`: all
steps of a direction in one call. What follows serves float64, and float32 elsewhere.

The cell state is kept as $\hat c = -2c$ and pre-activations of tanh are scaled by -2, which turns every activation into
$\sigma$ (three times as fast as tanh) and a step into seven operations. The signs and powers of two (exact in floating
point) are folded into the weights before the walk and into the weight gradients after.
Backwards, every factor that does not depend on dh or dc is formed for a chunk of steps at once, small enough to
stay in cache, so that a step is left with one matrix product and four pointwise operations. The two directions of a
bidirectional layer run in two threads: no barrier a step, and each core keeps one direction's weights in its own cache.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import torch
from torch import Tensor

from recur.nn import compiled
from recur.nn.differentiation import differentiable_once, one_gradient_at_a_time
from recur.nn.packed import Layout

"""Rows whose gates are projected, and whose factors are formed, at once: 256 of 4 x 256 floats fill a 1 MB cache."""
THREADED_WORK = 1_000_000_000
"""Multiplications of the recurrent products below which handing one direction to a second thread costs more than it
saves: some milliseconds."""
THREADED_STEP = 10_000_000
"""The same of one mean step: below it two threads mostly wait for each other's Python."""


class _LSTM:
    """Gate buffer [i, f, s, o], s = sigma(-2 g's pre-activation); saved beside it e = f c^ and u = sigma(c^)."""

    blocks, torch_blocks, extras, keeps_gates = 4, 4, 2, True
    input_columns, hidden_columns = slice(0, 4), slice(0, 4)
    input_order = hidden_order = (0, 1, 2, 3)  # blocks in the buffer, as numbers of torch's gates
    scale: ClassVar[dict[int, float]] = {2: -2.0}  # of pre-activations, by torch's gate
    input_kappa = hidden_kappa = (-2.0, 1.0, -8.0, 1.0)  # true gradient of a pre-activation / what the walk leaves

    @staticmethod
    def views(gates: Tensor, extras: list[Tensor], sizes: list[int]) -> Iterable[tuple[Tensor, ...]]:
        blocks = gates.chunk(4, 1)
        return zip(gates.split_with_sizes(sizes), *(b.split_with_sizes(sizes) for b in (*blocks, *extras)), strict=True)

    @staticmethod
    def step(views: tuple[Tensor, ...], hidden: Tensor, cell: Tensor, output: Tensor) -> None:
        gates, i, f, s, o, e, u = views
        gates.sigmoid_()
        torch.mul(f, cell, out=e)
        torch.addcmul(e, i, s, value=4, out=cell)  # c^' = f c^ - 2 i g, with g = 1 - 2 s
        cell.sub_(i, alpha=2)
        torch.sigmoid(cell, out=u)
        torch.addcmul(o, o, u, value=-2, out=output)  # h = o tanh(c) = o (1 - 2 u)

    @staticmethod
    def factors(gates: Tensor, extras: list[Tensor], output: Tensor, out: Tensor, spare: Tensor) -> None:
        (i, f, s, o), (e, u) = gates.chunk(4, 1), extras
        d_i, d_f, d_s, d_o = out.chunk(4, 1)
        torch.addcmul(gates, gates, gates, value=-1, out=out)  # sigma' of every gate
        d_i.addcmul_(d_i, s, value=-2)
        torch.addcmul(e, e, f, value=-1, out=d_f)  # c^ f (1 - f)
        d_s.mul_(i)
        d_o.addcmul_(d_o, u, value=-2)
        torch.addcmul(u, u, u, value=-1, out=spare).mul_(o)

    @staticmethod
    def back_views(
        gates: Tensor, out: Tensor, spare: Tensor, d_hidden: Tensor, sizes: list[int]
    ) -> Iterable[tuple[Tensor, ...]]:
        size = d_hidden.shape[1]
        ifs = out[:, : 3 * size].unflatten(1, (3, size))
        tensors = (d_hidden, out, ifs, out[:, 3 * size :], gates[:, size : 2 * size], spare)
        return zip(*(t.split_with_sizes(sizes) for t in tensors), strict=True)

    @staticmethod
    def back_step(views: tuple[Tensor, ...], d_cell: Tensor, d_cell3: Tensor) -> None:
        d_hidden, _, d_ifs, d_o, f, b = views
        d_cell.addcmul_(d_hidden, b, value=-2)
        d_ifs.mul_(d_cell3)
        d_o.mul_(d_hidden)
        d_cell.mul_(f)

    @staticmethod
    def carry(views: tuple[Tensor, ...], rows: int, d_previous: Tensor) -> None:
        """Gradient that reaches the previous hidden state beside the recurrent product: none."""


class _GRU:
    """Gate buffer [U_n h + d_n, r, z, s], the first and the last scaled by -2 before s = sigma(...)."""

    blocks, torch_blocks, extras, keeps_gates = 4, 3, 0, True
    input_columns, hidden_columns = slice(1, 4), slice(0, 3)
    input_order, hidden_order = (0, 1, 2), (2, 0, 1)
    scale: ClassVar[dict[int, float]] = {2: -2.0}
    input_kappa, hidden_kappa = (-2.0, 1.0, 4.0), (4.0, -2.0, 1.0)

    @staticmethod
    def views(gates: Tensor, extras: list[Tensor], sizes: list[int]) -> Iterable[tuple[Tensor, ...]]:
        size = gates.shape[1] // 4
        tensors = (gates[:, : 3 * size], gates[:, size : 3 * size], *gates.chunk(4, 1))
        return zip(*(t.split_with_sizes(sizes) for t in tensors), strict=True)

    @staticmethod
    def step(views: tuple[Tensor, ...], hidden: Tensor, cell: Tensor, output: Tensor) -> None:
        _, rz, u, r, z, s = views
        rz.sigmoid_()
        s.addcmul_(r, u).sigmoid_()
        torch.mul(s, -2, out=output).add_(1).lerp_(hidden, z)  # n = 1 - 2 s, then h' = n + z (h - n)

    @staticmethod
    def factors(gates: Tensor, extras: list[Tensor], output: Tensor, out: Tensor, spare: Tensor) -> None:
        (u, r, z, s), (d_u, d_r, d_z, d_s) = gates.chunk(4, 1), out.chunk(4, 1)
        torch.mul(z, -1, out=spare).add_(1)
        torch.addcmul(s, s, s, value=-1, out=d_s).mul_(spare)
        torch.mul(d_s, r, out=d_u)
        torch.addcmul(u, u, r, value=-1, out=d_r).mul_(d_u)
        torch.add(output, s, alpha=2, out=d_z).sub_(1).mul_(spare)

    @staticmethod
    def back_views(
        gates: Tensor, out: Tensor, spare: Tensor, d_hidden: Tensor, sizes: list[int]
    ) -> Iterable[tuple[Tensor, ...]]:
        size = d_hidden.shape[1]
        tensors = (
            d_hidden,
            out[:, : 3 * size],
            out.unflatten(1, (4, size)),
            d_hidden.unsqueeze(1),
            gates[:, 2 * size : 3 * size],
        )
        return zip(*(t.split_with_sizes(sizes) for t in tensors), strict=True)

    @staticmethod
    def back_step(views: tuple[Tensor, ...], d_cell: Tensor, d_cell3: Tensor) -> None:
        views[2].mul_(views[3])

    @staticmethod
    def carry(views: tuple[Tensor, ...], rows: int, d_previous: Tensor) -> None:
        d_previous.addcmul_(views[0][:rows], views[4][:rows])


class _RNN:
    """Gate buffer [s], s = sigma(-2 a); nothing of it is needed backwards, where h' itself suffices."""

    blocks, torch_blocks, extras, keeps_gates = 1, 1, 0, False
    input_columns = hidden_columns = slice(0, 1)
    input_order = hidden_order = (0,)
    scale: ClassVar[dict[int, float]] = {0: -2.0}
    input_kappa = hidden_kappa = (1.0,)

    @staticmethod
    def views(gates: Tensor, extras: list[Tensor], sizes: list[int]) -> Iterable[tuple[Tensor, ...]]:
        return zip(gates.split_with_sizes(sizes), strict=True)

    @staticmethod
    def step(views: tuple[Tensor, ...], hidden: Tensor, cell: Tensor, output: Tensor) -> None:
        torch.mul(views[0].sigmoid_(), -2, out=output).add_(1)

    @staticmethod
    def factors(gates: Tensor, extras: list[Tensor], output: Tensor, out: Tensor, spare: Tensor) -> None:
        torch.mul(output, output, out=out).neg_().add_(1)

    @staticmethod
    def back_views(
        gates: Tensor, out: Tensor, spare: Tensor, d_hidden: Tensor, sizes: list[int]
    ) -> Iterable[tuple[Tensor, ...]]:
        return zip(d_hidden.split_with_sizes(sizes), out.split_with_sizes(sizes), strict=True)

    @staticmethod
    def back_step(views: tuple[Tensor, ...], d_cell: Tensor, d_cell3: Tensor) -> None:
        views[1].mul_(views[0])

    @staticmethod
    def carry(views: tuple[Tensor, ...], rows: int, d_previous: Tensor) -> None:
        """None beside the recurrent product."""


class _ReluRNN(_RNN):
    """Gate buffer [a]."""

    scale: ClassVar[dict[int, float]] = {}

    @staticmethod
    def step(views: tuple[Tensor, ...], hidden: Tensor, cell: Tensor, output: Tensor) -> None:
        torch.clamp_min(views[0], 0, out=output)

    @staticmethod
    def factors(gates: Tensor, extras: list[Tensor], output: Tensor, out: Tensor, spare: Tensor) -> None:
        torch.logical_not(output <= 0, out=out)  # as torch's own: a NaN lets its gradient through


_KERNELS: dict[str, Any] = {"lstm": _LSTM, "gru": _GRU, "rnn": _RNN, "rnn_relu": _ReluRNN}
FUSED_CELLS = tuple(_KERNELS)


def _rearranged(weight: Tensor, order: Sequence[int], factors: Sequence[float], blocks: int) -> Tensor:
    """Blocks of rows of `weight` in the given order, each times its factor."""
    parts = weight.chunk(blocks)
    return torch.cat([parts[i] if f == 1 else parts[i] * f for i, f in zip(order, factors, strict=True)])


def _restored(gradient: Tensor, order: Sequence[int], factors: Sequence[float]) -> Tensor:
    """Undo `_rearranged` on a gradient: scale each block, then put the blocks back in torch's order."""
    parts = gradient.chunk(len(order))
    scaled = [part if f == 1 else part * f for part, f in zip(parts, factors, strict=True)]
    return torch.cat([scaled[order.index(i)] for i in range(len(order))])


def _columns(blocks: slice, size: int) -> slice:
    return slice(blocks.start * size, blocks.stop * size)


def _walk(
    kernel: Any,
    layout: Layout,
    reverse: bool,
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor | None],
    output: Tensor,
    save: bool,
) -> tuple[list[Tensor], Tensor | None]:
    """One direction, forward. Writes `output` (rows, hidden); returns what backward needs, and the last cell state."""
    w_ih, w_hh, b_ih, b_hh = weights
    assert w_ih is not None
    assert w_hh is not None
    size, blocks = w_hh.shape[1], kernel.torch_blocks
    to_input = [kernel.scale.get(i, 1.0) for i in kernel.input_order]
    to_hidden = [kernel.scale.get(i, 1.0) for i in kernel.hidden_order]
    w_in = _rearranged(w_ih, kernel.input_order, to_input, blocks).t()
    w_rec = _rearranged(w_hh, kernel.hidden_order, to_hidden, blocks).t()
    # one bias over all columns: the input's lies in the projection; the hidden one is added to it where columns
    # are shared, and fills the column block that only the recurrent product reaches (GRU's first)
    bias = inputs.new_zeros(kernel.blocks * size)
    if b_ih is not None and b_hh is not None:
        bias[_columns(kernel.input_columns, size)] += _rearranged(b_ih, kernel.input_order, to_input, blocks)
        bias[_columns(kernel.hidden_columns, size)] += _rearranged(b_hh, kernel.hidden_order, to_hidden, blocks)
    in_columns, rec_columns = _columns(kernel.input_columns, size), _columns(kernel.hidden_columns, size)
    in_bias, lone_bias = bias[in_columns], bias[: in_columns.start]

    save = save and kernel.keeps_gates
    room = layout.rows if save else max(end - first for _, first, end in layout.chunks)
    gates = inputs.new_empty(room, kernel.blocks * size)
    extras = [inputs.new_empty(room, size) for _ in range(kernel.extras)]
    state = cell * -2 if cell is not None else hidden  # the rolling c^
    now, before, previous = state, 0, hidden[:0]
    for sizes, first, end in reversed(layout.chunks) if reverse else layout.chunks:
        rows = slice(first, end) if save else slice(0, end - first)
        gate_rows, out_rows = gates[rows], output[first:end]
        torch.addmm(in_bias, inputs[first:end], w_in, out=gate_rows[:, in_columns])
        if lone_bias.numel():
            gate_rows[:, : in_columns.start] = lone_bias
        steps = list(
            zip(
                sizes,
                gate_rows[:, rec_columns].split_with_sizes(sizes),
                out_rows.split_with_sizes(sizes),
                kernel.views(gate_rows, [e[rows] for e in extras], sizes),
                strict=True,
            )
        )
        for n, recurrent, out, views in reversed(steps) if reverse else steps:
            if n != before:  # sequences end (forward) or begin (reverse) here
                now = state[:n]
                previous = previous[:n] if n < previous.shape[0] else torch.cat([previous, hidden[before:n]])
                before = n
            recurrent.addmm_(previous, w_rec)
            kernel.step(views, previous, now, out)
            previous = out
    return [gates, *extras] if save else [], state.mul_(-0.5) if cell is not None else None


def _walk_back(
    kernel: Any,
    layout: Layout,
    reverse: bool,
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor | None],
    output: Tensor,
    saved: Sequence[Tensor],
    d_output: Tensor,
    d_last: tuple[Tensor | None, Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """One direction, backward: gradients of input, initial hidden, initial cell, w_ih, w_hh, b_ih, b_hh."""
    w_ih, w_hh, b_ih, _ = weights
    assert w_ih is not None and w_hh is not None  # noqa: PT018
    size = w_hh.shape[1]
    gates, *extras = saved or [output]  # a kernel that keeps no gates looks at none
    w_rec = _rearranged(w_hh, kernel.hidden_order, kernel.hidden_kappa, kernel.torch_blocks)
    in_columns, rec_columns = _columns(kernel.input_columns, size), _columns(kernel.hidden_columns, size)

    d_hidden = d_output.clone(memory_format=torch.contiguous_format)  # (rows, hidden), filled up as the walk goes
    d_hn, d_cn = d_last
    if d_hn is not None:
        d_hidden[layout.final_rows(reverse)] += d_hn
    d_state = inputs.new_zeros(layout.batch, size)  # of the rolling c^ = -2 c
    if d_cn is not None:
        torch.mul(d_cn, -0.5, out=d_state)
    d_gates = inputs.new_empty(layout.rows, kernel.blocks * size)
    spare = inputs.new_empty(max(end - first for _, first, end in layout.chunks), size)

    d_now, d_now3, before = d_state, d_state.unsqueeze(1), layout.batch
    later: Any = None  # the step after, whose gradient flows into this one
    for sizes, first, end in layout.chunks if reverse else reversed(layout.chunks):
        rows, extra = slice(first, end), spare[: end - first]
        kernel.factors(gates[rows], [e[rows] for e in extras], output[rows], d_gates[rows], extra)
        steps = list(
            zip(
                sizes,
                d_gates[rows, rec_columns].split_with_sizes(sizes),
                d_hidden[rows].split_with_sizes(sizes),
                kernel.back_views(gates[rows], d_gates[rows], extra, d_hidden[rows], sizes),
                strict=True,
            )
        )
        for n, d_r, d_h, views in steps if reverse else reversed(steps):
            if n != before:
                d_now = d_state[:n]
                d_now3 = d_now.unsqueeze(1)
            if later is not None:
                shared = min(n, before)
                target, flowing = (d_h, later[0]) if n == before else (d_h[:shared], later[0][:shared])
                kernel.carry(later[1], shared, target)
                target.addmm_(flowing, w_rec)
            before = n
            kernel.back_step(views, d_now, d_now3)
            later = (d_r, views)
    d_in, d_rec = d_gates[:, in_columns], d_gates[:, rec_columns]

    gradients: list[Tensor | None] = [None] * 7
    if needs[0]:
        gradients[0] = d_in @ _rearranged(w_ih, kernel.input_order, kernel.input_kappa, kernel.torch_blocks)
    entry = layout.entry_rows(reverse)
    if needs[1]:
        d_initial = d_rec[entry] @ w_rec
        if kernel is _GRU:
            d_initial += d_hidden[entry] * gates[entry, 2 * size : 3 * size]
        gradients[1] = d_initial
    if cell is not None and needs[2]:
        gradients[2] = d_state * -2
    if needs[3]:
        gradients[3] = _restored(d_in.t() @ inputs, kernel.input_order, kernel.input_kappa)
    if needs[4]:
        gradients[4] = _recurrent_gradient(kernel, layout, reverse, d_rec, output, hidden)
    if b_ih is not None and (needs[5] or needs[6]):
        total = d_gates.sum(0)
        gradients[5] = _restored(total[in_columns], kernel.input_order, kernel.input_kappa)
        gradients[6] = _restored(total[rec_columns], kernel.hidden_order, kernel.hidden_kappa)
    return gradients


def _recurrent_gradient(
    kernel: Any, layout: Layout, reverse: bool, d_rec: Tensor, output: Tensor, hidden: Tensor
) -> Tensor:
    """Gradient of w_hh, from the hidden states before each row."""
    before = output.index_select(0, layout.previous_rows(reverse))
    before[layout.entry_rows(reverse)] = hidden
    return _restored(d_rec.t() @ before, kernel.hidden_order, kernel.hidden_kappa)


_pool: ThreadPoolExecutor | None = None


def _drop_pool() -> None:
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_drop_pool)


def _side_by_side(jobs: Sequence[Callable[[], Any]], layout: Layout, size: int, blocks: int) -> list[Any]:
    """Run one or two jobs, two of them (if the work is enough) in two threads that share torch's threads."""
    global _pool
    threads, work = torch.get_num_threads(), blocks * layout.rows * size**2
    if len(jobs) == 1 or threads == 1 or work < max(THREADED_WORK, THREADED_STEP * len(layout.sizes)):
        return [job() for job in jobs]
    if _pool is None:
        _pool = ThreadPoolExecutor(1, thread_name_prefix="recur-engine")
    share = threads // 2
    inference = torch.is_inference_mode_enabled()  # like the thread count, a thread's own

    def second_job() -> Any:
        if torch.get_num_threads() != share:  # the count is a thread's own
            torch.set_num_threads(share)
        with torch.inference_mode(inference), torch.no_grad():
            return jobs[1]()

    try:
        torch.set_num_threads(threads - share)
        second = _pool.submit(second_job)
        return [jobs[0](), second.result()]
    finally:
        torch.set_num_threads(threads)


class _Layer(torch.autograd.Function):
    """One layer in one or both directions. Weights come as w_ih, w_hh, b_ih, b_hh for each direction."""

    @staticmethod
    def forward(
        ctx: Any,
        name: str,
        layout: Layout,
        save: bool,
        inputs: Tensor,
        hidden: Tensor,
        cell: Tensor | None,
        *weights: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        kernel, directions = _KERNELS[name], len(weights) // 4
        size = hidden.shape[2]
        output = inputs.new_empty(layout.rows, directions * size)
        parts = output.chunk(directions, 1)

        def job(d: int) -> Callable[[], Any]:
            c = None if cell is None else cell[d]
            own = weights[4 * d : 4 * d + 4]
            return lambda: _walk(kernel, layout, bool(d), inputs, hidden[d], c, own, parts[d], save)

        with torch.autocast("cpu", enabled=False):
            results = _side_by_side([job(d) for d in range(directions)], layout, size, kernel.torch_blocks)
        last_hidden = torch.stack([parts[d][layout.final_rows(bool(d))] for d in range(directions)])
        last_cell = None if cell is None else torch.stack([state for _, state in results])
        if save:
            saved = [t for tensors, _ in results for t in tensors]
            ctx.save_for_backward(inputs, hidden, cell, output, *weights, *saved)
            ctx.name, ctx.layout, ctx.directions = name, layout, directions
            ctx.set_materialize_grads(False)
        return output, last_hidden, last_cell

    @staticmethod
    @differentiable_once
    @one_gradient_at_a_time
    def backward(
        ctx: Any, d_output: Tensor | None, d_hidden: Tensor | None, d_cell: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        inputs, hidden, cell, output, *rest = ctx.saved_tensors
        kernel, directions, layout = _KERNELS[ctx.name], ctx.directions, ctx.layout
        weights, saved = rest[: 4 * directions], rest[4 * directions :]
        if d_output is None:
            d_output = torch.zeros_like(output)
        size, each = hidden.shape[2], len(saved) // directions
        needs = ctx.needs_input_grad[3:]

        def job(d: int) -> Callable[[], Any]:
            c = None if cell is None else cell[d]
            own = weights[4 * d : 4 * d + 4]
            last = (None if d_hidden is None else d_hidden[d], None if d_cell is None else d_cell[d])
            columns = slice(d * size, (d + 1) * size)
            return lambda: _walk_back(
                kernel,
                layout,
                bool(d),
                inputs,
                hidden[d],
                c,
                own,
                output[:, columns],
                saved[d * each : (d + 1) * each],
                d_output[:, columns],
                last,
                [*needs[:3], *needs[3 + 4 * d : 7 + 4 * d]],
            )

        with torch.autocast("cpu", enabled=False):
            results = _side_by_side([job(d) for d in range(directions)], layout, size, kernel.torch_blocks)
        d_input = results[0][0]
        if directions == 2 and d_input is not None:
            d_input = d_input.add_(results[1][0])
        initial = [torch.stack([r[k] for r in results]) if results[0][k] is not None else None for k in (1, 2)]
        return (None, None, None, d_input, *initial, *(g for r in results for g in r[3:]))


def layer(
    cell: str,
    inputs: Tensor,
    layout: Layout,
    state: tuple[Tensor, ...],
    weights: Sequence[Sequence[Tensor | None]],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One recurrent layer over packed rows on a CPU, differentiable once.

    Args:
        cell: one of `FUSED_CELLS`.
        inputs: `(rows, input_size)` packed rows.
        layout: where the rows lie.
        state: initial hidden state `(directions, batch, hidden)`, and for the LSTM the cell state of the same shape,
            in packed order.
        weights: for each direction w_ih `(gates * hidden, input)`, w_hh `(gates * hidden, hidden)`, b_ih, b_hh
            (both None without bias), laid out as `torch.nn` lays them out.

    Returns:
        `(rows, directions * hidden)` and the final state, shaped as the initial one.
    """
    if compiled.available(inputs.dtype):
        return compiled.layer(cell, inputs, layout, state, [[*quad, None] for quad in weights])
    flat = [w for direction in weights for w in direction]
    hidden, memory = state if cell == "lstm" else (state[0], None)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (inputs, hidden, memory, *flat))
    output, last_hidden, last_cell = _Layer.apply(cell, layout, save, inputs, hidden, memory, *flat)
    return output, (last_hidden,) if last_cell is None else (last_hidden, last_cell)
