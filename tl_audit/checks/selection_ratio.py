"""TLA609: the ratio table that some rules on selection ask for. Runs only where the policy asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_audit.checks.base import Check, Context, check, exact, metric
from tl_audit.checks.data import INDEPENDENT
from tl_audit.checks.fairness import groups_at
from tl_audit.checks.wording import bounds, counted, number, p_value, percent
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures.fairness import MISSING
from tl_audit.measures.selection_ratio import CategoryRatio, ImpactRatios, above_median, impact_ratios
from tl_audit.policy import Rules
from tl_audit.records.exhibits import Cell, Column, Dot, Intervals, Reference, Table, slug
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject

LEAST_SHARE = 0.02
"""Categories that hold less of the rows are left out of the comparison, with n and rate shown."""

BASES = {"selection": ("selection_rate", "selected", "selection rate"), "score": ("scoring_rate", "above the median", "scoring rate")}
CHOSEN = (
    "The category that all others are compared with is the one most often selected in these same rows: ratios lie below 1 by chance alone."
)
AS_DECLARED = "Columns and categories are those declared for the target; whether they are the ones a rule names is for a person to say."
NO_AUDIT = "This is a table of ratios. It does not replace an independent audit that a law may require, and states nothing about what a law allows."


@check(
    "TLA609",
    "Selection-rate ratio",
    section="fairness",
    severity="medium",
    needs=("adapted", "target.groups", "adapted@target"),
    optional=True,
)
def selection_rate_ratio(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """How often is each category selected, as a ratio of the most-selected one?

    How it is measured: the share of each category that is given the positive class, divided by that of the category with the highest share, with the
    interval of the logarithm of the ratio and a test of equal rates (Fisher's exact below 30 rows, else Z with continuity correction); the same for
    the share whose score lies above the median of all. Each group column by itself, and all pairs of columns crossed. Rows without a category are
    counted; categories with less than 2 % of the rows are listed and not compared.

    Why it matters: rules on selection procedures ask for this table. What a ratio means is for the people who answer under those rules.

    How to reduce the risk: look for what drives the difference (TLA602, TLA605, TLA606), ask whether the outcome is the right one to select on,
    and collect enough rows: two equal rates of 0.3 need 361 rows each before the interval clears 0.8.
    """
    rules, seed = context.rules, context.seed
    positive = evidence.positive("target")
    classes = evidence.common_classes("adapted", "target")
    if positive is None or positive not in classes:
        raise NotEvaluated("a positive class of the target: positive = ... in [target], or positive= in Python")
    rows = np.flatnonzero(evidence.usable("adapted", "target"))
    if rows.size == 0:
        raise NotEvaluated("usable rows of the target")
    at = classes.index(positive)
    hits = {
        "selection": np.asarray(evidence.predictions("adapted", "target")[rows] == at, dtype=np.bool_),
        "score": above_median(evidence.probabilities("adapted", "target")[rows, at]),
    }
    ids = evidence.cluster("target")
    cluster = None if ids is None else np.asarray(ids)[rows]
    columns = groups_at(evidence, rows)
    caveats = [CHOSEN, AS_DECLARED, NO_AUDIT]
    if cluster is None:
        caveats.append(INDEPENDENT)
    metrics: list[Metric] = []
    exhibits: list[Intervals | Table] = []
    said: list[str] = []
    for column, values in columns.items():
        unknown = int((values == MISSING).sum())
        metrics.append(exact("unknown_rows", unknown, n={"target": int(rows.size)}, slice={"column": column}))
        if unknown:
            caveats.append(f"{column}: {counted(unknown, 'row')} of {rows.size} without a category, in no rate.")
    for names, values, slices in _partitions(columns):
        where = " and ".join(names)
        for basis, hit in hits.items():
            found = impact_ratios(values, hit, least_share=LEAST_SHARE, cluster=cluster, seed=seed)
            metrics += _metrics(found, basis, where, slices, rules)
            if basis == "selection":
                said += _said(found, where, rules.min_n)
                exhibits += _figure(found, where, rules)
                left = [f"{one.category} (n = {one.n}, rate {percent(one.rate.value)})" for one in found.categories if one.left_out]
                if left:
                    hidden = [one for one in found.categories if one.left_out and one.n < rules.suppress_below]
                    text = _categories(len(left)) if hidden else ", ".join(left)
                    caveats.append(f"{where}: below {LEAST_SHARE:.0%} of the rows and not compared: {text}.")
            exhibits.append(_table(found, basis, where, rules))
    return Measurement(
        summary="; ".join(said) + "." if said else "No two categories can be compared.",
        metrics=tuple(metrics),
        exhibits=tuple(exhibits),
        caveats=tuple(caveats),
        params={
            "positive": positive,
            "least_share": LEAST_SHARE,
            "reference": "the most-selected category",
            "decision_rule": "argmax",
            "seed": seed,
        },
    )


def _partitions(columns: dict[str, NDArray[Any]]) -> Iterator[tuple[tuple[str, ...], NDArray[Any], dict[str, dict[str, str]]]]:
    """(columns, category of each row, slice of each category): every column, then every pair crossed; a row unknown in either is unknown."""
    for column, values in columns.items():
        yield (column,), values, {str(name): {column: str(name)} for name in set(values)}
    for first, second in combinations(columns, 2):
        a, b = columns[first], columns[second]
        known = (a != MISSING) & (b != MISSING)
        cells = np.where(known, [f"{x} and {y}" for x, y in zip(a, b, strict=True)], MISSING).astype(object)
        slices = {f"{x} and {y}": {first: str(x), second: str(y)} for x, y in zip(a[known], b[known], strict=True)}
        yield (first, second), cells, slices


def _metrics(found: ImpactRatios, basis: str, where: str, slices: dict[str, dict[str, str]], rules: Rules) -> Iterator[Metric]:
    for one in found.categories:
        place = {**slices[one.category], "of": basis}
        yield metric(BASES[basis][0], one.rate, rules=rules, slice=place)
        if one.category == found.reference:
            yield exact("impact_ratio", 1.0, n={"category": one.n}, slice=place, null=1.0, reason=one.ratio.reason)
            continue
        yield metric(
            "impact_ratio", one.ratio, rules=rules, slice=place, family=f"impact_ratio of {basis} by {where}",
            n={"category": one.n, "reference": 0 if found.reference is None else found[found.reference].n},
        )  # fmt: skip


def _said(found: ImpactRatios, where: str, least: int) -> list[str]:
    others = (one for one in found.categories if not one.left_out and one.category != found.reference and one.n >= least)
    compared = [one for one in others if one.ratio.value is not None]
    if not compared:
        return []
    low = min(compared, key=lambda one: (one.ratio.value or 0.0, one.category))
    return [f"{where}: lowest ratio {number(low.ratio.value)} ({low.category} against {found.reference}, n = {low.n})"]


def _figure(found: ImpactRatios, where: str, rules: Rules) -> list[Intervals]:
    compared = [one for one in found.categories if not one.left_out]
    if len(compared) < 2:
        return []
    dots = tuple(
        Dot(
            label=one.category,
            value=one.ratio.value,
            interval=one.ratio.interval(rules.confidence),
            n=one.n,
            hollow=one.n < rules.min_n,
            note=one.ratio.reason,
        )
        for one in compared
    )
    return [
        Intervals(
            id=slug(f"ratio-{where}"),
            title=f"Selection rate as a ratio of that of {found.reference}, by {where}",
            how_to_read="1: selected as often as the most-selected category. Hollow: below the minimum n.",
            alt="; ".join(f"{one.category} {number(one.ratio.value)}" for one in compared) + ".",
            caption=f"n = {found.known} rows with a category, {found.unknown} without; {rules.confidence:.0%} intervals.",
            value_label="ratio of selection rates",
            dots=dots,
            references=(Reference(value=1.0, label="selected as often", role="null"),),
            grouped=True,
        )
    ]


def _categories(n: int) -> str:
    return f"{n} categor{'y' if n == 1 else 'ies'}"


def _table(found: ImpactRatios, basis: str, where: str, rules: Rules) -> Table:
    _, hit, name = BASES[basis]

    def line(one: CategoryRatio) -> tuple[Cell, ...]:
        mark = " (reference)" if one.category == found.reference else " (not compared)" if one.left_out else ""
        return (
            one.category + mark, one.n, one.share, str(one.selected), one.rate.value, one.ratio.value,
            bounds(one.ratio.interval(rules.confidence)) if one.ratio.ladder else "",
            "" if one.deviations is None else f"{one.deviations:+.2f}".replace("-", "−"),
            "" if one.test is None else f"{p_value(one.ratio.p_value)} ({one.test})",
        )  # fmt: skip

    unknown: tuple[Cell, ...] = ("unknown", found.unknown, None, "", None, None, "", "", "")
    median = " Above the median of all scores; a score equal to it is not above." if basis == "score" else ""
    return Table(
        id=slug(f"{basis}-{where}"),
        title=f"{name.capitalize()}s and their ratios by {where}",
        how_to_read=f"Each category's {name} divided by that of the reference. Standard deviations: the difference of the two rates in units of its standard error.",
        alt=f"{name.capitalize()}s of {_categories(len(found.categories))} by {where}.",
        caption=f"n = {found.known} rows with a category.{median} p-values not corrected for the number of categories.",
        columns=(
            Column(name="category"),
            Column(name="n", format="count"),
            Column(name="share of rows", format="share"),
            Column(name=hit),
            Column(name=name, format="share"),
            Column(name="ratio", format="number"),
            Column(name=f"{rules.confidence:.0%} interval"),
            Column(name="standard deviations"),
            Column(name="p of equal rates"),
        ),
        rows=(*(line(one) for one in found.categories), *((unknown,) if found.unknown else ())),
        grouped=True,
    )


SELECTION_RATIO: tuple[Check, ...] = (selection_rate_ratio,)
