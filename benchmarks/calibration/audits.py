"""Whole audits of clean subjects: how many accuse, and which checks do. Results are appended per subject, so that a stop loses nothing."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tl_audit as ta
from benchmarks.calibration import clean
from benchmarks.calibration.table import DOCS, HERE, versions, within

WORK = HERE.parents[1] / "runs" / "calibration"
RESULTS = HERE / "audits.json"
PAGE = HERE / "audits.md"
METHODS = {"tabular": ("integrated_gradients",), "image": ("integrated_gradients", "grad_cam")}
MAPS = 30  # the least that a verdict on maps needs
BUDGET = 64
ACCUSED = ("fail", "warn")
SECTIONS = ("provenance", "data", "performance", "transfer", "shift", "fairness", "explanations", "robustness", "governance")


def audited(kind: str, seed: int, work: Path = WORK) -> dict[str, Any]:
    """Trains one clean subject, audits it with all checks, and says what each check said."""
    began = time.perf_counter()
    run, domains = clean.subject(kind, seed, work)
    trained = time.perf_counter()
    report = ta.audit(
        run, **domains, declared=clean.DECLARED, seed=seed, methods=METHODS[kind], attribution_samples=MAPS, budget=BUDGET
    )  # fmt: skip
    shutil.rmtree(run)
    if report.result.outcome.partial is not None:
        raise SystemExit(f"stopped while {kind} subject {seed} was audited; those before it are kept")
    return {
        "kind": kind,
        "seed": seed,
        "training_seconds": round(trained - began, 1),
        "audit_seconds": round(time.perf_counter() - trained, 1),
        "sections": {f.code: f.section for f in report.findings},
        "statuses": {f.code: f.status for f in report.findings},
        "reasons": {f.code: f.reason for f in report.findings if f.status in (*ACCUSED, "error")},
    }


def log_of(kind: str, work: Path = WORK) -> Path:
    return work / f"{kind}.jsonl"


def done(kind: str, work: Path = WORK) -> list[dict[str, Any]]:
    """What was audited so far; a last line that a stop cut off does not count."""
    path = log_of(kind, work)
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # cut off while it was written: that subject is audited again
    return found


def run(kinds: Sequence[str], subjects: int, jobs: int, work: Path = WORK) -> None:
    """Audits the subjects 0 .. subjects - 1 of each kind that the log does not hold yet."""
    known = {kind: {one["seed"] for one in done(kind, work)} for kind in kinds}
    for kind in kinds:
        (work / kind).mkdir(parents=True, exist_ok=True)
    # the kinds take turns, base by base, so that a run that is stopped early has told about all of them
    for first in range(0, subjects, clean.EVERY * jobs):
        for kind in kinds:
            wanted = [seed for seed in range(first, min(first + clean.EVERY * jobs, subjects)) if seed not in known[kind]]
            with open(log_of(kind, work), "a", encoding="utf-8") as log:
                for one in _each(kind, wanted, jobs, work):
                    log.write(json.dumps(one, ensure_ascii=False) + "\n")
                    log.flush()
                    loud = {code: status for code, status in one["statuses"].items() if status in (*ACCUSED, "error")}
                    print(
                        f"{kind} {one['seed']:4d}  {one['training_seconds']:5.1f} + {one['audit_seconds']:5.1f} s  {loud or 'quiet'}",
                        flush=True,
                    )


def _each(kind: str, seeds: Sequence[int], jobs: int, work: Path) -> Iterable[dict[str, Any]]:
    if jobs == 1:
        yield from (audited(kind, seed, work) for seed in seeds)
        return
    # subjects that share a base are done by one process, so that none of them reads a base that is being written
    blocks = [[seed for seed in seeds if seed // clean.EVERY == block] for block in sorted({seed // clean.EVERY for seed in seeds})]
    with ProcessPoolExecutor(jobs) as pool:
        for finished in as_completed([pool.submit(_block, kind, block, work) for block in blocks]):
            yield from finished.result()


def _block(kind: str, seeds: Sequence[int], work: Path) -> list[dict[str, Any]]:
    return [audited(kind, seed, work) for seed in seeds]


def summary(audits: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares of audits with any fail and any warn, overall and per family; accusations by check; seconds."""
    sections = {code: section for one in audits for code, section in one["sections"].items()}
    families = {}
    for section in ("all", *SECTIONS):
        codes = {code for code, name in sections.items() if section in ("all", name)}
        seen = [{one["statuses"][code] for code in codes if code in one["statuses"]} for one in audits]
        if any(seen):
            families[section] = {status: sum(status in statuses for statuses in seen) for status in (*ACCUSED, "error")}
    checks = {}
    for code in sorted(sections):
        count = Counter(one["statuses"].get(code, "absent") for one in audits)
        checks[code] = {"section": sections[code], **{status: count[status] for status in sorted(count)}}
    middle = sorted(one["audit_seconds"] for one in audits)[len(audits) // 2]
    return {"subjects": len(audits), "families": families, "checks": checks, "median_audit_seconds": middle}


def save(kinds: Iterable[str] = clean.KINDS, work: Path = WORK) -> None:
    """Writes audits.json and audits.md from the logs; kinds without a log keep what was stored before."""
    stored = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"kinds": {}}
    for kind in kinds:
        if audits := done(kind, work):
            stored["kinds"][kind] = {"made": datetime.now(UTC).date().isoformat(), "versions": versions(), **summary(audits)}
    RESULTS.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page_of(stored), encoding="utf-8")
    DOCS.write_text(within(DOCS.read_text(encoding="utf-8"), "audits", shown(stored)), encoding="utf-8")


def page_of(stored: dict[str, Any]) -> str:
    head = (
        "# Audits of clean subjects\n\nWritten by `python -m benchmarks calibration --audits`; how to read it: "
        "[docs/calibration.md](../../docs/calibration.md).\n"
    )
    return f"{head}\n{shown(stored)}\n"


def shown(stored: dict[str, Any]) -> str:
    return "\n\n".join(f"### {kind}\n\n{markdown(one)}" for kind, one in stored["kinds"].items())


def markdown(one: dict[str, Any]) -> str:
    """Both tables of one kind: by family, and the checks that accused anybody."""
    n = one["subjects"]
    lines = [
        f"{n} subjects, {one['made']}, {', '.join(f'{name} {number}' for name, number in one['versions'].items())}; "
        f"{one['median_audit_seconds']} s an audit (median, on a shared machine).",
        "",
        "| family | audits with any fail | with any warn | with an error |",
        "| --- | --- | --- | --- |",
    ]
    for section, count in one["families"].items():
        lines.append(f"| {section} | {_share(count['fail'], n)} | {_share(count['warn'], n)} | {count['error']} |")
    loud = {code: count for code, count in one["checks"].items() if any(count.get(status) for status in (*ACCUSED, "error"))}
    lines += [
        "",
        "| check that accused | fail | warn | error | pass | undecided or not evaluated |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for code, count in sorted(loud.items(), key=lambda item: (-item[1].get("fail", 0), -item[1].get("warn", 0), item[0])):
        said = sum(count.get(status, 0) for status in (*ACCUSED, "error", "pass"))
        lines.append(
            f"| {code} | {count.get('fail', 0)} | {count.get('warn', 0)} | {count.get('error', 0)} | {count.get('pass', 0)} | {n - said} |"
        )
    if not loud:
        lines.append("| none | | | | | |")
    return "\n".join(lines)


def _share(count: int, n: int) -> str:
    return f"{count} ({count / n:.1%})"
