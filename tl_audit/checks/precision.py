"""Is the sample large enough for the limits of the policy (TLA209)? Reads the findings of all other checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tl_audit.checks.base import Check, Context, check, metric
from tl_audit.checks.wording import counted, number
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures.estimate import Estimate
from tl_audit.measures.precision import units_needed
from tl_audit.policy import Rules
from tl_audit.policy.words import amount, metric_words, slice_words, units
from tl_audit.records.exhibits import Cell, Column, Table
from tl_audit.records.findings import Finding, LimitOutcome
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject

MOST_LISTED = 40
_BY_INTERVAL = ("interval", "interval+test")
_AT_THE_LIMIT = "no realistic number: the value lies at the limit"
_PLANNING = "a planning figure: it has no interval"


@dataclass(frozen=True)
class _Row:
    """One limit with the metric it was held against.

    ``n`` units now, ``needed`` units for a decision (None: no realistic number), ``half`` half the width of the interval.
    """

    code: str
    metric: Metric
    limit: LimitOutcome
    n: int
    needed: int | None
    half: float | None

    @property
    def growth(self) -> float:
        """Units needed for each one there is; infinite where no number would do."""
        return float("inf") if self.needed is None else self.needed / max(1, self.n)


@check("TLA209", "Precision of the sample", section="data", severity="info", phase=3, multiplicity="none")
def precision(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Is the target large enough for the limits of this policy?

    How it is measured: for every limit that is judged by an interval, half the width of that interval, and the number of samples (clusters, where
    they are the units) with which the interval would lie on one side of the limit in four of five audits, if the truth equals the estimate.
    Of the slices of one metric the one that needs most is shown.

    Why it matters: a limit that the sample cannot settle is no protection, and a sample far larger than needed was costly to label.

    How to reduce the risk: collect as many as the table asks for, first where a limit is undecided; before any data, plan with the rates
    that are expected.
    """
    worst: dict[tuple[str, str, str], _Row] = {}
    slices: dict[tuple[str, str, str], int] = {}
    for row in _rows(context.findings, context.rules):
        key = (row.code, row.metric.name, row.limit.level)
        slices[key] = slices.get(key, 0) + 1
        if key not in worst or _urgency(row) > _urgency(worst[key]):
            worst[key] = row
    if not worst:
        raise NotEvaluated("limits that are judged by an interval: none was measured")
    rows = sorted(worst.values(), key=lambda row: (*(-part for part in _urgency(row)), row.code, row.metric.name, row.limit.level))
    metrics: list[Metric] = []
    for row in sorted(rows, key=lambda row: (row.code, row.metric.name, row.limit.level)):
        where = {"check": row.code, "metric": row.metric.name, "level": row.limit.level, **row.metric.slice}
        n = dict(row.metric.n)
        half = Estimate(row.half, row.n, None if row.half is not None else row.limit.note or "no interval")
        metrics.append(metric("half_width", half, rules=context.rules, slice=where, n=n, reason=half.reason or _PLANNING))
        needed = Estimate(None if row.needed is None else float(row.needed), row.n, _AT_THE_LIMIT if row.needed is None else None)
        metrics.append(metric("needed_n", needed, rules=context.rules, slice=where, n=n, reason=needed.reason or _PLANNING))
    open_rows = [row for row in rows if row.limit.outcome == "undecided"]
    settled = len(rows) - len(open_rows)
    summary = f"{settled} of {counted(len(rows), 'limit')} that rest on an interval are settled at this size"
    short = [row for row in open_rows if row.needed is not None]
    if short:
        most = max(short, key=lambda row: (row.needed or 0) - row.n)
        more = max(1, (most.needed or 0) - most.n)
        summary += f"; {len(short)} need more, at most {more} {units(most.metric)} more ({most.code}, {metric_words(most.metric.name)})"
    if at := len(open_rows) - len(short):
        summary += f"; {at} cannot be settled by any realistic number"
    summary += "."
    cells: list[tuple[Cell, ...]] = [
        (
            row.code, metric_words(row.metric.name) + slice_words(row.metric.slice),
            f"{row.limit.level} {_SIGN[row.limit.bound]} {amount(row.limit.value)}", row.limit.outcome.replace("_", " "), units(row.metric), row.n,
            None if row.metric.value is None else number(row.metric.value), None if row.half is None else number(row.half),
            _AT_THE_LIMIT.split(":")[0] if row.needed is None else str(row.needed),
        )
        for row in rows[:MOST_LISTED]
    ]  # fmt: skip
    table = Table(
        id="needed",
        title=summary,
        how_to_read="Needed: units with which the limit is settled in four of five audits, if the truth equals the estimate. The widest slice of each metric.",
        alt=summary,
        caption=f"{len(cells)} of {len(rows)} limits shown, undecided ones first; assumes that intervals narrow with the square root of n.",
        columns=(
            Column(name="check"),
            Column(name="measure"),
            Column(name="limit"),
            Column(name="outcome"),
            Column(name="unit"),
            Column(name="n now", format="count"),
            Column(name="value"),
            Column(name="± half-width"),
            Column(name="n needed"),
        ),
        rows=tuple(cells),
        grouped=True,
    )
    caveats = ["Numbers needed are for the values observed here; a truth nearer to the limit needs more."]
    if any(count > 1 for count in slices.values()):
        caveats.append(f"{sum(slices.values())} limits on slices are summed up by the slice of each metric that needs most.")
    return Measurement(
        summary=summary, metrics=tuple(metrics), exhibits=(table,), caveats=tuple(caveats),
        params={"power": 0.8, "limits": len(rows), "settled": settled},
    )  # fmt: skip


_SIGN = {"max": "≤", "min": "≥", "abs": "±"}


def _rows(findings: Sequence[Finding], rules: Rules) -> Iterator[_Row]:
    """Every limit that was held against an interval, or could not be for want of samples."""
    for finding in findings:
        if finding.measurement is None:
            continue
        for limit in finding.limits:
            if limit.rule not in _BY_INTERVAL or limit.outcome == "not_judged":
                continue
            held = finding.select(limit.metric, **limit.slice)
            n = min((held.clusters or held.n or {"": 0}).values())
            if held.value is None or limit.interval_used is None:
                if limit.missing_n is not None:
                    yield _Row(finding.code, held, limit, n, n + limit.missing_n, None)
                continue
            low, high = limit.interval_used
            at = limit.value if limit.bound != "abs" or held.value >= 0 else -limit.value
            needed = n + limit.missing_n if limit.missing_n is not None else units_needed(held.value, at, limit.interval_used, n)
            if needed is not None:
                # however clear the value, fewer than the policy's minimum are not judged
                needed = max(needed, rules.min_clusters if held.clusters else held.min_n or rules.min_n)
            yield _Row(finding.code, held, limit, n, needed, (high - low) / 2)


def _urgency(row: _Row) -> tuple[int, float]:
    """Undecided before settled; then by how much more is needed."""
    return int(row.limit.outcome == "undecided"), min(row.growth, 1e9)


PRECISION: tuple[Check, ...] = (precision,)
