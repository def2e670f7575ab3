"""The demo finds what was planted, accuses nothing that is sound, and its clean control stays quiet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tl_audit.demo import run_demo
from tl_audit.records.findings import AuditResult
from tl_audit.records.schema import load_json

ACCUSED = {"warn", "fail"}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[AuditResult, Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("demo") / "out"
    done = subprocess.run([sys.executable, "-m", "tl_audit", "demo", "--out", str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return load_json(out / "report.json"), out, done


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    # the explanation checks are exercised by the planted run
    result, _ = run_demo(tmp_path_factory.mktemp("clean") / "out", clean=True, overrides={"checks.ignore": ["TLA7"]})
    return result


def test_the_corner_mark_is_found(planted) -> None:
    result = planted[0]
    assert result["TLA608"].status in ACCUSED, result["TLA608"].reason
    assert "corner mark" in result["TLA608"].reason
    assert {result["TLA308"].status, result["TLA509"].status} & ACCUSED


def test_the_thin_site_is_found_and_named(planted) -> None:
    result = planted[0]
    assert result["TLA602"].status in ACCUSED, result["TLA602"].reason
    assert "south" in result["TLA602"].reason
    gap = result["TLA602"].select("accuracy_gap", site="south")
    assert gap.value is not None
    assert gap.value < -0.1


def test_three_methods_point_to_the_mark(planted) -> None:
    found = planted[0]["TLA707"]
    for method in ("grad_cam", "kernel_shap", "lime"):
        for name in ("cue_mass_excess", "cue_mass_over_placebo"):
            one = found.select(name, method=method, cue="corner mark")
            assert one.interval is not None
            assert one.interval[0] > 0, f"{method}: {one.value}"


def test_the_unfaithful_explainer_is_stamped_wherever_it_appears_and_the_others_are_not(planted) -> None:
    result = planted[0]
    assert result["TLA703"].status == "fail"
    assert result["TLA702"].status != "pass"
    stamps = {method: str(result["TLA711"].params[f"stamp:{method}"]) for method in ("edge_map", "grad_cam", "kernel_shap", "lime")}
    assert stamps.pop("edge_map").startswith("unreliable: not reliable: fails TLA703")
    assert all(stamp.startswith("passed") for stamp in stamps.values()), stamps
    shown = [e for f in result.findings if f.measurement is not None for e in f.measurement.exhibits]
    pictures = [p for e in shown if e.kind == "ImageGrid" for row in e.rows for p in row.pictures]
    mine = [one for one in (*shown, *pictures) if getattr(one, "method", None) == "edge_map"]
    assert len(mine) > 3
    assert all(one.stamp is not None and one.stamp.state == "unreliable" for one in mine)


def test_what_is_sound_is_not_accused(planted) -> None:
    result = planted[0]
    for code in (
        "TLA101",
        "TLA102",
        "TLA103",
        "TLA109",
        "TLA110",
        "TLA112",
        "TLA201",
        "TLA204",
        "TLA206",
        "TLA208",
        "TLA301",
        "TLA401",
        "TLA502",
        "TLA611",
        "TLA901",
    ):
        assert result[code].status not in ACCUSED | {"error"}, f"{code}: {result[code].reason}"
    assert result["TLA103"].status == "pass"
    assert result.outcome.counts["error"] == 0
    assert result.subject.target is not None
    assert result.subject.target.n >= 500


def test_the_clean_control_stays_quiet(clean: AuditResult) -> None:
    for code in ("TLA602", "TLA608", "TLA308", "TLA103", "TLA109", "TLA201"):
        assert clean[code].status not in ACCUSED | {"error"}, f"{code}: {clean[code].reason}"
    # the two devices truly differ: pictures of every digit look different on the second one (501, 503, 507), the base's stored statistics are those
    # of the first (506), no picture of the first lies near them (207), and the adapted model, made for the second, answers differently on the first
    # (505); harm is judged by TLA509
    allowed = {"TLA207", "TLA501", "TLA503", "TLA505", "TLA506", "TLA507"}
    loud = {f.code: f.reason for f in clean.findings if f.status in ACCUSED and f.code not in allowed}
    assert not loud


def test_the_demo_repeats_from_its_own_files_without_running_a_model_twice(planted, tmp_path: Path) -> None:
    result, out, done = planted
    assert "report" in done.stdout
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "corner mark" in page
    again = subprocess.run(
        [
            sys.executable,
            "-m",
            "tl_audit",
            "run",
            str(out / "audit.toml"),
            "--out",
            str(tmp_path),
            "--policy",
            "strict",
            "--fail-on",
            "never",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again.stdout[-2000:] + again.stderr[-2000:]
    second = load_json(tmp_path / "report.json")
    assert second["TLA301"].metrics["accuracy"].value == result["TLA301"].metrics["accuracy"].value
    assert second.policy.sha256 != result.policy.sha256


def test_the_record_does_not_depend_on_where_the_data_lie(planted) -> None:
    _, out, _ = planted
    text = (out / "report.json").read_text(encoding="utf-8")
    assert str(out) not in text
    assert "tl-audit run audit.toml" in text
