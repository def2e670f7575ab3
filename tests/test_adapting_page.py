"""The page on adapting: its Python runs in its order, its plans can be read, its command runs."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

import tl_audit as ta
from tests.finetune.test_finetune_guidance import rows
from tests.test_examples import blocks_of
from tl_audit.cli import main
from tl_audit.finetune import Adaptation, LearningCurve

PAGE = Path(__file__).resolve().parents[1] / "docs" / "adapting.md"
HEAD = 'base = "tl_audit:mlp"\nkind = "tabular"\n'
TAIL = '[[stages]]\nlayers = "*"\nepochs = 1\nlr = 0.01\n'


def test_everything_on_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = rows(450, 0)
    lines = [",".join(f"{v:.5f}" for v in row) + f",{label}" for row, label in zip(x, y, strict=True)]
    Path("train.csv").write_text("\n".join(["a,b,c,d,label", *lines]) + "\n")
    data = '[data]\ntrain = "train.csv"\nvalidation = 0.25\nlabel = "label"\nnumeric = ["a", "b", "c", "d"]\n'
    Path("plan.toml").write_text(HEAD + data + TAIL)
    names: dict[str, object] = {"__name__": "page"}
    plans = []
    for language, text in blocks_of(PAGE):
        if language == "python":
            exec(compile(text, str(PAGE), "exec"), names)
        elif language == "toml":
            plans.append(ta.Plan.from_text(HEAD + text + TAIL))
        else:
            for line in text.splitlines():
                program, *argv = shlex.split(line)
                assert program == "tl-audit"
                assert main(argv) == 0, line
    for name, word in (("taught", "distillation_loss"), ("aligned", "alignment_distance")):
        made = names[name]
        assert isinstance(made, Adaptation)
        assert word in made.record.stages[0].history[0]
    weighted = names["weighted"]
    assert isinstance(weighted, Adaptation)
    assert 0 < weighted.record.importance["effective_sample_share"] < 1
    curve = names["curve"]
    assert isinstance(curve, LearningCurve)
    assert curve.sizes == (30, 100, 300)
    assert len(plans) == 4
    assert plans[0].teacher is not None
    assert isinstance(plans[-1].task, ta.Regression)
