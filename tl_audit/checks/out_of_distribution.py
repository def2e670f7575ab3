"""TLA802: does the adapted model notice inputs that are not its business? Any kind of data, through its modality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tl_audit.checks.base import Check, Context, check, metric
from tl_audit.checks.data import INDEPENDENT
from tl_audit.checks.wording import number
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures import intervals
from tl_audit.measures import out_of_distribution as measures
from tl_audit.measures.estimate import Estimate
from tl_audit.measures.sampling import bottom_k, split_by_cluster
from tl_audit.models import penultimate
from tl_audit.models.model import Model
from tl_audit.records.exhibits import Cell, Column, Dot, Intervals, Reference, Table
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject

CODE = "TLA802"
MOST_ROWS = 2000
NOISE_ROWS = 512
BATCH = 32
KEPT = 0.95
"""Share of the target that the cut of ``ood_fpr95`` keeps."""

CONTROL = "control:head"
NOISE = "uniform noise"
SCORES = ("max-probability", "energy", "nearness")
EASY = (
    "Uniform noise is made up here and unlike anything that a person would send by mistake: a model that notices it may still miss those. "
    "Give the audit a named outside set ([ood]) of what it may meet."
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """What models gave for one set of inputs. Rows whose outputs are not finite in any of them are left out.

    Attributes
    ----------
    logits, features : by model key, (N, C) and (N, D) float64
    unit : (N,) ids of the independent units, text
    clustered : whether several rows may share a unit
    """

    name: str
    logits: Mapping[str, Floats]
    features: Mapping[str, Floats]
    unit: NDArray[np.object_]
    clustered: bool

    def __len__(self) -> int:
        return len(self.unit)

    def select(self, rows: NDArray[np.bool_]) -> Seen:
        return Seen(
            self.name,
            {key: values[rows] for key, values in self.logits.items()},
            {key: values[rows] for key, values in self.features.items()},
            self.unit[rows],
            self.clustered,
        )


@check(
    CODE,
    "Out-of-distribution inputs",
    section="robustness",
    severity="medium",
    needs=("adapted", "target", "adapted@target"),
    runs_models=True,
)
def out_of_distribution(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Does the model notice inputs that are not its business?

    How it is measured: three scores of how familiar an input looks (the largest probability, the energy of the outputs, the distance to the 10th nearest
    training sample in the penultimate features) are compared between the target and a set from outside: the one that was named, else uniform noise, and the
    source where it holds none of the model's classes. The area under the ROC curve says how well a score tells the two apart; beside it stands the share of
    outside inputs that pass where the cut, set on one half of the target, keeps 95 % of it. The same for the head-only control says what the adaptation changed.

    Why it matters: a model that answers a picture of something else with confidence is believed.

    How to reduce the risk: refuse inputs whose score lies below the cut, train with examples from outside, choose the score that does best here.
    """
    rules, seed = context.rules, context.seed
    models, without = _models(subject)
    inside, whole = _of_domain(evidence, "target", tuple(models), seed)
    caveats = [] if len(inside) == whole else [f"{len(inside)} of {whole} usable target rows were used, chosen by hash."]
    outside = _outside(subject, evidence, models, context, caveats)
    reference, role, inside_near = _reference(evidence, inside, {one.name for one in outside}, seed, caveats)
    if not any(one.clustered for one in (inside, *outside)):
        caveats.append(INDEPENDENT)
    metrics: list[Metric] = []
    dots: list[Dot] = []
    cells: list[tuple[Cell, ...]] = []
    said = []
    for other in outside:
        parts = []
        for score in SCORES:
            ours = _familiar(score, "adapted", inside_near if score == "nearness" else inside, other, reference)
            theirs = None
            if CONTROL in models:
                theirs = _familiar(score, CONTROL, inside_near if score == "nearness" else inside, other, reference)
            found = _measured(ours, theirs, inside_near if score == "nearness" else inside, other, seed, without)
            where = {"set": other.name, "score": score}
            n = {"target": found.inside, "outside": len(other)}
            metrics.append(metric("ood_auroc", found.auc, rules=rules, better="higher", slice=where, n=n))
            metrics.append(metric("ood_fpr95", found.passed, rules=rules, better="lower", slice=where, n={"outside": found.passed.n}))
            metrics.append(metric("ood_auroc_change", found.change, rules=rules, better="higher", slice=where, n=n))
            label = f"{score}, {other.name}"
            if found.control is not None:
                dots.append(_dot(label, found.control, rules.confidence, "head-only control", hollow=True))
            dots.append(_dot(label, found.auc, rules.confidence, "adapted"))
            cells.append((other.name, score, found.auc.value, found.passed.value, found.kept, found.change.value))
            if found.auc.value is not None:
                parts.append(f"{score} {number(found.auc.value)}")
        said.append(f"Area under the curve against {other.name}: {', '.join(parts) or 'not defined'}")
        if worse := [score for score in SCORES if _below_half(metrics, other.name, score)]:
            said.append(f"by {' and '.join(worse)} it looks more familiar than the target (below 0.5)")
    summary = "; ".join(said) + "."
    figure = Intervals(
        id="outside-auc",
        title="How well each score tells the target from inputs from outside",
        how_to_read="1: every outside input looks less familiar than every target sample. 0.5: the score cannot tell. Hollow: the head-only control.",
        alt=summary,
        caption=f"n = {len(inside)} target rows, {', '.join(f'{len(one)} of {one.name}' for one in outside)}; {rules.confidence:.0%} intervals; seed {seed}.",
        value_label="area under the ROC curve",
        dots=tuple(dots),
        references=(Reference(value=0.5, label="cannot tell", role="null"),),
    )
    table = Table(
        id="outside-rates",
        title=f"What passes when the cut keeps {KEPT:.0%} of the target",
        how_to_read="Passing: outside inputs that look familiar enough. Kept: share of the target's other half above the same cut.",
        alt=summary,
        caption="The cut is set on one half of the target; intervals take it as given.",
        columns=(
            Column(name="outside set"),
            Column(name="score"),
            Column(name="area under the curve", format="number"),
            Column(name="passing", format="share"),
            Column(name="target kept", format="share"),
            Column(name="change against the head-only control", format="number"),
        ),
        rows=tuple(cells),
    )
    return Measurement(
        summary=summary,
        metrics=tuple(metrics),
        exhibits=(figure, table),
        caveats=tuple(caveats),
        params={
            "neighbours": measures.NEIGHBOURS, "reference": role, "reference_rows": None if reference is None else len(reference["adapted"]),
            "kept": KEPT, "control": CONTROL if CONTROL in models else None, "seed": seed,
        },
    )  # fmt: skip


# ---------------------------------------------------------------- what is compared


def _models(subject: Subject) -> tuple[dict[str, Model], str]:
    """The adapted model and the head-only control, or why there is none: a head on the frozen base is the base's probe."""
    control = subject.model(CONTROL)
    if control is None:
        return {"adapted": subject.adapted}, "no head-only control to compare with"
    if "head" in subject.same_as_adapted:
        return {"adapted": subject.adapted}, "the head-only control is the adapted model itself"
    return {"adapted": subject.adapted, CONTROL: control}, ""


def _of_domain(evidence: Evidence, role: str, keys: tuple[str, ...], seed: int) -> tuple[Seen, int]:
    """Outputs of the models on a domain, of at most 2000 rows chosen by hash; and how many rows could be used."""
    usable = np.flatnonzero(np.all([evidence.usable(key, role) for key in keys], axis=0))
    if usable.size == 0:
        raise NotEvaluated(f"usable rows of the {role} domain")
    ids = evidence.ids(role)
    rows = usable[bottom_k([ids[r] for r in usable], MOST_ROWS, seed)]
    cluster = evidence.cluster(role)
    unit = np.array([f"{role} {c}" for c in (ids if cluster is None else cluster)], dtype=object)[rows]
    logits = {key: np.asarray(evidence.logits(key, role)[rows], dtype=np.float64) for key in keys}
    features = {key: np.asarray(evidence.features(key, role)[rows], dtype=np.float64) for key in keys}
    return Seen(role, logits, features, unit, cluster is not None), int(usable.size)


def _outside(subject: Subject, evidence: Evidence, models: Mapping[str, Model], context: Context, caveats: list[str]) -> list[Seen]:
    if subject.ood is not None:
        try:
            found, whole = _of_domain(evidence, "ood", tuple(models), context.seed)
        except NotEvaluated as gap:
            raise NotEvaluated(f"outputs on the outside set: {gap}") from gap
        if len(found) < whole:
            caveats.append(f"{len(found)} of {whole} usable rows of the outside set were used, chosen by hash.")
        return [replace(found, name=subject.ood.name)]
    out = [_noise(subject, evidence, models, context)]
    caveats.append(EASY)
    if evidence.has("adapted", "source") and (strange := _without_our_classes(subject, evidence)):
        out.append(replace(_of_domain(evidence, "source", tuple(models), context.seed)[0], name="source"))
        caveats.append(f"The source holds none of the model's classes ({', '.join(strange[:3])}, ...) and serves as an outside set.")
    return out


def _without_our_classes(subject: Subject, evidence: Evidence) -> tuple[str, ...]:
    """Class names of the source where none of them is a class of the model, else ()."""
    try:
        names = evidence.classes("source")
    except NotEvaluated:
        return ()
    return () if set(names) & set(subject.classes) else tuple(names)


def _noise(subject: Subject, evidence: Evidence, models: Mapping[str, Model], context: Context) -> Seen:
    samples = subject.target.samples
    rows = np.flatnonzero(evidence.usable("adapted", "target"))
    ids = evidence.ids("target")
    rows = rows[bottom_k([ids[r] for r in rows], MOST_ROWS, context.seed)]
    logits: dict[str, list[Floats]] = {key: [] for key in models}
    features: dict[str, list[Floats]] = {key: [] for key in models}
    for start in range(0, NOISE_ROWS, BATCH):
        keys = [(context.seed, CODE, number) for number in range(start, min(NOISE_ROWS, start + BATCH))]
        for key, model in models.items():
            inputs = samples.modality.noise(samples, rows, model.preprocessing, keys=keys)
            given, inner = penultimate(model, inputs)
            logits[key].append(given.double().cpu().numpy())
            features[key].append(inner.double().cpu().numpy())
        context.progress(CODE, min(NOISE_ROWS, start + BATCH), NOISE_ROWS)
    joined = {key: np.concatenate(parts) for key, parts in logits.items()}
    inner_of = {key: np.concatenate(parts) for key, parts in features.items()}
    finite = np.all([np.isfinite(v).all(axis=1) for v in (*joined.values(), *inner_of.values())], axis=0)
    if not finite.any():
        raise NotEvaluated("finite outputs of the adapted model on uniform noise")
    unit = np.array([f"noise {i}" for i in range(NOISE_ROWS)], dtype=object)
    return Seen(NOISE, joined, inner_of, unit, clustered=False).select(finite)


def _reference(
    evidence: Evidence, inside: Seen, outside: set[str], seed: int, caveats: list[str]
) -> tuple[dict[str, Floats] | None, str, Seen]:
    """Features that distances are measured to, by model; where they come from; and the target rows that are none of them."""
    for role in ("train", "source"):
        if role not in outside and evidence.has("adapted", role):
            try:
                known = {"adapted": _of_domain(evidence, role, ("adapted",), seed)[0].features["adapted"]}
            except NotEvaluated:
                continue
            if CONTROL in inside.features and (frozen := _base_features(evidence, role, inside, seed)) is not None:
                known[CONTROL] = frozen
            if len(known["adapted"]) >= measures.NEIGHBOURS:
                return known, role, inside
    half = split_by_cluster(inside.unit, len(inside), seed)
    if min(half.sum(), (~half).sum()) < measures.NEIGHBOURS:
        return None, "none", inside
    caveats.append("Without training data or source, distances are measured to one half of the target, and the other half is compared.")
    return {key: values[half] for key, values in inside.features.items()}, "half of the target", inside.select(~half)


def _base_features(evidence: Evidence, role: str, inside: Seen, seed: int) -> Floats | None:
    """Features of the base in this role, if the head-only control has the base's: its own would cost one more pass over the training data."""
    try:
        usable = np.flatnonzero(evidence.usable(CONTROL, "target") & evidence.usable("base", "target"))[:64]
        a, b = (np.asarray(evidence.features(key, "target")[usable], dtype=np.float64) for key in (CONTROL, "base"))
        if a.shape != b.shape or not np.allclose(a, b, rtol=1e-3, atol=1e-3 * max(1e-12, float(np.abs(b).max(initial=0.0)))):
            return None
        return _of_domain(evidence, role, ("base",), seed)[0].features["base"]
    except NotEvaluated:
        return None


# ---------------------------------------------------------------- numbers


@dataclass(frozen=True)
class Found:
    """What one score says of one outside set. ``inside``: target rows compared; ``kept``: share of the target's other half above the cut."""

    auc: Estimate
    passed: Estimate
    change: Estimate
    control: Estimate | None
    kept: float | None
    inside: int


def _familiar(score: str, key: str, inside: Seen, outside: Seen, reference: Mapping[str, Floats] | None) -> tuple[Floats, Floats] | str:
    """(of the target, of the outside set) higher for what looks familiar; or why there is no such score."""
    if score == "nearness":
        if reference is None or key not in reference:
            return (
                "too few rows to measure distances to" if reference is None else "the control's features of the training data are not there"
            )
        return (
            measures.nearness(reference[key], inside.features[key]),
            measures.nearness(reference[key], outside.features[key]),
        )
    of = measures.max_probability if score == "max-probability" else measures.negative_energy
    pair = of(inside.logits[key]), of(outside.logits[key])
    if score == "energy" and float(np.ptp(np.concatenate(pair))) < 1e-5:
        return "the model gives probabilities: their energy is the same for every input"
    return pair


def _measured(
    ours: tuple[Floats, Floats] | str, theirs: tuple[Floats, Floats] | str | None, inside: Seen, outside: Seen, seed: int, without: str
) -> Found:
    n = len(inside) + len(outside)
    if isinstance(ours, str):
        return Found(
            Estimate(None, n, ours, null=0.5),
            Estimate(None, len(outside), ours),
            Estimate(None, n, ours, null=0.0),
            None,
            None,
            len(inside),
        )
    strange = np.r_[np.zeros(len(inside), dtype=bool), np.ones(len(outside), dtype=bool)]
    unit = np.concatenate([inside.unit, [f"outside {u}" for u in outside.unit]]) if inside.clustered or outside.clustered else None
    auc = intervals.auc(strange, -np.concatenate(ours), cluster=unit, seed=seed)
    half = split_by_cluster(inside.unit, len(inside), seed)
    passed, kept = Estimate(None, len(outside), "one target unit only: no half to set the cut on"), None
    if half.any() and (~half).any():
        cut = measures.cut_keeping(ours[0][half], KEPT)
        passed = measures.false_acceptance(cut, ours[1], cluster=outside.unit if outside.clustered else None)
        passed, kept = replace(passed, null=KEPT), float((ours[0][~half] >= cut).mean())
    if theirs is None or isinstance(theirs, str):
        change = Estimate(None, n, without if theirs is None else theirs, null=0.0)
        return Found(auc, passed, change, None, kept, len(inside))
    change = measures.auc_change(strange, -np.concatenate(ours), -np.concatenate(theirs), cluster=unit)
    control = intervals.auc(strange, -np.concatenate(theirs), cluster=unit, seed=seed)
    return Found(auc, passed, change, control, kept, len(inside))


def _below_half(metrics: list[Metric], name: str, score: str) -> bool:
    """Whether the whole interval of this area under the curve lies below 0.5."""
    wanted = {"set": name, "score": score}
    return any(m.name == "ood_auroc" and m.slice == wanted and m.interval is not None and m.interval[1] < 0.5 for m in metrics)


def _dot(label: str, estimate: Estimate, confidence: float, series: str, *, hollow: bool = False) -> Dot:
    return Dot(
        label=label,
        value=estimate.value,
        interval=estimate.interval(confidence),
        series=series,
        n=estimate.n,
        hollow=hollow,
        note=estimate.reason,
    )


OUT_OF_DISTRIBUTION: tuple[Check, ...] = (out_of_distribution,)
