"""Paths in a config of unknown origin that lead out of its folder."""

from collections.abc import Callable
from typing import Any

from security.arena import Arena, Case
from security.bases import RUN, a_run, change_configs, put

WRITES: dict[str, Callable[[dict[str, Any], str], object]] = {
    "callbacks.last.dirpath": lambda c, out: put(c, "callbacks.last.dirpath", f"{out}/ckpt"),
    "callbacks.best.dirpath": lambda c, out: put(c, "callbacks.best.dirpath", f"{out}/ckpt"),
    "logger.tensorboard.save_dir": lambda c, out: put(c, "logger.tensorboard.save_dir", out),
    "logger.tensorboard.name": lambda c, out: put(c, "logger.tensorboard.name", f"../{out}"),
    "logger.tensorboard.version": lambda c, out: put(c, "logger.tensorboard.version", f"../{out}"),
    "logger.tensorboard.sub_dir": lambda c, out: put(c, "logger.tensorboard.sub_dir", f"../{out}"),
    "logger.csv.save_dir": lambda c, out: put(
        c,
        "logger.csv",
        {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": out, "name": "", "version": ""},
    ),
    "logger.csv.version": lambda c, out: put(
        c,
        "logger.csv",
        {
            "_target_": "lightning.pytorch.loggers.CSVLogger",
            "save_dir": "${hydra:runtime.output_dir}",
            "name": "",
            "version": f"../{out}",
        },
    ),
    "data.cache_dir": lambda c, out: put(c, "data.cache_dir", f"{out}/cache"),
    "trainer.default_root_dir": lambda c, out: (
        put(c, "trainer.default_root_dir", out),
        c["callbacks"].pop("best"),
        put(c, "logger", {}),
    ),
    "trainer.profiler": lambda c, out: (
        put(c, "trainer.profiler", "pytorch"),
        put(c, "trainer.default_root_dir", out),
        put(c, "logger", {}),
    ),
    "no root": lambda c, out: (
        put(c, "trainer.default_root_dir", None),
        c["callbacks"].pop("best"),
        put(c, "logger", {}),
    ),
}


def _planted(name: str, out: Callable[[Arena], str]) -> Callable[[Arena], None]:
    return lambda arena: change_configs(a_run(arena), lambda config: WRITES[name](config, out(arena)))


def _absolute(arena: Arena) -> str:
    return str(arena.victim / "out")


def _relative(arena: Arena) -> str:
    return "../victim/out"


def _through(arena: Arena) -> str:
    return "${hydra:runtime.output_dir}/../../victim/out"


def _home(arena: Arena) -> str:
    return "~/out"


CASES = [
    Case(f"{name} absolute", _planted(name, _absolute), RUN[:3], quick=name == "data.cache_dir") for name in WRITES
]
CASES += [Case(f"{name} relative", _planted(name, _relative), RUN[:3]) for name in WRITES if name != "no root"]
CASES += [
    Case(f"{name} through the folder", _planted(name, _through), RUN[:3])
    for name in ("callbacks.last.dirpath", "logger.tensorboard.save_dir", "data.cache_dir")
]
CASES += [Case("data.cache_dir at home", _planted("data.cache_dir", _home), RUN[:3])]

# ------------------------------------------------------------------------------------------------- what is typed again


def _typed(arena: Arena) -> None:
    change_configs(a_run(arena), lambda config: put(config, "data.cache_dir", str(arena.work / "cache")))


CASES.append(
    Case(
        "a cache that is typed again",
        _typed,
        (("train", "resume=r", "data.cache_dir=cache", "trainer.max_epochs=2"), ("evaluate", "r", "cache_dir=cache")),
        own=("r", "cache"),
        codes=(0,),
    )
)
