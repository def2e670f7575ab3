"""The golden record and its page, made once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # golden_record and hostile are plain modules of this folder

from golden_record import golden

from tl_audit.records.findings import AuditResult
from tl_audit.report import render_html


@pytest.fixture(scope="session")
def result() -> AuditResult:
    return golden()


@pytest.fixture(scope="session")
def page(result: AuditResult) -> str:
    return render_html(result)
