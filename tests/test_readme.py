"""The README's commands run, as they stand there, on small files and few steps."""

import ast
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from conftest import EASY, ROOT, train
from support.commands import run_command
from support.real_sweeps import TINY, sweep

FEW = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=2", "test=false"]
FEW += ["trainer.accelerator=cpu"]
ELSEWHERE = ("source ", "torchrun ")  # other people's programs
CLUSTER = ("hydra/launcher=ray", "hydra/launcher=submitit_slurm")  # held in tests/sweeps/test_remote.py


def commands() -> list[str]:
    """Every command line of the README's bash blocks, continued lines joined, comments dropped."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"\s+#\s.*$", "", line).strip()
            if command and not command.startswith("#"):
                found.append(command)
    assert len(found) > 20
    return found


def of(*starts: str) -> list[str]:
    return [command for command in commands() if command.startswith(starts)]


def test_every_command_is_one_that_is_tested_here():
    known = (*ELSEWHERE, "make ", "python -m recur.")
    assert not [command for command in commands() if not command.startswith(known)]


@pytest.mark.parametrize("command", of("make "))
def test_make_has_the_target(command):
    done = subprocess.run(
        ["make", "-n", *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("pip", [True, False])
def test_an_environment_without_pip_is_completed(pip, tmp_path):
    """As `python3 -m venv` leaves one where it lacks ensurepip: no `make` after that came to its end."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    makes = '[ "$2" = venv ] && echo "made $*" && echo "#!/bin/sh" > .venv/bin/python'
    for path, script in ((".venv/bin/python", f"exit {0 if pip else 1}"), ("python3", f"{makes}\nexit 0")):
        (tmp_path / path).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / path).chmod(0o755)
    words = ["make", "install", "VENV=.venv", "PYTHON=./python3"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ("made -m venv .venv" in done.stdout) == (not pip)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository in which `make` writes its outputs."""
    folder = tmp_path_factory.mktemp("checkout") / "recur"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", ".venv", "outputs", "__pycache__", ".*_cache"))
    return folder


def make(checkout: Path, *words: str) -> tuple[list[str], dict[str, str]]:
    """`make` as somebody types it who has run `make install`: here, with this interpreter's environment."""
    ready = checkout.parent / "ready"
    ready.touch()  # newer than what it depends on
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    return ["make", f"VENV={sys.prefix}", f"READY={ready}", *words], environment


# What shortens a target; `make train` and `make lm` are short as they are.
SHORT = {
    "make sweep": " ".join(word for word in TINY if not word.startswith("model.net")),
    "make guides": "quiz --quick",
}
ENDS = {
    "make train": "recur.predict outputs/",
    "make lm": "perplexity",
    "make sweep": "results/index.html",
    "make guides": "index.html",
}


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in of("make ") if c in ENDS])
def test_make_runs_to_its_end(command, checkout):
    short = [f"ARGS={SHORT[command]}"] if command in SHORT else []
    words, environment = make(checkout, *shlex.split(command)[1:], *short)
    done = subprocess.run(
        words, cwd=checkout, env=environment, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert ENDS[command] in done.stdout


def test_every_target_of_the_readme_is_run_somewhere():
    elsewhere = {"make test"}  # this is it
    inline = set(re.findall(r"`(make [a-z-]+)`", (ROOT / "README.md").read_text(encoding="utf-8")))
    others = {"make help", "make install", "make tensorboard", "make torture"}  # no run of their own, or a test below
    assert {*of("make "), *inline} <= {*ENDS, *elsewhere, *others}


@pytest.mark.slow
def test_tensorboard_shows_the_metrics_of_every_run(checkout, trained_run):
    """`make tensorboard`, asked over HTTP for what its HParams tab shows."""
    shutil.copytree(trained_run, checkout / "outputs" / "example" / "one")
    words, environment = make(checkout, "tensorboard")
    with subprocess.Popen(
        words, cwd=checkout, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as server:
        try:
            lines = iter(server.stderr.readline, "")
            address = next(found[0] for line in lines if (found := re.search(r"http://localhost:\d+/", line)))
            request = urllib.request.Request(
                f"{address}data/plugin/hparams/experiment",
                data=json.dumps({"experimentName": ""}).encode(),
                headers={"Content-Type": "application/json"},
            )
            names: set[str] = set()
            for _ in range(60):  # it loads runs while it serves
                with urllib.request.urlopen(request, timeout=30) as answer:
                    names = {info["name"]["tag"] for info in json.load(answer).get("metricInfos", [])}
                if "result/test/accuracy" in names:
                    break
                time.sleep(1)
            assert "result/test/accuracy" in names
        finally:
            os.killpg(server.pid, signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("command", of("python -m recur.claims"))
def test_claims_are_measured(command, tmp_path):
    words = shlex.split(command)[3:]
    if words == ["--quick"]:
        pytest.skip("all claims, quick: an hour of two cores; tests/course holds each claim's runs")
    quick = [] if "--list" in words else ["--quick"]
    done = run_command("claims", *words, *quick, "--out", tmp_path / "claims", cwd=tmp_path, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rnn_forgets" in done.stdout


@pytest.fixture
def own_files(tmp_path: Path) -> Path:
    """The files that the README's examples name."""
    rows = [(f"so {word} number {i}", label) for i in range(30) for word, label in (("good", 1), ("bad", 0))]
    for name, columns in (("reviews.csv", ("review", "stars")), ("train.tsv", ("text", "label"))):
        mark = "," if name.endswith("csv") else "\t"
        lines = [mark.join(columns), *(f"{text}{mark}{label}" for text, label in rows)]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    for name in ("dev.tsv", "test.tsv"):
        (tmp_path / name).write_text((tmp_path / "train.tsv").read_text().replace("number", name))
    (tmp_path / "book.txt").write_text("once upon a time there was a cat and the cat sat\n" * 400)
    return tmp_path


def placed(words: list[str], run: Path, shared: Path) -> list[str]:
    """Fill in the README's placeholders."""
    data = shared / ("wikitext" if any("wikitext" in word for word in words) else "imdb")
    filled = [word.replace("FOLDER", str(data)).replace("RUN", str(run)) for word in words]
    return [word.replace("=input.txt", f"={shared / 'tinyshakespeare' / 'input.txt'}") for word in filled]


# Each takes seconds; `make test` runs one command of each kind, CI all of them.
SLOW = ("imdb", "wikitext2", "shakespeare", "advanced_lstm", "callbacks.")


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(c, marks=pytest.mark.slow if any(word in c for word in SLOW) else ())
        for c in of("python -m recur.train")
        if " -m " not in c.removeprefix("python -m")
    ],
)
def test_training_commands_run(command, own_files, trained_run, shared_data):
    own = own_files / "run"
    shutil.copytree(trained_run, own)  # a resumed run is written to
    words = placed(shlex.split(command)[3:], own, shared_data)
    if any(word.startswith("resume=") for word in words):
        words = [
            word for word in words if not word.startswith("trainer.max_epochs")
        ]  # nothing left to do, but it opens
    elif not any(word.startswith("--") for word in words):
        words += FEW
    if "experiment=imdb_fast" in words:  # whose word vectors take a minute and a half
        words += ["data.unlabelled=null", "data.word2vec.epochs=1", "data.word2vec.min_count=50"]
    done = run_command("train", *words, cwd=own_files)
    assert done.returncode == 0, done.stderr


SWEEPS = [c for c in of("python -m recur.train") if " -m " in c.removeprefix("python -m")]


@pytest.mark.parametrize("command", [c for c in SWEEPS if "resume=" not in c])
def test_sweep_commands_sweep_over_keys_that_exist(command, own_files):
    """Each value on its own composes."""
    words = [w for w in shlex.split(command)[3:] if w != "-m" and not w.startswith("hydra")]
    first = [word if "(" in word else re.sub(r"(=[^,\[\]{}]*),.*", r"\1", word) for word in words]
    keys = [re.sub(r"=.*", "=8", word) if "(" in word else word for word in first]
    done = run_command("train", *keys, "--cfg", "job", cwd=own_files)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in SWEEPS if "resume=" not in c and not any(one in c for one in CLUSTER)])
def test_sweep_commands_run_to_their_end(command, tmp_path):
    """On a small corpus, with two values of each list and two trials of a search."""
    words = [word for word in shlex.split(command)[3:] if word != "-m"]
    words = [re.sub(r"n_trials=\d+", "n_trials=2", word) for word in words]
    whole = re.compile(r"[({]|\[\[")  # what is no plain list
    words = [word if whole.search(word) else re.sub(r"(=[^,]*,[^,]*),.*", r"\1", word) for word in words]
    chosen = {word.partition("=")[0] for word in words}
    small = [word for word in TINY if word.partition("=")[0] not in chosen]
    done = sweep(tmp_path / "sweep", *words, *small)
    assert "results/index.html" in done.stdout
    assert (tmp_path / "sweep" / "results" / "index.html").is_file()


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of two finished sweeps, `SWEEP` and `OTHER_SWEEP`."""
    folder = tmp_path_factory.mktemp("sweeps")
    for name in ("SWEEP", "OTHER_SWEEP"):
        sweep(folder / name, *TINY, "seed=0,1")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", [*of("python -m recur.results"), *[c for c in SWEEPS if "resume=" in c]])
def test_commands_about_a_finished_sweep_run(command, sweeps):
    words = shlex.split(command)[2:]
    done = run_command(words[0].removeprefix("recur."), *words[1:], cwd=sweeps)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.slow
def test_python_runs_as_it_stands_there(own_files, monkeypatch, capsys):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    typed = '["trainer.max_epochs=1", "trainer=cpu"]'
    assert typed in block
    small = [word for word in EASY if not word.startswith(("trainer.accelerator", "trainer.max_epochs"))]
    block = block.replace(typed, repr(["trainer.max_epochs=1", "trainer=cpu", *small]))
    monkeypatch.chdir(own_files)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    exec(block, {})
    assert [line.split()[0] in ("negative", "positive") for line in capsys.readouterr().out.splitlines()[-2:]]


@pytest.mark.parametrize(
    "command",
    [c for c in of("python -m recur.predict", "python -m recur.evaluate", "python -m recur.export") if "RUN" in c],
)
def test_using_a_run_works(command, trained_run, shared_data, own_files):
    own = own_files / "run"
    shutil.copytree(trained_run, own)  # an export is written into it
    words = placed(shlex.split(command)[2:], own, shared_data)
    done = run_command(words[0].removeprefix("recur."), *words[1:], cwd=own_files)
    assert done.returncode == 0, done.stderr
    written = [own_files / word for word in words if word in ("answers.csv", "page.html")]
    assert done.stdout or written
    assert all(path.stat().st_size > 100 for path in written)


def test_it_is_short_and_names_every_package():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    packages = [path.parent.name for path in (ROOT / "src" / "recur").glob("*/__init__.py")]
    assert not [name for name in packages if f"`recur.{name}`" not in text]
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert links and not [link for link in links if not (ROOT / link).exists()]


@pytest.mark.parametrize("package", sorted((ROOT / "src" / "recur").glob("*/__init__.py")), ids=lambda p: p.parent.name)
def test_a_package_lists_its_modules_and_how_to_add_to_it(package):
    description = ast.get_docstring(ast.parse(package.read_text(encoding="utf-8"))) or ""
    modules = [path.stem for path in package.parent.glob("*.py") if path != package]
    assert set(re.findall(r"\b(\w+)\.py\b", description)) <= set(modules)
    own = [name for name in modules if not name.endswith("_internals")]
    assert not [name for name in own if not re.search(rf"\b{name}\b", description)]
    assert re.search(r"\bTo (add|offer|make) an?\b", description)


def test_figures_stand_between_their_marks():
    from recur.benchmarks.publish import replaced

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    before, _, rest = text.partition("<!-- results -->")
    _, _, after = rest.partition("<!-- /results -->")
    assert replaced(text, "results", "NEW") == f"{before}<!-- results -->\nNEW\n<!-- /results -->{after}"


def test_speed_tables_tell_every_bar_and_the_machine(tmp_path):
    from recur import bench
    from recur.benchmarks.publish import speed_tables

    bench.main(["loader", "--quick", "--device", "cpu", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "quick" / "bench.json").read_text())
    table = speed_tables(record)
    section = record["sections"]["loader"]
    assert all(f"| {bar['name']} |" in table for bar in section["bars"])
    assert section["machine"]["cpu"] in table


@pytest.mark.parametrize("command", of("python -m recur.generate"))
def test_generating_works(command, own_files):
    run = own_files / "language"
    words = ["data=text_files", "data.train=book.txt", "model=language_model", "data.batch_size=4"]
    train(run, *words, *FEW, f"data.train={own_files / 'book.txt'}")
    done = run_command("generate", *[word.replace("RUN", str(run)) for word in shlex.split(command)[3:]])
    assert done.returncode == 0, done.stderr
    assert "cat" in done.stdout
