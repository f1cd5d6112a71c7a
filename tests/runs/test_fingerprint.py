"""Other data than a run began with is noticed, and what is different is said."""

from pathlib import Path

import pytest

from recur.data.language import LanguageData
from recur.data.sentiment import SentimentData
from recur.errors import UserError
from recur.runs.fingerprint import compare, fingerprint
from recur.training.start import _check_carved

ROWS = [(f"a fine film number {i}", 1) for i in range(20)] + [(f"a dull film number {i}", 0) for i in range(20)]


def _sentiment(folder: Path, rows: list[tuple[str, int]], **settings):
    folder.mkdir(exist_ok=True)
    (folder / "a.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    data = SentimentData(train=str(folder / "a.csv"), batch_size=4, cache_dir=str(folder / "cache"), **settings)
    data.prepare_data()
    data.setup("fit")
    return fingerprint(data)


def _language(folder: Path, text: str):
    folder.mkdir(exist_ok=True)
    (folder / "a.txt").write_text(text)
    data = LanguageData(train=str(folder / "a.txt"), batch_size=2, bptt=3, cache_dir=str(folder / "cache"))
    data.prepare_data()
    data.setup("fit")
    return fingerprint(data)


def test_the_same_data_elsewhere_is_the_same(tmp_path: Path) -> None:
    one = _sentiment(tmp_path / "a", ROWS)
    compare(one, _sentiment(tmp_path / "b", ROWS, eval_batch_size=7), "RUN")
    assert set(one) == {"vocabulary", "train", "val"}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(text, 1 - label) for text, label in ROWS], "(labels|texts) of the train split"),
        (ROWS[:-4], "vocabulary"),
        ([("a fine movie number 0", 1), *ROWS[1:]], "vocabulary|texts of the train split"),
        ([(ROWS[1][0], 1), (ROWS[0][0], 1), *ROWS[2:]], "texts of the train split"),
    ],
    ids=["labels swapped", "fewer rows", "other words", "another order"],
)
def test_other_texts_or_labels_are_noticed(tmp_path: Path, rows: list[tuple[str, int]], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        compare(_sentiment(tmp_path / "a", ROWS), _sentiment(tmp_path / "b", rows), "RUN")
    assert caught.value.key == "data" and "accept_data_change=true" in caught.value.remedy


def test_fewer_rows_are_counted() -> None:
    part = {"rows": 36, "texts": "a", "labels": "b"}
    before = {"vocabulary": {"hash": "v"}, "train": part, "val": part}
    with pytest.raises(UserError, match=r"the rows of the train split changed: 36 then, 33 now"):
        compare(before, {**before, "train": {**part, "rows": 33}}, "RUN")
    with pytest.raises(UserError, match=r"there is no val split any more"):
        compare(before, {"vocabulary": {"hash": "v"}, "train": part}, "RUN")


def test_other_tokens_are_noticed(tmp_path: Path) -> None:
    text = "the king saw the queen and the queen saw the king\n" * 40
    before = _language(tmp_path / "a", text)
    compare(before, _language(tmp_path / "b", text), "RUN")
    for other in (text + "the king\n", text.replace("king saw the queen", "queen saw the king", 1)):
        with pytest.raises(UserError, match=r"of the .* split changed"):
            compare(before, _language(tmp_path / "c", other), "RUN")


@pytest.mark.parametrize("reverse", [False, True])
def test_text_is_cut_off_anew_only_behind_what_was_trained_on(tmp_path: Path, reverse: bool) -> None:
    """Of books that are read by a pattern one that sorts first moved others to where validation text is cut off."""

    def book(name: str, lines: int) -> None:
        (tmp_path / f"{name}.txt").write_text("".join(f"{name}{line} a b a\n" for line in range(lines)))

    def opened(then: LanguageData | None = None, **settings) -> LanguageData:
        small = {"batch_size": 2, "bptt": 3, "cache_dir": str(tmp_path / "cache"), "reverse": reverse}
        data = LanguageData(train=str(tmp_path / "*.txt"), **{**small, **settings})
        if then is not None:
            data.use(then.tokenizer, carve=True)
        data.setup("fit")
        return data

    book("m", 40)
    first = opened()
    before = fingerprint(first)["train"]
    book("z", 40)
    longer = opened(first)
    assert longer.tokens("train").size > before["tokens"]
    _check_carved(longer, before, tmp_path)
    book("a", 40)
    changed = opened(first)
    for then in (before, None, {**before, "tokens": "all"}, {**before, "tokens": 10**9}):
        with pytest.raises(UserError, match=r"cuts validation text off anew.*name other texts in data.val"):
            _check_carved(changed, then, tmp_path)
    for named in ({"val": str(tmp_path / "m.txt")}, {"val_fraction": 0.0}):  # nothing is cut off
        _check_carved(opened(first, **named), before, tmp_path)
