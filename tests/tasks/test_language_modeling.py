"""The language-modelling task under a real trainer: carried state, exact figures, resuming, sampling, golden losses."""

import math
from functools import partial
from itertools import islice, pairwise
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.nn import functional as F

from recur.data.language import LanguageData
from recur.errors import UserError
from recur.nn.language_model import LanguageModel
from recur.tasks import schedulers as optimization
from recur.tasks.base import Mean
from recur.tasks.language_modeling import LanguageModelingTask, TokenStatistics, sample_token
from recur.training.callbacks import NonMonotonicAveraging, Samples
from recur.training.failures import Finite
from support.language_models import assert_same, new_task, new_trainer, text_data, weights

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        ".*LeafSpec.*is deprecated",  # Lightning's own
        ".*does not have many workers",
        ".*smaller than the logging interval",
        ".*you may have overridden the `training_step",
    )
]


class Losses(Callback):
    """Writes down every training loss."""

    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))


def reference_nll(task, ids, start: int) -> torch.Tensor:
    """Losses of one uninterrupted pass over a text, the plain way."""
    ids = torch.as_tensor(ids.astype("int64"))
    inputs = torch.cat([torch.tensor([start]), ids[:-1]])
    stack = torch.nn.LSTM(12, 12)
    stack.load_state_dict(task.net.recurrent.state_dict())
    with torch.no_grad():
        output, _ = stack(task.net.embedding(inputs))
        return F.cross_entropy(task.net.logits(output), ids, reduction="none")


# ------------------------------------------------------------------------------------------------------------ figures


def test_perplexity_is_exact_for_one_stream_and_close_for_many(tmp_path):
    data = text_data(eval_batch_size=1)
    task = new_task(data)
    trainer = new_trainer(tmp_path)
    trainer.fit(task, datamodule=data)
    task.eval()
    nll = reference_nll(task, data.tokens("test"), data.start_id)
    (one,) = trainer.test(task, data.loader("test"), verbose=False)
    assert one["test/loss"] == pytest.approx(nll.mean().item(), rel=1e-5)
    assert one["test/perplexity"] == pytest.approx(math.exp(nll.mean()), rel=1e-5)
    assert 0.05 < one["test/accuracy"] < 1 and "test/bpc" not in one
    torch.testing.assert_close(task.token_nll(torch.as_tensor(data.tokens("test").astype("int64")), data.start_id), nll)
    # Many streams differ by what is forgotten at their beginnings alone: one token in fifty here.
    (many,) = trainer.test(task, text_data(eval_batch_size=10).loader("test"), verbose=False)
    assert 0 < abs(many["test/loss"] - one["test/loss"]) < 0.02 * one["test/loss"]


def test_statistics_weigh_tokens_and_not_batches():
    statistics = TokenStatistics()
    parts = [torch.rand(n) * 5 for n in (3, 50, 1)]
    for part in parts:
        statistics.update(part, part > 2)
    together = torch.cat(parts)
    found = statistics.compute()
    assert found["perplexity"].item() == pytest.approx(together.double().mean().exp().item())
    assert found["bits"].item() == pytest.approx(together.double().mean().item() / math.log(2))
    assert found["accuracy"].item() == pytest.approx((together > 2).float().mean().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_sums_stay_exact_in_a_module_of_any_dtype(dtype):
    """Lightning's bf16-true converts a whole task by `to`."""
    statistics, mean = TokenStatistics(), Mean()
    both = torch.nn.ModuleList([statistics, mean]).to(dtype)
    for _ in range(2):  # the second time from what a reset leaves
        for _ in range(400):
            statistics.update(torch.full((1000,), 3.3))
            mean.update(torch.tensor(3.3), 1000)
        assert statistics.compute()["loss"].item() == pytest.approx(3.3, rel=1e-6)
        assert mean.compute().item() == pytest.approx(3.3, rel=1e-5)
        for metric in both:
            metric.reset()
    both.to("meta")
    assert all(value.device.type == "meta" for metric in both for value in metric.metric_state.values())


def test_characters_are_told_in_bits(tmp_path):
    data = LanguageData(
        text="abcdefgh" * 50, tokenizer={"kind": "character"}, batch_size=2, eval_batch_size=2, bptt=8, val_fraction=0.2
    )
    data.prepare_data()
    data.setup()
    (found,) = new_trainer(tmp_path).validate(new_task(data), data.loader("val"), verbose=False)
    assert found["val/bpc"] == pytest.approx(found["val/loss"] / math.log(2))


# ------------------------------------------------------------------------------------------------------ carried state


def test_training_carries_its_state_and_drops_it_where_streams_begin(tmp_path):
    data = text_data()
    task = new_task(data)
    given = []
    inner = task.net.forward

    def watched(text, state=None):
        if task.training:
            given.append(None if state is None else state[0][0].clone())
        hidden = inner(text, state)
        if task.training:
            given.append(hidden.state[0][0].detach().clone())
        return hidden

    task.net.forward = watched
    new_trainer(tmp_path, max_epochs=2, limit_train_batches=5, val_check_interval=2).fit(task, datamodule=data)
    befores, afters = given[::2], given[1::2]
    assert [before is None for before in befores] == [True, False, False, False, False] * 2
    for number in (1, 2, 3, 4, 6, 7, 8, 9):  # validations lie between some of them
        assert torch.equal(befores[number], afters[number - 1])


def test_validation_in_mid_epoch_leaves_training_alone(tmp_path):
    results = []
    for validation in ({"limit_val_batches": 0}, {"val_check_interval": 3}, {"num_sanity_val_steps": 0}):
        data, losses = text_data(), Losses()
        task = new_task(data)
        new_trainer(tmp_path, callbacks=[losses], **validation).fit(task, datamodule=data)
        results.append((losses.losses, weights(task)))
    for losses, found in results[1:]:
        assert losses == results[0][0]
        assert_same(found, results[0][1])


def test_validation_figures_do_not_depend_on_when_they_are_taken(tmp_path):
    data = text_data()
    task = new_task(data)
    trainer = new_trainer(tmp_path)
    trainer.fit(task, datamodule=data)
    first = trainer.callback_metrics["val/loss"].item()
    assert trainer.validate(task, data.loader("val"), verbose=False)[0]["val/loss"] == first
    assert task._carried["val"] is None


# ------------------------------------------------------------------------------------------------------------ training


def test_the_learning_rate_follows_the_windows_length(tmp_path):
    data = text_data(random_bptt=True, bptt=30)
    task = new_task(data)
    seen, kept = [], []

    class Watch(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.append(optimizer.param_groups[0]["lr"])

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            kept.append(trainer.optimizers[0].param_groups[0]["lr"])
            assert seen[-1] == pytest.approx(2.0 * batch.lr_scale)

    new_trainer(tmp_path, callbacks=[Watch()]).fit(task, datamodule=data)
    assert len(set(seen)) > 3 and set(kept) == {2.0}


def test_penalties_enter_the_gradient_and_not_the_reported_loss(tmp_path):
    data = text_data()
    losses = []
    for penalties in ((0.0, 0.0), (2.0, 1.0)):
        task = new_task(data, penalties=penalties)
        trainer = new_trainer(tmp_path, limit_train_batches=1, limit_val_batches=0)
        trainer.fit(task, datamodule=data)
        losses.append((trainer.callback_metrics["train/loss"].item(), weights(task)))
    assert losses[0][0] == losses[1][0]
    assert not torch.equal(losses[0][1]["embedding.weight"], losses[1][1]["embedding.weight"])
    with pytest.raises(ValueError, match=r"model.temporal_penalty must be at least 0, got -1"):
        new_task(data, penalties=(0.0, -1))


def test_plateau_divides_the_rate_by_four(tmp_path):
    data = text_data()
    plateau = partial(optimization.plateau, monitor="val/loss", mode="min", factor=0.25, patience=0, min_lr=0.0)
    rates, losses = [], []

    class Watch(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])
            losses.append(trainer.callback_metrics["val/loss"].item())

    task = new_task(data, optimizer=partial(torch.optim.SGD, lr=1000.0), scheduler=plateau)
    new_trainer(tmp_path, max_epochs=6, limit_train_batches=4, callbacks=[Watch()]).fit(task, datamodule=data)
    stalled = [losses[i] >= min(losses[:i], default=math.inf) for i in range(5)]
    assert any(stalled) and [b / a for a, b in pairwise(rates)] == [0.25 if s else 1.0 for s in stalled]


@pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned")  # before the first one
def test_plateau_looks_at_each_validation_once(tmp_path):
    """Validations 10 batches apart and epochs of 4: Lightning would step it at each epoch's end."""
    plateau = partial(optimization.plateau, monitor="val/loss", mode="min", factor=0.25, patience=0, min_lr=0.0)
    task = new_task(text_data(), optimizer=partial(torch.optim.SGD, lr=0.1), scheduler=plateau)
    settings = {"max_epochs": 8, "limit_train_batches": 4, "val_check_interval": 10, "check_val_every_n_epoch": None}
    trainer = new_trainer(tmp_path, **settings)
    trainer.fit(task, datamodule=text_data())
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 3  # in the third, fifth and eighth epoch


class StopAt(Callback):
    """Saves a checkpoint after a step, and stops."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path, weights_only=False)
            trainer.should_stop = True


@pytest.mark.parametrize(("accumulated", "bad"), [(1, 6), (2, 7)])
def test_a_skipped_step_at_the_beginning_of_an_epoch_leaves_zeros(tmp_path, accumulated, bad):
    """Whichever of the windows of its step is not finite: what was carried before is of the last epoch's end."""
    data = text_data()
    task = new_task(data)
    given = []
    inner = task.net.forward

    def spoiled(text, state=None):
        if task.training:
            given.append(None if state is None else state[0][0].clone())
        hidden = inner(text, state)
        if task.training and len(given) == bad:
            hidden = hidden._replace(
                features=hidden.features * math.nan, state=[tuple(part * math.nan for part in hidden.state[0])]
            )
        return hidden

    task.net.forward = spoiled
    settings = {"max_epochs": 2, "limit_train_batches": 5, "limit_val_batches": 0}
    trainer = new_trainer(tmp_path, callbacks=[Finite("skip")], accumulate_grad_batches=accumulated, **settings)
    trainer.fit(task, datamodule=data)
    assert [state is None or not state.any().item() for state in given] == [index in (0, 5, bad) for index in range(10)]
    assert all(state is None or state.isfinite().all() for state in given)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    data, whole = text_data(random_bptt=True), Losses()
    task = new_task(data)
    new_trainer(tmp_path, max_epochs=2, callbacks=[whole]).fit(task, datamodule=data)
    assert len(whole.losses) > 70
    first = Losses()
    new_trainer(tmp_path, max_epochs=2, callbacks=[first, StopAt(63, tmp_path / "middle.ckpt")]).fit(
        new_task(data), datamodule=text_data(random_bptt=True)
    )
    content = torch.load(tmp_path / "middle.ckpt", weights_only=True)
    assert len(content["carried_state"]) == 1 and content["carried_state"][0][0][0].shape == (1, 4, 12)
    second = Losses()
    resumed = new_task(data)
    new_trainer(tmp_path, max_epochs=2, callbacks=[second]).fit(
        resumed, datamodule=text_data(random_bptt=True), ckpt_path=tmp_path / "middle.ckpt", weights_only=True
    )
    assert first.losses[:63] + second.losses == whole.losses
    assert_same(weights(resumed), weights(task))


@pytest.mark.slow
@pytest.mark.parametrize(("window", "carry_state"), [(5, True), (None, False)])
def test_a_state_of_no_use_is_not_saved_and_not_missed(tmp_path, window, carry_state):
    """Of several ranks each has another number of windows in an epoch's last step, and states that do not fit."""

    def run(*callbacks, **settings):
        data = text_data() if window is None else text_data(window=window, batch_size=400)
        task = new_task(data)
        task.carry_state = carry_state
        new_trainer(tmp_path, max_epochs=2, callbacks=list(callbacks)).fit(task, datamodule=data, **settings)
        return weights(task)

    whole = run()
    run(StopAt(3, tmp_path / "middle.ckpt"))
    assert "carried_state" not in torch.load(tmp_path / "middle.ckpt", weights_only=True)
    assert_same(run(ckpt_path=tmp_path / "middle.ckpt", weights_only=True), whole)


def test_another_batch_size_cannot_resume(tmp_path):
    data = text_data()
    new_trainer(tmp_path, callbacks=[StopAt(5, tmp_path / "a.ckpt")]).fit(new_task(data), datamodule=data)
    with pytest.raises(ValueError, match="batch_size was 4 and is 5: resume with the same"):
        new_trainer(tmp_path).fit(
            new_task(data), datamodule=text_data(batch_size=5), ckpt_path=tmp_path / "a.ckpt", weights_only=True
        )


GOLDEN = [
    4.3112,
    4.255394,
    4.126926,
    4.11418,
    4.002101,
    3.906613,
    3.91697,
    3.589011,
    3.891288,
    3.633296,
    3.35805,
    3.573435,
    3.787903,
    3.462041,
    3.469876,
    3.591117,
    3.65114,
    3.317282,
    3.6425,
    3.510241,
]


def test_twenty_golden_steps(tmp_path):
    """What a refactor must reproduce. Two layers, tied through a projection, both penalties."""
    data, losses = text_data(), Losses()
    task = new_task(data, hidden_size=16, num_layers=2, project=True, penalties=(2.0, 1.0))
    new_trainer(tmp_path, callbacks=[losses], limit_train_batches=20, limit_val_batches=0).fit(task, datamodule=data)
    assert losses.losses == pytest.approx(GOLDEN, abs=1e-4)


# --------------------------------------------------------------------------------------------------- averaged weights


def test_averaging_begins_when_validation_stalls_and_is_what_validation_and_checkpoints_see(tmp_path):
    history, seen = [], []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if averaging.began_at is not None:
                history.append(weights(pl_module))

        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            if averaging._averaging:
                seen.append((len(history), weights(pl_module)))

    averaging = NonMonotonicAveraging(interval=1)
    data = text_data()
    task = new_task(data, optimizer=partial(torch.optim.SGD, lr=300.0))  # too high: it stalls at once
    trainer = new_trainer(tmp_path, max_epochs=6, limit_train_batches=8, callbacks=[averaging, Watch()])
    trainer.fit(task, datamodule=data)
    assert averaging.began_at is not None and averaging.began_at % 8 == 0
    losses = averaging.losses[: averaging.began_at // 8]
    assert losses[-1] > min(losses[:-2])  # the rule, at the validation that began it
    for count, found in seen:
        for name, value in found.items():
            expected = torch.stack([step[name] for step in history[:count]]).double().mean(0)
            torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-4)
    final = torch.stack([step["decoder.bias"] for step in history]).double().mean(0)
    torch.testing.assert_close(weights(task)["decoder.bias"].double(), final, rtol=1e-4, atol=1e-4)
    assert task.net.decoder.weight is task.net.embedding.weight


def test_averaging_from_the_first_step_is_the_mean_of_all(tmp_path):
    steps = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            steps.append(weights(pl_module))

    task, data = new_task(text_data()), text_data()
    averaging = NonMonotonicAveraging(interval=0)
    new_trainer(tmp_path, max_epochs=2, limit_train_batches=3, callbacks=[averaging, Watch()]).fit(
        task, datamodule=data
    )
    assert averaging.began_at == 0 and len(steps) == 6
    for name, value in weights(task).items():
        torch.testing.assert_close(value, torch.stack([step[name] for step in steps]).mean(0), rtol=1e-4, atol=1e-5)


def test_before_averaging_nothing_is_swapped(tmp_path):
    data = text_data()
    plain, watched = new_task(data), new_task(data)
    figures = []
    for task, callbacks in ((plain, []), (watched, [NonMonotonicAveraging(interval=5)])):
        trainer = new_trainer(tmp_path, max_epochs=2, callbacks=callbacks)
        trainer.fit(task, datamodule=data)
        figures.append(trainer.callback_metrics["val/loss"].item())
        trainer.save_checkpoint(tmp_path / "x.ckpt", weights_only=False)
        content = torch.load(tmp_path / "x.ckpt", weights_only=True)
        assert "averaging_state" not in content
        assert torch.equal(content["state_dict"]["net.embedding.weight"], task.net.embedding.weight)
    assert figures[0] == figures[1]
    assert_same(weights(plain), weights(watched))


def test_whole_numbers_are_not_averaged_and_samples_are_of_the_averages(tmp_path):
    """Keys of n-grams, rounded to the 24 bits of a float32, would be found no more."""
    data = text_data()
    task = new_task(data, optimizer=partial(torch.optim.SGD, lr=300.0))
    key = 2**45 + 12345
    task.net.register_buffer("keys", torch.tensor([key]))
    averaging, written = NonMonotonicAveraging(interval=1), []

    class Watch(Callback):
        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            written.append(weights(pl_module)["decoder.bias"])

    class Watched(Samples):
        def on_validation_end(self, trainer, pl_module):
            generate = pl_module.generate

            def watched(*given, **named):
                if not trainer.sanity_checking:
                    assert torch.equal(weights(pl_module)["decoder.bias"], written[-1])
                    seen.append(averaging._averaging)
                return generate(*given, **named)

            pl_module.generate = watched
            super().on_validation_end(trainer, pl_module)
            pl_module.generate = generate

    seen = []
    callbacks = [averaging, Watch(), Watched(None, 3, 1.0)]
    new_trainer(tmp_path, max_epochs=7, limit_train_batches=8, callbacks=callbacks).fit(task, datamodule=data)
    assert True in seen
    assert task.net.keys.tolist() == [key]
    assert averaging._average_model.module.net.keys.tolist() == [key]


@pytest.mark.slow
def test_averaging_goes_on_after_a_resume(tmp_path):
    data = text_data()

    def run(**settings):
        averaging = NonMonotonicAveraging(interval=1)
        task = new_task(data, optimizer=partial(torch.optim.SGD, lr=300.0))
        trainer = new_trainer(tmp_path, max_epochs=7, limit_train_batches=8, callbacks=[averaging, Save()])
        trainer.fit(task, datamodule=text_data(), weights_only=True, **settings)
        return task, averaging

    class Save(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 4:
                trainer.save_checkpoint(tmp_path / "five.ckpt", weights_only=False)

    task, averaging = run()
    resumed, again = run(ckpt_path=tmp_path / "five.ckpt")
    assert again.losses == averaging.losses and again.began_at == averaging.began_at is not None
    assert_same(weights(resumed), weights(task))


# ------------------------------------------------------------------------------------------------------------ sampling


def ids(drawn, count):
    return torch.stack(list(islice(drawn, count))).T.tolist()


def test_generation_is_reproducible_batched_and_reads_each_token_once():
    data = text_data()
    task = new_task(data).eval()
    prompt = torch.tensor([[1, 1], [5, 5], [7, 7]])

    def draw(seed, **settings):
        return ids(task.generate(prompt, generator=torch.Generator().manual_seed(seed), **settings), 30)

    a, b = draw(1)
    assert draw(1) == [a, b] != draw(2) and a != b
    greedy = draw(1, temperature=0)
    assert greedy[0] == greedy[1] == draw(2, top_k=1)[0] == draw(3, top_p=1e-6)[0]
    rows = []
    hook = task.net.embedding.register_forward_hook(lambda module, given, made: rows.append(given[0].numel()))
    draw(1)
    hook.remove()
    assert rows == [6] + [2] * 29  # the prompt, then a token a sample: no dearer however long the text
    excluded = draw(1, exclude=[a[0]])
    assert all(a[0] not in sample for sample in excluded)


def test_greedy_generation_equals_reading_the_whole_text_anew():
    data = text_data()
    task = new_task(data).eval()
    text = [1, 5, 7]
    (made,) = ids(task.generate(torch.tensor(text)[:, None], temperature=0), 12)
    for token in made:
        nll = [task.token_nll(torch.tensor([*text, w])[1:], text[0])[-1].item() for w in range(data.vocab_size)]
        assert nll.index(min(nll)) == token
        text.append(token)


def test_top_k_and_top_p_keep_the_likeliest():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.15, 0.1]])).expand(4000, 4)
    generator = torch.Generator().manual_seed(0)

    def shares(**settings):
        return torch.bincount(sample_token(logits, generator=generator, **settings), minlength=4) / 4000

    torch.testing.assert_close(shares(), logits[0].exp(), atol=0.03, rtol=0)
    torch.testing.assert_close(shares(top_k=2), torch.tensor([2 / 3, 1 / 3, 0, 0]), atol=0.03, rtol=0)
    torch.testing.assert_close(shares(top_p=0.75), torch.tensor([2 / 3, 1 / 3, 0, 0]), atol=0.03, rtol=0)
    torch.testing.assert_close(shares(top_p=0.76), torch.tensor([5, 2.5, 1.5, 0]) / 9, atol=0.03, rtol=0)
    assert shares(temperature=0.1)[0] > 0.99 and shares(top_k=9)[3] > 0


@pytest.mark.parametrize("temperature", [1e-320, 1e-45, 1e-30, 1e30, 1e300])
@pytest.mark.parametrize("settings", [{}, {"top_k": 2}, {"top_p": 0.9}])
def test_no_temperature_is_too_extreme(temperature, settings):
    """What `callbacks.samples.temperature` may be: the smallest takes the likeliest token, the largest any."""
    logits = torch.tensor([[-3.0, 30.0, 29.0, -math.inf]]).expand(64, 4)
    drawn = sample_token(logits, temperature, generator=torch.Generator().manual_seed(0), **settings)
    assert set(drawn.tolist()) == {1} if temperature < 1 else 3 not in drawn
    task = new_task(text_data()).eval()
    (made,) = ids(task.generate(torch.tensor([[1]]), temperature=temperature, exclude=[0]), 5)
    assert len(made) == 5 and 0 not in made


@pytest.mark.slow
def test_a_window_model_learns_the_guides_sentence_and_says_it_back(tmp_path):
    sentence = "hello pytorch, this is a simple character-level language model."
    data = LanguageData(
        text=sentence, tokenizer={"kind": "character"}, window=10, val_fraction=0.0, batch_size=64, eval_batch_size=64
    )
    data.prepare_data()
    data.setup()
    adam = partial(torch.optim.Adam, lr=0.02)
    task = new_task(data, optimizer=adam, hidden_size=64, tie_weights=False)
    samples = Samples("hello pyto", len(sentence) - 10, 0.0)
    trainer = new_trainer(tmp_path, max_epochs=100, check_val_every_n_epoch=100, callbacks=[samples])
    trainer.fit(task, datamodule=data)
    assert trainer.callback_metrics["val/accuracy"] == 1
    assert samples.last == sentence
    prompt = torch.tensor(data.tokenizer.encode(sentence[:10]))[:, None]
    (made,) = ids(task.eval().generate(prompt, temperature=0), len(sentence) - 10)
    assert sentence[:10] + data.tokenizer.decode(made) == sentence
    nll = task.token_nll(torch.tensor(data.tokenizer.encode(sentence)), data.start_id)
    assert nll[10:].max() < 0.1


@pytest.mark.parametrize(
    ("exact", "epochs", "expected"), [(0, 2, [1, 1]), (1, 2, [1, 0]), (2, 2, [0, 0]), (3, 2, [0, 0])]
)
def test_the_last_epochs_train_on_all_words_also_where_these_are_more_than_there_are(exact, epochs, expected):
    task = LanguageModelingTask(
        partial(LanguageModel, embedding_dim=4, hidden_size=4),
        vocab_size=9,
        character_level=False,
        window=None,
        sampled_softmax=3,
        exact_epochs=exact,
    )
    for epoch, sampled in enumerate(expected):
        task.trainer = SimpleNamespace(max_epochs=epochs, current_epoch=epoch)
        assert task._is_sampled() == bool(sampled)
    task.trainer = SimpleNamespace(max_epochs=-1, max_steps=-1, current_epoch=0, precision_plugin=None, callbacks=[])
    if exact:
        with pytest.raises(UserError, match="exact_epochs"):
            task.on_fit_start()
    else:
        task.on_fit_start()


def test_operations_of_frozen_weights_and_of_single_windows_are_counted_as_they_are():
    def flop(window=None, **net):
        net = partial(LanguageModel, embedding_dim=4, hidden_size=4, num_layers=1, **net)
        return LanguageModelingTask(net, vocab_size=90, character_level=False, window=window).flop_a_token()

    recurrent, output = 6 * 2 * 4 * 4 * 4, 90 * 4  # an LSTM's two matrices, of four gates each
    assert flop() == recurrent + 6 * output
    assert flop(freeze_vectors=True) == recurrent - 2 * 4 * 4 * 4 + 4 * output  # no gradient of the vectors
    assert flop(window=10) == pytest.approx(recurrent + 6 * output / 10)


def test_a_text_without_tokens_has_no_likelihoods():
    task = new_task(text_data()).eval()
    assert task.token_nll(torch.zeros(0, dtype=torch.int64), 0).shape == (0,)


@pytest.mark.parametrize("settings", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_sampling_that_cannot_be_is_refused(settings):
    with pytest.raises(UserError, match=f"{next(iter(settings))}"):
        sample_token(torch.zeros(2, 4), **settings)


def test_lightning_opens_a_checkpoint_without_a_trainer():
    task = new_task(text_data())
    task.on_load_checkpoint({"train_metrics": torch.zeros(1, 4), "carried_state": [None]})
