"""The sentiment data: from files to batches, by settings alone."""

import itertools
import logging
import time

import numpy as np
import pandas as pd
import pytest
import torch

from recur.data.language import LanguageData
from recur.data.readers import Origin, Rows
from recur.data.sentiment import SentimentData
from recur.data.sources import Split
from recur.data.synthetic import SyntheticReviews

WORDS = ["good", "bad", "fine", "dull", "film", "plot", "very", "not"]


def write_csv(path, rows, header="text,label", delimiter=","):
    lines = [header, *(f"{text},{label}" for text, label in rows)]
    path.write_text("\n".join(line.replace(",", delimiter) for line in lines) + "\n")
    return str(path)


def reviews(count, labels=("neg", "pos"), seed=0, prefix=""):
    rng = np.random.default_rng(seed)
    return [
        (f"{prefix}{' '.join(rng.choice(WORDS, rng.integers(3, 12)))} w{row}", labels[row % len(labels)])
        for row in range(count)
    ]


@pytest.fixture
def opened(tmp_path):
    def make(*arguments, **settings):
        data = SentimentData(*arguments, **{"cache_dir": str(tmp_path / "cache"), "batch_size": 8, **settings})
        data.prepare_data()
        data.setup("fit")
        return data

    return make


def all_rows(loader):
    return sorted(itertools.chain.from_iterable(batch.rows.tolist() for batch in loader))


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_a_file_of_ones_own_trains_by_settings_alone(tmp_path, opened, delimiter):
    path = tmp_path / ("mine.csv" if delimiter == "," else "mine.tsv")
    rows = reviews(120, ("gut", "schlecht", "so la la"))
    write_csv(path, rows, "review,stars", delimiter)
    data = opened(train=str(path), text_column="review", label_column="stars")
    assert data.class_names == ["gut", "schlecht", "so la la"]
    assert data.splits == ["train", "val"]
    assert not data.has_test
    assert data.num_classes == 3
    assert all_rows(data.train_dataloader()) == list(range(108))
    assert all_rows(data.val_dataloader()) == list(range(len(data.labels("val"))))
    told = data.model_arguments()
    assert told["vocab_size"] == data.tokenizer.vocab_size == data.vocab_size
    assert sum(told["class_counts"]) == 108
    for batch in data.train_dataloader():
        for row, label in zip(batch.rows.tolist(), batch.labels.tolist(), strict=True):
            text, name = rows[data.source_row("train", row) - 1]
            assert data.text("train", row) == text
            assert data.class_names[label] == name
            assert data.tokenizer.decode(data.texts("train")[row]) == text


@pytest.mark.parametrize(("delimiter", "given"), [(";", ";"), ("|", "|"), ("\t", "\\t"), (",", None)])
def test_fields_may_be_parted_by_any_character(tmp_path, opened, delimiter, given):
    rows = [*reviews(39), (f'"so{delimiter} ""well"""', "pos")]
    path = write_csv(tmp_path / "a.csv", [(text.replace(delimiter, "\1"), label) for text, label in rows], "text,label")
    (tmp_path / "a.csv").write_text((tmp_path / "a.csv").read_text().replace(",", delimiter).replace("\1", delimiter))
    data = opened(train=path, delimiter=given)
    assert data.class_names == ["neg", "pos"]
    texts = [data.text(split, row) for split in data.splits for row in range(len(data.labels(split)))]
    assert len(texts) == 40 and f'so{delimiter} "well"' in texts
    lines = LanguageData(train=path, delimiter=given, batch_size=2, cache_dir=str(tmp_path / "cache"))
    lines.setup()
    assert {"very", "w0"} <= {*lines.tokenizer.vocabulary} and lines.splits == ["train", "val"]
    if given is not None:
        with pytest.raises(ValueError, match=r"has no column|'.' expected after"):
            opened(train=path)
        with pytest.raises(ValueError, match=r"data\.delimiter must be null or one character, got ';;'"):
            opened(train=path, delimiter=";;")


def test_the_carved_part_has_the_same_share_of_every_class_and_no_say_in_the_vocabulary(tmp_path, opened):
    rows = [(f"text u{row}", "rare" if row % 10 == 0 else "common") for row in range(200)]
    data = opened(train=write_csv(tmp_path / "a.csv", rows), val_fraction=0.2)
    assert np.bincount(data.labels("val")).tolist() == [36, 4]
    assert np.bincount(data.labels("train")).tolist() == [144, 16]
    train = {data.text("train", row) for row in range(160)}
    val = {data.text("val", row) for row in range(40)}
    assert train | val == {text for text, _ in rows} and not train & val
    assert set(data.tokenizer.vocabulary) == {"<unk>", "text"} | {text.split()[1] for text in train}
    again = opened(train=str(tmp_path / "a.csv"), val_fraction=0.2, seed=5)
    assert {again.text("val", row) for row in range(40)} == val
    other = opened(train=str(tmp_path / "a.csv"), val_fraction=0.2, split_seed=5)
    assert {other.text("val", row) for row in range(40)} != val


def test_one_file_can_give_a_test_too(tmp_path, opened):
    rows = [(f"text u{row}", "rare" if row % 10 == 0 else "common") for row in range(200)]
    path = write_csv(tmp_path / "a.csv", rows)
    data, without = opened(train=path, val_fraction=0.2, test_fraction=0.1), opened(train=path, val_fraction=0.2)
    assert data.splits == ["train", "val", "test"] and data.has_test and not without.has_test
    assert [np.bincount(data.labels(split)).tolist() for split in data.splits] == [[126, 14], [36, 4], [18, 2]]
    texts = {split: {data.text(split, row) for row in range(len(data.labels(split)))} for split in data.splits}
    assert len(set().union(*texts.values())) == 200
    assert texts["val"] == {without.text("val", row) for row in range(40)}
    assert set(data.tokenizer.vocabulary) == {"<unk>", "text"} | {text.split()[1] for text in texts["train"]}
    assert all_rows(data.test_dataloader()) == list(range(20)) and data.describe()["test"].startswith("20 texts")
    for carve, splits in ((True, data.splits), (False, ["train"])):
        again = SentimentData(
            train=path, val_fraction=0.2, test_fraction=0.1, cache_dir=str(tmp_path / "cache"), batch_size=8
        )
        again.use(data.tokenizer, data.class_names, carve=carve)
        again.setup()
        assert again.splits == splits
        for split in splits if carve else ():
            assert {again.text(split, row) for row in range(len(again.labels(split)))} == texts[split]
    named = opened(train=path, test=path, test_fraction=0.1)
    assert len(named.labels("test")) == 200 and len(named.labels("train")) == 180
    with pytest.raises(ValueError, match=r"must add up to less than 1, got 0.6 and 0.4"):
        opened(train=path, val_fraction=0.6, test_fraction=0.4)


def test_labels_may_be_numbers_names_or_mapped(tmp_path, opened):
    numbers = write_csv(tmp_path / "n.csv", reviews(40, ("4", "0")))
    assert opened(train=numbers).class_names == ["0", "4"]
    data = opened(train=numbers, class_names={4: "good", 0: "bad"})
    assert data.class_names == ["good", "bad"]
    for row in range(5):
        assert int(data.labels("train")[row]) == (data.source_row("train", row) - 1) % 2
    assert (
        opened(train=write_csv(tmp_path / "b.csv", reviews(40, ("1", "0"))), class_names=["no", "yes"])
        .labels("train")
        .sum()
        == 18
    )
    pd.DataFrame({"text": [text for text, _ in reviews(40)], "label": [1.0, 2.0] * 20}).to_parquet(
        tmp_path / "f.parquet"
    )
    assert opened(train=str(tmp_path / "f.parquet")).class_names == ["1", "2"]
    with pytest.raises(ValueError, match="is not one of the labels"):
        opened(train=numbers, class_names={4: "good", 1: "bad"})
    with pytest.raises(ValueError, match="class_names must be two different names"):
        opened(train=numbers, class_names=["one"])


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (reviews(40, ("pos",)), {}, "has the label 'pos' in all 40 rows"),
        (reviews(40, ("pos",)), {"class_names": ["pos", "neg"]}, "has the label 'pos' in all 40 rows"),
        (reviews(10), {"batch_size": 64}, "batch_size must be at most the 8 rows to train on, got 64: lower it"),
        ([("a", "x"), ("b", "y")], {"batch_size": 1}, "val_fraction must leave rows to train on"),
        ([*reviews(40), (" ; : ", "pos")], {}, r"row 41 \(line 42\): column 'text' has no token: ' ; : '"),
        ([(text, f"l{row}") for row, (text, _) in enumerate(reviews(300))], {}, "300 different values in 300 rows"),
        (reviews(40), {"text_column": "review"}, "has no column 'review', only 'text', 'label'"),
        (reviews(40), {"val": "nowhere.csv"}, "data.val must name a file, got 'nowhere.csv'"),
        (reviews(40), {"on_bad_row": "ignore"}, "data.on_bad_row must be error or skip"),
        (reviews(40), {"batch_size": 0}, "data.batch_size must be a whole number of at least 1, got 0"),
        (reviews(40), {"max_tokens": 0}, "data.max_tokens must be a whole number of at least 1, got 0"),
        (reviews(40), {"val_fraction": 1.0}, "val_fraction must be a number above 0 and below 1"),
        (reviews(40), {"keep": "middle"}, "keep must be head, tail or both"),
        (reviews(40), {"tokenizer": {"knd": "bpe"}}, "data.tokenizer.knd is no setting .* did you mean kind"),
        (reviews(40), {"tokenizer": {"kind": "word"}}, "kind must be one of"),
        (reviews(40), {"train": None}, "data.path must be a hub id or folder, or data.train a file"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, opened, rows, settings, message):
    path = write_csv(tmp_path / "a.csv", rows)
    with pytest.raises(ValueError, match=message) as caught:
        opened(**{"train": path, **settings})
    assert "\n" not in str(caught.value)


def test_a_label_unseen_in_training_is_named(tmp_path, opened):
    train = write_csv(tmp_path / "train.csv", reviews(40))
    test = write_csv(tmp_path / "test.csv", [*reviews(3, seed=1), ("odd", "meh")])
    with pytest.raises(ValueError, match=r"test.csv row 4 \(line 5\): .*'label' is not one of the labels 'neg', 'pos'"):
        opened(train=train, test=test)
    numbers = write_csv(tmp_path / "numbers.csv", reviews(40, ("1", "2")))
    with pytest.raises(ValueError, match=r"is not one of the labels '1', '2'.*: '0'"):
        opened(train=numbers, test=write_csv(tmp_path / "zero.csv", [("odd", "0")]))


def test_rows_skipped_are_told_again_when_they_come_from_the_cache(tmp_path, opened, caplog):
    path = write_csv(tmp_path / "a.csv", [*reviews(40), (" ", "pos"), (";", "neg")])
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            data = opened(train=path, on_bad_row="skip")
        assert "column 'text' is empty" in caplog.text and "column 'text' has no token" in caplog.text
        caplog.clear()
    told = {key: value for key, value in data.describe().items() if "skipped" in key}  # once, of rows carved off too
    assert told == {"train skipped": "1 x column 'text' is empty; 1 x column 'text' has no token"}
    told = opened(train=path, val=path, test=path, on_bad_row="skip").describe()
    assert told["train skipped"] == told["val skipped"] == told["test skipped"]
    assert len(data.labels("train")) + len(data.labels("val")) == 40


def test_texts_in_two_splits_are_counted(tmp_path, opened):
    rows = reviews(40)
    train = write_csv(tmp_path / "train.csv", rows)
    test = write_csv(tmp_path / "test.csv", [*rows[:3], *reviews(5, seed=9, prefix="new ")])
    val = write_csv(tmp_path / "val.csv", reviews(6, seed=8, prefix="other "))
    data = opened(train=train, test=test, val=val)
    assert data.overlap() == {"val": 0, "test": 3}
    assert data.describe()["test overlap"] == "3 of 8 texts are in train too"
    assert data.splits == ["train", "val", "test"]


def test_a_folder_gives_its_splits(tmp_path, opened):
    home = tmp_path / "home"
    home.mkdir()
    write_csv(home / "train.csv", reviews(40))
    write_csv(home / "validation.csv", reviews(9, seed=2))
    write_csv(home / "test.csv", reviews(7, seed=3))
    data = opened(str(home))
    assert [len(data.labels(split)) for split in data.splits] == [40, 9, 7]
    assert all_rows(data.test_dataloader()) == list(range(7))
    assert data.files() == [str(home / f"{name}.csv") for name in ("train", "validation", "test")]
    with pytest.raises(
        ValueError,
        match=r"data.test must name a file, got 'exam': no such file; .* has the splits train, validation, test",
    ):
        opened(str(home), test="exam")
    assert opened(str(home), train="test", test="train", batch_size=4).labels("test").shape == (40,)


def test_a_few_rows_of_a_big_file_are_enough_for_a_try(tmp_path, opened):
    data = opened(train=write_csv(tmp_path / "a.csv", reviews(100)), limit_train=20)
    assert len(data.labels("train")) == 20
    assert len(set(all_rows(data.train_dataloader()))) == 20
    assert len(data.labels("val")) == 10


def test_a_class_that_a_few_rows_leave_out_is_named(tmp_path, opened, caplog):
    rows = [*reviews(96), ("rather odd", "odd"), ("odder still", "odd")]
    path = write_csv(tmp_path / "a.csv", rows)
    data = opened(train=path, limit_train=16)
    counts = data.model_arguments()["class_counts"]
    assert sum(counts) == 16 and counts[1] == 0
    said = "data.limit_train=16 leaves no text of the classes 'odd' to train on"
    assert [record.message for record in caplog.records].count(said) == 1
    caplog.clear()
    assert opened(train=path).model_arguments()["class_counts"][1] == 1
    assert "limit_train" not in caplog.text


def test_length_limits_share_the_cache(tmp_path, opened):
    path = write_csv(tmp_path / "a.csv", reviews(40))
    whole = opened(train=path)
    head, tail = opened(train=path, max_length=3), opened(train=path, max_length=3, keep="tail")
    for row in range(36):
        ids = whole.texts("train")[row].tolist()
        assert head.texts("train")[row].tolist() == ids[:3]
        assert tail.texts("train")[row].tolist() == ids[-3:]
    assert len([path for path in (tmp_path / "cache/tokens").iterdir() if path.is_dir()]) == 1


def test_nothing_is_read_twice(tmp_path, opened, monkeypatch):
    path = write_csv(tmp_path / "train.csv", reviews(40))
    first = opened(train=path)
    monkeypatch.setattr("recur.data.readers.read_file", None)
    again = opened(train=path)
    assert again.tokenizer.to_json() == first.tokenizer.to_json()
    assert [b.rows.tolist() for b in again.train_dataloader()] == [b.rows.tolist() for b in first.train_dataloader()]


def test_a_trained_models_tokenizer_and_classes_read_other_data(tmp_path, opened):
    trained = opened(train=write_csv(tmp_path / "train.csv", reviews(40)))
    other = write_csv(tmp_path / "other.csv", [("good film unseen", "pos"), ("dull plot", "neg"), ("bad", "pos")])
    data = SentimentData(other, test="train", cache_dir=str(tmp_path / "cache"))
    data.use(trained.tokenizer, trained.class_names)
    data.setup()
    assert data.has_test
    assert data.vocab_size == trained.vocab_size
    (batch,) = data.loader("test")
    assert batch.rows.tolist() == [0, 1, 2]
    assert [data.class_names[label] for label in batch.labels] == ["pos", "neg", "pos"]
    assert data.texts("test")[0].tolist() == trained.tokenizer.encode("good film unseen")
    assert data.model_arguments()["class_counts"] is None
    assert set(data.describe()) >= {"test", "classes"}


@pytest.mark.parametrize("kind", ["basic_english", "whitespace", "character", "bpe"])
def test_every_tokenizer_makes_batches(tmp_path, opened, kind):
    data = opened(train=write_csv(tmp_path / "a.csv", reviews(40)), tokenizer={"kind": kind})
    for batch in data.train_dataloader():
        assert batch.text.data.dtype == torch.int64
        assert int(batch.text.data.max()) < data.vocab_size


def test_the_embedded_reviews_need_no_file(opened):
    data = opened(synthetic=SyntheticReviews(200, 50, 60), batch_size=32)
    assert data.ceiling == {"accuracy": 0.95}
    assert [len(data.labels(split)) for split in data.splits] == [200, 50, 60]
    assert data.class_names == ["negative", "positive"]
    assert data.describe()["train"].startswith("200 texts")


def test_the_best_possible_accuracy_is_that_of_a_splits_own_labels(opened):
    """Noise is a whole number of labels, and what is carved off has as many of them as it happens to get."""
    data = opened(synthetic=SyntheticReviews(200, 50, 60), val=False, batch_size=32)
    assert data.ceiling_of("test") == {"accuracy": 1 - 3 / 60} and data.ceiling_of("val") == {}
    data = opened(synthetic=SyntheticReviews(200, 50, 60), test=False, test_fraction=0.1, batch_size=32)
    assert data.ceiling == {} and data.ceiling_of("val") == {"accuracy": 1 - 2 / 50}


class Rhymes:
    """A generated corpus of somebody else, of which nothing best is known."""

    def __init__(self, labelled: bool) -> None:
        self.labelled = labelled

    def split(self, name):
        return self

    def fingerprint(self, cache):
        return f"rhymes {self.labelled}"

    def read(self, columns=None, *, allow_pickle=False):
        values = {"text": ["the cat sat", "the dog ran"] * 30} | ({"label": [0, 1] * 30} if self.labelled else {})
        return Rows(values, list(values), [Origin("rhymes", 0, 60)])


def test_a_generated_corpus_may_know_no_best_figure(opened, tmp_path):
    data = opened(synthetic=Rhymes(labelled=True))
    assert data.ceiling == data.ceiling_of("val") == {}
    text = LanguageData(synthetic=Rhymes(labelled=False), batch_size=4, cache_dir=str(tmp_path / "cache"))
    text.setup("fit")
    assert text.ceiling == {} and "at best" not in text.describe()["test"]


def test_a_damaged_cache_does_not_reach_training(tmp_path, opened):
    path = write_csv(tmp_path / "a.csv", reviews(40))
    first = opened(train=path)
    expected = first.text("train", 0)
    for file in (tmp_path / "cache" / "tokens").glob("*/raw.bin"):
        file.write_bytes(bytes(file.stat().st_size))
    assert opened(train=path).text("train", 0) == expected


def test_a_file_that_changes_while_it_is_read_is_refused_and_leaves_no_entry(tmp_path, opened, monkeypatch):
    """Its new rows were kept as those of what it held before, for every later run."""
    file, read = tmp_path / "a.csv", Split.read
    path = write_csv(file, reviews(40))

    def late(split, *arguments, **settings):
        write_csv(file, reviews(40, seed=1))
        return read(split, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(Split, "read", late)
        with pytest.raises(ValueError, match="the data changed while it was read: start again"):
            opened(train=path)
    assert not [entry for entry in (tmp_path / "cache" / "tokens").iterdir() if entry.is_dir()]


def test_several_pickled_frames_as_the_guides_have_them(tmp_path, opened):
    for name, count in (("train", 40), ("val", 10), ("test", 12)):
        frame = pd.DataFrame(reviews(count, seed=count), columns=["text", "label"])
        frame.to_pickle(tmp_path / f"{name}.pkl")
    files = {name: str(tmp_path / f"{name}.pkl") for name in ("train", "val", "test")}
    with pytest.raises(ValueError, match=r"set data\.allow_pickle=true"):
        opened(**files)
    data = opened(**files, allow_pickle=True)
    assert [len(data.labels(split)) for split in data.splits] == [40, 10, 12]


def test_imdb_from_a_folder(shared_data, opened, monkeypatch, tmp_path):
    """A few rows at first, since the whole takes long; `unsupervised` is left alone."""
    import pyarrow.parquet as pq

    home = tmp_path / "imdb" / "plain_text"
    home.mkdir(parents=True)
    (tmp_path / "imdb" / "README.md").write_text((shared_data / "imdb" / "README.md").read_text())
    for split in ("train", "test", "unsupervised"):
        name = f"{split}-00000-of-00001.parquet"
        table = pq.read_table(shared_data / "imdb" / "plain_text" / name)
        pq.write_table(table.take(list(range(0, len(table), 97))), home / name)
    data = opened(str(tmp_path / "imdb"), max_length=100)
    assert data.class_names == ["neg", "pos"]
    assert data.splits == ["train", "val", "test"]
    assert int(data.texts("train").lengths.max()) == 100


@pytest.mark.slow
def test_full_imdb_is_ready_in_time(shared_data, tmp_path):
    """75,000 reviews: the first preparation within a minute on two cores, the second within two seconds."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        data = SentimentData(
            str(shared_data / "imdb"),
            unlabelled="unsupervised",
            vectors="train",
            tokenizer={"min_frequency": 2, "max_size": 30_000},
            cache_dir=str(tmp_path),
        )
        data.setup()
        assert len(data.texts("unlabelled")) == 49_990
        seconds.append(time.perf_counter() - start)
    assert seconds[0] < 60 and seconds[1] < 2
    plan = data.train_dataloader().plan(1)
    assert plan.waste(data.texts("train").lengths) < 0.03
