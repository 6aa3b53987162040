"""The caller and the operator in the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from graft.config import redis_client
from graft.config.deployment import settings
from graft.scripts.model.actors import Actor, Process
from graft.scripts.model.batches import is_batch
from graft.scripts.model.items import GARBLED, GARBLED_TEXT, TASK, chain_of
from graft.scripts.model.snapshot import Snapshot, id_of
from graft.scripts.model.worker import QUEUE
from graft.tasks.dead_letters import replay
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.delivery import cancellation
from graft.tasks.messages.message_format import lists
from graft.tasks.queues import locate, pause

READY: Final = frozenset({"SUCCESS", "FAILURE", "REVOKED"})


class People:
    """What people do to a deployment, as actors: the part of the world that sends, searches, replays and cancels."""

    app: Any
    redis: Any
    log: list[str]
    priorities: dict[str, int]
    accepted: set[str]
    cancelled: set[str]
    doubled: Counter[str]
    replayed: Counter[str]
    caller: Actor | None = None
    operator: Actor | None = None

    def begin(self, actor: Actor) -> Actor:
        raise NotImplementedError

    def send_batch(self, label: str) -> None:
        raise NotImplementedError

    def look(self) -> Snapshot:
        raise NotImplementedError

    def forget_look(self) -> None:
        raise NotImplementedError

    def client(self) -> Any:
        raise NotImplementedError

    def send(self, label: str) -> None:
        """Have the caller send a batch, or a task named *label*, whose id that is."""
        if is_batch(label):
            self.send_batch(label)
            return
        self.caller = self.begin(Actor(Process("caller"), "caller", lambda: self._send(label)))

    def _send(self, label: str) -> None:
        if label.startswith(GARBLED):
            self.client().lpush(QUEUE, GARBLED_TEXT % label)
            self.accepted.add(label)
            return
        with self.app.producer_or_acquire() as producer:
            follows = chain_of(self.app, label)
            message = self.app.amqp.as_task_v2(label, TASK, args=[label], kwargs={}, root_id=label, chain=follows)
            self.app.amqp.send_task_message(
                producer, TASK, message, queue=QUEUE, priority=self.priorities.get(label), declare=[], retry=False
            )
        self.accepted.add(label)

    def search(self) -> None:
        """Have the caller search for what it has no answer to, and send again what is nowhere, twice.

        Callers of batches do so, which take one answer for each item; so of tasks that answer the same each time.
        """
        results = self.look().results
        plain = [name for name in self.accepted if name.startswith("plain")]
        unanswered = sorted(name for name in plain if results.get(name, ("",))[0] not in READY)

        def act() -> None:
            with redis_client.broker() as client:
                missing = locate.missing(unanswered, client) if unanswered else set()
                missing &= locate.missing(missing, client) if missing else missing
            for label in sorted(missing):
                self.log.append(f"the caller misses {label}")
                self._send(label)

        self.caller = self.begin(Actor(Process("caller"), "caller", act))

    def operate(self, name: str, func: Callable[[], object]) -> None:
        """Have the operator do something."""
        self.log.append(f"the operator {name}")
        self.operator = self.begin(Actor(Process("operator"), "operator", func))

    def ask_operator(self, what: str) -> None:
        """Have the operator do what operators do: ``cancel=TASK``, ``replay``, ``pause`` or ``resume``."""
        verb, _, task_id = what.partition("=")
        match verb:
            case "cancel":
                self.cancel(task_id)
            case "replay":
                self.replay_letters()
            case "pause":
                self.operate("pauses", lambda: pause.pause(QUEUE))
            case "resume":
                self.operate("resumes", lambda: pause.resume(QUEUE))

    def replay_letters(self) -> None:
        """Have the operator replay every letter."""

        def act() -> None:
            for letter in tuple(dead_letters.newest()):
                # From here on an answer may take the place of the one that came with the letter.
                self.replayed[letter.id.partition(":")[0]] += 1
                with suppress(replay.NotReplayable):  # Another call has its unique key.
                    replay.replay(letter)

        self.operate("replays letters", act)

    def cancel(self, task_id: str) -> None:
        """Have the operator cancel a task."""

        def act() -> None:
            cancellation.cancel(task_id, settings().result_ttl)
            self.cancelled.add(task_id)

        self.operate(f"cancels {task_id}", act)

    def duplicate(self, task_id: str) -> None:
        """The network delivers a message that waits twice: a send whose reply was lost, and that was repeated."""
        for key in lists(QUEUE):
            for raw in self.redis.lrange(key, 0, -1):
                if id_of(raw) == task_id:
                    self.redis.lpush(key, raw)
                    self.forget_look()
                    self.doubled[task_id] += 1
                    self.log.append(f"{task_id} is doubled")
                    return
