"""Reports: from a record to a page, a notebook view, and files. Needs no torch; heavy parts load when first used.

save(result, out_dir)         report.json, report.html and manifest.json, written atomically
render_html(result)           the page as text
AuditReport(result)           a view for notebooks and scripts
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tl_audit.report.html import render_html
    from tl_audit.report.view import AuditReport
    from tl_audit.report.writing import save

__all__ = ["AuditReport", "render_html", "save"]

_HOMES = {"AuditReport": "view", "render_html": "html", "save": "writing"}


def __getattr__(name: str) -> Any:  # Any: a module attribute of any type, loaded on first use
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
