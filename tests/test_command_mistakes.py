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
