"""Errors that a user can fix, and what the operating system's errors mean."""

import difflib
import errno
from collections.abc import Iterable
from typing import Any, Final


class _Absent:
    def __repr__(self) -> str:
        return ""

    def __reduce__(self) -> str:
        return "ABSENT"  # the same object in another process


ABSENT: Final = _Absent()  # "no value to show", where None could be one


class UserError(ValueError):
    """A mistake that the user can fix. The commands print it in one line and exit with 2.

    Any other exception is a bug of this package: it keeps its stack, and the exit code is 1.

    The message reads `KEY RULE, got VALUE: REMEDY`, for example `data.batch_size must be at least 1, got 0: 32 is
    usual`.

    Args:
        key: what is wrong: the path of a setting, an option, a file. Empty where the rule is a sentence of its own.
        value: what was given; `ABSENT` where there is nothing to show or `rule` shows it.
        rule: what must hold, so that it can follow the key.
        remedy: what to do, empty where the rule says it.
    """

    def __init__(self, key: str, value: Any = ABSENT, rule: str = "", remedy: str = "") -> None:
        super().__init__(key, value, rule, remedy)
        self.key, self.value, self.rule, self.remedy = key, value, rule, remedy

    def __str__(self) -> str:
        """The message: key, rule, value, remedy."""
        text = " ".join(part for part in (self.key, self.rule) if part)
        if self.value is not ABSENT:
            text += f", got {self.value!r}"
        return f"{text}: {self.remedy}" if self.remedy else text

    def below(self, prefix: str) -> "UserError":
        """The same error with its key below `prefix`, for code that knows where a part of a config stands."""
        key = f"{prefix}.{self.key}" if prefix and self.key else prefix or self.key
        return UserError(key, self.value, self.rule, self.remedy)


_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EACCES: "ask for the right to use it, or name another place",
    errno.EPERM: "ask for the right to use it, or name another place",
    errno.EROFS: "name a place that can be written",
}


def reason(error: OSError) -> str:
    """Why the system refused, and where that helps what to do."""
    said = error.strerror or str(error) or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{said}: {remedy}" if remedy else said


def nearest(word: str, known: Iterable[str]) -> str:
    """`": did you mean X?"` for the known word most like this one, or an empty string."""
    match = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.5)
    return f": did you mean {match[0]}?" if match else ""
