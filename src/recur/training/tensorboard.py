"""What TensorBoard shows of a text classifier besides curves: where it errs, how sure it is, what its words mean.

- Images: `<split>/confusion`, also as `plots/<split>_confusion.png`, which any logger has, and in W&B
- PR curves: `<split>/precision_recall`, one a class where there are more than two
- Text: `<split>/mistakes`, the wrong answers given with the greatest confidence
- Projector: the word vectors of the most frequent tokens, and the model's answer to each alone

The first three are drawn after each validation and after the test, the last after fitting and of the best checkpoint.
`GradientByLag` adds, for both families, how far back a net's gradient reaches.
"""

import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import lightning.pytorch as pl
import numpy as np
import torch
from annotated_types import Ge, Le
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence
from torch.utils.tensorboard.summary import hparams

from recur.errors import UserError
from recur.nn.gradient_flow import gradient_by_lag
from recur.nn.recurrent import Recurrent
from recur.render import markdown, printable, shortened
from recur.runs.files import create, naming, write_atomic
from recur.runs.metrics import hparam_metrics
from recur.training.callbacks import averaged_weights
from recur.training.loggers import show_image

# Settings that say nothing about a result: they would push the others out of sight.
_PLUMBING = re.compile(
    r"_partial_$|_dir$|dirpath$|^(data|trainer)\.(.*\.)?_target_$|^callbacks\.(?!(early_stopping\.patience|ema\.(?!_)))"
    r"|^trainer\.(enable_|limit_|num_sanity|log_every|use_distributed|detect_anomaly)"
)
_MOST_CURVES = 10  # classes with a precision-recall curve of their own, the most frequent
_MOST_TICKS = 40  # names that can be read along the confusion matrix
_MOST_NUMBERS = 20  # classes up to which the confusion matrix has its counts written in
_TEXT = 600  # characters of a mistaken text that are shown


class Pages(pl.Callback):
    """Draws the pages above into the run's TensorBoard, without one the images; nothing for a run of another family.

    Args:
        mistakes: how many mistakes a page lists.
        projector_tokens: how many word vectors the projector gets.

    """

    def __init__(self, mistakes: Annotated[int, Ge(0)] = 25, projector_tokens: Annotated[int, Ge(0)] = 2000) -> None:
        self.mistakes, self.projector_tokens = mistakes, projector_tokens
        self._seen: list[tuple[NDArray[Any], ...]] = []

    # ------------------------------------------------------------------------------------------ what Lightning calls

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin an empty page."""
        self._seen = []

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin an empty page."""
        self._seen = []

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the scores, which the step returns."""
        self._remember(pl_module, outputs, batch)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the scores, which the step returns."""
        self._remember(pl_module, outputs, batch)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draw the validation split's pages."""
        if not trainer.sanity_checking:
            self._draw(trainer, pl_module, "val", trainer.val_dataloaders)

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draw the test split's pages."""
        self._draw(trainer, pl_module, "test", trainer.test_dataloaders)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write the word vectors."""
        writer = _writer(trainer)
        if writer is not None and pl_module.family == "sentiment":
            self._project(Path(writer.log_dir), pl_module, trainer)

    # ------------------------------------------------------------------------------------------------------- the rest

    def _remember(self, task: Any, scores: Any, batch: Any) -> None:
        if task.family == "sentiment" and scores is not None:
            parts = (batch.rows, batch.labels, scores)
            self._seen.append(tuple(part.detach().float().cpu().numpy() for part in parts))

    def _draw(self, trainer: pl.Trainer, task: Any, split: str, loader: Any) -> None:
        if task.family != "sentiment":
            return
        seen, self._seen = _from_all_ranks(self._seen, trainer.world_size), []
        writer = _writer(trainer)
        if not seen or not trainer.is_global_zero or not trainer.loggers:
            return
        rows, labels, scores = (np.concatenate(parts) for parts in zip(*seen, strict=True))
        rows, labels = rows.astype(np.int64), labels.astype(np.int64)
        # Whole precision of the step, (texts, classes): two classes come as the second one's probability.
        scores = np.stack([1 - scores, scores], axis=1) if scores.ndim == 1 else scores
        names = [printable(str(name)) for name in task.class_names]
        step = trainer.global_step

        counts = confusion(labels, scores)
        best = trainer.state.fn != "fit"  # which was loaded for this
        image = confusion_image(counts, names, f"{split} split, " + ("best checkpoint" if best else f"step {step:,}"))
        folder = Path(trainer.default_root_dir if writer is None else writer.log_dir)
        _save_image(image, folder / "plots" / f"{split}_confusion.png")
        show_image(trainer.loggers, f"{split}/confusion", image, step)
        if writer is None:
            return
        writer.add_image(f"{split}/confusion", image, step, dataformats="HWC")
        for number in [1] if len(names) == 2 else most_frequent(labels, len(names)):
            tag = f"{split}/precision_recall" + ("" if len(names) == 2 else f"/{names[number]}")
            writer.add_pr_curve(tag, labels == number, scores[:, number], step)
        if self.mistakes:
            tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
            texts = loader.texts
            page = mistakes_page(
                labels, scores, names, lambda i: tokenizer.decode(texts[int(rows[i])].tolist()), self.mistakes
            )
            writer.add_text(f"{split}/mistakes", page, step)
        if best:
            self._project(Path(writer.log_dir), task, trainer)
        writer.flush()

    def _project(self, folder: Path, task: Any, trainer: pl.Trainer) -> None:
        # A network from elsewhere need not have word vectors.
        if self.projector_tokens and isinstance(getattr(task.net, "embedding", None), nn.Embedding):
            vocabulary = trainer.datamodule.tokenizer.vocabulary  # type: ignore[attr-defined]
            write_projector(folder, task, vocabulary[: self.projector_tokens])


class GradientByLag(pl.Callback):
    r"""Draws into TensorBoard how much of a gradient comes back k steps, before training and after each validation.

    For texts of the first validation batch it takes the norm of $\partial (u \cdot h_T) / \partial h_{T-k}$, with a
    fixed random direction u of length 1, over that for k = 0: whether a net can learn from k steps ago does not depend
    on its loss then. The image `gradients/by_lag` has this curve beside the first one (geometric means over texts), the
    scalars `gradients/lag_K` its decimal logarithm at a few lags. The top layer of a stack that reads one way.

    Args:
        longest: steps back; None draws nothing.
        texts: how many at most.
    """

    def __init__(
        self, longest: Annotated[int, Ge(1), Le(1000)] | None = None, texts: Annotated[int, Ge(1)] = 32
    ) -> None:
        self.longest, self.texts = longest, texts
        self._first: NDArray[np.float64] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The curve before training, which a resumed run draws too."""
        return {} if self._first is None else {"first": self._first.tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take that curve back."""
        self._first = np.array(state_dict["first"]) if "first" in state_dict else None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Refuse a network that has no such curve, of a trainer built by hand, too."""
        self.check_fit(trainer, pl_module)

    def check_fit(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Refuse a network without a recurrent stack, or with one that reads both ways or carries no output.

        Raises:
            UserError: it is such a one.
        """
        if self.longest is None:
            return
        net = pl_module.net
        if not (isinstance(getattr(net, "recurrent", None), Recurrent) and hasattr(net, "embedding")):
            rule = f"needs a net with embedding and recurrent, and {type(net).__name__} lacks one"
            raise UserError("callbacks.gradients.longest", self.longest, rule, "set it to null")
        if not net.recurrent.output_first:
            rule = f"needs a cell that carries its output, and {net.recurrent.cell} does not"
            raise UserError("callbacks.gradients.longest", self.longest, rule, "set it to null")
        if net.recurrent.bidirectional:
            raise UserError(
                "callbacks.gradients.longest",
                self.longest,
                "needs a net that reads one way",
                "add model.net.bidirectional=false",
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draw the curve before the first step."""
        if trainer.global_step == 0:
            self._draw(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draw the curve as it is now."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            with averaged_weights(trainer, pl_module):
                self._draw(trainer, pl_module)

    def _draw(self, trainer: pl.Trainer, task: Any) -> None:
        writer = _writer(trainer)
        if self.longest is None or writer is None or not trainer.val_dataloaders:
            return
        with torch.inference_mode(False):  # Lightning validates in it
            logs = self._measured(next(iter(trainer.val_dataloaders)).text, task)
        if logs is None:
            return
        self._first = logs if self._first is None else self._first
        step = trainer.global_step
        for lag in (1, 10, 30, 100, 300, 1000):
            if lag < len(logs):
                writer.add_scalar(f"gradients/lag_{lag}", logs[lag], step)
        image = _lines_image({"before training": self._first, "now": logs}, "steps back", "norm of the gradient")
        writer.add_image("gradients/by_lag", image, step, dataformats="HWC")

    def _measured(self, text: PackedSequence, task: Any) -> NDArray[np.float64] | None:
        """Mean decimal logarithm of the norm by lag, `(steps,)`, None where no text is long enough for one lag."""
        assert self.longest is not None
        padded, lengths = pad_packed_sequence(PackedSequence(text.data.clone(), text.batch_sizes))  # (time, batch)
        steps = min(int(lengths.max()), self.longest + 1)
        ids = padded[:steps, lengths >= steps][:, : self.texts].to(task.device)
        if steps < 2:
            return None
        generator = torch.Generator().manual_seed(0)
        direction = torch.randn(task.net.recurrent.output_size, generator=generator).to(task.device)
        direction = direction / direction.norm()
        training = task.training
        task.eval()
        with torch.no_grad():
            rows = task.net.embedding(ids)
        try:
            with torch.backends.cudnn.flags(enabled=False):  # it has no backward pass in evaluation mode
                norms = gradient_by_lag(task.net.recurrent, rows.float(), lambda hidden: hidden.float() @ direction)
        finally:
            task.train(training)
        logs = norms.double().clamp_min(1e-30).log10()  # (lags, texts)
        return (logs - logs[0]).mean(1).numpy()


def _writer(trainer: pl.Trainer) -> Any:
    """TensorBoard's writer, or None without one and on every rank but the first."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    return loggers[0].experiment if loggers and trainer.is_global_zero else None


def _from_all_ranks(seen: list[Any], world_size: int) -> list[Any]:
    if world_size == 1:
        return seen
    parts: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(parts, seen)
    return [batch for part in parts for batch in part]


def _predicted(scores: NDArray[Any]) -> NDArray[np.int64]:
    """The predicted class, `(texts,)`: of two the second only above one half, as torchmetrics counts."""
    return scores.argmax(axis=1)


def confusion(labels: NDArray[np.int64], scores: NDArray[Any]) -> NDArray[np.int64]:
    """How often class `i` was predicted as `j`, `(classes, classes)`, from labels and `(texts, classes)` scores."""
    counts = np.zeros((scores.shape[1],) * 2, dtype=np.int64)
    np.add.at(counts, (labels, _predicted(scores)), 1)
    return counts


def most_frequent(labels: NDArray[np.int64], classes: int) -> list[int]:
    """The classes with most texts, by their numbers; the same at every validation of a split.

    Args:
        labels: true classes, `(texts,)`.
        classes: how many there are.
    """
    counts = np.bincount(labels, minlength=classes)
    return sorted(np.argsort(-counts, kind="stable")[:_MOST_CURVES].tolist())


def confusion_image(counts: NDArray[np.int64], names: list[str], title: str) -> NDArray[np.uint8]:
    """The confusion matrix as pixels, `(height, width, 3)`: counts, shaded by their share of the true class."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = min(12.0, 3.2 + 0.55 * len(names))
    figure = Figure(figsize=(size + 1, size), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class")
    ticks = np.arange(0, len(names), math.ceil(len(names) / _MOST_TICKS))
    labels = [shortened(names[tick], 16) for tick in ticks]
    # Names come from the data: `$` in one must not start a formula.
    crowded = len(names) > 4
    axes.set_xticks(ticks, labels, rotation=60 if crowded else 0, ha="right" if crowded else "center", parse_math=False)
    axes.set_yticks(ticks, labels, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(title, parse_math=False)
    if len(names) <= _MOST_NUMBERS:
        for (true, predicted), count in np.ndenumerate(counts):
            text = f"{count:,}\n{100 * shares[true, predicted]:.1f} %" if len(names) <= 5 else f"{count}"
            colour = "white" if shares[true, predicted] > 0.55 else "black"
            axes.text(predicted, true, text, ha="center", va="center", color=colour)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")  # a name in a script the font lacks
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _lines_image(curves: Mapping[str, NDArray[np.float64]], x: str, y: str) -> NDArray[np.uint8]:
    """Curves given by decimal logarithms over 0, 1, ... as an image, `(height, width, 3)`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, logs in curves.items():
        axes.plot(np.arange(len(logs)), 10.0**logs, label=name, linewidth=2)
    axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(frameon=False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _save_image(image: NDArray[np.uint8], path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    draft = path.with_name(f".{path.name}")
    with naming(path), open(create(draft), "wb") as file:
        Image.fromarray(image).save(file, format="PNG")
    draft.replace(path)


def mistakes_page(labels: NDArray[np.int64], scores: NDArray[Any], names: list[str], text_of: Any, most: int) -> str:
    """Markdown list of the wrong answers, most confident first.

    Args:
        labels: true classes, `(texts,)`.
        scores: probabilities, `(texts, classes)`.
        names: of the classes.
        text_of: gives the text of a position in `labels`.
        most: how many to list.
    """
    predicted = _predicted(scores)
    sure = scores[np.arange(len(predicted)), predicted]
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-sure[wrong], kind="stable")][:most]
    lines = [
        f"{len(wrong):,} of {len(labels):,} texts got the wrong label."
        + (" The most confident mistakes, as the model read them:" if len(worst) else "")
    ]
    # No table: TensorBoard would break the words of its narrow columns.
    for place, index in enumerate(worst.tolist(), start=1):
        label, true = markdown(names[predicted[index]]), markdown(names[labels[index]])
        text = markdown(shortened(text_of(index), _TEXT).strip())
        lines += [f"{place}&#46; predicted **{label}** with {sure[index]:.4f}, true is **{true}**", f"> {text}"]
    return "\n\n".join(lines)


@torch.no_grad()
def write_projector(folder: Path, task: Any, vocabulary: list[str]) -> None:
    """Write the word vectors of a vocabulary's first tokens, which are its most frequent, for the projector.

    Beside each token stands the probability of the second class (with more than two: the predicted class) for the text
    that is this token alone, so that the cloud can be coloured by it.
    """
    device = task.device
    ids = torch.arange(len(vocabulary), device=device)
    vectors = task.net.embedding.weight[: len(vocabulary)].float().cpu().numpy()  # (tokens, embedding_dim)
    training = task.training
    task.eval()
    probabilities = task.probabilities(task.net(PackedSequence(ids, torch.tensor([len(ids)]))).float()).cpu().numpy()
    task.train(training)
    names = [printable(str(name)) for name in task.class_names]
    if len(names) == 2:
        title, column = f"P({names[1]})", [f"{p:.3f}" for p in probabilities[:, 1]]
    else:
        title, column = "label", [names[i] for i in probabilities.argmax(axis=1)]
    inner = folder / "projector"
    inner.mkdir(exist_ok=True)
    table = "".join("\t".join(f"{value:.5g}" for value in vector) + "\n" for vector in vectors.tolist())
    write_atomic(inner / "tensors.tsv", table)
    # A token may be a line break or a tab, which `printable` writes out, or a space, which would look like nothing.
    rows = [f"{printable(token).replace(' ', '␣')}\t{value}" for token, value in zip(vocabulary, column, strict=True)]
    write_atomic(inner / "metadata.tsv", "\n".join([f"token\t{title}", *rows]) + "\n")
    config = (
        'embeddings {\n  tensor_name: "word vectors"\n  tensor_path: "projector/tensors.tsv"\n'
        '  metadata_path: "projector/metadata.tsv"\n}\n'
    )
    write_atomic(folder / "projector_config.pbtxt", config)


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(node, dict):
        return {
            k: v for key, value in node.items() for k, v in _flat(value, f"{prefix}.{key}" if prefix else key).items()
        }
    if isinstance(node, list):
        return {prefix: str(node)}
    return {prefix: node if isinstance(node, (bool, int, float, str)) else str(node)}


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that say something about a result, by their paths: `optimizer.lr`."""
    groups = ("data", "model", "optimizer", "scheduler", "trainer", "callbacks")
    settings = _flat({"seed": config["seed"], **{group: config[group] for group in groups}})
    return {key: value for key, value in settings.items() if not _PLUMBING.search(key)}


def announce_hparams(loggers: list[Any], config: dict[str, Any], family: str) -> None:
    """Open the HParams entry of this run: its settings. `closing` adds the final metrics."""
    settings = settings_of(config)
    # Without the experiment summary that Lightning would add: it fixes the columns to the first run's. Left to itself
    # TensorBoard collects them over all runs and puts the settings that differ first.
    _, start, _ = hparams(settings, dict.fromkeys(hparam_metrics(family), math.nan))
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.file_writer.add_summary(start)
