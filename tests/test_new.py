"""A project of one's own: its names, its trust, and its whole life outside this package."""

import json
import os
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import recur
from conftest import ROOT
from recur import cli, new
from recur.errors import UserError
from recur.runs import trust
from support.commands import run_command
from support.environment import Environment

SMALL = [f"data.synthetic.{split}_size={count}" for split, count in (("train", 300), ("val", 80), ("test", 80))]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new.write("outsiders", tmp_path_factory.mktemp("new"))


def test_every_file_is_named_and_filled(project: Path) -> None:
    texts = [path.read_text() for path in project.rglob("*") if path.is_file()]
    assert len(texts) == 14
    assert not any("@NAME@" in text or "@VERSIONS@" in text for text in texts)
    assert not list(project.rglob("*.in"))
    assert (project / "src" / "outsiders" / "cells.py").is_file()
    for path in project.rglob("*.py"):
        compile(path.read_text(), str(path), "exec")


def test_it_wants_the_recur_that_wrote_it(project: Path) -> None:
    """The index has another project of this name, which must at least not do for a version that is not there."""
    wanted = tomllib.loads((project / "pyproject.toml").read_text())["project"]["dependencies"]
    major, minor = (int(part) for part in recur.__version__.split(".")[:2])
    assert wanted == [f"recur>={major}.{minor},<{major}.{minor + 1}"]
    assert "Install recur first" in (project / "README.md").read_text()


def test_its_makefile_takes_another_python(project: Path) -> None:
    # `make test` hands its children the flags of a recursive make, with which make prints the folder first.
    words = ["make", "--no-print-directory", "-n", "train", "PYTHON=other"]
    done = subprocess.run(words, cwd=project, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("other -m recur.train")


@pytest.mark.parametrize("more", [[], ["data=outsiders"]], ids=["embedded", "own data"])
def test_its_own_metric_chooses_the_checkpoint_and_any_trainer_can_be_chosen(project: Path, more: list[str]) -> None:
    words = ["--config-dir", str(project / "conf"), "experiment=outsiders", *more]
    config = recur.compose(words)
    assert (config["monitor"], config["mode"]) == ("val/mean_recall", "max")
    assert config["callbacks"]["best"]["monitor"] == "val/mean_recall"
    assert config["trainer"]["accelerator"] == "cpu"
    assert recur.compose([*words, "trainer=gpu"])["trainer"]["accelerator"] == "gpu"


def test_its_network_begins_with_the_word_vectors_it_is_given(project: Path) -> None:
    build = runpy.run_path(str(project / "src" / "outsiders" / "model.py"))["AttentionClassifier"]
    vectors = torch.randn(50, 32)
    net = build(50, 3, vectors)
    assert torch.equal(net.embedding.weight, vectors) and net.embedding.weight.requires_grad
    with pytest.raises(ValueError, match=r"word vectors have the shape \(50, 16\), the model wants \(50, 32\)"):
        build(50, 3, vectors[:, :16])


@pytest.mark.parametrize(
    "name",
    ["", "My", "a-b", "class", "torch", "json", "numpy", "yaml", "../x", "x/y", "lm", "bilstm", "gru", "whitespace"],
)
def test_a_name_that_no_package_can_have_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="NAME must be"):
        new.write(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left_alone(project: Path) -> None:
    done = run_command("new", "outsiders", "--into", project.parent)
    assert done.returncode == 2
    assert "is there already: choose another name" in done.stderr


def test_what_to_type_next_names_the_folder_as_one_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new.main(["newcomers", "--into", str(tmp_path / "my projects")])
    assert f"\n  cd '{tmp_path}/my projects/newcomers'\n" in capsys.readouterr().out


@pytest.mark.slow
def test_its_own_test_passes(project: Path) -> None:
    code = "import sys; sys.path.insert(0, 'src'); from recur.nn import CELLS; from outsiders.cells import UpdateGate; "
    code += "CELLS['outsiders'] = UpdateGate; import runpy; "
    code += "runpy.run_path('tests/test_outsiders.py')['test_a_text_alone_has_the_logits_it_has_in_a_batch']()"
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_package_that_is_not_trusted_is_refused_by_name(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(project / "src")
    monkeypatch.setenv("RECUR_TRUST", "")
    config = {"_target_": "outsiders.task.BalancedTask", "net": {"_target_": "outsiders.model.AttentionClassifier"}}
    with pytest.raises(UserError) as raised:
        trust.check_targets(config, "model")
    message = str(raised.value)
    assert "model._target_ is 'outsiders.task.BalancedTask'" in message
    assert message.endswith("give --trust outsiders or set RECUR_TRUST=outsiders")
    for trusted in ("outsiders", "others, outsiders", "outsiders.task,outsiders.model"):
        monkeypatch.setenv("RECUR_TRUST", trusted)
        trust.check_targets(config, "model")
    for trusted in ("outside", "outsiders.cells", "outsiders..task", "*", "."):
        monkeypatch.setenv("RECUR_TRUST", trusted)
        with pytest.raises(UserError):
            trust.check_targets(config, "model")


def test_a_trusted_package_lends_no_trust_to_what_it_imports(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(project / "src")
    monkeypatch.setenv("RECUR_TRUST", "outsiders")
    assert trust.may_build("outsiders.model.AttentionClassifier", trust.MODEL)
    assert not trust.may_build("outsiders.model.torch.load", trust.MODEL)
    assert not trust.may_build("outsiders.model.PackedSequence", trust.MODEL)


@pytest.mark.parametrize("target", ["os.system", "builtins.eval", "torch.hub.load", "no name"])
def test_nobody_is_advised_to_trust_what_can_do_anything(target: str) -> None:
    with pytest.raises(UserError) as raised:
        trust.check_targets({"_target_": target}, "model")
    assert "--trust" not in str(raised.value)


def test_the_option_reaches_processes_that_are_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("two", "three"):
        (tmp_path / f"{name}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("RECUR_TRUST", "one")
    arguments = cli.Parser(prog="x").parse_args(["--trust", "two", "--trust", "three", "--trust", "two"])
    assert os.environ["RECUR_TRUST"] == "one,two,three"
    assert arguments.trust is None


@pytest.mark.parametrize(
    "package", ["os", "torch.optim", "recur", "../evil", "evil;x", "", "not_installed_here", "yaml,os"]
)
def test_what_is_no_package_of_the_users_own_is_not_trusted(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RECUR_TRUST", "")
    with pytest.raises(SystemExit, match="2"):
        cli.Parser(prog="x").parse_args([f"--trust={package}"])
    assert capsys.readouterr().err.startswith("recur: --trust must")
    assert os.environ["RECUR_TRUST"] == ""


@pytest.mark.parametrize("package", ["os", "builtins", "recur.runs", "a b"])
def test_the_environment_may_not_name_it_either(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECUR_TRUST", package)
    with pytest.raises(UserError, match="RECUR_TRUST must"):
        trust.may_build("os.system", trust.MODEL)


def test_loading_trusts_as_the_option_does(trained_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "four.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("RECUR_TRUST", "one")
    recur.load(trained_run, trust="four")
    recur.load(trained_run, trust=["four"])
    assert os.environ["RECUR_TRUST"] == "one,four"
    with pytest.raises(UserError, match="trust must"):
        recur.load(trained_run, trust="os")
    assert os.environ["RECUR_TRUST"] == "one,four"


@pytest.mark.slow
def test_the_whole_life_of_an_installed_project(project: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv", ROOT / "src")
    environment.install(str(project))
    words = ["--config-dir", "conf", "experiment=outsiders", "trainer.max_epochs=1", *SMALL]
    sweep = ["-m", "recur.train", *words, "optimizer.lr=3e-3,1e-2", f"hydra.sweep.dir={tmp_path / 'sweep'}", "-m"]
    done = environment.run(*sweep, cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "sweep" / "0"
    record = json.loads((run / "metrics.json").read_text())
    assert {"mean_recall", "accuracy"} <= set(record["val"])
    assert "monitor: val/mean_recall\n" in (run / "config.yaml").read_text()

    # Installed it is trusted: nothing has to be said.
    predicted = environment.run("-m", "recur.predict", run, "a good film", "--explain", "--json", cwd=tmp_path)
    assert predicted.returncode == 0 and len(json.loads(predicted.stdout)["explanation"]["tokens"]) == 3
    scored = environment.run("-m", "recur.evaluate", run, "--split", "test", cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr
    assert json.loads(scored.stdout)["test"]["mean_recall"] == pytest.approx(record["test"]["mean_recall"])
    resumed = environment.run("-m", "recur.train", f"resume={run}", "trainer.max_epochs=2", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads((run / "metrics.json").read_text())["epochs"] == 2
    # Its own data, read by its own tokenizer: trained on, swept over, gone on with, predicted from, evaluated on.
    lines = [
        f"{sign} it {verb} a {word} film {i % 7}"
        for i in range(60)
        for sign, verb, word in (("+", "is", "good"), ("-", "isn't", "good"))
    ]
    for name in ("reviews", "others"):
        (tmp_path / f"{name}.signed").write_text("\n".join(lines) + "\n")
    own = [*words[:2], "experiment=outsiders", "data=outsiders", f"data.train={tmp_path / 'reviews.signed'}"]
    own += [f"data.test={tmp_path / 'others.signed'}", "data.batch_size=8", "trainer.max_epochs=2"]
    own += ["optimizer.lr=1e-2,2e-2", f"hydra.sweep.dir={tmp_path / 'own'}", "trainer=cpu"]
    own += ["hydra.launcher.cpu_slots=1", "-m"]
    done = environment.run("-m", "recur.train", *own, cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "own" / "1"
    assert 'is"' in (run / "tokenizer.json").read_text() and "n't" in (run / "tokenizer.json").read_text()
    assert json.loads((run / "metrics.json").read_text())["test"]["accuracy"] > 0.95
    predicted = environment.run("-m", "recur.predict", run, "It isn't a good film", "--explain", "--json", cwd=tmp_path)
    assert predicted.returncode == 0, predicted.stderr
    answer = json.loads(predicted.stdout)
    tokens = [one["token"] for one in answer["explanation"]["tokens"]]
    assert tokens == ["it", "is", "n't", "a", "good", "film"] and answer["label"] == "bad"
    for more in (["--split", "test"], ["--data", tmp_path / "others.signed", "eval_batch_size=4"]):
        scored = environment.run("-m", "recur.evaluate", run, *more, cwd=tmp_path)
        assert scored.returncode == 0, scored.stderr
        assert json.loads(scored.stdout)["test"]["accuracy"] > 0.95
    resumed = environment.run("-m", "recur.train", f"resume={run}", "trainer.max_epochs=3", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    exported = environment.run("-m", "recur.export", run, "--out", tmp_path / "onnx", cwd=tmp_path)
    assert exported.returncode == 2 and "cannot hold the tokenizer 'outsiders'" in exported.stderr

    # A second config folder by Hydra's search path, and the whole sweep again by its own record.
    searched = [f"hydra.searchpath=[file://{project / 'conf'}]", *words[2:], f"hydra.run.dir={tmp_path / 'searched'}"]
    done = environment.run("-m", "recur.train", *searched, cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    # Elsewhere, where it is not installed and only can be imported, the same run is refused by name.
    unknown = Environment(tmp_path / "unknown", ROOT / "src")
    seen = {"PYTHONPATH": str(project / "src"), "RECUR_TRUST": "outsiders"}
    refused = unknown.run("-m", "recur.predict", tmp_path / "own" / "0", "x", cwd=tmp_path, **seen)
    assert refused.returncode == 2 and "has the kind 'outsiders'" in refused.stderr
    run = tmp_path / "sweep" / "0"
    bare, path = Environment(tmp_path / "bare", ROOT / "src"), str(project / "src")
    refused = bare.run("-m", "recur.predict", run, "a good film", cwd=tmp_path, PYTHONPATH=path)
    assert refused.returncode == 2
    assert "outsiders.task.BalancedTask" in refused.stderr
    assert "--trust outsiders" in refused.stderr
    assert refused.stderr.count("\n") == 1
    rnn = ["--config-dir", project / "conf", *words[2:], "model.net.cell=rnn", f"hydra.run.dir={tmp_path / 'rnn'}"]
    done = bare.run("-m", "recur.train", *rnn, cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    resume = ["-m", "recur.train", f"resume={tmp_path / 'rnn'}", "trainer.max_epochs=2"]
    assert "--trust outsiders" in bare.run(*resume, cwd=tmp_path, PYTHONPATH=path).stderr
    done = bare.run(*resume, "--trust", "outsiders", cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
