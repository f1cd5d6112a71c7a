"""Answers on a terminal, as records and as a page."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from recur.data.text import joins_words
from recur.errors import UserError
from recur.inference.classification import EXPLAIN_TOKENS, Explanation, Prediction, class_names, classify, places_read
from recur.inference.ensemble import Ensemble
from recur.inference.io import Given, Records, check_folder
from recur.inference.language import TokenScores, read_tokens, token_nll
from recur.inference.run import Run
from recur.render import Shaded, is_page, page, printable, shortened, terminal
from recur.runs.files import write_atomic

_LONGEST_TEXT = 200  # characters of a text in a table
_LONGEST_TOKEN = 30
PAGE_CHARACTERS = 20_000  # of a text on a page of likelihoods, where each token is an element with a note of its own


class Display(Protocol):
    """Answers texts of one family of runs and shows the answers."""

    def check(self, chunk: list[Given]) -> list[Given]:
        """The same texts, those that cannot be answered with that as their problem."""
        ...

    def answer(self, chunk: Sequence[Given]) -> None:
        """Answer good texts and show the answers, in order."""
        ...

    def close(self) -> None:
        """Write the page, where one is wanted."""
        ...


def display_for(
    run: Run,
    records: Records | None,
    *,
    explain: bool = False,
    page: str | None = None,
    ensemble: Ensemble | None = None,
) -> Display:
    """The display of a run's family.

    Args:
        run: an open run.
        records: where answers are written; None shows them on the terminal.
        explain: show what each token contributed.
        page: file of the page to write; None for none.
        ensemble: which answers in the run's place, without explanations.
    """
    options = Options(records, explain, page)
    return ClassifierDisplay(run, options, ensemble) if run.family == "sentiment" else LanguageDisplay(run, options)


def check_page(path: str) -> None:
    """Refuse a file for a page that cannot be written, or that holds something else than such a page.

    Raises:
        UserError: no such folder, or another file.
    """
    check_folder("--html", path)
    if Path(path).exists() and not (Path(path).is_file() and is_page(Path(path))):
        raise UserError("--html", path, "is no page of recur.predict", "remove it, or give another name")


@dataclass(frozen=True)
class Options:
    """Where answers go, as in `display_for`."""

    records: Records | None
    explain: bool
    page: str | None


def _console() -> Console:
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def _without_tokens(given: Given) -> Given:
    remedy = "give at least one word, or give --skip-bad-rows"
    return replace(given, problem=UserError(given.where, shortened(given.text, 40), "has no tokens", remedy))


def _too_long(given: Given, length: int) -> Given:
    rule = f"must have at most {EXPLAIN_TOKENS:,} tokens to be explained, got {length:,}"
    problem = UserError(given.where, rule=rule, remedy="shorten it, or give --skip-bad-rows")
    return replace(given, problem=problem)


class ClassifierDisplay:
    """Labels and explanations.

    Args:
        run: an open sentiment run.
        options: where answers go.
        ensemble: which answers in its place.
    """

    def __init__(self, run: Run, options: Options, ensemble: Ensemble | None = None) -> None:
        self._run, self._options, self._ensemble, self._console = run, options, ensemble, _console()
        self._names = [printable(name) for name in class_names(run)]
        self._shaded: list[Shaded] = []  # for the page
        self._text_width = 0  # of the table's first column, 0 before the first row
        self._legend_shown = False

    def check(self, chunk: list[Given]) -> list[Given]:
        """The same texts, those that have no tokens, or too many to be explained, with that as their problem."""
        texts = [given.text for given in chunk]
        if self._ensemble:
            lengths = [int(not lacks) for lacks in self._ensemble.lacks_tokens(texts)]
        else:
            lengths = [len(array) for array in self._run.tokenizer.encode_batch(texts)]
        return [self._checked(given, length) for given, length in zip(chunk, lengths, strict=True)]

    def _checked(self, given: Given, length: int) -> Given:
        if given.problem:
            return given
        if not length:
            return _without_tokens(given)
        if (self._options.explain or self._options.page) and length > EXPLAIN_TOKENS:
            length = len(places_read(self._run, length))
            return _too_long(given, length) if length > EXPLAIN_TOKENS else given
        return given

    def answer(self, chunk: Sequence[Given]) -> None:
        """Answer good texts and show the answers, in order."""
        texts = [given.text for given in chunk]
        predictions = self._ensemble.classify(texts) if self._ensemble else classify(self._run, texts)
        for given, prediction in zip(chunk, predictions, strict=True):
            if prediction.unknown == prediction.read:
                print(f"recur: {printable(given.where)}: the run knows none of its words", file=sys.stderr)
        if self._options.explain or self._options.page:
            for given, prediction in zip(chunk, predictions, strict=True):
                self._explain(given, prediction)
        elif self._options.records:
            for given, prediction in zip(chunk, predictions, strict=True):
                self._options.records.write(given.columns, self._record(prediction))
        elif predictions:
            self._table(predictions)

    def close(self) -> None:
        """Write the page, where one is wanted."""
        if self._options.page is None:
            return
        if len(self._names) == 2:
            legend = [(1.0, f"towards {self._names[1]}"), (-1.0, f"towards {self._names[0]}")]
        else:
            legend = [(1.0, "for the label"), (-1.0, "against it")]
        title = f"What each token contributes to the labels of {self._run.checkpoint.name}"
        _write_page(self._options.page, page(title, self._shaded, legend))

    def _record(self, prediction: Prediction) -> dict[str, Any]:
        return {
            "text": prediction.text,
            "label": prediction.label,
            "probability": prediction.probability,
            "probabilities": prediction.probabilities,
            "tokens": prediction.tokens,
            "tokens_read": prediction.read,
            "tokens_unknown": prediction.unknown,
        }

    def _table(self, predictions: list[Prediction]) -> None:
        binary = len(self._names) == 2
        # With two classes the probability is the second one's, whatever the label.
        title = f"P({self._names[1]})" if binary else "Probability"
        label_width = max(5, *(cell_len(name) for name in self._names))
        texts = [shortened(prediction.text, _LONGEST_TEXT) for prediction in predictions]
        first = not self._text_width
        if first:
            space = max(20, self._console.width - label_width - max(11, cell_len(title)) - 4)
            self._text_width = max(4, min(max(map(cell_len, texts)), space))
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=first, header_style="")
        table.add_column("Text", width=self._text_width, no_wrap=True, overflow="ellipsis")
        table.add_column(title, width=max(11, cell_len(title)), no_wrap=True)
        table.add_column("Label", width=label_width, no_wrap=True)
        for text, prediction in zip(texts, predictions, strict=True):
            values = list(prediction.probabilities.values())
            shown = values[1] if binary else prediction.probability
            table.add_row(Text(text), f"{shown:.6f}", Text(self._names[prediction.index]))
        self._console.print(table)
        sys.stdout.flush()

    def _explain(self, given: Given, prediction: Prediction) -> None:
        explanation = self._run.explain(prediction.text, prediction.label)
        shaded = self._highlighted(prediction, explanation)
        if self._options.page:
            self._shaded.append(shaded)
        if self._options.records:
            answer = {**self._record(prediction), "explanation": _explanation_record(explanation)}
            self._options.records.write(given.columns, answer)
            return
        if _colours(self._console) and not self._legend_shown:
            self._console.print(f"blue: towards {printable(explanation.towards)}, orange: away from it", style="dim")
            self._legend_shown = len(self._names) == 2  # with more classes it is another one for each text
        _print_shaded(self._console, shaded)

    def _highlighted(self, prediction: Prediction, explanation: Explanation) -> Shaded:
        pairs = list(zip(explanation.tokens, explanation.contributions, strict=True))
        strongest = sorted(pairs, key=lambda pair: -abs(pair[1]))[:5]
        footer = [
            "strongest: "
            + " · ".join(f"{shortened(token, _LONGEST_TOKEN)} {value:+.2g}" for token, value in strongest),
            f"logit {explanation.logit:+.3f} = {explanation.baseline:+.3f} (no words) "
            f"{explanation.logit - explanation.baseline:+.3f} (all tokens; their sum is {explanation.gap:+.4f} off)",
        ]
        if prediction.read < prediction.tokens:
            footer.append(f"read {prediction.read:,} of {prediction.tokens:,} tokens: the run cuts longer texts")
        return Shaded(
            title=f"{self._names[prediction.index]} ({100 * prediction.probability:.2f} %)",
            tokens=explanation.tokens,
            values=explanation.contributions,
            notes=[f"{token}: {value:+.4f}" for token, value in pairs],
            footer=footer,
            separator=" " if joins_words(self._run.tokenizer.kind) else "",
            unknown=explanation.unknown,
        )


def _explanation_record(explanation: Explanation) -> dict[str, Any]:
    rows = zip(explanation.tokens, explanation.contributions, explanation.unknown, strict=True)
    return {
        "towards": explanation.towards,
        "logit": explanation.logit,
        "baseline_logit": explanation.baseline,
        "gap": explanation.gap,
        "tokens": [{"token": token, "contribution": value, "known": not unknown} for token, value, unknown in rows],
    }


class LanguageDisplay:
    """How likely a language run finds each token.

    Args:
        run: an open language run.
        options: where answers go.
    """

    def __init__(self, run: Run, options: Options) -> None:
        self._run, self._options, self._console = run, options, _console()
        self._shaded: list[Shaded] = []

    def check(self, chunk: list[Given]) -> list[Given]:
        """The same texts, those that have no tokens, or are too long for a page, with that as their problem."""
        return [self._checked(given) for given in chunk]

    def _checked(self, given: Given) -> Given:
        if given.problem:
            return given
        if self._options.page and len(given.text) > PAGE_CHARACTERS:
            rule = f"must have at most {PAGE_CHARACTERS:,} characters to be shown on a page, got {len(given.text):,}"
            remedy = "shorten it, or give --skip-bad-rows"
            return replace(given, problem=UserError(given.where, rule=rule, remedy=remedy))
        return given if read_tokens(self._run.tokenizer, given.text)[0] else _without_tokens(given)

    def answer(self, chunk: Sequence[Given]) -> None:
        """Answer good texts and show the answers, in order."""
        for given in chunk:
            scores = token_nll(self._run, given.text)
            rows = _token_rows(scores)
            if self._options.page or not self._options.records:
                shaded = self._highlighted(scores, rows)
            if self._options.page:
                self._shaded.append(shaded)
            if self._options.records:
                total = sum(scores.nll)
                answer = {"text": given.text, "tokens": rows, "nats": total, "perplexity": scores.perplexity}
                self._options.records.write(given.columns, answer)
            else:
                self._show(shaded, rows)

    def close(self) -> None:
        """Write the page, where one is wanted."""
        if self._options.page is not None:
            legend = [(1.0, "the least likely token"), (0.3, "a third of its nats")]
            title = f"Negative log-likelihood of each token by {self._run.checkpoint.name}"
            _write_page(self._options.page, page(title, self._shaded, legend))

    def _highlighted(self, scores: TokenScores, rows: list[dict[str, Any]]) -> Shaded:
        bits = scores.mean / math.log(2)
        return Shaded(
            title=f"{scores.mean:.3f} nats ({bits:.3f} bits) a token, perplexity {scores.perplexity:,.2f}",
            tokens=scores.tokens,
            values=scores.nll,
            notes=[
                f"{row['token']}: {row['bits']:.2f} bits, {row['probability']:.2g}, rank {row['rank']:,}"
                for row in rows
            ],
            footer=[f"{len(rows):,} tokens"],
            separator=" " if joins_words(self._run.tokenizer.kind) else "",
            unknown=scores.unknown,
        )

    def _show(self, shaded: Shaded, rows: list[dict[str, Any]]) -> None:
        if _colours(self._console):
            _print_shaded(self._console, replace(shaded, footer=()))
            if not self._options.explain:
                return
        else:
            self._console.print(shaded.title, style="bold")
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="")
        table.add_column("Token", no_wrap=True)
        for title in ("Nats", "Bits", "Probability", "Rank"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("")
        for row in rows:
            name = shortened(row["token"], _LONGEST_TOKEN).replace(" ", "␣")
            numbers = f"{row['nats']:.3f}", f"{row['bits']:.3f}", f"{row['probability']:.2e}", f"{row['rank']:,}"
            table.add_row(Text(name), *numbers, "" if row["known"] else "unknown")
        self._console.print(table)
        self._console.print()


def _token_rows(scores: TokenScores) -> list[dict[str, Any]]:
    return [
        {
            "token": token,
            "nats": nats,
            "bits": nats / math.log(2),
            "probability": math.exp(-nats),
            "rank": rank,
            "known": not unknown,
        }
        for token, nats, rank, unknown in zip(scores.tokens, scores.nll, scores.ranks, scores.unknown, strict=True)
    ]


def _colours(console: Console) -> str | None:
    """The system of colours that a console writes; rich names one also where NO_COLOR has it write none."""
    return None if console.no_color else console.color_system


def _print_shaded(console: Console, shaded: Shaded) -> None:
    """A text with its tokens shaded, or with their numbers where the terminal has no colours."""
    console.print(shaded.title, style="bold")
    console.print(terminal(shaded, _colours(console)))
    for line in shaded.footer:
        console.print(line, style="dim")
    console.print()


def _write_page(path: str, content: str) -> None:
    check_page(path)  # answering took a while
    write_atomic(Path(path), content)
    print(f"recur: wrote {printable(path)}", file=sys.stderr)
