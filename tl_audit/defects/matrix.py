"""All planted defects on all kinds of data with several seeds, and what came of it: as lines of a table, and as a Markdown page."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import metadata
from itertools import groupby
from multiprocessing import get_context

from tl_audit.defects.base import Defect, Mark, Outcome, Verdict, examine
from tl_audit.defects.worlds import KINDS, Kind
from tl_audit.errors import ConfigError

Say = Callable[[Outcome, int, int], None]
SYMBOLS: Mapping[Mark, str] = {"fires": "●", "quiet": "○", "undecided": "◐", "unseen": "◌", "wrong": "✗", "awaited": "?"}
MEANING: Mapping[Mark, str] = {
    "fires": "had to fire and did, in every audit",
    "quiet": "had to stay quiet and did, in every audit",
    "undecided": "stayed quiet, in some audits `inconclusive`: it accuses nobody, but clears nobody either",
    "unseen": "stayed quiet because it was not evaluated, in some audits",
    "wrong": "otherwise than it must be, in at least one audit",
    "awaited": "there is no such check yet",
}
RANK: tuple[Mark, ...] = ("wrong", "awaited", "undecided", "unseen", "quiet", "fires")
"""Which mark stands for several audits: the first of these that occurs."""
OF_A_METRIC: Mapping[Mark, str] = {"quiet": "within its limits", "undecided": "undecided", "unseen": "not_evaluated", "wrong": "broken"}
"""What is said of a number that had to stay within its limits, whatever the status of its check."""
PACKAGES = ("tl-audit", "torch", "numpy", "scipy", "scikit-learn")


def chosen(only: Sequence[int] = (), kind: Kind | None = None) -> tuple[tuple[Defect, ...], tuple[Kind, ...]]:
    """The defects of these numbers (all without) and the kinds of data.

    Raises
    ------
    ConfigError : a number that no defect has, a kind that does not exist, nothing left
    """
    from tl_audit.defects import DEFECTS

    numbers = sorted({one.number for one in DEFECTS})
    unknown = [number for number in only if number not in numbers]
    if unknown:
        raise ConfigError(f"there is no planted defect {unknown[0]}; there are {', '.join(map(str, numbers))}")
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"defects are planted in {' and '.join(KINDS)} data, not in {kind!r}")
    kinds = KINDS if kind is None else (kind,)
    picked = tuple(one for one in DEFECTS if (not only or one.number in only) and set(one.kinds) & set(kinds))
    if not picked:
        raise ConfigError(f"none of the defects {', '.join(map(str, only))} is planted in {kind} data")
    return picked, kinds


def examine_all(
    defects: Sequence[Defect],
    kinds: Sequence[Kind],
    seeds: Sequence[int],
    *,
    processes: int = 1,
    say: Say = lambda outcome, done, total: None,
) -> list[Outcome]:
    """Plant and audit every defect in every kind of data with every seed; in the order of defects, kinds, seeds.

    Parameters
    ----------
    processes : kinds and seeds are shared out among so many; a world is grown once in each
    say : told each outcome as it comes, how many are done, and how many there are
    """
    shares = [(kind, seed, tuple(one for one in defects if kind in one.kinds)) for kind in kinds for seed in seeds]
    total = sum(len(rows) for _, _, rows in shares)
    found: list[Outcome] = []

    def keep(outcome: Outcome) -> None:
        found.append(outcome)
        say(outcome, len(found), total)

    if processes <= 1:
        for kind, seed, rows in shares:
            for one in rows:
                keep(examine(one, kind, seed))
    else:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
            for share in as_completed([pool.submit(_share, rows, kind, seed) for kind, seed, rows in shares]):
                for outcome in share.result():
                    keep(outcome)
    place = {one: i for i, one in enumerate(defects)}
    return sorted(found, key=lambda o: (place[o.defect], kinds.index(o.kind), o.seed))


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _share(defects: Sequence[Defect], kind: Kind, seed: int) -> list[Outcome]:
    return [examine(one, kind, seed) for one in defects]


def labels(defects: Sequence[Defect]) -> dict[Defect, str]:
    """A short name of each defect: its number, with a letter where variants share one."""
    numbers = [one.number for one in defects]
    out = {}
    for i, one in enumerate(defects):
        letter = "abcdefghijklmnopqrstuvwxyz"[numbers[:i].count(one.number)] if numbers.count(one.number) > 1 else ""
        out[one] = f"{one.number}{letter}"
    return out


def combined(marks: Sequence[Mark]) -> Mark:
    """One mark for several audits."""
    return next(mark for mark in RANK if mark in marks)


def _short(code: str) -> str:
    return code.removeprefix("TLA")


def _tally(verdicts: Sequence[Verdict]) -> str:
    """What became of one check: its statuses with counts, or what is the matter."""
    if any(v.mark == "awaited" for v in verdicts):
        return "awaited"
    if verdicts[0].expectation.metric is None or verdicts[0].must_fire:
        statuses: list[str] = [v.status or "absent" for v in verdicts]
    else:  # the status of the check speaks of its other numbers as well
        statuses = [OF_A_METRIC[v.mark] for v in verdicts]
    known = list(dict.fromkeys(statuses))
    text = known[0] if len(known) == 1 else ", ".join(f"{status} {statuses.count(status)}" for status in known)
    wrong = sum(v.mark == "wrong" for v in verdicts)
    return f"{text} (wrong {wrong} of {len(verdicts)})" if wrong else text


def _by_expectation(outcomes: Sequence[Outcome], *, must_fire: bool) -> Iterator[str]:
    for i, expectation in enumerate(outcomes[0].defect.expectations(outcomes[0].kind)):
        verdicts = [o.verdicts[i] for o in outcomes]
        if verdicts[0].must_fire == must_fire:
            of = f" {expectation.metric}" if expectation.metric else ""
            yield f"{_short(expectation.code)}{of} {_tally(verdicts)}"


def lines(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, str, str, str, str]]:
    """Rows of a table: (ok | WRONG, defect, kind, what had to fire, what had to stay quiet), one per defect and kind of data."""
    short = labels(tuple(dict.fromkeys(o.defect for o in outcomes)))
    for (defect, kind), group in groupby(outcomes, key=lambda o: (o.defect, o.kind)):
        rows = list(group)
        good = sum(o.ok for o in rows)
        verdict = "ok" if good == len(rows) else f"WRONG {len(rows) - good} of {len(rows)}"
        title = f"{short[defect]} {defect.title}" + (f" ({defect.variant})" if defect.variant else "")
        yield (
            verdict, title, kind, "; ".join(_by_expectation(rows, must_fire=True)) or "nothing",
            "; ".join(_by_expectation(rows, must_fire=False)) or "nothing",
        )  # fmt: skip


def markdown(outcomes: Sequence[Outcome], *, command: str, date: str) -> str:
    """The matrix and what stands behind it, as a Markdown page."""
    defects = tuple(dict.fromkeys(o.defect for o in outcomes))
    short = labels(defects)
    codes = sorted({v.code for o in outcomes for v in o.verdicts})
    cells: dict[tuple[str, Defect], list[Mark]] = {}
    for o in outcomes:
        for v in o.verdicts:
            cells.setdefault((v.code, o.defect), []).append(v.mark)
    seeds = sorted({o.seed for o in outcomes})
    good = sum(o.ok for o in outcomes)
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    page = [
        "# Planted defects",
        "",
        f"Written by `{command}` on {date}, with {versions}, Python {platform.python_version()}. Seeds {', '.join(map(str, seeds))}; "
        f"kinds of data: {', '.join(sorted({o.kind for o in outcomes}))}. {len(outcomes)} audits, {good} of them as expected throughout. "
        f"{sum(o.seconds for o in outcomes):.0f} s of planting and auditing.",
        "",
        "Each defect is planted in a small generated world (`tl_audit/defects/`) whose model, data and record are sound otherwise, and audited with the",
        "checks that must find it and those that must not accuse the innocent. `tl-audit selftest` runs the same on any machine.",
        "",
        "## Defect and check",
        "",
        *(f"- {SYMBOLS[mark]} {MEANING[mark]}" for mark in SYMBOLS),
        "",
        "A column is a row of the list below; a check that must fire by one number and stay quiet by another shows the worse of both.",
        "",
        "| Check | " + " | ".join(short[one] for one in defects) + " |",
        "|---|" + ":-:|" * len(defects),
    ]
    for code in codes:
        row = [SYMBOLS[combined(cells[code, one])] if (code, one) in cells else "" for one in defects]
        page.append(f"| {code} {_title(code)} | " + " | ".join(row) + " |")
    page += ["", "## What each defect had to show", "", "| Defect | Data | Had to fire | Had to stay quiet | |", "|---|---|---|---|---|"]
    for verdict, title, kind, fire, silent in lines(outcomes):
        page.append(f"| {title} | {kind} | {fire} | {silent} | {verdict} |")
    page += ["", "## How each is planted", ""]
    for one in defects:
        page.append(
            f"- **{short[one]} {one.title}{f' ({one.variant})' if one.variant else ''}**: {' '.join((one.plant.__doc__ or '').split())}"
        )
    wrong = [o for o in outcomes if not o.ok]
    if wrong:
        page += ["", "## What went otherwise", ""]
        page += [f"- {short[o.defect]} {o.defect.title}, {o.kind}, seed {o.seed}: {reason}" for o in wrong for reason in o.wrong]
    awaited = sorted({code for o in outcomes for code in o.awaited})
    if awaited:
        page += ["", f"Awaited, and judged as soon as they exist: {', '.join(awaited)}."]
    return "\n".join(page) + "\n"


def _title(code: str) -> str:
    from tl_audit.checks import BUILTIN

    return next((one.title for one in BUILTIN if one.code == code), "(awaited)")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "(not installed)"
