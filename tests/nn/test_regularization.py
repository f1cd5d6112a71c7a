"""Dropout: the share that is dropped, the mean that stays, independence, and the gradient."""

import pytest
import torch

from recur.nn.regularization import dropout


@pytest.mark.parametrize("p", [0.001, 0.05, 0.2, 0.5, 0.9, 0.999])
def test_a_share_of_p_is_dropped_and_the_mean_stays(p):
    torch.manual_seed(0)
    count = 1_000_000
    dropped = dropout(torch.ones(count // 100, 100), p)
    share, deviation = float((dropped == 0).double().mean()), (p * (1 - p) / count) ** 0.5
    assert abs(share - p) < 5 * deviation
    values = dropped.unique()
    assert len(values) == 2 and values[1] == pytest.approx(1 / (1 - p), rel=1e-5 / (1 - p))
    assert abs(float(dropped.double().mean()) - 1) < 5 * deviation / (1 - p)


def test_neighbours_are_dropped_independently():
    """Four numbers share a draw of 64 bits."""
    torch.manual_seed(0)
    dropped = (dropout(torch.ones(400_000), 0.3) == 0).double() - 0.3
    for lag in range(1, 9):
        correlation = float((dropped[lag:] * dropped[:-lag]).mean()) / 0.21
        assert abs(correlation) < 5 / 400_000**0.5, lag
    by_lane = dropped.view(-1, 4).mean(0)
    assert float(by_lane.abs().max()) < 5 * (0.21 / 100_000) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_gradient_is_the_mask_and_the_scale(dtype):
    values = (torch.rand(7, 5, generator=torch.Generator().manual_seed(1)) + 1).to(dtype).requires_grad_()
    dropped = dropout(values, 0.4)
    assert dropped.dtype == dtype
    dropped.float().sum().backward()
    mask = (dropped != 0).to(dtype)
    torch.testing.assert_close(values.grad, mask * (65536 / (65536 - round(0.4 * 65536))), rtol=1e-2, atol=0)
    torch.testing.assert_close(dropped.detach(), values.detach() * values.grad, rtol=1e-2, atol=0)


def test_the_generator_decides_and_nothing_is_drawn_without_a_rate():
    values = torch.randn(3, 11)
    torch.manual_seed(5)
    first, second = dropout(values, 0.5), dropout(values, 0.5)
    torch.manual_seed(5)
    assert torch.equal(dropout(values, 0.5), first) and not torch.equal(first, second)
    state = torch.get_rng_state()
    assert dropout(values, 0.0) is values and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("p", [1e-5, 0.9999, 1.0])
def test_a_rate_too_near_to_0_or_1_for_sixteen_bits_is_torch_s(p):
    values = torch.ones(50_000)
    torch.manual_seed(2)
    own = dropout(values, p)
    torch.manual_seed(2)
    assert torch.equal(own, torch.nn.functional.dropout(values, p))


@pytest.mark.parametrize("shape", [(0,), (1,), (3,), (0, 4), (5, 1)])
def test_any_shape(shape):
    assert dropout(torch.ones(shape), 0.5).shape == shape
    strided = dropout(torch.ones(6, 4).t(), 0.5)
    assert strided.shape == (4, 6) and set(strided.unique().tolist()) <= {0.0, 2.0}
