"""Targets with periods, sites and properties, made of arrays, for tests of checks that look at parts of a target."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.checks.arrays import ArrayEvidence
from tl_audit.modality.periods import Periods


class SlicedEvidence(ArrayEvidence):
    """Arrays with the periods, site and properties of the target."""

    when: Periods | None = None
    where: np.ndarray | None = None
    columns: dict[str, np.ndarray] | None = None

    def periods(self, domain: str) -> Periods | None:
        return self.when

    def site(self, domain: str) -> np.ndarray | None:
        return self.where

    def properties(self, domain: str) -> dict[str, Any]:
        return self.columns or {}


def answers(labels: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Predicted classes of two, wrong where said."""
    return np.where(wrong, 1 - labels, labels)


def clustered_noise(rng: np.random.Generator, n: int, width: int, cluster: np.ndarray | None) -> np.ndarray:
    """(n, width) features; rows of one cluster share a part of theirs."""
    x = rng.normal(size=(n, width))
    return x if cluster is None else x + rng.normal(size=(int(cluster.max()) + 1, width))[cluster]
