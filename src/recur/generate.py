"""The door to text: `python -m recur.generate RUN --prompt "..." --tokens 200` lets a language run write.

Text appears as it is made. The model carries its state, so a token costs the same however long the text has become.
The same run, prompt, settings and seed give the same text.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from itertools import islice

from recur import cli
from recur.render import escape_controls


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

    from recur.inference.language import Writer, generate, prompt_ids, unknown_words
    from recur.runs.run import Run, device

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


if __name__ == "__main__":
    main()
