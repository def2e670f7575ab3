"""Family 8, privacy: does the model give away whom it was trained on?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_audit.checks.base import Check, Context, check, metric
from tl_audit.checks.selection import Judged, clusters_of_both, judged
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures import calibration, membership, shift
from tl_audit.measures.estimate import Estimate
from tl_audit.measures.sampling import bottom_k
from tl_audit.records.exhibits import Line, Lines
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject

DOMAIN_TEST = "TLA501"
TELLS_APART = 0.60
"""AUC of a domain classifier above which two sets are not of one distribution, where the policy's own limit on TLA501 is not known."""

MOST_COMPARED = 1000
MOST_PROBED = 4000
CURVE_POINTS = 60


@check(
    "TLA803",
    "Membership inference",
    section="robustness",
    severity="high",
    needs=("adapted", "train.labels", "adapted@train", "validation.labels|target.labels", "adapted@validation|adapted@target"),
    phase=2,
    after=(DOMAIN_TEST,),
)
def membership_inference(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Can one tell from its answers who was in the training set?

    How it is measured: the model's loss on rows that it was trained on is compared with that on held-out rows of the same distribution
    (validation data of the run, else the target), and once more after taking away how hard a row is for a linear probe on the base's features
    that was not trained on it. Cuts are chosen on one half of the rows and judged on the other. A classifier on the base's features must not
    tell the two sets apart, else the attack would measure the shift and nothing is said.

    Why it matters: whoever can ask the model learns whether a person was in the training data, which may itself be a secret.

    How to reduce the risk: fewer epochs, earlier stopping, more data, fewer trainable layers, training with differential privacy. A low value
    speaks of this attack only: it does not prove privacy.
    """
    rules, seed = context.rules, context.seed
    role, members, others, caveats = _sides(evidence, rules.min_n)
    n = {"train": members.n, role: others.n}
    of_members, of_others = clusters_of_both(members.cluster, others.cluster, (members.n, others.n))
    loss = -calibration.nll_rows(members.probabilities, members.truth), -calibration.nll_rows(others.probabilities, others.truth)
    attacks = {"loss": membership.membership(*loss, cluster_members=of_members, cluster_others=of_others, seed=seed)}
    sizes = {"loss": n}
    key = next((k for k in ("base", "control:head") if evidence.has(k, "train") and evidence.has(k, role)), None)
    different = _difference(evidence, context, role, members, others, key, caveats)
    corrected, missing = None, "no base model or head control whose features a probe could read"
    if key is not None:
        corrected = _corrected(evidence, key, role, members, others, loss, seed)
        missing = "no probe could be trained on the base's features"
    if corrected is not None:
        scores, rows = corrected
        units = (None, None) if of_members is None or of_others is None else (of_members[rows[0]], of_others[rows[1]])
        attacks["loss beyond a probe"] = membership.membership(*scores, cluster_members=units[0], cluster_others=units[1], seed=seed)
        sizes["loss beyond a probe"] = {"train": rows[0].size, role: rows[1].size}
    metrics: list[Metric] = []
    for name in ("loss", "loss beyond a probe"):
        attack = attacks.get(name)
        for field, label in _NAMES.items():
            found = Estimate(None, members.n + others.n, missing) if attack is None else getattr(attack, field)
            if different is not None and found.value is not None:
                found = Estimate(None, found.n, f"{different}; it would measure that ({found.value:.3f})", null=found.null)
            better: Any = None if field == "fpr" else "lower"
            metrics.append(metric(label, found, rules=rules, better=better, slice={"score": name}, n=sizes.get(name, n), family=label))
    unsaid = attacks["loss"].tpr.reason
    if unsaid is not None:
        caveats.append(f"The rate at 1 % false alarms is not stated: {unsaid}.")
    caveats.append("A low value speaks of this attack alone: it does not prove privacy.")
    area = attacks["loss"].auc
    summary = (
        f"Whether membership shows cannot be told: {different}."
        if different is not None
        else f"The loss cannot tell: {area.reason}."
        if area.value is None
        else f"A training row has a lower loss than a held-out one in {area.value:.1%} of pairs (50 % by chance)."
    )
    return Measurement(
        summary=summary,
        metrics=tuple(metrics),
        exhibits=(_curves({"loss": loss} | ({} if corrected is None else {"loss beyond a probe": corrected[0]}), n, summary),),
        caveats=tuple(caveats),
        params={"held_out": role, "probe": key, "seed": seed},
    )


_NAMES = {
    "auc": "attack_auc",
    "advantage": "attack_advantage",
    "tpr": "tpr_at_fpr_1pct",
    "fpr": "fpr_achieved",
    "excess": "tpr_excess",
}

Scores = tuple[NDArray[np.float64], NDArray[np.float64]]
RowsOfBoth = tuple[NDArray[np.int64], NDArray[np.int64]]


def _sides(evidence: Evidence, least: int) -> tuple[str, Judged, Judged, list[str]]:
    """(role of the held-out data, members, non-members, caveats). What lies in both by content is on neither side, or held out only."""
    members = judged(evidence, "adapted", "train")
    seen = np.asarray(evidence.content_hashes("train"))[members.rows]
    chosen = None
    for role in ("validation", "target"):
        if not (evidence.has(None, role) and evidence.has("adapted", role)):
            continue
        try:
            others = judged(evidence, "adapted", role)
        except NotEvaluated:
            continue
        chosen = role, others
        if others.n >= least:
            break
    if chosen is None:
        raise NotEvaluated("labelled held-out rows: validation data of the run, or a target")
    role, others = chosen
    held = np.asarray(evidence.content_hashes(role))[others.rows]
    caveats = list(dict.fromkeys((*members.caveats, *others.caveats)))
    shared = _among(seen, held)
    if shared.any():
        # a folder given as training data may hold the validation split; a target row that was trained on is no non-member
        also = np.zeros(held.size, dtype=np.bool_) if role == "validation" else _among(held, seen)
        members, others = _kept(members, ~shared), _kept(others, ~also)
        caveats.append(f"{int(shared.sum())} training rows that lie in the {role} data as well were left out.")
    if members.n == 0 or others.n == 0:
        raise NotEvaluated(f"rows that are in the training data or in the {role} data alone")
    return role, members, others, caveats


def _among(hashes: NDArray[np.object_], others: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Whether each hash occurs among the others, as numpy.isin, which compares objects pair by pair."""
    known = set(others.tolist())
    return np.fromiter((one in known for one in hashes.tolist()), dtype=np.bool_, count=hashes.size)


def _kept(side: Judged, mask: NDArray[np.bool_]) -> Judged:
    return replace(
        side,
        rows=side.rows[mask],
        truth=side.truth[mask],
        predicted=side.predicted[mask],
        probabilities=side.probabilities[mask],
        correct=side.correct[mask],
        cluster=None if side.cluster is None else side.cluster[mask],
    )


def _difference(
    evidence: Evidence, context: Context, role: str, members: Judged, others: Judged, key: str | None, caveats: list[str]
) -> str | None:
    """Why the two sets are not of one distribution, in words; None where nothing shows it."""
    finding = next((f for f in context.findings if f.code == DOMAIN_TEST), None)
    if key is None:
        if role == "validation":
            caveats.append("Training and validation data are taken to be of one distribution: without a base model this was not tested.")
            return None
        if finding is not None and finding.status not in ("warn", "fail", "not_evaluated", "error"):
            return None
        return f"nothing shows that training and target data are of one distribution ({DOMAIN_TEST})"
    bounds = [x.value for x in finding.limits if x.metric == "c2st_auc"] if finding is not None else []
    sets, units = [], []
    for name, side in (("train", members), (role, others)):
        usable = evidence.usable(key, name)[side.rows]
        rows = np.flatnonzero(usable)
        ids = evidence.ids(name)
        rows = rows[bottom_k([ids[r] for r in side.rows[rows]], MOST_COMPARED, context.seed)]
        sets.append(np.asarray(evidence.features(key, name)[side.rows[rows]], dtype=np.float64))
        units.append(None if side.cluster is None else side.cluster[rows])
    of_first, of_second = clusters_of_both(units[0], units[1], (len(sets[0]), len(sets[1])))
    found = shift.c2st(sets[0], sets[1], cluster_source=of_first, cluster_target=of_second, seed=context.seed, alpha=context.rules.alpha)
    interval = found.interval(context.rules.confidence)
    if found.value is None or interval is None or found.p_value is None:
        caveats.append(f"Whether training and {role} data are of one distribution could not be tested: {found.reason or 'no test'}.")
        return None
    limit = min(bounds) if bounds else TELLS_APART
    if interval[0] > limit and found.p_value < context.rules.alpha:
        return f"training and {role} data are told apart by the base's features (AUC {found.value:.2f}, lower bound above {limit:g})"
    caveats.append(
        f"A classifier on the base's features tells training and {role} data apart with an AUC of {found.value:.2f} (0.5: not at all)."
    )
    return None


def _corrected(
    evidence: Evidence, key: str, role: str, members: Judged, others: Judged, loss: Scores, seed: int
) -> tuple[Scores, RowsOfBoth] | None:
    """-(loss - the loss of a probe that has not seen the row), and the places of the rows in members and non-members."""
    places, features, truths = [], [], []
    for name, side in (("train", members), (role, others)):
        rows = np.flatnonzero(evidence.usable(key, name)[side.rows])
        ids = evidence.ids(name)
        rows = rows[bottom_k([ids[r] for r in side.rows[rows]], MOST_PROBED, seed)]
        places.append(rows)
        features.append(np.asarray(evidence.features(key, name)[side.rows[rows]], dtype=np.float64))
        truths.append(side.truth[rows])
    if min(len(p) for p in places) == 0:
        return None
    of_first, of_second = clusters_of_both(members.cluster, others.cluster, (members.n, others.n))
    unit = None if of_first is None or of_second is None else np.r_[of_first[places[0]], of_second[places[1]]]
    hard = membership.cross_fitted_loss(
        np.r_[features[0], features[1]], np.r_[truths[0], truths[1]], classes=len(members.classes), cluster=unit, seed=seed
    )
    if hard is None:
        return None
    cut = places[0].size
    return (loss[0][places[0]] + hard[:cut], loss[1][places[1]] + hard[cut:]), (places[0], places[1])


def _curves(scores: Mapping[str, Scores], n: Mapping[str, int], summary: str) -> Lines:
    """ROC curves on two logarithmic axes: what can be said of a few people with certainty stands at the left."""
    lines = []
    lowest = -np.log10(max(n.values()))
    for name, (a, b) in scores.items():
        fpr, tpr = membership.roc(a, b)
        shown = np.flatnonzero((fpr > 0) & (tpr > 0))
        if shown.size > CURVE_POINTS:
            wanted = np.linspace(np.log10(fpr[shown[0]]), 0, CURVE_POINTS)
            shown = shown[np.unique(np.searchsorted(np.log10(fpr[shown]), wanted).clip(0, shown.size - 1))]
        if shown.size:
            x, y = np.log10(fpr[shown]), np.log10(tpr[shown])
            lines.append(Line(name=name, x=tuple(map(float, x)), y=tuple(map(float, y))))
    lines.append(Line(name="chance", x=(float(lowest), 0.0), y=(float(lowest), 0.0), role="reference"))
    return Lines(
        id="membership",
        title=summary,
        how_to_read="Share of training rows named against share of held-out rows named in error, both as powers of ten: -2 is 1 in 100. "
        "Above the diagonal, at the left, few are named and most of them rightly.",
        alt=summary,
        caption="; ".join(f"n = {count} {name}" for name, count in n.items()) + ".",
        x_label="log10 of the false alarm rate",
        y_label="log10 of the share named",
        lines=tuple(lines),
    )


PRIVACY: tuple[Check, ...] = (membership_inference,)
