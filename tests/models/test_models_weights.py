"""Weight files: what is refused, in which words, and that what is loaded is complete (HARDENING.md T1-T7, F13-F15)."""

from __future__ import annotations

import argparse
import collections
import json
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tl_audit.errors import WeightsError
from tl_audit.models import file_sha256, load_into, load_model, load_weights, save_weights, sniff, tensor_hash
from tl_audit.models import weights as weights_module


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.safetensors"
    save_file({"head.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.tensor([1.0, -1.0])}, path)
    return path


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def safetensors_bytes(header: object, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


# Sniffing ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"\x01\x02\x03", "3 bytes, too few"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML or XML page"),
        (b"\n  <html><head></head></html>", "HTML or XML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
        (b"\x1f\x8b\x08\x00" + b"\0" * 50, "gzip-compressed"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 50, "HDF5"),
        (b"GGUF" + b"\0" * 50, "GGUF"),
        (b"\x93NUMPY\x01\x00" + b"\0" * 50, "NumPy"),
        (b"\x7fELF" + b"\0" * 50, "native code"),
        (b"just some text, nothing more", "no weight format that is known"),
        (b"PK\x03\x04" + b"\0" * 100, "cut off"),
    ],
)
def test_each_wrong_file_gets_one_precise_sentence(tmp_path, content, sentence):
    path = write(tmp_path / "model.pt", content)
    with pytest.raises(WeightsError, match=sentence) as caught:
        load_weights(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [0x0280, 0x0480, 0x8B1F])
def test_a_header_length_that_spells_another_format_misleads_nobody(tmp_path, length):
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path = write(tmp_path / "m.safetensors", safetensors_bytes(header.ljust(length), b"\0" * 4))
    assert load_weights(path)[0]["a"].tolist() == [0.0]


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(WeightsError, match="does not exist"):
        sniff(tmp_path / "no.safetensors")
    with pytest.raises(WeightsError, match="is a folder"):
        sniff(tmp_path)


def test_the_format_is_found_by_content_and_not_by_suffix(tmp_path, good):
    renamed = tmp_path / "weights.pt"
    renamed.write_bytes(good.read_bytes())
    assert sniff(renamed) == "safetensors"
    torch.save({"a": torch.zeros(2)}, tmp_path / "weights.safetensors")
    assert sniff(tmp_path / "weights.safetensors") == "pickle"


def test_every_prefix_of_a_good_safetensors_file_is_refused(tmp_path, good):
    whole = good.read_bytes()
    for cut in sorted({0, 1, 7, 8, 9, 10, len(whole) - 1, *np.linspace(0, len(whole) - 1, 20).astype(int).tolist()}):
        with pytest.raises(WeightsError):
            load_weights(write(tmp_path / "cut.safetensors", whole[:cut]))
    assert load_weights(good)[0]["head.bias"].tolist() == [1.0, -1.0]


def test_every_prefix_of_a_torch_file_is_refused(tmp_path):
    torch.save({"a": torch.arange(30.0)}, tmp_path / "good.pt")
    torch.save({"a": torch.arange(30.0)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("good.pt", "old.pt"):
        whole = (tmp_path / name).read_bytes()
        for cut in np.linspace(0, len(whole) - 1, 20).astype(int).tolist():
            with pytest.raises(WeightsError) as caught:
                load_weights(write(tmp_path / "cut.pt", whole[:cut]))
            assert "weights_only" not in str(caught.value)


# safetensors headers ----------------------------------------------------------------------------------------------------------

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data", "sentence"),
    [
        ({"a": ENTRY}, b"\0" * 4, "need 8 bytes and the file holds 4"),
        ({"a": ENTRY}, b"\0" * 12, "need 8 bytes and the file holds 12"),
        ({"a": {**ENTRY, "shape": [10**12]}}, b"\0" * 8, "declares shape"),
        ({"a": {**ENTRY, "shape": [-2]}}, b"\0" * 8, "no counts"),
        ({"a": {**ENTRY, "shape": [True, 2]}}, b"\0" * 8, "no counts"),
        ({"a": {**ENTRY, "data_offsets": [8, 0]}}, b"\0" * 8, "declares shape"),
        ({"a": {**ENTRY, "data_offsets": [0]}}, b"\0" * 8, "no counts"),
        ({"a": {**ENTRY, "dtype": "X99"}}, b"\0" * 8, "dtype 'X99'"),
        ({"a": {"dtype": "F32"}}, b"\0" * 8, "lacks dtype"),
        ({"a": ENTRY, "b": ENTRY}, b"\0" * 8, "starts at byte 0, expected 8"),
        ({"a": {**ENTRY, "data_offsets": [4, 12]}}, b"\0" * 12, "starts at byte 4"),
        ({"__metadata__": {"x": 1}, "a": ENTRY}, b"\0" * 8, "metadata are not text"),
        (b'{"a": {"dtype"', b"", "not valid JSON"),
        (b'{"a": 1, "a": 2}', b"", "not valid JSON"),
        (b"{" + b'"a":{' * 50_000, b"", "not valid JSON"),
    ],
)
def test_a_lying_header_is_refused(tmp_path, header, data, sentence):
    with pytest.raises(WeightsError, match=sentence):
        load_weights(write(tmp_path / "lie.safetensors", safetensors_bytes(header, data)))


def test_a_header_that_claims_a_terabyte_costs_no_memory(tmp_path):
    path = write(
        tmp_path / "lie.safetensors", safetensors_bytes({"a": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}, b"\0" * 900)
    )
    tracemalloc.start()
    with pytest.raises(WeightsError, match="need 1099511627776 bytes"):
        load_weights(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_random_bytes_in_the_header_never_load_as_something_else(tmp_path, good, rng):
    whole = bytearray(good.read_bytes())
    length = struct.unpack("<Q", whole[:8])[0]
    truth = load_weights(good)[0]
    for _ in range(100):
        broken = bytearray(whole)
        broken[int(rng.integers(0, 8 + length))] = int(rng.integers(0, 256))
        try:
            loaded = load_weights(write(tmp_path / "fuzz.safetensors", bytes(broken)))[0]
        except WeightsError:
            continue
        assert sorted(t.numel() for t in loaded.values()) == sorted(t.numel() for t in truth.values())  # at most a name or a dtype changed


def test_tensors_beyond_the_cap_are_refused_before_they_are_read(good):
    with pytest.raises(WeightsError, match="the cap is 10"):
        load_weights(good, cap=10)


def test_tensors_beyond_the_free_memory_are_refused(good, monkeypatch):
    monkeypatch.setattr(weights_module, "free_memory", lambda: 10)
    with pytest.raises(WeightsError, match="10 are free"):
        load_weights(good)


# Pickles ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
def test_a_payload_does_not_run_and_the_refusal_tells_what_to_do(tmp_path, form):
    marker, path = tmp_path / "marker", tmp_path / "model.pt"
    if form == "bare":
        path.write_bytes(pickle.dumps(Payload(marker)))
    else:
        torch.save({"a": torch.zeros(2), "b": Payload(marker)}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(WeightsError) as caught:
        load_weights(path)
    text = str(caught.value)
    assert not marker.exists()
    for part in (str(path), file_sha256(path), "posix.system", "save_file"):
        assert part in text
    assert "weights_only" not in text


def test_pickles_are_refused_below_torch_2_10_and_safetensors_are_not(tmp_path, good, monkeypatch):
    torch.save({"a": torch.zeros(2)}, tmp_path / "model.pt")
    monkeypatch.setattr(weights_module, "torch_version", lambda: (2, 9))
    with pytest.raises(WeightsError, match=r"below torch 2\.10"):
        load_weights(tmp_path / "model.pt")
    assert load_weights(good)[1].format == "safetensors"


@pytest.mark.parametrize("legacy", [False, True])
def test_plain_torch_files_load(tmp_path, legacy):
    state = collections.OrderedDict(a=torch.arange(3.0), b=torch.tensor([1, 2]))
    torch.save(state, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    tensors, file = load_weights(tmp_path / "m.pt")
    assert file.format == "pickle"
    assert not file.trusted_by_hash
    assert torch.equal(tensors["a"], state["a"])
    assert torch.equal(tensors["b"], state["b"])


def test_trust_names_one_file_by_its_hash_and_is_recorded(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"state_dict": {"a": torch.ones(2)}, "args": argparse.Namespace(lr=0.1)}, path)
    with pytest.raises(WeightsError, match=r"argparse\.Namespace"):
        load_weights(path, trust=["0" * 64])
    tensors, file = load_weights(path, trust=[file_sha256(path)])
    assert tensors["a"].tolist() == [1.0, 1.0]
    assert file.trusted_by_hash
    assert file.refused_globals == ("argparse.Namespace",)
    assert "state_dict" in file.notes[0]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_torchscript_and_exported_programs_are_refused(tmp_path):
    script, exported = tmp_path / "script.pt", tmp_path / "program.pt2"
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), script)
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), exported)
    assert (sniff(script), sniff(exported)) == ("torchscript", "pt2")
    with pytest.raises(WeightsError, match="TorchScript archive, which is executable code"):
        load_weights(script)
    with pytest.raises(WeightsError, match=r"torch.export archive"):
        load_weights(exported, trust=[file_sha256(exported)])
    assert load_weights(script, trust=[file_sha256(script)])[1].trusted_by_hash


def rewritten(source: Path, target: Path, compression: int, extra: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
        for name, content in (extra or {}).items():
            new.writestr(name, content)
    return target


def test_compressed_records_are_refused(tmp_path):
    torch.save({"a": torch.zeros(5_000_000)}, tmp_path / "m.pt")
    bomb = rewritten(tmp_path / "m.pt", tmp_path / "bomb.pt", zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 100_000
    with pytest.raises(WeightsError, match="compressed record"):
        load_weights(bomb)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_doubled_records_and_native_code_are_refused(tmp_path):
    torch.save({"a": torch.zeros(5)}, tmp_path / "m.pt")
    with pytest.raises(WeightsError, match="two records of one name"):
        load_weights(rewritten(tmp_path / "m.pt", tmp_path / "d.pt", zipfile.ZIP_STORED, {"m/version": b"3"}))
    with pytest.raises(WeightsError, match="AOTInductor"):
        load_weights(rewritten(tmp_path / "m.pt", tmp_path / "n.pt", zipfile.ZIP_STORED, {"m/data/aotinductor/model/x.so": b""}))
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    with pytest.raises(WeightsError, match="npz archive"):
        load_weights(tmp_path / "arrays.npz")


def test_an_expanded_tensor_is_refused_before_it_is_copied(tmp_path):
    torch.save({"a": torch.zeros(1).expand(10**9)}, tmp_path / "m.pt")
    with pytest.raises(WeightsError, match="tensors claim 4000000000"):
        load_weights(tmp_path / "m.pt")


@pytest.mark.parametrize("content", [{"a": 1}, {}, [1, 2], torch.zeros(3), {"a": torch.zeros(2), "b": "text"}])
def test_a_file_without_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(WeightsError, match=r"state_dict"):
        load_weights(tmp_path / "m.pt")


def test_weights_that_are_not_finite_load(tmp_path):
    save_file({"a": torch.tensor([1.0, float("nan"), float("inf")])}, tmp_path / "m.safetensors")
    assert torch.isnan(load_weights(tmp_path / "m.safetensors")[0]["a"][1])


# Into a module ----------------------------------------------------------------------------------------------------------------


def small() -> nn.Module:
    return nn.Sequential(collections.OrderedDict(body=nn.Linear(3, 4), norm=nn.BatchNorm1d(4), head=nn.Linear(4, 2)))


def saved(module: nn.Module, path: Path, *, drop: tuple[str, ...] = (), put: dict[str, torch.Tensor] | None = None):
    state = {k: v for k, v in module.state_dict().items() if k not in drop}
    save_weights({**state, **(put or {})}, path)
    return load_weights(path)


def test_a_complete_file_loads_bit_equal(tmp_path):
    source, target = small(), small()
    tensors, file = saved(source, tmp_path / "m.safetensors")
    result = load_into(target, tensors, file=file)
    assert tensor_hash(source) == tensor_hash(target)
    assert (result.missing, result.unexpected, result.reshaped, result.declared, result.notes) == ((), (), (), (), ())


def test_each_dropped_renamed_or_reshaped_tensor_is_named_with_its_shape(tmp_path):
    source = small()
    for name, value in source.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        shape = str(tuple(value.shape)).replace("(", r"\(").replace(")", r"\)")
        tensors, file = saved(source, tmp_path / "m.safetensors", drop=(name,))
        with pytest.raises(WeightsError, match=rf"1 tensors differ: missing {name} {shape}"):
            load_into(small(), tensors, file=file)
        tensors, file = saved(source, tmp_path / "m.safetensors", drop=(name,), put={"other.name": value})
        with pytest.raises(WeightsError, match=rf"2 tensors differ: missing {name} {shape}; unexpected other.name {shape}"):
            load_into(small(), tensors, file=file)
        tensors, file = saved(source, tmp_path / "m.safetensors", put={name: torch.zeros(7)})
        with pytest.raises(WeightsError, match=rf"{name} has shape \(7,\) float32 in the file, shape {shape}"):
            load_into(small(), tensors, file=file)


def test_a_refused_file_leaves_the_module_as_it_was(tmp_path):
    target = small()
    before = tensor_hash(target)
    tensors, file = saved(small(), tmp_path / "m.safetensors", drop=("head.bias",))
    with pytest.raises(WeightsError, match=r"head\.bias"):
        load_into(target, tensors, file=file)
    assert tensor_hash(target) == before


def test_a_declared_new_head_keeps_its_own_start(tmp_path):
    target = small()
    start = target.head.weight.detach().clone()
    tensors, file = saved(small(), tmp_path / "m.safetensors", drop=("head.bias",), put={"head.weight": torch.zeros(9, 4)})
    result = load_into(target, tensors, file=file, declared=("head",))
    assert torch.equal(target.head.weight, start)
    assert result.missing == ("head.bias",)
    assert result.reshaped == ("head.weight",)
    assert set(result.reinitialised) == set(result.declared) == {"head.weight", "head.bias"}


def test_half_precision_loads_into_single_and_says_so(tmp_path):
    tensors, file = saved(small().half(), tmp_path / "m.safetensors")
    target = small()
    result = load_into(target, tensors, file=file)
    assert target.body.weight.dtype == torch.float32
    assert torch.equal(target.body.weight, tensors["body.weight"].float())
    assert "float16 to float32" in result.notes[0]


def test_a_parallel_wrapper_prefix_and_missing_counters_are_noted(tmp_path):
    source = small()
    state = {f"module.{k}": v for k, v in source.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_weights(state, tmp_path / "m.safetensors")
    tensors, file = load_weights(tmp_path / "m.safetensors")
    target = small()
    result = load_into(target, tensors, file=file)
    assert tensor_hash(source) == tensor_hash(target)
    assert any("'module.'" in note for note in result.notes)
    assert any("num_batches_tracked" in note for note in result.notes)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.head.weight = self.embed.weight


def test_tied_tensors_are_saved_under_both_names_and_may_be_in_the_file_once(tmp_path):
    source, target = Tied(), Tied()
    tensors, file = saved(source, tmp_path / "m.safetensors")
    assert set(tensors) == {"embed.weight", "head.weight"}
    tensors, file = saved(source, tmp_path / "m.safetensors", drop=("head.weight",))
    assert "tied" in load_into(target, tensors, file=file).notes[0]
    assert torch.equal(target.head.weight, source.embed.weight)


# Saving -----------------------------------------------------------------------------------------------------------------------


def test_saving_handles_views_and_zero_dimensions(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"t": base.T, "slice": base[1:], "scalar": torch.tensor(3), "empty": torch.zeros(0, 2)}
    file = save_weights(tensors, tmp_path / "m.safetensors", metadata={"made": "here"})
    back, again = load_weights(tmp_path / "m.safetensors")
    assert again.sha256 == file.sha256
    assert tensor_hash(back) == tensor_hash(tensors)


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, good, monkeypatch):
    before = good.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(WeightsError, match="No space left on device"):
        save_weights({"a": torch.zeros(3)}, good)
    assert good.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [good.name]


def test_a_full_disk_is_seen_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(weights_module.shutil, "disk_usage", lambda _: argparse.Namespace(free=10))
    with pytest.raises(WeightsError, match="10 are free"):
        save_weights({"a": torch.zeros(3)}, tmp_path / "m.safetensors")


def test_nothing_and_non_tensors_are_not_saved(tmp_path):
    with pytest.raises(WeightsError, match="no tensors to save"):
        save_weights({}, tmp_path / "m.safetensors")
    with pytest.raises(WeightsError, match="only tensors are saved"):
        save_weights({"a": 1}, tmp_path / "m.safetensors")


@pytest.mark.real_data
def test_a_real_pretrained_backbone_loads_strictly_with_its_class_names(shared_data):
    model = load_model(shared_data / "squeezenet1_1" / "squeezenet1_1_tv_fp16.pth", arch="torchvision:squeezenet1_1")
    assert len(model.classes) == 1000
    assert (model.classes[310], model.classes[309]) == ("ant", "bee")
    assert model.file.format == "pickle"
    assert "float16 to float32" in model.facts["weights_notes"][0]
    assert (model.file.missing, model.file.unexpected, model.file.reshaped) == ((), (), ())
