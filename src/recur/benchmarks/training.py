"""Benchmarks of whole training steps, of loading and of start-up."""

import argparse
import concurrent.futures
import itertools
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from recur.benchmarks.harness import Report, Times, _finish, imdb_lengths, spread
from recur.config.compose import conf_dir

# -- language ----------------------------------------------------------------------------------------------------------
STREAMS, BPTT, WIDTH, DROPOUT, RATE, CLIP = 20, 35, 200, 0.2, 20.0, 0.25  # of experiment=wikitext2_small
TURN = 100  # steps


# -- loader ------------------------------------------------------------------------------------------------------------
def loader(arguments: argparse.Namespace, report: Report) -> None:
    """The bucket plan: what padding would waste, how evenly ranks are loaded, how much epochs differ."""
    from recur.data.buckets import plan_epoch

    lengths = imdb_lengths(arguments)
    rows: list[dict[str, Any]] = []
    for ranks in (1, 8, 64, 1024):
        if len(lengths) < ranks * 8:
            continue
        began = time.perf_counter()
        plan = plan_epoch(lengths, 64, seed=0, epoch=1, world_size=ranks)
        seconds = time.perf_counter() - began
        other = plan_epoch(lengths, 64, seed=0, epoch=2, world_size=ranks)
        tokens = plan.tokens(lengths)
        imbalance = float((tokens.max(axis=1) / tokens.mean(axis=1)).mean() - 1)  # how much longer the fullest works
        mine, its = _batches(plan), _batches(other)
        shared = len(mine & its) / len(mine)
        waste = plan.waste(lengths)
        rows.append(
            {
                "ranks": ranks,
                "steps": plan.steps,
                "waste of a dense layout, %": 100 * waste,
                "fullest rank above the mean, %": 100 * imbalance,
                "batches shared by two epochs, %": 100 * shared,
                "ms to plan": seconds * 1e3,
            }
        )
        if ranks in (1, 64):
            report.bar(f"{ranks} ranks: waste of a dense layout", waste, 0.03, at_most=True)
            report.bar(f"{ranks} ranks: batches shared by two epochs", shared, 0.05, at_most=True)
        if ranks == 64:
            report.bar("64 ranks: fullest rank above the mean", imbalance, 0.05, at_most=True)
    report.table("IMDB lengths, batch 64 a rank", rows)


def _batches(plan: Any) -> set[frozenset[int]]:
    return {frozenset(plan.batch(s, r).tolist()) for s in range(plan.steps) for r in range(plan.world_size)}


# -- train -------------------------------------------------------------------------------------------------------------
def train(arguments: argparse.Namespace, report: Report) -> None:
    """Whole training steps through the training door, against a bare loop and the guides' own pipeline.

    Door and bare loop take the same steps in turn, and each step's fastest round counts for the overhead: a busy
    neighbour, who costs several times the 5 % looked for, only ever adds to a step.
    """
    steps, quick = (4, True) if arguments.quick else (8, False)
    trainer = "trainer=gpu" if arguments.device == "cuda" else "trainer=cpu"
    reviews = ["model=advanced_lstm", "data.max_length=null", trainer]
    if arguments.imdb:
        reviews += ["data=imdb", f"data.path={Path(arguments.imdb).resolve()}"]
    if quick:
        reviews += ["model.net.hidden_size=32"]
    words = ["data=synthetic_text", "model=language_model", trainer]
    rows: list[dict[str, Any]] = []
    for family, overrides, count in (("sentiment", reviews, steps), ("language", words, steps * 10)):
        rounds: dict[str, list[_Steps]] = {"training door": [], "bare loop": []}
        for _ in range(arguments.repeats):
            for name, run in (("training door", _through_the_door), ("bare loop", _alone(_bare_loop))):
                rounds[name].append(run(overrides, count, arguments.device))
        every = [one for found in rounds.values() for one in found]
        assert all(one.tokens == every[0].tokens for one in every), "the two loops had different batches"
        fastest = {
            name: sum(map(min, zip(*(one.seconds for one in found), strict=True))) for name, found in rounds.items()
        }
        overhead = fastest["training door"] / fastest["bare loop"]
        for name, found in rounds.items():
            values = [sum(one.tokens) / sum(one.seconds) for one in found]
            rows.append(
                {
                    "family": family,
                    "": name,
                    "tokens/s": statistics.median(values),
                    "spread": spread(values),
                    "tokens/s, fastest steps": sum(every[0].tokens) / fastest[name],
                    "last loss": found[-1].loss,
                }
            )
        report.bar(f"{family}: time over the bare loop", overhead - 1, 0.05, at_most=True)
        if family == "sentiment":
            slow = _guides_pipeline(overrides, 1, arguments.device)  # minutes a batch
            rows.append({"family": family, "": "the guides' pipeline", "tokens/s": slow})
            times = rows[0]["tokens/s"] / slow
            if arguments.device == "cpu":
                report.bar("sentiment: times faster than the guides' pipeline", times, 20.0)
    source = "full-length IMDB" if arguments.imdb else "embedded reviews (give --imdb for the real ones)"
    report.table(f"training steps, {source}", rows)


class _Steps(NamedTuple):
    """Tokens and seconds of each step, and the last one's loss."""

    tokens: list[int]
    seconds: list[float]
    loss: float


class _Turns:
    """Two processes that train by turns: a word in a file says whose turn it is, and waiting is not counted.

    Args:
        path: the file.
        name: who this is.
        other: who the other is.
        alone: whether the other has died, and is not to be waited for.
    """

    def __init__(self, path: Path, name: str, other: str, alone: Callable[[], bool]) -> None:
        self.path, self.name, self.other, self.alone = path, name, other, alone
        self.away = 0.0

    def now(self) -> float:
        """Seconds, those of waiting left out."""
        return time.perf_counter() - self.away

    def wait(self) -> None:
        """Until it is this one's turn."""
        began = time.perf_counter()
        while self.path.read_text(encoding="utf-8") not in (self.name, "anybody") and not self.alone():
            time.sleep(0.01)
        self.away += time.perf_counter() - began

    def leave(self, *, done: bool = False) -> None:
        """Give the turn to the other, for good where this one is done; keep it where the other is."""
        if self.path.read_text(encoding="utf-8") == "anybody":
            return
        beside = self.path.with_suffix("." + self.name)
        beside.write_text("anybody" if done else self.other, encoding="utf-8")
        beside.replace(self.path)


def clock(path: str, turns: str | None = None) -> Any:
    """A callback that writes when each training step ended, how many tokens it had and its loss, to a JSON file.

    Args:
        path: the file, with `began`, the moment before the first step, and `steps`.
        turns: file of `_Turns` with the process that started this one; None never waits.
    """
    from lightning.pytorch import Callback

    parent = os.getppid()
    shared = _Turns(Path(turns), "door", "plain", lambda: os.getppid() != parent) if turns else None
    now = shared.now if shared else time.perf_counter

    class Clock(Callback):
        def __init__(self) -> None:
            self.began, self.steps = 0.0, list[tuple[float, int, float]]()

        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.began = now()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            _finish(batch.text.data)
            self.steps.append((now(), batch.text.data.shape[0], float(outputs["loss"])))
            if shared and len(self.steps) % TURN == 0:
                shared.leave()
                shared.wait()

        def on_train_end(self, trainer: Any, module: Any) -> None:
            Path(path).write_text(json.dumps({"began": self.began, "steps": self.steps}), encoding="utf-8")

    return Clock()


def _alone(run: Callable[..., Any]) -> Callable[..., Any]:
    """The same function in a process of its own: a fresh one, as the training door is, with nothing allocated yet."""

    def apart(*words: Any) -> Any:
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
            return pool.submit(run, *words).result()

    return apart


def _through_the_door(overrides: list[str], count: int, device: str) -> _Steps:
    """`count` steps of `python -m recur.train`, after a step to warm up."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "steps.json")
        command = [
            *(sys.executable, "-m", "recur.train", *overrides),
            *(f"hydra.run.dir={folder}/run", "test=false", "trainer.max_epochs=1", "trainer.limit_val_batches=0"),
            f"trainer.limit_train_batches={count + 1}",
            *("callbacks.best=null", "callbacks.last=null"),
            f"+callbacks.clock={{_target_: recur.benchmarks.training.clock, path: {path}}}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode or not path.is_file():
            raise ValueError(f"recur.train failed: {done.stderr.strip().splitlines()[-1:]}")
        return _between(json.loads(path.read_text())["steps"])


def _between(ends: list[tuple[float, int, float]]) -> _Steps:
    """Steps from when each ended, its tokens and its loss; the first is not counted."""
    seconds = [end - begin for (begin, _, _), (end, _, _) in itertools.pairwise(ends)]
    return _Steps([tokens for _, tokens, _ in ends[1:]], seconds, ends[-1][2])


def _built(overrides: list[str]) -> tuple[Any, Any, Any]:
    """Config, data and task as the training door builds them."""
    import torch
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    from recur.config.compose import build

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", [*overrides, "hydra.runtime.output_dir=unused"], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    torch.manual_seed(cfg.seed)
    data = build(cfg.data)
    data.prepare_data()
    data.setup("fit")
    task = build(cfg.model, optimizer=build(cfg.optimizer), scheduler=build(cfg.scheduler), **data.model_arguments())
    return cfg, data, task


def _bare_loop(overrides: list[str], count: int, device: str) -> _Steps:
    """The same steps on the same batches with the same network and kernels, and nothing around them."""
    import torch

    cfg, data, task = _built(overrides)
    torch.manual_seed(cfg.seed)
    net = task.net.to(device).train()
    optimizer = task._optimizer(net.parameters())
    clip, state = cfg.trainer.gradient_clip_val, None
    loader = iter(data.train_dataloader())
    ends = []
    for _ in range(count + 1):
        batch = next(loader)
        text = batch.text.to(device)
        if data.family == "sentiment":
            value = task.loss(net(text), batch.labels.to(device))
        else:
            hidden = net(text, state)
            value = task.token_loss(hidden, batch.targets.to(device)).loss
            state = [tuple(part.detach() for part in one) for one in hidden.state]
        optimizer.zero_grad()
        value.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        last = float(value.detach())
        _finish(text.data)
        ends.append((time.perf_counter(), text.data.shape[0], last))
    return _between(ends)


def _guides_pipeline(overrides: list[str], count: int, device: str) -> float:
    """Tokens a second as the guides train: random order, tokenised as batches are collated, packed unsorted."""
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

    cfg, data, _ = _built(overrides)
    numbers = {token: i for i, token in enumerate(data.tokenizer.vocabulary)}
    unknown, pad = data.tokenizer.unk_id, len(numbers)
    net = cfg.model.net
    width, hidden = int(net.embedding_dim), int(net.hidden_size)

    def numericalise(text: str) -> "Tensor":
        words = re.findall(r"[a-z0-9']+|[.,()!?]", text.lower().replace("<br />", " "))
        return torch.tensor([numbers.get(word, unknown) for word in words] or [unknown])

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(pad + 1, width, padding_idx=pad)
            self.lstm = nn.LSTM(width, hidden, 2, bidirectional=True, dropout=0.5, batch_first=True)
            self.fc, self.dropout = nn.Linear(2 * hidden, 1), nn.Dropout(0.5)

        def forward(self, text: "Tensor", lengths: "Tensor") -> "Tensor":
            embedded = self.dropout(self.embedding(text))
            packed = pack_padded_sequence(embedded, lengths.to("cpu"), batch_first=True, enforce_sorted=False)
            _, (last, _) = self.lstm(packed)
            return self.fc(self.dropout(torch.cat((last[-2], last[-1]), dim=1)))

    model = Model().to(device)
    optimizer = torch.optim.Adam(model.parameters())
    order = torch.randperm(len(data.labels("train")), generator=torch.Generator().manual_seed(0)).tolist()
    tokens, began = 0, time.perf_counter()
    for start in range(0, 64 * count, 64):
        chosen = order[start : start + 64]
        texts = [numericalise(data.text("train", row)) for row in chosen]
        lengths = torch.tensor([len(text) for text in texts])
        padded = pad_sequence(texts, batch_first=True, padding_value=pad).to(device)
        labels = torch.as_tensor(data.labels("train")[chosen], device=device).float()
        optimizer.zero_grad()
        value = nn.functional.binary_cross_entropy_with_logits(model(padded, lengths).squeeze(1), labels)
        value.backward()
        optimizer.step()
        _finish(padded)
        tokens += int(lengths.sum())
    return tokens / (time.perf_counter() - began)


# -- startup -----------------------------------------------------------------------------------------------------------
def startup(arguments: argparse.Namespace, report: Report) -> None:
    """Seconds to the composed config, and to the first training step with everything cached."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "steps.json")
        runs = {
            "--cfg job": [sys.executable, "-m", "recur.train", "--cfg", "job"],
            "--help": [sys.executable, "-m", "recur.train", "--help"],
            "import torch and Lightning": [sys.executable, "-c", "import torch, lightning.pytorch"],
        }
        first_step = [
            *(sys.executable, "-m", "recur.train", f"hydra.run.dir={folder}/run", "trainer=cpu", "model=bilstm"),
            *("test=false", "trainer.limit_train_batches=1", "trainer.max_epochs=1", "trainer.limit_val_batches=1"),
            f"+callbacks.first={{_target_: recur.benchmarks.training.first_step, path: {path}}}",
        ]

        def command(words: list[str]) -> float:
            began = time.perf_counter()
            done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
            if done.returncode:
                raise ValueError(f"{' '.join(words[1:4])} failed: {done.stderr.strip().splitlines()[-1:]}")
            return time.perf_counter() - began

        def until_step() -> float:
            began = time.time()
            command(first_step)
            return float(path.read_text()) - began

        times: Times = {name: [] for name in (*runs, "first training step")}
        for words in runs.values():
            command(words)
        until_step()  # fills the cache
        for _ in range(arguments.repeats):
            for name, words in runs.items():
                times[name].append(command(words))
            times["first training step"].append(until_step())
    rows = [{"": n, "seconds": statistics.median(v), "spread": spread(v)} for n, v in times.items()]
    report.table("from the command line", rows)
    report.bar("seconds to --cfg job", statistics.median(times["--cfg job"]), 1.5, at_most=True)
    pairs = zip(times["first training step"], times["import torch and Lightning"], strict=True)
    beyond = statistics.median(step - imports for step, imports in pairs)
    report.bar("seconds to the first training step beyond the imports", beyond, 3.0, at_most=True)


def first_step(path: str) -> Any:
    """A callback that notes when the first training step is done and ends the process."""
    from lightning.pytorch import Callback

    class FirstStep(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            _finish(batch.text.data)
            Path(path).write_text(str(time.time()), encoding="utf-8")
            os._exit(0)

    return FirstStep()


def language(arguments: argparse.Namespace, report: Report) -> None:
    """An epoch of WikiText-2, as torch's `word_language_model` example trains it and through the training door.

    The same model and recipe (200 tied, dropout .2, SGD 20, clip .25, 20 streams of 35 tokens), a hundred steps of the
    one and of the other in turn; the door with data, Lightning, logging and checkpoints. Both models are then scored by
    the same evaluation.
    """
    import torch

    from recur.data.language import LanguageData
    from recur.runs.run import Run

    if not arguments.wikitext:
        print("\nleft out: it takes --wikitext FOLDER (or Salesforce/wikitext) and most of an hour on a laptop")
        return
    steps = 100 if arguments.quick else None
    data = LanguageData(arguments.wikitext, "wikitext-2-v1", batch_size=STREAMS, bptt=BPTT)
    data.prepare_data()
    data.setup()
    ids = torch.from_numpy(data.tokens("train").astype("int64"))
    folder = Path(arguments.out, "wikitext2", time.strftime("%Y-%m-%d_%H-%M-%S")).resolve()
    where = str(Path(arguments.wikitext).resolve()) if Path(arguments.wikitext).exists() else arguments.wikitext
    with tempfile.TemporaryDirectory() as shared:
        turn, ends = Path(shared, "turn"), Path(shared, "steps.json")
        turn.write_text("door", encoding="utf-8")
        words = [
            *(sys.executable, "-m", "recur.train", "experiment=wikitext2_small", f"data.path={where}"),
            *(f"hydra.run.dir={folder}", f"trainer={'gpu' if arguments.device == 'cuda' else 'cpu'}"),
            *("trainer.max_epochs=1", "test=false", *([f"trainer.limit_train_batches={steps}"] if steps else [])),
            f"+callbacks.clock={{_target_: recur.benchmarks.training.clock, path: {ends}, turns: {turn}}}",
        ]
        door = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # noqa: S603
        turns = _Turns(turn, "plain", "door", lambda: door.poll() is not None)
        model, tokens, seconds = plain_loop(ids, data.vocab_size, steps, arguments.device, turns)
        _, said = door.communicate()
        if door.returncode:
            raise ValueError(f"recur.train failed: {said.strip().splitlines()[-1:]}")
        found = json.loads(ends.read_text(encoding="utf-8"))
    run = Run.open(folder)
    ours = (sum(n for _, n, _ in found["steps"]), found["steps"][-1][0] - found["began"])
    measured = {"recur": (*ours, _perplexity(run.task, data))}
    run.task.net.load_state_dict(model.state_dict())  # the same names
    measured["plain torch loop"] = (tokens, seconds, _perplexity(run.task, data))
    rows = [
        {
            "": name,
            "tokens": tokens,
            "seconds": seconds,
            "tokens/s": tokens / seconds,
            "validation perplexity": perplexity,
        }
        for name, (tokens, seconds, perplexity) in measured.items()
    ]
    report.table("one epoch of WikiText-2, 200 tied", rows)
    best, plain = rows
    report.bar("language: times as fast as the plain loop", best["tokens/s"] / plain["tokens/s"], 1.5)
    surprise = best["validation perplexity"] / plain["validation perplexity"]
    report.bar("language: validation perplexity against the plain loop's", surprise, 1.0, at_most=True)


def plain_loop(
    ids: "Tensor", vocab_size: int, steps: int | None = None, device: str = "cpu", turns: _Turns | None = None
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
    import torch
    from torch.nn import functional as F

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
    _finish(decoder.weight)
    seconds = now() - began
    if turns:
        turns.leave(done=True)
    return model, tokens, seconds


def _perplexity(task: Any, data: Any) -> float:
    """Of the validation text, state carried, by the evaluation both models share."""
    import torch

    from recur.tasks.language_modeling import TokenStatistics

    statistics, state = TokenStatistics(), None
    with torch.inference_mode():
        for window in data.loader("val"):
            hidden = task.net(window.text, state)
            state = hidden.state
            statistics.update(task.token_loss(hidden, window.targets).nll)
    return float(statistics.compute()["perplexity"])
