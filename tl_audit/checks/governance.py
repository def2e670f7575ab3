"""Family 9: what only a person can state. No statistics; the tool records who said what and never judges law."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tl_audit.checks.base import Check, Context, check, exact
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.records.exhibits import Cell, Column, Table
from tl_audit.records.metrics import Measurement
from tl_audit.subject import Subject

NEEDS_A_SENTENCE = frozenset({"purpose", "users", "affected_people", "out_of_scope", "metric_rationale", "monitoring_plan"})
"""Facts that fewer than three words cannot state."""

_PLACEHOLDER = re.compile(r"^\W*(todo|tbd|tba|fixme|xxx+|lorem ipsum)\b", re.IGNORECASE)
_EMPTY = re.compile(r"^(\W*|\W*(n/?a|none|nil|unknown|to be (done|decided|defined))\W*|<[^>]*>|\[[^\]]*\])$", re.IGNORECASE)


@check("TLA901", "Declared facts", section="governance", severity="high", multiplicity="none")
def declared_facts(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Has a person stated what only a person can?

    How it is measured: the policy lists the facts it wants; each is looked up in [declared]. Empty text and placeholders ("todo", "...",
    "tbd", "n/a" without a reason) count as missing, and so do fewer than three words where a sentence is needed.

    Why it matters: purpose, users and limits of use cannot be measured, and without them no number of the report says whether it is enough.

    How to reduce the risk: state the missing facts in [declared] of audit.toml, with who said it and when.
    """
    wanted = tuple(dict.fromkeys(context.rules.declare))
    if not wanted:
        raise NotEvaluated("facts wanted by the policy: [policy] declare names none")
    states = {key: declaration_state(key, context.declared) for key in wanted}
    missing = [key for key, state in states.items() if state != "stated"]
    rows: list[tuple[Cell, ...]] = [
        (key, state, _part(context.declared, key, "by"), _part(context.declared, key, "on")) for key, state in states.items()
    ]
    return Measurement(
        summary=f"{len(wanted) - len(missing)} of {len(wanted)} facts that the policy wants are stated."
        + (f" Missing: {', '.join(missing)}." if missing else ""),
        metrics=(
            exact("declared_missing", len(missing), n={"wanted": len(wanted)}, better="lower"),
            exact("declared_present_share", 1 - len(missing) / len(wanted), n={"wanted": len(wanted)}, better="higher"),
        ),
        exhibits=(
            Table(
                id="declared",
                title=f"{len(missing)} of {len(wanted)} wanted facts are missing" if missing else "All wanted facts are stated",
                how_to_read="One row per fact that the policy wants. The texts themselves stand in the sections they belong to.",
                alt=f"{len(wanted)} wanted facts, {len(missing)} missing: {', '.join(missing) or 'none'}.",
                caption="Declared by persons, not measured.",
                columns=(Column(name="fact"), Column(name="state"), Column(name="by"), Column(name="on")),
                rows=tuple(rows),
            ),
        ),
    )


def declaration_state(key: str, declared: Mapping[str, Any]) -> str:
    """ "stated", "missing", "placeholder" or "too short", of one declared fact."""
    text = _text(declared.get(key))
    if not text.strip():
        return "missing"
    if _PLACEHOLDER.match(text) or _EMPTY.match(text.strip()):
        return "placeholder"
    return "too short" if key in NEEDS_A_SENTENCE and len(re.findall(r"\w+", text)) < 3 else "stated"


def missing_declarations(wanted: Sequence[str], declared: Mapping[str, Any]) -> tuple[str, ...]:
    """The wanted facts that nobody has stated."""
    return tuple(key for key in dict.fromkeys(wanted) if declaration_state(key, declared) != "stated")


def _text(value: Any) -> str:  # Any: TOML values
    """The words of a declared value: text, a list, or {value, by, on}."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return _text(value.get("value"))
    if isinstance(value, list | tuple):
        parts = [_text(v) for v in value]
        return " ".join(p for p in parts if p.strip() and not _PLACEHOLDER.match(p) and not _EMPTY.match(p.strip()))
    return str(value)


def _part(declared: Mapping[str, Any], key: str, part: str) -> str | None:
    value = declared.get(key)
    if not _text(value).strip():
        return None
    own = value.get(part) if isinstance(value, Mapping) else None
    found = own if own is not None else declared.get(part)
    return None if found is None else str(found)


GOVERNANCE: tuple[Check, ...] = (declared_facts,)
