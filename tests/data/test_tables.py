"""Pandas frames and data sets from Python give what a file with the same rows gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

import recur
from recur.data.language import LanguageData
from recur.data.sentiment import SentimentData
from recur.data.tables import as_file, is_table
from recur.errors import UserError

ROWS = {
    "text": [f"so {'good' if i % 2 else 'bad'} a film , number {i % 7}" for i in range(60)],
    "label": [i % 2 for i in range(60)],
}


def frame() -> pd.DataFrame:
    return pd.DataFrame(ROWS, index=range(100, 160))


def categories() -> pd.DataFrame:
    return pd.DataFrame(ROWS).assign(label=pd.Categorical([("bad", "good")[label] for label in ROWS["label"]]))


def dataset() -> Any:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    return datasets.Dataset.from_dict(ROWS, features=features)


def chosen() -> Any:
    """The same rows out of more of them, by indices that the library keeps beside the table."""
    more = datasets.Dataset.from_dict({key: values[::-1] * 2 for key, values in ROWS.items()})
    return more.select(range(59, -1, -1))


@pytest.mark.parametrize("make", [frame, categories, dataset, chosen])
def test_a_table_is_read_as_a_file_with_its_rows(make: Callable[[], Any], tmp_path: Path) -> None:
    pd.DataFrame(ROWS).to_csv(tmp_path / "rows.csv", index=False)
    modules = [SentimentData(train=train, batch_size=8) for train in (make(), str(tmp_path / "rows.csv"))]
    for module in modules:
        module.setup()
    ours, theirs = modules
    for split in ("train", "val"):
        assert ours.labels(split).tolist() == theirs.labels(split).tolist()
        texts = [module.texts(split) for module in modules]
        assert [texts[0][i].tolist() for i in range(len(texts[0]))] == [
            texts[1][i].tolist() for i in range(len(texts[1]))
        ]
    assert ours.class_names == (["bad", "good"] if make in (categories, dataset) else ["0", "1"])


def test_a_column_of_text_is_running_text_and_splits_are_tables_too() -> None:
    data = LanguageData(train=frame(), val=dataset(), batch_size=2, eval_batch_size=2, bptt=5)
    data.setup()
    assert len(data.tokens("train")) == len(data.tokens("val")) == 60 * 8  # words, a comma, <eos>


def test_the_same_rows_are_one_file_and_others_another() -> None:
    assert as_file(frame()) == as_file(frame().reset_index(drop=True))
    assert as_file(frame()) != as_file(frame().iloc[1:])
    assert not is_table(ROWS) and not is_table("train.csv")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (lambda: datasets.DatasetDict(train=dataset()), r"data\.train must be a table .* give one of its splits"),
        (lambda: pd.DataFrame({"text": ["a", {"b": 1}], "label": [0, 1]}), r"must hold one kind of plain values"),
        (lambda: pd.DataFrame([["a", 1]], columns=["text", "text"]), "column 'text' is there more than once"),
        (lambda: frame().rename(columns={"label": "stars"}), "parquet has no column 'label', only 'text', 'stars'"),
        (lambda: frame().iloc[:0], r"train\.parquet"),
        (lambda: frame().assign(text=[None, *ROWS["text"][1:]]), r"train\.parquet row 1"),
    ],
)  # fmt: skip
def test_what_no_classifier_learns_from_is_refused(table: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SentimentData(train=table()).setup()


def test_a_run_is_trained_and_evaluated_on_frames(tmp_path: Path) -> None:
    few = {"trainer": "cpu", "trainer.max_epochs": 1, "logger": "none", "baseline": False, "data.batch_size": 10}
    few |= {"model.net.embedding_dim": 8, "model.net.hidden_size": 8, "hydra.run.dir": str(tmp_path / "run")}
    run = recur.fit({"data": "files", "data.train": frame(), "data.test": dataset(), **few})
    assert Path(run.config["data"]["train"]).is_file()
    own = run.evaluate(split="test")["test"]
    assert own["texts"] == 60
    assert run.evaluate(frame().sample(frac=1, random_state=0))["test"]["loss"] == pytest.approx(own["loss"])
    answers = run.predict(frame()["text"])
    assert isinstance(answers, list) and len(answers) == 60
    assert [answer.label for answer in run.predict(dataset()["text"])] == [answer.label for answer in answers]
