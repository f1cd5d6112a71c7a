"""From the labels of real files to classes: every spelling that a file may have, and none read as another."""

import json

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recur.data.sentiment import SentimentData
from recur.data.tables import as_file


@pytest.fixture
def opened(tmp_path):
    def make(**settings):
        data = SentimentData(**{"cache_dir": str(tmp_path / "cache"), "batch_size": 2, **settings})
        data.setup()
        return data

    return make


def read(data, split="train"):
    """The class of each text by name; the texts of these tests say what their label was."""
    names = {}
    for row, label in enumerate(data.labels(split).tolist()):
        names.setdefault(data.text(split, row).split()[-1], set()).add(data.class_names[label])
    return {said: name for said, (name,) in sorted(names.items())}


def csv(path, labels, times=6):
    path.write_text("text,label\n" + "".join(f"said {label},{label}\n" for label in labels for _ in range(times)))
    return str(path)


@pytest.mark.parametrize(
    "labels",
    [("1", "2", "3", "other"), ("0.5", "1.0", "1.5", "2.0", "2.5"), ("0.5", "1", "1.5", "2"), ("-1", "1", "neutral")],
    ids=" ".join,
)
def test_names_some_of_which_are_numbers_stand_for_themselves(tmp_path, opened, labels):
    data = opened(train=csv(tmp_path / "a.csv", labels), test=csv(tmp_path / "t.csv", labels, 1))
    assert data.class_names == sorted(labels)
    assert read(data) == read(data, "test") == {label: label for label in labels}


def test_half_stars_of_a_parquet_file_are_those_of_a_csv(tmp_path, opened):
    stars = [0.5, 1.0, 1.5, 2.0] * 6
    pd.DataFrame({"text": [f"said {star}" for star in stars], "label": stars}).to_parquet(tmp_path / "a.parquet")
    test = csv(tmp_path / "t.csv", ("0.5", "1.0", "1.5", "2.0"), 1)
    data = opened(train=str(tmp_path / "a.parquet"), test=test)
    assert data.class_names == ["0.5", "1", "1.5", "2"]
    assert read(data) == read(data, "test") == {"0.5": "0.5", "1.0": "1", "1.5": "1.5", "2.0": "2"}


def test_a_number_is_a_class_where_no_name_is_one(tmp_path, opened):
    data = opened(train=csv(tmp_path / "a.csv", ("0", "1")), class_names=["no", "yes"])
    assert read(data) == {"0": "no", "1": "yes"}


def test_a_mapping_in_another_order_has_its_own_numbers(tmp_path, opened):
    path = csv(tmp_path / "a.csv", ("0", "4"))
    for names in ({0: "bad", 4: "good"}, {4: "good", 0: "bad"}):
        data = opened(train=path, class_names=names)
        assert data.class_names == list(names.values())
        assert read(data) == {"0": "bad", "4": "good"}


def table(names, times=6):
    """A data set whose texts say the name of their class; the labels are places in `names`."""
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))}
    rows = {"text": [f"said {name}" for name in names] * times, "label": list(range(len(names))) * times}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


NUMBERS = [["1", "0"], sorted(str(number) for number in range(11)), ["1", "2", "3", "4", "5"], ["0", "4"], ["1", "x"]]


@pytest.mark.parametrize("names", NUMBERS, ids=" ".join)
def test_stored_numbers_are_places_in_the_list_of_names(tmp_path, opened, names):
    said = {name: name for name in names}
    data = opened(train=table(names), test=table(names, 1))
    assert data.class_names == list(names)
    assert read(data) == read(data, "test") == said
    table(names).to_parquet(tmp_path / "a.parquet")
    assert read(opened(train=str(tmp_path / "a.parquet"))) == said
    ordered = opened(train=as_file(table(names)), class_names=sorted(names, reverse=True))
    assert ordered.class_names == sorted(names, reverse=True)
    assert read(ordered) == said


def test_column_encoded_by_the_library_keeps_its_stars(opened):
    stars = [10, 2, 1, 10, 2, 1] * 6
    rows = datasets.Dataset.from_dict({"text": [f"said {star}" for star in stars], "label": stars})
    data = opened(train=rows.class_encode_column("label"))
    assert data.class_names == ["1", "10", "2"]
    assert read(data) == {"1": "1", "10": "10", "2": "2"}


def test_a_csv_is_measured_by_the_names_that_a_data_set_lists(tmp_path, opened):
    data = opened(train=table(["1", "0"]), test=csv(tmp_path / "t.csv", ("0", "1"), 1))
    assert read(data, "test") == {"0": "0", "1": "1"}
    data = opened(train=csv(tmp_path / "a.csv", ("1", "2", "3")), test=table(["3", "1", "2"], 1))
    assert read(data, "test") == {"1": "1", "2": "2", "3": "3"}


def test_a_place_that_the_list_does_not_have_is_refused(tmp_path, opened):
    table(["1", "2"]).to_parquet(tmp_path / "a.parquet")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["1", "2"])})
    rows = {"info": {"features": features.to_dict()}}
    spoilt = pa.table({"text": ["said nothing"], "label": [2]})
    pq.write_table(spoilt.replace_schema_metadata({"huggingface": json.dumps(rows)}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="is not one of the labels"):
        opened(train=str(tmp_path / "a.parquet"), test=str(tmp_path / "t.parquet"))
