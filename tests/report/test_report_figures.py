"""Every kind of exhibit as a matplotlib figure, and saved by suffix."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from golden_record import ladder
from hostile import CORPUS, replace_strings

from tl_audit.errors import ConfigError
from tl_audit.records.exhibits import EXHIBIT_KINDS, Bar, Bars, Table
from tl_audit.records.findings import AuditResult
from tl_audit.report.figures import figure, png_bytes

matplotlib = pytest.importorskip("matplotlib")


def exhibits(result: AuditResult) -> dict[str, Any]:
    """One exhibit of every kind."""
    found = {type(e).__name__: e for f in result.findings for e in f.exhibits.values()}
    assert set(found) == {k.__name__ for k in EXHIBIT_KINDS}
    return found


def text_of(drawn: Any) -> str:
    return " | ".join(t.get_text() for t in drawn.findobj(matplotlib.text.Text))


@pytest.mark.parametrize("kind", [k.__name__ for k in EXHIBIT_KINDS])
def test_every_kind_of_exhibit_has_a_figure_with_its_title_and_how_to_read_it(
    result: AuditResult, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    monkeypatch.setattr("tl_audit.report.figures.DPI", 70)

    exhibit = exhibits(result)[kind]
    drawn = exhibit.figure()
    with Image.open(io.BytesIO(png_bytes(drawn))) as image:
        assert min(image.size) > 120
        assert np.ptp(np.asarray(image.convert("L"))) > 100
        assert "Software" not in image.info
    words = " ".join(text_of(drawn).split())
    assert exhibit.title[:30] in words
    assert "How to read" in words


@pytest.mark.parametrize("kind", [k.__name__ for k in EXHIBIT_KINDS])
@pytest.mark.parametrize("name", ["escape", "long", "right to left"])
@pytest.mark.filterwarnings("ignore:Glyph", "ignore:constrained_layout")
def test_hostile_text_is_text_in_a_figure(result: AuditResult, kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tl_audit.report.figures.DPI", 30)
    exhibit = replace_strings(exhibits(result)[kind], lambda s: s + CORPUS[name] + " $x^2$ \\frac")
    assert png_bytes(exhibit.figure()).startswith(b"\x89PNG")


def test_bars_stand_where_their_values_are() -> None:
    bars = tuple(Bar(label=f"c{k}", value=v, null=0.5) for k, v in enumerate((2.0, -1.0, None)))
    record = Bars(id="x", title="t", how_to_read="h", alt="a", caption="c", value_label="v", bars=bars, signed=True)
    ax = record.figure().axes[0]
    assert [p.get_width() for p in ax.patches] == [2.0, -1.0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["c0", "c1", "c2"]


def test_a_finding_draws_all_its_exhibits(result: AuditResult) -> None:
    finding = result["TLA602"]
    words = text_of(finding.figure())
    for exhibit in finding.exhibits.values():
        assert exhibit.title[:20] in words


def test_pyplot_and_the_style_are_left_alone(result: AuditResult) -> None:
    before = dict(matplotlib.rcParams)
    png_bytes(figure(ladder()))
    assert dict(matplotlib.rcParams) == before
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def test_without_matplotlib_the_remedy_is_named(result: AuditResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="pip install matplotlib"):
        ladder().figure()


def test_what_has_no_figure_says_so() -> None:
    from tl_audit.records.metrics import Metric

    with pytest.raises(TypeError, match="Metric has no figure"):
        figure(Metric(name="x", value=None, reason="y"))  # type: ignore[arg-type]


def test_exhibits_are_saved_by_suffix(result: AuditResult, tmp_path: Path) -> None:
    bars = exhibits(result)["Bars"]
    assert bars.save(tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.fromstring(bars.save(tmp_path / "x.svg").read_text()).tag.endswith("svg")
    rows = list(csv.DictReader(io.StringIO(bars.save(tmp_path / "x.csv").read_text())))
    assert [r["label"].lstrip("'") for r in rows] == [b.label for b in bars.bars]
    assert json.loads(bars.save(tmp_path / "x.json").read_text())["kind"] == "Bars"


def test_a_table_is_no_drawing_and_other_suffixes_are_named(result: AuditResult, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a Table is no drawing"):
        exhibits(result)["Table"].save(tmp_path / "x.svg")
    with pytest.raises(ConfigError, match=r"there are \.png, \.svg, \.csv, \.json"):
        ladder().save(tmp_path / "x.pdf")
    (tmp_path / "link.json").symlink_to(tmp_path / "y.json")
    with pytest.raises(ConfigError, match="is a link"):
        ladder().save(tmp_path / "link.json")
    assert not (tmp_path / "y.json").exists()


def test_formulas_are_text_in_a_csv(tmp_path: Path) -> None:
    record = Table(id="x", title="t", how_to_read="h", alt="a", caption="c", columns=({"name": "=a"}, {"name": "n"}), rows=(("=1+1", -2),))  # type: ignore[arg-type]
    assert record.save(tmp_path / "x.csv").read_text() == "'=a,n\n'=1+1,-2\n"
