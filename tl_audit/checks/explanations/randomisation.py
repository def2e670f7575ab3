"""TLA703: does the map depend on what the model has learned?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tl_audit.attribution import Attribution, explainer
from tl_audit.attribution.quality import DRAWS, UNCHANGED, randomised
from tl_audit.checks.base import Context, check, exact, metric
from tl_audit.checks.explanations.shared import (
    Maps,
    blank_caveats,
    blank_metrics,
    cluster_of,
    estimate_bar,
    map_picture,
    maps_of,
    mean_over,
    rows_of,
    samples_mode,
    short_id,
    unavailable,
)
from tl_audit.evidence.base import Evidence
from tl_audit.measures.sampling import priority
from tl_audit.records.exhibits import (
    Bar,
    Bars,
    Exhibit,
    GridRow,
    ImageGrid,
)
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject


@check(
    "TLA703",
    "Parameter randomisation",
    section="explanations",
    severity="critical",
    needs=("adapted", "target", "adapted@target"),
    runs_models=True,
    values="same",
)
def parameter_randomisation(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Does the map depend on what the model has learned?

    How it is measured: three copies of the model get every weight tensor, and BatchNorm's statistics, permuted in itself; the same samples are explained again, for the same class,
    at half the budget. Maps are compared by Spearman's rank correlation of absolute values (images pooled to 14 x 14). The ceiling is the same model with another
    seed; the effect is ceiling minus similarity, per sample (exactly 0 where every map is bit-equal). An edge map and random maps of the same smoothness are floor references.
    Intervals are over samples or clusters, for these three copies.

    Why it matters: a map that stays when everything learned is gone shows the input, not the model.

    How to reduce the risk: choose another method or target layer; do not show the maps of a method that fails here.
    """
    maps = maps_of(evidence)
    seed, rules = context.seed, context.rules
    found = randomised(
        subject.adapted, maps.found, seed=seed, progress=lambda done, total: context.progress("parameter randomisation", done, total)
    )
    metrics: list[Metric] = []
    bars: list[Bar] = []
    said: list[str] = []
    caveats: list[str] = blank_caveats(maps)
    redrawn: dict[str, Attribution] = {}
    for method, a in maps.found.items():
        measured = found[method]
        redrawn[method] = measured.first
        cluster = cluster_of(evidence, a.inputs.ids)
        where = {"method": method}
        nothing = "every map is blank, or too small to rank"
        similar = replace(mean_over(measured.similarity, cluster, bounds=(-1, 1), nothing=nothing), null=measured.chance)
        effect = mean_over(measured.ceiling - measured.similarity, cluster, bounds=(-2, 2), null=0.0, seed=seed, nothing=nothing)
        metrics.append(metric("randomised_similarity", similar, rules=rules, better="lower", slice=where))
        if explainer(method).stochastic:
            ceiling = mean_over(measured.ceiling, cluster, bounds=(-1, 1), nothing=nothing)
            metrics.append(metric("seed_similarity", ceiling, rules=rules, better="higher", slice=where))
            top = ceiling.value
        else:
            metrics.append(
                exact(
                    "seed_similarity",
                    1.0,
                    n={"target": len(a)},
                    better="higher",
                    slice=where,
                    reason="the method is deterministic: 1 by definition",
                )
            )
            top = 1.0
        if measured.unchanged:
            metrics.append(
                exact("randomisation_effect", 0.0, n={"target": effect.n}, better="higher", slice=where, null=0.0, reason=UNCHANGED)
            )
            caveats.append(f"{method}: {UNCHANGED}")
        else:
            metrics.append(metric("randomisation_effect", effect, rules=rules, better="higher", slice=where))
        if measured.edges is not None:
            edges = mean_over(measured.edges, cluster, bounds=(-1, 1), nothing=nothing)
            metrics.append(metric("edge_similarity", edges, rules=rules, slice=where))
            bars.append(estimate_bar(method, "edge map", edges, rules.confidence))
        bars.append(estimate_bar(method, "weights permuted", similar, rules.confidence, null=measured.chance))
        bars.append(Bar(label=method, series="same model, other seed", value=top, n=len(a), note=None if top is not None else nothing))
        if measured.blank:
            caveats.append(f"{method}: {measured.blank} of {DRAWS * len(a)} maps of permuted models show no signal and are left out")
        if similar.value is not None:
            said.append(f"{method} {similar.value:.2f}")
    metrics += blank_metrics(maps)
    metrics += unavailable(("randomised_similarity", "randomisation_effect"), maps.missing)
    exhibits: list[Exhibit] = [
        Bars(
            id="randomisation",
            title=f"Likeness of maps before and after the weights are permuted: {', '.join(said) or 'undefined'}",
            how_to_read="1: the map does not change; 0: nothing in common. A tick is what a random map of the same smoothness reaches.",
            alt="Bars of rank correlation between maps of the trained and of the permuted model, per method, with seed ceiling and edge map.",
            caption=f"n = {len(maps.first)} target samples, {DRAWS} permuted copies, half the budget, seed {seed}.",
            value_label="rank correlation",
            bars=tuple(bars),
            signed=True,
        )
    ]
    grid = _randomisation_grid(evidence, context, maps, redrawn)
    if grid is not None:
        exhibits.append(grid)
    return Measurement(
        summary=f"Rank correlation of maps with those of a model whose weights were permuted: {', '.join(said) or 'undefined'}.",
        metrics=tuple(metrics),
        exhibits=tuple(exhibits),
        caveats=(*caveats, *(f"{m} was not computed: {why}" for m, why in maps.missing.items())),
        params={"draws": DRAWS, "seed": seed, "samples": len(maps.first), "budget": "half", "compared_on": "14 x 14, or columns"},
    )


def _randomisation_grid(evidence: Evidence, context: Context, maps: Maps, redrawn: Mapping[str, Attribution]) -> ImageGrid | None:
    """Two samples, one of more than two methods: maps of the trained and of a permuted model, side by side."""
    if evidence.samples == "off" or not maps.first.inputs.players.spatial:
        return None
    lead = maps.first
    redacted = evidence.samples == "redacted"
    rows = rows_of(evidence, lead.inputs.ids)
    grid: list[GridRow] = []
    for at in np.argsort(priority(context.seed, lead.inputs.ids), kind="stable")[: 2 if len(maps.found) <= 2 else 1]:
        pictures = []
        for method, a in maps.found.items():
            if a.inputs.ids != lead.inputs.ids:
                continue
            for title, shown in ((f"{method}, trained", a), (f"{method}, permuted", redrawn[method])):
                picture = map_picture(shown, int(at), title, redacted)
                pictures += [] if picture is None else [picture]
        grid.append(GridRow(id=short_id(evidence, int(rows[at])), facts=(("chosen", "first by hash"),), pictures=tuple(pictures)))
    if not any(r.pictures for r in grid):
        return None
    return ImageGrid(
        id="trained-and-permuted",
        title="Maps of the trained model and of one whose weights were permuted",
        how_to_read="If both maps of a pair look alike, the method shows the input and not the model.",
        alt="Pairs of attribution maps: trained model and permuted model.",
        caption=f"Samples by hash priority; first permuted copy; seed {context.seed}.",
        rows=tuple(grid),
        samples=samples_mode(evidence),
    )
