"""Interpolations that would resolve to what the environment holds, wherever a config can have them."""

import itertools
from collections.abc import Callable
from typing import Any

from security.arena import SECRET, Arena, Case
from security.bases import RUN, SWEEP, a_run, a_sweep, change_checkpoint, change_configs, change_yaml, put

TEXTS = {
    "the environment": f"${{oc.env:{SECRET}}}",
    "the environment with another's place": f"${{oc.env:{SECRET},none}}",
    "the environment inside a text": f"x-${{oc.env:{SECRET}}}-y",
    "the environment decoded": f"${{oc.decode:${{oc.env:{SECRET}}}}}",
    "the environment by a name put together": "${oc.env:${evil_name}}",
    "the environment created": f"${{oc.create:${{oc.env:{SECRET}}}}}",
    "a list of the environment": [f"${{oc.env:{SECRET}}}"],
    "the environment of old": f"${{env:{SECRET}}}",
}
PLACES = (
    "name",
    "evil",
    "callbacks.last.evil",
    "data.cache_dir",
    "model.net.cell",
    "trainer.default_root_dir",
    "monitor",
)


def _planted(place: str, text: Any) -> Callable[[Arena], None]:
    def change(config: dict[str, Any]) -> None:
        put(config, place, text)
        config["evil_name"] = SECRET

    return lambda arena: change_configs(a_run(arena), change)


CASES = [
    Case(f"{kind} as {place}", _planted(place, text), RUN, quick=(kind, place) == ("the environment", "name"))
    for (kind, text), place in itertools.product(TEXTS.items(), PLACES)
    if kind == "the environment" or place in ("name", "evil")
]


def _only_hydra(text: str) -> Callable[[Arena], None]:
    return lambda arena: change_yaml(a_run(arena) / ".hydra" / "config.yaml", lambda c: put(c, "evil", text))


CASES += [
    Case("an interpolation as a key", _only_hydra(f"${{evil_${{oc.env:{SECRET}}}}}"), RUN),
    Case("Hydra's own settings", _only_hydra("${hydra:job.env_set}"), RUN),
    Case("Hydra's overrides", _only_hydra("${hydra:overrides.task}"), RUN),
    Case("the time", _only_hydra("${now:%H}"), RUN[:1], codes=(0, 2)),
    Case(
        "the environment in a checkpoint's data",
        lambda arena: [
            change_checkpoint(path, lambda c: put(c["recur"], "data.class_names", [f"${{oc.env:{SECRET}}}", "b"]))
            for path in (a_run(arena) / "checkpoints").glob("*.ckpt")
        ],
        RUN,
    ),
]
CASES += [
    Case(f"a manifest's {word.partition('=')[0]}", lambda arena, word=word: a_sweep(arena, [word]), SWEEP, own=("s",))
    for word in (
        f"name=${{oc.env:{SECRET}}}",
        f"'name=x-${{oc.env:{SECRET}}}'",
        f"+evil=${{oc.env:{SECRET}}}",
        f"hydra.sweep.subdir=${{hydra.job.num}}-${{oc.env:{SECRET}}}",
        f"hydra.job.name=${{oc.env:{SECRET}}}",
        f"+hydra.sweeper.params={{seed: '${{oc.env:{SECRET}}}'}}",
    )
]


def _multirun(arena: Arena) -> None:
    sweep = a_sweep(arena, complete=2, start={"overrides": [f"seed=${{oc.env:{SECRET}}}"]})
    for job in "01":
        change_yaml(sweep / job / "config.yaml", lambda c: put(c, "optimizer.lr", f"${{oc.env:{SECRET}}}"))


def _two_sweeps(arena: Arena) -> None:
    """A comparison looks settings up in the runs' own configs, where another sweep varied them."""
    _multirun(arena)
    a_sweep(arena, complete=2, start={"overrides": ["optimizer.lr=1"]}, name="t")


CASES += [
    Case("the runs' configs, read for a page", _multirun, (("results", "s"),), own=("s",)),
    Case("the runs' configs, compared", _two_sweeps, (("results", "s", "t"),), own=("s", "t")),
]
