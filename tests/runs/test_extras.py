"""What an absent extra's message says must work: `recur` is in no index, so what the extra holds is named."""

import re
import sys
from importlib import metadata

import pytest

from conftest import ROOT
from recur.errors import UserError
from recur.runs.extras import lacks, require_extra, requirements

EXTRAS = [("optuna", "optuna"), ("ray", "ray"), ("submitit", "slurm"), ("wandb", "wandb"), ("mlflow", "mlflow")]
EXTRAS += [("scikit-learn", "baseline"), ("onnx", "export")]


@pytest.mark.parametrize(("module", "extra"), EXTRAS)
def test_an_absent_extra_is_named_with_what_installs_it(module, extra):
    message = str(lacks(extra, module, "x=y"))
    assert re.search(rf"x=y needs {module}, .*: python -m pip install .*'{module}[^ ]*[<>=]", message), message
    assert "recur[" not in message
    assert str(lacks(extra, module, "x=y", "set x=z")).endswith(", or set x=z")


@pytest.mark.parametrize(("module", "extra"), EXTRAS[:3])
def test_a_module_that_cannot_be_imported_is_refused(module, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"x=y needs {module}"):
        require_extra(extra, module, "x=y")


def test_no_message_installs_a_package_that_no_index_has():
    wrong = [path for path in (ROOT / "src").rglob("*.py") if "recur[" in path.read_text(encoding="utf-8")]
    assert not wrong


def test_every_extra_has_requirements():
    assert all(requirements(extra) for _, extra in EXTRAS)


def test_what_is_missing_is_named_where_nothing_is_installed(monkeypatch):
    """With this package on PYTHONPATH alone the refusal ended in a stack."""

    def none(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", none)
    assert "pip install 'onnx'" in str(lacks("export", "onnx", "--format onnx"))
