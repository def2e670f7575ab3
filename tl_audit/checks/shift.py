"""Family 5: how far is the target from the source, and does it cost performance? (TLA507, plain input properties, stands with the data checks.)"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tl_audit.checks import mean_error
from tl_audit.checks.base import Check, Context, check, metric
from tl_audit.checks.selection import clusters_of_both, judged, rows_alone, units_in
from tl_audit.checks.wording import bounds, number, p_value, percent
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures import intervals, shift
from tl_audit.measures.sampling import bottom_k
from tl_audit.records.exhibits import Bar, Bars, Column, Dot, Heatmap, Intervals, Table
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject

MOST_PER_DOMAIN = 2000
LEAST_PER_DOMAIN = 50
SCATTER_BINS = 12


@check(
    "TLA501",
    "Covariate shift",
    section="shift",
    severity="high",
    needs=("source", "target", "base@source|adapted@source", "base@target|adapted@target"),
    values="same",
)
def covariate_shift(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Do target inputs come from where source inputs come from?

    How it is measured: in penultimate features of the base model (a fixed ruler; the adapted model's beside it), the debiased maximum mean
    discrepancy with a permutation test, and the held-out AUC of a linear classifier that tries to tell source from target.

    Why it matters: far from the source nothing that is known about the base needs to hold.

    How to reduce the risk: adapt on data that look like the target; read TLA509, which says whether the shift costs performance.
    """
    rules, seed = context.rules, context.seed
    metrics: list[Metric] = []
    caveats: list[str] = []
    exhibits: list[Bars | Heatmap | Table] = []
    rows: list[tuple[str, str, float | None, str]] = []
    ruler = next(
        (
            key
            for key in ("base", "adapted")
            if subject.model(key) is not None and evidence.has(key, "source") and evidence.has(key, "target")
        ),
        None,
    )
    if ruler is None:
        raise NotEvaluated("features of one model on source and target")
    if ruler != "base":
        caveats.append("No base model: features of the adapted model serve as the ruler; adaptation itself moves them.")
    summary = ""
    for key in ("base", "adapted"):
        if subject.model(key) is None or not (evidence.has(key, "source") and evidence.has(key, "target")):
            continue
        a, cluster_a = _features(evidence, key, "source", seed)
        b, cluster_b = _features(evidence, key, "target", seed)
        cluster_a, cluster_b = clusters_of_both(cluster_a, cluster_b, (a.shape[0], b.shape[0]))
        n = {"source": int(a.shape[0]), "target": int(b.shape[0])}
        # the gate reads the ruler's metrics, which carry no slice; the adapted model's row is for the reader
        where = {} if key == ruler else {"features": key}
        distance = shift.mmd(a, b, cluster_source=cluster_a, cluster_target=cluster_b, seed=seed, alpha=rules.alpha)
        domain = shift.c2st(a, b, cluster_source=cluster_a, cluster_target=cluster_b, seed=seed, alpha=rules.alpha)
        units = None if cluster_a is None or cluster_b is None else {"source": units_in(cluster_a), "target": units_in(cluster_b)}
        metrics.append(metric("mmd2", distance, rules=rules, slice=where, n=n, clusters=units, family="mmd2", min_n=LEAST_PER_DOMAIN))
        metrics.append(
            metric("c2st_auc", domain, rules=rules, slice=where, n=n, clusters=units, family="c2st", better="lower", min_n=LEAST_PER_DOMAIN)
        )
        rows.append((key, "domain-classifier AUC (0.5 by chance)", domain.value, bounds(domain.interval(rules.confidence))))
        rows.append((key, "MMD² (0 by chance)", distance.value, bounds(distance.interval(rules.confidence))))
        if key == ruler:
            summary = f"A linear classifier tells source from target with AUC {number(domain.value)} (0.5 by chance); MMD² {number(distance.value)}."
            gaps = shift.mean_gap(a, b, cluster_source=cluster_a, cluster_target=cluster_b)
            for axis, gap in enumerate(gaps, start=1):
                metrics.append(
                    metric("mean_gap", gap, rules=rules, slice={"axis": str(axis)}, n=n, family="mean_gap", unit="standard deviations")
                )
            exhibits.append(_axes(gaps, rules.confidence, n, key))
            exhibits.extend(_scatter(a, b, key))
    exhibits.insert(
        0,
        Table(
            id="shift-of-features",
            title=summary,
            how_to_read="The base model's row decides; the adapted model's row shows whether adaptation brought the domains together.",
            alt=summary,
            caption=f"At most {MOST_PER_DOMAIN} samples per domain by hash priority, seed {seed}; permutation test with at least 999 draws.",
            columns=(Column(name="features of"), Column(name="measure"), Column(name="value", format="number"), Column(name="interval")),
            rows=tuple(rows),
        ),
    )
    caveats.append(
        "Shift is expected in transfer and is no harm by itself: TLA509 says whether it costs performance. A mere change of class mix moves these numbers too: read TLA502."
    )
    if alone := rows_alone(evidence, ("source", "target")):
        caveats.append(alone)
    return Measurement(
        summary=summary, metrics=tuple(metrics), exhibits=tuple(exhibits), caveats=tuple(caveats),
        params={"ruler": ruler, "most_per_domain": MOST_PER_DOMAIN, "kernel": "Gaussian, median bandwidth", "seed": seed},
    )  # fmt: skip


@check("TLA502", "Label shift", section="shift", severity="medium", needs=("source", "target", "source.labels"))
def label_shift(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Did the mix of classes change?

    How it is measured: total variation distance of the class shares of source and target (the share of labels that would have to move),
    tested by permutation; Jensen–Shannon divergence in bits; class weights and the effective sample size after weighting.

    Why it matters: predicted probabilities carry the class mix of the training data with them.

    How to reduce the risk: re-weight, or re-calibrate on target data.
    """
    rules, seed = context.rules, context.seed
    try:
        target = _labels(evidence, "target")
    except NotEvaluated:
        return _label_shift_from_predictions(evidence, context)
    source = _labels(evidence, "source")
    classes = tuple(sorted(set(evidence.classes("source")) | set(evidence.classes("target"))))
    only = sorted(set(evidence.classes("source")) ^ set(evidence.classes("target")))
    code = {name: i for i, name in enumerate(classes)}
    a = np.array([code[evidence.classes("source")[k]] for k in source[0]], dtype=np.int64)
    b = np.array([code[evidence.classes("target")[k]] for k in target[0]], dtype=np.int64)
    unit_a, unit_b = clusters_of_both(source[1], target[1], (a.size, b.size))
    result = shift.label_shift(a, b, classes=len(classes), cluster_source=unit_a, cluster_target=unit_b, seed=seed)
    n = {"source": int(a.size), "target": int(b.size)}
    metrics = [
        metric("label_tvd", result.tvd, rules=rules, better="lower", n=n),
        metric("label_js", result.js, rules=rules, better="lower", n=n, unit="bits"),
        metric("effective_sample_share", result.effective_sample_share, rules=rules, n=n),
    ]
    for name, weight in zip(classes, result.weights, strict=True):
        metrics.append(
            Metric(
                name="label_weight",
                value=weight,
                slice={"class": name},
                n=n,
                null=1.0,
                reason="ratio of two shares, shown without an interval" if weight is not None else "the source has no sample of this class",
            )
        )
    bars = []
    for i, name in enumerate(classes):
        for series, share, size in (("source", result.source_share[i], a.size), ("target", result.target_share[i], b.size)):
            bounds = intervals.wilson(round(share * size), int(size)).interval(rules.confidence)
            bars.append(Bar(label=name, series=series, value=float(share), interval=bounds, n=round(share * size)))
    summary = (
        f"{percent(result.tvd.value)} of the labels would have to move to make the class mixes equal (p = {p_value(result.tvd.p_value)})."
    )
    figure = Bars(
        id="class-mix",
        title=summary,
        how_to_read="Share of each class in the source and in the target.",
        alt=summary,
        caption=f"n = {a.size} source, {b.size} target; {rules.confidence:.0%} intervals.",
        value_label="share of the domain",
        bars=tuple(bars),
    )
    caveats = [f"Classes in only one of the two domains: {', '.join(only)}."] if only else []
    try:
        metrics.append(metric("bbse_condition", _black_box(evidence, seed)[0].condition, rules=rules, n=n))
    except NotEvaluated as gap:
        metrics.append(Metric(name="bbse_condition", value=None, reason=str(gap)))
    return Measurement(summary=summary, metrics=tuple(metrics), exhibits=(figure,), caveats=tuple(caveats), params={"seed": seed})


def _black_box(evidence: Evidence, seed: int) -> tuple[shift.BlackBoxShift, tuple[str, ...], dict[str, int]]:
    """Black-box shift estimation from the adapted model's predictions on source and target, in its own class order."""
    source = judged(evidence, "adapted", "source")
    rows = np.flatnonzero(evidence.usable("adapted", "target"))
    if rows.size == 0:
        raise NotEvaluated("finite outputs of the adapted model on the target")
    cluster = evidence.cluster("target")
    unit_a, unit_b = clusters_of_both(source.cluster, None if cluster is None else np.asarray(cluster)[rows], (source.n, rows.size))
    found = shift.bbse(
        source.predicted,
        source.truth,
        np.asarray(evidence.predictions("adapted", "target")[rows], dtype=np.int64),
        classes=len(source.classes),
        cluster_source=unit_a,
        cluster_target=unit_b,
        seed=seed,
    )
    return found, source.classes, {"source": source.n, "target": int(rows.size)}


def _label_shift_from_predictions(evidence: Evidence, context: Context) -> Measurement:
    """TLA502 where the target has no labels: the class mix is estimated from predictions (Lipton 2018), which holds under label shift alone."""
    rules = context.rules
    found, classes, n = _black_box(evidence, context.seed)
    why = "the target has no labels: read the weights estimated from predictions"
    metrics = [
        Metric(name="label_tvd", value=None, reason=why, better="lower", n=n),
        Metric(name="label_js", value=None, reason=why, better="lower", n=n, unit="bits"),
        Metric(name="effective_sample_share", value=None, reason=why, n=n),
        metric("bbse_condition", found.condition, rules=rules, n=n),
    ]
    bars = []
    for name, weight, share in zip(classes, found.weights, found.shares, strict=True):
        metrics.append(metric("label_weight", weight, rules=rules, slice={"class": name}, n=n))
        bars.append(
            Bar(label=name, series="target, estimated", value=share.value, interval=share.interval(rules.confidence), note=share.reason)
        )
    moved = [w for w in found.weights if w.value is not None]
    summary = (
        f"Without target labels the class weights are estimated from predictions: {min(w.value or 0 for w in moved):.2f} to {max(w.value or 0 for w in moved):.2f} (1: no change)."
        if moved
        else "The class mix of the target cannot be estimated: the predictions do not tell the classes apart well enough."
    )
    figure = Bars(
        id="class-mix",
        title=summary,
        how_to_read="Share of each class in the target, estimated from the adapted model's predictions; a share below 0 is drawn at 0 and kept in the record.",
        alt=summary,
        caption=f"n = {n['source']} source, {n['target']} target; {rules.confidence:.0%} intervals.",
        value_label="share of the domain",
        bars=tuple(bars),
    )
    caveats = ("The estimate holds only if the classes look alike in source and target; where TLA501 finds a shift, that is in doubt.",)
    return Measurement(
        summary=summary, metrics=tuple(metrics), exhibits=(figure,), caveats=caveats, params={"seed": context.seed, "estimated": True}
    )


@check(
    "TLA509",
    "Harmful shift",
    section="shift",
    severity="high",
    needs=("adapted", "source.labels", "target.labels", "adapted@source", "adapted@target"),
    values=mean_error.harmful,
)
def harmful_shift(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Does the shift cost performance?

    How it is measured: accuracy of the adapted model on the (held-out) source minus its accuracy on the target; the same after giving the source
    the target's class mix.

    Why it matters: this is where a shift turns into wrong answers.

    How to reduce the risk: adapt on data from the place of use; find the part of the target that fails (families 3 and 6, TLA608).
    """
    rules, seed = context.rules, context.seed
    source, target = judged(evidence, "adapted", "source"), judged(evidence, "adapted", "target")
    unit_a, unit_b = clusters_of_both(source.cluster, target.cluster, (source.n, target.n))
    n = {"source": source.n, "target": target.n}
    drop = shift.accuracy_drop(source.correct, target.correct, cluster_source=unit_a, cluster_target=unit_b, seed=seed)
    reweighted = shift.accuracy_drop_reweighted(
        source.correct,
        source.truth,
        target.correct,
        target.truth,
        classes=len(target.classes),
        cluster_source=unit_a,
        cluster_target=unit_b,
        seed=seed,
    )
    metrics = (
        metric("accuracy_drop", drop, rules=rules, better="lower", n=n),
        metric("accuracy_drop_reweighted", reweighted, rules=rules, better="lower", n=n),
    )
    dots = []
    for series, rows in (("source", source), ("target", target)):
        rate = intervals.rate(rows.correct, cluster=rows.cluster)
        dots.append(
            Dot(
                label="all classes",
                value=rate.value,
                interval=rate.interval(rules.confidence),
                series=series,
                n=rate.n,
                hollow=series == "source",
            )
        )
    for k, name in enumerate(target.classes):
        for series, rows in (("source", source), ("target", target)):
            hit = rows.truth == k
            rate = intervals.rate(rows.correct[hit], cluster=None if rows.cluster is None else rows.cluster[hit])
            dots.append(
                Dot(
                    label=name,
                    value=rate.value,
                    interval=rate.interval(rules.confidence),
                    series=series,
                    n=rate.n,
                    hollow=series == "source",
                    note=rate.reason,
                )
            )
    summary = f"Accuracy {percent(intervals.rate(source.correct).value)} on the source, {percent(intervals.rate(target.correct).value)} on the target: a drop of {number(drop.value)}."
    figure = Intervals(
        id="accuracy-by-domain",
        title=summary,
        how_to_read="Hollow: source. Filled: target. Classes below show where a drop comes from.",
        alt=summary,
        caption=f"Adapted model; n = {source.n} source, {target.n} target; {rules.confidence:.0%} intervals.",
        value_label="accuracy",
        dots=tuple(dots),
        share=True,
    )
    caveats = [*target.caveats, "The source data must not have been used in training; the tool cannot see whether they were."]
    if reweighted.value is not None and "effective_n" in reweighted.details:
        caveats.append(f"Effective size of the re-weighted source sample: {reweighted.details['effective_n']:.0f} of {source.n}.")
    return Measurement(summary=summary, metrics=metrics, exhibits=(figure,), caveats=tuple(caveats), params={"seed": seed})


def _features(evidence: Evidence, key: str, role: str, seed: int) -> tuple[NDArray[np.float64], NDArray[np.object_] | None]:
    """Penultimate features (n, D) of usable rows, at most MOST_PER_DOMAIN by hash priority, and their cluster ids."""
    rows = np.flatnonzero(evidence.usable(key, role))
    if rows.size > MOST_PER_DOMAIN:
        ids = evidence.ids(role)
        rows = rows[bottom_k([ids[int(r)] for r in rows], MOST_PER_DOMAIN, seed)]
    cluster = evidence.cluster(role)
    return np.asarray(evidence.features(key, role)[rows], dtype=np.float64), None if cluster is None else np.asarray(cluster)[rows]


def _labels(evidence: Evidence, role: str) -> tuple[NDArray[np.int64], NDArray[np.object_] | None]:
    labels = evidence.labels(role)
    rows = np.flatnonzero(labels >= 0)
    cluster = evidence.cluster(role)
    return np.asarray(labels[rows], dtype=np.int64), None if cluster is None else np.asarray(cluster)[rows]


def _axes(gaps: tuple[object, ...], confidence: float, n: dict[str, int], key: str) -> Bars:
    bars = []
    for axis, gap in enumerate(gaps, start=1):
        value, interval = getattr(gap, "value", None), gap.interval(confidence)  # type: ignore[attr-defined]
        bars.append(Bar(label=f"axis {axis}", value=value, interval=interval, null=0.0))
    return Bars(
        id="mean-gap",
        title="Where the means of the two domains differ",
        how_to_read="Difference of means, target minus source, on the leading principal axes, in standard deviations within the domains.",
        alt="Standardised differences of means on the leading principal axes.",
        caption=f"Features of the {key} model; n = {n['source']} source, {n['target']} target; {confidence:.0%} intervals.",
        value_label="standard deviations",
        bars=tuple(bars),
        signed=True,
    )


def _scatter(a: NDArray[np.float64], b: NDArray[np.float64], key: str) -> list[Bars | Heatmap | Table]:
    """Where the two domains lie on the first two principal axes: share of target among the samples of each cell."""
    first, second, _ = shift.principal_scores(a, b, axes=2)
    if first.shape[1] < 2:
        return []
    both = np.concatenate([first, second])
    edges = [np.linspace(both[:, k].min(), both[:, k].max(), SCATTER_BINS + 1) for k in (0, 1)]
    count_a, *_ = np.histogram2d(first[:, 0], first[:, 1], bins=(edges[0], edges[1]))
    count_b, *_ = np.histogram2d(second[:, 0], second[:, 1], bins=(edges[0], edges[1]))
    total = count_a / len(first) + count_b / len(second)
    share = np.where(total > 0, (count_b / len(second)) / np.where(total > 0, total, 1.0), np.nan)
    grid = share.T[::-1]
    return [
        Heatmap(
            id="where-they-lie",
            title="Where source and target lie in the base's features",
            how_to_read="Cells of the plane of the first two principal axes: 1 holds only target samples, 0 only source samples, empty cells none.",
            alt="Share of target samples by place on the first two principal axes.",
            caption=f"Features of the {key} model, both domains weighted equally.",
            row_label="second axis",
            column_label="first axis",
            rows=tuple(f"{edges[1][SCATTER_BINS - 1 - i]:.2g}" for i in range(SCATTER_BINS)),
            columns=tuple(f"{edges[0][j]:.2g}" for j in range(SCATTER_BINS)),
            values=tuple(tuple(None if np.isnan(v) else float(v) for v in line) for line in grid),
            text=tuple(tuple("" for _ in line) for line in grid),
            value_label="share of target",
            value_range=(0.0, 1.0),
        )
    ]


SHIFT: tuple[Check, ...] = (covariate_shift, label_shift, harmful_shift)
