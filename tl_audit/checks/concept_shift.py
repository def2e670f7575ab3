"""Family 5, concept shift: does the same input mean another label in the target (TLA504)?"""

from __future__ import annotations

import numpy as np

from tl_audit.checks.base import Check, Context, check, metric
from tl_audit.checks.selection import clusters_of_both, common_names, rows_alone, side_of, units_in
from tl_audit.checks.shift import LEAST_PER_DOMAIN
from tl_audit.checks.wording import number, p_value, percent
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures import concept
from tl_audit.records.exhibits import Bar, Bars, Column, Exhibit, Table
from tl_audit.records.metrics import Measurement
from tl_audit.subject import Subject

MOST_PER_DOMAIN = 1000
"""Samples of each domain, by hash priority; both domains give equally many, or the overlap would speak of their sizes."""


@check(
    "TLA504",
    "Concept shift",
    section="shift",
    severity="high",
    needs=("source.labels", "target.labels", "base@source|adapted@source", "base@target|adapted@target"),
)
def concept_shift(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Does the same input mean another label in the target?

    How it is measured: on penultimate features of the base, how much a held-out log-loss falls when the reading of the inputs may differ
    between source and target, beyond another mix of classes; tested by drawing anew which sample belongs to which domain, given its features.
    Only samples that could come from either domain count.

    Why it matters: no weights and no other class mix mend a label that has changed its meaning; source labels then teach the wrong thing.

    How to reduce the risk: compare how labels were made in both places; let both sides label a few of the same samples; adapt on target labels.
    """
    rules, seed = context.rules, context.seed
    names = common_names(evidence)
    if len(names) < 2:
        raise NotEvaluated("two classes that both source and target hold")
    ruler = next(
        (k for k in ("base", "adapted") if subject.model(k) is not None and evidence.has(k, "source") and evidence.has(k, "target")), None
    )
    if ruler is None:
        raise NotEvaluated("features of one model on source and target")
    most = min(MOST_PER_DOMAIN, *(side_of(evidence, ruler, role, names, most=None, seed=seed).rows.size for role in ("source", "target")))
    if most < LEAST_PER_DOMAIN:
        raise NotEvaluated(f"{LEAST_PER_DOMAIN} labelled samples of the common classes in both source and target")
    a, b = (side_of(evidence, ruler, role, names, most=most, seed=seed) for role in ("source", "target"))
    unit_a, unit_b = clusters_of_both(a.cluster, b.cluster, (a.rows.size, b.rows.size))
    found = concept.concept_shift(
        np.asarray(evidence.features(ruler, "source")[a.rows], dtype=np.float64), a.labels,
        np.asarray(evidence.features(ruler, "target")[b.rows], dtype=np.float64), b.labels,
        classes=len(names), cluster_source=unit_a, cluster_target=unit_b, seed=seed,
    )  # fmt: skip
    units = None if unit_a is None or unit_b is None else {"source": units_in(unit_a), "target": units_in(unit_b)}
    inside = found.gain.details
    n = {"source": int(inside.get("n_source", a.rows.size)), "target": int(inside.get("n_target", b.rows.size))}
    metrics = (
        metric("concept_gain", found.gain, rules=rules, better="lower", unit="nats", n=n, clusters=units, min_n=LEAST_PER_DOMAIN),
        metric(
            "overlap_share", found.overlap, rules=rules, better="higher", n={"source": int(a.rows.size), "target": int(b.rows.size)},
            reason=None if found.overlap.value is None else "a share of estimated chances: shown without an interval",
        ),
    )  # fmt: skip
    exhibits: list[Exhibit] = []
    if found.gain.value is None:
        summary = f"Not told: {found.gain.reason}."
    else:
        summary = (
            f"A reading of the inputs that may differ between source and target saves {number(found.gain.value)} nats per held-out sample "
            f"(p = {p_value(found.gain.p_value)}; by chance up to {number(inside['null_95'])}); {percent(found.overlap.value)} of the samples could come from either domain."
        )
        exhibits = [_by_class(found, names, summary), _facts(found, summary, n)]
    caveats = []
    if ruler != "base":
        caveats.append("No base model: features of the adapted model serve as the ruler; adaptation itself moves them.")
    left = [name for k, name in enumerate(names) if k not in found.classes]
    if left:
        caveats.append(
            f"Left out, fewer than {concept.LEAST_PER_CLASS} samples in one domain or not among the {concept.MOST_CLASSES} commonest classes: {', '.join(left[:20])}{' and more' if len(left) > 20 else ''}."
        )
    caveats.append(
        "A label that one domain gives more freely for all inputs alike cannot be told from another class mix (TLA502) and counts as that."
    )
    caveats.append(
        "A change of meaning that a linear reading of the features cannot follow stays unseen. TLA509 says whether it costs performance."
    )
    if alone := rows_alone(evidence, ("source", "target")):
        caveats.append(alone)
    return Measurement(
        summary=summary, metrics=metrics, exhibits=tuple(exhibits), caveats=tuple(caveats),
        params={
            "ruler": ruler, "per_domain": most, "axes": inside.get("axes"), "resamples": concept.RESAMPLES, "folds": concept.FOLDS,
            "ridge": concept.RIDGE, "overlap_from": concept.OVERLAP[0], "overlap_to": concept.OVERLAP[1], "seed": seed,
        },
    )  # fmt: skip


def _by_class(found: concept.ConceptShift, names: tuple[str, ...], summary: str) -> Bars:
    bars = [
        Bar(label=names[k], value=gain.value, null=0.0, n=gain.n, note=gain.reason)
        for k, gain in zip(found.classes, found.by_class, strict=True)
    ]
    return Bars(
        id="gain-by-class",
        title="Whose labels are read otherwise in the target",
        how_to_read="Log-loss saved per held-out sample of the class; to the right, the label of such inputs depends on where they come from.",
        alt=summary,
        caption="Mean over held-out samples of each class, without intervals; the test is on all classes together.",
        value_label="nats saved",
        bars=tuple(sorted(bars, key=lambda bar: (-(bar.value if bar.value is not None else -1e9), bar.label))[:20]),
        signed=True,
    )


def _facts(found: concept.ConceptShift, summary: str, n: dict[str, int]) -> Table:
    inside = found.gain.details
    rows = (
        ("log-loss saved per sample (nats)", found.gain.value),
        ("its mean by chance", inside["null_mean"]),
        ("95 % of chance stay below", inside["null_95"]),
        ("p", found.gain.p_value),
        ("share that could come from either domain", found.overlap.value),
        ("samples of the source that count", n["source"]),
        ("samples of the target that count", n["target"]),
    )
    return Table(
        id="test",
        title="The gain against chance",
        how_to_read="By chance: the same gain when each sample's domain is drawn anew from what its features say of it.",
        alt=summary,
        caption=f"{inside['resamples']} draws, {concept.FOLDS} folds of whole clusters, {inside['axes']} principal axes.",
        columns=(Column(name="fact"), Column(name="value", format="number")),
        rows=rows,
    )


CONCEPT_SHIFT: tuple[Check, ...] = (concept_shift,)
