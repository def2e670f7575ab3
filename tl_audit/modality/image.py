"""Images: files, arrays and PIL pictures read as uint8 RGB, encoded, cut into superpixels, masked, marked with cues, drawn."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.errors import DataError
from tl_audit.measures.sampling import generator
from tl_audit.measures.sketches import SKETCH_SIDE
from tl_audit.modality.base import Caps, Cue, Key, MaskMethod, Modality, Neighbourhood, Players, RawBatch, Samples
from tl_audit.modality.corruptions import IMAGE_KINDS, corrupt_picture
from tl_audit.modality.draws import drawn_rows, seeded_noise
from tl_audit.modality.imputation import blurred, linear_fill
from tl_audit.modality.options import require_known
from tl_audit.modality.pictures import as_picture, map_over
from tl_audit.modality.tabular import removed_entries
from tl_audit.records.exhibits import Bar, Picture
from tl_audit.records.preprocessing import InputSpec, Preprocessing, TableEncoding

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"))
# pictures to a person, but not to this reader: they become samples that cannot be read, so that they are counted
UNREAD_SUFFIXES = frozenset(
    (".heic", ".heif", ".avif", ".jp2", ".psd", ".svg", ".ico", ".dcm", ".nii", ".ppm", ".pgm", ".raw", ".exr", ".tga")
)
ORIENTATION = 0x0112
LUMA = np.array([0.299, 0.587, 0.114])
PROPERTY_SIDE = 128  # sharpness is measured at this size
SLIC_SIDE = 80  # superpixels are found at this size and laid back on the input
SLIC_STEPS = 3
SLIC_COMPACTNESS = 10.0
LAB_AT_ONCE = 64  # pictures
FEWEST_PARTS = 9  # with fewer a map says nothing of where
GRID_SIDE = 16  # up to this side the players are a grid
DECODERS = min(4, os.cpu_count() or 1)

Pixels = NDArray[np.uint8]


# ---------------------------------------------------------------- decoding


class _Refused(Exception):
    """One picture that is not used; its text is the reason."""


def decode(picture: Any, caps: Caps, opened: Callable[[], Any] | None = None) -> tuple[Pixels, dict[str, Any]]:  # Any: a PIL image
    """A PIL picture as uint8 RGB (H, W, 3), upright, with the facts of the file."""
    from PIL import Image, ImageOps

    width, height = picture.size
    if width * height > caps.pixels:
        raise _Refused(f"{width} x {height} pixels are more than the cap of {caps.pixels:,} (caps.pixels)")
    file_type = "JPEG" if picture.format == "MPO" else picture.format
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":  # a phone's MPO is a JPEG with a preview behind it
        raise _Refused(
            f"{'holds' if file_type == 'TIFF' else 'is animated:'} {frames} {'pages' if file_type == 'TIFF' else 'frames'}; give still images"
        )
    picture.load()
    orientation = int(picture.getexif().get(ORIENTATION, 1) or 1)
    facts = {
        "file_type": file_type or "array",
        "mode": picture.mode,
        "orientation": orientation,
        "exif_rotated": orientation in range(2, 9),
    }
    upright = ImageOps.exif_transpose(picture) if facts["exif_rotated"] else picture
    mode = upright.mode
    if mode in ("I;16", "I;16B", "I;16L", "I;16N", "I"):
        wide = np.asarray(upright).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise _Refused("32-bit pixels have no known range; save the image with 8 or 16 bits")
        grey = ((wide + 128) // 257).astype(np.uint8)
        pixels = np.repeat(grey[..., None], 3, axis=-1)
    elif mode == "F":
        raise _Refused("floating-point pixels have no known range; save the image with 8 or 16 bits")
    elif mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in upright.info:
        # what lies under transparent pixels is arbitrary: they are seen on white paper
        rgba = upright.convert("RGBA")
        facts["alpha"] = bool(np.asarray(rgba)[..., 3].min() < 255)
        paper = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        pixels = np.asarray(Image.alpha_composite(paper, rgba).convert("RGB"))
    else:
        pixels = np.asarray(upright.convert("RGB"))
    facts |= {"width": pixels.shape[1], "height": pixels.shape[0]}
    return np.ascontiguousarray(pixels, dtype=np.uint8), facts


def decode_file(path: Path, caps: Caps) -> tuple[Pixels | None, str | None, dict[str, Any]]:
    """(pixels, None, facts) or (None, reason, {})."""
    from PIL import Image, UnidentifiedImageError

    try:
        if path.stat().st_size == 0:
            return None, "empty file (0 bytes)", {}
        with Image.open(path, formats=FORMATS) as picture:
            pixels, facts = decode(picture, caps)
        return pixels, None, facts
    except _Refused as refused:
        return None, str(refused), {}
    except UnidentifiedImageError:
        return None, f"not an image in one of the formats read here ({', '.join(FORMATS)})", {}
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None, "more pixels than a picture should have (decompression bomb)", {}
    except FileNotFoundError:
        return None, "the file is gone", {}
    except PermissionError:
        return None, "no permission to read the file", {}
    # Pillow's decoders raise these on damaged files, by format and version
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        TypeError,
        IndexError,
        KeyError,
        OverflowError,
        MemoryError,
        ZeroDivisionError,
    ) as error:
        reason = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
        return None, f"cannot be decoded: {reason[:160]}", {}


def _each(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:  # Any: paths or rows in, decode results out
    """``function`` over the items, in threads where there are many: decoders let go of the interpreter lock."""
    with warnings.catch_warnings():
        from PIL import Image

        warnings.simplefilter("error", Image.DecompressionBombWarning)
        if len(items) < 8 or DECODERS == 1:
            return [function(item) for item in items]
        with ThreadPoolExecutor(DECODERS) as pool:
            return list(pool.map(function, items))


def pixels_of(value: Any, caps: Caps) -> tuple[Pixels | None, str | None, dict[str, Any]]:  # Any: array, tensor or PIL picture
    """One picture given in memory: a PIL picture, or uint8 (H, W) or (H, W, 1 | 3 | 4)."""
    if hasattr(value, "getexif"):
        try:
            pixels, facts = decode(value, caps)
        except (_Refused, OSError, ValueError) as error:
            return None, str(error), {}
        return pixels, None, facts
    array = value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        return None, f"an array of {array.dtype} {tuple(array.shape)}: expected uint8 (H, W) or (H, W, 1, 3 or 4)", {}
    if array.ndim == 3 and array.shape[2] == 4:
        alpha = array[..., 3:].astype(np.float64) / 255
        array = (array[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
    if array.ndim == 2:
        array = array[..., None]
    pixels = np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))
    facts = {
        "file_type": "array",
        "mode": "array",
        "orientation": 1,
        "exif_rotated": False,
        "width": pixels.shape[1],
        "height": pixels.shape[0],
    }
    return pixels, None, facts


def _batch(rows: NDArray[np.int64], read: Sequence[tuple[Pixels | None, str | None, dict[str, Any]]]) -> RawBatch:
    return RawBatch(rows=rows, items=[r[0] for r in read], errors=[r[1] for r in read], facts=[r[2] for r in read])


@dataclass(frozen=True)
class ImageFiles:
    """Image files below one folder; ids are their relative paths with forward slashes."""

    root: Path
    ids: tuple[str, ...]
    caps: Caps = field(default_factory=Caps)
    metadata: Mapping[str, NDArray[np.object_]] = field(default_factory=dict)
    "joined metadata columns (boxes, ...): name -> (N,) text or None"
    modality: Modality = field(default_factory=lambda: IMAGE)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, rows: NDArray[np.int64]) -> RawBatch:
        rows = np.asarray(rows, dtype=np.int64)
        return _batch(rows, _each(partial(decode_file, caps=self.caps), [self.root / self.ids[int(r)] for r in rows]))


@dataclass(frozen=True)
class ImageArrays:
    """Pictures in memory, or a data set that gives them one by one: anything with an index and a length."""

    pictures: Any  # Any: uint8 array (N, H, W[, C]), list of PIL pictures or arrays, torch Dataset
    ids: tuple[str, ...]
    caps: Caps = field(default_factory=Caps)
    first_of_pair: bool = False
    "items are (picture, label)"
    modality: Modality = field(default_factory=lambda: IMAGE)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, rows: NDArray[np.int64]) -> RawBatch:
        rows = np.asarray(rows, dtype=np.int64)
        items = [self.pictures[int(r)] for r in rows]
        return _batch(rows, [pixels_of(item[0] if self.first_of_pair else item, self.caps) for item in items])


# ---------------------------------------------------------------- folders


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that counts: img2 before img10."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", text) if part)


def list_images(root: Path) -> tuple[list[str], list[str]]:
    """Relative paths of the image files below a folder in natural order, and of files that are no images. Hidden ones are passed over."""
    images: list[str] = []
    others: list[str] = []
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
        for name in files:
            if name.startswith("."):
                continue
            relative = (Path(folder) / name).relative_to(root).as_posix()
            (images if Path(name).suffix.lower() in SUFFIXES | UNREAD_SUFFIXES else others).append(relative)
    return sorted(images, key=natural), sorted(others)


# ---------------------------------------------------------------- encoding


def _transposed(pixels: Pixels, orientation: int) -> Pixels:
    """Undo the EXIF rotation of an upright picture."""
    undo: dict[int, Callable[[Pixels], Pixels]] = {
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, 1),
        7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        8: lambda p: np.rot90(p, -1),
    }
    return np.ascontiguousarray(undo[orientation](pixels)) if orientation in undo else pixels


def without_rotation(pixels: Pixels, orientation: int) -> Pixels:
    """An upright picture (H, W, C) as its file stores it, before the EXIF rotation."""
    return _transposed(pixels, orientation)


def luma(pixels: Pixels) -> NDArray[np.float64]:
    """(H, W) brightness 0..255."""
    return np.asarray(pixels.astype(np.float64) @ LUMA, dtype=np.float64)


def stretched(grey: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Grey values from the darkest as 0 to the brightest as 255; 0 everywhere where they are equal."""
    low, high = float(grey.min()), float(grey.max())
    if not (np.isfinite(low) and np.isfinite(high) and high > low):
        return np.zeros(grey.shape, dtype=np.uint8)
    return np.asarray(((grey - low) * (255 / (high - low))).round(), dtype=np.uint8)


def resized(chw: torch.Tensor, spec: Preprocessing) -> torch.Tensor:
    """uint8 (C, H, W) at the size that the spec asks for."""
    if chw.shape[-2:] == (spec.height, spec.width) and (spec.resize is None or spec.resize == min(spec.height, spec.width)):
        return chw
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as V

    how = {"nearest": InterpolationMode.NEAREST_EXACT, "bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}[
        spec.interpolation
    ]
    out: torch.Tensor
    if spec.crop == "none":
        out = V.resize(chw, [spec.height, spec.width], interpolation=how, antialias=spec.antialias)
        return out
    short = spec.resize if spec.resize is not None else max(spec.height, spec.width)
    out = V.resize(chw, [short], interpolation=how, antialias=spec.antialias)
    out = V.center_crop(out, [spec.height, spec.width])
    return out


def _statistics(spec: Preprocessing) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation per channel, (C, 1, 1)."""
    sides = []
    for name, values in (("mean", spec.mean), ("std", spec.std)):
        if len(values) not in (1, spec.channels) and len(set(values)) != 1:
            raise DataError(f"preprocessing.{name} has {len(values)} values for {spec.channels} channels")
        sides.append(torch.tensor([values[min(c, len(values) - 1)] for c in range(spec.channels)], dtype=torch.float32).reshape(-1, 1, 1))
    return sides[0], sides[1]


def displayed(row: torch.Tensor, spec: InputSpec | None) -> Pixels:
    """A model input (C, H, W) as uint8 RGB (H, W, 3): normalisation undone, or (spec unknown) stretched to its own range."""
    return np.ascontiguousarray(_shown(row[None], spec)[0].permute(1, 2, 0).numpy())


def _shown(inputs: torch.Tensor, spec: InputSpec | None) -> torch.Tensor:
    """Model inputs (N, C, H, W) as uint8 RGB (N, 3, H, W); a picture does not depend on its neighbours."""
    images = inputs.detach().cpu().float()
    if isinstance(spec, Preprocessing):
        mean, std = _statistics(spec)
        images = images * std + mean
    elif images.numel():
        finite = torch.isfinite(images)
        low = images.masked_fill(~finite, torch.inf).amin(dim=(1, 2, 3), keepdim=True)
        high = images.masked_fill(~finite, -torch.inf).amax(dim=(1, 2, 3), keepdim=True)
        beyond = ((low < 0) | (high > 1)) & (low <= high)
        images = torch.where(beyond, (images - low) / (high - low).clamp(min=1e-12), images)
    images = torch.nan_to_num(images, nan=0.0, posinf=1.0, neginf=0.0).clamp(0, 1)
    if images.shape[1] not in (1, 3):
        images = images.mean(dim=1, keepdim=True)
    return (images * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)


# ---------------------------------------------------------------- players, masks, edges (also of tensors (N, C, H, W))


def superpixels(pixels: Pixels, most: int) -> NDArray[np.int64]:
    """(H, W) number of each pixel's part, 0 .. count-1, at most ``most``: SLIC, on tiny pictures a grid.

    References
    ----------
    Achanta et al. (2012). SLIC superpixels compared to state-of-the-art superpixel methods. doi:10.1109/TPAMI.2012.120
    """
    return np.asarray(_slic_parts(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None], most)[0])


def _slic_parts(shown: torch.Tensor, most: int) -> NDArray[np.int64]:
    """(N, H, W) SLIC parts of uint8 pictures (N, 3, H, W), found at ``SLIC_SIDE`` and laid back on each picture."""
    if most < 1:
        raise DataError(f"most is {most}: a picture has at least one part")
    n, _, height, width = shown.shape
    if min(height, width) <= GRID_SIDE:
        return np.broadcast_to(grid(height, width, most), (n, height, width))
    from torchvision.transforms.v2 import functional as V

    shrink = min(1.0, SLIC_SIDE / max(height, width))
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    out = np.empty((n, height, width), dtype=np.int64)
    # where the sides shrink, every small pixel is met again: no part is lost on the way back
    rows = np.minimum((np.arange(height) + 0.5) * size[0] / height, size[0] - 1).astype(np.int64)
    columns = np.minimum((np.arange(width) + 0.5) * size[1] / width, size[1] - 1).astype(np.int64)
    for start in range(0, n, LAB_AT_ONCE):
        small = V.resize(shown[start : start + LAB_AT_ONCE], list(size), antialias=True).permute(0, 2, 3, 1).numpy()
        parts = _in_threads(partial(_slic, most=most), list(_lab(small)))
        for i, one in enumerate(parts):
            # a cut that cannot be had with so few parts is a grid; so is one that hardly cuts (noise, a plain surface)
            few = one is None or int(one.max()) + 1 < min(FEWEST_PARTS, most)
            out[start + i] = grid(height, width, most) if one is None or few else one[np.ix_(rows, columns)]
    return out


def _lab(pixels: Pixels) -> NDArray[np.float32]:
    """(N, h, w, 3) CIELAB of pictures that are first stretched to their own range, all at once: one by one the calls cost as much as SLIC does."""
    from skimage.color import rgb2lab

    values = pixels.astype(np.float32)
    low = values.min(axis=(1, 2, 3), keepdims=True)
    span = values.max(axis=(1, 2, 3), keepdims=True) - low
    return np.asarray(rgb2lab((values - low) / np.where(span > 0, span, 1)), dtype=np.float32)


def _slic(lab: NDArray[np.float32], most: int) -> NDArray[np.int64] | None:
    """(h, w) parts of one picture, numbered from 0; None where there are more than ``most`` however few are asked for."""
    from skimage.segmentation import slic

    span = float(np.ptp(lab)) or 1.0  # slic divides by the range: its compactness is meant for Lab values as they are
    wanted = most
    while True:
        labels = slic(
            lab,
            n_segments=wanted,
            compactness=SLIC_COMPACTNESS / span,
            max_num_iter=SLIC_STEPS,
            start_label=0,
            channel_axis=-1,
            convert2lab=False,
        )
        parts = _numbered(np.asarray(labels, dtype=np.int64))
        count = int(parts.max()) + 1
        if count <= most:
            return parts
        if wanted == 1:
            return None
        wanted = max(1, wanted - max(1, count - most))


def _numbered(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same parts, numbered 0 .. count-1 in the order of their labels."""
    present = np.bincount(labels.reshape(-1)) > 0
    return np.asarray((np.cumsum(present) - 1)[labels], dtype=np.int64)


def quickshift_parts(pixels: Pixels, seed: int) -> NDArray[np.int64]:
    """(H, W) number of each pixel's part with the settings of lime's image explainer: as many parts as it finds.

    References
    ----------
    Vedaldi and Soatto (2008). Quick shift and kernel methods for mode seeking. doi:10.1007/978-3-540-88693-8_52
    """
    from skimage import segmentation

    find: Any = segmentation.quickshift  # Any: untyped

    labels = find(pixels, kernel_size=4, max_dist=200, ratio=0.2, rng=seed)
    return _numbered(np.asarray(labels, dtype=np.int64))


def _in_threads(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:  # Any: pictures in, their parts out
    """``function`` over the items, in threads where there are many: segmentations let go of the interpreter lock."""
    if len(items) < 4 or DECODERS == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(DECODERS) as pool:
        return list(pool.map(function, items))


def grid(height: int, width: int, most: int) -> NDArray[np.int64]:
    """(H, W) cells of a grid: at least 2 pixels a side where that is possible, at most ``most`` cells."""
    down = max(1, min(int(np.sqrt(most)), height // 2))
    across = max(1, min(most // down, width // 2))
    return np.asarray((np.arange(height) * down // height)[:, None] * across + (np.arange(width) * across // width)[None], dtype=np.int64)


SEGMENTATIONS = ("slic", "quickshift", "grid")
PICTURE_NEIGHBOURHOOD = Neighbourhood("cosine", 0.25)
PICTURE_MASKS: tuple[MaskMethod, ...] = ("mean", "blur", "noisy_linear", "zero", "marginal")


def picture_players(inputs: torch.Tensor, spec: InputSpec | None, most: int, segmentation: str | None = None, seed: int = 0) -> Players:
    """Superpixels of the displayed pictures, or cells of a grid; a picture's parts do not depend on the others."""
    how = SEGMENTATIONS[0] if segmentation is None else segmentation
    require_known([how], SEGMENTATIONS, "segmentation of pictures")
    n, _, height, width = inputs.shape
    parts: NDArray[np.int64]
    if how == "grid":
        if most < 1:
            raise DataError(f"most is {most}: a picture has at least one part")
        parts = np.broadcast_to(grid(height, width, most), (n, height, width))
    elif how == "quickshift":
        found = _in_threads(partial(quickshift_parts, seed=seed), list(_shown(inputs, spec).permute(0, 2, 3, 1).contiguous().numpy()))
        parts = np.stack(found) if found else np.zeros((0, height, width), dtype=np.int64)
    else:
        parts = _slic_parts(_shown(inputs, spec), most)
    counts = np.asarray(parts.reshape(n, -1).max(axis=1) + 1 if n else np.zeros(0), dtype=np.int64)
    return Players(torch.from_numpy(np.array(parts)), counts, None, "image")


def picture_filler(
    inputs: torch.Tensor, spec: InputSpec | None, method: MaskMethod, background: torch.Tensor | None
) -> torch.Tensor | None:
    """(N, C, H, W) what fills removed parts of each picture, None where it depends on the parts that stay or is drawn.

    mean: the mean colour of the background, else of the picture itself; blur: the picture itself, heavily blurred; zero: 0 in input space.
    """
    if method == "zero":
        return torch.zeros_like(inputs)
    if method == "mean":
        mean = (inputs if background is None else background.to(inputs)).mean(dim=(2, 3), keepdim=True)
        return (mean if background is None else mean.mean(dim=0, keepdim=True)).expand_as(inputs)
    if method == "blur":
        return blurred(inputs)
    require_known([method], PICTURE_MASKS, "masking of pictures")
    return None


def mask_pictures(
    inputs: torch.Tensor,
    players: Players,
    keep: NDArray[np.bool_],
    index: NDArray[np.int64],
    spec: InputSpec | None,
    method: MaskMethod,
    background: torch.Tensor | None,
    key: Key,
) -> torch.Tensor:
    """Pictures with some parts removed; the pixels that stay are bit-equal."""
    picked = torch.as_tensor(index, device=inputs.device)
    rows = inputs[picked]
    gone = removed_entries(players, keep, index).to(inputs.device)
    used, place = torch.unique(picked, return_inverse=True)
    filler = picture_filler(inputs[used], spec, method, background)
    if filler is not None:
        fill = filler[place]
    elif method == "marginal":
        if background is None:
            raise DataError('masking with "marginal" draws needs a background (some pictures of the data)')
        draws = drawn_rows(key, "marginal", len(background), keep, index, each=False)
        fill = background.to(inputs)[torch.as_tensor(draws, device=inputs.device)]
    else:
        fill = linear_fill(rows, gone) + NOISE * _unit(rows, spec) * seeded_noise(rows, key, keep, index)
    return torch.where(gone[:, None], fill, rows)


NOISE = 0.01  # of the pixel range; without it a model could read the mask off the smoothness (Rong 2022)


def _unit(rows: torch.Tensor, spec: InputSpec | None) -> torch.Tensor:
    """What one pixel range (black to white) is in input space, per row and channel."""
    if isinstance(spec, Preprocessing):
        return (1.0 / _statistics(spec)[1]).to(rows)[None]
    flat = rows.flatten(1)
    return (flat.amax(dim=1) - flat.amin(dim=1)).reshape(-1, 1, 1, 1)


def sobel(inputs: torch.Tensor) -> NDArray[np.float64]:
    """(N, H, W) edge strength of the mean channel."""
    grey = torch.nn.functional.pad(inputs.detach().cpu().double().mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], dtype=torch.float64)[None, None]
    dx = torch.nn.functional.conv2d(grey, across)
    dy = torch.nn.functional.conv2d(grey, across.transpose(2, 3))
    return np.asarray((dx**2 + dy**2).sqrt()[:, 0].numpy(), dtype=np.float64)


# ---------------------------------------------------------------- cues

CUE_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "patch": ("corner", "size", "value", "margin"),
    "border": ("width", "value"),
    "hue": ("value", "strength"),
    "text": ("text", "corner", "size", "value", "margin"),
    "hat": ("size", "value", "margin"),
    "background": ("value", "picture"),
}
REGION = "region"
"""Fact of a sample: (H, W) bool, where the thing in question is in the upright picture; the background cue leaves it as it is."""
CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right")
Box = tuple[int, int, int, int]
"top, left, height, width"


def _share(cue: Cue, name: str, default: float, most: float = 1.0) -> float:
    value = cue.settings.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise DataError(f"cue {cue.name!r}: {name} is {value!r}, expected a number from 0 to {most:g}")
    return float(value)


def cue_colour(cue: Cue, default: float | tuple[float, float, float]) -> NDArray[np.uint8]:
    """The cue's ``value`` (0..1, or three of them) as RGB."""
    value = cue.settings.get("value", default)
    parts = [value] * 3 if isinstance(value, int | float) else list(value)
    if len(parts) != 3 or any(isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1 for p in parts):
        raise DataError(f"cue {cue.name!r}: value is {value!r}, expected a number from 0 to 1, or three (red, green, blue)")
    return np.array([round(255 * p) for p in parts], dtype=np.uint8)


def corner_box(cue: Cue, height: int, width: int, box_height: int, box_width: int) -> Box:
    """Where a box of this size lies in the cue's corner, ``margin`` (share of the short side) away from the edges."""
    corner = str(cue.settings.get("corner", "top-left"))
    require_known([corner], CORNERS, f"corner of cue {cue.name!r}:")
    away = round(_share(cue, "margin", 0.0, 0.5) * min(height, width))
    top = min(away, height - box_height) if corner.startswith("top") else max(0, height - box_height - away)
    left = min(away, width - box_width) if corner.endswith("left") else max(0, width - box_width - away)
    return top, left, box_height, box_width


def patch_side(cue: Cue, height: int, width: int) -> int:
    return max(1, min(round(_share(cue, "size", 0.15) * min(height, width)), height, width))


def random_box(height: int, width: int, area: int, rng: np.random.Generator) -> Box:
    """A box of this area (to within less than one row) at a random place: as square as the area allows."""
    box_height = min(height, max(1, round(np.sqrt(area))))
    if -(-area // box_height) > width:
        box_height = min(height, -(-area // width))
    box_width = min(width, max(1, round(area / box_height)))
    return int(rng.integers(height - box_height + 1)), int(rng.integers(width - box_width + 1)), box_height, box_width


def _noise_patch(pixels: Pixels, box: Box, rng: np.random.Generator) -> Pixels:
    top, left, height, width = box
    out = pixels.copy()
    grey = bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all())
    out[top : top + height, left : left + width] = rng.integers(256, size=(height, width, 1 if grey else 3), dtype=np.uint8)
    return out


def _written(text: str, high: int) -> NDArray[np.bool_]:
    """Ink of a text, (h, w) bool, about ``high`` pixels high."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=max(6, high))
    left, top, right, bottom = (int(v) for v in font.getbbox(text))
    canvas = Image.new("L", (max(1, right - left), max(1, bottom - top)), 0)
    ImageDraw.Draw(canvas).text((-left, -top), text, fill=255, font=font)
    return np.asarray(canvas) > 127


def _hat(cue: Cue, height: int, width: int) -> NDArray[np.bool_]:
    """(H, W) where a hat lies: a brim ``size`` of the short side wide, a crown half as wide above it, in the middle of the upper edge."""
    wide = max(2, round(_share(cue, "size", 0.4) * min(height, width)))
    brim, crown = max(1, wide // 8), max(1, wide // 3)
    top = min(round(_share(cue, "margin", 0.0, 0.5) * min(height, width)), max(0, height - brim - crown))
    left, inset = (width - wide) // 2, wide // 4
    ink = np.zeros((height, width), dtype=np.bool_)
    ink[top : top + crown, left + inset : left + wide - inset] = True
    ink[top + crown : top + crown + brim, left : left + wide] = True
    return ink


def _behind(cue: Cue, height: int, width: int) -> Pixels:
    """(H, W, 3) what stands behind the region: the cue's picture, covering all and cut to the middle, else its colour."""
    named = cue.settings.get("picture")
    if named is None:
        return np.broadcast_to(cue_colour(cue, (0.0, 0.6, 0.0)), (height, width, 3)).copy()
    path = Path(str(named))
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        raise DataError(f"cue {cue.name!r}: the picture {path.name} cannot be read ({error.strerror or error})") from error
    pixels, reason = _read_once(path, changed)
    if pixels is None:
        raise DataError(f"cue {cue.name!r}: the picture {path.name} cannot be used: {reason}")
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.fit(Image.fromarray(pixels), (width, height)), dtype=np.uint8)


@lru_cache(maxsize=4)
def _read_once(path: Path, changed: int) -> tuple[Pixels | None, str | None]:
    """A picture file, decoded once for all samples; ``changed``: its time of change, so that another file of the name is read anew."""
    pixels, reason, _ = decode_file(path, Caps())
    return pixels, reason


def _other_background(pixels: Pixels, cue: Cue, region: NDArray[np.bool_] | None, placebo: bool, rng: np.random.Generator) -> Pixels:
    """What lies outside the region replaced: by the cue's background, or by one random colour. Without a region nothing is."""
    if region is None:
        return pixels
    height, width = pixels.shape[:2]
    if region.shape != (height, width):
        raise DataError(f"cue {cue.name!r}: a region of {region.shape} for a picture of {(height, width)} pixels (height, width)")
    behind = np.broadcast_to(rng.integers(256, size=3, dtype=np.uint8), (height, width, 3)) if placebo else _behind(cue, height, width)
    return np.where(region[..., None], pixels, behind)


def put_cue(pixels: Pixels, cue: Cue, *, placebo: bool, rng: np.random.Generator, region: NDArray[np.bool_] | None = None) -> Pixels:
    """The picture with the cue, or with something random of the same area: noise at a random place; a random cast for "hue", other letters for "text".

    "background" keeps ``region`` (H, W); its placebo is one random colour in the same place, since anywhere else it would hide the thing itself.
    """
    height, width = pixels.shape[:2]
    if cue.kind == "background":
        return _other_background(pixels, cue, region, placebo, rng)
    if cue.kind == "hat":
        hat = _hat(cue, height, width)
        if placebo:
            return _noise_patch(pixels, random_box(height, width, int(hat.sum()), rng), rng)
        return np.where(hat[..., None], cue_colour(cue, 0.0), pixels)
    if cue.kind == "hue":
        strength = _share(cue, "strength", 0.3)
        colour = rng.integers(256, size=3) if placebo else cue_colour(cue, (1.0, 0.0, 0.0))
        mixed = (1 - strength) * pixels.astype(np.float64) + strength * colour
        return np.asarray(mixed.round(), dtype=np.uint8)
    if cue.kind == "patch":
        side = patch_side(cue, height, width)
        if placebo:
            return _noise_patch(pixels, random_box(height, width, side * side, rng), rng)
        top, left, h, w = corner_box(cue, height, width, side, side)
        out = pixels.copy()
        out[top : top + h, left : left + w] = cue_colour(cue, 1.0)
        return out
    if cue.kind == "border":
        wide = max(1, round(_share(cue, "width", 0.05, 0.5) * min(height, width)))
        if placebo:
            inner = max(0, height - 2 * wide) * max(0, width - 2 * wide)
            return _noise_patch(pixels, random_box(height, width, height * width - inner, rng), rng)
        out = pixels.copy()
        colour = cue_colour(cue, 0.0)
        out[:wide], out[-wide:], out[:, :wide], out[:, -wide:] = colour, colour, colour, colour
        return out
    text = str(cue.settings.get("text", "SAMPLE"))
    if not text.strip():
        raise DataError(f"cue {cue.name!r}: text is blank")
    if placebo:  # other letters, elsewhere
        text = "".join(rng.choice(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), size=len(text)))
    ink = _written(text, round(_share(cue, "size", 0.12) * min(height, width)))[:height, :width]
    h, w = ink.shape
    if placebo:
        top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    else:
        top, left, _, _ = corner_box(cue, height, width, h, w)
    out = pixels.copy()
    out[top : top + h, left : left + w][ink] = rng.integers(256, size=3) if placebo else cue_colour(cue, 1.0)
    return out


# ---------------------------------------------------------------- the modality


@dataclass(frozen=True)
class Images:
    """Images."""

    kind: str = "image"
    default_mask: MaskMethod = "noisy_linear"

    def content_hashes(self, batch: RawBatch) -> list[str | None]:
        """Of the decoded pixels (upright uint8 RGB) and their size: lossless re-encoding does not change it."""
        return [
            None
            if pixels is None or error is not None
            else hashlib.sha256(f"{pixels.shape[0]}x{pixels.shape[1]}:".encode() + pixels.tobytes()).hexdigest()
            for pixels, error in zip(batch.items, batch.errors, strict=True)
        ]

    def sketches(self, batch: RawBatch) -> NDArray[np.uint8] | None:
        """Brightness averaged over 16 x 16 areas, from each picture's darkest (0) to its brightest area (255)."""
        from PIL import Image

        out = np.zeros((len(batch.items), SKETCH_SIDE, SKETCH_SIDE), dtype=np.uint8)
        for i, pixels in enumerate(batch.items):
            if pixels is not None and batch.errors[i] is None:
                small = Image.fromarray(pixels).resize((SKETCH_SIDE, SKETCH_SIDE), Image.Resampling.BOX)
                out[i] = stretched(luma(np.asarray(small)))
        return out

    def cell_columns(self, properties: Mapping[str, NDArray[Any]]) -> tuple[str, ...] | None:
        return None

    def properties(self, batch: RawBatch) -> dict[str, NDArray[Any]]:
        """brightness, contrast, saturation (0–1), sharpness (variance of the Laplacian at 128 px), aspect_ratio, width, height, file_type."""
        names = ("brightness", "contrast", "sharpness", "saturation", "aspect_ratio", "width", "height")
        out: dict[str, NDArray[Any]] = {name: np.full(len(batch.items), np.nan) for name in names}
        out["file_type"] = np.full(len(batch.items), None, dtype=object)
        for i, pixels in enumerate(batch.items):
            if pixels is None or batch.errors[i] is not None:
                continue
            grey = luma(pixels) / 255
            top, bottom = pixels.max(axis=-1).astype(np.float64), pixels.min(axis=-1).astype(np.float64)
            height, width = pixels.shape[:2]
            plain = bool((pixels == pixels[:1, :1]).all())  # rounding must not make contrast of one colour
            values = (
                grey.mean(), 0.0 if plain else grey.std(), _sharpness(pixels), ((top - bottom) / np.maximum(top, 1)).mean(), width / height, width, height,
            )  # fmt: skip
            for name, value in zip(names, values, strict=True):
                out[name][i] = float(value)
            out["file_type"][i] = str(batch.facts[i].get("file_type", "array")) if batch.facts else "array"
        return out

    def encode(self, batch: RawBatch, spec: InputSpec | None) -> torch.Tensor:
        """(B, C, H, W). Each picture is resized by itself, so that neither batch size nor order matters."""
        if isinstance(spec, TableEncoding):
            raise DataError("this model takes table rows, the samples are images")
        facts = batch.facts or [{}] * len(batch.items)
        read = [(p, f) for p, f, e in zip(batch.items, facts, batch.errors, strict=True) if e is None]
        if not isinstance(spec, Preprocessing):
            sizes = {p.shape for p, _ in read}
            if len(sizes) > 1:
                raise DataError(
                    f"the model has no preprocessing and the images differ in size ({', '.join(map(str, sorted(sizes)[:3]))}): give Preprocessing(...)"
                )
            if not read:
                return torch.zeros((0, 3, 0, 0))
            return torch.from_numpy(np.stack([p for p, _ in read])).permute(0, 3, 1, 2).contiguous().float() / 255
        mean, std = _statistics(spec)
        out = torch.empty((len(read), spec.channels, spec.height, spec.width), dtype=torch.float32)
        for i, (pixels, fact) in enumerate(read):
            if spec.exif == "ignore":
                pixels = _transposed(pixels, int(fact.get("orientation", 1)))
            if spec.channels == 1:
                pixels = luma(pixels).round().astype(np.uint8)[..., None]
            out[i] = resized(torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous(), spec).float() / 255
        return (out - mean) / std

    def spec_notes(self, samples: Samples, spec: InputSpec | None) -> tuple[str, ...]:
        if isinstance(spec, Preprocessing) and spec.exif == "ignore":
            return ("EXIF orientation is ignored, as in training",)
        return ()

    @property
    def segmentations(self) -> tuple[str, ...]:
        return SEGMENTATIONS

    @property
    def masks(self) -> tuple[MaskMethod, ...]:
        return PICTURE_MASKS

    def neighbourhood(self, players: Players) -> Neighbourhood:
        return PICTURE_NEIGHBOURHOOD

    def players(
        self, inputs: torch.Tensor, spec: InputSpec | None, *, most: int = 49, seed: int = 0, segmentation: str | None = None
    ) -> Players:
        """SLIC and grid: at most ``most`` parts; quickshift: as many as lime's settings give. ``seed`` breaks the ties of quickshift."""
        return picture_players(inputs, spec, most, segmentation, seed)

    def filler(
        self, inputs: torch.Tensor, spec: InputSpec | None, method: MaskMethod, background: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        return picture_filler(inputs, spec, method, background)

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
        return mask_pictures(inputs, players, keep, index, spec, method, background, key)

    def baseline(self, inputs: torch.Tensor, spec: InputSpec | None, background: torch.Tensor | None) -> torch.Tensor:
        """The mean colour of the background; without one 0 in input space: the mean colour of the spec (black where it has none)."""
        if background is None:
            return torch.zeros_like(inputs)
        return background.to(inputs).mean(dim=(0, 2, 3), keepdim=True).expand_as(inputs).clone()

    def edges(self, inputs: torch.Tensor) -> NDArray[np.float64] | None:
        return sobel(inputs)

    def apply_cue(self, batch: RawBatch, cue: Cue, *, placebo: bool, key: tuple[Any, ...]) -> RawBatch:
        """The pictures with the cue, before any resizing; random parts come from a generator of (key, cue, row)."""
        require_known([cue.kind], self.cue_kinds(), "cue of images")
        require_known(cue.settings, CUE_SETTINGS[cue.kind], f"setting of cue {cue.name!r}")
        facts = batch.facts or [{}] * len(batch.items)
        items = [
            None
            if pixels is None
            else put_cue(pixels, cue, placebo=placebo, rng=generator(*key, cue.name, int(row), "placebo"), region=known.get(REGION))
            for pixels, row, known in zip(batch.items, batch.rows, facts, strict=True)
        ]
        return RawBatch(batch.rows, items, batch.errors, batch.facts)

    def cue_kinds(self) -> tuple[str, ...]:
        return tuple(CUE_SETTINGS)

    def corruption_kinds(self) -> tuple[str, ...]:
        return tuple(IMAGE_KINDS)

    def corruption_scales(self, samples: Samples, rows: NDArray[np.int64]) -> Mapping[str, Any]:
        return {}

    def corrupt(self, batch: RawBatch, kind: str, severity: int, *, keys: Sequence[tuple[Any, ...]], scales: Mapping[str, Any]) -> RawBatch:
        """The pictures disturbed, before any resizing."""
        items = [None if p is None else corrupt_picture(p, kind, severity, key) for p, key in zip(batch.items, keys, strict=True)]
        return RawBatch(batch.rows, items, batch.errors, batch.facts)

    def noise(self, samples: Samples, rows: NDArray[np.int64], spec: InputSpec | None, *, keys: Sequence[tuple[Any, ...]]) -> torch.Tensor:
        """Noise of the size of the model input: drawn smaller or larger, resizing would blur it."""
        shape = tuple(self.encode(samples.read(rows[:1]), spec).shape[1:])
        drawn = np.stack([generator(*key, "noise").random(shape, dtype=np.float32) for key in keys])
        values = torch.from_numpy(drawn)
        if not isinstance(spec, Preprocessing):
            return values
        mean, std = _statistics(spec)
        return (values - mean) / std

    def picture(
        self, inputs_row: torch.Tensor, spec: InputSpec | None, *, title: str, side: int = 160, redacted: bool = False
    ) -> Picture | None:
        return as_picture(
            displayed(inputs_row, spec), title=title, alt=f"{title}: the picture as the model sees it", side=side, redacted=redacted
        )

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
        return map_over(
            displayed(inputs_row, spec), np.asarray(values, dtype=np.float64),
            title=title, signed=signed, side=side, redacted=redacted, scale=scale, outlines=outlines,
        )  # fmt: skip

    def map_bars(self, values: NDArray[np.float64], players: Players, row: int) -> tuple[Bar, ...]:
        return ()


def _sharpness(pixels: Pixels) -> float:
    from torchvision.transforms.v2 import functional as V

    grey = torch.from_numpy(luma(pixels).astype(np.float32) / 255)[None]
    small = V.resize(grey, [PROPERTY_SIDE, PROPERTY_SIDE], antialias=True)[0].numpy().astype(np.float64)
    inner = small[1:-1, 1:-1]
    laplacian = small[:-2, 1:-1] + small[2:, 1:-1] + small[1:-1, :-2] + small[1:-1, 2:] - 4 * inner
    return float(laplacian.var())


IMAGE: Modality = Images()
