"""The stamp of a method's maps: what the outcomes of its quality checks allow to be said."""

from __future__ import annotations

from collections.abc import Sequence

from tl_audit.attribution.methods import EXPLAINERS
from tl_audit.records.exhibits import StampState
from tl_audit.records.findings import Finding, LimitOutcome
from tl_audit.records.metrics import Metric

GATE_CODES = ("TLA701", "TLA702", "TLA703")
"""The checks that decide: completeness, faithfulness, parameter randomisation."""


def gate_of(method: str, findings: Sequence[Finding], *, additive: bool | None = None) -> tuple[StampState, str]:
    """The stamp of one method: broken beats open, open beats passed.

    additive : whether the method promises values that add up; None: as the explainer of this name says
    """
    adds_up = _additive(method) if additive is None else additive
    broken: list[str] = []
    open_: list[str] = []
    passed: list[str] = []
    for finding in findings:
        code = finding.code
        if code == "TLA701" and not adds_up:
            continue
        if finding.measurement is None:
            open_.append(f"{code} {finding.status.replace('_', ' ')}")
            continue
        mine = [m for m in finding.measurement.metrics if m.slice.get("method") == method]
        if not mine:
            continue  # the check does not apply to this kind of method
        limits = [x for x in finding.limits if x.slice.get("method") == method]
        if not limits:
            open_.append(f"{code} has no limit in the policy")
            continue
        failed = sorted({x.metric for x in limits if x.level == "fail" and x.outcome == "broken"})
        if failed:
            broken.append(f"{code} ({', '.join(failed)})")
        elif any(_undecided(x, mine) for x in limits):
            open_.append(f"{code} inconclusive")
        else:
            passed.append(code)
    if broken:
        return "unreliable", f"not reliable: fails {', '.join(broken)}"
    if open_ or not passed:
        return "not_checked", f"reliability not shown: {', '.join(open_) or 'no check applies'}"
    return "passed", f"quality checks passed ({', '.join(passed)})"


def _undecided(limit: LimitOutcome, metrics: Sequence[Metric]) -> bool:
    """Whether a limit leaves the method open: an undecided fail limit, or an undecided warn limit with the estimate beyond it (CHECKS.md 1.2)."""
    if limit.outcome == "not_judged":
        return True
    if limit.outcome != "undecided":
        return False
    if limit.level == "fail":
        return True
    value = next((m.value for m in metrics if m.name == limit.metric), None)
    if value is None:
        return True
    beyond = {"max": value > limit.value, "min": value < limit.value, "abs": abs(value) > limit.value}
    return beyond[limit.bound]


def _additive(method: str) -> bool:
    """Whether the method promises values that add up; one that is not known here is taken at its word in the findings."""
    return next((e.complete for e in EXPLAINERS if e.name == method), True)
