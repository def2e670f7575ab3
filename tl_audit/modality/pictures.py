"""Small PNG pictures for exhibits: samples, and maps over them. Own colour tables; nothing but pixels is written."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray

from tl_audit.records.exhibits import Picture

LARGEST = 224
REDACTED = 32
# cividis at nine even steps (Nuñez, Anderton & Renslow 2018, doi:10.1371/journal.pone.0199239): even lightness, readable without red-green vision
CIVIDIS = ((0, 34, 78), (18, 53, 112), (59, 73, 108), (87, 93, 109), (112, 113, 115), (138, 134, 120), (165, 156, 116), (195, 179, 105), (225, 204, 85), (254, 232, 56))  # fmt: skip
BLUE_WHITE_ORANGE = ((5, 74, 145), (62, 124, 177), (129, 164, 205), (245, 245, 245), (249, 181, 114), (230, 126, 34), (166, 74, 4))


def colours(values: NDArray[np.float64], table: tuple[tuple[int, int, int], ...]) -> NDArray[np.uint8]:
    """Values in 0..1 (H, W) as RGB of a colour table, linear between its steps."""
    at = np.clip(values, 0, 1) * (len(table) - 1)
    steps = np.arange(len(table))
    channels = [np.interp(at, steps, np.array([rgb[c] for rgb in table], dtype=float)) for c in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


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


def map_over(pixels: NDArray[np.uint8], values: NDArray[np.float64], *, title: str, signed: bool, side: int, redacted: bool) -> Picture:
    """A map (H, W) over the grey picture; one strongest point of 200 is allowed to saturate."""
    luma = (pixels.astype(np.float64) @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)
    grey = np.repeat(luma[..., None], 3, axis=-1)
    size = min(REDACTED, max(pixels.shape[:2])) if redacted else min(side, LARGEST)
    if is_blank(values):
        alt = f"{title}: no signal, the map is constant or not finite"
        return as_picture(grey, title=title, alt=alt, side=side, redacted=redacted, note="no signal")
    reach = float(np.quantile(np.abs(values), 0.995)) or float(np.abs(values).max())
    if signed:
        painted = colours(0.5 + 0.5 * values / reach, BLUE_WHITE_ORANGE)
        alt = f"{title}: orange speaks for the class, blue against it"
    else:
        low = min(0.0, float(values.min()))
        painted = colours((values - low) / (reach - low), CIVIDIS)
        alt = f"{title}: yellow counted most, dark blue least"
    below, above = scaled(grey, size).astype(np.float64), scaled(painted, size).astype(np.float64)
    mixed = (0.35 * below + 0.65 * above).round().astype(np.uint8)
    note = "redacted to 32 px" if redacted else None
    return Picture(title=title, alt=alt, png=png(mixed), width=mixed.shape[1], height=mixed.shape[0], note=note)
