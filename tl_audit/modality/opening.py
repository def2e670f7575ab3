"""``open_data``: from what a caller or a configuration names to samples, labels, groups and clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_audit.errors import DataError
from tl_audit.modality.annotations import (
    Joined,
    Labels,
    Numbers,
    clean_cluster,
    clean_groups,
    column_values,
    join_metadata,
    key_column,
    one_dimensional,
    resolve_groups,
    resolve_labels,
    resolve_values,
)
from tl_audit.modality.base import Caps, Modality, Regions, Samples
from tl_audit.modality.cells import TABLE_SUFFIXES, Cells, Frame, cells_of, frame_of, read_table
from tl_audit.modality.image import IMAGE, SUFFIXES, ImageArrays, ImageFiles, list_images
from tl_audit.modality.options import caps_of, require_column, require_known, suggest
from tl_audit.modality.periods import Periods, periods_of
from tl_audit.modality.region_files import BOXES, gathered, regions_of
from tl_audit.modality.tabular import TABULAR, Roles, table_samples
from tl_audit.modality.tensors import TENSOR, Tensors, TensorSamples
from tl_audit.records.values import TASKS, Task

MODALITIES: tuple[Modality, ...] = (IMAGE, TABULAR, TENSOR)
_COMMON = ("metadata", "label", "id", "label_map", "positive", "caps", "task", "unit")
_REGIONS = ("regions", "masks", "annotations")
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "image": (*_COMMON, *_REGIONS),
    "tabular": (*_COMMON, "numeric", "categorical", "drop", "na_values"),
    "tensor": (*_COMMON, "names", *_REGIONS),
}
LABEL = "label"


def modality(kind: str) -> Modality:
    """The modality of a kind of data. DataError on an unknown one."""
    for known in MODALITIES:
        if known.kind == kind:
            return known
    kinds = [m.kind for m in MODALITIES]
    raise DataError(f"unknown kind of data {kind!r}{suggest(kind, kinds)}; known: {', '.join(kinds)}")


@dataclass(frozen=True)
class Opened:
    """What ``open_data`` found. Arrays have one entry per sample.

    Attributes
    ----------
    labels : (N,) class names, None entries without a label; None where the data are unlabelled
    classes : names in order; None where neither labels nor classes are known
    notes : what was inferred, left out or joined
    skipped : (file or key, reason) that gave no sample
    regions : boxes or masks of the samples, None where none were given
    task : what a label is: a class name, or (where asked for) a number
    values : (N,) numbers of a regression, NaN entries without one; None where the data are unlabelled or name classes
    unit : of the values, as given
    """

    samples: Samples
    labels: NDArray[np.object_] | None = None
    classes: tuple[str, ...] | None = None
    groups: Mapping[str, NDArray[np.object_]] | None = None
    cluster: NDArray[np.object_] | None = None
    positive: str | None = None
    notes: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    regions: Regions | None = None
    task: Task = "classification"
    values: NDArray[np.float64] | None = None
    unit: str | None = None
    periods: Periods | None = None
    site: NDArray[np.object_] | None = None


@dataclass(frozen=True)
class _Source:
    """Samples with what their place itself says: labels, declared classes, a table of columns."""

    samples: Samples
    labels: NDArray[Any] | None = None
    declared: tuple[str, ...] = ()
    label_order: tuple[str, ...] | None = None
    "class names of a torch data set, where labels are positions in them"
    frame: Frame | None = None
    notes: tuple[str, ...] = ()


def open_data(
    data: Any,  # Any: path, table, arrays, tensors, torch Dataset, Samples
    *,
    kind: str | None = None,
    labels: Any = None,  # Any: a sequence or array of names or numbers
    classes: Sequence[str] | None = None,
    groups: Any = None,  # Any: mapping of values, or list of column names and {column, bins}
    cluster: Any = None,  # Any: values, or a column name
    time: Any = None,  # Any: values, or a column name
    period: str | None = None,
    site: Any = None,  # Any: values, or a column name
    **options: Any,
) -> Opened:
    """Open data of any kind. Nothing is decoded yet.

    Parameters
    ----------
    data : an image folder or file; a table (.csv, .tsv, .csv.gz, .parquet); a DataFrame or mapping of columns; uint8 pictures (N, H, W[, C])
        or a list of PIL pictures, arrays or files; float arrays or tensors (N, ...); a torch Dataset of (x, y); ready ``Samples``
    kind : "image", "tabular", "tensor"; None: found from the data
    labels : (N,) names, or positions in ``classes``; None: those of the data
    groups : {name: values}, or names of columns, or {column = "age", bins = [45, 55]}
    cluster : (N,) ids, or the name of a column
    time, period : (N,) dates, numbers or periods, or the name of a column; "day", "month", "quarter" or "year" to gather dates
    site : (N,) places, or the name of a column
    options : metadata (a CSV or Parquet file, or a DataFrame, joined on file name or id), label (column), id (column to join on, or row id), label_map,
        positive, caps {pixels, rows, bytes, bad_fraction}; of tables numeric, categorical, drop, na_values; of tensors names;
        task ("classification", or "regression": labels are numbers, and no classes are made of them), unit (of such numbers);
        of pictures regions, masks (a folder), annotations (COCO or Pascal VOC), and columns of boxes in the metadata (see ``modality.region_files``)

    Raises
    ------
    DataError : anything that cannot be used, in one sentence that names it; unknown options suggest the nearest known one
    """
    given = {name: value for name, value in options.items() if value is not None}
    kind = kind if kind is not None else _kind_of(data)
    modality(kind)
    require_known(given, OPTIONS[kind], f"option of {kind} data")
    caps = caps_of(given.get("caps"))
    task = _task_of(given, classes)
    label_column = given.get("label")
    if isinstance(data, Mapping) and not hasattr(data, "iloc"):
        import pandas as pd

        data = pd.DataFrame(dict(data))
    if _is_samples(data):
        source = _Source(data)
    elif kind == "image":
        source = _open_images(data, caps)
    elif kind == "tabular":
        source = _open_table(data, given, cluster, time, caps)
    else:
        source = _open_tensors(data, given, caps)
    samples = source.samples
    n = len(samples)
    if n == 0:
        raise DataError("there are no samples")
    _require_unique(samples.ids)
    notes = list(source.notes)
    skipped: list[tuple[str, str]] = []
    frame, join = source.frame, None
    joined = None
    if "metadata" in given:
        joined, said = _join(given["metadata"], samples, given.get("id") if kind != "tabular" else None, caps, kind)
        notes += said
        if frame is not None:
            frame, join = _beside(frame, joined), None
        else:
            frame, join = joined.frame, joined.rows
        file = Path(joined.frame.where).name  # notes go into the record, which must not depend on where the data lie
        skipped += [(name, f"in {file}, but there is no such sample") for name in joined.unmatched]
        without = [samples.ids[i] for i in np.flatnonzero(joined.rows < 0)]
        notes.append(f"{file} was joined on {joined.key!r}: {n - len(without)} of {n} samples have a row")
        if without:
            listed = ", ".join(without[:20]) + (", ..." if len(without) > 20 else "")
            notes.append(f"{len(without)} samples have no row in {file}: {listed}")
        if joined.unmatched:
            listed = ", ".join(joined.unmatched[:20]) + (", ..." if len(joined.unmatched) > 20 else "")
            notes.append(f"{len(joined.unmatched)} rows of {file} have no sample: {listed}")
        if isinstance(samples, ImageFiles):
            columns = {name: column_values(frame, join, name, "metadata") for name in frame.columns}
            samples = ImageFiles(samples.root, samples.ids, samples.caps, columns)
    boxes = None
    if kind != "tabular" and frame is not None and (name := next((c for c in frame.columns if c.strip().lower() == BOXES), None)):
        boxes = column_values(frame, join, name, "boxes")
    regions, said = regions_of(
        samples, given=given.get("regions"), masks=given.get("masks"), annotations=given.get("annotations"),
        column=boxes, column_where="the metadata" if frame is None else Path(frame.where).name,
    )  # fmt: skip
    notes += said
    found, values = Labels(None, None), None
    if task == "regression":
        read = _values(labels, n, source, frame, join, label_column, given.get("na_values"))
        values = read.values
        notes += read.notes
    else:
        found = _labels(labels, n, source, frame, join, label_column, given.get("label_map"), classes, notes)
        notes += found.notes
    group_values = resolve_groups(groups, n, frame, join)
    cluster_values = None
    if isinstance(cluster, str):
        cluster_values = clean_cluster(column_values(frame, join, cluster, "the cluster"), n)
    elif cluster is not None:
        cluster_values = clean_cluster(cluster, n)
    if cluster_values is not None and (alone := int(sum(c is None for c in cluster_values))):
        notes.append(f"{alone} rows have no cluster id: each counts as a cluster of its own")
    periods = None
    if time is not None:
        asked = f"the time column {time!r}" if isinstance(time, str) else "time"
        periods = periods_of(column_values(frame, join, time, "the time") if isinstance(time, str) else time, n, period, asked)
        if gone := int((periods.codes < 0).sum()):
            notes.append(f"{gone} rows have no time: they belong to no period")
    elif period is not None:
        raise DataError(f"period = {period!r}, but no time was given: name its column with time =")
    sites = None
    if site is not None:
        sites = clean_groups(column_values(frame, join, site, "the site") if isinstance(site, str) else site, n, "site")
    positive = given.get("positive")
    if positive is not None:
        positive = str(positive)
        if found.classes is None:
            raise DataError(f"positive = {positive!r}, but there are no classes: give labels or classes")
        if positive not in found.classes:
            raise DataError(
                f"positive = {positive!r} is not among the classes{suggest(positive, found.classes)}: {', '.join(found.classes[:20])}"
            )
    unit = None if given.get("unit") is None else str(given["unit"])
    return Opened(
        samples, found.names, found.classes, group_values, cluster_values, positive, tuple(notes), tuple(skipped), regions, task, values, unit,
        periods=periods, site=sites,
    )  # fmt: skip


def _task_of(given: Mapping[str, Any], classes: Sequence[str] | None) -> Task:
    """What a label is, as asked; never guessed from the labels. DataError on options of the other task."""
    task = str(given.get("task", "classification"))
    if task not in TASKS:
        raise DataError(f"task is {task!r}{suggest(task, TASKS)}: expected one of {', '.join(TASKS)}")
    if task == "classification":
        if "unit" in given:
            raise DataError('unit is of numbers: give task = "regression" as well')
        return "classification"
    for name, there in (("classes", classes is not None), ("positive", "positive" in given), ("label_map", "label_map" in given)):
        if there:
            raise DataError(f'{name} is of a task with classes, and task = "regression" has none: leave {name} out, or leave task out')
    return "regression"


# ---------------------------------------------------------------- which kind


def _is_samples(data: Any) -> bool:
    return hasattr(data, "read") and hasattr(data, "ids") and hasattr(data, "modality")


def _is_image_array(value: Any) -> bool:
    return getattr(value, "dtype", None) is not None and str(value.dtype) in ("uint8", "torch.uint8") and value.ndim in (2, 3)


def _kind_of(data: Any) -> str:
    if _is_samples(data):
        return str(data.modality.kind)
    if isinstance(data, str | Path):
        path = Path(data)
        if not path.exists():
            raise DataError(f"no such file or folder: {path}")
        if path.is_dir() or path.suffix.lower() in SUFFIXES:
            return "image"
        if path.name.lower().endswith(TABLE_SUFFIXES):
            return "tabular"
        raise DataError(f"{path} is neither an image folder nor a table ({', '.join(TABLE_SUFFIXES)})")
    if isinstance(data, Mapping) or hasattr(data, "iloc"):
        return "tabular"
    if str(getattr(data, "dtype", "")) in ("uint8", "torch.uint8") and getattr(data, "ndim", 0) in (3, 4):
        return "image"
    if hasattr(data, "dtype") and hasattr(data, "shape"):
        return "tensor"
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        if len(data) == 0:
            raise DataError("there are no samples")
        first = data[0]
        first = first[0] if isinstance(first, tuple | list) and not isinstance(data, tuple | list) else first
        if hasattr(first, "getexif") or isinstance(first, str | Path) or _is_image_array(first):
            return "image"
        return "tensor"
    raise DataError(f"data of type {type(data).__name__} cannot be read: give a path, a table, arrays, tensors or a torch Dataset")


# ---------------------------------------------------------------- images


def _open_images(data: Any, caps: Caps) -> _Source:
    if isinstance(data, str | Path):
        return _open_folder(Path(data), caps)
    if hasattr(data, "detach"):
        data = data.detach().cpu().numpy()
    if isinstance(data, np.ndarray):
        if data.dtype != np.uint8 or data.ndim not in (3, 4):
            raise DataError(
                f'pictures are uint8 arrays (N, H, W) or (N, H, W, C), not {data.dtype} {data.shape}: floats are kind = "tensor"'
            )
        notes: tuple[str, ...] = ()
        if data.ndim == 4 and data.shape[-1] not in (1, 3, 4) and data.shape[1] in (1, 3):
            data = np.moveaxis(data, 1, -1)
            notes = ("pictures came as (N, C, H, W) and were read so",)
        elif data.ndim == 4 and data.shape[-1] not in (1, 3, 4):
            raise DataError(f"pictures of shape {data.shape} have no channel axis of 1, 3 or 4")
        return _Source(ImageArrays(data, _numbered(len(data)), caps), notes=notes)
    if isinstance(data, list | tuple) and data and all(isinstance(d, str | Path) for d in data):
        paths = [Path(d) for d in data]
        missing = [str(p) for p in paths if not p.is_file()]
        if missing:
            raise DataError(f"no such file: {missing[0]}")
        return _Source(ImageFiles(Path(), tuple(p.as_posix() for p in paths), caps))
    if isinstance(data, list | tuple):
        return _Source(ImageArrays(data, _numbered(len(data)), caps))
    return _open_dataset(data, caps, image=True)


def _open_folder(root: Path, caps: Caps) -> _Source:
    if not root.exists():
        raise DataError(f"no such file or folder: {root}")
    if root.is_file():
        return _Source(ImageFiles(root.parent, (root.name,), caps))
    images, others = list_images(root)
    if not images:
        held = f"; it holds {', '.join(others[:3])}" if others else ""
        raise DataError(f"{root} holds no images ({', '.join(sorted(SUFFIXES))}){held}")
    notes = []
    if others:
        notes.append(
            f"{len(others)} file{'s' if len(others) > 1 else ''} in {root.name} passed over, because not an image: {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}"
        )
    samples = ImageFiles(root, tuple(images), caps)
    at_top = [name for name in images if "/" not in name]
    if len(at_top) == len(images):
        return _Source(samples, notes=tuple(notes))
    if at_top:
        inside = next(name for name in images if "/" in name)
        return _Source(
            samples,
            notes=(
                *notes,
                f"images lie both at the top ({at_top[0]}) and in sub-folders ({inside}): sub-folders were not taken as classes",
            ),
        )
    folders = np.array([name.split("/", 1)[0] for name in images], dtype=object)
    empty = sorted(f.name for f in root.iterdir() if f.is_dir() and not f.name.startswith((".", "__MACOSX")) and f.name not in set(folders))
    if empty:
        notes.append(f"class folders without images: {', '.join(empty)}")
    return _Source(samples, labels=folders, declared=tuple(empty), notes=tuple(notes))


# ---------------------------------------------------------------- tables, tensors, data sets


def _open_table(data: Any, given: Mapping[str, Any], cluster: Any, time: Any, caps: Caps) -> _Source:
    if isinstance(data, str | Path):
        frame = read_table(Path(data), caps)
    elif hasattr(data, "iloc"):
        frame = frame_of(data, "the DataFrame")
    else:
        raise DataError(f"a table is a path, a DataFrame or a mapping of columns, not {type(data).__name__}")
    label = given.get("label", LABEL if LABEL in frame.columns else None)
    roles = Roles(
        label=label,
        numeric=given.get("numeric"),
        categorical=given.get("categorical"),
        drop=tuple(given.get("drop", ())),
        id=given.get("id"),
        na_values=_na_values(given.get("na_values", ())),
        aside=(*((cluster,) if isinstance(cluster, str) else ()), *_dates_aside(frame, given, time)),
    )
    samples, notes = table_samples(frame, roles, caps)
    labels = None if label is None else frame.columns[label].as_texts(("", "nan", *(roles.na(label) - Roles().na(label))))
    return _Source(samples, labels=labels, frame=frame, notes=tuple(notes))


def _dates_aside(frame: Frame, given: Mapping[str, Any], time: Any) -> tuple[str, ...]:
    """The column of times where it is text and nobody lists it: a date is no feature. A year may be one, and stays."""
    if not isinstance(time, str) or time not in frame.columns or time in (*(given.get("numeric") or ()), *(given.get("categorical") or ())):
        return ()
    return (time,) if frame.columns[time].as_numbers(Roles().na(time))[1] else ()


def _na_values(given: Any) -> Any:
    if isinstance(given, Mapping):
        return {k: (v if isinstance(v, list | tuple) else (v,)) for k, v in given.items()}
    return tuple(given) if isinstance(given, list | tuple) else (given,)


def _open_tensors(data: Any, given: Mapping[str, Any], caps: Caps) -> _Source:
    names = given.get("names")
    kind: Modality = TENSOR if names is None else Tensors(names=tuple(str(name) for name in names))
    if isinstance(data, list | tuple):
        data = np.stack([np.asarray(d) for d in data])
    if hasattr(data, "shape") and hasattr(data, "dtype"):
        if data.ndim < 2:
            raise DataError(f"samples of shape {tuple(data.shape)}: expected (N, ...) with one row per sample")
        if names is not None and data.ndim == 2 and len(names) != data.shape[1]:
            raise DataError(f"names has {len(names)} entries, the samples have {data.shape[1]} columns")
        if str(data.dtype) in ("object",) or str(data.dtype).startswith(("<U", "complex", "torch.complex")):
            raise DataError(f"samples of type {data.dtype} are not model inputs: give numbers")
        return _Source(TensorSamples(data, _numbered(len(data)), caps, modality=kind))
    return _open_dataset(data, caps, image=False, kind=kind)


def _open_dataset(data: Any, caps: Caps, *, image: bool, kind: Modality = TENSOR) -> _Source:
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise DataError(f"data of type {type(data).__name__} has no length or index: give a map-style data set")
    n = len(data)
    pairs = n > 0 and isinstance(data[0], tuple | list)
    labels = None
    notes: tuple[str, ...] = ()
    if pairs:
        targets = getattr(data, "targets", None)
        if targets is None or len(targets) != n:
            targets = [_plain(data[i][1]) for i in range(n)]
            notes = ("labels were read by running through the data set once",)
        labels = one_dimensional(targets, n, "the data set's labels")
    names = getattr(data, "classes", None)
    order = tuple(str(c) for c in names) if names is not None else None
    ids = _numbered(n)
    samples: Samples
    if image:
        samples = ImageArrays(data, ids, caps, first_of_pair=pairs)
    else:
        samples = TensorSamples(data, ids, caps, first_of_pair=pairs, modality=kind)
    return _Source(samples, labels=labels, label_order=order, notes=notes)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value


def _numbered(n: int) -> tuple[str, ...]:
    return tuple(str(i) for i in range(n))


# ---------------------------------------------------------------- labels and metadata


def _labels(
    labels: Any,
    n: int,
    source: _Source,
    frame: Frame | None,
    join: NDArray[np.int64] | None,
    column: str | None,
    label_map: Mapping[Any, str] | None,
    classes: Sequence[str] | None,
    notes: list[str],
) -> Labels:
    """Labels by the first that speaks: the argument, the label column, the metadata's column "label", the folders or data set."""
    if labels is not None:
        if isinstance(labels, str):
            raise DataError(f'labels are values, one per row; for a column write label = "{labels}"')
        return resolve_labels(one_dimensional(labels, n, "labels"), classes=classes, label_map=label_map, from_file=False)
    if isinstance(source.samples, ImageFiles | ImageArrays | TensorSamples) or frame is not source.frame:
        if column is not None and not (source.frame is not None and column in source.frame.columns):
            values = column_values(frame, join, column, "the label")
            return resolve_labels(values, classes=classes, label_map=label_map, from_file=True)
        if column is None and source.frame is None and frame is not None and LABEL in frame.columns:
            values = column_values(frame, join, LABEL, "the label")
            if source.labels is not None:
                differ = sum(a is not None and a != b for a, b in zip(values, source.labels, strict=True))
                notes.append(f"labels are those of the metadata; {differ} differ from the folder's name")
            return resolve_labels(values, classes=classes, label_map=label_map, from_file=True)
    if source.label_order is not None and source.labels is not None and label_map is None:
        named = resolve_labels(source.labels, classes=source.label_order, label_map=None, from_file=False)
        return resolve_labels(named.names, classes=classes if classes is not None else source.label_order, label_map=None, from_file=False)
    in_file = not isinstance(source.samples, TensorSamples | ImageArrays)
    return resolve_labels(source.labels, classes=classes, label_map=label_map, from_file=in_file, declared=source.declared)


def _values(
    labels: Any,
    n: int,
    source: _Source,
    frame: Frame | None,
    join: NDArray[np.int64] | None,
    column: str | None,
    na_values: Any,
) -> Numbers:
    """Numbers by the first that speaks: the argument, the label column, the column "label", the data set."""
    if labels is not None:
        if isinstance(labels, str):
            raise DataError(f'labels are values, one per row; for a column write label = "{labels}"')
        return resolve_values(_numbers(labels, n, "labels"), "labels")
    name = column if column is not None else LABEL if frame is not None and LABEL in frame.columns else None
    if name is not None:
        if frame is None:
            raise DataError(f"{name!r} is named as the label, but there is no metadata or table with columns: give metadata=, or labels=")
        require_column(name, frame.columns, frame.where, "the label")
        missing = Roles(na_values=_na_values(() if na_values is None else na_values)).na(name)
        return resolve_values(frame.columns[name], f"column {name!r} of {Path(frame.where).name}", na=missing, rows=join)
    if source.labels is None or isinstance(source.samples, ImageFiles):
        return Numbers(None)
    return resolve_values(_numbers(source.labels, n, "the data set's labels"), "the data set's labels")


def _numbers(given: Any, n: int, what: str) -> Cells:
    """Values that a caller gave, one per sample, as a column; numbers stay as exact as they are."""
    if getattr(given, "ndim", 1) == 2 and given.shape[1] > 1:
        raise DataError(f"{what} holds {given.shape[1]} numbers per row: a regression has one target, give one of them")
    array = one_dimensional(given, n, what)
    if array.dtype == object and all(v is None or (isinstance(v, Real) and not isinstance(v, bool)) for v in array.tolist()):
        array = np.array([np.nan if v is None else float(v) for v in array.tolist()])
    return cells_of(array)


def _join(metadata: Any, samples: Samples, key: str | None, caps: Caps, kind: str) -> tuple[Joined, list[str]]:
    frame = read_table(Path(metadata), caps) if isinstance(metadata, str | Path) else frame_of(metadata, "the metadata")
    said: list[str] = []
    if kind != "tabular":  # of a table they are columns like any other
        frame, said = gathered(frame, key_column(frame, key))
    joined = join_metadata(frame, samples.ids, key, by_name=isinstance(samples, ImageFiles))
    caps.refuse_above(dict.fromkeys(joined.unmatched, "no such sample"), frame.n, f"rows of {frame.where} have no sample")
    without = {samples.ids[i]: "no row in the metadata" for i in np.flatnonzero(joined.rows < 0)}
    caps.refuse_above(without, len(samples), f"samples have no row in {frame.where}")
    return joined, said


def _beside(frame: Frame, joined: Joined) -> Frame:
    """The table with the metadata's columns beside its own."""
    doubled = sorted(set(frame.columns) & set(joined.frame.columns) - {joined.key})
    if doubled:
        raise DataError(f"column {doubled[0]!r} is in {frame.where} and in {joined.frame.where}: rename one")
    more = {c: cells_of(column_values(joined.frame, joined.rows, c, "metadata")) for c in joined.frame.columns if c != joined.key}
    return Frame({**frame.columns, **more}, frame.n, frame.where, frame.notes)


def _require_unique(ids: Sequence[str]) -> None:
    if len(set(ids)) == len(ids):
        return
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise DataError(f"two samples have the id {name!r}: ids must be unique")
        seen.add(name)
