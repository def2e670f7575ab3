"""Opening data: the three forms of folders, metadata, labels by name, groups, clusters, sentences of errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from tl_audit.errors import DataError
from tl_audit.modality import IMAGE, open_data
from tl_audit.modality.annotations import bin_names


def write(root: Path, *names: str) -> None:
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), i * 9 % 256, dtype=np.uint8)).save(path)


def table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# ---------------------------------------------------------------- folders


def test_class_folders_give_labels_by_name(tmp_path: Path) -> None:
    write(tmp_path, "bees/b1.png", "ants/a1.png", "ants/deep/a2.png")
    (tmp_path / "wasps").mkdir()
    opened = open_data(tmp_path)
    assert opened.samples.ids == ("ants/a1.png", "ants/deep/a2.png", "bees/b1.png")
    assert opened.labels is not None
    assert opened.labels.tolist() == ["ants", "ants", "bees"]
    assert opened.classes == ("ants", "bees", "wasps")
    assert any("wasps" in note for note in opened.notes)


def test_numbered_class_folders_keep_their_names_whatever_the_order(tmp_path: Path) -> None:
    write(tmp_path, "1/a.png", "2/b.png", "10/c.png")
    opened = open_data(tmp_path)
    assert opened.classes == ("1", "10", "2")
    assert opened.labels is not None
    assert dict(zip(opened.samples.ids, opened.labels, strict=True)) == {"1/a.png": "1", "2/b.png": "2", "10/c.png": "10"}


def test_a_flat_folder_takes_labels_from_metadata(tmp_path: Path) -> None:
    write(tmp_path / "d", "x10.png", "x2.png")
    meta = table(tmp_path / "m.csv", "file,label,site,x\nx2.png,bee,N,1\nx10.png,ant,S,5\n")
    opened = open_data(tmp_path / "d", metadata=meta, groups=["site"])
    assert opened.samples.ids == ("x2.png", "x10.png")
    assert opened.labels is not None
    assert opened.labels.tolist() == ["bee", "ant"]
    assert opened.groups is not None
    assert opened.groups["site"].tolist() == ["N", "S"]
    assert opened.samples.metadata["x"].tolist() == ["1", "5"]  # type: ignore[attr-defined]


def test_a_flat_folder_without_metadata_is_unlabelled(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "b.png")
    opened = open_data(tmp_path)
    assert opened.labels is None
    assert opened.classes is None


@pytest.mark.parametrize("kind", ["empty", "texts", "absent"])
def test_a_folder_without_images_is_one_sentence(tmp_path: Path, kind: str) -> None:
    if kind == "texts":
        (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="no such file or folder" if kind == "absent" else "holds no images"):
        open_data(tmp_path / "nowhere" if kind == "absent" else tmp_path)


def test_hidden_files_and_other_files_are_no_samples(tmp_path: Path) -> None:
    write(tmp_path, "a.png", ".hidden.png")
    (tmp_path / "notes.txt").write_text("x")
    opened = open_data(tmp_path)
    assert opened.samples.ids == ("a.png",)
    assert any("notes.txt" in note for note in opened.notes)


def test_a_link_that_leads_back_up_ends(tmp_path: Path) -> None:
    write(tmp_path, "c/a.png")
    (tmp_path / "c" / "loop").symlink_to(tmp_path)
    assert open_data(tmp_path).samples.ids == ("c/a.png",)


# ---------------------------------------------------------------- metadata


def test_metadata_that_does_not_join_is_listed_both_ways(tmp_path: Path) -> None:
    write(tmp_path / "d", *(f"{i}.png" for i in range(20)))
    rows = "".join(f"{i}.png,a\n" for i in range(1, 21))
    opened = open_data(tmp_path / "d", metadata=table(tmp_path / "m.csv", "file,label\n" + rows))
    assert opened.labels is not None
    assert opened.labels[0] is None
    assert opened.skipped == (("20.png", "in m.csv, but there is no such sample"),)
    assert any("1 samples have no row" in note and "0.png" in note for note in opened.notes)


def test_too_little_that_joins_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "d", "a.png", "b.png")
    with pytest.raises(DataError, match=r"1 of 2 rows .* have no sample.*zz\.png"):
        open_data(tmp_path / "d", metadata=table(tmp_path / "m.csv", "file,label\na.png,x\nzz.png,y\n"))


def test_doubled_keys_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "d", "a.png")
    with pytest.raises(DataError, match=r"names 'a\.png' twice \(rows 0 and 1\)"):
        open_data(tmp_path / "d", metadata=table(tmp_path / "m.csv", "file,label\na.png,x\na.png,y\n"))


def test_a_bare_name_that_two_folders_hold_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "d", "x/a.png", "y/a.png")
    with pytest.raises(DataError, match="write relative paths"):
        open_data(tmp_path / "d", metadata=table(tmp_path / "m.csv", "file,site\na.png,N\n"))
    opened = open_data(tmp_path / "d", metadata=table(tmp_path / "n.csv", "file,site\nx/a.png,N\ny/a.png,S\n"), groups=["site"])
    assert opened.groups is not None
    assert opened.groups["site"].tolist() == ["N", "S"]


def test_metadata_without_a_key_column_says_what_it_has(tmp_path: Path) -> None:
    write(tmp_path / "d", "a.png")
    with pytest.raises(DataError, match=r"no column to join on.*it has name, label"):
        open_data(tmp_path / "d", metadata=table(tmp_path / "m.csv", "name,label\na.png,x\n"))
    assert open_data(tmp_path / "d", metadata=tmp_path / "m.csv", id="name").labels is not None


# ---------------------------------------------------------------- labels


PICTURES = np.zeros((3, 4, 4), dtype=np.uint8)


def test_integer_labels_of_a_file_are_never_an_index(tmp_path: Path) -> None:
    write(tmp_path / "d", "a.png", "b.png")
    meta = table(tmp_path / "m.csv", "file,label\na.png,0\nb.png,1\n")
    with pytest.raises(DataError, match="label_map"):
        open_data(tmp_path / "d", metadata=meta, classes=["ants", "bees"])
    mapped = open_data(tmp_path / "d", metadata=meta, classes=["bees", "ants"], label_map={"0": "ants", "1": "bees"})
    assert mapped.labels is not None
    assert mapped.labels.tolist() == ["ants", "bees"]
    assert mapped.classes == ("bees", "ants")


def test_integers_in_python_are_positions_only_where_classes_are_given() -> None:
    named = open_data(PICTURES, labels=np.array([1, 0, 1]), classes=["x", "y"])
    assert named.labels is not None
    assert named.labels.tolist() == ["y", "x", "y"]
    with pytest.raises(DataError, match="label 2 is not a position"):
        open_data(PICTURES, labels=[0, 1, 2], classes=["x", "y"])


def test_integers_without_classes_are_names_in_counting_order() -> None:
    opened = open_data(np.zeros((12, 4, 4), dtype=np.uint8), labels=np.arange(12)[::-1])
    assert opened.classes == tuple(str(i) for i in range(12))
    assert opened.labels is not None
    assert opened.labels[0] == "11"


def test_text_and_numbers_give_the_same_labels() -> None:
    assert open_data(PICTURES, labels=["1", "0", "1"]).labels.tolist() == open_data(PICTURES, labels=[1.0, 0.0, 1.0]).labels.tolist()  # type: ignore[union-attr]


def test_a_label_outside_the_classes_is_named_with_its_neighbour() -> None:
    with pytest.raises(DataError, match=r"label 'bes' is not among the classes \(did you mean 'bees'\?\)"):
        open_data(PICTURES, labels=["ants", "bes", "bees"], classes=["ants", "bees"])


def test_label_map_must_know_every_label() -> None:
    with pytest.raises(DataError, match="label_map has no entry for label '2'"):
        open_data(PICTURES, labels=[0, 1, 2], label_map={0: "a", 1: "b"})


def test_missing_labels_stay_missing_and_none_may_be_a_class() -> None:
    opened = open_data(PICTURES, labels=["none", None, ""])
    assert opened.labels is not None
    assert opened.labels.tolist() == ["none", None, None]
    assert opened.classes == ("none",)


def test_the_positive_class_is_one_of_the_classes() -> None:
    assert open_data(PICTURES, labels=["y", "n", "n"], positive="y").positive == "y"
    with pytest.raises(DataError, match="positive = 'yes' is not among the classes"):
        open_data(PICTURES, labels=["y", "n", "n"], positive="yes")


# ---------------------------------------------------------------- groups, clusters


def test_every_form_of_missing_is_one_group() -> None:
    opened = open_data(np.zeros((6, 4, 4), dtype=np.uint8), groups={"sex": ["f", None, float("nan"), "", "nan", "None"]})
    assert opened.groups is not None
    assert opened.groups["sex"].tolist() == ["f", *["(missing)"] * 5]


def test_lengths_that_differ_are_said_with_both_numbers() -> None:
    with pytest.raises(DataError, match=r"groups\['sex'\] has 2 rows, the data has 3"):
        open_data(PICTURES, groups={"sex": ["f", "m"]})
    with pytest.raises(DataError, match="labels has 4 rows, the data has 3"):
        open_data(PICTURES, labels=[1, 2, 3, 4])
    with pytest.raises(DataError, match="cluster has 1 rows, the data has 3"):
        open_data(PICTURES, cluster=["p"])


def test_bins_have_names_that_do_not_depend_on_the_data() -> None:
    assert bin_names([45, 55]) == ("<45", "45–54", ">=55")
    assert bin_names([1, 2]) == ("<1", "1", ">=2")
    assert bin_names([0.5, 1.5]) == ("<0.5", "0.5–<1.5", ">=1.5")


def test_ages_are_binned_from_text_and_numbers_alike() -> None:
    frame = pd.DataFrame({"x": range(5), "age": [44, 45, 54.9, 55, None], "label": list("aabbb")})
    text = frame.assign(age=["44.0", "45", "54.9", "55", "?"])
    for data in (frame, text):
        opened = open_data(data, groups=[{"column": "age", "bins": [45, 55]}])
        assert opened.groups is not None
        assert opened.groups["age"].tolist() == ["<45", "45–54", "45–54", ">=55", "(missing)"]


def test_bins_need_rising_numbers_and_numeric_cells() -> None:
    frame = pd.DataFrame({"x": [1, 2], "age": ["young", "old"]})
    with pytest.raises(DataError, match="holds 'young', which is no number"):
        open_data(frame, groups=[{"column": "age", "bins": [45]}])
    with pytest.raises(DataError, match="rising"):
        open_data(frame, groups=[{"column": "x", "bins": [55, 45]}])


def test_an_unknown_group_column_suggests_the_nearest() -> None:
    with pytest.raises(DataError, match=r"no column 'sexx', named as a group \(did you mean 'sex'\?\)"):
        open_data(pd.DataFrame({"x": [1.0], "sex": ["f"]}), groups=["sexx"])


def test_group_columns_of_pictures_need_metadata() -> None:
    with pytest.raises(DataError, match="no metadata"):
        open_data(PICTURES, groups=["sex"])


def test_a_cluster_column_is_no_feature() -> None:
    opened = open_data(pd.DataFrame({"x": [1.0, 2.0], "patient": ["p1", None]}), cluster="patient")
    assert opened.cluster is not None
    assert opened.cluster.tolist() == ["p1", None]
    assert list(opened.samples.columns) == ["x"]  # type: ignore[attr-defined]


# ---------------------------------------------------------------- options and kinds


def test_unknown_options_suggest_the_nearest() -> None:
    with pytest.raises(DataError, match=r"unknown option of image data 'metdata' \(did you mean 'metadata'\?\)"):
        open_data(PICTURES, metdata="x.csv")
    with pytest.raises(DataError, match="unknown cap 'pixel'"):
        open_data(PICTURES, caps={"pixel": 3})
    with pytest.raises(DataError, match="unknown kind of data 'images'"):
        open_data(PICTURES, kind="images")


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (PICTURES, "image"),
        (torch.zeros((2, 3, 4, 4), dtype=torch.uint8), "image"),
        ([Image.new("RGB", (4, 4))], "image"),
        (np.zeros((2, 3), dtype=np.float32), "tensor"),
        (torch.zeros(2, 3, 4, 4), "tensor"),
        (pd.DataFrame({"a": [1, 2]}), "tabular"),
        ({"a": [1, 2]}, "tabular"),
        (TensorDataset(torch.zeros(2, 3), torch.tensor([0, 1])), "tensor"),
    ],
)
def test_the_kind_is_found_from_the_data(data: object, kind: str) -> None:
    assert open_data(data).samples.modality.kind == kind


def test_floats_as_pictures_are_refused() -> None:
    with pytest.raises(DataError, match="uint8"):
        open_data(np.zeros((2, 4, 4)), kind="image")


class Folder(Dataset):  # type: ignore[type-arg]
    classes = ("zebra", "ant")
    targets = (0, 1, 1)

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return Image.new("RGB", (4, 4), (i, 0, 0)), self.targets[i]


def test_a_torch_data_set_brings_its_class_names_in_its_order() -> None:
    opened = open_data(Folder())
    assert opened.labels is not None
    assert opened.labels.tolist() == ["zebra", "ant", "ant"]
    assert opened.classes == ("zebra", "ant")
    assert opened.samples.read(np.array([2])).items[0][0, 0].tolist() == [2, 0, 0]


def test_ready_samples_are_taken_as_they_are() -> None:
    first = open_data(PICTURES)
    again = open_data(first.samples, labels=["a", "b", "a"])
    assert again.samples is first.samples
    assert again.samples.modality is IMAGE


def test_a_single_file_is_one_sample(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    assert open_data(tmp_path / "a.png").samples.ids == ("a.png",)
