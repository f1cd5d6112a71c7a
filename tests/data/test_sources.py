"""Rows come in whole, one for one, and a bad one is named."""

import csv
import io
import json
import logging
import os
import socket
import time
import zipfile

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from recur.data.cache import TokenCache
from recur.data.readers import checked, read_file
from recur.data.sources import absolute_paths, choose_splits, find_files, find_splits
from recur.errors import UserError

cells = st.text(st.characters(codec="utf-8"), max_size=30)
tables = st.lists(st.tuples(cells, st.integers(0, 3)), min_size=1, max_size=8)


@pytest.fixture
def cache(tmp_path):
    return TokenCache(tmp_path / "cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rows")


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


# ---- nothing lost or invented
@given(rows=tables)
@settings(deadline=None)
@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_delimited_files_give_back_what_was_written(folder, suffix, delimiter, rows):
    # A tab and a line end in one text can read as two lines of a tsv without quotes, each with all its fields.
    assume(suffix == "csv" or not any("\t" in text and {*text} & {*"\r\n"} for text, _ in rows))
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter)
    writer.writerow(["text", "label"])
    writer.writerows(rows)
    read = read_file(write(folder / f"a.{suffix}", stream.getvalue()))
    assert read.columns == {"text": [text for text, _ in rows], "label": [str(label) for _, label in rows]}
    assert not read.broken


@given(rows=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\t\r\n"), max_size=20), min_size=1))
@settings(deadline=None)
def test_a_tsv_without_quoting_keeps_its_quotes(folder, rows):
    content = "".join(f"{text}\t1\n" for text in ["text", *rows]).replace("text\t1", "text\tlabel", 1)
    read = read_file(write(folder / "plain.tsv", content))
    assert len(read) == len(rows)
    if not any(text[:1] == '"' for text in rows):
        assert read.columns["text"] == rows


@given(rows=tables)
@settings(deadline=None)
def test_json_lines_json_and_parquet_give_back_what_was_written(folder, rows):
    records = [{"text": text, "label": label} for text, label in rows]
    expected = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    lines = write(folder / "a.jsonl", "\n".join(json.dumps(r, ensure_ascii=False) for r in records) + "\n")
    assert read_file(lines).columns == expected
    assert read_file(write(folder / "a.json", json.dumps(records))).columns == expected
    pd.DataFrame(records).to_parquet(folder / "a.parquet")
    assert read_file(str(folder / "a.parquet")).columns == expected


@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60))
@settings(deadline=None)
def test_a_text_file_is_one_text_to_the_letter(folder, text):
    if text.startswith("\ufeff"):  # a mark of the encoding, not of the text
        text = text[1:]
    if text[:2].encode()[:2] in (b"PK", b"\x1f\x8b"):
        return
    read = read_file(write(folder / "a.txt", text))
    assert read.columns["text"] == [text.removeprefix("\ufeff")]


@given(rows=tables, bad=st.sets(st.integers(0, 7)))
@settings(deadline=None)
def test_skipping_keeps_exactly_the_good_rows_and_their_numbers(folder, rows, bad):
    lines = [
        "no JSON" if row in bad else json.dumps({"text": text, "label": label})
        for row, (text, label) in enumerate(rows)
    ]
    read = read_file(write(folder / "bad.jsonl", "\n".join(lines)))
    good = [row for row, (text, _) in enumerate(rows) if row not in bad and text.strip() and "\0" not in text]
    if not good:
        with pytest.raises(ValueError, match=r"rows are bad|has no column"):
            checked(read, label_column="label", on_bad_row="skip")
        return
    result = checked(read, label_column="label", on_bad_row="skip")
    assert result.numbers.tolist() == good
    assert result.texts == [rows[row][0] for row in good]
    assert result.labels == [rows[row][1] for row in good]
    assert sum(result.skipped.values()) == len(rows) - len(good)


# ---- bad rows

BAD_ROWS = [
    (
        "a.csv",
        "text,label\nfine,1\n ,0\nok,0\n,1\n",
        r"a.csv row 2 \(line 3\) and 1 more like it: column 'text' is empty: ' '",
    ),
    ("a.csv", 'text,label\n"two\nlines",1\n,0\n', r"a.csv row 2 \(line 4\): column 'text' is empty"),
    ("a.csv", "text,label\nfine,\n", r"row 1 \(line 2\): column 'label' has no label: ''"),
    ("a.csv", "text,label\nfine,1,2\n", r"row 1 \(line 2\): the number of fields differs .* 3 against 2"),
    ("a.csv", "text,label\nfine\n", r"row 1 \(line 2\): the number of fields differs .* 1 against 2"),
    ("a.csv", "text,label\na\0b,1\n", r"column 'text' holds a NUL byte: 'a\\x00b'"),
    ("a.csv", b"text,label\nok,1\ncaf\xe9,1\n", r"row 2 \(line 3\): column 'text' is not UTF-8 \(byte 0xe9\)"),
    ("a.csv", 'text,label\n"open,1\nok,0\n', r"a.csv line 2: .*is a quote left open"),
    ("a.csv", 'text,label\n"a" b,1\n', r"a.csv line 2: .*is a quote left open"),
    ("a.csv", "text,text\nok,1\n", r"a.csv line 1: column 'text' is there 2 times: rename one"),
    ("a.csv", "review,label\nok,1\n", r"a.csv has no column 'text', only 'review', 'label'"),
    ("a.csv", "text,stars\nok,1\n", r"a.csv has no column 'label', only 'text', 'stars'"),
    ("a.csv", "", r"a.csv is empty"),
    ("a.csv", "text,label\n", r"a.csv has a line of column names .* and no rows"),
    ("a.csv", "text,label\nok,1\n".encode("utf-16"), r"a.csv is UTF-16"),
    ("a.csv", "text,label\nok,1\n".encode("utf-16-le"), r"a.csv is UTF-16"),
    ("a.csv", "text,label\nok,1\n".encode("utf-16-be"), r"a.csv is UTF-16"),
    ("a.csv", "text,label\n\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0,1\n", r"NUL"),
    ("a.csv", b"PK\x03\x04rest", r"a.csv is compressed"),
    ("a.csv", b"\x1f\x8brest", r"a.csv is compressed"),
    ("a.tsv", "text\tlabel\nok\n", r"a.tsv row 1 \(line 2\): the number of fields"),
    ("a.jsonl", '{"text": "a", "label": 1}\n{"text": null, "label": 1}\n', r"row 2 \(line 2\): column 'text' is null"),
    ("a.jsonl", '{"text": 5, "label": 1}\n', r"row 1 \(line 1\): column 'text' is not text: 5"),
    ("a.jsonl", '{"text": "a", "label": [1]}\n', r"column 'label' is not one label: \[1\]"),
    ("a.jsonl", '{"text": "a", "label": null}\n', r"column 'label' has no label: None"),
    ("a.jsonl", '{"text": "a", "label": NaN}\n', r"column 'label' has no label: nan"),
    ("a.jsonl", '{"text": "a\\ud800", "label": 1}\n', r"column 'text' is not valid Unicode"),
    ("a.jsonl", '\n{"text": "a", "label": 1}\n\nrubbish\n', r"row 2 \(line 4\): is not JSON"),
    ("a.jsonl", '{"text": "a", "label": 1}\n[1]\n', r"row 2 \(line 2\): is not a JSON object: \[1\]"),
    ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', r"row 2 \(line 2\): has no 'label'"),
    ("a.jsonl", b'{"text": "\xff", "label": 1}\n', r"row 1 \(line 1\): line is not UTF-8 \(byte 0xff\)"),
    ("a.jsonl", "", r"a.jsonl is empty"),
    ("a.json", "5", r"a.json must be a JSON list of objects, and is a int"),
    ("a.json", "{", r"a.json is not JSON"),
    ("a.json", "[]", r"a.json is empty"),
    ("a.parquet", "nonsense", r"a.parquet is not a parquet file that can be read"),
    ("a.txt", b"\xff\xff", r"a.txt: is not UTF-8 \(byte 0xff\)"),
    ("a.xlsx", "x", r"a.xlsx cannot be read: its suffix is none of .csv"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_ROWS)
def test_a_bad_file_or_row_is_named(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        checked(read_file(write(tmp_path / name, content)), label_column=None if name.endswith("txt") else "label")
    assert "\n" not in str(caught.value)


def test_an_unknown_label_is_named_with_those_known(tmp_path):
    rows = read_file(write(tmp_path / "a.csv", "text,label\na,1\nb,9\nc,8\n"))
    with pytest.raises(
        ValueError, match=r"row 2 \(line 3\) and 1 more like it: column 'label' is not one of the labels 0, 1: '9'"
    ):
        checked(rows, label_column="label", known_label=lambda value: value in "01", known="0, 1")


def test_skipped_rows_are_counted_and_logged(tmp_path, caplog):
    rows = read_file(write(tmp_path / "a.csv", "text,label\na,1\n,1\n,0\nb\n"))
    with caplog.at_level(logging.WARNING):
        result = checked(rows, label_column="label", on_bad_row="skip")
    assert result.skipped == {
        "column 'text' is empty": 2,
        "the number of fields differs from the first line's": 1,
    }
    assert "skipped 2 of 4 rows: column 'text' is empty" in caplog.text


BAD_ALIKE = {
    "a.jsonl": (["rubbish"] * 4 + ["[1"], "is not JSON"),
    "b.jsonl": (["[1]", "2", '"three"'], "is not a JSON object"),
    "a.csv": (["a", "a,b,c", "a,b,c,d"], "the number of fields differs from the first line's"),
    "b.csv": (["caf\xe9,1", "\xe8 bient\xf4t,1"], "column 'text' is not UTF-8"),
}


@pytest.mark.parametrize("name", BAD_ALIKE)
def test_rows_bad_in_one_way_are_one_line(tmp_path, caplog, name):
    """Each had a reason of its own, which held its value or its place."""
    lines, reason = BAD_ALIKE[name]
    good = '{"text": "fine", "label": "1"}' if name.endswith("jsonl") else "fine,1"
    lines = [*([] if name.endswith("jsonl") else ["text,label"]), good, *lines]
    rows = read_file(write(tmp_path / name, "\n".join(lines).encode("latin-1")))
    with caplog.at_level(logging.WARNING):
        result = checked(rows, label_column="label", on_bad_row="skip")
    assert result.skipped == {reason: len(rows) - 1}
    assert len(caplog.records) == 1 and f"{name} row 2 (line " in caplog.text


def test_many_bad_rows_are_looked_through_once(tmp_path):
    rows = read_file(write(tmp_path / "a.jsonl", '{"text": "fine"}\n' + "".join(f"[{i}]\n" for i in range(30_000))))
    start = time.process_time()
    checked(rows, on_bad_row="skip")
    assert time.process_time() - start < 5


def test_columns_that_nobody_asked_for_may_be_without_names_or_spoilt(tmp_path):
    """The SMS spam collection as Kaggle has it ends its lines in commas."""
    content = "v1,v2,,,\nham,a fine text,,,\nspam,win,caf\xe9,,\n".encode("latin-1")
    rows = read_file(write(tmp_path / "spam.csv", content), ["v1", "v2"])
    assert rows.columns == {"v1": ["ham", "spam"], "v2": ["a fine text", "win"]} and not rows.broken
    with pytest.raises(UserError, match=r"line 1: column '' is there 3 times: rename one"):
        read_file(str(tmp_path / "spam.csv"))
    with pytest.raises(UserError, match=r"has no column 'text', only 'v1', 'v2', ''"):
        read_file(str(tmp_path / "spam.csv"), ["text", "label"]).column("text")


def test_blank_texts_stay_where_they_are_allowed(tmp_path):
    rows = read_file(write(tmp_path / "a.jsonl", '{"text": ""}\n{"text": "a"}\n'))
    assert checked(rows, allow_empty=True).texts == ["", "a"]


def test_a_row_of_ten_million_characters_is_a_row(tmp_path):
    long = "word " * 2_000_000
    assert read_file(write(tmp_path / "a.csv", f"text,label\n{long},1\n")).columns["text"] == [long]


# ---- pickles


class Bomb:
    """Runs code when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_pickle_is_not_loaded_unless_it_is_allowed(tmp_path):
    pd.to_pickle(Bomb(str(tmp_path / "owned")), tmp_path / "bomb.pkl")
    with pytest.raises(ValueError, match=r"runs any code hidden in it.*data.allow_pickle=true, or convert it once"):
        read_file(str(tmp_path / "bomb.pkl"))
    assert not (tmp_path / "owned").exists()


def test_a_pickled_frame_is_read_where_it_is_allowed(tmp_path):
    pd.DataFrame({"text": ["a", None], "label": [0, 4]}).to_pickle(tmp_path / "train.pkl")
    rows = read_file(str(tmp_path / "train.pkl"), allow_pickle=True)
    assert rows.columns == {"text": ["a", None], "label": [0, 4]}
    pd.to_pickle([1, 2], tmp_path / "list.pkl")
    with pytest.raises(ValueError, match="holds a list, not a pandas frame"):
        read_file(str(tmp_path / "list.pkl"), allow_pickle=True)


# ---- finding splits


def test_a_folder_with_a_readme_follows_it(tmp_path, cache):
    (tmp_path / "plain").mkdir()
    frame = pd.DataFrame({"text": ["a", "b"], "label": [0, 1]})
    frame.to_parquet(tmp_path / "plain/train-00000.parquet")
    frame[:1].to_parquet(tmp_path / "plain/odd.parquet")
    write(
        tmp_path / "README.md",
        "---\nconfigs:\n- config_name: plain\n  data_files:\n  - split: train\n    path: plain/train-*\n"
        "  - split: extra\n    path: plain/odd.parquet\n---\n",
    )
    before = sorted(path.name for path in tmp_path.rglob("*") if "cache" not in path.parts)
    splits = find_splits(tmp_path, cache=cache)
    assert {name: len(split.read()) for name, split in splits.items()} == {"train": 2, "extra": 1}
    assert sorted(path.name for path in tmp_path.rglob("*") if "cache" not in path.parts) == before
    with pytest.raises(ValueError, match=r"must be a folder whose splits are clear.*data\.subset=null"):
        find_splits(tmp_path, "fancy", cache=cache)


def test_plain_files_are_read_whatever_subset_the_config_names(tmp_path, cache):
    (tmp_path / "wikitext").mkdir()
    for name in ("train", "valid", "test"):
        write(tmp_path / "wikitext" / f"{name}.txt", "a b\n")
    assert set(find_splits(tmp_path / "wikitext", "wikitext-2-v1", cache=cache)) == {"train", "validation", "test"}


@pytest.mark.parametrize("old", [False, True], ids=["just written", "long ago"])
def test_names_of_classes_that_change_make_other_data(tmp_path, cache, old):
    """They stand in the README alone; what was cached under the former names would be read for ever."""
    home = tmp_path / "data"
    home.mkdir()
    write(home / "train.csv", "text,label\na,0\nb,1\n")
    names = "dataset_info:\n  features:\n  - name: label\n    dtype:\n      class_label:\n        names:\n"
    seen = []
    for age, (first, second) in enumerate((("neg", "pos"), ("pos", "neg"))):
        write(home / "README.md", f"---\n{names}          '0': {first}\n          '1': {second}\n---\n")
        if old:
            for path in home.iterdir():
                os.utime(path, (1e9, 1e9 + age * (path.name == "README.md")))
        split = find_splits(home, cache=cache)["train"]
        assert split.class_names == {"label": [first, second]}
        seen.append(split.fingerprint(cache))
    assert seen[0] != seen[1]


def test_a_folder_of_files_named_by_split_is_found_and_followed_when_it_changes(tmp_path, cache):
    home = tmp_path / "data"
    home.mkdir()
    write(home / "train.csv", "text,label\na,1\n")
    assert set(find_splits(home, cache=cache)) == {"train"}
    write(home / "test.csv", "text,label\nb,1\nc,0\n")
    splits = find_splits(home, cache=cache)
    assert {name: len(split.read()) for name, split in splits.items()} == {"train": 1, "test": 2}


def test_a_folder_of_text_files_a_class_is_found(tmp_path, cache):
    for split, label, name in [
        ("train", "pos", "0_9"),
        ("train", "pos", "1_8"),
        ("train", "neg", "0_1"),
        ("train", "unsup", "0_0"),
        ("test", "neg", "0_2"),
    ]:
        (tmp_path / "reviews" / split / label).mkdir(parents=True, exist_ok=True)
        write(tmp_path / "reviews" / split / label / f"{name}.txt", f"{split} {label} {name}")
    write(tmp_path / "reviews/train/urls_pos.txt", "not a review")
    write(tmp_path / "reviews/imdb.vocab", "the")
    splits = find_splits(tmp_path / "reviews", cache=cache)
    assert set(splits) == {"train", "test", "unsupervised"}
    train = splits["train"].read()
    assert train.columns["label"] == ["neg", "pos", "pos"]
    assert train.columns["text"] == ["train neg 0_1", "train pos 0_9", "train pos 1_8"]
    assert train.where(1).endswith("train/pos/0_9.txt")
    assert set(find_splits(tmp_path / "reviews" / "train", cache=cache)) >= {"train"}


def test_class_folders_alone_are_a_training_split(tmp_path, cache):
    for label in ("bad", "good"):
        (tmp_path / "mine" / label).mkdir(parents=True)
        write(tmp_path / "mine" / label / "a.txt", label)
    assert find_splits(tmp_path / "mine", cache=cache)["train"].read().columns["text"] == ["bad", "good"]


@pytest.mark.parametrize(
    "names", [("Train", "Val", "Test"), ("training", "valid", "testing"), ("TRAIN", "Dev", "test")]
)
@pytest.mark.parametrize("layout", ["classes", "files", "folders"])
def test_splits_are_known_by_other_spellings_of_their_names(tmp_path, cache, names, layout):
    home = tmp_path / "home"
    for split, count in zip(names, (3, 2, 1), strict=True):
        place = {"classes": home / split / "pos", "files": home, "folders": home / split}[layout]
        place.mkdir(parents=True, exist_ok=True)
        if layout == "classes":
            for number in range(count):
                write(place / f"{number}.txt", "a")
        else:
            name = f"{split}.csv" if layout == "files" else "a.csv"
            write(place / name, "text,label\n" + "a,1\n" * count)
    named = dict.fromkeys(("train", "val", "test"))
    found = choose_splits(named, str(home), None, None, cache)
    assert {split: len(source.read()) for split, source in found.items()} == {"train": 3, "val": 2, "test": 1}


@pytest.mark.parametrize(("names", "val", "test"), [(("train", "eval"), 0, 1), (("train", "eval", "test"), 1, 2)])
def test_eval_is_the_test_unless_there_is_one(tmp_path, cache, names, val, test):
    for count, split in enumerate(names):
        (tmp_path / "home" / split / "pos").mkdir(parents=True)
        for number in range(max(count, 1)):
            write(tmp_path / "home" / split / "pos" / f"{number}.txt", "a")
    found = choose_splits(dict.fromkeys(("train", "val", "test")), str(tmp_path / "home"), None, None, cache)
    assert [len(found[split].read()) if split in found else 0 for split in ("val", "test")] == [val, test]


@pytest.mark.parametrize(
    ("named", "val", "test"),
    [
        ({"test": "test"}, 2, 1),
        ({"test": "mine.csv"}, 2, 3),
        ({"test": "eval"}, 0, 2),
        ({"train": "train+test"}, 0, 2),
        ({"test": False}, 2, 0),
    ],
)
def test_eval_is_no_test_where_one_is_named(tmp_path, cache, caplog, monkeypatch, named, val, test):
    """It was left out, as one in use, where the split `test` was named as what it is anyway."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine.csv", "text,label\na,b\nc,d\ne,f\n")
    for split, count in (("train", 1), ("test", 1), ("eval", 2)):
        (tmp_path / "home" / split / "pos").mkdir(parents=True)
        for number in range(count):
            write(tmp_path / "home" / split / "pos" / f"{number}.txt", "a")
    names = {**dict.fromkeys(("train", "val", "test")), **named}
    found = choose_splits(names, str(tmp_path / "home"), None, None, cache)
    assert [len(found[split].read()) if split in found else 0 for split in ("val", "test")] == [val, test]
    assert ("in use" in caplog.text) == (not val)


def test_files_beside_folders_of_classes_do_not_hide_them(tmp_path, cache, caplog):
    home = tmp_path / "cf"
    for name in ("pos/1.txt", "pos/2.TXT", "pos/2019/1.txt", "neg/a/b/1.txt", "neg/2.txt", "README.txt"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        write(home / name, name)
    rows = find_splits(home, cache=cache)["train"].read()
    assert rows.columns["text"] == ["neg/2.txt", "neg/a/b/1.txt", "pos/1.txt", "pos/2.TXT", "pos/2019/1.txt"]
    assert rows.columns["label"] == ["neg"] * 2 + ["pos"] * 3
    assert "README.txt beside them is not read" in caplog.text
    for top in ("", "cf/"):
        with zipfile.ZipFile(tmp_path / "cf.zip", "w") as archive:
            for path in sorted(home.rglob("*.*")):
                archive.write(path, f"{top}{path.relative_to(home)}")
        zipped = find_splits(tmp_path / "cf.zip", cache=cache)["train"].read()
        assert zipped.columns == rows.columns
    (home / "train.txt").write_text("a split beside folders")
    assert find_splits(home, cache=cache)["train"].classes is None


def test_words_in_titles_are_no_splits(tmp_path, cache):
    home = tmp_path / "books"
    home.mkdir()
    for name in ("Training Day.txt", "Val McDermid.txt", "Other.txt"):
        write(home / name, name)
    splits = find_splits(home, cache=cache, labelled=False)
    assert {name: len(split.files) for name, split in splits.items()} == {"train": 3}


def test_links_to_files_of_splits_are_read_once_each(tmp_path, cache):
    (tmp_path / "raw").mkdir()
    (tmp_path / "home").mkdir()
    for name, rows in (("Train.csv", "a,0\nb,1\n"), ("Test.csv", "c,0\n")):
        write(tmp_path / "raw" / name, f"text,label\n{rows}")
        (tmp_path / "home" / name).symlink_to(tmp_path / "raw" / name)
    found = choose_splits(dict.fromkeys(("train", "val", "test")), str(tmp_path / "home"), None, None, cache)
    assert {split: source.read().columns["text"] for split, source in found.items()} == {
        "train": ["a", "b"],
        "test": ["c"],
    }


def test_a_folder_of_running_text_is_read_whole(tmp_path, cache):
    """Folders within it are no classes, and what lies beside them is text, too."""
    home = tmp_path / "books"
    for name in ("intro.txt", "a/1.txt", "b/2.txt", "b/x/3.txt"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        write(home / name, name)
    (split,) = find_splits(home, cache=cache, labelled=False).values()
    assert split.classes is None and len(split.files) == 4


def test_a_folder_beside_the_one_that_holds_the_classes_does_not_merge_them(tmp_path, cache):
    home = tmp_path / "home"
    for name in ("data/pos/1.txt", "data/neg/1.txt", "docs/readme.txt"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        write(home / name, name)
    with zipfile.ZipFile(tmp_path / "home.zip", "w") as archive:
        for path in sorted(home.rglob("*.txt")):
            archive.write(path, path.relative_to(home))
    labels = find_splits(tmp_path / "home.zip", cache=cache)["train"].read().columns["label"]
    assert sorted(labels) == ["docs", "neg", "pos"]
    assert all(split.classes is None for split in find_splits(home, cache=cache).values())


def test_a_file_named_twice_is_read_once(tmp_path, caplog, monkeypatch):
    (tmp_path / "a/b").mkdir(parents=True)
    for name in ("1.csv", "a/2.csv", "a/b/3.csv"):
        write(tmp_path / name, "text,label\na,1\n")
    monkeypatch.chdir(tmp_path)
    assert find_files(["a/2.csv", "./a/2.csv", "1.csv"]).files == ("a/2.csv", "1.csv")
    assert "data.train names 1 files more than once" in caplog.text
    assert find_files("**/*.csv").files == ("1.csv", "a/2.csv", "a/b/3.csv")
    (tmp_path / "latest.csv").symlink_to("1.csv")
    assert find_files("*.csv").files == ("1.csv",)
    pattern = absolute_paths({"train": "a/**/3.csv"})["train"]
    assert os.path.isabs(pattern) and len(find_files(pattern).files) == 1


def test_a_file_named_for_validation_or_the_test_is_not_trained_on(tmp_path, cache, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").mkdir()
    for name in ("1", "2", "8", "9"):
        write(tmp_path / "books" / f"{name}.txt", name)
    (tmp_path / "v.txt").symlink_to("books/8.txt")

    def texts(path=None, need_train=True, **named):
        names = {**dict.fromkeys(("train", "val", "test")), **named}
        chosen = choose_splits(names, path, None, None, cache, need_train=need_train, labelled=False)
        return {split: source.read().columns["text"] for split, source in chosen.items()}

    assert texts(train="books/*.txt", val="v.txt") == {"train": ["1", "2", "9"], "val": ["8"]}
    assert "data.val names files of the training split, which are not trained on: books/8.txt" in caplog.text
    named = {"val": "books/8.txt", "test": ["books/9.txt", "books/2.txt"]}
    assert texts("books", **named) == {"train": ["1"], "val": ["8"], "test": ["9", "2"]}
    assert "not trained on: books/2.txt and 1 more" in caplog.text
    assert texts(train=["v.txt"], val="books/8.txt") == {"train": ["8"], "val": ["8"]}
    assert "data.val names the files of the training split: its figures are of texts" in caplog.text
    assert texts(need_train=False, train="v.txt", test="v.txt")["train"] == ["8"]  # none is trained on
    assert texts(val="v.txt", test="books/9.txt", unlabelled="books/*.txt", train="v.txt")["unlabelled"] == ["1", "2"]
    assert "data.test names files of the unlabelled split, which are left out: books/9.txt" in caplog.text


def test_several_files_make_one_split(tmp_path):
    write(tmp_path / "a1.csv", "text,label,extra\na,1,x\n")
    write(tmp_path / "a2.csv", "label,text\n0,b\n1,\n")
    rows = find_files(str(tmp_path / "a?.csv")).read(["text", "label"])
    assert rows.columns == {"text": ["a", "b", ""], "label": ["1", "0", "1"]}
    assert rows.where(2).endswith("a2.csv row 2 (line 3)")


@pytest.mark.parametrize(
    ("path", "message"),
    [("./nowhere", "no such file or folder"), ("a/b/c", "no such file or folder"), ("/nowhere.csv", "no such file")],
)
def test_a_path_that_is_not_there_is_an_error(path, message, cache):
    with pytest.raises(ValueError, match=message):
        find_splits(path, cache=cache)


def test_an_empty_folder_is_an_error(tmp_path, cache):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is empty"):
        find_splits(tmp_path / "empty", cache=cache)
    with pytest.raises(ValueError, match="no such file"):
        find_files(str(tmp_path / "*.csv"))


def test_the_fingerprint_is_of_the_content(tmp_path, cache):
    one = find_files(write(tmp_path / "a.csv", "text,label\na,1\n"))
    first = one.fingerprint(cache)
    (tmp_path / "other").mkdir()
    assert find_files(write(tmp_path / "other" / "b.csv", "text,label\na,1\n")).fingerprint(cache) == first
    write(tmp_path / "a.csv", "text,label\nb,1\n")  # the same size, within the clock's tick
    assert one.fingerprint(cache) != first


def test_imdb_and_wikitext_are_read_whole(shared_data, cache):
    imdb = find_splits(shared_data / "imdb", cache=cache)
    assert set(imdb) == {"train", "test", "unsupervised"}
    test = checked(imdb["test"].read(), label_column="label")
    assert len(test.texts) == 13_157
    assert np.array_equal(test.numbers, np.arange(13_157))
    wikitext = find_splits(shared_data / "wikitext", cache=cache)
    assert len(checked(wikitext["validation"].read(), allow_empty=True).texts) == 3_760


def test_a_hub_id_out_of_reach_is_one_line_at_once(cache, monkeypatch):
    """With the network as it is where there is none: no name is known."""

    def unknown(*_):
        raise socket.gaierror("name or service not known")

    import datasets
    import huggingface_hub

    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    said = r"it is no file or folder, and as a hub id: .*some-body/nothing.*local copy"
    with pytest.raises(ValueError, match=said) as e:
        find_splits("some-body/nothing", cache=cache)
    assert "\n" not in str(e.value)


def test_a_parquet_file_with_damaged_pages_is_named(tmp_path):
    """pyarrow says so with a bare OSError, which was taken for one of the system's."""
    frame = pd.DataFrame({"text": [f"some words {number % 97}" for number in range(20_000)], "label": 0})
    frame.to_parquet(tmp_path / "a.parquet", compression="snappy")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[40:2000] = bytes(255 - byte for byte in content[40:2000])
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(UserError, match="is not a parquet file that can be read"):
        read_file(str(tmp_path / "a.parquet"))


def test_of_several_files_the_one_that_lacks_a_column_is_named(tmp_path):
    for name, column in (("a", "text"), ("b", "review"), ("c", "text")):
        (tmp_path / f"{name}.csv").write_text(f"{column},label\ngood,1\nbad,0\n")
    rows = find_files([str(tmp_path / f"{name}.csv") for name in "abc"]).read()
    with pytest.raises(UserError, match=r"b\.csv has no column 'text', only 'review', 'label'"):
        checked(rows, "text", "label")


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_file_of_which_nothing_can_be_read_is_rows_that_are_bad(tmp_path, order):
    (tmp_path / "a.jsonl").write_text('{"text": "good", "label": 1}\n{"text": "bad", "label": 0}\n')
    (tmp_path / "b.jsonl").write_text("{\n[\n")
    rows = find_files([str(tmp_path / f"{name}.jsonl") for name in order]).read()
    assert checked(rows, "text", "label", on_bad_row="skip").texts == ["good", "bad"]
    with pytest.raises(UserError, match=r"b\.jsonl row 1 \(line 1\) and 1 more like it: is not JSON"):
        checked(rows, "text", "label")


@pytest.mark.parametrize("more", [{}, {"tags": ["x", "y"]}, {"spans": [{"from": 1}]}])
def test_json_lines_of_one_row_may_be_called_json(tmp_path, more):
    (tmp_path / "a.json").write_text(json.dumps({"text": "fine", "label": 1} | more))
    assert checked(read_file(str(tmp_path / "a.json"), ["text", "label"]), "text", "label").texts == ["fine"]
    (tmp_path / "b.json").write_text(json.dumps({"data": [{"text": "good", "label": 1}], "version": 2}))
    assert read_file(str(tmp_path / "b.json"), ["text", "label"]).columns["text"] == ["good"]
