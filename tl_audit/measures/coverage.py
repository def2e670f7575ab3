"""Which part of the target has no near neighbour in the source (TLA207)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from tl_audit.measures.arrays import finite_matrix
from tl_audit.measures.estimate import BoolArray, Estimate, FloatArray, Ladder, interval_at
from tl_audit.measures.intervals import rate
from tl_audit.measures.neighbours import knn_distance
from tl_audit.measures.sampling import split_by_cluster

NEIGHBOURS = 5
PERCENTILE = 95.0
NULL = 0.05  # 1 - PERCENTILE / 100, by construction
CURVE = (50.0, 60.0, 70.0, 75.0, 80.0, 85.0, 90.0, 92.5, 95.0, 97.5, 99.0)


@dataclass(frozen=True)
class Coverage:
    """Distances of target rows to the source, held against those of one half of the source to the other.

    Attributes
    ----------
    threshold : u, the 95th percentile of the distances of half B to half A; None where there is none
    target : (M,) distances of target rows to their k-th neighbour in half A
    second : (n_B,) the same of half B
    cluster : of the rows of half B, None where rows are the units
    curve : (percentile, share of the target beyond that percentile of half B)
    reason : why there is no threshold, else None
    """

    threshold: float | None
    target: FloatArray
    second: FloatArray
    cluster: FloatArray | None
    curve: tuple[tuple[float, float], ...]
    reason: str | None = None

    @property
    def uncovered(self) -> BoolArray:
        """(M,) target rows further from the source than the source is from itself in 95 of 100 cases."""
        return self.target > (np.inf if self.threshold is None else self.threshold)

    def share(self, rows: ArrayLike | None = None, *, cluster: ArrayLike | None = None) -> Estimate:
        """Share of (some) target rows that are uncovered (0-1, null 0.05, lower is better).

        Interval [I1] or [I4], widened by what the threshold may be off: to each side the change of the share is added, as a root of squares, that
        moving the threshold to the end of the interval of the source's own share beyond it makes.
        """
        picked = np.arange(self.target.size) if rows is None else np.flatnonzero(np.asarray(rows, dtype=np.bool_))
        if self.threshold is None:
            return Estimate(None, int(picked.size), self.reason, null=NULL)
        flags = self.uncovered[picked]
        own = rate(flags, cluster=None if cluster is None else np.asarray(cluster)[picked])
        if own.value is None:
            return replace(own, null=NULL)
        base = rate(self.second > self.threshold, cluster=self.cluster)
        return replace(own, null=NULL, ladder=_widened(own.value, own.ladder, base.ladder, self.target[picked], self.second))


def coverage(
    source: ArrayLike, target: ArrayLike, *, cluster_source: ArrayLike | None = None, neighbours: int = NEIGHBOURS, seed: int = 0
) -> Coverage:
    """Split the source in halves A and B (whole clusters); hold target rows' k-th neighbour distance to A against half B's own.

    Both look at the same reference of the same size: a distance to the nearest shrinks as the reference grows. Euclidean, in the features' own units.

    Parameters
    ----------
    source, target : (N, D) and (M, D)
    cluster_source : (N,)

    References
    ----------
    Sun et al. (2022). Out-of-distribution detection with deep nearest neighbors. ICML. arXiv:2204.06507
    """
    x, y = finite_matrix(source, "source"), finite_matrix(target, "target")
    first = split_by_cluster(cluster_source, x.shape[0], seed)
    none = np.zeros(0)
    if int(first.sum()) < neighbours or not (~first).any():
        return Coverage(None, np.full(y.shape[0], np.nan), none, None, (), f"a half of the source has fewer than {neighbours} rows")
    if not np.ptp(x, axis=0).any():
        return Coverage(None, np.full(y.shape[0], np.nan), none, None, (), "all source rows have the same features: no distance is far")
    second = knn_distance(x[~first], x[first], neighbours)
    to_source = knn_distance(y, x[first], neighbours) if y.shape[0] else none
    threshold = float(np.quantile(second, PERCENTILE / 100, method="higher"))
    cuts = np.quantile(second, np.array(CURVE) / 100)
    curve = tuple((q, float((to_source > cut).mean())) for q, cut in zip(CURVE, cuts.tolist(), strict=True)) if y.shape[0] else ()
    ids = None if cluster_source is None else np.asarray(cluster_source)[~first]
    return Coverage(threshold, to_source, second, ids, curve)


def _widened(value: float, own: Ladder, base: Ladder, target: FloatArray, second: FloatArray) -> Ladder:
    """Bounds that allow for both: the rows that were drawn, and the threshold that was."""
    out = []
    for alpha, low, high in own:
        of_base = interval_at(base, alpha)
        if of_base is None:
            continue
        # the source's share beyond the true threshold lies between these, so the threshold between their quantiles
        lower, upper = (float((target > np.quantile(second, 1 - share)).mean()) for share in of_base)
        down, up = np.hypot(value - low, max(0.0, value - lower)), np.hypot(high - value, max(0.0, upper - value))
        out.append((alpha, max(0.0, value - float(down)), min(1.0, value + float(up))))
    return tuple(out)
