"""What a new run may do with the folder that it is given."""

from pathlib import Path

import pytest

from recur.errors import UserError
from recur.runs.folder import WRITTEN, check_free, clear, holds_run

CONFIG = "seed: 0\n"


def _begun(folder: Path, config: str = CONFIG) -> Path:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(config)
    (folder / "config.yaml").write_text(config)
    return folder


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_new_or_empty_folder_is_free(tmp_path: Path) -> None:
    check_free(tmp_path, CONFIG, overwrite=False)
    check_free(tmp_path / "new", CONFIG, overwrite=False)
    (tmp_path / "notes.txt").write_text("mine")
    check_free(tmp_path, CONFIG, overwrite=False)


@pytest.mark.parametrize("kept", ["metrics.json", "checkpoints/last.ckpt", "checkpoints/last.previous.ckpt"])
def test_a_run_is_replaced_only_where_that_was_typed(tmp_path: Path, kept: str) -> None:
    folder = _begun(tmp_path / "run")
    (folder / kept).parent.mkdir(exist_ok=True)
    (folder / kept).write_text("{}")
    with pytest.raises(UserError, match=r"holds a run.*resume=.*overwrite=true"):
        check_free(folder, CONFIG, overwrite=False)
    check_free(folder, CONFIG, overwrite=True)


def test_a_beginning_begins_again_by_the_same_command_alone(tmp_path: Path) -> None:
    folder = _begun(tmp_path / "run")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.ckpt").write_text("")
    check_free(folder, CONFIG, overwrite=False)
    with pytest.raises(UserError, match="holds a run"):
        check_free(folder, "seed: 1\n", overwrite=False)
    (folder / "config.yaml").unlink()  # killed before it was written
    check_free(folder, "seed: 1\n", overwrite=False)


@pytest.mark.parametrize(
    "name", [*(name for name in WRITTEN if not name.startswith(".")), "events.out.tfevents.1.host.2.0"]
)
def test_somebody_s_own_files_are_not_written_over(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="which no run wrote"):
            check_free(tmp_path, CONFIG, overwrite=overwrite)
    clear(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_clearing_takes_what_a_run_writes_and_nothing_else(tmp_path: Path) -> None:
    folder = _begun(tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("mine")
    (folder / "plots").symlink_to(tmp_path / "elsewhere")
    for name in ("notes.txt", "events.out.tfevents.1", "history.jsonl", "output.log"):
        (folder / name).write_text("x")
    clear(folder)
    assert set(_contents(folder)) == {"notes.txt", "output.log"}
    assert (tmp_path / "elsewhere" / "precious").read_text() == "mine"
    assert not holds_run(folder)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(UserError, match="is a file"):
        check_free(tmp_path / "f", CONFIG, overwrite=False)
