"""Evidence on disk: reused when it fits, computed again when it does not, whole after a kill, never half."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evidence.tiny import Picky, calls, counted, domain, full, tiny
from tl_audit.errors import ConfigError, DataError
from tl_audit.evidence import Store, collect
from tl_audit.evidence.store import OutputTable, block_rows, block_size, key_of, write_atomically
from tl_audit.models import Model, small_cnn
from tl_audit.records.preprocessing import Preprocessing
from tl_audit.subject import Domain, Subject


def prefetched(subject: Subject, folder: Path) -> tuple[int, list[str]]:
    """Forward passes that a whole collection took, and what the store said."""
    with Store(folder) as store:
        before = calls(subject)
        evidence = collect(subject, store=store)
        evidence.prefetch()
        return calls(subject) - before, store.notes


def test_a_second_run_runs_no_model(tmp_path: Path) -> None:
    first, _ = prefetched(full(), tmp_path)
    again, _ = prefetched(full(), tmp_path)
    assert first > 0
    assert again == 0


def test_other_weights_other_settings_and_other_data_are_other_evidence(tmp_path: Path) -> None:
    prefetched(tiny(), tmp_path)
    assert prefetched(tiny(adapted=counted(9)), tmp_path)[0] > 0
    changed = tiny()
    changed.adapted.module.factor = 3.0  # a plain attribute that a forward may use, no tensor
    assert prefetched(changed, tmp_path)[0] > 0
    data = np.asarray(domain("T").samples.data).copy()
    data[7] += 1
    other = tiny(target=Domain("T", data, labels=domain("T").labels, classes=["ants", "bees"], kind="tensor"))
    assert prefetched(other, tmp_path)[0] > 0
    with Store(tmp_path) as store:
        seen = collect(other, store=store).logits("adapted", "target")
        np.testing.assert_allclose(seen, other.adapted.module(torch.tensor(data)).detach(), atol=1e-6)


def test_a_killed_pass_goes_on_where_it_stopped(tmp_path: Path) -> None:
    target = domain("T", 1000)
    expected = np.array(collect(tiny(target=target)).logits("adapted", "target"))
    subject = tiny(target=target)
    subject.adapted.module._fail_at = 8
    with Store(tmp_path) as store, pytest.raises(KeyboardInterrupt):
        collect(subject, store=store).prefetch()
    subject = tiny(target=target)
    with Store(tmp_path) as store:
        evidence = collect(subject, store=store)
        np.testing.assert_array_equal(evidence.logits("adapted", "target"), expected)
        assert evidence.usable("adapted", "target").all()
    assert 0 < sum(subject.adapted.module._rows) <= 1000 - block_size(1000)


@pytest.mark.parametrize("name", ["logits.npy", "features.npy", "layers.npy", "finite.npy", "journal", "table.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damaged_evidence_is_computed_again_and_gives_the_same(tmp_path: Path, name: str, damage: str) -> None:
    expected = np.array(collect(tiny()).logits("adapted", "target"))
    prefetched(tiny(), tmp_path)
    path = next(tmp_path.glob(f"outputs/*/{name}"))
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-3] ^= 0xFF
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.unlink()
    with Store(tmp_path) as store:
        subject = tiny()
        evidence = collect(subject, store=store)
        np.testing.assert_array_equal(evidence.logits("adapted", "target"), expected)
        assert evidence.usable("adapted", "target").all()
        if name.endswith(".npy"):
            assert calls(subject) > 0
        if name.endswith(".npy") and damage != "gone":
            assert any("damaged" in note for note in store.notes)


def test_image_files_are_not_read_again_while_size_and_time_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for kind in ("ants", "bees"):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(tmp_path / "data" / kind / f"{i}.png")
    (tmp_path / "data" / "ants" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    torch.manual_seed(0)
    model = Model(small_cnn(2, widths=(4,)), classes=("ants", "bees"), preprocessing=Preprocessing(height=12, width=12))

    def subject() -> Subject:
        return Subject(adapted=model, target=Domain("T", tmp_path / "data", caps={"bad_fraction": 0.5}))

    with Store(tmp_path / "evidence") as store:
        first = collect(subject(), store=store)
        logits, facts = np.array(first.logits("adapted", "target")), first.facts("target")
        properties, errors = first.properties("target"), first.read_errors("target")
    assert list(errors) == [3]
    reads: list[int] = []
    plain = type(subject().target.samples).read
    monkeypatch.setattr(type(subject().target.samples), "read", lambda self, rows: (reads.append(len(rows)), plain(self, rows))[1])
    with Store(tmp_path / "evidence") as store:
        again = collect(subject(), store=store)
        np.testing.assert_array_equal(again.logits("adapted", "target"), logits)
        assert again.facts("target") == facts
        assert again.read_errors("target") == errors
        for name, values in again.properties("target").items():
            np.testing.assert_array_equal(values, properties[name])
    assert reads == []
    Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(tmp_path / "data" / "ants" / "3.png")
    with Store(tmp_path / "evidence") as store:
        mended = collect(subject(), store=store)
        assert mended.usable("adapted", "target").all()
        assert mended.facts("target")["sha256"] != facts["sha256"]


def test_moved_files_are_read_but_the_model_is_not_run_again(tmp_path: Path) -> None:
    (tmp_path / "a" / "ants").mkdir(parents=True)
    for i in range(4):
        Image.fromarray(np.full((8, 8, 3), 40 * i, dtype=np.uint8)).save(tmp_path / "a" / "ants" / f"{i}.png")
    torch.manual_seed(0)
    model = Model(small_cnn(2, widths=(4,)), classes=("ants", "bees"), preprocessing=Preprocessing(height=8, width=8))
    with Store(tmp_path / "evidence") as store:
        collect(Subject(adapted=model, target=Domain("T", tmp_path / "a", classes=["ants", "bees"])), store=store).prefetch()
    (tmp_path / "a").rename(tmp_path / "b")
    with Store(tmp_path / "evidence") as store:
        evidence = collect(Subject(adapted=model, target=Domain("T", tmp_path / "b", classes=["ants", "bees"])), store=store)
        evidence.prefetch()
        assert evidence.forwards == 0


def test_a_folder_in_use_is_refused_and_a_dead_owner_is_taken_over(tmp_path: Path) -> None:
    with Store(tmp_path), pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
        Store(tmp_path)
    code = f"import os; from tl_audit.evidence import Store; s = Store({str(tmp_path)!r}); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    with Store(tmp_path) as store:
        assert any("taken over" in note for note in store.notes)
    with Store(tmp_path) as store:
        assert not any("taken over" in note for note in store.notes)


def test_a_temporary_store_goes_when_it_is_closed_and_its_arrays_stay_readable() -> None:
    store = Store()
    evidence = collect(tiny(), store=store)
    logits = evidence.logits("adapted", "target")
    evidence.close()
    assert not store.folder.exists()
    assert np.isfinite(logits).all()


def test_a_failed_write_leaves_the_old_file_and_says_what_was_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "entry.json"
    write_atomically(path, b"old")
    for broken in ("fsync", "replace"):
        with monkeypatch.context() as patch:

            def fails(*args: object) -> None:
                raise OSError(28, "No space left on device")

            patch.setattr(os, broken, fails)
            with pytest.raises(DataError, match=r"entry.json cannot be written \(No space left on device\): it needs 3 bytes"):
                write_atomically(path, b"new")
        assert path.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["entry.json"]


def test_rows_in_are_rows_out_or_the_table_is_refused(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        table = OutputTable(store, key_of("x"), 10)
        table.start({"logits": 2, "features": 3, "layers": 4, "finite": 1}, {"layers": []})
        with pytest.raises(RuntimeError, match="rows in are not rows out"):
            table.finish({})
        with pytest.raises(RuntimeError, match=r"logits has shape \(9, 2\), the block needs \(10, 2\)"):
            table.write(0, "content", {"logits": np.zeros((9, 2), dtype=np.float32)})


def test_no_object_is_ever_pickled(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        with pytest.raises(TypeError, match="arrays of objects"):
            store.write_arrays({"x": np.array([{}], dtype=object)}, "maps", "x.npz")
        np.save(tmp_path / "evil.npy", np.array([{}], dtype=object), allow_pickle=True)
        (tmp_path / "maps").mkdir(exist_ok=True)
        (tmp_path / "maps" / "y.npz").write_bytes((tmp_path / "evil.npy").read_bytes())
        assert store.read_arrays("maps", "y.npz") is None


@pytest.mark.parametrize("rows", [0, 1, 255, 256, 257, 1000, 100_000, 1_000_000])
def test_blocks_cover_every_row_once(rows: int) -> None:
    from tl_audit.evidence.store import block_count

    got = np.concatenate([block_rows(b, rows) for b in range(block_count(rows))]) if rows else np.zeros(0)
    np.testing.assert_array_equal(got, np.arange(rows))


def test_memory_grows_with_the_batch_and_not_with_the_data(tmp_path: Path) -> None:
    rows, columns, hidden = 100_000, 8, 64
    x = np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)

    class Rows(Picky):
        def read(self, rows: np.ndarray):  # type: ignore[no-untyped-def]
            batch = super().read(rows)
            self.read_rows.clear()
            return batch

    target = domain("T", 4, columns=columns)
    target.samples = Rows(x)
    target.labels, target.groups, target.cluster = None, {}, None
    evidence_bytes = rows * 4 * (2 + hidden + hidden + 2)
    with Store(tmp_path) as store:
        evidence = collect(tiny(adapted=counted(0, columns=columns, hidden=hidden), target=target), store=store)
        tracemalloc.start()
        evidence.prefetch([("adapted", "target")])
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        features = evidence.features("adapted", "target")
        assert features.shape == (rows, hidden)
        assert isinstance(features, np.memmap)
        assert evidence.usable("adapted", "target").all()
        assert peak < 0.6 * evidence_bytes, peak
        outputs = sum(p.stat().st_size for p in tmp_path.glob("outputs/*/*.npy"))
        assert outputs > evidence_bytes


def test_the_kth_failing_write_never_leaves_evidence_that_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = np.array(collect(tiny()).logits("adapted", "target"))
    plain = os.fsync
    for k in range(1, 200):
        folder = tmp_path / str(k)
        left = [k]

        def fails(handle: int, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise OSError(28, "No space left on device")
            plain(handle)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fails)
            try:
                with Store(folder) as store:
                    collect(tiny(), store=store).prefetch()
                succeeded = True
            except DataError:
                succeeded = False
        with Store(folder) as store:
            evidence = collect(tiny(), store=store)
            np.testing.assert_array_equal(evidence.logits("adapted", "target"), expected)
            assert evidence.usable("adapted", "target").all()
        if succeeded and left[0] > 0:
            break
    assert 5 < k < 199


def test_a_process_that_was_killed_outright_loses_no_finished_block(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from tests.evidence.tiny import domain, tiny
from tl_audit.evidence import Store, collect
subject = tiny(target=domain("T", 1000))
plain, seen = subject.adapted.module.forward, []
def forward(x):
    seen.append(1)
    if len(seen) == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(x)
subject.adapted.module.forward = forward
collect(subject, store=Store(Path({str(tmp_path)!r}))).prefetch()
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=root, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr[-500:]
    target = domain("T", 1000)
    subject = tiny(target=target)
    with Store(tmp_path) as store:
        evidence = collect(subject, store=store)
        np.testing.assert_array_equal(evidence.logits("adapted", "target"), collect(tiny(target=target)).logits("adapted", "target"))
        assert any("taken over" in note for note in store.notes)
    assert 0 < sum(subject.adapted.module._rows) <= 1000 - block_size(1000)
