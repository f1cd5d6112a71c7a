"""Several classifiers as one, whose probabilities are averaged: seeds, or runs of other recipes on the same classes."""

from collections.abc import Collection, Iterable, Iterator, Sequence, Sized
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch

from recur.config import data_settings
from recur.data.tables import as_file, is_table
from recur.errors import UserError
from recur.inference import classification, evaluation
from recur.inference.classification import SORTED_TOGETHER, Prediction
from recur.inference.run import Run, load
from recur.runs import precision
from recur.tasks.sentiment import score_metrics

if TYPE_CHECKING:
    import datasets
    import pandas as pd  # type: ignore[import-untyped]


class Ensemble:
    """Sentiment runs of the same classes, whose probabilities of a text are averaged (Hansen & Salamon 1990).

    Each run reads a text with its own tokenizer, cut as its own data is cut.

        both = recur.Ensemble([recur.load("outputs/a"), recur.load("outputs/b")])
        both.predict(["This film is great"])[0].probability

    Args:
        runs: at least two, open; `recur.load` opens one. The first one's order of classes counts, and its data is what
            `evaluate` reads where no other is named.

    Raises:
        UserError: fewer than two runs, a language run, or runs of other classes.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        if len(runs) < 2:
            raise UserError("an ensemble", len(runs), "must be at least two runs")
        self.runs = list(runs)
        for run in self.runs:
            run.require("sentiment", "Ensemble")
        self.class_names = classification.class_names(self.runs[0])
        self._orders = [self._order(run) for run in self.runs]

    def _order(self, run: Run) -> list[int]:
        """Where the classes of the first run are in another's."""
        names = classification.class_names(run)
        if sorted(names) != sorted(self.class_names):
            rule = f"has the classes {', '.join(names)}, and {self.runs[0].checkpoint} {', '.join(self.class_names)}"
            raise UserError(str(run.checkpoint), rule=rule, remedy="average runs of the same classes")
        return [names.index(name) for name in self.class_names]

    @overload
    def predict(self, texts: Collection[str]) -> list[Prediction]: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, texts: Iterable[str]) -> Iterator[Prediction]: ...
    def predict(self, texts: Iterable[str]) -> list[Prediction] | Iterator[Prediction]:
        """Label texts, as `recur.inference.run.Run.predict` does.

        Args:
            texts: several texts; an iterable without a length is read as the answers are taken.

        Returns:
            One prediction a text, in order; its numbers of tokens are those of the first run.

        Raises:
            UserError: a text without tokens.
            TypeError: one text or a whole table in place of several texts.
        """
        classification.check_several(texts)
        return self.classify(list(texts)) if isinstance(texts, Sized) else self._stream(texts)

    def _stream(self, texts: Iterable[str]) -> Iterator[Prediction]:
        stream, before = iter(texts), 0
        while some := list(islice(stream, SORTED_TOGETHER)):
            yield from self.classify(some, before)
            before += len(some)

    def classify(self, texts: Sequence[str], before: int = 0) -> list[Prediction]:
        """Label texts, all at once; see `predict`, and `recur.inference.classification.classify` for `before`."""
        if not texts:
            return []
        answers = [classification.classify(run, texts, before) for run in self.runs]
        rows = [[[answer.probabilities[name] for name in self.class_names] for answer in given] for given in answers]
        means = np.asarray(rows).mean(0)  # (runs, texts, classes) -> (texts, classes)
        return [
            replace(
                first,
                label=self.class_names[best],
                index=int(best),
                probabilities=dict(zip(self.class_names, row, strict=True)),
            )
            for first, best, row in zip(answers[0], means.argmax(1), means.tolist(), strict=True)
        ]

    def lacks_tokens(self, texts: Sequence[str]) -> list[bool]:
        """Whether one of the runs has no token for each text."""
        lengths = [[len(ids) for ids in run.tokenizer.encode_batch(list(texts))] for run in self.runs]
        return [not all(row) for row in zip(*lengths, strict=True)]

    def evaluate(
        self,
        data: "str | Path | pd.DataFrame | datasets.Dataset | None" = None,
        split: str | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """Metrics on the first run's own data, or on other data; arguments and errors as in `Run.evaluate`.

        How a text is cut (`max_length`, `keep`) is each run's own and cannot be changed.

        Returns:
            Metrics by split, as of a run, `loss` being the mean negative logarithm of the averaged probability of a
            text's class; `members` has each run's own.
        """
        words = data_settings.words(settings)
        check_settings(words)
        place = as_file(data, "data") if is_table(data) else data
        with evaluation.ONE_AT_A_TIME:
            opened = evaluation.open_data(self.runs[0], None if place is None else str(place), words)
            return {name: self.evaluate_split(opened, name) for name in evaluation.chosen_splits(opened, split)}

    def evaluate_split(self, data: Any, split: str) -> dict[str, Any]:
        """Metrics of one split of an opened data module of the first run; see `evaluate`."""
        labels = data.labels(split)
        totals = np.zeros((len(labels), len(self.class_names)))
        members = {}
        for run, order in zip(self.runs, self._orders, strict=True):
            texts = (data.text(split, row) for row in range(len(labels)))
            answers = classification.classify_stream(run, texts)
            own = np.array([list(answer.probabilities.values()) for answer in answers])[:, order]  # (texts, classes)
            figures = score_metrics(torch.from_numpy(own), torch.from_numpy(labels))
            members[str(run.checkpoint)] = {name: figures[name] for name in ("loss", "accuracy")}
            totals += own
        mean = totals / len(self.runs)
        confusion = np.zeros((len(self.class_names),) * 2, dtype=int)
        np.add.at(confusion, (labels, mean.argmax(1)), 1)
        return {
            **score_metrics(torch.from_numpy(mean), torch.from_numpy(labels)),
            "texts": len(labels),
            "confusion": confusion.tolist(),
            "classes": evaluation.by_class(confusion.tolist(), self.class_names),
            "class_names": self.class_names,
            "members": members,
        }


def mistakes(model: Run | Ensemble, data: Any, split: str) -> Iterator[dict[str, Any]]:
    """The texts of a split that a classifier labels otherwise than the data does.

    Args:
        model: a sentiment run, which reads the texts cut as `data` has them, or several as one, each of which cuts them
            as it was trained to: as they are evaluated.
        data: opened for it.
        split: with labels.

    Yields:
        Split, row in its source, text, label of the data, label and probability that are predicted, and the probability
        of the data's label.
    """
    labels, names = data.labels(split), [str(name) for name in data.class_names]
    if isinstance(model, Ensemble):
        answers = model.predict(data.text(split, row) for row in range(len(labels)))
        scores = np.array([list(answer.probabilities.values()) for answer in answers])
    else:
        device, (chosen, _) = model.task.device, precision.of_evaluation(model.config, model.task.device)
        with torch.autocast(device.type, torch.bfloat16, enabled=chosen == precision.LOW):  # as it is evaluated
            scores, _ = classification.read(model, data.texts(split))
    predicted = scores.argmax(1)  # (texts, classes) -> (texts,)
    for row in np.flatnonzero((labels >= 0) & (predicted != labels)).tolist():
        yield {
            "split": split,
            "row": data.source_row(split, row),
            "text": data.text(split, row),
            "label": names[labels[row]],
            "predicted": names[predicted[row]],
            "probability": float(scores[row, predicted[row]]),
            "of_label": float(scores[row, labels[row]]),
        }


def ensemble_of(run: Run, others: Sequence[str], device: str) -> Ensemble | None:
    """A run and others, by their paths, as one classifier; None where there are no others.

    Raises:
        UserError: one cannot be opened, or they cannot be averaged.
    """
    return Ensemble([run, *(load(other, device) for other in others)]) if others else None


def check_settings(words: Sequence[str]) -> None:
    """Refuse `key=value` changes to data settings that each run of an ensemble has for itself.

    Raises:
        UserError: one of them.
    """
    for word in words:
        key, _, value = word.removeprefix("data.").partition("=")
        if key in ("max_length", "keep"):
            rule = "cannot be changed for an ensemble: each run cuts texts as it was trained to"
            raise UserError(key, value, rule, "leave it out")
