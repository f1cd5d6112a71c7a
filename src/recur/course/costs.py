"""What things cost: time in alternation, so that a busy machine slows all rivals alike, and parameters.

Times are CPU seconds of this process on one thread, the least of several rounds: what else runs on the machine hardly
counts.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_sequence

from recur.errors import UserError
from recur.nn.recurrent import Recurrent

_NEAR = 8  # words that the feed-forward net of `explosions` reads


def _race(rivals: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, float]:
    """Least CPU milliseconds of each rival, forward and backward, after one round that does not count."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {name: [] for name in rivals}
    try:
        for turn in range(rounds + 1):
            for name, run in rivals.items():
                began = time.process_time()
                run().square().sum().backward()
                if turn:
                    times[name].append(1000 * (time.process_time() - began))
    finally:
        torch.set_num_threads(threads)
    return {name: min(values) for name, values in times.items()}


def packing(
    seed: int, spreads: Sequence[float], mean: int = 60, batch: int = 32, hidden: int = 64, rounds: int = 3
) -> list[dict[str, Any]]:
    """Time of a padded, a packed and recur's LSTM on the same texts, by the spread of their lengths.

    Args:
        seed: of lengths and inputs.
        spreads: lengths lie evenly between `mean` times 1 - spread and 1 + spread.
        mean: mean length.
        batch: texts.
        hidden: features, in and out.
        rounds: of the race.

    Returns:
        rows with `ms` for the arms `padded`, `packed, sorted`, `packed, unsorted` and `recur`, and `useful`, the share
        of the padded batch that is text.
    """
    rows: list[dict[str, Any]] = []
    for spread in spreads:
        torch.manual_seed(seed)
        lengths = torch.linspace(mean * (1 - spread), mean * (1 + spread), batch).round().clamp_min(1).long()
        lengths = lengths[torch.randperm(batch)]
        texts = [torch.randn(int(n), hidden) for n in lengths]
        useful = float(lengths.sum()) / (batch * int(lengths.max()))
        times = _race(_packing_rivals(texts, lengths), rounds)
        rows += [{"arm": arm, "x": spread, "ms": ms, "useful": useful} for arm, ms in times.items()]
    return rows


def _packing_rivals(texts: list[Tensor], lengths: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Forward passes over the same texts with the same weights."""
    hidden = texts[0].shape[1]
    padded, (ordered, order) = pad_sequence(texts), lengths.sort(descending=True)
    padded_sorted = padded[:, order]
    theirs, ours = nn.LSTM(hidden, hidden), Recurrent(hidden, hidden)
    ours.load_state_dict(theirs.state_dict())
    packed = pack_sequence(texts, enforce_sorted=False)
    return {
        "padded": lambda: theirs(padded)[0],
        "packed, sorted": lambda: theirs(pack_padded_sequence(padded_sorted, ordered))[0].data,
        "packed, unsorted": lambda: theirs(pack_padded_sequence(padded, lengths, enforce_sorted=False))[0].data,
        "recur": lambda: ours(packed)[0].data,
    }


def cells(seed: int, sizes: Sequence[int], length: int = 50, batch: int = 32, rounds: int = 3) -> list[dict[str, Any]]:
    """Time and parameters of one layer of each cell, by its width.

    Args:
        seed: of weights and inputs.
        sizes: features, in and out.
        length: of the longest text.
        batch: texts.
        rounds: of the race.

    Returns:
        rows with `ms` and `parameters`: for `rnn`, `gru` and `lstm`, recur's engine on packed texts of unequal lengths;
        for the last two also `torch packed`, torch's own layers on the same texts, and `torch dense`, on as many texts
        of full length.
    """
    rows: list[dict[str, Any]] = []
    for size in sizes:
        torch.manual_seed(seed)
        lengths = torch.linspace(length / 2, length, batch).long()
        packed: PackedSequence = pack_sequence([torch.randn(int(n), size) for n in lengths], enforce_sorted=False)
        dense = torch.randn(length, batch, size)
        theirs = {"gru": nn.GRU(size, size), "lstm": nn.LSTM(size, size)}
        rivals: dict[str, tuple[nn.Module, Tensor | PackedSequence]] = {
            **{cell: (Recurrent(size, size, cell=cell, engine="fused"), packed) for cell in ("rnn", "gru", "lstm")},
            **{f"{cell}, torch dense": (net, dense) for cell, net in theirs.items()},
            **{f"{cell}, torch packed": (net, packed) for cell, net in theirs.items()},
        }
        times = _race({arm: partial(_outputs, net, texts) for arm, (net, texts) in rivals.items()}, rounds)
        rows += [
            {"arm": arm, "x": size, "ms": times[arm], "parameters": sum(p.numel() for p in net.parameters())}
            for arm, (net, _) in rivals.items()
        ]
    return rows


def _outputs(net: nn.Module, texts: Tensor | PackedSequence) -> Tensor:
    output: Tensor | PackedSequence = net(texts)[0]
    return output.data if isinstance(output, PackedSequence) else output


def peek(seed: int, tokens: int = 60_000, steps: int = 300, hidden: int = 64) -> list[dict[str, Any]]:
    """Perplexity of a language model that reads one way, and of one that reads both, on the embedded stories.

    The backward direction of the second has read the very token that is to be predicted.

    Args:
        seed: of weights and windows.
        tokens: of the text to learn from.
        steps: of Adam, each on 20 windows of 35 tokens.
        hidden: width.

    Returns:
        rows with `perplexity` on other text, for `one way`, `both ways`, and `best possible`.
    """
    from recur.data.synthetic import SyntheticText

    corpus = SyntheticText(tokens, 20_000, 1, seed=seed)
    texts = {name: corpus.split(name).write() for name in ("train", "val")}
    words = {name: [w for line in lines for w in (*line.split(), "<eos>")] for name, (lines, _) in texts.items()}
    known = {word: index for index, word in enumerate(sorted(set(words["train"]) | set(words["val"])))}
    ids = {name: torch.tensor([known[word] for word in own]) for name, own in words.items()}
    rows: list[dict[str, Any]] = []
    for arm, both in (("one way", False), ("both ways", True)):
        torch.manual_seed(seed)
        net = nn.ModuleDict(
            {
                "embed": nn.Embedding(len(known), hidden),
                "read": nn.LSTM(hidden, hidden, bidirectional=both),
                "say": nn.Linear(hidden * (2 if both else 1), len(known)),
            }
        )
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(steps):
            starts = torch.randint(len(ids["train"]) - 36, (20,))
            loss = _window_loss(net, torch.stack([ids["train"][s : s + 36] for s in starts], 1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        net.eval()
        with torch.no_grad():
            windows = ids["val"][: len(ids["val"]) // 36 * 36].view(-1, 36).T
            perplexity = float(_window_loss(net, windows).exp())
        rows.append({"arm": arm, "perplexity": perplexity})
    floor = torch.tensor(texts["val"][1] / len(words["val"])).exp()
    return [*rows, {"arm": "best possible", "perplexity": float(floor)}]


def _window_loss(net: nn.ModuleDict, windows: Tensor) -> Tensor:
    """Mean loss of each token but the first from those before it, `(time, batch)` to a scalar."""
    output, _ = net["read"](net["embed"](windows[:-1]))
    return nn.functional.cross_entropy(net["say"](output).flatten(0, 1), windows[1:].flatten())


def explosions(
    seed: int, rates: Sequence[float], steps: int = 60, hidden: int = 64, window: int = 20
) -> list[dict[str, Any]]:
    """Whether plain SGD without clipping meets a number that is not finite, for a ReLU RNN and a feed-forward net.

    Both predict the next word of the embedded stories: the RNN after every word of a window, the feed-forward net from
    the last eight words, through 2.4 times as many weights at the usual width.

    Args:
        seed: of weights and windows.
        rates: learning rates.
        steps: of SGD, each on 20 windows.
        hidden: width.
        window: words of a window.

    Returns:
        rows with `failed`, 1 or 0, at each rate.

    Raises:
        UserError: the window is too short for the feed-forward net.
    """
    from recur.data.synthetic import SyntheticText

    if window < _NEAR:
        raise UserError("window", window, f"must be at least {_NEAR}", "the feed-forward net reads as many words of it")

    lines, _ = SyntheticText(20_000, 1, 1, seed=seed).split("train").write()
    words = [word for line in lines for word in (*line.split(), "<eos>")]
    known = {word: index for index, word in enumerate(sorted(set(words)))}
    ids = torch.tensor([known[word] for word in words])
    rows: list[dict[str, Any]] = []
    for rate in rates:
        for arm in ("recurrent", "feed-forward"):
            torch.manual_seed(seed)
            net = _Next(arm, len(known), hidden)
            optimizer = torch.optim.SGD(net.parameters(), lr=rate)
            failed = 0.0
            for _ in range(steps):
                starts = torch.randint(len(ids) - window - 1, (20,))
                loss = net(torch.stack([ids[s : s + window + 1] for s in starts], 1))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if not bool(loss.isfinite()) or any(not bool(p.isfinite().all()) for p in net.parameters()):
                    failed = 1.0
                    break
            rows.append({"arm": arm, "x": rate, "failed": failed})
    return rows


class _Next(nn.Module):
    """Loss of the next word: after every word of a window (`recurrent`), or from the eight words before it."""

    def __init__(self, arm: str, vocabulary: int, hidden: int) -> None:
        super().__init__()
        self.recurrent = arm == "recurrent"
        self.embed, self.say = nn.Embedding(vocabulary, hidden), nn.Linear(hidden, vocabulary)
        self.read: nn.Module = (
            nn.RNN(hidden, hidden, nonlinearity="relu") if self.recurrent else nn.Linear(_NEAR * hidden, hidden)
        )

    def forward(self, windows: Tensor) -> Tensor:
        """Mean loss in nats of windows of ids, `(time, batch)`."""
        vectors = self.embed(windows[:-1])  # (time, batch, hidden)
        if self.recurrent:
            states, targets = self.read(vectors)[0], windows[1:]
        else:
            near = vectors.unfold(0, _NEAR, 1)  # (time - 7, batch, hidden, 8)
            states, targets = self.read(near.flatten(2)).relu(), windows[_NEAR:]
        return nn.functional.cross_entropy(self.say(states).flatten(0, 1), targets.flatten())
