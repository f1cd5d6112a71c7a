"""Limits on settings that both data modules share. Keys are given as a user types them, below `data`."""

from collections.abc import Callable, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from recur.errors import UserError, nearest

Count = Annotated[int, Ge(1)]
Seed = Annotated[int, Ge(0)]
OnBadRow = Literal["error", "skip"]
Column = str | int  # a name, or a number from 1 in a csv or tsv file without a line of names


def hold(function: Callable[..., Any], given: Mapping[str, Any], prefix: str = "data") -> None:
    """Hold arguments against the limits in a signature: `Annotated[int, Ge(1)]`, `Literal`, either of them or None.

    A command has held them against the same signature before; here the callers from Python are held to it.

    Args:
        function: whose signature.
        given: arguments by name; others are passed over.
        prefix: what stands before the names as a user types them.

    Raises:
        UserError: the first that does not fit.
    """
    for name, annotation in get_type_hints(function, include_extras=True).items():
        if name in given:
            _hold_one(f"{prefix}.{name}", given[name], annotation)


def _hold_one(key: str, value: Any, annotation: Any) -> None:
    if get_origin(annotation) in (Union, UnionType):
        parts = [part for part in get_args(annotation) if part is not type(None)]
        if value is None or len(parts) > 1:
            return
        annotation = parts[0]
    if get_origin(annotation) is Literal:
        words = [str(word) for word in get_args(annotation)]
        if value not in get_args(annotation):
            raise UserError(key, value, f"must be {', '.join(words[:-1])} or {words[-1]}")
    elif get_origin(annotation) is Annotated:
        kind, *limits = get_args(annotation)
        fits = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
        if not fits or not all(holds(value) for holds, _ in map(_limit, limits)):
            number = "a whole number" if kind is int else "a number"
            first, *others = (words for _, words in map(_limit, limits))
            rule = " and ".join([first, *(words.removeprefix("of ") for words in others)])
            raise UserError(key, value, f"must be {number} {rule}")


def _limit(limit: Any) -> tuple[Callable[[Any], bool], str]:
    """Whether a value keeps a limit of `annotated_types`, and the limit in words."""
    if isinstance(limit, Ge):
        return lambda value: value >= limit.ge, f"of at least {_shown(limit.ge)}"
    if isinstance(limit, Le):
        return lambda value: value <= limit.le, f"of at most {_shown(limit.le)}"
    if isinstance(limit, Gt):
        return lambda value: value > limit.gt, f"above {_shown(limit.gt)}"
    assert isinstance(limit, Lt)
    return lambda value: value < limit.lt, f"below {_shown(limit.lt)}"


def _shown(bound: Any) -> str:
    return f"{bound:,}" if isinstance(bound, int) else str(bound)


def columns(**named: Column) -> None:
    """Refuse columns that are neither names nor numbers, two settings that name the same column, and a mixture.

    Raises:
        UserError: with the key below `data`.
    """
    for key, column in named.items():
        if isinstance(column, int):
            _hold_one(f"data.{key}", column, Count)
        elif not isinstance(column, str) or not column:
            raise UserError(f"data.{key}", column, "must be the name of a column, or its number from 1")
    if len({isinstance(column, int) for column in named.values()}) > 1:
        raise UserError(f"data.{next(iter(named))}", rule="and data.label_column must both be names or both be numbers")
    seen: dict[Column, str] = {}
    for key, column in named.items():
        if column in seen:
            raise UserError(f"data.{key}", column, f"must be another column than data.{seen[column]}")
        seen[column] = key


def one_delimiter(delimiter: str | None, key: str = "data.delimiter") -> str | None:
    """What parts the fields of csv and tsv files: one character, a tab also as people type it in a shell.

    Args:
        delimiter: as given; None for a comma and a tab.
        key: the setting or option that gives it, for the message.

    Raises:
        UserError: it can part no fields.
    """
    if delimiter == "\\t":
        return "\t"
    if delimiter is not None and (not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n'):
        raise UserError(key, delimiter, "must be null or one character", "such as ; or \\t")
    return delimiter


def fractions(val_fraction: float, test_fraction: float) -> None:
    """Refuse shares that leave nothing to train on.

    Raises:
        UserError: they add up to 1 or more.
    """
    if val_fraction + test_fraction >= 1:
        shares = f"{val_fraction} and {test_fraction}"
        raise UserError("data.val_fraction and data.test_fraction", rule=f"must add up to less than 1, got {shares}")


def one_source(made: str | None, **named: object) -> None:
    """Refuse data that is made, or given as it is, and named too: one of the two would be passed over in silence.

    Args:
        made: setting that makes the data, `synthetic` or `text`; None where it is named.
        **named: the settings that name data.

    Raises:
        UserError: one of these is given beside it.
    """
    for key, value in named.items():
        if made is not None and value is not None and value is not False:
            other = "choose data=text_files or data=files" if made == "synthetic" else "set data.text=null"
            raise UserError(f"data.{key}", str(value), f"names data, and data.{made} would be read in its place", other)


def one_use(unlabelled: object, vectors: str | None, trained_on: bool, limit: int | None) -> None:
    """Refuse texts without labels for nothing, and to train on such where there are none.

    Args:
        unlabelled: what names them.
        vectors: see `SentimentData`.
        trained_on: whether they are trained on.
        limit: on how many.

    Raises:
        UserError: either; or a limit on what is not trained on.
    """
    if unlabelled is None and trained_on:
        raise UserError("data.train_on_unlabelled", True, "needs texts without labels", "name them in data.unlabelled")
    if limit is not None and not trained_on:
        rule = "does nothing without data.train_on_unlabelled=true"
        raise UserError("data.limit_unlabelled", limit, rule, "leave it out")
    if unlabelled is not None and vectors != "train" and not trained_on:
        rule = "does nothing without data.vectors=train or data.train_on_unlabelled=true"
        raise UserError("data.unlabelled", str(unlabelled), rule, "leave it out")


def known_keys(key: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Refuse a key of a mapping that is not known.

    Raises:
        UserError: with the key below `data`.
    """
    unknown = sorted(str(name) for name in set(given) - set(known))
    if unknown:
        hint = nearest(unknown[0], known).removeprefix(": ")
        raise UserError(
            f"data.{key}.{unknown[0]}", rule=f"is no setting of data.{key}, only {', '.join(known)}", remedy=hint
        )
