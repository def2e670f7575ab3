"""Mistakes on the command line that could cost work: refused before it, in one sentence, with nothing written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tl_audit import cli

PLAN = """
base = "tl_audit:mlp"
kind = "tabular"
[task]
classes = ["no", "yes"]
[data]
train = "train.csv"
label = "ill"
[[stages]]
layers = "*"
epochs = 1
lr = 0.01
"""


AUDIT = """
[adapted]
run = "runs/here"
[target]
kind = "tabular"
path = "test.csv"
[evidence]
dir = "kept"
[checks]
select = ["TLA301"]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small table, a plan over it, and a file where a folder is wanted."""
    x = np.random.default_rng(0).normal(size=(60, 2)).round(3)
    rows = ["a,b,ill", *(f"{a},{b},{'yes' if a > 0 else 'no'}" for a, b in x)]
    (tmp_path / "train.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "plan.toml").write_text(PLAN)
    (tmp_path / "file").write_text("x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


RANK = ["rank", "tl_audit:mlp", "tl_audit:mlp", "--data", "train.csv", "--label", "ill"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["adapt", "plan.toml", "--seeds", "2"], "--seeds belongs to --learning-curve"),
        (["adapt", "plan.toml", "--sizes", "20"], "--sizes belongs to --learning-curve"),
        (["adapt", "plan.toml", "--learning-curve", "--sizes", "20", "--out", "file"], "file is a file, not a folder"),
        (["adapt", "plan.toml", "--learning-curve", "--sizes", "20", "--out", "file/sub"], "file is a file, not a folder"),
        ([*RANK, "--out", "ranking.txt"], "there are .json and .csv"),
        ([*RANK, "--out", "file/ranking.csv"], "file is a file, not a folder"),
        ([*RANK, "--evidence", "file"], "--evidence"),
        ([*RANK[:-1], "il", "--out", "new/r.csv"], "tl-audit: train.csv has no column 'il'"),
        (["selftest", "--only", ",", "--kind", "tabular"], "--only is empty"),
        (["selftest", "--only", "1", "--kind", "tabular", "--out", "file/m.md"], "file is a file, not a folder"),
        (["selftest", "--only", "1", "--kind", "tabular", "--out", "."], "is a folder; name a file"),
    ],
)
def test_a_mistake_is_refused_before_the_work(folder: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    before = sorted(path.name for path in folder.iterdir())
    code = cli.main(argv)
    out, err = capsys.readouterr()
    assert code == 2, err
    assert not out
    assert message in err.splitlines()[-1]
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_ranking_is_written_into_a_new_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*RANK, "--resamples", "100", "--out", "new/ranking.csv"]) == 0
    assert (folder / "new" / "ranking.csv").read_text().startswith("measure,rank,")
    assert capsys.readouterr().out.splitlines()[-1] == "written new/ranking.csv"


@pytest.fixture
def adapted(folder: Path) -> Path:
    """A run of the plan, with a test table and an audit.toml over both."""
    lines = (folder / "train.csv").read_text().splitlines()
    (folder / "train.csv").write_text("\n".join(f"{line},{'c' if i == 0 else i}" for i, line in enumerate(lines)) + "\n")
    (folder / "plan.toml").write_text(
        PLAN.replace('"yes"]', '"yes"]\npositive = "yes"').replace('label = "ill"', 'label = "ill"\ndrop = ["c"]')
    )
    assert cli.main(["adapt", "plan.toml", "--out", "runs/here"]) == 0
    (folder / "test.csv").write_text("\n".join(line for line in (folder / "train.csv").read_text().splitlines()) + "\n")
    (folder / "audit.toml").write_text(AUDIT)
    return folder


def test_a_target_of_one_class_is_audited(adapted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (adapted / "test.csv").read_text().splitlines()
    (adapted / "test.csv").write_text("\n".join([lines[0], *(line for line in lines if ",no," in line)]) + "\n")
    assert cli.main(["run", "audit.toml", "--dry-run"]) == 0
    assert "1 of " in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('[[cues]]\nname = "x"\nkind = "set_column"\ncolumn = "aa"\nvalue = 1\n', "no column 'aa', named as the column of cue 'x'"),
        ('[[cues]]\nname = "x"\nkind = "set_column"\ncolumn = "a"\n', "cue 'x' needs column and value"),
        ('[source]\nkind = "tabular"\npath = "test.csv"\nlabel = "c"\n', "[source] label: the plan of the run drops column 'c'"),
    ],
)
def test_an_audit_that_cannot_work_is_refused_before_it(adapted: Path, capsys: pytest.CaptureFixture[str], more: str, message: str) -> None:
    (adapted / "audit.toml").write_text(AUDIT + more)
    assert cli.main(["run", "audit.toml"]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (adapted / "reports").exists()
    assert not (adapted / "kept").exists()


def test_a_check_that_breaks_says_so_in_one_line(
    adapted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (adapted / "breaking.py").write_text(
        "from tl_audit.checks.base import check\n"
        "@check('XYZ001', 'Breaks', section='data', severity='low')\n"
        "def CHECKS(subject, evidence, context):\n"
        '    """Does it break?"""\n'
        "    raise RuntimeError('no such luck')\n"
    )
    monkeypatch.syspath_prepend(str(adapted))
    (adapted / "audit.toml").write_text(AUDIT.replace('["TLA301"]', '["XYZ"]\nextra = ["breaking:CHECKS"]'))
    assert cli.main(["run", "audit.toml"]) == 3
    out, err = capsys.readouterr()
    assert "tl-audit: XYZ001 failed; TL_AUDIT_DEBUG=1 shows where" in err.splitlines()
    assert "Traceback" not in err
    assert "no such luck" in out


INIT = ["init", "new", "--yes", "--run", "runs/here", "--target", "test.csv", "--kind", "tabular"]


def test_init_knows_time_site_previous_other_inputs_and_frameworks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tl_audit.config import load_audit, policy_of

    more = "--time day --period month --site clinic --previous before --adapter lora --ood other.csv --task regression"
    assert cli.main([*INIT, *more.split(), "--frameworks", "eu-ai-act,nist-ai-rmf", "--policy", "strict"]) == 0
    assert "written new/policy.toml" in capsys.readouterr().out.splitlines()
    config = load_audit("new")
    table = config.table
    assert table.adapted is not None
    assert table.previous is not None
    assert table.ood is not None
    assert (table.target.time, table.target.period, table.target.site, table.target.task) == ("day", "month", "clinic", "regression")
    assert (table.adapted.adapter, table.previous.run, table.ood.path) == ("lora", "before", "other.csv")
    policy = policy_of(config)
    assert policy.frameworks == ("eu-ai-act", "nist-ai-rmf")
    assert "strict" in policy.extends


@pytest.mark.parametrize("kind", ["image", "tabular"])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_every_line_that_init_writes_as_a_comment_may_be_used(folder: Path, kind: str, task: str) -> None:
    from tl_audit.config import load_audit

    given = ["--run", "r"] if task == "classification" else ["--weights", "w", "--arch", "tl_audit:mlp"]
    assert cli.main(["init", "new", "--yes", *given, "--target", "t", "--kind", kind, "--task", task]) == 0
    path = folder / "new" / "audit.toml"
    lines = path.read_text().splitlines()
    usable = [line[2:] if line.startswith(("# [", "# ")) and ("= " in line or line.startswith("# [")) else line for line in lines]
    usable = [line.replace('period = "..."', 'period = "month"') for line in usable]
    path.write_text("\n".join(usable) + "\n")
    table = load_audit(path).table
    assert table.ood is not None
    assert table.source is not None
    assert table.cues[0].settings
    assert table.target.site == "..."


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--frameworks", "eu-ai-akt"], 'did you mean "eu-ai-act"'),
        (["--period", "month"], "give --time"),
        (["--time", "day", "--period", "week"], "'day', 'month', 'quarter' or 'year'"),
        (["--task", "regresion"], 'did you mean "regression"'),
    ],
)
def test_init_writes_nothing_that_would_not_read_back(
    folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert cli.main([*INIT, *more]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "new").exists()


def test_init_leaves_a_policy_file_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "new").mkdir()
    (folder / "new" / "policy.toml").write_text("mine")
    assert cli.main([*INIT, "--frameworks", "eu-ai-act"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in (folder / "new").iterdir()] == ["policy.toml"]
    assert (folder / "new" / "policy.toml").read_text() == "mine"


def test_checks_says_what_is_needed_in_words_and_to_which_part_a_limit_belongs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["checks", "TLA504"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "needs labels of the source domain; labels of the target domain; outputs of the base model on the source or outputs of" in out
    assert cli.main(["checks", "TLA106"]) == 0
    out = capsys.readouterr().out
    assert "precision=32-bit: fail max 0.01" in out
    assert "precision=16-bit: fail max 0.1" in out
    from tl_audit.checks import BUILTIN

    for one in BUILTIN:
        assert cli.main(["checks", one.code]) == 0
        needs = capsys.readouterr().out.split("needs ")[-1]
        assert "@" not in needs.split("limit ")[0]
        assert set(one.help) == {"asks", "measured", "matters", "reduce"}
        assert one.help["asks"].endswith("?"), one.code
