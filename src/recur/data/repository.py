"""A folder laid out like a hub repository: which of its files make which split."""

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recur.data.cards import check_card
from recur.data.readers import SUFFIXES
from recur.errors import UserError

# Usual names of our splits in small letters, the likeliest first; `eval` is a test, as in `datasets`, where no other is
USUAL = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing", "eval"),
}
SPLIT_NAMES = tuple(dict.fromkeys(name for names in USUAL.values() for name in names))


def usual_name(split: str, known: Iterable[str], *, has_test: bool = False) -> str | None:
    """Which of a data set's splits is our `train`, `val` or `test`, by the usual names in any case; None for none.

    Args:
        split: ours.
        known: names of the data set's.
        has_test: whether there is a test besides these, so that `eval` is none.
    """
    by_name = {name.lower(): name for name in sorted(known)}  # of two, the one in small letters
    usual = list(USUAL.get(split, ()))
    if split == "val" and not has_test and by_name.keys().isdisjoint(USUAL["test"][:-1]):
        usual.remove("eval")
    return next((by_name[name] for name in usual if name in by_name), None)


def listing(folder: Path) -> list[list[Any]]:
    """Name, size and time of every file in a folder, hidden ones aside."""
    files: list[list[Any]] = []
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") or name == ".huggingface.yaml":  # which says what the splits are
                path = os.path.join(where, name)
                state = os.stat(path)
                if stat.S_ISREG(state.st_mode):
                    files.append([os.path.relpath(path, folder), state.st_size, state.st_mtime_ns])
    return files


def says_its_splits(folder: Path) -> bool:
    """Whether a folder has a README that lists the files of its splits."""
    readme = folder / "README.md"
    return readme.is_file() and bool(
        re.search(r"^(configs|data_files):", readme.read_text(errors="replace"), re.MULTILINE)
    )


def quiet_datasets() -> Any:
    """The `datasets` library, without its progress bars and its messages about where it caches."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    return datasets


def find_in_repository(folder: Path, name: str | None, cache: Path) -> dict[str, Any]:
    """Let `datasets` read the README or the file names; gives plain values that the cache can keep."""
    check_card(folder)
    datasets = quiet_datasets()
    try:
        where = os.path.abspath(folder)  # it takes the last name of the path for the data's, and "." has none
        builder = datasets.load_dataset_builder(where, name, cache_dir=str(cache / "datasets"))
    except Exception as error:  # it raises its own kinds, FileNotFoundError and ValueError for the same mistakes
        if name is not None and not (folder / "README.md").is_file() and not any(p.is_dir() for p in folder.iterdir()):
            return find_in_repository(folder, None, cache)  # plain files, which are no subset of anything
        message = " ".join(str(error).split())[:300] + ("" if name is None else ": or set data.subset=null")
        raise UserError("data.path", str(folder), "must be a folder whose splits are clear", message) from None
    files = builder.config.data_files or {}
    names = {
        column: list(feature.names)
        for column, feature in (builder.info.features or {}).items()
        if isinstance(feature, datasets.ClassLabel)
    }
    root = str(folder.resolve())
    splits = {}
    for split, paths in files.items():
        inside = {os.path.realpath(path): _place(path, root) for path in reversed(paths)}  # each file once
        splits[str(split)] = {"files": list(inside.values())[::-1], "class_names": names}
    if not says_its_splits(folder):
        _move_capitals(folder, splits, names)
    if not splits:
        raise UserError("data.path", str(folder), f"must hold data files with a suffix of {' '.join(SUFFIXES)}")
    return splits


def _place(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> str:
    """A file's place below a folder: by its own name, which has a suffix, also where it is a link to one without."""
    where, name = os.path.split(path)
    return os.path.relpath(os.path.join(os.path.realpath(where), name), root)


def _capital_split(file: Path) -> str | None:
    """The split that a folder or the name of a file says in other than small letters; None for none.

    In the name of a table any word counts, in that of a text, which may be a title, nothing but the whole name.
    """
    folders = [part for part in file.parts[:-1] if part.lower() in SPLIT_NAMES]
    if folders:
        word = folders[-1]
    else:
        words = [word for word in re.split(r"[-._0-9]+|of", file.stem) if word]
        if file.suffix.lower() == ".txt" and len(words) > 1:
            return None
        word = next((word for word in reversed(words) if word.lower() in SPLIT_NAMES), "")
    if word == word.lower():
        return None
    return next(
        (names[0] for names in USUAL.values() if word.lower() in names and word.lower() != "eval"), word.lower()
    )


def _move_capitals(folder: Path, splits: dict[str, Any], class_names: dict[str, list[str]]) -> None:
    """Give files with names such as `Test.csv` or `Test/1.csv` to their split: `datasets` knows small letters alone.

    It takes them for training files or, beside a `train.csv`, for none.
    """
    suffixes = {Path(file).suffix.lower() for facts in splits.values() for file in facts["files"]}
    root = folder.resolve()
    for listed, *_ in listing(folder):
        split = _capital_split(Path(listed))
        if split is None or Path(listed).suffix.lower() not in suffixes:
            continue
        file = _place(folder / listed, root)  # as `datasets` found it
        for facts in splits.values():
            facts["files"] = [other for other in facts["files"] if other != file]
        splits.setdefault(split, {"files": [], "class_names": class_names})["files"].append(file)
    for split in [split for split, facts in splits.items() if not facts["files"]]:
        del splits[split]
