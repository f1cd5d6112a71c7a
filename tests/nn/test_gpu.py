"""What a GPU must do; without one the same tests run on the CPU, all but those on waiting for the device."""

import contextlib
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from recur.nn.classifier import Classifier
from recur.nn.losses import linear_cross_entropy
from recur.nn.recurrent import Recurrent

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = [9, 7, 7, 4, 1]


@pytest.fixture(autouse=True)
def whole_float32():
    """Products of float32 in whole: with TF32's 10 bits of a mantissa what is compared differs by a thousandth.

    cuDNN takes TF32 by default; products do where an environment or a program asks for it.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
    torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def no_waiting():
    """Raise where the host waits for the device."""
    try:
        if DEVICE == "cuda":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that this is a prototype
                torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def packed(size, device):
    torch.manual_seed(0)
    batch = pack_sequence([torch.randn(n, size) for n in LENGTHS])
    return PackedSequence(batch.data.to(device).requires_grad_(), batch.batch_sizes)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn", "mingru", "peephole"])
def test_the_device_gives_what_the_cpu_gives_in_float64(cell):
    torch.manual_seed(0)
    exact = Recurrent(6, 8, 2, cell=cell, bidirectional=True, engine="fused").double()
    own = Recurrent(6, 8, 2, cell=cell, bidirectional=True, engine="torch")
    own.load_state_dict(exact.state_dict())
    own.to(DEVICE)
    batch = packed(6, DEVICE)
    want, _ = exact(PackedSequence(batch.data.detach().cpu().double(), batch.batch_sizes))
    got, _ = own(batch)
    torch.testing.assert_close(got.data.cpu().double(), want.data, rtol=0, atol=1e-4 if DEVICE == "cuda" else 1e-5)
    got.data.sum().backward()
    want.data.sum().backward()
    for (name, mine), theirs in zip(own.named_parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.cpu().double(), theirs.grad, rtol=1e-2, atol=1e-3, msg=name)


def test_weight_drop_keeps_training_the_raw_weight():
    stack = Recurrent(6, 8, 2, weight_drop=0.5, engine="torch").to(DEVICE)
    batch = packed(6, DEVICE)
    with no_waiting():
        stack(batch)[0].data.sum().backward()
    share = (stack.weight_hh_l0.grad == 0).float().mean().item()
    assert 0.2 < share < 0.8


def test_the_loss_and_its_gradients_without_waiting():
    torch.manual_seed(0)
    x, w, b = (torch.randn(s, device=DEVICE).requires_grad_() for s in ((50, 16), (3000, 16), (3000,)))
    y = torch.randint(3000, (50,), device=DEVICE)
    plain = torch.autograd.grad(F.cross_entropy(F.linear(x, w, b), y), (x, w, b))
    with no_waiting():
        mine = torch.autograd.grad(linear_cross_entropy(x, w, b, y).loss, (x, w, b))
    for got, want in zip(mine, plain, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)


def test_a_step_in_mixed_precision_is_finite_and_does_not_wait():
    torch.manual_seed(0)
    net = Classifier(50, 2, embedding_dim=8, hidden_size=16, engine="torch").to(DEVICE)
    ids = pack_sequence([torch.randint(50, (n,)) for n in LENGTHS])
    ids = PackedSequence(ids.data.to(DEVICE), ids.batch_sizes)
    labels = torch.ones(len(LENGTHS), device=DEVICE)
    optimizer = torch.optim.Adam(net.parameters())
    for step in range(2):  # the first may set things up
        with no_waiting() if step else contextlib.nullcontext():
            with torch.autocast(DEVICE, torch.bfloat16):
                logits = net(ids).squeeze(1)
                loss = F.binary_cross_entropy_with_logits(logits.float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in net.parameters())
