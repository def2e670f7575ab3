"""The MMD of many rows, block by block, against the whole kernel matrix: same value, same null, same interval."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from tl_audit.measures import kernels, shift
from tl_audit.measures.kernels import Cells, kernel_forms
from tl_audit.measures.shift import mmd


@pytest.fixture
def blocks(monkeypatch):
    """Blocks so small that every border between them is crossed, on any number of rows."""
    monkeypatch.setattr(kernels, "ROWS", 37)
    monkeypatch.setattr(kernels, "_ROWS_AT_ONCE", 16)
    monkeypatch.setattr(kernels, "_WEIGHTS", 50)
    monkeypatch.setattr(kernels, "_TERMS", 64)

    def choose(many):
        monkeypatch.setattr(shift, "MANY_PAIRED", 0 if many else 10**9)

    return choose


CLUSTERS = {
    "rows": {},
    "clusters": {"cluster_source": np.arange(150) % 41, "cluster_target": 100 + np.arange(120) % 33},
    "some in both": {"cluster_source": np.arange(150) % 41, "cluster_target": 30 + np.arange(120) % 33},
    "all in both": {"cluster_source": np.arange(150) % 30, "cluster_target": np.arange(120) % 30},
    "one large": {"cluster_source": np.maximum(np.arange(150) - 80, 0), "cluster_target": 200 + np.arange(120)},
}


@pytest.mark.parametrize("kind", CLUSTERS)
def test_blocks_give_the_numbers_of_the_whole_matrix(rng, blocks, kind):
    x, y = rng.normal(size=(150, 4)) + 1e3, rng.normal(size=(120, 4)) + 1e3 + 0.2
    found = []
    for many in (False, True):
        blocks(many)
        found.append(mmd(x, y, resamples=199, bootstrap=200, **CLUSTERS[kind]))
    whole, parts = found

    assert parts.value == pytest.approx(whole.value, abs=1e-12)
    assert parts.p_value == whole.p_value
    assert np.array(parts.ladder) == pytest.approx(np.array(whole.ladder), abs=1e-7)
    assert parts.details.keys() == whole.details.keys()
    for name in ("bandwidth", "null_95", "assignments", "dropped_clusters", "paired"):
        assert parts.details[name] == pytest.approx(whole.details[name], abs=1e-7)


def test_forms_are_the_sums_written_out(rng, blocks):
    x, second, codes = rng.normal(size=(60, 3)), np.arange(60) >= 35, np.arange(60) % 17
    cells = Cells.of(second, codes)
    units = cells.sizes.size
    kernel = np.exp(-((x[:, None] - x[None]) ** 2).sum(axis=2) / 2.5)
    belongs = np.stack([(codes == cells.cluster[u]) & (second == cells.second[u]) for u in range(units)]).astype(float)
    sums = belongs @ kernel @ belongs.T
    labels, counts, exact = rng.random((70, units)) < 0.5, rng.integers(0, 4, (60, units)).astype(float), rng.normal(size=(units, 2))
    forms = kernel_forms(x, 2.5, cells, labels, counts, exact, 0.3)
    first, last = counts * ~cells.second, counts * cells.second
    partner = cells.partners()

    assert forms.labels == pytest.approx(np.einsum("bu,uv,bv->b", labels.astype(float), sums, labels.astype(float)), rel=1e-6)
    assert forms.first == pytest.approx(np.einsum("bu,uv,bv->b", first, sums, first), rel=1e-6)
    assert forms.second == pytest.approx(np.einsum("bu,uv,bv->b", last, sums, last), rel=1e-6)
    assert forms.across == pytest.approx(np.einsum("bu,uv,bv->b", first, sums, last), rel=1e-6)
    assert forms.products == pytest.approx(sums @ exact, rel=1e-12, abs=1e-12)
    assert forms.diagonal == pytest.approx(np.diag(sums), rel=1e-12)
    assert forms.partner == pytest.approx([sums[u, v] if v >= 0 else 0.0 for u, v in enumerate(partner)], rel=1e-12)
    for u, v in enumerate(partner):
        assert v < 0 or (cells.cluster[u] == cells.cluster[v] and cells.second[u] != cells.second[v])


def test_memory_grows_with_the_rows_and_not_with_the_pairs(monkeypatch):
    monkeypatch.setattr(shift, "MOST_FOR_MEDIAN", 500)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2000, 4)), rng.normal(size=(2000, 4))
    tracemalloc.start()
    mmd(x, y, resamples=39, bootstrap=40)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 4000**2 * 8 / 2  # half of one matrix of all pairs


def test_the_bandwidth_of_many_rows_is_said(rng, blocks, monkeypatch):
    blocks(True)
    monkeypatch.setattr(shift, "MOST_FOR_MEDIAN", 60)
    x, y = rng.normal(size=(90, 3)), rng.normal(size=(80, 3))
    found, again = (mmd(x, y, resamples=19, bootstrap=20) for _ in range(2))
    rows = np.concatenate([x, y])[np.linspace(0, 169, 60).round().astype(int)]
    distances = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)[np.triu_indices(60, 1)]

    assert found.details["bandwidth_rows"] == 60
    assert found.details["bandwidth"] == pytest.approx(np.median(distances)) == again.details["bandwidth"]


def test_rows_that_are_equal_as_far_as_a_subsample_sees_still_have_a_scale(blocks, monkeypatch):
    blocks(True)
    monkeypatch.setattr(shift, "MOST_FOR_MEDIAN", 20)
    x, y = np.zeros((100, 2)), np.zeros((100, 2))
    assert "all rows are equal" in mmd(x, y).reason
    y[3] = 1.0
    assert mmd(x, y, resamples=99, bootstrap=20).value is not None


def test_a_planted_shift_is_found_among_many_rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1300, 5))

    assert mmd(x, rng.normal(size=(1300, 5)) + 0.15, resamples=199, bootstrap=20).p_value == 0.005
    assert mmd(x, rng.normal(size=(1300, 5)), resamples=199, bootstrap=20).p_value > 0.05
