"""Family 6, continued: how wide groups differ, for which class, where it comes from, who lost right answers, whose confidence misleads."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_audit.checks.base import Check, Context, check, exact, metric
from tl_audit.checks.fairness import GAPS, NEEDS, groups_at, groups_of, word_for
from tl_audit.checks.selection import Judged, judged
from tl_audit.checks.wording import p_value, percent, signed
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence, missing_model
from tl_audit.measures import calibration, fairness
from tl_audit.measures.estimate import LADDER_ALPHAS, BoolArray, Estimate, interval_at
from tl_audit.measures.intervals import bonferroni
from tl_audit.measures.permutation import resamples_for
from tl_audit.policy import Rules
from tl_audit.records.exhibits import Bar, Bars, Cell, Column, Dot, Exhibit, Heatmap, Intervals, Reference, Table, slug
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject

Groups = dict[str, NDArray[Any]]
MOST_CLASSES_IN_GRID = 20
MOST_GROUPS_IN_GRID = 40
ONE_GROUP = "One group only: every group column of the target holds a single value (see TLA611)"
NO_INTERVAL = "a largest difference lies above 0 by construction: no sound interval exists"


@check("TLA603", "Largest difference", section="fairness", severity="info", needs=NEEDS)
def largest_difference(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """How wide is the spread over groups, and is it more than chance?

    How it is measured: the largest minus the smallest rate over the groups of a column, beside what chance alone gives: the mean and the 95 % point of
    that difference when group labels are permuted (over clusters where they are known; for true and false positive rates among the rows of one class).
    Groups below the minimum n are left out and named. There is no interval and no limit: such a difference lies above 0 even where nothing differs.

    Why it matters: twenty equal groups of a hundred show a difference of 0.19; without its value by chance the number accuses everybody.

    How to reduce the risk: see TLA602 for which group it is; more samples of the thin groups make the value by chance smaller.
    """
    rules, seed = context.rules, context.seed
    rows = judged(evidence, "adapted", "target")
    positive = rows.positive(evidence)
    columns, caveats = _several(evidence, rows)
    metrics: list[Metric] = []
    bars: list[Bar] = []
    said: list[str] = []
    for column, values in columns.items():
        for name, (hit, base) in _outcomes(rows, positive).items():
            found = fairness.largest_difference(
                values, hit, denominator=base, cluster=rows.cluster, minimum=rules.min_n,
                resamples=resamples_for(len(columns)), seed=seed,
            )  # fmt: skip
            where = {"attribute": column}
            whole = metric(
                f"max_min_{name}", found, rules=rules, better="lower", slice=where, family=f"max_min_{name}",
                reason=NO_INTERVAL if found.value is not None else None,
            )  # fmt: skip
            metrics.append(whole)
            details = found.details
            by_metric = {**where, "metric": name}
            for part, key, null in (
                ("max_min_excess", "excess", 0.0),
                ("max_min_null_high", "null_95", None),
                ("between_group_sd", "between_group_sd", 0.0),
                ("between_group_variance", "between_group_variance", 0.0),
            ):
                value = details.get(key)
                why = found.reason or (
                    NO_INTERVAL if value is not None else "a group holds a single independent unit: its own spread is not known"
                )
                metrics.append(
                    metric(part, replace(found, value=value, ladder=(), null=null, p_value=None), rules=rules, slice=by_metric, reason=why)
                )
            if details["left_out"]:
                which = "" if base is None else f" ({word_for(name).lower()})"
                caveats.append(f"{column}: below {rules.min_n} rows{which} and left out: {', '.join(details['left_out'])}.")
            if found.value is None:
                bars.append(Bar(label=f"{word_for(name)} by {column}", value=None, note=found.reason))
                continue
            bars.append(Bar(label=f"{word_for(name)} by {column}", value=found.value, null=details["null_95"], n=found.n))
            if name == "accuracy":
                beyond = "more than" if found.value > details["null_95"] else "within"
                said.append(
                    f"accuracy differs by {percent(found.value)} over {details['groups']} groups of {column}, {beyond} what chance gives"
                    f" ({percent(found.null)} on average, 95 % below {percent(details['null_95'])}; p = {p_value(found.p_value)})"
                )
    summary = _sentence(said, "No column has two groups that are large enough to compare")
    figure = Bars(
        id="largest-difference",
        title="Largest difference between two groups, and what chance gives",
        how_to_read="The bar is the largest minus the smallest rate. The tick is what 95 % of random groupings of the same sizes stay below.",
        alt=summary,
        caption=f"Adapted model on the target; group labels permuted{'' if rows.cluster is None else ' over clusters'}; seed {seed}.",
        value_label="largest difference of rates",
        bars=tuple(bars),
    )
    return Measurement(
        summary=summary, metrics=tuple(metrics), exhibits=(figure,), caveats=(*rows.caveats, *dict.fromkeys(caveats)),
        params={"positive": None if positive is None else rows.classes[positive], "decision_rule": "argmax", "seed": seed},
    )  # fmt: skip


@check("TLA604", "Multiclass fairness", section="fairness", severity="high", needs=NEEDS)
def gaps_by_class(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """For which class is which group served worse?

    How it is measured: for each group and class, the share of the group's samples of that class that are recognised minus the same share of all other
    rows (Newcombe's interval, over clusters where they are known); and the share of samples that are given that class, compared alike. The limit is tested
    in each cell and corrected over all cells of a column (Holm). The worst cell has an interval that allows for having been picked.

    Why it matters: a model can be as accurate for every group and still miss one class in one of them.

    How to reduce the risk: more training samples of that class in that group; look at which class it is taken for (TLA304).
    """
    rules, seed = context.rules, context.seed
    rows = judged(evidence, "adapted", "target")
    columns, caveats = _several(evidence, rows)
    metrics: list[Metric] = []
    exhibits: list[Exhibit] = []
    said: list[str] = []
    thin: list[tuple[Cell, ...]] = []
    for column, values in columns.items():
        cells: dict[tuple[str, str], Estimate] = {}
        for index, name in enumerate(rows.classes):
            given = rows.predicted == index
            recall = fairness.binary_gaps(
                values, given, denominator=rows.truth == index, cluster=rows.cluster, seed=seed, empty="no rows of this class"
            )
            share = fairness.binary_gaps(values, given, cluster=rows.cluster, seed=seed)
            for kind, gaps in (("recall_gap", recall), ("predicted_share_gap", share)):
                for one in gaps:
                    n = {"group": one.inside.n, "rest": one.outside.n}
                    metrics.append(
                        metric(kind, one.gap, rules=rules, slice={column: one.group, "class": name}, family=f"{kind} by {column}", n=n)
                    )
                    if kind == "recall_gap":
                        if min(n.values()) >= rules.min_n:
                            cells[one.group, name] = one.gap
                        else:
                            thin.append((column, one.group, name, one.inside.n, one.outside.n))
        worst = min(cells, key=lambda at: (cells[at].value or 0.0, at)) if cells else None
        if worst is None:
            gone = Estimate(None, rows.n, f"no group of {column} has {rules.min_n} samples of a class")
            metrics.append(metric("worst_class_recall_gap", gone, rules=rules, better="lower", slice={"attribute": column}))
            said.append(f"{column}: no group has {rules.min_n} samples of a class")
        else:
            picked = _turned(bonferroni(cells[worst], len(cells)))
            metrics.append(metric("worst_class_recall_gap", picked, rules=rules, better="lower", slice={"attribute": column}))
            said.append(f"{column}: {worst[0]} recognises the class {worst[1]} at {signed(cells[worst].value)} against the rest")
        exhibits.append(_class_grid(column, values, rows.classes, cells, rules))
    if thin:
        caveats.append(
            f"{len(thin)} cells hold fewer than {rules.min_n} samples of the class in the group or in the rest: listed, not judged."
        )
        exhibits.append(
            Table(
                id="thin-cells",
                title=f"Cells below {rules.min_n} samples",
                how_to_read="About these groups and classes nothing is said.",
                alt=f"{len(thin)} cells of group and class hold too few samples.",
                caption=f"Minimum n: {rules.min_n}, in the group and in the rest.",
                columns=(
                    Column(name="column"), Column(name="group"), Column(name="class"),
                    Column(name="n of the group", format="count"), Column(name="n of the rest", format="count"),
                ),
                rows=tuple(thin),
                grouped=True,
            )
        )  # fmt: skip
    if len(rows.classes) == 2:
        caveats.append("Two classes: the gap in the recall of the positive class is the true positive rate gap of TLA602.")
    return Measurement(
        summary=_sentence(said, "No cell to compare"), metrics=tuple(metrics), exhibits=tuple(exhibits), caveats=(*rows.caveats, *caveats),
        params={"reference": "the rest", "decision_rule": "argmax", "seed": seed},
    )  # fmt: skip


@check("TLA605", "Intersections", section="fairness", severity="high", needs=NEEDS)
def intersections(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Is a combination of attributes served worse than each attribute shows?

    How it is measured: every pair of group columns is crossed; each cell of at least the minimum n is compared with all other rows as in TLA602
    (Newcombe's interval, the limit corrected over the cells of the pair). Beside it the rate of each cell, drawn towards the common rate by how little the
    cell holds (beta-binomial empirical Bayes), for ranking only.

    Why it matters: a group can be served well along each attribute and badly where two of them meet.

    How to reduce the risk: collect samples of the named combination; where cells are too small to judge, say so to whoever relies on the model.
    """
    rules, seed = context.rules, context.seed
    rows = judged(evidence, "adapted", "target")
    positive = rows.positive(evidence)
    columns, caveats = _several(evidence, rows)
    if len(columns) < 2:
        raise NotEvaluated("two group columns of the target with two groups each: there is nothing to cross")
    metrics: list[Metric] = []
    exhibits: list[Exhibit] = []
    said: list[str] = []
    for pair in combinations(sorted(columns), 2):
        cross = " x ".join(pair)
        values, cells = _crossed(columns, pair)
        counts = {name: int((values == name).sum()) for name in cells}
        large = sorted(name for name, count in counts.items() if count >= rules.min_n)
        unknown = rows.n - sum(counts.values())
        if unknown:
            caveats.append(f"{cross}: {unknown} rows without a value of both columns belong to no cell.")
        small = len(counts) - len(large)
        metrics.append(exact("cells_below_minimum", small, n={"target": rows.n}, slice={"attribute": cross}))
        if small:
            caveats.append(f"{cross}: {small} of {len(counts)} cells hold fewer than {rules.min_n} rows and are not judged.")
        sums = [float(rows.correct[values == name].sum()) for name in large]
        shrunk = dict(zip(large, fairness.shrunk_rates(sums, [counts[name] for name in large]), strict=True)) if large else {}
        for name, (hit, base) in _outcomes(rows, positive).items():
            found = fairness.binary_gaps(values, hit, denominator=base, cluster=rows.cluster, seed=seed, empty=EMPTY[name])
            kept = [one for one in found if one.group in shrunk]
            for one in kept:
                metrics.append(
                    metric(
                        f"{name}_gap", one.gap, rules=rules, slice=cells[one.group], family=f"{name}_gap by {cross}",
                        n={"group": one.inside.n, "rest": one.outside.n},
                    )
                )  # fmt: skip
            if name == "accuracy" and kept:
                worst = min(kept, key=lambda one: (one.gap.value or 0.0, one.group))
                said.append(f"{cross}: accuracy of {worst.group} {signed(worst.gap.value)} against the rest")
                title = f"Accuracy of {worst.group}: {signed(worst.gap.value)} against the rest"
                exhibits.append(_gap_figure(f"accuracy-gap-{cross}", title, [(one.group, one.gap, one.inside.n) for one in kept], rules))
        for name, rate in shrunk.items():
            metrics.append(
                metric(
                    "shrunk_rate", Estimate(float(rate), counts[name], "for display and ranking: no interval belongs to it"), rules=rules,
                    slice=cells[name], better="higher",
                )
            )  # fmt: skip
        if not large:
            said.append(f"{cross}: no cell holds {rules.min_n} rows")
    return Measurement(
        summary=_sentence(said, "No cell to compare"), metrics=tuple(metrics), exhibits=tuple(exhibits), caveats=(*rows.caveats, *caveats),
        params={"reference": "the rest", "depth": 2, "positive": None if positive is None else rows.classes[positive], "seed": seed},
    )  # fmt: skip


@check("TLA606", "Inherited or introduced gap", section="fairness", severity="high", needs=(*NEEDS, "control:head"))
def inherited_or_introduced(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """How much of a gap came with the data, with the base model, with the adaptation?

    How it is measured: the accuracy gap of each group to the rest under the adapted model, split on the same rows into what changing the backbone added
    (adapted minus the head trained on frozen base features), what the base brought (that head minus the same network trained from a random start) and what
    is there without the base. The parts add up. Differences have intervals recovered from the paired intervals of both sides (over clusters: jackknife);
    p: group labels permuted, the difference divided by its standard error each time. A limit is held against the shortfall of a part: the smaller of what the
    part took from the group and of what the group lacks under the adapted model, so that an advantage undone is no harm.

    Why it matters: a gap of the base is mended by another base, one of the adaptation by other training data or a smaller change.

    How to reduce the risk: introduced: more or balanced adaptation data, fewer trainable layers. Inherited: another base. In the data: collect of the group.
    """
    rules, seed = context.rules, context.seed
    models = {"adapted": "adapted", "head": "control:head", "scratch": "control:scratch"}
    masks = {"adapted": _seen(evidence, "adapted"), "head": _seen(evidence, "control:head")}
    no_scratch = None if subject.model("control:scratch") is not None else missing_model(subject, "control:scratch")
    if no_scratch is None:
        try:
            masks["scratch"] = _seen(evidence, "control:scratch")
        except NotEvaluated as missing:
            no_scratch = str(missing)
    mask = np.logical_and.reduce(list(masks.values()))
    if not mask.any():
        raise NotEvaluated("labelled rows of the target on which the adapted model and its controls all gave finite outputs")
    ids = evidence.cluster("target")
    cluster = None if ids is None else np.asarray(ids)[mask]
    right = {word: np.asarray(evidence.correct(models[word], "target")[mask], dtype=np.bool_) for word in masks}
    columns = {c: v for c, v in groups_at(evidence, mask).items() if len(set(v)) > 1}
    if not columns:
        raise NotEvaluated(ONE_GROUP)
    caveats = [
        "Each control was trained once, with one seed: the noise of the seed is in the split.",
        "A control of much lower accuracy has smaller gaps for that reason alone: read the parts beside the accuracies.",
    ]
    if cluster is None:
        caveats.append("Rows are treated as independent: no cluster ids were given.")
    if no_scratch is not None:
        caveats.append(f"Two parts only, {no_scratch}: what came with the base and what came with the data cannot be told apart.")
    metrics: list[Metric] = []
    exhibits: list[Exhibit] = []
    said: list[str] = []
    for column, values in columns.items():
        sizes = {g.group: {"group": g.inside.n, "rest": g.outside.n} for g in fairness.binary_gaps(values, right["adapted"], seed=seed)}
        parts: dict[str, dict[str, Estimate]] = {
            "gap_adapted": {g.group: g.gap for g in fairness.binary_gaps(values, right["adapted"], cluster=cluster, seed=seed)},
            "gap_introduced": dict(fairness.gap_changes(values, right["adapted"], right["head"], cluster=cluster, seed=seed)),
        }
        if no_scratch is None:
            parts["gap_inherited"] = dict(fairness.gap_changes(values, right["head"], right["scratch"], cluster=cluster, seed=seed))
            parts["gap_data"] = {g.group: g.gap for g in fairness.binary_gaps(values, right["scratch"], cluster=cluster, seed=seed)}
        else:
            gone = Estimate(None, int(mask.sum()), no_scratch)
            parts["gap_inherited"] = dict.fromkeys(sizes, gone)
            parts["gap_data"] = dict.fromkeys(sizes, gone)
            parts["gap_of_head"] = {g.group: g.gap for g in fairness.binary_gaps(values, right["head"], cluster=cluster, seed=seed)}
        order = sorted(sizes, key=lambda g: (parts["gap_adapted"][g].value is None, parts["gap_adapted"][g].value or 0.0))
        bars: list[Bar] = []
        lines: list[tuple[Cell, ...]] = []
        parts["introduced_shortfall"] = {g: _shortfall(parts["gap_introduced"][g], parts["gap_adapted"][g]) for g in sizes}
        parts["inherited_shortfall"] = {g: _shortfall(parts["gap_inherited"][g], parts["gap_adapted"][g]) for g in sizes}
        for name, by_group in parts.items():
            metrics += [
                metric(
                    name, by_group[group], rules=rules, slice={column: group}, family=f"{name} by {column}", n=sizes[group],
                    better="lower" if name.endswith("shortfall") else None,
                )
                for group in order
            ]  # fmt: skip
        for group in order:
            inside = values == group
            lines.append((group, sizes[group]["group"], *(float(right[word][inside].mean()) for word in right)))
            for name in ("gap_introduced", *(("gap_inherited", "gap_data") if no_scratch is None else ("gap_of_head",))):
                part = parts[name][group]
                bars.append(
                    Bar(
                        label=group, series=PART_WORDS[name], value=part.value, interval=part.interval(rules.confidence),
                        n=sizes[group]["group"], note=part.reason,
                    )
                )  # fmt: skip
        known = [g for g in order if sizes[g]["group"] >= rules.min_n and parts["gap_adapted"][g].value is not None]
        if known:
            worst = known[0]
            split = ", ".join(
                f"{PART_WORDS[name]} {signed(parts[name][worst].value)}"
                for name in PART_WORDS
                if name in parts and parts[name][worst].value is not None
            )
            said.append(f"{column} = {worst}: {signed(parts['gap_adapted'][worst].value)} against the rest ({split})")
        exhibits.append(
            Bars(
                id=slug(f"gap-parts-{column}"),
                title=f"Where the accuracy gaps by {column} come from",
                how_to_read="The parts of a group add up to its gap under the adapted model. To the left: the group is served worse than the rest.",
                alt=_sentence(said[-1:] if known else [], "No group is large enough to be described"),
                caption=f"The same {int(mask.sum())} target rows under each model; {rules.confidence:.0%} intervals, not corrected.",
                value_label="part of the accuracy gap",
                bars=tuple(bars),
                signed=True,
                grouped=True,
            )
        )
        exhibits.append(
            Table(
                id=slug(f"accuracies-{column}"),
                title=f"Accuracy of the models by {column}",
                how_to_read="A control near chance level cannot show a gap.",
                alt=f"Accuracy of the adapted model and its controls for each group of {column}.",
                caption="The same target rows under each model.",
                columns=(Column(name=column), Column(name="n", format="count"), *(Column(name=word, format="share") for word in right)),
                rows=tuple(lines),
                grouped=True,
            )
        )
    return Measurement(
        summary=_sentence(said, "No group is large enough to be described"), metrics=tuple(metrics), exhibits=tuple(exhibits),
        caveats=tuple(caveats), params={"reference": "the rest", "decision_rule": "argmax", "seed": seed},
    )  # fmt: skip


@check("TLA607", "Churn by group", section="fairness", severity="medium", needs=(*NEEDS, "previous|base|control:head"))
def churn_by_group(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Who lost right decisions in the adaptation, or since the previous model?

    How it is measured: the share of a group's samples that the other model (previous, base or head control, each where it answers in the target's
    classes) had right and the adapted model has wrong, minus the same share of all other rows; and the reverse. Intervals and correction as in TLA602.

    Why it matters: a better average can be paid for by one group's right answers.

    How to reduce the risk: keep the old model's right answers in training (distillation), more data of the group, a smaller change.
    """
    rules, seed = context.rules, context.seed
    metrics: list[Metric] = []
    exhibits: list[Exhibit] = []
    caveats: list[str] = []
    said: list[str] = []
    compared = 0
    for key in ("previous", "base", "control:head"):
        if subject.model(key) is None:
            continue
        against = key.removeprefix("control:")
        try:
            mask = _seen(evidence, "adapted") & _seen(evidence, key)
        except NotEvaluated as missing:
            caveats.append(f"Not compared with the {against} model: {missing}.")
            continue
        columns = {c: v for c, v in groups_at(evidence, mask).items() if len(set(v)) > 1}
        if not columns and mask.any():
            raise NotEvaluated(ONE_GROUP)
        if not columns:
            caveats.append(f"Not compared with the {against} model: no labelled row has finite outputs of both.")
            continue
        compared += 1
        ids = evidence.cluster("target")
        cluster = None if ids is None else np.asarray(ids)[mask]
        ours, theirs = evidence.correct("adapted", "target")[mask], evidence.correct(key, "target")[mask]
        for column, values in columns.items():
            for name, flipped in (("negative_flip_rate_gap", theirs & ~ours), ("positive_flip_rate_gap", ours & ~theirs)):
                found = fairness.binary_gaps(values, flipped, cluster=cluster, seed=seed)
                for one in found:
                    metrics.append(
                        metric(
                            name, one.gap, rules=rules, better="lower" if name.startswith("negative") else None,
                            slice={column: one.group, "against": against}, family=f"{name} by {column} against {against}",
                            n={"group": one.inside.n, "rest": one.outside.n},
                        )
                    )  # fmt: skip
                large = [one for one in found if one.gap.value is not None and one.inside.n >= rules.min_n]
                if name.startswith("negative") and large:
                    worst = max(large, key=lambda one: (one.gap.value or 0.0, one.group))
                    text = f"{column} = {worst.group} lost right answers of the {against} model {signed(worst.gap.value)} against the rest"
                    said.append(text)
                    dots = [(one.group, one.gap, one.inside.n) for one in found]
                    title = text[0].upper() + text[1:]
                    exhibits.append(_gap_figure(f"lost-{column}-{against}", title, dots, rules, what="rate of lost right answers"))
    if not compared:
        raise NotEvaluated(" ".join(caveats) or "a previous model, base or head control that answers in the target's classes")
    if evidence.cluster("target") is None:
        caveats.append("Rows are treated as independent: no cluster ids were given.")
    return Measurement(
        summary=_sentence(said, "No group is large enough to be compared"), metrics=tuple(metrics), exhibits=tuple(exhibits),
        caveats=tuple(caveats), params={"reference": "the rest", "decision_rule": "argmax", "seed": seed},
    )  # fmt: skip


@check("TLA610", "Calibration by group", section="fairness", severity="medium", needs=NEEDS)
def calibration_by_group(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Does a confidence mean the same in each group?

    How it is measured: confidence in the answer minus whether it was right, averaged over a group, minus the same of all other rows (Welch's t, over
    clusters where they are known, corrected over groups); the negative log-likelihood compared alike; the debiased calibration error of each group with at
    least 300 rows.

    Why it matters: whoever acts on a confidence of 0.9 acts wrongly more often in a group where it is worth 0.7.

    How to reduce the risk: more data of the group; a temperature fitted on validation data that holds the group; thresholds checked by group.
    """
    rules, seed = context.rules, context.seed
    rows = judged(evidence, "adapted", "target")
    columns, caveats = _several(evidence, rows)
    confidence, right = calibration.top_label(rows.probabilities, rows.truth)
    losses = calibration.nll_rows(rows.probabilities, rows.truth)
    metrics: list[Metric] = []
    exhibits: list[Exhibit] = []
    said: list[str] = []
    for column, values in columns.items():
        gaps = fairness.mean_gaps(values, confidence - right, cluster=rows.cluster)
        for name, found in (("overconfidence_gap", gaps), ("nll_gap", fairness.mean_gaps(values, losses, cluster=rows.cluster))):
            for one in found:
                metrics.append(
                    metric(
                        name, one.gap, rules=rules, slice={column: one.group}, family=f"{name} by {column}",
                        unit="nats" if name == "nll_gap" else None, n={"group": one.n_group, "rest": one.n_rest},
                    )
                )  # fmt: skip
        for one in gaps:
            inside = values == one.group
            if one.n_group < CALIBRATION_SHOWN:
                error = Estimate(None, one.n_group, f"fewer than {CALIBRATION_SHOWN} rows: no calibration error can be told from 0")
            else:
                units = None if rows.cluster is None else rows.cluster[inside]
                error = calibration.ece_debiased(calibration.ece2_debiased(confidence[inside], right[inside], cluster=units, seed=seed))
            metrics.append(
                metric(
                    "ece_debiased", error, rules=rules, better="lower", slice={column: one.group}, family=f"ece_debiased by {column}",
                    n={"group": one.n_group}, min_n=CALIBRATION_JUDGED,
                )
            )  # fmt: skip
        large = [one for one in gaps if one.gap.value is not None and one.n_group >= rules.min_n]
        if large:
            worst = max(large, key=lambda one: (abs(one.gap.value or 0.0), one.group))
            text = f"{column} = {worst.group}: confidence minus accuracy {signed(worst.gap.value)} against the rest"
            said.append(text)
            exhibits.append(
                _gap_figure(
                    f"overconfidence-gap-{column}", text, [(one.group, one.gap, one.n_group) for one in gaps], rules, what="overconfidence"
                )
            )
    return Measurement(
        summary=_sentence(said, "No group is large enough to be compared"), metrics=tuple(metrics), exhibits=tuple(exhibits),
        caveats=(*rows.caveats, *caveats), params={"reference": "the rest", "decision_rule": "argmax", "seed": seed},
    )  # fmt: skip


# ---------------------------------------------------------------- inside

CALIBRATION_SHOWN, CALIBRATION_JUDGED = 300, 1000
EMPTY = {"accuracy": "no rows", "selection_rate": "no rows", "tpr": "no positive rows", "fpr": "no negative rows"}
PART_WORDS = {
    "gap_introduced": "introduced by the adaptation",
    "gap_inherited": "inherited from the base",
    "gap_data": "there without the base",
    "gap_of_head": "there before the backbone changed",
}


def _several(evidence: Evidence, rows: Judged) -> tuple[Groups, list[str]]:
    """Group columns with at least two values among the judged rows, and a caveat that names the others."""
    every = groups_of(evidence, rows)
    columns = {column: values for column, values in every.items() if len(set(values)) > 1}
    if not columns:
        raise NotEvaluated(ONE_GROUP)
    single = sorted(set(every) - set(columns))
    return columns, [f"Columns with one group only are left out: {', '.join(single)}."] if single else []


def _outcomes(rows: Judged, positive: int | None) -> dict[str, tuple[BoolArray, BoolArray | None]]:
    """What counts as a hit, and among which rows (None: all), for each rate that is compared between groups."""
    if positive is None:
        return {"accuracy": (rows.correct, None)}
    selected, is_positive = rows.predicted == positive, rows.truth == positive
    every: dict[str, tuple[BoolArray, BoolArray | None]] = {
        "accuracy": (rows.correct, None), "tpr": (selected, is_positive), "fpr": (selected, ~is_positive), "selection_rate": (selected, None),
    }  # fmt: skip
    return {name: every[name] for name in GAPS}


def _seen(evidence: Evidence, model: str) -> BoolArray:
    """Target rows with finite outputs of this model and a label among its classes."""
    return np.asarray(evidence.usable(model, "target") & (evidence.truth(model, "target") >= 0), dtype=np.bool_)


def _crossed(columns: Groups, pair: tuple[str, str]) -> tuple[NDArray[Any], dict[str, dict[str, str]]]:
    """Cell of each row (None where a value is missing), and the slice of each cell."""
    cells: dict[str, dict[str, str]] = {}
    values = np.full(len(columns[pair[0]]), None, dtype=object)
    for at, (a, b) in enumerate(zip(columns[pair[0]], columns[pair[1]], strict=True)):
        if fairness.MISSING not in (a, b):
            name = f"{a} and {b}"
            cells.setdefault(name, {pair[0]: str(a), pair[1]: str(b)})
            values[at] = name
    return values, cells


def _turned(estimate: Estimate) -> Estimate:
    """Rest minus group: how far the group falls short."""
    value = None if estimate.value is None else -estimate.value
    return replace(estimate, value=value, ladder=tuple((alpha, -high, -low) for alpha, low, high in estimate.ladder))


def _shortfall(part: Estimate, adapted: Estimate) -> Estimate:
    """The smaller of two shortfalls against the rest (below 0: none): what this part took, and what is left of it in the adapted model.

    A part that only undid an advantage, or that another part made good, harms nobody. Intervals of the smaller of two: both lower ends
    bound it at the level of each; one of the two upper ends does, so these are taken at half the error rate.
    """
    if part.value is None or adapted.value is None:
        return replace(part, value=None, reason=part.reason or adapted.reason, ladder=(), null=None, p_value=None)
    first, second = _turned(part), _turned(adapted)
    ladder = []
    for alpha in LADDER_ALPHAS:
        lows = [interval_at(one.ladder, alpha) for one in (first, second)]
        highs = [interval_at(one.ladder, alpha / 2) for one in (first, second)]
        if all(lows) and all(highs):
            ladder.append((alpha, min(i[0] for i in lows if i), min(i[1] for i in highs if i)))
    value = min(-part.value, -adapted.value)
    reason = None if ladder else part.reason or adapted.reason or "no interval for one of the two parts"
    return replace(part, value=value, ladder=tuple(ladder), reason=reason, null=0.0, p_value=None, details={"method": "smaller of two"})


def _class_grid(
    column: str, values: NDArray[Any], classes: tuple[str, ...], cells: dict[tuple[str, str], Estimate], rules: Rules
) -> Heatmap:
    """Recall gaps by group and class; a star where even the interval that allows for the number of cells excludes 0."""
    level = 1.0 - (1.0 - rules.confidence) / max(1, len(cells))
    sizes = {str(name): int((values == name).sum()) for name in set(values)}
    groups = sorted(sizes, key=lambda name: (-sizes[name], name))[:MOST_GROUPS_IN_GRID]
    low = {c: min([e.value or 0.0 for (_, name), e in cells.items() if name == c], default=0.0) for c in classes}
    shown = sorted(sorted(classes, key=lambda c: (low[c], c))[:MOST_CLASSES_IN_GRID], key=classes.index)
    numbers, texts, stars = [], [], []
    for group in groups:
        found = [cells.get((group, c)) for c in shown]
        numbers.append(tuple(None if e is None else e.value for e in found))
        texts.append(tuple(f"n < {rules.min_n}" if e is None else signed(e.value) for e in found))
        stars.append(tuple(e is not None and _excludes_zero(e.interval(level)) for e in found))
    return Heatmap(
        id=slug(f"recall-gap-{column}"),
        title=f"Recall of each class by {column}, against the rest",
        how_to_read="Below 0: samples of this class are recognised less often in this group. A star: no gap is excluded even after correction for all cells.",
        alt=_grid_alt(cells),
        caption=f"{len(cells)} cells with at least {rules.min_n} samples; interval for a star: {level:.3%}."
        + ("" if len(shown) == len(classes) else f" The {len(shown)} classes with the lowest gaps of {len(classes)}."),
        row_label=column,
        column_label="class",
        rows=tuple(groups),
        columns=tuple(shown),
        values=tuple(numbers),
        text=tuple(texts),
        stars=tuple(stars),
        value_label="recall gap",
        signed=True,
        value_range=(-1.0, 1.0),
        grouped=True,
    )


def _grid_alt(cells: dict[tuple[str, str], Estimate]) -> str:
    lowest = sorted(cells, key=lambda at: (cells[at].value or 0.0, at))[:3]
    return (
        "; ".join(f"{group}, class {name}: {signed(cells[group, name].value)}" for group, name in lowest) + "."
        if lowest
        else "No cell is large enough."
    )


def _excludes_zero(interval: tuple[float, float] | None) -> bool:
    return interval is not None and (interval[0] > 0 or interval[1] < 0)


def _gap_figure(name: str, title: str, gaps: list[tuple[str, Estimate, int]], rules: Rules, what: str = "accuracy") -> Intervals:
    """Gaps to the rest as dots with intervals, largest group first."""
    dots = sorted(
        (
            Dot(label=group, value=gap.value, interval=gap.interval(rules.confidence), n=n, hollow=n < rules.min_n, note=gap.reason)
            for group, gap, n in gaps
        ),
        key=lambda d: (-(d.n or 0), d.label),
    )
    return Intervals(
        id=slug(name),
        title=title,
        how_to_read="Each group's number minus that of all other rows. Hollow: below the minimum n, not judged.",
        alt="; ".join(f"{d.label} {signed(d.value)}" for d in dots if d.value is not None)[:600] + ".",
        caption=f"Adapted model on the target; {rules.confidence:.0%} intervals, not corrected.",
        value_label=f"difference of {what}",
        dots=tuple(dots),
        references=(Reference(value=0.0, label="no gap", role="null"),),
        grouped=True,
    )


def _sentence(parts: list[str], otherwise: str) -> str:
    text = "; ".join(parts) or otherwise
    return text[0].upper() + text[1:] + "."


GROUP_GAPS: tuple[Check, ...] = (
    largest_difference,
    gaps_by_class,
    intersections,
    inherited_or_introduced,
    churn_by_group,
    calibration_by_group,
)
