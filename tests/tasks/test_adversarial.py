"""Adversarial training, and virtual adversarial training, against naive loops of several passes."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence

from recur.errors import UserError
from recur.nn.classifier import Classifier
from recur.nn.packed import TextBatch
from recur.tasks.adversarial import adversarial_loss, change_along, divergences, virtual_adversarial_loss
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
    change = change_along(vectors.detach(), gradient, text, strength)
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
    change = change_along(vectors, torch.full((len(text.data), 6), size), text, 0.1)
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


def half_step(initial, kind):
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
            **{kind: 0.3},
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
        results.append((shown[f"train/{kind}_loss"], [p.grad / scaler.get_scale() for p in task.net.parameters()]))
    return results


@pytest.mark.parametrize("kind", ["adversarial", "virtual_adversarial"])
def test_in_float16_the_gradient_of_the_clean_loss_is_scaled_too(kind):
    (exact, wanted), (changed, gradients) = half_step(2.0**16, kind)
    assert changed.item() == pytest.approx(exact.item(), rel=0.05)
    for mine, theirs in zip(gradients, wanted, strict=True):
        assert (mine - theirs).norm() < 0.05 * theirs.norm()
    assert not torch.equal(gradients[0], wanted[0])


def test_a_scale_too_large_for_float16_is_left_to_the_scaler():
    _, (changed, gradients) = half_step(2.0**48, "adversarial")
    assert changed.isfinite()  # or the run would be stopped for it
    assert any(not gradient.isfinite().all() for gradient in gradients)


@pytest.mark.filterwarnings("error")
def test_a_second_derivative_is_an_error_and_not_zero():
    net, text, labels = problem(cell="peephole", engine="torch")
    _, clean, changed = adversarial_loss(net, text, labels, loss_of, 0.3)
    gradients = torch.autograd.grad(clean + changed, list(net.parameters()), create_graph=True)
    with pytest.raises(RuntimeError, match=r"twice|once"):
        sum(gradient.square().sum() for gradient in gradients).backward()


def naive_divergence(fixed, logits):
    """KL(p || q) of one text, from the probabilities."""
    if len(fixed) == 1:
        fixed, logits = (torch.stack([1 - one[0].sigmoid(), one[0].sigmoid()]) for one in (fixed, logits))
    else:
        fixed, logits = fixed.softmax(0), logits.softmax(0)
    return (fixed * (fixed.log() - logits.log())).sum()


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("strength", [0.02, 0.5])
def test_virtual_training_is_that_of_a_naive_loop(classes, strength):
    """Text by text, with a net that sees one text at a time."""
    net, text, labels = problem(classes)
    torch.manual_seed(5)
    logits, mean = virtual_adversarial_loss(net, text, strength)
    mine = torch.autograd.grad(2 * loss_of(logits, labels) + 3 * mean, list(net.parameters()), allow_unused=True)

    torch.manual_seed(5)
    noise = torch.randn(len(text.data), 6, dtype=torch.float64)
    places = torch.cat([torch.arange(int(size)) for size in text.batch_sizes])
    clean, divergence = [], []
    for place in range(len(LENGTHS)):
        own = pack_sequence([text.data[places == place]])
        vectors = net.embedding(own.data)
        clean.append(net.classify(vectors, own)[0])
        fixed, small = clean[-1].detach(), noise[places == place]
        small = (strength * vectors.detach().norm() * small / small.norm()).requires_grad_()
        (direction,) = torch.autograd.grad(
            naive_divergence(fixed, net.classify(vectors.detach() + small, own)[0]), small
        )
        change = strength * vectors.detach().norm() * direction / direction.norm()
        divergence.append(naive_divergence(fixed, net.classify(vectors + change, own)[0]))
    first, second = loss_of(torch.stack(clean), labels), torch.stack(divergence).mean()
    want = torch.autograd.grad(2 * first + 3 * second, list(net.parameters()), allow_unused=True)
    torch.testing.assert_close((logits, mean), (torch.stack(clean), second), rtol=1e-7, atol=1e-12)
    for one, other in zip(mine, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-11)
    assert mean > 0 and all(parameter.requires_grad for parameter in net.parameters())


def test_the_virtual_change_turns_probabilities_more_than_a_random_one(monkeypatch):
    net, text, _ = problem(4)
    seen = []
    monkeypatch.setattr(
        "recur.tasks.adversarial.change_along", lambda *given: seen.append(change_along(*given)) or seen[-1]
    )
    _, mean = virtual_adversarial_loss(net, text, 0.1)
    vectors, places = net.embedding(text.data), torch.cat([torch.arange(int(size)) for size in text.batch_sizes])
    fixed = net.classify(vectors, text)
    for change in seen:  # the random one, and the worst
        for place in range(len(LENGTHS)):
            own = places == place
            assert change[own].norm().item() == pytest.approx(0.1 * vectors[own].norm().item(), rel=1e-6)
    random = divergences(fixed, net.classify(vectors + seen[0], text)).mean()
    assert len(seen) == 2 and mean > 3 * random


@pytest.mark.parametrize("settings", [{"dropout": 0.5, "num_layers": 2}, {"weight_drop": 0.5}, {"head_dropout": 0.5}])
def test_masks_are_the_same_in_all_passes(settings):
    """Hardly changed, texts diverge by next to nothing, whatever is dropped."""
    net, text, _ = problem(word_dropout=0.2, embedding_dropout=0.2, **settings)
    _, small = virtual_adversarial_loss(net, text, 1e-6)
    _, larger = virtual_adversarial_loss(net, text, 1e-2)
    assert small < 1e-9 and larger > 1e-7, (small, larger)
    torch.manual_seed(1)
    logits = virtual_adversarial_loss(net, text, 0.1)[0]
    after = torch.rand(())
    torch.manual_seed(1)
    again = virtual_adversarial_loss(net, text, 0.1)[0]
    assert torch.equal(logits, again) and torch.equal(after, torch.rand(()))
    assert not torch.equal(logits, virtual_adversarial_loss(net, text, 0.1)[0])


def test_a_net_of_16_bits_diverges_nearly_as_much_as_one_of_float64():
    net, text, _ = problem(3)
    torch.manual_seed(2)
    expected = virtual_adversarial_loss(net, text, 0.3)[1]
    torch.manual_seed(2)
    found = virtual_adversarial_loss(net.bfloat16(), text, 0.3)[1]
    assert found.dtype == torch.float32 and found.item() == pytest.approx(expected.item(), rel=0.3)


def test_sure_texts_diverge_in_float32_as_in_float64():
    """Beside 1, which is the likelier class's probability, changes of the logits would be lost."""
    fixed, logits = torch.tensor([[25.0], [-25.0]]), torch.tensor([[24.0], [-24.0]], requires_grad=True)
    (found,) = torch.autograd.grad(divergences(fixed, logits).sum(), logits)
    (want,) = torch.autograd.grad(divergences(fixed.double(), logits.double()).sum(), logits)
    assert want.abs().min() > 0
    torch.testing.assert_close(found, want, rtol=1e-4, atol=0)


def virtual(classes=2, **settings):
    torch.manual_seed(0)
    task = SentimentTask(
        partial(Classifier, embedding_dim=6, hidden_size=5),
        **{"vocab_size": 30, "num_classes": classes, "class_names": [*"abc"[:classes]], **settings},
    ).double()
    task.log_step = lambda *args, **kwargs: None
    return task


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("weights", [None, [1.0, 3.0, 2.0]])
@pytest.mark.parametrize("kind", ["labels", "targets"])
@pytest.mark.parametrize("other", [1, 0])  # the second label's class: that of the first, or one of another weight
def test_each_labelled_text_counts_as_its_class_does_in_whatever_batch_it_stands(classes, weights, kind, other):
    """The sum of a split batch's gradients is that of the whole, with labels in one part, both or neither."""
    weights = weights and weights[:classes]
    task = virtual(classes, virtual_adversarial=0.1, class_weights=weights)
    ids = [torch.randint(30, (n,)) for n in LENGTHS]
    labels = torch.tensor([1, -1, -1, other, -1])
    targets = torch.eye(classes)[labels.clamp(min=0)] * (labels >= 0)[:, None] if kind == "targets" else None

    def step(rows):
        batch = TextBatch(
            *(pack_sequence([ids[row] for row in rows]), labels[rows], torch.tensor(rows)),
            scale=len(rows) / 2,
            targets=None if targets is None else targets[rows],
            labelled=0.4,
        )
        with pytest.MonkeyPatch.context() as patch:  # the worst change hangs on what is drawn
            patch.setattr("recur.tasks.adversarial.change_along", lambda vectors, *_: torch.full_like(vectors, 0.01))
            loss = task.training_step(batch, 0)
        return torch.autograd.grad(loss, list(task.net.parameters()), allow_unused=True)

    whole = step([0, 1, 2, 3, 4])
    for parts in ([[0, 1], [2, 3, 4]], [[0, 3], [1, 2, 4]], [[1, 2], [0, 3, 4]]):
        for every, *pieces in zip(whole, *map(step, parts), strict=True):
            torch.testing.assert_close(sum(pieces), every, rtol=1e-8, atol=1e-12)
    assert task.train_accuracy.weight == 2 * 4  # two texts with labels, four times over
    assert task.train_loss.weight == 4 * (2 if weights is None else weights[1] + weights[other])


@pytest.mark.parametrize(("counts", "mean"), [(None, 2.0), ([2, 1, 1], 1.75)])
def test_class_weights_are_divided_by_their_mean_over_the_training_texts(counts, mean):
    """What texts without labels add to a loss weighs as much, however large all class weights are."""
    losses = []
    for scale in (1, 10):
        weights = [scale * weight for weight in (1.0, 3.0, 2.0)]
        task = virtual(3, virtual_adversarial=0.1, class_weights=weights, class_counts=counts)
        assert task._mean_class_weight() == pytest.approx(scale * mean)
        _, text, labels = problem(3)
        labels[1:] = -1
        torch.manual_seed(1)
        batch = TextBatch(text, labels, torch.arange(len(labels)), labelled=0.4)
        losses.append(task.training_step(batch, 0).item())
    assert losses[0] == pytest.approx(losses[1])


def test_a_batch_without_labels_is_trained_on_and_counted_nowhere():
    task = virtual(virtual_adversarial=0.1)
    _, text, labels = problem()
    batch = TextBatch(text, torch.full_like(labels, -1), torch.arange(len(labels)), labelled=0.1)
    with_labels = task.flop_a_token()
    loss = task.training_step(batch, 0)
    loss.backward()
    assert loss > 0 and task.train_loss.weight == task.train_accuracy.weight == 0
    assert all(parameter.grad.isfinite().all() for parameter in task.net.parameters())
    assert with_labels * 6 / 8 == task.flop_a_token() == 2 * virtual().flop_a_token()


def test_without_it_a_step_is_as_before_and_texts_without_labels_are_refused():
    _, text, labels = problem()
    batch = TextBatch(text, labels, torch.arange(len(labels)), scale=0.7)
    plain, zero = virtual(), virtual(virtual_adversarial=0.0)
    one, other = plain.training_step(batch, 0), zero.training_step(batch, 0)
    assert torch.equal(one, other) and one.item() == pytest.approx(0.7 * loss_of(plain(batch), labels).item())
    with pytest.raises(UserError, match=r"data\.train_on_unlabelled .*model\.virtual_adversarial"):
        plain.training_step(batch._replace(labelled=0.5), 0)
    for settings, words in (
        ({"virtual_adversarial": -0.1}, r"model\.virtual_adversarial must be at least 0"),
        ({"virtual_adversarial": 0.1, "adversarial": 0.1}, r"model\.virtual_adversarial .* one of them"),
        ({"virtual_adversarial": 0.1, "net": lambda **_: torch.nn.Linear(2, 2)}, r"virtual_adversarial .*Classifier"),
    ):
        with pytest.raises(UserError, match=words):
            SentimentTask(
                settings.pop("net", partial(Classifier, embedding_dim=6, hidden_size=5)),
                **(settings | {"vocab_size": 30, "num_classes": 2, "class_names": ["a", "b"]}),
            )
