"""The examples run, and each asserts its own conclusion."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

import tl_audit as ta
from tl_audit.attribution import EXPLAINERS, METHODS
from tl_audit.checks import BUILTIN
from tl_audit.cli import main
from tl_audit.modality.base import MASK_METHODS
from tl_audit.modality.image import SEGMENTATIONS

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.parametrize("name", ["custom_check", "tables_diabetes", "images_digits", "regression_diabetes"])
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


GUIDE = Path(__file__).resolve().parents[1] / "docs" / "explanations.md"


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """Code blocks of a page in order: language and text."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def test_everything_in_the_guide_to_explanations_runs_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "guide"}
    for language, text in blocks_of(GUIDE):
        if language == "python":
            exec(compile(text, str(GUIDE), "exec"), names)
        elif language == "toml":
            first, rest = text.split("\n", 1)
            (tmp_path / first.removeprefix("# ")).write_text(rest, encoding="utf-8")
        else:
            assert language == "sh", f"a block of {language} is not run by anything"
            for line in text.splitlines():
                program, *argv = shlex.split(line)
                assert program == "tl-audit"
                assert main(argv) == 0, line
    stamped, control = names["stamped"], names["control"]
    assert isinstance(stamped, ta.Attribution)
    assert isinstance(control, ta.Attribution)
    assert stamped.quality is not None
    assert stamped.quality.state in ("passed", "not_checked"), stamped.quality.text  # 40 rows may leave a limit undecided
    assert control.quality is not None
    assert control.quality.state == "unreliable", control.quality.text
    for folder in ("explanations", "folder", "truth", "contrast", "both", "checked", "row", "table", "clusters"):
        assert (tmp_path / folder / "explanations.html").is_file(), folder


def test_the_guide_to_explanations_names_every_method_mask_segmentation_and_check() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_+]+)` \|(.*)$", text, flags=re.MULTILINE)
    listed = {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}
    assert tuple(name for name in listed if name in METHODS) == METHODS
    for explainer in EXPLAINERS:
        _, signed, adds_up, gradients, *_ = listed[explainer.name]
        assert signed.startswith("yes") == explainer.signed, explainer.name
        assert (gradients == "yes") == explainer.needs_gradients, explainer.name
        if explainer.complete:
            assert not adds_up.startswith("no"), explainer.name
    for mask in MASK_METHODS:
        assert f'`"{mask}"`' in text, mask
    for cut in SEGMENTATIONS:
        assert f'"{cut}"' in text, cut
    for code in (c.code for c in BUILTIN if c.code.startswith("TLA7")):
        assert re.search(rf"^\| {code} ", text, flags=re.MULTILINE), code


def test_the_readme_names_every_method() -> None:
    text = (GUIDE.parents[1] / "README.md").read_text(encoding="utf-8")
    assert [m for m in METHODS if f"`{m}`" not in text] == []
