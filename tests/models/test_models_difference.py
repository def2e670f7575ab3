"""Fingerprints and differences of weights, against plain loops and by hand."""

from __future__ import annotations

import copy
import hashlib
import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tl_audit.errors import WeightsError
from tl_audit.models import compare_frozen, file_sha256, frozen_buffers, load_weights, nonfinite, small_cnn, tensor_hash, weight_differences


@pytest.fixture
def net():
    torch.manual_seed(0)
    return small_cnn(3, widths=(4, 6))


def test_the_file_hash_is_that_of_its_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" * 10**6)
    assert file_sha256(tmp_path / "x") == hashlib.sha256(b"abc" * 10**6).hexdigest()
    with pytest.raises(WeightsError, match="cannot be read"):
        file_sha256(tmp_path / "no")


def test_the_tensor_hash_knows_tensors_and_not_files(tmp_path, net):
    state = net.state_dict()
    torch.save(state, tmp_path / "m.pt")
    save_file(dict(state), tmp_path / "m.safetensors")
    hashes = {tensor_hash(load_weights(tmp_path / name)[0]) for name in ("m.pt", "m.safetensors")}
    assert hashes == {tensor_hash(net)} == {tensor_hash(dict(reversed(state.items())))}


def test_the_tensor_hash_tells_apart_name_dtype_shape_and_one_bit():
    a = torch.tensor([1.0, 2.0])
    bit = torch.tensor([1.0, math.nextafter(2.0, 3.0)], dtype=torch.float64)
    variants = [
        {"a": a}, {"b": a}, {"a": a.double()}, {"a": a.reshape(1, 2)}, {"a": bit}, {"a": a, "b": a}, {"a": a.half()}, {"a": a.bfloat16()},
        {"a": torch.zeros(0)}, {"a": torch.zeros(0, 2)}, {"a": torch.tensor(1.0)}, {"a": torch.tensor([0.0])}, {"a": torch.tensor([-0.0])},
    ]  # fmt: skip
    assert len({tensor_hash(v) for v in variants}) == len(variants)
    assert tensor_hash({"a": torch.arange(6.0).reshape(2, 3).T}) == tensor_hash({"a": torch.arange(6.0).reshape(2, 3).T.contiguous()})


def test_nonfinite_values_are_counted_by_tensor(net):
    assert nonfinite(net) == {}
    with torch.no_grad():
        net.block1.bn.running_var[1] = float("inf")
        net.head.bias[:2] = float("nan")
    assert nonfinite({"w": torch.tensor([1.0, float("nan")]).to(torch.float8_e5m2)}) == {"w": 1}
    assert nonfinite(net) == {"block1.bn.running_var": 1, "head.bias": 2}


def test_a_tenth_of_the_weights_is_a_change_of_a_tenth(net):
    moved = copy.deepcopy(net)
    with torch.no_grad():
        for p in moved.parameters():
            p.mul_(1.1)
    result = weight_differences(net, moved, groups=("block1", "block2", "head"))
    assert [b.layer for b in result.blocks] == ["block1", "block2", "head"]
    for block in (*result.blocks, result.whole):
        assert block.relative_change == pytest.approx(0.1, abs=1e-6)
        assert block.cosine == pytest.approx(1.0, abs=1e-9)
    assert result.tensors == ()


def test_a_block_is_pooled_over_its_tensors(net):
    moved = copy.deepcopy(net)
    torch.manual_seed(1)
    with torch.no_grad():
        moved.block1.conv.weight.add_(torch.randn_like(moved.block1.conv.weight))
        moved.block1.bn.bias[0] += 1
    before = [*net.block1.conv.weight.double().flatten().tolist(), *net.block1.bn.weight.tolist(), *net.block1.bn.bias.tolist()]
    after = [*moved.block1.conv.weight.double().flatten().tolist(), *moved.block1.bn.weight.tolist(), *moved.block1.bn.bias.tolist()]
    gap = math.sqrt(sum((b - a) ** 2 for a, b in zip(before, after, strict=True)) / sum(a * a for a in before))
    cosine = sum(a * b for a, b in zip(before, after, strict=True)) / math.sqrt(sum(a * a for a in before) * sum(b * b for b in after))
    block, still = weight_differences(net, moved, groups=("block1", "block2", "head")).blocks[:2]
    assert block.relative_change == pytest.approx(gap, rel=1e-9)
    assert block.cosine == pytest.approx(cosine, rel=1e-9)
    assert block.changed_share == pytest.approx(sum(a != b for a, b in zip(before, after, strict=True)) / len(before))
    assert (still.relative_change, still.cosine, still.changed_share) == (0.0, pytest.approx(1.0), 0.0)


def test_new_removed_and_reshaped_tensors_are_listed_and_not_compared(net):
    other = copy.deepcopy(net)
    other.head = nn.Linear(6, 5)
    other.extra = nn.Linear(2, 2, bias=False)
    del other.block1.bn.bias
    result = weight_differences(net, other)
    assert [(t.name, t.change, t.before, t.after) for t in result.tensors] == [
        ("block1.bn.bias", "removed", (4,), None),
        ("extra.weight", "added", None, (2, 2)),
        ("head.bias", "reshaped", (3,), (5,)),
        ("head.weight", "reshaped", (3, 6), (5, 6)),
    ]
    assert result.whole.relative_change == 0.0


def test_undefined_changes_have_a_reason():
    zero, one, broken = ({"a.w": torch.full((2,), v)} for v in (0.0, 1.0, float("nan")))
    assert weight_differences(zero, one).whole.relative_change is None
    assert "all 0" in weight_differences(zero, one).whole.reason
    assert weight_differences(zero, zero).whole.relative_change == 0.0
    assert "not finite" in weight_differences(one, broken).whole.reason
    assert "adapted weights are all 0" in weight_differences(one, zero).whole.reason
    assert "no tensor" in weight_differences(one, {"b.w": torch.ones(2)}).whole.reason


def test_frozen_tensors_that_did_not_move_are_equal_and_one_forward_in_training_moves_buffers_only(net):
    moved = copy.deepcopy(net)
    names = [*(n for n, _ in net.named_parameters() if not n.startswith("head")), *frozen_buffers(net, ("block1", "block2"))]
    assert compare_frozen(net, moved, names).changed == ()
    moved.train()(torch.randn(4, 3, 8, 8))
    result = compare_frozen(net, moved, names)
    assert {t.name for t in result.changed} == {f"block{i}.bn.{b}" for i in (1, 2) for b in ("running_mean", "running_var")}
    assert all(t.is_buffer for t in result.changed)
    assert result.counters == ("block1.bn.num_batches_tracked", "block2.bn.num_batches_tracked")
    expected = max((moved.get_buffer(t.name) - net.get_buffer(t.name)).abs().max().item() for t in result.changed)
    assert result.max_abs_change == pytest.approx(expected, rel=1e-6)


def test_the_smallest_change_counts_and_signs_of_zero_do():
    a = {"w": torch.tensor([0.0, 1.0]), "n": torch.tensor([float("nan")])}
    b = {"w": torch.tensor([-0.0, 1.0 + 2**-23]), "n": torch.tensor([float("nan")])}
    result = compare_frozen(a, b, ["w", "n", "absent"])
    assert [(t.name, t.values_changed) for t in result.changed] == [("w", 2)]
    assert result.max_abs_change == 2**-23
    assert result.absent == ("absent",)
    assert compare_frozen(a, {"n": torch.tensor([1.0])}, ["n"]).max_abs_change == math.inf


def test_the_base_is_cast_to_the_adapted_dtype_before_comparing():
    w = torch.tensor([0.1, 0.2])
    result = compare_frozen({"w": w}, {"w": w.half()}, ["w"])
    assert (result.changed, result.cast) == ((), ("w",))


def test_buffers_belong_to_frozen_modules_only(net):
    assert set(frozen_buffers(net, ("block1.*",))) == {f"block1.bn.{b}" for b in ("running_mean", "running_var", "num_batches_tracked")}
    assert frozen_buffers(net, ("block1.bn.weight",)) == ()
    plain = nn.Sequential(nn.BatchNorm1d(3, affine=False), nn.Linear(3, 2))
    assert "0.running_mean" in frozen_buffers(plain, ("0",))
    assert frozen_buffers(plain, ("1",)) == ()
