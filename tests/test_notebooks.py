"""The notebooks run from their first cell to their last, offline, and are kept without outputs."""

import ast
import re
from pathlib import Path
from typing import Any

import matplotlib
import nbformat
import pytest


ROOT = Path(__file__).parents[1]
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
EVERY_NOTEBOOK = pytest.mark.parametrize("name", NOTEBOOKS)


@EVERY_NOTEBOOK
def test_a_notebook_is_well_formed_and_has_no_outputs(name):
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    for link in re.findall(r"\]\(([^)#]+)", "".join(cell.source for cell in notebook.cells)):
        assert (ROOT / "notebooks" / link).exists(), f"{link}: there is no such file"


@EVERY_NOTEBOOK
def test_the_cells_of_a_notebook_run_in_their_order(name, tmp_path, monkeypatch, capsys):
    """In this process, with two steps of training: a kernel of its own takes half a minute longer."""
    monkeypatch.chdir(tmp_path)
    with matplotlib.rc_context({"backend": "agg", "figure.max_open_warning": 0}):
        names: dict[str, Any] = {"__name__": name}
        for cell in nbformat.read(NOTEBOOKS[name], as_version=4).cells:
            if cell.cell_type == "code":
                tree = ast.parse(re.sub(r"^STEPS = \d+", "STEPS = 2", cell.source, flags=re.MULTILINE))
                shown = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
                exec(compile(tree, name, "exec"), names)
                if shown is not None:
                    repr(eval(compile(ast.Expression(shown.value), name, "eval"), names))
        matplotlib.pyplot.close("all")


@pytest.mark.slow
@EVERY_NOTEBOOK
def test_a_notebook_runs_in_a_kernel_and_training_learns(name, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient runs notebooks: pip install '.[docs]'")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    if name == "finetune":
        said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
        before, after = map(int, re.search(r"accuracy: (\d+)% before, (\d+)% after", said).groups())
        assert after >= 90 > before
