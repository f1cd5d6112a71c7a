"""Holds a config against the classes that it names, before anything is built and before anything is written."""

import importlib.util
import inspect
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from recur.config.settings import NOT_FOR_TRAINER
from recur.config.signatures import check_value, hints, parameters_of
from recur.errors import ABSENT, UserError, nearest
from recur.runs.build import build, resolve
from recur.runs.extras import lacks
from recur.runs.metrics import check_direction, check_metric, direction, family_of

_SERVICES = "recur.training.loggers."  # W&B's, MLflow's and Aim's
_DEEPEST = 60  # levels of a config


def check(node: Any, path: str = "", depth: int = 0) -> None:
    """Compare every key and plain value under `node` with the signature of its `_target_`.

    Args:
        node: a composed config, plain containers.
        path: where it stands in the whole, for the messages.
        depth: levels above it.

    Raises:
        UserError: a `_target_` that does not exist, a key its signature lacks, or a value that does not fit.
    """
    if depth > _DEEPEST:
        raise UserError(path[:80], rule=f"is nested more than {_DEEPEST} levels deep")
    if isinstance(node, Mapping):
        if "_target_" in node:
            _check_call(node, path)
        for key, value in node.items():
            check(value, f"{path}.{key}" if path else str(key), depth + 1)
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            check(value, f"{path}[{index}]", depth + 1)


def _check_call(node: Mapping[str, Any], path: str) -> None:
    called = resolve(node["_target_"], path)
    try:
        parameters = inspect.signature(called).parameters
    except (ValueError, TypeError):
        return  # written in C
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    annotations = hints(called)
    for key, value in node.items():
        if str(key).startswith("_"):
            continue
        if key not in parameters:
            if open_ended:
                continue
            known = [name for name in parameters if name != "self"]
            raise UserError(f"{path}.{key}", rule=f"is no setting of {node['_target_']}{nearest(str(key), known)}")
        if not (isinstance(value, Mapping) and "_target_" in value):
            check_value(f"{path}.{key}", value, annotations.get(str(key), Any))


def top_level(
    name: str,
    seed: Annotated[int, Ge(0), Le(2**32 - 1)],
    resume: str | None,
    overwrite: bool,
    accept_data_change: bool,
    baseline: bool,
    test: bool,
    monitor: str,
    mode: Literal["max", "min"],
    data: Mapping[str, Any],
    model: Mapping[str, Any],
    optimizer: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    trainer: Mapping[str, Any],
    callbacks: Mapping[str, Any],
    logger: Mapping[str, Any],
    init_from: str | Sequence[str] | None = None,
    find_lr: bool = False,
    tags: Sequence[str] = (),
    extras: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """The keys of a run's config, as a signature; one with a default may be missing."""


def extras(print_config: bool = False) -> None:
    """The keys of `extras`, as a signature."""


def check_top_level(config: Mapping[str, Any], used: frozenset[str] = frozenset()) -> None:
    """Check the keys of a run's config and those of their values that belong to no class.

    Args:
        config: the resolved config, plain containers.
        used: further keys, to which interpolations in the config refer.

    Raises:
        UserError: a key that is none, lacks or has a value that does not fit.
    """
    annotations = hints(top_level)
    known = [key for key in annotations if key != "return"]
    for key, value in config.items():
        if key in known:
            check_value(key, value, annotations[key])
        elif key not in used:
            rule = "is no setting, and nothing in the config uses it"
            if key == "ckpt_path":
                remedy = "resume=RUN goes on with a run, init_from=RUN begins another with its weights"
                raise UserError(key, rule=rule, remedy=remedy)
            raise UserError(str(key), rule=rule + nearest(str(key), known))
    optional = [name for name, p in inspect.signature(top_level).parameters.items() if p.default is not p.empty]
    if missing := [key for key in known if key not in config and key not in optional]:
        raise UserError(missing[0], rule="is missing from the config")
    inner = hints(extras)
    for key, value in (config.get("extras") or {}).items():
        if key not in inner or key == "return":
            raise UserError(f"extras.{key}", rule=f"is no setting{nearest(str(key), ['print_config'])}")
        check_value(f"extras.{key}", value, inner[key])
    name = PurePosixPath(config["name"])
    if not name.parts or name.is_absolute() or ".." in name.parts:
        raise UserError("name", config["name"], "must be a relative path below outputs, without '..'")
    for part in ("callbacks", "logger"):
        for inner, node in config[part].items():
            if not (isinstance(node, Mapping) and "_target_" in node) and (node is not None or part == "logger"):
                raise UserError(f"{part}.{inner}", node, "must be settings with a _target_")
    for part in ("data", "model", "optimizer", "scheduler", "trainer"):  # `~model._target_` takes it away
        if "_target_" not in config[part]:
            raise UserError(f"{part}._target_", rule="is missing from the config")
    if "net" not in config["model"]:
        raise UserError("model.net", rule="is missing from the config")


def check_run(config: Mapping[str, Any], used: frozenset[str] = frozenset()) -> None:
    """Check the whole config of a training run and build everything but the data in miniature.

    What a class refuses is refused before any data is read. The network is built for two tokens on torch's meta
    device, where a tensor has a shape and takes no memory.

    Args:
        config: the resolved config, plain containers.
        used: further keys, to which interpolations in the config refer.

    Raises:
        UserError: a value that does not fit or that its class refuses.
    """
    check_top_level(config, used)
    trainer = {key: value for key, value in config["trainer"].items() if key != "precision"}  # `auto` is ours
    check({**config, "trainer": trainer})
    if trainer.get("max_epochs") == -1 and trainer.get("max_steps", -1) == -1:  # the schedulers plan the whole run
        raise UserError("trainer.max_epochs", -1, "must end the run, or trainer.max_steps must", "set one of them")
    dry_run(config)


def dry_run(config: Mapping[str, Any]) -> None:
    """Build everything but the data in miniature; see `check_run`.

    Raises:
        UserError: a value that its class refuses.
    """
    check_trainer(config["trainer"])
    _check_metrics(config)
    rate = config["optimizer"].get("lr")
    if isinstance(rate, (int, float)) and not 0 < rate < math.inf:
        raise UserError("optimizer.lr", rate, "must be above 0 and finite", "1e-3 is usual for Adam")
    import torch

    from recur.tasks.schedulers import StepPlan

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself will say what is odd
        with torch.device("meta"):
            task = _miniature(config)
        optimizer = build(config["optimizer"], "optimizer")([torch.nn.Parameter(torch.zeros(1))])
        schedule = build(config["scheduler"], "scheduler")
        if schedule is not None:
            schedule(optimizer, StepPlan(total=100, per_epoch=10, tried=True))
        for part in ("callbacks", "logger"):
            for name, node in config[part].items():
                if node is None or not str(node["_target_"]).startswith(_SERVICES):
                    build(node, f"{part}.{name}")
                else:
                    _check_service(str(node["_target_"]))
        _dry_run_trainer(config["trainer"])
    _check_memory(task)


def _check_service(target: str) -> None:
    """Refuse a logger whose package is missing. It is not built: MLflow's would make its database at once."""
    name = target.removeprefix(_SERVICES)
    if importlib.util.find_spec(name) is None:
        raise lacks(name, name, f"logger={name}")


def _dry_run_trainer(trainer: Mapping[str, Any]) -> None:
    import torch

    accelerator = trainer.get("accelerator")
    apple = torch.backends.mps.is_available() and not torch.cuda.is_available()
    if accelerator == "mps" or (apple and accelerator in ("gpu", "cuda")):
        raise UserError("trainer.accelerator", accelerator, "computes no float64, which sums need", "set trainer=cpu")
    if accelerator in ("gpu", "cuda") and not torch.accelerator.is_available():
        raise UserError("trainer.accelerator", accelerator, "needs a GPU, and there is none", "set trainer=cpu")
    half = str(trainer.get("precision")) in ("16", "16-mixed")  # on a CPU Lightning would take bfloat16 in its place
    if half and (trainer.get("accelerator") == "cpu" or not torch.accelerator.is_available()):
        remedy = "on a CPU set 32-true, or try bf16-mixed"
        raise UserError("trainer.precision", trainer["precision"], "is for GPUs", remedy)
    own = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    build({key: value for key, value in trainer.items() if value != "auto"} | own, "trainer")


def _miniature(config: Mapping[str, Any]) -> Any:
    """The task of a config, as it would be for data with two tokens and, where they are not counted in it, two classes.

    Raises:
        UserError: data of one family and a model of the other, or a value that a class refuses.
    """
    model, data = {**config["model"], "net": {**config["model"]["net"]}}, config["data"]
    task, module = resolve(model["_target_"], "model"), resolve(data["_target_"], "data")
    known = parameters_of(task)
    trains = "virtual_adversarial" not in known or model.get("virtual_adversarial")  # a task of somebody's own may
    if data.get("train_on_unlabelled") and not trains:
        rule = "does nothing without model.virtual_adversarial"
        raise UserError("data.train_on_unlabelled", True, rule, "set model.virtual_adversarial=.02")
    families = getattr(task, "family", None), getattr(module, "family", None)
    if None not in families and families[0] != families[1]:
        raise UserError(
            "model",
            rule=f"is for {families[0]} data, and data is {families[1]} data",
            remedy="choose a model of the data's family, or other data",
        )
    weights = model.get("class_weights")
    classes = max(2, len(weights)) if isinstance(weights, (list, tuple)) else 2
    described = {
        "vocab_size": 2,
        "num_classes": classes,
        "class_names": [str(number) for number in range(classes)],
        "class_counts": [1] * classes,
    }
    if data.get("vectors") and model["net"].get("freeze_vectors"):
        model["net"]["freeze_vectors"] = False  # there are no vectors yet
    part = build({**model, "_partial_": True}, "model")
    return part(**{key: value for key, value in described.items() if key in known})


def check_trainer(trainer: Mapping[str, Any]) -> None:
    """Refuse what Lightning takes and does not mean, or takes and ends in a stack.

    Raises:
        UserError: names the setting.
    """
    for key, limit in _TRAINER.items():
        if key in trainer:
            check_value(f"trainer.{key}", trainer[key], limit)
    for key in ("max_epochs", "max_steps"):
        if trainer.get(key) == 0:
            raise UserError(f"trainer.{key}", 0, "must be at least 1, or -1 for no such end")
    if trainer.get("enable_checkpointing") is False:
        remedy = "leave it out, and add ~callbacks.best ~callbacks.last"
        raise UserError("trainer.enable_checkpointing", False, "is decided by the callbacks", remedy)
    for path, (rule, remedy) in NOT_FOR_TRAINER.items():
        if path.removeprefix("trainer.") in trainer:
            raise UserError(path, ABSENT, rule, remedy)
    devices, cores = trainer.get("devices"), os.cpu_count() or 1
    if trainer.get("accelerator") == "cpu" and isinstance(devices, int) and devices > max(2, cores):
        raise UserError("trainer.devices", devices, f"would be as many processes on {cores} cores", "lower it")


_COUNT = Annotated[int, Ge(1)]
_SHARE = Annotated[float, Ge(0)]
_TRAINER: dict[str, Any] = {
    "max_epochs": Annotated[int, Ge(-1)] | None,
    "max_steps": Annotated[int, Ge(-1)],
    "gradient_clip_val": Annotated[float, Ge(0), Lt(math.inf)] | None,
    "gradient_clip_algorithm": Literal["norm", "value"] | None,
    "accumulate_grad_batches": _COUNT,
    "check_val_every_n_epoch": _COUNT | None,
    "log_every_n_steps": _COUNT,
    "num_sanity_val_steps": Annotated[int, Ge(-1)],
    "limit_train_batches": Annotated[float, Gt(0)],
    "val_check_interval": Annotated[float, Gt(0)] | dict[str, Any] | str | None,
    "fast_dev_run": bool | Annotated[int, Ge(0)],
    "profiler": Literal["simple", "advanced"] | dict[str, Any] | None,
    "limit_val_batches": _SHARE,
    "limit_test_batches": _SHARE,
}


def _check_metrics(config: Mapping[str, Any]) -> None:
    family = family_of(str(config["model"].get("_target_", "")))
    owners = {"": config, "scheduler": config["scheduler"]}
    owners |= {f"callbacks.{name}": node for name, node in config["callbacks"].items() if node}
    watched = []
    for owner, node in owners.items():
        monitor = str(node.get("monitor", ""))
        check_metric(monitor, family, key=f"{owner}.monitor".lstrip("."))
        if str(node.get("_target_")).endswith(".NonMonotonicAveraging") and monitor and direction(monitor) == "max":
            rule = "must be a metric that falls while the model gets better"
            raise UserError(f"{owner}.monitor", monitor, rule, "set val/loss")
        _check_direction(monitor, node.get("mode"), f"{owner}.mode".lstrip("."))
        watched += [monitor] if monitor.startswith("val/") else []
    if watched and config["trainer"].get("limit_val_batches") == 0:
        raise UserError("trainer.limit_val_batches", 0, f"leaves nothing to measure {watched[0]} on", "set at least 1")


def _check_direction(monitor: str, mode: object, key: str) -> None:
    """Refuse to look for the worst value of a known metric: the best checkpoint would be the worst one."""
    # Callbacks and schedules follow the run's own, which a data file sets for the family's usual metric.
    remedy = f"add {key}={direction(monitor)}; a run that was begun so has kept its worst weights: begin another"
    check_direction(monitor, mode, key, remedy)


def _check_memory(task: Any) -> None:
    """Refuse weights that this machine cannot hold: Linux grants more than there is, and kills the run later."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on every system
        return
    size = sum(parameter.numel() * parameter.element_size() for parameter in task.parameters())
    if size > memory:
        raise UserError(
            "model.net",
            rule=f"takes {size / 2**30:,.0f} GiB of memory without any vocabulary, there are {memory / 2**30:,.0f}",
            remedy="lower its sizes, such as model.net.hidden_size",
        )
