"""The table of methods: how each map of the report was made."""

from __future__ import annotations

from collections.abc import Sequence

from tl_audit.attribution import Attribution, explainer
from tl_audit.checks.wording import counted
from tl_audit.errors import ModelError, NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.records.exhibits import Cell, Column, Table


def methods_table(evidence: Evidence, methods: Sequence[str]) -> Table:
    """One row per method: what its values are, layer and why, what stands for removed parts, samples, cost, seed."""
    rows: list[tuple[Cell, ...]] = []
    spent = 0
    for method in methods:
        try:
            a = evidence.attributions("adapted", "target", method)
        except (NotEvaluated, ModelError) as error:
            rows.append((method, f"not computed: {error}", "", "", 0, None, None))
            continue
        spent += a.budget * len(a)
        layer = "" if a.layer is None else f"{a.layer}: {a.layer_reason}"
        rows.append((method, _values(a), layer, _fill(a), len(a), a.budget, a.seed))
    return Table(
        id="methods",
        title=f"How the maps were made: {counted(len(rows), 'method')}, {spent:,} model evaluations",
        how_to_read="A backward pass counts as one more evaluation; evaluations that several methods share are counted with each.",
        alt="Table of attribution methods with layer, fill, samples and cost.",
        caption="Target samples by hash priority, stratified by class and group; the predicted class is explained.",
        columns=(
            Column(name="method"), Column(name="values"), Column(name="layer"), Column(name="removed parts show"),
            Column(name="samples", format="count"), Column(name="evaluations per sample", format="count"), Column(name="seed", format="count"),
        ),
        rows=tuple(rows),
    )  # fmt: skip


def _values(a: Attribution) -> str:
    chosen = explainer(a.method)
    unit = a.params.get("output")
    return ", ".join(
        [
            "signed" if a.signed else "0 or more",
            *([f"of the {unit}"] if unit else []),
            *(["adds up to the explained change"] if chosen.complete else []),
            *(["by sampling"] if chosen.stochastic else []),
        ]
    )


def _fill(a: Attribution) -> str:
    return str(a.params.get("reference", a.params.get("baseline", "")) or "")
