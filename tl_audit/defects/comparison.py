"""Two audits side by side, for rows whose defect must leave numbers as they are."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from tl_audit.defects.base import Audits
from tl_audit.records.findings import Finding


def otherwise(audits: Audits, *, spared: Collection[str] = ()) -> Iterator[str]:
    """A sentence for every check whose numbers differ from those of the audit without the defect. ``spared``: codes that may."""
    for code, before in audits.before.items():
        now = audits.found[code]
        if code in spared or (before.measurement is None and now.measurement is None):
            continue
        first, second = numbers(before), numbers(now)
        changed = [key for key in {**first, **second} if first.get(key) != second.get(key)]
        if changed:
            name, where = changed[0]
            yield (
                f"{code} measures otherwise than without the defect: {name} ({', '.join(f'{k} = {v}' for k, v in where) or 'all'}) is "
                f"{second.get(changed[0])} instead of {first.get(changed[0])}; {len(changed)} of {len(first)} numbers differ"
            )


Key = tuple[str, tuple[tuple[str, str], ...]]


def numbers(finding: Finding) -> dict[Key, tuple[Any, ...]]:  # Any: numbers, intervals and counts by name
    """Value, interval, p and counts of each metric of a finding; of the first where two have one name and slice."""
    out: dict[Key, tuple[Any, ...]] = {}
    for one in () if finding.measurement is None else finding.measurement.metrics:
        key = (one.name, tuple(sorted(one.slice.items())))
        out.setdefault(key, (one.value, one.interval, one.p_value, tuple(sorted(one.n.items()))))
    return out
