"""Cells of tables and metadata: one canonical text per value, so that files of different make agree; columns in little memory."""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_audit.errors import DataError
from tl_audit.modality.base import Caps

NA_TEXTS: frozenset[str] = frozenset(
    ("", "na", "n/a", "nan", "null", "none", "?", "#n/a", "<na>")
)  # compared in lower case; "?" is how the UCI files write it
_TRAILING_ZEROS = re.compile(r"^-?\d+\.0+$")
CHUNK_ROWS = 50_000
TABLE_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet", ".pq")


def number_text(value: float) -> str:
    """A number as text: whole ones without a point, so that 1.0 and 1 are one category."""
    if math.isfinite(value) and value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return repr(float(value))


def cell_text(value: object) -> str | None:
    """Any cell as canonical text; None for None, NaN and NA-like objects. Blank text stays "" (the caller knows its NA texts)."""
    if value is None:
        return None
    if isinstance(value, str):
        text = value.strip()
        return text.split(".", 1)[0] if _TRAILING_ZEROS.match(text) else text
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else number_text(float(value))
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    if value != value or str(value) in ("<NA>", "NaT"):
        return None
    return str(value).strip()


def text_number(text: str) -> float | None:
    """The number that a text states, None where it states none. Underscores, which Python would take, are not numbers in files."""
    if "_" in text:
        return None
    try:
        return float(text)
    except ValueError:
        return None


@dataclass(frozen=True)
class Cells:
    """One column. Either ``values`` (numbers, NaN where missing) or ``codes`` into ``texts`` (-1 where there is no cell)."""

    values: NDArray[np.float64] | None = None
    codes: NDArray[np.int32] | None = None
    texts: tuple[str, ...] = ()

    def __len__(self) -> int:
        held = self.values if self.values is not None else self.codes
        return 0 if held is None else len(held)

    def as_texts(self, na: Collection[str] = NA_TEXTS) -> NDArray[np.object_]:
        """(N,) canonical texts, None where missing: no cell, NaN, or a text of ``na`` (lower case)."""
        if self.codes is not None:
            table = np.array([None if t.lower() in na else t for t in self.texts] + [None], dtype=object)
            return np.asarray(table[self.codes], dtype=object)
        assert self.values is not None
        unique, inverse = np.unique(self.values, return_inverse=True)
        names = [None if math.isnan(v) else number_text(float(v)) for v in unique]
        table = np.array([None if t is None or t.lower() in na else t for t in names] + [None], dtype=object)
        return np.asarray(table[inverse], dtype=object)

    def as_numbers(self, na: Collection[str] = NA_TEXTS) -> tuple[NDArray[np.float64], dict[int, str]]:
        """(N,) numbers, NaN where missing, and row -> text of the cells that are neither missing nor a number."""
        if self.codes is None:
            assert self.values is not None
            given = [n for t in na if (n := text_number(t)) is not None and not math.isnan(n)]
            if not given:
                return self.values, {}
            return np.where(np.isin(self.values, given), np.nan, self.values), {}
        parsed = [math.nan if t.lower() in na else text_number(t) for t in self.texts]
        numbers = np.array([math.nan if p is None else p for p in parsed] + [math.nan])
        wrong = np.array([p is None for p in parsed] + [False])
        bad_rows = np.flatnonzero(wrong[self.codes])
        return numbers[self.codes], {int(r): self.texts[int(self.codes[r])] for r in bad_rows}


def cells_of(values: Sequence[object] | NDArray[Any]) -> Cells:
    """A column from Python or NumPy values: numbers where the type is a number, else texts."""
    array = np.asarray(values)
    if array.dtype.kind in "iuf":
        return Cells(values=array.astype(np.float64))
    known: dict[str, int] = {}
    codes = np.empty(len(array), dtype=np.int32)
    for i, value in enumerate(np.asarray(values, dtype=object)):
        text = cell_text(value)
        codes[i] = -1 if text is None else known.setdefault(text, len(known))
    return Cells(codes=codes, texts=tuple(known))


@dataclass(frozen=True)
class Frame:
    """A table in memory: column name -> Cells, all of one length, in file order."""

    columns: Mapping[str, Cells]
    n: int
    where: str
    "what messages call it"
    notes: tuple[str, ...] = ()


class _Builder:
    """Collects one column over chunks. Texts are kept once each."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}
        self.parts: list[NDArray[np.int32]] = []
        self.numbers: list[NDArray[np.float64]] = []

    def add_texts(self, codes: NDArray[np.int64], uniques: Sequence[object]) -> None:
        table = np.full(len(uniques) + 1, -1, dtype=np.int32)
        for i, value in enumerate(uniques):
            text = cell_text(value)
            if text is not None:
                table[i] = self.known.setdefault(text, len(self.known))
        self.parts.append(table[codes])

    def cells(self) -> Cells:
        if self.numbers:
            return Cells(values=np.concatenate(self.numbers))
        codes = np.concatenate(self.parts) if self.parts else np.zeros(0, dtype=np.int32)
        return Cells(codes=codes, texts=tuple(self.known))


def read_table(path: Path, caps: Caps) -> Frame:
    """A CSV (also .tsv, .gz) or Parquet file as a Frame, in chunks, within the caps.

    Raises
    ------
    DataError : not there, not UTF-8, doubled column names, no rows, lines of different lengths, more rows or bytes than the caps
    """
    _require_content(path)
    if path.name.lower().endswith((".parquet", ".pq")):
        return _read_parquet(path, caps)
    return _read_csv(path, caps)


def table_columns(path: Path) -> list[str]:
    """Column names of a table file, from its header alone. Errors as in ``read_table``."""
    import csv

    _require_content(path)
    try:
        if path.name.lower().endswith((".parquet", ".pq")):
            import pyarrow.parquet as parquet

            return [str(name) for name in parquet.read_schema(path).names]
        return _csv_header(path)[1]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    except (OSError, ValueError, EOFError, csv.Error) as error:  # pyarrow's errors are ValueErrors and OSErrors
        raise DataError(f"{path} cannot be read as a table: {str(error).strip()[:200]}") from None


def _require_content(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes)")


def _csv_header(path: Path) -> tuple[str, list[str]]:
    """The delimiter and the column names in the first line."""
    import csv

    opener = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        first = file.readline(1 << 20)
    delimiter = max(",;\t|", key=first.count) if any(d in first for d in ",;\t|") else ","
    header = next(csv.reader([first], delimiter=delimiter, skipinitialspace=True), [])
    return delimiter, [h.strip() for h in header]


def _read_csv(path: Path, caps: Caps) -> Frame:
    import csv

    import pandas as pd

    try:
        delimiter, names = _csv_header(path)
        doubled = sorted({n for n in names if names.count(n) > 1})
        if doubled:
            raise DataError(f"{path} has two columns named {doubled[0]!r}: rename one")
        builders = {name: _Builder() for name in names}
        n, size = 0, 0
        with pd.read_csv(
            path, dtype=str, keep_default_na=False, na_filter=False, chunksize=CHUNK_ROWS, sep=delimiter, skipinitialspace=True,
            encoding="utf-8-sig", names=names, header=0, index_col=False, low_memory=False, on_bad_lines="error",
        ) as chunks:  # fmt: skip
            for chunk in chunks:
                n += len(chunk)
                size += int(chunk.memory_usage(index=False, deep=True).sum())
                _require_caps(path, n, size, caps)
                for name in names:
                    codes, uniques = pd.factorize(chunk[name])
                    builders[name].add_texts(np.asarray(codes, dtype=np.int64), list(uniques))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, gzip.BadGzipFile, EOFError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table: {str(error).strip()}") from None
    if n == 0:
        raise DataError(f"{path} has a header and no rows")
    return Frame({name: b.cells() for name, b in builders.items()}, n, str(path))


def _read_parquet(path: Path, caps: Caps) -> Frame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        meta = pq.read_metadata(path)
        # runs of one value cost nothing in the file: count what they become in memory, before reading any
        size = max(sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups)), meta.num_rows * meta.num_columns * 4)
        _require_caps(path, meta.num_rows, size, caps)
        schema = pq.read_schema(path)
        doubled = sorted({n for n in schema.names if schema.names.count(n) > 1})
        if doubled:
            raise DataError(f"{path} has two columns named {doubled[0]!r}: rename one")
        nested = [f.name for f in schema if pa.types.is_nested(f.type)]
        texts = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
        names = [name for name in schema.names if name not in nested and name != "__index_level_0__"]
        builders = {name: _Builder() for name in names}
        size = 0
        # dictionary-encoded texts stay so: a file of 23 KB cannot become 200 MB
        file = pq.ParquetFile(path, read_dictionary=texts)
        for batch in file.iter_batches(batch_size=CHUNK_ROWS, columns=names):
            size += batch.nbytes
            _require_caps(path, 0, size, caps)
            for name in names:
                _add_arrow(builders[name], batch.column(batch.schema.get_field_index(name)))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from None
    if meta.num_rows == 0:
        raise DataError(f"{path} has no rows")
    notes = (f"nested columns left out: {', '.join(nested)}",) if nested else ()
    return Frame({name: b.cells() for name, b in builders.items()}, meta.num_rows, str(path), notes)


def _add_arrow(builder: _Builder, column: Any) -> None:  # Any: a pyarrow array, which has no types here
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    whole_too_large = pa.types.is_integer(kind) and len(column) > column.null_count and pc.max(pc.abs_checked(column)).as_py() >= 2**53
    if (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)) and not whole_too_large and not builder.parts:
        builder.numbers.append(np.asarray(pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64))
        return
    if builder.numbers:  # an id beyond 2**53 after smaller ones: what was read as numbers becomes text
        for part in builder.numbers:
            unique, inverse = np.unique(part, return_inverse=True)
            builder.add_texts(inverse.astype(np.int64), [float(u) for u in unique])
        builder.numbers.clear()
    coded = column if pa.types.is_dictionary(kind) else column.dictionary_encode()
    codes = pc.fill_null(coded.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    builder.add_texts(np.asarray(codes, dtype=np.int64), coded.dictionary.to_pylist())


def frame_of(data: Any, where: str = "the table") -> Frame:  # Any: a pandas DataFrame
    """A pandas DataFrame as a Frame."""
    names = [str(c) for c in data.columns]
    doubled = sorted({n for n in names if names.count(n) > 1})
    if doubled:
        raise DataError(f"{where} has two columns named {doubled[0]!r}: rename one")
    if len(data) == 0:
        raise DataError(f"{where} has no rows")
    columns: dict[str, Cells] = {}
    for i, name in enumerate(names):
        series = data.iloc[:, i]
        kind = getattr(series.dtype, "kind", "O")
        if kind in "iuf":
            columns[name] = Cells(values=series.to_numpy(dtype=np.float64, na_value=np.nan))
        else:
            columns[name] = cells_of(series.astype(object).to_numpy(dtype=object))
    return Frame(columns, len(data), where)


def _require_caps(path: Path, rows: int, size: int, caps: Caps) -> None:
    if rows > caps.rows:
        raise DataError(f"{path} has more than {caps.rows:,} rows ({rows:,} so far); raise caps.rows if that is meant")
    if size > caps.bytes:
        raise DataError(f"{path} needs more than {caps.bytes / 2**20:,.0f} MiB in memory; raise caps.bytes if that is meant")
