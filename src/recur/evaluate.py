"""The door to exact figures: `python -m recur.evaluate RUN` prints a run's metrics as JSON.

One process and one device, whatever the run was trained on; every text once. The run's own data by default, read with
the settings it was trained with; with `--data`, any file or folder, read with the run's own tokenizer and classes.
"""

import argparse
import inspect
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recur import cli
from recur.errors import nearest
from recur.runs.run import Run

if TYPE_CHECKING:
    from recur.runs.run import Run
# What says where a run's own data is; none of it holds for somebody else's file.
_PLACES = (
    "path",
    "name",
    "revision",
    "train",
    "val",
    "test",
    "unlabelled",
    "text",
    "synthetic",
    "limit_train",
    "vectors",
)
_DYNAMIC_WINDOW = 5  # tokens, as Krause et al. use
_STATISTICS_WINDOWS = 500  # of training text, to learn how large each weight's gradients are in such windows


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `python -m recur.evaluate` and `recur-evaluate`."""
    arguments = _parser().parse_intermixed_args(argv)
    cli.guard(lambda: _run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="recur.evaluate",
        description="Print a run's metrics as JSON.",
        epilog="example: python -m recur.evaluate outputs/... --data reviews.csv text_column=review",
    )
    parser.add_argument("run", help="run folder or checkpoint")
    parser.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="data settings to change: batch_size=256, text_column=review"
    )
    parser.add_argument("--data", metavar="PATH", help="file or folder to read instead of the run's own data")
    parser.add_argument("--split", metavar="S", help="train, val or test (default: val and test, or all there is)")
    language = parser.add_argument_group("language runs, reported beside the plain figure")
    language.add_argument("--dynamic", metavar="LR", type=float, help="go on learning from the text (.001 is usual)")
    language.add_argument("--dynamic-decay", metavar="X", type=float, default=0.02, help="pull back (default .02)")
    language.add_argument("--cache", metavar="SIZE", type=int, help="remember so many states (2000 is usual)")
    language.add_argument("--cache-flatness", metavar="X", type=float, default=0.3, help="default .3")
    language.add_argument("--cache-weight", metavar="X", type=float, default=0.1, help="default .1")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    if arguments.split not in (None, "train", "val", "test"):
        raise ValueError(f"--split is train, val or test, got {arguments.split!r}")
    if arguments.data and not Path(arguments.data).exists():
        raise ValueError(f"there is no file or folder {arguments.data}")

    from recur.runs.metrics import plain
    from recur.runs.run import Run, device

    device(arguments.device)
    run = Run.open(arguments.run)
    if arguments.dynamic is not None or arguments.cache is not None:
        run.require("language", "evaluate --dynamic or --cache")
        _check_options(arguments)
    data = open_data(run, arguments.data, arguments.settings)
    if arguments.split and arguments.split not in data.splits:
        raise ValueError(f"the data has no split {arguments.split!r}, only {', '.join(data.splits)}")
    splits = [arguments.split] if arguments.split else _default_splits(data)
    record: dict[str, Any] = {"run": str(arguments.run), "checkpoint": str(run.checkpoint), "family": run.family}
    record["data"] = arguments.data or {key: run.config["data"].get(key) for key in ("path", "train", "test")}
    for split in splits:
        record[split] = evaluate(run, data, split, arguments.device)
        record[split].update(_beyond(run, data, split, arguments))
    if not arguments.data and data.ceiling:
        record["ceiling"] = data.ceiling
    json.dump(plain(record), sys.stdout, indent=2, ensure_ascii=False)
    print(flush=True)


def open_data(run: "Run", path: str | None = None, settings: Sequence[str] = ()) -> Any:
    """The data of a run, or other data as the run would read it.

    Args:
        run: an open run.
        path: a file or folder; None for the run's own data.
        settings: `key=value` changes to the data settings.

    Raises:
        ValueError: an unknown setting, or the run's own data has changed since.
    """
    from hydra.utils import get_class, instantiate
    from omegaconf import OmegaConf

    from recur.config import schema
    from recur.runs import trust

    config = dict(run.config["data"])
    trust.check_targets(config, "data", trust.DATA)
    typed = [f"data.{setting.removeprefix('data.')}" for setting in settings]
    trust.check_paths(config, "data", run.folder or run.checkpoint.parent, typed)
    known = sorted(inspect.signature(get_class(config["_target_"])).parameters)
    if "allow_pickle" in config:
        config["allow_pickle"] = False  # a run may come from anybody: only who types this command may allow it
    settings = [setting.removeprefix("data.") for setting in settings]
    for setting in settings:
        key, equals, _ = setting.partition("=")
        if not equals or key.partition(".")[0] not in known:
            hint = nearest(key, known) or f"; it has {', '.join(known)}"
            raise ValueError(f"{setting} is no KEY=VALUE of the run's data settings{hint}")
    if path is not None:
        config = {key: value for key, value in config.items() if key not in _PLACES}
        # A single file is found as the split `train`; evaluated, it is called the test split.
        config |= {"path": path, **({"test": "train"} if Path(path).is_file() else {})}
    changed = OmegaConf.merge(OmegaConf.create(config), OmegaConf.from_dotlist(settings))
    config = OmegaConf.to_container(changed, resolve=True)  # type: ignore[assignment]
    trust.check_targets(config, "data", trust.DATA)  # settings of the command line may not widen it
    schema.check(config, "data")
    data = instantiate(config, _convert_="all")
    if path is not None:
        data.use(run.tokenizer, *([run.data["class_names"]] if run.family == "sentiment" else []))
    data.prepare_data()
    data.setup()
    if path is None and data.tokenizer.to_json() != run.tokenizer.to_json():
        raise ValueError(
            f"the data of {run.checkpoint} has changed since it was trained: its vocabulary is another one now. "
            "Name the data to evaluate on with --data"
        )
    return data


def _default_splits(data: Any) -> list[str]:
    found = [split for split in ("val", "test") if split in data.splits]
    return found or list(data.splits)


def evaluate(run: "Run", data: Any, split: str, device: str = "cpu") -> dict[str, Any]:
    """Metrics of one split.

    Args:
        run: an open run.
        data: its data module, set up.
        split: train, val or test.
        device: where to compute.
    """
    import lightning.pytorch as pl
    import torch

    from recur.training import report

    report.quiet()
    kind = torch.device(device)
    loader = data.loader(split)
    trainer = pl.Trainer(
        accelerator="gpu" if kind.type == "cuda" else kind.type,
        devices=[kind.index or 0] if kind.type == "cuda" else 1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.test(run.task, loader, verbose=False)
    metrics: dict[str, Any] = report.metrics_of(trainer, "test/")
    if run.family == "sentiment":
        metrics["texts"] = len(loader.texts)
        metrics["confusion"] = run.task.confusion.compute().tolist()  # [true][said]
        metrics["class_names"] = run.task.class_names
    return metrics


def _check_options(arguments: argparse.Namespace) -> None:
    for name, value, good in (
        ("dynamic", arguments.dynamic, lambda x: x > 0),
        ("dynamic-decay", arguments.dynamic_decay, lambda x: 0 <= x <= 1),
        ("cache", arguments.cache, lambda x: x > 0),
        ("cache-flatness", arguments.cache_flatness, lambda x: x >= 0),
        ("cache-weight", arguments.cache_weight, lambda x: 0 <= x < 1),
    ):
        if value is not None and not good(value):
            rule = {"dynamic-decay": "from 0 to 1", "cache-flatness": "at least 0", "cache-weight": "in [0, 1)"}
            raise ValueError(f"--{name} must be {rule.get(name, 'above 0')}, got {value}")


def _beyond(run: "Run", data: Any, split: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures of a language model that may use the text it has read, apart from the plain one."""
    if arguments.dynamic is None and arguments.cache is None:
        return {}
    from recur.data.streams import StreamLoader
    from recur.tasks.dynamic_evaluation import dynamic_evaluation, neural_cache

    told: dict[str, Any] = {}
    task = run.task.to(arguments.device).eval()
    if arguments.cache is not None:
        settings = {"size": arguments.cache, "flatness": arguments.cache_flatness, "weight": arguments.cache_weight}
        told["neural_cache"] = neural_cache(task, data.loader(split), **settings) | settings
    if arguments.dynamic is not None:
        # One stream in short windows: the sooner it learns from what it read, the more it gains.
        def stream(name: str) -> Any:
            return StreamLoader(data.tokens(name), batch_size=1, bptt=_DYNAMIC_WINDOW, start_id=data.start_id)

        some = itertools.islice(stream("train"), _STATISTICS_WINDOWS) if "train" in data.splits else None
        settings = {"lr": arguments.dynamic, "decay": arguments.dynamic_decay}
        task.requires_grad_(True)
        try:
            found = dynamic_evaluation(task, stream(split), statistics=some, **settings)
        except OverflowError:
            raise ValueError(f"--dynamic {arguments.dynamic} makes the model diverge on {split}: lower it") from None
        told["dynamic_evaluation"] = found | settings | {"gradient_statistics": some is not None}
    return told


if __name__ == "__main__":
    main()
