"""TLA111: how much compute the adaptation took, and how that stands to one third of the base's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tl_audit.checks.base import Check, Context, check, exact
from tl_audit.errors import DataError, NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.records.adaptation import AdaptationRecord
from tl_audit.records.exhibits import Cell, Column, Table
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject

SHARE = 1 / 3
FALLBACK = 1e23  # FLOP of a base whose training compute is not known, European Commission guidelines on GPAI models, July 2025
FALLBACK_SYSTEMIC = 1e25  # the same for an original with systemic risk
ERROR_FACTOR = 2.0


@check("TLA111", "Compute", section="provenance", severity="info", needs=("record",), multiplicity="none", values="same")
def compute(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """How much compute did the adaptation take, and how does it stand to one third of the base's training compute?

    How it is measured: the operations of one forward and backward pass per sample were counted on the network while only its trained layers moved
    (a multiply-add is two), times the samples seen. The optimiser is not counted, so the number is right within a factor of two. The base's
    compute is declared, never estimated.

    Why it matters: the share of the base's compute is a criterion of the European Commission's guidelines on who modifies a general-purpose
    model. What follows from it is for a lawyer; this check only says whether the number is reached.

    How to reduce the risk: state base_training_flop under [declared] with its source, and keep the run directory that holds the counts.
    """
    record = subject.record
    if record is None:
        raise NotEvaluated("an adaptation record: a run directory made by `tl-audit adapt`")
    spent = record.flops.get("adaptation")
    base = _declared(context.declared)
    metrics = _metrics(record, spent, base)
    said = "The compute of the adaptation is not recorded." if spent is None else f"The adaptation took {spent:.3g} FLOP."
    criterion = _criterion(spent, base)
    rows: list[tuple[Cell, ...]] = [
        (
            m.name.replace("_", " "),
            None if m.value is None else f"{m.value:.4g}",
            m.unit,
            _source(m.name) if m.value is not None else m.reason,
        )
        for m in metrics
    ]
    table = Table(
        id="compute",
        title="Compute of the adaptation",
        how_to_read="Operations are counted, times and memory metered; the base's compute is what somebody declared.",
        alt=f"{said} {criterion}",
        caption=record.flops_method or "How the operations were counted is not recorded.",
        columns=(Column(name="quantity"), Column(name="value"), Column(name="unit"), Column(name="known by")),
        rows=tuple(rows),
    )
    caveats = [
        "Counts of operations are right within a factor of two: the optimiser and the controls are not counted.",
        "No legal role follows from this.",
    ]
    return Measurement(summary=f"{said} {criterion}", metrics=metrics, exhibits=(table,), caveats=tuple(caveats))


def _declared(declared: Mapping[str, Any]) -> float | None:
    given = declared.get("base_training_flop")
    if given is None:
        return None
    try:
        value = float(given)
    except (TypeError, ValueError) as error:
        raise DataError(f"[declared] base_training_flop is {given!r}: expected a number of operations, such as 3e21") from error
    if not (math.isfinite(value) and value > 0):
        raise DataError(f"[declared] base_training_flop is {given!r}: expected a positive number of operations")
    return value


def _metrics(record: AdaptationRecord, spent: float | None, base: float | None) -> tuple[Metric, ...]:
    ratio = None if spent is None or base is None else spent / base
    on_gpu = record.device is not None and record.device.startswith("cuda")
    hours = record.seconds / 3600 if on_gpu and record.seconds is not None else None
    not_recorded = "not recorded"
    no_ratio = "the base's compute is not declared" if base is None else "the compute of the adaptation is not recorded"
    no_hours = not_recorded if record.device is None or on_gpu else f"it ran on {record.device}"
    return (
        exact("adaptation_flops", spent, unit="FLOP", reason=None if spent is not None else not_recorded),
        exact("base_flops", base, unit="FLOP", reason=None if base is not None else "not declared: base_training_flop under [declared]"),
        exact("flops_ratio", ratio, reason=None if ratio is not None else no_ratio),
        exact("gpu_hours", hours, unit="hours", reason=None if hours is not None else no_hours),
        exact("energy_kwh", None, unit="kWh", reason="not metered"),
        exact(
            "peak_memory_bytes",
            record.peak_memory_bytes,
            unit="bytes",
            reason=None if record.peak_memory_bytes is not None else not_recorded,
        ),
        exact("seconds", record.seconds, unit="seconds", reason=None if record.seconds is not None else not_recorded),
    )


def _criterion(spent: float | None, base: float | None) -> str:
    """Whether one third of the base's compute is reached, with the error of the count on both sides."""
    if spent is None:
        return "The criterion of one third of the base's compute cannot be computed."
    if base is None:
        fallbacks = ((FALLBACK, "for a base of unknown compute"), (FALLBACK_SYSTEMIC, "for an original with systemic risk"))
        held = "; ".join(f"one third of {of:.0e} FLOP, the fallback {what}, is {_reached(spent, of * SHARE)}" for of, what in fallbacks)
        return (
            f"The criterion of one third of the base's compute cannot be computed: base compute not declared. {held[0].upper()}{held[1:]}."
        )
    return f"One third of the base's {base:.3g} FLOP is {_reached(spent, base * SHARE)} (ratio {spent / base:.3g})."


def _reached(spent: float, line: float) -> str:
    if spent / ERROR_FACTOR > line:
        return "reached"
    return "not reached" if spent * ERROR_FACTOR < line else "within the error of the count: reached or not cannot be told"


def _source(name: str) -> str:
    return {"base_flops": "declared", "adaptation_flops": "counted", "flops_ratio": "counted over declared"}.get(name, "metered")


COMPUTE: tuple[Check, ...] = (compute,)
