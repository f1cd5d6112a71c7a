"""What cannot be done is refused: by the real commands, in one line, with exit code 2, and nothing there is touched."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recur import cli
from recur import render as view
from support.commands import run_command
from support.refused_data import Row, Runs
from support.refused_settings import ROWS

LIMIT = 1500  # characters of a message


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


# Composing a config takes most of the time: of those, `make test` runs every fourth one, `make test-all` all.
COMPOSED = ("data", "text", "config", "language config")
TABLE = [
    pytest.param(
        group, row, id=f"{group}: {name}", marks=[pytest.mark.slow] if group in COMPOSED and number % 4 else []
    )
    for group, rows in ROWS.items()
    for number, (name, row) in enumerate(rows.items())
]
COMMANDS = {group: group for group in ("predict", "evaluate", "generate", "results", "bench")}
COMMANDS["readme"] = "benchmarks.publish"


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
        if group in COMMANDS
        else shlex.split(row.words.replace("'", '"\'"'))
    )
    if group not in COMMANDS and group not in ("resume", "new run"):
        words += ["hydra.run.dir=new"] + ([] if "trainer=" in row.words else ["trainer=cpu"])
    before = snapshot(place)
    done = run_command(COMMANDS.get(group, "train"), *words, cwd=place, text=row.text, environment={"RECUR_DEBUG": ""})
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


@pytest.mark.slow
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


@pytest.mark.slow
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
