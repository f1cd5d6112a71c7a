"""Every logger gets the settings, the names and the final figures; the real clients, writing to files."""

import contextlib
import csv
import importlib.util
import json
import sqlite3
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger

from conftest import EASY
from recur.runs import marks
from recur.training import loggers
from support.commands import run_command


def test_a_run_is_named_after_its_name_its_sweep_and_its_folder(tmp_path: Path) -> None:
    job = tmp_path / "2026-01-31" / "3"
    job.mkdir(parents=True)
    assert loggers.sweep_of(job) is None
    assert loggers.run_name(job, "lm") == "lm 3"
    marks.write_mark(job, marks.Mark("0" * 32, 3, ("seed=1",)))
    assert loggers.sweep_of(job) == "2026-01-31"
    assert loggers.run_name(job, "lm") == "lm 2026-01-31 3"


def test_a_run_two_folders_below_its_sweep_is_named_after_the_sweep(tmp_path: Path) -> None:
    """`hydra.sweep.subdir=${model.net.cell}/${hydra.job.num}`: each sweep was one of the name `lstm`."""
    job = tmp_path / "2026-01-31" / "lstm" / "3"
    job.mkdir(parents=True)
    (tmp_path / "2026-01-31" / "sweep.jsonl").touch()
    marks.write_mark(job, marks.Mark("0" * 32, 3, ("seed=1",)))
    assert loggers.sweep_of(job) == "2026-01-31"
    assert loggers.run_name(job, "lm") == "lm 2026-01-31 lstm/3"


def test_a_csv_logger_gets_settings_and_final_figures(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    loggers.log_settings([logger], {"optimizer.lr": 0.01}, tmp_path)
    logger.log_metrics({"train/loss": 0.5}, 3)
    loggers.log_results([logger], {"test": {"accuracy": 0.75}}, 7)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert rows[-1]["result/test/accuracy"] == "0.75"
    assert rows[-1]["step"] == "7"
    assert "optimizer.lr: 0.01" in (tmp_path / "hparams.yaml").read_text()


@pytest.mark.slow
def test_an_entry_of_a_run_that_fails_is_ended() -> None:
    wandb = pytest.importorskip("wandb")

    def failing() -> None:
        with loggers.ended_on_error():
            wandb.init(mode="disabled")
            raise KeyError("failed")

    with pytest.raises(KeyError):
        failing()
    assert wandb.run is None  # else the next run of the process would go on in it
    theirs = wandb.init(mode="disabled")
    with pytest.raises(KeyError), loggers.ended_on_error():
        raise KeyError("failed")
    assert wandb.run is theirs
    theirs.finish()


def test_a_logger_whose_client_is_missing_is_refused_in_a_line(tmp_path: Path) -> None:
    if importlib.util.find_spec("aim") is not None:
        pytest.skip("it is there")
    done = run_command("train", "logger=aim", *EASY, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("recur: logger=aim needs aim, which is not installed: python -m pip install '")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_in_aim_and_its_resumption(tmp_path: Path) -> None:
    aim = pytest.importorskip("aim", reason="aim wants an older filelock than constraints.txt gives")
    run = tmp_path / "run"
    words = ["logger=aim", *EASY, "trainer.max_epochs=1", "tags=[first_try,wide]", "name=kept", f"hydra.run.dir={run}"]
    for done in (run_command("train", *words), run_command("train", f"resume={run}", "trainer.max_epochs=2")):
        assert done.returncode == 0, done.stderr
    repo = aim.Repo(str(run))
    (name,) = repo.list_all_runs()  # the same entry went on
    quiet = {"system_tracking_interval": None, "log_system_params": False, "capture_terminal_logs": False}
    entry = aim.Run(name, repo=repo, force_resume=True, **quiet)  # read-only, it wants an index that `aim up` makes
    assert (entry.name, entry.experiment, set(entry.tags)) == ("kept run", "recur", {"first_try", "wide"})
    assert entry["hparams", "optimizer.lr"] == 0.01
    figures = {metric.name: metric.values.last()[1] for metric in entry.metrics()}
    record = json.loads((run / "metrics.json").read_text())
    assert figures["result/test/accuracy"] == pytest.approx(record["test"]["accuracy"])
    assert "val/loss" in figures


@pytest.mark.slow
def test_the_confusion_matrix_is_a_file_with_any_logger(tmp_path: Path) -> None:
    words = ["logger=csv", *EASY, "trainer.max_epochs=1", "trainer.limit_train_batches=2"]
    done = run_command("train", *words, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "run" / "plots").iterdir()} == {"val_confusion.png", "test_confusion.png"}
    assert not list((tmp_path / "run").glob("events.out*"))


@pytest.mark.slow
def test_one_run_in_four_loggers_and_its_resumption(tmp_path: Path) -> None:
    words = ["logger=[csv,wandb,mlflow,tensorboard]", "logger.wandb.offline=true", *EASY, "trainer.max_epochs=1"]
    words += ["tags=[first_try,wide]"]
    done = run_command("train", *words, "name=four", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    assert len(list(run.rglob("media/images/test/confusion_*.png"))) == 1
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    accuracy = json.loads((run / "metrics.json").read_text())["test"]["accuracy"]
    assert float(rows[-1]["result/test/accuracy"]) == accuracy

    def query(words: str) -> list[tuple[str, str]]:
        with contextlib.closing(sqlite3.connect(run / "mlflow.db")) as database:
            return database.execute(words).fetchall()

    assert query("select name, status from runs") == [("four run", "FINISHED")]
    parameters = dict(query("select key, value from params"))
    assert parameters["optimizer.lr"] == "0.01"
    assert parameters["model.net.hidden_size"] == "16"
    figures = dict(query("select key, value from metrics"))
    assert figures["result/test/accuracy"] == pytest.approx(accuracy)
    assert "val/loss" in figures

    assert dict(query("select key, value from tags"))["tags"] == "first_try, wide"

    written = b"".join(path.read_bytes() for path in run.rglob("*.wandb"))
    for text in (b"four run", b"optimizer.lr", b"result/test/accuracy", b"first_try", b"test/confusion"):
        assert text in written
    assert list(run.glob("events.out.tfevents.*"))

    more = run_command("train", f"resume={run}", "trainer.max_epochs=2")
    assert more.returncode == 0, more.stderr
    assert len(query("select name, status from runs")) == 1  # the same entry went on
