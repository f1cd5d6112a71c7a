"""WikiText-2 against the plain torch loop: `python -m recur.bench_language --data FOLDER`.

One epoch of the same model with the same recipe (200 tied, dropout .2, SGD 20, clip .25, 20 streams of 35 tokens) twice
on this machine, one after the other: as torch's `word_language_model` example trains it, and through this project's
training door, with data, Lightning, logging and checkpoints. Both models are then scored by the same evaluation.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recur import cli

if TYPE_CHECKING:
    import torch

STREAMS, BPTT, WIDTH, DROPOUT, RATE, CLIP = 20, 35, 200, 0.2, 20.0, 0.25


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `python -m recur.bench_language`."""
    parser = argparse.ArgumentParser(
        prog="recur.bench_language", description="WikiText-2 against the plain torch loop."
    )
    parser.add_argument("--data", default="Salesforce/wikitext", help="hub id, or a folder laid out as on the hub")
    parser.add_argument("--steps", type=int, help="training windows instead of a whole epoch, to try it")
    parser.add_argument("--out", default="outputs/bench/wikitext2", help="folder of the run and of the JSON")
    arguments = parser.parse_args(argv)
    cli.guard(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    import torch

    from recur.runs import Run, provenance

    folder = Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    data = _data(arguments.data)
    rows: dict[str, dict[str, float]] = {}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)

    ids = torch.from_numpy(data.tokens("train").astype("int64"))
    model, tokens, seconds = plain_loop(ids, data.vocab_size, arguments.steps)
    rows["plain"] = {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}
    print(f"plain torch loop: {tokens / seconds:,.0f} tokens/s", flush=True)

    run_folder = folder / "run"
    limit = [] if arguments.steps is None else [f"trainer.limit_train_batches={arguments.steps}"]
    _train(run_folder, [f"data.path={arguments.data}", *limit])
    record = json.loads((run_folder / "metrics.json").read_text())
    rows["recur"] = {
        "tokens": round(record["tokens_per_second"] * record["train_seconds"]),
        "seconds": record["train_seconds"],
        "tokens_per_second": record["tokens_per_second"],
    }
    print(f"recur: {record['tokens_per_second']:,.0f} tokens/s", flush=True)

    run = Run.open(run_folder)
    rows["recur"]["val_perplexity"] = _perplexity(run.task, data)
    run.task.net.load_state_dict(model.state_dict())  # the same names
    rows["plain"]["val_perplexity"] = _perplexity(run.task, data)

    ratio = rows["recur"]["tokens_per_second"] / rows["plain"]["tokens_per_second"]
    print("\n| | tokens/s | seconds | validation perplexity |\n|---|---|---|---|")
    for name, row in rows.items():
        figures = f"{row['tokens_per_second']:,.0f} | {row['seconds']:.0f} | {row['val_perplexity']:.2f}"
        print(f"| {name} | {figures} |")
    print(f"\nrecur is {ratio:.2f} times as fast")
    result = {"rows": rows, "ratio": ratio, "steps": arguments.steps, **provenance()}
    (folder / "wikitext2.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _data(path: str) -> Any:
    from recur.data.language import LanguageData

    data = LanguageData(path, "wikitext-2-v1", batch_size=STREAMS, bptt=BPTT)
    data.prepare_data()
    data.setup()
    return data


def _train(folder: Path, overrides: list[str]) -> None:
    """A run through the door, in a process of its own as users have it."""
    import subprocess

    fixed = [
        "experiment=wikitext2_small",
        f"hydra.run.dir={folder}",
        "trainer=cpu",
        "trainer.max_epochs=1",
        "test=false",
    ]
    command = [sys.executable, "-m", "recur.train", *fixed, *overrides]
    done = subprocess.run(command, check=False)  # noqa: S603
    if done.returncode:
        raise ValueError(f"the training door failed with exit code {done.returncode}")


def plain_loop(ids: "torch.Tensor", vocab_size: int, steps: int | None = None) -> tuple[Any, int, float]:
    """One epoch as torch's example trains: `nn.LSTM`, a full matrix of log-probabilities, SGD by hand.

    Args:
        ids: the training text, `(tokens,)` int64.
        vocab_size: number of words.
        steps: windows to train on; None for all.

    Returns:
        The model, tokens trained on, seconds it took.
    """
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.manual_seed(0)
    embedding, decoder = nn.Embedding(vocab_size, WIDTH), nn.Linear(WIDTH, vocab_size)
    recurrent = nn.LSTM(WIDTH, WIDTH, 2, dropout=DROPOUT)
    model = nn.ModuleDict({"embedding": embedding, "recurrent": recurrent, "decoder": decoder})
    decoder.weight = embedding.weight
    nn.init.uniform_(embedding.weight, -0.1, 0.1)
    nn.init.zeros_(decoder.bias)
    length = len(ids) // STREAMS
    source = ids[: length * STREAMS].view(STREAMS, length).t().contiguous()  # (time, streams)
    starts = list(range(0, length - 1, BPTT))[:steps]
    state, tokens, began = None, 0, time.perf_counter()
    for start in starts:
        size = min(BPTT, length - 1 - start)
        inputs, targets = source[start : start + size], source[start + 1 : start + 1 + size].reshape(-1)
        if state is not None:
            state = tuple(part.detach() for part in state)
        model.zero_grad()
        output, state = recurrent(F.dropout(embedding(inputs), DROPOUT), state)
        logits = decoder(F.dropout(output, DROPOUT)).view(-1, vocab_size)
        loss = F.nll_loss(F.log_softmax(logits, 1), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.data.add_(parameter.grad, alpha=-RATE)
        tokens += len(targets)
    return model, tokens, time.perf_counter() - began


def _perplexity(task: Any, data: Any) -> float:
    import torch

    from recur.tasks.language_modeling import TokenStatistics

    statistics, state = TokenStatistics(), None
    with torch.inference_mode():
        for window in data.loader("val"):
            hidden = task.net(window.text, state)
            state = hidden.state
            statistics.update(task.token_loss(hidden, window.targets).nll)
    return float(statistics.compute()["perplexity"])


if __name__ == "__main__":
    main()
