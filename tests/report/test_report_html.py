"""The page: its walls, its sections, its words."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hostile import CORPUS, harmless_twin, replace_strings, shape

from tl_audit.errors import RecordError
from tl_audit.records.exhibits import GridRow, ImageGrid, Picture
from tl_audit.records.findings import STATUSES, AuditResult, Finding
from tl_audit.records.metrics import Measurement
from tl_audit.records.schema import load_json, record_hash, report_hash, to_json
from tl_audit.report import render_html, save
from tl_audit.report.html import environment, templates_dir
from tl_audit.report.page import EXAMPLE_POLICY, FIXED_SENTENCE, SECTION_TITLES
from tl_audit.report.text import shorten, visible

REPORT = Path(__file__).resolve().parents[2] / "tl_audit" / "report"
ELEMENTS = frozenset(
    re.findall(
        r"\S+",
        """
        html head meta title style body a p main section header footer nav h1 h2 h3 dl div dt dd span b strong code
        svg circle path rect line text desc ul ol li table caption thead tbody tr th td details summary figure
        figcaption img article pre br wbr
        """,
    )
)
ATTRIBUTES = frozenset(
    re.findall(
        r"\S+",
        """
        http-equiv content charset name lang href class id role tabindex scope alt src width height viewbox d x y x1
        y1 x2 y2 cx cy r rx transform text-anchor aria-label aria-labelledby aria-hidden aria-level focusable
        data-origin
        """,
    )
)
FORBIDDEN = (
    "compliant", "complies", "certified", "certifies", "approved by tl_audit", "bias-free", "fair", "safe", "trustworthy", "risk-free", "guaranteed", "proves", "no bias",
    "no discrimination", "disparate impact", "meets the ai act", "explains why", "trust score", "acceptable risk",
)  # fmt: skip


def forbidden_in(text: str) -> list[str]:
    flat = " ".join(text.lower().split())
    found = [word for word in FORBIDDEN if re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", flat)]
    return found + (["unbiased"] if re.search(r"\bunbiased\b(?! estimator)", flat) else [])


def test_only_known_elements_and_attributes_appear(page: str) -> None:
    parsed = shape(page)
    assert parsed.faults == []
    assert parsed.open == []
    assert {tag for tag, _ in parsed.elements} <= ELEMENTS
    assert {name for _, attributes in parsed.elements for name in attributes} <= ATTRIBUTES


def test_nothing_is_loaded_and_nothing_runs(page: str) -> None:
    for tag, attributes in shape(page).elements:
        assert tag != "script"
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        if tag == "a":
            assert (attributes["href"] or "").startswith(("#", "https:"))
        if tag == "img":
            assert (attributes["src"] or "").startswith(("data:image/png;base64,", "data:image/webp;base64,"))
    assert "@import" not in page
    assert "url(" not in page


def test_the_policy_of_the_page_comes_first_and_knows_the_style(page: str) -> None:
    head = page[page.index("<head>") + 6 :].lstrip()
    assert head.startswith('<meta http-equiv="Content-Security-Policy"')
    assert head.split(">", 2)[1].strip().startswith('<meta charset="utf-8"')
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style.group(1).encode()).digest()).decode()
    assert f"style-src &#39;sha256-{digest}&#39;" in page
    assert page.count("<style") == 1


def test_markup_is_declared_in_one_module_only() -> None:
    users = [p.name for p in sorted(REPORT.glob("*.py")) if re.search(r"\bMarkup\b", p.read_text(encoding="utf-8"))]
    assert users == ["html.py"]
    texts = [p.read_text(encoding="utf-8") for p in templates_dir().rglob("*.html")]
    assert not any("|safe" in t.replace(" ", "") or "autoescape" in t for t in texts)
    assert environment().autoescape is True


def test_all_sections_are_printed_in_order_and_links_have_targets(page: str) -> None:
    ids = [a["id"] for _, a in shape(page).elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert [i for i in ids if i and i.startswith("sec-")] == [f"sec-{letter}" for letter in SECTION_TITLES]
    targets = [str(a["href"])[1:] for tag, a in shape(page).elements if tag == "a" and str(a["href"]).startswith("#")]
    assert set(targets) <= set(ids)
    for _, attributes in shape(page).elements:
        assert set(str(attributes.get("aria-labelledby") or "").split()) <= set(ids)


def test_a_record_without_findings_still_prints_every_section_with_a_reason(result: AuditResult) -> None:
    empty = result.model_copy(update={"findings": (), "declared": {}, "caveats": (), "subject": type(result.subject)()})
    page = render_html(empty)
    for letter in "cdefghi":
        assert "was selected" in page[page.index(f'id="sec-{letter}"') : page.index(f'id="sec-{chr(ord(letter) + 1)}"')]


def test_page_one_holds_what_a_compliance_officer_asks_for(page: str, result: AuditResult) -> None:
    text = " ".join(shape(page[page.index('id="sec-a"') : page.index('class="contents"')]).text)
    for words in (
        result.title,
        EXAMPLE_POLICY,
        FIXED_SENTENCE,
        "DRAFT",
        result.outcome.sentence,
        "TLA602",
        "TLA401",
        "metric_rationale",
        "waived until 2027-03-31",
        "samples on",
    ):
        assert words in " ".join(text.split())
    for status, n in result.outcome.counts.items():
        assert f"{n} {status.replace('_', ' ')}" in " ".join(text.split())


def test_every_finding_of_page_one_links_to_its_block_and_the_block_to_the_note_on_judging(page: str) -> None:
    first = page[: page.index('class="contents"')]
    for target in re.findall(r'href="#(f-\d+)"', first):
        block = page[page.index('<article class="finding') :]
        block = block[block.index(f'id="{target}"') :]
        assert "</article>" in block
    blocks = re.findall(r"<article.*?</article>", page, re.DOTALL)
    assert all('href="#note-1"' in b for b in blocks if "limits of the policy" in b)


def test_every_status_has_its_own_word_and_shape(page: str, result: AuditResult) -> None:
    assert {f.status for f in result.findings} == set(STATUSES)
    from tl_audit.report.charts import status_shapes

    assert len(set(status_shapes().values())) == len(STATUSES)
    assert all(inner in page for inner in status_shapes().values())


def test_no_forbidden_word_stands_outside_declared_text(page: str) -> None:
    assert forbidden_in(" ".join(shape(page).plain_text)) == []
    for path in templates_dir().rglob("*.html"):
        assert forbidden_in(re.sub(r"\{[{%].*?[%}]\}", " ", path.read_text(encoding="utf-8"))) == [], path


def test_the_search_for_forbidden_words_finds_one() -> None:
    assert forbidden_in("This model is\nfair and unbiased.") == ["fair", "unbiased"]
    assert forbidden_in("fairness of an unbiased estimator in safetensors") == []


def test_origins_stand_beside_blocks(page: str) -> None:
    for origin in ("measured", "declared", "missing"):
        assert f'class="origin origin-{origin}"' in page


def test_tables_have_captions_and_scopes_and_drawings_have_words(page: str) -> None:
    assert page.count("<table") == page.count("<caption")
    for tag, attributes in shape(page).elements:
        if tag == "th":
            assert attributes.get("scope") in ("row", "col")
        if tag == "img":
            assert attributes.get("alt")
    for drawing in re.findall(r'<svg class="chart".*?</svg>', page, re.DOTALL):
        assert 'role="img"' in drawing
        assert re.search(r"<title id=[^>]*>[^<]+</title><desc id=[^>]*>[^<]+</desc>", drawing)


def test_the_page_has_landmarks_language_one_heading_and_a_skip_link(page: str) -> None:
    for piece in ('<html lang="en">', "<main>", "<nav ", "<footer>", 'class="skip" href="#sec-a"'):
        assert piece in page
    assert page.count("<h1") == 1


def test_tables_needed_for_a_verdict_are_not_folded_away(page: str) -> None:
    for block in re.findall(r"<article.*?</article>", page, re.DOTALL):
        visible_part = re.sub(r"<details.*?</details>", "", block, flags=re.DOTALL)
        for code in re.findall(r"(TLA\d+): (?:what was measured|limits of the policy)</caption>", block):
            assert f"{code}: " in visible_part


def test_long_tables_fold_and_keep_every_row(page: str) -> None:
    assert "further rows" in page
    for i in range(4, 20):
        assert page.count(f">class {i:02d}<") == 1


def test_hashes_are_those_of_the_record(page: str, result: AuditResult) -> None:
    assert record_hash(to_json(result)) in page
    assert report_hash(result) in page


def test_the_page_is_a_function_of_the_file_alone(tmp_path: Path, result: AuditResult) -> None:
    paths = save(result, tmp_path)
    assert render_html(load_json(paths["json"])) == paths["html"].read_text(encoding="utf-8")
    assert render_html(load_json(paths["json"]), record_text=paths["json"].read_text(encoding="utf-8")) == paths["html"].read_text(
        encoding="utf-8"
    )


def test_hash_seeds_do_not_change_the_page(result: AuditResult, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(to_json(result), encoding="utf-8")
    code = f"from tl_audit.records.schema import load_json; from tl_audit.report import render_html; import hashlib; print(hashlib.sha256(render_html(load_json({str(path)!r})).encode()).hexdigest())"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1


def test_the_page_matches_the_golden_file(page: str) -> None:
    golden = Path(__file__).resolve().parents[1] / "golden" / "report.html"
    assert page == golden.read_text(encoding="utf-8"), "the page changed; look at it, then run: python tests/golden/regenerate.py"


def test_the_page_stays_small_and_counts_pictures_that_were_left_out(result: AuditResult) -> None:
    data = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(300_000)).decode()
    rows = tuple(GridRow(id=f"s{i:03d}", pictures=(Picture(title="map", alt="a map", png=data),)) for i in range(40))
    grid = ImageGrid(id="gallery", title="Many maps", how_to_read="x", alt="x", caption="x", rows=rows, samples="on")
    finding = Finding(
        code="TLA711",
        section="explanations",
        title="Gate",
        status="info",
        reason="x",
        severity="high",
        measurement=Measurement(summary="x", exhibits=(grid,)),
    )
    page = render_html(result.model_copy(update={"findings": (finding,)}))
    kept = page.count('src="data:image/png')
    assert len(page.encode()) <= 5_000_000
    assert 0 < kept < 40
    assert f"{40 - kept} pictures left out for size" in page


def test_a_long_gallery_does_not_take_the_place_of_the_grids_after_it(result: AuditResult) -> None:
    data = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(300)).decode()
    grids = tuple(
        ImageGrid(
            id=name, title=name, how_to_read="x", alt="x", caption="x", samples="on",
            rows=tuple(GridRow(id=f"s{i}", pictures=(Picture(title=f"{name} {i} left", alt="a", png=data), Picture(title=f"{name} {i} right", alt="a", png=data))) for i in range(n)),
        )
        for name, n in (("gallery", 40), ("drift", 2))
    )  # fmt: skip
    finding = Finding(
        code="TLA711", section="explanations", title="Gate", status="info", reason="x", severity="high",
        measurement=Measurement(summary="x", exhibits=grids),
    )  # fmt: skip
    page = render_html(result.model_copy(update={"findings": (finding,)}))
    assert page.count('src="data:image/png') == 64
    assert "drift 1 right" in page
    assert "gallery 29 right" in page
    assert "gallery 30 left" not in page  # whole rows, no empty frames
    assert "20 pictures left out for size" in page


@pytest.mark.parametrize("png", ["PHN2Zz4=", "not base64!", base64.b64encode(b"GIF89a....").decode()])
def test_pictures_are_png_or_webp_or_the_record_is_refused(result: AuditResult, png: str) -> None:
    grid = ImageGrid(
        id="gallery",
        title="x",
        how_to_read="x",
        alt="x",
        caption="x",
        rows=(GridRow(id="s", pictures=(Picture(title="m", alt="m", png=png),)),),
        samples="on",
    )
    finding = Finding(
        code="TLA711",
        section="explanations",
        title="Gate",
        status="info",
        reason="x",
        severity="high",
        measurement=Measurement(summary="x", exhibits=(grid,)),
    )
    with pytest.raises(RecordError, match=r"neither PNG nor WebP|not base64"):
        render_html(result.model_copy(update={"findings": (finding,)}))


@pytest.mark.parametrize("name", CORPUS)
def test_hostile_strings_change_no_element(result: AuditResult, name: str) -> None:
    hostile = CORPUS[name]
    twin = harmless_twin(visible(hostile))
    attacked = shape(render_html(replace_strings(result, lambda s: s + hostile)))
    calm = shape(render_html(replace_strings(result, lambda s: s + twin)))
    assert attacked.faults == []
    assert attacked.items == calm.items


def test_the_hostile_walk_reaches_the_strings_of_every_record_type(result: AuditResult) -> None:
    page = render_html(replace_strings(result, lambda s: s + "QQQ"))
    assert page.count("QQQ") > 800


def test_control_and_bidi_characters_are_shown_as_escapes(result: AuditResult) -> None:
    page = render_html(result.model_copy(update={"title": "a\u202eb\x1b\x00c\u2028"}))
    assert "a\\u202eb\\x1b\\x00c\\u2028" in page
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028]", page)


def test_template_syntax_in_outside_text_is_not_evaluated(result: AuditResult) -> None:
    page = render_html(result.model_copy(update={"title": "{{ 7*7 }}{% if 1 %}"}))
    assert "{{ 7*7 }}{% if 1 %}" in page


def test_shortening_cuts_at_words_and_shows_it() -> None:
    assert shorten("one two three four", 14) == "one two three…"
    assert shorten("short", 12) == "short"


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1])
def test_text_and_marks_have_the_contrast_of_wcag_aa(theme: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", (templates_dir() / "theme.css").read_text(encoding="utf-8"), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", blocks[theme]))
    for ground in ("ground", "panel", "stripe"):
        for ink in ("ink", "dim", "link", *(f"st-{s}" for s in STATUSES)):
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    for line in ("s0", "s1", "s2", "outline", "rule-strong"):
        assert contrast(colours[line], colours["ground"]) >= 3.0, line


# ---- in a browser, where there is one -----------------------------------------------------------------------------------------------------

chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(chromium is None, reason="no chromium on this machine")
needs_poppler = pytest.mark.skipif(shutil.which("pdftotext") is None, reason="no poppler-utils on this machine")


def browse(tmp_path: Path, *arguments: str) -> str:
    base = [
        str(chromium),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-first-run",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    return subprocess.run([*base, *arguments], capture_output=True, text=True, timeout=120, check=True).stdout


def printed(tmp_path: Path, html: str, size: str) -> list[str]:
    """The text of every printed page. The policy of the page is taken out, because the paper size is written into its style."""
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html).replace("size: auto;", f"size: {size};")
    source, target = tmp_path / "page.html", tmp_path / "page.pdf"
    source.write_text(html, encoding="utf-8")
    browse(tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={target}", source.as_uri())
    return subprocess.run(["pdftotext", "-layout", str(target), "-"], capture_output=True, text=True, check=True).stdout.split("\f")[:-1]


def crowded(result: AuditResult) -> AuditResult:
    """As much as page 1 can be asked to hold: long reasons, many gaps, every finding open."""
    words = "the whole interval lies beyond the limit and the reason takes all the room that a reason may take on the first page of a report, and then some more "
    findings = []
    for i in range(40):
        status = ("fail", "warn", "inconclusive", "not_evaluated")[i % 4]
        findings.append(
            result["TLA602"].model_copy(
                update={
                    "code": f"TLA{500 + i}",
                    "status": status,
                    "reason": words * 2,
                    "waived_until": "2027-01-01",
                    "waived_by": "M. Example of a long name",
                }
            )
            if status != "not_evaluated"
            else Finding(
                code=f"TLA{500 + i}",
                section="shift",
                title=f"A check with a title of some length {i}",
                status="not_evaluated",
                severity="high",
                reason=f"missing {i} " + words,
                missing=(f"input {i % 11}",),
            )
        )
    outcome = result.outcome.model_copy(
        update={
            "declarations_missing": tuple(f"declaration_{i}" for i in range(30)),
            "partial": "interrupted by SIGTERM after 31 of 40 checks",
            "blocked_by": tuple(f.code for f in findings),
        }
    )
    declared = {**result.declared, "purpose": words * 3, "out_of_scope": words * 3}
    return result.model_copy(
        update={
            "findings": tuple(findings),
            "outcome": outcome,
            "declared": declared,
            "title": "A title that is long enough to need two lines on the first page of a printed report of an audit",
        }
    )


@needs_browser
@needs_poppler
@pytest.mark.parametrize("size", ["A4", "Letter"])
@pytest.mark.parametrize("full", [False, True])
def test_the_summary_fits_one_sheet_and_every_page_says_draft(result: AuditResult, tmp_path: Path, size: str, full: bool) -> None:
    pages = printed(tmp_path, render_html(crowded(result) if full else result), size)
    assert FIXED_SENTENCE[:40] in " ".join(pages[0].split())
    assert pages[1].strip().split("\n")[0].startswith("DRAFT")
    assert "Contents" in pages[1]
    assert all("DRAFT" in p for p in pages)
    assert all(f"page {i + 1} of {len(pages)}" in p for i, p in enumerate(pages))
    signed = [p for p in pages if "Independent reviewer" in p]
    assert len(signed) == 1
    assert "Every finding that fails" not in signed[0]


@needs_browser
def test_a_browser_reads_the_same_elements_even_from_hostile_text(result: AuditResult, tmp_path: Path) -> None:
    attack = CORPUS["script"] + CORPUS["handler"] + CORPUS["svg"] + CORPUS["table"]
    html = render_html(replace_strings(result, lambda s: s + attack))
    path = tmp_path / "page.html"
    path.write_text(html, encoding="utf-8")
    seen = shape(browse(tmp_path, "--dump-dom", path.as_uri()))
    ours = shape(html)
    assert [tag for tag, _ in seen.elements] == [tag for tag, _ in ours.elements]
