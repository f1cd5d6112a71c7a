"""The command for other programs: `python -m recur.export RUN --format onnx|torch|safetensors`.

What it writes is compared with the run's own answers first; a model that answers differently is not written.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recur import cli
from recur.errors import UserError

if TYPE_CHECKING:
    from recur.exporting.agreement import Agreement, Ids
    from recur.exporting.folder import Export
    from recur.runs.run import Run


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `python -m recur.export` and `recur-export`."""
    arguments = _parser().parse_args(argv)
    cli.guard(lambda: _run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="recur.export",
        description="Write a trained model in another program's format.",
        epilog="example: python -m recur.export outputs/... --format onnx --int8",
    )
    parser.add_argument("run", help="run folder or checkpoint")
    parser.add_argument(
        "--format",
        default="onnx",
        metavar="F",
        help="onnx (default): for onnxruntime; torch: a program of torch.export; safetensors: a folder as on the hub",
    )
    parser.add_argument("--out", metavar="FOLDER", help="folder to write (default: RUN/export/FORMAT)")
    parser.add_argument("--int8", action="store_true", help="with onnx: also a model with 8-bit weights")
    parser.add_argument("--force", action="store_true", help="replace the folder if it is there")
    parser.add_argument("--texts", metavar="FILE", help="compare the answers on these texts, one a line")
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    from recur.exporting.folder import default_folder, export
    from recur.runs.files import check_links
    from recur.runs.run import Run

    run = Run.open(arguments.run)
    if run.folder is not None and (run.folder / ".hydra").is_dir():
        check_links(run.folder)  # it is read and, by default, written to
    # A folder that is typed may be a link; one in the run's folder may not.
    folder = Path(arguments.out).resolve() if arguments.out else default_folder(run, arguments.format)
    texts = None if arguments.texts is None else _texts(run, Path(arguments.texts))
    done = export(run, arguments.format, folder, int8=arguments.int8, force=arguments.force, texts=texts)
    if arguments.json:
        record = {"folder": str(done.folder), "files": done.files}
        for name, measured in (("agreement", done.agreement), ("int8", done.int8)):
            record |= {name: measured.record()} if measured else {}
        print(json.dumps(record))
    else:
        _say(done)


def _texts(run: "Run", file: Path) -> "list[Ids]":
    """Ids of the lines of a file that have any, cut as the run cuts texts."""
    import numpy as np

    from recur.data.buckets import Texts
    from recur.data.cache import Ragged

    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        rule = f"is not UTF-8 (byte 0x{error.object[error.start]:02x})"
        raise UserError(f"{file} line {line}", rule=rule, remedy="convert it, for instance with iconv") from None
    arrays = [ids for ids in run.tokenizer.encode_batch(lines) if len(ids)]
    if not arrays:
        raise UserError(str(file), rule="has no line with a token")
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in arrays])]).astype(np.int64)
    settings = run.config["data"]
    kept = {"max_length": settings.get("max_length"), "keep": settings.get("keep", "head")}
    cut = Texts(Ragged(np.concatenate(arrays), offsets), **(kept if run.family == "sentiment" else {}))
    return [cut[row].astype(np.int64) for row in range(len(cut))]


def _say(done: "Export") -> None:
    for name, size in done.files.items():
        print(f"{done.folder / name}  {size:,} bytes")
    if done.agreement:
        _compared(done.agreement, "the exported model")
    if done.int8:
        _compared(done.int8, "with 8-bit weights it")


def _compared(measured: "Agreement", what: str) -> None:
    print(
        f"on {measured.texts} texts of {measured.shortest} to {measured.longest} tokens {what} differs from recur "
        f"by at most {measured.difference:.1e} and has the same answer for {measured.same_answers:.2%}"
    )
    print(f"  speed: {measured.speed}")


if __name__ == "__main__":
    main()
