"""The sentiment task under a real trainer: against a plain torch loop, and golden losses."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from recur.data.sentiment import SentimentData
from recur.data.synthetic import SyntheticReviews
from recur.errors import UserError
from recur.nn.classifier import Classifier
from recur.nn.costs import multiplications
from recur.nn.packed import TextBatch
from recur.tasks.sentiment import SentimentTask, _metrics

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (".*LeafSpec.*is deprecated", ".*does not have many workers", ".*smaller than the logging interval")
]


class Losses(Callback):
    """Writes down every training loss."""

    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))


@pytest.fixture
def data(tmp_path) -> SentimentData:
    data = SentimentData(
        synthetic=SyntheticReviews(400, 50, 50, short=0.0), cache_dir=str(tmp_path / "cache"), batch_size=16, seed=1
    )
    data.prepare_data()
    data.setup("fit")
    return data


def new_task(data: SentimentData, **net) -> SentimentTask:
    torch.manual_seed(0)
    settings = {"embedding_dim": 12, "hidden_size": 16, "num_layers": 2, "bidirectional": True, **net}
    return SentimentTask(
        partial(Classifier, **settings), **data.model_arguments(), optimizer=partial(torch.optim.Adam, lr=0.01)
    )


def twenty_losses(task: SentimentTask, data: SentimentData, folder) -> list[float]:
    losses = Losses()
    pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        gradient_clip_val=0.5,
        limit_train_batches=20,
        limit_val_batches=0,
        callbacks=[losses],
    ).fit(task, datamodule=data)
    assert len(losses.losses) == 20
    return losses.losses


class Plain(nn.Module):
    """The guides' classifier in torch's own layers, fed with its own packing of the same texts."""

    def __init__(self, like: Classifier) -> None:
        super().__init__()
        self.embedding = nn.Embedding(*like.embedding.weight.shape)
        self.recurrent = nn.LSTM(12, 16, 2, bidirectional=True)
        self.head = nn.Linear(32, 1)
        self.load_state_dict(like.state_dict())

    def forward(self, texts: list[torch.Tensor]) -> torch.Tensor:
        packed = pack_sequence(texts, enforce_sorted=False)
        rows = self.embedding(packed.data)
        _, (last, _) = self.recurrent(PackedSequence(rows, *packed[1:]))
        return self.head(torch.cat([last[-2], last[-1]], 1)).squeeze(1)


def test_twenty_steps_are_those_of_a_plain_torch_loop(tmp_path, data):
    task = new_task(data)
    plain = Plain(task.net)
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
    expected = []
    for _, batch in zip(range(20), data.train_dataloader(), strict=False):
        texts = [torch.as_tensor(data.texts("train")[row].astype("int64")) for row in batch.rows.tolist()]
        loss = nn.functional.binary_cross_entropy_with_logits(plain(texts), batch.labels.float())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        expected.append(loss.item())
    assert twenty_losses(task, data, tmp_path) == pytest.approx(expected, abs=1e-4)


GOLDEN = [
    0.669073,
    0.719463,
    0.756288,
    0.657727,
    0.663718,
    0.716228,
    0.695753,
    0.712485,
    0.685155,
    0.712818,
    0.699959,
    0.723352,
    0.699956,
    0.651809,
    0.712746,
    0.71368,
    0.676749,
    0.68435,
    0.692377,
    0.674874,
]


def test_twenty_golden_steps(tmp_path, data):
    """What a refactor must reproduce. Not the cell and pooling of above; no dropout: its draws differ by machine."""
    task = new_task(data, cell="gru", pooling="concat")
    assert twenty_losses(task, data, tmp_path) == pytest.approx(GOLDEN, abs=1e-4)


@pytest.mark.filterwarnings("ignore:No positive samples")  # torchmetrics', of the area under the curve
@pytest.mark.parametrize("classes", [2, 3])
def test_balanced_accuracy_is_the_mean_of_the_classes_recalls(classes):
    """Whatever the batches, and over the classes that occur: the same as counting by hand."""
    torch.manual_seed(0)
    labels = torch.randint(0, classes, (400,)).clamp(max=1 if classes == 3 else 2)  # a third class that never occurs
    labels[:300] = 0  # unbalanced
    scores = torch.rand(400) if classes == 2 else torch.rand(400, 3).softmax(1)
    metric = _metrics(classes, "val/")
    for part in range(0, 400, 37):
        metric.update(scores[part : part + 37], labels[part : part + 37])
    said = (scores > 0.5).long() if classes == 2 else scores.argmax(1)
    recalls = [(said[labels == label] == label).float().mean() for label in (0, 1)]
    computed = metric.compute()
    assert computed["val/balanced_accuracy"].item() == pytest.approx(torch.stack(recalls).mean().item(), abs=1e-6)
    assert computed["val/balanced_accuracy"] != computed["val/accuracy"]


@pytest.mark.filterwarnings("ignore:No positive samples")  # torchmetrics', of the area under the curve
def test_validating_texts_of_one_class_is_warned_of_once(tmp_path, data, caplog):
    task = new_task(data)
    names = [data.class_names[0]] * 2
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
    )
    loader = data.loader("val")
    loader.labels = loader.labels * 0
    with caplog.at_level("WARNING", logger="recur"):
        trainer.validate(task, loader, verbose=False)
        trainer.validate(task, loader, verbose=False)
    assert caplog.text.count(f"every text that was validated is {names[0]!r}") == 1


@pytest.mark.parametrize("classes", [2, 4])
def test_auroc_is_the_share_of_pairs_in_order_and_undefined_for_one_class(classes):
    """Against a count of pairs; a class that does not occur has none, and is left out of the mean."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(60, classes, generator=generator).softmax(1)
    labels = torch.randint(0, classes if classes == 2 else 3, (60,), generator=generator)  # of four classes three occur

    def area(k: int) -> float:
        higher = scores[labels == k, k][:, None] - scores[labels != k, k]
        return float(((higher > 0) + 0.5 * (higher == 0)).float().mean())

    given = scores[:, 1] if classes == 2 else scores
    metric = _metrics(classes, "val/")["auroc"]
    metric.update(given, labels)
    expected = area(1) if classes == 2 else sum(area(k) for k in range(3)) / 3
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-6)
    metric.reset()
    metric.update(given, torch.ones_like(labels))
    assert metric.compute().isnan()


@pytest.mark.parametrize("classes", [2, 3])
def test_a_figure_is_the_likelihood_of_the_labels_and_not_what_was_trained_on(data, classes):
    """With label smoothing a run's loss and its ensemble's could not be compared."""
    task, _ = weighted_task(classes, label_smoothing=0.1)
    logits, labels = torch.randn(6, 1 if classes == 2 else 3), torch.randint(classes, (6,))
    trained = task.loss(logits, labels)
    plain, _ = weighted_task(classes)
    assert task.eval().loss(logits, labels) == plain.loss(logits, labels) != trained


def test_frozen_vectors_take_no_gradient_and_cost_none(data):
    task = new_task(data)
    whole, layer = task.flop_a_token(), task.net.recurrent
    task.net.embedding.weight.requires_grad_(False)
    assert whole == 6 * multiplications(layer), "the head multiplies once a text"
    spared = sum(own.numel() for name, own in layer.named_parameters() if name.startswith("weight_ih_l0"))
    assert spared == 2 * 4 * 16 * 12 and task.flop_a_token() == whole - 2 * spared
    task.adversarial = 0.1  # the first of its two passes needs the vectors' gradients all the same
    assert task.flop_a_token() == 2 * whole - 2 * spared
    task.net.embedding.weight.requires_grad_(True)
    assert task.flop_a_token() == 2 * whole


def test_a_mogrifier_needs_the_gradient_of_its_first_product_for_its_gates(data):
    task = new_task(data, cell="mogrifier")
    whole = task.flop_a_token()
    task.net.embedding.weight.requires_grad_(False)
    assert task.flop_a_token() == whole


@pytest.mark.parametrize("classes", [2, 3])
def test_scores_of_sure_texts_stay_apart(data, classes):
    """In float32 every logit above 17 has the probability 1, and texts in order were counted as ties."""
    task, _ = weighted_task(classes)
    logits = torch.tensor([[20.0], [18.0], [25.0]])
    if classes == 3:
        logits = torch.cat([logits, torch.zeros(3, 2)], 1)
    text = pack_sequence([torch.tensor([1])] * 3)
    task.forward = lambda batch: logits
    scores = task._evaluate(TextBatch(text, torch.tensor([1, 0, 1]), [0, 1, 2]), task.val_loss, task.val_metrics)
    assert len(set((scores if classes == 2 else scores[:, 0]).tolist())) == 3


@pytest.mark.parametrize("frozen", [False, True])
def test_each_layer_learns_at_a_part_of_the_rate_of_the_one_above(data, frozen):
    task = new_task(data)
    task.layer_rate, task._optimizer = 0.4, partial(torch.optim.SGD, lr=0.1)
    task.net.embedding.weight.requires_grad_(not frozen)
    before = {name: parameter.detach().clone() for name, parameter in task.named_parameters()}
    optimizer = task.configure_optimizers()
    for parameter in task.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in task.named_parameters():
        (depth,) = (depth for word, depth in LAYERS.items() if word in name)
        moved = 0.0 if frozen and depth == 3 else 0.1 * 0.4**depth
        torch.testing.assert_close(before[name] - parameter, torch.full_like(parameter, moved), rtol=1e-4, atol=1e-6)


LAYERS = {"head": 0, "_l1": 1, "_l0": 2, "embedding": 3}


def by_depth(net: nn.Module) -> list[list[nn.Parameter]]:
    return [[own for name, own in net.named_parameters() if word in name] for word in LAYERS]


class Watch(Callback):
    """Writes down the rows of each epoch's batches, the steps' gradient norms, and which layers have changed."""

    def __init__(self, task):
        self.rows, self.moved, self.norms = [[] for _ in range(3)], [], []
        self.before = [[own.detach().clone() for own in layer] for layer in by_depth(task.net)]

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rows[trainer.current_epoch].append((batch.rows.tolist(), batch.labels.clone()))

    def on_gradient_norm(self, trainer, pl_module, norm):
        self.norms.append(float(norm))
        return False

    def on_train_epoch_end(self, trainer, pl_module):
        pairs = [list(zip(*layers, strict=True)) for layers in zip(self.before, by_depth(pl_module.net), strict=True)]
        self.moved.append([not any(torch.equal(one, other) for one, other in pair) for pair in pairs])


@pytest.mark.parametrize(
    ("make", "every"),
    [
        (partial(torch.optim.SGD, lr=0.5, momentum=0.9, weight_decay=0.01), 1),
        (partial(torch.optim.SGD, lr=0.5, momentum=0.9, weight_decay=0.01), 2),
        (partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1, eps=1e-3), 1),
        (partial(torch.optim.Adam, lr=0.01, weight_decay=0.1, eps=1e-3), 1),
        (partial(torch.optim.RMSprop, lr=0.01, weight_decay=0.1, momentum=0.5, eps=1e-2), 1),
        (partial(torch.optim.ASGD, lr=0.5, weight_decay=0.1, t0=0), 1),
    ],
    ids=["sgd", "slowly", "adamw", "adam", "rmsprop", "asgd"],
)
def test_one_more_layer_learns_with_each_epoch_as_in_a_plain_torch_loop(tmp_path, data, make, every):
    """Steps of two batches, the last of an epoch of one; gradients are clipped by the norm of what learns."""
    task = new_task(data)
    task.unfreeze_epochs, task._optimizer = every, make
    plain, watch = Plain(task.net), Watch(task)
    pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=3, limit_train_batches=5, limit_val_batches=0,
        accumulate_grad_batches=2, gradient_clip_val=0.02, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        default_root_dir=tmp_path, callbacks=[watch], log_every_n_steps=1,
    ).fit(task, datamodule=data)  # fmt: skip
    optimizer, layers, norms = make(plain.parameters(), foreach=False), by_depth(plain), []
    for epoch, batches in enumerate(watch.rows):
        for depth, layer in enumerate(layers):
            for own in layer:
                own.requires_grad_(depth * every <= epoch)
        for step in (batches[:2], batches[2:4], batches[4:]):
            optimizer.zero_grad()
            for rows, labels in step:
                texts = [torch.as_tensor(data.texts("train")[row].astype("int64")) for row in rows]
                loss = nn.functional.binary_cross_entropy_with_logits(plain(texts), labels.float())
                (loss / len(step)).backward()
            norms.append(float(nn.utils.clip_grad_norm_([p for p in plain.parameters() if p.requires_grad], 0.02)))
            optimizer.step()
    assert watch.moved == [[depth * every <= epoch for depth in range(4)] for epoch in range(3)]
    assert watch.norms == pytest.approx(norms, rel=1e-3) and min(norms) > 0.02
    for own, expected in zip(by_depth(task.net), layers, strict=True):
        for one, other in zip(own, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_layers_that_no_epoch_reaches_are_refused_without_a_schedule_too(tmp_path, data):
    task = new_task(data)
    task.unfreeze_epochs = 5
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, default_root_dir=tmp_path,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"model\.unfreeze_epochs .* ends with epoch 3"):
        trainer.fit(task, datamodule=data)


def test_layers_must_be_known_to_learn_one_after_the_other(data):
    class Own(nn.Module):
        def __init__(self, **settings):
            super().__init__()

    for setting, value, without in (("layer_rate", 0.5, 1), ("unfreeze_epochs", 1, 0)):
        with pytest.raises(UserError, match=rf"model\.{setting} needs a network .*: set it to {without}$") as refused:
            SentimentTask(Own, **data.model_arguments(), **{setting: value})
        assert "\n" not in str(refused.value)


def test_layers_are_all_parameters_once(data):
    net = new_task(data, num_layers=3).net
    assert sorted(id(own) for layer in net.layers() for own in layer) == sorted(id(own) for own in net.parameters())


def weighted_task(classes, **settings):
    weights = [0.0, 1.0, 3.0][:classes]
    task = SentimentTask(
        partial(Classifier, embedding_dim=4, hidden_size=4),
        vocab_size=5,
        num_classes=classes,
        class_names=list("abc")[:classes],
        class_weights=weights,
        **settings,
    )
    return task, weights


@pytest.mark.parametrize("classes", [2, 3])
def test_a_weighted_loss_does_not_depend_on_how_texts_are_batched(data, classes):
    """It is sum(w l) / sum(w) of the split; of texts that all count nothing it is 0, and they change nothing."""
    from recur.tasks.base import Mean

    task, weights = weighted_task(classes)
    torch.manual_seed(0)
    labels = torch.tensor([0, 0, 1, 1, 0, 1, 0, classes - 1])
    logits = torch.randn(8, 1 if classes == 2 else classes)
    probability = task.probabilities(logits)[torch.arange(8), labels].double()
    weight = torch.tensor(weights, dtype=torch.float64)[labels]
    expected = float(-(weight * probability.log()).sum() / weight.sum())
    for size in (2, 3, 8):
        mean = Mean()
        for own, given in zip(logits.split(size), labels.split(size), strict=True):
            mean.update(task.loss(own, given), task._weight_of(given))
        assert float(mean.compute()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_weighted_and_smoothed_loss_is_torchs(data, classes, smoothing):
    task, weights = weighted_task(classes, label_smoothing=smoothing)
    torch.manual_seed(0)
    logits = torch.randn(8, 1 if classes == 2 else classes, requires_grad=True)
    every = torch.cat([torch.zeros(8, 1), logits], 1) if classes == 2 else logits
    labels = torch.tensor([0, 0, 1, 1, 0, 1, 0, classes - 1])
    expected = torch.nn.functional.cross_entropy(every, labels, torch.tensor(weights), label_smoothing=smoothing)
    torch.testing.assert_close(task.loss(logits, labels), expected)
    nothing = task.loss(logits, torch.zeros_like(labels))  # texts that count nothing
    assert nothing.item() == 0 and torch.autograd.grad(nothing, logits)[0].abs().max() == 0


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_loss_of_probabilities_is_the_mean_of_each_class_as_label(data, classes, smoothing, weighted):
    """Certain ones are labels; a text of which half is one class counts as half a text of each."""
    task, weights = weighted_task(classes, label_smoothing=smoothing)
    if not weighted:
        task._weights, weights = None, [1.0] * classes
    torch.manual_seed(0)
    logits = torch.randn(6, 1 if classes == 2 else classes, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 1, 0, 1, classes - 1])
    certain = torch.eye(classes)[labels]
    torch.testing.assert_close(task.loss(logits, labels, certain), task.loss(logits, labels))
    targets = torch.rand(6, classes).softmax(1)
    total = weight = 0.0
    for row in range(6):
        for label in range(classes):
            part = float(targets[row, label])
            one = torch.tensor([label])
            total += part * weights[label] * (task.loss(logits[[row]], one) if weights[label] else 0)
            if (
                smoothing and not weights[label]
            ):  # its share of the other classes, which no weighted mean of one text has
                every = torch.cat([torch.zeros(1, 1), logits[[row]]], 1) if classes == 2 else logits[[row]]
                spread = torch.tensor(weights) * smoothing / classes
                total += part * -(spread * every.log_softmax(1)[0]).sum()
            weight += part * weights[label]
    given = task.loss(logits, targets.argmax(1), targets)
    torch.testing.assert_close(given, total / weight, check_dtype=False, rtol=1e-5, atol=1e-6)
    assert task._weight_of(labels, targets) == pytest.approx(weight, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities_as_labels_are_weighed_in_any_precision(classes, dtype):
    """The trainer converts them with the rest of a batch: `trainer.precision=64-true`."""
    task, weights = weighted_task(classes)
    task.to(dtype)
    torch.manual_seed(0)
    targets = torch.rand(5, classes).softmax(1).to(dtype)
    text = pack_sequence([torch.randint(5, (3,)) for _ in range(5)])
    expected = sum(p * w for row in targets.tolist() for p, w in zip(row, weights, strict=True))
    assert task._weight_of(targets.argmax(1), targets) == pytest.approx(expected, rel=1e-5)
    task.log_step = lambda *args, **kwargs: None
    loss = task.training_step(TextBatch(text, targets.argmax(1), torch.arange(5), targets=targets), 0)
    logits = task(TextBatch(text, targets.argmax(1), torch.arange(5))).double()
    every = torch.cat([torch.zeros_like(logits), logits], 1) if classes == 2 else logits
    total = -(torch.tensor(weights).double() * targets.double() * every.log_softmax(1)).sum()
    assert loss.item() == pytest.approx(total.item() / expected, rel=0.02)
