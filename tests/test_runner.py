"""The flow of an audit: every selected check exactly once, nothing missing ever green, one crash is one finding."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.evidence.tiny import calls, counted, domain, full, tiny
from tl_audit.checks.base import Check, Context, check, exact, metric
from tl_audit.errors import ConfigError, NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures.estimate import Estimate, build_ladder
from tl_audit.modality.base import Cue
from tl_audit.models import Model, small_cnn
from tl_audit.policy import Limit, Policy, Rules, load_policy
from tl_audit.policy.limits import Bound
from tl_audit.records.exhibits import Column, Dot, GridRow, ImageGrid, Intervals, Picture, Table
from tl_audit.records.findings import AuditResult
from tl_audit.records.metrics import Measurement
from tl_audit.records.preprocessing import Preprocessing
from tl_audit.records.schema import parse_json, report_hash, to_json
from tl_audit.report import render_html
from tl_audit.runner import corrected, run
from tl_audit.subject import Domain, Subject

PLAIN = Policy(id="test")
WHEN = "2026-01-01T00:00:00Z"


def audit(subject: Subject, *checks: Check, policy: Policy = PLAIN, **settings: Any) -> AuditResult:
    return run(subject, policy=policy, checks=checks, created=WHEN, methods=settings.pop("methods", ()), **settings)


def counting(code: str = "TLA301", **settings: Any) -> Check:
    @check(code, "Right answers", section="performance", severity="high", **{"needs": ("adapted@target", "target.labels"), **settings})
    def right(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
        correct = evidence.correct("adapted", "target")
        return Measurement(summary="counted", metrics=(exact("right", correct.sum(), n={"target": len(correct)}),))

    return right


def raising(code: str, error: BaseException) -> Check:
    @check(code, "Raises", section="performance", severity="low")
    def raises(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
        raise error

    return raises


def test_every_check_appears_exactly_once_in_the_order_of_the_codes() -> None:
    result = audit(tiny(), counting("TLA303"), counting("TLA301"), counting("TLA302", needs=("source",)), ignore=("TLA303",))
    assert [f.code for f in result.findings] == ["TLA301", "TLA302", "TLA303"]
    assert [f.status for f in result.findings] == ["info", "not_evaluated", "not_evaluated"]
    assert result["TLA302"].reason == "needs a source domain: [source] in audit.toml, source= in Python"
    assert result["TLA302"].missing == ("source",)
    assert result["TLA303"].reason == "deselected"
    assert result.outcome.counts["not_evaluated"] == 2
    assert sum(result.outcome.counts.values()) == 3


@pytest.mark.parametrize(
    ("need", "words"),
    [
        ("base", r"needs the base model: [base] in audit.toml"),
        ("control:head|control:scratch", 'or the control "scratch"'),
        ("validation.labels", "needs the validation data"),
        ("base@target", "needs the base model"),
        ("adapted@source", "needs a source domain"),
        ("record", "tl-audit adapt"),
        ("cues", "[[cues]]"),
        ("adapted.file", "weights file of the adapted model"),
        ("declared", "declared facts"),
    ],
)
def test_a_missing_need_is_named_with_how_to_give_it(need: str, words: str) -> None:
    finding = audit(tiny(), counting(needs=(need,))).findings[0]
    assert finding.status == "not_evaluated"
    assert words in finding.reason
    assert finding.measurement is None


@pytest.mark.parametrize(
    "need", ["adapted", "target", "target.groups", "target.cluster", "base|adapted", "adapted@target", "base@source|adapted@target"]
)
def test_a_need_that_is_met_runs_the_check(need: str) -> None:
    assert audit(tiny(), counting(needs=(need,))).findings[0].status == "info"


def test_an_unlabelled_ungrouped_target_names_labels_groups_and_clusters() -> None:
    bare = tiny(target=Domain("T", np.zeros((12, 3), dtype=np.float32), kind="tensor"))
    for part in ("labels", "groups", "cluster"):
        finding = audit(bare, counting(needs=(f"target.{part}",))).findings[0]
        assert finding.missing == (f"target.{part}",)
        assert "of the target domain" in finding.reason


def test_whatever_needs_a_model_with_broken_weights_is_not_evaluated_and_says_which_check_tells_why() -> None:
    model = counted(0)
    with torch.no_grad():
        model.module.head.bias[0] = float("inf")
    finding = audit(tiny(adapted=model), counting()).findings[0]
    assert finding.status == "not_evaluated"
    assert "(TLA112)" in finding.reason


def test_a_crash_is_one_error_finding_and_the_others_run(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/jane")
    with caplog.at_level(logging.ERROR, logger="tl_audit.runner"):
        result = audit(tiny(), raising("TLA300", ZeroDivisionError("in /home/jane/secret.py\n token=abcdef123456")), counting())
    assert result["TLA300"].status == "error"
    assert result["TLA300"].reason == "The check failed: ZeroDivisionError: in ~/secret.py token=<redacted>"
    assert result["TLA301"].status == "info"
    assert "Traceback" in caplog.text


def test_a_check_that_returns_nothing_or_nan_or_raises_not_evaluated_ends_in_its_own_finding() -> None:
    @check("TLA310", "Nothing", section="performance", severity="low")
    def nothing(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
        return None  # type: ignore[return-value]

    @check("TLA311", "NaN", section="performance", severity="low")
    def nan(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
        return Measurement(summary="x", metrics=(exact("x", float("nan")),))

    result = audit(tiny(), nothing, nan, raising("TLA312", NotEvaluated("positives in the target")))
    assert [f.status for f in result.findings] == ["error", "error", "not_evaluated"]
    assert "returned NoneType, expected a Measurement" in result["TLA310"].reason
    assert result["TLA312"].reason == "needs positives in the target"


def test_a_check_cannot_change_evidence_randomness_or_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    @check("TLA310", "Vandal", section="performance", severity="low")
    def vandal(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        print("chatter")
        evidence.groups("target")["site"][:] = "nowhere"
        return Measurement(summary="done")

    subject = tiny()
    state = torch.get_rng_state()
    numpy = np.random.get_state()[1].copy()  # noqa: NPY002
    result = audit(subject, vandal)
    assert torch.equal(state, torch.get_rng_state())
    assert (numpy == np.random.get_state()[1]).all()  # noqa: NPY002
    assert result["TLA310"].status == "error"
    assert set(subject.target.groups["site"]) == {"north", "south"}
    assert "chatter" not in capsys.readouterr().out


def test_two_runs_with_one_seed_give_the_same_report_hash(tmp_path: Path) -> None:
    checks = (counting(), counting("TLA302", needs=("base@source",)))
    fresh = audit(full(), *checks)
    assert report_hash(fresh) == report_hash(audit(full(), *checks))
    stored = audit(full(), *checks, evidence_dir=tmp_path)
    again = audit(full(), *checks, evidence_dir=tmp_path)
    assert report_hash(fresh) == report_hash(stored) == report_hash(again)
    assert to_json(parse_json(to_json(fresh))) == to_json(fresh)


def test_another_policy_on_stored_evidence_runs_no_model(tmp_path: Path) -> None:
    subject = full()
    audit(subject, counting(), evidence_dir=tmp_path)
    before = calls(subject)
    strict = Policy(id="other", limits=(Limit(check="TLA301", metric="right", fail=Bound(min=41)),), rules=Rules(confidence=0.9))
    result = audit(subject, counting(), policy=strict, evidence_dir=tmp_path)
    assert result["TLA301"].status == "fail"
    assert result.outcome.gate == "closed"
    assert calls(subject) == before


def test_a_measurement_is_stored_and_given_up_when_what_it_rests_on_changes(tmp_path: Path) -> None:
    ran: list[int] = []

    @check("TLA301", "Runs", section="performance", severity="high", needs=("adapted@target",))
    def runs(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
        ran.append(1)
        return Measurement(summary="ran")

    audit(tiny(), runs, evidence_dir=tmp_path)
    audit(tiny(), runs, evidence_dir=tmp_path)
    assert len(ran) == 1
    audit(tiny(), runs, evidence_dir=tmp_path, seed=1)
    audit(tiny(target=domain("T", seed=5)), runs, evidence_dir=tmp_path)
    audit(tiny(adapted=counted(7)), runs, evidence_dir=tmp_path)
    audit(tiny(), runs, evidence_dir=tmp_path, policy=Policy(id="x", rules=Rules(min_n=50)))
    assert len(ran) == 5
    audit(tiny(), runs, evidence_dir=tmp_path, resume=False)
    assert len(ran) == 6


def test_a_damaged_measurement_is_made_anew_and_gives_the_same_report(tmp_path: Path) -> None:
    first = audit(tiny(), counting(), evidence_dir=tmp_path)
    path = next((tmp_path / "measurements").iterdir())
    path.write_text(path.read_text().replace("counted", "altered"))
    assert report_hash(audit(tiny(), counting(), evidence_dir=tmp_path)) == report_hash(first)


def test_p_values_are_corrected_inside_each_family_and_over_the_checks() -> None:
    def tested(name: str, p: float, group: str) -> Any:
        estimate = Estimate(value=0.1, n=100, p_value=p, null=0.0, ladder=build_ladder(lambda a: (0.1 - 1 / (a + 1), 0.1 + 1 / (a + 1))))
        return metric(name, estimate, rules=Rules(), slice={"site": group})

    def of(code: str, *ps: float) -> Check:
        @check(code, "Tests", section="shift", severity="low")
        def tests(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
            return Measurement(summary="x", metrics=tuple(tested("gap", p, f"s{i}") for i, p in enumerate(ps)))

        return tests

    result = audit(tiny(), of("TLA501", 0.01, 0.04), of("TLA502", 0.5), counting("TLA503"))
    assert [m.p_adjusted for m in result["TLA501"].measurement.metrics] == [0.02, 0.04]  # type: ignore[union-attr]
    assert [f.q_check for f in result.findings] == [0.04, 0.5, None]
    listing = check("TLA508", "x", section="shift", severity="low", multiplicity="bh")(lambda s, e, c: Measurement(summary=""))  # type: ignore[arg-type]
    bh = corrected(Measurement(summary="", metrics=(tested("gap", 0.01, "a"), tested("gap", 0.04, "b"))), listing)
    assert [m.p_adjusted for m in bh.metrics] == [0.02, 0.04]


def test_phase_two_sees_the_judged_findings_and_its_stamps_reach_every_map() -> None:
    grid = ImageGrid(
        id="maps", title="t", how_to_read="h", alt="a", caption="c", method="lime",
        rows=(GridRow(id="1", pictures=(Picture(title="p", alt="a", method="grad_cam"), Picture(title="q", alt="a"))),),
    )  # fmt: skip

    @check("TLA702", "Maps", section="explanations", severity="low")
    def maps(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
        return Measurement(summary="maps", exhibits=(grid,))

    @check("TLA711", "Gate", section="explanations", severity="low", phase=2)
    def gates(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
        assert [f.code for f in context.findings] == ["TLA702"]
        return Measurement(
            summary="gate",
            params={"stamp:lime": "unreliable: not reliable: fails TLA703", "stamp:grad_cam": "passed: quality checks passed"},
        )

    result = audit(tiny(), gates, maps, methods=("lime", "grad_cam"))
    shown = result["TLA702"].exhibits["maps"]
    assert (shown.stamp.state, shown.stamp.text) == ("unreliable", "not reliable: fails TLA703")
    assert [p.stamp and p.stamp.state for p in shown.rows[0].pictures] == ["passed", None]
    alone = audit(tiny(), maps, methods=("lime",))
    assert alone["TLA702"].exhibits["maps"].stamp.state == "not_checked"


def test_small_groups_are_hidden_everywhere_in_the_record() -> None:
    target = domain("T")
    target.groups["site"] = np.array(["rare"] * 3 + ["north"] * 37, dtype=object)

    @check("TLA601", "Groups", section="fairness", severity="low")
    def groups(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
        rate = Estimate(value=0.777, n=3, ladder=build_ladder(lambda a: (0.111, 0.999)))
        dots = (Dot(label="rare", value=0.777, interval=(0.111, 0.999), n=3), Dot(label="north", value=0.5, interval=(0.4, 0.6), n=37))
        rows = (("rare", 3, 0.777, "0.111 to 0.999"), ("north", 37, 0.5, "0.4 to 0.6"))
        words = {"how_to_read": "h", "caption": "c"}
        columns = (Column(name="site"), Column(name="n", format="count"), Column(name="accuracy", format="share"), Column(name="interval"))
        return Measurement(
            summary="groups",
            metrics=(metric("accuracy", rate, rules=context.rules, slice={"site": "rare"}),),
            exhibits=(
                Intervals(id="dots", title="t", alt="rare 78 %; north 50 %.", value_label="v", dots=dots, grouped=True, **words),
                Table(id="table", title="t", alt="a", columns=columns, rows=rows, grouped=True, **words),
            ),
        )

    result = audit(tiny(target=target), groups)
    text = to_json(result)
    assert "0.777" not in text
    assert "0.111" not in text
    assert "78 %" not in text
    assert result.subject.target is not None
    assert result.subject.target.groups == {"site": {"north": 37, "rare": "< 10"}}
    assert result["TLA601"].exhibits["table"].rows == (("rare", "< 10", "suppressed", "suppressed"), ("north", 37, 0.5, "0.4 to 0.6"))
    assert result["TLA601"].metrics["accuracy"].reason == "suppressed: n < 10"


def test_the_first_signal_leaves_a_marked_partial_record_and_restored_handlers() -> None:
    @check("TLA301", "Interrupted", section="performance", severity="low", needs=("adapted@target",))
    def interrupted(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
        os.kill(os.getpid(), signal.SIGTERM)
        context.progress("half-way", 1, 2)
        raise AssertionError("not reached")

    before = signal.getsignal(signal.SIGTERM)
    result = audit(tiny(), counting("TLA300"), interrupted, counting("TLA302"), raising("TLA990", RuntimeError("never run")))
    assert [f.status for f in result.findings] == ["info", *["not_evaluated"] * 3]
    assert result["TLA302"].reason == "interrupted"
    assert result.outcome.partial == "interrupted by SIGTERM after 1 of 4 checks"
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interruption_while_collecting_leaves_nothing_evaluated_and_the_model_restored() -> None:
    subject = full()
    subject.adapted.module.train()
    plain = subject.adapted.module.forward

    def pressed(x: torch.Tensor) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGINT)
        subject.adapted.module.forward = plain  # type: ignore[method-assign]
        return plain(x)

    subject.adapted.module.forward = pressed  # type: ignore[method-assign]
    result = audit(subject, counting())
    assert [f.reason for f in result.findings] == ["interrupted"]
    assert result.outcome.partial == "interrupted by SIGINT after 0 of 1 checks"
    assert subject.adapted.module.training


def test_the_second_signal_breaks_into_a_check_that_does_not_listen() -> None:
    @check("TLA301", "Stubborn", section="performance", severity="low")
    def stubborn(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return Measurement(summary="went on")

    result = audit(tiny(), stubborn, counting("TLA302"))
    assert [f.status for f in result.findings] == ["not_evaluated", "not_evaluated"]


def test_codes_are_unique_and_prefixes_must_name_a_check() -> None:
    with pytest.raises(ConfigError, match="two checks have the code TLA301"):
        audit(tiny(), counting(), counting())
    with pytest.raises(ConfigError, match="no check has a code that begins with 'TLA9'"):
        audit(tiny(), counting(), select=("TLA9",))
    with pytest.raises(ConfigError, match="device 'cuda:77' is not on this machine"):
        audit(tiny(), counting(), device="cuda:77")


def test_the_record_holds_no_user_host_or_home(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"command": "tl-audit run /home/canary/audit.toml --token hf_abcdefghijklmnop", "paths": ["/Users/canary/x"]}
    text = to_json(audit(tiny(), counting(), config=config))
    assert "canary" not in text
    assert "hf_abcdefghijklmnop" not in text
    assert '"command": "tl-audit run ~/audit.toml' in text


def test_the_cards_hold_the_facts_of_models_and_domains() -> None:
    result = audit(full(), counting(), title="My audit")
    assert result.title == "My audit"
    card = result.subject.adapted
    assert card is not None
    assert (card.parameters, card.hash_of, card.classes) == (26, "tensors", ("ants", "bees"))
    assert [c.key for c in result.subject.controls] == ["control:head"]
    target = result.subject.target
    assert target is not None
    assert (target.n, target.clusters, sum(target.class_counts.values()), target.unreadable) == (40, 20, 40, 0)
    assert target.sha256 is not None
    assert result.environment["device"] == "cpu"
    assert set(result.environment) == {"python", "platform", "packages", "device", "threads", "deterministic"}


def test_the_card_of_a_domain_says_when_and_where_its_samples_were_taken() -> None:
    when = ["2026-01", "2026-03", "2026-03", "2026-05", "2026-05"]
    target = Domain("T", np.zeros((5, 3), dtype=np.float32), kind="tensor", time=when, site=["a", "b", "b", "a", "b"]).subset(np.arange(4))
    result = run(
        Subject(adapted=counted(0).module, target=target),
        policy=load_policy("default"),
        methods=(),
        select=("TLA9",),
        created=WHEN,  # type: ignore[arg-type]
    )
    card = result.subject.target
    assert card is not None
    assert (card.time_span, card.periods, dict(card.sites)) == (("2026-01", "2026-05"), 3, {"a": "< 10", "b": "< 10"})
    page = render_html(result)
    assert "When and where the samples were taken" in page
    assert "2026-01 to 2026-05" in page


def test_a_bare_subject_has_every_built_in_check_exactly_once_and_passes_nothing_it_could_not_see() -> None:
    from tl_audit.checks import BUILTIN

    bare = Subject(adapted=counted(0).module, target=Domain("T", np.zeros((5, 3), dtype=np.float32), kind="tensor"))  # type: ignore[arg-type]
    result = run(bare, policy=load_policy("default"), methods=(), created=WHEN)
    assert [f.code for f in result.findings] == sorted(one.code for one in BUILTIN if not one.optional)
    assert len({one.code for one in BUILTIN}) == len(BUILTIN)
    assert not [f.code for f in result.findings if f.status == "error"]
    # TLA903 sees the policy, which is always there
    assert {f.code for f in result.findings if f.status == "pass"} <= {"TLA109", "TLA110", "TLA112", "TLA208", "TLA903"}
    for one in BUILTIN:
        assert set(one.help) >= {"asks", "measured", "matters", "reduce"}, one.code


def pictures(name: str, n: int, seed: int) -> Domain:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    x = rng.integers(0, 120, (n, 12, 12, 3)).astype(np.uint8)
    x[y == 1, :6] += 100
    return Domain(
        name, x, labels=[("ants", "bees")[i] for i in y], groups={"site": np.array(["north", "south"])[rng.integers(0, 2, n)]}, kind="image"
    )


def test_all_built_in_checks_together_are_repeatable_and_cost_nothing_twice(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = Preprocessing(height=12, width=12)
    models = [Model(small_cnn(2, widths=(4, 8)), classes=("bees", "ants"), preprocessing=spec, name=name) for name in ("a", "b", "c")]
    subject = Subject(
        adapted=models[0], base=models[1], controls={"head": models[2]},
        target=pictures("T", 80, 1), source=pictures("S", 70, 2), train=pictures("R", 60, 3),
        cues=(Cue("corner", "patch", {"corner": "top-left", "size": 0.25, "value": 1.0}),),
    )  # fmt: skip
    settings: dict[str, Any] = {
        "policy": load_policy("default"), "methods": ("grad_cam", "lime"), "budget": 24, "attribution_samples": 30, "created": WHEN,
    }  # fmt: skip
    before = {k: v.clone() for k, v in models[0].module.state_dict().items()}
    first = run(subject, **settings, evidence_dir=tmp_path, samples="on")
    assert not [f"{f.code}: {f.reason}" for f in first.findings if f.status == "error"]
    assert all(torch.equal(v, before[k]) for k, v in models[0].module.state_dict().items())
    ran: list[int] = []
    hooks = [m.module.register_forward_hook(lambda *a: ran.append(1)) for m in models]
    again = run(subject, **settings, evidence_dir=tmp_path, samples="on")
    assert ran == []
    for hook in hooks:
        hook.remove()
    assert report_hash(again) == report_hash(first)
    assert report_hash(run(subject, **settings, samples="on")) == report_hash(first)
