"""Each memory task's label follows from its text, and from nothing nearer than the gap."""

import importlib
import inspect
import random
import re
import sys
from collections import Counter

import pytest

from recur.data.language import LanguageData
from recur.data.memory import Adding, BracketDepth, Copy, DelayedRecall, Parity
from recur.data.sentiment import SentimentData
from recur.errors import UserError

LANGUAGES = {"france": "french", "italy": "italian", "japan": "japanese", "poland": "polish"}


def solved(name: str, text: str) -> str:
    """The right answer, worked out from the text alone."""
    if name == "DelayedRecall":
        return LANGUAGES[text.split()[4]]
    if name == "Adding":
        return str(sum(int(digit) for digit in re.findall(r"\+ (\d)", text)))
    if name == "Parity":
        return "odd" if text.split().count("1") % 2 else "even"
    return str(text.count("(") - text.count(")"))


@pytest.mark.parametrize("kind", [DelayedRecall, Adding, Parity, BracketDepth])
@pytest.mark.parametrize("gap", [0, 1, 25])
def test_the_label_follows_from_the_text(kind, gap):
    task = kind(60, 20, 20, gap=gap)
    for split in ("train", "val", "test"):
        rows = task.split(split).read()
        texts, labels = rows.columns["text"], rows.columns["label"]
        assert len(texts) == task.sizes[split]
        assert [task.class_names[label] for label in labels] == [solved(kind.__name__, text) for text in texts]
    other = kind(60, 20, 20, gap=gap, seed=1)
    assert task.split("train").read().columns["text"] != other.split("train").read().columns["text"]


@pytest.mark.parametrize("gap", [0, 7, 40])
def test_the_gap_is_the_distance_that_must_be_bridged(gap):
    text, _ = DelayedRecall(gap=gap).example(random.Random(0))
    words = text.split()
    assert len(words) - 1 - next(i for i, word in enumerate(words) if word in LANGUAGES) == gap + 3
    assert len(Parity(gap=gap).example(random.Random(0))[0].split()) == gap + 1
    padded, _ = DelayedRecall(gap=gap, pads=5).example(random.Random(0))
    assert padded == text + " pad" * 5


def test_no_class_is_much_more_frequent_than_chance():
    counts = Counter(DelayedRecall(classes=4).split("train").read().columns["label"])
    assert max(counts.values()) / sum(counts.values()) < 0.3


def test_both_families_read_them(tmp_path):
    data = SentimentData(
        synthetic=DelayedRecall(200, 50, 50), tokenizer={"kind": "whitespace"}, cache_dir=str(tmp_path)
    )
    data.setup("fit")
    assert data.num_classes == 4 and data.ceiling == {"accuracy": 1.0}
    text = LanguageData(
        synthetic=Copy(2000, 500, 500, gap=3), tokenizer={"kind": "whitespace"}, cache_dir=str(tmp_path), batch_size=4
    )
    text.setup("fit")
    # Four uncertain letters of eight in a line of 13 tokens, the end of the line included.
    assert text.ceiling["loss"] == pytest.approx(4 / 13 * 2.0794415, rel=1e-6)


def test_copy_lines_repeat_their_letters():
    for line in Copy(500, 50, 50, gap=4, length=3).split("train").read().columns["text"]:
        assert re.fullmatch(r"(\w \w \w) \. \. \. \. > \1", line)


@pytest.mark.parametrize("make", [lambda: Parity(gap=-1), lambda: DelayedRecall(classes=9), lambda: Copy(letters=27)])
def test_what_is_out_of_range_is_refused(make):
    with pytest.raises(UserError, match=r"data\.synthetic\."):
        make()


@pytest.mark.parametrize("kind", [Adding, BracketDepth, Copy, DelayedRecall, Parity])
def test_every_setting_is_kept_by_its_name(kind):
    """From there a run that was built by hand writes it down."""
    for name, parameter in inspect.signature(kind).parameters.items():
        if not name.endswith("_size"):
            assert getattr(kind(), name) == parameter.default, name


def test_a_task_of_another_package_is_made_anew_when_its_code_changes(tmp_path, monkeypatch):
    """Nor is one that is called as one of ours taken for it."""
    code = """
from recur.data import memory
class Parity(memory.MemoryTask):
    class_names = ("no", "yes")
    def example(self, rng):
        return rng.choice((("WORD one", 1), ("WORD two", 0)))
"""
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for word in ("former", "present"):
        (tmp_path / "own_tasks.py").write_text(code.replace("WORD", word) + f"# {word}\n")
        sys.modules.pop("own_tasks", None)
        importlib.invalidate_caches()
        task = importlib.import_module("own_tasks").Parity(40, 20, 20)
        data = SentimentData(synthetic=task, tokenizer={"kind": "whitespace"}, batch_size=4, cache_dir=str(tmp_path))
        data.setup("fit")
        found.append(data.text("train", 0).split()[0])
    assert found == ["former", "present"]
