"""Reconciliation: what must hold between the parts of a record. A report that does not reconcile is never written (REPORT.md (i))."""

from __future__ import annotations

from collections.abc import Iterator

from tl_audit.records.findings import STATUSES, AuditResult, Finding

TOLERANCE = 1e-9


def breaches(result: AuditResult) -> tuple[str, ...]:
    """What does not add up, in sentences; empty for a sound record. When the record is built a breach is our bug, later it is an alteration."""
    return tuple(_breaches(result))


def _breaches(result: AuditResult) -> Iterator[str]:
    codes = [f.code for f in result.findings]
    for code in sorted({c for c in codes if codes.count(c) > 1}):
        yield f"R1: {code} appears {codes.count(code)} times"
    counts = {status: sum(f.status == status for f in result.findings) for status in STATUSES}
    if dict(result.outcome.counts) != counts:
        yield f"R1: the outcome counts {dict(result.outcome.counts)}, the findings {counts}"
    for code in result.outcome.blocked_by:
        if code not in codes:
            yield f"R12: the gate is closed by {code}, which is not in the record"
    for role in ("target", "source", "train", "validation", "ood"):
        card = getattr(result.subject, role)
        if card is None:
            continue
        if sum(card.class_counts.values()) > card.n:
            yield f"R2: the {role} has {card.n} rows and {sum(card.class_counts.values())} labels"
        for column, groups in card.groups.items():
            known = [n for n in groups.values() if isinstance(n, int)]
            if sum(known) > card.n or (len(known) == len(groups) and sum(known) != card.n):
                yield f"R2: groups of {column!r} sum to {sum(known)}, the {role} has {card.n} rows"
    for finding in result.findings:
        yield from _of_finding(finding)


def _of_finding(finding: Finding) -> Iterator[str]:
    code = finding.code
    if finding.status in ("not_evaluated", "error"):
        if finding.measurement is not None:
            yield f"R8: {code} is {finding.status} and holds a measurement"
    elif finding.measurement is None:
        yield f"R8: {code} is {finding.status} without a measurement"
    if finding.status in ("pass", "warn", "fail") and not finding.limits and not finding.questions:
        yield f"R7: {code} is {finding.status} without a limit"
    if finding.status == "pass" and any(o.outcome == "broken" for o in finding.limits):
        yield f"R8: {code} passes with a broken limit"
    if finding.measurement is None:
        return
    seen: dict[tuple[str, tuple[tuple[str, str], ...]], float | None] = {}
    for m in finding.measurement.metrics:
        name = f"{code} {m.name} {dict(m.slice) or ''}".rstrip()
        key = (m.name, tuple(sorted(m.slice.items())))
        if key in seen and seen[key] != m.value:
            yield f"R5: {name} has two values"
        seen[key] = m.value
        if any(n < 0 for n in m.n.values()):
            yield f"R2: {name} has a negative n"
        if m.interval is not None:
            low, high = m.interval
            if low > high + TOLERANCE:
                yield f"R4: {name} has the interval {low} to {high}"
            # counts of events mark plain rates; debiased statistics may lie outside their centred interval
            if m.events is not None and m.value is not None and not low - TOLERANCE <= m.value <= high + TOLERANCE:
                yield f"R4: {name} = {m.value} lies outside {low} to {high}"
        if m.p_value is not None and m.p_value <= 0.0:
            yield f"R4: {name} has p = 0"
        if m.p_value is not None and m.p_adjusted is not None and m.p_adjusted < m.p_value - TOLERANCE:
            yield f"R4: {name} has an adjusted p below its p"
