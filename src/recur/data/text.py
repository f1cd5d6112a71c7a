"""Text to token ids and back: four kinds of tokenizer over the `tokenizers` library.

| kind | splits | joins |
|---|---|---|
| `basic_english` | into lower-cased words and the marks `' . , ( ) ! ?`; `"` vanishes, `; : <br />` part | by spaces |
| `whitespace` | at Unicode white space | by spaces |
| `character` | into code points | exactly |
| `bpe` | into byte-pair pieces over UTF-8 bytes, so nothing is ever unknown | exactly |
| a name of one's own | as a function of another package does, see `recur.data.own_tokenizers` | by spaces |

`basic_english` is torchtext's tokenizer of that name, with two differences: lower-casing is per character (Greek final
sigma stays σ), and white space is Unicode's (torchtext also splits at the control characters 0x1c to 0x1f).

There is no pad token. `<unk>` is always id 0 and `<eos>`, where asked for, id 1. Where a tokenizer of words finds one
of them as a word in a text, it is the special token: WikiText and Penn Treebank are marked with `<unk>`, and other
corpora with `<eos>` too, which then counts beside the one at each line's end.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from recur.data import own_tokenizers
from recur.data.checks import Count, hold, known_keys
from recur.data.own_tokenizers import KINDS
from recur.errors import UserError

UNK = "<unk>"
EOS = "<eos>"
WORDS = ("basic_english", "whitespace")  # kinds whose tokens are words
FORMAT = 1
# The rules of basic_english: what is replaced in lower-cased text, which marks are tokens, and which only part words.
_REPLACED = (('"', ""), ("<br />", " "))
_MARKS, _PARTING = "'.,()!?", ";:"
_BASIC_ENGLISH = f"[{_MARKS}]|[^{{space}}{_PARTING}{_MARKS}]+"  # a token, given the characters that are white space
_ASCII_SPACE, _UNICODE_SPACE = r" \t-\r", r"\s"
_BPE_SIZE = 8192  # when max_size is not given


def _pipeline(kind: str) -> tokenizers.Tokenizer:
    """A tokenizer with its splitting rules and an empty vocabulary."""
    if kind == "bpe":
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer
    tokenizer = tokenizers.Tokenizer(models.WordLevel({}, unk_token=UNK))
    if kind == "basic_english":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Lowercase(), *(normalizers.Replace(old, new) for old, new in _REPLACED)]
        )
        words = Regex(_BASIC_ENGLISH.format(space=_UNICODE_SPACE))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(words, "removed", invert=True)
    elif kind == "whitespace" or kind in own_tokenizers.names():  # of one's own, this part splits nothing
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    elif kind == "character":
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
    else:
        raise _wrong_kind(kind)
    return tokenizer


def _wrong_kind(kind: Any) -> UserError:
    known = (*KINDS, *own_tokenizers.names())
    return UserError("data.tokenizer.kind", kind, f"must be one of {', '.join(known)}")


def joins_words(kind: str) -> bool:
    """Whether the tokens of a kind are words, joined by spaces."""
    return kind in WORDS or kind in own_tokenizers.names()


# The ASCII part of the rules, for the short cut in `_plain_words`.
_ASCII_WORDS = re.compile(_BASIC_ENGLISH.format(space=_ASCII_SPACE))
_ASCII_SPACES = re.compile(f"[^{_ASCII_SPACE}]+")


def _normalized(text: str) -> str:
    """A text as `basic_english` splits it."""
    text = text.lower()
    for old, new in _REPLACED:
        text = text.replace(old, new)
    return text


def _plain_words(text: str, kind: str) -> list[str] | None:
    """Words of an ASCII text, or None where the library has to split it.

    Lower-casing and white space are simple in ASCII, and most text is: four times faster, the same result (tested).
    """
    if not text.isascii():
        return None
    if kind == "basic_english":
        return _ASCII_WORDS.findall(_normalized(text))
    return _ASCII_SPACES.findall(text) if kind == "whitespace" else None


class _Ids(dict[str, int]):
    """Id of a word; 0, `<unk>`, for one that is not there."""

    def __missing__(self, word: str) -> int:
        return 0


def utf8(text: str) -> str:
    """The text itself, with each lone surrogate (which no UTF-8 text can hold) replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def lacks_tokens(text: str, kind: str) -> bool:
    """Whether a text has no token at all, whatever the vocabulary."""
    # 0x1c to 0x1f are white space to Python and not to Unicode, whose rules the tokenizers follow.
    if kind in own_tokenizers.names():
        return not own_tokenizers.splitter(kind)(utf8(text))
    if kind == "basic_english":
        return re.search(rf"[^\s{_PARTING}]|[\x1c-\x1f]", _normalized(text)) is None
    return not text or (kind == "whitespace" and re.search(r"\S|[\x1c-\x1f]", text) is None)


def check_settings(settings: Mapping[str, Any], default_kind: str, eos: bool) -> dict[str, Any]:
    """Settings for `Tokenizer.train` as a config gives them, before there is any text.

    Args:
        settings: kind, min_frequency, max_size; what is missing has its default.
        default_kind: the kind where none is given.
        eos: whether words end their lines with `<eos>`.

    Raises:
        UserError: an unknown setting, or one outside its range.
    """
    if not isinstance(settings, Mapping):
        raise UserError("data.tokenizer", settings, "must be settings: kind, min_frequency and max_size")
    known_keys("tokenizer", settings, ("kind", "min_frequency", "max_size"))
    given = {"kind": default_kind, **settings}
    kind = given["kind"]
    own = isinstance(kind, str) and kind in own_tokenizers.names()
    specials = 1 + (eos and (own or kind in WORDS))
    _checked_sizes(kind, given.get("min_frequency", 1), given.get("max_size"), specials)
    return {**given, "version": own_tokenizers.version(kind)} if own else given


def _checked_sizes(kind: str, min_frequency: Count, max_size: int | None, specials: int) -> None:
    if kind not in KINDS and kind not in own_tokenizers.names():
        raise _wrong_kind(kind)
    hold(_checked_sizes, {"min_frequency": min_frequency}, "data.tokenizer")
    least = specials + (256 if kind == "bpe" else 1)
    if max_size is None:
        return
    if isinstance(max_size, bool) or not isinstance(max_size, int) or max_size < least:
        why = " (every byte is a token)" if kind == "bpe" else ""
        raise UserError("data.tokenizer.max_size", max_size, f"must be null or at least {least} for kind {kind}{why}")


class Tokenizer:
    """A trained tokenizer: text to ids, ids to text, whole state as JSON.

    Attributes:
        kind: one of `KINDS`, or of `own_tokenizers.names()`.
        vocabulary: token of each id; ids are 0 to `vocab_size - 1` without a gap.
        vocab_size: number of ids, `<unk>` and `<eos>` included.
        unk_id: id of `<unk>`, always 0.
        eos_id: id of `<eos>`, or None when trained without.
    """

    unk_id: int = 0

    def __init__(self, tokenizer: tokenizers.Tokenizer, kind: str, eos: bool) -> None:
        """Wrap a tokenizer whose vocabulary is complete; use `train` or `from_json`."""
        self._tokenizer = tokenizer
        self.kind = kind
        self.eos_id: int | None = 1 if eos else None
        vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=False)
        self.vocabulary: list[str] = sorted(vocabulary, key=vocabulary.__getitem__)
        self.vocab_size = len(self.vocabulary)
        specials = [UNK, EOS] if eos else [UNK]
        if sorted(vocabulary.values()) != list(range(self.vocab_size)) or self.vocabulary[: len(specials)] != specials:
            raise UserError("the vocabulary", rule=f"must start with {', '.join(specials)} and have no gap in its ids")
        self._ids = _Ids(vocabulary)
        self._split = own_tokenizers.splitter(kind) if kind in own_tokenizers.names() else None
        self._table: NDArray[np.int32] | None = None
        if kind == "character":
            # One look-up a code point: 30 times faster than a split a character, with the same result (tested).
            self._table = np.zeros(0x110000, dtype=np.int32)
            for index, token in enumerate(self.vocabulary):
                if len(token) == 1:
                    self._table[ord(token)] = index

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        kind: str = "basic_english",
        *,
        min_frequency: int = 1,
        max_size: int | None = None,
        eos: bool = False,
        version: str = "",
    ) -> "Tokenizer":
        """Build the vocabulary, most frequent first and alphabetical among equals.

        Args:
            texts: the training split's texts.
            kind: one of `KINDS`, or of `own_tokenizers.names()`.
            min_frequency: leave out words (bpe: merges) seen fewer times.
            max_size: largest vocabulary, `<unk>` and `<eos>` included. None: no limit, or 8192 for bpe.
            eos: reserve `<eos>` as id 1. `encode` never adds it: where a text ends is the caller's to say.
            version: of a tokenizer of another package, by which the cache tells its results apart; not used here.

        Raises:
            UserError: a setting outside its range, or no token in any text.
        """
        specials = [UNK, EOS] if eos else [UNK]
        _checked_sizes(kind, min_frequency, max_size, len(specials))
        tokenizer = _pipeline(kind)
        clean = (utf8(text) for text in texts)
        if kind == "bpe":
            size = (max_size or _BPE_SIZE) - len(specials)
            tokenizer.train_from_iterator(
                clean,
                trainers.BpeTrainer(
                    vocab_size=size,
                    min_frequency=min_frequency,
                    show_progress=False,
                    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
                ),
            )
            state = json.loads(tokenizer.to_str())["model"]
            vocabulary = _numbered(specials, sorted(state["vocab"], key=state["vocab"].__getitem__))
            tokenizer.model = models.BPE(vocabulary, [tuple(pair) for pair in state["merges"]], unk_token=UNK)
            return cls(tokenizer, kind, eos)
        frequent = _character_counts(clean) if kind == "character" else _word_counts(tokenizer, kind, clean)
        words = [token for token, count in frequent if count >= min_frequency and token not in specials]
        if not words:
            raise UserError(
                "data.tokenizer.min_frequency",
                min_frequency,
                "must be low enough for some token to be left",
                "lower it",
            )
        if max_size is not None:
            words = words[: max_size - len(specials)]
        tokenizer.model = models.WordLevel(_numbered(specials, words), unk_token=UNK)
        return cls(tokenizer, kind, eos)

    def encode(self, text: str) -> list[int]:
        """Ids of one text; a word outside the vocabulary becomes `unk_id`."""
        if self._table is not None:
            return self._characters(text).tolist()
        if self._split is not None:
            return [self._ids[word] for word in self._split(utf8(text))]
        return self._tokenizer.encode(utf8(text)).ids

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Ids of many texts, each `(tokens,)` int32, encoded on all cores."""
        if self._table is not None:
            return [self._characters(text) for text in texts]
        if self._split is not None:
            return [np.array(self.encode(text), dtype=np.int32) for text in texts]
        ids: list[Any] = [None] * len(texts)
        others: list[int] = []
        for row, text in enumerate(texts):
            words = _plain_words(text, self.kind)
            if words is None:
                others.append(row)
            else:
                ids[row] = np.fromiter(map(self._ids.__getitem__, words), dtype=np.int32, count=len(words))
        for row, encoding in zip(
            others, self._tokenizer.encode_batch_fast([utf8(texts[row]) for row in others]), strict=True
        ):
            ids[row] = np.array(encoding.ids, dtype=np.int32)
        return ids

    def tokens(self, text: str) -> list[str]:
        """The pieces of one text as they stand in it (after lower-casing), one for each id of `encode`."""
        text = utf8(text)
        if self._split is not None:
            return self._split(text)
        if self.kind == "character":
            return list(text)
        if self.kind == "bpe":
            pieces, done = [], 0
            for start, end in self._tokenizer.encode(text).offsets:  # the whole character for each token of its bytes
                pieces.append(text[max(start, done) : end])
                done = max(done, end)
            return pieces
        return _words(self._tokenizer, text)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids: exact for `character` and `bpe`, joined by spaces for words.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        listed = [int(index) for index in ids]
        wrong = next((index for index in listed if not 0 <= index < self.vocab_size), None)
        if wrong is not None:
            raise ValueError(f"ids run from 0 to {self.vocab_size - 1}, got {wrong}")
        if self.kind == "character":
            return "".join(self.vocabulary[index] for index in listed)
        if joins_words(self.kind):
            return " ".join(self.vocabulary[index] for index in listed)
        return self._tokenizer.decode(listed, skip_special_tokens=False)

    def to_json(self) -> str:
        """The whole state; `tokenizers.Tokenizer.from_str` reads its `"tokenizer"` part."""
        state = {
            "format": FORMAT,
            "kind": self.kind,
            "eos": self.eos_id is not None,
            "tokenizer": json.loads(self._tokenizer.to_str()),
        }
        return json.dumps(state, ensure_ascii=False)

    def key(self) -> str:
        """What determines the ids of a text: the state and, of a tokenizer of another package, its version."""
        return self.to_json() + (own_tokenizers.version(self.kind) if self._split is not None else "")

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """Rebuild a tokenizer from `to_json`; only data is read, nothing in it is run.

        Raises:
            UserError: not a tokenizer of ours, or of a later format.
        """
        try:
            state: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError("the tokenizer", rule=f"is not JSON ({error})") from None
        kind = state.get("kind") if isinstance(state, dict) else None
        own = own_tokenizers.names()
        if isinstance(kind, str) and kind and kind not in (*KINDS, *own) and "tokenizer" in state:
            rule = f"has the kind {kind[:40]!r}, which neither this package nor an installed one offers"
            raise UserError("the tokenizer", rule=rule, remedy=f"install the package with the entry point {kind[:40]}")
        if not isinstance(kind, str) or not kind or "tokenizer" not in state:
            raise UserError("the tokenizer", rule="lacks one of its keys format, kind, eos and tokenizer")
        if state.get("format") != FORMAT:
            raise UserError("the tokenizer's format", state.get("format"), f"must be {FORMAT} for this version")
        # Only the vocabulary and the merges are taken from the file, once they are known to be sound: the library
        # panics at some files, and others make it use memory or time without end.
        inner = _pipeline(kind)
        vocabulary, merges = _checked_model(state["tokenizer"], kind, inner)
        inner.model = (
            models.BPE(vocabulary, merges, unk_token=UNK)
            if kind == "bpe"
            else models.WordLevel(vocabulary, unk_token=UNK)
        )
        return cls(inner, state["kind"], bool(state.get("eos")))

    def _characters(self, text: str) -> NDArray[np.int32]:
        assert self._table is not None
        return self._table[np.frombuffer(utf8(text).encode("utf-32-le"), dtype=np.uint32)]


def _checked_model(
    given: Any, kind: str, pipeline: tokenizers.Tokenizer
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a tokenizer's JSON.

    Args:
        given: what the file says.
        kind: of the tokenizer.
        pipeline: a tokenizer of this kind, from which it may differ in nothing else.

    Raises:
        UserError: it does, or its vocabulary or merges are not sound.
    """
    wanted = json.loads(pipeline.to_str())
    model = given.get("model") if isinstance(given, dict) else None
    if not isinstance(model, dict):
        raise UserError("the tokenizer", rule="has no model")
    for key, value in wanted.items():
        if key != "model" and given.get(key) != value:
            raise UserError("the tokenizer", rule=f"must have the {key} of kind {kind}")
    if model.get("type") != wanted["model"]["type"] or model.get("unk_token") != UNK:
        raise UserError("the tokenizer", rule=f"must have the model of kind {kind}")
    vocabulary, merges = model.get("vocab"), model.get("merges", [])
    if not isinstance(vocabulary, dict) or any(type(index) is not int for index in vocabulary.values()):
        raise UserError("the tokenizer", rule="must have a vocabulary with a number for each token")
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise UserError("the tokenizer's vocabulary", rule="must have every id from 0 once")
    if any(utf8(token) != token for token in vocabulary):
        raise UserError("the tokenizer's vocabulary", rule="must be valid Unicode")
    for pair in merges if isinstance(merges, list) else [None]:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise UserError("the tokenizer's merges", rule="must be pairs of tokens")
        if any(token not in vocabulary for token in (*pair, "".join(pair))):
            raise UserError("the tokenizer's merges", rule="must be of tokens in its vocabulary")
    return vocabulary, [(first, second) for first, second in merges]


def _numbered(specials: list[str], words: Iterable[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate([*specials, *words])}


def _words(tokenizer: tokenizers.Tokenizer, text: str) -> list[str]:
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def _word_counts(tokenizer: tokenizers.Tokenizer, kind: str, texts: Iterator[str]) -> list[tuple[str, int]]:
    """Each word and how often it is seen, most frequent first, alphabetical among equals."""
    counts: Counter[str] = Counter()
    own = own_tokenizers.splitter(kind) if kind in own_tokenizers.names() else None
    for text in texts:
        words = _plain_words(text, kind) if own is None else own(text)
        counts.update(_words(tokenizer, text) if words is None else words)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _character_counts(texts: Iterator[str]) -> list[tuple[str, int]]:
    """Each character and how often it is seen, most frequent first."""
    counts = np.zeros(0x110000, dtype=np.int64)
    for text in texts:
        seen = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        codes, times = np.unique(seen, return_counts=True)
        counts[codes] += times
    present = np.flatnonzero(counts)
    order = present[np.lexsort((present, -counts[present]))]
    return [(chr(code), int(counts[code])) for code in order.tolist()]
