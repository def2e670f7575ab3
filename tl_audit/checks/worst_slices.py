"""Family 3, worst slices: parts of the target with many errors, looked for on one half and tested on the other (TLA307)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tl_audit.checks.base import Check, Context, check, exact, metric
from tl_audit.checks.data import short_id
from tl_audit.checks.selection import Judged, judged
from tl_audit.checks.wording import bounds, counted, number, percent, signed
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures import intervals, slices
from tl_audit.measures.arrays import is_missing
from tl_audit.measures.estimate import Estimate, limit_p
from tl_audit.measures.multiplicity import benjamini_hochberg
from tl_audit.measures.sampling import cluster_codes, priority, split_by_cluster
from tl_audit.records.exhibits import Column, Dot, Exhibit, GridRow, ImageGrid, Intervals, Picture, Table
from tl_audit.records.metrics import Measurement
from tl_audit.subject import Subject

MOST_PICTURES = 12


@dataclass(frozen=True)
class _Tested:
    """A part found on the first half, with what the second half says of it."""

    part: slices.Part
    inside: NDArray[np.bool_]
    "(H,) of the held-out rows"
    excess: Estimate
    error: Estimate
    rest: Estimate
    unannounced: Estimate
    "excess of the errors beyond those that the model's own confidence announces"
    known: bool
    "whether a group, site or period tells the part apart; otherwise inputs or features do"
    adjusted: float | None = None

    @property
    def judged(self) -> Estimate:
        """What a limit is held against. Rules over inputs, and clusters of features, find the border between classes, where every model errs
        more and says so: only errors that it does not announce make such a part one that is hidden."""
        return self.excess if self.known else self.unannounced


@check(
    "TLA307",
    "Worst slices",
    section="performance",
    severity="high",
    needs=("adapted", "target.labels", "adapted@target"),
    multiplicity="bh",
)
def worst_slices(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Is there a part of the target, that can be described, where the model fails much more often?

    How it is measured: on one half of the target (whole clusters) a shallow tree of the errors over input properties, groups, period and site
    names parts that a rule describes, and k-means of the features names parts that no rule describes. On the other half each of them is
    compared with the rest: error there minus error elsewhere, corrected for all parts that were tested. A part that no group, site or period
    tells apart is judged on errors beyond those that the model's own confidence announces (1 - confidence): some part always holds the hard samples.

    Why it matters: an average hides the part of the inputs that the model cannot handle; whoever lives in that part meets nothing else.

    How to reduce the risk: look at samples of the part named, add data from it to the adaptation, or refuse such inputs in use.
    """
    rules, seed = context.rules, context.seed
    rows = judged(evidence, "adapted", "target")
    # by hash first: nothing below may depend on the order of the rows
    ids = evidence.ids("target")
    order = np.argsort(priority(seed, [ids[int(r)] for r in rows.rows]), kind="stable")
    wrong = ~rows.correct[order]
    codes = None if rows.cluster is None else cluster_codes(np.asarray(rows.cluster)[order], rows.n)
    look = split_by_cluster(codes, rows.n, seed)
    if min(look.sum(), (~look).sum()) < 2 * slices.LEAST_ROWS:
        raise NotEvaluated(f"{4 * slices.LEAST_ROWS} rows of the target that can be judged, to search one half and test the other")
    columns = _columns(evidence, rows.rows[order])
    described = slices.rule_parts(wrong, columns, look, cluster=codes, seed=seed)
    undescribed: tuple[slices.Part, ...] = ()
    caveats = list(rows.caveats)
    features = _features(evidence, rows.rows[order])
    if features is None:
        caveats.append("No features of the adapted model on the target: only parts that a rule describes were looked for.")
    else:
        undescribed = slices.without_doubles(slices.feature_parts(wrong, features, look, cluster=codes, seed=seed), described)
    unsure = 1 - np.asarray(rows.probabilities.max(axis=1), dtype=np.float64)[order]
    named = {*columns.texts, *columns.ordered} - set(evidence.properties("target"))
    tested, small = _tested(wrong, unsure, codes, look, (*described, *undescribed), named, context)
    if small:
        caveats.append(f"Too few held-out rows or clusters to test: {'; '.join(part.name for part in small)}.")
    n = {"target": int((~look).sum())}
    metrics = [
        metric(
            name, value, rules=rules, better="lower", slice={"slice": one.part.name},
            n={"slice": one.error.n, "rest": one.rest.n},
            clusters=None if one.error.clusters is None or one.rest.clusters is None else {"slice": one.error.clusters, "rest": one.rest.clusters},
            family=name,
        )
        for one in tested
        for name, value in (
            (("slice_error_excess", one.excess),)
            if one.known
            else (("slice_unannounced_error", one.unannounced), ("slice_error_difference", one.excess))
        )
    ]  # fmt: skip
    worse = [one for one in tested if one.adjusted is not None and one.adjusted < rules.alpha]
    metrics.append(exact("slices_found", len(worse), n=n))
    summary = _sentence(tested, worse, len(columns.numbers) + len(columns.texts) + len(columns.ordered), wrong[look])
    exhibits: list[Exhibit] = []
    if tested:
        held = rows.rows[order][~look]
        exhibits = [_figure(tested, summary, context), _table(tested, rows, order, look, summary, context)]
        pictures = _pictures(subject, evidence, rows, order, tested[0], held, wrong[~look])
        exhibits += [] if pictures is None else [pictures]
    caveats.append(
        "A part that was not looked for may be worse: only rules over the columns known here, and clusters of features, were searched."
    )
    return Measurement(
        summary=summary, metrics=tuple(metrics), exhibits=tuple(exhibits), caveats=tuple(caveats),
        params={
            "searched_rows": int(look.sum()), "tested_rows": int((~look).sum()), "rules_proposed": len(described),
            "feature_clusters_proposed": len(undescribed), "depth": slices.DEPTH, "least_rows": slices.LEAST_ROWS, "seed": seed,
        },
    )  # fmt: skip


def _columns(evidence: Evidence, rows: NDArray[np.int64]) -> slices.Columns:
    """What rules may speak of: input properties, groups, period and site, of these rows."""
    numbers: dict[str, NDArray[np.float64]] = {}
    texts: dict[str, NDArray[np.object_]] = {}
    for name, values in evidence.properties("target").items():
        picked = np.asarray(values)[rows]
        if picked.dtype == object:
            texts[name] = _texts(picked)
        else:
            values64 = picked.astype(np.float64)
            numbers[name] = np.where(np.isfinite(values64), values64, np.nan)
    named = {name: np.asarray(values)[rows] for name, values in evidence.groups("target").items()}
    site, periods = evidence.site("target"), evidence.periods("target")
    if site is not None:
        named.setdefault("site", np.asarray(site)[rows])
    for name, values in named.items():
        if name not in texts:
            texts[f"{name} (group)" if name in numbers else name] = _texts(values)
    ordered = {} if periods is None else {"period": (periods.codes[rows], periods.names)}
    return slices.Columns(numbers, texts, ordered)


def _texts(values: NDArray[np.object_]) -> NDArray[np.object_]:
    return np.array([None if is_missing(value) else str(value) for value in values.tolist()], dtype=object)


def _features(evidence: Evidence, rows: NDArray[np.int64]) -> NDArray[np.float64] | None:
    try:
        return np.asarray(evidence.features("adapted", "target")[rows], dtype=np.float64)
    except (NotEvaluated, KeyError):
        return None


def _tested(
    wrong: NDArray[np.bool_],
    unsure: NDArray[np.float64],
    codes: NDArray[np.int64] | None,
    look: NDArray[np.bool_],
    parts: tuple[slices.Part, ...],
    named: Collection[str],
    context: Context,
) -> tuple[list[_Tested], list[slices.Part]]:
    """Every part on the half where it was not looked for, largest excess first; and the parts that are too small there."""
    held = ~look
    errors, beyond = wrong[held], wrong[held] - unsure[held]
    units = None if codes is None else codes[held]
    found, small = [], []
    for part in parts:
        inside = part.inside[held]
        if min(inside.sum(), (~inside).sum()) < context.rules.min_n or _few(units, inside, context.rules.min_clusters):
            small.append(part)
            continue
        mine, theirs = (None, None) if units is None else (units[inside], units[~inside])
        excess = intervals.rate_difference(errors[inside], errors[~inside], cluster_first=mine, cluster_second=theirs, seed=context.seed)
        unannounced = intervals.mean_difference(beyond[inside], beyond[~inside], cluster_first=mine, cluster_second=theirs)
        here, elsewhere = intervals.rate(errors[inside], cluster=mine), intervals.rate(errors[~inside], cluster=theirs)
        found.append(_Tested(part, inside, excess, here, elsewhere, unannounced, known=any(column in named for column in part.columns)))
    # one-sided in effect: only parts that are worse count, at the two-sided level
    above = benjamini_hochberg([limit_p(one.judged.ladder, maximum=0.0) for one in found])
    out = [replace(one, adjusted=p) for one, p in zip(found, above, strict=True)]
    return sorted(out, key=lambda one: (-(one.judged.value or 0.0), one.part.name)), small


def _few(units: NDArray[np.int64] | None, inside: NDArray[np.bool_], least: int) -> bool:
    return units is not None and min(np.unique(units[inside]).size, np.unique(units[~inside]).size) < least


def _sentence(tested: list[_Tested], worse: list[_Tested], columns: int, searched: NDArray[np.bool_]) -> str:
    if not searched.any():
        return "The half that was searched holds no error: there is no worse part to look for."
    if searched.all():
        return "The half that was searched holds errors only: there is no worse part to look for."
    if not tested:
        return f"No part of the target stood out where it was looked for ({counted(columns, 'column')} and the features)."
    if not worse:
        return f"None of {counted(len(tested), 'part')} that stood out is shown to be worse on held-out rows; the largest is {_told(tested[0])}."
    verb = "is" if len(worse) == 1 else "are"
    text = f"{len(worse)} of {counted(len(tested), 'part')} that stood out {verb} worse on held-out rows as well; the worst is {_told(worse[0])}."
    ruled = next((one for one in worse if one.part.described), None)
    if ruled is not None and ruled is not worse[0]:
        text += f" The worst that a rule describes is {_told(ruled)}."
    return text


def _told(one: _Tested) -> str:
    said = "" if one.known else f" ({signed(one.unannounced.value)} beyond what its confidence announces)"
    return f"{one.part.name}: {percent(one.error.value)} errors on held-out rows, {percent(one.rest.value)} elsewhere{said}"


def _figure(tested: list[_Tested], summary: str, context: Context) -> Intervals:
    confidence = context.rules.confidence
    dots = []
    for one in tested:
        for series, rate, hollow in (("the rest", one.rest, True), ("this part", one.error, False)):
            dots.append(
                Dot(
                    label=one.part.name,
                    value=rate.value,
                    interval=rate.interval(confidence),
                    series=series,
                    n=rate.n,
                    hollow=hollow,
                    note=rate.reason,
                )
            )
    return Intervals(
        id="worst-slices",
        title=summary,
        how_to_read="Filled: share of errors in the part, hollow: everywhere else; both on rows that the search did not see.",
        alt=summary,
        caption=f"Parts found on one half, tested on the other, split by {'cluster' if tested[0].error.clusters is not None else 'row'}; {confidence:.0%} intervals; seed {context.seed}.",
        value_label="share of errors",
        dots=tuple(dots),
        share=True,
        grouped=True,
    )


def _table(tested: list[_Tested], rows: Judged, order: NDArray[np.int64], look: NDArray[np.bool_], summary: str, context: Context) -> Table:
    truth, predicted = rows.truth[order][~look], rows.predicted[order][~look]
    lines = []
    for one in tested:
        lines.append(
            (
                one.part.name, one.error.n, one.error.value, one.rest.value, signed(one.excess.value), bounds(one.excess.interval(context.rules.confidence)),
                signed(one.unannounced.value), one.adjusted, _held(truth[one.inside], rows.classes), _held(predicted[one.inside], rows.classes),
            )
        )  # fmt: skip
    return Table(
        id="slices",
        title="Parts of the target that stood out, on held-out rows",
        how_to_read="Excess: error in the part minus error elsewhere. Unannounced: what of it the model's confidence does not announce. A feature cluster is a part that no rule over the columns describes.",
        alt=summary,
        caption=f"p that the excess (of a part that no group, site or period tells apart: the unannounced one) is above 0, by Benjamini–Hochberg over the {counted(len(tested), 'part')}; {context.rules.confidence:.0%} intervals, each by itself.",
        columns=(
            Column(name="part"), Column(name="n", format="count"), Column(name="errors", format="share"), Column(name="errors elsewhere", format="share"),
            Column(name="excess"), Column(name="interval"), Column(name="unannounced"), Column(name="adjusted p", format="number"), Column(name="commonest class"), Column(name="commonest answer"),
        ),
        rows=tuple(lines),
        grouped=True,
    )  # fmt: skip


def _held(classes: NDArray[np.int64], names: tuple[str, ...]) -> str:
    """The commonest class of a part with its share, "7 (62.0 %)"."""
    (value, times), *_ = sorted(Counter(classes.tolist()).items(), key=lambda one: (-one[1], one[0]))
    return f"{names[value]} ({percent(times / classes.size)})"


def _pictures(
    subject: Subject,
    evidence: Evidence,
    rows: Judged,
    order: NDArray[np.int64],
    worst: _Tested,
    held: NDArray[np.int64],
    wrong: NDArray[np.bool_],
) -> ImageGrid | None:
    """Held-out samples of the worst part, those it got wrong first, if samples may be shown and the kind of data has pictures."""
    if evidence.samples == "off":
        return None
    inside = np.flatnonzero(worst.inside)
    chosen = held[inside[np.argsort(~wrong[inside], kind="stable")][:MOST_PICTURES]]
    samples, spec = subject.target.samples, subject.adapted.preprocessing
    modality, redacted = samples.modality, evidence.samples == "redacted"
    raw = samples.read(chosen)
    tensors = modality.encode(raw, spec)
    place = {int(row): k for k, row in enumerate(rows.rows)}
    hashes = evidence.content_hashes("target")
    grid: list[GridRow] = []
    for i, row in enumerate(chosen[raw.readable].tolist()):
        at = place[row]
        truth, answer = rows.classes[int(rows.truth[at])], rows.classes[int(rows.predicted[at])]
        picture: Picture | None = modality.picture(tensors[i], spec, title=f"{truth}, answered {answer}", redacted=redacted)
        if picture is None:
            return None
        grid.append(GridRow(id=short_id(hashes[row], samples.ids[row]), facts=(("true", truth), ("answer", answer)), pictures=(picture,)))
    if not grid:
        return None
    return ImageGrid(
        id="worst-slice-samples",
        title=f"Samples of the worst part: {worst.part.name}",
        how_to_read="Wrong answers first. What do they share?",
        alt=f"{len(grid)} held-out samples of the part {worst.part.name}.",
        caption=f"Held-out rows by hash order, wrong ones first; error in the part {number(worst.error.value)}; as the model sees them.",
        rows=tuple(grid),
        samples="redacted" if redacted else "on",
    )


WORST_SLICES: tuple[Check, ...] = (worst_slices,)
