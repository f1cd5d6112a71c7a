"""The one command, and what the shell completes."""

import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from conftest import EASY, ROOT
from recur import cli, completion
from recur.cli import COMMANDS
from support.commands import run_command


def test_every_command_has_a_main_and_a_script() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["recur"] == "recur.__main__:main"
    for command in COMMANDS:
        assert callable(import_module(f"recur.{command}").main)
        if command != "completion":
            assert scripts[f"recur-{command}"] == f"recur.{command}:main"


@pytest.mark.slow
def test_jobs_and_ranks_run_the_module_that_the_one_command_ran(tmp_path: Path) -> None:
    """They were started as `python -m recur.__main__ seed=0`, which is no command."""
    start = [sys.executable, "-m", "recur", "train", *EASY, "trainer.max_epochs=1", "logger=none", "baseline=false"]
    for words in (["-m", "seed=0,1", "hydra.sweep.dir=s"], ["trainer=ddp_cpu", "hydra.run.dir=r"]):
        done = subprocess.run([*start, *words], capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "python -m recur.train -m" in (tmp_path / "s" / "results" / "index.html").read_text()


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


def in_bash(folder: Path, line: str, *before: str) -> "subprocess.CompletedProcess[str]":
    """What the script's function puts into COMPREPLY in a real shell, and then the rule that calls it."""
    (folder / "recur").write_text(f'#!/bin/sh\nexec {sys.executable} -m recur "$@"\n')
    (folder / "recur").chmod(0o755)
    script = [*before, f"PATH={folder}:$PATH", 'eval "$(recur completion bash)"', f'COMP_LINE="{line}"']
    script += ["COMP_POINT=${#COMP_LINE}", "_recur", 'echo "${COMPREPLY[@]}"', "complete -p recur"]
    return subprocess.run(["bash", "-c", "\n".join(script)], capture_output=True, text=True, check=True)


def test_bash_completes(tmp_path: Path) -> None:
    """Without the part that bash has already."""
    assert in_bash(tmp_path, "recur train trainer=d").stdout.splitlines()[0].split() == ["ddp", "ddp_cpu"]


def test_bash_that_has_no_compopt_completes_without_an_error(tmp_path: Path) -> None:
    """As version 3.2, which macOS has: there no completed word ends in a blank, so that none follows `experiment=`."""
    done = in_bash(tmp_path, "recur train exp", "enable -n compopt")
    words, rule = done.stdout.splitlines()
    assert words == "experiment=" and "compopt" not in done.stderr and "-o nospace" in rule


def test_the_command_that_shows_runs_is_found_by_a_shell_and_names_the_folder_as_one_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorboard").write_text("#!/bin/sh\n")
    (tmp_path / "tensorboard").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))  # of another environment than this interpreter's
    python, *words = shlex.split(cli.tensorboard(Path("my runs")))
    assert Path(python).samefile(sys.executable) and words == ["-m", "tensorboard.main", "--logdir", "my runs"]
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert cli.tensorboard(Path("my runs")) == "tensorboard --logdir 'my runs'"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_command_whose_output_is_closed_ends_as_any_other(closed: str) -> None:
    """A training that was started so must not end with 1 when all is done."""
    for words, code in (("completion bash", 0), ("results nowhere", 2)):
        done = subprocess.run(["bash", "-c", f"{sys.executable} -m recur.{words} {closed}"], capture_output=True)
        assert (done.returncode, b"Traceback" in done.stderr) == (code, False), done.stderr
