"""Evidence made of arrays, for tests of checks that read statistics only."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from tl_audit.checks.base import Check, Context
from tl_audit.errors import NotEvaluated
from tl_audit.models import Model
from tl_audit.policy import Rules
from tl_audit.records.metrics import Measurement


class ArrayEvidence:
    """Arrays by (model, domain); whatever was not given raises NotEvaluated."""

    def __init__(self, classes: tuple[str, ...] = ("a", "b"), seed: int = 0) -> None:
        self._classes = classes
        self._labels: dict[str, np.ndarray] = {}
        self._probabilities: dict[tuple[str, str], np.ndarray] = {}
        self._features: dict[tuple[str, str, str | None], np.ndarray] = {}
        self._groups: dict[str, dict[str, np.ndarray]] = {}
        self._cluster: dict[str, np.ndarray] = {}
        self._layers: dict[str, tuple[str, ...]] = {}
        self.positive_class: str | None = None
        self._unlabelled: set[str] = set()
        self.rules, self.seed, self.samples, self.methods = Rules(), seed, "off", ()

    def domain(self, role: str, labels: Any, groups: dict[str, Any] | None = None, cluster: Any = None) -> ArrayEvidence:
        self._labels[role] = np.asarray(labels, dtype=np.int64)
        self._groups[role] = {k: np.asarray(v, dtype=object) for k, v in (groups or {}).items()}
        if cluster is not None:
            self._cluster[role] = np.asarray(cluster, dtype=object)
        return self

    def outputs(self, model: str, role: str, predicted: Any = None, probabilities: Any = None, confidence: float = 0.9) -> ArrayEvidence:
        if probabilities is None:
            c = len(self._classes)
            probabilities = np.full((len(predicted), c), (1 - confidence) / (c - 1))
            probabilities[np.arange(len(predicted)), np.asarray(predicted)] = confidence
        self._probabilities[model, role] = np.asarray(probabilities, dtype=np.float64)
        return self

    def with_features(self, model: str, role: str, values: Any, layer: str | None = None) -> ArrayEvidence:
        self._features[model, role, layer] = np.asarray(values)
        if layer is not None:
            self._layers[model] = (*self._layers.get(model, ()), layer)
        return self

    def has(self, model: str | None, domain: str) -> bool:
        if model is None:
            return domain in self._labels
        return (model, domain) in self._probabilities or (model, domain, None) in self._features

    def ids(self, domain: str) -> tuple[str, ...]:
        return tuple(f"{domain}-{i}" for i in range(self.n(domain)))

    def n(self, domain: str) -> int:
        return len(self._labels[domain])

    def labels(self, domain: str) -> np.ndarray:
        if domain not in self._labels or domain in self._unlabelled:
            raise NotEvaluated(f"labels of the {domain}")
        return self._labels[domain]

    def classes(self, domain: str) -> tuple[str, ...]:
        return self._classes

    def common_classes(self, model: str, domain: str) -> tuple[str, ...]:
        return self._classes

    def truth(self, model: str, domain: str) -> np.ndarray:
        return self.labels(domain)

    def probabilities(self, model: str, domain: str) -> np.ndarray:
        if (model, domain) not in self._probabilities:
            raise NotEvaluated(f"outputs of {model} on {domain}")
        return self._probabilities[model, domain]

    def predictions(self, model: str, domain: str) -> np.ndarray:
        return self.probabilities(model, domain).argmax(axis=1)

    def correct(self, model: str, domain: str) -> np.ndarray:
        return self.predictions(model, domain) == self.truth(model, domain)

    def features(self, model: str, domain: str, layer: str | None = None) -> np.ndarray:
        return self._features[model, domain, layer]

    def layers(self, model: str) -> tuple[str, ...]:
        return self._layers.get(model, ())

    def usable(self, model: str | None, domain: str) -> np.ndarray:
        if model is not None and not self.has(model, domain):
            raise NotEvaluated(f"outputs of {model} on {domain}")
        n = self.n(domain) if domain in self._labels else len(self._features[str(model), domain, None])
        return np.ones(n, dtype=bool)

    def groups(self, domain: str) -> dict[str, np.ndarray]:
        return self._groups.get(domain, {})

    def cluster(self, domain: str) -> np.ndarray | None:
        return self._cluster.get(domain)

    def positive(self, domain: str) -> str | None:
        return self.positive_class


class Parts:
    """A subject as far as statistics need it: which models are there."""

    def __init__(self, *models: str, record: Any = None) -> None:
        self._models, self.record, self.same_as_adapted = models, record, ()
        layers = nn.Sequential()
        for name in ("early", "late"):
            layers.add_module(name, nn.Linear(2, 2))
        self.adapted = Model(layers)

    def model(self, key: str) -> Model | None:
        return self.adapted if key in self._models else None


def measure(check: Check, evidence: ArrayEvidence, *models: str, rules: Rules | None = None, seed: int = 0) -> Measurement:
    return check(Parts(*models), evidence, Context(rules=rules or Rules(), seed=seed, declared={}))  # type: ignore[arg-type]
