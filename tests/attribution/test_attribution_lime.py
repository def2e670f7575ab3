"""LIME: its surrogate and its neighbours are those of the lime package, its results depend on nothing but seed, sample and background."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.attribution.attribution_fakes import PatchDetector, column_inputs, image_inputs
from tl_audit.attribution import Attribution, Inputs, Memo, explain_inputs
from tl_audit.attribution.evaluation import Evaluator
from tl_audit.attribution.methods.lime import part_weights
from tl_audit.attribution.neighbours import table_neighbours
from tl_audit.attribution.surrogate import Fit, selected, weighted_ridge
from tl_audit.errors import ConfigError, DataError
from tl_audit.modality import TABULAR, TENSOR
from tl_audit.modality.base import Neighbourhood
from tl_audit.models import Model
from tl_audit.records.preprocessing import CategoricalColumn, NumericColumn, TableEncoding


def ones(n: int) -> np.ndarray:
    return np.ones(n, dtype=np.int64)


class Linear(nn.Module):
    """Logits 0 and w·x."""

    def __init__(self, weights: Any) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.as_tensor(weights, dtype=torch.float32), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = x.flatten(1) @ self.weights
        return torch.stack([torch.zeros_like(z), z], dim=1)


def fitted(data: np.ndarray, weights: np.ndarray, values: np.ndarray, **more: Any) -> Fit:
    fit = weighted_ridge(
        torch.from_numpy(data.T[None].copy()).double(), torch.from_numpy(weights)[None], torch.from_numpy(values)[None], **more
    )
    return Fit(*(t[0].numpy() for t in fit))  # type: ignore[arg-type]


def theirs(data: np.ndarray, weights: np.ndarray, values: np.ndarray, k: int, how: str) -> tuple[np.ndarray, float, float]:
    from lime.lime_base import LimeBase

    intercept, pairs, score, _ = LimeBase(lambda d: d, random_state=0).explain_instance_with_data(
        data, values[:, None], weights, 0, k, feature_selection=how
    )
    slopes = np.zeros(data.shape[1])
    for part, slope in pairs:
        slopes[int(part)] = slope
    return slopes, float(intercept), float(score)


# ---------------------------------------------------------------- the surrogate


@pytest.mark.parametrize("binary", [True, False])
def test_the_closed_form_is_the_ridge_of_the_lime_package(binary: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        data = rng.integers(0, 2, size=(120, 9)).astype(float) if binary else rng.normal(size=(120, 9)) * 3 + 1
        weights, values = rng.uniform(0.05, 1, size=120), rng.normal(size=120) + data[:, 0]
        fit = fitted(data, weights, values)
        slopes, intercept, score = theirs(data, weights, values, 9, "none")
        assert fit.slopes == pytest.approx(slopes, abs=1e-9)
        assert float(fit.intercept) == pytest.approx(intercept, abs=1e-9)
        assert float(fit.r2) == pytest.approx(score, abs=1e-9)


@pytest.mark.parametrize("k", [1, 3, 6, 7, 9])
def test_features_are_selected_as_the_lime_package_selects_them(k: int) -> None:
    rng = np.random.default_rng(1)
    for _ in range(6):
        data = rng.integers(0, 2, size=(150, 9)).astype(float)
        data[0] = 1
        data[:, 3] = np.where(rng.random(150) < 0.8, data[:, 2], data[:, 3])  # two that say nearly the same
        weights, values = rng.uniform(0.05, 1, size=150), data @ rng.normal(size=9) + rng.normal(size=150)
        features = torch.from_numpy(data.T[None].copy())
        chosen = selected(features, torch.from_numpy(weights)[None], torch.from_numpy(values)[None], torch.ones(1, 9), k)
        assert int(chosen.sum()) == k
        fit = fitted(data, weights, values, used=chosen)
        assert fit.slopes == pytest.approx(theirs(data, weights, values, k, "auto")[0], abs=1e-8)
        assert (np.isnan(fit.errors) == ~chosen[0].numpy()).all()


def test_samples_solved_together_are_solved_as_if_alone() -> None:
    rng = np.random.default_rng(2)
    features = torch.from_numpy(rng.integers(0, 2, size=(4, 6, 80)).astype(float))
    features[1, 4:] = 0  # a sample with four parts only
    weights, values = torch.from_numpy(rng.uniform(0.1, 1, size=(4, 80))), torch.from_numpy(rng.normal(size=(4, 80)))
    values[2] = 0.3
    values[3, 5] = torch.nan
    fit = weighted_ridge(features, weights, values)
    alone = weighted_ridge(features[1:2, :4], weights[1:2], values[1:2])
    assert fit.slopes[1, :4].numpy() == pytest.approx(alone.slopes[0].numpy(), abs=1e-12)
    assert fit.errors[1, :4].numpy() == pytest.approx(alone.errors[0].numpy(), abs=1e-12)
    assert fit.slopes[1, 4:].tolist() == [0, 0]
    assert fit.slopes[2].tolist() == [0] * 6
    assert torch.isnan(fit.r2[2])
    assert torch.isnan(fit.slopes[3]).all()
    assert torch.isfinite(fit.slopes[0]).all()


def test_the_standard_error_is_the_spread_over_neighbourhoods() -> None:
    rng = np.random.default_rng(3)
    drawn, said = [], []
    for _ in range(200):
        data = rng.integers(0, 2, size=(250, 5)).astype(float)
        weights = np.exp(-((5 - data.sum(axis=1)) / (2 * 0.75**2 * 5)))
        values = data @ [1.0, -2.0, 0.5, 0, 0] + 1.5 * data[:, 0] * data[:, 3] + rng.normal(size=250) * (0.2 + data[:, 4])
        fit = fitted(data, weights, values)
        drawn.append(fit.slopes)
        said.append(fit.errors)
    assert np.mean(said, axis=0) == pytest.approx(np.std(drawn, axis=0), rel=0.2)


@pytest.mark.filterwarnings("ignore")
def test_images_agree_with_the_lime_package_on_its_own_neighbourhood(patches: Any) -> None:
    from lime.lime_image import LimeImageExplainer

    x, _ = patches
    net = PatchDetector().eval()
    picture = x[0, 0].numpy().astype(np.float64)
    at = np.arange(16) // 4
    segments = at[:, None] * 4 + at[None, :]

    def probabilities(pictures: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return net(torch.as_tensor(pictures[..., :1]).permute(0, 3, 1, 2).float()).softmax(dim=1).numpy()

    found = LimeImageExplainer(random_state=np.random.RandomState(5), feature_selection="none").explain_instance(
        np.repeat(picture[:, :, None], 3, axis=2), probabilities, labels=(1,), top_labels=None, hide_color=0.0, num_samples=200,
        segmentation_fn=lambda _: segments, random_seed=0,
    )  # fmt: skip
    hood = np.random.RandomState(5).randint(0, 2, 200 * 16).reshape(200, 16)
    hood[0] = 1
    values = probabilities(np.stack([picture * row[segments] for row in hood])[..., None])[:, 1].astype(np.float64)
    features = torch.from_numpy(hood.T[None].astype(float))
    weights = part_weights(features, torch.tensor([[16.0]]), Neighbourhood("cosine", 0.25))
    fit = weighted_ridge(features, weights, torch.from_numpy(values)[None])
    expected = dict(found.local_exp[1])
    assert fit.slopes[0].numpy() == pytest.approx([expected[k] for k in range(16)], abs=1e-6)
    assert float(fit.r2) == pytest.approx(found.score, abs=1e-6)


# ---------------------------------------------------------------- parts on and off


def test_slopes_of_a_linear_model_are_its_weights_times_the_parts() -> None:
    x = torch.rand(3, 1, 16, 16)
    w = torch.randn(256)
    a = explain_inputs(Model(Linear(w)), image_inputs(x), method="lime", targets=ones(3), budget=1500, of="logit")
    for i in range(3):
        parts = (x[i, 0] * w.reshape(16, 16)).reshape(4, 4, 4, 4).sum(dim=(1, 3)).flatten().numpy()
        # alpha 1 shrinks a little towards zero
        assert a.player_values[i] == pytest.approx(parts, abs=0.06 * float(np.abs(parts).max()))
        assert (np.abs(a.player_values[i] - parts) < 6 * a.standard_error[i] + 0.06 * np.abs(parts)).all()  # type: ignore[index]
    assert a.params["mean_r2"] > 0.99


def test_the_planted_patch_has_the_largest_slope(patches: Any) -> None:
    x, where = patches
    a = explain_inputs(Model(PatchDetector()), image_inputs(x), method="lime", targets=ones(len(x)), budget=200)
    assert [int(np.argmax(v)) for v in a.player_values] == where


def test_samples_with_different_numbers_of_parts_are_explained_together() -> None:
    x = torch.rand(4, 3, 24, 24)
    x[1, :, 6:18, 6:18] += 1
    players = TENSOR.players(x, None)
    assert len(set(players.count.tolist())) > 1
    inputs = Inputs(x, ("a", "b", "c", "d"), TENSOR, None, players)
    model = Model(Linear(torch.randn(3 * 24 * 24) / 20))
    whole = explain_inputs(model, inputs, method="lime", targets=ones(4), budget=60)
    for i in range(4):
        alone = explain_inputs(model, inputs.select(np.array([i])), method="lime", targets=ones(1), budget=60)
        assert alone.player_values[0] == pytest.approx(whole.player_values[i], abs=1e-6)


def test_only_as_many_parts_as_asked_for_get_a_slope(patches: Any) -> None:
    x, where = patches
    a = explain_inputs(Model(PatchDetector()), image_inputs(x), method="lime", targets=ones(len(x)), budget=200, num_features=2)
    assert all(np.count_nonzero(v) == 2 for v in a.player_values)
    assert all(v[k] > 0 for v, k in zip(a.player_values, where, strict=True))


def test_nothing_is_evaluated_twice_with_a_memo(patches: Any) -> None:
    x, _ = patches
    model, memo = Model(PatchDetector()), Memo()
    runs = [explain_inputs(model, image_inputs(x), method="lime", targets=ones(len(x)), budget=60, memo=memo) for _ in range(2)]
    assert runs[0].values.tobytes() == runs[1].values.tobytes()
    assert runs[1].budget == 0


# ---------------------------------------------------------------- neighbours from a background


def columns(inputs: torch.Tensor, background: torch.Tensor) -> Inputs:
    return Inputs(inputs, tuple(f"r{i}" for i in range(len(inputs))), TENSOR, None, TENSOR.players(inputs, None), background)


@pytest.fixture(scope="module")
def cancer() -> tuple[np.ndarray, nn.Module]:
    """scikit-learn's breast cancer table, standardised, and a small network fitted to it."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    x = ((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2))
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(inputs), labels).backward()
        optimiser.step()
    return x, net.eval()


@pytest.mark.parametrize("discretise", [True, False])
def test_a_real_table_gets_the_columns_that_the_lime_package_selects(cancer: Any, discretise: bool) -> None:
    """Beside lime called as its users call it, with its 5000 samples: apart by no more than the standard errors say, and the same top columns."""
    from lime.lime_tabular import LimeTabularExplainer

    x, net = cancer

    def probabilities(rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return net(torch.from_numpy(rows.astype(np.float32))).softmax(dim=1).double().numpy()

    def slopes_by_lime(row: int) -> np.ndarray:
        explainer = LimeTabularExplainer(x, discretize_continuous=discretise, random_state=row)
        out = np.zeros(30)
        for k, v in explainer.explain_instance(x[row], probabilities, labels=(1,), num_features=30).local_exp[1]:
            out[k] = v
        return out

    def overlap(a: np.ndarray, b: np.ndarray) -> int:
        return len(set(np.argsort(-np.abs(a))[:10]) & set(np.argsort(-np.abs(b))[:10]))

    rows = [0, 3, 19, 77, 300]
    a = explain_inputs(
        Model(net), columns(torch.from_numpy(x[rows]), torch.from_numpy(x)), method="lime", targets=ones(5), discretise=discretise
    )
    assert a.params["neighbours"] == 5000
    assert a.standard_error is not None
    agreeing = []
    for i, row in enumerate(rows):
        lime = slopes_by_lime(row)
        agreeing.append(overlap(a.player_values[i], lime))
        # both are drawn, with the same error
        assert (np.abs(a.player_values[i] - lime) < 4.5 * np.sqrt(2) * a.standard_error[i]).all()
        assert np.corrcoef(a.player_values[i], lime)[0, 1] > 0.9
    assert np.mean(agreeing) >= 8


def test_neighbours_are_drawn_as_the_lime_package_draws_them() -> None:
    """Frequencies of bins, and mean, deviation and bounds inside each bin."""
    from lime.discretize import QuartileDiscretizer

    rng = np.random.default_rng(0)
    table = np.column_stack([rng.gamma(2, size=800), np.round(rng.normal(size=800)), rng.normal(size=800)])
    background = torch.from_numpy(table)
    near = table_neighbours(background[:5], background, TENSOR.players(background[:5], None), size=20000, seed=0, discretise=True)
    theirs_ = QuartileDiscretizer(table, [], ["a", "b", "c"], random_state=np.random.RandomState(0))
    assert np.array_equal(near.own_states, theirs_.discretize(table[:5]))
    bins = theirs_.discretize(table).astype(int)
    for c in range(3):
        for b in np.unique(bins[:, c]):
            mine = near.rows[near.states[c] == b, c].numpy()
            assert len(mine) / 20000 == pytest.approx((bins[:, c] == b).mean(), abs=0.015)
            lime = theirs_.get_undiscretize_values(c, np.full(20000, b))
            assert mine.min() >= table[:, c].min()
            assert mine.max() <= table[:, c].max()
            if np.ptp(lime) > 0:
                assert mine.mean() == pytest.approx(lime.mean(), abs=0.05 * table[:, c].std())
                assert mine.std() == pytest.approx(lime.std(), rel=0.1, abs=1e-6)


def test_without_cutting_neighbours_are_normal_with_the_background_s_mean_and_deviation() -> None:
    rng = np.random.default_rng(1)
    background = torch.from_numpy(rng.gamma(2, size=(500, 2)) * [1, 10])
    near = table_neighbours(background[:3], background, TENSOR.players(background[:3], None), size=20000, seed=0, discretise=False)
    assert near.measured.all()
    assert near.rows.mean(dim=0).numpy() == pytest.approx(background.mean(dim=0).numpy(), rel=0.03)
    assert near.rows.std(dim=0).numpy() == pytest.approx(background.std(dim=0).numpy(), rel=0.03)
    assert near.scaled.T * background.numpy().std(axis=0) + background.numpy().mean(axis=0) == pytest.approx(near.rows.numpy())


ENCODING = TableEncoding(
    numeric=(NumericColumn(name="age", mean=0, std=1, fill=0), NumericColumn(name="dose", mean=0, std=1, fill=0, missing_indicator=True)),
    categorical=(CategoricalColumn(name="site", categories=("x", "y")),),
)


def encoded(n: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    out = np.zeros((n, ENCODING.width))
    out[:, 0], out[:, 1] = rng.normal(size=n), rng.normal(size=n)
    out[:, 2] = rng.random(n) < 0.2
    out[out[:, 2] == 1, 1] = 0
    out[np.arange(n), 3 + rng.choice(3, p=[0.5, 0.4, 0.1], size=n)] = 1
    return torch.from_numpy(out.astype(np.float32))


@pytest.mark.parametrize("discretise", [True, False])
def test_the_slots_of_a_column_are_drawn_together_and_named_as_one(discretise: bool) -> None:
    inputs, background = encoded(6, 1), encoded(400)
    players = TABULAR.players(inputs, ENCODING)
    near = table_neighbours(inputs, background, players, size=3000, seed=0, discretise=discretise)
    assert set(map(tuple, near.rows[:, 3:].tolist())) == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}
    share = near.rows[:, 3:].mean(dim=0).numpy()
    assert share == pytest.approx(background[:, 3:].mean(dim=0).numpy(), abs=0.04)
    assert not near.rows[near.rows[:, 2] == 1, 1].any()  # the value of a missing cell goes with its mark
    same = near.states[2] == near.own_states[0, 2]
    assert np.array_equal(same, (near.rows[:, 3:] == inputs[0, 3:]).all(dim=1).numpy())
    net = Linear([0.0, 0.0, 0.0, 3.0, 0.0, 0.0])
    a = explain_inputs(
        Model(net),
        Inputs(inputs, tuple("abcdef"), TABULAR, ENCODING, players, background),
        method="lime",
        targets=ones(6),
        budget=2000,
        discretise=discretise,
    )
    assert a.values.shape == (6, 3)
    for i in range(6):
        assert int(np.argmax(np.abs(a.values[i]))) == 2
        assert np.sign(a.values[i, 2]) == (1 if inputs[i, 3] == 1 else -1)


def test_a_category_that_the_background_lacks_is_like_no_neighbour() -> None:
    background = encoded(100)
    background = background[background[:, 5] == 0]
    inputs = encoded(1)
    inputs[0, 3:] = torch.tensor([0.0, 0.0, 1.0])
    near = table_neighbours(inputs, background, TABULAR.players(inputs, ENCODING), size=50, seed=0, discretise=True)
    assert near.own_states[0, 2] == -1
    assert (near.states[2] != -1).all()


def test_slopes_of_a_linear_model_on_standardised_columns_are_its_weights() -> None:
    rng = np.random.default_rng(0)
    scale = np.array([1.0, 5.0, 0.2])
    background = torch.from_numpy((rng.normal(size=(2000, 3)) * scale).astype(np.float32))
    w = np.array([0.5, -0.3, 2.0])
    a = explain_inputs(Model(Linear(w)), columns(background[:4], background), method="lime", targets=ones(4), discretise=False, of="logit")
    deviation = background.numpy().astype(np.float64).std(axis=0)
    for row in a.values:
        assert row == pytest.approx(w * deviation, abs=0.005)


def test_a_row_does_not_depend_on_the_rows_beside_it(cancer: Any) -> None:
    x, net = cancer
    background = torch.from_numpy(x)
    for how in ({"discretise": True}, {"discretise": False}, {"convergence": 0.4}, {"num_features": 4}, {"baseline": torch.zeros(30)}):
        whole = explain_inputs(Model(net), columns(background[:7], background), method="lime", targets=ones(7), budget=400, **how)
        for i in (0, 5):
            inputs = Inputs(background[i : i + 1], (f"r{i}",), TENSOR, None, TENSOR.players(background[:1], None), background)
            alone = explain_inputs(Model(net), inputs, method="lime", targets=ones(1), budget=400, batch_size=7, **how)
            assert alone.values[0] == pytest.approx(whole.values[i], abs=1e-6)


def test_the_neighbours_are_evaluated_once_for_all_rows(cancer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, net = cancer
    seen = 0
    real = Evaluator._read

    def counted(self: Evaluator, rows: torch.Tensor) -> Any:
        nonlocal seen
        seen += len(rows)
        return real(self, rows)

    monkeypatch.setattr(Evaluator, "_read", counted)
    a = explain_inputs(Model(net), columns(torch.from_numpy(x[:100]), torch.from_numpy(x)), method="lime", targets=ones(100), budget=1000)
    assert seen == 999 + 100
    assert a.budget == 11
    assert a.params["shared_evaluations"] == 999
    assert "evaluated once for all samples" in a.params["sharing"]


def test_another_seed_draws_other_neighbours(cancer: Any) -> None:
    x, net = cancer
    runs = [
        explain_inputs(
            Model(net), columns(torch.from_numpy(x[:3]), torch.from_numpy(x)), method="lime", targets=ones(3), budget=300, seed=s
        )
        for s in (0, 0, 1)
    ]
    assert runs[0].values.tobytes() == runs[1].values.tobytes()
    assert runs[0].values.tobytes() != runs[2].values.tobytes()


def test_a_contrast_is_the_difference_of_two_explanations(cancer: Any) -> None:
    from tl_audit.attribution import Targets

    x, net = cancer
    inputs = columns(torch.from_numpy(x[:3]), torch.from_numpy(x))
    both = [explain_inputs(Model(net), inputs, method="lime", targets=np.full(3, t), budget=300).values for t in (1, 0)]
    contrast = explain_inputs(Model(net), inputs, method="lime", targets=Targets(ones(3), np.zeros(3, dtype=np.int64)), budget=300)
    assert contrast.values == pytest.approx(both[0] - both[1], abs=1e-9)


def test_without_a_background_columns_go_on_and_off() -> None:
    a = explain_inputs(
        Model(Linear([1.0, -2.0, 0.5])), column_inputs(torch.ones(2, 3)), method="lime", targets=ones(2), budget=500, of="logit"
    )
    assert a.params["scheme"] == "parts on and off"
    assert a.values[0] == pytest.approx([1.0, -2.0, 0.5], abs=0.05)


# ---------------------------------------------------------------- convergence, refusals


def test_convergence_stops_a_plain_model_early_and_says_where_it_did_not(cancer: Any, patches: Any) -> None:
    x, net = cancer
    inputs = columns(torch.from_numpy(x[:4]), torch.from_numpy(x))
    loose = explain_inputs(Model(net), inputs, method="lime", targets=ones(4), convergence=0.5)
    assert loose.params["neighbours"] < 5000
    assert not loose.caveats
    for v, e in zip(loose.player_values, loose.standard_error or (), strict=True):
        assert 1.96 * e.max() <= 0.5 * np.ptp(v)
    tight = explain_inputs(Model(net), inputs, method="lime", targets=ones(4), convergence=0.001, budget=500)
    assert tight.params["neighbours"] == 500
    assert tight.caveats == ("4 of 4 sample(s) did not reach the convergence asked for within the budget: raise it",)
    pictures, _ = patches
    whole = explain_inputs(Model(PatchDetector()), image_inputs(pictures), method="lime", targets=ones(6), convergence=0.2, budget=1000)
    assert whole.budget < 500
    alone = explain_inputs(
        Model(PatchDetector()), image_inputs(pictures[2:3], ids=("s2",)), method="lime", targets=ones(1), convergence=0.2, budget=1000
    )
    assert alone.values[0] == pytest.approx(whole.values[2], abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"discretise": True}, "discretise is about columns with a background"),
        ({"num_features": 0}, "num_features is 0"),
        ({"budget": 3}, "at least 4 model evaluations"),
        ({"convergence": 2}, "convergence is 2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        explain_inputs(Model(Linear(torch.ones(256))), image_inputs(torch.rand(1, 1, 16, 16)), method="lime", targets=ones(1), **settings)


def test_a_background_that_is_not_finite_is_refused_by_the_column_s_name() -> None:
    background = torch.rand(20, 3)
    background[4, 1] = torch.nan
    with pytest.raises(DataError, match="not finite in 'f1'"):
        explain_inputs(Model(Linear(torch.ones(3))), columns(torch.rand(2, 3), background), method="lime", targets=ones(2))


def test_a_model_that_never_changes_has_no_slopes() -> None:
    a: Attribution = explain_inputs(
        Model(Linear(torch.zeros(3))), columns(torch.rand(2, 3), torch.rand(50, 3)), method="lime", targets=ones(2), budget=100
    )
    assert a.blank.all()
    assert a.params["mean_r2"] is None
