"""Defects of explainers: rows 21 and 22. The model is sound; how it is explained is not. Sound methods beside the unsound must not be accused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tl_audit.defects.base import Assertion, Audits, Defect, Fires, Planted, fires, matching, quiet
from tl_audit.defects.worlds import Kind, world
from tl_audit.errors import ConfigError
from tl_audit.models.builtin import TableMLP

if TYPE_CHECKING:
    from tl_audit.records.findings import Status

UNSOUND: dict[Kind, tuple[str, ...]] = {"image": ("edge_map", "random_map"), "tabular": ("random_map",)}
SOUND = "kernel_shap"
SAMPLES: dict[Kind, int] = {"image": 64, "tabular": 120}
BUDGET: dict[Kind, int] = {"image": 128, "tabular": 64}
SHOWN: dict[Kind, tuple[str, ...]] = {"image": ("met", "undecided"), "tabular": ("met",)}
"""What TLA703 may say of the sound method. Pictures: the stroke is all that stands out, so that a model of permuted weights is drawn to it as well, and in
one world of three the difference stays undecided, at 48 samples as at 120; what it must never be is broken.
"""
NEVER_PASS: tuple[Status, ...] = ("fail", "warn", "inconclusive")
BLANK = 40
"""Samples that are explained where every map is blank."""


@contextmanager
def swapped(owner: type, name: str, value: Callable[..., Any]) -> Iterator[None]:
    """A method of a class replaced while the block runs: how a faulty explainer gets into an audit."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def held(code: str, metric: str, method: str, level: str, *outcomes: str) -> Assertion:
    """The limit on this metric of this method has one of these outcomes."""

    def look(audits: Audits) -> Iterator[str]:
        known = [limit.outcome for limit in matching(audits.found[code], metric, {"method": method}, level)]
        if not known or any(outcome not in outcomes for outcome in known):
            yield f"{code} {metric} of {method}: expected {' or '.join(outcomes)}, it is {', '.join(known) or 'not judged'}"

    return look


def stamped(method: str, *beginnings: str, never: bool = False) -> Assertion:
    """The gate's stamp of this method begins with one of these words; with ``never`` with none of them."""

    def look(audits: Audits) -> Iterator[str]:
        measured = audits.found["TLA711"].measurement
        stamp = "" if measured is None else str(measured.params[f"stamp:{method}"])
        if stamp.startswith(beginnings) == never:
            yield f"TLA711 stamps {method} with {stamp!r}; it must {'not ' if never else ''}begin with {' or '.join(beginnings)}"

    return look


def unrelated_beside_a_sound_method(kind: Kind, seed: int) -> Planted:
    """Edges of the picture and noise are offered as explanations, beside kernel SHAP, which is one (rows of a table have no edges: noise alone)."""
    unsound = UNSOUND[kind]
    return Planted(
        world(kind, seed).subject(), methods=(SOUND, *unsound), attribution_samples=SAMPLES[kind], budget=BUDGET[kind],
        assertions=(
            held("TLA703", "randomisation_effect", SOUND, "fail", *SHOWN[kind]), held("TLA702", "faithfulness_gain", SOUND, "fail", "met"),
            held("TLA702", "faithfulness_gain", "random_map", "warn", "broken", "undecided"), stamped(SOUND, *(("passed", "not_checked") if kind == "image" else ("passed",))),
            *(held("TLA703", "randomisation_effect", method, "fail", "broken") for method in unsound), *(stamped(method, "unreliable") for method in unsound),
        ),
    )  # fmt: skip


def noise_and_nothing_else(kind: Kind, seed: int) -> Planted:
    """Noise is the only explanation offered: the gate must let nothing through."""
    return Planted(world(kind, seed).subject(), methods=("random_map",), attribution_samples=60)


def a_constant_map(kind: Kind, seed: int) -> Planted:
    """The explainer gives the same value to every pixel, whatever the picture: such maps are counted as blank and never averaged in."""
    from tl_audit.attribution import Attribution
    from tl_audit.attribution.maps import blank_maps, from_elements
    from tl_audit.attribution.methods.edge_map import EdgeMap

    def constant(self: EdgeMap, model: Any, inputs: Any, targets: Any, run: Any) -> Attribution:
        elements, players = from_elements(torch.ones((len(inputs), *inputs.tensor.shape[-2:])), inputs.players)
        return Attribution(elements, players, targets.index, self.name, inputs, False, seed=run.seed, blank=blank_maps(elements))

    return Planted(
        world(kind, seed).subject(), methods=("edge_map",), attribution_samples=BLANK, assertions=(_all_blank, stamped("edge_map", "passed", never=True)),
        around=lambda: swapped(EdgeMap, "__call__", constant),
    )  # fmt: skip


def _all_blank(audits: Audits) -> Iterator[str]:
    for code in ("TLA702", "TLA703"):
        finding = audits.found[code]
        if finding.status == "pass":
            yield f"{code} passes maps that are all blank"
        if finding.measurement is None or finding.measurement.select("blank_maps", method="edge_map").value != BLANK:
            yield f"{code} does not count {BLANK} blank maps"
    measured = audits.found["TLA702"].measurement
    if measured is not None:
        gain = measured.select("faithfulness_gain", method="edge_map")
        if gain.value is not None or "blank" not in (gain.reason or ""):
            yield f"TLA702 averages blank maps: faithfulness_gain {gain.value} ({gain.reason})"


class FunctionalMLP(nn.Module):
    """A ``TableMLP`` without embeddings, written with nothing but linear modules: its ReLUs are functions, which rules for modules never see."""

    def __init__(self, like: TableMLP) -> None:
        super().__init__()
        self.linears = nn.ModuleList(like.get_submodule(f"{name}.linear") for name in like.blocks)
        self.head = like.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for linear in self.linears:
            x = torch.relu(linear(x))
        out: torch.Tensor = self.head(x)
        return out


def functional_under_modules(kind: Kind, seed: int) -> Planted:
    """DeepLIFT by rules for modules (captum's) on a network whose ReLUs are functions: the rules miss them, and only the residual shows it."""
    from tl_audit.attribution.methods.deep_lift import DeepLift

    whole = DeepLift.__call__
    return replace(
        functional_under_operations(kind, seed),
        methods=("deep_lift", SOUND),
        attribution_samples=SAMPLES[kind],
        budget=BUDGET[kind],
        assertions=(
            held("TLA701", "completeness_bad_share", "deep_lift", "fail", "broken"), held("TLA701", "completeness_bad_share", SOUND, "fail", "met"),
            held("TLA703", "randomisation_effect", SOUND, "fail", "met"), held("TLA703", "randomised_similarity", SOUND, "warn", "met", "undecided"),
            stamped("deep_lift", "unreliable: not reliable: fails TLA701"), stamped(SOUND, "passed"),
        ),
        around=lambda: swapped(DeepLift, "__call__", lambda self, *given: whole(replace(self, engine="captum"), *given)),
    )  # fmt: skip


def functional_under_operations(kind: Kind, seed: int) -> Planted:
    """The same network under DeepLIFT's rule on operations, which sees functions as well: nobody may be accused."""
    grown = world(kind, seed)
    if not isinstance(grown.adapted.module, TableMLP):
        raise ConfigError(f"functional ReLUs are planted in the perceptron of tables, not in {kind} data")
    twin = replace(grown.adapted, module=FunctionalMLP(grown.adapted.module).eval(), file=None, head=None, arch=None)
    return Planted(
        grown.subject(adapted=twin, base=None, controls={}, record=None), methods=("deep_lift",), attribution_samples=100,
        assertions=(stamped("deep_lift", "unreliable", never=True),),
    )  # fmt: skip


EXPLANATIONS: tuple[Defect, ...] = (
    Defect(
        21, "Explainer unrelated to the model", unrelated_beside_a_sound_method,
        (
            *fires("703", statuses=("fail",)), *fires("702", statuses=NEVER_PASS),
            Fires("TLA704", ("warn",), "seed_rank_correlation", {"method": "random_map"}), *fires("711", statuses=("warn",)),
        ),
        quiet("301", "305"), variant="beside a sound one",
    ),
    Defect(
        21, "Explainer unrelated to the model", noise_and_nothing_else, (*fires("711", "703", statuses=("fail",)),), quiet("301", "305"), variant="noise alone",
        cheap=True,
    ),
    Defect(
        21, "Explainer unrelated to the model", a_constant_map, fires("711", statuses=("fail", "warn", "inconclusive")), quiet("301", "305"), ("image",),
        variant="constant map", cheap=True,
    ),
    Defect(
        22, "Functional ReLU under DeepLIFT", functional_under_modules, (*fires("701", statuses=("fail",)), *fires("711", statuses=("warn",))), quiet("301"),
        ("tabular",), variant="rules for modules",
    ),
    Defect(
        22, "Functional ReLU under DeepLIFT", functional_under_operations, (), quiet("701", "301"), ("tabular",), variant="rules for operations", cheap=True,
    ),
)  # fmt: skip
