"""Dead letters: by cause, one by one, each with its error and runs; replayed at a rate, dropped, exported."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Final

from tornado import web
from tornado.web import url

from graft.config.redis_client import shared
from graft.config.words import several
from graft.scripts.commands.dead_letters import masked, older_than_the_failures
from graft.scripts.commands.dead_letters.options import Chosen
from graft.scripts.flower_pages.filters import Filter, Filters, seconds
from graft.scripts.flower_pages.frame import Page, Paged, addresses, readings
from graft.scripts.flower_pages.jobs import STOP, JobLine, jobs
from graft.scripts.flower_pages.plans import Action, Given, Plan
from graft.tasks.dead_letters import replay as dead_letter_replay
from graft.tasks.dead_letters import store
from graft.tasks.dead_letters.descriptions import Descriptions
from graft.tasks.dead_letters.query import Cause, Choice, causes
from graft.tasks.dead_letters.store import DeadLetter
from graft.tasks.queues import existing
from graft.tasks.results import attempts
from graft.tasks.results.attempts import Attempt

FILTERS: Final = (
    Filter("function", "Callable", "e.g. shop.*"), Filter("error", "Part of the error"), Filter("queue", "Queue"),
    Filter("reason", "Reason", "e.g. failed, poisoned"), Filter("newer", "Newer than", "e.g. 90s, 2h, 7d", is_age=True),
    Filter("older", "Older than", "e.g. 90s, 2h, 7d", is_age=True), Filter("fingerprint", "Cause"),
)  # fmt: skip
CHOOSING: Final = (*(one.name for one in FILTERS), "ids")
CAUSES: Final = 20
HOURS: Final = 24
RECENT: Final = 5000  # Letters, and causes of theirs, on the start page.
RECENT_CAUSES: Final = 5
RECENT_BUDGET: Final = 0.3  # Seconds.
CAUSES_FRESH: Final = 3.0
SHOWN: Final = 15
RATE: Final = 20.0  # Letters a second.
WHOLE: Final = 120.0  # Seconds in which all letters can be read, before something is done to them.
EXPORTED: Final = 50  # Letters in one piece of an export.


@cache
def descriptions() -> Descriptions:
    """The letters that this process knows."""
    return Descriptions()


class RecentCauses:
    """The most frequent causes of the last day's newest letters; looked for every few seconds."""

    def __init__(self) -> None:
        self._at = -math.inf
        self._causes: tuple[Cause, ...] = ()

    def look(self) -> tuple[Cause, ...]:
        if time.monotonic() - self._at > CAUSES_FRESH:
            every, _ = descriptions().look(RECENT_BUDGET)
            since = time.time() - HOURS * 3600
            self._causes = tuple(causes([one for one in every[:RECENT] if one.buried_at >= since])[:RECENT_CAUSES])
            self._at = time.monotonic()
        return self._causes


@cache
def recent_causes() -> RecentCauses:
    """Those of this process."""
    return RecentCauses()


def choice_of(given: Iterable[tuple[str, str]]) -> Choice:
    """The choice that filters of an address or form make.

    Raises:
        ValueError: a duration cannot be read.
    """
    said = {name: text for name, text in given if text}
    now = time.time()
    return Choice(
        ids=frozenset(said.get("ids", "").split()), reason=said.get("reason"), function=said.get("function"),
        queue=said.get("queue"), fingerprint=said.get("fingerprint"), error=said.get("error"),
        after=now - seconds(said["newer"]) if "newer" in said else None,
        before=now - seconds(said["older"]) if "older" in said else None,
    )  # fmt: skip


@dataclass(frozen=True)
class CauseRow:
    """One cause, and when its letters of the last day were buried: counts by the hour, the oldest first."""

    cause: Cause
    hours: tuple[int, ...]


@dataclass(frozen=True)
class Letters:
    """The letters that match: their causes, and one page of them. ``unread`` are letters that are not read yet."""

    causes: tuple[CauseRow, ...]
    cause_count: int
    rows: tuple[DeadLetter, ...]
    paged: Paged
    unread: int
    kept: int
    filters: dict[str, str]
    jobs: tuple[JobLine, ...]


class LettersPage(Page):
    template = "graft_letters.html"
    tab = "graft-letters"
    title = "Dead letters"
    every = 3.0
    share = 1.0  # While there are letters to read it goes on with them.
    filters = FILTERS

    def question(self, *path: str) -> Hashable:
        return self.filters_asked(), self.page_asked()

    def read(self, question: tuple[Filters, int]) -> Letters:
        filters, page = question
        every, unread = descriptions().look()
        return letters_page(every, unread, dict(filters), page)


def letters_page(every: Sequence[DeadLetter], unread: int, filters: dict[str, str], page: int) -> Letters:
    """The page of those of *every* letter that match."""
    choice = choice_of(filters.items())
    matching = [letter for letter in every if choice.holds(letter)]
    found = causes(matching)
    hours = _hours(found[:CAUSES], matching)
    paged = Paged(page, len(matching))
    return Letters(
        tuple(CauseRow(cause, tuple(hours[cause.fingerprint])) for cause in found[:CAUSES]), len(found),
        tuple(matching[paged.first : paged.first + paged.rows]), paged, unread, len(every), filters, jobs().lines(),
    )  # fmt: skip


def _hours(found: Sequence[Cause], letters: Iterable[DeadLetter]) -> dict[str, list[int]]:
    """For each of those causes its letters by the hour of the last day, the oldest first; *letters* newest first."""
    now, counts = time.time(), {cause.fingerprint: [0] * HOURS for cause in found}
    for letter in letters:
        hour = max(0, int((now - letter.buried_at) // 3600))
        if hour >= HOURS:
            break
        if letter.fingerprint in counts:
            counts[letter.fingerprint][HOURS - 1 - hour] += 1
    return counts


@dataclass(frozen=True)
class LetterLook:
    """One letter. ``arguments`` are shown as they are kept, where they are text; nothing is unpickled."""

    letter: DeadLetter
    arguments: str
    kept_bytes: int
    replays: int
    runs: tuple[Attempt, ...]


class LetterPage(Page):
    template = "graft_letter.html"
    tab = "graft-letters"
    title = "Dead letter"
    every = 10.0

    def read(self, question: tuple[str]) -> LetterLook:
        (name,) = question
        letter = next(store.read([name]), None)
        if letter is None:
            raise LookupError(f"there is no dead letter {name}: it was replayed, dropped, or has expired")
        kept = letter.envelope
        arguments = masked(kept) if kept.startswith("{") else ""
        runs = attempts.of(name.partition(":")[0], shared())
        slim = DeadLetter(**{**asdict(letter), "envelope": ""})
        return LetterLook(slim, arguments, len(kept), store.replays([name])[0], tuple(runs[-SHOWN:]))


class Export(Page):
    """Whole letters as JSON lines, the newest first, as they are read."""

    @web.authenticated
    async def get(self, *path: str) -> None:
        given = [(name, self.asked(name)) for name in CHOOSING]
        try:
            choice = choice_of(given)
        except ValueError as error:
            raise web.HTTPError(400, str(error)) from error
        ids = [letter.id for letter in await readings().run(_matching, choice)]
        self.set_header("Content-Type", "application/jsonl; charset=UTF-8")
        self.set_header("Content-Disposition", 'attachment; filename="dead-letters.jsonl"')
        for at in range(0, len(ids), EXPORTED):
            for letter in await readings().run(lambda page: list(store.read(page)), ids[at : at + EXPORTED]):
                self.write(json.dumps(asdict(letter)) + "\n")
            await self.flush()


# ---- what the buttons do ----


def _matching(choice: Choice) -> list[DeadLetter]:
    every, unread = descriptions().look(WHOLE)
    if unread:
        raise ValueError(f"{several(unread, 'letter', 'are')} not read yet; try again in a minute")
    return [letter for letter in every if choice.holds(letter)]


def chosen(given: Given) -> list[DeadLetter]:
    """The letters that a form means, the oldest first. Those of the reason ``failed`` must be meant by name.

    Raises:
        ValueError: none, or a form without any condition.
    """
    choice = choice_of((name, given.get(name, "")) for name in CHOOSING)
    if choice.is_everything and not given.get("everything"):
        raise ValueError("choose letters by hand or by a filter")
    found = [one for one in _matching(choice) if choice.names_failed or one.reason != "failed"]
    if not found:
        failed = "; those of the reason `failed` are meant by reason, cause or id" if not choice.names_failed else ""
        raise ValueError(f"no dead letter matches{failed}")
    return found[::-1]


def _replay_row(letter: DeadLetter, target: str | None) -> str:
    try:
        message = dead_letter_replay.message_of(letter, target)
    except dead_letter_replay.NotReplayable as error:
        return f"{letter.id} is kept: {error}"
    return f"{letter.id} to {message.queue}: {several(letter.items, 'item')} of {letter.function}"


def _target(given: Given) -> str | None:
    return existing.checked(given["target"]) if given.get("target") else None


def _rate(given: Given) -> float:
    try:
        rate = float(given.get("rate") or RATE)
    except ValueError:
        raise ValueError(f"rate={given['rate']!r} is not a number of letters a second") from None
    if not 0 < rate <= 10_000:
        raise ValueError(f"rate={rate:g} must be above 0 and at most 10,000 letters a second")
    return rate


def _plan_replay(given: Given) -> Plan:
    found, target, rate = chosen(given), _target(given), _rate(given)
    items = sum(letter.items for letter in found)
    old = older_than_the_failures([Chosen(one.id, one.items, one.function, one.buried_at) for one in found])
    note = (
        f"{several(len(old), 'worker')} started before the last of these failures, so with the code of then. If it "
        f"was mended, restart them first: {', '.join(old[:5])}."
        if old
        else ""
    )
    rows = tuple(_replay_row(letter, target) for letter in store.read([one.id for one in found[:SHOWN]]))
    return Plan(
        f"Replay {several(len(found), 'dead letter')} ({several(items, 'item')})",
        f"They are sent again, the oldest first, {rate:g} a second, and run anew; each letter is removed once its "
        f"message is sent. That takes about {len(found) / rate:,.0f} s and goes on in the background.",
        "Replay them", len(found), rows, note,
        choices=(
            ("rate", "Letters a second", f"{rate:g}"),
            ("target", "Another queue than the one that each came from (empty: that one)", given.get("target", "")),
        ),
    )  # fmt: skip


def _replay(given: Given) -> str:
    found, target, rate = chosen(given), _target(given), _rate(given)

    def step(letter_id: str) -> bool:
        letter = next(store.read([letter_id]), None)
        return letter is not None and dead_letter_replay.replay(letter, target)

    jobs().start(given["act"], f"Replay {several(len(found), 'dead letter')}", [one.id for one in found], step, rate)
    return f"sending {several(len(found), 'dead letter')} again, {rate:g} a second"


def _plan_drop(given: Given) -> Plan:
    found = chosen(given)
    items = sum(letter.items for letter in found)
    rows = tuple(f"{one.id}: {several(one.items, 'item')} of {one.function}" for one in found[:SHOWN])
    return Plan(
        f"Drop {several(len(found), 'dead letter')} ({several(items, 'item')})",
        "They are removed for good. To keep a copy, export them first.", "Drop them", len(found), rows, is_grave=True,
    )  # fmt: skip


def _drop(given: Given) -> str:
    found = chosen(given)

    def step(letter_id: str) -> bool:
        return any(map(store.remove, store.read([letter_id])))

    jobs().start(given["act"], f"Drop {several(len(found), 'dead letter')}", [one.id for one in found], step)
    return f"removing {several(len(found), 'dead letter')}"


ACTIONS: Final = {
    "replay": Action(_plan_replay, _replay),
    "drop": Action(_plan_drop, _drop),
    "stop-job": STOP,
}
ADDRESSES: Final[list[Any]] = [
    *addresses(r"/dead-letters", LettersPage, "graft-letters"),
    *addresses(r"/dead-letter/(.+)", LetterPage, "graft-letter"),
    url(r"/graft/dead-letters\.jsonl", Export, name="graft-letters-export"),
]
