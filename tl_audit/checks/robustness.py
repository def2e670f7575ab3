"""Family 8, robustness: what everyday disturbances of the input cost. Any kind of data, through its modality."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.checks.base import Check, Context, check, metric
from tl_audit.checks.cues import predicted_classes
from tl_audit.checks.data import INDEPENDENT
from tl_audit.checks.selection import judged
from tl_audit.checks.wording import number, signed
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures import intervals
from tl_audit.measures.estimate import Estimate
from tl_audit.measures.sampling import bottom_k
from tl_audit.modality.corruptions import SEVERITIES, trained_with
from tl_audit.models.model import Model
from tl_audit.records.exhibits import Line, Lines
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Domain, Subject

CODE = "TLA801"
MOST_ROWS = 512
BATCH = 32
JUDGED_SEVERITY = 2
"""The severity that summary and policy speak of."""

CONTROL = "control:head"


@dataclass(frozen=True)
class Outcome:
    """Right answers of one model: as it is (N,), and under each (kind, severity). ``finite``: all outputs of a row could be read."""

    clean: NDArray[np.bool_]
    disturbed: dict[tuple[str, int], NDArray[np.bool_]]
    finite: NDArray[np.bool_]

    def select(self, rows: NDArray[np.bool_]) -> Outcome:
        return Outcome(self.clean[rows], {key: right[rows] for key, right in self.disturbed.items()}, self.finite[rows])


@check(
    CODE,
    "Corruptions",
    section="robustness",
    severity="high",
    needs=("adapted", "target", "target.labels", "adapted@target"),
    runs_models=True,
)
def corruptions(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """How fast does performance fall under everyday disturbances of the input?

    How it is measured: at most 512 target samples, chosen by hash, are disturbed in each way their kind of data knows (pictures: noise, blur,
    contrast, brightness, JPEG, pixelation; tables: noise, missing cells, swapped categories) at three strengths, and the answers are compared
    with those to the same samples as they are. Kinds that the training used as augmentation, or that change no input, are left out of the mean.
    A head-only control shows what the base alone loses.

    Why it matters: the inputs of tomorrow are scanned, compressed and filled in less carefully than a test set.

    How to reduce the risk: augment the training with what the inputs will meet, adapt fewer layers of a sturdy base, check inputs on arrival.
    """
    rules, seed = context.rules, context.seed
    modality = subject.target.samples.modality
    kinds = modality.corruption_kinds()
    if not kinds:
        raise NotEvaluated(f"no everyday disturbance is known for {modality.kind} data")
    target = judged(evidence, "adapted", "target")
    ids = evidence.ids("target")
    places = bottom_k([ids[r] for r in target.rows], MOST_ROWS, seed)
    rows = target.rows[places]
    caveats = [] if rows.size == target.n else [f"{rows.size} of {target.n} usable target rows were disturbed, chosen by hash."]
    models, truth, without = {"adapted": subject.adapted}, {"adapted": target.truth[places]}, None
    control = subject.model(CONTROL)
    if control is None or "head" in subject.same_as_adapted:
        without = "no head control of its own to compare with"
    else:
        try:
            truth[CONTROL] = np.asarray(evidence.truth(CONTROL, "target")[rows], dtype=np.int64)
            models[CONTROL] = control
        except NotEvaluated as gap:
            without = str(gap)
    outcomes, moved = _ask(subject.target, rows, models, truth, kinds, ids, context)
    mask = np.all([o.finite for o in outcomes.values()], axis=0)
    if not mask.any():
        raise NotEvaluated("finite outputs of the adapted model on the disturbed rows")
    if not mask.all():
        caveats.append(f"{int((~mask).sum())} rows were left out: an output under a disturbance is not finite.")
    cluster = None if target.cluster is None else target.cluster[places][mask]
    if cluster is None:
        caveats.append(INDEPENDENT)
    ours = outcomes["adapted"].select(mask)
    theirs = outcomes[CONTROL].select(mask) if CONTROL in outcomes else None
    seen = trained_with(subject.record.training if subject.record is not None else {}) & set(kinds)
    idle = {kind for kind in kinds if not moved[kind]}
    counted = tuple(kind for kind in kinds if kind not in seen | idle)
    if seen:
        caveats.append(f"Used as augmentation in training and left out of the mean: {', '.join(sorted(seen))}.")
    if idle:
        caveats.append(f"Changes no input here and is left out of the mean: {', '.join(sorted(idle))}.")
    metrics: list[Metric] = []
    worst: tuple[float, str] | None = None
    for severity in SEVERITIES:
        for kind in kinds:
            drop = intervals.paired_rate_difference(ours.clean, ours.disturbed[kind, severity], cluster=cluster, seed=seed)
            drop = replace(drop, null=0.0)
            where = {"kind": kind, "severity": str(severity)}
            family = f"corruption at severity {severity}"
            metrics.append(metric("corruption_accuracy_drop", drop, rules=rules, better="lower", slice=where, family=family))
            if severity == JUDGED_SEVERITY and kind in counted and drop.value is not None and (worst is None or drop.value > worst[0]):
                worst = drop.value, kind
    means = {severity: _mean_drop(ours, counted, severity, cluster) for severity in SEVERITIES}
    for severity, mean in means.items():
        metrics.append(metric("mean_corruption_drop", mean, rules=rules, better="lower", slice={"severity": str(severity)}))
    relative = _relative(ours, theirs, counted, cluster, seed, without)
    metrics.append(metric("relative_corruption_error", relative, rules=rules))
    summary = _sentence(means[JUDGED_SEVERITY], worst, len(counted), relative)
    return Measurement(
        summary=summary,
        metrics=tuple(metrics),
        exhibits=(_lines(ours, theirs, kinds, counted, summary, seed),),
        caveats=tuple(caveats),
        params={"rows": int(rows.size), "control": CONTROL if theirs is not None else None, "seed": seed, "batch_size": BATCH},
    )


def _ask(
    target: Domain,
    rows: NDArray[np.int64],
    models: dict[str, Model],
    truth: dict[str, NDArray[np.int64]],
    kinds: tuple[str, ...],
    ids: tuple[str, ...],
    context: Context,
) -> tuple[dict[str, Outcome], dict[str, bool]]:
    """Right answers of each model on the rows as they are and disturbed, and which kinds change an input of the adapted model. Rows are read once."""
    modality = target.samples.modality
    scales = modality.corruption_scales(target.samples, rows)
    n = rows.size
    versions = [("", 0), *((kind, severity) for kind in kinds for severity in SEVERITIES)]
    answers = {key: {version: np.full(n, -1, dtype=np.int64) for version in versions} for key in models}
    moved = dict.fromkeys(kinds, False)
    for start in range(0, n, BATCH):
        part = np.arange(start, min(n, start + BATCH))
        raw = target.samples.read(rows[part])
        keys = [(context.seed, CODE, ids[r]) for r in rows[part]]
        held = part[raw.readable]
        plain = modality.encode(raw, models["adapted"].preprocessing)
        for kind, severity in versions:
            batch = raw if not kind else modality.corrupt(raw, kind, severity, keys=keys, scales=scales)
            encoded: dict[str, torch.Tensor] = {}
            for key, model in models.items():
                # models that prepare inputs alike share them
                spec = model.preprocessing
                inputs = next((made for other, made in encoded.items() if models[other].preprocessing == spec), None)
                if inputs is None:
                    inputs = modality.encode(batch, spec)
                encoded[key] = inputs
                answers[key][kind, severity][held] = predicted_classes(model, inputs)
            if kind and not moved[kind]:
                moved[kind] = not bool((encoded["adapted"] == plain).all())
        context.progress(CODE, int(part[-1]) + 1, n)
    outcomes = {}
    for key, given in answers.items():
        finite = np.asarray(np.all([a >= 0 for a in given.values()], axis=0), dtype=np.bool_)
        right = {version: a == truth[key] for version, a in given.items()}
        outcomes[key] = Outcome(right.pop(("", 0)), right, finite)
    return outcomes, moved


def _mean_drop(ours: Outcome, kinds: tuple[str, ...], severity: int, cluster: NDArray[np.object_] | None) -> Estimate:
    """Mean over the kinds of (right as it is - right when disturbed), per sample (-1..1, null 0)."""
    if not kinds:
        return Estimate(None, ours.clean.size, "no kind of disturbance is left to take the mean of", null=0.0)
    drops = np.mean([ours.clean.astype(float) - ours.disturbed[kind, severity] for kind in kinds], axis=0)
    return replace(intervals.mean(drops, cluster=cluster, bounds=(-1.0, 1.0)), null=0.0)


def _relative(
    ours: Outcome, theirs: Outcome | None, kinds: tuple[str, ...], cluster: NDArray[np.object_] | None, seed: int, without: str | None
) -> Estimate:
    """Errors of the adapted model over those of the head control, all kinds and severities together (above 0, null 1)."""
    n = ours.clean.size
    if theirs is None or not kinds:
        return Estimate(None, n, without or "no kind of disturbance is left", null=1.0)
    versions = [(kind, severity) for kind in kinds for severity in SEVERITIES]
    a, b = (np.sum([~o.disturbed[v] for v in versions], axis=0).astype(float) for o in (ours, theirs))
    if b.sum() == 0:
        return Estimate(None, n, "the head control makes no error under any disturbance", null=1.0)

    def ratio(rows: NDArray[np.int64]) -> float | None:
        below = b[rows].sum()
        return None if below == 0 else float(a[rows].sum() / below)

    return replace(intervals.cluster_bootstrap(ratio, n, cluster=cluster, seed=seed), null=1.0)


def _sentence(mean: Estimate, worst: tuple[float, str] | None, kinds: int, relative: Estimate) -> str:
    if mean.value is None or worst is None:
        return f"What disturbances cost cannot be said: {mean.reason}."
    text = f"Accuracy falls by {number(mean.value)} on the mean over {kinds} kinds of disturbance of middle strength, most under {worst[1]}"
    text += f" ({signed(-worst[0])})."
    if relative.value is not None:
        text += f" Errors under disturbance are {relative.value:.2f} times those of the head-only control."
    return text


def _lines(ours: Outcome, theirs: Outcome | None, kinds: tuple[str, ...], counted: tuple[str, ...], summary: str, seed: int) -> Lines:
    def line(name: str, outcome: Outcome, over: tuple[str, ...], role: str = "data") -> Line:
        after = [float(np.mean([outcome.disturbed[kind, severity].mean() for kind in over])) for severity in SEVERITIES]
        y = (float(outcome.clean.mean()), *after)
        return Line(name=name, x=tuple(float(x) for x in range(len(y))), y=y, mark="dot", role=role)  # type: ignore[arg-type]  # one of its words

    lines = [line(kind if kind in counted else f"{kind} (not in the mean)", ours, (kind,)) for kind in kinds]
    if theirs is not None and counted:
        lines.append(line("head-only control, mean", theirs, counted, "reference"))
    return Lines(
        id="corruptions",
        title="Accuracy under everyday disturbances",
        how_to_read="One line per kind of disturbance, from none at the left to strong at the right; the same samples throughout.",
        alt=summary,
        caption=f"n = {ours.clean.size} target rows, paired; seed {seed}.",
        x_label="strength of the disturbance",
        y_label="accuracy",
        x_ticks=("none", "slight", "middle", "strong"),
        lines=tuple(lines),
        y_range=(0.0, 1.0),
    )


ROBUSTNESS: tuple[Check, ...] = (corruptions,)
