"""Samples of Redis itself: families of keys that never expire, reply queues, bindings, channels, clients."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, Final

from redis.exceptions import NoPermissionError

from graft.config.keys import BINDINGS, LEAKS, RESULT
from graft.tasks.leaks.trend import Measure
from graft.tasks.messages.message_format import SEPARATOR
from graft.tasks.queues import existing

logger = logging.getLogger(__name__)

SERIES: Final = f"{LEAKS}redis"
LENGTH: Final = 240
SCANNED: Final = 20_000  # Keys in one sample; of more, those that SCAN meets first stand for all.
PAGE: Final = 1000
SIZED: Final = 300  # Keys of which the elements are counted.

# Grows and shrinks with the work, and has checks of its own.
_OURS: Final = re.compile(
    r"unacked|graft:(unacked|dead-letters|quarantine|health|leaks|workers|queues|figures$|chords?)"
)
_PARTS: Final = (
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "*"),
    (re.compile(r"[0-9a-fA-F]{16,}"), "*"),
    (re.compile(r"\d+"), "*"),
    (re.compile(r"\*(?:[-:._]?\*)+"), "*"),
)
_SIZES: Final = {
    b"list": "llen", b"set": "scard", b"zset": "zcard", b"hash": "hlen", b"stream": "xlen", b"string": "strlen",
}  # fmt: skip


@dataclass(frozen=True)
class RedisSample:
    """``values`` by measure, ``evidence`` an example for each, ``ran`` what all workers ran since the sample before."""

    at: float
    values: dict[str, float]
    ran: dict[str, int] = field(default_factory=dict)
    evidence: dict[str, str] = field(default_factory=dict)
    results: int = 0


def family(key: str) -> str:
    """*key* with its ids and numbers replaced by ``*``."""
    for pattern, instead in _PARTS:
        key = pattern.sub(instead, key)
    return key


def measure_of(name: str) -> Measure:
    """The measure called *name*, with the growth of it that is noise."""
    kind = name.partition(" ")[0]
    floors = {"keys": 50, "elements": 1000, "connections": 8, "bindings": 20, "channels": 50}
    return Measure(name, {"keys": "keys", "elements": "elements"}.get(kind, kind), floors.get(kind, 50), 0.05)


def sample(client: Any, at: float, ran: Mapping[str, int]) -> RedisSample:
    """Measure the Redis behind *client*."""
    keys, scale = _some_keys(client)
    persistent: defaultdict[str, list[str]] = defaultdict(list)
    results, queues = 0, set(existing.names())
    for key, expiry in _expiries(client, keys):
        results += key.startswith(RESULT)
        if expiry == -1 and not _OURS.match(key) and key.partition(SEPARATOR)[0] not in queues:
            persistent[family(key)].append(key)
    values: dict[str, float] = {f"keys {name}": len(found) * scale for name, found in persistent.items()}
    evidence = {f"keys {name}": f"for instance {found[-1]}" for name, found in persistent.items()}
    sized = _elements(client, persistent)
    values |= {f"elements {name}": count for name, count in sized.items()}
    values |= _bindings(client, persistent)
    values["channels"] = len(client.pubsub_channels()) + client.pubsub_numpat()
    clients, oldest = _clients(client)
    values |= {f"connections {name}": count for name, count in clients.items()}
    evidence |= {f"connections {name}": f"the oldest is {age:.0f} s old" for name, age in oldest.items()}
    return RedisSample(at, values, dict(ran), evidence, int(results * scale))


def _some_keys(client: Any) -> tuple[list[bytes], float]:
    """Keys, and for how many each stands."""
    found: list[bytes] = []
    cursor = 0
    while len(found) < SCANNED:
        cursor, page = client.scan(cursor, count=PAGE)
        found += page
        if cursor == 0:
            return found, 1.0
    return found, max(1.0, client.dbsize() / len(found))


def _expiries(client: Any, keys: list[bytes]) -> Iterable[tuple[str, int]]:
    for start in range(0, len(keys), PAGE):
        page = keys[start : start + PAGE]
        with client.pipeline(transaction=False) as pipe:
            for key in page:
                pipe.pttl(key)
            expiries = pipe.execute(raise_on_error=False)
        for key, expiry in zip(page, expiries, strict=True):
            if isinstance(expiry, NoPermissionError):
                continue  # The keys of another program, which this user may not read.
            if isinstance(expiry, Exception):
                raise expiry
            yield key.decode("utf-8", "replace"), expiry


def _elements(client: Any, persistent: Mapping[str, list[str]]) -> dict[str, int]:
    """Elements of each small family: one list that grows for ever is one key."""
    few = [(name, key) for name, found in persistent.items() if len(found) <= 10 for key in found][:SIZED]
    with client.pipeline(transaction=False) as pipe:
        for _, key in few:
            pipe.type(key)
        kinds = pipe.execute()
        for (_, key), kind in zip(few, kinds, strict=True):
            getattr(pipe, _SIZES.get(kind, "exists"))(key)
        sizes = pipe.execute(raise_on_error=False)
    totals: Counter[str] = Counter()
    for (name, _), kind, size in zip(few, kinds, sizes, strict=True):
        if isinstance(size, int) and kind != b"string":
            totals[name] += size
    return dict(totals)


def _bindings(client: Any, persistent: Mapping[str, list[str]]) -> dict[str, float]:
    tables = [key for name, found in persistent.items() if name.startswith(BINDINGS) for key in found]
    with client.pipeline(transaction=False) as pipe:
        for key in tables:
            pipe.scard(key)
        return {
            f"bindings {key.removeprefix('_kombu.binding.')}": count
            for key, count in zip(tables, pipe.execute(), strict=True)
        }


def _clients(client: Any) -> tuple[dict[str, int], dict[str, float]]:
    """How many connections have each name, and the age of the oldest in seconds; empty where that is forbidden."""
    try:
        listed = client.client_list()
    except NoPermissionError:
        _warn_that_connections_are_hidden()
        return {}, {}
    counts: Counter[str] = Counter()
    oldest: dict[str, float] = {}
    for one in listed:
        name = family(one.get("name") or "") or "without a name"
        counts[name] += 1
        oldest[name] = max(oldest.get(name, 0.0), float(one.get("age", 0)))
    return dict(counts), oldest


@cache
def _warn_that_connections_are_hidden() -> None:
    """Once in the life of a process."""
    logger.warning(
        "connections are not checked for leaks: this Redis user may not list them (ACL SETUSER … +client|list)"
    )


def keep(sample: RedisSample, client: Any) -> None:
    with client.pipeline(transaction=False) as pipe:
        pipe.rpush(SERIES, json.dumps(asdict(sample)))
        pipe.ltrim(SERIES, -LENGTH, -1)
        pipe.expire(SERIES, 86400)
        pipe.execute()


def series(client: Any) -> list[RedisSample]:
    """The samples that are kept, the oldest first."""
    return [RedisSample(**json.loads(text)) for text in client.lrange(SERIES, 0, -1)]
