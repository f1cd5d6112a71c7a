"""The command evaluate: exact figures, of a run's own data and of other data."""

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import EASY, train
from recur import evaluate, predict
from recur.data.sentiment import SentimentData
from recur.inference import ensemble, evaluation
from recur.inference.classification import classify
from recur.inference.evaluation import open_data
from recur.inference.run import load
from recur.runs import precision
from support.commands import run_command as process


@pytest.fixture
def run_command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Call the command in this process: `run_command(*words)` gives `told` (the JSON), `err` and `code`."""

    def call(*words: object) -> SimpleNamespace:
        code: Any = 0
        try:
            evaluate.main([str(word) for word in words])
        except SystemExit as leaving:
            code = leaving.code
        printed = capsys.readouterr()
        return SimpleNamespace(told=json.loads(printed.out or "null"), err=printed.err, code=code)

    return call


@pytest.fixture(scope="module")
def own_split(trained_run: Path) -> tuple[list[str], list[int]]:
    """Texts and labels of the run's own test split, some of them relabelled so that the model errs."""
    data = open_data(load(trained_run))
    texts = [data.text("test", row) for row in range(len(data.texts("test")))]
    labels = data.labels("test").tolist()
    return texts, [1 - label if row % 7 == 0 else label for row, label in enumerate(labels)]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_mistakes_are_listed_the_surest_first(run_command, trained_run, own_split, tmp_path, suffix) -> None:
    texts, labels = own_split
    frame = pd.DataFrame({"text": texts, "label": [load(trained_run).task.class_names[label] for label in labels]})
    frame.to_csv(tmp_path / "own.csv", index=False)
    out = tmp_path / f"mistakes.{suffix}"
    words = (trained_run, "--data", tmp_path / "own.csv", "--mistakes", out)
    figures = run_command(*words).told["test"]
    listed = pd.read_csv(out) if suffix == "csv" else pd.read_json(out, lines=True)
    assert len(listed) == figures["texts"] - np.trace(figures["confusion"]) > 20
    assert (listed["label"] != listed["predicted"]).all() and listed["probability"].is_monotonic_decreasing
    for one in listed.itertuples():
        assert texts[one.row - 1] == one.text and frame["label"][one.row - 1] == one.label
        assert one.probability + one.of_label == pytest.approx(1)
    cut = run_command(*words, "--overwrite", "max_length=2").told["test"]
    rows = pd.read_csv(out) if suffix == "csv" else pd.read_json(out, lines=True)
    assert len(rows) == cut["texts"] - np.trace(cut["confusion"]) > len(listed)
    again = run_command(*words)
    assert again.code == 2 and "--mistakes must not exist" in again.err
    assert run_command(*words, "--overwrite").code == 0


def test_mistakes_are_never_written_over_the_data(run_command, trained_run, tmp_path, monkeypatch) -> None:
    file, out, words = tmp_path / "test.csv", tmp_path / "out.csv", ("--overwrite", "--mistakes")
    file.write_text("text,label\n" + "the film was superb,positive\nthe film was awful,negative\n" * 5)
    answer = run_command(trained_run, "--data", tmp_path, *words, file)
    assert answer.code == 2 and "--mistakes is a file of the texts" in answer.err
    monkeypatch.setenv("HOME", str(tmp_path))
    out.touch()
    assert run_command(trained_run, "--data=~/test.csv", *words, out).code == 0  # `~` was an error where it was there
    monkeypatch.setattr(SentimentData, "files", lambda _: [str(file)])  # as of a run that was trained on it
    assert run_command(trained_run, *words, file).code == 2


def test_mistakes_are_computed_in_the_precision_of_the_figures(trained_run, monkeypatch) -> None:
    """Else texts that lie near the border are in one of the two only."""
    run, low = load(trained_run), []
    run.config["trainer"]["precision"] = precision.LOW
    monkeypatch.setattr(precision.products, "has_bf16", lambda: True)
    read = ensemble.classification.read
    noted = lambda *given: low.append(torch.is_autocast_enabled("cpu")) or read(*given)
    monkeypatch.setattr(ensemble.classification, "read", noted)
    data = open_data(run)
    listed = list(ensemble.mistakes(run, data, "test"))
    figures = evaluation.evaluate_split(run, data, "test")
    assert low == [True] and len(listed) == figures["texts"] - np.trace(figures["confusion"])


def test_gives_what_the_run_wrote_down(run_command, trained_run) -> None:
    written = json.loads((trained_run / "metrics.json").read_text())
    told = run_command(trained_run).told
    for split in ("val", "test"):
        for name, value in written[split].items():
            assert told[split][name] == pytest.approx(value, abs=1e-6), (split, name)
    assert told["ceiling"] == written["ceiling"]
    assert np.sum(told["test"]["confusion"]) == told["test"]["texts"] == 150


def test_what_bounds_a_split_is_of_that_split(run_command, trained_run, monkeypatch) -> None:
    bounds = {"val": {"accuracy": 0.9}, "test": {"accuracy": 0.8}}
    monkeypatch.setattr(SentimentData, "ceiling_of", lambda self, split: bounds[split])
    told = run_command(trained_run).told
    assert told["ceiling"] == bounds["test"] and told["ceiling_by_split"] == bounds
    told = run_command(trained_run, "--split", "val").told
    assert "ceiling" not in told and told["ceiling_by_split"] == {"val": bounds["val"]}
    assert not {"ceiling", "ceiling_by_split"} & set(run_command(trained_run, "--split", "train").told)


def test_checkpoint_alone_and_any_batch_size_give_the_same(run_command, trained_run, tmp_path) -> None:
    alone = tmp_path / "moved.ckpt"
    alone.write_bytes((trained_run / "checkpoints" / "best.ckpt").read_bytes())
    whole = run_command(trained_run, "--split", "test").told["test"]
    assert set(run_command(trained_run, "--split", "val").told) >= {"val"}
    for size in (1, 13):
        again = run_command(alone, "--split", "test", f"eval_batch_size={size}").told["test"]
        assert again["confusion"] == whole["confusion"]
        for name in ("loss", "accuracy", "f1", "auroc"):
            assert again[name] == pytest.approx(whole[name], abs=1e-6)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "folder", "repository", "zip"])
def test_other_data_in_any_form_scores_by_the_definitions(
    run_command, trained_run, own_split, tmp_path, kind: str, monkeypatch
) -> None:
    # predictions are made in float32, and scores that round otherwise may change places
    monkeypatch.setattr(precision, "of_evaluation", lambda *_: (precision.EXACT, False))
    texts, labels = own_split
    names = ["negative", "positive"]
    place, settings = tmp_path / f"a.{kind}", []
    if kind == "csv":
        place.write_text("stars,review\n" + "".join(f'{names[y]},"{x}"\n' for x, y in zip(texts, labels, strict=True)))
        settings = ["text_column=review", "data.label_column=stars"]
    elif kind == "tsv":
        place.write_text("text\tlabel\n" + "".join(f"{x}\t{y}\n" for x, y in zip(texts, labels, strict=True)))
    elif kind == "jsonl":
        rows = [json.dumps({"text": x, "label": names[y]}) for x, y in zip(texts, labels, strict=True)]
        place.write_text("\n".join(rows))
    elif kind == "folder":
        for number, (text, label) in enumerate(zip(texts, labels, strict=True)):
            (place / "test" / names[label]).mkdir(parents=True, exist_ok=True)
            (place / "test" / names[label] / f"{number}.txt").write_text(text)
    elif kind == "zip":  # with a training split too, of texts that are none of ours
        with zipfile.ZipFile(place, "w") as archive:
            for number, (text, label) in enumerate(zip(texts, labels, strict=True)):
                archive.writestr(f"test/{names[label]}/{number}.txt", text)
                archive.writestr(f"train/{names[1 - label]}/{number}.txt", f"{text} the")
    else:
        place.mkdir()
        rows = [json.dumps({"text": x, "label": names[y]}) for x, y in zip(texts, labels, strict=True)]
        (place / "test.jsonl").write_text("\n".join(rows))
    answer = run_command(trained_run, "--data", place, *settings)
    assert answer.code == 0, answer.err
    told = answer.told["test"]

    found = classify(load(trained_run), texts)
    positive = np.array([one.probabilities["positive"] for one in found])
    truth = np.array(labels)
    assert told["texts"] == len(texts)
    assert told["accuracy"] == pytest.approx(np.mean((positive > 0.5) == truth), abs=1e-6)
    hits = np.sum((positive > 0.5) & (truth == 1))
    assert told["f1"] == pytest.approx(2 * hits / (np.sum(positive > 0.5) + truth.sum()), abs=1e-6)
    higher = positive[truth == 1][:, None] - positive[truth == 0]  # every pair of a positive and a negative text
    assert told["auroc"] == pytest.approx(np.mean((higher > 0) + 0.5 * (higher == 0)), abs=1e-5)
    own = np.where(truth == 1, positive, 1 - positive)
    assert told["loss"] == pytest.approx(-np.log(own).mean(), abs=1e-4)


REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "no such data": (["--data", "nowhere.csv"], ["nowhere.csv"]),
    "no such split": (["--split", "dev"], ["--split", "'dev'"]),
    "mistyped setting": (["eval_batchsize=3"], ["eval_batchsize=3", "did you mean eval_batch_size?"]),
    "no setting": (["batch"], ["batch", "KEY=VALUE"]),
    "bad value": (["eval_batch_size=0"], ["eval_batch_size", "0"]),
    "foreign code": (["_target_=os.system"], ["_target_"]),
    "language option": (["--cache", "100"], ["language"]),
    "nothing to weigh": (["--cache-weight", "0.1"], ["--cache-weight does nothing without --cache"]),
    "nothing to pull back": (["--dynamic-decay", "0.1"], ["--dynamic-decay does nothing without --dynamic"]),
    "nothing to dampen": (["--dynamic-epsilon", "1"], ["--dynamic-epsilon does nothing without --dynamic"]),
    "tuned and set": (["--dynamic", "tune", "--dynamic-decay", ".1"], ["--dynamic tune chooses the other settings"]),
    "nothing to tune": (["--dynamic", "tune"], ["language"]),
    "no rate": (["--dynamic", "fast"], ["--dynamic: must be a number or `tune`, got 'fast'"]),
    "endless step": (["--dynamic", "inf"], ["--dynamic must be above 0 and finite, got inf"]),
    "no step": (["--dynamic", "nan"], ["--dynamic must be above 0 and finite, got nan"]),
    "no states": (["--cache", "0"], ["--cache must be above 0, got 0"]),
    "another tokenizer": (["--data", ".", "tokenizer.kind=character"], ["tokenizer does nothing for other data"]),
    **{
        f"another {key}": (["--data", ".", f"data.{key}={value}"], [f"{key} does nothing for other data"])
        for key, value in (("val_fraction", 0.2), ("test_fraction", 0.2), ("limit_train", 5))
    },
    "device": (["--device", "meta"], ["--device meta cannot be used"]),
}


@pytest.mark.parametrize(("words", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_mistakes_are_one_line(run_command, trained_run, words, said) -> None:
    answer = run_command(trained_run, *words)
    assert answer.code == 2 and len(answer.err.splitlines()) == 1
    assert all(word in answer.err for word in said), answer.err


def test_unknown_label_names_file_row_and_classes(run_command, trained_run, tmp_path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text,label\nthe film was superb,positive\nthe film was dull,so-so\n")
    answer = run_command(trained_run, "--data", file)
    assert answer.code == 2 and len(answer.err.splitlines()) == 1
    assert all(word in answer.err for word in (str(file), "so-so"))


def test_a_planted_target_builds_nothing(run_command, trained_run, tmp_path) -> None:
    content = torch.load(trained_run / "checkpoints" / "best.ckpt", weights_only=True)
    content["recur"]["config"]["data"] = {"_target_": "os.system", "command": f"touch {tmp_path}/planted"}
    torch.save(content, tmp_path / "planted.ckpt")
    answer = run_command(tmp_path / "planted.ckpt")
    assert answer.code == 2 and "os.system" in answer.err
    content["recur"]["config"]["data"] = {
        "_target_": "recur.data.sentiment.SentimentData",
        "synthetic": {"_target_": "subprocess.run", "args": ["touch", f"{tmp_path}/planted"]},
    }
    torch.save(content, tmp_path / "planted.ckpt")
    answer = run_command(tmp_path / "planted.ckpt")
    assert answer.code == 2 and "subprocess.run" in answer.err
    assert not (tmp_path / "planted").exists()


def test_changed_data_is_noticed(run_command, tmp_path, trained_run) -> None:
    content = torch.load(trained_run / "checkpoints" / "best.ckpt", weights_only=True)
    content["recur"]["config"]["data"]["synthetic"]["contrast"] = 1.0  # brings in `but` and `although`
    torch.save(content, tmp_path / "changed.ckpt")
    answer = run_command(tmp_path / "changed.ckpt")
    assert answer.code == 2 and "of the train split changed" in answer.err and "--data" in answer.err


def test_other_classes_or_other_texts_are_noticed(run_command, tmp_path) -> None:
    """Of files that have changed since: the classes turned round, and a test split of other texts."""
    rows = [("the film was superb", "good"), ("the film was awful", "bad")] * 20

    def write(name: str, names: dict[str, str], extra: str = "") -> None:
        lines = [f"{text}{extra},{names[label]}" for text, label in rows]
        (tmp_path / name).write_text("\n".join(["text,label", *lines]) + "\n")

    same = {"good": "good", "bad": "bad"}
    for name in ("train.csv", "test.csv"):
        write(name, same)
    words = ["data=files", *(f"data.{split}={tmp_path / split}.csv" for split in ("train", "test")), "model=bilstm"]
    train(tmp_path / "run", *words, "trainer.max_epochs=1", "baseline=false", "logger=none")
    assert run_command(tmp_path / "run").code == 0
    write("test.csv", same, " really")
    answer = run_command(tmp_path / "run")
    assert answer.code == 2 and "the texts of the test split changed" in answer.err and "--data" in answer.err
    for name in ("train.csv", "test.csv"):
        write(name, {"good": "excellent", "bad": "poor"})
    answer = run_command(tmp_path / "run")
    assert answer.code == 2 and "its classes are excellent, poor now" in answer.err and "--data" in answer.err


@pytest.mark.slow
def test_texts_of_the_word_vectors_may_be_gone(run_command, tmp_path) -> None:
    """They are never evaluated."""
    pytest.importorskip("gensim")
    rows = "text,label\n" + "the film was superb,good\nthe film was awful,bad\n" * 20
    for name in ("train.csv", "more.csv"):
        (tmp_path / name).write_text(rows)
    words = ["data=files", f"data.train={tmp_path}/train.csv", f"data.unlabelled={tmp_path}/more.csv", "model=bilstm"]
    small = ["data.word2vec.dim=8", "data.word2vec.min_count=1", "model.net.embedding_dim=8", "trainer.max_epochs=1"]
    train(tmp_path / "run", *words, "data.vectors=train", *small, "baseline=false", "logger=none")
    (tmp_path / "more.csv").unlink()
    answer = run_command(tmp_path / "run")
    assert answer.code == 0, answer.err


@pytest.mark.slow
def test_data_that_a_run_went_on_with_are_its_own(run_command, tmp_path) -> None:
    """They have a word that its vocabulary lacks."""
    file = tmp_path / "train.csv"
    file.write_text("text,label\n" + "the film was superb,good\nthe film was awful,bad\n" * 20)
    shutil.copy(file, tmp_path / "val.csv")
    named = [f"data.train={file}", f"data.val={tmp_path}/val.csv"]
    words = ["data=files", *named, "model=bilstm", "baseline=false", "logger=none"]
    train(tmp_path / "run", *words, "trainer.max_epochs=1", "monitor=val/loss", "mode=min")  # the best one is the last
    with file.open("a") as stream:
        stream.writelines(f"the film was {word} marvellous,good\n" for word in ("so", "quite", "very", "really") * 2)
    for more in ([], ["eval_batch_size=7"], ["data.batch_size=7", "seed=3"]):
        answer = run_command(tmp_path / "run", *more)
        assert answer.code == 2 and "changed" in answer.err and "--data" in answer.err
    resumed = process("train", f"resume={tmp_path / 'run'}", "accept_data_change=true", "trainer.max_epochs=2")
    assert resumed.returncode == 0, resumed.stderr
    again = process("train", f"resume={tmp_path / 'run'}", "trainer.max_epochs=3")  # on the same data as before
    assert again.returncode == 0, again.stderr
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    answer = run_command(tmp_path / "run", "eval_batch_size=7")
    assert answer.code == 0, answer.err
    assert answer.told["val"]["accuracy"] == pytest.approx(written["val"]["accuracy"])
    answer = run_command(tmp_path / "run", "limit_train=33")  # other content, with which nothing can be compared
    assert answer.code == 2 and "its vocabulary is another one now" in answer.err
    file.write_text(file.read_text().replace("superb", "awful", 1))
    answer = run_command(tmp_path / "run", "eval_batch_size=7")
    assert answer.code == 2 and "split changed" in answer.err


@pytest.mark.slow
def test_validation_rows_are_not_carved_anew_off_what_was_trained_on(tmp_path) -> None:
    """Most of them had been trained on, and nothing was said."""
    file = tmp_path / "train.csv"
    file.write_text("text,label\n" + "the film was superb,good\nthe film was awful,bad\n" * 20)
    shutil.copy(file, tmp_path / "val.csv")
    words = ["data=files", f"data.train={file}", "model=bilstm", "baseline=false", "logger=none"]
    train(tmp_path / "run", *words, "trainer.max_epochs=1")
    with file.open("a") as stream:
        stream.write("the film was superb,good\n" * 9)
    more = [f"resume={tmp_path / 'run'}", "accept_data_change=true", "trainer.max_epochs=2"]
    refused = process("train", *more)
    assert refused.returncode == 2 and "carves validation rows anew" in refused.stderr
    assert "name other texts in data.val" in refused.stderr
    done = process("train", *more, f"data.val={tmp_path}/val.csv")
    assert done.returncode == 0, done.stderr


def test_as_a_program_from_another_folder(trained_run, tmp_path) -> None:
    done = process("evaluate", trained_run, "--split", "test", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["test"]["accuracy"] > 0.9
    assert done.stderr == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_names_that_the_terminal_cannot_show_are_escaped(trained_run: Path, own_split, tmp_path: Path) -> None:
    """In a process: there is a stack and half a JSON where they are written as they are."""
    texts, _ = own_split
    names = ["плохо", "schön"]
    content = torch.load(trained_run / "checkpoints" / "best.ckpt", weights_only=True)
    content["recur"]["data"]["class_names"] = names
    torch.save(content, tmp_path / "best.ckpt")
    frame = pd.DataFrame({"text": texts, "label": [names[row % 2] for row in range(len(texts))]})
    frame.to_csv(tmp_path / "straße.csv", index=False)
    words = [sys.executable, "-m", "recur.evaluate", "best.ckpt", "--data", "straße.csv"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["data"] == "straße.csv" and told["test"]["class_names"] == names


# -------------------------------------------------------------------------------------------------------- language runs


@pytest.fixture(scope="module")
def language_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a character model of one sentence."""
    folder = tmp_path_factory.mktemp("runs") / "language"
    file = folder.with_suffix(".txt")
    file.write_text("the quick brown fox jumps over the lazy dog .\n" * 40)
    sizes = ["model.net.embedding_dim=12", "model.net.hidden_size=12", "trainer.max_epochs=2"]
    common = [word for word in EASY if word.startswith("trainer.") and "max_epochs" not in word]
    train(
        folder,
        "data=text_files",
        f"data.path={file}",
        "model=language_model",
        "data.tokenizer.kind=character",
        "data.batch_size=4",
        "data.test_fraction=0.2",
        *sizes,
        *common,
    )
    return folder


def test_language_run_gives_what_it_wrote_down_and_more_when_asked(run_command, language_run) -> None:
    written = json.loads((language_run / "metrics.json").read_text())
    told = run_command(language_run).told
    for split in ("val", "test"):
        assert told[split]["perplexity"] == pytest.approx(written[split]["perplexity"], rel=1e-5)
    told = run_command(language_run, "--split", "test", "eval_batch_size=1").told
    words = [
        "eval_batch_size=1",
        "--dynamic",
        "0.0001",
        "--cache",
        "100",
        "--cache-flatness",
        "0",
        "--cache-weight",
        "0.5",
    ]
    more = run_command(language_run, "--split", "test", *words).told
    assert more["test"]["perplexity"] == told["test"]["perplexity"]  # the plain figure stays apart
    for name in ("neural_cache", "dynamic_evaluation"):
        assert more["test"][name]["perplexity"] < told["test"]["perplexity"], name  # the text repeats itself


@pytest.mark.slow
def test_dynamic_evaluation_is_tuned_on_validation_text(run_command, language_run) -> None:
    tuned = run_command(language_run, "--dynamic", "tune", "eval_batch_size=1").told
    settings = {name: tuned["test"]["dynamic_evaluation"][name] for name in ("lr", "decay", "epsilon")}
    words = ["--dynamic", settings["lr"], "--dynamic-decay", settings["decay"], "eval_batch_size=1"]
    again = run_command(language_run, *words).told
    for split in ("val", "test"):
        assert again[split]["dynamic_evaluation"] == tuned[split]["dynamic_evaluation"]
        assert tuned[split]["dynamic_evaluation"]["perplexity"] < tuned[split]["perplexity"]


def test_a_cache_and_a_temperature_are_tuned_on_validation_text(run_command, language_run) -> None:
    tuned = run_command(language_run, "--cache", "tune", "--temperature", "tune", "eval_batch_size=1").told
    cache, temperature = tuned["test"]["neural_cache"], tuned["test"]["temperature"]["temperature"]
    words = ["--cache", cache["size"], "--cache-flatness", cache["flatness"], "--cache-weight", cache["weight"]]
    again = run_command(language_run, *words, "--temperature", temperature, "eval_batch_size=1").told
    for split in ("val", "test"):
        for name in ("neural_cache", "temperature"):
            assert again[split][name] == pytest.approx(tuned[split][name])
    for name in ("neural_cache", "temperature"):
        assert tuned["val"][name]["perplexity"] <= tuned["val"]["perplexity"] * 1.001  # which may be of bf16
    refused = run_command(language_run, "--window", "0")
    assert refused.code == 2 and "must be above 0" in refused.err
    refused = run_command(language_run, "--cache", "tune", "--cache-weight", ".1")
    assert refused.code == 2 and "chooses the other settings itself" in refused.err
    refused = run_command(language_run, "--temperature", "0")
    assert refused.code == 2 and "must be above 0" in refused.err


def test_the_runs_own_text_is_read_where_the_settings_say(run_command, language_run, tmp_path) -> None:
    """That of a run whose tokens lie outside its folder is opened beside `--data`, to choose the settings on it."""
    content = torch.load(language_run / "checkpoints" / "best.ckpt", weights_only=True)
    content["recur"]["config"]["data"]["cache_dir"] = str(tmp_path / "cache")
    (tmp_path / "run").mkdir()
    torch.save(content, tmp_path / "run" / "best.ckpt")
    (tmp_path / "own.txt").write_text("the lazy dog jumps over the quick brown fox .\n" * 3)
    words = (tmp_path / "run" / "best.ckpt", "--data", tmp_path / "own.txt", "--cache", "tune")
    answer = run_command(*words)
    assert answer.code == 2 and "data.cache_dir" in answer.err
    answer = run_command(*words, f"cache_dir={tmp_path / 'cache'}")
    assert answer.code == 0, answer.err
    assert answer.told["test"]["neural_cache"]["size"] == 2000


@pytest.mark.parametrize("best", [0.3, 6.0, 40.0])
def test_the_search_for_a_cache_goes_on_beyond_its_end(monkeypatch, best) -> None:
    """Short states want a large flatness, and how short they are nobody knows before."""

    def trials(task, windows, *, flatnesses):
        known = [
            {"size": 2000, "flatness": f, "weight": 0.2, "loss": abs(f - best), "perplexity": 1.0} for f in flatnesses
        ]
        return sorted(known, key=lambda one: one["loss"])

    monkeypatch.setattr(evaluation, "tune_neural_cache", trials)
    run = SimpleNamespace(task=SimpleNamespace(eval=lambda: None))
    chosen = evaluation.tuned_cache(run, SimpleNamespace(loader=lambda split: []))
    assert best / 1.7 < chosen.flatness < best * 1.7


def test_windows_of_so_many_tokens_are_read_from_empty_states(run_command, language_run) -> None:
    """Against one window after the other: the last alone is shorter, and none is longer."""
    run = load(language_run)
    data = open_data(run)
    text = torch.from_numpy(np.asarray(data.tokens("val"), np.int64))
    before = torch.cat([torch.tensor([data.start_id]), text[:-1]])
    for size in (7, 100):
        nats = 0.0
        with torch.no_grad():
            for inputs, targets in zip(before.split(size), text.split(size), strict=True):
                hidden = run.task.net(torch.nn.utils.rnn.pack_sequence([inputs]))
                logits = run.task.net.logits(hidden.features)
                nats += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
        found = run_command(language_run, "--split", "val", "--window", size).told["val"]["each_window_alone"]
        assert found["window"] == size and found["loss"] == pytest.approx(nats / len(text), rel=1e-5)


def test_gradients_are_measured_on_the_runs_own_training_text_whatever_is_scored(
    run_command, language_run, tmp_path, monkeypatch
) -> None:
    """With `--data FILE` they were measured on the text that is scored."""
    measure, seen = evaluation.gradient_statistics, []

    def recorded(task, windows):
        seen.extend(windows)
        return measure(task, seen)

    monkeypatch.setattr(evaluation, "gradient_statistics", recorded)
    other = tmp_path / "other.txt"
    other.write_text("the lazy dog .\n" * 30)
    run_command(language_run, "--data", other, "--dynamic", "5e-5", "eval_batch_size=1")
    text = open_data(load(language_run)).tokens("train")
    first = seen[0]
    streams = int(first.text.batch_sizes[0])
    assert first.targets.view(-1, streams)[:, 0].tolist() == text[: len(first.text.batch_sizes)].tolist()


def test_what_is_written_down_is_what_was_evaluated(run_command, language_run, tmp_path) -> None:
    """The data that the settings name, and the precision of each way of measuring."""
    file = tmp_path / "other.txt"
    file.write_text("the lazy fox .\n" * 30)
    told = run_command(language_run, "--split", "test", "--temperature", "1", f"test={file}").told
    assert told["data"]["test"] == str(file)
    assert told["test"]["temperature"]["precision"] == "32-true"


@pytest.mark.slow
def test_a_run_of_single_windows_has_no_text_to_learn_from(run_command, tmp_path) -> None:
    train(
        tmp_path / "run", "experiment=char_sentence", "trainer.max_epochs=1", "logger=none", "model.net.hidden_size=8"
    )
    for option, value in (("--dynamic", "5e-5"), ("--cache", "100")):
        refused = run_command(tmp_path / "run", option, value)
        assert refused.code == 2 and f"{option} needs states along a text" in refused.err


def test_what_is_not_finite_is_null(run_command, language_run, monkeypatch) -> None:
    figures = {"loss": float("inf"), "perplexity": float("nan"), "counts": [1, float("-inf")]}
    monkeypatch.setattr(evaluation, "window_figures", lambda *_: figures)
    told = run_command(language_run, "--split", "val", "--window", 7).told["val"]["each_window_alone"]
    assert told == {"loss": None, "perplexity": None, "counts": [1, None], "precision": "32-true"}


@pytest.mark.parametrize(("best", "said"), [(0.5003, "a lower one"), (1.999, "a higher one"), (1.2, "")])
def test_a_temperature_at_the_end_of_what_was_tried_is_said(monkeypatch, capsys, best: float, said: str) -> None:
    monkeypatch.setattr(evaluation, "tune_temperature", lambda task, windows: best)
    run = SimpleNamespace(task=SimpleNamespace(eval=lambda: None))
    assert evaluation.tuned_temperature(run, None) == best
    assert (said in capsys.readouterr().err) if said else capsys.readouterr().err == ""


def test_language_data_of_ones_own(run_command, language_run, tmp_path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("the lazy fox .\n" * 30)
    told = run_command(language_run, "--data", file, "eval_batch_size=1").told["test"]
    other = tmp_path / "b.txt"
    other.write_text("zzqqxxkk" * 60)
    assert (
        told["perplexity"] < run_command(language_run, "--data", other, "eval_batch_size=1").told["test"]["perplexity"]
    )


def test_language_predictions_say_how_surprising_each_token_is(language_run, capsys, tmp_path) -> None:
    text = "the fox\x1b[31m ☃\n"
    predict.main([str(language_run), text, "--json", "--html", str(tmp_path / "page.html")])
    record = json.loads(capsys.readouterr().out)
    assert "".join(token["token"] for token in record["tokens"]) == text
    nats = np.array([token["nats"] for token in record["tokens"]])
    assert record["nats"] == pytest.approx(nats.sum())
    assert record["perplexity"] == pytest.approx(np.exp(nats.mean()))
    assert all(token["probability"] == pytest.approx(np.exp(-token["nats"])) for token in record["tokens"])
    assert all(1 <= token["rank"] <= len(load(language_run).tokenizer.vocabulary) for token in record["tokens"])
    predict.main([str(language_run), text])
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "☃" in printed and "unknown" in printed
    assert "\x1b" not in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("delimiter", ["|", "#", "~", ",", " ", "\t"])
def test_a_delimiter_is_the_text_that_was_typed(run_command, trained_run, own_split, tmp_path, delimiter: str) -> None:
    """Though YAML takes some for something else."""
    rows = [f'"{text}"{delimiter}{("negative", "positive")[label]}' for text, label in zip(*own_split, strict=True)]
    head = f'"a: b"{delimiter}"!label"'
    (tmp_path / "a.csv").write_text("\n".join([head, *rows]))
    words = [f"delimiter={delimiter}", "text_column=a: b", "label_column=!label"]
    answer = run_command(trained_run, "--data", tmp_path / "a.csv", *words)
    assert answer.code == 0, answer.err
    assert answer.told["test"]["texts"] == len(rows)


def test_a_job_of_several_tasks_evaluates_in_one_process(trained_run: Path) -> None:
    """Lightning refuses to go on where SLURM would start several tasks and srun starts none."""
    slurm = {"SLURM_NTASKS": "8", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "1", "SLURM_PROCID": "0"}
    done = process("evaluate", trained_run, "--split", "val", environment=slurm)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("which", "ended"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_ends_an_evaluation_with_its_own_code(trained_run, monkeypatch, which, ended) -> None:
    """Lightning made exit code 0 of the one and 1 of the other, and nothing was said."""
    run = load(trained_run)
    step = type(run.task).test_step

    def signalled(task, batch, number):
        os.kill(os.getpid(), which)
        return step(task, batch, number)

    before = signal.getsignal(which)
    monkeypatch.setattr(type(run.task), "test_step", signalled)
    with pytest.raises(ended) as caught:
        run.evaluate(split="test")
    assert ended is KeyboardInterrupt or caught.value.code == 143
    assert signal.getsignal(which) == before
