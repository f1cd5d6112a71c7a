"""Texts without labels that are trained on: where they are in batches, and where they are not."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import recur
from conftest import EASY, train
from recur.data.sentiment import SentimentData
from recur.data.synthetic import SyntheticReviews
from recur.errors import UserError
from support.commands import run_command

TEXTS = [f"a {word} film of its kind" + " indeed" * number for number, word in enumerate(("fine", "dull", "odd") * 9)]


def write(path: Path, texts: list[str] = TEXTS) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture
def labelled(tmp_path):
    rows = [f"{'superb' if row % 4 else 'dull'} film number{row},{'pos' if row % 4 else 'neg'}" for row in range(40)]
    (tmp_path / "mine.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    (tmp_path / "test.csv").write_text("text,label\n" + "\n".join(rows[:9]) + "\n")

    def make(**settings):
        files = {split: str(tmp_path / name) for split, name in (("train", "mine.csv"), ("test", "test.csv"))}
        data = SentimentData(**files, cache_dir=str(tmp_path / "cache"), batch_size=8, **settings)
        data.setup()
        return data

    return make


def rows_of(loader, epoch):
    """How often each row is in an epoch, and the token ids and label of each."""
    loader.set_epoch(epoch)
    count, content = Counter(), {}
    for batch in loader:
        assert batch.labelled == loader.labelled
        for place, (row, label) in enumerate(zip(batch.rows.tolist(), batch.labels.tolist(), strict=True)):
            starts = batch.text.batch_sizes.cumsum(0) - batch.text.batch_sizes
            ids = batch.text.data[starts[batch.text.batch_sizes > place] + place]
            count[row] += 1
            content[row] = (ids.tolist(), label)
    return count, content


@pytest.mark.parametrize("settings", [{}, {"max_length": 3}, {"max_length": 4, "keep": "both"}, {"max_tokens": 30}])
def test_each_text_is_in_a_batch_once_an_epoch_and_nothing_else_changes(tmp_path, labelled, settings):
    plain = labelled(**settings)
    data = labelled(**settings, unlabelled=write(tmp_path / "more.jsonl"), train_on_unlabelled=True)
    known = len(plain.labels("train"))
    for epoch in (0, 1):
        count, content = rows_of(data.train_dataloader(), epoch)
        assert count == dict.fromkeys(range(known + len(TEXTS)), 1)
        for row in range(known):
            assert content[row] == (plain.texts("train")[row].tolist(), plain.labels("train")[row])
        for number, text in enumerate(TEXTS):
            ids, label = content[known + number]
            whole = data.tokenizer.encode(text)
            cut = {None: whole, 3: whole[:3], 4: whole[:2] + whole[-2:]}[settings.get("max_length")]
            assert label == -1 and ids == cut
    assert data.train_dataloader().labelled == known / (known + len(TEXTS))
    assert plain.train_dataloader().labelled == 1
    assert data.tokenizer.to_json() == plain.tokenizer.to_json()
    assert data.model_arguments() == plain.model_arguments()
    for split in ("val", "test"):
        for ours, theirs in zip(data.loader(split), plain.loader(split), strict=True):
            assert torch.equal(ours.text.data, theirs.text.data) and torch.equal(ours.labels, theirs.labels)
            assert ours.labelled == 1
    facts = data.describe()
    tokens = int(data.beside()[0].texts.lengths.sum())
    assert facts.pop("unlabelled") == f"{len(TEXTS)} texts, {tokens:,} tokens"
    alike = {key: said.replace("train too", "train or unlabelled too") for key, said in plain.describe().items()}
    assert facts == alike
    assert data.splits == plain.splits


def test_some_of_them_and_rows_in_messages(tmp_path, labelled):
    file = write(tmp_path / "more.jsonl", [TEXTS[0], " ", *TEXTS[1:]])
    settings = {"unlabelled": file, "train_on_unlabelled": True, "on_bad_row": "skip", "limit_unlabelled": 10}
    data, other = labelled(**settings), labelled(**settings, split_seed=1)
    (part,) = data.beside()
    assert data.describe()["unlabelled skipped"] == "1 x column 'text' is empty"
    assert len(part.texts) == len(part.numbers) == 10 and not np.array_equal(part.numbers, other.beside()[0].numbers)
    read = [TEXTS[0], " ", *TEXTS[1:]]
    for row, number in enumerate(part.numbers.tolist()):
        assert part.texts[row].tolist() == data.tokenizer.encode(read[number - 1])
    loader, known = data.train_dataloader(), len(data.labels("train"))
    for number, batch in enumerate(loader):
        numbers = [str(part.numbers[row - known]) for row in sorted(batch.rows.tolist()) if row >= known]
        assert loader.where(number).endswith(f"unlabelled rows {', '.join(numbers)}" if numbers else "")
    with pytest.raises(recur.UserError, match=r"more\.jsonl row 2"):
        labelled(**{**settings, "on_bad_row": "error"})


def test_beside_probabilities_they_have_none(tmp_path, labelled):
    file = tmp_path / "theirs.jsonl"
    file.write_text(json.dumps({"text": "a superb film", "probabilities": {"pos": 0.75, "neg": 0.25}}) + "\n")
    more = write(tmp_path / "more.jsonl")
    data = labelled(unlabelled=more, train_on_unlabelled=True, pseudo_labelled=str(file))
    loader, known = data.train_dataloader(), len(data.labels("train"))
    assert loader.labels[known:].tolist() == [1] + [-1] * len(TEXTS)
    assert loader.targets[known:].tolist() == [[0.25, 0.75]] + [[0, 0]] * len(TEXTS)
    assert loader.labelled == (known + 1) / (known + 1 + len(TEXTS))


def reviews(path: Path, count: int) -> str:
    """Texts of the corpus of `EASY`, of another seed."""
    corpus = SyntheticReviews(count, 1, 1, contrast=0, negation=0, gap=0, distractors=0, noise=0, seed=7)
    return write(path, corpus.split("train").read().columns["text"])


@pytest.mark.slow
def test_a_run_learns_from_them_and_resumes_exactly(tmp_path):
    file = reviews(tmp_path / "more.jsonl", 300)
    words = [*EASY, "data.limit_train=40", "model.virtual_adversarial=0.05", "data.train_on_unlabelled=true"]
    words += [f"data.unlabelled={file}", "logger=none", "model.net.weight_drop=0.1"]
    done = train(tmp_path / "whole", *words, "trainer.max_epochs=4")
    assert "unlabelled 300 texts" in done.stdout
    record = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert record["steps"] == 4 * 17 and record["data"]["train"].startswith("40 texts")
    assert record["test"]["accuracy"] > 0.7

    train(tmp_path / "parts", *words, "trainer.max_steps=25", "trainer.max_epochs=4")  # in the middle of an epoch
    again = run_command("train", f"resume={tmp_path / 'parts'}", "trainer.max_steps=-1")
    assert again.returncode == 0, again.stderr
    states = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "parts")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

    before = Path(file).read_text()
    Path(file).write_text(before.replace("film", "play"))
    refused = run_command("train", f"resume={tmp_path / 'parts'}", "trainer.max_epochs=5")
    assert refused.returncode == 2 and "unlabelled" in refused.stderr and refused.stderr.count("\n") == 1
    Path(file).unlink()
    opened = recur.load(tmp_path / "whole")
    assert opened.evaluate()["test"]["accuracy"] == pytest.approx(record["test"]["accuracy"])
    (tmp_path / "own.csv").write_text("text,label\nthis film is superb,positive\nthis film is awful,negative\n")
    assert opened.evaluate(data=str(tmp_path / "own.csv"))["test"]["texts"] == 2


@pytest.mark.slow
def test_several_processes_add_up_also_where_one_has_seen_no_label(tmp_path):
    """The other waited for it in the sum of the training loss."""
    words = [*EASY, "data.limit_train=4", "model.virtual_adversarial=0.05", "data.train_on_unlabelled=true"]
    words += [f"data.unlabelled={reviews(tmp_path / 'more.jsonl', 300)}", "logger=none", "trainer=ddp_cpu"]
    train(tmp_path / "run", *words, "trainer.val_check_interval=2", "trainer.max_epochs=2")


def test_texts_of_the_test_without_their_labels_are_counted(tmp_path, labelled):
    (tmp_path / "test.csv").write_text("text,label\nsuperb and new,pos\ndull and new,neg\nanother dull one,neg\n")
    more = write(tmp_path / "more.jsonl", ["dull and new", "superb and new", *TEXTS])
    data = labelled(unlabelled=more, train_on_unlabelled=True)
    assert (labelled().overlap()["test"], data.overlap()["test"]) == (0, 2)
    assert data.describe()["test overlap"] == "2 of 3 texts are in train or unlabelled too"


def test_a_batch_may_be_larger_than_what_has_labels_also_where_it_is_evaluated(tmp_path, labelled):
    """An evaluation reads no unlabelled texts, and was refused for the training rows that were left."""
    settings = {"batch_size": 50, "train": str(tmp_path / "mine.csv"), "cache_dir": str(tmp_path / "cache")}
    SentimentData(**settings, unlabelled=write(tmp_path / "more.jsonl"), train_on_unlabelled=True).setup()
    with pytest.raises(UserError, match="at most the 36 rows"):
        SentimentData(**settings).setup()
    measured = SentimentData(**settings)
    measured.setup("test")
    assert len(measured.labels("train")) == 36
