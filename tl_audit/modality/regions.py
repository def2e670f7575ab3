"""Regions of interest: boxes or masks of samples, and where they lie in a model input after exactly its preprocessing.

Boxes are in pixels of the picture as it is stored, before any EXIF rotation: left, top, right, bottom; the right and bottom edges are not part of
the box. ``region_files`` reads them from what people give.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.errors import DataError
from tl_audit.modality.base import Cue, Modality, RawBatch, Regions
from tl_audit.modality.image import REGION, resized, without_rotation
from tl_audit.records.preprocessing import InputSpec, Preprocessing

Mask = NDArray[np.bool_]
Size = tuple[int, int]
"width, height"

_SLACK = 1.0  # pixels by which a box may reach over the edge: annotation tools round, and count from 0 or from 1
_LOSSY = 127  # grey values above are inside where the mask was compressed with loss, which leaves traces of everything


@dataclass(frozen=True)
class Boxes:
    """Boxes of one sample: (K, 4) left, top, right, bottom. ``size``: width and height that the annotation states for the picture, None: not stated."""

    edges: NDArray[np.float64]
    size: Size | None = None


@dataclass(frozen=True)
class MaskFile:
    """A mask picture, read when it is needed."""

    path: Path


Mark = Boxes | MaskFile | Mask | None
"""The region of one sample, None where there is none."""


@dataclass(frozen=True)
class ImageRegions:
    """Regions of pictures, one mark per sample.

    Attributes
    ----------
    marks : N marks, None for a sample without a region
    ids : N sample ids, for messages
    where : what messages call the place that they come from
    """

    marks: tuple[Mark, ...]
    ids: tuple[str, ...]
    where: str

    def __len__(self) -> int:
        return len(self.marks)

    @property
    def given(self) -> NDArray[np.bool_]:
        """(N,) whether a sample has a region."""
        return np.array([mark is not None for mark in self.marks], dtype=np.bool_)

    def select(self, rows: NDArray[np.int64]) -> ImageRegions:
        return ImageRegions(tuple(self.marks[int(r)] for r in rows), tuple(self.ids[int(r)] for r in rows), self.where)

    @cached_property
    def content_key(self) -> str:
        """SHA-256 of all that the regions say."""
        digest = hashlib.sha256()
        for mark in self.marks:
            if mark is None:
                digest.update(b"none;")
            elif isinstance(mark, Boxes):
                digest.update(f"boxes {mark.size} {mark.edges.shape}:".encode() + mark.edges.astype("<f8").tobytes())
            elif isinstance(mark, MaskFile):
                digest.update(b"file:" + hashlib.sha256(content_of(mark.path, self.where)).digest())
            else:
                digest.update(f"mask {mark.shape}:".encode() + np.packbits(mark).tobytes())
        return digest.hexdigest()

    def read(self, batch: RawBatch, spec: InputSpec | None) -> tuple[Mask, Mask]:
        """Where the regions of samples lie in their model inputs.

        Parameters
        ----------
        batch : samples of this domain as read (their rows, sizes and EXIF orientation are needed)
        spec : the model's preprocessing; without one for pictures the region lies as it was given

        Returns
        -------
        masks : (B, H, W) bool at the size of the model input; an empty mask where preprocessing cuts the region off
        known : (B,) bool, whether the sample has a region and could be read

        Raises
        ------
        DataError : a box outside its picture, a mask of another size, sizes that differ where the model has no preprocessing
        """
        found: list[Mask | None] = []
        for i, row in enumerate(batch.rows):
            mark = self.marks[int(row)]
            found.append(None if mark is None or batch.errors[i] is not None else self._placed(mark, batch, i, spec))
        height, width = self._size(found, batch, spec)
        masks = np.zeros((len(found), height, width), dtype=np.bool_)
        for i, mask in enumerate(found):
            if mask is not None:
                masks[i] = mask
        return masks, np.array([mask is not None for mask in found], dtype=np.bool_)

    def _size(self, found: Sequence[Mask | None], batch: RawBatch, spec: InputSpec | None) -> tuple[int, int]:
        if isinstance(spec, Preprocessing):
            return spec.height, spec.width
        shapes = {mask.shape for mask in found if mask is not None}
        if len(shapes) > 1:
            listed = ", ".join(f"{w} x {h}" for h, w in sorted(shapes)[:3])
            raise DataError(f"{self.where}: regions differ in size ({listed}) and the model has no preprocessing: give Preprocessing(...)")
        if shapes:
            height, width = shapes.pop()
            return int(height), int(width)
        sizes = [_upright_size(batch, i) for i, error in enumerate(batch.errors) if error is None]
        return (sizes[0][1], sizes[0][0]) if sizes else (0, 0)

    def _placed(self, mark: Mark, batch: RawBatch, i: int, spec: InputSpec | None) -> Mask:
        name = self.ids[int(batch.rows[i])]
        width, height = _upright_size(batch, i)
        orientation = int(batch.facts[i].get("orientation", 1)) if batch.facts else 1
        stored = (height, width) if orientation >= 5 else (width, height)
        if isinstance(mark, Boxes):
            size = fitting(mark.size or stored, stored, (width, height), f"{self.where}: the annotation of {name!r} is for")
            mask = drawn(mark.edges, size, f"{self.where}: {name!r}")
        else:
            mask = read_mask(mark.path, self.where) if isinstance(mark, MaskFile) else np.asarray(mark)
            size = fitting((mask.shape[1], mask.shape[0]), stored, (width, height), f"{self.where}: the mask of {name!r} is")
        if size == stored:  # of a square picture nobody can tell: then the file as stored is meant
            mask = _turned(mask, {6: 8, 8: 6}.get(orientation, orientation))  # the inverse: a quarter turn the other way
        if not isinstance(spec, Preprocessing):
            return mask
        if spec.exif == "ignore":
            mask = _turned(mask, orientation)
        plain = spec.model_copy(update={"interpolation": "nearest", "antialias": False})
        tensor = torch.from_numpy(np.ascontiguousarray(mask)).to(torch.uint8)[None]
        return np.asarray(resized(tensor, plain)[0].numpy() > 0, dtype=np.bool_)


# ---------------------------------------------------------------- geometry


def _upright_size(batch: RawBatch, i: int) -> Size:
    facts = batch.facts[i] if batch.facts else {}
    if "width" in facts and "height" in facts:
        return int(facts["width"]), int(facts["height"])
    item = batch.items[i]
    if item.ndim != 3:
        raise DataError(f"a sample of shape {tuple(item.shape)} is no picture (C, H, W): it has no place for a region")
    return int(item.shape[-1]), int(item.shape[-2])


def _turned(mask: Mask, orientation: int) -> Mask:
    return np.asarray(without_rotation(mask.astype(np.uint8)[..., None], orientation)[..., 0] > 0, dtype=np.bool_)


def fitting(size: Size, stored: Size, upright: Size, what: str) -> Size:
    if size not in (stored, upright):
        raise DataError(
            f"{what} {size[0]} x {size[1]} pixels, the picture has {stored[0]} x {stored[1]}: a region needs the picture's own size"
        )
    return size


def drawn(edges: NDArray[np.float64], size: Size, what: str) -> Mask:
    """(H, W) which pixels have their centre in one of the boxes; a box thinner than a pixel marks the pixel that it lies in."""
    width, height = size
    within(edges, size, what)
    mask = np.zeros((height, width), dtype=np.bool_)
    for x0, y0, x1, y1 in edges:
        left, right = _pixels(x0, x1, width)
        top, bottom = _pixels(y0, y1, height)
        mask[top:bottom, left:right] = True
    return mask


def _pixels(low: float, high: float, size: int) -> tuple[int, int]:
    first, last = max(0, int(np.ceil(low - 0.5))), min(size, int(np.ceil(high - 0.5)))
    if first < last:
        return first, last
    at = min(size - 1, max(0, int((low + high) / 2)))
    return at, at + 1


def within(edges: NDArray[np.float64], size: Size, what: str) -> None:
    """DataError naming the first box that reaches over the picture's edge."""
    limit = np.array([size[0], size[1]], dtype=np.float64)
    for k, box in enumerate(edges):
        if (box[:2] < -_SLACK).any() or (box[2:] > limit + _SLACK).any() or (box[:2] >= limit).any() or (box[2:] <= 0).any():
            raise DataError(f"{what}: {spoken(box, k)} lies outside the picture, which has {size[0]} x {size[1]} pixels")


def spoken(box: Sequence[float] | NDArray[np.float64], k: int) -> str:
    return f"box {k + 1} ({', '.join(f'{float(v):g}' for v in box)})"


_AROUND_REGIONS = frozenset({"background"})


def needs_regions(cue: Cue) -> bool:
    """Whether a cue is put around the thing in question, so that somebody must have said where it is."""
    return cue.kind in _AROUND_REGIONS


def with_regions(batch: RawBatch, regions: Regions | None, cues: Sequence[Cue]) -> RawBatch:
    """The batch with the region of each sample among its facts, where one of the cues needs it; a sample without a region gets none.

    Raises
    ------
    DataError : a box outside its picture, a mask of another size
    """
    if regions is None or not any(needs_regions(cue) for cue in cues):
        return batch
    facts = []
    for i, error in enumerate(batch.errors):
        known = dict(batch.facts[i]) if batch.facts else {}
        if error is None:
            # one by one: pictures of a batch differ in size
            alone = RawBatch(batch.rows[i : i + 1], [batch.items[i]], [None], [known] if batch.facts else ())
            masks, given = regions.read(alone, None)
            if given[0]:
                known[REGION] = masks[0]
        facts.append(known)
    return RawBatch(batch.rows, batch.items, batch.errors, facts)


def cue_places(
    modality: Modality, batch: RawBatch, cue: Cue, spec: InputSpec | None, *, placebo: bool, key: tuple[Any, ...]
) -> Mask | None:
    """Where a cue lies in model inputs, (B, H, W) bool for readable samples; None for a cue without a place (a colour cast).

    A cue lies where the input does not depend on the picture below it: it is put on a black and on a white picture of the same size,
    both are preprocessed, and compared. So the cue's own drawing and the model's own preprocessing say where it is.
    """
    shades = []
    for light in (False, True):
        items = [None if item is None else _blank(item, light) for item in batch.items]
        plain = RawBatch(batch.rows, items, batch.errors, batch.facts)
        marked = modality.apply_cue(plain, cue, placebo=placebo, key=key)
        shades.append([modality.encode(b, spec).double() for b in (plain, marked)])
    (black, black_marked), (white, white_marked) = shades
    if black.ndim != 4:
        return None
    reach = (white - black).abs().mean(dim=1)
    left = (white_marked - black_marked).abs().mean(dim=1)
    masks = np.asarray((left < 0.5 * reach).numpy(), dtype=np.bool_)
    share = masks.mean(axis=(1, 2)) if len(masks) else np.zeros(0)
    return None if not len(masks) or not share.any() or (share == 1).all() else masks


def _blank(item: Any, light: bool) -> Any:  # Any: uint8 array (H, W, 3), or tensor (C, H, W)
    if isinstance(item, torch.Tensor):
        # a cue on a tensor takes its value from the sample's own range: one row is the other shade, so that both samples have the range 0..1
        shade = torch.full_like(item, float(light))
        shade[..., -1, :] = float(not light)
        return shade
    return np.full_like(item, 255 if light else 0)


# ---------------------------------------------------------------- mask files


def content_of(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{where}: {path.name} cannot be read ({error.strerror or error})") from error


def read_mask(path: Path, where: str) -> Mask:
    """(H, W) of a mask picture as stored: inside where any colour is above 0 (half of white in JPEG files, which do not keep black) and not transparent."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            picture.load()
            lossy = picture.format in ("JPEG", "MPO")
            if picture.mode == "P" and "transparency" not in picture.info:
                values = np.asarray(picture)  # numbers of the palette: 0 is the background, whatever its colour
            elif picture.mode in ("P", "PA", "LA", "La", "RGBa"):
                values = np.asarray(picture.convert("RGBA"))
            else:
                values = np.asarray(picture)
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: the mask {path.name} cannot be read ({str(error)[:120]})") from error
    if values.ndim == 2:
        return np.asarray(values > (_LOSSY if lossy else 0), dtype=np.bool_)
    inside = (values[..., :3] > (_LOSSY if lossy else 0)).any(axis=-1)
    return np.asarray(inside & (values[..., 3] > 0) if values.shape[-1] == 4 else inside, dtype=np.bool_)
