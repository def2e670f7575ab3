"""Evidence: what the models were observed to do, per sample. The access that checks use; files of predictions implement it too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tl_audit.attribution.base import Attribution
from tl_audit.modality.periods import Periods
from tl_audit.policy import Rules
from tl_audit.subject import Subject

FloatArray = NDArray[np.float64]
T = TypeVar("T")

_HOW_TO_GIVE = {
    "adapted": "the adapted model: [adapted] in audit.toml, adapted= in Python",
    "base": "the base model: [base] in audit.toml, base= in Python",
    "previous": "the previous model: [previous] in audit.toml, previous= in Python",
    "control:head": 'the control "head": [[controls]] in audit.toml, controls= in Python',
    "control:scratch": 'the control "scratch": [[controls]] in audit.toml, controls= in Python',
    "target": "a target domain: [target] in audit.toml, target= in Python",
    "source": "a source domain: [source] in audit.toml, source= in Python",
    "train": "the training data: [train] in audit.toml, train= in Python",
    "validation": "the validation data: [validation] in audit.toml, validation= in Python",
    "ood": "an outside set: [ood] in audit.toml, ood= in Python",
    "record": "an adaptation record: a run directory made by `tl-audit adapt`",
    "cues": "cues: [[cues]] in audit.toml, cues= in Python",
    "adapter": "low-rank adapters: adapter = a folder in [adapted], adapter= in Python",
    "declared": "declared facts: [declared] in audit.toml, declared= in Python",
    "classes": "classes: the labels of this audit are numbers (regression)",
    "adapted.file": "the weights file of the adapted model",
    "base.file": "the weights file of the base model",
}
_OF_A_DOMAIN = {
    "labels": "labels of the {role} domain: class folders, or a label column in [{role}]",
    "groups": "groups of the {role} domain: groups = [...] in [{role}]",
    "cluster": "cluster ids of the {role} domain: cluster = ... in [{role}]",
    "time": "times of the {role} domain: time = ... in [{role}]",
    "site": "sites of the {role} domain: site = ... in [{role}]",
    "regions": "regions of the {role} domain: boxes in its metadata, masks = or annotations = in [{role}], Domain(regions=...) in Python",
}


def missing_input(name: str) -> str:
    """What is missing, in words, with how to give it. ``name`` is one of the words of ``Check.needs``."""
    if name in _HOW_TO_GIVE:
        return _HOW_TO_GIVE[name]
    role, _, part = name.partition(".")
    return _OF_A_DOMAIN[part].format(role=role) if part in _OF_A_DOMAIN else name


def missing_model(subject: Subject, key: str) -> str:
    """What is missing where a model is, in words; says so where a control is the adapted model by design."""
    if key.removeprefix("control:") in subject.same_as_adapted:
        return f"no comparison: the control {key.removeprefix('control:')!r} is the adapted model itself by the plan"
    return missing_input(key)


class Evidence(Protocol):
    """Arrays per (model key, domain role), lazy and memory-mapped. Rows are those of the domain, in its order, never fewer.

    What cannot be had raises ``NotEvaluated`` with the name of the missing input. Rows whose input was unreadable or whose output
    is not finite are marked in ``usable``; callers select with it (one mask for all metrics, TLA208).
    """

    def has(self, model: str | None, domain: str) -> bool:
        """Whether this model was (or can be) run on this domain; with None: whether the domain is there."""
        ...

    def why_not(self, model: str, domain: str) -> str | None:
        """None where ``has`` holds, else what is missing, in words."""
        ...

    def ids(self, domain: str) -> tuple[str, ...]: ...

    def n(self, domain: str) -> int: ...

    def labels(self, domain: str) -> NDArray[np.int64]:
        """(N,) class index into ``classes(domain)``; -1 where a row has no label. NotEvaluated where the domain is unlabelled."""
        ...

    def classes(self, domain: str) -> tuple[str, ...]:
        """Class names of the domain."""
        ...

    def common_classes(self, model: str, domain: str) -> tuple[str, ...]:
        """The class names in the MODEL's output order, if every class of the domain is among them; NotEvaluated('no common label space: ...') otherwise."""
        ...

    def truth(self, model: str, domain: str) -> NDArray[np.int64]:
        """(N,) labels as indices into the MODEL's output order (aligned by name); -1 without a label or for a class the model lacks."""
        ...

    def values(self, domain: str) -> FloatArray:
        """(N,) numbers of a regression in their own unit; NaN where a row has none. NotEvaluated where labels are classes or there are none."""
        ...

    def logits(self, model: str, domain: str) -> NDArray[np.floating[Any]]:
        """(N, C) float32 logits, memory-mapped; of a model that gives a number, (N, 1) numbers in its own unit."""
        ...

    def probabilities(self, model: str, domain: str) -> FloatArray:
        """(N, C) float64, rows sum to 1 (NaN where not ``usable``); softmax (or sigmoid for one logit, as two columns) applied once.

        NotEvaluated in a regression, as are ``classes``, ``labels``, ``truth`` and ``correct``.
        """
        ...

    def predictions(self, model: str, domain: str) -> NDArray[Any]:
        """(N,) index of the largest probability in the model's output order; -1 where not ``usable``.

        In a regression (N,) float64, the predicted numbers in their own unit; NaN where not ``usable``. NotEvaluated for a model that gives none.
        """
        ...

    def correct(self, model: str, domain: str) -> NDArray[np.bool_]:
        """(N,) prediction is the label, by name. Only meaningful where ``usable`` holds and the row has a label."""
        ...

    def features(self, model: str, domain: str, layer: str | None = None) -> NDArray[np.floating[Any]]:
        """(N, D) penultimate features, or the mean-pooled output of one layer group, memory-mapped."""
        ...

    def layers(self, model: str) -> tuple[str, ...]:
        """Layer groups of the model in execution order."""
        ...

    def usable(self, model: str | None, domain: str) -> NDArray[np.bool_]:
        """(N,) readable input, and (with a model) finite outputs."""
        ...

    def read_errors(self, domain: str) -> dict[int, str]:
        """Row -> reason, for unreadable samples."""
        ...

    def content_hashes(self, domain: str) -> NDArray[np.object_]:
        """(N,) hex SHA-256 of decoded content; None where unreadable."""
        ...

    def properties(self, domain: str) -> dict[str, NDArray[Any]]:
        """Input properties by name: (N,) float64 (NaN unreadable) or object (None unreadable) arrays."""
        ...

    def sketches(self, domain: str) -> NDArray[np.uint8] | None:
        """(N, 16, 16) grey sketches of pictures, 0 where unreadable; None where the samples are no pictures."""
        ...

    def cells(self, domain: str) -> dict[str, NDArray[Any]] | None:
        """The columns of rows, as in ``properties``; None where the samples are no rows."""
        ...

    def facts(self, domain: str) -> Mapping[str, Any]:
        """Whole-domain facts of the reader: exif_rotated (count), nonfinite_inputs (row numbers), sha256 (fingerprint)."""
        ...

    def groups(self, domain: str) -> dict[str, NDArray[np.object_]]:
        """Group column -> (N,) str values, '(missing)' for missing ones."""
        ...

    def cluster(self, domain: str) -> NDArray[np.object_] | None: ...

    def periods(self, domain: str) -> Periods | None:
        """The period of each row, None where the domain has no times."""
        ...

    def site(self, domain: str) -> NDArray[np.object_] | None:
        """(N,) site of each row, '(missing)' for missing ones; None where the domain has none."""
        ...

    def regions(self, domain: str, rows: NDArray[np.int64], model: str = "adapted") -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(B, H, W) what lies inside the region of these rows, at the size of the model's input, and (B,) which rows have one. NotEvaluated without regions."""
        ...

    def positive(self, domain: str) -> str | None:
        """The declared positive class, None where there is none."""
        ...

    def attributions(self, model: str, domain: str, method: str) -> Attribution:
        """Attributions of this method for the audit's attribution sample of the domain (computed once, cached)."""
        ...

    def attribution_rows(self, domain: str) -> NDArray[np.int64]:
        """Row numbers of the attribution sample: hash priority, stratified by class and group."""
        ...

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What several checks derive from this evidence, made on first use and kept while the audit runs."""
        ...

    @property
    def methods(self) -> tuple[str, ...]:
        """Attribution methods chosen for this audit."""
        ...

    @property
    def rules(self) -> Rules: ...

    @property
    def seed(self) -> int: ...

    @property
    def samples(self) -> str:
        """off | redacted | on: may pictures of samples appear?"""
        ...
