"""The embedded reviews: balanced, reproducible, beyond a bag of words, within reach of a small LSTM."""

import random
import re
from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from recur.data.cache import TokenCache
from recur.data.synthetic import SyntheticReviews


def rows_of(corpus, name):
    rows = corpus.split(name).read()
    return rows.columns["text"], np.array(rows.columns["label"])


def test_the_same_settings_give_the_same_text_and_others_another(tmp_path):
    one, again, other = SyntheticReviews(200), SyntheticReviews(200), SyntheticReviews(200, seed=1)
    assert rows_of(one, "train")[0] == rows_of(again, "train")[0]
    assert rows_of(one, "train")[0] != rows_of(other, "train")[0]
    cache = TokenCache(tmp_path)
    prints = [corpus.split(name).fingerprint(cache) for corpus in (one, other) for name in ("train", "test")]
    assert len(set(prints)) == 4
    assert again.split("train").fingerprint(cache) == prints[0]


def test_splits_have_their_sizes_both_classes_and_hardly_a_text_in_common():
    corpus = SyntheticReviews()
    (train, labels), (test, _) = rows_of(corpus, "train"), rows_of(corpus, "test")
    assert (len(train), len(test)) == (8000, 2000)
    assert 0.48 < labels.mean() < 0.52
    shared = set(train) & set(test)
    assert len(shared) < 0.03 * len(test)
    assert sum(not re.fullmatch(SHORT, text) for text in shared) < 0.005 * len(test)  # of short ones there are few


def test_noise_turns_round_exactly_its_share():
    clean, noisy = SyntheticReviews(1000, noise=0.0), SyntheticReviews(1000, noise=0.1)
    (texts, true), (same, labels) = rows_of(clean, "train"), rows_of(noisy, "train")
    assert texts == same
    assert (true != labels).sum() == 100
    assert noisy.split("train").ceiling == {"accuracy": 0.9}


GOOD = ("brilliant", "charming", "delightful", "excellent", "gripping", "great", "moving", "superb", "touching")
SUBJECT = "(?:acting|cast|dialogue|direction|ending|film|music|picture|plot|script|writing)"
OURS = rf"the {SUBJECT} was ([a-z ]+)"
SHORT = rf"(?:this|the) {SUBJECT} (?:is|was) ([a-z ]+)\.?|(?:what )?a ([a-z]+) {SUBJECT}\.?"


def verdict(text):
    """The rules once more, as patterns over the sentences: the class a perfect reader gives."""

    def good(said):
        return (said.split()[-1] in GOOD) != said.startswith("not ")

    if found := re.fullmatch(SHORT, text):
        return good(found[1] or found[2])
    for sentence in text.removesuffix(".").split(". "):
        if found := re.fullmatch(f"{OURS}, but {OURS}", sentence):
            return good(found[2])
        if found := re.fullmatch(f"although {OURS}, {OURS}", sentence):
            return good(found[2])
        if found := re.fullmatch(f"{OURS}(?:, although {OURS})?", sentence):
            return good(found[1])
    raise AssertionError(text)


def test_a_reader_of_the_rules_reaches_the_ceiling_exactly():
    texts, labels = rows_of(SyntheticReviews(), "test")
    right = [verdict(text) == bool(label) for text, label in zip(texts, labels, strict=True)]
    assert np.mean(right) == 0.95
    short = [re.fullmatch(SHORT, text) is not None for text in texts]
    assert 300 <= sum(short) < 350  # a longer review may be a single clause, too
    assert np.mean([hit for hit, brief in zip(right, short, strict=True) if brief]) > 0.98


def bags(texts, vocabulary):
    rows = torch.zeros(len(texts), len(vocabulary))
    for row, text in enumerate(texts):
        for word, count in Counter(text.replace(".", " .").replace(",", " ,").split()).items():
            if word in vocabulary:
                rows[row, vocabulary[word]] = count
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [0, 32])
def test_a_bag_of_words_cannot_solve_it(hidden):
    """Neither a linear classifier of word counts nor one with a hidden layer comes near the ceiling of 95 %."""
    corpus = SyntheticReviews()
    (train, labels), (test, answers) = rows_of(corpus, "train"), rows_of(corpus, "test")
    vocabulary = {word: i for i, word in enumerate(sorted({w for t in train for w in t.replace(".", " .").split()}))}
    inputs, target = bags(train, vocabulary), torch.from_numpy(labels).float()
    torch.manual_seed(0)
    layers = [torch.nn.Linear(len(vocabulary), hidden or 1)]
    model = torch.nn.Sequential(*layers, *([torch.nn.ReLU(), torch.nn.Linear(hidden, 1)] if hidden else []))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-4)
    for _ in range(150):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(inputs).squeeze(1), target).backward()
        optimizer.step()
    guess = model(bags(test, vocabulary)).squeeze(1) > 0
    assert (guess.numpy() == answers.astype(bool)).mean() < 0.65


def test_the_gap_moves_the_verdict_away_from_the_end():
    def words_after(gap):
        corpus = SyntheticReviews(gap=gap, distractors=0, contrast=0.0)
        rng = random.Random(0)
        texts = [corpus.review(rng)[0] for _ in range(200)]
        return np.mean([len(text.split()) for text in texts])

    assert words_after(0) < words_after(2) < words_after(6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_size": 0}, "synthetic.train_size must be a whole number of at least 1 .* got 0"),
        ({"gap": -1}, "synthetic.gap must be a whole number of at least 0"),
        ({"noise": 0.5}, r"synthetic.noise must be a number of at least 0 and below 0.5, got 0.5"),
        ({"contrast": 1.5}, "synthetic.contrast must be a number of at least 0 and at most 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SyntheticReviews(**settings)
