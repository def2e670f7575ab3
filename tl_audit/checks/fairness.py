"""Family 6: whom does the adapted model fail? Groups are audited column by column; a missing group value is a group of its own."""

from __future__ import annotations

from typing import Literal

import numpy as np

from tl_audit.checks import mean_error
from tl_audit.checks.base import Check, Context, check, exact, metric
from tl_audit.checks.selection import Judged, judged
from tl_audit.checks.wording import percent, signed
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures import calibration, fairness
from tl_audit.measures.arrays import is_missing
from tl_audit.measures.estimate import Estimate
from tl_audit.records.exhibits import Cell, Column, Dot, Intervals, Reference, Table, slug
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject

NEEDS = ("adapted", "target.labels", "target.groups", "adapted@target")
RATES = ("accuracy", "selection_rate", "tpr", "fpr", "precision", "nll", "base_rate")
BETTER: dict[str, Literal["lower", "higher"]] = {
    "fpr": "lower",
    "nll": "lower",
    "accuracy": "higher",
    "tpr": "higher",
    "precision": "higher",
}
GAPS = ("accuracy", "tpr", "fpr", "selection_rate")


@check("TLA601", "Group performance", section="fairness", severity="info", needs=NEEDS, multiplicity="none", values=mean_error.group_errors)
def group_performance(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """What is the performance in each group?

    How it is measured: accuracy and negative log-likelihood per group; with a positive class also selection rate, true and false positive rate,
    precision and base rate, each with its own denominator and interval.

    Why it matters: an average hides whom a model fails. Intervals that overlap do not show equality; TLA602 is the gate.

    How to reduce the risk: collect more samples of the thin groups before anything else.
    """
    rules = context.rules
    rows = judged(evidence, "adapted", "target")
    positive = rows.positive(evidence)
    metrics: list[Metric] = []
    exhibits: list[Intervals | Table] = []
    said = []
    for column, values in groups_of(evidence, rows).items():
        table = _rates(rows, values, positive)
        cells: list[tuple[Cell, ...]] = []
        shown = [name for name in RATES if positive is not None or name in ("accuracy", "nll")]
        for group, rates in table.items():
            for name in shown:
                metrics.append(
                    metric(
                        name,
                        rates[name],
                        rules=rules,
                        better=BETTER.get(name),
                        slice={column: group},
                        family=f"{name} by {column}",
                        unit="nats" if name == "nll" else None,
                    )
                )
            cells.append((group, rates["accuracy"].n, *(rates[name].value for name in shown)))
        for name in [n for n in shown if n in ("accuracy", "tpr", "fpr", "selection_rate", "precision")]:
            dots = sorted(
                (
                    Dot(
                        label=g,
                        value=r[name].value,
                        interval=r[name].interval(rules.confidence),
                        n=r[name].n,
                        hollow=r[name].n < rules.min_n,
                        note=r[name].reason,
                    )
                    for g, r in table.items()
                ),
                key=lambda d: (-(d.n or 0), d.label),
            )
            overall = float(rows.correct.mean()) if name == "accuracy" else None
            exhibits.append(
                Intervals(
                    id=slug(f"{name}-by-{column}"),
                    title=f"{word_for(name)} by {column}",
                    how_to_read="Dots are groups, largest first; hollow ones are below the minimum n. Compare groups in TLA602, not by the overlap of intervals.",
                    alt="; ".join(f"{d.label} {percent(d.value)}" for d in dots[:8]) + ".",
                    caption=f"n = {rows.n}; {rules.confidence:.0%} intervals.",
                    value_label=word_for(name).lower(),
                    dots=tuple(dots),
                    references=() if overall is None else (Reference(value=overall, label="all", role="rest"),),
                    share=True,
                    grouped=True,
                )
            )
        exhibits.append(
            Table(
                id=slug(f"groups-{column}"),
                title=f"All rates by {column}",
                how_to_read="Each rate has its own denominator; an empty cell is undefined, not zero.",
                alt=f"Rates of the groups of {column}.",
                caption=f"n = {rows.n} target rows.",
                columns=(
                    Column(name=column),
                    Column(name="n", format="count"),
                    *(Column(name=word_for(n), format="number" if n == "nll" else "share") for n in shown),
                ),
                rows=tuple(cells),
                grouped=True,
            )
        )
        accuracies = {g: r["accuracy"] for g, r in table.items() if r["accuracy"].value is not None and r["accuracy"].n >= rules.min_n}
        if accuracies:
            low = min(accuracies, key=lambda g: accuracies[g].value or 0.0)
            said.append(f"{column}: lowest accuracy {percent(accuracies[low].value)} ({low}, n = {accuracies[low].n})")
    caveats = list(rows.caveats)
    if positive is None:
        caveats.append("No positive class is declared: rates of one class (TPR, FPR, selection rate) are not shown.")
    return Measurement(
        summary="; ".join(said) + "." if said else "No group has enough rows to be described.",
        metrics=tuple(metrics), exhibits=tuple(exhibits), caveats=tuple(caveats),
        params={"positive": None if positive is None else rows.classes[positive], "decision_rule": "argmax"},
    )  # fmt: skip


@check("TLA602", "Gap of each group to the rest", section="fairness", severity="critical", needs=NEEDS, values=mean_error.group_error_gaps)
def gap_to_the_rest(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Is any group served worse than all others, beyond the limit?

    How it is measured: rate of the group minus rate of all other rows, Newcombe's interval (over clusters where they are known); the limit is
    tested per group and corrected over the groups of one column (Holm). The other direction, being within the limit, needs every plain interval inside.

    Why it matters: a group that is served worse carries the cost of the adaptation.

    How to reduce the risk: more training data of the group, balanced sampling, a look at what differs in its inputs.
    """
    rules, seed = context.rules, context.seed
    rows = judged(evidence, "adapted", "target")
    positive = rows.positive(evidence)
    columns = {c: v for c, v in groups_of(evidence, rows).items() if len(set(v)) > 1}
    if not columns:
        raise NotEvaluated("One group only: every group column of the target holds a single value (see TLA611)")
    metrics: list[Metric] = []
    exhibits: list[Intervals | Table] = []
    said = []
    for column, values in columns.items():
        for name in GAPS if positive is not None else ("accuracy",):
            found = fairness.group_gaps(values, rows.truth, rows.predicted, metric=name, positive=positive, cluster=rows.cluster, seed=seed)
            # the group that is served worst comes first, in the record and so in the sentence about it
            harm = 1.0 if name == "fpr" else -1.0
            gaps = {g.group: g for g in sorted(found, key=lambda g: (g.gap.value is None, -harm * (g.gap.value or 0.0)))}
            dots = []
            for group, both in gaps.items():
                gap = both.gap
                metrics.append(
                    metric(
                        f"{name}_gap", gap, rules=rules, slice={column: group}, family=f"{name}_gap by {column}",
                        n={"group": both.inside.n, "rest": both.outside.n},
                    )
                )  # fmt: skip
                own = both.inside.n
                dots.append(
                    Dot(
                        label=group,
                        value=gap.value,
                        interval=gap.interval(rules.confidence),
                        n=own,
                        hollow=own < rules.min_n,
                        note=gap.reason,
                    )
                )
            dots.sort(key=lambda d: (-(d.n or 0), d.label))
            judged_dots = [d for d in dots if d.value is not None and (d.n or 0) >= rules.min_n]
            worst = min(judged_dots, key=lambda d: d.value or 0.0) if judged_dots else None
            title = (
                f"{word_for(name)} of {column} = {worst.label}: {signed(worst.value)} against the rest"
                if worst and worst.value is not None
                else f"{word_for(name)} against the rest"
            )
            if name == "accuracy":
                said.append(title if worst else f"{title}: no group of {column} is large enough to judge")
            exhibits.append(
                Intervals(
                    id=slug(f"{name}-gap-{column}"),
                    title=title,
                    how_to_read="Each group's rate minus that of all other rows. A line wholly beyond a limit breaks it; one that crosses it leaves the question open.",
                    alt="; ".join(f"{d.label} {signed(d.value)}" for d in dots if d.value is not None)[:600] + ".",
                    caption=f"Adapted model on the target; {rules.confidence:.0%} intervals, not corrected; the limit's p is corrected over the {len(gaps)} groups (Holm).",
                    value_label=f"difference of {word_for(name).lower()}",
                    dots=tuple(dots),
                    references=(Reference(value=0.0, label="no gap", role="null"),),
                    grouped=True,
                )
            )
    caveats = list(rows.caveats)
    mirrored = sorted(c for c, v in columns.items() if len(set(v)) == 2)
    if mirrored:
        caveats.append(
            f"Two groups only in {', '.join(mirrored)}: each gap is the other's with the sign turned. A negative accuracy gap is the worse side."
        )
    if len(columns) < len(groups_of(evidence, rows)):
        caveats.append(
            "Columns with one group only are left out: " + ", ".join(sorted(set(groups_of(evidence, rows)) - set(columns))) + "."
        )
    return Measurement(
        summary="; ".join(said) + ".", metrics=tuple(metrics), exhibits=tuple(exhibits), caveats=tuple(caveats),
        params={"reference": "the rest", "positive": None if positive is None else rows.classes[positive], "decision_rule": "argmax", "seed": seed},
    )  # fmt: skip


@check("TLA611", "Degenerate groups", section="fairness", severity="high", needs=("target.groups",), multiplicity="none", values="same")
def degenerate_groups(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Where is a fairness number impossible?

    How it is measured: group by metric, whether a denominator is there at all (positives, negatives, predictions); whether a column holds one group only;
    the share of rows in groups below the minimum n.

    Why it matters: libraries print 0 or 1 for such cells, which reads as "no gap" or "total gap"; here they are named.

    How to reduce the risk: collect samples of the named groups and outcomes.
    """
    rules = context.rules
    metrics: list[Metric] = []
    cells: list[tuple[Cell, ...]] = []
    try:
        rows: Judged | None = judged(evidence, "adapted", "target")
    except NotEvaluated:
        rows = None
    positive = None if rows is None else rows.positive(evidence)
    columns = evidence.groups("target") if rows is None else groups_of(evidence, rows)
    undefined = 0
    thin_rows, all_rows, single = 0, 0, []
    for column, values in columns.items():
        names, counts = np.unique(values.astype(str), return_counts=True)
        if len(names) < 2:
            single.append(column)
        thin_rows += int(counts[counts < rules.min_n].sum())
        all_rows += int(counts.sum())
        if rows is None or positive is None:
            continue
        for group, rates in _rates(rows, values, positive).items():
            for name in ("tpr", "fpr", "precision"):
                if rates[name].value is None:
                    undefined += 1
                    cells.append((column, group, word_for(name), rates[name].reason or "no denominator"))
    n = {"target": int(next(iter(columns.values())).size)} if columns else {}
    metrics.append(exact("undefined_cells", undefined, n=n, better="lower"))
    metrics.append(exact("single_group", 1.0 if single else 0.0, n=n, better="lower"))
    metrics.append(
        exact("unjudged_groups_share", thin_rows / all_rows, n=n, better="lower")
        if all_rows
        else exact("unjudged_groups_share", None, reason="no rows with groups")
    )
    parts = []
    if single:
        parts.append("one group only in " + ", ".join(single))
    if undefined:
        parts.append(f"{undefined} cells have no denominator")
    summary = "; ".join(parts).capitalize() + "." if parts else "Every group has a denominator for every metric."
    table = Table(
        id="undefined-cells",
        title=summary,
        how_to_read="Each line is a number that cannot be computed, and why. It is null in TLA601 and TLA602, never 0 or 1.",
        alt=summary,
        caption=f"Minimum n of a group: {rules.min_n}.",
        columns=(Column(name="column"), Column(name="group"), Column(name="metric"), Column(name="reason")),
        rows=tuple(cells),
    )
    caveats = () if positive is not None else ("No positive class is declared: only the number of groups and their sizes are examined.",)
    return Measurement(summary=summary, metrics=tuple(metrics), exhibits=(table,), caveats=caveats)


def groups_of(evidence: Evidence, rows: Judged) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """Group of each judged row, as text, by column; "(missing)" where there is none."""
    return groups_at(evidence, rows.rows)


def groups_at(evidence: Evidence, rows: np.ndarray) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """Group of the target rows with these numbers (or under this mask), as text, by column."""
    return {
        column: np.array([fairness.MISSING if is_missing(value) else str(value) for value in np.asarray(values)[rows].tolist()])
        for column, values in evidence.groups("target").items()
    }


def _rates(rows: Judged, values: np.ndarray, positive: int | None) -> dict[str, dict[str, Estimate]]:  # type: ignore[type-arg]
    losses = calibration.nll_rows(rows.probabilities, rows.truth)
    found = fairness.group_rates(values, rows.truth, rows.predicted, positive=positive, nll_rows=losses, cluster=rows.cluster)
    return {g.group: dict(g.rates) for g in found}


def word_for(name: str) -> str:
    """A rate in words, with a capital."""
    return {
        "tpr": "True positive rate",
        "fpr": "False positive rate",
        "nll": "Negative log-likelihood",
        "base_rate": "Base rate",
        "selection_rate": "Selection rate",
    }.get(name, name.replace("_", " ").capitalize())


FAIRNESS: tuple[Check, ...] = (group_performance, gap_to_the_rest, degenerate_groups)
