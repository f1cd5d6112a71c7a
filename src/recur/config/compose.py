"""Composing a run's config: the config folder, the command line, `resume=RUN`, and building what a config names."""

import argparse
import contextlib
import copy
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, QuotedString
from hydra.core.utils import configure_log, setup_globals
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from recur import cli
from recur.config.settings import check_changes
from recur.config.translate import composition_error
from recur.config.words import as_text, as_value, quoted, said_again
from recur.data.cards import check_aliases
from recur.data.sources import absolute_paths
from recur.errors import UserError
from recur.runs import journal, requeue, trust
from recur.runs.build import build as build_plain
from recur.runs.checkpoint import LAST, PREVIOUS
from recur.runs.limits import read_yaml

_PACKAGE = Path(__file__).resolve().parents[1]
_KEY = re.compile(r"\+{0,2}[A-Za-z_]\w*(\.\w+)*")
_NAMES_FILES = re.compile(
    r"(hydra\.sweeper\.params\.)?(data\.(path|train|val|test|unlabelled|pseudo_labelled|vectors)|init_from)$"
)
_typed: list[str] = []  # the command line of this process
_repeated: list[str] = []  # the sweep whose recorded command line this process runs
_ONCE = {
    "resume": None,
    "overwrite": False,
    "accept_data_change": False,
    "find_lr": False,
}  # settings of one command, not of the run


def conf_dir(package: Path = _PACKAGE) -> Path:
    """Folder of the YAML configs: inside the package once installed, beside `src` in a checkout.

    Args:
        package: this one.
    """
    own = package / "conf"  # asked first: what lies two folders above an installed package is anybody's
    return own if (own / "train.yaml").is_file() else package.parents[1] / "conf"


def build(node: Any, path: str = "", **arguments: Any) -> Any:
    """Build a node of a config, and call what came out with further arguments where there are any.

    Args:
        node: a config group or plain containers.
        path: where it stands, for messages.
        arguments: for a node with `_partial_: true`.

    Raises:
        UserError: a name that is none, or arguments that what it names refuses.
    """
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    built = build_plain(plain, path)
    return built(**arguments) if arguments else built


# ----------------------------------------------------------------------------------------------------- the command line
@dataclass(frozen=True)
class CommandLine:
    """What was typed after `python -m recur.train`.

    Attributes:
        words: all of it, with `resume=SWEEP` written out.
        overrides: the settings among them.
        config_name: of the root config.
        config_dir: a further folder of configs.
        config_path: the folder of configs to use in place of this package's; None for that.
        hydra: whether it asks Hydra for something else than one run: a sweep, help, the composed config.
    """

    words: tuple[str, ...]
    overrides: tuple[str, ...]
    config_name: str
    config_dir: str | None
    hydra: bool
    config_path: Path | None = None

    @property
    def configs(self) -> Path:
        """The folder of the root config."""
        return conf_dir() if self.config_path is None else self.config_path

    def value(self, key: str) -> str | None:
        """The last value typed for a setting, as text; None where it was not typed or is null."""
        typed = [_text(word) for word in self.overrides if word.partition("=")[0].lstrip("+") == key]
        return typed[-1] if typed and typed[-1] not in ("", "null") else None


class _Parser(cli.Parser):
    """A command line that may come from Python, which no mistake in it may end."""

    def refuse(self, message: str) -> NoReturn:
        """Raise what is wrong."""
        raise UserError("", rule=message)


def parser() -> cli.Parser:
    """Reads the flags that Hydra documents; everything else is an override."""
    flags = _Parser(prog="recur.train", add_help=False, allow_abbrev=False)
    for names in (("-h", "--help"), ("--hydra-help",), ("--version",), ("--resolve",), ("-r", "--run")):
        flags.add_argument(*names, action="store_true")
    flags.add_argument("-m", "--multirun", action="store_true")
    flags.add_argument("-c", "--cfg", choices=("job", "hydra", "all"))
    flags.add_argument("-i", "--info", nargs="?", const="all")
    flags.add_argument("-sc", "--shell-completion", action="store_true")
    flags.add_argument("--experimental-rerun")
    for short, long in (("-p", "--package"), ("-cp", "--config-path")):
        flags.add_argument(short, long)
    flags.add_argument("-cn", "--config-name", default="train")
    flags.add_argument("-cd", "--config-dir")
    flags.add_argument("overrides", nargs="*")
    return flags


def command_line(words: Sequence[str], environment: Mapping[str, str] = os.environ) -> CommandLine:
    """Read the command line of `recur.train`.

    `-m resume=SWEEP` alone repeats the command that the sweep was last started with. A job that SLURM started once more
    goes on with the run that the same command began.

    Raises:
        UserError: `resume=SWEEP` names no sweep, or one whose command does more than set values.
    """
    # `--trust PACKAGE` has done its work once it is read, and Hydra does not know it.
    typed = words
    _typed[:] = words
    words = _Parser(prog="recur.train", add_help=False, allow_abbrev=False).parse_known_args(list(words))[1]
    given = parser().parse_intermixed_args(words)
    line = _line(words, given)
    if given.multirun:
        sweep = line.value("resume")
        more = [word for word in given.overrides if _key(word) != "resume"]
        if sweep is not None and all(re.match(r"hydra(\.launcher\.|/launcher$)", _key(word)) for word in more):
            replaced = {_key(word) for word in more}
            recorded = [word for word in recorded_arguments(sweep) if _key(word) not in replaced]
            trust.check_arguments(recorded, sweep, group_options())
            _check_working_folder(sweep, recorded)
            plain = [word for word in recorded if word not in ("-m", "--multirun")]
            words = ["-m", *plain, *more, f"resume={quoted(sweep)}"]
            _repeated.append(sweep)
            return _line(words, parser().parse_intermixed_args(words))
        if sweep is not None:
            _check_working_folder(sweep, given.overrides)
            return line
        place = requeue.place_of(typed, line.value("hydra.sweep.dir"), environment, sweep=True)
        if place is not None:
            words = [*words, f"resume={quoted(str(place))}"]
            return _line(words, parser().parse_intermixed_args(words))
        return line
    if line.hydra or line.value("resume") is not None:
        return line
    folder = requeue.place_of(typed, line.value("hydra.run.dir"), environment)
    if folder is not None:
        words = [f"resume={quoted(str(folder))}", *_typed_again(line)]
        return _line(words, parser().parse_intermixed_args(words))
    return line


def _line(words: Sequence[str], given: argparse.Namespace) -> CommandLine:
    other = ("help", "hydra_help", "version", "multirun", "cfg", "info", "shell_completion", "experimental_rerun")
    hydra = any(getattr(given, name) for name in other)
    path = None if given.config_path is None else Path(os.path.expanduser(given.config_path)).absolute()
    if path is not None:  # Hydra would take it for relative to this package
        if not path.is_dir():
            raise UserError("--config-path", given.config_path, "must name a folder of configs")
        words = _with_path(words, str(path))
    further = None if (typed := given.config_dir) is None else os.path.expanduser(typed)
    if further is not None:
        if not os.path.isdir(further):
            raise UserError("--config-dir", typed, "must name a folder of configs")
        own = (typed, f"-cd={typed}", f"--config-dir={typed}")
        words = [word.removesuffix(typed) + further if word in own else word for word in words]
    # Hydra reads `a=1 -m` and `-m a=1 b=2`, but not `a=1 -m b=2`.
    words = sorted(map(_with_quotes, words), key=lambda word: word not in ("-m", "--multirun"))
    overrides = tuple(map(_with_quotes, given.overrides))
    line = CommandLine(tuple(words), overrides, given.config_name, further, hydra, path)
    _check_own_configs(line)
    return line


def _with_path(words: Sequence[str], path: str) -> list[str]:
    """The words, their `--config-path` with this path."""
    written: list[str] = []
    for word in words:
        if written and written[-1] in ("-cp", "--config-path"):
            written.append(path)
        elif word.startswith(("-cp=", "--config-path=")):
            written += ["--config-path", path]
        else:
            written.append(word)
    return written


def _text(word: str) -> str:
    """The value of an override as text: of one in quotes what they hold, of one that Hydra cannot read what is there.

    A folder is typed as the shell completes it, and Hydra's grammar takes neither `ö` nor `(` without quotes.
    """
    typed = word.partition("=")[2]
    try:
        value = OverridesParser.create().parse_override(word).value()
    except (HydraException, RecursionError):
        return typed
    return value if isinstance(value, str) else typed


def _with_quotes(word: str) -> str:
    """A word as Hydra's grammar reads it: `resume=FOLDER` without `+` before it, and a file that it would refuse."""
    if word.lstrip("+").startswith("resume="):
        folder = _text(word)
        return word if folder in ("", "null") else f"resume={as_text(folder)}"
    key, _, value = word.partition("=")
    if not (value and _KEY.fullmatch(key) and os.path.exists(os.path.expanduser(value))):
        return word
    try:
        OverridesParser.create().parse_override(word)
    except (HydraException, RecursionError):
        return f"{key}={quoted(value)}"
    return word


def recorded_arguments(folder: str) -> list[str]:
    """The arguments a sweep was last started with, for `-m resume=SWEEP` without any of its own.

    Raises:
        UserError: the folder is no sweep, or it recorded no arguments.
    """
    given = journal.last_typed(journal.read(Path(os.path.expanduser(folder)))).get("argv")
    if not isinstance(given, list):
        raise UserError(folder, rule="has no recorded command line: it is damaged", remedy="type the command again")
    own = ("resume=", "hydra.sweep.dir=")
    return [word for word in given if not (isinstance(word, str) and word.startswith(own))]


def _key(word: Any) -> str:
    return str(word).partition("=")[0].lstrip("+")


def _check_working_folder(sweep: str, words: Sequence[str]) -> None:
    """Refuse to repeat a command elsewhere where it names files by paths from the folder in which it was typed.

    Raises:
        UserError: it does.
    """
    folder = Path(os.path.expanduser(sweep))
    begun = journal.read(folder)[0].get("working_folder") if (folder / journal.NAME).is_file() else None
    if not isinstance(begun, str) or os.path.realpath(begun) == os.path.realpath(os.curdir):
        return
    for path in itertools.chain.from_iterable(map(_files_named, words)):
        if not os.path.isabs(path) and os.path.exists(os.path.join(begun, path)):
            rule = f"names a sweep that was started in {begun}, and {path} is read from there"
            raise UserError("resume", rule=rule, remedy="go there first")


def _files_named(word: str) -> Iterator[str]:
    """The values of an override that may name files, those of a sweep's cases too."""
    try:
        value = OverridesParser.create().parse_override(word)._value
    except (HydraException, RecursionError):
        value = word.partition("=")[2]
    if _NAMES_FILES.match(_key(word)):
        yield from _leaves(value)
    elif _key(word) == "hydra.sweeper.cases":
        for case in _leaves(value):
            yield from _files_named(case)


def _leaves(value: Any) -> Iterator[str]:
    """The texts of a value as Hydra's parser gives it, one by one."""
    if isinstance(value, QuotedString):
        yield value.text
    elif isinstance(value, ChoiceSweep):
        yield from itertools.chain.from_iterable(map(_leaves, value.list))
    elif isinstance(value, (list, tuple)):
        yield from itertools.chain.from_iterable(map(_leaves, value))
    elif isinstance(value, str):
        yield value


def typed_words() -> list[str]:
    """The command line that this process read last, word by word as it was typed."""
    return list(_typed)


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


# ------------------------------------------------------------------------------------------------------------ composing
@dataclass(frozen=True)
class Composed:
    """The config of one run.

    Attributes:
        config: resolved, plain containers.
        cfg: with its interpolations, without Hydra's own settings.
        hydra: Hydra's own settings.
        folder: of the run.
        overrides: as typed.
        resumed: whether the run goes on.
        used: top-level keys to which interpolations refer.
    """

    config: dict[str, Any]
    cfg: DictConfig
    hydra: DictConfig
    folder: Path
    overrides: tuple[str, ...]
    resumed: bool
    used: frozenset[str]

    def hydra_files(self) -> dict[str, str]:
        """What Hydra keeps of a run, by file name: the config to resume from, its own settings, the overrides.

        What was typed and chosen when a resumed run began stands there still: by it runs are compared.
        """
        once: Any = {**_ONCE, "name": self.config["name"]}
        kept = OmegaConf.merge(self.cfg, once)
        hydra, overrides = self.hydra, list(self.overrides)
        if self.resumed:
            former, choices = begun_with(self.folder)
            overrides = _with_later(former, overrides)
            hydra = copy.deepcopy(hydra)
            OmegaConf.set_readonly(hydra, False)
            with open_dict(hydra):
                hydra.runtime.choices = {**hydra.runtime.choices, **choices}
        files = {"config.yaml": kept, "hydra.yaml": {"hydra": hydra}, "overrides.yaml": overrides}
        return {name: OmegaConf.to_yaml(OmegaConf.create(content)) for name, content in files.items()}

    def record(self) -> dict[str, Any]:
        """The resolved config as the run keeps it, without the settings that belong to one command."""
        return {**self.config, **_ONCE}

    @cached_property
    def config_text(self) -> str:
        """That, as YAML."""
        return OmegaConf.to_yaml(OmegaConf.create(self.record()))

    def changed(self, key: str, value: Any) -> "Composed":
        """The same config with another value of a setting, such as `trainer.precision`."""
        cfg = copy.deepcopy(self.cfg)
        OmegaConf.set_readonly(cfg, False)
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
        config: dict[str, Any] = copy.deepcopy(self.config)
        *groups, name = key.split(".")
        node = config
        for group in groups:
            node = node[group]
        node[name] = value
        return replace(self, config=config, cfg=cfg)

    def configure_logging(self) -> None:
        """Send what the run prints to its log file, too; its folder is there."""
        configure_log(self.hydra.job_logging, self.hydra.verbose)


@contextlib.contextmanager
def hydra_as_before() -> Iterator[None]:
    """Give Hydra's own globals back, which composing takes over: the program around may be one of Hydra's, too."""
    hydra, config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    try:
        yield
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = hydra, config


def compose_run(line: CommandLine) -> Composed:
    """Compose the config of a single run, new or resumed. Nothing is written.

    Raises:
        UserError: it cannot be composed, or a resumed run's config is not to be trusted or cannot change so.
    """
    setup_globals()
    resume = line.value("resume")
    if resume is None:
        composed = _composed(line, line.configs, line.config_name, line.overrides, resumed=False)
        if named := composed.config.get("resume"):  # in a file of configs
            raise UserError("resume", named, "must be typed, since a run goes on with its own config", "resume=RUN")
        return composed
    folder = Path(os.path.expanduser(resume)).resolve()
    if not (folder / ".hydra" / "config.yaml").is_file():
        raise UserError("resume", resume, "is not a run folder", "it has no .hydra/config.yaml")
    if not any((folder / "checkpoints" / name).is_file() for name in (LAST, PREVIOUS)):
        raise UserError("resume", resume, f"has no checkpoints/{LAST} yet", "start it again")
    place = line.value("hydra.run.dir")
    if place is not None and Path(os.path.expanduser(place)).resolve() != folder:
        raise UserError("hydra.run.dir", place, f"must be the run that goes on, {folder}", "leave it out")
    trust.check_run_folder(folder, list(line.overrides))
    own = [f"hydra.run.dir={quoted(str(folder))}", "hydra.job_logging.formatters.simple.format='%(message)s'"]
    typed = [word for word in line.overrides if not word.startswith("hydra.run.dir=")]
    _check_groups_stay(typed)
    composed = _composed(line, folder / ".hydra", "config", [*typed, *own], resumed=True)
    trust.check_config(composed.config, typed, folder=folder)  # before anything that it names is so much as imported
    if len(typed) > 1:
        before = _composed(line, folder / ".hydra", "config", own, resumed=True)
        check_changes(before.config, composed.config)
    return composed


def typed_again(overrides: Sequence[str], begun: Composed | None) -> list[str]:
    """What a command that goes on with a run says once more, since the run's own config may not say it by itself.

    Args:
        overrides: of the command that began the run, or went on with it.
        begun: the config of a command that began it, some of whose files may be the user's own. Of one that went on
            the config lies in the run's folder, and only what was typed counts.
    """
    settings = [word.lstrip("+") for word in overrides if not word.startswith(("hydra", "-", "~"))]
    typed = [word for word in settings if trust.must_be_typed(word)]
    own = {} if begun is None or begun.resumed else said_again(begun.cfg, begun.config, begun.folder)
    left = [f"{key}={value}" for key, value in own.items() if not trust.is_typed(key, typed)]
    return [f"++{word}" for word in (*left, *typed)]


def _typed_again(line: CommandLine) -> list[str]:
    """That, of the command that is typed now and began the run."""
    begun = None
    with hydra_as_before(), contextlib.suppress(UserError):  # files of its own may be gone: the run needs them no more
        begun = compose_run(line)
    return typed_again(line.overrides, begun)


def _check_groups_stay(typed: Sequence[str]) -> None:
    """Refuse an option of a group: a run's own config has the settings of the one that was chosen, and no groups."""
    for word in typed:
        key, _, value = word.lstrip("+").partition("=")
        if (
            re.fullmatch(r"\w+", key)
            and (conf_dir() / key).is_dir()
            and re.fullmatch(r"\w+", value)
            and value != "null"
        ):
            rule = "must be left as it is: a run that goes on has settings, and no groups to choose from"
            raise UserError(key, value, rule, "set these, such as trainer.devices=2 trainer.strategy=ddp")


def begun_with(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The overrides and the choices of groups of a run that goes on: text of unknown origin, never applied."""
    try:
        overrides = read_yaml(folder / ".hydra" / "overrides.yaml")
        hydra = read_yaml(folder / ".hydra" / "hydra.yaml")
        choices = hydra["hydra"]["runtime"]["choices"]
    except (OSError, ValueError, KeyError, TypeError):
        return [], {}
    if not (isinstance(overrides, list) and isinstance(choices, dict)):
        return [], {}
    plain = {str(key): value for key, value in choices.items() if isinstance(value, str) and "${" not in value}
    return [word for word in overrides if isinstance(word, str)], plain


def _with_later(former: Sequence[str], later: Sequence[str]) -> list[str]:
    """Overrides of a run that goes on: of those of one key the last, without what says that it goes on."""
    words: dict[str, str] = {}
    for word in (*former, *later):
        key = word.partition("=")[0].lstrip("+~")
        if key not in _ONCE and (key != "hydra.run.dir" or key not in words):  # it goes on where it is
            words[key] = word
    return list(words.values())


def _composed(line: CommandLine, folder: Path, name: str, overrides: Sequence[str], *, resumed: bool) -> Composed:
    with translated(folder, name, overrides):
        whole = _compose(folder, name, _with_further_folder(overrides, line.config_dir, folder / f"{name}.yaml"))
        HydraConfig.instance().set_config(whole)
        out = Path(os.path.expanduser(str(whole.hydra.run.dir))).absolute()
        OmegaConf.set_readonly(whole.hydra, False)  # which set_config ended
        whole.hydra.runtime.output_dir = str(out)
        HydraConfig.instance().set_config(whole)
        cfg = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
        _keep_absolute_paths(cfg)
        config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        raw: Any = OmegaConf.to_container(whole, resolve=False)
        hydra = raw.pop("hydra")
        used = interpolated([raw, hydra["run"], hydra["job"]])  # its folder may be named by a key of one's own
        if resumed:  # a key of which its folder was named is used no more, now that the folder is given
            used |= _keys_of(out)
    return Composed(config, cfg, whole.hydra, out, tuple(line.overrides), resumed, used)


def _with_further_folder(overrides: Sequence[str], own: str | None, root: Path) -> list[str]:
    """The overrides with the folder of `--config-dir` before those of `hydra.searchpath`: Hydra reads one override."""
    if own is None:
        return [*overrides]
    typed = [word for word in overrides if _key(word) == "hydra.searchpath"]
    others: Any = OverridesParser.create().parse_override(typed[0]).value() if typed else None
    if others is not None and not isinstance(others, list):
        return [*overrides]  # Hydra says what it must be
    if others is None:
        content = OmegaConf.load(root) if root.is_file() else OmegaConf.create()
        others = OmegaConf.select(content, "hydra.searchpath")
    # Not `as_uri`: Hydra does not decode what that encodes, such as a space.
    folders = [f"file://{Path(own).absolute()}", *(others or ())]
    return [*(word for word in overrides if word not in typed), f"hydra.searchpath={as_value(folders)}"]


def _check_own_configs(line: CommandLine) -> None:
    """Refuse configs whose aliases would take all memory: Hydra unfolds every file that it reads."""
    for place in (line.config_dir, line.config_path):
        if place is None:
            continue
        for pattern in ("*.yaml", "*/*.yaml", "*/*/*.yaml"):
            for path in sorted(Path(place).glob(pattern)):
                if path.is_file():
                    check_aliases(path, path.read_text(encoding="utf-8", errors="replace"))


def _keys_of(folder: Path) -> frozenset[str]:
    """The top-level keys of a run's recorded config."""
    try:
        config = read_yaml(folder / ".hydra" / "config.yaml")
    except (OSError, ValueError):  # others say so
        return frozenset()
    return frozenset(map(str, config)) if isinstance(config, Mapping) else frozenset()


def interpolated(raw: Any) -> frozenset[str]:
    """The top-level keys to which interpolations refer, in plain containers that are not resolved."""
    if isinstance(raw, Mapping):
        return frozenset[str]().union(*map(interpolated, raw.values()))
    if isinstance(raw, list):
        return frozenset[str]().union(*map(interpolated, raw))
    return frozenset(re.findall(r"\$\{([A-Za-z_]\w*)", raw)) if isinstance(raw, str) else frozenset()


def _keep_absolute_paths(cfg: DictConfig) -> None:
    """Give the data's files and folders absolute paths, by which a run finds them from anywhere, copied or not."""
    if OmegaConf.is_dict(cfg.get("data")):  # a word in its place is refused where the config is checked
        data: Any = OmegaConf.to_container(cfg.data, resolve=False)
        for key, value in absolute_paths(data).items():
            if value != data[key]:
                cfg.data[key] = value


@contextlib.contextmanager
def translated(folder: Path, name: str, overrides: Sequence[str]) -> Iterator[None]:
    """Raise what a user can fix of a composition as `UserError`; the arguments give hints something to look in."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        mistake = composition_error(error, overrides, lambda: _groups_alone(folder, name, overrides))
        if mistake is None:
            raise
        raise mistake from error


def _compose(folder: Path, name: str, overrides: Sequence[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder), version_base="1.3", job_name="train"):
        whole = compose(name, list(overrides), return_hydra_config=True)
    OmegaConf.set_readonly(whole.hydra, False)
    with open_dict(whole):
        whole.hydra.runtime.cwd = os.getcwd()
    return whole


def _groups_alone(folder: Path, name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The config of the chosen groups without any value set, in which to look for a mistyped key."""
    chosen = [word for word in overrides if (folder / word.partition("=")[0]).is_dir()]
    try:
        whole = _compose(folder, name, chosen)
        config: Any = OmegaConf.to_container(OmegaConf.masked_copy(whole, [str(k) for k in whole if k != "hydra"]))
    except Exception:  # it serves a hint
        return {}
    return config
