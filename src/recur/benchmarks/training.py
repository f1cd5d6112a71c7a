"""Benchmarks of whole training steps, of loading and of start-up."""

import concurrent.futures
import itertools
import json
import multiprocessing
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

from recur.benchmarks.harness import Report, Settings, Times, imdb_lengths, ratio, spread, synchronize
from recur.config.compose import build, command_line, compose_run
from recur.nn import compiled
from recur.runs.precision import EXACT, LOW, cpu_gains
from recur.tasks.base import build_optimizer


# -- loader ------------------------------------------------------------------------------------------------------------
def loader(settings: Settings, report: Report) -> None:
    """The bucket plan: what padding would waste, how evenly ranks are loaded, how much epochs differ."""
    from recur.data.buckets import plan_epoch

    lengths = imdb_lengths(settings)
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
            report.bar(f"{ranks} rank{'s' * (ranks > 1)}: waste of a dense layout", waste, 0.03, at_most=True)
        if ranks == 64:
            report.bar("64 ranks: fullest rank above the mean", imbalance, 0.05, at_most=True)
    report.table("IMDB lengths, batch 64 a rank", rows)


def _batches(plan: Any) -> set[frozenset[int]]:
    return {frozenset(plan.batch(s, r).tolist()) for s in range(plan.steps) for r in range(plan.world_size)}


# -- train -------------------------------------------------------------------------------------------------------------
def train(settings: Settings, report: Report) -> None:
    """Whole training steps through the command, against a bare loop, the former kernels and the guides' own pipeline.

    Command and bare loops take the same steps in turn, and each step's fastest round counts: a busy neighbour, who
    costs several times the 5 % looked for, only ever adds to a step. The former kernels are those of torch's operations
    (`recur.nn.engine`, products by MKL), in float32. With `--imdb` and `--wikitext` the published recipes are measured
    too.
    """
    trainer = "trainer=gpu" if settings.device == "cuda" else "trainer=cpu"
    lows = settings.device == "cuda" or cpu_gains()
    rows: list[dict[str, Any]] = []
    for name, overrides, count in _trained(settings):
        words = [*overrides, trainer]
        exact = _race(words, count, settings, f"trainer.precision={EXACT}", former=settings.device == "cpu")
        low = _race(words, count, settings, f"trainer.precision={LOW}", former=False) if lows else {}
        steps = {f"{title}, {EXACT}": some for title, some in exact.items()}
        steps |= {f"{title}, {LOW}": some for title, some in low.items()}
        rows += [_row(name, title, some) for title, some in steps.items()]
        for precision in (EXACT, LOW) if low else (EXACT,):
            ours, bare = _fastest(steps[f"command, {precision}"]), _fastest(steps[f"bare loop, {precision}"])
            report.bar(f"{name}, {precision}: time as a multiple of the bare loop's", ours / bare, 1.05, at_most=True)
            former = steps.get(f"former kernels, {EXACT}")
            if former:
                bar = 1.3 if precision == EXACT else 1.8
                report.bar(f"{name}, {precision}: times faster than the former kernels", _fastest(former) / ours, bar)
        if name == "sentiment":
            slow = _alone(_guides_pipeline)(words, 1, settings.device)  # minutes a batch
            rows.append({"": name, "loop": "the guides' pipeline", "tokens/s": slow})
            times = _rate(steps[f"command, {EXACT}"]) / slow
            if settings.device == "cpu":
                report.bar("sentiment: times faster than the guides' pipeline", times, 20.0)
    source = "full-length IMDB" if settings.imdb else "embedded reviews (give --imdb for the real ones)"
    report.table(f"training steps, {source}", rows)


def _trained(settings: Settings) -> list[tuple[str, list[str], int]]:
    """What is trained: a name, the config, and how many steps are measured."""
    reviews, imdb = ["model=advanced_lstm", "data.max_length=null"], []
    if settings.imdb:
        imdb = [f"data.path={Path(settings.imdb).resolve()}"]
        reviews += ["data=imdb", *imdb]
    if settings.quick:
        reviews += ["model.net.hidden_size=32"]
    steps = 4 if settings.quick else 8
    runs = [
        ("sentiment", reviews, steps),
        ("language", ["data=synthetic_text", "model=language_model"], 10 * steps),
    ]
    if settings.imdb:  # word vectors and a fitted model of n-grams cost minutes and change no step
        recipe = ["experiment=imdb_fast", *imdb, "data.vectors=null", "data.unlabelled=null", "model.net.ngrams=null"]
        runs.append(("imdb_fast", recipe, 4 * steps))
    if settings.wikitext:
        where = Path(settings.wikitext).resolve() if Path(settings.wikitext).exists() else settings.wikitext
        recipe = ["experiment=wikitext2_small", f"data.path={where}", "model.sampled_softmax=0"]  # as it was before
        runs.append(("wikitext2_small", recipe, 10 * steps))
    return runs


def _race(
    words: list[str], count: int, settings: Settings, precision: str, *, former: bool
) -> dict[str, list["_Steps"]]:
    """The steps of the command, the bare loop and, if wanted, that loop with the former kernels, in turn."""
    rivals: dict[str, Callable[..., Any]] = {"command": _through_the_command, "bare loop": _alone(_bare_loop)}
    if former:
        rivals["former kernels"] = _alone(_former_loop)
    rounds: dict[str, list[_Steps]] = {name: [] for name in rivals}
    for _ in range(settings.repeats):
        for name, run in rivals.items():
            rounds[name].append(run([*words, precision], count, settings.device))
    every = [one for some in rounds.values() for one in some]
    assert all(one.tokens == every[0].tokens for one in every), "the loops had different batches"
    return rounds


def _fastest(rounds: list["_Steps"]) -> float:
    """Seconds of all steps, each one's fastest round."""
    return sum(map(min, zip(*(one.seconds for one in rounds), strict=True)))


def _rate(rounds: list["_Steps"]) -> float:
    return statistics.median(sum(one.tokens) / sum(one.seconds) for one in rounds)


def _row(name: str, title: str, rounds: list["_Steps"]) -> dict[str, Any]:
    values = [sum(one.tokens) / sum(one.seconds) for one in rounds]
    return {
        "": name,
        "loop": title,
        "tokens/s": statistics.median(values),
        "spread": spread(values),
        "tokens/s, fastest steps": sum(rounds[0].tokens) / _fastest(rounds),
        "last loss": rounds[-1].loss,
    }


class _Steps(NamedTuple):
    """Tokens and seconds of each step, and the last one's loss."""

    tokens: list[int]
    seconds: list[float]
    loss: float


def _alone(run: Callable[..., Any]) -> Callable[..., Any]:
    """The same function in a process of its own: a fresh one, as the command is, and with its settings."""

    def apart(*words: Any) -> Any:
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
            return pool.submit(_as_the_command, run, *words).result()

    return apart


def _as_the_command(run: Callable[..., Any], *words: Any) -> Any:
    from recur.training.start import process_settings

    with process_settings():
        return run(*words)


def _through_the_command(overrides: list[str], count: int, device: str) -> _Steps:
    """`count` steps of `python -m recur.train`, after a step to warm up."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "steps.json")
        command = [
            *(sys.executable, "-m", "recur.train", *overrides),
            *(f"hydra.run.dir={folder}/run", "test=false", "trainer.max_epochs=1", "baseline=false"),
            # the validation after the last step is not timed, and without any a metric would be missed
            *("trainer.limit_val_batches=1", "trainer.num_sanity_val_steps=0"),
            f"trainer.limit_train_batches={count + 1}",
            *("callbacks.best=null", "callbacks.last=null"),
            f"+callbacks.clock={{_target_: recur.benchmarks.clock.clock, path: {path}}}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode or not path.is_file():
            raise ValueError(f"recur.train failed: {done.stderr.strip().splitlines()[-1:]}")
        return _between(json.loads(path.read_text())["steps"])


def _between(ends: list[tuple[float, int, float]]) -> _Steps:
    """Steps from when each ended, its tokens and its loss; the first is not counted."""
    seconds = [end - begin for (begin, _, _), (end, _, _) in itertools.pairwise(ends)]
    return _Steps([tokens for _, tokens, _ in ends[1:]], seconds, ends[-1][2])


def _built(overrides: list[str]) -> tuple[dict[str, Any], Any, Any]:
    """Config, data and task as the command builds them."""
    import torch

    config = compose_run(command_line([*overrides, "hydra.run.dir=unused"])).config
    torch.manual_seed(config["seed"])
    data = build(config["data"], "data")
    data.prepare_data()
    data.setup("fit")
    parts = {group: build(config[group], group) for group in ("optimizer", "scheduler")}
    return config, data, build(config["model"], "model", **parts, **data.model_arguments())


def _bare_loop(overrides: list[str], count: int, device: str) -> _Steps:
    """The same steps on the same batches with the same network and kernels, and nothing around them."""
    import torch

    config, data, task = _built(overrides)
    low = config["trainer"]["precision"] == LOW
    torch.manual_seed(config["seed"])
    net = task.net.to(device).train()
    optimizer = build_optimizer(task._optimizer, net.parameters())
    clip, state = config["trainer"]["gradient_clip_val"], None
    loader = iter(data.train_dataloader())
    ends = []
    for _ in range(count + 1):
        batch = next(loader)
        text = batch.text.to(device)
        with torch.autocast(device, torch.bfloat16, enabled=low):
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
        synchronize(text.data)
        ends.append((time.perf_counter(), text.data.shape[0], last))
    return _between(ends)


def _former_loop(overrides: list[str], count: int, device: str) -> _Steps:
    """The bare loop without the compiled kernels, in a process of its own."""
    compiled.available = lambda dtype: False
    return _bare_loop(overrides, count, device)


def _guides_pipeline(overrides: list[str], count: int, device: str) -> float:
    """Tokens a second as the guides train: random order, tokenised as batches are collated, packed unsorted."""
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

    config, data, _ = _built(overrides)
    numbers = {token: i for i, token in enumerate(data.tokenizer.vocabulary)}
    unknown, pad = data.tokenizer.unk_id, len(numbers)
    net = config["model"]["net"]
    width, hidden = int(net["embedding_dim"]), int(net["hidden_size"])

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
        synchronize(padded)
        tokens += int(lengths.sum())
    return tokens / (time.perf_counter() - began)


# -- startup -----------------------------------------------------------------------------------------------------------
def startup(settings: Settings, report: Report) -> None:
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
            f"+callbacks.first={{_target_: recur.benchmarks.clock.first_step, path: {path}}}",
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
        for _ in range(settings.repeats):
            for name, words in runs.items():
                times[name].append(command(words))
            times["first training step"].append(until_step())
    rows = [{"": n, "seconds": statistics.median(v), "spread": spread(v)} for n, v in times.items()]
    report.table("from the command line", rows)
    report.bar("seconds to --cfg job", statistics.median(times["--cfg job"]), 1.5, at_most=True)
    multiple = ratio(times, "first training step", "import torch and Lightning")
    report.bar("time to the first training step as a multiple of the imports'", multiple, 2.0, at_most=True)
