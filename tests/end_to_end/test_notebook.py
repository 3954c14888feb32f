"""The notebook of the examples: stored with its outputs, and giving them when it is run."""

import ast
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples/digits.ipynb"


def accuracies(notebook):
    """The fractions that the cell of AutoAttack prints, by network and setting."""
    (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and "autoattack" in cell.source)
    text = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
    lines = [line for line in text.splitlines() if line.endswith("}")]
    return {line.partition(" {")[0]: ast.literal_eval("{" + line.partition(" {")[2]) for line in lines}


def pictures(notebook):
    return [
        output.data["image/png"] for cell in notebook.cells for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]  # fmt: skip


def require_meaningful(notebook):
    found = accuracies(notebook)
    vanilla, aligned = found["vanilla"], found["aligned with class means"]
    assert vanilla["clean"] > 0.9 < aligned["clean"]
    assert all(aligned[setting] > vanilla[setting] + 0.1 for setting in ("L2 0.75", "Linf 0.15"))
    assert [len(picture) > 10_000 for picture in pictures(notebook)] == [True, True]


def test_it_is_stored_with_the_outputs_of_one_run():
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    numbers = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert numbers == list(range(1, len(numbers) + 1)) and 8 <= len(notebook.cells) <= 12
    require_meaningful(notebook)


@pytest.mark.slow
def test_it_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, 4)
    stored = accuracies(notebook)
    for cell in notebook.cells:
        cell.pop("outputs", None) if cell.cell_type == "markdown" else cell.update(outputs=[])
    NotebookClient(notebook, timeout=800, resources={"metadata": {"path": os.fspath(tmp_path)}}).execute()
    require_meaningful(notebook)
    # other processors round otherwise
    for name, found in accuracies(notebook).items():
        assert found == pytest.approx(stored[name], abs=0.1)
