"""Numbers that public reference code printed on stored features (../shared/data/oracle)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.measures.test_measures_transferability import published_loop
from tl_audit.measures.representation import linear_cka
from tl_audit.measures.transferability import leep, logme, nce

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def printed(shared_data: Path) -> dict:
    return json.loads((shared_data / "oracle" / "oracle.json").read_text())


@pytest.fixture(scope="module")
def ants_and_bees(shared_data: Path) -> dict[str, np.ndarray]:
    with np.load(shared_data / "oracle" / "hymenoptera_sq11_features.npz") as file:
        return {"features": file["pooled"].astype(float), "logits": file["logits"].astype(float), "labels": file["y"].astype(int)}


@pytest.fixture(scope="module")
def usps(shared_data: Path) -> tuple[np.ndarray, np.ndarray]:
    h5py = pytest.importorskip("h5py")
    with h5py.File(shared_data / "digits" / "usps.h5") as file:
        return np.array(file["test/data"], dtype=float), np.array(file["test/target"])


def plain_cka(x: np.ndarray, y: np.ndarray) -> float:
    a, b = x - x.mean(axis=0), y - y.mean(axis=0)
    return float(np.linalg.norm(a.T @ b) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)))


def test_leep_and_nce_are_those_printed(printed: dict, ants_and_bees: dict[str, np.ndarray]) -> None:
    logits, y = ants_and_bees["logits"], ants_and_bees["labels"]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)

    assert leep(p, y, classes=2).value == pytest.approx(printed["hymenoptera"]["LEEP_softmax1000"], abs=1e-9)
    assert nce(logits.argmax(axis=1), y, classes=2).value == pytest.approx(printed["hymenoptera"]["NCE_argmax1000"], abs=1e-9)


def test_evidence_of_pixels_is_that_printed_and_a_little_more(printed: dict, usps: tuple[np.ndarray, np.ndarray]) -> None:
    public = printed["usps_test"]["LogME_raw_pixels_2007x256"]
    value = logme(*usps, classes=10).value

    assert value == pytest.approx(public, abs=1e-7)
    assert value >= public - 1e-12  # the printed loop stops at 1e-3 of a fixed point; the maximum lies above


def test_evidence_printed_for_fewer_rows_than_columns_is_no_evidence(printed: dict, ants_and_bees: dict[str, np.ndarray]) -> None:
    """396 rows and 512 columns: the public value counts ln a of 116 directions that no row has."""
    f, y = ants_and_bees["features"], ants_and_bees["labels"]
    public = printed["hymenoptera"]["LogME_pooled_all396"]
    estimate = logme(f, y, classes=2)

    assert published_loop(f, y, 2) == pytest.approx(public, abs=1e-6)
    assert estimate.value == pytest.approx(-0.327402, abs=1e-6)
    # what is counted too much, at the precisions of the maximum
    too_much = (512 - 396) / (2 * 396) * np.mean(np.log(estimate.details["weight_precision"]))
    assert estimate.value + too_much == pytest.approx(public, abs=0.01)


def test_cka_of_pixels_and_components_is_that_printed_less_its_bias(printed: dict, usps: tuple[np.ndarray, np.ndarray]) -> None:
    x = usps[0][:500]
    _, _, directions = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    for k in (1, 2, 5, 10, 50):
        z = x @ directions[:k].T
        public = printed["usps_test"][f"linear_CKA_first500_raw_vs_PCA{k}"]
        assert plain_cka(x, z) == pytest.approx(public, abs=1e-9)
        assert linear_cka(x, z, batch=500).value == pytest.approx(public, abs=0.006)


def test_cka_of_features_and_logits_is_that_printed_less_its_bias(printed: dict, ants_and_bees: dict[str, np.ndarray]) -> None:
    public = printed["hymenoptera"]["linear_CKA_pooled_vs_logits"]
    f, z = ants_and_bees["features"], ants_and_bees["logits"]

    assert plain_cka(f, z) == pytest.approx(public, abs=1e-9)
    assert linear_cka(f, z, batch=396).value == pytest.approx(public, abs=0.004)
