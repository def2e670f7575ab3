"""Calibration, proper scores and classification: measures/calibration.py and classification.py."""

from __future__ import annotations

import numpy as np
from scipy.integrate import quad
from scipy.special import softmax
from scipy.stats import norm

from benchmarks.calibration.simulation import Drawn, Row, Simulation, both, covered
from benchmarks.calibration.worlds import Rng, clustered_values, ids
from tl_audit.measures import calibration, classification
from tl_audit.measures.estimate import FloatArray, IntArray

CAREFUL = (Row(interval="careful"),)


def _design(n: int, size: int) -> str:
    return "iid" if size == 1 else f"clusters {n // size} × {size}"


def _units(n: int, size: int) -> IntArray | None:
    return None if size == 1 else ids(n // size, size)


def _confident(rng: Rng, n: int, size: int, excess: float = 0.0) -> tuple[FloatArray, np.ndarray]:
    """Confidence between 0.55 and 0.95 and outcomes that fall short of it by ``excess``; rows of a cluster share both in part."""
    cluster = ids(n // size, size)
    c = 0.55 + 0.4 * norm.cdf(clustered_values(rng, cluster, alike=0.5 if size > 1 else 0.0))
    luck = norm.cdf(clustered_values(rng, cluster, alike=0.5 if size > 1 else 0.0))
    return c, luck < c - excess


def _ece(n: int, size: int, excess: float) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        c, right = _confident(rng, n, size, excess)
        return (covered(calibration.ece2_debiased(c, right, cluster=_units(n, size), resamples=200, seed=run), excess**2),)

    design = f"{_design(n, size)}, {'calibrated' if not excess else f'{excess} too confident'}"
    return Simulation(f"ece2_debiased, n {n}, {design}", "calibration.ece2_debiased", design, n, draw, CAREFUL, runs=1000, quick=50)


def _null_band(n: int) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        c, right = _confident(rng, n, 1)
        ece = calibration.ece_l1(c, right, simulations=400, seed=run)
        p = softmax(1.5 * rng.normal(size=(n, 3)), axis=1)
        labels = (rng.random((n, 1)) > np.cumsum(p, axis=1)[:, :-1]).sum(axis=1)
        each = calibration.classwise_ece_l1(p, labels, simulations=200, seed=run)
        one = calibration.reliability_bins(c, right, bins=5, simulations=400, seed=run)[2]
        return (
            *(Drawn(rejects=not e.details["null_low"] <= e.value <= e.details["null_high"]) for e in (ece, each)),
            Drawn(rejects=not one.null_low <= one.accuracy <= one.null_high),
        )

    rows = (
        Row("ece_l1", test="exact", rule="outside its 95 % of a calibrated model"),
        Row("classwise_ece_l1", test="exact", rule="outside its 95 % of a calibrated model"),
        Row("a bin of the diagram", test="careful", rule="accuracy outside the 95 % band"),
    )
    return Simulation(
        f"null band of calibration errors, n {n}", "calibration.ece_l1", "iid, calibrated", n, draw, rows, runs=1000, quick=40
    )


def _overconfidence(n: int, size: int) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        c, right = _confident(rng, n, size)
        return (both(calibration.overconfidence(c, right, cluster=_units(n, size), seed=run), 0.0),)

    design = f"{_design(n, size)}, calibrated"
    return Simulation(
        f"overconfidence, n {n}, {design}", "calibration.overconfidence", design, n, draw, (Row(test="exact", interval="exact"),)
    )  # fmt: skip


def _scores(n: int, size: int) -> Simulation:
    """Two classes, calibrated forecasts q uniform on (0, 1): Brier E[2q(1 - q)] = 1/3, log loss E[entropy] = 1/2."""

    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        cluster = ids(n // size, size)
        q = norm.cdf(clustered_values(rng, cluster, alike=0.5 if size > 1 else 0.0))
        y = (norm.cdf(clustered_values(rng, cluster, alike=0.5 if size > 1 else 0.0)) < q).astype(int)
        p, units = np.stack([1 - q, q], axis=1), _units(n, size)
        return (
            covered(calibration.brier(p, y, cluster=units), 1 / 3),
            covered(calibration.nll(p, y, cluster=units), 0.5),
            # against a prior of one half: Brier 1/2, log loss ln 2
            covered(calibration.brier_skill(p, y, prior=[0.5, 0.5], cluster=units, seed=run), 1 - (1 / 3) / 0.5),
            covered(calibration.nll_skill(p, y, prior=[0.5, 0.5], cluster=units, seed=run), 1 - 0.5 / np.log(2)),
        )

    rows = tuple(Row(name, interval="exact") for name in ("brier", "nll", "brier_skill", "nll_skill"))
    design = f"{_design(n, size)}, calibrated"
    return Simulation(f"proper scores, n {n}, {design}", "calibration.brier, nll, *_skill", design, n, draw, rows, runs=1000, quick=60)


def _no_skill(n: int, size: int) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        cluster = ids(n // size, size)
        a, b = (np.exp(0.5 * clustered_values(rng, cluster, alike=0.5 if size > 1 else 0.0)) for _ in range(2))
        return (both(calibration.skill(a, b, cluster=_units(n, size), resamples=1000, seed=run), 0.0),)

    design = f"{_design(n, size)}, scores as good as the reference"
    return Simulation(f"skill, n {n}, {design}", "calibration.skill", design, n, draw, (Row(test="exact", interval="exact"),))


RECALLS = np.array([0.9, 0.75, 0.6])
SHARES = np.array([0.5, 0.3, 0.2])


def _answers(rng: Rng, n: int, size: int) -> tuple[IntArray, IntArray]:
    """Three classes; wrong answers go evenly to the two others. A cluster is of one class, and some clusters are hard."""
    cluster = ids(n // size, size)
    y = rng.choice(3, n // size, p=SHARES)[cluster]
    luck = norm.cdf(clustered_values(rng, cluster, alike=0.4 if size > 1 else 0.0))
    return y, np.where(luck < RECALLS[y], y, (y + rng.integers(1, 3, n)) % 3)


def _f1_truths() -> FloatArray:
    taken = np.array([[RECALLS[i] if i == j else (1 - RECALLS[i]) / 2 for j in range(3)] for i in range(3)])
    return 2 * SHARES * RECALLS / (SHARES + SHARES @ taken)


def _classes(n: int, size: int) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        y, p = _answers(rng, n, size)
        units = _units(n, size)
        scores = classification.class_scores(y, p, classes=3, cluster=units, resamples=500, seed=run)
        return (
            covered(classification.accuracy(y, p, classes=3, cluster=units), float(SHARES @ RECALLS)),
            covered(classification.balanced_accuracy(y, p, classes=3, cluster=units, resamples=500, seed=run), float(RECALLS.mean())),
            covered(classification.f1_macro(y, p, classes=3, cluster=units, resamples=500, seed=run), float(_f1_truths().mean())),
            covered(scores[2].f1, float(_f1_truths()[2])),
            covered(scores[2].recall, float(RECALLS[2])),
            covered(classification.class_shares(y, classes=3, cluster=units)[2], float(SHARES[2])),
        )

    names = (
        "accuracy",
        "balanced_accuracy",
        "f1_macro",
        "F1 of the rarest class",
        "recall of the rarest class",
        "share of the rarest class",
    )
    rows = tuple(Row(name, interval="careful") for name in names)
    design = f"{_design(n, size)}, 3 classes"
    return Simulation(f"classification, n {n}, {design}", "classification", design, n, draw, rows)


def _worst_recall(rng: Rng, run: int) -> tuple[Drawn, ...]:
    y = np.repeat(np.arange(5), 60)
    p = np.where(rng.random(y.size) < 0.8, y, (y + 1) % 5)
    recalls = tuple(one.recall for one in classification.class_scores(y, p, classes=5, resamples=50, seed=run))
    return (covered(classification.worst_class_recall(recalls)[1], 0.8),)


def _majority(n: int, size: int) -> Simulation:
    """A model that guesses one class or the other as often as the majority occurs: no better and no worse than saying it always."""

    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        cluster = ids(n // size, size)
        y = (rng.random(n // size)[cluster] < 0.5).astype(int)
        p = (clustered_values(rng, cluster, alike=0.4 if size > 1 else 0.0) < 0).astype(int)
        return (both(classification.majority_gain(y, p, classes=2, majority=0, cluster=_units(n, size), seed=run), 0.0),)

    design = f"{_design(n, size)}, guesses"
    return Simulation(
        f"majority_gain, n {n}, {design}", "classification.majority_gain", design, n, draw, (Row(test="careful", interval="careful"),)
    )  # fmt: skip


def _multi_areas(n: int, size: int) -> Simulation:
    """Three classes; the score of the true one is raised by 1, so one-against-rest areas follow from the binormal ones."""
    # rows of class c have score c ~ N(1, 1), all others N(0, 1), each apart from the scores of the other classes
    truth = float(norm.cdf(1 / np.sqrt(2)))

    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        cluster = ids(n // size, size)
        y = rng.integers(0, 3, n // size)[cluster]
        z = clustered_values(rng, cluster, 3, alike=0.4 if size > 1 else 0.0) + np.eye(3)[y]
        return (covered(classification.auroc(y, z, cluster=_units(n, size), seed=run), truth),)

    design = f"{_design(n, size)}, 3 classes"
    return Simulation(f"auroc, n {n}, {design}", "classification.auroc", design, n, draw, CAREFUL)


def _average_precision_of(effect: float, share: float) -> float:
    """Population value where positives score N(effect, 1) and negatives N(0, 1)."""

    def height(t: float) -> float:
        hit, miss = share * norm.sf(t - effect), (1 - share) * norm.sf(t)
        return float(norm.pdf(t - effect) * hit / (hit + miss))

    return float(quad(height, -8, 8)[0])


def _average_precision(n: int, share: float, size: int = 1) -> Simulation:
    truth = _average_precision_of(1.0, share)

    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        cluster = ids(n // size, size)
        y = (np.arange(n // size) < share * (n // size))[cluster]
        scores = clustered_values(rng, cluster, alike=0.4 if size > 1 else 0.0) + y
        return (covered(classification.average_precision(y, scores, cluster=_units(n, size), resamples=200, seed=run), truth),)

    design = f"{_design(n, size)}, {share:.0%} positive, truth {truth:.2f}"
    return Simulation(f"average_precision, n {n}, {design}", "classification.average_precision", design, n, draw, CAREFUL, quick=80)


SIMULATIONS: tuple[Simulation, ...] = (
    _ece(100, 1, 0.0), _ece(300, 1, 0.0), _ece(2000, 1, 0.0), _ece(300, 3, 0.0), _ece(900, 9, 0.0), _ece(400, 1, 0.15), _ece(900, 3, 0.15),
    _null_band(100), _null_band(1000),
    _overconfidence(30, 1), _overconfidence(1000, 1), _overconfidence(90, 6), _overconfidence(1200, 6),
    _scores(40, 1), _scores(400, 1), _scores(80, 5), _scores(500, 5),
    _no_skill(30, 1), _no_skill(500, 1), _no_skill(90, 6), _no_skill(600, 6),
    _classes(60, 1), _classes(600, 1), _classes(2400, 1), _classes(200, 5), _classes(1000, 5),
    Simulation("worst_class_recall, five equal classes", "classification.worst_class_recall", "iid, 5 × 60 rows", 300, _worst_recall, CAREFUL),
    _majority(60, 1), _majority(1000, 1), _majority(90, 6), _majority(600, 6),
    _multi_areas(45, 1), _multi_areas(600, 1), _multi_areas(100, 5), _multi_areas(600, 5),
    _average_precision(100, 0.3), _average_precision(500, 0.1), _average_precision(400, 0.3, 5),
)  # fmt: skip
