"""Metric and Measurement: what a check returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator
from pydantic.json_schema import SkipJsonSchema

from tl_audit.records.base import Fraction, Pair, Record
from tl_audit.records.exhibits import Exhibit

LadderRows = tuple[tuple[float, float, float], ...]


class Metric(Record):
    """One number with what is needed to believe it.

    ``value`` None needs a ``reason``. ``interval`` None with a value needs a reason too, unless ``exact`` (hashes, counts of the whole set).
    """

    name: str
    value: float | None
    reason: str | None = None
    interval: Pair | None = None
    confidence: Fraction | None = None
    exact: bool = False
    "a count or comparison of the whole set: rule C, no interval needed"
    null: float | None = None
    "what chance, or 'nothing happened', gives"
    p_value: Fraction | None = None
    "of the test against null, raw"
    p_adjusted: Fraction | None = None
    "Holm or Benjamini-Hochberg inside the check"
    n: Mapping[str, int] = Field(default_factory=dict)
    "rows per role or group, e.g. {'target': 400}; the smallest entry decides the minimum"
    clusters: Mapping[str, int] | None = None
    "independent units per role, None where rows are the units"
    slice: Mapping[str, str] = Field(default_factory=dict)
    unit: str | None = None
    better: Literal["lower", "higher"] | None = None
    family: str | None = None
    "metrics with one family (and name) are corrected together; None: the slice's column names form the family"
    events: int | None = None
    nonevents: int | None = None
    min_n: int | None = None
    "a block's own minimum (e.g. 1000 for calibration); None: the policy's rule"
    min_events: int | None = None
    "smallest number of events and of non-events (bootstrap, log-ratio intervals), None: not asked"
    ladder: SkipJsonSchema[LadderRows] = Field(default=(), repr=False)
    "(alpha, low, high) rows: kept in memory and in the measurement cache, never in report.json"

    @model_validator(mode="after")
    def _undefined_needs_a_reason(self) -> Metric:
        if self.value is None and not self.reason:
            raise ValueError(f"metric {self.name!r} has no value and no reason")
        if self.value is not None and self.interval is None and not self.exact and not self.reason:
            raise ValueError(f"metric {self.name!r} has no interval and no reason (say exact=True for counts of the whole set)")
        return self

    @model_serializer(mode="wrap")
    def _leave_the_ladder_out(self, handler: SerializerFunctionWrapHandler, info: object) -> dict[str, object]:
        data: dict[str, object] = handler(self)
        context = getattr(info, "context", None) or {}
        if not context.get("ladder"):
            data.pop("ladder", None)
        return data


class Measurement(Record):
    """What a check measured: no verdict, no colour, no adjective.

    To keep ladders (measurement cache): ``measurement.model_dump_json(context={"ladder": True})``.
    """

    summary: str
    metrics: tuple[Metric, ...] = ()
    exhibits: tuple[Exhibit, ...] = ()
    caveats: tuple[str, ...] = ()
    params: Mapping[str, str | int | float | bool | None] = Field(default_factory=dict)
    "settings that made the numbers: layer, budget, seed, decision rule, positive class, ..."

    @field_validator("exhibits")
    @classmethod
    def _ids_are_unique(cls, exhibits: tuple[Exhibit, ...]) -> tuple[Exhibit, ...]:
        ids = [e.id for e in exhibits]
        if len(ids) != len(set(ids)):
            raise ValueError(f"two exhibits of one measurement share an id: {ids}")
        return exhibits

    def select(self, name: str, **slice: str) -> Metric:
        """The metric with this name and slice."""
        found = [m for m in self.metrics if m.name == name and dict(m.slice) == slice]
        if len(found) != 1:
            have = sorted({f"{m.name} {dict(m.slice)}" for m in self.metrics})
            raise KeyError(f"{name!r} with slice {slice}: found {len(found)}; there is: {', '.join(have)}")
        return found[0]
