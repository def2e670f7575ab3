"""Sketches of pictures: the hash and the agreement of near copies, against replicas written another way."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tl_audit.errors import DataError
from tl_audit.measures.sketches import aligned_correlation, difference_hash


def scene(rng: np.random.Generator, side: int = 96) -> np.ndarray:
    """A smooth picture with a few edges, uint8 (side, side)."""
    low = rng.uniform(0, 255, (6, 6))
    picture = np.asarray(Image.fromarray(low.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC))
    top, left = rng.integers(10, side - 40, 2)
    picture = picture.copy()
    picture[top : top + 25, left : left + 25] = rng.uniform(0, 255)
    return np.clip(picture + rng.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)


def sketch(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((16, 16), Image.Resampling.BOX))


def recoded(picture: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def test_the_hash_is_that_of_area_averages_compared_one_by_one() -> None:
    rng = np.random.default_rng(0)
    sketches = rng.integers(0, 256, (20, 16, 16)).astype(np.uint8)
    for picture, key in zip(sketches, difference_hash(sketches), strict=True):
        # 144 copies of each cell: areas of 9 columns and 8 rows then hold whole copies
        fine = np.repeat(np.repeat(picture.astype(np.int64), 9, axis=1), 1, axis=0)
        areas = fine.reshape(8, 2, 9, 16).sum(axis=(1, 3))
        bits = (areas[:, :-1] > areas[:, 1:]).reshape(-1)
        assert int(key) == int("".join("1" if b else "0" for b in bits), 2)


def test_agreement_is_the_multiple_correlation_of_a_least_squares_fit() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 256, (2, 12, 16, 16)).astype(float)

    def explained(x: np.ndarray, y: np.ndarray) -> float:
        down, across = np.gradient(x)
        row, column = np.mgrid[:16, :16] - 7.5
        parts = np.stack([np.ones(256), *(p.ravel() for p in (x, down, across, down * row, across * column))], axis=1)
        fitted = parts @ np.linalg.lstsq(parts, y.ravel(), rcond=None)[0]
        return float(np.corrcoef(fitted, y.ravel())[0, 1])

    wanted = [min(explained(x, y), explained(y, x)) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(aligned_correlation(a, b), wanted, atol=1e-9)


def test_recoded_brightened_and_cropped_pictures_agree_and_others_do_not() -> None:
    rng = np.random.default_rng(2)
    pictures = [scene(rng) for _ in range(60)]
    whole = np.stack([sketch(p) for p in pictures])
    for change in (lambda p: recoded(p, 50), lambda p: (p * 0.7 + 30).astype(np.uint8), lambda p: p[1:-1, 1:-1]):
        other = np.stack([sketch(change(p)) for p in pictures])
        bits = np.bitwise_count(difference_hash(whole) ^ difference_hash(other))
        assert np.mean((bits <= 4) & (aligned_correlation(whole, other) >= 0.99)) >= 0.9
    assert aligned_correlation(whole[:-1], whole[1:]).max() < 0.9
    assert np.bitwise_count(difference_hash(whole[:-1]) ^ difference_hash(whole[1:])).min() > 10


def test_one_colour_agrees_with_nothing() -> None:
    plain, other = np.full((1, 16, 16), 9, dtype=np.uint8), np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    assert aligned_correlation(plain, other).tolist() == [0.0]
    assert aligned_correlation(plain, plain).tolist() == [0.0]
    assert difference_hash(plain).tolist() == [0]
    assert aligned_correlation(other[:0], other[:0]).shape == (0,)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(DataError, match="16, 16"):
        difference_hash(np.zeros((3, 8, 8)))
