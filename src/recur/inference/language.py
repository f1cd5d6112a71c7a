"""Using a language model: negative log-likelihood of every token, sampling, beam search."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from recur.data import corpus
from recur.data.text import Tokenizer, joins_words
from recur.errors import UserError
from recur.inference.batches import as_texts, vectors
from recur.nn.classifier import pooled
from recur.runs import run as runs

MOST_SAMPLES = 1000  # at once: a sample has a row of logits as wide as the vocabulary
MOST_HELD = 10_000_000  # tokens of all samples together, held until the last one is written


# ------------------------------------------------------------------------------------------------------ reading a text
@dataclass(frozen=True)
class TokenScores:
    """How likely a language model finds each token of a text.

    Attributes:
        text: as given.
        tokens: the tokens.
        nll: negative log-likelihood of each token in nats, from what stands before it.
        ranks: rank of each among all tokens that could have stood there, 1 for the likeliest.
        unknown: whether each is outside the vocabulary.
    """

    text: str
    tokens: list[str]
    nll: list[float]
    ranks: list[int]
    unknown: list[bool]

    @property
    def mean(self) -> float:
        """Nats a token."""
        return sum(self.nll) / len(self.nll)

    @property
    def perplexity(self) -> float:
        """`exp` of the mean; no more than e**700, so that a hopeless model does not overflow."""
        return math.exp(min(self.mean, 700.0))


def read_tokens(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[str]]:
    """Token ids of a text as a language run's data has them, `<eos>` for line ends where it does, and the tokens.

    The end of the text is no line end unless it is written.
    """
    text = corpus.with_newlines(text)
    ids = [index for block in corpus.encoded([text], tokenizer) for index in block.tolist()]
    if tokenizer.eos_id is None:
        return ids, tokenizer.tokens(text)
    tokens = [token for line in text.split("\n") for token in (*tokenizer.tokens(line), "<eos>")]
    if not corpus.is_blank(text.rpartition("\n")[2]):  # else the last token is a line end that is written
        ids, tokens = ids[:-1], tokens[:-1]
    return ids, tokens[: len(ids)]


def token_nll(run: "runs.Run", text: str) -> TokenScores:
    """How likely a language run finds each token of a text.

    Args:
        run: an open language run.
        text: with at least one token.

    Raises:
        UserError: a text without tokens, or a run that reads from the end.
    """
    run.require_forward()
    ids, tokens = read_tokens(run.tokenizer, text)
    if not ids:
        raise UserError("text", text[:40], "must have at least one token")
    numbers, start = torch.tensor(ids), corpus.start_id(run.tokenizer)
    return TokenScores(
        text,
        tokens,
        nll=run.task.token_nll(numbers, start).double().tolist(),
        ranks=run.task.ranks(numbers, start).tolist(),
        unknown=[index == run.tokenizer.unk_id for index in ids],
    )


def features(run: "runs.Run", texts: Sequence[str]) -> NDArray[np.float32]:
    """What a language run's states say of each text, as a classifier that is fine-tuned from it pools them.

    Args:
        run: an open language run; one with `data.reverse=true` reads from the end.
        texts: one or more, each with at least one token.

    Returns:
        Of the top layer the last state, the maximum and the mean over the text's tokens (Howard & Ruder 2018), beside
        each other: `(texts, 3 * width)`.

    Raises:
        UserError: a text without tokens.
    """
    arrays = []
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise UserError(f"text {number}", text, "must be a text", "leave it out, or give str(...)")
        ids, _ = read_tokens(run.tokenizer, text)
        if not ids:
            raise UserError(f"text {number}", text[:40], "must have at least one token")
        arrays.append(np.array(ids[::-1] if run.config["data"].get("reverse") else ids, dtype=np.int32))
    net = run.task.net

    def read(packed: PackedSequence) -> Tensor:
        hidden = net(packed)
        return pooled(net.recurrent, hidden.raw, hidden.state, "concat")

    return vectors(as_texts(arrays), read, run.task.device)


# ------------------------------------------------------------------------------------------------------------ sampling
@dataclass(frozen=True)
class Sampling:
    """How texts are sampled.

    Attributes:
        tokens: to write, prompt apart.
        samples: texts to write at once.
        greedy: take the likeliest token always.
        temperature: divides the logits, from .001 to 1000.
        top_k: sample among the likeliest k tokens only.
        top_p: sample among the fewest tokens that have this probability together.
        no_unknown: never write `<unk>`.
        seed: of the random numbers.
        beams: in place of chance, the likeliest continuations that a beam of so many finds, see `beam_search`; the
            best `samples` of them are written.

    Raises:
        UserError: a value out of its range, or one that means nothing beside `greedy` or `beams`.
    """

    tokens: int = 200
    samples: int = 1
    greedy: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    no_unknown: bool = False
    seed: int = 0
    beams: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.beams is not None:
            self._check_beams(self.beams)
        elif self.greedy:
            self._check_chance("does nothing with greedy, which leaves nothing to chance")
        if self.tokens < 1:
            raise UserError("tokens", self.tokens, "must be at least 1")
        if not 1 <= self.samples <= MOST_SAMPLES:
            raise UserError("samples", self.samples, f"must be from 1 to {MOST_SAMPLES:,}", "use several seeds")
        if self.samples > 1 and self.samples * self.tokens > MOST_HELD:
            rule = f"must be at most {MOST_HELD // self.samples:,} with {self.samples:,} samples"
            raise UserError("tokens", self.tokens, rule)
        if not 1e-3 <= self.temperature <= 1e3:  # beyond, the logits overflow or are all alike
            raise UserError(
                "temperature", self.temperature, "must be from 0.001 to 1000", "greedy takes the likeliest token"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError("top_k", self.top_k, "must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError("top_p", self.top_p, "must be above 0 and at most 1")
        if not 0 <= self.seed < 2**63:
            raise UserError("seed", self.seed, "must be a whole number from 0 to 2**63 - 1")

    def _check_beams(self, beams: int) -> None:
        if not 1 <= beams <= MOST_SAMPLES:
            raise UserError("beams", beams, f"must be from 1 to {MOST_SAMPLES:,}")
        if beams * self.tokens > MOST_HELD:
            raise UserError("tokens", self.tokens, f"must be at most {MOST_HELD // beams:,} with {beams:,} beams")
        if self.samples > beams:
            raise UserError("samples", self.samples, f"must be at most the {beams:,} beams")
        rule = "is for sampling, and a beam search leaves nothing to chance"
        if self.greedy:
            raise UserError("greedy", self.greedy, rule)
        self._check_chance(rule)

    def _check_chance(self, rule: str) -> None:
        chance = {"temperature": 1.0, "top_k": None, "top_p": None, "seed": 0}
        for name, usual in chance.items():
            if getattr(self, name) != usual:
                raise UserError(name, getattr(self, name), rule)


def unknown_words(tokenizer: Tokenizer, prompt: str) -> list[str]:
    """The prompt's words (or characters) that the model has never seen, each once."""
    prompt = corpus.with_newlines(prompt)
    words = tokenizer.tokens(prompt)
    ids = tokenizer.encode(prompt)
    unknown = [word for word, index in zip(words, ids, strict=True) if index == tokenizer.unk_id and word != "<unk>"]
    return [repr(word) for word in dict.fromkeys(unknown)]


def _begun(run: "runs.Run", prompt: Sequence[int]) -> Tensor:
    """What the model reads before it writes: streams begin with the start token, single windows with the text."""
    first = [] if run.task.window is not None else [corpus.start_id(run.tokenizer)]
    return torch.tensor([*first, *prompt], dtype=torch.int64)


def generate_ids(run: "runs.Run", prompt: Sequence[int], sampling: Sampling) -> Iterator[list[int]]:
    """Continue a prompt.

    Args:
        run: an open language run.
        prompt: ids to begin with; none begins where a text begins.
        sampling: how to choose.

    Yields:
        The next id of each sample, `sampling.tokens` times.

    Raises:
        UserError: a run that reads from the end.
    """
    run.require_forward()
    ids = _begun(run, prompt)[:, None].expand(-1, sampling.samples)  # (tokens, samples)
    tokens = run.task.generate(
        ids,
        temperature=0.0 if sampling.greedy else sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        exclude=[run.tokenizer.unk_id] if sampling.no_unknown else [],
        generator=torch.Generator(run.task.device).manual_seed(sampling.seed),
        start_id=corpus.start_id(run.tokenizer),
    )
    for token in islice(tokens, sampling.tokens):
        yield token.tolist()


def generate(run: "runs.Run", prompt: str, sampling: Sampling) -> list[str]:
    """Continue a prompt; gives each sample's whole text, prompt included.

    Raises:
        UserError: as in `generate_ids`.
    """
    if sampling.beams is not None:
        texts = beam_search(run, prompt, sampling.beams, sampling.tokens, no_unknown=sampling.no_unknown)
        return [one.text for one in texts[: sampling.samples]]
    ids = corpus.prompt_ids(run.tokenizer, prompt)
    samples: list[list[int]] = [list(ids) for _ in range(sampling.samples)]
    for row in generate_ids(run, ids, sampling):
        for sample, index in zip(samples, row, strict=True):
            sample.append(index)
    return [written(run.tokenizer, sample) for sample in samples]


@dataclass(frozen=True)
class Continuation:
    """How a text may go on, and how likely that is.

    Attributes:
        text: prompt included.
        ids: the tokens that follow the prompt.
        log_probability: of these tokens after the prompt, in nats: exactly what the model says, summed in float64.
    """

    text: str
    ids: list[int]
    log_probability: float


def beam_search(
    run: "runs.Run", prompt: str, beams: int, tokens: int, *, no_unknown: bool = False
) -> list[Continuation]:
    """The likeliest continuations that a beam finds, best first.

    All are `tokens` long, so their log-probabilities compare as they are; see
    `recur.tasks.language_modeling.LanguageModelingTask.beam_search`.

    Args:
        run: an open language run.
        prompt: text to begin with; empty begins where a text begins.
        beams: continuations kept at each step, read in one batch.
        tokens: length of each.
        no_unknown: leave out those with `<unk>`.

    Returns:
        `beams` of them, or all where there are fewer.

    Raises:
        UserError: a number out of its range, or a run that reads from the end.
    """
    run.require_forward()
    Sampling(beams=beams, tokens=tokens)  # refuses what is out of range
    ids = corpus.prompt_ids(run.tokenizer, prompt)
    settings = {"exclude": [run.tokenizer.unk_id] if no_unknown else [], "start_id": corpus.start_id(run.tokenizer)}
    rows, logs = run.task.beam_search(_begun(run, ids), tokens=tokens, beams=beams, **settings)
    return [
        Continuation(written(run.tokenizer, [*ids, *row]), row, log)
        for row, log in zip(rows.tolist(), logs.tolist(), strict=True)
    ]


class Writer:
    """Turns ids into text piece by piece: together the pieces are the text.

    Args:
        tokenizer: of the run.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._words = joins_words(tokenizer.kind)
        self._space = ""
        self._pending: list[int] = []  # tokens since the last one that ended with a whole character
        self._shown = 0  # characters of these that have been given out

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
        ready = text.removesuffix("\ufffd")  # the next token may have the other bytes of this character
        piece, self._shown = ready[self._shown :], len(ready)
        if ready == text:
            self._pending, self._shown = [], 0
        return piece

    def end(self) -> str:
        """What is left when no more ids come."""
        return self._tokenizer.decode(self._pending)[self._shown :] if self._pending else ""


def written(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of some ids."""
    writer = Writer(tokenizer)
    return "".join(writer.piece(index) for index in ids) + writer.end()
