"""What an export writes: a folder for each format, complete or not there."""

import io
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from recur import __version__
from recur.data import own_tokenizers
from recur.data.cache import share
from recur.data.corpus import start_id
from recur.errors import UserError
from recur.exporting import agreement, card
from recur.exporting.agreement import Agreement, Ids
from recur.runs import hub
from recur.runs.extras import lacks
from recur.runs.files import is_inside, naming
from recur.runs.limits import read_json
from recur.runs.metrics import finite
from recur.runs.run import Run, load_checkpoint
from recur.tasks.sentiment import SentimentTask

FORMATS = ("onnx", "torch", "safetensors")
# All that any of them writes; a folder with anything else is not replaced.
_NAMES = (
    *("model.onnx", "model.int8.onnx", "model.pt2", hub.WEIGHTS, hub.CONFIG, hub.TOKENIZER),
    *("README.md", "use.py", "metrics.json"),
)
_PROBABILITIES = SentimentTask.probabilities
_LARGEST = 2**31 - 2**20  # bytes of an ONNX file, which is a protocol buffer


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        folder: where.
        files: name and size in bytes of each.
        agreement: of the exported model with the run, None where the weights are the run's own.
        int8: of the quantized model with the run, None without one.
    """

    folder: Path
    files: dict[str, int]
    agreement: Agreement | None = None
    int8: Agreement | None = None


@dataclass
class _Files:
    content: dict[str, bytes] = field(default_factory=dict)

    def text(self, name: str, text: str) -> None:
        self.content[name] = text.encode()


def export(
    run: Run, kind: str, folder: Path, *, int8: bool = False, force: bool = False, texts: Sequence[Ids] | None = None
) -> Export:
    """Write a run in another program's format.

    Args:
        run: an open run, on the CPU.
        kind: one of `FORMATS`.
        folder: to write; its parent may be missing.
        int8: with `onnx`, also a model whose weights have 8 bits.
        force: replace the folder if it is there.
        texts: ids of the texts on which the exported model is compared with the run; None draws 200.

    Raises:
        UserError: the folder is there already, weights that are not finite, a language model that reads from the end of
            texts, a model that the format cannot hold, a missing extra, or answers that are not the run's.
    """
    if kind not in FORMATS:
        raise UserError("--format", kind, f"must be one of {', '.join(FORMATS)}")
    run.require_finite()
    if run.family == "language":
        run.require_forward()
    if int8 and kind != "onnx":
        raise UserError("--int8", rule="goes with --format onnx")
    if texts is not None and kind == "safetensors":
        raise UserError("--texts", rule="does nothing with --format safetensors, whose weights are the run's own")
    _check_free(folder, force)
    if kind != "safetensors" and run.tokenizer.kind in own_tokenizers.names():
        rule = f"cannot hold the tokenizer {run.tokenizer.kind!r}, a function of another package"
        raise UserError(f"--format {kind}", rule=rule, remedy="--format safetensors keeps its name")
    # A program that uses these takes probabilities from logits as `SentimentTask` does; only logits are compared.
    if kind != "safetensors" and getattr(type(run.task), "probabilities", _PROBABILITIES) is not _PROBABILITIES:
        rule = f"cannot hold the probabilities of {type(run.task).__name__}, whose code computes them from the logits"
        raise UserError(f"--format {kind}", rule=rule, remedy="--format safetensors keeps its name")
    run.task.cpu().float().eval()
    texts = texts if texts is not None else agreement.drawn_texts(run.tokenizer.vocab_size)
    files, measured, small = _Files(), None, None
    if kind == "safetensors":
        files.content |= hub.files(load_checkpoint(run.place(run.checkpoint)))
        files.text("README.md", card.card(run, _commands(run, "recur.predict", "recur.generate")))
    elif kind == "torch":
        measured = _torch(run, files, texts)
    else:
        measured, small = _onnx(run, files, texts, int8)
    if kind != "safetensors":
        config = _config(run) | {"agreement": measured.record() if measured else None}
        config |= {"int8": small.record()} if small else {}
        files.text("config.json", json.dumps(config, indent=2, ensure_ascii=False))
        tokenizer = json.loads(run.tokenizer.to_json())["tokenizer"]
        files.text("tokenizer.json", json.dumps(tokenizer, ensure_ascii=False))
    record = run.record()
    if record is not None:
        files.text("metrics.json", json.dumps(finite(record), indent=2, ensure_ascii=False) + "\n")
    _write(folder, files.content, force)
    return Export(folder, {name: len(content) for name, content in files.content.items()}, measured, small)


def _commands(run: Run, classify: str, write: str) -> list[str]:
    if run.family == "sentiment":
        return [f'python -m {classify} . "This film is great"', "python -m recur.evaluate . --data reviews.csv"]
    return [f'python -m {write} . --prompt "the" --tokens 200']


def _config(run: Run) -> dict[str, Any]:
    """What a program that uses the model has to know."""
    settings = run.config["data"]
    common = {
        "library_name": "recur",
        "recur": __version__,
        "family": run.family,
        "vocab_size": run.tokenizer.vocab_size,
    }
    if run.family == "sentiment":
        names = [str(name) for name in run.task.class_names]
        cut = {"max_length": settings.get("max_length"), "keep": settings.get("keep", "head")}
        return {**common, "class_names": names, **cut}
    state = run.task.net.recurrent.initial_state(1, run.task.net.embedding.weight)
    sizes = {f"state_{i}_{j}": part.shape[-1] for i, one in enumerate(state) for j, part in enumerate(one)}
    ids = {"start_id": start_id(run.tokenizer), "eos_id": run.tokenizer.eos_id}
    return {**common, **ids, "window": run.task.window, "state": sizes}


def _require(measured: Agreement, kind: str) -> Agreement:
    """Refuse a model whose answers are not the run's.

    Raises:
        UserError: they differ by more than float32's own inexactness.
    """
    if not measured.difference <= measured.allowed:
        raise UserError(
            f"--format {kind}",
            rule=f"would change the answers by {measured.difference:.1e}, more than {measured.allowed:.1e}",
            remedy="--format safetensors keeps them; please report this as a bug",
        )
    return measured


def _onnx(run: Run, files: _Files, texts: Sequence[Ids], int8: bool) -> tuple[Agreement, Agreement | None]:
    try:
        import onnxruntime  # noqa: F401

        from recur.exporting import models, scripts
    except ImportError as error:
        raise lacks("export", error.name or "onnx", "--format onnx") from None
    size = sum(parameter.numel() * 4 for parameter in run.task.parameters())
    if size > _LARGEST:
        raise UserError(f"{run.checkpoint}", size, "must have less than 2 GiB of weights for one ONNX file")
    model = models.build(run.task)
    content = model.SerializeToString()
    answer = agreement.onnx_answers(content, run.task.net, run.family)
    measured = _require(agreement.compare(answer, run.task.net, run.family, texts), "onnx")
    files.content["model.onnx"] = content
    small = None
    if int8:
        files.content["model.int8.onnx"] = _quantized(model)
        answer = agreement.onnx_answers(files.content["model.int8.onnx"], run.task.net, run.family)
        small = agreement.compare(answer, run.task.net, run.family, texts)
    files.text("use.py", scripts.script(_config(run)))
    usage = 'python use.py "This film is great"' if run.family == "sentiment" else 'python use.py "the" 50'
    files.text("README.md", card.card(run, ["pip install onnxruntime tokenizers", usage], measured, small))
    return measured, small


def _quantized(model: Any) -> bytes:
    """The model with 8-bit weights, which onnxruntime multiplies with inputs that it quantizes on the way."""
    import logging
    import tempfile

    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)  # it recommends a preparation, and names what has no weights
    try:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "model.onnx"
            quantize_dynamic(model, path, weight_type=QuantType.QInt8)
            return path.read_bytes()
    finally:
        logging.disable(logging.NOTSET)


def _torch(run: Run, files: _Files, texts: Sequence[Ids]) -> Agreement:
    from recur.exporting import dense

    program = dense.export(run.task.net)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    content = buffer.getvalue()
    loaded = torch.export.load(io.BytesIO(content))
    measured = _require(
        agreement.compare(dense.answers(loaded, run.task.net), run.task.net, run.family, texts), "torch"
    )
    files.content["model.pt2"] = content
    usage = ["python -c 'import torch; print(torch.export.load(\"model.pt2\"))'"]
    files.text("README.md", card.card(run, usage, measured))
    return measured


def default_folder(run: Run, kind: str) -> Path:
    """Where a run is exported to unless somebody says otherwise: below its own folder.

    Raises:
        UserError: a link there leads out of it.
    """
    base = run.folder or run.checkpoint.parent
    folder = base / "export" / kind
    if not is_inside(folder, base):
        raise UserError(str(folder), rule=f"leads out of {base}", remedy="name a folder with --out")
    return folder


def _check_free(folder: Path, force: bool) -> None:
    """Refuse a folder that is there, unless it is an export and may be replaced.

    Raises:
        UserError: it may not be written.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir() or folder.is_symlink():
        raise UserError(str(folder), rule="is no folder", remedy="give another --out")
    if not force:
        raise UserError(str(folder), rule="is there already", remedy="give --force to replace it, or another --out")
    inner = sorted(folder.iterdir())
    if not inner:
        return
    theirs = [path.name for path in inner if path.name not in _NAMES or path.is_symlink() or not path.is_file()]
    if theirs or not _is_ours(folder):
        rule = f"is no export of recur: it holds {(theirs or [inner[0].name])[0]}"
        raise UserError(str(folder), rule=rule, remedy="--force replaces exports alone; give another --out")


def _is_ours(folder: Path) -> bool:
    try:
        config = read_json(folder / hub.CONFIG)
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("library_name") == "recur"


def _write(folder: Path, content: dict[str, bytes], force: bool) -> None:
    """Write beside the place and rename: a reader sees the former folder or this one, whole, or for an instant none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        share(draft)
        for name, data in content.items():
            with naming(folder / name):
                (draft / name).write_bytes(data)
        _check_free(folder, force)  # once more: comparing took a while
        if folder.exists():
            former = draft.with_suffix(".former")
            folder.replace(former)
            try:
                draft.replace(folder)
            except BaseException:
                former.replace(folder)
                raise
            shutil.rmtree(former)
        else:
            draft.replace(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
