"""`python -m recur.evaluate RUN`: a run's metrics as JSON.

On the run's own data by default, read with the settings it was trained with; with `--data`, on any file or folder,
read with the run's own tokenizer and classes.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from recur import cli
from recur.errors import UserError

WITHOUT_AUTOCAST = "32-true"  # whatever the run measured itself in


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
        "settings",
        nargs="*",
        metavar="KEY=VALUE",
        help="data settings to change: eval_batch_size=64, keep=both",
    )
    cli.add_others(parser)
    parser.add_argument("--data", metavar="PATH", help="file or folder to read instead of the run's own data")
    parser.add_argument("--split", metavar="S", help="train, val or test (default: val and test, or all there is)")
    parser.add_argument(
        "--mistakes",
        metavar="FILE",
        help="write the texts that a classifier labels wrongly to a csv, tsv or jsonl file, the surest first",
    )
    parser.add_argument("--overwrite", action="store_true", help="let --mistakes replace a file")
    language = parser.add_argument_group("language runs, reported beside the plain figure")
    language.add_argument(
        "--dynamic",
        metavar="LR",
        type=_number_or_tune,
        help="go on learning from the text (5e-5 is usual), or `tune`: with the settings best on validation text",
    )
    language.add_argument("--dynamic-decay", metavar="X", type=float, help="pull back to the first weights (.002)")
    language.add_argument("--dynamic-epsilon", metavar="X", type=float, help="least gradient size (2e-5)")
    language.add_argument(
        "--cache",
        metavar="SIZE",
        type=_size_or_tune,
        help="cache so many states (2000 is usual), or `tune`: 2000, with the settings best on validation text",
    )
    language.add_argument("--cache-flatness", metavar="X", type=float, help="default .3")
    language.add_argument("--cache-weight", metavar="X", type=float, help="default .1")
    language.add_argument(
        "--temperature",
        metavar="T",
        type=_number_or_tune,
        help="divide the logits by it, or `tune`: by what is best on validation text",
    )
    language.add_argument(
        "--window",
        metavar="TOKENS",
        type=int,
        help="read every window of so many tokens from an empty state, as models of a fixed context are measured",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    _check(arguments)
    from recur.inference import evaluation, io
    from recur.inference.ensemble import check_settings, ensemble_of, mistakes
    from recur.inference.run import load
    from recur.runs import precision
    from recur.runs.metrics import finite, plain

    with cli.typed_names():
        cache = _settings(evaluation.Cache, arguments, {"size": "cache"}, "flatness", "weight", prefix="cache")
        options = ("decay", "epsilon")
        dynamic = _settings(evaluation.Dynamic, arguments, {"lr": "dynamic"}, *options, prefix="dynamic")
        temperature = arguments.temperature
    run = load(arguments.run, arguments.device)
    if cache or dynamic or temperature or arguments.window:
        run.require("language", "evaluate --dynamic, --cache, --temperature or --window")
        for option, wanted in (("--cache", cache), ("--dynamic", dynamic)):
            if wanted and run.task.window is not None:
                raise UserError(option, rule="needs states along a text, and this run reads each window by itself")
    if arguments.mistakes:
        run.require("sentiment", "evaluate --mistakes")
        io.check_out(arguments.mistakes, arguments.overwrite, option="--mistakes")
    ensemble = ensemble_of(run, arguments.others, arguments.device)
    if ensemble:
        check_settings(arguments.settings)
    data = evaluation.open_data(run, arguments.data, arguments.settings)
    if arguments.mistakes:
        beside = [run.config["data"].get(key) for key in ("unlabelled", "pseudo_labelled")]
        named = [file for given in beside for file in (given if isinstance(given, list) else [given])]
        files = [*getattr(data, "files", list)(), *(file for file in named if isinstance(file, str))]
        io.check_out(arguments.mistakes, True, files, "--mistakes")
    splits = evaluation.chosen_splits(data, arguments.split)
    if dynamic or "tune" in (cache, temperature):
        reading = evaluation.same_content(arguments.settings)
        training = evaluation.open_data(run, settings=reading) if arguments.data else data
    if "tune" in (cache, dynamic, temperature) and "val" not in training.splits:
        raise UserError("tune", rule="needs validation text, and this run has none", remedy="give the settings")
    if temperature == "tune":
        temperature = evaluation.tuned_temperature(run, training)
    if cache == "tune":
        cache = evaluation.tuned_cache(run, training)
    if dynamic:
        statistics = evaluation.training_statistics(run, training)
        if dynamic == "tune":
            dynamic = evaluation.tuned_dynamic(run, training, statistics)
    record: dict[str, Any] = {"run": str(arguments.run), "checkpoint": str(run.checkpoint), "family": run.family}
    settings = evaluation.settings_of_data(run, arguments.data, arguments.settings)
    record["data"] = arguments.data or {key: settings.get(key) for key in ("path", "train", "val", "test")}
    record["precision"] = WITHOUT_AUTOCAST if ensemble else precision.of_evaluation(run.config, run.task.device)[0]
    measure = partial(ensemble.evaluate_split if ensemble else partial(evaluation.evaluate_split, run), data)
    if ensemble:
        record["with"] = arguments.others
    for split in splits:
        record[split] = measure(split)
        if arguments.window:
            record[split]["each_window_alone"] = evaluation.window_figures(run, data, split, arguments.window)
        if temperature:
            record[split]["temperature"] = evaluation.temperature_figures(run, data, split, temperature)
        if cache:
            record[split]["neural_cache"] = evaluation.cache_figures(run, data, split, cache)
        if dynamic:
            record[split]["dynamic_evaluation"] = evaluation.dynamic_figures(run, data, split, dynamic, statistics)
        for figures in record[split].values():
            if isinstance(figures, dict) and "perplexity" in figures:
                figures["precision"] = WITHOUT_AUTOCAST
    if not arguments.data:  # as in `metrics.json`, of the splits that are measured
        best = {split: data.ceiling_of(split) for split in splits if split != "train"}
        record |= {"ceiling": best["test"]} if best.get("test") else {}
        record |= {"ceiling_by_split": best} if any(best.values()) else {}
    if arguments.mistakes:
        rows = [row for split in splits for row in mistakes(ensemble or run, data, split)]
        with io.open_out(arguments.mistakes) as stream:
            writer = io.records(stream, arguments.mistakes)
            for row in sorted(rows, key=lambda row: -row["probability"]):
                writer.write({}, row)
    # Names of classes and files may have letters that the terminal's encoding lacks: JSON writes them in ASCII.
    json.dump(finite(plain(record)), sys.stdout, indent=2, allow_nan=False)
    print(flush=True)


def _number_or_tune(word: str) -> float | str:
    try:
        return word if word == "tune" else float(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number or `tune`, got {word!r}") from None


def _size_or_tune(word: str) -> int | str:
    try:
        return word if word == "tune" else int(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number or `tune`, got {word!r}") from None


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what can be refused before anything heavy is loaded."""
    if arguments.split not in (None, "train", "val", "test"):
        raise UserError("--split", arguments.split, "must be train, val or test")
    if arguments.data and not os.path.exists(os.path.expanduser(arguments.data)):
        raise UserError("--data", arguments.data, "must be a file or folder, and there is none")
    for option, others in (("dynamic", ("decay", "epsilon")), ("cache", ("flatness", "weight"))):
        given = [getattr(arguments, f"{option}_{name}") for name in others]
        if getattr(arguments, option) == "tune" and given != [None, None]:
            raise UserError(f"--{option} tune", rule="chooses the other settings itself", remedy="leave them out")
    if arguments.overwrite and not arguments.mistakes:
        raise UserError("--overwrite", rule="does nothing without --mistakes", remedy="give both")
    if arguments.window is not None and arguments.window < 1:
        raise UserError("--window", arguments.window, "must be above 0")
    if isinstance(arguments.temperature, float) and not 0 < arguments.temperature < math.inf:
        raise UserError("--temperature", arguments.temperature, "must be above 0 and finite")
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
    """The settings object of a group of options, `tune` or None where its main option is that."""
    ((field, option),) = main_field.items()
    if getattr(arguments, option) in (None, "tune"):
        return getattr(arguments, option)
    given = {name: getattr(arguments, f"{prefix}_{name}") for name in others}
    return kind(**{field: getattr(arguments, option)}, **{name: v for name, v in given.items() if v is not None})


if __name__ == "__main__":
    main()
