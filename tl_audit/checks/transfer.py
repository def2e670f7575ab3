"""Family 4: did the transfer help, and what did it do to the representation?"""

from __future__ import annotations

from tl_audit.checks import mean_error
from tl_audit.checks.base import Check, Context, check, metric
from tl_audit.checks.provenance import ladder, ladder_rows
from tl_audit.checks.wording import signed
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence, missing_model
from tl_audit.measures import intervals, representation
from tl_audit.measures.multiplicity import holm
from tl_audit.measures.sampling import bottom_k
from tl_audit.records.exhibits import Change, Dot, Intervals, Line, Lines
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject

CKA_SAMPLE = 2000
CKA_BATCH = 64


@check(
    "TLA401",
    "Negative-transfer gap",
    section="transfer",
    severity="critical",
    needs=("adapted", "target.labels", "adapted@target", "control:head|control:scratch|base"),
    values=mean_error.transfer_gain,
)
def negative_transfer(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Did using the base model help, or would a simpler way have done better?

    How it is measured: accuracy of the adapted model minus accuracy of each control (and of the base, where it answers in the
    target's classes) on the same target samples, as a paired difference with its interval; the ratio of the errors beside it.

    Why it matters: a transfer that loses to training from scratch carries the base's risks without its benefit.

    How to reduce the risk: fewer frozen layers, a smaller rate, a base closer to the target, or no base at all.
    """
    rules, seed = context.rules, context.seed
    metrics: list[Metric] = []
    dots: list[Dot] = []
    changes: list[Change] = []
    caveats = ["Each control was trained once, with one seed: the noise of the seed is not in the interval."]
    parts: list[str] = []
    for key, word in (("control:scratch", "scratch"), ("control:head", "head"), ("base", "base")):
        name = f"gain_over_{word}"
        if word in subject.same_as_adapted:
            caveats.append(f"The plan is {word}-only, so the control {word} is the adapted model itself: no comparison.")
            continue
        if subject.model(key) is None:
            metrics.append(Metric(name=name, value=None, reason=f"needs {missing_model(subject, key)}", better="higher"))
            continue
        try:
            mask = evidence.usable("adapted", "target") & evidence.usable(key, "target") & (evidence.truth(key, "target") >= 0)
        except NotEvaluated as missing:
            metrics.append(Metric(name=name, value=None, reason=str(missing), better="higher"))
            continue
        mask &= evidence.truth("adapted", "target") >= 0
        cluster = evidence.cluster("target")
        units = None if cluster is None else cluster[mask]
        ours, theirs = evidence.correct("adapted", "target")[mask], evidence.correct(key, "target")[mask]
        gain = intervals.paired_rate_difference(ours, theirs, cluster=units, seed=seed)
        metrics.append(metric(name, gain, rules=rules, better="higher", family="gain"))
        ratio = intervals.error_ratio(ours, theirs, cluster=units, seed=seed)
        metrics.append(metric("error_ratio", ratio, rules=rules, slice={"against": word}))
        for series, values in ((word, theirs), ("adapted", ours)):
            rate = intervals.rate(values, cluster=units)
            dots.append(
                Dot(
                    label=f"against {word}",
                    value=rate.value,
                    interval=rate.interval(rules.confidence),
                    series="control" if series == word else series,
                    n=rate.n,
                    hollow=series == word,
                )
            )
        changes.append(Change(label=f"against {word}", value=gain.value, interval=gain.interval(rules.confidence)))
        if gain.value is not None:
            parts.append(f"{signed(gain.value)} against {word}")
    if not parts:
        raise NotEvaluated("no control (head, scratch) or base that answers in the target's classes was run on the target")
    adjusted = holm([m.p_value if m.name.startswith("gain_over") else None for m in metrics])
    metrics = [m if p is None else m.model_copy(update={"p_adjusted": p}) for m, p in zip(metrics, adjusted, strict=True)]
    figure = Intervals(
        id="controls",
        title="Accuracy of the adapted model and of its controls on the same target samples",
        how_to_read="Hollow: the control. Filled: the adapted model. The paired change at the right answers the question, not the overlap of the two intervals.",
        alt="Adapted model minus control, accuracy: " + "; ".join(parts) + ".",
        caption=f"Paired on the same target rows; {rules.confidence:.0%} intervals.",
        value_label="accuracy",
        dots=tuple(dots),
        changes=tuple(changes),
        share=True,
    )
    return Measurement(
        summary="Change of accuracy from using the base as was done: " + "; ".join(parts) + ".",
        metrics=tuple(metrics),
        exhibits=(figure,),
        caveats=tuple(caveats),
        params={"seed": seed},
    )


@check(
    "TLA403",
    "Representation drift (CKA)",
    section="transfer",
    severity="info",
    needs=("adapted", "base", "adapted@target", "base@target"),
    multiplicity="none",
    values="same",
)
def representation_drift(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """From which depth on do the adapted features differ from the base's?

    How it is measured: minibatch-debiased linear CKA between base and adapted mean-pooled features of each layer on the same samples,
    with a jackknife interval over batches; Procrustes distance and overlap of the ten nearest neighbours beside it.

    Why it matters: it shows whether the adaptation re-used what the base knew, and where it began to replace it.

    How to reduce the risk: nothing to reduce; drift is not harm. Read it with the weight change (TLA104) and the performance.
    """
    rules, seed = context.rules, context.seed
    base_layers, adapted_layers = evidence.layers("base"), evidence.layers("adapted")
    shared = [layer for layer in adapted_layers if layer in set(base_layers)]
    if not shared:
        raise NotEvaluated("Base and adapted model share no layer names")
    metrics: list[Metric] = []
    caveats: list[str] = []
    lines: list[Line] = []
    first: list[str] = []
    frozen = set(subject.record.frozen) if subject.record is not None else set()
    for role in ("target", "source"):
        if not (evidence.has("base", role) and evidence.has("adapted", role)):
            caveats.append(f"No {role} features of both models: drift on the {role} is not shown.")
            continue
        usable = evidence.usable("base", role) & evidence.usable("adapted", role)
        rows = usable.nonzero()[0]
        if rows.size > CKA_SAMPLE:
            ids = evidence.ids(role)
            picked = bottom_k([ids[int(r)] for r in rows], CKA_SAMPLE, seed)
            rows = rows[picked]
        cluster = evidence.cluster(role)
        units = None if cluster is None else cluster[rows]
        values: list[float | None] = []
        lows: list[float] = []
        highs: list[float] = []
        for layer in shared:
            before = evidence.features("base", role, layer)[rows]
            after = evidence.features("adapted", role, layer)[rows]
            where = {"layer": layer, "domain": role}
            if before.shape[1] == 0 or after.shape[1] == 0:
                continue
            drift = representation.cka_drift(before, after, batch=CKA_BATCH, cluster=units, seed=seed)
            metrics.append(metric("cka_drift", drift, rules=rules, role=role, slice=where))
            metrics.append(
                metric("procrustes_distance", representation.procrustes_distance(before, after), rules=rules, role=role, slice=where)
            )
            metrics.append(
                metric("neighbour_overlap", representation.neighbour_overlap(before, after), rules=rules, role=role, slice=where)
            )
            interval = drift.interval(rules.confidence)
            values.append(drift.value)
            lows.append(interval[0] if interval else drift.value or 0.0)
            highs.append(interval[1] if interval else drift.value or 0.0)
            if role == "target" and drift.value is not None and interval is not None and interval[0] > 0.1:
                first.append(layer)
        if values:
            lines.append(
                Line(
                    name=role,
                    x=tuple(float(i) for i in range(len(values))),
                    y=tuple(values),
                    low=tuple(lows),
                    high=tuple(highs),
                    mark="dot",
                )
            )
    if not lines:
        raise NotEvaluated("features of base and adapted model on a common domain")
    shaded = []
    for i, layer in enumerate(shared):
        own = _parameters(subject, layer)
        if own and all(name in frozen for name in own):
            shaded.append((i - 0.5, i + 0.5))
    say = (
        f"first layer with CKA drift above 0.1 on the target: {first[0]}"
        if first
        else "no layer drifts by more than 0.1 in CKA on the target"
    )
    figure = Lines(
        id="cka-by-depth",
        title="Difference of adapted from base features by depth",
        how_to_read="0: a layer computes the same up to rotation and scale; 1: unrelated. Grey bands are layers declared frozen.",
        alt=say[0].upper() + say[1:] + ".",
        caption=f"Minibatch-debiased linear CKA, batches of {CKA_BATCH}, at most {CKA_SAMPLE} samples per domain by hash priority, seed {seed}.",
        x_label="layer, input to output",
        y_label="1 - CKA",
        lines=tuple(lines),
        x_ticks=tuple(shared),
        shaded=tuple(shaded),
        y_range=(0.0, 1.0),
    )
    by_layer = {m.slice["layer"]: m for m in metrics if m.name == "cka_drift" and m.slice["domain"] == "target"}
    steps = []
    for row in ladder_rows(subject, evidence):
        drift_of = by_layer.get(row.layer)
        if drift_of is not None:
            row = row.model_copy(update={"cka_drift": drift_of.value, "cka_interval": drift_of.interval, "cka_null": drift_of.null})
        steps.append(row)
    return Measurement(
        summary=say[0].upper() + say[1:] + ".",
        metrics=tuple(metrics),
        exhibits=(ladder(steps, say[0].upper() + say[1:]), figure),
        caveats=tuple(caveats),
        params={"batch": CKA_BATCH, "most_samples": CKA_SAMPLE, "seed": seed},
    )


def _parameters(subject: Subject, layer: str) -> list[str]:
    """Names of the parameters under a layer group of the adapted model."""
    return [n for n, _ in subject.adapted.module.named_parameters() if n == layer or n.startswith(layer + ".")]


TRANSFER: tuple[Check, ...] = (negative_transfer, representation_drift)
