"""The model card: what the model is, on what it was trained, how good it is, where it errs, how to use and cite it."""

import json
import math
from collections.abc import Sequence
from typing import Any

from recur.exporting.agreement import Agreement
from recur.nn.recurrent import Recurrent
from recur.render import markdown_cell as markdown
from recur.runs import journal
from recur.runs.metrics import metric_info
from recur.runs.run import Run

_MOST_CLASSES = 20  # of a confusion matrix that is written out
_MOST_VALIDATIONS = 20  # rows of the curve


def card(run: Run, usage: Sequence[str], measured: Agreement | None = None, small: Agreement | None = None) -> str:
    """The card, Markdown with the front matter of the hub.

    Args:
        run: an open run.
        usage: lines of a shell that use what the card lies beside.
        measured: how far the exported model's answers are from the run's, where that was measured.
        small: the same of its version with 8-bit weights, where there is one.
    """
    record = run.record() or {}
    parts = [
        _front_matter(run, record),
        f"# {_name(run, record)}\n\n{_summary(run, record)}",
        "## Use\n\n```bash\n" + "\n".join(usage) + "\n```",
        _data(run, record),
        _metrics(record),
        _confusion(record),
        _curve(run),
        _agreement(measured, small),
        _limits(run),
        _cite(run, record),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _name(run: Run, record: dict[str, Any]) -> str:
    return markdown(str(record.get("name") or run.config.get("name") or "A model trained with recur"))


def _front_matter(run: Run, record: dict[str, Any]) -> str:
    kind = "text-classification" if run.family == "sentiment" else "text-generation"
    recurrent = _recurrent(run)
    cell = "" if recurrent is None else f", {recurrent.cell}"
    lines = ["---", "library_name: recur", f"pipeline_tag: {kind}", f"tags: [recur, pytorch{cell}]"]
    figures = [
        (split, name, _figure(value, ".6g"))
        for split in ("val", "test")
        for name, value in record.get(split, {}).items()
        if _figure(value)
    ]
    if figures:
        title = json.dumps(str(record.get("name", "recur")))
        lines += ["model-index:", f"- name: {title}", "  results:", f"  - task: {{type: {kind}}}"]
        lines += [f"    dataset: {{name: {title}, type: text}}", "    metrics:"]
        lines += [f"    - {{name: {split}/{name}, type: {name}, value: {value}}}" for split, name, value in figures]
    return "\n".join([*lines, "---"])


def _recurrent(run: Run) -> Recurrent | None:
    """The recurrent stack; a network from elsewhere need not have one."""
    stack = getattr(run.task.net, "recurrent", None)
    return stack if isinstance(stack, Recurrent) else None


def _summary(run: Run, record: dict[str, Any]) -> str:
    size = sum(parameter.numel() for parameter in run.task.parameters())
    what = "text classifier" if run.family == "sentiment" else "language model"
    if (recurrent := _recurrent(run)) is None:
        text = f"A {what} ({type(run.task.net).__name__}): "
    else:
        ways = "bidirectional " if recurrent.bidirectional else ""
        layers = f"{recurrent.num_layers} layer{'s' if recurrent.num_layers > 1 else ''}"
        text = f"A {ways}{recurrent.cell.upper()} {what}: {layers} of {recurrent.hidden_size}, "
    text += f"{run.tokenizer.vocab_size:,} tokens ({run.tokenizer.kind}), {size:,} parameters."
    if run.family == "sentiment":
        text += f" Classes: {', '.join(markdown(str(name)) for name in run.task.class_names)}."
    trained = [f"{record[key]:,} {key}" for key in ("epochs", "steps") if key in record]
    if trained:
        text += f" Trained for {', '.join(trained)}, seed {record.get('seed')}."
    return text


def _data(run: Run, record: dict[str, Any]) -> str:
    rows = [f"| {markdown(str(key))} | {markdown(str(value))} |" for key, value in (record.get("data") or {}).items()]
    settings = run.config["data"]
    source = next((settings[key] for key in ("path", "train", "text") if isinstance(settings.get(key), str)), None)
    if source is None and settings.get("synthetic"):
        source = "texts that recur makes itself"
    rows.insert(0, f"| source | {markdown(str(source or 'see config.yaml'))} |")
    return "\n".join(["## Data", "", "| | |", "|---|---|", *rows])


def _metrics(record: dict[str, Any]) -> str:
    splits = [split for split in ("val", "test") if record.get(split)]
    if not splits:
        return "## Metrics\n\nThe run's figures do not lie beside its weights."
    names = list(dict.fromkeys(name for split in splits for name in record[split]))
    lines = ["## Metrics", "", f"| | {' | '.join(splits)} | unit |", f"|---|{'---|' * (len(splits) + 1)}"]
    for name in names:
        info = metric_info(f"{splits[0]}/{name}")
        cells = [_figure(record[split].get(name)) for split in splits]
        lines.append(f"| {markdown(name)} | {' | '.join(cells)} | {info.unit if info else ''} |")
    if bounds := _bounds(record, splits):
        lines += ["", f"The best that is possible: {'; '.join(bounds)}."]
    return "\n".join(lines)


def _bounds(record: dict[str, Any], splits: Sequence[str]) -> list[str]:
    """The best possible figures of each split: those of a generated text are of its own rows."""
    known = record.get("ceiling_by_split", {"test": record.get("ceiling")})
    bounds: list[str] = []
    for split in splits:
        if best := known.get(split):
            figures = ", ".join(f"{markdown(str(key))} {_figure(value)}" for key, value in best.items())
            bounds.append(f"{figures} on {split}")
    return bounds


def _figure(value: Any, form: str = ".4f") -> str:
    """A figure as text, empty where there is none or it is not finite, which JSON lines hold as null."""
    return format(value, form) if isinstance(value, int | float) and math.isfinite(value) else ""


def _confusion(record: dict[str, Any]) -> str:
    counts = record.get("confusion")
    if not counts or len(counts["class_names"]) > _MOST_CLASSES:
        return ""
    names = [markdown(str(name)) for name in counts["class_names"]]
    matrix = counts["matrix"]
    lines = [
        f"## Confusion matrix ({counts['split']} split)",
        "",
        "Rows are the true classes, columns the predicted.",
        "",
    ]
    lines += [f"| | {' | '.join(names)} | precision | recall |", f"|---|{'---|' * (len(names) + 2)}"]
    for index, (name, row) in enumerate(zip(names, matrix, strict=True)):
        predicted = sum(other[index] for other in matrix)
        figures = [_share(row[index], predicted), _share(row[index], sum(row))]
        lines.append(f"| {name} | {' | '.join(f'{count:,}' for count in row)} | {' | '.join(figures)} |")
    return "\n".join(lines)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.4f}" if whole else "none"


def _curve(run: Run) -> str:
    entries = journal.read_validations(run.place(run.folder)) if run.folder else []
    if len(entries) < 2:
        return ""
    stride = -(-len(entries) // _MOST_VALIDATIONS)
    names = [name for name in entries[-1]["metrics"] if name.startswith("val/")]
    lines = ["## Validations", "", f"| step | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for entry in entries[::-1][::stride][::-1]:
        cells = [_figure(entry["metrics"].get(name)) for name in names]
        lines.append(f"| {entry['step']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _agreement(measured: Agreement | None, small: Agreement | None) -> str:
    if measured is None:
        return ""
    lines = [
        "## Agreement and speed",
        "",
        f"On {measured.texts} texts of {measured.shortest} to {measured.longest} tokens the exported "
        f"model's answers differ from the run's own by at most {measured.difference:.1e}.",
        f"Speed: {measured.speed}.",
    ]
    if small is not None:
        lines += [
            "",
            f"With 8-bit weights they differ by at most {small.difference:.1e}, and {small.same_answers:.2%} are the "
            f"same. Speed: {small.speed}.",
        ]
    return "\n".join(lines)


def _limits(run: Run) -> str:
    most, keep = run.config["data"].get("max_length"), run.config["data"].get("keep", "head")
    lines = ["## Limits", ""]
    if run.family == "sentiment":
        names = ", ".join(markdown(str(name)) for name in run.task.class_names)
        lines.append(f"- It knows the classes {names} and no other; every text gets one of them, whatever it is about.")
        if most is not None:
            lines.append(f"- It reads {most:,} tokens of a longer text (kept: {markdown(str(keep))}).")
    else:
        lines.append("- It writes what is likely after its training text. Nothing it writes is checked for truth.")
    if run.tokenizer.kind != "bpe":
        lines.append(f"- Tokens outside its {run.tokenizer.vocab_size:,} are all read as one unknown token.")
    lines.append(
        "- Its figures hold for texts like those it was trained on; measure it on your own before you rely on it."
    )
    lines.append("- What its training texts are biased towards, it is biased towards.")
    return "\n".join(lines)


def _cite(run: Run, record: dict[str, Any]) -> str:
    versions = record.get("versions") or {}
    made = [f"{name} {version}" for name, version in versions.items() if version]
    lines = ["## How to cite", "", "```bibtex", "@software{recur,", "  title = {recur: recurrent text models},"]
    lines += [f"  version = {{{versions.get('recur', '')}}},", "}", "```", ""]
    if record.get("commit"):
        lines.append(f"Commit {record['commit']}. ")
    if made:
        lines.append(f"Made with {', '.join(made)}.")
    return "\n".join(lines).rstrip()
