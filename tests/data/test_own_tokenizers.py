"""A tokenizer of another package, as an installed distribution declares it."""

import importlib
from pathlib import Path

import pytest

from recur.data import own_tokenizers
from recur.data.language import LanguageData
from recur.data.sentiment import SentimentData
from recur.data.text import Tokenizer, joins_words
from recur.errors import UserError

MODULE = '''import re


def halves(text):
    """Words, each cut in two."""
    return [part for word in text.split() for part in (word[: len(word) // 2], word[len(word) // 2 :]) if part]


def broken(text):
    return [""]


number = 3
pattern = re.compile("[a-z]+").findall
'''
POINTS = """[recur.tokenizers]
halves = ownwords:halves
broken = ownwords:broken
none = ownwords:number
pattern = ownwords:pattern
lost = nowhere:x
whitespace = ownwords:halves
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The package's module; its distribution is found on the path as an installed one is."""
    site = tmp_path / "site"
    (site / "ownwords-1.0.dist-info").mkdir(parents=True)
    (site / "ownwords-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: ownwords\nVersion: 1.0\n")
    (site / "ownwords-1.0.dist-info" / "entry_points.txt").write_text(POINTS)
    (site / "ownwords.py").write_text(MODULE)
    cached = (own_tokenizers.names, own_tokenizers.splitter, own_tokenizers.version)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("RECUR_CACHE", str(tmp_path / "cache"))
    for one in cached:
        one.cache_clear()
    importlib.invalidate_caches()
    yield site / "ownwords.py"
    for one in cached:
        one.cache_clear()
    import sys

    sys.modules.pop("ownwords", None)


def test_its_words_are_counted_looked_up_and_joined(package) -> None:
    tokenizer = Tokenizer.train(["abcd abxy", "abcd"], "halves")
    assert tokenizer.vocabulary == ["<unk>", "ab", "cd", "xy"]
    assert tokenizer.encode("abcd abzz") == [1, 2, 1, 0]
    assert [ids.tolist() for ids in tokenizer.encode_batch(["xyab", ""])] == [[3, 1], []]
    assert tokenizer.tokens("abcd\ud800") == ["ab", "cd\ufffd"]
    assert tokenizer.decode([1, 2]) == "ab cd" and joins_words("halves")
    again = Tokenizer.from_json(tokenizer.to_json())
    assert (again.kind, again.vocabulary, again.encode("xyab")) == ("halves", tokenizer.vocabulary, [3, 1])


def test_none_takes_the_place_of_one_of_this_package(package) -> None:
    tokenizer = Tokenizer.train(["abcd abxy"], "whitespace")
    assert tokenizer.vocabulary == ["<unk>", "abcd", "abxy"] and tokenizer.encode("abxy") == [2]
    assert "whitespace" not in own_tokenizers.names()


def test_data_of_both_families_is_read_with_it(package, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\n" + "goodfilm,1\nbadsfilm,0\n" * 20)
    settings = {"tokenizer": {"kind": "halves"}, "batch_size": 4, "cache_dir": str(tmp_path / "cache")}
    data = SentimentData(train=str(tmp_path / "rows.csv"), **settings)
    data.setup()
    assert set(data.tokenizer.vocabulary) == {"<unk>", "good", "film", "bads"}
    (tmp_path / "text.txt").write_text("onceupon timeagoo\n" * 300)
    running = LanguageData(train=str(tmp_path / "text.txt"), **settings)
    running.setup()
    assert set(running.tokenizer.vocabulary) == {"<unk>", "<eos>", "once", "upon", "time", "agoo"}

    # Its code changes: what the former version made is not taken from the cache.
    package.write_text(MODULE.replace("text.split()", "text.upper().split()") + "# longer\n")
    import sys

    sys.modules.pop("ownwords")
    for one in (own_tokenizers.splitter, own_tokenizers.version):
        one.cache_clear()
    importlib.invalidate_caches()
    data = SentimentData(train=str(tmp_path / "rows.csv"), **settings)
    data.setup()
    assert set(data.tokenizer.vocabulary) == {"<unk>", "GOOD", "FILM", "BADS"}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("broken", "must be a tokenizer whose function gives a list of words.* ownwords:broken does not"),
        ("none", "must name a function, and ownwords:number is none"),
        ("lost", "must name a function that can be imported: nowhere:x, got 'lost': No module named 'nowhere'"),
        ("half", "must be one of basic_english, .*halves, lost, none, pattern, got 'half'"),
    ],
)
def test_what_is_no_tokenizer_is_refused(package, kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Tokenizer.train(["ab"], kind)


def test_a_run_is_not_read_without_its_package(package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = Tokenizer.train(["abcd"], "halves").to_json()
    (package.parent / "ownwords-1.0.dist-info" / "entry_points.txt").write_text("")
    own_tokenizers.names.cache_clear()
    importlib.invalidate_caches()
    with pytest.raises(
        UserError, match="has the kind 'halves', which neither this package nor an installed one offers"
    ):
        Tokenizer.from_json(content)


def test_what_is_no_function_of_a_file_has_the_version_of_the_module_that_names_it(package) -> None:
    """The tokens of a pattern that was edited since were taken from the cache."""
    import sys

    assert Tokenizer.train(["ab, cd"], "pattern").vocabulary == ["<unk>", "ab", "cd"]
    before = own_tokenizers.version("pattern")
    package.write_text(MODULE.replace("[a-z]+", "[a-z]+|,"))
    sys.modules.pop("ownwords")
    own_tokenizers.version.cache_clear()
    importlib.invalidate_caches()
    assert own_tokenizers.version("pattern") != before
