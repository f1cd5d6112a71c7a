"""The import rules of the packages, and the limits on size and words, read from the source itself."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
COMMANDS = ("train", "evaluate", "predict", "generate", "results", "bench", "export", "new", "claims")
FILES = sorted(path for path in SOURCE.rglob("*.py"))

# What each package may import of the others; `nn` imports torch alone, and nobody imports a command.
BELOW: dict[str, set[str]] = {"errors": set(), "render": set(), "nn": set()}
BELOW["cli"] = {"errors", "render"}
BELOW["data"] = BELOW["tasks"] = {"nn", "errors"}
BELOW["runs"] = {"data", "cli", "render", "errors", "nn"}
BELOW["config"] = {"tasks", "runs", *BELOW["tasks"], *BELOW["runs"]}
BELOW["training"] = BELOW["inference"] = BELOW["leaderboard"] = BELOW["exporting"] = {"config", *BELOW["config"]}
BELOW["sweeps"] = {"training", "inference", "leaderboard", *BELOW["training"]}
BELOW["course"] = {"sweeps", *BELOW["sweeps"]}
BELOW["benchmarks"] = {"course", *BELOW["course"]}
EVERYTHING = {"course", "sweeps", "benchmarks", "exporting", *BELOW["sweeps"]}
HYDRA = {"config", "sweeps", *COMMANDS}  # who may import Hydra and OmegaConf
INTERNALS = re.compile(r"_internals\.py$")  # where private names of other libraries may stand
PUBLIC_UNDERSCORES = {"_fields", "_replace", "_asdict", "_make", "_exit"}  # of named tuples and of `os`

FROZEN = {"former_engine.py"}  # a rival of the benchmarks, kept as it was
LONGEST_FILE, LONGEST_FUNCTION = 600, 80
# Words that would have to be learnt first.
BANNED = re.compile(
    r"council|witness|keeper|conductor|\bboards?\b|\bpictures?\b|surprise|rehears|\btamed?\b|\bremembered\b|\btold\b"
    r"|\bdoors?\b|\bhouses?\b",
    re.IGNORECASE,
)
BANNED_NAMES = re.compile(r"\b(pick|note|told|found|tell|mend)\b")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


@cache
def imported(path: Path) -> frozenset[str]:
    """Every module a file imports anywhere, in functions too."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = inner & set(MODULES)
            names |= modules | ({str(node.module)} if len(modules) < len(inner) else set())
    return frozenset(names)


def package(module: str) -> str:
    """`data` for recur.data.text; an empty string for recur itself."""
    parts = module.split(".")
    return "plugins" if parts[0] == "hydra_plugins" else parts[1] if len(parts) > 1 else ""


def shown(path: Path) -> str:
    return str(path.relative_to(SOURCE))


@pytest.mark.parametrize("path", FILES, ids=shown)
def test_a_package_imports_only_what_lies_below(path: Path) -> None:
    own = package(module_name(path))
    allowed = BELOW.get(own, EVERYTHING) | {own, ""}
    if own == "":  # the Python interface
        allowed = EVERYTHING | {"api"}
    for module in imported(path):
        if module.split(".")[0] == "recur":
            assert package(module) in allowed, f"{shown(path)} imports {module}"
            assert package(module) not in COMMANDS, f"{shown(path)} imports the command {module}"


@pytest.mark.parametrize("path", [p for p in FILES if package(module_name(p)) == "nn"], ids=shown)
def test_nn_imports_torch_and_the_standard_library_alone(path: Path) -> None:
    for module in imported(path):
        top = module.partition(".")[0]
        compiler = top in ("numba", "llvmlite", "numpy") and path.parent.name == "jit"  # imported where there is one
        allowed = top == "torch" or compiler or top in sys.stdlib_module_names or module.startswith("recur.nn")
        assert allowed, f"{shown(path)} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=shown)
def test_only_commands_config_sweeps_and_plugins_import_hydra(path: Path) -> None:
    if package(module_name(path)) in HYDRA | {"plugins"}:
        return
    for module in imported(path):
        assert module.partition(".")[0] not in ("hydra", "omegaconf"), f"{shown(path)} imports {module}"


def test_no_circle_between_modules() -> None:
    edges = {name: {m for m in imported(path) if m in MODULES and m != name} for name, path in MODULES.items()}
    state: dict[str, int] = {}

    def visit(name: str, trail: list[str]) -> None:
        if state.get(name) == 2:
            return
        assert state.get(name) != 1, "circle: " + " -> ".join([*trail[trail.index(name) :], name])
        state[name] = 1
        for other in sorted(edges[name]):
            visit(other, [*trail, name])
        state[name] = 2

    for name in sorted(edges):
        visit(name, [])


@cache
def own_private_names() -> frozenset[str]:
    """Every private name that our source defines: of functions, classes, attributes and variables."""
    names = set()
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    return frozenset(name for name in names if name.startswith("_"))


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC_UNDERSCORES


@pytest.mark.parametrize("path", [p for p in FILES if not INTERNALS.search(p.name)], ids=shown)
def test_private_names_of_other_libraries_stand_in_their_file(path: Path) -> None:
    wrong = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and private(node.attr):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not own and node.attr not in own_private_names():
                wrong.append(f"line {node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.ImportFrom):
            parts = [*str(node.module).split("."), *(alias.name for alias in node.names)]
            if any(private(part) for part in parts):
                wrong.append(f"line {node.lineno}: {ast.unparse(node)}")
    assert not wrong, f"{shown(path)}: {'; '.join(wrong)}"


CHANGING = [path for path in FILES if path.name not in FROZEN]


@pytest.mark.parametrize(
    "path", [*CHANGING, *sorted((ROOT / "tests").rglob("*.py"))], ids=lambda p: str(p.relative_to(ROOT))
)
def test_files_and_functions_are_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE, f"{lines} lines"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", CHANGING, ids=shown)
def test_words_are_plain(path: Path) -> None:
    """In names, docstrings and comments; a text that stands for data (a corpus) is not looked at."""
    wrong = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            text = ast.get_docstring(node) or ""
            wrong += [
                f"docstring of {getattr(node, 'name', 'the module')}: {m.group(0)}" for m in BANNED.finditer(text)
            ]
        names = []
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.arg):
            names = [node.arg]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names = [node.id]
        for name in names:
            words = name.replace("_", " ")
            if BANNED.search(words) or BANNED_NAMES.fullmatch(name.strip("_")):
                wrong.append(f"line {node.lineno}: {name}")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        comment = line.partition("  # ")[2] if "  # " in line else line.strip() if line.strip().startswith("# ") else ""
        if comment and BANNED.search(comment):
            wrong.append(f"line {number}: {comment}")
    assert not wrong, f"{shown(path)}: {'; '.join(wrong)}"


@pytest.mark.parametrize("command", [*COMMANDS, "benchmarks.publish"])
def test_a_command_loads_nothing_heavy_before_there_is_work(command: str) -> None:
    code = f"import sys, recur.{command}; print([m for m in ('torch', 'lightning', 'datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
