"""Configs that name what is not this package's, wherever a run keeps a config and wherever a name can stand."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from security.arena import Arena, Case
from security.bases import RUN, TEXT_RUN, a_run, a_text_run, change_configs, pickled, put

PLACES = (
    "callbacks.evil",
    "callbacks.best",
    "logger.evil",
    "data",
    "data.synthetic",
    "model",
    "model.net",
    "model.net.cell",
    "optimizer",
    "scheduler",
    "trainer.strategy",
    "trainer.plugins",
    "evil.deep",
)
PAYLOADS: dict[str, Callable[[Arena], Any]] = {
    "os.system": lambda arena: arena.system,
    "pandas.read_pickle": lambda arena: {
        "_target_": "pandas.read_pickle",
        "filepath_or_buffer": str(arena.work / "evil.pkl"),
    },
    "a module behind ours": lambda arena: {
        "_target_": "recur.tasks.sentiment.torch.load",
        "f": str(arena.work / "evil.pkl"),
        "weights_only": False,
    },
    "a function of ours that deletes": lambda arena: {
        "_target_": "recur.training.checkpointing.rewind",
        "folder": {"_target_": "pathlib.Path", "_args_": [str(arena.victim)]},
        "checkpoint": None,
    },
    "an instance of instantiate": lambda arena: {"_target_": "hydra.utils.instantiate", "config": arena.system},
    "positional arguments": lambda arena: {"_target_": "subprocess.call", "_args_": [["sh", "-c", arena.shell]]},
    "a name put together": lambda arena: {"_target_": "${evil_name}", "command": arena.shell},
    "a config out of a text": lambda arena: (
        "${oc.create:'{_target_: os.system, command: touch " + f"{arena.canary}}}'}}"
    ),
}


def _planted(place: str, payload: Callable[[Arena], Any], base: Callable[[Arena], Path]) -> Callable[[Arena], None]:
    def plant(arena: Arena) -> None:
        run = base(arena)
        (arena.work / "evil.pkl").write_bytes(pickled(arena))

        def change(config: dict[str, Any]) -> None:
            value = payload(arena)
            put(config, place, [value] if place == "trainer.plugins" else value)
            config["evil_name"] = "os.system"

        change_configs(run, change)

    return plant


CASES = [
    Case(
        f"{kind} at {place}",
        _planted(place, payload, a_run),
        RUN,
        quick=(place, kind) == ("callbacks.evil", "os.system"),
    )
    for place, (kind, payload) in itertools.product(PLACES, PAYLOADS.items())
] + [
    Case(f"{kind} at {place} of a text run", _planted(place, PAYLOADS[kind], a_text_run), TEXT_RUN, own=("r",))
    for place, kind in (("data.synthetic", "os.system"), ("model.net", "os.system"), ("callbacks.samples", "os.system"))
]


# ----------------------------------------------------------------------------------------- what Hydra itself would obey


def _text(name: str, edit: Callable[[Arena, str], str]) -> Callable[[Arena], None]:
    def plant(arena: Arena) -> None:
        path = a_run(arena) / name
        path.write_text(edit(arena, path.read_text() if path.is_file() else ""))

    return plant


def _beside(name: str, text: Callable[[Arena], str]) -> Callable[[Arena], None]:
    return _text(f".hydra/{name}", lambda arena, _: text(arena))


def _callbacks(arena: Arena) -> str:
    return f"evil:\n  _target_: os.system\n  command: {arena.shell!r}\n"


HYDRA: dict[str, Callable[[Arena], None]] = {
    "callbacks of Hydra": _text(
        ".hydra/config.yaml", lambda arena, text: f"{text}\nhydra:\n  callbacks:\n    evil: {arena.system}\n"
    ),
    "handlers of Hydra's log": _text(
        ".hydra/config.yaml",
        lambda arena, text: (
            f"{text}\nhydra:\n  job_logging:\n    handlers:\n      x: {{'()': os.system, command: {arena.shell!r}}}\n"
        ),
    ),
    "a search path": _text(
        ".hydra/config.yaml", lambda arena, text: f"{text}\nhydra:\n  searchpath: ['file://{arena.work}']\n"
    ),
    "defaults": _text(".hydra/config.yaml", lambda arena, text: f"{text}\ndefaults: [evil]\n"),
    "a package": _text(
        ".hydra/config.yaml", lambda arena, text: f"# @package hydra.callbacks\n{text}{_callbacks(arena)}"
    ),
    "a package without a space": _text(".hydra/config.yaml", lambda arena, text: f"#@package hydra.callbacks\n{text}"),
    "two documents": _text(
        ".hydra/config.yaml", lambda arena, text: f"{text}\n---\nhydra: {{callbacks: {{a: {arena.system}}}}}\n"
    ),
    "a key said twice": _text(
        ".hydra/config.yaml", lambda arena, text: f"{text}\ncallbacks:\n  evil: {arena.system}\n"
    ),
    "a merge key": _text(
        ".hydra/config.yaml", lambda arena, text: f"{text}\nevil: &evil\n  e: {arena.system}\nmore:\n  <<: *evil\n"
    ),
    "a config beside it": _beside("evil.yaml", _callbacks),
    "a group beside it": _beside("../.hydra/callbacks.yaml", _callbacks),
    "a module beside it": _beside("__init__.py", lambda arena: f"import os; os.system({arena.shell!r})"),
    "Hydra's own record": _text(
        ".hydra/hydra.yaml",
        lambda arena, text: f"{text}\n  callbacks: {{evil: {arena.system}}}\n".replace("callbacks: {}", ""),
    ),
    "recorded overrides": _text(
        ".hydra/overrides.yaml", lambda arena, text: f"{text}- '+hydra.callbacks.evil={arena.system}'\n"
    ),
    "a name that is a setting": _text("config.yaml", lambda arena, text: text.replace("name: ", "name: x -m ")),
}
for _file, _tag in itertools.product(
    (".hydra/config.yaml", "config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml"),
    (
        "!!python/object/apply:os.system [{!r}]",
        "!!python/object/new:os.system [{!r}]",
        "!!python/name:os.system",
        "!!python/module:antigravity",
    ),
):
    HYDRA[f"{_tag.partition(' ')[0][2:]} in {_file}"] = _text(
        _file,
        lambda arena, text, tag=_tag, file=_file: (
            f"{text}\n{'- ' if 'overrides' in file else 'evil: '}{tag.format(arena.shell)}\n"
        ),
    )
CASES += [Case(name, plant, RUN) for name, plant in HYDRA.items()]
