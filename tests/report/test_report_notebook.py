"""What notebooks see: no script, no inline drawing, every number readable without styles."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from golden_record import ladder, png
from hostile import CORPUS, replace_strings, shape

from tl_audit.errors import MissingExtra
from tl_audit.records.exhibits import EXHIBIT_KINDS, Bar, Picture, Stamp
from tl_audit.records.findings import AuditResult
from tl_audit.records.metrics import Metric
from tl_audit.report import AuditReport
from tl_audit.report.notebook import attribution_fragment, fragment


def without_pictures(html: str) -> str:
    return re.sub(r'src="data:[^"]*"', 'src=""', html)


def views(result: AuditResult) -> list[Any]:
    exhibits = [e for f in result.findings for e in f.exhibits.values()]
    assert {type(e) for e in exhibits} == set(EXHIBIT_KINDS)
    return [result, AuditReport(result), *result.findings, *exhibits]


def test_fragments_hold_nothing_that_viewers_strip_or_forbid(result: AuditResult) -> None:
    for record in views(result):
        parsed = shape(fragment(record))
        assert parsed.faults == []
        tags = {tag for tag, _ in parsed.elements}
        assert tags <= {
            "div",
            "style",
            "h3",
            "h4",
            "p",
            "b",
            "span",
            "table",
            "caption",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "ul",
            "li",
            "img",
            "figure",
            "figcaption",
            "br",
        }, tags
        for tag, attributes in parsed.elements:
            assert not any(name.startswith("on") or name in ("style", "id") for name in attributes)
            if tag == "img":
                assert (attributes["src"] or "").startswith(("data:image/svg+xml;base64,", "data:image/png;base64,"))
                assert attributes["alt"]


def test_fragments_are_small_without_their_pictures(result: AuditResult) -> None:
    for record in views(result):
        assert len(without_pictures(fragment(record)).encode()) < 30_000


def test_style_rules_stand_under_the_fragment_only(result: AuditResult) -> None:
    css = re.search(r"<style>(.*?)</style>", fragment(result), re.DOTALL)
    assert css is not None
    selectors = [s.strip() for block in re.findall(r"([^{}]+)\{", css.group(1)) for s in block.split(",")]
    assert all(s.startswith(".tl-audit") for s in selectors)


def test_a_finding_keeps_every_number_when_styles_and_pictures_are_stripped(result: AuditResult) -> None:
    text = " ".join(" ".join(shape(re.sub(r"<style>.*?</style>|<img[^>]*>", "", fragment(result["TLA602"]), flags=re.DOTALL)).text).split())
    for words in ("fail", "−0.19", "−0.27 to −0.11", "118", "site = south", "suppressed", "broken"):
        assert words in text


def test_the_audit_view_says_outcome_counts_findings_and_next_step(result: AuditResult) -> None:
    html = AuditReport(result)._repr_html_()
    text = " ".join(" ".join(shape(html).text).split())
    for words in (result.outcome.sentence, "Most urgent findings", "TLA602", "not evaluated", "report.save", "Not assessed"):
        assert words in text
    assert html.count("data:image/svg+xml") == 1


def test_drawings_in_notebooks_are_files_of_their_own_with_an_opaque_ground() -> None:
    uri = re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', fragment(ladder()))
    assert uri is not None
    svg = base64.b64decode(uri.group(1)).decode("utf-8")
    root = ElementTree.fromstring(svg)
    assert root.get("width") == "720"
    assert "var(" not in svg
    assert root.find("{http://www.w3.org/2000/svg}rect").get("fill") == "#ffffff"  # type: ignore[union-attr]


@pytest.mark.parametrize("name", CORPUS)
def test_hostile_text_stays_text(result: AuditResult, name: str) -> None:
    for record in (result, result["TLA602"], result["TLA711"].exhibits["gallery"]):
        parsed = shape(fragment(replace_strings(record, lambda s: s + CORPUS[name])))
        assert parsed.faults == []
        assert "script" not in {tag for tag, _ in parsed.elements}
        assert not any(a.startswith("on") for _, attributes in parsed.elements for a in attributes)


def test_records_show_themselves(result: AuditResult) -> None:
    assert "TLA602" in result["TLA602"]._repr_html_()
    for exhibit in result["TLA403"].exhibits.values():
        assert exhibit.title in exhibit._repr_html_()


def test_what_has_no_view_says_so() -> None:
    with pytest.raises(TypeError, match="Metric has no notebook view"):
        fragment(Metric(name="x", value=None, reason="y"))  # type: ignore[arg-type]


def test_every_exhibit_gives_its_rows_as_a_frame(result: AuditResult) -> None:
    for finding in result.findings:
        for exhibit in finding.exhibits.values():
            assert len(exhibit.to_frame()) == len(exhibit.to_rows()) > 0


def test_the_plain_view_is_short_and_says_what_to_call_next(result: AuditResult) -> None:
    text = repr(AuditReport(result))
    assert len(text.splitlines()) <= 20
    assert "TLA602" in text
    assert "report.save" in text
    hostile = repr(AuditReport(replace_strings(result, lambda s: s + CORPUS["escape"] + CORPUS["bidi"])))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", hostile)


def test_findings_and_exhibits_print_in_few_lines(result: AuditResult) -> None:
    for record in views(result):
        text = repr(record)
        assert 1 <= len(text.splitlines()) <= 20
        assert len(text) < 4000


def test_a_report_is_a_thin_front(result: AuditResult, tmp_path: Any) -> None:
    report = AuditReport(result)
    assert report["TLA501"].metrics["mmd2"].interval == (0.0203, 0.0431)
    assert report.outcome is result.outcome
    assert len(report) == len(result.findings) == len(report.to_frame())
    assert report.json.startswith("{")
    assert report.html.startswith("<!doctype html>")
    assert report.path is None
    paths = report.save(tmp_path)
    assert report.path == paths["html"]
    assert str(paths["html"]) in fragment(report)
    with pytest.raises(KeyError, match="no finding 'TLA999'"):
        report["TLA999"]
    bundle = report._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"}


def test_show_puts_the_page_into_a_frame_that_can_run_nothing(result: AuditResult, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    display = pytest.importorskip("IPython.display")
    monkeypatch.setattr(display, "display", lambda bundle, raw: shown.append(bundle))
    AuditReport(result).show(height=300)
    parsed = shape(shown[0]["text/html"])
    assert [tag for tag, _ in parsed.elements] == ["iframe"]
    assert parsed.elements[0][1]["sandbox"] == ""
    assert (parsed.elements[0][1]["srcdoc"] or "").startswith("<!doctype html>")


def test_show_without_a_notebook_names_the_remedy(result: AuditResult, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "IPython.display", None)
    with pytest.raises(MissingExtra, match="pip install ipykernel"):
        AuditReport(result).show()


# ---- attributions: read by their attributes alone ------------------------------------------------------------------------------------------


class Pixels:
    def picture(self, row: Any, spec: Any, *, title: str) -> Picture:
        return Picture(title=title, alt=f"sample {row}", png=png())

    def map_picture(self, row: Any, values: Any, spec: Any, *, title: str, signed: bool, **more: Any) -> Picture:
        return Picture(title=title, alt=f"map of {row}", png=png(hot=True))

    def map_bars(self, values: Any, players: Any, row: int) -> tuple[Bar, ...]:
        return ()


class Columns(Pixels):
    def picture(self, row: Any, spec: Any, *, title: str) -> None:  # type: ignore[override]
        return None

    def map_picture(self, row: Any, values: Any, spec: Any, *, title: str, signed: bool, **more: Any) -> None:  # type: ignore[override]
        return None

    def map_bars(self, values: Any, players: Any, row: int) -> tuple[Bar, ...]:
        return (Bar(label="age", value=0.4), Bar(label="sex", value=-0.2))


@dataclass
class Maps:
    modality: Any
    count: int = 3
    method: str = "grad_cam"
    signed: bool = True
    seed: int = 7
    budget: int = 256
    layer: str | None = "features.12"
    layer_reason: str | None = "last layer with space"
    quality: Stamp | None = None
    caveats: tuple[str, ...] = ("one caveat",)
    completeness: Any = None
    standard_error: Any = None
    target_names: Any = None
    inputs: Any = field(init=False)

    def __post_init__(self) -> None:
        n = range(self.count)
        self.inputs = SimpleNamespace(
            tensor=[f"t{i}" for i in n], ids=tuple(f"id{i}" for i in n), modality=self.modality, spec=None, players=None
        )
        flat = isinstance(self.modality, Columns)
        self.values = np.ones((self.count, 2) if flat else (self.count, 4, 4))
        self.player_values, self.targets, self.blank = [np.ones(2) for _ in n], list(n), [i == 1 for i in n]
        self.target_names = self.target_names or tuple(f"class {i}" for i in n)


def test_attributions_of_images_are_pictures_with_words() -> None:
    html = attribution_fragment(Maps(Pixels(), completeness=[-0.012, 0.0, 0.1]))
    assert html.count("data:image/png;base64,") == 6
    for words in (
        "id0 <span",
        "class 0",
        "no signal",
        "layer features.12 (last layer with space)",
        "seed 7",
        "not checked",
        "one caveat",
        "\u22120.012",
        "it is not the reason for the decision",
    ):
        assert words in html


def test_attributions_of_tables_are_bars_and_a_table() -> None:
    html = attribution_fragment(Maps(Columns(), quality=Stamp(state="unreliable", text="fails TLA703")))
    assert html.count("data:image/svg+xml;base64,") == 2  # the blank one has no bars
    assert html.count("no signal") == 1
    assert "age" in html
    assert "fails TLA703" in html


def test_many_samples_are_cut_and_the_cut_is_said() -> None:
    assert "16 of 40 samples" in attribution_fragment(Maps(Pixels(), count=40))
