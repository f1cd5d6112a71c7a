"""The baselines against their definitions written out."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from conftest import EASY, train
from recur.training.baselines import KneserNey, LinearNgrams


def naive(text: list[int], size: int, order: int):
    """Modified Kneser-Ney by dictionaries, as in Chen & Goodman (1999); gives probability(history, word)."""
    grams = {n: Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1)) for n in range(1, order + 1)}
    counts = {order: dict(grams[order])}
    for n in range(1, order):
        counts[n] = dict(Counter(gram[1:] for gram in grams[n + 1]))

    def discounts(values):
        n1, n2, n3, n4 = (sum(v == k for v in values) for k in (1, 2, 3, 4))
        if not (n1 and n2 and n3):
            return [0, 0.5, 1.0, 1.5]
        y = n1 / (n1 + 2 * n2)
        raw = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
        return [0, *(min(max(v, 0.1), k) for k, v in enumerate(raw, 1))]

    off = {n: discounts(list(counts[n].values())) for n in counts}

    def probability(history: tuple[int, ...], word: int, n: int = order) -> float:
        if n == 0:
            return 1 / size
        context = history[len(history) - (n - 1) :] if n > 1 else ()
        lower = probability(history, word, n - 1)
        if len(context) < n - 1:
            return lower
        after = {gram[-1]: c for gram, c in counts[n].items() if gram[:-1] == context}
        total = sum(after.values())
        if not total:
            return lower
        left = sum(off[n][min(c, 3)] for c in after.values())
        c = after.get(word, 0)
        return (c - off[n][min(c, 3)] + left * lower) / total

    return probability


@pytest.mark.parametrize(("size", "length", "order"), [(3, 400, 5), (6, 200, 3), (12, 300, 5), (4, 9, 5), (5, 60, 2)])
def test_kneser_ney_is_its_definition_and_sums_to_one(size: int, length: int, order: int) -> None:
    numbers = np.random.default_rng(size * length)
    text = (numbers.random(length) ** 2 * size).astype(np.int64)
    other = np.concatenate([numbers.integers(0, size, 40), text[:20]])
    model = KneserNey(text, size, 0, order)
    probability = naive([0, *text.tolist()], size, order)
    expected = [-math.log(probability((0, *other[:i].tolist()), int(other[i]))) for i in range(len(other))]
    np.testing.assert_allclose(model.nll(other), expected, rtol=1e-9)
    for i in (0, 3, 30, 50):
        every = [model.nll(np.append(other[:i], word))[-1] for word in range(size)]
        assert math.isclose(sum(math.exp(-v) for v in every), 1, rel_tol=1e-9)


def test_kneser_ney_learns_what_a_unigram_cannot() -> None:
    text = np.tile([1, 2, 3, 4], 200)
    assert KneserNey(text, 5, 0).perplexity(text[:80]) < 1.1
    assert KneserNey(text, 5, 0, order=2).perplexity(text[3:80:7]) > 3


def test_linear_model_is_scikit_learns_own_pipeline() -> None:
    pytest.importorskip("sklearn")
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    numbers = np.random.default_rng(0)
    texts = [numbers.integers(0, 9, n).astype(np.int32) for n in numbers.integers(1, 12, 300)]
    labels = np.array([int(3 in text and 4 not in text) for text in texts])
    fit, held = slice(0, 200), slice(200, 300)
    words = [" ".join(f"w{i}" for i in text) for text in texts]
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2, token_pattern=r"\S+")
    reference = LogisticRegression(C=30.0, max_iter=200).fit(vectorizer.fit_transform(words[fit]), labels[fit])
    expected = reference.predict(vectorizer.transform(words[held]))
    model = LinearNgrams(texts[fit], labels[fit], 9)
    assert (model.predict(texts[held]) == expected).mean() > 0.98  # the solver stops at a tolerance
    assert model.accuracy(texts[held], labels[held]) > 0.85


def test_linear_model_of_texts_without_a_known_word() -> None:
    pytest.importorskip("sklearn")
    texts = [np.array([1, 1]), np.array([2, 2]), np.array([1, 1]), np.array([2, 2])]
    model = LinearNgrams(texts, np.array([0, 1, 0, 1]), 5)
    assert model.predict([np.array([1]), np.array([2]), np.array([4]), np.array([], dtype=int)])[:2].tolist() == [0, 1]


@pytest.mark.slow
def test_a_run_shows_it_beside_its_own_figures(tmp_path: Path) -> None:
    """Of both families; the same figures as computed apart, and none where it is switched off."""
    pytest.importorskip("sklearn")
    for name, words in (
        ("sentiment", [*EASY, "trainer.max_epochs=1", "baseline=true"]),
        ("language", ["experiment=lm", "trainer=cpu", "trainer.max_steps=2", "trainer.limit_val_batches=1"]),
    ):
        train(tmp_path / name, *words)
    record = json.loads((tmp_path / "sentiment" / "metrics.json").read_text(encoding="utf-8"))
    assert record["baseline"]["name"] == "linear n-grams"
    assert record["baseline"]["val"]["accuracy"] > 0.9  # the easy corpus
    record = json.loads((tmp_path / "language" / "metrics.json").read_text(encoding="utf-8"))
    shown = record["baseline"]["val"]
    assert math.isclose(math.exp(shown["loss"]), shown["perplexity"])
    assert record["ceiling"]["perplexity"] < record["baseline"]["test"]["perplexity"] < 20
    assert "Kneser-Ney 5-grams" in (tmp_path / "language" / "train.log").read_text(encoding="utf-8")
    train(tmp_path / "off", *EASY, "trainer.max_epochs=1")
    assert json.loads((tmp_path / "off" / "metrics.json").read_text(encoding="utf-8"))["baseline"] == {}


def run_with_baseline(folder: Path) -> dict:
    """Train and test for an epoch in this process; gives `metrics.json`."""
    from recur.config.compose import command_line, compose_run
    from recur.training import start
    from recur.training.failures import Stop
    from recur.training.report import logging_as_before

    quick = ["baseline=true", "trainer.max_epochs=1", "trainer=cpu", "logger=none"]
    with logging_as_before():
        start.run(compose_run(command_line([*EASY, *quick, f"hydra.run.dir={folder}"])), Stop())
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_run_without_scikit_learn_is_trained_and_says_what_it_leaves_out(monkeypatch, tmp_path, capsys) -> None:
    from recur.training import baselines

    monkeypatch.setattr(baselines, "find_spec", lambda name: None)
    record = run_with_baseline(tmp_path / "r")
    said = capsys.readouterr().err
    assert "baseline   left out: baseline=true needs scikit-learn" in said and "pip install" in said
    assert record["baseline"] == {} and record["test"]["accuracy"] > 0.5


@pytest.mark.slow
def test_texts_too_many_for_the_memory_are_left_out_before_the_run(monkeypatch, tmp_path, capsys) -> None:
    """Of both families; IMDB's training reviews, 6 million tokens, are few enough."""
    from types import SimpleNamespace

    from recur.training import baselines

    pytest.importorskip("sklearn")
    assert baselines.MOST_TOKENS > 7_000_000
    lengths, none = np.array([12_000_000, 12_000_000]), lambda split: np.zeros(0)
    reviews = SimpleNamespace(texts=lambda split: SimpleNamespace(lengths=lengths), labels=none)
    for data in (reviews, SimpleNamespace(tokens=lambda split: np.zeros(24_000_000, np.uint8))):
        assert baselines.left_out(data) == "the n-grams of 24,000,000 tokens would take 6 GB of memory"
    monkeypatch.setattr(baselines, "MOST_TOKENS", 10)
    assert run_with_baseline(tmp_path / "r")["baseline"] == {}
    assert "baseline   left out: the n-grams of " in capsys.readouterr().err


@pytest.mark.slow
def test_a_baseline_without_memory_does_not_cost_the_figures_of_the_run(monkeypatch, tmp_path, capsys) -> None:
    from recur.training import baselines

    def full(*_: object) -> None:
        raise MemoryError

    pytest.importorskip("sklearn")
    monkeypatch.setenv("RECUR_CACHE", str(tmp_path / "cache"))  # else a former test's figures are read
    monkeypatch.setattr(baselines, "_ngrams", full)
    record = run_with_baseline(tmp_path / "r")
    assert record["baseline"] == {} and record["test"]["accuracy"] > 0.5
    assert "baseline   left out: memory ran out" in capsys.readouterr().err
