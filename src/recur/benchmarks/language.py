"""Benchmark of a language model's training: an epoch of WikiText-2 beside torch's own example."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recur.benchmarks.clock import TURN, Turns
from recur.benchmarks.harness import Report, Settings, synchronize
from recur.data.language import LanguageData
from recur.runs.precision import EXACT
from recur.runs.run import Run
from recur.tasks.language_modeling import TokenStatistics
from recur.training.start import process_settings

STREAMS, BPTT, WIDTH, DROPOUT, RATE, CLIP = 20, 35, 200, 0.2, 20.0, 0.25  # of experiment=wikitext2_small


def language(settings: Settings, report: Report) -> None:
    """An epoch of WikiText-2, as torch's `word_language_model` example trains it and through the command.

    The same model and recipe (200 tied, dropout .2, SGD 20, clip .25, 20 streams of 35 tokens), a hundred steps of
    each in turn; the command with data, Lightning, logging and checkpoints. Both models are then scored by
    the same evaluation.
    """
    if not settings.wikitext:
        print("\nleft out: it takes --wikitext FOLDER (or Salesforce/wikitext) and most of an hour on a laptop")
        return
    steps = 100 if settings.quick else None
    data = LanguageData(settings.wikitext, "wikitext-2-v1", batch_size=STREAMS, bptt=BPTT)
    data.prepare_data()
    data.setup()
    ids = torch.from_numpy(data.tokens("train").astype("int64"))
    folder = Path(settings.out, "wikitext2", time.strftime("%Y-%m-%d_%H-%M-%S")).resolve()
    where = str(Path(settings.wikitext).resolve()) if Path(settings.wikitext).exists() else settings.wikitext
    with tempfile.TemporaryDirectory() as shared:
        turn, ends = Path(shared, "turn"), Path(shared, "steps.json")
        turn.write_text("command", encoding="utf-8")
        words = [
            *(sys.executable, "-m", "recur.train", "experiment=wikitext2_small", f"data.path={where}"),
            *(f"hydra.run.dir={folder}", f"trainer={'gpu' if settings.device == 'cuda' else 'cpu'}"),
            *("model.sampled_softmax=0", "scheduler=plateau"),  # as the plain loop has it
            *("trainer.max_epochs=1", "test=false", *([f"trainer.limit_train_batches={steps}"] if steps else [])),
            f"+callbacks.clock={{_target_: recur.benchmarks.clock.clock, path: {ends}, turns: {turn}}}",
        ]
        command = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # noqa: S603
        turns = Turns(turn, "plain", "command", lambda: command.poll() is not None)
        with process_settings():  # as the command has them: denormals and freed memory cost the loop as much
            model, tokens, seconds = plain_loop(ids, data.vocab_size, steps, settings.device, turns)
        _, errors = command.communicate()
        if command.returncode:
            raise ValueError(f"recur.train failed: {errors.strip().splitlines()[-1:]}")
        recorded = json.loads(ends.read_text(encoding="utf-8"))
    run = Run.open(folder)
    ours = (sum(n for _, n, _ in recorded["steps"]), recorded["steps"][-1][0] - recorded["began"])
    measured = {"recur": (*ours, _perplexity(run.task, data))}
    run.task.net.load_state_dict(model.state_dict())  # the same names
    measured["plain torch loop"] = (tokens, seconds, _perplexity(run.task, data))
    rows = [
        {
            "": name,
            "precision": run.config["trainer"]["precision"] if name == "recur" else EXACT,
            "tokens": tokens,
            "seconds": seconds,
            "tokens/s": tokens / seconds,
            "validation perplexity": perplexity,
        }
        for name, (tokens, seconds, perplexity) in measured.items()
    ]
    report.table("one epoch of WikiText-2, 200 tied", rows)
    best, plain = rows
    report.bar("language: times as fast as the plain loop", best["tokens/s"] / plain["tokens/s"], 2.5)
    perplexity_ratio = best["validation perplexity"] / plain["validation perplexity"]
    report.bar("language: validation perplexity against the plain loop's", perplexity_ratio, 1.0, at_most=True)


def plain_loop(
    ids: "Tensor", vocab_size: int, steps: int | None = None, device: str = "cpu", turns: Turns | None = None
) -> tuple[Any, int, float]:
    """One epoch as torch's example trains: `nn.LSTM`, a full matrix of log-probabilities, SGD by hand.

    Args:
        ids: the training text, `(tokens,)` int64.
        vocab_size: number of words.
        steps: windows to train on; None for all.
        device: cpu or cuda.
        turns: taken with another process; None for none.

    Returns:
        The model, tokens trained on, seconds it took.
    """
    torch.manual_seed(0)
    embedding, decoder = nn.Embedding(vocab_size, WIDTH), nn.Linear(WIDTH, vocab_size)
    recurrent = nn.LSTM(WIDTH, WIDTH, 2, dropout=DROPOUT)
    model = nn.ModuleDict({"embedding": embedding, "recurrent": recurrent, "decoder": decoder}).to(device)
    decoder.weight = embedding.weight
    nn.init.uniform_(embedding.weight, -0.1, 0.1)
    nn.init.zeros_(decoder.bias)
    length = len(ids) // STREAMS
    source = ids[: length * STREAMS].view(STREAMS, length).t().contiguous().to(device)  # (time, streams)
    if turns:
        turns.wait()
    now = turns.now if turns else time.perf_counter
    state, tokens, began = None, 0, now()
    for number, start in enumerate(list(range(0, length - 1, BPTT))[:steps]):
        if turns and number and number % TURN == 0:
            turns.leave()
            turns.wait()
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
    synchronize(decoder.weight)
    seconds = now() - began
    if turns:
        turns.leave(done=True)
    return model, tokens, seconds


def _perplexity(task: Any, data: Any) -> float:
    """Of the validation text, state carried, by the evaluation both models share."""
    statistics, state = TokenStatistics(), None
    with torch.inference_mode():
        for window in data.loader("val"):
            hidden = task.net(window.text, state)
            state = hidden.state
            statistics.update(task.token_loss(hidden, window.targets).nll)
    return float(statistics.compute()["perplexity"])
