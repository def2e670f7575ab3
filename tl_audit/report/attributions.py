"""A page of its own for attributions that were made on the command line: the notebook's views in a script-free document with the reader's theme."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tl_audit.records.exhibits import Intervals
from tl_audit.report.html import environment, read_css, squeeze
from tl_audit.report.notebook import attribution_fragment, comparison_fragment, importance_fragment
from tl_audit.report.page import Counters

__all__ = ["Part", "attribution_page"]


@dataclass(frozen=True)
class Part:
    """One part of the page.

    Attributes
    ----------
    kind : which view
    shown : an ``Attribution``, ``Comparison`` or ``Importance``, read by its attributes
    heading : its line in the list of parts
    labels : per sample the names of its parts with their readings
    dependence : columns whose dependence is drawn (importance); None: the first
    change : the same importance beside that of another model
    """

    kind: Literal["maps", "comparison", "importance"]
    shown: Any  # Any: report may not import attribution
    heading: str
    labels: Sequence[Sequence[str]] | None = None
    dependence: Sequence[str] | None = None
    change: Intervals | None = None


def attribution_page(parts: Sequence[Part], *, title: str, facts: Sequence[tuple[str, str]] = ()) -> str:
    """The page of attributions: no script, nothing loaded from elsewhere, style allowed by its hash alone.

    Parameters
    ----------
    parts : what is shown, in order
    facts : name and value of what a reader must know first (model, input, command)
    """
    ids = Counters()
    bodies = []
    for part in parts:
        if part.kind == "importance":
            bodies.append(importance_fragment(part.shown, part.dependence, part.change, page=ids))
        elif part.kind == "comparison":
            bodies.append(comparison_fragment(part.shown, part.labels, page=ids))
        else:
            bodies.append(attribution_fragment(part.shown, part.labels, page=ids))
    style = squeeze("".join(read_css(n) for n in ("theme.css", "charts.css", "notebook/strips.css", "notebook.css", "attributions.css")))
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    csp = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    page = environment().get_template("attributions.html").render(
        title=title, csp=csp, style=style, facts=list(facts), headings=[part.heading for part in parts]
    )  # fmt: skip
    # Places are comments: outside text is escaped, so that it can never spell one. Split once, so that no body is searched.
    out = page
    for number, body in reversed(list(enumerate(bodies, 1))):
        before, _, after = out.rpartition(f"<!-- part {number} -->")
        out = before + body + after
    return out + "\n"
