from itertools import permutations

import numpy as np
import pytest
import torch
from torch import nn

from tests.attribution.attribution_fakes import column_inputs, image_inputs
from tl_audit.attribution import explain_inputs
from tl_audit.attribution.coalitions import shapley_of_table
from tl_audit.attribution.hierarchy import halves, members, tree_of
from tl_audit.attribution.methods.permutation_shap import _orders
from tl_audit.attribution.methods.sampling_shap import _allotted, _Tally
from tl_audit.attribution.shapley import adding_up, variance_of_mean
from tl_audit.errors import ConfigError
from tl_audit.models import Model

SHAPLEY = ("kernel_shap", "permutation_shap", "sampling_shap", "exact_shap")
SAMPLED = ("kernel_shap", "permutation_shap", "sampling_shap")


class Formula(nn.Module):
    """Output 1 is a function of the columns, output 0 is zero."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        y = self.f(x)
        return torch.stack([torch.zeros_like(y), y], dim=1)


def ones(n):
    return np.ones(n, dtype=np.int64)


def masks_of(d):
    return (np.arange(2**d)[:, None] >> np.arange(d)) & 1 == 1


def table_model(table):
    """A game as a model: columns of 0 and 1 say who is there."""
    d = len(table).bit_length() - 1
    values = torch.as_tensor(table).double()
    return Formula(lambda x: values[(x > 0.5).long() @ (2 ** torch.arange(d))])


def play(table, method, *, n=1, **settings):
    """A game's values for n samples, which differ in nothing but their draws."""
    d = len(table).bit_length() - 1
    return explain_inputs(
        Model(table_model(table)), column_inputs(torch.ones(n, d)), method=method, targets=ones(n), baseline=torch.zeros(d), **settings
    )


def curved(d, seed=0):
    rng = np.random.default_rng(seed)
    masks = masks_of(d)
    return np.tanh(masks @ rng.normal(0, 0.7, d)) + 0.3 * masks[:, 0] * masks[:, 1] * masks[:, d - 1]


def owen_by_definition(table, merges):
    """Mean gain over all orders that never interleave a group of the tree with others: each group's two halves in either order."""
    d = len(merges) + 1

    def orders(cluster):
        if cluster < d:
            return [[cluster]]
        left, right = merges[cluster - d]
        return [a + b for x in orders(left) for y in orders(right) for a, b in ((x, y), (y, x))]

    phi, found = np.zeros(d), orders(2 * d - 2)
    for order in found:
        there = 0
        for player in order:
            phi[player] += table[there | 1 << player] - table[there]
            there |= 1 << player
    return phi / len(found)


# ------------------------------------------------------------ by hand


@pytest.mark.parametrize("d", [1, 2, 3, 6, 8])
def test_exact_values_are_the_mean_gain_over_all_orders(d):
    table = np.random.default_rng(d).normal(size=2**d)
    expected = np.zeros(d)
    if d <= 6:
        for order in permutations(range(d)):
            there = 0
            for player in order:
                expected[player] += (table[there | 1 << player] - table[there]) / len(list(permutations(range(d))))
                there |= 1 << player
    else:
        expected = shapley_of_table(table)
    a = play(table, "exact_shap")
    assert a.values[0] == pytest.approx(expected, abs=1e-9)
    assert a.budget == max(2**d, 2)


@pytest.mark.parametrize("d", [1, 2, 3, 4, 5])
def test_permutations_are_exact_where_all_orders_fit(d):
    table = np.random.default_rng(d).normal(size=2**d)
    a = play(table, "permutation_shap", budget=500)
    assert a.values[0] == pytest.approx(shapley_of_table(table), abs=1e-9)
    assert (a.standard_error[0] == 0).all()


def test_one_order_and_its_reverse_are_exact_for_interactions_of_two():
    rng = np.random.default_rng(0)
    masks, pairs = masks_of(8).astype(float), np.triu(rng.normal(size=(8, 8)))
    table = np.einsum("ri,ij,rj->r", masks, pairs, masks)
    a = play(table, "permutation_shap", budget=16)
    assert a.values[0] == pytest.approx(shapley_of_table(table), abs=1e-9)
    assert a.params["orders"] == 1
    assert any("no standard error" in c for c in a.caveats)


@pytest.mark.parametrize("d", [2, 3, 5, 8])
@pytest.mark.parametrize("shape", ["balanced", "chain"])
def test_partition_values_are_owen_values(d, shape):
    table = np.random.default_rng(d).normal(size=2**d)
    merges = halves(d) if shape == "balanced" else np.array([(0 if k == 0 else d + k - 1, k + 1) for k in range(d - 1)])
    a = play(table, "partition_shap", tree=tuple((int(x), int(y)) for x, y in merges), budget=3000)
    assert a.values[0] == pytest.approx(owen_by_definition(table, [tuple(int(v) for v in m) for m in merges]), abs=1e-9)
    assert a.params["every group split"]


def test_a_group_that_was_not_split_is_shared_evenly_and_said():
    table = curved(8)
    a = play(table, "partition_shap", tree=tuple((int(x), int(y)) for x, y in halves(8)), budget=4)
    both = table[0b1111] - table[0] + table[-1] - table[0b11110000]
    assert a.values[0][:4] == pytest.approx(np.full(4, both / 8), abs=1e-9)
    assert not a.params["every group split"]
    assert any("shared evenly" in c for c in a.caveats)
    assert a.budget == 4


@pytest.mark.parametrize("method", [*SHAPLEY, "partition_shap"])
@pytest.mark.parametrize("budget", [130, 600])
def test_values_add_up(method, budget):
    a = play(curved(7), method, n=3, budget=budget)
    assert np.abs(a.completeness).max() < 1e-9
    assert a.budget <= budget


@pytest.mark.parametrize("method", [*SHAPLEY, "partition_shap"])
def test_values_add_up_to_the_mean_of_a_background(method):
    rng = np.random.default_rng(1)
    x, background = (torch.as_tensor(rng.normal(size=(n, 6))).double() for n in (3, 9))

    def f(z):
        return torch.tanh(z @ torch.linspace(-1, 1, 6).to(z)) + z[:, 0] * z[:, 1]

    a = explain_inputs(Model(Formula(f)), column_inputs(x, background), method=method, targets=ones(3), budget=700)
    gap = a.values.sum(axis=1) - (f(x) - f(background).mean()).numpy()
    if method == "partition_shap":  # 8 rows stand for the background, which it says
        assert np.abs(a.completeness).max() < 1e-5
        assert any("8 rows" in c for c in a.caveats)
    else:
        assert np.abs(gap).max() < 1e-5


@pytest.mark.parametrize("method", [*SHAPLEY, "partition_shap"])
def test_a_dummy_gets_nothing_and_equal_columns_the_same(method):
    def f(x):
        return torch.tanh(x[:, 0] + x[:, 1]) * (1 + x[:, 3])  # 2 is a dummy, 0 and 1 are alike

    x = torch.tensor([[0.7, 0.7, 5.0, 0.5]])
    settings = {"tree": ((0, 1), (2, 3), (4, 5))} if method == "partition_shap" else {}
    a = explain_inputs(
        Model(Formula(f)), column_inputs(x), method=method, targets=ones(1), baseline=torch.zeros(4), budget=20_000, **settings
    )
    # sampling_shap alone has an error here: it draws, however large the budget is
    assert a.values[0, 2] == pytest.approx(0, abs=1e-5 if method != "sampling_shap" else 1e-3)
    assert a.values[0, 0] == pytest.approx(a.values[0, 1], abs=1e-6 if method != "sampling_shap" else 0.02)


# ------------------------------------------------------------ errors of sampling


@pytest.mark.parametrize("method", SAMPLED)
@pytest.mark.parametrize("budget", [120, 400])
def test_intervals_cover_the_exact_values(method, budget):
    tables = [curved(10, seed) for seed in range(4)]
    inside = []
    for table in tables:
        a = play(table, method, n=25, budget=budget)
        exact = shapley_of_table(table)
        inside.append(np.abs(a.values - exact) <= 1.96 * np.stack(a.standard_error))
    assert np.mean(inside) >= 0.88


@pytest.mark.parametrize("method", SAMPLED)
def test_values_are_right_on_average(method):
    table = curved(9)
    a = play(table, method, n=60, budget=100)
    exact = shapley_of_table(table)
    error_of_mean = a.values.std(axis=0) / np.sqrt(60)
    # a posterior mean is drawn towards its prior a little; draws that follow the spread are not independent of it
    slack = {"kernel_shap": 0.03 * np.ptp(exact), "permutation_shap": 0.0, "sampling_shap": a.values.std(axis=0) / 2}[method]
    assert (np.abs(a.values.mean(axis=0) - exact) <= 4 * error_of_mean + slack + 1e-9).all()


@pytest.mark.parametrize("method", SAMPLED)
def test_intervals_cover_when_background_rows_are_drawn(method):
    rng = np.random.default_rng(2)
    d, rows = 8, 30
    w = torch.as_tensor(rng.normal(0, 0.6, d))
    x, background = torch.ones(1, d).double(), torch.as_tensor(rng.normal(size=(rows, d)))
    masks = torch.as_tensor(masks_of(d))
    table = torch.tanh(torch.where(masks[None], x, background[:, None]) @ w).mean(dim=0).numpy()
    a = explain_inputs(
        Model(Formula(lambda z: torch.tanh(z.double() @ w))),
        column_inputs(x.expand(60, d), background),
        method=method,
        targets=ones(60),
        budget=150,
    )
    inside = np.abs(a.values - shapley_of_table(table)) <= 1.96 * np.stack(a.standard_error)
    assert inside.mean() >= 0.85


def test_draws_go_where_the_spread_is():
    # two parts whose ten draws had spreads of 1 and 3: the second should have had three times as many
    draws = np.full(2, 10.0)
    tally = _Tally(np.random.default_rng(0), 4, np.zeros(2), np.array([10.0, 90.0]), draws, spent=82)
    assert np.bincount(_allotted(tally, 82 + 4 * 10), minlength=2).tolist() == [0, 10]
    later = np.bincount(_allotted(tally, 82 + 4 * 980), minlength=2) + 10
    assert later.sum() == 1000
    assert 2.4 < later[1] / later[0] < 3.4


def test_the_variance_of_few_draws_is_drawn_to_that_of_all():
    draws = np.array([3.0, 3.0])
    found = variance_of_mean(np.array([0.0, 0.0]), np.array([0.0, 12.0]), draws)
    # one part spread 0, the other 6 per degree of freedom: mean 3, which counts as four draws
    assert found == pytest.approx([(0 + 4 * 3) / 4 / 3, (12 + 4 * 3) / 4 / 3], rel=1e-6)
    assert np.isnan(variance_of_mean(np.ones(2), np.ones(2), np.ones(2))).all()


def test_what_is_missing_goes_to_the_uncertain():
    assert adding_up(np.array([1.0, 1.0]), np.array([1.0, 3.0]), 4.0) == pytest.approx([1.5, 2.5])
    assert adding_up(np.array([1.0, 1.0]), np.array([np.nan, np.nan]), 4.0) == pytest.approx([2.0, 2.0])


# ------------------------------------------------------------ convergence


@pytest.mark.parametrize("method", SAMPLED)
def test_evaluation_stops_when_intervals_are_narrow(method):
    table = curved(9)
    a = play(table, method, n=3, convergence=0.3, budget=20_000)
    assert a.budget < 2000
    for values, errors in zip(a.player_values, a.standard_error, strict=True):
        assert 1.96 * errors.max() <= 0.3 * np.ptp(values) * 1.0001
    narrow = play(table, method, n=3, convergence=0.03 if method != "kernel_shap" else 0.005, budget=20_000)
    assert narrow.budget > a.budget
    assert not [c for c in (*a.caveats, *narrow.caveats) if "wider" in c]


@pytest.mark.parametrize("method", SAMPLED)
def test_intervals_that_stay_wide_are_said(method):
    table = np.random.default_rng(3).normal(size=2**10)
    a = play(table, method, n=2, convergence=0.01, budget=200)
    assert a.budget <= 200
    assert any("2 of 2 sample(s): the 95 % intervals are wider" in c for c in a.caveats)


@pytest.mark.parametrize("method", SAMPLED)
def test_a_sample_stops_on_its_own(method):
    # the second sample is linear, so that it is settled at once, whoever else is in the batch
    table = curved(8)

    def f(x):
        code = (x[:, :8] > 0.5).long() @ (2 ** torch.arange(8))
        return torch.where(x[:, 8] > 0.5, torch.as_tensor(table)[code], x[:, :8].double() @ torch.arange(1.0, 9.0).double())

    x = torch.ones(2, 9)
    x[1, 8] = 0
    base = torch.zeros(2, 9)
    base[:, 8] = x[:, 8]
    run = {"method": method, "convergence": 0.02, "budget": 4000}
    both = explain_inputs(Model(Formula(f)), column_inputs(x), targets=ones(2), baseline=base, **run)
    for k in range(2):
        alone = explain_inputs(Model(Formula(f)), column_inputs(x[[k]], ids=(f"s{k}",)), targets=ones(1), baseline=base[[k]], **run)
        assert alone.values[0] == pytest.approx(both.values[k], abs=1e-9)


# ------------------------------------------------------------ the shap package, as its users call it


def net_and_data(d=8, seed=4):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(d, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    x, background = rng.normal(size=(2, d)), rng.normal(size=(5, d))

    def f(z):
        with torch.no_grad():
            return net(torch.as_tensor(np.asarray(z, dtype=np.float64)))[:, 1].numpy()

    return net, f, x, background


@pytest.mark.filterwarnings("ignore")
def test_exact_values_are_those_of_shaps_kernel_explainer_with_every_coalition():
    shap = pytest.importorskip("shap")
    net, f, x, background = net_and_data()
    theirs = shap.KernelExplainer(f, background).shap_values(x, nsamples=2**8, l1_reg=False, silent=True)
    ours = explain_inputs(
        Model(net), column_inputs(torch.as_tensor(x), torch.as_tensor(background)), method="exact_shap", targets=ones(2)
    ).values
    assert ours == pytest.approx(np.asarray(theirs), abs=1e-6)


# the permutation explainer compiles for half a minute before it begins
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["kernel_shap", pytest.param("permutation_shap", marks=pytest.mark.slow), "sampling_shap"])
def test_sampled_values_are_shaps_within_the_standard_error(method):
    shap = pytest.importorskip("shap")
    net, f, x, background = net_and_data()
    np.random.seed(0)  # noqa: NPY002  the package draws from the global generator
    if method == "kernel_shap":
        theirs = np.asarray(shap.KernelExplainer(f, background).shap_values(x, nsamples=2**8, l1_reg=False, silent=True))
    elif method == "permutation_shap":
        theirs = shap.PermutationExplainer(f, shap.maskers.Independent(background, max_samples=5), seed=0)(x, max_evals=17 * 300).values
    else:
        theirs = np.asarray(shap.SamplingExplainer(f, background).shap_values(x, nsamples=20_000, silent=True))
    found = explain_inputs(
        Model(net), column_inputs(torch.as_tensor(x), torch.as_tensor(background)), method=method, targets=ones(2), budget=250
    )
    errors = np.stack(found.standard_error)
    assert (np.abs(found.values - theirs) <= 4 * errors + 0.01 * np.ptp(theirs)).all()
    assert errors.max() < 0.3 * np.ptp(theirs)


@pytest.mark.filterwarnings("ignore")
def test_partition_values_are_those_of_shaps_partition_explainer_on_the_same_tree():
    shap = pytest.importorskip("shap")
    net, f, x, background = net_and_data()
    merges = halves(8)
    sizes = members(merges)[8:].sum(axis=1)
    linkage = np.column_stack([merges, np.ones(7), sizes]).astype(np.float64)
    masker = shap.maskers.Partition(background, max_samples=5, clustering=linkage)
    theirs = shap.explainers.Partition(f, masker)(x, max_evals=2000).values
    ours = explain_inputs(
        Model(net),
        column_inputs(torch.as_tensor(x), torch.as_tensor(background)),
        method="partition_shap",
        targets=ones(2),
        tree=tuple((int(a), int(b)) for a, b in merges),
        budget=5 * 2000,
    )
    assert ours.values == pytest.approx(theirs, abs=1e-6)


# ------------------------------------------------------------ trees


def test_correlated_columns_are_joined_first():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(2, 200))
    background = torch.as_tensor(
        np.column_stack([a, b, rng.normal(size=200), -a + 0.05 * rng.normal(size=200), b + 0.3 * rng.normal(size=200)])
    )
    merges = tree_of(column_inputs(torch.zeros(1, 5), background.float()), 0)
    assert sorted(merges[0]) == [0, 3]
    assert sorted(merges[1]) == [1, 4]


def test_squares_that_touch_and_look_alike_are_joined_first():
    x = torch.zeros(1, 1, 16, 16)
    x[:, :, :, 8:] = 1.0
    merges = tree_of(image_inputs(x), 0)
    inside = members(merges)
    left = {k for k in range(16) if k % 4 < 2}
    assert set(np.flatnonzero(inside[merges[-1, 0]])) in (left, set(range(16)) - left)


def test_every_part_is_in_the_tree_once_and_it_depends_on_its_sample_alone():
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    inputs = image_inputs(x)
    for k in range(4):
        merges = tree_of(inputs, k)
        assert sorted(merges.reshape(-1)) == list(range(30))
        assert members(merges)[-1].all()
        assert (merges == tree_of(inputs.select(np.array([k])), 0)).all()


def test_parts_that_no_way_joins_still_have_a_tree():
    players = image_inputs(torch.rand(1, 1, 16, 16)).players
    one = image_inputs(torch.rand(1, 1, 16, 16))
    players.assignment[0, :4] = players.assignment[0, :4].clamp(max=3)
    assert len(tree_of(one, 0)) == 15


def test_without_a_background_columns_are_halved_in_their_order():
    assert tree_of(column_inputs(torch.zeros(1, 4)), 0).tolist() == [[0, 1], [2, 3], [4, 5]]


# ------------------------------------------------------------ bad input


def test_too_many_parts_for_all_coalitions_are_refused():
    with pytest.raises(ConfigError, match="at most 12 input parts; sample s0 has 16"):
        explain_inputs(
            Model(nn.Sequential(nn.Flatten(), nn.Linear(256, 2))),
            image_inputs(torch.rand(1, 1, 16, 16)),
            method="exact_shap",
            targets=ones(1),
        )


@pytest.mark.parametrize(
    ("method", "budget", "needed"),
    [("exact_shap", 100, 1024), ("permutation_shap", 19, 20), ("sampling_shap", 21, 22), ("kernel_shap", 3, 4)],
)
def test_too_small_budgets_are_refused_with_what_is_needed(method, budget, needed):
    with pytest.raises(ConfigError, match=str(needed)):
        play(curved(10), method, budget=budget)


@pytest.mark.parametrize("tree", [((0, 1),), ((0, 1), (2, 2), (4, 5)), ((0, 5), (1, 2), (3, 4)), ((0, 1), (2, 3), (4, 6))])
def test_a_tree_that_is_none_is_refused(tree):
    with pytest.raises(ConfigError, match="joined once"):
        play(curved(4), "partition_shap", tree=tree)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_permutations_of_few_columns_meet_every_row_of_the_background(d):
    net = nn.Sequential(nn.Linear(d, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    inputs = column_inputs(torch.randn(2, d).double(), torch.randn(7, d).double())
    found, exact = (
        explain_inputs(Model(net), inputs, method=method, targets=np.zeros(2, dtype=np.int64), budget=256)
        for method in ("permutation_shap", "exact_shap")
    )
    for row in range(2):
        assert found.player_values[row] == pytest.approx(exact.player_values[row], abs=1e-9)
        assert not found.standard_error[row].any()


def test_permutations_that_do_not_all_fit_use_the_whole_budget_on_few_columns():
    inputs = column_inputs(torch.randn(40, 2), torch.randn(128, 2))
    linear = nn.Linear(2, 2)
    a = explain_inputs(Model(linear), inputs, method="permutation_shap", targets=np.zeros(40, dtype=np.int64), budget=100)
    exact = linear.weight[0].detach() * (inputs.tensor - inputs.background.mean(dim=0))
    assert a.budget > 90
    error = np.sqrt(np.mean([e**2 for e in a.standard_error]))
    assert np.sqrt(np.mean((a.values - exact.numpy()) ** 2)) < 2 * error
    assert error < 0.2 * float(exact.std())


def test_orders_are_asked_in_random_order_where_convergence_may_stop_early():
    orders, rows, complete = _orders(5, 1, 1000, np.random.default_rng(0))
    assert complete
    assert len(np.unique(orders, axis=0)) == 60
    assert not rows.any()
    assert len(np.unique(orders[:12, 0])) > 2
    assert not _orders(5, 0, 1000, np.random.default_rng(0))[2]
