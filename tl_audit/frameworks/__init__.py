"""Clause maps: which part of a report speaks to which clause of a law or standard, as dated data files. Own words only; no text of a standard.

A map says where evidence lies. It never says that a clause is met.
"""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from tl_audit.errors import ConfigError

WHO = ("tool", "tool-drafts", "person")
REFERENCES = ("section", "family", "code", "declared", "record")


@dataclass(frozen=True)
class Entry:
    """One clause.

    Attributes
    ----------
    clause : how the document numbers it
    summary : what it asks for, in our words
    evidence : references into a report: ``section:X``, ``family:NAME``, ``code:TLAnnn``, ``declared:KEY``, ``record:PATH``
    who : "tool" measures it, "tool-drafts" prepares what a person signs, "person" states it
    person : keys of [declared] that a person must fill
    verified : whether the entry was checked against the document itself
    """

    id: str
    clause: str
    summary: str
    evidence: tuple[str, ...]
    who: str
    person: tuple[str, ...] = ()
    verified: bool = False
    note: str | None = None


@dataclass(frozen=True)
class Framework:
    """A dated map of one document. ``as_of``: the day the map was last revised."""

    id: str
    title: str
    as_of: datetime.date
    status: str
    verified_means: str
    sources: tuple[str, ...]
    entries: tuple[Entry, ...]

    def age(self, today: datetime.date) -> int:
        """Days since the map was revised; negative where the clock stands before that."""
        return (today - self.as_of).days


def names() -> tuple[str, ...]:
    """Ids of the maps that are shipped."""
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in files(__name__).iterdir() if entry.name.endswith(".toml")))


def load_framework(name: str) -> Framework:
    """A shipped map; ConfigError for an unknown id or a file that does not hold one."""
    if name not in names():
        raise ConfigError(f"there is no clause map {name!r}; there are: {', '.join(names())}")
    return _framework(name, tomllib.loads(files(__name__).joinpath(f"{name}.toml").read_text(encoding="utf-8")))


def _framework(name: str, table: dict[str, Any]) -> Framework:  # Any: TOML values
    try:
        entries = tuple(
            Entry(
                id=str(e["id"]), clause=str(e["clause"]), summary=str(e["summary"]), evidence=tuple(e["evidence"]), who=str(e["who"]),
                person=tuple(e.get("person", ())), verified=bool(e["verified"]), note=e.get("note"),
            )
            for e in table["entries"]
        )  # fmt: skip
        found = Framework(
            id=str(table["id"]), title=str(table["title"]), as_of=table["as_of"], status=str(table["status"]),
            verified_means=str(table["verified_means"]), sources=tuple(table["sources"]), entries=entries,
        )  # fmt: skip
    except KeyError as error:
        raise ConfigError(f"clause map {name}: {error} is missing") from error
    _require(found.id == name, name, f"its id is {found.id!r}")
    _require(type(found.as_of) is datetime.date, name, "as_of is not a date")
    _require(len({e.id for e in entries}) == len(entries), name, "an entry's id occurs twice")
    for entry in entries:
        _require(entry.who in WHO, name, f"{entry.id}: who is {entry.who!r}, expected one of {', '.join(WHO)}")
        _require(bool(entry.evidence), name, f"{entry.id} names no evidence")
        for reference in entry.evidence:
            _require(reference.split(":")[0] in REFERENCES, name, f"{entry.id}: {reference!r} is no reference")
    return found


def _require(holds: bool, name: str, text: str) -> None:
    if not holds:
        raise ConfigError(f"clause map {name}: {text}")


def references(entries: Iterable[Entry], kind: str) -> tuple[str, ...]:
    """What entries refer to of one kind ("code", "family", ...), each once, sorted."""
    return tuple(sorted({r.partition(":")[2] for e in entries for r in e.evidence if r.partition(":")[0] == kind}))
