"""Saving a report folder: whole files, manifest last, nothing foreign touched."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tl_audit.errors import ConfigError, RecordError
from tl_audit.records.findings import AuditResult
from tl_audit.records.schema import load_json
from tl_audit.report import save, writing


def test_a_report_folder_holds_page_record_and_a_manifest_with_their_hashes(result: AuditResult, tmp_path: Path) -> None:
    paths = save(result, tmp_path / "a" / "b")
    assert list(paths) == ["json", "html", "manifest"]
    manifest = json.loads(paths["manifest"].read_text(encoding="utf-8"))
    assert {e["path"]: e["sha256"] for e in manifest["files"]} == {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for k, p in paths.items() if k != "manifest"
    }
    assert {e["path"]: e["bytes"] for e in manifest["files"]} == {p.name: p.stat().st_size for k, p in paths.items() if k != "manifest"}
    assert sorted(p.name for p in paths["json"].parent.iterdir()) == ["manifest.json", "report.html", "report.json"]
    assert load_json(paths["json"]) == result


def test_a_second_report_replaces_the_first(result: AuditResult, tmp_path: Path) -> None:
    save(result, tmp_path)
    paths = save(result.model_copy(update={"title": "another"}), tmp_path)
    assert load_json(paths["json"]).title == "another"


def test_the_record_is_written_whatever_formats_are_asked_for(result: AuditResult, tmp_path: Path) -> None:
    assert set(save(result, tmp_path, formats=("html",))) == {"json", "html", "manifest"}
    assert set(save(result, tmp_path / "only", formats=("json",))) == {"json", "manifest"}


def test_an_unknown_format_is_named(result: AuditResult, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown report format 'pdf'; there are: json, html"):
        save(result, tmp_path, formats=("pdf",))


@pytest.mark.parametrize("name", ["report.html", "report.json", "manifest.json"])
def test_a_foreign_file_is_not_overwritten(result: AuditResult, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"mine": true}', encoding="utf-8")
    with pytest.raises(ConfigError, match="was not written by tl-audit"):
        save(result, tmp_path)
    assert (tmp_path / name).read_text(encoding="utf-8") == '{"mine": true}'
    assert len(list(tmp_path.iterdir())) == 1


def test_links_are_refused(result: AuditResult, tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("keep", encoding="utf-8")
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "report.html").symlink_to(outside)
    with pytest.raises(ConfigError, match="is a link"):
        save(result, folder)
    assert outside.read_text(encoding="utf-8") == "keep"


def test_other_files_in_the_folder_stay(result: AuditResult, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep", encoding="utf-8")
    save(result, tmp_path)
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "keep"


def test_a_file_in_the_place_of_the_folder_is_one_sentence(result: AuditResult, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be made a report folder"):
        save(result, tmp_path / "x")


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_failing_write_leaves_whole_files_and_no_manifest_and_can_be_repeated(
    result: AuditResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    save(result, tmp_path)
    old = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    calls = 0
    replace = os.replace

    def breaks(source: object, target: object) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(28, "No space left on device")
        replace(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(writing.os, "replace", breaks)
    new = result.model_copy(update={"title": "another"})
    with pytest.raises(RecordError, match="No space left"):
        save(new, tmp_path)
    left = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert set(left) <= set(old)
    assert "manifest.json" not in left
    for name, data in left.items():
        assert data == old[name] or b"another" in data
    monkeypatch.undo()
    assert load_json(save(new, tmp_path)["json"]).title == "another"


def test_a_record_that_cannot_be_shown_leaves_the_old_report_alone(
    result: AuditResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(result, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def refuses(*_: object, **__: object) -> str:
        raise RecordError("a picture is neither PNG nor WebP")

    monkeypatch.setattr(writing, "render_html", refuses)
    with pytest.raises(RecordError, match="neither PNG"):
        save(result, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "use", ["import tl_audit.report", "from tl_audit.report import save, render_html, AuditReport", "import tl_audit.report.notebook"]
)
def test_reports_load_no_torch_and_no_numbers_library(use: str) -> None:
    code = (
        f"{use}\nimport sys\nprint([m for m in ('torch', 'numpy', 'pandas', 'scipy', 'sklearn', 'matplotlib', 'PIL') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_importing_the_package_loads_not_even_the_templates() -> None:
    code = "import tl_audit.report, sys; print('jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
