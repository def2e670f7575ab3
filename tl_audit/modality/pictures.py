"""Small PNG pictures for exhibits: samples, and maps over them. Nothing but pixels is written."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray

from tl_audit.records.colours import colour_table, painted, reach
from tl_audit.records.exhibits import Picture

LARGEST = 224
REDACTED = 32
OUTLINE_LIGHT, OUTLINE_DARK = 255.0, 26.0
SMALLEST_OUTLINED = 5
"""Parts less than this many shown pixels wide are not outlined: the lines would hide the map."""


def scaled(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The picture with its long side at ``side``: averaged when smaller, whole pixels when larger."""
    from PIL import Image

    height, width = pixels.shape[:2]
    factor = side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    how = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BOX
    return np.asarray(Image.fromarray(pixels).resize(size, how))


def png(pixels: NDArray[np.uint8]) -> str:
    """Base64 PNG without metadata."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


def as_picture(pixels: NDArray[np.uint8], *, title: str, alt: str, side: int, redacted: bool, note: str | None = None) -> Picture:
    """A Picture of RGB pixels, at most 224 px; redacted: at most 32 px, so that faces and writing cannot be read."""
    long = max(pixels.shape[:2])
    shown = scaled(pixels, min(REDACTED, long) if redacted else min(side, LARGEST))
    words = [w for w in (note, "redacted to 32 px" if redacted else None) if w]
    return Picture(title=title, alt=alt, png=png(shown), width=shown.shape[1], height=shown.shape[0], note="; ".join(words) or None)


def is_blank(values: NDArray[np.float64]) -> bool:
    """Whether a map holds no signal: nothing finite, or one value everywhere."""
    finite = values[np.isfinite(values)]
    if finite.size < values.size or finite.size == 0:
        return True
    return bool(finite.max() - finite.min() <= 1e-12 * max(1.0, float(np.abs(finite).max())))


def borders(parts: NDArray[np.int64], height: int, width: int) -> NDArray[np.bool_]:
    """Where the lines between parts (H, W) run in a picture of another size (height, width): the last pixel of a part before the next one."""
    rows = (np.arange(height) * parts.shape[0]) // height
    columns = (np.arange(width) * parts.shape[1]) // width
    large = parts[rows][:, columns]
    edge = np.zeros(large.shape, dtype=np.bool_)
    edge[:-1] |= large[:-1] != large[1:]
    edge[:, :-1] |= large[:, :-1] != large[:, 1:]
    return edge


def map_over(
    pixels: NDArray[np.uint8],
    values: NDArray[np.float64],
    *,
    title: str,
    signed: bool,
    side: int,
    redacted: bool,
    scale: tuple[float, float] | None = None,
    outlines: NDArray[np.int64] | None = None,
) -> Picture:
    """A map (H, W) over the grey picture.

    Parameters
    ----------
    scale : the values at both ends of the colours, e.g. of several maps beside each other; None: of this map (``records.colours.reach``)
    outlines : (H, W) part of each pixel; the lines between parts are drawn where the parts are large enough
    """
    luma = (pixels.astype(np.float64) @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)
    grey = np.repeat(luma[..., None], 3, axis=-1)
    size = min(REDACTED, max(pixels.shape[:2])) if redacted else min(side, LARGEST)
    ends = scale if scale is not None else reach(values, signed=signed)
    if is_blank(values) or ends is None:
        alt = f"{title}: no signal, the map is constant or not finite"
        return as_picture(grey, title=title, alt=alt, side=side, redacted=redacted, note="no signal")
    low, high = ends
    coloured = painted((values - low) / (high - low), colour_table(signed))
    alt = f"{title}: orange speaks for the class, blue against it" if signed else f"{title}: yellow counted most, dark blue least"
    below, above = scaled(grey, size).astype(np.float64), scaled(coloured, size).astype(np.float64)
    mixed = 0.35 * below + 0.65 * above
    if outlines is not None and not redacted:
        shown = mixed.shape[0] * mixed.shape[1] / max(1, len(np.unique(outlines)))
        if shown >= SMALLEST_OUTLINED**2:
            edge = borders(outlines, *mixed.shape[:2])
            mixed[edge] = 0.45 * mixed[edge] + 0.55 * (OUTLINE_DARK if signed else OUTLINE_LIGHT)
    note = "redacted to 32 px" if redacted else None
    return Picture(title=title, alt=alt, png=png(mixed.round().astype(np.uint8)), width=mixed.shape[1], height=mixed.shape[0], note=note)
