"""Leakage between the two sides of a split that single samples do not show: units (patients, sites, documents) on both sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tl_audit.checks.base import Check, Context, check, exact
from tl_audit.checks.data import short_id
from tl_audit.checks.wording import percent
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.records.exhibits import Cell, Column, Table
from tl_audit.records.metrics import Measurement
from tl_audit.subject import Subject

MOST_LISTED = 20
SIDES = ("train", "validation")

# TLA203 ----------------------------------------------------------------------------------------------------------------------


@check("TLA203", "Cluster leakage", section="data", severity="critical", needs=("target.cluster",), multiplicity="none", values="same")
def cluster_leakage(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Does one patient, site or document sit on both sides of the split?

    How it is measured: the cluster ids of the target are looked up among those of the training and validation data (or among those that
    the run directory keeps of them), as text and without blanks around it. Rows without an id are clusters of their own and match nothing.

    Why it matters: samples of one unit resemble each other; a model that saw a patient in training is tested on memory of that patient, and
    what it does with a new one stays unknown.

    How to reduce the risk: split by unit, never by row, and leave every unit of the target out of training and validation.
    """
    ours = _named(evidence.cluster("target"))
    if ours is None:
        raise NotEvaluated("cluster ids of the target domain: cluster = ... in [target]")
    known = {role: names for role in SIDES if (names := _known(subject, evidence, role)) is not None}
    if not known:
        raise NotEvaluated(
            "cluster ids of the training or validation data: cluster = ... in [train] or in [data] of the plan, or the run directory that kept them"
        )
    held = [name for name in ours if name is not None]
    n = len(ours)
    theirs = {role: _counts(names) for role, names in known.items()}
    mine = _counts(ours)
    shared = sorted(name for name in mine if any(name in counts for counts in theirs.values()))
    inside = sum(mine[name] for name in shared)
    size = {"target": n}
    metrics = (
        exact("clusters_shared", len(shared), n=size, better="lower", null=0.0),
        exact(
            "rows_in_shared_clusters_share",
            inside / n if n else None,
            n=size,
            better="lower",
            null=0.0,
            reason=None if n else "no target rows",
        ),
        exact("clusters_compared", len(mine), n=size),
    )
    where = " and ".join(role for role in SIDES if role in known)
    summary = f"{len(shared)} of {len(mine)} clusters of the target are also in the {where} data; they hold {inside} of {n} target rows"
    summary += f" ({percent(inside / n)})." if n else "."
    caveats = []
    if n > len(held):
        caveats.append(f"{n - len(held)} target rows have no cluster id: each counts as a unit of its own and was not looked up.")
    for role, names in known.items():
        without = sum(name is None for name in names)
        if without:
            caveats.append(
                f"{without} of {len(names)} rows of the {role} data have no cluster id: a shared unit among them would not be found."
            )
    for role in SIDES:
        if role not in known and evidence.has(None, role):
            caveats.append(f"The {role} data have no cluster ids and were not compared.")
    if shared and all(name.isdigit() for name in shared):
        caveats.append(
            "The shared ids are whole numbers: if each side numbers its units on its own, equal numbers are not the same unit. Give ids that are unique over both."
        )
    rows: list[tuple[Cell, ...]] = []
    for name in sorted(shared, key=lambda name: (-mine[name], name))[:MOST_LISTED]:
        sides = [role for role in SIDES if name in theirs.get(role, {})]
        rows.append((short_id("cluster", name), ", ".join(sides), mine[name], sum(theirs[role][name] for role in sides)))
    exhibits: tuple[Table, ...] = ()
    if rows:
        exhibits = (
            Table(
                id="shared-clusters",
                title=f"{len(shared)} clusters are on both sides of the split",
                how_to_read="One row per shared cluster, the largest in the target first; ids are hashes of the cluster's name.",
                alt=f"The first {len(rows)} of {len(shared)} shared clusters with their rows on both sides.",
                caption=f"{len(rows)} of {len(shared)} shown; {len(mine)} clusters in {n} target rows.",
                columns=(
                    Column(name="cluster"),
                    Column(name="also in"),
                    Column(name="target rows", format="count"),
                    Column(name="rows there", format="count"),
                ),
                rows=tuple(rows),
                grouped=True,
            ),
        )
    return Measurement(summary=summary, metrics=metrics, exhibits=exhibits, caveats=tuple(caveats), params={"compared_with": where})


def _named(cluster: NDArray[np.object_] | None) -> list[str | None] | None:
    """Ids as text without blanks around it, None where a row has none; None where the domain has no ids at all."""
    if cluster is None:
        return None
    names = [None if value is None or value != value else str(value).strip() for value in cluster.tolist()]
    return [name or None for name in names]


def _known(subject: Subject, evidence: Evidence, role: str) -> list[str | None] | None:
    """Ids of one side: of the data where they are given, else those that the run directory kept; None where neither holds one."""
    if evidence.has(None, role):
        names = _named(evidence.cluster(role))
        if names is not None and any(name is not None for name in names):
            return names
    listed = None if subject.run_dir is None else Path(subject.run_dir) / "samples.parquet"
    if listed is None or not listed.is_file():
        return None
    import pyarrow.parquet as pq

    table = pq.read_table(listed)
    if not {"split", "cluster"} <= set(table.column_names):
        return None
    rows = zip(table.column("split").to_pylist(), table.column("cluster").to_pylist(), strict=True)
    names = _named(np.array([value for split, value in rows if split == role], dtype=object))
    return names if names and any(name is not None for name in names) else None


def _counts(names: list[str | None]) -> dict[str, int]:
    out: dict[str, int] = {}
    for name in names:
        if name is not None:
            out[name] = out.get(name, 0) + 1
    return out


LEAKAGE: tuple[Check, ...] = (cluster_leakage,)
