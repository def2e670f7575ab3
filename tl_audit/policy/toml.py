"""Reading TOML that a person wrote: size, duplicate keys, unknown keys with "did you mean", errors in one sentence."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from tl_audit.errors import ConfigError

MOST_BYTES = 2**20

_MESSAGE_STARTS = ("Value error, ", "Assertion failed, ")

ModelT = TypeVar("ModelT", bound=BaseModel)


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file of at most 1 MiB.

    Raises
    ------
    ConfigError : no such file, a folder, too large, not UTF-8, not TOML (duplicate keys included)
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise ConfigError(f"{path} is a folder; give the path of a TOML file")
        if size > MOST_BYTES:
            raise ConfigError(f"{path} holds {size} bytes; a configuration has at most {MOST_BYTES}")
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); give the path of a TOML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {str(error)[:200]}") from error


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``'; did you mean "x"?'`` or, without a near one, ``'; known: a, b'``."""
    names = sorted(set(known))
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f'; did you mean "{near[0]}"?'
    return f"; known: {', '.join(names)}" if names else ""


def validated(model: type[ModelT], data: Mapping[str, Any], where: str) -> ModelT:
    """``data`` as a ``model``; the first mistake becomes a ConfigError that names the place and the nearest known key."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_sentence(model, error)}") from error


def _sentence(model: type[BaseModel], error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    place = _place(first["loc"])
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        table = _place(first["loc"][:-1])
        return f'unknown key "{key}"' + (f" in [{table}]" if table else "") + did_you_mean(key, _keys_at(model, first["loc"][:-1]))
    if first["type"] == "missing":
        table = _place(first["loc"][:-1])
        return f'the key "{first["loc"][-1]}" is missing' + (f" in [{table}]" if table else "")
    message = str(first["msg"])
    for start in _MESSAGE_STARTS:
        message = message.removeprefix(start)
    if first["type"] == "model_type":
        message = "expected a table of keys"
    given = "" if isinstance(first.get("input"), Mapping | list) else f" (given: {str(first.get('input'))[:80]!r})"
    message = message[:1].lower() + message[1:]
    if str(first.get("input"))[:80] in message:
        given = ""
    return f"{place}: {message}{given}" if place else f"{message}{given}"


def _place(loc: tuple[int | str, ...]) -> str:
    """``limits[3].warn`` of a pydantic location; names of union members are left out."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part + 1}]"
        elif not (part[:1].isupper() or "[" in part or part in {"str", "bool", "float", "int"}):
            text += ("." if text else "") + part
    return text


def _keys_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The known keys of the table at a location inside a model."""
    here: type[BaseModel] | None = model
    for part in loc:
        if here is None:
            return []
        if isinstance(part, int) or part not in _fields(here):
            continue
        here = _model_in(_fields(here)[part])
    return [] if here is None else sorted(_fields(here))


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    """Key as written in the file -> annotation."""
    return {info.alias or name: info.annotation for name, info in model.model_fields.items()}


def _model_in(annotation: Any) -> type[BaseModel] | None:  # Any: a typing construct
    """The first model class inside an annotation such as ``tuple[Limit, ...]`` or ``Cue | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        found = _model_in(inner)
        if found is not None:
            return found
    return None
