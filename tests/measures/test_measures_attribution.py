"""Numbers on attribution maps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tl_audit.errors import DataError
from tl_audit.measures.attribution import (
    blank_maps,
    centre_map,
    centroids,
    curve_area,
    faithfulness_gain,
    gini,
    mask_share,
    mass_inside,
    over_rows,
    pointing,
    pooled,
    random_maps,
    rank_correlation,
    road_combined,
    sign_agreement,
    top_iou,
)


def test_rank_correlation_is_that_of_scipy(rng):
    a, b = np.round(rng.normal(size=(6, 30)), 1), np.round(rng.normal(size=(6, 30)), 1)

    assert rank_correlation(a, b) == pytest.approx([stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)])
    assert rank_correlation(a, 3 * a + 2) == pytest.approx(np.ones(6))
    assert rank_correlation(a, -a) == pytest.approx(-np.ones(6))


def test_blank_maps_are_counted_and_never_averaged_in():
    maps = np.array([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0], [np.nan, 1.0, 2.0], [3.0, 1.0, 2.0]])

    assert blank_maps(maps).tolist() == [False, True, True, False]
    estimate = over_rows(rank_correlation(maps, np.tile([1.0, 2.0, 3.0], (4, 1))))
    assert estimate.n == 2
    assert estimate.details["blank"] == 2
    assert estimate.value == pytest.approx((1 - 0.5) / 2)
    assert over_rows([np.nan, np.nan]).reason == "every map is blank"


def test_the_overlap_of_unrelated_maps_is_that_of_chance():
    rng = np.random.default_rng(0)

    assert top_iou(rng.normal(size=(400, 200)), rng.normal(size=(400, 200))).mean() == pytest.approx(0.1 / 1.9, abs=0.006)


def test_the_overlap_by_hand():
    a = np.array([[9.0, 8, 7, 0, 0, 0, 0, 0, 0, 1]])
    b = np.array([[9.0, 8, 0, 7, 0, 0, 0, 0, 0, 1]])

    assert top_iou(a, b, share=0.3)[0] == pytest.approx(2 / 4)
    assert top_iou(a, a, share=0.3)[0] == 1


def test_zeros_do_not_agree_by_their_place():
    a, b = np.zeros((200, 100)), np.zeros((200, 100))
    a[:, 0], b[:, 50] = 1, 1

    assert top_iou(a, b).mean() < 0.09


def test_signs_by_hand():
    assert sign_agreement([[1.0, -1, 0, 2]], [[2.0, 1, 5, 1]])[0] == pytest.approx(2 / 3)
    assert np.isnan(sign_agreement([[0.0, 1.0]], [[1.0, 0.0]])[0])


@pytest.mark.parametrize("shape", [(28, 28), (30, 41), (14, 14), (5, 9)])
def test_pooling_keeps_the_mean_and_equals_blocks_where_they_fit(rng, shape):
    maps = rng.normal(size=(3, *shape))
    result = pooled(maps)

    assert result.mean(axis=1) == pytest.approx(maps.mean(axis=(1, 2)))
    if shape == (28, 28):
        assert result == pytest.approx(maps.reshape(3, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(3, 196))


def test_random_maps_keep_values_and_smoothness_but_not_places():
    rng = np.random.default_rng(0)
    from scipy.ndimage import gaussian_filter

    maps = np.stack([gaussian_filter(rng.normal(size=(40, 40)), 3, mode="wrap") for _ in range(20)])
    drawn = random_maps(maps, count=3, seed=1)

    def roughness(x):
        return (np.diff(x, axis=-1) ** 2).mean() / x.var()

    assert np.sort(drawn[0].reshape(20, -1)) == pytest.approx(np.sort(maps.reshape(20, -1)))
    assert roughness(drawn) == pytest.approx(roughness(maps), rel=0.15)
    assert roughness(rng.permuted(maps.reshape(20, -1), axis=1).reshape(maps.shape)) > 10 * roughness(maps)
    likeness = rank_correlation(np.tile(maps.reshape(20, -1), (3, 1)), drawn.reshape(60, -1))
    assert abs(likeness.mean()) < 0.08
    assert np.array_equal(drawn, random_maps(maps, count=3, seed=1))


def test_areas_by_hand():
    assert curve_area([[1.0, 0.5, 0.0]])[0] == pytest.approx(0.5)
    assert curve_area([[1.0, 0.0, 0.0]], [0.0, 0.2, 1.0])[0] == pytest.approx(0.1)
    with pytest.raises(DataError, match="at least 2"):
        curve_area([[1.0]])
    with pytest.raises(DataError, match="must grow"):
        curve_area([[1.0, 0.0]], [0.5, 0.5])


def test_removal_in_both_orders_by_hand():
    assert road_combined([[0.9, 0.8], [0.5, 0.5]], [[0.3, 0.2], [0.5, 0.5]]) == pytest.approx([0.3, 0.0])
    with pytest.raises(DataError, match="expected the same"):
        road_combined([[0.9]], [[0.3, 0.2]])


def test_a_map_no_better_than_random_gains_nothing():
    rng = np.random.default_rng(0)
    random_scores = rng.normal(size=(5, 60)) * 0.1
    none = faithfulness_gain(rng.normal(size=60) * 0.1, random_scores)
    some = faithfulness_gain(rng.normal(size=60) * 0.1 + 0.2, random_scores)

    assert none.interval()[0] < 0 < none.interval()[1]
    assert none.p_value > 0.05
    assert some.interval()[0] > 0.1
    assert some.p_value == 0.001
    with pytest.raises(DataError, match="expected \\(random maps, 60\\)"):
        faithfulness_gain(np.zeros(60), np.zeros((60, 5)))


def test_a_uniform_map_has_its_masks_share_of_mass_and_the_mask_itself_all_of_it(rng):
    masks = rng.random((5, 8, 8)) < 0.3

    assert mass_inside(np.ones((5, 8, 8)), masks) == pytest.approx(mask_share(masks))
    assert mass_inside(masks.astype(float), masks) == pytest.approx(np.ones(5))
    assert np.isnan(mass_inside(-np.ones((1, 2, 2)), np.ones((1, 2, 2)))[0])


def test_the_centre_map_is_centred_and_sums_to_one():
    assert centre_map(9, 11).sum() == pytest.approx(1)
    assert centroids(centre_map(9, 11)[None])[0] == pytest.approx([0.5, 0.5])


def test_pointing_takes_the_mean_of_ties():
    mask = np.array([[[True, False], [False, False]]])

    assert pointing(np.array([[[5.0, 1.0], [0.0, 0.0]]]), mask)[0] == 1
    assert pointing(np.array([[[5.0, 5.0], [0.0, 0.0]]]), mask)[0] == 0.5


@given(st.lists(st.floats(0.01, 10), min_size=2, max_size=10))
def test_gini_is_half_the_relative_mean_difference(values):
    x = np.array(values)
    expected = np.abs(x[:, None] - x[None]).mean() / (2 * x.mean())

    assert gini(x[None])[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", range(4))
@pytest.mark.filterwarnings("error")
def test_no_rows_and_blank_rows_never_raise(n, rng):
    for maps in (np.zeros((n, 6)), rng.normal(size=(n, 6))):
        for scores in (rank_correlation(maps, maps), top_iou(maps, maps), sign_agreement(maps, maps), gini(maps)):
            estimate = over_rows(scores, null=0.0)
            assert estimate.value is not None or estimate.reason
        assert random_maps(maps).shape == (5, n, 6)
    pictures = np.zeros((n, 6, 7))
    assert pooled(pictures).shape == (n, 196)
    assert random_maps(pictures).shape == (5, n, 6, 7)
    assert centroids(pictures).shape == (n, 2)
