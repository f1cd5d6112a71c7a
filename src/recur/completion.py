"""The command for the shell's completion: `eval "$(recur completion bash)"`; zsh likewise.

It completes the commands, their options, and for `train` the groups of configs with their choices and the settings of
the root config. For fish: `recur completion fish | source`.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence

from recur import cli

_BASH = """_recur() {
    local word="${COMP_LINE:0:COMP_POINT}"
    local IFS=$'\\n'
    COMPREPLY=($(recur completion --words "$word" 2>/dev/null))
    local current="${word##*[ ]}"
    case "$current" in *=*) COMPREPLY=("${COMPREPLY[@]#*=}");; esac
    [[ "${COMPREPLY[*]}" == *= ]] && compopt -o nospace
}
complete -o default -F _recur recur
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n" + _BASH.replace("compopt -o nospace", "true")
_FISH = "complete -c recur -f -a '(recur completion --words (commandline -cp))'\n"
_TRAIN = ("--cfg", "--config-dir", "--help", "--hydra-help", "--info", "--multirun", "--trust", "-m")
SHELLS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `recur completion`."""
    arguments = _parser().parse_args(argv)
    cli.guard(lambda: _run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(prog="recur.completion", description="Print the shell's completion for the command recur.")
    parser.add_argument("shell", nargs="?", default="bash", choices=sorted(SHELLS), help="bash (default), zsh or fish")
    parser.add_argument("--words", metavar="LINE", help="print the completions of a line, one each")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    if arguments.words is None:
        print(SHELLS[arguments.shell], end="")
    else:
        print("\n".join(completions(arguments.words)))


def completions(line: str) -> list[str]:
    """What the last word of a line can become.

    Args:
        line: from the word `recur` up to the cursor.
    """
    from recur.cli import COMMANDS

    words = line.split(" ")
    current, before = words[-1], [word for word in words[1:-1] if word]
    if not before:
        candidates = list(COMMANDS)
    elif before[0] == "train" and not current.startswith("-"):
        candidates = _settings(current)
    else:
        candidates = _options(before[0])
    return sorted(candidate for candidate in candidates if candidate.startswith(current))


def _options(command: str) -> list[str]:
    """The options of a command, read from its help."""
    if command == "train":  # whose help is about configs
        return list(_TRAIN)
    from recur.cli import COMMANDS

    if command not in COMMANDS:
        return []
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", f"recur.{command}", "--help"], capture_output=True, text=True, check=False
    )
    return sorted(set(re.findall(r"(?<![\w-])--[a-z][\w-]+", done.stdout)))


def _settings(current: str) -> list[str]:
    """`group=option` where a group is named, else the groups and the keys of the root config."""
    from recur.config.compose import conf_dir, group_options

    groups = group_options()
    group, equals, _ = current.partition("=")
    if equals:
        return [f"{group}={option}" for option in groups.get(group, ())]
    import yaml

    root = yaml.safe_load((conf_dir() / "train.yaml").read_text(encoding="utf-8"))
    return [f"{name}=" for name in [*groups, *(key for key in root if key not in ("defaults", "hydra"))]]


if __name__ == "__main__":
    main()
