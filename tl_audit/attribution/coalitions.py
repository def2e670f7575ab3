"""Shapley values from few coalitions: which coalitions to evaluate, and what their values say about every player.

Write z for a coalition S (+1 for a player that is there, -1 for one that is not) and expand the game in products of these signs,
v(S) = sum over T of a_T prod_{i in T} z_i. Every term of even order has the same value at S and at its complement and gives no
player anything; a term of odd order |T| gives each of its members 2 a_T / |T|. So the pair (S, complement) has all that matters in
one number, w(S) = (v(S) - v(complement)) / 2, which holds the odd orders alone: 1, 3, 5, ... Kernel SHAP fits order 1 to it and
leaves orders 3 and up as noise. Here they are part of the model: the coefficients of each order are given a normal prior, which
makes w a Gaussian process whose covariance depends on nothing but the number of players in which two coalitions differ, and the
answer is the posterior mean of the Shapley values. How much the orders weigh is averaged over a grid by marginal likelihood. Players that
count for much also interact more (heredity): of at most 20 players and 512 pairs, a second set of priors weighs each interaction by the
first answers of its members, and joins the average. With few
coalitions that is a regularised Kernel SHAP; with enough of them third-order games come out exact; with all 2^d the plain formula
is used. Values add up to v(everyone) - v(nobody) whatever was sampled, since that pair is one of the observations.

References
----------
Lundberg and Lee (2017). A unified approach to interpreting model predictions. arXiv:1705.07874
Covert and Lee (2021). Improving KernelSHAP: practical Shapley value estimation. arXiv:2012.01536
Musco and Witter (2024). Provably accurate Shapley value estimation via leverage score sampling. arXiv:2410.01917
O'Donnell (2014). Analysis of Boolean functions, chapter 1 (expansion in products of signs). doi:10.1017/CBO9781139814782
Chipman (1996). Bayesian variable selection with related predictors (heredity). doi:10.2307/3315687
Rasmussen and Williams (2006). Gaussian processes for machine learning, sections 2.7 and 5.4. ISBN 026218253X
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from tl_audit.measures.sampling import generator

FloatArray = NDArray[np.float64]

_MOST_EXACT_PLAYERS = 20  # 2^20 coalitions as booleans are 20 MiB; more are never "all of them"
_INTERACTIONS = (3, 5)  # orders with a variance of their own; all higher ones are the white part
_FIFTH_TO_THIRD = (0.0, 0.1, 0.5)  # variance of order 5 for that of order 3
_WHITE = (1e-5, 1e-3, 1e-2, 5e-2, 0.25)  # share of the white part in what is not of order 1
_LINEAR = (1e-1, 1.0, 3.0, 1e1, 3e1, 1e2, 1e3, 1e4, 1e12)  # variance of order 1 for that of all else; the last is as good as flat
_MOST_PAIRS = 2048  # of one posterior (the cost is cubic); beyond, parts of the pairs have one each, and are averaged
_HEREDITY_PAIRS = 512  # most pairs for which each game gets a prior of its own
_HEREDITY_PLAYERS = 20  # most players for that: where it was measured to help (10 to 14); with many it costs more than small models do
_HEREDITY_FIFTH = 0.1  # variance of order 5 for that of order 3 there
_HEREDITY_BOUNDS = (0.1, 4.0)  # of a player's weight, mean 1: nearly no interactions, and not all of them with one player
_HEREDITY_CHARGE = (
    0.5  # log evidence that each such weight costs: it was fitted to the same numbers (measured; unneeded weights lose by it)
)
_SCREENED_PAIRS = 512  # pairs that choose the priors worth the full cost


class Coalitions(NamedTuple):
    """Which coalitions are evaluated; row r of the second half is the complement of row r of the first.

    Attributes
    ----------
    masks : (R, d) bool, True: the player is there. Neither empty nor full: those two are always evaluated besides
    exact : all 2^d - 2 coalitions are there
    """

    masks: NDArray[np.bool_]
    exact: bool

    @property
    def pairs(self) -> NDArray[np.int64]:
        """(R,) number of the pair; a coalition and its complement share it."""
        half = len(self.masks) // 2
        return np.tile(np.arange(half, dtype=np.int64), 2)

    def first(self, number: int) -> Coalitions:
        """The first pairs alone, at most ``number`` coalitions: about what a plan of that size would be, and part of this one."""
        half, pairs = len(self.masks) // 2, number // 2
        if pairs >= half:
            return self
        return Coalitions(np.concatenate([self.masks[:pairs], self.masks[half : half + pairs]]), False)


class Shapley(NamedTuple):
    """Shapley values and their standard errors.

    Attributes
    ----------
    values : (N, d), unit of the game; each row adds up to full - empty
    standard_error : (N, d), of the sampling alone: value +- 1.96 of it covers the exact value in about 95 of 100 designs; 0 where exact
    """

    values: FloatArray
    standard_error: FloatArray


@lru_cache(maxsize=256)
def coalitions(d: int, most: int) -> Coalitions:
    """At most ``most`` coalitions of ``d`` players, in pairs of complements: all 2^d - 2 where they fit, else sampled without replacement.

    Each size s has a number of pairs in proportion to 1 / sqrt(s (d - s)), halfway between the Shapley kernel and leverage scores
    (measured best of the two and their mean on eight kinds of games), and small sizes are complete first, because they have few.
    Within a size every player is there about equally often. The plan is the same for every sample with ``d`` players:
    ``seated`` draws which player takes which column, so that covariances are factorised once.
    """
    if d < 2:
        return Coalitions(np.zeros((0, d), dtype=bool), True)
    if d <= _MOST_EXACT_PLAYERS and 2**d - 2 <= most:
        inside = (np.arange(2 ** (d - 1) - 1)[:, None] >> np.arange(d)) & 1 == 1
        inside[:, -1] = True  # one of each pair holds the last player; the full coalition is not reached
        inside = _small_first(inside, generator("coalitions", d))
        return Coalitions(np.concatenate([inside, ~inside]), True)
    rng = generator("coalitions", d, most)
    parts = [_of_size(d, size, number, rng) for size, number in enumerate(_pairs_per_size(d, most // 2), start=1) if number]
    inside = np.concatenate(parts) if parts else np.zeros((0, d), dtype=bool)
    inside = _small_first(inside, rng)
    return Coalitions(np.concatenate([inside, ~inside]), False)


def seated(plan: Coalitions, rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """The coalitions of one sample, and the column of the plan that each of its players took.

    Returns
    -------
    masks : (R, d) bool
    seats : (d,) integers, for ``solve``
    """
    d = plan.masks.shape[1]
    seats = rng.permutation(d) if not plan.exact else np.arange(d)
    return plan.masks[:, seats], seats.astype(np.int64)


def background_draws(plan: Coalitions, background: int, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(repeats, R) rows of the background for each coalition, the same for both of a pair; repeats as the budget allows, at most all.

    Each row is used about equally often. A coalition's value is the mean over its repeats.
    """
    half = len(plan.masks) // 2
    repeats = max(1, min(background, most // max(2 * half, 1)))
    if repeats == background:
        return np.repeat(np.arange(background, dtype=np.int64)[:, None], 2 * half, axis=1)
    order = rng.permutation(background)
    drawn = order[(np.arange(half) * repeats + np.arange(repeats)[:, None]) % background]
    return np.tile(drawn, (1, 2)).astype(np.int64)


def solve(
    plan: Coalitions,
    values: FloatArray,
    empty: FloatArray,
    full: FloatArray,
    *,
    seats: NDArray[np.int64] | None = None,
    noisy: bool = False,
) -> Shapley:
    """Shapley values of N games from the values of the plan's coalitions; all games at once.

    Parameters
    ----------
    plan : of R coalitions of d players
    values : (N, R), the value of each coalition in each game
    empty, full : (N,), the values of no player and of all
    seats : (N, d), from ``seated``: column of the plan of each player; None: in order
    noisy : coalitions were evaluated with drawn background rows: the part without structure is noise of the draw, no part of the game
    """
    n, d = len(values), plan.masks.shape[1]
    gain = (full - empty)[:, None]
    if d < 2:
        return Shapley(np.repeat(gain, d, axis=1), np.zeros((n, d)))
    half = len(plan.masks) // 2
    odd = (values[:, :half] - values[:, half:]) / 2
    if plan.exact and not noisy:
        # phi_i: each pair counts 2 p(|S|) with the player's sign, p the Shapley weight of joining it
        phi, error = odd @ _white_cross(plan.masks[:half]) + gain / d, np.zeros((n, d))
    elif half == 0:
        raise ValueError("no coalition to solve from")
    else:
        groups = -(-half // _MOST_PAIRS)
        found = [_posterior(plan.masks[:half][g::groups], odd[:, g::groups], gain[:, 0] / 2, noisy) for g in range(groups)]
        phi = np.mean([f.values for f in found], axis=0)
        error = np.sqrt(np.mean([f.standard_error**2 for f in found], axis=0) / groups)
    if seats is not None:
        phi, error = np.take_along_axis(phi, seats, axis=1), np.take_along_axis(error, seats, axis=1)
    return Shapley(phi, error)


def shapley_of_table(table: FloatArray) -> FloatArray:
    """(..., d) exact Shapley values of games given as all 2^d values; bit i of the index is player i.

    Parameters
    ----------
    table : (..., 2^d)

    Examples
    --------
    >>> shapley_of_table(np.array([0.0, 1.0, 2.0, 4.0]))
    array([1.5, 2.5])
    """
    d = int(table.shape[-1]).bit_length() - 1
    masks = (np.arange(2**d)[:, None] >> np.arange(d)) & 1 == 1
    size = masks.sum(axis=1)
    joining = np.array([1 / (d * comb(d - 1, s)) for s in range(d)])
    weights = np.where(masks, joining[np.maximum(size - 1, 0)][:, None], -joining[np.minimum(size, d - 1)][:, None])
    return np.asarray((table - table[..., :1]) @ weights, dtype=np.float64)


def _pairs_per_size(d: int, pairs: int) -> NDArray[np.int64]:
    """(d // 2,) pairs of each size 1 .. d // 2: in proportion to the size's weight, never more than there are."""
    sizes = np.arange(1, d // 2 + 1)
    twice = 2 * sizes == d  # the middle size of an even number holds its own complements
    there = np.array([comb(d, int(s)) for s in sizes], dtype=np.float64) / np.where(twice, 2, 1)
    weight = np.where(twice, 0.5, 1.0) / np.sqrt(sizes * (d - sizes))
    number, left, open_ = np.zeros(len(sizes)), float(min(pairs, there.sum())), np.ones(len(sizes), dtype=bool)
    while left > 1e-9 and open_.any():
        grown = np.minimum(number + left * weight * open_ / weight[open_].sum(), there)
        left -= float((grown - number).sum())
        number, open_ = grown, grown < there - 1e-9
    whole = np.floor(number + 1e-9)
    missing = round(float(number.sum() - whole.sum()))
    whole[np.argsort(whole - number, kind="stable")[:missing]] += 1
    return whole.astype(np.int64)


def _of_size(d: int, size: int, number: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(number, d) different coalitions of one size, none the complement of another; cut from permutations, so players are balanced."""
    half = 2 * size == d
    if number == comb(d, size) // (2 if half else 1):
        members = np.array(list(combinations(range(d), size)))
        masks = np.zeros((len(members), d), dtype=bool)
        masks[np.arange(len(members))[:, None], members] = True
        return masks[masks[:, 0]] if half else masks
    found = np.zeros((0, d), dtype=bool)
    per = d // size
    while len(found) < number:
        rounds = -(-2 * (number - len(found)) // per)
        members = rng.permuted(np.tile(np.arange(d), (rounds, 1)), axis=1)[:, : per * size].reshape(-1, size)
        masks = np.zeros((len(members), d), dtype=bool)
        masks[np.arange(len(members))[:, None], members] = True
        if half:
            masks ^= ~masks[:, :1]
        found = np.concatenate([found, masks])
        first = np.unique(np.packbits(found, axis=1), axis=0, return_index=True)[1]
        found = found[np.sort(first)]
    return found[:number]


def _small_first(inside: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """The coalitions in an order whose beginnings have each size in about the numbers of a plan of that length."""
    d = inside.shape[1]
    size = np.minimum(inside.sum(axis=1), (~inside).sum(axis=1))
    lengths = np.unique(np.geomspace(1, max(len(inside), 1), 40).round().astype(np.int64))
    planned = np.array([_pairs_per_size(d, int(length)) for length in lengths])  # (L, d // 2)
    arrival = np.empty(len(inside), dtype=np.int64)
    for s in np.unique(size):
        rows = np.flatnonzero(size == s)
        arrival[rows[rng.permutation(len(rows))]] = np.searchsorted(
            np.maximum.accumulate(planned[:, s - 1]), np.arange(len(rows)), side="right"
        )
    return inside[np.lexsort((rng.permutation(len(inside)), arrival))]


def _white_cross(masks: NDArray[np.bool_]) -> FloatArray:
    """(m, d) what one unit of w at each coalition, alone, gives each player: 2 / (d C(d-1, players met)), with the player's sign."""
    d = masks.shape[1]
    size = masks.sum(axis=1)
    joining = np.array([2 / (d * comb(d - 1, s)) for s in range(d)])
    return np.asarray(np.where(masks, joining[np.maximum(size - 1, 0)][:, None], -joining[np.minimum(size, d - 1)][:, None]))


def _krawtchouk(d: int, order: int) -> FloatArray:
    """(d + 1,) sum over all sets of ``order`` players of the product of their signs, when x = 0 .. d of d signs are -1."""
    return np.array(
        [sum((-1) ** j * comb(x, j) * comb(d - x, order - j) for j in range(order + 1)) for x in range(d + 1)], dtype=np.float64
    )


class _Parts(NamedTuple):
    """The prior of a set of coalitions, one part for each order; row 0 is the full coalition.

    Attributes
    ----------
    signs : (m, d)
    cov : (P, m, m) covariance of w, each part with variance 1
    cross : (P, m, d) covariance of w with the Shapley values
    prior : (P,) or (P, d) variance of a Shapley value
    """

    signs: FloatArray
    cov: FloatArray
    cross: FloatArray
    prior: FloatArray


def _parts(masks: NDArray[np.bool_], noisy: bool) -> _Parts:
    d = masks.shape[1]
    masks = np.concatenate([np.ones((1, d), dtype=bool), masks])
    signs = np.where(masks, 1.0, -1.0)
    apart = np.rint((d - signs @ signs.T) / 2).astype(np.int64)  # players in which two coalitions differ
    absent_others = (~masks).sum(axis=1)[:, None] - ~masks
    orders = [k for k in _INTERACTIONS if k <= d]
    cov = [(_krawtchouk(d, k) / comb(d, k))[apart] for k in orders]
    cross = [2 / k * signs * _krawtchouk(d - 1, k - 1)[absent_others] / comb(d, k) for k in orders]
    prior = [4 / k**2 * comb(d - 1, k - 1) / comb(d, k) for k in orders]
    white = _white_cross(masks)
    white_prior = 4 / d**2 * sum(1 / comb(d - 1, j) for j in range(d))
    if noisy:
        white[1:] = 0.0  # only the pair of everyone and no one is known without noise
        white_prior = 4 / d**2
    return _Parts(signs, np.array([*cov, np.eye(len(masks))]), np.array([*cross, white]), np.array([*prior, white_prior]))


def _weighted_parts(even: _Parts, weight: FloatArray) -> _Parts:
    """The parts again, with the variance of an interaction in proportion to the product of its players' weights (d,).

    Sums over all sets of k players are elementary symmetric polynomials of the players' terms; Newton's identities give them from sums of powers.
    """
    z, orders = even.signs, len(even.prior) - 1
    ones = np.ones((1, z.shape[1]))
    cov, cross, prior = [], [], []
    powers = [weight**j for j in range(1, _INTERACTIONS[orders - 1] + 1)]
    # the product of two signs, to an even power, is 1
    both = _symmetric([(z * w) @ z.T if j % 2 else np.full((len(z), len(z)), w.sum()) for j, w in enumerate(powers, start=1)])
    own, top = z * weight, _without_each(ones * weight, _INTERACTIONS[orders - 1] - 1)
    others = _without_each(own, _INTERACTIONS[orders - 1] - 1)
    for k in _INTERACTIONS[:orders]:
        scale = both[k][0, 0]
        cov.append(both[k] / scale)
        cross.append(2 / k * own * others[k - 1] / scale)
        prior.append((4 / k**2 * weight * top[k - 1] / scale)[0])
    white = np.full(z.shape[1], even.prior[-1])
    return _Parts(z, np.array([*cov, even.cov[-1]]), np.array([*cross, even.cross[-1]]), np.array([*prior, white]))


def _symmetric(powers: list[FloatArray]) -> list[FloatArray]:
    """Elementary symmetric polynomials of degree 0, 1, ... from the sums of first, second, ... powers."""
    found = [np.ones_like(powers[0])]
    for k in range(1, len(powers) + 1):
        found.append(np.asarray(sum((-1) ** (j - 1) * found[k - j] * powers[j - 1] for j in range(1, k + 1)) / k))
    return found


def _without_each(terms: FloatArray, most: int) -> list[FloatArray]:
    """(m, d) for each degree 0 .. most: the elementary symmetric polynomial of a row's terms, all but one's own."""
    full = _symmetric([(terms**j).sum(axis=1, keepdims=True) for j in range(1, most + 1)])
    found = [np.ones_like(terms)]
    for k in range(1, most + 1):
        found.append(full[k] - terms * found[k - 1])
    return found


def _shapes_of(parts: int, fifths: tuple[float, ...], whites: tuple[float, ...]) -> list[tuple[float, ...]]:
    """Shares of the parts above order 1, each row sums to 1; the white part is last."""
    rows: list[tuple[float, ...]] = [(*(0.0,) * (parts - 1), 1.0)]
    for white in whites if parts > 1 else ():
        for fifth in fifths if parts == 3 else (0.0,):
            structured = np.array([1.0, fifth][: parts - 1])
            rows.append((*(float(s) for s in (1 - white) * structured / structured.sum()), white))
    return rows


class _Fits(NamedTuple):
    """One row for each prior.

    Attributes
    ----------
    values : (K, N, d)
    variance : (K, N, d)
    evidence : (K, N) log marginal likelihood, up to a constant
    """

    values: FloatArray
    variance: FloatArray
    evidence: FloatArray


def _fit(parts: _Parts, shape: tuple[float, ...], y: FloatArray) -> _Fits:
    """Posterior under one shape of the orders above 1, for each variance of order 1; the common scale is at its maximum likelihood.

    Order 1 goes through the Woodbury identity, so that a flat prior of it costs no precision: linear games are exact.
    """
    m, d = parts.signs.shape
    weights = np.array(shape)
    factor = np.linalg.cholesky(np.tensordot(weights, parts.cov, axes=1))
    cross = np.tensordot(weights, parts.cross, axes=1)
    solved = solve_triangular(factor, np.hstack([parts.signs, cross, y.T]), lower=True, check_finite=False)
    z, x, u = solved[:, :d], solved[:, d : 2 * d], solved[:, 2 * d :]
    strength, basis = np.linalg.eigh(z.T @ z)
    strength = np.maximum(strength, 0.0)
    along = basis.T @ (z.T @ u)  # (d, N)
    free = (2 * np.eye(d) - x.T @ z) @ basis  # (d, d)
    direct, unexplained = (x.T @ u).T, np.maximum(weights @ parts.prior - (x**2).sum(axis=0), 0.0)
    square = (u**2).sum(axis=0)
    ridge = strength + d / np.array(_LINEAR)[:, None]  # (K, d)
    # what rounding leaves of a game that the prior fits completely counts as nothing
    rest = np.maximum(square - (along**2 / ridge[:, :, None]).sum(axis=1), 1e-14 * square) / m + np.finfo(float).tiny
    values = direct + np.einsum("ij,kjn->kni", free, along / ridge[:, :, None])
    # the scale and three ratios were fitted to these m numbers
    variance = (unexplained + (1 / ridge) @ (free**2).T)[:, None, :] * rest[:, :, None] * (m / max(m - 4, 1))
    determinant = 2 * np.log(np.diag(factor)).sum() + np.log1p(np.array(_LINEAR)[:, None] * strength / d).sum(axis=1)
    return _Fits(values, variance, -(determinant[:, None] + m * np.log(rest)) / 2)


def _weights(evidence: FloatArray) -> FloatArray:
    """(K, N) share of each prior, sums to 1 over K."""
    share = np.exp(evidence - evidence.max(axis=0))
    return np.asarray(share / share.sum(axis=0))


def _posterior(masks: NDArray[np.bool_], odd: FloatArray, top: FloatArray, noisy: bool) -> Shapley:
    """Mean over the priors, each with its share; the variance holds their disagreement."""
    y = np.column_stack([top, odd])
    parts = _parts(masks, noisy)
    shapes = _shapes_of(len(parts.prior), _FIFTH_TO_THIRD, _WHITE)
    worth = np.ones((len(shapes), len(y)), dtype=bool)
    if len(masks) > _SCREENED_PAIRS:
        few = _parts(masks[:_SCREENED_PAIRS], noisy)
        evidence = np.concatenate([_fit(few, shape, y[:, : _SCREENED_PAIRS + 1]).evidence for shape in shapes])
        worth = _weights(evidence).reshape(len(shapes), -1, len(y)).sum(axis=1) > 0.02
    fits = list(_each(parts, shapes, worth, y))
    first = _averaged(fits)
    if len(parts.prior) == 1 or len(masks) > _HEREDITY_PAIRS or masks.shape[1] > _HEREDITY_PLAYERS:
        return first
    # of the shares of the white part, the likeliest of the first answer and the next smaller: better priors leave less unexplained
    share = _weights(np.concatenate([f.evidence for f in fits]))
    white = np.repeat([s[-1] for s, chosen in zip(shapes, worth, strict=True) if chosen.any()], len(_LINEAR))
    likely = np.array([[share[white == w, i].sum() for w in _WHITE] for i in range(len(y))]).argmax(axis=1)
    values, errors = np.empty_like(first.values), np.empty_like(first.standard_error)
    for i in range(len(y)):
        importance = first.values[i] ** 2 + first.standard_error[i] ** 2
        mean = importance.mean()
        heredity = _weighted_parts(parts, np.clip(importance / mean if mean > 0 else np.ones_like(importance), *_HEREDITY_BOUNDS))
        charge = _HEREDITY_CHARGE * len(importance)
        weighed = [
            _fit(heredity, s, y[[i]])
            for s in _shapes_of(len(parts.prior), (_HEREDITY_FIFTH,), _WHITE[max(likely[i] - 1, 0) : likely[i] + 1])[1:]
        ]
        mine = [_Fits(f.values[:, [i]], f.variance[:, [i]], f.evidence[:, [i]]) for f in fits]
        found = _averaged([*mine, *(f._replace(evidence=f.evidence - charge) for f in weighed)])
        values[i], errors[i] = found.values[0], found.standard_error[0]
    return Shapley(values, errors)


def _averaged(fits: list[_Fits]) -> Shapley:
    values, variance, evidence = (np.concatenate([getattr(f, name) for f in fits]) for name in _Fits._fields)
    share = _weights(evidence)
    mean = np.einsum("kn,kni->ni", share, values)
    spread = np.einsum("kn,kni->ni", share, variance + (values - mean) ** 2)
    return Shapley(mean, np.sqrt(spread))


def _each(parts: _Parts, shapes: list[tuple[float, ...]], worth: NDArray[np.bool_], y: FloatArray) -> Iterator[_Fits]:
    for shape, chosen in zip(shapes, worth, strict=True):
        if chosen.any():
            fit = _fit(parts, shape, y)
            yield fit._replace(evidence=np.where(chosen, fit.evidence, -np.inf))
