"""What may not leave: small cells of group tables, and names of people, machines and places in texts.

Suppression happens when the record is built, so that report.json and every export hold nothing that the page hides.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Mapping, Set
from functools import cache
from pathlib import Path
from typing import Any

from tl_audit.records.exhibits import Bars, Cell, Exhibit, Intervals, Table
from tl_audit.records.findings import Finding, LimitOutcome
from tl_audit.records.metrics import Metric

WITHHELD = "suppressed"


def small(below: int) -> str:
    """What is printed for a count below the minimum: "< 10"."""
    return f"< {below}"


def suppress(finding: Finding, *, below: int, group_columns: Set[str]) -> Finding:
    """The finding without counts below ``below`` and without what was computed from them, wherever it is crossed with groups.

    Exhibits marked ``grouped`` and metrics sliced by a group column are treated; everything else stays whole.
    """
    measurement = finding.measurement
    if measurement is None or below <= 0:
        return finding
    metrics = tuple(_metric(m, below) if _is_small(m, below, group_columns) else m for m in measurement.metrics)
    hidden = {(m.name, tuple(sorted(m.slice.items()))) for m in measurement.metrics if _is_small(m, below, group_columns)}
    exhibits = tuple(_exhibit(e, below) if e.grouped else e for e in measurement.exhibits)
    limits = tuple(_limit(o, below) if (o.metric, tuple(sorted(o.slice.items()))) in hidden else o for o in finding.limits)
    return finding.model_copy(
        update={"measurement": measurement.model_copy(update={"metrics": metrics, "exhibits": exhibits}), "limits": limits}
    )


def suppressed_counts(counts: Mapping[str, int], below: int) -> dict[str, int | str]:
    """Group counts with those below the minimum as "< 10"."""
    return {name: n if n >= below else small(below) for name, n in counts.items()}


def _is_small(metric: Metric, below: int, group_columns: Set[str]) -> bool:
    return bool(set(metric.slice) & group_columns) and any(n < below for n in metric.n.values())


def _metric(metric: Metric, below: int) -> Metric:
    gone = dict.fromkeys(("value", "interval", "confidence", "null", "p_value", "p_adjusted", "clusters", "events", "nonevents"))
    return metric.model_copy(update={**gone, "reason": f"{WITHHELD}: n {small(below)}", "n": {}})


def _limit(outcome: LimitOutcome, below: int) -> LimitOutcome:
    gone = dict.fromkeys(("interval_used", "confidence_used", "p_limit", "p_limit_adjusted", "missing_n", "detectable"))
    return outcome.model_copy(update={**gone, "note": f"{WITHHELD}: n {small(below)}"})


def _exhibit(exhibit: Exhibit, below: int) -> Exhibit:
    if isinstance(exhibit, Table):
        return exhibit.model_copy(update={"rows": tuple(_row(exhibit, row, below) for row in exhibit.rows)})
    if isinstance(exhibit, Bars):
        bars = tuple(
            b.model_copy(update={"value": None, "interval": None, "null": None, "n": None, "note": f"{WITHHELD}: n {small(below)}"})
            if b.n is not None and b.n < below
            else b
            for b in exhibit.bars
        )
        return exhibit.model_copy(update={"bars": bars})
    if isinstance(exhibit, Intervals):
        hidden = {d.label for d in exhibit.dots if d.n is not None and d.n < below}
        gone = {"value": None, "interval": None, "n": None, "null": None, "suppressed": True, "note": f"{WITHHELD}: n {small(below)}"}
        dots = tuple(d.model_copy(update=gone) if d.label in hidden else d for d in exhibit.dots)
        changes = tuple(c.model_copy(update={"value": None, "interval": None}) if c.label in hidden else c for c in exhibit.changes)
        return exhibit.model_copy(update={"dots": dots, "changes": changes, "alt": _without(exhibit.alt, hidden, below)})
    return exhibit


def _row(table: Table, row: tuple[Cell, ...], below: int) -> tuple[Cell, ...]:
    counts = [i for i, c in enumerate(table.columns) if c.format == "count"]
    few = [i for i in counts if isinstance(row[i], int | float) and not isinstance(row[i], bool) and row[i] < below]  # type: ignore[operator]
    if not few:
        return row
    # what stands before the first count names the row; everything after it may have been computed from the count
    return tuple(small(below) if i in few else cell if i < counts[0] or cell is None else WITHHELD for i, cell in enumerate(row))


def _without(text: str, labels: Set[str], below: int) -> str:
    """A text alternative without the sentences that speak of a hidden label."""
    if not any(label in text for label in labels):
        return text
    kept = [part for part in re.split(r"(?<=[.;])\s+", text) if not any(label in part for label in labels)]
    return " ".join([*kept, f"Groups with n {small(below)} are not shown."])


# Texts ---------------------------------------------------------------------------------------------------------------------

_TOKENS = (
    re.compile(r"\b(hf_|ghp_|gho_|github_pat_|sk-|xox[abp]-|AKIA)[A-Za-z0-9_-]{8,}"),
    re.compile(r"(?i)\b(bearer|token|api[_-]?key|apikey|password|passwd|secret)(\s*[=:]\s*|\s+)(\"[^\"]*\"|'[^']*'|[^\s,;]{4,})"),
)


def redact(text: str) -> str:
    """A text without home folder, user name, host name and what looks like a token."""
    for pattern, put in _names():
        text = pattern.sub(put, text)
    text = _TOKENS[0].sub("<token>", text)
    return _TOKENS[1].sub(lambda m: f"{m[1]}{m[2]}<redacted>", text)


def redact_all(data: Any) -> Any:  # Any: plain JSON values
    """Plain data with every text in it redacted, keys too."""
    if isinstance(data, str):
        return redact(data)
    if isinstance(data, Mapping):
        return {redact(str(k)): redact_all(v) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [redact_all(v) for v in data]
    if isinstance(data, Path):
        return redact(str(data))
    return data


@cache
def _names() -> tuple[tuple[re.Pattern[str], str], ...]:
    out: list[tuple[re.Pattern[str], str]] = []
    home = os.path.expanduser("~")
    if len(home) > 1:
        out.append((re.compile(re.escape(home) + r"(?![\w.-])"), "~"))
    out.append((re.compile(r"(?<![\w.])/(home|Users)/[^/\s:'\"]+"), "~"))
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # no such user in this container
        user = ""
    if len(user) > 2 and user != "root":
        out.append((re.compile(rf"(?<!\w){re.escape(user)}(?!\w)"), "<user>"))
    host = socket.gethostname()
    if len(host) > 3 and host != "localhost":
        out.append((re.compile(rf"(?<!\w){re.escape(host)}(?!\w)"), "<host>"))
    return tuple(out)
