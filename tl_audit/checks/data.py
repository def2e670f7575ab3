"""Family 2: are the data what they are said to be? And TLA507: which plain properties of the inputs changed."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_audit.checks.base import Check, Context, check, exact, metric
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures import classification, fairness, intervals, multiplicity, shift
from tl_audit.measures.estimate import Estimate
from tl_audit.measures.sampling import bottom_k
from tl_audit.records.exhibits import Bar, Bars, Cell, Column, GridRow, ImageGrid, Table
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import ROLES, Subject

MOST_LISTED = 20
MOST_PICTURES = 6
MOST_FOR_PROPERTIES = 5000  # rows per domain where clusters are permuted; permutations of more change no digit that is printed
MOST_INDEPENDENT = 200_000  # of independent rows, whose test costs one sort
GAP_LIMIT = 0.10  # what minimum_detectable_gap is planned for: the warning limit of TLA602 in the default policy
PSI_LEAST = 500
# a sample whose content is the same for every sample of its kind: two of them are no sign of a leak
BLANK: Mapping[str, float] = {"contrast": 0.0, "standard_deviation": 0.0, "missing_share": 1.0}

INDEPENDENT = "Rows are treated as independent: no cluster ids were given."


def short_id(content: object, sample: object) -> str:
    """Eight hex digits that name a sample without its file name."""
    return hashlib.sha256(f"{content}‖{sample}".encode("utf-8", "surrogatepass")).hexdigest()[:8]


# ---------------------------------------------------------------- TLA201


@check("TLA201", "Exact leakage", section="data", severity="critical", needs=("target",), multiplicity="none", values="same")
def exact_leakage(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Is any target sample also in the training or validation data?

    How it is measured: the SHA-256 of each sample's decoded content (pixels, or the cells of a row without id and label) is looked up among
    those of the training and validation data. Blank samples, which are alike by nature, are counted apart.

    Why it matters: a test sample that was trained on measures memory, not performance.

    How to reduce the risk: remove the copies from the target, or split anew before adapting, by patient, site or document.
    """
    known = _known_samples(subject, evidence)
    if not known:
        raise NotEvaluated("train or validation: their data, or the sample hashes of a run directory")
    hashes = evidence.content_hashes("target")
    n = len(hashes)
    names = _label_names(evidence, "target")
    blank = _blank(evidence.properties("target"), n)
    found = np.array([h is not None and h in known for h in hashes], dtype=bool)
    leaked = np.flatnonzero(found & ~blank)
    conflicts = [
        r for r in leaked if names[r] is not None and any(label is not None and label != names[r] for _, label in known[hashes[r]])
    ]
    share = len(leaked) / n if n else None
    metrics = (
        exact("leaked_exact", len(leaked), n={"target": n}, better="lower", null=0.0),
        exact("leaked_exact_share", share, n={"target": n}, better="lower", null=0.0, reason=None if n else "no target samples"),
        exact("leaked_label_conflicts", len(conflicts), n={"target": n}, better="lower", null=0.0),
        exact("leaked_blank", int((found & blank).sum()), n={"target": n}, better="lower"),
    )
    ids = evidence.ids("target")
    rows: list[tuple[Cell, ...]] = []
    for r in leaked[:MOST_LISTED]:
        twins = known[hashes[r]]
        where = ", ".join(sorted({role for role, _ in twins}))
        labels = ", ".join(sorted({label for _, label in twins if label is not None})) or None
        rows.append((short_id(hashes[r], ids[r]), where, len(twins), names[r], labels))
    exhibits: list[Table | ImageGrid] = []
    if rows:
        exhibits.append(
            Table(
                id="leaked",
                title=f"{len(leaked)} target samples are also in the data the model was made with",
                how_to_read="One row per target sample; the label columns differ where the same content bears two labels.",
                alt=f"The first {len(rows)} of {len(leaked)} leaked samples, by short id.",
                caption=f"{len(rows)} of {len(leaked)} shown; n = {n} target samples.",
                columns=(
                    Column(name="sample"),
                    Column(name="also in"),
                    Column(name="copies", format="count"),
                    Column(name="label in target"),
                    Column(name="label there"),
                ),
                rows=tuple(rows),
            )
        )
        grid = _leak_pictures(subject, evidence, leaked[:MOST_PICTURES])
        if grid is not None:
            exhibits.append(grid)
    caveats = []
    unread = int(sum(h is None for h in hashes))
    if unread:
        caveats.append(f"{unread} target samples could not be read and were not compared.")
    twins_inside = sum(len(v) - 1 for v in known.values())
    total = sum(len(v) for v in known.values())
    if twins_inside > 0.01 * total:
        caveats.append(
            f"{twins_inside} of {total} training and validation samples have a twin among themselves: equal content may here arise by chance."
        )
    where = " and ".join(sorted({role for twins in known.values() for role, _ in twins}))
    summary = f"{len(leaked)} of {n} target samples are exact copies of samples in {where} data."
    return Measurement(summary=summary, metrics=metrics, exhibits=tuple(exhibits), caveats=tuple(caveats), params={"compared_with": where})


def _known_samples(subject: Subject, evidence: Evidence) -> dict[str, list[tuple[str, str | None]]]:
    """Content hash -> (role, label) of the training and validation samples: from the data, else from the run directory's hashes."""
    known: dict[str, list[tuple[str, str | None]]] = {}
    absent = []
    for role in ("train", "validation"):
        if not evidence.has(None, role):
            absent.append(role)
            continue
        names = _label_names(evidence, role)
        for h, name in zip(evidence.content_hashes(role), names, strict=True):
            if h is not None:
                known.setdefault(h, []).append((role, name))
    listed = None if subject.run_dir is None else Path(subject.run_dir) / "samples.parquet"
    if absent and listed is not None and listed.is_file():
        import pyarrow.parquet as pq

        for row in pq.read_table(listed).to_pylist():
            h, role = row.get("content_hash"), row.get("split")
            if h is not None and role in absent:
                label = row.get("label")
                known.setdefault(str(h), []).append((str(role), None if label is None else str(label)))
    return known


def _label_names(evidence: Evidence, role: str) -> NDArray[np.object_]:
    """(N,) class names of a domain, or its numbers as text; None where a row or the domain has no label."""
    try:
        labels = evidence.labels(role)
        names = np.array([*evidence.classes(role), None], dtype=object)
    except NotEvaluated:
        with contextlib.suppress(NotEvaluated):
            return np.array([None if np.isnan(v) else repr(v) for v in evidence.values(role).tolist()], dtype=object)
        return np.full(len(evidence.ids(role)), None, dtype=object)
    return np.asarray(names[np.where(labels >= 0, labels, len(names) - 1)], dtype=object)


def _blank(properties: Mapping[str, NDArray[Any]], n: int) -> NDArray[np.bool_]:
    out = np.zeros(n, dtype=bool)
    for name, value in BLANK.items():
        if name in properties:
            out |= np.asarray(properties[name], dtype=np.float64) == value
    return out


def _leak_pictures(subject: Subject, evidence: Evidence, rows: NDArray[np.int64]) -> ImageGrid | None:
    if evidence.samples == "off":
        return None
    samples, spec = subject.target.samples, subject.adapted.preprocessing
    raw = samples.read(rows)
    inputs = samples.modality.encode(raw, spec)
    grid = []
    hashes = evidence.content_hashes("target")
    for i, r in enumerate(rows[raw.readable]):
        picture = samples.modality.picture(inputs[i], spec, title="target", redacted=evidence.samples == "redacted")
        if picture is None:
            return None
        grid.append(GridRow(id=short_id(hashes[r], samples.ids[int(r)]), pictures=(picture,)))
    return ImageGrid(
        id="leaked-pictures",
        title="Target samples that were trained on",
        how_to_read="Each picture is in the target and, pixel for pixel, in the data the model was made with.",
        alt=f"{len(grid)} leaked samples.",
        caption=f"The first {len(grid)}.",
        rows=tuple(grid),
        samples="redacted" if evidence.samples == "redacted" else "on",
    )


# ---------------------------------------------------------------- TLA204


@check("TLA204", "Class balance", section="data", severity="low", needs=("target.labels",), multiplicity="none")
def class_balance(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """How many samples does each class have, per domain?

    How it is measured: counts of labels per domain, their shares with intervals, the largest count over the smallest, and the classes
    that the model or the domain declares and no sample bears.

    Why it matters: about a class that the target does not hold nothing was measured, and accuracy follows the frequent classes.

    How to reduce the risk: collect the thin classes; read per-class results (TLA303) beside every average.
    """
    rules = context.rules
    metrics: list[Metric] = []
    bars: list[Bar] = []
    caveats: list[str] = []
    said = ""
    for role in ROLES:
        if role == "ood" or not evidence.has(None, role):
            continue
        try:
            labels = evidence.labels(role)
        except NotEvaluated:
            continue
        classes = evidence.classes(role)
        declared = _declared_classes(evidence, role, classes)
        held = labels >= 0
        cluster = evidence.cluster(role)
        ids = None if cluster is None else np.asarray(cluster)[held]
        shares = classification.class_shares(labels[held], classes=len(classes), cluster=ids)
        counts = np.bincount(labels[held], minlength=len(classes))
        n = int(held.sum())
        for i, name in enumerate(classes):
            where = {"class": name, "domain": role}
            metrics.append(metric("class_share", shares[i], rules=rules, role=role, slice=where, family=f"class_share {role}"))
            bars.append(Bar(label=name, value=float(counts[i]), series=role, n=n))
        absent = [name for name in declared if name not in classes or counts[classes.index(name)] == 0]
        domain = {"domain": role}
        rarest = int(counts.argmin())
        if len(classes):
            metrics.append(metric("minority_share", shares[rarest], rules=rules, role=role, slice=domain))
        ratio = float(counts.max() / counts.min()) if len(classes) and counts.min() > 0 else None
        metrics.append(
            exact(
                "imbalance_ratio", ratio, n={role: n}, slice=domain, null=1.0, reason=None if ratio is not None else "a class has no sample"
            )
        )
        metrics.append(exact("classes_absent", len(absent), n={role: n}, better="lower", slice=domain, null=0.0))
        if absent:
            caveats.append(f"No sample of the {role} bears the class {_listed(absent)}.")
        if role == "target":
            said = f"{n} labelled target samples in {int((counts > 0).sum())} of {len(declared)} classes; {_listed(absent) if absent else 'none'} absent."
        if (~held).any():
            caveats.append(f"{int((~held).sum())} rows of the {role} have no label.")
        if cluster is None and role == "target":
            caveats.append(INDEPENDENT)
    balanced = _rebalanced(subject)
    if balanced:
        caveats.append(f"Training was re-balanced ({balanced}): predicted probabilities follow the training prior, see TLA305.")
    figure = Bars(
        id="classes",
        title="Samples per class and domain",
        how_to_read="One bar per class and domain; a missing bar is a class without samples.",
        alt=said,
        caption="Counts of labelled rows.",
        value_label="samples",
        bars=tuple(bars),
    )
    return Measurement(summary=said, metrics=tuple(metrics), exhibits=(figure,), caveats=tuple(caveats))


def _declared_classes(evidence: Evidence, role: str, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Classes that ought to occur: those of the domain, in the target also those the adapted model answers in."""
    if role != "target":
        return classes
    try:
        return tuple(dict.fromkeys((*evidence.common_classes("adapted", "target"), *classes)))
    except NotEvaluated:
        return classes


def _rebalanced(subject: Subject) -> str | None:
    record = subject.record
    if record is None:
        return None
    settings = {**record.training, **record.task}
    words = [f"{name} = {settings[name]}" for name in ("class_weights", "sampler") if settings.get(name) not in (None, "none", False)]
    return ", ".join(words) or None


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


# ---------------------------------------------------------------- TLA206


@check("TLA206", "Group counts", section="data", severity="high", needs=("target.groups",), multiplicity="none", values="same")
def group_counts(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Which groups are present, missing or too small to judge?

    How it is measured: rows, positives and clusters of each group; groups below the policy's minimum; rows whose group is not known;
    and the smallest accuracy gap to the rest that this many rows could show beyond 0.10, with 80 % power.

    Why it matters: fairness numbers of a group of three are noise, and a report without this list would look complete.

    How to reduce the risk: collect the thin groups; declare groups that ought to be there, so that their absence is seen.
    """
    rules = context.rules
    groups = evidence.groups("target")
    cluster = evidence.cluster("target")
    usable = evidence.usable("adapted" if evidence.has("adapted", "target") else None, "target")
    positive, positives = evidence.positive("target"), None
    names = _label_names(evidence, "target")
    if positive is not None:
        positives = names == positive
    correct = _correct(evidence, usable)
    numeric = subject.task == "regression"
    metrics: list[Metric] = []
    bars: list[Bar] = []
    rows: list[tuple[Cell, ...]] = []
    below: list[str] = []
    for column, values in groups.items():
        present = sorted(set(values.tolist()), key=lambda g: (g == "(missing)", g))
        for group in present:
            inside = (values == group) & usable
            n = int(inside.sum())
            where = {column: group}
            metrics.append(exact("group_n", n, n={"target": n}, slice=where))
            held = None
            if positives is not None:
                held = int((inside & positives).sum())
                metrics.append(exact("group_positives", held, n={"target": n}, slice=where))
            units = None
            if cluster is not None:
                units = len(
                    {c if c is not None else ("row", r) for r, c in zip(np.flatnonzero(inside), np.asarray(cluster)[inside], strict=True)}
                )
                metrics.append(exact("group_clusters", units, n={"target": n}, slice=where))
            small = n < rules.min_n or (units is not None and units < rules.min_clusters)
            if small:
                below.append(f"{column} = {group} ({n} rows" + (f", {units} clusters)" if units is not None else ")"))
            gap = (
                Estimate(None, n, "labels are numbers: there is no accuracy to lose")
                if numeric
                else _detectable(inside, usable & (values != group), correct, cluster, len(present), rules.alpha)
            )
            metrics.append(
                metric(
                    "minimum_detectable_gap", gap, rules=rules, slice=where, n={"target": n},
                    reason=gap.reason or "a planning figure: it has no interval",
                )
            )  # fmt: skip
            bars.append(
                Bar(label=group, value=float(n), series=column, n=n, null=float(rules.min_n), note="below the minimum" if small else None)
            )
            rows.append((column, group, n, held, units, gap.value, "below the minimum" if small else None))
        unknown = intervals.rate((values == "(missing)").astype(bool), cluster=cluster)
        metrics.append(metric("group_unknown_share", unknown, rules=rules, better="lower", slice={"column": column}))
    missing = _missing_groups(context.declared, groups)
    n_all = {"target": int(usable.sum())}
    metrics.append(exact("groups_below_minimum", len(below), n=n_all, better="lower", null=0.0))
    metrics.append(exact("groups_missing", len(missing), n=n_all, better="lower", null=0.0))
    caveats = [] if cluster is not None else [INDEPENDENT]
    if below:
        caveats.append(f"Too small to judge: {'; '.join(below[:MOST_LISTED])}.")
    if missing:
        caveats.append(f"Declared and never seen: {'; '.join(missing[:MOST_LISTED])}.")
    for role in ("train", "validation"):
        if evidence.has(None, role):
            unseen = [
                f"{column} = {g}"
                for column, values in evidence.groups(role).items()
                if column in groups
                for g in sorted(set(values.tolist()) - set(groups[column].tolist()))
            ]
            if unseen:
                caveats.append(f"In the {role} data and not in the target: {'; '.join(unseen[:MOST_LISTED])}.")
    if correct is None and not numeric:
        caveats.append("Detectable gaps assume that half of the answers are right: no outputs of the adapted model to learn the rate from.")
    count = len(rows)
    summary = f"{count} groups in {len(groups)} columns; {len(below)} below the minimum of {rules.min_n} rows; {len(missing)} declared groups never seen."
    figures = (
        Bars(
            id="group-counts",
            title="Rows per group",
            how_to_read=f"Bars are rows; the tick marks the minimum of {rules.min_n}.",
            alt=summary,
            caption=f"n = {n_all['target']} usable target rows.",
            value_label="rows",
            bars=tuple(bars),
            grouped=True,
        ),
        Table(
            id="detectable-gaps",
            title="What each group's size can detect",
            how_to_read="The smallest accuracy gap to the rest that would be found beyond 0.10 in four of five audits; empty: none.",
            alt=f"Counts and detectable gaps of {count} groups.",
            caption=f"Power 0.8, level {rules.alpha}, corrected for the number of groups of the column.",
            columns=(
                Column(name="column"),
                Column(name="group"),
                Column(name="rows", format="count"),
                Column(name="positives", format="count"),
                Column(name="clusters", format="count"),
                Column(name="detectable gap", format="number"),
                Column(name="note"),
            ),
            rows=tuple(rows),
            grouped=True,
        ),
    )
    return Measurement(
        summary=summary, metrics=tuple(metrics), exhibits=figures, caveats=tuple(caveats),
        params={"gap_limit": GAP_LIMIT, "power": 0.8, "min_n": rules.min_n, "min_clusters": rules.min_clusters},
    )  # fmt: skip


def _correct(evidence: Evidence, usable: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """(right answers, rows that have one) of the adapted model on the target, None where there are none."""
    if not evidence.has("adapted", "target"):
        return None
    try:
        held = usable & (evidence.truth("adapted", "target") >= 0)
        return (np.asarray(evidence.correct("adapted", "target")), held) if held.any() else None
    except NotEvaluated:
        return None


def _detectable(
    inside: NDArray[np.bool_],
    rest: NDArray[np.bool_],
    correct: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None,
    cluster: NDArray[np.object_] | None,
    groups: int,
    alpha: float,
) -> Estimate:
    rate, deff = 0.5, 1.0
    if correct is not None:
        right, held = correct
        inside, rest = inside & held, rest & held
        if rest.any():
            learned = intervals.rate(right[rest], cluster=None if cluster is None else np.asarray(cluster)[rest])
            rate = float(learned.value if learned.value is not None else 0.5)
            deff = float(learned.details.get("deff", 1.0))
    return fairness.minimum_detectable_gap(int(inside.sum()), int(rest.sum()), rate, limit=GAP_LIMIT, groups=groups, alpha=alpha, deff=deff)


def _missing_groups(
    declared: Mapping[str, Any], groups: Mapping[str, NDArray[np.object_]]
) -> list[str]:  # Any: declared facts, TOML values
    """Groups declared as ``[declared] groups = {sex = ["female", "male"]}`` that no target row bears."""
    wanted = declared.get("groups")
    if not isinstance(wanted, Mapping):
        return []
    out = []
    for column, names in wanted.items():
        seen = set(groups[column].tolist()) if column in groups else set()
        out += [f"{column} = {name}" for name in (names if isinstance(names, list | tuple) else [names]) if str(name) not in seen]
    return out


# ---------------------------------------------------------------- TLA208

_PAIRS: Mapping[str, tuple[str, ...]] = {
    "adapted": ("target", "source", "train", "validation"),
    "base": ("target", "source"),
    "previous": ("target",),
    "control:head": ("target",),
    "control:scratch": ("target",),
}


@check("TLA208", "Corrupt and invalid inputs", section="data", severity="high", needs=("target",), multiplicity="none", values="same")
def corrupt_inputs(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """How many inputs could not be read, or gave outputs that are no numbers?

    How it is measured: counts per domain of samples that could not be decoded, of inputs that hold a non-finite number, and of finite inputs
    with a non-finite output per model; the share left out, per domain and per group of the target; the share rotated by its EXIF entry.

    Why it matters: what is left out changes every other number without a trace, more so when it is one group that is left out.

    How to reduce the risk: repair or replace the files listed, look for their cause in one site or device, and audit again.
    """
    rules = context.rules
    metrics: list[Metric] = []
    listed: list[tuple[Cell, ...]] = []
    bars: list[Bar] = []
    caveats: list[str] = []
    parts: list[str] = []
    for role in ROLES:
        if not evidence.has(None, role):
            continue
        where = {"domain": role}
        ids = evidence.ids(role)
        n: dict[str, int] = {role: len(ids)}
        errors = evidence.read_errors(role)
        facts = evidence.facts(role)
        strange = {int(r) for r in facts.get("nonfinite_inputs", ())}
        metrics.append(exact("unreadable", len(errors), n=n, better="lower", slice=where, null=0.0))
        metrics.append(exact("nonfinite_inputs", len(strange), n=n, better="lower", slice=where, null=0.0))
        listed += [(role, short_id(None, ids[r]), reason) for r, reason in sorted(errors.items())]
        listed += [(role, short_id(None, ids[r]), "the input holds a number that is not finite") for r in sorted(strange)]
        readable = evidence.usable(None, role)
        finite = readable.copy()
        finite[sorted(strange)] = False
        excluded = ~finite
        for model, roles in _PAIRS.items():
            if role not in roles or not evidence.has(model, role):
                continue
            try:
                bad = finite & ~evidence.usable(model, role)
            except NotEvaluated as reason:
                caveats.append(f"Outputs of the {model} model on the {role} were not counted: {reason}.")
                continue
            metrics.append(
                exact("nonfinite_outputs", int(bad.sum()), n=n, better="lower", slice={"domain": role, "model": model}, null=0.0)
            )
            listed += [(role, short_id(None, ids[r]), f"the {model} model's output is not finite") for r in np.flatnonzero(bad)]
            if model == "adapted":
                excluded |= bad
        cluster = evidence.cluster(role)
        share = intervals.rate(excluded, cluster=cluster)
        metrics.append(metric("excluded_share", share, rules=rules, role=role, better="lower", slice=where))
        rotated = int(facts.get("exif_rotated", 0) or 0)
        metrics.append(metric("exif_rotated_share", intervals.wilson(rotated, len(ids)), rules=rules, role=role, slice=where))
        bars.append(Bar(label=role, value=float(excluded.sum()), n=len(ids)))
        parts.append(f"{int(excluded.sum())} of {len(ids)} in the {role}")
        if role == "target":
            metrics += _excluded_by_group(evidence, excluded, cluster, context)
        domain = subject.domain(role)
        for name, why in () if domain is None else domain.skipped[:MOST_LISTED]:
            listed.append((role, short_id(None, name), why))
        if domain is not None:
            spec_notes = domain.samples.modality.spec_notes(domain.samples, subject.adapted.preprocessing)
            caveats += [f"{domain.name} ({role}): {note}." for note in (*domain.notes, *spec_notes)]
    summary = f"Left out: {'; '.join(parts)}."
    exhibits: list[Bars | Table] = [
        Bars(
            id="left-out",
            title="Samples left out, per domain",
            how_to_read="Samples that could not be read, or whose input or output is no finite number.",
            alt=summary,
            caption="Counts of the whole set.",
            value_label="samples",
            bars=tuple(bars),
        )
    ]
    if listed:
        exhibits.append(
            Table(
                id="left-out-reasons",
                title="Why samples were left out",
                how_to_read="The first samples with their reason; ids are hashes of the sample's name.",
                alt=f"The first {min(len(listed), MOST_LISTED)} of {len(listed)} reasons.",
                caption=f"{min(len(listed), MOST_LISTED)} of {len(listed)} shown.",
                columns=(Column(name="domain"), Column(name="sample"), Column(name="reason")),
                rows=tuple(listed[:MOST_LISTED]),
            )
        )
    return Measurement(summary=summary, metrics=tuple(metrics), exhibits=tuple(exhibits), caveats=tuple(caveats))


def _excluded_by_group(
    evidence: Evidence, excluded: NDArray[np.bool_], cluster: NDArray[np.object_] | None, context: Context
) -> list[Metric]:
    """Share left out per group of the target, and its gap to the rest."""
    out = []
    for column, values in evidence.groups("target").items():
        present = sorted(set(values.tolist()))
        for group in present:
            inside = values == group
            units = None if cluster is None else np.asarray(cluster)
            share = intervals.rate(excluded[inside], cluster=None if units is None else units[inside])
            where = {column: group}
            out.append(metric("group_excluded_share", share, rules=context.rules, better="lower", slice=where))
            if len(present) > 1 and excluded.any():
                gap = intervals.rate_difference(
                    excluded[inside],
                    excluded[~inside],
                    cluster_first=None if units is None else units[inside],
                    cluster_second=None if units is None else units[~inside],
                    seed=context.seed,
                )
                out.append(metric("excluded_share_gap", gap, rules=context.rules, slice=where, n={"target": len(values)}))
    return out


# ---------------------------------------------------------------- TLA507


@check("TLA507", "Input property drift", section="shift", severity="medium", needs=("source", "target"), multiplicity="bh", values="same")
def property_drift(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Which plain property of the inputs changed between source and target?

    How it is measured: the largest gap between distributions (Kolmogorov-Smirnov distance for numbers, total variation for categories) with a
    permutation test, over clusters where they are known; beside it the Wasserstein distance in source interquartile ranges and the population
    stability index over source deciles with its value by chance. Columns with missing cells are also compared by whether a cell is there.

    Why it matters: a change of brightness, size or of one column is the cheapest explanation of a drop, and the easiest to repair.

    How to reduce the risk: bring the inputs to the source's form (exposure, units, coding), or adapt on data that have the new one.
    """
    rules, seed = context.rules, context.seed
    sides: dict[str, dict[str, NDArray[Any]]] = {}
    clusters: dict[str, NDArray[np.object_] | None] = {}
    caveats: list[str] = []
    for role in ("source", "target"):
        rows = np.flatnonzero(evidence.usable(None, role))
        if rows.size == 0:
            raise NotEvaluated(f"readable rows of the {role}")
        cluster = evidence.cluster(role)
        bound = MOST_INDEPENDENT if cluster is None else MOST_FOR_PROPERTIES
        if rows.size > bound:
            ids = evidence.ids(role)
            units = None if cluster is None else np.asarray(cluster)[rows]
            chosen = rows[bottom_k([ids[r] for r in rows], bound, seed, cluster=units)]
            caveats.append(f"{chosen.size} of {rows.size} rows of the {role} were compared, chosen by hash.")
            rows = chosen
        sides[role] = {name: np.asarray(values)[rows] for name, values in evidence.properties(role).items()}
        clusters[role] = None if cluster is None else np.asarray(cluster)[rows]
    if (clusters["source"] is None) != (clusters["target"] is None):
        caveats.append("Cluster ids are known in one domain only: rows were permuted.")
        clusters = {"source": None, "target": None}
    elif clusters["source"] is None:
        caveats.append(INDEPENDENT)
    compared, left = _comparable(sides["source"], sides["target"])
    caveats += left
    tests = len(compared)
    found: dict[str, shift.PropertyShift] = {}
    columns = ((name, first, second, categorical) for name, (first, second, categorical) in compared.items())
    for name, result in shift.property_shifts(
        columns, cluster_source=clusters["source"], cluster_target=clusters["target"], tests=tests, alpha=rules.alpha, seed=seed
    ):
        context.progress("TLA507", len(found), tests)
        found[name] = result
    metrics: list[Metric] = []
    adjusted = dict(zip(found, multiplicity.benjamini_hochberg([f.distance.p_value for f in found.values()]), strict=True))
    moved = [name for name, p in adjusted.items() if p is not None and p < rules.alpha]
    table: list[tuple[Cell, ...]] = []
    bars: list[Bar] = []
    for name, result in found.items():
        metrics += _property_metrics(name, result, context)
        distance = result.distance
        high = distance.details.get("null_high")
        bars.append(
            Bar(label=name, value=distance.value, null=high, n=distance.n, note=distance.reason if distance.value is None else result.state)
        )
        first, second, categorical = compared[name]
        table.append(
            (
                name, "share that must move" if categorical else "largest gap", distance.value, high, adjusted[name],
                _typical(first, categorical), _typical(second, categorical),
                None if result.psi is None else result.psi.value, result.state,
            )
        )  # fmt: skip
    n = {role: len(next(iter(sides[role].values()))) if sides[role] else 0 for role in sides}
    metrics.append(exact("properties_shifted", len(moved), n=n, better="lower", null=0.0))
    order = sorted(moved, key=lambda name: -(found[name].distance.value or 0.0))
    most = "; ".join(f"{name} {found[name].distance.value:.2f}" for name in order[:3])
    summary = f"{len(moved)} of {tests} input properties differ between source and target" + (f", most of all {most}." if most else ".")
    bars.sort(key=lambda b: (-(b.value if b.value is not None else -1.0), b.label))
    shown = dict(zip(found, table, strict=True))
    figures = (
        Bars(
            id="property-distances",
            title="How far each plain property moved",
            how_to_read="0: same distribution, 1: no overlap. The tick is what chance alone reaches at this n.",
            alt=summary,
            caption=f"n = {n['source']} source, {n['target']} target; permutation test, Benjamini-Hochberg over {tests} properties.",
            value_label="distance",
            bars=tuple(bars),
        ),
        Table(
            id="property-table",
            title="Plain properties, source against target",
            how_to_read="Typical value: the median of numbers, the most frequent category with its share.",
            alt=f"{tests} properties with their distance, test and typical values.",
            caption="p adjusted by Benjamini-Hochberg; stability index over source deciles.",
            columns=(
                Column(name="property"),
                Column(name="measure"),
                Column(name="distance", format="number"),
                Column(name="by chance up to", format="number"),
                Column(name="adjusted p", format="number"),
                Column(name="source"),
                Column(name="target"),
                Column(name="stability index", format="number"),
                Column(name="note"),
            ),
            rows=tuple(shown[b.label] for b in bars),
        ),
    )
    return Measurement(
        summary=summary, metrics=tuple(metrics), exhibits=figures, caveats=tuple(caveats), params={"properties": tests, "seed": seed}
    )


def _comparable(
    source: Mapping[str, NDArray[Any]], target: Mapping[str, NDArray[Any]]
) -> tuple[dict[str, tuple[NDArray[Any], NDArray[Any], bool]], list[str]]:
    """Property -> (source values, target values, categorical), and what could not be compared as it is."""
    out: dict[str, tuple[NDArray[Any], NDArray[Any], bool]] = {}
    notes = []
    for name in (*source, *(t for t in target if t not in source)):
        if name not in source or name not in target:
            notes.append(f"{name!r} is known in the {'source' if name in source else 'target'} only.")
            continue
        first, second = source[name], target[name]
        categorical = first.dtype == object or second.dtype == object
        if categorical and first.dtype != second.dtype:
            notes.append(f"{name!r} holds numbers in one domain and text in the other: compared as categories.")
            first, second = _as_categories(first), _as_categories(second)
        gone_first, gone_second = _missing(first), _missing(second)
        if not categorical and (np.isinf(first).any() or np.isinf(second).any()):
            notes.append(f"Infinite values of {name!r} were left out.")
            first, second = np.where(np.isinf(first), np.nan, first), np.where(np.isinf(second), np.nan, second)
        out[name] = (first, second, categorical)
        if gone_first.any() or gone_second.any():
            words = np.array(["present", "missing"], dtype=object)
            out[f"{name} (missing)"] = (words[gone_first.astype(int)], words[gone_second.astype(int)], True)
    return out, notes


def _missing(values: NDArray[Any]) -> NDArray[np.bool_]:
    if values.dtype == object:
        return np.array([v is None for v in values], dtype=bool)
    return np.asarray(np.isnan(values), dtype=bool)


def _as_categories(values: NDArray[Any]) -> NDArray[np.object_]:
    if values.dtype == object:
        return values
    return np.array([None if v != v else (str(int(v)) if float(v).is_integer() else repr(float(v))) for v in values], dtype=object)


def _typical(values: NDArray[Any], categorical: bool) -> str | None:
    held = values[~_missing(values)]
    if held.size == 0:
        return None
    if not categorical:
        return f"{float(np.median(held)):.4g}"
    names, counts = np.unique(held.astype(str), return_counts=True)
    return f"{names[int(counts.argmax())]} ({counts.max() / held.size:.0%})"


def _property_metrics(name: str, result: shift.PropertyShift, context: Context) -> list[Metric]:
    rules = context.rules
    where = {"property": name}
    distance = result.distance
    word = "ks" if result.kind == "numeric" else "tvd"
    n = {"source": int(distance.details.get("n_source", 0)), "target": int(distance.details.get("n_target", 0))}
    why = distance.reason or distance.details.get("p_reason") or "judged by effect and test: no sound interval exists"
    out = [metric(word, distance, rules=rules, better="lower", slice=where, n=n, family="properties", reason=why)]
    if distance.value is not None:
        out.append(
            exact(
                f"{word}_null_high", distance.details.get("null_high"), n=n, slice=where,
                reason=None if "null_high" in distance.details else "no permutation test: " + str(distance.details.get("p_reason")),
            )
        )  # fmt: skip
    if result.wasserstein_scaled is not None:
        estimate = result.wasserstein_scaled
        out.append(
            metric(
                "wasserstein_scaled", estimate, rules=rules, better="lower", slice=where, n=n, unit="source interquartile ranges",
                reason=estimate.reason or "positive by construction: shown without an interval",
            )
        )  # fmt: skip
    if result.psi is not None:
        estimate = result.psi
        out.append(
            metric(
                "psi", estimate, rules=rules, better="lower", slice=where, n=n, min_n=PSI_LEAST,
                reason=estimate.reason or "positive by construction: read it against its value by chance",
            )
        )  # fmt: skip
        if estimate.value is not None:
            high = estimate.details.get("null_high")
            out.append(
                exact("psi_null_high", high, n=n, slice=where, reason=None if high is not None else str(estimate.details.get("p_reason")))
            )
    if result.unseen_share is not None:
        out.append(metric("unseen_category_share", result.unseen_share, rules=rules, better="lower", slice=where))
    return out


DATA: tuple[Check, ...] = (exact_leakage, class_balance, group_counts, corrupt_inputs, property_drift)
