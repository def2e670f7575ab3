"""Small cells are gone from every part of a finding; names of people, machines and places are gone from texts."""

from __future__ import annotations

import pytest

from tl_audit.records.exhibits import Bar, Bars, Change, Column, Dot, Intervals, Table
from tl_audit.records.findings import Finding, LimitOutcome
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.records.privacy import redact, redact_all, suppress, suppressed_counts

WORDS = {"how_to_read": "h", "caption": "c"}


def finding(*metrics: Metric, exhibits: tuple[object, ...] = (), limits: tuple[LimitOutcome, ...] = ()) -> Finding:
    measurement = Measurement(summary="s", metrics=metrics, exhibits=exhibits)  # type: ignore[arg-type]
    return Finding(
        code="TLA601", section="fairness", title="t", status="info", reason="r", severity="low", measurement=measurement, limits=limits
    )  # fmt: skip


def rate(n: int, **slice: str) -> Metric:
    return Metric(
        name="tpr", value=0.6, interval=(0.1, 0.9), confidence=0.95, n={"target": n}, slice=slice, events=2, nonevents=1, p_value=0.2
    )


def test_a_metric_of_a_small_group_loses_its_value_and_everything_computed_from_it() -> None:
    limit = LimitOutcome(metric="tpr", slice={"sex": "x"}, level="fail", bound="min", value=0.8, rule="interval", origin="ours",
                         interval_used=(0.1, 0.9), p_limit=0.3, outcome="undecided", missing_n=40)  # fmt: skip
    hidden = suppress(finding(rate(9, sex="x"), rate(10, sex="y"), limits=(limit,)), below=10, group_columns={"sex"})
    small, large = hidden.measurement.metrics  # type: ignore[union-attr]
    assert (small.value, small.interval, small.n, small.events, small.p_value) == (None, None, {}, None, None)
    assert small.reason == "suppressed: n < 10"
    assert large.value == 0.6
    assert (hidden.limits[0].interval_used, hidden.limits[0].p_limit, hidden.limits[0].missing_n) == (None, None, None)
    assert hidden.limits[0].value == 0.8


def test_what_is_not_crossed_with_a_group_stays_whole() -> None:
    plain = finding(rate(3, **{"class": "bees"}), rate(3))
    assert suppress(plain, below=10, group_columns={"sex"}) == plain
    assert suppress(finding(rate(3, sex="x")), below=0, group_columns={"sex"}).measurement.metrics[0].value == 0.6  # type: ignore[union-attr]


def test_a_gap_is_hidden_when_either_side_is_small() -> None:
    gap = Metric(name="gap", value=0.3, interval=(0.1, 0.5), n={"group": 50, "rest": 4}, slice={"sex": "x"})
    assert suppress(finding(gap), below=10, group_columns={"sex"}).measurement.metrics[0].value is None  # type: ignore[union-attr]


def test_small_cells_of_grouped_tables_bars_and_intervals_are_withheld() -> None:
    table = Table(id="t", title="t", alt="a", grouped=True, **WORDS,
                  columns=(Column(name="sex"), Column(name="n", format="count"), Column(name="positives", format="count"), Column(name="tpr", format="share")),
                  rows=(("x", 30, 4, 0.5), ("y", 30, 20, 0.4), ("z", 0, 0, None)))  # fmt: skip
    bars = Bars(
        id="b",
        title="t",
        alt="a",
        grouped=True,
        **WORDS,
        value_label="v",
        bars=(Bar(label="x", value=0.3, n=3, interval=(0.1, 0.4)), Bar(label="y", value=0.2, n=30)),
    )
    dots = Intervals(id="i", title="t", alt="x 50 %; y 40 %.", grouped=True, **WORDS, value_label="v",
                     dots=(Dot(label="x", value=0.5, n=4, series="base"), Dot(label="x", value=0.6, n=40, series="adapted"), Dot(label="y", value=0.4, n=40)),
                     changes=(Change(label="x", value=0.1), Change(label="y", value=0.2)))  # fmt: skip
    shown = suppress(finding(exhibits=(table, bars, dots)), below=10, group_columns={"sex"}).exhibits
    assert shown["t"].rows == (("x", "suppressed", "< 10", "suppressed"), ("y", 30, 20, 0.4), ("z", "< 10", "< 10", None))
    assert (shown["b"].bars[0].value, shown["b"].bars[0].n, shown["b"].bars[1].value) == (None, None, 0.2)
    # one small dot of a pair hides the whole row: the change would give it away
    assert [(d.value, d.suppressed) for d in shown["i"].dots] == [(None, True), (None, True), (0.4, False)]
    assert [c.value for c in shown["i"].changes] == [None, 0.2]
    assert "50" not in shown["i"].alt


def test_exhibits_that_are_not_grouped_keep_small_cells() -> None:
    table = Table(
        id="t", title="t", alt="a", columns=(Column(name="class"), Column(name="n", format="count")), rows=(("bees", 3),), **WORDS
    )
    assert suppress(finding(exhibits=(table,)), below=10, group_columns={"sex"}).exhibits["t"].rows == (("bees", 3),)


def test_group_counts_below_the_minimum_are_written_as_such() -> None:
    assert suppressed_counts({"a": 9, "b": 10, "c": 0}, 10) == {"a": "< 10", "b": 10, "c": "< 10"}
    assert suppressed_counts({"a": 1}, 0) == {"a": 1}


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("/home/jane/data/x.csv", "jane"),
        ("/Users/jane/x.csv is missing", "jane"),
        ("--token hf_AbCdEfGhIjKlMn", "hf_AbCdEfGhIjKlMn"),
        ("ghp_abcdefghijkl1234", "ghp_abcdefghijkl1234"),
        ("api_key = 'abc def ghi'", "abc def ghi"),
        ("password: hunter22", "hunter22"),
        ("Authorization: Bearer abcdef.ghijkl", "abcdef.ghijkl"),
    ],
)
def test_names_and_tokens_are_removed(text: str, gone: str) -> None:
    assert gone not in redact(text)


def test_ordinary_words_hashes_and_numbers_stay() -> None:
    text = "sha256 0f3a5c of data/site_b/test.csv: 400 rows, 3 tokens of text, the home page, key column 'id'"
    assert redact(text) == text


def test_every_text_of_nested_data_is_redacted() -> None:
    data = {"a": ["/home/jane/x", {"b": "token=abcdefgh"}], "n": 3, "none": None}
    assert redact_all(data) == {"a": ["~/x", {"b": "token=<redacted>"}], "n": 3, "none": None}
