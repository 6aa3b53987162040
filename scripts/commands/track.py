"""``celery -A graft track ID``: what has become of one call, task, envelope or batch."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

import click
import redis
from kombu.exceptions import OperationalError
from rich.table import Table
from rich.text import Text

from graft.config.deployment import app, app_name, settings
from graft.config.redis_client import broker
from graft.config.words import several
from graft.scripts.commands.options import RedisCommand, examples
from graft.scripts.console import ago, complain, duration, output, say, show
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.queues import peek, purge
from graft.tasks.results import attempts, call_status
from graft.tasks.results.attempts import Attempt
from graft.tasks.results.call_status import CallStatus, Traces

NOT_FOUND: Final = 1
ASKED: Final = 1.0  # Seconds that workers have to say whether they hold the message.
LAST: Final = 30  # Runs of a batch that are shown.


@dataclass(frozen=True)
class Found:
    """What is known of one id. ``workers`` hold its message now; ``letters`` are ids of dead letters."""

    id: str
    state: CallStatus
    traces: Traces
    runs: list[Attempt]
    letters: list[str]
    workers: dict[str, str]

    @property
    def batch(self) -> str:
        return next((run.batch for run in self.runs if run.batch), "")

    @property
    def is_unknown(self) -> bool:
        return self.state == "unknown" and not self.runs and not self.letters


@click.command(cls=RedisCommand, epilog=examples(
    "celery -A graft track 5f0c…            the id that Flower, a log line or AsyncResult.id shows",
    "celery -A graft track 5f0c… --json",
))  # fmt: skip
@click.argument("call_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="JSON.")
def command(call_id: str, as_json: bool) -> None:
    """Say what has become of a call, a task, an envelope or a batch: its state, each run, where it is, its letters.

    Runs are remembered for GRAFT_ATTEMPTS_TTL, the latest in GRAFT_ATTEMPTS_BYTES of Redis's memory. The exit code
    is 1 when nothing is known of ID.
    """
    runs = attempts.of(call_id)
    if runs and all(run.batch == call_id for run in runs):
        show_batch(call_id, runs, as_json)
        return
    found = look_for(call_id, runs)
    if as_json:
        click.echo(json.dumps(as_record(found), indent=2))
    elif found.is_unknown:
        with broker() as client:
            waits, held = sum(1 for _ in purge.waiting_of(call_id, client)), peek.held(call_id, client)
        if waits or held:
            say(f"{call_id} is a batch of which nothing has ended yet. Show it: batch show {call_id}")
            return
        complain(
            f"nothing is known of {call_id}: it was never sent here, or it ended longer than "
            f"{settings().attempts_ttl / 3600:g} h ago (GRAFT_ATTEMPTS_TTL); batches: celery -A {app_name()} batch list"
        )
    else:
        show_call(found)
    if found.is_unknown:
        raise SystemExit(NOT_FOUND)


def look_for(call_id: str, runs: list[Attempt]) -> Found:
    """What is known of the call *call_id* now, beside its *runs* that have ended."""
    traces = call_status.traces(call_id)
    state = traces.status(time.time(), settings().result_ttl)
    if state == "unknown" and runs:
        state = "failed" if runs[-1].error and runs[-1].outcome != "runs again" else "expired"
    holds = traces.location is not None and traces.location.place == "held"
    return Found(call_id, state, traces, runs, dead_letters.of_call(call_id), holders(call_id) if holds else {})


def holders(call_id: str) -> dict[str, str]:
    """The workers that hold the message, each with what it does with it; none where nobody may ask, or answers."""
    try:
        replies = app().control.inspect(timeout=ASKED).query_task(call_id) or {}
    except (redis.RedisError, OperationalError):
        return {}
    words = {"active": "runs it", "reserved": "has fetched it", "ready": "has fetched it"}
    return {
        worker: words.get(state, state)
        for worker, tasks in replies.items()
        for state, _ in (tasks or {}).values()
    }  # fmt: skip


def as_record(found: Found) -> dict[str, Any]:
    where = found.traces.location
    return {
        "id": found.id, "state": found.state, "batch": found.batch or None,
        "place": asdict(where) if where else None, "workers": found.workers,
        "runs": [asdict(run) for run in found.runs], "letters": found.letters, "result": found.traces.state or None,
    }  # fmt: skip


def show_call(found: Found) -> None:
    for name, value in lines(found):
        output().print(f"{name:<10}{value}", markup=False)
    if found.runs:
        show_runs(found.runs)
    under_way = found.state in ("running", "queued", "scheduled")
    if missing := lost_runs(found.runs):
        say(f"{several(missing, 'earlier run')} ended with a process, or is no longer remembered.")
    if not found.runs and not under_way:
        say("Its runs are not remembered: they ended too long ago, or too many came since.")


def lines(found: Found) -> Iterator[tuple[str, str]]:
    yield "id", found.id
    yield "state", found.state
    if found.runs:
        yield "function", found.runs[-1].name
    if found.batch:
        yield "batch", f"{found.batch} (batch show ID)"
    record, where = found.traces.record, found.traces.location
    if record.created is not None:
        yield "sent", ago(record.created)
    if where is not None:
        due = f", due in {duration(max(0.0, where.eta - time.time()))}" if where.eta else ""
        if where.place == "queued":
            yield "place", f"queue {where.queue}, priority {where.step} of 0 to 9 on the broker{due}"
        elif where.place == "later":
            yield "place", f"waits for its time{due}"
        elif found.workers:
            yield "place", "; ".join(f"{name} {does}" for name, does in found.workers.items()) + due
        else:
            yield "place", f"a worker holds it{due}; none has said so within {ASKED:g} s"
    if found.traces.state:
        yield "result", found.traces.state
    for letter in found.letters:
        yield "letter", f"{letter} (dead-letters show {letter})"


def lost_runs(runs: list[Attempt]) -> int:
    """How many runs before the last one are not among *runs*."""
    return runs[-1].run - len({run.run for run in runs}) if runs else 0


def show_runs(runs: list[Attempt], *, with_id: bool = False) -> None:
    first = ("envelope",) if with_id else ()
    table = Table(*first, "run", "queue", "worker", "began (UTC)", "took", box=None, pad_edge=False)
    table.add_column("ended", overflow="fold")
    for run in runs:
        began = time.strftime("%m-%d %H:%M:%S", time.gmtime(run.began))
        told = Text(run.outcome)
        if run.error:
            told.append(f"\n{run.error}", "red")
        took = duration(run.seconds) if run.seconds else "?"
        table.add_row(
            *((run.id,) if with_id else ()), str(run.run), run.queue or "?", run.worker or "?", began, took, told
        )  # fmt: skip
    show(table)


def show_batch(batch_id: str, runs: list[Attempt], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"id": batch_id, "runs": [asdict(run) for run in runs]}, indent=2))
        return
    failed = sum(bool(run.error) for run in runs)
    told = f"batch {batch_id}: {several(len(runs), 'run')} of its envelopes ended, {failed} with errors"
    output().print(told, markup=False)
    show_runs(runs[-LAST:], with_id=True)
    hidden = f" The last {LAST} are shown." if len(runs) > LAST else ""
    say(f"What is under way: batch show {batch_id}. One envelope: track ENVELOPE.{hidden}")
