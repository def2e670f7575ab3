"""Parts by name, what fills them, and rows drawn near what stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tl_audit.errors import DataError
from tl_audit.modality import IMAGE, TABULAR, TENSOR
from tl_audit.modality.base import MASK_METHODS
from tl_audit.modality.image import displayed, superpixels
from tl_audit.modality.tabular import near_rows, removed_entries
from tl_audit.records.preprocessing import CategoricalColumn, NumericColumn, Preprocessing, TableEncoding

SPEC = Preprocessing(height=40, width=32, mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3))
TABLE = TableEncoding(
    numeric=(NumericColumn(name="a", mean=0, std=1, fill=0), NumericColumn(name="b", mean=0, std=1, fill=0)),
    categorical=(CategoricalColumn(name="c", categories=("x", "y", "z")),),
)


def scenes(n: int = 3, height: int = 40, width: int = 32) -> torch.Tensor:
    """A disc of its own place and colour on a gradient, as model inputs of SPEC."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    out = []
    for i in range(n):
        disc = ((y - 0.3 - 0.1 * i) ** 2 + (x - 0.5) ** 2 < 0.05).float()
        out.append(
            torch.stack([0.2 + 0.3 * x, 0.3 + 0.2 * y, 0.2 + 0 * x]) * (1 - disc) + disc * torch.tensor([0.9, 0.1 * i, 0.5])[:, None, None]
        )
    return (torch.stack(out) - torch.tensor(SPEC.mean)[:, None, None]) / torch.tensor(SPEC.std)[:, None, None]


def table(n: int, seed: int = 0) -> torch.Tensor:
    """b follows a; the category follows the sign of a."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=n)
    out = np.zeros((n, TABLE.width))
    out[:, 0], out[:, 1] = a, a + 0.1 * rng.normal(size=n)
    out[np.arange(n), 2 + (a > 0)] = 1.0
    return torch.from_numpy(out.astype(np.float32))


# ---------------------------------------------------------------- segmentations


def test_the_first_segmentation_is_the_default() -> None:
    for kind, inputs, spec in ((IMAGE, scenes(), SPEC), (TENSOR, scenes(), None), (TABULAR, table(4), TABLE)):
        named = kind.players(inputs, spec, segmentation=kind.segmentations[0])
        assert torch.equal(named.assignment, kind.players(inputs, spec).assignment)


@pytest.mark.parametrize("how", IMAGE.segmentations)
def test_parts_are_numbered_without_gaps_and_cover_the_picture(how: str) -> None:
    players = IMAGE.players(scenes(), SPEC, segmentation=how)
    assert players.assignment.shape == (3, 40, 32)
    assert players.spatial
    for i in range(3):
        assert set(players.assignment[i].unique().tolist()) == set(range(int(players.count[i])))


@pytest.mark.parametrize("how", IMAGE.segmentations)
def test_parts_of_a_picture_do_not_depend_on_the_batch(how: str) -> None:
    inputs = scenes(9)
    whole = IMAGE.players(inputs, SPEC, segmentation=how)
    for i in (0, 4, 8):
        alone = IMAGE.players(inputs[i : i + 1], SPEC, segmentation=how)
        assert torch.equal(alone.assignment[0], whole.assignment[i])
        assert alone.count[0] == whole.count[i]


@pytest.mark.parametrize("how", ["slic", "grid"])
@pytest.mark.parametrize("most", [1, 2, 10, 49])
def test_there_are_at_most_as_many_parts_as_asked_for(how: str, most: int) -> None:
    assert (IMAGE.players(scenes(), SPEC, most=most, segmentation=how).count <= most).all()


def test_the_grid_has_cells_of_equal_size() -> None:
    players = IMAGE.players(torch.zeros(2, 3, 28, 28), None, segmentation="grid")
    assert players.count.tolist() == [49, 49]
    assert set(players.areas(0)) == {16.0}


def test_quickshift_is_that_of_the_lime_package() -> None:
    from lime.wrappers.scikit_image import SegmentationAlgorithm

    inputs = scenes()
    players = IMAGE.players(inputs, SPEC, seed=5, segmentation="quickshift")
    theirs = SegmentationAlgorithm("quickshift", kernel_size=4, max_dist=200, ratio=0.2, rng=5)
    for i in range(3):
        segments = theirs(displayed(inputs[i], SPEC))
        assert np.array_equal(players.assignment[i].numpy(), np.unique(segments, return_inverse=True)[1].reshape(40, 32))


def test_a_superpixel_does_not_cross_a_strong_edge() -> None:
    pixels = np.full((120, 120, 3), 30, dtype=np.uint8)
    pixels[:, 55:] = (220, 200, 40)
    parts = superpixels(pixels, 49)
    crossing = [p for p in range(int(parts.max()) + 1) if len(np.unique((np.argwhere(parts == p)[:, 1] >= 55).astype(int))) > 1]
    # laid back from a smaller picture: a pixel or two on the border may stray
    stray = sum(min(int((parts[:, :55] == p).sum()), int((parts[:, 55:] == p).sum())) for p in crossing)
    assert stray < 0.02 * pixels.shape[0] * pixels.shape[1]


def test_a_picture_looks_the_same_alone_and_beside_one_that_is_not_finite() -> None:
    inputs = torch.rand(3, 3, 20, 20) * 5 - 1
    inputs[1, 0, 0, 0] = torch.nan
    inputs[2] = torch.inf
    players = TENSOR.players(inputs, None)
    assert torch.equal(players.assignment[0], TENSOR.players(inputs[:1], None).assignment[0])
    assert displayed(inputs[2], None).min() == 255
    shown = displayed(inputs[0], None)
    assert shown.min() == 0
    assert shown.max() == 255


def test_an_unknown_segmentation_is_refused_with_what_there_is() -> None:
    with pytest.raises(
        DataError, match=r"unknown segmentation of pictures 'slick' \(did you mean 'slic'\?\); known: grid, quickshift, slic"
    ):
        IMAGE.players(scenes(), SPEC, segmentation="slick")
    with pytest.raises(DataError, match="unknown segmentation of columns 'slic'; known: columns"):
        TABULAR.players(table(2), TABLE, segmentation="slic")
    with pytest.raises(DataError, match="unknown segmentation of columns 'grid'"):
        TENSOR.players(table(2), None, segmentation="grid")
    with pytest.raises(DataError, match="a picture has at least one part"):
        IMAGE.players(scenes(), SPEC, most=0, segmentation="grid")


def test_near_means_what_lime_means_for_parts_of_that_kind() -> None:
    pictures, columns = TENSOR.players(scenes(), None), TENSOR.players(table(2), None)
    assert TENSOR.neighbourhood(pictures) == IMAGE.neighbourhood(pictures)
    assert TENSOR.neighbourhood(columns) == TABULAR.neighbourhood(columns)
    assert (IMAGE.neighbourhood(pictures).distance, IMAGE.neighbourhood(pictures).width) == ("cosine", 0.25)
    assert (TABULAR.neighbourhood(columns).distance, TABULAR.neighbourhood(columns).width) == ("euclidean", 0.75)


# ---------------------------------------------------------------- fills


@pytest.mark.parametrize("method", ["mean", "blur", "zero"])
@pytest.mark.parametrize("with_background", [True, False])
def test_the_fill_of_a_picture_is_what_its_removed_parts_show(method: str, with_background: bool) -> None:
    inputs = scenes()
    background = scenes(5) + 0.5 if with_background else None
    fill = IMAGE.filler(inputs, SPEC, method, background)  # type: ignore[arg-type]
    assert fill is not None
    assert fill.shape == inputs.shape
    players = IMAGE.players(inputs, SPEC)
    gone = np.zeros((3, int(players.count.max())), dtype=bool)
    masked = IMAGE.mask(inputs, players, gone, index=np.arange(3), spec=SPEC, method=method, background=background)  # type: ignore[arg-type]
    assert torch.equal(masked, fill)


@pytest.mark.parametrize("method", ["mean", "zero"])
def test_the_fill_of_columns_is_what_removed_columns_hold(method: str) -> None:
    inputs, background = table(4), table(30, 1)
    for kind, spec in ((TABULAR, TABLE), (TENSOR, None)):
        fill = kind.filler(inputs, spec, method, background)  # type: ignore[arg-type]
        assert fill is not None
        gone = np.zeros((4, len(kind.players(inputs, spec).names or ())), dtype=bool)
        masked = kind.mask(inputs, kind.players(inputs, spec), gone, index=np.arange(4), spec=spec, method=method, background=background)  # type: ignore[arg-type]
        assert torch.equal(masked, fill)


def test_fills_that_depend_on_what_stays_or_are_drawn_are_none() -> None:
    for method in ("noisy_linear", "marginal"):
        assert IMAGE.filler(scenes(), SPEC, method, scenes()) is None  # type: ignore[arg-type]
    for method in ("marginal", "conditional"):
        assert TABULAR.filler(table(2), TABLE, method, table(9)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [IMAGE, TABULAR, TENSOR])
def test_a_kind_names_the_fills_it_has_and_refuses_the_others(kind: object) -> None:
    pictures = kind is IMAGE
    inputs, spec = (scenes(), SPEC) if pictures else (table(3), TABLE if kind is TABULAR else None)
    players = kind.players(inputs, spec)  # type: ignore[attr-defined]
    keep = np.ones((1, int(players.count.max())), dtype=bool)
    for method in MASK_METHODS:
        ask = {"index": np.array([0]), "spec": spec, "method": method, "background": inputs}
        fits = method in IMAGE.masks if pictures else method in TABULAR.masks
        assert fits == (method in kind.masks) or kind is TENSOR  # type: ignore[attr-defined]
        if fits:
            assert torch.equal(kind.mask(inputs, players, keep, **ask)[0], inputs[0])  # type: ignore[attr-defined]
            continue
        with pytest.raises(DataError, match=f"unknown masking of {'pictures' if pictures else 'columns'} '{method}'"):
            kind.mask(inputs, players, keep, **ask)  # type: ignore[attr-defined]
        with pytest.raises(DataError, match="unknown masking"):
            kind.filler(inputs, spec, method, inputs)  # type: ignore[attr-defined]


def test_looking_up_runs_of_one_sample_gives_what_looking_up_row_by_row_gives() -> None:
    players = IMAGE.players(scenes(), SPEC)
    keep = np.random.default_rng(0).random((60, int(players.count.max()))) < 0.5
    for index in (np.zeros(60, dtype=int), np.repeat([2, 0, 1], 20), np.arange(60) % 3):
        gone = removed_entries(players, keep, index)
        for r, i in enumerate(index):
            assert torch.equal(gone[r], ~torch.from_numpy(keep[r])[players.assignment[i]])
    assert removed_entries(players, keep[:0], np.zeros(0, dtype=int)).shape == (0, 40, 32)


# ---------------------------------------------------------------- conditional draws


def drawn(keep: list[bool], n: int, *, key: tuple[object, ...] = (0,)) -> tuple[torch.Tensor, torch.Tensor]:
    """One row with a = 1.2, category y, masked n times; and the background."""
    inputs, background = table(1), table(400, 1)
    inputs[0] = torch.tensor([1.2, 1.2, 0, 1, 0, 0])
    players = TABULAR.players(inputs, TABLE)
    masked = TABULAR.mask(
        inputs,
        players,
        np.tile(keep, (n, 1)),
        index=np.zeros(n, dtype=int),
        spec=TABLE,
        method="conditional",
        background=background,
        key=key,
    )
    return masked, background


def test_a_removed_column_follows_the_columns_that_stay() -> None:
    masked, background = drawn([True, False, False], 300)
    assert (masked[:, 0] == 1.2).all()
    assert (masked[:, 1] - 1.2).abs().max() < 0.6
    assert float(masked[:, 1].mean()) == pytest.approx(1.2, abs=0.1)
    assert (masked[:, 3] == 1).all()
    assert float(background[:, 1].std()) > 0.8  # a draw that ignored what stays would spread that far


def test_all_removed_columns_come_from_one_row_of_the_background() -> None:
    masked, background = drawn([False, True, False], 50)
    rows = {tuple(b.tolist()) for b in background[:, [0, 2, 3, 4, 5]]}
    assert all(tuple(m.tolist()) in rows for m in masked[:, [0, 2, 3, 4, 5]])


def test_with_a_category_alone_every_row_of_that_category_may_come() -> None:
    masked, background = drawn([False, False, True], 2000)
    alike = background[background[:, 3] == 1]
    assert set(masked[:, 0].tolist()) <= set(alike[:, 0].tolist())
    assert len(set(masked[:, 0].tolist())) > 0.95 * len(alike)


def test_with_nothing_left_every_row_is_as_likely() -> None:
    masked, background = drawn([False, False, False], 8000)
    _, counts = np.unique(masked[:, 0].numpy(), return_counts=True)
    assert len(counts) == len(background)
    expected = 8000 / len(background)
    chi = float(((counts - expected) ** 2 / expected).sum())
    assert chi < 400 + 4 * np.sqrt(2 * 400)


def test_nearer_rows_come_more_often() -> None:
    inputs, background = torch.zeros(1, 2), torch.stack([torch.arange(100.0) ** 2, torch.arange(100.0)], dim=1)
    players = TENSOR.players(inputs, None)
    rows = near_rows(inputs, players, np.tile([True, False], (4000, 1)), np.zeros(4000, dtype=int), background, (0,))
    counts = np.bincount(rows.numpy(), minlength=100)
    assert counts[10:].sum() == 0  # the ten nearest of a hundred
    assert counts[0] > 1.3 * counts[9] > 0


def test_conditional_draws_are_seeded_by_key_and_row() -> None:
    whole, _ = drawn([True, False, False], 40)
    part, _ = drawn([True, False, False], 10)
    other, _ = drawn([True, False, False], 40, key=(1,))
    assert torch.equal(whole[:10], part)
    assert not torch.equal(whole, other)


def test_rows_of_several_samples_are_drawn_near_each() -> None:
    inputs, background = table(6), table(400, 1)
    players = TABULAR.players(inputs, TABLE)
    index = np.array([5, 0, 5, 3, 0, 1])
    keep = np.tile([True, False, False], (6, 1))
    masked = TABULAR.mask(inputs, players, keep, index=index, spec=TABLE, method="conditional", background=background, key=(0,))
    assert (masked[:, 1] - inputs[torch.from_numpy(index), 0]).abs().max() < 0.9


def test_a_column_that_never_changes_tells_nobody_apart() -> None:
    inputs, background = torch.tensor([[7.0, 0.0]]), torch.stack([torch.full((50,), 3.0), torch.arange(50.0)], dim=1)
    players = TENSOR.players(inputs, None)
    rows = near_rows(inputs, players, np.tile([True, False], (2000, 1)), np.zeros(2000, dtype=int), background, (0,))
    assert len(rows.unique()) == 50


def test_a_draw_without_a_background_is_refused() -> None:
    with pytest.raises(DataError, match='"conditional" draws needs a background'):
        TABULAR.mask(
            table(1),
            TABULAR.players(table(1), TABLE),
            np.zeros((1, 3), dtype=bool),
            index=np.array([0]),
            spec=TABLE,
            method="conditional",
        )


@pytest.mark.parametrize(
    "picture", [np.random.default_rng(0).integers(0, 256, (40, 40, 3)), np.full((40, 40, 3), 90)], ids=["noise", "plain"]
)
def test_a_picture_that_can_hardly_be_cut_gets_a_grid(picture):
    parts = superpixels(picture.astype(np.uint8), 49)
    assert int(parts.max()) + 1 >= 9
