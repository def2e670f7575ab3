"""Declared facts as the page shows them: quoted text with name and date, or a visible gap. Nothing here is judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["FACTS", "LISTS", "Fact", "entries", "facts", "signoff", "text_of"]

FACTS: dict[str, tuple[tuple[str, str], ...]] = {
    "purpose": (
        ("purpose", "Purpose"), ("users", "Users"), ("affected_people", "People affected"), ("decision_role", "Role in the decision"),
        ("out_of_scope", "Out of scope"), ("misuse", "Foreseeable misuse"),
    ),
    "setting": (
        ("deployment", "Deployment"), ("jurisdictions", "Jurisdictions"), ("owner", "Owner"), ("contact", "Contact"),
        ("version", "Version"), ("licence", "Licence"),
    ),
    "base": (
        ("base_source", "Origin of the base"), ("base_licence", "Licence of the base"), ("base_training_data", "Training data of the base"),
        ("base_known_limits", "Known limits of the base"), ("base_training_flop", "Training compute of the base"),
        ("adaptation_reason", "Reason for adapting"), ("role_questions", "Questions of role"),
    ),
    "data": (
        ("data_origin", "Origin"), ("data_collection", "Collection"), ("data_labelling", "Labelling"),
        ("data_agreement", "Agreement of labellers"), ("data_time_span", "Time span"), ("data_licence", "Licence"),
        ("data_preparation", "Preparation"), ("data_assumptions", "Assumptions"), ("data_retention", "Retention"),
        ("data_lawful_basis", "Lawful basis"), ("groups_source", "Source of group labels"), ("special_category_data", "Special category data"),
    ),
    "metrics": (("metric_rationale", "Why these metrics"), ("threshold_rationale", "Why this threshold")),
    "groups": (
        ("harm", "Harm tested"), ("reference_group_rationale", "Reference group and why"), ("groups_not_tested", "Attributes not tested"),
        ("bias_mitigation", "Measures against bias"),
    ),
    "explanations": (
        ("explanation_audience", "Audience"), ("explanation_text", "Plain-language reading"), ("region_meaning", "Meaning of the declared region"),
    ),
    "oversight": (("oversight", "Human oversight"), ("prohibited_uses", "Prohibited uses"), ("security_measures", "Security measures")),
    "plans": (("monitoring_plan", "Monitoring plan"), ("next_audit", "Next audit")),
    "papers": (
        ("standards", "Standards"), ("quality_management", "Quality management"), ("distribution", "Distribution"), ("retention", "Retention"),
    ),
}  # fmt: skip
"""The facts of each block of the report: (key, label)."""

LISTS: dict[str, tuple[str, ...]] = {
    "risks": ("hazard", "group", "findings", "likelihood", "severity", "mitigation", "residual", "accepted_by"),
    "monitoring": ("metric", "trigger", "owner"),
    "changes": ("modification", "protocol", "impact"),
    "answers": ("check", "answer", "by", "on"),
}
"""The repeated tables and their columns, in the order of print."""

_EMPTY = ("", "tbd", "todo", "n/a")


@dataclass(frozen=True)
class Fact:
    """One declared fact. ``text`` empty: nobody supplied it. ``wanted``: the policy asks for it."""

    key: str
    label: str
    text: str
    by: str
    wanted: bool


def text_of(value: Any) -> str:
    """The text of a declared value: text, list, number, or {value, by, on}."""
    if isinstance(value, Mapping):
        return text_of(value.get("value")) if "value" in value else "; ".join(f"{k}: {text_of(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(t for t in (text_of(v) for v in value) if t)
    text = "" if value is None else str(value).strip()
    return "" if text.lower() in _EMPTY else text


def _by(value: Any, declared: Mapping[str, Any]) -> str:
    own: Mapping[str, Any] = value if isinstance(value, Mapping) and "value" in value else {}
    name = text_of(own.get("by", declared.get("by")))
    day = text_of(own.get("on", declared.get("on")))
    return ", ".join(part for part in (name, day) if part)


def facts(block: str, declared: Mapping[str, Any], missing: Sequence[str]) -> tuple[Fact, ...]:
    """The facts of a block in order; those that the policy lists as missing carry no text even where a placeholder was written."""
    out = []
    for key, label in FACTS[block]:
        value = declared.get(key)
        text = "" if key in missing else text_of(value)
        out.append(Fact(key, label, text, _by(value, declared) if text else "", key in missing))
    return tuple(out)


def entries(key: str, declared: Mapping[str, Any]) -> tuple[Mapping[str, str], ...]:
    """Repeated tables such as ``[[declared.risks]]`` as rows of text, every known column in order; what nobody filled is empty."""
    rows = declared.get(key)
    if not isinstance(rows, (list, tuple)):
        return ()
    known = LISTS[key]
    return tuple(
        {k: text_of(row.get(k)) for k in (*known, *sorted(str(k) for k in row if k not in known))}
        for row in rows
        if isinstance(row, Mapping)
    )


def signoff(declared: Mapping[str, Any]) -> dict[str, str]:
    """The declared sign-off: preparer, reviewer, independence, approver, decision, on; empty where nobody signed."""
    table = declared.get("signoff")
    if not isinstance(table, Mapping):
        return {}
    return {
        key: text for key in ("preparer", "reviewer", "independence", "approver", "decision", "on") if (text := text_of(table.get(key)))
    }
