"""The scores of n-grams, against scikit-learn on dictionaries of them."""

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


def _sklearn(texts, labels, others, max_n, *, strength=0.3, rare=2, known=None, class_weight=None):
    """Scores of `others` by scikit-learn's logistic regression, `(others, 1)`; `known` are the n-grams that count."""
    from sklearn.linear_model import LogisticRegression

    held = Counter(gram for text in texts for gram in _grams(text, max_n))
    names = sorted(known or (gram for gram, count in held.items() if count >= rare))
    columns = {gram: column for column, gram in enumerate(names)}

    def matrix(rows):
        result = np.zeros((len(rows), len(names)))
        for row, text in enumerate(rows):
            result[row, [columns[gram] for gram in _grams(text, max_n) if gram in columns]] = 1
        return result

    x, y = matrix(texts), np.array(labels)
    counts = [x[y == k].sum(0) for k in (0, 1)]
    ratios = np.subtract(*(np.log(c + 1) - np.log(c.sum() + 1) for c in reversed(counts)))
    model = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000, class_weight=class_weight).fit(x * ratios, y)
    return model.decision_function(matrix(others) * ratios)[:, None]


def _fitted(texts, labels, classes, **settings) -> NgramScores:
    scores = NgramScores(classes, **settings).eval()
    packed = _pack(texts)
    scores.fit([(packed, torch.tensor(labels)[packed.sorted_indices])])
    return scores


def _labels(number: int, classes: int = 2, seed: int = 2) -> list[int]:
    return np.random.default_rng(seed).integers(classes, size=number).tolist()


@pytest.mark.parametrize("settings", [{"max_n": 1}, {"max_n": 3}, {"max_n": 2, "rare": 1, "strength": 2.0}], ids=str)
def test_scores_are_those_of_a_logistic_regression_on_scaled_presence(settings):
    texts, others, labels = _texts(40), _texts(15, seed=1), _labels(40)
    given = _fitted(texts, labels, 2, **settings)(_pack(others))
    np.testing.assert_allclose(given.detach().numpy(), _sklearn(texts, labels, others, **settings), atol=2e-3)


def test_class_weights_are_those_of_a_logistic_regression():
    texts, others = _texts(60), _texts(20, seed=1)
    labels = [int(sum(text) % 7 < 2) for text in texts]  # unbalanced
    counts = np.bincount(labels)
    balanced = len(labels) / (2 * counts)
    scores = NgramScores(2, max_n=2).eval()
    packed = _pack(texts)
    scores.fit([(packed, torch.tensor(labels)[packed.sorted_indices])], class_weights=torch.from_numpy(7 * balanced))
    wanted = _sklearn(texts, labels, others, 2, class_weight="balanced")
    np.testing.assert_allclose(scores(_pack(others)).numpy(), wanted, atol=2e-3)
    without = _fitted(texts, labels, 2, max_n=2)(_pack(others)).numpy()
    assert np.abs(without - wanted).max() > 0.1


def test_scores_of_several_classes_are_where_no_step_makes_the_objective_smaller():
    texts, labels, classes = _texts(40), _labels(40, 3), 3
    scores = _fitted(texts, labels, classes, max_n=2, rare=1, strength=1.0)
    packed = _pack(texts)
    order = packed.sorted_indices
    place, at = scores._known_features(packed)
    y = torch.tensor(labels)[order]
    held = torch.zeros(40, len(scores.known), dtype=torch.float64)
    held[place, at] = 1
    counts = torch.stack([held[y == k].sum(0) for k in range(classes)], 1)  # (n-grams, classes)
    shares = [(c + 1).log() - (c.sum(0) + 1).log() for c in (counts, counts.sum(1, keepdim=True) - counts)]
    ratios = shares[0] - shares[1]
    values = scores.table.double()
    weights = torch.where(ratios.abs() > 1e-9, values / ratios, 0.0).requires_grad_()
    offset = scores.offset.double().requires_grad_()
    logits = held @ (weights * ratios) + offset
    objective = torch.nn.functional.cross_entropy(logits, y, reduction="sum") + weights.square().sum() / 2
    for gradient in torch.autograd.grad(objective, [weights, offset]):
        assert gradient.abs().max() < 0.02


def test_a_text_is_scored_the_same_in_any_batch_and_parts_of_texts_may_be_fitted_on():
    texts, labels = _texts(25), _labels(25)
    scores = _fitted(texts, labels, 2)
    together = scores(_pack(texts))
    alone = torch.cat([scores(_pack([text])) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    whole = scores.table.clone()
    halves = []
    for part in (range(13), range(13, 25)):
        packed = _pack([texts[row] for row in part])
        halves.append((packed, torch.tensor([labels[row] for row in part])[packed.sorted_indices]))
    scores.fit(halves)
    torch.testing.assert_close(scores.table, whole, atol=1e-4, rtol=0)


def test_what_tokens_contribute_adds_up_to_the_score():
    texts = _texts(25)
    scores = _fitted(texts, _labels(25, 3), 3)
    for text in [*texts, [77, 78]]:
        packed = _pack([text])
        torch.testing.assert_close(scores.contributions(packed).sum(0) + scores.offset, scores(packed)[0])


def test_order_matters_from_pairs_on_and_nothing_is_learnt_from_nothing():
    texts, labels = [[1, 2], [2, 1]] * 5, [0, 1] * 5
    scores = _fitted(texts, labels, 2, max_n=2)
    first, second = scores(_pack([[1, 2], [2, 1]])).detach().flatten().tolist()
    assert first < 0 < second
    assert abs(_fitted(texts, labels, 2, max_n=1)(_pack([[1, 2]])).item()) < 1e-6
    scores.fit([])
    assert scores(_pack([[1, 2]])).item() == 0


def test_a_checkpoint_brings_its_n_grams():
    texts, labels = _texts(25), _labels(25)
    scores, other = _fitted(texts, labels, 2), NgramScores(2).eval()
    other.load_state_dict(scores.state_dict())
    torch.testing.assert_close(other(_pack(texts)), scores(_pack(texts)))


def test_the_classifier_predicts_with_the_average_and_is_trained_alone():
    torch.manual_seed(0)
    settings = {"max_n": 2, "rare": 1, "share": 0.3}
    net = Classifier(9, 2, embedding_dim=4, hidden_size=4, ngrams=settings).eval()
    packed, plain = _pack(_texts(8)), Classifier(9, 2, embedding_dim=4, hidden_size=4).eval()
    plain.load_state_dict({name: value for name, value in net.state_dict().items() if "ngrams" not in name})
    torch.testing.assert_close(net(packed), plain(packed))  # nothing fitted yet
    net.ngrams.fit([(packed, torch.arange(8) % 2)])
    torch.testing.assert_close(net(packed), 0.7 * plain(packed) + 0.3 * net.ngrams(packed))
    torch.testing.assert_close(net.train()(packed), plain(packed))


@pytest.mark.parametrize(
    "wrong", [{"max_n": 0}, {"share": 1.0}, {"smoothing": 0.0}, {"rare": 0}, {"strength": math.inf}]
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        NgramScores(2, **wrong)
    with pytest.raises(ArgumentError, match="takes no depth"):
        Classifier(9, 2, ngrams={"depth": 3})


def test_the_length_of_n_grams_follows_from_the_size_of_the_text():
    packed, labels = _pack(_texts(8)), torch.arange(8) % 2
    for tokens, longest in ((10, 2), (10_000_000, 3)):
        scores = NgramScores(2, rare=1)
        scores.fit([(packed, labels)], tokens)
        assert scores.longest == longest
        other = NgramScores(2)
        other.load_state_dict(scores.state_dict())
        torch.testing.assert_close(other(packed), scores(packed))
