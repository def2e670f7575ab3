"""Policies: loading, extending, hashing, linting; and the profiles that ship."""

from __future__ import annotations

import datetime
import inspect
from pathlib import Path

import pytest

from tl_audit.errors import ConfigError
from tl_audit.policy import lint, load_policy, profiles
from tl_audit.policy.limits import Policy

TODAY = datetime.date(2026, 11, 21)
MINIMAL = '[policy]\nid = "mine"\n'


def load(folder: Path, text: str) -> Policy:
    path = folder / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return load_policy(path)


def test_the_shipped_profiles_load_without_errors() -> None:
    assert profiles() == ("default", "nyc-ll144", "strict", "us-employment")
    for name in profiles():
        policy = load_policy(name)
        assert policy.approved_by == ""
        assert [r.text for r in lint(policy, today=TODAY, strict=True) if r.level == "error"] == []


def test_every_default_limit_has_an_origin_and_a_rationale() -> None:
    for limit in load_policy("strict").limits:
        assert limit.rationale, limit.key
        assert limit.origin != "none given", limit.key


def test_every_default_limit_names_a_metric_that_its_check_measures() -> None:
    from tl_audit.checks import BUILTIN

    built = {check.code: check for check in BUILTIN}
    for limit in load_policy("strict").limits:
        assert limit.check in built, limit.key
        forms = (built[limit.check], built[limit.check].for_task("regression"))
        source = "".join(inspect.getsource(inspect.getmodule(form.function)) for form in forms)  # type: ignore[arg-type]
        breaks = [i for i, char in enumerate(limit.metric) if char == "_"]
        whole = f'"{limit.metric}"' in source
        composed = any(f'}}{limit.metric[i:]}"' in source or f'"{limit.metric[: i + 1]}{{' in source for i in breaks)  # f"{name}_gap"
        assert whole or composed, f"{limit.check} never names {limit.metric}"


def test_strict_changes_the_gate_and_keeps_the_numbers() -> None:
    default, strict = load_policy("default"), load_policy("strict")
    assert strict.extends == ("default",)
    assert {s.fail_on for s in strict.stages.values()} == {"inconclusive"}
    kept = {limit.key: limit for limit in strict.limits}
    for limit in default.limits:
        assert kept[limit.key].warn == limit.warn or limit.metric == "psi"
    gap = next(limit for limit in strict.limits if (limit.check, limit.metric) == ("TLA602", "accuracy_gap"))
    assert gap.min_n == 100
    assert gap.rationale == next(limit for limit in default.limits if limit.metric == "accuracy_gap").rationale


def test_the_hash_ignores_comments_layout_and_the_stage_and_sees_every_number(tmp_path: Path) -> None:
    text = MINIMAL + '[[limits]]\ncheck = "TLA301"\nmetric = "accuracy"\nfail = { min = 0.8 }\n'
    first = load(tmp_path, text)
    assert load(tmp_path, "# a comment\n\n" + text.replace("{ min = 0.8 }", "{min=0.80}")).sha256 == first.sha256
    assert load(tmp_path, text.replace("0.8", "0.81")).sha256 != first.sha256
    assert load_policy("default", "release").sha256 == load_policy("default", "ci").sha256


def test_a_policy_extends_a_profile_and_overrides_by_check_metric_and_slice(tmp_path: Path) -> None:
    policy = load(
        tmp_path,
        '[policy]\nid = "acme"\nextends = "default"\napproved_by = "M. Example"\napproved_on = 2026-10-01\n'
        '[[limits]]\ncheck = "TLA602"\nmetric = "accuracy_gap"\nfail = { abs = 0.05 }\n'
        '[[limits]]\ncheck = "TLA602"\nmetric = "accuracy_gap"\nslice = { sex = "*" }\nfail = { abs = 0.02 }\nrationale = "r"\n'
        '[[limits]]\ncheck = "TLA308"\nmetric = "generalisation_gap"\ndrop = true\n',
    )
    plain, by_sex = (limit for limit in policy.limits if limit.check == "TLA602" and limit.metric == "accuracy_gap")
    assert (plain.warn, plain.fail) is not None
    assert plain.fail is not None
    assert plain.fail.value == 0.05
    assert plain.warn is not None
    assert plain.warn.value == 0.10
    assert plain.rationale is None, "a new number does not borrow the reasons of the old one"
    assert by_sex.slice == {"sex": "*"}
    assert "generalisation_gap" not in {limit.metric for limit in policy.limits_of("TLA308")}
    assert policy.approved_on == "2026-10-01"
    assert policy.rules.declare == load_policy("default").declare
    assert policy.card().resolved["approved_by"] == "M. Example"


def test_approval_and_waivers_do_not_travel(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(
        '[policy]\nid = "base"\napproved_by = "M. Example"\n[[limits]]\ncheck = "TLA301"\nmetric = "accuracy"\nfail = { min = 0.8 }\n'
        '[[waivers]]\ncheck = "TLA301"\nreason = "r"\napproved_by = "x"\nexpires = 2030-01-01\n'
    )
    policy = load(tmp_path, '[policy]\nid = "child"\nextends = "base.toml"\n')
    assert policy.approved_by == ""
    assert policy.waivers == ()
    assert len(policy.limits) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'the key "policy" is missing'),
        ('[policy]\nid = "a"\nfrewroks = []', 'unknown key "frewroks".*did you mean "frameworks"'),
        (MINIMAL + '[[limits]]\ncheck = "TLA301"\nfail = { min = 0 }', 'the key "metric" is missing in \\[limits\\[1\\]\\]'),
        (MINIMAL + '[[limits]]\ncheck = "TLA301"\nmetric = "a"', "neither warn nor fail"),
        (MINIMAL + '[[limits]]\ncheck = "TLA301"\nmetric = "a"\nfail = { min = 0, max = 1 }', "a bound is one of"),
        (MINIMAL + '[[limits]]\ncheck = "TLA301"\nmetric = "a"\nfail = { maximum = 1 }', 'unknown key "maximum".*did you mean "max"'),
        (MINIMAL + '[[limits]]\ncheck = "TLA301"\nmetric = "a"\nfail = { max = 0.1 }\nwarn = { min = 0 }', "mixes max and min"),
        (MINIMAL + '[[limits]]\ncheck = "TLA301"\nmetric = "a"\nfail = { max = 0 }\nration = "x"', 'did you mean "rationale"'),
        (MINIMAL + 2 * '[[limits]]\ncheck = "TLA301"\nmetric = "a"\nfail = { max = 0 }\n', "a second limit on TLA301 a"),
        (MINIMAL + "[rules]\nalpah = 0.05", 'unknown key "alpah".*did you mean "alpha"'),
        (MINIMAL + "[rules]\nalpha = 2", "alpha"),
        (MINIMAL + '[stages.ci]\nfail_on = "failure"', "fail_on"),
        (MINIMAL + '[[waivers]]\ncheck = "TLA301"\nreason = "r"\napproved_by = "x"\nexpires = "soon"', "expires"),
        ('[policy]\nid = "a"\nextends = "defualt"', 'no policy profile "defualt"; did you mean "default"'),
        ('[policy]\nid = "a"\nextends = "policy.toml"', "extends itself"),
        ('[policy]\nid = "a"\ndeclare = ["purpos"]', "declare"),
        ('[policy\nid = "a"', "not valid TOML"),
        ('[policy]\nid = "a"\nid = "b"', "not valid TOML"),
    ],
)
def test_mistakes_give_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_profile_that_is_not_there_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match='did you mean "strict"'):
        load_policy("strickt")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_policy("nowhere/policy.toml")
    with pytest.raises(ConfigError, match='no stage "relaese"; did you mean "release"'):
        load_policy("default", "relaese")


def test_the_stage_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TL_AUDIT_STAGE", "release")
    assert load_policy("default").active_stage == "release"
    assert load_policy("default", "ci").active_stage == "ci"


def test_lint_finds_what_loads_but_makes_no_sense(tmp_path: Path) -> None:
    policy = load(
        tmp_path,
        MINIMAL
        + '[[limits]]\ncheck = "TLA301"\nmetric = "accuracy"\nfail = { min = 1.2 }\n'
        + '[[limits]]\ncheck = "TLA302"\nmetric = "accuracy_change"\nwarn = { min = -0.1 }\nfail = { min = -0.02 }\nmin_n = 5\n'
        + '[[limits]]\ncheck = "TLA333"\nmetric = "x"\nfail = { max = 1 }\nclauses = ["eu-ai-act:art-15"]\nrule = "point"\n'
        + '[[waivers]]\ncheck = "TLA301"\nreason = "r"\napproved_by = "x"\nexpires = 2026-11-20\n'
        + '[[waivers]]\ncheck = "TLA404"\nreason = "r"\napproved_by = "x"\nexpires = 2027-11-20\n',
    )
    text = "\n".join(r.text for r in lint(policy, today=TODAY, known_checks=["TLA301", "TLA302", "TLA303"]))
    for expected in (
        "fail min 1.2 can never be met",
        "lies beyond fail",
        "min_n = 5 is below suppress_below = 10",
        "no rationale given",
        "has no check TLA333",
        "expired on 2026-11-20",
        "waiver on TLA404: the policy sets no limit there",
        "its framework is not among",
        "point rule, interval ignored",
    ):
        assert expected in text, expected


def test_the_samples_ceiling_of_a_policy_holds(tmp_path: Path) -> None:
    policy = load(tmp_path, '[policy]\nid = "a"\nsamples = "redacted"\n')
    assert [policy.samples_allowed(s) for s in ("off", "redacted", "on")] == ["off", "redacted", "redacted"]
    assert load_policy("default").samples_allowed("on") == "on"
