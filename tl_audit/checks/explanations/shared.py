"""What the checks of explanations have in common: the audit's maps, means over samples, pictures, explaining again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tl_audit.attribution import Attribution, Inputs, Targets, explain_inputs
from tl_audit.checks.base import exact
from tl_audit.errors import ModelError, NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures.attribution import over_rows
from tl_audit.measures.estimate import Estimate
from tl_audit.models.model import Model
from tl_audit.records.exhibits import (
    Bar,
    Picture,
)
from tl_audit.records.metrics import Metric
from tl_audit.subject import Subject

RANDOM_MAPS = 5

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Maps:
    """The attributions of the audit's sample: one per method that could be computed, and why the others could not."""

    found: dict[str, Attribution]
    missing: dict[str, str]

    @property
    def first(self) -> Attribution:
        return next(iter(self.found.values()))


def maps_of(evidence: Evidence, model: str = "adapted", domain: str = "target", methods: Sequence[str] | None = None) -> Maps:
    """The maps of every method of the audit (or of these), NotEvaluated where there is none."""
    found: dict[str, Attribution] = {}
    missing: dict[str, str] = {}
    for method in evidence.methods if methods is None else methods:
        try:
            found[method] = evidence.attributions(model, domain, method)
        except (NotEvaluated, ModelError) as error:
            missing[method] = str(error)
    if not found:
        why = "; ".join(f"{m}: {w}" for m, w in missing.items())
        raise NotEvaluated(f"no attributions{f' ({why})' if why else ': no attribution method was chosen'}")
    return Maps(found, missing)


def cluster_of(evidence: Evidence, ids: Sequence[str], domain: str = "target") -> NDArray[np.object_] | None:
    """Cluster of each sample of the attribution sample, None where the domain has none."""
    cluster = evidence.cluster(domain)
    return None if cluster is None else cluster[rows_of(evidence, ids, domain)]


def rows_of(evidence: Evidence, ids: Sequence[str], domain: str = "target") -> NDArray[np.int64]:
    """Rows of these samples in the domain."""
    place = {sample: row for row, sample in enumerate(evidence.ids(domain))}
    return np.array([place[sample] for sample in ids], dtype=np.int64)


def mean_over(
    values: FloatArray,
    cluster: NDArray[np.object_] | None,
    *,
    bounds: tuple[float, float],
    null: float | None = None,
    seed: int = 0,
    nothing: str = "every map is blank",
) -> Estimate:
    """Mean of the known values with its interval; with a ``null`` the sign-flip p as well."""
    if not np.isfinite(values).any():
        return Estimate(None, 0, nothing, null=null)
    return over_rows(values, cluster=cluster, bounds=bounds, null=null, seed=seed)


def unavailable(names: Sequence[str], missing: Mapping[str, str]) -> list[Metric]:
    """Metrics without value for methods that could not be computed: they stay on the page."""
    return [exact(name, None, slice={"method": method}, reason=why, n={"target": 0}) for method, why in missing.items() for name in names]


def blank_metrics(maps: Maps) -> list[Metric]:
    return [
        exact("blank_maps", int(a.blank.sum()), n={"target": len(a)}, better="lower", slice={"method": m}, null=0.0)
        for m, a in maps.found.items()
    ]


def blank_caveats(maps: Maps) -> list[str]:
    return [f"{m}: {int(a.blank.sum())} of {len(a)} maps show no signal and are left out" for m, a in maps.found.items() if a.blank.any()]


def with_background(inputs: Inputs) -> Inputs:
    """Inputs whose removed columns can be drawn from the target's marginal: the sample itself where no background came with it."""
    if inputs.background is None and not inputs.players.spatial:
        return replace(inputs, background=inputs.tensor)
    return inputs


def samples_mode(evidence: Evidence) -> Literal["off", "redacted", "on"]:
    return "on" if evidence.samples == "on" else "redacted" if evidence.samples == "redacted" else "off"


def again_with(
    model: Model, a: Attribution, inputs: Inputs, targets: Targets | NDArray[np.int64], *, seed: int, half: bool = False
) -> Attribution:
    """The same method with the same settings on other inputs, another model or another seed; ``half``: at half the budget."""
    asked = int(a.params.get("budget", a.budget))  # what was asked for, where a method spends less than that per sample
    steps = a.params.get("steps")
    steps = None if steps is None else max(1, int(steps) // 2 if half else int(steps))
    return explain_inputs(
        model, inputs, method=a.method, targets=targets, seed=seed, budget=max(8, asked // 2 if half else asked), layer=a.layer, steps=steps
    )


def comparable(subject: Subject, evidence: Evidence, key: str) -> bool:
    """Whether this model has the adapted model's classes, in any order, so that the same class can be explained."""
    model = subject.models.get(key)
    if model is None or key.removeprefix("control:") in subject.same_as_adapted or key in subject.same_as_adapted:
        return False
    if model.preprocessing != subject.adapted.preprocessing:
        return False  # the same tensor would be another input to it
    return bool(model.classes and subject.adapted.classes and set(model.classes) == set(subject.adapted.classes)) and evidence.has(
        key, "target"
    )


def short_id(evidence: Evidence, row: int) -> str:
    """sha256(content ‖ id)[:8]: a sample's name on the page, which tells nothing of its file name."""
    content = evidence.content_hashes("target")[row] or ""
    return hashlib.sha256(f"{content}{evidence.ids('target')[row]}".encode("utf-8", "surrogatepass")).hexdigest()[:8]


def map_picture(a: Attribution, i: int, title: str, redacted: bool) -> Picture | None:
    picture = a.inputs.modality.map_picture(a.inputs.tensor[i], a.values[i], a.inputs.spec, title=title, signed=a.signed, redacted=redacted)
    return None if picture is None else picture.model_copy(update={"method": a.method})


def mean_of_known(rows: FloatArray) -> FloatArray:
    """Column means over finite entries, NaN where there is none."""
    known = np.isfinite(rows)
    count = known.sum(axis=0)
    return np.where(count > 0, np.where(known, rows, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)


def estimate_bar(method: str, series: str, estimate: Estimate, confidence: float, *, null: float | None = None) -> Bar:
    interval = None if estimate.value is None else estimate.interval(confidence)
    return Bar(
        label=method,
        series=series,
        value=estimate.value,
        interval=interval,
        null=null,
        n=estimate.n,
        note=estimate.reason if estimate.value is None else None,
    )
