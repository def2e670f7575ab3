"""Family 3: how good is the adapted model on the target, and can its confidence be believed?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tl_audit.checks import mean_error
from tl_audit.checks.against import against_base_or_previous
from tl_audit.checks.base import Check, Context, check, exact, metric
from tl_audit.checks.selection import Judged, clusters_of_both, judged
from tl_audit.checks.wording import number, percent, signed
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures import calibration, classification, intervals
from tl_audit.measures.estimate import Estimate
from tl_audit.records.exhibits import Column, Dot, Heatmap, Intervals, Line, Lines, Reference, Table
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject

NEEDS = ("adapted", "target.labels", "adapted@target")
MOST_CLASSES_IN_GRID = 20


@check("TLA301", "Overall performance", section="performance", severity="critical", needs=NEEDS, values=mean_error.overall)
def overall_performance(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """How good is the adapted model on the target, and is it better than guessing?

    How it is measured: accuracy, balanced accuracy, macro F1, area under the ROC curve and average precision on the target;
    the gain over always naming the class that is most frequent in the training data, paired by sample.

    Why it matters: a model that is not better than guessing has no use, whatever else is said of it.

    How to reduce the risk: more or better labelled target data, another base, fewer frozen layers.
    """
    rules, seed = context.rules, context.seed
    rows = judged(evidence, "adapted", "target")
    majority, origin = _majority(evidence, rows)
    labels, c = rows.truth, len(rows.classes)
    positive = rows.positive(evidence)
    numbers = {
        # what always naming the most frequent class would give
        "accuracy": replace(
            classification.accuracy(labels, rows.predicted, classes=c, cluster=rows.cluster), null=float((labels == majority).mean())
        ),
        "balanced_accuracy": classification.balanced_accuracy(labels, rows.predicted, classes=c, cluster=rows.cluster, seed=seed),
        "f1_macro": classification.f1_macro(labels, rows.predicted, classes=c, cluster=rows.cluster, seed=seed),
        "auroc": classification.auroc(labels, rows.probabilities, cluster=rows.cluster, seed=seed),
        "average_precision": Estimate(None, rows.n, "needs a binary task with a positive class")
        if positive is None or c != 2
        else classification.average_precision(labels == positive, rows.probabilities[:, positive], cluster=rows.cluster, seed=seed),
        "majority_gain": classification.majority_gain(
            labels, rows.predicted, classes=c, majority=majority, cluster=rows.cluster, seed=seed
        ),
    }
    metrics = []
    for name in ("accuracy", "balanced_accuracy", "f1_macro", "auroc", "average_precision", "majority_gain"):
        metrics.append(metric(name, numbers[name], rules=rules, better="higher", family=name))
    dots = tuple(
        Dot(
            label=m.name.replace("_", " "),
            value=m.value,
            interval=m.interval,
            n=rows.n,
            null=m.null,
            note=m.reason if m.value is None else None,
        )
        for m in metrics
        if m.name != "majority_gain"
    )
    accuracy = numbers["accuracy"]
    figure = Intervals(
        id="headline",
        title=f"Accuracy {percent(accuracy.value)} on {rows.n} target samples",
        how_to_read="Dots are values, lines their intervals, the tick what guessing would give.",
        alt=f"Accuracy of the adapted model on the target: {percent(accuracy.value)}; always naming the most frequent class gives {percent(accuracy.value - (numbers['majority_gain'].value or 0.0) if accuracy.value is not None else None)}.",
        caption=f"n = {rows.n}; {rules.confidence:.0%} intervals; majority class taken from the {origin}.",
        value_label="value",
        dots=dots,
    )
    return Measurement(
        summary=f"Accuracy {percent(accuracy.value)} on {rows.n} target samples; {signed(numbers['majority_gain'].value)} against always naming '{rows.classes[majority]}'.",
        metrics=tuple(metrics),
        exhibits=(figure,),
        caveats=rows.caveats,
        params={"decision_rule": "argmax", "majority_class": rows.classes[majority], "majority_from": origin, "seed": seed},
    )


@check("TLA303", "Per class", section="performance", severity="high", needs=NEEDS)
def per_class(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Which classes does the adapted model fail?

    How it is measured: recall, precision and F1 of each class with their own denominators; the lowest recall with an interval
    that allows for having been chosen among all classes.

    Why it matters: a good average can hide a class that is never recognised.

    How to reduce the risk: more training samples of the class, class weights, a balanced sampler.
    """
    rules, seed = context.rules, context.seed
    rows = judged(evidence, "adapted", "target")
    scores = classification.class_scores(rows.truth, rows.predicted, classes=len(rows.classes), cluster=rows.cluster, seed=seed)
    metrics: list[Metric] = []
    dots: list[Dot] = []
    cells = []
    chance = 1.0 / len(rows.classes)
    for index, name in enumerate(rows.classes):
        for kind in ("recall", "precision", "f1"):
            metrics.append(
                metric(
                    kind,
                    replace(getattr(scores[index], kind), null=chance if kind == "recall" else None),
                    rules=rules,
                    better="higher",
                    slice={"class": name},
                    family=f"{kind} by class",
                )
            )
        recall = scores[index].recall
        dots.append(Dot(label=name, value=recall.value, interval=recall.interval(rules.confidence), n=recall.n, note=recall.reason))
        cells.append((name, recall.n, recall.value, scores[index].precision.value, scores[index].f1.value))
    _, worst = classification.worst_class_recall(tuple(score.recall for score in scores))
    metrics.append(metric("worst_class_recall", worst, rules=rules, better="higher"))
    dots.sort(key=lambda d: (d.value is None, d.value or 0.0))
    lowest = next((d for d in dots if d.value is not None), None)
    figure = Intervals(
        id="recall-by-class",
        title=f"Recall by class, lowest first ({lowest.label}: {percent(lowest.value)})" if lowest else "Recall by class",
        how_to_read="Share of each class that is recognised, with its interval. The line is what guessing gives.",
        alt=f"Lowest recall: {lowest.label}, {percent(lowest.value)}." if lowest else "No class has samples.",
        caption=f"n = {rows.n}; {rules.confidence:.0%} intervals.",
        value_label="recall",
        dots=tuple(dots),
        references=(Reference(value=chance, label=f"guessing, 1/{len(rows.classes)}", role="null"),),
        share=True,
    )
    listing = Table(
        id="classes",
        title="Recall, precision and F1 by class",
        how_to_read="n counts the true samples of the class.",
        alt="Table of all classes.",
        caption=f"n = {rows.n}.",
        columns=(
            Column(name="class"),
            Column(name="n", format="count"),
            *(Column(name=k, format="number") for k in ("recall", "precision", "F1")),
        ),
        rows=tuple(cells),
    )
    summary = f"Lowest recall: {lowest.label} with {percent(lowest.value)} of {lowest.n}." if lowest else "No class has samples."
    return Measurement(summary=summary, metrics=tuple(metrics), exhibits=(figure, listing), caveats=rows.caveats, params={"seed": seed})


@check("TLA304", "Confusion", section="performance", severity="info", needs=NEEDS, multiplicity="none")
def confusion(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """What is taken for what?

    How it is measured: the table of true against predicted class; the five largest confusions as a share of their true class.

    Why it matters: it names the mistake, which is where a remedy starts.

    How to reduce the risk: look at samples of the named pair; check their labels first.
    """
    rules = context.rules
    rows = judged(evidence, "adapted", "target")
    counts = classification.confusion_matrix(rows.truth, rows.predicted, classes=len(rows.classes))
    metrics: list[Metric] = []
    off = counts.astype(np.int64).copy()
    np.fill_diagonal(off, 0)
    cells: list[tuple[str, str, int, int, float | None]] = []
    for flat in np.argsort(-off, axis=None, kind="stable")[: 5 if len(rows.classes) <= MOST_CLASSES_IN_GRID else 20]:
        i, j = divmod(int(flat), len(rows.classes))
        if off[i, j] == 0:
            break
        hit = (rows.truth == i) & True
        share = intervals.rate(rows.predicted[hit] == j, cluster=None if rows.cluster is None else rows.cluster[hit])
        if len(cells) < 5:
            metrics.append(
                metric("top_confusion_share", share, rules=rules, slice={"class": rows.classes[i], "predicted": rows.classes[j]})
            )
        cells.append((rows.classes[i], rows.classes[j], int(off[i, j]), share.n, share.value))
    if not metrics:
        metrics.append(exact("top_confusion_share", 0.0, n={"target": rows.n}))
    top = f"{cells[0][0]} taken for {cells[0][1]}, {cells[0][2]} of {cells[0][3]}" if cells else "no confusion at all"
    exhibits: list[Heatmap | Table] = []
    if len(rows.classes) <= MOST_CLASSES_IN_GRID:
        totals = counts.sum(axis=1, keepdims=True)
        share_rows = tuple(
            tuple(None if totals[i, 0] == 0 else float(counts[i, j] / totals[i, 0]) for j in range(counts.shape[1]))
            for i in range(counts.shape[0])
        )
        exhibits.append(
            Heatmap(
                id="confusion",
                title=f"Largest confusion: {top}",
                how_to_read="Rows are true classes, columns predicted ones; numbers are counts, the shade is the share of the row.",
                alt=f"Confusion grid. Largest confusion: {top}.",
                caption=f"n = {rows.n} target samples, adapted model.",
                row_label="true class",
                column_label="predicted class",
                rows=rows.classes,
                columns=rows.classes,
                values=share_rows,
                text=tuple(tuple(str(int(v)) for v in line) for line in counts),
                value_label="share of the true class",
                value_range=(0.0, 1.0),
            )
        )
    exhibits.append(
        Table(
            id="largest-confusions",
            title="Largest confusions",
            how_to_read="Share: of the samples of the true class.",
            alt=f"Largest confusion: {top}.",
            caption=f"n = {rows.n} target samples.",
            columns=(
                Column(name="true"),
                Column(name="predicted"),
                Column(name="count", format="count"),
                Column(name="of", format="count"),
                Column(name="share", format="share"),
            ),
            rows=tuple(cells),
        )
    )
    return Measurement(summary=f"Largest confusion: {top}.", metrics=tuple(metrics), exhibits=tuple(exhibits), caveats=rows.caveats)


@check("TLA305", "Calibration", section="performance", severity="high", needs=NEEDS)
def calibration_check(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Does a confidence of 0.8 mean right 8 times in 10?

    How it is measured: debiased expected calibration error over 15 bins of equal mass fixed once, with a centred bootstrap;
    the plain error beside what a perfectly calibrated model would show at this n; mean confidence minus accuracy; the temperature that validation data ask for.

    Why it matters: people and thresholds act on the confidence; where it overstates, errors pass unseen.

    How to reduce the risk: temperature scaling on held-out data, label smoothing, early stopping.
    """
    rules, seed = context.rules, context.seed
    rows = judged(evidence, "adapted", "target")
    confidence, correct = calibration.top_label(rows.probabilities, rows.truth)
    ece2 = calibration.ece2_debiased(confidence, correct, cluster=rows.cluster, seed=seed)
    plain = calibration.ece_l1(confidence, correct, seed=seed)
    over = calibration.overconfidence(confidence, correct, cluster=rows.cluster, seed=seed)
    ece = calibration.ece_debiased(ece2)
    positive_only = "positive by construction: read it against its null"
    metrics = [
        metric("ece2_debiased", ece2, rules=rules, better="lower", min_n=1000),
        metric("ece_debiased", ece, rules=rules, better="lower", min_n=1000),
        metric("ece_l1", plain, rules=rules, better="lower", reason=positive_only),
        metric("overconfidence", over, rules=rules),
        metric(
            "classwise_ece_l1",
            calibration.classwise_ece_l1(rows.probabilities, rows.truth, seed=seed),
            rules=rules,
            better="lower",
            reason=positive_only,
        ),
    ]
    caveats = list(rows.caveats)
    try:
        held = judged(evidence, "adapted", "validation")
        logits = np.log(np.maximum(held.probabilities, calibration.FLOOR))
        metrics.append(metric("temperature", calibration.temperature(logits, held.truth), rules=rules, role="validation"))
    except NotEvaluated:
        metrics.append(Metric(name="temperature", value=None, reason="no validation data: a temperature is fitted on validation data only"))
    training = dict(subject.record.task) if subject.record is not None else {}
    if training.get("class_weights") or training.get("sampler"):
        caveats.append("Training re-weighted the classes: predicted probabilities follow the training prior, not the target's.")
    bins = calibration.reliability_bins(confidence, correct, seed=seed)
    band = (plain.details["null_low"], plain.details["null_high"])
    centres = tuple(b.confidence for b in bins)
    spread = [intervals.wilson(round(b.accuracy * b.n), b.n).interval(rules.confidence) or (b.accuracy, b.accuracy) for b in bins]
    figure = Lines(
        id="reliability",
        title="Confidence against accuracy",
        how_to_read="On the diagonal a confidence is right as often as it says; below it the model says more than it keeps. Bars count samples.",
        alt=f"Mean confidence minus accuracy: {signed(over.value)}.",
        caption=f"n = {rows.n}; {len(bins)} bins of equal mass; {rules.confidence:.0%} intervals; the band of the plain error of a calibrated model at this n is {band[0]:.3f} to {band[1]:.3f}.",
        x_label="mean confidence of the bin",
        y_label="share right",
        lines=(
            Line(name="diagonal", x=(0.0, 1.0), y=(0.0, 1.0), role="reference"),
            Line(
                name="calibrated, 95 %",
                x=centres,
                y=centres,
                low=tuple(b.null_low for b in bins),
                high=tuple(b.null_high for b in bins),
                role="null",
            ),
            Line(
                name="adapted model",
                x=centres,
                y=tuple(b.accuracy for b in bins),
                low=tuple(bounds[0] for bounds in spread),
                high=tuple(bounds[1] for bounds in spread),
                mark="dot",
            ),
        ),
        counts=tuple((b.confidence, b.n) for b in bins),
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
    )
    value = ece.value
    return Measurement(
        summary=f"Debiased calibration error {number(value)}; mean confidence minus accuracy {signed(over.value)}.",
        metrics=tuple(metrics),
        exhibits=(figure,),
        caveats=tuple(caveats),
        params={"bins": len(bins), "ece_l1_null_low": band[0], "ece_l1_null_high": band[1], "seed": seed},
    )


@check("TLA306", "Proper scores", section="performance", severity="medium", needs=NEEDS)
def proper_scores(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """How good are the probabilities as a whole?

    How it is measured: Brier score (sum over classes, 0 to 2) and negative log-likelihood (nats) per sample; their skill against
    always predicting the class shares of the training data.

    Why it matters: these scores reward honest probabilities and cannot be gamed by a threshold.

    How to reduce the risk: calibrate on held-out data; stop training earlier.
    """
    rules, seed = context.rules, context.seed
    rows = judged(evidence, "adapted", "target")
    prior, origin = _prior(evidence, rows)
    p, y, units = rows.probabilities, rows.truth, rows.cluster
    scores = {
        "brier": calibration.brier(p, y, cluster=units),
        "nll": calibration.nll(p, y, cluster=units),
        "brier_skill": calibration.brier_skill(p, y, prior=prior, cluster=units, seed=seed),
        "nll_skill": calibration.nll_skill(p, y, prior=prior, cluster=units, seed=seed),
    }
    metrics = []
    for name, better in (("brier", "lower"), ("nll", "lower"), ("brier_skill", "higher"), ("nll_skill", "higher")):
        unit = "nats" if name == "nll" else None
        metrics.append(metric(name, scores[name], rules=rules, better=better, unit=unit, min_n=300))  # type: ignore[arg-type]
    parts = calibration.murphy_parts(p, y)
    table = Table(
        id="murphy",
        title="Parts of the Brier score (Murphy 1973)",
        how_to_read="Reliability should be small, resolution large; uncertainty belongs to the data.",
        alt="Reliability, resolution and uncertainty of the Brier score.",
        caption=f"n = {rows.n}; equal-mass bins of each class's probability.",
        columns=(Column(name="part"), Column(name="value", format="number")),
        rows=() if parts is None else tuple((k.replace("_", " "), float(v)) for k, v in parts._asdict().items()),
    )
    skill = scores["nll_skill"].value
    return Measurement(
        summary=f"Log-likelihood skill {signed(skill)} against the class shares of the {origin}; Brier score {number(scores['brier'].value)}.",
        metrics=tuple(metrics),
        exhibits=(table,),
        caveats=rows.caveats,
        params={
            "prior_from": origin,
            "floored_rows": int(scores["nll"].details["floored"]),
            "floor": 1e-12,
            "brier": "sum over classes, 0 to 2",
            "seed": seed,
        },
    )


def _gap_title(gap: float | None) -> str:
    """The train-test gap in words; a share minus a share is told in points, not in per cent."""
    if gap is None:
        return "Accuracy on training data and on the target"
    if abs(gap) < 0.0005:
        return "Accuracy on the target is that on the training data"
    return f"Accuracy on the target is {abs(gap) * 100:.1f} points {'below' if gap > 0 else 'above'} that on the training data"


@check(
    "TLA308",
    "Train–test gap",
    section="performance",
    severity="medium",
    needs=(*NEEDS, "train.labels", "adapted@train"),
    values=mean_error.train_gap,
)
def train_test_gap(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """How much of its training performance does the model lose on new data?

    How it is measured: accuracy on the training data (without augmentation) minus accuracy on the target, two independent samples.

    Why it matters: a large gap means memorised samples or shortcuts that do not hold outside the training data.

    How to reduce the risk: more data, augmentation, fewer trainable layers, a look at what the model relies on (TLA608, section explanations).
    """
    rules, seed = context.rules, context.seed
    train, target = judged(evidence, "adapted", "train"), judged(evidence, "adapted", "target")
    of_train, of_target = clusters_of_both(train.cluster, target.cluster, (train.n, target.n))
    gap = intervals.rate_difference(train.correct, target.correct, cluster_first=of_train, cluster_second=of_target, seed=seed)
    n = {"train": train.n, "target": target.n}
    loss = intervals.mean_difference(
        calibration.nll_rows(target.probabilities, target.truth), calibration.nll_rows(train.probabilities, train.truth),
        cluster_first=of_target, cluster_second=of_train,
    )  # fmt: skip
    metrics = (
        metric("generalisation_gap", gap, rules=rules, better="lower", n=n),
        metric("nll_gap", loss, rules=rules, better="lower", n=n, unit="nats"),
    )
    dots = []
    for name, rows in (("train", train), ("target", target)):
        rate = intervals.rate(rows.correct, cluster=rows.cluster)
        dots.append(Dot(label=name, value=rate.value, interval=rate.interval(rules.confidence), n=rate.n))
    figure = Intervals(
        id="train-and-target",
        title=_gap_title(gap.value),
        how_to_read="Accuracy of the adapted model on the data it was trained on and on the target.",
        alt=f"Train minus target accuracy: {signed(gap.value)}.",
        caption=f"n = {train.n} train, {target.n} target; {rules.confidence:.0%} intervals.",
        value_label="accuracy",
        dots=tuple(dots),
        share=True,
    )
    caveats = (
        *target.caveats,
        "If target and training data differ in distribution (TLA501 compares source and target), the gap includes that shift.",
    )
    return Measurement(
        summary=f"Accuracy on training data minus accuracy on the target: {signed(gap.value)}.",
        metrics=metrics,
        exhibits=(figure,),
        caveats=caveats,
        params={"seed": seed},
    )


def _majority(evidence: Evidence, rows: Judged) -> tuple[int, str]:
    """Index of the most frequent class, from the training data where their labels are known, else from the target."""
    prior, origin = _prior(evidence, rows)
    return int(np.argmax(prior)), origin


def _prior(evidence: Evidence, rows: Judged) -> tuple[np.ndarray, str]:  # type: ignore[type-arg]
    """Class shares in the model's output order, from the training data where known, else from the target."""
    for role in ("train", "target"):
        try:
            truth = evidence.truth("adapted", role)
        except NotEvaluated:
            continue
        counts = np.bincount(truth[truth >= 0], minlength=len(rows.classes)).astype(np.float64)
        if counts.sum() > 0:
            return counts / counts.sum(), "training data" if role == "train" else "target"
    raise NotEvaluated("labels of the training data or the target")


PERFORMANCE: tuple[Check, ...] = (
    overall_performance,
    against_base_or_previous,
    per_class,
    confusion,
    calibration_check,
    proper_scores,
    train_test_gap,
)
