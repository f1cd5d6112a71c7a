"""Manifests whose recorded command line, or whose recorded jobs, do more than set values and choose known options."""

from collections.abc import Callable
from typing import Any

from security.arena import Arena, Case
from security.bases import SWEEP, a_sweep, pickled

# Groups of `conf`; a choice that is a path leads out of it.
GROUPS = ("data", "model", "optimizer", "scheduler", "trainer", "callbacks", "logger", "experiment", "sweep")
EVIL = "# @package _global_\ncallbacks:\n  evil:\n    _target_: pandas.read_pickle\n    filepath_or_buffer: {}\n"


def _evil_yaml(arena: Arena) -> None:
    """A config that anybody could have put into a shared folder, and what it loads."""
    arena.path("evil/pwn.yaml").write_text(EVIL.format(arena.work / "evil" / "pwn.pkl"))
    arena.path("evil/pwn.pkl").write_bytes(pickled(arena))


def _up(arena: Arena, group: str) -> str:
    """The way from `conf` to that config, and from a group's folder."""
    import os

    from recur.config.compose import conf_dir

    return os.path.relpath(arena.work / "evil" / "pwn", conf_dir() / group)


def _choice(group: str) -> Callable[[Arena], None]:
    def plant(arena: Arena) -> None:
        _evil_yaml(arena)
        a_sweep(arena, [f"{group}={_up(arena, group)}"])

    return plant


def _words(*words: Any) -> Callable[[Arena], None]:
    def plant(arena: Arena) -> None:
        _evil_yaml(arena)
        texts = [
            word.format(work=arena.work, victim=arena.victim, canary=arena.canary, port=arena.listener.port)
            if isinstance(word, str)
            else word
            for word in words
        ]
        a_sweep(arena, texts)

    return plant


WORDS: dict[str, tuple[Any, ...]] = {
    "an absolute choice": ("experiment={work}/evil/pwn",),
    "a choice with its ending": ("experiment=../evil/pwn.yaml",),
    "a choice under another name": ("+evil@callbacks={work}/evil/pwn",),
    "a choice of Hydra's": ("hydra/job_logging={work}/evil/pwn",),
    "a launcher that is a path": ("hydra/launcher=../../../evil/pwn",),
    "a sweeper that is a path": ("hydra/sweeper={work}/evil/pwn",),
    "an unknown option": ("experiment=unheard_of",),
    "a folder of configs": ("--config-dir={work}/evil",),
    "a folder of configs, in short": ("-cd", "{work}/evil"),
    "another config": ("--config-name=pwn",),
    "a path of configs": ("--config-path={work}/evil",),
    "a rerun": ("--experimental-rerun={work}/evil/pwn.pkl",),
    "a search path": ("hydra.searchpath=[file://{work}/evil]",),
    "a callback of Hydra": (
        "+hydra.callbacks.evil._target_=os.system",
        "+hydra.callbacks.evil.command='touch {canary}'",
    ),
    "a handler of Hydra's log": ("+hydra.job_logging.handlers.x.class=os.system",),
    "an environment": ("+hydra.job.env_set.PYTHONPATH={work}/evil",),
    "a change of folder": ("hydra.job.chdir=true",),
    "a target": ("+callbacks.evil._target_=os.system", "+callbacks.evil.command='touch {canary}'"),
    "a target in a dictionary": ("+callbacks.evil={{_target_:os.system,command:'touch {canary}'}}",),
    "a target with a plus": ("++model._target_=os.system",),
    "a target through a list": ("+trainer.plugins=[{{_target_:os.system,command:'touch {canary}'}}]",),
    "a target put together": ("+evil=os.system", "+callbacks.evil={{'_tar'_: x}}"),
    "a config out of a text": ("+callbacks.evil=${{oc.create:'{{_target_: os.system}}'}}",),
    "pickled data": ("data=files", "data.train={work}/evil/pwn.pkl", "data.allow_pickle=true"),
    "pickled data by another name": ("++data={{allow_pickle: true}}",),
    "a launcher's target": ("hydra.launcher._target_=os.system",),
    "a launcher's address": ("hydra/launcher=ray", "hydra.launcher.address=127.0.0.1:{port}"),
    "a launcher's setup": ("hydra/launcher=submitit_slurm", "+hydra.launcher.parameters.setup=['touch {canary}']"),
    "a sweeper's target": ("hydra.sweeper._target_=os.system",),
    "a sweeper's settings": ("+hydra.sweeper.params={{callbacks.evil._target_: os.system}}",),
    "checkpoints elsewhere": ("callbacks.last.dirpath={victim}/ckpt",),
    "a log elsewhere": ("logger.tensorboard.save_dir={victim}/log",),
    "a cache elsewhere": ("data.cache_dir={victim}/cache",),
    "a root elsewhere": ("trainer.default_root_dir={victim}/root", "logger=none"),
    "a run elsewhere": ("hydra.run.dir={victim}/run",),
    "an output elsewhere": ("hydra.output_subdir=../../victim",),
    "a name that is a path": ("name=../../victim/x",),
    "a flag": ("--hydra-help",),
    "information": ("--info=all",),
    "a shell": ("--shell-completion", "install=bash"),
    "a number": (3,),
    "nothing": (None,),
    "a list": (["-m"],),
    "a resumption": ("resume={victim}",),
    "a group that is deleted": ("~callbacks",),
    "an interpolation of the environment": ("name=${{oc.env:HOME}}",),
}


def _start(**fields: Any) -> Callable[[Arena], None]:
    def plant(arena: Arena) -> None:
        given = {
            key: value.format(victim=arena.victim) if isinstance(value, str) else value for key, value in fields.items()
        }
        a_sweep(arena, start=given)

    return plant


STARTS: dict[str, dict[str, Any]] = {
    "a folder above": {"folder": "../../victim/0"},
    "a folder of somebody": {"folder": "{victim}/0"},
    "a folder that is none": {"folder": "\0"},
    "a number below zero": {"job": -1},
    "a number beyond all": {"job": 10**30},
    "a number that is true": {"job": True},
    "overrides that are numbers": {"overrides": [1, 2, 3]},
    "overrides that are lists": {"overrides": [["seed=0"]]},
    "overrides without end": {"overrides": ["x=" + "y" * 1_000_000]},
    "a place that acts": {"place": "\x1b]0;evil\x07"},
}

HEADERS: dict[str, dict[str, Any]] = {
    "no command line": {"argv": None},
    "a command line that is text": {"argv": "-m seed=0,1"},
    "a command line that is a dictionary": {"argv": {"-m": 1}},
    "a space that is a list": {"space": []},
    "a search that is a number": {"search": 3},
    "objectives that are text": {"objectives": "max"},
    "a monitor that is a path": {"monitor": "../../victim/letter.txt"},
    "a later format": {"format": 99},
    "a format that is text": {"format": "1"},
}


def _header(fields: dict[str, Any]) -> Callable[[Arena], None]:
    return lambda arena: (a_sweep(arena, header=fields), None)[1]


CASES = (
    [
        Case(f"a choice of {group} that is a path", _choice(group), SWEEP, own=("s",), quick=group == "experiment")
        for group in GROUPS
    ]
    + [Case(name, _words(*words), SWEEP, own=("s",)) for name, words in WORDS.items()]
    + [Case(f"a start with {name}", _start(**fields), SWEEP, own=("s",)) for name, fields in STARTS.items()]
    + [Case(f"a header with {name}", _header(fields), SWEEP, own=("s",)) for name, fields in HEADERS.items()]
)
