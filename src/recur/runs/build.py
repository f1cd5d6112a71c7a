"""Building what a config names, and whose mistake it is when that fails.

A node with a `_target_` names a class or function; its other keys are the arguments, and the nodes among them are
built first. `_partial_: true` gives a callable that takes the rest of the arguments later, `_args_` lists positional
ones. This is what `hydra.utils.instantiate` does, with two differences: an error names the place in the config, and
plain values stay plain.
"""

import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from recur.errors import UserError
from recur.nn.arguments import ArgumentError

_GROUPS = ("data", "model", "optimizer", "scheduler", "trainer", "callbacks", "logger")
_OURS_THAT_RAISE_USER_ERRORS = "recur."
_RAISES_PLAIN_ERRORS = "recur.nn."  # imports torch alone


def resolve(target: object, path: str = "") -> Callable[..., Any]:
    """The class or function that a dotted name stands for.

    Args:
        target: such as `recur.nn.classifier.Classifier`.
        path: of the node that names it, for the message.

    Raises:
        UserError: there is no such name, or it cannot be called.
    """
    key = f"{path}._target_".lstrip(".")
    parts = str(target).split(".")
    named: Any = None
    length = 0
    for length in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:length])
        try:
            named = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise UserError(key, target, "must name a class or function", f"no module {error.name}") from error
            continue
        except (ValueError, TypeError):  # an empty part
            continue
        break
    for part in parts[length:] if named is not None else ():
        named = getattr(named, part, None)
    if not callable(named):
        raise UserError(key, target, "must name a class or function", "there is no such name")
    return named


class Part:
    """A class or function with some of its arguments; called with the others, it builds.

    Args:
        called: what is called in the end.
        path: of its node in the config.
        arguments: those that are given.
    """

    def __init__(self, called: Callable[..., Any], path: str, *positional: Any, **arguments: Any) -> None:
        self.called, self.path = called, path
        self.positional, self.arguments = positional, arguments

    def __call__(self, *positional: Any, **arguments: Any) -> Any:
        """Build it."""
        return _call(self.called, self.path, (*self.positional, *positional), {**self.arguments, **arguments})


def build(node: Any, path: str = "") -> Any:
    """Build a config node and all that is below it.

    Args:
        node: plain containers and values.
        path: of the node in the config, for messages.

    Raises:
        UserError: a name that is none, or arguments that what it names refuses.
    """
    if isinstance(node, (list, tuple)):
        return [build(value, f"{path}[{index}]") for index, value in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    inner = {
        str(key): build(value, f"{path}.{key}".lstrip(".")) for key, value in node.items() if not _is_ours(str(key))
    }
    if "_target_" not in node:
        return inner
    called = resolve(node["_target_"], path)
    positional = tuple(build(value, path) for value in node.get("_args_", ()))
    if node.get("_partial_"):
        return Part(called, path, *positional, **inner)
    return _call(called, path, positional, inner)


def _is_ours(key: str) -> bool:
    return key in ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")


def _call(called: Callable[..., Any], path: str, positional: tuple[Any, ...], arguments: dict[str, Any]) -> Any:
    with contextlib.suppress(ValueError):  # no signature that can be read
        signature = inspect.signature(called)
        try:
            signature.bind(*positional, **arguments)
        except TypeError as error:
            raise UserError(path, rule=f"does not fit {_name(called)}", remedy=str(error)) from error
    with errors_of(called, path):
        return called(*positional, **arguments)


@contextlib.contextmanager
def errors_of(called: Callable[..., Any], path: str) -> Iterator[None]:
    """Take an error of what a config names for the user's, with its place in the config.

    Classes of this package raise `UserError` for what a user can fix, except for those of `recur.nn`, which import
    torch alone; libraries raise errors of their own. So anything else that a class of ours raises is a bug of ours.
    """
    try:
        yield
    except UserError as error:
        raise error if error.key.partition(".")[0] in _GROUPS or not path else error.below(path) from error.__cause__
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, ImportError) as error:
        raise _refusal(called, path, error) from error
    except Exception as error:
        if type(error).__name__ != "MisconfigurationException":  # Lightning's for what a user can fix
            raise
        raise _refusal(called, path, error) from error


def _refusal(called: Callable[..., Any], path: str, error: Exception) -> Exception:
    module = f"{getattr(called, '__module__', '')}."
    if module.startswith(_OURS_THAT_RAISE_USER_ERRORS) and not module.startswith(_RAISES_PLAIN_ERRORS):
        return error
    if isinstance(error, ArgumentError):
        return UserError(f"{path}.{error.argument}".lstrip("."), rule=error.rule)
    return UserError(path, remedy=str(error) or type(error).__name__)


def _name(called: Callable[..., Any]) -> str:
    return f"{getattr(called, '__module__', '')}.{getattr(called, '__qualname__', called)}"
