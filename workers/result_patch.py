"""Stores the result of a task in one round trip, in workers, where Celery's Redis backend makes two and a transaction.

Celery asks for an earlier result first, so that nothing takes the place of a success. The script does both in one step,
which also leaves no moment between the two. In that step it asks whether the run's message is still its own, and
acknowledges it (tasks/delivery/lease.py).
"""

from __future__ import annotations

from functools import wraps
from typing import Any, Final, NamedTuple

from celery import states
from celery.backends.redis import RedisBackend
from kombu.utils.json import dumps
from redis.commands.core import Script

from graft.config import keys, lua
from graft.config.transport.sending_channel import PUSH_MESSAGES, push_arguments
from graft.config.transport.unique import GIVE_KEY_BACK, Terms
from graft.tasks import guard
from graft.tasks.delivery import lease, outbox
from graft.tasks.delivery.outbox import Outbox
from graft.tasks.queues import unique
from graft.tasks.results import stored_later
from graft.tasks.results.celery_backend import Backend
from graft.tasks.results.replies import channel_of

FUNCTIONS: Final = PUSH_MESSAGES + GIVE_KEY_BACK
STORE_TEXT: Final = FUNCTIONS + lua.text(__file__, "store_result")
STORE: Final = lua.load(__file__, "store_result", functions=FUNCTIONS)
STORES: Final = (RedisBackend, Backend)  # Celery's own and ours, but no class of a project that derives from them.
SUCCESS: Final = dumps({"status": states.SUCCESS})[:-1]  # How the record of one begins.
STATE: Final = len('{"status": ')


class StoreArguments(NamedTuple):
    """What the script is given for the run of *request*: an :class:`~graft.tasks.results.stored_later.Ending`.

    ``outbox`` holds the messages that it sends, if any.
    """

    keys: list[str]
    arguments: list[Any]
    settles: bool  # Whether it acknowledges the run's message, too.
    outbox: Outbox | None = None
    request: Any = None

    @classmethod
    def make(
        cls, key: str, record: str, seconds: int, success: str, delivery: str, *, settles: bool,
        follows: Outbox | None = None, request: Any = None, terms: Terms | None = None, replies: str = "",
    ) -> StoreArguments:  # fmt: skip
        """For the *record* under *key*, its *seconds* to live, how that of a *success* begins; and of a run that ends
        with it, the *delivery* of its message, whether nothing else is to be done, and the outbox of what *follows*;
        the *terms* of a unique call that ends with it, whose key is on the same server; and the channel for *replies*.
        """
        names = [keys.RETURNED + delivery, keys.UNACKED, keys.UNACKED_INDEX]
        lists, messages = push_arguments(())
        if follows is not None:
            names, lists, messages = follows.arguments()
        stored = [record, seconds, success, delivery, int(settles)]
        held = ["", 0] if terms is None else [request.id, terms.keep_ms]
        names = [key, *names, key if terms is None else terms.name]
        return cls([*names, *lists], [*stored, *held, replies, *messages], settles, follows, request)

    @property
    def script(self) -> Script:
        return STORE

    @property
    def key(self) -> str:
        return self.keys[0]

    def hand_over(self) -> None:
        """Until then nothing of this run is sent or forgotten."""
        self.request.graft_stored_later = True
        if self.outbox is not None:
            self.outbox.hand_over()

    def told(self, reply: int) -> None:
        if self.outbox is not None:
            self.outbox.settled(has_left=reply != stored_later.LOST)
        if reply == stored_later.LOST:
            lease.warn_of_loss(self.request.id)
            self.request.graft_record = None  # The runs of the message count on.
        if getattr(self.request, "graft_stored_later", False):
            self.request.graft_stored_later = False
            guard.concluded(self.request)


def arguments(
    backend: Any, task_id: str, result: Any, state: str, traceback: Any, request: Any
) -> StoreArguments | None:
    """How to store it, or None where Celery must: such as a compressed record, or one that is too large."""
    if backend.serializer != "json":
        return None
    meta = backend._get_result_meta(result=result, state=state, traceback=traceback, request=request)
    record = backend.encode({**meta, "task_id": task_id})
    if not isinstance(record, str) or len(record) > backend._MAX_STR_VALUE_SIZE or record[:STATE] != SUCCESS[:STATE]:
        return None
    kept = backend.failure_expires if state == states.FAILURE else None
    seconds = int(backend.expires or 0) if kept is None else int(kept)
    # The message of a run that ends with this result. It stays where something is still to be done.
    delivery = lease.fence_of(request) if state in states.READY_STATES else ""
    settles = bool(delivery) and not (request.chord or (request.errbacks and state != states.SUCCESS))
    follows = outbox.of(request) if settles else None
    terms = Terms.of(request) if state in states.READY_STATES and unique.is_beside_results() else None
    key = backend.get_key_for_task(task_id)
    reply_to = getattr(request, "reply_to", None) if state in states.READY_STATES else None
    replies = channel_of(backend, reply_to) if isinstance(reply_to, str) and reply_to else ""
    return StoreArguments.make(
        key, record, seconds, SUCCESS, delivery, settles=settles, follows=follows, request=request, terms=terms,
        replies=replies,
    )  # fmt: skip


def install() -> None:
    """In a worker: change how Celery's own Redis backend stores, and ours."""
    store = RedisBackend._store_result

    @wraps(store)
    def store_in_one_step(
        self: Any, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **options: Any
    ) -> Any:
        how = arguments(self, task_id, result, state, traceback, request) if type(self) in STORES else None
        if how is None:
            stored = store(self, task_id, result, state, traceback, request, **options)
            if state in states.READY_STATES:
                unique.end(request)
            return stored
        if not (how.settles and stored_later.leave(how)):
            how.told(self.ensure(lambda: STORE(how.keys, how.arguments, self.client), ()))
        return result

    if not hasattr(store, "__wrapped__"):
        RedisBackend._store_result = store_in_one_step
