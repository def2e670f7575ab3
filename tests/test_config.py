"""audit.toml: every table, unknown keys, paths, declared facts; and the subject built from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tl_audit.config import AuditTable, audit_config, build_subject, gather_checks, load_audit, planned, policy_of, prepare
from tl_audit.errors import ConfigError, DataError, TLAuditError
from tl_audit.models import build, save_weights
from tl_audit.policy.limits import DeclaredKey

MINIMAL = '[adapted]\nrun = "r"\n[target]\npath = "data"\n'
WEIGHTS = '[adapted]\nweights = "w.safetensors"\narch = "tl_audit:small_cnn"\nclasses = ["cat", "dog"]\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "audit.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A tiny model and twelve pictures in class folders; the folder holds everything an audit.toml names."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "data" / name / f"{name}{i}.png")
    torch.manual_seed(0)
    save_weights(build("tl_audit:small_cnn", num_classes=2, input_size=16).module, tmp_path / "w.safetensors")
    return tmp_path


def test_everything_that_the_design_shows_is_understood(tmp_path: Path) -> None:
    config = load_audit(
        write(
            tmp_path,
            """
title = "Ants and bees, site B"
seed = 3
[adapted]
run = "runs/insects"
[base]
weights = "base.safetensors"
arch = "torchvision:resnet18"
[target]
kind = "image"
path = "data/site_b/test"
metadata = "data/site_b/test.csv"
groups = ["sex", { column = "age", bins = [45, 55] }]
cluster = "patient"
[source]
path = "data/site_a/val"
[train]
path = "data/site_b/train"
[previous]
run = "runs/insects-2025"
[[controls]]
kind = "head"
weights = "head.safetensors"
arch = "torchvision:resnet18"
[ood]
path = "data/other"
[[cues]]
name = "mark"
kind = "patch"
corner = "top-left"
size = 0.15
[attribution]
methods = ["grad_cam", "kernel_shap", "lime"]
samples = 64
[report]
samples = "redacted"
previous = "reports/last/report.json"
[policy]
use = "strict"
stage = "release"
[caps]
pixels = 1000000
bad_fraction = 0.2
[checks]
ignore = ["TLA7"]
[declared]
by = "J. Example"
on = 2026-10-01
purpose = "Sorts leaf photographs."
out_of_scope = ["species other than maize", "automatic rejection"]
metric_rationale = { value = "Recall.", by = "K. Example", on = 2026-09-14 }
[[declared.risks]]
hazard = "Missed infection"
findings = ["TLA501"]
[[declared.answers]]
check = "TLA707"
answer = "yes"
by = "M. Example"
on = 2026-10-02
""",
        )
    )
    table = config.table
    assert table.target.groups[0] == "sex"
    assert table.cues[0].settings == {"corner": "top-left", "size": 0.15}
    assert table.controls[0].kind == "head"
    assert config.declared["on"] == "2026-10-01"
    assert config.declared["out_of_scope"] == ["species other than maize", "automatic rejection"]
    assert config.declared["metric_rationale"] == {"value": "Recall.", "by": "K. Example", "on": "2026-09-14"}
    assert config.declared["answers"][0]["check"] == "TLA707"
    assert policy_of(config).active_stage == "release"
    assert "declared" not in config.plain()


def test_every_declared_key_of_the_policy_can_be_declared() -> None:
    for key in DeclaredKey.__args__:  # type: ignore[attr-defined]
        config = audit_config({"adapted": {"run": "r"}, "target": {"path": "d"}, "declared": {key: "text"}}, folder=Path())
        assert config.declared == {key: "text"}


@pytest.mark.parametrize("table", sorted(AuditTable.model_fields))
def test_a_misspelt_table_is_an_error_that_names_the_nearest(tmp_path: Path, table: str) -> None:
    wrong = table[:-1] + "z" + table[-1]
    with pytest.raises(ConfigError, match=f'unknown key "{wrong}".*did you mean "{table}"'):
        load_audit(write(tmp_path, MINIMAL + f"[{wrong}]\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'the key "target" is missing'),
        ('[target]\npath = "x"\n', r"\[adapted\] is missing"),
        ('[target]\npaht = "x"\n[adapted]\nrun = "r"\n', r'unknown key "paht" in \[target\]; did you mean "path"'),
        ('target = 3\n[adapted]\nrun = "r"\n', "target: expected a table of keys"),
        ('[adapted]\nrun = "r"\nweights = "w"\n[target]\npath = "x"', "run or weights, not both"),
        ('[adapted]\nweights = "w"\n[target]\npath = "x"', "weights need arch"),
        ('[adapted]\nrun = "r"\n[target]\nkind = "image"', "path is missing"),
        ('[adapted]\nrun = "r"\n[target]\npredictions = "p.csv"', "predictions file come later"),
        ('[adapted]\nrun = "r"\n[target]\npath = "x"\nkind = "text"', "comes later"),
        (MINIMAL + '[report]\nsamples = "yes"', "report.samples"),
        (MINIMAL + '[trust]\nsha256 = ["yes"]', "is not a SHA-256"),
        (MINIMAL + "[caps]\nbad_fraction = 3", "caps.bad_fraction"),
        (MINIMAL + '[declared]\npurpos = "x"', 'did you mean "purpose"'),
        (MINIMAL + '[declared]\npurpose = { value = "x", bye = "y" }', 'did you mean "by"'),
        (MINIMAL + '[declared]\npurpose = "' + "x" * 20_001 + '"', "at most 20000"),
        (MINIMAL + '[[declared.risks]]\nhazrad = "x"', 'did you mean "hazard"'),
        (MINIMAL + '[[cues]]\nkind = "patch"', r'"name" is missing in \[cues\[1\]\]'),
        (MINIMAL + 2 * '[[controls]]\nkind = "head"\nweights = "w"\narch = "a"\n', "names one kind twice"),
        ('[target]\npath = "x"\npath = "y"\n', "not valid TOML"),
        ("a = [", "not valid TOML"),
    ],
)
def test_mistakes_give_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_audit(write(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1200


def test_files_that_are_no_configuration_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_audit(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_audit(tmp_path)  # a folder stands for its audit.toml
    (tmp_path / "big.toml").write_text("#" * (2**20 + 1))
    with pytest.raises(ConfigError, match="at most 1048576"):
        load_audit(tmp_path / "big.toml")
    (tmp_path / "latin.toml").write_bytes(b'title = "\xe9"')
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_audit(tmp_path / "latin.toml")


def test_declared_facts_may_lie_in_a_file_beside(tmp_path: Path) -> None:
    (tmp_path / "facts.toml").write_text('owner = "A"\npurpose = "from the file"\n')
    config = load_audit(write(tmp_path, MINIMAL + '[declared]\nfile = "facts.toml"\npurpose = "in place"\n'))
    assert config.declared == {"owner": "A", "purpose": "in place"}
    (tmp_path / "facts.toml").write_text('ownr = "A"\n')
    with pytest.raises(ConfigError, match=r'facts\.toml: unknown key "ownr"; did you mean "owner"'):
        load_audit(tmp_path)


def test_overrides_go_before_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + '[policy]\nuse = "default"\n')
    config = load_audit(path, {"policy.use": "strict", "seed": 9, "checks.select": ["TLA3"]})
    assert (config.table.policy.use, config.table.seed, config.table.checks.select) == ("strict", 9, ("TLA3",))


def test_paths_are_relative_to_the_file_and_not_to_the_shell(
    pictures: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    config = load_audit(write(pictures, WEIGHTS + '[target]\npath = "data"\n'))
    subject = build_subject(config)
    assert len(subject.target) == 12
    assert subject.adapted.classes == ("cat", "dog")
    assert subject.adapted.file is not None


def test_the_order_of_classes_is_the_models_and_never_that_of_folders(pictures: Path) -> None:
    config = load_audit(write(pictures, WEIGHTS.replace('["cat", "dog"]', '["dog", "cat"]') + '[target]\npath = "data"\n'))
    subject = build_subject(config)
    assert subject.target.classes == ("dog", "cat")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[adapted]\nrun = "runs/none"\n[target]\npath = "data"\n', r"\[adapted\] run: there is no folder"),
        (WEIGHTS.replace("w.safe", "none.safe") + '[target]\npath = "data"\n', r"\[adapted\] weights: there is no file"),
        (WEIGHTS.replace('classes = ["cat", "dog"]\n', "") + '[target]\npath = "data"\n', r"\[adapted\] classes is missing"),
        (WEIGHTS.replace('"dog"]', '"dog", "cow"]') + '[target]\npath = "data"\n', "classifier|head|shape|fit"),
        (
            WEIGHTS.replace('"dog"', '"wolf"') + '[target]\npath = "data"\n',
            r"\[target\] holds classes that the adapted model does not have: dog",
        ),
        (WEIGHTS + '[target]\npath = "nowhere"\n', r"\[target\] path: there is no"),
        (WEIGHTS + '[target]\npath = "data"\nmetadata = "none.csv"\n', r"\[target\] metadata: there is no file"),
        (
            WEIGHTS + '[target]\npath = "data"\n[[cues]]\nname = "x"\nkind = "pacth"\n',
            'kind "pacth" is unknown for image data; did you mean "patch"',
        ),
        (
            WEIGHTS + '[target]\npath = "data"\n[[cues]]\nname = "x"\nkind = "patch"\ncorner = "middle"\n',
            r"\[\[cues\]\] .*corner of cue 'x'",
        ),
        (WEIGHTS + '[target]\npath = "data"\n[policy]\nframeworks = ["eu-ai-act"]\n', "frameworks stands in a policy file"),
        (WEIGHTS + '[target]\npath = "data"\n[checks]\nextra = ["no.such.module:X"]\n', r"\[checks\] extra"),
        (WEIGHTS.replace("tl_audit:small_cnn", "torchvision:resnet_18") + '[target]\npath = "data"\n', "resnet"),
    ],
)
def test_what_cannot_be_used_is_named(pictures: Path, text: str, message: str) -> None:
    with pytest.raises(TLAuditError, match=message):
        prepare(load_audit(write(pictures, text)))


def test_an_empty_folder_is_named_with_its_role(pictures: Path) -> None:
    (pictures / "empty").mkdir()
    with pytest.raises(DataError, match=r"\[source\]"):
        prepare(load_audit(write(pictures, WEIGHTS + '[target]\npath = "data"\n[source]\npath = "empty"\n')))


def test_a_dry_run_says_what_is_missing_and_measures_nothing(pictures: Path) -> None:
    job = prepare(load_audit(write(pictures, WEIGHTS + '[target]\npath = "data"\n')))
    rows, evaluations = planned(job)
    missing = {row.code: row.missing for row in rows}
    assert len(missing) == len([one for one in gather_checks(job.config) if not one.optional])
    assert missing["TLA301"] is None
    assert "source" in str(missing["TLA501"])
    assert "adapted on target: 12 evaluations" in evaluations
    assert not (pictures / ".tl_audit").exists()


def test_tables_inherit_what_the_run_knows_of_columns_that_are_there(tmp_path: Path) -> None:
    from tl_audit.config import _fitting

    path = tmp_path / "t.csv"
    path.write_text("age;sex;y\n1;f;no\n")
    options = _fitting(path, {"label": "y", "numeric": ["age", "chol"], "categorical": ["sex", "slope"], "positive": "yes"})
    assert options == {"label": "y", "numeric": ["age"], "categorical": ["sex"], "positive": "yes"}
    assert _fitting(path, {"label": "target", "positive": "yes", "label_map": {"1": "yes"}}) == {}
