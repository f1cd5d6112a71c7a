"""Text classification as a LightningModule: loss, metrics over whole splits, optimizer."""

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    BinaryConfusionMatrix,
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)
from torchmetrics.utilities import dim_zero_cat

from recur.errors import UserError
from recur.nn.classifier import Classifier
from recur.nn.packed import TextBatch
from recur.tasks.adversarial import adversarial_loss, virtual_adversarial_loss
from recur.tasks.base import Mean, Stepping, build_optimizer
from recur.tasks.schedulers import StepPlan

log = logging.getLogger("recur")  # whose lines a run prints
_FITTED_AT_ONCE = 1024  # texts
_MOST_TOKENS = 20_000_000  # on which the scores of n-grams are fitted: some two gigabytes


def _metrics(num_classes: int, prefix: str) -> MetricCollection:
    """The metrics of `recur.runs.metrics` that are computed from scores, by their names there."""
    if num_classes == 2:
        return MetricCollection(
            {
                "accuracy": BinaryAccuracy(),
                "balanced_accuracy": _BinaryBalancedAccuracy(),
                "f1": BinaryF1Score(),
                "auroc": _BinaryAuroc(),
            },
            prefix=prefix,
        )
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(num_classes, average="micro"),
            "balanced_accuracy": _MulticlassBalancedAccuracy(num_classes),
            "f1": MulticlassF1Score(num_classes, average="macro"),
            "auroc": _MulticlassAuroc(num_classes),
        },
        prefix=prefix,
    )


def score_metrics(probabilities: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Metrics of given probabilities, as a run's own are, and the mean negative log-likelihood of the labels.

    Args:
        probabilities: of each class of each text, `(texts, classes)`, at least two classes.
        labels: `(texts,)`.

    Returns:
        `loss` in nats, and the metrics by their names; None where one is not defined.
    """
    metrics = _metrics(probabilities.shape[1], "")
    metrics.update(probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities, labels)
    loss = -probabilities.gather(1, labels[:, None]).clamp_min(torch.finfo(probabilities.dtype).tiny).log().mean()
    values = {"loss": loss, **metrics.compute()}
    return {name: None if value.isnan() else float(value) for name, value in values.items()}


def _mean_recall(confusion: Tensor) -> Tensor:
    """Mean over the classes that occur of the share of their texts that is right; rows of `confusion` are true."""
    counts = confusion.sum(1)
    present = counts > 0
    return (confusion.diagonal()[present] / counts[present]).mean()


class _BinaryBalancedAccuracy(BinaryConfusionMatrix):
    def compute(self) -> Tensor:
        return _mean_recall(super().compute())


class _MulticlassBalancedAccuracy(MulticlassConfusionMatrix):
    def compute(self) -> Tensor:
        return _mean_recall(super().compute())


class _BinaryAuroc(BinaryAUROC):
    """Area under the ROC curve; NaN where one class alone was seen, since no two texts could be in the wrong order."""

    def compute(self) -> Tensor:  # type: ignore[override]
        labels = dim_zero_cat(self.target)
        return super().compute() if len(labels.unique()) == 2 else torch.tensor(math.nan, device=labels.device)


class _MulticlassAuroc(MulticlassAUROC):
    """Mean over the classes that occur of each one's area against all others, NaN where one class alone was seen."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average=None)

    def compute(self) -> Tensor:  # type: ignore[override]
        labels = dim_zero_cat(self.target)
        present = labels.unique()
        if len(present) < 2:
            return torch.tensor(math.nan, device=labels.device)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No positive samples in targets")  # of classes left out here
            each: Tensor = super().compute()
        return each[present].mean()


class SentimentTask(Stepping):
    """Trains and evaluates a text classifier.

    Two classes have one logit, of the second class; more have one each. Accuracy and F1 are over the whole split, not
    means of batches; F1 is of the second class for two classes and macro-averaged for more.

    Args:
        net: builds the network from `vocab_size`, `num_classes` and `vectors`.
        optimizer: builds the optimizer from the parameters; None where nothing is trained.
        scheduler: one of `recur.tasks.schedulers`'s schedules; None keeps the learning rate.
        label_smoothing: part of the target spread over all classes, in [0, 1).
        class_weights: weight of each class in the loss, or `balanced` for weights inverse to the classes' counts.
        adversarial: length of the worst change of the word vectors whose loss is added, as a part of the vectors'
            own length over a text (see `recur.tasks.adversarial`); 0 for none. A step then costs twice as much.
        virtual_adversarial: the same of the change that turns the probabilities most, for which texts need no labels;
            those without any are trained on by this alone. 0 for none; a step then costs nearly three times as much.
        layer_rate: learning rate of each layer as a part of that of the layer above: the head has the optimizer's own,
            the last recurrent layer this times as much, and so on down to the word vectors. Below 1 it keeps more of
            weights that another run brought (discriminative fine-tuning, Howard & Ruder 2018, who take 1 / 2.6).
        unfreeze_epochs: epochs after which one more layer learns: the head from the start, the last recurrent layer
            after so many, the one below it after twice as many, last the word vectors. 0 has all learn at once. Weights
            that another run brought then wait for a head that makes sense of them (gradual unfreezing, ibid., who take
            1). The epochs are those of the trainer, also where they are cut short, and a run that ends before the last
            layer's turn is refused. A step costs as much as ever.
        vocab_size: number of token ids.
        num_classes: number of classes.
        class_names: their names, in label order.
        class_counts: training texts of each class; needed for `balanced`.
        vectors: initial word vectors `(vocab_size, embedding_dim)`, or None.

    Raises:
        UserError: `label_smoothing` outside [0, 1), a negative `adversarial` or `virtual_adversarial`, both above 0, a
            `layer_rate` outside (0, 1], `unfreeze_epochs` that are no whole number of at least 0, one of the last two
            beside a network of unknown layers, or class weights not one a class.
    """

    family = "sentiment"

    def __init__(
        self,
        net: Callable[..., nn.Module],
        *,
        vocab_size: int,
        num_classes: int,
        class_names: Sequence[str],
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., dict[str, Any] | None] | None = None,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | str | None = None,
        adversarial: float = 0.0,
        virtual_adversarial: float = 0.0,
        layer_rate: float = 1.0,
        unfreeze_epochs: int = 0,
        class_counts: Sequence[int] | None = None,
        vectors: Tensor | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError("model.label_smoothing", label_smoothing, "must lie in [0, 1)")
        changes = {"adversarial": adversarial, "virtual_adversarial": virtual_adversarial}
        for name, strength in changes.items():
            if not 0 <= strength < math.inf:
                raise UserError(f"model.{name}", strength, "must be at least 0 and finite")
        if adversarial and virtual_adversarial:
            rule = "must be 0 where model.adversarial is above 0"
            raise UserError("model.virtual_adversarial", virtual_adversarial, rule, "set one of them to 0")
        if not 0 < layer_rate <= 1:
            raise UserError("model.layer_rate", layer_rate, "must be above 0 and at most 1")
        if type(unfreeze_epochs) is not int or unfreeze_epochs < 0:
            raise UserError("model.unfreeze_epochs", unfreeze_epochs, "must be a whole number of at least 0")
        self.net = net(vocab_size=vocab_size, num_classes=num_classes, vectors=vectors)
        for name, strength in changes.items():
            if strength and not isinstance(self.net, Classifier):
                rule = "needs a network that embeds and classifies in two steps, recur.nn.classifier.Classifier"
                raise UserError(f"model.{name}", strength, rule, "set it to 0")
        for name, by_layer, without in (("layer_rate", layer_rate, 1), ("unfreeze_epochs", unfreeze_epochs, 0)):
            if by_layer != without and not isinstance(self.net, Classifier):
                rule = "needs a network whose layers are known, recur.nn.classifier.Classifier"
                raise UserError(f"model.{name}", by_layer, rule, f"set it to {without}")
        self.adversarial, self.virtual_adversarial = adversarial, virtual_adversarial
        self.layer_rate, self.unfreeze_epochs = layer_rate, unfreeze_epochs
        self._taught = True  # whether the last batch of a training step had a label
        self.num_classes = num_classes
        self.class_names = list(class_names)
        if len(self.class_names) != num_classes:  # in a checkpoint, which can come from anybody
            raise UserError("class_names", self.class_names, f"must be a name for each of {num_classes} classes")
        self.label_smoothing = label_smoothing
        self._warned_of_one_class = False
        self._optimizer, self._scheduler = optimizer, scheduler
        self._weights = self._class_weights(class_weights, class_counts)
        self._class_counts = class_counts

        self.train_loss, self.train_accuracy = Mean(), Mean()
        self.val_loss, self.test_loss = Mean(), Mean()
        self.val_metrics = _metrics(num_classes, "val/")
        self.test_metrics = _metrics(num_classes, "test/")
        self.confusion = BinaryConfusionMatrix() if num_classes == 2 else MulticlassConfusionMatrix(num_classes)

    def _class_weights(self, weights: Sequence[float] | str | None, counts: Sequence[int] | None) -> Tensor | None:
        if weights is None:
            return None
        if isinstance(weights, str):
            if weights != "balanced":
                raise UserError("model.class_weights", weights, "must be numbers or `balanced`")
            if counts is None:  # a run opened for prediction: the loss is not wanted
                return None
            total = sum(counts)
            weights = [total / (self.num_classes * max(1, count)) for count in counts]
        if len(weights) != self.num_classes:
            raise UserError(
                "model.class_weights", list(weights), f"must be a weight for each of {self.num_classes} classes"
            )
        if wrong := [w for w in weights if not 0 <= w < math.inf]:
            raise UserError("model.class_weights", wrong[0], "must be at least 0 and finite")
        return torch.tensor([float(w) for w in weights])

    def _mean_class_weight(self) -> float:
        """Mean of the training texts' class weights; of the classes' where their counts are not known."""
        if self._weights is None:
            return 1.0
        counts = self._class_counts if self._class_counts and sum(self._class_counts) else [1] * self.num_classes
        each = zip(self._weights.tolist(), counts, strict=True)
        return float(sum(weight * count for weight, count in each)) / sum(counts) or 1.0

    def forward(self, batch: TextBatch) -> Tensor:
        """Logits, `(batch, 1)` for two classes, else `(batch, classes)`."""
        logits: Tensor = self.net(batch.text)
        return logits

    def flop_a_token(self) -> float:
        """See `Stepping`; an adversarial step passes over its batch twice, and once wants the vectors' gradients.

        A virtual adversarial one passes over it thrice: once back to the vectors alone, once back where it has labels.
        """
        once = super().flop_a_token()
        if self.virtual_adversarial:
            forward = 2.0 * self._multiplications
            return once + 2 * forward + (once if self._taught else forward)
        return 2 * once + 2.0 * self._inputs_without_gradient() if self.adversarial else once

    def _multiplications_a_text(self) -> int:
        return self.net.head.weight.numel() if isinstance(self.net, Classifier) else 0

    def prepare(self, data: Any) -> None:
        """Fit the scores of n-grams on the training texts, for a network that has them.

        Args:
            data: with `texts` and `labels` of its split `train`, as `SentimentData` has them.
        """
        if not isinstance(self.net, Classifier) or self.net.ngrams is None:
            return
        texts, labels = data.texts("train"), data.labels("train")

        rows = np.arange(len(texts))
        tokens = int(texts.lengths.sum())
        share = _MOST_TOKENS / max(1, tokens)
        if share < 1:  # of a large corpus as many texts as memory is meant for, drawn evenly
            rows = np.sort(np.random.default_rng(0).permutation(len(texts))[: max(1, int(share * len(texts)))])

        def batches() -> Iterator[tuple[PackedSequence, Tensor]]:
            order = rows[np.argsort(-texts.lengths[rows], kind="stable")]
            for first in range(0, len(order), _FITTED_AT_ONCE):
                packed, placed = texts.pack(order[first : first + _FITTED_AT_ONCE])
                yield packed, torch.from_numpy(labels[placed])

        self.net.ngrams.fit(batches(), tokens, self._weights)
        number, longest = len(self.net.ngrams.known), int(self.net.ngrams.longest)
        rank_zero_only(log.info)(
            "n-grams    %s of up to %d tokens, fitted before the network is trained", f"{number:,}", longest
        )

    def loss(self, logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats, with label smoothing and class weights.

        With weights the mean is the weighted one, sum(w l) / sum(w), as in `torch.nn.CrossEntropyLoss`; 0 where all
        labels have the weight 0. Of several processes each has its own mean, which counts by its number of texts.

        Args:
            logits: as `forward` gives them.
            labels: class of each text, `(batch,)`.
            targets: probability of each class in the place of `labels`, `(batch, classes)`, whose loss is
                -sum(w p log q); a text weighs sum(w p).
        """
        weights = None if self._weights is None else self._weights.to(logits)
        smoothing = self.label_smoothing if self.training else 0.0  # a figure is the likelihood of the labels
        if targets is not None or self.num_classes > 2 or (weights is not None and smoothing):
            every = torch.cat([torch.zeros_like(logits), logits], 1) if self.num_classes == 2 else logits
            wanted = labels if targets is None else targets.to(every.dtype)
            total = F.cross_entropy(every, wanted, weights, label_smoothing=smoothing, reduction="sum")
        else:
            target = labels.to(logits.dtype) * (1 - smoothing) + smoothing / 2
            each = F.binary_cross_entropy_with_logits(logits.squeeze(1), target, reduction="none")
            total = (each if weights is None else weights[labels] * each).sum()
        weight = self._weight_of(labels, targets)
        return total / weight if weight > 0 else total * 0

    def _weight_of(self, labels: Tensor, targets: Tensor | None = None) -> float:
        """What texts with these labels, or probabilities of classes, count for in a mean of losses."""
        if self._weights is None:
            return float(len(labels))
        if targets is None:
            return float(self._weights[labels.cpu()].sum())
        targets = targets.cpu().to(self._weights)  # the trainer's precision has converted them, with all that it moves
        return float((targets @ self._weights).sum())

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probability of every class, `(batch, classes)`."""
        if self.num_classes > 2:
            return logits.softmax(1)
        positive = logits.sigmoid()
        return torch.cat([1 - positive, positive], dim=1)

    def training_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        """One step on one batch of texts."""
        if self.virtual_adversarial:
            return self._virtual_adversarial_step(batch, batch_idx)
        if batch.labelled < 1:
            rule = "trains on texts without labels, and model.virtual_adversarial=0 makes nothing of them"
            raise UserError("data.train_on_unlabelled", rule=rule, remedy="set model.virtual_adversarial=.02")
        loss_of = self._loss_of(batch.targets)
        if self.adversarial:
            scaler = None if self._trainer is None else getattr(self._trainer.precision_plugin, "scaler", None)
            parts = (batch.text, batch.labels, loss_of, self.adversarial, scaler and scaler.scale)
            logits, loss, changed = adversarial_loss(self.net, *parts)  # type: ignore[arg-type]
            self.log_step("train/adversarial_loss", changed.detach(), batch_size=len(batch.labels))
        else:
            logits = self(batch)
            loss = loss_of(logits, batch.labels)
            changed = torch.zeros_like(loss)
        self._count(logits, loss, batch.labels, batch.targets)
        return self.of_group((loss + changed) * batch.scale, batch_idx)

    def _virtual_adversarial_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        """The loss of the texts that have labels, and what a change of the word vectors does to all."""
        assert isinstance(self.net, Classifier)
        logits, changed = virtual_adversarial_loss(self.net, batch.text, self.virtual_adversarial)
        size = len(batch.labels)
        self.log_step("train/virtual_adversarial_loss", changed.detach(), batch_size=size)
        labels, targets, weight = batch.labels, batch.targets, 1.0
        if batch.labelled < 1:
            rows = (labels >= 0).nonzero().squeeze(1)
            logits, labels, targets = logits[rows], labels[rows], None if targets is None else targets[rows]
            # Not the mean over this batch's: a labelled text counts as its class does, whatever it is among
            weight = self._weight_of(labels, targets) / (self._mean_class_weight() * size * batch.labelled)
        self._taught = len(labels) > 0
        if self._taught:
            loss = self._loss_of(targets)(logits, labels)
            self._count(logits, loss, labels, targets)
            changed = loss * weight + changed
        else:  # torchmetrics computes anew, which several processes must do together, only after an update
            self.train_loss.update_with_nothing()
            self.train_accuracy.update_with_nothing()
        return self.of_group(changed * batch.scale, batch_idx)

    def _loss_of(self, targets: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss of logits and labels; one of somebody's own need not know of probabilities."""
        return self.loss if targets is None else partial(self.loss, targets=targets)

    def _count(self, logits: Tensor, loss: Tensor, labels: Tensor, targets: Tensor | None) -> None:
        """Add labelled texts to the epoch's means, and log their own."""
        with torch.no_grad():
            guess = (logits.squeeze(1) > 0).long() if self.num_classes == 2 else logits.argmax(1)
            accuracy = (guess == labels).float().mean()
        size = len(labels)
        self.train_loss.update(loss.detach(), self._weight_of(labels, targets))
        self.train_accuracy.update(accuracy, size)
        self.log_step("train/loss", loss.detach(), prog_bar=True, batch_size=size)
        self.log_step("train/accuracy", accuracy, prog_bar=True, batch_size=size)

    def on_after_backward(self) -> None:
        """Drop the gradients of layers whose epoch has not come: an optimizer leaves alone what has none.

        Processes that train together must each have gradients of the same parameters to add up, so all are computed.
        They go before float16's scaler looks at them, and before they are clipped.
        """
        if self.unfreeze_epochs:
            assert isinstance(self.net, Classifier)
            for layer in self.net.layers()[self.trainer.current_epoch // self.unfreeze_epochs + 1 :]:
                for parameter in layer:
                    parameter.grad = None

    def on_train_epoch_end(self) -> None:
        """Log the epoch's means over all its texts."""
        self.log("train/epoch_loss", self.train_loss)
        self.log("train/epoch_accuracy", self.train_accuracy)

    def epoch_figures(self) -> dict[str, Tensor]:
        """See `Stepping`."""
        return {
            "train/epoch_loss": self.train_loss.compute(),
            "train/epoch_accuracy": self.train_accuracy.compute(),
        }

    def training_metrics(self) -> list[Mean]:
        """The epoch's means."""
        return [self.train_loss, self.train_accuracy]

    def _evaluate(self, batch: TextBatch, mean_loss: Mean, metrics: MetricCollection) -> Tensor:
        logits = self(batch).float()
        mean_loss.update(self.loss(logits, batch.labels), self._weight_of(batch.labels))
        exact = logits.double()  # in float32 every logit above 17 would be the same score, 1
        scores = exact.sigmoid().squeeze(1) if self.num_classes == 2 else exact.softmax(1)
        metrics.update(scores, batch.labels)
        return scores

    def validation_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        """Score one batch of the validation split; gives the scores to callbacks."""
        scores = self._evaluate(batch, self.val_loss, self.val_metrics)
        self.confusion.update(scores, batch.labels)
        self.log("val/loss", self.val_loss, batch_size=len(batch.labels))
        self.log_dict(self.val_metrics, batch_size=len(batch.labels))
        return scores

    def on_validation_epoch_start(self) -> None:
        """Begin an empty confusion matrix."""
        self.confusion.reset()

    def on_validation_epoch_end(self) -> None:
        """Warn once where what was validated holds one class, as few batches of a sorted split do."""
        present = (self.confusion.compute().sum(1) > 0).nonzero().flatten().tolist()  # adds up over ranks
        if len(present) == 1 and not self.trainer.sanity_checking and not self._warned_of_one_class:
            self._warned_of_one_class = True
            if self.trainer.is_global_zero:
                log.warning(
                    "every text that was validated is %r: accuracy says nothing about the other classes; raise "
                    "trainer.limit_val_batches, or give a validation split with all classes",
                    self.class_names[present[0]],
                )

    def test_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        """Score one batch of the test split; gives the scores to callbacks."""
        scores = self._evaluate(batch, self.test_loss, self.test_metrics)
        self.confusion.update(scores, batch.labels)
        self.log("test/loss", self.test_loss, batch_size=len(batch.labels))
        self.log_dict(self.test_metrics, batch_size=len(batch.labels))
        return scores

    def on_test_epoch_start(self) -> None:
        """Begin an empty confusion matrix."""
        self.confusion.reset()

    def configure_optimizers(self) -> Any:
        """Optimizer over what is trainable, and its schedule."""
        assert self._optimizer is not None, "a task without an optimizer cannot be trained"
        # What begins to learn in another epoch is a group of its own: torch's fused SGD fails on a group of which
        # only a part has momentum.
        apart = self.layer_rate < 1 or self.unfreeze_epochs
        layers = self.net.layers() if apart else [self.parameters()]  # type: ignore[operator]
        optimizer = build_optimizer(self._optimizer, *layers)
        for depth, group in enumerate(optimizer.param_groups):
            group["lr"] = group["lr"] * self.layer_rate**depth
        schedule = self._scheduler and self._scheduler(optimizer, self.plan_steps())
        if self.unfreeze_epochs and self._plan is None and self._ends():
            self.plan_steps()
        if self.unfreeze_epochs and self._plan is not None:
            self._check_unfrozen(optimizer, self._plan)
        return {"optimizer": optimizer, "lr_scheduler": schedule} if schedule else optimizer

    def _ends(self) -> bool:
        """Whether the steps of the whole run can be counted, which without a schedule nobody need ask for."""
        trainer = self.trainer
        known = getattr(trainer, "datamodule", None) is not None
        return known and ((trainer.max_epochs or -1) >= 0 or trainer.max_steps >= 0)

    def _check_unfrozen(self, optimizer: torch.optim.Optimizer, plan: StepPlan) -> None:
        """Refuse layers, which are the optimizer's groups, that would learn in no epoch of the run."""
        lowest = max((depth for depth, group in enumerate(optimizer.param_groups) if group["params"]), default=0)
        first = lowest * self.unfreeze_epochs
        if first * plan.per_epoch >= plan.total and first and not plan.tried:
            rule = f"has the lowest layer begin after {first} epochs, and the run ends with epoch "
            rule += str(math.ceil(plan.total / plan.per_epoch))
            raise UserError("model.unfreeze_epochs", self.unfreeze_epochs, rule, "lower it, or train for more epochs")
