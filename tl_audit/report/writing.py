"""Writing a report folder: every file whole or not at all, the manifest last, nothing foreign overwritten."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from tl_audit.errors import ConfigError, RecordError
from tl_audit.records.findings import AuditResult
from tl_audit.records.schema import MOST_BYTES, to_json
from tl_audit.report.html import render_html

__all__ = ["FORMATS", "MANIFEST", "save", "write_whole"]

MANIFEST = "manifest.json"
MARK = "tl_audit report"
_WRITERS: dict[str, tuple[str, Callable[[AuditResult, str], str]]] = {
    "json": ("report.json", lambda result, text: text),
    "html": ("report.html", lambda result, text: render_html(result, record_text=text)),
}
FORMATS = tuple(_WRITERS)


def write_whole(path: Path, data: bytes) -> None:
    """The bytes at ``path``, through a temporary file in the same folder: readers see the old file or the new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _ours(folder: Path) -> set[str]:
    """Names that an earlier report of ours wrote into this folder."""
    path = folder / MANIFEST
    if not path.is_file() or path.is_symlink():
        return set()
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    if not isinstance(manifest, dict) or manifest.get("made_by") != MARK or not isinstance(manifest.get("files"), list):
        return set()
    return {MANIFEST} | {str(entry.get("path")) for entry in manifest["files"] if isinstance(entry, dict)}


def _looks_ours(path: Path) -> bool:
    """Whether a report file without a manifest is one of ours: left by a run that was killed before the manifest was written."""
    try:
        if path.suffix == ".html":
            with path.open("rb") as file:
                return b'name="generator" content="tl_audit' in file.read(2048)
        if path.name != "report.json" or path.stat().st_size > MOST_BYTES:
            return False
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return (
        isinstance(data, dict)
        and "schema_version" in data
        and isinstance(data.get("tool"), dict)
        and data["tool"].get("name") == "tl-audit"
    )


def save(result: AuditResult, out_dir: str | Path, *, formats: Iterable[str] = ("html", "json")) -> dict[str, Path]:
    """Write the report into a folder; the paths by format, with "manifest" last.

    ``report.json`` is always written, because everything else is made from it.

    Parameters
    ----------
    result : the audit
    out_dir : made where it is absent; may hold an earlier report of ours, which is replaced file by file
    formats : of "html", "json"

    Raises
    ------
    ConfigError : an unknown format, a folder that cannot be written, a link in the way, or a file that is not ours
    RecordError : a record that cannot be shown
    """
    wanted = list(dict.fromkeys(["json", *formats]))
    unknown = [f for f in wanted if f not in _WRITERS]
    if unknown:
        raise ConfigError(f"unknown report format {unknown[0]!r}; there are: {', '.join(FORMATS)}")
    folder = Path(out_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made a report folder ({error.strerror})") from error
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is not a folder")
    ours = _ours(folder)
    for name in [*(_WRITERS[f][0] for f in wanted), MANIFEST]:
        path = folder / name
        if path.is_symlink():
            raise ConfigError(f"{path}: is a link; a report is not written through links. Remove it or choose another folder")
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path}: is in the way and is not a file")
        if path.exists() and name not in ours and not _looks_ours(path):
            raise ConfigError(f"{path}: was not written by tl-audit and is not overwritten. Move it or choose another folder")
    text = to_json(result)
    # Everything is rendered before anything is written: a record that cannot be shown leaves the old report alone.
    files = {f: _WRITERS[f][1](result, text).encode("utf-8") for f in wanted}
    paths: dict[str, Path] = {}
    try:
        (folder / MANIFEST).unlink(missing_ok=True)  # a folder without a manifest is incomplete: true from here to the last line
        for f in wanted:
            paths[f] = folder / _WRITERS[f][0]
            write_whole(paths[f], files[f])
        listed = [{"path": paths[f].name, "sha256": hashlib.sha256(files[f]).hexdigest(), "bytes": len(files[f])} for f in wanted]
        manifest = {
            "made_by": MARK,
            "manifest_version": 1,
            "tool": dict(result.tool),
            "files": sorted(listed, key=lambda e: str(e["path"])),
        }
        paths["manifest"] = folder / MANIFEST
        write_whole(paths["manifest"], (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode())
    except OSError as error:
        raise RecordError(f"{folder}: the report could not be written ({error.strerror or error}); what is there is incomplete") from error
    return paths
