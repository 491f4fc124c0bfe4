"""params.yaml from text to typed sections, with errors that a person can act on."""

from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from unimed.errors import InputError

LIMITS = {"greater_than": (">", "gt"), "greater_than_equal": (">=", "ge"), "less_than": ("<", "lt"), "less_than_equal": ("<=", "le")}
"""Pydantic's names of range errors: the sign to print, and where it keeps the bound."""


def load(text: str) -> dict[str, Any]:
    """The mapping in a text of YAML; raises `InputError` for anything else."""
    try:
        params = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise InputError(f"params.yaml, line {line}: expected YAML, found a mistake: {error.problem}") from None
    except yaml.YAMLError as error:
        raise InputError(f"params.yaml: expected YAML, found a mistake: {str(error).splitlines()[0]}") from None
    if not isinstance(params, dict):
        raise InputError(f"params.yaml: expected sections, found {type(params).__name__}")
    return params


def parse(name: str, kind: Any, params: dict[str, Any]) -> Any:
    """The value of one top-level key as its type; raises `InputError` with a sentence per fault."""
    if name not in params:
        raise InputError(f"params.yaml: {name} is missing")
    try:
        return TypeAdapter(kind).validate_python(params[name])
    except ValidationError as error:
        faults = [_sentence(name, fault) for fault in error.errors(include_url=False)]
        raise InputError("; ".join(f"params.yaml: {fault}" for fault in faults)) from None


def check_keys(params: dict[str, Any], known: set[str]) -> None:
    """Raise `InputError` when `params` has a key outside `known`."""
    if unknown := sorted(params.keys() - known):
        raise InputError(f"params.yaml: {', '.join(unknown)} is not a known key; known are {', '.join(sorted(known))}")


def _sentence(name: str, fault: Any) -> str:
    # What stands in parentheses is the name of a kind of section, not a key.
    where = ".".join([name, *(part for part in map(str, fault["loc"]) if not part.startswith("("))])
    kind, found = fault["type"], fault["input"]
    if kind == "extra_forbidden":
        return f"{where} is not a known key"
    if kind == "missing":
        return f"{where} is missing"
    if kind in LIMITS:
        sign, bound = LIMITS[kind]
        return f"{where} must be {sign} {fault['ctx'][bound]:g}, is {found}"
    if kind == "value_error":
        return f"{where}: {fault['ctx']['error']}"
    expected = fault["msg"].removeprefix("Input should be ")
    return f"{where} must be {expected}, is {found!r}"


def flat(params: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested params as one level with dotted keys."""
    level: dict[str, Any] = {}
    for key, value in params.items():
        level |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return level
