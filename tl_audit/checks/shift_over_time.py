"""Family 5, shift along the target itself: at which period, and at which site, does it leave the source (TLA508)?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_audit.checks.base import Check, Context, check, metric
from tl_audit.checks.selection import clusters_of_both, judged, rows_alone, units_in
from tl_audit.checks.shift import LEAST_PER_DOMAIN
from tl_audit.checks.wording import bounds, counted, number, p_value, percent, signed
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures import intervals, shift
from tl_audit.measures.estimate import Estimate, limit_p
from tl_audit.measures.multiplicity import benjamini_hochberg, holm
from tl_audit.measures.permutation import resamples_for
from tl_audit.measures.sampling import bottom_k
from tl_audit.measures.trend import trend
from tl_audit.records.exhibits import Column, Dot, Exhibit, Intervals, Line, Lines, Reference, Table
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject

MOST_OF_SOURCE = 1000
"""Source rows, by hash priority, that every slice is compared with."""
MOST_PER_SLICE = 500
LEAST_CLUSTERS = 5
SHIFTED_BEYOND = 0.60
"""AUC above which a slice is said to have left the source; the limits are the policy's."""
MOST_LISTED = 20


@dataclass(frozen=True)
class _Slice:
    """A period or a site of the target, with what was found there."""

    column: str
    name: str
    rows: NDArray[np.int64]
    distance: Estimate
    domain: Estimate
    accuracy: Estimate | None
    units: int | None


@check(
    "TLA508",
    "Shift over time and site",
    section="shift",
    severity="medium",
    needs=("source", "target", "target.time|target.site", "base@source|adapted@source", "base@target|adapted@target"),
    multiplicity="bh",
    values="same",
)
def shift_over_time(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """At which period or site does the target leave the source?

    How it is measured: TLA501 for each period and each site of the target that has 50 samples, always against the same source: held-out AUC of
    a linear classifier of domains and debiased maximum mean discrepancy with a permutation test, corrected over all slices; beside it the
    accuracy of the adapted model there, and the slope of its accuracy per period, tested by permuting the order of periods.

    Why it matters: a shift that began on one day, or comes from one site, has a cause that can be found; an average over all of them hides it.

    How to reduce the risk: look for what changed at the first period or the site named (device, form, population); adapt on data from there.
    """
    rules, seed = context.rules, context.seed
    ruler = next(
        (k for k in ("base", "adapted") if subject.model(k) is not None and evidence.has(k, "source") and evidence.has(k, "target")), None
    )
    if ruler is None:
        raise NotEvaluated("features of one model on source and target")
    usable = evidence.usable(ruler, "target")
    columns, caveats = _columns(evidence, usable)
    wanted = [(column, name, rows) for column, slices in columns.items() for name, rows in slices]
    if not wanted:
        raise NotEvaluated(f"two periods or two sites in the target, one of them with {LEAST_PER_DOMAIN} samples" + _because(caveats))
    right = _correct(evidence)
    found = _compared(evidence, ruler, wanted, right, context)
    metrics = _metrics(found, context)
    slope = _slope(evidence, right, context)
    if slope is not None:
        periods = evidence.periods("target")
        assert periods is not None  # a slope has periods
        metrics.append(metric("trend_accuracy", slope, rules=rules, unit=f"per {periods.unit}"))
    moved = _moved(found, rules.alpha)
    exhibits, summary = _shown(found, moved, slope, evidence, context, ruler)
    if ruler != "base":
        caveats.append("No base model: features of the adapted model serve as the ruler; adaptation itself moves them.")
    if all(one.accuracy is None for one in found):
        caveats.append("Accuracy by period and site is left out: no row of the target can be judged.")
    caveats.append(
        "Another mix of classes in a period or site moves these numbers too (TLA502). Shift is no harm by itself: TLA509 says whether it costs performance."
    )
    if alone := rows_alone(evidence, ("source", "target")):
        caveats.append(alone)
    first = next((one.name for one in found if one.column == "period" and one in moved), None)
    return Measurement(
        summary=summary, metrics=tuple(metrics), exhibits=exhibits, caveats=tuple(caveats),
        params={
            "ruler": ruler, "slices_compared": len(found), "first_period_shifted": first, "shifted_beyond": SHIFTED_BEYOND,
            "most_of_source": MOST_OF_SOURCE, "most_per_slice": MOST_PER_SLICE, "kernel": "Gaussian, one median bandwidth", "seed": seed,
        },
    )  # fmt: skip


def _columns(evidence: Evidence, usable: NDArray[np.bool_]) -> tuple[dict[str, list[tuple[str, NDArray[np.int64]]]], list[str]]:
    """Slices of each column with enough samples, periods in order of time and sites by name; and what was left out."""
    out: dict[str, list[tuple[str, NDArray[np.int64]]]] = {}
    caveats: list[str] = []
    cluster = evidence.cluster("target")
    periods, site = evidence.periods("target"), evidence.site("target")
    columns: list[tuple[str, NDArray[Any], tuple[str, ...]]] = []
    if periods is not None:
        columns.append(("period", periods.texts, periods.names))
    if site is not None:
        columns.append(("site", np.asarray(site), tuple(sorted(set(site.tolist())))))
    for column, values, names in columns:
        slices, small = [], []
        for name in names:
            rows = np.flatnonzero(usable & (values == name))
            few = cluster is not None and units_in(np.asarray(cluster)[rows]) < LEAST_CLUSTERS
            if rows.size < LEAST_PER_DOMAIN or few:
                small.append(name)
            else:
                slices.append((name, rows))
        if small:
            caveats.append(
                f"{column.capitalize()}s not compared, fewer than {LEAST_PER_DOMAIN} samples or {LEAST_CLUSTERS} clusters: {_listed(small)}."
            )
        if len(names) < 2:
            caveats.append(f"The target has one {column} only, which TLA501 compares.")
            continue
        out[column] = slices
    return out, caveats


def _because(caveats: list[str]) -> str:
    return "" if not caveats else f" ({' '.join(caveats).rstrip('.')})"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:MOST_LISTED]) + (f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else "")


def _compared(
    evidence: Evidence, ruler: str, wanted: list[tuple[str, str, NDArray[np.int64]]], right: Right | None, context: Context
) -> list[_Slice]:
    """Every slice against the source; the source's own kernel is computed once for all."""
    seed, alpha = context.seed, context.rules.alpha
    source_rows = np.flatnonzero(evidence.usable(ruler, "source"))
    if source_rows.size < LEAST_PER_DOMAIN:
        raise NotEvaluated(f"{LEAST_PER_DOMAIN} usable samples of the source")
    source_rows = _least(evidence, "source", source_rows, MOST_OF_SOURCE, seed)
    cluster_a, cluster_b = clusters_of_both(
        evidence.cluster("source"), evidence.cluster("target"), (evidence.n("source"), evidence.n("target"))
    )
    x = np.asarray(evidence.features(ruler, "source")[source_rows], dtype=np.float64)
    own = None if cluster_a is None else np.asarray(cluster_a)[source_rows]
    features = evidence.features(ruler, "target")
    picked = [_least(evidence, "target", rows, MOST_PER_SLICE, seed) for _, _, rows in wanted]
    parts = [np.asarray(features[rows], dtype=np.float64) for rows in picked]
    units = None if cluster_b is None else [np.asarray(cluster_b)[rows] for rows in picked]
    resamples = resamples_for(len(wanted), alpha)
    distances = shift.mmd_of_parts(x, parts, cluster_source=own, cluster_parts=units, resamples=resamples, seed=seed, alpha=alpha)
    found = []
    for k, (column, name, rows) in enumerate(wanted):
        context.progress("TLA508", k, len(wanted))
        domain = shift.c2st(
            x, parts[k], cluster_source=own, cluster_target=None if units is None else units[k], resamples=resamples, seed=seed, alpha=alpha
        )
        accuracy = None
        if right is not None:
            correct, known, cluster = right
            here = rows[known[rows]]
            accuracy = intervals.rate(correct[here], cluster=None if cluster is None else cluster[here])
        found.append(_Slice(column, name, picked[k], distances[k], domain, accuracy, None if units is None else units_in(units[k])))
    return found


def _least(evidence: Evidence, role: str, rows: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    if rows.size <= most:
        return rows
    ids = evidence.ids(role)
    return np.asarray(rows[bottom_k([ids[int(r)] for r in rows], most, seed)], dtype=np.int64)


Right = tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[Any] | None]


def _correct(evidence: Evidence) -> Right | None:
    """(N,) right answers of the adapted model, which rows can be judged, and cluster ids; None where none can."""
    try:
        rows = judged(evidence, "adapted", "target")
    except NotEvaluated:
        return None
    n = evidence.n("target")
    correct, known = np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.bool_)
    correct[rows.rows], known[rows.rows] = rows.correct, True
    return correct, known, evidence.cluster("target")


def _slope(evidence: Evidence, right: Right | None, context: Context) -> Estimate | None:
    """Slope of the accuracy over all periods, small ones included; None without times or without rows that can be judged."""
    periods = evidence.periods("target")
    if periods is None or right is None:
        return None
    correct, known, cluster = right
    rows = np.flatnonzero(known & (periods.codes >= 0))
    if rows.size == 0:
        return None
    times = np.array(periods.positions)[periods.codes[rows]]
    return trend(correct[rows], times, cluster=None if cluster is None else np.asarray(cluster)[rows], seed=context.seed)


def _metrics(found: list[_Slice], context: Context) -> list[Metric]:
    rules = context.rules
    out: list[Metric] = []
    for one in found:
        where = {one.column: one.name}
        n = {"source": int(one.distance.details["n_source"]), "target": int(one.rows.size)}
        units = None if one.units is None else {"target": one.units}
        out.append(
            metric("mmd2_slice", one.distance, rules=rules, slice=where, n=n, clusters=units, family="mmd2_slice", min_n=LEAST_PER_DOMAIN)
        )
        out.append(
            metric(
                "c2st_auc_slice", one.domain, rules=rules, slice=where, n=n, clusters=units, better="lower", family="c2st_auc_slice",
                min_n=LEAST_PER_DOMAIN,
            )
        )  # fmt: skip
        if one.accuracy is not None:
            out.append(metric("accuracy_slice", one.accuracy, rules=rules, slice=where, better="higher"))
    return out


def _moved(found: list[_Slice], alpha: float) -> list[_Slice]:
    """Slices whose discrepancy is significant and whose AUC is shown to exceed SHIFTED_BEYOND, both corrected over all slices."""
    tested = benjamini_hochberg([one.distance.p_value for one in found])
    beyond = holm([limit_p(one.domain.ladder, maximum=SHIFTED_BEYOND) for one in found])
    return [one for one, p, q in zip(found, tested, beyond, strict=True) if p is not None and q is not None and p < alpha and q < alpha]


def _shown(
    found: list[_Slice], moved: list[_Slice], slope: Estimate | None, evidence: Evidence, context: Context, ruler: str
) -> tuple[tuple[Exhibit, ...], str]:
    over = [one for one in found if one.column == "period"]
    sites = [one for one in found if one.column == "site"]
    said = []
    if over:
        out = [one for one in over if one in moved]
        if out:
            said.append(
                f"The target leaves the source first in {out[0].name} (AUC {number(out[0].domain.value)}), in {len(out)} of {len(over)} periods."
            )
        else:
            said.append(
                f"In none of {counted(len(over), 'period')} is the target shown to leave the source (AUC above {SHIFTED_BEYOND:.2f})."
            )
    if slope is not None and slope.value is not None:
        periods = evidence.periods("target")
        said.append(
            f"Accuracy changes by {signed(slope.value)} per {periods.unit if periods else 'period'} (p = {p_value(slope.p_value)})."
        )
    if sites:
        away = sorted((one for one in sites if one in moved), key=lambda one: (-(one.domain.value or 0.0), one.name))
        told = ", ".join(f"{one.name} (AUC {number(one.domain.value)})" for one in away[:3])
        said.append(
            f"{len(away)} of {len(sites)} sites differ from the source: {told}."
            if away
            else f"None of {counted(len(sites), 'site')} is shown to differ from the source."
        )
    summary = " ".join(said)
    caption = (
        f"Features of the {ruler} model; each slice against the same source sample of at most {MOST_OF_SOURCE}, at most {MOST_PER_SLICE} "
        f"per slice, by hash priority, seed {context.seed}; {context.rules.confidence:.0%} intervals, each by itself."
    )
    exhibits: list[Exhibit] = []
    if over:
        exhibits += _over_time(over, slope, evidence, summary, caption, context)
    if sites:
        exhibits += _by_site(sites, summary, caption, context)
    exhibits.append(_table(found, moved, summary, caption, context))
    return tuple(exhibits), summary


def _over_time(
    over: list[_Slice], slope: Estimate | None, evidence: Evidence, summary: str, caption: str, context: Context
) -> list[Exhibit]:
    x = tuple(float(i) for i in range(len(over)))
    ticks = tuple(one.name for one in over)
    out: list[Exhibit] = [
        Lines(
            id="shift-by-period",
            title="How well each period can be told from the source",
            how_to_read="Held-out AUC, the band is its interval. 0.5, dashed: the period looks like the source; 1: no sample could be mistaken.",
            alt=summary,
            caption=caption,
            x_label="period",
            y_label="AUC, source against target",
            lines=(
                _line("AUC", x, [one.domain for one in over], context.rules.confidence),
                Line(name="chance", x=x, y=(0.5,) * len(x), role="null"),
            ),
            x_ticks=ticks,
            y_range=(min(0.4, *(one.domain.value or 0.5 for one in over)), 1.0),
        )
    ]
    if any(one.accuracy is not None and one.accuracy.value is not None for one in over):
        lines = [_line("accuracy", x, [one.accuracy for one in over], context.rules.confidence)]
        periods = evidence.periods("target")
        if slope is not None and slope.value is not None and periods is not None and len(over) > 1:
            place = dict(zip(periods.names, periods.positions, strict=True))
            fitted = tuple(slope.details["intercept"] + slope.value * place[one.name] for one in over)
            lines.append(Line(name="trend", x=x, y=fitted, role="reference"))
        out.append(
            Lines(
                id="accuracy-by-period",
                title="Accuracy of the adapted model by period",
                how_to_read="The band is the interval of each period; the thin line is the fitted trend over all periods, weighted by their rows.",
                alt=summary,
                caption=f"{context.rules.confidence:.0%} intervals, each by itself; "
                f"slope {signed(None if slope is None else slope.value)} ({bounds(None if slope is None else slope.interval(context.rules.confidence))}).",
                x_label="period",
                y_label="accuracy",
                lines=tuple(lines),
                x_ticks=ticks,
            )
        )
    return out


def _line(name: str, x: tuple[float, ...], estimates: list[Estimate | None] | list[Estimate], confidence: float) -> Line:
    values = [None if e is None else e.value for e in estimates]
    found = [None if e is None else e.interval(confidence) for e in estimates]
    # a band needs two ends everywhere: where there is no interval, or no value, it closes on the line
    low = tuple(b[0] if b is not None else (v if v is not None else 0.5) for b, v in zip(found, values, strict=True))
    high = tuple(b[1] if b is not None else (v if v is not None else 0.5) for b, v in zip(found, values, strict=True))
    return Line(name=name, x=x, y=tuple(values), low=low, high=high, mark="dot")


def _by_site(sites: list[_Slice], summary: str, caption: str, context: Context) -> list[Exhibit]:
    order = sorted(sites, key=lambda one: (-(one.domain.value or 0.0), one.name))[:MOST_LISTED]
    confidence = context.rules.confidence
    return [
        Intervals(
            id="shift-by-site",
            title="How well each site can be told from the source",
            how_to_read="Held-out AUC: 0.5 where the site looks like the source, 1 where no sample could be mistaken.",
            alt=summary,
            caption=caption,
            value_label="AUC, source against target",
            dots=tuple(
                Dot(
                    label=one.name,
                    value=one.domain.value,
                    interval=one.domain.interval(confidence),
                    n=int(one.rows.size),
                    note=one.domain.reason,
                )
                for one in order
            ),
            references=(Reference(value=0.5, label="chance", role="null"),),
            grouped=True,
        )
    ]


def _table(found: list[_Slice], moved: list[_Slice], summary: str, caption: str, context: Context) -> Table:
    adjusted = benjamini_hochberg([one.distance.p_value for one in found])
    rows = []
    for one, p in zip(found, adjusted, strict=True):
        accuracy = None if one.accuracy is None else one.accuracy.value
        rows.append(
            (
                one.column, one.name, int(one.rows.size), one.domain.value, bounds(one.domain.interval(context.rules.confidence)),
                one.distance.value, p, percent(accuracy) if accuracy is not None else None, "yes" if one in moved else "not shown",
            )
        )  # fmt: skip
    return Table(
        id="slices",
        title="Every period and site against the source",
        how_to_read="Adjusted p: of the MMD² permutation test, by Benjamini–Hochberg over all rows of this table.",
        alt=summary,
        caption=caption,
        columns=(
            Column(name="by"), Column(name="slice"), Column(name="n", format="count"), Column(name="AUC", format="number"), Column(name="interval"),
            Column(name="MMD²", format="number"), Column(name="adjusted p", format="number"), Column(name="accuracy"), Column(name="left the source"),
        ),
        rows=tuple(rows),
        grouped=True,
    )  # fmt: skip


SHIFT_OVER_TIME: tuple[Check, ...] = (shift_over_time,)
