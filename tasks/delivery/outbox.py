"""What a run sends as it ends leaves in the step that settles the run's own message: all of it, and once.

    run ended ─► links, next step of the chain, retry, … ─► kept here ─► one script: result, acknowledgement, messages

A process that dies before that step has sent nothing, and the next run sends it all; one that dies after it leaves
nothing to run again. Celery sends first and acknowledges later, so that a chain whose worker dies in between goes on
twice from there, at each step. No ids are compared: what was settled is settled. So a retry, a replayed dead letter and
a task that is sent again under its id have messages of their own, and send what follows as often as they end.

Not kept are what the code of a task sends itself, and the body of a chord, which goes out once by Celery's own count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import redis
from celery import _state
from celery.exceptions import Reject

from graft.config import lua
from graft.config.redis_client import patient_broker
from graft.config.transport import sending_channel
from graft.config.transport.sending_channel import PUSH_MESSAGES, Ready, SendingChannel, push_arguments
from graft.tasks import worker_runtime
from graft.tasks.delivery import lease

CONCLUDE: Final = lua.load(__file__, "conclude", functions=PUSH_MESSAGES)
MOST: Final = (
    10_000  # Messages in one step, which nobody else's command can interrupt. More leave at once, as Celery's.
)


class Outbox:
    """The messages that the run of *task* under *request*, which has the delivery *tag*, sends as it ends."""

    def __init__(self, task: Any, request: Any, tag: str) -> None:
        self.tag = tag
        self.is_open = True  # What is sent for the end of the run is kept.
        self.is_settled = False  # The message is; what the run sends from now on leaves at once.
        self._task = task
        self._request = request
        self._messages: list[Ready] = []
        self._names: list[str] = []
        self._afterwards: list[Callable[[], object]] = []

    def __bool__(self) -> bool:
        return bool(self._messages)

    def take(self, channel: SendingChannel, queue: str, message: dict[str, Any]) -> bool:
        """Keep *message*. Not what a task sends that Celery calls meanwhile, such as an errback."""
        if not self._is_at_work or len(self._messages) >= MOST:
            return False
        self._messages.append(channel.ready(queue, message))
        self._names = channel.record_keys(self.tag)
        return True

    @property
    def _is_at_work(self) -> bool:
        return _running() == (self._task, self._request)

    def afterwards(self, func: Callable[[], object]) -> None:
        """Call *func* once the messages have left; at once, where they do."""
        if self._is_at_work:
            self._afterwards.append(func)
        else:
            func()

    def is_of(self, request: Any) -> bool:
        """Whether this is that of the run of *request*."""
        return request is self._request

    def clear(self) -> None:
        """The run did not end in what was kept."""
        self._messages.clear()
        self._afterwards.clear()

    def arguments(self) -> tuple[list[str], list[str], list[Any]]:
        """For a script that settles the message: the keys of its record, then what push_messages.lua is given."""
        return self._names, *push_arguments(self._messages)

    def hand_over(self) -> None:
        """Somebody else will settle the message, with the arguments that were asked for; :meth:`settled` tells."""
        self.is_settled = True
        self._messages = []

    def settled(self, *, has_left: bool) -> None:
        """A script has settled the message, and with it the messages left, unless they were another run's to send."""
        self.is_settled = True
        afterwards = self._afterwards if has_left else []
        self._messages, self._afterwards = [], []
        for func in afterwards:
            func()

    def send(self) -> int:
        """Settle the message and send what was kept; what the script says.

        Raises:
            Reject: Redis does not answer, and the message goes back. If it was settled all the same, it stays so.
        """
        names, keys, arguments = self.arguments()
        try:
            reply = int(CONCLUDE([*names, *keys], [self.tag, *arguments], patient_broker()))
            self.settled(has_left=reply == 1)
        except redis.RedisError as outage:
            raise Reject(outage, requeue=True) from outage
        if reply == -1:
            lease.warn_of_loss(self._request.id)
            self._request.graft_record = None  # The runs of the message count on.
        return reply


def _running() -> tuple[Any, Any]:
    task = _state._task_stack.top
    return task, task.request_stack.top if task is not None else None


def of(request: Any) -> Outbox | None:
    """The outbox of the run of *request*, if it has kept anything."""
    found = getattr(request, "graft_outbox", None)
    return found or None


def _of_current_run() -> Outbox | None:
    """That of the task that runs here and now; None where its message was acknowledged before, or has been settled."""
    task, request = _running()
    if request is None or request.called_directly or request.is_eager or not task.acks_late:
        return None
    found: Outbox | None = getattr(request, "graft_outbox", None)
    if found is None:
        tag = (request.properties or {}).get("delivery_tag")
        if not isinstance(tag, str) or not worker_runtime.in_worker():
            return None
        found = request.graft_outbox = Outbox(task, request, tag)
    return None if found.is_settled else found


@contextmanager
def _kept(found: Outbox | None) -> Iterator[None]:
    """What is sent meanwhile, in this context, is kept in *found*."""
    if found is None:
        yield
        return
    token = sending_channel.outbox.set(found.take)
    try:
        yield
    finally:
        sending_channel.outbox.reset(token)


@contextmanager
def kept_for_the_end() -> Iterator[None]:
    """What is sent meanwhile waits until the run that sends it has ended (:func:`conclude`), if it has not yet."""
    found = _of_current_run()
    with _kept(found if found is not None and found.is_open else None):
        yield


@contextmanager
def kept_for_the_end_of(request: Any) -> Iterator[None]:
    """The same for the run of *request*, if that is what runs here, also when its end has begun."""
    found = _of_current_run()
    with _kept(found if found is not None and found.is_of(request) else None):
        yield


@contextmanager
def instead_of_the_message() -> Iterator[None]:
    """What is sent meanwhile takes the place of the message of the run that sends it.

    Raises:
        LeaseLost: another worker has that message; nothing was sent.
        Reject: Redis does not answer.
    """
    found = _of_current_run()
    try:
        with _kept(found):
            yield
    finally:
        if found and worker_runtime.off_loop(found.send) == -1:
            raise lease.LeaseLost("another worker has this task")


def close(request: Any, *, has_failed: bool = False) -> None:
    """The end of the run of *request* has begun. Where it *has_failed*, what was kept for its success is dropped."""
    found: Outbox | None = getattr(request, "graft_outbox", None)
    if found is None:
        return
    found.is_open = False
    if has_failed:
        found.clear()


def conclude(request: Any) -> None:
    """Settle the message of *request* and send what was kept, unless the script that stored its result has."""
    if (found := of(request)) is not None:
        worker_runtime.off_loop(found.send)


def afterwards(func: Callable[[], object]) -> None:
    """Call *func* once what is kept here has left; at once, where nothing is."""
    take: Any = sending_channel.outbox.get()
    if take is None:
        func()
    else:
        take.__self__.afterwards(func)
