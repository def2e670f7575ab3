"""Regions: every way to give them, bad ones in one sentence, and where they lie after the model's own preprocessing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tl_audit.config import build_subject, load_audit
from tl_audit.errors import ConfigError, DataError, NotEvaluated
from tl_audit.evidence import collect
from tl_audit.evidence.keys import input_key
from tl_audit.modality import IMAGE, open_data
from tl_audit.modality.base import Cue
from tl_audit.modality.regions import cue_places, drawn
from tl_audit.models import Model, build, save_weights
from tl_audit.records.preprocessing import Preprocessing
from tl_audit.subject import Domain, Subject

BOX = (6.0, 4.0, 20.0, 14.0)
WIDTH, HEIGHT = 36, 24


def painted(boxes: list[tuple[float, ...]], height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A black picture, white inside the boxes."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    for x0, y0, x1, y1 in boxes:
        pixels[int(y0) : int(y1), int(x0) : int(x1)] = 255
    return pixels


def folder(root: Path, n: int = 3, boxes: list[tuple[float, ...]] | None = None) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.fromarray(painted([BOX] if boxes is None else boxes)).save(root / f"p{i}.png")
    return root


def table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def inside(domain: Domain, rows: list[int], spec: Preprocessing | None = None) -> tuple[np.ndarray, np.ndarray]:
    assert domain.regions is not None
    return domain.regions.read(domain.samples.read(np.array(rows)), spec)


def white(domain: Domain, rows: list[int], spec: Preprocessing) -> np.ndarray:
    """Where the painted pictures are white after the model's preprocessing, read from the pictures themselves."""
    nearest = spec.model_copy(update={"interpolation": "nearest", "antialias": False})
    return IMAGE.encode(domain.samples.read(np.array(rows)), nearest).numpy()[:, 0] > 0.5


# ---------------------------------------------------------------- geometry, against the picture itself

SPECS = [
    Preprocessing(height=16, width=16),
    Preprocessing(height=24, width=36),
    Preprocessing(height=16, width=16, resize=20, crop="center"),
    Preprocessing(height=48, width=40, resize=48, crop="center", interpolation="bicubic"),
    Preprocessing(height=12, width=30, channels=1),
]


@pytest.mark.parametrize("exif", ["transpose", "ignore"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_lies_where_the_same_box_painted_into_the_file_lies(tmp_path: Path, orientation: int, exif: str) -> None:
    tag = Image.Exif()
    tag[0x0112] = orientation
    (tmp_path / "d").mkdir()
    Image.fromarray(painted([BOX])).save(tmp_path / "d" / "a.png", exif=tag)
    domain = Domain("d", tmp_path / "d", regions=[[BOX]])
    for spec in SPECS:
        spec = spec.model_copy(update={"exif": exif})
        masks, known = inside(domain, [0], spec)
        assert known.all()
        assert masks[0].any()
        assert np.array_equal(masks, white(domain, [0], spec)), spec


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_mask_of_the_file_as_stored_and_one_of_the_upright_picture_say_the_same(tmp_path: Path, orientation: int) -> None:
    tag = Image.Exif()
    tag[0x0112] = orientation
    (tmp_path / "d").mkdir()
    Image.fromarray(painted([BOX])).save(tmp_path / "d" / "a.png", exif=tag)
    stored = painted([BOX])[..., 0]
    upright = Domain("d", tmp_path / "d").samples.read(np.array([0])).items[0][..., 0]
    spec = SPECS[2]
    by_file = inside(Domain("d", tmp_path / "d", regions=[stored]), [0], spec)[0]
    assert np.array_equal(by_file, white(Domain("d", tmp_path / "d"), [0], spec))
    if orientation in (6, 8):
        assert np.array_equal(by_file, inside(Domain("d", tmp_path / "d", regions=[upright]), [0], spec)[0])


def test_smooth_resizing_moves_no_edge_by_more_than_a_pixel(tmp_path: Path) -> None:
    domain = Domain("d", folder(tmp_path / "d", 1), regions=[[BOX]])
    spec = Preprocessing(height=100, width=80, interpolation="bilinear")
    masks, _ = inside(domain, [0], spec)
    seen = IMAGE.encode(domain.samples.read(np.array([0])), spec).numpy()[0, 0] > 0.5
    differing = masks[0] ^ seen
    assert differing.sum() <= 2 * (100 + 80)
    assert abs(masks.mean() - seen.mean()) < 0.02


def test_a_region_that_the_crop_cuts_off_is_known_and_empty(tmp_path: Path) -> None:
    domain = Domain("d", folder(tmp_path / "d", 2), regions=[[(0, 0, 2, 2)], None])
    masks, known = inside(domain, [0, 1], Preprocessing(height=8, width=8, resize=24, crop="center"))
    assert known.tolist() == [True, False]
    assert not masks.any()


def test_without_preprocessing_a_region_lies_as_it_was_given() -> None:
    x = np.random.default_rng(0).random((3, 3, 10, 12)).astype(np.float32)
    wanted = np.zeros((3, 10, 12), dtype=bool)
    wanted[:, 2:5, 3:9] = True
    assert np.array_equal(inside(Domain("t", x, regions=wanted), [2, 0])[0], wanted[[2, 0]])
    assert np.array_equal(inside(Domain("t", x, regions=[[(3, 2, 9, 5)]] * 3), [1])[0], wanted[:1])


def test_drawing_counts_pixel_centres_and_loses_no_thin_box() -> None:
    assert drawn(np.array([[0.4, 0.0, 2.6, 1.0]]), (4, 2), "x").tolist() == [[True, True, True, False], [False] * 4]
    assert drawn(np.array([[2.1, 1.1, 2.3, 1.2]]), (4, 2), "x").tolist() == [[False] * 4, [False, False, True, False]]


def test_rows_come_in_the_order_asked_and_a_subset_keeps_its_own(tmp_path: Path) -> None:
    boxes = [[(i, 0, i + 4, 4)] for i in range(5)]
    domain = Domain("d", folder(tmp_path / "d", 5), regions=boxes)
    spec = Preprocessing(height=HEIGHT, width=WIDTH)
    assert inside(domain, [4, 1], spec)[0].any(axis=1).argmax(axis=1).tolist() == [4, 1]
    part = domain.subset([3, 0])
    assert inside(part, [0, 1], spec)[0].any(axis=1).argmax(axis=1).tolist() == [3, 0]
    assert part.subset([1]).regions.ids == ("p0.png",)  # type: ignore[union-attr]


# ---------------------------------------------------------------- ways to give them

PLAIN = Preprocessing(height=HEIGHT, width=WIDTH)
WANTED = painted([BOX])[..., 0] > 0


def test_metadata_hold_boxes_as_json_or_as_text(tmp_path: Path) -> None:
    data = folder(tmp_path / "d")
    rows = 'file,boxes\np0.png,"[[6,4,20,14]]"\np1.png,"6 4 20 9; 6,9,20,14"\np2.png,\n'
    domain = Domain("d", data, metadata=table(tmp_path / "m.csv", rows))
    masks, known = inside(domain, [0, 1, 2], PLAIN)
    assert known.tolist() == [True, True, False]
    assert np.array_equal(masks[0], WANTED)
    assert np.array_equal(masks[1], WANTED)
    assert "2 of 3 samples have a region (m.csv)" in domain.notes


@pytest.mark.parametrize("names", ["x0,y0,x1,y1", "xmin,ymin,xmax,ymax"])
def test_metadata_hold_one_box_per_row_and_several_rows_per_file(tmp_path: Path, names: str) -> None:
    data = folder(tmp_path / "d")
    rows = f"file,site,score,{names}\np0.png,A,0.5,6,4,20,9\np1.png,B,0.1,,,,\np0.png,A,0.7,6,9,20,14\np2.png,A,1,0,0,1,1\n"
    domain = Domain("d", data, metadata=table(tmp_path / "m.csv", rows), groups=["site"])
    masks, known = inside(domain, [0, 1, 2], PLAIN)
    assert known.tolist() == [True, False, True]
    assert np.array_equal(masks[0], WANTED)
    assert masks[2].sum() == 1
    assert domain.groups["site"].tolist() == ["A", "B", "A"]
    assert any("left out: score" in note for note in domain.notes)


def test_masks_lie_in_a_folder_of_the_same_names_with_any_suffix(tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder(tmp_path / "d" / name, 2)
        (tmp_path / "m" / name).mkdir(parents=True)
        Image.fromarray(painted([BOX])[..., 0] // 255).save(tmp_path / "m" / name / "p0.png")  # 1 is inside as well
    Image.fromarray(painted([BOX])).save(tmp_path / "m" / "a" / "p1.jpg", quality=60)
    domain = Domain("d", tmp_path / "d", masks=tmp_path / "m")
    masks, known = inside(domain, [0, 1, 2, 3], PLAIN)
    assert domain.ids == ("a/p0.png", "a/p1.png", "b/p0.png", "b/p1.png")
    assert known.tolist() == [True, True, True, False]
    assert np.array_equal(masks[0], WANTED)
    assert (masks[1] ^ WANTED).sum() < 20


def test_a_palette_mask_counts_its_numbers_and_not_its_colours(tmp_path: Path) -> None:
    data = folder(tmp_path / "d", 1)
    picture = Image.fromarray(painted([BOX])[..., 0] // 255).convert("P")
    picture.putpalette([200, 200, 200, 0, 0, 0] + [0] * 762)
    (tmp_path / "m").mkdir()
    picture.save(tmp_path / "m" / "p0.png")
    assert np.array_equal(inside(Domain("d", data, masks=tmp_path / "m"), [0], PLAIN)[0][0], WANTED)


def test_coco_and_voc_files_give_the_same_boxes(tmp_path: Path) -> None:
    data = folder(tmp_path / "d")
    coco = {
        "images": [{"id": 7, "file_name": "p0.png", "width": WIDTH, "height": HEIGHT}, {"id": 8, "file_name": "p1.png"}],
        "annotations": [{"image_id": 7, "bbox": [6, 4, 14, 10], "category_id": 1}],
    }
    coco["images"].append({"id": 9, "file_name": "elsewhere.png"})
    table(tmp_path / "c.json", json.dumps(coco))
    (tmp_path / "v").mkdir()
    table(
        tmp_path / "v" / "p0.xml",
        f"<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height></size><object><bndbox><xmin>7</xmin><ymin>5</ymin>"
        "<xmax>20</xmax><ymax>14</ymax></bndbox></object></annotation>",
    )
    assert "pictures of c.json that are not among the samples: 1" in Domain("d", data, annotations=tmp_path / "c.json").notes
    for where in ("c.json", "v"):
        masks, known = inside(Domain("d", data, annotations=tmp_path / where), [0, 1, 2], PLAIN)
        assert known.tolist() == [True, False, False]
        assert np.array_equal(masks[0], WANTED), where


def test_regions_in_python_are_arrays_lists_files_or_a_mapping(tmp_path: Path) -> None:
    data = folder(tmp_path / "d")
    Image.fromarray(painted([BOX])).save(tmp_path / "m.png")
    stack = np.stack([painted([BOX])[..., 0]] * 3)
    ways = (
        stack, stack > 0, torch.tensor(stack), [[BOX]] * 3, np.array([[BOX]] * 3), [np.array([BOX])] * 3, [BOX] * 3, [tmp_path / "m.png"] * 3,
        {f"p{i}.png": [BOX] for i in range(3)}, [np.array([[6, 4, 20, 14]])] * 3,
    )  # fmt: skip
    for regions in ways:
        masks, known = inside(Domain("d", data, regions=regions), [0, 1, 2], PLAIN)
        assert known.all()
        assert np.array_equal(masks, np.stack([WANTED] * 3))
    assert inside(Domain("d", data, regions={"p1.png": [BOX]}), [0, 1, 2], PLAIN)[1].tolist() == [False, True, False]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((30, 4, 50, 14), r"'p1.png': box 1 \(30, 4, 50, 14\) lies outside the picture, which has 36 x 24 pixels"),
        ((20, 4, 6, 14), r"'p1.png': box 1 \(20, 4, 6, 14\) is empty"),
        ((6, 4, 6, 14), "is empty"),
        ((6, float("nan"), 20, 14), "'p1.png': box 1 .* not finite"),
        ((6, 4, 20), "'p1.png': box 1 .* expected four numbers"),
        (("6", 4, 20, 14), "expected four numbers"),
        ((-9, 4, 20, 14), "lies outside"),
    ],
)
def test_a_bad_box_is_one_sentence_with_file_and_box(tmp_path: Path, box: tuple[object, ...], words: str) -> None:
    with pytest.raises(DataError, match=words):
        Domain("d", folder(tmp_path / "d"), regions=[[BOX], [box], None])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ('file,boxes\np0.png,"[[6,4,20"\n', "'p0.png': boxes .* cannot be read as a list"),
        ("file,boxes\np0.png,6 4 twenty 14\n", "'p0.png': box 1 .* expected four numbers"),
        ("file,x0,y0,x1,y1\np0.png,6,4,,14\n", "has no 'x1'"),
        ("file,x0,y0,x1,y1\np0.png,6,4,b,14\n", "'b' in 'x1', which is no number"),
        ('file,boxes,x0,y0,x1,y1\np0.png,"6 4 20 14",6,4,20,14\n', "boxes twice"),
    ],
)
def test_bad_metadata_name_what_is_wrong(tmp_path: Path, rows: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Domain("d", folder(tmp_path / "d", 1), metadata=table(tmp_path / "m.csv", rows))


def test_bad_masks_and_annotations_name_what_is_wrong(tmp_path: Path) -> None:
    data = folder(tmp_path / "d", 1)
    with pytest.raises(DataError, match="10 x 5 pixels, the picture has 36 x 24"):
        Domain("d", data, regions=np.ones((1, 5, 10), dtype=np.uint8))
    with pytest.raises(DataError, match="there is no folder"):
        Domain("d", data, masks=tmp_path / "nowhere")
    (tmp_path / "m").mkdir()
    with pytest.raises(DataError, match="holds no mask pictures"):
        Domain("d", data, masks=tmp_path / "m")
    Image.fromarray(painted([BOX])).save(tmp_path / "m" / "other.png")
    with pytest.raises(DataError, match="not one of the 1 samples has a region"):
        Domain("d", data, masks=tmp_path / "m")
    with pytest.raises(DataError, match="given twice: regions and masks"):
        Domain("d", data, masks=tmp_path / "m", regions=[[BOX]])
    with pytest.raises(DataError, match="cannot be read as COCO"):
        Domain("d", data, annotations=table(tmp_path / "c.json", "{}"))
    with pytest.raises(DataError, match="2 entries, the data has 1"):
        Domain("d", data, regions=[[BOX], [BOX]])
    (tmp_path / "v").mkdir()
    table(tmp_path / "v" / "p0.xml", '<!DOCTYPE a [<!ENTITY b "c">]><annotation/>')
    with pytest.raises(DataError, match="no plain Pascal VOC"):
        Domain("d", data, annotations=tmp_path / "v")


def test_an_empty_column_of_boxes_gives_no_regions_and_says_so(tmp_path: Path) -> None:
    data = folder(tmp_path / "d", 2)
    for text in ("file,boxes\np0.png,\np1.png,nan\n", "file,x0,y0,x1,y1\np0.png,,,,\np1.png,,,,\n"):
        domain = Domain("d", data, metadata=table(tmp_path / "m.csv", text))
        assert domain.regions is None
        assert "the column 'boxes' of m.csv is empty: no sample has a region" in domain.notes


def test_a_table_keeps_columns_named_as_edges() -> None:
    columns = {name: [1.0, 2.0] for name in ("x0", "y0", "x1", "y1")}
    opened = open_data(columns, labels=["a", "b"])
    assert opened.regions is None
    with pytest.raises(DataError, match="unknown option of tabular data 'regions'"):
        open_data(columns, regions=[None, None])


# ---------------------------------------------------------------- evidence


class Mean(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.mean(dim=(1, 2, 3)) * self.scale
        return torch.stack([y, -y], dim=1)


def test_evidence_gives_regions_at_the_size_of_the_input_or_says_how_to_give_them(tmp_path: Path) -> None:
    spec = Preprocessing(height=16, width=16, resize=20, crop="center")
    model = Model(Mean(), classes=("a", "b"), preprocessing=spec)
    data = folder(tmp_path / "d", 4)
    subject = Subject(adapted=model, target=Domain("d", data, regions=[[BOX], [BOX], None, [BOX]]))
    evidence = collect(subject)
    masks, known = evidence.regions("target", np.array([3, 2]))
    assert masks.shape == (2, 16, 16)
    assert known.tolist() == [True, False]
    assert np.array_equal(masks[0], white(subject.target, [3], spec)[0])
    without = collect(Subject(adapted=model, target=Domain("d", data)))
    with pytest.raises(NotEvaluated, match=r"masks = or annotations = in \[target\]"):
        without.regions("target", np.array([0]))


def test_what_is_measured_depends_on_what_the_regions_say(tmp_path: Path) -> None:
    model = Model(Mean(), classes=("a", "b"), preprocessing=PLAIN)
    data = folder(tmp_path / "d", 2)
    (tmp_path / "m").mkdir()

    def key(**how: object) -> str:
        return input_key(collect(Subject(adapted=model, target=Domain("d", data, **how))), {})  # type: ignore[arg-type]

    keys = [key(), key(regions=[[BOX], None]), key(regions=[[BOX], [BOX]]), key(regions=[[(6, 4, 20, 15)], None])]
    for pixels in (painted([BOX]), painted([(0, 0, 5, 5)])):
        Image.fromarray(pixels).save(tmp_path / "m" / "p0.png")
        keys.append(key(masks=tmp_path / "m"))
    assert len(set(keys)) == len(keys)
    assert key(regions=[[BOX], None]) == keys[1]


# ---------------------------------------------------------------- the place of a cue


@pytest.mark.parametrize("kind", ["patch", "border", "text"])
@pytest.mark.parametrize("placebo", [False, True])
def test_the_place_of_a_cue_is_where_the_picture_below_it_no_longer_shows(tmp_path: Path, kind: str, placebo: bool) -> None:
    domain = Domain("d", folder(tmp_path / "d", 2, boxes=[]))
    raw = domain.samples.read(np.array([0, 1]))
    cue = Cue("mark", kind, {"text": {"text": "II", "size": 0.5}}.get(kind, {}))
    places = cue_places(IMAGE, raw, cue, PLAIN, placebo=placebo, key=(0, "t"))
    assert places is not None
    changed = [np.array(IMAGE.apply_cue(raw, cue, placebo=placebo, key=(0, "t")).items[i]).any(axis=-1) for i in (0, 1)]
    for i in (0, 1):  # on a black picture: whatever is not black was drawn, and what was drawn may be black
        if not (kind == "border" and not placebo):
            assert not (changed[i] & ~places[i]).any()
        assert 0 < places[i].mean() < 0.6


def test_a_patch_on_ready_tensors_has_a_place_too() -> None:
    domain = Domain("t", np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32))
    raw = domain.samples.read(np.array([0, 1]))
    cue = Cue("mark", "patch", {"corner": "bottom-left", "size": 0.25, "value": 9.0})
    places = cue_places(domain.samples.modality, raw, cue, None, placebo=False, key=(0,))
    assert places is not None
    wanted = np.zeros((8, 8), dtype=bool)
    wanted[6:, :2] = True
    assert np.array_equal(places, np.stack([wanted] * 2))
    placebo = cue_places(domain.samples.modality, raw, cue, None, placebo=True, key=(0,))
    assert placebo is not None
    assert placebo.sum(axis=(1, 2)).tolist() == [4, 4]


def test_a_corner_patch_lies_in_its_corner_and_a_colour_cast_nowhere(tmp_path: Path) -> None:
    domain = Domain("d", folder(tmp_path / "d", 1, boxes=[]))
    raw = domain.samples.read(np.array([0]))
    spec = Preprocessing(height=48, width=48)
    places = cue_places(IMAGE, raw, Cue("c", "patch", {"corner": "bottom-right", "size": 0.25}), spec, placebo=False, key=(0,))
    assert places is not None
    rows, columns = np.flatnonzero(places[0].any(axis=1)), np.flatnonzero(places[0].any(axis=0))
    assert (rows[0], rows[-1]) == (36, 47)  # 6 of 24 rows
    assert (columns[0], columns[-1]) == (40, 47)  # 6 of 36 columns
    assert cue_places(IMAGE, raw, Cue("h", "hue", {}), spec, placebo=False, key=(0,)) is None


# ---------------------------------------------------------------- audit.toml


def test_audit_toml_names_masks_annotations_or_columns(tmp_path: Path) -> None:
    folder(tmp_path / "data" / "cat")
    folder(tmp_path / "data" / "dog")
    save_weights(build("tl_audit:small_cnn", num_classes=2, input_size=16).module, tmp_path / "w.safetensors")
    (tmp_path / "m" / "cat").mkdir(parents=True)
    Image.fromarray(painted([BOX])).save(tmp_path / "m" / "cat" / "p0.png")
    coco = {"images": [{"id": 1, "file_name": "dog/p2.png"}], "annotations": [{"image_id": 1, "bbox": [6, 4, 14, 10]}]}
    table(tmp_path / "c.json", json.dumps(coco))
    table(tmp_path / "m.csv", "file,boxes\n" + "".join(f"{c}/p{i}.png,6 4 20 14\n" for c in ("cat", "dog") for i in range(3)))
    model = '[adapted]\nweights = "w.safetensors"\narch = "tl_audit:small_cnn"\nclasses = ["cat", "dog"]\ninput_size = 16\n'

    def subject(line: str) -> Subject:
        return build_subject(load_audit(table(tmp_path / "audit.toml", f'{model}[target]\npath = "data"\n{line}\n')))

    given = {line: subject(line).target.regions for line in ('masks = "m"', 'annotations = "c.json"', 'metadata = "m.csv"', "")}
    assert [None if r is None else r.given.nonzero()[0].tolist() for r in given.values()] == [[0], [5], [0, 1, 2, 3, 4, 5], None]
    with pytest.raises(ConfigError, match=r"\[target\] masks: there is no"):
        subject('masks = "nowhere"')
    with pytest.raises(DataError, match=r"\[target\] .*given twice: masks and annotations"):
        subject('masks = "m"\nannotations = "c.json"')
