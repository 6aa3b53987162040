"""Protocols that are known to be wrong, each by one change: the model must find what that breaks.

Each was somebody's once: kombu takes a message and records it then, earlier versions of ours did the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from graft.config import keys, lua
from graft.config.redis_client import shared
from graft.config.transport import fetch, quarantine
from graft.config.transport.channel import Channel
from graft.config.transport.qos import QoS
from graft.scripts.model.world import World
from graft.tasks import guard
from graft.tasks.dead_letters import replay
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.delivery import cancellation, lease, outbox
from graft.tasks.envelope import RUN_ENVELOPE
from graft.tasks.pools.state import HAS_TO_WAIT, RedisPool
from graft.tasks.queues import pause
from graft.tasks.running import work_stealing
from graft.tasks.running.envelope_run import EnvelopeRun
from graft.tasks.running.work_stealing import Offer


def _record_later(qos: QoS, message: Any, tag: str) -> None:
    qos.channel.recorded_tag = ""
    with qos.channel.conn_or_acquire() as client:
        seconds, _ = client.time()
        raw, info = message._raw, message.delivery_info
        client.hset(keys.UNACKED, tag, _dumps([raw, info["exchange"], info["routing_key"]]))
        client.zadd(keys.UNACKED_INDEX, {tag: seconds})
    qos._quick_append(tag, message)


def _dumps(record: list[Any]) -> str:
    from kombu.utils.json import dumps

    return str(dumps(record))


def _count_then_close(record: Any, request: Any, error: BaseException | None) -> None:
    record.client.hincrby(record.key, "runs", 1)


def _overdue_by_local_clock(qos: QoS, most: int) -> tuple[float, bool, dict[bytes, bytes | None]]:
    import time

    latest = time.time() - qos.visibility_timeout
    with qos.channel.conn_or_acquire() as client:
        tags = client.zrange(qos.unacked_index_key, 0, latest, byscore=True, offset=0, num=most)
        return latest, False, {tag: client.hget(qos.unacked_key, tag) for tag in tags}


def _drop_then_keep(channel: Channel, raw: bytes, queue: str, reason: str, detail: str) -> None:
    channel.qos._drop(channel.recorded_tag)
    with channel.conn_or_acquire() as client:
        quarantine.keep(client, "", raw, queue, reason, detail)


def _give_away_untold(run: EnvelopeRun, indexes: list[int]) -> bool:
    return bool(work_stealing.send_children(run.envelope, indexes, RUN_ENVELOPE, run.request))


def _give_away_and_keep(offer: Offer) -> None:
    if offer._share is not None and offer._todo:
        offer._share(list(offer._todo))


def _look_then_begin(pool: RedisPool, member: str, score: float, owner: str = "", tasks: int = 1) -> int:
    if shared().hlen(pool.keys[1]):
        return HAS_TO_WAIT
    shared().hset(pool.keys[1], member, f"0 begun 0 {tasks}")
    return 0


def _remove_then_send(letter: dead_letters.DeadLetter) -> bool:
    message = replay.message_of(letter)
    dead_letters.remove(letter)
    replay.publish(message)
    return True


@dataclass(frozen=True)
class Variant:
    """One wrong protocol, and the smallest deployment that shows it.

    ``lines`` of scripts are left out, or others put ``instead``; ``patches`` replace functions; the clocks of some
    workers go wrong (``skew``); the caller hears what is stored, and no announcement (``is_deaf``).
    """

    what: str
    labels: tuple[str, ...]
    deaths: int = 0
    jumps: int = 0
    lines: tuple[str, ...] = ()
    instead: tuple[tuple[str, str], ...] = ()
    patches: tuple[tuple[Any, str, Callable[..., Any]], ...] = ()
    skew: Mapping[str, float] = field(default_factory=dict)
    operations: tuple[str, ...] = ()
    is_deaf: bool = False

    @contextmanager
    def installed(self, world: World) -> Iterator[None]:
        """Meanwhile the model plays this.

        Raises:
            LookupError: a line stands in no script any more; what is not changed is not found wrong.
        """
        scripts = b"".join((*lua.LOADED, fetch.FETCH.encode()))
        for line in (*self.lines, *(line for line, _ in self.instead)):
            if line.encode() not in scripts:
                raise LookupError(f"no script has the line {line!r}: the variant is out of date")
        before = [(where, name, getattr(where, name)) for where, name, _ in self.patches]
        for where, name, value in self.patches:
            setattr(where, name, value)
        world.wire.rewrite = self._rewritten
        world.wrong_clocks = dict(self.skew)
        world.begins_deaf = self.is_deaf
        world.know_scripts()
        try:
            yield
        finally:
            for where, name, value in before:
                setattr(where, name, value)
            world.wire.rewrite = lambda text: text
            world.wrong_clocks = {}
            world.begins_deaf = False
            world.know_scripts()

    def _rewritten(self, text: str) -> str:
        for line, other in (*((line, "") for line in self.lines), *self.instead):
            text = text.replace(line, other)
        return text


SETTLED: Final = "redis.call('HDEL', unacked, delivery) == 1"
VARIANTS: Final[Mapping[str, Variant]] = {
    "pop-then-record": Variant(
        "a message is taken in one step and recorded in the next", ("plain-a",),
        lines=(
            "redis.call('HSET', record, unpack(records))",
            "redis.call('ZADD', index, unpack(times))",
        ),
        patches=((QoS, "append", _record_later),),
    ),
    "count-after-run": Variant(
        "a run is counted when it has ended", ("kills-process-a",),
        lines=(
            "redis.call('HSET', record, 'runs', runs + 1)",
            "if delivery ~= '' then redis.call('HSET', record, 'begun:' .. delivery, runs + 1) end",
        ),
        patches=((guard, "_close", _count_then_close),),
    ),
    "settle-without-fence": Variant(
        "whoever has run a message concludes, whether or not it still holds it", ("fails-first-a",), jumps=1,
        patches=((lease, "fence_of", lambda request: ""), (lease, "is_certain", lambda: True)),
    ),
    "sweep-by-local-clock": Variant(
        "leases end by the clock of whoever sweeps", ("plain-a",), skew={"w1": 120.0},
        patches=((QoS, "_overdue", _overdue_by_local_clock),),
    ),
    "check-then-sweep": Variant(
        "a sweep looks whether a lease has ended, and takes the message then", ("plain-a",), jumps=1,
        instead=(("not (renewed and tonumber(renewed) > latest)", "true"),),
    ),
    "answer-then-settle": Variant(
        "a result is stored in one step and its message acknowledged in the next", ("fails-first-a",), deaths=1,
        lines=(
            "redis.call('ZREM', index, delivery)",
            f"if {SETTLED} then push_messages(6, 9) end",
        ),
    ),
    "send-then-settle": Variant(
        "the next step of a chain is sent, and then the message acknowledged: Celery's way", ("chained-a",), deaths=1,
        patches=((outbox, "_of_current_run", lambda: None),),
    ),
    "retry-then-settle": Variant(
        "a retry is sent, and then the message acknowledged: Celery's way", ("retries-a",),
        patches=((outbox, "_of_current_run", lambda: None),),
    ),
    "settle-whatever-is-held": Variant(
        "whoever ends a run sends what follows, whether or not its message is still its own", ("chained-a",), jumps=1,
        lines=("if delivery ~= '' and has_gone_back then return -1 end",),
        instead=((f"if {SETTLED} then", "do"),),
    ),
    "drop-then-quarantine": Variant(
        "a message that cannot be read is dropped, and then kept in the quarantine", ("garbled-a",), deaths=1,
        patches=((Channel, "quarantine", _drop_then_keep),),
    ),
    "envelope-without-fence": Variant(
        "whoever has run an envelope answers, whether or not another has its message by then", ("unique-a",), jumps=1,
        lines=("if delivery ~= '' and redis.call('EXISTS', returned) == 1 then return -1 end",),
    ),
    "give-key-back-unfenced": Variant(
        "whoever ends a run gives its unique key back, whether or not another has its message by then", ("unique-a",),
        jumps=1, instead=(
            (
                "if delivery ~= '' and redis.call('EXISTS', returned) == 1 then return -1 end",
                "if delivery ~= '' and redis.call('EXISTS', returned) == 1 then "
                "if call ~= '' then give_key_back(unique, call, keeps) end return -1 end",
            ),
        ),
    ),
    "begin-though-replaced": Variant(
        "a unique call that another has replaced begins once that has ended", ("unique-a", "unique-b"),
        instead=((" or redis.call('EXISTS', key .. '\\n' .. id) == 1 then return 0 end", " then return 0 end"),),
    ),
    "give-away-untold": Variant(
        "items are given away, and the report does not say to whom", ("items-a",),
        patches=((EnvelopeRun, "share", _give_away_untold),),
    ),
    "give-away-and-keep": Variant(
        "items are given away, and run here too", ("items-a",), is_deaf=True,
        patches=((Offer, "share", _give_away_and_keep),),
    ),
    "look-then-begin": Variant(
        "a task looks whether its pool has a free slot, and takes it then", ("pooled-a", "pooled-b"),
        patches=((RedisPool, "begin", _look_then_begin),),
    ),
    "wait-without-message": Variant(
        "the pool keeps who waits for a slot, and not its message", ("pooled-a", "pooled-b"),
        lines=("redis.call('HSET', messages, member, message)",),
    ),
    "cancel-unread": Variant(
        "nobody looks at the flag of what is cancelled when it begins", ("plain-a",), operations=("cancel=plain-a",),
        patches=((cancellation, "of_envelope", lambda *_: cancellation.NOTHING),),
    ),
    "remove-then-send": Variant(
        "a replay takes the letter away, and sends its message then", ("raises-a",), deaths=1, operations=("replay",),
        patches=((replay, "replay", _remove_then_send),),
    ),
    "resume-in-vain": Variant(
        "a queue that was paused stays so", ("plain-a",), operations=("pause", "resume"),
        patches=((pause, "resume", lambda queue: None),),
    ),
}  # fmt: skip
