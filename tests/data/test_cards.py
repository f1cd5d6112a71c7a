"""What the README of a folder of data may ask for."""

import os
from pathlib import Path

import pytest

from recur.data.cards import check_aliases, check_card
from recur.errors import UserError

BOMB = "a0: &a0 [1, 1, 1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))


def card(folder: Path, text: str, name: str = "README.md") -> Path:
    (folder / name).write_text(f"---\n{text}\n---\n# Data\n" if name == "README.md" else text)
    return folder


@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("configs:\n- data_files: http://example.org/a.csv", "http://example.org/a.csv"),
        ("configs:\n- data_files:\n  - split: train\n    path: [a.csv, 'hf://datasets/x/a.csv']", "hf://"),
        ("data_files: {train: 'zip://a.csv::https://example.org/a.zip'}", "zip://"),
        (BOMB, "unfold"),
        ("configs: &a [*a]", "unfold"),
    ],
)
def test_what_would_be_fetched_or_unfold_is_refused(tmp_path: Path, text: str, said: str, name: str) -> None:
    with pytest.raises(UserError, match=said):
        check_card(card(tmp_path, text, name))


@pytest.mark.parametrize(
    "text",
    [
        "configs:\n- config_name: default\n  data_files: '*.csv'",
        "license: mit\nhomepage: https://example.org",
        "features: &f [text, label]\nconfigs:\n- data_files: a.csv\n  features: *f",
        "not: [yaml",
        "",
    ],
)
def test_what_is_usual_passes(tmp_path: Path, text: str) -> None:
    check_card(card(tmp_path, text))
    check_aliases(tmp_path / "x.yaml", text)


def test_a_pipe_is_no_readme(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "README.md")
    with pytest.raises(UserError, match="no file"):
        check_card(tmp_path)
