"""Where rows come from: a hub id, a folder laid out like a hub repository, files, a folder of text files a class.

Finding and reading are apart. `find_splits` says which files make which split; for a hub id and for a folder laid out
like a hub repository the `datasets` library decides that, so its README and naming rules hold. `Split.read` then reads
the rows and remembers where each came from, so that `checked` can name the file, row and line of a bad one. Files on
this machine are read in place: nothing is written beside them.
"""

import glob
import hashlib
import os
import re
import socket
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from recur.data.cache import TokenCache
from recur.data.readers import SUFFIXES, Origin, Rows, _joined, _read_class_files, log, read_file

_SPLIT_FOLDERS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval")
_UNLABELLED_FOLDERS = ("unsup", "unsupervised", "unlabeled", "unlabelled")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_RACY_SECONDS = 2.0  # a file changed this recently can change again without its time stamp moving


@dataclass(frozen=True)
class Split:
    """The files of one split, or a split of a hub data set.

    Attributes:
        files: paths; empty for a hub split.
        classes: class of each file, where folders are classes.
        hub: id, config name, revision and split name on the hub.
        class_names: names of integer labels by column, where the repository says.
    """

    files: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    hub: tuple[str, str | None, str | None, str] | None = None
    class_names: Mapping[str, list[str]] = field(default_factory=dict)

    def fingerprint(self, cache: TokenCache) -> str:
        """Hash of the content; read once, then remembered for as long as sizes and times stay the same."""
        if self.hub is not None:
            return _hub_fingerprint(self.hub)
        stats = [(os.path.abspath(file), os.stat(file)) for file in self.files]
        listing = [[name, state.st_size, state.st_mtime_ns] for name, state in stats]
        if max(state.st_mtime for _, state in stats) > time.time() - _RACY_SECONDS:
            return self._content()
        return str(cache.remember({"content of": listing, "classes": self.classes}, self._content))

    def _content(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for index, file in enumerate(self.files):
            suffix = Path(file).suffix.lower()  # the same bytes mean other rows as csv than as txt
            kind = self.classes[index] if self.classes else suffix
            with open(file, "rb") as stream:
                inner = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16))
            digest.update(f"{kind}\0{inner.hexdigest()}\0".encode())
        return digest.hexdigest()

    def read(self, columns: Sequence[str] | None = None, *, allow_pickle: bool = False) -> Rows:
        """Read the rows.

        Args:
            columns: the columns wanted; None for all. A missing one is noticed by `Rows.column`.
            allow_pickle: load pickled pandas frames, which can run any code hidden in them.

        Raises:
            ValueError: a file that cannot be read as what its name says.
        """
        if self.hub is not None:
            return _read_hub(self.hub, columns)
        if self.classes is not None:
            rows = _read_class_files(self.files, self.classes)
        else:
            rows = _joined([read_file(file, columns, allow_pickle=allow_pickle) for file in self.files])
        for name, names in self.class_names.items():
            rows.class_names.setdefault(name, names)
        return rows


def find_splits(
    path: str | os.PathLike[str], name: str | None = None, *, revision: str | None = None, cache: TokenCache
) -> dict[str, Split]:
    """Which splits a hub id, folder or file holds, by split name.

    Args:
        path: hub id (`stanfordnlp/imdb`), a folder laid out like a hub repository, a folder of text files a class
            (`train/pos/*.txt`, or `pos/*.txt` alone), or one file.
        name: config name of a repository with several.
        revision: branch, tag or commit of a hub repository.
        cache: remembers what was found for as long as the folder's listing stays the same.

    Raises:
        ValueError: nothing there, nothing readable in it, or no such config.
    """
    text = os.fspath(path)
    place = Path(text).expanduser()
    if place.is_file():
        return {"train": Split((str(place),))}
    if not place.exists():
        if not _HUB_ID.fullmatch(text):
            raise ValueError(f"no such file or folder: {text!r}")
        return _find_on_hub(text, name, revision, cache)
    found = _find_class_folders(place)
    if found:
        return found
    listing = _listing(place)
    if not listing:
        raise ValueError(f"folder {text!r} is empty")
    key = {"splits of": str(place.resolve()), "name": name, "listing": listing}
    raw = cache.remember(key, lambda: _find_in_repository(place, name, cache.folder))
    return {
        split: Split(tuple(str(place / file) for file in found["files"]), class_names=found["class_names"])
        for split, found in raw.items()
    }


def find_files(pattern: str | os.PathLike[str] | Sequence[str], folder: str | os.PathLike[str] | None = None) -> Split:
    """A split made of files given by name; `*` and `?` match, and several names make one split.

    Raises:
        ValueError: no such file.
    """
    patterns = [os.fspath(pattern)] if isinstance(pattern, str | os.PathLike) else list(pattern)
    files: list[str] = []
    for one in patterns:
        place = os.path.expanduser(os.path.join(folder, one) if folder else one)
        matches = [place] if os.path.isfile(place) else sorted(filter(os.path.isfile, glob.glob(place)))
        if not matches and os.path.isdir(place):
            raise ValueError(f"{place!r} is a folder: name a file, or set data.path to the folder")
        if not matches and os.path.islink(place):
            raise ValueError(f"{place!r} is a link to {os.readlink(place)!r}, which is not there")
        if not matches:
            raise ValueError(f"no such file: {place!r}")
        files += matches
    if not files:
        raise ValueError("a split needs at least one file, got an empty list")
    return Split(tuple(files))


# ---- finding splits
def _listing(folder: Path) -> list[list[Any]]:
    """Name, size and time of every file in a folder, hidden ones aside."""
    found: list[list[Any]] = []
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                path = os.path.join(where, name)
                state = os.stat(path)
                if stat.S_ISREG(state.st_mode):
                    found.append([os.path.relpath(path, folder), state.st_size, state.st_mtime_ns])
    return found


def _entries(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        return sorted((entry for entry in found if entry.name[0] != "."), key=lambda entry: entry.name)


def _find_class_folders(folder: Path) -> dict[str, Split]:
    """Splits of a folder with one subfolder of text files a class, or nothing where it is laid out otherwise."""
    inner = {entry.name: entry.path for entry in _entries(folder) if entry.is_dir()}
    splits = {name: path for name, path in inner.items() if name.lower() in _SPLIT_FOLDERS}
    found: dict[str, Split] = {}
    for name, path in sorted(splits.items()):
        found.update(_class_split(name, path))
    if found or splits or any(entry.name.lower().endswith(SUFFIXES) for entry in _entries(folder)):
        return found
    readme = folder / "README.md"
    if readme.is_file() and re.search(r"^(configs|data_files):", readme.read_text(errors="replace"), re.MULTILINE):
        return {}
    return _class_split("train", str(folder))


def _class_split(split: str, folder: str) -> dict[str, Split]:
    labelled: list[tuple[str, str]] = []
    unlabelled: list[tuple[str, str]] = []
    for entry in _entries(folder):
        if not entry.is_dir():
            continue
        texts = [inner.path for inner in _entries(entry.path) if inner.name.endswith(".txt") and inner.is_file()]
        if any(re.match(rf"({'|'.join(_SPLIT_FOLDERS)})\b", Path(text).stem) for text in texts[:4]):
            return {}  # train.txt and test.txt in a folder are splits, not texts of a class
        (unlabelled if entry.name.lower() in _UNLABELLED_FOLDERS else labelled).extend((t, entry.name) for t in texts)
    found = {}
    if labelled:
        found[split] = Split(tuple(text for text, _ in labelled), tuple(name for _, name in labelled))
        if unlabelled:
            found["unsupervised"] = Split(tuple(text for text, _ in unlabelled), tuple(name for _, name in unlabelled))
    return found


def _quiet_datasets() -> Any:
    """The `datasets` library, without its progress bars and its chatter about where it caches."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    return datasets


def _find_in_repository(folder: Path, name: str | None, cache: Path) -> dict[str, Any]:
    """Let `datasets` read the README or the file names; gives plain values to remember."""
    datasets = _quiet_datasets()
    try:
        builder = datasets.load_dataset_builder(str(folder), name, cache_dir=str(cache / "datasets"))
    except Exception as error:  # it raises its own kinds, FileNotFoundError and ValueError for the same mistakes
        message = " ".join(str(error).split())
        raise ValueError(f"cannot tell the splits of folder {str(folder)!r}: {message[:300]}") from None
    files = builder.config.data_files or {}
    names = {
        column: list(feature.names)
        for column, feature in (builder.info.features or {}).items()
        if isinstance(feature, datasets.ClassLabel)
    }
    root = str(folder.resolve())
    found = {}
    for split, paths in files.items():
        inside = [os.path.relpath(os.path.realpath(path), root) for path in paths]
        found[str(split)] = {"files": inside, "class_names": names}
    if not found:
        raise ValueError(f"folder {str(folder)!r} holds no data file with a suffix of {' '.join(SUFFIXES)}")
    return found


def _hub_commit(path: str, revision: str | None) -> str | None:
    """The commit that a hub data set's revision stands for today, or None where the hub does not say.

    Without a network the libraries would wait and retry for half a minute before each look into their own cache: then
    they are told that they are offline.
    """
    import huggingface_hub

    huggingface_hub.logging.set_verbosity_error()
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    host = urlsplit(huggingface_hub.constants.ENDPOINT).hostname
    try:
        if not getproxies():
            socket.getaddrinfo(host, None)
        commit: str | None = huggingface_hub.HfApi().dataset_info(path, revision=revision, timeout=20).sha
    except socket.gaierror:
        huggingface_hub.constants.HF_HUB_OFFLINE = True
        import datasets

        datasets.config.HF_HUB_OFFLINE = True
        return None
    except Exception as error:  # no such id, gated, refused: `datasets` says it better
        log.debug("the hub does not tell the commit of %s: %s", path, error)
        return None
    return commit


def _find_on_hub(path: str, name: str | None, revision: str | None, cache: TokenCache) -> dict[str, Split]:
    commit = _hub_commit(path, revision)

    def split_names() -> list[str]:
        datasets = _quiet_datasets()
        try:
            return [str(split) for split in datasets.get_dataset_split_names(path, name, revision=commit or revision)]
        except Exception as error:  # no network, no such id, gated, several configs: each of another kind
            message = " ".join(str(error).split())
            raise ValueError(
                f"{path!r} is no file or folder here, and as a hub id: {message[:300]}: "
                "set data.path to a local copy where the hub cannot be reached"
            ) from None

    names = split_names() if commit is None else cache.remember({"hub": path, "name": name, "at": commit}, split_names)
    return {split: Split(hub=(path, name, commit or revision, split)) for split in names}


def _hub_fingerprint(hub: tuple[str, str | None, str | None, str]) -> str:
    """The commit of a hub data set, or, offline, the hash under which `datasets` keeps its copy."""
    path, name, revision, split = hub
    if revision is None or not re.fullmatch(r"[0-9a-f]{40}", revision):
        revision = str(_quiet_datasets().load_dataset_builder(path, name, revision=revision).hash)
    return f"hub {path} {name} {revision} {split}"


def _read_hub(hub: tuple[str, str | None, str | None, str], columns: Sequence[str] | None) -> Rows:
    datasets = _quiet_datasets()
    path, name, revision, split = hub
    data = datasets.load_dataset(path, name, revision=revision, split=split)
    wanted = [column for column in data.column_names if columns is None or column in columns]
    rows = Rows(
        {column: data[column][:] for column in wanted},
        list(data.column_names),
        [Origin(f"{path} split {split}", 0, len(data))],
    )
    for column in wanted:
        if isinstance(data.features[column], datasets.ClassLabel):
            rows.class_names[column] = list(data.features[column].names)
    return rows
