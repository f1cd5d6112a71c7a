"""A run that is refused before its first step leaves nothing behind."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import Callback

import recur
from conftest import EASY
from recur.errors import UserError
from support.commands import run_command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.accumulate_grad_batches=1000"], "trainer.accumulate_grad_batches"),
        (["logger=mlflow", "trainer.accumulate_grad_batches=1000"], "trainer.accumulate_grad_batches"),
        (["init_from=absent"], "absent"),
    ],
)
def test_a_refused_run_leaves_no_folder(tmp_path: Path, words: list[str], said: str) -> None:
    done = run_command("train", *EASY, *words, "trainer=cpu", "hydra.run.dir=a/b/run", cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


class Late(Callback):
    """Finds a mistake when training begins."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        raise UserError("mine", rule="must be earlier")


@pytest.mark.parametrize("folder", ["a/b/run", "kept"])
def test_what_is_refused_once_the_folder_is_there_takes_a_new_one_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").mkdir()
    late = f"+callbacks.mine._target_={__name__}.Late"
    with pytest.raises(UserError, match="mine must be earlier"):
        recur.fit([*EASY, late, "trainer=cpu", f"hydra.run.dir={folder}"])
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
