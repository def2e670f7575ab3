"""report.html: one file, no script, nothing loaded from elsewhere; a pure function of the text of report.json.

This is the only module that declares text to be markup: drawings made by ``charts`` and the style sheets of ``templates/``.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from tl_audit.errors import RecordError
from tl_audit.records.findings import STATUSES, AuditResult
from tl_audit.records.schema import parse_json, record_hash, report_hash, to_json
from tl_audit.report import charts, numbers
from tl_audit.report.page import EXAMPLE_POLICY, FIXED_SENTENCE, SECTION_TITLES, Pictures, SvgText, build
from tl_audit.report.reference import GLOSSARY, LEGEND, METHODS
from tl_audit.report.text import visible

__all__ = ["MOST_BYTES", "STATUS_WORDS", "environment", "read_css", "render_html", "squeeze", "stylesheet", "templates_dir"]

MOST_BYTES = 5 * 10**6
STATUS_WORDS = {status: status.replace("_", " ") for status in STATUSES}


def templates_dir() -> Path:
    """Where the templates lie: beside the package in an installed wheel, at the repository root in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "templates", package.parent / "templates"):
        if (folder / "report.html").is_file():
            return folder
    raise RecordError(f"the templates of the report are missing beside {package}: the installation is incomplete, install tl-audit again")


def _drawing(text: SvgText) -> Markup:
    """A drawing as markup; refuses anything that ``charts`` did not make."""
    if not isinstance(text, SvgText):
        raise TypeError(f"only drawings are markup, not {type(text).__name__}")
    return Markup(text)


def _shape(status: str) -> Markup:
    return Markup(charts.status_shapes()[status])


def _sheet(css: str) -> Markup:
    """A style sheet of ours inside a style element, where escapes are not read."""
    if "<" in css:
        raise ValueError("a style sheet may not hold '<'")
    return Markup(css)


def _breakable(text: str) -> Markup:
    """Text that may break after underscores, so that long names fit narrow columns; copied text stays as it was."""
    return escape(visible(text)).replace("_", Markup("_<wbr>"))


def _finalize(value: Any) -> Any:  # Any: whatever a template prints
    """What a template may print: text made visible, whole numbers, markup made here. A None or a raw float is a bug of ours."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise TypeError(f"a template printed {value!r}: numbers go through report.numbers, absence gets words")


@lru_cache(maxsize=1)
def environment() -> Environment:
    """The one template environment: escaping always on, undefined names are errors."""
    env = Environment(
        loader=FileSystemLoader(templates_dir()),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["drawing"] = _drawing
    env.filters["shape"] = _shape
    env.filters["sheet"] = _sheet
    env.filters["breakable"] = _breakable
    env.filters["count"] = numbers.count
    env.globals.update(
        status_words=STATUS_WORDS, fixed_sentence=FIXED_SENTENCE, example_policy=EXAMPLE_POLICY, section_titles=SECTION_TITLES,
        glossary=GLOSSARY, legend=LEGEND, methods=METHODS,
    )  # fmt: skip
    return env


def read_css(name: str) -> str:
    return (templates_dir() / name).read_text(encoding="utf-8")


def squeeze(css: str) -> str:
    """A style sheet without comments and indentation."""
    return re.sub(r"\s*\n\s*", "\n", re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL)).strip()


def stylesheet(hash12: str, *, draft: bool) -> str:
    """The style sheet of the page. Hash and standing go to the margins of printed pages; both are ours, never outside text."""
    if not re.fullmatch(r"[0-9a-f]{12}", hash12):
        raise ValueError("the record hash is not hexadecimal")
    margin = f'@page {{ @top-left {{ content: "{"DRAFT – not signed" if draft else "Signed, see section M"}" }} @bottom-left {{ content: "record {hash12}" }} }}'
    return squeeze(read_css("theme.css") + read_css("charts.css") + read_css("page.css") + margin)


def _csp(style: str) -> str:
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def _render(result: AuditResult, hash_: str, pictures: Pictures) -> str:
    page = build(result, record_hash=hash_, report_hash=report_hash(result), pictures=pictures)
    style = stylesheet(hash_[:12], draft=page.draft)
    return environment().get_template("report.html").render(page=page, result=result, style=style, csp=_csp(style)) + "\n"


def render_html(result: AuditResult, *, record_text: str | None = None) -> str:
    """The page of an audit result.

    Parameters
    ----------
    result : what to show
    record_text : the exact text of its report.json, where there is one; the printed record hash is of this text, and the page is made from it

    Raises
    ------
    RecordError : a picture that is not PNG or WebP, or a text that is not a record
    """
    text = to_json(result) if record_text is None else record_text
    # Reading the text back makes the page a function of the file alone: key order, float text and all.
    result = parse_json(text)
    hash_ = record_hash(text)
    html = _render(result, hash_, Pictures())
    spare = Pictures().most_bytes
    while len(html.encode()) > MOST_BYTES and spare > 0:
        spare = max(0, spare - (len(html.encode()) - MOST_BYTES) - 64 * 1024)
        html = _render(result, hash_, Pictures(most_bytes=spare))
    return html
