"""The page on choosing a base: its blocks run in their order, and lead where it says."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.test_examples import blocks_of
from tl_audit.cli import main
from tl_audit.ranking import MEASURES, NAMES, Ranking

PAGE = Path(__file__).resolve().parents[1] / "docs" / "choosing-a-base.md"


def test_everything_on_the_page_runs_and_the_base_that_knows_digits_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for language, text in blocks_of(PAGE):
        if language == "python":
            exec(compile(text, str(PAGE), "exec"), names)
            continue
        assert language == "sh", f"a block of {language} is not run by anything"
        for line in text.splitlines():
            program, *argv = shlex.split(line)
            assert program == "tl-audit"
            assert main(argv) == 0, line
    ranking = names["ranking"]
    assert isinstance(ranking, Ranking)
    for measure in MEASURES:
        assert ranking.placing("run:other-digits", measure).rank == 1, measure
    assert (tmp_path / "ranking.json").is_file()
    assert (tmp_path / "ranking.csv").is_file()


def test_the_page_names_every_measure() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in NAMES.values() if f"| {name} |" not in text] == []
