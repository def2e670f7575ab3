"""A page of its own for attributions that were made on the command line: the notebook's view in a script-free document."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

from tl_audit.report.html import environment
from tl_audit.report.notebook import attribution_fragment

__all__ = ["attribution_page"]

_PLACE = "<!-- maps -->"  # outside text is escaped, so that it can never spell this


def attribution_page(attribution: Any, *, title: str) -> str:  # Any: attribution.base.Attribution; report may not import it
    """The page of an ``Attribution``: no script, nothing loaded from elsewhere, style allowed by its hash alone."""
    body = attribution_fragment(attribution)
    styles = re.findall(r"<style>(.*?)</style>", body, flags=re.DOTALL)
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode('ascii')}'" for s in styles)
    csp = f"default-src 'none'; style-src {hashes}; img-src data:; base-uri 'none'; form-action 'none'"
    page = environment().get_template("attributions.html").render(title=title, csp=csp)
    return page.replace(_PLACE, body, 1) + "\n"
