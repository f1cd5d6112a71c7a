"""A run that is refused before its first step leaves nothing behind."""

import shutil
import types
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback

import recur
from conftest import EASY
from recur.errors import UserError
from recur.render import tree_lines
from recur.runs import journal
from recur.runs.run import load_checkpoint
from recur.tasks.sentiment import SentimentTask
from recur.training import report
from recur.training.fit import check_lengths
from recur.training.run_files import RewrittenConfig
from support.commands import run_command


@pytest.mark.slow
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


def test_what_is_printed_and_logged_has_no_terminal_codes(monkeypatch, caplog) -> None:
    """On a terminal rich would write bold titles; the lines go to the log file, too."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    with caplog.at_level("INFO", logger="recur"):
        report._print_table({"val": {"accuracy": 0.5}}, {"val": {"accuracy": 0.95}}, {})
    assert any("best possible" in line for line in caplog.messages)
    assert not [line for line in [*caplog.messages, *tree_lines("config", {"a": {"b": 1}})] if "\x1b" in line]


@pytest.mark.parametrize(("limit", "whole"), [(1.0, True), (1, False), (0.5, False), (3, False), (4, False)])
def test_one_batch_is_no_whole_split(limit: float, whole: bool) -> None:
    trainer = pl.Trainer(accelerator="cpu", limit_val_batches=limit, logger=False, enable_checkpointing=False)
    assert report._whole(trainer, "val") == whole
    data = types.SimpleNamespace(val_dataloader=lambda: range(4))
    with_data = types.SimpleNamespace(limit_val_batches=limit, datamodule=data)
    assert report._whole(with_data, "val") == (whole or limit == 4)  # type: ignore[arg-type]


@pytest.mark.parametrize("theirs", [".hydra/config.yaml", ".lock"])
def test_what_another_process_began_in_the_folder_meanwhile_stays(tmp_path: Path, theirs: str) -> None:
    """Two commands of one second have one folder: the one that is refused must not take the other one's run away."""
    from recur.training.run_files import withdrawn_if_refused

    folder = tmp_path / "run"

    def refused() -> None:
        with withdrawn_if_refused(folder):
            (folder / theirs).parent.mkdir(parents=True)
            for name in (theirs, "train.log", "mlflow.db"):
                (folder / name).write_text("theirs")
            raise UserError(str(folder), rule="is in use by process 1")

    with pytest.raises(UserError, match="is in use by"):
        refused()
    assert all((folder / name).read_text() == "theirs" for name in (theirs, "train.log", "mlflow.db"))


class Died(Callback):
    """Ends the process's run in the middle of it."""

    def __init__(self, step: int = 1) -> None:
        self._step = step

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and trainer.global_step >= self._step:
            raise KeyError("died")


@pytest.mark.slow
def test_a_resumed_run_that_dies_keeps_no_figures_of_other_weights(tmp_path: Path) -> None:
    words = [f"hydra.run.dir={tmp_path / 'run'}", "trainer=cpu", "data.synthetic.train_size=80", "logger=none"]
    recur.fit([*EASY, *words, "trainer.max_epochs=1"])
    more = [f"resume={tmp_path / 'run'}", "trainer.max_epochs=2"]
    died = f"+callbacks.died._target_={__name__}.Died"
    with pytest.raises(UserError, match=r"optimizer\.lr"):
        recur.fit([*more, "optimizer.lr=7"])
    assert (tmp_path / "run" / "metrics.json").is_file()
    with pytest.raises(KeyError):
        recur.fit([*more, died])
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert recur.fit([*more, "~callbacks.died"]).metrics["epochs"] == 2


@pytest.mark.slow
def test_validations_after_the_checkpoint_are_those_of_the_resumed_run(tmp_path: Path) -> None:
    """It may validate at other steps than the run that died."""
    run = tmp_path / "run"
    words = [*EASY, f"hydra.run.dir={run}", "trainer=cpu", "data.synthetic.train_size=80", "logger=none"]
    words += ["trainer.max_epochs=1", "trainer.val_check_interval=0.25", "callbacks.last.every_steps=2"]
    with pytest.raises(KeyError):
        recur.fit([*words, f"+callbacks.died={{_target_: {__name__}.Died, step: 4}}"])
    assert [entry["step"] for entry in journal.read_validations(run)] == [1, 2, 3]
    recur.fit([f"resume={run}", "~callbacks.died", "trainer.val_check_interval=1.0"])
    assert [entry["step"] for entry in journal.read_validations(run)] == [1, 2, 4]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"}


@pytest.fixture
def copied(trained_run: Path, tmp_path: Path) -> Path:
    """A run that lies elsewhere than its checkpoints say, and that once ended by a number that is not finite."""
    shutil.copytree(trained_run, tmp_path / "run")
    (tmp_path / "run" / "not_finite.txt").write_text("loss nan")
    journal.append_validation(tmp_path / "run", {"step": 10**6, "epoch": 9.0, "metrics": {}})
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("callbacks.gradients.longest=50", "callbacks.gradients.longest"),
        (f"+callbacks.mine._target_={__name__}.Never", "mine never"),
    ],
)
def test_a_run_whose_callbacks_do_not_fit_its_task_is_not_touched(copied: Path, words: str, said: str) -> None:
    before = everything(copied)
    with pytest.raises(UserError, match=said):
        recur.fit([f"resume={copied}", "trainer.max_epochs=9", words])
    assert everything(copied) == before


class Never(Callback):
    """Fits no task."""

    def check_fit(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        raise UserError("mine", rule="never")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Be aware")  # that the best so far is left out, as was typed
@pytest.mark.parametrize("state", ["missing", "damaged"])
def test_a_run_without_its_best_checkpoint_is_refused_before_it_trains(copied: Path, state: str) -> None:
    """Or it would be missed after all of the training."""
    best = copied / "checkpoints" / "best.ckpt"
    whole = best.read_bytes()
    best.unlink() if state == "missing" else best.write_bytes(whole[:-9])
    before = everything(copied)
    with pytest.raises(UserError, match=rf"{best}, the best checkpoint so far, is {state}: put .* ~callbacks\.best"):
        recur.fit([f"resume={copied}", "trainer.max_epochs=9"])
    assert everything(copied) == before
    epochs = recur.load(copied / "checkpoints" / "last.ckpt").config["trainer"]["max_epochs"]
    run = recur.fit([f"resume={copied}", f"trainer.max_epochs={epochs + 1}", "~callbacks.best"])
    assert run.metrics["epochs"] == epochs + 1
    assert recur.load(copied).checkpoint.name == "last.ckpt"  # whose figures these are


def test_a_best_checkpoint_that_a_run_goes_on_without_gets_another_name(tmp_path: Path) -> None:
    """It was scored, and opened, in the place of the last one, whose figures the run has."""
    best = tmp_path / "checkpoints" / "best.ckpt"
    best.parent.mkdir()
    best.touch()
    composed = types.SimpleNamespace(folder=tmp_path, config_text="seed: 0\n", hydra_files=dict)
    for keeper, name in ((object(), "best.ckpt"), (None, "best.former.ckpt")):
        trainer = types.SimpleNamespace(is_global_zero=True, checkpoint_callback=keeper)
        RewrittenConfig(composed).on_fit_end(trainer, None)  # type: ignore[arg-type]
        assert [path.name for path in best.parent.iterdir()] == [name]


def test_several_processes_do_not_validate_by_the_clock() -> None:
    """Each would look at its own, and one that validates waits for the others' batches for ever."""
    data = types.SimpleNamespace(train_dataloader=lambda: range(9))
    limits = {"limit_train_batches": 1.0, "limit_val_batches": 0, "accumulate_grad_batches": 1}
    times = {"_val_check_time_interval": 600.0, "check_val_every_n_epoch": 1}
    trainer = types.SimpleNamespace(world_size=1, **limits, **times)
    check_lengths(data, trainer, test=False)  # type: ignore[arg-type]
    trainer.world_size = 2
    with pytest.raises(UserError, match=r"trainer\.val_check_interval is a time, .*: set a number of batches"):
        check_lengths(data, trainer, test=False)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_task_that_asks_for_the_number_of_steps_goes_on_at_the_next_batch(tmp_path: Path, monkeypatch) -> None:
    """Lightning makes the loader then, before it knows where a resumed run is: the first batches came again."""
    own = SentimentTask.configure_optimizers

    def asking(task):
        assert task.trainer.estimated_stepping_batches
        return own(task)

    monkeypatch.setattr(SentimentTask, "configure_optimizers", asking)
    words = [*EASY, "trainer=cpu", "data.synthetic.train_size=120", "logger=none", "trainer.max_epochs=2"]
    whole = recur.fit([*words, f"hydra.run.dir={tmp_path / 'whole'}"])
    recur.fit([*words, f"hydra.run.dir={tmp_path / 'cut'}", "trainer.max_steps=8"])
    cut = recur.fit([f"resume={tmp_path / 'cut'}", "trainer.max_steps=-1"])
    before, after = (load_checkpoint(run.folder / "checkpoints" / "last.ckpt")["state_dict"] for run in (whole, cut))
    assert all(torch.equal(before[name], after[name]) for name in before)
