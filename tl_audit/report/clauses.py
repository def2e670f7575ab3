"""Clause maps as the page shows them: where a report speaks to a clause. The state follows from what exists, never from pass or fail."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tl_audit.frameworks import Entry, Framework, load_framework, names
from tl_audit.records.findings import AuditResult, Finding
from tl_audit.report.declared import text_of

STATES = ("evidence present", "partial", "person needed", "declared", "not assessed")


@dataclass(frozen=True)
class ClauseRow:
    """One clause: its state, the findings that speak to it, and the declared facts that a person still owes."""

    clause: str
    summary: str
    state: str
    findings: tuple[str, ...]
    owed: tuple[str, ...]
    verified: bool
    note: str | None


@dataclass(frozen=True)
class ClauseMap:
    framework: Framework
    rows: tuple[ClauseRow, ...]


def clause_maps(result: AuditResult, named: Sequence[str], missing: Sequence[str]) -> tuple[tuple[ClauseMap, ...], tuple[str, ...]]:
    """The maps of the frameworks that the policy names, and the names for which there is none. ``missing``: declared keys that hold no fact."""
    known = set(names())
    maps = tuple(
        ClauseMap(framework, tuple(_row(entry, result, missing) for entry in framework.entries))
        for framework in (load_framework(name) for name in named if name in known)
    )
    return maps, tuple(name for name in named if name not in known)


def _row(entry: Entry, result: AuditResult, missing: Collection[str]) -> ClauseRow:
    asked: list[bool] = []
    codes: list[str] = []
    for reference in entry.evidence:
        kind, _, name = reference.partition(":")
        if kind in ("family", "code"):
            found = [f for f in result.findings if (f.section if kind == "family" else f.code) == name]
            held = [f for f in found if _speaks(f)]
            asked.append(bool(held))
            codes += [f.code for f in held if f.code not in codes]
        elif kind == "record":
            asked.append(getattr(result, name, None) is not None)
    owed = tuple(key for key in entry.person if key in missing or not text_of(result.declared.get(key)).strip())
    return ClauseRow(
        clause=entry.clause,
        summary=entry.summary,
        state=_state(entry, asked, bool(owed), _signed(result.declared)),
        findings=tuple(codes),
        owed=owed,
        verified=entry.verified,
        note=entry.note,
    )


def _speaks(finding: Finding) -> bool:
    return finding.status not in ("not_evaluated", "error")


def _state(entry: Entry, asked: Sequence[bool], owed: bool, signed: bool) -> str:
    if entry.who == "person":
        return "person needed" if owed else "declared"
    if not any(asked):
        return "not assessed"
    capped = owed or (entry.who == "tool-drafts" and not signed)
    return "evidence present" if all(asked) and not capped else "partial"


def _signed(declared: Mapping[str, Any]) -> bool:
    """Whether somebody approved: a name and a decision, as on page 1."""
    signoff = declared.get("signoff")
    return isinstance(signoff, Mapping) and all(text_of(signoff.get(key)) for key in ("approver", "decision"))
