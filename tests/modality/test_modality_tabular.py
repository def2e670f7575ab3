"""Tables: roles, missing cells, encodings, content, caps."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tl_audit.errors import DataError
from tl_audit.modality import TABULAR, open_data
from tl_audit.modality.base import Cue, RawBatch
from tl_audit.modality.tabular import fit_encoding, rows_of
from tl_audit.records.preprocessing import TableEncoding
from tl_audit.subject import Domain

CSV = "id,age,sex,city,note,label\n1,40,f,Ulm,hello there,yes\n2,?,m,Bonn,hi,no\n3,60.0,f,,well,yes\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_roles_are_inferred_and_said(tmp_path: Path) -> None:
    opened = open_data(write(tmp_path / "t.csv", CSV))
    samples = opened.samples
    assert samples.ids == ("1", "2", "3")
    assert samples.numeric == ("age",)  # type: ignore[attr-defined]
    assert samples.categorical == ("sex", "city", "note")  # type: ignore[attr-defined]
    assert opened.labels is not None
    assert opened.labels.tolist() == ["yes", "no", "yes"]
    assert "column roles were inferred: numeric age; categorical sex, city, note" in opened.notes
    assert "column 'id' was taken as the row id" in opened.notes


def test_lists_of_columns_are_taken_at_their_word(tmp_path: Path) -> None:
    opened = open_data(write(tmp_path / "t.csv", CSV), numeric=["age"], categorical=["sex"])
    assert list(opened.samples.columns) == ["age", "sex"]  # type: ignore[attr-defined]
    assert "columns in no list were left out: city, note" in opened.notes


def test_csv_parquet_and_frame_agree(tmp_path: Path) -> None:
    write(tmp_path / "t.csv", CSV)
    frame = pd.DataFrame(
        {
            "id": [1, 2, 3],
            "age": [40, None, 60],
            "sex": list("fmf"),
            "city": ["Ulm", "Bonn", None],
            "note": ["hello there", "hi", "well"],
            "label": ["yes", "no", "yes"],
        }
    )
    frame.to_parquet(tmp_path / "t.parquet")
    with gzip.open(tmp_path / "t.csv.gz", "wt") as file:
        file.write(CSV)
    opened = [open_data(d) for d in (tmp_path / "t.csv", tmp_path / "t.csv.gz", tmp_path / "t.parquet", frame)]
    batches = [o.samples.read(np.arange(3)) for o in opened]
    hashes = [TABULAR.content_hashes(b) for b in batches]
    assert all(h == hashes[0] for h in hashes)
    encoding = fit_encoding(opened[0].samples)
    assert all(fit_encoding(o.samples) == encoding for o in opened)
    assert all(torch.equal(TABULAR.encode(b, encoding), TABULAR.encode(batches[0], encoding)) for b in batches)


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters_are_found(tmp_path: Path, delimiter: str) -> None:
    path = write(tmp_path / "t.csv", "\ufeffa,b\n1,x\n2,y\n".replace(",", delimiter))
    assert list(open_data(path).samples.columns) == ["a", "b"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "lable"}, r"no column 'lable', named as the label \(did you mean 'label'\?\)"),
        ({"numeric": ["sex"]}, "column 'sex' holds no numbers"),
        ({"numeric": ["age"], "drop": ["age"]}, "named as numeric and as a column to drop"),
        ({"id": "sex"}, "id 'f' stands in rows 0 and 2"),
        ({"drop": ["age", "sex", "city", "note"]}, "no feature columns left"),
        ({"na_values": {"aeg": ["0"]}}, "unknown column of na_values 'aeg'"),
    ],
)
def test_columns_that_cannot_be_used_are_one_sentence(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(write(tmp_path / "t.csv", CSV), **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,b\n", "header and no rows"),
        ("a,a\n1,2\n", "two columns named 'a'"),
        ('a,b\n1,"2\n', "cannot be read as a table"),
    ],
)
def test_broken_csv_files_are_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(write(tmp_path / "t.csv", text))


def test_other_encodings_are_refused_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("a,b\n1,Köln\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        open_data(tmp_path / "t.csv")


def test_a_parquet_bomb_is_refused_from_its_metadata(tmp_path: Path) -> None:
    rows = 3_000_000
    pq.write_table(pa.table({f"c{i}": pa.array(np.zeros(rows)) for i in range(4)}), tmp_path / "t.parquet")
    assert (tmp_path / "t.parquet").stat().st_size < 200_000
    with pytest.raises(DataError, match="more than 1,000,000 rows"):
        open_data(tmp_path / "t.parquet", caps={"rows": 1_000_000})
    with pytest.raises(DataError, match="needs more than 10 MiB"):
        open_data(tmp_path / "t.parquet", caps={"bytes": 10 * 2**20})


def test_a_damaged_parquet_file_is_one_sentence(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet", "PAR1 no")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        open_data(tmp_path / "t.parquet")


def test_csv_rows_are_capped_while_reading(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="more than 2 rows"):
        open_data(write(tmp_path / "t.csv", CSV), caps={"rows": 2})


def test_a_cell_that_is_no_number_costs_its_row_alone() -> None:
    frame = pd.DataFrame({"x": [*map(str, range(19)), "oops"], "y": np.arange(20.0)})
    batch = open_data(frame).samples.read(np.arange(20))
    assert batch.readable.sum() == 19
    assert batch.errors[19] == "column 'x' holds 'oops', which is no number"
    assert TABULAR.content_hashes(batch)[19] is None


def test_na_values_may_be_said_per_column() -> None:
    frame = pd.DataFrame({"chol": [0, 200, 240], "x": [0.0, 1.0, 2.0]})
    rows = rows_of(open_data(frame, na_values={"chol": [0]}).samples.read(np.arange(3)).items)
    assert np.isnan(rows.columns["chol"]).tolist() == [True, False, False]
    assert not np.isnan(rows.columns["x"]).any()


def test_whole_numbers_and_their_floats_are_one_category() -> None:
    first = open_data(pd.DataFrame({"sex": ["1.0", "0.0"], "x": [1, 2]}), categorical=["sex"], numeric=["x"])
    second = open_data(pd.DataFrame({"sex": [1, 0], "x": [1, 2]}), categorical=["sex"], numeric=["x"])
    assert first.samples.columns["sex"].texts == second.samples.columns["sex"].texts == ("0", "1")  # type: ignore[attr-defined]


# ---------------------------------------------------------------- encodings


def encoding() -> TableEncoding:
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0, None], "b": [5.0, 5.0, 5.0, 5.0], "c": ["x", "y", None, "x"]})
    return fit_encoding(frame, numeric=["a", "b"], categorical=["c"])


def encode(frame: pd.DataFrame, spec: TableEncoding | None = None) -> np.ndarray:
    samples = open_data(frame).samples
    return TABULAR.encode(samples.read(np.arange(len(frame))), spec or encoding()).numpy()


def test_an_encoding_by_hand() -> None:
    spec = encoding()
    assert [(c.name, c.mean, c.fill, c.missing_indicator) for c in spec.numeric] == [("a", 2.0, 2.0, True), ("b", 5.0, 5.0, False)]
    assert spec.numeric[0].std == pytest.approx(np.sqrt(2 / 3))
    assert spec.numeric[1].std == 1.0
    assert spec.categorical[0].categories == ("x", "y")
    rows = encode(pd.DataFrame({"a": [3.0, np.nan], "b": [6.0, 5.0], "c": ["y", "z"]}), spec)
    assert rows == pytest.approx(np.array([[np.sqrt(1.5), 0, 1, 0, 1, 0], [0, 1, 0, 0, 0, 1]]))


def test_a_column_that_the_domain_lacks_is_missing_everywhere_and_said() -> None:
    spec = encoding()
    opened = open_data(pd.DataFrame({"b": [5.0], "cc": ["x"]}))
    encoded = TABULAR.encode(opened.samples.read(np.array([0])), spec)
    assert encoded[0].tolist() == [0, 1, 0, 0, 0, 1]
    notes = TABULAR.spec_notes(opened.samples, spec)
    assert any("'a' of the encoding is not in the table" in n for n in notes)
    assert any("'c' of the encoding is not in the table (did you mean 'cc'?)" in n for n in notes)
    assert "columns that the encoding does not use: cc" in notes


def test_unseen_categories_are_counted() -> None:
    opened = open_data(pd.DataFrame({"a": [1.0, 2.0], "b": [5.0, 5.0], "c": ["z", "x"]}))
    assert any("(z) in 1 rows" in n for n in TABULAR.spec_notes(opened.samples, encoding()))


def test_the_encoding_learns_from_the_rows_it_is_given_only() -> None:
    frame = pd.DataFrame({"a": [1.0, 3.0, 1000.0], "c": ["x", "y", "late"]})
    spec = fit_encoding(open_data(frame).samples, rows=np.array([0, 1]))
    assert spec.numeric[0].mean == 2.0
    assert spec.categorical[0].categories == ("x", "y")


def test_infinite_cells_reach_the_collector() -> None:
    rows = encode(pd.DataFrame({"a": [np.inf], "b": [5.0], "c": ["x"]}))
    assert np.isinf(rows[0, 0])


def test_text_in_a_numeric_column_of_the_encoding_becomes_not_finite() -> None:
    rows = encode(pd.DataFrame({"a": ["low", "high"], "b": [5.0, 5.0], "c": ["x", "x"]}))
    assert np.isnan(rows[:, 0]).all()


def test_encoding_rows_does_not_depend_on_the_batch() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=9), "b": rng.normal(size=9), "c": rng.choice(list("xyz"), 9)})
    samples = open_data(frame).samples
    alone = torch.cat([TABULAR.encode(samples.read(np.array([i])), encoding()) for i in range(9)])
    assert torch.equal(TABULAR.encode(samples.read(np.arange(9)), encoding()), alone)


def test_without_an_encoding_only_numbers_are_inputs() -> None:
    numbers = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    assert TABULAR.encode(open_data(numbers).samples.read(np.arange(2)), None).tolist() == [[1, 3], [2, 4]]
    with pytest.raises(DataError, match="no encoding"):
        TABULAR.encode(open_data(numbers.assign(c=["x", "y"])).samples.read(np.arange(2)), None)


def test_too_many_categories_are_refused() -> None:
    frame = pd.DataFrame({"c": [f"v{i}" for i in range(1001)]})
    with pytest.raises(DataError, match="1001 categories"):
        fit_encoding(open_data(frame, categorical=["c"]).samples)


# ---------------------------------------------------------------- content, properties, cues


def test_content_leaves_out_id_and_label_and_what_is_missing() -> None:
    one = pd.DataFrame({"id": ["p", "q"], "a": [1, 2], "c": ["x", None], "label": ["u", "v"]})
    other = pd.DataFrame({"c": ["x", None], "a": [1.0, 2.0], "gone": [None, None], "id": ["r", "s"], "label": ["v", "v"]})
    first = TABULAR.content_hashes(open_data(one).samples.read(np.arange(2)))
    second = TABULAR.content_hashes(open_data(other).samples.read(np.arange(2)))
    assert first == second
    assert first[0] != first[1]


def test_cells_cannot_run_into_each_other() -> None:
    a = TABULAR.content_hashes(open_data(pd.DataFrame({"a": ["x", "q"], "b": ["yz", "q"]})).samples.read(np.arange(1)))
    b = TABULAR.content_hashes(open_data(pd.DataFrame({"a": ["xy", "q"], "b": ["z", "q"]})).samples.read(np.arange(1)))
    assert a != b


def test_properties_are_the_columns_and_the_missing_share() -> None:
    frame = pd.DataFrame({"a": [1.0, np.nan], "c": ["x", None]})
    values = TABULAR.properties(open_data(frame).samples.read(np.arange(2)))
    assert values["a"].dtype == np.float64
    assert values["c"].tolist() == ["x", None]
    assert values["missing_share"].tolist() == [0, 1]


def read(frame: pd.DataFrame) -> RawBatch:
    return open_data(frame).samples.read(np.arange(len(frame)))


def test_set_column_sets_one_column_and_its_placebo_permutes_it() -> None:
    frame = pd.DataFrame({"a": np.arange(30.0), "c": list("xyz") * 10})
    cue = Cue("c to y", "set_column", {"column": "c", "value": "y"})
    batch = read(frame)
    told = rows_of(TABULAR.apply_cue(batch, cue, placebo=False, key=(0,)).items)
    mixed = rows_of(TABULAR.apply_cue(batch, cue, placebo=True, key=(0,)).items)
    assert set(told.columns["c"]) == {"y"}
    assert sorted(mixed.columns["c"]) == sorted(frame["c"])
    assert mixed.columns["c"].tolist() != frame["c"].tolist()
    assert told.columns["a"].tolist() == mixed.columns["a"].tolist() == frame["a"].tolist()
    assert rows_of(batch.items).columns["c"].tolist() == frame["c"].tolist()


def test_cues_of_tables_name_what_is_wrong() -> None:
    batch = read(pd.DataFrame({"a": [1.0, 2.0]}))
    with pytest.raises(DataError, match="no column 'b'"):
        TABULAR.apply_cue(batch, Cue("q", "set_column", {"column": "b", "value": 1}), placebo=False, key=())
    with pytest.raises(DataError, match="sets the numeric column 'a' to 'tall'"):
        TABULAR.apply_cue(batch, Cue("q", "set_column", {"column": "a", "value": "tall"}), placebo=False, key=())
    with pytest.raises(DataError, match="unknown cue of tables 'patch'"):
        TABULAR.apply_cue(batch, Cue("q", "patch"), placebo=False, key=())


# ---------------------------------------------------------------- real data


@pytest.mark.real_data
def test_four_hospitals_missing_columns_are_found(shared_data: Path) -> None:
    heart = shared_data / "heart4"
    sites = {
        name: Domain(
            name, heart / f"processed.{name}.csv", label="target", label_map={str(i): ("no" if i == 0 else "yes") for i in range(5)}
        )
        for name in ("cleveland", "hungarian", "switzerland", "va")
    }
    assert [int((d.labels == "yes").sum()) for d in sites.values()] == [139, 106, 115, 149]  # type: ignore[union-attr]
    assert [len(d) for d in sites.values()] == [303, 294, 123, 200]
    assert any("'ca' is missing in 99%" in note for note in sites["hungarian"].notes)
    assert any("'thal' is missing in 90%" in note for note in sites["hungarian"].notes)
    encoded = fit_encoding(sites["cleveland"])
    for domain in sites.values():
        inputs = TABULAR.encode(domain.samples.read(np.arange(len(domain))), encoded)
        assert inputs.shape == (len(domain), encoded.width)
        assert torch.isfinite(inputs).all()


@pytest.mark.real_data
def test_german_credit_is_read(shared_data: Path) -> None:
    opened = open_data(shared_data / "german" / "german.csv")
    assert len(opened.samples) == 1000
    assert not opened.samples.row_errors  # type: ignore[attr-defined]


def test_an_encoding_of_a_subset_is_that_of_its_rows():
    frame = pd.DataFrame({"a": [1.0, 2.0, 30.0, 40.0, 50.0], "b": ["x", "x", "y", "y", "z"]})
    domain = Domain("t", frame, kind="tabular")
    part = domain.subset([3, 1, 0])
    assert fit_encoding(part.subset([0, 2])) == fit_encoding(domain, rows=np.array([3, 0]))
    assert fit_encoding(part, rows=np.array([1])) == fit_encoding(domain, rows=np.array([1]))
