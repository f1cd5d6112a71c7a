"""`python -m recur.train -m`: what a user can get wrong is one line before any job starts; what is right runs."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recur import train
from recur.cli import handling
from recur.config.compose import command_line, compose_run, conf_dir
from recur.config.words import said_again
from recur.errors import UserError
from recur.leaderboard.table import Leaderboard
from recur.runs import journal, marks
from recur.sweeps import locks, signals
from recur.sweeps.job import TRIAL, Job, SweepId
from recur.sweeps.signals import Heard
from recur.sweeps.space import parse
from support.commands import run_command
from support.real_sweeps import TINY, environment, sweep


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optimizer.lrr=1,2"], ["optimizer.lrr is no setting", "did you mean optimizer.lr?"]),
        (["model=bilstm,bilsm"], ["bilsm", "did you mean bilstm?"]),
        (["optimizer.lr=interval(1e-3,1e-1)"], ["hydra/sweeper=random"]),
        (["seed=0,1", "trainer=gpu"], ["no GPU"]),
        (["seed=0,1", "trainer=cpu", "hydra.launcher.gpus=2"], ["gpus"]),
        (["optimizer.lr=1e-3,1e-2", "model.net.hidden_size=8,1.5"], ["model.net.hidden_size", "whole number", "1.5"]),
        (["+optimizer.bettas=[0.9,0.99],[0.8,0.9]"], ["optimizer.bettas is no setting", "did you mean betas?"]),
        (["seed=0,1", "trainer=gpu", "trainer.devices=[2,3]"], ["trainer.devices=[2, 3]", "hydra.launcher.gpus"]),
        (["seed=0,1", "trainer=cpu", "hydra.launcher.gpus=-1"], ["gpus"]),
        (["seed=0,-1"], ["seed", "got -1"]),
        (["hydra/sweeper=random", "seed=0,1", "hydra.sweeper.n_trials=x"], ["n_trials", "whole number", "'x'"]),
        (["model.net.cell=lstm,lsmt"], ["model.net.cell", "'lsmt'"]),
        (["optimizer.lr=0.1,-1"], ["optimizer.lr must be above 0", "got -1"]),
        (["seed=0,1", "hydra/launcher=basic"], ["hydra/launcher=basic", "hydra/launcher=slots"]),
        (["seed=0,1", "hydra.sweep.dir=/proc/none/s"], ["/proc/none/s", "hydra.sweep.dir=..."]),
        (["seed=0,1", "hydra.sweep.subdir=../${hydra.job.num}"], ["hydra.sweep.subdir must name a folder inside"]),
        (["hydra/sweeper=optuna", "optimizer.lr=1,2", "hydra.sweeper.pruner.reduction=0"], ["reduction", "got 0"]),
        (["seed=0,1", "monitor=val/acuracy"], ["'val/acuracy'", "did you mean val/accuracy?"]),
        (["seed=0,1", "monitor=train/epoch_loss", "mode=min"], ["monitor must be measured on val", "train/epoch_loss"]),
        (["seed=0,1", "hydra.sweep.subdir=same"], ["subdir"]),
        (["seed=0,1", "resume=nowhere"], ["no sweep at nowhere"]),
        (["seed=0,1", "resume=src"], ["is not a sweep"]),
        (["hydra/sweeper=optuna", "seed=0,1"], ["seed", "lucky"]),
        (["seed=0,1", "hydra.launcher.grace_seconds=inf"], ["grace_seconds must be a finite number", "got inf"]),
        (["seed=0,1", "hydra/launcher=ray"], ["hydra.launcher.gpus_per_job must be a number", "0 for CPUs"]),
        (["seed=0,1", "hydra.sweeper.params=5"], ["hydra.sweeper.params must be", "got 5"]),
        (["seed=0,1", "hydra.sweeper.cases=5"], ["hydra.sweeper.cases must be lists", "got 5"]),
        (["hydra/sweeper=optuna", "optimizer.lr=1,2", "hydra.sweeper.objectives=val/f1"], ["objectives", "'val/f1'"]),
        (["hydra/sweeper=optuna", "optimizer.lr=1,2", "hydra.sweeper.objectives=[val/f1]"], ["objectives", "max"]),
        (["seed=0,1", "+hydra.launcher.gpuss=1"], ["hydra.launcher.gpuss is no setting", "cpu_slots"]),
        (["hydra/sweeper=optuna", "optimizer.lr=1e-3"], ["nothing to search"]),
        (["seed=0,1", "trainer=cpu", "hydra/launcher=ray", "hydra.launcher.address=127.0.0.1:1"], ["no Ray cluster"]),
        (
            ["hydra/sweeper=optuna", "optimizer.lr=1,2", "hydra.sweeper.objectives={val/loss: max}"],
            ["objectives.val/loss must be min for val/loss, got 'max'", "objectives={val/loss: min}"],
        ),
        (
            ["hydra/sweeper=optuna", "optimizer.lr=1,2", "hydra.sweeper.objectives={val/f1: max, test/f3: max}"],
            ["'test/f3'"],
        ),
        (
            ["hydra/sweeper=optuna", "optimizer.lr=1,2", "hydra.sweeper.objectives={val/f1: max, epochs: min}"],
            ["pruner.kind=null"],
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and "=" in value[-1] else "",
)
def test_a_mistake_is_one_line_before_any_job_starts(tmp_path, overrides, words):
    done = sweep(tmp_path / "s", *overrides, code=2)
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("recur: ")
    assert all(word in done.stderr for word in words), done.stderr
    assert not (tmp_path / "s" / journal.NAME).exists()
    assert not (tmp_path / "s" / "0").exists()


def test_a_sweep_is_not_run_in_the_folder_of_a_run(trained_run):
    before = sorted(trained_run.rglob("*"))
    done = sweep(trained_run, "seed=0,1", code=2)
    assert "hydra.sweep.dir is the folder of a run" in done.stderr
    assert sorted(trained_run.rglob("*")) == before


@pytest.mark.slow
def test_a_sweep_with_its_own_folder_of_configs_runs(tmp_path):
    """Its jobs are given the same folder, whether it was typed relative to here or not."""
    own = tmp_path / "own"
    shutil.copytree(conf_dir(), own, ignore=shutil.ignore_patterns("claims"))
    (own / "train.yaml").write_text((own / "train.yaml").read_text().replace("seed: 0", "seed: 77"))
    words = ["-m", "--config-path", "own", "optimizer.lr=1e-3,1e-2", *TINY, "hydra.sweep.dir=s"]
    done = run_command("train", *words, cwd=tmp_path, environment=environment(), timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {r.record["seed"] for r in Leaderboard.of([tmp_path / "s"]).results} == {77}


@pytest.mark.parametrize(
    ("overrides", "retyped"),
    [
        (["logger=wandb"], ("logger.wandb.offline=false",)),
        (["logger=wandb", "logger.wandb.offline=true"], ()),
        (["logger=mlflow", "logger.mlflow.tracking_uri=http://h:1"], ("logger.mlflow.tracking_uri=http://h:1",)),
        (["data=imdb", "data.path=org/name"], ("data.path=org/name",)),
        (
            ["data.cache_dir=/else/where", "data.allow_pickle=true"],
            ("data.allow_pickle=true", "data.cache_dir=/else/where"),
        ),
        ([], ()),
    ],
)
def test_a_job_that_goes_on_types_again_what_its_config_may_not_say(tmp_path, overrides, retyped):
    """Wherever the sweep's command has it from."""
    composed = compose_run(command_line([*overrides, "trainer=cpu", f"hydra.run.dir={tmp_path / '0'}"]))
    again = said_again(composed.cfg, composed.config, composed.folder)
    assert tuple(f"{key}={value}" for key, value in again.items()) == retyped
    job = Job(0, tuple(overrides), tmp_path / "0", SweepId(tmp_path, "5" * 32), retyped=retyped)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Job, "can_continue", lambda self: True)
        words = job.command()
    assert all(f"++{word}" in words for word in retyped)


def test_a_plain_run_imports_no_sweep():
    """Hydra imports its plugins in every run; they import what they stand for when it is used."""
    code = "import sys; from hydra.core.plugins import Plugins; Plugins.instance().discover(); import recur.train; "
    code += (
        "print([n for n in sys.modules if n.startswith('recur.sweeps')], 'hydra_plugins.recur_sweeps' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "True"]


def test_the_variable_of_a_trial_is_the_one_that_a_run_looks_for():
    assert f'"{TRIAL}" not in os.environ' in Path(train.__file__).read_text()


@pytest.mark.slow
def test_a_search_with_two_objectives_runs_and_is_restored(tmp_path):
    folder = tmp_path / "s"
    typed = (*TINY, "test=false", "logger=none", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3")
    typed += ("optimizer.lr=tag(log,interval(1e-3,1e-1))", "model.net.hidden_size=4,8")
    typed += ("hydra.sweeper.objectives={val/accuracy: max, parameters: min}", "hydra.sweeper.pruner.kind=null")
    sweep(folder, *typed)
    before = Leaderboard.of([folder])
    assert before.count("done") == 3
    (folder / "optuna.journal").write_bytes(b"")
    done = sweep(folder, f"resume={folder}")
    assert "3 of 3 jobs were complete before (3/3" in done.stdout
    assert [r.settings for r in Leaderboard.of([folder]).results] == [r.settings for r in before.results]


@pytest.mark.parametrize("lost", ["search", "space", "objectives"])
def test_a_sweep_whose_record_has_lost_a_part_is_not_resumed(tmp_path, lost):
    header = {"event": "sweep", "format": 1, "id": "0" * 32, "monitor": "val/accuracy", "mode": "max"}
    header |= {"search": "grid", "space": {"fixed": {}, "varied": {"seed": ["0", "1"]}}, "argv": ["-m", "seed=0,1"]}
    header |= {"objectives": {"val/accuracy": "max"}}
    del header[lost]
    (tmp_path / journal.NAME).write_text(json.dumps(header) + "\n")
    done = sweep(tmp_path, "seed=0,1", "trainer=cpu", f"resume={tmp_path}", code=2)
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"is damaged: its first line does not say the {lost}" in done.stderr


def test_m_may_stand_anywhere(tmp_path):
    done = run_command("train", "seed=0,1", "-m", f"resume={tmp_path / 'none'}", environment=environment())
    assert "there is no sweep at" in done.stderr
    assert done.returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize("how", [["seed=0,1"], ["hydra/sweeper=optuna", "optimizer.lr=0.1,0.2"]], ids=str)
def test_folders_that_no_sweep_made_stay(tmp_path, how):
    """`seed=0,1 hydra.sweep.dir=/my/project` where /my/project/0 and /1 are somebody's."""
    for number, text in (("0", "a chapter"), ("1", "another")):
        (tmp_path / number).mkdir()
        (tmp_path / number / "chapter.txt").write_text(text)
    done = sweep(tmp_path, *TINY, *how, code=2)
    assert f"{tmp_path / '0'} exists and is not a job of this sweep" in done.stderr
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "0", "0/chapter.txt", "1", "1/chapter.txt",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("resumed", [False, True])
def test_a_page_that_no_sweep_made_stays(tmp_path, resumed):
    """`hydra.sweep.dir=/my/project` where /my/project/results is somebody's."""
    if resumed:
        begun(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "runs.csv").write_text("mine")
    words = ["resume=" + str(tmp_path)] if resumed else []
    done = sweep(tmp_path, *TINY, "seed=0,1", "hydra.launcher.snapshot=false", *words, code=2)
    assert "holds runs.csv, which recur.results did not write" in done.stderr and "hydra.sweep.dir=" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "0").exists() and (tmp_path / "results" / "runs.csv").read_text() == "mine"


def begun(folder, *starts):
    """The journal of a sweep of two seeds, whose submitter was killed after these starts."""
    space = {"fixed": {word.partition("=")[0]: word for word in TINY}, "varied": {"seed": ["0", "1"]}}
    header = {"event": "sweep", "format": 1, "id": "0" * 32, "monitor": "val/accuracy", "mode": "max"}
    header |= {"search": "grid", "space": space, "objectives": {"val/accuracy": "max"}, "argv": ["-m", "seed=0,1"]}
    lines = [
        header,
        *({"event": "start", "job": n, "overrides": [*TINY, f"seed={n}"], **s} for n, s in enumerate(starts)),
    ]
    (folder / journal.NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.slow
def test_a_sweep_that_was_extended_goes_on_as_it_was_typed_last(tmp_path):
    """`-m resume=SWEEP`, printed when it is stopped, asked for the jobs of its first command."""
    varied = "optimizer.lr=tag(log,interval(1e-3,1e-1))"
    typed = [*TINY, "hydra/sweeper=random", varied, "hydra.launcher.snapshot=false"]
    begun(tmp_path)
    space = parse({}, [*TINY, varied])
    header = json.loads((tmp_path / journal.NAME).read_text())
    header |= {"search": "random, seed 0", "space": space.as_record(), "jobs": 2}
    header |= {"argv": ["-m", *typed, "hydra.sweeper.n_trials=2"]}
    (tmp_path / journal.NAME).write_text(json.dumps(header) + "\n")
    for number, row in enumerate(space.sample(3, seed=0)):  # complete: nothing is left to run
        job = Job(number, row, tmp_path / str(number), SweepId(tmp_path, "0" * 32))
        job.prepare()
        (job.folder / "metrics.json").write_text('{"val": {"accuracy": 0.5}}')
    assert "2 of 2 jobs were complete before" in sweep(tmp_path, f"resume={tmp_path}").stdout
    extended = sweep(tmp_path, *typed, "hydra.sweeper.n_trials=3", f"resume={tmp_path}")
    assert "3 of 3 jobs were complete before" in extended.stdout
    assert "3 of 3 jobs were complete before" in sweep(tmp_path, f"resume={tmp_path}").stdout
    events = [event for event in journal.read(tmp_path) if event["event"] == "extended"]
    assert [(event["jobs"], event["argv"]) for event in events] == [(3, ["-m", *typed, "hydra.sweeper.n_trials=3"])]


@pytest.mark.slow
def test_the_jobs_of_a_resumed_sweep_stay_in_their_folders(tmp_path):
    begun(tmp_path, {"folder": "0"})
    words = [*TINY, "seed=0,1", "hydra.launcher.snapshot=false", f"resume={tmp_path}"]
    done = sweep(tmp_path, *words, "hydra.sweep.subdir=again/${hydra.job.num}", code=2)
    assert "hydra.sweep.subdir must stay as it was: job 0 ran in 0, got 'again/0'" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [journal.NAME]


@pytest.mark.slow
def test_a_sweep_with_jobs_in_the_queue_is_not_resumed(tmp_path):
    """Its submitter was killed: they would be queued once more."""
    folder, tools = tmp_path / "s", tmp_path / "bin"
    folder.mkdir()
    tools.mkdir()
    (tools / "squeue").write_text("#!/bin/sh\necho 12\necho 99\n")
    (tools / "squeue").chmod(0o755)
    begun(folder, {"folder": "0", "place": "slurm 11"}, {"folder": "1", "place": "slurm 12"})
    path = f"{tools}:{os.environ['PATH']}"
    words = [*TINY, "seed=0,1", "hydra.launcher.snapshot=false", f"resume={folder}"]
    done = sweep(folder, *words, code=2, env=environment(PATH=path))
    assert "has jobs in SLURM's queue from before: 12: end them first: scancel 12" in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == [".locks", journal.NAME]


@pytest.mark.slow
def test_a_small_sweep_runs_fails_where_it_must_and_is_resumed(tmp_path):
    folder = tmp_path / "s"
    typed = (*TINY, "optimizer.lr=1e-3,1e-2", "data.vectors=null,nowhere.vec")  # a file is read by the job alone
    done = sweep(folder, *typed, code=1)
    assert "job 1 FAILED" in done.stdout
    assert "nowhere.vec" in done.stdout
    assert f"log {folder / '1' / 'output.log'}" in done.stdout
    assert "2 of 4 jobs failed (1, 3)" in done.stderr
    assert (folder / "results" / "index.html").is_file()
    before = figures_of_done(folder)
    assert len(before) == 2
    check_hparams(folder, {"0": 0.001, "2": 0.01})
    times = {n: (folder / n / "metrics.json").stat().st_mtime_ns for n in ("0", "2")}

    refused = sweep(folder, *TINY, "optimizer.lr=1e-3,1e-1", f"resume={folder}", code=2)
    assert (
        "optimizer.lr: then 0.001,0.01, now 0.001,0.1; data.vectors: then nowhere.vec,null, now not set"
        in refused.stderr
    )
    refused = sweep(folder, *typed, code=2)
    assert "is a sweep already" in refused.stderr

    done = run_command("train", *typed, "-m", f"resume={folder}", environment=environment())  # `-m` may stand anywhere
    assert done.returncode == 1, done.stderr
    assert "2 of 4 jobs were complete before (2/4" in done.stdout

    done = sweep(folder, f"resume={folder}", code=1)  # alone, it repeats its own command
    assert times == {n: (folder / n / "metrics.json").stat().st_mtime_ns for n in ("0", "2")}
    assert figures_of_done(folder) == before
    starts = [e["job"] for e in journal.read(folder) if e["event"] == "start"]
    assert sorted(starts) == [0, 1, 1, 1, 2, 3, 3, 3]


def figures_of_done(folder):
    return {r.label: r.record["val"] for r in Leaderboard.of([folder]).results if r.state == "done"}


def check_hparams(folder, expected):
    """TensorBoard's HParams tab has every run, all with the same settings, each with its results."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    keys = []
    for run, lr in expected.items():
        found = EventAccumulator(str(folder / run), size_guidance={"scalars": 0}).Reload()
        content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        settings = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
        keys.append(set(settings))
        assert settings["optimizer.lr"].number_value == lr
        wrote = json.loads((folder / run / "metrics.json").read_text())["test"]["accuracy"]
        assert abs(found.Scalars("result/test/accuracy")[-1].value - wrote) < 1e-6
    assert all(one == keys[0] for one in keys)


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_a_sweep_unless_it_is_ignored(which):
    """As SIGHUP is under `nohup`."""
    with pytest.raises(KeyboardInterrupt), handling(Heard(), which):
        os.kill(os.getpid(), which)
    before = signal.signal(which, signal.SIG_IGN)
    try:
        with handling(Heard(), which):
            os.kill(os.getpid(), which)
        assert signal.getsignal(which) == signal.SIG_IGN
    finally:
        signal.signal(which, before)


def test_the_stop_of_a_sweep_is_not_broken_off_by_the_same_request(monkeypatch):
    """A closed terminal comes as two signals, and SLURM's SIGTERM follows its warning: jobs were killed unsaved."""
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    for first, later in ((signal.SIGHUP, 0.4), (signal.SIGUSR1, 20.0)):
        heard = Heard()
        with pytest.raises(KeyboardInterrupt):
            heard(first, None)
        now[0] += later
        heard(signal.SIGHUP if first == signal.SIGHUP else signal.SIGTERM, None)
        assert heard.number == first
        now[0] += 20
        with pytest.raises(KeyboardInterrupt):
            heard(signal.SIGTERM, None)
        assert heard.number == first
    heard = Heard()
    with pytest.raises(KeyboardInterrupt):
        heard(signal.SIGTERM, None)
    now[0] += 20
    heard(signal.SIGUSR1, None)  # the other order, where a job is preempted
    assert heard.number == signal.SIGUSR1


def test_what_cannot_be_read_just_now_is_not_cleared(tmp_path, monkeypatch):
    """A file server that did not answer for a moment cost a job its checkpoints."""
    job = Job(0, ("seed=0",), tmp_path / "0", SweepId(tmp_path, "0" * 32))
    (job.folder / ".hydra").mkdir(parents=True)
    (job.folder / ".hydra" / "config.yaml").touch()
    (job.folder / "checkpoints").mkdir()
    (job.folder / "checkpoints" / "last.ckpt").write_bytes(b"damaged")
    marks.write_mark(job.folder, job.mark)

    def fails(path):
        raise OSError(5, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("recur.runs.checkpoint.check", fails)
        with pytest.raises(OSError, match="Input/output"):
            job.prepare()
    assert (job.folder / "checkpoints" / "last.ckpt").read_bytes() == b"damaged"
    job.prepare()
    assert [path.name for path in job.folder.iterdir()] == [marks.NAME]


def test_a_folder_whose_mark_was_cut_short_is_the_jobs_own(tmp_path):
    job = Job(0, ("seed=0",), tmp_path / "0", SweepId(tmp_path, "0" * 32))
    job.folder.mkdir()
    (job.folder / f".{marks.NAME}.123").write_text('{"sweep"')
    (job.folder / marks.NAME).touch()
    job.prepare()
    assert marks.read_mark(job.folder) == job.mark
    other = Job(1, ("seed=1",), tmp_path / "1", job.sweep)
    other.folder.mkdir()
    (other.folder / "thesis.txt").touch()
    with pytest.raises(UserError, match="exists and is not a job of this sweep"):
        other.prepare()


def test_the_last_line_of_a_long_log_is_found_at_its_end(tmp_path, monkeypatch):
    job = Job(0, (), tmp_path / "0", SweepId(tmp_path, "0" * 32))
    job.folder.mkdir()
    monkeypatch.setattr("recur.sweeps.job._TAIL", 30)
    job.log.write_bytes(b"x" * 1000 + b"\nthe last \xc3\xa9 line \n\n")
    assert job.last_line() == "the last é line"


def test_a_file_system_without_locks_stops_nobody(tmp_path, monkeypatch):
    with locks.Lock(tmp_path / "a"), pytest.raises(locks.HeldError):
        locks.Lock(tmp_path / "a", timeout=0).acquire()
    with locks.Lock(tmp_path / "a", timeout=0):  # the file stays, and is free
        pass

    def none(*_, **__):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(locks, "lock_descriptor", none)
    with locks.Lock(tmp_path / "a"), locks.Lock(tmp_path / "a", timeout=0):
        pass
