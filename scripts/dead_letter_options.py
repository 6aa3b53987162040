"""Which letters a person means, and whether they are sure."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from functools import wraps
from itertools import islice
from typing import Any, Final, NamedTuple

import click

from graft.scripts.console import complain, say
from graft.tasks import deadletters
from graft.tasks.deadletter_choice import Choice
from graft.tasks.deadletters import DeadLetter

UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
NOT_CONFIRMED: Final = 2


class Age(click.ParamType):  # type: ignore[type-arg]  # Generic in newer releases of click alone.
    """A duration such as 90s, 15m, 2h or 7d, in seconds."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", value)
        if found is None:
            self.fail(f"{value!r} is not a duration; write for instance 90s, 15m, 2h or 7d", param, ctx)
        return float(found[1]) * UNITS[found[2]]


def choosing(func: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which letters are meant; they arrive as one ``choice``."""

    @wraps(func)  # With the options that it has already.
    def choose(
        ids: tuple[str, ...], older: float | None, newer: float | None, reason: str | None, function: str | None,
        queue: str | None, fingerprint: str | None, error: str | None, **rest: Any,
    ) -> Any:  # fmt: skip
        now = time.time()
        choice = Choice(
            ids=frozenset(ids),
            reason=reason,
            function=function,
            queue=queue,
            fingerprint=fingerprint,
            error=error,
            after=None if newer is None else now - newer,
            before=None if older is None else now - older,
        )
        return func(choice=choice, **rest)

    for decorate in (
        click.option("--newer-than", "newer", type=Age(), help="Buried within this time: 90s, 15m, 2h, 7d."),
        click.option("--older-than", "older", type=Age(), help="Buried longer ago than this."),
        click.option("--error", help="A part of the error's text, in any case."),
        click.option("--fingerprint", help="The cause, as `list` shows it; its beginning is enough."),
        click.option("--queue", help="The queue that they came from."),
        click.option("--function", metavar="PATTERN", help="The callable or task; * and ? are wildcards."),
        click.option("--reason", metavar="REASON", help="poisoned, retries_exhausted, time_limit, bad_signature …"),
        click.argument("ids", nargs=-1, metavar="[ID]..."),
    ):
        choose = decorate(choose)
    return choose


def found(choice: Choice, newest_first: bool = False) -> Iterator[DeadLetter]:
    """The letters that are meant, as they are kept now."""
    wanted = sorted(choice.ids) if choice.ids else deadletters.ids(choice.after or 0.0)
    return filter(choice.holds, deadletters.read(wanted[::-1] if newest_first else wanted))


class Chosen(NamedTuple):
    """What is remembered of a letter until its turn comes: all of them whole could be more than memory holds."""

    id: str
    items: int
    function: str


def chosen(choice: Choice, everything: bool, limit: int | None = None) -> list[Chosen]:
    """The letters to change: nobody means all of them by saying nothing."""
    if choice.is_everything and not everything:
        raise click.UsageError("say which letters: an ID, a filter (see --help), or --all")
    letters = [Chosen(each.id, each.items, each.function) for each in islice(found(choice), limit)]
    if not letters:
        say("No dead letter matches.")
        raise SystemExit(0)
    return letters


def confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        complain(f"{question} Nothing was done: add --yes, there is no terminal to ask at")
        raise SystemExit(NOT_CONFIRMED)
    if not click.confirm(question, err=True):
        raise SystemExit(NOT_CONFIRMED)
