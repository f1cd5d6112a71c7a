"""A run keeps the absolute paths of its data, so that it is evaluated and resumed from any working folder."""

from pathlib import Path

import pytest

import recur
from recur.config.compose import build, command_line, compose_run
from recur.data.sources import absolute_paths


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "b1.csv", "b2.csv", "train", "v.txt"):
        (tmp_path / name).write_text("text,label\n")
    (tmp_path / "folder").mkdir()
    return tmp_path


def test_files_and_folders_that_are_there_become_absolute(here):
    found = absolute_paths({"train": "a.csv", "val": "b*.csv", "test": ["b1.csv", "./b2.csv"], "vectors": "v.txt"})
    assert found == {
        "train": str(here / "a.csv"),
        "val": str(here / "b*.csv"),
        "test": [str(here / "b1.csv"), str(here / "b2.csv")],
        "vectors": str(here / "v.txt"),
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"path": "stanfordnlp/imdb", "train": "train"},  # a hub id and its split, though there is a file of that name
        {"path": None, "train": "absent.csv", "val": None},
        {"vectors": "train", "text": "a.csv", "tokenizer": {"kind": "bpe"}},
        {"train": "a\0b"},
    ],
)
def test_everything_else_stays_as_it_is(here, settings):
    assert absolute_paths(settings) == settings


def test_the_split_of_a_folder_is_no_file(here):
    found = absolute_paths({"path": "folder", "train": "train", "test": "b1.csv"})
    assert found == {"path": str(here / "folder"), "train": "train", "test": str(here / "b1.csv")}


def test_a_composed_run_has_them_in_both_of_its_configs(here):
    composed = compose_run(command_line(["data=files", "data.train=a.csv", "data.val=[b1.csv,b2.csv]"]))
    for data in (composed.config["data"], composed.cfg.data):
        assert data["train"] == str(here / "a.csv")
        assert list(data["val"]) == [str(here / "b1.csv"), str(here / "b2.csv")]
    assert "data.train=a.csv" in composed.overrides  # as it was typed


def test_penn_treebank_is_counted_in_words_and_enwik8_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ptb").mkdir()
    for split, lines in (("train", 300), ("valid", 40), ("test", 50)):
        (tmp_path / "ptb" / f"ptb.{split}.txt").write_text(" no it was n't <unk> N \n" * lines)
    data = build(
        recur.compose(["model=language_model", "data=ptb", "data.batch_size=2", "data.bptt=5"])["data"], "data"
    )
    data.setup("fit")
    assert {split: len(data.tokens(split)) for split in data.splits} == {"train": 2100, "val": 280, "test": 350}
    assert data.tokenizer.vocabulary.count("<unk>") == 1  # the corpus's own

    text = "[[naïve]] 中文 &lt;ref&gt;\n" * 2000
    (tmp_path / "enwik8.txt").write_text(text)
    data = build(recur.compose(["model=language_model", "data=enwik8", "data.batch_size=2"])["data"], "data")
    data.setup("fit")
    sizes = {split: len(data.tokens(split)) for split in data.splits}
    assert sum(sizes.values()) == len(text.encode()) and data.vocab_size <= 257
    assert sizes["val"] / sum(sizes.values()) == pytest.approx(0.05, abs=0.001) == sizes["test"] / sum(sizes.values())
