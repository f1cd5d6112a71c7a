"""Running text as a LightningDataModule: from files to windows of parallel streams."""

import json
import logging
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import lightning.pytorch as pl
from annotated_types import Ge, Lt
from numpy.typing import NDArray

from recur.data import corpus
from recur.data.cache import Ragged, TokenCache, content_key
from recur.data.checks import Column, Count, OnBadRow, Seed, columns, fractions, hold, one_delimiter, one_source
from recur.data.corpus import Inline, Reader
from recur.data.sources import Source, choose_splits, unchanged
from recur.data.streams import StreamLoader, WindowLoader
from recur.data.synthetic import SyntheticText
from recur.data.tables import Files
from recur.data.text import Tokenizer, check_settings, joins_words
from recur.errors import UserError
from recur.nn.arguments import Remembering

log = logging.getLogger(__name__)
_DEFAULTS: Mapping[str, Any] = MappingProxyType({})  # of the tokenizer


class LanguageData(Remembering, pl.LightningDataModule):
    """Text for a language model, as contiguous streams or as single windows.

    The text comes from a hub id or folder (`path`, whose splits `train`, `val`, `test` then name), from files alone
    (`train`, `val`, `test` then name them; any suffix that is no table's is read as plain text), from the config
    (`text`), or is generated (`synthetic`). Without a validation split the end of the training text is cut off for it.

    Every token of a split is predicted once, the first one from `<eos>` (from a newline, where the tokenizer has no
    `<eos>`; from `<unk>`, where it has neither).

    Args:
        path: hub id, folder laid out like a hub repository, or one file.
        subset: which one of a repository with several (the hub's "config").
        revision: branch, tag or commit of a hub repository.
        train: split name or file(s) to train on; from Python also a pandas DataFrame or a `datasets.Dataset`.
        val: split name, file(s) or table for validation; None finds one by its usual names or cuts one off, False cuts
            one off even where there is such a split.
        test: split name, file(s) or table for the test; None finds a split `test`, or cuts `test_fraction` off, which
            False does even where there is such a split.
        text: the text itself.
        synthetic: a generated corpus in place of all sources.
        text_column: column of text, where the files are tables, each of whose rows is a line: its name or, in a csv
            or tsv without a line of names, its number from 1.
        tokenizer: settings of `Tokenizer.train`: kind, min_frequency, max_size.
        val_fraction: share of the training text, at its end, used for validation where there is no such split; 0
            validates on the training text itself (to see a text memorised).
        test_fraction: share cut off after that for the test; 0 for none.
        batch_size: streams a device; with `window`, windows a batch and device.
        eval_batch_size: streams of validation and test, over all devices, each of which has one at least. One stream
            never cuts the text, many are faster. With `window`, windows a batch and device.
        bptt: steps of a training window, through which gradients flow.
        random_bptt: draw each training window's length about `bptt` and scale its learning rate, as AWD-LSTM does;
            nothing with `window`.
        eval_bptt: steps of an evaluation window; only speed and memory depend on it.
        window: predict single tokens from this many before them, each from an empty state, instead of streams.
        reverse: read every split from its last token to its first, for a model that predicts the token before, such as
            the one that the backward direction of a classifier begins from.
        seed: of random window lengths, and of the windows' order.
        on_bad_row: `error` or `skip`.
        allow_pickle: load pickled pandas frames, which can run any code hidden in them.
        delimiter: the character between the fields of csv and tsv files; None for a comma and a tab.
        cache_dir: see `recur.data.cache.cache_folder`.

    Attributes:
        tokenizer: the tokenizer, after `setup`.
        reverse: as given.

    Raises:
        UserError: whatever is wrong with the settings or the text.
    """

    family = "language"

    def __init__(
        self,
        path: str | None = None,
        subset: str | None = None,
        revision: str | None = None,
        train: Files | None = None,
        val: Files | Literal[False] | None = None,
        test: Files | Literal[False] | None = None,
        text: str | None = None,
        synthetic: SyntheticText | None = None,
        text_column: Column = "text",
        tokenizer: Mapping[str, Any] = _DEFAULTS,
        val_fraction: Annotated[float, Ge(0), Lt(1)] = 0.1,
        test_fraction: Annotated[float, Ge(0), Lt(1)] = 0.0,
        batch_size: Count = 20,
        eval_batch_size: Count = 10,
        bptt: Count = 35,
        random_bptt: bool = False,
        eval_bptt: Count = 128,
        window: Count | None = None,
        reverse: bool = False,
        seed: Seed = 0,
        on_bad_row: OnBadRow = "error",
        allow_pickle: bool = False,
        delimiter: str | None = None,
        cache_dir: str | None = None,
    ) -> None:
        """Check the settings; files are not touched yet."""
        super().__init__()
        hold(LanguageData.__init__, locals())
        fractions(val_fraction, test_fraction)
        columns(text_column=text_column)
        made = "synthetic" if synthetic is not None else "text" if text is not None else None
        one_source(made, path=path, train=train, val=val, test=test, text=text if synthetic is not None else None)
        settings = check_settings(tokenizer, "whitespace", eos=True)
        if path is None and train is None and text is None and synthetic is None:
            raise UserError(
                "data.path", rule="must be a hub id, folder or file, or data.train a file, or data.text a text"
            )
        self._place = (path, subset, revision)
        self._delimiter = one_delimiter(delimiter)
        self._names = {"train": train, "val": val, "test": test}
        self._text, self._synthetic = text, synthetic
        self._reader = Reader(text_column, on_bad_row, allow_pickle)
        self._settings = settings
        self._fractions = {"val": val_fraction, "test": test_fraction}
        self._batch_size, self._eval_batch_size = batch_size, eval_batch_size
        self._bptt, self._random_bptt, self._eval_bptt, self._window = bptt, random_bptt, eval_bptt, window
        self._seed, self.reverse = seed, reverse
        self._cache = TokenCache(cache_dir)

        self.tokenizer: Tokenizer
        self._given_tokenizer: Tokenizer | None = None
        self._carves = True  # whether splits that are missing are cut off the training text
        self._sources: dict[str, Source] | None = None
        self._facts: dict[str, dict[str, int]] = {}
        self._tokens: dict[str, NDArray[Any]] = {}

    # -------------------------------------------------------------------------------------------- what others ask for

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.tokenizer.vocab_size

    @property
    def ceiling(self) -> dict[str, float]:
        """Best possible metrics on the test split, where the text was generated and they are known."""
        return self.ceiling_of("test")

    def ceiling_of(self, split: str) -> dict[str, float]:
        """Best possible metrics on a split, which are those of its own text."""
        loss = self._floor(split)
        return {} if loss is None else {"loss": loss, "perplexity": math.exp(loss)}

    def _floor(self, split: str) -> float | None:
        """Loss in nats a token that no model can beat on this split of a generated text."""
        if self._synthetic is None or split not in self._facts or split not in self._find():
            return None  # what is cut off the training text is not the split that was made
        if self._window is not None:
            return None  # the first tokens are not predicted, and the nats are of all
        if self._facts[split]["unknown"]:
            return None  # one `<unk>` for many words is easier to predict than the words, of which the nats are
        nats = getattr(self._synthetic.split(split), "nats", None)
        return None if nats is None else nats / self._facts[split]["tokens"]

    @property
    def splits(self) -> list[str]:
        """The splits there are, after `setup`."""
        return list(self._tokens)

    @property
    def has_test(self) -> bool:
        """Whether there is a test split, after `setup`."""
        return "test" in self._tokens

    @property
    def window(self) -> int | None:
        """Tokens before each that is predicted, where windows are read one by one; None for streams."""
        return self._window

    @property
    def start_id(self) -> int:
        """What stands before the first token of a split."""
        return corpus.start_id(self.tokenizer)

    def use(self, tokenizer: Tokenizer, *, carve: bool = False) -> None:
        """Read with a trained model's tokenizer instead of making one.

        Args:
            tokenizer: of the model.
            carve: cut validation and test text off the training text, as without this call; else nothing is cut off.
        """
        assert not self._tokens, "call use before setup"
        self._given_tokenizer, self._carves = tokenizer, carve

    def model_arguments(self) -> dict[str, Any]:
        """What the model has to know."""
        return {
            "vocab_size": self.vocab_size,
            "character_level": self.tokenizer.kind == "character",
            "window": self._window,
        }

    def describe(self) -> dict[str, Any]:
        """What was read, in plain values."""
        facts: dict[str, Any] = {}
        for split, count in self._facts.items():
            facts[split] = f"{count['tokens']:,} tokens, {count['unknown'] / count['tokens']:.2%} unknown"
            if split != "train" and (floor := self._floor(split)) is not None:
                facts[split] += f", perplexity at best {math.exp(floor):.3f}"
        if "val" not in self._tokens:
            facts["val"] = "the training text itself"
        facts["vocabulary"] = f"{self.vocab_size:,} ({self.tokenizer.kind})"
        if self._window is None:
            lengths = "about " if self._random_bptt else ""
            facts["streams"] = f"{self._batch_size} a device, windows of {lengths}{self._bptt} tokens"
        else:
            facts["windows"] = f"{self._window} tokens and the next, {self._batch_size} a batch"
        if self.reverse:
            facts["reads"] = "from the end to the beginning"
        return facts

    def prepare_data(self) -> None:
        """Fill the cache; other ranks wait for the one that does."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Open every split, through the cache; to fit, check that each is long enough."""
        if not self._tokens:
            self._open()
        if stage == "fit":
            self.loader("train", train=True)
            for split in ("val", "test"):  # now, and not when the training is over
                if split == "val" or split in self._tokens:
                    self.loader(split)

    def _open(self) -> None:
        sources = self._find()
        given = self._given_tokenizer
        key: dict[str, Any] = {
            "family": self.family,
            "sources": {split: source.fingerprint(self._cache) for split, source in sources.items()},
            "reader": [self._reader.text_column, self._reader.on_bad_row],
            "fractions": self.cut_off(),
            "tokenizer": self._settings if given is None else content_key(given.key()),
        }

        def build(folder: Path) -> None:
            self._build(folder)
            for split, source in sources.items():
                unchanged(source, key["sources"][split], self._cache)

        folder = self._cache.entry(key, build)
        if not self._reader.skipped:  # the entry is of an earlier run: say again what it left out
            for file, (rows, skipped) in json.loads((folder / "skipped.json").read_text(encoding="utf-8")).items():
                for reason, count in skipped.items():
                    log.warning("skipped %d of %d rows of %s: %s", count, rows, file, reason)
        self.tokenizer = Tokenizer.from_json((folder / "tokenizer.json").read_text(encoding="utf-8"))
        self._facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        self._tokens = {split: Ragged.open(folder, split).values[:: -1 if self.reverse else 1] for split in self._facts}

    def tokens(self, split: str) -> NDArray[Any]:
        """Ids of a split in the order they are read, `(tokens,)`, memory-mapped.

        Without validation text, `val` is the training text.
        """
        return self._tokens["train" if split == "val" and "val" not in self._tokens else split]

    # --------------------------------------------------------------------------------------------------------- loaders

    def loader(self, split: str, *, train: bool = False) -> StreamLoader | WindowLoader:
        """Windows of a split for this process's rank."""
        trainer = self.trainer
        ranks = trainer.world_size if trainer else 1
        # As many cuts of the text, and so the same figures, on any number of devices that divides them.
        streams = self._eval_batch_size if self._window is not None else max(1, self._eval_batch_size // ranks)
        common: dict[str, Any] = {
            "batch_size": self._batch_size if train else streams,
            "seed": self._seed,
            "repeat": bool(trainer and trainer.overfit_batches),  # type: ignore[attr-defined]
            "rank": trainer.global_rank if trainer else 0,
            "world_size": ranks,
        }
        try:
            if self._window is not None:
                return WindowLoader(self.tokens(split), window=self._window, shuffle=train, **common)
            return StreamLoader(
                self.tokens(split),
                bptt=self._bptt if train else self._eval_bptt,
                start_id=self.start_id,
                random_length=train and self._random_bptt,
                **common,
            )
        except UserError as error:
            key = "eval_batch_size" if error.key == "batch_size" and not train else error.key
            rule = f"{error.rule} of the {split} split"
            raise UserError(f"data.{key}", error.value, rule, error.remedy) from None

    def train_dataloader(self) -> StreamLoader | WindowLoader:
        """Windows of the training text."""
        return self.loader("train", train=True)

    def val_dataloader(self) -> StreamLoader | WindowLoader:
        """Windows of the validation text."""
        return self.loader("val")

    def test_dataloader(self) -> StreamLoader | WindowLoader:
        """Windows of the test text."""
        return self.loader("test")

    # ----------------------------------------------------------------------------------------------------- from source

    def _find(self) -> dict[str, Source]:
        """The splits there are, by our names."""
        if self._sources is None:
            if self._synthetic is not None:
                made = [split for split in ("train", "val", "test") if self._names[split] is not False]
                self._sources = {split: self._synthetic.split(split) for split in made}
            elif self._text is not None:
                self._sources = {"train": Inline(self._text)}
            else:
                reading: dict[str, Any] = {"delimiter": self._delimiter, "labelled": False}
                self._sources = choose_splits(
                    self._names, *self._place, self._cache, need_train=self._carves, **reading
                )
        return self._sources

    def cut_off(self) -> dict[str, float]:
        """Shares to cut off the training text, for the splits that are not there."""
        if not self._carves:
            return {}
        return {split: share for split, share in self._fractions.items() if split not in self._find() and share}

    def _build(self, folder: Path) -> None:
        sources, fractions = self._find(), self.cut_off()
        texts: dict[str, Any] = {split: partial(self._reader.blocks, source) for split, source in sources.items()}
        if fractions:
            whole = texts["train"]
            for split, (first, end) in corpus.cuts(whole, fractions, self._settings["kind"]).items():
                texts[split] = partial(lambda first, end: corpus.clipped(whole(), first, end), first, end)
        for split in texts:
            if not any(block.strip() if joins_words(self._settings["kind"]) else block for block in texts[split]()):
                raise self._nothing_in(split, split in fractions)
        corpus.build(folder, texts, self._settings, self._given_tokenizer)
        (folder / "skipped.json").write_text(json.dumps(self._reader.skipped), encoding="utf-8")

    def _nothing_in(self, split: str, cut_off: bool) -> UserError:
        if split == "train":
            named = self._place[0] or self._names["train"] or "data.text"
            return UserError("the text to train on", rule="is empty", remedy=f"give {named} some text")
        if cut_off:
            remedy = f"raise data.{split}_fraction, or give data.{split} a file"
        else:
            remedy = f"give data.{split} a file with text, or null to cut one off"
        return UserError(f"the {split} split", rule="has no tokens", remedy=remedy)
