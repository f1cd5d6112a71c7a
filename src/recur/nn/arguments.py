"""The error of a constructor that refuses an argument."""


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
