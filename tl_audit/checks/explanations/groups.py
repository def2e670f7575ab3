"""TLA710: are explanations less faithful for some group?"""

from __future__ import annotations

from tl_audit.checks.base import Context, check, exact, metric
from tl_audit.checks.explanations.faithfulness import curves_of
from tl_audit.checks.explanations.gate import GATE_CODES, usable_methods
from tl_audit.checks.explanations.shared import blank_metrics, cluster_of, maps_of, rows_of, unavailable
from tl_audit.checks.wording import signed
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures.intervals import mean_difference, rate_difference
from tl_audit.records.exhibits import Dot, Exhibit, Intervals, Reference
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject


@check(
    "TLA710",
    "Explanation quality by group",
    section="explanations",
    severity="medium",
    needs=("adapted", "target", "adapted@target", "target.groups"),
    phase=2,
    runs_models=True,
    after=GATE_CODES,
)
def quality_by_group(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Are explanations less faithful for some group?

    How it is measured: the faithfulness of each map (ROAD combined, as in TLA702) is averaged over the explained samples of a group and compared with that of all others, and so is the
    share of maps without signal. A group needs 30 explained samples. Interval: Welch's t, over clusters where there are any.

    Why it matters: people of a group whose explanations are worse are told less about the decisions that concern them.

    How to reduce the risk: explain more samples of the group, raise the budget, use a method that does not differ; where the model itself is worse for the group, see TLA602.
    """
    usable, left_out = usable_methods(context.findings, evidence.methods)
    maps = maps_of(evidence, methods=usable)
    curves = curves_of(subject, evidence, context, maps_of(evidence))
    columns = evidence.groups("target")
    metrics: list[Metric] = []
    dots: list[Dot] = []
    said: list[tuple[float, str]] = []
    small: set[str] = set()
    for method, a in maps.found.items():
        rows = rows_of(evidence, a.inputs.ids)
        cluster = cluster_of(evidence, a.inputs.ids)
        road = curves[method][0].road_combined
        for column, values in columns.items():
            mine = values[rows]
            if len(set(mine)) < 2:
                continue  # nobody to compare with
            for value in sorted(set(mine)):
                inside = mine == value
                where = {"method": method, column: str(value)}
                n = {"group": int((inside & ~a.blank).sum()), "rest": int((~inside & ~a.blank).sum())}
                if min(int(inside.sum()), int((~inside).sum())) < context.rules.min_n:
                    small.add(f"{column} = {value}")
                    metrics.append(
                        exact(
                            "faithfulness_gap", None, n=n, slice=where, null=0.0,
                            reason=f"{n['group']} maps of the group and {n['rest']} of the rest: {context.rules.min_n} of each are needed",
                        )
                    )  # fmt: skip
                    continue
                sides = [inside & ~a.blank, ~inside & ~a.blank]
                ids = [None if cluster is None else cluster[s] for s in sides]
                gap = mean_difference(road[sides[0]], road[sides[1]], cluster_first=ids[0], cluster_second=ids[1])
                metrics.append(metric("faithfulness_gap", gap, rules=context.rules, slice=where, n=n))
                every = [None if cluster is None else cluster[s] for s in (inside, ~inside)]
                blank = rate_difference(
                    a.blank[inside], a.blank[~inside], cluster_first=every[0], cluster_second=every[1], seed=context.seed
                )
                metrics.append(
                    metric(
                        "blank_map_gap",
                        blank,
                        rules=context.rules,
                        slice=where,
                        n={"group": int(inside.sum()), "rest": int((~inside).sum())},
                    )
                )
                if gap.value is not None:
                    said.append((gap.value, f"{method}, {column} = {value} {signed(gap.value)}"))
                dots.append(
                    Dot(
                        label=f"{column} = {value}", series=method, value=gap.value, n=n["group"],
                        interval=None if gap.value is None else gap.interval(context.rules.confidence),
                        note=gap.reason if gap.value is None else None,
                    )
                )  # fmt: skip
    if not dots and not small:
        raise NotEvaluated("groups among the explained samples: every sample is in one group")
    metrics += blank_metrics(maps)
    metrics += unavailable(("faithfulness_gap",), maps.missing)
    exhibits: list[Exhibit] = []
    if dots:
        exhibits.append(
            Intervals(
                id="faithfulness-by-group",
                title="Faithfulness of the maps of each group, minus that of the rest",
                how_to_read="0: the maps of the group are as faithful as those of all others. To the left: less faithful.",
                alt="Differences in faithfulness between each group and the rest, per method, with intervals.",
                caption=f"Explained target samples; ROAD combined; groups with at least {context.rules.min_n} maps; seed {context.seed}.",
                value_label="difference in ROAD combined",
                dots=tuple(dots),
                references=(Reference(value=0.0, label="no difference"),),
            )
        )
    worst = [text for _, text in sorted(said)[:3]]
    return Measurement(
        summary=f"Faithfulness of a group's maps minus that of the rest: {'; '.join(worst) if worst else 'no group has enough explained samples'}.",
        metrics=tuple(metrics),
        exhibits=tuple(exhibits),
        caveats=(
            *(f"{m} is left out: {why}" for m, why in left_out.items()),
            *((f"too few explained samples to compare: {', '.join(sorted(small))}; raise [attribution] samples",) if small else ()),
        ),
        params={"seed": context.seed, "samples": len(maps.first), "score": "road_combined"},
    )
