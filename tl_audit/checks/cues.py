"""TLA608: does a cue that the base relied on still steer the adapted model? Any kind of data, through its modality."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.checks.base import Check, Context, check, metric
from tl_audit.checks.data import INDEPENDENT, short_id
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence, missing_input
from tl_audit.measures import intervals, permutation
from tl_audit.measures.estimate import Estimate
from tl_audit.measures.sampling import bottom_k, generator
from tl_audit.modality.base import Cue
from tl_audit.modality.regions import needs_regions, with_regions
from tl_audit.models import borrowed, outputs
from tl_audit.models.model import Model
from tl_audit.records.exhibits import Bar, Bars, GridRow, ImageGrid, Picture
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Domain, Subject

CODE = "TLA608"
MOST_ROWS = 2000
BATCH = 64
MOST_PICTURES = 6
PER_CUE = ("trigger_flip_rate", "trigger_placebo", "trigger_over_placebo", "trigger_excess", "trigger_target_share")


@dataclass(frozen=True)
class Answers:
    """Predicted class of each row: as it is, with each cue, with each placebo; -1 where the output is not finite."""

    clean: NDArray[np.int64]
    cue: dict[str, NDArray[np.int64]]
    placebo: dict[str, NDArray[np.int64]]
    unmoved: dict[str, int]
    "rows whose model input is the same with the cue: it lies outside the crop, or the column holds the value already"

    @property
    def finite(self) -> NDArray[np.bool_]:
        parts = [self.clean, *self.cue.values(), *self.placebo.values()]
        return np.asarray(np.all([p >= 0 for p in parts], axis=0), dtype=np.bool_)

    def flips(self, cue: str, rows: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(changed by the cue, changed by its placebo) of the rows."""
        return (self.cue[cue] != self.clean)[rows], (self.placebo[cue] != self.clean)[rows]


@check("TLA608", "Bias transfer probe", section="fairness", severity="high", needs=("adapted", "target", "cues"), runs_models=True)
def bias_transfer_probe(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Does a declared cue, which has nothing to do with the question, steer the adapted model, and was that inherited from the base?

    How it is measured: the cue is put into every target sample, and beside it a placebo: something random of the same area (of a background: a
    random colour in its place), or the column's own values permuted. Compared are the shares of answers that change, paired by sample, and the same in a control trained without the base.

    Why it matters: a model that answers to a watermark, a marker or a name will do so again wherever these occur, and no test set without
    the cue shows it.

    How to reduce the risk: remove the cue from the training data or balance it over the classes, augment with it, or use another base.
    """
    if not subject.cues:
        raise NotEvaluated("cues: declare them as [[cues]] in audit.toml or Subject(cues=...)")
    blind = tuple(cue for cue in subject.cues if needs_regions(cue) and subject.target.regions is None)
    cues = tuple(cue for cue in subject.cues if cue not in blind)
    if not cues:
        raise NotEvaluated(missing_input("target.regions"))
    rules, seed = context.rules, context.seed
    usable = np.flatnonzero(evidence.usable("adapted" if evidence.has("adapted", "target") else None, "target"))
    if usable.size == 0:
        raise NotEvaluated("usable rows of the target")
    caveats = []
    rows = usable
    if usable.size > MOST_ROWS:
        ids = evidence.ids("target")
        rows = usable[bottom_k([ids[r] for r in usable], MOST_ROWS, seed)]
        caveats.append(f"{rows.size} of {usable.size} usable target rows were probed, chosen by hash.")
    kind, control = _control(subject)
    probed = {"adapted": subject.adapted} | ({} if control is None else {kind: control})
    answers = _probe(subject.target, rows, probed, cues, context)
    mask = np.all([a.finite for a in answers.values()], axis=0)
    if not mask.any():
        raise NotEvaluated("finite outputs of the adapted model and its control on the probed rows")
    if not mask.all():
        caveats.append(f"{int((~mask).sum())} rows were left out: an output with a cue is not finite.")
    cluster = evidence.cluster("target")
    ids_of = None if cluster is None else np.asarray(cluster)[rows][mask]
    if cluster is None:
        caveats.append(INDEPENDENT)
    if control is None:
        caveats.append(kind)
    around = {cue.name for cue in cues if needs_regions(cue)}
    for name, unmoved in answers["adapted"].unmoved.items():
        if unmoved:
            caveats.append(
                f"Cue {name!r} leaves {unmoved} of {rows.size} model inputs as they were (already there, or cut off by the preprocessing"
                + (", or a sample without a region)." if name in around else ").")
            )
    metrics: list[Metric] = []
    bars: list[Bar] = []
    said = []
    names = subject.adapted.classes
    for cue in cues:
        where = {"cue": cue.name}
        hit, noise = answers["adapted"].flips(cue.name, mask)
        flip, placebo = intervals.rate(hit, cluster=ids_of), intervals.rate(noise, cluster=ids_of)
        over = intervals.paired_rate_difference(hit, noise, cluster=ids_of, seed=seed)
        metrics.append(metric("trigger_flip_rate", flip, rules=rules, better="lower", slice=where))
        metrics.append(metric("trigger_placebo", placebo, rules=rules, slice=where))
        metrics.append(metric("trigger_over_placebo", over, rules=rules, better="lower", slice=where, family="trigger_over_placebo"))
        excess, theirs = Estimate(None, int(mask.sum()), kind, null=0.0), None
        if control is not None:
            theirs = answers[kind].flips(cue.name, mask)
            excess = _excess((hit, noise), theirs, ids_of, seed)
        metrics.append(metric("trigger_excess", excess, rules=rules, better="lower", slice=where, family="trigger_excess"))
        share, favourite = _favourite(answers["adapted"], cue.name, mask, ids_of)
        metrics.append(metric("trigger_target_share", share, rules=rules, slice=where))
        bars += _bars(cue.name, "adapted", flip, placebo, rules.confidence)
        if theirs is not None:
            pair = [intervals.rate(t, cluster=ids_of) for t in theirs]
            bars += _bars(cue.name, kind, pair[0], pair[1], rules.confidence)
        said.append(_sentence(cue.name, over, excess, favourite, names, kind if control is not None else None, rules.confidence))
    for cue in blind:
        reason = f"the cue is put around the thing itself and needs {missing_input('target.regions')}"
        for name in PER_CUE:
            metrics.append(metric(name, Estimate(None, 0, reason), rules=rules, slice={"cue": cue.name}, family=name))
        caveats.append(f"Cue {cue.name!r} was not probed: {reason}.")
    figure = Bars(
        id="cue-flips",
        title="How many answers a cue changes",
        how_to_read="Cue against placebo: only what the cue changes beyond something random of its size counts. The control never saw the base.",
        alt=" ".join(said),
        caption=f"n = {int(mask.sum())} target rows, paired; {rules.confidence:.0%} intervals; seed {seed}.",
        value_label="share of answers that change",
        bars=tuple(bars),
    )
    exhibits: list[Bars | ImageGrid] = [figure]
    grid = _pictures(subject, cues, evidence, answers["adapted"], rows, seed)
    if grid is not None:
        exhibits.append(grid)
    return Measurement(
        summary=" ".join(said),
        metrics=tuple(metrics),
        exhibits=tuple(exhibits),
        caveats=tuple(caveats),
        params={"rows": int(rows.size), "control": kind if control is not None else None, "seed": seed, "batch_size": BATCH},
    )


def _control(subject: Subject) -> tuple[str, Model | None]:
    """The control that never saw the base, or the reason why there is none. A head-only control has the base's features, and so its cues."""
    model = subject.controls.get("scratch")
    if model is not None and "scratch" in subject.same_as_adapted:
        return "the scratch control is the adapted model itself: it cannot tell what was inherited", None
    if model is not None:
        return "control:scratch", model
    rest = " (the head-only control has the base's features itself)" if "head" in subject.controls else ""
    return f"no control trained without the base (scratch){rest}: whether the cue was inherited cannot be told", None


def _probe(
    target: Domain, rows: NDArray[np.int64], models: dict[str, Model], cues: tuple[Cue, ...], context: Context
) -> dict[str, Answers]:
    """Predictions of each model on the rows, as they are and with each cue and placebo; every sample is read once."""
    modality = target.samples.modality
    n = rows.size
    answers = {
        key: Answers(
            np.full(n, -1), {c.name: np.full(n, -1) for c in cues}, {c.name: np.full(n, -1) for c in cues}, {c.name: 0 for c in cues}
        )
        for key in models
    }
    # mixed, so that a permuted column draws from the whole domain even where rows are sorted by class
    order = generator(context.seed, CODE, "order").permutation(n)
    # whole batches of nearly one size: a last batch of one row could not be permuted
    parts = np.array_split(order, max(1, -(-n // BATCH)))
    done = 0
    for part in parts:
        raw = with_regions(target.samples.read(rows[part]), target.regions, cues)
        held = part[raw.readable]
        versions = [(raw, "clean", "")]
        for cue in cues:
            versions.append((modality.apply_cue(raw, cue, placebo=False, key=(context.seed, CODE)), "cue", cue.name))
            versions.append((modality.apply_cue(raw, cue, placebo=True, key=(context.seed, CODE)), "placebo", cue.name))
        for key, model in models.items():
            plain = modality.encode(raw, model.preprocessing)
            for batch, form, name in versions:
                inputs = modality.encode(batch, model.preprocessing)
                into = answers[key].clean if form == "clean" else getattr(answers[key], form)[name]
                into[held] = predicted_classes(model, inputs)
                if form == "cue" and len(inputs):
                    answers[key].unmoved[name] += int((inputs == plain).flatten(1).all(dim=1).sum())
        done += part.size
        context.progress(CODE, done, n)
    return answers


def predicted_classes(model: Model, inputs: torch.Tensor) -> NDArray[np.int64]:
    """(B,) predicted class, -1 where the output is not finite."""
    if len(inputs) == 0:
        return np.zeros(0, dtype=np.int64)
    with borrowed(model) as net, torch.no_grad():
        device = next((p.device for p in net.parameters()), torch.device("cpu"))
        logits = outputs(net(inputs.to(device)), model.output).cpu()
    finite = torch.isfinite(logits).all(dim=1)
    return torch.where(finite, torch.nan_to_num(logits).argmax(dim=1), -1).numpy().astype(np.int64)


Flips = tuple[NDArray[np.bool_], NDArray[np.bool_]]


def _excess(ours: Flips, theirs: Flips, cluster: NDArray[np.object_] | None, seed: int) -> Estimate:
    """[flip(cue) - flip(placebo)] of the adapted model minus that of the control, per sample (-2..2, null 0)."""
    difference = (ours[0].astype(float) - ours[1]) - (theirs[0].astype(float) - theirs[1])
    estimate = intervals.mean(difference, cluster=cluster, bounds=(-2.0, 2.0))
    return replace(estimate, null=0.0, p_value=permutation.sign_flip_p(difference, cluster=cluster, seed=seed))


def _favourite(answers: Answers, cue: str, mask: NDArray[np.bool_], cluster: NDArray[np.object_] | None) -> tuple[Estimate, int | None]:
    """Share of changed answers that go to the class most often arrived at; null: that class's share among the answers without the cue."""
    before, after = answers.clean[mask], answers.cue[cue][mask]
    changed = after != before
    if not changed.any():
        return Estimate(None, 0, "the cue changes no answer"), None
    favourite = int(np.bincount(after[changed]).argmax())
    share = intervals.rate(after[changed] == favourite, cluster=None if cluster is None else cluster[changed])
    return replace(share, null=float((before == favourite).mean())), favourite


def _bars(cue: str, model: str, flip: Estimate, placebo: Estimate, confidence: float) -> list[Bar]:
    return [
        Bar(label=f"{cue}, {model}", value=flip.value, series="cue", interval=flip.interval(confidence), n=flip.n),
        Bar(label=f"{cue}, {model}", value=placebo.value, series="placebo", interval=placebo.interval(confidence), n=placebo.n),
    ]


def _sentence(
    cue: str, over: Estimate, excess: Estimate, favourite: int | None, names: tuple[str, ...] | None, control: str | None, confidence: float
) -> str:
    """What was measured for one cue; says "not inherited" where the control follows it as well."""
    text = f"Cue {cue!r} changes {over.value or 0.0:+.1%} more answers than its placebo"
    interval = over.interval(confidence)
    steers = interval is not None and interval[0] > 0
    if steers and favourite is not None:
        text += f", mostly to {names[favourite]!r}" if names is not None and favourite < len(names) else f", mostly to class {favourite}"
    if control is None or excess.value is None or not steers:
        return text + "."
    beyond = excess.interval(confidence)
    if beyond is not None and beyond[0] > 0:
        return text + f"; {excess.value:+.1%} beyond the {control}: part of it comes with the base."
    return text + f"; the {control} follows it as well ({excess.value:+.1%} beyond it): not shown to be inherited."


def _pictures(
    subject: Subject, cues: tuple[Cue, ...], evidence: Evidence, answers: Answers, rows: NDArray[np.int64], seed: int
) -> ImageGrid | None:
    """Some samples whose answer a cue changes, as they are and with the cue, if samples may be shown."""
    if evidence.samples == "off":
        return None
    samples, spec, names = subject.target.samples, subject.adapted.preprocessing, subject.adapted.classes
    modality, redacted = samples.modality, evidence.samples == "redacted"
    hashes = evidence.content_hashes("target")
    grid: list[GridRow] = []
    for cue in cues:
        changed = np.flatnonzero(answers.finite & (answers.cue[cue.name] != answers.clean))[: max(1, MOST_PICTURES // len(cues))]
        if changed.size == 0:
            continue
        raw = with_regions(samples.read(rows[changed]), subject.target.regions, (cue,))
        plain = modality.encode(raw, spec)
        marked = modality.encode(modality.apply_cue(raw, cue, placebo=False, key=(seed, CODE)), spec)
        for i, at in enumerate(changed[raw.readable]):
            pictures: list[Picture] = []
            for title, tensor in (("as it is", plain[i]), (f"with {cue.name}", marked[i])):
                picture = modality.picture(tensor, spec, title=title, redacted=redacted)
                if picture is None:
                    return None
                pictures.append(picture)
            said = [str(c) if names is None else names[c] for c in (int(answers.clean[at]), int(answers.cue[cue.name][at]))]
            row = int(rows[at])
            grid.append(
                GridRow(
                    id=short_id(hashes[row], samples.ids[row]),
                    facts=(("cue", cue.name), ("answer", said[0]), ("answer with the cue", said[1])),
                    pictures=tuple(pictures),
                )
            )
    if not grid:
        return None
    return ImageGrid(
        id="cue-pictures",
        title="Samples whose answer the cue changes",
        how_to_read="Left as it is, right with the cue; below them the adapted model's two answers.",
        alt=f"{len(grid)} samples before and after the cue was put in.",
        caption="The first by hash order; as the model sees them.",
        rows=tuple(grid),
        samples="redacted" if redacted else "on",
    )


CUES: tuple[Check, ...] = (bias_transfer_probe,)
