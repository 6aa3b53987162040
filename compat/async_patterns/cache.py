"""A cache with one computation per key: in this process, or by ``name=`` in the whole cluster."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, Final
from weakref import WeakSet

from graft.compat.async_patterns import polling
from graft.compat.local import awaited
from graft.compat.placement import shared_name
from graft.config.deployment import part
from graft.config.validation import seconds
from graft.tasks import blocking_threads
from graft.tasks.ids import new_id
from graft.tasks.shared.cache import LEASE, Found, SharedCache
from graft.tasks.shared.lease_renewer import lease_renewer

_NONE: Final = object()


class AsyncCache:
    """Keeps values for *ttl* seconds. A stored None is a hit.

    Args:
        ttl: seconds from the last :meth:`set`.
        name: one cache for all processes that use this name. Keys are then texts, bytes, numbers or tuples of these,
            and values are copies, which must pickle. Ignored in local mode.
        lease: seconds after which another process takes over the computation of one that was killed; only with a name.

    Source: the chapter's ``AsyncCache``. Difference: callers that miss one key at the same time share a computation;
    its error reaches all of them and is not stored.
    """

    def __init__(self, ttl: float, *, name: str | None = None, lease: float = LEASE) -> None:
        self.ttl = seconds("ttl", ttl)
        self._lock = threading.Lock()
        self._kept: dict[Hashable, tuple[float, Any]] = {}  # In the order in which they expire.
        self._working: dict[Hashable, Future[Any]] = {}
        self._shared = SharedCache(shared, ttl, lease) if (shared := shared_name(name)) else None

    def __len__(self) -> int:
        """Values in this process; some may have just expired."""
        return len(self._kept)

    async def get(self, key: Hashable, default: Any = None) -> Any:
        """The value of *key*; *default* when there is none, or its age has reached ``ttl``."""
        if self._shared is not None:
            found = await blocking_threads.ask(self._shared.get, key)
            return default if found is None else found.value
        with self._lock:
            value = self._fresh(key)
        return default if value is _NONE else value

    async def set(self, key: Hashable, value: Any) -> None:
        """Keep *value*; its age starts anew."""
        if self._shared is not None:
            await blocking_threads.ask(self._shared.set, key, value)
        else:
            self._keep(key, value)

    async def get_or_insert(self, key: Hashable, factory: Callable[[], Any]) -> Any:
        """The value of *key*; without one, that of ``factory()``, plain or async, which is kept.

        The factory runs in one caller at a time; if that one is cancelled, the next takes over.
        """
        if self._shared is not None:
            return await _get_or_insert(self._shared, key, factory)
        while True:
            with self._lock:
                value = self._fresh(key)
                if value is not _NONE:
                    return value
                working = self._working.get(key)
                if working is None:
                    working = self._working[key] = Future()
                    working.set_running_or_notify_cancel()  # One cancelled waiter must not cancel it for the others.
                    break
            value = await asyncio.wrap_future(working)
            if value is not _NONE:
                return value
        return await self._compute(key, factory, working)

    async def _compute(self, key: Hashable, factory: Callable[[], Any], working: Future[Any]) -> Any:
        try:
            value = await awaited(factory())
            self._keep(key, value)
        except BaseException as error:
            del self._working[key]
            if isinstance(error, Exception):
                working.set_exception(error)
            else:
                working.set_result(_NONE)  # Cancelled: a waiter computes it instead.
            raise
        del self._working[key]
        working.set_result(value)
        return value

    def _fresh(self, key: Hashable) -> Any:
        ends, value = self._kept.get(key, (0.0, _NONE))
        return value if ends > time.monotonic() else _NONE

    def _keep(self, key: Hashable, value: Any) -> None:
        with self._lock:
            self._kept.pop(key, None)
            self._kept[key] = (time.monotonic() + self.ttl, value)
        part(_Sweeper).watch(self)

    def sweep(self, now: float) -> float | None:
        """Drop expired values. When the next one expires, or None when none is left."""
        with self._lock:
            for key, (ends, _) in list(self._kept.items()):
                if ends > now:
                    return ends
                del self._kept[key]
        return None


async def _get_or_insert(shared: SharedCache, key: Any, factory: Callable[[], Any]) -> Any:
    ticket, waited_for = new_id(), ""

    def ask() -> Found | None:
        nonlocal waited_for
        found = shared.ask(key, ticket, waited_for)
        waited_for = found.owner
        return None if found.what == "wait" else found

    found = await polling.poll(ask)
    if found.what == "error":
        raise found.value
    if found.what == "value":
        return found.value
    lease_renewer().keep(ticket, lambda: shared.renew(key, ticket), shared.lease / 3)
    try:
        value = await awaited(factory())
        await blocking_threads.ask(shared.finish, key, ticket, value)
    except Exception as error:
        await polling.write(shared.fail, key, ticket, error)
        raise
    except BaseException:
        polling.soon(shared.give_up, key, ticket)
        raise
    finally:
        lease_renewer().drop(ticket)
    return value


class _Sweeper:
    """One thread for all caches of this process; it ends when all are empty."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._caches: WeakSet[AsyncCache] = WeakSet()
        self._thread: threading.Thread | None = None

    def watch(self, cache: AsyncCache) -> None:
        """Drop the values of *cache* when they expire."""
        with self._changed:
            if cache not in self._caches:
                self._caches.add(cache)
                self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._sweep, name="graft-cache-sweeper", daemon=True)
                self._thread.start()

    def _sweep(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                ends = []
                for cache in list(self._caches):
                    due = cache.sweep(now)
                    if due is None:
                        self._caches.discard(cache)
                    else:
                        ends.append(due)
                cache = None  # type: ignore[assignment]  # The sweeper must keep no cache alive.
                if not ends:
                    self._thread = None
                    return
                self._changed.wait(min(ends) - now)
