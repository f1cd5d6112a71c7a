"""From files to streams: counts as published, exact cuts, one clear error for each mistake."""

import math
import os
import subprocess
import sys
import types
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from recur.data import corpus
from recur.data import synthetic as s
from recur.data.corpus import Inline, Reader, clipped, cuts, encoded, readable
from recur.data.language import LanguageData
from recur.data.synthetic import SyntheticText
from recur.data.text import Tokenizer
from recur.errors import UserError

WORDS = {"kind": "whitespace"}
CHARACTERS = {"kind": "character"}


def opened(**settings) -> LanguageData:
    data = LanguageData(**{"batch_size": 2, "eval_batch_size": 1, "bptt": 4, **settings})
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture
def book(tmp_path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"line {i} of the book\n" for i in range(200)), encoding="utf-8")
    return path


@pytest.mark.slow
def test_wikitext2_is_as_published(shared_data):
    data = opened(path=str(shared_data / "wikitext"), subset="wikitext-2-v1")
    assert [len(data.tokens(split)) for split in ("train", "val", "test")] == [2_088_628, 217_646, 245_569]
    assert data.vocab_size == 33_278 and data.model_arguments()["vocab_size"] == 33_278
    assert sum(len(w.targets) for w in data.test_dataloader()) == 245_569
    assert data.tokenizer.decode(data.tokens("train")[:7]) == "<eos> = Valkyria Chronicles III = <eos>"


def test_tinyshakespeare_is_cut_as_nanogpt_cuts_it(shared_data):
    file = shared_data / "tinyshakespeare" / "input.txt"
    data = opened(path=str(file), tokenizer=CHARACTERS)
    assert [len(data.tokens(split)) for split in data.splits] == [1_003_854, 111_540]
    text = file.read_text()
    assert data.tokenizer.decode(data.tokens("val")) == text[int(len(text) * 0.9) :]
    assert data.vocab_size == 65 + 1  # its characters, and <unk>


@pytest.mark.parametrize("block", [7, 64, 1 << 20])
@pytest.mark.parametrize("kind", ["character", "bpe", "whitespace", "basic_english"])
def test_blocks_do_not_show(monkeypatch, tmp_path, kind, block):
    monkeypatch.setattr(corpus, "BLOCK", block)
    text = "To be, or not\n\nto be:  that is the question é ß\nno newline at the end"
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    blocks = list(Reader().blocks(corpus.Split((str(path),))))
    assert "".join(blocks) == text
    words = corpus.joins_words(kind)
    tokenizer = Tokenizer.train([text], kind, eos=words)
    ids = np.concatenate(list(encoded(blocks, tokenizer)))
    if words:
        lines = [tokenizer.encode(line) for line in text.split("\n")]
        assert ids.tolist() == [i for line in lines for i in (*line, tokenizer.eos_id)]
        assert readable(tokenizer, ids) == "\n".join(tokenizer.decode(line) for line in lines) + "\n"
    else:
        assert readable(tokenizer, ids) == text


@pytest.mark.parametrize("kind", ["character", "whitespace"])
@pytest.mark.parametrize("block", [5, 1000])
def test_parts_of_one_text_are_disjoint_and_complete(kind, block):
    text = "a bb\nccc dddd\n\neeeee f\ngg hhh iiii\n" * 7 + "the end"
    pieces = [text[i : i + block] for i in range(0, len(text), block)]
    found = cuts(lambda: pieces, {"val": 0.2, "test": 0.1}, kind)
    parts = ["".join(clipped(pieces, *where)) for where in found.values()]
    assert "".join(parts) == text and list(found) == ["train", "val", "test"]
    if kind == "whitespace":
        assert parts[0].endswith("\n") and parts[1].endswith("\n")
        assert abs(len(parts[0]) - 0.7 * len(text)) <= 15
    else:
        assert len(parts[0]) == int(len(text) * 0.7) and len(parts[2]) == len(text) - int(len(text) * 0.9)


def test_a_line_longer_than_a_block_has_one_end(monkeypatch, tmp_path):
    monkeypatch.setattr(corpus, "BLOCK", 50)
    (tmp_path / "long.txt").write_text(" ".join(f"w{i}" for i in range(500)))
    data = opened(train=str(tmp_path / "long.txt"), tokenizer=WORDS, val_fraction=0.0)
    ids = data.tokens("train")
    assert len(ids) == 501 and (ids == data.tokenizer.eos_id).sum() == 1 and ids[-1] == data.tokenizer.eos_id


@pytest.mark.parametrize("kind", ["whitespace", "character"])
@pytest.mark.parametrize("ending", ["", "\n"], ids=["open", "ended"])
def test_each_file_begins_on_a_line_of_its_own(tmp_path, kind, ending):
    home = tmp_path / "books"
    home.mkdir()
    texts = {
        "a.txt": "this is\nthe end" + ending,
        "b.txt": "",
        "c.csv": "text\na row\n",
        "d.txt": "Start here" + ending,
    }
    for name, text in texts.items():
        (home / name).write_text(text)
    settings = {"tokenizer": {"kind": kind}, "val_fraction": 0.0, "bptt": 2}
    data = opened(train=[str(home / name) for name in texts], **settings)
    whole = "this is\nthe end\na row\nStart here" + ("\n" if kind == "whitespace" else ending)
    assert readable(data.tokenizer, data.tokens("train")) == whole
    (home / "train.txt").write_text("the end")
    (home / "test.txt").write_text("Start here")
    for name in texts:
        (home / name).unlink()
    data = opened(path=str(home), train="train+test", test="test", **settings)
    assert readable(data.tokenizer, data.tokens("train")).rstrip("\n") == "the end\nStart here"


@pytest.mark.parametrize("block", [64, 1 << 20])
@pytest.mark.parametrize("lines", [1, 3])
@pytest.mark.parametrize("ending", ["", "\n"], ids=["open", "ended"])
def test_words_on_one_line_or_few_are_cut_between_words(monkeypatch, tmp_path, block, lines, ending):
    """As text8 has them: 17 million words and no newline."""
    monkeypatch.setattr(corpus, "BLOCK", block)
    text = "\n".join(" ".join(f"w{i}" for i in range(600 // lines)) for _ in range(lines)) + ending
    (tmp_path / "text8.txt").write_text(text)
    data = opened(train=str(tmp_path / "text8.txt"), tokenizer=WORDS, val_fraction=0.1, test_fraction=0.05)
    counts = [len(data.tokens(split)) for split in ("train", "val", "test")]
    assert sum(counts) <= 600 + lines + 2  # and an <eos> where a part ends
    assert abs(counts[1] - 60) <= 8 and abs(counts[2] - 30) <= 8
    parts = "".join(readable(data.tokenizer, data.tokens(split)) for split in ("train", "val", "test"))
    assert len(parts.split()) == 600


def test_rows_of_a_table_are_lines(tmp_path):
    (tmp_path / "t.csv").write_text('text\n"a b"\n""\nc\n')
    data = opened(train=str(tmp_path / "t.csv"), tokenizer=WORDS, val_fraction=0.0)
    assert readable(data.tokenizer, data.tokens("train")) == "a b\n\nc\n"


def test_rows_left_out_are_said_once_and_again_from_the_cache(tmp_path, caplog):
    (tmp_path / "t.csv").write_text("text,n\n" + "a b c,1\n" * 40 + "a,b,1\n" * 3)
    for _ in range(2):
        caplog.clear()
        opened(train=str(tmp_path / "t.csv"), on_bad_row="skip", cache_dir=str(tmp_path / "cache"))
        (message,) = [record.message for record in caplog.records if "skipped" in record.message]
        assert message.startswith("skipped 3 of 43 rows") and "the number of fields differs" in message


def test_splits_given_as_files_keep_the_training_vocabulary(tmp_path):
    for name, text in (("a.txt", "x y z\n" * 5), ("b.txt", "x q\n" * 3)):
        (tmp_path / name).write_text(text)
    data = opened(train=str(tmp_path / "a.txt"), val=str(tmp_path / "b.txt"), tokenizer=WORDS)
    assert readable(data.tokenizer, data.tokens("val")).startswith("x <unk>\n")
    assert "50.00% unknown" not in data.describe()["val"] and "33.33% unknown" in data.describe()["val"]
    assert data.splits == ["train", "val"] and not data.has_test


def test_the_first_token_follows_the_end_of_a_line(book):
    words = opened(train=str(book), tokenizer=WORDS)
    window = next(iter(words.val_dataloader()))
    assert int(window.text.data[0]) == words.tokenizer.eos_id
    characters = opened(train=str(book), tokenizer=CHARACTERS)
    window = next(iter(characters.val_dataloader()))
    assert characters.tokenizer.decode([int(window.text.data[0])]) == "\n"


def test_a_trained_tokenizer_can_be_used_on_other_text(book, tmp_path):
    trained = opened(train=str(book), tokenizer=WORDS)
    (tmp_path / "other.txt").write_text("the book of lines\n")
    other = LanguageData(path=str(tmp_path / "other.txt"), test="train", eval_batch_size=1)
    other.use(trained.tokenizer)
    other.prepare_data()
    other.setup()
    assert other.tokenizer.to_json() == trained.tokenizer.to_json()
    assert readable(other.tokenizer, other.tokens("test")) == "the book of <unk>\n"


def test_the_guides_sentence_in_windows():
    sentence = "hello pytorch, this is a simple character-level language model."
    data = opened(text=sentence, tokenizer=CHARACTERS, window=10, val_fraction=0.0, batch_size=64)
    (window,) = list(data.train_dataloader())
    pairs = {
        (data.tokenizer.decode(column), data.tokenizer.decode([int(target)]))
        for column, target in zip(window.text.data.view(10, -1).T.tolist(), window.targets, strict=True)
    }
    assert pairs == {(sentence[i : i + 10], sentence[i + 10]) for i in range(len(sentence) - 10)}
    assert data.model_arguments()["window"] == 10


# ----------------------------------------------------------------------------------------------------------- mistakes


def test_mistakes_are_named(tmp_path, book):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    binary = tmp_path / "latin.txt"
    binary.write_bytes(b"caf\xe9\n" * 40)
    short = tmp_path / "short.txt"
    short.write_text("only a few words here\n")
    for settings, message in (
        ({"train": str(empty)}, "the text to train on is empty"),
        ({"train": str(book), "val": str(empty)}, r"the val split has no tokens: give data.val a file"),
        ({"train": str(short), "val_fraction": 0.01, "tokenizer": WORDS}, r"val split has no tokens: raise data.val_"),
        ({"train": str(binary)}, "is not UTF-8 .byte 0xe9."),
        ({"train": str(tmp_path / "none.txt")}, "data.train must name a file"),
        ({}, "data.path must be a hub id"),
        ({"train": str(book), "bptt": 0}, "data.bptt must be a whole number of at least 1, got 0"),
        ({"train": str(book), "val_fraction": 1.0}, "val_fraction must be a number of at least 0 and below 1"),
        ({"train": str(book), "tokenizer": {"size": 3}}, "data.tokenizer.size is no setting"),
        ({"train": str(book), "tokenizer": {"kind": "word"}}, "tokenizer.kind must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            opened(**settings)


def test_more_streams_than_tokens_are_refused(tmp_path):
    (tmp_path / "few.txt").write_text("one two three\n" * 4)
    few = str(tmp_path / "few.txt")
    data = opened(train=few, tokenizer=WORDS, val_fraction=0.3, batch_size=50, eval_batch_size=9)
    with pytest.raises(
        ValueError, match=r"data.batch_size must be at most 12 for 12 tokens .* of the train split, got 50: lower it"
    ):
        data.train_dataloader()
    with pytest.raises(ValueError, match=r"data.eval_batch_size must be .* val split"):
        data.val_dataloader()


# -------------------------------------------------------------------------------------------------- the embedded text


def test_the_text_is_cut_as_often_on_several_ranks(tmp_path):
    """Else each rank's own streams would lose the words before them, and figures would depend on the ranks."""
    path = tmp_path / "a.txt"
    path.write_text("\n".join(f"word{i % 7} word{i % 5} word{i % 3}" for i in range(400)))
    data = LanguageData(train=str(path), eval_batch_size=6, cache_dir=str(tmp_path / "cache"))
    data.setup()
    begun = lambda text: text.data[: int(text.batch_sizes[0])].tolist()  # the first token of each stream
    whole = data.loader("val")
    for ranks, streams in ((2, 3), (3, 2), (4, 1), (12, 1)):
        loaders = []
        for rank in range(ranks):
            data.trainer = types.SimpleNamespace(world_size=ranks, global_rank=rank, overfit_batches=0)
            loaders.append(data.loader("val"))
        first = [begun(next(iter(loader)).text) for loader in loaders]
        assert [len(own) for own in first] == [streams] * ranks
        if ranks * streams == 6:
            assert [token for own in first for token in own] == begun(next(iter(whole)).text)


def test_the_floor_is_the_texts_own_probability():
    """Recompute a short text's probability by reading it, independently of how it was written."""
    lines, nats = SyntheticText(200, 10, 10, seed=3).split("train").write()
    singular = {noun: (pronoun, False) for noun, (_, pronoun) in s._NOUNS.items()}
    plural = {many: ("they", True) for many, _ in s._NOUNS.values()}
    order = list(s._NOUNS)
    total, topic = 0.0, None

    def zipf(words, word):
        weights = [1 / (i + 1) for i in range(len(words))]
        return weights[list(words).index(word)] / sum(weights)

    def say(p):
        nonlocal total
        total -= math.log(p)

    def noun_phrase(words, deep):
        start = words.pop(0)
        kind = words.pop(0) if words[0] in s._KINDS else None
        noun = words.pop(0)
        pronoun, many = {**singular, **plural}[noun]
        say(0.4 if many else 0.6)
        say(zipf(("the", "some", "three") if many else ("the", "one", "this"), start))
        say(0.3 if kind else 0.7)
        if kind:
            say(zipf(s._KINDS, kind))
        say(zipf(order, noun if not many else next(n for n in order if s._NOUNS[n][0] == noun)))
        if not deep:
            say(0.25 if words[0] == "that" else 0.75)
            if words[0] == "that":
                words.pop(0)
                say(0.5)
                if words[0] in s._TRANSITIVE or words[0] in s._TRANSITIVE.values():
                    verb(words, s._TRANSITIVE, many)
                    noun_phrase(words, True)
                else:
                    verb(words, s._TRANSITIVE, noun_phrase(words, True) == "they")
        return pronoun

    def verb(words, verbs, many):
        found = words.pop(0)
        one = found if not many else next(v for v in verbs if verbs[v] == found)
        assert (verbs[one] if many else one) == found
        say(zipf(list(verbs), one))

    def verb_phrase(words, many):
        transitive = words[0] in s._TRANSITIVE or words[0] in s._TRANSITIVE.values()
        say(0.6 if transitive else 0.4)
        if transitive:
            verb(words, s._TRANSITIVE, many)
            noun_phrase(words, True)
        else:
            verb(words, s._INTRANSITIVE, many)
            say(0.4 if words[0] == "in" else 0.6)
            if words[0] == "in":
                words[:2] = []
                say(zipf(s._PLACES, words.pop(0)))
        say(0.2 if words[0] in s._TIMES else 0.8)
        if words[0] in s._TIMES:
            say(zipf(s._TIMES, words.pop(0)))

    for line in lines:
        words = line.split()
        if topic is not None:
            say(0.88 if words else 0.12)
            if not words:
                topic = None
                continue
            say(0.3 if words[0] in ("he", "she", "it", "they") else 0.7)
        if words[0] in ("he", "she", "it", "they"):
            assert words.pop(0) == topic
        else:
            topic = noun_phrase(words, False)
        verb_phrase(words, topic == "they")
        say(0.25 if words[0] == "and" else 0.75)
        if words[0] == "and":
            words.pop(0)
            verb_phrase(words, topic == "they")
        assert words == ["."]
    assert total == pytest.approx(nats, rel=1e-12)


def test_the_floor_is_below_every_model_of_few_words():
    data = opened(synthetic=SyntheticText(20_000, 1_000, 20_000, seed=1), tokenizer=WORDS)
    ids = data.tokens("test").tolist()
    pairs, firsts = Counter(pairwise(ids)), Counter(ids[:-1])
    bigram = -sum(n * math.log(n / firsts[a]) for (a, _), n in pairs.items()) / (len(ids) - 1)  # fitted to the test
    assert data.ceiling["loss"] < bigram - 0.2
    assert data.ceiling["perplexity"] == pytest.approx(math.exp(data.ceiling["loss"]))
    assert data.ceiling == data.ceiling_of("test") != data.ceiling_of("val")  # each split has its own text
    assert "perplexity at best" in data.describe()["test"]
    few = opened(synthetic=SyntheticText(20_000, 1_000, 20_000, seed=1), tokenizer={**WORDS, "max_size": 15})
    assert few.ceiling == {} and "at best" not in few.describe()["test"]  # a model need not tell rare words apart


def test_single_windows_have_no_floor():
    """They do not predict the first tokens, and the nats are of all."""
    text = SyntheticText(20_000, 1_000, 20_000, seed=1)
    streams, windows = (opened(synthetic=text, tokenizer=WORDS, **more) for more in ({}, {"window": 5}))
    assert streams.ceiling and "perplexity at best" in streams.describe()["test"]
    assert windows.ceiling == {} and "at best" not in windows.describe()["test"]


def test_the_embedded_text_is_reproducible_and_its_splits_differ():
    corpus_ = SyntheticText(500, 500, 500)
    assert corpus_.split("val").write() == SyntheticText(500, 500, 500).split("val").write()
    assert corpus_.split("val").write() != corpus_.split("test").write()
    with pytest.raises(ValueError, match=r"synthetic.val_size must be a whole number"):
        SyntheticText(val_size=0)


# --------------------------------------------------------------------------------------------- larger than the memory

_READ = """
import sys, resource
from recur.data.streams import StreamLoader
import numpy as np
tokens = np.memmap(sys.argv[1], dtype=np.uint16, mode="r")
loader = StreamLoader(tokens, batch_size=20, bptt=2000)
before = resident = int(open("/proc/self/statm").read().split()[1])
for window in loader:
    resident = max(resident, int(open("/proc/self/statm").read().split()[1]))
print((resident - before) * resource.getpagesize() / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's /proc")
def test_resident_memory_stays_flat_as_the_text_grows_ten_times(tmp_path):
    grown = []
    for size in (12, 120):  # MiB
        path = tmp_path / f"{size}"
        with path.open("wb") as file:
            file.truncate(size << 20)
        done = subprocess.run(
            [sys.executable, "-c", _READ, str(path)], capture_output=True, text=True, check=True, timeout=120
        )
        grown.append(float(done.stdout))
    # Not exactly equal: with large pages in the file cache, the kernel maps up to 2 MiB around a stream's position.
    assert grown[1] < grown[0] + 8 and grown[1] < 60, grown


def test_a_large_text_file_is_prepared_in_blocks(tmp_path):
    path = tmp_path / "large.txt"
    with path.open("w") as file:
        for i in range(12):
            file.write(f"the quick brown fox number {i} jumps over the lazy dog\n" * 20_000)  # a MiB
    seen = [len(block) for block in Reader().blocks(corpus.Split((str(path),)))]
    assert max(seen) <= 2 * corpus.BLOCK and sum(seen) == path.stat().st_size
    assert list(Reader().blocks(Inline("abc"))) == ["abc"]


@pytest.mark.parametrize("order", ["train+more", "more+train"])
def test_splits_are_joined_by_plus_as_on_the_hub(tmp_path, order):
    folder = tmp_path / "set"
    folder.mkdir()
    rows = {"train": "one two\nthree\n", "more": "four\nfive six\n", "test": "one six\n"}
    for split, text in rows.items():
        lines = "".join(f'{{"text": "{line}"}}\n' for line in text.splitlines())
        (folder / f"{split}.jsonl").write_text(lines)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {split}.jsonl\n" for split in rows)
        + "---\n"
    )
    data = opened(path=str(folder), train=order, val="test", tokenizer=WORDS, cache_dir=str(tmp_path / "cache"), bptt=2)
    want = "".join(rows[part] for part in order.split("+")).replace("\n", " <eos> ").split()
    assert data.tokenizer.decode(data.tokens("train")).split() == want
    with pytest.raises(UserError, match="nothing"):
        opened(path=str(folder), train="train+nothing", tokenizer=WORDS, cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("settings", [{}, {"window": 3}], ids=["streams", "windows"])
def test_reading_from_the_end_is_reading_the_reversed_tokens(tmp_path, settings):
    text = "the cat sat on the mat\nand the dog sat on the cat\n" * 9
    tokenizer, common = {"kind": "character"}, {"batch_size": 2, "bptt": 5, "cache_dir": str(tmp_path), **settings}
    there = opened(text=text, tokenizer=tokenizer, reverse=True, **common)
    turned = opened(text=text[::-1], tokenizer=tokenizer, val_fraction=0.0, **common)
    for split in ("train", "val"):
        plain = opened(text=text, tokenizer=tokenizer, **common)
        assert there.tokens(split).tolist() == plain.tokens(split).tolist()[::-1]
    whole = opened(text=text, tokenizer=tokenizer, reverse=True, val_fraction=0.0, **common)
    assert whole.tokenizer.decode(whole.tokens("train").tolist()) == text[::-1]
    for mine, other in zip(whole.loader("train"), turned.loader("train"), strict=True):
        for ours, theirs in ((mine.text.data, other.text.data), (mine.targets, other.targets)):
            assert whole.tokenizer.decode(ours.tolist()) == turned.tokenizer.decode(theirs.tolist())


@pytest.mark.parametrize("kind", ["character", "bpe", "basic_english"])
def test_line_ends_of_every_system_are_the_same_text(tmp_path, kind):
    """A \\r before each newline was a token of its own, all but free to predict."""
    text, tokens = "the king saw the queen\nand the queen saw him\n" * 50, []
    for name, end in (("unix", "\n"), ("windows", "\r\n"), ("old", "\r")):
        (tmp_path / f"{name}.txt").write_bytes(text.replace("\n", end).encode())
        data = LanguageData(
            train=str(tmp_path / f"{name}.txt"), tokenizer={"kind": kind, "max_size": 300}, batch_size=2, bptt=3,
            cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip
        data.prepare_data()
        data.setup()
        tokens.append(data.tokens("train").tolist())
    assert tokens[0] == tokens[1] == tokens[2]


def test_a_text_that_changes_while_it_is_read_is_refused_and_leaves_no_entry(tmp_path, book, monkeypatch):
    build = corpus.build

    def late(*arguments):
        book.write_text("a text that is another one\n" * 200)
        build(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "build", late)
        with pytest.raises(UserError, match="the data changed while it was read: start again"):
            opened(train=str(book), val_fraction=0.0, cache_dir=str(tmp_path / "cache"))
    assert not [entry for entry in (tmp_path / "cache" / "tokens").iterdir() if entry.is_dir()]
