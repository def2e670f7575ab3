"""Removing parts, putting cues in, drawing: what stays is bit-equal, what comes in is what it says."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import spsolve

from tl_audit.errors import DataError
from tl_audit.measures.sampling import generator
from tl_audit.modality import IMAGE, TABULAR, TENSOR, Cue, open_data
from tl_audit.modality.image import cue_colour, put_cue, random_box
from tl_audit.modality.imputation import blurred, linear_fill
from tl_audit.modality.pictures import is_blank
from tl_audit.records.preprocessing import CategoricalColumn, NumericColumn, Preprocessing, TableEncoding

SPEC = Preprocessing(height=24, width=24, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
TABLE = TableEncoding(
    numeric=(NumericColumn(name="a", mean=0, std=1, fill=0, missing_indicator=True),),
    categorical=(CategoricalColumn(name="c", categories=("x", "y")),),
)


def pictures(n: int = 4) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(n, 3, 24, 24)).astype(np.float32))


def rows(n: int = 6) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(size=(n, TABLE.width)).astype(np.float32))


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("method", ["mean", "blur", "noisy_linear", "zero", "marginal"])
def test_pixels_that_stay_are_bit_equal_and_those_removed_are_not(method: str) -> None:
    inputs = pictures()
    players = IMAGE.players(inputs, SPEC)
    keep = np.random.default_rng(2).random((7, int(players.count.max()))) < 0.5
    index = np.array([0, 0, 1, 2, 3, 3, 1])
    masked = IMAGE.mask(inputs, players, keep, index=index, spec=SPEC, method=method, background=pictures(3) + 1, key=(0, "t"))  # type: ignore[arg-type]
    for r, i in enumerate(index):
        kept = torch.from_numpy(keep[r])[players.assignment[i]]
        assert torch.equal(masked[r][:, kept], inputs[i][:, kept])
        assert not torch.isclose(masked[r][:, ~kept], inputs[i][:, ~kept]).all()
    assert torch.isfinite(masked).all()


@pytest.mark.parametrize("method", ["mean", "blur", "noisy_linear", "zero", "marginal"])
def test_keeping_everything_changes_nothing(method: str) -> None:
    inputs = pictures(2)
    players = IMAGE.players(inputs, SPEC)
    keep = np.ones((2, int(players.count.max())), dtype=bool)
    masked = IMAGE.mask(inputs, players, keep, index=np.arange(2), spec=SPEC, method=method, background=pictures(3), key=())  # type: ignore[arg-type]
    assert torch.equal(masked, inputs)


def test_a_row_does_not_depend_on_the_rows_behind_it() -> None:
    inputs = pictures()
    players = IMAGE.players(inputs, SPEC)
    keep = np.random.default_rng(3).random((6, int(players.count.max()))) < 0.5
    for method in ("noisy_linear", "marginal"):
        how = {"spec": SPEC, "method": method, "background": pictures(5), "key": (1,)}
        whole = IMAGE.mask(inputs, players, keep, index=np.array([0, 1, 2, 3, 0, 1]), **how)  # type: ignore[arg-type]
        part = IMAGE.mask(inputs, players, keep[:2], index=np.array([0, 1]), **how)  # type: ignore[arg-type]
        assert torch.equal(whole[:2], part)


def exact_fill(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Noiseless ROAD imputation by one sparse solve, from the paper: weights 1/6 direct, 1/12 diagonal, renormalised at the border."""
    height, width = removed.shape
    number = -np.ones((height, width), dtype=int)
    number[removed] = np.arange(removed.sum())
    system = lil_matrix((int(removed.sum()), int(removed.sum())))
    right = np.zeros(int(removed.sum()))
    for y, x in np.argwhere(removed):
        total = 0.0
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                if (dy, dx) == (0, 0) or not (0 <= y + dy < height and 0 <= x + dx < width):
                    continue
                weight = 1 / 6 if 0 in (dy, dx) else 1 / 12
                total += weight
                if removed[y + dy, x + dx]:
                    system[number[y, x], number[y + dy, x + dx]] -= weight
                else:
                    right[number[y, x]] += weight * image[y + dy, x + dx]
        system[number[y, x], number[y, x]] += total
    out = image.copy()
    out[removed] = spsolve(system.tocsr(), right)
    return out


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_linear_imputation_is_near_the_exact_solution(share: float) -> None:
    rng = np.random.default_rng(4)
    y, x = np.mgrid[0:48, 0:48] / 48
    image = 0.5 + 0.3 * np.sin(5 * x) * np.cos(4 * y) + 0.05 * rng.normal(size=(48, 48))
    blocks = rng.random((6, 6)) < share
    removed = np.kron(blocks, np.ones((8, 8))).astype(bool)
    exact = exact_fill(image, removed)
    ours = linear_fill(torch.from_numpy(image)[None, None], torch.from_numpy(removed)[None])[0, 0].numpy()
    assert np.abs(ours - exact).max() < 0.03 * (image.max() - image.min())
    assert np.abs(ours - exact)[removed].mean() < 0.005 * (image.max() - image.min())


def test_linear_imputation_continues_a_plain_colour() -> None:
    image = torch.full((2, 3, 30, 20), 0.7)
    removed = torch.zeros(2, 30, 20, dtype=torch.bool)
    removed[0, 5:25, 3:15] = True
    removed[1] = True
    assert linear_fill(image, removed).numpy() == pytest.approx(0.7, abs=1e-5)


def test_noise_is_a_hundredth_of_the_pixel_range() -> None:
    inputs = torch.zeros(1, 3, 24, 24)
    players = IMAGE.players(inputs, SPEC)
    keep = np.zeros((1, int(players.count.max())), dtype=bool)
    masked = IMAGE.mask(inputs, players, keep, index=np.array([0]), spec=SPEC, method="noisy_linear", key=())
    assert float(masked.std()) == pytest.approx(0.01 / 0.25, rel=0.1)


def test_blur_keeps_a_plain_picture_and_flattens_noise() -> None:
    assert blurred(torch.full((1, 3, 16, 24), 0.3)).numpy() == pytest.approx(0.3, abs=1e-5)
    assert float(blurred(pictures(1)).std()) < 0.3 * float(pictures(1).std())


def test_columns_come_and_go_with_all_their_slots() -> None:
    inputs, background = rows(), rows(40) + 100
    players = TABULAR.players(inputs, TABLE)
    assert players.names == ("a", "c")
    assert players.assignment[0].tolist() == [0, 0, 1, 1, 1]
    keep = np.array([[True, False], [False, True], [True, True]])
    masked = TABULAR.mask(inputs, players, keep, index=np.array([0, 1, 2]), spec=TABLE, method="marginal", background=background, key=(0,))
    assert torch.equal(masked[0, :2], inputs[0, :2])
    assert torch.equal(masked[1, 2:], inputs[1, 2:])
    assert torch.equal(masked[2], inputs[2])
    assert any(torch.equal(masked[0, 2:], b[2:]) for b in background)
    assert any(torch.equal(masked[1, :2], b[:2]) for b in background)


def test_marginal_draws_reach_the_whole_background() -> None:
    inputs = torch.zeros(1, 2)
    background = torch.arange(10.0)[:, None].repeat(1, 2)
    players = TENSOR.players(inputs, None)
    masked = TENSOR.mask(
        inputs,
        players,
        np.zeros((400, 2), dtype=bool),
        index=np.zeros(400, dtype=int),
        spec=None,
        method="marginal",
        background=background,
        key=(),
    )
    assert set(masked[:, 0].tolist()) == set(range(10))
    assert (masked[:, 0] != masked[:, 1]).any()


def test_marginal_without_a_background_is_refused() -> None:
    inputs = rows()
    with pytest.raises(DataError, match="needs a background"):
        TABULAR.mask(
            inputs, TABULAR.players(inputs, TABLE), np.ones((1, 2), dtype=bool), index=np.array([0]), spec=TABLE, method="marginal"
        )


def test_the_baseline_of_a_table_is_its_mean_with_category_unknown() -> None:
    assert TABULAR.baseline(rows(2), TABLE, None).tolist() == [[0, 0, 0, 0, 1]] * 2
    assert torch.allclose(TABULAR.baseline(rows(2), TABLE, rows())[1], rows().mean(dim=0))


def test_edges_lie_where_the_picture_changes() -> None:
    image = torch.zeros(1, 3, 12, 12)
    image[..., 6:] = 1
    edges = IMAGE.edges(image)
    assert edges is not None
    assert edges.shape == (1, 12, 12)
    assert (edges[0, :, 5:7] > 0).all()
    assert edges[0, :, :5].max() == edges[0, :, 7:].max() == 0
    assert TABULAR.edges(rows()) is None


# ---------------------------------------------------------------- cues


def plain(side: int = 50) -> np.ndarray:
    return np.full((side, side, 3), 100, dtype=np.uint8)


def test_a_patch_lies_in_its_corner_with_its_size_and_value() -> None:
    cue = Cue("mark", "patch", {"corner": "bottom-right", "size": 0.16, "value": 0.05})
    marked = put_cue(plain(), cue, placebo=False, rng=generator(0))
    assert (marked != 100).any(axis=-1).sum() == 64
    assert (marked[42:, 42:] == round(255 * 0.05)).all()


@pytest.mark.parametrize("kind", ["patch", "border"])
def test_the_placebo_changes_the_same_area_elsewhere(kind: str) -> None:
    cue = Cue("q", kind, {"value": 1.0})
    area = (put_cue(plain(), cue, placebo=False, rng=generator(0)) != 100).any(axis=-1).sum()
    places = []
    for i in range(20):
        changed = (put_cue(plain(), cue, placebo=True, rng=generator(i)) != 100).any(axis=-1)
        places.append(tuple(np.argwhere(changed)[0]))
        assert changed.sum() == pytest.approx(area, rel=0.1)
    assert len(set(places)) > 5


@pytest.mark.parametrize(("height", "width", "area"), [(10, 40, 100), (40, 10, 390), (7, 7, 49), (30, 30, 1), (5, 100, 400)])
def test_a_random_box_fits_and_keeps_its_area(height: int, width: int, area: int) -> None:
    top, left, h, w = random_box(height, width, area, generator(0))
    assert 0 <= top <= height - h
    assert 0 <= left <= width - w
    assert h * w == pytest.approx(area, abs=max(h, w))


@pytest.mark.parametrize("kind", ["patch", "border", "hue", "text"])
def test_cues_depend_on_the_sample_and_not_on_the_batch(kind: str) -> None:
    samples = open_data(np.stack([plain()] * 4)).samples
    cue = Cue("q", kind)
    whole = IMAGE.apply_cue(samples.read(np.arange(4)), cue, placebo=True, key=(0,))
    alone = IMAGE.apply_cue(samples.read(np.array([2])), cue, placebo=True, key=(0,))
    assert np.array_equal(whole.items[2], alone.items[0])
    assert not np.array_equal(whole.items[2], whole.items[3])
    told = IMAGE.apply_cue(samples.read(np.arange(4)), cue, placebo=False, key=(0,))
    assert all(np.array_equal(told.items[0], item) for item in told.items)
    assert np.array_equal(samples.read(np.array([0])).items[0], plain())


def test_a_hat_lies_in_the_middle_of_the_upper_edge_with_a_brim_wider_than_its_crown() -> None:
    changed = (put_cue(plain(), Cue("h", "hat", {"size": 0.48, "value": 0.0}), placebo=False, rng=generator(0)) != 100).any(axis=-1)
    rows = changed.sum(axis=1)
    assert (rows[0], rows.max(), rows[-1]) == (12, 24, 0)
    assert np.array_equal(changed, changed[:, ::-1])
    area = int(changed.sum())
    for i in range(10):
        placebo = (put_cue(plain(), Cue("h", "hat", {"size": 0.48}), placebo=True, rng=generator(i)) != 100).any(axis=-1)
        assert placebo.sum() == pytest.approx(area, rel=0.1)


def test_a_background_leaves_the_region_bit_equal_and_takes_a_colour_or_a_picture(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    region = np.zeros((20, 30), dtype=bool)
    region[5:12, 8:20] = True
    behind = np.zeros((40, 40, 3), dtype=np.uint8)
    behind[..., 2] = 200
    Image.fromarray(behind).save(tmp_path / "sky.png")
    for settings, colour in (({"value": [1.0, 0.0, 0.0]}, (255, 0, 0)), ({"picture": str(tmp_path / "sky.png")}, (0, 0, 200))):
        cue = Cue("b", "background", settings)
        out = put_cue(pixels, cue, placebo=False, rng=generator(0), region=region)
        assert np.array_equal(out[region], pixels[region])
        assert (out[~region] == colour).all()
        placebo = put_cue(pixels, cue, placebo=True, rng=generator(0), region=region)
        assert np.array_equal(placebo[region], pixels[region])
        assert len(np.unique(placebo[~region], axis=0)) == 1
    assert np.array_equal(put_cue(pixels, cue, placebo=False, rng=generator(0)), pixels)
    with pytest.raises(DataError, match=r"the picture none\.png cannot be read"):
        put_cue(pixels, Cue("b", "background", {"picture": str(tmp_path / "none.png")}), placebo=False, rng=generator(0), region=region)


def test_what_a_cue_puts_in_is_part_of_its_key_files_too(tmp_path: Path) -> None:
    path = tmp_path / "sky.png"
    cue = Cue("b", "background", {"picture": str(path)})
    keys = {cue.content_key}
    for shade in (0, 9):
        Image.fromarray(np.full((4, 4, 3), shade, dtype=np.uint8)).save(path)
        keys.add(cue.content_key)
    keys.add(Cue("b", "background", {"value": 1.0}).content_key)
    assert len(keys) == 4
    assert Cue("b", "hue", {"value": 1.0, "strength": 0.1}).content_key == Cue("b", "hue", {"strength": 0.1, "value": 1.0}).content_key


def test_settings_of_cues_are_checked() -> None:
    batch = open_data(plain()[None]).samples.read(np.array([0]))
    with pytest.raises(DataError, match=r"unknown setting of cue 'q' 'conrer' \(did you mean 'corner'\?\)"):
        IMAGE.apply_cue(batch, Cue("q", "patch", {"conrer": "top-left"}), placebo=False, key=())
    with pytest.raises(DataError, match="size is 3, expected a number from 0 to 1"):
        IMAGE.apply_cue(batch, Cue("q", "patch", {"size": 3}), placebo=False, key=())
    with pytest.raises(DataError, match="corner of cue 'q': 'middle'"):
        IMAGE.apply_cue(batch, Cue("q", "patch", {"corner": "middle"}), placebo=False, key=())
    with pytest.raises(DataError, match="value is"):
        cue_colour(Cue("q", "patch", {"value": [0, 1]}), 1.0)


def test_tensors_take_a_patch_and_columns_a_value() -> None:
    images = open_data(torch.rand(3, 1, 10, 10)).samples.read(np.arange(3))
    marked = TENSOR.apply_cue(images, Cue("q", "patch", {"size": 0.2, "value": 1.0}), placebo=False, key=())
    assert all(bool((m[:, :2, :2] == i.max()).all()) for m, i in zip(marked.items, images.items, strict=True))
    vectors = open_data(torch.rand(3, 4)).samples.read(np.arange(3))
    told = TENSOR.apply_cue(vectors, Cue("q", "set_column", {"column": "f2", "value": 9}), placebo=False, key=())
    assert [float(t[2]) for t in told.items] == [9, 9, 9]


# ---------------------------------------------------------------- pictures


def opened(png: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(png)))


def test_pictures_are_small_png_without_metadata() -> None:
    shown = IMAGE.picture(torch.rand(3, 300, 200), None, title="one", side=1000)
    assert shown is not None
    assert shown.png is not None
    image = opened(shown.png)
    assert (shown.width, shown.height) == image.size == (149, 224)
    assert image.format == "PNG"
    assert image.info == {}


def test_redacted_pictures_hold_32_pixels() -> None:
    for shown in (
        IMAGE.picture(torch.rand(3, 300, 200), None, title="one", redacted=True),
        IMAGE.map_picture(
            torch.rand(3, 300, 200), np.random.default_rng(0).random((300, 200)), None, title="m", signed=False, redacted=True
        ),
    ):
        assert shown is not None
        assert shown.png is not None
        assert max(opened(shown.png).size) == 32
        assert shown.note == "redacted to 32 px"


@pytest.mark.parametrize("values", [np.zeros((8, 8)), np.full((8, 8), 3.0), np.full((8, 8), np.nan)])
def test_blank_maps_say_so_instead_of_stretching(values: np.ndarray) -> None:
    assert is_blank(values)
    shown = IMAGE.map_picture(torch.rand(3, 8, 8), values, None, title="m", signed=True)
    assert shown is not None
    assert shown.note == "no signal"


def test_signed_maps_are_blue_and_orange_about_zero() -> None:
    values = np.zeros((20, 20))
    values[:, :5], values[:, 15:] = -1, 1
    shown = IMAGE.map_picture(torch.full((3, 20, 20), 0.5), values, None, title="m", signed=True, side=20)
    assert shown is not None
    assert shown.png is not None
    pixels = np.asarray(opened(shown.png).convert("RGB")).astype(int)
    assert pixels[10, 1, 2] > pixels[10, 1, 0]
    assert pixels[10, 18, 0] > pixels[10, 18, 2]
    assert np.ptp(pixels[10, 10]) < 10


def test_tables_have_bars_and_no_pictures() -> None:
    inputs = rows(2)
    players = TABULAR.players(inputs, TABLE)
    assert TABULAR.picture(inputs[0], TABLE, title="x") is None
    bars = TABULAR.map_bars(np.array([[0.1, -0.5], [1.0, np.nan]]), players, 0)
    assert [(b.label, b.value) for b in bars] == [("c", -0.5), ("a", 0.1)]
    assert TABULAR.map_bars(np.array([[0.1, -0.5], [1.0, np.nan]]), players, 1)[1].value is None
    assert [b.value for b in TABULAR.map_bars(np.array([1.0, 1.0, 0.0, 0.0, 3.0]), players, 0)] == [3.0, 2.0]
    assert IMAGE.map_bars(np.zeros((1, 4, 4)), IMAGE.players(pictures(1), SPEC), 0) == ()
