"""Fields of a frozen dataclass that are read from the environment: by name, by type and within their bounds.

    run_limit: int = setting(3, ge=1, description="…")      GRAFT_RUN_LIMIT=5 makes 5 of it, =0 is refused

By hand, since every process of a deployment reads its settings: pydantic needed 0.1 s and 9 MB of each for that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from types import NoneType
from typing import Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")

PREFIX: Final = "GRAFT_"
TRUTHS: Final = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
BOUNDS: Final[dict[str, tuple[str, Callable[[Any, Any], bool]]]] = {
    "ge": ("at least", lambda value, limit: value >= limit),
    "gt": ("more than", lambda value, limit: value > limit),
    "le": ("at most", lambda value, limit: value <= limit),
    "lt": ("less than", lambda value, limit: value < limit),
}


class Secret:
    """A text that no repr and no message shows."""

    __slots__ = ("_text",)

    def __init__(self, text: str = "") -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(**)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


NO_SECRET: Final = Secret()


def setting(default: T, *, description: str, variable: str = "", repr: bool = True, **bounds: float) -> T:
    """A field of a dataclass; *bounds* are ge, gt, le and lt, *variable* is for a name without our prefix.

    The value of one without *repr* is shown nowhere.
    """
    assert bounds.keys() <= BOUNDS.keys()
    metadata = {"description": description, "variable": variable, "bounds": bounds}
    found: T = dataclasses.field(default=default, repr=repr, metadata=metadata)
    return found


def variable_of(field: dataclasses.Field[Any]) -> str:
    """The environment variable that *field* is read from."""
    return field.metadata["variable"] or f"{PREFIX}{field.name.upper()}"


def read(kind: type[Any], given: Mapping[str, object], environ: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """A value for each field of the dataclass *kind*, and what is wrong with those that cannot be used.

    What is *given*, by the names of fields, counts before *environ*, where upper and lower case are the same.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if strange := given.keys() - fields.keys():
        raise TypeError(f"{kind.__name__} has no {', '.join(sorted(strange))}")
    found = {name.upper(): text for name, text in environ.items()}
    values: dict[str, Any] = {}
    wrong: list[str] = []
    kinds = get_type_hints(kind)
    for name, field in fields.items():
        value = given[name] if name in given else found.get(variable_of(field), field.default)
        try:
            values[name] = _converted(kinds[name], value)
        except ValueError as error:
            wrong.append(_said(field, kinds[name], value, str(error)))
            continue
        wrong += [_said(field, kinds[name], value, fault) for fault in _beyond(field, values[name])]
    return values, wrong


def _converted(kind: Any, value: Any) -> Any:
    """*value*, a text of the environment or what a caller gave, as *kind*; a ValueError says what it must be."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"must be {' or '.join(get_args(kind))}")
        return value
    if NoneType in get_args(kind):
        return None if value is None else _converted(get_args(kind)[0], value)
    wanted, convert = KINDS[kind]
    try:
        return convert(value)
    except (ValueError, TypeError, KeyError, OverflowError):
        raise ValueError(f"must be {wanted}") from None


def _beyond(field: dataclasses.Field[Any], value: Any) -> Iterator[str]:
    for name, limit in field.metadata["bounds"].items():
        words, holds = BOUNDS[name]
        if value is not None and not holds(value, limit):
            yield f"must be {words} {limit:g}"


def _said(field: dataclasses.Field[Any], kind: Any, value: object, fault: str) -> str:
    shown = f"={value}" if field.repr and kind is not Secret else ""
    return f"{variable_of(field)}{shown} {fault}"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _secret(value: Any) -> Secret:
    return value if isinstance(value, Secret) else Secret(_text(value))


def _truth(value: Any) -> bool:
    return value if isinstance(value, bool) else TRUTHS[_text(value).strip().lower()]


def _whole(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return int(_text(value))


def _number(value: Any) -> float:
    number = (
        float(value) if isinstance(value, float) else float(_text(value)) if isinstance(value, str) else _whole(value)
    )
    if math.isnan(number):
        raise ValueError
    return float(number)


KINDS: Final[dict[Any, tuple[str, Callable[[Any], Any]]]] = {
    str: ("text", _text),
    Secret: ("text", _secret),
    bool: ("true or false", _truth),
    int: ("a whole number", _whole),
    float: ("a number", _number),
}
