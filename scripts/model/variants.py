"""Protocols that are known to be wrong, each by one change: the model must find what that breaks.

Each was somebody's once: kombu takes a message and records it then, earlier versions of ours did the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from graft.config import keys
from graft.config.transport import quarantine
from graft.config.transport.channel import Channel
from graft.config.transport.qos import QoS
from graft.scripts.model.world import World
from graft.tasks import guard
from graft.tasks.delivery import lease, outbox


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


def _check_then_take(qos: QoS, client: Any, latest: float, start: int | None, most: int | None) -> None:
    for tag in client.zrange(qos.unacked_index_key, latest, 0, desc=True, byscore=True, offset=start, num=most):
        renewed = client.zscore(qos.unacked_index_key, tag)
        if renewed is None or renewed <= latest:
            qos.restore_by_tag(tag, client)


def _local_now(qos: QoS, client: Any) -> float:
    import time

    return time.time()


def _drop_then_keep(channel: Channel, raw: bytes, queue: str, reason: str, detail: str) -> None:
    channel.qos._drop(channel.recorded_tag)
    with channel.conn_or_acquire() as client:
        quarantine.keep(client, "", raw, queue, reason, detail)


@dataclass(frozen=True)
class Variant:
    """One wrong protocol, and the smallest deployment that shows it.

    ``lines`` of scripts are left out, or others put ``instead``; ``patches`` replace functions; the clocks of some
    workers go wrong (``skew``).
    """

    what: str
    labels: tuple[str, ...]
    deaths: int = 0
    jumps: int = 0
    lines: tuple[str, ...] = ()
    instead: tuple[tuple[str, str], ...] = ()
    patches: tuple[tuple[Any, str, Callable[..., Any]], ...] = ()
    skew: Mapping[str, float] = field(default_factory=dict)

    @contextmanager
    def installed(self, world: World) -> Iterator[None]:
        """Meanwhile the model plays this."""
        before = [(where, name, getattr(where, name)) for where, name, _ in self.patches]
        for where, name, value in self.patches:
            setattr(where, name, value)
        world.wire.rewrite = self._rewritten
        world.wrong_clocks = dict(self.skew)
        world.know_scripts()
        try:
            yield
        finally:
            for where, name, value in before:
                setattr(where, name, value)
            world.wire.rewrite = lambda text: text
            world.wrong_clocks = {}
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
            "redis.call('HSET', record, tag, '[' .. raw .. ',\"\",' .. ARGV[1 + queue] .. ']')",
            "redis.call('ZADD', index, now, tag)",
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
        patches=((QoS, "_now", _local_now),),
    ),
    "check-then-sweep": Variant(
        "a sweep looks whether a lease has ended, and takes the message then", ("plain-a",), jumps=1,
        patches=((QoS, "_sweep", _check_then_take),),
    ),
    "answer-then-settle": Variant(
        "a result is stored in one step and its message acknowledged in the next", ("fails-first-a",), deaths=1,
        lines=(
            "redis.call('ZREM', index, delivery)",
            f"if {SETTLED} then push_messages(6, 8) end",
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
        lines=("if delivery ~= '' and redis.call('EXISTS', returned) == 1 then return -1 end",),
        instead=((f"if {SETTLED} then", "do"),),
    ),
    "drop-then-quarantine": Variant(
        "a message that cannot be read is dropped, and then kept in the quarantine", ("garbled-a",), deaths=1,
        patches=((Channel, "quarantine", _drop_then_keep),),
    ),
}  # fmt: skip
