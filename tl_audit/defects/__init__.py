"""Planted defects: small worlds into which a known fault is put, and the comparison of what an audit says with what it must say.

``DEFECTS`` holds all rows in the order of their numbers; each topic file ends with its own tuple. It is put together on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tl_audit.defects.base import Defect

    DEFECTS: tuple[Defect, ...]

TOPICS = (
    "clean", "shortcuts", "groups", "bias", "shift", "weights", "data", "training", "explanations", "degenerate", "adapters", "preparation",
    "inputs", "clusters", "governance",
)  # fmt: skip
"""Topic files; each holds a tuple of rows under its own name in capitals."""

__all__ = ["DEFECTS", "TOPICS"]


def __getattr__(name: str) -> Any:
    if name != "DEFECTS":
        raise AttributeError(f"module 'tl_audit.defects' has no attribute {name!r}")
    found: list[Defect] = []
    for topic in TOPICS:
        found += getattr(import_module(f"tl_audit.defects.{topic}"), topic.upper())
    globals()["DEFECTS"] = tuple(sorted(found, key=lambda one: one.number))
    return globals()["DEFECTS"]
