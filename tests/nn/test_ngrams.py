"""The scores of hashed n-grams, against counting by dictionaries."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from recur.nn.arguments import ArgumentError
from recur.nn.classifier import Classifier
from recur.nn.ngrams import NgramScores


def _texts(number: int, vocabulary: int = 9, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(vocabulary, size=random.integers(1, 12)).tolist() for _ in range(number)]


def _pack(texts: list[list[int]]):
    return pack_sequence([torch.tensor(text) for text in texts], enforce_sorted=False)


def _grams(text: list[int], max_n: int) -> set[tuple[int, ...]]:
    return {tuple(text[i : i + n]) for n in range(1, max_n + 1) for i in range(len(text) - n + 1)}


def _naive(texts, labels, text, classes, max_n, *, leave_out=None, smoothing=1.0, prior=0.4, scale=0.1):
    """Scores of one text by dictionaries of n-grams, those of one training text left out of the counts."""
    counts = [Counter() for _ in range(classes)]
    for number, (other, label) in enumerate(zip(texts, labels, strict=True)):
        if number != leave_out:  # as if it were new
            counts[label].update(_grams(other, max_n))
    totals = [sum(own.values()) for own in counts]
    scores = np.zeros(classes)
    for gram in _grams(text, max_n):
        logs = np.array(
            [math.log((c[gram] + smoothing) / (n + smoothing)) for c, n in zip(counts, totals, strict=True)]
        )
        scores += scale * prior * (logs - logs.mean())
    return scores


def _counted(texts, labels, classes, **settings) -> NgramScores:
    scores = NgramScores(classes, buckets=2**20, **settings).double()
    packed = _pack(texts)
    scores.count([(packed, torch.tensor(labels)[packed.sorted_indices])])
    return scores


@pytest.mark.parametrize(("classes", "max_n"), [(2, 1), (2, 3), (4, 2)])
def test_scores_are_naive_bayes_before_anything_is_learnt(classes, max_n):
    texts, others = _texts(40), _texts(15, seed=1)
    labels = np.random.default_rng(2).integers(classes, size=40).tolist()
    scores = _counted(texts, labels, classes, max_n=max_n)(_pack(others))
    expected = np.array([_naive(texts, labels, text, classes, max_n) for text in others])
    if classes == 2:
        expected = expected[:, 1:] - expected[:, :1]
    np.testing.assert_allclose(scores.detach().numpy(), expected, atol=1e-12)


def test_training_leaves_a_text_out_of_its_own_counts():
    texts, classes, max_n = _texts(30), 3, 2
    labels = np.random.default_rng(2).integers(classes, size=30).tolist()
    scores, packed = _counted(texts, labels, classes, max_n=max_n), _pack(texts)
    given = scores(packed, torch.tensor(labels)[packed.sorted_indices])
    expected = [_naive(texts, labels, text, classes, max_n, leave_out=row) for row, text in enumerate(texts)]
    np.testing.assert_allclose(given.detach().numpy(), np.array(expected), atol=1e-12)


def test_a_text_is_scored_the_same_in_any_batch_and_in_parts():
    texts = _texts(25)
    scores = _counted(texts, [row % 2 for row in range(25)], 2)
    together = scores(_pack(texts))
    alone = torch.cat([scores(_pack([text])) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-12, rtol=0)
    counted = scores.counts.clone()
    halves = []
    for part in (range(13), range(13, 25)):
        packed = _pack([texts[row] for row in part])
        halves.append((packed, torch.tensor([row % 2 for row in part])[packed.sorted_indices]))
    scores.count(halves)
    assert torch.equal(scores.counts, counted)


def test_what_tokens_contribute_adds_up_to_the_score():
    texts = _texts(25)
    scores = _counted(texts, [row % 3 for row in range(25)], 3)
    with torch.no_grad():
        scores.weight.copy_(torch.randn(len(scores.weight)))
    for text in texts:
        packed = _pack([text])
        torch.testing.assert_close(scores.contributions(packed).sum(0), scores(packed)[0].detach())


def test_order_matters_from_pairs_on_and_weights_are_learnt():
    scores = _counted([[1, 2], [2, 1]], [0, 1], 2, max_n=2)
    first, second = scores(_pack([[1, 2], [2, 1]])).detach().flatten().tolist()
    assert first < 0 < second
    assert _counted([[1, 2], [2, 1]], [0, 1], 2, max_n=1)(_pack([[1, 2]])).item() == 0
    scores(_pack([[1, 2]])).sum().backward()
    _, key = scores.features(_pack([[1, 2]]))
    learnt = scores.weight.grad.nonzero().flatten().tolist()
    assert len(learnt) == 1  # the pair: each word alone stands as often in either class
    assert learnt[0] in key.tolist()


def test_the_classifier_adds_them_to_its_logits():
    torch.manual_seed(0)
    net = Classifier(9, 2, embedding_dim=4, hidden_size=4, ngrams={"max_n": 2, "buckets": 2**16}).double().eval()
    packed, plain = _pack(_texts(8)), Classifier(9, 2, embedding_dim=4, hidden_size=4).double().eval()
    net.ngrams.count([(packed, torch.arange(8) % 2)])
    plain.load_state_dict({name: value for name, value in net.state_dict().items() if "ngrams" not in name})
    torch.testing.assert_close(net(packed), plain(packed) + net.ngrams(packed))


@pytest.mark.parametrize(
    "wrong", [{"max_n": 0}, {"buckets": 1000}, {"smoothing": 0.0}, {"prior": -1}, {"dropout": 1.0}, {"scale": math.inf}]
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        NgramScores(2, **wrong)
    with pytest.raises(ArgumentError, match="takes no depth"):
        Classifier(9, 2, ngrams={"depth": 3})
