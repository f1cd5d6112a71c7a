"""Every private name of Python's `logging` that is used."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def handlers_apart() -> Iterator[None]:
    """Keep the process's handlers from being closed where logging is configured anew, which closes all that it knows.

    A handler that was closed and is still in use loses its records in many ways: a file of mode `w` is not opened
    again, what holds records back has lost its target, and none of them is flushed when the process ends.
    """
    known, named = logging._handlerList[:], dict(logging._handlers)  # type: ignore[attr-defined]
    logging._handlerList.clear()  # type: ignore[attr-defined]
    logging._handlers.clear()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        logging._handlerList[:0] = known  # type: ignore[attr-defined]
        logging._handlers.update(named)  # type: ignore[attr-defined]
