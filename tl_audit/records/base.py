"""What all records share: frozen, strict, finite, and able to show themselves where a notebook asks."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Pair = tuple[float, float]


class Record(BaseModel):
    """Frozen data. Unknown fields and non-finite numbers are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Displayable(Record):
    """A record that a notebook can show. The view is loaded only when a notebook asks (the one late import of DESIGN.md §4)."""

    def _repr_html_(self) -> str:
        from importlib import import_module

        html: str = import_module("tl_audit.report.notebook").fragment(self)
        return html

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:  # Any: IPython's filters
        return {"text/html": self._repr_html_(), "text/plain": repr(self)}

    def __repr__(self) -> str:
        """At most 20 lines of plain text."""
        from importlib import import_module

        text: str = import_module("tl_audit.report.notebook").plain(self)
        return text

    def to_frame(self) -> Any:  # Any: pandas is imported late, its types are not known here
        """The content as a pandas DataFrame, one row per mark."""
        import pandas as pd

        return pd.DataFrame(self.to_rows())

    def to_rows(self) -> list[dict[str, Any]]:
        """The content as plain rows (column name -> value)."""
        raise NotImplementedError

    def figure(self) -> Any:  # Any: a matplotlib figure; matplotlib is no dependency
        """The content as a matplotlib figure (the only place that needs matplotlib).

        Raises
        ------
        ConfigError : matplotlib is not installed
        TypeError : a record that has no figure
        """
        from importlib import import_module

        return import_module("tl_audit.report.figures").figure(self)
