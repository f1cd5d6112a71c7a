"""How much a file of unknown origin may ask for, before anything is made of it.

Whatever a run writes stays far below these limits. What lies above them was made to exhaust the memory,
the time or the stack of the process that opens it.
"""

import json
import os
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from recur.errors import UserError
from recur.runs.files import read_regular

YAML_BYTES = 4 << 20
YAML_EVENTS = 200_000  # scalars, lists and dictionaries of one file
YAML_DEPTH = 64
JSON_BYTES = 256 << 20


def read_yaml(path: Path) -> Any:
    """Plain values of a YAML file such as a run writes: no tags, no aliases, one document.

    Args:
        path: of the file.

    Returns:
        dictionaries, lists, text, numbers, booleans and None.

    Raises:
        UserError: it is no such YAML, or larger or deeper than any that a run writes.
        OSError: it cannot be read.
    """
    import yaml

    try:
        text = read_regular(path, YAML_BYTES).decode()
    except ValueError as error:  # no UTF-8, no file, too large
        raise UserError(str(path), rule=f"is not the YAML that a run writes: {error}") from None
    # The parser that is written in C, where there is one: the limits are looked at as it goes along.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _check_events(path, yaml.parse(text, Loader=loader))
        return yaml.load(text, Loader=loader)  # noqa: S506 (both are safe loaders)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # ValueError: no UTF-8, numbers too long
        if isinstance(error, UserError):
            raise
        raise UserError(str(path), rule=f"is not the YAML that a run writes: {error}") from None


def _check_events(path: Path, events: Iterator[Any]) -> None:
    import yaml

    depth = documents = 0
    for number, event in enumerate(events):
        if isinstance(event, yaml.AliasEvent):
            raise UserError(str(path), rule="has an alias (*), which no run writes")
        tag = getattr(event, "tag", None)
        if (tag is not None and not tag.startswith("tag:yaml.org,2002:")) or (tag or "").startswith(_PYTHON):
            raise UserError(str(path), rule=f"has the tag {tag}, which no run writes")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        if depth > YAML_DEPTH or number > YAML_EVENTS or documents > 1:
            raise UserError(str(path), rule="is larger or deeper than the YAML that a run writes")


_PYTHON = "tag:yaml.org,2002:python"


def read_json(path: Path) -> Any:
    """What a JSON file says; other texts than JSON, and ones nested too deep to read, are a `ValueError`.

    Raises:
        ValueError: it is no JSON, or too large.
        OSError: it cannot be read.
    """
    return parse_json(read_regular(path, JSON_BYTES).decode())


def parse_json(text: str) -> Any:
    """What JSON says; nesting too deep to read is a `ValueError` like any other mistake in it.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("JSON nested too deep to read") from None


# -------------------------------------------------------------------------------------------------------- checkpoints
def check_archive(path: Path) -> None:
    """Look at a checkpoint's archive before torch reads it: nothing in it may unpack to more than it takes.

    Raises:
        ValueError: it is no archive that `torch.save` writes.
        OSError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RecursionError) as error:
        raise ValueError(f"no archive: {error}") from None
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("its parts are compressed, and torch.save compresses nothing")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise ValueError("its parts overlap")


def check_tensors(state: Any) -> None:
    """Look at the weights of a checkpoint: each tensor must hold the numbers that it claims.

    Args:
        state: `state_dict` of the checkpoint.

    Raises:
        ValueError: it is no dictionary of names and dense tensors on the CPU.
    """
    import torch

    if not isinstance(state, Mapping):
        raise ValueError("its weights are no dictionary")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(f"its weights hold {name!r}, which is no tensor")
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise ValueError(f"its weight {name} is no dense tensor on the CPU")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"its weight {name} claims more numbers than it holds")


def check_counts(model: Any, tensors: int, ours: bool = True) -> None:
    """Look at how many layers, or rounds of a mogrifier, a checkpoint's model has: each has weights of its own.

    What other numbers a cell of somebody else's takes, and what they mean, is not known here, nor whether the layers
    of somebody else's network share their weights.

    Args:
        model: the model's description.
        tensors: how many weights the checkpoint has.
        ours: whether what this describes a part of is of this package.

    Raises:
        ValueError: there are fewer weights than that.
    """
    inner = model if isinstance(model, Mapping) else {}
    if "_target_" in inner:
        ours = str(inner["_target_"]).startswith("recur.")
    for key, value in inner.items():
        counts = {"num_layers": value} if key == "num_layers" and ours else {}
        if key == "cell_options" and isinstance(value, Mapping) and inner.get("cell") == "mogrifier":
            counts = {"rounds": value.get("rounds")}
        for name, number in counts.items():
            if isinstance(number, (int, float)) and number > tensors:
                raise ValueError(f"{name} is {number}, and it has {tensors} weights")
        check_counts(value, tensors, ours)


def check_shapes(state: Mapping[str, Any], model: Any) -> None:
    """Compare the weights of a checkpoint with the model that it describes, built without memory.

    Args:
        state: `state_dict` of the checkpoint.
        model: built on torch's `meta` device.

    Raises:
        ValueError: a weight is missing, is one too many, or has another shape.
    """
    from recur.nn.ngrams import NgramScores

    for name, module in model.named_modules():
        if isinstance(module, NgramScores):  # as many as the training text had
            module.make_room_for(state, f"{name}.")
    described = model.state_dict()
    if lacking := [name for name in described if name not in state]:
        raise ValueError(f"it lacks {lacking[0]}")
    if others := [name for name in state if name not in described]:
        raise ValueError(f"{others[0]} is none of them")
    for name, tensor in described.items():
        if tensor.shape != state[name].shape:
            raise ValueError(f"{name} has the shape {tuple(state[name].shape)}, its model wants {tuple(tensor.shape)}")


def check_training_state(content: Mapping[str, Any]) -> None:
    """Look at what a checkpoint says of its training, before a run goes on from it.

    Args:
        content: of the checkpoint.

    Raises:
        ValueError: a part is missing or of another kind, or names a file outside the run's checkpoints.
    """
    kinds = {"loops": dict, "callbacks": dict, "optimizer_states": list, "lr_schedulers": list}
    for key, kind in {**kinds, "global_step": int, "epoch": int}.items():
        if not isinstance(content.get(key), kind):
            raise ValueError(f"its {key} is not what a run writes")
    if not isinstance(content["loops"].get("fit_loop"), dict):
        raise ValueError("its loops are not what a run writes")
    for state in content["callbacks"].values():
        if not isinstance(state, dict):
            raise ValueError("its callbacks are not what a run writes")
        _check_best(state)
    shapes = {tuple(tensor.shape) for tensor in content["state_dict"].values()}
    for optimizer in content["optimizer_states"]:
        moments = optimizer.get("state") if isinstance(optimizer, dict) else None
        if not isinstance(moments, dict) or not isinstance(optimizer.get("param_groups"), list):
            raise ValueError("its optimizer_states are not what a run writes")
        for moment in moments.values():
            values = moment.values() if isinstance(moment, dict) else [moment]
            if any(hasattr(v, "shape") and v.ndim and not _fits(tuple(v.shape), shapes) for v in values):
                raise ValueError("its optimizer's state has other shapes than its weights")


def _fits(shape: tuple[int, ...], weights: Collection[tuple[int, ...]]) -> bool:
    """Whether an optimizer may keep so many numbers: as many as a weight has, or a row or column of it (Adafactor)."""
    if shape in weights:
        return True
    like = (weight for weight in weights if len(weight) == len(shape))
    return any(all(own in (1, size) for own, size in zip(shape, weight, strict=True)) for weight in like)


def _check_best(state: Mapping[str, Any]) -> None:
    """The files that a checkpoint names as its best: a better one would replace them."""
    folder = os.path.normpath(str(state.get("dirpath")))
    named = [state.get(key) for key in ("best_model_path", "kth_best_model_path", "last_model_path")]
    for path in (*named, *(state.get("best_k_models") or ())):
        if path and not os.path.normpath(str(path)).startswith(folder + os.sep):
            raise ValueError(f"it names {path}, which lies out of its folder {folder}")
