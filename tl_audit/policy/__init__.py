"""Policy: limits as data, sample-size rules, declarations wanted, waivers. Judging: measurement -> finding. The gate.

rules    Rules: the part that checks receive
limits   Limit, Policy, load_policy, lint: TOML files, profiles, resolving, hashing
judge    judge: the rules of CHECKS.md 1.2, 1.3, 1.8
gate     gate, exit_code
toml     reading what a person wrote, with "did you mean"
"""

from tl_audit.policy.gate import exit_code, gate
from tl_audit.policy.judge import judge
from tl_audit.policy.limits import (
    FAIL_ON,
    Bound,
    DeclaredKey,
    FailOn,
    Limit,
    Lint,
    Policy,
    Review,
    Stage,
    Waiver,
    lint,
    load_policy,
    profiles,
    profiles_adding,
)
from tl_audit.policy.rules import Rules

__all__ = [
    "FAIL_ON",
    "Bound",
    "DeclaredKey",
    "FailOn",
    "Limit",
    "Lint",
    "Policy",
    "Review",
    "Rules",
    "Stage",
    "Waiver",
    "exit_code",
    "gate",
    "judge",
    "lint",
    "load_policy",
    "profiles",
    "profiles_adding",
]
