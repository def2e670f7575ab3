"""How far activations lie from the statistics that a network stored of them in training (TLA506). Sums merge, shard by shard."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from tl_audit.errors import DataError
from tl_audit.measures.arrays import finite_vector
from tl_audit.measures.estimate import Estimate, FloatArray, IntArray, build_ladder, t_quantile
from tl_audit.measures.sampling import cluster_codes, generator

MOST_BLOCKS = 50


def jackknife_blocks(n: int, *, cluster: ArrayLike | None = None, seed: int = 0) -> IntArray:
    """Block of each row, 0 .. K-1 with K <= 50: one cluster (without clusters one row) a block, or an even share of them drawn at random."""
    codes = cluster_codes(cluster, n)
    units = int(codes.max()) + 1 if n else 0
    if units <= MOST_BLOCKS:
        return codes
    block_of = np.empty(units, dtype=np.int64)
    block_of[generator(seed, "jackknife_blocks").permutation(units)] = np.arange(units) % MOST_BLOCKS
    return block_of[codes]


@dataclass(frozen=True)
class ChannelSums:
    """Sums of the activations of a layer, block by block, measured from the stored means so that nothing cancels.

    Attributes
    ----------
    count : (K,) values per channel (samples times positions) in each block
    total : (K, C) sums of (value - stored mean)
    squares : (K, C) sums of its squares
    """

    count: FloatArray
    total: FloatArray
    squares: FloatArray

    @classmethod
    def empty(cls, blocks: int, channels: int) -> ChannelSums:
        return cls(np.zeros(blocks), np.zeros((blocks, channels)), np.zeros((blocks, channels)))

    def merge(self, other: ChannelSums) -> ChannelSums:
        """Sums over the rows of both, which use the same blocks."""
        if self.total.shape != other.total.shape:
            raise DataError(f"sums of shape {self.total.shape} and {other.total.shape} are not of one layer and one set of blocks")
        return ChannelSums(self.count + other.count, self.total + other.total, self.squares + other.squares)


def channel_shift(sums: ChannelSums, stored_variance: ArrayLike, *, n: int, clusters: int | None = None) -> Estimate:
    """Mean over channels of ((m - m_s)² + (s - s_s)²) / s_s²: distance of a layer's mean and deviation from the stored ones (null 0).

    In units of stored variances, lower is better, not clipped. The plug-in value is too large by about 1.5/n where nothing moved; value and
    interval come from the delete-one-block jackknife, which takes that away. Channels with a stored variance of 0 are left out.
    ``details``: ``plug_in``, ``error``, ``freedom``, ``channels``, ``dead_channels``.

    Parameters
    ----------
    stored_variance : (C,)
    n, clusters : rows and clusters behind the sums, for the record

    References
    ----------
    After Ishii, Sugiyama (2021). Source-free domain adaptation via distributional alignment by matching batch normalization statistics.
    arXiv:2101.10842
    """
    variance = finite_vector(stored_variance, "stored_variance")
    if variance.size != sums.total.shape[1]:
        raise DataError(f"stored_variance has {variance.size} channels, the sums have {sums.total.shape[1]}")
    alive = variance > 0
    filled = sums.count > 0
    dead = int((~alive).sum())
    base = Estimate(None, n, null=0.0, clusters=clusters, details={"channels": int(alive.sum()), "dead_channels": dead})
    if not alive.any():
        return replace(base, reason="every channel has a stored variance of 0")
    if not filled.any():
        return replace(base, reason="no activations")
    count, total, squares = sums.count[filled], sums.total[filled][:, alive], sums.squares[filled][:, alive]
    spread = variance[alive]
    plug_in = float(_distance(count.sum()[None], total.sum(axis=0)[None], squares.sum(axis=0)[None], spread)[0])
    blocks = count.size
    if blocks < 2:
        return replace(base, value=plug_in, reason="all samples belong to one cluster: neither bias nor interval can be had")
    left = _distance(count.sum() - count, total.sum(axis=0) - total, squares.sum(axis=0) - squares, spread)
    value = float(blocks * plug_in - (blocks - 1) * left.mean())
    error = float(np.sqrt((blocks - 1) / blocks * ((left - left.mean()) ** 2).sum()))
    return _with_error(replace(base, value=value, details=base.details | {"plug_in": plug_in}), error, blocks - 1.0)


def shift_excess(target: Estimate, reference: Estimate) -> Estimate:
    """Difference of two `channel_shift`s of independent samples, target - reference (null 0), with a Welch interval.

    Samples that share clusters are alike, which makes the true error smaller and this interval careful.
    """
    n = target.n + reference.n
    clusters = None if target.clusters is None or reference.clusters is None else min(target.clusters, reference.clusters)
    base = Estimate(None, n, null=0.0, clusters=clusters)
    for name, one in (("target", target), ("reference", reference)):
        if one.value is None:
            return replace(base, reason=f"undefined on the {name}: {one.reason}")
    assert target.value is not None
    assert reference.value is not None
    base = replace(base, value=target.value - reference.value)
    if "error" not in target.details or "error" not in reference.details:
        return replace(base, reason="no interval on one of the two domains")
    parts = [(one.details["error"] ** 2, one.details["freedom"]) for one in (target, reference)]
    error = float(np.sqrt(sum(v for v, _ in parts)))
    spread = sum(v**2 / freedom for v, freedom in parts)
    freedom = min(f for _, f in parts) if spread == 0 else error**4 / spread
    return _with_error(base, error, freedom)


def _distance(count: FloatArray, total: FloatArray, squares: FloatArray, variance: FloatArray) -> FloatArray:
    mean = total / count[:, None]
    deviation = np.sqrt(np.maximum(squares / count[:, None] - mean**2, 0.0))
    return np.asarray(((mean**2 + (deviation - np.sqrt(variance)) ** 2) / variance).mean(axis=1), dtype=np.float64)


def _with_error(estimate: Estimate, error: float, freedom: float) -> Estimate:
    value = estimate.value or 0.0

    def bounds(alpha: float) -> tuple[float, float]:
        half = t_quantile(alpha, freedom) * error
        return value - half, value + half

    return replace(
        estimate, ladder=build_ladder(bounds), details=estimate.details | {"error": error, "freedom": freedom, "method": "jackknife"}
    )
