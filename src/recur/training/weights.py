"""Weights of other runs to begin with: `init_from=RUN` or `init_from=[RUN,RUN]`.

What has the same name and shape in both models is copied: from a run of the same family usually all, from a language
model into a classifier the word vectors and the recurrent layers of one direction, the backward one where the language
model was trained with `data.reverse=true`. Word vectors go from token to token, since the two vocabularies differ;
those of tokens that the other run lacks stay random, of the same size. A classifier's head goes from class to class by
their names, and stays random for classes that the other run lacks. What several runs have comes from the first.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recur.errors import UserError
from recur.runs.run import Run

# Tensors with a row for each token, which are copied by token.
_BY_TOKEN = ("net.embedding.weight", "net.decoder.weight", "net.decoder.bias")
# Tensors with a row for each class, or with one for the second of two, which are copied by class.
_BY_CLASS = ("net.head.weight", "net.head.bias")
_BACKWARD = "_reverse"  # what names of a bidirectional layer's backward weights end with


@dataclass(frozen=True)
class Copied:
    """What was copied.

    Attributes:
        names: of the tensors.
        of: how many tensors the model has.
        tokens: whose rows were copied.
        vocabulary: how many tokens the model has.
        classes: how many classes have a head that was copied, and how many there are; None where no run had a head.
    """

    names: tuple[str, ...]
    of: int
    tokens: int
    vocabulary: int
    classes: tuple[int, int] | None = None

    def __str__(self) -> str:
        """The same in words, on one line."""
        heads = "" if self.classes is None else " and the head of {} of {} classes".format(*self.classes)
        vectors = f"the vectors of {self.tokens:,} of {self.vocabulary:,} tokens"
        return f"{len(self.names)} of {self.of} tensors, with {vectors}{heads}"


def copy_from(paths: str | Path | Sequence[str | Path], task: Any, vocabulary: Sequence[str]) -> Copied:
    """Copy what fits from one run or several into a task.

    Args:
        paths: run folders or checkpoints.
        task: the model that is about to be trained.
        vocabulary: its token of each id.

    Raises:
        UserError: no run there, or nothing in it fits that the runs before it had not given.
    """
    state, copied, tokens, classes = task.state_dict(), dict[str, None](), 0, list[int]()
    for path in [paths] if isinstance(paths, str | Path) else paths:
        source = Run.open(path)
        rows = None if _BY_CLASS[0] in copied else _rows_by_class(task, source.task)
        names, by_token = _copy_one(source, path, task, state, vocabulary, copied, rows)
        copied |= dict.fromkeys(names)
        tokens = max(tokens, by_token)
        if rows is not None:
            classes.append(2 * len(rows) if task.num_classes == 2 else len(rows))
    heads = (max(classes), task.num_classes) if classes else None
    return Copied(tuple(copied), len(state), tokens, len(vocabulary), heads)


def _rows_by_class(task: Any, other: Any) -> list[tuple[int, int, int]] | None:
    """Which rows of a classifier's head are which of another's, and with what sign; None where one has no such head."""
    heads = [part.state_dict().get(_BY_CLASS[0]) for part in (task, other)]
    names = [list(getattr(part, "class_names", ())) for part in (task, other)]
    for head, known in zip(heads, names, strict=True):
        if head is None or len(head) != (1 if len(known) == 2 else len(known)):
            return None
    ours, theirs = names
    if heads[0].shape[1:] != heads[1].shape[1:] or (len(ours) == 2) != (len(theirs) == 2):
        return []
    if len(ours) == 2:  # one logit, of the second
        return [(0, 0, 1 if ours == theirs else -1)] if set(ours) == set(theirs) else []
    return [(row, theirs.index(name), 1) for row, name in enumerate(ours) if name in theirs]


@torch.no_grad()
def _copy_one(
    source: Run,
    path: str | Path,
    task: Any,
    state: dict[str, Tensor],
    vocabulary: Sequence[str],
    done: Container[str],
    rows: list[tuple[int, int, int]] | None,
) -> tuple[list[str], int]:
    """Copy what is not done yet; of a head these rows.

    Returns:
        Names of the tensors, and the tokens whose rows were copied.
    """
    place = {token: index for index, token in enumerate(source.tokenizer.vocabulary)}
    pairs = [(index, place[token]) for index, token in enumerate(vocabulary) if token in place]
    ours, theirs = (torch.tensor([pair[side] for pair in pairs], dtype=torch.int64) for side in (0, 1))
    given, by_token, copied = source.task.state_dict(), 0, list[str]()
    if _reads_backwards(source) and task.family != "language":
        if not any(name.endswith(_BACKWARD) for name in state):
            rule = "reads from the end of a text, and this model has no direction that does"
            raise UserError("init_from", str(path), rule, "set model.net.bidirectional=true")
        given = {name + _BACKWARD * name.startswith("net.recurrent."): tensor for name, tensor in given.items()}
    filled = set[int]()  # an embedding and a decoder that are tied are one tensor with two names
    for name, tensor in state.items():
        other = given.get(name)
        if other is None or name in done:
            continue
        if tensor.data_ptr() in filled and tensor.numel():
            copied.append(name)
            continue
        before = len(copied)
        if name in _BY_TOKEN:
            if tensor.shape[1:] == other.shape[1:] and pairs:
                tensor[ours] = other[theirs].to(tensor)
                _bring_to_length(tensor, ours)
                copied.append(name)
                by_token = max(by_token, len(pairs) * (tensor.dim() == 2))
        elif name in _BY_CLASS and rows is not None:
            for row, its, sign in rows:
                tensor[row] = sign * other[its].to(tensor)
            copied += [name] * bool(rows)
        elif tensor.shape == other.shape and _is_weight(name):
            tensor.copy_(other)
            copied.append(name)
        if len(copied) > before:
            filled.add(tensor.data_ptr())
    if set(copied) <= {"net.decoder.bias"}:  # the size of the vocabulary alone says nothing
        raise UserError(
            "init_from",
            str(path),
            "must have a tensor of the same name and shape" + " that no run before it has" * bool(done),
            "give this model its sizes: " + _sizes(given),
        )
    return copied, by_token


def _reads_backwards(run: Run) -> bool:
    return run.family == "language" and bool(run.config["data"].get("reverse"))


def _bring_to_length(vectors: Tensor, copied: Tensor) -> None:
    """Give random word vectors the mean size of those that were copied, beside which they could be very long."""
    others = torch.ones(len(vectors), dtype=torch.bool)
    others[copied] = False
    if vectors.dim() == 2 and others.any() and vectors[others].any():
        vectors[others] *= vectors[copied].square().mean().sqrt() / vectors[others].square().mean().sqrt()


def _is_weight(name: str) -> bool:
    return name.startswith("net.") and not name.startswith("net.ngrams.")  # those are hashes of other token ids


def _sizes(state: dict[str, Tensor]) -> str:
    shown = [f"{name} {tuple(tensor.shape)}" for name, tensor in state.items() if _is_weight(name)]
    return ", ".join(shown[:3])
