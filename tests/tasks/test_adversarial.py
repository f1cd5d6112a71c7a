"""Adversarial training against a naive loop of two backward passes."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence

from recur.errors import UserError
from recur.nn.classifier import Classifier
from recur.nn.packed import TextBatch
from recur.tasks.adversarial import adversarial_loss, worst_change
from recur.tasks.sentiment import SentimentTask

LENGTHS = [9, 7, 7, 2, 1]


def problem(classes=2, **settings):
    torch.manual_seed(0)
    net = Classifier(30, classes, embedding_dim=6, hidden_size=5, pooling="concat", **settings).double().train()
    text = pack_sequence([torch.randint(30, (n,)) for n in LENGTHS])
    return net, text, torch.randint(classes, (len(LENGTHS),))


def loss_of(logits, labels):
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits))
    return F.cross_entropy(logits, labels)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_naive_loop_gives_the_same_losses_and_gradients(classes):
    net, text, labels = problem(classes)
    _, clean, changed = adversarial_loss(net, text, labels, loss_of, 0.3)
    mine = torch.autograd.grad(2 * clean + 3 * changed, list(net.parameters()), allow_unused=True)

    vectors = net.embedding(text.data)
    first = loss_of(net.classify(vectors, text), labels)
    (gradient,) = torch.autograd.grad(first, vectors, retain_graph=True)
    places = torch.cat([torch.arange(int(size)) for size in text.batch_sizes])
    change = torch.zeros_like(gradient)
    for place in range(len(LENGTHS)):  # text by text
        own = places == place
        change[own] = 0.3 * vectors[own].detach().norm() * gradient[own] / gradient[own].norm()
    second = loss_of(net.classify(vectors + change, text), labels)
    want = torch.autograd.grad(2 * first + 3 * second, list(net.parameters()), allow_unused=True)
    torch.testing.assert_close((clean, changed), (first, second), rtol=1e-9, atol=1e-12)
    for one, other in zip(mine, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-12)
    assert changed > clean


def test_the_change_is_the_worst_of_its_length():
    net, text, labels = problem()
    vectors = net.embedding(text.data).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(net.classify(vectors, text), labels), vectors)
    strength = 1e-4
    change = worst_change(vectors.detach(), gradient, text, strength)
    places = torch.cat([torch.arange(int(size)) for size in text.batch_sizes])

    def grown(by):
        return (loss_of(net.classify(vectors + by, text), labels) - loss_of(net.classify(vectors, text), labels)).item()

    worst = grown(change)
    for _ in range(50):
        other = torch.randn_like(change)
        for place in range(len(LENGTHS)):
            own = places == place
            assert change[own].norm() == pytest.approx(strength * vectors[own].norm().item(), rel=1e-6)
            other[own] *= change[own].norm() / other[own].norm()
        assert grown(other) < worst


@pytest.mark.parametrize("size", [0.0, 1e-40, 1e30])
def test_gradients_of_any_size_give_a_finite_change(size):
    _, text, _ = problem()
    vectors = torch.randn(len(text.data), 6)
    change = worst_change(vectors, torch.full((len(text.data), 6), size), text, 0.1)
    assert change.isfinite().all() and bool(change.any()) == (size > 0)


@pytest.mark.parametrize("cell", ["lstm", "mingru"])
def test_a_net_of_16_bits_gives_nearly_the_losses_of_float64(cell):
    net, text, labels = problem(cell=cell)
    _, *expected = adversarial_loss(net, text, labels, loss_of, 0.3)
    _, *found = adversarial_loss(net.bfloat16(), text, labels, loss_of, 0.3)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.bfloat16 and one.item() == pytest.approx(other.item(), rel=0.02)


def test_a_task_without_it_trains_as_before_and_refuses_what_cannot_be():
    def task(**settings):
        torch.manual_seed(0)
        make = settings.pop("net", lambda vocab_size, num_classes, vectors: Classifier(vocab_size, num_classes))
        return SentimentTask(make, vocab_size=30, num_classes=2, class_names=["a", "b"], **settings)

    with pytest.raises(UserError, match=r"model\.adversarial"):
        task(adversarial=-0.1)
    with pytest.raises(UserError, match="Classifier"):
        task(adversarial=0.1, net=lambda **_: torch.nn.Linear(2, 2))
    _, text, labels = problem()
    batch = TextBatch(text, labels, torch.arange(len(labels)))
    quiet = task()
    quiet.log_step = lambda *args, **kwargs: None
    plain = loss_of(quiet(batch), labels)
    assert quiet.training_step(batch, 0).item() == pytest.approx(plain.item())
    against = task(adversarial=0.05)
    against.log_step = quiet.log_step
    assert against.training_step(batch, 0) > 2 * plain


def half_step(initial):
    """A step of a task that is sure of its texts, in float32 and under float16's autocast with a loss scaler."""
    _, text, labels = problem()
    batch = TextBatch(text, torch.ones_like(labels), torch.arange(len(labels)))
    results = []
    for low in (False, True):
        torch.manual_seed(0)
        task = SentimentTask(
            partial(Classifier, embedding_dim=6, hidden_size=5),
            vocab_size=30,
            num_classes=2,
            class_names=["a", "b"],
            adversarial=0.3,
        )
        with torch.no_grad():  # gradients of the logits of 1e-8: nothing in float16
            task.net.head.bias.fill_(16.0)
        shown, scaler = {}, torch.amp.GradScaler("cpu", init_scale=initial, enabled=low)
        task.log_step = partial(lambda shown, name, value, **_: shown.update({name: value}), shown)
        plugin = SimpleNamespace(scaler=scaler if low else None)
        task._trainer = SimpleNamespace(precision_plugin=plugin, accumulate_grad_batches=1)
        with torch.autocast("cpu", torch.float16, enabled=low):
            loss = task.training_step(batch, 0)
        scaler.scale(loss).backward()
        results.append((shown["train/adversarial_loss"], [p.grad / scaler.get_scale() for p in task.net.parameters()]))
    return results


def test_in_float16_the_gradient_of_the_clean_loss_is_scaled_too():
    (exact, wanted), (changed, gradients) = half_step(2.0**16)
    assert changed.item() == pytest.approx(exact.item(), rel=0.05)
    for mine, theirs in zip(gradients, wanted, strict=True):
        assert (mine - theirs).norm() < 0.05 * theirs.norm()
    assert not torch.equal(gradients[0], wanted[0])


def test_a_scale_too_large_for_float16_is_left_to_the_scaler():
    _, (changed, gradients) = half_step(2.0**48)
    assert changed.isfinite()  # or the run would be stopped for it
    assert any(not gradient.isfinite().all() for gradient in gradients)


@pytest.mark.filterwarnings("error")
def test_a_second_derivative_is_an_error_and_not_zero():
    net, text, labels = problem(cell="peephole", engine="torch")
    _, clean, changed = adversarial_loss(net, text, labels, loss_of, 0.3)
    gradients = torch.autograd.grad(clean + changed, list(net.parameters()), create_graph=True)
    with pytest.raises(RuntimeError, match=r"twice|once"):
        sum(gradient.square().sum() for gradient in gradients).backward()
