"""Using a classifier: predictions, integrated gradients."""

import argparse
import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from recur.data.buckets import Texts
from recur.inference.io import Given, _print_json, _refuse, _write_page
from recur.render import Shaded, page, printable, shortened, terminal
from recur.runs.run import Run

BATCH_TOKENS = 32768  # rows a forward pass, padding-free; a longer text is a batch of its own
EXPLAIN_TOKENS = 5000  # integrated gradients read the text some hundred times
PATH_POINTS = 16  # on each piece of the path
PATH_PIECES = 200  # at most
CLIFF = 1e-9  # width of a piece that is not halved further
TOLERANCE = 0.005  # of the logits' difference, or of 1 where that is less


# ------------------------------------------------------------------------------------------------------- sentiment runs
@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one text.

    Attributes:
        text: as given.
        label: number of the most probable class.
        probabilities: of each class, `(classes,)`.
        tokens: how many tokens the text has.
        unknown: how many of the tokens read are outside the vocabulary.
        read: how many tokens were read; fewer than `tokens` where the run cuts long texts.
    """

    text: str
    label: int
    probabilities: list[float]
    tokens: int
    unknown: int
    read: int


def _cut(arrays: "Sequence[NDArray[np.int32]]", run: "Run") -> "Texts":
    """The texts' token arrays, cut as the run's data cuts them."""
    import numpy as np

    from recur.data.buckets import Texts
    from recur.data.cache import Ragged

    offsets = np.zeros(len(arrays) + 1, dtype=np.int64)
    np.cumsum([len(array) for array in arrays], out=offsets[1:])
    settings = run.config["data"]
    return Texts(
        Ragged(np.concatenate(arrays), offsets),
        max_length=settings.get("max_length"),
        keep=settings.get("keep", "head"),
    )


def classify(run: "Run", texts: Sequence[str]) -> list[Prediction]:
    """Label texts with a sentiment run.

    Args:
        run: an open sentiment run.
        texts: each with at least one token.

    Returns:
        One prediction a text, in the order given; none depends on the other texts.
    """
    import numpy as np
    import torch

    arrays = run.tokenizer.encode_batch(list(texts))
    cut = _cut(arrays, run)
    order = np.argsort(-cut.lengths, kind="stable")
    total = np.cumsum(cut.lengths[order])
    scores = np.empty((len(texts), run.task.num_classes))
    first = 0
    device = run.task.device
    with torch.inference_mode():
        while first < len(order):
            before = total[first - 1] if first else 0
            end = max(first + 1, int(np.searchsorted(total, before + BATCH_TOKENS, side="right")))
            packed, rows = cut.pack(order[first:end])
            scores[rows] = run.task.probabilities(run.task.net(packed.to(device)).double()).cpu().numpy()
            first = end
    found = []
    for index, (text, array) in enumerate(zip(texts, arrays, strict=True)):
        unknown = int((cut[index] == run.tokenizer.unk_id).sum())
        found.append(
            Prediction(
                text, int(scores[index].argmax()), scores[index].tolist(), len(array), unknown, int(cut.lengths[index])
            )
        )
    return found


@dataclass(frozen=True)
class Explanation:
    """What each token added to a logit.

    Attributes:
        tokens: the tokens read.
        unknown: whether each is outside the vocabulary.
        contributions: what each added, same length.
        logit: of the text.
        baseline: logit of the same text with every word vector zero.
        towards: name of the class that positive contributions favour.
        against: name of the class that negative ones favour; None with more than two classes.
    """

    tokens: list[str]
    unknown: list[bool]
    contributions: list[float]
    logit: float
    baseline: float
    towards: str
    against: str | None

    @property
    def gap(self) -> float:
        """How far the contributions' sum is from the whole difference, `logit - baseline`."""
        return sum(self.contributions) - (self.logit - self.baseline)


def integrated_gradients(net: "nn.Module", text: "PackedSequence", target: int) -> "tuple[Tensor, float, float]":
    """Contribution of each token of one text to a logit (Sundararajan, Taly & Yan 2017).

    The gradient with respect to the word vectors, averaged along the straight path from zero vectors to the text's
    own, times these vectors, summed over each vector. The contributions add up to the difference of the logits: so
    they do on every piece of the path, and the piece on which they are farthest from it is halved until the sum is
    within `TOLERANCE`. Those are the places where a pooled maximum passes from one step to another and, in long texts,
    where the state tips over: cliffs no float can resolve. What is left of a cliff is divided among the tokens as the
    gradient at its edge divides it.

    Args:
        net: a classifier with `embed` and `classify`, in evaluation mode, best in float64: cliffs can be that narrow.
        text: one packed text.
        target: which logit.

    Returns:
        The contributions `(tokens,)`, the logit, and the logit at the baseline.
    """
    import torch
    from captum.attr import IntegratedGradients
    from torch import Tensor
    from torch.nn.utils.rnn import PackedSequence

    tokens = len(text.data)
    vectors = net.embed(text).detach()  # type: ignore[operator]  # (tokens, embedding_dim)

    def logits(points: "Tensor") -> "Tensor":  # (points, tokens, embedding_dim) -> (points, classes)
        layout = PackedSequence(points[:, :, 0].T.flatten(), torch.full((tokens,), len(points)))
        result: Tensor = net.classify(points.transpose(0, 1).flatten(0, 1), layout)  # type: ignore[operator]
        return result

    def height(place: float) -> float:
        with torch.no_grad():
            return float(logits(place * vectors[None])[0, target].double())

    baseline, logit = height(0.0), height(1.0)
    allowed = TOLERANCE * max(1.0, abs(logit - baseline))
    method = IntegratedGradients(logits)
    together = max(1, BATCH_TOKENS // tokens)

    def piece(start: float, low: float, end: float, high: float) -> tuple[float, float, float, float, float, Tensor]:
        found = method.attribute(
            end * vectors[None],
            baselines=start * vectors[None],
            target=target,
            n_steps=PATH_POINTS,
            internal_batch_size=together,
        )
        values = found[0].double().sum(1)  # (tokens, embedding_dim) -> (tokens,)
        told = float(values.sum())
        if end - start < CLIFF and told:
            values, told = values * ((high - low) / told), high - low
        return abs(told - (high - low)), start, low, end, high, values

    pieces = [piece(0.0, baseline, 1.0, logit)]
    while sum(one[0] for one in pieces) > allowed and len(pieces) < PATH_PIECES:
        worst = max(range(len(pieces)), key=lambda index: pieces[index][0])
        _, start, low, end, high, _ = pieces.pop(worst)
        middle = (start + end) / 2
        level = height(middle)
        pieces += [piece(start, low, middle, level), piece(middle, level, end, high)]
    values = torch.stack([one[-1] for one in pieces]).sum(0)
    return values, logit, baseline


def explain(run: "Run", text: str, label: int) -> Explanation:
    """What each token of a text contributed.

    With two classes to the one logit, the log-odds of the second class; with more to the logit of `label`.

    Raises:
        ValueError: more tokens than `EXPLAIN_TOKENS`.
    """
    import numpy as np

    ids = run.tokenizer.encode_batch([text])[0]
    cut = _cut([ids], run)
    if cut.lengths[0] > EXPLAIN_TOKENS:
        raise ValueError(
            f"--explain reads at most {EXPLAIN_TOKENS:,} tokens a text, got {cut.lengths[0]:,}: shorten it"
        )
    kept = _cut([np.arange(len(ids), dtype=np.int32)], run)[0]  # places of the tokens that are read
    pieces = run.tokenizer.tokens(text)
    assert len(pieces) == len(ids)
    packed, _ = cut.pack(np.array([0]))
    task = run.task.cpu()  # cuDNN has no gradients in evaluation mode
    binary = task.num_classes == 2
    values, logit, baseline = integrated_gradients(copy.deepcopy(task.net).double(), packed, 0 if binary else label)
    return Explanation(
        [pieces[place] for place in kept.tolist()],
        [index == run.tokenizer.unk_id for index in cut[0].tolist()],
        values.tolist(),
        logit,
        baseline,
        task.class_names[1 if binary else label],
        task.class_names[0] if binary else None,
    )


class _Sentiment:
    """Prints what a sentiment run says, a chunk of texts at a time."""

    def __init__(self, run: "Run", arguments: argparse.Namespace, console: "Console") -> None:
        self.run, self.arguments, self.console = run, arguments, console
        self.explained: list[tuple[Prediction, Explanation]] = []
        self.width = 0
        self.told_colours = False
        self.names = [printable(str(name)) for name in run.task.class_names]

    def tell(self, chunk: list[Given]) -> None:
        """Answer one chunk, in order."""
        counts = [len(ids) for ids in self.run.tokenizer.encode_batch([given.text for given in chunk])]
        for given, count in zip(chunk, counts, strict=True):
            if not count:
                problem = f"{given.where} has no tokens: {shortened(repr(given.text), 40)} is left out by the tokenizer"
                _refuse(problem, self.arguments.skip_bad_rows)
        chunk = [given for given, count in zip(chunk, counts, strict=True) if count]
        if not chunk:
            return
        for given, prediction in zip(chunk, (found := classify(self.run, [g.text for g in chunk])), strict=True):
            if prediction.unknown == prediction.read:
                where = printable(given.where)
                print(f"recur: {where}: the run knows none of its words", file=sys.stderr)
        if self.arguments.explain or self.arguments.html:
            for prediction in found:
                explanation = explain(self.run, prediction.text, prediction.label)
                if self.arguments.html:
                    self.explained.append((prediction, explanation))
                self._explanation(prediction, explanation)
        elif self.arguments.json:
            for prediction in found:
                _print_json(self._record(prediction))
        else:
            self._table(found)

    def close(self) -> None:
        """Write the page, where one is wanted."""
        if not self.arguments.html:
            return
        texts = [self._shaded(prediction, explanation) for prediction, explanation in self.explained]
        if self.run.task.num_classes == 2:
            legend = [(1.0, f"towards {self.names[1]}"), (-1.0, f"towards {self.names[0]}")]
        else:
            legend = [(1.0, "for the label"), (-1.0, "against it")]
        _write_page(self.arguments.html, page(f"What {self.run.checkpoint.name} reads in a text", texts, legend))

    def _table(self, found: list[Prediction]) -> None:
        from rich.cells import cell_len, set_cell_size

        texts = [shortened(prediction.text, 200) for prediction in found]
        label_width = max(5, *(cell_len(name) for name in self.names))
        binary = len(self.names) == 2
        # As the guides have it: with two classes the probability is the second one's, whatever the label.
        title = f"P({self.names[1]})" if binary else "Probability"
        if not self.width:
            room = max(20, self.console.width - label_width - max(11, cell_len(title)) - 4)
            self.width = max(4, min(max(cell_len(text) for text in texts), room))
            print(f"{set_cell_size('Text', self.width)}  {title:<11}  Label")
        for text, prediction in zip(texts, found, strict=True):
            shown = prediction.probabilities[1 if binary else prediction.label]
            if cell_len(text) > self.width:
                text = set_cell_size(text, self.width - 1) + "…"
            line = f"{set_cell_size(text, self.width)}  {shown:<{max(11, cell_len(title))}.6f}"
            print(f"{line}  {self.names[prediction.label]}")
        sys.stdout.flush()

    def _record(self, prediction: Prediction) -> dict[str, Any]:
        names = self.run.task.class_names
        return {
            "text": prediction.text,
            "label": names[prediction.label],
            "probability": prediction.probabilities[prediction.label],
            "probabilities": dict(zip(map(str, names), prediction.probabilities, strict=True)),
            "tokens": prediction.tokens,
            "tokens_read": prediction.read,
            "tokens_unknown": prediction.unknown,
        }

    def _explanation(self, prediction: Prediction, explanation: Explanation) -> None:
        if self.arguments.json:
            record = {
                "towards": explanation.towards,
                "logit": explanation.logit,
                "baseline_logit": explanation.baseline,
                "gap": explanation.gap,
                "tokens": [
                    {"token": token, "contribution": value, "known": not unknown}
                    for token, value, unknown in zip(
                        explanation.tokens, explanation.contributions, explanation.unknown, strict=True
                    )
                ],
            }
            _print_json({**self._record(prediction), "explanation": record})
            return
        shaded = self._shaded(prediction, explanation)
        if self.console.color_system and not self.told_colours:
            self.console.print(f"blue: towards {explanation.towards}, orange: away from it", style="dim")
            self.told_colours = len(self.names) == 2  # with more classes it is another one for each text
        self.console.print(shaded.title, style="bold")
        self.console.print(terminal(shaded, self.console.color_system))
        for line in shaded.footer:
            self.console.print(line, style="dim")
        self.console.print()

    def _shaded(self, prediction: Prediction, explanation: Explanation) -> Shaded:
        name = self.names[prediction.label]
        pairs = list(zip(explanation.tokens, explanation.contributions, strict=True))
        strongest = sorted(pairs, key=lambda pair: -abs(pair[1]))[:5]
        footer = [
            "strongest: " + ", ".join(f"{shortened(token, 30)} {value:+.2f}" for token, value in strongest),
            f"logit {explanation.logit:+.3f} = {explanation.baseline:+.3f} (no words) "
            f"{explanation.logit - explanation.baseline:+.3f} (all tokens; their sum is {explanation.gap:+.4f} off)",
        ]
        if prediction.read < prediction.tokens:
            footer.append(f"read {prediction.read:,} of {prediction.tokens:,} tokens: the run cuts longer texts")
        return Shaded(
            f"{name} ({100 * prediction.probabilities[prediction.label]:.2f} %)",
            explanation.tokens,
            explanation.contributions,
            [f"{token}: {value:+.4f}" for token, value in pairs],
            footer,
            " " if self.run.tokenizer.kind in ("basic_english", "whitespace") else "",
            explanation.unknown,
        )
