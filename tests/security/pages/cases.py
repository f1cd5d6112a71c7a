"""What is written from foreign texts: tables for spreadsheets, Markdown, pages, and a terminal."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable

from security.arena import Arena, Case, Done
from security.bases import a_run, a_sweep

FORMULAS = (
    '=HYPERLINK("http://127.0.0.1/?"&A1)',
    "=cmd|' /C calc'!A0",
    "+SUM(1+1)*cmd|' /C calc'!A0",
    "-2+3+cmd|' /C calc'!A0",
    "@SUM(1+9)*cmd|' /C calc'!A0",
    "\t=1+1",
    "\r=1+1",
    " =1+1",
)
HTML = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "<!-- ",
    "a\n\n# Won\n\n[x](javascript:alert(1))",
    "![x](http://127.0.0.1/x.png)",
    "`a` *b* | c",
    "</title><svg/onload=alert(1)>",
    "&lt;script&gt;",
)
CONTROLS = ("\x1b]0;evil\x07", "\x1b[2J", "\u202e", "\x9b2J", "\r\n\r\n")


def _sweep(text: str) -> Callable[[Arena], None]:
    """A sweep that has a text wherever one can stand."""

    def plant(arena: Arena) -> None:
        sweep = a_sweep(arena, complete=2, header={"command": text, "search": text})
        lines = [json.loads(line) for line in (sweep / "sweep.jsonl").read_text().splitlines()]
        for number, event in enumerate(lines):
            if event["event"] == "start":
                event["overrides"] = [f"name={text}{number}", f"{text}={number}", f"seed={text}"]
                event["place"] = text
            if event["event"] == "end" and event["job"] == 1:
                event.update(state="failed", reason=text)
        (sweep / "sweep.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        record = sweep / "0" / "metrics.json"
        content = json.loads(record.read_text())
        content["val"][text] = 1.0
        content[text] = 2.0
        record.write_text(json.dumps(content))

    return plant


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def _no_formula(arena: Arena, done: Done) -> Iterable[str]:
    """A spreadsheet takes a cell for a formula by its first character."""
    path = arena.work / "s" / "results" / "runs.csv"
    if done.code or not path.is_file():
        return
    for row in csv.reader(io.StringIO(path.read_bytes().decode())):
        for cell in row:
            if cell[:1] in tuple("=+-@\t\r") and not _NUMBER.fullmatch(cell):
                yield f"formula: {cell!r} in runs.csv"


def _no_markup(arena: Arena, done: Done) -> Iterable[str]:
    """Markdown that holds no HTML, no link, no heading and no row but those of its table."""
    path = arena.work / "s" / "results" / "leaderboard.md"
    if done.code or not path.is_file():
        return
    text = path.read_bytes().decode()
    for found in re.findall(r"<[a-zA-Z!/][^>]*|\]\(|^#.*$", text, re.MULTILINE):
        yield f"markup: {found!r} in leaderboard.md"
    for line in text.split("\n"):
        if line and not (line.startswith("|") and line.endswith("|")):
            yield f"markup: the line {line[:60]!r} in leaderboard.md"
    page = (arena.work / "s" / "results" / "index.html").read_text()
    for found in re.findall(r"<(?:img|svg/onload|iframe)|<script>alert", page):
        yield f"markup: {found!r} in index.html"


def _no_control(arena: Arena, done: Done) -> Iterable[str]:
    for name, text in (("output", done.out), ("errors", done.err)):
        if found := re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text):
            yield f"control: {found[0]!r} in its {name}"


def _all(arena: Arena, done: Done) -> Iterable[str]:
    yield from _no_formula(arena, done)
    yield from _no_markup(arena, done)
    yield from _no_control(arena, done)


CASES = [
    Case(f"{kind} {number}", _sweep(text), (("results", "s"),), own=("s",), check=_all, quick=number == 0)
    for kind, texts in (("formula", FORMULAS), ("markup", HTML), ("control", CONTROLS))
    for number, text in enumerate(texts)
]

# ------------------------------------------------------------------------------------------------ pages of other people


def _page(name: str, content: str) -> Callable[[Arena], None]:
    def plant(arena: Arena) -> None:
        a_run(arena)
        arena.path(name).write_text(content)

    return plant


def _predict(path: str) -> tuple[tuple[str, ...], ...]:
    return (("predict", "r", "a fine film", "--explain", "--html", path),)


def _linked(arena: Arena) -> None:
    import os

    a_run(arena)
    os.symlink(arena.victim / "page.html", arena.work / "new.html")


CASES += [
    Case("a page of somebody", _page("x", ""), _predict("../victim/page.html"), own=(), codes=(2,), quick=True),
    Case("a letter of somebody", _page("x", ""), _predict("../victim/letter.txt"), own=(), codes=(2,)),
    Case("an empty file of somebody", _page("x", ""), _predict("../victim/empty"), own=(), codes=(2,)),
    Case("the shell's start file", _page("x", ""), _predict("../home/.bashrc"), own=(), codes=(2,)),
    Case("a checkpoint", _page("x", ""), _predict("r/checkpoints/best.ckpt"), own=(), codes=(2,)),
    Case(
        "a page that begins as ours",
        _page("new.html", '<!doctype html><html lang="en"><p>mine'),
        _predict("new.html"),
        own=(),
        codes=(2,),
    ),
    Case("a page through a link", _linked, _predict("new.html"), own=(), codes=(2,)),
    Case("a new page", _page("x", ""), _predict("new.html"), own=("new.html",), codes=(0,)),
]


def _ours(arena: Arena) -> None:
    a_run(arena)
    done = arena.call(_predict("new.html")[0], ("new.html",))
    assert done.code == 0, done.err


CASES.append(Case("a page of ours, written again", _ours, _predict("new.html"), own=("new.html",), codes=(0,)))
