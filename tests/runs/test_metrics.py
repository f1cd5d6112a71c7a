"""The one list of metrics, held against what the tasks log."""

import json
import math
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

import recur
from recur.errors import UserError
from recur.runs.metrics import (
    METRICS,
    check_metric,
    describe_commit,
    direction,
    family_of,
    format_value,
    hparam_metrics,
    logged,
    metric,
    metric_info,
    metric_names,
    provenance,
    read_record,
    recorded,
    write_metrics,
)


def _history(run: Path) -> set[str]:
    lines = (run / "history.jsonl").read_text().splitlines()
    return {name for line in lines for name in json.loads(line)["metrics"]}


def test_the_tasks_log_what_the_list_says(trained_run, language_run) -> None:
    for family, run in (("sentiment", trained_run), ("language", language_run)):
        record = json.loads((run / "metrics.json").read_text())
        assert {f"val/{name}" for name in record["val"]} == set(logged(family, "val"))
        if "test" in record:
            assert {f"test/{name}" for name in record["test"]} == set(logged(family, "test"))
        epochs = {name for name in _history(run) if name.startswith("train/epoch_")}
        assert epochs <= set(logged(family, "train"))
        assert set(recorded()) <= record.keys()


def test_names_are_unique_in_a_family() -> None:
    assert len({(m.name, family) for m in METRICS for family in m.families or ("",)}) == sum(
        max(1, len(m.families)) for m in METRICS
    )
    assert direction("val/loss") == direction("val/perplexity") == direction("wall_seconds") == "min"
    assert direction("test/accuracy") == direction("tokens_per_second") == direction("somebody's") == "max"
    assert metric_info("val/wall_seconds") is None and metric_info("accuracy") is None


def test_values_are_shown_in_their_unit() -> None:
    assert format_value("val/accuracy", 0.9125) == "91.25 %"
    assert format_value("test/loss", 0.5) == "0.5000"
    assert format_value("parameters", 1234567.0) == "1,234,567"
    assert format_value("val/loss", float("nan")) == "nan"
    assert format_value("val/loss", None) == ""


def test_what_is_not_finite_is_null_in_the_file_and_no_number_to_a_reader(tmp_path: Path) -> None:
    """JSON knows no NaN, and a browser, `jq` or another language refuses a file with one."""
    values = {"auroc": torch.tensor(math.nan), "perplexity": math.inf, "loss": 1.5}
    write_metrics(tmp_path, {"val": values, "confusion": {"matrix": [[math.nan]]}, "wall_seconds": None})

    def refuse(name: str) -> None:
        raise AssertionError(name)

    record = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=refuse)
    assert record["val"] == {"auroc": None, "perplexity": None, "loss": 1.5} and read_record(tmp_path) == record
    assert [math.isnan(metric(record, f"val/{name}")) for name in values] == [True, True, False]
    assert metric(record, "val/f1") is metric(record, "test/loss") is metric(record, "wall_seconds") is None
    assert metric_names(record) == [f"val/{name}" for name in values]


def test_hparams_are_of_one_family() -> None:
    assert "test/perplexity" not in hparam_metrics("sentiment")
    assert {"val/accuracy", "test/auroc"} <= set(hparam_metrics("sentiment"))
    assert {"val/perplexity", "test/loss"} <= set(hparam_metrics("language"))


@pytest.mark.parametrize("name", ["val/accuracy", "val/loss", "train/epoch_loss"])
def test_a_metric_that_runs_write_passes(name) -> None:
    check_metric(name, family_of("recur.tasks.sentiment.SentimentTask"))


@pytest.mark.parametrize("name", ["val/acuracy", "test/accuracy", "accuracy", "wall_seconds", "val/perplexity"])
def test_one_that_no_run_writes_is_refused(name) -> None:
    with pytest.raises(UserError, match="val/accuracy") as caught:
        check_metric(name, "sentiment", key="callbacks.best.monitor")
    assert (caught.value.key, caught.value.value) == ("callbacks.best.monitor", name)


def test_a_sweep_may_compare_what_a_run_records_too() -> None:
    check_metric("wall_seconds", "language", resources=True)
    check_metric("test/perplexity", "language", resources=True)
    check_metric("anything", family_of("mine.Task"))


def test_sources_that_were_not_installed_say_where_they_are_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a training this must not be what fails."""

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    versions = provenance(torch.device("cpu"))["versions"]
    assert versions.pop("recur") == recur.__version__
    assert "torch" in versions and set(versions.values()) == {None}


def test_the_commit_is_that_of_a_work_tree_which_has_the_package(tmp_path: Path) -> None:
    package = tmp_path / "vendor" / "recur"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (tmp_path / "own.txt").touch()
    name = ["-c", "user.name=x", "-c", "user.email=x@example.org"]

    def git(*words: str) -> str:
        command = ["git", "-C", str(tmp_path), *name, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("add", "own.txt")
    git("commit", "-q", "-m", "theirs")
    assert describe_commit(package) is None
    git("add", ".")
    git("commit", "-q", "-m", "with recur")
    assert describe_commit(package) == git("rev-parse", "--short=12", "HEAD")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="other systems do not say it")
def test_the_peak_of_memory_is_this_programs_own() -> None:
    """The kernel's usual figure is also of who started it, a notebook with eight gigabytes for instance."""
    inner = "import torch; from recur.runs.metrics import peak_memory_mib; print(peak_memory_mib(torch.device('cpu')))"
    outer = f"import subprocess, sys; held = b'x' * 1_500_000_000; subprocess.run([sys.executable, '-c', {inner!r}])"
    done = subprocess.run([sys.executable, "-c", outer], capture_output=True, text=True, check=True)
    assert 50 < float(done.stdout) < 1000
