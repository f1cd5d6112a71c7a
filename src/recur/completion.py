"""The command for the shell's completion: `eval "$(recur completion bash)"`; zsh likewise.

It completes the commands, their options, and for `train` the groups of configs with their choices and every setting of
the config that the words before compose. `recur-train` and its like are completed as `recur train` is. For fish:
`recur completion fish | source`.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from recur import cli
from recur.errors import UserError

_BASH = """_recur() {
    local word="${COMP_LINE:0:COMP_POINT}"
    local IFS=$'\\n'
    COMPREPLY=($(recur completion --words "$word" 2>/dev/null))
    local current="${word##*[ ]}"
    case "$current" in *=*) COMPREPLY=("${COMPREPLY[@]#*=}");; esac
    [[ "${COMPREPLY[*]}" == *= ]] && type compopt >/dev/null 2>&1 && compopt -o nospace
}
# bash before version 4, as macOS has it, has no compopt: there a completed word never ends in a blank
complete -o default $(type compopt >/dev/null 2>&1 || echo "-o nospace") -F _recur recur @SCRIPTS@
"""
_ZSH = """(( $+functions[compdef] )) || { autoload -U compinit && compinit; }
_recur() {
    local -a all open closed
    all=(${(f)"$(recur completion --words "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)"})
    open=(${(M)all:#*=})
    closed=(${all:#*=})
    (( $#open )) && compadd -Q -S '' -a open
    (( $#closed )) && compadd -Q -a closed
    (( $#all )) || _files
}
compdef _recur recur @SCRIPTS@
"""
_FISH = """for one in recur @SCRIPTS@
    complete -c $one -a '(recur completion --words (commandline -cp))'
end
"""
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
        scripts = " ".join(f"recur-{name}" for name in cli.COMMANDS if name != "completion")
        print(SHELLS[arguments.shell].replace("@SCRIPTS@", scripts), end="")
    else:
        print("\n".join(completions(arguments.words)))


def completions(line: str) -> list[str]:
    """What the last word of a line can become.

    Args:
        line: from the word `recur`, or `recur-train` and its like, up to the cursor.
    """
    words = re.sub(r"^recur-", "recur ", line).split(" ")
    current, before = words[-1], [word for word in words[1:-1] if word]
    if not before:
        candidates = list(cli.COMMANDS)
    elif before[0] == "train" and not current.startswith("-"):
        candidates = _settings(current, before[1:])
    else:
        candidates = _options(before[0])
    return sorted(candidate for candidate in candidates if candidate.startswith(current))


def _options(command: str) -> list[str]:
    """The options of a command, read from its help."""
    if command == "train":  # whose help is about configs
        return list(_TRAIN)
    if command not in cli.COMMANDS:
        return []
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", f"recur.{command}", "--help"], capture_output=True, text=True, check=False
    )
    return sorted(set(re.findall(r"(?<![\w-])--[a-z][\w-]+", done.stdout)))


def _settings(current: str, before: Sequence[str]) -> list[str]:
    """`group=option` where a group is named, settings where there is a dot, else groups and keys of the root config."""
    from recur.config.compose import conf_dir, group_options

    groups = group_options()
    group, equals, _ = current.partition("=")
    if equals:
        return [f"{group}={option}" for option in groups.get(group, ())]
    if "." in current:
        return [f"{key}=" for key in _keys(_composed([word for word in before if word.partition("=")[0] in groups]))]
    import yaml

    root = yaml.safe_load((conf_dir() / "train.yaml").read_text(encoding="utf-8"))
    return [f"{name}=" for name in [*groups, *(key for key in root if key not in ("defaults", "hydra"))]]


def _composed(choices: Sequence[str]) -> dict[str, Any]:
    """The config of these choices; empty where they compose none."""
    from recur.config.compose import command_line, compose_run

    try:
        return compose_run(command_line(choices)).config
    except UserError:
        return {}


def _keys(node: Any, above: str = "") -> list[str]:
    """The paths of all values below a node, but for those that say what is built."""
    if not isinstance(node, dict) or not node:
        return [above]
    inner = [(key, value) for key, value in node.items() if not str(key).startswith("_")]
    return [path for key, value in inner for path in _keys(value, f"{above}.{key}".lstrip("."))]


if __name__ == "__main__":
    main()
