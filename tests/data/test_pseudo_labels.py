"""Texts with a model's probabilities: read in every form that `predict --out` writes, and trained on."""

import csv
import json
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import recur
from conftest import EASY, train
from recur.data.sentiment import SentimentData
from recur.errors import UserError
from recur.inference import evaluation
from recur.inference.io import Delimited
from recur.runs.fingerprint import BESIDE, fingerprint
from support.commands import run_command

TEXTS = ["a superb film", "what a dull plot , very dull", "neither good nor bad", "an awful film with a superb cast"]
POSITIVE = [0.9, 0.2, 0.5, 0.75]


def write(path, texts=TEXTS, positive=POSITIVE):
    """The file as `predict --out` writes it, by its suffix."""
    if path.suffix == ".jsonl":
        answers = [
            {"text": text, "label": "pos", "probabilities": {"pos": p, "neg": 1 - p}}
            for text, p in zip(texts, positive, strict=True)
        ]
        path.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    elif path.suffix == ".parquet":
        pd.DataFrame(
            {"text": texts, "probabilities.neg": [1 - p for p in positive], "probabilities.pos": positive}
        ).to_parquet(path)
    else:
        with open(path, "w", newline="") as stream:
            rows = csv.writer(stream, delimiter="," if path.suffix == ".csv" else "\t")
            rows.writerow(["text", "probabilities.pos", "probabilities.neg"])
            rows.writerows([text, p, 1 - p] for text, p in zip(texts, positive, strict=True))
    return str(path)


@pytest.fixture
def labelled(tmp_path):
    rows = [
        f"{'superb' if row % 2 else 'dull'} film number{row + 1},{'pos' if row % 2 else 'neg'}" for row in range(40)
    ]
    (tmp_path / "mine.csv").write_text("text,label\n" + "\n".join(rows) + "\n")

    def make(**settings):
        data = SentimentData(
            train=str(tmp_path / "mine.csv"), cache_dir=str(tmp_path / "cache"), batch_size=8, **settings
        )
        data.setup()
        return data

    return make


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_batches_hold_each_text_with_its_probabilities(tmp_path, labelled, suffix):
    data = labelled(pseudo_labelled=write(tmp_path / f"theirs.{suffix}"))
    plain = labelled()
    assert data.class_names == ["neg", "pos"]
    assert data.vocab_size == plain.vocab_size and data.model_arguments() == plain.model_arguments()
    seen = {}
    loader = data.train_dataloader()
    for batch in loader:
        assert batch.targets.dtype == torch.float32
        assert batch.labels.tolist() == batch.targets.argmax(1).tolist()
        for place, (row, target) in enumerate(zip(batch.rows.tolist(), batch.targets.tolist(), strict=True)):
            steps = torch.arange(len(batch.text.batch_sizes))[batch.text.batch_sizes > place]
            starts = batch.text.batch_sizes.cumsum(0) - batch.text.batch_sizes
            seen[row] = (batch.text.data[starts[steps] + place].tolist(), target)
    known = len(data.labels("train"))
    assert sorted(seen) == list(range(known + len(TEXTS)))
    for row in range(known):
        ids, target = seen[row]
        assert ids == data.tokenizer.encode(data.text("train", row)) and target[data.labels("train")[row]] == 1
    for number, (text, positive) in enumerate(zip(TEXTS, POSITIVE, strict=True)):
        ids, target = seen[known + number]
        assert ids == data.tokenizer.encode(text) and target == pytest.approx([1 - positive, positive])
    for ours, theirs in zip(data.val_dataloader(), plain.val_dataloader(), strict=True):
        assert ours.targets is None and torch.equal(ours.text.data, theirs.text.data)
    assert data.describe()["pseudo-labelled"].startswith(f"{len(TEXTS)} texts")


def test_texts_of_validation_that_a_model_labelled_are_counted(tmp_path, labelled):
    plain = labelled()
    assert plain.overlap() == {"val": 0} and plain.describe()["val overlap"] == "0 of 4 texts are in train too"
    known = [plain.text("val", row) for row in range(2)]
    data = labelled(pseudo_labelled=write(tmp_path / "theirs.jsonl", [*known, *TEXTS[2:]]))
    assert data.overlap() == {"val": 2}
    assert data.describe()["val overlap"] == "2 of 4 texts are in train or pseudo-labelled too"


def test_rows_in_messages_are_those_of_the_files(tmp_path, labelled):
    """Whatever was carved off, left out or read beside them, and counted from 1 in each file."""
    file = write(tmp_path / "theirs.jsonl", [TEXTS[0], " ", *TEXTS[1:]], [0.9, 0.5, *POSITIVE[1:]])
    data = labelled(pseudo_labelled=file, limit_train=20, on_bad_row="skip")
    loader, said = data.train_dataloader(), []
    for number, batch in enumerate(loader):
        rows = sorted(batch.rows.tolist())
        names = [str(data.source_row("train", row)) for row in rows if row < 20]
        assert names == [data.text("train", row).rpartition("number")[2] for row in rows if row < 20]
        theirs = [str((1, 3, 4, 5)[row - 20]) for row in rows if row >= 20]
        both = {"training rows": names, "pseudo-labelled rows": theirs}
        parts = [f"{name} {', '.join(own)}" for name, own in both.items() if own]
        assert loader.where(number) == ", ".join(parts)
        said += rows
    assert sorted(said) == list(range(24))
    assert data.loader("val").where(0).startswith("val rows ")
    many = labelled(pseudo_labelled=file, on_bad_row="skip").train_dataloader()
    many._settings["batch_size"] = 40
    assert re.fullmatch(r"training rows (\d+, ){7}\d+ and \d+ more", many.where(0))


@pytest.mark.parametrize("keep", ["head", "tail", "both"])
def test_texts_are_cut_as_the_labelled_ones(tmp_path, labelled, keep):
    text = " ".join(f"number{row}" for row in range(9))
    file = write(tmp_path / "theirs.jsonl", [text, "a superb film"], [0.9, 0.1])
    data = labelled(pseudo_labelled=file, max_length=4, keep=keep)
    ids = data.tokenizer.encode(text)
    cut = {"head": ids[:4], "tail": ids[-4:], "both": ids[:2] + ids[-2:]}[keep]
    loader = data.train_dataloader()
    assert loader.texts[len(data.labels("train"))].tolist() == cut


def test_a_file_may_be_a_split_as_well(tmp_path, labelled):
    """Its true labels then count in the split, whichever is read first."""
    file = tmp_path / "theirs.jsonl"
    answer = {"text": "a superb film", "label": "neg", "probabilities": {"pos": 0.9, "neg": 0.1}}
    file.write_text(json.dumps(answer) + "\n")
    for settings in (
        {"pseudo_labelled": str(file)},
        {"test": str(file)},
        {"test": str(file), "pseudo_labelled": str(file)},
    ):
        data = labelled(**settings)
        assert "test" not in settings or data.labels("test").tolist() == [0]
        assert "pseudo_labelled" not in settings or data.pseudo_labelled()[1].argmax(1).tolist() == [1]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"text": "a film", "probabilities": {"pos": 1.0}}, "a probability of each of the classes neg, pos"),
        ({"text": "a film", "probabilities": {"pos": 0.6, "neg": 0.6}}, "a probability of each of the classes"),
        ({"text": "a film", "probabilities": {"pos": -0.5, "neg": 1.5}}, "a probability of each of the classes"),
        ({"text": "a film", "probabilities": {"pos": "much", "neg": 0.5}}, "a probability of each of the classes"),
        ({"text": "a film", "probabilities": {"good": 0.5, "bad": 0.5}}, "a probability of each of the classes"),
        ({"text": "a film", "label": "pos"}, "no column 'probabilities.neg'"),
        ({"text": " ", "probabilities": {"pos": 0.5, "neg": 0.5}}, "'text'"),
    ],
)
def test_rows_without_probabilities_are_refused_by_name(tmp_path, labelled, record, words):
    file = tmp_path / "theirs.jsonl"
    file.write_text(json.dumps(record) + "\n")
    with pytest.raises(UserError, match=words) as raised:
        labelled(pseudo_labelled=str(file))
    assert "theirs.jsonl" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.slow
def test_a_student_learns_from_what_predict_wrote(trained_run, tmp_path):
    """The commands of self-training; the run is resumed with the file, refused with another, opened without any."""
    texts = ["the film was superb", "the film was awful", "a superb story", "an awful cast"] * 30
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    file = tmp_path / "theirs.jsonl"
    done = run_command("predict", trained_run, "--file", tmp_path / "texts.jsonl", "--out", file)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "student"
    few = ["data.limit_train=20", "data.batch_size=8", "trainer.max_epochs=2"]
    done = train(folder, *EASY, *few, f"data.pseudo_labelled={file}")
    assert "pseudo-labelled" in done.stdout and "120 texts" in done.stdout
    run = recur.load(folder)
    assert run.predict(["superb"])[0].label == "positive"
    done = run_command("train", f"resume={folder}", "trainer.max_epochs=3")
    assert done.returncode == 0, done.stderr
    plain = tmp_path / "plain"
    train(plain, *EASY, *few)
    done = run_command("train", f"resume={plain}", "trainer.max_epochs=3", f"data.pseudo_labelled={file}")
    assert done.returncode == 2 and "no pseudo-labelled texts" in done.stderr
    before = file.read_text()
    file.write_text(before.replace("superb", "awful"))
    done = run_command("train", f"resume={folder}", "trainer.max_epochs=4")
    assert done.returncode == 2 and "pseudo-labelled" in done.stderr
    file.unlink()
    assert np.isfinite(recur.load(folder).evaluate()["val"]["loss"])


def test_a_few_labelled_texts_may_have_many_beside_them(tmp_path, labelled):
    """A batch is of all rows that are trained on."""
    data = labelled(pseudo_labelled=write(tmp_path / "more.jsonl", TEXTS * 8, POSITIVE * 8), limit_train=6)
    assert (len(data.texts("train")), len(data.pseudo_labelled()[0])) == (6, 32)


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_texts_that_a_spreadsheet_would_take_for_formulas_are_what_they_were(tmp_path, labelled, suffix):
    texts = ["@user superb", "-dull film", "=superb", "'tis superb", "'-superb' film", "a\rsuperb film"]
    file = tmp_path / f"answers{suffix}"
    with open(file, "w", newline="") as stream:
        writer = Delimited(stream, "," if suffix == ".csv" else "\t")
        for text in texts:
            writer.write({}, {"text": text, "probabilities": {"pos": 0.75, "neg": 0.25}})
    rows = pd.read_csv(file, sep="," if suffix == ".csv" else "\t", keep_default_na=False)
    assert rows["text"].tolist() == [
        "'@user superb",
        "'-dull film",
        "'=superb",
        "'tis superb",
        "''-superb' film",
        "a\rsuperb film",
    ]
    data = labelled(pseudo_labelled=str(file))
    read, _ = data.pseudo_labelled()
    assert [list(read[row]) for row in range(len(texts))] == [data.tokenizer.encode(text) for text in texts]


def test_a_file_that_the_training_pattern_has_as_well_is_not_read_as_true_labels(tmp_path, labelled, caplog):
    """The rows of `predict --out` have a column `label`, which is the model's."""
    answer = {"text": "a superb film", "label": "neg", "probabilities": {"pos": 0.9, "neg": 0.1}}
    (tmp_path / "theirs.jsonl").write_text(json.dumps(answer) + "\n")
    rows = [
        {"text": f"{'superb' if row % 2 else 'dull'} film", "label": "pos" if row % 2 else "neg"} for row in range(40)
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"cache_dir": str(tmp_path / "cache"), "batch_size": 8}
    theirs, both = str(tmp_path / "theirs.jsonl"), str(tmp_path / "*.jsonl")
    data = SentimentData(train=both, pseudo_labelled=theirs, **settings)
    data.setup()
    assert data.describe()["train"].startswith("36 texts") and len(data.pseudo_labelled()[0]) == 1
    said = "data.pseudo_labelled names files of the training split, which are trained on with a model's probabilities"
    assert said in caplog.text and theirs in caplog.text
    run = SimpleNamespace(config={"data": {"pseudo_labelled": theirs}})
    read = {"_target_": "recur.data.sentiment.SentimentData", "train": both, **settings}
    again = evaluation._read(run, read, own=True)  # without the texts, which may be gone
    assert fingerprint(again) == {key: facts for key, facts in fingerprint(data).items() if key not in BESIDE}
    (tmp_path / "theirs.jsonl").rename(tmp_path / "gone")
    assert fingerprint(evaluation._read(run, read, own=True)) == fingerprint(again)
    (tmp_path / "gone").rename(theirs)
    with pytest.raises(UserError, match=r"pseudo_labelled names all files of the training split: name labelled"):
        SentimentData(train=theirs, pseudo_labelled=theirs, **settings).setup()
