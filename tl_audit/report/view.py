"""AuditReport: a thin front of one AuditResult for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_audit.records.findings import STATUSES, WORST_FIRST, AuditResult, Finding, Outcome
from tl_audit.records.schema import to_json
from tl_audit.report.text import shorten, visible

if TYPE_CHECKING:
    from fairlearn.metrics import MetricFrame

    from tl_audit.report.rows import Observed

__all__ = ["AuditReport"]


@dataclass(frozen=True, repr=False)
class AuditReport:
    """A view of one audit: shows itself in a notebook, saves itself, gives its findings as data.

    Examples
    --------
    ``report["TLA501"].metrics["mmd2"].interval`` · ``report.to_frame()`` · ``report.save("reports/insects")``
    """

    result: AuditResult
    _saved: list[Path] = field(default_factory=list, compare=False)
    _observed: Observed | None = field(default=None, compare=False)
    "rows of the audit that made this report, in its own process; no file, copy or pickle holds them"

    def __getstate__(self) -> dict[str, Any]:  # Any: the fields
        return {**self.__dict__, "_observed": None}

    def __getitem__(self, code: str) -> Finding:
        return self.result[code]

    def __len__(self) -> int:
        return len(self.result.findings)

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self.result.findings

    @property
    def outcome(self) -> Outcome:
        return self.result.outcome

    @property
    def json(self) -> str:
        """The text of report.json."""
        return to_json(self.result)

    @property
    def html(self) -> str:
        """The page: one file, no script."""
        from tl_audit.report.html import render_html

        return render_html(self.result)

    @property
    def path(self) -> Path | None:
        """Where the page was last saved, None before."""
        return self._saved[-1] if self._saved else None

    def save(self, out_dir: str | Path, *, formats: Iterable[str] = ("html", "json")) -> dict[str, Path]:
        """Write report.html, report.json and manifest.json into a folder; the paths by format."""
        from tl_audit.report.writing import save

        paths = save(self.result, out_dir, formats=formats)
        self._saved.append(paths.get("html", paths["json"]))
        return paths

    def show(self, *, height: int = 900) -> Any:  # Any: IPython's display object, its types are not known here
        """The whole page in a notebook cell, in a frame that can run nothing."""
        from html import escape

        try:
            from IPython.display import display
        except ImportError as error:
            from tl_audit.errors import MissingExtra

            raise MissingExtra(
                'report.show() needs a notebook: pip install ipykernel. Or report.save("reports/x") and open the page'
            ) from error
        frame = f'<iframe sandbox="" width="100%" height="{int(height)}" title="tl_audit report" srcdoc="{escape(self.html, quote=True)}"></iframe>'
        # A raw bundle: IPython warns about frames in its HTML object, and its IFrame takes no srcdoc.
        return display({"text/html": frame, "text/plain": repr(self)}, raw=True)  # type: ignore[no-untyped-call]  # IPython has no types

    def to_frame(self) -> Any:  # Any: a pandas DataFrame, imported late
        """One row per finding: code, section, title, status, severity, reason."""
        return self.result.to_frame()

    def metric_frame(
        self,
        metrics: Callable[..., float] | Mapping[str, Callable[..., float]] | None = None,
        *,
        groups: str | Sequence[str] | None = None,
        model: str = "adapted",
        domain: str = "target",
    ) -> MetricFrame:
        """The labels and answers of this audit as a ``fairlearn.metrics.MetricFrame``, for questions that no check asks.

        Numbers of small groups are not held back here, and have no intervals: TLA601 and TLA602 give those.

        Parameters
        ----------
        metrics : functions of (y_true, y_pred), one or by name, as MetricFrame takes them; None: those of TLA601 and n, NaN where undefined.
            y_true and y_pred are 0 and 1 in a binary task with a positive class (1), else class names
        groups : sensitive features, one name or several (crossed); None: all columns of the domain
        model : "adapted", "base", "previous", "control:head" or "control:scratch"
        domain : "target", "source", "train" or "validation"

        Raises
        ------
        ConfigError : the report was read from a file, no such column, or the audit did not look at this model on this domain

        Examples
        --------
        ``report.metric_frame(groups="sex").by_group`` · ``report.metric_frame(f1_score, groups=["sex", "site"]).difference()``
        """
        from tl_audit.errors import ConfigError
        from tl_audit.report import rows

        if self._observed is None:
            raise ConfigError(rows.NOT_HERE)
        return rows.metric_frame(self._observed.of(model, domain), metrics, groups)

    def __repr__(self) -> str:
        """At most 20 lines: title, outcome, counts, the most urgent findings, what to call next."""
        out = self.result.outcome
        lines = [
            f"AuditReport: {shorten(visible(self.result.title), 90)}",
            shorten(visible(out.sentence), 160),
            "  ".join(f"{s.replace('_', ' ')} {out.counts.get(s, 0)}" for s in STATUSES),
        ]
        urgent = [f for f in self.result.findings if f.status in ("fail", "error", "warn", "inconclusive", "review")]
        urgent.sort(key=lambda f: WORST_FIRST.index(f.status))
        for f in urgent[:8]:
            lines.append(f"  {f.status:<13} {f.code} {shorten(visible(f.title), 40)}: {shorten(visible(f.reason), 100)}")
        if len(urgent) > 8:
            lines.append(f"  and {len(urgent) - 8} more")
        lines.append('Next: report["CODE"], report.to_frame(), report.save("DIR"), report.show()')
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from tl_audit.report.notebook import fragment

        return fragment(self)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Mapping[str, str]:  # Any: IPython's filters
        return {"text/html": self._repr_html_(), "text/plain": repr(self)}
