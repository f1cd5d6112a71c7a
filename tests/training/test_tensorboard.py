"""What TensorBoard is given: read back from the event files, through TensorBoard's own code."""

import json
import re
import shlex
import sys
import threading
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups
from tensorboard.util import tensor_util
from torch.nn.utils.rnn import unpack_sequence

import recur
from conftest import EASY, train
from recur.config import data_settings
from recur.config.compose import build
from recur.data.sentiment import SentimentData
from recur.errors import UserError
from recur.nn.classifier import Classifier
from recur.nn.gradient_flow import gradient_by_lag
from recur.runs.run import Run
from recur.tasks.sentiment import SentimentTask
from recur.training import report
from recur.training import tensorboard as pages
from recur.training.tensorboard import announce_hparams
from support.commands import run_command

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of what TensorBoard carries along
    from tensorboard.plugin_util import markdown_to_safe_html

HOSTILE = """<script>alert(1)</script> | a | `b` **c** [d](http://x) &lt; \x1b[31m \\ _e_ # f ~~g~~ ![h](i)"""


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0, "scalars": 0}).Reload()


@pytest.fixture(scope="module")
def easy(trained_run: Path) -> EventAccumulator:
    return events(trained_run)


@pytest.fixture(scope="module")
def three_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Log folder of a run on a file whose class names and texts want to do harm."""
    folder = tmp_path_factory.mktemp("three")
    names = ["good|$x$", "<b>bad</b>", "映画"]
    # No model can know the label: the same text has every label, so that mistakes are certain.
    rows = [f"{HOSTILE} {i % 5}\t{names[i % 3]}" for i in range(60)]
    (folder / "a.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n", encoding="utf-8")
    file = str(folder / "a.tsv")
    data = SentimentData(train=file, val=file, test=file, batch_size=20)
    data.setup()
    told = data.model_arguments()
    task = SentimentTask(
        lambda **words: Classifier(**words, embedding_dim=4, hidden_size=4),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
        **told,
    )
    logger = TensorBoardLogger(folder / "logs", name="", version="")
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=logger,
        callbacks=[pages.Pages(mistakes=7, projector_tokens=5)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=1,
    )
    with warnings.catch_warnings():
        report.quiet()
        trainer.fit(task, datamodule=data)
        trainer.test(task, datamodule=data, verbose=False)
    return folder / "logs"


# ------------------------------------------------------------------------------------------------------- what is there


def test_every_curve_is_there(easy) -> None:
    tags = set(easy.Tags()["scalars"])
    wanted = {"train/loss", "train/accuracy", "train/gradient_norm", "train/tokens_per_second", "train/epoch_loss"}
    wanted |= {f"{split}/{name}" for split in ("val", "test") for name in ("loss", "accuracy", "f1", "auroc")}
    assert wanted <= tags
    assert any(tag.startswith("lr-") for tag in tags)


def test_a_curve_has_one_point_a_validation(easy) -> None:
    """The best checkpoint, which is validated after fitting, adds none: it is not what the last step made."""
    for name in ("val/loss", "val/accuracy", "val/auroc"):
        assert [point.step for point in easy.Scalars(name)] == [39, 79, 119]  # as Lightning counts


def test_what_is_validated_by_hand_is_told_and_drawn(trained_run: Path, tmp_path: Path) -> None:
    run = recur.load(trained_run)
    opened = build(run.config["data"])
    opened.use(run.tokenizer, run.data["class_names"])
    opened.setup("fit")
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    logger = TensorBoardLogger(tmp_path, name="", version="")
    trainer = pl.Trainer(logger=logger, accelerator="cpu", use_distributed_sampler=False, **quiet)
    with warnings.catch_warnings():
        report.quiet()
        (found,) = trainer.validate(run.task, datamodule=opened, verbose=False)
    assert found["val/accuracy"] == pytest.approx(run.metrics["val"]["accuracy"])
    assert "val/accuracy" in events(tmp_path).Tags()["scalars"]


def test_pictures_curves_and_texts_are_there_for_both_splits(easy, trained_run) -> None:
    assert set(easy.Tags()["images"]) == {"val/confusion", "test/confusion"}
    assert len(easy.Images("val/confusion")) >= 3  # one a validation
    tags = set(easy.Tags()["tensors"])
    for split in ("val", "test"):
        assert {f"{split}/precision_recall", f"{split}/mistakes/text_summary"} <= tags
        assert (trained_run / "plots" / f"{split}_confusion.png").read_bytes().startswith(b"\x89PNG")


def test_the_curve_counts_every_text(easy) -> None:
    event = easy.Tensors("test/precision_recall")[-1]
    tp, fp, tn, fn, *_ = tensor_util.make_ndarray(event.tensor_proto)
    np.testing.assert_allclose(tp + fp + tn + fn, 150)


def test_hparams_has_settings_and_final_metrics_of_every_run(trained_run, three_classes, tmp_path) -> None:
    """As TensorBoard's own code collects them over a folder of runs; what differs comes first."""
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "one").symlink_to(trained_run)
    writer = TensorBoardLogger(other, name="", version="")
    announce_hparams([writer], {**CONFIG, "optimizer": {"lr": 0.5}}, "sentiment")
    writer.save()
    data = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    context = base_plugin.TBContext(
        data_provider=MultiplexerDataProvider(data, str(tmp_path)), multiplexer=data, logdir=str(tmp_path)
    )
    backend = backend_context.Context(context)
    request = RequestContext()
    found = backend.experiment_from_metadata(request, "", True, backend.hparams_metadata(request, ""), None)
    assert next(info.name for info in found.hparam_infos if info.differs) in ("model.net.hidden_size", "optimizer.lr")
    assert found.hparam_infos[0].differs
    assert {"result/test/accuracy", "result/val/accuracy"} <= {info.name.tag for info in found.metric_infos}


def test_a_run_alone_shows_its_metrics_in_hparams(trained_run) -> None:
    """By the command that a run prints: under the name "." TensorBoard would find no value of any metric."""
    (command,) = [line for line in report.next_commands(trained_run, CONFIG, SentimentLike()) if "tensorboard" in line]
    path = command.rpartition(" ")[2]
    data = EventMultiplexer().AddRunsFromDirectory(path).Reload()
    context = base_plugin.TBContext(data_provider=MultiplexerDataProvider(data, path), multiplexer=data, logdir=path)
    backend = backend_context.Context(context)
    request = RequestContext()
    found = backend.experiment_from_metadata(request, "", True, backend.hparams_metadata(request, ""), None)
    assert ("result/test/accuracy", "") in {(info.name.tag, info.name.group) for info in found.metric_infos}
    asked = api_pb2.ListSessionGroupsRequest(allowed_statuses=[0, 1, 2, 3], slice_size=100)
    answer = list_session_groups.Handler(request, backend, "", asked).run()
    groups = {group.sessions[0].name: group for group in answer.session_groups}
    shown = {value.name.tag: value.value for value in groups[trained_run.name].metric_values}
    record = json.loads((trained_run / "metrics.json").read_text())
    for split in ("val", "test"):
        assert shown[f"result/{split}/accuracy"] == pytest.approx(record[split]["accuracy"])


class SentimentLike:
    family = "sentiment"


def test_the_next_commands_run_as_they_are_printed(trained_run, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # no virtual environment is active
    predict, evaluate, tensorboard = report.next_commands(trained_run, CONFIG, SentimentLike())
    for line in (predict, evaluate, tensorboard):
        assert Path(line.split()[0]).absolute() == Path(sys.executable) and str(trained_run.parent) in line
    assert "recur.predict" in predict and "recur.evaluate" in evaluate
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert report.next_commands(trained_run, CONFIG, SentimentLike())[0].startswith("python -m recur.predict")


def test_a_cache_outside_of_the_run_is_typed_for_evaluate(trained_run, tmp_path) -> None:
    def line(cache: Path) -> str:
        config = {**CONFIG, "logger": {}, "data": {"cache_dir": str(cache)}}
        return report.next_commands(trained_run, config, SentimentLike())[1]

    assert line(trained_run / "cache").endswith(f"-m recur.evaluate {trained_run}")
    cache = tmp_path / "its tokens"
    words = shlex.split(line(cache))[2:]
    assert words == ["recur.evaluate", str(trained_run), f"cache_dir={cache}"]
    own = {**Run.open(trained_run).config["data"], "cache_dir": str(cache)}
    assert data_settings.changed(own, words[2:], trained_run) == own
    with pytest.raises(UserError, match=r"data\.cache_dir is .*, out of "):
        data_settings.changed(own, [], trained_run)


@pytest.mark.parametrize("results", [{"test": {"accuracy": 0.5}}, {}])
def test_the_writers_threads_end_with_the_final_figures(results: dict[str, dict[str, float]], tmp_path: Path) -> None:
    before = threading.enumerate()
    trainer = MagicMock(loggers=[TensorBoardLogger(tmp_path, "", "")], global_step=3)
    report._close_hparams(trainer, "sentiment", results)
    assert threading.enumerate() == before
    found = events(tmp_path).Scalars("result/test/accuracy") if results else []
    assert [(event.step, event.value) for event in found] == ([(3, 0.5)] if results else [])


def test_a_run_without_curves_is_not_offered_to_tensorboard(trained_run) -> None:
    commands = report.next_commands(trained_run, {**CONFIG, "logger": {}}, SentimentLike())
    assert commands and not [line for line in commands if "tensorboard" in line]


def test_a_model_that_predict_would_refuse_is_not_offered_to_it(trained_run) -> None:
    foreign = {**CONFIG, "model": {"_target_": "somebody.Task", "net": {}}}
    (line,) = report.next_commands(trained_run, foreign, SentimentLike())
    assert "tensorboard" in line


CONFIG = {
    "seed": 0,
    "logger": {"tensorboard": {"_target_": "lightning.pytorch.loggers.TensorBoardLogger"}},
    "data": {},
    "model": {"net": {"hidden_size": 3}},
    "optimizer": {},
    "scheduler": {},
    "trainer": {},
    "callbacks": {},
}


def test_projector_files_agree(trained_run) -> None:
    config = (trained_run / "projector_config.pbtxt").read_text()
    tensors, metadata = re.findall(r'_path: "([^"]+)"', config)
    vectors = np.loadtxt(trained_run / tensors, delimiter="\t")
    head, *rows = (trained_run / metadata).read_text().splitlines()
    assert head == "token\tP(positive)"
    assert vectors.shape == (len(rows), 16)
    lean = {token: float(value) for token, value in (row.split("\t") for row in rows)}
    assert lean["superb"] > 0.5 > lean["awful"]


# -------------------------------------------------------------------------------------------- what the data may not do


class _Page(HTMLParser):
    """The tags of a page, and its text paragraph by paragraph."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.paragraphs: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.add(tag)
        if tag == "p":
            self.paragraphs.append("")

    def handle_data(self, data: str) -> None:
        if self.paragraphs:
            self.paragraphs[-1] += data


OURS = {"p", "strong", "blockquote"}


def test_mistakes_show_the_text_as_it_is_and_nothing_else(three_classes) -> None:
    found = events(three_classes)
    source = tensor_util.make_ndarray(found.Tensors("test/mistakes/text_summary")[-1].tensor_proto).item().decode()
    page = _Page(markdown_to_safe_html(source))
    assert page.tags == OURS
    told, texts = page.paragraphs[1::2], [text.strip() for text in page.paragraphs[2::2]]
    assert len(told) == len(texts) == 7
    names = [re.fullmatch(r"\d\. predicted (.+) with ([\d.]+), true is (.+)", line.strip()).groups() for line in told]
    assert all(said != true and {said, true} <= {"good|$x$", "<b>bad</b>", "映画"} for said, _, true in names)
    confidence = [float(sure) for _, sure, _ in names]
    assert confidence == sorted(confidence, reverse=True)
    for text in texts:
        assert text.startswith("<script>alert ( 1 ) </script> | a | `b` **c** [d] ( http")
        assert r"\x1b[31m" in text


@pytest.mark.parametrize("text", [HOSTILE, "a\nb", "1. list", "> quote", "    code", "http://x.y", "<!-- -->", "|---|"])
def test_markdown_of_a_text_reads_as_the_text(text: str) -> None:
    page = _Page(markdown_to_safe_html(pages.mistakes_page(LABELS, SCORES, ["no_no_", "*yes*"], lambda row: text, 5)))
    assert page.tags == OURS
    assert page.paragraphs[1].strip() == "1. predicted *yes* with 0.9000, true is no_no_"
    assert page.paragraphs[2].strip() == pages.printable(text).strip()


LABELS, SCORES = np.array([0]), np.array([[0.1, 0.9]])


def test_one_curve_a_class_where_there_are_more_than_two(three_classes) -> None:
    tags = [tag for tag in events(three_classes).Tags()["tensors"] if tag.startswith("test/precision_recall")]
    assert len(tags) == 3


def test_projector_tokens_are_one_a_line(three_classes) -> None:
    assert len((three_classes / "projector" / "metadata.tsv").read_text().splitlines()) == 6


def test_confusion_counts_and_pictures() -> None:
    labels = np.array([0, 0, 1, 2, 2, 2])
    scores = np.eye(3)[[0, 1, 1, 2, 2, 0]]
    counts = pages.confusion(labels, scores)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]
    image = pages.confusion_image(counts, ["$a$", "b" * 99, "映画"], "$title$")
    assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
    many = pages.confusion_image(np.eye(40, dtype=np.int64), [str(i) for i in range(40)], "many")
    assert max(many.shape) < 1400


@pytest.mark.parametrize(("classes", "every"), [(40, 1), (41, 2), (500, 13)])
def test_names_along_the_matrix_can_be_read(classes: int, every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[list[str]] = []

    def keep(self: Any, ticks: Any, labels: list[str], **_: Any) -> None:
        written.append([f"{tick} {label}" for tick, label in zip(ticks, labels, strict=True)])

    for axis in ("x", "y"):
        monkeypatch.setattr(f"matplotlib.axes.Axes.set_{axis}ticks", keep)
    pages.confusion_image(np.eye(classes, dtype=np.int64), [f"n{i}" for i in range(classes)], "many")
    assert written == [[f"{i} n{i}" for i in range(0, classes, every)]] * 2
    assert len(written[0]) <= 40


def test_curves_are_of_the_most_frequent_classes() -> None:
    labels = np.repeat(np.arange(30), np.arange(30))
    assert pages.most_frequent(labels, 31) == list(range(20, 30))
    assert pages.most_frequent(np.array([2, 0]), 3) == [0, 1, 2]
    assert pages.most_frequent(np.zeros(0, dtype=np.int64), 20) == list(range(10))


def test_pictures_say_whose_weights_they_show(three_classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles = []
    monkeypatch.setattr(pages, "_writer", lambda trainer: MagicMock(log_dir=str(three_classes)))
    monkeypatch.setattr(pages, "_save_image", lambda *_: None)
    monkeypatch.setattr(pages, "confusion_image", lambda counts, names, title: titles.append(title))
    task = MagicMock(family="sentiment", class_names=["a", "b"])
    for fn in ("fit", "validate"):
        page = pages.Pages(mistakes=0, projector_tokens=0)
        page._seen = [(np.array([0]), np.array([1]), np.array([0.5]))]
        trainer = MagicMock(world_size=1, global_step=1200, state=MagicMock(fn=fn))
        page._draw(trainer, task, "val", None)
    assert titles == ["val split, step 1,200", "val split, best checkpoint"]


def test_no_mistakes_is_said() -> None:
    page = pages.mistakes_page(np.array([1]), np.array([[0.1, 0.9]]), ["no", "yes"], str, 5)
    assert page.strip() == "0 of 1 texts got the wrong label."


@pytest.mark.slow
def test_pages_of_two_processes_hold_every_text_once(tmp_path) -> None:
    """What two ranks saw is gathered: the curve counts the whole split."""
    train(tmp_path / "two", "trainer=ddp_cpu", *EASY, "trainer.max_epochs=1")
    event = events(tmp_path / "two").Tensors("val/precision_recall")[-1]
    tp, fp, tn, fn, *_ = tensor_util.make_ndarray(event.tensor_proto)
    np.testing.assert_allclose(tp + fp + tn + fn, 200)


@pytest.mark.slow
def test_the_gradient_by_lag_is_drawn_before_training_and_after_each_validation(tmp_path) -> None:
    """Its last point is that of the best checkpoint's net, measured by hand on the same texts."""
    words = ["data=delayed_recall", "data.synthetic.gap=12", "data.synthetic.train_size=400", "seed=3"]
    words += ["data.synthetic.val_size=100", "model.net.bidirectional=false", "model.net.hidden_size=16"]
    words += ["trainer.max_epochs=1", "trainer=cpu", "callbacks.gradients.longest=10", f"hydra.run.dir={tmp_path}/run"]
    done = run_command("train", *words)
    assert done.returncode == 0, done.stderr
    written = events(tmp_path / "run")
    assert [image.step for image in written.Images("gradients/by_lag")] == [0, 7]
    points = {point.step: point.value for point in written.Scalars("gradients/lag_10")}
    run = Run.open(tmp_path / "run")
    data = build(run.config["data"])
    data.use(run.tokenizer, run.data["class_names"])
    data.setup("fit")
    text = next(iter(data.val_dataloader())).text
    net = run.task.net
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(16, generator=generator)
    ids = torch.stack([t[:11] for t in unpack_sequence(text) if len(t) >= 11][:32], 1)
    norms = gradient_by_lag(net.recurrent, net.embedding(ids).detach(), lambda h: h @ (direction / direction.norm()))
    assert points[7] == pytest.approx(float((norms[10].log10() - norms[0].log10()).mean()), abs=1e-3)
    assert points[0] != points[7]


def test_the_gradient_by_lag_of_a_net_that_reads_both_ways_is_refused(tmp_path) -> None:
    done = run_command("train", "callbacks.gradients.longest=10", f"hydra.run.dir={tmp_path}/run", "trainer=cpu")
    assert done.returncode == 2
    assert "callbacks.gradients.longest" in done.stderr and "model.net.bidirectional=false" in done.stderr
