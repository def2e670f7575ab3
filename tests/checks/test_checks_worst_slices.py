"""Worst slices (TLA307): a planted part is found on rows that the search did not see; without one, nobody is accused."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image
from torch import nn

import tl_audit as ta
from tests.checks.arrays import measure
from tests.checks.worlds_of_slices import SlicedEvidence, answers, clustered_noise
from tl_audit.checks.base import Context
from tl_audit.checks.worst_slices import worst_slices
from tl_audit.errors import NotEvaluated
from tl_audit.measures import intervals
from tl_audit.modality.periods import periods_of
from tl_audit.policy import Rules, judge, load_policy
from tl_audit.records.findings import Finding
from tl_audit.records.metrics import Measurement
from tl_audit.runner import corrected

POLICY = load_policy("default")


def world(seed: int, *, planted: str = "", n: int = 1000, clustered: bool = False, base: float = 0.1) -> SlicedEvidence:
    """A target of two classes with brightness, contrast, file kind and site; ``planted`` adds 0.4 to the error of a tenth of it."""
    rng = np.random.default_rng(seed)
    evidence = SlicedEvidence()
    cluster = np.arange(n) // 8 if clustered else None
    bright, site = rng.random(n), rng.choice(np.array(["north", "south", "west"], dtype=object), n, p=[0.35, 0.35, 0.3])
    month = rng.integers(0, 10, n)
    x = clustered_noise(rng, n, 12, cluster)
    bad = {
        "": np.zeros(n, dtype=bool), "rule": (bright < 0.31) & (site == "north"), "site": rng.random(n) < 0.1, "period": month >= 9,
        "features": rng.random(n) < 0.1,
    }[planted]  # fmt: skip
    if planted == "site":
        site[bad] = "east"
    if planted == "features":
        x[bad] += 3.0
    own = np.full(n, base) if cluster is None else rng.beta(1, 9, int(cluster.max()) + 1)[cluster]
    labels = rng.integers(0, 2, n)
    evidence.domain("target", labels, {"site": site}, cluster=cluster)
    evidence.outputs("adapted", "target", answers(labels, rng.random(n) < own + 0.4 * bad)).with_features("adapted", "target", x)
    evidence.columns = {
        "brightness": bright,
        "contrast": rng.normal(size=n),
        "file": np.where(rng.random(n) < 0.5, "png", "jpg").astype(object),
    }
    evidence.when = periods_of([f"2024-{k + 1:02d}" for k in month], n, "month")
    return evidence


def asked(evidence: SlicedEvidence, seed: int = 0) -> Measurement:
    return measure(worst_slices, evidence, "adapted", seed=seed)


def judged(measurement: Measurement) -> Finding:
    check = worst_slices
    return judge(check.code, check.title, check.section, check.severity, corrected(measurement, check), POLICY)


@pytest.mark.parametrize(
    ("planted", "words"), [("rule", ("brightness ≤ 0.", "site = north")), ("site", ("site = east",)), ("period", ("period = 2024-10",))]
)
def test_a_planted_tenth_is_found_at_a_thousand_rows_and_described(planted, words):
    found = asked(world(3, planted=planted))
    finding = judged(found)
    assert finding.status in ("warn", "fail")
    (broken, *_) = {limit.slice["slice"] for limit in finding.limits if limit.outcome == "broken"}
    assert all(word in broken for word in words)
    assert found.select("slices_found").value >= 1
    assert found.select("slice_error_excess", slice=broken).value == pytest.approx(0.4, abs=0.15)


def test_a_planted_part_that_no_rule_describes_is_found_among_the_features():
    found = asked(world(1, planted="features"))
    assert judged(found).status in ("warn", "fail")
    assert "feature cluster" in found.summary


@pytest.mark.slow
@pytest.mark.parametrize(("clustered", "n"), [(False, 1000), (True, 1000), (False, 300)])
def test_independent_errors_are_hardly_ever_reported(clustered, n):
    runs = 40
    found = [asked(world(seed, clustered=clustered, n=n), seed) for seed in range(runs)]
    statuses = [judged(one).status for one in found]
    assert sum(status in ("warn", "fail") for status in statuses) <= 1
    # Benjamini-Hochberg at 0.05: at most a twentieth, and three standard errors
    assert sum(one.select("slices_found").value > 0 for one in found) <= 0.05 * runs + 3 * np.sqrt(0.05 * 0.95 * runs)


@pytest.mark.slow
def test_the_planted_tenth_is_found_nearly_always():
    runs = 20
    assert sum(judged(asked(world(seed, planted="site"), seed)).status in ("warn", "fail") for seed in range(runs)) >= 0.9 * runs


def test_the_numbers_are_those_of_the_half_that_the_search_did_not_see():
    evidence = world(5, planted="site")
    found = asked(evidence)
    line = next(row for row in next(x for x in found.exhibits if x.id == "slices").rows if row[0] == "site = east")
    east, wrong = evidence.groups("target")["site"] == "east", ~evidence.correct("adapted", "target")
    assert 0 < line[1] < east.sum()
    # the other half of the part is not counted: the shares of both halves make the whole
    excess = found.select("slice_error_excess", slice="site = east")
    assert excess.n == {"slice": line[1], "rest": found.params["tested_rows"] - line[1]}
    assert line[2] == pytest.approx(wrong[east].mean(), abs=0.2)
    k = round(line[2] * line[1])
    rest = round(line[3] * excess.n["rest"])
    oracle = intervals.rate_difference(
        np.arange(line[1]) < k, np.arange(excess.n["rest"]) < rest
    )  # fmt: skip
    assert excess.value == pytest.approx(oracle.value)
    assert excess.interval == pytest.approx(oracle.interval())


def test_the_order_of_rows_does_not_matter():
    evidence = world(6, planted="site", n=600)
    whole = asked(evidence)
    order = np.random.default_rng(0).permutation(600)
    turned = world(6, planted="site", n=600)
    turned.domain("target", evidence.labels("target")[order], {"site": evidence.groups("target")["site"][order]})
    turned.outputs("adapted", "target", probabilities=evidence.probabilities("adapted", "target")[order])
    turned.with_features("adapted", "target", evidence.features("adapted", "target")[order])
    turned.columns = {name: values[order] for name, values in evidence.columns.items()}
    turned.when = evidence.when.take(order)
    turned.ids = lambda domain: tuple(f"{domain}-{i}" for i in order)  # type: ignore[method-assign]
    again = asked(turned)
    assert [m.slice for m in again.metrics] == [m.slice for m in whole.metrics]
    assert [m.value for m in again.metrics] == pytest.approx([m.value for m in whole.metrics])


def test_clusters_are_split_whole_and_counted():
    found = asked(world(2, planted="site", clustered=True))
    (metric, *_) = [m for m in found.metrics if m.name == "slice_error_excess"]
    assert min(metric.clusters.values()) >= 10
    assert "split by cluster" in next(x for x in found.exhibits if x.id == "worst-slices").caption


def test_a_model_without_errors_has_no_worst_slice():
    evidence = world(1)
    evidence.outputs("adapted", "target", evidence.labels("target"))
    found = asked(evidence)
    assert found.summary == "The half that was searched holds no error: there is no worse part to look for."
    assert found.select("slices_found").value == 0
    assert judged(found).status == "info"


def test_too_few_rows_are_not_evaluated():
    with pytest.raises(NotEvaluated, match="120 rows of the target"):
        asked(world(1, n=110))


def test_without_features_rules_are_still_looked_for():
    evidence = world(3, planted="site")
    evidence._features.clear()
    found = asked(evidence)
    assert "site = east" in found.summary
    assert any(caveat.startswith("No features of the adapted model") for caveat in found.caveats)


def test_missing_and_infinite_properties_and_a_number_that_is_a_group_too():
    evidence = world(3, planted="site")
    odd = evidence.columns["contrast"].copy()
    odd[:200], odd[200:210] = np.nan, np.inf
    evidence.columns["contrast"] = odd
    evidence.columns["site"] = np.arange(1000.0)
    assert "site (group) = east" in asked(evidence).summary


class Whole:
    """A subject with live pictures."""

    def __init__(self, domain: ta.Domain) -> None:
        self.target = domain
        self.adapted = ta.Model(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), classes=("a", "b"))


@pytest.mark.parametrize("samples", ["on", "redacted", "off"])
def test_samples_of_the_worst_part_are_shown_where_allowed(samples):
    evidence = world(3, planted="site", n=400)
    pictures = np.random.default_rng(0).integers(0, 255, (400, 8, 8, 3), dtype=np.uint8)
    evidence.samples = samples
    evidence.content_hashes = lambda domain: np.array([f"h{i}" for i in range(400)], dtype=object)  # type: ignore[attr-defined]
    subject = Whole(ta.Domain("t", pictures))
    found = worst_slices(subject, evidence, Context(rules=Rules(), seed=0, declared={}))  # type: ignore[arg-type]
    grids = [exhibit for exhibit in found.exhibits if exhibit.kind == "ImageGrid"]
    assert len(grids) == (samples != "off")
    if samples == "on":
        facts = [dict(row.facts) for row in grids[0].rows]
        assert facts[0]["true"] != facts[0]["answer"]
        assert len({row.id for row in grids[0].rows}) == len(grids[0].rows) == 12
        assert Image.open(io.BytesIO(base64.b64decode(grids[0].rows[0].pictures[0].png))).size[0] > 0
