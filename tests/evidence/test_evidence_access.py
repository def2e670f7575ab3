"""The contract of every accessor of the evidence, on a subject small enough to work out by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from tests.evidence.tiny import Picky, calls, counted, domain, full, tiny
from tl_audit.errors import DataError, Interrupted, NotEvaluated
from tl_audit.evidence import Store, collect
from tl_audit.models import Model
from tl_audit.subject import Domain


def forward(model: Model, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model.module(torch.tensor(x)).numpy()


def test_logits_probabilities_and_predictions_are_those_of_the_model_in_row_order() -> None:
    subject = tiny()
    with_model = forward(subject.adapted, np.asarray(subject.target.samples.data))
    evidence = collect(subject)
    np.testing.assert_allclose(evidence.logits("adapted", "target"), with_model, atol=1e-6)
    p = evidence.probabilities("adapted", "target")
    np.testing.assert_allclose(p, np.exp(with_model) / np.exp(with_model).sum(axis=1, keepdims=True), atol=1e-6)
    assert p.dtype == np.float64
    np.testing.assert_array_equal(evidence.predictions("adapted", "target"), with_model.argmax(axis=1))
    assert evidence.ids("target") == subject.target.ids
    assert evidence.n("target") == 40


def test_features_are_the_inputs_of_the_head_and_layers_come_in_execution_order() -> None:
    subject = tiny()
    x = torch.tensor(np.asarray(subject.target.samples.data))
    evidence = collect(subject)
    net = subject.adapted.module
    np.testing.assert_allclose(evidence.features("adapted", "target"), torch.relu(net.body(x)).detach(), atol=1e-6)
    assert evidence.layers("adapted") == ("body", "head")
    np.testing.assert_allclose(evidence.features("adapted", "target", "body"), net.body(x).detach(), atol=1e-6)
    assert isinstance(evidence.features("adapted", "target"), np.memmap)
    with pytest.raises(NotEvaluated, match="layer 'neck' of the adapted model"):
        evidence.features("adapted", "target", "neck")


def test_labels_are_aligned_with_each_model_by_name_and_never_by_index() -> None:
    subject = tiny(base=counted(1, ("bees", "ants"), name="base"))
    evidence = collect(subject)
    labels = evidence.labels("target")
    assert evidence.classes("target") == ("ants", "bees")
    assert evidence.common_classes("base", "target") == ("bees", "ants")
    np.testing.assert_array_equal(evidence.truth("base", "target"), 1 - labels)
    np.testing.assert_array_equal(evidence.correct("base", "target"), evidence.predictions("base", "target") == 1 - labels)


def test_renaming_the_classes_changes_names_only() -> None:
    plain, renamed = tiny(), tiny(adapted=counted(0, ("x", "y")), target=domain("T", classes=("x", "y")))
    a, b = collect(plain), collect(renamed)
    np.testing.assert_array_equal(a.truth("adapted", "target"), b.truth("adapted", "target"))
    np.testing.assert_array_equal(a.correct("adapted", "target"), b.correct("adapted", "target"))


def test_a_model_with_other_classes_has_no_common_label_space() -> None:
    evidence = collect(tiny(base=counted(1, ("cat", "dog", "fox"), name="base")))
    for ask in (evidence.common_classes, evidence.truth, evidence.correct):
        with pytest.raises(NotEvaluated, match="no common label space"):
            ask("base", "target")
    assert evidence.logits("base", "target").shape == (40, 3)


def test_a_class_that_the_target_lacks_is_no_obstacle_but_one_that_the_model_lacks_is() -> None:
    subject = tiny(adapted=counted(0, ("ants", "bees", "wasps")), base=counted(1, ("ants",), name="base"))
    evidence = collect(subject)
    assert evidence.common_classes("adapted", "target") == ("ants", "bees", "wasps")
    with pytest.raises(NotEvaluated, match="no class 'bees'"):
        evidence.common_classes("base", "target")
    truth = evidence.truth("base", "target")
    assert set(truth[evidence.labels("target") == 1]) == {-1}


def test_rows_without_a_label_count_as_minus_one_and_are_never_correct() -> None:
    x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    labels = ["ants", None, "bees", "ants", None, "bees"]
    evidence = collect(tiny(target=Domain("T", x, labels=labels, classes=["ants", "bees"], kind="tensor")))
    np.testing.assert_array_equal(evidence.labels("target") == -1, [label is None for label in labels])
    assert not evidence.correct("adapted", "target")[[1, 4]].any()
    unlabelled = collect(tiny(target=Domain("T", x, kind="tensor")))
    with pytest.raises(NotEvaluated, match="labels of the target domain"):
        unlabelled.labels("target")


def test_unreadable_rows_keep_their_place_and_never_look_like_an_answer() -> None:
    target = domain("T")
    target.samples = Picky(np.asarray(target.samples.data), bad=[3, 17])
    evidence = collect(tiny(target=target))
    assert evidence.read_errors("target") == {3: "cut short", 17: "cut short"}
    usable = evidence.usable("adapted", "target")
    assert usable.sum() == 38
    assert not usable[[3, 17]].any()
    assert evidence.predictions("adapted", "target")[3] == -1
    assert np.isnan(evidence.probabilities("adapted", "target")[3]).all()
    assert evidence.content_hashes("target")[17] is None
    np.testing.assert_array_equal(evidence.usable(None, "target"), usable)


def test_more_unreadable_rows_than_the_cap_are_refused() -> None:
    target = domain("T")
    target.samples = Picky(np.asarray(target.samples.data), bad=range(20))
    with pytest.raises(DataError, match="20 of 40 samples of T cannot be read"):
        collect(tiny(target=target)).logits("adapted", "target")


def test_rows_with_non_finite_outputs_are_not_usable() -> None:
    class Divides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x) / (x[:, :1] > 0)

    subject = tiny(adapted=Model(Divides(), classes=("ants", "bees")))
    evidence = collect(subject)
    np.testing.assert_array_equal(evidence.usable("adapted", "target"), np.asarray(subject.target.samples.data)[:, 0] > 0)
    assert evidence.usable(None, "target").all()
    assert set(evidence.predictions("adapted", "target")[~evidence.usable("adapted", "target")]) == {-1}


def test_a_model_with_non_finite_weights_is_never_run() -> None:
    model = counted(0)
    with torch.no_grad():
        model.module.head.weight[0, 0] = float("nan")
    evidence = collect(tiny(adapted=model))
    assert not evidence.has("adapted", "target")
    assert "TLA112" in (evidence.why_not("adapted", "target") or "")
    with pytest.raises(NotEvaluated, match="TLA112"):
        evidence.logits("adapted", "target")
    assert model.module.calls == 0


def test_what_is_not_there_is_named_with_how_to_give_it() -> None:
    evidence = collect(tiny())
    assert not evidence.has(None, "source")
    assert not evidence.has("base", "target")
    with pytest.raises(NotEvaluated, match=r"a source domain: \[source\] in audit.toml"):
        evidence.labels("source")
    with pytest.raises(NotEvaluated, match=r"the base model: \[base\] in audit.toml"):
        evidence.logits("base", "target")
    same = collect(dataclasses.replace(tiny(), same_as_adapted=("head",)))
    assert "is the adapted model itself" in (same.why_not("control:head", "target") or "")


def test_groups_and_clusters_cannot_be_written_to() -> None:
    evidence = collect(tiny())
    with pytest.raises(ValueError, match="read-only"):
        evidence.groups("target")["site"][0] = "elsewhere"
    assert set(evidence.groups("target")["site"]) == {"north", "south"}
    with pytest.raises(ValueError, match="read-only"):
        evidence.cluster("target")[0] = "x"  # type: ignore[index]
    with pytest.raises(ValueError, match="read-only"):
        evidence.logits("adapted", "target")[0] = 0.0


def test_facts_count_inputs_that_are_not_finite_and_name_the_data() -> None:
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    x[5, 1] = np.nan
    a = collect(tiny(target=Domain("T", x, labels=["ants", "bees"] * 4, kind="tensor")))
    facts = a.facts("target")
    assert facts["nonfinite_inputs"] == [5]
    assert facts["exif_rotated"] == 0
    assert not a.usable("adapted", "target")[5]
    order = np.random.default_rng(1).permutation(8)
    shuffled = Domain("elsewhere", x[order], labels=[["ants", "bees"][i % 2] for i in order], kind="tensor")
    assert collect(tiny(target=shuffled)).facts("target")["sha256"] == facts["sha256"]


def test_batch_size_and_row_order_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = collect(tiny())
    monkeypatch.setattr("tl_audit.evidence.passes.BATCH_VALUES", 3 * 7)
    small = collect(tiny())
    np.testing.assert_allclose(small.logits("adapted", "target"), whole.logits("adapted", "target"), atol=1e-6)
    np.testing.assert_array_equal(small.content_hashes("target"), whole.content_hashes("target"))
    order = np.random.default_rng(2).permutation(40)
    base = domain("T")
    turned = Domain("T", np.asarray(base.samples.data)[order], labels=base.labels[order], classes=base.classes, kind="tensor")  # type: ignore[index]
    other = collect(tiny(target=turned))
    np.testing.assert_allclose(other.logits("adapted", "target"), whole.logits("adapted", "target")[order], atol=1e-6)


def test_a_batch_that_does_not_fit_is_halved_and_said() -> None:
    model = counted(0)
    plain = model.module.forward

    def greedy(x: torch.Tensor) -> torch.Tensor:
        if len(x) > 12:
            raise torch.OutOfMemoryError("tried to allocate 9 GiB")
        return plain(x)

    expected = collect(tiny()).logits("adapted", "target")
    model.module.forward = greedy  # type: ignore[method-assign]
    evidence = collect(tiny(adapted=model))
    np.testing.assert_allclose(evidence.logits("adapted", "target"), expected, atol=1e-6)
    assert any("halved 2 times" in text for text in evidence.caveats)


def test_a_model_that_answers_differently_each_time_is_said() -> None:
    class Restless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(nn.functional.dropout(x, training=True))

    evidence = collect(tiny(adapted=Model(Restless(), classes=("ants", "bees"))))
    evidence.prefetch()
    assert any("different outputs for the same input" in text for text in evidence.caveats)
    steady = collect(tiny())
    steady.prefetch()
    assert steady.caveats == ()


def test_a_base_that_cannot_read_the_target_is_a_missing_input_and_an_adapted_model_that_cannot_is_an_error() -> None:
    evidence = collect(tiny(base=counted(1, columns=5, name="base")))
    evidence.prefetch()
    assert not evidence.has("base", "target")
    with pytest.raises(NotEvaluated, match="outputs of the base model on the target domain"):
        evidence.logits("base", "target")
    with pytest.raises(Exception, match="forward fails"):
        collect(tiny(adapted=counted(0, columns=5))).logits("adapted", "target")


def test_one_pass_reads_a_domain_once_for_all_models() -> None:
    target = domain("T", 600)
    target.samples = samples = Picky(np.asarray(target.samples.data))
    subject = tiny(target=target, base=counted(1, name="base"), controls={"head": counted(2)})
    evidence = collect(subject)
    evidence.prefetch()
    # beside the pass itself only the first samples are read, to learn shapes
    assert np.bincount(samples.read_rows, minlength=600)[16:].tolist() == [1] * 584


def test_the_default_pairs_are_those_of_the_design() -> None:
    from tl_audit.evidence.passes import default_pairs

    assert set(default_pairs(full())) == {
        ("adapted", "target"), ("adapted", "source"), ("adapted", "train"),
        ("base", "target"), ("base", "source"), ("base", "train"), ("control:head", "target"),
    }  # fmt: skip


def test_collecting_leaves_the_models_as_they_were() -> None:
    subject = full()
    subject.adapted.module.train()
    before = {k: v.clone() for k, v in subject.adapted.module.state_dict().items()}
    collect(subject).prefetch()
    assert subject.adapted.module.training
    assert all(torch.equal(v, before[k]) for k, v in subject.adapted.module.state_dict().items())
    assert not subject.adapted.module.head._forward_pre_hooks


def test_the_attribution_sample_is_spread_over_classes_and_groups_and_does_not_depend_on_order() -> None:
    evidence = collect(tiny(target=domain("T", 200)), attribution_samples=16)
    rows = evidence.attribution_rows("target")
    assert len(rows) == 16
    strata = {(evidence.labels("target")[r], evidence.groups("target")["site"][r]) for r in rows}
    assert len(strata) == 4
    np.testing.assert_array_equal(rows, collect(tiny(target=domain("T", 200)), attribution_samples=16).attribution_rows("target"))


def test_attributions_are_computed_once_and_kept(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    subject = tiny()
    with Store(tmp_path) as store:
        first = collect(subject, store=store, attribution_samples=6, budget=32, methods=("kernel_shap",)).attributions(
            "adapted", "target", "kernel_shap"
        )
    assert first.values.shape == (6, 3)
    np.testing.assert_array_equal(
        first.targets, collect(subject).predictions("adapted", "target")[collect(subject, attribution_samples=6).attribution_rows("target")]
    )
    monkeypatch.setattr("tl_audit.attribution.explain_inputs", lambda *a, **k: pytest.fail("computed again"))
    with Store(tmp_path) as store:
        again = collect(subject, store=store, attribution_samples=6, budget=32).attributions("adapted", "target", "kernel_shap")
        np.testing.assert_array_equal(again.values, first.values)
        assert [v.tolist() for v in again.player_values] == [v.tolist() for v in first.player_values]
        assert again.params == dict(first.params)


def test_a_request_to_stop_ends_a_pass_after_its_batch() -> None:
    asked = []

    def stop() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise Interrupted(143)

    evidence = collect(full(), stop=stop)
    with pytest.raises(Interrupted):
        evidence.prefetch()
    assert len(asked) == 2
    assert calls(evidence.subject) > 0
