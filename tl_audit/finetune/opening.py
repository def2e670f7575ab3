"""Domains of a plan: opened from its paths with its reader options, and parts of a domain."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_audit.errors import ConfigError
from tl_audit.finetune.plan import Plan
from tl_audit.modality.base import Caps, Modality, RawBatch, Samples
from tl_audit.subject import Domain

IntArray = NDArray[np.int64]


def open_domain(plan: Plan, name: str, path: str, *, classes: tuple[str, ...] | None) -> Domain:
    """The domain at a path of the plan, read as ``[data]`` says. Raises DataError as ``Domain`` does."""
    return Domain(name, plan.path(path), classes=classes, kind=plan.kind, **reader_options(plan))


def reader_options(plan: Plan) -> dict[str, Any]:  # Any: see modality.open_data
    """The reader options of ``[data]`` that are set."""
    data = plan.data
    options: dict[str, Any] = {
        name: getattr(data, name)
        for name in ("label", "numeric", "categorical", "drop", "id", "label_map", "na_values", "cluster")
        if getattr(data, name) is not None
    }
    if data.groups is not None:
        options["groups"] = [g if isinstance(g, str) else g.model_dump(exclude_none=True) for g in data.groups]
    if data.metadata is not None:
        options["metadata"] = plan.path(data.metadata)
    if plan.positive is not None:
        options["positive"] = plan.positive
    return options


@dataclass(frozen=True)
class PartSamples:
    """Some rows of other samples, in a given order."""

    whole: Samples
    rows: IntArray

    @property
    def modality(self) -> Modality:
        return self.whole.modality

    @property
    def caps(self) -> Caps:
        return self.whole.caps

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self.whole.ids[int(row)] for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: IntArray) -> RawBatch:
        return replace(self.whole.read(self.rows[rows]), rows=np.asarray(rows, dtype=np.int64))


def part_of(domain: Domain, name: str, rows: IntArray) -> Domain:
    """A domain of these rows, with their labels, groups and clusters."""
    if domain.labels is None:
        raise ConfigError(f"{domain.name}: has no labels")
    return Domain(
        name,
        PartSamples(domain.samples, rows),  # type: ignore[arg-type]
        labels=list(domain.labels[rows]),
        classes=domain.classes,
        groups={column: values[rows] for column, values in domain.groups.items()},
        cluster=None if domain.cluster is None else domain.cluster[rows],
        kind=domain.kind,
    )
