"""Schedules, with the optimizers that they meet."""

import warnings

import pytest
import torch

from recur.tasks.schedulers import StepPlan, one_cycle

PLAN = StepPlan(total=9, per_epoch=3)


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
