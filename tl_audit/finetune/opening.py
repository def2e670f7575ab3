"""Domains of a plan: opened from its paths with its reader options, and parts of a domain."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_audit.errors import ConfigError, DataError
from tl_audit.finetune.plan import Plan, Regression
from tl_audit.subject import Domain

IntArray = NDArray[np.int64]


def open_domain(plan: Plan, name: str, path: str, *, classes: tuple[str, ...] | None) -> Domain:
    """The domain at a path of the plan, read as ``[data]`` says. Raises DataError as ``Domain`` does."""
    return Domain(name, plan.path(path), classes=classes, kind=plan.kind, **reader_options(plan))


def given_domain(plan: Plan, name: str, given: Any) -> Domain:  # Any: a Domain, what Domain accepts, or None
    """The "train" or "validation" domain that was given, else that of the plan's path. ConfigError where there is neither."""
    if isinstance(given, Domain):
        return given
    if given is not None:
        return Domain(name, given, classes=plan.classes, kind=plan.kind, **reader_options(plan))
    path = plan.data.train if name == "train" else plan.data.validation
    if not isinstance(path, str):
        raise ConfigError(f"no {name} data: give [data] {name} in the plan, or {name}= in Python")
    return open_domain(plan, name, path, classes=plan.classes)


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
    if isinstance(plan.task, Regression):
        options["task"] = "regression"
        if plan.task.unit is not None:
            options["unit"] = plan.task.unit
    return options


def unlabelled_options(plan: Plan) -> dict[str, Any]:  # Any: see modality.open_data
    """The reader options of data whose labels nobody looks at: those of ``[data]`` without what speaks of labels and groups."""
    return {name: value for name, value in reader_options(plan).items() if name not in ("groups", "cluster", "positive")}


def open_unlabelled(plan: Plan) -> Domain:
    """The domain at ``[data] unlabelled``. A label column that it has is set aside, not read as an input; one that it lacks is not missed."""
    assert plan.data.unlabelled is not None
    path = plan.path(plan.data.unlabelled)
    options = unlabelled_options(plan)
    try:
        return Domain("unlabelled", path, kind=plan.kind, **options)
    except DataError:
        if "label" not in options:
            raise
        return Domain("unlabelled", path, kind=plan.kind, **{k: v for k, v in options.items() if k != "label"})


def part_of(domain: Domain, name: str, rows: IntArray) -> Domain:
    """A domain of these rows, with their labels, groups and clusters."""
    if not domain.labelled:
        raise ConfigError(f"{domain.name}: has no labels")
    return domain.subset(rows, name=name)
