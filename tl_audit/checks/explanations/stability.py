"""TLA704: does a second run give the same map?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from math import ceil

import numpy as np

from tl_audit.attribution import Attribution, explainer
from tl_audit.checks.base import Context, check, exact, metric
from tl_audit.checks.explanations.shared import (
    FloatArray,
    Maps,
    again_with,
    blank_caveats,
    blank_metrics,
    chance_iou,
    cluster_of,
    estimate_bar,
    maps_of,
    mean_of_known,
    mean_over,
    player_scores,
    unavailable,
)
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures.attribution import rank_correlation, sign_agreement, top_iou
from tl_audit.measures.sampling import generator, priority
from tl_audit.models.model import Model
from tl_audit.records.exhibits import Bar, Bars
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject

SEEDS = 5
SAMPLES = 16
MIN_SAMPLES = 10
"""Below this nothing is decided. Fewer than the 30 of other attribution metrics: a sample costs four more runs here, and counts with ten pairs of maps."""
STABLE = 0.8


@check(
    "TLA704",
    "Seed stability",
    section="explanations",
    severity="medium",
    needs=("adapted", "target", "adapted@target"),
    runs_models=True,
    values="same",
)
def seed_stability(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Does a second run give the same map?

    How it is measured: up to 16 of the explained samples, the first by hash, are explained with four more seeds at the audit's own budget. For each sample the ten pairs of the five
    runs are compared on the signed values of the input parts: rank correlation, overlap of the top tenth, share of parts with the same sign. Means with t intervals over samples or
    clusters. Each run draws from a generator of its own per sample; where a method draws one neighbourhood for all samples (lime on tables), a run draws one anew.

    Why it matters: what changes from run to run is the sampling of the method, and not what the model looks at.

    How to reduce the risk: raise the budget (the sampling error falls with its square root), use fewer and larger input parts, or a method that does not sample.
    """
    stochastic = [m for m in evidence.methods if explainer(m).stochastic]
    if not stochastic:
        raise NotEvaluated("a method that samples: those chosen are deterministic, a second run gives the same map")
    maps = maps_of(evidence)
    first = np.argsort(priority(context.seed, maps.first.inputs.ids), kind="stable")[:SAMPLES]
    seeds = [int(generator(context.seed, "TLA704", run).integers(2**31)) for run in range(1, SEEDS)]
    shown = Maps({m: a.select(np.sort(first)) for m, a in maps.found.items() if a.inputs.ids == maps.first.inputs.ids}, maps.missing)
    metrics: list[Metric] = []
    bars: list[Bar] = []
    said: list[str] = []
    advice: list[str] = []
    params: dict[str, int | str] = {"seeds": SEEDS, "seed": context.seed, "samples": len(shown.first)}
    for done, (method, a) in enumerate(shown.found.items()):
        context.progress("seed stability", done, len(shown.found))
        where, n = {"method": method}, {"target": len(a)}
        if not explainer(method).stochastic:
            metrics += [
                exact(name, 1.0, n=n, better="higher", slice=where, reason="the method is deterministic: 1 by definition")
                for name in ("seed_rank_correlation", "seed_top_iou", "sign_agreement")
            ]
            continue
        runs = _runs(subject.adapted, a, seeds)
        cluster = cluster_of(evidence, a.inputs.ids)
        alike = mean_over(_over_pairs(rank_correlation, runs), cluster, bounds=(-1, 1), null=0.0, seed=context.seed)
        top = mean_over(_over_pairs(top_iou, runs), cluster, bounds=(0, 1), null=chance_iou(a.inputs.players.count))
        metrics.append(metric("seed_rank_correlation", alike, rules=context.rules, better="higher", slice=where, min_n=MIN_SAMPLES))
        metrics.append(metric("seed_top_iou", top, rules=context.rules, better="higher", slice=where, min_n=MIN_SAMPLES))
        if a.signed:
            same = mean_over(_over_pairs(sign_agreement, runs), cluster, bounds=(0, 1), nothing="no part has a sign in both maps")
            metrics.append(metric("sign_agreement", same, rules=context.rules, better="higher", slice=where, min_n=MIN_SAMPLES))
        bars.append(estimate_bar(method, "rank correlation", alike, context.rules.confidence, null=0.0))
        bars.append(estimate_bar(method, "overlap of the top tenth", top, context.rules.confidence, null=top.null))
        params[f"budget:{method}"] = a.budget
        if alike.value is not None:
            said.append(f"{method} {alike.value:.2f}")
            if alike.value < STABLE:
                advice.append(budget_advice(method, alike.value, a.budget))
    metrics += blank_metrics(shown)
    metrics += unavailable(("seed_rank_correlation",), maps.missing)
    return Measurement(
        summary=" ".join((f"Rank correlation of maps of the same sample from {SEEDS} seeds: {', '.join(said) or 'undefined'}.", *advice)),
        metrics=tuple(metrics),
        exhibits=(
            Bars(
                id="seed-stability",
                title=f"Likeness of maps that differ in the seed alone: {', '.join(said) or 'undefined'}",
                how_to_read="1: every run gives the same map. A tick is what chance gives.",
                alt="Bars of rank correlation and of the overlap of the top tenth between runs with different seeds, per method.",
                caption=f"n = {len(shown.first)} target samples by hash priority, {SEEDS} seeds, the audit's own budget; seed {context.seed}.",
                value_label="likeness",
                bars=tuple(bars),
                signed=True,
            ),
        ),
        caveats=(*blank_caveats(shown), *(f"{m} was not computed: {why}" for m, why in maps.missing.items())),
        params=params,
    )


def budget_advice(method: str, correlation: float, budget: int) -> str:
    """What budget would give a correlation of 0.8, if the variance of sampling falls as 1/budget; the correlation of two runs is signal / (signal + noise)."""
    if correlation <= 0.02:
        return f"{method}: two runs have nothing in common, so that no budget can be named that would make them alike."
    wanted = round(budget * STABLE / (1 - STABLE) * (1 - correlation) / correlation, 6)
    digits = 10 ** max(0, len(str(int(wanted))) - 2)
    return f"{method}: about {ceil(wanted / digits) * digits} model evaluations per sample instead of {budget} would reach {STABLE} (error falls as 1/√budget)."


def _runs(model: Model, a: Attribution, seeds: Sequence[int]) -> list[Attribution]:
    """The maps of the audit, and those of other seeds."""
    return [a, *(again_with(model, a, a.inputs, a.explained, seed=seed) for seed in seeds)]


def _over_pairs(score: Callable[[FloatArray, FloatArray], FloatArray], runs: Sequence[Attribution]) -> FloatArray:
    """(N,) mean of a score over all pairs of runs."""
    return mean_of_known(np.array([player_scores(score, x, y) for x, y in combinations(runs, 2)]))
