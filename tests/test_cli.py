"""The command line: quick help, one sentence per mistake, exit codes, escaped output, a small audit from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tl_audit import cli
from tl_audit.errors import Interrupted
from tl_audit.models import build, save_weights
from tl_audit.starting import Answers, write_audit

HOSTILE = "\x1b[31m::error::x\n::warning::\u202e[/oops][link=http://x]y[/link]"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tl_audit(capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command line in this process: exit code, stdout, stderr."""

    def run(*argv: object) -> tuple[int, str, str]:
        code = cli.main([str(a) for a in argv])
        text = capsys.readouterr()
        return code, text.out, text.err

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An audit.toml with a tiny untrained model and forty pictures; the second class is called like a CI command."""
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    rows = ["file,label,site"]
    for i in range(40):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "data" / f"p{i:02d}.png")
        rows.append(f"p{i:02d}.png,{('cat', '::error::dog')[i % 2]},{'n' if i % 3 else 's'}")
    (tmp_path / "data.csv").write_text("\n".join(rows) + "\n")
    torch.manual_seed(0)
    save_weights(build("tl_audit:small_cnn", num_classes=2, input_size=16).module, tmp_path / "w.safetensors")
    (tmp_path / "audit.toml").write_text(
        'title = "Tiny"\n[adapted]\nweights = "w.safetensors"\narch = "tl_audit:small_cnn"\nclasses = ["cat", "::error::dog"]\n'
        '[target]\nkind = "image"\npath = "data"\nmetadata = "data.csv"\ngroups = ["site"]\n'
    )
    return tmp_path


# -- help and speed ---------------------------------------------------------------------------------------------------------


def test_help_answers_at_once_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from tl_audit.cli import main; code = main(['--help']); "
        "heavy = [m for m in ('torch', 'pydantic', 'pandas', 'numpy', 'scipy', 'rich') if m in sys.modules]; print(code, heavy)"
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert "doctor" in done.stdout
    assert min(seconds) < 0.4


def test_every_command_has_help(tl_audit: Run) -> None:
    for command in (
        "demo",
        "init",
        "adapt",
        "run",
        "explain",
        "render",
        "checks",
        "policy",
        "doctor",
        "selftest",
        "policy lint",
        "policy show",
    ):
        code, out, _ = tl_audit(*command.split(), "--help")
        assert code == 0
        assert "Usage: tl-audit" in out


def test_the_version_is_printed(tl_audit: Run) -> None:
    assert tl_audit("--version")[1].startswith("tl-audit ")


# -- mistakes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["rnu"], "No such command 'rnu'"),
        (["run"], "Missing argument 'audit.toml'"),
        (["run", "none.toml"], "none.toml cannot be read"),
        (["run", "audit.toml", "--frobnicate"], "No such option"),
        (["run", "audit.toml", "--fail-on", "failure"], 'did you mean "fail"'),
        (["run", "audit.toml", "--format", "htlm"], 'did you mean "html"'),
        (["run", "audit.toml", "--format", "sarif"], "comes later"),
        (["run", "audit.toml", "--budget", "10m"], "--budget comes later"),
        (["run", "audit.toml", "--policy", "strikt"], 'did you mean "strict"'),
        (["run", "audit.toml", "--policy", "none.toml"], "there is no file none.toml"),
        (["run", "audit.toml", "--stage", "relase"], 'did you mean "release"'),
        (["run", "audit.toml", "--select", "XYZ"], "no check has a code that begins with"),
        (["run", "audit.toml", "--samples", "all"], "report.samples"),
        (["run", "audit.toml", "--trust", "yes"], "is not a SHA-256"),
        (["run", "audit.toml", "--device", "cuda:99"], "cuda"),
        (["render", "none.json"], "cannot be read"),
        (["render", "audit.toml"], "is not a JSON record"),
        (["checks", "TLA999"], "there is no check TLA999"),
        (["policy", "lint", "audit.toml"], "audit.toml"),
        (["policy", "show", "defautl"], 'did you mean "default"'),
        (["adapt", "none.toml"], "none.toml"),
        (["explain", "--model", "none", "--input", "data"], "there is no none"),
        (["explain", "--model", "w.safetensors", "--input", "data"], "--arch and --classes"),
        (["explain", "--model", "w.safetensors", "--input", "data", "--method", "gradcam"], "grad_cam"),
        (["init", "."], "audit.toml exists already"),
        (["init", "new", "--yes"], "the target is missing"),
        (["init", "new", "--yes", "--target", "d"], "the adapted model is missing"),
        (["init", "new", "--yes", "--target", "d", "--run", "r", "--kind", "imgae"], 'did you mean "image"'),
    ],
)
def test_a_mistake_gives_one_sentence_and_exit_2(
    tl_audit: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], message: str
) -> None:
    monkeypatch.chdir(folder)
    code, out, err = tl_audit(*argv)
    last = err.strip().splitlines()[-1]
    assert code == 2, err
    assert message in last
    assert last.startswith("tl-audit: ")
    assert "Traceback" not in err
    assert out == ""


def test_a_mistake_in_the_file_names_the_place(tl_audit: Run, folder: Path) -> None:
    path = folder / "audit.toml"
    path.write_text(path.read_text().replace("groups", "gruops"))
    code, _, err = tl_audit("run", path)
    assert code == 2
    assert 'unknown key "gruops" in [target]; did you mean "groups"?' in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("raised", "code"),
    [(RuntimeError("boom"), 4), (KeyboardInterrupt(), 130), (Interrupted(143), 143), (BrokenPipeError(), 0), (MemoryError("x"), 4)],
)
def test_what_is_raised_inside_becomes_an_exit_code(
    tl_audit: Run, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int
) -> None:
    def explode(path: object) -> None:
        raise raised

    monkeypatch.setattr("tl_audit.records.schema.load_json", explode)
    if isinstance(raised, BrokenPipeError):
        monkeypatch.setattr(cli, "_close_stdout", lambda: None)
    got, _, err = tl_audit("render", "report.json")
    assert got == code
    assert "Traceback" not in err


def test_the_traceback_is_shown_when_asked_for(tl_audit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(path: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("tl_audit.records.schema.load_json", explode)
    monkeypatch.setenv("TL_AUDIT_DEBUG", "1")
    code, _, err = tl_audit("render", "report.json")
    assert code == 4
    assert "Traceback" in err
    assert "internal error: RuntimeError: boom" in err


def test_a_closed_pipe_is_no_error() -> None:
    script = f"{sys.executable} -m tl_audit policy show default | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


# -- outside strings --------------------------------------------------------------------------------------------------------


def test_outside_text_is_shown_as_text_on_one_line() -> None:
    shown = cli.shown(HOSTILE)
    assert "\n" not in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "[/oops]" in shown, "markup of the printer is text, not an order"


def test_no_outside_string_starts_a_line_and_none_reaches_the_terminal_raw(tl_audit: Run, tmp_path: Path) -> None:
    for argv in (
        ["run", tmp_path / HOSTILE.replace("/", "_")],
        ["checks", HOSTILE],
        ["policy", "lint", HOSTILE],
        ["render", HOSTILE],
        ["explain", "--model", HOSTILE, "--input", HOSTILE],
        [HOSTILE],
    ):
        _, out, err = tl_audit(*argv)
        for line in (out + err).splitlines():
            assert line.startswith("tl-audit: "), repr(line)
            assert not set(line) & {"\x1b", "\u202e"}


# -- commands ---------------------------------------------------------------------------------------------------------------


def test_a_small_audit_runs_renders_and_repeats(tl_audit: Run, folder: Path) -> None:
    out_dir = folder / "out"
    argv = ["run", folder / "audit.toml", "--out", out_dir, "--select", "TLA2,TLA3", "--fail-on", "never"]
    code, out, err = tl_audit(*argv)
    assert code == 0, err
    assert {p.name for p in out_dir.iterdir()} == {"report.html", "report.json", "manifest.json"}
    lines = out.splitlines()
    assert lines[-3].startswith("outcome ")
    assert lines[-2] == f"report  {out_dir / 'report.html'}"
    assert not [line for line in (out + err).splitlines() if line.startswith("::")]
    first = json.loads((out_dir / "report.json").read_text())
    assert (folder / ".tl_audit").is_dir(), "evidence lies beside audit.toml"

    (out_dir / "report.html").unlink()
    assert tl_audit("render", out_dir)[0] == 0
    assert (out_dir / "report.html").exists()

    code, out, _ = tl_audit(*argv, "--fresh", "--format", "json", "--out", folder / "again")
    assert code == 0
    assert {p.name for p in (folder / "again").iterdir()} == {"report.json", "manifest.json"}
    second = json.loads((folder / "again" / "report.json").read_text())
    statuses = [[(f["code"], f["status"], f["reason"]) for f in r["findings"]] for r in (first, second)]
    assert statuses[0] == statuses[1]


def test_the_gate_decides_the_exit_code_and_says_what_broke_it(tl_audit: Run, folder: Path) -> None:
    (folder / "tough.toml").write_text(
        '[policy]\nid = "tough"\n[[limits]]\ncheck = "TLA301"\nmetric = "accuracy"\nfail = { min = 0.99 }\nrationale = "r"\norigin = "o"\n'
    )
    argv = ["run", folder / "audit.toml", "--out", folder / "out", "--policy", folder / "tough.toml", "--select", "TLA301"]
    code, out, _ = tl_audit(*argv)
    assert code == 1
    assert "fail          TLA301" in out
    assert "accuracy: 0." in out
    assert "n = 40" in out
    assert "limit >= 0.99" in out
    assert "closed by TLA301" in out
    assert out.splitlines()[-1].startswith("again   tl-audit run ")
    assert tl_audit(*argv, "--fail-on", "never")[0] == 0


def test_a_dry_run_writes_nothing(tl_audit: Run, folder: Path) -> None:
    before = sorted(p.name for p in folder.iterdir())
    code, out, _ = tl_audit("run", folder / "audit.toml", "--dry-run", "--out", folder / "out")
    assert code == 0
    assert "TLA501 Covariate shift: not evaluated, needs" in out
    assert "adapted on target: 40 evaluations" in out
    assert sorted(p.name for p in folder.iterdir()) == before


def test_explain_writes_a_page_pictures_and_numbers(tl_audit: Run, folder: Path) -> None:
    argv = [
        "explain",
        "--model",
        folder / "w.safetensors",
        "--arch",
        "tl_audit:small_cnn",
        "--classes",
        "cat,dog",
        "--input",
        folder / "data",
    ]
    code, out, err = tl_audit(*argv, "--most", "2", "--target", "dog", "--out", folder / "maps")
    assert code == 0, err
    names = sorted(p.name for p in (folder / "maps").iterdir())
    assert len(names) == 5
    assert names[:2] == ["attributions.json", "attributions.npz"]
    page = (folder / "maps" / "explanations.html").read_text()
    assert "<script" not in page
    assert "default-src" in page
    numbers = json.loads((folder / "maps" / "attributions.json").read_text())
    assert {row["target"] for row in numbers["parts"]} == {"dog"}
    assert len({row["id"] for row in numbers["parts"]}) == 2
    assert "maps    2 by grad_cam" in out


def test_checks_are_listed_and_explained(tl_audit: Run) -> None:
    code, out, _ = tl_audit("checks")
    assert code == 0
    assert len(out.splitlines()) >= 30
    code, out, _ = tl_audit("checks", "tla602")
    assert code == 0
    for word in ("asks", "measured", "matters", "reduce", "needs", "limit"):
        assert f"\n{word}" in out
    assert "warn abs 0.1, fail abs 0.2" in out


def test_a_policy_is_shown_and_linted(tl_audit: Run, tmp_path: Path) -> None:
    code, out, _ = tl_audit("policy", "show", "strict")
    assert code == 0
    assert "extends default" in out
    data = json.loads(tl_audit("policy", "show", "default", "--json")[1])
    assert len(data["sha256"]) == 64
    assert tl_audit("policy", "lint", "default")[0] == 0
    bad = tmp_path / "p.toml"
    bad.write_text('[policy]\nid = "p"\n[[limits]]\ncheck = "TLA301"\nmetric = "accuracy"\nfail = { min = 2 }\n')
    code, out, _ = tl_audit("policy", "lint", bad)
    assert code == 2
    assert "can never be met" in out


def test_doctor_finds_what_this_suite_needs(tl_audit: Run) -> None:
    code, out, _ = tl_audit("doctor")
    assert code == 0, out
    assert "torch + torchvision  fit each other" in out
    assert "licence torch" in out


def test_doctor_names_what_would_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    from tl_audit import doctor

    monkeypatch.setattr(doctor, "CORE", {"no-such-package": ("nothing", "dreams"), "numpy": ("no_such_module", "everything")})
    absent, broken = [f for f in doctor.examine() if f.name in ("no-such-package", "numpy")]
    assert absent.state == broken.state == "broken"
    assert 'pip install "no-such-package"' in absent.text
    assert "does not import" in broken.text


# -- init -------------------------------------------------------------------------------------------------------------------


def test_init_writes_an_audit_that_reads_back(tl_audit: Run, tmp_path: Path) -> None:
    from tl_audit.config import load_audit

    code, out, _ = tl_audit(
        "init", tmp_path / "new", "--yes", "--run", "runs/x", "--target", "data/test", "--groups", "sex,site", "--cluster", "patient",
        "--source", "data/source", "--title", 'A "title"', "--samples", "on",
    )  # fmt: skip
    assert code == 0
    assert f"written {tmp_path / 'new' / 'audit.toml'}" in out
    table = load_audit(tmp_path / "new").table
    assert table.title == 'A "title"'
    assert table.target.groups == ("sex", "site")
    assert table.adapted is not None
    assert table.adapted.run == "runs/x"
    text = (tmp_path / "new" / "audit.toml").read_text()
    assert 'purpose = ""' in text
    assert "# what the model is for" in text


def test_init_writes_hostile_answers_as_plain_values(tmp_path: Path) -> None:
    from tl_audit.config import load_audit

    write_audit(tmp_path / "audit.toml", Answers(target='data"\n[adapted2]\n\x7f', run="r\\s", title=HOSTILE))
    table = load_audit(tmp_path).table
    assert table.title == HOSTILE
    assert table.target.path == 'data"\n[adapted2]\n\x7f'


def test_the_facts_of_an_untouched_init_count_as_missing(tmp_path: Path) -> None:
    from tl_audit.checks.governance import missing_declarations
    from tl_audit.config import load_audit
    from tl_audit.policy import load_policy

    write_audit(tmp_path / "audit.toml", Answers(target="data", run="r"))
    wanted = load_policy("default").rules.declare
    assert set(missing_declarations(wanted, load_audit(tmp_path).declared)) == set(wanted)
