"""The train command: composing, mistakes in one line, what a run leaves behind, going on in place, many processes."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import EASY, ROOT, train
from recur.runs.run import Run, load_checkpoint
from recur.train import main
from support.commands import run_command

TINY = [*EASY, "trainer.max_epochs=1"]


def shell(*words: str, cwd: Path | None = None, module: bool = True) -> subprocess.CompletedProcess[str]:
    """The command as a person types it."""
    start = [sys.executable, "-m", "recur.train"] if module else [str(Path(sys.executable).with_name("recur-train"))]
    return subprocess.run([*start, *words], capture_output=True, text=True, timeout=300, cwd=cwd, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("module", [True, False], ids=["python -m", "console script"])
def test_the_config_is_shown_from_any_folder_without_loading_torch(tmp_path, module):
    started = time.perf_counter()
    done = shell("--cfg", "job", "model.net.hidden_size=7", cwd=tmp_path, module=module)
    assert done.returncode == 0, done.stderr
    assert "hidden_size: 7" in done.stdout
    assert not list(tmp_path.iterdir())
    assert time.perf_counter() - started < 30  # a hang, not a speed: `make bench` holds the speed


def test_help_names_groups_experiments_and_commands():
    text = run_command("train", "--help").stdout
    for word in ("data:", "model:", "optimizer:", "scheduler:", "trainer:", "callbacks:", "logger:", "experiment:"):
        assert word in text
    for experiment in (ROOT / "conf" / "experiment").glob("*.yaml"):
        assert experiment.stem in text
    assert text.count("python -m recur.train") >= 3


def test_a_run_leaves_all_that_is_needed_to_use_it(trained_run):
    names = {path.name for path in trained_run.iterdir()}
    assert {"config.yaml", "tokenizer.json", "checkpoints", "metrics.json", "train.log", ".hydra"} <= names
    record = json.loads((trained_run / "metrics.json").read_text())
    assert record["test"]["accuracy"] > 0.8
    assert record["ceiling"] == {"accuracy": 1.0}
    assert record["seed"] == 0
    assert record["parameters"]["trainable"] == sum(p.numel() for p in Run.open(trained_run).task.parameters())
    for key in ("commit", "versions", "device", "wall_seconds", "tokens_per_second", "peak_memory_mib", "command"):
        assert record[key], key


def test_a_checkpoint_stands_alone_and_holds_no_code(trained_run, tmp_path):
    alone = tmp_path / "moved.ckpt"
    alone.write_bytes((trained_run / "checkpoints" / "best.ckpt").read_bytes())
    content = load_checkpoint(alone)  # weights_only=True
    assert content["recur"]["config"]["seed"] == 0
    run, whole = Run.open(alone), Run.open(trained_run)
    assert run.tokenizer.vocabulary == whole.tokenizer.vocabulary
    for one, other in zip(run.task.parameters(), whole.task.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_foreign_class_in_a_checkpoint_is_refused(trained_run, tmp_path):
    content = load_checkpoint(trained_run / "checkpoints" / "best.ckpt")
    content["recur"]["config"]["model"]["net"]["_target_"] = "os.system"
    torch.save(content, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=r"os\.system"):
        Run.open(tmp_path / "evil.ckpt")


def test_tensorboard_has_every_curve_and_the_final_metrics(trained_run):
    events = EventAccumulator(str(trained_run)).Reload()
    tags = set(events.Tags()["scalars"])
    wanted = {"train/loss", "train/accuracy", "train/gradient_norm", "train/tokens_per_second", "lr-Adam"}
    assert wanted | {"train/epoch_loss", "val/loss", "val/accuracy", "test/accuracy", "result/test/accuracy"} <= tags
    record = json.loads((trained_run / "metrics.json").read_text())
    assert math.isclose(events.Scalars("result/test/accuracy")[-1].value, record["test"]["accuracy"], rel_tol=1e-6)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tmp_path / name, *TINY, f"seed={seed}", "trainer.limit_train_batches=3", "test=false")
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["net.head.weight"], c["net.head.weight"])


@pytest.mark.parametrize(
    "more",
    [
        pytest.param([], id="raw"),  # in the precision that auto chooses
        pytest.param(["trainer.precision=32-true"], id="float32", marks=pytest.mark.slow),
        pytest.param(["callbacks.ema.decay=0.9"], id="averaged", marks=pytest.mark.slow),
        pytest.param(["trainer.precision=bf16-mixed", "model.net.hidden_size=32"], id="bf16", marks=pytest.mark.slow),
    ],
)
def test_resuming_in_place_ends_where_an_uninterrupted_run_ends(tmp_path, more):
    few = ["data.synthetic.train_size=160", "data.synthetic.val_size=60"]
    settings = [*EASY, *few, *more, "test=false", "scheduler=step"]
    train(tmp_path / "whole", *settings, "trainer.max_epochs=3")
    train(tmp_path / "parts", *settings, "trainer.max_epochs=2")
    moved = (tmp_path / "parts").rename(tmp_path / "moved")
    done = run_command("train", f"resume={moved}", "trainer.max_epochs=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    whole, parts = weights(tmp_path / "whole"), weights(moved)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert json.loads((moved / "metrics.json").read_text())["epochs"] == 3


@pytest.mark.slow
def test_the_published_figures_are_the_best_checkpoint_s(tmp_path):
    """With averaged weights too, whose callback would rather validate its last average."""
    settings = [
        *EASY,
        "callbacks.ema.decay=0.9",
        "optimizer.lr=0.05",
        "data.synthetic.noise=0.2",
        "trainer.max_epochs=6",
    ]
    train(tmp_path / "run", *settings)
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    best = load_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert best["epoch"] < 5, "the last epoch was the best: this would show nothing"
    for split in ("val", "test"):
        done = run_command("evaluate", str(tmp_path / "run"), "--split", split)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[split]["loss"] == pytest.approx(record[split]["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_run_with_nothing_left_to_train_scores_its_average_again(tmp_path):
    """It ended before its first validation, so that there is no best checkpoint."""
    train(tmp_path, *TINY, "callbacks.ema.decay=0.9", "trainer.max_steps=9", "logger=none", "baseline=false")
    first = json.loads((tmp_path / "metrics.json").read_text())
    train(tmp_path, f"resume={tmp_path}")
    again = json.loads((tmp_path / "metrics.json").read_text())
    assert [first[split] for split in ("val", "test")] == [again[split] for split in ("val", "test")]


@pytest.mark.slow
def test_a_run_that_was_cut_short_goes_on_with_no_fewer_epochs_than_are_over(tmp_path):
    steps = ["trainer.limit_train_batches=4", "trainer.max_steps=10", "trainer.max_epochs=5"]
    train(tmp_path, *TINY, *steps, "logger=none", "baseline=false")
    again = run_command("train", f"resume={tmp_path}", "trainer.max_steps=-1", "trainer.max_epochs=1")
    assert again.returncode == 2
    assert again.stderr == "recur: trainer.max_epochs must be at least 2, the epochs that are over, got 1: raise it\n"


def test_a_run_goes_on_with_no_fewer_epochs_than_are_over(trained_run):
    before = (trained_run / "config.yaml").read_bytes(), (trained_run / "train.log").read_bytes()
    done = run_command("train", f"resume={trained_run}", "trainer.max_epochs=2")
    assert done.returncode == 2, done.stderr
    assert done.stderr == "recur: trainer.max_epochs must be at least 3, the epochs that are over, got 2: raise it\n"
    assert before == ((trained_run / "config.yaml").read_bytes(), (trained_run / "train.log").read_bytes())


@pytest.mark.parametrize("option", ["--cfg=job", "--info"])
def test_an_option_of_hydra_is_refused_where_a_run_goes_on(option, capsys):
    """It showed the config of a new run."""
    with pytest.raises(SystemExit, match="2"):
        main(["resume=outputs/a", option])
    rule = "goes on with a run's own config, which --cfg and --info do not show: it stands in outputs/a/config.yaml"
    assert capsys.readouterr().err == f"recur: resume {rule}\n"


@pytest.mark.slow
def test_a_run_that_is_never_scored_ends_well(tmp_path):
    unscored = ["trainer.limit_val_batches=0", "monitor=train/epoch_loss", "mode=min", "test=false", "baseline=false"]
    train(tmp_path, *TINY, *unscored, "callbacks.best=null", "callbacks.last=null")
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["val"] == {} and record["steps"] > 0 and "confusion" not in record


@pytest.mark.slow
def test_n_grams_are_fitted_once_and_kept(tmp_path):
    counted = ["model.net.ngrams={max_n: 2}", "test=false", "baseline=false"]
    train(tmp_path, *TINY, *counted)
    best = load_checkpoint(tmp_path / "checkpoints" / "best.ckpt")["state_dict"]
    assert len(best["net.ngrams.known"]) == len(best["net.ngrams.table"]) > 0
    train(tmp_path, f"resume={tmp_path}", "trainer.max_epochs=2")
    last = load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["state_dict"]
    assert torch.equal(last["net.ngrams.table"], best["net.ngrams.table"])
    explained = run_command("predict", tmp_path, "a good film", "--explain", "--json")
    assert explained.returncode == 0, explained.stderr
    parts = json.loads(explained.stdout)["explanation"]
    assert sum(one["contribution"] for one in parts["tokens"]) == pytest.approx(
        parts["logit"] - parts["baseline_logit"], abs=0.02
    )
    refused = run_command("export", tmp_path, "--format", "onnx", "--out", tmp_path / "onnx")
    assert refused.returncode == 2 and "model.net.ngrams" in refused.stderr


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """DDP on a CPU: the ranks agree, and the metrics count every text of the split once."""
    train(tmp_path / "ddp", *TINY, "trainer=ddp_cpu", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1")
    record = json.loads((tmp_path / "ddp" / "metrics.json").read_text())
    assert record["world_size"] == 2
    assert round(record["test"]["accuracy"] * 150, 3) % 1 == 0  # 150 test texts: no text lost or doubled
    alone = run_command("evaluate", tmp_path / "ddp")
    assert alone.returncode == 0, alone.stderr
    figures = json.loads(alone.stdout)
    for split in ("val", "test"):
        assert figures[split]["accuracy"] == pytest.approx(record[split]["accuracy"], abs=1e-7)
        assert figures[split]["loss"] == pytest.approx(record[split]["loss"], rel=1e-3)  # bfloat16, in other batches
    assert run_command("train", "--cfg", "job").returncode == 0


@pytest.mark.slow
def test_the_config_is_shown_as_a_tree_and_every_metric_is_returned(tmp_path):
    from recur.config.compose import command_line, compose_run
    from recur.training import start
    from recur.training.failures import Stop
    from recur.training.report import logging_as_before

    few = ["trainer.limit_train_batches=3", "trainer.max_epochs=1", f"hydra.run.dir={tmp_path / 'run'}"]
    done = run_command("train", *EASY, *few, "extras.print_config=true", "tags=[one]")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "synthetic_reviews-bilstm" and "├── tags: ['one']" in lines
    at = lines.index("├── optimizer")
    assert any(line.startswith("│   ├── lr: 0.01") for line in lines[at : at + 5])
    refused = run_command("train", *EASY, "extras.print_confg=true")
    assert refused.returncode == 2

    few[-1] = f"hydra.run.dir={tmp_path / 'other'}"
    with logging_as_before():
        trained = start.run(compose_run(command_line([*EASY, *few])), Stop())
    for split, values in trained.results.items():
        assert {f"{split}/{name}": value for name, value in values.items()}.items() <= trained.metrics.items()
    assert {"train/loss", "train/epoch_loss", "train/epoch_accuracy", "val/f1", "test/accuracy"} <= set(trained.metrics)
    assert any(name.startswith("lr-") for name in trained.metrics)


@pytest.mark.slow
def test_one_line_an_epoch_without_a_terminal(tmp_path):
    out = train(tmp_path / "run", *TINY).stdout
    lines = [line for line in out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 1
    assert "train loss" in lines[0]
    assert "val loss" in lines[0]
    assert "python -m recur.predict" in out
    assert "best possible" in out


@pytest.mark.slow
@pytest.mark.parametrize("separator", [",", "\t"], ids=["csv", "tsv"])
def test_own_files_train_with_overrides_alone(tmp_path, separator):
    """Three classes named by words, from one file; validation is carved off."""
    name = "reviews." + ("csv" if separator == "," else "tsv")
    rows = [
        (f"so {word} it was {i}", label)
        for i in range(40)
        for word, label in zip(["good", "bad", "fine"], ["yes", "no", "so"], strict=True)
    ]
    body = "\n".join(separator.join(row) for row in [("review", "stars"), *rows])
    (tmp_path / name).write_text(body + "\n")
    words = ["data=files", f"data.train={tmp_path / name}", "data.text_column=review", "data.label_column=stars"]
    words += [
        "trainer.max_epochs=12",
        "optimizer.lr=0.01",
        "trainer.accelerator=cpu",
        "model.net.hidden_size=8",
        f"hydra.run.dir={tmp_path}/run",
    ]
    done = run_command("train", *words)
    assert done.returncode == 0, done.stderr
    assert Run.open(tmp_path / "run").data["class_names"] == ["no", "so", "yes"]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["val"]["accuracy"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("experiment", sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")))
def test_every_shipped_experiment_takes_a_step(tmp_path, experiment, shared_data):
    """The shipped recipe on the real data, one batch long."""
    cfg = run_command("train", f"experiment={experiment}", "--cfg", "job").stdout
    words = [
        f"experiment={experiment}",
        "trainer.max_epochs=1",
        "trainer.accelerator=cpu",
        "trainer.limit_train_batches=1",
    ]
    words += [
        "trainer.limit_val_batches=1",
        "trainer.limit_test_batches=1",
        "trainer.devices=1",
        "trainer.strategy=auto",
    ]
    for hub, folder in (("stanfordnlp/imdb", "imdb"), ("Salesforce/wikitext", "wikitext")):
        if hub in cfg:
            words.append(f"data.path={shared_data / folder}")
    if "shakespeare" in experiment:
        words.append(f"data.path={shared_data / 'tinyshakespeare' / 'input.txt'}")
    train(tmp_path / "run", *words)
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_numbers_too_small_for_float32_s_full_precision_are_zero_while_a_run_is_trained(monkeypatch, tmp_path):
    """On this thread and on those that it starts; afterwards all is as it was."""
    from concurrent.futures import ThreadPoolExecutor

    from recur.config.compose import command_line, compose_run
    from recur.training import start
    from recur.training.failures import Stop
    from recur.training.report import logging_as_before

    def tiny() -> float:
        return float(torch.tensor(1e-39) * 1)

    def trained(*arguments: object) -> list[float]:
        with ThreadPoolExecutor(1) as pool:
            return [tiny(), pool.submit(tiny).result()]

    monkeypatch.setattr(start, "_run", trained)
    few = ["trainer=cpu", f"hydra.run.dir={tmp_path}/run"]
    with logging_as_before():
        assert start.run(compose_run(command_line([*EASY, *few])), Stop()) == [0.0, 0.0]
    assert tiny() > 0


def test_a_task_of_several_does_not_train_a_run_of_one(tmp_path):
    """Eight tasks of one SLURM step wrote into one folder, seven of them without a lock."""
    words = [*TINY, "trainer.devices=1", f"hydra.run.dir={tmp_path}/run"]
    done = run_command("train", *words, environment={"SLURM_PROCID": "3", "SLURM_JOB_NAME": "interactive"})
    assert done.returncode == 2, done.stderr
    assert "is process 3 of several that were started together, and this run is of one" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_apples_gpu_is_left_alone(tmp_path, monkeypatch):
    """It has no float64: the first sum of a metric would end the run."""
    from recur.config.compose import command_line, compose_run
    from recur.config.schema import check_run
    from recur.errors import UserError
    from recur.training.start import with_accelerator

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    automatic = compose_run(command_line([*TINY, "trainer.accelerator=auto"]))
    assert with_accelerator(automatic).config["trainer"]["accelerator"] == "cpu"
    for chosen in ("mps", "gpu"):
        composed = compose_run(command_line([*TINY, f"trainer.accelerator={chosen}"]))
        with pytest.raises(UserError, match=r"trainer\.accelerator computes no float64.*trainer=cpu"):
            check_run(composed.config, composed.used)
