"""NaN, Inf and a lack of memory: told with the batch they came from; a skipped step changes nothing."""

import math
import multiprocessing
import os
import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import PackedSequence

from recur.data.buckets import TextLoader, Texts
from recur.data.cache import Ragged
from recur.data.streams import StreamLoader
from recur.errors import UserError
from recur.nn.language_model import LanguageModel
from recur.nn.packed import TextBatch, TokenWindow
from recur.runs.run import load_checkpoint
from recur.tasks.language_modeling import LanguageModelingTask
from recur.training.failures import Finite, is_lack_of_memory, is_lost_rank, out_of_memory, place, size
from support.torture import Moment, compare, differences, finish, free_port, scalars, start
from test_resume import SENTIMENT, language

PLAIN = [*SENTIMENT, "trainer.accumulate_grad_batches=1", "trainer.max_epochs=2", "test=false"]


@pytest.fixture(params=["sentiment", "language"])
def words(request, tmp_path):
    return [*(PLAIN if request.param == "sentiment" else language(tmp_path)), "trainer.max_epochs=2"]


@pytest.mark.parametrize("what", ["nan-loss", pytest.param("inf-loss", marks=pytest.mark.slow), "nan-gradient"])
def test_a_run_whose_numbers_go_wrong_stops_with_the_batch(tmp_path, words, what):
    ended = start(tmp_path / "run", words, moment=Moment(what, 5))
    assert ended.codes == [2], ended.said
    (line,) = ended.said.splitlines()
    assert ended.hit is not None
    assert f"at step {ended.hit['step'] + 1} (epoch 1)" in line
    assert re.search(r"loss (nan|inf|\d)" if "gradient" in what else rf"loss {what[:3]}", line)
    assert len(re.search(r"norms of the steps before: ([\d.e+, -]+)\.", line)[1].split(",")) == 4  # type: ignore[index]
    assert re.search(
        r"training rows \d+, \d+" if words[0].startswith("data.syn") else r"training tokens from \d+, ", line
    )
    assert f"recur: {(tmp_path / 'run' / 'not_finite.txt').read_text()}" == f"{line}\n"
    for advice in ("optimizer.lr", "gradient_clip_val", "on_nonfinite=skip"):
        assert advice in line
    for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt"):
        assert all(value.isfinite().all() for value in load_checkpoint(path)["state_dict"].values())


@pytest.mark.slow
def test_a_skipped_step_leaves_everything_as_it_was(tmp_path, words):
    """The step before is saved, then the next one goes wrong and is skipped, and the run ends there."""
    words = [*words, "callbacks.finite.on_nonfinite=skip", "callbacks.last.every_steps=1"]
    words = [word for word in words if "ema" not in word and "averaging" not in word and word != "scheduler=plateau"]
    words += ["callbacks.ema.decay=0.9", "scheduler=exponential"] + ["~callbacks.averaging"] * (
        "model=awd_lstm" in words
    )
    run = tmp_path / "run"
    ended = start(run, [*words, "trainer.max_epochs=-1", "trainer.max_steps=5"], moment=Moment("nan-gradient", 5))
    assert ended.codes == [0], ended.said
    assert "skipped step 5: loss" in ended.said
    before, after = (load_checkpoint(run / "checkpoints" / name) for name in ("last.previous.ckpt", "last.ckpt"))
    assert (before["global_step"], after["global_step"]) == (4, 5)
    for key in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "averaging_state"):
        assert differences(before[key], after[key], key) == []
    assert after["train_metrics"].isfinite().all()
    assert after["callbacks"]["Finite"]["skipped"] == 1


@pytest.mark.slow
def test_training_goes_on_after_a_skipped_step(tmp_path, words):
    words = [*words, "callbacks.finite.on_nonfinite=skip"]
    ended = start(tmp_path / "run", words, moment=Moment("nan-loss", 3))
    assert ended.codes == [0], ended.said
    shown = scalars(tmp_path / "run")
    assert all(math.isfinite(value) for _, value in shown["train/epoch_loss"] + shown["val/loss"])


@pytest.mark.slow
def test_two_ranks_decide_alike(tmp_path):
    """The NaN is in one rank's batch only."""
    words = [*language(tmp_path), "trainer=ddp_cpu", "trainer.max_epochs=1"]
    ended = start(tmp_path / "stop", words, 2, Moment("nan-loss", 3, rank=1))
    assert ended.codes == [2, 2], ended.said
    assert "rank 1's batch" in ended.said
    assert "Traceback" not in ended.said
    ended = start(tmp_path / "skip", [*words, "callbacks.finite.on_nonfinite=skip"], 2, Moment("nan-loss", 3, rank=1))
    assert ended.codes == [0, 0], ended.said
    assert re.search(r"skipped step 3: loss nan, .* on rank 1's batch 2 \(the \d+ training tokens from", ended.said)
    assert re.search(r"skipped step 3: loss \d.* on another rank's batch than rank 0's", ended.said)


def test_of_several_batches_of_a_step_the_one_whose_loss_is_not_finite_is_named():
    """It was the step's last, whichever had gone wrong."""
    finite = Finite("stop")
    trainer = SimpleNamespace(accumulate_grad_batches=4, world_size=1, global_rank=0, train_dataloader=None)
    for number, loss in enumerate([1.0, 2.0, math.nan, 1.0, 1.0, math.inf, math.nan, 2.0, 3.0, 4.0]):
        finite.on_train_batch_start(trainer, None, None, number)
        finite.on_before_backward(trainer, None, torch.tensor(loss))
        if number in (3, 7):
            assert finite._where(trainer) == f"batch {2 if number == 3 else 5} (unknown size)"
    assert finite._where(trainer) == "one of the batches 8 to 9"


@pytest.mark.slow
def test_watching_changes_no_number(tmp_path):
    finish(tmp_path / "with", PLAIN)
    finish(tmp_path / "without", [*PLAIN, "~callbacks.finite"])
    told = [line for line in compare(tmp_path / "with", tmp_path / "without") if "only one has Finite" not in line]
    assert told == []


@pytest.mark.slow
def test_a_lack_of_memory_names_the_batch_and_what_to_lower(tmp_path, words):
    ended = start(tmp_path / "run", words, moment=Moment("memory", 3))
    assert ended.codes == [2], ended.said
    assert not (tmp_path / "run" / "not_finite.txt").exists()
    (line,) = ended.said.splitlines()
    assert re.search(r"out of memory in training, batch 2 of \d+ (texts|streams), longest \d+ tokens, \d+ in all", line)
    assert "data.batch_size" in line and ("data.max_length" in line or "data.bptt" in line)
    ended = start(tmp_path / "again", words, moment=Moment("memory-validation", 1))
    assert "out of memory in validation" in ended.said and "data.eval_batch_size" in ended.said


def test_what_is_a_lack_of_memory():
    """By the words of torch, which has no class of its own for it on a CPU: this holds it to them."""
    with pytest.raises(RuntimeError) as real:
        torch.empty(1 << 60)
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried"), real.value):
        assert is_lack_of_memory(error)
        assert "out of memory: lower" in str(out_of_memory(error, Finite()))
    assert not is_lack_of_memory(RuntimeError("shape"))


def _lose_peer(port: int, rank: int) -> None:
    store = torch.distributed.TCPStore("127.0.0.1", port, 2, rank == 0)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    if rank:
        os._exit(0)
    try:
        torch.distributed.all_reduce(torch.ones(1))
        torch.distributed.all_reduce(torch.ones(1))
    except Exception as error:
        os._exit(0 if is_lost_rank(error) else 3)
    os._exit(4)


def test_what_is_a_lost_rank():
    """By the words of Gloo, which has no class of its own for it: this holds it to them."""
    port = free_port()
    both = [multiprocessing.get_context("fork").Process(target=_lose_peer, args=(port, rank)) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]


def test_places_are_those_of_the_data():
    tokens = torch.arange(100).numpy()
    loader = StreamLoader(tokens, batch_size=3, bptt=7)
    for number, window in enumerate(loader):
        said = re.search(r"the (\d+) training tokens from ([\d, ]+), a stream each", place(window, loader, number))
        assert said is not None
        first = [int(word) for word in said[2].split(",")]
        assert window.targets[:3].tolist() == first  # a token is its own place here
    texts = Texts(Ragged(tokens[:60], np.arange(0, 61, 6)))
    loader = TextLoader(texts, np.zeros(10, np.int64), batch_size=4, shuffle=True)
    for number, batch in enumerate(loader):
        rows = sorted((batch.rows + 1).tolist())
        assert place(batch, loader, number) == f"training rows {', '.join(map(str, rows))}"


def test_sizes_are_in_the_units_of_the_family():
    text = PackedSequence(torch.zeros(5, dtype=torch.int64), torch.tensor([3, 2]))
    window = TokenWindow(text, torch.zeros(5), first=True, lr_scale=1.0)
    rows = TextBatch(text, torch.zeros(3), torch.arange(3))
    assert size(window) == "3 streams, longest 2 tokens, 5 in all"
    assert size(rows) == "3 texts, longest 2 tokens, 5 in all"
    assert size([1, 2]) == "unknown size"
    assert place(rows, [], 0) == size(rows)  # a loader of the user's own
    watch = Finite()
    for batch, setting in ((rows, "data.max_length"), (window, "data.bptt")):
        watch.batch = batch
        assert setting in str(out_of_memory(MemoryError(), watch))


def test_steps_are_skipped_only_of_a_task_that_can_undo_them():
    import lightning.pytorch as pl

    with pytest.raises(UserError, match=r"callbacks\.finite\.on_nonfinite needs a task with snapshot and restore"):
        Finite("skip").on_fit_start(pl.Trainer(logger=False, accelerator="cpu"), pl.LightningModule())
    Finite("stop").on_fit_start(pl.Trainer(logger=False, accelerator="cpu"), pl.LightningModule())


def test_a_skipped_first_window_leaves_a_state_that_a_checkpoint_can_gather():
    """The rank whose state was not finite would else gather nothing, and the others wait for it."""
    task = LanguageModelingTask(partial(LanguageModel, embedding_dim=4, hidden_size=4), vocab_size=9)
    task._began_anew = True
    before = task.snapshot()
    state = task.net.step(torch.tensor([1, 2]))[1]
    task._carried["train"] = [tuple(part * torch.nan for part in layer) for layer in state]
    task.restore(before)
    assert all(not part.any() for layer in task._carried["train"] for part in layer)
