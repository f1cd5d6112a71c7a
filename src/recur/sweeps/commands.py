"""Command lines: what a sweep's jobs run, and what completes it."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recur.cli import python, trusting
from recur.config.compose import conf_dir
from recur.config.words import quoted, said_again
from recur.sweeps import snapshot as snapshots

# Overrides of Hydra's own settings that concern the sweep and not a job.
_OF_THE_SWEEP = (
    "hydra.launcher",
    "hydra/launcher",
    "hydra.sweeper",
    "hydra/sweeper",
    "hydra.sweep.",
    "hydra.mode",
    "hydra.run.",
)


def command_module() -> str:
    """The module that jobs run: the one that was typed."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    name = str(getattr(spec, "name", "") or "")
    return name if name.startswith("recur.") else "recur.train"


def resume_command(folder: Path, words: Sequence[str] = ("-m",)) -> str:
    """What to type to complete the sweep.

    Args:
        folder: of the sweep.
        words: of its command that are to be typed again.
    """
    more = [*trusting(), *words, f"resume={quoted(str(folder))}"]
    return f"{python()} {shlex.join(['-m', command_module(), *more])}"


def words_to_retype(cfg: DictConfig) -> tuple[str, ...]:
    """The settings of a job that its run's own config may not say by itself when it goes on."""
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    resolved: Any = OmegaConf.to_container(own, resolve=True)
    again = said_again(own, resolved, Path(cfg.hydra.runtime.output_dir))
    return tuple(f"{key}={value}" for key, value in again.items())


def config_flags(config: DictConfig) -> list[str]:
    """Hydra's flags that say where configs are, as far as they were typed; every job needs them too."""
    flags = []
    for source in config.hydra.runtime.config_sources:
        path = str(source.path)
        if source.provider == "command-line":
            flags += ["--config-dir", path]
        elif source.provider == "main" and Path(path).resolve() != conf_dir().resolve():
            flags += ["--config-path", path]
    if config.hydra.job.config_name != "train":
        flags += ["--config-name", str(config.hydra.job.config_name)]
    return flags


def config_dirs(config: DictConfig) -> dict[str, Path]:
    """What was typed after `--config-dir` and `--config-path`, by these names."""
    flags = config_flags(config)
    named = zip(flags[::2], flags[1::2], strict=True)
    return {flag.lstrip("-"): Path(path).absolute() for flag, path in named if flag in snapshots.FLAGS}


def inherited_overrides(config: DictConfig) -> list[str]:
    """Overrides of Hydra's own settings that concern a job and not the sweep."""
    typed: Any = OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False)
    return [str(text) for text in typed if not str(text).lstrip("+~").startswith(_OF_THE_SWEEP)]
