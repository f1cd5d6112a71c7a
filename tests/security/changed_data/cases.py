"""Data that is not what it was when a run was killed: said before anything is written, and taken where it is typed."""

from collections.abc import Callable
from pathlib import Path

from security.arena import Arena, Case
from security.bases import TINY
from support.commands import run_command

_ROWS = [
    ("a fine film", 1),
    ("a dull film", 0),
    ("great fun", 1),
    ("no fun", 0),
    ("a long day", 0),
    ("so moving", 1),
] * 10
_SETTINGS = (*TINY[4:], "test=false")


def _csv(path: Path, rows: list[tuple[str, int]]) -> None:
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))


def _trained(arena: Arena, kind: str, *more: str) -> Path:
    """A run on a file of its own, which its config names by where it lies: so it is trained where it is changed."""
    if kind == "table":
        _csv(arena.path("a.csv"), _ROWS)
        _csv(arena.path("v.csv"), _ROWS)
        words: tuple[str, ...] = ("data=files", "data.train=a.csv")
    else:
        arena.path("a.txt").write_text("".join(f"{text} {label}\n" for text, label in _ROWS * 5))
        words = ("data=text_files", "model=language_model", "data.train=a.txt", "data.batch_size=4")
    done = run_command("train", *words, *_SETTINGS, *more, "hydra.run.dir=r", cwd=arena.work)
    assert done.returncode == 0, done.stderr
    return arena.work / "r"


def _table(change: Callable[[list[tuple[str, int]]], list[tuple[str, int]]]) -> Callable[[Arena], None]:
    def plant(arena: Arena) -> None:
        _trained(arena, "table")
        _csv(arena.path("a.csv"), change(list(_ROWS)))

    return plant


def _text(change: Callable[[str], str]) -> Callable[[Arena], None]:
    def plant(arena: Arena) -> None:
        _trained(arena, "text")
        path = arena.path("a.txt")
        path.write_text(change(path.read_text()))

    return plant


def _cut(change: Callable[[list[tuple[str, int]]], list[tuple[str, int]]]) -> Callable[[Arena], None]:
    """A run that has ended in the middle of an epoch, whose other batches would not be those of before."""

    def plant(arena: Arena) -> None:
        _trained(arena, "table", "data.val=v.csv", "trainer.max_epochs=4", "trainer.max_steps=2", "data.batch_size=10")
        _csv(arena.path("a.csv"), change(list(_ROWS)))

    return plant


def _gone(name: str, kind: str) -> Callable[[Arena], None]:
    return lambda arena: (_trained(arena, kind), arena.path(name).unlink(), None)[2]


TABLES: dict[str, Callable[[list[tuple[str, int]]], list[tuple[str, int]]]] = {
    "other words": lambda rows: [(text.replace("film", "book"), label) for text, label in rows],
    "swapped labels": lambda rows: [(text, 1 - label) for text, label in rows],
    "one label swapped": lambda rows: [(rows[0][0], 1 - rows[0][1]), *rows[1:]],
    "fewer rows": lambda rows: rows[:-7],
    "more rows": lambda rows: rows + rows[:7],
    "another order": lambda rows: rows[::-1],
    "a third class": lambda rows: [*rows, ("so so", 2)],
    "one class alone": lambda rows: [(text, 1) for text, _ in rows],
    "no rows": lambda rows: [],
}
TEXTS: dict[str, Callable[[str], str]] = {
    "other words": lambda text: text.replace("film", "book"),
    "fewer lines": lambda text: text[: len(text) // 2],
    "more lines": lambda text: text + text,
    "another order": lambda text: "\n".join(sorted(text.splitlines())) + "\n",
}
_RESUME = (("train", "resume=r", "trainer.max_epochs=2"),)
_ACCEPT = (("train", "resume=r", "trainer.max_epochs=2", "accept_data_change=true"),)
CASES = [
    Case(f"a table with {name}", _table(change), _RESUME, codes=(2,), quick=name == "swapped labels")
    for name, change in TABLES.items()
]
CASES += [Case(f"a text with {name}", _text(change), _RESUME, codes=(2,)) for name, change in TEXTS.items()]
CASES += [
    Case("a table that is gone", _gone("a.csv", "table"), _RESUME, codes=(2,)),
    Case("a text that is gone", _gone("a.txt", "text"), _RESUME, codes=(2,)),
    Case("a table that is as it was", _table(lambda rows: rows), _RESUME, codes=(0,)),
    Case("a text that is as it was", _text(lambda text: text), _RESUME, codes=(0,)),
    Case("swapped labels that are accepted, validated on", _table(TABLES["swapped labels"]), _ACCEPT, codes=(2,)),
    Case(
        "swapped labels that are accepted",
        _table(TABLES["swapped labels"]),
        ((*_ACCEPT[0], "data.val=v.csv"),),
        codes=(0,),
    ),
    *(
        Case(
            f"{name} accepted in the middle of an epoch",
            _cut(change),
            (("train", "resume=r", "trainer.max_steps=9", "accept_data_change=true", *more),),
            codes=(code,),
            quick=name == "more rows",
        )
        for name, change, code, more in (
            ("more rows", TABLES["more rows"], 2, ()),
            ("fewer rows", TABLES["fewer rows"], 2, ()),
            ("swapped labels", TABLES["swapped labels"], 0, ()),  # the batches are the same
            ("other processes", lambda rows: rows, 2, ("trainer.devices=2", "trainer.strategy=ddp")),
        )
    ),
    Case("more lines that are accepted", _text(lambda text: text + text[: len(text) // 2]), _ACCEPT, codes=(0,)),
]
