"""Benchmark of predictions from Python: what `Run.predict` adds to the network's own work."""

import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch

from recur.benchmarks.harness import Report, Settings, race, ratio, spread

_TEXTS, _WORDS = 10_000, 20
_NETS = {  # of the experiments of these names
    "imdb_fast": {"embedding_dim": 100, "hidden_size": 256, "num_layers": 1, "pooling": "concat"},
    "imdb_guide": {"embedding_dim": 100, "hidden_size": 256, "num_layers": 2},
}


def predict(settings: Settings, report: Report) -> None:
    """`Run.predict` of short texts, tokenizer and answers included, beside the network on the same packed batches."""
    from recur.data.synthetic import SyntheticReviews
    from recur.data.text import Tokenizer
    from recur.inference.run import Run
    from recur.nn.classifier import Classifier
    from recur.tasks.sentiment import SentimentTask

    count = 500 if settings.quick else _TEXTS
    rows = SyntheticReviews(train_size=count, val_size=10, test_size=10).split("train").read()
    texts = [" ".join(str(text).split()[:_WORDS]) for text in rows.columns["text"]]
    tokenizer = Tokenizer.train(texts)
    tokens = sum(map(len, tokenizer.encode_batch(texts)))
    table: list[dict[str, Any]] = []
    for name, sizes in _NETS.items():
        torch.manual_seed(0)
        task = SentimentTask(
            partial(Classifier, **sizes),  # type: ignore[arg-type]
            vocab_size=tokenizer.vocab_size,
            num_classes=2,
            class_names=["negative", "positive"],
        )
        task.to(settings.device).eval().requires_grad_(False)
        run = Run(Path(name), None, {"data": {}}, {}, tokenizer, task)
        batches: list[Any] = []
        with task.net.register_forward_pre_hook(lambda _, given, kept=batches: kept.append(given[0])):
            run.predict(texts)
        network = partial(_read, task.net, batches)
        predicting = partial(run.predict, texts)
        times = race({"network": network, "predict": predicting}, settings.repeats, settings.device)
        for rival, values in times.items():
            middle = statistics.median(values)
            row = {"net of": name, "": rival, "ms": 1e3 * middle, "spread": spread(values)}
            table.append({**row, "texts/s": count / middle, "tokens/s": tokens / middle})
        report.bar(f"predict of {count:,} short texts, net of {name}: part of the network's own speed",
                   ratio(times, "network", "predict"), 0.9)  # fmt: skip
    report.table(f"{count:,} texts of {tokens / count:.0f} tokens", table)


@torch.inference_mode()
def _read(net: Any, batches: list[Any]) -> None:
    for batch in batches:
        net(batch)
