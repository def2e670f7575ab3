"""Samples of the target that are almost training samples (TLA202): re-encoded, cropped, rounded copies, and frames of one scene."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tl_audit.checks.base import Check, Context, check, exact, metric
from tl_audit.checks.data import BLANK, MOST_LISTED, MOST_PICTURES, short_id
from tl_audit.checks.wording import counted
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures import intervals, neighbours, sketches
from tl_audit.measures.estimate import Estimate, FloatArray, IntArray
from tl_audit.measures.sampling import generator
from tl_audit.records.exhibits import Cell, Column, GridRow, ImageGrid, Table
from tl_audit.records.metrics import Measurement
from tl_audit.subject import Domain, Subject

HASH_BITS = 4
FEATURE_COSINE = 0.98
PICTURE_AGREEMENT = 0.99
"""Aligned correlation of two sketches. Hash and features alone took 173 of 700 digits, none a copy, for copies; this leaves none of them."""
COLUMN_TOLERANCE = 1e-6
"""Of a column's interquartile range (its standard deviation where that is 0)."""
RANDOM_PAIRS = 20_000
SIDES = ("train", "validation")

Found = Iterator[tuple[IntArray, IntArray, FloatArray | None]]
"""Pairs of rows of two roles, with how much they agree where that is measured."""


class _Comparison(Protocol):
    """What near means for one kind of data."""

    measured: str
    caveats: list[str]

    def near(self, first: str, rows: IntArray, second: str, others: IntArray | None) -> Found:
        """Near pairs among these rows; without ``others`` pairs inside ``rows``."""
        ...

    def conditions(self, second: str, i: IntArray, j: IntArray) -> dict[str, NDArray[np.bool_]]:
        """Which of the conditions hold for pairs of target rows with rows of another role; the last entry: all of them."""
        ...

    def comparable(self, role: str) -> NDArray[np.bool_]:
        """(N,) rows that can be compared: readable, not blank."""
        ...


@check("TLA202", "Near-duplicate leakage", section="data", severity="high", needs=("target",), multiplicity="none", values="same")
def near_duplicates(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Is any target sample almost a training sample?

    How it is measured: pictures are near copies where their 64-bit difference hashes differ in at most 4 bits, the base's features have a
    cosine of 0.98, and sketches of 16 x 16 areas, laid on each other, correlate by 0.99; rows of a table where all columns are equal within
    a millionth of the column's interquartile range. Exact copies are left to TLA201. The share of random pairs of one class that meet
    the same conditions is shown beside.

    Why it matters: frames of one video, re-encoded pictures and repeated forms are recognised, not generalised to; a hash of the content
    does not find them.

    How to reduce the risk: have a person look at the pairs; take copies out of the target, and split by what they share (patient, video, form).
    """
    roles = [role for role in SIDES if evidence.has(None, role)]
    if not roles:
        raise NotEvaluated(
            "the training or validation data themselves: the sample hashes of a run directory find exact copies only (TLA201)"
        )
    same = _comparison(evidence, ("target", *roles), subject)
    hashes = {role: evidence.content_hashes(role) for role in ("target", *roles)}
    known = {h for role in roles for h in hashes[role].tolist() if h is not None}
    n = len(hashes["target"])
    target, twin_of = _distinct(hashes["target"], same.comparable("target"))
    if not target.size or not any(same.comparable(role).any() for role in roles):
        # a count of 0 would pass for clean data
        where = "target" if not target.size else " and ".join(roles)
        raise NotEvaluated(f"samples of the {where} data that can be compared: all are blank, unreadable or without outputs")
    # an exact copy is another check's finding, whatever else it resembles
    fresh = target[[h not in known for h in hashes["target"][target]]]
    best: dict[int, tuple[float, str, int]] = {}
    for role in roles:
        theirs, _ = _distinct(hashes[role], same.comparable(role))
        for i, j, agreement in same.near("target", fresh, role, theirs):
            like = np.ones(i.size) if agreement is None else agreement
            # of each sample's pairs in this block the closest, of equal ones the first
            order = np.lexsort((-like, i))
            order = order[np.r_[True, i[order][1:] != i[order][:-1]]]
            for a, b, c in zip(i[order].tolist(), j[order].tolist(), like[order].tolist(), strict=True):
                if a not in best or c > best[a][0]:
                    best[a] = (c, role, b)
    leaked = np.array(sorted(r for r in np.flatnonzero(twin_of >= 0).tolist() if int(twin_of[r]) in best), dtype=np.int64)
    pairs = neighbours.spanning(n, ((i, j) for i, j, _ in same.near("target", target, "target", None)))
    near_inside = np.isin(twin_of, np.concatenate(pairs))
    groups = _groups(pairs, target, twin_of, evidence.sketches("target") is not None)
    chance, random = _by_chance(same, evidence, roles, hashes, context.seed)
    names = {role: _names(evidence, role) for role in ("target", *roles)}
    conflicts = sum(
        names["target"][r] is not None and names[role][j] not in (None, names["target"][r])
        for r in leaked.tolist()
        for _, role, j in (best[int(twin_of[r])],)
    )
    size = {"target": n}
    none = None if n else "no target samples"
    metrics = (
        exact("leaked_near", leaked.size, n=size, better="lower", null=0.0),
        exact("leaked_near_share", leaked.size / n if n else None, n=size, better="lower", null=0.0, reason=none),
        exact("leaked_near_label_conflicts", conflicts, n=size, better="lower", null=0.0),
        exact("near_within_target_share", int(near_inside.sum()) / n if n else None, n=size, reason=none),
        exact("duplicate_groups", len(groups), n=size),
        metric("near_random_pair_rate", random, rules=context.rules, n={"pairs": random.n}),
    )
    where = " and ".join(roles)
    summary = f"{leaked.size} of {n} target samples are near copies of samples in the {where} data, exact copies not counted."
    caveats = list(same.caveats)
    if leaked.size:
        caveats.append("A person must look at the pairs: pictures of one device or body part can be this alike without being copies.")
    if groups:
        held = sum(len(g) for g in groups)
        caveats.append(
            f"Inside the target {held} samples form {counted(len(groups), 'group')} of near or equal copies. They are not independent; given as "
            "cluster ids of the target they would count as one unit each. They were not applied."
        )
    if unread := int((~same.comparable("target")).sum()):
        caveats.append(f"{unread} target samples are blank, unreadable or without outputs, and were not compared.")
    exhibits: list[Table | ImageGrid] = []
    if leaked.size:
        exhibits.append(_listed(leaked, best, twin_of, evidence, hashes, names))
        if (grid := _pictures(subject, evidence, leaked, best, twin_of, hashes)) is not None:
            exhibits.append(grid)
    exhibits.append(chance)
    if groups:
        exhibits.append(_group_table(groups, evidence, hashes["target"]))
    return Measurement(
        summary=summary, metrics=metrics, exhibits=tuple(exhibits), caveats=tuple(caveats),
        params={"compared_with": where, "near": same.measured, "random_pairs": random.n, "seed": context.seed},
    )  # fmt: skip


# ---------------------------------------------------------------- what near means


def _comparison(evidence: Evidence, roles: tuple[str, ...], subject: Subject) -> _Comparison:
    drawn = {role: evidence.sketches(role) for role in roles}
    if all(found is not None for found in drawn.values()):
        return _Pictures(evidence, roles, {role: found for role, found in drawn.items() if found is not None}, subject)
    cells = {role: evidence.cells(role) for role in roles}
    if all(found is not None for found in cells.values()):
        return _Rows(evidence, {role: found for role, found in cells.items() if found is not None})
    raise NotEvaluated("pictures, or rows of a table: near copies of another kind of samples are not looked for")


class _Pictures:
    """Pictures: hash, features and sketch, each of which over-fires alone."""

    def __init__(self, evidence: Evidence, roles: tuple[str, ...], drawn: Mapping[str, NDArray[np.uint8]], subject: Subject) -> None:
        self.caveats: list[str] = []
        ruler = "base" if all(evidence.has("base", role) for role in roles) else "adapted"
        if ruler != "base":
            self.caveats.append("No features of a base model: those of the adapted model serve, which has seen the training samples.")
        self.measured = (
            f"difference hash within {HASH_BITS} bits, cosine of {ruler} features {FEATURE_COSINE}, sketches agree by {PICTURE_AGREEMENT}"
        )
        self._drawn = drawn
        self._keys = {role: sketches.difference_hash(found) for role, found in drawn.items()}
        self._features = {role: evidence.features(ruler, role) for role in roles}
        self._kept: dict[str, NDArray[np.bool_]] = {
            role: evidence.usable(None, role)
            & evidence.usable(ruler, role)
            & ~_blank(evidence.properties(role), len(drawn[role]))
            & (np.ptp(drawn[role].reshape(len(drawn[role]), -1), axis=1) > 0)
            for role in roles
        }

    def comparable(self, role: str) -> NDArray[np.bool_]:
        return self._kept[role]

    def near(self, first: str, rows: IntArray, second: str, others: IntArray | None) -> Found:
        theirs = None if others is None else self._keys[second][others]
        for i, j in neighbours.hamming_pairs(self._keys[first][rows], theirs, HASH_BITS):
            i, j = rows[i], (rows if others is None else others)[j]
            like = neighbours.cosines(self._features[first], self._features[second], i, j) >= FEATURE_COSINE
            i, j = i[like], j[like]
            agreement = sketches.aligned_correlation(self._drawn[first][i], self._drawn[second][j])
            found = agreement >= PICTURE_AGREEMENT
            if found.any():
                yield i[found], j[found], agreement[found]

    def conditions(self, second: str, i: IntArray, j: IntArray) -> dict[str, NDArray[np.bool_]]:
        bits = np.bitwise_count(self._keys["target"][i] ^ self._keys[second][j])
        hashed = bits <= HASH_BITS
        like = neighbours.cosines(self._features["target"], self._features[second], i, j) >= FEATURE_COSINE
        agree = sketches.aligned_correlation(self._drawn["target"][i], self._drawn[second][j]) >= PICTURE_AGREEMENT
        return {
            f"hash within {HASH_BITS} bits": hashed,
            f"features with a cosine of {FEATURE_COSINE}": like,
            f"sketches that agree by {PICTURE_AGREEMENT}": agree,
            "all three": hashed & like & agree,
        }


class _Rows:
    """Rows of a table: every column equal but for rounding."""

    def __init__(self, evidence: Evidence, cells: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
        self.caveats: list[str] = []
        self.measured = f"all columns equal within {COLUMN_TOLERANCE:g} of the column's interquartile range"
        shared = [name for name in cells["target"] if all(name in found for found in cells.values())]
        if not shared:
            raise NotEvaluated("a column that the target and the training data both hold")
        if left := sorted({name for found in cells.values() for name in found} - set(shared)):
            self.caveats.append(f"Columns that not all data hold were not compared: {', '.join(left[:MOST_LISTED])}.")
        self._columns: dict[str, list[FloatArray]] = {role: [] for role in cells}
        tolerance = []
        for name in shared:
            numbers, reach = _numbers({role: found[name] for role, found in cells.items()})
            tolerance.append(reach)
            for role, values in numbers.items():
                self._columns[role].append(values)
        self._tolerance = np.array(tolerance)
        self._kept = {role: evidence.usable(None, role) & ~_blank(evidence.properties(role), evidence.n(role)) for role in cells}

    def comparable(self, role: str) -> NDArray[np.bool_]:
        return self._kept[role]

    def near(self, first: str, rows: IntArray, second: str, others: IntArray | None) -> Found:
        mine = [column[rows] for column in self._columns[first]]
        theirs = None if others is None else [column[others] for column in self._columns[second]]
        for i, j in neighbours.tolerance_pairs(mine, theirs, self._tolerance):
            yield rows[i], (rows if others is None else others)[j], None

    def conditions(self, second: str, i: IntArray, j: IntArray) -> dict[str, NDArray[np.bool_]]:
        equal = np.ones(i.size, dtype=np.bool_)
        for x, y, reach in zip(self._columns["target"], self._columns[second], self._tolerance, strict=True):
            equal &= (np.abs(x[i] - y[j]) <= reach) | (np.isnan(x[i]) & np.isnan(y[j]))
        return {"all columns equal within the tolerance": equal}


def _numbers(values: Mapping[str, NDArray[Any]]) -> tuple[dict[str, FloatArray], float]:
    """One column as numbers that can be compared between roles, NaN where missing, and the difference that still counts as equal."""
    if all(v.dtype != object for v in values.values()):
        numbers = {role: np.where(np.isfinite(v), v, np.nan).astype(np.float64) for role, v in values.items()}
        held = np.concatenate([v[~np.isnan(v)] for v in numbers.values()])
        if not held.size:
            return numbers, 0.0
        low, high = np.quantile(held, [0.25, 0.75])
        return numbers, COLUMN_TOLERANCE * float(high - low if high > low else held.std())
    texts = {role: [None if cell is None or cell != cell else str(cell) for cell in v.tolist()] for role, v in values.items()}
    code = {text: number for number, text in enumerate(sorted({t for column in texts.values() for t in column if t is not None}))}
    return {role: np.array([np.nan if t is None else code[t] for t in column], dtype=np.float64) for role, column in texts.items()}, 0.0


def _blank(properties: Mapping[str, NDArray[Any]], n: int) -> NDArray[np.bool_]:
    out = np.zeros(n, dtype=np.bool_)
    for name, value in BLANK.items():
        if name in properties:
            out |= np.asarray(properties[name], dtype=np.float64) == value
    return out


# ---------------------------------------------------------------- rows, groups, chance


def _distinct(hashes: NDArray[np.object_], kept: NDArray[np.bool_]) -> tuple[IntArray, IntArray]:
    """The first row of each content among the rows kept, and for every row the first row of its content (-1: not kept)."""
    first: dict[Any, int] = {}
    of = np.full(hashes.size, -1, dtype=np.int64)
    for row in np.flatnonzero(kept).tolist():
        content = hashes[row]
        of[row] = row if content is None else first.setdefault(content, row)
    return np.unique(of[of >= 0]), of


def _groups(pairs: tuple[IntArray, ...], distinct: IntArray, twin_of: IntArray, pictures: bool) -> list[IntArray]:
    """Rows of the target that near pairs join, with their exact twins. Exact twins alone make a group of pictures; equal rows arise by chance."""
    place = np.full(twin_of.size, -1, dtype=np.int64)
    place[distinct] = np.arange(distinct.size)
    rows = np.flatnonzero(twin_of >= 0)
    order = np.argsort(twin_of[rows], kind="stable")
    members = (
        dict(zip(distinct.tolist(), np.split(rows[order], np.cumsum(np.bincount(place[twin_of[rows]]))[:-1]), strict=True))
        if rows.size
        else {}
    )
    found = neighbours.components(distinct.size, (place[pairs[0]], place[pairs[1]]))
    groups = [np.sort(np.concatenate([members[int(distinct[k])] for k in group])) for group in found]
    if pictures:
        joined = {int(distinct[k]) for group in found for k in group}
        groups += [np.sort(held) for first, held in members.items() if held.size > 1 and first not in joined]
    return sorted(groups, key=lambda g: (-g.size, int(g[0])))


@dataclass(frozen=True)
class _Drawn:
    role: str
    i: IntArray
    j: IntArray


def _by_chance(
    same: _Comparison, evidence: Evidence, roles: list[str], hashes: Mapping[str, NDArray[np.object_]], seed: int
) -> tuple[Table, Estimate]:
    """How often random pairs of one class meet each condition, and all of them: what the rule takes for copies by chance."""
    counts: dict[str, int] = {}
    total, labelled = 0, False
    for role in roles:
        drawn, by_class = _random_pairs(same, evidence, role, RANDOM_PAIRS // len(roles), seed)
        labelled |= by_class
        different = hashes["target"][drawn.i] != hashes[role][drawn.j]
        total += int(different.sum())
        for name, holds in same.conditions(role, drawn.i[different], drawn.j[different]).items():
            counts[name] = counts.get(name, 0) + int(holds.sum())
    whole = list(counts)[-1]
    of = "of one class" if labelled else "of any class"
    table = Table(
        id="random-pairs",
        title=f"Of {total} random pairs {of}, {counts[whole]} would be taken for near copies",
        how_to_read="One row per condition: how often a target sample and a sample of the other data, drawn at random, meet it.",
        alt=f"{counts[whole]} of {total} random pairs meet all conditions.",
        caption=f"{total} random pairs {of}, exact copies left out, the pairs found among them; seed {seed}.",
        columns=(Column(name="condition"), Column(name="pairs", format="count"), Column(name="share of random pairs", format="share")),
        rows=tuple((name, found, found / total if total else None) for name, found in counts.items()),
    )
    return table, intervals.clopper_pearson(counts[whole], total)


def _random_pairs(same: _Comparison, evidence: Evidence, role: str, most: int, seed: int) -> tuple[_Drawn, bool]:
    """Random target rows, each with a random row of the same class (of any class where one side has no labels)."""
    rng = generator(seed, "TLA202", "random pairs", role)
    mine, theirs = np.flatnonzero(same.comparable("target")), np.flatnonzero(same.comparable(role))
    a, b = _names(evidence, "target"), _names(evidence, role)
    shared = sorted({x for x in a[mine].tolist() if x is not None} & {x for x in b[theirs].tolist() if x is not None})
    if not shared:
        if not mine.size or not theirs.size:
            none = np.zeros(0, dtype=np.int64)
            return _Drawn(role, none, none), False
        return _Drawn(role, rng.choice(mine, most), rng.choice(theirs, most)), False
    mine = mine[np.isin(a[mine].astype(str), shared)]
    i = rng.choice(mine, most)
    j = np.empty(most, dtype=np.int64)
    for name in shared:
        at = np.flatnonzero(a[i] == name)
        j[at] = rng.choice(theirs[b[theirs] == name], at.size)
    return _Drawn(role, i, j), True


def _names(evidence: Evidence, role: str) -> NDArray[np.object_]:
    """(N,) class names, None where a row or the domain has none."""
    try:
        labels = evidence.labels(role)
        names = np.array([*evidence.classes(role), None], dtype=object)
    except NotEvaluated:
        return np.full(evidence.n(role), None, dtype=object)
    return np.asarray(names[np.where(labels >= 0, labels, len(names) - 1)], dtype=object)


# ---------------------------------------------------------------- exhibits

_Best = Mapping[int, tuple[float, str, int]]
_Hashes = Mapping[str, NDArray[np.object_]]


def _listed(leaked: IntArray, best: _Best, twin_of: IntArray, evidence: Evidence, hashes: _Hashes, names: _Hashes) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for r in _closest(leaked, best, twin_of)[:MOST_LISTED]:
        agreement, role, j = best[int(twin_of[r])]
        ids = evidence.ids("target"), evidence.ids(role)
        rows.append(
            (
                short_id(hashes["target"][r], ids[0][r]), role, short_id(hashes[role][j], ids[1][j]),
                round(agreement, 4), names["target"][r], names[role][j],
            )
        )  # fmt: skip
    return Table(
        id="near-copies",
        title=f"{leaked.size} target samples are almost samples that the model was made with",
        how_to_read="One row per target sample with the sample that it resembles most, the closest first; 1 where the pictures agree wholly.",
        alt=f"The first {len(rows)} of {leaked.size} near copies, by short id.",
        caption=f"{len(rows)} of {leaked.size} shown; n = {len(hashes['target'])} target samples.",
        columns=(
            Column(name="sample"),
            Column(name="resembles one in"),
            Column(name="that sample"),
            Column(name="agreement", format="number"),
            Column(name="label in target"),
            Column(name="label there"),
        ),
        rows=tuple(rows),
    )


def _closest(leaked: IntArray, best: _Best, twin_of: IntArray) -> IntArray:
    return np.array(sorted(leaked.tolist(), key=lambda r: (-best[int(twin_of[r])][0], r)), dtype=np.int64)


def _pictures(subject: Subject, evidence: Evidence, leaked: IntArray, best: _Best, twin_of: IntArray, hashes: _Hashes) -> ImageGrid | None:
    if evidence.samples == "off":
        return None
    redacted = evidence.samples == "redacted"
    rows = []
    for r in _closest(leaked, best, twin_of)[:MOST_PICTURES].tolist():
        agreement, role, j = best[int(twin_of[r])]
        other = subject.domain(role)
        if other is None:
            continue
        shown = [_picture(subject, subject.target, r, "target", redacted), _picture(subject, other, j, role, redacted)]
        if any(p is None for p in shown):
            return None
        facts = (("agreement", f"{agreement:.3f}"),)
        rows.append(
            GridRow(id=short_id(hashes["target"][r], evidence.ids("target")[r]), facts=facts, pictures=tuple(p for p in shown if p))
        )
    return ImageGrid(
        id="near-copies-pictures",
        title="Target samples beside the samples they resemble",
        how_to_read="One row per pair: the target sample, and the sample of the data that the model was made with. Are they the same thing?",
        alt=f"{len(rows)} pairs of near copies.",
        caption=f"The closest {len(rows)} of {leaked.size}.",
        rows=tuple(rows),
        samples="redacted" if redacted else "on",
    )


def _picture(subject: Subject, domain: Domain, row: int, title: str, redacted: bool) -> Any:  # Any: Picture or None
    raw = domain.samples.read(np.array([row], dtype=np.int64))
    if not raw.readable.all():
        return None
    modality, spec = domain.samples.modality, subject.adapted.preprocessing
    return modality.picture(modality.encode(raw, spec)[0], spec, title=title, redacted=redacted)


def _group_table(groups: list[IntArray], evidence: Evidence, hashes: NDArray[np.object_]) -> Table:
    ids = evidence.ids("target")
    rows: list[tuple[Cell, ...]] = []
    for number, group in enumerate(groups[:MOST_LISTED], start=1):
        named = ", ".join(short_id(hashes[r], ids[r]) for r in group[:5].tolist()) + (", ..." if group.size > 5 else "")
        rows.append((number, int(group.size), named))
    return Table(
        id="duplicate-groups",
        title=f"{counted(len(groups), 'group')} of near or equal copies inside the target",
        how_to_read="One row per group, the largest first: samples that are near copies of each other, directly or through others.",
        alt=f"{len(groups)} groups; the largest holds {groups[0].size} samples.",
        caption=f"{len(rows)} of {len(groups)} shown. Offered as clusters, not applied.",
        columns=(Column(name="group", format="text"), Column(name="samples", format="text"), Column(name="short ids")),
        rows=tuple(rows),
    )


NEAR_DUPLICATES: tuple[Check, ...] = (near_duplicates,)
