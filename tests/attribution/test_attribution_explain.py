"""``explain``: what it takes, what it refuses, and that it shows itself."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

import tl_audit as ta
from tests.attribution.attribution_fakes import ASKING
from tl_audit.attribution import EXPLAINERS, explain, explain_all
from tl_audit.errors import ConfigError, DataError, ModelError
from tl_audit.modality import fit_encoding
from tl_audit.models import Model, SmallCNN, TableMLP
from tl_audit.records.preprocessing import Preprocessing

SPEC = Preprocessing(height=32, width=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture
def cnn() -> Model:
    torch.manual_seed(0)
    return Model(SmallCNN(3, widths=(4, 8)), classes=("ant", "bee", "wasp"), preprocessing=SPEC)


@pytest.fixture
def pictures(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, size=(3, 40, 40, 3), dtype=np.uint8)


@pytest.fixture
def frame(rng: np.random.Generator) -> pd.DataFrame:
    return pd.DataFrame(
        {"age": rng.normal(50, 10, 30), "dose": [None, *rng.normal(size=29)], "site": rng.choice(["north", "south"], 30), "extra": 1.0}
    )


@pytest.fixture
def mlp(frame: pd.DataFrame) -> Model:
    torch.manual_seed(0)
    encoding = fit_encoding(frame.drop(columns="extra"))
    return Model(TableMLP(encoding, 2), classes=("no", "yes"), preprocessing=encoding)


def test_explain_is_part_of_the_front_door():
    assert ta.explain is explain


@pytest.mark.parametrize("method", ASKING)
def test_pictures_of_every_form_give_the_same_maps(method, cnn, pictures):
    more = {"method": method, "budget": 70, "parts": 6 if method == "exact_shap" else 25}
    whole = explain(cnn, pictures, **more)
    assert whole.values.shape == (3, 32, 32)
    assert set(whole.target_names) <= set(cnn.classes)
    listed = explain(cnn, [Image.fromarray(p) for p in pictures], **more)
    assert listed.values == pytest.approx(whole.values, abs=1e-6)
    one = explain(cnn, pictures[0], **more)
    assert one.values[0] == pytest.approx(whole.values[0], abs=1e-5)


def test_float_tensors_are_model_inputs(cnn):
    x = torch.rand(2, 3, 32, 32)
    a = explain(cnn, x, target="bee")
    assert a.target_names == ("bee", "bee")
    assert explain(cnn, x[0], target="bee").values[0] == pytest.approx(a.values[0], abs=1e-6)


def test_a_bare_network_is_enough():
    torch.manual_seed(0)
    a = explain(SmallCNN(3, widths=(4, 8)), torch.rand(2, 3, 32, 32), method="grad_cam", target=[0, 2])
    assert a.targets.tolist() == [0, 2]
    assert a.target_names is None


def test_the_predicted_class_is_explained_by_default(cnn):
    x = torch.rand(4, 3, 32, 32)
    cnn.module.eval()
    with torch.no_grad():
        predicted = cnn.module(x).argmax(dim=1)
    assert explain(cnn, x).targets.tolist() == predicted.tolist()


@pytest.mark.parametrize("method", [e.name for e in EXPLAINERS if e.name in ASKING and not e.needs_space])
def test_tables_are_explained_by_their_own_columns(method, mlp, frame):
    a = explain(mlp, frame[:4], method=method, background=frame, target="yes", budget=80)
    assert a.values.shape == (4, 3)
    assert a.inputs.players.names == ("age", "dose", "site")
    if a.completeness is not None:
        assert np.abs(a.completeness).max() < 0.02
    assert set(a.to_frame()["part"]) == {"age", "dose", "site"}


def test_tables_without_background_use_the_mean_of_the_data_the_encoding_saw(mlp, frame):
    a = explain(mlp, frame[:2], method="kernel_shap", target="yes")
    assert np.abs(a.completeness).max() < 1e-9
    assert a.params["exact"]


def test_grad_cam_on_a_table_says_what_to_use(mlp, frame):
    with pytest.raises(ModelError, match="needs a spatial layer"):
        explain(mlp, frame[:2], method="grad_cam")


@pytest.mark.parametrize(
    ("target", "match"), [(3, "out of range"), (-1, "out of range"), ("cat", "no class 'cat'"), (1.5, "neither"), ([0], "1 targets for 2")]
)
def test_a_wrong_target_is_one_clear_sentence(target, match, cnn):
    with pytest.raises((ModelError, DataError), match=match):
        explain(cnn, torch.rand(2, 3, 32, 32), target=target if not isinstance(target, float) else [target] * 2)


def test_a_class_name_needs_class_names():
    with pytest.raises(ModelError, match="has no class names"):
        explain(SmallCNN(3, widths=(4, 8)), torch.rand(1, 3, 32, 32), target="bee")


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        (torch.rand(0, 3, 32, 32), "holds? no sample"),
        (np.zeros((2, 32, 32, 3)), "float64"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.int64), "int64|uint8"),
        (torch.rand(2, 3, 4, 32, 32), "expected"),
        (["not a picture"], "expected uint8"),
        (pd.DataFrame({"a": [1.0]}), "images"),
    ],
)
def test_inputs_that_cannot_be_used_are_refused(inputs, match, cnn):
    with pytest.raises(DataError, match=match):
        explain(cnn, inputs)


def test_pictures_without_preprocessing_are_refused(pictures):
    with pytest.raises(DataError, match="need a preprocessing"):
        explain(SmallCNN(3, widths=(4, 8)), pictures)


@pytest.mark.parametrize(
    ("more", "match"), [({"method": "gradcam"}, "did you mean"), ({"steps": 3}, "no setting 'steps'"), ({"budget": 0}, "budget is 0")]
)
def test_settings_that_make_no_sense_are_refused(more, match, cnn):
    with pytest.raises(ConfigError, match=match):
        explain(cnn, torch.rand(1, 3, 32, 32), **more)


def test_a_model_whose_outputs_are_not_finite_has_no_predicted_class(cnn):
    with torch.no_grad():
        next(iter(cnn.module.parameters())).fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        explain(cnn, torch.rand(1, 3, 32, 32))


def test_an_attribution_shows_itself_in_a_notebook(cnn, pictures, mlp, frame):
    for a in (explain(cnn, pictures), explain(mlp, frame[:2], method="lime", budget=20)):
        html = a._repr_html_()
        assert "not checked" in html
        assert "<script" not in html


def test_images_are_split_into_at_most_49_parts(cnn, pictures):
    a = explain(cnn, pictures, method="kernel_shap", budget=20)
    assert (a.inputs.players.count <= 49).all()
    assert a.budget <= 20
    assert all(len(e) == c for e, c in zip(a.standard_error, a.inputs.players.count, strict=True))


def test_probabilities_are_explained_through_their_logarithm(cnn):
    net = nn.Sequential(cnn.module, nn.Softmax(dim=1))
    x = torch.rand(2, 3, 32, 32)
    a = explain(Model(net, classes=cnn.classes, head="0"), x, method="kernel_shap", budget=20)
    assert any("probabilities" in note for note in a.caveats)


@pytest.mark.parametrize("method", ["integrated_gradients", "kernel_shap"])
def test_the_probability_can_be_explained_instead_of_the_logit(method, cnn):
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    start = torch.zeros_like(x[:1])
    with torch.no_grad():
        change = (cnn.module.eval()(x).softmax(1) - cnn.module(start).softmax(1))[:, 1].double().numpy()
    maps = explain(cnn, x, method=method, target=1, of="probability", baseline=start)
    np.testing.assert_allclose([p.sum() for p in maps.player_values], change, atol=1e-4)
    assert maps.params["output"] == "probability"


def test_grad_cam_of_the_probability_differs_from_that_of_the_logit(cnn):
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert not np.allclose(explain(cnn, x, target=1).values, explain(cnn, x, target=1, of="probability").values)


def test_an_unknown_quantity_is_refused(cnn):
    with pytest.raises(ConfigError, match="of is 'log-odds': expected one of logit, probability"):
        explain(cnn, torch.rand(1, 3, 16, 16), of="log-odds")


def test_columns_keep_their_names_without_an_encoding(frame):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    table = frame.assign(dose=frame["dose"].astype(float).fillna(0.0))[["age", "dose"]]
    found = explain(net, table, method="kernel_shap", background=table)
    assert found.inputs.players.names == ("age", "dose")
    assert {row.part for row in found.importance().to_frame().rename(columns={"column": "part"}).itertuples()} == {"age", "dose"}
    assert "age" in found._repr_html_()
    for masking in ("mean", "marginal", "conditional"):
        assert np.isfinite(explain(net, table, method="kernel_shap", background=table, masking=masking).values).all()
    with pytest.raises(DataError, match="fit_encoding"):
        explain(net, frame[["age", "site"]], method="kernel_shap")


def test_without_a_method_the_kind_of_data_chooses(cnn, pictures, mlp, frame):
    assert explain(cnn, pictures).method == "grad_cam"
    assert explain(mlp, frame, budget=40).method == "kernel_shap"


def test_settings_of_several_methods_go_to_those_that_have_them(cnn, pictures):
    found = explain_all(cnn, pictures, methods=("saliency", "kernel_shap"), of="probability", channels="mean", budget=40)
    assert found["kernel_shap"].params["output"] == "probability"
    alone = explain(cnn, pictures, method="saliency", of="probability", channels="mean")
    assert found["saliency"].values == pytest.approx(alone.values, abs=1e-6)
    with pytest.raises(ConfigError, match="none of saliency, kernel_shap has a setting 'window'"):
        explain_all(cnn, pictures, methods=("saliency", "kernel_shap"), window=3)


def test_the_number_of_parts_can_be_chosen(cnn, pictures):
    assert explain(cnn, pictures, method="feature_ablation", parts=4).inputs.players.count.tolist() == [4, 4, 4]
    with pytest.raises(ConfigError, match="parts is 0"):
        explain(cnn, pictures, method="lime", parts=0)
