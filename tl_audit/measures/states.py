"""Sums that merge: what a shard of rows leaves behind, so that the result of all shards is the result of all rows (CHECKS.md 1.5.8).

A state is frozen, ``merge`` takes another state of the same kind and gives the state of the rows of both, and no order or sharding changes a
result beyond rounding (1e-9 relative). `ChannelSums` (of layers, measures.activations) and `CkaSums` (of batches, measures.representation) are
states too. What needs the rows themselves (ranks, neighbours, kernels) goes by a hash sample: `measures.sampling.bottom_k`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from tl_audit.errors import DataError
from tl_audit.measures.arrays import finite_matrix, same_length
from tl_audit.measures.estimate import Estimate, FloatArray, IntArray, build_ladder, t_quantile
from tl_audit.measures.intervals import wilson


class State(Protocol):
    """What merges."""

    def merge(self, other: Self) -> Self:
        """The state of the rows of both."""
        ...


S = TypeVar("S", bound=State)


def merged(states: Iterable[S]) -> S:
    """All states as one. Raises DataError where there is none."""
    parts = list(states)
    if not parts:
        raise DataError("no state to merge: expected at least one, which may be that of an empty shard")
    return reduce(lambda first, second: first.merge(second), parts)


# ---------------------------------------------------------------- counts


@dataclass(frozen=True)
class Counts:
    """Rows by true label, prediction and group: all that accuracy, rates and gaps of independent rows depend on.

    Attributes
    ----------
    table : (L, P, G) rows with this label, prediction and group
    """

    table: IntArray

    @classmethod
    def of(cls, labels: ArrayLike, predicted: ArrayLike, groups: ArrayLike | None = None, *, shape: tuple[int, int, int]) -> Counts:
        """Counts of rows from codes 0 .. L-1, 0 .. P-1 and 0 .. G-1, each (N,); without ``groups`` all rows are of group 0."""
        y, p = np.asarray(labels), np.asarray(predicted)
        g = np.zeros(y.size, dtype=np.int64) if groups is None else np.asarray(groups)
        same_length(labels=y.size, predicted=p.size, groups=g.size)
        for name, codes, size in zip(("labels", "predicted", "groups"), (y, p, g), shape, strict=True):
            if codes.size and (codes.dtype.kind not in "iub" or codes.min() < 0 or codes.max() >= size):
                raise DataError(f"{name} must be codes from 0 to {size - 1}")
        cell = (y.astype(np.int64) * shape[1] + p) * shape[2] + g
        return cls(np.bincount(cell, minlength=int(np.prod(shape))).reshape(shape).astype(np.int64))

    def merge(self, other: Counts) -> Counts:
        """Counts of the rows of both, which use the same codes."""
        if self.table.shape != other.table.shape:
            raise DataError(f"counts of shape {self.table.shape} and {other.table.shape} do not use the same codes")
        return Counts(self.table + other.table)

    def events(self, metric: str, positive: int | None = None) -> tuple[IntArray, IntArray]:
        """(hits, denominators) of every group, each (G,).

        Parameters
        ----------
        metric : accuracy; with ``positive`` also selection_rate, base_rate, tpr, fpr, precision
        """
        return events_of(self.table, metric, positive)

    def rates(self, metric: str = "accuracy", positive: int | None = None) -> tuple[Estimate, ...]:
        """The rate of every group with its Wilson interval [I1]; undefined where its denominator is empty."""
        hits, base = self.events(metric, positive)
        return tuple(wilson(int(k), int(n)) for k, n in zip(hits, base, strict=True))


RATES = ("accuracy", "selection_rate", "base_rate", "tpr", "fpr", "precision")


def events_of(table: IntArray | FloatArray, metric: str, positive: int | None) -> tuple[IntArray, IntArray]:
    """(hits, denominators) of every group from counts (..., L, P, G), each (..., G)."""
    everything = table.sum(axis=(-3, -2))
    if metric == "accuracy":
        square = min(table.shape[-3], table.shape[-2])
        return table[..., np.arange(square), np.arange(square), :].sum(axis=-2), everything
    if metric not in RATES:
        raise DataError(f"no rate {metric!r}; known: {', '.join(RATES)}")
    if positive is None:
        raise DataError(f"{metric} needs a positive class")
    said, are = table[..., :, positive, :].sum(axis=-2), table[..., positive, :, :].sum(axis=-2)
    both = table[..., positive, positive, :]
    return {
        "selection_rate": (said, everything),
        "base_rate": (are, everything),
        "tpr": (both, are),
        "fpr": (said - both, everything - are),
        "precision": (both, said),
    }[metric]


# ---------------------------------------------------------------- moments


@dataclass(frozen=True)
class Moments:
    """Rows, means and sums of squared deviations of columns, by pairwise updating: nothing cancels, whatever the offset.

    Attributes
    ----------
    n : rows
    mean : (D,)
    squares : (D,) sums of (value - mean)²

    References
    ----------
    Chan, Golub, LeVeque (1983). Algorithms for computing the sample variance. The American Statistician 37.
    """

    n: int
    mean: FloatArray
    squares: FloatArray

    @classmethod
    def of(cls, rows: ArrayLike) -> Moments:
        """Moments of (N, D) finite numbers; N may be 0."""
        x = finite_matrix(rows, "rows")
        if x.shape[0] == 0:
            return cls(0, np.zeros(x.shape[1]), np.zeros(x.shape[1]))
        mean = x.mean(axis=0)
        return cls(x.shape[0], mean, ((x - mean) ** 2).sum(axis=0))

    def merge(self, other: Moments) -> Moments:
        """Moments of the rows of both, which have the same columns."""
        n = _same_columns(self.n, self.mean, other.n, other.mean)
        if n == 0:
            return self
        step = other.mean - self.mean
        share = other.n / n
        return Moments(n, self.mean + share * step, self.squares + other.squares + step**2 * (self.n * share))

    def variance(self) -> FloatArray:
        """(D,) unbiased variance; raises DataError below two rows."""
        if self.n < 2:
            raise DataError(f"a variance needs two rows, there are {self.n}")
        return self.squares / (self.n - 1)

    def estimates(self) -> tuple[Estimate, ...]:
        """The mean of every column with its t interval over independent rows, as `intervals.mean` of the rows gives it."""
        if self.n == 0:
            return tuple(Estimate(None, 0, "no rows") for _ in self.mean)
        values = self.mean.tolist()
        if self.n < 2:
            return tuple(Estimate(value, 1, "one row: no interval", details={"method": "t"}) for value in values)
        return tuple(_t_mean(value, float(np.sqrt(v / self.n)), self.n) for value, v in zip(values, self.variance(), strict=True))


def _t_mean(value: float, error: float, n: int) -> Estimate:
    base = Estimate(value, n, details={"method": "t", "standard_error": error})
    if error <= 1e-12 * max(1.0, abs(value)):
        return replace(base, reason="all units agree: no spread to make an interval from", details={"method": "t"})

    def bounds(alpha: float) -> tuple[float, float]:
        half = error * t_quantile(alpha, n - 1)
        return value - half, value + half

    return replace(base, ladder=build_ladder(bounds))


# ---------------------------------------------------------------- histograms


@dataclass(frozen=True)
class Histogram:
    """Counts of one number in bins that were fixed beforehand.

    Attributes
    ----------
    edges : (K-1,) ascending upper edges of all bins but the last; a value on an edge is below it
    counts : (K,)
    missing : rows without a value
    """

    edges: FloatArray
    counts: IntArray
    missing: int

    @classmethod
    def of(cls, values: ArrayLike, edges: ArrayLike) -> Histogram:
        """Counts of (N,) numbers; NaN is missing. Raises DataError where edges do not ascend."""
        x, cuts = np.asarray(values, dtype=np.float64), np.asarray(edges, dtype=np.float64)
        if x.ndim != 1 or cuts.ndim != 1 or bool((np.diff(cuts) <= 0).any()):
            raise DataError("a histogram needs one number per row and ascending edges")
        known = x[~np.isnan(x)]
        counts = np.bincount(np.searchsorted(cuts, known), minlength=cuts.size + 1)
        return cls(cuts, counts.astype(np.int64), int(x.size - known.size))

    @property
    def n(self) -> int:
        """Rows with a value."""
        return int(self.counts.sum())

    def merge(self, other: Histogram) -> Histogram:
        """Counts of the rows of both, which use the same edges."""
        if not np.array_equal(self.edges, other.edges):
            raise DataError("histograms with different edges do not merge: fix the edges beforehand")
        return Histogram(self.edges, self.counts + other.counts, self.missing + other.missing)

    def total_variation(self, other: Histogram) -> float | None:
        """½Σ|p - q| to another histogram of the same edges (0–1, lower is better); None where one has no values."""
        if self.n == 0 or other.n == 0:
            return None
        return 0.5 * float(np.abs(self.counts / self.n - other.counts / other.n).sum())

    def stability_index(self, target: Histogram) -> float | None:
        """Population stability index Σ(q - p)·ln(q/p), this one being the source; empty bins count ½ row. None where one has no values.

        0 for equal shares; (K-1)(1/n + 1/m) by chance.
        """
        if self.n == 0 or target.n == 0:
            return None
        p, q = (np.where(side.counts > 0, side.counts, 0.5) / side.n for side in (self, target))
        return float(((q - p) * np.log(q / p)).sum())


# ---------------------------------------------------------------- Gram sums


@dataclass(frozen=True)
class GramSums:
    """Rows, mean and centred cross products of columns: covariance, principal axes and linear fits without the rows.

    Attributes
    ----------
    n : rows
    mean : (D,)
    products : (D, D) Σ(x - mean)(x - mean)ᵀ
    """

    n: int
    mean: FloatArray
    products: FloatArray

    @classmethod
    def of(cls, rows: ArrayLike) -> GramSums:
        """Sums of (N, D) finite numbers; N may be 0."""
        x = finite_matrix(rows, "rows")
        columns = x.shape[1]
        if x.shape[0] == 0:
            return cls(0, np.zeros(columns), np.zeros((columns, columns)))
        mean = x.mean(axis=0)
        centred = x - mean
        return cls(x.shape[0], mean, centred.T @ centred)

    def merge(self, other: GramSums) -> GramSums:
        """Sums of the rows of both, which have the same columns."""
        n = _same_columns(self.n, self.mean, other.n, other.mean)
        if n == 0:
            return self
        step = other.mean - self.mean
        share = other.n / n
        return GramSums(n, self.mean + share * step, self.products + other.products + np.outer(step, step) * (self.n * share))

    def covariance(self) -> FloatArray:
        """(D, D) unbiased covariance; raises DataError below two rows."""
        if self.n < 2:
            raise DataError(f"a covariance needs two rows, there are {self.n}")
        return self.products / (self.n - 1)

    def principal_axes(self, axes: int) -> tuple[FloatArray, FloatArray]:
        """(D, k) leading axes, signs fixed by the largest loading, and (k,) their share of the variance; k = 0 where all rows are equal."""
        values, vectors = np.linalg.eigh(self.products)
        total = float(np.maximum(values, 0).sum())
        order = np.argsort(-values)[:axes]
        order = order[values[order] > 1e-12 * max(total, np.finfo(np.float64).tiny)]
        vectors = vectors[:, order]
        if order.size:
            vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(order.size)])
        return vectors, values[order] / total if order.size else np.zeros(0)


def between_products(classes: Sequence[GramSums]) -> FloatArray:
    """(D, D) Σ_c n_c(μ_c - μ)(μ_c - μ)ᵀ, the cross products of the class means: with the merged ``products`` what an H-score is made of."""
    whole = merged(classes)
    steps = np.stack([part.mean - whole.mean for part in classes])
    sizes = np.array([part.n for part in classes], dtype=np.float64)
    return np.asarray((steps * sizes[:, None]).T @ steps, dtype=np.float64)


def _same_columns(n: int, mean: FloatArray, m: int, other: FloatArray) -> int:
    if mean.shape != other.shape:
        raise DataError(f"sums of {mean.size} and {other.size} columns are not of one table")
    return n + m
