"""Settings and files that cannot be what the user meant: one line that names the key or the file, and what to do.

A row composes its config as the command does, holds it against the schema and opens the data, all in this process;
`tests/test_refuse.py` shows for rows of every command that such an error is one line and exit code 2.
"""

import json
import shlex
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from recur.config import schema

CONF = Path(__file__).resolve().parents[2] / "conf"
Content = str | bytes | Callable[[Path], None]


class Row(NamedTuple):
    """One thing to be refused.

    Attributes:
        words: overrides of the training command.
        said: what the line must contain.
        files: what lies in the working folder.
    """

    words: str
    said: tuple[str, ...]
    files: Mapping[str, Content] = {}


def opened(words: str) -> Any:
    """The data module of a training command, set up to fit."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", shlex.split(words)).data, resolve=True)
    schema.check(config, "data")
    try:
        data = instantiate(config, _convert_="all")
    except InstantiationException as error:
        raise (error.__cause__ or error) from None
    data.prepare_data()
    data.setup("fit")
    data.model_arguments()
    return data


def zipped(**members: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in members.items():
                archive.writestr(name.replace("__", "/") + ".txt", text)

    return make


def parquet(columns: dict[str, Any], metadata: Any = None) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        table = pa.table(columns)
        if metadata is not None:
            table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
        pq.write_table(table, path)

    return make


GOOD = "text,label\n" + "a fine film,1\na dull film,0\n" * 20
FILES = "data=files data.train=a.csv data.batch_size=4 "
TEXT = "data=text_files data.train=a.txt model=language_model "
VECTORS = FILES + "data.vectors=v.txt"
MIXED = "".join(json.dumps({"text": "a film", "label": label}) + "\n" for label in [0, 1, 0, 1, "1", 0, 1, 0, 1, 0] * 4)
ROWS = {
    "labels spelled in two ways": Row(
        "data=files data.train=a.jsonl data.batch_size=4",
        ("a.jsonl column 'label'", "1 and '1'", "in one way"),
        {"a.jsonl": MIXED},
    ),
    "labels 1 and 1.0": Row(
        FILES, ("'1' and '1.0'", "in one way"), {"a.csv": "text,label\n" + "a,1\nb,1.0\nc,0\n" * 9}
    ),
    "text is the label": Row(
        FILES + "data.text_column=label", ("data.label_column", "another column"), {"a.csv": GOOD}
    ),
    "no tokenizer": Row(FILES + "data.tokenizer=null", ("data.tokenizer", "None"), {"a.csv": GOOD}),
    "no tokenizer of text": Row(TEXT + "data.tokenizer=null", ("data.tokenizer", "None"), {"a.txt": "a b c\n" * 99}),
    "a column name and a number": Row(FILES + "data.text_column=1", ("data.label_column", "both"), {"a.csv": GOOD}),
    "column number 0": Row(
        FILES + "data.text_column=0 data.label_column=1", ("data.text_column", "at least 1", "0"), {"a.csv": GOOD}
    ),
    "no such column number": Row(
        FILES + "data.text_column=1 data.label_column=3", ("a.csv", "no column 3", "only 1, 2"), {"a.csv": GOOD}
    ),
    "no line of names": Row(
        "data=files data.train=a.tsv",
        ("a.tsv has no column 'label'", "data.text_column=1 data.label_column=2"),
        {"a.tsv": "a fine film\t1\na dull film\t0\n" * 20},
    ),
    "numbers for parquet": Row(
        "data=files data.train=a.parquet data.text_column=1 data.label_column=2",
        ("a.parquet", "csv or tsv", "names"),
        {"a.parquet": parquet({"text": ["a", "b"], "label": [0, 1]})},
    ),
    "a date after the year 9999": Row(
        "data=files data.train=a.parquet data.label_column=day",
        ("a.parquet", "date"),
        {"a.parquet": parquet({"text": ["a", "b"], "day": pa.array([2**40, 0], pa.timestamp("s"))})},
    ),
    "vectors of 10^9 numbers": Row(
        VECTORS, ("v.txt", "1,000,000,000 numbers", "bytes"), {"a.csv": GOOD, "v.txt": "3 1000000000\nfilm 1 2 3\n"}
    ),
    "fewer vectors than promised": Row(
        VECTORS, ("v.txt", "promises 3", "has 2"), {"a.csv": GOOD, "v.txt": "3 2\nfilm 1.5 2.5\nfine 1 3\n"}
    ),
    "more vectors than promised": Row(
        VECTORS, ("v.txt", "promises 1", "has 2"), {"a.csv": GOOD, "v.txt": "1 2\nfilm 1 2\nfine 1 3\n"}
    ),
    "vectors that are no numbers": Row(
        VECTORS, ("v.txt line 2", "2 numbers"), {"a.csv": GOOD, "v.txt": "film 1 2\nfine 1 x\n"}
    ),
    "10^12 reviews": Row(
        "data.synthetic.train_size=1000000000000", ("data.synthetic.train_size", "at most", "1000000000000")
    ),
    "10^12 tokens": Row(
        "data=synthetic_text data.synthetic.val_size=1000000000000",
        ("data.synthetic.val_size", "at most", "1000000000000"),
    ),
    "10^9 neutral sentences": Row("data.synthetic.gap=1000000000", ("data.synthetic.gap", "14")),
    "noise in short reviews": Row("data.synthetic.short=0.95", ("data.synthetic.noise", "0.05", "at most 0.02495")),
    "NUL in a path": Row("data=files 'data.path=\"a\\0b\"'", ("data.path",)),
    "too many processes' worth of streams": Row(
        TEXT + "data.batch_size=5000", ("data.batch_size", "5000", "train split", "lower it"), {"a.txt": "a b\n" * 99}
    ),
    "a zip of nothing": Row("data=files data.path=a.zip", ("a.zip", "folder a class"), {"a.zip": zipped(README="a")}),
    "a zip that is none": Row("data=files data.path=a.zip", ("a.zip", "zip archive"), {"a.zip": b"PK but no zip"}),
    "a zip of one class": Row(
        "data=files data.path=a.zip data.batch_size=2",
        ("a.zip/pos/1.txt", "'pos'", "two classes"),
        {"a.zip": zipped(pos__1="a fine film", pos__2="a great film")},
    ),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_is_refused_and_named(row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in row.files.items():
        if callable(content):
            content(tmp_path / name)
        else:
            (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r".") as caught:
        opened(row.words)
    line = str(caught.value)
    assert "\n" not in line
    assert not [word for word in row.said if word not in line], line
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        {"info": {"features": {"label": {"_type": "ClassLabel"}}}},
        {"info": {"features": {"label": {"_type": "ClassLabel", "names": 5}}}},
        {"info": {"features": {"label": {"_type": "ClassLabel", "names": [1, 2]}}}},
        {"info": {"features": ["label"]}},
        {"info": None},
    ],
    ids=str,
)
def test_odd_metadata_of_a_parquet_file_is_passed_over(metadata, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    columns = {"text": ["a fine film", "a dull film"] * 10, "label": [1, 0] * 10}
    parquet(columns, metadata)(tmp_path / "a.parquet")
    assert opened("data=files data.train=a.parquet data.batch_size=4").class_names == ["0", "1"]


def test_false_is_no_test_and_no_validation_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("train", "validation", "test"):
        (tmp_path / f"{name}.csv").write_text(GOOD)
    words = "data=files data.path=. data.batch_size=4 "
    assert opened(words).splits == ["train", "val", "test"]
    data = opened(words + "data.val=false data.test=false")
    assert data.splits == ["train", "val"] and len(data.labels("train")) == 36
    for wrong in ("true", "5"):
        with pytest.raises(ValueError, match=r"data\.test must be"):
            opened(words + f"data.test={wrong}")


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
def test_a_table_without_a_line_of_names_is_read_by_column_numbers(name, tmp_path, monkeypatch):
    """SST-2 as it was published: a sentence, a tab, 0 or 1; its first line is a row."""
    monkeypatch.chdir(tmp_path)
    mark = "\t" if name == "a.tsv" else ","
    rows = [("hide new secretions from the parental units", 0), ("a stirring , funny film", 1)] * 10
    quoted = [f'"{text}"' if mark == "," else text for text, _ in rows]
    (tmp_path / name).write_text(
        "".join(f"{text}{mark}{label}\n" for text, (_, label) in zip(quoted, rows, strict=True))
    )
    data = opened(f"data=files data.train={name} data.text_column=1 data.label_column=2 data.batch_size=4")
    assert len(data.labels("train")) + len(data.labels("val")) == 20
    texts = {data.text("train", row) for row in range(len(data.labels("train")))}
    assert texts == {text for text, _ in rows}
    text = opened(f"data=text_files data.train={name} data.text_column=1 model=language_model data.batch_size=2")
    assert "stirring" in text.tokenizer.vocabulary


def test_a_zip_of_class_folders_is_read_like_the_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "data=files data.path={} data.batch_size=2"
    texts = {f"aclImdb__train__{c}__{n}": f"a {c} film {n}" for c in ("neg", "pos") for n in range(6)}
    texts |= {f"aclImdb__test__{c}__{n}": f"another {c} film" for c in ("neg", "pos") for n in range(2)}
    texts |= {f"aclImdb__train__unsup__{n}": "some film" for n in range(3)}
    zipped(**texts, aclImdb__README="read me")(tmp_path / "a.zip")
    with zipfile.ZipFile("a.zip") as archive:
        archive.extractall()
    zipped_data, folder = opened(words.format("a.zip")), opened(words.format("aclImdb"))
    assert zipped_data.class_names == folder.class_names == ["neg", "pos"]
    assert zipped_data.splits == folder.splits == ["train", "val", "test"]
    for split in folder.splits:
        assert zipped_data.labels(split).tolist() == folder.labels(split).tolist()
        numbers = range(len(folder.labels(split)))
        assert [zipped_data.text(split, n) for n in numbers] == [folder.text(split, n) for n in numbers]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "aclImdb"]
