"""What cannot be done is refused: by the real doors, in one line, with exit code 2, and nothing there is touched."""

import gzip
import hashlib
import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recur import cli
from recur import render as view
from support.commands import run_command

Content = str | bytes | Callable[[Path, "Runs"], None] | None  # None: an empty folder
LIMIT = 1500  # characters of a message


class Runs(NamedTuple):
    """Runs that were there before."""

    sentiment: Path
    language: Path


@pytest.fixture(scope="session")
def runs(trained_run, language_run) -> Runs:
    return Runs(trained_run, language_run)


def snapshot(folder: Path) -> dict[str, str]:
    """A hash of every file."""
    return {
        str(path.relative_to(folder)): hashlib.blake2b(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ------------------------------------------------------------------------------------------------------------- the rows


class Row(NamedTuple):
    """One thing to be refused.

    Attributes:
        words: command line of the door; `{sentiment}`, `{language}` stand for runs that are there.
        said: what the line must contain: the value and what mends it.
        files: what lies in the folder where the door is called.
        text: standard input.
    """

    words: str
    said: tuple[str, ...]
    files: Mapping[str, Content] = {}
    text: str | bytes = ""


ROWS: dict[str, dict[str, Row]] = {}
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

ROWS["data"] = {
    "no such file": Row("data=files data.train=absent.csv", ("data.train", "'absent.csv'", "no such file")),
    "no such folder": Row("data=files data.path=./absent", ("./absent", "no such file or folder")),
    "no source at all": Row("data=files", ("data.path", "data.train")),
    "empty file": Row(FILES, ("a.csv is empty", "columns"), {"a.csv": ""}),
    "blank lines only": Row(FILES, ("a.csv is empty", "columns"), {"a.csv": "\n\r\n\n"}),
    "empty folder": Row("data=files data.path=empty", ("'empty'", "is empty"), {"empty": None}),
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
    "separated by semicolons": Row(FILES, ("'text;label'",), {"a.csv": LABELLED.replace(",", ";")}),
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
    "not UTF-8": Row(FILES, ("row 2 (line 3)", "0xe9", "UTF-8"), {"a.csv": b"text,label\na,1\ncaf\xe9,0\n"}),
    "UTF-16": Row(FILES, ("a.csv is UTF-16", "iconv"), {"a.csv": LABELLED.encode("utf-16")}),
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
    "folder for a file": Row(FILES, ("'a.csv'", "folder", "data.path"), {"a.csv": None}),
    "dangling link": Row(FILES, ("'a.csv'",), {"a.csv": lambda path, runs: path.symlink_to("nowhere")}),
    "no such split": Row(
        "data=files data.path=d data.train=trian",
        ("'trian'", "train, test"),
        {"d/train.csv": LABELLED, "d/test.csv": LABELLED},
    ),
    "no training split": Row("data=files data.path=d", ("'train'", "test", "data.train"), {"d/test.csv": LABELLED}),
    "one folder of texts": Row(
        "data=files data.path=d", ("'pos'", "two classes"), {"d/pos/1.txt": "a", "d/pos/2.txt": "b"}
    ),
    "folder of something else": Row("data=files data.path=d", ("'d'",), {"d/a.bin": b"\0", "d/b.exe": b"\0"}),
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
        FILES,
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
    "folder for a file": Row(BOOK, ("'a.txt'", "folder", "data.path"), {"a.txt": None}),
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


def settings(*rows: tuple[str, tuple[str, ...]], before: str = "") -> dict[str, Row]:
    return {words: Row(before + words, said) for words, said in rows}


ROWS["config"] = settings(
    ("model.net.hidden_size=0", ("model.net.hidden_size", "0", "at least 1")),
    ("model.net.hidden_size=-3", ("model.net.hidden_size", "-3", "at least 1")),
    ("model.net.hidden_size=big", ("model.net.hidden_size", "'big'", "whole number")),
    ("model.net.hidden_size=1.5", ("model.net.hidden_size", "1.5", "whole number")),
    ("model.net.hidden_size=10000000", ("memory", "model.net")),
    ("model.net.embedding_dim=0", ("model.net.embedding_dim", "0", "at least 1")),
    ("model.net.embedding_std=-1", ("model.net.embedding_std", "-1")),
    ("model.net.num_layers=0", ("model.net.num_layers", "0", "at least 1")),
    ("model.net.dropout=1", ("model.net.dropout", "1", "[0, 1)")),
    ("model.net.dropout=half", ("model.net.dropout", "'half'", "number")),
    ("model.net.word_dropout=-0.1", ("model.net.word_dropout", "-0.1", "[0, 1)")),
    ("model.net.embedding_dropout=1.5", ("model.net.embedding_dropout", "1.5", "[0, 1)")),
    ("model.net.head_dropout=nan", ("model.net.head_dropout", "nan", "[0, 1)")),
    ("model.net.weight_drop=1", ("model.net.weight_drop", "1", "[0, 1)")),
    ("model.net.cell=lsmt", ("model.net.cell", "'lsmt'", "lstm")),
    ("model.net.pooling=mx", ("model.net.pooling", "'mx'", "max")),
    ("model.net.engine=gpu", ("model.net.engine", "'gpu'", "fused")),
    ("model.net.bidirectional=2", ("model.net.bidirectional", "2", "true or false")),
    ("model.net.forget_bias=inf", ("model.net.forget_bias", "inf")),
    ("model.net.freeze_vectors=true", ("freeze_vectors", "data.vectors")),
    ("+model.net.depth=3", ("model.net.depth",)),
    ("model.label_smoothing=1", ("model.label_smoothing", "1", "[0, 1)")),
    ("model.class_weights=balance", ("model.class_weights", "'balance'", "balanced")),
    ("model.class_weights=[1,2,3]", ("model.class_weights", "3", "2 classes")),
    ("model.class_weights=[1,-2]", ("model.class_weights", "-2")),
    ("data.batch_size=0", ("data.batch_size", "0", "at least 1")),
    ("data.eval_batch_size=-1", ("data.eval_batch_size", "-1", "at least 1")),
    ("data.max_tokens=0", ("data.max_tokens", "0", "at least 1")),
    ("data.max_length=0", ("data.max_length", "0", "at least 1")),
    ("data.limit_train=0", ("data.limit_train", "0", "at least 1")),
    ("data.keep=middle", ("data.keep", "'middle'", "both")),
    ("data.tokenizer.kind=words", ("data.tokenizer.kind", "'words'", "whitespace")),
    ("data.tokenizer.min_frequency=0", ("data.tokenizer.min_frequency", "0", "at least 1")),
    ("data.tokenizer.max_size=1", ("data.tokenizer.max_size", "1", "at least 2")),
    ("data.tokenizer.min_frequency=1000000", ("data.tokenizer.min_frequency", "1000000", "lower")),
    ("+data.tokenizer.lower=true", ("data.tokenizer", "'lower'", "kind")),
    ("data.tokenizer=bpe", ("data.tokenizer", "'bpe'")),
    ("data.synthetic.train_size=0", ("data.synthetic", "train", "at least 1")),
    ("data.synthetic.noise=2", ("data.synthetic", "noise", "2")),
    ("data.synthetic.gap=-1", ("data.synthetic", "gap", "-1")),
    ("data.seed=-1", ("data.seed", "-1")),
    ("data=files data.train=a.csv data.val_fraction=1.5", ("data.val_fraction", "1.5")),
    ("data=files data.train=a.csv data.on_bad_row=ignore", ("data.on_bad_row", "'ignore'", "skip")),
    ("data=files data.train=[]", ("data.train", "list")),
    ("data=files data.train=3", ("data.train", "3")),
    ("optimizer.lr=0", ("optimizer.lr", "0", "above 0")),
    ("optimizer.lr=-1", ("optimizer.lr", "-1", "above 0")),
    ("optimizer.lr=inf", ("optimizer.lr", "inf", "above 0")),
    ("optimizer.lr=fast", ("optimizer.lr", "'fast'", "number")),
    ("optimizer.weight_decay=-1", ("weight_decay", "-1")),
    ("optimizer.betas=[2,0.9]", ("optimizer", "beta", "2")),
    ("optimizer.betas=0.9", ("optimizer", "betas", "0.9")),
    ("optimizer=sgd optimizer.momentum=-1", ("momentum", "-1")),
    ("optimizer=sgd optimizer.nesterov=true", ("optimizer", "momentum")),
    ("scheduler=step scheduler.every_epochs=0", ("scheduler.every_epochs", "0", "at least 1")),
    ("scheduler=step scheduler.gamma=0", ("scheduler.gamma", "0", "above 0")),
    ("scheduler=exponential scheduler.gamma=-0.5", ("scheduler.gamma", "-0.5", "above 0")),
    ("scheduler=plateau scheduler.factor=1.5", ("scheduler.factor", "1.5", "(0, 1)")),
    ("scheduler=plateau scheduler.mode=up", ("scheduler.mode", "'up'", "max")),
    ("scheduler=plateau scheduler.patience=-1", ("scheduler.patience", "-1", "at least 0")),
    ("scheduler=plateau scheduler.monitor=val/acuracy", ("val/acuracy", "val/accuracy")),
    ("scheduler=cosine scheduler.warmup=1.5", ("scheduler.warmup", "1.5", "[0, 1)")),
    ("scheduler=linear scheduler.floor=2", ("scheduler.floor", "2", "[0, 1]")),
    ("scheduler=one_cycle scheduler.rise=2", ("scheduler.rise", "2", "(0, 1)")),
    ("scheduler=one_cycle scheduler.start_div=0", ("scheduler.start_div", "0", "above 0")),
    ("scheduler=cosine trainer.max_epochs=-1", ("trainer.max_epochs", "trainer.max_steps")),
    ("trainer.max_epochs=0", ("trainer.max_epochs", "0", "at least 1")),
    ("trainer.max_epochs=-5", ("max_epochs", "-5")),
    ("trainer.max_steps=0", ("trainer.max_steps", "0", "at least 1")),
    ("trainer.max_epochs=many", ("trainer.max_epochs", "'many'", "whole number")),
    ("trainer.gradient_clip_val=-1", ("trainer.gradient_clip_val", "-1", "null")),
    ("trainer.gradient_clip_algorithm=median", ("gradient_clip_algorithm", "median", "norm")),
    ("trainer.accumulate_grad_batches=0", ("trainer.accumulate_grad_batches", "0", "at least 1")),
    ("trainer.precision=12", ("precision", "12", "32")),
    ("trainer.accelerator=abacus", ("accelerator", "abacus", "cpu")),
    ("trainer=gpu trainer.devices=99", ("GPU",)),
    ("trainer=cpu trainer.devices=0", ("devices", "0")),
    ("trainer=cpu trainer.devices=999", ("trainer.devices", "999", "lower")),
    ("trainer.strategy=magic", ("strategy", "magic")),
    ("trainer.limit_train_batches=0", ("trainer.limit_train_batches", "0")),
    ("trainer.val_check_interval=0", ("val_check_interval", "0")),
    ("trainer.check_val_every_n_epoch=0", ("check_val_every_n_epoch", "0")),
    ("seed=-1", ("seed", "-1", "at least 0", "4294967295")),
    ("seed=4294967296", ("seed", "4294967296", "at most 4294967295")),
    ("seed=1.5", ("seed", "1.5", "whole number")),
    ("seed=lucky", ("seed", "lucky", "whole number")),
    ("monitor=val/acuracy", ("val/acuracy", "val/accuracy")),
    ("mode=up", ("mode", "up", "max")),
    ("test=maybe", ("test", "'maybe'", "true or false")),
    ("callbacks.ema=0.9", ("callbacks.ema", "0.9", "_target_")),
    ("callbacks.best.monitor=val/acc", ("callbacks.best.monitor", "'val/acc'", "val/accuracy")),
    ("callbacks.last.every_minutes=nan", ("callbacks.last.every_minutes", "nan", "above 0")),
    ("monitor=accuracy", ("monitor", "'accuracy'", "val/accuracy")),
    ("data.batch_size=99999999999999999999", ("data.batch_size", "99999999999999999999", "too large")),
    ("trainer.max_epochs={a:1}", ("trainer.max_epochs", "{'a': 1}", "whole number")),
    ("data=files data.train={a:1}", ("data.train", "{'a': 1}")),
    ("callbacks.ema.decay=2", ("callbacks.ema.decay", "2", "below 1")),
    ("callbacks.ema.decay=0.9 callbacks.ema.start_step=-1", ("callbacks.ema.start_step", "-1", "at least 0")),
    ("callbacks.early_stopping.patience=-1", ("callbacks.early_stopping.patience", "-1", "at least 0")),
    ("callbacks.last.every_minutes=-1", ("callbacks.last.every_minutes", "-1")),
    ("callbacks.pages.mistakes=-1", ("mistakes", "-1")),
    ("optimizer.lrr=1", ("optimizer.lrr", "did you mean optimizer.lr?")),
    ("hidden_size=3", ("hidden_size", "did you mean model.net.hidden_size?")),
    ("model.net.hiden_size=3", ("model.net.hiden_size", "did you mean model.net.hidden_size?")),
    ("experiment=imdb_fsat", ("'imdb_fsat'", "did you mean imdb_fast?")),
    ("dta=imdb", ("dta", "did you mean data?")),
    ("data=[1,2]", ("data=[1,2]",)),
    ("model=\x1b[2J", ("\\x1b[2J",)),
    (f"data=files data.train={'long/' * 2000}a.csv", ("no such file", "long/long", " ... ")),
    ("modell=bilstm", ("modell", "did you mean model?")),
    ("model=bilstn", ("'bilstn'", "did you mean bilstm?")),
    ("optimizer.lr", ("optimizer.lr",)),
    ("optimizer.lr=[1", ("optimizer.lr=[1",)),
    ("name=${oc.env:NO_SUCH_VARIABLE}", ("NO_SUCH_VARIABLE",)),
    ("name=${nme}", ("nme",)),
    ("model.net._target_=recur.nn.classifier.Clasifier", ("Clasifier",)),
    ("data.cache_dir=/proc/no", ("/proc/no", "data.cache_dir")),
    ("--config-name=trian", ("trian",)),
    ("--multirn seed=0,1", ("--multirn", "did you mean --multirun?")),
)
for row in ("val_fraction", "on_bad_row"):
    for name in [name for name in ROWS["config"] if row in name]:
        ROWS["config"][name] = ROWS["config"][name]._replace(files={"a.csv": LABELLED})

ROWS["language config"] = settings(
    ("data.bptt=0", ("data.bptt", "0", "at least 1")),
    ("data.bptt=long", ("data.bptt", "'long'", "whole number")),
    ("data.eval_bptt=-1", ("data.eval_bptt", "-1", "at least 1")),
    ("data.window=0", ("data.window", "0", "at least 1")),
    ("data.batch_size=1000000", ("tokens", "1000000", "data.batch_size")),
    ("data.tokenizer.kind=subword", ("data.tokenizer.kind", "'subword'", "bpe")),
    ("data.tokenizer.kind=bpe data.tokenizer.max_size=100", ("data.tokenizer.max_size", "100", "257")),
    ("model.net.embedding_dim=400", ("tie_weights", "400", "200", "model.net.project=true")),
    ("model.net.output_size=0", ("model.net.output_size", "0", "at least 1")),
    ("model.net.row_dropout=1", ("model.net.row_dropout", "1", "[0, 1)")),
    ("model.net.output_dropout=-1", ("model.net.output_dropout", "-1", "[0, 1)")),
    ("model.net.cell=mogrifier model.net.cell_options={round:3}", ("model.net.cell_options", "'round'", "rounds")),
    ("model.net.cell=mogrifier model.net.cell_options={rounds:-1}", ("rounds", "-1")),
    ("model.net.cell_options={rounds:3}", ("model.net.cell_options", "'rounds'", "lstm")),
    ("model.activation_penalty=-1", ("model.activation_penalty", "-1", "at least 0")),
    ("callbacks.samples.tokens=-1", ("callbacks.samples.tokens", "-1", "at least 0")),
    ("callbacks.samples.temperature=-1", ("callbacks.samples.temperature", "-1", "at least 0")),
    ("model=awd_lstm callbacks.averaging.interval=0", ("callbacks.averaging.interval", "0", "at least 1")),
    ("data.synthetic.train_size=10", ("tokens", "data.batch_size")),
    ("data=text_files data.train=a.txt data.val_fraction=0.6 data.test_fraction=0.6", ("data.val_fraction", "0.6")),
    ("data=sentence data.text=''", ("data.text", "empty")),
    before="model=language_model data=synthetic_text ",
)


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Runs], None]:
    """The sentiment run's checkpoint with something changed."""

    def make(path: Path, runs: Runs) -> None:
        content = torch.load(runs.sentiment / "checkpoints" / "best.ckpt", weights_only=True)
        change(content)
        torch.save(content, path)

    return make


def run_folder(*without: str) -> Callable[[Path, Runs], None]:
    def make(path: Path, runs: Runs) -> None:
        shutil.copytree(runs.sentiment, path)
        for name in without:
            shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink()

    return make


def damaged_config(text: str) -> Callable[[Path, Runs], None]:
    def make(path: Path, runs: Runs) -> None:
        run_folder()(path, runs)
        (path / ".hydra" / "config.yaml").write_text(text)

    return make


CKPT = "{sentiment}/checkpoints/best.ckpt"
ROWS["predict"] = {
    "no run": Row("absent 'a film'", ("absent", "run folder")),
    "a folder that is no run": Row("d 'a film'", ("d ", "not a run folder"), {"d": None}),
    "a run without a checkpoint": Row("r 'a film'", ("r ", "checkpoints"), {"r": run_folder("checkpoints")}),
    "a text for a checkpoint": Row("a.ckpt 'a film'", ("a.ckpt", "checkpoint"), {"a.ckpt": "a film"}),
    "an empty checkpoint": Row("a.ckpt 'a film'", ("a.ckpt", "checkpoint"), {"a.ckpt": b""}),
    "a truncated checkpoint": Row("a.ckpt 'a film'", ("a.ckpt", "truncated"), {"a.ckpt": truncated(CKPT)}),
    "a newer format": Row(
        "a.ckpt 'a film'", ("a.ckpt", "format 99"), {"a.ckpt": edited(lambda c: c["recur"].update(format=99))}
    ),
    "a format that is none": Row(
        "a.ckpt 'a film'", ("a.ckpt", "format", "'x'"), {"a.ckpt": edited(lambda c: c["recur"].update(format="x"))}
    ),
    "somebody else's checkpoint": Row(
        "a.ckpt 'a film'", ("a.ckpt", "'recur'"), {"a.ckpt": edited(lambda c: c.pop("recur"))}
    ),
    "a checkpoint without a tokenizer": Row(
        "a.ckpt 'a film'", ("a.ckpt", "tokenizer"), {"a.ckpt": edited(lambda c: c["recur"].pop("tokenizer"))}
    ),
    "a damaged tokenizer": Row(
        "a.ckpt 'a film'", ("a.ckpt", "tokenizer"), {"a.ckpt": edited(lambda c: c["recur"].update(tokenizer="{}"))}
    ),
    "weights of another shape": Row(
        "a.ckpt 'a film'",
        ("a.ckpt", "weights"),
        {"a.ckpt": edited(lambda c: c["recur"]["config"]["model"]["net"].update(hidden_size=5))},
    ),
    "weights missing": Row(
        "a.ckpt 'a film'", ("a.ckpt", "weights"), {"a.ckpt": edited(lambda c: c["state_dict"].clear())}
    ),
    "a config that is none": Row(
        "a.ckpt 'a film'", ("a.ckpt", "config"), {"a.ckpt": edited(lambda c: c["recur"].update(config=[]))}
    ),
    "no such input": Row("{sentiment} --file absent.csv", ("absent.csv", "no file")),
    "a folder for input": Row("{sentiment} --file d", ("d", "no file"), {"d": None}),
    "a pickle for input": Row("{sentiment} --file a.pkl", ("a.pkl", "pickle"), {"a.pkl": pickled_frame}),
    "another suffix": Row("{sentiment} --file a.doc", ("a.doc", ".csv"), {"a.doc": "a film"}),
    "another column": Row(
        "{sentiment} --file a.csv", ("'text'", "'review'", "--column"), {"a.csv": "review\na film\n"}
    ),
    "no such column": Row(
        "{sentiment} --file a.csv --column txt", ("'txt'", "'text'", "--column"), {"a.csv": "text\na film\n"}
    ),
    "a bad row": Row("{sentiment} --file a.csv", ("a.csv row 2", "--skip-bad-rows"), {"a.csv": "text\na film\n \n"}),
    "not UTF-8": Row("{sentiment} --file a.txt", ("a.txt line 1", "0xff", "iconv"), {"a.txt": b"\xff\xfe"}),
    "empty text": Row("{sentiment} ''", ("text 1 is empty", "--skip-bad-rows")),
    "no text": Row("{sentiment}", ("standard input",)),
    "no token": Row("{sentiment} ;;", ("text 1 has no tokens", "';;'")),
    "control characters": Row("\x1b[2J\u202e\x07absent 'a film'", (r"\x1b[2J\u202e\x07absent", "run folder")),
    "device": Row("{sentiment} a --device abacus", ("--device abacus",)),
    "device without numbers": Row("{sentiment} a --device meta", ("--device meta",)),
    "a length that is no number": Row(
        "a.ckpt 'a film'",
        ("a.ckpt", "max_length", "'x'"),
        {"a.ckpt": edited(lambda c: c["recur"]["config"]["data"].update(max_length="x"))},
    ),
    "weights that are no numbers": Row(
        "a.ckpt 'a film'",
        ("a.ckpt", "not all finite"),
        {"a.ckpt": edited(lambda c: next(iter(c["state_dict"].values())).fill_(float("nan")))},
    ),
    "an existing file for answers": Row("{sentiment} a --out a.csv", ("a.csv", "--overwrite"), {"a.csv": "x"}),
    "GPU that is not there": Row("{sentiment} a --device cuda:77", ("--device cuda:77",)),
    "page nowhere": Row("{sentiment} a --html no/page.html", ("no/page.html", "folder")),
    "page onto a folder": Row("{sentiment} a --html d", ("d", "folder"), {"d": None}),
    "option": Row("{sentiment} a --explian", ("--explian", "--explain")),
    "no run at all": Row("", ("run",)),
}
ROWS["evaluate"] = {
    "no run": Row("absent", ("absent", "run folder")),
    "no such split": Row("{sentiment} --split dev", ("--split", "'dev'", "val")),
    "split that is not there": Row("{language} --split test", ("'test'", "train")),
    "no such data": Row("{sentiment} --data absent.csv", ("absent.csv",)),
    "empty data": Row("{sentiment} --data a.csv", ("a.csv is empty",), {"a.csv": ""}),
    "labels of others": Row(
        "{sentiment} --data a.csv", ("a.csv row 1", "'7'", "'negative'"), {"a.csv": "text,label\nfilm,7\nplot,8\n"}
    ),
    "no label column": Row("{sentiment} --data a.csv", ("'label'", "label_column"), {"a.csv": "text,stars\nfilm,1\n"}),
    "unknown setting": Row("{sentiment} batchsize=3", ("batchsize", "did you mean batch_size?")),
    "setting of a wrong type": Row("{sentiment} eval_batch_size=many", ("eval_batch_size", "'many'")),
    "foreign class in a setting": Row("{sentiment} synthetic._target_=os.system", ("os.system",)),
    "language option": Row("{sentiment} --dynamic 0.001", ("language", "sentiment run")),
    "dynamic rate": Row("{language} --dynamic -1", ("--dynamic", "-1", "above 0")),
    "no number": Row("{language} --dynamic fast", ("--dynamic", "'fast'")),
    "cache size": Row("{language} --cache 0", ("--cache", "0", "above 0")),
    "cache weight alone": Row("{language} --cache-weight .1", ("--cache-weight", "--cache")),
    "endless rate": Row("{language} --dynamic inf", ("--dynamic", "inf")),
    "device": Row("{sentiment} --device abacus", ("--device abacus",)),
    "device without numbers": Row("{sentiment} --device meta", ("--device meta",)),
    "a pickle for data": Row("{sentiment} --data a.pkl", ("a.pkl", "allow_pickle=true"), {"a.pkl": pickled_frame}),
}
ROWS["generate"] = {
    "wrong family": Row("{sentiment}", ("language run", "sentiment run")),
    "no run": Row("absent", ("absent", "run folder")),
    "truncated": Row("a.ckpt", ("a.ckpt", "truncated"), {"a.ckpt": truncated("{language}/checkpoints/best.ckpt")}),
    "temperature 0": Row("{language} --temperature 0", ("--temperature", "0.0", "greedy")),
    "temperature below": Row("{language} --temperature -1", ("--temperature", "-1", "from 0.001")),
    "temperature nan": Row("{language} --temperature nan", ("--temperature", "nan", "from 0.001")),
    "temperature inf": Row("{language} --temperature inf", ("--temperature", "inf")),
    "temperature word": Row("{language} --temperature hot", ("--temperature", "'hot'")),
    "top-k": Row("{language} --top-k 0", ("--top-k", "0", "at least 1")),
    "top-p": Row("{language} --top-p 1.5", ("--top-p", "1.5", "at most 1")),
    "top-p 0": Row("{language} --top-p 0", ("--top-p", "0", "above 0")),
    "tokens": Row("{language} --tokens 0", ("--tokens", "0", "at least 1")),
    "tokens word": Row("{language} --tokens many", ("--tokens", "'many'")),
    "temperature next to 0": Row("{language} --temperature 1e-320", ("--temperature", "1e-320", "from 0.001")),
    "samples": Row("{language} --samples -1", ("--samples", "-1", "from 1 to")),
    "samples beyond memory": Row("{language} --samples 1000000000", ("--samples", "1000000000", "from 1 to")),
    "device without numbers": Row("{language} --device meta", ("--device meta",)),
    "seed": Row("{language} --seed 99999999999999999999", ("--seed", "99999999999999999999")),
    "device": Row("{language} --device abacus", ("--device abacus",)),
    "a text where an option belongs": Row("{language} the king", ("the king", "--help")),
}


def sweep_file(text: str) -> dict[str, Content]:
    return {"s/sweep.jsonl": text}


HEADER = '{"event": "sweep", "format": 1, "monitor": "val/loss", "mode": "min", "jobs": 1}\n'
ROWS["results"] = {
    "no folder": Row("absent", ("no sweep at absent",)),
    "no sweep": Row("d", ("d is not a sweep", "-m"), {"d": None}),
    "a run": Row("{sentiment}", ("single run", "folder above")),
    "nothing in it": Row("s", ("sweep.jsonl", "damaged"), sweep_file("")),
    "something else in it": Row("s", ("sweep.jsonl", "damaged"), sweep_file("[1]\n{}\nx\n")),
    "a newer format": Row("s", ("format 9", "1"), sweep_file(HEADER.replace('"format": 1', '"format": 9'))),
    "no job": Row("s", ("no job", "has run yet"), sweep_file(HEADER)),
    "half a header": Row("s", ("sweep.jsonl", "monitor"), sweep_file('{"event": "sweep"}\n')),
    "half a job": Row("s", ("sweep.jsonl", "event 2", "job"), sweep_file(HEADER + '{"event": "start"}\n')),
    "metric": Row(
        "s --metric val/f1",
        ("'val/f1'",),
        sweep_file(HEADER + '{"event": "start", "job": 0, "overrides": [], "folder": "0"}\n'),
    ),
    "mode": Row("s --mode best", ("--mode", "'best'")),
    "top": Row("s --top many", ("--top", "'many'")),
}
ROWS["readme"] = {
    "no run": Row("absent", ("absent", "metrics.json")),
    "no metrics": Row("d", ("d ", "metrics.json"), {"d": None}),
}
ROWS["bench"] = {
    "section": Row("enginn --quick", ("'enginn'", "did you mean engine?")),
    "device": Row("engine --device abacus", ("'abacus'", "cpu")),
    "repeats": Row("engine --quick --repeats -1", ("--repeats", "-1", "at least 1")),
}
ROWS["resume"] = {
    "nowhere": Row("resume=absent", ("absent", "not a run folder")),
    "a file": Row("resume=a.txt", ("a.txt", "not a run folder"), {"a.txt": "a"}),
    "no checkpoint yet": Row("resume=r", ("r", "last.ckpt"), {"r": run_folder("checkpoints")}),
    "config not YAML": Row("resume=r", ("config.yaml", "YAML"), {"r": damaged_config("a: [1\nb: }{")}),
    "config no mapping": Row("resume=r", ("config.yaml",), {"r": damaged_config("- 1\n- 2\n")}),
    "config empty": Row("resume=r", ("config.yaml",), {"r": damaged_config("")}),
    "config half": Row("resume=r", ("config.yaml",), {"r": damaged_config("seed: 0\nname: x\n")}),
    "a sweep that is none": Row("-m resume=absent", ("no sweep at absent",)),
}

# Composing a config takes most of the time: of those, `make test` runs every second one, `make test-all` all.
COMPOSED = ("data", "text", "config", "language config")
TABLE = [
    pytest.param(
        group, row, id=f"{group}: {name}", marks=[pytest.mark.slow] if group in COMPOSED and number % 2 else []
    )
    for group, rows in ROWS.items()
    for number, (name, row) in enumerate(rows.items())
]
DOORS = {group: group for group in ("predict", "evaluate", "generate", "results", "bench")}
DOORS["readme"] = "benchmarks.publish"


def call(group: str, row: Row, place: Path, runs: Runs):
    import shlex

    for name, content in row.files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        elif callable(content):
            content(path, runs)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    words = (
        shlex.split(row.words.format(**runs._asdict()))
        if group in DOORS
        else shlex.split(row.words.replace("'", '"\'"'))
    )
    if group not in DOORS and group != "resume":
        words += ["hydra.run.dir=new"] + ([] if "trainer=" in row.words else ["trainer=cpu"])
    before = snapshot(place)
    done = run_command(DOORS.get(group, "train"), *words, cwd=place, text=row.text, environment={"RECUR_DEBUG": ""})
    return done, before


def test_there_are_many():
    assert sum(not row.marks for row in TABLE) >= 80


@pytest.mark.parametrize(("group", "row"), TABLE)
def test_is_refused_in_one_line_and_nothing_is_touched(group, row, runs, tmp_path):
    earlier = {path: snapshot(path) for path in runs}
    done, before = call(group, row, tmp_path, runs)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("recur: ") and done.stderr.endswith("\n") and done.stderr.count("\n") == 1, (
        done.stderr
    )
    line = done.stderr[:-1]
    assert not view._UNSAFE.search(line) and len(line) < LIMIT
    assert not [word for word in row.said if word not in line], line
    assert {path: snapshot(path) for path in runs} == earlier
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_the_stack_is_there_for_who_asks():
    done = run_command("predict", "absent", "a film", environment={"RECUR_DEBUG": "1"})
    assert done.returncode == 1
    assert "Traceback" in done.stderr and done.stderr.rstrip().endswith("give a run folder or a .ckpt file")


# ------------------------------------------------------------------------------- what is strange and has its answer yet

STRANGE = {
    "only unknown words": "xyzzy plugh",
    "other scripts": "映画はとても良かった הסרט היה נהדר фильм",
    "emoji": "👩‍👩‍👧‍👦 🎬👍🏽",
    "control characters": "film \x1b[31mred\x1b[0m \x9b2J \x07\x08\r was \x7f",
    "overrides of direction": "film \u202egnp.exe\u2069",
    "separators": "film\u2028was\x85superb\x0b\x1e",
    "a lone surrogate": "film \udcff",
    "one megabyte": "the film was superb " * 52_429,
    "one long word": "a" * 1_000_000,
    "markup": '<script>alert("x")</script> [bold red]film[/] :smile:',
}


@given(text=st.text(st.characters() | st.sampled_from("\x1b\x9b\r\n\t\u2028\u202e\ud800\ufeff")))
def test_no_text_acts_on_a_terminal(text):
    assert not view._UNSAFE.search(view.printable(text))
    assert not view._UNSAFE.search(view.escape_controls(text).replace("\n", "").replace("\t", ""))
    assert view.escape_controls(text).count("\n") == text.count("\n")
    assert not view._UNSAFE.search(cli.one_line(text)) and len(cli.one_line(text * 99)) < LIMIT
    if text.isascii() and text.isprintable():
        assert text == view.escape_controls(text) == view.printable(text)


def test_strange_texts_are_answered_and_cannot_act(runs, tmp_path):
    lines = "\n".join(text for name, text in STRANGE.items() if name not in ("separators", "control characters"))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in STRANGE.values()))
    safe = [text for text in STRANGE.values() if "\udcff" not in text]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in safe))
    for words, text, count in (
        ((*STRANGE.values(),), "", len(STRANGE)),
        (("--file", "a.jsonl", "--skip-bad-rows"), "", len(safe)),
        (("--file", "b.jsonl", "--json"), "", len(safe) - 1),
        ((), lines.encode("utf-8", "replace"), len(STRANGE) - 2),
    ):
        done = run_command("predict", runs.sentiment, *words, cwd=tmp_path, text=text)
        assert done.returncode == 0, done.stderr
        assert not view._UNSAFE.search((done.stdout + done.stderr).replace("\n", ""))
        assert len(done.stdout.splitlines()) == count + 1
        assert "Traceback" not in done.stderr
    done = run_command("predict", runs.language, *list(STRANGE.values())[:6], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not view._UNSAFE.search((done.stdout + done.stderr).replace("\n", ""))


def test_files_as_people_have_them_are_read(tmp_path):
    """A byte order mark, line ends of another system, words for labels, odd separators, one long word."""
    rows = [("a fine film", "gut \x1b[31m"), ('"dull",\u2028 he said', "schlecht")] * 12 + [
        ("x" * 10_000_000, "gut \x1b[31m")
    ]
    cells = (",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in [("text", "label"), *rows])
    (tmp_path / "a.csv").write_bytes("\r\n".join(cells).encode("utf-8-sig"))
    small = ("model.net.hidden_size=4", "model.net.embedding_dim=4", "trainer=cpu", "trainer.max_epochs=1")
    words = ("data=files", "data.train=a.csv", "data.batch_size=4", "data.max_length=20", "test=false", *small)
    done = run_command("train", *words, "model.net.dropout=0.5", "logger=none", "hydra.run.dir=new", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not view._UNSAFE.search(done.stdout.replace("\n", ""))
    assert r"gut \x1b[31m, schlecht" in done.stdout
    # Dropout between layers where there is one: said, and gone on.
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("recur: warning: dropout=0.5 lies between recurrent layers and there is one")
