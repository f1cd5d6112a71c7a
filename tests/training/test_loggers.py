"""Every logger gets the settings, the names and the final figures; the real clients, writing to files."""

import contextlib
import csv
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
def test_one_run_in_four_loggers_and_its_resumption(tmp_path: Path) -> None:
    words = ["logger=[csv,wandb,mlflow,tensorboard]", "logger.wandb.offline=true", *EASY, "trainer.max_epochs=1"]
    words += ["tags=[first_try,wide]"]
    done = run_command("train", *words, "name=four", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
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
    for text in (b"four run", b"optimizer.lr", b"result/test/accuracy", b"first_try"):
        assert text in written
    assert list(run.glob("events.out.tfevents.*"))

    more = run_command("train", f"resume={run}", "trainer.max_epochs=2")
    assert more.returncode == 0, more.stderr
    assert len(query("select name, status from runs")) == 1  # the same entry went on
