"""A run that was killed and resumed ends as one that never was, bit for bit. `make torture` does it forty times."""

import csv
import json
import signal
from functools import partial
from itertools import pairwise
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger

from conftest import EASY
from recur.data.sentiment import SentimentData
from recur.data.synthetic import SyntheticReviews
from recur.nn.classifier import Classifier
from recur.runs.run import load_checkpoint
from recur.tasks.sentiment import SentimentTask
from recur.training import fit
from recur.training.checkpointing import LastCheckpoint, best_checkpoint
from recur.training.failures import Stop
from support.commands import run_command
from support.torture import Moment, compare, differences, finish, scalars, start, torture

FEW = [
    "data.synthetic.train_size=104",
    "data.synthetic.val_size=30",
    "data.synthetic.test_size=20",
    "data.batch_size=8",
    "data.eval_batch_size=10",
    "model.net.embedding_dim=6",
    "model.net.hidden_size=6",
    "trainer.log_every_n_steps=1",
    "callbacks.last.every_steps=2",
    "trainer.accelerator=cpu",
    "~callbacks.pages",
]
# Accumulation, two validations an epoch (one of them in the middle of a step), a schedule by steps, an average, and
# early stopping that has something to remember.
SENTIMENT = [
    *EASY,
    *FEW,
    "trainer.max_epochs=3",
    "trainer.accumulate_grad_batches=2",
    "trainer.val_check_interval=0.5",
    "scheduler=cosine",
    "callbacks.ema.decay=0.9",
    "callbacks.early_stopping.patience=20",
]


def language(folder: Path) -> list[str]:
    """Carried states, windows of random length, AWD-LSTM's masks, averaged weights, a schedule that watches."""
    words = [f"w{(i * i) % 23}" for i in range(2600)]
    (folder / "text.txt").write_text("\n".join(" ".join(words[i : i + 13]) for i in range(0, len(words), 13)))
    return [
        "data=text_files",
        f"data.train={folder}/text.txt",
        "data.test_fraction=0.1",
        "data.batch_size=6",
        "data.eval_batch_size=3",
        "data.bptt=20",
        "data.eval_bptt=10",
        "data.random_bptt=true",
        "model=awd_lstm",
        "model.net.embedding_dim=6",
        "model.net.hidden_size=8",
        "model.net.num_layers=2",
        "model.net.output_size=6",
        "callbacks.averaging.interval=1",
        "callbacks.samples.tokens=5",
        "optimizer=sgd",
        "optimizer.lr=20",
        "scheduler=plateau",
        "trainer.max_epochs=5",
        "trainer.accelerator=cpu",
        "trainer.log_every_n_steps=2",
        "callbacks.last.every_steps=3",
    ]


COURSES = {
    "sentiment": [
        Moment("training", 1),  # before there is anything to go on from
        Moment("accumulating", 3),
        Moment("validation", 2),
        Moment("writing", 70),
        Moment("between", 4),
        Moment("renaming", 2),
    ],
    "language": [
        Moment("training", 7),
        Moment("writing", 200),
        Moment("validation", 3),
        Moment("renaming", 1),
        Moment("stepping", 9),
        Moment("scoring", 1),  # all is trained, nothing reported
    ],
}


@pytest.mark.parametrize("family", ["sentiment", pytest.param("language", marks=pytest.mark.slow)])
def test_a_run_killed_at_any_moment_ends_as_one_never_killed(tmp_path, family):
    words = SENTIMENT if family == "sentiment" else language(tmp_path)
    torture(tmp_path / "whole", words, 1, [])
    kills = torture(tmp_path / "parts", words, 1, COURSES[family])
    print(*kills, sep="\n")
    assert len(kills) == len(COURSES[family])
    assert compare(tmp_path / "whole", tmp_path / "parts") == []
    assert len(scalars(tmp_path / "parts")["val/loss"]) >= 5


@pytest.mark.slow
def test_two_ranks_killed_together_end_as_two_never_killed(tmp_path):
    """Each rank's own carried state, sums and place."""
    words = [*language(tmp_path), "trainer=ddp_cpu", "trainer.max_epochs=2", "trainer.log_every_n_steps=2"]
    torture(tmp_path / "whole", words, 2, [])
    kills = torture(tmp_path / "parts", words, 2, [Moment("training", 5, rank=1), Moment("validation", 2)])
    assert len(kills) == 2
    assert compare(tmp_path / "whole", tmp_path / "parts") == []


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_layers_that_learn_one_after_the_other_do_so_after_a_kill(tmp_path, ranks):
    """In the first epoch, in the middle of the second, at its end and in the third, whose layers have no momentum."""
    words = [*SENTIMENT, "model.unfreeze_epochs=1", "optimizer=sgd", "optimizer.momentum=0.9"]
    words += ["optimizer.weight_decay=0.01", *(["trainer=ddp_cpu"] if ranks > 1 else [])]
    torture(tmp_path / "whole", words, ranks, [])
    moments = [Moment("training", 5), Moment("validation", 3), Moment("between", 2), Moment("training", 6)]
    kills = torture(tmp_path / "parts", words, ranks, moments)
    assert len(kills) == len(moments)
    assert compare(tmp_path / "whole", tmp_path / "parts") == []


def extended(folder: Path, *changes: str) -> None:
    """Go on with a run that has ended, with other bounds."""
    done = run_command("train", f"resume={folder}", *changes)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sentiment", "language"])
def test_weights_of_64_bits_are_not_rounded_by_a_kill(tmp_path, family):
    """Lightning converts the weights only after it has loaded a checkpoint's into 32 bits."""
    words = [*(SENTIMENT if family == "sentiment" else language(tmp_path)), "trainer.max_epochs=2"]
    words.append("trainer.precision=64-true")
    torture(tmp_path / "whole", words, 1, [])
    kills = torture(tmp_path / "parts", words, 1, [Moment("training", 9), Moment("validation", 2)])
    assert len(kills) == 2
    assert compare(tmp_path / "whole", tmp_path / "parts") == []


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sentiment", pytest.param("language", marks=pytest.mark.slow)])
def test_an_epoch_that_max_steps_cut_short_goes_on_where_it_was(tmp_path, family):
    """Thirteen batches an epoch, or seven steps; each run ends in the middle of one."""
    words = [*(SENTIMENT if family == "sentiment" else language(tmp_path)), "trainer.max_epochs=4", "scheduler=none"]
    words += ["trainer.num_sanity_val_steps=0"]
    torture(tmp_path / "whole", words, 1, [])
    torture(tmp_path / "parts", [*words, "trainer.max_steps=4"], 1, [])
    extended(tmp_path / "parts", "trainer.max_steps=17")
    extended(tmp_path / "parts", "trainer.max_steps=-1")
    found = compare(tmp_path / "whole", tmp_path / "parts")
    assert [difference for difference in found if "/done:" not in difference] == []  # the part of the whole run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"),
    [
        (["trainer.max_epochs=2", "trainer.max_steps=1000"], ["trainer.max_epochs=4"]),
        (["trainer.max_epochs=4", "trainer.max_steps=14"], ["trainer.max_steps=28"]),
    ],
    ids=["epochs", "steps"],
)
def test_a_run_with_max_steps_that_ended_with_an_epoch_goes_on_with_the_next(tmp_path, first, then):
    """With `max_steps` Lightning takes every restart for one within an epoch."""
    words = [*SENTIMENT, "scheduler=none", "trainer.num_sanity_val_steps=0", "test=false"]
    torture(tmp_path / "whole", [*words, "trainer.max_epochs=4", "trainer.max_steps=28"], 1, [])
    torture(tmp_path / "parts", [*words, *first], 1, [])
    extended(tmp_path / "parts", *then)
    found = compare(tmp_path / "whole", tmp_path / "parts")
    assert [difference for difference in found if "/done:" not in difference] == []  # the part of the whole run


@pytest.mark.slow
def test_a_run_that_ended_with_averaged_weights_goes_on_with_its_own(tmp_path):
    """They are put in place when training ends, after the weights of training were saved."""
    words = [*language(tmp_path), "callbacks.averaging.interval=0", "scheduler=none"]
    words += ["trainer.num_sanity_val_steps=0", "test=false"]
    torture(tmp_path / "whole", [*words, "trainer.max_epochs=4"], 1, [])
    torture(tmp_path / "parts", [*words, "trainer.max_epochs=2"], 1, [])
    extended(tmp_path / "parts", "trainer.max_epochs=4")
    found = compare(tmp_path / "whole", tmp_path / "parts")
    assert [difference for difference in found if "/done:" not in difference] == []  # the part of the whole run


@pytest.mark.slow
def test_a_run_killed_before_it_can_go_on_begins_without_the_curves_of_before(tmp_path):
    """Between the first best.ckpt and the first last.ckpt, then the same command again."""
    words = [*SENTIMENT, "trainer.val_check_interval=1.0", "callbacks.last.every_steps=null"]
    torture(tmp_path / "whole", words, 1, [])
    (kill,) = torture(tmp_path / "parts", words, 1, [Moment("renaming", 1)])
    assert kill["step"] == 7  # the end of the first epoch
    assert compare(tmp_path / "whole", tmp_path / "parts") == []


@pytest.mark.slow
def test_a_table_of_curves_is_not_lost(tmp_path):
    """Lightning's CSV logger deletes its file when it is started again."""
    words = [*SENTIMENT, "logger=csv"]
    torture(tmp_path / "whole", words, 1, [])
    assert len(torture(tmp_path / "parts", words, 1, [Moment("training", 9), Moment("training", 9)])) == 2
    texts = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "parts")]
    whole, parts = (list(csv.DictReader(text.splitlines())) for text in texts)
    for row in (*whole, *parts):
        row.pop("train/tokens_per_second", None)
    assert whole == parts


@pytest.mark.slow
def test_a_schedule_goes_on_to_the_end_on_another_number_of_processes(tmp_path):
    torture(tmp_path / "run", [*EASY, *FEW, "scheduler=linear", "trainer.max_epochs=2", "test=false"], 1, [])
    steps = scalars(tmp_path / "run")["train/gradient_norm"][-1][0]
    extended(tmp_path / "run", "trainer.max_epochs=4", "trainer.devices=2", "trainer.strategy=ddp")
    curve = next(curve for name, curve in scalars(tmp_path / "run").items() if name.startswith("lr"))
    rates = [value for step, value in curve if step > steps]
    assert rates[0] > 0.003 and all(a > b > 0 for a, b in pairwise(rates))  # of .01


@pytest.mark.slow
def test_a_signal_in_the_last_validation_awaits_its_end(tmp_path):
    """A restart after `max_steps` trains nothing, and so would validate nothing."""
    words = [*SENTIMENT, "trainer.accumulate_grad_batches=1", "scheduler=none", "trainer.num_sanity_val_steps=0"]
    words += [
        "trainer.max_steps=6",
        "data.eval_batch_size=1000",
        "trainer.val_check_interval=3",
        "trainer.check_val_every_n_epoch=null",
    ]
    torture(tmp_path / "whole", words, 1, [])
    (kill,) = torture(tmp_path / "parts", words, 1, [Moment("validation", 2, signal=signal.SIGTERM)])
    assert kill["step"] == 6
    found = compare(tmp_path / "whole", tmp_path / "parts")
    assert [difference for difference in found if not difference.startswith("curves")] == []  # the part epoch's own


@pytest.mark.slow
def test_a_run_whose_patience_ends_before_min_epochs_is_known_to_be_over_when_it_goes_on(tmp_path):
    """A validation that is better would else have it train on."""
    words = [*SENTIMENT, "scheduler=none", "trainer.max_epochs=5", "+trainer.min_epochs=3", "optimizer.lr=1e-12"]
    words += ["callbacks.early_stopping.patience=1", "callbacks.ema.decay=null", "trainer.num_sanity_val_steps=0"]
    assert start(tmp_path / "run", words, 1, Moment("training", 18, signal=signal.SIGTERM)).hit["step"] > 7
    last = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert last["reached"]["place"] == "between" and last["reached"]["over"]["patience"] == [1]
    finish(tmp_path / "run", words)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["epochs"] == 3


@pytest.mark.slow
def test_what_the_validation_of_a_run_out_of_time_found_is_known_when_it_goes_on(tmp_path):
    """A later and worse epoch would replace the best weights."""
    words = [*EASY, *FEW, "+trainer.max_time=00:00:00:00", "+trainer.min_steps=3", "test=false"]
    words += ["+trainer.min_epochs=0"]
    torture(tmp_path / "run", words, 1, [])
    last = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert (last["reached"]["place"], last["global_step"]) == ("cut", 3)
    (best,) = [state for name, state in last["callbacks"].items() if name.startswith("BestCheckpoint")]
    assert best["best_model_score"] == last["reached"]["metrics"]["val/accuracy"]


class Deaf(Stop):
    def listen(self) -> None:
        """Leave this process its own handlers."""


class Curve(DummyLogger):
    """At which steps each figure was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[str, list[int]] = {}

    def log_metrics(self, metrics, step=None) -> None:
        for name in metrics:
            self.steps.setdefault(name, []).append(step)


def fitted(folder: Path, *callbacks: pl.Callback, going_on: bool = False, **settings) -> Curve:
    """Train in this process, twelve batches an epoch."""
    torch.manual_seed(0)
    data = SentimentData(synthetic=SyntheticReviews(96, 16, 16), batch_size=8)
    data.setup()
    net = partial(Classifier, embedding_dim=4, hidden_size=4)
    task = SentimentTask(net, optimizer=partial(torch.optim.Adam, lr=0.01), **data.model_arguments())
    last = LastCheckpoint(str(folder / "checkpoints"), stop=Deaf())
    best = best_checkpoint("val/loss", "min", str(folder / "checkpoints"))
    curve = Curve()
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=curve,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[last, *callbacks, best],
        default_root_dir=folder,
        **settings,
    )
    fit.train(data, task, trainer, checkpoint=last.path if going_on else None, test=False)
    return curve


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("first", "then"), [(2, 6), (6, 4), (4, 4)], ids=["rarer", "others", "the same"])
def test_curves_go_on_at_the_next_step_whatever_the_rhythm_of_validations(tmp_path: Path, first, then) -> None:
    curves = [
        fitted(tmp_path, max_epochs=2, max_steps=4, val_check_interval=first),
        fitted(tmp_path, going_on=True, max_epochs=2, val_check_interval=then),
    ]
    assert [step for curve in curves for step in curve.steps["train/gradient_norm"]] == list(range(24))


class Ends(pl.Callback):
    """Ends training after a batch or in a validation, each by its number, as `max_time` and early stopping do."""

    def __init__(self, *, batch: int | None = None, validation: int | None = None) -> None:
        self.left = {"batch": batch, "validation": validation}

    def on_train_batch_end(self, trainer, *rest) -> None:
        self.count("batch", trainer)

    def on_validation_end(self, trainer, task) -> None:
        if trainer.state.fn == "fit":
            self.count("validation", trainer)

    def count(self, place: str, trainer: pl.Trainer) -> None:
        if self.left[place] is not None:
            self.left[place] -= 1
            trainer.should_stop = trainer.should_stop or self.left[place] == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("ends", "steps", "more"),
    [({"validation": 1}, 1, []), ({"batch": 6}, 2, [1])],  # the last validation of a run out of time
    ids=["validation", "batch"],
)
def test_a_run_that_is_ended_within_a_step_goes_on_after_it(tmp_path: Path, ends, steps: int, more) -> None:
    """Three steps of four batches, and validations after every third."""
    settings = {"accumulate_grad_batches": 4, "val_check_interval": 3}
    whole = fitted(tmp_path / "whole", max_epochs=2, **settings)
    first = fitted(tmp_path / "parts", Ends(**ends), max_epochs=3, **settings)
    last = load_checkpoint(tmp_path / "parts" / "checkpoints" / "last.ckpt")
    assert (last["reached"]["place"], last["global_step"]) == ("cut", steps)
    second = fitted(tmp_path / "parts", going_on=True, max_epochs=2, **settings)
    validated = [curve.steps["val/loss"] for curve in (first, second, whole)]
    assert sorted(validated[0] + validated[1]) == sorted(validated[2] + more)
    one, other = (load_checkpoint(tmp_path / part / "checkpoints" / "last.ckpt") for part in ("whole", "parts"))
    for key in ("state_dict", "optimizer_states", "loops"):
        assert differences(one[key], other[key], key) == []
