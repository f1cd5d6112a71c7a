"""Labelled texts as a LightningDataModule: from rows to packed batches."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import lightning.pytorch as pl
import numpy as np
from annotated_types import Ge, Gt, Lt
from numpy.typing import NDArray
from torch import Tensor

from recur.data import pseudo_labels
from recur.data.buckets import Keep, TextLoader, Texts
from recur.data.cache import TokenCache, content_key
from recur.data.checks import (
    Column,
    Count,
    OnBadRow,
    Seed,
    columns,
    fractions,
    hold,
    known_keys,
    one_delimiter,
    one_source,
    one_use,
)
from recur.data.encoded import Encoded, write_split
from recur.data.labels import Names, are_secret, class_table, label_key, parted, table_of, wanted_names
from recur.data.readers import Checked, Rows, checked
from recur.data.sources import Source, Split, choose_splits, files_of, unchanged
from recur.data.synthetic import SyntheticReviews
from recur.data.tables import Files
from recur.data.text import Tokenizer, check_settings, lacks_tokens
from recur.data.training_texts import Beside, facts, joined, limited
from recur.data.vectors import WordVectors, load_vectors, train_word2vec
from recur.errors import UserError
from recur.nn.arguments import Remembering

log = logging.getLogger(__name__)
_PSEUDO, _UNLABELLED = pseudo_labels.SPLIT, "unlabelled"
_DEFAULTS: Mapping[str, Any] = MappingProxyType({})  # of the tokenizer
_LONGEST = 1_000_000  # tokens of a text: even one step of training would take minutes and many GiB
_WORD2VEC = ("dim", "window", "epochs", "min_count", "skip_gram", "seed")


class SentimentData(Remembering, pl.LightningDataModule):
    """Texts with one label each.

    The rows come from a hub id or folder (`path`, whose splits `train`, `val`, `test` then name) or from files alone
    (`train`, `val`, `test` then name them). Without a validation split, a part of the training split is carved off,
    with the same share of every class. The vocabulary comes from the remaining training texts alone.

    Args:
        path: hub id, folder laid out like a hub repository, folder or zip of text files in a folder a class, or one
            file.
        subset: which one of a repository with several (the hub's "config").
        revision: branch, tag or commit of a hub repository.
        train: split name or file(s) to train on; from Python also a pandas DataFrame or a `datasets.Dataset`.
        val: split name, file(s) or table for validation; None finds one by its usual names or carves one off, False
            carves one off even where there is such a split.
        test: split name, file(s) or table for the test; None finds a split `test` or does without, as it does where
            the labels of that split are kept secret; False carves
            `test_fraction` off, or does without.
        unlabelled: split name or file(s) of texts without labels, for `vectors=train` or `train_on_unlabelled`.
        pseudo_labelled: file(s) of texts with a model's probability of each class, as `python -m recur.predict --out`
            writes them, or a table of this form: trained on beside the labelled ones, with these probabilities as
            targets (self-training; see `recur.data.pseudo_labels`). Vocabulary, word vectors, class counts and the
            linear models of n-grams are still of the labelled texts.
        train_on_unlabelled: train on the texts of `unlabelled` beside the labelled ones, as on `pseudo_labelled`: each
            once an epoch, with the label -1, of which `recur.tasks.adversarial` makes something.
        limit_unlabelled: train on this many of them, chosen by `split_seed`; word vectors remain those of all.
        text_column: column of texts: its name or, in a csv or tsv without a line of names, its number from 1.
        label_column: column of labels, likewise.
        class_names: names of the classes in order, or a name for each label value ({0: bad, 4: good}); None takes the
            source's own, or the sorted label values.
        val_fraction: share carved off for validation where there is no such split.
        test_fraction: share carved off for the test where there is no such split; 0 for none.
        split_seed: which rows are carved off; its own seed, so that runs with other seeds are comparable.
        limit_train: train on this many rows, chosen by `split_seed`; the vocabulary remains that of all.
        tokenizer: settings of `Tokenizer.train`: kind, min_frequency, max_size.
        max_length: most tokens of a text; None for no limit.
        keep: part kept of a longer text: head, tail or both.
        batch_size: texts a batch and device.
        eval_batch_size: the same for validation and test; None for `batch_size`.
        max_tokens: instead of `batch_size`, most tokens a batch and device, for training and evaluation.
        seed: order of the training batches.
        on_bad_row: `error` or `skip`.
        allow_pickle: load pickled pandas frames, which can run any code hidden in them.
        delimiter: the character between the fields of csv and tsv files; None for a comma and a tab.
        cache_dir: see `recur.data.cache.cache_folder`.
        vectors: file of word vectors for the embedding, or `train` to make some with word2vec; None for neither.
        word2vec: settings of `recur.data.vectors.train_word2vec`.
        synthetic: a generated corpus in place of all sources.

    Attributes:
        tokenizer: the tokenizer, after `setup`.
        class_names: names of the classes, after `setup`.

    Raises:
        UserError: whatever is wrong with the settings or the rows.
    """

    family = "sentiment"

    def __init__(
        self,
        path: str | None = None,
        subset: str | None = None,
        revision: str | None = None,
        train: Files | None = None,
        val: Files | Literal[False] | None = None,
        test: Files | Literal[False] | None = None,
        unlabelled: Files | None = None,
        pseudo_labelled: Files | None = None,
        train_on_unlabelled: bool = False,
        limit_unlabelled: Count | None = None,
        text_column: Column = "text",
        label_column: Column = "label",
        class_names: Sequence[str] | Mapping[Any, str] | None = None,
        val_fraction: Annotated[float, Gt(0), Lt(1)] = 0.1,
        test_fraction: Annotated[float, Ge(0), Lt(1)] = 0.0,
        split_seed: Seed = 0,
        limit_train: Count | None = None,
        tokenizer: Mapping[str, Any] = _DEFAULTS,
        max_length: Count | None = None,
        keep: Keep = "head",
        batch_size: Count = 64,
        eval_batch_size: Count | None = None,
        max_tokens: Count | None = None,
        seed: Seed = 0,
        on_bad_row: OnBadRow = "error",
        allow_pickle: bool = False,
        delimiter: str | None = None,
        cache_dir: str | None = None,
        vectors: str | None = None,
        word2vec: Mapping[str, Any] | None = None,
        synthetic: SyntheticReviews | None = None,
    ) -> None:
        """Check the settings; files are not touched yet."""
        super().__init__()
        hold(SentimentData.__init__, locals())
        fractions(val_fraction, test_fraction)
        columns(text_column=text_column, label_column=label_column)
        settings = check_settings(tokenizer, "basic_english", eos=False)
        known_keys("word2vec", word2vec or {}, _WORD2VEC)
        one_source(None if synthetic is None else "synthetic", path=path, train=train, val=val, test=test)
        if synthetic is None and path is None and train is None:
            raise UserError("data.path", rule="must be a hub id or folder, or data.train a file")
        one_use(unlabelled, vectors, train_on_unlabelled, limit_unlabelled)
        self._place = (path, subset, revision)
        self._delimiter = one_delimiter(delimiter)
        self._names = {"train": train, "val": val, "test": test, "unlabelled": unlabelled}
        self._pseudo_labelled = pseudo_labelled
        self._train_on_unlabelled, self._limit_unlabelled = train_on_unlabelled, limit_unlabelled
        self._columns = (text_column, label_column)
        self._wanted_classes: Names = wanted_names(class_names)
        self._fractions = {"val": val_fraction, "test": test_fraction}
        self._split_seed, self._limit = split_seed, limit_train
        self._tokenizer_settings = settings
        self._max_length, self._keep = max_length, keep
        self._batch_size, self._eval_batch_size = batch_size, eval_batch_size or batch_size
        self._max_tokens, self._seed = max_tokens, seed
        self._on_bad_row, self._allow_pickle = on_bad_row, allow_pickle
        self._cache = TokenCache(cache_dir)
        self._vectors_from, self._word2vec = vectors, dict(word2vec or {})
        self._synthetic = synthetic

        self.tokenizer: Tokenizer
        self.class_names: list[str]
        self._base: str | None = None  # entry of the tokenizer and classes that all other entries build on
        self._table: dict[str, int] = {}  # label value -> class
        self._sources: dict[str, Source] | None = None
        self._encoded: dict[str, Encoded] = {}
        self._rows: dict[str, NDArray[np.int64]] = {}  # rows of an encoded split that make up train or val
        self._vectors: WordVectors | None = None
        self._given_model: tuple[Tokenizer, list[str]] | None = None
        self._carves = True  # whether rows of splits that are missing are taken off the training rows

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.tokenizer.vocab_size

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def ceiling(self) -> dict[str, float]:
        """Best possible metrics on the test split, where the data was made and they are known."""
        return self.ceiling_of("test")

    def ceiling_of(self, split: str) -> dict[str, float]:
        """Best possible metrics on `val` or `test`, where that split was made and they are known."""
        if self._synthetic is None or split not in self._find():
            return {}  # what is carved off the training rows has labels of its own that are turned round
        return getattr(self._synthetic.split(split), "ceiling", None) or getattr(self._synthetic, "ceiling", {})

    @property
    def splits(self) -> list[str]:
        """The labelled splits there are: of train, val, test."""
        return [split for split in ("train", "val", "test") if split in self._find() or split in self.cut_off()]

    @property
    def has_test(self) -> bool:
        """Whether there is a test split."""
        return "test" in self.splits

    def use(self, tokenizer: Tokenizer, class_names: Sequence[str], *, carve: bool = False) -> None:
        """Read with a trained model's tokenizer and classes instead of making them from a training split.

        Args:
            tokenizer: of the model.
            class_names: of the model.
            carve: take rows of validation and test off the training rows, as without this call; for a run that goes on
                training.
        """
        assert self._base is None, "call use before setup"
        self._given_model, self._carves = (tokenizer, list(class_names)), carve

    def leave_out(self, files: Files) -> None:
        """Keep pseudo-labelled files, which may be gone, out of a trained model's training rows; before `setup`."""
        with suppress(UserError):
            self._find()["train"] = pseudo_labels.find(files, self._find(), self._cache)["train"]

    def prepare_data(self) -> None:
        """Fill the cache; other ranks wait for the one that does."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Open every split, through the cache. The second call does nothing."""
        if self._base is not None:
            return
        if self._given_model is not None:
            self._use_given_model()
            return
        self._learn()
        self._leave_out_secret_test()
        for split in ("val", "test"):
            if split in self._find():
                self._open(split)
        rows = len(self._rows["train"]) + sum(len(part.texts) for part in self.beside())
        for split in self._rows:
            self.texts(split)
        if stage != "test" and self._max_tokens is None and self._batch_size > rows:
            raise UserError(
                "data.batch_size", self._batch_size, f"must be at most the {rows} rows to train on", "lower it"
            )
        present = np.unique(self.labels("val"))
        if len(present) == 1:
            log.warning(
                "all %d texts of the validation split are %r: its accuracy says nothing about the other classes",
                len(self.labels("val")),
                self.class_names[int(present[0])],
            )

    def model_arguments(self) -> dict[str, Any]:
        """What the model has to know: sizes, class names and counts, and word vectors where asked for."""
        counts = np.bincount(self.labels("train"), minlength=self.num_classes) if "train" in self._rows else None
        return {
            "vocab_size": self.vocab_size,
            "num_classes": self.num_classes,
            "class_names": list(self.class_names),
            "class_counts": None if counts is None else counts.tolist(),
            "vectors": self.vectors(),
        }

    def describe(self) -> dict[str, Any]:
        """What was read, in plain values: texts, tokens and unknown words a split, overlaps, rows left out."""
        said: dict[str, Any] = {}
        for split in ("train", "val", "test"):
            if split in self._rows:
                own = split == "train" or split in self._find()  # else rows of train: what is left out is said already
                said |= facts(split, self.texts(split), self._open(split), self._rows[split], own)
        for part in self.beside():
            said |= part.facts()
        said["classes"] = ", ".join(self.class_names)
        said["vocabulary"] = f"{self.vocab_size:,} ({self.tokenizer.kind})"
        trained = " or ".join(["train", *(part.name for part in self.beside())])
        for split, count in self.overlap().items():
            said[f"{split} overlap"] = f"{count:,} of {len(self._rows[split]):,} texts are in {trained} too"
        if self._vectors is not None:
            tokens, rows = self._open("train").tokens, self._rows["train"]
            text = np.concatenate([tokens[row] for row in rows.tolist()])
            said["vectors"] = self._vectors.coverage(np.bincount(text, minlength=self.vocab_size))
        return said

    def overlap(self) -> dict[str, int]:
        """Texts of validation and test that are trained on, too, word for word, with a label or without."""
        if "train" not in self._rows:
            return {}
        parts = [self._open("train").digests[self._rows["train"]], *(part.digests for part in self.beside())]
        trained = np.concatenate(parts)
        there = [split for split in ("val", "test") if split in self._rows]
        return {split: int(np.isin(self._open(split).digests[self._rows[split]], trained).sum()) for split in there}

    def texts(self, split: str) -> Texts:
        """Token ids of a split, cut to `max_length`.

        Raises:
            UserError: a text remains that is too long for any recurrent net.
        """
        encoded = self._open(split)
        texts = Texts(encoded.tokens, self._rows[split], max_length=self._max_length, keep=self._keep)
        longest = int(texts.lengths.argmax())
        if texts.lengths[longest] > _LONGEST:
            source = self._find().get(split, self._find().get("train"))  # val may be carved off train
            file = source.files[0] if isinstance(source, Split) and len(source.files) == 1 else split
            raise UserError(
                f"{file} row {self.source_row(split, longest)}",
                rule=f"has {texts.lengths[longest]:,} tokens, more than {_LONGEST:,}",
                remedy="set data.max_length, or leave the row out",
            )
        return texts

    def labels(self, split: str) -> NDArray[np.int64]:
        """Class of each text of a split, -1 where it has none."""
        return self._open(split).labels[self._rows[split]]

    def pseudo_labelled(self) -> tuple[Texts, NDArray[np.float32]] | None:
        """Texts that a model labelled and its probabilities, `(texts, classes)`; None where none are trained on."""
        if self._pseudo_labelled is None or _PSEUDO not in self._find():
            return None
        targets = self._open(_PSEUDO).targets
        assert targets is not None
        return self.texts(_PSEUDO), targets

    def beside(self) -> list[Beside]:
        """What is trained on beside the labelled texts: such as a model labelled, and such as have no labels."""
        parts = []
        if (pseudo := self.pseudo_labelled()) is not None:
            own, numbers = self._open(_PSEUDO), self._numbers(_PSEUDO)
            parts.append(Beside("pseudo-labelled", pseudo[0], numbers, own.skipped, own.digests, pseudo[1]))
        if self._train_on_unlabelled and self._carves:
            texts, numbers = self.texts(_UNLABELLED), self._numbers(_UNLABELLED)
            rows = limited(np.arange(len(texts)), self._limit_unlabelled, self._split_seed)
            own = self._open(_UNLABELLED)
            parts.append(Beside(_UNLABELLED, texts.chosen(rows), numbers[rows], own.skipped, own.digests[rows]))
        return parts

    def files(self) -> list[str]:
        """The files that its splits are made of, but for those in archives and on the hub."""
        return [file for source in self._find().values() for file in files_of(source)]

    def text(self, split: str, row: int) -> str:
        """A text as it was read; `row` as in `TextBatch.rows`."""
        return bytes(self._open(split).raw[int(self._rows[split][row])]).decode()

    def source_row(self, split: str, row: int) -> int:
        """Number of a text's row in its source, counted from 1; `row` as in `TextBatch.rows`."""
        return int(self._open(split).numbers[self._rows[split][row]]) + 1

    def vectors(self) -> Tensor | None:
        """Word vectors for the embedding, `(vocab_size, dim)`, or None where none were asked for."""
        if self._vectors_from is None or self._given_model is not None:
            return None
        if self._vectors is None:
            if self._vectors_from == "train":
                corpora = [(self._open("train").tokens, self._rows["train"])]
                identity: dict[str, Any] = {"base": self._base, "limit": [self._limit, self._split_seed]}
                if _UNLABELLED in self._find():
                    corpora.append((self._open(_UNLABELLED).tokens, self._rows[_UNLABELLED]))
                    identity["unlabelled"] = self._fingerprint(_UNLABELLED)
                self._vectors = train_word2vec(corpora, self.tokenizer, self._cache, identity, **self._word2vec)
            else:
                self._vectors = load_vectors(self._vectors_from, self.tokenizer, self._cache, self._split_seed)
        return self._vectors.matrix

    def loader(self, split: str, *, shuffle: bool = False) -> TextLoader:
        """Batches of a split for this process's rank, each epoch in another order to train.

        To evaluate, the order depends on `split_seed`, so that runs with other seeds compare even where only some of
        the batches are used.
        """
        trainer = self.trainer
        numbers = {"training rows" if split == "train" else f"{split} rows": self._numbers(split)}
        beside = self.beside() if shuffle and split == "train" else []
        rows = joined(self.texts(split), self.labels(split), numbers, beside, self.num_classes)
        return TextLoader(
            rows.texts,
            rows.labels,
            targets=rows.targets,
            numbers=rows.numbers,
            batch_size=self._batch_size if shuffle else self._eval_batch_size,
            max_tokens=self._max_tokens,
            shuffle=shuffle,
            seed=self._seed if shuffle else self._split_seed,
            repeat=bool(trainer and trainer.overfit_batches),  # type: ignore[attr-defined]
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )

    def train_dataloader(self) -> TextLoader:
        """Shuffled batches of the training split."""
        return self.loader("train", shuffle=True)

    def val_dataloader(self) -> TextLoader:
        """Batches of the validation split."""
        return self.loader("val")

    def test_dataloader(self) -> TextLoader:
        """Batches of the test split."""
        return self.loader("test")

    def _find(self) -> dict[str, Source]:
        """The splits there are, by our names: train, val, test, unlabelled."""
        if self._sources is None:
            place = (*self._place, self._cache)
            if self._synthetic is None:
                self._sources = choose_splits(self._names, *place, need_train=self._carves, delimiter=self._delimiter)
            else:
                made = [split for split in ("train", "val", "test") if self._names[split] is not False]
                self._sources = {split: self._synthetic.split(split) for split in made}
                if (texts := self._names[_UNLABELLED]) is not None:
                    named = {_UNLABELLED: texts}
                    self._sources |= choose_splits(named, *place, need_train=False, delimiter=self._delimiter)
            if self._pseudo_labelled is not None and self._carves:
                self._sources |= pseudo_labels.find(self._pseudo_labelled, self._sources, self._cache)
        return self._sources

    def _leave_out_secret_test(self) -> None:
        """Go without a test that nobody asked for where its labels are kept secret: none, or -1 in every row (GLUE)."""
        source, label = self._find().get("test"), self._columns[1]
        if self._names["test"] is not None or not isinstance(source, Split) or source.classes is not None:
            return

        def secret() -> bool:
            rows = source.read([label], allow_pickle=self._allow_pickle)
            return are_secret(rows, label, table_of(self.class_names, rows, label, self._wanted_classes))

        key = {"secret": self._fingerprint("test"), "names": self.class_names, **self._columns_key()}
        if self._cache.fact(key, secret):
            log.warning("the labels of the test split are not given: the run goes without a test")
            del self._find()["test"]
            self._fractions["test"] = 0.0  # nor does it take training rows for one in a run that is resumed

    def _numbers(self, split: str) -> NDArray[np.int64]:
        """Number of each text's row in its source, counted from 1."""
        return self._open(split).numbers[self._rows[split]] + 1

    def _fingerprint(self, split: str) -> str:
        return self._find()[split].fingerprint(self._cache)

    def _read(self, split: str) -> Rows:
        columns = self._columns[:1] if split == _UNLABELLED else self._columns
        return self._find()[split].read(columns, allow_pickle=self._allow_pickle)

    def _check(self, split: str, rows: Rows) -> Checked:
        """Rows with a text that has tokens and, but for unlabelled ones, a label of a known class."""
        text, label = self._columns
        return checked(
            rows,
            text,
            None if split == _UNLABELLED else label,
            known_label=lambda value: label_key(value) in self._table,
            known=", ".join(map(repr, self._table))[:200] or repr(self.class_names),
            wrong_text=self._wrong_text,
            on_bad_row=self._on_bad_row,
        )

    def _wrong_text(self, text: str) -> str | None:
        settings = self._tokenizer_settings
        kind = settings.get("kind", "basic_english") if self._given_model is None else self.tokenizer.kind
        return "has no token" if lacks_tokens(text, kind) else None

    def _learn(self) -> None:
        """Classes, validation rows and tokenizer from the training split, then its token ids."""
        shares = self.cut_off()
        key = {
            **self._key("train"),
            "tokenizer": self._tokenizer_settings,
            "carve": [shares, self._split_seed] if shares else None,
        }
        folder = self._entry("train", key, lambda draft: self._build_base(draft, shares))
        facts = json.loads((folder / "base.json").read_text())
        self.tokenizer = Tokenizer.from_json((folder / "tokenizer.json").read_text())
        self.class_names, self._table = facts["class_names"], facts["table"]
        self._base = folder.name
        for split in shares:
            self._encoded[split], self._rows[split] = self._encoded["train"], np.load(folder / f"{split}_rows.npy")
        self._rows["train"] = self._limited(np.load(folder / "train_rows.npy"))

    def cut_off(self) -> dict[str, float]:
        """Shares to carve off the training rows, for the splits that are not there."""
        if not self._carves:
            return {}
        return {split: share for split, share in self._fractions.items() if split not in self._find() and share}

    def _limited(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The training rows that `limit_train` leaves."""
        left = limited(rows, self._limit, self._split_seed)
        labels = self._encoded["train"].labels
        if lost := sorted({*labels[rows].tolist()} - {*labels[left].tolist()}):
            names = ", ".join(repr(self.class_names[label]) for label in lost)
            log.warning("data.limit_train=%d leaves no text of the classes %s to train on", self._limit, names)
        return left

    def _build_base(self, folder: Path, shares: Mapping[str, float]) -> None:
        rows = self._read("train")
        kept = None  # labels of rows that are left out make no classes
        if self._on_bad_row == "skip":
            kept = checked(rows, *self._columns, wrong_text=self._wrong_text, on_bad_row="skip", quiet=True).labels
        self.class_names, self._table = class_table(rows, self._columns[1], self._wanted_classes, kept)
        good = self._check("train", rows)
        labels = self._classes_of(good)
        present = np.unique(labels)
        if len(present) < 2:
            raise UserError(
                rows.origins[0].file,
                rule=f"has the label {self.class_names[int(present[0])]!r} in all {len(labels)} rows",
                remedy="a classifier needs texts of two classes",
            )
        parts = parted(labels, shares, self._split_seed)
        for split, members in parts.items():
            np.save(folder / f"{split}_rows.npy", members)
        train = parts["train"]
        self.tokenizer = Tokenizer.train((good.texts[row] for row in train.tolist()), **self._tokenizer_settings)
        (folder / "tokenizer.json").write_text(self.tokenizer.to_json(), encoding="utf-8")
        (folder / "base.json").write_text(json.dumps({"class_names": self.class_names, "table": self._table}))
        write_split(folder, good, labels, rows, self.tokenizer, self._columns[0])

    def _use_given_model(self) -> None:
        assert self._given_model is not None
        self.tokenizer, self.class_names = self._given_model
        self._base = content_key([self.tokenizer.key(), self.class_names])
        self._leave_out_secret_test()
        if self._carves:
            encoded = self._open("train")
            shares = self.cut_off()
            parts = parted(encoded.labels, shares, self._split_seed)
            for split in shares:
                self._encoded[split], self._rows[split] = encoded, parts[split]
            self._rows["train"] = self._limited(parts["train"])

    def _open(self, split: str) -> Encoded:
        """A split's token ids, made by the present tokenizer where the cache does not have them."""
        if split in self._encoded:
            return self._encoded[split]
        assert self._base is not None, "call setup first"
        if split not in self._find():
            raise UserError("split", split, f"must be one of {', '.join(self._find())}")

        def build(folder: Path) -> None:
            if split == _PSEUDO:
                parts = folder, self._find()[_PSEUDO], self.class_names, self.tokenizer
                pseudo_labels.write(*parts, on_bad_row=self._on_bad_row, allow_pickle=self._allow_pickle)
                return
            rows = self._read(split)
            if split != _UNLABELLED:
                self._table = table_of(self.class_names, rows, self._columns[1], self._wanted_classes)
            good = self._check(split, rows)
            write_split(folder, good, self._classes_of(good), rows, self.tokenizer, self._columns[0])

        key = {**self._key(split), "base": self._base, "labelled": split != _UNLABELLED}
        self._entry(split, {**key, "pseudo": True} if split == _PSEUDO else key, build)
        self._rows[split] = np.arange(len(self._encoded[split].labels))
        return self._encoded[split]

    def _key(self, split: str) -> dict[str, Any]:
        return {"rows": self._fingerprint(split), **self._columns_key()}

    def _columns_key(self) -> dict[str, Any]:
        classes = self._wanted_classes
        return {
            "family": self.family,
            "columns": self._columns,
            "classes": list(classes.items()) if isinstance(classes, dict) else classes,  # their order numbers them
            "bad": self._on_bad_row,
        }

    def _entry(self, split: str, key: dict[str, Any], build: Callable[[Path], None]) -> Path:
        """Open a split's cache entry; say again how many rows it lacks where they were left out by an earlier run."""
        built = []

        def record_and_build(folder: Path) -> None:
            built.append(split)
            build(folder)
            unchanged(self._find().get(split), key.get("rows"), self._cache)

        folder = self._cache.entry(key, record_and_build)
        self._encoded[split] = encoded = Encoded(folder)
        if not built:
            for reason, count in encoded.facts["skipped"].items():
                log.warning("skipped %d of %d rows of %s: %s", count, encoded.facts["rows"], split, reason)
        return folder

    def _classes_of(self, good: Checked) -> NDArray[np.int64]:
        if good.labels is None:
            return np.full(len(good.texts), -1, dtype=np.int64)
        table = {value: self._table[label_key(value)] for value in set(good.labels)}
        return np.array([table[value] for value in good.labels], dtype=np.int64)
