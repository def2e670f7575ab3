"""Regions as people give them: metadata columns, mask folders, COCO and Pascal VOC files, arrays and lists; checked against the pictures.

A COCO file gives its boxes (``bbox``), of every category; its outlines are not read. Where pictures and annotations lie in folders of their own,
they are matched by relative name without suffix, else by the bare name where it is unique.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.errors import DataError
from tl_audit.modality.base import Samples
from tl_audit.modality.cells import NA_TEXTS, Frame, cells_of
from tl_audit.modality.image import ORIENTATION, SUFFIXES, ImageArrays, ImageFiles
from tl_audit.modality.regions import Boxes, ImageRegions, Mark, MaskFile, Size, content_of, fitting, spoken, within

BOXES = "boxes"
"""The metadata column of boxes."""
EDGE_COLUMNS: tuple[tuple[str, str, str, str], ...] = (("x0", "y0", "x1", "y1"), ("xmin", "ymin", "xmax", "ymax"))
"""Metadata columns that hold one box per row; rows of one sample are its boxes."""
_MOST_XML = 4_000_000  # characters

# ---------------------------------------------------------------- what people give


def parse_boxes(value: Any, what: str) -> Boxes | None:  # Any: text, lists or arrays of numbers
    """Boxes of one sample from JSON text, from "x0 y0 x1 y1; ...", or from numbers; None where there are none.

    Raises
    ------
    DataError : no numbers, not four, not finite, left not before right or top not before bottom; names the sample and the box
    """
    if value is None:
        return None
    if isinstance(value, str):
        value = _from_text(value, what)
    rows = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(rows, list | tuple):
        raise DataError(f"{what}: boxes are lists of four numbers (left, top, right, bottom), not {type(value).__name__}")
    if len(rows) == 0:
        return None
    if not isinstance(rows[0], list | tuple) and not hasattr(rows[0], "tolist"):
        rows = [rows]
    edges = np.empty((len(rows), 4), dtype=np.float64)
    for k, box in enumerate(rows):
        numbers = box.tolist() if hasattr(box, "tolist") else box
        if (
            not isinstance(numbers, list | tuple)
            or len(numbers) != 4
            or any(isinstance(v, bool) or not isinstance(v, int | float) for v in numbers)
        ):
            raise DataError(f"{what}: box {k + 1} is {str(box)[:60]}: expected four numbers, left, top, right, bottom")
        if not np.isfinite(numbers).all():
            raise DataError(f"{what}: {spoken(numbers, k)} holds a number that is not finite")
        if numbers[0] >= numbers[2] or numbers[1] >= numbers[3]:
            raise DataError(f"{what}: {spoken(numbers, k)} is empty: left must lie before right, and top above bottom")
        edges[k] = numbers
    return Boxes(edges)


def _from_text(text: str, what: str) -> Any:  # Any: decoded JSON, or rows of numbers
    text = text.strip()
    if text.lower() in NA_TEXTS:
        return []
    if text[0] in "[({":
        try:
            return json.loads(text.replace("(", "[").replace(")", "]"))
        except ValueError:
            raise DataError(f"{what}: boxes {text[:60]!r} cannot be read as a list [[x0, y0, x1, y1], ...]") from None
    rows = []
    for k, part in enumerate(p for p in text.split(";") if p.strip()):
        words = [w for w in re.split(r"[\s,]+", part.strip()) if w]
        try:
            rows.append([float(w) for w in words])
        except ValueError:
            raise DataError(f"{what}: box {k + 1} is {part.strip()[:60]!r}: expected four numbers, left, top, right, bottom") from None
    return rows


def gathered(frame: Frame, key: str) -> tuple[Frame, list[str]]:
    """Metadata with one row per sample and its boxes in one column, where boxes came as four columns; and what was done, in words.

    Other columns that differ between rows of one sample (a score of each box) are left out: they say nothing of the sample.
    """
    lower = {name.strip().lower(): name for name in frame.columns}
    found = next((names for names in EDGE_COLUMNS if all(n in lower for n in names)), None)
    if found is None:
        return frame, []
    if BOXES in lower:
        raise DataError(f"{frame.where} gives boxes twice: in the column {lower[BOXES]!r} and in {', '.join(found)}; keep one of them")
    columns = [lower[n] for n in found]
    keys = frame.columns[key].as_texts(("",)).tolist()
    numbers = []
    for name in columns:
        values, wrong = frame.columns[name].as_numbers()
        if wrong:
            row, text = next(iter(wrong.items()))
            raise DataError(f"{frame.where}: row {row} ({keys[row]}) holds {text!r} in {name!r}, which is no number")
        numbers.append(values)
    edges = np.stack(numbers, axis=1)
    first: dict[str | None, int] = {}
    boxes: dict[str | None, list[list[float]]] = {}
    for row, name in enumerate(keys):
        first.setdefault(name, row)
        missing = np.isnan(edges[row])
        if missing.all():
            continue
        if missing.any():
            raise DataError(
                f"{frame.where}: row {row} ({name}) has no {columns[int(np.argmax(missing))]!r}, and a box needs all four numbers"
            )
        boxes.setdefault(name, []).append(edges[row].tolist())
    rows = np.array(list(first.values()), dtype=np.int64)
    notes = [f"boxes were read from the columns {', '.join(columns)}"]
    kept = {}
    index = {name: i for i, name in enumerate(first)}
    place = np.array([index[name] for name in keys], dtype=np.int64)
    differing = []
    for name, cells in frame.columns.items():
        if name in columns:
            continue
        texts = cells.as_texts(())
        if name != key and len(rows) < frame.n and (texts != texts[rows][place]).any():
            differing.append(name)
            continue
        kept[name] = cells_of(texts[rows])
    kept[BOXES] = cells_of(np.array([json.dumps(boxes[n]) if n in boxes else None for n in first], dtype=object))
    if len(rows) < frame.n:
        notes.append(f"{frame.n} rows of boxes belong to {len(rows)} samples")
    if differing:
        notes.append(f"columns that differ between the boxes of one sample were left out: {', '.join(differing)}")
    return Frame(kept, len(rows), frame.where, frame.notes), notes


def regions_of(
    samples: Samples,
    *,
    given: Any = None,  # Any: arrays, lists, a mapping of ids
    masks: str | Path | None = None,
    annotations: str | Path | None = None,
    column: NDArray[np.object_] | None = None,
    column_where: str = "the metadata",
) -> tuple[ImageRegions | None, list[str]]:
    """Regions from the one place that gives them, and what must be said of them; None where nothing does.

    Parameters
    ----------
    given : (N, H, W) bool or whole numbers, > 0 inside; or per sample boxes, a mask, a mask file or None; or a mapping of ids to these
    masks : folder of mask pictures of the same relative names, any suffix of a picture; > 0 inside
    annotations : a COCO file (.json), or a folder of Pascal VOC files (.xml)
    column : (N,) texts of the metadata column ``boxes``

    Raises
    ------
    DataError : two places at once, nothing that fits the samples, bad boxes, masks of another size
    """
    named = [name for name, value in (("regions", given), ("masks", masks), ("annotations", annotations)) if value is not None]
    if len(named) > 1:
        raise DataError(f"regions are given twice: {' and '.join(named)}; keep one of them")
    notes: list[str] = []
    if named and column is not None:
        notes.append(f"the column {BOXES!r} of {column_where} was passed over: regions are those of {named[0]}")
    if given is not None:
        marks, where = _given(given, samples), "regions"
    elif masks is not None:
        marks, where = _mask_files(Path(masks), samples, notes), Path(masks).name
    elif annotations is not None:
        path = Path(annotations)
        marks, where = _voc(path, samples, notes) if path.is_dir() else _coco(path, samples, notes), path.name
    elif column is not None:
        where = column_where
        marks = [parse_boxes(text, f"{where}: {name!r}") for name, text in zip(samples.ids, column, strict=True)]
    else:
        return None, notes
    regions = ImageRegions(tuple(marks), tuple(samples.ids), where)
    have = int(regions.given.sum())
    if have == 0 and not named:
        notes.append(f"the column {BOXES!r} of {where} is empty: no sample has a region")
        return None, notes
    if have == 0:
        raise DataError(f"{where}: not one of the {len(samples)} samples has a region; names must match those of the samples")
    _check_sizes(regions, samples)
    notes.append(f"{have} of {len(samples)} samples have a region ({where})")
    return regions, notes


def _given(given: Any, samples: Samples) -> list[Mark]:
    n = len(samples)
    if isinstance(given, Mapping):
        unknown = sorted(set(map(str, given)) - set(samples.ids))
        if unknown:
            raise DataError(f"regions name {unknown[0]!r}, and there is no such sample")
        given = [given.get(name) for name in samples.ids]
    if hasattr(given, "detach"):
        given = given.detach().cpu().numpy()
    if not hasattr(given, "__len__") or isinstance(given, str):
        raise DataError(f"regions are masks (N, H, W) or a list of boxes per sample, not {type(given).__name__}")
    if len(given) != n:
        raise DataError(f"regions has {len(given)} entries, the data has {n} samples: give one per sample, None where there is no region")
    if isinstance(given, np.ndarray) and given.dtype != object and given.ndim not in (2, 3):
        raise DataError(f"regions have shape {given.shape}: expected masks (N, H, W), or boxes per sample")
    return [_mark(value, name) for value, name in zip(given, samples.ids, strict=True)]


def _mark(value: Any, name: str) -> Mark:
    what = f"regions: {name!r}"
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if hasattr(value, "getexif"):
        value = np.asarray(value)
    if isinstance(value, Path) or (isinstance(value, str) and Path(value).suffix.lower() in SUFFIXES):
        if not Path(value).is_file():
            raise DataError(f"{what}: there is no mask file {value}")
        return MaskFile(Path(value))
    if not isinstance(value, np.ndarray) or (value.shape[-1:] == (4,) and value.ndim < 3 and value.dtype not in (np.bool_, np.uint8)):
        return parse_boxes(value, what)
    if value.ndim == 3 and value.shape[-1] in (1, 3, 4):
        value = value[..., :3].any(axis=-1)
    if value.ndim != 2 or value.dtype.kind not in "bui":
        raise DataError(f"{what} has a mask of {value.dtype} {value.shape}: expected (H, W) of bool or uint8, above 0 inside")
    inside = np.asarray(value > 0, dtype=np.bool_)
    return inside if inside.any() else None


# ---------------------------------------------------------------- files


def _stem(name: str) -> str:
    """A relative name without its last suffix."""
    folder, slash, file = name.replace("\\", "/").rpartition("/")
    return folder + slash + (file.rpartition(".")[0] or file)


def _listed(root: Path, suffixes: frozenset[str], key: str, what: str) -> dict[str, Path]:
    """Relative name without suffix -> file, of the files below a folder."""
    if not root.is_dir():
        raise DataError(f"{key}: there is no folder {root}")
    found: dict[str, Path] = {}
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
        for name in sorted(files):
            path = Path(folder) / name
            if name.startswith(".") or path.suffix.lower() not in suffixes:
                continue
            stem = _stem(path.relative_to(root).as_posix())
            if stem in found:
                raise DataError(f"{key}: {root.name} holds {found[stem].name} and {path.name} for one sample; keep one of them")
            found[stem] = path
    if not found:
        raise DataError(f"{key}: {root} holds no {what}")
    return found


def _matched(samples: Samples, known: Mapping[str, object], key: str) -> list[str | None]:
    """The name in ``known`` that belongs to each sample: by relative name, else by the bare file name where no two samples and no two entries share it."""
    bare: dict[str, list[str]] = {}
    for stem in known:
        bare.setdefault(stem.rsplit("/", 1)[-1], []).append(stem)
    stems = [_stem(name) for name in samples.ids]
    names: dict[str, int] = {}
    for stem in stems:
        names[stem.rsplit("/", 1)[-1]] = names.get(stem.rsplit("/", 1)[-1], 0) + 1
    out: list[str | None] = []
    for sample, stem in zip(samples.ids, stems, strict=True):
        name = stem.rsplit("/", 1)[-1]
        if stem in known:
            out.append(stem)
        elif len(bare.get(name, ())) == 1 and "/" not in bare[name][0]:
            if names[name] > 1:
                raise DataError(f"{key} has one entry {name!r}, and {names[name]} samples bear that name ({sample}): write relative names")
            out.append(bare[name][0])
        else:
            out.append(None)
    return out


def _mask_files(root: Path, samples: Samples, notes: list[str]) -> list[Mark]:
    files = _listed(root, SUFFIXES, "masks", "mask pictures")
    found = _matched(samples, files, "masks")
    if spare := len(files.keys() - set(found)):
        notes.append(f"mask pictures in {root.name} that belong to no sample: {spare}")
    return [None if name is None else MaskFile(files[name]) for name in found]


def _coco(path: Path, samples: Samples, notes: list[str]) -> list[Mark]:
    """Boxes of a COCO file (x, y, width, height from the upper left corner)."""
    try:
        table = json.loads(content_of(path, "annotations"))
        images, listed = table["images"], table["annotations"]
        named = {image["id"]: (str(image["file_name"]), image.get("width"), image.get("height")) for image in images}
        boxes: dict[Any, list[list[float]]] = {}
        for entry in listed:
            x, y, width, height = (float(v) for v in entry["bbox"])
            boxes.setdefault(entry["image_id"], []).append([x, y, x + width, y + height])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"annotations: {path.name} cannot be read as COCO, with images (id, file_name) and annotations (image_id, bbox): {str(error)[:80]}"
        ) from error
    known: dict[str, Mark] = {}
    for number, (name, width, height) in named.items():
        mark = parse_boxes(boxes.get(number, []), f"{path.name}: {name!r}")
        known[_stem(name)] = None if mark is None else replace(mark, size=(int(width), int(height)) if width and height else None)
    found = _matched(samples, known, "annotations")
    if spare := len(known.keys() - set(found)):
        notes.append(f"pictures of {path.name} that are not among the samples: {spare}")
    return [None if name is None else known[name] for name in found]


def _voc(root: Path, samples: Samples, notes: list[str]) -> list[Mark]:
    """Boxes of Pascal VOC files, whose pixels are counted from 1 and whose last pixel belongs to the box."""
    files = _listed(root, frozenset((".xml",)), "annotations", "Pascal VOC files (.xml)")
    found = _matched(samples, files, "annotations")
    if spare := len(files.keys() - set(found)):
        notes.append(f"files in {root.name} that belong to no sample: {spare}")
    return [None if name is None else _voc_boxes(files[name]) for name in found]


def _voc_boxes(path: Path) -> Boxes | None:
    from xml.etree import ElementTree

    text = content_of(path, "annotations").decode("utf-8", "replace")
    if len(text) > _MOST_XML or "<!ENTITY" in text or "<!DOCTYPE" in text:
        raise DataError(f"annotations: {path.name} is no plain Pascal VOC file (too long, or with entities)")
    try:
        tree = ElementTree.fromstring(text)
        rows = []
        for box in tree.iter("bndbox"):
            edges = {name: float(box.findtext(name) or "nan") for name in ("xmin", "ymin", "xmax", "ymax")}
            rows.append([edges["xmin"] - 1, edges["ymin"] - 1, edges["xmax"], edges["ymax"]])
        width, height = (int(float(tree.findtext(f"size/{name}") or 0)) for name in ("width", "height"))
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"annotations: {path.name} cannot be read as Pascal VOC ({str(error)[:80]})") from error
    mark = parse_boxes(rows, path.name)
    return None if mark is None else replace(mark, size=(width, height) if width and height else None)


def _check_sizes(regions: ImageRegions, samples: Samples) -> None:
    """Sizes and boxes against the pictures, wherever their size is known without decoding them."""
    for row, mark in enumerate(regions.marks):
        if mark is None or (size := _stored_size(samples, row)) is None:
            continue
        name, turned = regions.ids[row], (size[1], size[0])
        if isinstance(mark, Boxes):
            stated = fitting(mark.size or size, size, turned, f"{regions.where}: the annotation of {name!r} is for")
            within(mark.edges, stated, f"{regions.where}: {name!r}")
            continue
        own = _header_size(mark.path) if isinstance(mark, MaskFile) else (mark.shape[1], mark.shape[0])
        if own is None and isinstance(mark, MaskFile):
            raise DataError(f"{regions.where}: the mask {mark.path.name} of {name!r} cannot be read")
        if own is not None:
            turns = _orientation(samples, row) >= 5
            fitting(own, size, turned if turns else size, f"{regions.where}: the mask of {name!r} is")


def _stored_size(samples: Samples, row: int) -> Size | None:
    if isinstance(samples, ImageFiles):
        return _header_size(samples.root / samples.ids[row])
    data = samples.pictures if isinstance(samples, ImageArrays) else getattr(samples, "data", None)
    if isinstance(samples, ImageArrays) and isinstance(data, np.ndarray) and data.ndim in (3, 4):
        return int(data.shape[2]), int(data.shape[1])
    if isinstance(data, np.ndarray | torch.Tensor) and data.ndim == 4:
        return int(data.shape[3]), int(data.shape[2])
    return None


def _header_size(path: Path) -> Size | None:
    """Width and height that a file states, None where it is no picture (which is counted when it is read)."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return picture.size
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        return None


def _orientation(samples: Samples, row: int) -> int:
    from PIL import Image

    if not isinstance(samples, ImageFiles):
        return 1
    with Image.open(samples.root / samples.ids[row]) as picture:
        return int(picture.getexif().get(ORIENTATION, 1) or 1)
