"""Optuna's samplers and pruners by `_target_`: `optuna.samplers.CmaEsSampler`, `optuna.pruners.PercentilePruner`, ...

What a config names is a class of `optuna.samplers` or `optuna.pruners`, or of a package that the user trusts
(`recur.runs.trust`), and nothing else, wherever it was typed. It is built and tried on a study in memory before the
first job starts: a sampler that lacks a package, or that cannot search these settings, is refused then.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from recur.errors import UserError
from recur.runs.build import build, resolve
from recur.runs.trust import SEARCH, how_to_trust, may_build

_KINDS = {"sampler": "BaseSampler", "pruner": "BasePruner"}


def check(node: Any, path: str) -> None:
    """Refuse what names anything but a sampler or a pruner.

    Args:
        node: settings, plain containers.
        path: where they stand, for the message.

    Raises:
        UserError: names what may not be built.
    """
    if isinstance(node, Mapping):
        target = node.get("_target_")
        if target is not None and not may_build(str(target), SEARCH):
            known = ", ".join(name.rstrip(".") for name in SEARCH)
            raise UserError(
                f"{path}._target_",
                target,
                f"must be a class of {known}, or of a package that you trust",
                how_to_trust(str(target)) if str(target).partition(".")[0] != "optuna" else "there is no such class",
            )
        for key, value in node.items():
            check(value, f"{path}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            check(value, f"{path}[{index}]")


def make(
    node: Mapping[str, Any], kind: str, seed: int | None = None, seeded: Callable[[int], int] = lambda seed: seed
) -> Any:
    """Build a sampler or a pruner.

    Args:
        node: `_target_` and its arguments, plain containers.
        kind: `sampler` or `pruner`.
        seed: for a sampler that takes one and is given none.
        seeded: what a sampler's seed becomes where a search goes on.

    Raises:
        UserError: a class that may not be built, that is another thing, or that refuses its arguments.
    """
    import optuna

    path = f"hydra.sweeper.{kind}"
    check(node, path)
    built = build(_seeded(node, path, seed, seeded), path)
    base = getattr(optuna.samplers if kind == "sampler" else optuna.pruners, _KINDS[kind])
    if not isinstance(built, base):
        raise UserError(f"{path}._target_", node["_target_"], f"must be a {kind} of Optuna's")
    return built


def _seeded(node: Any, path: str, seed: int | None, seeded: Callable[[int], int]) -> Any:
    """The settings with the seed, wherever a class takes one, so that the same search can be made again."""
    import optuna

    if not isinstance(node, Mapping):
        return node
    inner = {key: _seeded(value, f"{path}.{key}", seed, seeded) for key, value in node.items()}
    if seed is None or "_target_" not in node:
        return inner
    target = resolve(node["_target_"], path)
    if "seed" in inspect.signature(target).parameters:
        given = inner.setdefault("seed", seed)
        # The place in a grid or a sequence is that of the study, and the seed says which grid or sequence.
        planned = isinstance(target, type) and issubclass(
            target, (optuna.samplers.GridSampler, optuna.samplers.QMCSampler)
        )
        if type(given) is int and not planned:
            inner["seed"] = seeded(given)
    return inner


def try_out(sampler: Any, directions: Sequence[str], distributions: Mapping[str, Any], path: str) -> None:
    """Let a sampler choose a few settings in a study in memory.

    Args:
        sampler: changed by this; use a fresh one for the search.
        directions: `maximize` or `minimize` for each objective.
        distributions: of the settings that are searched.
        path: of the sampler's setting, for the message.

    Raises:
        UserError: it lacks a package, or does not search such settings or several objectives.
    """
    import optuna

    study = optuna.create_study(sampler=sampler, directions=[*directions])  # type: ignore[list-item]
    study.stop = lambda: None  # type: ignore[method-assign]  # a grid that is complete calls it
    target = type(sampler).__name__
    try:
        for number in range(3):
            trial = study.ask(dict(distributions))
            study.tell(trial, [math.sin(number + 1)] * len(directions))
    except ImportError as error:
        name = error.name or "a package"
        raise UserError(path, target, f"needs {name}, which is not installed", f"pip install {name}") from None
    except (ValueError, TypeError, RuntimeError, LookupError, NotImplementedError) as error:
        raise UserError(path, target, "cannot search these settings", " ".join(str(error).split())) from None


def grid_is_begun(study: Any, node: Any) -> bool:
    """Whether a grid has no point left that no trial has: Optuna's sampler would give one a second time.

    Args:
        study: whose trials count.
        node: the sampler's config.
    """
    import optuna

    if not isinstance(study.sampler, optuna.samplers.GridSampler):
        return False
    given = node.get("search_space") if isinstance(node, Mapping) else None
    grid = None if given is None else {name: list(values) for name, values in given.items()}
    begun = set()
    for trial in study.get_trials(deepcopy=False):
        if "grid_id" in trial.system_attrs and trial.system_attrs["search_space"] == grid:
            begun.add(trial.system_attrs["grid_id"])
    return grid is not None and len(begun) >= math.prod(map(len, grid.values()))
