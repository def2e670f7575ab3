"""Family 4, what was lost on the way: source classes that can no longer be told (TLA402), single decisions that flipped (TLA407)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_audit.checks.base import Check, Context, check, exact, metric
from tl_audit.checks.data import short_id
from tl_audit.checks.wording import number, percent, signed
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures import intervals, probe
from tl_audit.measures.estimate import Estimate, limit_p
from tl_audit.measures.multiplicity import holm
from tl_audit.records.exhibits import Change, Column, Dot, Intervals, Table
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject

FORGOTTEN = 0.15
"""Loss of accuracy above which a class is counted in ``classes_forgotten``; the limits are the policy's."""
MOST_CLASSES_SHOWN = 20
MOST_LOST_SHOWN = 10


# ---------------------------------------------------------------- TLA402


@dataclass(frozen=True)
class _Before:
    """Which held-out source rows each model gets right.

    Attributes
    ----------
    base, adapted : (N,) bool
    labels : (N,) class numbers
    classes : C names
    cluster : (N,) ids, None where rows are the units
    how : "outputs" or "probe"
    caveats : what a reader must know of the way
    """

    base: NDArray[np.bool_]
    adapted: NDArray[np.bool_]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    cluster: NDArray[Any] | None
    how: str
    caveats: tuple[str, ...]


@check(
    "TLA402",
    "Forgetting",
    section="transfer",
    severity="high",
    needs=("adapted", "base", "source.labels", "base@source", "adapted@source"),
)
def forgetting(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """What did the model lose on the source?

    How it is measured: accuracy on the source after adaptation minus before, paired by sample. Where the adapted model kept the base's head,
    both answer for themselves; where it has a new one, a linear probe of each model's penultimate features answers, trained on one half
    of the source (split by cluster, penalty by cross-validation) and asked about the other. The same for each class.

    Why it matters: a model that still meets source inputs, or is adapted again later, needs what the base knew of them.

    How to reduce the risk: fewer trainable layers, smaller rates, L2-SP or source samples in the training data.
    """
    rules, seed = context.rules, context.seed
    found = _before_and_after(subject, evidence, seed)
    overall = intervals.paired_rate_difference(found.adapted, found.base, cluster=found.cluster, seed=seed)
    n = {"source": overall.n}
    metrics = [metric("backward_transfer", overall, rules=rules, role="source", better="higher")]
    by_class: dict[str, Estimate] = {}
    dots: dict[str, tuple[Dot, Dot]] = {}
    for k, name in enumerate(found.classes):
        hit = found.labels == k
        units = None if found.cluster is None else found.cluster[hit]
        change = intervals.paired_rate_difference(found.adapted[hit], found.base[hit], cluster=units, seed=seed)
        by_class[name] = change
        metrics.append(metric("backward_transfer_class", change, rules=rules, role="source", better="higher", slice={"class": name}))
        pair = [(series, intervals.rate(right[hit], cluster=units)) for series, right in (("base", found.base), ("adapted", found.adapted))]
        dots[name] = (_dot(name, *pair[0], rules.confidence), _dot(name, *pair[1], rules.confidence))
    large = [name for name, change in by_class.items() if change.value is not None and change.n >= rules.min_n]
    shown_p = holm([limit_p(by_class[name].ladder, minimum=-FORGOTTEN) for name in large])
    forgotten = [name for name, p in zip(large, shown_p, strict=True) if p is not None and p < rules.alpha]
    metrics.append(
        exact("classes_forgotten", len(forgotten), n=n, better="lower", null=0.0)
        if large
        else Metric(
            name="classes_forgotten", value=None, reason=f"no class has {rules.min_n} source samples to judge it by", better="lower"
        )
    )
    order = sorted((name for name in by_class if by_class[name].value is not None), key=lambda name: (by_class[name].value or 0.0, name))[
        :MOST_CLASSES_SHOWN
    ]
    words = "by their own outputs" if found.how == "outputs" else "by a linear probe of the features"
    summary = (
        f"Source accuracy {words}: {percent(intervals.rate(found.base).value)} before, {percent(intervals.rate(found.adapted).value)} after"
        f" adaptation ({signed(overall.value)})"
    )
    summary += f"; forgotten: {', '.join(forgotten)}." if forgotten else "."
    everything = [
        (series, intervals.rate(right, cluster=found.cluster)) for series, right in (("base", found.base), ("adapted", found.adapted))
    ]
    figure = Intervals(
        id="source-by-class",
        title=summary,
        how_to_read="Hollow: base. Filled: adapted model, on the same source samples. The paired change at the right decides.",
        alt=summary,
        caption=f"n = {overall.n} source samples; {rules.confidence:.0%} intervals; the classes that lost most come first.",
        value_label="accuracy on the source",
        dots=(*(_dot("all classes", *one, rules.confidence) for one in everything), *(dot for name in order for dot in dots[name])),
        changes=(
            Change(label="all classes", value=overall.value, interval=overall.interval(rules.confidence)),
            *(Change(label=name, value=by_class[name].value, interval=by_class[name].interval(rules.confidence)) for name in order),
        ),
        share=True,
    )
    caveats = list(found.caveats)
    if small := sorted(set(found.classes) - set(large)):
        caveats.append(
            f"{len(small)} of {len(found.classes)} classes have fewer than {rules.min_n} source samples here: their change is shown without a verdict."
        )
    if found.cluster is None:
        caveats.append("Rows are treated as independent: no cluster ids were given for the source.")
    return Measurement(
        summary=summary, metrics=tuple(metrics), exhibits=(figure,), caveats=tuple(caveats),
        params={"by": found.how, "forgotten_beyond": -FORGOTTEN, "seed": seed},
    )  # fmt: skip


def _before_and_after(subject: Subject, evidence: Evidence, seed: int) -> _Before:
    """By the models' own outputs where the head was kept, else by probes of their features."""
    cluster = evidence.cluster("source")
    usable = evidence.usable("base", "source") & evidence.usable("adapted", "source")
    kept, why = _kept_head(subject, evidence)
    if kept:
        rows = np.flatnonzero(usable & (evidence.truth("base", "source") >= 0) & (evidence.truth("adapted", "source") >= 0))
        if rows.size == 0:
            raise NotEvaluated("labelled rows of the source with finite outputs of base and adapted model")
        return _Before(
            evidence.correct("base", "source")[rows],
            evidence.correct("adapted", "source")[rows],
            np.asarray(evidence.labels("source")[rows], dtype=np.int64),
            evidence.classes("source"),
            None if cluster is None else np.asarray(cluster)[rows],
            "outputs",
            (),
        )
    labels, classes = evidence.labels("source"), evidence.classes("source")
    rows = np.flatnonzero(usable & (labels >= 0))
    if rows.size == 0:
        raise NotEvaluated("labelled rows of the source with finite outputs of base and adapted model")
    y = np.asarray(labels[rows], dtype=np.int64)
    units = None if cluster is None else np.asarray(cluster)[rows]
    training = probe.probe_split(y, classes=len(classes), cluster=units, seed=seed)
    probes = [
        probe.linear_probe(
            np.asarray(evidence.features(key, "source")[rows], dtype=np.float64),
            y,
            training,
            classes=len(classes),
            cluster=units,
            seed=seed,
        )
        for key in ("base", "adapted")
    ]
    for key, one in zip(("base", "adapted"), probes, strict=True):
        if one.reason is not None:
            raise NotEvaluated(f"a linear probe of the {key} model's features on the source: {one.reason}")
    held = probes[0].rows
    notes = [
        f"{why}: a linear probe tells what is still recoverable from the features, not what the model answers.",
        f"Each probe was trained once, on {probes[0].training_rows} source samples: the noise of training it anew is not in the interval.",
    ]
    if (own := _own_answers(evidence)) is not None:
        notes.insert(1, f"By its own answers the adapted model is right on {percent(own)} of the source.")
    return _Before(
        probes[0].predicted == y[held],
        probes[1].predicted == y[held],
        y[held],
        classes,
        None if units is None else units[held],
        "probe",
        tuple(notes),
    )


def _own_answers(evidence: Evidence) -> float | None:
    """Accuracy of the adapted model's own answers on the source; None where it does not answer in the source's classes."""
    try:
        evidence.common_classes("adapted", "source")
        rows = np.flatnonzero(evidence.usable("adapted", "source") & (evidence.truth("adapted", "source") >= 0))
    except NotEvaluated:
        return None
    return float(evidence.correct("adapted", "source")[rows].mean()) if rows.size else None


def _kept_head(subject: Subject, evidence: Evidence) -> tuple[bool, str]:
    """Whether both models answer the source's classes with the head of the base, and why not."""
    record = subject.record
    if record is not None and record.head is not None:
        changed = [c.name for c in record.architecture_changes if c.name == record.head or c.name.startswith(record.head + ".")]
        if changed:
            return False, "The adapted model has a new head"
    try:
        own = evidence.common_classes("base", "source"), evidence.common_classes("adapted", "source")
    except NotEvaluated:
        return False, "The models do not both answer in the classes of the source"
    if set(own[0]) != set(own[1]):
        return False, "The models answer in different classes"
    return True, ""


def _dot(label: str, series: str, rate: Estimate, confidence: float) -> Dot:
    return Dot(
        label=label,
        value=rate.value,
        interval=rate.interval(confidence),
        series=series,
        n=rate.n,
        hollow=series == "base",
        note=rate.reason,
    )


# ---------------------------------------------------------------- TLA407


@check(
    "TLA407",
    "Churn",
    section="transfer",
    severity="medium",
    needs=("adapted", "adapted@target", "previous|base|control:head|control:scratch"),
)
def churn(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Which single decisions changed, and how many right ones were lost?

    How it is measured: on the same target samples, the share whose predicted class differs between the adapted model and the previous one
    (also the base and the controls, where they answer in the same classes); of all samples, the share that was right and is now wrong
    (negative flips) and the reverse (positive flips). The two differ by the change of accuracy.

    Why it matters: two models of equal accuracy can disagree on many cases; whoever relied on an answer that flipped meets a new error.

    How to reduce the risk: distil the previous model into the new one, weigh up the samples it had right, or average several runs.
    """
    rules = context.rules
    metrics: list[Metric] = []
    exhibits: list[Table] = []
    caveats: list[str] = []
    said: list[str] = []
    table: list[tuple[str | int | float | None, ...]] = []
    for key in ("previous", "base", "control:head", "control:scratch"):
        if subject.model(key) is None or not evidence.has(key, "target"):
            continue
        word = key.removeprefix("control:")
        if word in subject.same_as_adapted:
            caveats.append(f"The control {word} is the adapted model itself by the plan: no comparison.")
            continue
        try:
            before = _in_order_of_adapted(subject, evidence, key)
        except NotEvaluated as missing:
            caveats.append(f"Not compared with the {word} model: {missing}.")
            continue
        after = evidence.predictions("adapted", "target")
        usable = evidence.usable("adapted", "target") & evidence.usable(key, "target")
        cluster = evidence.cluster("target")
        where = {"against": word}
        every = np.flatnonzero(usable)
        if every.size == 0:
            caveats.append(f"Not compared with the {word} model: no target sample has finite outputs of both models.")
            continue
        changed = intervals.rate(before[every] != after[every], cluster=_units(cluster, every))
        metrics.append(metric("churn", replace(changed, null=0.0), rules=rules, slice=where))
        said.append(f"{percent(changed.value)} of the answers differ from the {word} model's")
        try:
            truth = evidence.truth("adapted", "target")
        except NotEvaluated as missing:
            for name in ("negative_flip_rate", "positive_flip_rate"):
                metrics.append(Metric(name=name, value=None, reason=f"not told without labels: {missing}", slice=where))
            continue
        rows = np.flatnonzero(usable & (truth >= 0))
        was, now = before[rows] == truth[rows], after[rows] == truth[rows]
        units = _units(cluster, rows)
        lost, won = intervals.rate(was & ~now, cluster=units), intervals.rate(now & ~was, cluster=units)
        metrics.append(metric("negative_flip_rate", replace(lost, null=0.0), rules=rules, better="lower", slice=where))
        metrics.append(metric("positive_flip_rate", replace(won, null=0.0), rules=rules, better="higher", slice=where))
        said[-1] += f" (lost {percent(lost.value)}, won {percent(won.value)})"
        counts = [int(part.sum()) for part in (was & now, was & ~now, now & ~was, ~was & ~now)]
        table.append((word, int(rows.size), *counts))
        if not any(one.id == "most-confidently-lost" for one in exhibits) and (
            listed := _lost(evidence, key, word, rows[was & ~now], before)
        ):
            exhibits.append(listed)
    if not said:
        raise NotEvaluated(
            " ".join(caveats) or "outputs on the target of a previous model, the base or a control that answers in the same classes"
        )
    metrics.append(
        Metric(
            name="churn_expected",
            value=None,
            reason="takes two models that were trained alike with different seeds: the subject holds none",
        )
    )
    if table:
        exhibits.insert(
            0,
            Table(
                id="flips",
                title="Right and wrong answers before and after",
                how_to_read="Lost: right before, wrong now. Won: the reverse. Lost minus won is the loss of accuracy.",
                alt="; ".join(said) + ".",
                caption="Counts of target samples, paired by sample.",
                columns=(
                    Column(name="before: the model"),
                    Column(name="n", format="count"),
                    *(Column(name=name, format="count") for name in ("right in both", "lost", "won", "wrong in both")),
                ),
                rows=tuple(table),
            ),
        )
    caveats.append(
        "Two runs of one training with different seeds disagree as well: how much of the churn that explains is not measured here."
    )
    if evidence.cluster("target") is None:
        caveats.append("Rows are treated as independent: no cluster ids were given.")
    text = "; ".join(said) + "."
    return Measurement(
        summary=text, metrics=tuple(metrics), exhibits=tuple(exhibits), caveats=tuple(caveats), params={"decision_rule": "argmax"}
    )


def _units(cluster: NDArray[np.object_] | None, rows: NDArray[np.int64]) -> NDArray[Any] | None:
    return None if cluster is None else np.asarray(cluster)[rows]


def _classes_of(subject: Subject, evidence: Evidence, key: str) -> tuple[str, ...]:
    """Class names of a model in output order; those of the target where only the evidence knows them."""
    model = subject.model(key)
    return model.classes if model is not None and model.classes is not None else evidence.common_classes(key, "target")


def _in_order_of_adapted(subject: Subject, evidence: Evidence, key: str) -> NDArray[np.int64]:
    """(N,) predictions of another model on the target as classes of the adapted one, aligned by name; -1 where not usable."""
    ours, theirs = _classes_of(subject, evidence, "adapted"), _classes_of(subject, evidence, key)
    if set(ours) != set(theirs):
        raise NotEvaluated("it answers in other classes than the adapted model")
    place = {name: i for i, name in enumerate(ours)}
    predicted = evidence.predictions(key, "target")
    order = np.array([place[name] for name in theirs], dtype=np.int64)
    return np.where(predicted >= 0, order[np.maximum(predicted, 0)], -1)


def _lost(evidence: Evidence, key: str, word: str, rows: NDArray[np.int64], before: NDArray[np.int64]) -> Table | None:
    """The samples whose right answer was lost with the greatest confidence, if samples may be named."""
    if evidence.samples == "off" or rows.size == 0:
        return None
    classes = evidence.common_classes("adapted", "target")
    after = evidence.predictions("adapted", "target")
    confidence = evidence.probabilities("adapted", "target").max(axis=1)
    ids, hashes = evidence.ids("target"), evidence.content_hashes("target")
    picked = sorted((int(row) for row in rows), key=lambda row: (-float(confidence[row]), ids[row]))[:MOST_LOST_SHOWN]
    cells = tuple(
        (short_id(hashes[row], ids[row]), classes[int(before[row])], classes[int(after[row])], float(confidence[row])) for row in picked
    )
    return Table(
        id="most-confidently-lost",
        title=f"Right answers of the {word} model that the adapted model loses most confidently",
        how_to_read="Each line is a sample, named by a hash. The answer before was right, the answer now is wrong.",
        alt=f"{len(cells)} samples that were lost.",
        caption=f"{len(cells)} of {rows.size} lost samples, by confidence of the wrong answer ({number(cells[0][3])} at most).",
        columns=(
            Column(name="sample"),
            Column(name="right, before"),
            Column(name="wrong, now"),
            Column(name="confidence", format="number"),
        ),
        rows=cells,
    )


FORGETTING: tuple[Check, ...] = (forgetting, churn)
