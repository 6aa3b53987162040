"""What Redis holds, in the words of the model."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from graft.config import keys
from graft.config.transport import quarantine
from graft.tasks.dead_letters import store as dead_letters

ID: Final = re.compile(rb'"correlation_id": ?"([^"]*)"')
MEMBER: Final = 16  # How much of an envelope's name in a pool comes before its id.
LOOK: Final = f"""
local waiting, results, runs = {{}}, {{}}, {{}}
for _, key in ipairs(ARGV) do
  local found = redis.call('LRANGE', key, 0, -1)
  for i = #found, 1, -1 do waiting[#waiting + 1] = found[i] end
end
for _, key in ipairs(redis.call('KEYS', 'celery-task-meta-*')) do results[#results + 1] = redis.call('GET', key) end
for _, key in ipairs(redis.call('KEYS', '{keys.RUN}*')) do
  runs[#runs + 1] = key
  runs[#runs + 1] = redis.call('HGETALL', key)
end
return {{
  waiting, redis.call('HGETALL', '{keys.UNACKED}'), redis.call('ZRANGE', '{keys.UNACKED_INDEX}', 0, -1, 'WITHSCORES'),
  results, redis.call('HVALS', '{dead_letters.LETTERS}'), redis.call('LRANGE', '{quarantine.MESSAGES}', 0, -1), runs,
  redis.call('HGETALL', '{keys.POOL}model:slots'),
  redis.call('HGETALL', '{keys.POOL}model:messages'), redis.call('HGETALL', '{keys.POOL}model:clients'),
  redis.call('SMEMBERS', '{keys.PAUSED}'), redis.call('ZRANGE', '{keys.CANCELLED}', 0, -1),
  redis.call('HGET', '{keys.UNIQUE}model', 'id'),
}}
"""


@dataclass(frozen=True)
class Snapshot:
    """What Redis holds: by task, whose ids these are.

    Attributes:
        queue: each waiting message's task, and whether it was lost before; the next one first.
        held: the task of each message on record as held, by delivery tag.
        leases: when each lease was renewed last, by Redis's clock.
        results: state and value of each result.
        letters: the reason of each letter.
        quarantined: messages in the quarantine.
        runs: the fields of each record of runs.
        item_letters: the reason of each letter that is about one item, or some, of an envelope, by its whole id.
        slots: what the pool says of each envelope that has a slot.
        parked: envelopes whose message the pool has.
        places: how many places in the pool's queue are taken.
        is_paused: the queue is.
        cancelled: under which names a flag is up.
        key_of: the call that has the unique key.
    """

    queue: list[tuple[str, bool]]
    held: dict[str, str]
    leases: dict[str, float]
    results: dict[str, tuple[str, str]]
    letters: dict[str, str]
    quarantined: frozenset[str]
    runs: dict[str, list[tuple[bytes, bytes]]]
    item_letters: dict[str, str]
    slots: dict[str, str]
    parked: frozenset[str]
    places: int
    is_paused: bool
    cancelled: frozenset[str]
    key_of: str

    @classmethod
    def of(cls, reply: Any) -> Snapshot:
        """The snapshot in what LOOK returned."""
        (
            waiting,
            held,
            leases,
            results,
            letters,
            quarantined,
            runs,
            slots,
            parked,
            clients,
            paused,
            cancelled,
            key_of,
        ) = reply
        records = [json.loads(text) for text in results]
        kept = [json.loads(text) for text in letters]
        return cls(
            [(id_of(raw), b'"redelivered": true' in raw) for raw in waiting],
            {tag.decode(): id_of(raw) for tag, raw in pairs(held)},
            {tag.decode(): float(at) for tag, at in pairs(leases)},
            {one["task_id"]: (one["status"], str(one["result"])) for one in records},
            {one["id"].partition(":")[0]: one["reason"] for one in kept},
            frozenset(id_of(b64decode(json.loads(one)["raw"])) for one in quarantined),
            {key.decode(): list(pairs(record)) for key, record in pairs(runs)},
            {one["id"]: one["reason"] for one in kept if ":" in one["id"]},
            {member.decode()[MEMBER:]: " ".join(mark.decode().split(" ")[:2]) for member, mark in pairs(slots)},
            frozenset(member.decode()[MEMBER:] for member, text in pairs(parked) if text[:1] == b"["),
            sum(int(value) for name, value in pairs(clients) if name.startswith(b"places:")),
            bool(paused),
            frozenset(name.decode() for name in cancelled),
            (key_of or b"").decode(),
        )

    @property
    def copies(self) -> Counter[str]:
        """How often the message of each task is there, waiting or held."""
        return Counter([*self.waiting, *self.held.values()])

    @property
    def waiting(self) -> list[str]:
        """The tasks that wait, the next one first."""
        return [name for name, _ in self.queue]


def pairs(flat: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(flat[::2], flat[1::2], strict=True)


def id_of(raw: bytes) -> str:
    found = ID.search(raw)
    return "" if found is None else found[1].decode()
