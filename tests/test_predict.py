"""The command predict: labels, explanations, a filter on a pipe, and texts that want to do harm."""

import csv
import io
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import pytest

from recur import predict, render
from recur.inference.io import Delimited
from support.commands import run_command as process

GOOD, BAD = "the film was superb", "the film was awful"


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Call the command in this process: `run_command(*words, stdin=b"")` gives `out`, `err` and `code`."""

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


def test_standard_input_and_files_give_the_same_answers_in_order(run_command, trained_run, tmp_path) -> None:
    texts = [GOOD, BAD, "the plot was dull"]
    wanted = records(run_command(trained_run, *texts, "--json").out)
    assert [record["text"] for record in wanted] == texts

    for record in wanted:  # one text at a time and several at once round differently
        for name in ("probability", "probabilities"):
            record[name] = pytest.approx(record[name], abs=1e-6)

    lines = "\r\n".join(texts).encode()
    assert records(run_command(trained_run, "--json", stdin=b"\xef\xbb\xbf" + lines).out) == wanted
    (tmp_path / "a.txt").write_bytes(lines)
    (tmp_path / "a.csv").write_text("review\n" + "".join(f'"{t}"\n' for t in texts))
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
    monkeypatch.setattr("recur.inference.batches.BATCH_TOKENS", 10)
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
def test_strange_texts_work_and_reach_the_terminal_harmless(run_command, trained_run, text: str) -> None:
    told = run_command(trained_run, text)
    assert told.code == 0, told.err
    lines = (told.out + told.err).splitlines()
    assert len(told.out.splitlines()) == 2
    assert all(len(line) < 400 for line in lines)
    assert not render._UNSAFE.search("".join(lines))
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
    "no tokens": ([";;;"], b"", "text 1 has no tokens, got ';;;'"),
    "nothing on standard input": ([], b"", "standard input holds no text"),
    "blank line": ([], b"the film\n\nthe plot\n", "standard input line 2 is empty"),
    "not UTF-8": ([], b"the film\nthe \xff film\n", "standard input line 2 is not UTF-8 (byte 0xff)"),
    "no such file": (["--file", "nowhere.csv"], b"", "--file names no file, got 'nowhere.csv'"),
    "column of texts": ([GOOD, "--column", "review"], b"", "--column names a column of --file"),
    "texts and file": (["text", "--file", "nowhere.csv"], b"", "cannot be given with 1 texts"),
    "device": ([GOOD, "--device", "abacus"], b"", "--device abacus cannot be used"),
    "device without numbers": ([GOOD, "--device", "meta"], b"", "--device meta cannot be used"),
    "format": (["--format", "yaml"], b"", "--format must be auto, text or jsonl, got 'yaml'"),
    "answers nowhere": ([GOOD, "--out", "/no/such/folder/a.csv"], b"", "there is no folder /no/such/folder"),
    "answers in another form": ([GOOD, "--out", "a.xlsx"], b"", "--out must end in one of .csv .tsv .jsonl"),
    "overwrite nothing": ([GOOD, "--overwrite"], b"", "--overwrite does nothing without --out"),
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


@pytest.mark.parametrize("place", ["standard input", "a.txt"])
def test_a_column_is_refused_where_a_line_is_a_text(run_command, trained_run, tmp_path, monkeypatch, place) -> None:
    """It was passed over, and a csv on standard input was answered line by line, commas and all."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(f"review\n{GOOD}\n")
    words = ["--file", place] if place == "a.txt" else []
    told = run_command(trained_run, *words, "--column", "review", "--json", stdin=f"review\n{GOOD}\n".encode())
    assert told.code == 2 and told.out == "" and len(told.err.splitlines()) == 1
    assert f"--column names a column, and a line of {place} is a text, got 'review': " in told.err


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


def test_a_text_too_long_to_explain_costs_no_other(run_command, trained_run, tmp_path) -> None:
    (tmp_path / "a.txt").write_text(f"{GOOD}\n{'film ' * 6000}\n{BAD}\n")
    words = [trained_run, "--file", tmp_path / "a.txt", "--explain", "--json", "--html", tmp_path / "a.html"]
    told = run_command(*words)
    assert told.code == 2 and "a.txt line 2 must have at most 5,000 tokens" in told.err
    assert len(records(told.out)) == 1 and "superb" in (tmp_path / "a.html").read_text()
    told = run_command(*words, "--skip-bad-rows")
    assert told.code == 0 and [one["text"] for one in records(told.out)] == [GOOD, BAD]
    assert len(records(run_command(*words[:3], "--json").out)) == 3  # which explains nothing


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
        "head",
        "body",
        "main",
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
    assert "prefers-color-scheme: dark" in source
    assert "http://" not in source and "https://" not in source and "url(" not in source
    assert "<script>alert" in "".join(page.text)  # as text
    assert "default-src 'none'" in source
    assert not render._UNSAFE.search(source.replace("\n", ""))


# ------------------------------------------------------------------------------------------------ a filter on a pipe


@pytest.mark.slow
def test_a_line_is_answered_before_the_pipe_closes(trained_run) -> None:
    command = [sys.executable, "-m", "recur.predict", str(trained_run), "--json"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        for text, label in ((GOOD, "positive"), (BAD, "negative")):
            process.stdin.write(f"{text}\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["label"] == label  # it has not seen the end of the pipe


def test_a_closed_standard_input_is_one_line(trained_run) -> None:
    words = f"{sys.executable} -m recur.predict {trained_run} <&-"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "recur: standard input is closed: give texts, or a file of texts with --file\n"


def test_what_stands_before_a_bad_line_is_answered(run_command, trained_run) -> None:
    done = run_command(trained_run, "--json", stdin=f"{GOOD}\n{BAD}\n\n{GOOD}\n".encode())
    assert done.code == 2 and "line 3 is empty" in done.err
    assert [record["label"] for record in records(done.out)] == ["positive", "negative"]
    done = run_command(trained_run, "--json", "--skip-bad-rows", stdin=f"{GOOD}\n\n;\n{BAD}\n".encode())
    assert done.code == 0 and [record["label"] for record in records(done.out)] == ["positive", "negative"]
    assert [line.partition(" line ")[2][:1] for line in done.err.splitlines()] == ["2", "3"]


ROWS = [{"id": 7, "review": GOOD, "label": "negative"}, {"review": BAD, "more": [1]}]


@pytest.mark.parametrize("place", ["pipe", "jsonl", "json"])
def test_json_keeps_ids_and_other_columns(run_command, trained_run, tmp_path, place: str) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    if place == "json":
        lines = json.dumps(ROWS)
    (tmp_path / f"a.{place}").write_text(lines)
    words = [] if place == "pipe" else ["--file", tmp_path / f"a.{place}"]
    done = run_command(trained_run, *words, "--column", "review", "--json", stdin=lines.encode())
    assert done.code == 0, done.err
    first, second = records(done.out)
    assert (first["id"], first["text"], first["label"], first["input_label"]) == (7, GOOD, "positive", "negative")
    assert (second["text"], second["label"]) == (BAD, "negative")
    assert "id" not in second and second["more"] == [1]


def test_columns_that_are_doubled_or_damaged_cost_no_other(run_command, trained_run, tmp_path) -> None:
    """As a spreadsheet writes empty columns, and one byte of Latin-1 in a column that nobody asked for."""
    (tmp_path / "a.csv").write_bytes(f"id,v,by,,\n1,{GOOD},caf\xe9,,\n2,{BAD},x,,\n".encode("latin-1"))
    done = run_command(trained_run, "--file", tmp_path / "a.csv", "--column", "v", "--json")
    assert done.code == 0, done.err
    first, second = records(done.out)
    assert (first["id"], first["text"], second["id"], second["by"]) == ("1", GOOD, "2", "x")
    assert "by" not in first and "" not in second


def test_json_lines_and_text_are_told_apart_by_the_first_line(run_command, trained_run) -> None:
    object_line = json.dumps({"text": GOOD})
    done = run_command(trained_run, "--json", stdin=f"{object_line}\n{BAD}\n".encode())
    assert done.code == 2 and "line 2 is not JSON: give --format text" in done.err
    assert [record["text"] for record in records(done.out)] == [GOOD]
    done = run_command(trained_run, "--json", "--format", "text", stdin=object_line.encode())
    assert records(done.out)[0]["text"] == object_line
    done = run_command(trained_run, "--json", stdin=b'{"review": "good"}\n')
    assert done.code == 2 and "has no text in 'text', only the columns 'review'" in done.err


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_answers_go_to_a_file_with_the_columns_of_the_input(run_command, trained_run, tmp_path, suffix: str) -> None:
    import pandas as pd

    source, out = tmp_path / "in.csv", tmp_path / f"out.{suffix}"
    source.write_text(f'id,text\na1,"{GOOD}"\na2,"{BAD}"\n')
    done = run_command(trained_run, "--file", source, "--out", out)
    assert done.code == 0 and done.out == "" and done.err == f"recur: wrote {out}\n"
    frame = (
        pd.read_json(out, lines=True) if suffix == "jsonl" else pd.read_csv(out, sep="\t" if suffix == "tsv" else ",")
    )
    assert frame["id"].tolist() == ["a1", "a2"] and frame["label"].tolist() == ["positive", "negative"]
    if suffix != "jsonl":
        assert frame["probabilities.positive"].tolist() == pytest.approx(
            [frame["probability"][0], 1 - frame["probability"][1]]
        )
    before = out.read_bytes()
    done = run_command(trained_run, GOOD, "--out", out)
    assert done.code == 2 and "must not exist" in done.err and out.read_bytes() == before
    assert run_command(trained_run, GOOD, "--out", out, "--overwrite").code == 0 and out.read_bytes() != before
    done = run_command(trained_run, "--file", source, "--out", source, "--overwrite")
    assert done.code == 2 and "is a file of the texts" in done.err


def test_parts_of_an_answer_are_json_and_no_formula_and_columns_that_come_later_are_said_to_be_lost(capsys) -> None:
    out = io.StringIO()
    writer = Delimited(out, ",")
    writer.write({"id": 1}, {"text": "a", "explanation": {"tokens": ["a", "it's"], "towards": "=1+1", "gap": -0.5}})
    for number in (2, 3):
        writer.write({"id": number, "late": "x"}, {"text": "b", "explanation": {"tokens": []}})
    first, *_ = csv.DictReader(out.getvalue().splitlines())
    assert json.loads(first["explanation.tokens"]) == ["a", "it's"]
    assert (first["explanation.towards"], first["explanation.gap"]) == ("'=1+1", "-0.5")
    guarded, said = capsys.readouterr().err.splitlines(keepends=True)
    assert "cells that a spreadsheet would take for formulas are written with a '" in guarded
    assert said == "recur: columns that the first text lacks are left out, such as 'late': --out X.jsonl keeps them\n"


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_answers_that_are_answered_again_lose_no_column(run_command, trained_run, tmp_path, suffix: str) -> None:
    import pandas as pd

    files = [tmp_path / f"{number}.{suffix}" for number in range(4)]
    row = {"text": GOOD, "label": "true one", "input_input_label": "own", "probabilities.negative": "p"}
    lines = f"{','.join(row)}\n{','.join(row.values())}\n" if suffix == "csv" else json.dumps(row) + "\n"
    files[0].write_text(lines)
    for source, out in itertools.pairwise(files):
        assert run_command(trained_run, "--file", source, "--out", out).code == 0
        read = {"lines": True} if suffix == "jsonl" else {}
        before, after = ((pd.read_json if read else pd.read_csv)(file, **read) for file in (source, out))
        kept = after.astype(str).iloc[0].tolist()
        assert all(kept.count(value) >= 1 for value in ("true one", "own", "p")), after
        assert len(after.columns) >= len(before.columns) + 4, "each part of an answer comes beside those of the last"
        assert after["label"].tolist() == ["positive"]
    assert (after["input_label"].tolist(), after["input_input_label"].tolist()) == (["true one"], ["own"])


def test_a_column_has_one_name_in_all_records() -> None:
    out = io.StringIO()
    writer = Delimited(out, ",")
    for columns in ({"label": "a"}, {"input_label": "b", "label": "c"}):
        writer.write(columns, {"label": "positive"})
    assert [row["input_label"] for row in csv.DictReader(out.getvalue().splitlines())] == ["a", "c"]


def test_a_column_without_a_name_keeps_its_values() -> None:
    """pandas writes its index so; from the second row on it was called `input_`, and csv left it out."""
    out = io.StringIO()
    writer = Delimited(out, ",")
    for number in range(3):
        writer.write({"": number, "text": "a"}, {"label": "positive"})
    assert [row[""] for row in csv.DictReader(out.getvalue().splitlines())] == ["0", "1", "2"]


def test_a_refusal_leaves_the_file_for_answers_as_it_was(run_command, trained_run, tmp_path) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text(f'id,text\na1,"{GOOD}"\na2,""\n')
    assert run_command(trained_run, "--file", source, "--out", out).code == 2 and not out.exists()
    out.write_text("earlier answers\n")
    assert run_command(trained_run, "--file", source, "--out", out, "--overwrite").code == 2
    assert out.read_text() == "earlier answers\n"
    assert run_command(trained_run, "--out", tmp_path / "none.csv", stdin=b"").code == 2
    assert not (tmp_path / "none.csv").exists()


def test_answers_are_not_written_over_standard_input(trained_run, tmp_path, monkeypatch, capsys) -> None:
    """The shell's `--out F < F --overwrite`: what was not read of it by then was lost."""
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"text": GOOD}) + "\n")
    before = file.read_bytes()
    with file.open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        with pytest.raises(SystemExit) as leaving:
            predict.main([str(trained_run), "--out", str(file), "--overwrite"])
    assert leaving.value.code == 2 and file.read_bytes() == before
    assert "--out is a file of the texts" in capsys.readouterr().err


def test_a_page_replaces_a_page_and_nothing_else(run_command, trained_run, tmp_path) -> None:
    checkpoint = tmp_path / "best.ckpt"
    checkpoint.write_bytes((trained_run / "checkpoints" / "best.ckpt").read_bytes())
    before = checkpoint.read_bytes()
    done = run_command(checkpoint, GOOD, "--html", checkpoint)
    assert done.code == 2 and "is no page of recur.predict" in done.err and checkpoint.read_bytes() == before
    assert run_command(trained_run, GOOD, "--html", tmp_path / "a.html").code == 0
    first = (tmp_path / "a.html").read_text()
    assert run_command(trained_run, BAD, "--html", tmp_path / "a.html").code == 0
    assert (tmp_path / "a.html").read_text() != first


SPOILT = {
    "weights": (lambda content: next(iter(content["state_dict"].values())).fill_(float("nan")), "not all finite"),
    "length": (lambda content: content["recur"]["config"]["data"].update(max_length="x"), "data.max_length must be"),
    "part kept": (lambda content: content["recur"]["config"]["data"].update(keep="some"), "data.keep must be"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILT.values(), ids=SPOILT.keys())
def test_a_spoilt_checkpoint_is_refused(run_command, trained_run, tmp_path, spoil, message: str) -> None:
    import torch

    content = torch.load(trained_run / "checkpoints" / "best.ckpt", weights_only=True)
    spoil(content)
    torch.save(content, tmp_path / "spoilt.ckpt")
    done = run_command(tmp_path / "spoilt.ckpt", GOOD)
    assert done.code == 2 and message in done.err and done.out == "" and len(done.err.splitlines()) == 1


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


def test_fields_are_parted_as_the_run_was_trained_with(tmp_path, run_command) -> None:
    rows = [("the film, well, was superb", "good"), (BAD, "bad")] * 20
    (tmp_path / "bare.csv").write_text("".join(f"{text};{label}\n" for text, label in rows))
    (tmp_path / "comma.csv").write_text("".join(f'{label},"{text}"\n' for text, label in rows))
    words = ["data=files", f"data.train={tmp_path / 'bare.csv'}", "data.text_column=1", "data.label_column=2"]
    words += ["data.delimiter=';'", "trainer.fast_dev_run=1", "model=bilstm", "baseline=false", "trainer=cpu"]
    done = process("train", *words, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    for file, *more in (["bare.csv"], ["comma.csv", "--delimiter", ",", "--column", "2"]):
        done = run_command(tmp_path / "run", "--json", "--file", tmp_path / file, *more)
        assert not done.code, done.err
        assert [one["text"] for one in records(done.out)] == [text for text, _ in rows]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([GOOD, "--delimiter", ";"], "--delimiter does nothing without a csv or tsv in --file"),
        (["--file", "a.jsonl", "--delimiter", ";"], "--delimiter does nothing without a csv or tsv in --file"),
        (["--file", "a.csv", "--delimiter", "ab"], "--delimiter must be null or one character, got 'ab'"),
        ([GOOD, "--format", "jsonl"], "--format does nothing for texts as arguments"),
        (["--file", "a.csv", "--format", "text"], "--format does nothing for a.csv"),
    ],
)
def test_options_of_reading_that_do_nothing_are_refused(
    run_command, trained_run, tmp_path, monkeypatch, words, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text(f"text\n{GOOD}\n")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": GOOD}) + "\n")
    done = run_command(trained_run, *words)
    assert done.code == 2 and said in done.err and done.out == "" and len(done.err.splitlines()) == 1


def test_columns_by_number_are_those_the_run_was_trained_with(tmp_path, run_command) -> None:
    rows = [(GOOD, "1"), (BAD, "0")] * 20
    (tmp_path / "bare.csv").write_text("".join(f"{text},{label}\n" for text, label in rows))
    (tmp_path / "texts.csv").write_text("".join(f"{text}\n" for text, _ in rows))
    words = ["data=files", f"data.train={tmp_path / 'bare.csv'}", "data.text_column=1", "data.label_column=2"]
    words += ["trainer.max_epochs=1", "model=bilstm", "baseline=false", "logger=none", "trainer=cpu"]
    done = process("train", *words, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    answers = []
    for words in (["bare.csv"], ["bare.csv", "--column", "1"], ["texts.csv"]):
        done = run_command(tmp_path / "run", "--json", "--file", tmp_path / words[0], *words[1:])
        assert not done.code, done.err
        answers.append([json.loads(line) for line in done.out.splitlines()])
        assert [one["text"] for one in answers[-1]] == [text for text, _ in rows]
    assert answers[0] == answers[1] and answers[0][1]["2"] == "0"
    done = run_command(tmp_path / "run", "--json", stdin=json.dumps({"text": GOOD}).encode())
    assert not done.code and json.loads(done.out)["text"] == GOOD


def test_every_line_is_json(run_command, trained_run, tmp_path) -> None:
    """NaN and Infinity are none, though Python writes them."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": GOOD, "score": math.inf, "parts": [math.nan, 1.5]}) + "\n")
    done = run_command(trained_run, "--file", tmp_path / "a.jsonl", "--json")
    assert done.code == 0, done.err

    def refuse(name):
        raise AssertionError(name)

    (line,) = done.out.splitlines()
    answer = json.loads(line, parse_constant=refuse)
    assert (answer["score"], answer["parts"]) == (None, [None, 1.5])
