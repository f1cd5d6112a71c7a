"""A trained model as a folder laid out like a repository of the Hugging Face hub, and how it is read back.

    model.safetensors   the weights; tensors that share memory are stored once
    config.json         the resolved config, what the data said of itself, its fingerprint, how the tokenizer is used
    tokenizer.json      the tokenizer, as the library `tokenizers` reads it
    README.md           the model card

Nothing in it is run: safetensors holds numbers, the rest is text.
"""

import json
from pathlib import Path
from typing import Any

from recur.errors import UserError
from recur.runs import limits
from recur.runs.extras import lacks
from recur.runs.files import read_regular

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
FORMAT = 1


def is_hub_folder(path: Path) -> bool:
    """Whether a folder holds a model in this layout."""
    return (path / WEIGHTS).is_file() and (path / CONFIG).is_file()


def files(content: dict[str, Any]) -> dict[str, bytes]:
    """The files of a folder, by name.

    Args:
        content: a checkpoint's keys `state_dict` and `recur`.

    Raises:
        UserError: the package `safetensors` is missing.
    """
    try:
        from safetensors.torch import save
    except ImportError:
        raise lacks("export", "safetensors", "--format safetensors") from None
    own = content["recur"]
    tensors: dict[str, Any] = {}
    shared: dict[str, str] = {}
    by_memory: dict[tuple[Any, ...], str] = {}
    for name, tensor in content["state_dict"].items():
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        first = by_memory.setdefault(place, name) if tensor.numel() else name
        if first == name:
            tensors[name] = tensor.detach().contiguous()
        else:
            shared[name] = first
    tokenizer = json.loads(own["tokenizer"])
    config = {
        "library_name": "recur",
        "format": FORMAT,
        "checkpoint_format": own["format"],
        "config": own["config"],
        "data": own["data"],
        "tokenizer": {key: value for key, value in tokenizer.items() if key != "tokenizer"},
        "shared_tensors": shared,
    }
    if "fingerprint" in own:
        config["fingerprint"] = own["fingerprint"]
    return {
        WEIGHTS: save(tensors, metadata={"format": "pt"}),
        CONFIG: json.dumps(config, indent=2, ensure_ascii=False).encode(),
        TOKENIZER: json.dumps(tokenizer["tokenizer"], ensure_ascii=False).encode(),
    }


def read(folder: Path) -> dict[str, Any]:
    """The content of such a folder, as a checkpoint has it.

    Raises:
        UserError: it is damaged or of a later format, or the package `safetensors` is missing.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise lacks("export", "safetensors", str(folder)) from None
    try:
        # Links are followed: the hub's own cache is made of them.
        config, tokenizer = (
            limits.parse_json(read_regular(folder / name, limits.JSON_BYTES).decode()) for name in (CONFIG, TOKENIZER)
        )
    except (OSError, ValueError) as error:
        raise UserError(str(folder), rule=f"is damaged: {error}") from None
    if not isinstance(config, dict) or config.get("library_name") != "recur":
        raise UserError(str(folder / CONFIG), rule="is not what recur writes: its library_name is another")
    written = config.get("format")
    if not isinstance(written, int) or written > FORMAT:
        raise UserError(f"{folder / CONFIG}: format", written, f"must be at most {FORMAT}", "update recur")
    shared, kind = config.get("shared_tensors"), config.get("tokenizer")
    if (
        not isinstance(shared, dict)
        or not isinstance(kind, dict)
        or not all(isinstance(s, str) for s in shared.values())
    ):
        raise UserError(str(folder / CONFIG), rule="is damaged: it lacks shared_tensors or tokenizer")
    try:
        state = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(str(folder / WEIGHTS), rule=f"cannot be read as safetensors: {first}") from None
    for name, source in shared.items():
        if source not in state:
            raise UserError(str(folder / CONFIG), rule=f"is damaged: it names a tensor {source!r} that is not there")
        state[name] = state[source]
    fingerprint = {"fingerprint": config["fingerprint"]} if "fingerprint" in config else {}
    own = fingerprint | {
        "format": config.get("checkpoint_format"),
        "config": config.get("config"),
        "data": config.get("data"),
        "tokenizer": json.dumps({**kind, "tokenizer": tokenizer}),
    }
    return {"state_dict": state, "recur": own}
