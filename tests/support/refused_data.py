"""What is refused, row by row: what the rows are made of, and the rows of data and texts."""

import gzip
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Content = str | bytes | Callable[[Path, "Runs"], None] | None  # None: an empty folder


class Runs(NamedTuple):
    """Runs that were there before."""

    sentiment: Path
    language: Path


class Row(NamedTuple):
    """One thing to be refused.

    Attributes:
        words: command line of the command; `{sentiment}`, `{language}` stand for runs that are there.
        said: what the line must contain: the value and what fixes it.
        files: what lies in the folder where the command is called.
        text: standard input.
    """

    words: str
    said: tuple[str, ...]
    files: Mapping[str, Content] = {}
    text: str | bytes = ""


LABELLED = "text,label\n" + "a fine film,1\na dull film,0\n" * 20
FILES = "data=files data.train=a.csv "


def frame(path: Path, rows: list[dict[str, Any]]) -> None:
    import pandas as pd

    pd.DataFrame(rows).to_parquet(path)


def truncated(source: str) -> Callable[[Path, Runs], None]:
    def make(path: Path, runs: Runs) -> None:
        whole = Path(source.format(**runs._asdict())).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])

    return make


def truncated_parquet(path: Path, runs: Runs) -> None:
    frame(path, [{"text": "fine", "label": 1}, {"text": "dull", "label": 0}] * 50)
    path.write_bytes(path.read_bytes()[:-100])


def pickled_frame(path: Path, runs: Runs) -> None:
    import pandas as pd

    pd.DataFrame([{"text": "fine", "label": 1}, {"text": "dull", "label": 0}] * 10).to_pickle(path)


def lines(*records: Any) -> str:
    return "".join((json.dumps(record) if isinstance(record, dict) else record) + "\n" for record in records)


GOOD = {"text": "a fine film", "label": 1}

ROWS: dict[str, dict[str, Row]] = {}
ROWS["data"] = {
    "no such file": Row("data=files data.train=absent.csv", ("data.train", "'absent.csv'", "no such file")),
    "no such folder": Row("data=files data.path=./absent", ("./absent", "no such file or folder")),
    "no source at all": Row("data=files", ("data.path", "data.train")),
    "empty file": Row(FILES, ("a.csv is empty", "columns"), {"a.csv": ""}),
    "blank lines only": Row(FILES, ("a.csv is empty", "columns"), {"a.csv": "\n\r\n\n"}),
    "empty folder": Row("data=files data.path=empty", ("/empty'", "is empty"), {"empty": None}),
    "column names only": Row(FILES, ("a.csv", "'text'", "no rows"), {"a.csv": "text,label\n"}),
    "no text column": Row(
        FILES, ("'text'", "'review'", "data.text_column"), {"a.csv": LABELLED.replace("text", "review")}
    ),
    "no label column": Row(
        FILES, ("'label'", "'stars'", "data.label_column"), {"a.csv": LABELLED.replace("label", "stars")}
    ),
    "no line of column names": Row(
        FILES, ("'label'", "'a fine film'", "data.label_column"), {"a.csv": LABELLED.partition("\n")[2]}
    ),
    "separated by semicolons": Row(
        FILES, ("'text;label'", "set 'data.delimiter=\";\"'"), {"a.csv": LABELLED.replace(",", ";")}
    ),
    "column twice": Row(FILES, ("'text'", "2 times", "rename"), {"a.csv": "text,text,label\na,b,1\nc,d,0\n"}),
    "ragged": Row(
        FILES, ("a.csv row 2 (line 3)", "3 against 2", "data.on_bad_row=skip"), {"a.csv": "text,label\na,1\nb,0,x\n"}
    ),
    "open quote": Row(FILES, ("a.csv line 2", "quote"), {"a.csv": 'text,label\n"a,1\nb,0\n'}),
    "all one label": Row(FILES, ("a.csv", "'1'", "two classes"), {"a.csv": "text,label\na,1\nb,1\nc,1\nd,1\n"}),
    "no label": Row(
        FILES, ("a.csv row 2", "no label", "data.on_bad_row=skip"), {"a.csv": "text,label\na,1\nb,\nc,0\n"}
    ),
    "numbers for labels": Row(
        FILES,
        ("'label'", "60 different values", "data.label_column"),
        {"a.csv": "text,label\n" + "".join(f"a film,{i}.5\n" for i in range(60))},
    ),
    "NUL byte": Row(FILES, ("a.csv row 1 (line 2)", "NUL", "'a\\x00b'"), {"a.csv": "text,label\na\0b,1\nc,0\n"}),
    "not UTF-8": Row(FILES, ("row 2 (line 3)", "0xe9", "UTF-8", "iconv"), {"a.csv": b"text,label\na,1\ncaf\xe9,0\n"}),
    "a column's name not UTF-8": Row(FILES, ("a.csv", "names of columns", "iconv"), {"a.csv": b"text,l\xe9bel\na,1\n"}),
    "one text and no labels": Row(
        "data=files data.train=a.txt", ("a.txt", "'label'", "a .txt is one text"), {"a.txt": "__label__x a film"}
    ),
    "UTF-16": Row(FILES, ("a.csv is UTF-16", "iconv"), {"a.csv": LABELLED.encode("utf-16")}),
    "UTF-16 without its mark": Row(FILES, ("a.csv is UTF-16", "iconv"), {"a.csv": LABELLED.encode("utf-16-be")}),
    "no tokens": Row(
        FILES, ("a.csv row 2", "has no token", "';;'", "data.on_bad_row=skip"), {"a.csv": "text,label\na,1\n;;,0\n"}
    ),
    "empty text": Row(FILES, ("a.csv row 1", "is empty", "data.on_bad_row=skip"), {"a.csv": "text,label\n ,1\nb,0\n"}),
    "null text": Row(
        "data=files data.train=a.jsonl",
        ("a.jsonl row 2 (line 2)", "is null", "data.on_bad_row=skip"),
        {"a.jsonl": lines(GOOD, {"text": None, "label": 0})},
    ),
    "number for a text": Row(
        "data=files data.train=a.jsonl",
        ("a.jsonl row 2", "is not text", "3"),
        {"a.jsonl": lines(GOOD, {"text": 3, "label": 0})},
    ),
    "lone surrogate": Row(
        "data=files data.train=a.jsonl",
        ("a.jsonl row 2", "surrogate", "\\ud800"),
        {"a.jsonl": lines(GOOD, {"text": "a \ud800", "label": 0})},
    ),
    "list for a label": Row(
        "data=files data.train=a.jsonl",
        ("a.jsonl row 2", "not one label", "[0, 1]"),
        {"a.jsonl": lines(GOOD, {"text": "b", "label": [0, 1]})},
    ),
    "not JSON": Row(
        "data=files data.train=a.jsonl", ("a.jsonl row 2 (line 2)", "is not JSON"), {"a.jsonl": lines(GOOD, "{text: b")}
    ),
    "JSON too deep": Row(
        "data=files data.train=a.jsonl", ("a.jsonl row 2", "JSON"), {"a.jsonl": lines(GOOD, "[" * 200_000)}
    ),
    "no JSON object": Row(
        "data=files data.train=a.jsonl", ("row 2", "not a JSON object", "'b'"), {"a.jsonl": lines(GOOD, '"b"')}
    ),
    "key missing in a row": Row(
        "data=files data.train=a.jsonl", ("row 2", "'label'"), {"a.jsonl": lines(GOOD, {"text": "b"})}
    ),
    "JSON but no list": Row("data=files data.train=a.json", ("a.json", "list", "int"), {"a.json": "3"}),
    "truncated parquet": Row(
        "data=files data.train=a.parquet", ("a.parquet", "parquet"), {"a.parquet": truncated_parquet}
    ),
    "text for parquet": Row("data=files data.train=a.parquet", ("a.parquet", "parquet"), {"a.parquet": LABELLED}),
    "empty parquet": Row("data=files data.train=a.parquet", ("a.parquet", "parquet"), {"a.parquet": b""}),
    "compressed": Row(FILES, ("a.csv is compressed", "unpack"), {"a.csv": gzip.compress(LABELLED.encode())}),
    "another suffix": Row("data=files data.train=a.csv.gz", ("a.csv.gz", ".parquet"), {"a.csv.gz": b"\x1f\x8b"}),
    "folder for a file": Row(FILES, ("a.csv'", "folder", "data.path"), {"a.csv": None}),
    "dangling link": Row(
        FILES, ("a.csv", "a link to 'nowhere'"), {"a.csv": lambda path, runs: path.symlink_to("nowhere")}
    ),
    "no such split": Row(
        "data=files data.path=d data.train=trian",
        ("'trian'", "train, test"),
        {"d/train.csv": LABELLED, "d/test.csv": LABELLED},
    ),
    "no training split": Row("data=files data.path=d", ("'train'", "test", "data.train"), {"d/test.csv": LABELLED}),
    "one folder of texts": Row(
        "data=files data.path=d", ("'pos'", "two classes"), {"d/pos/1.txt": "a", "d/pos/2.txt": "b"}
    ),
    "folder of something else": Row(
        "data=files data.path=d", ("/d'", "No (supported) data files"), {"d/a.bin": b"\0", "d/b.exe": b"\0"}
    ),
    "pickled frame": Row("data=files data.train=a.pkl", ("a.pkl", "data.allow_pickle=true"), {"a.pkl": pickled_frame}),
    "no pickle": Row(
        "data=files data.train=a.pkl data.allow_pickle=true", ("a.pkl", "not a pickled"), {"a.pkl": b"no pickle"}
    ),
    "another object pickled": Row(
        "data=files data.train=a.pkl data.allow_pickle=true", ("a.pkl", "dict"), {"a.pkl": pickle.dumps({})}
    ),
    "unseen label in test": Row(
        FILES + "data.test=b.csv",
        ("b.csv row 2 (line 3)", "'2'", "'0', '1'"),
        {"a.csv": LABELLED, "b.csv": "text,label\na,1\nb,2\n"},
    ),
    "label that acts on a terminal": Row(
        FILES + "data.test=b.csv",
        ("b.csv row 1", r"'\x1b[31m2'"),
        {"a.csv": LABELLED, "b.csv": "text,label\na,\x1b[31m2\n"},
    ),
    "no label column in val": Row(
        FILES + "data.val=b.csv", ("b.csv", "'label'", "data.label_column"), {"a.csv": LABELLED, "b.csv": "text\na\n"}
    ),
    "empty test file": Row(FILES + "data.test=b.csv", ("b.csv is empty",), {"a.csv": LABELLED, "b.csv": ""}),
    "too few rows to validate on": Row(FILES, ("2 rows", "data.val"), {"a.csv": "text,label\na,1\nb,0\n"}),
    "batch larger than the data": Row(FILES + "data.batch_size=100", ("100", "36 rows", "lower"), {"a.csv": LABELLED}),
    "one class name": Row(FILES + "data.class_names=[good]", ("data.class_names", "good"), {"a.csv": LABELLED}),
    "class names short of one": Row(
        FILES + "data.class_names=[bad,good]", ("'2'", "'bad', 'good'"), {"a.csv": LABELLED + "so so,2\n"}
    ),
    "ten million characters": Row(
        FILES + "data.max_length=null",
        ("a.csv row 3", "5,000,000 tokens", "data.max_length"),
        {"a.csv": "text,label\na,1\nb,0\n" + "x " * 5_000_000 + ",1\nd,0\n" + "e,1\n" * 40},
    ),
    "no vectors file": Row(FILES + "data.vectors=absent.vec", ("'absent.vec'",), {"a.csv": LABELLED}),
    "vectors of another size": Row(
        FILES + "data.vectors=v.txt",
        ("(5, 3)", "model.net.embedding_dim=3"),
        {"a.csv": LABELLED, "v.txt": "film 1 2 3\n"},
    ),
    "vectors of no word": Row(
        FILES + "data.vectors=v.txt", ("v.txt", "none of the"), {"a.csv": LABELLED, "v.txt": "zebra 1 2 3\n"}
    ),
    "vectors ragged": Row(
        FILES + "data.vectors=v.txt",
        ("v.txt line 2", "2 numbers", "3"),
        {"a.csv": LABELLED, "v.txt": "film 1 2 3\na 1 2\n"},
    ),
    "vectors not finite": Row(
        FILES + "data.vectors=v.txt", ("v.txt line 1", "inf"), {"a.csv": LABELLED, "v.txt": "film 1 inf 3\n"}
    ),
    "vectors cut short": Row(
        FILES + "data.vectors=v.bin",
        ("v.bin", "5 vectors", "12 bytes"),
        {"a.csv": LABELLED, "v.bin": b"5 3\nfilm \0\0\0"},
    ),
    "texts without labels for nothing": Row(
        FILES + "data.unlabelled=b.csv",
        ("data.unlabelled", "does nothing without data.vectors=train or data.train_on_unlabelled=true"),
        {"a.csv": LABELLED, "b.csv": LABELLED},
    ),
    "to train on no texts without labels": Row(
        FILES + "data.train_on_unlabelled=true model.virtual_adversarial=0.02",
        ("data.train_on_unlabelled", "needs texts without labels", "data.unlabelled"),
        {"a.csv": LABELLED},
    ),
    "texts without labels that no loss takes": Row(
        FILES + "data.train_on_unlabelled=true data.unlabelled=b.csv",
        ("data.train_on_unlabelled", "does nothing without model.virtual_adversarial"),
        {"a.csv": LABELLED, "b.csv": LABELLED},
    ),
    "a limit on texts that are not trained on": Row(
        FILES + "data.limit_unlabelled=5",
        ("data.limit_unlabelled", "5", "does nothing without data.train_on_unlabelled=true"),
        {"a.csv": LABELLED},
    ),
    "word2vec setting": Row(
        FILES + "data.vectors=train data.word2vec.dim=0", ("data.word2vec.dim", "0"), {"a.csv": LABELLED}
    ),
    "unknown word2vec setting": Row(
        FILES + "data.vectors=train +data.word2vec.dims=3", ("data.word2vec", "dims", "dim"), {"a.csv": LABELLED}
    ),
}

TEXT = "the king saw the queen and the queen saw the king\n" * 40
BOOK = "model=language_model data=text_files data.train=a.txt "

ROWS["text"] = {
    "no such file": Row("model=language_model data=text_files data.train=absent.txt", ("data.train", "'absent.txt'")),
    "empty file": Row(BOOK, ("a.txt", "empty"), {"a.txt": ""}),
    "blanks only": Row(BOOK, ("a.txt", "empty"), {"a.txt": " \n\n "}),
    "folder for a file": Row(BOOK, ("a.txt'", "folder", "data.path"), {"a.txt": None}),
    "NUL byte": Row(BOOK, ("a.txt", "NUL"), {"a.txt": "a\0b"}),
    "not UTF-8": Row(BOOK, ("a.txt", "0xe9", "iconv"), {"a.txt": b"caf\xe9"}),
    "UTF-16": Row(BOOK, ("a.txt", "UTF-8"), {"a.txt": TEXT.encode("utf-16")}),
    "compressed": Row(BOOK, ("a.txt",), {"a.txt": gzip.compress(TEXT.encode())}),
    "too short to train on": Row(
        BOOK + "data.val_fraction=0", ("10 tokens", "data.batch_size"), {"a.txt": "a b c d e f g h i\n"}
    ),
    "too short to validate on": Row(
        BOOK + "data.val=b.txt", ("val", "3 tokens", "data.eval_batch_size"), {"a.txt": TEXT, "b.txt": "a b\n"}
    ),
    "too short to test on": Row(
        BOOK + "data.test=b.txt", ("test", "3 tokens", "data.eval_batch_size"), {"a.txt": TEXT, "b.txt": "a b\n"}
    ),
    "shorter than a window": Row(
        BOOK + "data.window=100 data.val_fraction=0", ("7 tokens", "data.window"), {"a.txt": "a b c d e f"}
    ),
    "test file empty": Row(BOOK + "data.test=b.txt", ("test", "data.test"), {"a.txt": TEXT, "b.txt": ""}),
    "no text column": Row(
        "model=language_model data=text_files data.train=a.csv",
        ("'text'", "'line'", "data.text_column"),
        {"a.csv": "line\na\n"},
    ),
    "null in a table": Row(
        "model=language_model data=text_files data.train=a.jsonl",
        ("a.jsonl row 2", "null", "data.on_bad_row=skip"),
        {"a.jsonl": lines({"text": "a"}, {"text": None})},
    ),
    "truncated parquet": Row(
        "model=language_model data=text_files data.train=a.parquet", ("a.parquet",), {"a.parquet": truncated_parquet}
    ),
    "labelled task on text": Row("model=language_model " + FILES, ("model", "data"), {"a.csv": LABELLED}),
    "language data for a classifier": Row("data=text_files data.train=a.txt", ("model", "data"), {"a.txt": TEXT}),
}
