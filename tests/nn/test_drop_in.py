"""recur.nn.LSTM, GRU and RNN are torch.nn's, whatever they are given."""

import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_sequence

from recur.nn.drop_in import GRU, LSTM, RNN

PAIRS = {
    "lstm": (LSTM, nn.LSTM, {}),
    "gru": (GRU, nn.GRU, {}),
    "rnn": (RNN, nn.RNN, {}),
    "relu": (RNN, nn.RNN, {"nonlinearity": "relu"}),
}


def pair(name, *sizes, engine="fused", **arguments):
    ours, theirs, extra = PAIRS[name]
    mine, reference = ours(*sizes, engine=engine, **extra, **arguments), theirs(*sizes, **extra, **arguments)
    mine.load_state_dict(reference.state_dict())
    return mine, reference


def flat(result):
    output, state = result
    output = output.data if isinstance(output, PackedSequence) else output
    return [output, *(state if isinstance(state, tuple) else (state,))]


def check(mine, reference, *arguments, atol=1e-10):
    parameters, grads = [], []
    for module in (mine, reference):
        torch.manual_seed(0)
        answer = flat(module(*arguments))
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(a.shape, dtype=a.dtype, generator=generator) for a in answer]
        module.zero_grad()
        sum((a * w).sum() for a, w in zip(answer, weights, strict=True)).backward()
        parameters.append(answer)
        grads.append([p.grad for p in module.parameters()])
    for got, want in zip(parameters[0] + grads[0], parameters[1] + grads[1], strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=atol)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", PAIRS)
def test_unsorted_packed_with_state(name, bias):
    mine, reference = pair(name, 4, 5, 2, bidirectional=True, bias=bias, dtype=torch.float64)
    sequence = pack_sequence([torch.randn(n, 4).double() for n in (3, 9, 1, 6)], enforce_sorted=False)
    hx = torch.randn(4, 4, 5).double()
    hx = (hx, torch.randn(4, 4, 5).double()) if name == "lstm" else hx
    check(mine, reference, sequence)
    check(mine, reference, sequence, hx)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("name", PAIRS)
def test_dense_and_unbatched(name, batch_first):
    mine, reference = pair(name, 4, 5, 2, bidirectional=True, batch_first=batch_first, dtype=torch.float64)
    for shape, state in (((6, 3, 4), (4, 6 if batch_first else 3, 5)), ((7, 4), (4, 5))):
        hx = torch.randn(state).double()
        hx = (hx, torch.randn(state).double()) if name == "lstm" else hx
        check(mine, reference, torch.randn(shape).double())
        check(mine, reference, torch.randn(shape).double(), hx)


@pytest.mark.parametrize("batch_first", [True, False])
def test_padded_with_lengths_equals_packed(batch_first):
    mine, reference = pair("lstm", 4, 5, 2, bidirectional=True, batch_first=batch_first, dtype=torch.float64)
    rows = [torch.randn(n, 4).double() for n in (3, 9, 1, 6)]
    padded = pad_sequence(rows, batch_first=batch_first, padding_value=float("nan"))
    output, (h, c) = mine(padded, lengths=[3, 9, 1, 6])
    expected, (h2, c2) = reference(pack_sequence(rows, enforce_sorted=False))
    want, _ = nn.utils.rnn.pad_packed_sequence(expected, batch_first)
    for got, correct in ((output, want), (h, h2), (c, c2)):
        torch.testing.assert_close(got, correct, rtol=0, atol=1e-10)


def test_dropout_draws_torchs_own_bits():
    mine, reference = pair("lstm", 4, 5, 3, dropout=0.5, dtype=torch.float64)
    check(mine, reference, pack_sequence([torch.randn(n, 4).double() for n in (9, 3, 2)]))
    check(mine, reference, torch.randn(5, 3, 4).double())


def test_projection_is_left_to_torch_or_refused():
    mine, reference = pair("lstm", 4, 5, 2, engine="auto", proj_size=3, dtype=torch.float64)
    check(mine, reference, pack_sequence([torch.randn(n, 4).double() for n in (9, 3, 2)]))
    with pytest.raises(ValueError, match="no projection"):
        LSTM(4, 5, proj_size=3, engine="fused")


@pytest.mark.parametrize(
    "arguments",
    [
        lambda: (torch.randn(3, 2, 9),),
        lambda: (torch.randn(3, 2, 4).double(),),
        lambda: (torch.randn(4),),
        lambda: (torch.randn(3, 2, 4), (torch.randn(1, 2, 5), torch.randn(1, 3, 5))),
        lambda: (torch.randn(3, 4), (torch.randn(1, 1, 5), torch.randn(1, 1, 5))),
    ],
)
def test_errors_are_torchs_own(arguments):
    mine, reference = pair("lstm", 4, 5)
    given = arguments()
    with pytest.raises(Exception) as theirs:  # noqa: PT011 (whatever torch raises)
        reference(*given)
    with pytest.raises(type(theirs.value)) as ours:
        mine(*given)
    assert str(ours.value) == str(theirs.value)


def test_a_packed_state_that_does_not_fit_is_refused():
    """Where torch itself, given one sequence, computes something from the wrong memory."""
    state = torch.randn(1, 1, 7)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size \(1, 1, 5\)"):
        LSTM(4, 5, engine="fused")(pack_sequence([torch.randn(3, 4)]), (state, state))


@pytest.mark.parametrize("engine", ["fused", "torch"])
@pytest.mark.parametrize("name", PAIRS)
def test_a_jagged_nested_tensor_equals_one_sequence_at_a_time(name, engine):
    torch.manual_seed(0)
    mine, reference = (m.double() for m in pair(name, 3, 5, 2, engine=engine, bidirectional=True))
    sequences = [torch.randn(n, 3, dtype=torch.float64) for n in (4, 7, 1, 7)]
    values = torch.cat(sequences).requires_grad_()
    nested = torch.nested.nested_tensor_from_jagged(values, torch.tensor([0, 4, 11, 12, 19]))
    state = [torch.randn(4, 4, 5, dtype=torch.float64) for _ in range(2 if name == "lstm" else 1)]
    hx = tuple(state) if name == "lstm" else state[0]
    output, last = mine(nested, hx)
    assert output.is_nested and output.layout == torch.jagged and torch.equal(output.offsets(), nested.offsets())
    last = last if name == "lstm" else (last,)
    expected = []
    for i, sequence in enumerate(sequences):
        own = tuple(part[:, i] for part in state)
        want, want_last = reference(sequence, own if name == "lstm" else own[0])
        expected.append(want)
        for got, part in zip(last, want_last if name == "lstm" else (want_last,), strict=True):
            torch.testing.assert_close(got[:, i], part, rtol=0, atol=1e-12)
    torch.testing.assert_close(output.values(), torch.cat(expected), rtol=0, atol=1e-12)
    output.values().sum().backward()
    assert values.grad is not None and values.grad.abs().min() > 0


def test_hooks_run_once_with_lengths_and_with_nested_tensors():
    mine, _ = pair("lstm", 3, 5)
    inputs, outputs = [], []
    mine.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    mine.register_forward_hook(lambda module, given, answer: outputs.append(answer[0]))
    padded, nested = torch.randn(4, 2, 3), torch.nested.nested_tensor([torch.randn(2, 3)], layout=torch.jagged)
    answers = [mine(padded, lengths=[4, 1])[0], mine(nested)[0]]
    for called, known in ((inputs, [padded, nested]), (outputs, answers)):
        assert len(called) == 2 and all(one is other for one, other in zip(called, known, strict=True))


def test_a_nested_tensor_that_is_not_jagged_is_refused():
    mine, _ = pair("gru", 3, 5)
    with pytest.raises(ValueError, match="has its own"):
        mine(torch.nested.nested_tensor([torch.zeros(2, 3)], layout=torch.jagged), lengths=[2])
    with pytest.raises(ValueError, match="must have a step"):
        mine(torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(0, 3)], layout=torch.jagged))
    with pytest.raises(ValueError, match="must be jagged"):
        mine(torch.nested.nested_tensor([torch.zeros(2, 3, 1)], layout=torch.jagged))


def test_lengths_must_fit():
    for lengths in ([4, 1], [3], [0, 2]):
        with pytest.raises(ValueError, match="needs as many lengths"):
            LSTM(4, 5)(torch.randn(3, 2, 4), lengths=lengths)
    with pytest.raises(ValueError, match="padded batch"):
        LSTM(4, 5)(pack_sequence([torch.randn(3, 4)]), lengths=[3])
    with pytest.raises(ValueError, match="engine is one of"):
        LSTM(4, 5, engine="fast")


def test_survives_pickling_and_is_torchs_class():
    mine = LSTM(4, 5, 2)
    again = pickle.loads(pickle.dumps(mine))
    sequence = torch.randn(3, 2, 4)
    assert torch.equal(mine(sequence)[0], again(sequence)[0])
    assert isinstance(mine, nn.LSTM)
    assert repr(mine) == "LSTM(4, 5, num_layers=2)"


def test_a_nested_output_can_be_added_to_its_input():
    mine, _ = pair("lstm", 4, 4, engine="fused")
    nested = torch.nested.nested_tensor([torch.randn(3, 4), torch.randn(5, 4)], layout=torch.jagged)
    output, _ = mine(nested)
    assert output.offsets() is nested.offsets()
    torch.testing.assert_close((nested + output).values(), nested.values() + output.values())


def test_no_sequences_at_all_are_refused_in_a_line():
    mine, _ = pair("lstm", 4, 5, engine="fused", batch_first=True)
    with pytest.raises(ValueError, match="a padded batch of 0 sequences"):
        mine(torch.randn(0, 3, 4), lengths=[])


@pytest.mark.parametrize("name", PAIRS)
def test_transforms_of_functions_are_torchs(name):
    mine, reference = pair(name, 4, 64, engine="fused")
    x = torch.randn(20, 16, 4)
    found = []
    for module in (mine, reference):
        own = {key: value.detach() for key, value in module.named_parameters()}
        loss = lambda given, module=module: torch.func.functional_call(module, given, (x,))[0].square().sum()
        found.append(torch.func.grad(loss)(own))
    for key, gradient in found[1].items():
        torch.testing.assert_close(found[0][key], gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PAIRS)
def test_gradients_in_a_batch_are_refused_in_a_line(name, dtype):
    mine, _ = pair(name, 4, 5, dtype=dtype)
    x = torch.randn(6, 3, 4, dtype=dtype, requires_grad=True)
    output = mine(x)[0][-1].flatten()
    several = torch.eye(len(output), dtype=dtype)
    with pytest.raises(RuntimeError, match=r"^batched gradients need engine='torch'"):
        torch.autograd.grad(output, x, several, is_grads_batched=True)
    with pytest.raises(RuntimeError, match=r"^batched gradients need engine='torch'"):
        torch.func.vmap(lambda one: torch.autograd.grad(output, x, one)[0])(several)
    mine.engine = "torch"
    jacobian = torch.autograd.functional.jacobian(lambda given: mine(given)[0][-1].flatten(), x, vectorize=True)
    torch.testing.assert_close(jacobian[:1], torch.autograd.grad(output[0], x)[0][None])


def test_a_packed_batch_that_grows_is_refused():
    """Some rows of the output would be whatever the memory held."""
    sequence = PackedSequence(torch.randn(1000, 16), torch.tensor([20] * 20 + [30] * 20))
    with pytest.raises(ValueError, match="batch sizes must not increase and be at least 1, got 20, 20"):
        LSTM(16, 64, engine="fused")(sequence)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_under_autocast_the_dtype_is_torchs_whichever_engine_is_picked(name, packed):
    x = pack_sequence([torch.randn(n, 4) for n in (6, 3)]) if packed else torch.randn(5, 3, 4)
    for layers, bias in ((1, True), (2, False)):
        mine, reference = pair(name, 4, 6, layers, bidirectional=layers == 2, bias=bias)
        with torch.autocast("cpu", torch.bfloat16):
            wanted = reference(x)
            found = [mine(x), mine(x, wanted[1])]  # a state that is carried on
        for answer in found:
            assert [part.dtype for part in flat(answer)] == [part.dtype for part in flat(wanted)]
        for one, other in zip(flat(found[0]), flat(wanted), strict=True):
            torch.testing.assert_close(one.float(), other.float(), rtol=0, atol=0.02)
        flat(found[0])[0].float().sum().backward()
        assert all(parameter.grad.dtype == torch.float32 for parameter in mine.parameters())


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_exported_or_traced_is_torchs(name):
    mine, reference = pair(name, 4, 64, engine="fused")
    mine, reference = mine.eval(), reference.eval()
    x = torch.randn(20, 16, 4)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        expected = reference(x)[0]
        traced = torch.jit.trace(mine, x)
        torch.testing.assert_close(traced(x)[0], expected)
        if name != "lstm" or not torch.backends.mkldnn.is_available():
            torch.testing.assert_close(torch.export.export(mine, (x,)).module()(x)[0], expected)
