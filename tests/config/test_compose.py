"""Where configs come from, and what of a resumed command is typed once more."""

import shutil
from pathlib import Path

import pytest

from recur.config.compose import command_line, compose_run, conf_dir
from recur.errors import UserError


@pytest.fixture
def own_configs(tmp_path: Path) -> Path:
    """A copy of the config folder with another learning rate."""
    folder = tmp_path / "own conf"
    shutil.copytree(conf_dir(), folder, ignore=shutil.ignore_patterns("claims"))
    root = folder / "train.yaml"
    root.write_text(root.read_text().replace("seed: 0", "seed: 77"))
    assert "seed: 77" in root.read_text()
    return folder


@pytest.mark.parametrize("flag", ["--config-path", "-cp"])
def test_another_folder_of_configs_makes_a_run(own_configs: Path, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    """As a job of a sweep with that flag is started, and relative to where it is typed."""
    monkeypatch.chdir(own_configs.parent)
    for words in ([flag, str(own_configs)], [flag, own_configs.name], [f"{flag}={own_configs.name}"]):
        line = command_line([*words, "optimizer.lr=0.5", "trainer=cpu"])
        assert not line.hydra and str(own_configs) in line.words
        config = compose_run(line).config
        assert config["seed"] == 77 and config["optimizer"]["lr"] == 0.5


def test_a_folder_of_configs_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--config-path must name a folder of configs"):
        command_line(["--config-path", str(tmp_path / "absent")])


@pytest.mark.parametrize("flag", ["--config-path", "--config-dir"])
def test_aliases_that_would_take_all_memory_are_refused(own_configs: Path, flag: str) -> None:
    layers = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 15))
    (own_configs / "experiment" / "bomb.yaml").write_text(f"# @package _global_\na0: &a0 [1]\n{layers}")
    with pytest.raises(UserError, match=r"bomb\.yaml has aliases"):
        command_line([flag, str(own_configs), "experiment=bomb"])


def test_a_job_that_slurm_starts_again_types_what_a_config_may_not_say(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    typed = ["logger=wandb", "data.path=org/name", "seed=3", f"hydra.run.dir={tmp_path}"]
    line = command_line(typed, {"SLURM_RESTART_COUNT": "1"})
    assert line.words == (f"resume={tmp_path}", "++data.path=org/name", "++logger.wandb.offline=false")
