"""Checks of the configs of a sweep's jobs, and of SLURM's queue, all before the first job starts.

Each config goes through what `recur.train` does with it before it reads any data, so that a value which a job would
refuse is refused by the sweep.
"""

import json
import logging
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recur.config.compose import interpolated
from recur.errors import UserError
from recur.runs import journal


class ConfigChecks:
    """Collects configs until `run`; configs that differ in nothing but their seed are checked once.

    Args:
        remote: whether jobs run on other machines: this one need not have their devices then.
    """

    def __init__(self, remote: bool) -> None:
        self._remote = remote
        self._waiting: dict[str, tuple[dict[str, Any], frozenset[str]]] | None = {}

    def add(self, cfg: DictConfig) -> None:
        """Keep a composed config, while its interpolations can be resolved; nothing once the checks have run.

        Raises:
            UserError: its seed is none.
        """
        if self._waiting is None:  # a job of a search that is under way: its values lie within the checked ones
            return
        own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        config: Any = OmegaConf.to_container(own, resolve=True)
        seed = config.get("seed", 0)
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise UserError("seed", seed, "must be a whole number from 0 to 2**32 - 1")
        alike = {key: value for key, value in config.items() if key not in ("seed", "name")}
        used = interpolated(OmegaConf.to_container(own, resolve=False))  # a job's folder is given, and uses none
        self._waiting.setdefault(json.dumps(alike, sort_keys=True, default=str), (config, used))

    def run(self) -> None:
        """Check all configs as `recur.train` checks its own.

        Raises:
            UserError: a class takes no such key, or refuses a value.
        """
        waiting, self._waiting = self._waiting or {}, None
        if not waiting:
            return
        from recur.config import schema

        before = logging.root.manager.disable
        logging.disable(logging.INFO)  # Lightning introduces every trainer that is built
        try:
            for config, used in waiting.values():
                schema.check_top_level(config, used)  # before the trainer is looked at: it may be missing
                schema.check_run({**config, "trainer": self._here(config["trainer"])}, used)
        finally:
            logging.disable(before)

    def _here(self, trainer: dict[str, Any]) -> dict[str, Any]:
        """A trainer that this machine and this one process can build: where jobs run, the executor has checked."""
        if trainer.get("accelerator") == "cpu" and not self._remote:
            return trainer
        here = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": "32-true"}
        return {**trainer, **here}


def check_queue(folder: Path) -> None:
    """Refuse to go on while jobs of the sweep are in SLURM's queue, whose submitter was killed.

    Raises:
        UserError: names them.
    """
    places: dict[int, str] = {}
    for event in journal.read(folder):  # the last event of a job counts
        if event["event"] == "start":
            places[event["job"]] = str(event.get("place"))
        elif event["event"] == "end":
            places.pop(event["job"], None)
    left = {place.partition(" ")[2] for place in places.values() if place.startswith("slurm ")}
    tool = shutil.which("squeue") if left else None
    if tool is None:
        return
    command = [tool, "--noheader", "--format=%A", f"--user={os.getuid()}"]
    try:
        queued = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()  # noqa: S603
    except (OSError, subprocess.SubprocessError):  # each job still looks whether another performs it
        return
    if still := " ".join(sorted(left.intersection(queued))):
        rule = f"has jobs in SLURM's queue from before: {still}"
        raise UserError(str(folder), rule=rule, remedy=f"end them first: scancel {still}")
