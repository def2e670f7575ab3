"""Checks: the questions of an auditor, by family. They measure, they never judge.

``BUILTIN`` holds them all in the order of their codes; each family file ends with its own tuple. It is put together on first use,
so that one family can be loaded without the others.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tl_audit.checks.base import Check

    BUILTIN: tuple[Check, ...]

FAMILIES = (
    "provenance",
    "compute",
    "gradient_activity",
    "adapters",
    "parity",
    "data",
    "leakage",
    "near_duplicates",
    "label_noise",
    "coverage",
    "precision",
    "performance",
    "worst_slices",
    "transfer",
    "forgetting",
    "transferability",
    "shift",
    "conditional_shift",
    "concept_shift",
    "shift_over_time",
    "fairness",
    "group_gaps",
    "selection_ratio",
    "cues",
    "explanations",
    "robustness",
    "out_of_distribution",
    "augmentation",
    "privacy",
    "governance",
)
"""Family files; each holds a tuple of checks under its own name in capitals."""

__all__ = ["BUILTIN", "FAMILIES"]


def __getattr__(name: str) -> Any:
    if name != "BUILTIN":
        raise AttributeError(f"module 'tl_audit.checks' has no attribute {name!r}")
    found: list[Check] = []
    for family in FAMILIES:
        found += getattr(import_module(f"tl_audit.checks.{family}"), family.upper())
    globals()["BUILTIN"] = tuple(sorted(found, key=lambda one: one.code))
    return globals()["BUILTIN"]
