"""Tokenizers of other packages: a function from a text to its words, by an entry point.

    [project.entry-points."recur.tokenizers"]
    NAME = "PACKAGE.MODULE:FUNCTION"        # def FUNCTION(text: str) -> list[str]

`data.tokenizer.kind=NAME` takes it: its words are counted, numbered and looked up as those of `whitespace` are, and
joined by spaces. A run keeps the name and the vocabulary; where it is used, the package must be installed.
"""

import importlib
from collections.abc import Callable
from functools import cache
from importlib import metadata

from recur.data.cache import source_key
from recur.errors import UserError

GROUP = "recur.tokenizers"
KINDS = ("basic_english", "whitespace", "character", "bpe")  # of `recur.data.text`, which no other package replaces


@cache
def names() -> tuple[str, ...]:
    """The tokenizers that installed packages declare, without those that are called as one of this package."""
    return tuple(sorted({point.name for point in metadata.entry_points(group=GROUP)} - {*KINDS}))


@cache
def splitter(name: str) -> Callable[[str], list[str]]:
    """The function of a tokenizer, which checks what it is given back.

    Raises:
        UserError: it cannot be imported, or is no function.
    """
    key, point = "data.tokenizer.kind", next(iter(metadata.entry_points(group=GROUP, name=name)))
    try:
        function = point.load()
    except (ImportError, AttributeError) as error:
        raise UserError(key, name, f"must name a function that can be imported: {point.value}", str(error)) from error
    if not callable(function):
        raise UserError(key, name, f"must name a function, and {point.value} is none")

    def split(text: str) -> list[str]:
        words = function(text)
        if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
            rule = (
                f"must be a tokenizer whose function gives a list of words, none of them empty; {point.value} does not"
            )
            raise UserError(key, name, rule)
        return words

    return split


@cache
def version(name: str) -> str:
    """Hash of the file that the function is in, so that no token made by an earlier version is taken from the cache."""
    point = next(iter(metadata.entry_points(group=GROUP, name=name)))
    try:
        # What is no function of a file, such as a compiled pattern's method, is made in the module that names it
        known = source_key(point.load()) or source_key(importlib.import_module(point.module))
    except (ImportError, AttributeError):  # it is not there
        known = None
    return known or point.value  # where it is compiled its name must do
