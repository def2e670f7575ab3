"""TLA106: adapters that were merged once, twice or never are told apart; what moved beside them is found; files are read without running code."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import tl_audit as ta
from tl_audit.errors import DataError
from tl_audit.models.adapters import LoraModule, read_adapter

CLASSES = ("no", "yes")
RANK = 4


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second, self.head = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(torch.relu(self.second(torch.relu(self.norm(self.first(x))))))
        return out


def base() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def factors(seed: int = 1) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"first": (16, 6), "second": (16, 16)}
    return {
        name: (0.1 * torch.randn(RANK, wide, generator=generator), 0.1 * torch.randn(high, RANK, generator=generator))
        for name, (high, wide) in shapes.items()
    }


def written(
    folder: Path, pairs: dict[str, tuple[torch.Tensor, torch.Tensor]], saved: dict[str, torch.Tensor] | None = None, **config: Any
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, (a, b) in pairs.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.contiguous()
    for name, value in (saved or {}).items():
        tensors[f"base_model.model.{name}"] = value.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 8, **config}))
    return folder


def merged_net(times: int, scale: float = 2.0, dtype: torch.dtype = torch.float32) -> Net:
    net = base().to(dtype)
    with torch.no_grad():
        for name, (a, b) in factors().items():
            weight = net.get_submodule(name).weight
            for _ in range(times):
                weight.add_((scale * (b @ a)).to(dtype))
    return net


def target(n: int = 60) -> ta.Domain:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 6)).astype(np.float32)
    return ta.Domain("target", x, labels=[CLASSES[int(v > 0)] for v in x[:, 0]], classes=CLASSES, kind="tensor")


def audited(adapted: nn.Module, adapter: Any, original: nn.Module | None = None) -> Any:
    subject = ta.Subject(
        adapted=ta.Model(adapted, classes=CLASSES), base=ta.Model(original or base(), classes=CLASSES), target=target(), adapter=adapter
    )
    return ta.audit(subject, select=["TLA106"])["TLA106"]


def factor(finding: Any, module: str, precision: str = "32-bit") -> Any:
    return finding.measurement.select("merge_factor", module=module, precision=precision)


@pytest.mark.parametrize(("times", "status"), [(0, "fail"), (1, "pass"), (2, "fail")])
def test_how_often_adapters_were_merged_is_told(tmp_path, times, status):
    found = audited(merged_net(times), written(tmp_path / "adapter", factors()))
    assert found.status == status, found.reason
    for module in ("first", "second"):
        assert factor(found, module).value == pytest.approx(times, abs=1e-5)
        assert found.measurement.select("merge_residual", module=module, precision="32-bit").value < 1e-5


def test_the_merged_base_is_recovered_bit_by_bit(tmp_path):
    found = audited(merged_net(1), written(tmp_path / "adapter", factors()))
    assert found.measurement.select("adapter_off_max_logit_diff").value == 0.0
    assert "Without the adapters the model is the base." in found.measurement.summary


def test_adapters_declared_as_not_merged_must_not_be_in_the_weights(tmp_path):
    folder = written(tmp_path / "adapter", factors())
    assert audited(merged_net(0), read_adapter(folder, merged=False)).status == "pass"
    assert audited(merged_net(1), read_adapter(folder, merged=False)).status == "fail"


def test_batch_norm_statistics_that_moved_beside_the_adapters_are_found(tmp_path):
    net = merged_net(1)
    net.train()
    net(torch.randn(64, 6))
    net.eval()
    found = audited(net, written(tmp_path / "adapter", factors()))
    assert found.status == "fail"
    assert factor(found, "first").value == pytest.approx(1, abs=1e-5)
    assert found.measurement.select("adapter_off_max_logit_diff").value > 1e-3


def test_sixteen_bits_round_the_factor_and_have_a_wider_limit(tmp_path):
    original = base().to(torch.bfloat16)
    found = audited(merged_net(1, dtype=torch.bfloat16), written(tmp_path / "adapter", factors()), original)
    value = factor(found, "second", "16-bit").value
    assert value == pytest.approx(1, abs=0.1)
    assert value != 1
    assert not [limit for limit in found.limits if limit.metric == "merge_factor_error" and limit.outcome == "broken"], found.reason


def test_a_head_stored_with_the_adapters_must_be_the_models(tmp_path):
    net = merged_net(1)
    with torch.no_grad():
        net.head.weight.add_(0.5)
    mine = {"head.weight": net.head.weight.detach().clone(), "head.bias": net.head.bias.detach().clone()}
    found = audited(net, written(tmp_path / "a", factors(), mine))
    assert found.status == "pass", found.reason
    other = {"head.weight": torch.zeros(2, 16), "head.bias": mine["head.bias"]}
    found = audited(net, written(tmp_path / "b", factors(), other))
    assert found.status == "fail"
    assert found.measurement.select("adapter_saved_mismatch").value == 1


def test_a_zero_adapter_warns_and_one_for_a_module_that_is_not_there_fails(tmp_path):
    pairs = factors()
    net = base()
    with torch.no_grad():
        a, b = pairs["first"]
        net.first.weight.add_(2 * b @ a)
    pairs["second"] = (pairs["second"][0], torch.zeros(16, RANK))
    found = audited(net, written(tmp_path / "zero", pairs))
    assert found.status == "warn", found.reason
    assert found.measurement.select("adapter_zero_modules").value == 1
    assert factor(found, "second").value is None
    found = audited(merged_net(1), written(tmp_path / "absent", {**factors(), "third": (torch.ones(RANK, 3), torch.ones(3, RANK))}))
    assert found.status == "fail"
    assert found.measurement.select("adapter_modules_missing").value == 1


def test_rank_stabilised_and_per_module_alphas_scale_as_their_writer_does(tmp_path):
    stable = read_adapter(written(tmp_path / "rs", factors(), use_rslora=True))
    assert stable.modules["first"].scale == pytest.approx(8 / RANK**0.5)
    own = read_adapter(written(tmp_path / "own", factors(), alpha_pattern={"second": 20}))
    assert own.modules["second"].scale == 5
    assert own.modules["first"].scale == 2


def test_convolutions_and_transposed_weights_have_their_products_in_shape():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 2, 3, 3, generator=generator), torch.randn(5, 3, 1, 1, generator=generator)
    delta = LoraModule(a.double().reshape(3, -1), b.double().reshape(5, 3), 0.5).delta((5, 2, 3, 3))
    expected = 0.5 * torch.einsum("or,rihw->oihw", b.double()[:, :, 0, 0], a.double())
    assert torch.allclose(delta, expected)
    x = torch.randn(1, 2, 8, 8, generator=generator).double()
    through = nn.functional.conv2d(nn.functional.conv2d(x, a.double()), b.double()) * 0.5
    assert torch.allclose(nn.functional.conv2d(x, delta), through)
    a2, b2 = torch.randn(2, 4).double(), torch.randn(3, 2).double()
    assert torch.allclose(LoraModule(a2, b2, 1.0, transposed=True).delta((4, 3)), (b2 @ a2).T)


def test_rank_use_is_one_for_equal_singular_values_and_a_share_for_one_direction():
    identity = torch.eye(4, dtype=torch.float64)
    assert LoraModule(identity, identity, 1.0).rank_use() == pytest.approx(1)
    one = torch.zeros(4, 4, dtype=torch.float64)
    one[0, 0] = 1
    assert LoraModule(one, identity, 1.0).rank_use() == pytest.approx(0.25)
    a, b = torch.randn(4, 30).double(), torch.randn(50, 4).double()
    values = torch.linalg.svdvals(b @ a)[:4]
    share = values / values.sum()
    assert LoraModule(a, b, 3.0).rank_use() == pytest.approx(float(torch.exp(-(share * share.log()).sum())) / 4)


def test_without_adapters_the_check_says_what_is_missing():
    subject = ta.Subject(adapted=ta.Model(merged_net(1), classes=CLASSES), base=ta.Model(base(), classes=CLASSES), target=target())
    finding = ta.audit(subject, select=["TLA106"])["TLA106"]
    assert finding.status == "not_evaluated"
    assert any("adapter" in missing for missing in finding.missing)


def test_models_are_left_as_they_were(tmp_path):
    net = merged_net(1)
    before = copy.deepcopy(net.state_dict())
    audited(net, written(tmp_path / "adapter", factors()))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), "adapter_config.json is missing"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "not readable as JSON"),
        (lambda f: (f / "adapter_config.json").write_text('{"peft_type": "IA3"}'), "adapters of type IA3 are not read"),
        (lambda f: (f / "adapter_config.json").write_text('{"use_dora": true}'), "DoRA are not read"),
        (lambda f: (f / "adapter_config.json").write_text('{"alpha_pattern": {"(a+)+$": 3}}'), "is a pattern"),
        (lambda f: (f / "adapter_config.json").write_text('{"lora_alpha": "big"}'), "expected a number"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is missing"),
        (lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"), "a pickled file is never opened"),
        (lambda f: torch.save({"a": torch.ones(1)}, f / "adapter_model.safetensors"), "is not a safetensors file"),
        (lambda f: save_file({"first.lora_A.weight": torch.ones(2, 6)}, f / "adapter_model.safetensors"), "not its other half"),
        (lambda f: save_file({"first.weight": torch.ones(2, 6)}, f / "adapter_model.safetensors"), "holds no lora_A"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_used_gets_one_sentence(tmp_path, spoil, sentence):
    folder = written(tmp_path / "adapter", factors())
    spoil(folder)
    with pytest.raises(DataError, match=sentence):
        read_adapter(folder)
