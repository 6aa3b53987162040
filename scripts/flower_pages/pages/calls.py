"""Calls: those under way, and how each run of the last day ended, found by callable, queue, state, error; and one call.

What is under way is read from the messages that wait and that workers hold. The runs are those that ``track`` shows,
kept in Redis (``GRAFT_ATTEMPTS_BYTES``): a restart of Flower forgets nothing.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from graft.config.deployment import settings
from graft.config.redis_client import patient_broker, shared
from graft.scripts.commands import track
from graft.scripts.flower_pages.filters import Filter, Filters, seconds
from graft.scripts.flower_pages.frame import ROWS, Page, addresses
from graft.scripts.flower_pages.moments import moments
from graft.tasks.dead_letters import store
from graft.tasks.queues.locate import Location
from graft.tasks.queues.under_way import STATES, CallUnderWay, Search, search
from graft.tasks.results import attempts
from graft.tasks.results.attempts import Attempt

OUTCOMES: Final = ("succeeded", "failed", "runs again", "given back", "ignored")
FEW: Final = 10  # Calls under way that are shown above the runs that have ended.
OF_RUNS: Final = ("error", "worker")  # What only a run that has ended says.


@dataclass(frozen=True)
class Calls:
    """The runs that match, the last that ended first. ``after`` is where the next page begins, "" at the end.

    ``under_way`` are calls that have not ended and match; None where none is asked for.
    """

    under_way: Search | None
    rows: tuple[Attempt, ...]
    seen: int
    after: str
    filters: dict[str, str]
    kept_bytes: int
    hours: float


class CallsPage(Page):
    template = "graft_calls.html"
    tab = "graft-calls"
    title = "Calls"
    every = 3.0
    filters = (
        Filter("id", "Id of a call or batch"), Filter("function", "Callable", "e.g. shop.*"),
        Filter("state", "State", choices=(*STATES, *OUTCOMES)), Filter("error", "Part of the error"),
        Filter("queue", "Queue"), Filter("worker", "Part of the worker"),
        Filter("newer", "Newer than", "e.g. 15m, 2h", is_age=True),
    )  # fmt: skip

    def question(self, *path: str) -> Hashable:
        after = self.asked("after")
        if after and not all(part.isdecimal() for part in after.split("-", 1)):
            raise ValueError(f"after={after!r:.60} is not a place in the runs")
        return self.filters_asked(), after

    def read(self, question: tuple[Filters, str]) -> Calls:
        filters, after = question
        said = dict(filters)
        under_way = _under_way(said) if not after else None
        hours = settings().attempts_ttl / 3600
        if said.get("state") in STATES:
            return Calls(under_way, (), 0, "", said, settings().attempts_bytes, hours)
        since = time.time() - seconds(said["newer"]) if "newer" in said else 0.0

        def holds(run: Attempt) -> bool:
            return (
                ("id" not in said or said["id"] in (run.id, run.batch))
                and ("function" not in said or fnmatchcase(run.name, said["function"]))
                and ("queue" not in said or said["queue"][: attempts.LONGEST_QUEUE] == run.queue)
                and ("worker" not in said or said["worker"] in run.worker)
                and ("state" not in said or outcome_of(run) == said["state"])
                and ("error" not in said or said["error"].casefold() in run.error.casefold())
                and run.ended >= since
            )

        found = attempts.search(holds, ROWS, shared(), after=after)
        return Calls(under_way, found.found, found.seen, found.after, said, settings().attempts_bytes, hours)


def _under_way(said: Mapping[str, str]) -> Search | None:
    """The calls that have not ended, as far as the filters mean them."""
    state = said.get("state", "")
    if state in OUTCOMES or any(name in said for name in OF_RUNS):
        return None
    since = time.time() - seconds(said["newer"]) if "newer" in said else None

    def holds(one: CallUnderWay) -> bool:
        return (
            ("id" not in said or said["id"] in (one.id, one.batch))
            and ("function" not in said or fnmatchcase(one.function, said["function"]))
            and ("queue" not in said or said["queue"] == one.queue)
            and (not state or one.state == state)
            and (since is None or (one.sent or 0.0) >= since)
        )

    queues = [line.name for line in moments().take().now.queues if line.waiting]
    if "queue" in said:
        queues = [name for name in queues if name == said["queue"]]
    states = [state] if state else STATES
    return search(holds, ROWS if state else FEW, patient_broker(), queues=queues, states=states)


def outcome_of(run: Attempt) -> str:
    """One word for how a run ended: an envelope's own outcome counts its items."""
    if run.outcome in ("runs again", "given back", "ignored"):
        return run.outcome
    return "failed" if run.error else "succeeded"


@dataclass(frozen=True)
class CallLook:
    """One call: its state, its runs, where its message is, and its dead letters."""

    id: str
    state: str
    function: str
    batch: str
    sent: float | None
    location: Location | None
    workers: dict[str, str]
    result: str
    runs: tuple[Attempt, ...]
    lost_runs: int
    letters: tuple[str, ...]
    is_batch: bool


class CallPage(Page):
    template = "graft_call.html"
    tab = "graft-calls"
    title = "Call"
    every = 5.0

    def is_known_to_flower(self, name: str) -> bool:
        """Whether Flower has heard of the task, by events, and so has a page of it."""
        return name in self.application.events.state.tasks

    def read(self, question: tuple[str]) -> CallLook:
        (name,) = question
        runs = attempts.of(name, shared())
        found = track.look_for(name, runs)
        if found.is_unknown:
            raise LookupError(f"nothing is known of {name}: it was never sent here, or ended too long ago")
        letters = store.of_call(name)
        return CallLook(
            name, found.state, runs[-1].name if runs else "", found.batch, found.traces.record.created,
            found.traces.location, found.workers, found.traces.state, tuple(runs[-ROWS:]), track.lost_runs(runs),
            tuple(letters[:ROWS]), bool(runs) and all(run.batch == name for run in runs),
        )  # fmt: skip


ADDRESSES: Final = [*addresses(r"/calls", CallsPage, "graft-calls"), *addresses(r"/call/(.+)", CallPage, "graft-call")]
