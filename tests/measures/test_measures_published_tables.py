"""Numbers that others have published: worked examples of statistical papers and of R's manual pages, and tables of well-known data sets.

The R lines are the calls whose output R 4 prints in its own manual (``example(binom.test)``, ``?prop.test``, ``?mcnemar.test``, ``?fisher.test``,
``?p.adjust``), so that anybody with R can run them again.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tl_audit.finetune.guidance import coral_distance
from tl_audit.measures import intervals, permutation
from tl_audit.measures.fairness import group_rates
from tl_audit.measures.multiplicity import benjamini_hochberg, holm
from tl_audit.measures.neighbours import knn_distance
from tl_audit.measures.shift import _gaussian

# worked examples ------------------------------------------------------------------------------------------------------------


def test_the_exact_interval_is_that_of_r_for_mendels_peas():
    """``binom.test(682, 682 + 243, p = 3/4)``: 95 percent confidence interval 0.7076683 0.7654066 (Conover 1971)."""
    assert intervals.clopper_pearson(682, 925).interval() == pytest.approx((0.7076683, 0.7654066), abs=1e-7)


def test_the_score_interval_is_that_of_newcombes_table_one():
    """Newcombe 1998a, method 3: 81 of 263 gives 0.2553 to 0.3662; 15 of 148 gives 0.0624 to 0.1605; 0 of 20 gives 0 to 0.1611."""
    for k, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)):
        assert intervals.wilson(k, n).interval() == pytest.approx((low, high), abs=5e-5), (k, n)


def test_differences_are_those_of_newcombes_table_two():
    """Newcombe 1998b, method 10, the hybrid score: rows (a) to (f) of his table II."""
    rows = [
        (56, 70, 48, 80, 0.0524, 0.3339), (9, 10, 3, 10, 0.1705, 0.8090), (10, 10, 0, 20, 0.6791, 1.0), (6, 7, 2, 7, 0.0582, 0.8062),
        (5, 56, 0, 29, -0.0381, 0.1926), (0, 10, 0, 20, -0.1611, 0.2775),
    ]  # fmt: skip
    for a, m, b, n, low, high in rows:
        found = intervals.newcombe(intervals.wilson(a, m), intervals.wilson(b, n))
        assert found.interval() == pytest.approx((low, high), abs=5e-5), (a, m, b, n)


def test_the_exact_test_of_discordant_pairs_is_the_binomial_one():
    """``binom.test(86, 236)``: R's table of approval ratings (Agresti 1990), 150 and 86 changed their minds; p below 0.0001."""
    from scipy.stats import binomtest

    p = permutation.mcnemar_p(150, 86)
    assert p == pytest.approx(binomtest(86, 236).pvalue, rel=1e-9)
    assert p < 1e-4
    assert permutation.mcnemar_p(3, 3) == 1.0


def test_the_lady_tasting_tea_is_not_convinced():
    """``fisher.test(TeaTasting, alternative = "two.sided")``: p = 0.4857 (Agresti 1990, after Fisher)."""
    assert permutation.two_proportion_p(3, 4, 1, 4) == pytest.approx(0.4857, abs=5e-5)


def test_adjusted_p_values_are_those_of_the_papers():
    """Benjamini & Hochberg 1995, table 1: of the fifteen p-values four are rejected at q = 0.05, three by Bonferroni's step-down."""
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    assert sum(v <= 0.05 for v in benjamini_hochberg(p)) == 4  # type: ignore[operator]
    assert sum(v <= 0.05 for v in holm(p)) == 3  # type: ignore[operator]
    assert benjamini_hochberg(p)[3] == pytest.approx(0.0095 * 15 / 4)


def test_delong_is_the_variance_of_placement_values_by_hand():
    """Three positives, four negatives, written out: AUC 9.5/12; the variance is S10/3 + S01/4 of the placement values."""
    scores, truth = [0.9, 0.6, 0.5, 0.7, 0.5, 0.3, 0.1], [1, 1, 1, 0, 0, 0, 0]
    v10, v01 = np.array([1.0, 0.75, 0.625]), np.array([1 / 3, 2.5 / 3, 1.0, 1.0])
    found = intervals.auc(truth, scores)
    assert found.value == pytest.approx(9.5 / 12)
    assert v10.mean() == pytest.approx(found.value)
    spread = np.sqrt(v10.var(ddof=1) / 3 + v01.var(ddof=1) / 4)
    assert found.details["standard_error"] == pytest.approx(spread)


# data sets -------------------------------------------------------------------------------------------------------------------


@pytest.mark.real_data
def test_compas_has_the_error_rates_that_propublica_printed(shared_data: Path):
    table = pd.read_csv(shared_data / "compas" / "compas_two_years.csv")
    flagged, again = table["score_text"] != "Low", table["two_year_recid"] == 1

    def rates(marked: pd.Series, of: str | None = None) -> tuple[float, float]:
        groups = np.where(np.ones(len(table), dtype=bool), "all", "") if of is None else table["race"].to_numpy()
        found = {g.group: g.rates for g in group_rates(groups, again.to_numpy(), marked.to_numpy(), positive=True)}[of or "all"]
        return round(100 * found["fpr"].value, 2), round(100 * (1 - found["tpr"].value), 2)  # type: ignore[operator]

    assert rates(flagged) == (32.35, 37.40)
    assert rates(flagged, "African-American") == (44.85, 27.99)
    assert rates(flagged, "Caucasian") == (23.45, 47.72)
    high = table["score_text"] == "High"
    assert rates(high, "African-American") == (15.82, 61.02)
    assert rates(high, "Caucasian") == (5.44, 79.81)
    assert (table["race"] == "African-American").sum() == 3696
    assert (table["race"] == "Caucasian").sum() == 2454


@pytest.fixture(scope="module")
def office(shared_data: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    from scipy.io import loadmat

    out = {}
    for letter, name in (("C", "caltech"), ("A", "amazon"), ("W", "webcam"), ("D", "dslr")):
        file = loadmat(shared_data / "office_caltech_surf" / f"{name}_SURF_L10.mat")
        out[letter] = file["fts"].astype(float), file["labels"].ravel().astype(int)
    return out


def shares(x: np.ndarray) -> np.ndarray:
    return x / x.sum(axis=1, keepdims=True)


def scaled(x: np.ndarray) -> np.ndarray:
    p = shares(x)
    spread = p.std(axis=0, ddof=1)
    return np.divide(p - p.mean(axis=0), spread, out=np.zeros_like(p), where=spread > 0)


def nearest(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Class of the nearest training row: the class whose nearest row is nearest."""
    classes = np.unique(labels)
    return classes[np.argmin([knn_distance(test, train[labels == c], 1) for c in classes], axis=0)]


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("pair", "percent"),
    [("CD", 25.48), ("AD", 25.48), ("WD", 59.24), ("DW", 63.39), ("CW", 25.76)],
)  # fmt: skip
def test_nearest_neighbours_across_office_domains_have_the_published_accuracy(pair: str, percent: float, office: dict):
    (x, y), (z, truth) = office[pair[0]], office[pair[1]]
    assert round(100 * float(np.mean(nearest(scaled(x), y, scaled(z)) == truth)), 2) == percent


@pytest.mark.real_data
@pytest.mark.parametrize("pair", ["CA", "CW", "CD", "AW", "AD", "WD"])
def test_kernel_and_covariance_distances_are_those_of_the_public_code(pair: str, office: dict, shared_data: Path):
    import torch

    printed = json.loads((shared_data / "oracle" / "oracle.json").read_text())["office_surf"][pair]
    x, z = (office[k][0] for k in pair)
    p, q = shares(x), shares(z)
    # the V-statistic with exp(-d²): the bandwidth is given here, where the check takes the median
    value = _gaussian(p, p, 1.0).mean() + _gaussian(q, q, 1.0).mean() - 2 * _gaussian(p, q, 1.0).mean()
    assert value == pytest.approx(printed["mmd_rbf_gamma1_p"], rel=1e-4)
    a, b = (torch.as_tensor(scaled(v)) for v in (x, z))
    assert float(coral_distance(a, b)) == pytest.approx(printed["coral_loss_z"], rel=2e-3)


@pytest.mark.real_data
@pytest.mark.parametrize(("start", "percent"), [("M", 65.94), ("U", 44.70)])
def test_nearest_neighbours_between_mnist_and_usps_have_the_published_accuracy(start: str, percent: float, shared_data: Path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(shared_data / "digits" / "MNIST_vs_USPS.mat") as file:
        parts = (
            {k: np.array(file[k], dtype=float) for k in ("X_src", "X_tar")}
            if "X_src" in file
            else {k: np.array(file[k], dtype=float) for k in ("Xs", "Xt")}
        )
        labels = {k: np.array(file[k]).ravel().astype(int) for k in (("Y_src", "Y_tar") if "Y_src" in file else ("Ys", "Yt"))}
    rows = {k: (v if v.shape[1] == 256 else v.T) for k, v in parts.items()}
    (x, z), (y, truth) = rows.values(), labels.values()
    x, z = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, z))
    if start == "U":
        x, y, z, truth = z, truth, x, y
    assert round(100 * float(np.mean(nearest(x, y, z) == truth)), 2) == percent


def series(path: Path) -> tuple[np.ndarray, np.ndarray]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith(("#", "@"))]
    values = np.array([[float(v) for v in line.rpartition(":")[0].split(",")] for line in lines])
    return values, np.array([line.rpartition(":")[2] for line in lines])


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "error"), [("GunPoint", 0.0867), ("ItalyPowerDemand", 0.0447), ("ArrowHead", 0.2000)])
def test_nearest_neighbours_on_time_series_have_the_published_error(name: str, error: float, shared_data: Path):
    x, y = series(shared_data / "ucr" / f"{name}_TRAIN.ts")
    z, truth = series(shared_data / "ucr" / f"{name}_TEST.ts")
    assert float(np.mean(nearest(x, y, z) != truth)) == pytest.approx(error, abs=5e-5)
