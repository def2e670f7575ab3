"""Images: what is read and refused, how it is encoded, hashed, measured."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tl_audit.errors import DataError
from tl_audit.modality import IMAGE, Caps, RawBatch, open_data
from tl_audit.modality.image import _transposed, displayed, natural, superpixels
from tl_audit.records.preprocessing import Preprocessing


def picture(seed: int = 0, height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, **how: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **how)  # type: ignore[arg-type]


def read_one(path: Path, **options: object) -> RawBatch:
    return open_data(path, **options).samples.read(np.array([0]))


def bomb(side: int) -> bytes:
    """A PNG of side x side black pixels in a few kilobytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


# ---------------------------------------------------------------- bad files among good


def test_k_damaged_files_are_k_errors_with_reasons_and_the_rest_is_untouched(tmp_path: Path) -> None:
    for i in range(6):
        save(tmp_path / f"p{i}.png", picture(i))
    good = IMAGE.content_hashes(open_data(tmp_path).samples.read(np.arange(6)))
    whole = (tmp_path / "p1.png").read_bytes()
    (tmp_path / "p1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "p3.png").write_bytes(b"")
    (tmp_path / "p4.png").write_text("<html>404</html>")

    batch = open_data(tmp_path).samples.read(np.arange(6))

    assert batch.readable.tolist() == [True, False, True, False, False, True]
    assert batch.errors[3] == "empty file (0 bytes)"
    assert "truncated" in str(batch.errors[1])
    assert "not an image" in str(batch.errors[4])
    hashes = IMAGE.content_hashes(batch)
    assert [h for h in hashes if h] == [good[0], good[2], good[5]]
    assert hashes[1] is None
    assert len(IMAGE.encode(batch, None)) == 3
    properties = IMAGE.properties(batch)
    assert np.isnan(properties["brightness"]).tolist() == [False, True, False, True, True, False]
    assert properties["file_type"].tolist() == ["PNG", None, "PNG", None, None, "PNG"]


@pytest.mark.parametrize("side", [9_480, 14_000])
def test_a_bomb_is_one_error_not_a_warning(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb(side))
    error = read_one(tmp_path / "bomb.png").errors[0]
    assert error is not None
    assert "pixels" in error


def test_the_pixel_cap_is_the_users(tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture())
    assert "600" not in str(read_one(tmp_path).errors[0])
    assert "more than the cap of 599" in str(read_one(tmp_path, caps={"pixels": 599}).errors[0])


def test_a_wrong_suffix_is_read_by_content(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(picture()).save(file, format="PNG")
    (tmp_path / "a.jpg").write_bytes(file.getvalue())
    batch = read_one(tmp_path)
    assert batch.facts[0]["file_type"] == "PNG"
    assert np.array_equal(batch.items[0], picture())


def test_formats_outside_the_list_are_errors_not_gaps(tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture())
    save(tmp_path / "b.tga", picture())
    batch = open_data(tmp_path).samples.read(np.arange(2))
    assert batch.errors[0] is None
    assert "formats read here" in str(batch.errors[1])


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_moving_pictures_and_pages_are_refused(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(picture(i)) for i in range(3)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    assert "3 " in str(read_one(tmp_path).errors[0])


def test_a_still_gif_is_read(tmp_path: Path) -> None:
    Image.fromarray(picture()).convert("P").save(tmp_path / "a.gif")
    assert read_one(tmp_path).errors[0] is None


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    pixel = read_one(tmp_path).items[0][4, 4]
    assert pixel[0] > 200
    assert pixel[1:].max() < 60


def test_sixteen_bits_keep_their_range(tmp_path: Path) -> None:
    wide = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(wide).save(tmp_path / "a.png")
    read = read_one(tmp_path).items[0][..., 0]
    assert np.array_equal(read.reshape(-1), np.arange(256))


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "a.tiff")
    assert "no known range" in str(read_one(tmp_path).errors[0])


def test_transparency_lies_on_white_paper(tmp_path: Path) -> None:
    rgba = np.zeros((4, 4, 4), dtype=np.uint8)
    rgba[:2, :, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    palette = Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).convert("P")
    palette.save(tmp_path / "b.png", transparency=0)
    batch = open_data(tmp_path).samples.read(np.arange(2))
    assert batch.items[0][0, 0].tolist() == [0, 0, 0]
    assert batch.items[0][3, 3].tolist() == [255, 255, 255]
    assert batch.items[1][0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_is_applied_and_can_be_undone(tmp_path: Path, orientation: int) -> None:
    stored = picture(3, 6, 9)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    batch = read_one(tmp_path)
    assert batch.facts[0]["exif_rotated"] is (orientation != 1)
    assert np.array_equal(_transposed(batch.items[0], orientation), stored)
    spec = Preprocessing(height=6, width=9, exif="ignore")
    assert torch.equal(IMAGE.encode(batch, spec)[0], torch.from_numpy(stored).permute(2, 0, 1).float() / 255)


# ---------------------------------------------------------------- hashes, properties, encoding


def test_a_lossless_copy_has_the_same_hash_and_a_turned_one_has_not(tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture())
    save(tmp_path / "b.bmp", picture())
    save(tmp_path / "c.webp", picture(), lossless=True)
    save(tmp_path / "d.png", picture()[::-1])
    save(tmp_path / "e.png", picture().reshape(30, 20, 3))
    hashes = IMAGE.content_hashes(open_data(tmp_path).samples.read(np.arange(5)))
    assert hashes[0] == hashes[1] == hashes[2]
    assert len(set(hashes)) == 3


SPECS = [
    Preprocessing(height=16, width=16),
    Preprocessing(height=16, width=16, resize=20, crop="center", mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2)),
    Preprocessing(height=12, width=24, channels=1, interpolation="bicubic"),
    Preprocessing(height=40, width=40, interpolation="nearest"),
]


@pytest.mark.parametrize("spec", SPECS)
def test_encoding_does_not_depend_on_the_batch(spec: Preprocessing) -> None:
    samples = open_data([picture(i, 18 + i, 25) for i in range(5)]).samples
    together = IMAGE.encode(samples.read(np.arange(5)), spec)
    alone = torch.cat([IMAGE.encode(samples.read(np.array([i])), spec) for i in range(5)])
    assert together.shape == (5, spec.channels, spec.height, spec.width)
    assert torch.equal(together, alone)


def test_encoding_at_the_right_size_only_scales() -> None:
    pixels = picture(1, 8, 8)
    spec = Preprocessing(height=8, width=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    encoded = IMAGE.encode(open_data([pixels]).samples.read(np.array([0])), spec)
    assert encoded[0].numpy() == pytest.approx((pixels.transpose(2, 0, 1) / 255 - 0.5) / 0.25, abs=1e-6)
    assert np.array_equal(displayed(encoded[0], spec), pixels)


def test_resizing_agrees_with_pillow() -> None:
    pixels = picture(2, 40, 40)
    spec = Preprocessing(height=10, width=10)
    ours = IMAGE.encode(open_data([pixels]).samples.read(np.array([0])), spec)[0] * 255
    theirs = np.asarray(Image.fromarray(pixels).resize((10, 10), Image.Resampling.BILINEAR), dtype=float)
    assert ours.permute(1, 2, 0).numpy() == pytest.approx(theirs, abs=1.01)


def test_images_of_two_sizes_need_a_preprocessing() -> None:
    samples = open_data([picture(0, 8, 8), picture(0, 9, 8)]).samples
    with pytest.raises(DataError, match="differ in size"):
        IMAGE.encode(samples.read(np.arange(2)), None)


def test_properties_by_hand() -> None:
    grey = np.full((10, 20, 3), 51, dtype=np.uint8)
    red = np.zeros((10, 20, 3), dtype=np.uint8)
    red[..., 0] = 255
    values = IMAGE.properties(open_data([grey, red]).samples.read(np.arange(2)))
    assert values["brightness"] == pytest.approx([0.2, 0.299])
    assert values["contrast"] == pytest.approx([0, 0], abs=1e-9)
    assert values["sharpness"] == pytest.approx([0, 0], abs=1e-9)
    assert values["saturation"] == pytest.approx([0, 1])
    assert values["aspect_ratio"].tolist() == [2, 2]


def test_more_light_moves_brightness_and_not_the_aspect() -> None:
    pixels = (picture(5) // 2).astype(np.uint8)
    values = IMAGE.properties(open_data([pixels, (pixels * 1.1).astype(np.uint8)]).samples.read(np.arange(2)))
    assert values["brightness"][1] > values["brightness"][0] * 1.05
    assert values["aspect_ratio"][0] == values["aspect_ratio"][1]


def test_files_count_as_people_count() -> None:
    assert sorted(["d10.png", "d2.png", "d1.png"], key=natural) == ["d1.png", "d2.png", "d10.png"]


def test_grey_arrays_and_four_channels_are_read() -> None:
    grey = np.zeros((2, 5, 6), dtype=np.uint8)
    assert open_data(grey).samples.read(np.array([1])).items[0].shape == (5, 6, 3)
    four = np.zeros((2, 5, 6, 4), dtype=np.uint8)
    assert open_data(four).samples.read(np.array([0])).items[0].min() == 255


# ---------------------------------------------------------------- superpixels


@pytest.mark.parametrize(("height", "width"), [(8, 8), (1, 40), (32, 32), (64, 48), (200, 120)])
@pytest.mark.parametrize("most", [1, 5, 49])
def test_parts_are_numbered_without_gaps_and_never_too_many(height: int, width: int, most: int) -> None:
    parts = superpixels(picture(0, height, width), most)
    assert parts.shape == (height, width)
    assert sorted(np.unique(parts)) == list(range(parts.max() + 1))
    assert parts.max() < most


def test_a_blank_picture_has_parts_too() -> None:
    assert superpixels(np.zeros((64, 64, 3), dtype=np.uint8), 49).max() > 3


def test_superpixels_follow_an_edge() -> None:
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[:, 27:] = 255
    parts = superpixels(pixels, 49)
    crossing = set(np.unique(parts[:, :26])) & set(np.unique(parts[:, 28:]))
    assert not crossing


def test_too_many_bad_files_stop_the_reading() -> None:
    bad = {f"p{i}.png": "cut" for i in range(3)}
    Caps(bad_fraction=0.3).refuse_above(bad, 10, "samples could not be read")
    with pytest.raises(DataError, match=r"3 of 9 samples could not be read.*p0\.png: cut"):
        Caps(bad_fraction=0.3).refuse_above(bad, 9, "samples could not be read")
