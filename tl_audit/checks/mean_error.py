"""Checks of families 3 to 6 where labels are numbers (regression): errors in the target's own unit, limits in units of its spread in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_audit.checks.base import Context, exact, metric
from tl_audit.checks.selection import clusters_of_both, rows_alone, units_in
from tl_audit.checks.wording import amount_of, number, p_value
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence, missing_model
from tl_audit.measures import fairness, intervals, regression, shift
from tl_audit.measures.arrays import is_missing
from tl_audit.measures.estimate import Estimate
from tl_audit.measures.sampling import bottom_k
from tl_audit.policy import Rules
from tl_audit.records.exhibits import Cell, Change, Column, Dot, Intervals, Line, Lines, Reference, Table, slug
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject

LEAST_PER_DOMAIN = 50
MOST_PER_DOMAIN = 2000
LEAST_PER_BIN = 10
MOST_BINS = 10
CURVE_POINTS = 101

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """Rows of a domain that have a value and a finite prediction.

    Attributes
    ----------
    rows : (N,) row numbers in the domain
    truth, predicted : (N,) numbers in the target's own unit
    cluster : (N,) ids, None where rows are the units
    left_out : rows left out, for the caveat
    """

    rows: NDArray[np.int64]
    truth: FloatArray
    predicted: FloatArray
    cluster: NDArray[Any] | None
    left_out: int

    @property
    def n(self) -> int:
        return int(self.rows.size)

    @property
    def error(self) -> FloatArray:
        """(N,) absolute errors."""
        return np.abs(self.predicted - self.truth)

    @property
    def caveats(self) -> tuple[str, ...]:
        notes = []
        if self.left_out:
            notes.append(f"{self.left_out} rows are left out: unreadable, without a finite output, or without a value.")
        if self.cluster is None:
            notes.append("Rows are treated as independent: no cluster ids were given.")
        return tuple(notes)


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation (n - 1) of the target in training, and where they were read."""

    mean: float
    spread: float | None
    origin: str

    def caveat(self) -> tuple[str, ...]:
        if self.origin == "target":
            return ("The training data are not known: mean and spread of the target's own values stand in for them.",)
        return ()


def judged_values(evidence: Evidence, model: str, role: str, *, also: str | None = None) -> Rows:
    """The rows on which ``model`` (and ``also`` another) can be judged in ``role``; NotEvaluated where there are none."""
    values, given = evidence.values(role), evidence.predictions(model, role)
    mask = np.isfinite(values) & np.isfinite(given)
    if also is not None:
        mask &= np.isfinite(evidence.predictions(also, role))
    rows = np.flatnonzero(mask)
    if rows.size == 0:
        raise NotEvaluated(f"rows of the {role} with a value and a finite output of the {model} model")
    cluster = evidence.cluster(role)
    return Rows(
        rows=rows,
        truth=np.asarray(values[rows], dtype=np.float64),
        predicted=np.asarray(given[rows], dtype=np.float64),
        cluster=None if cluster is None else np.asarray(cluster)[rows],
        left_out=int(values.size - rows.size),
    )


def scale_of(subject: Subject, evidence: Evidence) -> Scale:
    """Mean and spread of the target in training: from the training data, else from the record, else from the target itself."""
    try:
        known = evidence.values("train")
        known = known[np.isfinite(known)]
        if known.size > 1:
            return Scale(float(known.mean()), _spread(known), "training data")
    except NotEvaluated:
        pass  # the record may know
    record = None if subject.record is None else subject.record.train
    if record is not None and record.value_mean is not None and record.value_sd is not None:
        return Scale(record.value_mean, record.value_sd, "adaptation record")
    known = evidence.values("target")
    known = known[np.isfinite(known)]
    return Scale(float(known.mean()), _spread(known), "target")


def _spread(values: FloatArray) -> float | None:
    found = float(values.std(ddof=1)) if values.size > 1 else 0.0
    return found if found > 1e-12 * max(1.0, float(np.abs(values).max())) else None


def _both(
    name: str, estimate: Estimate, scale: Scale, *, rules: Rules, unit: str | None, family: str | None = None, **rest: Any
) -> list[Metric]:  # Any: see checks.base.metric
    """A metric in the target's own unit, and the same in units of its spread in training, which limits speak of."""
    return [
        metric(name, estimate, rules=rules, unit=unit, family=None if family is None else f"{family}, own unit", **rest),
        metric(f"{name}_scaled", regression.scaled(estimate, scale.spread), rules=rules, unit="SD", family=family, **rest),
    ]


def _facts(scale: Scale, unit: str | None, seed: int) -> dict[str, Any]:
    return {"unit": unit, "scale_from": scale.origin, "training_mean": scale.mean, "training_sd": scale.spread, "seed": seed}


def _label(unit: str | None) -> str:
    return "mean absolute error" + (f", {unit}" if unit else "")


def _sign(value: float | None, unit: str | None) -> str:
    """A difference in its unit, "+3.1 mm"."""
    text = amount_of(value, unit)
    return text if value is None or value < 0 else f"+{text}"


# ---------------------------------------------------------------- 301


def overall(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """How far off are the predicted numbers on the target, and is that better than always saying the training mean?

    How it is measured: mean absolute error, root mean squared error, r² and mean error (predicted minus true) on the target; how much smaller
    the mean absolute error is than that of always saying the mean of the training data, paired by sample.

    Why it matters: a model that is not better than the mean has no use, whatever else is said of it.

    How to reduce the risk: more or better labelled target data, another base, fewer frozen layers.
    """
    rules, seed, unit = context.rules, context.seed, subject.unit
    rows, scale = judged_values(evidence, "adapted", "target"), scale_of(subject, evidence)
    y, given, units = rows.truth, rows.predicted, rows.cluster
    flat = np.full(rows.n, scale.mean)
    gain = regression.error_difference(y, flat, given, cluster=units, seed=seed)
    by_mean = {name: getattr(regression, name)(y, flat).value for name in ("mae", "rmse", "r2")}
    found = {
        "mae": replace(regression.mae(y, given, cluster=units), null=by_mean["mae"]),
        "rmse": replace(regression.rmse(y, given, cluster=units), null=by_mean["rmse"]),
        "r2": replace(regression.r2(y, given, cluster=units, seed=seed), null=by_mean["r2"]),
        "mean_error": regression.mean_error(y, given, cluster=units),
    }
    metrics = [
        metric("mae", found["mae"], rules=rules, better="lower", unit=unit, family="mae"),
        metric("rmse", found["rmse"], rules=rules, better="lower", unit=unit, family="rmse"),
        metric("r2", found["r2"], rules=rules, better="higher", family="r2"),
        metric("mean_error", found["mean_error"], rules=rules, unit=unit, family="mean_error"),
        *_both("gain_over_mean", gain, scale, rules=rules, unit=unit, better="higher", family="gain_over_mean"),
    ]
    mae = found["mae"].value
    figure = Intervals(
        id="headline",
        title=f"Mean absolute error {amount_of(mae, unit)} on {rows.n} target samples",
        how_to_read="Dots are values, lines their intervals, the tick what always saying the training mean would give.",
        alt=f"Mean absolute error {amount_of(mae, unit)}; always saying the mean gives {amount_of(by_mean['mae'], unit)}.",
        caption=f"n = {rows.n}; {rules.confidence:.0%} intervals; mean taken from the {scale.origin}.",
        value_label="error" + (f", {unit}" if unit else ""),
        dots=tuple(
            Dot(label=label, value=one.value, interval=one.interval(rules.confidence), n=rows.n, null=one.null, note=one.reason)
            for label, one in (
                ("mean absolute error", found["mae"]),
                ("root mean squared error", found["rmse"]),
                ("mean error", found["mean_error"]),
            )
        ),
    )
    return Measurement(
        summary=f"Mean absolute error {amount_of(mae, unit)} on {rows.n} target samples, {amount_of(gain.value, unit)} less than always saying "
        f"the mean of the {scale.origin}; r² {number(found['r2'].value)}.",
        metrics=tuple(metrics),
        exhibits=(figure, *_against_truth(rows, unit, rules)),
        caveats=(*rows.caveats, *scale.caveat()),
        params=_facts(scale, unit, seed),
    )


def _against_truth(rows: Rows, unit: str | None, rules: Rules) -> tuple[Lines, ...]:
    """Mean true value over bins of the predicted value; none where bins would hold fewer than ten rows."""
    bins = min(MOST_BINS, rows.n // LEAST_PER_BIN)
    if bins < 2:
        return ()
    order = np.argsort(rows.predicted, kind="stable")
    parts = np.array_split(order, bins)
    true = [intervals.mean(rows.truth[p], cluster=None if rows.cluster is None else rows.cluster[p]) for p in parts]
    x = tuple(float(rows.predicted[p].mean()) for p in parts)
    bounds = [one.interval(rules.confidence) or (one.value or 0.0, one.value or 0.0) for one in true]
    ends = (min(x), max(x))
    off = max(zip(x, true, strict=True), key=lambda pair: abs((pair[1].value or 0.0) - pair[0]))
    return (
        Lines(
            id="true-by-predicted",
            title="Mean true value by predicted value",
            how_to_read="On the diagonal the predictions are right on average; below it the model says too much there, above it too little.",
            alt=f"Furthest from the diagonal: predicted {amount_of(off[0], unit)}, true {amount_of(off[1].value, unit)} on average.",
            caption=f"n = {rows.n}; {bins} bins of equal size; {rules.confidence:.0%} intervals.",
            x_label="mean predicted value of the bin" + (f", {unit}" if unit else ""),
            y_label="mean true value" + (f", {unit}" if unit else ""),
            lines=(
                Line(name="right on average", x=ends, y=ends, role="reference"),
                Line(
                    name="adapted model", x=x, y=tuple(one.value for one in true), low=tuple(b[0] for b in bounds),
                    high=tuple(b[1] for b in bounds), mark="dot",
                ),
            ),
            counts=tuple((at, len(p)) for at, p in zip(x, parts, strict=True)),
        ),
    )  # fmt: skip


# ---------------------------------------------------------------- 302, 401: the same rows, another model


@dataclass(frozen=True)
class _Paired:
    """Errors of the adapted model and of another one on the same rows: adapted minus other."""

    rows: Rows
    other: Rows
    difference: Estimate


def _paired(evidence: Evidence, key: str, seed: int) -> _Paired:
    rows = judged_values(evidence, "adapted", "target", also=key)
    other = judged_values(evidence, key, "target", also="adapted")
    return _Paired(rows, other, regression.error_difference(rows.truth, rows.predicted, other.predicted, cluster=rows.cluster, seed=seed))


def _before_after(pair: _Paired, label: str, series: str, rules: Rules) -> list[Dot]:
    dots = []
    for name, one in ((series, pair.other), ("adapted", pair.rows)):
        error = regression.mae(one.truth, one.predicted, cluster=one.cluster)
        dots.append(
            Dot(label=label, value=error.value, interval=error.interval(rules.confidence), series=name, n=error.n, hollow=name == series)
        )
    return dots


def against(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Is the adapted model no further off than the model it replaces?

    How it is measured: mean absolute error of the adapted model minus that of the previous model, and of the base where that predicts the same
    number, on the same target samples, paired by sample; also in standard deviations of the target in training, which the limits speak of.

    Why it matters: whoever relied on the old model's precision loses it with a worse one.

    How to reduce the risk: keep the old model, distil it into the new one, or adapt less.
    """
    rules, seed, unit = context.rules, context.seed, subject.unit
    scale = scale_of(subject, evidence)
    metrics: list[Metric] = []
    dots: list[Dot] = []
    changes: list[Change] = []
    caveats: list[str] = []
    parts: list[str] = []
    for key in ("previous", "base"):
        if subject.model(key) is None:
            continue
        try:
            pair = _paired(evidence, key, seed)
        except NotEvaluated as missing:
            caveats.append(f"Not compared with the {key} model: {missing}.")
            continue
        change = pair.difference
        metrics += _both("mae_change", change, scale, rules=rules, unit=unit, better="lower", slice={"against": key}, family="mae_change")
        dots += _before_after(pair, f"mean absolute error, against {key}", key, rules)
        changes.append(Change(label=f"mean absolute error, against {key}", value=change.value, interval=change.interval(rules.confidence)))
        parts.append(f"mean absolute error {_sign(change.value, unit)} against the {key} model")
    if not metrics:
        raise NotEvaluated(
            (" ".join(caveats) or "No base or previous model.") + " TLA401 compares with the controls instead, where there are any"
        )
    figure = Intervals(
        id="before-after",
        title="Mean absolute error before and after, on the same target samples",
        how_to_read="Hollow: before. Filled: the adapted model. The paired change at the right decides; above 0 is worse.",
        alt="; ".join(parts) + ".",
        caption=f"Paired by sample; {rules.confidence:.0%} intervals.",
        value_label=_label(unit),
        dots=tuple(dots),
        changes=tuple(changes),
    )
    return Measurement(
        summary="; ".join(parts).capitalize() + ".",
        metrics=tuple(metrics), exhibits=(figure,), caveats=(*caveats, *scale.caveat()), params=_facts(scale, unit, seed),
    )  # fmt: skip


def transfer_gain(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Did using the base model help, or would a simpler way have come closer?

    How it is measured: mean absolute error of each control (and of the base, where it predicts the same number) minus that of the adapted model
    on the same target samples, as a paired difference with its interval; also in standard deviations of the target in training.

    Why it matters: a transfer that loses to training from scratch carries the base's risks without its benefit.

    How to reduce the risk: fewer frozen layers, a smaller rate, a base closer to the target, or no base at all.
    """
    rules, seed, unit = context.rules, context.seed, subject.unit
    scale = scale_of(subject, evidence)
    metrics: list[Metric] = []
    dots: list[Dot] = []
    changes: list[Change] = []
    caveats = ["Each control was trained once, with one seed: the noise of the seed is not in the interval."]
    parts: list[str] = []
    for key, word in (("control:scratch", "scratch"), ("control:head", "head"), ("base", "base")):
        name = f"mae_gain_over_{word}"
        if word in subject.same_as_adapted:
            caveats.append(f"The plan is {word}-only, so the control {word} is the adapted model itself: no comparison.")
            continue
        try:
            if subject.model(key) is None:
                raise NotEvaluated(f"needs {missing_model(subject, key)}")
            pair = _paired(evidence, key, seed)
        except NotEvaluated as missing:
            metrics += [Metric(name=n, value=None, reason=str(missing), better="higher") for n in (name, f"{name}_scaled")]
            continue
        gain = _turned(pair.difference)
        metrics += _both(name, gain, scale, rules=rules, unit=unit, better="higher", family="gain")
        dots += _before_after(pair, f"against {word}", "control", rules)
        changes.append(Change(label=f"against {word}", value=gain.value, interval=gain.interval(rules.confidence)))
        parts.append(f"{_sign(gain.value, unit)} against {word}")
    if not parts:
        raise NotEvaluated("no control (head, scratch) or base that predicts the same number was run on the target")
    figure = Intervals(
        id="controls",
        title="Mean absolute error of the adapted model and of its controls on the same target samples",
        how_to_read="Hollow: the control. Filled: the adapted model. The paired gain at the right answers the question; above 0 the adapted model is closer.",
        alt="Error of the control minus error of the adapted model: " + "; ".join(parts) + ".",
        caption=f"Paired on the same target rows; {rules.confidence:.0%} intervals.",
        value_label=_label(unit),
        dots=tuple(dots),
        changes=tuple(changes),
    )
    return Measurement(
        summary="Gain in mean absolute error from using the base as was done: " + "; ".join(parts) + ".",
        metrics=tuple(metrics), exhibits=(figure,), caveats=(*caveats, *scale.caveat()), params=_facts(scale, unit, seed),
    )  # fmt: skip


def _turned(estimate: Estimate) -> Estimate:
    """The difference the other way round."""
    if estimate.value is None:
        return estimate
    return replace(estimate, value=-estimate.value, ladder=tuple((alpha, -high, -low) for alpha, low, high in estimate.ladder))


# ---------------------------------------------------------------- 308, 509: two domains


def _two_domains(
    evidence: Evidence, roles: tuple[str, str], name: str, scale: Scale, context: Context, unit: str | None
) -> tuple[Estimate, list[Metric], list[Dot], Rows]:
    """Mean absolute error on the second domain minus that on the first."""
    first, second = (judged_values(evidence, "adapted", role) for role in roles)
    unit_a, unit_b = clusters_of_both(first.cluster, second.cluster, (first.n, second.n))
    gap = intervals.mean_difference(second.error, first.error, cluster_first=unit_b, cluster_second=unit_a)
    n = {roles[0]: first.n, roles[1]: second.n}
    metrics = _both(name, gap, scale, rules=context.rules, unit=unit, better="lower", n=n)
    dots = []
    for role, rows in zip(roles, (first, second), strict=True):
        error = regression.mae(rows.truth, rows.predicted, cluster=rows.cluster)
        dots.append(
            Dot(label=role, value=error.value, interval=error.interval(context.rules.confidence), n=error.n, hollow=role == roles[0])
        )
    return gap, metrics, dots, second


def train_gap(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """How much of its precision on training data does the model lose on new data?

    How it is measured: mean absolute error on the target minus that on the training data (without augmentation), two independent samples
    (Welch's t, over clusters where they are known); also in standard deviations of the target in training.

    Why it matters: a large gap means memorised samples or shortcuts that do not hold outside the training data.

    How to reduce the risk: more data, augmentation, fewer trainable layers, a look at what the model relies on (section explanations).
    """
    unit, scale = subject.unit, scale_of(subject, evidence)
    gap, metrics, dots, target = _two_domains(evidence, ("train", "target"), "generalisation_error_gap", scale, context, unit)
    figure = Intervals(
        id="train-and-target",
        title=f"Mean absolute error on the target is {amount_of(None if gap.value is None else abs(gap.value), unit)} {'above' if (gap.value or 0) > 0 else 'below'} that on the training data",
        how_to_read="Mean absolute error of the adapted model on the data it was trained on and on the target.",
        alt=f"Target minus train mean absolute error: {_sign(gap.value, unit)}.",
        caption=f"n = {dots[0].n} train, {dots[1].n} target; {context.rules.confidence:.0%} intervals.",
        value_label=_label(unit),
        dots=tuple(replace_hollow(dots)),
    )
    return Measurement(
        summary=f"Mean absolute error on the target minus that on the training data: {_sign(gap.value, unit)}.",
        metrics=tuple(metrics),
        exhibits=(figure,),
        caveats=(
            *target.caveats,
            *scale.caveat(),
            "If target and training data differ in distribution (TLA501 compares source and target), the gap includes that shift.",
        ),
        params=_facts(scale, unit, context.seed),
    )


def replace_hollow(dots: Sequence[Dot]) -> list[Dot]:
    """The dots, all filled."""
    return [dot.model_copy(update={"hollow": False}) for dot in dots]


def harmful(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Does the shift cost precision?

    How it is measured: mean absolute error of the adapted model on the target minus that on the (held-out) source, two independent samples;
    also in standard deviations of the target in training.

    Why it matters: this is where a shift turns into wrong answers.

    How to reduce the risk: adapt on data from the place of use; find the part of the target that fails (families 3 and 6).
    """
    unit, scale = subject.unit, scale_of(subject, evidence)
    rise, metrics, dots, target = _two_domains(evidence, ("source", "target"), "error_rise", scale, context, unit)
    summary = (
        f"Mean absolute error {amount_of(dots[0].value, unit)} on the source, {amount_of(dots[1].value, unit)} on the target: "
        f"{_sign(rise.value, unit)}."
    )
    figure = Intervals(
        id="error-by-domain",
        title=summary,
        how_to_read="Hollow: source. Filled: target.",
        alt=summary,
        caption=f"Adapted model; n = {dots[0].n} source, {dots[1].n} target; {context.rules.confidence:.0%} intervals.",
        value_label=_label(unit),
        dots=tuple(dots),
    )
    return Measurement(
        summary=summary,
        metrics=tuple(metrics),
        exhibits=(figure,),
        caveats=(
            *target.caveats,
            *scale.caveat(),
            "The source data must not have been used in training; the tool cannot see whether they were.",
        ),
        params=_facts(scale, unit, context.seed),
    )


# ---------------------------------------------------------------- 505


def prediction_drift(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Does the adapted model predict other numbers on the target?

    How it is measured: the largest gap between the distributions of the predicted number on source and target (KS), tested by permutation; the
    mean prediction on the target minus that on the source, also in standard deviations of the target in training. No labels are used.

    Why it matters: it is what monitoring sees first, before any label arrives.

    How to reduce the risk: find out what moved in the inputs: TLA501, TLA507.
    """
    rules, seed, unit = context.rules, context.seed, subject.unit
    scale = scale_of(subject, evidence)
    (a, of_a), (b, of_b) = (_predictions(evidence, role, seed) for role in ("source", "target"))
    unit_a, unit_b = clusters_of_both(of_a, of_b, (a.size, b.size))
    n = {"source": int(a.size), "target": int(b.size)}
    units = None if unit_a is None or unit_b is None else {"source": units_in(unit_a), "target": units_in(unit_b)}
    gap = shift.ks_shift(a, b, cluster_source=unit_a, cluster_target=unit_b, alpha=rules.alpha, seed=seed)
    high = gap.details.get("null_high")
    mean_gap = intervals.mean_difference(b, a, cluster_first=unit_b, cluster_second=unit_a)
    metrics = [
        metric("output_ks", gap, rules=rules, better="lower", n=n, clusters=units, family="output_ks", min_n=LEAST_PER_DOMAIN),
        exact("output_ks_null_high", high, n=n, reason=None if high is not None else f"no permutation test: {gap.details.get('p_reason')}"),
        *_both("prediction_gap", mean_gap, scale, rules=rules, unit=unit, n=n, clusters=units),
    ]
    summary = (
        f"Largest gap between the distributions of the predicted number on source and target: {number(gap.value)} (p = {p_value(gap.p_value)}); "
        f"mean prediction {_sign(mean_gap.value, unit)} on the target."
    )
    grid = np.linspace(min(a.min(), b.min()), max(a.max(), b.max()), CURVE_POINTS)
    figure = Lines(
        id="predictions",
        title=summary,
        how_to_read="Share of samples whose predicted number is at most this. The largest vertical gap of the two curves is KS.",
        alt=summary,
        caption=f"n = {n['source']} source, {n['target']} target; seed {seed}.",
        x_label="predicted number" + (f", {unit}" if unit else ""),
        y_label="share of samples",
        lines=tuple(
            Line(
                name=role,
                x=tuple(float(v) for v in grid),
                y=tuple(float(s) for s in np.searchsorted(np.sort(values), grid, side="right") / values.size),
            )
            for role, values in (("source", a), ("target", b))
        ),
        y_range=(0.0, 1.0),
    )
    caveats = [*scale.caveat(), "Drift is no harm by itself: TLA509 says whether it costs precision."]
    if alone := rows_alone(evidence, ("source", "target")):
        caveats.append(alone)
    return Measurement(
        summary=summary, metrics=tuple(metrics), exhibits=(figure,), caveats=tuple(caveats),
        params={**_facts(scale, unit, seed), "most_per_domain": MOST_PER_DOMAIN},
    )  # fmt: skip


def _predictions(evidence: Evidence, role: str, seed: int) -> tuple[FloatArray, NDArray[Any] | None]:
    """Predicted numbers of usable rows, at most MOST_PER_DOMAIN by hash priority, and their cluster ids."""
    given = evidence.predictions("adapted", role)
    rows = np.flatnonzero(np.isfinite(given))
    if rows.size == 0:
        raise NotEvaluated(f"finite outputs of the adapted model on the {role}")
    if rows.size > MOST_PER_DOMAIN:
        ids = evidence.ids(role)
        rows = rows[bottom_k([ids[int(r)] for r in rows], MOST_PER_DOMAIN, seed)]
    cluster = evidence.cluster(role)
    return np.asarray(given[rows], dtype=np.float64), None if cluster is None else np.asarray(cluster)[rows]


# ---------------------------------------------------------------- 601, 602


def _columns(evidence: Evidence, rows: Rows) -> dict[str, NDArray[Any]]:
    return {
        column: np.array([fairness.MISSING if is_missing(value) else str(value) for value in np.asarray(values)[rows.rows].tolist()])
        for column, values in evidence.groups("target").items()
    }


def group_errors(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """How far off is the model for each group?

    How it is measured: mean absolute error and mean error (predicted minus true) of each group, with t intervals over rows or clusters. A missing
    group value is a group of its own.

    Why it matters: an average hides those for whom the model is far off, or always too high.

    How to reduce the risk: collect more samples of the thin groups before anything else; compare groups in TLA602, not by overlap of intervals.
    """
    rules, unit = context.rules, subject.unit
    rows = judged_values(evidence, "adapted", "target")
    overall = float(rows.error.mean())
    metrics: list[Metric] = []
    exhibits: list[Intervals | Table] = []
    said = []
    for column, values in _columns(evidence, rows).items():
        found: dict[str, tuple[Estimate, Estimate]] = {}
        for group in sorted(set(values.tolist())):
            inside = values == group
            units = None if rows.cluster is None else rows.cluster[inside]
            found[group] = (
                regression.mae(rows.truth[inside], rows.predicted[inside], cluster=units),
                regression.mean_error(rows.truth[inside], rows.predicted[inside], cluster=units),
            )
            for name, one in zip(("mae", "mean_error"), found[group], strict=True):
                metrics.append(
                    metric(
                        name, one, rules=rules, better="lower" if name == "mae" else None, slice={column: group}, unit=unit,
                        family=f"{name} by {column}",
                    )
                )  # fmt: skip
        dots = sorted(
            (
                Dot(label=g, value=e.value, interval=e.interval(rules.confidence), n=e.n, hollow=e.n < rules.min_n, note=e.reason)
                for g, (e, _) in found.items()
            ),
            key=lambda d: (-(d.n or 0), d.label),
        )
        exhibits.append(
            Intervals(
                id=slug(f"mae-by-{column}"),
                title=f"Mean absolute error by {column}",
                how_to_read="Dots are groups, largest first; hollow ones are below the minimum n. Compare groups in TLA602, not by the overlap of intervals.",
                alt="; ".join(f"{d.label} {amount_of(d.value, unit)}" for d in dots[:8]) + ".",
                caption=f"n = {rows.n}; {rules.confidence:.0%} intervals.",
                value_label=_label(unit),
                dots=tuple(dots),
                references=(Reference(value=overall, label="all", role="rest"),),
                grouped=True,
            )
        )
        cells: list[tuple[Cell, ...]] = [(g, e.n, e.value, m.value) for g, (e, m) in found.items()]
        exhibits.append(
            Table(
                id=slug(f"groups-{column}"),
                title=f"Errors by {column}",
                how_to_read="Mean error above 0: the model says too much for this group; below 0: too little.",
                alt=f"Errors of the groups of {column}.",
                caption=f"n = {rows.n} target rows" + (f"; {unit}." if unit else "."),
                columns=(
                    Column(name=column),
                    Column(name="n", format="count"),
                    Column(name="mean absolute error", format="number"),
                    Column(name="mean error", format="number"),
                ),
                rows=tuple(cells),
                grouped=True,
            )
        )
        large = {g: e for g, (e, _) in found.items() if e.value is not None and e.n >= rules.min_n}
        if large:
            worst = max(large, key=lambda g: large[g].value or 0.0)
            said.append(f"{column}: largest mean absolute error {amount_of(large[worst].value, unit)} ({worst}, n = {large[worst].n})")
    return Measurement(
        summary="; ".join(said) + "." if said else "No group has enough rows to be described.",
        metrics=tuple(metrics), exhibits=tuple(exhibits), caveats=rows.caveats, params={"unit": unit},
    )  # fmt: skip


def group_error_gaps(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Is the model further off for any group than for all others, beyond the limit?

    How it is measured: mean absolute error of the group minus that of all other rows (Welch's t, over clusters where they are known), in the
    target's own unit and in standard deviations of the target in training. The limit is tested per group and corrected over the groups of
    one column (Holm); being within the limit needs every plain interval inside.

    Why it matters: a group for which the model is further off carries the cost of the adaptation.

    How to reduce the risk: more training data of the group, a look at what differs in its inputs.
    """
    rules, seed, unit = context.rules, context.seed, subject.unit
    rows, scale = judged_values(evidence, "adapted", "target"), scale_of(subject, evidence)
    every = _columns(evidence, rows)
    columns = {c: v for c, v in every.items() if len(set(v.tolist())) > 1}
    if not columns:
        raise NotEvaluated("One group only: every group column of the target holds a single value (see TLA611)")
    metrics: list[Metric] = []
    exhibits: list[Intervals] = []
    said = []
    for column, values in columns.items():
        # the group that is served worst comes first, in the record and so in the sentence about it
        gaps = sorted(
            fairness.mean_gaps(values, rows.error, cluster=rows.cluster), key=lambda g: (g.gap.value is None, -(g.gap.value or 0.0))
        )
        dots = []
        for one in gaps:
            metrics += _both(
                "error_gap", one.gap, scale, rules=rules, unit=unit, slice={column: one.group}, family=f"error_gap by {column}",
                n={"group": one.n_group, "rest": one.n_rest},
            )  # fmt: skip
            dots.append(
                Dot(
                    label=one.group,
                    value=one.gap.value,
                    interval=one.gap.interval(rules.confidence),
                    n=one.n_group,
                    hollow=one.n_group < rules.min_n,
                    note=one.gap.reason,
                )
            )
        judged = [d for d in dots if d.value is not None and (d.n or 0) >= rules.min_n]
        worst = judged[0] if judged else None
        title = (
            f"Mean absolute error of {column} = {worst.label}: {_sign(worst.value, unit)} against the rest"
            if worst is not None
            else f"Mean absolute error against the rest: no group of {column} is large enough to judge"
        )
        said.append(title)
        exhibits.append(
            Intervals(
                id=slug(f"error-gap-{column}"),
                title=title,
                how_to_read="Each group's mean absolute error minus that of all other rows; above 0 the group is served worse.",
                alt="; ".join(f"{d.label} {_sign(d.value, unit)}" for d in dots if d.value is not None)[:600] + ".",
                caption=f"Adapted model on the target; {rules.confidence:.0%} intervals, not corrected; the limit's p is corrected over the {len(gaps)} groups (Holm). Limits are in standard deviations of the target in training"
                + (f" ({amount_of(scale.spread, unit)})." if scale.spread is not None else "."),
                value_label=f"difference of {_label(unit)}",
                dots=tuple(sorted(dots, key=lambda d: (-(d.n or 0), d.label))),
                references=(Reference(value=0.0, label="no gap", role="null"),),
                grouped=True,
            )
        )
    caveats = [*rows.caveats, *scale.caveat()]
    if mirrored := sorted(c for c, v in columns.items() if len(set(v.tolist())) == 2):
        caveats.append(
            f"Two groups only in {', '.join(mirrored)}: each gap is the other's with the sign turned. A positive error gap is the worse side."
        )
    if left := sorted(set(every) - set(columns)):
        caveats.append("Columns with one group only are left out: " + ", ".join(left) + ".")
    caveats.append("A group whose true values spread more is harder to predict: its larger error need not be the model's fault.")
    return Measurement(
        summary="; ".join(said) + ".", metrics=tuple(metrics), exhibits=tuple(exhibits), caveats=tuple(caveats),
        params={**_facts(scale, unit, seed), "reference": "the rest"},
    )  # fmt: skip
