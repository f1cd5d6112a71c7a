"""The data settings of a run, changed by `key=value` words, checked and built."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recur.config import schema
from recur.config.signatures import parameters_of
from recur.data.sources import is_one_split
from recur.data.tables import as_file, is_table
from recur.errors import ABSENT, UserError, nearest
from recur.runs import trust
from recur.runs.metrics import plain

# What says where a run's own data is; none of it applies to another file.
_PLACES = frozenset(
    (
        *("path", "subset", "revision", "train", "val", "test", "unlabelled", "pseudo_labelled"),
        *("text", "synthetic", "limit_train", "vectors", "train_on_unlabelled", "limit_unlabelled"),
    )
)

# What YAML would take for something else than the text it is: `|`, `#`, `*.csv`, a space, `a: b`.
_TEXT = re.compile(r"[|>#&*!%@`~,].*|[?:-](\s.*)?|\s+|[^'\"\[{$].*(: | #).*", re.DOTALL)


def words(settings: Mapping[str, Any]) -> list[str]:
    """Changes to data settings as the words `key=value` that `changed` reads, each value as it is.

    A text stays a text, which "2024" and "a: b" would not where they are typed.
    """
    kept = {key: as_file(value, key) if is_table(value) else plain(value) for key, value in settings.items()}
    return [f"{key}={json.dumps(value, default=os.fspath, ensure_ascii=False)}" for key, value in kept.items()]


def changed(
    config: Mapping[str, Any], settings: Sequence[str], folder: Path, path: str | None = None
) -> dict[str, Any]:
    """The data settings of a run with some of them changed.

    Args:
        config: the run's `data` settings, plain containers of unknown origin.
        settings: changes such as `eval_batch_size=64`, with or without `data.` before them.
        folder: of the run, out of which its own settings may not lead.
        path: other data to read in place of the run's own.

    Returns:
        settings that have passed the schema, for `build`.

    Raises:
        UserError: no such setting, a value of the wrong type, or a class that a run may not build.
    """
    import yaml
    from hydra.utils import get_class
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    trust.check_targets(dict(config), "data", trust.DATA)
    known = sorted(parameters_of(get_class(config["_target_"])))
    kept: dict[str, Any] = dict(config)
    if "allow_pickle" in kept:
        kept["allow_pickle"] = False  # a run may be of unknown origin: only the user of this command may allow it
    words = [_as_text(setting.removeprefix("data.")) for setting in settings]
    trust.check_paths(kept, "data", folder, [f"data.{word}" for word in words])
    for word in words:
        key, equals, _ = word.partition("=")
        if not equals or key.partition(".")[0] not in known:
            hint = nearest(key, known) or f", which are {', '.join(known)}"
            raise UserError(word, ABSENT, f"must be KEY=VALUE of the run's data settings{hint}")
    if path is not None:
        kept = {key: value for key, value in kept.items() if key not in _PLACES}
        # A single file is read as the split `train`; evaluated, it is called the test split.
        kept |= {"path": path, **({"test": "train"} if is_one_split(path) else {})}
    try:
        merged = OmegaConf.merge(OmegaConf.create(kept), OmegaConf.from_dotlist(words))
        plain: Any = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError, RecursionError) as error:
        said = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(" ".join(words)[:200], ABSENT, "cannot be read", said) from None
    trust.check_targets(plain, "data", trust.DATA)  # settings of the command line may not widen it
    schema.check(plain, "data")
    return dict(plain)


def _as_text(word: str) -> str:
    """The word `key=value` with its value in quotes where it is a text that YAML would not take for one."""
    key, equals, value = word.partition("=")
    return f"{key}={json.dumps(value, ensure_ascii=False)}" if equals and _TEXT.fullmatch(value) else word


def build(settings: Mapping[str, Any]) -> Any:
    """The data module that checked settings describe.

    Raises:
        UserError: its class refuses a value.
    """
    from recur.runs.build import build as build_node

    return build_node(dict(settings), "data")
