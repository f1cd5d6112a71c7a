"""The one command, and what the shell completes."""

import subprocess
import sys
import tomllib
from importlib import import_module

import pytest

from conftest import ROOT
from recur import completion
from recur.cli import COMMANDS
from support.commands import run_command


def test_every_command_has_a_main_and_a_script() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["recur"] == "recur.__main__:main"
    for command in COMMANDS:
        assert callable(import_module(f"recur.{command}").main)
        if command != "completion":
            assert scripts[f"recur-{command}"] == f"recur.{command}:main"


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ([], 0, "usage: recur COMMAND"),
        (["--version"], 0, "0."),
        (["trian"], 2, "there is no command 'trian': did you mean train?"),
        (["xyzzy"], 2, "the commands are train, evaluate"),
        (["predict", "/nowhere", "text"], 2, "there is no run at /nowhere"),
        (["train", "model.net.hiden_size=3", "--cfg", "job"], 2, "did you mean model.net.hidden_size"),
        (["train", "model.net.hidden_size=3", "--cfg", "job"], 0, "hidden_size: 3"),
    ],
)
def test_the_one_command_does_what_the_modules_do(words: list[str], code: int, text: str) -> None:
    done = run_command("__main__", *words)
    assert done.returncode == code
    assert text in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("recur ", sorted(COMMANDS)),
        ("recur ev", ["evaluate"]),
        ("recur train model=bilstm", ["model=bilstm", "model=bilstm_classifier"]),
        ("recur train seed=1 exp", ["experiment="]),
        ("recur train hydra/sw", ["hydra/sweeper="]),
        ("recur train --m", ["--multirun"]),
        ("recur export outputs/x --f", ["--force", "--format"]),
        ("recur predict --tru", ["--trust"]),
        ("recur nothing --x", []),
        ("recur-export outputs/x --f", ["--force", "--format"]),
        ("recur-train trainer=d", ["trainer=ddp", "trainer=ddp_cpu"]),
        ("recur train optimizer.be", ["optimizer.betas="]),
        ("recur train experiment=lm data.bp", ["data.bptt="]),
        ("recur train data.bp", []),
        ("recur train optimizer=no_such_thing optimizer.l", []),
    ],
)
def test_what_the_shell_is_offered(line: str, expected: list[str]) -> None:
    assert completion.completions(line) == expected


def test_bash_completes(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """In a real shell: the function of the script fills COMPREPLY, without the part that bash has already."""
    (tmp_path / "recur").write_text(f'#!/bin/sh\nexec {sys.executable} -m recur "$@"\n')
    (tmp_path / "recur").chmod(0o755)
    script = f'PATH={tmp_path}:$PATH; eval "$(recur completion bash)"\n'
    script += 'COMP_LINE="recur train trainer=d"; COMP_POINT=${#COMP_LINE}; _recur; echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ddp", "ddp_cpu"]


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_command_whose_output_is_closed_ends_as_any_other(closed: str) -> None:
    """A training that was started so must not end with 1 when all is done."""
    for words, code in (("completion bash", 0), ("results nowhere", 2)):
        done = subprocess.run(["bash", "-c", f"{sys.executable} -m recur.{words} {closed}"], capture_output=True)
        assert (done.returncode, b"Traceback" in done.stderr) == (code, False), done.stderr
