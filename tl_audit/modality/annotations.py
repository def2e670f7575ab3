"""What is said about samples: labels by name, groups (also binned), clusters, and metadata joined on file name or id."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_audit.errors import DataError
from tl_audit.modality.cells import Cells, Frame, cell_text, cells_of, number_text
from tl_audit.modality.options import require_column, require_known, suggest

MISSING = "(missing)"
_NO_LABEL = ("", "nan")  # "none" may be a class; it is missing only as a group
_NO_GROUP = ("", "nan", "none", "na", "n/a", "null", "?", "<na>")

Values = Sequence[Any] | NDArray[Any]  # Any: labels and groups come as text, numbers or objects


@dataclass(frozen=True)
class Labels:
    names: NDArray[np.object_] | None
    classes: tuple[str, ...] | None
    notes: tuple[str, ...] = ()


def one_dimensional(values: Any, n: int, what: str) -> NDArray[Any]:  # Any: whatever a caller gives
    """``values`` as an array of shape (n,). DataError that says both lengths."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    array = np.asarray(values) if hasattr(values, "dtype") else np.asarray(list(values), dtype=object)
    if array.ndim != 1:
        raise DataError(f"{what} has shape {tuple(array.shape)}: expected one value per row ({n})")
    if len(array) != n:
        raise DataError(
            f"{what} has {len(array)} rows, the data has {n}: give one value per row, or join them on the file name or id with metadata="
        )
    return array


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool | np.bool_)


def resolve_labels(
    raw: NDArray[Any] | None,
    *,
    classes: Sequence[str] | None,
    label_map: Mapping[Any, str] | None,
    from_file: bool,
    declared: Sequence[str] = (),
) -> Labels:
    """Labels as class names, and the class names in order: those given, else those of ``label_map``, else the names found, sorted.

    Parameters
    ----------
    raw : (N,) names or numbers, None where there are none
    from_file : numbers from files are never taken as positions in ``classes``: they need ``label_map``
    declared : further names that exist without samples (empty class folders)
    """
    notes: list[str] = []
    given = None if classes is None else tuple(str(c) for c in classes)
    if given is not None and len(set(given)) != len(given):
        raise DataError(f"classes names {sorted({c for c in given if given.count(c) > 1})[0]!r} twice")
    if raw is None:
        return Labels(None, given)
    # a label stays None only where there is none: "none" and "?" may be class names
    texts = [t if (t := cell_text(v)) is not None and t.lower() not in _NO_LABEL else None for v in raw.tolist()]
    present = [(v, t) for v, t in zip(raw.tolist(), texts, strict=True) if t is not None]
    whole = bool(present) and all(_is_whole(v) for v, _ in present)
    digits = bool(present) and all(t.lstrip("-").isdigit() for _, t in present)
    if label_map is not None:
        mapping = {str(cell_text(k)): str(v) for k, v in label_map.items()}
        unknown = sorted({t for _, t in present if t not in mapping})
        if unknown:
            raise DataError(f"label_map has no entry for label {unknown[0]!r}; it maps {', '.join(map(repr, mapping))}")
        texts = [None if t is None else mapping[t] for t in texts]
        found: list[str] = sorted(set(mapping.values()))
    else:
        found = sorted({t for _, t in present} | set(declared))
        if whole:
            found = sorted(found, key=int)
        if digits and given is not None and not set(found) <= set(given):
            if from_file or not whole:
                raise DataError(
                    f"labels are numbers ({', '.join(found[:5])}), classes are names ({', '.join(given[:5])}): "
                    'say which is which with label_map = {"0" = "...", ...}; an index is never assumed'
                )
            beyond = [t for t in found if not 0 <= int(t) < len(given)]
            if beyond:
                raise DataError(f"label {beyond[0]} is not a position in classes, of which there are {len(given)}")
            texts = [None if t is None else given[int(t)] for t in texts]
            notes.append("whole-number labels were taken as positions in the classes given")
            found = list(given)
        elif digits:
            notes.append("labels are numbers and were taken as names")
    if given is not None:
        strange = [t for t in sorted({t for t in texts if t is not None}) if t not in given]
        if strange:
            raise DataError(f"label {strange[0]!r} is not among the classes{suggest(strange[0], given)}: {', '.join(given[:20])}")
    missing = sum(t is None for t in texts)
    if missing == len(texts):
        return Labels(None, given, ("every label is missing: the data are unlabelled",))
    if missing:
        notes.append(f"{missing} rows have no label")
    return Labels(np.array(texts, dtype=object), given if given is not None else tuple(found), tuple(notes))


@dataclass(frozen=True)
class Numbers:
    """What a regression is to predict: (N,) float64 ``values``, NaN where a row has none; None where no row has one."""

    values: NDArray[np.float64] | None
    notes: tuple[str, ...] = ()


def resolve_values(raw: Cells, what: str, *, na: Collection[str] = _NO_GROUP, rows: NDArray[np.int64] | None = None) -> Numbers:
    """The numbers of a column; missing cells are rows without a value.

    Parameters
    ----------
    na : texts that mean missing, lower case
    rows : place of each sample in the column, -1 where it has none; None: the column's own rows

    Raises
    ------
    DataError : a cell that is neither missing nor a finite number; names the row
    """
    numbers, wrong = raw.as_numbers(na)
    if wrong:
        row, text = next(iter(wrong.items()))
        raise DataError(
            f'{what} holds {text!r} in row {row}, which is no number: task = "regression" needs one number per row '
            "(an empty cell where there is none); leave task out where the column names classes"
        )
    if np.isinf(numbers).any():
        raise DataError(f"{what} is infinite in row {int(np.flatnonzero(np.isinf(numbers))[0])}: a value must be finite, or missing")
    numbers = np.array(numbers if rows is None else np.append(numbers, np.nan)[rows], dtype=np.float64)
    missing = int(np.isnan(numbers).sum())
    if missing == numbers.size:
        return Numbers(None, ("every value is missing: the data are unlabelled",))
    return Numbers(numbers, (f"{missing} rows have no value",) if missing else ())


def clean_groups(values: Any, n: int, what: str) -> NDArray[np.object_]:  # Any: see one_dimensional
    """(n,) group values as text; None, NaN, "" and other NA texts become "(missing)"."""
    array = one_dimensional(values, n, what)
    texts = [cell_text(v) for v in array.tolist()]
    return np.array([MISSING if t is None or t.lower() in _NO_GROUP else t for t in texts], dtype=object)


def clean_cluster(values: Any, n: int, what: str = "cluster") -> NDArray[np.object_]:  # Any: see one_dimensional
    """(n,) cluster ids as text, None where missing (such a row is a cluster of its own)."""
    array = one_dimensional(values, n, what)
    texts = [cell_text(v) for v in array.tolist()]
    return np.array([None if t is None or t.lower() in _NO_GROUP else t for t in texts], dtype=object)


def bin_names(edges: Sequence[float]) -> tuple[str, ...]:
    """Names of the bins between edges, which belong to the bin above them: [45, 55] -> "<45", "45–54", ">=55"."""
    whole = all(float(e).is_integer() for e in edges)
    names = [f"<{number_text(edges[0])}"]
    for low, high in itertools.pairwise(edges):
        if whole:
            names.append(number_text(low) if high == low + 1 else f"{number_text(low)}–{number_text(high - 1)}")
        else:
            names.append(f"{number_text(low)}–<{number_text(high)}")
    return (*names, f">={number_text(edges[-1])}")


def binned(cells: Cells, edges: Sequence[float], what: str) -> NDArray[np.object_]:
    """Numbers as names of bins; missing ones "(missing)". DataError on text that is no number."""
    edges = [float(e) for e in edges]
    if not edges or any(b <= a for a, b in itertools.pairwise(edges)):
        raise DataError(f"bins of {what} must be rising numbers, not {edges}")
    values, bad = cells.as_numbers(_NO_GROUP)
    if bad:
        row, text = next(iter(bad.items()))
        raise DataError(f"{what} cannot be binned: row {row} holds {text!r}, which is no number")
    names = np.array([*bin_names(edges), MISSING], dtype=object)
    place = np.where(np.isnan(values), len(edges) + 1, np.searchsorted(edges, values, side="right"))
    return np.asarray(names[place], dtype=object)


def resolve_groups(given: Any, n: int, frame: Frame | None, join: NDArray[np.int64] | None) -> dict[str, NDArray[np.object_]]:
    """Groups by name: a list of column names or ``{column, bins[, name]}``, or a mapping of names to values.

    Parameters
    ----------
    frame, join : the table (or metadata) that columns come from, and its row for each of the n samples (-1: none)
    """
    if given is None:
        return {}
    if isinstance(given, str):
        given = [given]
    entries: list[tuple[str, Any]]
    if isinstance(given, Mapping):
        if "column" in given and set(given) <= {"column", "bins", "name"}:
            entries = [("", given)]
        else:
            entries = [(str(k), v) for k, v in given.items()]
    else:
        entries = [(item if isinstance(item, str) else "", item) for item in given]
    out: dict[str, NDArray[np.object_]] = {}
    for label, value in entries:
        if isinstance(value, str):
            name, column = label, value
            groups = clean_groups(column_values(frame, join, column, "a group"), n, f"group {name!r}")
        elif isinstance(value, Mapping):
            require_known(value, ("column", "bins", "name"), "key of a group")
            column = value.get("column", label)
            name = str(value.get("name", label or column))
            cells = cells_of(column_values(frame, join, column, "a group"))
            if "bins" in value:
                groups = binned(cells, value["bins"], f"column {column!r}")
            else:
                groups = clean_groups(cells.as_texts(()), n, f"group {name!r}")
        elif label:
            name, groups = label, clean_groups(value, n, f"groups[{label!r}]")
        else:
            raise DataError(f"a group is a column name or {{column = ..., bins = [...]}}, not {value!r}")
        if name in out:
            raise DataError(f"two groups are named {name!r}: give one of them another name")
        out[name] = groups
    return out


def column_values(frame: Frame | None, join: NDArray[np.int64] | None, column: str, role: str) -> NDArray[np.object_]:
    """Texts of a column for each sample, None where missing or not joined."""
    if frame is None:
        raise DataError(
            f"{column!r} is named as {role}, but there is no metadata or table with columns: give metadata=, or the values themselves"
        )
    require_column(column, frame.columns, frame.where, role)
    texts = frame.columns[column].as_texts(("",))
    if join is None:
        return texts
    return np.asarray(np.append(texts, np.array([None], dtype=object))[join], dtype=object)


@dataclass(frozen=True)
class Joined:
    """Metadata joined to samples. ``rows``: metadata row of each sample, -1 where it has none."""

    frame: Frame
    rows: NDArray[np.int64]
    key: str
    unmatched: tuple[str, ...]
    "metadata keys without a sample"


KEY_COLUMNS = ("file", "filename", "file_name", "path", "image", "id")


def key_column(frame: Frame, key: str | None) -> str:
    """The column that metadata are joined on: the one named, else the first of ``KEY_COLUMNS``. DataError where there is none."""
    if key is None:
        found = [c for c in frame.columns if c.strip().lower() in KEY_COLUMNS]
        if not found:
            raise DataError(
                f"{frame.where} has no column to join on: name one of {', '.join(KEY_COLUMNS)}; it has {', '.join(frame.columns)}"
            )
        key = min(found, key=lambda c: KEY_COLUMNS.index(c.strip().lower()))
    require_column(key, frame.columns, frame.where, "the key to join on")
    return key


def join_metadata(frame: Frame, ids: Sequence[str], key: str | None, *, by_name: bool) -> Joined:
    """Join metadata rows to samples by id; with ``by_name`` a bare file name also matches a file in a sub-folder.

    Raises
    ------
    DataError : no key column, a key twice, a bare name that two files bear
    """
    key = key_column(frame, key)
    keys = [None if k is None else k.replace("\\", "/").removeprefix("./") for k in frame.columns[key].as_texts(("",)).tolist()]
    seen: dict[str, int] = {}
    for row, value in enumerate(keys):
        if value is None:
            raise DataError(f"{frame.where}: row {row} has no value in the key column {key!r}")
        if value in seen:
            raise DataError(f"{frame.where} names {value!r} twice (rows {seen[value]} and {row}): keys must be unique")
        seen[value] = row
    exact = {name: i for i, name in enumerate(ids)}
    bare: dict[str, list[int]] = {}
    if by_name:
        for i, name in enumerate(ids):
            bare.setdefault(name.rsplit("/", 1)[-1], []).append(i)
    rows = np.full(len(ids), -1, dtype=np.int64)
    unmatched = []
    for value, row in seen.items():
        if value in exact:
            at = exact[value]
        elif "/" not in value and len(bare.get(value, ())) == 1:
            at = bare[value][0]
        elif "/" not in value and len(bare.get(value, ())) > 1:
            two = [ids[i] for i in bare[value][:2]]
            raise DataError(
                f"{frame.where} names {value!r}, and there are {len(bare[value])} such files ({two[0]}, {two[1]}): write relative paths"
            )
        else:
            unmatched.append(value)
            continue
        if rows[at] >= 0:
            raise DataError(f"{frame.where} has two rows for {ids[at]!r}: keys must be unique")
        rows[at] = row
    return Joined(frame, rows, key, tuple(unmatched))
