"""From files to batches no row and no token is lost or invented, whatever Unicode has in store."""

import csv
import io
import json
import shutil
import unicodedata

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recur.data import corpus
from recur.data.cache import TokenCache
from recur.data.language import LanguageData
from recur.data.readers import checked, read_file
from recur.data.sentiment import SentimentData
from recur.data.sources import find_splits
from recur.data.text import Tokenizer, lacks_tokens, utf8

# What splits lines or fields somewhere, is white space to some and not to others, or changes its length in lower case.
TRICKY = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\x1f\xa0\ufeff\u200b\u3000\r\n\t\"',;:|\\#İßΣς\u0301😀\U0001f468\u200d"
letters = st.characters(codec="utf-8", exclude_characters="\0") | st.sampled_from(TRICKY)
texts = st.text(letters, max_size=40)
any_text = st.text(st.characters() | st.sampled_from(TRICKY), max_size=40)  # lone surrogates too


def words_of(text: str) -> list[str]:
    """The rules of `basic_english`, one character after the other, without any regular expression."""
    lowered = "".join(character.lower() for character in text).replace('"', "").replace("<br />", " ")
    found, word = [], ""
    for character in lowered:
        space = character.isspace() and character not in "\x1c\x1d\x1e\x1f"
        if space or character in ";:'.,()!?":
            found += [word] if word else []
            found += [character] if character in "'.,()!?" else []
            word = ""
        else:
            word += character
    return found + ([word] if word else [])


def known_to_python(text: str) -> bool:
    """Whether no character is newer than this Python's tables, which the library's may know."""
    return all(unicodedata.category(character) != "Cn" for character in text)


@given(text=any_text)
@example('It\'s ΣΑΣ <BR /> İstanbul;\x1cno\x85yes\u2028"quoted"')
@settings(deadline=None, max_examples=300)
def test_basic_english_is_its_rules_for_any_text(text):
    text = utf8(text)
    if not known_to_python(text):
        return
    tokenizer = Tokenizer.train(["a b"])
    words = words_of(text)
    assert tokenizer.tokens(text) == words
    assert len(tokenizer.encode(text)) == len(words) == len(tokenizer.encode_batch([text])[0])
    assert lacks_tokens(text, "basic_english") == (not words)


@pytest.mark.slow
@example(rows=["\x1f "], block=1)  # a word to Unicode, white space to Python
@example(rows=["\r"], block=1)  # a newline of old
@example(rows=["0 "], block=1)  # a last line longer than a block that ends in a space
@given(rows=st.lists(texts, min_size=1, max_size=6), block=st.integers(1, 12))
@settings(deadline=None)
@pytest.mark.parametrize("kind", ["character", "bpe", "whitespace", "basic_english"])
def test_a_corpus_in_blocks_has_the_tokens_of_the_whole(tmp_path_factory, kind, rows, block):
    text = "\n".join(rows)
    file = tmp_path_factory.mktemp("corpus") / "a.txt"
    file.write_bytes(text.encode())
    text = corpus.with_newlines(text).removeprefix("\ufeff")  # a mark of the encoding
    tokenizer = Tokenizer.train([text, "a"], kind, eos=corpus.joins_words(kind))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "BLOCK", block)
        blocks = list(corpus.Reader().blocks(find_splits(file, cache=TokenCache(file.parent / "cache"))["train"]))
        ids = np.concatenate([np.zeros(0, np.int32), *corpus.encoded(blocks, tokenizer)]).tolist()
    assert "".join(blocks) == text
    if corpus.joins_words(kind):
        lines = text.split("\n")
        if all(character.isspace() and character not in "\x1c\x1d\x1e\x1f" for character in lines[-1]):
            lines.pop()
        assert ids == [index for line in lines for index in (*tokenizer.encode(line), tokenizer.eos_id)]
    else:
        assert tokenizer.decode(ids) == text


@given(data=st.data())
@settings(deadline=None, max_examples=25)
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet", "folder"])
def test_every_row_of_a_file_is_in_one_batch_with_its_label_and_all_its_tokens(tmp_path_factory, suffix, data):
    named = st.tuples(texts.map(lambda text: f"{text} a"), st.sampled_from(["no", "yes"]))
    rows = [("a", "no"), ("b", "no"), ("c", "yes"), ("d", "yes"), *data.draw(st.lists(named, max_size=8))]
    folder = tmp_path_factory.mktemp("rows")
    file = folder / f"a.{suffix}"
    records = [{"text": text, "label": label} for text, label in rows]
    if suffix in ("csv", "tsv"):
        stream = io.StringIO(newline="")
        writer = csv.writer(stream, delimiter="," if suffix == "csv" else "\t")
        writer.writerows([["text", "label"], *rows])
        file.write_bytes(stream.getvalue().encode())
    elif suffix == "jsonl":
        file.write_bytes("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode())
    elif suffix == "json":
        file.write_bytes(json.dumps(records).encode())
    elif suffix == "parquet":
        pd.DataFrame(records).to_parquet(file)
    else:
        for number, (text, label) in enumerate(rows):
            (file / label).mkdir(parents=True, exist_ok=True)
            (file / label / f"{number:03}.txt").write_bytes(text.encode())
        rows = [(text.removeprefix("\ufeff"), label) for text, label in rows]
    where = {"path": str(file)} if suffix == "folder" else {"train": str(file)}
    module = SentimentData(**where, batch_size=2, cache_dir=str(folder / "cache"))
    module.setup()
    seen = []
    for split, train in (("train", True), ("val", False)):
        for batch in module.loader(split, shuffle=train):
            for row, label in zip(batch.rows.tolist(), batch.labels.tolist(), strict=True):
                text = module.text(split, row)
                seen.append((text, module.class_names[label]))
                ids = module.texts(split)[row].tolist()
                assert ids == module.tokenizer.encode(text)
                assert len(ids) == len(words_of(text)) or not known_to_python(text)
            assert len(batch.text.data) == sum(len(module.texts(split)[row]) for row in batch.rows.tolist())
    assert sorted(seen) == sorted(rows)
    shutil.rmtree(folder)


@given(text=st.text(letters, min_size=30, max_size=120), streams=st.integers(1, 3), bptt=st.integers(1, 9))
@settings(deadline=None, max_examples=40)
def test_every_character_of_a_text_is_predicted_once(tmp_path_factory, text, streams, bptt):
    folder = tmp_path_factory.mktemp("text")
    module = LanguageData(
        text=text,
        tokenizer={"kind": "character"},
        val_fraction=0.3,
        batch_size=streams,
        eval_batch_size=streams,
        bptt=bptt,
        eval_bptt=bptt,
        cache_dir=str(folder),
    )
    module.setup()
    text, whole = corpus.with_newlines(text), ""
    for split in ("train", "val"):
        assert module.tokenizer.unk_id == 0
        read = [[] for _ in range(streams)]
        for window in module.loader(split, train=split == "train"):
            targets = iter(window.targets.tolist())
            for size in window.text.batch_sizes.tolist():
                for stream in range(size):
                    read[stream].append(next(targets))
            assert next(targets, None) is None
        ids = [index for stream in read for index in stream]
        assert ids == module.tokens(split).tolist()
        cut = text[: len(ids)] if split == "train" else text[len(whole) :]
        assert len(ids) == len(cut)
        assert (
            "".join(
                old if index == 0 else new
                for index, old, new in zip(ids, cut, [module.tokenizer.vocabulary[index] for index in ids], strict=True)
            )
            == cut
        )
        whole += cut
    assert whole == text
    shutil.rmtree(folder)


@given(rows=st.lists(any_text.map(lambda text: f"{text}a"), min_size=1, max_size=5))
@settings(deadline=None)
def test_a_lone_surrogate_is_refused_with_its_row_and_never_replaced(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("surrogates")
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    wrong = [number for number, text in enumerate(rows) if utf8(text) != text]
    zero = [number for number, text in enumerate(rows) if "\0" in text]
    read = read_file(str(folder / "a.jsonl"))
    if not wrong and not zero:
        assert checked(read).texts == rows
        return
    first = min(wrong + zero) + 1
    with pytest.raises(ValueError, match=rf"a\.jsonl row {first} \(line {first}\)"):
        checked(read)
    kept = [text for number, text in enumerate(rows) if number not in wrong + zero]
    if kept:
        assert checked(read, on_bad_row="skip").texts == kept


@given(content=st.binary(max_size=60))
@settings(deadline=None, max_examples=200)
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet", "txt"])
def test_any_bytes_are_read_whole_or_refused_with_the_files_name(tmp_path_factory, suffix, content):
    file = tmp_path_factory.mktemp("bytes") / f"a.{suffix}"
    file.write_bytes(content)
    rows, refusal = None, ""
    try:
        rows = read_file(str(file))
        good = checked(rows, rows.available[0] if rows.available else "text", on_bad_row="skip")
    except ValueError as error:
        refusal = str(error)
    assert f"a.{suffix}" in refusal or not refusal
    if refusal:
        return
    assert len(good.texts) + sum(good.skipped.values()) == len(rows)
    for text in good.texts:
        assert isinstance(text, str) and text == utf8(text)
        if suffix == "txt":
            assert text.encode() in (content, content.removeprefix(b"\xef\xbb\xbf"))
