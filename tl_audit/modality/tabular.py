"""Tables: rows read by column role, encoded to one float vector, masked by whole columns."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.errors import DataError
from tl_audit.measures.sampling import generator
from tl_audit.modality.base import Caps, Cue, Key, MaskMethod, Modality, Neighbourhood, Players, RawBatch, Samples
from tl_audit.modality.cells import NA_TEXTS, Cells, Frame, number_text, text_number
from tl_audit.modality.corruptions import TABLE_KINDS, column_scales, corrupt_columns
from tl_audit.modality.draws import drawn_rows
from tl_audit.modality.options import require_column, require_known, suggest
from tl_audit.records.exhibits import Bar, Picture
from tl_audit.records.preprocessing import CategoricalColumn, InputSpec, NumericColumn, Preprocessing, TableEncoding

ID_NAMES = frozenset(("id", "index", "row_id", "rowid", "unnamed: 0", ""))
MOSTLY_NUMBERS = 0.9  # above this share of numbers a column is numeric, and its other cells are errors of their rows
MANY_TEXTS = 50  # a text column with more values than this, most of them unique, names rows rather than kinds
MOST_CATEGORIES = 1000
MISSING_SHARE = "missing_share"  # the property of a row that is no column


@dataclass(frozen=True)
class Rows(Sequence[Mapping[str, float | str | None]]):
    """Rows of a table by column: float64 (NaN missing) for numeric columns, object (text or None) for categorical ones."""

    columns: Mapping[str, NDArray[Any]]
    n: int

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(self.n))]
        if not -self.n <= i < self.n:
            raise IndexError(i)
        return {
            name: (None if cell is None or cell != cell else (float(cell) if isinstance(cell, float | np.floating) else str(cell)))
            for name, values in self.columns.items()
            for cell in (values[i],)
        }

    def __iter__(self) -> Iterator[Mapping[str, float | str | None]]:
        return (self[i] for i in range(self.n))

    def take(self, rows: NDArray[Any]) -> Rows:
        """These rows (numbers or mask)."""
        columns = {name: values[rows] for name, values in self.columns.items()}
        return Rows(columns, int(np.arange(self.n)[rows].size))


def rows_of(items: Sequence[Any]) -> Rows:
    """Raw items as Rows: they are Rows, or mappings of column name to cell (None where a row is unreadable)."""
    if isinstance(items, Rows):
        return items
    names = list(dict.fromkeys(name for item in items if item is not None for name in item))
    columns: dict[str, NDArray[Any]] = {}
    for name in names:
        cells = [None if item is None else item.get(name) for item in items]
        if all(c is None or isinstance(c, int | float) for c in cells):
            columns[name] = np.array([np.nan if c is None else float(c) for c in cells])
        else:
            columns[name] = np.array(
                [None if c is None else (c if isinstance(c, str) else number_text(float(c))) for c in cells], dtype=object
            )
    return Rows(columns, len(items))


@dataclass(frozen=True)
class TableSamples:
    """Rows of one table in memory, by column, in the roles they were opened with."""

    columns: Mapping[str, Cells]
    "features only: numbers for numeric columns, codes for categorical ones"
    ids: tuple[str, ...]
    row_errors: Mapping[int, str] = field(default_factory=dict)
    caps: Caps = field(default_factory=Caps)
    modality: Modality = field(default_factory=lambda: TABULAR)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def numeric(self) -> tuple[str, ...]:
        return tuple(name for name, cells in self.columns.items() if cells.values is not None)

    @property
    def categorical(self) -> tuple[str, ...]:
        return tuple(name for name, cells in self.columns.items() if cells.values is None)

    def read(self, rows: NDArray[np.int64]) -> RawBatch:
        rows = np.asarray(rows, dtype=np.int64)
        columns: dict[str, NDArray[Any]] = {}
        for name, cells in self.columns.items():
            if cells.values is not None:
                columns[name] = cells.values[rows]
            else:
                assert cells.codes is not None
                columns[name] = np.array([*cells.texts, None], dtype=object)[cells.codes[rows]]
        return RawBatch(rows=rows, items=Rows(columns, len(rows)), errors=[self.row_errors.get(int(r)) for r in rows])


@dataclass(frozen=True)
class Roles:
    """What each column of a table is for. Lists as a caller gave them; None: to be found."""

    label: str | None = None
    numeric: Sequence[str] | None = None
    categorical: Sequence[str] | None = None
    drop: Sequence[str] = ()
    id: str | None = None
    na_values: Sequence[str] | Mapping[str, Sequence[str]] = ()
    aside: Sequence[str] = ()
    "columns with another role (cluster), never features"

    def na(self, column: str) -> frozenset[str]:
        """Texts that mean missing in this column, lower case."""
        extra: Sequence[Any] = self.na_values.get(column, ()) if isinstance(self.na_values, Mapping) else self.na_values
        return NA_TEXTS | {number_text(float(v)) if isinstance(v, int | float) else str(v).strip().lower() for v in extra}


def table_samples(frame: Frame, roles: Roles, caps: Caps) -> tuple[TableSamples, list[str]]:
    """Samples of a table, and notes of what was inferred.

    Raises
    ------
    DataError : a named column is not there, has two roles, holds no number; ids are missing or double; no feature is left
    """
    notes = list(frame.notes)
    for name, role in _named(roles):
        require_column(name, frame.columns, frame.where, role)
    if isinstance(roles.na_values, Mapping):
        require_known(roles.na_values, frame.columns, "column of na_values")
    first_role: dict[str, str] = {}
    for name, role in _named(roles):
        if name in first_role and {role, first_role[name]} != {"a column to drop", "the id"}:
            raise DataError(f"{frame.where}: column {name!r} is named as {first_role[name]} and as {role}")
        first_role[name] = role
    id_column = roles.id
    if id_column is None:
        id_column = next(
            (c for c in frame.columns if c.strip().lower() in ID_NAMES and c not in first_role and _unique(frame.columns[c])), None
        )
        if id_column is not None:
            notes.append(f"column {id_column!r} was taken as the row id")
    ids = tuple(str(i) for i in range(frame.n)) if id_column is None else _ids(frame, id_column)
    others = [c for c in frame.columns if c not in (roles.label, id_column, *roles.drop, *roles.aside)]
    columns: dict[str, Cells] = {}
    errors: dict[int, str] = {}
    if roles.numeric is not None or roles.categorical is not None:
        numeric, categorical = list(roles.numeric or ()), list(roles.categorical or ())
        left = [c for c in others if c not in numeric and c not in categorical]
        if left:
            notes.append(f"columns in no list were left out: {', '.join(left)}")
    else:
        numeric, categorical, said = _infer(frame, others, roles)
        notes += said
    for name in numeric:
        values, bad = frame.columns[name].as_numbers(roles.na(name))
        if frame.n and len(bad) == frame.n:
            raise DataError(
                f"{frame.where}: column {name!r} holds no numbers ({bad[min(bad)]!r} in row {min(bad)}): list it as categorical, or drop it"
            )
        for row, text in bad.items():
            errors.setdefault(row, f"column {name!r} holds {text!r}, which is no number")
        columns[name] = Cells(values=values)
    for name in categorical:
        columns[name] = _coded(frame.columns[name].as_texts(roles.na(name)))
    if not columns:
        raise DataError(f"{frame.where} has no feature columns left: {', '.join(frame.columns)} are label, id, dropped or unusable")
    order = {name: i for i, name in enumerate(frame.columns)}
    columns = {name: columns[name] for name in sorted(columns, key=order.__getitem__)}
    for name, cells in columns.items():
        share = _missing_share(cells)
        if share >= 0.5:
            notes.append(f"column {name!r} is missing in {share:.0%} of the rows")
    return TableSamples(columns, ids, errors, caps), notes


def _named(roles: Roles) -> list[tuple[str, str]]:
    out = [] if roles.label is None else [(roles.label, "the label")]
    out += [(c, "numeric") for c in roles.numeric or ()] + [(c, "categorical") for c in roles.categorical or ()]
    out += [(c, "a column to drop") for c in roles.drop]
    return out if roles.id is None else [*out, (roles.id, "the id")]


def _unique(cells: Cells) -> bool:
    texts = cells.as_texts(())
    return all(t is not None for t in texts) and len(set(texts)) == len(texts)


def _ids(frame: Frame, column: str) -> tuple[str, ...]:
    texts = frame.columns[column].as_texts(("",)).tolist()
    seen: dict[str, int] = {}
    for row, text in enumerate(texts):
        if text is None:
            raise DataError(f"{frame.where}: row {row} has no id in column {column!r}")
        if text in seen:
            raise DataError(f"{frame.where}: id {text!r} stands in rows {seen[text]} and {row}: ids must be unique")
        seen[text] = row
    return tuple(texts)


def _infer(frame: Frame, names: Sequence[str], roles: Roles) -> tuple[list[str], list[str], list[str]]:
    numeric, categorical, left, flipped, notes = [], [], [], [], []
    for name in names:
        cells = frame.columns[name]
        texts = cells.as_texts(roles.na(name))
        present = int(sum(t is not None for t in texts))
        _, bad = cells.as_numbers(roles.na(name))
        if present == 0 or len(bad) <= (1 - MOSTLY_NUMBERS) * present:
            numeric.append(name)
            if bad:
                flipped.append(f"{name} ({len(bad)} cells are not)")
            elif cells.codes is not None and present and frame.where.endswith(("DataFrame", ".parquet", ".pq")):
                flipped.append(f"{name} (kept as text)")
            continue
        distinct = len({t for t in texts if t is not None})
        if distinct > MANY_TEXTS and distinct > 0.5 * present:
            left.append(name)
        else:
            categorical.append(name)
    notes.append(f"column roles were inferred: numeric {', '.join(numeric) or 'none'}; categorical {', '.join(categorical) or 'none'}")
    if flipped:
        notes.append(f"taken as numbers: {', '.join(flipped)}")
    if left:
        notes.append(f"left out as free text or ids: {', '.join(left)}")
    return numeric, categorical, notes


def _coded(texts: NDArray[np.object_]) -> Cells:
    names = sorted({t for t in texts if t is not None})
    place: dict[str | None, int] = {name: i for i, name in enumerate(names)}
    place[None] = -1
    return Cells(codes=np.fromiter((place[t] for t in texts), dtype=np.int32, count=len(texts)), texts=tuple(names))


def _missing_share(cells: Cells) -> float:
    if cells.values is not None:
        return float(np.isnan(cells.values).mean())
    assert cells.codes is not None
    return float((cells.codes < 0).mean())


# ---------------------------------------------------------------- encoding


def fit_encoding(
    data: Any,  # Any: a Domain, TableSamples or a pandas DataFrame
    *,
    rows: NDArray[np.int64] | None = None,
    numeric: Sequence[str] | None = None,
    categorical: Sequence[str] | None = None,
    categorical_as: Literal["onehot", "embedding"] = "onehot",
) -> TableEncoding:
    """The encoding that these rows teach: mean, deviation and median of numeric columns, sorted categories of the others.

    Parameters
    ----------
    data : a Domain or its samples, or a DataFrame (features only)
    rows : row numbers to learn from (the training split); None: all
    numeric, categorical : columns to use, None: those of the samples

    Raises
    ------
    DataError : no rows, a column that is not there, more than 1000 categories in one column
    """
    samples = getattr(data, "samples", data)
    while (whole := getattr(samples, "whole", None)) is not None:  # a subset of a domain: the rows of the table behind it
        rows, samples = samples.rows if rows is None else samples.rows[np.asarray(rows, dtype=np.int64)], whole
    if not isinstance(samples, TableSamples):
        if not hasattr(data, "iloc"):
            raise DataError(f"an encoding is fitted on a table, not on {type(data).__name__}")
        from tl_audit.modality.cells import frame_of

        samples, _ = table_samples(frame_of(data), Roles(numeric=numeric, categorical=categorical), Caps())
    chosen_numeric = samples.numeric if numeric is None and categorical is None else tuple(numeric or ())
    chosen_categorical = samples.categorical if numeric is None and categorical is None else tuple(categorical or ())
    batch = samples.read(np.arange(len(samples)) if rows is None else np.asarray(rows, dtype=np.int64))
    table = rows_of(batch.items).take(batch.readable)
    if table.n == 0:
        raise DataError("an encoding needs at least one readable row")
    for name in (*chosen_numeric, *chosen_categorical):
        require_column(name, table.columns, "the table", "a feature")
    numbers, kinds = [], []
    for name in chosen_numeric:
        values, _ = _numbers(table.columns[name])
        finite = values[np.isfinite(values)]
        mean, std, fill = (float(finite.mean()), float(finite.std()), float(np.median(finite))) if finite.size else (0.0, 1.0, 0.0)
        numbers.append(
            NumericColumn(name=name, mean=mean, std=std if std > 0 else 1.0, fill=fill, missing_indicator=bool(np.isnan(values).any()))
        )
    for name in chosen_categorical:
        found = sorted({t for t in _texts(table.columns[name]) if t is not None})
        if len(found) > MOST_CATEGORIES:
            raise DataError(f"column {name!r} has {len(found)} categories: drop it, or list it as numeric (at most {MOST_CATEGORIES})")
        kinds.append(CategoricalColumn(name=name, categories=tuple(found)))
    return TableEncoding(numeric=tuple(numbers), categorical=tuple(kinds), categorical_as=categorical_as)


def _numbers(values: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A column as numbers (NaN missing) and which cells are text that states no number."""
    if values.dtype.kind in "iuf":
        return values.astype(np.float64), np.zeros(len(values), dtype=bool)
    numbers = np.full(len(values), np.nan)
    wrong = np.zeros(len(values), dtype=bool)
    for i, text in enumerate(values):
        if text is None:
            continue
        number = text_number(str(text))
        wrong[i] = number is None
        numbers[i] = np.nan if number is None else number
    return numbers, wrong


def _texts(values: NDArray[Any]) -> NDArray[np.object_]:
    """A column as canonical texts, None where missing."""
    if values.dtype.kind in "iuf":
        return Cells(values=values.astype(np.float64)).as_texts(())
    return np.asarray(values, dtype=object)


def encode_rows(table: Rows, spec: TableEncoding) -> NDArray[np.float32]:
    """(B, width) float32. A column that the table lacks is missing in every row; text where a number belongs becomes NaN (counted later)."""
    out = np.zeros((table.n, spec.width), dtype=np.float64)
    slots = spec.slots()
    nothing = np.full(table.n, None, dtype=object)
    for column in spec.numeric:
        start, stop = slots[column.name]
        values, wrong = _numbers(table.columns.get(column.name, nothing))
        missing = np.isnan(values) & ~wrong
        out[:, start] = (np.where(missing, column.fill, values) - column.mean) / column.std
        if stop - start == 2:
            out[:, start + 1] = missing
    for cat in spec.categorical:
        start, stop = slots[cat.name]
        place: dict[str | None, int] = {name: i for i, name in enumerate(cat.categories)}
        unknown = len(cat.categories)
        texts = _texts(table.columns.get(cat.name, nothing))
        codes = np.fromiter((place.get(t, unknown) for t in texts), dtype=np.int64, count=table.n)
        out[np.arange(table.n), start + codes] = 1.0
    with np.errstate(over="ignore"):
        return out.astype(np.float32)


# ---------------------------------------------------------------- columns as players (also of 1-D tensors)


def column_slots(width: int, spec: InputSpec | None, names: Sequence[str] | None = None) -> dict[str, tuple[int, int]]:
    """Column name -> [start, stop) of an input vector: those of the encoding, else one column per entry."""
    if isinstance(spec, TableEncoding):
        return spec.slots()
    return {name: (i, i + 1) for i, name in enumerate(names if names is not None else [f"f{i}" for i in range(width)])}


COLUMN_SEGMENTATIONS = ("columns",)
COLUMN_NEIGHBOURHOOD = Neighbourhood("euclidean", 0.75)
LONG_RUN = 16  # rows of one sample after another
COLUMN_MASKS: tuple[MaskMethod, ...] = ("mean", "zero", "marginal", "conditional")


def column_players(inputs: torch.Tensor, slots: Mapping[str, tuple[int, int]], segmentation: str | None = None) -> Players:
    require_known([] if segmentation is None else [segmentation], COLUMN_SEGMENTATIONS, "segmentation of columns")
    width = inputs.shape[1]
    assignment = torch.zeros(width, dtype=torch.int64)
    for player, (start, stop) in enumerate(slots.values()):
        assignment[start:stop] = player
    n = len(inputs)
    return Players(assignment.expand(n, width).clone(), np.full(n, len(slots), dtype=np.int64), tuple(slots), "columns")


def removed_entries(players: Players, keep: NDArray[np.bool_], index: NDArray[np.int64]) -> torch.Tensor:
    """(R, *spatial) bool: entries whose player is removed in row r."""
    assignment = players.assignment
    index = np.asarray(index)
    gone = torch.as_tensor(~np.asarray(keep, dtype=bool), device=assignment.device)
    starts = np.flatnonzero(np.r_[True, index[1:] != index[:-1]])
    if not len(index) or LONG_RUN * len(starts) > len(index):
        rows = assignment[torch.as_tensor(index, device=assignment.device)]
        return torch.gather(gone, 1, rows.flatten(1)).reshape(rows.shape)
    # rows of one sample lie together: looking up a run needs no copy of its assignment for every row, which takes as long again
    out = torch.empty((len(index), *assignment.shape[1:]), dtype=torch.bool, device=assignment.device)
    for start, stop in zip(starts, np.r_[starts[1:], len(index)], strict=True):
        parts = assignment[int(index[start])].reshape(-1)
        out[start:stop] = gone[start:stop].index_select(1, parts).reshape(out[start:stop].shape)
    return out


def column_filler(inputs: torch.Tensor, method: MaskMethod, baseline: torch.Tensor) -> torch.Tensor | None:
    """(N, D) what fills removed columns of each row, None where it is drawn from the background."""
    if method == "mean":
        return baseline
    if method == "zero":
        return torch.zeros_like(inputs)
    require_known([method], COLUMN_MASKS, "masking of columns")
    return None


def mask_columns(
    inputs: torch.Tensor,
    players: Players,
    keep: NDArray[np.bool_],
    index: NDArray[np.int64],
    method: MaskMethod,
    baseline: torch.Tensor,
    background: torch.Tensor | None,
    key: Key,
) -> torch.Tensor:
    """Rows with some columns removed.

    "marginal": every removed column from a background row of its own, all its slots together, whatever stays.
    "conditional": all removed columns from one background row that is near in the columns that stay, see ``near_rows``.
    """
    picked = torch.as_tensor(index, device=inputs.device)
    rows = inputs[picked]
    gone = removed_entries(players, keep, index).to(inputs.device)
    filler = column_filler(inputs, method, baseline)
    if filler is not None:
        return torch.where(gone, filler[picked], rows)
    if background is None or not len(background):
        raise DataError(f'masking with "{method}" draws needs a background (some rows of the data)')
    if method == "conditional":
        return torch.where(gone, background.to(inputs)[near_rows(inputs, players, keep, index, background, key)], rows)
    draws = drawn_rows(key, "marginal", len(background), keep, index, each=True)
    columns = players.assignment[0].cpu().numpy()
    source = torch.as_tensor(draws[:, columns], device=inputs.device)
    return torch.where(gone, background.to(inputs)[source, torch.arange(inputs.shape[1], device=inputs.device)], rows)


def near_rows(
    inputs: torch.Tensor,
    players: Players,
    keep: NDArray[np.bool_],
    index: NDArray[np.int64],
    background: torch.Tensor,
    key: Key,
) -> torch.Tensor:
    """(R,) a background row for each masked row, drawn among those that are near it in the columns that stay.

    The distance of two rows is the root of the mean, over the columns that stay, of their squared difference divided by the column's variance
    in the background; the slots of a column count together, so that a category is the same or not. Of M background rows the √M nearest
    are candidates (with all that are as near as the last of them: with nothing left, every row), drawn with the weights of a
    normal kernel whose width is the candidates' root mean squared distance.

    References
    ----------
    Aas, Jullum and Løland (2021). Explaining individual predictions when features are dependent: more accurate approximations to Shapley
    values. doi:10.1016/j.artint.2021.103502 (the empirical approach; there with Mahalanobis distances and one width for all)
    """
    known = background.detach().to(inputs.device).double()
    stays = torch.as_tensor(np.asarray(keep, dtype=bool), device=inputs.device).double()
    parts = players.assignment[0].to(inputs.device)
    count = stays.shape[1]

    def by_column(slots: torch.Tensor) -> torch.Tensor:
        return slots.new_zeros((*slots.shape[:-1], count)).index_add_(slots.ndim - 1, parts, slots)

    variance = by_column(known.var(dim=0, correction=0))
    scale = torch.where(
        variance > 0, 1.0 / variance.clamp(min=torch.finfo(torch.float64).tiny), 0.0
    )  # a constant column tells nobody apart
    squares = torch.empty((len(index), len(known)), dtype=torch.float64, device=inputs.device)
    at = np.asarray(index)
    for sample in np.unique(at):
        mine = torch.as_tensor(np.flatnonzero(at == sample), device=inputs.device)
        apart = by_column((inputs[int(sample)].detach().double() - known) ** 2) * scale
        squares[mine] = stays[mine] @ apart.T
    squares /= stays.sum(dim=1, keepdim=True).clamp(min=1)
    nearest = max(1, math.ceil(math.sqrt(len(known))))
    # equal up to rounding (a matrix product rounds by its shape) is as near
    candidate = squares <= squares.kthvalue(nearest, dim=1, keepdim=True).values * (1 + 1e-9)
    width = (squares * candidate).sum(dim=1, keepdim=True) / candidate.sum(dim=1, keepdim=True)
    weight = torch.exp(-squares / (2 * width.clamp(min=torch.finfo(torch.float64).tiny))) * candidate
    reached = weight.cumsum(dim=1)
    u = (
        torch.as_tensor((drawn_rows(key, "conditional", 2**53, keep, index, each=False) + 0.5) / 2**53, device=inputs.device)[:, None]
        * reached[:, -1:]
    )
    return torch.searchsorted(reached, u, right=True)[:, 0].clamp(max=len(known) - 1)


def column_bars(values: NDArray[np.float64], players: Players, row: int) -> tuple[Bar, ...]:
    """Bars of one row's attribution, largest first. ``values`` (columns,), (N, columns) or per input entry, which are summed by column."""
    mine = np.asarray(values, dtype=np.float64)
    mine = mine[row] if mine.ndim == 2 else mine
    count = int(players.count[row])
    if len(mine) != count:
        mine = np.bincount(players.assignment[row].reshape(-1).cpu().numpy(), weights=mine, minlength=count).astype(np.float64)
    names = players.names or tuple(f"part {i}" for i in range(count))
    order = sorted(range(count), key=lambda i: (-abs(mine[i]) if np.isfinite(mine[i]) else np.inf, names[i]))
    return tuple(
        Bar(label=names[i], value=float(mine[i])) if np.isfinite(mine[i]) else Bar(label=names[i], value=None, note="not finite")
        for i in order
    )


# ---------------------------------------------------------------- the modality


@dataclass(frozen=True)
class Tabular:
    """Tables."""

    kind: str = "tabular"
    default_mask: MaskMethod = "marginal"

    def content_hashes(self, batch: RawBatch) -> list[str | None]:
        """Of the cells that are there, by column name: neither order, nor a column that is wholly missing, changes it."""
        table = rows_of(batch.items)
        names = sorted(table.columns)
        texts = [_texts(table.columns[name]) for name in names]
        out: list[str | None] = []
        for i, readable in enumerate(batch.readable):
            if not readable:
                out.append(None)
                continue
            cells = "\x1e".join(f"{name}\x1f{column[i]}" for name, column in zip(names, texts, strict=True) if column[i] is not None)
            out.append(hashlib.sha256(cells.encode("utf-8", "surrogatepass")).hexdigest())
        return out

    def sketches(self, batch: RawBatch) -> NDArray[np.uint8] | None:
        return None

    def cell_columns(self, properties: Mapping[str, NDArray[Any]]) -> tuple[str, ...] | None:
        return tuple(name for name in properties if name != MISSING_SHARE)

    def properties(self, batch: RawBatch) -> dict[str, NDArray[Any]]:
        """Every column, and ``missing_share`` of each row."""
        table = rows_of(batch.items)
        readable = batch.readable
        out: dict[str, NDArray[Any]] = {}
        missing = np.zeros(table.n)
        for name, values in table.columns.items():
            if values.dtype.kind in "iuf":
                out[name] = np.where(readable, values.astype(np.float64), np.nan)
                missing += np.isnan(values)
            else:
                out[name] = np.where(readable, values, np.array(None, dtype=object))
                missing += np.array([v is None for v in values], dtype=float)
        out[MISSING_SHARE] = np.where(readable, missing / max(1, len(table.columns)), np.nan)
        return out

    def encode(self, batch: RawBatch, spec: InputSpec | None) -> torch.Tensor:
        table = rows_of(batch.items).take(batch.readable)
        if isinstance(spec, TableEncoding):
            return torch.from_numpy(encode_rows(table, spec))
        if isinstance(spec, Preprocessing):
            raise DataError("this model takes images, the samples are table rows")
        columns = []
        for name, values in table.columns.items():
            numbers, wrong = _numbers(values)
            if wrong.any():
                raise DataError(
                    f"column {name!r} holds text ({values[int(np.argmax(wrong))]!r}) and the model has no encoding: "
                    "give preprocessing=, made of training rows by tl_audit.modality.fit_encoding"
                )
            columns.append(numbers)
        return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))

    def spec_notes(self, samples: Samples, spec: InputSpec | None) -> tuple[str, ...]:
        """Columns that the encoding wants and the table lacks (or the other way round), and unseen categories."""
        if not isinstance(spec, TableEncoding) or not isinstance(samples, TableSamples):
            return ()
        notes = []
        absent = [c for c in spec.columns if c not in samples.columns]
        for name in absent:
            near = suggest(name, [c for c in samples.columns if c not in spec.columns])
            notes.append(f"column {name!r} of the encoding is not in the table{near}: it counts as missing in every row")
        unused = [c for c in samples.columns if c not in spec.columns]
        if unused:
            notes.append(f"columns that the encoding does not use: {', '.join(unused)}")
        for cat in spec.categorical:
            if cat.name in samples.columns:
                texts = samples.columns[cat.name].as_texts(())
                unseen = [t for t in texts if t is not None and t not in cat.categories]
                if unseen:
                    kinds = sorted(set(unseen))
                    listed = ", ".join(kinds[:5]) + (", ..." if len(kinds) > 5 else "")
                    notes.append(
                        f"column {cat.name!r} holds categories the encoding never saw ({listed}) in {len(unseen)} rows: read as unknown"
                    )
        return tuple(notes)

    @property
    def segmentations(self) -> tuple[str, ...]:
        return COLUMN_SEGMENTATIONS

    @property
    def masks(self) -> tuple[MaskMethod, ...]:
        return COLUMN_MASKS

    def neighbourhood(self, players: Players) -> Neighbourhood:
        return COLUMN_NEIGHBOURHOOD

    def players(
        self, inputs: torch.Tensor, spec: InputSpec | None, *, most: int = 49, seed: int = 0, segmentation: str | None = None
    ) -> Players:
        """One player per original column, whatever ``most`` says."""
        return column_players(inputs, column_slots(inputs.shape[1], spec), segmentation)

    def filler(
        self, inputs: torch.Tensor, spec: InputSpec | None, method: MaskMethod, background: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        return column_filler(inputs, method, self.baseline(inputs, spec, background))

    def mask(
        self,
        inputs: torch.Tensor,
        players: Players,
        keep: NDArray[np.bool_],
        *,
        index: NDArray[np.int64],
        spec: InputSpec | None,
        method: MaskMethod,
        background: torch.Tensor | None = None,
        key: Key = (),
    ) -> torch.Tensor:
        return mask_columns(inputs, players, keep, index, method, self.baseline(inputs, spec, background), background, key)

    def baseline(self, inputs: torch.Tensor, spec: InputSpec | None, background: torch.Tensor | None) -> torch.Tensor:
        """Column means of the background; without one the mean of the data the encoding was fitted on, and category unknown."""
        if background is not None:
            return background.to(inputs).mean(dim=0, keepdim=True).expand_as(inputs).clone()
        out = torch.zeros_like(inputs)
        if isinstance(spec, TableEncoding):
            slots = spec.slots()
            for cat in spec.categorical:
                out[:, slots[cat.name][1] - 1] = 1.0
        return out

    def edges(self, inputs: torch.Tensor) -> NDArray[np.float64] | None:
        return None

    def apply_cue(self, batch: RawBatch, cue: Cue, *, placebo: bool, key: tuple[Any, ...]) -> RawBatch:
        """``set_column``: one column set to ``value`` in every row; the placebo permutes the column's own values inside the batch."""
        require_known([cue.kind], self.cue_kinds(), "cue of tables")
        require_known(cue.settings, ("column", "value"), f"setting of cue {cue.name!r}")
        if "column" not in cue.settings or "value" not in cue.settings:
            raise DataError(f"cue {cue.name!r} needs column and value")
        table = rows_of(batch.items)
        column = str(cue.settings["column"])
        require_column(column, table.columns, "the table", f"the column of cue {cue.name!r}")
        values = table.columns[column].copy()
        if placebo:
            order = np.argsort([int(r) for r in batch.rows], kind="stable")
            values[order] = values[order][generator(*key, cue.name, "placebo").permutation(table.n)]
        elif values.dtype.kind in "iuf":
            number = text_number(str(cue.settings["value"]))
            if number is None:
                raise DataError(f"cue {cue.name!r} sets the numeric column {column!r} to {cue.settings['value']!r}")
            values[:] = number
        else:
            value = cue.settings["value"]
            values[:] = value if isinstance(value, str) else number_text(float(value))
        return RawBatch(batch.rows, Rows({**table.columns, column: values}, table.n), batch.errors, batch.facts)

    def cue_kinds(self) -> tuple[str, ...]:
        return ("set_column",)

    def corruption_kinds(self) -> tuple[str, ...]:
        return tuple(TABLE_KINDS)

    def corruption_scales(self, samples: Samples, rows: NDArray[np.int64]) -> Mapping[str, Any]:
        """Interquartile range of each numeric column, categories seen in each other one."""
        batch = samples.read(rows)
        return column_scales(rows_of(batch.items).take(batch.readable).columns)

    def corrupt(self, batch: RawBatch, kind: str, severity: int, *, keys: Sequence[tuple[Any, ...]], scales: Mapping[str, Any]) -> RawBatch:
        """The rows disturbed, before they are encoded."""
        table = rows_of(batch.items)
        return RawBatch(batch.rows, Rows(corrupt_columns(table.columns, kind, severity, keys, scales), table.n), batch.errors, batch.facts)

    def noise(self, samples: Samples, rows: NDArray[np.int64], spec: InputSpec | None, *, keys: Sequence[tuple[Any, ...]]) -> torch.Tensor:
        """Rows whose cells know nothing of each other, before they are encoded."""
        batch = samples.read(rows)
        table = rows_of(batch.items).take(batch.readable)
        names = sorted(table.columns)
        draws = np.array([generator(*key, "noise").random(len(names)) for key in keys]).reshape(len(keys), len(names))
        columns: dict[str, NDArray[Any]] = {}
        for at, name in enumerate(names):
            values = table.columns[name]
            if values.dtype.kind in "iuf":
                known = values[np.isfinite(values)]
                low, high = (known.min(), known.max()) if known.size else (np.nan, np.nan)
                columns[name] = low + (high - low) * draws[:, at]
            else:
                choices = np.array([*sorted({str(v) for v in values if v is not None}), None], dtype=object)
                columns[name] = choices[(draws[:, at] * max(1, len(choices) - 1)).astype(np.int64)]
        made = Rows({name: columns[name] for name in table.columns}, len(keys))
        return self.encode(RawBatch(np.arange(len(keys)), made, [None] * len(keys)), spec)

    def picture(
        self, inputs_row: torch.Tensor, spec: InputSpec | None, *, title: str, side: int = 160, redacted: bool = False
    ) -> Picture | None:
        return None

    def map_picture(
        self,
        inputs_row: torch.Tensor,
        values: NDArray[np.float64],
        spec: InputSpec | None,
        *,
        title: str,
        signed: bool,
        side: int = 160,
        redacted: bool = False,
        scale: tuple[float, float] | None = None,
        outlines: NDArray[np.int64] | None = None,
    ) -> Picture | None:
        return None

    def map_bars(self, values: NDArray[np.float64], players: Players, row: int) -> tuple[Bar, ...]:
        return column_bars(values, players, row)


TABULAR: Modality = Tabular()
