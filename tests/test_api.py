"""Composing and training from Python."""

import logging
import os
import random
import signal
import threading
import warnings
from collections.abc import Iterator
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

import recur
from conftest import EASY
from recur import api
from recur.errors import UserError
from recur.exporting import folder as folders


@pytest.mark.slow
def test_overrides_may_be_words_or_a_mapping() -> None:
    settings = {"optimizer.lr": 0.5, "trainer": "cpu", "data.tokenizer.kind": "whitespace", "hydra.run.dir": "here"}
    typed = recur.compose([f"{key}={value}" for key, value in settings.items()])
    mapped = recur.compose(settings)
    assert typed == mapped and typed["optimizer"]["lr"] == 0.5
    strange = {"data.cache_dir": "a folder, with {marks}: it's", "data.max_length": None, "test": False}
    config = recur.compose({**strange, "optimizer.betas": [0.5, 0.75], "name": ""})
    assert (config["data"]["cache_dir"], config["data"]["max_length"], config["test"]) == (*strange.values(),)
    assert config["optimizer"]["betas"] == [0.5, 0.75] and config["name"] == ""
    for text in ("2024", "true", "null", "1e-3", "jörg's", "a\\b", "a [1] {b}"):  # a text stays one
        assert recur.compose({"name": text})["name"] == text
    assert recur.compose({"data": "files", "data.train": ["/home/jörg/a.csv"]})["data"]["train"] == ["/home/jörg/a.csv"]
    assert recur.compose({"data.cache_dir": Path("2024")})["data"]["cache_dir"].endswith("2024")
    assert recur.compose({"seed": 3, "optimizer.lr": 1e-7})["optimizer"]["lr"] == 1e-7
    with pytest.raises(UserError, match="optimizer"):
        recur.compose(["optimizer.lrr=1"])
    with pytest.raises(UserError, match="there is no option --epochs=3"):
        recur.compose(["--epochs=3"])
    with pytest.raises(UserError, match="must be a package of your own"):
        recur.compose(["--trust", "os"])
    with pytest.raises(TypeError, match="several words"):
        recur.compose("optimizer.lr=1")


class Bag(nn.Module):
    """A network with neither an embedding nor a recurrent stack: counts of tokens, one linear layer."""

    def __init__(self, vocab_size: int, num_classes: int, vectors: torch.Tensor | None = None) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.head = nn.Linear(vocab_size, 1 if num_classes == 2 else num_classes)

    def forward(self, text: PackedSequence) -> torch.Tensor:
        padded, lengths = pad_packed_sequence(text, padding_value=-1)  # (time, batch)
        counts = torch.zeros(len(lengths), self.vocab_size)
        for row in range(len(lengths)):
            counts[row] = torch.bincount(padded[: lengths[row], row], minlength=self.vocab_size)
        logits: torch.Tensor = self.head(counts)
        return logits


@pytest.mark.slow
def test_any_module_is_trained_opened_exported_and_no_more_is_asked_of_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RECUR_TRUST", "")
    folder = tmp_path / "run"
    words = [word for word in EASY if not word.startswith("model.")]
    words += ["data.synthetic.train_size=80", "trainer.max_epochs=1", f"hydra.run.dir={folder}", "~model.net"]
    words += [f"+model.net={{_target_: {__name__}.Bag, _partial_: true}}"]
    package = __name__.partition(".")[0]
    with pytest.raises(UserError, match=rf'model\.net\._target_ is .*give trust="{package}"'):
        recur.fit(words)
    assert not folder.exists()
    run = recur.fit(words, trust=package)
    assert run.predict(["a great film"])[0].label in ("positive", "negative")
    with pytest.raises(UserError, match="its network Bag has no embed and classify"):
        run.explain("a great film")
    done = folders.export(run, "safetensors", tmp_path / "out")
    assert "(Bag)" in (done.folder / "README.md").read_text()
    with pytest.raises(UserError, match="find_lr"):
        recur.fit([*EASY, "find_lr=true"])


def globals_of_a_process() -> dict[str, Any]:
    """What a run takes over; a logger of the process that writes is among it."""
    root = logging.getLogger()
    return {
        "signal": signal.getsignal(signal.SIGINT),
        "random": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "torch": torch.get_rng_state().tolist(),
        "seeds": [os.environ.get(name) for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "RECUR_PRECISION")],
        "handlers": root.handlers[:],
        "filters": [handler.filters[:] for handler in root.handlers],
        "levels": [logging.getLogger(name).level for name in ("", "lightning.pytorch.utilities.rank_zero")],
        "threads": threading.excepthook,
        "warnings": warnings.filters[:],
        "hydra": GlobalHydra.instance().hydra,
        "config": HydraConfig.instance().cfg,
    }


@pytest.fixture
def busy_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A program that uses Hydra, logging and random numbers itself; its log file."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    monkeypatch.setenv("PL_SEED_WORKERS", "0")
    handler = logging.FileHandler(tmp_path / "theirs.log", mode="w")
    logging.getLogger().addHandler(handler)
    # One of another logger, too, which holds its records back: closed, it would have no file to write them to.
    file = logging.FileHandler(tmp_path / "held.log", mode="w")
    held = MemoryHandler(9, target=file)
    logging.getLogger("theirs").addHandler(held)
    logging.getLogger("theirs").setLevel(logging.INFO)
    logging.getLogger("theirs").info("before")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.yaml").write_text("theirs: 1\n")
    with initialize_config_dir(str(tmp_path / "theirs"), version_base="1.3"):
        HydraConfig.instance().set_config(hydra_compose("config", return_hydra_config=True))
        yield tmp_path / "theirs.log"
        assert hydra_compose("config").theirs == 1
    logging.getLogger().removeHandler(handler)
    logging.getLogger("theirs").removeHandler(held)
    handler.close()
    assert (tmp_path / "held.log").read_text() == ""
    held.close()
    file.close()
    assert (tmp_path / "held.log").read_text() == "before\nafter\n"


@pytest.mark.slow
def test_a_run_trained_here_is_opened_and_the_process_is_as_before(tmp_path: Path, busy_process: Path) -> None:
    before = globals_of_a_process()
    run = recur.fit([*EASY, f"hydra.run.dir={tmp_path / 'run'}", "trainer.max_epochs=1"])
    assert recur.compose(["seed=4"])["seed"] == 4
    with pytest.raises(UserError, match=r"optimizer\.lr must be"):
        recur.fit(["optimizer.lr=-1"])
    assert globals_of_a_process() == before
    logging.getLogger("theirs").info("after")
    assert busy_process.read_text() == "before\nafter\n" and "after" not in (tmp_path / "run" / "train.log").read_text()
    assert run.metrics["command"].startswith("python -m recur.train data.synthetic.contrast=0 ")
    assert run.metrics["device"].endswith("cores")  # whatever else the machine has
    assert run.folder == tmp_path / "run" and len(run.history) == 1
    assert run.metrics["test"]["accuracy"] == pytest.approx(run.evaluate(split="test")["test"]["accuracy"], abs=1e-6)
    more = recur.fit([f"resume={run.folder}", "trainer.max_epochs=2"])
    assert more.folder == run.folder and len(more.history) == 2 and more.metrics["epochs"] == 2
    with pytest.raises(UserError, match="must describe one run"):
        recur.fit(["-m", "seed=0,1"])


def test_cuda_begins_with_the_callers_seed_after_a_run_that_used_it_first(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: 3 in seeds)
    with torch.random.fork_rng(()):
        torch.manual_seed(5)
        with api._random_numbers_as_before():
            torch.manual_seed(3)  # the run's own
        assert seeds == [5, 3, 5] and torch.initial_seed() == 5


def test_a_fit_beside_or_within_another_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would draw from one generator and take over one process's logging."""
    refused: list[str] = []

    def another() -> None:
        with pytest.raises(UserError, match=r"fit trains one run at a time.*recur\.train") as error:
            recur.fit()
        refused.append(str(error.value))

    def composing(_: Any) -> None:
        another()
        thread = threading.Thread(target=another)
        thread.start()
        thread.join()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(api, "compose_run", composing)
    for times in (1, 2):  # after one that failed, there can be the next
        with pytest.raises(RuntimeError, match="out of memory"):
            recur.fit()
        assert len(refused) == 2 * times and "\n" not in refused[0]


@pytest.mark.parametrize("words", [["trainer=ddp_cpu"], ["trainer=cpu", "trainer.devices='0,1'"]])
def test_several_processes_are_not_started_from_a_script(words: list[str], tmp_path: Path) -> None:
    """Lightning would run the script once more for each, and end it when one of them fails to open the run."""
    with pytest.raises(UserError, match=r"trainer.devices must be one process.*python -m recur.train"):
        recur.fit([*EASY, *words, f"hydra.run.dir={tmp_path}/run"])
    assert not (tmp_path / "run").exists()


def test_of_several_gpus_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with api.hydra_as_before():
        composed = api.compose_run(api.command_line(["trainer.accelerator=gpu"]))
    assert api._in_one_process(composed) is composed
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert api._in_one_process(composed).config["trainer"]["devices"] == 1
    monkeypatch.setenv("LOCAL_RANK", "3")  # of torchrun, which has started one for each
    assert api._in_one_process(composed) is composed


@pytest.mark.parametrize(
    "words", [["trainer.devices=1.5"], ["trainer.num_nodes=null"], ["trainer.num_nodes=two"], ["~trainer"]]
)
def test_what_the_schema_refuses_is_refused_here_too(words: list[str], tmp_path: Path) -> None:
    base = [word for word in EASY if not (words == ["~trainer"] and word.startswith("trainer"))]
    with pytest.raises(UserError, match="trainer"):
        recur.fit([*base, *words, f"hydra.run.dir={tmp_path}/run"])
    assert not (tmp_path / "run").exists()


def test_a_job_of_slurm_with_one_task_does_not_start_the_script_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM_PROCID is 0 in every shell that it opens."""
    with api.hydra_as_before():
        composed = api.compose_run(api.command_line(["trainer.accelerator=gpu"]))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert api._in_one_process(composed).config["trainer"]["devices"] == 1
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert api._in_one_process(composed) is composed


def test_an_evaluation_that_was_interrupted_leaves_nothing_behind(
    trained_run: Path, language_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had summed up was counted once more by the next one."""
    for folder in (trained_run, language_run):
        run = recur.load(folder)
        split = "val" if folder == trained_run else "train"
        expected = run.evaluate(split=split)
        step = type(run.task).test_step

        def broken(task: Any, batch: Any, number: int, step: Any = step) -> Any:
            step(task, batch, number)
            raise RuntimeError("out of memory")

        with monkeypatch.context() as patch:
            patch.setattr(type(run.task), "test_step", broken)
            with pytest.raises(RuntimeError, match="out of memory"):
                run.evaluate(split=split)
        assert run.evaluate(split=split) == expected


def test_two_threads_that_evaluate_a_run_get_its_figures(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each emptied and added to the sums of the other."""
    run = recur.load(trained_run)
    expected = [run.evaluate(split="val"), run.evaluate(split="test")]
    step, found = type(run.task).test_step, []
    other = threading.Thread(target=lambda: found.append(run.evaluate(split="test")))

    def interrupted(task: Any, batch: Any, number: int) -> Any:
        result = step(task, batch, number)
        if other.ident is None:
            other.start()
            other.join(0.5)
        return result

    monkeypatch.setattr(type(run.task), "test_step", interrupted)
    found.insert(0, run.evaluate(split="val"))
    other.join()
    assert found == expected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated", "ignore:.*does not have many workers")
def test_a_task_is_trained_twice(tmp_path: Path) -> None:
    """The sums of the first training's last validation could not be added to."""
    from recur.training.fit import train
    from support.language_models import new_task, new_trainer, text_data

    data = text_data()
    task = new_task(data)
    for number in (0, 1):
        trained = train(data, task, new_trainer(tmp_path / str(number)))
        assert trained.results["val"]["loss"] > 0


def test_keys_of_a_mapping_arrive_as_they_were_given_or_are_refused() -> None:
    """Hydra's grammar knows no quotes there, and some texts it would read as something else."""
    names = {"Extremely Negative": "bad", "a:b, (c)": "so so", 4: "good", True: "better"}
    config = recur.compose({"data": "files", "data.class_names": names})
    assert config["data"]["class_names"] == names
    for name in ("1.50", "null", "négatif"):
        with pytest.raises(UserError, match=f"^{name} cannot be a key on a command line: write it in a YAML") as error:
            recur.compose({"data": "files", "data.class_names": {name: "bad", "other": "good"}})
        assert "\n" not in str(error.value)
