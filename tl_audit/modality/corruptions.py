"""Everyday disturbances of samples, from slight (1) to strong (3), each drawn from a generator of the sample's own key. Severity 0 changes nothing.

The strengths are conventions of ours, weaker than those of Hendrycks and Dietterich (2019, arXiv:1903.12261): what a careless scan, a
compressed upload or a form filled in haste does, and no attack. A stronger version of a disturbance uses the same draws, so that severities nest.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_audit.errors import DataError
from tl_audit.measures.sampling import generator
from tl_audit.modality.options import require_known

SEVERITIES = (1, 2, 3)

IMAGE_KINDS: Mapping[str, tuple[float, float, float]] = {
    "noise": (0.04, 0.08, 0.12),
    "blur": (0.005, 0.01, 0.02),
    "contrast": (0.75, 0.5, 0.35),
    "brightness": (0.1, 0.2, 0.3),
    "jpeg": (50, 25, 12),
    "pixelate": (0.6, 0.5, 0.4),
}
"""noise: standard deviation, of the range · blur: standard deviation, of the shorter side · contrast: factor about the picture's mean ·
brightness: added, of the range · jpeg: quality · pixelate: remaining share of each side."""

LEAST_BLUR = (0.4, 0.6, 0.8)
"""Standard deviation of the blur in pixels, at least: below it a small picture would stay as it is."""

TABLE_KINDS: Mapping[str, tuple[float, float, float]] = {
    "noise": (0.05, 0.1, 0.2),
    "missing cells": (0.05, 0.1, 0.2),
    "category swaps": (0.05, 0.1, 0.2),
}
"""noise: standard deviation, of the column's interquartile range · missing cells, category swaps: share of cells."""

_AUGMENTED: Mapping[str, tuple[str, ...]] = {
    "GaussianNoise": ("noise",),
    "GaussianBlur": ("blur",),
    "RandomAutocontrast": ("contrast",),
    "RandomEqualize": ("contrast",),
    "RandomPhotometricDistort": ("brightness", "contrast"),
    "JPEG": ("jpeg",),
    "AutoAugment": ("brightness", "contrast"),
    "RandAugment": ("brightness", "contrast"),
    "TrivialAugmentWide": ("brightness", "contrast"),
    "AugMix": ("contrast",),
}

Key = tuple[Any, ...]  # Any: parts of a generator's key


def trained_with(training: Mapping[str, Any]) -> frozenset[str]:  # Any: the settings of an adaptation record
    """Kinds of corruption that the training augmented with: a model that has seen them says nothing of those it has not."""
    kinds: set[str] = set()
    for step in training.get("augment") or ():
        name = str(step.get("name", "")) if isinstance(step, Mapping) else str(step)
        kinds |= set(_AUGMENTED.get(name, ()))
        if name == "ColorJitter" and isinstance(step, Mapping):
            kinds |= {kind for kind in ("brightness", "contrast") if (step.get("args") or {}).get(kind)}
    return frozenset(kinds)


def _strength(kinds: Mapping[str, tuple[float, float, float]], kind: str, severity: int, what: str) -> float | None:
    """The strength, None for severity 0."""
    require_known([kind], tuple(kinds), f"corruption of {what}")
    if severity not in (0, *SEVERITIES):
        raise DataError(f"severity is {severity}: expected 0 to {len(SEVERITIES)}")
    return None if severity == 0 else kinds[kind][severity - 1]


def corrupt_picture(pixels: NDArray[np.uint8], kind: str, severity: int, key: Key) -> NDArray[np.uint8]:
    """A disturbed copy of one picture, uint8 (H, W, 3), same size."""
    strength = _strength(IMAGE_KINDS, kind, severity, "images")
    if strength is None:
        return pixels
    if kind == "jpeg":
        return _compressed(pixels, int(strength))
    if kind == "pixelate":
        return _pixelated(pixels, strength)
    x = pixels.astype(np.float32)
    if kind == "noise":
        x = x + 255 * np.float32(strength) * generator(*key, kind).standard_normal(x.shape, dtype=np.float32)
    elif kind == "blur":
        from scipy.ndimage import gaussian_filter

        sigma = max(strength * min(x.shape[:2]), LEAST_BLUR[severity - 1])
        x = gaussian_filter(x, (sigma, sigma, 0), mode="nearest")
    elif kind == "contrast":
        mean = x.mean(axis=(0, 1), keepdims=True)
        x = mean + strength * (x - mean)
    else:
        x = x + 255 * strength
    return np.asarray(np.clip(np.rint(x), 0, 255), dtype=np.uint8)


def _compressed(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    from PIL import Image

    held = io.BytesIO()
    Image.fromarray(pixels).save(held, format="JPEG", quality=quality)
    with Image.open(io.BytesIO(held.getvalue())) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.uint8)


def _pixelated(pixels: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    from PIL import Image

    height, width = pixels.shape[:2]
    small = Image.fromarray(pixels).resize((max(1, round(share * width)), max(1, round(share * height))), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST), dtype=np.uint8)


Scales = Mapping[str, float | tuple[str, ...]]
"""Of each column: its interquartile range, or the categories seen."""


def column_scales(columns: Mapping[str, NDArray[Any]]) -> dict[str, float | tuple[str, ...]]:  # Any: numbers or texts
    """What disturbances of a table are measured by, from the rows given."""
    out: dict[str, float | tuple[str, ...]] = {}
    for name, values in columns.items():
        if values.dtype.kind in "iuf":
            known = values[np.isfinite(values)]
            out[name] = float(np.subtract(*np.percentile(known, [75, 25]))) if known.size else 0.0
        else:
            out[name] = tuple(sorted({str(v) for v in values if v is not None and v == v}))
    return out


def corrupt_columns(
    columns: Mapping[str, NDArray[Any]], kind: str, severity: int, keys: Sequence[Key], scales: Scales
) -> dict[str, NDArray[Any]]:
    """A disturbed copy of table rows by column. A column that ``scales`` lacks, without spread or with one category only, stays as it is where
    noise or swaps are asked for.

    Parameters
    ----------
    columns : name -> (B,) float64 (NaN missing) or object (None missing)
    keys : (B,) one for each row
    """
    strength = _strength(TABLE_KINDS, kind, severity, "tables")
    out = {name: values.copy() for name, values in columns.items()}
    if strength is None:
        return out
    # one draw per row and column, columns by name: neither the other rows nor the order of columns matters
    names = sorted(columns)
    draws = [generator(*key, kind) for key in keys]
    chance = np.array([rng.random(len(names)) for rng in draws]).reshape(len(draws), len(names))
    other = np.array([rng.random(len(names)) for rng in draws]).reshape(len(draws), len(names))
    normal = np.array([rng.standard_normal(len(names)) for rng in draws]).reshape(len(draws), len(names))
    for at, name in enumerate(names):
        values, scale = out[name], scales.get(name)
        numeric = values.dtype.kind in "iuf"
        if kind == "missing cells":
            gone = chance[:, at] < strength
            if numeric:
                out[name] = np.where(gone, np.nan, values.astype(np.float64))
            else:
                values[gone] = None
        elif kind == "noise" and numeric and isinstance(scale, float):
            out[name] = values + strength * scale * normal[:, at]
        elif kind == "category swaps" and not numeric and isinstance(scale, tuple):
            for row in np.flatnonzero(chance[:, at] < strength):
                choices = [c for c in scale if c != values[row]]
                if values[row] is not None and choices:
                    values[row] = choices[int(other[row, at] * len(choices))]
    return out
