"""The sampled softmax against the exact one: right in the mean, and equal where nothing is left out."""

import math

import pytest
import torch
from torch.nn import functional as F

from recur.nn.sampled_softmax import SampledSoftmax

VOCABULARY, FEATURES = 60, 5


@pytest.fixture
def zipf():
    """A text in which a word's rank is not its id."""
    shares = 1 / torch.arange(1, VOCABULARY + 1, dtype=torch.float64)
    torch.manual_seed(3)
    return torch.randperm(VOCABULARY)[torch.multinomial(shares, 5000, replacement=True)]


def sampler(text, negatives):
    made = SampledSoftmax(VOCABULARY, negatives)
    made.count(text)
    return made


def layer(rows):
    torch.manual_seed(4)
    weight = torch.randn(VOCABULARY, FEATURES, requires_grad=True)
    return torch.randn(rows, FEATURES, requires_grad=True), weight, torch.randn(VOCABULARY, requires_grad=True)


def test_words_are_candidates_as_often_as_their_inclusion_says(zipf):
    sampled, rows, draws = sampler(zipf, 12), 7, 4000
    torch.manual_seed(0)
    seen = torch.zeros(VOCABULARY)
    for _ in range(draws):
        ids, log_inclusion, _ = sampled.candidates(zipf[torch.randint(len(zipf), (rows,))])
        seen[ids] += 1
    chance = sampled._log_inclusion(rows).exp()
    error = (chance * (1 - chance) / draws).sqrt()
    assert ((seen / draws - chance).abs() <= 4.5 * error + 1e-9).all()
    assert log_inclusion.equal(sampled._log_inclusion(rows)[ids])


def test_the_sum_over_all_words_is_right_in_the_mean(zipf):
    sampled, rows, draws = sampler(zipf, 12), 6, 4000
    features, weight, bias = (t.detach() for t in layer(1))
    z = F.linear(features, weight, bias)[0].double()
    torch.manual_seed(1)
    sums = torch.empty(draws, dtype=torch.float64)
    for i in range(draws):
        ids, log_inclusion, _ = sampled.candidates(zipf[torch.randint(len(zipf), (rows,))])
        sums[i] = (z[ids] - log_inclusion).exp().sum()
    error = sums.std() / math.sqrt(draws)
    assert abs(sums.mean() - z.exp().sum()) < 4 * error
    assert error < 0.05 * z.exp().sum()  # else the line above says nothing


def test_a_naive_loop_gives_the_same_loss_and_gradients(zipf):
    sampled = sampler(zipf, 20)
    features, weight, bias = layer(9)
    targets = zipf[:9]
    torch.manual_seed(2)
    got = sampled(features, weight, bias, targets)
    mine = torch.autograd.grad(got.loss, (features, weight, bias))
    torch.manual_seed(2)
    ids, log_inclusion, place = sampled.candidates(targets)
    assert ids[place].equal(targets)
    each, reported = [], []
    for x, y in zip(features, targets, strict=True):
        terms = {int(w): (weight[w] @ x + bias[w]).exp() for w in ids}
        shares = dict(zip(ids.tolist(), log_inclusion.exp().tolist(), strict=True))
        each.append(sum(term / shares[w] for w, term in terms.items()).log() - terms[int(y)].log())
        once = sum(term / (1 if w == y else shares[w]) for w, term in terms.items())  # it is a candidate for certain
        reported.append(once.log() - terms[int(y)].log())
    naive = torch.stack(each)
    torch.testing.assert_close(got.loss, naive.mean(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.nll, torch.stack(reported).detach(), rtol=1e-5, atol=1e-5)
    for one, other in zip(mine, torch.autograd.grad(naive.mean(), (features, weight, bias)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    left_out = torch.ones(VOCABULARY, dtype=torch.bool)
    left_out[ids] = False
    assert left_out.any() and not mine[1][left_out].any()


def test_what_is_reported_of_a_sure_and_rare_target_is_what_the_model_gives_it(zipf):
    sampled = sampler(zipf, 12)
    rare = int(torch.bincount(zipf, minlength=VOCABULARY).argmin())
    weight, bias = torch.zeros(VOCABULARY, FEATURES), torch.zeros(VOCABULARY)
    bias[rare] = 8.0  # .98 for it
    exact = float(F.cross_entropy(bias[None], torch.tensor([rare])))
    torch.manual_seed(0)
    draws = [sampled(torch.ones(1, FEATURES), weight, bias, torch.tensor([rare])) for _ in range(400)]
    assert float(torch.cat([draw.nll for draw in draws]).mean()) == pytest.approx(exact, rel=0.1)
    assert float(draws[0].loss) > 5 * exact  # its term over pi


def test_with_every_word_drawn_it_is_exact(zipf):
    sampled = sampler(zipf, 20_000)
    features, weight, bias = layer(9)
    got = sampled(features, weight, bias, zipf[:9])
    want = F.cross_entropy(F.linear(features, weight, bias), zipf[:9], reduction="none")
    torch.testing.assert_close(got.nll, want.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.loss, want.mean(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 500])
def test_words_that_never_occur_are_no_trouble(rows):
    sampled = sampler(torch.zeros(10, dtype=torch.int64), 3)
    features, weight, bias = layer(rows)
    got = sampled(features, weight, bias, torch.full((rows,), VOCABULARY - 1))
    assert got.nll.isfinite().all() and got.loss.isfinite()
