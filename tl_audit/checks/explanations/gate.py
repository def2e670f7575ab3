"""TLA711: may the maps of a method be shown as explanations?"""

from __future__ import annotations

from collections.abc import Sequence

from tl_audit.checks.base import Context, check, exact
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.records.exhibits import (
    Column,
    StampState,
    Table,
)
from tl_audit.records.findings import Finding, LimitOutcome
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject

GATE_CODES = ("TLA701", "TLA702", "TLA703")


@check("TLA711", "Explanation gate", section="explanations", severity="critical", needs=("adapted", "target"), phase=2)
def explanation_gate(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """May the maps of a method be shown as explanations?

    How it is measured: for each method, the outcomes of completeness (TLA701), faithfulness (TLA702) and parameter randomisation (TLA703), as far as they apply. A broken fail limit
    stamps every map of the method "not reliable"; an undecided or unmeasured one stamps it "reliability not shown"; else it is stamped "quality checks passed".

    Why it matters: a plausible picture is believed. A method that fails a check of its own may not lend its maps to an argument.

    How to reduce the risk: use the methods that passed, raise samples or budget where nothing was decided, or leave the maps out.
    """
    methods = tuple(evidence.methods)
    if not methods:
        raise NotEvaluated("no attribution method was chosen")
    findings = [f for f in context.findings if f.code in GATE_CODES]
    if not findings:
        raise NotEvaluated("needs the findings of TLA702 or TLA703: they were deselected")
    verdicts = {method: gate_of(method, findings) for method in methods}
    metrics: list[Metric] = []
    for method, (state, text) in verdicts.items():
        value = {"passed": 1.0, "unreliable": 0.0}.get(state)
        metrics.append(
            exact(
                "gate_passed",
                value,
                better="higher",
                slice={"method": method},
                n={"target": _n_maps(method, findings)},
                reason=None if value is not None else text,
            )
        )
    usable = sum(state == "passed" for state, _ in verdicts.values())
    undecided = [m for m, (state, _) in verdicts.items() if state == "not_checked"]
    open_question = usable == 0 and bool(undecided)
    metrics.append(
        exact(
            "methods_usable", None if open_question else float(usable), better="higher", n={"methods": len(methods)},
            reason=f"no method passed, and nothing was decided for {', '.join(undecided)}" if open_question else None,
        )
    )  # fmt: skip
    table = Table(
        id="gate",
        title=f"{usable} of {len(methods)} attribution method(s) passed their quality checks",
        how_to_read="The stamp stands under every map of the method in this report.",
        alt="Table of attribution methods with their stamp.",
        caption=f"Rests on {', '.join(sorted({f.code for f in findings}))}.",
        columns=(Column(name="method"), Column(name="state"), Column(name="stamp")),
        rows=tuple((m, state.replace("_", " "), text) for m, (state, text) in verdicts.items()),
    )
    return Measurement(
        summary=f"{usable} of {len(methods)} attribution method(s) may be shown as checked: "
        + "; ".join(f"{m}: {text}" for m, (_, text) in verdicts.items())
        + ".",
        metrics=tuple(metrics),
        exhibits=(table,),
        params={f"stamp:{m}": f"{state}: {text}" for m, (state, text) in verdicts.items()},
    )


def usable_methods(findings: Sequence[Finding], methods: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Methods whose maps may be summed up by TLA705 to TLA710, and why the others may not.

    A method that fails one of its own quality checks is left out; one of which nothing was decided stays, with its stamp.

    Raises
    ------
    NotEvaluated : no method is left
    """
    states = {method: gate_of(method, [f for f in findings if f.code in GATE_CODES]) for method in methods}
    kept = tuple(m for m, (state, _) in states.items() if state != "unreliable")
    left_out = {m: text for m, (state, text) in states.items() if state == "unreliable"}
    if not kept:
        why = "; ".join(f"{m} is {text}" for m, text in left_out.items())
        raise NotEvaluated(f"No attribution method passed its own quality checks{f': {why}' if why else ': none was chosen'}.")
    return kept, left_out


def gate_of(method: str, findings: Sequence[Finding]) -> tuple[StampState, str]:
    """The stamp of one method: broken beats open, open beats passed."""
    broken: list[str] = []
    open_: list[str] = []
    passed: list[str] = []
    for finding in findings:
        code = finding.code
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


def _n_maps(method: str, findings: Sequence[Finding]) -> int:
    counts = [
        max(m.n.values(), default=0)
        for f in findings
        if f.measurement is not None
        for m in f.measurement.metrics
        if m.slice.get("method") == method
    ]
    return max(counts, default=0)
