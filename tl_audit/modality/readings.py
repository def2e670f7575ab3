"""What named parts of a sample read in the data's own terms: 37.2 years, "female", missing. For charts that show a value beside its attribution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl_audit.errors import DataError
from tl_audit.modality.base import Players
from tl_audit.records.preprocessing import InputSpec, TableEncoding

__all__ = ["Readings", "readings"]


@dataclass(frozen=True)
class Readings:
    """One column of the samples.

    Attributes
    ----------
    name : of the column
    numbers : (N,) float64 in the column's own unit, NaN where the cell is missing; of a categorical column the place in ``categories``
    categories : names of a categorical column, None of a numeric one
    """

    name: str
    numbers: NDArray[np.float64]
    categories: tuple[str, ...] | None = None


def readings(inputs: NDArray[np.float64], players: Players, spec: InputSpec | None) -> tuple[Readings, ...]:
    """The columns of encoded rows (N, D), decoded: scaling undone, one-hot slots named.

    Without an encoding each column is its own entry, as the model sees it.

    Raises
    ------
    DataError : parts without names (pictures), which read nothing but their pixels
    """
    if players.names is None or inputs.ndim != 2:
        raise DataError("only named parts (columns) have readings; these samples are cut into parts of their own")
    if isinstance(spec, TableEncoding):
        return _decoded(inputs, spec)
    assignment = players.assignment[0].cpu().numpy() if len(inputs) else np.zeros(0, dtype=np.int64)
    out = []
    for k, name in enumerate(players.names):
        mine = inputs[:, assignment == k]
        if mine.shape[1] == 1:
            out.append(Readings(name, mine[:, 0]))
        else:  # several entries without an encoding: one slot of them is the largest
            out.append(Readings(name, mine.argmax(axis=1).astype(np.float64), tuple(f"slot {j}" for j in range(mine.shape[1]))))
    return tuple(out)


def _decoded(inputs: NDArray[np.float64], spec: TableEncoding) -> tuple[Readings, ...]:
    slots = spec.slots()
    out = []
    for number in spec.numeric:
        start = slots[number.name][0]
        values = inputs[:, start] * number.std + number.mean
        if number.missing_indicator:
            values = np.where(inputs[:, start + 1] > 0.5, np.nan, values)
        out.append(Readings(number.name, values))
    for column in spec.categorical:
        start, stop = slots[column.name]
        out.append(Readings(column.name, inputs[:, start:stop].argmax(axis=1).astype(np.float64), (*column.categories, "unknown")))
    return tuple(out)
