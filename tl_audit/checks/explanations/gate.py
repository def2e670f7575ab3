"""TLA711: may the maps of a method be shown as explanations?"""

from __future__ import annotations

from collections.abc import Sequence

from tl_audit.attribution.stamps import GATE_CODES as GATE_CODES
from tl_audit.attribution.stamps import gate_of as gate_of
from tl_audit.checks.base import Context, check, exact
from tl_audit.checks.explanations.methods import methods_table
from tl_audit.checks.wording import counted
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.records.exhibits import (
    Column,
    Table,
)
from tl_audit.records.findings import Finding
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject


@check("TLA711", "Explanation gate", section="explanations", severity="critical", needs=("adapted", "target"), phase=2, values="same")
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
        title=f"{usable} of {counted(len(methods), 'attribution method')} passed their quality checks",
        how_to_read="The stamp stands under every map of the method in this report.",
        alt="Table of attribution methods with their stamp.",
        caption=f"Rests on {', '.join(sorted({f.code for f in findings}))}.",
        columns=(Column(name="method"), Column(name="state"), Column(name="stamp")),
        rows=tuple((m, state.replace("_", " "), text) for m, (state, text) in verdicts.items()),
    )
    return Measurement(
        summary=f"{usable} of {counted(len(methods), 'attribution method')} may be shown as checked: "
        + "; ".join(f"{m}: {text}" for m, (_, text) in verdicts.items())
        + ".",
        metrics=tuple(metrics),
        exhibits=(table, methods_table(evidence, methods)),
        params={f"stamp:{m}": f"{state}: {text}" for m, (state, text) in verdicts.items()},
    )


def usable_methods(findings: Sequence[Finding], methods: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Methods whose maps may be summed up by TLA705 to TLA710, and why the others may not.

    A method that fails one of its own quality checks is left out; one of which nothing was decided stays, with its stamp.

    Raises
    ------
    NotEvaluated : no method is left
    """
    if not methods:
        raise NotEvaluated("no attribution method was chosen")
    states = {method: gate_of(method, [f for f in findings if f.code in GATE_CODES]) for method in methods}
    kept = tuple(m for m, (state, _) in states.items() if state != "unreliable")
    left_out = {m: text for m, (state, text) in states.items() if state == "unreliable"}
    if not kept:
        why = "; ".join(f"{m} is {text}" for m, text in left_out.items())
        raise NotEvaluated(f"No attribution method passed its own quality checks: {why}.")
    return kept, left_out


def _n_maps(method: str, findings: Sequence[Finding]) -> int:
    counts = [
        max(m.n.values(), default=0)
        for f in findings
        if f.measurement is not None
        for m in f.measurement.metrics
        if m.slice.get("method") == method
    ]
    return max(counts, default=0)
