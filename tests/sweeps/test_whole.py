"""Whole sweeps of real runs: distributed, killed at random, searched."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from recur.leaderboard.table import Leaderboard
from recur.leaderboard.text import rows, titles
from recur.runs import journal
from recur.sweeps.local import cores
from support.real_sweeps import TINY, environment, figures, sweep

pytestmark = pytest.mark.slow


def test_distributed_jobs_equal_the_same_runs_typed_by_hand(tmp_path):
    """3 jobs of 2 ranks each; a leaked rank, port or seed, or a rank that starts the sweep again, would show."""
    typed = [text for text in TINY if not text.startswith("trainer=")]
    common = [*typed, "trainer=ddp_cpu", "trainer.devices=2"]
    folder = tmp_path / "s"
    sweep(folder, *common, "seed=0,1,2")
    for seed in range(3):
        hand = tmp_path / f"hand{seed}"
        command = [sys.executable, "-m", "recur.train", *common, f"seed={seed}", f"hydra.run.dir={hand}"]
        subprocess.run(command, check=True, capture_output=True, timeout=300, env=environment())
        by_hand, in_sweep = (json.loads((run / "metrics.json").read_text()) for run in (hand, folder / str(seed)))
        assert in_sweep["world_size"] == by_hand["world_size"] == 2
        for part in ("val", "test", "steps", "epochs"):
            assert in_sweep[part] == by_hand[part], (seed, part)
        told = [[e["metrics"]["val/loss"] for e in journal.read_validations(run)] for run in (hand, folder / str(seed))]
        assert told[0] == told[1]
    assert sorted(p.name for p in folder.iterdir() if p.name.isdecimal()) == ["0", "1", "2"]


def validations(folder):
    return sum(len(journal.read_validations(folder / n)) for n in "0123")


def test_a_sweep_killed_at_random_ends_like_one_that_was_not(tmp_path):
    """Each kill comes at a random moment after some progress, so that all five fall into training."""
    typed = (*TINY, "trainer.max_epochs=8", "optimizer.lr=1e-3,1e-2", "seed=0,1")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    sweep(whole, *typed)
    rng = random.Random(5)
    for kill in range(5):
        command = [sys.executable, "-m", "recur.train", "-m", *typed]
        command += [f"resume={cut}"] if (cut / journal.NAME).exists() else [f"hydra.sweep.dir={cut}"]
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted, until = min(validations(cut) + rng.randint(1, 5), 30), time.monotonic() + 300
        while validations(cut) < wanted:
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(0.3 * rng.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        complete = sum((cut / n / "metrics.json").exists() for n in "0123")
        print(f"kill {kill + 1}: {validations(cut)} of 32 epochs, {complete} of 4 runs complete")
    sweep(cut, *typed, f"resume={cut}")
    assert figures(cut) == figures(whole)

    def table(folder):  # without the time and memory it took
        leaderboard = Leaderboard.of([folder])
        kept = [at for at, title in enumerate(titles(leaderboard)) if title not in ("time", "memory")]
        return [[row[at] for at in kept] for row in rows(leaderboard)]

    assert table(cut) == table(whole)
    continued = sum("resume=" in (cut / n / "output.log").read_text() for n in "0123")
    assert continued, "no run went on from a checkpoint: the test shows nothing"


def test_an_optuna_sweep_that_was_killed_asks_for_what_is_missing(tmp_path):
    optuna = pytest.importorskip("optuna")
    from recur.sweeps.study import JOURNAL, NAME, storage

    folder = tmp_path / "s"
    typed = (*TINY, "test=false", "logger=none", "~callbacks.pages", "optimizer.lr=tag(log,interval(1e-3,1e-1))")
    typed += ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "hydra.sweeper.pruner.kind=null")
    command = [sys.executable, "-m", "recur.train", "-m", *typed, f"hydra.sweep.dir={folder}"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while len(list(folder.glob("*/metrics.json"))) < 2 or not list(folder.glob("[2-9]/checkpoints/last.ckpt")):
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    sweep(folder, f"resume={folder}")
    found = optuna.load_study(study_name=NAME, storage=storage(folder / JOURNAL)).trials
    assert [trial.state.name for trial in found] == ["COMPLETE"] * 6
    for result, trial in zip(Leaderboard.of([folder]).results, found, strict=True):
        assert (result.label, result.value) == (str(trial.number), trial.value)
        assert float(result.settings["optimizer.lr"]) == trial.params["optimizer.lr"]


def test_ctrl_c_stops_the_jobs_and_leaves_a_sweep_to_be_resumed(tmp_path):
    folder, typed = tmp_path / "s", (*TINY, "trainer.max_epochs=200", "optimizer.lr=1e-3,1e-2")
    command = [sys.executable, "-m", "recur.train", "-m", *typed, f"hydra.sweep.dir={folder}"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True)
    until = time.monotonic() + 120
    while not all((folder / n / "checkpoints" / "last.ckpt").exists() for n in "01"):
        assert time.monotonic() < until
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"-m resume={folder}" in out
    assert [e["state"] for e in journal.read(folder) if e["event"] == "end"] == ["stopped", "stopped"]
    held = subprocess.run(["pgrep", "-f", str(folder)], capture_output=True, text=True).stdout.split()
    assert not held, "a job outlived the sweep"


def test_two_slots_do_nearly_twice_the_work_of_one(tmp_path):
    """At one thread each, from the first job's start to the last one's end."""
    took = {}
    for slots in (1, 2, 1, 2):
        folder = tmp_path / f"{slots}-{len(took)}-{time.monotonic_ns()}"
        typed = (*TINY, "trainer.max_epochs=40", "optimizer.lr=1e-3,2e-3", "test=false", "~callbacks.pages")
        sweep(folder, *typed, f"hydra.launcher.cpu_slots={slots}", "hydra.launcher.threads=1")
        events = journal.read(folder)
        span = max(e["time"] for e in events) - min(e["time"] for e in events if e["event"] == "start")
        took.setdefault(slots, []).append(span)
    ratio = min(took[1]) / min(took[2])
    print(f"one slot {took[1]} s, two slots {took[2]} s: {ratio:.2f} x")
    if os.environ.get("RECUR_QUIET_MACHINE") == "1":  # others' work on the same cores makes any figure
        assert ratio >= 1.8


def test_optuna_finds_the_grids_best_for_less_than_half_its_compute(tmp_path):
    typed = (*TINY, "trainer.max_epochs=4", "test=false", "logger=none", "~callbacks.pages")
    # Enough rows for the first epochs to say something of the last: nobody could prune by chance levels.
    typed = (*typed, "data.synthetic.train_size=480")
    lr, width, dropout = "optimizer.lr", "model.net.hidden_size", "model.net.head_dropout"
    every, found = tmp_path / "grid", tmp_path / "optuna"
    values = [f"{lr}=1e-4,3e-4,1e-3,3e-3,1e-2,3e-2", f"{width}=4,8,16,32", f"{dropout}=0,0.5"]
    sweep(every, *typed, *values, timeout=3600)
    space = [f"{lr}=tag(log,interval(1e-4,3e-2))", f"{width}=range(4,33,4)", f"{dropout}=interval(0,0.5)"]
    search_for = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=24", "hydra.sweeper.pruner.warmup=2")
    sweep(found, *typed, *search_for, *space, timeout=3600)
    grid, search = Leaderboard.of([every]), Leaderboard.of([found])
    assert len(grid.results) == 48
    assert len(search.results) == 24
    steps = [sum(r.record["steps"] for r in leaderboard.results) for leaderboard in (grid, search)]
    events = journal.read(found)
    begun = {e["job"]: e["time"] for e in events if e["event"] == "start"}
    ended = {e["job"]: e["time"] for e in events if e["event"] == "end"}
    busy = sum(ended[job] - begun[job] for job in begun)
    slots = min(2, cores())
    until = max(begun.values())  # while there was something to start
    occupied = sum(min(ended[job], until) - begun[job] for job in begun) / (slots * (until - min(begun.values())))
    print(
        f"grid {grid.best.mean:.4f} in {steps[0]} steps, optuna {search.best.mean:.4f} in {steps[1]} "
        f"({steps[1] / steps[0]:.2f}), {search.count('pruned')} pruned, occupied {occupied:.3f}, busy {busy:.0f} s"
    )
    assert search.count("pruned") > 0
    assert search.best.mean >= grid.best.mean
    assert steps[1] < 0.5 * steps[0]
    if slots == 2:
        assert occupied > 0.9
