"""An exported model against our own answers on the same texts, and its speed beside ours."""

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

TOLERANCE = 1e-5  # of float32 answers: probabilities, or log-probabilities of a language model
_TEXTS, _LONGEST = 200, 300  # of the batch that is drawn where none is given
_ROUNDS = 5  # of timings
_NUMBERS = 50_000_000  # of a chunk's logits or word vectors: float64 copies of all of them lie in memory at once

Ids = NDArray[np.int64]
Answers = NDArray[np.floating]


@dataclass(frozen=True)
class Agreement:
    """How far an exported model's answers are from ours.

    Attributes:
        texts: that were compared, of unequal lengths.
        shortest: tokens of the shortest text.
        longest: tokens of the longest text.
        difference: largest absolute difference of a probability (a log-probability of a language model).
        logits: largest absolute difference of a logit.
        rounding: largest absolute error of our own float32 answers, measured against ours in float64.
        same_answers: share of texts (tokens) for which both have the same likeliest class (token).
        tokens_per_second: of the exported model on these texts, on this machine's CPU; of pads none is counted.
        own_tokens_per_second: ours, likewise: the medians of rounds in which each answers once.
        threads: that each had.
    """

    texts: int
    shortest: int
    longest: int
    difference: float
    logits: float
    rounding: float
    same_answers: float
    tokens_per_second: float
    own_tokens_per_second: float
    threads: int

    @property
    def allowed(self) -> float:
        """`TOLERANCE`, or what two float32 answers may differ by where float32 itself has fewer digits.

        Layer normalisation divides by a deviation that may be near 0, and so magnifies every rounding before it.
        """
        return max(TOLERANCE, 4 * self.rounding)

    @property
    def speed(self) -> str:
        """Both speeds in words."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return (
            f"{self.tokens_per_second:,.0f} tokens/s, recur {self.own_tokens_per_second:,.0f} "
            f"(a CPU, {threads}, in turn on the same texts)"
        )

    def record(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def drawn_texts(vocab_size: int, seed: int = 0) -> list[Ids]:
    """Random ids: a batch of texts of unequal lengths, among them the shortest possible."""
    random = np.random.default_rng(seed)
    lengths = np.concatenate([[1, 2, _LONGEST], random.integers(1, _LONGEST, _TEXTS - 3)])
    return [random.integers(0, vocab_size, length) for length in lengths]


def padded(texts: Sequence[Ids], pad: int = 0) -> tuple[Ids, Ids]:
    """Ids `(batch, time)` and lengths `(batch,)`."""
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    ids = np.full((len(texts), int(lengths.max())), pad, dtype=np.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = text
    return ids, lengths


def own_answers(net: Any, family: str, ids: Ids, lengths: Ids) -> Answers:
    """Our logits, in the order of the batch: `(batch, classes)`, or `(batch, time, vocabulary)`, NaN behind ends."""
    packed = pack_padded_sequence(
        torch.from_numpy(ids), torch.from_numpy(lengths), batch_first=True, enforce_sorted=False
    )
    with torch.inference_mode():
        if family == "sentiment":
            logits: Answers = net(packed).numpy()
            return logits
        rows = net.logits(net(PackedSequence(packed.data, packed.batch_sizes)).features)
        whole = PackedSequence(rows, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        dense = pad_packed_sequence(whole, batch_first=True, padding_value=float("nan"))[0]
        result: Answers = dense.numpy()
        return result


def compare(
    theirs: Callable[[Ids, Ids], Answers], net: Any, family: str, texts: Sequence[Ids], pad: int = 0
) -> Agreement:
    """Answer the same texts both ways, in chunks of as many as fit into memory.

    Args:
        theirs: from padded ids and lengths to logits.
        net: our network, in evaluation mode, float32 on the CPU.
        family: `sentiment` or `language`.
        texts: ids of each text.
        pad: what stands behind the ends.
    """
    exact = copy.deepcopy(net).double()
    width = net.embedding.num_embeddings if family == "language" else net.embedding.embedding_dim
    longest = max(map(len, texts))
    count = max(1, _NUMBERS // (longest * width))
    parts = [
        _compared(theirs, net, exact, family, texts[first : first + count], pad)
        for first in range(0, len(texts), count)
    ]
    difference, logits, rounding = (float(largest) for largest in np.max([part[:3] for part in parts], axis=0))
    same, rows, seconds, own_seconds = np.sum([part[3:] for part in parts], axis=0).tolist()
    tokens = sum(map(len, texts))
    return Agreement(
        texts=len(texts),
        shortest=min(map(len, texts)),
        longest=longest,
        difference=difference,
        logits=logits,
        rounding=rounding,
        same_answers=same / rows,
        tokens_per_second=tokens / seconds,
        own_tokens_per_second=tokens / own_seconds,
        threads=torch.get_num_threads(),
    )


class _Part(NamedTuple):
    """What `compare` finds in one chunk: three maxima, which keep a NaN, and four sums."""

    difference: float
    logits: float
    rounding: float
    same: int
    rows: int
    seconds: float
    own_seconds: float


def _compared(
    theirs: Callable[[Ids, Ids], Answers], net: Any, exact: Any, family: str, texts: Sequence[Ids], pad: int
) -> _Part:
    ids, lengths = padded(texts, pad)
    ours, other = own_answers(net, family, np.maximum(ids, 0), lengths), theirs(ids, lengths)
    own_seconds, seconds = _raced(
        lambda: own_answers(net, family, np.maximum(ids, 0), lengths), lambda: theirs(ids, lengths)
    )
    precise = own_answers(exact, family, np.maximum(ids, 0), lengths)
    places = np.arange(ids.shape[1]) < lengths[:, None]  # not behind a text's end
    real = places if family == "language" else places.any(1)
    mine, yours, true = (_probabilities(logits[real].astype(np.float64), family) for logits in (ours, other, precise))
    alike = mine.argmax(-1) == yours.argmax(-1)
    return _Part(
        difference=float(np.abs(mine - yours).max()),
        logits=float(np.abs(ours - other)[real].max()),
        rounding=float(np.abs(mine - true).max()),
        same=int(alike.sum()),
        rows=len(alike),
        seconds=seconds,
        own_seconds=own_seconds,
    )


def _raced(*rivals: Callable[[], Answers]) -> list[float]:
    """Median seconds of each, in turn: what else runs on this machine slows all of them. Each has answered before."""
    times: list[list[float]] = [[] for _ in rivals]
    for _ in range(_ROUNDS):
        for answer, own in zip(rivals, times, strict=True):
            start = time.perf_counter()
            answer()
            own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in times]


def _probabilities(logits: Answers, family: str) -> Answers:
    """Of the classes; of a language model logarithms, whose differences are those of its nats."""
    if logits.shape[-1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=-1)
    shifted = logits - logits.max(-1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    result: Answers = logs if family == "language" else np.exp(logs)
    return result


def onnx_answers(model: bytes, net: Any, family: str) -> Callable[[Ids, Ids], Answers]:
    """What onnxruntime gives, as `compare` takes it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs() if one.name.startswith("state_")]
    sizes = {one.name: one.shape[-1] for one in session.get_inputs()}

    def answer(ids: Ids, lengths: Ids) -> Answers:
        state = {name: np.zeros((1, len(ids), sizes[name]), dtype=np.float32) for name in names}
        logits: Answers = session.run(["logits"], {"ids": ids, "lengths": lengths, **state})[0]
        return logits

    return answer
