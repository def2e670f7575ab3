"""Is the model meant and fed as it was made? The order of its outputs, and the preparation of its inputs, against data, record and base."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.checks.base import Check, Context, check, exact, metric
from tl_audit.checks.data import INDEPENDENT
from tl_audit.checks.wording import counted, percent, signed
from tl_audit.errors import DataError, NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures import classification, intervals
from tl_audit.measures.estimate import Estimate
from tl_audit.measures.sampling import bottom_k, split_by_cluster
from tl_audit.models import borrowed, outputs
from tl_audit.models.model import Model
from tl_audit.policy import Rules
from tl_audit.policy.words import listed
from tl_audit.records.adaptation import AdaptationRecord
from tl_audit.records.exhibits import Cell, Column, Heatmap, Table
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.records.preprocessing import InputSpec, Preprocessing, TableEncoding
from tl_audit.subject import Subject

MOST_LISTED = 20
MOST_CLASSES_IN_GRID = 20
MOST_ROWS = 1000  # probed with the other preparation; a share of 0.02 is then known to about 0.01
MOST_REPEATED = 256  # one answer that flips by rounding is then below the failing limit of one in a hundred
BATCH = 64
SMALL_BATCH = 8
ABSENT = "absent"


# TLA107 ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Class names of the adapted model held against those of somebody else."""

    against: str
    mismatches: tuple[str, ...]
    "one sentence part for each name that disagrees"
    n: int
    "names compared"


@check("TLA107", "Label order", section="provenance", severity="critical", needs=("adapted", "target"), multiplicity="none")
def label_order(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Do the model's outputs mean the classes that the data mean?

    How it is measured: class names are compared as text (Unicode NFC) with those of the target, of the adaptation record and, where its head was
    kept, of the base. Then the renaming of outputs that fits the labels best is found on one half of the labelled target rows (whole clusters) by
    linear assignment, and on the other half its accuracy is compared with that of the names as given, paired by row.

    Why it matters: a list of names in another order than the outputs makes every answer wrong in a way that looks like a bad model.

    How to reduce the risk: keep the class list with the weights, name classes in files instead of numbers, and never rely on the sort order of folders.
    """
    rules = context.rules
    ours, theirs = subject.adapted.classes, _classes_of(evidence, "target")
    if not ours and theirs is None:
        raise NotEvaluated("class names: neither the adapted model nor the target names its classes")
    assumed = bool(subject.adapted.facts.get("classes_assumed"))
    missing = [who for who, gone in (("the adapted model", not ours or assumed), ("the target", theirs is None)) if gone]
    compared = _comparisons(subject, evidence, None if assumed else ours, theirs)
    metrics: list[Metric] = [exact("class_names_missing", len(missing), n={"sides": 2}, better="lower", null=0.0)]
    for one in compared:
        metrics.append(
            exact(
                "class_name_mismatch",
                len(one.mismatches),
                n={"names": one.n},
                better="lower",
                slice={"against": one.against},
                null=0.0,
            )
        )
    unused = [] if ours is None or theirs is None else [c for c in ours if _same(c) not in {_same(t) for t in theirs}]
    if ours and theirs is not None:
        metrics.append(exact("class_names_unused", len(unused), n={"names": len(ours)}))
    caveats = _name_caveats(ours, theirs, missing, assumed=assumed)
    if unused:
        caveats.append(f"The target does not use {len(unused)} of the model's {len(ours or ())} classes: {listed(unused, most=5)}.")
    fit = _renaming(evidence, ours or (), context.seed)
    for name, estimate, better in (
        ("accuracy_identity", fit.identity, "higher"),
        ("accuracy_best_permutation", fit.best, None),
        ("permutation_gain", fit.gain, "lower"),
    ):
        metrics.append(metric(name, estimate, rules=rules, better=better))  # type: ignore[arg-type]  # one of lower, higher, None
    caveats += fit.caveats
    wrong = [part for one in compared for part in one.mismatches]
    summary = _order_sentence(compared, missing, wrong, fit, rules)
    exhibits: list[Table | Heatmap] = []
    table = _map_table(ours or (), theirs, compared, fit)
    if table is not None:
        exhibits.append(table)
    if fit.moved and fit.counts is not None and len(ours or ()) <= MOST_CLASSES_IN_GRID:
        exhibits.append(_confusion(ours or (), fit))
    return Measurement(
        summary=summary, metrics=tuple(metrics), exhibits=tuple(exhibits), caveats=tuple(caveats), params={"seed": context.seed}
    )


def _same(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _classes_of(evidence: Evidence, role: str) -> tuple[str, ...] | None:
    try:
        return evidence.classes(role)
    except NotEvaluated:
        return None


def _comparisons(
    subject: Subject, evidence: Evidence, ours: tuple[str, ...] | None, theirs: tuple[str, ...] | None
) -> tuple[Comparison, ...]:
    """Names that disagree: as a set with the target, whose labels are matched by name; position by position with the record and a kept head."""
    if not ours:
        return ()
    out = []
    if theirs is not None:
        known = {_same(c) for c in ours}
        strange = [c for c in theirs if _same(c) not in known]
        out.append(Comparison("target", tuple(f"the target's class {c!r} is not among the model's" for c in strange), len(theirs)))
    record = subject.record
    if record is not None and record.classes is not None:
        out.append(_by_position(ours, record.classes, "record", "of the record"))
    if record is not None and record.class_source == "base" and record.base_classes is not None:
        out.append(_by_position(ours, record.base_classes, "base", "of the base, whose head was kept"))
    if evidence.has("adapted", "target"):
        width = evidence.probabilities("adapted", "target").shape[1]
        wrong = () if width == len(ours) else (f"the model has {width} outputs and {len(ours)} class names",)
        out.append(Comparison("outputs", wrong, len(ours)))
    return tuple(out)


def _by_position(ours: Sequence[str], theirs: Sequence[str], against: str, whose: str) -> Comparison:
    parts = []
    for i in range(max(len(ours), len(theirs))):
        here = _same(ours[i]) if i < len(ours) else None
        there = _same(theirs[i]) if i < len(theirs) else None
        if here != there:
            parts.append(f"output {i} is {here!r} here and {there!r} in the list {whose}")
    return Comparison(against, tuple(parts), max(len(ours), len(theirs)))


def _name_caveats(ours: tuple[str, ...] | None, theirs: tuple[str, ...] | None, missing: Sequence[str], *, assumed: bool) -> list[str]:
    out = []
    if assumed:
        out.append("The model names no classes: those of the target were taken, in the target's order. A person must confirm them.")
    elif missing:
        out.append(f"{' and '.join(missing)} name no classes.".replace("the ", "The ", 1))
    if ours and theirs is not None and not assumed:
        unlike = [c for c in theirs if c not in ours and _same(c) in {_same(o) for o in ours}]
        if unlike:
            out.append(
                f"Names that differ in their Unicode form only: {listed([repr(c) for c in unlike], most=5)}. "
                "They were taken as equal here; their rows cannot be judged elsewhere until both are written alike."
            )
        common = [_same(c) for c in ours if _same(c) in {_same(t) for t in theirs}]
        if common != [_same(t) for t in theirs if _same(t) in set(common)]:
            out.append(
                "The target lists its classes in another order than the model's outputs. Here labels are matched by name, so nothing moves; "
                "a program that reads outputs by the data's order would be wrong."
            )
    return out


@dataclass(frozen=True)
class Renaming:
    """The renaming of outputs that fits one half of the rows best, measured on the other half.

    ``moved`` : output -> class that it would be renamed to, where these differ. ``counts`` : (C, C) of all rows, true by predicted.
    """

    identity: Estimate
    best: Estimate
    gain: Estimate
    moved: Mapping[int, int]
    counts: NDArray[np.int64] | None = None
    fitted: int = 0
    caveats: tuple[str, ...] = ()


def _no_renaming(reason: str, n: int = 0) -> Renaming:
    gone = Estimate(None, n, reason, null=0.0)
    return Renaming(
        Estimate(None, n, reason),
        Estimate(None, n, reason),
        gone,
        {},
        caveats=(f"The order of the outputs was not held against labels: {reason}.",),
    )


def _renaming(evidence: Evidence, classes: tuple[str, ...], seed: int) -> Renaming:
    try:
        truth = evidence.truth("adapted", "target")
        usable = evidence.usable("adapted", "target")
        predicted = evidence.predictions("adapted", "target")
        width = evidence.probabilities("adapted", "target").shape[1]
    except NotEvaluated as gap:
        return _no_renaming(f"it needs {gap}")
    rows = np.flatnonzero(usable & (truth >= 0))
    if width != len(classes):
        return _no_renaming(f"the model has {width} outputs and {len(classes)} class names", rows.size)
    if rows.size == 0:
        return _no_renaming("no labelled target row has a finite output")
    cluster = evidence.cluster("target")
    ids = None if cluster is None else np.asarray(cluster)[rows]
    return renaming(truth[rows], predicted[rows], classes=len(classes), cluster=ids, seed=seed)


def renaming(
    truth: NDArray[np.int64], predicted: NDArray[np.int64], *, classes: int, cluster: NDArray[Any] | None = None, seed: int = 0
) -> Renaming:
    """Fit the best one-to-one renaming of outputs on one half of the rows and measure its gain in accuracy on the other.

    The best of C! renamings fits any data better than the identity does, by chance alone; on rows that it was not fitted to, that advantage is gone.

    Parameters
    ----------
    truth, predicted : (N,) class numbers in the model's output order
    cluster : (N,) ids, None where rows are independent; clusters are never split between the halves

    Returns
    -------
    Renaming
        ``gain`` = accuracy renamed - accuracy as named (-1..1, null 0, [I3], with clusters [I5])

    References
    ----------
    Crouse (2016). On implementing 2D rectangular assignment algorithms. IEEE Transactions on Aerospace and Electronic Systems 52.
    """
    from scipy.optimize import linear_sum_assignment

    n = truth.size
    if np.unique(truth).size < 2:
        return _no_renaming("fewer than two classes occur among the labelled target rows", n)
    chosen = split_by_cluster(cluster, n, seed)
    fit, held = np.flatnonzero(chosen), np.flatnonzero(~chosen)
    if fit.size == 0 or held.size == 0:
        return _no_renaming("all labelled target rows belong to one cluster, which cannot be split into halves", n)
    counts = classification.confusion_matrix(truth[fit], predicted[fit], classes=classes).astype(np.float64)
    # less than one row in all: among renamings that fit equally well the one that renames least is taken
    counts += np.eye(classes) * (0.5 / classes)
    true, output = linear_sum_assignment(counts, maximize=True)
    to = np.empty(classes, dtype=np.int64)
    to[output] = true
    ids = None if cluster is None else np.asarray(cluster)[held]
    as_named, renamed = predicted[held] == truth[held], to[predicted[held]] == truth[held]
    seen = set(np.unique(predicted[fit]).tolist())
    return Renaming(
        intervals.rate(as_named, cluster=ids),
        intervals.rate(renamed, cluster=ids),
        intervals.paired_rate_difference(renamed, as_named, cluster=ids, seed=seed),
        {c: int(to[c]) for c in range(classes) if to[c] != c and c in seen},
        classification.confusion_matrix(truth, predicted, classes=classes),
        int(fit.size),
        () if cluster is not None else (INDEPENDENT,),
    )


def _order_sentence(compared: Sequence[Comparison], missing: Sequence[str], wrong: Sequence[str], fit: Renaming, rules: Rules) -> str:
    parts = []
    if missing:
        parts.append(f"Class names are missing: {' and '.join(missing)} name none.")
    if wrong:
        parts.append(f"{counted(len(wrong), 'class name')} {'disagrees' if len(wrong) == 1 else 'disagree'}: {listed(wrong, most=3)}.")
    elif compared:
        names = [f"the {one.against}" for one in compared if one.against != "outputs"]
        if names:
            parts.append(f"Class names agree with those of {' and '.join(names)}.")
    if fit.gain.value is None:
        parts.append(f"The order of the outputs was not held against labels: {fit.gain.reason}.")
        return " ".join(parts)
    interval = fit.gain.interval(rules.confidence)
    held = f"{percent(fit.identity.value)} of {fit.gain.n} held-out rows are right as named"
    if not fit.moved:
        parts.append(f"{held}; no renaming of outputs fits the labels better.")
    else:
        between = "" if interval is None else f" ({signed(interval[0])} to {signed(interval[1])})"
        parts.append(
            f"{held}; the renaming that fits the other half best renames {counted(len(fit.moved), 'output')} and changes accuracy by {signed(fit.gain.value)}{between}."
        )
    return " ".join(parts)


def _map_table(ours: Sequence[str], theirs: Sequence[str] | None, compared: Sequence[Comparison], fit: Renaming) -> Table | None:
    """Outputs whose names disagree or would be renamed, or the whole list where it is short."""
    if not ours:
        return None
    wanted = None if theirs is None else {_same(c) for c in theirs}
    notes = {c: "not used by the target" for c in range(len(ours)) if wanted is not None and _same(ours[c]) not in wanted}
    rows: list[tuple[Cell, ...]] = []
    order = sorted(range(len(ours)), key=lambda c: (c not in fit.moved, c not in notes, c))
    for c in order[:MOST_LISTED]:
        total = None if fit.counts is None else int(fit.counts[:, c].sum())
        share = None if fit.counts is None or not total else float(fit.counts[c, c] / total)
        rows.append((c, ours[c], ours[fit.moved[c]] if c in fit.moved else None, total, share, notes.get(c)))
    for part in (p for one in compared for p in one.mismatches):
        if len(rows) >= 2 * MOST_LISTED:
            break
        rows.append((None, None, None, None, None, part))
    return Table(
        id="label-map",
        title="Outputs and the classes they stand for"
        if not fit.moved
        else f"{len(fit.moved)} outputs fit the labels better under another name",
        how_to_read="Better name: what the output would be called if the labels of one half of the rows decided. Empty: its own name fits best.",
        alt=f"{len(ours)} outputs with their names; {len(fit.moved)} fit another name better.",
        caption=f"{min(len(ours), MOST_LISTED)} of {len(ours)} outputs shown; fitted on {fit.fitted} rows, counts over all labelled target rows.",
        columns=(
            Column(name="output", format="count"),
            Column(name="name"),
            Column(name="better name"),
            Column(name="answers", format="count"),
            Column(name="right as named", format="share"),
            Column(name="note"),
        ),
        rows=tuple(rows),
    )


def _confusion(ours: tuple[str, ...], fit: Renaming) -> Heatmap:
    assert fit.counts is not None
    totals = fit.counts.sum(axis=1)
    shares = tuple(tuple(None if totals[i] == 0 else float(v / totals[i]) for v in line) for i, line in enumerate(fit.counts.tolist()))
    return Heatmap(
        id="label-confusion",
        title="True classes against the names of the outputs",
        how_to_read="With the right order the diagonal is full. Full cells beside it show which names belong to which output.",
        alt=f"Confusion grid of {len(ours)} classes; {len(fit.moved)} outputs fit another name better.",
        caption=f"n = {int(totals.sum())} target samples, adapted model.",
        row_label="true class",
        column_label="name of the output",
        rows=ours,
        columns=ours,
        values=shares,
        text=tuple(tuple(str(int(v)) for v in line) for line in fit.counts),
        value_label="share of the true class",
        value_range=(0.0, 1.0),
    )


# TLA108 ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """One setting of the preparation of inputs that differs."""

    name: str
    here: str
    there: str


@dataclass(frozen=True)
class Other:
    """Another preparation to compare with: whose it is, and which of its settings the plan declares to be different."""

    against: str
    spec: InputSpec | None
    declared: frozenset[str]


@dataclass(frozen=True)
class Probe:
    """Answers of the adapted model to the same rows under both preparations."""

    flips: Estimate
    most: float | None
    reason: str | None = None
    left_out: int = 0


@check("TLA108", "Preprocessing parity", section="provenance", severity="high", needs=("adapted", "target"), runs_models=True)
def preprocessing_parity(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Are the inputs prepared for this audit as they were in the adaptation and for the base?

    How it is measured: size, crop, interpolation, mean, deviation, channels and rotation rule of pictures, or columns, scaling, fill values and
    categories of tables, are compared setting by setting with the adaptation record and with the base. Where they differ the adapted model
    answers target rows prepared in both ways, and the share of answers that change is measured.

    Why it matters: a model that is fed otherwise than it was trained loses accuracy without any error, and the loss looks like domain shift.

    How to reduce the risk: store the preparation with the weights, load it instead of typing it again, and declare in the plan what is changed on purpose.
    """
    others = _others(subject)
    if not others:
        raise NotEvaluated(
            "how the base or the adaptation prepared its inputs: an adaptation record that says so, or preprocessing = {...} in [base]"
        )
    here = subject.adapted.preprocessing
    metrics: list[Metric] = []
    caveats: list[str] = []
    table: list[tuple[Cell, ...]] = []
    said = []
    probes: dict[str, Probe] = {}
    for other in others:
        found = differences(here, other.spec)
        own = [d for d in found if d.name not in other.declared]
        planned = [d for d in found if d.name in other.declared]
        where = {"against": other.against}
        n = {"settings": _settings(here, other.spec)}
        metrics.append(exact("preprocessing_differences", len(own), n=n, better="lower", slice=where, null=0.0))
        if other.declared:
            metrics.append(exact("preprocessing_differences_declared", len(planned), n=n, slice=where))
        for d in found[:MOST_LISTED]:
            table.append((other.against, d.name, d.here, d.there, "declared by the plan" if d in planned else None))
        key = repr(other.spec)
        if key not in probes:
            probes[key] = _probed(subject, evidence, other.spec, found, context)
        probe = probes[key]
        # what the plan changed on purpose is shown and not held against the adaptation
        name = "preprocessing_flip_rate" if own or not found else "preprocessing_flip_rate_declared"
        if found:
            metrics.append(metric(name, probe.flips, rules=context.rules, better="lower", slice=where))
        else:  # the same inputs: no answer can change, whatever the number of rows
            metrics.append(exact(name, 0.0, n={"target": probe.flips.n}, better="lower", slice=where, null=0.0))
        metrics.append(
            exact(
                "preprocessing_max_logit_diff", probe.most, n={"target": probe.flips.n}, slice=where, unit="logits", null=0.0,
                reason=probe.reason,
            )
        )  # fmt: skip
        if probe.left_out:
            caveats.append(f"{probe.left_out} rows were left out of the comparison with the {other.against}: an output is not finite.")
        said.append(_parity_sentence(other.against, own, planned, probe))
    if any(p.flips.value is not None for p in probes.values()) and evidence.cluster("target") is None and table:
        caveats.append(INDEPENDENT)
    metrics += _rotated(subject, evidence, context)
    exhibits = []
    if table:
        exhibits.append(
            Table(
                id="preprocessing-differences",
                title="Settings of the input preparation that differ",
                how_to_read="One row per setting: what this audit does, and what the record or the base says.",
                alt=" ".join(said),
                caption=f"{len(table)} differences shown.",
                columns=(
                    Column(name="against"),
                    Column(name="setting"),
                    Column(name="in this audit"),
                    Column(name="there"),
                    Column(name="note"),
                ),
                rows=tuple(table),
            )
        )
    return Measurement(
        summary=" ".join(said),
        metrics=tuple(metrics),
        exhibits=tuple(exhibits),
        caveats=tuple(caveats),
        params={"rows": MOST_ROWS, "batch_size": BATCH, "seed": context.seed},
    )


def _others(subject: Subject) -> tuple[Other, ...]:
    """The preparations that this audit's is compared with: of the adaptation record, and of the base."""
    record = subject.record
    out = []
    if record is not None and record.preprocessing:
        out.append(Other("record", _spec(record.preprocessing, "preprocessing"), frozenset()))
    declared = frozenset() if record is None else _declared(record)
    if record is not None and record.base_preprocessing:
        out.append(Other("base", _spec(record.base_preprocessing, "base_preprocessing"), declared))
    elif subject.base is not None and subject.base.preprocessing is not None:
        out.append(Other("base", subject.base.preprocessing, declared))
    return tuple(out)


def _spec(data: Mapping[str, Any], field: str) -> InputSpec | None:
    kinds: dict[str, type[Preprocessing] | type[TableEncoding]] = {"image": Preprocessing, "tabular": TableEncoding}
    kind = data.get("kind")
    if kind == "tensor":
        return None
    if kind not in kinds:
        raise DataError(f"the adaptation record's {field} is of kind {kind!r}; known are image, tabular and tensor")
    return kinds[kind].model_validate(dict(data))


def _declared(record: AdaptationRecord) -> frozenset[str]:
    """Settings that the plan of the adaptation changes on purpose: all of a preprocessing that it gives, else an input size."""
    data = record.plan.get("data")
    if isinstance(data, Mapping) and data.get("preprocessing") is not None:
        return frozenset(Preprocessing.model_fields)
    return frozenset(("height", "width", "resize")) if record.plan.get("input_size") is not None else frozenset()


def differences(here: InputSpec | None, there: InputSpec | None) -> tuple[Difference, ...]:
    """Settings in which two preparations differ, in a fixed order; a missing preparation is one difference.

    Numbers count as equal up to a relative 1e-6: a mean of 0.485 that went through single precision is the same mean.
    """
    if here is None or there is None or type(here) is not type(there):
        kinds = tuple("none" if s is None or s.kind == "tensor" else s.kind for s in (here, there))
        return () if kinds[0] == kinds[1] else (Difference("kind", *kinds),)
    mine, theirs = _flat(here), _flat(there)
    names = [*mine, *(name for name in theirs if name not in mine)]
    rows = [(name, mine.get(name, ABSENT), theirs.get(name, ABSENT)) for name in names]
    return tuple(Difference(name, _shown(a), _shown(b)) for name, a, b in rows if not _equal(a, b))


def _flat(spec: InputSpec) -> dict[str, Any]:
    """Settings by name; of tables the order of columns, and each setting of each column."""
    if not isinstance(spec, TableEncoding):
        return {name: getattr(spec, name) for name in type(spec).model_fields if name != "kind"}
    out: dict[str, Any] = {"column order": spec.columns, "categorical_as": spec.categorical_as}
    for numeric in spec.numeric:
        for name in ("mean", "std", "fill", "missing_indicator"):
            out[f"{numeric.name}: {name}"] = getattr(numeric, name)
    for categorical in spec.categorical:
        out[f"{categorical.name}: categories"] = categorical.categories
    return out


def _settings(here: InputSpec | None, there: InputSpec | None) -> int:
    return max([1, *(len(_flat(s)) for s in (here, there) if s is not None)])


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, tuple) and isinstance(second, tuple):
        return len(first) == len(second) and all(_equal(a, b) for a, b in zip(first, second, strict=True))
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=1e-6, abs_tol=1e-9)
    return bool(first == second)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return listed([_shown(v) for v in value], most=8)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _probed(subject: Subject, evidence: Evidence, other: InputSpec | None, found: Sequence[Difference], context: Context) -> Probe:
    """Flips of the adapted model's answers under the other preparation; exactly none, without a run, where nothing differs."""
    rows = np.flatnonzero(evidence.usable("adapted" if evidence.has("adapted", "target") else None, "target"))
    if rows.size == 0:
        reason = "no usable target rows"
        return Probe(Estimate(None, 0, reason), None, reason)
    if rows.size > MOST_ROWS:
        names = evidence.ids("target")
        rows = rows[bottom_k([names[r] for r in rows], MOST_ROWS, context.seed)]
    cluster = evidence.cluster("target")
    units = None if cluster is None else np.asarray(cluster)[rows]
    if not found:
        return Probe(Estimate(0.0, int(rows.size)), 0.0)
    if any(d.name == "kind" for d in found):
        reason = "the two preparations are of different kinds: the model cannot answer both"
        return Probe(Estimate(None, int(rows.size), reason), None, reason)
    logits = _both(subject, rows, other, context)
    if isinstance(logits, str):
        return Probe(Estimate(None, int(rows.size), logits), None, logits)
    first, second, read = logits
    finite = np.isfinite(first).all(axis=1) & np.isfinite(second).all(axis=1)
    if not finite.any():
        reason = "no row has finite outputs under both preparations"
        return Probe(Estimate(None, int(rows.size), reason), None, reason, int((~finite).sum()))
    flips = _answers(first[finite]) != _answers(second[finite])
    rate = intervals.rate(flips, cluster=None if units is None else units[read][finite])
    return Probe(rate, float(np.abs(first[finite] - second[finite]).max()), None, int((~finite).sum()))


def _answers(logits: NDArray[np.float64]) -> NDArray[np.int64]:
    """Class numbers; of one logit its sign."""
    return (logits[:, 0] > 0).astype(np.int64) if logits.shape[1] == 1 else logits.argmax(axis=1)


def _both(
    subject: Subject, rows: NDArray[np.int64], other: InputSpec | None, context: Context
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]] | str:
    """(logits as audited, logits as the other prepares, positions that could be read), or why the model cannot answer both."""
    samples, model = subject.target.samples, subject.adapted
    if isinstance(other, TableEncoding) and isinstance(model.preprocessing, TableEncoding) and other.width != model.preprocessing.width:
        return f"the model takes rows of {model.preprocessing.width} values, the other encoding makes {other.width}"
    first, second, read = [], [], []
    for at in range(0, rows.size, BATCH):
        raw = samples.read(rows[at : at + BATCH])
        mine, theirs = (samples.modality.encode(raw, spec) for spec in (model.preprocessing, other))
        if len(mine) == 0:
            continue
        first.append(_logits(model, mine))
        try:
            second.append(_logits(model, theirs))
        except RuntimeError as error:
            if mine.shape == theirs.shape:
                raise
            return f"the model does not take inputs of shape {tuple(theirs.shape[1:])}: {str(error).splitlines()[0][:120]}"
        read.append(at + np.flatnonzero(raw.readable))
        context.progress("TLA108", min(at + BATCH, rows.size), rows.size)
    if not first:
        return "no target row could be read"
    return np.concatenate(first), np.concatenate(second), np.concatenate(read)


def _logits(model: Model, inputs: torch.Tensor) -> NDArray[np.float64]:
    with borrowed(model) as net, torch.no_grad():
        device = next((p.device for p in net.parameters()), torch.device("cpu"))
        found: NDArray[np.float64] = outputs(net(inputs.to(device)), model.output).cpu().double().numpy()
    return found


def _parity_sentence(against: str, own: Sequence[Difference], planned: Sequence[Difference], probe: Probe) -> str:
    if not own and not planned:
        return f"Inputs are prepared as in the {against}."
    parts = [f"{d.name} ({d.here} here, {d.there} there)" for d in (*own, *planned)]
    text = f"Inputs are prepared otherwise than in the {against}: {listed(parts, most=4)}"
    if planned:
        text += f"; {len(planned)} of these {len(parts)} differences are declared by the plan"
    if probe.flips.value is None:
        return f"{text}. What that changes could not be measured: {probe.reason}."
    return f"{text}. Fed that way, the model changes {percent(probe.flips.value)} of its answers to {probe.flips.n} target rows."


def _rotated(subject: Subject, evidence: Evidence, context: Context) -> list[Metric]:
    """Share of pictures that carry a rotation mark, per domain: a rule about it moves only these."""
    out = []
    for role, domain in subject.domains.items():
        if domain.kind != "image" or not evidence.has(None, role) or len(domain) == 0:
            continue
        count = int(evidence.facts(role).get("exif_rotated", 0) or 0)
        out.append(
            metric("exif_rotated_share", intervals.wilson(count, len(domain)), rules=context.rules, role=role, slice={"domain": role})
        )
    return out


# TLA113 ----------------------------------------------------------------------------------------------------------------------


@check("TLA113", "Repeatable evidence", section="provenance", severity="medium", needs=("adapted", "target"), runs_models=True)
def repeatable_evidence(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Does the same input give the same output twice?

    How it is measured: up to 256 target rows, chosen by hash, are answered twice in batches of 64 and once in batches of 8, in evaluation mode and
    without setting the random state between the runs. Compared are the outputs, value by value, and the answers.

    Why it matters: a number that changes from run to run cannot be confirmed by anybody, and an answer that depends on who else is in the batch
    is not an answer to the sample.

    How to reduce the risk: leave no randomness on at inference (dropout, sampling), normalise with stored statistics, and pin kernels and versions.
    """
    rows = np.flatnonzero(evidence.usable("adapted" if evidence.has("adapted", "target") else None, "target"))
    if rows.size == 0:
        raise NotEvaluated("usable rows of the target")
    if rows.size > MOST_REPEATED:
        names = evidence.ids("target")
        rows = rows[bottom_k([names[r] for r in rows], MOST_REPEATED, context.seed)]
    first, again, small = _repeated(subject, rows, context)
    finite = np.isfinite(first).all(axis=1) & np.isfinite(again).all(axis=1) & np.isfinite(small).all(axis=1)
    if not finite.any():
        raise NotEvaluated("a target row whose outputs are finite")
    n = {"target": int(finite.sum())}
    alone = None if rows.size > SMALL_BATCH else f"{rows.size} rows fit into one batch of either size: the batch size was not varied"
    metrics: list[Metric] = []
    said = []
    runs = (
        ("rerun_max_logit_diff", "run again", "run again", again, None),
        ("batch_size_max_logit_diff", "batch size", f"in batches of {SMALL_BATCH} instead of {BATCH}", small, alone),
    )
    for name, by, how, other, reason in runs:
        most = float(np.abs(first[finite] - other[finite]).max())
        flips = float((_answers(first[finite]) != _answers(other[finite])).mean())
        values = (most, flips) if reason is None else (None, None)
        metrics.append(exact(name, values[0], n=n, better="lower", unit="logits", null=0.0, reason=reason))
        metrics.append(exact("rerun_flip_rate", values[1], n=n, better="lower", slice={"by": by}, null=0.0, reason=reason))
        if reason is None:
            said.append(f"{how}, {percent(flips)} of {n['target']} answers change (largest difference {most:.2g} logits)")
    summary = f"Of the same inputs: {'; '.join(said)}."
    caveats = [] if finite.all() else [f"{int((~finite).sum())} rows were left out: an output is not finite."]
    if alone is not None:
        caveats.append(f"{alone}.")
    return Measurement(
        summary=summary, metrics=tuple(metrics), caveats=tuple(caveats), params={"batch_size": BATCH, "small_batch": SMALL_BATCH}
    )


def _repeated(subject: Subject, rows: NDArray[np.int64], context: Context) -> tuple[NDArray[np.float64], ...]:
    """(N, C) logits of three runs over the same inputs: twice in full batches, once in small ones."""
    samples, model = subject.target.samples, subject.adapted
    parts: tuple[list[NDArray[np.float64]], ...] = ([], [], [])
    # one block for all runs: at its end the random state is put back, and a second block would repeat the first one's random numbers
    with borrowed(model) as net, torch.no_grad():
        device = next((p.device for p in net.parameters()), torch.device("cpu"))
        for at in range(0, rows.size, BATCH):
            inputs = samples.modality.encode(samples.read(rows[at : at + BATCH]), model.preprocessing).to(device)
            if len(inputs) == 0:
                continue
            for part, size in zip(parts, (BATCH, BATCH, SMALL_BATCH), strict=True):
                found = [outputs(net(piece), model.output) for piece in (inputs[i : i + size] for i in range(0, len(inputs), size))]
                part.append(torch.cat(found).cpu().double().numpy())
            context.progress("TLA113", min(at + BATCH, rows.size), rows.size)
    if not parts[0]:
        raise NotEvaluated("readable rows of the target")
    return tuple(np.concatenate(part) for part in parts)


PARITY: tuple[Check, ...] = (label_order, preprocessing_parity, repeatable_evidence)
