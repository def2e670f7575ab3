"""Parts of a data set with many errors: found on some rows, to be tested on others (TLA307).

Nothing here may be read as a result: what was found on a set of rows is always worse there than it is elsewhere.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tl_audit.errors import DataError
from tl_audit.measures.arrays import finite_matrix, is_missing, same_length, truth_vector
from tl_audit.measures.estimate import BoolArray, FloatArray, IntArray
from tl_audit.measures.sampling import generator

DEPTH = 3
LEAST_ROWS = 30
MOST_SLICES = 5
CLUSTERS = 10
MOST_VALUES = 20
"""Values of a text column that a rule may name, the commonest."""
MOST_FOR_CLUSTERS = 5000
AXES = 32
LEAST_Z = 1.645
"""How many standard errors worse than the rest a part must be where it is looked for; a filter, no test."""
ALIKE = 0.5
"""Two parts that share this much of their rows (Jaccard) are one; the one that stands out more is kept."""
_LARGEST = 3e38


@dataclass(frozen=True)
class Columns:
    """What rules may speak of.

    Attributes
    ----------
    numbers : (N,) float64 with NaN where missing
    texts : (N,) str objects, None where missing
    ordered : (codes (N,) with -1 where missing, names in order), such as periods
    """

    numbers: Mapping[str, FloatArray] = field(default_factory=dict)
    texts: Mapping[str, NDArray[np.object_]] = field(default_factory=dict)
    ordered: Mapping[str, tuple[IntArray, tuple[str, ...]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Condition:
    """One part of a rule. Missing values meet no condition on numbers and order, and are "not" any text."""

    column: str
    kind: str
    "number | order | text | missing"
    low: float | None = None
    "strictly above"
    high: float | None = None
    "at most"
    value: str | None = None
    excluded: tuple[str, ...] = ()
    missing: bool = True

    def holds(self, columns: Columns) -> BoolArray:
        """(N,) which rows meet the condition."""
        if self.kind == "missing":
            gone = _missing(columns, self.column)
            return gone if self.missing else ~gone
        if self.kind == "text":
            texts = columns.texts[self.column]
            if self.value is not None:
                return np.asarray(texts == self.value, dtype=np.bool_)
            return ~np.isin(texts.astype(str), self.excluded) | _missing(columns, self.column)
        values = columns.numbers[self.column] if self.kind == "number" else _order(columns, self.column)
        with np.errstate(invalid="ignore"):
            inside = ~np.isnan(values)
            if self.low is not None:
                inside &= values > self.low
            if self.high is not None:
                inside &= values <= self.high
        return np.asarray(inside, dtype=np.bool_)

    def words(self, columns: Columns) -> str:
        if self.kind == "missing":
            return f"{self.column} is {'missing' if self.missing else 'known'}"
        if self.kind == "text":
            if self.value is not None:
                return f"{self.column} = {self.value}"
            return f"{self.column} is {'not' if len(self.excluded) == 1 else 'none of'} {', '.join(self.excluded)}"
        if self.kind == "order":
            names = columns.ordered[self.column][1]
            first = 0 if self.low is None else math.floor(self.low) + 1
            last = len(names) - 1 if self.high is None else math.floor(self.high)
            if first == last:
                return f"{self.column} = {names[first]}"
            if first == 0:
                return f"{self.column} up to {names[last]}"
            return f"{self.column} from {names[first]}" + ("" if last == len(names) - 1 else f" to {names[last]}")
        if self.low is None:
            return f"{self.column} ≤ {_number(self.high)}"
        if self.high is None:
            return f"{self.column} > {_number(self.low)}"
        return f"{_number(self.low)} < {self.column} ≤ {_number(self.high)}"


@dataclass(frozen=True)
class Part:
    """A part of the rows that a search proposes.

    Attributes
    ----------
    name : the rule in words, or the number of an undescribed part
    described : whether a rule says who belongs to it
    inside : (N,) which rows belong to it, of all rows, those of the search included
    z : how far its error lies above that of the rest where it was found, in standard errors
    columns : what the rule speaks of; () for an undescribed part
    """

    name: str
    described: bool
    inside: BoolArray
    z: float
    columns: tuple[str, ...] = ()


def rule_parts(
    errors: ArrayLike, columns: Columns, search: ArrayLike, *, cluster: IntArray | None = None, seed: int = 0
) -> tuple[Part, ...]:
    """Parts that a rule describes: nodes of a shallow tree of the errors, at most ``MOST_SLICES``, those that stand out most first.

    A tree of depth 3 with leaves of 30 rows is grown on the rows of the search; each of its nodes is a rule, written with the shortest
    numbers that divide the rows of the search in the same way. Kept are rules with more errors than the rest, which share less
    than half of their rows with a better one.

    Parameters
    ----------
    errors : (N,) bool
    columns : what rules may speak of, (N,) each
    search : (N,) bool, rows on which to look
    cluster : (N,) codes; a part needs five clusters in the search
    """
    wrong, look = truth_vector(errors, "errors"), truth_vector(search, "search")
    same_length(errors=wrong.size, search=look.size)
    matrix, meanings = _encoded(columns, look)
    if matrix.shape[1] == 0 or look.sum() < 2 * LEAST_ROWS or wrong[look].all() or not wrong[look].any():
        return ()
    from sklearn.tree import DecisionTreeRegressor

    tree = DecisionTreeRegressor(
        max_depth=DEPTH, min_samples_leaf=LEAST_ROWS, random_state=int(generator(seed, "rule_parts").integers(2**31))
    ).fit(matrix[look], wrong[look].astype(np.float64)).tree_  # fmt: skip
    found = []
    for path in _paths(tree):
        conditions = _rule(path, matrix[look], meanings)
        inside = np.ones(wrong.size, dtype=np.bool_)
        for condition in conditions:
            inside &= condition.holds(columns)
        part = _proposed(" and ".join(c.words(columns) for c in conditions), True, inside, wrong, look, cluster)
        if part is not None:
            found.append((len(conditions), replace(part, columns=tuple(dict.fromkeys(c.column for c in conditions)))))
    found.sort(key=lambda one: (-one[1].z, one[0], one[1].name))
    return _distinct([part for _, part in found], look)


def feature_parts(
    errors: ArrayLike, features: ArrayLike, search: ArrayLike, *, cluster: IntArray | None = None, seed: int = 0
) -> tuple[Part, ...]:
    """Parts that no rule describes: those of ten k-means clusters of the features, and of unions of near ones, with more errors than the
    rest, at most ``MOST_SLICES``.

    Clusters are made on the 32 leading principal axes of the rows of the search; all rows belong to the nearest centre.

    Parameters
    ----------
    errors : (N,) bool
    features : (N, D)
    search : (N,) bool
    """
    wrong, look, values = truth_vector(errors, "errors"), truth_vector(search, "search"), finite_matrix(features, "features")
    same_length(errors=wrong.size, search=look.size, features=values.shape[0])
    if look.sum() < 2 * LEAST_ROWS or wrong[look].all() or not wrong[look].any():
        return ()
    from sklearn.cluster import KMeans

    fitted = np.flatnonzero(look)[:MOST_FOR_CLUSTERS]
    rest = np.setdiff1d(np.arange(wrong.size), fitted)
    centre, spread = values[fitted].mean(axis=0), values[fitted].std(axis=0)
    varies = spread > 1e-12 * np.maximum(1.0, np.abs(centre))
    if not varies.any():
        return ()
    scaled = (values[:, varies] - centre[varies]) / spread[varies]
    scores = scaled @ _axes(scaled[fitted]) if scaled.shape[1] > AXES else scaled
    distinct = np.unique(scores[fitted], axis=0).shape[0]
    model = KMeans(n_clusters=min(CLUSTERS, distinct), n_init=3, random_state=int(generator(seed, "feature_parts").integers(2**31)))
    place = np.empty(wrong.size, dtype=np.int64)
    place[fitted] = model.fit_predict(scores[fitted])
    if rest.size:
        place[rest] = model.predict(scores[rest])
    found = []
    for members in _families(model.cluster_centers_):
        named = f"feature cluster{'' if len(members) == 1 else 's'} {', '.join(str(k + 1) for k in members)}"
        part = _proposed(named, False, np.isin(place, members), wrong, look, cluster)
        if part is not None:
            found.append(part)
    found.sort(key=lambda one: (-one.z, one.name))
    return _distinct(found, look)


def _families(centres: FloatArray) -> list[list[int]]:
    """Each cluster by itself, and the unions in which Ward's tree of the centres joins them: k-means may have cut one part in two."""
    from scipy.cluster.hierarchy import linkage

    count = centres.shape[0]
    families = [[k] for k in range(count)]
    if count > 2:
        for first, second, *_ in linkage(centres, method="ward")[: count - 2]:
            families.append(sorted(families[int(first)] + families[int(second)]))
    return families


def without_doubles(parts: Sequence[Part], known: Sequence[Part]) -> tuple[Part, ...]:
    """The parts that are not, for the most part, one of those known already."""
    return tuple(part for part in parts if all(_overlap(part.inside, other.inside) < ALIKE for other in known))


# ---------------------------------------------------------------- inside


def _axes(rows: FloatArray) -> FloatArray:
    """(D, at most AXES) leading principal directions of rows centred at 0."""
    values, vectors = np.linalg.eigh(rows.T @ rows)
    return np.asarray(vectors[:, np.argsort(-values)[:AXES]], dtype=np.float64)


def _proposed(name: str, described: bool, inside: BoolArray, wrong: BoolArray, look: BoolArray, cluster: IntArray | None) -> Part | None:
    a, b = inside & look, ~inside & look
    if a.sum() < LEAST_ROWS or b.sum() < LEAST_ROWS or (cluster is not None and np.unique(cluster[a]).size < 5):
        return None
    p, q, pooled = wrong[a].mean(), wrong[b].mean(), wrong[look].mean()
    z = float((p - q) / np.sqrt(pooled * (1 - pooled) * (1 / a.sum() + 1 / b.sum())))
    return Part(name, described, inside, z) if z >= LEAST_Z else None


def _distinct(parts: list[Part], look: BoolArray) -> tuple[Part, ...]:
    kept: list[Part] = []
    for part in parts:
        if all(
            _overlap(part.inside[look], other.inside[look]) < ALIKE and not _nested(part.inside[look], other.inside[look]) for other in kept
        ):
            kept.append(part)
    return tuple(kept[:MOST_SLICES])


def _overlap(a: BoolArray, b: BoolArray) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def _nested(a: BoolArray, b: BoolArray) -> bool:
    shared = int((a & b).sum())
    return shared in (int(a.sum()), int(b.sum()))


@dataclass(frozen=True)
class _Meaning:
    """What a column of the tree's matrix says."""

    column: str
    kind: str
    value: str | None = None


def _encoded(columns: Columns, look: BoolArray) -> tuple[FloatArray, list[_Meaning]]:
    """Numbers for the tree: numbers as they are (the median where missing), places in an order, and 0/1 for texts and for what is missing."""
    parts: list[FloatArray] = []
    meanings: list[_Meaning] = []
    n = look.size
    for kind, named in (("number", columns.numbers), ("order", columns.ordered)):
        for name in named:
            values = columns.numbers[name] if kind == "number" else _order(columns, name)
            if values.shape != (n,):
                raise DataError(f"column {name!r} has shape {values.shape}: expected one value for each of the {n} rows")
            known = ~np.isnan(values)
            # the tree compares in single precision, which ends there; the rules speak of the values themselves
            values = np.clip(values, -_LARGEST, _LARGEST)
            if known[look].any() and np.ptp(values[look & known]) > 0:
                parts.append(np.where(known, values, np.median(values[look & known])))
                meanings.append(_Meaning(name, kind))
    for name, texts in columns.texts.items():
        if texts.shape != (n,):
            raise DataError(f"column {name!r} has shape {texts.shape}: expected one value for each of the {n} rows")
        counts = Counter(text for text in texts[look].tolist() if not is_missing(text))
        order = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
        for value, count in order[:MOST_VALUES]:
            if LEAST_ROWS <= count <= look.sum() - LEAST_ROWS:
                parts.append((texts == value).astype(np.float64))
                meanings.append(_Meaning(name, "text", value))
    for name in (*columns.numbers, *columns.texts, *columns.ordered):
        gone = _missing(columns, name)
        if LEAST_ROWS <= gone[look].sum() <= look.sum() - LEAST_ROWS:
            parts.append(gone.astype(np.float64))
            meanings.append(_Meaning(name, "missing"))
    return (np.stack(parts, axis=1) if parts else np.zeros((n, 0))), meanings


def _paths(tree: Any) -> list[list[tuple[int, float, bool]]]:  # Any: sklearn's Tree
    """Of every node but the root: (feature, threshold, whether above it), from the root down."""
    out: list[list[tuple[int, float, bool]]] = []

    def walk(node: int, path: list[tuple[int, float, bool]]) -> None:
        if path:
            out.append(path)
        if tree.children_left[node] != tree.children_right[node]:
            feature, threshold = int(tree.feature[node]), float(tree.threshold[node])
            walk(int(tree.children_left[node]), [*path, (feature, threshold, False)])
            walk(int(tree.children_right[node]), [*path, (feature, threshold, True)])

    walk(0, [])
    return out


def _rule(path: list[tuple[int, float, bool]], rows: FloatArray, meanings: list[_Meaning]) -> list[Condition]:
    """The conditions of a path, one per column, in the order in which the tree asked."""
    out: dict[tuple[str, str], Condition] = {}
    for feature, threshold, above in path:
        meaning = meanings[feature]
        key = (meaning.column, meaning.kind)
        known = out.get(key)
        if meaning.kind == "missing":
            out[key] = Condition(meaning.column, "missing", missing=above)
        elif meaning.kind == "text":
            assert meaning.value is not None  # texts are encoded value by value
            if above:
                out[key] = Condition(meaning.column, "text", value=meaning.value)
            elif known is None or known.value is None:
                out[key] = Condition(meaning.column, "text", excluded=(*(known.excluded if known else ()), meaning.value))
        else:
            cut = _shortest(rows[:, feature], threshold)
            low, high = (known.low, known.high) if known else (None, None)
            out[key] = Condition(meaning.column, meaning.kind, low=cut if above else low, high=high if above else cut)
    return list(out.values())


def _shortest(values: FloatArray, threshold: float) -> float:
    """The shortest number that divides the values as the threshold does (at most it, above it)."""
    # the tree compares in single precision
    narrow = values.astype(np.float32)
    low, high = float(values[narrow <= np.float32(threshold)].max()), float(values[narrow > np.float32(threshold)].min())
    middle = (low + high) / 2
    for digits in range(1, 16):
        rounded = float(f"{middle:.{digits}g}")
        if low <= rounded < high:
            return rounded
    return low


def _order(columns: Columns, name: str) -> FloatArray:
    codes = columns.ordered[name][0].astype(np.float64)
    return np.where(codes < 0, np.nan, codes)


def _missing(columns: Columns, name: str) -> BoolArray:
    if name in columns.numbers:
        return np.isnan(columns.numbers[name])
    if name in columns.ordered:
        return np.asarray(columns.ordered[name][0] < 0, dtype=np.bool_)
    return np.fromiter((is_missing(v) for v in columns.texts[name].tolist()), dtype=np.bool_, count=columns.texts[name].size)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.15g}".replace("-", "−")
