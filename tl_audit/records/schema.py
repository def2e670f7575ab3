"""Reading and writing report.json: canonical bytes, strict parsing, schema version, hashes, generated JSON Schema."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tl_audit.errors import RecordError
from tl_audit.records.findings import AuditResult

SCHEMA_VERSION = 1
# 1: first version (2026-11).

VOLATILE = frozenset({"created", "seconds", "started", "ended", "peak_memory_bytes"})
"""Keys that differ between two equal runs, at any depth; the report hash leaves them out."""

MOST_BYTES = 64 * 2**20


def canonical_json(data: Any) -> str:  # Any: plain JSON values
    """Sorted keys, no blanks, finite numbers only."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def to_json(result: AuditResult) -> str:
    """The text of report.json: sorted keys, two blanks of indent, newline at the end."""
    return json.dumps(result.model_dump(mode="json"), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def without_volatile(data: Any) -> Any:  # Any: plain JSON values
    """The same data without the volatile keys, at any depth."""
    if isinstance(data, dict):
        return {k: without_volatile(v) for k, v in data.items() if k not in VOLATILE}
    if isinstance(data, list):
        return [without_volatile(v) for v in data]
    return data


def report_hash(result: AuditResult) -> str:
    """SHA-256 of the canonical JSON without the volatile keys: equal for two runs of one seed."""
    return hashlib.sha256(canonical_json(without_volatile(result.model_dump(mode="json"))).encode()).hexdigest()


def record_hash(text: str) -> str:
    """SHA-256 over every byte of report.json, for sign-off."""
    return hashlib.sha256(text.encode()).hexdigest()


def load_json(path: str | Path) -> AuditResult:
    """The audit result of a report.json.

    Raises
    ------
    RecordError : no such file, not JSON, too large, unknown fields or kinds, or a newer schema
    """
    path = Path(path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror}); give the path of a report.json") from error
    if size > MOST_BYTES:
        raise RecordError(f"{path}: {size} bytes are more than a report can have ({MOST_BYTES})")
    return parse_json(path.read_text(encoding="utf-8", errors="replace"), name=str(path))


def parse_json(text: str, *, name: str = "report.json") -> AuditResult:
    """The audit result of the text of a report.json; raises RecordError as load_json does."""

    def refuse(token: str) -> float:
        raise RecordError(f"{name}: holds {token}, which is not JSON")

    try:
        data = json.loads(text, parse_constant=refuse)
    except (json.JSONDecodeError, RecursionError) as error:
        raise RecordError(f"{name}: is not a JSON record ({str(error)[:120]})") from error
    if not isinstance(data, dict):
        raise RecordError(f"{name}: is not a report record (no object at top level)")
    version = data.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise RecordError(f"{name}: has schema version {version}, this tl-audit reads up to {SCHEMA_VERSION}: upgrade tl-audit")
    try:
        return AuditResult.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"{name}: is not a valid report record at {where or 'the top level'}: {first['msg']}") from error


def json_schema() -> dict[str, Any]:
    """JSON Schema of report.json, generated from the records (mode: what is written)."""
    schema = AuditResult.model_json_schema(mode="validation")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "tl_audit report.json, schema version 1"
    return schema
