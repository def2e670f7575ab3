"""Rules for integrals over [0, 1]: Gauss-Legendre, and Patterson's nested rules, in which every node is used again by the next rule."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# Nodes of the rules of 3, 7, 15, 31, 63 and 127 nodes on [-1, 1], 0 or more; each rule has those of its row and of all rows above.
# Computed with 250 digits: the nodes of a row are the roots of the polynomial that makes the longer rule exact to the highest degree.
_PATTERSON: tuple[tuple[float, ...], ...] = (
    (0.0, 0.7745966692414834),
    (0.43424374934680254, 0.9604912687080203),
    (0.2233866864289669, 0.6211029467372264, 0.888459232872257, 0.993831963212755),
    (
        0.11248894313318662, 0.3311353932579768, 0.5313197436443756, 0.7024962064915271, 0.8367259381688688, 0.9296548574297401,
        0.9815311495537401, 0.9990981249676676,
    ),
    (
        0.05634431304659279, 0.16823525155220748, 0.2777498220218243, 0.38335932419873037, 0.48361802694584105, 0.5771957100520458,
        0.6629096600247806, 0.7397560443526947, 0.8069405319502176, 0.8639079381936905, 0.9103711569570043, 0.9463428583734029,
        0.9721828747485818, 0.9886847575474295, 0.997206259372222, 0.9998728881203576,
    ),
    (
        0.028184648949745695, 0.08445404008371088, 0.14042423315256017, 0.19589750271110015, 0.2506787303034832, 0.30457644155671404,
        0.3574038378315322, 0.4089798212298887, 0.45913001198983233, 0.5076877575337166, 0.5544951326319325, 0.5994039302422429,
        0.6422766425097595, 0.6829874310910792, 0.7214230853700989, 0.7574839663805136, 0.7910849337998483, 0.8221562543649804,
        0.8506444947683502, 0.8765134144847053, 0.89974489977694, 0.9203400254700124, 0.9383203977795929, 0.9537300064257611,
        0.9666378515584165, 0.9771415146397057, 0.9853714995985203, 0.9914957211781061, 0.9957241046984072, 0.9983166353184074,
        0.9995987996719107, 0.9999824303548916,
    ),
)  # fmt: skip


def gauss_legendre(nodes: int) -> tuple[FloatArray, FloatArray]:
    """Nodes and weights on [0, 1]; the weights sum to 1."""
    at, weights = np.polynomial.legendre.leggauss(nodes)
    return np.asarray((at + 1) / 2, dtype=np.float64), np.asarray(weights / 2, dtype=np.float64)


@lru_cache(maxsize=8)
def patterson(level: int) -> tuple[FloatArray, FloatArray]:
    """Nodes, in the order in which the levels bring them, and weights on [0, 1] of the rule of 2^(level + 2) - 1 nodes, level 0 to 5.

    References
    ----------
    Patterson (1968). The optimum addition of points to quadrature formulae. Mathematics of Computation 22, 847-856
    """
    at = np.array([side * x for row in _PATTERSON[: level + 1] for x in row for side in ((1.0,) if x == 0 else (-1.0, 1.0))])
    # exact for Legendre polynomials below the number of nodes: all of them but the first integrate to 0
    integrals = np.zeros(len(at))
    integrals[0] = 1.0
    weights = np.linalg.solve(np.polynomial.legendre.legvander(at, len(at) - 1).T, integrals)
    return (at + 1) / 2, np.asarray(weights, dtype=np.float64)


@dataclass(frozen=True)
class Rule:
    """Nodes in the order in which they are asked, and the weights they have once all nodes of a level are known.

    Attributes
    ----------
    at : (K,) nodes on [0, 1]
    weights : (K, levels), 0 for the nodes of later levels; a level's weights sum to 1
    ends : nodes known at the end of each level
    """

    name: str
    at: FloatArray
    weights: FloatArray
    ends: tuple[int, ...]


def fixed_rule(nodes: int) -> Rule:
    """Gauss-Legendre with exactly so many nodes."""
    at, weights = gauss_legendre(nodes)
    return Rule("gauss-legendre", at, weights[:, None], (nodes,))


def nested_rule(most: int) -> Rule:
    """Patterson's rules of 7, 15, ... 127 nodes, with at most ``most`` nodes in all; 3, or the middle alone, where no more are allowed.

    Measured beside Clenshaw-Curtis, Fejer, trapezoids, bisection and doubled Gauss-Legendre: fewest nodes until the residual was below 1 % on
    a trained SqueezeNet, fewest or nearly so on small networks. Rules with a node at the baseline did worst: activations change most there.
    """
    levels = [level for level in range(1, len(_PATTERSON)) if 2 ** (level + 2) - 1 <= most]
    if not levels:
        if most < 3:
            return Rule("patterson", np.array([0.5]), np.ones((1, 1)), (1,))
        levels = [0]
    at = patterson(levels[-1])[0]
    weights = np.zeros((len(at), len(levels)))
    for column, level in enumerate(levels):
        found = patterson(level)[1]
        weights[: len(found), column] = found
    return Rule("patterson", at, weights, tuple(2 ** (level + 2) - 1 for level in levels))
