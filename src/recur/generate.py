"""`python -m recur.generate RUN --prompt "..." --tokens 200`: text written by a language run.

Text appears as it is made; with `--beams` it is searched for first. The model carries its state, so a token costs the
same however long the text has become. The same run, prompt, settings and seed give the same text.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from recur import cli
from recur.render import escape_controls

if TYPE_CHECKING:
    from recur.inference.language import Sampling
    from recur.inference.run import Run


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `python -m recur.generate` and `recur-generate`."""
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
    parser.add_argument(
        "--beams",
        type=int,
        metavar="N",
        help="no chance: the likeliest texts that a beam of N finds, best first (--samples says how many to show)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default: 0)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    cli.accept_any_character()
    from recur.data.corpus import prompt_ids
    from recur.inference.language import Sampling, Writer, generate_ids, unknown_words, written
    from recur.inference.run import load

    names = ("tokens", "samples", "greedy", "temperature", "top_k", "top_p", "no_unknown", "seed", "beams")
    with cli.typed_names():
        sampling = Sampling(**{name: getattr(arguments, name) for name in names})
    run = load(arguments.run, arguments.device)
    run.require("language", "generate")
    if unknown := unknown_words(run.tokenizer, arguments.prompt):
        print(f"recur: not in the vocabulary, read as <unk>: {', '.join(unknown)}", file=sys.stderr)
    if sampling.beams is not None:
        _search(run, arguments.prompt, sampling)
        return
    prompt = prompt_ids(run.tokenizer, arguments.prompt)
    # The first sample is shown as it comes; the others, made in the same steps, follow whole.
    others: list[list[int]] = [[] for _ in range(sampling.samples - 1)]
    writer = Writer(run.tokenizer)
    print(escape_controls("".join(map(writer.piece, prompt))), end="")
    for row in generate_ids(run, prompt, sampling):
        print(escape_controls(writer.piece(row[0])), end="", flush=True)
        for sample, index in zip(others, row[1:], strict=True):
            sample.append(index)
    print(escape_controls(writer.end()))
    for sample in others:
        print("-" * 40)
        print(escape_controls(written(run.tokenizer, [*prompt, *sample])))


def _search(run: "Run", prompt: str, sampling: "Sampling") -> None:
    """Print the best continuations of a beam; how likely each is goes to standard error, apart from the texts."""
    texts = run.beam_search(prompt, beams=sampling.beams or 1, tokens=sampling.tokens, no_unknown=sampling.no_unknown)
    for number, one in enumerate(texts[: sampling.samples], start=1):
        if number > 1:
            print("-" * 40)
        print(escape_controls(one.text), flush=True)
        log, each = one.log_probability, one.log_probability / sampling.tokens
        print(f"recur: log-probability {number}: {log:.6f} nats, {each:.4f} a token", file=sys.stderr)


if __name__ == "__main__":
    main()
