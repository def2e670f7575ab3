"""Drawings: well-formed, plain, with words; what they show stands in the exhibit."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from golden_record import (
    LAYERS,
    agreement,
    before_after,
    changes_per_layer,
    cka_lines,
    confusion,
    cues,
    decomposition,
    group_dots,
    ladder,
    reliability,
)
from hostile import CORPUS, replace_strings

from tl_audit.records.exhibits import EXHIBIT_KINDS, Bar, Bars, Dot, Exhibit, Heatmap, Intervals, Ladder, LadderRow, Line, Lines, Table
from tl_audit.report import charts
from tl_audit.report.notebook import standalone

DRAWN = (
    group_dots(),
    before_after(),
    reliability(),
    cka_lines(),
    confusion(),
    agreement(),
    decomposition(),
    cues(),
    changes_per_layer(),
    ladder(),
)
SVG = "{http://www.w3.org/2000/svg}"


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(standalone(svg))


def drawn(exhibit: Exhibit) -> str:
    svg = charts.draw(exhibit, "x-1")
    assert svg is not None
    return svg


def numbers_in(svg: str) -> list[float]:
    return [float(n) for n in re.findall(r'(?: x| y|x1|y1|x2|y2|width|height)="(-?[\d.]+)"', svg)]


@pytest.mark.parametrize("exhibit", DRAWN, ids=lambda e: e.id)
def test_a_drawing_is_well_formed_named_and_without_style(exhibit: Exhibit) -> None:
    root = parse(drawn(exhibit))
    assert root.get("role") == "img"
    assert root.find(f"{SVG}title").text == exhibit.title  # type: ignore[union-attr]
    assert root.find(f"{SVG}desc").text == exhibit.alt  # type: ignore[union-attr]
    for element in root.iter():
        assert "style" not in element.attrib
        assert element.tag.removeprefix(SVG) in ("svg", "title", "desc", "style", "rect", "line", "path", "text")


@pytest.mark.parametrize("exhibit", DRAWN, ids=lambda e: e.id)
def test_a_drawing_is_720_wide_small_and_stays_inside(exhibit: Exhibit) -> None:
    svg = drawn(exhibit)
    root = parse(svg)
    width, height = (float(v) for v in root.get("viewBox", "").split()[2:])
    assert width == 720
    assert 0 < height < 2000
    assert len(svg) < 40_000
    for element in root.iter():
        for name, most in (("x", width), ("x1", width), ("x2", width), ("y", height), ("y1", height), ("y2", height)):
            if name in element.attrib:
                assert -1 <= float(element.attrib[name]) <= most + 1, (element.tag, element.attrib)


@pytest.mark.parametrize("name", CORPUS)
def test_hostile_text_leaves_drawings_well_formed(name: str) -> None:
    for exhibit in DRAWN:
        root = parse(drawn(replace_strings(exhibit, lambda s: s + CORPUS[name])))
        assert all(
            element.tag.removeprefix(SVG) in ("svg", "title", "desc", "style", "rect", "line", "path", "text") for element in root.iter()
        )


def test_every_kind_is_drawn_or_shown_as_table_or_pictures() -> None:
    kinds = {type(e) for e in DRAWN}
    assert {k.__name__ for k in EXHIBIT_KINDS} - {k.__name__ for k in kinds} == {"Table", "ImageGrid"}
    assert charts.draw(Table(id="t", title="t", how_to_read="x", alt="x", caption="x", columns=(), rows=()), "x-1") is None


def test_a_suppressed_group_is_named_without_a_mark() -> None:
    shown = charts.intervals(group_dots(), "x-1")
    assert "coast" in shown
    assert shown.count('class="m ') == 3
    hidden = group_dots().model_copy(update={"dots": (Dot(label="coast", value=0.5, interval=(0.4, 0.6), n=7, suppressed=True),)})
    svg = charts.intervals(hidden, "x-1")
    assert 'class="m ' not in svg
    assert "0.5" not in "".join(re.findall(r">([^<]*coast[^<]*)<", svg))
    assert "n = 7" not in svg


def test_base_is_hollow_and_adapted_filled_and_the_paired_change_is_printed() -> None:
    svg = charts.intervals(before_after(), "x-1")
    assert len(re.findall(r'class="m s0 hollow"', svg)) == 3
    assert len(re.findall(r'class="m s1"', svg)) == 3
    assert "Δ 0.47 (0.42–0.52)" in svg


def test_limits_and_null_bands_are_drawn() -> None:
    svg = charts.intervals(group_dots(), "x-1")
    assert 'class="ref limit"' in svg
    assert 'class="nullband"' in svg
    assert "limit ≥ 0.80" in svg


def test_series_differ_by_shape_as_well_as_colour() -> None:
    shapes = {charts._shape(k, 0, 0, 5) for k in range(charts.SERIES)}
    assert len(shapes) == charts.SERIES


def test_signed_bars_go_both_ways_from_zero() -> None:
    svg = charts.bars(cues(), "x-1")
    assert svg.count('class="bar pos"') == 3
    assert svg.count('class="bar neg"') == 3


def test_a_part_that_was_not_computed_is_a_dashed_line_with_its_reason() -> None:
    svg = charts.bars(decomposition(), "x-1")
    assert 'class="absent"' in svg
    assert "needs labels of both domains" in svg


def test_a_frozen_layer_that_changed_is_marked() -> None:
    bad = Ladder(
        id="l",
        title="x",
        how_to_read="x",
        alt="x",
        caption="x",
        rows=(LadderRow(layer="a", parameters=1, state="frozen", weight_change=0.1, frozen_but_changed=True),),
    )
    svg = charts.ladder(bad, "x-1")
    assert 'class="breach"' in svg
    assert "changed!" in svg
    assert 'class="breach"' not in charts.ladder(ladder(), "x-1")


def test_more_than_forty_layers_are_grouped_and_keep_the_largest_figure() -> None:
    rows = tuple(
        LadderRow(layer=f"blocks.{i // 6}.unit.{i % 6}", parameters=10, state="trained", weight_change=float(i), cka_drift=0.1)
        for i in range(96)
    )
    grouped = charts.group_layers(rows)
    assert len(grouped) <= 40
    assert sum(r.parameters for r in grouped) == 960
    assert max(r.weight_change or 0 for r in grouped) == 95.0
    svg = charts.ladder(Ladder(id="l", title="x", how_to_read="x", alt="x", caption="x", rows=rows), "x-1")
    assert f"96 layers in {len(grouped)} groups" in svg
    assert len(charts.group_layers(tuple(r.model_copy(update={"layer": f"layer{i}"}) for i, r in enumerate(rows)))) <= 40


def test_confusions_of_more_than_twenty_classes_become_a_table() -> None:
    names = tuple(f"c{i}" for i in range(21))
    big = Heatmap(
        id="h",
        title="x",
        how_to_read="x",
        alt="x",
        caption="x",
        row_label="true",
        column_label="predicted",
        rows=names,
        columns=names,
        values=((0.1,) * 21,) * 21,
        value_label="share",
    )
    assert charts.draw(big, "x-1") is None


def test_long_labels_are_cut_and_keep_their_whole_text_as_title() -> None:
    svg = charts.intervals(group_dots(), "x-1")
    assert "<title>east, the long name of a site that has more letters than the chart has room</title>" in svg


def test_empty_and_constant_exhibits_draw_without_dividing_by_zero() -> None:
    base = {"id": "e", "title": "x", "how_to_read": "x", "alt": "x", "caption": "x"}
    for exhibit in (
        Bars(**base, value_label="v", bars=()), Bars(**base, value_label="v", bars=(Bar(label="a", value=0.0),), log=True), Bars(**base, value_label="v", bars=(Bar(label="a", value=0.0),), signed=True),
        Lines(**base, x_label="x", y_label="y", lines=()), Lines(**base, x_label="x", y_label="y", lines=(Line(name="a", x=(1.0,), y=(2.0,)),)), Intervals(**base, value_label="v", dots=()),
        Intervals(**base, value_label="v", dots=(Dot(label="a", value=1e-12), Dot(label="b", value=None))), Heatmap(**base, row_label="r", column_label="c", rows=(), columns=(), values=(), value_label="v"),
        Heatmap(**base, row_label="r", column_label="c", rows=("a",), columns=("a",), values=((0.5,),), value_label="v"), Ladder(**base, rows=()),
        Ladder(**base, rows=(LadderRow(layer="a", parameters=0, state="unknown"),)), Bars(**base, value_label="v", bars=(Bar(label="a", value=1e300), Bar(label="b", value=-1e300))),
    ):  # fmt: skip
        parse(drawn(exhibit))
        assert "nan" not in drawn(exhibit).lower()
    assert len(LAYERS) == 8


def test_axis_ticks_are_round_numbers_inside_the_axis() -> None:
    assert charts.Scale(0.0, 1.0, 0, 1).ticks() == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert charts.Scale(0.001, 10.0, 0, 1, log=True).ticks() == [0.001, 0.01, 0.1, 1.0, 10.0]
    assert charts.Scale(-0.3, 0.3, 0, 1).ticks() == [-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3]
