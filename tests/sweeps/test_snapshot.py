"""A sweep's jobs run the code as it stood when the sweep began, and never code that a stranger's sweep brings along."""

import io
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from recur.errors import UserError
from recur.runs.metrics import read_record
from recur.sweeps import snapshot
from recur.sweeps.snapshot import ARCHIVE, FOLDER
from support.real_sweeps import TINY, environment, sweep

OWN = '''"""A callback of our own."""
from lightning.pytorch import Callback


class Edited(Callback):
    """Rewrites its own file, as somebody does who works on it while a sweep runs."""

    def on_fit_start(self, trainer, pl_module):
        open(SOURCE, "w").write(EDITED)
'''

EDITED = """from lightning.pytorch import Callback
class Edited(Callback):
    def on_fit_start(self, trainer, pl_module):
        raise RuntimeError('edited')
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECUR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in a git work tree that the user trusts; its one file."""
    tree = tmp_path / "tree"
    (tree / "editedpackage").mkdir(parents=True)
    (tree / "editedpackage" / "__init__.py").write_text("")
    source = tree / "editedpackage" / "callbacks.py"
    source.write_text(OWN.replace("SOURCE", repr(str(source))).replace("EDITED", repr(EDITED)))
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]):
        subprocess.run(["git", *words], cwd=tree, check=True)
    monkeypatch.setenv("RECUR_TRUST", "editedpackage")
    monkeypatch.setenv("PYTHONPATH", f"{os.environ.get('PYTHONPATH', '')}{os.pathsep}{tree}".lstrip(os.pathsep))
    monkeypatch.syspath_prepend(tree)
    return source


def test_a_snapshot_is_quick_and_says_what_it_is_of(cache: Path, own: Path, tmp_path: Path) -> None:
    own.write_text(own.read_text() + "\n# changed\n")
    snapshot.take(tmp_path / "first")
    began = time.process_time()
    code = snapshot.take(tmp_path / "s")
    assert time.process_time() - began < 1
    record = json.loads((tmp_path / "s" / FOLDER / "code.json").read_text())
    assert record["sha256"] == code.sha256 == code.folder.name
    (mine,) = (one for one in record["sources"] if one["to"] == "src/editedpackage")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=own.parent, capture_output=True, text=True, check=True)
    assert mine["commit"] == head.stdout.strip() and mine["changed"]
    assert "+# changed" in (tmp_path / "s" / FOLDER / "changes.diff").read_text()
    files = {path.relative_to(code.folder).as_posix() for path in code.folder.rglob("*") if path.is_file()}
    assert {"src/recur/train.py", "src/recur/templates/run.html", "src/editedpackage/callbacks.py"} <= files
    assert "conf/train.yaml" in files or "src/recur/conf/train.yaml" in files
    assert "src/hydra_plugins/recur_sweeps/launcher.py" in files
    assert not os.access(code.folder / "src/recur/train.py", os.W_OK) or os.geteuid() == 0
    assert snapshot.take(tmp_path / "s2").sha256 == code.sha256
    own.write_text(own.read_text() + "# again\n")
    assert snapshot.take(tmp_path / "s3").sha256 != code.sha256


def test_typed_folders_of_configs_are_in_it(cache: Path, tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("config-dir", "config-path")}
    for name, folder in folders.items():
        folder.mkdir()
        (folder / "train.yaml").write_text(name)
    code = snapshot.take(tmp_path / "s", folders)
    flags = ["--config-dir", "a", "--config-path", "b", "--config-name", "c"]
    kept = [str(code.folder / name) for name in folders]
    assert code.flags(flags) == ["--config-dir", kept[0], "--config-path", kept[1], "--config-name", "c"]
    assert [Path(folder, "train.yaml").read_text() for folder in kept] == list(folders)


@pytest.mark.slow
def test_a_process_imports_from_it_wherever_it_is_started(cache: Path, own: Path, tmp_path: Path) -> None:
    code = snapshot.take(tmp_path / "s")
    own.write_text("raise RuntimeError('edited')")
    words = "import recur, recur.config.compose as c, editedpackage.callbacks as e, hydra_plugins.recur_sweeps as h"
    words += "; from recur.runs.metrics import provenance as p"
    words += "; print(recur.__file__, c.conf_dir(), e.__file__, h.__file__, p()['commit'], sep='\\n')"
    for place in (Path(snapshot.recur.__file__).parents[1], own.parents[1], tmp_path):
        surroundings = {**os.environ, **code.environment()}
        done = subprocess.run(
            [sys.executable, "-c", words], cwd=place, env=surroundings, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        *files, commit = done.stdout.splitlines()
        assert all(Path(file).is_relative_to(code.folder) for file in files), files
        assert commit == str(code.commit)


def test_another_machine_makes_it_from_the_sweeps_archive(cache: Path, tmp_path: Path, monkeypatch) -> None:
    code = snapshot.take(tmp_path / "s")
    files = {p.relative_to(code.folder): p.read_bytes() for p in code.folder.rglob("*.py")}
    monkeypatch.setenv("RECUR_CACHE", str(tmp_path / "elsewhere"))
    assert not code.folder.exists()
    assert code.environment({})["PYTHONPATH"].startswith(str(tmp_path / "elsewhere"))
    assert {p.relative_to(code.folder): p.read_bytes() for p in code.folder.rglob("*.py")} == files

    monkeypatch.setenv("RECUR_CACHE", str(tmp_path / "third"))
    archive = tmp_path / "s" / FOLDER / ARCHIVE
    content = archive.read_bytes()
    evil = io.BytesIO(content)
    with zipfile.ZipFile(evil, "a") as more:
        more.writestr("src/recur/evil.py", "raise SystemExit(7)")
    climbing = io.BytesIO(content)
    with zipfile.ZipFile(climbing, "a") as more:
        more.writestr("../../evil.py", "")
    for wrong in (evil.getvalue(), climbing.getvalue(), content[: len(content) // 2], b""):
        archive.write_bytes(wrong)
        with pytest.raises(UserError, match=r"source\.zip (is not the code|cannot be read)"):
            code.environment({})
    assert not (tmp_path / "third").exists()


def test_a_resumed_sweep_runs_only_code_that_this_user_ran(cache: Path, own: Path, tmp_path: Path, monkeypatch) -> None:
    code = snapshot.take(tmp_path / "s")
    assert snapshot.of_sweep(None, tmp_path / "s") is None
    assert snapshot.of_sweep(code.summary(), tmp_path / "s") == code
    own.write_text(own.read_text() + "# edited since\n")
    assert snapshot.of_sweep(code.summary(), tmp_path / "s") == code, "from the cache"
    monkeypatch.setenv("RECUR_CACHE", str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"ran code that no sweep has run .*hydra\.launcher\.snapshot=false"):
        snapshot.of_sweep(code.summary(), tmp_path / "s")
    assert not (tmp_path / "empty").exists()
    now = snapshot.take(tmp_path / "t")
    monkeypatch.setenv("RECUR_CACHE", str(tmp_path / "fresh"))
    assert snapshot.of_sweep(now.summary(), tmp_path / "t").folder.is_dir(), "the code here is the same"
    changed = now.folder / "src" / "editedpackage" / "callbacks.py"
    changed.chmod(0o644)
    changed.write_text("raise SystemExit(7)")
    own.write_text(own.read_text() + "# and again\n")
    with pytest.raises(UserError, match="ran code that no sweep has run"):
        snapshot.of_sweep(now.summary(), tmp_path / "t")
    for damaged in ({}, {"sha256": "../../x"}, {"sha256": 5}, "x", []):
        with pytest.raises(UserError, match="names no snapshot"):
            snapshot.of_sweep(damaged, tmp_path / "t")


def edit(path: Path) -> None:
    path.chmod(0o644)
    path.write_text("raise SystemExit(7)")


def add(path: Path) -> None:
    path.with_name("more.py").write_text("")


@pytest.mark.parametrize("damage", [edit, Path.unlink, add])
def test_a_damaged_snapshot_is_written_anew(cache: Path, own: Path, tmp_path: Path, damage) -> None:
    code = snapshot.take(tmp_path / "s")
    path = code.folder / "src" / "editedpackage" / "callbacks.py"
    whole = {p.relative_to(code.folder): p.read_bytes() for p in code.folder.rglob("*.py")}
    for again in (lambda: snapshot.of_sweep(code.summary(), tmp_path / "s"), lambda: snapshot.take(tmp_path / "t")):
        damage(path)
        assert again().sha256 == code.sha256
        assert {p.relative_to(code.folder): p.read_bytes() for p in code.folder.rglob("*.py")} == whole
    assert [place.name for place in code.folder.parent.iterdir()] == [code.sha256], "nothing is left beside it"


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was named was a file of the snapshot, which nobody had asked for."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("RECUR_CACHE", str(tmp_path / "file" / "cache"))
    said = r"^RECUR_CACHE must be a folder that can be written \(Not a directory\), got .*launcher\.snapshot=false"
    with pytest.raises(UserError, match=said):
        snapshot.take(tmp_path / "s")


def test_a_compiled_file_that_vanishes_while_it_is_copied_only_costs_time(
    cache: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another process, which imports the same code, replaces it."""
    tried = []

    def fails(source: Path, *_: object, **__: object) -> None:
        tried.append(source)
        raise shutil.Error([(str(source), "there", "No such file or directory")])

    (own.parent / "__pycache__").mkdir()
    monkeypatch.setattr(snapshot.shutil, "copytree", fails)
    code = snapshot.take(tmp_path / "s")
    assert own.parent / "__pycache__" in tried
    assert (code.folder / "src" / "editedpackage" / "callbacks.py").read_text() == own.read_text()


@pytest.mark.slow
def test_edits_during_a_sweep_do_not_reach_its_jobs(cache: Path, own: Path, tmp_path: Path) -> None:
    """The first job edits the package that all of them use."""
    original = own.read_text()
    words = [*TINY, "test=false", "logger=none", "trainer.max_epochs=1", "hydra.launcher.cpu_slots=1", "seed=0,1"]
    words += ["+callbacks.own._target_=editedpackage.callbacks.Edited"]
    done = sweep(tmp_path / "s", *words, env=environment(**os.environ))
    assert "as it stood when the sweep began" in done.stdout
    assert "edited" in own.read_text()
    records = [read_record(tmp_path / "s" / str(number)) for number in (0, 1)]
    assert all(records) and records[0]["commit"] == records[1]["commit"]
    assert (tmp_path / "s" / "0" / "output.log").read_text().startswith("$ PYTHONPATH=")

    # What failed is run again with the same code, from the sweep's own record.
    for path in (tmp_path / "s" / "1").glob("metrics.json"):
        path.unlink()
    sweep(tmp_path / "s", f"resume={tmp_path / 's'}", env=environment(**os.environ))
    assert read_record(tmp_path / "s" / "1")

    own.write_text(original)
    off = sweep(tmp_path / "t", *words, "hydra.launcher.snapshot=false", env=environment(**os.environ), code=1)
    assert "RuntimeError: edited" in off.stdout + off.stderr
    assert not (tmp_path / "t" / FOLDER).exists()
