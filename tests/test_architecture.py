"""The floors of the house: doors -> {tasks, data, sweeps} -> nn. Read from the import statements themselves."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "recur"
HYDRA_FREE = ("nn", "tasks", "data")


def imported(path: Path) -> set[str]:
    """Every module a file imports anywhere, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def rooms() -> list[tuple[str, Path]]:
    return [(path.relative_to(SOURCE).parts[0], path) for path in sorted(SOURCE.rglob("*.py"))]


def name(room_and_path: tuple[str, Path]) -> str:
    return str(room_and_path[1].relative_to(SOURCE))


@pytest.mark.parametrize("item", [item for item in rooms() if item[0] == "nn"], ids=name)
def test_nn_imports_torch_and_the_standard_library_alone(item):
    for module in imported(item[1]):
        top = module.partition(".")[0]
        allowed = top == "torch" or top in sys.stdlib_module_names or module.startswith("recur.nn") or module == "recur"
        assert allowed, f"{item[1]} imports {module}"


@pytest.mark.parametrize("item", [item for item in rooms() if item[0] in ("tasks", "data")], ids=name)
def test_tasks_and_data_meet_only_in_nn(item):
    room, path = item
    for module in imported(path):
        if module.startswith("recur."):
            assert module.startswith(("recur.nn", f"recur.{room}")), f"{path} imports {module}"


@pytest.mark.parametrize("item", [item for item in rooms() if item[0] in HYDRA_FREE], ids=name)
def test_only_doors_sweeps_and_plugins_know_hydra(item):
    for module in imported(item[1]):
        assert module.partition(".")[0] not in ("hydra", "omegaconf"), f"{item[1]} imports {module}"


@pytest.mark.parametrize("door", ["train", "evaluate", "predict", "generate", "bench"])
def test_a_door_loads_nothing_heavy_before_there_is_work(door):
    code = f"import sys, recur.{door}; print([m for m in ('torch', 'lightning', 'datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
