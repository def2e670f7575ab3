"""Everyday disturbances: severity 0 is nothing, each kind does what its name says, each sample has its own draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from tl_audit.errors import DataError
from tl_audit.modality import IMAGE, TABULAR
from tl_audit.modality.corruptions import (
    IMAGE_KINDS,
    SEVERITIES,
    TABLE_KINDS,
    column_scales,
    corrupt_columns,
    corrupt_picture,
    trained_with,
)
from tl_audit.modality.tabular import rows_of
from tl_audit.modality.tensors import TENSOR
from tl_audit.subject import Domain

RNG = np.random.default_rng(0)
PICTURE = gaussian_filter(RNG.integers(0, 256, (48, 40, 3)).astype(float), (2, 2, 0))
PICTURE = np.clip((PICTURE - PICTURE.mean()) * 4 + 110, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_severity_zero_is_nothing_and_more_is_more(kind: str) -> None:
    np.testing.assert_array_equal(corrupt_picture(PICTURE, kind, 0, (0,)), PICTURE)
    away = [np.abs(corrupt_picture(PICTURE, kind, s, (0,)).astype(float) - PICTURE).mean() for s in SEVERITIES]
    assert 0 < away[0] < away[1] < away[2]
    for s in SEVERITIES:
        out = corrupt_picture(PICTURE, kind, s, (0,))
        assert (out.shape, out.dtype) == (PICTURE.shape, np.uint8)


def test_each_kind_does_what_its_name_says() -> None:
    flat = np.full((64, 64, 3), 100, dtype=np.uint8)
    noisy = corrupt_picture(flat, "noise", 2, (0,)).astype(float)
    assert noisy.std() == pytest.approx(0.08 * 255, rel=0.05)
    assert noisy.mean() == pytest.approx(100, abs=1)
    assert (corrupt_picture(flat, "brightness", 2, (0,)) == 151).all()
    half = np.zeros((64, 64, 3), dtype=np.uint8)
    half[:, 32:] = 200
    np.testing.assert_array_equal(np.unique(corrupt_picture(half, "contrast", 2, (0,))), [50, 150])
    blurred = corrupt_picture(half, "blur", 3, (0,)).astype(float)
    np.testing.assert_allclose(blurred, gaussian_filter(half.astype(float), (1.28, 1.28, 0), mode="nearest"), atol=1)
    small = corrupt_picture(half[:8, 28:36], "blur", 1, (0,)).astype(float)
    np.testing.assert_allclose(small, gaussian_filter(half[:8, 28:36].astype(float), (0.4, 0.4, 0), mode="nearest"), atol=1)
    coarse = corrupt_picture(PICTURE, "pixelate", 3, (0,))
    assert len(np.unique(coarse.reshape(-1, 3), axis=0)) <= round(0.4 * 48) * round(0.4 * 40)


def test_tiny_and_extreme_pictures_stay_pictures() -> None:
    for pixels in (np.zeros((1, 1, 3), np.uint8), np.full((1, 7, 3), 255, np.uint8), np.full((3, 2, 3), 9, np.uint8)):
        for kind in IMAGE_KINDS:
            assert corrupt_picture(pixels, kind, 3, (0,)).shape == pixels.shape


def test_a_sample_s_draws_are_its_own() -> None:
    domain = Domain("d", RNG.integers(0, 256, (5, 8, 8, 3)).astype(np.uint8), kind="image")
    rows = np.arange(5)
    keys = [(0, f"id {i}") for i in rows]
    whole = IMAGE.corrupt(domain.samples.read(rows), "noise", 2, keys=keys, scales={})
    alone = IMAGE.corrupt(domain.samples.read(rows[3:4]), "noise", 2, keys=keys[3:4], scales={})
    np.testing.assert_array_equal(whole.items[3], alone.items[0])
    assert not np.array_equal(whole.items[3] - domain.samples.read(rows).items[3], whole.items[2] - domain.samples.read(rows).items[2])
    other = IMAGE.corrupt(domain.samples.read(rows), "noise", 2, keys=[(1, *k[1:]) for k in keys], scales={})
    assert not np.array_equal(whole.items[0], other.items[0])


def table(n: int = 2000) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "x": rng.normal(5, 2, n),
        "constant": np.full(n, 3.0),
        "colour": rng.choice(np.array(["red", "green", "blue", None], dtype=object), n),
        "one": np.full(n, "same", dtype=object),
    }


KEYS = [(0, i) for i in range(2000)]


@pytest.mark.parametrize("kind", TABLE_KINDS)
def test_tables_at_severity_zero_are_as_they_were_and_the_original_is_never_touched(kind: str) -> None:
    columns = table()
    before = {k: v.copy() for k, v in columns.items()}
    out = corrupt_columns(columns, kind, 0, KEYS, column_scales(columns))
    corrupt_columns(columns, kind, 3, KEYS, column_scales(columns))
    for name in columns:
        np.testing.assert_array_equal(out[name], before[name])
        np.testing.assert_array_equal(columns[name], before[name])


def test_noise_is_a_tenth_of_the_interquartile_range_and_leaves_texts_and_constants_alone() -> None:
    columns = table()
    out = corrupt_columns(columns, "noise", 2, KEYS, column_scales(columns))
    spread = np.subtract(*np.percentile(columns["x"], [75, 25]))
    assert (out["x"] - columns["x"]).std() == pytest.approx(0.1 * spread, rel=0.06)
    np.testing.assert_array_equal(out["constant"], columns["constant"])
    np.testing.assert_array_equal(out["colour"], columns["colour"])


def test_missing_cells_are_a_tenth_and_nest_by_severity() -> None:
    columns = table()
    gone = [np.isnan(corrupt_columns(columns, "missing cells", s, KEYS, {})["x"]) for s in SEVERITIES]
    assert gone[1].mean() == pytest.approx(0.1, abs=0.02)
    assert (gone[0] <= gone[1]).all()
    assert (gone[1] <= gone[2]).all()
    texts = corrupt_columns(columns, "missing cells", 3, KEYS, {})["one"]
    assert np.mean([t is None for t in texts]) == pytest.approx(0.2, abs=0.03)


def test_swaps_give_another_known_category_and_never_fill_a_gap() -> None:
    columns = table()
    out = corrupt_columns(columns, "category swaps", 3, KEYS, column_scales(columns))["colour"]
    known = np.array([c is not None for c in columns["colour"]])
    changed = np.array([a != b for a, b in zip(out, columns["colour"], strict=True)])
    assert changed[known].mean() == pytest.approx(0.2, abs=0.03)
    assert not changed[~known].any()
    assert set(out[known]) <= {"red", "green", "blue"}
    assert (corrupt_columns(columns, "category swaps", 3, KEYS, column_scales(columns))["one"] == "same").all()


def test_rows_and_columns_in_another_order_get_the_same_draws() -> None:
    columns = table(50)
    scales = column_scales(columns)
    whole = corrupt_columns(columns, "noise", 2, KEYS[:50], scales)
    order = np.random.default_rng(3).permutation(50)
    mixed = corrupt_columns({k: columns[k][order] for k in reversed(columns)}, "noise", 2, [KEYS[i] for i in order], scales)
    np.testing.assert_allclose(mixed["x"], whole["x"][order])


def test_empty_and_wholly_missing_columns_give_no_exception() -> None:
    columns: dict[str, Any] = {"x": np.full(3, np.nan), "t": np.array([None] * 3, dtype=object)}
    scales = column_scales(columns)
    assert scales == {"x": 0.0, "t": ()}
    for kind in TABLE_KINDS:
        corrupt_columns(columns, kind, 3, KEYS[:3], scales)
        assert corrupt_columns({k: v[:0] for k, v in columns.items()}, kind, 3, [], scales)["x"].size == 0


def test_the_table_modality_reads_its_scales_and_keeps_unreadable_rows_in_place() -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0, 3.0, 4.0], "c": ["a", "b", "a", "b"]})
    domain = Domain("t", frame)
    scales = TABULAR.corruption_scales(domain.samples, np.arange(4))
    assert scales == {"x": 1.5, "c": ("a", "b")}
    out = TABULAR.corrupt(domain.samples.read(np.arange(4)), "noise", 3, keys=KEYS[:4], scales=scales)
    assert rows_of(out.items).n == 4
    assert not np.array_equal(rows_of(out.items).columns["x"], frame["x"])


def test_mistakes_are_named() -> None:
    with pytest.raises(DataError, match="jpg"):
        corrupt_picture(PICTURE, "jpg", 1, ())
    with pytest.raises(DataError, match="severity is 4"):
        corrupt_picture(PICTURE, "jpeg", 4, ())
    assert TENSOR.corruption_kinds() == ()
    with pytest.raises(DataError):
        TENSOR.corrupt(
            Domain("t", np.zeros((2, 3), np.float32), kind="tensor").samples.read(np.arange(2)), "noise", 1, keys=KEYS[:2], scales={}
        )


def test_what_the_training_augmented_with_is_told_from_its_record() -> None:
    steps = [{"name": "RandomHorizontalFlip", "args": {}}, {"name": "GaussianBlur", "args": {"kernel_size": 3}}, "JPEG"]
    assert trained_with({"augment": steps}) == {"blur", "jpeg"}
    assert trained_with({"augment": [{"name": "ColorJitter", "args": {"brightness": 0.2}}]}) == {"brightness"}
    assert trained_with({}) == trained_with({"augment": None}) == frozenset()
