"""The door to exact figures: `python -m recur.evaluate RUN` prints a run's metrics as JSON.

One process and one device, whatever the run was trained on; every text once. The run's own data by default, read with
the settings it was trained with; with `--data`, any file or folder, read with the run's own tokenizer and classes.
"""

import argparse
import inspect
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recur import cli

if TYPE_CHECKING:
    from recur.runs import Run

# What says where a run's own data is; none of it holds for somebody else's file.
_PLACES = ("path", "name", "revision", "train", "val", "test", "unlabelled", "synthetic", "limit_train", "vectors")
# What a run's data settings may build.
_TARGETS = ("recur.data.sentiment.SentimentData", "recur.data.language.LanguageData", "recur.data.synthetic.Synthetic")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `python -m recur.evaluate` and `recur-evaluate`."""
    arguments = _parser().parse_args(argv)
    cli.guard(lambda: _run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    if arguments.split not in (None, "train", "val", "test"):
        raise ValueError(f"--split is train, val or test, got {arguments.split!r}")
    if arguments.data and not Path(arguments.data).exists():
        raise ValueError(f"there is no file or folder {arguments.data}")

    from recur.runs import Run, plain

    run = Run.open(arguments.run)
    data = open_data(run, arguments.data, arguments.settings)
    splits = [arguments.split] if arguments.split else _default_splits(data)
    record: dict[str, Any] = {"run": str(arguments.run), "checkpoint": str(run.checkpoint), "family": run.family}
    record["data"] = arguments.data or {key: run.config["data"].get(key) for key in ("path", "train", "test")}
    record.update({split: evaluate(run, data, split, arguments.device) for split in splits})
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

    from recur.runs import check_targets

    config = dict(run.config["data"])
    check_targets(config, "data", _TARGETS)
    known = sorted(inspect.signature(get_class(config["_target_"])).parameters)
    if "allow_pickle" in config:
        config["allow_pickle"] = False  # a run may come from anybody: only who types this command may allow it
    settings = [setting.removeprefix("data.") for setting in settings]
    for setting in settings:
        key, equals, _ = setting.partition("=")
        if not equals or key.partition(".")[0] not in known:
            hint = cli.nearest(key, known) or f"; it has {', '.join(known)}"
            raise ValueError(f"{setting} is no KEY=VALUE of the run's data settings{hint}")
    if path is not None:
        config = {key: value for key, value in config.items() if key not in _PLACES}
        # A single file is found as the split `train`; evaluated, it is called the test split.
        config |= {"path": path, **({"test": "train"} if Path(path).is_file() else {})}
    changed = OmegaConf.merge(OmegaConf.create(config), OmegaConf.from_dotlist(settings))
    config = OmegaConf.to_container(changed)  # type: ignore[assignment]
    check_targets(config, "data", _TARGETS)  # settings of the command line may not widen it
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

    from recur import report

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


if __name__ == "__main__":
    main()
