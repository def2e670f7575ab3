"""Policy: limits as data, sample-size rules, declarations wanted, reviews, stages, waivers. Loading, resolving, hashing, linting."""

from __future__ import annotations

import datetime
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tl_audit.errors import ConfigError
from tl_audit.policy.rules import Rules
from tl_audit.policy.toml import did_you_mean, read_toml, validated
from tl_audit.records.base import Record
from tl_audit.records.findings import SEVERITIES, PolicyCard, Rule, Severity
from tl_audit.records.metrics import Metric
from tl_audit.records.schema import canonical_json

FailOn = Literal["fail", "warn", "inconclusive", "never"]
FAIL_ON: tuple[FailOn, ...] = ("fail", "inconclusive", "warn", "never")
NO_RATIONALE = "no rationale given"
MOST_EXTENDS = 8

DeclaredKey = Literal[
    "purpose", "users", "affected_people", "decision_role", "out_of_scope", "misuse", "deployment", "jurisdictions", "owner", "contact",
    "version", "licence", "base_source", "base_licence", "base_training_data", "base_known_limits", "base_training_flop",
    "adaptation_reason", "role_questions", "data_origin", "data_collection", "data_labelling", "data_agreement", "data_time_span",
    "data_licence", "data_preparation", "data_assumptions", "data_retention", "data_lawful_basis", "groups_source",
    "special_category_data", "metric_rationale", "threshold_rationale", "harm", "reference_group_rationale", "groups_not_tested",
    "bias_mitigation", "explanation_audience", "explanation_text", "region_meaning", "oversight", "prohibited_uses", "security_measures",
    "monitoring_plan", "next_audit", "standards", "quality_management", "distribution", "retention",
]  # fmt: skip
"""The flat keys of [declared] (REPORT.md (e)); [[declared.risks]] and the other tables come beside them."""

Day = Annotated[str, BeforeValidator(lambda value: value.isoformat() if isinstance(value, datetime.date) else value)]
"""A date of TOML, kept as its ISO text so that records and hashes hold plain data."""


class Bound(Record):
    """One side that a metric must stay on: ``max``, ``min``, or ``abs`` (the signed value within [-abs, abs])."""

    max: float | None = None
    min: float | None = None
    abs: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _exactly_one(self) -> Bound:
        if sum(v is not None for v in (self.max, self.min, self.abs)) != 1:
            raise ValueError("a bound is one of { max = x }, { min = x }, { abs = x }")
        return self

    @property
    def kind(self) -> Literal["max", "min", "abs"]:
        return "max" if self.max is not None else "min" if self.min is not None else "abs"

    @property
    def value(self) -> float:
        return next(v for v in (self.max, self.min, self.abs) if v is not None)

    def beyond(self, value: float) -> bool:
        """Whether a value lies strictly on the wrong side."""
        if self.kind == "max":
            return value > self.value
        if self.kind == "min":
            return value < self.value
        return abs(value) > self.value


class Limit(Record):
    """A bound of the policy on one metric of one check, with where it comes from and why.

    Without ``slice`` it holds for every slice of the metric; ``{sex = "*"}`` for every value of the column, ``{sex = ""}`` where the
    slice has no such column. The most specific limit wins.
    """

    check: str = Field(pattern=r"^[A-Z]{2,8}[0-9]{3,4}$")
    metric: str = Field(min_length=1)
    slice: Mapping[str, str] = Field(default_factory=dict)
    warn: Bound | None = None
    fail: Bound | None = None
    guard: Bound | None = None
    "what a finding without fail limits must exclude in order to pass; the warn bound itself where absent (CHECKS.md 1.2)"
    rule: Rule | None = None
    "None: exact for counts of the whole set, else the policy's rule"
    test: str | None = None
    "the metric whose adjusted p must also be below alpha (rule interval+test); None: this one's own"
    null_quantile: str | None = None
    "metric that holds the (1 - alpha/m) quantile by chance: a value up to it is met too, while it is at most ``null_ceiling``"
    null_ceiling: float | None = None
    above_null: str | None = None
    "metric that holds the upper point by chance: the bound in force is the larger of the two"
    relative_to_null: bool = False
    "the bound counts from the metric's value by chance (``null``) instead of from 0"
    breach: Literal["status", "inconclusive", "review"] = "status"
    "inconclusive: a broken limit says that something could not be measured, not that it is bad; review: a person must say whether it is"
    exempt: tuple[Literal["null", "minimum"], ...] = ()
    "null: undefined by design is not judged; minimum: below the minimum it is shown without a verdict"
    origin: str = "none given"
    rationale: str | None = None
    severity: Severity | None = None
    clauses: tuple[str, ...] = ()
    min_n: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _something_to_judge(self) -> Limit:
        if self.warn is None and self.fail is None:
            raise ValueError(f"the limit on {self.check} {self.metric} has neither warn nor fail")
        kinds = {b.kind for b in (self.warn, self.fail, self.guard) if b is not None}
        if len(kinds) > 1:
            raise ValueError(f"the limit on {self.check} {self.metric} mixes {' and '.join(sorted(kinds))}")
        return self

    def covers(self, metric: Metric) -> bool:
        """Whether this limit speaks of the metric: same name, and its slice pattern fits."""
        return metric.name == self.metric and _fits(self.slice, metric.slice)

    @property
    def key(self) -> tuple[str, str, tuple[tuple[str, str], ...]]:
        return self.check, self.metric, tuple(sorted(self.slice.items()))


class Stage(Record):
    """When the gate closes. A stage never changes a status."""

    fail_on: FailOn = "fail"
    block_on: tuple[Literal["review", "not_evaluated", "error"], ...] = ()
    missing_declarations: Literal["allow", "block"] = "allow"
    inconclusive_from: Severity = "info"
    "the smallest severity at which an inconclusive finding blocks; required checks always do"


class Review(Record):
    """A question of the policy that a person must answer in [[declared.answers]]."""

    check: str = Field(pattern=r"^[A-Z]{2,8}[0-9]{3,4}$")
    question: str = Field(min_length=1)
    role: str | None = None


class Waiver(Record):
    """A dated permission to pass the gate in spite of a warn or fail. The status stays."""

    check: str = Field(pattern=r"^[A-Z]{2,8}[0-9]{3,4}$")
    metric: str | None = None
    slice: Mapping[str, str] = Field(default_factory=dict)
    reason: str = Field(min_length=1)
    approved_by: str = Field(min_length=1)
    expires: Day

    @field_validator("expires")
    @classmethod
    def _is_a_date(cls, value: str) -> str:
        datetime.date.fromisoformat(value)
        return value

    def active(self, today: datetime.date) -> bool:
        return today <= datetime.date.fromisoformat(self.expires)

    def covers(self, metric: str, slice: Mapping[str, str]) -> bool:
        return self.metric in (None, metric) and _fits(self.slice, slice)


class Policy(Record):
    """A resolved policy: nothing left to look up."""

    id: str = Field(min_length=1)
    version: int = Field(default=1, ge=1)
    extends: tuple[str, ...] = ()
    "the policies it was built on, nearest first"
    approved_by: str = ""
    approved_on: Day | None = None
    frameworks: tuple[str, ...] = ()
    samples: Literal["off", "redacted", "on"] | None = None
    "ceiling for [report] samples; None: no ceiling"
    require: tuple[str, ...] = ()
    "codes, prefixes or family:NAME; not_evaluated or info there counts as inconclusive for the gate"
    declare: tuple[DeclaredKey, ...] = ()
    add_checks: tuple[str, ...] | None = None
    "codes of the optional checks that this policy asks for; None: none of them"
    rules: Rules = Rules()
    stages: Mapping[str, Stage] = Field(default_factory=lambda: {"ci": Stage()})
    limits: tuple[Limit, ...] = ()
    reviews: tuple[Review, ...] = ()
    waivers: tuple[Waiver, ...] = ()
    active_stage: str = "ci"
    changed: str | None = None
    "when its files were last changed (ISO, UTC, from file metadata); None: it came from no file. No part of what it says"

    @cached_property
    def resolved(self) -> dict[str, Any]:
        """The policy as plain data, without the stage chosen for a run."""
        return self.model_dump(mode="json", exclude={"active_stage", "changed"}, exclude_none=True)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the resolved policy as canonical JSON: comments and layout do not matter."""
        return hashlib.sha256(canonical_json(self.resolved).encode()).hexdigest()

    @property
    def stage(self) -> Stage:
        return self.stages[self.active_stage]

    def card(self, stage: str | None = None) -> PolicyCard:
        """What the record keeps of this policy."""
        name = stage or self.active_stage
        return PolicyCard(
            id=self.id,
            version=self.version,
            sha256=self.sha256,
            stage=name,
            approved_by=self.approved_by,
            approved_on=self.approved_on,
            fail_on=self.stage_named(name).fail_on,
            resolved=self.resolved,
        )

    def stage_named(self, name: str) -> Stage:
        if name not in self.stages:
            raise ConfigError(f'policy {self.id}: no stage "{name}"{did_you_mean(name, self.stages)}')
        return self.stages[name]

    def at_stage(self, name: str) -> Policy:
        """The same policy with another stage chosen."""
        self.stage_named(name)
        return self.model_copy(update={"active_stage": name})

    def limit_for(self, code: str, metric: Metric) -> Limit | None:
        """The most specific limit on this metric and slice, None where the policy sets none."""
        found = [limit for limit in self.limits if limit.check == code and limit.covers(metric)]
        if not found:
            return None
        return max(found, key=lambda limit: (len(limit.slice), sum(v != "*" for v in limit.slice.values())))

    def limits_of(self, code: str) -> tuple[Limit, ...]:
        return tuple(limit for limit in self.limits if limit.check == code)

    def requires(self, code: str, section: str) -> bool:
        """Whether ``require`` names this check: its code, a prefix of it, or its family."""
        return any(
            wanted.removeprefix("family:") in {section, *_FINER.get(code, ())} if wanted.startswith("family:") else code.startswith(wanted)
            for wanted in self.require
        )

    def adds(self, code: str) -> bool:
        """Whether this policy asks for an optional check."""
        return code in (self.add_checks or ())

    def samples_allowed(self, wanted: str) -> str:
        """``wanted`` (off | redacted | on), lowered to the policy's ceiling."""
        order = ("off", "redacted", "on")
        if wanted not in order:
            raise ConfigError(f'[report] samples = "{wanted}" is none of off, redacted, on')
        return wanted if self.samples is None else order[min(order.index(wanted), order.index(self.samples))]


# Finer family names of REPORT.md (b), which a policy's family:NAME may use as well as the sections.
_FINER: dict[str, tuple[str, ...]] = {
    **{f"TLA{n}": ("adaptation",) for n in (103, 104, 105, 106, 111)},
    **{f"TLA{n}": ("integrity",) for n in (101, 102, 107, 108, 109, 110, 112, 113)},
    **{f"TLA{n}": ("calibration",) for n in (305, 306, 309, 610)},
    "TLA803": ("privacy",),
    **{f"TLA{n}": ("attribution",) for n in range(701, 712)},
    **{f"TLA{n}": ("declarations",) for n in range(901, 907)},
}


def _fits(pattern: Mapping[str, str], slice: Mapping[str, str]) -> bool:
    """Whether a slice has every column of the pattern with the value wanted ("*": any, "": the column is absent)."""
    return all(
        column not in slice if wanted == "" else column in slice and wanted in ("*", slice[column]) for column, wanted in pattern.items()
    )


# -- loading ----------------------------------------------------------------------------------------------------------


class _Header(Record):
    """The [policy] table."""

    id: str = Field(min_length=1)
    version: int = Field(default=1, ge=1)
    extends: str | None = None
    approved_by: str | None = None
    approved_on: Day | None = None
    frameworks: tuple[str, ...] | None = None
    samples: Literal["off", "redacted", "on"] | None = None
    require: tuple[str, ...] | None = None
    declare: tuple[DeclaredKey, ...] | None = None
    add_checks: tuple[str, ...] | None = None


class _LimitEntry(Record):
    """One [[limits]] table as written: may be part of a limit, completed by the policy it extends."""

    check: str
    metric: str
    slice: Mapping[str, str] = Field(default_factory=dict)
    warn: Bound | None = None
    fail: Bound | None = None
    guard: Bound | None = None
    rule: Rule | None = None
    test: str | None = None
    null_quantile: str | None = None
    null_ceiling: float | None = None
    above_null: str | None = None
    relative_to_null: bool | None = None
    breach: Literal["status", "inconclusive", "review"] | None = None
    exempt: tuple[Literal["null", "minimum"], ...] | None = None
    origin: str | None = None
    rationale: str | None = None
    severity: Severity | None = None
    clauses: tuple[str, ...] | None = None
    min_n: int | None = None
    drop: bool = False
    "take the limit of the extended policy away"


class _RulesEntry(Rules):
    """The [rules] table; ``declare`` belongs to [policy]."""

    declare: tuple[()] = ()


class _File(Record):
    """A policy file as written."""

    policy: _Header
    rules: Mapping[str, Any] = Field(default_factory=dict)  # Any: checked as Rules after merging
    stages: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)  # Any: checked as Stage after merging
    limits: tuple[_LimitEntry, ...] = ()
    reviews: tuple[Review, ...] = ()
    waivers: tuple[Waiver, ...] = ()


def profiles() -> tuple[str, ...]:
    """Names of the profiles that ship with the package."""
    folder = resources.files("tl_audit") / "profiles"
    return tuple(sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml")))


def profiles_adding(code: str) -> tuple[str, ...]:
    """The shipped profiles that ask for an optional check."""
    return tuple(name for name in profiles() if load_policy(name).adds(code))


def load_policy(name: str | Path = "default", stage: str | None = None) -> Policy:
    """The resolved policy of a profile ("default", "strict") or a TOML file, with ``extends`` followed.

    Parameters
    ----------
    name : a profile's name, or the path of a file
    stage : chosen stage; None: ``TL_AUDIT_STAGE``, else the first of ci, or the policy's only stage

    Raises
    ------
    ConfigError : no such profile or file, unknown keys, a limit without metric or bound, two limits on one (check, metric, slice)
    """
    policy = _resolve(str(name), Path("."), ())
    chosen = stage or os.environ.get("TL_AUDIT_STAGE") or ("ci" if "ci" in policy.stages else min(policy.stages))
    return policy.at_stage(chosen)


def _resolve(name: str, folder: Path, seen: tuple[str, ...]) -> Policy:
    path = _find(name, folder)
    if str(path) in seen or len(seen) >= MOST_EXTENDS:
        raise ConfigError(f"policy {name}: extends itself ({' -> '.join([*(Path(s).name for s in seen), path.name])})")
    data = read_toml(path)
    where = f"policy {path.name}"
    file = validated(_File, data, where)
    base = None if file.policy.extends is None else _resolve(file.policy.extends, path.parent, (*seen, str(path)))
    resolved = _merged(file, data, base, where)
    changed = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC).isoformat(timespec="seconds")
    return resolved.model_copy(update={"changed": max(changed, base.changed or changed) if base is not None else changed})


def _find(name: str, folder: Path) -> Path:
    if name in profiles():
        return Path(str(resources.files("tl_audit") / "profiles" / f"{name}.toml"))
    path = folder / name
    if not path.suffix and not path.exists():
        raise ConfigError(f'no policy profile "{name}"{did_you_mean(name, profiles())}; or give the path of a TOML file')
    return path


def _merged(file: _File, data: Mapping[str, Any], base: Policy | None, where: str) -> Policy:
    parent: dict[str, Any] = {} if base is None else base.model_dump(mode="python", exclude={"active_stage", "changed"})
    header = file.policy.model_dump(exclude={"extends"}, exclude_none=True)
    for key in ("approved_by", "approved_on"):
        parent.pop(key, None)  # an approval holds for the policy that was read, not for those built on it
    declare = header.get("declare", parent.get("declare", ()))
    rules = {**parent.get("rules", {}), **file.rules}
    if "declare" in file.rules:
        raise ConfigError(f"{where}: declare belongs to [policy], not to [rules]")
    validated(_RulesEntry, file.rules, f"{where}, [rules]")
    stages: dict[str, Any] = dict(parent.get("stages", {}))
    for stage, entry in file.stages.items():
        stages[stage] = validated(Stage, {**stages.get(stage, {}), **entry}, f"{where}, [stages.{stage}]")
    merged: dict[str, Any] = {
        **parent,
        **header,
        "extends": () if base is None else (base.id, *base.extends),
        "rules": {**rules, "declare": declare},
        "limits": tuple(_limits(file, base, where)),
        "reviews": (*parent.get("reviews", ()), *file.reviews),
        "waivers": file.waivers,  # a waiver never travels with `extends`
    }
    if stages:
        merged["stages"] = stages
    return validated(Policy, merged, where)


def _limits(file: _File, base: Policy | None, where: str) -> Iterator[Limit]:
    inherited = {} if base is None else {limit.key: limit for limit in base.limits}
    own: dict[Any, _LimitEntry] = {}  # Any: the key of a limit
    for number, entry in enumerate(file.limits, start=1):
        key = (entry.check, entry.metric, tuple(sorted(entry.slice.items())))
        if key in own:
            raise ConfigError(f"{where}, [[limits]] {number}: a second limit on {_spoken(entry)}; join them")
        if entry.drop and key not in inherited:
            raise ConfigError(f"{where}, [[limits]] {number}: drop, but the extended policy has no limit on {_spoken(entry)}")
        own[key] = entry
    for key, limit in inherited.items():
        if key not in own:
            yield limit
    for key, entry in own.items():
        if entry.drop:
            continue
        given = entry.model_dump(exclude={"drop"}, exclude_unset=True)
        before = inherited[key].model_dump(exclude_unset=True) if key in inherited else {}
        if {"warn", "fail", "guard"} & given.keys():
            # a new number needs its own reasons: those of the number it replaces would be borrowed plumes
            before = {k: v for k, v in before.items() if k not in {"rationale", "origin"}}
        yield validated(Limit, {**before, **given}, f"{where}, limit on {_spoken(entry)}")


def _spoken(entry: _LimitEntry | Limit) -> str:
    """``TLA602 tpr_gap {sex = "*"}``"""
    slice = ", ".join(f'{k} = "{v}"' for k, v in sorted(entry.slice.items()))
    return f"{entry.check} {entry.metric}" + (f" {{{slice}}}" if slice else "")


# -- lint -------------------------------------------------------------------------------------------------------------


class Lint(Record):
    """One remark of ``policy lint``. ``error``: must be put right; ``note``: worth a look."""

    level: Literal["error", "note"]
    text: str


def lint(
    policy: Policy, *, today: datetime.date, known_checks: Sequence[str] = (), strict: bool = False, frameworks: Sequence[str] = ()
) -> tuple[Lint, ...]:
    """What is wrong or doubtful in a resolved policy: limits never met or never reached, expired waivers, minima, missing rationales."""
    remarks: list[Lint] = []

    def say(level: Literal["error", "note"], text: str) -> None:
        remarks.append(Lint(level=level, text=text))

    for limit in policy.limits:
        name = _spoken(limit)
        if known_checks and limit.check not in known_checks:
            say("note", f"{name}: this installation has no check {limit.check}{did_you_mean(limit.check, known_checks)}")
        for remark in _contradictions(limit):
            say("error", f"{name}: {remark}")
        if limit.min_n is not None and limit.min_n < policy.rules.suppress_below:
            say("error", f"{name}: min_n = {limit.min_n} is below suppress_below = {policy.rules.suppress_below}")
        if not limit.rationale:
            say("error" if strict else "note", f"{name}: {NO_RATIONALE}")
        if limit.rule == "point":
            say("note", f"{name}: point rule, interval ignored")
    if policy.rules.min_n < policy.rules.suppress_below:
        say("error", f"[rules] min_n = {policy.rules.min_n} is below suppress_below = {policy.rules.suppress_below}")
    for code in policy.add_checks or ():
        if known_checks and code not in known_checks:
            say("error", f"add_checks: this installation has no check {code}{did_you_mean(code, known_checks)}")
    for waiver in policy.waivers:
        if not waiver.active(today):
            say("error", f"waiver on {waiver.check} expired on {waiver.expires}: it has no effect")
        elif waiver.check not in {limit.check for limit in policy.limits}:
            say("error", f"waiver on {waiver.check}: the policy sets no limit there")
    for code in sorted({*(w.check for w in policy.waivers), *(r.check for r in policy.reviews)}):
        if known_checks and code not in known_checks:
            say("note", f"this installation has no check {code}{did_you_mean(code, known_checks)}")
    for clause in sorted({c for limit in policy.limits for c in limit.clauses if c.split(":")[0] not in {*policy.frameworks, *frameworks}}):
        say("error", f"clause {clause}: its framework is not among the policy's frameworks")
    if not policy.approved_by:
        say("note", "approved_by is empty: reports say that a risk owner must approve this policy")
    return tuple(remarks)


# Metrics whose values cannot leave [0, 1]: a bound outside makes a limit that is never met, or never broken.
_UNIT = frozenset({"accuracy", "balanced_accuracy", "f1_macro", "auroc", "average_precision", "recall", "precision", "f1", "c2st_auc",
    "label_tvd", "ks", "tvd", "excluded_share", "group_unknown_share", "worst_class_recall", "attack_auc", "declared_present_share",
    "lineage_fields_present", "base_sha256_match", "adapted_sha256_match", "gate_passed", "completeness_bad_share",
    "c2st_auc_class", "c2st_auc_slice", "accuracy_slice", "output_ks", "negative_flip_rate", "uncovered_share", "impact_ratio"})  # fmt: skip
# Metrics whose values cannot leave [-1, 1].
_SIGNED = frozenset({"accuracy_change", "gain_over_scratch", "gain_over_head", "gain_over_base", "majority_gain", "accuracy_gap", "tpr_gap",
    "fpr_gap", "selection_rate_gap", "recall_gap", "negative_flip_rate_gap", "generalisation_gap",
    "accuracy_drop", "augmented_accuracy_drop", "slice_error_excess", "trigger_over_placebo", "overconfidence",
    "backward_transfer", "backward_transfer_class"})  # fmt: skip


def value_range(metric: str) -> tuple[float, float] | None:
    """The values that a metric can take, None where there is no bound or it is not known."""
    if metric in _UNIT:
        return 0.0, 1.0
    return (-1.0, 1.0) if metric in _SIGNED else None


def _contradictions(limit: Limit) -> Iterator[str]:
    warn, fail = limit.warn, limit.fail
    if warn is not None and fail is not None and fail.kind == warn.kind:
        looser = fail.value > warn.value if warn.kind == "min" else fail.value < warn.value
        if looser:
            yield f"warn {warn.kind} {warn.value:g} lies beyond fail {fail.kind} {fail.value:g}: it can never be the first to fire"
    limits = value_range(limit.metric)
    if limits is None or limit.relative_to_null:
        return
    low, high = limits
    for level, bound in (("warn", warn), ("fail", fail)):
        if bound is None:
            continue
        if (bound.kind == "max" and bound.value < low) or (bound.kind == "min" and bound.value > high):
            yield f"{level} {bound.kind} {bound.value:g} can never be met: the metric lies in [{low:g}, {high:g}]"
        elif (bound.kind == "max" and bound.value >= high) or (bound.kind == "min" and bound.value <= low):
            yield f"{level} {bound.kind} {bound.value:g} can never be broken: the metric lies in [{low:g}, {high:g}]"


def severity_rank(severity: Severity) -> int:
    """0 for critical ... 4 for info."""
    return SEVERITIES.index(severity)
