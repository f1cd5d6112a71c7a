"""From the labels of real files to classes: every spelling that a file may have, and none read as another."""

import json

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recur.data.language import LanguageData
from recur.data.sentiment import SentimentData
from recur.data.synthetic import SyntheticReviews
from recur.data.tables import as_file
from recur.errors import UserError


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


@pytest.mark.parametrize(
    "labels",
    [
        ("2.5", "9.0", "10.0"),
        ("-1.5", "-1", "0", "1e1", "20"),
        ("2", "10", "100"),
        ("9007199254740992.5", "9007199254740993"),
        ("10.0", "9.0", "inf"),
        ("10.0", "9.0", "none"),
    ],
    ids=" ".join,
)
def test_numbers_are_in_their_order(tmp_path, opened, labels):
    data = opened(train=csv(tmp_path / "a.csv", labels[::-1]))
    assert data.class_names == list(labels)
    assert read(data) == {label: label for label in labels}


def test_a_number_is_a_class_where_no_name_is_one(tmp_path, opened):
    data = opened(train=csv(tmp_path / "a.csv", ("0", "1")), class_names=["no", "yes"])
    assert read(data) == {"0": "no", "1": "yes"}


def test_a_mapping_in_another_order_has_its_own_numbers(tmp_path, opened):
    path = csv(tmp_path / "a.csv", ("0", "4"))
    for names in ({0: "bad", 4: "good"}, {4: "good", 0: "bad"}):
        data = opened(train=path, class_names=names)
        assert data.class_names == list(names.values())
        assert read(data) == {"0": "bad", "4": "good"}


def test_truth_values_have_their_classes_from_a_mapping_that_was_json(tmp_path, opened):
    """An export's config is JSON, which has no key but texts: `True` was no label there."""
    path = csv(tmp_path / "a.csv", ("True", "False"))
    for names in ({True: "yes", False: "no"}, {"true": "yes", "false": "no"}):
        data = opened(train=path, class_names=names)
        assert data.class_names == ["yes", "no"]
        assert read(data) == {"True": "yes", "False": "no"}


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


def test_files_that_number_their_classes_otherwise_are_not_joined(tmp_path, opened):
    files = [str(tmp_path / f"{number}.parquet") for number in range(3)]
    for file, names in zip(files, (["neg", "pos"], ["neg", "pos"], ["pos", "neg"]), strict=True):
        table(names).to_parquet(file)
    assert read(opened(train=files[:2])) == {"neg": "neg", "pos": "pos"}
    with pytest.raises(
        UserError, match=r"2.parquet lists the classes of column 'label' as pos, neg, .* neg, pos: write"
    ):
        opened(train=files)


# ---- tests whose labels are kept secret


def home(path, test, **splits):
    """A folder with splits as GLUE has them."""
    path.mkdir()
    for split, rows in {"train": table(["neg", "pos"]), "test": test, **splits}.items():
        if rows is not None:
            rows.to_parquet(path / f"{split}-00000-of-00001.parquet")
    return str(path)


def secret(label=-1):
    names = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    rows = {"text": ["said nothing", "said little"], "label": [label, label]}
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize(
    "test", [secret(), secret(None), secret().remove_columns("label")], ids=["-1", "null", "no column"]
)
def test_a_test_without_labels_is_left_out_and_said(tmp_path, opened, caplog, test):
    path = home(tmp_path / "glue", test, validation=table(["neg", "pos"], 2))
    for _ in range(2):
        caplog.clear()
        data = opened(path=path)
        assert data.splits == ["train", "val"] and not data.has_test
        assert [record.message for record in caplog.records] == [
            "the labels of the test split are not given: the run goes without a test"
        ]
    trained = SentimentData(path, cache_dir=str(tmp_path / "cache"))
    trained.use(data.tokenizer, data.class_names)
    trained.setup()
    assert trained.splits == ["train", "val"]
    with pytest.raises(ValueError, match=r"label"):
        opened(path=path, test="test")


def test_a_test_with_a_label_unknown_is_still_an_error(tmp_path, opened):
    with pytest.raises(ValueError, match="is not one of the labels"):
        opened(path=home(tmp_path / "odd", datasets.concatenate_datasets([table(["neg", "pos"], 1), secret()])))


def test_false_leaves_a_split_out(tmp_path, opened):
    path = home(tmp_path / "whole", table(["neg", "pos"], 1), validation=table(["neg", "pos"], 2))
    assert opened(path=path).splits == ["train", "val", "test"]
    data = opened(path=path, test=False, val=False)
    assert data.splits == ["train", "val"]
    assert len(data.labels("train")) + len(data.labels("val")) == 12
    assert opened(synthetic=SyntheticReviews(40, 10, 10), test=False).splits == ["train", "val"]
    with pytest.raises(ValueError, match=r"data\.test must be a split, a file, null or false, got True"):
        opened(path=path, test=True)
    text = LanguageData(path, test=False, val=False, test_fraction=0.2, cache_dir=str(tmp_path / "cache"), batch_size=2)
    text.setup()
    assert text.splits == ["train", "val", "test"] and len(text.tokens("train")) < 12 * 3


def test_numbers_of_a_csv_are_places_in_the_list_of_a_readme(tmp_path, opened):
    home = tmp_path / "home"
    home.mkdir()
    names = "".join(f"            '{place}': '{place + 1}'\n" for place in range(3))
    (home / "README.md").write_text(
        "---\ndataset_info:\n  features:\n    - name: text\n      dtype: string\n    - name: label\n      dtype:\n"
        f"        class_label:\n          names:\n{names}---\n"
    )
    csv(home / "train.csv", ("0", "1", "2"))
    assert read(opened(path=str(home))) == {"0": "1", "1": "2", "2": "3"}
    csv(home / "train.csv", ("1", "2", "3"))
    with pytest.raises(UserError, match="3"):  # as in `datasets`: three classes have no fourth
        opened(path=str(home))


def test_long_numbers_are_labels_of_their_own(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "fine,9007199254740992\ndull,9007199254740993\n" * 10)
    data = SentimentData(train=str(tmp_path / "a.csv"), cache_dir=str(tmp_path / "cache"), batch_size=4)
    data.setup()
    assert data.class_names == ["9007199254740992", "9007199254740993"]


def test_labels_that_differ_by_case_are_one_label_or_named(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "fine,Positive\nsuperb,positive\ndull,negative\n" * 10)
    settings = {"train": str(tmp_path / "a.csv"), "cache_dir": str(tmp_path / "cache"), "batch_size": 4}
    with pytest.raises(UserError, match=r"spells one label as 'Positive' and 'positive'.*data.class_names="):
        SentimentData(**settings).setup()
    names = {"Positive": "positive", "positive": "positive", "negative": "negative"}
    data = SentimentData(**settings, class_names=names)
    data.setup()
    assert data.class_names == ["positive", "negative"]


def test_rows_that_are_left_out_make_no_classes(tmp_path, opened):
    rows = "fine,Pos\nsuperb,Pos\ndull,neg\n" * 10
    (tmp_path / "a.csv").write_text(f"text,label\n{rows} ,pos\n;,odd\nfine, neg \nnull,\n")
    data = opened(train=str(tmp_path / "a.csv"), on_bad_row="skip")
    assert data.class_names == ["Pos", "neg"] and data.num_classes == 2
    assert len(data.labels("train")) + len(data.labels("val")) == 31
    (tmp_path / "b.csv").write_text("text,label\n ,a\n ,b\n")
    with pytest.raises(UserError, match=r"and every other of 2 rows are bad: column 'text' is empty"):
        opened(train=str(tmp_path / "b.csv"), on_bad_row="skip")


def test_a_label_that_no_text_can_hold_is_a_bad_row(tmp_path, opened):
    """A run on such rows was trained to its end and then could not be written."""
    rows = [{"text": f"said {label}", "label": label} for label in ("pos", "neg") * 5]
    lines = [json.dumps(row) for row in [*rows, {"text": "said nothing", "label": "\ud800x"}]]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"row 11 \(line 11\): column 'label' is not valid Unicode .*: '\\ud800x'"):
        opened(train=str(tmp_path / "a.jsonl"))
    assert opened(train=str(tmp_path / "a.jsonl"), on_bad_row="skip").class_names == ["neg", "pos"]
    places = [{**row, "label": place % 2} for place, row in enumerate(rows)]
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "\ud800x"])}
    table = pa.Table.from_pylist(places)
    spoilt = json.dumps({"info": {"features": datasets.Features(features).to_dict()}})
    pq.write_table(table.replace_schema_metadata({"huggingface": spoilt}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"parquet column 'label' must have names of valid Unicode.*got '\\ud800x'"):
        opened(train=str(tmp_path / "a.parquet"))
    with pytest.raises(UserError, match=r"class_names must have names of valid Unicode.*got '\\ud800'"):
        opened(train=str(tmp_path / "a.parquet"), class_names=["\ud800", "b"])


def test_labels_that_look_the_same_are_one_label(tmp_path, opened):
    """Some systems write a letter with an accent as one character, some as two."""
    composed, parted = "sch\u00f6n", "scho\u0308n"
    spelled = r"spells one label as 'scho\\u0308n' and 'sch\\xf6n': write it in one way, in the form NFC"
    with pytest.raises(UserError, match=spelled):
        opened(train=csv(tmp_path / "a.csv", (composed, parted, "schlecht")))
    with pytest.raises(UserError, match=rf"spells one label as '{parted.title()}' and '{composed}': .*class_names="):
        opened(train=csv(tmp_path / "a.csv", (composed, parted.title(), "schlecht")))
    names = {composed: "schoen", parted: "schoen", "schlecht": "schlecht"}
    data = opened(train=csv(tmp_path / "a.csv", names), class_names=names)
    assert read(data) == names


@pytest.mark.parametrize("labels", [("true", "false"), ("True", "False")], ids=" ".join)
def test_a_truth_value_names_the_label_in_small_letters_and_in_pythons(tmp_path, opened, labels):
    """Hydra and YAML read a name that is typed as `true` as one, and a csv has a text."""
    data = opened(train=csv(tmp_path / "a.csv", labels), class_names={True: "good", False: "bad"})
    assert data.class_names == ["good", "bad"]
    assert read(data) == {labels[0]: "good", labels[1]: "bad"}
