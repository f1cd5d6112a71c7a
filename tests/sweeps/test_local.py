"""Slots: who runs where, with what, and that no slot waits while there is work."""

import itertools
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra.conf import HydraConf
from omegaconf import OmegaConf, open_dict

from recur.config.compose import _compose, conf_dir, hydra_as_before
from recur.errors import UserError
from recur.runs import marks
from recur.runs.journal import Journal
from recur.sweeps import local, supervisor
from recur.sweeps.commands import resume_command
from recur.sweeps.job import Job, Needs, SweepId, clean_environment
from recur.sweeps.launcher import leave
from recur.sweeps.local import Machine, Slot, SlotLauncher, SlotSettings, cgroup_quota, cores, plan, visible_gpus
from recur.sweeps.locks import Lock
from recur.sweeps.runner import Listed, Outcome, judge, run_jobs

KEY = "0" * 32
GPU, CPU = Needs("gpu", 1, 1), Needs("cpu", None, 1)


@dataclass
class Sleeper(Job):
    """Writes what it sees, sleeps, and is complete."""

    seconds: float = 0.0
    script: str = ""

    def command(self):
        seen = 'echo "{\\"devices\\": \\"$CUDA_VISIBLE_DEVICES\\", \\"at\\": $(date +%s.%N)}"'
        end = self.script or f"{seen} > {self.folder}/metrics.json"
        line = f"{seen} > {self.folder}/seen; sleep {self.seconds}; {end}"
        return ["/bin/sh", "-c", line]


class Diary:
    """Records where each job ran."""

    def __init__(self):
        self.places, self.before = {}, []

    def resumed(self, ended):
        self.before += [job.number for job, _ in ended]

    def started(self, job, place):
        self.places[job.number] = place

    def ended(self, job, outcome):
        pass


def sleepers(folder: Path, lengths, **more):
    return [
        Sleeper(n, (f"n={n}",), folder / str(n), SweepId(folder, KEY), seconds=length, **more)
        for n, length in enumerate(lengths)
    ]


def run(folder, jobs, slots, fail_fast=False):
    diary, journal = Diary(), Journal(folder)
    try:
        outcomes = run_jobs(Listed(jobs), Machine(slots, 1.0), journal, diary, fail_fast)
    finally:
        journal.close()
    return outcomes, diary


def spans_of(folder, count):
    """(begin, end) of the jobs of each device, in order, as the jobs themselves saw it."""
    spans = {}
    for number in range(count):
        begin, end = (json.loads((folder / str(number) / name).read_text()) for name in ("seen", "metrics.json"))
        spans.setdefault(begin["devices"], []).append((begin["at"], end["at"]))
    return {device: sorted(found) for device, found in spans.items()}


@pytest.mark.parametrize("unit", [0.2, pytest.param(1.0, marks=pytest.mark.slow)])
def test_four_devices_are_filled_without_idling_and_never_shared(tmp_path, monkeypatch, unit):
    """The share of idle time is a speed: held where a job takes seconds, as the shortest real one does."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    lengths = [unit * n for n in (3.0, 1.5, 2.0, 3.5, 2.5, 1.0, 3.0, 2.0, 1.5, 2.5, 3.0, 2.0)]
    slots = plan(SlotSettings(), [GPU], len(lengths))
    outcomes, diary = run(tmp_path, sleepers(tmp_path, lengths), slots)
    assert [outcomes[n].state for n in range(12)] == ["done"] * 12
    for number in range(12):
        seen = json.loads((tmp_path / str(number) / "seen").read_text())
        assert diary.places[number] == f"gpu {seen['devices']}"
    spans = spans_of(tmp_path, 12)
    assert sorted(spans) == ["4", "5", "6", "7"]
    gaps = [later[0] - earlier[1] for device in spans.values() for earlier, later in itertools.pairwise(device)]
    assert min(gaps) > 0, "two jobs shared a device"
    print(f"idle for {sum(gaps):.2f} s of {sum(lengths)} s, {100 * sum(gaps) / sum(lengths):.2f} %")
    if unit == 1:  # where others keep the machine busy, a process alone takes long to start
        bar = 0.03 if os.environ.get("RECUR_QUIET_MACHINE") == "1" else 0.15
        assert sum(gaps) < bar * sum(lengths)


def test_a_device_is_shared_by_no_more_jobs_than_allowed(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    slots = plan(SlotSettings(jobs_per_gpu=2), [GPU], 10)
    run(tmp_path, sleepers(tmp_path, [0.1 + 0.03 * (n % 4) for n in range(10)]), slots)
    for spans in spans_of(tmp_path, 10).values():
        changes = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
        assert max(itertools.accumulate(change for _, change in changes)) == 2


def test_jobs_per_gpu_bounds_sharing_and_takes_empty_devices_first(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    slots = plan(SlotSettings(gpus_per_job=2, jobs_per_gpu=2), [GPU])
    assert [slot.devices for slot in slots] == [("0", "1"), ("2", "3"), ("0", "1"), ("2", "3")]
    assert [slot.devices for slot in plan(SlotSettings(), [Needs("gpu", 2, 2)])] == [("0", "1"), ("2", "3")]
    assert [slot.devices for slot in plan(SlotSettings(gpus=[1, 3]), [Needs("auto", None, 1)])] == [("1",), ("3",)]


def test_cpu_slots_share_the_cores_out(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert visible_gpus() == []
    slots = plan(SlotSettings(), [CPU], 1000)
    assert len(slots) == cores()
    assert {slot.threads for slot in slots} == {1}
    (one,) = plan(SlotSettings(cpu_slots=1), [CPU], 8)
    assert one.threads == cores()
    two_ranks = one.environment(ranks=2)
    assert two_ranks["OMP_NUM_THREADS"] == str(max(1, cores() // 2))
    assert two_ranks["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("settings", "needs", "words"),
    [
        ({"gpus": 8}, GPU, ["gpus=8", "GPU 0, 1"]),
        ({"gpus": [0, 9]}, GPU, ["GPU 9"]),
        ({"gpus_per_job": 3}, GPU, ["gpus_per_job=3", "GPU 0, 1"]),
        ({}, Needs("gpu", 4, 4), ["trainer.devices=4", "GPU 0, 1"]),
        ({"gpus_per_job": 1}, Needs("gpu", 2, 2), ["trainer.devices=2", "gpus_per_job=1"]),
        ({"jobs_per_gpu": 0}, GPU, ["jobs_per_gpu", "0"]),
        ({"gpus": 1}, CPU, ["trainer.accelerator=cpu"]),
        ({"gpus": [0, 0]}, GPU, ["hydra.launcher.gpus names a GPU twice", "[0, 0]"]),
        ({"jobs_per_gpu": 4}, CPU, ["jobs_per_gpu", "trainer.accelerator=cpu"]),
        ({"cpu_slots": 1}, GPU, ["hydra.launcher.cpu_slots is for jobs on CPUs"]),
        ({"gpus": None}, Needs("auto", None, 1), ["hydra.launcher.gpus", "None"]),
        ({"gpus": 1.5}, GPU, ["hydra.launcher.gpus", "1.5"]),
    ],
)
def test_more_than_there_is_is_refused(monkeypatch, settings, needs, words):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(ValueError, match=".*".join(map(re.escape, words))):
        plan(SlotSettings(**settings), [needs], 4)


def test_no_gpu_for_jobs_that_want_one(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ValueError, match="no GPU is visible"):
        plan(SlotSettings(), [GPU], 4)
    assert not plan(SlotSettings(), [Needs("auto", None, 1)], 4)[0].devices
    for settings in (SlotSettings(gpus_per_job=2), SlotSettings(jobs_per_gpu=2)):
        with pytest.raises(UserError, match="no GPU is used here"):
            plan(settings, [Needs("auto", None, 1)], 4)


def test_a_failure_is_told_and_stops_nothing(tmp_path):
    jobs = sleepers(tmp_path, [0.1, 0.1, 0.1])
    jobs[1].script = "echo out of luck; exit 3"
    outcomes, _ = run(tmp_path, jobs, plan(SlotSettings(cpu_slots=1), [CPU], 3))
    assert [outcomes[n].state for n in range(3)] == ["done", "failed", "done"]
    assert outcomes[1].reason == "exit code 3: out of luck"


def test_fail_fast_stops_the_others_and_leaves_them_to_be_resumed(tmp_path):
    jobs = sleepers(tmp_path, [0.1, 30, 0.1])
    jobs[0].script = "exit 3"
    started = time.monotonic()
    outcomes, _ = run(tmp_path, jobs, plan(SlotSettings(cpu_slots=2), [CPU], 3), fail_fast=True)
    assert time.monotonic() - started < 10
    assert {n: outcome.state for n, outcome in outcomes.items()} == {0: "failed", 1: "stopped"}


def test_a_complete_job_is_not_run_again(tmp_path):
    jobs = sleepers(tmp_path, [0.1, 0.1])
    (tmp_path / "1").mkdir()
    marks.write_mark(tmp_path / "1", jobs[1].mark)
    (tmp_path / "1" / "metrics.json").write_text("{}")
    _, diary = run(tmp_path, jobs, plan(SlotSettings(cpu_slots=1), [CPU], 2))
    assert diary.before == [1], "counted before anything runs"
    assert not (tmp_path / "1" / "seen").exists()
    assert (tmp_path / "0" / "seen").exists()


class Resumed(SlotLauncher):
    """A launcher of a sweep whose jobs were begun before, that composes nothing."""

    def __init__(self, known):
        super().__init__("auto", "auto", 1, "auto", "auto", False, 1.0)
        self.known = known

    def known_jobs(self):
        return self.known

    def job(self, number, overrides):
        return Job(number, tuple(overrides), Path("s") / str(number), SweepId(Path("s"), KEY))


def test_settings_typed_in_another_order_are_the_jobs_that_were_begun():
    """Or each would be trained once more beside itself; the recorded words stay, which its folder's mark has."""
    known = {n: ("a=1", "b=2", f"seed={n}") for n in range(3)}
    made = Resumed(known).jobs([("b=2", "a=1", f"seed={seed}") for seed in (2, 0, 1, 7)])
    assert [(job.number, job.overrides) for job in made] == [
        (2, known[2]), (0, known[0]), (1, known[1]), (3, ("b=2", "a=1", "seed=7"))
    ]  # fmt: skip


class Composing(SlotLauncher):
    """A launcher whose jobs have one config."""

    def __init__(self, **settings):
        super().__init__("auto", "auto", 1, "auto", "auto", False, 1.0)
        self.config = OmegaConf.create({"hydra": HydraConf(), "resume": None, **settings})
        self.config.hydra.sweep.subdir, self.config.hydra.sweep.dir = "0", "s"

    def compose(self, number, overrides):
        return self.config


def test_a_job_that_leaves_no_run_is_refused():
    """Each that had printed its learning rate was reported as FAILED."""
    with hydra_as_before(), pytest.raises(UserError, match=r"find_lr prints a learning rate and leaves no run"):
        Composing(monitor="val/loss", find_lr=True).job(0, ())


def composing(folder, *words):
    """A launcher of the sweep in this folder; its job 0 has the config that the words compose."""
    launcher = Composing()
    launcher.config = _compose(conf_dir(), "train", ["trainer=cpu", f"hydra.sweep.dir={folder}", *words])
    with open_dict(launcher.config):
        launcher.config.hydra.job.id, launcher.config.hydra.job.num = "0", 0
        launcher.config.hydra.runtime.output_dir = str(folder / "0")
    return launcher


@pytest.mark.parametrize(
    ("typed", "settings", "whole"),
    [
        (["-m", "seed=0,1"], [], False),
        (["-m", "--config-dir", "own", "seed=0,1"], [], True),
        (["-m", "data.cache_dir=/else/where", "seed=0,1"], ["data.cache_dir=/else/where"], True),
    ],
    ids=["plain", "a flag", "a place"],
)
def test_what_completes_a_sweep_is_all_of_its_command_where_a_recorded_one_is_refused(
    tmp_path, monkeypatch, typed, settings, whole
):
    """`-m resume=SWEEP` was printed, and refused when it was typed."""
    monkeypatch.setattr("recur.config.compose._repeated", [])  # which other tests fill
    monkeypatch.setenv("RECUR_TRUST", "")
    Journal.begin(tmp_path, monitor="val/loss", mode="min", argv=[*typed, f"hydra.sweep.dir={tmp_path}"]).close()
    with hydra_as_before():
        launcher = composing(tmp_path, *settings)
        launcher.job(0, ())
    again = shlex.split(launcher.command_again())
    assert again[1:] == ["-m", "recur.train", *(typed if whole else ["-m"]), f"resume={tmp_path}"]


def test_a_recorded_sweep_that_writes_elsewhere_is_refused_with_the_way_to_go_on_with_it(tmp_path, monkeypatch):
    """What was advised, the one setting beside `resume=SWEEP`, made another sweep of it."""
    monkeypatch.setattr("recur.config.compose._repeated", [str(tmp_path)])
    remedy = "if you want that, type the sweep's whole command again, with resume="
    with hydra_as_before(), pytest.raises(UserError, match=rf"data\.cache_dir is '/else/where', out of .*: {remedy}"):
        composing(tmp_path, "data.cache_dir=/else/where").job(0, ())


def test_rows_that_differ_in_the_order_of_their_words_alone_stay_apart():
    known = {0: ("a=1", "a=2"), 1: ("a=2", "a=1")}
    made = Resumed(known).jobs([known[1], known[0]])
    assert [(job.number, job.overrides) for job in made] == [(1, known[1]), (0, known[0])]


@pytest.mark.parametrize("value", ["null", "NaN", "Infinity", "-Infinity"])
def test_a_metric_that_is_not_finite_is_a_failure_unless_the_run_was_pruned(tmp_path, value):
    job = Job(0, (), tmp_path / "0", SweepId(tmp_path, KEY), monitor="val/loss")
    job.prepare()
    (job.folder / "metrics.json").write_text(f'{{"val": {{"loss": {value}}}}}')
    outcome = judge(job, 0)
    assert (outcome.state, outcome.value, outcome.reason) == ("failed", None, "the metric is not finite")
    (job.folder / "metrics.json").write_text(f'{{"val": {{"loss": {value}}}, "pruned": true}}')
    assert (judge(job, 0).state, judge(job, 0).value) == ("pruned", None)


def test_the_way_to_run_a_failed_job_again_is_told_where_a_resumed_sweep_would(tmp_path, capsys):
    complete, cut = Outcome("failed", None, {}, 1.0, "the metric is not finite"), Outcome("failed")
    for outcomes, told in (({0: complete}, False), ({0: complete, 1: cut}, True)):
        with pytest.raises(SystemExit):
            leave(outcomes, 2, lambda: resume_command(tmp_path))
        assert ("resume=" in capsys.readouterr().err) == told
        with pytest.raises(SystemExit):  # a study does not count what failed, and asks for other settings
            leave(outcomes, 2, lambda: resume_command(tmp_path), replaced=True)
        said = capsys.readouterr().err
        assert f"others are tried in their place with: {resume_command(tmp_path)}" in said and "run them" not in said


def kept(folder):
    return {path.name: path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("subdir", "made"),
    [
        ("0", {"thesis.txt": "years of work"}),
        ("../victim", {"thesis.txt": "years of work"}),
        ("../victim", {}),
        (".", {}),
        (".locks/0", {}),
        ("0", {"metrics.json": "{}"}),
        ("0", {marks.NAME: json.dumps({"sweep": "1" * 32, "job": 0, "overrides": ["n=0"]}), "thesis.txt": "x"}),
        ("0", {marks.NAME: json.dumps({"sweep": KEY, "job": 0, "overrides": ["n=7"]}), "thesis.txt": "x"}),
        ("0", {marks.NAME: "[" * 100_000, "thesis.txt": "x"}),
    ],
)
def test_no_folder_is_cleared_that_the_job_did_not_make(tmp_path, subdir, made):
    sweep = tmp_path / "project"
    folder = sweep / subdir
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in made.items():
        (folder / name).write_text(text)
    before = kept(tmp_path)
    job = Job(0, ("n=0",), folder, SweepId(sweep, KEY))
    with pytest.raises(UserError):
        job.check_folder()
    with pytest.raises(UserError):
        job.prepare()
    assert kept(tmp_path) == before


def test_a_link_to_a_folder_is_not_cleared(tmp_path):
    victim, sweep = tmp_path / "victim", tmp_path / "s"
    victim.mkdir()
    sweep.mkdir()
    job = Job(0, ("n=0",), sweep / "0", SweepId(sweep, KEY))
    marks.write_mark(victim, job.mark)
    (victim / "thesis.txt").write_text("years of work")
    (sweep / "0").symlink_to(victim)
    with pytest.raises(UserError, match="inside"):
        job.prepare()
    assert (victim / "thesis.txt").exists()


def test_what_a_job_wrote_is_cleared_and_nothing_else_or_behind_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.txt").write_text("years of work")
    job = Job(0, ("n=0",), tmp_path / "s" / "0", SweepId(tmp_path / "s", KEY))
    job.prepare()
    (job.folder / ".hydra").mkdir()
    (job.folder / "notes.txt").write_text("mine")
    for name in (".hydra/config.yaml", "output.log", "history.jsonl", ".lock"):
        (job.folder / name).write_text("x")
    (job.folder / "checkpoints").symlink_to(victim)
    held = Lock(job.folder / ".lock")
    held.acquire()  # by somebody who typed the job's command by hand
    job.prepare()
    assert (job.folder / "output.log").exists() and (job.folder / "history.jsonl").exists()
    held.release()
    job.prepare()
    assert sorted(path.name for path in job.folder.iterdir()) == [".lock", marks.NAME, "notes.txt"]
    assert (victim / "thesis.txt").exists()


@pytest.mark.slow
def test_a_job_that_outlives_its_killed_supervisor_is_awaited_and_counts(tmp_path):
    (job,) = sleepers(tmp_path, [1.0])
    machine = Machine(plan(SlotSettings(cpu_slots=1), [CPU], 1), 1.0)

    class Killer(Diary):
        def started(self, job, place):
            until = time.monotonic() + 10
            while not (job.folder / "seen").exists():
                assert time.monotonic() < until
                time.sleep(0.02)
            machine.busy[0][1].kill()

    journal = Journal(tmp_path)
    outcomes = run_jobs(Listed([job]), machine, journal, Killer())
    journal.close()
    assert outcomes[0].state == "done"


def test_jobs_die_with_a_sweep_that_is_killed(tmp_path):
    """Not even SIGKILL leaves an orphan: the supervisor's lifeline closes with its parent."""
    supervisor = Path(sys.modules["recur.sweeps.job"].__file__).with_name("supervisor.py")
    code = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, {str(supervisor)!r}, {str(tmp_path / 'lock')!r}, '5', '/bin/sh', '-c',"
        f" 'echo $$ > {tmp_path}/pid; sleep 60 & sleep 60'], stdin=subprocess.PIPE, start_new_session=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    until = time.monotonic() + 10
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        assert time.monotonic() < until
        time.sleep(0.02)
    group = int((tmp_path / "pid").read_text())
    parent.kill()
    parent.wait()
    while _alive(group):
        assert time.monotonic() < until, "the job outlived its sweep"
        time.sleep(0.02)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    states = subprocess.run(["ps", "-o", "stat=", "-g", str(group)], capture_output=True, text=True).stdout.split()
    return any(not state.startswith("Z") for state in states)


@pytest.mark.slow
def test_a_supervisor_outlives_the_signal_by_which_a_queue_asks_jobs_to_save(tmp_path):
    command = [sys.executable, "-I", "-S", supervisor.__file__, str(tmp_path / "lock"), "1"]
    command += ["/bin/sh", "-c", "echo began; sleep 1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"began\n"
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            process.send_signal(number)
        assert process.wait(30) == 0


def test_nothing_of_a_rank_leaks_into_a_job():
    leaks = {
        "LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2", "NODE_RANK": "0", "GROUP_RANK": "0", "MASTER_ADDR": "x",
        "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x", "PL_GLOBAL_SEED": "3", "SLURM_NTASKS": "4", "RECUR_TRIAL": "{}",
    }  # fmt: skip
    kept = clean_environment({"OMP_NUM_THREADS": "1"}, {**leaks, "PATH": "/bin", "PYTHONPATH": "y"})
    assert kept == {"PATH": "/bin", "PYTHONPATH": "y", "OMP_NUM_THREADS": "1"}


def test_a_slot_names_gpus_as_they_were_counted(monkeypatch):
    """nvidia-smi counts them by bus, CUDA of itself by speed."""
    slot = Slot(0, ("1",), 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert slot.environment(1)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert "CUDA_DEVICE_ORDER" not in slot.environment(1)
    assert "CUDA_DEVICE_ORDER" not in Slot(0, (), 4).environment(1)


def test_the_processes_that_a_job_starts_on_its_gpus_share_its_threads(tmp_path, monkeypatch):
    """Each of four processes was given the threads of all where `trainer.devices` names no number."""
    granted = []

    def start(job, environment, grace):
        granted.append(int(environment["OMP_NUM_THREADS"]))

    monkeypatch.setattr(local, "start_supervised", start)
    needs = [Needs("gpu", None, 1, True), Needs("auto", None, 1), Needs("gpu", 2, 2), Needs("cpu", None, 1)]
    for number, need in enumerate(needs):
        machine = Machine([Slot(0, ("0", "1", "2", "3"), 16)])
        machine.start(Job(number, (), tmp_path / str(number), SweepId(tmp_path, KEY), need))
    assert granted == [4, 4, 8, 16]


def test_cores_are_those_of_the_container_and_of_the_job(tmp_path, monkeypatch):
    root, own = tmp_path / "cgroup", tmp_path / "own"
    (root / "a" / "b").mkdir(parents=True)
    own.write_text("0::/a/b\n")
    assert cgroup_quota(root, own) == math.inf
    (root / "a" / "cpu.max").write_text("250000 100000\n")
    (root / "a" / "b" / "cpu.max").write_text("max 100000\n")
    assert cgroup_quota(root, own) == 2.5
    (root / "cpu.max").write_text("100000 100000\n")
    assert cgroup_quota(root, own) == 1.0
    assert cgroup_quota(root, tmp_path / "none") == 1.0
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    monkeypatch.setattr(local, "cgroup_quota", lambda: 2.5)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert cores() == 2
    monkeypatch.setattr(local, "cgroup_quota", lambda: math.inf)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "4")
    assert cores() == 4
    monkeypatch.delenv("SLURM_CPUS_ON_NODE")
    assert cores() == 64


@pytest.mark.parametrize(
    ("listed", "seen"),
    [
        ("0,-1,1", ["0"]),
        ("-1", []),
        ("0,,1", ["0"]),
        ("NoDevFiles", []),
        (" GPU-a , GPU-b", ["GPU-a", "GPU-b"]),
        ("MIG-1,2", ["MIG-1", "2"]),
    ],
)
def test_gpus_that_cuda_hides_are_not_there(listed, seen):
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": listed}) == seen


def test_parts_of_a_gpu_are_no_gpus(tmp_path, monkeypatch):
    listed = (
        "GPU 0: H100 (UUID: a)\n  MIG 1g.10gb Device 0: (UUID: b)\n  MIG 1g.10gb Device 1: (UUID: c)\nGPU 1: H100\n"
    )
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{listed}'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert visible_gpus({}) == ["0", "1"]


def test_what_is_trusted_is_told_to_each_job(tmp_path, monkeypatch):
    """A worker of a Ray cluster has an environment of its own."""
    monkeypatch.setattr("recur.config.compose._repeated", [])
    monkeypatch.setenv("RECUR_TRUST", "my_models")
    with hydra_as_before():
        assert composing(tmp_path).job(0, ()).environment["RECUR_TRUST"] == "my_models"
