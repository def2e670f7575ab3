"""TLA705: do different explainers tell the same story?"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from tl_audit.attribution import Attribution
from tl_audit.checks.base import Context, check, metric
from tl_audit.checks.explanations.gate import GATE_CODES, usable_methods
from tl_audit.checks.explanations.shared import (
    FloatArray,
    blank_caveats,
    blank_metrics,
    chance_iou,
    cluster_of,
    maps_of,
    mean_over,
    player_scores,
    unavailable,
)
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures.attribution import rank_correlation, sign_agreement, top_iou
from tl_audit.measures.estimate import Estimate
from tl_audit.records.exhibits import Exhibit, Heatmap
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject


@check(
    "TLA705",
    "Agreement of methods",
    section="explanations",
    severity="medium",
    needs=("adapted", "target", "adapted@target"),
    phase=2,
    runs_models=True,
    after=GATE_CODES,
    values="same",
)
def agreement(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Do different explainers tell the same story?

    How it is measured: two methods explain the same samples on the same input parts; per sample the rank correlation of their values (per area, on images), the overlap of the top
    tenth of parts, and, where both have signs, the share of parts with the same sign. Means with t intervals over samples or clusters. Methods that the gate calls unreliable are
    left out. The limit is held against the pair that agrees best.

    Why it matters: where no two methods agree, a reader who sees one map sees that method's choices. Agreement is no proof: methods may be blind to the same thing.

    How to reduce the risk: show more than one method, say where they differ, and rest no argument on parts that one method alone marks.
    """
    usable, left_out = usable_methods(context.findings, evidence.methods)
    maps = maps_of(evidence, methods=usable)
    lead = maps.first
    same = {m: a for m, a in maps.found.items() if a.inputs.ids == lead.inputs.ids and np.array_equal(a.targets, lead.targets)}
    if len(same) < 2:
        out = "; ".join(f"{m} is {why}" for m, why in {**left_out, **maps.missing}.items())
        raise NotEvaluated(f"two attribution methods whose maps may be compared{f' ({out})' if out else ''}")
    cluster = cluster_of(evidence, lead.inputs.ids)
    chance = chance_iou(lead.inputs.players.count)
    metrics: list[Metric] = []
    pairs: dict[tuple[str, str], Estimate] = {}
    for first, second in combinations(same, 2):
        a, b = same[first], same[second]
        where = {"pair": f"{first} and {second}"}
        alike = mean_over(player_scores(rank_correlation, a, b, density=True), cluster, bounds=(-1, 1), null=0.0, seed=context.seed)
        pairs[first, second] = alike
        metrics.append(metric("method_rank_correlation", alike, rules=context.rules, slice=where))
        top = mean_over(player_scores(top_iou, a, b, density=True), cluster, bounds=(0, 1), null=chance)
        metrics.append(metric("method_top_iou", top, rules=context.rules, slice=where))
        if a.signed and b.signed:
            nothing = "no part has a sign in both maps"
            signs = mean_over(player_scores(sign_agreement, a, b), cluster, bounds=(0, 1), null=_chance_signs(a, b), nothing=nothing)
            metrics.append(metric("method_sign_agreement", signs, rules=context.rules, slice=where))
    best = max(pairs, key=lambda pair: _upper(pairs[pair], context.rules.confidence))
    metrics.append(metric("best_pair_rank_correlation", pairs[best], rules=context.rules))
    metrics += blank_metrics(maps)
    metrics += unavailable(("method_rank_correlation",), maps.missing)
    known = {pair: e.value for pair, e in pairs.items() if e.value is not None}
    if known:
        low, high = min(known, key=lambda p: known[p]), max(known, key=lambda p: known[p])
        said = f"{' and '.join(high)} agree best (rank correlation {known[high]:.2f})"
        said += f", {' and '.join(low)} least ({known[low]:.2f})" if low != high else ""
    else:
        said = "no two methods have a map with a signal for the same sample"
    return Measurement(
        summary=f"Of {len(same)} attribution methods, {said}.",
        metrics=tuple(metrics),
        exhibits=(_heatmap(tuple(same), pairs, len(lead), context.seed, said),),
        caveats=(
            "agreement is not truth: methods may share a blind spot; disagreement is normal",
            *(f"{m} is left out: {why}" for m, why in left_out.items()),
            *(f"{m} was not computed: {why}" for m, why in maps.missing.items()),
            *blank_caveats(maps),
        ),
        params={"samples": len(lead), "seed": context.seed, "compared_on": "values of the same input parts"},
    )


def _upper(estimate: Estimate, confidence: float) -> float:
    """Upper bound of a pair's agreement; its value where there is no interval."""
    if estimate.value is None:
        return -np.inf
    interval = estimate.interval(confidence)
    return estimate.value if interval is None else interval[1]


def _chance_signs(a: Attribution, b: Attribution) -> float | None:
    """Share of equal signs that two maps with these shares of positive values would have if they were unrelated; mean over samples."""
    expected: list[float] = []
    for x, y in zip(a.player_values, b.player_values, strict=True):
        both = np.isfinite(x) & np.isfinite(y) & (x != 0) & (y != 0)
        if both.any():
            p, q = float((x[both] > 0).mean()), float((y[both] > 0).mean())
            expected.append(p * q + (1 - p) * (1 - q))
    return float(np.mean(expected)) if expected else None


def _heatmap(methods: tuple[str, ...], pairs: dict[tuple[str, str], Estimate], n: int, seed: int, said: str) -> Exhibit:
    values: FloatArray = np.full((len(methods), len(methods)), np.nan)
    np.fill_diagonal(values, 1.0)
    for (first, second), estimate in pairs.items():
        i, j = methods.index(first), methods.index(second)
        values[i, j] = values[j, i] = np.nan if estimate.value is None else estimate.value
    return Heatmap(
        id="agreement",
        title=f"Agreement of {len(methods)} methods on the same samples: {said}",
        how_to_read="1: two methods rank the parts of a sample alike; 0: their ranks have nothing in common.",
        alt=f"Matrix of rank correlations between attribution methods; {said}.",
        caption=f"Mean over n = {n} target samples, same input parts for all methods; seed {seed}.",
        row_label="method",
        column_label="method",
        rows=methods,
        columns=methods,
        values=tuple(tuple(None if np.isnan(v) else float(v) for v in row) for row in values),
        text=tuple(tuple("–" if np.isnan(v) else f"{v:.2f}".replace("-", "−") for v in row) for row in values),
        value_label="rank correlation",
        signed=True,
        value_range=(-1.0, 1.0),
    )
