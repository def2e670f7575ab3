"""Maps of the same samples beside each other: base and adapted with their difference, or several methods."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tl_audit.errors import DataError
from tl_audit.measures.attribution import over_rows, pooled, rank_correlation
from tl_audit.measures.estimate import Estimate

if TYPE_CHECKING:
    from tl_audit.attribution.base import Attribution

__all__ = ["Comparison", "beside"]


@dataclass(frozen=True, repr=False)
class Comparison:
    """Attributions of the same samples, by name, in the order in which they are shown.

    Attributes
    ----------
    maps : name -> attribution; all of the same samples and the same input parts
    difference : (N, *spatial) second minus first map, where two maps of one method for the same classes are compared; else None
    player_difference : the same per sample and input part
    reason : why there is no difference; "" where there is one
    """

    maps: Mapping[str, Attribution]
    difference: NDArray[np.float64] | None
    player_difference: tuple[NDArray[np.float64], ...] | None
    reason: str = ""

    @classmethod
    def of(cls, maps: Mapping[str, Attribution]) -> Comparison:
        """Maps by name, e.g. ``{"grad_cam": ..., "lime": ...}`` or ``{"base": ..., "adapted": ...}``; a difference only of two maps of one method.

        Raises
        ------
        DataError : fewer than two maps, other samples, or maps of another size
        """
        named = dict(maps)
        if len(named) < 2:
            raise DataError(f"a comparison needs at least two maps, {len(named)} given")
        (first_name, first), *others = named.items()
        for name, other in others:
            if other.inputs.ids != first.inputs.ids:
                raise DataError(
                    f"{name!r} explains other samples than {first_name!r} ({len(other)} and {len(first)}): explain the same inputs with both"
                )
            if other.values.shape != first.values.shape:
                raise DataError(
                    f"{name!r} has maps of {_shape(other)}, {first_name!r} of {_shape(first)}: explain both models on the same inputs"
                )
        reason = _no_difference(list(named.values()))
        if reason:
            return cls(named, None, None, reason)
        second = others[0][1]
        parts = tuple(b - a for a, b in zip(first.player_values, second.player_values, strict=True))
        return cls(named, second.values - first.values, parts)

    def __len__(self) -> int:
        return len(next(iter(self.maps.values())))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.maps)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """All pairs of names, in order."""
        return tuple(itertools.combinations(self.names, 2))

    def rank_correlation(self, first: str | None = None, second: str | None = None) -> NDArray[np.float64]:
        """(N,) Spearman correlation of the parts' values in two of the maps: 1 the same order, 0 what chance gives, NaN where one is blank.

        Parts are the shared input parts; where the maps have other parts, 14 x 14 equal areas.
        """
        a, b = self.maps[first or self.names[0]], self.maps[second or self.names[1]]
        if same_parts(a, b):
            out = [rank_correlation(x[None], y[None])[0] for x, y in zip(a.player_values, b.player_values, strict=True)]
            return np.array(out, dtype=np.float64)
        if a.values.ndim == 3:
            return rank_correlation(pooled(a.values), pooled(b.values))
        return rank_correlation(a.values.reshape(len(a), -1), b.values.reshape(len(b), -1))

    def mean_rank_correlation(self, first: str | None = None, second: str | None = None) -> Estimate:
        """Its mean over the samples with a t interval; 0 by chance."""
        return over_rows(self.rank_correlation(first, second), bounds=(-1.0, 1.0), null=0.0)

    def to_rows(self) -> list[dict[str, Any]]:
        """One row per sample and input part: id, target, part, a column per name, and ``difference`` where there is one."""
        names = self.names
        sides = [attribution.to_rows() for attribution in self.maps.values()]
        if not same_parts(*self.maps.values()):
            return [{"map": name, **row} for name, rows in zip(names, sides, strict=True) for row in rows]
        flat = None if self.player_difference is None else np.concatenate([np.zeros(0), *self.player_difference])
        rows = []
        for k, mine in enumerate(zip(*sides, strict=True)):
            row: dict[str, Any] = {"id": mine[0]["id"], "target": mine[0]["target"], "part": mine[0]["part"]}
            row.update({name: one["value"] for name, one in zip(names, mine, strict=True)})
            if flat is not None:
                row["difference"] = float(flat[k]) if np.isfinite(flat[k]) else None
            rows.append(row)
        return rows

    def to_frame(self) -> Any:  # Any: pandas is imported late
        """``to_rows`` as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.to_rows())

    def document(self) -> dict[str, Any]:
        """What ``save("x.json")`` writes."""
        from tl_audit.attribution import saving

        likeness = []
        for a, b in self.pairs:
            mean = self.mean_rank_correlation(a, b)
            likeness.append(
                {
                    "first": a, "second": b, "rank_correlation": list(self.rank_correlation(a, b)), "mean": mean.value, "interval": mean.interval(),
                    "n": mean.n, "null": 0.0, "reason": mean.reason,
                }
            )  # fmt: skip
        made = {name: saving.made(one) for name, one in self.maps.items()}
        return {"format_version": saving.FORMAT_VERSION, "maps": made, "likeness": likeness, "reason": self.reason, "parts": self.to_rows()}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What ``save("x.npz")`` writes: the arrays of each map under its place ("0/values", ...), ``names``, ``difference``."""
        from tl_audit.attribution import saving

        out: dict[str, NDArray[Any]] = {"names": np.array(self.names, dtype=np.str_)}
        for k, one in enumerate(self.maps.values()):
            out.update({f"{k}/{key}": value for key, value in saving.arrays(one).items()})
        if self.difference is not None:
            out["difference"] = self.difference
        return out

    def figure(self) -> Any:  # Any: a matplotlib figure
        """The maps beside each other as a matplotlib figure."""
        return import_module("tl_audit.report.figures").comparison_figure(self)

    def save(self, path: str | Path) -> Path:
        """Write .png, .npz or .json, by suffix."""
        from tl_audit.attribution import saving

        return saving.write(path, figure=self.figure, document=self.document, arrays=self.arrays)

    def __repr__(self) -> str:
        lines = [f"Comparison({', '.join(self.names)}; {len(self)} sample(s))"]
        for a, b in self.pairs[:12]:
            mean = self.mean_rank_correlation(a, b)
            interval = mean.interval()
            words = "not defined" if mean.value is None else f"{mean.value:.2f}"
            lines.append(
                f"  rank correlation of {a} and {b}: {words}"
                + (f" (95 % CI {interval[0]:.2f} to {interval[1]:.2f}; n = {mean.n}; 0 by chance)" if interval else f" (n = {mean.n})")
            )
        if self.reason:
            lines.append(f"  no difference: {self.reason}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        html: str = import_module("tl_audit.report.notebook").comparison_fragment(self)
        return html


def beside(maps: Attribution, other: Attribution, *, names: tuple[str, str] = ("base", "adapted")) -> Comparison:
    """``other`` and ``maps`` beside each other with the difference maps - other; ``names`` in the order shown: the other's first.

    Two methods are named by themselves.
    """
    if maps.method != other.method and names == ("base", "adapted"):
        names = (other.method, maps.method)
    return Comparison.of({names[0]: other, names[1]: maps})


def same_parts(*maps: Attribution) -> bool:
    """Whether all maps speak of the same input parts."""
    first = maps[0].inputs.players
    return all(
        m.inputs.players is first
        or (
            m.inputs.players.assignment.shape == first.assignment.shape
            and bool((m.inputs.players.assignment.cpu() == first.assignment.cpu()).all())
            and m.inputs.players.names == first.names
        )
        for m in maps[1:]
    )


def _no_difference(maps: list[Attribution]) -> str:
    """Why these maps cannot be subtracted, "" where they can."""
    if len(maps) != 2:
        return "a difference is of two maps"
    first, second = maps
    if first.method != second.method:
        return f"{first.method} and {second.method} measure in other units"
    if first.params.get("output") != second.params.get("output"):
        return "one explains the logit, the other the probability"
    if first.target_names is not None and second.target_names is not None:
        same = first.target_names == second.target_names
    else:
        same = bool((first.targets == second.targets).all())
    if not same:
        return "the two models explain other classes; name one with target=..."
    if not same_parts(first, second):
        return "the maps have other input parts; give players= of one to the other"
    return ""


def _shape(maps: Attribution) -> str:
    return " x ".join(str(side) for side in maps.values.shape[1:])
