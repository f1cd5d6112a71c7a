"""Which files of a folder or an archive are which split, and that each is read once and anew where it changed."""

import json
import os
import time
import zipfile

import pytest

from recur.data.cache import TokenCache
from recur.data.readers import read_file
from recur.data.repository import listing
from recur.data.sources import choose_splits, find_files, find_splits


@pytest.fixture
def cache(tmp_path):
    return TokenCache(tmp_path / "cache")


def write(path, content):
    path.write_text(content)


def test_a_split_that_is_named_is_not_found_as_another(tmp_path, cache, caplog):
    """`data.train=train+validation` validated on what it was trained on."""
    for name in ("train", "validation", "test"):
        write(tmp_path / f"{name}.csv", f"text,label\n{name} one,0\n{name} two,1\n")

    def chosen(**named):
        names = {**dict.fromkeys(("train", "val", "test")), **named}
        return {s: source.read().columns["text"][0] for s, source in
                choose_splits(names, str(tmp_path), None, None, cache).items()}  # fmt: skip

    assert chosen() == {"train": "train one", "val": "validation one", "test": "test one"}
    assert chosen(train="train+validation") == {"train": "train one", "test": "test one"}
    assert "data.val: the split validation is in use already" in caplog.text
    assert chosen(train="train+test") == {"train": "train one", "val": "validation one"}
    assert chosen(val="train") == {"train": "train one", "val": "train one", "test": "test one"}  # if one insists
    assert chosen(unlabelled="train+test") == {**chosen(), "unlabelled": "train one"}
    assert chosen(val="test") == {"train": "train one", "val": "test one"}
    assert chosen(val="test", test="test") == {"train": "train one", "val": "test one", "test": "test one"}


def test_a_pattern_of_training_files_leaves_out_the_splits_that_are_found(tmp_path, cache, caplog):
    for name in ("train", "more", "validation", "test"):
        write(tmp_path / f"{name}.csv", f"text,label\n{name},0\n")

    def texts(**named):
        names = {**dict.fromkeys(("train", "val", "test")), "train": str(tmp_path / "*.csv"), **named}
        found = choose_splits(names, str(tmp_path), None, None, cache)
        return {split: source.read().columns["text"] for split, source in found.items()}

    assert texts() == {"train": ["more", "train"], "val": ["validation"], "test": ["test"]}
    for split, file in (("val", "validation"), ("test", "test")):
        assert f"data.{split} names files of the training split, which are not trained on: {tmp_path}" in caplog.text
        assert f"{file}.csv" in caplog.text
    assert texts(val="validation+test", test=False) == {"train": ["more", "train"], "val": ["validation", "test"]}
    assert texts(val=False, test=False) == {"train": ["more", "test", "train", "validation"]}


def test_a_class_folder_keeps_its_classes_without_a_file_of_the_test(tmp_path, cache):
    for label in ("neg", "pos"):
        (tmp_path / "home" / label).mkdir(parents=True)
        for number in range(3):
            write(tmp_path / "home" / label / f"{number}.txt", f"{label} {number}")
    names = {"train": None, "val": None, "test": str(tmp_path / "home" / "neg" / "1.txt")}
    found = choose_splits(names, str(tmp_path / "home"), None, None, cache)
    rows = found["train"].read()
    assert rows.columns["label"] == ["neg"] * 2 + ["pos"] * 3
    assert rows.columns["text"] == ["neg 0", "neg 2", "pos 0", "pos 1", "pos 2"]


def test_links_to_files_without_a_suffix_keep_their_own(tmp_path, cache):
    """The hub's own cache is laid out so: a table was read as running text."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots").mkdir()
    for name, rows in (("train.csv", "a,0\nb,1\n"), ("test.csv", "c,0\n")):
        write(tmp_path / "blobs" / name[:4], f"text,label\n{rows}")
        (tmp_path / "snapshots" / name).symlink_to(f"../blobs/{name[:4]}")
    found = choose_splits(dict.fromkeys(("train", "val", "test")), str(tmp_path / "snapshots"), None, None, cache)
    assert {split: source.read().columns["text"] for split, source in found.items()} == {
        "train": ["a", "b"],
        "test": ["c"],
    }


def test_a_file_of_another_content_and_the_same_size_and_time_is_read_anew(tmp_path, cache):
    """As a copy that keeps times leaves it: `cp -p`, `rsync -t`, an archive unpacked."""
    path = tmp_path / "a.csv"
    write(path, "text,label\na,0\n")
    os.utime(path, (1e9, 1e9))
    before = find_files(str(path)).fingerprint(cache)
    assert find_files(str(path)).fingerprint(cache) == before
    time.sleep(0.02)
    write(path, "text,label\na,1\n")
    os.utime(path, (1e9, 1e9))
    assert find_files(str(path)).fingerprint(cache) != before


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_file_that_a_zip_lists_twice_is_read_once(tmp_path, cache):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, text in (("pos/1.txt", "old"), ("neg/1.txt", "bad"), ("pos/1.txt", "new")):
            archive.writestr(name, text)
    (split,) = find_splits(tmp_path / "a.zip", cache=cache).values()
    assert sorted(split.read().columns["text"]) == ["bad", "new"]


def test_texts_without_labels_of_several_splits_are_all_there(tmp_path, cache):
    for place in ("train/pos", "train/neg", "train/unsup", "test/pos", "test/neg", "test/unsup"):
        (tmp_path / place).mkdir(parents=True)
        write(tmp_path / place / "1.txt", place)
    found = find_splits(tmp_path, cache=cache)
    assert sorted(found["unsupervised"].read().columns["text"]) == ["test/unsup", "train/unsup"]


def test_what_the_splits_are_may_be_said_in_a_hidden_file(tmp_path):
    write(tmp_path / "a.csv", "text,label\na,0\n")
    before = listing(tmp_path)
    write(tmp_path / ".huggingface.yaml", "configs: []\n")
    write(tmp_path / ".other", "x")
    assert [name for name, *_ in listing(tmp_path)] == [".huggingface.yaml", "a.csv"] and before != listing(tmp_path)


def test_a_wrapped_json_is_read_alike_whichever_columns_are_asked_for(tmp_path):
    content = {"source": "imdb", "rows": [{"source": "a", "text": "good"}, {"source": "b", "text": "bad"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert read_file(str(tmp_path / "a.json"), ["text"]).columns == {"text": ["good", "bad"]}
    assert read_file(str(tmp_path / "a.json"), ["source"], optional=True).columns == {"source": ["a", "b"]}
    (tmp_path / "b.json").write_text(json.dumps({"text": "good", "spans": [{"start": 0}]}))
    assert read_file(str(tmp_path / "b.json"), ["text"]).columns == {"text": ["good"]}
    assert read_file(str(tmp_path / "b.json"), ["spans"], optional=True).columns == {"spans": [[{"start": 0}]]}


def test_files_that_are_given_for_one_split_are_not_found_as_the_other(tmp_path, cache, caplog):
    """`data.val=reviews/test.csv` with `data.path=reviews` chose the weights by the texts that measured them."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("train", "validation", "test"):
        write(home / f"{name}.csv", f"text,label\n{name},0\n")

    def texts(**named):
        names = {**dict.fromkeys(("train", "val", "test")), **named}
        found = choose_splits(names, str(home), None, None, cache)
        return {split: source.read().columns["text"] for split, source in found.items()}

    assert texts(val=str(home / "test.csv")) == {"train": ["train"], "val": ["test"]}
    assert "data.test: files of it are in use already, so they are not read again" in caplog.text
    assert texts(test=str(home / "validation.csv")) == {"train": ["train"], "test": ["validation"]}
    assert "data.val: files of it are in use already, so they are not read again" in caplog.text
    both = dict.fromkeys(("val", "test"), str(home / "test.csv"))
    assert texts(**both) == {"train": ["train"], "val": ["test"], "test": ["test"]}  # if one insists
    assert "data.val and data.test have files in common" in caplog.text


def test_splits_that_are_joined_are_trained_on_without_a_file_of_the_test(tmp_path, cache, caplog):
    home = tmp_path / "home"
    home.mkdir()
    for name in ("train", "extra"):
        write(home / f"{name}.csv", f"text,label\n{name},0\n")
    files = "".join(f"  - split: {name}\n    path: {name}.csv\n" for name in ("train", "extra"))
    write(home / "README.md", f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n")
    names = {"train": "train+extra", "val": None, "test": str(home / "extra.csv")}
    found = choose_splits(names, str(home), None, None, cache)
    texts = {split: source.read().columns["text"] for split, source in found.items()}
    assert texts == {"train": ["train"], "test": ["extra"]}
    assert "data.test names files of the training split, which are not trained on" in caplog.text
