"""Signals: a run that is asked to end saves, says how to go on, and goes on as if nothing had been."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from recur.training.failures import Stop, Stopped, leave
from support.commands import run_command
from support.torture import Moment, compare, finish, start
from test_resume import SENTIMENT, language

LONG = [*SENTIMENT, "trainer.max_epochs=400", "callbacks.last.every_steps=null"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138), (signal.SIGUSR2, 140)],
    ids=["TERM", "INT", "USR1", "USR2"],
)
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, which, code):
    """Such a run saves nothing by itself in its first epoch."""
    run = tmp_path / "run"
    ended = start(run, LONG, moment=Moment("training", 5, signal=which))
    assert ended.codes == [code], ended.said
    noted, last = ended.said.splitlines()
    assert f"{which.name}: saving after this step" in noted
    assert f"stopped by {which.name}, saved in {run}" in last
    command = last.partition("go on with: ")[2]
    assert command.partition(" -m ")[2] == f"recur.train resume={run}"
    if which != signal.SIGTERM:
        return
    done = run_command("train", *shlex.split(command)[3:], "trainer.max_epochs=2")
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "metrics.json").read_text())["epochs"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sentiment", pytest.param("language", marks=pytest.mark.slow)])
def test_a_run_stopped_and_resumed_ends_as_one_never_stopped(tmp_path, family):
    """In a training step, in the middle of accumulation, and in the middle of a validation."""
    words = SENTIMENT if family == "sentiment" else language(tmp_path)
    finish(tmp_path / "whole", words)
    for phase, count in (("training", 4), ("validation", 2), ("accumulating", 2), ("validation", 6)):
        ended = start(tmp_path / "parts", words, moment=Moment(phase, count, signal=signal.SIGTERM))
        if ended.hit:
            assert ended.codes == [143], ended.said
            assert "go on with" in ended.said
    finish(tmp_path / "parts", words)
    assert compare(tmp_path / "whole", tmp_path / "parts") == []


@pytest.mark.slow
def test_a_second_signal_ends_at_once(tmp_path):
    """Even where a step never ends."""
    code = """
import os, runpy, signal, sys, threading, time
from recur.tasks import sentiment
def step(*_):
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.7)
    time.sleep(60)
sentiment.SentimentTask.training_step = step
runpy.run_module("recur.train", run_name="__main__", alter_sys=True)
"""
    words = [*LONG, f"hydra.run.dir={tmp_path}/run"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, timeout=50, check=False)
    assert done.returncode == -signal.SIGTERM


def test_before_there_is_anything_to_save(tmp_path):
    """A signal while data is prepared ends the run at once, and says that nothing is saved."""
    ended = start(tmp_path / "run", LONG, moment=Moment("preparing", 1, signal=signal.SIGTERM))
    assert ended.codes == [143]
    assert len(ended.said.splitlines()) == 1
    assert "before there was anything to save; start it again" in ended.said


def test_the_run_that_was_to_be_replaced_is_not_the_one_to_go_on_with(tmp_path, trained_run):
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    (run / "checkpoints" / "last.ckpt").rename(run / "checkpoints" / "last.previous.ckpt")  # or `start` would resume it
    ended = start(run, [*LONG, "overwrite=true"], moment=Moment("preparing", 1, signal=signal.SIGTERM))
    assert ended.codes == [143]
    assert "before there was anything to save; start it again" in ended.said


@pytest.mark.slow
def test_while_the_best_checkpoint_is_scored(tmp_path):
    """Training is over and saved: the run ends at once, and the resumed one only scores."""
    run = tmp_path / "run"
    ended = start(run, SENTIMENT, moment=Moment("scoring", 3, signal=signal.SIGTERM))
    assert ended.codes == [143], ended.said
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    assert "train loss" not in finish(run, SENTIMENT).out
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before


@pytest.mark.slow
def test_while_one_of_several_ranks_scores_the_best_checkpoint(tmp_path):
    """It had Lightning's handler, which waited for a broadcast from the others, which waited for its metrics."""
    words = [*SENTIMENT, "trainer=ddp_cpu"]
    ended = start(tmp_path / "run", words, 2, Moment("scoring", 2, rank=1, signal=signal.SIGTERM))
    assert ended.codes == [0, 0], ended.said


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_that_reaches_one_rank_only(tmp_path, rank):
    """All ranks stop after the same step; none hangs."""
    words = [*LONG, "trainer=ddp_cpu"]
    ended = start(tmp_path / "run", words, 2, Moment("training", 3, rank=rank, signal=signal.SIGTERM))
    assert ended.codes == [143, 0], ended.said
    assert ended.said.count(" -m recur.train resume=") == 1, ended.said
    assert "Traceback" not in ended.said


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_of_the_ranks_that_lightning_started(tmp_path, rank):
    words = [*LONG, "trainer=ddp_cpu", f"hydra.run.dir={tmp_path}/run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "recur.train", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    next(line for line in process.stdout if line.startswith("epoch   2"))
    target = process.pid
    if rank == 1:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        target = next(int(c) for c in children if "recur.train" in Path(f"/proc/{c}/cmdline").read_text())
    os.kill(target, signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143, said
    assert said.count(" -m recur.train resume=") == 1, said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_closed_terminal_saves(tmp_path):
    """The lines of later epochs have nowhere to go, which must not end the run before it has saved."""
    run = tmp_path / "run"
    terminal, end = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "recur.train", *LONG, f"hydra.run.dir={run}"],
        preexec_fn=lambda: os.login_tty(end),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    os.close(end)
    seen = b""
    while b"epoch   2" not in seen:
        seen += os.read(terminal, 4096)
    os.close(terminal)
    assert process.wait(timeout=60) == 128 + signal.SIGHUP
    done = run_command("train", f"resume={run}", "trainer.max_epochs=4")
    assert done.returncode == 0, done.stderr
    assert "epoch   4" in done.stdout


def test_nohup_is_heeded(monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda number, handler: heard.append(number))
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    heard: list[int] = []
    Stop().listen()
    assert signal.SIGTERM in heard
    assert signal.SIGHUP not in heard


def test_a_resumed_run_that_ends_before_it_has_written_its_config_goes_on_as_typed(tmp_path, monkeypatch, capsys):
    """From then on the run's own config says what was typed."""
    monkeypatch.delenv("RECUR_TRUST", raising=False)
    words = [f"resume={tmp_path}", "optimizer.lr=0.3"]
    own = {"folder": tmp_path, "overrides": tuple(words), "config_text": "optimizer: {lr: 0.3}\n"}
    composed = SimpleNamespace(resumed=True, **own)
    for text, more in ((None, words), ("optimizer: {lr: 0.1}\n", words), (composed.config_text, words[:1])):
        if text is not None:
            (tmp_path / "config.yaml").write_text(text)
        assert leave(Stopped(signal.SIGTERM), composed, words, saved=True) == 143
        command = capsys.readouterr().err.partition("go on with: ")[2]
        assert shlex.split(command)[1:] == ["-m", "recur.train", *more]
