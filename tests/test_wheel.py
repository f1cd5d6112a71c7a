"""The package as others get it: a wheel, in an environment without this checkout, used from another folder."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from conftest import ROOT
from support.environment import Environment

SMALL = [f"data.synthetic.{split}_size={count}" for split, count in (("train", 300), ("val", 80), ("test", 80))]
SMALL += ["trainer.accelerator=cpu", "trainer.max_epochs=1", "model.net.cell=mingru"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    environment = Environment(folder / "venv")
    environment.install(str(next(folder.glob("recur-*.whl"))))
    return environment


def test_it_is_the_wheel_that_is_used(installed: Environment, tmp_path: Path) -> None:
    (tmp_path / "where.py").write_text("import recur; print(recur.__file__)")
    where = Path(installed.run("-m", "where", cwd=tmp_path).stdout.strip())
    assert where.is_relative_to(installed.bin.parent)
    assert (where.parent / "conf" / "train.yaml").is_file()
    assert (where.parent / "py.typed").is_file()


def test_every_script_has_help(installed: Environment, tmp_path: Path) -> None:
    for script in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]:
        done = installed.run(script, "--help", cwd=tmp_path)
        assert done.returncode == 0, f"{script}: {done.stderr}"
        assert len(done.stdout) > 100


def test_it_sweeps_predicts_exports_and_completes_elsewhere(installed: Environment, tmp_path: Path) -> None:
    sweep = ["recur", "train", *SMALL, "optimizer.lr=3e-3,1e-2", "hydra/sweeper=random", "hydra.sweeper.n_trials=2"]
    done = installed.run(*sweep, f"hydra.sweep.dir={tmp_path / 'sweep'}", "-m", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "sweep" / "0"
    assert json.loads((run / "metrics.json").read_text())["test"]["accuracy"] > 0
    for words in (
        ["recur-predict", run, "a good film"],
        ["recur", "export", run, "--out", tmp_path / "onnx"],
        ["recur", "results", tmp_path / "sweep"],
        ["recur-new", "others"],
        ["recur-train", f"resume={run}", "trainer.max_epochs=2"],
    ):
        done = installed.run(*words, cwd=tmp_path)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    assert (tmp_path / "others" / "conf" / "model" / "others.yaml").is_file()
    assert (tmp_path / "onnx" / "model.onnx").is_file()
    done = installed.run("recur", "completion", "--words", "recur train logger=w", cwd=tmp_path)
    assert done.stdout.split() == ["logger=wandb"]
