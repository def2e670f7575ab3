"""Times become periods in order; sites become names; both travel with the domain."""

from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import tl_audit as ta
from tl_audit.errors import DataError
from tl_audit.modality.periods import periods_of


def named(values: list, period: str | None = None) -> list:
    return periods_of(values, len(values), period).texts.tolist()


@pytest.mark.parametrize(
    ("period", "expected"),
    [
        ("day", ["2024-02-29", "2024-03-05", "2023-12-31"]),
        ("month", ["2024-02", "2024-03", "2023-12"]),
        ("quarter", ["2024-Q1", "2024-Q1", "2023-Q4"]),
        ("year", ["2024", "2024", "2023"]),
    ],
)
def test_dates_fall_into_the_period_asked_for(period, expected):
    assert named(["2024-02-29", "2024-03-05T23:59:00+02:00", "2023-12-31 08:00:00"], period) == expected


def test_dates_may_come_as_objects_of_any_library():
    day = datetime.date(2024, 2, 29)
    for values in (
        [day],
        [datetime.datetime(2024, 2, 29, 5)],
        np.array(["2024-02-29"], dtype="datetime64[D]"),
        [pd.Timestamp("2024-02-29")],
    ):
        assert periods_of(values, 1, "month").names == ("2024-02",)


def test_coarse_dates_serve_periods_that_they_can_tell():
    assert named(["2024-Q3", "2024q4", "2025"], "year") == ["2024", "2024", "2025"]
    assert named(["2024-07", "2024-Q4"], "quarter") == ["2024-Q3", "2024-Q4"]
    with pytest.raises(DataError, match="row 1 holds '2024-Q4', which does not say its month"):
        named(["2024-07", "2024-Q4"], "month")
    with pytest.raises(DataError, match="row 0 holds '2024-07', which does not say its day"):
        named(["2024-07"], "day")


def test_periods_as_given_keep_the_order_of_numbers_and_of_people():
    assert periods_of([10, 2, 2, 1.5], 4, None).names == ("1.5", "2", "10")
    assert periods_of(["week 10", "week 2"], 2, None).names == ("week 2", "week 10")
    assert periods_of(["2024-Q2", "2023-Q4"], 2, None).names == ("2023-Q4", "2024-Q2")


def test_a_month_without_samples_still_takes_its_place_on_the_axis():
    found = periods_of(["2024-01-03", "2024-04-01", "2023-12-01"], 3, "month")
    assert found.positions == (0.0, 1.0, 4.0)
    assert found.unit == "month"
    assert periods_of(["a", "c"], 2, None).positions == (0.0, 1.0)


def test_missing_times_belong_to_no_period():
    found = periods_of(["2024-01-03", None, "", "NaT", float("nan")], 5, "month")
    assert found.codes.tolist() == [0, -1, -1, -1, -1]
    with pytest.raises(DataError, match="every time is missing"):
        periods_of([None, ""], 2, None)


def test_what_cannot_be_a_time_is_said_with_its_row():
    with pytest.raises(DataError, match=r"row 1 holds '05/03/2024', which is no date: write 2024-03-05"):
        named(["2024-03-05", "05/03/2024"], "month")
    with pytest.raises(DataError, match="unknown period 'months' \\(did you mean 'month'\\?\\)"):
        named(["2024-03-05"], "months")
    with pytest.raises(DataError, match="61 different values, more than 60: say how long a period is"):
        named([str(i) for i in range(61)])
    with pytest.raises(DataError, match="has 2 rows, the data has 3"):
        periods_of(["a", "b"], 3, None)


# -- through the doors --------------------------------------------------------------------------------------------------


def table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "x": np.arange(4.0), "label": list("abab"), "day": ["2024-01-03", "2024-02-20", None, "2024-02-01"],
            "hospital": ["north", "south", None, "north"],
        }
    )  # fmt: skip


def test_a_table_names_its_columns_of_time_and_site():
    domain = ta.Domain("t", table(), time="day", period="month", site="hospital", kind="tabular")
    assert domain.periods is not None
    assert domain.periods.texts.tolist() == ["2024-01", "2024-02", None, "2024-02"]
    assert domain.site.tolist() == ["north", "south", "(missing)", "north"]
    assert "1 rows have no time: they belong to no period" in domain.notes
    # a date is no feature, a hospital may be one
    assert tuple(domain.samples.columns) == ("x", "hospital")


def test_a_year_stays_a_feature_and_a_listed_date_too():
    data = table().assign(year=[2023, 2024, 2024, 2023])
    assert "year" in ta.Domain("t", data, time="year", kind="tabular").samples.columns
    listed = ta.Domain("t", data, time="day", period="year", kind="tabular", categorical=["day"], numeric=["x"])
    assert tuple(listed.samples.columns) == ("x", "day")


def test_a_subset_keeps_the_periods_and_sites_of_its_rows():
    part = ta.Domain("t", table(), time="day", period="month", site="hospital", kind="tabular").subset([3, 0])
    assert part.periods.texts.tolist() == ["2024-02", "2024-01"]
    assert part.periods.names == ("2024-01", "2024-02")
    assert part.site.tolist() == ["north", "north"]


def test_a_domain_without_times_has_none_and_a_period_alone_is_an_error():
    domain = ta.Domain("t", table(), kind="tabular")
    assert domain.periods is None
    assert domain.site is None
    with pytest.raises(DataError, match="t: period = 'month', but no time was given"):
        ta.Domain("t", table(), period="month", kind="tabular")
    with pytest.raises(DataError, match="no column 'dya', named as the time \\(did you mean 'day'\\?\\)"):
        ta.Domain("t", table(), time="dya", kind="tabular")


def test_pictures_take_times_and_sites_from_their_metadata(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((4, 4), 40 * i, dtype=np.uint8)).save(tmp_path / f"p{i}.png")
    said = pd.DataFrame(
        {"file": ["p2.png", "p0.png", "p1.png"], "taken": ["2024-05-01", "2023-01-01", "2024-05-09"], "ward": ["b", "a", "a"]}
    )
    domain = ta.Domain("p", tmp_path, metadata=said, time="taken", period="year", site="ward")
    assert domain.periods.texts.tolist() == ["2023", "2024", "2024"]
    assert domain.site.tolist() == ["a", "a", "b"]


def test_audit_toml_names_time_period_and_site(tmp_path):
    from tl_audit.config import DomainTable

    read = DomainTable.model_validate({"path": "t.csv", "time": "day", "period": "quarter", "site": "hospital"})
    assert (read.time, read.period, read.site) == ("day", "quarter", "hospital")
    with pytest.raises(ValueError, match="period"):
        DomainTable.model_validate({"path": "t.csv", "time": "day", "period": "week"})


def test_stored_evidence_gives_periods_and_sites_and_its_key_knows_them(tmp_path):
    from torch import nn

    from tl_audit.evidence import Store, StoredEvidence
    from tl_audit.evidence.keys import input_key
    from tl_audit.policy import Rules

    model = ta.Model(nn.Linear(2, 2), classes=("a", "b"))
    keys = set()
    for period, site in (("month", list("nsns")), ("year", list("nsns")), ("month", list("nsnn")), (None, None)):
        given = {} if period is None else {"time": ["2024-01-03", "2024-02-20", None, "2023-02-01"], "period": period, "site": site}
        domain = ta.Domain("t", np.ones((4, 2), dtype=np.float32), kind="tensor", labels=list("abab"), **given)
        with Store(tmp_path / "evidence") as store:
            evidence = StoredEvidence(ta.Subject(adapted=model, target=domain), store=store, rules=Rules())
            keys.add(input_key(evidence, {}))
            assert evidence.periods("target") is domain.periods
            assert (evidence.site("target") is None) == (site is None)
            if site is not None:
                assert evidence.site("target").tolist() == site
    assert len(keys) == 4
