"""TLA707: where maps lie beside declared regions, and whether they point to a cue."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tl_audit.attribution import Attribution, Inputs
from tl_audit.attribution.maps import blank_maps, from_elements
from tl_audit.checks.base import Context
from tl_audit.checks.explanations import localisation
from tl_audit.errors import DataError, NotEvaluated
from tl_audit.evidence import collect
from tl_audit.measures.attribution import centre_map, poisson_binomial_p
from tl_audit.modality import IMAGE, Cue
from tl_audit.models import Model
from tl_audit.policy import Policy, Rules, load_policy
from tl_audit.policy.judge import judge
from tl_audit.records.exhibits import ImageGrid
from tl_audit.records.metrics import Measurement
from tl_audit.records.preprocessing import Preprocessing
from tl_audit.subject import Domain, Subject

N, SIDE = 40, 16


def context() -> Context:
    return Context(rules=Rules(), seed=0, declared={})


@dataclass
class Regioned:
    """Evidence that holds maps and regions."""

    found: dict[str, Attribution]
    masks: Any = None
    known: Any = None
    samples: str = "off"
    clusters: Any = None
    rules: Any = None

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(self.found)

    def attributions(self, model: str, domain: str, method: str) -> Attribution:
        return self.found[method]

    def ids(self, domain: str) -> tuple[str, ...]:
        return next(iter(self.found.values())).inputs.ids

    def cluster(self, domain: str) -> Any:
        return self.clusters

    def content_hashes(self, domain: str) -> Any:
        return np.array(["h"] * len(self.ids(domain)), dtype=object)

    def regions(self, domain: str, rows: Any, model: str = "adapted") -> Any:
        if self.masks is None:
            raise NotEvaluated("regions")
        return self.masks[rows], np.ones(len(rows), dtype=bool) if self.known is None else self.known[rows]


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    x = torch.rand((N, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(3))
    spec = Preprocessing(height=SIDE, width=SIDE)
    return Inputs(x, tuple(f"s{i}" for i in range(N)), IMAGE, spec, IMAGE.players(x, spec))


@pytest.fixture(scope="module")
def masks() -> np.ndarray:
    """Boxes of many sizes at many places."""
    rng = np.random.default_rng(4)
    out = np.zeros((N, SIDE, SIDE), dtype=bool)
    for mask in out:
        y, x = rng.integers(0, 9, size=2)
        mask[y : y + int(rng.integers(2, 8)), x : x + int(rng.integers(2, 8))] = True
    return out


def made(inputs: Inputs, values: Any, method: str = "lime", targets: Any = None) -> Attribution:
    elements, players = from_elements(torch.as_tensor(np.asarray(values, dtype=np.float64)), inputs.players)
    targets = np.ones(N, dtype=np.int64) if targets is None else targets
    names = tuple(("cat", "dog")[t] for t in targets)
    return Attribution(elements, players, targets, method, inputs, True, target_names=names, blank=blank_maps(elements), budget=1)


def verdict(found: Measurement, policy: Policy) -> str:
    return judge(localisation.code, localisation.title, localisation.section, localisation.severity, found, policy).status


def run(evidence: Any, subject: Any = None) -> Measurement:
    return localisation(subject or SimpleNamespace(cues=()), evidence, context())


# ---------------------------------------------------------------- the numbers


def test_a_nearly_uniform_map_has_no_excess_and_the_mask_itself_has_all(inputs: Inputs, masks: np.ndarray) -> None:
    flat = np.ones((N, SIDE, SIDE)) + 1e-4 * np.random.default_rng(0).random((N, SIDE, SIDE))
    found = run(Regioned({"flat": made(inputs, flat), "mask": made(inputs, masks.astype(float))}, masks))
    area = masks.mean()
    assert found.select("mass_inside", method="flat").value == pytest.approx(area, abs=1e-4)
    assert found.select("mass_inside", method="flat").null == pytest.approx(area)
    assert found.select("mass_excess", method="flat").value == pytest.approx(0, abs=1e-4)
    assert found.select("mass_inside", method="mask").value == 1
    assert found.select("mass_excess", method="mask").value == pytest.approx(1 - area)
    assert found.select("mass_excess", method="mask").interval[0] > 0.5
    assert found.select("mass_excess", method="mask").p_value <= 0.001
    assert found.select("pointing_accuracy", method="mask").value == 1
    assert found.select("pointing_accuracy", method="mask").p_value < 1e-6


def test_the_centred_gaussian_has_no_excess_over_itself(inputs: Inputs, masks: np.ndarray) -> None:
    found = run(Regioned({"centre": made(inputs, np.stack([centre_map(SIDE, SIDE)] * N))}, masks))
    assert found.select("centre_excess", method="centre").value == pytest.approx(0, abs=1e-12)
    assert found.select("mass_excess", method="centre").value > 0.01  # the boxes lie near the middle


def test_random_maps_have_no_excess_and_point_by_area(inputs: Inputs, masks: np.ndarray) -> None:
    noise = np.random.default_rng(6).exponential(size=(N, SIDE, SIDE)) ** 3
    found = run(Regioned({"noise": made(inputs, noise)}, masks))
    excess, hits = found.select("mass_excess", method="noise"), found.select("pointing_accuracy", method="noise")
    assert excess.interval[0] < 0 < excess.interval[1]
    assert excess.p_value > 0.05
    assert hits.null == pytest.approx(masks.mean())
    assert hits.p_value > 0.05


def test_negative_values_do_not_count_and_maps_of_them_alone_are_left_out(inputs: Inputs, masks: np.ndarray) -> None:
    values = np.where(masks, 1.0, -5.0)
    values[:10] = -1.0 - masks[:10]
    found = run(Regioned({"signed": made(inputs, values)}, masks))
    one = found.select("mass_inside", method="signed")
    assert one.value == 1
    assert one.n == {"target": 30}


def test_ties_of_the_largest_value_count_in_part(inputs: Inputs) -> None:
    masks = np.zeros((N, SIDE, SIDE), dtype=bool)
    masks[:, :, :8] = True
    values = np.zeros((N, SIDE, SIDE))
    values[:, 0, 6:10] = 1.0
    found = run(Regioned({"tied": made(inputs, values)}, masks))
    hits = found.select("pointing_accuracy", method="tied")
    assert hits.value == 0.5
    assert hits.null == 0.5
    assert hits.p_value == 1


def test_one_class_outside_its_region_shows_in_its_slice_and_breaks_the_limit(inputs: Inputs, masks: np.ndarray) -> None:
    targets = np.arange(N) % 2
    values = np.where(masks, 1.0, 0.05)
    values[targets == 0] = 1.0 - 0.9 * masks[targets == 0]
    # one class of a few rows is shown without a verdict; make both large
    found = run(Regioned({"m": made(inputs, values, targets=targets)}, masks))
    cat, dog = (found.select("mass_excess", method="m", **{"class": c}) for c in ("cat", "dog"))
    assert cat.interval[1] < 0 < dog.interval[0]
    assert cat.n == {"target": 20}
    policy = load_policy("default")
    assert verdict(found, policy) in ("pass", "inconclusive")
    sure = policy.model_copy(update={"rules": policy.rules.model_copy(update={"min_n": 10})})
    assert verdict(found, sure) == "warn"
    assert any("a person who knows the subject" in c for c in run(Regioned({"m": made(inputs, 1.0 - 0.9 * masks)}, masks)).caveats)


def test_maps_inside_pass_and_maps_outside_warn(inputs: Inputs, masks: np.ndarray) -> None:
    policy = load_policy("default")
    for values, status in ((masks + 0.01, "pass"), (1.01 - masks, "warn")):
        assert verdict(run(Regioned({"m": made(inputs, values)}, masks)), policy) == status


def test_clusters_widen_the_interval_and_the_pointing_test(inputs: Inputs, masks: np.ndarray) -> None:
    values = np.random.default_rng(2).random((N, SIDE, SIDE)) + 0.3 * masks
    alone = run(Regioned({"m": made(inputs, values)}, masks))
    clusters = np.array([f"p{i // 8}" for i in range(N)], dtype=object)
    together = run(Regioned({"m": made(inputs, values)}, masks, clusters=clusters))
    metric = together.select("mass_excess", method="m")
    assert metric.clusters == {"target": 5}
    assert metric.value == alone.select("mass_excess", method="m").value
    assert together.select("pointing_accuracy", method="m").p_value is None  # five clusters give no test
    assert alone.select("pointing_accuracy", method="m").p_value < 0.05


def test_samples_without_region_cut_off_or_all_covered_are_left_out_and_said(inputs: Inputs, masks: np.ndarray) -> None:
    known = np.arange(N) >= 5
    regions = masks.copy()
    regions[:7], regions[7] = False, True
    found = run(Regioned({"m": made(inputs, masks + 0.1)}, regions, known))
    assert found.select("mass_inside", method="m").n == {"target": N - 8}
    assert "5 of 40 explained samples have no region and are left out." in found.caveats
    assert any(c.startswith("2 of 40") and "cuts off" in c for c in found.caveats)
    assert any(c.startswith("1 of 40") and "covers the whole input" in c for c in found.caveats)


def test_nothing_to_compare_with_is_said_with_how_to_give_it(inputs: Inputs, masks: np.ndarray) -> None:
    with pytest.raises(NotEvaluated, match=r"masks = or annotations = in \[target\].*cues that have a place"):
        run(Regioned({"m": made(inputs, masks + 0.1)}))
    with pytest.raises(NotEvaluated, match="40 of 40 explained samples have no region"):
        run(Regioned({"m": made(inputs, masks + 0.1)}, np.zeros_like(masks), np.zeros(N, dtype=bool)))


def test_a_blank_map_is_counted_and_not_averaged(inputs: Inputs, masks: np.ndarray) -> None:
    values = masks.astype(float)
    values[:4] = 0
    found = run(Regioned({"m": made(inputs, values), "nothing": made(inputs, np.zeros((N, SIDE, SIDE)))}, masks))
    assert found.select("mass_inside", method="m").n == {"target": N - 4}
    assert found.select("blank_maps", method="m").value == 4
    nothing = found.select("mass_excess", method="nothing")
    assert nothing.value is None
    assert nothing.reason == "no map with positive values has a region"


def test_pictures_show_the_worst_first_and_only_where_samples_may_be_shown(inputs: Inputs, masks: np.ndarray) -> None:
    values = masks + 0.05
    values[17] = 1.05 - masks[17]
    evidence = Regioned({"m": made(inputs, values)}, masks)
    assert not [e for e in run(evidence).exhibits if isinstance(e, ImageGrid)]
    evidence.samples = "on"
    (grid,) = [e for e in run(evidence).exhibits if isinstance(e, ImageGrid)]
    assert len(grid.rows) == 4
    first = dict(grid.rows[0].facts)
    area = masks[17].mean()
    assert first["area"] == f"{100 * area:.1f} %"
    assert [p.title for p in grid.rows[0].pictures] == ["input", "m"]
    assert all(p.png for row in grid.rows for p in row.pictures)


# ---------------------------------------------------------------- the test of pointing


def test_the_poisson_binomial_p_is_that_of_all_outcomes() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 3, 6):
        chances = rng.random(n)
        outcomes = np.array(list(itertools.product((0, 1), repeat=n)))
        weights = np.prod(np.where(outcomes == 1, chances, 1 - chances), axis=1)
        totals = outcomes.sum(axis=1)
        for hits in (*range(n + 1), 0.5, n - 0.25):
            both = 2 * min(weights[totals >= hits].sum(), weights[totals <= hits].sum())
            assert poisson_binomial_p(hits, chances) == pytest.approx(min(1.0, both), abs=1e-12)
    with pytest.raises(DataError, match="0 to 1"):
        poisson_binomial_p(1, [1.2])


# ---------------------------------------------------------------- cues


class Corner(nn.Module):
    """Class "b" where the mean of one corner of 4 x 4 pixels is bright, through a layer of its own."""

    def __init__(self, row: slice, column: slice) -> None:
        super().__init__()
        self.row, self.column = row, column
        self.look = nn.Conv2d(3, 1, 1)
        self.head = nn.Linear(1, 2)
        with torch.no_grad():
            self.look.weight.fill_(1 / 3)
            self.look.bias.zero_()
            self.head.weight.copy_(torch.tensor([[-8.0], [8.0]]))
            self.head.bias.copy_(torch.tensor([6.0, -6.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.look(x)[:, :, self.row, self.column].mean(dim=(2, 3)))


METHODS = ("integrated_gradients", "kernel_shap")


def marked(corner: tuple[slice, slice], cues: tuple[Cue, ...], samples: str = "off", **domain: Any) -> tuple[Subject, Any]:
    pixels = np.random.default_rng(1).integers(0, 150, size=(24, SIDE, SIDE, 3), dtype=np.uint8)
    model = Model(Corner(*corner), classes=("a", "b"), preprocessing=Preprocessing(height=SIDE, width=SIDE), name="adapted")
    subject = Subject(adapted=model, target=Domain("t", pixels, labels=["a", "b"] * 12, **domain), cues=cues)
    return subject, collect(subject, methods=METHODS, budget=256, samples=samples)


TOP = (slice(0, 4), slice(0, 4))
BOTTOM = (slice(12, 16), slice(12, 16))
PATCH = Cue("mark", "patch", {"corner": "top-left", "size": 0.25, "value": 1.0})


def test_maps_of_a_model_that_reads_the_corner_point_to_the_cue_in_it() -> None:
    subject, evidence = marked(TOP, (PATCH,), samples="on")
    found = run(evidence, subject)
    for method in METHODS:
        on_it = found.select("cue_mass_excess", method=method, cue="mark")
        assert on_it.value > 0.6  # parts of a grid that reach over the edge of the cue
        assert on_it.interval[0] > 0.5
        assert on_it.p_value < 0.01
        assert on_it.n == {"target": 16}
        assert found.select("cue_mass_over_placebo", method=method, cue="mark").interval[0] > 0.4
    assert "over the 16 it changes" in found.summary
    assert not [m for m in found.metrics if m.name == "mass_excess"]
    assert {e.id for e in found.exhibits} == {"cue-mass", "cue-maps"}
    assert verdict(found, load_policy("default")) == "info"


def test_maps_of_a_model_that_ignores_the_corner_do_not() -> None:
    subject, evidence = marked(BOTTOM, (PATCH,))
    found = run(evidence, subject)
    on_it = found.select("cue_mass_excess", method="integrated_gradients", cue="mark")
    assert on_it.value == pytest.approx(-1 / 16, abs=1e-6)
    assert "over all 16 (it changes 0)" in found.summary


def test_a_cue_without_a_place_is_named_and_alone_is_not_enough() -> None:
    hue = Cue("cast", "hue", {"value": [1.0, 0.0, 0.0], "strength": 0.2})
    subject, evidence = marked(TOP, (PATCH, hue))
    assert any("'cast' has no place" in c for c in run(evidence, subject).caveats)
    subject, evidence = marked(TOP, (hue,))
    with pytest.raises(NotEvaluated, match="'cast' has no place"):
        run(evidence, subject)


def test_regions_and_cues_are_measured_side_by_side_and_the_model_is_left_alone() -> None:
    box = np.zeros((24, SIDE, SIDE), dtype=bool)
    box[:, :4, :4] = True
    subject, evidence = marked(TOP, (PATCH,), regions=box)
    before = {k: v.clone() for k, v in subject.adapted.module.state_dict().items()}
    found = run(evidence, subject)
    assert found.select("mass_inside", method="integrated_gradients").value == pytest.approx(1.0)
    assert found.select("cue_mass_excess", method="integrated_gradients", cue="mark").value > 0.9
    again = run(collect(subject, methods=METHODS, budget=256), subject)
    assert [m.value for m in again.metrics] == [m.value for m in found.metrics]
    assert all(torch.equal(v, before[k]) for k, v in subject.adapted.module.state_dict().items())
