"""TLA706: would another target layer change what Grad-CAM shows?"""

from __future__ import annotations

import numpy as np

from tl_audit.attribution import Attribution, Run, batch_size_for
from tl_audit.attribution.cam import LayerMaps, layer_maps
from tl_audit.checks.base import Context, check, exact, metric
from tl_audit.checks.explanations.gate import GATE_CODES, usable_methods
from tl_audit.checks.explanations.shared import (
    FloatArray,
    cluster_of,
    estimate_bar,
    maps_of,
    mean_over,
    player_scores,
    rows_of,
)
from tl_audit.checks.wording import counted
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures.attribution import mass_inside, rank_correlation
from tl_audit.records.exhibits import Bar, Bars
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject

METHOD = "grad_cam"


@check(
    "TLA706",
    "Layer sensitivity of Grad-CAM",
    section="explanations",
    severity="medium",
    needs=("adapted", "target", "adapted@target"),
    phase=2,
    runs_models=True,
    after=GATE_CODES,
    values="same",
)
def layer_sensitivity(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Would another target layer change the conclusion?

    How it is measured: Grad-CAM is read off the layer that the audit uses, off the layers before and after it, and off the last layer of each of the last three stages, all from one
    forward and one backward pass. The maps of the neighbours are compared with those of the layer used: rank correlation over the input parts, per sample (values per area). With
    boxes or masks, the range over the stages of the share of positive mass inside them. Means with t intervals over samples or clusters.

    Why it matters: which layer is read is a choice that nobody sees in the picture. Two neighbouring layers of one transformer have been seen to mark the background and the object.

    How to reduce the risk: name the layer wherever the map is shown, show two layers where they differ, or use a method that reads no layer.
    """
    if METHOD not in evidence.methods:
        raise NotEvaluated(f"{METHOD} among the attribution methods: the layer is its choice, and others make none")
    usable, left_out = usable_methods(context.findings, evidence.methods)
    if METHOD not in usable:
        raise NotEvaluated(f"needs maps that passed their quality checks: {METHOD} is {left_out[METHOD]}")
    a = maps_of(evidence, methods=(METHOD,)).found[METHOD]
    run = Run(seed=context.seed, batch_size=batch_size_for(a.inputs.tensor, subject.adapted))
    found = layer_maps(subject.adapted, a.inputs, a.explained, run, around=a.layer)
    chosen = found.maps[found.chosen]
    reason = a.layer_reason or found.reason
    cluster = cluster_of(evidence, a.inputs.ids)
    metrics: list[Metric] = []
    bars: list[Bar] = []
    said: list[str] = []
    for name in found.neighbours:
        scores = player_scores(rank_correlation, chosen, found.maps[name], density=True)
        alike = mean_over(scores, cluster, bounds=(-1, 1), null=0.0, seed=context.seed)
        metrics.append(metric("layer_rank_correlation", alike, rules=context.rules, slice={"layer": name}))
        bars.append(estimate_bar(name, f"with {found.chosen}", alike, context.rules.confidence, null=0.0))
        if alike.value is not None:
            said.append(f"{name} {alike.value:.2f}")
    if not found.neighbours:
        why = "no layer beside the one used gives a map of places with a gradient"
        metrics.append(exact("layer_rank_correlation", None, n={"target": len(a)}, reason=why))
    spread, caveat = _mass_spread(evidence, found, context)
    metrics.append(spread)
    metrics.append(exact("blank_maps", int(chosen.blank.sum()), n={"target": len(a)}, better="lower", slice={"method": METHOD}, null=0.0))
    return Measurement(
        summary=f"Grad-CAM reads {found.chosen}. Rank correlation of its maps with those of the layers beside it: {', '.join(said) or 'undefined'}.",
        metrics=tuple(metrics),
        exhibits=(
            Bars(
                id="layers",
                title=f"Likeness of Grad-CAM at {found.chosen} with its neighbours: {', '.join(said) or 'undefined'}",
                how_to_read="1: the neighbouring layer ranks the parts of a sample alike; 0: it tells another story.",
                alt="Bars of rank correlation between maps of the layer used and of the layers before and after it.",
                caption=f"n = {len(a)} target samples; {found.chosen}: {reason}; seed {context.seed}.",
                value_label="rank correlation",
                bars=tuple(bars),
                signed=True,
                method=METHOD,
            ),
        )
        if bars
        else (),
        caveats=tuple(c for c in (caveat, *dict.fromkeys(c for m in found.maps.values() for c in m.caveats)) if c),
        params={
            "layer": f"{found.chosen} ({reason})",
            "neighbours": ", ".join(found.neighbours) or "none",
            "stages": ", ".join(found.stages),
            "samples": len(a),
            "seed": context.seed,
        },
    )


def _mass_spread(evidence: Evidence, found: LayerMaps, context: Context) -> tuple[Metric, str | None]:
    """How much the share of mass inside the regions depends on the stage that is read. 0 to 1, lower is better."""
    lead: Attribution = found.maps[found.chosen]
    n = {"target": len(lead)}
    if len(found.stages) < 2:
        return exact("layer_mass_spread", None, n=n, better="lower", reason="the network has one stage with a map of places"), None
    try:
        inside, known = evidence.regions("target", rows_of(evidence, lead.inputs.ids))
    except NotEvaluated as gap:
        return exact("layer_mass_spread", None, n=n, better="lower", reason=f"needs {gap}"), None
    shares: FloatArray = np.array(
        [np.where(found.maps[s].blank | ~known, np.nan, mass_inside(found.maps[s].values, inside)) for s in found.stages]
    )
    spread = shares.max(axis=0) - shares.min(axis=0)  # NaN where one stage has no positive mass
    estimate = mean_over(
        spread, cluster_of(evidence, lead.inputs.ids), bounds=(0, 1), nothing="no sample has a region and mass at every stage"
    )
    absent = int((~known).sum())
    return metric(
        "layer_mass_spread", estimate, rules=context.rules, better="lower"
    ), f"{counted(absent, 'sample')} {'has' if absent == 1 else 'have'} no region" if absent else None
