"""What a run, a checkpoint or a sweep of unknown origin may make this program do: be used, and nothing more.

A config names what is to be built, and whatever it names is called. What the user types is the user's own; a config
that lies in a run folder or a checkpoint is not. It may name the classes that this project's own configs name, torch's
optimizers and schedules, and nothing else.
"""

import importlib
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# An entry that ends with a dot stands for all that is defined in that package.
MODEL = ("recur.tasks.", "recur.nn.", "torch.optim.")
DATA = (
    "recur.data.sentiment.SentimentData",
    "recur.data.language.LanguageData",
    "recur.data.synthetic.SyntheticReviews",
    "recur.data.synthetic.SyntheticText",
)
RUN = (
    *MODEL,
    *DATA,
    "recur.training.",
    "lightning.pytorch.Trainer",
    "lightning.pytorch.callbacks.LearningRateMonitor",
    "lightning.pytorch.loggers.CSVLogger",
    "lightning.pytorch.loggers.TensorBoardLogger",
)
_NAME = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+")
_HYDRA_WRITES = ("config.yaml", "hydra.yaml", "overrides.yaml")
_PARTS = ("data", "model", "optimizer", "scheduler", "trainer", "callbacks", "logger", "seed", "monitor", "mode")
# Settings of Hydra's own that a recorded command may hold. Others can name programs, machines or folders of configs.
_OWN_SETTINGS = re.compile(
    r"hydra/(launcher|sweeper)=|hydra\.sweep(er)?\.|hydra\.launcher\.(gpus|gpus_per_job|jobs_per_gpu|cpu_slots|threads"
    r"|fail_fast|grace_seconds|retries|cpus_per_job|jobs_at_once|cluster)="
)
_RESOLVERS = ("hydra", "now", "oc.env", "oc.select")  # none of them makes a config out of a text


def may_build(target: str, allowed: Sequence[str]) -> bool:
    """Whether `target` names a class or function that is defined where one of `allowed` says.

    A prefix alone proves nothing: `recur.tasks.sentiment.torch.load` begins well.
    """
    package = next((one for one in allowed if target == one or (one.endswith(".") and target.startswith(one))), None)
    if package is None or not _NAME.fullmatch(target):
        return False
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return False
    if package == "torch.optim.":
        from torch.optim import Optimizer
        from torch.optim.lr_scheduler import LRScheduler

        return inspect.isclass(found) and issubclass(found, (Optimizer, LRScheduler))
    imported = package.endswith(".") and not f"{getattr(found, '__module__', '')}.".startswith(tuple(allowed))
    return (inspect.isclass(found) or inspect.isfunction(found)) and not imported


def check_targets(
    node: Any, path: str, allowed: Sequence[str] = MODEL, *, typed: Sequence[str] = (), resolved: bool = True
) -> None:
    """Look at everything that a config of unknown origin would build.

    Args:
        node: plain containers.
        path: where they stand in the whole, for messages.
        allowed: what may be built.
        typed: overrides of the user, who may name whatever he likes.
        resolved: whether interpolations are refused: in a config that was resolved once there are none, and they
            could make a `_target_` out of a text.

    Raises:
        ValueError: names what may not be built.
    """
    if isinstance(node, dict):
        target = node.get("_target_")
        if target is not None and not may_build(str(target), allowed) and not _is_typed(f"{path}._target_", typed):
            raise ValueError(
                f"{path}._target_ is {target!r}: a run may build nothing but this package's classes and torch's "
                f"optimizers and schedules"
            )
        for key, value in node.items():
            check_targets(value, f"{path}.{key}" if path else str(key), allowed, typed=typed, resolved=resolved)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            check_targets(value, f"{path}[{index}]", allowed, typed=typed, resolved=resolved)
    elif isinstance(node, str) and resolved and "${" in node:
        raise ValueError(f"{path} is {node[:80]!r}: an interpolation in a config that was resolved when it was written")


def _is_typed(path: str, typed: Sequence[str]) -> bool:
    keys = [word.partition("=")[0].lstrip("+~") for word in typed]
    return any(path == key or path.startswith(f"{key}.") for key in keys if key)


def check_config(config: dict[str, Any], typed: Sequence[str], where: str = "the run's config") -> None:
    """Look at the whole config of a run that is to go on.

    Args:
        config: plain containers, before or after interpolations are resolved; both have to be looked at.
        typed: overrides of the user.
        where: what to call it.

    Raises:
        ValueError: it would build what it may not, or load pickles.
    """
    try:
        check_targets(config, "", RUN, typed=typed, resolved=False)
    except ValueError as error:
        name = str(error).partition(" is ")[0].lstrip(".")
        raise ValueError(f"{where}: {str(error).lstrip('.')}; if you trust it, type {name}=... as well") from None
    data = config.get("data")
    if isinstance(data, dict) and data.get("allow_pickle") and not _is_typed("data.allow_pickle", typed):
        raise ValueError(
            f"{where}: data.allow_pickle=true lets a data file run any code: if you trust it, type it again"
        )


def check_run_folder(folder: Path, typed: Sequence[str]) -> None:
    """Look at the config of a run folder before Hydra does, which would build what `hydra:` in it names at once.

    Raises:
        ValueError: no config that a run wrote, or one that may not be used.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    inner = folder / ".hydra"
    for found in sorted(inner.iterdir()):
        if found.name not in _HYDRA_WRITES:
            raise ValueError(f"{found} was not written by a run, and Hydra would read it as a config: remove it")
    file = inner / "config.yaml"
    try:
        text = file.read_text(encoding="utf-8")
        config: Any = OmegaConf.to_container(OmegaConf.create(text)) if text.strip() else None
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not the YAML that a run writes: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} is not the YAML that a run writes: it holds no settings")
    for key in ("hydra", "defaults"):
        if key in config:
            raise ValueError(f"{file} has the key {key!r}, which no run writes and Hydra would obey: remove it")
    if re.search(r"^\s*#\s*@package", text, re.MULTILINE):
        raise ValueError(f"{file} has a line '# @package', which no run writes and Hydra would obey: remove it")
    lacking = [part for part in _PARTS if part not in config]
    if lacking:
        raise ValueError(f"{file} lacks {lacking[0]!r}: it is damaged")
    check_config(config, typed, str(file))


def check_arguments(words: Sequence[str], folder: str) -> list[str]:
    """Look at a command line that a sweep wrote down, before it is run again. Returns it.

    Raises:
        ValueError: it does more than set values and choose options.
    """
    for word in words:
        if not isinstance(word, str):
            reason = "is no text"
        elif word.startswith("-") and word not in ("-m", "--multirun"):
            reason = "is a flag"
        elif re.match(r"[+~]*hydra[./@]", word) and not _OWN_SETTINGS.match(word):
            reason = "sets what is Hydra's own"
        elif set(re.findall(r"\$\{\s*([\w.]+)\s*:", word)) - set(_RESOLVERS):
            reason = "makes a config out of a text"
        elif "_target_" in word and not (
            (found := re.fullmatch(r"[+~]*[\w./@]+\._target_=([\w.]+)", word)) and may_build(found[1], RUN)
        ):
            reason = "builds what is not this package's"
        elif "allow_pickle" in word:
            reason = "lets a data file run any code"
        else:
            continue
        raise ValueError(f"{folder} was started with {word!r}, which {reason}: if you trust it, type the command again")
    return list(words)
