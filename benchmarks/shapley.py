"""Evaluations that Kernel SHAP needs for one error against the exact Shapley values: ours, and shap's KernelExplainer called as its users call it.

Each game is a table of all 2^d values, so that errors are against the exact answer and an evaluation costs nothing. Ours is run with 16 d
evaluations; shap with growing ``nsamples`` until its error is as small, at most with all 2^d.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.timing import seconds
from tl_audit.attribution.coalitions import coalitions, seated, shapley_of_table, solve
from tl_audit.measures.sampling import generator

PLAYERS = (10, 12, 14)
INSTANCES, SEEDS = 4, 4
GROWTH = (1.0, 2**0.5, 2.0, 3.0, 4.5, 7.0, 11.0)
Game = Callable[[np.ndarray], np.ndarray]  # coalitions (R, d) -> values (R,)


def table_games(d: int, rng: np.random.Generator) -> dict[str, list[Game]]:
    """Models of scikit-learn's breast cancer data on d of its 30 columns; a missing column takes a reference's value, or all of eight rows' in turn."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
    from sklearn.neural_network import MLPClassifier

    x, y = load_breast_cancer(return_X_y=True)
    x = ((x - x.mean(axis=0)) / x.std(axis=0))[:, rng.permutation(30)[:d]]
    mlp = MLPClassifier((32, 32), max_iter=100, random_state=0).fit(x, y)
    forest = RandomForestClassifier(50, min_samples_leaf=3, random_state=0).fit(x, y)
    boosting = GradientBoostingClassifier(n_estimators=60, max_depth=4, random_state=0).fit(x, y)

    def logit(rows: np.ndarray) -> np.ndarray:
        p = np.clip(mlp.predict_proba(rows)[:, 1], 1e-12, 1 - 1e-12)
        return np.asarray(np.log(p / (1 - p)))

    def against(score: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> list[Game]:
        return [lambda m, s=s, i=i: np.mean([score(np.where(m, x[s], r)) for r in rows[i]], axis=0) for i, s in enumerate(chosen)]

    # a row of each class against one of the other, so that there is something to explain
    chosen = np.concatenate([rng.permutation(np.flatnonzero(y == label))[: INSTANCES // 2] for label in (0, 1)])
    one = x[[rng.choice(np.flatnonzero(y != y[row])) for row in chosen]][:, None]
    eight = x[rng.permutation(len(x))[: 8 * INSTANCES]].reshape(INSTANCES, 8, d)
    return {
        "MLP logit, one reference": against(logit, one),
        "MLP logit, background of 8": against(logit, eight),
        "random forest": against(lambda r: forest.predict_proba(r)[:, 1], one),
        "gradient boosting": against(boosting.decision_function, one),
    }


def picture_games(d: int, rng: np.random.Generator) -> list[Game]:
    """A small convolutional network on scikit-learn's digits; players are the cells nearest to d random points."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None], torch.tensor(digits.target)
    torch.manual_seed(0)
    nn = torch.nn
    net = nn.Sequential(
        nn.Upsample(scale_factor=2), nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24 * 16, 10),
    )  # fmt: skip
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(5):
        for rows in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimiser.step()
    places = np.stack(np.meshgrid(range(8), range(8), indexing="ij"), axis=-1).reshape(-1, 1, 2)

    def game(row: int) -> Game:
        parts = ((places - rng.uniform(0, 8, (d, 2))) ** 2).sum(axis=-1).argmin(axis=1)

        def value(masks: np.ndarray) -> np.ndarray:
            keep = torch.tensor(masks[:, parts]).reshape(-1, 1, 8, 8).float()
            with torch.no_grad():
                return np.asarray(net(x[row] * keep + x.mean() * (1 - keep))[:, y[row]].double().numpy())

        return value

    return [game(int(r)) for r in rng.permutation(len(x))[:INSTANCES]]


def formula_games(d: int, rng: np.random.Generator) -> dict[str, list[Game]]:
    def unanimity(orders: tuple[int, ...]) -> Game:
        terms = [(rng.permutation(d)[: rng.choice(orders)], rng.normal()) for _ in range(40)]
        return lambda m: np.sum([a * m[:, t].all(axis=1) for t, a in terms], axis=0)

    def product() -> Game:
        gain = rng.normal(0, 0.5, d)
        return lambda m: np.prod(np.where(m, 1 + gain, 1), axis=1)

    def saturating() -> Game:
        slope = rng.normal(0, 0.6, d)
        return lambda m: np.tanh(2 * (m @ slope))

    return {
        "product of players": [product() for _ in range(INSTANCES)],
        "tanh of a sum": [saturating() for _ in range(INSTANCES)],
        "unanimity, orders 1 to 4": [unanimity((1, 2, 3, 4)) for _ in range(INSTANCES)],
        "unanimity, order 6": [unanimity((6,)) for _ in range(INSTANCES)],
    }


def our_error(tables: np.ndarray, budget: int) -> tuple[float, float]:
    """RMS error over players, instances and seeds, in units of the spread of the exact values; and the share of intervals that cover."""
    d = int(math.log2(tables.shape[1]))
    plan = coalitions(d, budget - 2)
    values, seats = [], []
    for table in tables:
        for seed in range(SEEDS):
            masks, seat = seated(plan, generator(seed, "benchmark"))
            values.append(table[masks @ (1 << np.arange(d))])
            seats.append(seat)
    repeated = np.repeat(tables, SEEDS, axis=0)
    found = solve(plan, np.array(values), repeated[:, 0], repeated[:, -1], seats=np.array(seats))
    exact = shapley_of_table(repeated)
    gap = found.values - exact
    return _rms(gap, exact), float((np.abs(gap) <= 1.96 * found.standard_error + 1e-9).mean())


def shap_error(tables: np.ndarray, budget: int, **settings: object) -> float:
    import shap

    d = int(math.log2(tables.shape[1]))
    gaps = []
    for table, exact in zip(tables, shapley_of_table(tables), strict=True):
        for seed in range(SEEDS):
            np.random.seed(seed)  # noqa: NPY002 (the package draws from the global generator)
            explainer = shap.KernelExplainer(lambda m, t=table: t[m.astype(np.int64) @ (1 << np.arange(d))], np.zeros((1, d)))
            gaps.append(explainer.shap_values(np.ones((1, d)), nsamples=budget - 2, silent=True, **settings)[0] - exact)
    return _rms(np.array(gaps), np.repeat(shapley_of_table(tables), SEEDS, axis=0))


def _rms(gap: np.ndarray, exact: np.ndarray) -> float:
    # one spread for all instances: a row that the reference does not change has none of its own
    return float(np.sqrt(np.mean(gap**2) / np.mean(exact.var(axis=1))))


def needed(error: Callable[[int], float], goal: float, start: int, d: int) -> tuple[float | None, float]:
    """Evaluations until the error is as small as ``goal`` (log-log between two budgets; None: more than were tried), and the error at ``start``."""
    before, first = None, math.nan
    for factor in GROWTH:
        budget = min(round(start * factor), 2**d)
        now = error(budget)
        first = now if before is None else first
        if now <= goal:
            if before is None or now <= 0:
                return float(budget), first
            share = math.log(before[1] / goal) / math.log(before[1] / now)
            return math.exp(math.log(before[0]) + share * math.log(budget / before[0])), first
        if budget == 2**d:
            return None, first
        before = (budget, now)
    return None, first


def main() -> None:
    logging.getLogger("shap").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
    ratios: list[float] = []
    print("shapley: evaluations for the same RMS error (in spreads of the exact values); shap's KernelExplainer, default and l1_reg=False")
    for d in PLAYERS:
        rng = np.random.default_rng(d)
        masks = (np.arange(2**d)[:, None] >> np.arange(d)) & 1 == 1
        games = {**table_games(d, rng), "CNN logit, superpixels": picture_games(d, rng), **formula_games(d, rng)}
        start = 16 * d
        for name, made in games.items():
            tables = np.stack([np.asarray(g(masks), dtype=np.float64) for g in made])
            goal, covered = our_error(tables, start)
            shown = []
            for settings in ({}, {"l1_reg": False}):
                found, first = needed(lambda b, t=tables, s=settings: shap_error(t, b, **s), goal, start, d)
                most = min(round(start * GROWTH[-1]), 2**d)
                shown.append(f"{'more than ' + str(most) if found is None else round(found)} ({first:.3f} with {start})")
                if settings:
                    ratios.append((most if found is None else found) / start)
            print(
                f"shapley: d {d}, {name:27s} ours {start} (error {goal:.3f}, intervals cover {covered:.2f}), shap {shown[0]}, l1_reg=False {shown[1]}"
            )
    print(
        f"shapley: shap (l1_reg=False) needs {min(ratios):.1f} x our evaluations at least, {np.median(ratios):.1f} x in the middle of {len(ratios)} games"
    )
    plan = coalitions(49, 254)
    values = np.random.default_rng(0).normal(size=(64, len(plan.masks)))
    taken = min(seconds(lambda: solve(plan, values, np.zeros(64), np.ones(64))) for _ in range(3))
    print(f"shapley: solving 64 samples of 49 players from 254 coalitions each: {1000 * taken:.0f} ms")


if __name__ == "__main__":
    main()
