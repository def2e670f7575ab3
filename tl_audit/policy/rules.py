"""Rules: the part of a policy that checks receive (never its limits)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tl_audit.records.base import Record


class Rules(Record):
    """The rules of a policy that checks receive (never its limits)."""

    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)
    alpha: float = Field(default=0.05, gt=0.0, lt=0.5)
    rule: Literal["interval", "interval+test", "point"] = "interval"
    "of every limit that names none"
    min_n: int = Field(default=30, ge=1)
    min_clusters: int = Field(default=10, ge=2)
    suppress_below: int = Field(default=10, ge=0)
    suppress_numerators: bool = False
    permutation_unit: Literal["cluster", "row"] = "cluster"
    attribution_samples: int = Field(default=64, ge=1)
    declare: tuple[str, ...] = ()
    "declared facts wanted (TLA901)"
