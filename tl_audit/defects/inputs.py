"""Inputs and weights that are no numbers: rows 23 and 31."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tl_audit.defects.base import Audits, Defect, Planted, fires, quiet
from tl_audit.defects.comparison import otherwise
from tl_audit.defects.weights import altered
from tl_audit.defects.worlds import Kind, Reading, World, world
from tl_audit.subject import Domain

if TYPE_CHECKING:
    from torch import nn

N = 300
TRUNCATED = 5
MEASURED = (
    "TLA301", "TLA302", "TLA303", "TLA304", "TLA306", "TLA308", "TLA401", "TLA407", "TLA501", "TLA601", "TLA602", "TLA606",
)  # fmt: skip
"""Checks whose numbers must not notice a row that nobody can read. Not among them: those that count what is known without reading a row, which is its
label and its group (202, 204, 206, 209, 502), or that state how many rows were looked up (201)."""
NEED_OUTPUTS = (
    "301", "302", "303", "304", "305", "306", "401", "407", "505", "509", "601", "602", "603", "604", "605", "606", "607", "610",
)  # fmt: skip


def truncated_files(kind: Kind, seed: int) -> Planted:
    """300 target pictures lie as PNG files in class folders; five more were cut off in the middle. Without the defect the five are not there: every other
    number must be the same, to the last digit, but for counts of labels and groups, which
    are known without reading a file.
    """
    grown = world(kind, seed)
    reading = grown.drawn("files", N + TRUNCATED)
    folder = Path(tempfile.mkdtemp(dir=grown.run_dir))  # goes with the world
    whole, broken = _written(reading, folder / "whole"), _written(reading, folder / "broken")
    for path in broken[-TRUNCATED:]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for path in whole[-TRUNCATED:]:
        path.unlink()
    return Planted(
        grown.subject(target=_opened(grown, folder / "broken")), select=MEASURED,
        reference=Planted(grown.subject(target=_opened(grown, folder / "whole")), select=MEASURED),
        assertions=(_the_rest_is_unchanged, _five_are_counted),
    )  # fmt: skip


def _written(reading: Reading, folder: Path) -> list[Path]:
    from PIL import Image

    out = []
    for i, (pixels, label) in enumerate(zip(reading.data, reading.labels, strict=True)):
        out.append(folder / str(label) / f"{i:04d}.png")
        out[-1].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(out[-1])
    return out


def _opened(grown: World, folder: Path) -> Domain:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    site = np.array(["north" if int(Path(name).stem) % 2 else "south" for name in names], dtype=object)
    return Domain("target", folder, classes=list(grown.classes), kind="image", groups={"site": site})


def _the_rest_is_unchanged(audits: Audits) -> Iterator[str]:
    yield from otherwise(audits, spared=("TLA208",))


def _five_are_counted(audits: Audits) -> Iterator[str]:
    yield from _counted(audits, "unreadable", TRUNCATED)


def _one_is_counted(audits: Audits) -> Iterator[str]:
    yield from _counted(audits, "nonfinite_inputs", 1)


def _counted(audits: Audits, name: str, many: int) -> Iterator[str]:
    measured = audits.found["TLA208"].measurement
    found = [] if measured is None else [one.value for one in measured.metrics if one.name == name and one.slice.get("domain") == "target"]
    if found != [float(many)]:
        yield f"TLA208 counts {found} {name} in the target instead of {many}"


def a_row_that_is_no_number(kind: Kind, seed: int) -> Planted:
    """One row more of the target holds an infinite value, as a division by zero leaves it. (An empty cell or NaN is a missing value in a table, and is filled
    as the record says: no defect.) Without the defect the row is not there.
    """
    grown = world(kind, seed)
    reading = grown.drawn("row", N + 1)
    frame = reading.data.copy()
    frame.loc[N, "a"] = np.inf
    return Planted(
        grown.subject(target=grown.opened("target", replace(reading, data=frame))), select=MEASURED,
        reference=Planted(grown.subject(target=grown.opened("target", reading.take(np.arange(N)))), select=MEASURED),
        assertions=(_the_rest_is_unchanged, _one_is_counted),
    )  # fmt: skip


def a_weight_that_is_no_number(kind: Kind, seed: int) -> Planted:
    """One value of the head is NaN, in memory and in the file. All outputs would be NaN, and the largest of them still a class."""
    grown = world(kind, seed)

    def edit(module: nn.Module) -> None:
        module.get_submodule("head").get_parameter("weight")[0, 0] = torch.nan

    return Planted(
        grown.subject(adapted=altered(grown, edit, name="nan"), target=grown.opened("target", grown.drawn("nan", N))),
        assertions=(_no_number_of_its_outputs,),
    )


def _no_number_of_its_outputs(audits: Audits) -> Iterator[str]:
    """Nothing but TLA112 may have measured the adapted model's answers."""
    from tl_audit.checks import BUILTIN

    needs = {one.code: one.needs for one in BUILTIN}
    for code, finding in audits.found.items():
        if any("adapted@" in need for need in needs[code]) and finding.status != "not_evaluated" and "deselected" not in finding.reason:
            yield f"{code} needs outputs of the adapted model, which has none: {finding.status}"


INPUTS: tuple[Defect, ...] = (
    Defect(23, "Inputs that cannot be used", truncated_files, fires("208", metric="unreadable"), kinds=("image",), variant="truncated files"),
    Defect(
        23, "Inputs that cannot be used", a_row_that_is_no_number, fires("208", metric="nonfinite_inputs"), kinds=("tabular",), variant="infinite value",
        cheap=True,
    ),
    Defect(
        31, "NaN in one weight", a_weight_that_is_no_number,
        (*fires("112", statuses=("fail",), metric="nonfinite_tensors"), *fires(*NEED_OUTPUTS, statuses=("not_evaluated",), says="TLA112")),
        quiet("103", "109", "201", "611"), cheap=True,
    ),
)  # fmt: skip
