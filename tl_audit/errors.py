"""The errors that tl_audit raises on purpose.

::

    TLAuditError              exit 2: something the user can put right; printed without traceback
    ├── ConfigError           audit.toml, plan.toml, policy, flags
    ├── DataError             samples, tables, labels, groups, metadata, array shapes
    ├── WeightsError          model files and their contents
    ├── ModelError            modules, heads, layers, outputs
    ├── RecordError           report.json and other records that cannot be read
    └── MissingExtra          an optional package is not installed; carries the install line
    NotEvaluated              raised inside a check: an input that only the data reveals is missing
    Interrupted               the user asked to stop (exit 130 or 143)

A message says what was expected, what came, and what to do. It names the file, column or tensor.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "DataError",
    "Interrupted",
    "MissingExtra",
    "ModelError",
    "NotEvaluated",
    "RecordError",
    "TLAuditError",
    "WeightsError",
]


class TLAuditError(Exception):
    """Something the user can put right. The command line prints it as one sentence and exits with 2."""


class ConfigError(TLAuditError):
    """A configuration, plan, policy or flag that cannot be used."""


class DataError(TLAuditError, ValueError):
    """Samples, tables, labels, groups or arrays that cannot be used."""


class WeightsError(TLAuditError):
    """A model file that is refused, damaged, or does not fit the architecture."""


class ModelError(TLAuditError):
    """A module whose head, layers or outputs cannot be determined."""


class RecordError(TLAuditError):
    """A record (report.json, adaptation.json, ...) that cannot be read."""


class MissingExtra(TLAuditError):
    """An optional package is missing; the message carries the line that installs it."""


class NotEvaluated(Exception):
    """Raised by a check when the data reveal that an input is missing; its text becomes the reason."""


class Interrupted(Exception):
    """The user (SIGINT) or the system (SIGTERM) asked to stop.

    Parameters
    ----------
    exit_code : 130 for SIGINT, 143 for SIGTERM
    """

    def __init__(self, exit_code: int = 130) -> None:
        super().__init__(f"interrupted (exit {exit_code})")
        self.exit_code = exit_code
