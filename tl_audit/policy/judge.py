"""Judging: a measurement and a policy become a finding. The rules of CHECKS.md 1.2, 1.3 and 1.8 and nothing else.

Breaking a limit needs correction for many questions, meeting it does not: "some group is beyond the limit" is a union and uses
Holm-adjusted p-values of the limit; "every group is within it" holds each group to its own unadjusted interval (Berger 1982).
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from scipy.stats import norm

from tl_audit.measures.estimate import interval_at, limit_p
from tl_audit.measures.multiplicity import holm
from tl_audit.policy.limits import NO_RATIONALE, Bound, Limit, Policy, severity_rank, value_range
from tl_audit.policy.rules import Rules
from tl_audit.policy.words import amount, decimals_for, listed, measured, metric_words, slice_words, units
from tl_audit.records.base import Pair
from tl_audit.records.findings import WORST_FIRST, Finding, LimitOutcome, Rule, Section, Severity, Status
from tl_audit.records.metrics import Measurement, Metric

Level = Literal["warn", "fail"]
State = Literal["broken", "met", "undecided", "not_judged"]

POWER_FACTOR = 2.04
"((1.96 + 0.84) / 1.96) ** 2: units for an 80 % chance of a decision, if the truth equals the estimate"
DETECTABLE_FACTOR = 1.43
"(1.96 + 0.84) / 1.96: how far beyond the limit a value must lie to be found with power 0.8"
MOST_GROWTH = 100
NO_NUMBER = "no realistic number: the value lies at the limit"
SHIFT_HINT = "Shift alone is no harm: TLA509 asks whether it costs performance."


@dataclass(frozen=True)
class Judged:
    """One limit held against one metric: its place in the outcome record, and what the status needs to know."""

    metric: Metric
    limit: Limit
    bound: Bound
    level: Level
    rule: Rule
    state: State
    beyond: bool = False
    "the estimate lies beyond the bound"
    short: bool = False
    "undecided because the metric is undefined or below a minimum"
    unsettled_guard: bool = False
    "a warn-only limit whose guard is not excluded"
    blind: bool = False
    "not judged for want of an interval, while the estimate lies beyond the bound"
    p: float | None = None
    p_adjusted: float | None = None
    interval: Pair | None = None
    confidence: float | None = None
    note: str | None = None
    missing_n: int | None = None
    detectable: float | None = None

    def outcome(self) -> LimitOutcome:
        return LimitOutcome(
            metric=self.metric.name,
            slice=dict(self.metric.slice),
            level=self.level,
            bound=self.bound.kind,
            value=self.bound.value,
            rule=self.rule,
            origin=self.limit.origin,
            rationale=self.limit.rationale or NO_RATIONALE,
            clauses=self.limit.clauses,
            confidence_used=self.confidence,
            interval_used=self.interval,
            p_limit=self.p,
            p_limit_adjusted=self.p_adjusted,
            outcome=self.state,
            missing_n=self.missing_n,
            detectable=self.detectable,
            note=self.note,
        )


def judge(
    code: str,
    title: str,
    section: Section,
    severity: Severity,
    measurement: Measurement,
    policy: Policy,
    *,
    help: Mapping[str, str] | None = None,
    seconds: float | None = None,
    answered: Sequence[str] = (),
    today: datetime.date | None = None,
) -> Finding:
    """The finding of a measurement under a policy: a status with its reason, and the outcome of every limit.

    Parameters
    ----------
    severity : of the check; a limit's own severity goes before it
    answered : codes whose review questions a person has answered
    today : the date against which waivers are read; None: today, UTC

    References
    ----------
    Berger (1982). Multiparameter hypothesis testing and acceptance sampling. Technometrics 24.
    Holm (1979). A simple sequentially rejective multiple test procedure. Scandinavian Journal of Statistics 6.
    """
    today = today or datetime.datetime.now(datetime.UTC).date()
    judged = hold(code, measurement, policy)
    status, deciding = _status(judged, answered=code in answered)
    questions = tuple(r.question for r in policy.reviews if r.check == code and code not in answered)
    reason = _reason(status, deciding, judged, measurement)
    if questions and WORST_FIRST.index(status) > WORST_FIRST.index("review"):
        reason = f"A person must answer: {questions[0]} {reason}"
        status = "review"
    if section == "shift" and code != "TLA509" and status in ("pass", "warn", "fail", "inconclusive"):
        reason = f"{reason} {SHIFT_HINT}"
    until, by = _waived(code, judged, policy, today) if status in ("warn", "fail") else (None, None)
    own = [j.limit.severity for j in (deciding or judged) if j.limit.severity is not None]
    warn_limits = [j for j in judged if j.level == "warn" and j.state in ("met", "undecided")]
    return Finding(
        code=code,
        section=section,
        title=title,
        status=status,
        reason=reason,
        severity=min(own, key=severity_rank) if own else severity,
        measurement=measurement,
        limits=tuple(j.outcome() for j in judged),
        questions=questions,
        warn_excluded=all(j.state == "met" for j in warn_limits) if status == "pass" and warn_limits else None,
        waived_until=until,
        waived_by=by,
        params=dict(measurement.params),
        help=dict(help or {}),
        seconds=seconds,
    )


# -- limits against metrics ---------------------------------------------------------------------------------------------


def hold(code: str, measurement: Measurement, policy: Policy) -> tuple[Judged, ...]:
    """Every limit of the policy held against every metric that it speaks of, fail before warn, metrics in their order."""
    pairs = [(metric, limit) for metric in measurement.metrics if (limit := policy.limit_for(code, metric)) is not None]
    warn_only = all(limit.fail is None for _, limit in pairs)
    judged: list[Judged] = []
    for level in ("fail", "warn"):
        rows = [
            _open(metric, limit, bound, level, policy.rules, measurement)  # type: ignore[arg-type]  # the loop variable is one of Level
            for metric, limit in pairs
            if (bound := limit.fail if level == "fail" else limit.warn) is not None
        ]
        for row, adjusted, size in zip(rows, *_adjusted(rows), strict=True):
            judged.append(_decided(row, adjusted, size, policy.rules, measurement, guarded=warn_only))
    return tuple(judged)


def _open(metric: Metric, limit: Limit, bound: Bound, level: Level, rules: Rules, measurement: Measurement) -> Judged:
    """What can be said before comparing: undefined, too few, no interval; else still to be decided, with its raw limit p."""
    rule: Rule = "exact" if metric.exact else (limit.rule or rules.rule)
    bound = _bound_in_force(bound, limit, metric, measurement)
    row = Judged(metric=metric, limit=limit, bound=bound, level=level, rule=rule, state="undecided")
    if metric.value is None:
        if "null" in limit.exempt:
            return replace(row, state="not_judged", note=f"undefined: {metric.reason}")
        return replace(row, short=True, note=f"undefined: {metric.reason}")
    if limit.relative_to_null and metric.null is None:
        return replace(row, state="not_judged", note="its value by chance is not known")
    row = replace(row, beyond=bound.beyond(metric.value))
    if rule == "exact":
        return row
    shortage = _shortage(metric, limit, rules)
    if shortage is not None:
        missing, note = shortage
        if "minimum" in limit.exempt:
            return replace(row, state="not_judged", note=note)
        return replace(row, short=True, note=note, missing_n=missing)
    if rule in ("point", "effect+test"):
        return row
    interval = _interval(metric, rules.confidence)
    if interval is None:
        return replace(row, state="not_judged", blind=row.beyond, note=metric.reason or "no sound interval exists")
    row = replace(row, interval=interval, confidence=rules.confidence)
    return replace(row, p=_limit_p(metric, bound, interval, rules.confidence))


def _bound_in_force(bound: Bound, limit: Limit, metric: Metric, measurement: Measurement) -> Bound:
    """The bound, counted from the value by chance, or raised to what chance alone reaches, where the limit says so."""
    if limit.relative_to_null and metric.null is not None:
        return Bound.model_validate({bound.kind: bound.value + metric.null})
    by_chance = _companion(measurement, limit.above_null, metric)
    if by_chance is None or by_chance.value is None or bound.kind != "max" or by_chance.value <= bound.value:
        return bound
    return Bound(max=by_chance.value)


def _companion(measurement: Measurement, name: str | None, metric: Metric) -> Metric | None:
    """The metric of that name with the same slice, else without slice."""
    if name is None:
        return None
    found = {tuple(sorted(m.slice.items())): m for m in measurement.metrics if m.name == name}
    return found.get(tuple(sorted(metric.slice.items())), found.get(()))


def _shortage(metric: Metric, limit: Limit, rules: Rules) -> tuple[int | None, str] | None:
    """(units missing, sentence) where a minimum of CHECKS.md 1.3 is not reached; None where all are."""
    least = max(metric.min_n if metric.min_n is not None else rules.min_n, limit.min_n or 0)
    if metric.n:
        where, n = min(metric.n.items(), key=lambda item: (item[1], item[0]))
        if n < least and n < rules.suppress_below and metric.slice:
            # the sentence and the missing number must not give away what the tables hide
            return None, f"n is below {rules.suppress_below} ({where}), the minimum is {least}"
        if n < least:
            return least - n, f"n = {n} ({where}) is below the minimum of {least}"
    if metric.clusters:
        where, n = min(metric.clusters.items(), key=lambda item: (item[1], item[0]))
        if n < rules.min_clusters:
            return rules.min_clusters - n, f"{n} clusters ({where}) are fewer than the minimum of {rules.min_clusters}"
    if metric.min_events is not None:
        for count, what in ((metric.events, "events"), (metric.nonevents, "non-events")):
            if count is not None and count < metric.min_events:
                return metric.min_events - count, f"{count} {what} are fewer than the minimum of {metric.min_events}"
    return None


def _interval(metric: Metric, confidence: float) -> Pair | None:
    """The metric's interval at the policy's confidence, from the ladder where it was given at another one."""
    if metric.interval is not None and (metric.confidence is None or math.isclose(metric.confidence, confidence)):
        return metric.interval
    return interval_at(metric.ladder, 1.0 - confidence)


def _limit_p(metric: Metric, bound: Bound, interval: Pair, confidence: float) -> float | None:
    """[P5] from the ladder of intervals; from a normal approximation where a metric carries one interval only."""
    if metric.ladder:
        return limit_p(metric.ladder, maximum=bound.max, minimum=bound.min, absolute=bound.abs)
    if metric.value is None:
        return None
    gap, width = _distance(metric.value, bound, interval)
    if not bound.beyond(metric.value):
        return 1.0
    if width <= 0:
        return 1e-6
    z = float(norm.isf((1.0 - confidence) / 2.0))
    return float(2.0 * norm.sf(z * gap / width))


def _adjusted(rows: Sequence[Judged]) -> tuple[list[float | None], list[int]]:
    """Holm over the limit p of each family, and the size of the family, row by row."""
    families: dict[tuple[str, ...], list[int]] = {}
    for number, row in enumerate(rows):
        if row.p is not None:
            families.setdefault(family_of(row.metric), []).append(number)
    adjusted: list[float | None] = [None] * len(rows)
    sizes = [1] * len(rows)
    for members in families.values():
        for number, p in zip(members, holm([rows[i].p for i in members]), strict=True):
            adjusted[number] = p
            sizes[number] = len(members)
    return adjusted, sizes


def family_of(metric: Metric) -> tuple[str, ...]:
    """Metrics corrected together: the declared family, else one metric name over one set of slice columns."""
    return ("family", metric.family) if metric.family is not None else ("slices", metric.name, *sorted(metric.slice))


def _decided(row: Judged, adjusted: float | None, size: int, rules: Rules, measurement: Measurement, *, guarded: bool) -> Judged:
    """The outcome of one limit."""
    if row.state == "not_judged" or row.short or row.metric.value is None:
        return row
    value = row.metric.value
    if row.rule == "exact":
        if row.beyond and row.limit.breach == "inconclusive":
            return replace(row, short=True, note=f"{amount(value)} where at most {amount(row.bound.value)} can be judged")
        return replace(row, state="broken" if row.beyond else "met")
    if row.rule == "point":
        return replace(row, state="broken" if row.beyond else "met", note="point rule, interval ignored")
    if row.rule == "effect+test":
        return _by_effect_and_test(row, value, rules, measurement)
    if row.interval is None:
        return row
    interval, note = row.interval, row.note
    beyond = _outside(interval, row.bound)
    broken = beyond and adjusted is not None and adjusted < rules.alpha
    if broken and row.rule == "interval+test":
        broken, note = _also_significant(row, rules, measurement)
    if beyond and size > 1:
        interval, confidence = _at_family_level(row, interval, adjusted, rules)
        row = replace(row, interval=interval, confidence=confidence)
        if not broken and note is None:
            note = f"beyond the limit by itself, but not after correction for {size} comparisons"
    row = replace(row, p_adjusted=adjusted, note=note)
    if broken:
        return replace(row, state="broken")
    met = _inside(interval, row.bound)
    if met:
        _, width = _distance(value, row.bound, interval)
        side = -1.0 if row.bound.kind == "min" else 1.0
        row = replace(
            row, state="met", detectable=_reachable(value_range(row.metric.name), row.bound.value + side * DETECTABLE_FACTOR * width)
        )
    if guarded and row.level == "warn" and not met:
        guard = row.limit.guard or row.bound
        if not _inside(interval, guard):
            row = replace(row, unsettled_guard=True)
            if not row.beyond and row.limit.guard is not None:
                note = f"{amount(guard.value)}, which this check must exclude in order to pass, is not excluded"
                return _with_missing(replace(row, note=note), value, guard)
    return row if met else _with_missing(row, value, row.bound)


def _by_effect_and_test(row: Judged, value: float, rules: Rules, measurement: Measurement) -> Judged:
    """Rule B: broken if the estimate is beyond and the adjusted p below alpha; met if the estimate is within."""
    metric, limit = row.metric, row.limit
    p = metric.p_adjusted if metric.p_adjusted is not None else metric.p_value
    row = replace(row, p=metric.p_value, p_adjusted=p, interval=metric.interval, confidence=metric.confidence)
    if not row.beyond:
        return replace(row, state="met")
    by_chance = _companion(measurement, limit.null_quantile, metric)
    reach = None if by_chance is None else by_chance.value
    if reach is not None and limit.null_ceiling is not None and value <= reach <= limit.null_ceiling:
        return replace(row, state="met", note=f"within {amount(reach)}, what chance alone reaches at this n")
    if p is None:
        return replace(row, note="beyond the limit, but there is no test of it")
    if p < rules.alpha:
        return replace(row, state="broken")
    return replace(row, note=f"beyond the limit, but so large a value can arise by chance (adjusted p = {_p(p)})")


def _also_significant(row: Judged, rules: Rules, measurement: Measurement) -> tuple[bool, str | None]:
    """Whether the test that the limit asks for is passed as well, and the note if it is not."""
    tested = row.metric if row.limit.test is None else _companion(measurement, row.limit.test, row.metric)
    p = None if tested is None else (tested.p_adjusted if tested.p_adjusted is not None else tested.p_value)
    name = row.limit.test or row.metric.name
    if p is None:
        return False, f"beyond the limit, but the test of {metric_words(name)} that it also needs is not there"
    if p >= rules.alpha:
        return False, f"beyond the limit, but the test of {metric_words(name)} finds nothing (adjusted p = {_p(p)})"
    return True, None


def _at_family_level(row: Judged, interval: Pair, adjusted: float | None, rules: Rules) -> tuple[Pair, float]:
    """(interval, confidence) at the level that the correction leaves this row, so that verdict and printed interval agree."""
    if row.p and adjusted:
        alpha = rules.alpha * row.p / adjusted
        wider = interval_at(row.metric.ladder, alpha)
        if wider is not None:
            return wider, 1.0 - alpha
    return interval, rules.confidence


def _outside(interval: Pair, bound: Bound) -> bool:
    low, high = interval
    if bound.kind == "max":
        return low > bound.value
    if bound.kind == "min":
        return high < bound.value
    return low > bound.value or high < -bound.value


def _inside(interval: Pair, bound: Bound) -> bool:
    low, high = interval
    if bound.kind == "max":
        return high <= bound.value
    if bound.kind == "min":
        return low >= bound.value
    return low >= -bound.value and high <= bound.value


def _distance(value: float, bound: Bound, interval: Pair) -> tuple[float, float]:
    """(distance of the estimate from the nearer bound, distance of the estimate from the interval's end on that side)."""
    low, high = interval
    at = bound.value
    if bound.kind == "abs":
        at = math.copysign(bound.value, value)
    return abs(value - at), (value - low if value > at else high - value)


def _reachable(limits: Pair | None, value: float) -> float | None:
    """The value, or None where the metric cannot take it: then nothing beyond the limit would be found with power 0.8."""
    return value if limits is None or limits[0] <= value <= limits[1] else None


def _with_missing(row: Judged, value: float, bound: Bound) -> Judged:
    """An undecided row with the number of further units that would settle it, or the sentence that none would."""
    assert row.interval is not None
    gap, width = _distance(value, bound, row.interval)
    n = min((row.metric.clusters or row.metric.n or {"": 0}).values())
    if gap <= 0 or n <= 0:
        return replace(row, note=_joined(row.note, NO_NUMBER))
    needed = POWER_FACTOR * n * (width / gap) ** 2
    if needed > MOST_GROWTH * n:
        return replace(row, note=_joined(row.note, NO_NUMBER))
    return replace(row, missing_n=max(1, math.ceil(needed - n)))


def _joined(*notes: str | None) -> str:
    return "; ".join(n for n in notes if n)


# -- status and reason --------------------------------------------------------------------------------------------------


def _status(judged: Sequence[Judged], *, answered: bool) -> tuple[Status, list[Judged]]:
    """The status, and the rows that decide it. ``answered``: a person has answered what a broken review limit asks."""
    if not judged:
        return "info", []
    fails = [j for j in judged if j.level == "fail"]
    warns = [j for j in judged if j.level == "warn"]
    if broken := [j for j in fails if j.state == "broken"]:
        return "fail", broken
    if broken := [j for j in warns if j.state == "broken" and j.limit.breach != "review"]:
        return "warn", broken
    open_rows = [j for j in fails if j.state == "undecided"]
    open_rows += [j for j in warns if j.state == "undecided" and (j.beyond or j.short or j.unsettled_guard)]
    if open_rows:
        return "inconclusive", open_rows
    if broken := [j for j in warns if j.state == "broken"]:
        return ("info" if answered else "review"), broken
    if all(j.state == "not_judged" for j in judged):
        return "info", list(judged)
    # a figure beyond its limit that no interval speaks for is no verdict, and no part of a pass either
    if blind := [j for j in judged if j.blind]:
        return "inconclusive", blind
    return "pass", [j for j in judged if j.state in ("met", "undecided")]


def _reason(status: Status, deciding: Sequence[Judged], judged: Sequence[Judged], measurement: Measurement) -> str:
    if status == "info":
        if not deciding:
            return "Measured; the policy sets no limit."
        if deciding[0].state == "broken":
            row = deciding[0]
            return f"A person has answered for {_named(row, start=False)}: {measured(row.metric, row.interval, row.confidence, limit=row.bound)}."
        return f"Measured and shown without a verdict: {_named(deciding[0], start=False)}, {deciding[0].note}."
    worst = max(deciding, key=_weight)
    if status == "pass":
        return _reason_of_pass(deciding)
    named = _named(worst)
    if status in ("warn", "fail", "review"):
        what = "limit" if worst.level == "fail" else "warning limit" if status == "warn" else "limit above which a person must look"
        if worst.rule == "exact":
            text = f"{named}: {amount(worst.metric.value)}; the {what} is {_bound(worst)}."
        else:
            text = f"{named}: {measured(worst.metric, worst.interval, worst.confidence, limit=worst.bound)} is beyond the {what} {_bound(worst)}"
            text += f" ({worst.note})." if worst.note else "."
        text += _further(deciding, worst, "broken")
        if status == "warn" and any(j.level == "fail" and j.state == "undecided" for j in judged):
            text += " At least a warning; failure is not excluded."
        return text
    if worst.short:
        text = f"{named} could not be judged: {(worst.note or 'undefined').removeprefix('undefined: ')}."
        if worst.missing_n is not None:
            text = text[:-1] + f"; {worst.missing_n} more are needed to judge it."
        return text + _further(deciding, worst, "undecided")
    level = "limit" if worst.level == "fail" else "warning limit"
    sides = f"{named}: {measured(worst.metric, worst.interval, worst.confidence, limit=worst.bound)} "
    sides += f"leaves open on which side of the {level} {_bound(worst)} the truth lies."
    if worst.note:
        sides += f" {worst.note[0].upper()}{worst.note[1:]}."
    if worst.missing_n is not None:
        sides += (
            f" About {worst.missing_n} more {units(worst.metric)} would settle it, if the truth equals the estimate"
            " and the interval narrows with the square root of their number."
        )
    return sides + _further(deciding, worst, "undecided")


def _reason_of_pass(rows: Sequence[Judged]) -> str:
    estimated = [j for j in rows if j.rule not in ("exact", "point")]
    if not estimated and all(j.rule == "exact" for j in rows):
        return "No violation of a limit: the counts and comparisons of the whole set stay within it."
    sizes = [min(j.metric.n.values()) for j in estimated if j.metric.n]
    text = "No violation of a limit was detected" + (f" at n = {min(sizes)}." if sizes else ".")
    known = [j for j in estimated if j.state == "met" and j.detectable is not None]
    if known:
        worst = max(known, key=lambda j: abs((j.detectable or 0.0) - j.bound.value))
        text += f" {_named(worst)}: a true value of {_detectable(worst)} would be found with a chance of 80 %."
    if points := [j for j in rows if j.rule == "point"]:
        text += f" {_named(points[0])}: point rule, interval ignored."
    open_warns = [j for j in rows if j.state == "undecided"]
    if open_warns:
        worst = max(open_warns, key=_weight)
        value = measured(worst.metric, worst.interval, worst.confidence, limit=worst.bound)
        text += f" A warning is not excluded for {_named(worst, start=False)}: {value}, warning limit {_bound(worst)}."
    return text


def _detectable(row: Judged) -> str:
    digits = 3 if row.metric.value is None else decimals_for(row.metric.value, row.interval)
    return amount(row.detectable, max(2, digits))


def _weight(row: Judged) -> tuple[int, int, float]:
    """Order in which rows are named: judged before short ones, intervals and tests before points, then by size beyond the bound."""
    value = row.metric.value
    if value is None or row.short:
        return 0, 0, float(-(row.missing_n or 0))
    sign = -1.0 if row.bound.kind == "min" else 1.0
    excess = sign * ((abs(value) if row.bound.kind == "abs" else value) - row.bound.value)
    return 1, int(row.rule != "point"), excess / (abs(row.bound.value) or 1.0)


def _named(row: Judged, *, start: bool = True) -> str:
    text = metric_words(row.metric.name) + slice_words(row.metric.slice)
    return text[0].upper() + text[1:] if start else text


def _bound(row: Judged) -> str:
    sign = {"max": "≤ ", "min": "≥ ", "abs": "± "}[row.bound.kind]
    return sign + amount(row.bound.value)


def _further(rows: Sequence[Judged], named: Judged, what: str) -> str:
    others = {(j.metric.name, tuple(sorted(j.metric.slice.items()))) for j in rows if j.metric is not named.metric}
    if not others:
        return ""
    names = [metric_words(name) + slice_words(dict(slice)) for name, slice in sorted(others)]
    return f" Also {what}: {listed(names, most=3)}."


def _p(p: float) -> str:
    return f"{p:.2g}"


def _waived(code: str, judged: Sequence[Judged], policy: Policy, today: datetime.date) -> tuple[str | None, str | None]:
    """(until, by) where every broken limit is covered by a waiver that is in force."""
    active = [w for w in policy.waivers if w.check == code and w.active(today)]
    used = []
    for row in judged:
        if row.state != "broken":
            continue
        cover = next((w for w in active if w.covers(row.metric.name, row.metric.slice)), None)
        if cover is None:
            return None, None
        used.append(cover)
    if not used:
        return None, None
    first = min(used, key=lambda w: w.expires)
    return first.expires, first.approved_by


def broken_margin(outcome: LimitOutcome, value: float) -> float:
    """How far a broken value lies beyond its bound, for sorting findings by size of breach."""
    if outcome.bound == "min":
        return outcome.value - value
    return (abs(value) if outcome.bound == "abs" else value) - outcome.value
