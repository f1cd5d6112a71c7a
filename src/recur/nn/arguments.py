"""Arguments of constructors: the error of one that refuses an argument, and a class that remembers its own."""

import contextlib
import inspect
from typing import Any, Self


class ArgumentError(ValueError):
    """An argument that a module cannot be built with.

    Args:
        argument: its name.
        rule: what must hold, and what was given, so that it can follow the name.
    """

    def __init__(self, argument: str, rule: str) -> None:
        super().__init__(argument, rule)
        self.argument, self.rule = argument, rule

    def __str__(self) -> str:
        """Name and rule."""
        return f"{self.argument} {self.rule}"


def _that_names_positionals(cls: type) -> type:
    """The class, or of one that passes `*arguments` on to its base that base."""
    for own in cls.__mro__:
        parameters = inspect.signature(own.__init__).parameters.values()  # type: ignore[misc]
        if not any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
            return own
    return cls


class Remembering:
    """Keeps the arguments that an object is made with, so that what was built by hand can be written down.

    Attributes:
        given: the arguments by name, as they were given; empty for a copy, which is made without any.
    """

    given: dict[str, Any]

    def __new__(cls, *positional: Any, **named: Any) -> Self:
        """Note the arguments; `__init__` refuses those that do not fit."""
        made = super().__new__(cls)
        given: dict[str, Any] = {}
        with contextlib.suppress(TypeError):
            signature = inspect.signature(cls.__init__)
            given = dict(signature.bind(made, *positional, **named).arguments)
            for name, parameter in signature.parameters.items():
                if parameter.kind is parameter.VAR_KEYWORD:
                    given |= given.pop(name, {})
                elif parameter.kind is parameter.VAR_POSITIONAL:
                    base = inspect.signature(_that_names_positionals(cls).__init__)  # type: ignore[misc]
                    passed = base.bind_partial(made, *given.pop(name, ())).arguments
                    given |= dict(list(passed.items())[1:])  # without self
            del given[next(iter(signature.parameters))]  # self
        object.__setattr__(made, "given", given)  # a module takes attributes only once it is initialised
        return made
