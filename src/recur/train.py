"""The command that trains: `python -m recur.train [overrides]`, one run or, with `-m`, a sweep.

It composes the config and hands it to `recur.training.start`, or to Hydra where more than one run is asked for. A
mistake is refused before anything is changed.
"""

import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from recur import cli
from recur.errors import UserError

if TYPE_CHECKING:
    from recur.config.compose import CommandLine, Composed


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `python -m recur.train` and `recur-train`."""
    cli.guard(lambda: _main(sys.argv[1:] if argv is None else list(argv)))


def _main(words: Sequence[str]) -> None:
    from recur.config.compose import command_line, compose_run

    line = command_line(words)
    shows = any(re.match(r"(-c|--cfg|-i|--info)\b", word) for word in line.words)
    if shows and (run := line.value("resume")) and not {"-m", "--multirun"} & set(line.words):
        rule = f"goes on with a run's own config, which --cfg and --info do not show: it stands in {run}/config.yaml"
        raise UserError("resume", rule=rule)
    if line.hydra:
        _hydra(line)
    else:
        _run(compose_run(line), words)


def _hydra(line: "CommandLine") -> None:
    """A sweep, the help, the composed config: what Hydra does by itself."""
    import hydra

    from recur.config.compose import translated

    def task(cfg: Any) -> None:  # with another launcher or sweeper than ours
        raise UserError("hydra/launcher", rule="must be slots, ray or submitit_slurm, which run every job by itself")

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach cli.guard
    sys.argv[1:] = line.words
    with translated(line.configs, line.config_name, line.overrides):
        hydra.main(version_base="1.3", config_path=str(line.configs), config_name="train")(task)()


def _run(composed: "Composed", words: Sequence[str]) -> None:
    """One run; a signal ends it with its own exit code."""
    from recur.training import failures, start

    failures.leave_with_launcher()
    stop = failures.Stop()
    stop.listen()
    try:
        start.run(composed, stop, _pruning(composed), words)
    except failures.Stopped as stopped:
        raise SystemExit(failures.leave(stopped, composed, words, saved=stop.saved or composed.resumed)) from None


def _pruning(composed: "Composed") -> Any:
    """The callback that stops a hopeless trial, in a job of a study; None in any other run, which imports no sweep."""
    if "RECUR_TRIAL" not in os.environ:  # `recur.sweeps.job.TRIAL`
        return None
    from recur.sweeps.study import Pruning

    return Pruning(composed.folder, composed.config["monitor"])


if __name__ == "__main__":
    main()
