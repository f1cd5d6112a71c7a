"""What a run, a checkpoint or a sweep of unknown origin may make this program do: be used, and nothing more.

A config names what is to be built, and whatever it names is called. What the user types is the user's own; a config
that lies in a run folder or a checkpoint is not. It may name the classes that this project's own configs name, torch's
optimizers and schedules, and nothing else.
"""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from recur.cli import NEVER_TRUSTED, TRUST, check_trusted
from recur.errors import UserError
from recur.runs.files import is_inside
from recur.runs.limits import YAML_DEPTH, read_yaml

# An entry that ends with a dot stands for all that is defined in that package.
MODEL = ("recur.tasks.", "recur.nn.", "torch.optim.")
DATA = (
    "recur.data.sentiment.SentimentData",
    "recur.data.language.LanguageData",
    "recur.data.synthetic.SyntheticReviews",
    "recur.data.synthetic.SyntheticText",
    *(f"recur.data.memory.{name}" for name in ("DelayedRecall", "Adding", "Parity", "BracketDepth", "Copy")),
)
RUN = (
    *MODEL,
    *DATA,
    # By name: other functions of this package delete files or start programs.
    "recur.training.callbacks.NonMonotonicAveraging",
    "recur.training.callbacks.Progress",
    "recur.training.callbacks.Samples",
    "recur.training.callbacks.Throughput",
    "recur.training.callbacks.early_stopping",
    "recur.training.callbacks.weight_ema",
    "recur.training.checkpointing.LastCheckpoint",
    "recur.training.checkpointing.best_checkpoint",
    "recur.training.failures.Finite",
    "recur.training.tensorboard.GradientByLag",
    "recur.training.tensorboard.Pages",
    "recur.training.loggers.aim",
    "recur.training.loggers.mlflow",
    "recur.training.loggers.wandb",
    "lightning.pytorch.Trainer",
    "lightning.pytorch.callbacks.LearningRateMonitor",
    "lightning.pytorch.profilers.SimpleProfiler",
    "lightning.pytorch.loggers.CSVLogger",
    "lightning.pytorch.loggers.TensorBoardLogger",
)
SEARCH = ("optuna.samplers.", "optuna.pruners.")  # what a search may build
_NAME = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+")
_HYDRA_WRITES = ("config.yaml", "hydra.yaml", "overrides.yaml")
_PARTS = ("data", "model", "optimizer", "scheduler", "trainer", "callbacks", "logger", "seed", "monitor", "mode")
# Settings of Hydra's own that a recorded command may hold. Others can name programs, machines or folders of configs.
_OWN_SETTINGS = re.compile(
    r"hydra\.sweep\.subdir"
    r"|hydra\.sweeper\.(params\..+|cases|n_trials|seed|sampler|startup_trials|objectives|(sampler|pruner)\.\w+|pruner)"
    r"|hydra\.launcher\.(gpus|gpus_per_job|jobs_per_gpu|cpu_slots|threads|fail_fast|grace_seconds|retries|cpus_per_job"
    r"|jobs_at_once|cluster|snapshot|parameters\.(timeout_min|mem_gb|slurm_(partition|account|qos|constraint)))"
)
_LEFT_OUT = re.compile(r"~(?P<key>[A-Za-z_]\w*(\.[\w-]+)+)")  # an entry of a group, such as ~callbacks.pages
_SETTING = re.compile(r"\+{0,2}(?P<key>[A-Za-z_][\w/]*(\.[\w/-]+)*)=(?P<value>.*)", re.DOTALL)
# The interpolations that a run writes: its folder and number, what was chosen, the time, other settings.
_INTERPOLATION = re.compile(
    r"\$\{\s*(hydra[:.]runtime\.(output_dir|choices\.\w+)|hydra[:.]job\.(num|id|name)|now:[^${}]*|[\w.\[\]]+)\s*\}"
)
# Settings that say where something is written; the second kind is a part of a path below the first.
_WRITTEN = ("dirpath", "save_dir", "default_root_dir", "cache_dir", "root_dir", "log_dir")
_WRITTEN_BELOW = ("sub_dir", "filename", "filename_suffix")


def trusted_packages() -> tuple[str, ...]:
    """Packages of the user whose classes a run may build as well.

    Those that `RECUR_TRUST` names (`--trust` adds to it), separated by commas, and those that an installed package
    declares in its entry points of the group `recur.trusted`: to install it was to trust it.

    Raises:
        UserError: `RECUR_TRUST` names what may not be trusted.
    """
    typed = [name for name in (part.strip() for part in os.environ.get(TRUST, "").split(",")) if name]
    for name in typed:
        check_trusted(name, TRUST)
    declared = [point.value for point in metadata.entry_points(group="recur.trusted")]
    return (*typed, *(name for name in declared if _NAME.fullmatch(f"{name}.x")))


def how_to_trust(target: str) -> str:
    """What to do where a run names a class of a package that is not trusted; nothing for Python's own modules."""
    package = target.partition(".")[0]
    if not _NAME.fullmatch(target) or package in sys.stdlib_module_names or package in NEVER_TRUSTED:
        return ""
    return f"if you trust the package, give --trust {package} or set {TRUST}={package}"


def may_build(target: str, allowed: Sequence[str]) -> bool:
    """Whether `target` names a class or function that is defined where one of `allowed` says.

    A prefix is not enough: `recur.tasks.sentiment.torch.load` begins with a package of ours.
    """
    allowed = (*allowed, *(f"{name}." for name in trusted_packages()))
    package = next((one for one in allowed if target == one or (one.endswith(".") and target.startswith(one))), None)
    if package is None or not _NAME.fullmatch(target):
        return False
    module, _, name = target.rpartition(".")
    try:
        named = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return False
    if package == "torch.optim.":
        from torch.optim import Optimizer
        from torch.optim.lr_scheduler import LRScheduler

        return inspect.isclass(named) and issubclass(named, (Optimizer, LRScheduler))
    imported = package.endswith(".") and not f"{getattr(named, '__module__', '')}.".startswith(tuple(allowed))
    return (inspect.isclass(named) or inspect.isfunction(named)) and not imported


def check_targets(
    node: Any, path: str, allowed: Sequence[str] = MODEL, *, typed: Sequence[str] = (), resolved: bool = True
) -> None:
    """Look at everything that a config of unknown origin would build.

    Args:
        node: plain containers.
        path: where they stand in the whole, for messages.
        allowed: what may be built.
        typed: overrides of the user, who may name anything.
        resolved: whether every interpolation is refused: in a config that was resolved once there are none. Else those
            that a run writes are let through.

    Raises:
        UserError: names what may not be built.
    """
    for error in _foreign(node, path, allowed, typed, resolved):
        raise error


def _foreign(node: Any, path: str, allowed: Sequence[str], typed: Sequence[str], resolved: bool) -> Iterator[UserError]:
    """What `check_targets` refuses, one by one."""
    if path.count(".") + path.count("[") > YAML_DEPTH:
        yield UserError(path[:80], rule="is nested deeper than what a run writes")
    elif isinstance(node, dict):
        target = node.get("_target_")
        if target is not None and not may_build(str(target), allowed) and not is_typed(f"{path}._target_", typed):
            yield UserError(
                f"{path}._target_".lstrip("."),
                rule=f"is {target!r}: a run may build nothing but this package's classes and torch's optimizers and "
                "schedules",
                remedy=how_to_trust(str(target)),
            )
        for key, value in node.items():
            yield from _foreign(value, f"{path}.{key}" if path else str(key), allowed, typed, resolved)
    elif isinstance(node, (list, tuple)):  # a checkpoint can hold both, and `build` builds what is in `_args_`
        for index, value in enumerate(node):
            yield from _foreign(value, f"{path}[{index}]", allowed, typed, resolved)
    elif isinstance(node, str) and "${" in node and not is_typed(path, typed):
        if resolved:
            rule = f"is {node[:80]!r}: an interpolation in a config that was resolved when it was written"
            yield UserError(path, rule=rule)
        elif foreign_interpolation(node):
            yield UserError(path, rule=f"is {node[:80]!r}: an interpolation that no run writes")


def foreign_interpolation(text: str) -> bool:
    """Whether a text has an interpolation other than a reference to the same config, the run's folder or the time.

    Any other could read the environment, or make a config out of a text.
    """
    return len(re.findall(r"\$\{", text)) > len(_INTERPOLATION.findall(text))


def is_typed(path: str, typed: Sequence[str]) -> bool:
    """Whether the user typed this setting, or all that stands above it."""
    keys = [word.partition("=")[0].lstrip("+~") for word in typed]
    return any(path == key or path.startswith((f"{key}.", f"{key}[")) for key in keys if key)


def must_be_typed(word: str) -> bool:
    """Whether a run's own config may not say what this override says, so that a job that goes on types it again."""
    key = word.partition("=")[0].lstrip("+")
    if key == "data.path" or (key.startswith("logger.") and key.endswith((".offline", ".tracking_uri", ".repo"))):
        return True
    return "_target_" in word or "allow_pickle" in word or "${" in word or key.rpartition(".")[2] in _WRITTEN


def to_say_again(raw: Mapping[str, Any], resolved: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The settings, path to value, of a run that begins which its own config may not say by itself once it goes on.

    Args:
        raw: the config of the command that begins the run, whose files are the user's own; never what lies in the
            folder of a run. Plain containers.
        resolved: the same without interpolations.
        folder: of the run.
    """
    refused = (error for config in (raw, resolved) for error in _refusals(config, (), folder))
    again = {_as_far_as_said(raw, error.key.partition("[")[0]): None for error in refused}  # of a list all of it
    reached = {**services(resolved), **services(raw)}  # some by a default of the logger
    if is_remote(_value(resolved, "data.path", None)):
        again["data.path"] = None
    return {key: _value(raw, key, reached.get(key)) for key in again}


def _as_far_as_said(raw: Any, key: str) -> str:
    """The path, or the part of it that leads to an interpolation, behind which `raw` says nothing."""
    names = key.split(".")
    for count in range(1, len(names)):
        above = ".".join(names[:count])
        said = _value(raw, above, None)
        if isinstance(said, str) and "${" in said:
            return above
    return key


def _value(config: Any, key: str, default: Any) -> Any:
    for name in key.split("."):
        if not isinstance(config, Mapping) or name not in config:
            return default
        config = config[name]
    return config


def services(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, path to value, by which a config's loggers would send a run to a service.

    Args:
        config: plain containers. Interpolations that are not resolved are passed over.
    """
    reached: dict[str, Any] = {}
    loggers = config.get("logger")
    for name, node in loggers.items() if isinstance(loggers, Mapping) else ():
        target = node.get("_target_") if isinstance(node, Mapping) else None
        key: str
        kept: tuple[object, ...]
        if target == "recur.training.loggers.wandb":
            key, value, kept = "offline", node.get("offline", False), (True,)
        elif target == "recur.training.loggers.mlflow":
            key, value, kept = "tracking_uri", node.get("tracking_uri"), (None,)
        elif target == "recur.training.loggers.aim":
            key, value, kept = "repo", node.get("repo"), (None,)
        else:
            continue
        if value not in kept and not (isinstance(value, str) and "${" in value):
            reached[f"logger.{name}.{key}"] = value
    return reached


def is_remote(path: object) -> bool:
    """Whether `data.path` names what is not on this machine, so that it would have to be fetched."""
    return isinstance(path, str) and not os.path.exists(os.path.expanduser(path))


def check_paths(node: Any, path: str, folder: Path, typed: Sequence[str] = ()) -> None:
    """Look at every path that a config of unknown origin would write to.

    Args:
        node: plain containers, interpolations resolved or not; those that are not are passed over.
        path: where they stand in the whole.
        folder: of the run or sweep, in which all of them must lie.
        typed: overrides of the user, who may name any place.

    Raises:
        UserError: names one that leads out of the folder.
    """
    for error in _outside(node, path, folder, typed):
        raise error


def _outside(node: Any, path: str, folder: Path, typed: Sequence[str]) -> Iterator[UserError]:
    """What `check_paths` refuses, one by one."""
    for key, value in _inner(node):
        place = f"{path}[{key}]" if isinstance(node, (list, tuple)) else f"{path}.{key}" if path else str(key)
        if isinstance(value, (dict, list, tuple)):
            yield from _outside(value, place, folder, typed)
            continue
        below = key in _WRITTEN_BELOW or (key in ("name", "version") and path.startswith("logger."))
        if not isinstance(value, str) or not value or "${" in value or not (below or key in _WRITTEN):
            continue
        where = (folder if below else Path()) / Path(os.path.expanduser(value))
        if not is_inside(where, folder) and not is_typed(place, typed):
            yield UserError(
                place, rule=f"is {value!r}, out of {folder}", remedy=f"if you want that, type {place}=... too"
            )


def _inner(node: Any) -> Iterable[tuple[Any, Any]]:
    """Keys or places, and what stands there; nothing of a plain value."""
    return node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()


def check_config(
    config: dict[str, Any], typed: Sequence[str], where: str = "the run's config", folder: Path | None = None
) -> None:
    """Look at the whole config of a run that is to go on.

    Args:
        config: plain containers, before or after interpolations are resolved; both have to be looked at.
        typed: overrides of the user.
        where: what to call it.
        folder: of the run, in which every path that it writes to must lie; None where it writes nothing.

    Raises:
        UserError: it would build what it may not, load pickles, read the environment, write elsewhere or send itself
            to a service.
    """
    for error in _refusals(config, typed, folder):
        raise UserError(f"{where}: {error.key}", rule=error.rule, remedy=error.remedy)


def _refusals(config: Mapping[str, Any], typed: Sequence[str], folder: Path | None) -> Iterator[UserError]:
    """What `check_config` refuses, one by one; the keys are settings."""
    for error in _foreign(config, "", RUN, typed, resolved=False):
        remedy = f"if you trust it, type {error.key}=... as well"
        remedy += f"; {error.remedy}" if error.remedy else ""
        yield UserError(error.key, rule=error.rule, remedy=remedy)
    for place, value in services(config).items():
        if not is_typed(place, typed):
            rule = f"is {value!r}: the run would be sent to a service"
            yield UserError(place, rule=rule, remedy=f"if you want that, type {place}=... too")
    for place in _true_pickles(config, ""):
        if not is_typed(place, typed):
            rule = "lets a data file run any code"
            yield UserError(place, rule=rule, remedy=f"if you trust it, type {place}=true again")
    if folder is not None:
        yield from _outside(config, "", folder, typed)


def _true_pickles(node: Any, path: str) -> Iterator[str]:
    for key, value in _inner(node):
        place = f"{path}.{key}" if path else str(key)
        if key == "allow_pickle" and value:
            yield place
        yield from _true_pickles(value, place)


def check_run_folder(folder: Path, typed: Sequence[str]) -> None:
    """Look at the config of a run folder before Hydra does, which would build what `hydra:` in it names at once.

    Raises:
        UserError: no config that a run wrote, or one that may not be used.
    """
    inner = folder / ".hydra"
    for named in sorted(inner.iterdir()):
        if named.name not in _HYDRA_WRITES:
            raise UserError(
                str(named), rule="was not written by a run, and Hydra would read it as a config", remedy="remove it"
            )
    file = inner / "config.yaml"
    config = read_yaml(file)
    if not isinstance(config, dict):
        raise UserError(str(file), rule="is not the YAML that a run writes: it holds no settings")
    for key in config:
        if not isinstance(key, str) or key in ("hydra", "defaults"):
            raise UserError(str(file), rule=f"has the key {key!r}, which no run writes and Hydra would obey")
    if re.search(r"^\s*#\s*@package", file.read_text(encoding="utf-8"), re.MULTILINE):
        raise UserError(str(file), rule="has a line '# @package', which no run writes and Hydra would obey")
    lacking = [part for part in _PARTS if part not in config]
    if lacking:
        raise UserError(str(file), rule=f"lacks {lacking[0]!r}: it is damaged")
    check_config(config, typed, str(file), folder)


# ------------------------------------------------------------------------------------------------- a recorded command
def check_arguments(words: Any, folder: str, options: Mapping[str, Collection[str]]) -> list[str]:
    """Look at a command line that a sweep wrote down, before it is run again.

    Args:
        words: as recorded.
        folder: of the sweep, for messages.
        options: the groups of the config folder, and the options of each.

    Returns:
        the words.

    Raises:
        UserError: it does more than set values and choose known options.
    """
    if not isinstance(words, list):
        raise UserError(folder, rule="has no recorded command line: it is damaged", remedy="type the command again")
    for word in words:
        reason = "is no text" if not isinstance(word, str) else _objection(word, options)
        if reason is not None:
            raise UserError(
                folder, rule=f"was started with {word!r}, which {reason}", remedy="if you trust it, type it again"
            )
    return words


def _cases(value: str) -> list[str]:
    """Every override that a list of cases holds; the text itself, which is no setting, where it is no such list."""
    import yaml

    try:
        cases = yaml.safe_load(value)
        return [word if isinstance(word, str) and "=" in word else "" for case in cases for word in case]
    except (yaml.YAMLError, TypeError):
        return [""]


def _searches(word: str) -> bool:
    """Whether every `_target_` of a setting of a search names a sampler or a pruner."""
    names = re.findall(r"""_target_['"]?\s*[:=]\s*['"]?([\w.]+)""", word)
    return len(names) == word.count("_target_") and all(may_build(name, SEARCH) for name in names)


def _objection(word: str, options: Mapping[str, Collection[str]]) -> str | None:
    """Why a recorded word may not be repeated, None where it may."""
    if word in ("-m", "--multirun"):
        return None
    if word.startswith("-"):
        return "is a flag"
    if left_out := _LEFT_OUT.fullmatch(word):  # what remains is checked with the whole config
        return "sets what is Hydra's own" if left_out["key"].startswith("hydra") else None
    parts = _SETTING.fullmatch(word)
    if parts is None:
        return "is no plain setting"
    key, value = parts["key"], parts["value"]
    if key in options:
        texts = re.split(r"\s*,\s*", re.sub(r"^choice\((.*)\)$", r"\1", value.strip()))
        unknown = [text for text in texts if text.strip("'\"") not in {*options[key], "null"}]
        return f"chooses {unknown[0]!r}, which is no option of this package" if unknown else None
    if "/" in key or key == "hydra" or (key.startswith("hydra.") and not _OWN_SETTINGS.fullmatch(key)):
        return "sets what is Hydra's own"
    if key.startswith("hydra.launcher.parameters.") and not re.fullmatch(r"[\w.,:-]+", value):
        return "gives SLURM more than a word"
    if key.startswith("hydra.sweeper.params."):
        return _objection(f"{key.removeprefix('hydra.sweeper.params.')}={value}", options)
    if key == "hydra.sweeper.cases":
        return next((named for one in _cases(value) if (named := _objection(one, options))), None)
    if key == "hydra.sweep.subdir" and (".." in value or value.strip("'\"").startswith(("/", "~"))):
        return "leads out of the sweep's folder"
    if key == "resume":
        return "names a run"
    if foreign_interpolation(value):
        return "has an interpolation that no run writes"
    if key.startswith(("hydra.sweeper.sampler", "hydra.sweeper.pruner")) and "_target_" in word:
        return None if _searches(word) else "builds what is not Optuna's"
    if "_target_" in word and not (key.endswith("._target_") and all(may_build(v, RUN) for v in value.split(","))):
        return "builds what is not this package's"
    return "lets a data file run any code" if "allow_pickle" in word else None
