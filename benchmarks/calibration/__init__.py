"""Does every test keep its level and every interval its coverage? Simulations under the null, and whole audits of clean subjects."""

from benchmarks.calibration.command import main

__all__ = ["main"]
