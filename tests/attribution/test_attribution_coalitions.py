from itertools import combinations
from math import comb

import numpy as np
import pytest

from tl_audit.attribution.coalitions import (
    _averaged,
    _fit,
    _parts,
    _shapes_of,
    _weighted_parts,
    background_draws,
    coalitions,
    seated,
    shapley_of_table,
    solve,
)
from tl_audit.measures.sampling import generator


def powers(d):
    return 1 << np.arange(d)


def all_masks(d):
    return (np.arange(2**d)[:, None] >> np.arange(d)) & 1 == 1


def brute_force(table, d):
    """Shapley values from their definition: the mean gain of a player over all orders of arrival, grouped by coalition."""
    phi = np.zeros(d)
    for player in range(d):
        for code in range(2**d):
            if not code >> player & 1:
                met = bin(code).count("1")
                phi[player] += (table[code | 1 << player] - table[code]) / (d * comb(d - 1, met))
    return phi


def unanimity(rng, d, orders, number=25):
    table = np.zeros(2**d)
    for _ in range(number):
        table += rng.normal() * all_masks(d)[:, rng.permutation(d)[: rng.choice(orders)]].all(axis=1)
    return table


def saturating(rng, d):
    return np.tanh(all_masks(d) @ rng.normal(0, 0.6, d) + 0.3)


def product(rng, d):
    return np.prod(np.where(all_masks(d), 1 + rng.normal(0, 0.5, d), 1), axis=1)


def white(rng, d):
    return rng.normal(size=2**d)


GAMES = {"unanimity": lambda rng, d: unanimity(rng, d, [1, 2, 3, 4]), "saturating": saturating, "product": product, "white": white}


def estimate(tables, most, seeds, *, noise=None):
    """Values, standard errors and exact values, every table with every seed."""
    d = int(tables.shape[1]).bit_length() - 1
    plan = coalitions(d, most)
    values, seats = [], []
    for table in tables:
        for seed in range(seeds):
            masks, seat = seated(plan, generator(seed, "test"))
            values.append(table[masks @ powers(d)])
            seats.append(seat)
    ends = np.repeat(tables[:, [0, -1]], seeds, axis=0)
    found = solve(plan, np.array(values), ends[:, 0], ends[:, 1], seats=np.array(seats))
    return found, np.repeat(shapley_of_table(tables), seeds, axis=0)


def plain(masks, values, empty, full, weights):
    """Kernel SHAP: weighted least squares on the coalitions, the last player taken out by the constraint."""
    z = masks.astype(float)
    x, y = z[:, :-1] - z[:, -1:], values - empty - z[:, -1] * (full - empty)
    root = np.sqrt(weights)
    free = np.linalg.lstsq(x * root[:, None], y * root, rcond=None)[0]
    return np.append(free, full - empty - free.sum())


@pytest.mark.parametrize("d", [2, 3, 5, 8])
def test_all_coalitions_give_the_values_of_the_definition(d):
    table = np.random.default_rng(d).normal(size=2**d)
    found, _ = estimate(table[None], 2**d, 1)
    assert found.values[0] == pytest.approx(brute_force(table, d), abs=1e-12)
    assert (found.standard_error == 0).all()
    assert shapley_of_table(table) == pytest.approx(brute_force(table, d), abs=1e-12)


def test_one_player_takes_everything_and_none_is_no_error():
    found = solve(coalitions(1, 10), np.zeros((2, 0)), np.array([1.0, 2.0]), np.array([4.0, 2.0]))
    assert found.values.tolist() == [[3.0], [0.0]]
    assert solve(coalitions(0, 10), np.zeros((2, 0)), np.zeros(2), np.zeros(2)).values.shape == (2, 0)


@pytest.mark.parametrize(("d", "most"), [(4, 7), (5, 12), (7, 126), (9, 100), (10, 401), (14, 254), (40, 126), (100, 254)])
def test_a_plan_has_distinct_pairs_of_complements_within_the_budget(d, most):
    plan = coalitions(d, most)
    assert len(plan.masks) <= most
    assert len(plan.masks) == min(most // 2 * 2, 2**d - 2)
    assert plan.exact == (2**d - 2 <= most)
    half = len(plan.masks) // 2
    assert (plan.masks[half:] == ~plan.masks[:half]).all()
    assert len(np.unique(plan.masks, axis=0)) == len(plan.masks)
    assert plan.masks.any(axis=1).all()
    assert not plan.masks.all(axis=1).any()
    assert (plan.pairs[:half] == plan.pairs[half:]).all()


@pytest.mark.parametrize(("d", "most"), [(12, 254), (40, 254)])
def test_players_are_in_about_equally_many_coalitions_of_each_size(d, most):
    masks = coalitions(d, most).masks
    sizes = masks.sum(axis=1)
    for size in range(1, d // 2):
        there = masks[sizes == size].sum(axis=0)
        assert there.max() - there.min() <= 5


def test_small_sizes_are_complete_first():
    masks = coalitions(12, 254).masks
    counts = np.bincount(masks.sum(axis=1), minlength=13)
    assert counts[1] == counts[11] == 12
    assert counts[2] < comb(12, 2)


def test_linear_games_are_exact_from_few_coalitions():
    gains = np.random.default_rng(0).normal(size=(3, 40))
    plan = coalitions(40, 126)
    found = solve(plan, gains @ plan.masks.T + 5, np.full(3, 5.0), 5 + gains.sum(axis=1))
    assert found.values == pytest.approx(gains, abs=1e-7)
    assert found.standard_error.max() < 1e-5


def test_second_order_games_are_exact_because_pairs_cancel_them():
    table = unanimity(np.random.default_rng(1), 10, [1, 2])
    found, truth = estimate(table[None], 60, 1)
    assert found.values == pytest.approx(truth, abs=1e-7)


def test_third_order_games_are_all_but_exact_with_as_many_pairs_as_terms():
    table = unanimity(np.random.default_rng(2), 10, [1, 2, 3, 4])
    found, truth = estimate(table[None], 400, 4)
    assert np.abs(found.values - truth).max() < 0.02 * truth.std()


@pytest.mark.parametrize("game", GAMES)
def test_values_add_up_whatever_was_sampled(game):
    tables = np.stack([GAMES[game](np.random.default_rng(s), 9) for s in range(3)])
    for most in (10, 40, 200):
        found, truth = estimate(tables, most, 2)
        assert found.values.sum(axis=1) == pytest.approx(truth.sum(axis=1), abs=1e-9)


def test_a_constant_game_gives_nothing_to_anyone():
    found, _ = estimate(np.full((1, 512), 7.0), 60, 2)
    assert np.abs(found.values).max() < 1e-12
    assert np.isfinite(found.standard_error).all()


def test_a_dummy_gets_nothing_and_equal_players_the_same_within_the_error():
    rng = np.random.default_rng(3)
    masks = all_masks(10)
    table = np.tanh(masks[:, :8] @ np.array([0.7, 0.7, *rng.normal(0, 0.5, 6)]))  # players 0 and 1 alike, 8 and 9 dummies
    found, _ = estimate(table[None], 200, 50)
    z = found.values[:, 8:] / found.standard_error[:, 8:]
    assert np.mean(np.abs(z) < 1.96) > 0.9
    gap = found.values[:, 0] - found.values[:, 1]
    assert np.abs(gap.mean()) < 3 * gap.std() / np.sqrt(50)
    assert np.abs(gap).max() < 0.1 * table.std()


def test_names_of_players_do_not_matter():
    # the same coalitions under other names: the values move with the names
    table = saturating(np.random.default_rng(4), 9)
    plan = coalitions(9, 100)
    order = np.random.default_rng(5).permutation(9)
    values = table[plan.masks @ powers(9)][None]
    renamed = solve(plan, values, table[:1], table[-1:], seats=order[None])
    assert renamed.values[0] == pytest.approx(solve(plan, values, table[:1], table[-1:]).values[0][order], abs=1e-12)


def test_scale_and_offset_of_a_game_pass_through():
    table = product(np.random.default_rng(6), 9)
    one, _ = estimate(table[None], 100, 1)
    other, _ = estimate(1000 * table[None] - 3, 100, 1)
    assert other.values == pytest.approx(1000 * one.values, rel=1e-6)
    assert other.standard_error == pytest.approx(1000 * one.standard_error, rel=1e-6)


def test_a_batch_equals_its_samples_one_by_one():
    tables = np.stack([GAMES[g](np.random.default_rng(7), 11) for g in GAMES])
    together, _ = estimate(tables, 200, 1)
    for k, table in enumerate(tables):
        alone, _ = estimate(table[None], 200, 1)
        assert alone.values[0] == pytest.approx(together.values[k], abs=1e-10)
        assert alone.standard_error[0] == pytest.approx(together.standard_error[k], rel=1e-6)


@pytest.mark.parametrize("most", [60, 126, 254])
@pytest.mark.parametrize("game", GAMES)
def test_intervals_cover_the_exact_values(game, most):
    tables = np.stack([GAMES[game](np.random.default_rng(100 + s), 10) for s in range(10)])
    found, truth = estimate(tables, most, 12)
    covered = (np.abs(found.values - truth) <= 1.96 * found.standard_error).mean()
    assert covered > 0.89


@pytest.mark.parametrize("most", [60, 254])
@pytest.mark.parametrize("game", GAMES)
def test_the_error_is_at_most_seven_tenths_of_that_of_paired_kernel_shap(game, most):
    """0.7 in error is half the evaluations: errors of sampling fall with the square root of their number."""
    d = 10
    kernel = np.array([1 / (s * (d - s)) for s in range(1, d)])
    tables = np.stack([GAMES[game](np.random.default_rng(200 + s), d) for s in range(8)])
    found, truth = estimate(tables, most, 6)
    theirs = []
    for table, phi in zip(tables, shapley_of_table(tables), strict=True):
        for seed in range(6):
            rng = np.random.default_rng(seed)
            masks = np.zeros((most // 2, d), dtype=bool)
            for row, size in enumerate(rng.choice(np.arange(1, d), size=most // 2, p=kernel / kernel.sum())):
                masks[row, rng.permutation(d)[:size]] = True
            masks = np.concatenate([masks, ~masks])
            theirs.append(plain(masks, table[masks @ powers(d)], table[0], table[-1], np.ones(len(masks))) - phi)
    assert np.sqrt(((found.values - truth) ** 2).mean()) < 0.7 * np.sqrt(np.mean(np.square(theirs)))


def test_with_fewer_pairs_than_players_values_are_finite_and_their_errors_large():
    rng = np.random.default_rng(8)
    gains = rng.normal(size=(1, 60))
    plan = coalitions(60, 20)
    found = solve(plan, gains @ plan.masks.T, np.zeros(1), gains.sum(axis=1))
    assert np.isfinite(found.values).all()
    assert (np.abs(found.values - gains) <= 1.96 * found.standard_error).mean() > 0.85


def test_many_pairs_are_solved_in_parts():
    table = saturating(np.random.default_rng(9), 14)
    plan = coalitions(14, 5000)
    found = solve(plan, table[plan.masks @ powers(14)][None], table[:1], table[-1:])
    truth = shapley_of_table(table)
    assert found.values[0].sum() == pytest.approx(truth.sum(), abs=1e-9)
    assert np.abs(found.values[0] - truth).max() < 0.02 * np.abs(truth).max()


@pytest.mark.parametrize(("rows", "most"), [(5, 60), (40, 60), (3, 10_000)])
def test_background_rows_are_shared_by_a_pair_and_used_about_equally_often(rows, most):
    plan = coalitions(8, 60)
    draws = background_draws(plan, rows, most, np.random.default_rng(0))
    half = len(plan.masks) // 2
    assert (draws[:, :half] == draws[:, half:]).all()
    assert draws.shape == (max(1, min(rows, most // (2 * half))), 2 * half)
    used = np.bincount(draws[:, :half].ravel(), minlength=rows)
    assert used.max() - used.min() <= 1


def test_intervals_cover_the_mean_game_when_background_rows_are_drawn():
    rng = np.random.default_rng(10)
    d, rows, seeds = 10, 40, 30
    x, background, w = np.ones(d), rng.normal(size=(rows, d)), rng.normal(0, 0.5, size=d)
    tables = np.tanh(np.where(all_masks(d)[None], x, background[:, None]) @ w)
    truth = shapley_of_table(tables.mean(axis=0))
    plan = coalitions(d, 254)
    values, seats = [], []
    for seed in range(seeds):
        own = generator(seed, "draws")
        masks, seat = seated(plan, own)
        draws = background_draws(plan, rows, 254, own)
        values.append(tables[draws, masks @ powers(d)].mean(axis=0))
        seats.append(seat)
    ends = tables.mean(axis=0)[[0, -1]]
    found = solve(plan, np.array(values), np.full(seeds, ends[0]), np.full(seeds, ends[1]), seats=np.array(seats), noisy=True)
    assert found.values.sum(axis=1) == pytest.approx(np.full(seeds, truth.sum()), abs=1e-9)
    assert (np.abs(found.values - truth) <= 1.96 * found.standard_error).mean() >= 0.9


@pytest.mark.parametrize(("d", "most"), [(8, 300), (12, 1000), (40, 500)])
def test_the_beginning_of_a_plan_is_a_plan(d, most):
    plan = coalitions(d, most)
    few = plan.first(60)
    assert not few.exact
    assert len(few.masks) == 60
    assert (few.masks[30:] == ~few.masks[:30]).all()
    of_its_own = np.bincount(coalitions(d, 60).masks.sum(axis=1), minlength=d + 1)
    assert np.abs(np.bincount(few.masks.sum(axis=1), minlength=d + 1) - of_its_own).max() <= 8
    assert plan.first(most) is plan


def test_interactions_weighed_alike_are_those_of_the_common_prior():
    masks = coalitions(9, 100).masks[:50]
    even = _parts(masks, False)
    weighed = _weighted_parts(even, np.full(9, 0.7))
    assert weighed.cov == pytest.approx(even.cov, abs=1e-9)
    assert weighed.cross == pytest.approx(even.cross, abs=1e-9)
    assert weighed.prior == pytest.approx(np.repeat(even.prior[:, None], 9, axis=1), abs=1e-9)


def test_covariances_are_those_of_the_expansion_in_products_of_signs():
    # the definition, term by term: each set of k players has a coefficient with variance prod(weight)
    d, weight = 6, np.array([0.3, 2.0, 1.0, 0.5, 1.5, 0.7])
    masks = coalitions(d, 20).masks[:10]
    signs = np.where(np.concatenate([np.ones((1, d), dtype=bool), masks]), 1.0, -1.0)
    found = _weighted_parts(_parts(masks, False), weight)
    for at, k in enumerate((3, 5)):
        sets = list(combinations(range(d), k))
        variance = np.array([weight[list(t)].prod() for t in sets])
        variance /= variance.sum()
        products = np.stack([signs[:, list(t)].prod(axis=1) for t in sets])
        shares = np.array([[2 / k if i in t else 0.0 for i in range(d)] for t in sets])
        assert found.cov[at] == pytest.approx((products * variance[:, None]).T @ products, abs=1e-9)
        assert found.cross[at] == pytest.approx((products * variance[:, None]).T @ shares, abs=1e-9)
        assert found.prior[at] == pytest.approx(variance @ shares**2, abs=1e-9)


def test_players_that_count_for_much_interact_more():
    """Measured: less than half the squared error on products, where heredity holds."""
    tables = np.stack([product(np.random.default_rng(300 + s), 12) for s in range(6)])
    found, truth = estimate(tables, 254, 3)
    plan = coalitions(12, 254)
    values, seats = zip(*((t[m @ powers(12)], s) for t in tables for m, s in [seated(plan, generator(0, "test"))]), strict=True)
    half = len(plan.masks) // 2
    odd = (np.array(values)[:, :half] - np.array(values)[:, half:]) / 2
    parts = _parts(plan.masks[:half], False)
    y = np.column_stack([(tables[:, -1] - tables[:, 0]) / 2, odd])
    even = _averaged([_fit(parts, shape, y) for shape in _shapes_of(3, (0.0, 0.1, 0.5), (1e-5, 1e-3, 1e-2, 5e-2, 0.25))])
    without = np.take_along_axis(even.values, np.array(seats), axis=1) - shapley_of_table(tables)
    assert ((found.values - truth) ** 2).mean() < 0.6 * (without**2).mean()
