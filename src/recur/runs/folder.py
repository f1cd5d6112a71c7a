"""What lies in a folder before a run writes into it, and what may be done about it."""

import shutil
from pathlib import Path

from recur.errors import UserError
from recur.runs.checkpoint import LAST, PREVIOUS

NOT_FINITE = "not_finite.txt"  # why a run ended by a loss or gradient that is NaN or infinite
# All that a run writes, in the order in which it is removed: the mark of a run, `.hydra`, goes last.
WRITTEN = (
    "metrics.json",
    NOT_FINITE,
    "checkpoints",
    "history.jsonl",
    "plots",
    "projector",
    "projector_config.pbtxt",
    "hparams.yaml",
    "metrics.csv",
    "tokenizer.json",
    "config.yaml",
    "train.log",
    "wandb_run_id.txt",
    "mlflow_run_id.txt",
    "aim_run_hash.txt",
    ".hydra",
)
_PATTERNS = ("events.out.tfevents.*", "train_ddp_process_*.log")


def holds_run(folder: Path) -> bool:
    """Whether a run wrote into this folder."""
    return (folder / ".hydra" / "config.yaml").is_file()


def check_free(folder: Path, config: str, *, overwrite: bool) -> None:
    """Refuse to write a new run over what is there.

    A run that this same command began, and that was killed before it saved anything to go on from, may begin again.

    Args:
        folder: of the new run, which need not exist.
        config: of the new run, the text of its `config.yaml`.
        overwrite: whether a former run may be replaced.

    Raises:
        UserError: the folder holds another run, or files that are not a run's and would be overwritten.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError("hydra.run.dir", str(folder), "is a file", "name a folder")
    if not holds_run(folder):
        theirs = [name for name in WRITTEN if (folder / name).exists()]
        theirs += [path.name for pattern in _PATTERNS for path in sorted(folder.glob(pattern))]
        if theirs:
            raise UserError(
                "hydra.run.dir",
                str(folder),
                f"holds {theirs[0]}, which no run wrote and this one would replace",
                "name another folder",
            )
        return
    if overwrite or (not _worth_keeping(folder) and _config_of(folder) in (None, config)):
        return
    raise UserError(
        "hydra.run.dir",
        str(folder),
        "holds a run",
        f"go on with resume={folder}, name another folder, or replace it with overwrite=true",
    )


def _worth_keeping(folder: Path) -> bool:
    checkpoints = folder / "checkpoints"
    return (folder / "metrics.json").is_file() or any((checkpoints / name).is_file() for name in (LAST, PREVIOUS))


def _config_of(folder: Path) -> str | None:
    try:
        return (folder / "config.yaml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def clear(folder: Path, *, marked: bool = True) -> None:
    """Remove what a run wrote into a folder, and nothing else.

    Args:
        folder: of the run.
        marked: do so only where it carries the mark of a run; False for a folder that this process has just made.
    """
    if marked and not holds_run(folder):
        return
    for path in [path for pattern in _PATTERNS for path in folder.glob(pattern)]:
        path.unlink()
    for path in [folder / name for name in WRITTEN]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
