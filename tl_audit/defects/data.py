"""Defects of the split: rows 10 to 12. Parts of the training data turn up in the target."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tl_audit.defects.base import Defect, Fires, Planted, fires, quiet
from tl_audit.defects.worlds import NUMBERS, Kind, Reading, World, joined, world

COPIES = 60
"""How many of the 1,200 target rows are copies: 5 %."""
PER_PATIENT = 4


def _patients(role: str, n: int) -> NDArray[np.object_]:
    """Patients of four rows each, named after the role."""
    return np.array([f"{role}-{i // PER_PATIENT:04d}" for i in range(n)], dtype=object)


def _with(grown: World, copies: Reading) -> Reading:
    """The target with its last rows replaced, so that its size stays."""
    target = grown.readings["target"]
    return joined(target.take(np.arange(len(target) - len(copies))), copies)


def _planted(grown: World, copies: Reading) -> Planted:
    target, train = _with(grown, copies), grown.readings["train"]
    return Planted(
        grown.subject(
            target=grown.opened("target", target, cluster=_patients("target", len(target))),
            train=grown.opened("train", train, cluster=_patients("train", len(train))),
        )
    )


def exact_copies(kind: Kind, seed: int) -> Planted:
    """One target row in twenty is a training row, under another patient's name."""
    grown = world(kind, seed)
    return _planted(grown, grown.readings["train"].take(np.arange(COPIES)))


def near_copies(kind: Kind, seed: int) -> Planted:
    """One target row in twenty is a training row written again: a picture as JPEG of high quality, a row whose numbers went through another unit and back
    (apart by a ten-millionth of their spread).
    """
    grown = world(kind, seed)
    copies = grown.readings["train"].take(np.arange(COPIES))
    if isinstance(copies.data, np.ndarray):
        copies = replace(copies, data=np.stack([_as_jpeg(picture) for picture in copies.data]))
    else:
        copies = replace(copies, data=copies.data.assign(**{name: copies.data[name] + 1e-7 for name in NUMBERS}))
    return _planted(grown, copies)


def _as_jpeg(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=92)
    written: NDArray[np.uint8] = np.asarray(Image.open(buffer), dtype=np.uint8)
    return written


def the_same_patients(kind: Kind, seed: int) -> Planted:
    """Each patient has four samples; one patient in three of the target has others of their samples in the training data."""
    grown = world(kind, seed)
    target, train = grown.readings["target"], grown.readings["train"]
    names = _patients("target", len(target))
    shared = np.arange(0, min(len(target), len(train)), 3 * PER_PATIENT)
    of_train = _patients("train", len(train))
    for start in shared:
        of_train[start : start + PER_PATIENT] = names[start]
    return Planted(
        grown.subject(target=grown.opened("target", target, cluster=names), train=grown.opened("train", train, cluster=of_train))
    )


DATA: tuple[Defect, ...] = (
    Defect(10, "Exact copies of training rows in the target", exact_copies, (Fires("TLA201", ("fail",), "leaked_exact"),), quiet("203", "107"), cheap=True),
    Defect(11, "Near copies of training rows in the target", near_copies, fires("202", statuses=("warn",)), quiet("201"), cheap=True),
    Defect(12, "Same patients in train and target", the_same_patients, (Fires("TLA203", ("fail",), "clusters_shared"),), quiet("201"), cheap=True),
)  # fmt: skip
