"""The door to text: `python -m recur.generate RUN --prompt "..." --tokens 200` lets a language run write.

Text appears as it is made. The model carries its state, so a token costs the same however long the text has become.
The same run, prompt, settings and seed give the same text.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from recur import cli
from recur.view import escape_controls

if TYPE_CHECKING:
    from recur.data.text import Tokenizer
    from recur.runs import Run


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `python -m recur.generate`."""
    arguments = _parser().parse_args(argv)
    cli.guard(lambda: _run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="recur.generate",
        description="Let a language run write.",
        epilog="example: python -m recur.generate outputs/lm/... --prompt 'the king' --tokens 200 --temperature 0.8",
    )
    parser.add_argument("run", help="run folder or checkpoint")
    parser.add_argument("--prompt", default="", help="text to begin with (default: where a text begins)")
    parser.add_argument("--tokens", type=int, default=200, help="tokens to write (default: 200)")
    parser.add_argument("--greedy", action="store_true", help="always the likeliest token")
    parser.add_argument("--temperature", type=float, default=1.0, help="below 1 likelier, above 1 wilder (default: 1)")
    parser.add_argument("--top-k", type=int, metavar="K", help="only the likeliest K tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="only the fewest tokens with probability P together")
    parser.add_argument("--no-unknown", action="store_true", help="never write <unk>")
    parser.add_argument("--samples", type=int, default=1, help="texts to write at once (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default: 0)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    for name, value in (("tokens", arguments.tokens), ("samples", arguments.samples), ("top-k", arguments.top_k)):
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    if not 0 < arguments.temperature < math.inf:
        raise ValueError(
            f"--temperature must be above 0 and finite, got {arguments.temperature}: --greedy takes the likeliest"
        )
    if not 0 <= arguments.seed < 2**63:
        raise ValueError(f"--seed must be a whole number from 0 to 2**63 - 1, got {arguments.seed}")
    if arguments.top_p is not None and not 0 < arguments.top_p <= 1:
        raise ValueError(f"--top-p must be above 0 and at most 1, got {arguments.top_p}")
    if hasattr(sys.stdout, "reconfigure"):  # whatever the locale, no character stops the door
        sys.stdout.reconfigure(errors="backslashreplace")

    from recur.runs import Run, device

    run = Run.open(arguments.run)
    run.require("language", "generate")
    run.task.to(device(arguments.device))
    tokenizer = run.tokenizer
    prompt = prompt_ids(tokenizer, arguments.prompt)
    if unknown := unknown_words(tokenizer, arguments.prompt):
        print(f"recur: not in the vocabulary, read as <unk>: {', '.join(unknown)}", file=sys.stderr)
    drawn = generate(
        run,
        prompt,
        samples=arguments.samples,
        temperature=0.0 if arguments.greedy else arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        exclude=[tokenizer.unk_id] if arguments.no_unknown else [],
        seed=arguments.seed,
    )
    # The first sample is shown as it comes; the others, made in the same steps, follow whole.
    rest: list[list[int]] = [[] for _ in range(arguments.samples - 1)]
    writer = Writer(tokenizer)
    for index in prompt:
        print(escape_controls(writer.piece(index)), end="")
    for row in islice(drawn, arguments.tokens):
        print(escape_controls(writer.piece(row[0])), end="", flush=True)
        for sample, index in zip(rest, row[1:], strict=True):
            sample.append(index)
    print(escape_controls(writer.end()))
    for sample in rest:
        writer = Writer(tokenizer)
        print("-" * 40)
        print(escape_controls("".join(writer.piece(index) for index in [*prompt, *sample]) + writer.end()))


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


if __name__ == "__main__":
    main()
