"""Files of a run: which are refused before anything is written, and how an error names them."""

import os
from pathlib import Path

import pytest

from recur.cli import explain
from recur.errors import UserError
from recur.runs.files import check_links, naming, open_inside, read_regular, write_atomic


def test_a_file_with_a_name_elsewhere_is_refused(tmp_path: Path) -> None:
    inner = tmp_path / "run"
    (inner / "plots").mkdir(parents=True)
    (tmp_path / "letter").write_text("Dear reader")
    for name in ("train.log", "plots/x.png"):
        (inner / name).hardlink_to(tmp_path / "letter")
        with pytest.raises(UserError, match="is a hard link"):
            check_links(inner)
        (inner / name).unlink()
    check_links(inner)


def test_several_names_inside_are_no_harm_nor_is_a_checkpoint_kept_elsewhere(tmp_path: Path) -> None:
    inner = tmp_path / "run"
    (inner / "a").mkdir(parents=True)
    for name in ("one", "a/best.ckpt"):
        (inner / name).write_text("x")
    (inner / "a" / "two").hardlink_to(inner / "one")
    (tmp_path / "kept.ckpt").hardlink_to(inner / "a" / "best.ckpt")
    check_links(inner)


def test_a_pipe_is_no_file_and_no_reader_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match="is no file"):
            read_regular(place, 10)
    (tmp_path / "file").write_bytes(b"12345")
    assert read_regular(tmp_path / "file", 5) == b"12345"
    with pytest.raises(ValueError, match="too large"):
        read_regular(tmp_path / "file", 4)


def test_a_full_disk_names_the_file() -> None:
    with pytest.raises(OSError, match="No space") as raised, naming("answers.csv"), open("/dev/full", "w") as file:
        file.write("x" * 100_000)
    assert explain(raised.value) == "answers.csv: No space left on device: free some space"


def test_an_error_that_names_a_file_keeps_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised, naming("other"):
        (tmp_path / "absent").read_text()
    assert str(raised.value.filename) == str(tmp_path / "absent")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as raised:
        write_atomic(tmp_path / "folder", "text")
    assert raised.value.filename == str(tmp_path / "folder")
    assert not [path for path in tmp_path.iterdir() if path.name != "folder"]


@pytest.mark.parametrize("name", ["absent", "absent/.lock"])
def test_an_error_in_a_folder_names_the_whole_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        open_inside(tmp_path, name, os.O_RDWR)
    assert explain(raised.value).startswith(f"{tmp_path / name}: No such file")
