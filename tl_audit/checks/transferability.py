"""Family 4, the features themselves: at which layer the base's are of use for the target (TLA404), whether adaptation flattened them (TLA405)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tl_audit.checks.base import Check, Context, check, metric
from tl_audit.checks.provenance import ladder_rows
from tl_audit.checks.wording import bounds, number
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures import collapse
from tl_audit.measures.estimate import Estimate
from tl_audit.measures.sampling import bottom_k
from tl_audit.measures.transferability import BLOCKS, PERMUTATIONS, Usefulness, usefulness
from tl_audit.records.exhibits import Column, Line, Lines, Table
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject

USEFULNESS_SAMPLE = 1000
"""Samples per model: a decomposition costs their number to the third power where layers are wide."""

COLLAPSE_SAMPLE = 2000
MOST_DIRECTIONS_SHOWN = 64
SMALL_CLASS = 10

# ---------------------------------------------------------------- TLA404


@check(
    "TLA404",
    "Layer transferability",
    section="transfer",
    severity="info",
    needs=("base", "base@target", "target.labels"),
    multiplicity="none",
)
def layer_transferability(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """At which layer are the base's features most useful for the target, and was adaptation placed there?

    How it is measured: for the mean-pooled features of each layer the largest log evidence of a linear model of the target's classes
    (LogME, exact), its gain over a model without features against the gain for shuffled labels, and H_alpha, the share of the
    features' spread that lies between classes; jackknife intervals over blocks of samples or clusters.

    Why it matters: layers whose features already tell the classes apart can stay as they are; what the base does not know has to be
    learnt in the layers above.

    How to reduce the risk: freeze up to the layer that tells most and train what follows; where no layer tells anything, take another
    base (`tl-audit rank`). The figures order layers on the same data, they do not foretell an accuracy.
    """
    rules, seed = context.rules, context.seed
    labels, classes = evidence.labels("target"), evidence.classes("target")
    cluster = evidence.cluster("target")
    metrics: list[Metric] = []
    caveats: list[str] = []
    found: dict[str, dict[str, Usefulness]] = {}
    used: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
    keys = [key for key in ("base", "adapted") if subject.model(key) is not None and evidence.has(key, "target")]
    # the same rows for both models: such figures compare on equal data only
    usable = np.logical_and.reduce([evidence.usable(key, "target") for key in keys])
    rows = _sample(evidence, np.flatnonzero(usable & (labels >= 0)), USEFULNESS_SAMPLE, seed)
    y = np.asarray(labels[rows], dtype=np.int64)
    if np.unique(y).size < 2:
        raise NotEvaluated("labelled target samples of at least two classes with finite outputs")
    units = None if cluster is None else np.asarray(cluster)[rows]
    places = {key: evidence.layers(key) for key in keys}
    total, done = sum(len(layers) for layers in places.values()), 0
    for key in keys:
        for layer in places[key]:
            context.progress("use of the features by layer", done, total)
            done += 1
            features = np.asarray(evidence.features(key, "target", layer)[rows], dtype=np.float64)
            if features.shape[1] == 0:
                continue
            one = usefulness(features, y, classes=len(classes), cluster=units, seed=seed)
            found.setdefault(key, {})[layer] = one
            where = {"layer": layer, "model": key}
            for name, estimate in (("logme", one.logme), ("logme_gain", one.logme_gain), ("h_alpha", one.h_alpha)):
                unit = None if name == "h_alpha" else "nats per sample"
                metrics.append(metric(name, estimate, rules=rules, better="higher", slice=where, unit=unit))
    context.progress("use of the features by layer", total, total)
    if not found.get("base"):
        raise NotEvaluated("features of the base by layer")
    used = rows
    states = _states(subject, evidence)
    text = _most_useful(found["base"], states, rules.confidence)
    caveats.append(
        "Such figures compare layers on the same samples and classes. They are not accuracies, and published rankings by them vary with the data."
    )
    if cluster is None:
        caveats.append("Rows are treated as independent: no cluster ids were given for the target.")
    if small := [classes[c] for c in np.unique(y) if int((y == c).sum()) < SMALL_CLASS]:
        caveats.append(
            f"Fewer than {SMALL_CLASS} samples of {', '.join(small[:5])}{' and others' if len(small) > 5 else ''}: intervals are rough."
        )
    return Measurement(
        summary=text,
        metrics=tuple(metrics),
        exhibits=(
            _by_depth(
                "gain-by-depth",
                "Gain in evidence for the target's classes by depth",
                "Higher: a linear model of this layer's features says more about the classes. Dashed: the base's gain for shuffled labels.",
                "gain, nats per sample",
                {key: {layer: one.logme_gain for layer, one in layers.items()} for key, layers in found.items()},
                places["base"], states, used.size, rules.confidence, text, seed,
            ),
            _by_depth(
                "h-alpha-by-depth",
                "Spread between classes by depth (H_alpha)",
                f"From 0 to {np.unique(y).size - 1} (classes less one): the share of the features' spread that lies between classes, summed over directions. Dashed: shuffled labels.",
                "H_alpha",
                {key: {layer: one.h_alpha for layer, one in layers.items()} for key, layers in found.items()},
                places["base"], states, used.size, rules.confidence, text, seed,
            ),
        ),
        caveats=tuple(caveats),
        params={"most_samples": USEFULNESS_SAMPLE, "blocks": BLOCKS, "permutations": PERMUTATIONS, "seed": seed},
    )  # fmt: skip


def _sample(evidence: Evidence, rows: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """At most so many of these target rows, by hash priority."""
    if rows.size <= most:
        return rows
    ids = evidence.ids("target")
    return np.asarray(rows[bottom_k([ids[int(r)] for r in rows], most, seed)], dtype=np.int64)


def _states(subject: Subject, evidence: Evidence) -> dict[str, str]:
    """Layer -> frozen, trained, adapter, new or unknown, as far as base and adapted model can be compared."""
    if subject.model("base") is None or subject.model("adapted") is None:
        return {}
    try:
        return {row.layer: row.state for row in ladder_rows(subject, evidence)}
    except NotEvaluated:
        return {}


def _most_useful(base: dict[str, Usefulness], states: dict[str, str], confidence: float) -> str:
    known = {layer: one.logme_gain for layer, one in base.items() if one.logme_gain.value is not None}
    if not known:
        return "No layer of the base has features that vary."
    order = list(known)
    best = max(order, key=lambda layer: (known[layer].value or 0.0, -order.index(layer)))
    gain = known[best]
    if (gain.value or 0.0) <= (gain.null or 0.0):
        return "No layer of the base tells more about the target's classes than shuffled labels would let it."
    text = (
        f"The base's features tell most about the target's classes at {best} (gain {number(gain.value)}"
        f" nats per sample, interval {bounds(gain.interval(confidence))}, {number(gain.null)} for shuffled labels)"
    )
    state = states.get(best, "unknown")
    if state == "unknown":
        return text + "."
    moved = [layer for layer in order if states.get(layer) in ("trained", "adapter", "new")]
    text += f"; the adaptation left it as it was (declared {state})" if state == "frozen" else f"; the adaptation changed it ({state})"
    return text + (f", and trained from {moved[0]} on." if moved else ".")


def _by_depth(
    id: str,
    title: str,
    how: str,
    label: str,
    found: dict[str, dict[str, Estimate]],
    order: Sequence[str],
    states: dict[str, str],
    n: int,
    confidence: float,
    text: str,
    seed: int,
) -> Lines:
    place = {layer: i for i, layer in enumerate(order)}
    lines: list[Line] = []
    for key, layers in found.items():
        shown = [layer for layer in layers if layer in place]
        lows, highs = [], []
        for layer in shown:
            interval = layers[layer].interval(confidence)
            value = layers[layer].value or 0.0
            lows.append(interval[0] if interval else value)
            highs.append(interval[1] if interval else value)
        x = tuple(float(place[layer]) for layer in shown)
        lines.append(Line(name=key, x=x, y=tuple(layers[layer].value for layer in shown), low=tuple(lows), high=tuple(highs), mark="dot"))
        if key == "base":
            lines.append(Line(name="shuffled labels", x=x, y=tuple(layers[layer].null for layer in shown), role="null"))
    shaded = tuple((i - 0.5, i + 0.5) for i, layer in enumerate(order) if states.get(layer) == "frozen")
    return Lines(
        id=id,
        title=title,
        how_to_read=how + (" Grey bands are layers declared frozen." if shaded else ""),
        alt=text,
        caption=(
            f"n = {n} target samples (at most {USEFULNESS_SAMPLE} by hash priority, seed {seed}); {confidence:.0%} jackknife intervals over up to"
            f" {BLOCKS} blocks; {PERMUTATIONS} shuffles."
        ),
        x_label="layer, input to output",
        y_label=label,
        lines=tuple(lines),
        x_ticks=tuple(order),
        shaded=shaded,
    )


# ---------------------------------------------------------------- TLA405


@check(
    "TLA405",
    "Feature collapse",
    section="transfer",
    severity="medium",
    needs=("adapted", "base", "adapted@target", "base@target"),
    multiplicity="none",
)
def feature_collapse(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Did adaptation flatten the features to a few directions?

    How it is measured: the effective rank (exp of the entropy of the singular values) of the penultimate features of base and adapted
    model on the same target samples, and their ratio with a jackknife interval over samples or clusters; where there are labels,
    the spread inside classes against the distance between them, on the target and on the training data.

    Why it matters: features that lie in a few directions serve the training task alone; what they no longer hold cannot be found again
    for other data, other groups or a later task.

    How to reduce the risk: fewer trained layers or epochs, a smaller rate, a pull towards the base's weights (l2sp), more varied data.
    """
    rules, seed = context.rules, context.seed
    usable = evidence.usable("base", "target") & evidence.usable("adapted", "target")
    rows = _sample(evidence, np.flatnonzero(usable), COLLAPSE_SAMPLE, seed)
    if rows.size < 4:
        raise NotEvaluated("at least four target samples with finite outputs of base and adapted model")
    cluster = evidence.cluster("target")
    units = None if cluster is None else np.asarray(cluster)[rows]
    before, after = (np.asarray(evidence.features(key, "target")[rows], dtype=np.float64) for key in ("base", "adapted"))
    one = collapse.rank_change(before, after, cluster=units, seed=seed)
    metrics = [
        metric("effective_rank", one.before, rules=rules, slice={"model": "base"}),
        metric("effective_rank", one.after, rules=rules, slice={"model": "adapted"}),
        metric("effective_rank_ratio", replace(one.ratio, null=1.0), rules=rules, better="higher"),
    ]
    caveats = ["A low rank alone is normal where there are few classes: features that serve C classes and nothing else have rank C - 1."]
    cells: list[tuple[str | int | float | None, ...]] = []
    for name, estimate, shown in (
        ("effective rank", one.before, "base"), ("effective rank", one.after, "adapted"), ("ratio of ranks", one.ratio, "adapted / base"),
    ):  # fmt: skip
        cells.append(_row(name, shown, "target", estimate, rules.confidence))
    for key, role in (("base", "target"), ("adapted", "target"), ("adapted", "train")):
        spread = _variability(evidence, key, role, seed)
        if isinstance(spread, str):
            caveats.append(spread)
            continue
        metrics.append(metric("class_variability", spread, rules=rules, role=role, slice={"domain": role, "model": key}))
        cells.append(_row("spread inside classes", key, role, spread, rules.confidence))
        if spread.details.get("classes_left_out"):
            caveats.append(
                f"{spread.details['classes_left_out']} classes with one {role} sample are left out of the spread inside classes."
            )
    if one.reduced:
        caveats.append(
            f"Fewer than two samples per column: both ranks are measured in the {one.columns} principal directions of"
            f" {'both features together' if before.shape[1] == after.shape[1] else 'each, since the features differ in width'}."
        )
    if cluster is None:
        caveats.append("Rows are treated as independent: no cluster ids were given for the target.")
    text = (
        f"The effective rank of the features went from {_rank_words(one.before)} in the base to {_rank_words(one.after)} in the adapted model"
        f" (ratio {number(one.ratio.value)}, interval {bounds(one.ratio.interval(rules.confidence))})."
    )
    table = Table(
        id="collapse",
        title="Directions and classes of the features",
        how_to_read="Effective rank: how many directions the features fill, as if all were filled alike. Spread inside classes: 0 means that all samples of a class have the same features.",
        alt=text,
        caption=f"n = {rows.size} target samples, {one.columns} columns; {rules.confidence:.0%} jackknife intervals; seed {seed}.",
        columns=(
            Column(name="measure"), Column(name="model"), Column(name="domain"), Column(name="value", format="number"),
            Column(name="low", format="number"), Column(name="high", format="number"), Column(name="n", format="count"),
        ),
        rows=tuple(cells),
    )  # fmt: skip
    return Measurement(
        summary=text,
        metrics=tuple(metrics),
        exhibits=(_directions(one, text, int(rows.size)), table),
        caveats=tuple(caveats),
        params={"most_samples": COLLAPSE_SAMPLE, "most_directions": collapse.MOST_DIRECTIONS, "blocks": collapse.BLOCKS, "seed": seed},
    )


def _variability(evidence: Evidence, key: str, role: str, seed: int) -> Estimate | str:
    """Spread inside classes of one model's features on one domain, or why there is none."""
    what = f"The spread inside classes of the {key} model on the {role} data is not measured"
    if not evidence.has(key, role):
        return f"{what}: it was not run there, or there are no such data."
    try:
        labels = evidence.labels(role)
        classes = evidence.classes(role)
    except NotEvaluated:
        return f"{what}: they have no labels."
    rows = np.flatnonzero(evidence.usable(key, role) & (labels >= 0))
    if rows.size > COLLAPSE_SAMPLE:
        ids = evidence.ids(role)
        rows = rows[bottom_k([ids[int(r)] for r in rows], COLLAPSE_SAMPLE, seed)]
    cluster = evidence.cluster(role)
    return collapse.class_variability(
        np.asarray(evidence.features(key, role)[rows], dtype=np.float64),
        labels[rows],
        classes=len(classes),
        cluster=None if cluster is None else np.asarray(cluster)[rows],
        seed=seed,
    )


def _row(name: str, model: str, domain: str, estimate: Estimate, confidence: float) -> tuple[str | int | float | None, ...]:
    low, high = estimate.interval(confidence) or (None, None)
    return name, model, domain, estimate.value, low, high, estimate.n


def _rank_words(estimate: Estimate) -> str:
    return "undefined" if estimate.value is None else f"{estimate.value:.1f}"


def _directions(one: collapse.RankChange, text: str, n: int) -> Lines:
    """How much of the features' spread the first directions hold, cumulated."""
    lines = []
    for name, shares in (("base", one.spread_before), ("adapted", one.spread_after)):
        held = np.cumsum(shares)[:MOST_DIRECTIONS_SHOWN]
        lines.append(Line(name=name, x=tuple(float(i + 1) for i in range(held.size)), y=tuple(min(1.0, float(v)) for v in held)))
    return Lines(
        id="directions",
        title="Share of the features' spread in the first directions",
        how_to_read="A line that rises at once: the features lie in a few directions. The adapted model's line above the base's: flatter features.",
        alt=text,
        caption=f"n = {n} target samples; singular values of centred features, largest first, at most {MOST_DIRECTIONS_SHOWN} shown.",
        x_label="directions, largest first",
        y_label="share of the sum of singular values",
        lines=tuple(lines),
        y_range=(0.0, 1.0),
    )


TRANSFERABILITY: tuple[Check, ...] = (layer_transferability, feature_collapse)
