"""The example notebook runs from its first cell to its last, and is kept without outputs."""

import json
from pathlib import Path

import pytest

from conftest import ROOT

NOTEBOOK = ROOT / ".github" / "quickstart.ipynb"


def test_it_is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert len(cells) < 20
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    shown = [output.data for output in outputs if output.output_type in ("execute_result", "display_data")]
    assert any("recur-run" in data.get("text/html", "") for data in shown), "the run shows itself"
    assert any("image/png" in data for data in shown), "the curves are an image"
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    lines = [line for line in printed.splitlines() if "This film is" in line and not line.startswith(" ")]
    assert [line.split()[0] for line in lines] == ["negative", "positive"]
    assert any(data.get("text/plain") in ("'negative'", "'positive'") for data in shown), (
        "the run built by hand answers"
    )
    assert "bidirectional_cheats" in printed and "page " in printed
