"""Several classifiers whose probabilities are averaged, from Python and by the commands."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, log_loss, roc_auc_score

import recur
from conftest import EASY, train
from recur.errors import UserError
from support.commands import run_command

TEXTS = ["the film was superb", "the film was awful", "film", "an awful cast and a superb story"]


@pytest.fixture(scope="session")
def weak_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with classes in another order, another vocabulary and texts cut short, that errs here and there."""
    folder = tmp_path_factory.mktemp("runs") / "weak"
    other = ["data.class_names=[positive,negative]", "data.tokenizer.max_size=40", "data.max_length=6"]
    train(folder, *EASY, *other, "trainer.max_epochs=1", "data.limit_train=100", "seed=3")
    return folder


@pytest.fixture(scope="session")
def both(trained_run: Path, weak_run: Path) -> recur.Ensemble:
    return recur.Ensemble([recur.load(trained_run), recur.load(weak_run)])


def probabilities(run, texts) -> np.ndarray:
    return np.array(
        [[answer.probabilities[name] for name in ("negative", "positive")] for answer in run.predict(texts)]
    )


def test_averages_the_probabilities_whatever_the_order_of_the_classes(both) -> None:
    assert [run.task.class_names for run in both.runs] == [["negative", "positive"], ["positive", "negative"]]
    mean = (probabilities(both.runs[0], TEXTS) + probabilities(both.runs[1], TEXTS)) / 2
    np.testing.assert_allclose(probabilities(both, TEXTS), mean, atol=1e-12)
    for answer, row in zip(both.predict(TEXTS), mean, strict=True):
        assert answer.label == ["negative", "positive"][row.argmax()] and answer.index == row.argmax()
        assert answer.probability == row.max()
    assert list(both.predict(iter(TEXTS))) == both.predict(TEXTS)
    assert both.predict([]) == []


def test_figures_are_those_of_the_averaged_probabilities(both) -> None:
    found = both.evaluate(split="test")["test"]
    data = recur.inference.evaluation.open_data(both.runs[0])
    texts = [data.text("test", row) for row in range(len(data.texts("test")))]
    labels, each = data.labels("test"), [probabilities(run, texts) for run in both.runs]
    mean = (each[0] + each[1]) / 2
    assert found["loss"] == pytest.approx(log_loss(labels, mean), abs=1e-6)
    assert found["accuracy"] == pytest.approx(np.mean(mean.argmax(1) == labels), abs=1e-6)
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, mean[:, 1]), abs=1e-6)
    assert found["f1"] == pytest.approx(f1_score(labels, mean.argmax(1)), abs=1e-6)
    assert np.sum(found["confusion"]) == found["texts"] == len(texts)
    for run, own in zip(both.runs, each, strict=True):
        member = found["members"][str(run.checkpoint)]
        assert member["accuracy"] == pytest.approx(np.mean(own.argmax(1) == labels), abs=1e-6)
        assert member["loss"] == pytest.approx(log_loss(labels, own), abs=1e-6)
    good, weak = (found["members"][str(run.checkpoint)]["accuracy"] for run in both.runs)
    assert weak < good


def test_commands_give_the_same(both, trained_run, weak_run) -> None:
    done = run_command("evaluate", trained_run, "--with", weak_run, "--split", "test")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["test"] == json.loads(json.dumps(both.evaluate(split="test")["test"]))
    assert record["with"] == [str(weak_run)] and record["precision"] == "32-true"
    done = run_command("predict", trained_run, "--with", weak_run, "--json", *TEXTS)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["probabilities"] for answer in answers] == [answer.probabilities for answer in both.predict(TEXTS)]


def test_refuses_what_cannot_be_averaged(both, language_run) -> None:
    run = both.runs[0]
    with pytest.raises(UserError, match="at least two runs"):
        recur.Ensemble([run])
    with pytest.raises(UserError, match="wants a sentiment run"):
        recur.Ensemble([run, recur.load(language_run)])
    with pytest.raises(UserError, match="each run cuts texts as it was trained to"):
        both.evaluate(max_length=3)
    with pytest.raises(TypeError, match="several texts"):
        both.predict(TEXTS[0])
    for table in (pd.DataFrame({"text": TEXTS}), {"text": TEXTS}):  # of which the names of columns would be labelled
        for classifier in (both, run):
            with pytest.raises(
                TypeError, match=rf"not a {type(table).__name__}: give one column, as frame\[\"text\"\]"
            ):
                classifier.predict(table)
    assert both.predict(pd.DataFrame({"text": TEXTS})["text"]) == both.predict(TEXTS)
    other = recur.load(run.folder)
    other.task.class_names = ["bad", "good"]
    with pytest.raises(UserError, match="runs of the same classes"):
        recur.Ensemble([run, other])


def test_commands_refuse_it_in_a_line(trained_run, weak_run, tmp_path) -> None:
    for words in (["--explain"], ["--html", tmp_path / "page.html"], ["--gates", tmp_path / "gates.png"]):
        done = run_command("predict", trained_run, "--with", weak_run, "a film", *words)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert f"{words[0]} shows one run: leave out --with" in done.stderr
    assert not list(tmp_path.iterdir())
