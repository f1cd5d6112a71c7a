"""A trained model with all that can be asked of it: `recur.load(path)`.

run = recur.load("outputs/...")
run.predict(["This film is great"])[0].label
run.explain("This film is great").contributions
run.evaluate(split="test")["test"]["accuracy"]
"""

from collections.abc import Collection, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

from recur import cli
from recur.config import data_settings
from recur.data.tables import as_file, is_table
from recur.errors import UserError
from recur.inference import classification, evaluation, language
from recur.inference.classification import Explainer, Explanation, Prediction
from recur.inference.language import Continuation, Sampling, TokenScores
from recur.runs import journal
from recur.runs import run as runs

if TYPE_CHECKING:
    import datasets
    import pandas as pd  # type: ignore[import-untyped]

    from recur.inference.curves import Curves, Others


@dataclass(eq=False)
class Run(runs.Run):
    """A trained model, open for use; made by `load`.

    Besides the attributes of `recur.runs.run.Run` (`checkpoint`, `folder`, `config`, `data`, `tokenizer`, `task`), it
    has `family`: `sentiment` or `language`. A method of the other family raises `UserError`.
    """

    # ---- sentiment runs
    @overload
    def predict(self, texts: Collection[str]) -> list[Prediction]: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, texts: Iterable[str]) -> Iterator[Prediction]: ...
    def predict(self, texts: Iterable[str]) -> list[Prediction] | Iterator[Prediction]:
        """Label texts, in batches of about equally many tokens.

        Args:
            texts: several texts, such as a list or a column of a DataFrame, or any other iterable, which is read as the
                answers are taken.

        Returns:
            One prediction a text, in order: a list for what has a length, else an iterator.

        Raises:
            UserError: a text without tokens, or a language run.
            TypeError: one text or a whole table in place of several texts.
        """
        classification.check_several(texts)
        self.require("sentiment", "predict")
        answers = classification.classify_stream(self, texts)
        return list(answers) if isinstance(texts, Sized) else answers

    def explain(self, text: str, label: str | None = None) -> Explanation:
        """What each token of a text contributed to a class, by integrated gradients.

        Args:
            text: with at least one token and at most `recur.inference.classification.EXPLAIN_TOKENS`.
            label: name of the class, with more than two classes; None for the predicted one.

        Raises:
            UserError: no such class, a text that is too long, or a language run.
        """
        self.require("sentiment", "explain")
        names = classification.class_names(self)
        if label is None:
            return self._explainer.explain(text, classification.classify(self, [text])[0].index)
        if label not in names:
            raise UserError("label", label, f"must be one of {', '.join(names)}")
        return self._explainer.explain(text, names.index(label))

    @cached_property
    def _explainer(self) -> Explainer:
        return Explainer(self)

    # ---- language runs
    def token_nll(self, text: str) -> TokenScores:
        """How likely each token of a text is, in nats and as a rank, from what stands before it.

        Raises:
            UserError: a text without tokens, or a sentiment run.
        """
        self.require("language", "token_nll")
        return language.token_nll(self, text)

    def generate(self, prompt: str = "", **sampling: Any) -> list[str]:
        """Continue a text.

        Args:
            prompt: text to begin with; empty begins where a text begins.
            sampling: `tokens`, `samples`, `greedy`, `temperature`, `top_k`, `top_p`, `no_unknown`, `seed`, `beams`:
                see `recur.inference.language.Sampling`.

        Returns:
            Each sample, prompt included.

        Raises:
            UserError: a value out of its range, or a sentiment run.
        """
        self.require("language", "generate")
        return language.generate(self, prompt, Sampling(**sampling))

    def beam_search(
        self, prompt: str = "", *, beams: int = 4, tokens: int = 20, no_unknown: bool = False
    ) -> list[Continuation]:
        """The likeliest continuations that a beam finds, best first, with their log-probabilities.

        Arguments, result and errors are those of `recur.inference.language.beam_search`.
        """
        self.require("language", "generate")
        return language.beam_search(self, prompt, beams, tokens, no_unknown=no_unknown)

    # ---- both families
    def features(self, texts: Collection[str]) -> NDArray[np.float32]:
        """Texts as vectors, for another program: to cluster, to search, or for a linear model.

        A sentiment run gives what its last, linear layer reads. A language run gives last state, maximum and mean of
        its top layer's states, which is what a classifier reads that begins with its weights.

        Args:
            texts: one or more, such as a list or a column of a DataFrame; all are held in memory.

        Returns:
            One row a text, in order, `(texts, width)`; none depends on the other texts.

        Raises:
            UserError: no text, or one without tokens.
            TypeError: one text or a whole table in place of several texts.
        """
        classification.check_several(texts, "features")
        several = list(texts)
        if not several:
            raise UserError("texts", rule="are none", remedy="give at least one")
        family = classification if self.family == "sentiment" else language
        return family.features(self, several)

    def evaluate(
        self,
        data: "str | Path | pd.DataFrame | datasets.Dataset | None" = None,
        split: str | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """Metrics on the run's own data, or on other data; a second thread that asks waits.

        Args:
            data: file, folder, pandas DataFrame or `datasets.Dataset`; None for the run's own.
            split: `train`, `val` or `test`; None for val and test, or all there is.
            settings: data settings to change, such as `eval_batch_size=256` or `text_column="review"`.

        Returns:
            Metrics by split: `{"test": {"accuracy": .9, ...}}`.

        Raises:
            UserError: the data cannot be read, or the run's own has changed.
        """
        place = as_file(data, "data") if is_table(data) else data
        words = data_settings.words(settings)
        with evaluation.ONE_AT_A_TIME:
            opened = evaluation.open_data(self, None if place is None else str(place), words)
            splits = evaluation.chosen_splits(opened, split)
            return {name: evaluation.evaluate_split(self, opened, name) for name in splits}

    @property
    def metrics(self) -> dict[str, Any]:
        """What the run wrote into `metrics.json`; empty where there is none, or where it is of other weights.

        It is of the best checkpoint, which the run's folder is opened with; `last.ckpt` has none.
        """
        return self.record() or {}

    @property
    def history(self) -> "pd.DataFrame":
        """The run's validations as a DataFrame, one row each: step, epoch, seconds, and every metric."""
        import pandas as pd  # takes half a second, and nothing else here wants it

        entries = journal.read_validations(self.place(self.folder)) if self.folder else []
        rows = [
            {key: value for key, value in entry.items() if key != "metrics"} | entry["metrics"] for entry in entries
        ]
        return pd.DataFrame(rows)

    def plot(self, *names: str, reference: "Others | None" = None) -> "Curves":
        """Draw the training curves; a notebook shows them, `run.plot().savefig("curves.png")` writes them.

        Args:
            names: metrics without their split, such as `loss` or `f1`, a panel each; none for the loss and the metric
                that chose the best checkpoint.
            reference: curves from elsewhere to draw beside the run's own, by metric without its split and by name:
                `{"accuracy": {"paper": [(1, 0.63), (2, 0.71)]}}`, the epochs and values.

        Returns:
            A matplotlib figure, drawn without pyplot, so that nothing global changes.

        Raises:
            UserError: the run has no validations, or none has such a metric.
        """
        from recur.inference import curves  # brings matplotlib

        monitor, mode = (str(self.config.get(key, "")) for key in ("monitor", "mode"))
        return curves.draw(self.history, names, monitor, mode, reference)

    def _repr_html_(self) -> str:
        """What a notebook shows: the main settings, the figures, and all settings to unfold."""
        from recur.inference import summary

        count = sum(parameter.numel() for parameter in self.task.parameters())
        return summary.page(self.folder or self.checkpoint, self.config, self.metrics, self.family, count)


def usable_device(name: str) -> torch.device:
    """The device of this name, once it has computed something.

    Raises:
        UserError: it cannot be used.
    """
    try:
        device = torch.device(name)
        torch.ones(2, device=device, dtype=torch.float64).sum().item()  # Apple's GPUs have no float64: a TypeError
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:  # an assertion without CUDA
        first = next(iter(str(error).splitlines()), "it is not there")
        raise UserError(f"--device {name}", rule="cannot be used", remedy=first) from None
    return device


def load(path: str | Path, device: str = "cpu", *, trust: str | Sequence[str] = ()) -> Run:
    """Open a run for use. Nothing in it is run as code: what its config names must be a class of this package.

    Args:
        path: run folder, checkpoint, or folder as `export --format safetensors` writes it.
        device: `cpu`, `cuda`, `cuda:1`, ...
        trust: one or more packages of your own whose classes runs may name as well, in this process from now on.

    Raises:
        UserError: there is no run, it is damaged, it names foreign code, or the device cannot be used.
    """
    cli.trust([trust] if isinstance(trust, str) else trust, "trust")
    place = usable_device(device)
    run = Run.open(path)
    _check_reading(run)
    run.require_finite()
    run.task.to(place).requires_grad_(False)
    return run


def _check_reading(run: Run) -> None:
    """Refuse settings of how texts are cut that no run writes."""
    settings = run.config["data"]
    length, keep = settings.get("max_length"), settings.get("keep", "head")
    where = f"{run.checkpoint}: data"
    if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 1):
        raise UserError(f"{where}.max_length", length, "must be null or a whole number of at least 1")
    if keep not in ("head", "tail", "both"):
        raise UserError(f"{where}.keep", keep, "must be head, tail or both")
