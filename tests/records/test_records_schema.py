"""report.json: strict reading, canonical writing, hashes, the golden schema."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "report"))

from golden_record import golden

from tl_audit.errors import RecordError
from tl_audit.records.exhibits import EXHIBIT_KINDS, Column, Heatmap, Line, Table, slug
from tl_audit.records.findings import Finding
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.records.schema import canonical_json, json_schema, load_json, parse_json, record_hash, report_hash, to_json

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def changed(**values: Any) -> str:
    return json.dumps({**json.loads(to_json(golden())), **values})


def test_a_record_comes_back_as_it_was() -> None:
    text = to_json(golden())
    assert parse_json(text) == golden()
    assert to_json(parse_json(text)) == text


def test_the_schema_matches_the_golden_file() -> None:
    expected = json.loads((GOLDEN / "report.schema.json").read_text(encoding="utf-8"))
    assert json.loads(json.dumps(json_schema())) == expected, (
        "the schema changed; raise the version if old records no longer load, then run: python tests/golden/regenerate.py"
    )


def test_the_golden_record_still_loads() -> None:
    assert load_json(GOLDEN / "report.json").title == golden().title


def test_the_schema_names_every_kind_of_exhibit() -> None:
    assert {k.__name__ for k in EXHIBIT_KINDS} <= set(json_schema()["$defs"])


def test_keys_are_sorted_and_the_text_ends_with_a_newline() -> None:
    text = to_json(golden())
    assert text == json.dumps(json.loads(text), sort_keys=True, indent=2, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_not_finite_are_refused(token: str) -> None:
    text = to_json(golden()).replace('"seconds": 0.4', f'"seconds": {token}', 1)
    assert token in text
    with pytest.raises(RecordError, match="not JSON"):
        parse_json(text)


def test_numbers_too_large_for_a_float_are_refused() -> None:
    with pytest.raises(RecordError, match="not a valid report record"):
        parse_json(to_json(golden()).replace('"seconds": 0.4', '"seconds": 1e999', 1))


def test_unknown_fields_are_refused_and_named() -> None:
    with pytest.raises(RecordError, match="at surprise"):
        parse_json(changed(surprise=1))


def test_unknown_kinds_of_exhibits_are_refused() -> None:
    with pytest.raises(RecordError, match="not a valid report record"):
        parse_json(to_json(golden()).replace('"kind": "Ladder"', '"kind": "Rocket"'))


def test_a_newer_schema_asks_for_an_upgrade() -> None:
    with pytest.raises(RecordError, match="upgrade tl-audit"):
        parse_json(changed(schema_version=2, something_new=True))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, '"x"', "{}"])
def test_other_files_are_one_sentence(text: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecordError, match=r"report\.json"):
        load_json(path)


def test_a_missing_file_and_a_binary_file_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot be read"):
        load_json(tmp_path / "none.json")
    (tmp_path / "x.json").write_bytes(bytes(range(256)))
    with pytest.raises(RecordError, match="not a JSON record"):
        load_json(tmp_path / "x.json")


def test_the_report_hash_leaves_times_out_and_the_record_hash_does_not() -> None:
    one = golden()
    other = one.model_copy(
        update={"created": "2027-01-01T00:00:00Z", "findings": tuple(f.model_copy(update={"seconds": 99.0}) for f in one.findings)}
    )
    assert report_hash(one) == report_hash(other)
    assert record_hash(to_json(one)) != record_hash(to_json(other))
    assert report_hash(one) != report_hash(one.model_copy(update={"title": "x"}))


def test_canonical_json_refuses_what_json_has_not() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"x": float("nan")})


def test_ladders_stay_in_memory() -> None:
    metric = Metric(name="x", value=0.5, interval=(0.4, 0.6), ladder=((0.05, 0.4, 0.6),))
    assert "ladder" not in metric.model_dump()
    assert metric.model_dump(context={"ladder": True})["ladder"] == ((0.05, 0.4, 0.6),)


def test_a_value_needs_an_interval_or_a_reason() -> None:
    with pytest.raises(ValidationError, match="no interval and no reason"):
        Metric(name="x", value=0.5)
    with pytest.raises(ValidationError, match="no value and no reason"):
        Metric(name="x", value=None)
    with pytest.raises(ValidationError, match="finite"):
        Metric(name="x", value=float("nan"), exact=True)


def test_shapes_of_exhibits_are_checked() -> None:
    base = {"id": "e", "title": "x", "how_to_read": "x", "alt": "x", "caption": "x"}
    with pytest.raises(ValidationError, match="1 cells, there are 2 columns"):
        Table(**base, columns=(Column(name="a"), Column(name="b")), rows=((1,),))
    with pytest.raises(ValidationError, match="another part 1"):
        Line(name="a", x=(1.0, 2.0), y=(1.0,))
    with pytest.raises(ValidationError, match=r"shape \(1, 2\)"):
        Heatmap(**base, row_label="r", column_label="c", rows=("a",), columns=("a", "b"), values=((1.0,),), value_label="v")
    table = Table(**base, columns=(Column(name="a"),), rows=((1,),))
    with pytest.raises(ValidationError, match="share an id"):
        Measurement(summary="x", exhibits=(table, table))
    with pytest.raises(ValidationError):
        Table(**{**base, "id": "No Slug"}, columns=(), rows=())


def test_metrics_are_found_by_name_and_slice() -> None:
    finding = golden()["TLA602"]
    assert finding.select("accuracy_gap", site="south").value == -0.191
    with pytest.raises(KeyError, match="4 slices"):
        finding.metrics["accuracy_gap"]
    with pytest.raises(KeyError, match="there are: accuracy_gap"):
        finding.metrics["accuracy"]
    assert Finding(code="TLA999", section="data", title="x", status="error", reason="x", severity="low").to_rows() == []


def test_slugs_are_never_empty() -> None:
    assert [slug(s) for s in ("Recall by Class", "../../x", "", "ÄÖ", "a" * 90)] == ["recall-by-class", "x", "x", "x", "a" * 60]
