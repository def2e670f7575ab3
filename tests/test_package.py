"""The package as users meet it: quick imports, import contract, and a wheel that renders a report outside the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(code: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **more)  # type: ignore[call-overload]


@pytest.mark.parametrize("module", ["tl_audit", "tl_audit.cli", "tl_audit.report"])
def test_importing_the_doors_loads_no_torch(module: str) -> None:
    done = run(f"import sys, {module}; print(sorted(m for m in ('torch', 'pytorch_lightning', 'shap', 'captum') if m in sys.modules))")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_help_answers_at_once_and_loads_no_torch() -> None:
    code = "import sys; from tl_audit.cli import main; sys.argv = ['tl-audit', '--help']\ntry:\n    main()\nexcept SystemExit:\n    pass\nprint('torch' in sys.modules, 'pandas' in sys.modules, 'pydantic' in sys.modules)"
    done = run(code)
    assert done.stdout.strip().endswith("False False False"), done.stdout[-300:] + done.stderr[-300:]
    best = 10.0
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "tl_audit", "--help"], capture_output=True, check=True)
        best = min(best, time.perf_counter() - started)
    assert best < 2.0, f"--help took {best:.2f} s at best; the goal is 0.4 s on a quiet machine"


def test_public_names_are_all_there() -> None:
    import tl_audit

    for name in tl_audit.__all__:
        assert getattr(tl_audit, name) is not None


def test_the_import_contract_holds() -> None:
    tool = Path(sys.executable).parent / "lint-imports"
    if not tool.exists():
        pytest.skip("import-linter is not installed")
    done = subprocess.run([str(tool)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_the_wheel_renders_a_report_outside_the_repository(tmp_path: Path) -> None:
    build = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stdout[-1500:] + build.stderr[-1500:]
    wheel = next((tmp_path / "dist").glob("*.whl"))
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    sample = ROOT / "reports" / "sample" / "report.json"
    code = (
        "import tl_audit, sys, pathlib\n"
        f"assert str(pathlib.Path(tl_audit.__file__)).startswith({str(site)!r}), tl_audit.__file__\n"
        "from tl_audit.cli import main\n"
        f"sys.argv = ['tl-audit', 'render', {str(sample)!r}, '--out', 'page']\n"
        "sys.exit(main())\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(site)}
    done = run(code, cwd=str(tmp_path), env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "<h1" in (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
