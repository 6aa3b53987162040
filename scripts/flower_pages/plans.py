"""What a button does: a plan for people to confirm, and the act. Pages list their own in ``ACTIONS``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Given = Mapping[str, str]


@dataclass(frozen=True)
class Plan:
    """What would happen: ``title`` says it in one line, ``effect`` what follows, ``rows`` show to what, some of it.

    ``count`` is to how many; ``is_grave``: it cannot be undone. ``choices`` are fields that the person may still set,
    name -> (label, value).
    """

    title: str
    effect: str
    button: str
    count: int = 1
    rows: tuple[str, ...] = ()
    note: str = ""
    is_grave: bool = False
    choices: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class Action:
    """``plan`` reads and changes nothing; ``do`` acts, and says what was done. Both run in a thread.

    ``do`` is given the id of its ``act`` beside the fields of the form.

    Raises:
        ValueError, LookupError, TaskQueueError: it cannot be done; nothing was.
    """

    plan: Callable[[Given], Plan]
    do: Callable[[Given], str]
