"""Membership inference: how well a score tells training rows from held-out ones. Cuts are chosen on one half and judged on the other."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from tl_audit.errors import DataError
from tl_audit.measures import intervals
from tl_audit.measures.arrays import class_vector, finite_matrix, finite_vector, same_length
from tl_audit.measures.estimate import BoolArray, Estimate, FloatArray, IntArray
from tl_audit.measures.sampling import cluster_codes, generator, split_by_cluster

FPR = 0.01
LEAST_NONMEMBERS = 1000
"""Non-members that each half must hold before a rate at 1 % false alarms is stated."""

FOLDS = 5
MOST_AXES = 64
PROBE_STRENGTH = 0.1
_FLOOR = 1e-12
TIED = "the scores are tied: no cut can tell anybody apart"


@dataclass(frozen=True)
class Attack:
    """What one score gives away of who was in the training set.

    Attributes
    ----------
    auc : chance that a member scores above a non-member (0–1, null 0.5) [I9], all rows
    advantage : TPR - FPR (-1..1, null 0) on half 2, at the cut that is best on half 1 [I2]
    tpr : share of members named on half 2 at the cut that 1 % of the non-members of half 1 exceed (null 0.01) [I7]
    fpr : share of non-members named there [I7]
    excess : tpr - fpr (null 0) [I2]
    """

    auc: Estimate
    advantage: Estimate
    tpr: Estimate
    fpr: Estimate
    excess: Estimate


def membership(
    members: ArrayLike,
    others: ArrayLike,
    *,
    cluster_members: ArrayLike | None = None,
    cluster_others: ArrayLike | None = None,
    seed: int = 0,
) -> Attack:
    """The attack that calls a row a member where its score is high. Lower is better in everything but ``fpr``, which has no direction.

    Parameters
    ----------
    members : (N,), scores of the training rows
    others : (M,), scores of rows of the same distribution that were not trained on
    cluster_members, cluster_others : (N,), (M,); both or neither

    References
    ----------
    Yeom et al. (2018). Privacy risk in machine learning. arXiv:1709.01604
    Carlini et al. (2022). Membership inference attacks from first principles. arXiv:2112.03570
    """
    a, b = finite_vector(members, "members"), finite_vector(others, "others")
    if (cluster_members is None) != (cluster_others is None):
        raise DataError("membership needs cluster ids of both sides, or of neither")
    n, m = a.size, b.size
    unit = None
    if cluster_members is not None and cluster_others is not None:
        unit = cluster_codes(np.r_[np.asarray(cluster_members, dtype=object), np.asarray(cluster_others, dtype=object)], n + m)
    if n == 0 or m == 0 or np.ptp(np.r_[a, b]) == 0:
        why = "no members" if n == 0 else "no non-members" if m == 0 else TIED
        gone = Estimate(None, n + m, why)
        half, chance = replace(gone, null=0.5), replace(gone, null=FPR)
        return Attack(half, replace(gone, null=0.0), chance, gone, replace(gone, null=0.0))
    is_member = np.r_[np.ones(n, dtype=np.bool_), np.zeros(m, dtype=np.bool_)]
    area = intervals.auc(is_member, np.r_[a, b], cluster=unit, seed=seed)
    first, second = _halves(n, m, unit, seed)
    advantage = _advantage(a, b, first, second, unit)
    tpr, fpr, excess = _at_low_fpr(a, b, first, second, unit)
    return Attack(area, advantage, tpr, fpr, excess)


Halves = tuple[BoolArray, BoolArray]
"""Masks of the members and of the non-members."""


def _halves(n: int, m: int, unit: IntArray | None, seed: int) -> tuple[Halves, Halves]:
    """(half 1, half 2); a cluster that holds members and non-members is in one half only."""
    if unit is not None and np.intersect1d(unit[:n], unit[n:]).size:
        both = split_by_cluster(unit, n + m, seed)
        one = both[:n], both[n:]
    else:
        one = (
            split_by_cluster(None if unit is None else unit[:n], n, seed),
            split_by_cluster(None if unit is None else unit[n:], m, seed + 1),
        )
    return one, (~one[0], ~one[1])


def _share(named: BoolArray, unit: IntArray | None) -> Estimate:
    if unit is None:
        return intervals.clopper_pearson(int(named.sum()), named.size)
    return intervals.rate(named, cluster=unit)


def _units(unit: IntArray | None, n: int, half: Halves) -> tuple[IntArray | None, IntArray | None]:
    return (None, None) if unit is None else (unit[:n][half[0]], unit[n:][half[1]])


def _advantage(a: FloatArray, b: FloatArray, first: Halves, second: Halves, unit: IntArray | None) -> Estimate:
    ones, zeros = np.sort(a[first[0]]), np.sort(b[first[1]])
    rows = int(second[0].sum() + second[1].sum())
    if not (ones.size and zeros.size and second[0].any() and second[1].any()):
        return Estimate(None, rows, "a half without members or non-members", null=0.0)
    cuts = np.unique(np.r_[ones, zeros])
    gain = np.searchsorted(zeros, cuts, side="right") / zeros.size - np.searchsorted(ones, cuts, side="right") / ones.size
    cut = float(cuts[int(np.argmax(gain))])
    of_members, of_others = _units(unit, a.size, second)
    found = intervals.newcombe(
        intervals.rate(a[second[0]] > cut, cluster=of_members), intervals.rate(b[second[1]] > cut, cluster=of_others)
    )
    return replace(found, null=0.0)


def _at_low_fpr(a: FloatArray, b: FloatArray, first: Halves, second: Halves, unit: IntArray | None) -> tuple[Estimate, Estimate, Estimate]:
    """(TPR, achieved FPR, excess) on half 2 at the cut that 1 % of the non-members of half 1 exceed."""
    least = int(min(first[1].sum(), second[1].sum()))
    rows = int(second[0].sum() + second[1].sum())
    why = None
    cut = np.inf
    if least < LEAST_NONMEMBERS:
        why = f"{least} non-members in a half are fewer than the {LEAST_NONMEMBERS} that a rate at 1 % false alarms needs"
    elif not second[0].any():
        why = "no members in the half that is judged"
    else:
        calm = np.sort(b[first[1]])
        wanted = int(FPR * calm.size)
        cut = float(calm[calm.size - wanted - 1])
        if int((calm > cut).sum()) < wanted / 2:
            why = TIED  # so many share the highest scores that the cut would name nobody: a rate of 0 would be no finding
    if why is not None:
        gone = Estimate(None, rows, why)
        return replace(gone, null=FPR), gone, replace(gone, null=0.0)
    of_members, of_others = _units(unit, a.size, second)
    hits, alarms = a[second[0]] > cut, b[second[1]] > cut
    tpr, fpr = _share(hits, of_members), _share(alarms, of_others)
    excess = intervals.newcombe(intervals.rate(hits, cluster=of_members), intervals.rate(alarms, cluster=of_others))
    return replace(tpr, null=FPR), fpr, replace(excess, null=0.0)


def roc(members: ArrayLike, others: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """(FPR, TPR) at every cut from the strictest on, both rising from above 0 to 1; rows with equal scores go over together."""
    a, b = np.sort(finite_vector(members, "members")), np.sort(finite_vector(others, "others"))
    cuts = np.unique(np.r_[a, b])[::-1]
    return 1 - np.searchsorted(b, cuts, side="left") / b.size, 1 - np.searchsorted(a, cuts, side="left") / a.size


def cross_fitted_loss(
    features: ArrayLike, labels: ArrayLike, *, classes: int, cluster: ArrayLike | None = None, seed: int = 0
) -> FloatArray | None:
    """(N,) log-loss of each row under a linear probe that was not trained on it: how hard the row is for anyone who has not seen it.

    Five folds of whole clusters; features standardised and brought to at most 64 principal axes, labels unseen. None where there are
    fewer than two folds or classes to learn from.

    Parameters
    ----------
    features : (N, D), of a model that was not trained on the rows
    labels : (N,)
    """
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    x = finite_matrix(features, "features")
    y = class_vector(labels, classes, "labels")
    n = same_length(features=x.shape[0], labels=y.size)
    codes = cluster_codes(cluster, n)
    units = int(codes.max()) + 1 if n else 0
    folds = min(FOLDS, units)
    if folds < 2:
        return None
    scale = x.std(axis=0)
    varies = scale > 1e-12 * np.maximum(1.0, np.abs(x.mean(axis=0)))
    x = (x[:, varies] - x[:, varies].mean(axis=0)) / scale[varies]
    if min(x.shape) > MOST_AXES:
        whole = PCA(MOST_AXES, svd_solver="randomized", random_state=int(generator(seed, "axes").integers(2**31))).fit_transform(x)
        x = np.asarray(whole / max(float(whole.std(axis=0).max()), _FLOOR), dtype=np.float64)
    fold = (generator(seed, "folds").permutation(units) % folds)[codes]
    loss = np.empty(n)
    for k in range(folds):
        held = fold == k
        seen = np.unique(y[~held])
        p = np.zeros((int(held.sum()), classes))
        if seen.size < 2 or x.shape[1] == 0:
            if seen.size == 0:
                return None
            counts = np.bincount(y[~held], minlength=classes)
            p[:] = counts / counts.sum()
        else:
            model = LogisticRegression(C=PROBE_STRENGTH, max_iter=200)
            with warnings.catch_warnings():
                # near the optimum is good enough: any fixed probe that has not seen the rows serves
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(x[~held], y[~held])
            p[:, model.classes_] = model.predict_proba(x[held])
        loss[held] = -np.log(np.maximum(p[np.arange(len(p)), y[held]], _FLOOR))
    return loss
