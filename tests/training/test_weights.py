"""Weights of another run, a rate to begin with, and the configs for debugging: through the command."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from conftest import EASY, train
from recur.config.compose import command_line, compose_run
from recur.data.sentiment import SentimentData
from recur.errors import UserError
from recur.nn.classifier import Classifier
from recur.runs.run import Run
from recur.tasks.sentiment import SentimentTask
from recur.training import fit, lr_finder, weights
from support.commands import run_command


def test_a_run_of_the_same_shape_gives_all_its_weights(trained_run: Path) -> None:
    source, target = Run.open(trained_run), Run.open(trained_run)
    with torch.no_grad():
        for parameter in target.task.parameters():
            parameter.zero_()
    turned = list(reversed(source.tokenizer.vocabulary))  # another numbering of the same tokens
    copied = weights.copy_from(trained_run, target.task, turned)
    assert len(copied.names) == copied.of
    assert copied.tokens == copied.vocabulary == len(turned)
    state, given = target.task.state_dict(), source.task.state_dict()
    for name in given:
        expected = given[name].flip(0) if name == "net.embedding.weight" else given[name]
        assert torch.equal(state[name], expected), name


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory):
    """Folders of classifiers of given classes, hardly trained."""

    def made(*classes: str) -> Path:
        folder = tmp_path_factory.mktemp("classes")
        rows = [f"word{row % 7} text,{classes[row % len(classes)]}" for row in range(40)]
        (folder / "texts.csv").write_text("\n".join(["text,label", *rows, ""]))
        data = SentimentData(train=str(folder / "texts.csv"), class_names=list(classes), batch_size=20)
        data.setup()
        net = partial(Classifier, embedding_dim=4, hidden_size=4)
        task = SentimentTask(net, optimizer=partial(torch.optim.Adam, lr=0.1), **data.model_arguments())
        best = ModelCheckpoint(folder / "checkpoints", filename="best", monitor="val/loss")
        quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        trainer = pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=[best], default_root_dir=folder, **quiet)
        fit.train(data, task, trainer, test=False)
        return folder

    return made


def _classifier(*classes: str) -> SentimentTask:
    net = partial(Classifier, embedding_dim=4, hidden_size=4)
    return SentimentTask(net, vocab_size=3, num_classes=len(classes), class_names=classes)


@pytest.mark.filterwarnings("ignore")
def test_two_classes_have_one_logit_that_is_turned_round_where_they_are(run_of) -> None:
    folder = run_of("bad", "good")
    given = Run.open(folder).task.net.head
    same, turned, others = _classifier("bad", "good"), _classifier("good", "bad"), _classifier("bad", "worse")
    before = others.net.head.weight.clone()
    said = [str(weights.copy_from(folder, task, ["<unk>", "x", "text"])) for task in (same, turned, others)]
    assert torch.equal(same.net.head.weight, given.weight) and torch.equal(same.net.head.bias, given.bias)
    assert torch.equal(turned.net.head.weight, -given.weight) and torch.equal(turned.net.head.bias, -given.bias)
    assert torch.equal(others.net.head.weight, before)
    assert said[0] == said[1] == "11 of 11 tensors, with the vectors of 2 of 3 tokens and the head of 2 of 2 classes"
    assert said[2] == "9 of 11 tensors, with the vectors of 2 of 3 tokens and the head of 0 of 2 classes"


@pytest.mark.filterwarnings("ignore")
def test_of_several_classes_those_of_the_same_name_are_copied(run_of) -> None:
    folder = run_of("bad", "good", "fair")
    given = Run.open(folder).task.net.head
    task = _classifier("fair", "new", "bad", "odd")
    before = task.net.head.weight.clone()
    copied = weights.copy_from(folder, task, ["<unk>"])
    assert copied.classes == (2, 4) and "net.head.bias" in copied.names
    assert torch.equal(task.net.head.weight, torch.stack([given.weight[2], before[1], given.weight[0], before[3]]))
    assert torch.equal(task.net.head.bias[[0, 2]], given.bias[[2, 0]])
    two = _classifier("bad", "good")
    assert weights.copy_from(folder, two, ["<unk>"]).classes == (0, 2)


def test_a_language_model_gives_a_classifier_its_vectors_and_forward_layers(language_run: Path) -> None:
    source = Run.open(language_run)
    vocabulary = ["<unk>", "no such token", *source.tokenizer.vocabulary[3:]]
    task = SentimentTask(
        lambda **given: Classifier(**given, embedding_dim=16, hidden_size=16, num_layers=2),
        vocab_size=len(vocabulary),
        num_classes=2,
        class_names=["a", "b"],
    )
    before = task.net.embedding.weight[1].clone()
    copied = weights.copy_from(language_run, task, vocabulary)
    assert set(copied.names) >= {"net.embedding.weight", "net.recurrent.weight_ih_l0", "net.recurrent.weight_hh_l0"}
    assert not any("reverse" in name or "head" in name for name in copied.names)
    assert copied.tokens == len(vocabulary) - 1
    new = task.net.embedding.weight[1]  # random still, and as long as the others: random ones are 20 times longer
    torch.testing.assert_close(new / new.norm(), before / before.norm())
    copied_size = torch.cat([task.net.embedding.weight[:1], task.net.embedding.weight[2:]]).square().mean()
    torch.testing.assert_close(new.square().mean(), copied_size)
    token = source.tokenizer.vocabulary[5]
    there, here = source.tokenizer.vocabulary.index(token), vocabulary.index(token)
    assert torch.equal(task.net.embedding.weight[here], source.task.net.embedding.weight[there])


@pytest.fixture(scope="module")
def backward_run(language_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of the reversed text, with the word vectors of another."""
    folder = tmp_path_factory.mktemp("backward") / "run"
    words = [
        "experiment=char_sentence",
        f"init_from={language_run}",
        "data.reverse=true",
        "model.net.freeze_vectors=true",
        "model.net.embedding_dim=16",
        "model.net.hidden_size=16",
        "trainer.max_epochs=1",
        "trainer.check_val_every_n_epoch=1",
        "logger=none",
        "baseline=false",
    ]
    done = run_command("train", *words, f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_model_that_reads_from_the_end_gives_a_classifier_its_backward_direction(
    language_run: Path, backward_run: Path
) -> None:
    forward, backward = Run.open(language_run), Run.open(backward_run)
    vocabulary = forward.tokenizer.vocabulary

    def task(*, bidirectional: bool) -> SentimentTask:
        return SentimentTask(
            lambda **given: Classifier(**given, embedding_dim=16, hidden_size=16, bidirectional=bidirectional),
            vocab_size=len(vocabulary),
            num_classes=2,
            class_names=["a", "b"],
        )

    both = task(bidirectional=True)
    copied = weights.copy_from([language_run, backward_run], both, vocabulary)
    assert set(copied.names) == {name for name in both.state_dict() if name.startswith(("net.emb", "net.recurrent"))}
    own = dict(both.named_parameters())
    for source, suffix in ((forward, ""), (backward, "_reverse")):
        for name, given in source.task.named_parameters():
            if name.startswith("net.recurrent.") and name.endswith("_l0"):
                assert torch.equal(own[name + suffix], given), name
    # Frozen vectors are the same in both runs, and so the classifier's
    place = {token: index for index, token in enumerate(backward.tokenizer.vocabulary)}
    for index, token in enumerate(vocabulary):
        if token in place:
            vector = backward.task.net.embedding.weight[place[token]]
            assert torch.equal(own["net.embedding.weight"][index], vector)

    with pytest.raises(UserError, match="has no direction that does"):
        weights.copy_from(backward_run, task(bidirectional=False), vocabulary)
    with pytest.raises(UserError, match="that no run before it has"):
        weights.copy_from([language_run, language_run], task(bidirectional=True), vocabulary)


@pytest.mark.slow
def test_a_model_that_reads_from_the_end_does_not_continue_texts(backward_run: Path, tmp_path: Path) -> None:
    for command, *words in (
        ("generate", "--tokens", "3"),
        ("export", "--format", "onnx", "--out", str(tmp_path / "x")),
    ):
        done = run_command(command, str(backward_run), *words)
        assert done.returncode == 2 and "reads texts from the end (data.reverse=true)" in done.stderr, done.stderr
    assert "recur.generate" not in (backward_run / "train.log").read_text()  # among what to type next
    done = run_command("evaluate", str(backward_run), "--split", "train")
    assert done.returncode == 0, done.stderr
    kept = json.loads((backward_run / "metrics.json").read_text())["val"]["loss"]  # of the training text itself
    assert json.loads(done.stdout)["train"]["loss"] == pytest.approx(kept, rel=1e-3)


@pytest.mark.slow
def test_vectors_of_another_size_are_not_taken_for_those_of_a_run(language_run: Path, tmp_path: Path) -> None:
    """The output's bias alone has the size of the vocabulary in both models."""
    words = ["experiment=char_sentence", f"init_from={language_run}", "model.net.freeze_vectors=true"]
    done = run_command("train", *words, "trainer.max_epochs=1", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 2 and "init_from must have" in done.stderr.replace(str(language_run), "must"), done.stderr
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_a_run_that_fits_nowhere_is_refused(language_run: Path, trained_run: Path) -> None:
    task = Run.open(trained_run).task
    task.net.embedding = torch.nn.Embedding(9, 3)
    task.net.recurrent = torch.nn.Identity()
    with pytest.raises(UserError, match="init_from must have a tensor of the same name and shape"):
        weights.copy_from(language_run, task, ["<unk>"])


@pytest.mark.slow
def test_a_rate_is_suggested_and_nothing_is_written(tmp_path: Path) -> None:
    done = run_command("train", *EASY, "find_lr=true", f"hydra.run.dir={tmp_path / 'run'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rate = re.search(r"suggested: optimizer.lr=(\S+)", done.stdout)
    assert rate is not None
    assert 1e-5 < float(rate[1]) < 1
    assert not list(tmp_path.iterdir())


def test_a_tremor_at_low_rates_is_no_fall() -> None:
    """Smoothed as Lightning smooths, a hundred rates a factor of 1.15 apart."""
    true = [0.7 + (1e-4 if i % 2 else -1e-4) for i in range(60)]
    true += [0.7 - 0.02 * i for i in range(20)] + [0.3 + 0.1 * i for i in range(20)]
    kept, average, smoothed = 0.98, 0.0, []
    for step, loss in enumerate(true, start=1):
        average = kept * average + (1 - kept) * loss
        smoothed.append(average / (1 - kept ** (step + 1)))
    losses = lr_finder.corrected(smoothed)
    assert losses[0] == pytest.approx(true[0]) and losses[20] == pytest.approx(0.7, abs=1e-3)
    place = lr_finder.steepest(losses)
    assert place is not None and 60 <= place < 85
    assert lr_finder.steepest([1.0] * 100) is None


@pytest.mark.slow
def test_rates_up_to_ten_times_the_recipes_own_are_tried(tmp_path: Path) -> None:
    words = ["data=synthetic_text", "model=language_model", "model.net.embedding_dim=8", "model.net.hidden_size=8"]
    words += ["optimizer=sgd", "optimizer.lr=20", "data.synthetic.train_size=2000", "trainer.accelerator=cpu"]
    done = run_command("train", *words, "find_lr=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tried = [float(line.split()[0]) for line in re.findall(r"^ *\d\.\d\de.*$", done.stdout, re.MULTILINE)]
    assert max(tried) > 1, done.stdout


@pytest.mark.slow
def test_a_rate_is_not_looked_for_where_each_layer_has_its_own(tmp_path: Path) -> None:
    for word in ("model.layer_rate=0.4", "model.unfreeze_epochs=1", "trainer.accumulate_grad_batches=2"):
        done = run_command("train", *EASY, "find_lr=true", word, cwd=tmp_path)
        assert done.returncode == 2 and word in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_rate_is_not_looked_for_where_batches_have_more_or_fewer_labels() -> None:
    """The loss of a batch then says how many it has, whatever the rate."""
    with pytest.raises(UserError, match=r"find_lr .*data\.train_on_unlabelled=true .*: set data\.train_on_unlabelled="):
        lr_finder.find(None, object(), {"trainer": {}, "data": {"train_on_unlabelled": True}})


@pytest.mark.slow
def test_training_begins_with_the_weights_of_another_run(trained_run: Path, tmp_path: Path) -> None:
    words = [*EASY, "optimizer.lr=1e-9", "trainer.max_epochs=1", f"init_from={trained_run}", "tags=[second]"]
    done = run_command("train", *words, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "11 of 11 tensors" in done.stderr
    before, after = (json.loads((run / "metrics.json").read_text()) for run in (trained_run, tmp_path / "run"))
    assert after["val"]["accuracy"] == pytest.approx(before["val"]["accuracy"], abs=0.01)


@pytest.mark.slow
def test_a_few_batches_of_each_split_leave_a_run_that_can_be_used(tmp_path: Path) -> None:
    words = [*EASY, "trainer.fast_dev_run=2", "trainer.profiler=simple", "trainer.val_check_interval=5"]
    done = run_command("train", *words, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (record["epochs"], record["steps"]) == (1, 2) and {"val", "test"} <= set(record)
    assert not list((tmp_path / "run").glob("events.out.*"))
    assert "run_training_epoch" in (tmp_path / "run" / "fit-profile.txt").read_text()
    assert Run.open(tmp_path / "run").config["trainer"]["limit_val_batches"] == 2
    again = run_command("train", f"resume={tmp_path / 'run'}", "trainer.fast_dev_run=true")
    assert again.returncode == 2 and "trainer.fast_dev_run" in again.stderr and "is for a new run" in again.stderr


@pytest.mark.slow
@pytest.mark.parametrize("experiment", [[], ["experiment=char_sentence"]], ids=["sentiment", "language"])
@pytest.mark.parametrize("debug", ["fdr", "limit", "overfit", "profiler"])
def test_every_config_for_debugging_runs(debug: str, experiment: list[str], tmp_path: Path) -> None:
    words = [*(experiment or EASY), f"debug={debug}", "trainer.accelerator=cpu"]
    done = run_command("train", *words, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert bool(list((tmp_path / "run").glob("events.out.*"))) == (debug != "fdr")
    if debug == "profiler":
        assert "run_training_epoch" in (tmp_path / "run" / "fit-profile.txt").read_text()


@pytest.mark.parametrize("experiment", [[], ["experiment=lm"]], ids=["sentiment", "language"])
def test_one_batch_for_debugging_has_no_logger_but_one_that_is_typed(experiment: list[str]) -> None:
    """`logger: {}` left TensorBoard's in."""
    loggers = [
        compose_run(command_line([*experiment, "debug=fdr", *more])).config["logger"] for more in ([], ["logger=csv"])
    ]
    assert [list(own or {}) for own in loggers] == [[], ["csv"]]


@pytest.mark.slow
def test_an_untied_run_gives_a_tied_model_its_embeddings(tmp_path: Path) -> None:
    """Its output layer's vectors, copied last, took their place."""
    sizes = [
        "model.net.embedding_dim=8",
        "model.net.hidden_size=8",
        "trainer.max_steps=1",
        "trainer=cpu",
        "logger=none",
    ]
    train(tmp_path / "untied", "experiment=lm", *sizes, "model.net.tie_weights=false", "test=false", "baseline=false")
    source = Run.open(tmp_path / "untied")
    train(tmp_path / "tied", "experiment=lm", *sizes, "model.net.tie_weights=true", "test=false", "baseline=false")
    target = Run.open(tmp_path / "tied")
    copied = weights.copy_from(tmp_path / "untied", target.task, source.tokenizer.vocabulary)
    given = source.task.state_dict()
    assert not torch.equal(given["net.embedding.weight"], given["net.decoder.weight"])
    assert torch.equal(target.task.net.embedding.weight, given["net.embedding.weight"])
    assert target.task.net.decoder.weight is target.task.net.embedding.weight and "net.decoder.weight" in copied.names
