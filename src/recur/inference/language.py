"""Using a language model: negative log-likelihood of every token, sampling."""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from recur.data.text import Tokenizer
from recur.inference.io import Given, _print_json, _refuse, _write_page
from recur.render import Shaded, page, shortened, terminal
from recur.runs.run import Run


def prompt_ids(tokenizer: "Tokenizer", prompt: str) -> list[int]:
    """Ids of a prompt as the training text would have them: for words, a line's end is `<eos>`."""
    if tokenizer.eos_id is None:
        return tokenizer.encode(prompt)
    ids: list[int] = []
    for number, line in enumerate(prompt.split("\n")):
        ids += [tokenizer.eos_id] * (number > 0) + tokenizer.encode(line)
    return ids


def unknown_words(tokenizer: "Tokenizer", prompt: str) -> list[str]:
    """The prompt's words (or characters) that the model has never seen, each once."""
    words = tokenizer.tokens(prompt)
    ids = tokenizer.encode(prompt)
    unknown = [word for word, index in zip(words, ids, strict=True) if index == tokenizer.unk_id and word != "<unk>"]
    return [repr(word) for word in dict.fromkeys(unknown)]


def generate(
    run: "Run",
    prompt: Sequence[int],
    *,
    samples: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    exclude: Sequence[int] = (),
    seed: int = 0,
) -> Iterator[list[int]]:
    """Continue a prompt for ever.

    Args:
        run: an open language run.
        prompt: ids to begin with; none begins where a text begins.
        samples: texts to write at once.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: sample among the likeliest k only.
        top_p: sample among the fewest tokens that have this probability together.
        exclude: ids never to write.
        seed: of the random numbers.

    Yields:
        The next id of each sample.
    """
    import torch

    from recur.data.corpus import start_id

    # Streams begin with the start token, single windows do not.
    first = [] if prompt and run.task.window is not None else [start_id(run.tokenizer)]
    ids = torch.tensor([*first, *prompt])[:, None].expand(-1, samples)  # (tokens, samples)
    generator = torch.Generator(run.task.device).manual_seed(seed)
    drawn = run.task.generate(
        ids, temperature=temperature, top_k=top_k, top_p=top_p, exclude=exclude, generator=generator
    )
    for token in drawn:
        yield token.tolist()


class Writer:
    """Turns ids into text piece by piece: together the pieces are the text.

    Args:
        tokenizer: of the run.
    """

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._words = tokenizer.kind in ("basic_english", "whitespace")
        self._space = ""
        self._pending: list[int] = []  # bytes of a character that is not complete yet

    def piece(self, index: int) -> str:
        """Text that can be shown once this id has come."""
        if index == self._tokenizer.eos_id:
            self._space = ""
            return "\n"
        if self._words:
            piece = self._space + self._tokenizer.decode([index])
            self._space = " "
            return piece
        self._pending.append(index)
        text = self._tokenizer.decode(self._pending)
        if text.endswith("\ufffd") and len(self._pending) < 4:  # UTF-8 takes four bytes at most
            return ""
        self._pending = []
        return text

    def end(self) -> str:
        """What is left when no more ids come."""
        return self._tokenizer.decode(self._pending) if self._pending else ""


# -------------------------------------------------------------------------------------------------------- language runs
def read_words(run: "Run", text: str) -> "tuple[list[int], list[str]]":
    """Token ids of a text as a language run's data has them, `<eos>` for line ends where it does, and the tokens.

    The end of the text is no line end unless it is written.
    """
    from recur.data import corpus

    tokenizer = run.tokenizer
    ids = [index for block in corpus.encoded([text], tokenizer) for index in block.tolist()]
    if tokenizer.eos_id is None:
        return ids, tokenizer.tokens(text)
    tokens = [token for line in text.split("\n") for token in (*tokenizer.tokens(line), "<eos>")]
    if not text.endswith("\n"):
        ids, tokens = ids[:-1], tokens[:-1]
    return ids, tokens[: len(ids)]


class _Language:
    """Prints how much each token surprises a language run."""

    def __init__(self, run: "Run", arguments: argparse.Namespace, console: "Console") -> None:
        self.run, self.arguments, self.console = run, arguments, console
        self.shaded: list[Shaded] = []

    def tell(self, chunk: list[Given]) -> None:
        """Answer one chunk, in order."""
        for given in chunk:
            ids, tokens = read_words(self.run, given.text)
            if ids:
                self._tell_one(given.text, ids, tokens)
            else:
                _refuse(f"{given.where} has no tokens", self.arguments.skip_bad_rows)

    def close(self) -> None:
        """Write the page, where one is wanted."""
        if self.arguments.html:
            legend = [(1.0, "the most surprising token"), (0.3, "a third as surprising")]
            content = page(f"What surprises {self.run.checkpoint.name}", self.shaded, legend)
            _write_page(self.arguments.html, content)

    def _tell_one(self, text: str, ids: list[int], tokens: list[str]) -> None:
        import torch

        from recur.data import corpus

        numbers = torch.tensor(ids)
        start = corpus.start_id(self.run.tokenizer)
        nats = self.run.task.token_nll(numbers, start).double().cpu()
        ranks = self.run.task.ranks(numbers, start).tolist()
        mean = float(nats.mean())
        rows = [
            {
                "token": token,
                "nats": value,
                "bits": value / math.log(2),
                "probability": math.exp(-value),
                "rank": rank,
                "known": index != self.run.tokenizer.unk_id,
            }
            for token, index, value, rank in zip(tokens, ids, nats.tolist(), ranks, strict=True)
        ]
        if self.arguments.json:
            _print_json({"text": text, "tokens": rows, "nats": mean * len(ids), "perplexity": _exp(mean)})
        shaded = Shaded(
            f"{mean:.3f} nats ({mean / math.log(2):.3f} bits) a token, perplexity {_exp(mean):,.2f}",
            tokens,
            [row["nats"] for row in rows],
            [f"{row['token']}: {row['bits']:.2f} bits, {row['probability']:.2g}, rank {row['rank']:,}" for row in rows],
            [f"{len(ids):,} tokens"],
            " " if self.run.tokenizer.kind in ("basic_english", "whitespace") else "",
            [not row["known"] for row in rows],
        )
        if self.arguments.html:
            self.shaded.append(shaded)
        if self.arguments.json:
            return
        self.console.print(shaded.title, style="bold")
        if self.console.color_system:
            self.console.print(terminal(shaded, self.console.color_system))
        if self.arguments.explain or not self.console.color_system:
            self._table(rows)
        self.console.print()

    def _table(self, rows: list[dict[str, Any]]) -> None:
        from rich.cells import cell_len, set_cell_size

        names = [shortened(row["token"], 30).replace(" ", "␣") for row in rows]
        width = max(5, *(cell_len(name) for name in names))
        print(f"{'Token':<{width}}    Nats    Bits  Probability    Rank")
        for name, row in zip(names, rows, strict=True):
            figures = f"{row['nats']:8.3f}{row['bits']:8.3f}  {row['probability']:11.2e}{row['rank']:8,}"
            print(f"{set_cell_size(name, width)}{figures}{'' if row['known'] else '  unknown'}")
        sys.stdout.flush()


def _exp(nats: float) -> float:
    return math.exp(min(nats, 700.0))  # a hopeless model must not overflow
