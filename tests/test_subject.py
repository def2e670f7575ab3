"""Domain and Subject: by name, complete, and with one sentence where something does not fit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from tl_audit.errors import DataError
from tl_audit.models import Model
from tl_audit.subject import Domain, Subject

PICTURES = np.arange(4 * 9, dtype=np.uint8).reshape(4, 3, 3)


def domain(**given: object) -> Domain:
    return Domain(
        "site B", PICTURES, **{"labels": ["b", "a", "b", "a"], "groups": {"sex": ["f", "m", None, "f"]}, "cluster": [1, 1, 2, 2], **given}
    )  # type: ignore[arg-type]


def test_errors_name_the_domain() -> None:
    with pytest.raises(DataError, match=r"^site B: groups\['sex'\] has 3 rows, the data has 4: "):
        domain(groups={"sex": ["f", "m", "f"]})
    with pytest.raises(DataError, match=r"^site B: unknown option of image data 'postive'"):
        domain(postive="a")


def test_a_domain_holds_what_was_given_by_name() -> None:
    held = domain(positive="b")
    assert (len(held), held.kind, held.classes, held.positive) == (4, "image", ("a", "b"), "b")
    assert held.groups["sex"].tolist() == ["f", "m", "(missing)", "f"]
    assert held.cluster is not None
    assert held.cluster.tolist() == ["1", "1", "2", "2"]
    assert repr(held) == "Domain('site B', image, n=4, 2 classes, groups=['sex'])"


def test_a_subset_keeps_rows_and_classes_together() -> None:
    part = domain(classes=["b", "a", "c"]).subset([3, 0], name="part")
    assert (part.name, part.ids, part.classes) == ("part", ("3", "0"), ("b", "a", "c"))
    assert part.labels is not None
    assert part.labels.tolist() == ["a", "b"]
    assert part.groups["sex"].tolist() == ["f", "f"]
    batch = part.samples.read(np.array([1]))
    assert batch.rows.tolist() == [1]
    assert batch.items[0][0, 0, 0] == PICTURES[0, 0, 0]
    assert domain().subset(np.array([True, False, False, True])).ids == ("0", "3")
    assert part.subset([1]).ids == ("0",)


@pytest.mark.parametrize("rows", [[0, 0], [4], [-1], np.array([True])])
def test_a_subset_outside_the_domain_is_refused(rows: object) -> None:
    with pytest.raises(DataError, match=r"^site B: "):
        domain().subset(rows)  # type: ignore[arg-type]


def test_bare_modules_assume_the_classes_of_the_target_but_a_base_does_not() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(27, 2))
    subject = Subject(adapted=net, base=nn.Sequential(net), target=domain())  # type: ignore[arg-type]
    assert subject.adapted.classes == ("a", "b")
    assert subject.base is not None
    assert subject.base.classes is None
    assert list(subject.models) == ["adapted", "base"]
    assert list(subject.domains) == ["target"]


def test_controls_are_found_by_key() -> None:
    net = Model(nn.Linear(2, 2), classes=("x", "y"))
    subject = Subject(adapted=net, target=Domain("t", torch.zeros(3, 2)), controls={"head": net})
    assert subject.model("control:head") is subject.controls["head"]
    assert subject.model("control:scratch") is None
    assert subject.model("previous") is None
    assert subject.domain("source") is None
    assert subject.classes == ("x", "y")


def test_tables_name_their_groups_from_columns() -> None:
    held = Domain(
        "t", pd.DataFrame({"age": [30, 50], "sex": ["f", ""], "label": ["y", "n"]}), groups=["sex", {"column": "age", "bins": [45]}]
    )
    assert held.groups["sex"].tolist() == ["f", "(missing)"]
    assert held.groups["age"].tolist() == ["<45", ">=45"]
