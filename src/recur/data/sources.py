"""Where rows come from: a hub id, a folder laid out like a hub repository, files, text files in a folder a class.

Finding and reading are apart. `find_splits` says which files make which split; for a hub id and for a folder laid out
like a hub repository the `datasets` library decides that, so its README and naming rules hold. `Split.read` then reads
the rows and keeps where each came from, so that `checked` can name the file, row and line of a bad one. Files on
this machine are read in place: nothing is written beside them.

To add a kind of source, write a class with the methods of `Source` and return it from `find_splits`; `ZippedSplit` is
the shortest example.
"""

import glob
import hashlib
import os
import re
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

from recur.data.cache import TokenCache, content_key
from recur.data.checks import Column
from recur.data.hub import fingerprint_on_hub, read_on_hub, splits_on_hub
from recur.data.readers import SUFFIXES, Rows, class_rows, joined, log, read_file
from recur.data.repository import SPLIT_NAMES, find_in_repository, listing, says_its_splits, usual_name
from recur.data.tables import Files, as_file, is_table
from recur.errors import UserError

_IS_SPLIT = re.compile(rf"({'|'.join(SPLIT_NAMES)})\b")
_UNLABELLED_FOLDERS = ("unsup", "unsupervised", "unlabeled", "unlabelled")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_ZIP_LIMIT = 4 << 30  # bytes that a zip may unpack to: it is held in memory
_RACY_SECONDS = 2.0  # a file changed this recently can change again without its time stamp moving


class Source(Protocol):
    """What a split is read from: `Split`, `ZippedSplit`, a generated corpus, or `recur.data.corpus.Inline`."""

    def fingerprint(self, cache: TokenCache) -> str:
        """Hash of the content."""
        ...

    def read(self, columns: Sequence[Column] | None = None, *, allow_pickle: bool = False) -> Rows:
        """All rows."""
        ...


@dataclass(frozen=True)
class Split:
    """The files of one split, or a split of a hub data set.

    Attributes:
        files: paths; empty for a hub split.
        classes: class of each file, where folders are classes.
        hub: id, config name, revision and split name on the hub.
        class_names: names of integer labels by column, where the repository says.
        delimiter: between the fields of csv and tsv files; None for what their names say.
    """

    files: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    hub: tuple[str, str | None, str | None, str] | None = None
    class_names: Mapping[str, list[str]] = field(default_factory=dict)
    delimiter: str | None = None

    def fingerprint(self, cache: TokenCache) -> str:
        """Hash of the content; computed once, then kept for as long as sizes and times stay the same."""
        if self.hub is not None:
            return fingerprint_on_hub(self.hub)
        stats = [(os.path.abspath(file), os.stat(file)) for file in self.files]
        # The time of the last change of the entry too: tools that copy set that of the content to what it was.
        listing = [[name, state.st_size, state.st_mtime_ns, state.st_ctime_ns] for name, state in stats]
        if max(state.st_mtime for _, state in stats) > time.time() - _RACY_SECONDS:
            content = self._content()
        else:
            content = str(cache.fact({"content of": listing, "classes": self.classes}, self._content))
        if self.delimiter is not None:
            content = content_key([content, self.delimiter])
        if not self.class_names:
            return content
        # They are read from another file, whose content is in no hash above
        return content_key([content, {column: list(names) for column, names in self.class_names.items()}])

    def _content(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for index, file in enumerate(self.files):
            suffix = Path(file).suffix.lower()  # the same bytes mean other rows as csv than as txt
            kind = self.classes[index] if self.classes else suffix
            with open(file, "rb") as stream:
                inner = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16))
            digest.update(f"{kind}\0{inner.hexdigest()}\0".encode())
        return digest.hexdigest()

    def read(self, columns: Sequence[Column] | None = None, *, allow_pickle: bool = False) -> Rows:
        """Read the rows.

        Args:
            columns: the columns wanted, see `read_file`; None for all. A missing one is noticed by `Rows.column`.
            allow_pickle: load pickled pandas frames, which can run any code hidden in them.

        Raises:
            UserError: a file that cannot be read as what its name says.
        """
        if self.hub is not None:
            return read_on_hub(self.hub, columns)
        if self.classes is not None:
            rows = class_rows(self.files, self.classes)
        else:
            rows = joined(
                [read_file(file, columns, delimiter=self.delimiter, allow_pickle=allow_pickle) for file in self.files]
            )
        for name, names in self.class_names.items():
            rows.class_names.setdefault(name, names)
        return rows


@dataclass(frozen=True)
class ZippedSplit:
    """A split of a zip archive of text files in a folder a class; nothing is unpacked to disk.

    Attributes:
        archive: the zip file.
        members: names of the text files in it.
        classes: class of each.
    """

    archive: str
    members: tuple[str, ...]
    classes: tuple[str, ...]

    def fingerprint(self, cache: TokenCache) -> str:
        """Hash of the archive's content and of which of its files these are."""
        return content_key([Split((self.archive,)).fingerprint(cache), self.members])

    def read(self, columns: Sequence[Column] | None = None, *, allow_pickle: bool = False) -> Rows:
        """Read the rows: columns `text` and `label`.

        Raises:
            UserError: a damaged archive, an encrypted one, or one that unpacks to more than 4 GiB.
        """
        try:
            with zipfile.ZipFile(self.archive) as archive:
                if sum(archive.getinfo(name).file_size for name in self.members) > _ZIP_LIMIT:
                    raise UserError(self.archive, rule="unpacks to more than 4 GiB", remedy="unpack it to a folder")
                contents = [archive.read(name) for name in self.members]
        except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
            raise UserError(self.archive, rule=f"cannot be unpacked: {error}", remedy="unpack it to a folder") from None
        return class_rows([f"{self.archive}/{name}" for name in self.members], self.classes, contents)


@dataclass(frozen=True)
class JoinedSplits:
    """Several splits of one data set, one after the other: `train+unsupervised`, as on the hub.

    Attributes:
        parts: the splits.
    """

    parts: tuple[Source, ...]

    def fingerprint(self, cache: TokenCache) -> str:
        """Hash of the parts' content, in their order."""
        return content_key([part.fingerprint(cache) for part in self.parts])

    def read(self, columns: Sequence[Column] | None = None, *, allow_pickle: bool = False) -> Rows:
        """All rows; a column must be in every part."""
        return joined([part.read(columns, allow_pickle=allow_pickle) for part in self.parts])


def choose_splits(
    names: Mapping[str, Files | Literal[False] | None],
    path: str | None,
    subset: str | None,
    revision: str | None,
    cache: TokenCache,
    *,
    need_train: bool = True,
    delimiter: str | None = None,
    labelled: bool = True,
) -> dict[str, Source]:
    """The splits of a data set by our names: train, val, test, unlabelled.

    A file that is named for validation or the test is not trained on, though a pattern or folder of training texts has
    it as well.

    Args:
        names: for each of them a split of `path`, several joined by `+`, files, or a table; None finds a split of its
            usual name, or leaves it out; False leaves it out even where there is one.
        path: see `find_splits`; None where `names` gives files alone.
        subset: see `find_splits`.
        revision: see `find_splits`.
        cache: see `find_splits`.
        need_train: whether there must be a training split, since a model is to be trained on it.
        delimiter: see `Split`.
        labelled: see `find_splits`.

    Raises:
        UserError: no such file, no such split.
    """
    known = {} if path is None else find_splits(path, subset, revision=revision, cache=cache, labelled=labelled)
    splits: dict[str, Source] = {}
    by_name: dict[str, Split] = {}  # of files that are given
    # A split that is named, alone or as a part of a join, is not found a second time as another one.
    # Texts without labels may come from anywhere, and what is trained on is always found.
    given = [wanted for split, wanted in names.items() if split != "unlabelled" and isinstance(wanted, str)]
    taken = {part for wanted in given for part in (wanted, *wanted.split("+"))}
    free = {name: source for name, source in known.items() if name not in taken}
    has_test = names.get("test") is not None and names["test"] is not False
    for split, wanted in names.items():
        if wanted is True:
            raise UserError(f"data.{split}", wanted, "must be a split, a file, null or false")
        if wanted is False:
            continue
        if wanted is None:
            name = usual_name(split, known if split == "train" else free, has_test=has_test)
            if name is not None:
                splits[split] = known[name]
            elif (left := usual_name(split, known, has_test=has_test)) is not None:
                log.warning("data.%s: the split %s is in use already, so it is not read again", split, left)
        elif is_table(wanted):
            splits[split] = Split((as_file(wanted, f"data.{split}", cache),))
        elif isinstance(wanted, str) and wanted in known:
            splits[split] = known[wanted]
        elif isinstance(wanted, str) and known and all(part in known for part in wanted.split("+")):
            splits[split] = JoinedSplits(tuple(known[part] for part in wanted.split("+")))
        else:
            others = f"; {path} has the splits {', '.join(known)}" if known else ""
            splits[split] = by_name[split] = find_files(wanted, key=f"data.{split}", others=others)
    if need_train and "train" not in splits:
        raise UserError(
            "data.train", rule=f"must name a split of {path}", remedy=f"it has no 'train', only {', '.join(known)}"
        )
    for split in ("val", "test"):  # files that were found count as well where a pattern of training files has them
        if need_train and split in splits and (split in by_name or "train" in by_name):
            splits["train"] = without(splits["train"], files_of(splits[split]), f"data.{split}")
        if need_train and "unlabelled" in splits and split in by_name:
            apart = files_of(splits[split])
            splits["unlabelled"] = without(splits["unlabelled"], apart, f"data.{split}", "left out", "unlabelled")
    _keep_apart(splits, names)
    return splits if delimiter is None else {split: _delimited(source, delimiter) for split, source in splits.items()}


def _keep_apart(splits: dict[str, Source], names: Mapping[str, Files | Literal[False] | None]) -> None:
    """Leave files that are given for validation out of a test that is found by its name, and the other way round."""
    files: dict[str, set[str]] = {
        name: {os.path.realpath(file) for file in files_of(splits[name])} for name in ("val", "test") if name in splits
    }
    if len(files) < 2 or files["val"].isdisjoint(files["test"]):
        return
    for own, given in (("test", "val"), ("val", "test")):
        if names.get(own) is None and names.get(given) is not None:
            log.warning("data.%s: files of it are in use already, so they are not read again", own)
            left = _less(splits.pop(own), files[given])
            if left is not None:
                splits[own] = left
            return
    log.warning("data.val and data.test have files in common: the test chooses the weights that it measures")


def unchanged(source: Source | None, before: str | None, cache: TokenCache) -> None:
    """Refuse what was read while its files, if it is made of any, changed: it would be kept as what they held before.

    Args:
        source: that was read.
        before: its fingerprint from before that; None where none was taken.
        cache: see `Split.fingerprint`.

    Raises:
        UserError: they changed.
    """
    if source is not None and before is not None and files_of(source) and source.fingerprint(cache) != before:
        raise UserError("the data", rule="changed while it was read", remedy="start again")


def files_of(source: Source) -> list[str]:
    """The files that a split is made of, as far as it is made of whole ones."""
    if isinstance(source, JoinedSplits):
        return [file for part in source.parts for file in files_of(part)]
    return list(source.files) if isinstance(source, Split) else []


def without(
    train: Source, files: Sequence[str], key: str, how: str = "not trained on", name: str = "training"
) -> Source:
    """The training split, or another, less files that are given for something else.

    Args:
        train: the split.
        files: to leave out.
        key: the setting that gives them. Where nothing would remain beside those of a split that is measured, the
            training split stays as it is.
        how: what becomes of them, for the message.
        name: of the split, for the message.

    Raises:
        UserError: nothing would remain beside texts that a model labelled.
    """
    others = {os.path.realpath(file) for file in files}
    own = files_of(train)
    if not own or others.isdisjoint(map(os.path.realpath, own)):
        return train
    left = _less(train, others)
    if left is None and key == "data.pseudo_labelled":
        raise UserError(key, rule="names all files of the training split", remedy="name labelled texts in data.train")
    if left is None:
        log.warning("%s names the files of the %s split: its figures are of texts that were trained on", key, name)
        return train
    out = [file for file in own if os.path.realpath(file) in others]
    more = f" and {len(out) - 1} more" if len(out) > 1 else ""
    log.warning("%s names files of the %s split, which are %s: %s%s", key, name, how, out[0], more)
    return left


def _less(source: Source, others: Set[str]) -> Source | None:
    """A split less some files, None where nothing is left."""
    if isinstance(source, JoinedSplits):
        left = [part for part in (_less(part, others) for part in source.parts) if part is not None]
        return JoinedSplits(tuple(left)) if left else None
    if not isinstance(source, Split) or not source.files:
        return source
    kept = [os.path.realpath(file) not in others for file in source.files]
    classes = None if source.classes is None else tuple(compress(source.classes, kept))
    return replace(source, files=tuple(compress(source.files, kept)), classes=classes) if any(kept) else None


def _delimited(source: Source, delimiter: str) -> Source:
    if isinstance(source, JoinedSplits):
        return JoinedSplits(tuple(_delimited(part, delimiter) for part in source.parts))
    return replace(source, delimiter=delimiter) if isinstance(source, Split) and source.files else source


def absolute_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Data settings in which every file and folder that is there has its absolute path.

    A run keeps these, so that its data is found again from another working folder and after the run has been copied.

    Args:
        settings: keyword arguments of `SentimentData` or `LanguageData`.
    """
    bare_words = settings.get("path") is not None  # with a path, a bare word is the name of a split of it

    def resolved(value: Any, key: str) -> Any:
        if isinstance(value, (list, tuple)):
            return [resolved(one, key) for one in value]
        if not isinstance(value, str) or "\0" in value or (key == "vectors" and value == "train"):
            return value
        if bare_words and key not in ("path", "vectors", "pseudo_labelled") and not re.search(r"[./*?]", value):
            return value
        place = os.path.abspath(os.path.expanduser(value))
        return place if os.path.exists(place) or glob.glob(place, recursive=True) else value

    keys = ("path", "train", "val", "test", "unlabelled", "pseudo_labelled", "vectors")
    return {key: resolved(value, key) if key in keys else value for key, value in settings.items()}


def find_splits(
    path: str | os.PathLike[str],
    name: str | None = None,
    *,
    revision: str | None = None,
    cache: TokenCache,
    labelled: bool = True,
) -> Mapping[str, Source]:
    """Which splits a hub id, folder or file holds, by split name.

    Args:
        path: hub id (`stanfordnlp/imdb`), a folder laid out like a hub repository, a folder of text files a class
            (`train/pos/*.txt`, or `pos/*.txt` alone), a `.zip` of such folders, or one file.
        name: which subset of a repository with several (the hub's "config").
        revision: branch, tag or commit of a hub repository.
        cache: keeps the answer for as long as the folder's listing stays the same.
        labelled: whether classes are wanted; else files beside folders and within folders of folders are text as well.

    Raises:
        UserError: nothing there, nothing readable in it, or no such subset.
    """
    text = os.fspath(path)
    place = Path(os.path.expanduser(text))
    if "\0" in text:
        raise UserError("data.path", text, "must be a path without NUL characters")
    if place.is_file():
        return _find_in_zip(place) if place.suffix.lower() == ".zip" else {"train": Split((str(place),))}
    if not place.exists():
        if not _HUB_ID.fullmatch(text):
            raise UserError("data.path", text, "must be a file, a folder or a hub id", "no such file or folder")
        return {split: Split(hub=hub) for split, hub in splits_on_hub(text, name, revision, cache).items()}
    splits = _find_class_folders(place, labelled)
    if splits:
        return splits
    files = listing(place)
    if not files:
        raise UserError("data.path", text, "must be a folder with files", "it is empty")
    key = {"splits of": str(place.resolve()), "name": name, "listing": files}
    raw = cache.fact(key, lambda: find_in_repository(place, name, cache.folder))
    return {
        split: Split(tuple(str(place / file) for file in facts["files"]), class_names=facts["class_names"])
        for split, facts in raw.items()
    }


def find_files(
    pattern: str | os.PathLike[str] | Sequence[str],
    folder: str | os.PathLike[str] | None = None,
    *,
    key: str = "data.train",
    others: str = "",
) -> Split:
    """A split made of files given by name; `*`, `?` and, for folders within folders, `**` match.

    Several names make one split. A file that is named twice, or by a link as well, is read once: rows that are there
    twice would be trained on and validated on.

    Args:
        pattern: names of files.
        folder: where relative names begin.
        key: the setting that gives them, for the message.
        others: what else could have been given, for the message.

    Raises:
        UserError: no such file.
    """
    patterns = [os.fspath(pattern)] if isinstance(pattern, str | os.PathLike) else list(pattern)
    files: list[str] = []
    for one in patterns:
        place = os.path.expanduser(os.path.join(folder, one) if folder else one)
        if "\0" in place:
            raise UserError(key, place, "must be a path without NUL characters")
        matches = [place] if os.path.isfile(place) else sorted(filter(os.path.isfile, glob.glob(place, recursive=True)))
        if not matches and os.path.isdir(place):
            raise UserError(key, place, "must name a file", f"set data.path to the folder{others}")
        if not matches and os.path.islink(place):
            raise UserError(key, place, f"must name a file: it is a link to {os.readlink(place)!r}, which is not there")
        if not matches:
            raise UserError(key, place, "must name a file", f"no such file{others}")
        files += matches
    if not files:
        raise UserError(key, patterns, "must name at least one file")
    once: dict[str, str] = {}
    for file in files:
        once.setdefault(os.path.realpath(file), file)
    if len(once) < len(files):
        log.warning("%s names %d files more than once: each is read once", key, len(files) - len(once))
    return Split(tuple(once.values()))


# ---- finding splits
def _entries(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)


def _find_class_folders(folder: Path, labelled: bool) -> dict[str, Split]:
    """Splits of a folder with one subfolder of text files a class, or nothing where it is laid out otherwise."""
    entries = _entries(folder)
    named = {entry.name: entry.path for entry in entries if entry.is_dir() and entry.name.lower() in SPLIT_NAMES}
    splits: dict[str, Split] = {}
    for name, path in sorted(named.items()):
        for split, own in _class_split(name, path, labelled).items():
            former = splits.get(split)  # texts without labels may lie in several
            splits[split] = own if former is None else _joined(former, own)
    if splits or named:
        return splits
    beside = [entry.name for entry in entries if not entry.is_dir() and entry.name.lower().endswith(SUFFIXES)]
    if any(not name.lower().endswith(".txt") or _IS_SPLIT.match(name.lower()) for name in beside):
        return {}
    if says_its_splits(folder) or (beside and not labelled):
        return {}
    splits = _class_split("train", str(folder), labelled)
    if beside and splits:
        if len(set(splits["train"].classes or ())) < 2:
            return {}
        log.warning("the folders of %s are classes: %s beside them is not read", folder, ", ".join(beside)[:200])
    return splits


def _joined(one: Split, other: Split) -> Split:
    return Split(one.files + other.files, (one.classes or ()) + (other.classes or ()))


def _class_split(split: str, folder: str, labelled: bool) -> dict[str, Split]:
    """A split with the class folders of one folder, and those of unlabelled texts; nothing where they are none."""
    inside: dict[str, list[str]] = {}
    below: dict[str, set[str]] = {}  # folders of texts within each
    for entry in _entries(folder):
        if not entry.is_dir():
            continue
        texts: list[str] = []
        for where, folders, names in os.walk(entry.path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            inner = [os.path.join(where, name) for name in sorted(names) if name[0] != "." and _is_text(name)]
            texts += filter(os.path.isfile, inner)
            if inner and where != entry.path:
                below.setdefault(entry.name, set()).add(os.path.relpath(where, entry.path).split(os.sep)[0])
            if any(name.lower() in SPLIT_NAMES for name in folders):
                return {}
        if any(_IS_SPLIT.match(Path(text).stem) for text in texts[:4]):
            return {}  # train.txt and test.txt in a folder are splits, not texts of a class
        inside[entry.name] = texts
    pairs = [(text, name) for name, texts in inside.items() for text in texts]
    known = [pair for pair in pairs if pair[1].lower() not in _UNLABELLED_FOLDERS]
    unlabelled = [pair for pair in pairs if pair[1].lower() in _UNLABELLED_FOLDERS]
    if not known or (below and not (labelled and len({name for _, name in known}) > 1 and _are_classes(below))):
        return {}  # one folder of folders is laid out otherwise
    splits = {split: Split(tuple(text for text, _ in known), tuple(name for _, name in known))}
    if unlabelled:
        splits["unsupervised"] = Split(tuple(text for text, _ in unlabelled), tuple(name for _, name in unlabelled))
    return splits


def _are_classes(below: Mapping[str, set[str]]) -> bool:
    """Whether folders are classes, and those within them are not: these are single, or the same in several."""
    return all(
        len(inner) == 1 or any(inner & other for name, other in below.items() if name != top)
        for top, inner in below.items()
    )


def _is_text(name: str) -> bool:
    return name.lower().endswith(".txt")


def _find_in_zip(file: Path) -> dict[str, ZippedSplit]:
    """Splits of a zip of `pos/*.txt`, `train/pos/*.txt` or either below one folder that holds them all."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = dict.fromkeys(archive.namelist())  # a file that was replaced is listed twice
            texts = [PurePosixPath(name) for name in members if name.lower().endswith(".txt")]
    except zipfile.BadZipFile:
        raise UserError("data.path", str(file), "must be a zip archive: it is damaged or something else") from None
    texts = [text for text in texts if not any(part.startswith((".", "__MACOSX")) for part in text.parts)]
    # One folder may hold all others; what holds a text directly is its class only where no folder above tells classes
    folders = {text.parts[:-1] for text in texts if len(text.parts) > 1}
    above = next((n for n, names in enumerate(zip(*folders, strict=False)) if len(set(names)) > 1), None)
    above = min(map(len, folders), default=0) if above is None else above
    below: dict[str, set[str]] = {}
    for names in folders:
        if len(names) > above + 1:
            below.setdefault(names[above], set()).add(names[above + 1])
    deep = not _are_classes(below)
    grouped: dict[str, list[tuple[str, str]]] = {}
    of_splits = [text for text in texts if _split_part(text) is not None]
    for text in sorted(of_splits or texts):
        place = _split_part(text)
        rest = text.parts[above if place is None else place + 1 :]
        if len(text.parts) < 2 or (len(rest) < 2 and len(folders) > 1):
            continue  # a README beside the folders
        label = rest[0] if len(rest) > 1 and (place is not None or not deep) else text.parts[-2]
        split = "train" if place is None else text.parts[place]
        split = "unsupervised" if label.lower() in _UNLABELLED_FOLDERS else split
        grouped.setdefault(split, []).append((str(text), label))
    if not grouped:
        raise UserError("data.path", str(file), "must be a zip of text files in a folder a class, such as pos/1.txt")
    return {
        split: ZippedSplit(str(file), tuple(name for name, _ in pairs), tuple(label for _, label in pairs))
        for split, pairs in grouped.items()
    }


def _split_part(text: PurePosixPath) -> int | None:
    """Which folder of a text's path is named like a split and holds folders of classes."""
    places = [place for place, name in enumerate(text.parts[:-2]) if name.lower() in SPLIT_NAMES]
    return places[-1] if places else None


def is_one_split(file: str | os.PathLike[str]) -> bool:
    """Whether a file is read as the one split `train`, as all are but archives that have others.

    Raises:
        UserError: a damaged archive, or one without texts.
    """
    place = Path(os.path.expanduser(file))
    return place.is_file() and (place.suffix.lower() != ".zip" or set(_find_in_zip(place)) == {"train"})
