"""Which part of the target lies where the source has no samples (TLA207)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_audit.checks.base import Check, Context, check, metric
from tl_audit.checks.data import MOST_PICTURES, short_id
from tl_audit.checks.wording import percent
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures.coverage import NEIGHBOURS, NULL, PERCENTILE, Coverage, coverage
from tl_audit.measures.sampling import bottom_k
from tl_audit.records.exhibits import Dot, GridRow, ImageGrid, Intervals, Line, Lines, Reference
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject

MOST_PER_DOMAIN = 2000
LEAST_SOURCE = 100
"""Source rows below which the threshold is too rough: five of fifty lie beyond it."""
MOST_SHOWN = 20


@check(
    "TLA207", "Coverage of target by source", section="data", severity="medium",
    needs=("source", "target", "base@source|adapted@source", "base@target|adapted@target"),
)  # fmt: skip
def source_coverage(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Which part of the target has no near neighbour in the source?

    How it is measured: in features of the base, the source is split in halves by cluster. The distance of one half to its fifth neighbour in the
    other has a 95th percentile; counted are the target samples whose distance to the same half lies beyond it. The same source gives 5 %.

    Why it matters: where the base has seen nothing like the target, what it learned carries over by luck, and averages hide it.

    How to reduce the risk: adapt on samples of the groups and classes named; choose a base whose source holds them; keep the model from
    answering there.
    """
    rules = context.rules
    ruler = next((key for key in ("base", "adapted") if evidence.has(key, "source") and evidence.has(key, "target")), None)
    if ruler is None:
        raise NotEvaluated("features of one model on source and target")
    rows = {role: _rows(evidence, ruler, role, context.seed) for role in ("source", "target")}
    if rows["source"].size < LEAST_SOURCE:
        raise NotEvaluated(f"{LEAST_SOURCE} usable source samples: there are {rows['source'].size}")
    if not rows["target"].size:
        raise NotEvaluated("usable target samples")
    cluster = {role: _of(evidence.cluster(role), rows[role]) for role in rows}
    values = {role: np.asarray(evidence.features(ruler, role)[rows[role]], dtype=np.float64) for role in rows}
    found = coverage(values["source"], values["target"], cluster_source=cluster["source"], seed=context.seed)
    if found.reason is not None:
        raise NotEvaluated(f"source samples in more clusters, with features that differ: {found.reason}")
    n = {"source": int(rows["source"].size), "target": int(rows["target"].size)}
    whole = found.share(cluster=cluster["target"])
    metrics: list[Metric] = [metric("uncovered_share", whole, rules=rules, better="lower", n={"target": n["target"]})]
    dots = []
    for where, inside in _slices(evidence, rows["target"]):
        share = found.share(inside, cluster=cluster["target"])
        metrics.append(metric("uncovered_share", share, rules=rules, better="lower", slice=where))
        ((column, name),) = where.items()
        dots.append(
            Dot(
                label=f"{column} = {name}",
                value=share.value,
                interval=share.interval(rules.confidence),
                n=share.n,
                null=NULL,
                note=share.reason,
            )
        )
    beyond = int(found.uncovered.sum())
    summary = f"{beyond} of {n['target']} target samples ({percent(whole.value)}) lie further from the source than all but 5 % of the source itself."
    caveats = ["Far from the source is no harm by itself: TLA509 says whether shift costs performance."]
    if ruler != "base":
        caveats.append("No base model: features of the adapted model serve as the ruler; adaptation itself moves them.")
    for role in rows:
        if cluster[role] is None:
            caveats.append(f"Rows of the {role} are treated as independent: no cluster ids were given.")
    exhibits: list[Lines | Intervals | ImageGrid] = [_curve(found, summary, n, context)]
    if dots:
        order = sorted(dots, key=lambda dot: (-(dot.value or 0.0), dot.label))[:MOST_SHOWN]
        exhibits.append(
            Intervals(
                id="uncovered-by-slice",
                title=f"Least covered: {order[0].label}, {percent(order[0].value)} without a near source sample",
                how_to_read="Share of each class and group that lies beyond the source; 0.05 where it is like the source.",
                alt="; ".join(
                    f"{dot.label} {percent(dot.value)}" for dot in order[:5] if not (dot.n is not None and dot.n < rules.suppress_below)
                ),
                caption=f"{rules.confidence:.0%} intervals, each by itself; the largest come first.",
                value_label="share uncovered",
                dots=tuple(order),
                references=(Reference(value=NULL, label="like the source", role="null"),),
                grouped=True,
            )
        )
    if beyond and (grid := _pictures(subject, evidence, found, rows["target"])) is not None:
        exhibits.append(grid)
    return Measurement(
        summary=summary, metrics=tuple(metrics), exhibits=tuple(exhibits), caveats=tuple(caveats),
        params={
            "ruler": ruler, "neighbours": NEIGHBOURS, "percentile": PERCENTILE, "distance": "Euclidean", "most_per_domain": MOST_PER_DOMAIN,
            "source_rows": n["source"], "seed": context.seed,
        },
    )  # fmt: skip


def _rows(evidence: Evidence, key: str, role: str, seed: int) -> NDArray[np.int64]:
    """Usable rows, at most MOST_PER_DOMAIN by hash priority, clusters whole."""
    rows = np.flatnonzero(evidence.usable(key, role))
    if not rows.size:
        return rows
    ids = evidence.ids(role)
    kept = bottom_k([ids[int(r)] for r in rows], MOST_PER_DOMAIN, seed, cluster=_of(evidence.cluster(role), rows))
    return np.asarray(rows[kept], dtype=np.int64)


def _of(values: NDArray[Any] | None, rows: NDArray[np.int64]) -> NDArray[Any] | None:
    return None if values is None else np.asarray(values)[rows]


def _slices(evidence: Evidence, rows: NDArray[np.int64]) -> list[tuple[dict[str, str], NDArray[np.bool_]]]:
    """Each class and each group of the target with the rows that are in it."""
    out: list[tuple[dict[str, str], NDArray[np.bool_]]] = []
    try:
        labels, classes = evidence.labels("target")[rows], evidence.classes("target")
        out += [({"class": name}, labels == k) for k, name in enumerate(classes) if (labels == k).any()]
    except NotEvaluated:
        pass  # classes are shown where there are some
    for column, values in evidence.groups("target").items():
        held = values[rows]
        out += [({column: group}, held == group) for group in sorted(set(held.tolist()), key=lambda g: (g == "(missing)", g))]
    return out


def _curve(found: Coverage, summary: str, n: dict[str, int], context: Context) -> Lines:
    at = tuple(q for q, _ in found.curve)
    return Lines(
        id="coverage-curve",
        title=summary,
        how_to_read="Share of the target beyond each percentile of the source's own distances. On the dashed line the target is like the source.",
        alt=summary,
        caption=f"n = {n['source']} source, {n['target']} target; fifth neighbour, Euclidean; seed {context.seed}.",
        x_label="percentile of the source's own distances",
        y_label="share of the target beyond it",
        lines=(
            Line(name="target", x=at, y=tuple(share for _, share in found.curve), mark="dot"),
            Line(name="like the source", x=at, y=tuple(1 - q / 100 for q in at), role="null"),
        ),
        y_range=(0.0, 1.0),
    )


def _pictures(subject: Subject, evidence: Evidence, found: Coverage, rows: NDArray[np.int64]) -> ImageGrid | None:
    """The target samples that are furthest from the source."""
    if evidence.samples == "off":
        return None
    redacted = evidence.samples == "redacted"
    samples, spec = subject.target.samples, subject.adapted.preprocessing
    hashes = evidence.content_hashes("target")
    order = np.lexsort((rows, -found.target))
    far = rows[order[: min(MOST_PICTURES, int(found.uncovered.sum()))]]
    grid = []
    for r in far.tolist():
        raw = samples.read(np.array([r], dtype=np.int64))
        if not raw.readable.all():
            continue
        picture = samples.modality.picture(samples.modality.encode(raw, spec)[0], spec, title="target", redacted=redacted)
        if picture is None:
            return None
        grid.append(GridRow(id=short_id(hashes[r], samples.ids[r]), pictures=(picture,)))
    return ImageGrid(
        id="uncovered-pictures",
        title="Target samples furthest from the source",
        how_to_read="Each picture is a target sample with no near neighbour among the source samples, the furthest first.",
        alt=f"{len(grid)} uncovered samples.",
        caption=f"The furthest {len(grid)} of {int(found.uncovered.sum())}.",
        rows=tuple(grid),
        samples="redacted" if redacted else "on",
    )


COVERAGE: tuple[Check, ...] = (source_coverage,)
