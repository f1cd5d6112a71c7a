"""Beyond one machine, on engines that exist: Ray, submitit, torchrun, each with nodes simulated here."""

import json
import socket
import subprocess
import sys
from contextlib import closing

import pytest
from filelock import FileLock

from recur.errors import UserError
from recur.leaderboard.table import Leaderboard
from recur.runs import journal
from recur.sweeps import remote
from recur.sweeps.job import PERFORMED, Job, Needs, SweepId, perform
from recur.sweeps.remote import Requeued, Share, Submitit, share
from recur.sweeps.runner import Listed, run_jobs
from support.real_sweeps import TINY, environment, figures, sweep


def test_a_share_is_what_the_trainer_asks_for():
    assert share([Needs("gpu", 2, 2), Needs("gpu", None, 1)], "auto", 4) == Share(2, 4)
    assert share([Needs("cpu", None, 1)], "auto", 1) == Share(0, 1)
    assert share([Needs("gpu", 1, 1)], 0.5, 1) == Share(0.5, 1)
    assert share([Needs("gpu", None, 1, True)], 4, 1) == Share(4, 1)
    with pytest.raises(UserError, match=r"trainer\.devices"):
        share([Needs("gpu", None, 1, True)], "auto", 1)
    with pytest.raises(ValueError, match="cpus_per_job"):
        share([], "auto", 0)
    assert share([Needs()], 0, 1) == Share(0, 1)
    with pytest.raises(ValueError, match="gpus_per_job must be a number where"):
        share([Needs()], "auto", 1)


@pytest.mark.parametrize(
    ("need", "gpus", "least"),
    [
        (Needs("gpu", 4, 4), 1, 4),
        (Needs("gpu", 1, 1), 0, 1),
        (Needs("gpu"), 0, 1),
        (Needs("auto", 4, 4), 2, 4),
    ],
)
def test_a_share_that_lacks_gpus_of_a_job_is_refused_before_it_is_queued(need, gpus, least):
    with pytest.raises(UserError, match=rf"gpus_per_job must be at least {least}, .*, got {gpus}: "):
        share([Needs("cpu", None, 1), need], gpus, 1)


def test_a_share_of_no_gpu_serves_processes_on_the_cpu():
    assert share([Needs("auto", 2, 2), Needs("cpu", None, 2)], 0, 4) == Share(0, 4)


def test_the_processes_of_a_job_share_its_part_of_the_threads():
    needs = [Needs("gpu", None, 1, True), Needs("gpu", 1, 1), Needs("cpu", None, 2)]
    assert [Share(4, 16).threads(need) for need in needs] == [4, 16, 8]
    assert Share(0.5, 16).threads(Needs("gpu", None, 1)) == 16
    assert Share(0, 1).threads(Needs("cpu", None, 2)) == 1


def test_a_job_in_the_queue_is_given_the_grace_that_was_set(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    seen = []

    class Queue:
        job_id = 7

        def submit(self, call, *words):
            call(*words)
            return self

    monkeypatch.setattr(remote, "perform", lambda job, granted, grace: seen.append(grace) or 0)
    executor = Submitit(tmp_path, "local", Share(0, 1), 1, {}, 0.25)
    monkeypatch.setattr(executor, "_executor", Queue())
    executor.start(Job(0, (), tmp_path / "0", SweepId(tmp_path, "0" * 32)))
    assert seen == [0.25]


def test_a_job_that_the_queue_refuses_is_queued_when_another_has_ended(tmp_path, monkeypatch):
    """`sbatch: error: QOSMaxSubmitJobPerUserLimit`, with room for one job."""
    pytest.importorskip("submitit")
    held, order = [], []

    class Queued:
        job_id = 7

        def done(self):
            held.clear()
            return True

        exception = staticmethod(lambda: None)
        result = staticmethod(lambda: 0)

    class Queue:
        def submit(self, call, job, *words):
            order.append(job.number)
            if held:
                raise RuntimeError("sbatch: error: QOSMaxSubmitJobPerUserLimit")
            held.append(job)
            job.prepare()
            (job.folder / "metrics.json").write_text("{}")
            return Queued()

    class Nobody:
        started = ended = staticmethod(lambda *words: None)

    executor = Submitit(tmp_path, "local", Share(0, 1), 4, {}, 0.25)
    monkeypatch.setattr(executor, "_executor", Queue())
    jobs = [Job(n, (f"n={n}",), tmp_path / str(n), SweepId(tmp_path, "0" * 32)) for n in range(3)]
    with closing(journal.Journal(tmp_path)) as entries:
        outcomes = run_jobs(Listed(jobs), executor, entries, Nobody())
    assert [outcomes[n].state for n in range(3)] == ["done"] * 3
    assert order == [0, 1, 1, 2, 2]
    held.append("another user's")
    with pytest.raises(UserError, match=r"the queue refuses job 0 \(sbatch: error: QOSMax"):
        executor.start(jobs[0])


def test_a_second_performer_of_a_job_touches_nothing(tmp_path, monkeypatch):
    """An old SLURM job of a killed submitter that starts while the resumed sweep runs the job."""
    monkeypatch.setattr("recur.sweeps.job._SOON", 0.1)
    job = Job(0, ("n=0",), tmp_path / "0", SweepId(tmp_path, "0" * 32))
    job.prepare()
    (job.folder / "half").write_text("written")
    for lock in (job.lock, f"{job.lock}.performed"):
        with FileLock(lock):
            assert perform(job, {}) == PERFORMED
        assert (job.folder / "half").read_text() == "written"
        assert not job.log.exists()
    monkeypatch.setattr(Job, "command", lambda self: ["/bin/sh", "-c", "exit 3"])
    assert perform(job, {}) == 3


RAY = """
from ray.cluster_utils import Cluster
cluster = Cluster()
for _ in range(2):
    cluster.add_node(num_cpus=1, num_gpus=0, object_store_memory=80 * 2**20, include_dashboard=False)
print("address", cluster.address, flush=True)
input()
cluster.shutdown()
"""


@pytest.fixture
def ray_cluster():
    """Address of a Ray cluster of two nodes with one CPU each."""
    pytest.importorskip("ray")
    command = [sys.executable, "-W", "ignore", "-c", RAY]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    env = environment(RAY_raylet_start_wait_time_s="240")  # on a machine that others keep busy
    with subprocess.Popen(command, text=True, env=env, **pipes) as process:
        try:
            yield next(line.split()[1] for line in process.stdout if line.startswith("address"))
            process.stdin.write("\n")
            process.stdin.close()
            process.wait(60)
        finally:
            process.terminate()


@pytest.mark.slow
def test_ray_runs_a_sweep_over_two_nodes(tmp_path, ray_cluster):
    folder, by_hand = tmp_path / "s", tmp_path / "hand"
    typed = [*TINY, "optimizer.lr=1e-3,1e-2"]
    there = ["hydra/launcher=ray", f"hydra.launcher.address={ray_cluster}"]
    done = sweep(folder, *typed, "data.vectors=null,nowhere.vec", *there, code=1)
    assert "Ray, 2 node(s), 2 job(s) at a time" in done.stdout
    assert "2 of 4 jobs failed (1, 3)" in done.stderr
    refused = sweep(tmp_path / "t", *TINY, "seed=0,1", *there, "hydra.launcher.cpus_per_job=9", code=2)
    assert "9 CPU(s)" in refused.stderr
    sweep(by_hand, *typed)
    on_ray = [r.record["val"] for r in Leaderboard.of([folder]).results if r.state == "done"]
    assert on_ray == [r.record["val"] for r in Leaderboard.of([by_hand]).results]


@pytest.mark.slow
def test_submitit_runs_a_sweep_on_its_local_executor(tmp_path):
    pytest.importorskip("submitit")
    folder, by_hand = tmp_path / "s", tmp_path / "hand"
    typed = [*TINY, "optimizer.lr=1e-3,1e-2"]
    more = ["hydra/launcher=submitit_slurm", "hydra.launcher.cluster=local", "hydra.launcher.cpus_per_job=1"]
    done = sweep(folder, *typed, *more, "hydra.launcher.jobs_at_once=2")
    assert "submitit on local, 2 job(s) at a time" in done.stdout
    assert [e["place"].split()[0] for e in journal.read(folder) if e["event"] == "start"] == ["local", "local"]
    sweep(by_hand, *typed)
    assert figures(folder) == figures(by_hand)


@pytest.mark.slow
def test_torchrun_trains_one_run_over_two_nodes(tmp_path):
    """As `torchrun` on each of two machines would; two ranks must end with what two ranks of one machine do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder, here = tmp_path / "two", tmp_path / "one"
    typed = [text for text in TINY if not text.startswith("trainer=")] + ["trainer=ddp_cpu"]
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
                *("--node-rank", str(rank), "--master-addr", "127.0.0.1", "--master-port", str(port)),
                *("-m", "recur.train", *typed, "trainer.devices=1", "trainer.num_nodes=2", f"hydra.run.dir={folder}"),
            ],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [node.communicate(timeout=600)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], outputs
    command = [sys.executable, "-m", "recur.train", *typed, "trainer.devices=2", f"hydra.run.dir={here}"]
    subprocess.run(command, check=True, capture_output=True, env=environment(), timeout=600)
    two, one = (json.loads((run / "metrics.json").read_text()) for run in (folder, here))
    assert two["world_size"] == one["world_size"] == 2
    for part in ("val", "test", "steps", "epochs"):
        assert two[part] == one[part]


def test_a_job_whose_time_is_up_is_the_same_once_more(tmp_path, monkeypatch):
    """submitit asks for a `checkpoint`, and gives a job up that has none."""
    pytest.importorskip("submitit")
    import cloudpickle

    job = Job(0, (), tmp_path / "0", SweepId(tmp_path, "0" * 32))
    given = (job, str(tmp_path), 1, {}, 0.25)
    again = Requeued().checkpoint(*given)
    monkeypatch.setattr(remote, "perform", lambda *words: 7)
    monkeypatch.chdir(tmp_path)
    assert again.args == given and again.result() == 7
    assert cloudpickle.loads(cloudpickle.dumps(again)).args == given
