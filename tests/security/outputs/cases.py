"""Commands that write where they are told to: exports, pages, charts, projects; and packages that are no user's."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from security.arena import Arena, Case, Done
from security.bases import FILE, NEW, a_checkpoint, a_run, a_sweep, change_checkpoint, change_configs, pickled, put

# ------------------------------------------------------------------------------------------------------------- exports
_EXPORT = ("export", "r", "--format", "safetensors")


def _at(name: str, make: Callable[[Arena, Path], object]) -> Callable[[Arena], None]:
    def plant(arena: Arena) -> None:
        make(arena, a_run(arena) / name)

    return plant


def _link(target: Callable[[Arena], Path]) -> Callable[[Arena, Path], None]:
    def make(arena: Arena, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(target(arena), path)

    return make


def _foreign_export(arena: Arena) -> None:
    """A folder that has the names of an export and one file more."""
    a_run(arena)
    for name, text in (("config.json", '{"library_name": "recur"}'), ("thesis.txt", "the only copy\n")):
        arena.path(f"mine/{name}").write_text(text)


def _other_model(arena: Arena) -> None:
    """Somebody else's model with the usual names."""
    a_run(arena)
    for name, text in (("config.json", '{"model_type": "bert"}'), ("model.safetensors", "x"), ("README.md", "mine")):
        arena.path(f"mine/{name}").write_text(text)


def _deep(arena: Arena) -> None:
    a_run(arena)
    arena.path("mine/config.json").write_text('{"library_name": "recur"}')
    arena.path("mine/README.md/thesis.txt").write_text("the only copy\n")


def _linked_inner(arena: Arena) -> None:
    a_run(arena)
    arena.path("mine/config.json").write_text('{"library_name": "recur"}')
    os.symlink(arena.victim / "letter.txt", arena.path("mine/README.md"))


def _links(arena: Arena) -> None:
    a_run(arena)
    os.symlink(arena.victim, arena.path("out"))


def _draft(arena: Arena) -> None:
    """What stands where an export would be prepared."""
    a_run(arena)
    os.symlink(arena.victim, arena.path(".out.part"))
    arena.path(f".out.{os.getpid()}.part").write_text("mine\n")


def _private(arena: Arena) -> None:
    """The record of the run is a link to something of the user's own."""
    run = a_run(arena)
    (arena.home / "keys.json").write_text(json.dumps({"name": "the user's key", "data": {"key": "the user's key"}}))
    (run / "metrics.json").unlink()
    os.symlink(arena.home / "keys.json", run / "metrics.json")


def _no_key(arena: Arena, done: Done) -> Iterable[str]:
    for path in arena.work.rglob("*"):
        if path.is_file() and not path.is_symlink() and b"the user's key" in path.read_bytes():
            yield f"secret: the user's key is in {path.relative_to(arena.root)}"


def _case(
    name: str, plant: Callable[[Arena], object], *more: str, codes: Sequence[int] = (2,), quick: bool = False
) -> Case:
    return Case(name, plant, ((*_EXPORT, *more),), own=("r/export", "out"), codes=codes, quick=quick)


CASES = [
    _case("an export onto a folder", a_run, "--out", "../victim"),
    _case("an export onto a folder, by force", a_run, "--out", "../victim", "--force", quick=True),
    _case("an export onto the home, by force", a_run, "--out", "../home", "--force"),
    _case("an export onto the run, by force", a_run, "--out", "r", "--force"),
    _case("an export onto here, by force", a_run, "--out", ".", "--force"),
    _case("an export onto a file", a_run, "--out", "../victim/letter.txt"),
    _case("an export onto a file, by force", a_run, "--out", "../victim/letter.txt", "--force"),
    _case("an export below a file", a_run, "--out", "../victim/letter.txt/x", "--force"),
    _case("an export through the user's link, by force", _links, "--out", "out", "--force"),
    _case("an export onto a folder with one file more", _foreign_export, "--out", "mine", "--force"),
    _case("an export onto another model", _other_model, "--out", "mine", "--force"),
    _case("an export onto a folder with a folder", _deep, "--out", "mine", "--force"),
    _case("an export onto a folder with a link", _linked_inner, "--out", "mine", "--force"),
    _case("a draft that is a link", _draft, "--out", "out", codes=(0,)),
    *(
        _case(f"{name} is a link to {what}{', by force' * bool(force)}", _at(name, _link(target)), *force)
        for name in ("export", "export/safetensors")
        for what, target in (
            ("a folder", lambda arena: arena.victim),
            ("nothing yet", lambda arena: arena.victim / "new"),
            ("a file", lambda arena: arena.victim / "letter.txt"),
        )
        for force in ((), ("--force",))
    ),
    Case("a record that is a link", _private, ((*_EXPORT, "--out", "out"),), own=("out",), check=_no_key),
    _case("an export, twice", lambda arena: _twice(arena), "--force", codes=(0,)),
]


def _twice(arena: Arena) -> None:
    a_run(arena)
    done = arena.call(_EXPORT, ("r/export",))
    assert done.code == 0, done.err


# ---------------------------------------------------------------------------------------------------- pages and charts


def _site(name: str, text: str) -> Callable[[Arena], None]:
    def plant(arena: Arena) -> None:
        a_sweep(arena, complete=2)
        arena.path(f"site/{name}").write_text(text)

    return plant


def _results(out: str) -> tuple[tuple[str, ...], ...]:
    return (("results", "s", "--out", out),)


def _page_by_link(arena: Arena) -> None:
    _site("index.html", "<p>mine")(arena)
    os.symlink(arena.work / "site", arena.work / "out")


def _page_again(arena: Arena) -> None:
    a_sweep(arena, complete=2)
    done = arena.call(_results("site")[0], ("site",))
    assert done.code == 0, done.err


def _linked_page(arena: Arena) -> None:
    a_sweep(arena, complete=2)
    os.symlink(arena.victim / "page.html", arena.path("site/index.html"))


CASES += [
    Case(
        f"results onto {name} of somebody",
        _site(name, text),
        _results("site"),
        own=(),
        codes=(2,),
        quick=name == "index.html",
    )
    for name, text in (
        ("index.html", "<!doctype html><p>mine"),
        ("leaderboard.md", "# mine\n"),
        ("runs.csv", "a,b\n"),
        ("curves.png", "x"),
        ("settings.png", "x"),
    )
]
CASES += [
    Case("results onto the user's link to a site", _page_by_link, _results("out"), own=(), codes=(2,)),
    Case("results onto a page that is a link", _linked_page, _results("site"), own=(), codes=(2,)),
    Case("results onto a file", _site("x", ""), _results("../victim/letter.txt"), own=(), codes=(2,)),
    Case(
        "results onto a site without such names", _site("mine.html", "x"), _results("site"), own=("site",), codes=(0,)
    ),
    Case("results, twice", _page_again, _results("site"), own=("site",), codes=(0,)),
]


def _chart(name: str) -> Callable[[Arena], None]:
    return lambda arena: (a_run(arena), arena.path(name).write_bytes(b"\x89PNG mine"), None)[2]


def _chart_again(arena: Arena) -> None:
    a_run(arena)
    done = arena.call(_gates("new.png")[0], ("new.png",))
    assert done.code == 0, done.err


def _gates(path: str) -> tuple[tuple[str, ...], ...]:
    return (("predict", "r", "a fine film", "--gates", path),)


CASES += [
    Case(f"a chart onto a {suffix} of somebody", _chart(f"mine{suffix}"), _gates(f"mine{suffix}"), own=(), codes=(2,))
    for suffix in (".png", ".svg", ".pdf")
]
CASES += [
    Case("a new chart", a_run, _gates("new.png"), own=("new.png",), codes=(0,)),
    Case("a chart, twice", _chart_again, _gates("new.png"), own=("new.png",), codes=(0,)),
    Case(
        "answers onto somebody's table",
        lambda arena: (a_run(arena), arena.path("mine.csv").write_text("a\n"), None)[2],
        (("predict", "r", "a film", "--out", "mine.csv"),),
        own=(),
        codes=(2,),
    ),
]

# --------------------------------------------------------------------------------------------------------- new projects
NAMES = (
    "../evil",
    "/evil",
    "a/b",
    "..",
    ".",
    "-x",
    "",
    "os",
    "recur",
    "torch",
    "A",
    "a b",
    "a;touch x",
    "a\nb",
    "import",
)


def _taken(make: Callable[[Arena, Path], object]) -> Callable[[Arena], None]:
    return lambda arena: (make(arena, arena.path("mine")), None)[1]


PLACES: dict[str, Callable[[Arena, Path], object]] = {
    "a folder": lambda arena, path: (path.mkdir(), (path / "thesis.txt").write_text("x")),
    "an empty folder": lambda arena, path: path.mkdir(),
    "a file": lambda arena, path: path.write_text("x"),
    "a link to a folder": lambda arena, path: os.symlink(arena.victim, path),
    "a link to nothing": lambda arena, path: os.symlink(arena.victim / "new", path),
    "a pipe": lambda arena, path: os.mkfifo(path),
}
CASES += [
    Case(
        f"a project called {name!r}", lambda arena: None, (("new", name),), own=(), codes=(2,), quick=name == "../evil"
    )
    for name in NAMES
]
CASES += [
    Case(f"a project where {kind} is", _taken(make), (("new", "mine"),), own=(), codes=(2,))
    for kind, make in PLACES.items()
]
CASES += [
    Case(
        "a project in a file",
        lambda arena: None,
        (("new", "mine", "--into", "../victim/letter.txt"),),
        own=(),
        codes=(2,),
    ),
    Case("a project", lambda arena: None, (("new", "mine"),), own=("mine",), codes=(0,)),
]

# ---------------------------------------------------------------------------------------------------------------- trust
PACKAGES = (
    *(
        "os",
        "subprocess",
        "builtins",
        "pickle",
        "importlib",
        "torch",
        "recur",
        "hydra",
        "lightning",
        "numpy",
        "__main__",
    ),
    *("os.path", "my,os", "../evil", "evil.py", "evil;touch x", "a b", "", ",", "*", ".", "os.", "not_installed_here"),
)


def _distrusted(arena: Arena) -> None:
    """Configs that would do harm if the package were trusted."""
    run = a_run(arena)
    arena.path("evil.py").write_text(f"import os\nos.system({arena.shell!r})\n")
    change_configs(run, lambda config: put(config, "model.net", arena.system))


CASES += [
    Case(
        f"trust in {package!r}",
        _distrusted,
        (("predict", "r", "a film", "--trust", package), ("train", "resume=r", "--trust", package)),
        codes=(2,),
        quick=package == "os",
    )
    for package in PACKAGES
]

# ----------------------------------------------------------------------------------------------- weights to begin with
_FROM = (("train", "init_from=r", *NEW),)


def _of_pickles(arena: Arena) -> None:
    for path in (a_run(arena) / "checkpoints").glob("*.ckpt"):
        path.write_bytes(pickled(arena))


def _of_pipes(arena: Arena) -> None:
    for path in (a_run(arena) / "checkpoints").glob("*.ckpt"):
        path.unlink()
        os.mkfifo(path)


def _of_code(place: str) -> Callable[[Arena], None]:
    return lambda arena: change_configs(a_run(arena), lambda config: put(config, place, arena.system))


def _of_many(arena: Arena) -> None:
    for path in (a_run(arena) / "checkpoints").glob("*.ckpt"):
        change_checkpoint(path, lambda c: put(c["recur"], "config.model.net.hidden_size", 1 << 30))


def _file(arena: Arena) -> None:
    a_checkpoint(arena, lambda c: put(c["recur"], "config.model.net", arena.system))


CASES += [
    Case("weights of pickles", _of_pickles, _FROM, own=("new",), codes=(2,)),
    Case("weights of pipes", _of_pipes, _FROM, own=("new",), codes=(2,)),
    Case("weights of a huge model", _of_many, _FROM, own=("new",), codes=(2,)),
    Case(
        "weights of a file that names code",
        _file,
        (("train", f"init_from={FILE[0][1]}", *NEW),),
        own=("new",),
        codes=(2,),
    ),
    Case(
        "weights of a run that is somebody's letter",
        a_run,
        (("train", "init_from=../victim/letter.txt", *NEW),),
        own=(),
        codes=(2,),
    ),
    Case("weights of a valid run", a_run, _FROM, own=("new",), codes=(0,)),
]
CASES += [
    Case(
        f"weights of a run that names code at {place}", _of_code(place), _FROM, own=("new",), quick=place == "model.net"
    )
    for place in ("model", "model.net", "model.net.cell", "data", "callbacks.evil", "optimizer")
]
