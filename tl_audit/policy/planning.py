"""Planning before any data: what each limit of a policy can detect at a size, and how many samples it needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tl_audit.errors import ConfigError
from tl_audit.measures.estimate import normal_quantile
from tl_audit.measures.precision import rows_for_rate
from tl_audit.policy.limits import Bound, Limit, Policy

Kind = Literal["rate", "paired", "gap", "between", "auc"]

KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(("group_unknown_share", "preprocessing_flip_rate", "negative_flip_rate"), "rate"),
    **dict.fromkeys(("accuracy_change", "gain_over_scratch", "gain_over_head", "backward_transfer"), "paired"),
    **dict.fromkeys(("accuracy_gap", "recall_gap", "tpr_gap", "overconfidence_gap"), "gap"),
    **dict.fromkeys(("accuracy_drop", "generalisation_gap"), "between"),
    **dict.fromkeys(("c2st_auc", "attack_auc", "explanation_c2st_auc"), "auc"),
}  # type: ignore[dict-item]  # each value is one of Kind
"""How the width of a metric's interval follows from the size, where that can be said before any data."""

# the share that is expected where nothing is wrong
_EXPECTED = {"group_unknown_share": 0.0, "preprocessing_flip_rate": 0.0, "negative_flip_rate": 0.0}
_POWER_Z = 0.8416212335729143


@dataclass(frozen=True)
class Planned:
    """One bound of a policy, planned.

    Attributes
    ----------
    limit, level, bound : which
    group : the group, for limits on gaps; None else
    needed : samples with which the limit is met in four of five audits where nothing is wrong; None where no number is
    found : the mildest violation that is found in four of five audits at the size given; None where none of the metric's values is
    """

    limit: Limit
    level: Literal["warn", "fail"]
    bound: Bound
    group: str | None
    needed: int | None
    found: float | None


def planned(
    policy: Policy, n: int, *, groups: Mapping[str, int] | None = None, rate: float = 0.8, discordant: float = 0.1
) -> tuple[tuple[Planned, ...], tuple[str, ...]]:
    """Every limit whose interval can be foretold, and the names of those whose cannot.

    Parameters
    ----------
    n : target samples (independent units), as many in any other domain
    groups : name -> samples (for gaps in true positive rate or recall: of the class in question); each is held against all others
    rate : expected accuracy
    discordant : expected share of samples that two models answer differently

    Raises
    ------
    ConfigError : sizes or rates that are none
    """
    groups = groups or {}
    if n < 1:
        raise ConfigError(f"n = {n}: give at least one sample")
    for name, size in groups.items():
        if not 0 < size < n:
            raise ConfigError(
                f"group {name} has {size} of n = {n} samples: give at least one, and fewer than n, since the rest is compared with it"
            )
    if not (0 < rate < 1 and 0 < discordant <= 1):
        raise ConfigError(f"rate {rate:g} and discordant {discordant:g}: expected shares between 0 and 1")
    rows: list[Planned] = []
    left: list[str] = []
    for limit in policy.limits:
        kind = KINDS.get(limit.metric)
        if kind is None or (limit.rule or policy.rules.rule) not in ("interval", "interval+test") or limit.relative_to_null:
            if limit.rule in (None, "interval", "interval+test"):
                left.append(f"{limit.check} {limit.metric}")
            continue
        for level, bound in (("fail", limit.fail), ("warn", limit.warn)):
            if bound is None:
                continue
            for group, size in groups.items() if kind == "gap" else ((None, n),):
                needed, found = _numbers(kind, limit.metric, bound, n, size, rate, discordant, policy.rules.confidence, max(1, len(groups)))
                rows.append(Planned(limit, level, bound, group, needed, found))  # type: ignore[arg-type]  # one of the two levels
    return tuple(rows), tuple(dict.fromkeys(left))


def _numbers(
    kind: Kind, metric: str, bound: Bound, n: int, size: int, rate: float, discordant: float, confidence: float, groups: int
) -> tuple[int | None, float | None]:
    """(samples needed where nothing is wrong, mildest violation found)."""
    level = normal_quantile(1 - confidence)
    side = -1.0 if bound.kind == "min" else 1.0
    if kind == "rate":
        expected = rate if bound.kind == "min" else _EXPECTED.get(metric, 0.0)
        better = expected > bound.value if bound.kind == "min" else expected < bound.value
        needed = rows_for_rate(expected, bound.value, confidence=confidence) if better else None
        found = bound.value + side * (level + _POWER_Z) * math.sqrt(bound.value * (1 - bound.value) / n)
        return needed, found if 0 <= found <= 1 else None
    if kind == "auc":
        # n on each side; the held-out half of a domain classifier holds half of them
        per = n / 2 if "c2st" in metric else n
        spread = math.sqrt(1 / (6 * per))
        away = abs(bound.value - 0.5)
        needed = math.ceil(n * ((level + _POWER_Z) * spread / away) ** 2) if away else None
        found = bound.value + side * (level + _POWER_Z) * spread
        return needed, found if found <= 1 else None
    if kind == "paired":
        # the interval's end is where a score test with the variance under the limit rejects; the answers vary as they are
        wide, own = level * math.sqrt(_paired_variance(bound.value, discordant)), _POWER_Z * math.sqrt(discordant)
        found = bound.value + side * (wide + own) / math.sqrt(n)
        return (math.ceil(((wide + own) / bound.value) ** 2) if bound.value else None), found if -1 <= found <= 1 else None
    variance = rate * (1 - rate)
    if kind == "between":
        spread, of = math.sqrt(2 * variance / n), n
    else:
        # breaking a limit in one of several groups is corrected for their number, meeting it is not
        spread, of = math.sqrt(variance * (1 / size + 1 / (n - size))), size
    reach = level + _POWER_Z
    needed = math.ceil(of * (reach * spread / abs(bound.value)) ** 2) if bound.value else None
    strict = normal_quantile((1 - confidence) / groups) if kind == "gap" else level
    found = bound.value + side * (strict + _POWER_Z) * spread
    return needed, found if -1 <= found <= 1 else None


def _paired_variance(limit: float, discordant: float) -> float:
    """Variance of one pair's difference under a difference of ``limit``, where as many answers differ to one side as to the other ([I3])."""
    linear, constant = 2 * limit - discordant, -discordant / 2 * limit * (1 - limit)
    q = (math.sqrt(max(0.0, linear**2 - 8 * constant)) - linear) / 4
    return 2 * q + limit * (1 - limit)
