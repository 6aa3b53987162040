"""The fields by which a page is filtered: one form for all pages, read by the same lines. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from graft.scripts.commands.options import UNITS

Filters = tuple[tuple[str, str], ...]  # Those that are asked for: (name, text).


@dataclass(frozen=True)
class Filter:
    """One field. ``choices`` are all that may be asked for, if not any text; ``is_age``: it is a duration."""

    name: str
    label: str
    hint: str = ""
    choices: tuple[str, ...] = ()
    is_age: bool = False

    def checked(self, text: str) -> str:
        """*text*, if it can be asked for.

        Raises:
            ValueError: it is no duration where one is wanted, or not among the choices.
        """
        if self.is_age:
            seconds(text)
        if self.choices and text not in self.choices:
            raise ValueError(f"{self.name}={text!r:.60} is none of {', '.join(self.choices)}")
        return text


def seconds(text: str) -> float:
    """The seconds of a duration such as 90s, 15m, 2h or 7d.

    Raises:
        ValueError: *text* is none.
    """
    try:
        return float(text[:-1]) * UNITS[text[-1]]
    except (ValueError, KeyError, IndexError):
        raise ValueError(f"{text!r:.60} is not a duration; write for instance 90s, 15m, 2h or 7d") from None
