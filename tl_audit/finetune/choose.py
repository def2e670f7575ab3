"""Which tensors move: glob patterns over module and parameter names, the frozen rest, and the modules that must stay in ``eval()``."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from torch import nn

from tl_audit.errors import ConfigError

HEAD: Final = "head"
"pattern word: the task's head (and its auxiliary heads), whatever the architecture calls it"


@dataclass(frozen=True)
class Choice:
    """What one stage moves.

    Attributes
    ----------
    trainable : parameter names that move, in registration order
    frozen : names of parameters and buffers declared frozen (TLA103): all parameters that do not move, every buffer of a module whose own parameters
        are all frozen, and every buffer of a module without parameters that no pattern names
    evaluated : names of the modules that stay in ``eval()`` while training
    """

    trainable: tuple[str, ...]
    frozen: tuple[str, ...]
    evaluated: tuple[str, ...]


def choose(module: nn.Module, patterns: Sequence[str], heads: Sequence[str]) -> Choice:
    """What the patterns of a stage select.

    A pattern that names a module selects everything below it; one that names a parameter selects that parameter.

    Parameters
    ----------
    heads : module paths of the head; what the word "head" stands for

    Raises
    ------
    ConfigError : a pattern matches nothing (with close names), or nothing would move
    """
    chosen_modules, chosen_parameters = _matches(module, patterns, heads)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    trainable_ids = {
        id(parameters[name]) for name in parameters if _below(name.rpartition(".")[0], chosen_modules) or name in chosen_parameters
    }
    # a tensor shared under two names moves under both
    trainable = tuple(name for name, p in parameters.items() if id(p) in trainable_ids)
    if not trainable:
        raise ConfigError(f"layers {list(patterns)}: they hold no parameters, so nothing would move")
    moving = set(trainable)
    saved = set(module.state_dict(keep_vars=True))
    frozen = [name for name in parameters if name not in moving and name in saved]
    evaluated: list[str] = []
    idle_roots: list[str] = []
    for path, part in module.named_modules():
        own = [_join(path, name) for name, _ in part.named_parameters(recurse=False)]
        below = [_join(path, name) for name, _ in part.named_parameters(remove_duplicate=False)]
        buffers = [_join(path, name) for name, _ in part.named_buffers(recurse=False)]
        still = bool(own) and not any(name in moving for name in own)
        passive = not own and bool(buffers) and not _below(path, chosen_modules)
        if below and not any(name in moving for name in below):
            idle_roots.append(path)
        # a block without one moving parameter behaves as at inference: the dropout and stochastic depth inside it are off too
        if still or passive or _below(path, idle_roots):
            evaluated.append(path)
        if still or passive:
            frozen += [name for name in buffers if name in saved]
    return Choice(trainable, tuple(dict.fromkeys(frozen)), tuple(evaluated))


def freeze(module: nn.Module, choice: Choice) -> None:
    """Sets ``requires_grad`` of every parameter as chosen. Done before a fit, never inside one (HARDENING L1, L3)."""
    moving = set(choice.trainable)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(name in moving)


def set_modes(module: nn.Module, choice: Choice) -> None:
    """Training mode, but ``eval()`` for what is frozen: batch statistics and dropout of frozen parts are those of inference."""
    module.train()
    for path in choice.evaluated:
        # not .eval(): a child with moving parameters keeps its own mode
        module.get_submodule(path).training = False


def is_head_only(patterns: Sequence[str]) -> bool:
    return set(patterns) == {HEAD}


def _matches(module: nn.Module, patterns: Sequence[str], heads: Sequence[str]) -> tuple[list[str], set[str]]:
    names = [name for name, _ in module.named_modules() if name]
    parameters = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    chosen: list[str] = []
    single: set[str] = set()
    for pattern in patterns:
        if pattern == HEAD:
            if not heads:
                raise ConfigError('layers = "head": the head of this network is not known; give head="path" with the Model')
            chosen += heads
            continue
        if pattern == "*":
            chosen.append("")
            continue
        hits = [name for name in names if fnmatchcase(name, pattern)]
        hits_single = [name for name in parameters if fnmatchcase(name, pattern)]
        if not hits and not hits_single:
            plain = pattern.replace("*", "").strip(".[]") or pattern
            near = difflib.get_close_matches(plain, [*names, HEAD], n=5, cutoff=0.4) or [n for n in names if "." not in n][:12]
            raise ConfigError(f"layers {pattern!r} matches no module of the network; close names: {', '.join(near)}")
        chosen += hits
        single |= set(hits_single)
    return chosen, single


def _below(path: str, roots: Sequence[str]) -> bool:
    return any(root == "" or path == root or path.startswith(root + ".") for root in roots)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
