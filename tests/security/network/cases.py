"""Configs, manifests and folders of data that would have something fetched, or a run sent to somebody's service."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from security.arena import Arena, Case
from security.bases import (
    EXPORT,
    FILE,
    RUN,
    SWEEP,
    TEXT_RUN,
    TINY,
    a_checkpoint,
    a_run,
    a_sweep,
    a_text_run,
    an_export,
    change_configs,
    put,
)

REMOTE = {
    "a data set of the hub": "evil/reviews",
    "one of a single word": "reviews",
    "an address": "http://127.0.0.1:{port}/reviews.csv",
    "an address of the hub's": "hf://datasets/evil/reviews/train.csv",
    "a folder of another machine": "//127.0.0.1/share",
}


def _data(arena: Arena, config: dict[str, Any], text: str) -> None:
    put(config, "data.synthetic", None)
    put(config, "data.path", text.format(port=arena.listener.port))


def _run(text: str, base: Callable[[Arena], Path] = a_run, **more: Any) -> Callable[[Arena], None]:
    def plant(arena: Arena) -> None:
        def change(config: dict[str, Any]) -> None:
            _data(arena, config, text)
            for key, value in more.items():
                put(config, f"data.{key}", value)

        change_configs(base(arena), change)

    return plant


def _file(text: str) -> Callable[[Arena], None]:
    return lambda arena: (a_checkpoint(arena, lambda c: _data(arena, c["recur"]["config"], text)), None)[1]


CASES = [
    Case(f"a run of {kind}", _run(text), RUN, quick=kind == "a data set of the hub") for kind, text in REMOTE.items()
]
CASES += [
    Case("a run of a data set at a commit", _run("evil/reviews", revision="0" * 40), RUN),
    Case("a run of a branch of a data set", _run("evil/reviews", revision="main", subset="x"), RUN),
    Case("a text run of a data set of the hub", _run("evil/books", a_text_run), TEXT_RUN),
    Case("a run whose vectors have an address", _run("evil/reviews", vectors="http://127.0.0.1:1/v.vec"), RUN[:2]),
    Case("a checkpoint of a data set of the hub", _file("evil/reviews"), FILE, own=("a.ckpt",)),
]


def _export(arena: Arena) -> None:
    import json

    path = an_export(arena) / "config.json"
    content = json.loads(path.read_text())
    _data(arena, content["config"], "evil/reviews")
    path.write_text(json.dumps(content))


CASES.append(Case("an export of a data set of the hub", _export, EXPORT[:2], own=()))

# ------------------------------------------------------------------------------------------------------------- services
LOGGERS: dict[str, Callable[[Arena], dict[str, Any]]] = {
    "W&B": lambda arena: _wandb(),
    "W&B with a word for offline": lambda arena: _wandb(offline="no"),
    "W&B with its checkpoints": lambda arena: _wandb(log_model=True),
    "MLflow": lambda arena: _mlflow(f"http://127.0.0.1:{arena.listener.port}"),
    "MLflow in a folder": lambda arena: _mlflow(str(arena.victim / "mlruns")),
    "MLflow in a database": lambda arena: _mlflow(f"sqlite:///{arena.victim}/mlflow.db"),
}


def _wandb(**more: Any) -> dict[str, Any]:
    own = {"folder": "${hydra:runtime.output_dir}", "name": "${name}", "project": "recur"}
    return {"_target_": "recur.training.loggers.wandb", **own, **more}


def _mlflow(uri: str) -> dict[str, Any]:
    own = {"folder": "${hydra:runtime.output_dir}", "name": "${name}", "experiment": "recur"}
    return {"_target_": "recur.training.loggers.mlflow", **own, "tracking_uri": uri}


def _logger(make: Callable[[Arena], dict[str, Any]]) -> Callable[[Arena], None]:
    return lambda arena: change_configs(a_run(arena), lambda config: put(config, "logger.evil", make(arena)))


CASES += [
    Case(f"a run that logs to {kind}", _logger(make), RUN[:1], codes=(2,), quick=kind == "MLflow")
    for kind, make in LOGGERS.items()
]
CASES += [
    Case(
        f"a manifest's {words.rpartition(' ')[2].partition('=')[0]} {number}",
        lambda arena, words=words: a_sweep(arena, words.split()),
        SWEEP,
        own=("s",),
    )
    for number, words in enumerate(
        (
            "logger=wandb",
            "logger=mlflow",
            "+logger.m.tracking_uri=http://127.0.0.1:9",
            "data=imdb",
            "data=imdb data.path=evil/reviews",
            "hydra/launcher=ray",
            "hydra.launcher.address=127.0.0.1:6379",
        )
    )
]


def _service(arena: Arena) -> None:
    words = ["logger=mlflow", f"logger.mlflow.tracking_uri=http://127.0.0.1:{arena.listener.port}"]
    a_sweep(arena, words)


CASES.append(Case("a manifest of a service", _service, SWEEP[:1], own=("s",), codes=(2,)))

# ----------------------------------------------------------------------------------------------------- folders of data
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
CARDS = {
    "an address": "configs:\n- config_name: default\n  data_files: http://127.0.0.1:{port}/train.csv\n",
    "addresses by split": (
        "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: http://127.0.0.1:{port}/a.csv\n"
    ),
    "an address in an archive": "configs:\n- config_name: default\n  data_files: zip://a.csv::http://127.0.0.1:{port}/a.zip\n",
    "the hub": "configs:\n- config_name: default\n  data_files: hf://datasets/evil/reviews/train.csv\n",
    "an alias bomb": f"{BOMB}configs:\n- config_name: default\n  data_files: '*.csv'\n",
    "an alias of itself": "configs: &a\n- config_name: default\n  data_files: '*.csv'\n  more: *a\n",
}
_NEW = (*TINY[4:], "hydra.run.dir=new")
_READ = (("train", "data=imdb", "data.path=d", *_NEW),)


def _card(name: str, text: str) -> Callable[[Arena], None]:
    def plant(arena: Arena) -> None:
        arena.path("d/train.csv").write_text("text,label\ngood film,1\nbad film,0\n")
        written = text.format(port=arena.listener.port)
        arena.path(f"d/{name}").write_text(f"---\n{written}---\n# Data\n" if name == "README.md" else written)

    return plant


def _card_pipe(name: str) -> Callable[[Arena], None]:
    def plant(arena: Arena) -> None:
        arena.path("d/train.csv").write_text("text,label\ngood film,1\nbad film,0\n")
        os.mkfifo(arena.path(f"d/{name}"))

    return plant


CASES += [
    Case(f"a folder whose {name} names {kind}", _card(name, text), _READ, own=("new",), codes=(2,))
    for name in ("README.md", ".huggingface.yaml")
    for kind, text in CARDS.items()
]
CASES += [
    Case(f"a folder whose {name} is a pipe", _card_pipe(name), _READ, own=("new",), codes=(2,))
    for name in ("README.md", ".huggingface.yaml")
]
