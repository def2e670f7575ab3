"""Worlds to draw from: rows and clusters whose truth is known."""

from __future__ import annotations

import numpy as np

from tl_audit.measures.estimate import BoolArray, FloatArray, IntArray

Rng = np.random.Generator


def ids(clusters: int, size: int, first: int = 0) -> IntArray:
    return np.repeat(np.arange(first, first + clusters), size)


def uneven_ids(rng: Rng, clusters: int) -> IntArray:
    """About 9 rows a cluster, from 1 to 40."""
    return np.repeat(np.arange(clusters), np.maximum(1, rng.lognormal(2.0, 0.7, clusters)).astype(int))


def clustered_hits(rng: Rng, cluster: IntArray, rate: float = 0.8, alike: float = 5.0) -> BoolArray:
    """0/1 rows whose rate differs from cluster to cluster, beta distributed with this mean (correlation 1/(1 + alike))."""
    return rng.random(cluster.size) < rng.beta(alike * rate, alike * (1 - rate), int(cluster.max()) + 1)[cluster]


def clustered_values(rng: Rng, cluster: IntArray, columns: int | None = None, alike: float = 0.5) -> FloatArray:
    """Normal rows of mean 0 and variance 1 with this correlation inside clusters."""
    shape = () if columns is None else (columns,)
    own = rng.normal(size=(cluster.size, *shape))
    return np.sqrt(alike) * rng.normal(size=(int(cluster.max()) + 1, *shape))[cluster] + np.sqrt(1 - alike) * own


def pairs(rng: Rng, n: int, only_first: float, only_second: float) -> tuple[BoolArray, BoolArray]:
    """0/1 rows of two models on the same samples, with these shares of discordant pairs."""
    u = rng.random(n)
    first, second = u < only_first, (u >= only_first) & (u < only_first + only_second)
    agreed = rng.random(n) < 0.8
    return first | (agreed & ~second), second | (agreed & ~first)


def clustered_pairs(rng: Rng, cluster: IntArray, same: float = 0.5) -> tuple[BoolArray, BoolArray]:
    """Two models of one accuracy (0.75) whose errors fall into the same hard clusters."""
    hard = rng.beta(2, 6, int(cluster.max()) + 1)[cluster]
    first = rng.random(cluster.size) >= hard
    return first, np.where(rng.random(cluster.size) < same, first, rng.random(cluster.size) >= hard)
