"""Ranking of bases: the one that knows the task comes first, equal ones share, and no combined score exists."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tl_audit as ta
from tl_audit.cli import main
from tl_audit.errors import ConfigError, DataError, ModelError, WeightsError
from tl_audit.measures.transferability import deletions
from tl_audit.ranking import MEASURES, Ranking, _placings, _resampled, rank_bases

CLASSES = ("ant", "bee", "cat")


def task(n: int, seed: int, *, turned: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Points of 12 columns whose class is a bent function of three of them; ``turned``: of three others."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 12)).astype(np.float32)
    a, b, c = x[:, 6:9].T if turned else x[:, :3].T
    return x, np.argmax(np.stack([a * b, b * c, a * c]), axis=0)


class Net(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 10), nn.ReLU())
            self.head = nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.body(x))
        return out


def trained(x: np.ndarray, y: np.ndarray, seed: int = 0) -> Net:
    net = Net(seed)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(120):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(inputs), targets).backward()
        optimiser.step()
    return net


@pytest.fixture(scope="module")
def bases() -> dict[str, nn.Module]:
    return {"same task": trained(*task(800, 1)), "wrong task": trained(*task(800, 1, turned=True)), "random": Net(5)}


def domain(n: int = 240, *, seed: int = 2, **given: object) -> ta.Domain:
    x, y = task(n, seed)
    return ta.Domain("points", x, labels=[CLASSES[i] for i in y], **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def ranking(bases: dict[str, nn.Module]) -> Ranking:
    return rank_bases(bases, domain())


# -- what comes first ---------------------------------------------------------------------------------------------------


def test_the_base_that_knows_the_task_comes_first_by_every_measure(ranking: Ranking) -> None:
    assert ranking.measures == MEASURES
    for measure in MEASURES:
        placed = ranking.placing("same task", measure)
        assert (placed.rank, placed.rank_low, placed.rank_high) == (1, 1, 1), measure
        assert placed.first_share > 0.99
        assert [p.rank for p in ranking.by(measure)] == [1, 2, 3]
        assert sum(p.first_share for p in ranking.by(measure)) == pytest.approx(1)
    assert ranking.summary.startswith("All 3 measures put same task first")


def test_equal_bases_share_the_first_rank(bases: dict[str, nn.Module]) -> None:
    found = rank_bases([bases["same task"], bases["same task"], bases["random"]], domain())

    assert found.bases == ("Net", "Net (2)", "Net (3)")
    for measure in MEASURES:
        for name in ("Net", "Net (2)"):
            placed = found.placing(name, measure)
            assert (placed.rank, placed.rank_low, placed.rank_high) == (1, 1, 2)
            assert placed.first_share == pytest.approx(0.5, abs=0.01)
    assert "first or tied" in found.summary


def test_without_a_difference_first_shares_are_spread_evenly() -> None:
    shares = {measure: [] for measure in MEASURES}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        y = np.arange(90) % 3
        pair = [deletions(rng.normal(size=(90, 4)) + 0.7 * np.eye(4)[y], y, np.arange(90), classes=3) for _ in range(2)]
        for measure in MEASURES:
            values = np.array([one[measure][0] for one in pair])
            left = np.stack([one[measure][1] for one in pair], axis=1)
            moved = _resampled((values - left)[None], y, np.arange(90), 400, seed)
            shares[measure].append(_placings(("a", "b"), measure, values, moved[0])[0].first_share)
    for measure, found in shares.items():
        # uniform between 0 and 1: 10 % lie outside 0.05 to 0.95, and the standard deviation is 0.29
        assert np.mean([not 0.05 <= share <= 0.95 for share in found]) < 0.3, measure
        assert 0.15 < np.std(found) < 0.4, measure
        assert abs(np.mean(found) - 0.5) < 0.15, measure


def test_resamples_move_a_mean_as_much_as_the_bootstrap_says() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    y = np.arange(60) % 2
    left = np.array([np.delete(x, i).mean() for i in range(60)])
    moved = _resampled((x.mean() - left)[None, :, None], y, np.arange(60), 20_000, 0)[0, :, 0]
    inside = [x[y == c] for c in (0, 1)]
    expected = np.sqrt(sum(30 / 60**2 * part.var(ddof=1) for part in inside))

    assert moved.mean() == pytest.approx(0, abs=0.005)
    assert moved.std() == pytest.approx(expected, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(("d", "widest"), [(20, 1.4), (200, 1.9)])
def test_resamples_spread_a_difference_of_bases_as_fresh_samples_do(d: int, widest: float) -> None:
    """Never too narrow by more than a fifth; too wide where columns outnumber samples, which calls an order open rather than settled."""
    differences, spreads = [], []
    y = np.arange(120) % 3
    for seed in range(40):
        rng = np.random.default_rng([seed, d])
        pair = [deletions(rng.normal(size=(120, d)) + k * np.eye(d)[y], y, np.arange(120), classes=3) for k in (1.0, 1.3)]
        added = np.stack([np.stack([one[m][0] - one[m][1] for one in pair], axis=1) for m in MEASURES])
        moved = _resampled(added, y, np.arange(120), 300, seed)
        differences.append([pair[1][m][0] - pair[0][m][0] for m in MEASURES])
        spreads.append((moved[:, :, 1] - moved[:, :, 0]).std(axis=1))
    ratio = np.mean(spreads, axis=0) / np.std(differences, axis=0, ddof=1)

    assert (ratio > 0.8).all(), ratio
    assert (ratio < widest).all(), ratio


def test_clusters_are_resampled_whole(bases: dict[str, nn.Module]) -> None:
    x, y = task(40, 3)
    rows = np.repeat(np.arange(40), 6)
    labels = [CLASSES[i] for i in y[rows]]
    noise = np.random.default_rng(0).normal(size=(240, 12)).astype(np.float32) * 0.01
    pair = {"wrong task": bases["wrong task"], "random": bases["random"]}

    def spread(cluster: object) -> tuple[float, Ranking]:
        found = rank_bases(pair, ta.Domain("rows", x[rows] + noise, labels=labels, cluster=cluster))  # type: ignore[arg-type]
        return min(p.first_share for m in MEASURES for p in found.by(m)), found

    torn, _ = spread(None)
    whole, found = spread([f"patient {r}" for r in rows])
    assert found.clusters == 40
    assert "40 clusters" in found.caption
    assert whole >= torn


# -- reproducible, and cheap a second time ---------------------------------------------------------------------------------


def test_order_of_bases_and_rows_changes_nothing(bases: dict[str, nn.Module], ranking: Ranking) -> None:
    backwards = rank_bases(dict(reversed(bases.items())), domain())
    for one in ranking.placings:
        assert backwards.placing(one.base, one.measure) == one
    assert rank_bases(bases, domain()).to_json() == ranking.to_json()

    x, y = task(240, 2)
    order = np.random.default_rng(0).permutation(240)
    moved = rank_bases(bases, ta.Domain("points", x[order], labels=[CLASSES[i] for i in y[order]]))
    for one in ranking.placings:
        assert moved.placing(one.base, one.measure).value == pytest.approx(one.value, abs=1e-5)


def test_a_second_call_runs_no_model(
    bases: dict[str, nn.Module], ranking: Ranking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tl_audit.evidence import passes

    first = rank_bases(bases, domain(), evidence_dir=tmp_path)
    monkeypatch.setattr(passes, "forward_with_features", lambda *given: pytest.fail("a model was run again"))
    assert rank_bases(bases, domain(), evidence_dir=tmp_path).to_json() == first.to_json() == ranking.to_json()


def test_bases_are_given_back_untouched(bases: dict[str, nn.Module]) -> None:
    net = bases["random"]
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    rank_bases(bases, domain(60))
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    net.eval()


# -- shown and written ------------------------------------------------------------------------------------------------------


def test_a_ranking_is_frozen_and_shows_itself(ranking: Ranking, tmp_path: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ranking.seed = 1  # type: ignore[misc]
    text = repr(ranking)
    for word in ("LogME", "H_alpha", "GBC", "same task", "ranks 1 ", "n = 240 samples"):
        assert word in text
    html = ranking._repr_html_()
    assert "<script" not in html
    assert html.count("data:image/svg+xml") == 3
    assert ranking.to_frame().shape == (9, 8)
    kept = json.loads(ranking.save(tmp_path / "ranking.json").read_text())
    assert kept == json.loads(ranking.to_json())
    assert {row["measure"] for row in kept["placings"]} == set(MEASURES)
    assert not any("score" in key or "combined" in key for key in kept)
    assert ranking.save(tmp_path / "ranking.csv").read_text().count("\n") == 10
    with pytest.raises(ConfigError, match=r"\.json and \.csv"):
        ranking.save(tmp_path / "ranking.xlsx")


def test_measures_that_disagree_are_said_to() -> None:
    from tl_audit.ranking import Placing

    placings = [
        Placing(base, measure, 0.0, rank, 1, 2, 0.6 if rank == 1 else 0.4)
        for measure, order in (("logme", "ab"), ("h_alpha", "ab"), ("gbc", "ba"))
        for rank, base in enumerate(order, 1)
    ]
    text = Ranking(("a", "b"), tuple(placings), (3, 3), "x", 50, ("u", "v"), None, 2000, 0).summary

    assert text.startswith("The measures disagree: LogME puts a first, H_alpha puts a first, GBC puts b first.")
    assert "do not settle which comes first" in text


# -- what cannot be ranked --------------------------------------------------------------------------------------------------


def test_fewer_than_two_bases_are_refused(bases: dict[str, nn.Module]) -> None:
    for given in ([bases["random"]], {}, "tl_audit:mlp", bases["random"]):
        with pytest.raises(ConfigError, match="at least two bases"):
            rank_bases(given, domain(30))  # type: ignore[arg-type]


def test_data_without_classes_to_tell_apart_are_refused(bases: dict[str, nn.Module]) -> None:
    x, y = task(40, 2)
    with pytest.raises(DataError, match="no class labels"):
        rank_bases(bases, ta.Domain("points", x))
    with pytest.raises(DataError, match="of one class"):
        rank_bases(bases, ta.Domain("points", x, labels=["ant"] * 40))
    labels = [CLASSES[i] for i in y]
    labels[0] = "dog"
    with pytest.raises(DataError, match="class 'dog' has 1 usable sample: ranking needs at least 2"):
        rank_bases(bases, ta.Domain("points", x, labels=labels))


def test_a_base_that_cannot_be_opened_or_run_is_named(bases: dict[str, nn.Module], tmp_path: Path) -> None:
    data = domain(40)
    broken = tmp_path / "weights.safetensors"
    broken.write_bytes(b"no weights at all")
    random = bases["random"]
    for given, error, words in (
        ("torchvision:resnet1", ConfigError, r"base torchvision:resnet1: .*resnet1"),
        (f"torchvision:resnet18={broken}", WeightsError, r"base torchvision:resnet18=weights\.safetensors: .*weights\.safetensors"),
        ("resnet18.pt", ConfigError, r"names no architecture"),
        ("torchvision:resnet18=", ConfigError, r'nothing follows the "="'),
        ({"base": "torchvision:resnet18", "size": 3}, ConfigError, r"no key 'size'"),
        (nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2)), ModelError, r"base Sequential: .*forward fails"),
    ):
        with pytest.raises(error, match=words):
            rank_bases([random, given], data)
    with pytest.raises(ConfigError, match="offline"):
        rank_bases([random, "torchvision:resnet18=default"], data, offline=True)


def test_other_mistakes_are_named(bases: dict[str, nn.Module]) -> None:
    with pytest.raises(ConfigError, match="at least 100"):
        rank_bases(bases, domain(40), resamples=10)
    with pytest.raises(ConfigError, match="reader options belong to the Domain"):
        rank_bases(bases, domain(40), label="y")
    flat = Net(0)
    nn.init.zeros_(flat.body[2].weight)
    with pytest.raises(DataError, match="base flat: the features are the same for all samples"):
        rank_bases({"flat": flat, "random": bases["random"]}, domain(40))


def test_rows_without_a_label_or_finite_features_are_left_out_for_all(bases: dict[str, nn.Module]) -> None:
    x, y = task(100, 2)
    labels = [None if i < 5 else CLASSES[c] for i, c in enumerate(y)]
    x[10] = np.nan
    found = rank_bases(bases, ta.Domain("points", x, labels=labels))

    assert found.n == 94
    assert any("5 samples without a label" in note for note in found.notes)
    assert any("1 samples could not be read, or" in note for note in found.notes)


def test_bases_fed_in_different_ways_are_said_to_be() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, size=(24, 16, 16, 3)).astype(np.uint8)
    data = ta.Domain("pictures", pictures, labels=[CLASSES[i % 3] for i in range(24)], kind="image")
    small = {"base": "tl_audit:small_cnn", "input_size": 8}
    found = rank_bases({"small": small, "own size": "tl_audit:small_cnn"}, data, resamples=100)

    assert any("fed in different ways (small: 8 × 8; own size: 16 × 16)" in note for note in found.notes)
    assert any("starts at random" in note for note in found.notes)


# -- command line -----------------------------------------------------------------------------------------------------------


def test_the_command_prints_ranks_and_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pandas as pd

    x, y = task(120, 4)
    frame = pd.DataFrame(x, columns=[f"c{i}" for i in range(12)]).assign(kind=[CLASSES[i] for i in y], patient=np.arange(120) // 2)
    frame.to_csv(tmp_path / "points.csv", index=False)
    argv = ["rank", "tl_audit:mlp", "tl_audit:mlp", "--data", str(tmp_path / "points.csv"), "--label", "kind", "--cluster", "patient"]

    assert main([*argv, "--out", str(tmp_path / "r.json"), "--evidence", str(tmp_path / "kept"), "--resamples", "200"]) == 0
    said = capsys.readouterr().out
    assert "LogME (log evidence" in said
    assert "tl_audit:mlp (2)" in said
    assert "60 clusters" in said
    assert json.loads((tmp_path / "r.json").read_text())["resamples"] == 200
    assert main(["rank", "tl_audit:mlp", "--data", str(tmp_path / "points.csv"), "--label", "kind"]) == 2
    assert "at least two bases" in capsys.readouterr().err
    assert main(["rank", "tl_audit:mlp", "tl_audit:nothing", "--data", str(tmp_path / "points.csv"), "--label", "kind"]) == 2
    assert "base tl_audit:nothing" in capsys.readouterr().err
    assert main(["rank", "tl_audit:mlp", "tl_audit:mlp", "--data", str(tmp_path / "absent.csv")]) == 2


@pytest.mark.real_data
def test_a_pretrained_base_comes_before_its_random_start_on_ants_and_bees(shared_data: Path) -> None:
    arch = "torchvision:squeezenet1_1"
    weights = shared_data / "squeezenet1_1" / "squeezenet1_1_tv_fp16.pth"
    data = ta.Domain("ants and bees", shared_data / "hymenoptera" / "val")
    data = data.subset(np.arange(0, len(data), 4))
    found = rank_bases({"pretrained": (arch, weights), "random": arch}, data)

    for measure in MEASURES:
        assert found.placing("pretrained", measure).rank == 1, measure
    assert found.placing("pretrained", "logme").first_share > 0.99
