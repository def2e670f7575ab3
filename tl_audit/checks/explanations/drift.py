"""TLA708 and TLA709: did the adaptation move what the model looks at, and does it look at other things on the target than on the source?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tl_audit.attribution import Attribution, explainer
from tl_audit.attribution.quality import coarse
from tl_audit.checks.base import Context, check, exact, metric
from tl_audit.checks.explanations.gate import GATE_CODES, usable_methods
from tl_audit.checks.explanations.shared import (
    BoolArray,
    FloatArray,
    again_with,
    blank_caveats,
    blank_metrics,
    chance_iou,
    cluster_of,
    comparable,
    estimate_bar,
    map_picture,
    maps_of,
    mean_over,
    rows_of,
    samples_mode,
    short_id,
    unavailable,
)
from tl_audit.checks.shift import LEAST_PER_DOMAIN
from tl_audit.checks.wording import signed
from tl_audit.errors import ModelError, NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures.attribution import centroids, gini, mass_inside, rank_correlation, top_iou
from tl_audit.measures.estimate import Estimate
from tl_audit.measures.multiplicity import benjamini_hochberg
from tl_audit.measures.sampling import priority
from tl_audit.measures.shift import c2st
from tl_audit.records.exhibits import (
    Bars,
    Cell,
    Column,
    Dot,
    Exhibit,
    GridRow,
    ImageGrid,
    Intervals,
    Table,
)
from tl_audit.records.exhibits import Reference as Line
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject

REFERENCES = ("control:head", "previous", "base")
"""Models that may have the adapted model's classes, the best comparison first."""
SHOWN = 2
METHODS_SHOWN = 2
FEWEST = 5
_TOP = 0.1


@dataclass(frozen=True)
class _Pair:
    """Likeness of two sets of maps per sample; NaN where a map is blank."""

    rank: FloatArray
    top: FloatArray
    shift: FloatArray | None
    concentration: FloatArray
    chance_top: float | None
    "overlap of the top of two unrelated maps with as many parts"

    @property
    def named(self) -> dict[str, tuple[FloatArray, tuple[float, float]]]:
        out: dict[str, tuple[FloatArray, tuple[float, float]]] = {
            "attribution_rank_correlation": (self.rank, (-1.0, 1.0)),
            "attribution_top_iou": (self.top, (0.0, 1.0)),
        }
        if self.shift is not None:
            out["attribution_shift"] = (self.shift, (0.0, 1.0))
        return out | {"concentration_change": (self.concentration, (-1.0, 1.0))}


@check(
    "TLA708",
    "Attribution drift",
    section="explanations",
    severity="high",
    needs=("adapted", "target", "adapted@target", "target.labels", "control:head|previous|base"),
    phase=2,
    runs_models=True,
    after=GATE_CODES,
)
def attribution_drift(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Did adaptation move what the model looks at, beyond noise?

    How it is measured: the same samples, which both models get right, are explained for the same class by both models: the adapted one, and one with the same classes that has not
    been adapted in its backbone (the control "head"; else the previous model; else the base where it has the same classes). Maps are compared by rank correlation and by overlap of
    the top 10 % (absolute values, images pooled to 14 x 14), by the distance of their centres, and by the change of concentration (Gini). The floor is the adapted model
    against itself with the explainer's other seed; drift is floor minus correlation (and floor minus overlap), paired by sample. Two methods must agree: rankings of methods reverse at equal accuracy.

    Why it matters: adaptation that keeps the accuracy and moves the evidence may have found a shortcut; change is not harm, so a person must look.

    How to reduce the risk: look at the rows of the grid, compare with regions or cues (TLA707, TLA608), freeze more layers, or take smaller steps below the head.
    """
    key = next((k for k in REFERENCES if comparable(subject, evidence, k)), None)
    if key is None:
        raise NotEvaluated(
            'a model with the same classes and inputs that was not adapted below its head: the control "head" (made by tl-audit adapt), or a previous model'
        )
    usable, left_out = usable_methods(context.findings, evidence.methods)
    maps = maps_of(evidence, methods=usable)
    lead = maps.first
    reference = subject.models[key]
    both = _both_right(evidence, key, lead)
    if both.sum() < FEWEST:
        raise NotEvaluated(
            f"No drift can be measured: both models are right on {int(both.sum())} of {len(lead)} explained samples, and at least {FEWEST} are needed."
        )
    rows = np.flatnonzero(both).astype(np.int64)
    names, others = subject.adapted.classes or (), reference.classes or ()
    metrics: list[Metric] = []
    drifts: dict[str, tuple[Estimate, FloatArray]] = {}
    tops: dict[str, tuple[Estimate, FloatArray]] = {}
    moved: dict[str, Attribution] = {}
    missing = dict(maps.missing)
    dots: list[Dot] = []
    table: list[tuple[Cell, ...]] = []
    ids: tuple[str, ...] = ()
    regions = _regions(evidence, lead.inputs.ids)
    for done, (method, whole) in enumerate(maps.found.items()):
        context.progress("attribution drift", done, len(maps.found))
        a = whole.select(rows)
        ids, cluster = a.inputs.ids, cluster_of(evidence, a.inputs.ids)
        targets = np.array([others.index(names[t]) for t in a.targets], dtype=np.int64)
        try:
            # the other seed on both sides: with equal models drift is then exactly 0, noise and all
            other = again_with(reference, a, a.inputs, targets, seed=a.seed + 1)
            again = again_with(subject.adapted, a, a.inputs, a.targets, seed=a.seed + 1) if explainer(method).stochastic else a
        except ModelError as error:
            missing[method] = f"with {_words(key)}, {error}"
            continue
        moved[method] = other
        found, floor = _likeness(a, other), _likeness(a, again)
        where = {"method": method}
        for name, (values, bounds) in found.named.items():
            chance = found.chance_top if name == "attribution_top_iou" else 0.0 if name == "attribution_rank_correlation" else None
            estimate = mean_over(values, cluster, bounds=bounds)
            metrics.append(metric(name, _with_null(estimate, chance), rules=context.rules, slice=where))
            low = floor.named[name]
            if explainer(method).stochastic:
                metrics.append(metric(f"{name}_floor", mean_over(low[0], cluster, bounds=low[1]), rules=context.rules, slice=where))
            else:
                one = 1.0 if name in ("attribution_rank_correlation", "attribution_top_iou") else 0.0
                metrics.append(
                    exact(
                        f"{name}_floor",
                        one,
                        n={"target": len(a)},
                        slice=where,
                        reason="the method is deterministic: it repeats itself exactly",
                    )
                )
        drift = floor.rank - found.rank
        estimate = mean_over(drift, cluster, bounds=(-2.0, 2.0), null=0.0, seed=context.seed)
        drifts[method] = (estimate, drift)
        metrics.append(metric("drift_beyond_floor", estimate, rules=context.rules, slice=where, better="lower"))
        # ranks hardly notice a small place that lost or gained all the mass: the overlap of the top does
        lost = floor.top - found.top
        tops[method] = (mean_over(lost, cluster, bounds=(-1.0, 1.0), null=0.0, seed=context.seed), lost)
        metrics.append(metric("top_drift_beyond_floor", tops[method][0], rules=context.rules, slice=where, better="lower"))
        if regions is not None:
            masks, known = regions
            change = _mass_change(a, other, masks[rows], known[rows])
            inside = mean_over(change, cluster, bounds=(-1.0, 1.0), null=0.0, seed=context.seed, nothing="no sample has a region")
            metrics.append(metric("mass_inside_change", inside, rules=context.rules, slice=where, better="higher"))
        correlation = mean_over(found.rank, cluster, bounds=(-1.0, 1.0))
        bottom = mean_over(floor.rank, cluster, bounds=(-1.0, 1.0))
        for series, value in ((_words(key), correlation), ("same model, other seed", bottom)):
            dots.append(
                Dot(
                    label=method, series=series, value=value.value, n=value.n,
                    interval=_interval(value, context.rules.confidence, value is correlation or explainer(method).stochastic),
                    note=value.reason if value.value is None else None, hollow=series != _words(key),
                )
            )  # fmt: skip
        table += _by_slice(subject, evidence, method, ids, drift, cluster, context)
    if not drifts:
        raise NotEvaluated("; ".join(f"{m}: {why}" for m, why in missing.items()))
    metrics.append(_second("drift_of_two_methods", drifts, context))
    metrics.append(_second("top_drift_of_two_methods", tops, context))
    metrics += [exact("samples_both_right", int(both.sum()), n={"target": len(lead)})]
    metrics += blank_metrics(maps)
    metrics += unavailable(("drift_beyond_floor",), missing)
    said = ", ".join(f"{m} {signed(e.value)}" for m, (e, _) in drifts.items() if e.value is not None) or "undefined"
    exhibits: list[Exhibit] = [
        Intervals(
            id="drift",
            title=f"Likeness of maps of the adapted model and of {_words(key)}, beside the noise floor",
            how_to_read="1: the same map. Where the two dots of a method meet, the adaptation moved no more than another seed does.",
            alt="Rank correlation of maps between two models per method, with the correlation of the adapted model with itself.",
            caption=f"n = {len(rows)} target samples that both models get right, of {len(lead)}; predicted class; seed {context.seed}.",
            value_label="rank correlation",
            dots=tuple(dots),
            references=(Line(value=0.0, label="nothing in common"),),
        )
    ]
    if table:
        exhibits.append(_slices_table(table, context))
    grid = _grid(evidence, context, maps.found, moved, rows, key)
    exhibits += [] if grid is None else [grid]
    caveats = [
        *blank_caveats(maps),
        *(f"{m} is left out: {why}" for m, why in left_out.items()),
        *(f"{m} was not compared: {why}" for m, why in missing.items()),
    ]
    if key == "control:head" and not comparable(subject, evidence, "base"):
        caveats.append(
            'the base does not answer in these classes: the control "head" (base backbone, new head on the target classes) stands in for it'
        )
    if len(drifts) < 2:
        caveats.append("only one method could be compared: two are needed before a drift is called one")
    return Measurement(
        summary=f"Noise floor minus likeness of the maps of the adapted model and {_words(key)}: {said} (0: no drift beyond noise).",
        metrics=tuple(metrics),
        exhibits=tuple(exhibits),
        caveats=tuple(caveats),
        params={"reference": key, "samples": len(rows), "seed": context.seed, "compared_on": "14 x 14, or columns", "top": _TOP},
    )


def _words(key: str) -> str:
    return key.replace("control:", "control ")


def _both_right(evidence: Evidence, key: str, lead: Attribution) -> BoolArray:
    """Which of the explained samples both models get right."""
    rows = rows_of(evidence, lead.inputs.ids)
    right = np.ones(len(rows), dtype=bool)
    for model in ("adapted", key):
        usable = evidence.usable(model, "target") & (evidence.truth(model, "target") >= 0)
        right &= (evidence.correct(model, "target") & usable)[rows]
    return right


def _likeness(a: Attribution, b: Attribution) -> _Pair:
    blank = a.blank | b.blank
    players = a.inputs.players
    first, second = (np.where(blank[:, None], np.nan, coarse(x.values, players)) for x in (a, b))
    rank, top = rank_correlation(first, second), top_iou(first, second, share=_TOP)
    keep = np.where(blank, np.nan, 1.0)
    safe = [np.where(blank[:, None], 0.0, x) for x in (first, second)]
    concentration = (gini(safe[0]) - gini(safe[1])) * keep
    shift = None
    if players.spatial:
        centres = [centroids(np.where(blank[:, None, None], 0.0, x.values)) for x in (a, b)]
        shift = np.sqrt(((centres[0] - centres[1]) ** 2).sum(axis=1) / 2.0) * keep
    return _Pair(rank, top, shift, concentration, chance_iou(np.array([first.shape[1]]), share=_TOP))


def _with_null(estimate: Estimate, null: float | None) -> Estimate:
    return estimate if null is None else replace(estimate, null=null)


def _interval(estimate: Estimate, confidence: float, there: bool) -> tuple[float, float] | None:
    return estimate.interval(confidence) if there and estimate.value is not None else None


def _second(name: str, drifts: dict[str, tuple[Estimate, FloatArray]], context: Context) -> Metric:
    """The drift that at least two methods show: that of the method with the second largest lower bound, so that no correction is needed."""
    known = [(m, e) for m, (e, _) in drifts.items() if e.value is not None]
    if len(known) < 2:
        return exact(name, None, n={"methods": len(known)}, reason="fewer than two methods could be compared", better="lower")

    def lower(entry: tuple[str, Estimate]) -> float:
        interval = entry[1].interval(context.rules.confidence)
        return -np.inf if interval is None else interval[0]

    method, estimate = sorted(known, key=lambda entry: (-lower(entry), entry[0]))[1]
    return metric(name, estimate, rules=context.rules, better="lower", slice={"second method": method})


def _regions(evidence: Evidence, ids: Sequence[str]) -> tuple[BoolArray, BoolArray] | None:
    """(N, H, W) regions of the explained samples at the size of the model's input, and which samples have one; None without regions."""
    try:
        masks, known = evidence.regions("target", rows_of(evidence, ids), "adapted")
    except NotEvaluated:
        return None
    return masks, known


def _mass_change(a: Attribution, b: Attribution, masks: BoolArray, known: BoolArray) -> FloatArray:
    """Mass inside the region with the adapted model minus that with the other; NaN where there is no region or no map."""
    out = np.full(len(a), np.nan)
    # a region that the crop cut off says nothing of where the mass went
    rows = np.flatnonzero(known & masks.any(axis=(1, 2)) & ~a.blank & ~b.blank)
    if a.inputs.players.spatial and rows.size:
        out[rows] = mass_inside(a.values[rows], masks[rows]) - mass_inside(b.values[rows], masks[rows])
    return out


def _by_slice(
    subject: Subject, evidence: Evidence, method: str, ids: Sequence[str], drift: FloatArray, cluster: object, context: Context
) -> list[tuple[Cell, ...]]:
    """Rows (method, slice, n, drift, low, high, p) of each class and group with enough samples."""
    rows = rows_of(evidence, ids)
    names = subject.classes
    truth = evidence.truth("adapted", "target")[rows]
    parts: list[tuple[str, BoolArray]] = [(f"class {names[c]}", truth == c) for c in np.unique(truth) if 0 <= c < len(names)]
    for column, values in evidence.groups("target").items():
        parts += [(f"{column} {value}", values[rows] == value) for value in sorted(set(values[rows]))]
    out: list[tuple[Cell, ...]] = []
    for name, mine in parts:
        inside = None if cluster is None else np.asarray(cluster)[mine]
        estimate = mean_over(drift[mine], inside, bounds=(-2.0, 2.0), null=0.0, seed=context.seed)
        if estimate.value is None or estimate.n < context.rules.min_n:
            continue
        interval = estimate.interval(context.rules.confidence)
        out.append(
            (
                method,
                name,
                estimate.n,
                estimate.value,
                None if interval is None else interval[0],
                None if interval is None else interval[1],
                estimate.p_value,
            )
        )
    return out


def _slices_table(rows: list[tuple[Cell, ...]], context: Context) -> Table:
    adjusted = benjamini_hochberg([r[6] if isinstance(r[6], float) else None for r in rows])
    return Table(
        id="drift-by-slice",
        title="Drift beyond the noise floor by class and group",
        how_to_read="Exploratory: p is adjusted over all rows by Benjamini and Hochberg. 0: no drift.",
        alt="Table of drift per method and class or group.",
        caption=f"Slices with at least {context.rules.min_n} samples that both models get right.",
        columns=(
            Column(name="method"), Column(name="slice"), Column(name="n", format="count"), Column(name="drift", format="number"),
            Column(name="low", format="number"), Column(name="high", format="number"), Column(name="p adjusted", format="number"),
        ),
        rows=tuple((*r[:6], p) for r, p in zip(rows, adjusted, strict=True)),
    )  # fmt: skip


def _grid(
    evidence: Evidence, context: Context, found: dict[str, Attribution], moved: dict[str, Attribution], rows: NDArray[np.int64], key: str
) -> ImageGrid | None:
    """Maps of both models and their difference, the samples of least likeness among those of highest priority."""
    lead = next(iter(found.values()))
    if evidence.samples == "off" or not lead.inputs.players.spatial or not moved:
        return None
    redacted = evidence.samples == "redacted"
    ids = next(iter(moved.values())).inputs.ids
    places = rows_of(evidence, ids)
    out: list[GridRow] = []
    for at in np.argsort(priority(context.seed, ids), kind="stable")[:SHOWN]:
        pictures = []
        for method, other in list(moved.items())[:METHODS_SHOWN]:
            mine = found[method].select(rows[[at]])
            theirs = other.select(np.array([at]))
            scale = [x.values[0] / max(float(np.abs(x.values[0]).max()), 1e-12) for x in (mine, theirs)]
            difference = mine.inputs.modality.map_picture(
                mine.inputs.tensor[0], scale[0] - scale[1], mine.inputs.spec, title=f"{method}, difference", signed=True, redacted=redacted
            )
            shown = [map_picture(theirs, 0, f"{method}, {_words(key)}", redacted), map_picture(mine, 0, f"{method}, adapted", redacted)]
            shown.append(None if difference is None else difference.model_copy(update={"method": method}))
            pictures += [p for p in shown if p is not None]
        out.append(
            GridRow(id=short_id(evidence, int(places[at])), facts=(("chosen", "first by hash, both right"),), pictures=tuple(pictures))
        )
    return ImageGrid(
        id="drift-grid",
        title=f"Maps of {_words(key)}, of the adapted model, and their difference",
        how_to_read="In the difference, orange is where the adapted model looks more, blue where it looks less; each map is scaled to its own largest value first.",
        alt="Rows of attribution maps of two models and their difference.",
        caption=f"First {len(out)} samples by hash priority that both models get right; seed {context.seed}.",
        rows=tuple(out),
        samples=samples_mode(evidence),
    )


# ---------------------------------------------------------------- TLA709


@check(
    "TLA709",
    "Explanation shift",
    section="explanations",
    severity="medium",
    needs=("adapted", "target", "source", "adapted@target", "adapted@source"),
    phase=2,
    runs_models=True,
    after=(*GATE_CODES, "TLA501"),
    values="same",
)
def explanation_shift(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Does the model use other evidence on the target than on the source?

    How it is measured: the predicted class is explained on both domains; the absolute values on common parts (columns; images pooled to 14 x 14), scaled to sum 1, are the features of
    a domain classifier that is trained on one half and judged on the other (as in TLA501). AUC 0.5: the attributions do not tell the domains apart.

    Why it matters: a shift of the inputs matters where the model reads them; one in a column it does not use leaves this at 0.5 while TLA501 fires.

    How to reduce the risk: see which parts gained or lost weight, add target data where they matter, and compare with the accuracy on both domains (TLA301, TLA509).
    """
    usable, left_out = usable_methods(context.findings, evidence.methods)
    here, there = maps_of(evidence, methods=usable), maps_of(evidence, "adapted", "source", usable)
    metrics: list[Metric] = []
    bars = []
    said: list[str] = []
    shares: list[tuple[Cell, ...]] = []
    missing = {**there.missing, **here.missing}
    inputs_auc = _inputs_auc(context)
    for method in (m for m in here.found if m in there.found):
        sides = [here.found[method], there.found[method]]
        clusters = [cluster_of(evidence, s.inputs.ids, role) for s, role in zip(sides, ("target", "source"), strict=True)]
        vectors = [_profile(s) for s in sides]
        shown = [~s.blank for s in sides]
        sizes = {"target": int(shown[0].sum()), "source": int(shown[1].sum())}
        where = {"method": method}
        if min(sizes.values()) < LEAST_PER_DOMAIN or vectors[0].shape[1] != vectors[1].shape[1]:
            few = min(sizes.values()) < LEAST_PER_DOMAIN
            why = f"fewer than {LEAST_PER_DOMAIN} maps on one side" if few else "the two domains have different parts"
            metrics.append(exact("explanation_c2st_auc", None, n=sizes, better="lower", slice=where, null=0.5, reason=why))
            continue
        both = clusters[0] is not None and clusters[1] is not None
        estimate = c2st(
            vectors[1][shown[1]],
            vectors[0][shown[0]],
            cluster_source=clusters[1][shown[1]] if both and clusters[1] is not None else None,
            cluster_target=clusters[0][shown[0]] if both and clusters[0] is not None else None,
            seed=context.seed,
        )
        metrics.append(metric("explanation_c2st_auc", estimate, rules=context.rules, n=sizes, better="lower", slice=where))
        bars.append(estimate_bar(method, "attributions", estimate, context.rules.confidence, null=0.5))
        if estimate.value is not None:
            said.append(f"{method} {estimate.value:.2f}")
        players = sides[0].inputs.players
        if players.names is not None:
            change = vectors[0][shown[0]].mean(axis=0) - vectors[1][shown[1]].mean(axis=0)
            for k in np.argsort(-np.abs(change), kind="stable")[:8]:
                shares.append(
                    (method, players.names[k], float(vectors[1][shown[1]].mean(axis=0)[k]), float(vectors[0][shown[0]].mean(axis=0)[k]))
                )
    if not bars and not metrics:
        raise NotEvaluated("; ".join(f"{m}: {why}" for m, why in missing.items()) or "attributions on both domains")
    metrics += unavailable(("explanation_c2st_auc",), missing)
    exhibits: list[Exhibit] = []
    if bars:
        exhibits.append(
            Bars(
                id="explanation-shift",
                title=f"Attributions tell source and target apart with AUC: {', '.join(said) or 'undefined'}",
                how_to_read="0.5: the model uses the same evidence on both domains. Compare with the AUC of the inputs themselves in TLA501.",
                alt="Bars of the AUC of a domain classifier on attributions, per method.",
                caption=f"Held-out half; predicted class explained; seed {context.seed}."
                + (f" Inputs: {inputs_auc}." if inputs_auc else ""),
                value_label="AUC",
                bars=tuple(bars),
            )
        )
    if shares:
        exhibits.append(
            Table(
                id="explanation-shift-parts",
                title="Columns whose share of the attribution differs most between the domains",
                how_to_read="Mean share of all absolute attribution, by domain; the columns with the largest differences of each method.",
                alt="Table of attribution shares per column and domain.",
                caption=f"n as in the chart; seed {context.seed}.",
                columns=(
                    Column(name="method"),
                    Column(name="column"),
                    Column(name="source", format="share"),
                    Column(name="target", format="share"),
                ),
                rows=tuple(shares),
            )
        )
    return Measurement(
        summary=f"AUC with which attributions tell the domains apart: {', '.join(said) or 'undefined'} (chance 0.5)"
        + (f"; inputs or features in TLA501: {inputs_auc}." if inputs_auc else "."),
        metrics=tuple(metrics),
        exhibits=tuple(exhibits),
        caveats=(
            *(f"target, {c}" for c in blank_caveats(here)),
            *(f"source, {c}" for c in blank_caveats(there)),
            *(f"{m} is left out: {why}" for m, why in left_out.items()),
            *(f"{m} was not compared: {why}" for m, why in missing.items()),
        ),
        params={"seed": context.seed, "compared_on": "14 x 14, or columns", "explained": "predicted class"},
    )


def _profile(a: Attribution) -> FloatArray:
    """(N, F) shares of the absolute attribution of common parts; zero rows for blank maps."""
    size = coarse(np.where(np.isfinite(a.values), a.values, 0.0), a.inputs.players)
    total = size.sum(axis=1, keepdims=True)
    return np.asarray(size / np.where(total > 0, total, 1.0), dtype=np.float64)


def _inputs_auc(context: Context) -> str | None:
    """The AUC of TLA501 in words, to compare with."""
    for finding in context.findings:
        if finding.code == "TLA501" and finding.measurement is not None:
            values = [m.value for m in finding.measurement.metrics if m.name == "c2st_auc" and m.value is not None]
            if values:
                return f"AUC {max(values):.2f}"
    return None
