"""The options that choose dead letters: by id, cause, function, queue, error or age."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import wraps
from itertools import islice
from typing import Any, NamedTuple

import click

from graft.scripts.commands.options import Age
from graft.scripts.console import say
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.dead_letters.query import Choice
from graft.tasks.dead_letters.store import DeadLetter


def choosing(func: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a command with the options that choose dead letters. The command gets them as one ``choice``."""

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
        click.option("--newer-than", "newer", type=Age(), help="Buried within this time: 90s, 15m, 2h or 7d."),
        click.option("--older-than", "older", type=Age(), help="Buried longer ago than this."),
        click.option("--error", help="Part of the error's text; upper and lower case are the same."),
        click.option("--fingerprint", help="The cause that `list` shows, or its beginning."),
        click.option("--queue", help="The queue that the envelope came from."),
        click.option("--function", metavar="PATTERN", help="The callable or task; * and ? are wildcards."),
        click.option(
            "--reason", metavar="REASON", help="failed, poisoned, retries_exhausted, time_limit, bad_signature …"
        ),
        click.argument("ids", nargs=-1, metavar="[ID]..."),
    ):
        choose = decorate(choose)
    return choose


def found(choice: Choice, newest_first: bool = False, *, failed: bool = True) -> Iterator[DeadLetter]:
    """The dead letters that match *choice*, read one after the other; *failed*: also those of that reason."""
    wanted = sorted(choice.ids) if choice.ids else dead_letters.ids(choice.after or 0.0, failed=failed)
    return filter(choice.holds, dead_letters.read(wanted[::-1] if newest_first else wanted))


class Chosen(NamedTuple):
    """The part of a dead letter that stays in memory until its turn: all of them whole may not fit."""

    id: str
    items: int
    function: str
    buried_at: float


def chosen(choice: Choice, everything: bool, limit: int | None = None) -> list[Chosen]:
    """The dead letters to change. Without a filter, *everything* must be given.

    Those of the reason ``failed`` are left alone unless they are named: their callers have had the error long ago.
    """
    if choice.is_everything and not everything:
        raise click.UsageError("choose dead letters by an ID, a filter (see --help) or --all")
    matching = found(choice, failed=choice.names_failed)
    letters = [Chosen(each.id, each.items, each.function, each.buried_at) for each in islice(matching, limit)]
    if not letters:
        say("No dead letter matches.")
        raise SystemExit(0)
    return letters
