"""report.metric_frame: fairlearn's MetricFrame of the audit's own rows, agreeing with TLA601, and nowhere outside this process."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score
from torch import nn

import tl_audit as ta
from tl_audit.errors import ConfigError
from tl_audit.records.schema import load_json
from tl_audit.report import AuditReport

CLASSES = ("no", "yes")


def subject(n: int = 240, *, positive: str | None = "yes", classes: int = 2, cut_off: bool = False) -> ta.Subject:
    rng = np.random.default_rng(0)
    names = [*CLASSES, "perhaps"][:classes]
    x = rng.normal(size=(n, classes)).astype(np.float32)
    labels = np.where(rng.random(n) < 0.7, x.argmax(axis=1), rng.integers(0, classes, n))
    sex = rng.choice(["f", "m"], n).astype(object)
    sex[:4] = None
    site = rng.choice(["north", "south"], n)
    if cut_off:
        labels[site == "south"] = 0
    network = nn.Sequential(nn.Linear(classes, classes))
    with torch.no_grad():
        network[0].weight.copy_(2 * torch.eye(classes))
        network[0].bias.zero_()
    model = ta.Model(network, classes=names)
    more = {} if positive is None else {"positive": positive}
    target = ta.Domain("t", x, labels=[names[i] for i in labels], classes=names, groups={"sex": sex, "site": site}, kind="tensor", **more)
    return ta.Subject(adapted=model, target=target)


@pytest.fixture(scope="module")
def report() -> AuditReport:
    return ta.audit(subject(), select=["TLA601"], methods=())


def test_the_frame_agrees_with_the_check_in_every_rate_of_every_group(report: AuditReport) -> None:
    found = report["TLA601"].measurement
    assert found is not None
    compared = 0
    for column in ("sex", "site"):
        frame = report.metric_frame(groups=column)
        assert list(frame.by_group.columns) == ["n", "accuracy", "selection_rate", "tpr", "fpr", "precision", "base_rate", "nll"]
        for group, line in frame.by_group.iterrows():
            for name in frame.by_group.columns[1:]:
                one = found.select(name, **{column: str(group)})
                if one.value is not None:  # small groups are held back in the record
                    assert line[name] == pytest.approx(one.value, abs=1e-12)
                    compared += 1
    assert compared >= 28
    assert frame.overall["n"] == 240


def test_metrics_of_other_libraries_work_as_they_are(report: AuditReport) -> None:
    from fairlearn.metrics import MetricFrame, selection_rate, true_positive_rate

    frame = report.metric_frame({"rate": selection_rate, "tpr": true_positive_rate, "f1": f1_score}, groups="site")
    own = report.metric_frame(groups="site")
    assert isinstance(frame, MetricFrame)
    assert frame.by_group["rate"].to_dict() == pytest.approx(own.by_group["selection_rate"].to_dict(), abs=1e-12)
    assert frame.by_group["tpr"].to_dict() == pytest.approx(own.by_group["tpr"].to_dict(), abs=1e-12)
    assert report.metric_frame(f1_score, groups="site").difference() == pytest.approx(frame.difference()["f1"])


def test_several_columns_are_crossed_and_all_of_them_by_default(report: AuditReport) -> None:
    assert report.metric_frame().by_group.index.names == ["sex", "site"]
    assert report.metric_frame(groups=["site", "sex"]).by_group.index.names == ["site", "sex"]
    assert ("(missing)" in report.metric_frame(groups="sex").by_group.index) is True


def test_a_rate_without_a_denominator_is_not_a_number_where_fairlearn_says_0() -> None:
    from fairlearn.metrics import true_positive_rate

    frame = ta.audit(subject(cut_off=True), select=["TLA601"], methods=()).metric_frame(groups="site")
    assert np.isnan(frame.by_group["tpr"]["south"])
    assert not np.isnan(frame.by_group["tpr"]["north"])
    assert true_positive_rate([0, 0], [0, 1]) == 0.0


def test_more_classes_and_no_positive_class_keep_their_names() -> None:
    seen: list[set[str]] = []

    def look(y_true, y_pred) -> float:  # type: ignore[no-untyped-def]  # as users write them
        seen.append(set(y_true))
        return 0.0

    frame = ta.audit(subject(classes=3, positive=None), select=["TLA601"], methods=())
    assert list(frame.metric_frame(groups="site").by_group.columns) == ["n", "accuracy", "nll"]
    frame.metric_frame(look, groups="site")
    assert set().union(*seen) == {"no", "yes", "perhaps"}
    three = ta.audit(subject(classes=3), select=["TLA601"], methods=())
    found = three["TLA601"].measurement
    assert found is not None
    for group, line in three.metric_frame(groups="site").by_group.iterrows():
        assert line["tpr"] == pytest.approx(found.select("tpr", site=str(group)).value, abs=1e-12)


def test_what_cannot_be_given_is_said_in_one_sentence(report: AuditReport) -> None:
    with pytest.raises(ConfigError, match=r"no group column 'sx' \(did you mean \"sex\"|no group column 'sx'"):
        report.metric_frame(groups="sx")
    with pytest.raises(
        ConfigError, match=r"no rows of model='base' on domain='target': this audit did not look at it; there are: adapted on target"
    ):
        report.metric_frame(model="base")
    whole = subject()
    bare = ta.Subject(adapted=whole.adapted, target=ta.Domain("t", np.zeros((20, 2), np.float32), labels=["no", "yes"] * 10, kind="tensor"))
    with pytest.raises(ConfigError, match="needs groups"):
        ta.audit(bare, select=["TLA301"], methods=()).metric_frame()


def test_no_row_leaves_the_process(report: AuditReport, tmp_path: Path) -> None:
    report.save(tmp_path)
    read = AuditReport(load_json(tmp_path / "report.json"))
    assert read.json == report.json
    for other in (read, pickle.loads(pickle.dumps(report)), copy.copy(report)):
        with pytest.raises(ConfigError, match=r"report\.json does not hold"):
            other.metric_frame()
    assert report.metric_frame() is not None
    assert isinstance(report.to_frame(), pd.DataFrame)
