"""Where configs come from, and what of a resumed command is typed once more."""

import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from recur.config.compose import Composed, command_line, compose_run, conf_dir, typed_again, typed_words
from recur.config.words import as_text, in_quotes, quoted
from recur.errors import UserError
from recur.runs import requeue, trust
from recur.runs.journal import Journal
from recur.sweeps.commands import resume_command
from recur.training.failures import Stopped, leave
from recur.training.start import with_precision


@pytest.fixture
def own_configs(tmp_path: Path) -> Path:
    """A copy of the config folder with another learning rate."""
    folder = tmp_path / "own conf"
    shutil.copytree(conf_dir(), folder, ignore=shutil.ignore_patterns("claims"))
    root = folder / "train.yaml"
    root.write_text(root.read_text().replace("seed: 0", "seed: 77"))
    assert "seed: 77" in root.read_text()
    return folder


def test_an_installed_package_takes_its_own_configs_and_no_strangers(tmp_path: Path) -> None:
    """As `pip install --target vendor` lays it out: the stranger's folder is where a checkout has its configs."""
    package = tmp_path / "vendor" / "recur"
    for folder in (tmp_path / "conf", package / "conf"):
        folder.mkdir(parents=True)
        (folder / "train.yaml").touch()
    assert conf_dir(package) == package / "conf"
    (package / "conf" / "train.yaml").unlink()
    assert conf_dir(package) == tmp_path / "conf"
    assert (conf_dir() / "train.yaml").is_file()


@pytest.mark.parametrize("flag", ["--config-path", "-cp"])
def test_another_folder_of_configs_makes_a_run(own_configs: Path, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    """As a job of a sweep with that flag is started, and relative to where it is typed."""
    monkeypatch.chdir(own_configs.parent)
    for words in ([flag, str(own_configs)], [flag, own_configs.name], [f"{flag}={own_configs.name}"]):
        line = command_line([*words, "optimizer.lr=0.5", "trainer=cpu"])
        assert not line.hydra and str(own_configs) in line.words
        config = compose_run(line).config
        assert config["seed"] == 77 and config["optimizer"]["lr"] == 0.5


def test_a_folder_of_configs_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for flag in ("--config-path", "--config-dir"):  # of the second Hydra said a warning, and trained without it
        with pytest.raises(UserError, match=f"{flag} must name a folder of configs"):
            command_line([flag, str(tmp_path / "absent")])


def test_a_key_of_ones_own_may_be_used_in_the_name_of_the_run_s_folder(tmp_path: Path) -> None:
    words = ["+group=a", "+other=b", f"hydra.run.dir={tmp_path}/${{group}}/x"]
    composed = compose_run(command_line(words))
    assert composed.folder == tmp_path / "a" / "x" and "group" in composed.used and "other" not in composed.used


def test_a_run_whose_folder_is_a_number_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep's jobs are called so, and Hydra read a number."""
    monkeypatch.chdir(tmp_path)
    for typed in ("resume=3", "resume='3'", "+resume=3"):
        assert command_line([typed]).words == ("resume='3'",)


@pytest.mark.parametrize("flag", ["--config-path", "--config-dir"])
def test_aliases_that_would_take_all_memory_are_refused(own_configs: Path, flag: str) -> None:
    layers = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 15))
    (own_configs / "experiment" / "bomb.yaml").write_text(f"# @package _global_\na0: &a0 [1]\n{layers}")
    with pytest.raises(UserError, match=r"bomb\.yaml has aliases"):
        command_line([flag, str(own_configs), "experiment=bomb"])


def test_a_job_that_slurm_starts_again_types_what_a_config_may_not_say(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    typed = ["logger=wandb", "data.path=org/name", "seed=3", f"hydra.run.dir={tmp_path}"]
    line = command_line(typed, {"SLURM_RESTART_COUNT": "1"})
    assert line.words == (f"resume={tmp_path}", "++logger.wandb.offline=false", "++data.path=org/name")


@pytest.mark.slow
@pytest.mark.parametrize(
    "typed",
    [
        ["data.cache_dir={}/else where"],
        ["data=files", "data.train={}/a.csv", "data.allow_pickle=true"],
        ["logger=wandb"],
        ["logger=wandb", "logger.wandb.offline=true"],
        ["logger=[csv,wandb]"],
        ["logger=mlflow", "logger.mlflow.tracking_uri=http://elsewhere:1"],
    ],
    ids=["cache", "pickle", "wandb", "wandb offline", "two", "mlflow"],
)
def test_the_line_that_says_how_to_go_on_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str], typed) -> None:
    """What a run's own config may not say by itself stands in it."""
    words = [word.format(tmp_path) for word in typed]
    (tmp_path / "a.csv").write_text("text,label\ngood,1\nbad,0\n")
    folder = tmp_path / "run"
    begun = compose_run(command_line([*words, "trainer=cpu", f"hydra.run.dir={folder}"]))
    written(begun, folder)
    leave(Stopped(signal.SIGTERM), begun, words, saved=True)
    again = shlex.split(capsys.readouterr().err.partition("go on with: ")[2])
    assert again[1:3] == ["-m", "recur.train"] and Path(shutil.which(again[0]) or "").samefile(sys.executable)
    composed = compose_run(command_line(again[3:]))
    assert composed.resumed and composed.config["data"] == begun.config["data"]
    assert composed.config["logger"] == begun.config["logger"]


OWN = """# @package _global_
defaults:
  - override /logger: wandb
  - override /trainer: cpu
data:
  cache_dir: ${oc.env:ELSEWHERE}/a b
  allow_pickle: true
model:
  _target_: json.loads
trainer:
  default_root_dir: /else/where
callbacks:
  parts: {all: [{_target_: os.getcwd, n: 1}, null, "2024"]}
"""
SAID = ("model._target_", "callbacks.parts.all", "data.cache_dir", "data.allow_pickle", "trainer.default_root_dir")


@pytest.mark.slow
def test_what_the_users_own_file_holds_is_said_again(tmp_path: Path, monkeypatch, capsys) -> None:
    """Never what the run's own folder holds: of a command that went on only what was typed counts."""
    monkeypatch.setenv("ELSEWHERE", "/scratch")
    monkeypatch.setenv("RECUR_TRUST", "")  # which `--trust` sets
    file, folder = tmp_path / "own" / "experiment" / "mine.yaml", tmp_path / "run"
    file.parent.mkdir(parents=True)
    file.write_text(OWN)
    typed = ["logger.wandb.offline=true", f"hydra.run.dir={folder}"]
    words = ["--trust", "pytest", "--config-dir", str(tmp_path / "own"), "experiment=mine", *typed]
    begun = compose_run(command_line(words))
    written(begun, folder)
    leave(Stopped(signal.SIGTERM), begun, words, saved=True)
    again = shlex.split(capsys.readouterr().err.partition("go on with: ")[2])
    queued = command_line(words, {"SLURM_RESTART_COUNT": "1"})
    assert again[3:5] == ["--trust", "pytest"] and tuple(again[5:]) == queued.words
    composed = compose_run(queued)
    assert composed.resumed and composed.config == {**begun.config, "resume": str(folder)}
    assert typed_again(composed.overrides, composed) == list(queued.words)[1:], "when it is stopped once more"
    assert typed_again([f"resume={folder}"], composed) == []
    keys = [word.partition("=")[0].lstrip("+") for word in queued.words[1:]]
    assert keys == [*SAID, "logger.wandb.offline"]
    for key in SAID:
        with pytest.raises(UserError, match=re.escape(key)):  # which nothing else makes up for
            trust.check_run_folder(folder, [word for word in queued.words if key not in word])
    file.unlink()  # the run has its own config
    assert command_line(words, {"SLURM_RESTART_COUNT": "1"}).words[1:] == ("++logger.wandb.offline=true",)


@pytest.mark.parametrize("checkpoint", ["last.ckpt", "last.previous.ckpt"])
def test_a_job_that_slurm_starts_again_finds_the_run_that_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], checkpoint: str
) -> None:
    """Its folder has the time in its name, and the same command would begin another run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    asked: list[list[str]] = []

    def scontrol(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", scontrol)
    run, words = tmp_path / "outputs" / "2030-01-01", ["seed=3", "data.path=org/name"]
    begun = compose_run(command_line([*words, "hydra.run.dir=outputs/2030-01-01"]))
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / checkpoint).touch()
    assert leave(Stopped(signal.SIGUSR1), begun, words, saved=True) == 128 + signal.SIGUSR1
    assert asked == [["scontrol", "requeue", "12"]] and "SLURM starts job 12 again" in capsys.readouterr().err
    again = {"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "1"}
    assert command_line(words, again).words == (f"resume={run}", "++data.path=org/name")
    for other in ({**again, "SLURM_JOB_ID": "13"}, {**again, "SLURM_RESTART_COUNT": "0"}, {}):
        assert command_line(words, other).words == tuple(words)
    assert command_line(["seed=4"], again).words == ("seed=4",)
    # A job that was killed has written nothing down.
    typed = ["hydra.run.dir=~/outputs/2030-01-01"]
    assert command_line(typed, again).words == (f"resume={run}",)


def test_a_sweep_that_slurm_starts_again_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("RECUR_TRUST", "")  # which `--trust` sets
    folder, words = tmp_path / "sweep", ["seed=0,1", "--trust", "pytest", "-m"]
    again = {"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "1"}
    requeue.keep_place(words, folder)
    first = command_line(words, again).words
    assert first == ("-m", "seed=0,1") and typed_words() == words  # there is none yet
    Journal.begin(folder, monitor="val/loss", mode="min", argv=words).close()
    assert command_line(words, again).words == (*first, f"resume={folder}")
    assert command_line(words, {}).words == first


def test_a_recorded_setting_that_is_typed_again_is_not_repeated(tmp_path: Path) -> None:
    recorded = ["-m", "seed=0,1", "hydra.launcher.parameters.slurm_setup=[module load cuda]"]
    Journal.begin(tmp_path / "s", monitor="val/loss", mode="min", argv=recorded).close()
    with pytest.raises(UserError, match="if you trust it, type it again"):
        command_line(["-m", f"resume={tmp_path / 's'}"])
    typed = "hydra.launcher.parameters.slurm_setup=[module load cuda]"
    for own in (typed, f"+{typed}"):
        line = command_line(["-m", f"resume={tmp_path / 's'}", own])
        assert line.words == ("-m", "seed=0,1", own, f"resume={tmp_path / 's'}")


def test_a_sweep_of_files_beside_it_goes_on_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for place in (home, elsewhere):
        place.mkdir()
    (home / "reviews.csv").touch()
    recorded = ["-m", "data=files", "data.train=reviews.csv", "seed=0,1"]
    Journal.begin(home / "s", monitor="val/loss", mode="min", argv=recorded, working_folder=str(home)).close()
    monkeypatch.chdir(home)
    assert "data.train=reviews.csv" in command_line(["-m", "resume=s"]).words
    monkeypatch.chdir(elsewhere)
    with pytest.raises(UserError, match=r"started in .*home, and reviews.csv is read from there: go there first"):
        command_line(["-m", f"resume={home / 's'}"])
    for words in (
        ["data.train='reviews.csv'", "seed=0,1"],
        ["data.train=choice(other.csv,reviews.csv)"],
        ['hydra.sweeper.cases=[["data=files","data.train=reviews.csv"]]'],
    ):
        with pytest.raises(UserError, match="go there first"):
            command_line(["-m", *words, f"resume={home / 's'}"])
    assert command_line(["-m", "seed=0,1", f"resume={home / 's'}"])
    (home / "reviews.csv").unlink()  # the sweep was brought here: its own folder of then says nothing
    assert "data.train=reviews.csv" in command_line(["-m", f"resume={home / 's'}"]).words


def test_a_sweep_goes_on_with_what_was_typed_last_as_far_as_that_is_to_be_trusted(tmp_path: Path) -> None:
    journal = Journal.begin(
        tmp_path, monitor="val/loss", mode="min", argv=["-m", "seed=0,1", f"hydra.sweep.dir={tmp_path}"]
    )
    typed = ["-m", "seed=0,1", "hydra.sweeper.n_trials=6"]
    journal.add("extended", jobs=6, argv=typed)
    assert command_line(["-m", f"resume={tmp_path}"]).words == (*typed, f"resume={tmp_path}")
    journal.add("extended", jobs=6, argv=["-m", "hydra.run.dir=elsewhere"])
    with pytest.raises(UserError, match="sets what is Hydra's own"):
        command_line(["-m", f"resume={tmp_path}"])
    journal.add("extended", jobs=6, argv="-m seed=0,1")
    with pytest.raises(UserError, match="is damaged"):
        command_line(["-m", f"resume={tmp_path}"])
    journal.close()


@pytest.mark.slow
def test_a_file_is_typed_as_the_shell_completes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("Bücher.csv", "reviews (1).csv", "it's.csv", "plain.csv"):
        (tmp_path / name).touch()
        for typed in (str(tmp_path / name), f"~/{name}"):
            composed = compose_run(command_line(["data=files", f"data.train={typed}", "trainer=cpu"]))
            assert composed.config["data"]["train"] in (str(tmp_path / name), f"~/{name}")
    refused = {
        "seed=0,1": r"seed=0,1 has several values: with -m these are several runs; 'seed=\[0,1\]' is a list",
        "data.delimiter=;": "data.delimiter=; cannot be read: .*'data.delimiter=\";\"'",
        "optimizer.lr=[1": r"optimizer.lr=\[1 cannot be read: no viable",
    }
    for word, said in refused.items():
        with pytest.raises(UserError, match=said):
            compose_run(command_line(["data=files", word, "trainer=cpu"]))


def test_a_job_that_would_not_find_its_run_is_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "12")

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(requeue, "write_atomic", full)
    leave(Stopped(signal.SIGUSR1), compose_run(command_line(["hydra.run.dir=run"])), [], saved=True)
    said = capsys.readouterr().err
    assert " -m recur.train resume=run (SLURM is not asked" in said and "No space left" in said


ODD = [
    "",
    " ",
    "a b",
    "jörg",
    "映画",
    "it's",
    "''",
    '"',
    r"a\b",
    "a\\",
    "\\",
    r"\'",
    r"\\'\\",
    "a=b",
    "[a",
    "(1)",
    "{a: 1}",
]
ODD += [
    "a,b",
    "~/a",
    "#",
    "2024",
    "-1",
    "1e-3",
    ".5",
    "inf",
    "NaN",
    "true",
    "False",
    "null",
    "NULL",
    "${seed}",
    "a\nb\\\n",
]


def read(word: str) -> Any:
    return OverridesParser.create().parse_override(f"key={word}").value()


@given(text=st.sampled_from(ODD) | st.text(st.sampled_from("aö1\\'\" =,[(){}:$\n")))
def test_hydra_reads_back_what_was_quoted(text: str) -> None:
    assert read(in_quotes(text)) == read(as_text(text)) == text
    assert read(quoted(f"/{text}")) == f"/{text}"


def written(composed: Composed, folder: Path) -> None:
    """Make a run's folder as it is when the run can go on, as far as composing looks at it."""
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    for name, text in composed.hydra_files().items():
        (folder / ".hydra" / name).write_text(text)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()


STRANGE = "jörg's runs (1)"


@pytest.fixture
def strange_run(tmp_path: Path) -> Path:
    """The folder of a run that can go on, with a strange path."""
    folder = tmp_path / STRANGE / "a, b"
    composed = compose_run(command_line([f"hydra.run.dir={quoted(str(folder))}", "trainer=cpu", "seed=77"]))
    assert composed.folder == folder
    written(composed, folder)
    return folder


@pytest.mark.slow
def test_a_run_with_a_strange_path_goes_on(strange_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Typed as Hydra reads it, and as a shell completes it; from elsewhere and from above it."""
    monkeypatch.chdir(strange_run.parents[1])
    inner = f"{STRANGE}/a, b"
    for typed in (quoted(str(strange_run)), str(strange_run), inner, quoted(inner)):
        composed = compose_run(command_line([f"resume={typed}", "trainer.max_epochs=99"]))
        assert composed.resumed and composed.folder == strange_run
        assert composed.config["seed"] == 77 and composed.config["trainer"]["max_epochs"] == 99
    again = command_line([f"hydra.run.dir={quoted(str(strange_run))}"], {"SLURM_RESTART_COUNT": "1"})
    assert compose_run(again).folder == strange_run


@pytest.mark.slow
def test_a_run_goes_on_where_it_is_however_that_is_typed(strange_run: Path, tmp_path: Path) -> None:
    place = quoted(str(strange_run))
    for typed in (f"++resume={place}", f"+resume={place}"):
        line = command_line([typed, "trainer.max_epochs=99"])
        assert line.value("resume") == str(strange_run)
        composed = compose_run(line)
        assert composed.resumed and composed.folder == strange_run
    assert compose_run(command_line([f"resume={place}", f"hydra.run.dir={place}"])).folder == strange_run
    with pytest.raises(UserError, match=r"hydra\.run\.dir must be the run that goes on, .*: leave it out"):
        compose_run(command_line([f"resume={place}", f"hydra.run.dir={tmp_path / 'new'}"]))


def test_a_run_to_go_on_with_is_typed(own_configs: Path) -> None:
    (own_configs / "experiment" / "again.yaml").write_text("# @package _global_\nresume: outputs/a\n")
    with pytest.raises(UserError, match=r"resume must be typed.*got 'outputs/a'"):
        compose_run(command_line(["--config-path", str(own_configs), "experiment=again", "trainer=cpu"]))


@pytest.mark.slow
def test_what_a_run_began_with_stays_written_when_it_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begun = [f"hydra.run.dir={folder}", "model=advanced_lstm", "trainer=cpu", "trainer.max_epochs=1", "overwrite=true"]
    later = [f"resume={folder}", "++trainer.max_epochs=3", "logger={}"]
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    (folder / ".hydra").mkdir()
    for words in (begun, later, [f"resume={folder}", "trainer.max_epochs=4"]):
        for name, text in compose_run(command_line(words)).hydra_files().items():
            (folder / ".hydra" / name).write_text(text)
    kept = [yaml.safe_load((folder / ".hydra" / name).read_text()) for name in ("overrides.yaml", "hydra.yaml")]
    assert kept[0] == [*begun[:3], "trainer.max_epochs=4", "logger={}"]
    assert kept[1]["hydra"]["runtime"]["choices"]["model"] == "advanced_lstm"
    evil = {"hydra": {"runtime": {"choices": {"model": "${oc.env:HOME}", "data": ["x"], "trainer": "cpu"}}}}
    (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(evil))
    again = yaml.safe_load(compose_run(command_line(later)).hydra_files()["hydra.yaml"])["hydra"]["runtime"]["choices"]
    assert again["trainer"] == "cpu" and not {"model", "data"} & set(again)


def test_a_sweep_with_a_strange_path_goes_on(tmp_path: Path) -> None:
    """By what was typed, and by the line that the sweep prints."""
    book = Journal(tmp_path / STRANGE)
    book.add(
        "sweep", format=1, search="grid", space={}, jobs=1, monitor="val/accuracy", mode="max", argv=["-m", "seed=1,2"]
    )
    book.close()
    for words in (["-m", f"resume={tmp_path / STRANGE}"], shlex.split(resume_command(tmp_path / STRANGE))[3:]):
        line = command_line(words)
        assert line.hydra and read(line.words[-1].partition("=")[2]) == str(tmp_path / STRANGE)
        assert line.words[:-1] == ("-m", "seed=1,2")


def test_a_further_folder_of_configs_may_have_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("my configs", STRANGE, "100%20"):
        (tmp_path / name / "experiment").mkdir(parents=True)
        (tmp_path / name / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 77\n")
        monkeypatch.chdir(tmp_path)
        for place in (name, str(tmp_path / name)):
            assert compose_run(command_line(["--config-dir", place, "experiment=mine"])).config["seed"] == 77


def test_a_trainer_may_leave_the_accelerator_to_lightning() -> None:
    composed = with_precision(compose_run(command_line(["~trainer.accelerator", "trainer.precision=32-true"])))
    assert "accelerator" not in composed.config["trainer"] and composed.config["trainer"]["precision"] == "32-true"


def test_a_further_folder_goes_with_those_that_are_typed_as_hydras(tmp_path: Path) -> None:
    """Hydra reads one override of the search path, and the other folder's experiments were not there."""
    for name in ("mine", "the team's"):
        (tmp_path / name / "experiment").mkdir(parents=True)
        for own in (name[:2], "both"):
            (tmp_path / name / "experiment" / f"{own}.yaml").write_text(f"# @package _global_\nname: {name[:2]}\n")
    words = ["--config-dir", str(tmp_path / "mine"), f"hydra.searchpath=['file://{tmp_path}/the team\\'s']"]
    for experiment, name in (("mi", "mi"), ("th", "th"), ("both", "mi")):
        assert compose_run(command_line([*words, f"experiment={experiment}"])).config["name"] == name
