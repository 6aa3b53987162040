"""Beat's entries: when each was last sent and is due, how its last run ended, what was skipped; one sent now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from graft.config.deployment import app, settings
from graft.config.redis_client import server_time, shared
from graft.scripts.commands import schedule as schedule_command
from graft.scripts.commands.schedule import Line
from graft.scripts.flower_pages.frame import Page, addresses
from graft.scripts.flower_pages.plans import Action, Given, Plan
from graft.tasks.guard import UPKEEP
from graft.tasks.health import beat_schedules, beat_ticks
from graft.tasks.queues import overlap


@dataclass(frozen=True)
class Schedule:
    """The entries, the next one first. ``beats`` are those that have sent something lately, each as host/pid."""

    lines: tuple[Line, ...]
    beats: tuple[str, ...]
    silence: float


class SchedulePage(Page):
    template = "graft_schedule.html"
    tab = "graft-more"
    title = "Schedule"
    every = 5.0

    def read(self, question: Any) -> Schedule:
        client = shared()
        alive = beat_ticks.alive(client, server_time(client), settings().health_silence)
        found = schedule_command.read(client, _entries(), alive)
        return Schedule(tuple(found), tuple(sorted(alive)), settings().health_silence)

    def has_call(self, line: Line) -> bool:
        """Whether there is a page of its last run: those of our own upkeep are not kept."""
        return line.result is not None and not line.task.startswith(UPKEEP)


def _entries() -> Mapping[str, Any]:
    entries: Mapping[str, Any] = app().conf.beat_schedule or {}
    return entries


def _entry(given: Given) -> tuple[str, Mapping[str, Any]]:
    name = given.get("entry", "")
    if name not in _entries():
        raise LookupError(f"there is no entry {name!r} in this app's schedule")
    return name, _entries()[name]


def _plan_run(given: Given) -> Plan:
    name, spec = _entry(given)
    return Plan(
        f"Run the entry {name} now",
        "It is sent once, at once, with its own arguments and options. Beat's next run stays as it is.",
        "Run it now", rows=(f"{spec['task']}, {beat_schedules.words(spec['schedule'])}",),
    )  # fmt: skip


def _run(given: Given) -> str:
    name, spec = _entry(given)
    options = {key: value for key, value in (spec.get("options") or {}).items() if key != "missed"}
    options["headers"] = {**(options.get("headers") or {}), overlap.ENTRY: name}
    sent = app().send_task(spec["task"], spec.get("args") or (), spec.get("kwargs") or {}, **options)
    return f"sent {name} as {getattr(sent, 'id', None) or 'nothing: its run before has not ended'}"


ACTIONS: Final = {"run-now": Action(_plan_run, _run)}
ADDRESSES: Final = addresses(r"/schedule", SchedulePage, "graft-schedule")
