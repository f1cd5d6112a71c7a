"""Predictions and explanations of a sentiment run, from Python."""

from pathlib import Path

import numpy as np
import pytest
import torch

import recur
from recur.errors import UserError
from recur.inference import classification
from recur.inference.classification import TOLERANCE, classify, integrated_gradients
from recur.inference.run import Run

GOOD, BAD = "the film was superb", "the film was awful"


@pytest.fixture(scope="session")
def run(trained_run: Path) -> Run:
    return recur.load(trained_run)


def probabilities(run: Run, text: str) -> list[float]:
    return list(classify(run, [text])[0].probabilities.values())


@pytest.mark.slow
def test_each_text_is_answered_alone_whatever_stands_beside_it(run) -> None:
    texts = [GOOD, BAD, "film", " ".join([GOOD] * 40), "unheard of words", BAD + " . " + GOOD]
    together = classify(run, texts)
    for text, found in zip(texts, together, strict=True):
        (alone,) = classify(run, [text])
        np.testing.assert_allclose(list(found.probabilities.values()), list(alone.probabilities.values()), atol=1e-6)
        assert sum(found.probabilities.values()) == pytest.approx(1)


def test_two_threads_of_torch_answer_the_same(run) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = probabilities(run, GOOD)
        torch.set_num_threads(2)
        two = probabilities(run, GOOD)
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_allclose(one, two, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("text", [GOOD, BAD, "film", "xyzzy was the film", " ".join([GOOD, BAD] * 20)])
def test_contributions_add_up_to_the_whole_difference(run, text: str) -> None:
    explanation = run.explain(text)
    whole = explanation.logit - explanation.baseline
    assert sum(explanation.contributions) == pytest.approx(whole, abs=TOLERANCE * max(1, abs(whole)))
    # and the logit is the network's own
    assert 1 / (1 + np.exp(-explanation.logit)) == pytest.approx(probabilities(run, text)[1], abs=1e-6)
    assert explanation.tokens == text.split()


def test_contributions_of_a_linear_model_are_its_terms() -> None:
    """With a logit that is a sum over tokens, a token's contribution is its own term, exactly."""

    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.randn(5, dtype=torch.float64)

        def embed(self, text):
            return torch.randn(len(text.data), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

        def classify(self, vectors, text):
            each = vectors @ self.weight
            return each.view(len(text.batch_sizes), -1).sum(0)[:, None] + 3.0  # every point has all its tokens

    net = Linear()
    text = torch.nn.utils.rnn.pack_sequence([torch.arange(7)])
    values, logit, baseline = integrated_gradients(net, text, 0)
    torch.testing.assert_close(values, net.embed(text) @ net.weight, rtol=1e-6, atol=1e-6)
    assert baseline == 3.0 and logit == pytest.approx(3.0 + float(values.sum()))


def test_the_word_that_decides_contributes_most_and_with_the_right_sign(run) -> None:
    for text, sign in ((GOOD, 1), (BAD, -1)):
        explanation = run.explain(text)
        strongest = int(np.argmax(np.abs(explanation.contributions)))
        assert explanation.tokens[strongest] in ("superb", "awful")
        assert np.sign(explanation.contributions[strongest]) == sign
        assert (explanation.towards, explanation.against) == ("positive", "negative")


def test_explanation_follows_the_cut_of_the_run(run, monkeypatch) -> None:
    monkeypatch.setitem(run.config["data"], "max_length", 4)
    for keep, kept in (("head", "a b c d"), ("tail", "e f g h"), ("both", "a b g h")):
        monkeypatch.setitem(run.config["data"], "keep", keep)
        assert run.explain("a b c d e f g h").tokens == kept.split()
        (found,) = classify(run, ["a b c d e f g h"])
        assert (found.tokens, found.read) == (8, 4)
        np.testing.assert_allclose(list(found.probabilities.values()), probabilities(run, kept), atol=1e-6)


def test_explaining_leaves_the_model_where_it_is(run, monkeypatch) -> None:
    """With `--device cuda --explain`, the model was moved to the CPU for all that followed."""
    run = recur.load(run.folder)  # that has not explained yet: the copy that explains is made once
    monkeypatch.setattr(run.task, "cpu", lambda: pytest.fail("the run's own network was moved"))
    before = {name: (value.device, value.dtype, value.data_ptr()) for name, value in run.task.state_dict().items()}
    run.explain(GOOD)
    after = {name: (value.device, value.dtype, value.data_ptr()) for name, value in run.task.state_dict().items()}
    assert before == after


def test_a_list_gives_a_list_and_a_generator_is_read_as_answers_are_taken(run, monkeypatch) -> None:
    monkeypatch.setattr(classification, "SORTED_TOGETHER", 2)
    texts = [GOOD, BAD, "film " * 30, GOOD, BAD]
    answers = run.predict(texts)
    assert isinstance(answers, list) and [answer.text for answer in answers] == texts
    assert [answer.label for answer in answers[:2]] == ["positive", "negative"]
    assert answers[0].probability == answers[0].probabilities["positive"]
    taken = []

    def source():
        for text in texts:
            taken.append(text)
            yield text

    stream = run.predict(source())
    assert not taken
    assert next(stream).text == GOOD and len(taken) == 2
    assert [answer.index for answer in stream] == [answer.index for answer in answers[1:]]
    assert run.predict([]) == []
    with pytest.raises(TypeError, match="several texts"):
        run.predict(GOOD)
    with pytest.raises(UserError, match=r"text 2 must have at least one token"):
        run.predict([GOOD, ";"])


@pytest.mark.parametrize(
    ("text", "said"), [("", "at least one token"), (float("nan"), "a text, got nan"), (None, "a text, got None")]
)
def test_what_is_no_text_is_named_by_its_number_among_all(run, monkeypatch, text: object, said: str) -> None:
    monkeypatch.setattr(classification, "SORTED_TOGETHER", 2)
    texts = ["a film", "the film", "great", text]
    with pytest.raises(UserError, match=f"^text 4 must (be|have) {said}"):
        list(classification.classify_stream(run, texts))


def test_a_class_can_be_named_and_must_exist(run) -> None:
    assert run.explain(GOOD, "negative") == run.explain(GOOD, "positive")  # two classes have one logit
    with pytest.raises(UserError, match="must be one of negative, positive"):
        run.explain(GOOD, "neutral")
    with pytest.raises(UserError, match="1 to 5,000 tokens to be explained, got 6,000"):
        run.explain("film " * 6000)
