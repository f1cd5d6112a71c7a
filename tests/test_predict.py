"""The predict door: labels, explanations, and texts that want to do harm."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from recur import predict
from recur import render as view
from recur.inference.classification import TOLERANCE, classify, explain, integrated_gradients
from recur.runs.run import Run
from support.commands import run_command as process

GOOD, BAD = "the film was superb", "the film was awful"


@pytest.fixture(scope="session")
def run(trained_run: Path) -> Run:
    return Run.open(trained_run)


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Call the door in this process: `run_command(*words, stdin=b"")` gives `out`, `err` and `code`."""

    def call(*words: object, stdin: bytes = b"") -> SimpleNamespace:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code: Any = 0
        try:
            predict.main([str(word) for word in words])
        except SystemExit as leaving:
            code = leaving.code
        printed = capsys.readouterr()
        return SimpleNamespace(out=printed.out, err=printed.err, code=code)

    return call


def records(printed: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed.splitlines()]


# ------------------------------------------------------------------------------------------------------------- labels


def test_table_says_the_label_and_the_second_class_probability(run_command, trained_run) -> None:
    told = run_command(trained_run, BAD, GOOD)
    assert told.code == 0 and told.err == ""
    head, first, second = (line.split() for line in told.out.splitlines())
    assert head == ["Text", "P(positive)", "Label"]
    assert first[-1] == "negative" and float(first[-2]) < 0.5
    assert second[-1] == "positive" and float(second[-2]) > 0.5


def test_folder_and_checkpoint_alone_agree(run_command, trained_run, tmp_path) -> None:
    alone = tmp_path / "moved.ckpt"
    alone.write_bytes((trained_run / "checkpoints" / "best.ckpt").read_bytes())
    assert records(run_command(alone, GOOD, "--json").out) == records(run_command(trained_run, GOOD, "--json").out)


def test_each_text_is_answered_alone_whatever_stands_beside_it(run) -> None:
    texts = [GOOD, BAD, "film", " ".join([GOOD] * 40), "unheard of words", BAD + " . " + GOOD]
    together = classify(run, texts)
    for text, found in zip(texts, together, strict=True):
        (alone,) = classify(run, [text])
        np.testing.assert_allclose(found.probabilities, alone.probabilities, atol=1e-6)
        assert sum(found.probabilities) == pytest.approx(1)


def test_two_threads_of_torch_answer_the_same(run) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = classify(run, [GOOD, BAD])
        torch.set_num_threads(2)
        two = classify(run, [GOOD, BAD])
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_allclose(one[0].probabilities, two[0].probabilities, atol=1e-6)


def test_standard_input_and_files_give_the_same_answers_in_order(run_command, trained_run, tmp_path) -> None:
    texts = [GOOD, BAD, "the plot was dull"]
    wanted = records(run_command(trained_run, *texts, "--json").out)
    assert [record["text"] for record in wanted] == texts

    lines = "\r\n".join(texts).encode()
    assert records(run_command(trained_run, "--json", stdin=b"\xef\xbb\xbf" + lines).out) == wanted
    (tmp_path / "a.txt").write_bytes(lines)
    (tmp_path / "a.csv").write_text("n,review\n" + "".join(f'{i},"{t}"\n' for i, t in enumerate(texts)))
    (tmp_path / "a.tsv").write_text("review\n" + "".join(f"{t}\n" for t in texts))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"review": t}) + "\n" for t in texts))
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"review": texts}), tmp_path / "a.parquet")
    assert records(run_command(trained_run, "--file", tmp_path / "a.txt", "--json").out) == wanted
    for kind in ("csv", "tsv", "jsonl", "parquet"):
        told = run_command(trained_run, "--file", tmp_path / f"a.{kind}", "--column", "review", "--json")
        assert records(told.out) == wanted, kind


def test_many_lines_come_in_order_across_chunks(run_command, trained_run, monkeypatch) -> None:
    monkeypatch.setattr("recur.inference.io.CHUNK", 4)
    monkeypatch.setattr("recur.inference.classification.BATCH_TOKENS", 10)
    texts = [f"{'very ' * (i % 5)}film {GOOD if i % 2 else BAD}" for i in range(11)]
    told = records(run_command(trained_run, "--json", stdin="\n".join(texts).encode()).out)
    assert [record["text"] for record in told] == texts
    assert [record["label"] for record in told] == ["positive" if i % 2 else "negative" for i in range(11)]


# ------------------------------------------------------------------------------------------------- what is hard to read

STRANGE = {
    "unknown words": "xyzzy plugh",
    "another script": "映画はとても良かった",
    "right to left": "הסרט היה נהדר",
    "emoji": "👩‍👩‍👧‍👦 🎬👍🏽",
    "one megabyte": ("the film was superb " + "x" * 480 + " ") * 2000,
    "one long word": "a" * 1_000_000,
    "escape sequences": "\x1b[31mred\x1b[0m \x1b]0;title\x07 film",
    "C1 controls": "film \x9b31m \x85 film",
    "a lone surrogate": "film \udcff film",
    "bidirectional override": "film \u202egnp.exe",
    "carriage return": "film\rwas\x08\x08\x08",
    "markup": "<script>alert(1)</script> [bold]film[/bold] :smile:",
}


@pytest.mark.parametrize("text", STRANGE.values(), ids=STRANGE.keys())
def test_strange_texts_work_and_reach_the_terminal_tamed(run_command, trained_run, text: str) -> None:
    told = run_command(trained_run, text)
    assert told.code == 0, told.err
    lines = (told.out + told.err).splitlines()
    assert len(told.out.splitlines()) == 2
    assert all(len(line) < 400 for line in lines)
    assert not view._UNSAFE.search("".join(lines))
    (record,) = records(run_command(trained_run, text, "--json").out)
    assert record["text"] == text
    assert record["label"] in ("negative", "positive")


def test_texts_the_run_knows_nothing_of_are_noticed(run_command, trained_run) -> None:
    told = run_command(trained_run, GOOD, "xyzzy plugh")
    assert told.code == 0
    assert told.err == "recur: text 2: the run knows none of its words\n"


REFUSED = {
    "empty": ([""], b"", "text 1 is empty"),
    "blank": ([GOOD, " \t"], b"", "text 2 is empty"),
    "no tokens": ([";;;"], b"", "text 1 has no tokens: ';;;'"),
    "nothing on standard input": ([], b"", "standard input holds no text"),
    "blank line": ([], b"the film\n\nthe plot\n", "standard input line 2 is empty"),
    "not UTF-8": ([], b"the film\nthe \xff film\n", "standard input line 2 is not UTF-8 (byte 0xff)"),
    "no such file": (["--file", "nowhere.csv"], b"", "there is no file nowhere.csv"),
    "column without file": (["--column", "review"], b"", "--column review needs --file"),
    "texts and file": (["text", "--file", "nowhere.csv"], b"", "not both"),
    "device": ([GOOD, "--device", "abacus"], b"", "--device abacus cannot be used"),
    "page nowhere": ([GOOD, "--html", "/no/such/folder/page.html"], b"", "there is no folder /no/such/folder"),
}


@pytest.mark.parametrize(("words", "stdin", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_read_is_one_line_and_code_2(
    run_command, trained_run, words, stdin: bytes, message: str
) -> None:
    told = run_command(trained_run, *words, stdin=stdin)
    assert told.code == 2
    assert message in told.err
    assert len(told.err.splitlines()) == 1 and told.err.startswith("recur: ")


def test_bad_rows_of_a_file_are_named_and_can_be_skipped(run_command, trained_run, tmp_path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(f"text\n{GOOD}\n \n{BAD}\n;\n")
    told = run_command(trained_run, "--file", file)
    assert told.code == 2 and f"{file} row 2" in told.err and "--skip-bad-rows" in told.err
    assert "data.on_bad_row" not in told.err
    told = run_command(trained_run, "--file", file, "--skip-bad-rows", "--json")
    assert told.code == 0
    assert [record["text"] for record in records(told.out)] == [GOOD, BAD]
    assert "row 4" in told.err


def test_wrong_column_names_those_there_are(run_command, trained_run, tmp_path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("review\ngood\n")
    told = run_command(trained_run, "--file", file)
    assert told.code == 2 and "'text'" in told.err and "'review'" in told.err


@pytest.mark.parametrize("make", ["missing", "folder", "text", "truncated"])
def test_what_is_no_run_is_one_line(run_command, trained_run, tmp_path, make: str) -> None:
    place = tmp_path / "run"
    if make == "folder":
        place.mkdir()
    elif make == "text":
        place.write_text("a run")
    elif make == "truncated":
        place.write_bytes((trained_run / "checkpoints" / "best.ckpt").read_bytes()[:5000])
    told = run_command(place, GOOD)
    assert told.code == 2 and str(place) in told.err and len(told.err.splitlines()) == 1


# --------------------------------------------------------------------------------------------------------- explanations


@pytest.mark.parametrize("text", [GOOD, BAD, "film", "xyzzy was the film", " ".join([GOOD, BAD] * 20)])
def test_contributions_add_up_to_the_whole_difference(run, text: str) -> None:
    (found,) = classify(run, [text])
    told = explain(run, text, found.label)
    whole = told.logit - told.baseline
    assert sum(told.contributions) == pytest.approx(whole, abs=TOLERANCE * max(1, abs(whole)))
    # and the logit is the door's own
    assert 1 / (1 + np.exp(-told.logit)) == pytest.approx(found.probabilities[1], abs=1e-6)
    assert told.tokens == text.split()


def test_contributions_of_a_linear_model_are_its_terms() -> None:
    """With a logit that is a sum over tokens, a token's contribution is its own term, exactly."""

    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.randn(5, dtype=torch.float64)

        def embed(self, text):
            return torch.randn(len(text.data), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

        def classify(self, vectors, text):
            each = vectors @ self.weight
            return each.view(len(text.batch_sizes), -1).sum(0)[:, None] + 3.0  # every point has all its tokens

    net = Linear()
    text = torch.nn.utils.rnn.pack_sequence([torch.arange(7)])
    values, logit, baseline = integrated_gradients(net, text, 0)
    torch.testing.assert_close(values, net.embed(text) @ net.weight, rtol=1e-6, atol=1e-6)
    assert baseline == 3.0 and logit == pytest.approx(3.0 + float(values.sum()))


def test_the_word_that_decides_contributes_most_and_with_the_right_sign(run) -> None:
    for text, sign in ((GOOD, 1), (BAD, -1)):
        told = explain(run, text, 0)
        strongest = int(np.argmax(np.abs(told.contributions)))
        assert told.tokens[strongest] in ("superb", "awful")
        assert np.sign(told.contributions[strongest]) == sign
        assert (told.towards, told.against) == ("positive", "negative")


def test_explanation_follows_the_cut_of_the_run(run, monkeypatch) -> None:
    monkeypatch.setitem(run.config["data"], "max_length", 4)
    for keep, kept in (("head", "a b c d"), ("tail", "e f g h"), ("both", "a b g h")):
        monkeypatch.setitem(run.config["data"], "keep", keep)
        assert explain(run, "a b c d e f g h", 0).tokens == kept.split()
        (found,) = classify(run, ["a b c d e f g h"])
        assert (found.tokens, found.read) == (8, 4)
        (short,) = classify(run, [kept])
        np.testing.assert_allclose(found.probabilities, short.probabilities, atol=1e-6)


def test_explanation_without_colour_shows_numbers_and_json_all(run_command, trained_run) -> None:
    told = run_command(trained_run, GOOD, "--explain")
    assert told.code == 0 and "\x1b" not in told.out
    assert "superb(+" in told.out and told.out.startswith("positive (")
    (record,) = records(run_command(trained_run, GOOD, "--explain", "--json").out)
    inner = record["explanation"]
    assert [token["token"] for token in inner["tokens"]] == GOOD.split()
    added = sum(token["contribution"] for token in inner["tokens"])
    assert added - (inner["logit"] - inner["baseline_logit"]) == pytest.approx(inner["gap"])


def test_explanation_in_colour_holds_no_control_of_the_text(run_command, trained_run, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    told = run_command(trained_run, "superb \x1b[2J film", "--explain")
    assert "\x1b[" in told.out  # ours
    assert "\x1b[2J" not in told.out and r"\x1b[2j" in told.out


def test_too_long_to_explain_says_so(run_command, trained_run) -> None:
    told = run_command(trained_run, "film " * 6000, "--explain")
    assert told.code == 2 and "5,000" in told.err and "6,000" in told.err


class _Page(HTMLParser):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attributes]

    def handle_data(self, data) -> None:
        self.text.append(data)


def test_page_stands_alone_and_escapes_the_text(run_command, trained_run, tmp_path) -> None:
    file = tmp_path / "page.html"
    hostile = """superb <script>alert("x")</script> " onmouseover="alert(1) &amp; \x1b[0m"""
    told = run_command(trained_run, hostile, BAD, "--html", file)
    assert told.code == 0, told.err
    source = file.read_text(encoding="utf-8")
    page = _Page(source)
    assert set(page.tags) == {
        "html",
        "meta",
        "title",
        "style",
        "h1",
        "h2",
        "p",
        "span",
        "section",
        "div",
        "footer",
        "br",
    }
    assert set(page.attributes) <= {"lang", "charset", "http-equiv", "content", "name", "class", "style", "title"}
    assert "http://" not in source and "https://" not in source and "url(" not in source
    assert "<script>alert" in "".join(page.text)  # as text
    assert "default-src 'none'" in source
    assert not view._UNSAFE.search(source.replace("\n", ""))


# ------------------------------------------------------------------------------------------------------------ as typed


def test_as_a_program_from_another_folder(trained_run, tmp_path) -> None:
    done = process("predict", trained_run, BAD, GOOD, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.split()[-1] for line in done.stdout.splitlines()] == ["Label", "negative", "positive"]
    assert done.stderr == ""


def test_help_is_fast_and_needs_no_torch() -> None:
    code = "import sys, recur.predict, recur.evaluate; sys.exit('torch' in sys.modules or 'hydra' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(SystemExit) as leaving:
        predict.main(["--help"])
    assert leaving.value.code == 0
