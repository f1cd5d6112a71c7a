"""`recur.load` and what a run offers from Python."""

import json
import math
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_overloads, get_type_hints

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.utils.rnn import PackedSequence

import recur
from recur.data.text import Tokenizer
from recur.errors import UserError
from recur.exporting.folder import export
from recur.inference.classification import Prediction
from recur.inference.curves import draw
from recur.inference.evaluation import open_data
from recur.inference.language import read_tokens
from support.torture import scalars


def test_importing_recur_is_light() -> None:
    code = "import sys, recur; print([m for m in ('torch', 'lightning', 'hydra', 'rich', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert {"load", "Run"} <= set(dir(recur))
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        recur.lode  # noqa: B018


def test_a_type_checker_sees_a_misspelt_name(tmp_path: Path) -> None:
    uses = tmp_path / "uses.py"
    uses.write_text("import recur\nrecur.load\nrecur.laod\n")
    words = ["--follow-imports=skip", f"--cache-dir={tmp_path}", recur.__file__, str(uses)]
    done = subprocess.run([sys.executable, "-m", "mypy", *words], capture_output=True, text=True, cwd=tmp_path)
    assert 'uses.py:3: error: Module has no attribute "laod"' in done.stdout
    assert "Found 1 error" in done.stdout


@pytest.mark.parametrize("kind", [recur.Run, recur.Ensemble])
def test_what_has_a_length_is_typed_to_give_a_list(kind: type) -> None:
    first, second = (get_type_hints(one) for one in get_overloads(kind.predict))
    assert first == {"texts": Collection[str], "return": list[Prediction]}
    assert second == {"texts": Iterable[str], "return": Iterator[Prediction]}


def test_what_has_a_length_gives_a_list_and_one_text_is_refused(trained_run: Path) -> None:
    run = recur.load(trained_run)
    texts = {"a good film": 0, "a bad film": 1}.keys()  # neither a sequence nor read once
    assert [one.label for one in run.predict(texts)] == [one.label for one in run.predict(list(texts))]
    assert isinstance(run.predict(texts), list)
    with pytest.raises(TypeError, match=r"^predict takes several texts: give \[text\]"):
        run.predict("a good film")


def test_to_open_a_run_moves_no_random_numbers(trained_run: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    recur.load(trained_run)
    assert torch.equal(torch.rand(3), expected)


def test_a_run_gives_its_record_and_its_history(trained_run: Path) -> None:
    run = recur.load(trained_run)
    assert run.family == "sentiment"
    assert run.metrics == json.loads((trained_run / "metrics.json").read_text())
    history = run.history
    assert history["epoch"].tolist() == [1.0, 2.0, 3.0]
    best = history["val/accuracy"].max()
    assert best == pytest.approx(run.metrics["val"]["accuracy"], abs=1e-6)
    events = scalars(trained_run)
    for name in ("train/epoch_loss", "train/epoch_accuracy"):
        assert history[name].tolist() == pytest.approx([value for _, value in events[name]], rel=1e-6)


@pytest.mark.parametrize("late", [False, True])
def test_training_figures_are_drawn_at_the_end_of_their_epoch(late: bool) -> None:
    """Earlier versions wrote them down with the validation after the next epoch."""
    train = [math.nan, 0.9, 0.8] if late else [0.9, 0.8, 0.7]
    history = pd.DataFrame({"epoch": [1.0, 2.0, 3.0], "val/loss": [0.5, 0.4, 0.3], "train/epoch_loss": train})
    if not late:
        history["training"] = "epoch so far"
    lines = {line.get_label(): line for line in draw(history).axes[0].lines}
    x, y = (list(values) for values in lines["training"].get_data())
    assert (x, y) == (([1.0, 2.0], [0.9, 0.8]) if late else ([1.0, 2.0, 3.0], train))


def test_figures_of_one_checkpoint_are_not_shown_beside_another(trained_run: Path, tmp_path: Path) -> None:
    best = recur.load(trained_run / "checkpoints" / "best.ckpt")
    recorded = json.loads((trained_run / "metrics.json").read_text())
    assert best.metrics == recorded
    last = recur.load(trained_run / "checkpoints" / "last.ckpt")
    assert last.metrics == {} and len(last.history) == 3
    for run, name in ((best, "best"), (last, "last")):
        done = export(run, "safetensors", tmp_path / name)
        assert ("metrics.json" in done.files) == (name == "best")
        shown = "do not lie beside its weights" not in (done.folder / "README.md").read_text()
        assert shown == (name == "best")
        assert recur.load(done.folder).metrics == run.metrics


def test_the_curves_are_what_the_history_says(trained_run: Path) -> None:
    run = recur.load(trained_run)
    history, figure = run.history, run.plot()
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    drawn = {axes.get_title(loc="left"): {line.get_label(): line for line in axes.lines} for axes in figure.axes}
    assert list(drawn) == ["loss (nats)", "accuracy"]  # the second chose the best checkpoint
    for title, name, column in (
        ("loss (nats)", "validation", "val/loss"),
        ("loss (nats)", "training", "train/epoch_loss"),
        ("accuracy", "validation", "val/accuracy"),
        ("accuracy", "training", "train/epoch_accuracy"),
    ):
        x, y = (list(values) for values in drawn[title][name].get_data())
        assert (x, y) == ([1.0, 2.0, 3.0], history[column].tolist())
    marked = figure.axes[1].lines[-1]
    assert marked.get_ydata()[0] == history["val/accuracy"].max()
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert [axes.get_title(loc="left") for axes in run.plot("f1").axes] == ["f1"]
    with pytest.raises(UserError, match=r"plot must be a metric that the run's validations have: .*got 'f2'"):
        run.plot("f2")
    theirs = run.plot("accuracy", reference={"accuracy": {"a log": [(1, 0.5), (4, 0.75)]}}).axes[0]
    (log,) = [line for line in theirs.lines if line.get_label() == "a log"]
    assert [list(values) for values in log.get_data()] == [[1, 4], [0.5, 0.75]]
    panels = run.plot("loss", reference={"f1": {"a log": [(1, 0.5)]}}).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["loss (nats)", "f1"], "drawn nowhere, without a word"
    assert "a log" in [line.get_label() for line in panels[1].lines]
    with pytest.raises(UserError, match=r"plot must be a metric .*got 'recall'"):
        run.plot(reference={"recall": {"a log": [(1, 0.5)]}})


@pytest.mark.parametrize(("mode", "best"), [("min", 0.2), ("max", 0.9), ("", 0.9)])
def test_the_best_of_a_metric_of_ones_own_is_as_the_run_says(mode: str, best: float) -> None:
    history = pd.DataFrame({"epoch": [1.0, 2.0], "val/mine": [0.9, 0.2], "val/loss": [0.5, 0.4]})
    figure = draw(history, (), "val/mine", mode)
    assert [axes.lines[-1].get_ydata()[0] for axes in figure.axes] == [0.4, best]


def test_a_run_is_found_again_from_another_folder(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained_run.parent)
    monkeypatch.setenv("HOME", str(trained_run.parent))
    runs = [recur.load(trained_run.name), recur.load(f"~/{trained_run.name}")]
    assert str(runs[0].checkpoint) == f"{trained_run.name}/checkpoints/best.ckpt"
    monkeypatch.chdir(tmp_path)
    for run in runs:
        assert run.metrics["seed"] == 0 and len(run.history) == 3


def test_settings_given_from_python_stay_what_they_are(trained_run: Path, tmp_path: Path) -> None:
    run = recur.load(trained_run)
    (tmp_path / "a.csv").write_text("2024,a: b\nthe film was great,positive\nthe film was awful,negative\n")
    settings = {"max_length": None, "text_column": "2024", "label_column": "a: b", "cache_dir": tmp_path / "1"}
    assert run.evaluate(tmp_path / "a.csv", **settings)["test"]["texts"] == 2


def test_a_notebook_shows_a_run_and_no_text_of_it_acts(trained_run: Path, tmp_path: Path) -> None:
    run = recur.load(trained_run)
    shown = run._repr_html_()
    accuracy = f"{run.metrics['test']['accuracy']:.2%}".replace("%", " %")
    for text in ("Classifier", "lstm", accuracy, "optimizer.lr", "0.01", str(trained_run)):
        assert text in shown, text
    run.config |= {"name": "<script>alert(1)</script>", "tags": ["<b>", "\u202e"]}
    run.config["data"] = {**run.config["data"], "<img src=x>": "</td><script>"}
    shown = run._repr_html_()
    assert "<script" not in shown and "<img" not in shown and "<b>&lt;script" in shown and "\u202e" not in shown
    alone = tmp_path / "alone.ckpt"
    alone.write_bytes((trained_run / "checkpoints" / "best.ckpt").read_bytes())
    run = recur.load(alone)
    assert "test" not in run._repr_html_().partition("<details>")[0].replace(str(tmp_path), "")
    with pytest.raises(UserError, match="has nothing to draw"):
        run.plot()


def test_a_checkpoint_alone_has_no_record(trained_run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.ckpt"
    alone.write_bytes((trained_run / "checkpoints" / "best.ckpt").read_bytes())
    run = recur.load(alone)
    assert run.metrics == {} and run.history.empty
    assert run.predict(["the film was superb"])[0].label == "positive"


def test_evaluating_from_python_gives_what_the_run_wrote_down(trained_run: Path) -> None:
    run = recur.load(trained_run)
    (split, metrics), *others = run.evaluate(split="test", eval_batch_size=7).items()
    assert split == "test" and not others
    assert metrics["accuracy"] == pytest.approx(run.metrics["test"]["accuracy"], abs=1e-6)
    with pytest.raises(UserError, match="batch_sise"):
        run.evaluate(batch_sise=3)
    with pytest.raises(UserError, match="must be one of the data's splits"):
        run.evaluate(split="dev")


@pytest.mark.parametrize(("own", "other"), [(5, "null"), (None, "5")])
def test_streams_and_single_windows_are_not_exchanged(tmp_path: Path, own: int | None, other: str) -> None:
    """The figures of one depended on `eval_bptt`, and a model of streams had never read such windows."""
    settings = {"_target_": "recur.data.language.LanguageData", "text": "the lazy fox .\n" * 30, "window": own}
    run: Any = SimpleNamespace(
        family="language", config={"data": settings}, folder=tmp_path, place=lambda folder: folder
    )
    (file := tmp_path / "other.txt").write_text("the fox .\n" * 30)
    for path, words in ((None, [f"window={other}"]), (str(file), [f"data.window={other}", "eval_bptt=8"])):
        with pytest.raises(UserError, match=r"window must be (null|a number), as the run reads (streams|windows), got"):
            open_data(run, path, words)
    run.tokenizer = Tokenizer.train([settings["text"]], "whitespace", eos=True)
    same = "null" if own is None else "4"
    assert open_data(run, str(file), [f"window={same}"]).window == json.loads(same)


def test_features_of_a_classifier_are_what_its_head_reads(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = recur.load(trained_run)
    texts = ["a good film", "bad", "the plot is a mess but the cast is good , and so is the end"]
    vectors = run.features(texts)
    assert vectors.dtype == np.float32
    head = run.task.net.head
    assert run.task.net.ngrams is None
    scores = torch.sigmoid(torch.from_numpy(vectors) @ head.weight.T + head.bias)[:, 0]
    positive = [one.probabilities[list(one.probabilities)[1]] for one in run.predict(texts)]
    assert scores.tolist() == pytest.approx(positive, rel=1e-5)
    monkeypatch.setattr("recur.inference.batches.BATCH_TOKENS", 4)
    np.testing.assert_allclose(run.features(pd.Series(texts[::-1]))[::-1], vectors, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
def test_features_of_a_language_model_are_its_states_pooled(language_run: Path, reverse: bool) -> None:
    run = recur.load(language_run)
    run.config["data"]["reverse"] = reverse
    texts = ["the cat sat", "on", "a mat and another cat"]
    vectors = run.features(texts)
    for text, vector in zip(texts, vectors, strict=True):
        ids = read_tokens(run.tokenizer, text)[0]
        state, outputs = None, []
        for index in reversed(ids) if reverse else ids:  # one token after the other
            with torch.no_grad():
                hidden = run.task.net(PackedSequence(torch.tensor([index]), torch.tensor([1])), state)
            state = hidden.state
            outputs.append(hidden.raw.data[0].numpy())
        expected = [outputs[-1], np.max(outputs, axis=0), np.mean(outputs, axis=0)]
        np.testing.assert_allclose(vector, np.concatenate(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["trained_run", "language_run"])
def test_features_refuse_what_is_no_text(kind: str, request: pytest.FixtureRequest) -> None:
    run = recur.load(request.getfixturevalue(kind))
    with pytest.raises(TypeError, match=r"^features takes several texts: give \[text\]"):
        run.features("a good film")
    with pytest.raises(TypeError, match=r"^features takes several texts, not a dict"):
        run.features({"a good film": 0})
    with pytest.raises(UserError, match="texts are none: give at least one"):
        run.features([])
    with pytest.raises(UserError, match=r"text 2 .*must have at least one token"):
        run.features(["a good film", ""])
    with pytest.raises(UserError, match="text 1 must be a text, got nan"):
        run.features([float("nan")])  # type: ignore[list-item]


@pytest.mark.parametrize("name", ["meta", "abacus", "cuda:99"])
def test_a_device_that_cannot_compute_is_refused(trained_run: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot be used"):
        recur.load(trained_run, name)


def test_the_other_familys_methods_are_refused(trained_run: Path) -> None:
    run = recur.load(trained_run)
    with pytest.raises(ValueError, match="wants a language run"):
        run.generate("the")
    with pytest.raises(ValueError, match="wants a language run"):
        run.token_nll("the")


def test_pieces_of_byte_pairs_are_the_text_together():
    """A token may end one character and begin the next; what is not whole yet waits."""
    from recur.data.text import Tokenizer
    from recur.inference.language import Writer, written

    random = np.random.default_rng(0)
    letters = [chr(code) for code in range(0x3042, 0x3096)] + list("né€𝄞 ")
    text = "".join(random.choice(letters, 4000))
    tokenizer = Tokenizer.train([text], kind="bpe", max_size=400)
    for start in range(0, 3000, 150):
        ids = tokenizer.encode(text[start : start + 100])
        assert written(tokenizer, ids) == tokenizer.decode(ids) == text[start : start + 100]
        half = ids[: len(ids) // 2 + start % 3]
        writer = Writer(tokenizer)
        pieces = [writer.piece(index) for index in half]
        assert "\ufffd" not in "".join(pieces)  # nothing is given out that the next token could complete
        assert "".join([*pieces, writer.end()]) == tokenizer.decode(half)
