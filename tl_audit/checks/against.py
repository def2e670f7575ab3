"""TLA302: the adapted model beside those it may replace, on the same target samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl_audit.checks import mean_error
from tl_audit.checks.base import Context, check, metric
from tl_audit.checks.data import INDEPENDENT
from tl_audit.checks.wording import signed
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures import classification, intervals
from tl_audit.measures.change import metric_changes
from tl_audit.measures.estimate import Estimate
from tl_audit.records.exhibits import Change, Dot, Intervals
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject

REPLACED = ("previous", "base")
WORDS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1_macro": "F1",
    "auroc": "ROC area",
    "average_precision": "average precision",
}


@dataclass(frozen=True)
class Both:
    """Rows on which both models answer, classes in the adapted model's order.

    Attributes
    ----------
    rows : (N,) row numbers in the target
    truth : (N,) class index
    ours, theirs : (N, C) probabilities of the adapted model and of the other
    cluster : (N,) ids, None where rows are the units
    """

    rows: NDArray[np.int64]
    truth: NDArray[np.int64]
    ours: NDArray[np.float64]
    theirs: NDArray[np.float64]
    cluster: NDArray[np.object_] | None
    positive: int | None


@check(
    "TLA302",
    "Against base or previous",
    section="performance",
    severity="critical",
    needs=("adapted", "target.labels", "adapted@target", "base|previous"),
    values=mean_error.against,
)
def against_base_or_previous(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Is the adapted model no worse than the model it replaces?

    How it is measured: metrics of TLA301 of the adapted model minus those of the base (where it answers in the target's classes)
    and of the previous model, on the same target samples, paired by sample. Accuracy decides; the others stand beside it.

    Why it matters: whoever relied on the old model's right answers loses them in a worse one.

    How to reduce the risk: keep the old model, distil it into the new one, or adapt less.
    """
    rules, seed = context.rules, context.seed
    metrics: list[Metric] = []
    dots: list[Dot] = []
    changes: list[Change] = []
    caveats: list[str] = []
    parts: list[str] = []
    for key in REPLACED:
        if subject.model(key) is None:
            continue
        try:
            both = _both(evidence, key)
        except NotEvaluated as missing:
            caveats.append(f"Not compared with the {key} model: {missing}.")
            continue
        ours, theirs = (evidence.correct(model, "target")[both.rows] for model in ("adapted", key))
        found = {"accuracy": intervals.paired_rate_difference(ours, theirs, cluster=both.cluster, seed=seed)}
        found |= metric_changes(both.truth, both.ours, both.theirs, positive=both.positive, cluster=both.cluster)
        for name, change in found.items():
            metrics.append(metric(f"{name}_change", change, rules=rules, better="higher", slice={"against": key}, family=f"{name}_change"))
            if change.value is None:
                continue
            label = f"{WORDS[name]}, against {key}"
            for series, p in ((key, both.theirs), ("adapted", both.ours)):
                own = _of_one(name, both, p, seed)
                dots.append(
                    Dot(label=label, value=own.value, interval=own.interval(rules.confidence), series=series, n=own.n, hollow=series == key)
                )
            changes.append(Change(label=label, value=change.value, interval=change.interval(rules.confidence)))
        parts.append(f"accuracy {signed(found['accuracy'].value)} against the {key} model")
    if not metrics:
        raise NotEvaluated(
            (" ".join(caveats) or "No base or previous model.") + " TLA401 compares with the controls instead, where there are any"
        )
    if evidence.cluster("target") is None:
        caveats.append(INDEPENDENT)
    figure = Intervals(
        id="before-after",
        title="Before and after, on the same target samples",
        how_to_read="Hollow: before. Filled: the adapted model. The paired change at the right decides.",
        alt="; ".join(parts) + ".",
        caption=f"Paired by sample; {rules.confidence:.0%} intervals.",
        value_label="value",
        dots=tuple(dots),
        changes=tuple(changes),
    )
    return Measurement(
        summary="; ".join(parts).capitalize() + ".",
        metrics=tuple(metrics),
        exhibits=(figure,),
        caveats=tuple(caveats),
        params={"decision_rule": "argmax", "seed": seed},
    )


def _both(evidence: Evidence, key: str) -> Both:
    """The rows of both models, NotEvaluated where there are none or a class has no counterpart."""
    own, other = evidence.common_classes("adapted", "target"), evidence.common_classes(key, "target")
    mask = evidence.usable("adapted", "target") & evidence.usable(key, "target")
    mask &= (evidence.truth(key, "target") >= 0) & (evidence.truth("adapted", "target") >= 0)
    rows = np.flatnonzero(mask)
    if rows.size == 0:
        raise NotEvaluated("no labelled target row has finite outputs of both")
    theirs = np.asarray(evidence.probabilities(key, "target")[rows], dtype=np.float64)
    ours = np.asarray(evidence.probabilities("adapted", "target")[rows], dtype=np.float64)
    # classes that only one of the two knows stay: whoever answers with them is wrong
    names = (*own, *(name for name in other if name not in own))
    cluster = evidence.cluster("target")
    positive = evidence.positive("target")
    return Both(
        rows=rows,
        truth=np.asarray(evidence.truth("adapted", "target")[rows], dtype=np.int64),
        ours=_in_order(ours, own, names),
        theirs=_in_order(theirs, other, names),
        cluster=None if cluster is None else np.asarray(cluster)[rows],
        positive=names.index(positive) if positive in names and len(names) == 2 else None,
    )


def _in_order(probabilities: NDArray[np.float64], own: tuple[str, ...], names: tuple[str, ...]) -> NDArray[np.float64]:
    """Columns by these names; 0 for a class that the model does not have."""
    out = np.zeros((len(probabilities), len(names)))
    out[:, [names.index(name) for name in own]] = probabilities
    return out


def _of_one(name: str, both: Both, p: NDArray[np.float64], seed: int) -> Estimate:
    y, units = both.truth, both.cluster
    classes = p.shape[1]
    if name == "accuracy":
        return classification.accuracy(y, p.argmax(axis=1), classes=classes, cluster=units)
    if name == "balanced_accuracy":
        return classification.balanced_accuracy(y, p.argmax(axis=1), classes=classes, cluster=units, seed=seed)
    if name == "f1_macro":
        return classification.f1_macro(y, p.argmax(axis=1), classes=classes, cluster=units, seed=seed)
    if name == "auroc":
        return classification.auroc(y, p, cluster=units, seed=seed)
    return classification.average_precision(y == both.positive, p[:, both.positive], cluster=units, seed=seed)
