"""The examples run, and each asserts its own conclusion."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.parametrize("name", ["custom_check", "tables_diabetes", "images_digits"])
def test_the_example_reaches_its_conclusion(name: str, tmp_path: Path) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](tmp_path)


def test_the_notebook_runs(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    book = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    client.NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [o for cell in book.cells if cell.cell_type == "code" for o in cell.outputs if "text/html" in o.get("data", {})]
    assert shown, "no cell shows itself"


def test_the_committed_notebook_is_the_one_that_its_generator_builds() -> None:
    nbformat = pytest.importorskip("nbformat")
    book = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    built = runpy.run_path(str(EXAMPLES / "make_notebook.py"))["build"]()
    assert [(c.cell_type, c.source) for c in book.cells] == [(c.cell_type, c.source) for c in built.cells], "run examples/make_notebook.py"
    assert all(c.outputs for c in book.cells if c.cell_type == "code" and not c.source.startswith(("from pathlib", "base =")))
