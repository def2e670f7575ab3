"""TLA101 102 103 104 109 110 112 against the oracles of the catalogue."""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tl_audit.checks.base import Context
from tl_audit.checks.provenance import (
    LINEAGE,
    PROVENANCE,
    complete_load,
    file_format,
    finite_weights,
    frozen_stayed_frozen,
    identity,
    lineage,
    weight_drift,
)
from tl_audit.errors import NotEvaluated
from tl_audit.models import Model, WeightsFile, layer_groups, load_into, load_weights, save_weights, small_cnn, tensor_hash
from tl_audit.policy import Rules
from tl_audit.records.adaptation import AdaptationRecord, DataRecord, StageRecord, TensorChange
from tl_audit.subject import Subject

CONTEXT = Context(rules=Rules(), seed=0, declared={})
HISTORY = ({"epoch": 0, "val_loss": 0.9, "val_accuracy": 0.5}, {"epoch": 1, "val_loss": 0.4, "val_accuracy": 0.8})


class LayersOnly:
    """Evidence that knows the layers of the adapted model and nothing else."""

    def __init__(self, model: Model | None) -> None:
        self.model = model

    def layers(self, key: str) -> tuple[str, ...]:
        if self.model is None:
            raise NotEvaluated("the model's weights are not finite (TLA112)")
        return layer_groups(self.model, torch.zeros(1, 3, 8, 8))

    def has(self, model: str | None, domain: str) -> bool:
        return False


def network(seed: int = 0, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return small_cnn(classes, widths=(4, 6, 8)).eval()


def subject(adapted, base=None, record=None, **more) -> Subject:
    return Subject(adapted, target=SimpleNamespace(classes=("a", "b", "c"), task="classification"), base=base, record=record, **more)


def measure(check, what: Subject, *, layers: bool = True):
    return check(what, LayersOnly(what.adapted if layers else None), CONTEXT)


def value(measurement, name: str, **piece: str) -> float | None:
    return measurement.select(name, **piece).value


def full_record() -> AdaptationRecord:
    data = DataRecord(name="train", n=100, sha256="d" * 64)
    stage = StageRecord(name="head", layers=("head",), epochs=2, lr=1e-3, optimiser="adamw", history=HISTORY, best_epoch=1)
    return AdaptationRecord(
        base_id="tl_audit:small_cnn", base_revision="1", base_sha256="b" * 64, base_licence="Apache-2.0", plan_sha256="c" * 64, train=data,
        validation=data.model_copy(update={"name": "validation"}), classes=("a", "b", "c"), class_source="data", stages=(stage,), seeds={"seed": 0},
        versions={"torch": "2"}, adapted_sha256="a" * 64, device="cpu", started="2026-01-01T00:00:00Z", ended="2026-01-01T00:01:00Z",
    )  # fmt: skip


def on_disk(model: Model, path) -> Model:
    """The model as it is after its weights went through a file."""
    save_weights(model.module, path)
    tensors, file = load_weights(path)
    module = copy.deepcopy(model.module)
    return dataclasses.replace(model, module=module, file=load_into(module, tensors, file=file))


# The form ---------------------------------------------------------------------------------------------------------------------


def test_every_check_explains_itself_in_three_parts():
    assert [c.code for c in PROVENANCE] == ["TLA101", "TLA102", "TLA103", "TLA104", "TLA109", "TLA110", "TLA112"]
    for check in PROVENANCE:
        assert check.help["asks"].endswith("?")
        assert all(len(check.help[part]) > 40 for part in ("measured", "matters", "reduce"))
        assert check.section == "provenance"


@pytest.mark.parametrize("check", PROVENANCE, ids=[c.code for c in PROVENANCE])
def test_a_missing_input_is_named(check):
    bare = subject(Model(network()))
    if check.code == "TLA112":
        assert value(measure(check, bare), "nonfinite_tensors") == 0
    elif check.code in ("TLA109", "TLA110"):
        assert "adapted.file|base.file" in check.needs
    else:
        with pytest.raises(NotEvaluated, match=r"the base model|the adapted model|needs the"):
            measure(check, bare)


# TLA101 -----------------------------------------------------------------------------------------------------------------------


def without(record: AdaptationRecord, name: str) -> AdaptationRecord:
    if name == "history":
        return record.model_copy(update={"stages": tuple(s.model_copy(update={"history": ()}) for s in record.stages)})
    empty = {"stages": (), "seeds": {}, "versions": {}}
    return record.model_copy(update={name: empty.get(name)})


def test_a_full_record_has_all_fields():
    result = measure(lineage, subject(Model(network()), record=full_record()))
    assert value(result, "lineage_fields_present") == 1.0
    assert value(result, "lineage_fields_missing") == 0
    assert result.exhibits[1].to_rows()[0]["validation accuracy"] == 0.8


@pytest.mark.parametrize("name", [f.name for f in LINEAGE])
def test_each_deleted_field_is_listed_and_no_other(name):
    result = measure(lineage, subject(Model(network()), record=without(full_record(), name)))
    gone = {row["field"] for row in result.exhibits[0].to_rows() if row["how known"] == "missing"}
    assert gone == ({name} if name != "stages" else {"stages", "history"})  # the history lies in the stages
    assert value(result, "lineage_fields_missing") == len(gone)
    assert value(result, "lineage_fields_missing", kind="sha256") == (name in ("base_sha256", "adapted_sha256"))
    assert value(result, "lineage_fields_present") == pytest.approx(1 - len(gone) / 16)
    assert name in result.summary


def test_times_are_not_printed_so_that_equal_runs_give_equal_records():
    record = full_record()
    later = record.model_copy(update={"started": "2027-01-01T00:00:00Z", "ended": "2027-01-01T00:01:00Z", "seconds": 5.0})
    one, two = (measure(lineage, subject(Model(network()), record=r)) for r in (record, later))
    assert one == two


# TLA102 -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(tmp_path):
    base, adapted = (on_disk(Model(network(seed)), tmp_path / f"{seed}.safetensors") for seed in (0, 1))
    record = full_record().model_copy(
        update={
            "base_sha256": base.file.sha256, "base_tensors_sha256": tensor_hash(base.module),
            "adapted_sha256": adapted.file.sha256, "adapted_tensors_sha256": tensor_hash(adapted.module),
        }
    )  # fmt: skip
    return base, adapted, record


def test_the_recorded_models_match(recorded):
    base, adapted, record = recorded
    result = measure(identity, subject(adapted, base, record))
    assert {m.name: m.value for m in result.metrics} == {
        "base_sha256_match": 1, "base_tensor_mismatch": 0, "adapted_sha256_match": 1, "adapted_tensor_mismatch": 0,
    }  # fmt: skip
    assert result.caveats == ()


def test_one_flipped_byte_is_a_mismatch(recorded, tmp_path):
    base, _, record = recorded
    raw = bytearray((tmp_path / "1.safetensors").read_bytes())
    raw[-2] ^= 1
    (tmp_path / "flipped.safetensors").write_bytes(bytes(raw))
    tensors, file = load_weights(tmp_path / "flipped.safetensors")  # loads without any error
    module = network()
    result = measure(identity, subject(Model(module, file=load_into(module, tensors, file=file)), base, record))
    assert (value(result, "adapted_sha256_match"), value(result, "adapted_tensor_mismatch")) == (0, 1)
    assert value(result, "base_sha256_match") == 1
    assert "adapted model is not the recorded one" in result.summary


def test_equal_tensors_in_another_format_match_with_a_note(recorded, tmp_path):
    base, adapted, record = recorded
    torch.save(adapted.module.state_dict(), tmp_path / "again.pt")
    tensors, file = load_weights(tmp_path / "again.pt")
    module = network()
    result = measure(identity, subject(Model(module, file=load_into(module, tensors, file=file)), base, record))
    assert (value(result, "adapted_sha256_match"), value(result, "adapted_tensor_mismatch")) == (1, 0)
    assert "saved again" in result.caveats[0]


def test_a_half_precision_file_matches_its_recorded_tensors_though_the_network_is_single(recorded, tmp_path):
    base, _, record = recorded
    save_weights(network(1).half(), tmp_path / "half.safetensors")
    tensors, file = load_weights(tmp_path / "half.safetensors")
    record = record.model_copy(update={"adapted_sha256": "0" * 64, "adapted_tensors_sha256": tensor_hash(tensors)})
    module = network()
    result = measure(identity, subject(Model(module, file=load_into(module, tensors, file=file)), base, record))
    assert value(result, "adapted_sha256_match") == 1


def test_what_was_not_recorded_or_given_is_null_with_a_reason(recorded):
    _, adapted, record = recorded
    result = measure(identity, subject(adapted, None, record))
    assert value(result, "base_sha256_match") is None
    assert "not given" in result.select("base_sha256_match").reason
    live = measure(identity, subject(Model(adapted.module), None, record))
    assert value(live, "adapted_sha256_match") == 1
    unknown = record.model_copy(update={"adapted_sha256": None, "adapted_tensors_sha256": None})
    assert "no hash" in measure(identity, subject(adapted, None, unknown)).select("adapted_tensor_mismatch").reason


# TLA103 -----------------------------------------------------------------------------------------------------------------------


def frozen_record(module: nn.Module, **more) -> AdaptationRecord:
    names = tuple(n for n in module.state_dict() if not n.startswith("head"))
    return full_record().model_copy(update={"frozen": names, "method": "head", **more})


def test_a_head_only_run_leaves_the_backbone_bit_equal():
    base = network()
    adapted = copy.deepcopy(base)
    with torch.no_grad():
        adapted.head.weight.add_(1.0)
    result = measure(frozen_stayed_frozen, subject(Model(adapted), Model(base), frozen_record(base)))
    assert (value(result, "frozen_max_abs_change"), value(result, "frozen_tensors_changed"), value(result, "frozen_buffers_changed")) == (
        0,
        0,
        0,
    )
    assert result.exhibits == ()


@pytest.mark.parametrize("declared", ["names", "patterns"])
def test_one_forward_in_training_mode_moves_buffers_and_no_parameter(declared):
    base = network()
    adapted = copy.deepcopy(base).train()
    adapted(torch.randn(4, 3, 8, 8))
    record = frozen_record(base) if declared == "names" else frozen_record(base, frozen=("block*",))
    result = measure(frozen_stayed_frozen, subject(Model(adapted.eval()), Model(base), record))
    assert value(result, "frozen_buffers_changed") == value(result, "frozen_tensors_changed") == 6
    assert value(result, "frozen_batch_counters_changed") == 3
    assert value(result, "frozen_max_abs_change") > 0
    assert {row["kind"] for row in result.exhibits[0].to_rows()} == {"buffer"}
    assert "training mode" in result.caveats[0]


def test_a_buffer_declared_by_name_is_judged_though_its_module_trains():
    base = network()
    adapted = copy.deepcopy(base)
    with torch.no_grad():
        adapted.block1.bn.running_var.mul_(2)
    record = frozen_record(base, frozen=("block1.bn.running_var",))
    assert value(measure(frozen_stayed_frozen, subject(Model(adapted), Model(base), record)), "frozen_buffers_changed") == 1


def test_a_frozen_layer_changed_by_a_millionth_is_found():
    base = network()
    adapted = copy.deepcopy(base)
    with torch.no_grad():
        adapted.block2.conv.weight[0, 0, 0, 0] += 1e-6
    result = measure(frozen_stayed_frozen, subject(Model(adapted), Model(base), frozen_record(base)))
    assert value(result, "frozen_max_abs_change") == pytest.approx(1e-6, rel=0.1)
    assert [row["tensor"] for row in result.exhibits[0].to_rows()] == ["block2.conv.weight"]
    assert [bar.state for bar in result.exhibits[1].bars].count("changed") == 1


def test_a_value_that_became_infinite_has_no_size_and_still_counts():
    base = network()
    adapted = copy.deepcopy(base)
    with torch.no_grad():
        adapted.block1.bn.running_var[0] = float("inf")
    result = measure(frozen_stayed_frozen, subject(Model(adapted), Model(base), frozen_record(base)))
    assert value(result, "frozen_max_abs_change") is None
    assert value(result, "frozen_buffers_changed") == 1


def test_merged_adapters_are_left_out_and_buffers_are_still_judged():
    base = network()
    adapted = copy.deepcopy(base)
    with torch.no_grad():
        adapted.block3.conv.weight.add_(0.1)
        adapted.block1.bn.running_mean.add_(0.1)
    record = frozen_record(base, method="lora", plan={"lora": {"r": 2, "targets": ["conv"]}})
    result = measure(frozen_stayed_frozen, subject(Model(adapted), Model(base), record))
    assert (value(result, "frozen_tensors_changed"), value(result, "frozen_buffers_changed")) == (1, 1)
    assert "adapters were merged" in result.caveats[0]


def test_nothing_frozen_or_nothing_in_common_is_not_evaluated():
    base = network()
    with pytest.raises(NotEvaluated, match="declares nothing frozen"):
        measure(frozen_stayed_frozen, subject(Model(network()), Model(base), full_record()))
    with pytest.raises(NotEvaluated, match="Nothing that was declared frozen"):
        measure(frozen_stayed_frozen, subject(Model(network()), Model(base), frozen_record(base, frozen=("backbone.*",))))


# TLA104 -----------------------------------------------------------------------------------------------------------------------


def test_a_tenth_of_the_weights_added_is_a_drift_of_a_tenth():
    base = network()
    adapted = copy.deepcopy(base)
    with torch.no_grad():
        for p in adapted.parameters():
            p.mul_(1.1)
    result = measure(weight_drift, subject(Model(adapted), Model(base), frozen_record(base, frozen=("block1",))))
    for layer in ("block1", "block2", "block3", "head"):
        assert value(result, "relative_weight_change", layer=layer) == pytest.approx(0.1, abs=1e-6)
        assert value(result, "weight_cosine", layer=layer) == pytest.approx(1.0)
    assert value(result, "relative_weight_change") == pytest.approx(0.1, abs=1e-6)
    rows = {row.layer: row for row in result.exhibits[0].rows}
    assert [rows[layer].state for layer in ("block1", "block2", "head")] == ["frozen", "trained", "trained"]
    assert (rows["block1"].frozen_but_changed, rows["block2"].frozen_but_changed) == (True, False)
    assert sum(row.parameters for row in rows.values()) == sum(p.numel() for p in base.parameters())


def test_a_new_head_is_listed_and_drawn_as_new():
    base, adapted = network(classes=5), network()
    adapted.load_state_dict({**base.state_dict(), "head.weight": adapted.head.weight, "head.bias": adapted.head.bias})
    result = measure(weight_drift, subject(Model(adapted), Model(base), frozen_record(base)))
    assert [(m.slice["layer"], m.value) for m in result.metrics if m.name == "relative_weight_change" and m.slice] == [
        ("block1", 0.0), ("block2", 0.0), ("block3", 0.0),
    ]  # fmt: skip
    assert result.exhibits[0].rows[-1].state == "new"
    assert [bar.state for bar in result.exhibits[1].bars] == ["frozen", "frozen", "frozen", "new"]
    assert [row["tensor"] for row in result.exhibits[2].to_rows()] == ["head.bias", "head.weight"]
    assert "2 tensors are new" in result.summary


def test_without_a_record_states_are_unknown_and_without_a_run_layers_come_from_names():
    result = measure(weight_drift, subject(Model(network(1)), Model(network(0))), layers=False)
    assert {row.state for row in result.exhibits[0].rows} == {"unknown"}
    assert "grouped by name" in result.caveats[0]
    assert [row.layer for row in result.exhibits[0].rows] == ["block1", "block2", "block3", "head"]


def test_a_drift_that_cannot_be_computed_is_null_with_a_reason():
    base, adapted = network(), network(1)
    with torch.no_grad():
        adapted.head.bias[0] = float("nan")
    result = measure(weight_drift, subject(Model(adapted), Model(base)), layers=False)
    broken = result.select("relative_weight_change", layer="head")
    assert broken.value is None
    assert "not finite" in broken.reason
    with pytest.raises(NotEvaluated, match="share no parameter"):
        measure(weight_drift, subject(Model(nn.Linear(2, 2)), Model(base)), layers=False)


# TLA109 -----------------------------------------------------------------------------------------------------------------------


def counts(result) -> dict[str, float | None]:
    return {m.name.removesuffix("_tensors"): m.value for m in result.metrics}


NONE_WRONG = {"missing": 0, "unexpected": 0, "reshaped": 0, "reinitialised": 0}


def test_a_strict_load_is_complete(recorded):
    base, adapted, record = recorded
    result = measure(complete_load, subject(adapted, base, record))
    assert counts(result) == NONE_WRONG
    assert result.exhibits == ()


@pytest.mark.parametrize(("change", "kind"), [("drop", "missing"), ("rename", "unexpected"), ("reshape", "reshaped")])
def test_a_tolerant_load_is_found_by_name(tmp_path, change, kind):
    state = dict(network().state_dict())
    old = state.pop("block1.conv.weight")
    if change == "rename":
        state["block1.konv.weight"] = old
    elif change == "reshape":
        state["block1.conv.weight"] = torch.zeros(4, 3, 5, 5)
    save_weights(state, tmp_path / "m.safetensors")
    tensors, file = load_weights(tmp_path / "m.safetensors")
    module = network(1)
    file = dataclasses.replace(load_into(module, tensors, file=file, declared=("*",)), declared=())  # as if it had been loaded tolerantly
    result = measure(complete_load, subject(Model(module, file=file)))
    assert counts(result)[kind] == 1
    assert counts(result)["reinitialised"] == 1
    names = {(row["tensor"], row["difference"]) for row in result.exhibits[0].to_rows()}
    assert ("block1.conv.weight" if change != "rename" else "block1.konv.weight", kind) in names
    declared = dataclasses.replace(file, declared=(*file.missing, *file.unexpected, *file.reshaped))
    assert counts(measure(complete_load, subject(Model(module, file=declared)))) == NONE_WRONG


def test_a_head_that_stayed_random_is_found_by_its_values(recorded):
    _, adapted, _ = recorded
    with torch.no_grad():
        adapted.module.head.weight.normal_()
    result = measure(complete_load, subject(adapted))
    assert counts(result) == {**NONE_WRONG, "reinitialised": 1}
    assert result.exhibits[0].to_rows()[0]["tensor"] == "head.weight"


def test_a_file_that_changed_since_is_said(recorded, tmp_path):
    _, adapted, _ = recorded
    (tmp_path / "1.safetensors").unlink()
    result = measure(complete_load, subject(adapted))
    assert counts(result) == NONE_WRONG
    assert "were not compared" in result.caveats[0]


def test_a_base_may_lack_what_the_record_declares():
    file = WeightsFile("gone", "0" * 64, "safetensors", missing=("head.weight",))
    record = full_record().model_copy(
        update={"architecture_changes": (TensorChange(name="head.weight", change="reshaped", before=(5, 8), after=(3, 8)),)}
    )
    assert counts(measure(complete_load, subject(Model(network()), Model(network(), file=file), record))) == NONE_WRONG
    assert counts(measure(complete_load, subject(Model(network()), Model(network(), file=file))))["missing"] == 1


# TLA110 -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "by_trust", "unsafe", "trusted"),
    [("safetensors", False, 0, 0), ("pickle", False, 1, 0), ("pickle", True, 1, 1), ("torchscript", True, 1, 1), ("pt2", False, 1, 1)],
)
def test_formats_are_counted(form, by_trust, unsafe, trusted):
    file = WeightsFile("x", "0" * 64, form, trusted_by_hash=by_trust, refused_globals=("argparse.Namespace",) if by_trust else ())
    result = measure(file_format, subject(Model(network(), file=file)))
    assert (value(result, "unsafe_files"), value(result, "trusted_by_hash")) == (unsafe, trusted)
    assert ("argparse.Namespace" in str(result.exhibits[0].rows)) == by_trust


def test_the_original_file_of_the_base_is_judged():
    file = WeightsFile("base.safetensors", "0" * 64, "safetensors")
    record = full_record().model_copy(update={"base_format": "pickle"})
    result = measure(file_format, subject(Model(network(), file=file), Model(network(), file=file), record))
    assert (value(result, "unsafe_files"), result.select("unsafe_files").n) == (1, {"files": 2})
    built_in = record.model_copy(update={"base_format": "built-in"})
    assert value(measure(file_format, subject(Model(network(), file=file), Model(network()), built_in)), "unsafe_files") == 0


# TLA112 -----------------------------------------------------------------------------------------------------------------------


def test_finite_models_are_finite():
    result = measure(finite_weights, subject(Model(network()), Model(network(1))))
    assert (value(result, "nonfinite_tensors"), value(result, "nonfinite_values")) == (0, 0)
    assert result.exhibits == ()


@pytest.mark.parametrize("where", ["block1.bn.running_var", "head.weight"])
def test_one_infinite_value_is_named(where):
    adapted = network()
    with torch.no_grad():
        adapted.state_dict()[where].view(-1)[0] = float("inf")
    result = measure(finite_weights, subject(Model(adapted), controls={"head": Model(network(1))}))
    assert (value(result, "nonfinite_tensors"), value(result, "nonfinite_values")) == (1, 1)
    assert result.exhibits[0].to_rows() == [
        {"model": "adapted", "tensor": where, "values not finite": 1, "values": adapted.state_dict()[where].numel()}
    ]
    assert f"adapted: {where}" in result.summary
