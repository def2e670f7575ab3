"""What every measure asks of its arrays: one length, finite numbers, a known shape. Everything else is the measure's own business."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tl_audit.errors import DataError
from tl_audit.measures.estimate import BoolArray, FloatArray, IntArray

ObjectArray = np.ndarray[Any, Any]  # Any: ids, clusters and groups come as text, numbers or objects


def finite_vector(values: ArrayLike, name: str) -> FloatArray:
    """``values`` as float64 of shape (N,). Raises DataError on another shape or a non-finite entry."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise DataError(f"{name} has shape {array.shape}: expected one number per row")
    bad = int(np.count_nonzero(~np.isfinite(array)))
    if bad:
        raise DataError(f"{name} holds {bad} non-finite values: leave those rows out of every metric together, and count them")
    return array


def finite_matrix(values: ArrayLike, name: str) -> FloatArray:
    """``values`` as float64 of shape (N, D). Raises DataError on another shape or a non-finite entry."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2:
        raise DataError(f"{name} has shape {array.shape}: expected (rows, columns)")
    if not np.isfinite(array).all():
        bad = int(np.count_nonzero(~np.isfinite(array).all(axis=1)))
        raise DataError(f"{name} has {bad} rows with non-finite values: leave those rows out of every metric together, and count them")
    return array


def truth_vector(values: ArrayLike, name: str) -> BoolArray:
    """``values`` as bool of shape (N,); 0 and 1 are accepted. Raises DataError on anything else."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(f"{name} has shape {array.shape}: expected one truth value per row")
    if array.dtype == np.bool_:
        return array
    if array.size and not bool(np.isin(array, (0, 1)).all()):
        raise DataError(f"{name} holds values other than 0 and 1")
    return np.asarray(array == 1, dtype=np.bool_)


def class_vector(values: ArrayLike, classes: int, name: str) -> IntArray:
    """``values`` as class numbers 0 .. classes-1 of shape (N,). Raises DataError on anything else."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(f"{name} has shape {array.shape}: expected one class number per row")
    if array.size == 0:
        return np.zeros(0, dtype=np.int64)
    if array.dtype.kind not in "iub":
        raise DataError(f"{name} has type {array.dtype}: expected class numbers; align classes by name first")
    if array.min() < 0 or array.max() >= classes:
        raise DataError(f"{name} holds class numbers from {array.min()} to {array.max()}: expected 0 to {classes - 1}")
    return array.astype(np.int64)


def same_length(**lengths: int) -> int:
    """The one length that all named arrays share. Raises DataError that names two which differ."""
    names = list(lengths)
    for name in names[1:]:
        if lengths[name] != lengths[names[0]]:
            raise DataError(f"{name} has {lengths[name]} rows, {names[0]} has {lengths[names[0]]}: they must be the same samples")
    return lengths[names[0]]


def is_missing(value: object) -> bool:
    """Whether a group or cluster value counts as missing: None, NaN, or empty text (also "nan" and "none" in any case)."""
    if value is None:
        return True
    if isinstance(value, (float, np.floating)):
        return bool(np.isnan(value))
    if isinstance(value, str):
        return value.strip().lower() in ("", "nan", "none")
    return value != value  # pandas' NaT and NA-like objects are unequal to themselves
