"""Composing a run's config: the config folder, `resume=RUN`, instantiation."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recur import cli
from recur.errors import UserError
from recur.runs import journal, trust

_repeated: list[str] = []  # the sweep whose recorded command line this process runs


def conf_dir() -> Path:
    """Folder of the YAML configs: beside `src` in a checkout, inside the package once installed."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parents[1] / "conf"
    return checkout if (checkout / "train.yaml").is_file() else package / "conf"


def recorded_arguments(folder: str, environment: Mapping[str, str] = os.environ) -> list[str]:
    """The arguments a sweep was started with, for `-m resume=SWEEP` without any of its own.

    Raises:
        ValueError: the folder is no sweep, or it recorded no arguments.
    """
    given = journal.read(Path(folder).expanduser())[0].get("argv")
    if not isinstance(given, list):
        raise UserError(folder, rule="has no recorded command line: it is damaged", remedy="type the command again")
    own = ("resume=", "hydra.sweep.dir=")
    return [word for word in given if not (isinstance(word, str) and word.startswith(own))]


def repeats_a_recorded_command() -> bool:
    """Whether this process runs a command line that a sweep wrote down, so that its configs are of unknown origin."""
    return bool(_repeated)


def group_options() -> dict[str, set[str]]:
    """The groups of the config folder, such as `model` and `hydra/launcher`, and the options of each."""
    options: dict[str, set[str]] = {}
    for path in conf_dir().rglob("*.yaml"):
        group = path.parent.relative_to(conf_dir()).as_posix()
        options.setdefault(group, set()).add(path.stem)
    options.pop(".", None)
    return options


def _check_flags(argv: list[str]) -> None:
    """Take `--trust PACKAGE` out, and say in one line what Hydra would say in many."""
    trusting = cli.Parser(prog="recur.train", add_help=False, allow_abbrev=False)
    argv[1:] = trusting.parse_known_args(argv[1:])[1]
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.error = lambda message: cli.mistyped(parser, message, "recur.train")  # type: ignore[method-assign]
    parser.parse_args(argv[1:])


def _started_again_by_slurm(argv: list[str]) -> None:
    """Go on with the run that this same command began, in the folder it names, before SLURM requeued the job."""
    import os

    folder = _named_folder(argv)
    again = int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0 and not any(w.startswith("resume=") for w in argv)
    if folder is not None and again and (folder / "checkpoints" / "last.ckpt").is_file():
        argv[1:] = [f"resume={folder}"]


def _named_folder(argv: list[str]) -> Path | None:
    """The folder a single run is told to use."""
    if {"-m", "--multirun", "-c", "--cfg", "-h", "--help", "-i", "--info"} & set(argv):
        return None
    named = [word.partition("=")[2].strip("'\"") for word in argv[1:] if word.startswith("hydra.run.dir=")]
    return Path(named[-1]).expanduser() if named and "$" not in named[-1] else None


def _claim(argv: list[str]) -> None:
    """Hold the folder before Hydra writes into it, where another process may be at work there."""
    folder = _named_folder(argv)
    if folder is not None and folder.is_dir():
        from recur.runs.run import claim

        claim(folder)


def _resume_with_own_config(argv: list[str]) -> None:
    """Put `resume=RUN` into effect: compose from the run's own config and work in its folder.

    Lightning's DDP starts its other ranks with this same command line, so it is left as it is once it names the run.
    """
    given = [word.partition("=")[2].strip("'\"") for word in argv[1:] if word.startswith("resume=")]
    if not given or given[-1] in ("", "null") or "--config-path" in argv:
        return
    if "-m" in argv or "--multirun" in argv:  # a sweep, which its sweeper resumes; alone it repeats its own command
        more = [word for word in argv[1:] if word not in ("-m", "--multirun") and not word.startswith("resume=")]
        if all(word.startswith(("hydra.launcher.", "hydra/launcher=")) for word in more):
            recorded = trust.check_arguments(recorded_arguments(given[-1]), given[-1], group_options())
            argv[1:] = [*recorded, *more, f"resume={given[-1]}"]
            _repeated.append(given[-1])
        return
    folder = Path(given[-1]).expanduser().resolve()
    if not (folder / ".hydra" / "config.yaml").is_file():
        cli.fail(f"cannot resume {given[-1]}: it is not a run folder (it has no .hydra/config.yaml)")
    if not any((folder / "checkpoints" / name).is_file() for name in ("last.ckpt", "last.previous.ckpt")):
        cli.fail(f"cannot resume {given[-1]}: it has no checkpoints/last.ckpt yet; start it again")
    trust.check_run_folder(folder, argv[1:])
    argv[1:1] = ["--config-path", str(folder / ".hydra"), "--config-name", "config", f"hydra.run.dir={folder}"]
    argv.append("hydra.output_subdir=null")  # Hydra would empty the file before it writes it, and other ranks read it
    argv.append("hydra.job_logging.formatters.simple.format='%(message)s'")  # conf/train.yaml is not read
    if not any(word.startswith("name=") for word in argv):
        argv += _recorded_name(folder)


def _recorded_name(folder: Path) -> list[str]:
    """A run's name: it was made of the groups chosen then, and there is nothing to choose from now."""
    import re

    import yaml

    try:
        name = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["name"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return []
    return [f"name={name}"] if isinstance(name, str) and re.fullmatch(r"[\w./-]+", name) else []


def build(node: Any, **arguments: Any) -> Any:
    """Instantiate a config group; a key its class does not know is the user's mistake.

    Raises:
        ValueError: the class refused an argument.
    """
    from hydra.utils import instantiate

    try:
        built = instantiate(node, _convert_="all")
        return built(**arguments) if arguments else built
    except TypeError as error:
        raise ValueError(f"{node.get('_target_')}: {error}") from error
