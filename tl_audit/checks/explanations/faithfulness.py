"""TLA702: do the parts marked important drive the output, more than a random map's?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tl_audit.attribution.quality import RANDOM_MAPS, Curves, MapCurves, curves_of_maps
from tl_audit.checks.base import Context, check, metric
from tl_audit.checks.explanations.gallery import gallery
from tl_audit.checks.explanations.shared import (
    BoolArray,
    FloatArray,
    Maps,
    blank_caveats,
    blank_metrics,
    cluster_of,
    maps_of,
    mean_over,
    method_slug,
    unavailable,
)
from tl_audit.checks.mean_error import scale_of
from tl_audit.checks.wording import signed
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.records.exhibits import (
    Cell,
    Column,
    Exhibit,
    Line,
    Lines,
    Table,
)
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject


@dataclass(frozen=True)
class _Followed:
    """What is followed while parts are removed: its words and the range it cannot leave (None: it has none)."""

    what: str
    title: str
    area: tuple[float, float] | None
    road: tuple[float, float] | None
    gain: tuple[float, float] | None


PROBABILITY = _Followed("probability of the explained class", "Class probability", (0.0, 1.0), (-0.5, 0.5), (-1.0, 1.0))
NUMBER = _Followed("predicted number, in SD of the training target from its mean", "Predicted number", None, None, None)


def faithfulness_of_values(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Do the parts marked as raising the predicted number really raise it, more than a random map's?

    How it is measured: input parts are removed, those said to raise the number most first and those said to lower it most first, and the predicted
    number is followed (10 steps), counted from the mean of the target in training in its standard deviations. Removed parts are filled in as
    for classes. The difference of the two orders, averaged over 20, 40, 60 and 80 % removed, is compared per sample with 5 random maps of the
    same smoothness (and with an edge map on images). Intervals: t over samples or clusters; p: sign-flip test against no gain.

    Why it matters: a map that does no better than a random one says nothing about the model, however plausible it looks.

    How to reduce the risk: raise the budget, choose another method (one with signs: a map of sizes alone cannot say what raises a number), or
    do not show the maps of a method that fails here.
    """
    scale = scale_of(subject, evidence)
    if scale.spread is None:
        raise NotEvaluated("the spread of the target in training: all its values are equal")
    spread = scale.spread

    def standardised(curves: Curves) -> Curves:
        return curves._replace(most_first=(curves.most_first - scale.mean) / spread, least_first=(curves.least_first - scale.mean) / spread)

    maps = maps_of(evidence)
    curves = {
        method: MapCurves(standardised(own), [standardised(r) for r in randoms], None if edges is None else standardised(edges))
        for method, (own, randoms, edges) in curves_of(subject, evidence, context, maps).items()
    }
    return _measured(subject, evidence, context, maps, curves, NUMBER)


@check(
    "TLA702",
    "Faithfulness",
    section="explanations",
    severity="critical",
    needs=("adapted", "target", "adapted@target"),
    runs_models=True,
    values=faithfulness_of_values,
)
def faithfulness(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Do the parts marked important really drive the output, more than a random map's?

    How it is measured: input parts are removed, the most relevant first and the least relevant first, and the probability of the explained class is followed (10 steps).
    Removed parts are filled in by noisy linear imputation on images and by draws from the target's own values on columns. The difference of the two orders,
    averaged over 20, 40, 60 and 80 % removed, is compared per sample with 5 random maps of the same smoothness (and with an edge map on images).
    All methods use the same parts. Intervals: t over samples or clusters; p: sign-flip test against no gain.

    Why it matters: a map that does no better than a random one says nothing about the model, however plausible it looks.

    How to reduce the risk: raise the budget, choose another method or layer, or do not show the maps of a method that fails here.
    """
    maps = maps_of(evidence)
    return _measured(subject, evidence, context, maps, curves_of(subject, evidence, context, maps), PROBABILITY)


def _measured(
    subject: Subject, evidence: Evidence, context: Context, maps: Maps, curves: Mapping[str, MapCurves], followed: _Followed
) -> Measurement:
    seed, rules = context.seed, context.rules
    metrics: list[Metric] = []
    exhibits: list[Exhibit] = []
    rows: list[tuple[Cell, ...]] = []
    gains: dict[str, FloatArray] = {}
    said: list[str] = []
    for method, a in maps.found.items():
        cluster = cluster_of(evidence, a.inputs.ids)
        own, randoms, edges = curves[method]
        ok = ~a.blank
        keep = np.where(ok, 1.0, np.nan)
        random_road = np.mean([r.road_combined for r in randoms], axis=0)
        gain = (own.road_combined - random_road) * keep
        gains[method] = gain
        where = {"method": method}
        estimates = {
            "deletion_auc": (mean_over(own.deletion_auc * keep, cluster, bounds=followed.area), "lower"),
            "insertion_auc": (mean_over(own.insertion_auc * keep, cluster, bounds=followed.area), "higher"),
            "road_combined": (mean_over(own.road_combined * keep, cluster, bounds=followed.road, null=0.0, seed=seed), "higher"),
            "faithfulness_gain": (mean_over(gain, cluster, bounds=followed.gain, null=0.0, seed=seed), "higher"),
        }
        if edges is not None:
            over_edges = (own.road_combined - edges.road_combined) * keep
            estimates["gain_over_edges"] = (mean_over(over_edges, cluster, bounds=followed.gain, null=0.0, seed=seed), "higher")
        for name, (estimate, better) in estimates.items():
            metrics.append(metric(name, estimate, rules=rules, better="lower" if better == "lower" else "higher", slice=where))
        exhibits.append(_removal_lines(method, own, randoms, ok, seed, followed))
        interval = estimates["faithfulness_gain"][0].interval(rules.confidence)
        value = estimates["faithfulness_gain"][0].value
        rows.append(
            (
                method,
                int(ok.sum()),
                estimates["deletion_auc"][0].value,
                estimates["insertion_auc"][0].value,
                float(random_road[ok].mean()) if ok.any() else None,
                estimates["road_combined"][0].value,
                value,
                "" if interval is None else f"{signed(interval[0])} to {signed(interval[1])}",
            )
        )
        if value is not None:
            said.append(f"{method} {signed(value)}")
    metrics += blank_metrics(maps)
    metrics += unavailable(("faithfulness_gain",), maps.missing)
    table = Table(
        id="faithfulness-by-method",
        title=f"Gain over a random map: {', '.join(said) or 'no map has a signal'}",
        how_to_read=f"Gain is how much more the map's order of removal moves the {followed.what} than a random order does. 0: no better than random.",
        alt="Table of deletion area, insertion area and gain over a random map, per method.",
        caption=f"n = {len(maps.first)} target samples, {RANDOM_MAPS} random maps each, seed {seed}.",
        columns=(
            Column(name="method"), Column(name="maps", format="count"), Column(name="deletion area", format="number"),
            Column(name="insertion area", format="number"), Column(name="random map", format="number"), Column(name="map", format="number"),
            Column(name="gain", format="number"), Column(name="interval"),
        ),
        rows=tuple(rows),
    )  # fmt: skip
    pictures, notes = gallery(subject, evidence, context, maps, gains)
    return Measurement(
        summary=f"Removing what the maps mark moves the output more than removing at random by: {', '.join(said) or 'undefined'} (null 0).",
        metrics=tuple(metrics),
        exhibits=(table, *exhibits, *pictures),
        caveats=(
            *blank_caveats(maps),
            *(f"{m} was not computed: {why}" for m, why in maps.missing.items()),
            *(f"{m}: {note}" for m, a in maps.found.items() for note in a.caveats),
            *notes,
        ),
        params={
            "steps": 10,
            "random_maps": RANDOM_MAPS,
            "seed": seed,
            "removal": str(maps.first.inputs.modality.default_mask),
            "explained": "predicted class" if followed is PROBABILITY else "predicted number",
            "samples": len(maps.first),
            **{f"budget:{m}": a.budget for m, a in maps.found.items()},
            **{f"layer:{m}": f"{a.layer} ({a.layer_reason})" for m, a in maps.found.items() if a.layer is not None},
        },
    )


def curves_of(subject: Subject, evidence: Evidence, context: Context, maps: Maps) -> dict[str, MapCurves]:
    """Per method: the removal curves of its maps, of random maps and of the edge map. Made once in an audit (TLA710 reads them too)."""
    return evidence.once(
        "removal curves",
        lambda: curves_of_maps(
            subject.adapted, maps.found, seed=context.seed, progress=lambda done, total: context.progress("faithfulness", done, total)
        ),
    )


def _removal_lines(method: str, own: Curves, randoms: list[Curves], ok: BoolArray, seed: int, followed: _Followed) -> Lines:
    if not ok.any():
        ok = np.zeros_like(ok)
    shares = tuple(float(s) for s in own.shares)
    coarse_shares = tuple(float(s) for s in randoms[0].shares)

    def average(curve: FloatArray) -> tuple[float | None, ...]:
        return tuple(float(v) for v in curve[ok].mean(axis=0)) if ok.any() else tuple(None for _ in range(curve.shape[1]))

    lines = [
        Line(name="most relevant first", x=shares, y=average(own.most_first), mark="dot"),
        Line(name="least relevant first", x=shares, y=average(own.least_first), mark="dot"),
    ]
    if ok.any():
        means = np.array([r.most_first[ok].mean(axis=0) for r in randoms] + [r.least_first[ok].mean(axis=0) for r in randoms])
        lines.append(
            Line(
                name="random map", x=coarse_shares, y=tuple(float(v) for v in means.mean(axis=0)), role="null",
                low=tuple(float(v) for v in means.min(axis=0)), high=tuple(float(v) for v in means.max(axis=0)),
            )
        )  # fmt: skip
        area = float(own.deletion_auc[ok].mean())
        random_area = float(np.mean([r.deletion_auc[ok].mean() for r in randoms]))
        title = f"{method}: area {area:.2f} with the most relevant removed first, {random_area:.2f} with a random map"
    else:
        title = f"{method}: no map has a signal"
    return Lines(
        id=f"removal-{method_slug(method)}",
        title=title,
        how_to_read="The lower the first line and the higher the second, the better the map knows what matters. The band is what random maps do.",
        alt=f"{followed.title} as parts are removed in the order of {method} maps, beside random maps.",
        caption=f"Mean over n = {int(ok.sum())} target samples; band: range of {2 * len(randoms)} random orders; seed {seed}.",
        x_label="share removed",
        y_label=followed.what,
        lines=tuple(lines),
        x_range=(0.0, 1.0),
        y_range=followed.area,
        method=method,
    )
