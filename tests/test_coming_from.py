"""Every command of the table for those who come from other libraries runs, on small files and few steps."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import EASY, ROOT, train
from recur.config.compose import command_line, compose_run
from support.commands import run_command
from support.real_sweeps import TINY, environment, sweep

TABLE = (ROOT / ".github" / "COMING_FROM.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (?!there)(?!---)(.+) \| (.+) \|$", TABLE, re.MULTILINE)
COMMANDS = [command for _, cell in ROWS for command in re.findall(r"`(python [^`]+)`", cell)]
FEW = ["trainer.limit_train_batches=2", "trainer.limit_val_batches=2", "test=false", "trainer.accelerator=cpu"]
FEW += ["baseline=false"]
USE = ("recur.predict", "recur.evaluate", "recur.generate", "recur.export")


def test_each_row_has_a_command() -> None:
    assert len(ROWS) > 40
    assert [there for there, cell in ROWS if "`python " not in cell] == ["`pack_padded_sequence`, pad tokens, masks"]


def test_weights_are_averaged_at_a_rate_that_stays() -> None:
    """NT-ASGD begins when validation has not improved for a while, which a rate that falls puts off to the end."""
    averaged = [command for command in COMMANDS if "callbacks.averaging" in command]
    assert len(averaged) == 2
    for command in averaged:
        config = compose_run(command_line(shlex.split(command)[3:])).config
        assert config["scheduler"]["_target_"].endswith("schedulers.none")
        interval = config["callbacks"]["averaging"]["interval"]
        assert config["trainer"]["max_epochs"] >= 8 * max(1, interval)


@pytest.fixture
def own_files(tmp_path: Path) -> Path:
    """The files that the table names."""
    rows = [(f"so {word} number {i}", label) for i in range(30) for word, label in (("good", 1), ("bad", 0))]
    for name, columns in (("reviews.csv", ("review", "stars")), ("train.tsv", ("text", "label"))):
        mark = "," if name.endswith("csv") else "\t"
        (tmp_path / name).write_text("\n".join([mark.join(columns), *(f"{text}{mark}{y}" for text, y in rows)]) + "\n")
    shutil.copy(tmp_path / "train.tsv", tmp_path / "test.tsv")
    for split in ("train", "test"):
        for number, (text, label) in enumerate(rows):
            place = tmp_path / "reviews" / split / ("pos" if label else "neg") / f"{number}.txt"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
    (tmp_path / "book.txt").write_text("once upon a time there was a cat and the cat sat\n" * 400)
    (tmp_path / "vectors.txt").write_text("\n".join(f"{word} 0.1 0.2 0.3" for word in ("film", "was", "the")) + "\n")
    return tmp_path


def filled(command: str, place: Path, run: Path, writer: Path) -> list[str]:
    """The words behind `python -m`, with runs of one's own in the place of RUN and WRITER, and real data."""
    for name, source in (("RUN", run), ("WRITER", writer)):
        if name in command:
            shutil.copytree(source, place / name)
            command = re.sub(rf"\b{name}\b", str(place / name), command)
    for name, folder in (("FOLDER", "imdb"), ("WIKITEXT", "wikitext")):
        if name in command:
            data = ROOT.parent / "shared" / "data" / folder
            if not data.is_dir():
                pytest.skip(f"no real data at {data}")
            command = command.replace(name, str(data))
    return shlex.split(command)[1:]


def kind(command: str) -> str:
    words = shlex.split(command)
    return words[2] if words[1] == "-m" else "-c"


@pytest.fixture(scope="session")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a language run on streams of words."""
    folder = tmp_path_factory.mktemp("runs") / "writer"
    small = ["experiment=lm", "trainer.max_epochs=1", "scheduler=none"]
    train(folder, *small, *FEW, "data.synthetic.train_size=3000", "data.synthetic.val_size=500", "logger=none")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if kind(c) in USE])
def test_a_run_is_used(command: str, own_files: Path, trained_run: Path, writer: Path) -> None:
    _, module, *words = filled(command, own_files, trained_run, writer)
    done = run_command(module.removeprefix("recur."), *words, cwd=own_files)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if kind(c) == "recur.train" and " -m " not in c[10:]])
def test_a_run_is_trained(command: str, own_files: Path, trained_run: Path, writer: Path) -> None:
    _, _, *words = filled(command, own_files, trained_run, writer)
    if not any(word.startswith("resume=") for word in words):
        words += FEW if "debug=" not in command else EASY
        words += [] if "trainer.max_epochs" in command else ["trainer.max_epochs=1"]
    done = run_command("train", *words, cwd=own_files)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if kind(c) == "recur.train" and " -m " in c[10:]])
def test_a_sweep_is_run(command: str, tmp_path: Path) -> None:
    words = [word for word in shlex.split(command)[3:] if word != "-m"]
    words = [word for word in words if not word.startswith("hydra.sweeper.n_trials")]
    words += ["hydra.sweeper.n_trials=2"] if "optuna" in command else []
    assert "results/index.html" in sweep(tmp_path / "s", *words, *TINY, "test=false", env=environment()).stdout


@pytest.mark.slow
def test_the_others_run(own_files: Path, trained_run: Path, writer: Path) -> None:
    sweep(own_files / "SWEEP", *TINY, "seed=0,1", "test=false")
    others = [c for c in COMMANDS if kind(c) not in (*USE, "recur.train")]
    assert len(others) == 4
    for command in others:
        done = subprocess.run(
            [sys.executable, *filled(command, own_files, trained_run, writer)],
            cwd=own_files, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert (own_files / "curves.png").read_bytes().startswith(b"\x89PNG") and (own_files / "my_models").is_dir()
