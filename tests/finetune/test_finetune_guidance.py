"""Teachers, alignment with unlabelled data, and importance weights: closed forms, effects on planted data, and what the record says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tl_audit as ta
from tests.finetune.conftest import plan_for, quick
from tl_audit.errors import ConfigError, DataError
from tl_audit.finetune.guidance import coral_distance, distillation_loss, mmd_distance, tapped
from tl_audit.finetune.loss import CrossEntropy, NumberLoss
from tl_audit.measures.importance import class_weights, domain_weights, effective_share, label_shift_weights
from tl_audit.models import tensor_hash

CLASSES = ("no", "yes")


def rows(n: int, seed: int, *, moved: float = 0.0, share: float | None = None) -> tuple[np.ndarray, list[str]]:
    """Four columns; the label reads two of them. ``moved``: mean of the first; ``share``: of "yes"."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4 * n, 4)).astype(np.float32)
    x[:, 0] += moved
    y = (x[:, 0] + x[:, 1] + 0.3 * rng.normal(size=4 * n) > moved).astype(int)
    if share is not None:
        yes = round(share * n)
        keep = np.r_[np.flatnonzero(y == 1)[:yes], np.flatnonzero(y == 0)[: n - yes]]
    else:
        keep = np.arange(n)
    keep = rng.permutation(keep)
    return x[keep], [CLASSES[k] for k in y[keep]]


def table(name: str, *given: object, **more: object) -> ta.Domain:
    x, y = rows(*given, **more)  # type: ignore[arg-type]
    return ta.Domain(name, x, labels=y, classes=CLASSES, kind="tensor")


def base(seed: int = 0, width: int = 8) -> ta.Model:
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Tanh(), torch.nn.Linear(width, 2))
    return ta.Model(net, head="2", name="base")


def plan(*stages: ta.Stage, **more: object) -> ta.Plan:
    return ta.Plan(base=base(), task=ta.Classification(CLASSES), stages=list(stages) or [ta.Stage("*", epochs=6, lr=0.02)], **more)


def logits(model: ta.Model, x: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model.module(torch.as_tensor(x))
    return out


# closed forms -----------------------------------------------------------------------------------------------------------------


def test_distillation_is_the_divergence_of_softened_answers_times_the_square_of_the_temperature():
    student = torch.tensor([[1.0, 0.0], [0.5, 2.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, 1.0], [3.0, 0.0]], dtype=torch.float64)
    p, q = torch.softmax(teacher / 3, 1), torch.softmax(student / 3, 1)
    by_hand = 9 * (p * (p / q).log()).sum(1).mean()
    assert float(distillation_loss(student, teacher, 3.0)) == pytest.approx(float(by_hand), rel=1e-5)
    assert float(distillation_loss(teacher, teacher, 3.0)) == pytest.approx(0, abs=1e-7)
    assert float(distillation_loss(student, teacher + 7, 3.0)) == pytest.approx(float(by_hand), rel=1e-5), "logits have no origin"


def test_coral_compares_covariances_and_nothing_else():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    y = 2 * x
    expected = (np.cov(x.numpy().T) - np.cov(y.numpy().T)) ** 2
    assert float(coral_distance(x, y)) == pytest.approx(float(expected.sum()) / 36, rel=1e-4)
    assert float(coral_distance(x, x + 5)) == pytest.approx(0, abs=1e-8)


def test_the_mmd_term_is_zero_for_equal_rows_and_grows_with_a_shift():
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    assert float(mmd_distance(x, x)) == pytest.approx(0, abs=1e-6)
    near, far = float(mmd_distance(x, x + 0.3)), float(mmd_distance(x, x + 1.5))
    assert 0 < near < far


def test_weighted_losses_are_the_unweighted_ones_of_repeated_rows():
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(4, 3, generator=generator), torch.tensor([0, 2, 1, 2])
    counts = torch.tensor([1.0, 3.0, 0.0, 4.0])
    repeated = counts.long().repeat_interleave(counts.long()) * 0 + torch.arange(4).repeat_interleave(counts.long())
    weights = counts / counts.mean()
    assert float(CrossEntropy().loss(scores, labels, weights)) == pytest.approx(float(F.cross_entropy(scores[repeated], labels[repeated])))
    assert float(CrossEntropy().loss(scores, labels, torch.ones(4))) == pytest.approx(float(CrossEntropy().loss(scores, labels)))
    numbers, wanted = torch.randn(4, 1, generator=generator), torch.randn(4, generator=generator)
    again = NumberLoss("mae").loss(numbers[repeated], wanted[repeated])
    assert float(NumberLoss("mae").loss(numbers, wanted, weights)) == pytest.approx(float(again))


def test_effective_share_and_class_weights_have_their_hand_values():
    assert effective_share([2, 2, 2]) == 1
    assert effective_share([3, 1]) == pytest.approx(16 / 20)
    found = class_weights([0, 0, 0, 1], [0.5, 0.5])
    assert found.values == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2])
    assert found.values.mean() == pytest.approx(1)
    assert found.effective_share == pytest.approx(4 / (3 * 4 / 9 + 4))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: class_weights([0, 0], [0.5, 0.5]), "has no training row"),
        (lambda: class_weights([0, 1], [0.5, 0.6]), "shares that sum to 1"),
        (lambda: effective_share([0, 0]), "not all 0"),
        (lambda: domain_weights(np.ones((1, 2)), np.ones((5, 2))), "at least two rows"),
        (lambda: domain_weights(np.ones((9, 2)), np.ones((9, 2))), "constant"),
    ],
)
def test_weights_that_cannot_be_had_are_refused_in_a_sentence(call, sentence):
    with pytest.raises(DataError, match=sentence):
        call()


def test_no_weight_is_above_the_cap_and_the_mean_stays_one():
    found = class_weights([0] * 99 + [1], [0.5, 0.5], cap=5)
    assert found.values.max() == pytest.approx(5)
    assert found.values.mean() == pytest.approx(1)
    assert found.capped == 1


# weights on planted data ------------------------------------------------------------------------------------------------------


def test_equal_domains_get_weights_near_one_and_a_shift_gets_its_density_ratio():
    rng = np.random.default_rng(0)
    x, same, moved = rng.normal(size=(1500, 2)), rng.normal(size=(1500, 2)), rng.normal([1.0, 0.0], size=(1500, 2))
    quiet = domain_weights(x, same)
    assert quiet.effective_share > 0.97
    assert quiet.detail["domain_auc"] == pytest.approx(0.5, abs=0.04)
    found = domain_weights(x, moved)
    truth = np.exp(x[:, 0] - 0.5)
    assert np.corrcoef(np.log(found.values), np.log(truth))[0, 1] > 0.99
    assert np.mean(found.values * x[:, 0]) == pytest.approx(1.0, abs=0.15), "the weighted mean is the target's"
    assert found.effective_share < 0.7


def test_label_weights_find_the_class_mix_of_unlabelled_data():
    x, y = rows(1200, 1, share=0.5)
    other, truth = rows(1200, 2, share=0.8)
    codes = np.array([CLASSES.index(k) for k in y])
    found = label_shift_weights(x, codes, other, classes=2)
    assert found.detail["share_1"] == pytest.approx(np.mean(np.array(truth) == "yes"), abs=0.05)
    assert found.values[codes == 1].mean() == pytest.approx(1.6, abs=0.12)


# inside adapt -----------------------------------------------------------------------------------------------------------------


def test_a_student_of_another_teacher_learns_to_answer_as_it_does():
    domain = table("train", 400, 0)
    x, _ = rows(300, 9)
    teacher = quick(plan(ta.Stage("*", epochs=25, lr=0.03)), domain).model
    taught = ta.adapt(plan(), domain, teacher=ta.Teacher(teacher, weight=0.9), progress="none")
    alone = ta.adapt(plan(), domain, progress="none")
    wanted = torch.softmax(logits(teacher, x), 1)
    gap = [float((torch.softmax(logits(m.model, x), 1) - wanted).abs().mean()) for m in (taught, alone)]
    assert gap[0] < gap[1]
    assert taught.record.teacher["tensors_sha256"] == tensor_hash(teacher.module)
    assert taught.record.teacher["weight"] == 0.9
    assert taught.record.stages[0].history[0]["distillation_loss"] > taught.record.stages[0].history[-1]["distillation_loss"]
    assert alone.record.teacher == {}


def test_a_teacher_with_its_classes_in_another_order_teaches_by_name():
    domain = table("train", 300, 0)
    teacher = quick(plan(ta.Stage("*", epochs=10, lr=0.03)), domain).model
    turned = torch.nn.Sequential(*list(teacher.module.children()))
    last = torch.nn.Linear(8, 2)
    last.load_state_dict({k: v.flip(0) for k, v in teacher.module[2].state_dict().items()})
    turned[2] = last
    swapped = ta.Model(turned, classes=("yes", "no"))
    one = ta.adapt(plan(), domain, teacher=ta.Model(teacher.module, classes=CLASSES), progress="none")
    other = ta.adapt(plan(), domain, teacher=swapped, progress="none")
    assert tensor_hash(one.model.module) == tensor_hash(other.model.module)


def test_controls_are_trained_without_the_teacher_and_with_the_weights():
    domain = table("train", 200, 0)
    plain = ta.adapt(plan(), domain, controls=("scratch",), progress="none")
    taught = ta.adapt(plan(), domain, teacher=base(3), controls=("scratch",), progress="none")
    assert tensor_hash(taught.controls["scratch"].module) == tensor_hash(plain.controls["scratch"].module)
    assert tensor_hash(taught.model.module) != tensor_hash(plain.model.module)
    weighted = ta.adapt(
        plan(importance=ta.Importance(kind="label", class_mix={"no": 0.1, "yes": 0.9})), domain, controls=("scratch",), progress="none"
    )
    assert tensor_hash(weighted.controls["scratch"].module) != tensor_hash(plain.controls["scratch"].module)


@pytest.mark.parametrize("kind", ["coral", "mmd"])
def test_alignment_brings_the_features_of_the_domains_together(kind):
    train, target = table("train", 300, 0), table("target", 300, 1, moved=2.0)
    stage = ta.Stage("*", epochs=12, lr=0.02)
    aligned = ta.adapt(plan(stage, alignment=ta.Alignment(kind=kind, weight=20.0)), train, unlabelled=target, progress="none")
    plain = ta.adapt(plan(stage), train, progress="none")
    distance = {"coral": coral_distance, "mmd": mmd_distance}[kind]

    def gap(model: ta.Model) -> float:
        parts = []
        for seed, moved in ((0, 0.0), (1, 2.0)):
            with tapped(model.module, ("2",)) as tap:
                tap.expect(300)
                logits(model, rows(300, seed, moved=moved)[0])
                parts.append(tap.taken(300))
        return float(distance(*parts))

    assert gap(aligned.model) < 0.5 * gap(plain.model)
    assert aligned.record.setting == "transductive"
    assert aligned.record.unlabelled is not None
    assert aligned.record.unlabelled.n == 300
    assert any("used without their labels" in note for note in aligned.record.notes)
    assert "alignment_distance" in aligned.record.stages[0].history[0]


def test_labels_of_the_unlabelled_data_are_not_looked_at():
    train, target = table("train", 200, 0), table("target", 200, 1, moved=1.0)
    x, y = rows(200, 1, moved=1.0)
    turned = ta.Domain("target", x, labels=[CLASSES[1 - CLASSES.index(k)] for k in y], classes=CLASSES, kind="tensor")
    asked = plan(alignment=ta.Alignment())
    one, other = (ta.adapt(asked, train, unlabelled=d, progress="none") for d in (target, turned))
    assert tensor_hash(one.model.module) == tensor_hash(other.model.module)


def test_a_head_only_stage_has_nothing_to_align():
    train, target = table("train", 100, 0), table("target", 100, 1)
    asked = plan(ta.Stage("head", epochs=1, lr=0.01), alignment=ta.Alignment())
    made = ta.adapt(asked, train, unlabelled=target, progress="none")
    assert "alignment_distance" not in made.record.stages[0].history[0]


def test_importance_weights_are_recorded_with_what_they_leave():
    train, target = table("train", 400, 0), table("target", 400, 1, moved=1.0)
    made = ta.adapt(plan(importance=ta.Importance()), train, unlabelled=target, progress="none")
    assert 0 < made.record.importance["effective_sample_share"] < 1
    assert made.record.importance["domain_auc"] > 0.6
    assert any("unweighted ones" in note for note in made.record.notes)


def test_a_second_run_with_the_same_teacher_is_reused_and_another_teacher_is_not(tmp_path: Path):
    domain = table("train", 120, 0)
    first = ta.adapt(plan(), domain, teacher=base(3), out=tmp_path / "run", progress="none")
    again = ta.adapt(plan(), domain, teacher=base(3), out=tmp_path / "run", progress="none")
    other = ta.adapt(plan(), domain, teacher=base(4), out=tmp_path / "run", progress="none")
    assert (first.reused, again.reused, other.reused) == (False, True, False)


def test_a_plan_file_names_a_run_as_teacher_and_data_without_labels(tmp_path: Path):
    for name, seed, moved in (("train", 0, 0.0), ("site", 1, 1.0)):
        x, y = rows(150, seed, moved=moved)
        head = "a,b,c,d" + (",label" if name == "train" else "")
        lines = [",".join(f"{v:.5f}" for v in row) + (f",{label}" if name == "train" else "") for row, label in zip(x, y, strict=True)]
        (tmp_path / f"{name}.csv").write_text("\n".join([head, *lines]) + "\n")
    text = (
        'base = "tl_audit:mlp"\nkind = "tabular"\n[data]\ntrain = "train.csv"\nlabel = "label"\nnumeric = ["a", "b", "c", "d"]\n{more}'
        '[[stages]]\nlayers = "*"\nepochs = 2\nlr = 0.01\n'
    )  # fmt: skip
    (tmp_path / "first.toml").write_text(text.format(more=""))
    ta.adapt(tmp_path / "first.toml", out=tmp_path / "runs" / "first", progress="none")
    more = 'unlabelled = "site.csv"\n[teacher]\nmodel = "run:runs/first"\nweight = 0.4\n[alignment]\nkind = "mmd"\n[importance]\nkind = "domain"\n'
    (tmp_path / "second.toml").write_text(text.format(more=more))
    made = ta.adapt(tmp_path / "second.toml", out=tmp_path / "runs" / "second", progress="none")
    assert made.record.teacher["model"] == "run:runs/first"
    assert made.record.unlabelled is not None
    assert made.record.unlabelled.n == 150
    assert ta.Plan.from_toml(tmp_path / "runs" / "second" / "plan.toml").alignment == ta.Alignment(kind="mmd")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda d: ta.adapt(plan(alignment=ta.Alignment()), d), "needs unlabelled data of the target"),
        (lambda d: ta.adapt(plan(), d, unlabelled=d), "nothing uses it"),
        (lambda d: ta.adapt(plan(), d, teacher=ta.Model(base().module, classes=("a", "b"))), "answers in \\['a', 'b'\\]"),
        (lambda d: ta.adapt(plan(), d, teacher="base"), "the base names no classes"),
        (lambda d: ta.adapt(plan(), d, teacher="other"), "expected 'run:PATH' or 'base'"),
        (lambda d: plan(importance=ta.Importance(kind="domain", class_mix={"no": 1.0})), "belongs to kind"),
        (lambda d: ta.adapt(plan(importance=ta.Importance(kind="label", class_mix={"x": 1.0})), d), "class_mix names"),
        (lambda d: ta.Plan(base=base(), task=ta.Regression(), stages=[ta.Stage("*")], teacher=base()), "a regression has none"),
    ],
)
def test_what_does_not_fit_gets_one_sentence(call, sentence):
    with pytest.raises(ConfigError, match=sentence):
        call(table("train", 60, 0))


def test_pictures_with_augmentation_can_be_aligned_and_taught(net: ta.Model, domain: ta.Domain):
    from tl_audit.finetune import Training

    asked = plan_for(
        net, ta.Stage("*", epochs=1, lr=0.01), training=Training(augment="RandomHorizontalFlip", batch_size=16), alignment=ta.Alignment()
    )
    first = quick(plan_for(net), domain)
    made = ta.adapt(asked, domain, unlabelled=domain, teacher=first.model, progress="none")
    history = made.record.stages[0].history[0]
    assert {"alignment_distance", "distillation_loss"} <= set(history)


def test_rows_without_a_cluster_id_weigh_as_rows_of_their_own():
    rng = np.random.default_rng(5)
    x, z = rng.normal(size=(100, 3)), rng.normal(size=(80, 3)) + 0.5
    some = np.array([None if k % 2 else f"patient {k // 10}" for k in range(100)], dtype=object)
    named = np.array([f"row {k}" if one is None else one for k, one in enumerate(some)], dtype=object)
    found, wanted = domain_weights(x, z, cluster=some), domain_weights(x, z, cluster=named)
    assert found.values.mean() == pytest.approx(1.0)
    assert np.corrcoef(found.values, wanted.values)[0, 1] > 0.95
