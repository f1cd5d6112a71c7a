"""Second derivatives, which no backward pass written by hand has: an error, never a gradient that lacks a part."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pack_sequence

from recur.nn.cells import CELLS
from recur.nn.differentiation import differentiable_once
from recur.nn.drop_in import LSTM
from recur.nn.losses import linear_cross_entropy
from recur.nn.recurrent import Recurrent


def penalized(value: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """A value and a penalty on its gradient, as WGAN-GP and double backpropagation have it."""
    (gradient,) = torch.autograd.grad(value, of, create_graph=True)
    return value + gradient.square().sum()


@pytest.mark.parametrize("cell", CELLS)
def test_a_penalty_on_the_gradient_of_a_mean_is_refused(cell: str) -> None:
    """A mean's incoming gradient is constant, which torch's own `once_differentiable` lets pass."""
    net = Recurrent(5, 16, cell=cell, engine="fused")
    rows = torch.randn(40, 5, requires_grad=True)
    packed = pack_sequence(list(rows.split([25, 15])))
    with pytest.raises(RuntimeError, match="differentiate twice"):
        penalized(net(packed)[0].data.mean(), rows).backward()


def test_the_drop_in_refuses_what_torch_can_and_it_cannot() -> None:
    lstm = LSTM(4, 8, engine="fused")
    x = torch.randn(7, 3, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        penalized(lstm(x)[0].mean(), x).backward()
    lstm.engine = "torch"
    penalized(lstm(x)[0].mean(), x).backward()


def test_the_loss_refuses_it_too_and_a_first_derivative_of_a_graph_is_as_ever() -> None:
    torch.manual_seed(0)
    features, weight = torch.randn(12, 6, requires_grad=True), torch.randn(50, 6, requires_grad=True)
    targets = torch.randint(50, (12,))
    loss = linear_cross_entropy(features, weight, None, targets).loss
    with pytest.raises(RuntimeError, match="differentiate twice"):
        penalized(loss, features).backward()
    loss = linear_cross_entropy(features, weight, None, targets).loss
    (ours,) = torch.autograd.grad(loss, features, create_graph=True)
    (theirs,) = torch.autograd.grad(F.cross_entropy(features @ weight.T, targets), features)
    torch.testing.assert_close(ours.detach(), theirs)


def test_one_gradient_and_none_pass_through() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, unused):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        @differentiable_once
        def backward(ctx, gradient):
            return 2 * ctx.saved_tensors[0] * gradient, None

    x = torch.tensor([3.0], requires_grad=True)
    Square.apply(x, "nothing").sum().backward()
    assert x.grad.item() == 6
    (gradient,) = torch.autograd.grad(Square.apply(x, "nothing").sum(), x, create_graph=True)
    assert gradient.item() == 6
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()
