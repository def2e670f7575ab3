"""Alternating timings in one process, so that a busy machine slows both sides alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ratio(ours: Callable[[], object], theirs: Callable[[], object], *, repeats: int = 5, name: str = "") -> float:
    """Median of ours/theirs over alternating runs, after one warm-up of each; printed."""
    ours()
    theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    ratios = sorted(a / b for a, b in pairs)
    middle = statistics.median(ratios)
    print(
        f"{name}: ratio {middle:.3f} (min {ratios[0]:.3f}, max {ratios[-1]:.3f}; ours {statistics.median(a for a, _ in pairs):.3f} s, "
        f"other {statistics.median(b for _, b in pairs):.3f} s, {repeats} runs)"
    )
    return middle
