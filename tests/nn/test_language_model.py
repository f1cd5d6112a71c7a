"""The language model: tying, carried state, dropout sites."""

import copy
import io
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.optim.swa_utils import AveragedModel

from recur.nn.cells import CELLS
from recur.nn.language_model import LanguageModel
from recur.nn.losses import linear_cross_entropy
from recur.nn.recurrent import detach_state
from recur.nn.regularization import activation_penalty, drop, row_dropout, temporal_penalty
from recur.nn.sampled_softmax import SampledSoftmax

small = partial(LanguageModel, 11, embedding_dim=6, hidden_size=6, num_layers=2)


def window(steps: int, streams: int = 3, vocab: int = 11, seed: int = 0, last: int | None = None) -> PackedSequence:
    sizes = torch.full((steps,), streams)
    if last is not None:
        sizes[-1] = last
    generator = torch.Generator().manual_seed(seed)
    return PackedSequence(torch.randint(vocab, (int(sizes.sum()),), generator=generator), sizes)


def cut(text: PackedSequence, lengths) -> list[PackedSequence]:
    sizes = text.batch_sizes.split(lengths)
    return [
        PackedSequence(data, size)
        for data, size in zip(text.data.split([int(s.sum()) for s in sizes]), sizes, strict=True)
    ]


# ------------------------------------------------------------------------------------------------------------- tying


def tied(model: LanguageModel) -> bool:
    return model.decoder.weight.untyped_storage().data_ptr() == model.embedding.weight.untyped_storage().data_ptr()


def test_tied_weights_share_storage_after_everything_that_copies():
    model = small()
    assert tied(model) and model.decoder.weight is model.embedding.weight
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    assert len(file.getvalue()) < 4 * (11 * 6 + 2 * 4 * 6 * 14 + 11) + 6000  # the shared matrix is stored once
    file.seek(0)
    other = small()
    other.load_state_dict(torch.load(file, weights_only=True))
    average = AveragedModel(model)
    average.update_parameters(model)
    for copied in (other, copy.deepcopy(model), average.module, copy.deepcopy(model).double()):
        assert tied(copied)
        torch.testing.assert_close(copied.embedding.weight.float(), model.embedding.weight)
        assert sum(p.numel() for p in copied.parameters()) == sum(p.numel() for p in model.parameters())
        hidden = copied(window(4))
        copied.logits(hidden.features).sum().backward()
        torch.optim.SGD(copied.parameters(), lr=1.0).step()
        assert tied(copied)
    torch.testing.assert_close(other.decoder.weight, other.embedding.weight)


@pytest.mark.parametrize("sampled", [False, True])
def test_the_gradient_of_tied_weights_is_the_sum_of_both_places(sampled):
    model, text, targets = small().double(), window(5), torch.arange(15) % 11
    loss_of = SampledSoftmax(11, 4) if sampled else linear_cross_entropy
    untied = small(tie_weights=False).double()
    untied.load_state_dict(model.state_dict())
    for net in (model, untied):
        torch.manual_seed(3)
        loss_of(net(text).features, net.decoder.weight, net.decoder.bias, targets).loss.backward()
    both = untied.embedding.weight.grad + untied.decoder.weight.grad
    torch.testing.assert_close(model.embedding.weight.grad, both, rtol=1e-12, atol=1e-14)


def test_sizes_that_differ_are_tied_through_a_projection_or_untied_when_asked():
    model = small(hidden_size=9, project=True)
    assert tied(model) and model.projection.weight.shape == (6, 9)
    untied = small(hidden_size=9, tie_weights=False)
    assert untied.decoder.weight.shape == (11, 9) and not tied(untied)
    both = small(hidden_size=9, tie_weights=False, project=True)
    assert both.decoder.weight.shape == (11, 6) and not tied(both)
    awd = LanguageModel(11, embedding_dim=4, hidden_size=9, num_layers=3, output_size=4)
    assert tied(awd) and awd.recurrent.weight_hh_l1.shape == (36, 9) and awd.recurrent.weight_hh_l2.shape == (16, 4)
    for one in (model, untied, both, awd):
        assert one.logits(one(window(3)).features).shape == (9, 11)


def test_an_impossible_tie_names_both_sizes_and_the_mend():
    with pytest.raises(
        ValueError, match=r"^tie_weights needs embedding_dim == hidden_size or a projection, got 400 and"
    ):
        LanguageModel(11, embedding_dim=400, hidden_size=650)
    with pytest.raises(
        ValueError, match=r"output_size or a projection, got 6 and 5: set model.net.project=true or unt"
    ):
        small(output_size=5)
    for wrong in ({"row_dropout": 1.0}, {"output_dropout": -0.1}, {"embedding_dim": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            small(**wrong)


def test_initial_logits_are_small_and_biases_zero():
    torch.manual_seed(0)
    model = LanguageModel(5000, embedding_dim=200, hidden_size=200)
    assert model.embedding.weight.abs().max() <= 0.1 and not model.decoder.bias.any()
    with torch.no_grad():
        logits = model.logits(model(window(5, vocab=5000)).features)
    assert logits.std() < 0.5


@pytest.mark.parametrize("tied", [True, False])
def test_word_vectors_begin_in_the_range_that_is_asked_for(tied):
    net = LanguageModel(50, embedding_dim=12, hidden_size=12, tie_weights=tied, embedding_range=0.7)
    assert 0.6 < net.embedding.weight.abs().max() < 0.7
    assert net.decoder.weight.abs().max() < (0.7 if tied else 0.1)
    with pytest.raises(ValueError, match="embedding_range"):
        LanguageModel(50, embedding_dim=12, hidden_size=12, embedding_range=0.0)


# ---------------------------------------------------------------------------------------------------- carried state


@pytest.mark.parametrize("cell", list(CELLS))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("last", [None, 2])
def test_one_long_pass_equals_its_windows(cell, dtype, tolerance, last):
    torch.manual_seed(0)
    model = small(cell=cell, project=True, hidden_size=8).to(dtype).eval()
    text = window(23, last=last)
    whole = model(text)
    state, features = None, []
    for part in cut(text, [7, 1, 10, 5]):
        hidden = model(part, state)
        features.append(hidden.features)
        state = detach_state(hidden.state)
    torch.testing.assert_close(torch.cat(features), whole.features, rtol=tolerance, atol=tolerance)
    for mine, theirs in zip(state, whole.state, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_state_crosses_the_cut_and_gradient_does_not():
    torch.manual_seed(0)
    model = small().double().eval()
    text = window(8)
    first, second = cut(text, [5, 3])
    ids = {int(i) for i in first.data} - {int(i) for i in second.data}
    assert ids  # words that the second window does not hold

    def gradient(state):
        model.zero_grad()
        model(second, state).features.square().sum().backward()
        return model.embedding.weight.grad[sorted(ids)].abs().max().item()

    attached = model(first).state
    assert gradient(attached) > 0
    assert gradient(detach_state(model(first).state)) == 0
    # The state itself does cross: other words before the cut change what is said after it.
    other = PackedSequence((first.data + 1) % 11, first.batch_sizes)
    a, b = (model(second, detach_state(model(before).state)).features for before in (first, other))
    assert (a - b).abs().max() > 1e-6


def test_feeding_one_token_at_a_time_equals_a_pass():
    torch.manual_seed(0)
    model = small().double().eval()
    text = window(6)
    expected = model.logits(model(text).features).view(6, 3, 11)
    state = None
    for step, ids in enumerate(text.data.view(6, 3)):
        logits, state = model.step(ids, state)
        torch.testing.assert_close(logits, expected[step], rtol=1e-12, atol=1e-12)


def test_neighbouring_streams_do_not_meet():
    torch.manual_seed(0)
    model = small().double().eval()
    text = window(6)
    alone = PackedSequence(text.data.view(6, 3)[:, 1].contiguous(), torch.ones(6, dtype=torch.int64))
    torch.testing.assert_close(model(text).features.view(6, 3, -1)[:, 1], model(alone).features, rtol=1e-12, atol=1e-12)


# ----------------------------------------------------------------------------------------------------- regularizers


def test_locked_dropout_has_one_mask_a_stream():
    torch.manual_seed(0)
    sizes = torch.tensor([3, 3, 3, 2])
    out = drop(torch.ones(11, 200), sizes, 0.5, locked=True)
    steps = out.split(sizes.tolist())
    for step in steps[1:]:
        assert torch.equal(step, steps[0][: len(step)])
    assert not torch.equal(steps[0][0], steps[0][1])
    assert set(out.unique().tolist()) == {0.0, 2.0} and 0.4 < (out == 0).float().mean() < 0.6
    loose = drop(torch.ones(11, 200), sizes, 0.5, locked=False)
    assert not torch.equal(loose[:3], loose[3:6])
    assert torch.equal(drop(out, sizes, 0.0, locked=True), out)


def test_row_dropout_equals_a_mask_on_the_embedding_matrix():
    weight = torch.randn(50, 4, dtype=torch.float64)
    ids = torch.cat([torch.arange(50), torch.randint(50, (300,))])
    out = row_dropout(weight[ids], ids, 50, 0.3)
    mask = out[:50, 0] / weight[:, 0]  # of the first time that a word stands there
    torch.testing.assert_close(out, (weight * mask[:, None])[ids])
    zero, kept = mask.round(decimals=4).unique().tolist()
    assert zero == 0 and kept == pytest.approx(1 / 0.7, rel=1e-4)


def test_penalties_are_what_the_paper_says():
    data = torch.randn(4 * 3, 5, dtype=torch.float64)
    dense = data.view(4, 3, 5)
    packed = PackedSequence(data, torch.full((4,), 3))
    torch.testing.assert_close(temporal_penalty(packed), (dense[1:] - dense[:-1]).pow(2).mean())
    torch.testing.assert_close(activation_penalty(data), dense.pow(2).mean())
    uneven = PackedSequence(data[:11], torch.tensor([3, 3, 3, 2]))
    changes = torch.cat([(dense[1:3] - dense[:2]).reshape(-1), (dense[3, :2] - dense[2, :2]).reshape(-1)])
    torch.testing.assert_close(temporal_penalty(uneven), changes.pow(2).mean())
    assert temporal_penalty(PackedSequence(data[:3], torch.tensor([3]))) == 0


def test_weight_drop_trains_the_raw_weights_and_leaves_evaluation_alone():
    torch.manual_seed(0)
    dropped, plain = small(weight_drop=0.5).double(), small().double()
    plain.load_state_dict(dropped.state_dict())
    text = window(6)
    # The first step starts from zeros: a mask on the recurrent weights cannot show in it, in the first layer or above.
    first = dropped(text).features.view(6, 3, -1)
    expected = plain(text).features.view(6, 3, -1)
    torch.testing.assert_close(first[0], expected[0], rtol=1e-12, atol=1e-12)
    assert (first[2:] - expected[2:]).abs().max() > 1e-6
    dropped(text).features.square().sum().backward()
    for name in ("weight_hh_l0", "weight_hh_l1"):
        raw = getattr(dropped.recurrent, name)
        assert isinstance(raw, nn.Parameter) and raw.grad is not None and raw.grad.any()
        before = raw.detach().clone()
        torch.optim.SGD([raw], lr=0.1).step()
        assert not torch.equal(raw, before)
    dropped.eval()
    a, b = dropped(text).features, dropped(text).features
    assert torch.equal(a, b)


def test_every_dropout_site_acts_in_training_and_none_in_evaluation():
    text = window(6)
    for site in ("row_dropout", "embedding_dropout", "dropout", "output_dropout"):
        for locked in (False, True):
            torch.manual_seed(0)
            model = small(**{site: 0.5}, locked_dropout=locked)
            a, b = model(text).features, model(text).features
            assert not torch.equal(a, b), site
            model.eval()
            a, b = model(text).features, model(text).features
            assert torch.equal(a, b), site


def test_memory_grows_with_the_window_and_not_with_what_went_before():
    model = small()
    model.recurrent.engine = "fused"  # torch's dense kernel keeps a workspace that grows by leaps at this size

    def saved(steps: int, state=None) -> int:
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model(window(steps), state)
        return total

    state = None
    for _ in range(20):  # a long text went before
        state = detach_state(model(window(10), state).state)
    weights = 2 * saved(10) - saved(20)
    assert saved(10, state) == pytest.approx(saved(10), rel=0.05)
    assert saved(40) - weights == pytest.approx(4 * (saved(10) - weights), rel=0.05)
