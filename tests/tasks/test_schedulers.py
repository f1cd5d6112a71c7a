"""Schedules, with the optimizers that they meet."""

import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from recur.errors import UserError
from recur.nn.language_model import LanguageModel
from recur.runs.build import Part
from recur.tasks.base import Stepping, Taken, follow_rate, step_plan
from recur.tasks.language_modeling import LanguageModelingTask
from recur.tasks.schedulers import StepPlan, linear, multistep, one_cycle, plateau
from recur.training.callbacks import early_stopping

PLAN = StepPlan(total=9, per_epoch=3)


def test_multistep_shrinks_the_rate_after_the_epochs_it_is_given():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    config = multistep(optimizer, PLAN, epochs=[4, 2], gamma=0.1)
    assert config["interval"] == "epoch"
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        config["scheduler"].step()
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    for wrong in ([], [0], [2, 2], [1.5]):
        with pytest.raises(UserError, match="different whole numbers"):
            multistep(optimizer, PLAN, epochs=wrong, gamma=0.1)


def test_epochs_that_a_run_does_not_reach_are_refused():
    """Else the rate is that of `scheduler=none`, and nothing says so."""

    def made(plan, *epochs):
        return multistep(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), plan, epochs=epochs, gamma=0.1)

    for plan, end in ((planned(3, 10), 10), (planned(3, 20), 20), (StepPlan(total=29, per_epoch=3), 10)):
        with pytest.raises(UserError, match=f"all lie at or behind the run's end, epoch {end}"):
            made(plan, 30, 20)
    assert made(planned(3, 21), 30, 20)
    assert made(StepPlan(total=31, per_epoch=3), 10), "the eleventh epoch has a step"
    # A run that goes on, longer or as it was, and one on a few batches, which only tries the settings
    assert made(planned(3, 25, Taken(3, 0, 30, 10)), 20) and made(planned(3, 12, Taken(3, 0, 30, 10)), 20)
    assert made(planned(3, 1, limit=1), 20) and made(planned(3, 1, limit=0.5), 20)


def test_a_cycle_that_was_made_longer_begins_where_its_plan_is():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = one_cycle(optimizer, PLAN, rise=0.5, start_div=25.0, end_div=1e4)["scheduler"]
    for _ in range(9):
        optimizer.step()
        schedule.step()
    longer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    longer.load_state_dict(optimizer.state_dict())
    resumed = one_cycle(longer, PLAN._replace(total=18), rise=0.5, start_div=25.0, end_div=1e4)["scheduler"]
    longer.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    assert longer.param_groups[0]["lr"] < 1e-4  # the former cycle's end
    task = SimpleNamespace(trainer=SimpleNamespace(lr_scheduler_configs=[SimpleNamespace(scheduler=resumed)]))
    Stepping.on_train_start(task)
    assert longer.param_groups[0]["lr"] == pytest.approx(1.0, abs=0.05)  # half of 18 steps: the peak


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda p: torch.optim.SGD(p, lr=1.0), {"momentum": 0}),
        (lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9), {"momentum": 0.95}),
        (lambda p: torch.optim.RMSprop(p, lr=1.0), {"momentum": 0}),
        (lambda p: torch.optim.ASGD(p, lr=1.0), {}),
        (lambda p: torch.optim.Adam(p, lr=1.0), {"betas": (0.95, 0.999)}),
    ],
)
def test_one_cycle_gives_no_momentum_to_an_optimizer_without(make, wanted):
    """torch's own would give an SGD of momentum 0 one of .95, and refuse ASGD."""
    optimizer = make([torch.nn.Parameter(torch.zeros(1))])
    scheduler = one_cycle(optimizer, PLAN, rise=0.5, start_div=25.0, end_div=1e4)["scheduler"]
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the scheduler is stepped without the optimizer
        for _ in range(10):
            rates.append(optimizer.param_groups[0]["lr"])
            scheduler.step()
    assert rates[0] == pytest.approx(1 / 25) and max(rates) == pytest.approx(1, abs=0.1)
    fresh = make([torch.nn.Parameter(torch.zeros(1))])
    one_cycle(fresh, PLAN, rise=0.5, start_div=25.0, end_div=1e4)
    assert {key: fresh.param_groups[0][key] for key in wanted} == wanted


@pytest.mark.parametrize("foreach", [False, True])
def test_asgd_takes_each_step_at_that_step_s_rate(foreach):
    """torch's takes it at the rate of the step before; where that is the same nothing changes."""
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(20, 5, generator=generator)

    def walk(make, rates, follow=True):
        weight = torch.nn.Parameter(torch.ones(5))
        optimizer = make([weight], lr=rates[0])
        for rate, gradient in zip(rates, gradients, strict=True):
            optimizer.param_groups[0]["lr"], weight.grad = rate, gradient.clone()
            if follow:
                follow_rate(optimizer)
            optimizer.step()
        return weight.detach()

    asgd = partial(torch.optim.ASGD, lambd=0.0, t0=1e6, foreach=foreach)
    falling = [0.9**step for step in range(20)]
    torch.testing.assert_close(walk(asgd, falling), walk(torch.optim.SGD, falling))
    assert not torch.allclose(walk(asgd, falling, follow=False), walk(torch.optim.SGD, falling))
    shrinking = partial(torch.optim.ASGD, lambd=0.1, foreach=foreach)
    torch.testing.assert_close(walk(shrinking, [0.5] * 20), walk(shrinking, [0.5] * 20, follow=False))


def rates_of_a_cycle(optimizer, scheduler, steps):
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            scheduler.step()
    return rates


def test_one_cycle_goes_on_over_more_steps_than_it_was_made_for():
    def made(total):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        plan = StepPlan(total=total, per_epoch=5)
        return optimizer, one_cycle(optimizer, plan, rise=0.3, start_div=25.0, end_div=1e4)["scheduler"]

    whole = rates_of_a_cycle(*made(20), 20)
    optimizer, scheduler = made(10)
    rates_of_a_cycle(optimizer, scheduler, 10)  # to its end
    saved = scheduler.state_dict()
    later, resumed = made(20)
    resumed.load_state_dict(saved)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resumed.step()
    assert rates_of_a_cycle(later, resumed, 9) == pytest.approx(whole[11:])


@pytest.mark.parametrize(("rise", "total"), [(0.25, 3), (0.5, 1), (0.1, 9)])
def test_one_cycle_rises_in_no_step_at_all(rise, total):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    plan = StepPlan(total=total, per_epoch=total)
    scheduler = one_cycle(optimizer, plan, rise=rise, start_div=25.0, end_div=1e4)["scheduler"]
    rates = rates_of_a_cycle(optimizer, scheduler, total)
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[1:] == sorted(rates[1:], reverse=True)


def test_plateau_counts_validations_not_epochs():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    settings = {"monitor": "val/loss", "mode": "min", "factor": 0.25, "patience": 0, "min_lr": 0.0}
    plan = StepPlan(total=9, per_epoch=3, validated_every=2)
    assert plateau(optimizer, plan, **settings)["frequency"] == 2  # Lightning steps it so, and validates so
    assert plateau(optimizer, PLAN, **settings)["frequency"] == 1


def planned(batches, epochs, before=None, limit=1.0):
    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(train_dataloader=lambda: range(batches)),
        limit_train_batches=limit,
        accumulate_grad_batches=1,
        max_epochs=epochs,
        max_steps=-1,
        check_val_every_n_epoch=1,
    )
    return step_plan(trainer, before)


@pytest.mark.parametrize("now", [3, 6, 12])
def test_a_schedule_ends_with_the_run_when_epochs_have_other_steps_than_before(now):
    """As with another number of processes. On two in the place of one, the rate was 0 in every further epoch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    first = planned(6, 4)
    rates_of_a_cycle(optimizer, (before := linear(optimizer, first, warmup=0, floor=0)["scheduler"]), 4 * 6)
    plan = planned(now, 8, Taken(first.per_epoch, first.more, 24, 4))
    assert plan.total == 24 + 4 * now
    after = linear(optimizer, plan, warmup=0, floor=0)["scheduler"]
    after.load_state_dict(before.state_dict())
    rates = rates_of_a_cycle(optimizer, after, 4 * now)[1:]  # the first is set by the step before
    assert rates == pytest.approx([1 - step / plan.total for step in range(25, plan.total)])
    # In the middle of a later epoch: the same plan, whatever was done meanwhile
    assert planned(now, 8, Taken(plan.per_epoch, plan.more, 24 + now + 1, 5)) == plan
    assert planned(now, 9, Taken(plan.per_epoch, plan.more, plan.total, 8)).total == plan.total + now


def test_bits_a_character_are_watched_only_where_a_token_is_one():
    """No validation writes them else, and the best checkpoint, patience and the schedule would wait for them."""
    net = partial(LanguageModel, embedding_dim=4, hidden_size=4)
    schedule = Part(plateau, "scheduler", monitor="val/bpc", mode="min", factor=0.5, patience=0, min_lr=0.0)
    for watching, callbacks in ((None, [early_stopping("val/bpc", "min", 3)]), (schedule, [])):
        trainer = SimpleNamespace(callbacks=callbacks, max_epochs=1, max_steps=-1)
        LanguageModelingTask(net, vocab_size=9, character_level=True, scheduler=watching).check_fit(trainer, None)
        with pytest.raises(UserError, match="monitor is written only where a token is a character, got 'val/bpc'"):
            LanguageModelingTask(net, vocab_size=9, scheduler=watching).check_fit(trainer, None)
