"""TLA701: does the attribution add up to what it explains?"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from tl_audit.attribution import EXPLAINERS, Attribution, explainer
from tl_audit.attribution.quality import BAD, residuals
from tl_audit.checks.base import Context, check, metric
from tl_audit.checks.explanations.shared import (
    BoolArray,
    FloatArray,
    again_with,
    blank_caveats,
    blank_metrics,
    cluster_of,
    maps_of,
    mean_over,
    unavailable,
)
from tl_audit.checks.wording import counted, percent
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures.estimate import Estimate
from tl_audit.measures.intervals import rate
from tl_audit.models.model import Model
from tl_audit.records.exhibits import Bar, Bars, Cell, Column, Exhibit, Table
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject

DOUBLINGS = 4


@check(
    "TLA701",
    "Completeness",
    section="explanations",
    severity="high",
    needs=("adapted", "target", "adapted@target"),
    runs_models=True,
    values="same",
)
def completeness(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Does the attribution add up to what it explains?

    How it is measured: for methods that promise it, the values of a map are summed and compared with the change of the output between the sample and the reference input. The residual is
    the difference as a share of that change (of 1 % of the median change where the sample's own is smaller); above 5 % it is bad. Where a method that integrates in steps has bad samples,
    these are explained again with twice the steps, up to four times, and the report says how many steps would have been needed; the numbers are those of the maps that are shown.

    Why it matters: a map that leaves out a part of the change, or invents one, shares out something else than the output. Rules for single layers are silently wrong where a network
    uses a function that they do not know.

    How to reduce the risk: raise the steps or the budget, explain logits rather than probabilities, replace functional activations by modules, or leave the method out.
    """
    additive = [m for m in evidence.methods if explainer(m).complete]
    if not additive:
        known = ", ".join(e.name for e in EXPLAINERS if e.complete)
        raise NotEvaluated(f"a method whose values promise to add up ({known}): none was chosen")
    maps = maps_of(evidence, methods=additive)
    metrics: list[Metric] = []
    bars: list[Bar] = []
    rows: list[tuple[Cell, ...]] = []
    said: list[str] = []
    notes: list[str] = []
    params: dict[str, int | float | str] = {"bad_above": BAD, "samples": len(maps.first)}
    for done, (method, a) in enumerate(maps.found.items()):
        context.progress("completeness", done, len(maps.found))
        cluster = cluster_of(evidence, a.inputs.ids)
        residual, bad = completeness_of(a)
        ok = ~a.blank
        where = {"method": method}
        nothing = "every map is blank" if not ok.any() else "nothing changes between the samples and the reference input"
        size = mean_over(np.where(ok, residual, np.nan), cluster, bounds=None, nothing=nothing)
        share = rate(bad[ok], cluster=None if cluster is None else cluster[ok]) if ok.any() else Estimate(None, 0, nothing)
        metrics.append(metric("completeness_residual", size, rules=context.rules, better="lower", slice=where))
        metrics.append(metric("completeness_bad_share", share, rules=context.rules, better="lower", slice=where))
        if not explainer(method).needs_gradients:
            notes.append(f"{method} adds up by construction: its residual is rounding, and says nothing of how exact the values are")
        repaired = _with_more_steps(subject.adapted, a, bad & ok)
        if repaired is not None:
            params[f"steps_tried:{method}"] = repaired.steps
            notes.append(repaired.sentence(method))
        defined = residual[ok & np.isfinite(residual)]
        rows.append(
            (
                method,
                int(ok.sum()),
                size.value,
                float(np.median(defined)) if defined.size else None,
                float(defined.max()) if defined.size else None,
                share.value,
                "by construction" if not explainer(method).needs_gradients else "",
            )
        )
        bars.append(
            Bar(
                label=method,
                value=share.value,
                interval=None if share.value is None else share.interval(context.rules.confidence),
                n=share.n,
                null=0.0,
                note=share.reason if share.value is None else None,
            )
        )
        if share.value is not None:
            said.append(f"{method} {percent(share.value)}")
    metrics += blank_metrics(maps)
    metrics += unavailable(("completeness_residual", "completeness_bad_share"), maps.missing)
    exhibits: list[Exhibit] = [
        Bars(
            id="completeness",
            title=f"Samples whose values miss the change they explain by more than 5 %: {', '.join(said) or 'undefined'}",
            how_to_read="A bar is the share of maps whose values do not add up. 0 is what the method promises.",
            alt="Bars of the share of samples with a completeness residual above 5 percent, per additive method.",
            caption=f"n = {len(maps.first)} target samples, blank maps left out; seed {context.seed}.",
            value_label="share of samples",
            bars=tuple(bars),
        ),
        Table(
            id="completeness-by-method",
            title="What the values of a map miss of the change they explain",
            how_to_read="Residual: |sum of values − change of the output|, as a share of that change. 0: the map adds up.",
            alt="Table of completeness residuals per additive method: mean, median, largest, share above 5 percent.",
            caption=f"n = {len(maps.first)} target samples; seed {context.seed}.",
            columns=(
                Column(name="method"), Column(name="maps", format="count"), Column(name="mean residual", format="number"),
                Column(name="median", format="number"), Column(name="largest", format="number"),
                Column(name="above 5 %", format="share"), Column(name="note"),
            ),
            rows=tuple(rows),
        ),
    ]  # fmt: skip
    return Measurement(
        summary=f"Share of samples whose values miss the explained change by more than 5 %: {', '.join(said) or 'undefined'}.",
        metrics=tuple(metrics),
        exhibits=tuple(exhibits),
        caveats=(*blank_caveats(maps), *(f"{m} was not computed: {why}" for m, why in maps.missing.items()), *notes),
        params=params,
    )


def completeness_of(a: Attribution) -> tuple[FloatArray, BoolArray]:
    """(N,) residual of each map, and whether it is above 5 %; NaN and bad where there is nothing to compare with but a sum."""
    residual = residuals(a)
    return residual, np.asarray(~(residual <= BAD))


@dataclass(frozen=True)
class _MoreSteps:
    """What became of samples with a bad residual when they were explained with more steps."""

    bad: int
    left: int
    before: int
    steps: int

    def sentence(self, method: str) -> str:
        if self.left:
            return f"{method}: {self.left} of {counted(self.bad, 'bad residual')} {'stays' if self.left == 1 else 'stay'} bad with {self.steps} steps instead of {self.before}: the steps are not the cause"
        return f"{method}: {counted(self.bad, 'bad residual')} {'is' if self.bad == 1 else 'are'} repaired with {self.steps} steps instead of {self.before}: raise the steps"


def _with_more_steps(model: Model, a: Attribution, bad: BoolArray) -> _MoreSteps | None:
    """Bad samples explained again with twice the steps, at most four times; None where nothing is bad or the method has no steps of its own."""
    before = a.params.get("steps")
    has_steps = any(f.name == "steps" for f in fields(explainer(a.method)))  # type: ignore[arg-type]  # explainers are dataclasses
    if not bad.any() or not has_steps or not isinstance(before, int):
        return None
    rows, steps = np.flatnonzero(bad), before
    for _ in range(DOUBLINGS):
        steps *= 2
        part = a.select(rows)
        _, still = completeness_of(again_with(model, part, part.inputs, part.explained, seed=a.seed, steps=steps))
        rows = rows[still]
        if rows.size == 0:
            break
    return _MoreSteps(int(bad.sum()), len(rows), before, steps)
