"""What the worker's main process does for messages that its pool processes take themselves.

deliver      what is out of the ordinary comes here, as if it had been fetched here
promote      a run that lasts gets Celery's request: limits, revokes, `inspect` and a stop find it as any other
give away    what waits in a process behind a run that lasts goes back to its queue
renew        the leases of all of this
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial, wraps
from types import SimpleNamespace
from typing import Any, Final
from weakref import ref

import redis
from celery.utils.imports import symbol_by_name
from celery.worker import state
from celery.worker.control import Panel
from celery.worker.request import create_request_cls
from kombu.utils.json import loads

from graft.config.redis_client import broker
from graft.config.transport.channel import Channel
from graft.config.transport.fetch import Taken
from graft.tasks.delivery import cancellation
from graft.workers import active_runs, shutdown
from graft.workers.active_runs import ActiveRun
from graft.workers.direct import events
from graft.workers.direct.direct_pool import Child, TaskPool
from graft.workers.direct.job import Job
from graft.workers.direct.orders import Orders
from graft.workers.direct.shared_state import Entry, State

logger = logging.getLogger(__name__)

LASTS: Final = 1.0  # Seconds after which a run is promoted; sooner where somebody asks what runs.
WAITS: Final = 0.1  # Seconds that a message waits behind a run before it goes to others.
STUCK: Final = 5.0  # Seconds after which a process that has begun nothing was stopped.
BACK_AGAIN: Final = 1.0  # Seconds after which a lost process's fetches are looked for once more.
PATIENCE: Final = 1.0  # Seconds that a command may hold up the loop.

TURNS_EVENTS: Final = ("enable_events", "disable_events")
SEES_RUNS: Final = ("active", "query_task", "revoke", "revoke_by_stamped_headers", "stats", "terminate")


class Promotion:
    """Between the pool and the consumer of one worker."""

    def __init__(
        self, pool: TaskPool, consumer: Any, note_taken: Callable[[Mapping[str, int], set[str]], None]
    ) -> None:
        """*note_taken* is told how many messages were taken from each queue, and who sent some without a signature."""
        self._pool, self._consumer, self._note_taken = pool, consumer, note_taken
        self._channel: Channel | None = None
        self._orders = Orders(pool, consumer)
        self._undelivered: list[Taken] = []
        self._returning: dict[str, bool] = {}  # Tags that go back once there is a channel; whether their process died.
        self._client: Any = None
        self._is_promoting = False
        self._is_held = False  # By a stop: nothing is taken any more.
        self._later: list[tuple[float, str]] = []
        pool.on_lost, pool.wake_others = self._on_lost, self._unblock
        pool.attach(self._on_message)
        self._share_revokes()
        active_runs.revealed_by(self.promote, self.unseen)
        for name in SEES_RUNS:
            Panel.data[name] = _revealed(Panel.data[name])
        for name in TURNS_EVENTS:
            Panel.data[name] = self._told_at_once(Panel.data[name])

    def _share_revokes(self) -> None:
        """Processes learn from the filter of cancelled tasks what Celery's ``revoke`` has named, too."""
        known, add = cancellation.keep_filter(), state.revoked.add

        def add_known(item: Any, now: float | None = None) -> None:
            known.add(str(item))
            add(item, now)

        for item in tuple(state.revoked):
            known.add(str(item))
        state.revoked.add = add_known

    def _told_at_once(self, command: Callable[..., Any]) -> Callable[..., Any]:
        """The control command; whoever has its answer hears of all that begins from then on."""

        @wraps(command)
        def give_orders_then(*args: Any, **kwargs: Any) -> Any:
            answer = command(*args, **kwargs)
            self.give_orders()
            return answer

        return give_orders_then

    # ---- orders ------------------------------------------------------------------------------------------------------

    def use(self, channel: Channel | None) -> None:
        """Take messages for *channel*, the consumer's; None while there is no connection."""
        self._channel = channel
        if channel is None:
            return
        returning, self._returning = self._returning, {}
        for tag, is_lost in returning.items():
            channel.qos.return_record(tag, is_lost=is_lost)
        undelivered, self._undelivered = self._undelivered, []
        for taken in undelivered:
            self._deliver(taken)
        self.give_orders()

    def hold(self) -> None:
        """Have nothing taken any more, for good."""
        self._is_held = True
        self.give_orders()

    def give_orders(self) -> None:
        """Tell the processes what they may take, where that has changed."""
        self._orders.give(self._channel, is_held=self._is_held)

    # ---- what processes say ------------------------------------------------------------------------------------------

    def _on_message(self, child: Child, kind: str, *rest: Any) -> None:
        match kind:
            case "deliver":
                self._deliver(Taken(*rest))
            case "ended":
                self._conclude(*rest)
            case "back":
                for tag in rest[0]:
                    self._return(tag, is_lost=False)
            case "events":
                if dispatcher := self._consumer.event_dispatcher:
                    events.tell(dispatcher, self._consumer.app.tasks, rest[0])
            case "counts":
                queues, tasks, unsigned = rest
                self._note_taken(queues, unsigned)
                state.total_count.update(tasks)
                state.all_total_count[0] += sum(tasks.values())

    def _deliver(self, taken: Taken) -> None:
        channel = self._channel
        if self._is_held or shutdown.has_begun():
            self._return(taken.tag, is_lost=False)
        elif channel is None or channel.closed:
            self._undelivered.append(taken)
        elif taken.queue not in channel.active_queues:  # It was cancelled meanwhile.
            self._return(taken.tag, is_lost=False)
        else:
            channel._deliver(taken)
            self.give_orders()

    def _return(self, tag: str, *, is_lost: bool) -> None:
        channel = self._channel
        if channel is None or channel.closed:
            self._returning[tag] = is_lost
        else:
            channel.qos.return_record(tag, is_lost=is_lost)

    def _conclude(
        self, tag: str, answer: tuple[bool, Any], message: tuple[bytes, str] | None, began: float, ended: float
    ) -> None:
        """A run has ended otherwise than with a value: Celery's request knows what to do."""
        if message is None:
            return  # Of a run that had been promoted, and is over.
        request = self._request(tag, loads(message[0].decode()), began, ended)
        if request is None:
            return
        job = self._job(request)
        job.accept(0, time.monotonic())
        job.end(answer)

    # ---- promotion ---------------------------------------------------------------------------------------------------

    def unseen(self) -> set[ActiveRun]:
        """The runs without a request."""
        return {
            ActiveRun(entry.task_id, entry.retries, entry.tag) for child in tuple(self._pool.children.values())
            for entry in self._pool.shared.entries(child.number) if entry.state is State.RUNNING
        }  # fmt: skip

    def promote(self, lasting: float = 0.0) -> None:
        """Make requests for the runs that go on for at least *lasting* seconds."""
        if self._is_promoting:  # A signal has come just now, whose handler wants the same.
            return
        self._is_promoting = True
        try:
            self._promote_all(lasting)
        finally:
            self._is_promoting = False

    def _promote_all(self, lasting: float) -> None:
        now = time.monotonic()
        found = [
            (child, entry) for child in self._pool.children.values() if child.job is None
            for entry in self._pool.shared.entries(child.number)
            if entry.state is State.RUNNING and now - entry.since >= lasting
        ]  # fmt: skip
        if not found or self._channel is None or self._channel.closed:
            return
        for (child, entry), record in zip(found, self._records([entry.tag for _, entry in found]), strict=True):
            if record is not None:
                self._promote(child, entry, record)

    def _promote(self, child: Child, entry: Entry, record: bytes) -> None:
        if not self._change(child, entry, State.RUNNING, State.PROMOTED):
            return  # It has ended meanwhile.
        request = self._request(entry.tag, loads(record.decode())[0], _wall(entry.since))
        if request is None:
            self._change(child, entry, State.PROMOTED, State.RUNNING)
        else:
            self._pool.promote(child, entry.tag, self._job(request), entry.since)

    def _change(self, child: Child, entry: Entry, before: State, after: State) -> bool:
        return self._pool.shared.change(child.number, entry.number, entry.tag, before, after, child.lock)

    def _records(self, tags: list[str]) -> list[bytes | None]:
        channel = self._channel
        if channel is None:
            return [None] * len(tags)
        try:
            if self._client is None:
                self._client = broker(socket_timeout=PATIENCE, client_name="graft-direct")
            return list(self._client.hmget(channel.global_keyprefix + channel.unacked_key, tags))
        except (redis.RedisError, OSError) as error:
            logger.debug("no record of what runs: %s", error)
            return [None] * len(tags)

    def _request(self, tag: str, payload: dict[str, Any], began: float, ended: float | None = None) -> Any:
        """Celery's request for the message *payload*, which a pool process has taken, or None without a connection.

        Its run has begun and perhaps ended already, in seconds since the epoch.
        """
        channel, consumer = self._channel, self._consumer
        if channel is None or channel.closed:
            return None
        payload["properties"]["delivery_tag"] = tag
        message = channel.Message(payload, channel=channel)
        channel.qos._quick_append(tag, message)
        task = consumer.app.tasks[message.headers["task"]]
        eventer = events.Late(consumer.event_dispatcher, began, ended)
        kind = create_request_cls(
            symbol_by_name(task.Request), task, consumer.pool, consumer.hostname, eventer, app=consumer.app,
        )  # fmt: skip
        request = kind(
            message, on_ack=partial(consumer.call_soon_ack, message.ack_log_error),
            on_reject=partial(consumer.call_soon_ack, message.reject_log_error), app=consumer.app,
            hostname=consumer.hostname, eventer=eventer, task=task,
            connection_errors=consumer.connection_errors, body=message.body, headers=message.headers, decoded=False,
        )  # fmt: skip
        state.task_reserved(request)
        events.tell_received(request)
        return request

    def _job(self, request: Any) -> Job:
        """As Celery's request applies itself to a pool."""
        hard, soft = request.time_limits
        job = self._pool.new_job(
            None, (), callback=request.on_success, accept_callback=request.on_accepted,
            error_callback=request.on_failure, timeout_callback=request.on_timeout,
            soft_timeout=soft or request.task.soft_time_limit, timeout=hard or request.task.time_limit,
        )  # fmt: skip
        request._apply_result = ref(job)
        return job

    # ---- giving back -------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Look after what lasts."""
        now = time.monotonic()
        self.promote(LASTS)
        self._pool.check_limits(now)
        for child in self._pool.children.values():
            self.give_away(child, STUCK if child.job is None and not self._runs_for(child, now, WAITS) else 0.0)
        due, self._later = (
            [tag for at, tag in self._later if at <= now],
            [each for each in self._later if each[0] > now],
        )
        for tag in due:
            self._return(tag, is_lost=False)
        self.give_orders()

    def _runs_for(self, child: Child, now: float, seconds: float) -> bool:
        entries = self._pool.shared.entries(child.number)
        return any(each.state is State.RUNNING and now - each.since >= seconds for each in entries)

    def give_away(self, child: Child, waiting: float) -> None:
        """Put back what has waited in *child* for *waiting* seconds; also what a process that was stopped asked for."""
        now = time.monotonic()
        for entry in tuple(self._pool.shared.entries(child.number)):
            since = {State.HELD: waiting, State.ASKED: STUCK}.get(entry.state)
            if since is None or now - entry.since < since:
                continue
            if self._change(child, entry, entry.state, State.TAKEN_BACK):
                self._return(entry.tag, is_lost=False)

    def stop_taking(self) -> None:
        """For a stop: nothing is taken or begun any more, and all that runs has a request."""
        self.hold()
        self._pool.stop_jobs()
        for child in self._pool.children.values():
            self.give_away(child, 0.0)
        self.promote()
        self._unblock(self._pool.children.values())

    def _on_lost(self, child: Child) -> None:
        """The messages of a process that has ended go back; those that it ran say so, and count it as a death."""
        for entry in self._pool.shared.entries(child.number):
            match entry.state:
                case State.RUNNING | State.ENDED:
                    self._lose(child, entry)
                case State.HELD:
                    self._return(entry.tag, is_lost=False)
                case State.ASKED:  # Redis may hear of it only now.
                    self._return(entry.tag, is_lost=False)
                    self._later.append((time.monotonic() + BACK_AGAIN, entry.tag))

    def _lose(self, child: Child, entry: Entry) -> None:
        (record,) = self._records([entry.tag])
        payload = None if record is None else loads(record.decode())[0]
        request = None if payload is None else self._request(entry.tag, payload, _wall(entry.since))
        if request is None:
            self._return(entry.tag, is_lost=True)
        elif child.job is None:
            self._pool.promote(child, entry.tag, self._job(request), entry.since)

    def _unblock(self, children: Iterable[Child]) -> None:
        """Have *children* that wait for messages look at their orders now, and not within a second."""
        numbers = [number for number in (self._pool.shared.client_id(child.number) for child in children) if number]
        if not numbers or self._channel is None:
            return
        with suppress(redis.RedisError, OSError):
            if self._client is None:
                self._client = broker(socket_timeout=PATIENCE, client_name="graft-direct")
            with self._client.pipeline(transaction=False) as pipe:
                for number in numbers:
                    pipe.client_unblock(number)
                pipe.execute(raise_on_error=False)

    # ---- leases ------------------------------------------------------------------------------------------------------

    def held(self) -> Mapping[str, Any]:
        """What the processes have, by delivery tag, with the headers that tell whose it is."""
        found = {taken.tag: SimpleNamespace(headers={}) for taken in self._undelivered}
        for child in self._pool.children.values():
            for entry in self._pool.shared.entries(child.number):
                if entry.state is not State.TAKEN_BACK:
                    found[entry.tag] = SimpleNamespace(headers={"id": entry.task_id, "retries": entry.retries})
        return found


def _wall(moment: float) -> float:
    """A moment of the monotonic clock in seconds since the epoch."""
    return time.time() - (time.monotonic() - moment)


def _revealed(command: Callable[..., Any]) -> Callable[..., Any]:
    """The control command, which is shown what runs."""

    @wraps(command)
    def reveal_first(*args: Any, **kwargs: Any) -> Any:
        active_runs.reveal()
        return command(*args, **kwargs)

    return reveal_first
