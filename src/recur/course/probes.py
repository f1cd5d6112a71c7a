"""What claims measure on a finished run, besides its own `metrics.json`.

A probe takes the run's folder and gives measures by name and, for charts, points of a curve.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

Measured = tuple[dict[str, float], list[dict[str, float]]]
_TEXTS = 128


def _texts(run: Any, split: str = "val", most: int = _TEXTS) -> tuple[list[Tensor], Tensor]:
    """Ids and labels of the first texts of a run's split."""
    from recur.config.compose import build

    data = build(run.config["data"])
    data.use(run.tokenizer, run.data["class_names"])
    data.setup()
    texts, labels = data.texts(split), data.labels(split)[:most]
    return [torch.as_tensor(texts[row].astype("int64")) for row in range(len(labels))], torch.as_tensor(labels)


def gradients(folder: Path) -> Measured:
    """Norm of dL/dh by lag, before and after training, on texts of one length; see `recur.nn.gradient_flow`.

    Measures: `decay_before` and `decay_after`, the decimal logarithm of the norm at the longest lag over that at lag 0,
    averaged over texts. The curve holds `lag`, `before` and `after` (geometric means, divided by that at lag 0).
    """
    from recur.nn.gradient_flow import gradient_by_lag
    from recur.runs.run import Run

    run = Run.open(folder)
    texts, labels = _texts(run)
    length = max(map(len, texts))
    same = [index for index, ids in enumerate(texts) if len(ids) == length]
    ids, labels = torch.stack([texts[i] for i in same], 1), labels[same]  # (time, batch)
    net = run.task.net

    def loss(hidden: Tensor) -> Tensor:
        logits = net.head(hidden)
        if logits.shape[1] == 1:
            return torch.nn.functional.binary_cross_entropy_with_logits(
                logits[:, 0], labels.to(logits.dtype), reduction="none"
            )
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    def measured() -> Tensor:
        norms = gradient_by_lag(net.recurrent, net.embedding(ids), loss)  # (lags, texts)
        logs = norms.double().clamp_min(1e-30).log10()
        return (logs - logs[0]).mean(1)

    after = measured()
    torch.manual_seed(int(run.config["seed"]))
    net.recurrent.reset_parameters()
    net.head.reset_parameters()
    torch.nn.init.normal_(net.embedding.weight, std=float(run.config["model"]["net"].get("embedding_std", 1.0)))
    before = measured()
    curve = [
        {"lag": float(lag), "before": 10 ** float(before[lag]), "after": 10 ** float(after[lag])}
        for lag in range(length)
    ]
    return {"decay_before": float(before[-1]), "decay_after": float(after[-1])}, curve


def pads(folder: Path) -> Measured:
    """Accuracy of the last state when texts are followed by pads (zero vectors), which a net without packing reads.

    Measures: `accuracy_0`, `accuracy_10`, ... and `distance_10`, ..., the mean distance of the last states from those
    without pads in units of their own mean length; `accuracy_lowest` of all counts. The curve holds `pads` and
    `accuracy`.
    """
    from recur.runs.run import Run

    run = Run.open(folder)
    texts, labels = _texts(run, most=500)
    net = run.task.net
    measures: dict[str, float] = {}
    curve = []
    clean = None
    for count in (0, 5, 10, 20, 50, 100):
        with torch.no_grad():
            rows = [torch.cat([net.embedding(ids), torch.zeros(count, net.embedding.embedding_dim)]) for ids in texts]
            packed = pack_sequence(rows, enforce_sorted=False)
            states, final = net.recurrent(packed)
            assert packed.unsorted_indices is not None
            last = net.recurrent.last_outputs(states, final)[packed.unsorted_indices]
            logits = net.head(last)
        guess = (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)
        accuracy = float((guess == labels).double().mean())
        clean = last if clean is None else clean
        distance = float(((last - clean).norm(dim=1) / clean.norm(dim=1).mean()).mean())
        measures |= {f"accuracy_{count}": accuracy, f"distance_{count}": distance}
        curve.append({"pads": float(count), "accuracy": accuracy, "distance": distance})
    measures["accuracy_lowest"] = min(point["accuracy"] for point in curve)
    return measures, curve


def recited(folder: Path) -> Measured:
    """Whether a run writes its training sentence again from the sentence's first ten characters: 1 or 0."""
    from recur.runs.run import Run

    run = Run.open(folder)
    sentence = str(run.config["data"]["text"])
    ids = torch.tensor(run.tokenizer.encode(sentence))
    begin = int(run.config["data"]["window"])
    steps = run.task.generate(ids[:begin, None], temperature=0.0)
    written = [int(next(steps)[0]) for _ in range(len(ids) - begin)]
    right = sum(a == b for a, b in zip(written, ids[begin:].tolist(), strict=True))
    return {"exact": float(right == len(written)), "right": right / len(written)}, []
