"""Attributions as people look at them: views, comparisons, importances, and the files they are saved as."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile import CORPUS, shape
from scipy import stats

from tl_audit.attribution import Attribution, Inputs
from tl_audit.attribution.comparison import Comparison
from tl_audit.attribution.importance import importance, importance_change, local_mean, part_labels
from tl_audit.errors import ConfigError, DataError
from tl_audit.modality import IMAGE, TABULAR
from tl_audit.modality.base import Players
from tl_audit.records.colours import BLUE_WHITE_ORANGE, painted, reach
from tl_audit.records.exhibits import Stamp
from tl_audit.records.preprocessing import CategoricalColumn, NumericColumn, TableEncoding
from tl_audit.report.attributions import Part, attribution_page
from tl_audit.report.notebook import attribution_fragment, comparison_fragment, importance_fragment
from tl_audit.report.strips import swarm

NAMES = ("age", "sex", "bmi")
TABLE = TableEncoding(
    numeric=(NumericColumn(name="age", mean=50.0, std=10.0, fill=50.0), NumericColumn(name="bmi", mean=25.0, std=5.0, fill=25.0, missing_indicator=True)),
    categorical=(CategoricalColumn(name="sex", categories=("one", "two")),),
)  # fmt: skip


def pictures(
    values: Any, *, method: str = "lime", signed: bool = True, ids: tuple[str, ...] | None = None, by_part: bool = True
) -> Attribution:
    """Maps of 8 x 8 pictures cut into four squares: one value per square, or per pixel."""
    given = np.asarray(values, dtype=np.float64)
    n = len(given)
    grid = (torch.arange(8) // 4)[:, None] * 2 + (torch.arange(8) // 4)[None, :]
    players = Players(grid.expand(n, 8, 8).clone(), np.full(n, 4), None, "image")
    maps = players.spread([v / 16 for v in given]) if by_part else given
    parts = tuple(given) if by_part else tuple(players.pool(torch.as_tensor(given)))
    ink = torch.linspace(0, 1, 64).reshape(1, 8, 8).expand(n, 1, 8, 8)
    inputs = Inputs(ink, ids or tuple(f"s{i}" for i in range(n)), IMAGE, None, players)
    blank = np.array([np.ptp(m) == 0 for m in maps])
    return Attribution(maps, parts, np.zeros(n, dtype=np.int64), method, inputs, signed, target_names=("bees",) * n, budget=9, blank=blank)


def table(
    values: Any, *, error: Any = None, tensor: Any = None, spec: Any = None, names: tuple[str, ...] = NAMES, **more: Any
) -> Attribution:
    given = np.asarray(values, dtype=np.float64)
    n, d = given.shape
    x = torch.as_tensor(np.zeros((n, d)) if tensor is None else tensor, dtype=torch.float32)
    players = (
        TABULAR.players(x, spec) if spec is not None else Players(torch.arange(d).expand(n, d).clone(), np.full(n, d), names, "columns")
    )
    inputs = Inputs(x, tuple(f"r{i}" for i in range(n)), TABULAR, spec, players)
    errors = None if error is None else tuple(np.asarray(error, dtype=float))
    blank = (given == 0).all(axis=1)
    return Attribution(
        given, tuple(given), np.zeros(n, dtype=np.int64), "kernel_shap", inputs, True, target_names=("ill",) * n, standard_error=errors, blank=blank, budget=8, **more
    )  # fmt: skip


def words(html: str) -> str:
    return " ".join(" ".join(shape(re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)).text).split())


def png_of(html: str, k: int) -> np.ndarray:
    from PIL import Image

    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    with Image.open(io.BytesIO(base64.b64decode(found[k]))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


# ---- scales and overlays --------------------------------------------------------------------------------------------------------------------


def test_a_signed_scale_is_symmetric_and_an_unsigned_one_begins_at_zero() -> None:
    top = float(np.quantile([1.0, 0.0, 3.0], 0.995))
    assert reach(np.array([-1.0, 0.0, 3.0]), signed=True) == pytest.approx((-top, top))
    assert reach(np.array([1.0, 1.0, 2.0]), signed=False)[0] == 0.0  # type: ignore[index]
    assert reach(np.zeros(4), signed=True) is None
    assert reach(np.array([np.nan]), signed=False) is None


def test_the_middle_of_the_signed_colours_is_white_and_the_ends_are_blue_and_orange() -> None:
    low, middle, high = painted(np.array([0.0, 0.5, 1.0]), BLUE_WHITE_ORANGE)
    assert tuple(middle) == (245, 245, 245)
    assert low[2] > low[0]
    assert high[0] > high[2]


def test_every_map_has_a_scale_with_numbers_and_the_words_of_its_unit() -> None:
    html = attribution_fragment(pictures([[1.0, -2.0, 0.0, 0.5]]))
    assert "\u22122.0" in html
    assert "+2.0" in html
    said = words(html)
    assert "Values: weights of a local linear model, each outlined part as a whole" in said
    assert "orange parts speak for the class that is named, blue parts against it" in said


def test_parts_are_outlined_where_the_method_values_parts_and_not_where_it_values_pixels() -> None:
    edges = png_of(attribution_fragment(pictures([[1.0, 1.0, 1.0, -1.0]])), 1)
    assert edges[40, 79].sum() < 0.75 * edges[40, 78].sum()  # the line between two squares of the same value
    rough = np.arange(64.0).reshape(1, 8, 8)
    free = png_of(attribution_fragment(pictures(rough, method="saliency", by_part=False)), 1)
    assert free[40, 79].sum() > 0.9 * free[40, 78].sum()


def test_blank_maps_are_drawn_as_no_signal_without_a_scale() -> None:
    html = attribution_fragment(pictures([[0.0, 0.0, 0.0, 0.0]]))
    assert "no signal" in html
    assert 'class="scale"' not in html


def test_a_contrast_is_named_and_read_as_one() -> None:
    maps = replace(pictures([[1.0, -2.0, 0.0, 0.5]]), target_names=("ants against bees",), against=np.array([1]))
    said = words(attribution_fragment(maps))
    assert "ants against bees" in said
    assert "for the first class and against the second" in said


def test_a_stamp_stands_on_the_maps_and_its_absence_is_said() -> None:
    maps = pictures([[1.0, -2.0, 0.0, 0.5]])
    assert "not checked" in words(attribution_fragment(maps))
    stamped = replace(maps, quality=Stamp(state="unreliable", text="not reliable: fails TLA703"))
    assert "fails TLA703" in words(attribution_fragment(stamped))


# ---- columns --------------------------------------------------------------------------------------------------------------------------------


def test_the_columns_that_counted_most_stand_first_with_their_readings_and_standard_errors() -> None:
    maps = table([[0.1, -0.5, 0.3]], error=[[0.01, 0.1, 0.02]])
    html = attribution_fragment(maps, [["age = 37", "sex = two", "bmi = 21"]])
    svg = base64.b64decode(re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', html)[0]).decode()
    assert svg.index("sex = two") < svg.index("bmi = 21") < svg.index("age = 37")
    assert svg.count('class="whisker"') == 3
    assert "one standard error" in words(html)


def test_beyond_twelve_columns_the_rest_is_summed_up() -> None:
    values = np.array([[*np.full(12, 2.0), *np.full(4, 1.5)]])
    html = attribution_fragment(table(values, names=tuple(f"c{k}" for k in range(16))))
    assert "4 more columns hold 20 % of all |values|." in words(html)


def test_readings_are_in_the_data_s_own_units() -> None:
    rows = [[1.3, 0.0, 1.0, 0.0, 1.0, 0.0], [0.0, 2.0, 0.0, 1.0, 0.0, 0.0]]
    maps = table(np.ones((2, 3)), tensor=rows, spec=TABLE)
    assert maps.inputs.players.names == ("age", "bmi", "sex")
    assert part_labels(maps) == (("age = 63", "bmi = missing", "sex = two"), ("age = 50", "bmi = 35", "sex = one"))
    assert part_labels(pictures([[1.0, 2.0, 3.0, 4.0]])) is None


# ---- comparisons ----------------------------------------------------------------------------------------------------------------------------


def test_base_and_adapted_share_one_scale_and_their_difference_keeps_it() -> None:
    base, adapted = pictures([[1.0, 0.0, 0.0, 0.0]]), pictures([[0.0, 0.0, 0.0, 4.0]])
    both = adapted.beside(base)
    assert both.names == ("base", "adapted")
    assert np.allclose(both.player_difference[0], [-1, 0, 0, 4])  # type: ignore[index]
    assert np.allclose(both.difference, adapted.values - base.values)  # type: ignore[operator]
    html = comparison_fragment(both)
    assert html.count('class="scale"') == 3
    assert html.count(">\u22124.0<") == 3
    assert "adapted \u2212 base" in html


def test_rank_correlation_is_that_of_the_parts() -> None:
    a, b = pictures([[4.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]]), pictures([[3.0, 1.0, 2.0, 4.0], [4.0, 3.0, 2.0, 1.0]])
    both = b.beside(a)
    expected = [stats.spearmanr(x, y).statistic for x, y in zip(a.player_values, b.player_values, strict=True)]
    assert both.rank_correlation() == pytest.approx(expected)
    assert both.mean_rank_correlation().value == pytest.approx(np.mean(expected))


def test_what_cannot_be_subtracted_is_shown_without_a_difference_and_with_the_reason() -> None:
    first, second = pictures([[1.0, 2.0, 3.0, 4.0]]), pictures([[1.0, 2.0, 3.0, 5.0]])
    other_class = replace(second, target_names=("ants",))
    assert "other classes" in other_class.beside(first).reason
    assert other_class.beside(first).difference is None
    other_method = pictures([[1.0, 2.0, 3.0, 5.0]], method="occlusion")
    both = other_method.beside(first)
    assert both.names == ("lime", "occlusion")
    assert "measure in other units" in both.reason
    assert "No difference is drawn" in comparison_fragment(both)


def test_a_blank_side_leaves_no_difference_to_draw() -> None:
    both = pictures([[1.0, 2.0, 3.0, 4.0]]).beside(pictures([[0.0] * 4]))
    html = comparison_fragment(both)
    assert html.count('class="scale"') == 1
    assert "not defined, a map is blank" in words(html)


def test_several_methods_stand_beside_each_other_each_on_its_own_scale() -> None:
    maps = {m: pictures([[1.0 * k, 2.0, 3.0, 4.0 * k]], method=m) for k, m in enumerate(("lime", "occlusion", "kernel_shap"), 1)}
    both = Comparison.of(maps)
    html = comparison_fragment(both)
    assert len(both.pairs) == 3
    assert html.count('class="scale"') == 3
    assert "lime and kernel_shap" in words(html)


def test_other_samples_or_sizes_are_refused_with_what_to_do() -> None:
    maps = pictures([[1.0, 2.0, 3.0, 4.0]])
    with pytest.raises(DataError, match="explains other samples"):
        maps.beside(pictures([[1.0, 2.0, 3.0, 4.0]], ids=("else",)))
    with pytest.raises(DataError, match="at least two"):
        Comparison.of({"one": maps})


def test_columns_beside_each_other_come_with_a_table_of_the_difference() -> None:
    both = table([[0.1, -0.5, 0.3]]).beside(table([[0.1, 0.5, 0.25]]))
    said = words(comparison_fragment(both))
    assert "\u22121.00" in said
    assert "+0.050" in said


# ---- importance -----------------------------------------------------------------------------------------------------------------------------


def test_importance_is_the_mean_of_absolute_values_with_a_t_interval(rng: np.random.Generator) -> None:
    values = rng.normal(size=(20, 3)) * [1.0, 3.0, 0.2]
    found = importance(table(values))
    size = np.abs(values)
    assert [c.name for c in found.columns] == ["sex", "age", "bmi"]
    for column in found.columns:
        mine = size[:, NAMES.index(column.name)]
        low, high = stats.t.interval(0.95, 19, mine.mean(), mine.std(ddof=1) / np.sqrt(20))
        assert column.mean_absolute.value == pytest.approx(mine.mean())
        assert column.mean_absolute.interval() == pytest.approx((low, high))
        assert column.mean_signed.value == pytest.approx(values[:, NAMES.index(column.name)].mean())


def test_chance_is_what_dealing_values_to_columns_at_random_gives(rng: np.random.Generator) -> None:
    values = rng.normal(size=(12, 3)) * [1.0, 3.0, 0.2]
    found = importance(table(values))
    dealt = [np.abs(rng.permuted(values, axis=1)).mean(axis=0) for _ in range(4000)]
    assert found.chance == pytest.approx(float(np.mean(dealt)), rel=0.02)
    assert sum(c.top_share.value or 0.0 for c in found.columns) == pytest.approx(1.0)
    assert all(c.top_share.null == pytest.approx(1 / 3) for c in found.columns)


def test_ties_at_the_top_are_shared() -> None:
    found = importance(table([[1.0, -1.0, 0.0], [1.0, 0.0, 0.5], [0.0, 2.0, 1.0], [3.0, 1.0, 1.0]]))
    assert {c.name: c.top_share.value for c in found.columns} == pytest.approx({"age": 2.5 / 4, "sex": 1.5 / 4, "bmi": 0.0})


def test_clusters_widen_the_interval_of_repeated_rows(rng: np.random.Generator) -> None:
    once = rng.normal(size=(8, 3))
    many = np.repeat(once, 10, axis=0)
    free, bound = importance(table(many)), importance(table(many), np.repeat(np.arange(8), 10))
    width = {f: np.ptp(i.columns[0].mean_absolute.interval()) for f, i in (("free", free), ("bound", bound))}  # type: ignore[arg-type]
    single = np.ptp(importance(table(once)).columns[0].mean_absolute.interval())  # type: ignore[arg-type]
    assert width["bound"] == pytest.approx(single, rel=0.02)
    assert width["free"] < width["bound"] / 2
    assert bound.clusters == 8


def test_blank_rows_are_left_out_and_counted() -> None:
    found = importance(table([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [1.0, 1.0, 2.0], [2.0, 1.0, 1.0]]))
    assert found.n == 3
    assert "1 rows without signal are left out" in found.caption


def test_pictures_and_too_few_rows_have_no_importance() -> None:
    with pytest.raises(DataError, match="needs named parts"):
        pictures([[1.0, 2.0, 3.0, 4.0]]).importance()
    with pytest.raises(DataError, match="at least 3 rows"):
        table([[1.0, 2.0, 3.0]]).importance()


def test_an_unknown_column_of_a_dependence_is_named_with_a_near_one() -> None:
    with pytest.raises(DataError, match="did you mean 'bmi'"):
        table([[1.0, 2.0, 3.0]] * 4).importance().dependence("bmj")


def test_the_smoothed_mean_of_a_line_is_the_line(rng: np.random.Generator) -> None:
    x = rng.uniform(0, 10, 80)
    grid, mean, low, _, width = local_mean(x, 2.0 * x - 3.0)
    known = np.isfinite(mean)
    assert known.sum() > 50
    assert mean[known] == pytest.approx(2.0 * grid[known] - 3.0)
    assert (low[known] <= mean[known] + 1e-9).all()
    assert width > 0


def test_the_band_of_the_smoothed_mean_holds_the_truth_about_as_often_as_it_says() -> None:
    held = []
    for seed in range(120):
        rng = np.random.default_rng(seed)
        x = rng.uniform(0, 1, 150)
        grid, _, low, high, _ = local_mean(x, x + rng.normal(0, 0.3, 150), points=9)
        held.append((low[4] <= grid[4]) & (grid[4] <= high[4]))
    assert 0.88 <= np.mean(held) <= 0.995


def test_one_reading_only_has_no_line() -> None:
    assert len(local_mean(np.ones(9), np.arange(9.0))[0]) == 0


def test_a_categorical_column_has_a_mean_per_category(rng: np.random.Generator) -> None:
    rows = np.zeros((10, 6))
    rows[:, 3] = [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
    rows[:, 4] = 1 - rows[:, 3]
    values = rng.normal(size=(10, 3))
    found = importance(table(values, tensor=rows, spec=TABLE)).dependence("sex")
    assert found.categories == ("one", "two")
    assert [m.value for m in found.means] == pytest.approx([values[:5, 2].mean(), values[5:, 2].mean()])


def test_the_change_between_two_models_is_paired(rng: np.random.Generator) -> None:
    first, second = rng.normal(size=(15, 3)), rng.normal(size=(15, 3))
    found = importance_change(table(first), table(second), ("base", "adapted"))
    moved = {c.label: c for c in found.changes}
    for k, name in enumerate(NAMES):
        delta = np.abs(second[:, k]) - np.abs(first[:, k])
        low, high = stats.t.interval(0.95, 14, delta.mean(), delta.std(ddof=1) / np.sqrt(15))
        assert moved[name].value == pytest.approx(delta.mean())
        assert moved[name].interval == pytest.approx((low, high))


def test_dots_of_a_strip_do_not_stand_on_each_other() -> None:
    values = [0.0, 0.0, 0.0, 1.0, 1.1, 9.0]
    places = swarm(values, step=1.0, most=3)
    stood = [(v, p) for v, p in zip(values, places, strict=True)]
    assert all(abs(a - b) >= 1.0 or p != q for i, (a, p) in enumerate(stood) for b, q in stood[i + 1 :])
    assert places[5] == 0
    assert len(swarm([0.0] * 50, step=1.0, most=2)) == 50  # a full strip overlaps rather than grows


def test_the_view_of_an_importance_holds_its_numbers_without_pictures(rng: np.random.Generator) -> None:
    found = importance(table(rng.normal(size=(30, 3))))
    said = words(importance_fragment(found))
    for text in ("n = 30 rows", "95 % interval", "by chance", "against chance", "each dot is a row", "they do not say what causes"):
        assert text.lower() in said.lower()


# ---- pages ----------------------------------------------------------------------------------------------------------------------------------


def every_part(rng: np.random.Generator, name: str = "plain") -> list[Part]:
    rows = table(rng.normal(size=(20, 3)), names=(f"age{name}", f"sex{name}", f"bmi{name}"))
    rows = replace(rows, target_names=(name,) * 20, caveats=(name,))
    images = replace(pictures([[1.0, 2.0, -3.0, 4.0]]), target_names=(name,), layer=name, layer_reason=name)
    images = replace(images, inputs=replace(images.inputs, ids=(name,)))
    return [
        Part("importance", rows.importance(), f"sum {name}"),
        Part("maps", images, f"maps {name}"),
        Part("maps", rows, f"rows {name}", part_labels(rows)),
        Part("comparison", images.beside(images), f"both {name}"),
        Part("comparison", rows.beside(rows), f"both rows {name}", part_labels(rows)),
    ]


def test_a_page_has_no_script_loads_nothing_and_allows_its_style_by_hash(rng: np.random.Generator) -> None:
    import hashlib

    page = attribution_page(every_part(rng), title="Maps", facts=[("model", "m")])
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    assert page.count("<style>") == 1
    assert base64.b64encode(hashlib.sha256(style.group(1).encode()).digest()).decode() in page
    tags = {tag for tag, _ in shape(page).elements}
    assert not tags & {"script", "iframe", "object", "embed", "link", "form"}
    for _, attributes in shape(page).elements:
        assert not any(a.startswith("on") or a == "style" for a in attributes)
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#")
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", CORPUS)
def test_hostile_names_stay_text_on_the_page(rng: np.random.Generator, name: str) -> None:
    page = attribution_page(every_part(rng, CORPUS[name]), title=CORPUS[name], facts=[(CORPUS[name], CORPUS[name])])
    plain = attribution_page(every_part(np.random.default_rng(20261121)), title="plain", facts=[("a", "b")])
    parsed = shape(page)
    assert parsed.faults == []
    assert {tag for tag, _ in parsed.elements} <= {tag for tag, _ in shape(plain).elements} | {"wbr"}
    assert not any(a.startswith("on") for _, attributes in parsed.elements for a in attributes)


def test_notebook_views_hold_no_inline_drawing_and_no_script(rng: np.random.Generator) -> None:
    rows, images = table(rng.normal(size=(20, 3))), pictures([[1.0, 2.0, -3.0, 4.0]])
    for shown in (rows, images, images.beside(images), rows.beside(rows), rows.importance()):
        html = shown._repr_html_()
        assert "<svg" not in html
        assert "<script" not in html
        assert shape(html).faults == []


def test_viewers_without_html_get_plain_text_and_a_picture(rng: np.random.Generator) -> None:
    bundle = pictures([[1.0, 2.0, -3.0, 4.0], [4.0, 2.0, -3.0, 1.0]])._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain", "image/png"}
    assert bundle["image/png"].startswith(b"\x89PNG")  # type: ignore[arg-type]
    assert set(table(rng.normal(size=(2, 3)))._repr_mimebundle_()) == {"text/html", "text/plain"}


# ---- files ----------------------------------------------------------------------------------------------------------------------------------


def test_npz_gives_the_arrays_back_without_pickles(tmp_path: Path) -> None:
    maps = table([[0.1, -0.5, 0.3], [1.0, 2.0, 3.0]], error=[[0.01, 0.1, 0.02]] * 2)
    with np.load(maps.save(tmp_path / "maps.npz"), allow_pickle=False) as back:
        assert np.array_equal(back["values"], maps.values)
        assert np.array_equal(back["player_values"][back["offsets"][1] : back["offsets"][2]], maps.player_values[1])
        assert list(back["ids"]) == ["r0", "r1"]
        assert list(back["part_names"]) == list(NAMES)
        assert back["standard_error"].shape == (6,)
        assert json.loads(str(back["made"]))["method"] == "kernel_shap"


def test_json_is_finite_and_what_is_not_is_null(tmp_path: Path) -> None:
    maps = table([[np.nan, -0.5, np.inf]])
    text = maps.save(tmp_path / "maps.json").read_text()
    data = json.loads(text, parse_constant=lambda c: pytest.fail(c))
    assert [row["value"] for row in data["parts"]] == [None, -0.5, None]
    assert data["format_version"] == 1


def test_png_is_a_picture_of_some_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("tl_audit.report.figures.DPI", 50)
    from PIL import Image

    maps = pictures([[1.0, 2.0, -3.0, 4.0], [0.0] * 4])
    rows = table(np.random.default_rng(0).normal(size=(3, 3)))
    for k, shown in enumerate((maps, rows, maps.beside(maps), rows.beside(rows), rows.importance())):
        with Image.open(shown.save(tmp_path / f"{k}.png")) as image:
            assert image.format == "PNG"
            assert min(image.size) > 80
            assert np.ptp(np.asarray(image.convert("L"))) > 100


def test_importance_and_comparisons_are_saved_as_numbers(tmp_path: Path) -> None:
    rows = table(np.random.default_rng(0).normal(size=(6, 3)))
    import pandas as pd

    frame = pd.read_csv(rows.importance().save(tmp_path / "i.csv"))
    assert frame["mean_absolute"].tolist() == pytest.approx(rows.importance().to_frame()["mean_absolute"].tolist())
    data = json.loads(rows.beside(rows).save(tmp_path / "c.json").read_text())
    assert data["likeness"][0]["mean"] == pytest.approx(1.0)
    with np.load(rows.beside(rows).save(tmp_path / "c.npz")) as back:
        assert np.array_equal(back["difference"], np.zeros((6, 3)))


def test_a_formula_in_a_name_is_text_in_the_spreadsheet(tmp_path: Path) -> None:
    rows = table(np.random.default_rng(0).normal(size=(6, 3)), names=("=1+1", "@x", "plain"))
    text = rows.importance().save(tmp_path / "i.csv").read_text()
    assert "'=1+1" in text
    assert "'@x" in text
    assert ",plain," in text


def test_unknown_suffixes_links_folders_and_missing_places_are_refused(tmp_path: Path) -> None:
    maps = table([[0.1, -0.5, 0.3]])
    with pytest.raises(ConfigError, match=r"there are \.png, \.npz, \.json"):
        maps.save(tmp_path / "maps.gif")
    target = tmp_path / "elsewhere.json"
    target.write_text("keep me")
    (tmp_path / "link.json").symlink_to(target)
    with pytest.raises(ConfigError, match="is a link"):
        maps.save(tmp_path / "link.json")
    assert target.read_text() == "keep me"
    with pytest.raises(ConfigError, match="cannot be written"):
        maps.save(tmp_path / "none" / "maps.json")


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tl_audit.attribution import saving

    maps = table([[0.1, -0.5, 0.3]])
    path = maps.save(tmp_path / "maps.json")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving.os, "replace", full)
    with pytest.raises(ConfigError, match="No space left"):
        maps.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["maps.json"]


def test_figures_without_matplotlib_name_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="pip install matplotlib"):
        table([[0.1, -0.5, 0.3]]).figure()
    with pytest.raises(ConfigError, match="pip install matplotlib"):
        table([[0.1, -0.5, 0.3]]).save(tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []
