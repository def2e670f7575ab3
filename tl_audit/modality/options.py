"""Reader options: unknown names are errors that suggest the nearest known one; column names likewise."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from typing import Any

from tl_audit.errors import DataError
from tl_audit.modality.base import Caps


def suggest(name: str, known: Iterable[str]) -> str:
    """' (did you mean "x"?)', or '' where nothing is near."""
    near = difflib.get_close_matches(str(name), sorted(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def require_known(given: Iterable[str], known: Collection[str], what: str) -> None:
    """DataError naming the first of ``given`` that is not in ``known``."""
    for name in given:
        if name not in known:
            raise DataError(f"unknown {what} {name!r}{suggest(name, known)}; known: {', '.join(sorted(known))}")


def require_column(name: str, columns: Collection[str], where: str, role: str) -> None:
    """DataError if a column named for ``role`` is not among ``columns``."""
    if name not in columns:
        listed = ", ".join(list(columns)[:30]) + (", ..." if len(columns) > 30 else "")
        raise DataError(f"{where} has no column {name!r}, named as {role}{suggest(name, columns)}; its columns are: {listed}")


def caps_of(given: Mapping[str, Any] | Caps | None) -> Caps:  # Any: TOML values
    """Caps from ``{pixels, rows, bytes, bad_fraction}``."""
    if given is None:
        return Caps()
    if isinstance(given, Caps):
        return given
    require_known(given, {f.name for f in fields(Caps)}, "cap")
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or (name == "bad_fraction" and value > 1):
            raise DataError(
                f"caps.{name} is {value!r}: expected {'a share from 0 to 1' if name == 'bad_fraction' else 'a positive number'}"
            )
    return Caps(**given)
