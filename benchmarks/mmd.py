"""MMD permutation test, n = m = 2,000, d = 512, B = 999: one kernel matrix and matrix products, against loops over permutations."""

from __future__ import annotations

import numpy as np

from benchmarks.timing import seconds
from tl_audit.measures.shift import mmd

N, D, B = 2000, 512, 999
LOOP = 20


def kernel(x: np.ndarray) -> np.ndarray:
    squares = (x * x).sum(1)
    distances = np.maximum(squares[:, None] + squares[None] - 2 * x @ x.T, 0)
    return np.exp(-distances / np.median(distances[np.triu_indices(len(x), 1)]))


def statistic(k: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    a, b, c = k[np.ix_(first, first)], k[np.ix_(second, second)], k[np.ix_(first, second)]
    n, m = len(first), len(second)
    return float((a.sum() - np.trace(a)) / (n * (n - 1)) + (b.sum() - np.trace(b)) / (m * (m - 1)) - 2 * c.mean())


def main() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(N, D)), rng.normal(size=(N, D))
    pooled = np.concatenate([x, y])
    ours = min(seconds(lambda: mmd(x, y, resamples=B, seed=0)) for _ in range(2))
    one = min(seconds(lambda: kernel(pooled)) for _ in range(2))
    k = kernel(pooled)

    def loop() -> None:
        for _ in range(LOOP):
            order = rng.permutation(2 * N)
            statistic(k, order[:N], order[N:])

    per_permutation = seconds(loop) / LOOP
    print(f"mmd: whole test {ours:.2f} s = {ours / one:.2f} x the kernel matrix alone ({one:.2f} s)")
    print(
        f"mmd: a loop over {B} permutations of the stored kernel: {one + B * per_permutation:.1f} s ({LOOP} timed), ratio {(one + B * per_permutation) / ours:.1f}"
    )
    print(
        f"mmd: a loop that computes the kernel anew each time: {(B + 1) * (one + per_permutation):.0f} s (extrapolated), ratio {(B + 1) * (one + per_permutation) / ours:.0f}"
    )
