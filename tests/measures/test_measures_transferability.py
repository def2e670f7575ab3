"""Evidence, H_alpha, Bhattacharyya, LEEP and NCE: closed forms, brute force, and what public implementations get wrong."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats
from sklearn.covariance import ledoit_wolf

from tl_audit.errors import DataError
from tl_audit.measures import transferability as found
from tl_audit.measures.transferability import deletions, gbc, h_alpha, leep, logme, logme_gain, nce, spectrum, usefulness


def blobs(n: int, d: int, classes: int, seed: int = 0, apart: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Features of unequal scale with an offset, whose first columns tell the classes apart."""
    rng = np.random.default_rng([seed, n, d])
    labels = np.arange(n) % classes
    features = rng.normal(size=(n, d)) * rng.gamma(2.0, size=d)
    features[:, 0] += apart * labels
    return features + 3, labels


# ---------------------------------------------------------------- evidence


@pytest.mark.parametrize(("n", "d"), [(30, 5), (40, 120)])
def test_evidence_is_the_normal_density_at_its_precisions_and_no_others_give_more(n: int, d: int) -> None:
    f, labels = blobs(n, d, 2)
    estimate = logme(f, labels, classes=2)
    values = []
    for c in (0, 1):
        y = (labels == c).astype(float)

        def density(a: float, b: float, y: np.ndarray = y) -> float:
            return float(stats.multivariate_normal.logpdf(y, np.zeros(n), np.eye(n) / b + f @ f.T / a) / n)

        a, b = estimate.details["weight_precision"][c], estimate.details["noise_precision"][c]
        values.append(density(a, b))
        for away in (0.8, 1.25):
            assert density(a * away, b) <= values[-1] + 1e-9
            assert density(a, b * away) <= values[-1] + 1e-9
        best = optimize.minimize(
            lambda logs, density=density: -density(*np.exp(np.clip(logs, -25, 25))), [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12}
        )  # fmt: skip
        assert -best.fun <= values[-1] + 1e-9

    assert estimate.value == pytest.approx(np.mean(values), abs=1e-9)


def published_loop(f: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """The fixed-point iteration of You et al. (2021), with eleven rounds and D/2 ln a, as public code runs it."""
    n, d = f.shape
    u, s, _ = np.linalg.svd(f, full_matrices=False)
    sigma = s**2
    out = []
    for c in range(classes):
        y = (labels == c).astype(float)
        x2 = (u.T @ y) ** 2
        rest = float(y @ y - x2.sum())
        a = b = 1.0
        for _ in range(11):
            t = a / b
            gamma = (sigma / (sigma + t)).sum()
            m2 = (sigma * x2 / (t + sigma) ** 2).sum()
            r2 = (x2 / (1 + sigma / t) ** 2).sum() + rest
            a, b = gamma / (m2 + 1e-5), (n - gamma) / (r2 + 1e-5)
            if abs(a / b - t) / t <= 1e-3:
                break
        log = d / 2 * np.log(a) + n / 2 * np.log(b) - 0.5 * np.log(a + b * sigma).sum() - b / 2 * r2 - a / 2 * m2
        out.append((log - n / 2 * np.log(2 * np.pi)) / n)
    return float(np.mean(out))


def test_the_public_loop_is_right_for_many_rows_and_far_off_for_fewer_rows_than_columns() -> None:
    f, labels = blobs(300, 10, 2, apart=4.0)
    assert published_loop(f, labels, 2) == pytest.approx(logme(f, labels, classes=2).value, abs=1e-3)

    rng = np.random.default_rng(0)
    f = rng.normal(size=(100, 512))
    labels = (f[:, :8].sum(axis=1) > 0).astype(int)
    f[:, :8] *= 4
    public, exact = published_loop(f, labels, 2), logme(f, labels, classes=2)
    by_hand = []
    for c in (0, 1):
        a, b = exact.details["weight_precision"][c], exact.details["noise_precision"][c]
        y = (labels == c).astype(float)
        by_hand.append(stats.multivariate_normal.logpdf(y, np.zeros(100), np.eye(100) / b + f @ f.T / a) / 100)
    # 412 of the 512 directions have no rows: integrating over their weights leaves nothing, yet the loop counts ln a / 2 for each,
    # (512 - 100) / 200 ln a in all, and its rounds drive a up
    assert exact.value == pytest.approx(np.mean(by_hand), abs=1e-9)
    assert -1 < exact.value < 0
    assert public > exact.value + 5


def test_noise_gains_almost_nothing_and_never_less_than_nothing() -> None:
    for n, d, most in ((300, 20, 0.01), (100, 512, 0.02)):
        for seed in range(3):
            rng = np.random.default_rng(seed)
            estimate = logme_gain(rng.normal(size=(n, d)), rng.integers(0, 3, n), classes=3)
            assert -1e-8 <= estimate.value < most
            assert estimate.null < most / 2


def test_telling_features_gain_and_the_interval_leaves_the_null(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 3, 300)
    features = np.c_[np.eye(3)[labels] + 0.5 * rng.normal(size=(300, 3)), rng.normal(size=(300, 5))]
    estimate = logme_gain(features, labels, classes=3)

    assert estimate.value > 0.2
    assert estimate.interval()[0] > estimate.null
    assert logme_gain(features + 100, labels, classes=3).value == pytest.approx(estimate.value, abs=1e-6)
    assert logme_gain(features * 1e-3, labels, classes=3).value == pytest.approx(estimate.value, abs=1e-9)


def test_labels_that_follow_patients_gain_nothing_beyond_a_null_that_keeps_patients_whole() -> None:
    values, kept, torn = [], [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        patient = np.arange(240) // 12
        features = rng.normal(size=(20, 6))[patient] + 0.3 * rng.normal(size=(240, 6))
        labels = rng.permutation(np.arange(20) % 2)[patient]  # of the patient, and unrelated to the features
        one = logme_gain(features, labels, classes=2, cluster=patient)
        values.append(one.value)
        kept.append(one.null)
        torn.append(logme_gain(features, labels, classes=2).null)

    assert np.mean(values) == pytest.approx(np.mean(kept), rel=0.5)
    assert np.mean(values) > 5 * np.mean(torn)


# ---------------------------------------------------------------- H_alpha


def slow_h_alpha(f: np.ndarray, labels: np.ndarray) -> float:
    centred = f - f.mean(axis=0)
    covariance, shrinkage = ledoit_wolf(centred, assume_centered=True)
    means = np.zeros_like(centred)
    for c in np.unique(labels):
        means[labels == c] = centred[labels == c].mean(axis=0)
    return float((1 - shrinkage) * np.trace(np.linalg.solve(covariance, means.T @ means / len(f))))


@pytest.mark.parametrize(("n", "d"), [(60, 8), (40, 100), (30, 30)])
def test_h_alpha_is_the_trace_that_scikit_learns_shrinkage_gives(n: int, d: int) -> None:
    f, labels = blobs(n, d, 3)

    assert h_alpha(f, labels, classes=3).value == pytest.approx(slow_h_alpha(f, labels), abs=1e-9)


def test_the_plain_score_of_noise_reaches_classes_less_one_where_h_alpha_stays_low() -> None:
    plain, shrunk = [], []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        f, labels = rng.normal(size=(200, 512)), rng.integers(0, 10, 200)
        centred = f - f.mean(axis=0)
        means = np.zeros_like(centred)
        for c in range(10):
            means[labels == c] = centred[labels == c].mean(axis=0)
        # with more columns than rows every class mean can be told: the trace is the rank of the means, C - 1
        plain.append(np.trace(np.linalg.pinv(centred.T @ centred) @ means.T @ means))
        shrunk.append(h_alpha(f, labels, classes=10))

    assert plain == pytest.approx([9.0] * 3)
    assert np.mean([one.value for one in shrunk]) == pytest.approx(0.19, abs=0.06)
    assert np.mean([one.null for one in shrunk]) == pytest.approx(0.19, abs=0.06)


def test_h_alpha_of_classes_that_never_overlap_is_near_classes_less_one() -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(400) % 4

    assert h_alpha(100 * np.eye(4)[labels] + rng.normal(size=(400, 4)), labels, classes=4).value == pytest.approx(3, abs=0.05)


# ---------------------------------------------------------------- Bhattacharyya


def slow_gbc(z: np.ndarray, labels: np.ndarray, *, spherical: bool) -> float:
    """With covariance matrices and determinants, pair by pair."""
    total = 0.0
    classes = np.unique(labels)
    for i in classes:
        for j in classes:
            if i != j:
                covariances = []
                for c in (i, j):
                    v = z[labels == c].var(axis=0)
                    covariances.append(np.diag(np.full_like(v, v.mean()) if spherical else v))
                half = (covariances[0] + covariances[1]) / 2
                away = z[labels == i].mean(axis=0) - z[labels == j].mean(axis=0)
                logs = [np.linalg.slogdet(m)[1] for m in (half, *covariances)]
                total += np.exp(-(away @ np.linalg.solve(half, away) / 8 + 0.5 * (logs[0] - 0.5 * (logs[1] + logs[2]))))
    return -total


def published_gbc(z: np.ndarray, labels: np.ndarray) -> float:
    """As the authors' code has it: a scalar variance per class, whose logarithm enters once."""
    total = 0.0
    for i in np.unique(labels):
        for j in np.unique(labels):
            if i != j:
                a, b = z[labels == i], z[labels == j]
                va, vb = a.var(axis=0).mean(), b.var(axis=0).mean()
                v = (va + vb) / 2
                away = ((a.mean(axis=0) - b.mean(axis=0)) ** 2 / v).sum() / 8
                total += np.exp(-(away + 0.5 * (np.log(v) - 0.5 * np.log(va) - 0.5 * np.log(vb))))
    return -total


@pytest.mark.parametrize("variances", ["spherical", "diagonal", "along_means"])
@pytest.mark.parametrize(("n", "d"), [(90, 6), (60, 100)])
def test_gbc_is_its_formula_on_principal_components(n: int, d: int, variances: str) -> None:
    from sklearn.decomposition import PCA

    f, labels = blobs(n, d, 3)
    z = PCA(min(10, d)).fit_transform(f)
    estimate = gbc(f, labels, classes=3, components=10, variances=variances)

    expected = published_gbc(z, labels) if variances == "along_means" else slow_gbc(z, labels, spherical=variances == "spherical")
    assert estimate.value == pytest.approx(expected, abs=1e-9)


def test_the_overlap_of_two_unit_normals_is_known_in_closed_form() -> None:
    # D_B = |δ|²/8 for equal variances: classes at ±1 with variance 1 in 1 dimension, exactly
    x = np.array([-2.0, 0.0, 0.0, 2.0])
    labels = np.array([0, 0, 1, 1])

    assert gbc(x[:, None], labels, classes=2).value == pytest.approx(-2 * np.exp(-(2.0**2) / 8), abs=1e-12)


def test_a_spherical_variance_counts_in_every_component_and_once_along_the_means() -> None:
    # variances 1 and 4 around one mean in p = 3: D_B = p/2 (ln 2.5 - ln 1/2 - ln 4/2); public code counts it once, as in one dimension
    rng = np.random.default_rng(0)
    z = rng.normal(size=(4000, 3))
    z = (z - z.mean(axis=0)) / z.std(axis=0)
    f, labels = np.r_[z, 2 * z], np.repeat([0, 1], 4000)
    once = 0.5 * (np.log(2.5) - 0.5 * np.log(4.0))

    assert gbc(f, labels, classes=2, variances="spherical").value == pytest.approx(-2 * np.exp(-3 * once), abs=1e-6)
    assert gbc(f, labels, classes=2).value == pytest.approx(-2 * np.exp(-once), abs=1e-6)


def test_more_distance_between_classes_raises_every_measure() -> None:
    near, labels = blobs(300, 8, 3, apart=1.0)
    far, _ = blobs(300, 8, 3, apart=6.0)

    for measure in (logme, logme_gain, h_alpha, gbc):
        assert measure(far, labels, classes=3).value > measure(near, labels, classes=3).value


# ---------------------------------------------------------------- the jackknife


@pytest.mark.parametrize(("n", "d"), [(60, 8), (42, 100)])
@pytest.mark.parametrize("size", [1, 3])
def test_what_a_measure_is_without_some_rows_is_what_measuring_the_others_gives(n: int, d: int, size: int) -> None:
    f, labels = blobs(n, d, 3, apart=4.0)
    unit = np.arange(n) // size
    left = deletions(f, labels, unit, classes=3)
    others = [unit != u for u in range(unit.max() + 1)]

    shrunk = [h_alpha(f[rows], labels[rows], classes=3, permutations=0).value for rows in others]
    assert left["h_alpha"][1] == pytest.approx(shrunk, abs=1e-9)
    # the ratio of precisions stays that of all rows, which costs evidence to second order only
    evidence = np.array([logme(f[rows], labels[rows], classes=3).value for rows in others])
    assert (left["logme"][1] <= evidence + 1e-9).all()
    assert np.abs(left["logme"][1] - evidence).mean() < 0.2 * evidence.std()
    assert left["logme"][1].std() == pytest.approx(evidence.std(), rel=0.15)
    # the principal components stay those of all rows
    overlap = np.array([gbc(f[rows], labels[rows], classes=3).value for rows in others])
    assert left["gbc"][1].std() == pytest.approx(overlap.std(), rel=0.2)
    for name, measure in (("logme", logme), ("h_alpha", h_alpha), ("gbc", gbc)):
        assert left[name][0] == measure(f, labels, classes=3).value


def test_evidence_without_a_block_at_fixed_precisions_is_a_conditional_density() -> None:
    f, labels = blobs(24, 5, 2, apart=3.0)
    whole = spectrum(f, centred=False)
    one = found._Evidence(whole, labels, 2, gain=False)
    block = np.arange(24) // 4
    y = one.y[:, 0]
    ratio = float(np.exp(one.log_ratio[0]))
    for u in range(6):
        rows = block != u
        cover = np.eye(rows.sum()) + f[rows] @ f[rows].T / ratio
        # noise precision at its best for these rows, ratio as it was
        b = rows.sum() / float(y[rows] @ np.linalg.solve(cover, y[rows]))
        expected = stats.multivariate_normal.logpdf(y[rows], np.zeros(rows.sum()), cover / b) / rows.sum()
        got = one._without(one.log_ratio, [np.flatnonzero(~rows)], one._kept((block == u).astype(int), 2)[1:])
        assert got[0, 0] == pytest.approx(expected, abs=1e-9)


def test_gain_without_a_block_at_fixed_precisions_is_a_restricted_density() -> None:
    f, labels = blobs(24, 5, 2, apart=3.0)
    one = found._Evidence(spectrum(f, centred=True), labels, 2, gain=True)
    ratio = float(np.exp(one.log_ratio[0]))
    rows = np.arange(24) >= 4
    inside = f[rows] - f[rows].mean(axis=0)
    y = (labels[rows] == one.columns[0]).astype(float)
    y = y - y.mean()
    basis = np.linalg.svd(np.ones((1, 20)))[2][1:]  # contrasts: the 19 directions without a mean
    cover = basis @ (np.eye(20) + inside @ inside.T / ratio) @ basis.T
    b = 19 / float(basis @ y @ np.linalg.solve(cover, basis @ y))
    density = stats.multivariate_normal.logpdf(basis @ y, np.zeros(19), cover / b) / 19
    expected = density + 0.5 * (np.log(2 * np.pi * float(y @ y) / 19) + 1)
    got = one._without(one.log_ratio, [np.arange(4)], one._kept((np.arange(24) < 4).astype(int), 2)[1:])

    assert got[0, 0] == pytest.approx(expected, abs=1e-9)


def test_a_class_that_goes_with_its_cluster_leaves_the_overlap_of_the_others() -> None:
    f, labels = blobs(60, 5, 3)
    left = found._Gbc(spectrum(f, centred=True), labels, 3, components=64, variances="spherical")
    without = left.without(labels, 3)

    assert without[2] == pytest.approx(-2 * left.overlap[0, 1])


@pytest.mark.slow
def test_the_jackknife_covers_the_mean_of_each_measure() -> None:
    population = np.random.default_rng(0).normal(size=(3, 6))

    def draw(seed: int, n: int = 150) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([7, seed])
        labels = rng.integers(0, 3, n)
        return population[labels] + rng.normal(size=(n, 6)), labels

    def measured(seed: int) -> list:
        f, y = draw(seed)
        one = usefulness(f, y, classes=3, permutations=0)
        return [one.logme, one.logme_gain, one.h_alpha, gbc(f, y, classes=3)]

    runs = [measured(seed) for seed in range(200)]
    for i in range(4):
        mean = np.mean([run[i].value for run in runs])
        covered = np.mean([run[i].interval()[0] <= mean <= run[i].interval()[1] for run in runs])
        assert 0.91 <= covered <= 0.99, (i, covered)


# ---------------------------------------------------------------- LEEP and NCE


def test_leep_and_nce_of_a_hand_table() -> None:
    # two source classes; four rows, two labels
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.5, 0.5]])
    y = np.array([0, 0, 1, 1])
    # column sums 2.2 and 1.8: P(0|z) = 1.5/2.2 and 0.5/1.8, P(1|z) = 0.7/2.2 and 1.3/1.8
    given = np.array([[1.5 / 2.2, 0.5 / 1.8], [0.7 / 2.2, 1.3 / 1.8]])
    by_hand = np.mean([np.log(p[i] @ given[y[i]]) for i in range(4)])
    # most likely source classes 0, 0, 1, 0: P(0|z=0) = 2/3, P(1|z=1) = 1, P(1|z=0) = 1/3
    entropy = np.mean(np.log([2 / 3, 2 / 3, 1, 1 / 3]))

    assert leep(p, y, classes=2).value == pytest.approx(by_hand, abs=1e-12)
    assert nce(p.argmax(axis=1), y, classes=2).value == pytest.approx(entropy, abs=1e-12)
    assert nce(["cat", "cat", "dog", "cat"], y, classes=2).value == pytest.approx(entropy, abs=1e-12)


def test_certain_source_classes_make_leep_equal_to_nce(rng: np.random.Generator) -> None:
    z, y = rng.integers(0, 4, 200), rng.integers(0, 3, 200)

    assert leep(np.eye(4)[z], y, classes=3).value == pytest.approx(nce(z, y, classes=3).value)
    assert nce(y, y, classes=3).value == 0.0


def test_rows_that_are_no_probabilities_are_refused() -> None:
    with pytest.raises(DataError, match="softmax"):
        leep(np.array([[2.0, 1.0]]), np.array([0]), classes=2)


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize("measure", [logme, logme_gain, h_alpha, gbc])
def test_order_and_names_of_rows_and_classes_do_not_matter(measure) -> None:
    f, labels = blobs(80, 6, 3)
    order = np.random.default_rng(0).permutation(80)
    rotated = f @ np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]

    value = measure(f, labels, classes=3).value
    assert measure(f[order], labels[order], classes=3).value == pytest.approx(value, abs=1e-9)
    assert measure(f, np.array([2, 0, 1])[labels], classes=3).value == pytest.approx(value, abs=1e-9)
    assert measure(f, labels, classes=9).value == pytest.approx(value, abs=1e-9)
    assert measure(rotated, labels, classes=3).value == pytest.approx(value, abs=1e-9)
    assert measure(f, labels, classes=3).ladder == measure(f, labels, classes=3).ladder


def test_clusters_widen_the_interval_where_rows_repeat() -> None:
    f, labels = blobs(50, 4, 2)
    f, labels, cluster = np.repeat(f, 6, axis=0), np.repeat(labels, 6), np.repeat(np.arange(50), 6)
    f = f + 0.01 * np.random.default_rng(0).normal(size=f.shape)

    def width(**given: object) -> float:
        low, high = logme_gain(f, labels, classes=2, permutations=0, **given).interval()
        return high - low

    assert width(cluster=cluster) > 1.5 * width()
    assert logme_gain(f, labels, classes=2, permutations=0, cluster=cluster).clusters == 50


def test_usefulness_is_the_three_measures_at_once() -> None:
    f, labels = blobs(90, 12, 3)
    one = usefulness(f, labels, classes=3)

    assert one.logme == logme(f, labels, classes=3)
    assert one.logme_gain == logme_gain(f, labels, classes=3)
    assert one.h_alpha == h_alpha(f, labels, classes=3)


def test_deletions_refuse_what_cannot_be_told_apart() -> None:
    with pytest.raises(DataError, match="nothing can be told apart"):
        deletions(np.ones((10, 3)), np.arange(10) % 2, np.arange(10), classes=2)
    with pytest.raises(DataError, match="one of the 2 units"):
        deletions(np.random.default_rng(0).normal(size=(10, 3)), np.arange(10) % 2, np.arange(10) % 2, classes=2)


@pytest.mark.parametrize("n", range(7))
@pytest.mark.filterwarnings("error")
def test_tiny_and_constant_features_never_raise(n: int, rng: np.random.Generator) -> None:
    for x in (np.zeros((n, 3)), np.full((n, 3), 0.1), rng.normal(size=(n, 3)), rng.normal(size=(n, 20)), np.zeros((n, 0))):
        labels = np.arange(n) % 2
        for measure in (logme, logme_gain, h_alpha, gbc):
            for y, classes in ((labels, 2), (labels, 3), (np.zeros(n, dtype=int), 1)):
                estimate = measure(x, y, classes=classes)
                assert estimate.value is not None or estimate.reason
                assert estimate.value is None or np.isfinite(estimate.value)
                assert estimate.ladder or estimate.reason


def test_a_jackknife_that_moves_nothing_gives_no_interval_of_zero_width():
    rng, without = np.random.default_rng(0), 0
    for _ in range(20):
        # noise whose covariance is shrunk wholly: a score of 0, which leaving out a block seldom moves
        found = h_alpha(rng.normal(size=(40, 4)), np.r_[np.zeros(39, dtype=int), 1], classes=2, permutations=0)
        if found.interval() is None:
            without += 1
            assert "no spread" in found.reason
        else:
            assert found.interval()[0] < found.interval()[1]
    assert without
