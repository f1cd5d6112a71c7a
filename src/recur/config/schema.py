"""A signature is the schema: holds a config against the classes it names, before anything is built."""

import contextlib
import inspect
import math
import os
import types
import typing
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from recur.cli import explain
from recur.errors import UserError, nearest

_PLAIN = (bool, int, float, str, type(None))


def check(node: Any, path: str) -> None:
    """Compare every key and plain value under `node` with the signature of its `_target_`.

    Args:
        node: a composed config, plain containers.
        path: where it stands in the whole, for the messages.

    Raises:
        ValueError: a `_target_` that does not exist, a key its signature lacks, or a value of another type.
    """
    if isinstance(node, Mapping):
        if "_target_" in node:
            _check_call(node, path)
        for key, value in node.items():
            check(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            check(value, f"{path}[{index}]")


def _check_call(node: Mapping[str, Any], path: str) -> None:
    from hydra.utils import get_object

    target = node["_target_"]
    try:
        called = get_object(str(target))
        signature = inspect.signature(called)
    except Exception as error:
        raise ValueError(f"{path}._target_={target} names nothing that can be called: {error}") from None
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    hints = _hints(called)
    for key, value in node.items():
        if str(key).startswith("_"):
            continue
        if key not in signature.parameters:
            if open_ended:
                continue
            known = [name for name in signature.parameters if name != "self"]
            raise ValueError(f"{path}.{key}: {target} takes no such key{nearest(str(key), known)}")
        wanted = hints.get(str(key), Any)
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError(f"{path}.{key} is too large a number: {value}")
        built = isinstance(value, Mapping) and "_target_" in value
        if not built and not _fits(value, wanted):
            raise ValueError(f"{path}.{key} must be {_spelled(wanted)}, got {value!r}")


def _hints(called: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(called.__init__ if inspect.isclass(called) else called)
    except (NameError, TypeError, AttributeError):
        return {}  # a library's own forward references; its own checks must do


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a value (null, true, number, word, list, mapping) may stand where this type is wanted."""
    origin = typing.get_origin(wanted) or wanted
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(wanted))
    if origin is typing.Literal:
        return value in typing.get_args(wanted)
    if origin is Any or not inspect.isclass(origin) or getattr(origin, "_is_protocol", False):
        return True  # Any, a type variable, ...: nothing is known
    if isinstance(value, (Mapping, list, tuple)):  # of what is in them nothing is known
        other = Sequence if isinstance(value, Mapping) else Mapping
        return not issubclass(origin, (*_PLAIN, os.PathLike, other))
    if origin is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, str):
        return origin is str or issubclass(origin, os.PathLike)
    return isinstance(value, origin)


def _spelled(wanted: Any) -> str:
    union = typing.get_origin(wanted) in (typing.Union, types.UnionType)
    parts = typing.get_args(wanted) if union else (wanted,)
    names = {int: "a whole number", float: "a number", str: "a word", bool: "true or false", type(None): "null"}
    return " or ".join(names.get(part, getattr(part, "__name__", str(part))) for part in parts)


def dry_run(config: Mapping[str, Any]) -> None:
    """Build everything but the data in miniature, so that what a class refuses is refused before any data is read.

    The network is built for two tokens on torch's meta device, where a tensor has a shape and takes no memory.

    Args:
        config: the resolved config of a training run, plain containers, which `check` has passed.

    Raises:
        ValueError: a value that its class refuses, with the path of the key where that can be told.
    """
    if not isinstance(config["test"], bool):
        raise ValueError(f"test must be true or false, got {config['test']!r}")
    for part in ("callbacks", "logger"):
        for name, node in config[part].items():
            if not isinstance(node, Mapping) and (node is not None or part == "logger"):
                raise ValueError(f"{part}.{name} must be settings with a _target_, got {node!r}")
    _check_trainer(config["trainer"])
    _check_metrics(config)
    rate = config["optimizer"].get("lr")
    if isinstance(rate, (int, float)) and not 0 < rate < math.inf:
        raise ValueError(f"optimizer.lr must be above 0 and finite, got {rate}: 1e-3 is usual for Adam")
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself will say what is odd
        with _named(config, "model"), torch.device("meta"):
            task = _miniature(config)
        with _named(config, "optimizer"):
            optimizer = _instance(config["optimizer"])([torch.nn.Parameter(torch.zeros(1))])
        with _named(config, "scheduler"):
            from recur.tasks.schedulers import StepPlan

            _instance(config["scheduler"])(optimizer, StepPlan(total=100, per_epoch=10))
        for part in ("callbacks", "logger"):
            for name in [name for name, node in config[part].items() if node is not None]:
                with _named(config, f"{part}.{name}"):
                    _instance(config[part][name])
        with _named(config, "trainer"):
            if config["trainer"].get("accelerator") in ("gpu", "cuda") and not torch.accelerator.is_available():
                raise ValueError("there is no GPU here: set trainer=cpu, or trainer.accelerator=auto")
            own = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
            _instance({key: value for key, value in config["trainer"].items() if value != "auto"} | own)
    _check_memory(task)


def _instance(node: Any) -> Any:
    from hydra.utils import instantiate

    return instantiate(node, _convert_="all")


def _miniature(config: Mapping[str, Any]) -> Any:
    """The task of a config, as it would be for data with two tokens and, where they are not counted in it, two classes.

    Raises:
        ValueError: data of one family and a model of the other.
    """
    from hydra.utils import get_object

    model, data = {**config["model"], "net": {**config["model"]["net"]}}, config["data"]
    task, module = get_object(model["_target_"]), get_object(data["_target_"])
    families = getattr(task, "family", None), getattr(module, "family", None)
    if None not in families and families[0] != families[1]:
        raise ValueError(f"model is for {families[0]} data, data is {families[1]} data: choose another of the two")
    weights = model.get("class_weights")
    classes = max(2, len(weights)) if isinstance(weights, (list, tuple)) else 2
    told = {
        "vocab_size": 2,
        "num_classes": classes,
        "class_names": [str(number) for number in range(classes)],
        "class_counts": [1] * classes,
    }
    if data.get("vectors") and model["net"].get("freeze_vectors"):
        model["net"]["freeze_vectors"] = False  # there are no vectors yet
    known = _parameters_of(task)
    return _instance({**model, "_partial_": True})(**{key: value for key, value in told.items() if key in known})


def _parameters_of(called: Any) -> set[str]:
    """What a class takes; where it passes `**settings` on to its base, also what that takes."""
    names: set[str] = set()
    for one in called.__mro__ if inspect.isclass(called) else (called,):
        parameters = inspect.signature(one).parameters.values()
        names |= {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names


@contextlib.contextmanager
def _named(config: Mapping[str, Any], path: str) -> Iterator[None]:
    """Give an error that begins with the name of a key below `path` this key's whole path, any other the path."""
    try:
        yield
    except Exception as error:
        message = explain(error)
        if message is None:
            if not isinstance(error, (TypeError, RuntimeError)):
                raise
            message = str(error)  # an argument that is no key, a tensor too large to be counted
        node: Any = config
        for part in path.split("."):
            node = node[part]
        first = message.split()[0].rstrip(":,") if message.split() else ""
        below = {path: node} | {f"{path}.{key}": value for key, value in node.items() if isinstance(value, Mapping)}
        if any(first.startswith((place, f"{place}.")) for place in below):
            raise ValueError(message) from error
        owner = next((place for place, inner in below.items() if first in inner), None)
        raise ValueError(f"{owner}.{message}" if owner else f"{path}: {message}") from error


def _check_trainer(trainer: Mapping[str, Any]) -> None:
    for key in ("max_epochs", "max_steps"):
        if trainer.get(key) == 0:
            raise ValueError(f"trainer.{key} must be at least 1, or -1 for no such end, got 0")
    if trainer.get("limit_train_batches") == 0:
        raise ValueError(f"trainer.limit_train_batches must be above 0, got {trainer['limit_train_batches']}")
    clip = trainer.get("gradient_clip_val")
    if isinstance(clip, (int, float)) and not clip >= 0:
        raise ValueError(f"trainer.gradient_clip_val must be 0 or more, got {clip}: null clips nothing")
    for key in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        if isinstance(trainer.get(key), int) and trainer[key] < 1:
            raise ValueError(f"trainer.{key} must be at least 1, got {trainer[key]}")
    if isinstance(trainer.get("val_check_interval"), (int, float)) and not trainer["val_check_interval"] > 0:
        raise ValueError(f"trainer.val_check_interval must be above 0, got {trainer['val_check_interval']}")
    devices, cores = trainer.get("devices"), os.cpu_count() or 1
    if trainer.get("accelerator") == "cpu" and isinstance(devices, int) and devices > max(2, cores):
        raise ValueError(f"trainer.devices={devices} would be as many processes on {cores} cores: lower it")


def _check_metrics(config: Mapping[str, Any]) -> None:
    from recur.runs.metrics import check_metric, family_of

    if config["mode"] not in ("max", "min"):
        raise UserError("mode", config["mode"], "must be max or min")
    family = family_of(str(config["model"].get("_target_", "")))
    owners = {"": config, "scheduler": config["scheduler"]}
    owners |= {f"callbacks.{name}": node for name, node in config["callbacks"].items() if node}
    for owner, node in owners.items():
        check_metric(str(node.get("monitor", "")), family, key=f"{owner}.monitor".lstrip("."))


def _check_memory(task: Any) -> None:
    """Refuse weights that this machine cannot hold: Linux would promise the memory and then kill the run."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on every system
        return
    size = sum(parameter.numel() * parameter.element_size() for parameter in task.parameters())
    if size > memory:
        raise ValueError(
            f"model.net takes {size / 2**30:,.0f} GiB of memory without any vocabulary, there are "
            f"{memory / 2**30:,.0f}: lower its sizes, such as model.net.hidden_size"
        )
