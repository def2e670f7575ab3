"""The results as a file and as one Markdown table."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.calibration.simulation import Promise, Result, Simulation, band

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
PAGE = HERE / "results.md"
DOCS = HERE.parents[1] / "docs" / "calibration.md"
PACKAGES = ("tl-audit", "numpy", "scipy", "scikit-learn")
HEAD = ("what", "measure", "design", "n", "runs", "rejects", "band", "covers", "band", "mean width", "verdict")


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def load(path: Path = RESULTS) -> tuple[dict[str, Any], list[Result]]:
    """(head of the file, results); nothing where there is no file yet."""
    if not path.exists():
        return {}, []
    stored = json.loads(path.read_text(encoding="utf-8"))
    return {key: stored[key] for key in ("made", "versions")}, [Result(**row) for row in stored["rows"]]


def merged(old: Iterable[Result], new: Iterable[Result], simulations: Sequence[Simulation]) -> list[Result]:
    """The new results in place of the old ones of the same simulations, in the order of these; rows that they no longer have are dropped.

    What is known of a row is taken from the registry, so that saying why a row errs needs no new run.
    """
    fresh = list(new)
    replaced = {one.simulation for one in fresh}
    together = [one for one in old if one.simulation not in replaced] + fresh
    found = {(one.simulation, one.part): one for one in together}
    return [
        replace(found[simulation.name, row.part], known=row.known, because=row.because)
        for simulation in simulations
        for row in simulation.rows
        if (simulation.name, row.part) in found
    ]


def save(results: list[Result], json_path: Path = RESULTS, page: Path = PAGE) -> None:
    head = {"made": datetime.now(UTC).date().isoformat(), "versions": versions()}
    rows = ",\n".join(json.dumps(asdict(one), ensure_ascii=False) for one in results)
    json_path.write_text(
        f'{{"made": {json.dumps(head["made"])},\n"versions": {json.dumps(head["versions"])},\n"rows": [\n{rows}\n]}}\n', encoding="utf-8"
    )
    page.write_text(page_of(head, results), encoding="utf-8")
    if page == PAGE:
        DOCS.write_text(within(DOCS.read_text(encoding="utf-8"), "results", shown(head, results)), encoding="utf-8")


def within(page: str, name: str, text: str) -> str:
    """The page with ``text`` between its two comments of this name."""
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = page.partition(first)
    _, found, after = rest.partition(last)
    if not found:
        raise SystemExit(f"docs/calibration.md has no {first} ... {last}")
    return f"{before}{first}\n{text}\n{last}{after}"


def page_of(head: dict[str, Any], results: list[Result]) -> str:
    return (
        "# Results of the calibration bench\n\n"
        "Written by `python -m benchmarks calibration`; how to read it: [docs/calibration.md](../../docs/calibration.md).\n\n"
        f"{shown(head, results)}\n"
    )


def shown(head: dict[str, Any], results: list[Result]) -> str:
    """Date, versions, verdicts and the table."""
    made = ", ".join(f"{name} {number}" for name, number in head["versions"].items())
    return f"{head['made']}; {made}.\n\n{summary(results)}\n\n{markdown(results)}"


def summary(results: list[Result]) -> str:
    """Rows by verdict, and the breaches by name."""
    count = {word: sum(one.verdict() == word for one in results) for word in ("holds", "conservative", "LIBERAL", "silent")}
    text = f"{len(results)} rows: " + ", ".join(f"{number} {word}" for word, number in count.items() if number)
    breaches = [one for one in results if one.verdict() == "LIBERAL"]
    return text + "." + "".join(f"\n- LIBERAL: {one.name}{f' ({one.because})' if one.because else ''}" for one in breaches)


def markdown(results: list[Result]) -> str:
    lines = [f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}"]
    lines += [f"| {' | '.join(_cells(one))} |" for one in results]
    return "\n".join(lines)


def _cells(one: Result) -> tuple[str, ...]:
    name = one.name + (f" (rejects: {one.rule})" if one.rule else "")
    verdict = one.verdict()
    if one.silent:
        verdict += f"; {one.silent} runs without a word"
    if one.because:
        verdict += f"; {one.because}"
    return (
        name, f"`{one.of}`", one.design, f"{one.n:,}", f"{one.runs:,}",
        _share(one.rejection) if one.test else "–", _band(one.test, one.tested, False),
        _share(one.coverage) if one.interval else "–", _band(one.interval, one.intervals, True),
        "–" if one.width is None else f"{one.width:.3g}", verdict,
    )  # fmt: skip


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _band(promise: Promise | None, runs: int, coverage: bool) -> str:
    if promise is None or not runs:
        return "–"
    low, high = band(runs)
    if coverage:
        return f"≥ {1 - high:.3f}" if promise == "careful" else f"{1 - high:.3f}–{1 - low:.3f}"
    return f"≤ {high:.3f}" if promise == "careful" else f"{low:.3f}–{high:.3f}"
