"""What an audit saw row by row, offered as ``fairlearn.metrics.MetricFrame``. Lives in the process of the audit alone and is never written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tl_audit.errors import ConfigError
from tl_audit.policy.toml import did_you_mean

if TYPE_CHECKING:
    from fairlearn.metrics import MetricFrame

NOT_HERE = (
    "metric_frame() needs the labels and answers of single samples, which report.json does not hold: "
    "call it on the report that audit() returned, in the same session (with evidence_dir= a second audit is quick)"
)


@dataclass(frozen=True)
class ObservedRows:
    """Labels and answers of one model on one domain: the rows that TLA601 judges.

    Attributes
    ----------
    classes : class names in the model's output order
    truth, predicted : (N,) class index
    losses : (N,) negative log-likelihood (nats)
    groups : column -> (N,) text, "(missing)" where there is none
    positive : declared positive class, None where there is none
    """

    classes: tuple[str, ...]
    truth: Any  # Any: NumPy arrays; this package does without NumPy until numbers are asked for
    predicted: Any
    losses: Any
    groups: Mapping[str, Any]
    positive: str | None


@dataclass
class Observed:
    """The rows of an audit by (model, domain), and for pairs without any the reason."""

    rows: dict[tuple[str, str], ObservedRows] = field(default_factory=dict)
    why_not: dict[tuple[str, str], str] = field(default_factory=dict)

    def of(self, model: str, domain: str) -> ObservedRows:
        """The rows of a pair; ConfigError where the audit did not look at it."""
        if (model, domain) in self.rows:
            return self.rows[model, domain]
        known = ", ".join(f"{m} on {d}" for m, d in sorted(self.rows)) or "none"
        reason = self.why_not.get((model, domain), "this audit did not look at it")
        raise ConfigError(f"there are no rows of model={model!r} on domain={domain!r}: {reason}; there are: {known}")


Metrics = Callable[..., float] | Mapping[str, Callable[..., float]]


def metric_frame(rows: ObservedRows, metrics: Metrics | None, groups: str | Sequence[str] | None) -> MetricFrame:
    """The MetricFrame of these rows; see ``AuditReport.metric_frame``."""
    import numpy as np
    import pandas as pd
    from fairlearn.metrics import MetricFrame

    columns = [groups] if isinstance(groups, str) else list(rows.groups if groups is None else groups)
    if not columns:
        raise ConfigError("metric_frame() needs groups: the domain was audited without any (groups= of its Domain)")
    for column in columns:
        if column not in rows.groups:
            raise ConfigError(
                f"there is no group column {column!r}{did_you_mean(column, rows.groups)}; there are: {', '.join(rows.groups)}"
            )
    names = np.array(rows.classes, dtype=object)
    truth, predicted = names[rows.truth], names[rows.predicted]
    positive: object | None = rows.positive if rows.positive in rows.classes else None
    if positive is not None and len(rows.classes) == 2:
        # 0 and 1, the positive class 1: what metrics of other libraries take without further arguments
        truth, predicted, positive = (truth == positive).astype(int), (predicted == positive).astype(int), 1
    extra = None
    if metrics is None:
        metrics = default_metrics(positive)
        extra = {"nll": {"losses": rows.losses}}
    return MetricFrame(
        metrics=metrics,
        y_true=truth,
        y_pred=predicted,
        sensitive_features=pd.DataFrame({column: rows.groups[column] for column in columns}),
        sample_params=extra,
    )


def default_metrics(positive: object | None) -> dict[str, Callable[..., float]]:
    """Those of TLA601 by name, and n. A rate without a denominator is NaN, never 0."""
    from fairlearn.metrics import count

    def share(hit: Any, base: Any) -> float:
        return float(hit[base].mean()) if base.any() else float("nan")

    def accuracy(y_true: Any, y_pred: Any) -> float:
        return float((y_true == y_pred).mean()) if len(y_true) else float("nan")

    def nll(y_true: Any, y_pred: Any, losses: Any) -> float:
        return float(losses.mean()) if len(losses) else float("nan")

    out: dict[str, Callable[..., float]] = {"n": count, "accuracy": accuracy}
    if positive is not None:
        out |= {
            "selection_rate": lambda y_true, y_pred: share(y_pred == positive, y_pred == y_pred),
            "tpr": lambda y_true, y_pred: share(y_pred == positive, y_true == positive),
            "fpr": lambda y_true, y_pred: share(y_pred == positive, y_true != positive),
            "precision": lambda y_true, y_pred: share(y_true == positive, y_pred == positive),
            "base_rate": lambda y_true, y_pred: share(y_true == positive, y_true == y_true),
        }
    return out | {"nll": nll}
