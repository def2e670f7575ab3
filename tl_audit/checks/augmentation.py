"""TLA804: are the augmentations of the training harmless to the label, and absorbed by the model?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tl_audit.attribution import Attribution, Inputs
from tl_audit.checks.base import Check, Context, check, metric
from tl_audit.checks.cues import predicted_classes
from tl_audit.checks.data import INDEPENDENT, short_id
from tl_audit.checks.explanations.shared import again_with, cluster_of, maps_of, mean_over
from tl_audit.checks.selection import judged
from tl_audit.checks.wording import percent, signed
from tl_audit.errors import DataError, ModelError, NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures import intervals
from tl_audit.measures.attribution import pooled, rank_correlation
from tl_audit.measures.sampling import bottom_k, priority
from tl_audit.modality.augmentation import Augmentation, augmentations, augmented, moved
from tl_audit.records.exhibits import Dot, GridRow, ImageGrid, Intervals, Reference
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject

CODE = "TLA804"
MOST_ROWS = 512
BATCH = 32
MAP_SAMPLES = 16
MOST_GEOMETRIC = 3
"""Transforms whose maps are compared: each costs the explainers one more run on 16 samples at half their budget."""

MOST_PICTURES = 4


@dataclass(frozen=True)
class Answered:
    """Predicted class of each row, as it is and after each transform; -1 where the output is not finite."""

    clean: NDArray[np.int64]
    after: tuple[NDArray[np.int64], ...]

    @property
    def finite(self) -> NDArray[np.bool_]:
        return np.asarray(np.all([part >= 0 for part in (self.clean, *self.after)], axis=0), dtype=np.bool_)


@check(
    CODE,
    "Augmentation invariance",
    section="robustness",
    severity="medium",
    needs=("adapted", "target", "target.labels", "adapted@target", "record"),
    runs_models=True,
)
def augmentation_invariance(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Are the augmentations of the plan harmless to the label and absorbed by the model?

    How it is measured: each transform that the training used is put on at most 512 target samples (every time, where the training used it by chance),
    and the answers are compared with those to the same samples as they are: how many stay, and how much accuracy is lost. For transforms that only move
    pixels, the map of the moved picture is compared with the moved map of the picture (rank correlation on 14 x 14 areas, 16 samples).

    Why it matters: a transform that changes what a picture means (a mirrored letter, a turned arrow) teaches the wrong label, and one that the model
    still answers differently to was paid for in training and brought nothing.

    How to reduce the risk: leave out transforms that change the meaning, weaken those that cost accuracy, train longer with those that should be absorbed.
    """
    rules, seed = context.rules, context.seed
    steps = augmentations(subject.record.training if subject.record is not None else {})
    if not steps:
        raise NotEvaluated("No augmentation to look at: by the record the training used its samples as they are")
    target = judged(evidence, "adapted", "target")
    ids = evidence.ids("target")
    places = bottom_k([ids[r] for r in target.rows], MOST_ROWS, seed)
    rows, truth = target.rows[places], target.truth[places]
    caveats = [] if rows.size == target.n else [f"{rows.size} of {target.n} usable target rows were transformed, chosen by hash."]
    if forced := [step.label for step in steps if step.always]:
        caveats.append(f"Used by chance in training and every time here: {', '.join(forced)}.")
    try:
        answers = _ask(subject, rows, steps, context)
    except DataError as error:
        raise NotEvaluated(f"The transforms of the training cannot be used here: {error}") from error
    mask = answers.finite
    if not mask.any():
        raise NotEvaluated("finite outputs of the adapted model on the transformed rows")
    if not mask.all():
        caveats.append(f"{int((~mask).sum())} rows were left out: an output after a transform is not finite.")
    cluster = None if target.cluster is None else target.cluster[places][mask]
    if cluster is None:
        caveats.append(INDEPENDENT)
    metrics: list[Metric] = []
    dots: list[Dot] = []
    said = []
    right = answers.clean[mask] == truth[mask]
    for step, after in zip(steps, answers.after, strict=True):
        where = {"transform": step.label}
        stays = intervals.rate(after[mask] == answers.clean[mask], cluster=cluster)
        drop = replace(intervals.paired_rate_difference(right, after[mask] == truth[mask], cluster=cluster, seed=seed), null=0.0)
        metrics.append(metric("invariance_rate", stays, rules=rules, better="higher", slice=where))
        metrics.append(metric("augmented_accuracy_drop", drop, rules=rules, better="lower", slice=where, family="augmented_accuracy_drop"))
        alone = [one.name for one in steps].count(step.name) == 1  # then the name will do: a figure has little room
        dots.append(Dot(label=step.name if alone else step.label, value=stays.value, interval=stays.interval(rules.confidence), n=stays.n))
        said.append(
            f"{percent(stays.value)} of the answers stay under {step.label}, accuracy {signed(None if drop.value is None else -drop.value)}"
        )
    metrics += _equivariance(subject, evidence, context, steps, caveats)
    summary = "; ".join(said) + "."
    figure = Intervals(
        id="answers-that-stay",
        title="Answers that stay the same under the transforms of the training",
        how_to_read="1: no answer changes. What changes was either not absorbed in training, or means something else after the transform.",
        alt=summary,
        caption=f"n = {int(mask.sum())} target rows, paired; {rules.confidence:.0%} intervals; seed {seed}.",
        value_label="share of answers that stay",
        dots=tuple(dots),
        references=(Reference(value=1.0, label="all", role="null"),),
    )
    exhibits: list[Intervals | ImageGrid] = [figure]
    if (grid := _pictures(subject, evidence, answers, rows, steps, seed)) is not None:
        exhibits.append(grid)
    return Measurement(
        summary=summary,
        metrics=tuple(metrics),
        exhibits=tuple(exhibits),
        caveats=tuple(caveats),
        params={"rows": int(rows.size), "transforms": "; ".join(step.label for step in steps), "seed": seed, "batch_size": BATCH},
    )


def _keys(seed: int, ids: tuple[str, ...], rows: NDArray[np.int64]) -> list[tuple[object, ...]]:
    return [(seed, CODE, ids[int(row)]) for row in rows]


def _ask(subject: Subject, rows: NDArray[np.int64], steps: tuple[Augmentation, ...], context: Context) -> Answered:
    """Answers of the adapted model to the rows, as they are and after each transform; every sample is read once."""
    samples, spec = subject.target.samples, subject.adapted.preprocessing
    modality, n = samples.modality, rows.size
    clean, after = np.full(n, -1, dtype=np.int64), tuple(np.full(n, -1, dtype=np.int64) for _ in steps)
    for start in range(0, n, BATCH):
        part = np.arange(start, min(n, start + BATCH))
        raw = samples.read(rows[part])
        held = part[raw.readable]
        clean[held] = predicted_classes(subject.adapted, modality.encode(raw, spec))
        keys = _keys(context.seed, samples.ids, rows[part])
        for step, into in zip(steps, after, strict=True):
            into[held] = predicted_classes(subject.adapted, modality.encode(augmented(raw, step, keys), spec))
        context.progress(CODE, int(part[-1]) + 1, n)
    return Answered(clean, after)


# ---------------------------------------------------------------- maps


def _equivariance(
    subject: Subject, evidence: Evidence, context: Context, steps: tuple[Augmentation, ...], caveats: list[str]
) -> list[Metric]:
    """Rank correlation of the map of the moved input with the moved map, by transform and method."""
    geometric = [step for step in steps if step.geometric]
    if not geometric or not evidence.methods:
        return []
    if len(geometric) > MOST_GEOMETRIC:
        caveats.append(f"Maps were compared under the first {MOST_GEOMETRIC} of {len(geometric)} transforms that move pixels.")
    try:
        maps = maps_of(evidence)
    except (NotEvaluated, ModelError) as gap:
        caveats.append(f"Maps were not compared: {gap}.")
        return []
    out = []
    for step in geometric[:MOST_GEOMETRIC]:
        for method, whole in maps.found.items():
            a = whole.select(np.sort(np.argsort(priority(context.seed, whole.inputs.ids), kind="stable")[:MAP_SAMPLES]))
            where = {"transform": step.label, "method": method}
            context.progress(f"{CODE} maps of {method}", 0, 1)
            try:
                alike = _alike(subject, a, step, context.seed)
            except (DataError, ModelError) as error:
                caveats.append(f"Maps of {method} were not compared under {step.label}: {error}.")
                continue
            estimate = mean_over(alike, cluster_of(evidence, a.inputs.ids), bounds=(-1.0, 1.0), seed=context.seed)
            out.append(metric("attribution_equivariance", estimate, rules=context.rules, better="higher", slice=where))
    return out


def _alike(subject: Subject, a: Attribution, step: Augmentation, seed: int) -> NDArray[np.float64]:
    if a.inputs.tensor.ndim != 4 or a.values.ndim != 3:
        raise DataError("its values are not laid out in space")
    values = np.nan_to_num(a.values)
    keys = [(seed, CODE, sample) for sample in a.inputs.ids]
    tensor, there, inside = moved(a.inputs.tensor, values, step, keys)
    like = a.inputs
    # the ids of the samples: a stochastic method then draws alike for both
    inputs = Inputs(tensor, like.ids, like.modality, like.spec, like.modality.players(tensor, like.spec, seed=seed), like.background)
    again = again_with(subject.adapted, a, inputs, a.explained, seed=a.seed, half=True)
    first, second, kept = (pooled(part) for part in (np.nan_to_num(again.values), there, inside.astype(np.float64)))
    known = ~(a.blank | again.blank)
    out = np.full(len(a), np.nan)
    for i in np.flatnonzero(known):
        cells = kept[i] > 0.5
        if cells.sum() > 2:
            out[i] = rank_correlation(first[i][None, cells], second[i][None, cells])[0]
    return out


def _pictures(
    subject: Subject,
    evidence: Evidence,
    answers: Answered,
    rows: NDArray[np.int64],
    steps: tuple[Augmentation, ...],
    seed: int,
) -> ImageGrid | None:
    """Some samples whose answer a transform changes, before and after, if samples may be shown."""
    if evidence.samples == "off":
        return None
    samples, spec, names = subject.target.samples, subject.adapted.preprocessing, subject.adapted.classes
    modality, redacted = samples.modality, evidence.samples == "redacted"
    hashes = evidence.content_hashes("target")
    grid: list[GridRow] = []
    for step, after in zip(steps, answers.after, strict=True):
        changed = np.flatnonzero(answers.finite & (after != answers.clean))[: max(1, MOST_PICTURES // len(steps))]
        if changed.size == 0:
            continue
        raw = samples.read(rows[changed])
        pair = [modality.encode(raw, spec), modality.encode(augmented(raw, step, _keys(seed, samples.ids, rows[changed])), spec)]
        for i, at in enumerate(changed[raw.readable]):
            shown = [
                modality.picture(side[i], spec, title=title, redacted=redacted)
                for side, title in zip(pair, ("as it is", f"after {step.name}"), strict=True)
            ]
            pictures = tuple(p for p in shown if p is not None)
            if len(pictures) < 2:
                return None
            said = [str(c) if names is None else names[c] for c in (int(answers.clean[at]), int(after[at]))]
            row = int(rows[at])
            grid.append(
                GridRow(
                    id=short_id(hashes[row], samples.ids[row]),
                    facts=(("transform", step.label), ("answer", said[0]), ("answer after it", said[1])),
                    pictures=pictures,
                )
            )
    if not grid:
        return None
    return ImageGrid(
        id="augmented-pictures",
        title="Samples whose answer a transform of the training changes",
        how_to_read="Left as it is, right after the transform; below them the adapted model's two answers. Would a person still say the same?",
        alt=f"{len(grid)} samples before and after a transform.",
        caption="The first by hash order; as the model sees them.",
        rows=tuple(grid),
        samples="redacted" if redacted else "on",
    )


AUGMENTATION: tuple[Check, ...] = (augmentation_invariance,)
