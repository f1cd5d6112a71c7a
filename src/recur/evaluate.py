"""`python -m recur.evaluate RUN`: a run's metrics as JSON.

On the run's own data by default, read with the settings it was trained with; with `--data`, on any file or folder,
read with the run's own tokenizer and classes.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recur import cli
from recur.errors import UserError


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
    language.add_argument(
        "--dynamic",
        metavar="LR",
        type=_rate,
        help="go on learning from the text (5e-5 is usual), or `tune`: with the settings best on validation text",
    )
    language.add_argument("--dynamic-decay", metavar="X", type=float, help="pull back to the first weights (.002)")
    language.add_argument("--dynamic-epsilon", metavar="X", type=float, help="least gradient size (2e-5)")
    language.add_argument("--cache", metavar="SIZE", type=int, help="cache so many states (2000 is usual)")
    language.add_argument("--cache-flatness", metavar="X", type=float, help="default .3")
    language.add_argument("--cache-weight", metavar="X", type=float, help="default .1")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    _check(arguments)
    from recur.inference import evaluation
    from recur.inference.run import load
    from recur.runs import precision
    from recur.runs.metrics import plain

    with cli.typed_names():
        cache = _settings(evaluation.Cache, arguments, {"size": "cache"}, "flatness", "weight", prefix="cache")
        tune = arguments.dynamic == "tune"
        options = ("decay", "epsilon")
        dynamic = (
            None if tune else _settings(evaluation.Dynamic, arguments, {"lr": "dynamic"}, *options, prefix="dynamic")
        )
    run = load(arguments.run, arguments.device)
    if cache or dynamic or tune:
        run.require("language", "evaluate --dynamic or --cache")
        if cache and run.task.window is not None:
            raise UserError("--cache", rule="needs states along a text, and this run reads each window by itself")
    data = evaluation.open_data(run, arguments.data, arguments.settings)
    splits = evaluation.chosen_splits(data, arguments.split)
    if dynamic or tune:
        training = evaluation.open_data(run) if arguments.data else data
        statistics = evaluation.training_statistics(run, training)
        dynamic = dynamic or evaluation.tuned_dynamic(run, training, statistics)
    record: dict[str, Any] = {"run": str(arguments.run), "checkpoint": str(run.checkpoint), "family": run.family}
    record["data"] = arguments.data or {key: run.config["data"].get(key) for key in ("path", "train", "test")}
    record["precision"] = precision.of_evaluation(run.config, run.task.device)[0]
    for split in splits:
        record[split] = evaluation.evaluate_split(run, data, split)
        if cache:
            record[split]["neural_cache"] = evaluation.cache_figures(run, data, split, cache)
        if dynamic:
            record[split]["dynamic_evaluation"] = evaluation.dynamic_figures(run, data, split, dynamic, statistics)
    if not arguments.data and data.ceiling:
        record["ceiling"] = data.ceiling
    json.dump(plain(record), sys.stdout, indent=2, ensure_ascii=False)
    print(flush=True)


def _rate(word: str) -> float | str:
    """A learning rate, or `tune`."""
    try:
        return word if word == "tune" else float(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number or `tune`, got {word!r}") from None


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what can be refused before anything heavy is loaded."""
    if arguments.split not in (None, "train", "val", "test"):
        raise UserError("--split", arguments.split, "must be train, val or test")
    if arguments.data and not Path(arguments.data).exists():
        raise UserError("--data", arguments.data, "must be a file or folder, and there is none")
    if arguments.dynamic == "tune" and (arguments.dynamic_decay, arguments.dynamic_epsilon) != (None, None):
        raise UserError("--dynamic tune", rule="chooses the other settings itself", remedy="leave them out")
    for option, needed in (
        ("dynamic_decay", "dynamic"),
        ("dynamic_epsilon", "dynamic"),
        ("cache_flatness", "cache"),
        ("cache_weight", "cache"),
    ):
        if getattr(arguments, option) is not None and getattr(arguments, needed) is None:
            raise UserError(
                f"--{option.replace('_', '-')}", rule=f"does nothing without --{needed}", remedy="give both"
            )


def _settings(
    kind: Any, arguments: argparse.Namespace, main_field: dict[str, str], *others: str, prefix: str
) -> Any | None:
    """The settings object of a group of options, None where its main option is not given."""
    ((field, option),) = main_field.items()
    if getattr(arguments, option) is None:
        return None
    given = {name: getattr(arguments, f"{prefix}_{name}") for name in others}
    return kind(**{field: getattr(arguments, option)}, **{name: v for name, v in given.items() if v is not None})


if __name__ == "__main__":
    main()
