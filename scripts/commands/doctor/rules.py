"""From the settings of a deployment to problems, each with its cause, the evidence and a fix of one line. Pure.

An ``error`` loses work or secrets, or nothing runs; a ``warning`` does so in some situations; a ``note`` may help.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

from graft.config import redis_checks
from graft.config.deployment import app_name
from graft.config.queues import PRIORITY_STEPS
from graft.config.words import several
from graft.tasks.health import beat_schedules
from graft.tasks.health.beat_schedules import BeatSchedule

Severity = Literal["error", "warning", "note"]
ORDER: Final[tuple[Severity, ...]] = ("note", "warning", "error")
CONFIGURED: Final = ("PersistentScheduler", "Scheduler")  # Celery's: their entries are those of beat_schedule.
STALL: Final = 10.0  # A worker's loop may be busy for so long; a visibility timeout must be longer.


@dataclass(frozen=True)
class Problem:
    """One wrong setting: why it is harmful, the value that shows it, and what to do."""

    severity: Severity
    check: str
    cause: str
    evidence: str
    fix: str


@dataclass(frozen=True)
class Reader:
    """A live worker and the queues it reads."""

    name: str
    queues: tuple[str, ...]


@dataclass(frozen=True)
class Grace:
    """Seconds that a supervisor waits for a worker to stop, and the drain timeout that it sets, if any."""

    seconds: float
    drain: float | None = None


@dataclass(frozen=True)
class Setup:
    """The settings of a deployment. ``conf`` holds Celery's options, ``graft`` those of GRAFT_*.

    ``misspelt`` are variables that nothing reads, each with the one that was probably meant. ``queues`` are the names
    in the queue table. ``files`` maps files with secrets to their modes, ``grace`` the supervisors of workers to how
    long they wait. ``beats`` are the schedules of live Beats, ``sent`` the task and time of each entry's last run.
    ``readers`` is None when Redis was not read.
    """

    conf: Mapping[str, Any]
    graft: Mapping[str, Any]
    app: Mapping[str, Any]
    environ: Mapping[str, str] = field(default_factory=dict)
    misspelt: tuple[tuple[str, str | None], ...] = ()
    tasks: frozenset[str] = frozenset()
    queues: tuple[str, ...] = ()
    files: Mapping[str, int] = field(default_factory=dict)
    grace: Mapping[str, Grace] = field(default_factory=dict)
    flowers: tuple[tuple[str, ...], ...] = ()
    readers: tuple[Reader, ...] | None = None
    waiting: Mapping[str, int] = field(default_factory=dict)
    paused: frozenset[str] = frozenset()
    servers: tuple[tuple[str, redis_checks.Finding], ...] = ()
    unsigned: tuple[str, ...] = ()
    beats: tuple[BeatSchedule, ...] = ()
    sent: Mapping[str, tuple[str, float]] = field(default_factory=dict)


def examine(setup: Setup) -> list[Problem]:
    """All problems, the worst first."""
    found = [problem for rule in RULES for problem in rule(setup)]
    return sorted(found, key=lambda problem: -ORDER.index(problem.severity))


def signing(setup: Setup) -> Iterator[Problem]:
    stage, has_key = setup.graft["signing"], bool(setup.graft["signing_keys"])
    if not has_key:
        yield Problem(
            "error" if setup.app["is_ours"] else "note", "signing key",
            "no batch can be sent or run: payloads are signed with this key" if setup.app["is_ours"]
            else "whoever reaches Redis can run the app's tasks, and graft.submit and the pools cannot send",
            "GRAFT_SIGNING_KEY is not set",
            'export GRAFT_SIGNING_KEY=$(python -c "import secrets; print(secrets.token_hex(32))"), the same everywhere',
        )  # fmt: skip
    elif stage == "off":
        yield Problem(
            "warning", "signing", "messages are not signed although there is a key", "GRAFT_SIGNING=off",
            "set GRAFT_SIGNING=sign",
        )  # fmt: skip
    elif stage == "sign":
        hosts = sorted({sender.rpartition("@")[2] for sender in setup.unsigned})
        found = f"{len(setup.unsigned)} processes sent unsigned messages in the last day, on {', '.join(hosts[:5])}"
        yield Problem(
            "note", "signing", "unsigned messages are accepted too, so whoever reaches Redis can run the app's tasks",
            found if hosts else "every message of the last day was signed",
            "harden these senders and give them the key" if hosts else "the next stage is safe: GRAFT_SIGNING=require",
        )  # fmt: skip
    if setup.graft["mode"] == "local":
        yield Problem(
            "note", "mode", "the facades run everything in the caller's process", "GRAFT_MODE=local",
            "unset GRAFT_MODE to use the workers",
        )  # fmt: skip


def secrets(setup: Setup) -> Iterator[Problem]:
    for path, mode in setup.files.items():
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            is_open = mode & stat.S_IRWXO
            yield Problem(
                "error" if is_open else "warning", "secret file",
                "anybody who reads the key can run any code on the workers", f"{path} has mode {stat.S_IMODE(mode):o}",
                f"chmod 600 {path}",
            )  # fmt: skip


def environment(setup: Setup) -> Iterator[Problem]:
    if "APP" in setup.environ:
        yield Problem(
            "warning", "environment", "the celery command uses APP as its -A option",
            f"APP={setup.environ['APP']}", f"unset APP, or write celery -A {app_name()} every time",
        )  # fmt: skip
    for name, meant in setup.misspelt:
        yield Problem(
            "warning", "environment", "nothing reads this variable, so the setting has its default", f"{name} is set",
            f"write {meant}" if meant else f"unset {name}, or look it up in docs/configuration.md",
        )  # fmt: skip


def delivery(setup: Setup) -> Iterator[Problem]:
    conf = setup.conf
    if not conf.get("task_acks_late"):
        yield Problem(
            "error", "late acks", "a message is deleted when a worker fetches it, and lost if the worker dies",
            "task_acks_late is off", "set task_acks_late=True",
        )  # fmt: skip
    elif not (conf.get("task_reject_on_worker_lost") or conf.get("task_retry_on_worker_lost")):
        yield Problem(
            "error", "late acks", "the task of a killed pool process is acknowledged and lost, late acks or not",
            "task_acks_late without task_reject_on_worker_lost", "set task_reject_on_worker_lost=True",
        )  # fmt: skip
    if setup.app["acks_early"]:
        names = setup.app["acks_early"]
        yield Problem(
            "note", "late acks", "lost with the process that runs them: their messages are deleted before they run",
            f"{', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}",
            "set acks_late=True, or call graft.harden(app) before the app is finalized",
        )  # fmt: skip
    if not conf.get("task_time_limit"):
        yield Problem(
            "warning", "time limits", "a task that hangs blocks its process for ever", "task_time_limit is not set",
            "set GRAFT_HARD_TIME_LIMIT",
        )  # fmt: skip


def visibility(setup: Setup) -> Iterator[Problem]:
    conf = setup.conf
    timeout = float(setup.graft["visibility_timeout"])
    if "HardenedConsumer" not in str(conf.get("worker_consumer")):
        yield Problem(
            "error", "worker consumer", "an outage of Redis doubles what runs, and bad messages end the worker",
            f"worker_consumer={conf.get('worker_consumer')}", "remove worker_consumer, or derive it from "
            "graft.workers.consumer:HardenedConsumer",
        )  # fmt: skip
    if timeout < STALL:
        yield Problem(
            "warning", "visibility timeout", "a worker whose loop is blocked for this long has its tasks run twice",
            f"visibility_timeout={timeout:g} s", f"set GRAFT_VISIBILITY_TIMEOUT to {STALL:g} or more",
        )  # fmt: skip
    prefix = (conf.get("broker_transport_options") or {}).get("global_keyprefix")
    if prefix:
        yield Problem(
            "error", "key prefix", "commands and checks do not see the queues, and lost messages are not found",
            f"broker_transport_options has global_keyprefix={prefix!r}",
            "use a Redis database or server of your own instead (/1 at the end of broker_url)",
        )  # fmt: skip
    eta_limit = conf.get("worker_eta_task_limit")
    if not eta_limit:
        yield Problem(
            "warning", "ETA", "messages with a countdown wait in a worker's memory, without a limit",
            "worker_eta_task_limit is not set", "set worker_eta_task_limit=1000",
        )  # fmt: skip


def priorities(setup: Setup) -> Iterator[Problem]:
    conf = setup.conf
    options = conf.get("broker_transport_options") or {}
    default = conf.get("task_default_priority")
    if not setup.app["is_ours"]:
        options, default = {"priority_steps": PRIORITY_STEPS, "queue_order_strategy": "priority"}, 1  # Its own affair.
    if not default:
        yield Problem(
            "error", "priorities", "0 is the most urgent priority on Redis, and messages without a priority "
            "get it: they overtake all others", f"task_default_priority is {default}", "set task_default_priority=5",
        )  # fmt: skip
    if list(options.get("priority_steps") or ()) != list(PRIORITY_STEPS):
        yield Problem(
            "warning", "priorities", "priorities between two steps share a list; clients with other steps write to "
            "lists that no worker reads", f"priority_steps={options.get('priority_steps')}",
            "set priority_steps=range(10)",
        )  # fmt: skip
    if options.get("queue_order_strategy") != "priority":
        yield Problem(
            "warning", "priorities", "queues are read in turn, and the priority of their messages is ignored",
            f"queue_order_strategy={options.get('queue_order_strategy')}", "set queue_order_strategy=priority",
        )  # fmt: skip
    multiplier = conf.get("worker_prefetch_multiplier")
    if multiplier != 1 and not conf.get("worker_disable_prefetch"):
        yield Problem(
            "warning", "prefetch", "fetched messages run before more urgent ones that arrive later",
            f"worker_prefetch_multiplier={multiplier}", "set worker_prefetch_multiplier=1",
        )  # fmt: skip


def publishing(setup: Setup) -> Iterator[Problem]:
    options = setup.conf.get("broker_transport_options") or {}
    for name in ("retry", "retry_on_timeout"):
        if name in options:
            yield Problem(
                "warning", "publishing", "kombu then sends messages one by one, instead of many in one round trip",
                f"broker_transport_options has {name}", f"remove {name}; the publisher retries by itself",
            )  # fmt: skip
    unsafe = [each for each in setup.conf.get("accept_content") or () if "pickle" in each or "yaml" in each]
    if unsafe:
        yield Problem(
            "error", "content", "anybody who can write to Redis can run any code on the workers",
            f"accept_content has {', '.join(unsafe)}", "set accept_content=['json']; callables are signed inside it",
        )  # fmt: skip


def routes(setup: Setup) -> Iterator[Problem]:
    """Routes and periodic tasks whose queue or task does not exist."""
    known = set(setup.queues) | {getattr(queue, "name", str(queue)) for queue in setup.conf.get("task_queues") or ()}
    for entry, spec in (setup.conf.get("beat_schedule") or {}).items():
        task, queue = str(spec.get("task")), (spec.get("options") or {}).get("queue")
        if setup.tasks and task not in setup.tasks:
            yield Problem(
                "error", "schedule", "workers do not know this task, and move its messages to the quarantine",
                f"beat_schedule[{entry!r}] names {task}", "correct the name, or import its module",
            )  # fmt: skip
        if queue and queue not in known and not setup.app["makes_queues"]:
            yield Problem(
                "error", "schedule", "no worker reads this queue", f"beat_schedule[{entry!r}] goes to {queue}",
                f"use one of {', '.join(sorted(known))}",
            )  # fmt: skip
    table = setup.conf.get("task_routes")
    for pattern, route in table.items() if isinstance(table, Mapping) else ():
        queue = route.get("queue") if isinstance(route, Mapping) else str(route)
        if queue and queue not in known and not setup.app["makes_queues"]:
            yield Problem(
                "error", "routes", "no worker reads this queue", f"task_routes[{pattern!r}] leads to {queue}",
                f"use one of {', '.join(sorted(known))}",
            )  # fmt: skip
        if setup.tasks and not any(fnmatchcase(task, pattern) for task in setup.tasks):
            yield Problem(
                "warning", "routes", "no task has this name, so the route has no effect", f"task_routes[{pattern!r}]",
                "correct the name, or remove the route",
            )  # fmt: skip


def beats(setup: Setup) -> Iterator[Problem]:
    """Live Beats that differ from each other or from the app, and entries that nobody sends any more."""
    mine = beat_schedules.entries_of(setup.conf.get("beat_schedule") or {})
    if len(setup.beats) > 1:
        names = ", ".join(beat.beat for beat in setup.beats)
        differing = sorted({name for one in setup.beats for name in mine.keys() ^ one.entries.keys()})
        differing += sorted(name for name in mine if len({one.entries.get(name, "") for one in setup.beats} - {""}) > 1)
        yield Problem(
            "error", "beat", "each periodic task is sent by every one of them"
            + (", and their schedules differ" if differing else ""),
            f"{names} send" + (f"; they differ in {', '.join(differing[:5])}" if differing else ""),
            "stop all but one; for one that stands by: the extra `ha` and beat -S redbeat.RedBeatScheduler",
        )  # fmt: skip
    elif setup.beats and setup.beats[0].entries != mine:
        (beat,) = setup.beats
        changed = sorted(name for name in mine.keys() | beat.entries.keys() if mine.get(name) != beat.entries.get(name))
        yield Problem(
            "warning", "beat", "Beat sends another schedule than that of this app: it began before a change, or has "
            "other settings", f"{beat.beat} differs in {', '.join(changed[:5])}", "restart Beat with this code",
        )  # fmt: skip
    if not setup.beats or any(one.scheduler not in CONFIGURED for one in setup.beats):
        return  # Others have entries that stand in no configuration.
    known = {*mine, *(name for one in setup.beats for name in one.entries)}
    for name, (task, at) in setup.sent.items():
        if name not in known:
            yield Problem(
                "note", "beat", "an entry of the schedule has vanished; nobody sends it any more",
                f"{name} ({task}) was last sent {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime(at))}",
                "add it to beat_schedule again; if it was removed on purpose, this goes away after a week",
            )  # fmt: skip


def shutdown(setup: Setup) -> Iterator[Problem]:
    soft = float(setup.graft["soft_time_limit"])
    for where, stop in setup.grace.items():
        grace, drain = stop.seconds, float(setup.graft["drain_timeout"]) if stop.drain is None else stop.drain
        if drain and grace <= drain:
            yield Problem(
                "error", "stop grace", "the worker is killed before it has returned its messages to the queue",
                f"{where} waits {grace:g} s, GRAFT_DRAIN_TIMEOUT={drain:g} s", f"set a longer grace than {drain:g} s",
            )  # fmt: skip
        elif not drain and grace < soft:
            yield Problem(
                "warning", "stop grace", "a task that runs longer is killed, and runs again on another worker after "
                "the visibility timeout", f"{where} waits {grace:g} s, GRAFT_SOFT_TIME_LIMIT={soft:g} s",
                f"set GRAFT_DRAIN_TIMEOUT to {max(1.0, grace - 10):g}, or a longer grace",
            )  # fmt: skip


def flower(setup: Setup) -> Iterator[Problem]:
    environ = setup.environ
    has_login = any(environ.get(f"FLOWER_{name}") for name in ("BASIC_AUTH", "AUTH", "OAUTH2_KEY"))
    address = environ.get("FLOWER_ADDRESS", "")
    settings = [("FLOWER_ADDRESS", address, has_login)] if address else []
    for argv in setup.flowers:
        words = [word.replace("_", "-") for word in argv]
        where = next(
            (word.partition("=")[2] for word in words if word.startswith("--address=")), address or "127.0.0.1"
        )
        settings.append(
            ("a running Flower", where, has_login or any(word.startswith(("--basic-auth", "--auth")) for word in words))
        )
    for what, where, is_closed in settings:
        if not is_closed and not where.startswith(("127.", "localhost", "::1")):
            yield Problem(
                "error", "flower", "anybody who reaches it can stop workers and read all arguments",
                f"{what} listens on {where} without a password", "set FLOWER_BASIC_AUTH, and FLOWER_ADDRESS=127.0.0.1",
            )  # fmt: skip
    if environ.get("FLOWER_UNAUTHENTICATED_API", "").lower() in ("1", "true", "yes"):
        yield Problem(
            "error", "flower", "its API can revoke tasks and stop workers", "FLOWER_UNAUTHENTICATED_API is set",
            "unset FLOWER_UNAUTHENTICATED_API",
        )  # fmt: skip


def readers(setup: Setup) -> Iterator[Problem]:
    if setup.readers is None:
        return
    if not setup.readers:
        yield Problem(
            "warning",
            "workers",
            "nothing runs",
            "no worker has a heartbeat",
            f"start one: celery -A {app_name()} worker",
        )
        return
    read = {queue for reader in setup.readers for queue in reader.queues}
    for reader in setup.readers:
        only_paused = not reader.queues and setup.paused
        if not set(reader.queues) & set(setup.queues) and not only_paused:
            yield Problem(
                "error", "workers", "nothing is sent to the queues that this worker reads",
                f"{reader.name} reads {', '.join(reader.queues) or 'none'}",
                f"start it with -Q and some of {', '.join(setup.queues)}",
            )  # fmt: skip
    for queue in setup.queues:
        if queue in read or queue in setup.paused:
            continue
        waiting = setup.waiting.get(queue, 0)
        yield Problem(
            "error" if waiting else "warning", "queues", "messages sent there do not run",
            f"no worker reads {queue}, {several(waiting, 'message', 'wait')}",
            f"start a worker: celery -A {app_name()} worker -Q {queue}",
        )  # fmt: skip
    for queue in sorted(setup.paused):
        yield Problem(
            "note", "queues", "workers take no messages from it",
            f"{queue} is paused, {several(setup.waiting.get(queue, 0), 'message', 'wait')}",
            f"resume it: celery -A {app_name()} queue resume {queue}",
        )  # fmt: skip


def servers(setup: Setup) -> Iterator[Problem]:
    severities: dict[str, Severity] = {"refuse": "error", "alarm": "warning", "warn": "warning", "note": "note"}
    for role, finding in setup.servers:
        evidence, _, cause = finding.message.partition(": ")
        yield Problem(severities[finding.severity], f"{role} {finding.check}", cause, evidence, finding.remedy)


RULES: Final = (
    signing, secrets, environment, delivery, visibility, priorities, publishing, routes, beats, shutdown, flower,
    readers, servers,
)  # fmt: skip
