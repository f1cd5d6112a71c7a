"""Data sets of the hub, through the `datasets` library: which splits there are, what was read, and the rows."""

import contextlib
import logging
import re
import socket
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from recur.data.cache import TokenCache
from recur.data.checks import Column
from recur.data.readers import Origin, Rows, numbered
from recur.data.repository import quiet_datasets
from recur.errors import UserError

log = logging.getLogger(__name__)
Place = tuple[str, str | None, str | None, str]  # id, config name, revision, split
_here_alone = False  # whether the hub is not asked: see `without_network`


@contextlib.contextmanager
def without_network(active: bool = True) -> Iterator[None]:
    """Take hub data sets from this machine's cache alone: a config of unknown origin may not have anything fetched.

    Args:
        active: whether to do so; False does nothing.
    """
    global _here_alone
    before, _here_alone = _here_alone, active or _here_alone
    try:
        yield
    finally:
        _here_alone = before


@contextlib.contextmanager
def _hub() -> Iterator[Any]:
    """The `datasets` library, set to work offline where the hub is not to be asked."""
    datasets = quiet_datasets()
    if not _here_alone:
        yield datasets
        return
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield datasets
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _hub_commit(path: str, revision: str | None) -> str | None:
    """The commit that a hub data set's revision stands for today, or None where the hub does not say.

    Without a network the libraries would wait and retry for half a minute before each look into their own cache: then
    they are set to work offline.
    """
    import huggingface_hub

    huggingface_hub.logging.set_verbosity_error()
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    if _here_alone or huggingface_hub.constants.HF_HUB_OFFLINE:
        return None
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
        log.debug("the hub does not say the commit of %s: %s", path, error)
        return None
    return commit


def splits_on_hub(path: str, name: str | None, revision: str | None, cache: TokenCache) -> dict[str, Place]:
    """Where each split of a hub data set is, by its name.

    Args:
        path: hub id.
        name: which subset of several.
        revision: branch, tag or commit.
        cache: keeps the names.

    Raises:
        UserError: it cannot be reached, or there is none.
    """
    commit = _hub_commit(path, revision)

    def split_names() -> list[str]:
        try:
            with _hub() as datasets:
                known = datasets.get_dataset_split_names(path, name, revision=commit or revision)
            return [str(split) for split in known]
        except Exception as error:  # no network, no such id, gated, several configs: each of another kind
            if _here_alone:
                rule = "is no file or folder here, and a run's own config may not have it fetched from the hub"
                raise UserError("data.path", path, rule, f"to fetch it, type data.path={path} too") from None
            message = " ".join(str(error).split())
            raise UserError(
                "data.path",
                path,
                f"must be a file, a folder or a hub id: it is no file or folder, and as a hub id: {message[:300]}",
                "set data.path to a local copy where the hub cannot be reached",
            ) from None

    names = split_names() if commit is None else cache.fact({"hub": path, "name": name, "at": commit}, split_names)
    return {split: (path, name, commit or revision, split) for split in names}


def fingerprint_on_hub(hub: Place) -> str:
    """The commit of a hub data set, or, offline, the hash under which `datasets` keeps its copy."""
    path, name, revision, split = hub
    if revision is None or not re.fullmatch(r"[0-9a-f]{40}", revision):
        with _hub() as datasets:
            revision = str(datasets.load_dataset_builder(path, name, revision=revision).hash)
    return f"hub {path} {name} {revision} {split}"


def read_on_hub(hub: Place, columns: Sequence[Column] | None) -> Rows:
    """All rows of a split of a hub data set; see `recur.data.sources.Split.read`."""
    datasets = quiet_datasets()
    path, name, revision, split = hub
    if numbered(columns):
        raise UserError(path, rule="is no csv or tsv file, whose columns could be numbered", remedy="give their names")
    with _hub():
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
