"""tl_audit explains and audits adapted models.

Everything public is loaded on first use, so that ``import tl_audit`` is quick and loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Alignment": "tl_audit.finetune",
    "Attribution": "tl_audit.attribution.base",
    "AuditReport": "tl_audit.report",
    "Classification": "tl_audit.finetune",
    "Cue": "tl_audit.modality.base",
    "Domain": "tl_audit.subject",
    "Importance": "tl_audit.finetune",
    "Model": "tl_audit.models",
    "Plan": "tl_audit.finetune",
    "Preprocessing": "tl_audit.records.preprocessing",
    "Regression": "tl_audit.finetune",
    "Ranking": "tl_audit.ranking",
    "Stage": "tl_audit.finetune",
    "Subject": "tl_audit.subject",
    "TLAuditError": "tl_audit.errors",
    "Teacher": "tl_audit.finetune",
    "Value": "tl_audit.records.values",
    "adapt": "tl_audit.finetune",
    "audit": "tl_audit.auditing",
    "explain": "tl_audit.attribution",
    "explain_all": "tl_audit.attribution",
    "learning_curve": "tl_audit.finetune",
    "group_metrics": "tl_audit.measures.cells",
    "rank_bases": "tl_audit.ranking",
}

__all__ = [*sorted(_WHERE), "__version__"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'tl_audit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])


if TYPE_CHECKING:
    from tl_audit.attribution import explain as explain
    from tl_audit.attribution import explain_all as explain_all
    from tl_audit.attribution.base import Attribution as Attribution
    from tl_audit.auditing import audit as audit
    from tl_audit.errors import TLAuditError as TLAuditError
    from tl_audit.finetune import Alignment as Alignment
    from tl_audit.finetune import Classification as Classification
    from tl_audit.finetune import Importance as Importance
    from tl_audit.finetune import Plan as Plan
    from tl_audit.finetune import Regression as Regression
    from tl_audit.finetune import Stage as Stage
    from tl_audit.finetune import Teacher as Teacher
    from tl_audit.finetune import adapt as adapt
    from tl_audit.finetune import learning_curve as learning_curve
    from tl_audit.measures.cells import group_metrics as group_metrics
    from tl_audit.modality.base import Cue as Cue
    from tl_audit.models import Model as Model
    from tl_audit.ranking import Ranking as Ranking
    from tl_audit.ranking import rank_bases as rank_bases
    from tl_audit.records.preprocessing import Preprocessing as Preprocessing
    from tl_audit.records.values import Value as Value
    from tl_audit.report import AuditReport as AuditReport
    from tl_audit.subject import Domain as Domain
    from tl_audit.subject import Subject as Subject
