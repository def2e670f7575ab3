"""Labels that look wrong (TLA205): what out-of-sample probabilities speak against, beyond what overlapping classes give by chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_audit.checks.base import Check, Context, check, exact, metric
from tl_audit.checks.data import MOST_LISTED, MOST_PICTURES, short_id
from tl_audit.checks.wording import counted, percent
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures import intervals
from tl_audit.measures.label_noise import DRAWS, NoiseTest, noise_test
from tl_audit.measures.probe import FOLDS, cross_fitted
from tl_audit.records.exhibits import Bar, Bars, Cell, Column, GridRow, ImageGrid, Table
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject

MOST_PAIRS = 20


@dataclass(frozen=True)
class _Looked:
    """One domain whose labels were looked at: its rows, their labels, and the test.

    ``classes`` in the order of the label numbers; ``probabilities`` (N, C) out of sample.
    """

    role: str
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    classes: tuple[str, ...]
    cluster: NDArray[Any] | None
    test: NoiseTest


@check("TLA205", "Label noise suspects", section="data", severity="medium", needs=("target.labels|train.labels",))
def label_noise(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Which labels look wrong?

    How it is measured: a sample is a suspect where another class is as probable as is usual for that class, and is preferred to the label
    (confident joint). Probabilities are out of sample: the adapted model's on the target; on the training data those of a linear probe of the
    base's features, in 5 folds of whole clusters. The number is held against what labels drawn from the calibrated probabilities would give.

    Why it matters: a wrong label in the target makes right answers look wrong, and one in training teaches the error.

    How to reduce the risk: have the suspects labelled again by someone who does not see the first label; look at groups with many of them,
    which may be hard rather than wrong.
    """
    rules = context.rules
    reasons: list[str] = []
    caveats: list[str] = []
    looked = [one for find in (_target, _train) if (one := find(subject, evidence, context, reasons, caveats)) is not None]
    if not looked:
        raise NotEvaluated("; ".join(reasons) or "labelled samples with out-of-sample probabilities")
    caveats += [f"Not looked at: {reason}." for reason in reasons]
    metrics: list[Metric] = []
    bars: list[Bar] = []
    rows: list[tuple[Cell, ...]] = []
    told: list[str] = []
    for one in looked:
        test, where, n = one.test, {"domain": one.role}, {one.role: one.rows.size}
        count = int(test.suspects.flagged.sum())
        metrics.append(exact("suspect_labels", count, n=n, better="lower", slice=where))
        metrics.append(metric("suspect_share", test.share, rules=rules, role=one.role, better="lower", slice=where))
        metrics.append(metric("suspect_excess", test.excess, rules=rules, role=one.role, better="lower", slice=where))
        high = test.excess.details.get("null_high")
        metrics.append(exact("suspect_excess_null_high", high, n=n, slice=where, reason=None if high is not None else test.excess.reason))
        metrics += _by_pair(one) + _by_group(one, evidence, context)
        expected = test.share.null
        bars.append(
            Bar(
                label=one.role, value=test.share.value, interval=test.share.interval(rules.confidence), n=one.rows.size,
                null=None if expected is None or high is None else expected + high, note=test.share.reason,
            )
        )  # fmt: skip
        rows.append((one.role, one.rows.size, count, test.share.value, expected, test.excess.p_value, test.calibration.sharpness))
        told.append(
            f"{count} of {one.rows.size} labels of the {one.role} data ({percent(test.share.value)}; by chance {percent(expected)})"
        )
        if one.cluster is None:
            caveats.append(f"Rows of the {one.role} data are treated as independent: no cluster ids were given.")
    caveats.append(
        "A suspect is a question, not an error: hard samples, rare kinds and groups that the model knows badly are suspects as well."
    )
    summary = f"Another class is confidently preferred to the label for {' and '.join(told)}."
    exhibits: list[Bars | Table | ImageGrid] = [
        Bars(
            id="suspects",
            title="Suspect labels, and what overlapping classes give by chance",
            how_to_read=f"Bars: share of labels that look wrong. Tick: what it stays below in {1 - rules.alpha:.0%} of draws of labels from the calibrated probabilities.",
            alt=summary,
            caption=f"{rules.confidence:.0%} intervals; {DRAWS} draws, seed {context.seed}.",
            value_label="share of labels",
            bars=tuple(bars),
        ),
        Table(
            id="by-chance",
            title="Suspects found, and suspects that chance gives",
            how_to_read="By chance: were every label drawn from the calibrated probabilities. Sharpness below 1: the probabilities were too sure and were tempered.",
            alt=summary,
            caption=f"p by {DRAWS} draws, one-sided, before correction; seed {context.seed}.",
            columns=(
                Column(name="data"),
                Column(name="labels", format="count"),
                Column(name="suspects", format="count"),
                Column(name="share", format="share"),
                Column(name="by chance", format="share"),
                Column(name="p", format="number"),
                Column(name="sharpness", format="number"),
            ),
            rows=tuple(rows),
        ),
    ]
    for one in looked:
        if one.test.suspects.flagged.any():
            exhibits.append(_listed(one, evidence))
            # pictures where there are more than chance gives: elsewhere they would be hard samples, rightly labelled
            beyond = (one.test.excess.p_value or 1.0) < rules.alpha
            if beyond and (grid := _pictures(one, subject, evidence)) is not None:
                exhibits.append(grid)
    return Measurement(
        summary=summary, metrics=tuple(metrics), exhibits=tuple(exhibits), caveats=tuple(dict.fromkeys(caveats)),
        params={"folds": FOLDS, "draws": DRAWS, "seed": context.seed},
    )  # fmt: skip


def _target(subject: Subject, evidence: Evidence, context: Context, reasons: list[str], caveats: list[str]) -> _Looked | None:
    """The target by the adapted model, which has not seen it."""
    try:
        classes = evidence.common_classes("adapted", "target")
        truth = evidence.truth("adapted", "target")
        rows = np.flatnonzero(evidence.usable("adapted", "target") & (truth >= 0))
        p = np.asarray(evidence.probabilities("adapted", "target")[rows], dtype=np.float64)
    except NotEvaluated as reason:
        reasons.append(f"the target: {reason}")
        return None
    return _tested("target", rows, truth[rows], p, classes, evidence, context, reasons)


def _train(subject: Subject, evidence: Evidence, context: Context, reasons: list[str], caveats: list[str]) -> _Looked | None:
    """The training data by a probe of the base's features in folds: the adapted model has learned these very labels."""
    if not evidence.has(None, "train"):
        return None
    if not evidence.has("base", "train"):
        reasons.append("the training data: features of a base model, which did not learn their labels")
        return None
    try:
        labels, classes = evidence.labels("train"), evidence.classes("train")
    except NotEvaluated as reason:
        reasons.append(f"the training data: {reason}")
        return None
    rows = np.flatnonzero(evidence.usable("base", "train") & (labels >= 0))
    cluster = evidence.cluster("train")
    features = evidence.features("base", "train")
    found = cross_fitted(
        features if rows.size == len(features) else np.asarray(features[rows]), labels[rows], classes=len(classes),
        cluster=None if cluster is None else np.asarray(cluster)[rows], seed=context.seed,
    )  # fmt: skip
    if found.reason is not None:
        reasons.append(f"the training data: {found.reason}")
        return None
    caveats.append("The training data are judged by a linear probe of the base's features: what they do not show it cannot judge.")
    return _tested("train", rows, labels[rows], found.probabilities, classes, evidence, context, reasons)


def _tested(
    role: str, rows: NDArray[np.int64], labels: NDArray[np.int64], p: NDArray[np.float64], classes: tuple[str, ...],
    evidence: Evidence, context: Context, reasons: list[str],
) -> _Looked | None:  # fmt: skip
    if not rows.size or np.unique(labels).size < 2:
        reasons.append(f"the {role} data: labels of two classes with probabilities")
        return None
    ids = evidence.cluster(role)
    cluster = None if ids is None else np.asarray(ids)[rows]
    labels = np.asarray(labels, dtype=np.int64)
    return _Looked(
        role, rows, labels, p, classes, cluster, noise_test(p, labels, cluster=cluster, alpha=context.rules.alpha, seed=context.seed)
    )


def _by_pair(one: _Looked) -> list[Metric]:
    """Suspects per (label, preferred class), the most frequent first."""
    flagged = one.test.suspects.flagged
    pairs, counts = np.unique(np.stack([one.labels[flagged], one.test.suspects.looks_like[flagged]], axis=1), axis=0, return_counts=True)
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -counts))[:MOST_PAIRS]
    return [
        exact(
            "suspect_labels", int(counts[k]), n={one.role: int((one.labels == pairs[k, 0]).sum())}, better="lower",
            slice={"domain": one.role, "label": one.classes[int(pairs[k, 0])], "looks like": one.classes[int(pairs[k, 1])]},
        )
        for k in order.tolist()
    ]  # fmt: skip


def _by_group(one: _Looked, evidence: Evidence, context: Context) -> list[Metric]:
    out = []
    flagged = one.test.suspects.flagged
    for column, values in evidence.groups(one.role).items():
        held = values[one.rows]
        for group in sorted(set(held.tolist()), key=lambda g: (g == "(missing)", g)):
            inside = held == group
            share = intervals.rate(flagged[inside], cluster=None if one.cluster is None else one.cluster[inside])
            where = {"domain": one.role, column: group}
            out.append(metric("suspect_share_group", share, rules=context.rules, role=one.role, better="lower", slice=where))
    return out


def _worst(one: _Looked, most: int) -> list[int]:
    """Places of the suspects by how far the other class is preferred."""
    found = one.test.suspects
    places = np.flatnonzero(found.flagged)
    return [int(k) for k in places[np.lexsort((places, -found.margin[places]))][:most]]


def _listed(one: _Looked, evidence: Evidence) -> Table:
    found, ids, hashes = one.test.suspects, evidence.ids(one.role), evidence.content_hashes(one.role)
    rows: list[tuple[Cell, ...]] = []
    for k in _worst(one, MOST_LISTED):
        r, other = int(one.rows[k]), int(found.looks_like[k])
        own = float(one.probabilities[k, one.labels[k]])
        rows.append(
            (short_id(hashes[r], ids[r]), one.classes[int(one.labels[k])], one.classes[other], own, float(one.probabilities[k, other]))
        )
    total = int(found.flagged.sum())
    return Table(
        id=f"suspects-{one.role}",
        title=f"{counted(total, 'label')} of the {one.role} data that another class is preferred to",
        how_to_read="One row per suspect, the clearest first: its label, the class that is preferred, and the probability of both.",
        alt=f"The first {len(rows)} of {total} suspects of the {one.role} data, by short id.",
        caption=f"{len(rows)} of {total} shown; n = {one.rows.size} labels.",
        columns=(
            Column(name="sample"),
            Column(name="label"),
            Column(name="looks like"),
            Column(name="probability of the label", format="number"),
            Column(name="of the other", format="number"),
        ),
        rows=tuple(rows),
    )


def _pictures(one: _Looked, subject: Subject, evidence: Evidence) -> ImageGrid | None:
    domain = None if evidence.samples == "off" else subject.domain(one.role)
    if domain is None:
        return None
    redacted = evidence.samples == "redacted"
    modality, spec = domain.samples.modality, subject.adapted.preprocessing
    ids, hashes = evidence.ids(one.role), evidence.content_hashes(one.role)
    grid = []
    for k in _worst(one, MOST_PICTURES):
        r = int(one.rows[k])
        raw = domain.samples.read(np.array([r], dtype=np.int64))
        if not raw.readable.all():
            continue
        picture = modality.picture(modality.encode(raw, spec)[0], spec, title=one.role, redacted=redacted)
        if picture is None:
            return None
        facts = (("label", one.classes[int(one.labels[k])]), ("looks like", one.classes[int(one.test.suspects.looks_like[k])]))
        grid.append(GridRow(id=short_id(hashes[r], ids[r]), facts=facts, pictures=(picture,)))
    total = int(one.test.suspects.flagged.sum())
    return ImageGrid(
        id=f"suspects-{one.role}-pictures",
        title=f"Samples of the {one.role} data whose label looks wrong",
        how_to_read="One picture per suspect, with its label and the class that is preferred. Is the label right?",
        alt=f"{len(grid)} suspects of the {one.role} data.",
        caption=f"The clearest {len(grid)} of {total}.",
        rows=tuple(grid),
        samples="redacted" if redacted else "on",
    )


LABEL_NOISE: tuple[Check, ...] = (label_noise,)
