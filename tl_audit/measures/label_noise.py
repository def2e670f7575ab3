"""Labels that a model's out-of-sample probabilities speak against, and how many of them chance alone gives (TLA205)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

from tl_audit.errors import DataError
from tl_audit.measures.arrays import class_vector, finite_matrix, same_length
from tl_audit.measures.estimate import BoolArray, Estimate, FloatArray, IntArray
from tl_audit.measures.intervals import rate
from tl_audit.measures.permutation import representable_p
from tl_audit.measures.sampling import cluster_codes, generator

DRAWS = 199
MOST_FITTED = 5000
"""Rows that calibrate the probabilities; more change no digit that is printed."""
MOST_DRAWN = 2_000_000
"""Probabilities (rows x classes) from which labels are drawn; of more rows some are taken."""
ROWS_PER_CLASS = 20
"""Below this many rows per class the calibration has a temperature alone, no offset of each class."""
_FLOOR = 1e-12
_LEAST_SHARP = 0.02
_FLAT = 0.3


@dataclass(frozen=True)
class Suspects:
    """Samples whose label another class is confidently preferred to.

    Attributes
    ----------
    flagged : (N,) bool
    looks_like : (N,) class number that is preferred, -1 where no class is confident
    margin : (N,) probability of that class minus the label's, NaN where no class is confident
    thresholds : (C,) mean probability of a class among the samples that bear its label; infinite for a class that none bears
    """

    flagged: BoolArray
    looks_like: IntArray
    margin: FloatArray
    thresholds: FloatArray


def suspects(probabilities: ArrayLike, labels: ArrayLike) -> Suspects:
    """Samples that the confident joint counts off its diagonal: the likeliest class among those at least as probable as is usual for them is not the label.

    Give out-of-sample probabilities only: a model's own training labels are never its suspects.

    Parameters
    ----------
    probabilities : (N, C), rows sum to 1
    labels : (N,) class numbers 0 .. C-1

    References
    ----------
    Northcutt, Jiang, Chuang (2021). Confident learning: estimating uncertainty in dataset labels. JAIR 70. arXiv:1911.00068
    """
    p, y = _checked(probabilities, labels)
    counts = np.bincount(y, minlength=p.shape[1])
    sums = np.bincount(y, weights=p[np.arange(y.size), y], minlength=p.shape[1])
    thresholds = np.divide(sums, counts, out=np.full(p.shape[1], np.inf), where=counts > 0)
    confident = np.where(p >= thresholds, p, -np.inf)
    best = confident.argmax(axis=1) if y.size else np.zeros(0, dtype=np.int64)
    found = np.isfinite(confident[np.arange(y.size), best])
    looks = np.where(found, best, -1).astype(np.int64)
    margin = np.where(found, p[np.arange(y.size), best] - p[np.arange(y.size), y], np.nan)
    return Suspects(found & (best != y), looks, margin, thresholds)


@dataclass(frozen=True)
class Calibration:
    """How labels follow from a model's log probabilities.

    Attributes
    ----------
    sharpness : by which they are multiplied (1 / temperature); below 1 the model is over-confident
    offsets : (C,) added to them
    floor : share of labels that no probability explains, drawn from all classes alike
    p_value : of the floor being 0 (likelihood ratio)
    """

    sharpness: float
    offsets: FloatArray
    floor: float
    p_value: float

    def applied(self, probabilities: ArrayLike) -> FloatArray:
        """(N, C) calibrated probabilities, without the floor."""
        return np.asarray(special.softmax(self.sharpness * _logs(probabilities) + self.offsets, axis=1), dtype=np.float64)


def calibration(
    probabilities: ArrayLike, labels: ArrayLike, *, cluster: ArrayLike | None = None, alpha: float = 0.05, seed: int = 0
) -> Calibration:
    """Temperature and class offsets by maximum likelihood, with a floor of labels that contradict the model however sure it is.

    The floor is fitted along so that wrong labels do not pass for lack of confidence; where it is not significant at ``alpha`` it is left out.
    Probabilities that are equally sure of every row are not tempered: nothing then tells over-confidence from wrong labels. With clusters the likelihood ratio is divided by the design effect of the errors.

    References
    ----------
    Alexandari, Kundaje, Shrikumar (2020). Maximum likelihood with bias-corrected calibration is hard-to-beat at label shift adaptation. ICML.
    """
    p, y = _checked(probabilities, labels)
    n, classes = p.shape
    if n == 0 or classes < 2:
        return Calibration(1.0, np.zeros(classes), 0.0, 1.0)
    rows = np.arange(n) if n <= MOST_FITTED else np.sort(generator(seed, "calibration rows").permutation(n)[:MOST_FITTED])
    z, own = _logs(p[rows]), y[rows]
    free = n >= ROWS_PER_CLASS * classes
    # where every row is equally sure, over-confidence and wrong labels explain the errors alike: the model is then taken at its word
    least = 1.0 if _flat(z) else _LEAST_SHARP
    plain, without = _fit(z, own, free=free, floor=False, least=least)
    floored, with_floor = _fit(z, own, free=free, floor=True, least=least)
    wrong = p[rows].argmax(axis=1) != own
    spread = 1.0 if cluster is None else float(rate(wrong, cluster=np.asarray(cluster)[rows]).details.get("deff", 1.0))
    ratio = max(0.0, 2 * (without - with_floor)) / spread
    chance = representable_p(0.5 * float(stats.chi2.sf(ratio, 1)) if ratio > 0 else 1.0)
    return replace(floored if chance < alpha else plain, p_value=chance)


@dataclass(frozen=True)
class NoiseTest:
    """How many suspects there are, held against how many there would be if every label were drawn from the calibrated probabilities.

    Attributes
    ----------
    suspects : which samples
    share : of suspects (0-1), with its interval [I1] or [I4]; ``null`` is the share that chance gives
    excess : share beyond that (-1..1, null 0, lower is better), with the one-sided p of the simulation; ``null_high`` in details
    calibration : that the draws were made from
    """

    suspects: Suspects
    share: Estimate
    excess: Estimate
    calibration: Calibration


def noise_test(
    probabilities: ArrayLike, labels: ArrayLike, *, cluster: ArrayLike | None = None, alpha: float = 0.05, seed: int = 0, draws: int = DRAWS
) -> NoiseTest:
    """Suspects among the labels beyond those that classes which overlap give by themselves.

    Labels are drawn ``draws`` times from the calibrated probabilities and their suspects are counted in the same way. Rows of one cluster are
    drawn with one number: what they share may make all of their labels right or wrong together.

    Parameters
    ----------
    probabilities : (N, C), out of sample
    labels : (N,)
    cluster : (N,)
    """
    p, y = _checked(probabilities, labels)
    n = y.size
    found = suspects(p, y)
    share = rate(found.flagged, cluster=cluster)
    fitted = calibration(p, y, cluster=cluster, alpha=alpha, seed=seed)
    if share.value is None:
        return NoiseTest(found, share, Estimate(None, n, share.reason, null=0.0), fitted)
    codes, observed = cluster_codes(cluster, n), share.value
    if p.size > MOST_DRAWN:
        # what chance gives is as well known from some of so many rows
        rows = np.sort(generator(seed, "label_noise rows").permutation(n)[: max(1, MOST_DRAWN // p.shape[1])])
        p, codes = p[rows], codes[rows]
        observed = float(suspects(p, y[rows]).flagged.mean())
    sums = np.cumsum(fitted.applied(p), axis=1)
    drawn = np.empty(draws)
    for number in range(draws):
        u = generator(seed, "label_noise", number).random(int(codes.max()) + 1)[codes]
        made = np.minimum((sums < u[:, None]).sum(axis=1), p.shape[1] - 1)
        drawn[number] = suspects(p, made).flagged.mean()
    middle = float(drawn.mean())
    p_value = (1 + int((drawn >= observed).sum())) / (draws + 1)
    high = float(np.quantile(drawn, 1 - alpha, method="higher"))
    ladder = tuple((level, low - middle, top - middle) for level, low, top in share.ladder)
    details = share.details | {"null_high": high - middle, "draws": draws, "rows_drawn": p.shape[0]}
    excess = replace(
        share, value=share.value - middle, null=0.0, p_value=p_value, ladder=ladder, events=None, nonevents=None,
        details=details,
    )  # fmt: skip
    return NoiseTest(found, replace(share, null=middle), excess, fitted)


def _fit(z: FloatArray, y: IntArray, *, free: bool, floor: bool, least: float) -> tuple[Calibration, float]:
    """The calibration of most likelihood whose sharpness is at least ``least``, and minus its log likelihood."""
    n, classes = z.shape
    at = np.arange(n)

    def loss(theta: FloatArray) -> tuple[float, FloatArray]:
        scale, eps, offsets = np.exp(theta[0]), theta[1], theta[2:]
        s = special.softmax(scale * z + (offsets if free else 0.0), axis=1)
        own = s[at, y]
        likely = np.maximum((1 - eps) * own + eps / classes, _FLOOR)
        # of the log of each row's probability, by what goes into the softmax
        slope = -s * ((1 - eps) * own / likely)[:, None]
        slope[at, y] += (1 - eps) * own / likely
        gradient = np.r_[-(slope * z).sum() * scale, -((1 / classes - own) / likely).sum(), (-slope.sum(axis=0) if free else offsets)]
        ridge = 1e-3 * offsets
        gradient[2:] += ridge if free else 0.0
        return float(-np.log(likely).sum() + (0.5 * (ridge * offsets).sum() if free else 0.0)), gradient

    bounds = [(float(np.log(least)), 4.0), (0.0, 0.9 if floor else 0.0), *([(-10.0, 10.0) if free else (0.0, 0.0)] * classes)]
    best = None
    # a floor of 0 is a place where the search can rest: it is also begun with one
    for start in (0.0, 0.1) if floor else (0.0,):
        found = optimize.minimize(loss, np.r_[0.0, start, np.zeros(classes)], jac=True, method="L-BFGS-B", bounds=bounds)
        if best is None or found.fun < best.fun:
            best = found
    assert best is not None
    return Calibration(float(np.exp(best.x[0])), np.asarray(best.x[2:]) * free, float(best.x[1]), 1.0), float(best.fun)


def _flat(z: FloatArray) -> bool:
    """Whether the log odds of the likeliest class against the next hardly differ from row to row."""
    top = np.sort(z, axis=1)[:, -2:]
    lead = top[:, 1] - top[:, 0]
    return bool(lead.std() < _FLAT * lead.mean())


def _logs(probabilities: ArrayLike) -> FloatArray:
    return np.asarray(np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), _FLOOR)), dtype=np.float64)


def _checked(probabilities: ArrayLike, labels: ArrayLike) -> tuple[FloatArray, IntArray]:
    p = finite_matrix(probabilities, "probabilities")
    y = class_vector(labels, p.shape[1], "labels")
    same_length(probabilities=p.shape[0], labels=y.size)
    if p.size and (p.min() < -1e-9 or abs(p.sum(axis=1) - 1).max() > 1e-6):
        raise DataError("probabilities do not sum to 1 in every row")
    return p, y
