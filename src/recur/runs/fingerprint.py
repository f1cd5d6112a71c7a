"""What a run was trained on, in a few numbers, so that a resumed run notices other data."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from recur.data.families import LabelledTexts
from recur.data.language import LanguageData
from recur.data.sentiment import SentimentData
from recur.errors import UserError

Fingerprint = dict[str, dict[str, Any]]
BESIDE = ("pseudo-labelled", "unlabelled")  # parts of texts that are trained on and are in no split


def fingerprint(data: Any) -> Fingerprint:
    """The size and a hash of each split's contents, and of the vocabulary.

    Args:
        data: a data module, set up.

    Returns:
        by split: the number of `rows` or `tokens`, a hash of the `tokens` and, with labels, one of the `labels`; and
        the hash of the tokenizer as `vocabulary`.
    """
    parts: Fingerprint = {"vocabulary": {"hash": _hash(data.tokenizer.to_json().encode())}}
    for split in data.splits:
        if isinstance(data, LabelledTexts):
            parts[split] = _labelled(data.texts(split), data.labels(split))
        else:
            parts[split] = _running(data.tokens(split))
    for part in data.beside() if isinstance(data, SentimentData) else ():
        parts[part.name] = _labelled(part.texts, part.targets)
    return parts


def begins_with(data: LanguageData, before: Mapping[str, Any] | None) -> bool:
    """Whether the training text begins with the one that a run was trained on so far.

    Args:
        data: set up, with the tokenizer of then.
        before: the part `train` of that run's fingerprint.
    """
    number = before.get("tokens") if before is not None else None
    if type(number) is not int or number < 1:
        return False
    tokens = data.tokens("train")
    return _running(tokens[-number:] if data.reverse else tokens[:number]) == before


def _running(tokens: Any) -> dict[str, Any]:
    return {"tokens": len(tokens), "text": _hash(np.ascontiguousarray(tokens).data.cast("B"))}


def _labelled(texts: Any, labels: Any) -> dict[str, Any]:
    digest = hashlib.blake2b(digest_size=16)
    for row in range(len(texts)):
        digest.update(texts[row].data.cast("B"))
        digest.update(b"\n")
    known = {} if labels is None else {"labels": _hash(labels.data.cast("B"))}
    return {"rows": len(texts), "texts": digest.hexdigest(), **known}


def _hash(content: Any) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def compare(
    before: Mapping[str, Any],
    now: Fingerprint,
    where: str,
    remedy: str = "accept_data_change=true goes on all the same",
) -> None:
    """Refuse other data than a run was begun with.

    Args:
        before: the fingerprint that the run kept.
        now: of the data as it is.
        where: the run, for the message.
        remedy: what to do about it.

    Raises:
        UserError: says what is different.
    """
    for part in BESIDE:
        if part in now and part not in before:
            raise _changed(where, f"there were no {part} texts", remedy)
    for split in dict.fromkeys([*before, *now]):
        then, present = before.get(split), now.get(split)
        if then == present or not isinstance(then, Mapping):
            continue
        if present is None:
            raise _changed(where, f"there is no {split} split any more", remedy)
        for key, value in then.items():
            if present.get(key) != value:
                sizes = f": {value:,} then, {present.get(key):,} now" if isinstance(value, int) else ""
                what = f"the {key} of the {split} split" if key != "hash" else f"the {split}"
                raise _changed(where, f"{what} changed{sizes}", remedy)


def _changed(where: str, what: str, remedy: str) -> UserError:
    return UserError("data", rule=f"is not what {where} was trained on so far ({what})", remedy=remedy)
