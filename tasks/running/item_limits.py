"""The limits of an envelope's function, asked for one item after the other: who may not begin goes back, alone.

A plain envelope keeps a permit from item to item where both ask for the same: between two items nobody gains by it. On
the event loop each item has permits of its own, and waits there for one that is near: that occupies nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

from graft.config.deployment import part
from graft.tasks import blocking_threads, worker_runtime
from graft.tasks.envelope import Envelope
from graft.tasks.shared import admission
from graft.tasks.shared.admission import NEAR, Refusal
from graft.tasks.shared.semaphore import SharedSemaphore
from graft.tasks.shared.turns import Turn, TurnSource, turns_of

STEP: Final = 1.0  # Seconds: a turn that is further away is waited for in the queue,
IN_PLACE: Final = 5.0  # and so is one that has not come after so long on the loop of an io worker,
BESIDE: Final = 0.25  # or on that of a pool process, which could run something else.


class ItemLimits:
    """The limits of one run of one envelope."""

    def __init__(self, envelope: Envelope, source: TurnSource) -> None:
        self._envelope = envelope
        self._source = source
        self._held: dict[int, list[Turn]] = {}
        self._kept: dict[str, Turn] = {}  # Permits of plain items, by the primitive's prefix.
        self._shut: dict[str, tuple[float, Refusal]] = {}  # Until when a primitive need not be asked.
        self._refusals: dict[int, Refusal] = {}

    @classmethod
    def of(cls, envelope: Envelope, func: Callable[..., Any]) -> ItemLimits | None:
        """Those of *func*, None where it has none."""
        source = turns_of(func)
        return None if source is None else cls(envelope, source)

    # ---- plain items ------------------------------------------------------------------------------------------------

    def enter(self, index: int, item: Any) -> None:
        """Have the limits admit the item.

        Raises:
            NotYet: they do not now, and the item goes back to the queue.
            Exception: ``by`` raised, which is the item's own outcome.
        """
        turns = self._turns(item, self._envelope.id)
        wanted = {turn.primitive.prefix for turn in turns}
        self._let_go(prefix for prefix in list(self._kept) if prefix not in wanted)
        asked = [turn for turn in turns if turn.primitive.prefix not in self._kept]
        refusal = self._known_refusal(turns) or admission.enter(asked)
        until = time.monotonic() + NEAR
        while refusal is not None and time.monotonic() + refusal.wait <= until:
            time.sleep(refusal.wait)
            refusal = admission.enter(asked)
        if refusal is not None:
            raise self._refused(index, refusal)
        self._held[index] = turns

    def leave(self, index: int, error: BaseException | None) -> None:
        """The item has ended, with *error* or without one."""
        turns = self._held.pop(index, ())
        self._kept.update((turn.primitive.prefix, turn) for turn in turns if _is_permit(turn))
        admission.leave([turn for turn in turns if not _is_permit(turn)], error)

    def _let_go(self, prefixes: Iterable[str]) -> None:
        for prefix in prefixes:
            admission.release(self._kept.pop(prefix))

    # ---- items on the event loop ------------------------------------------------------------------------------------

    async def enter_on_loop(self, index: int, item: Any) -> None:
        """The same for a coroutine, which waits a little while where its turn is near."""
        if index in self._held:  # A plain function has been called already, and has returned an awaitable.
            return
        turns = self._turns(item, f"{self._envelope.id}:{self._envelope.positions[index]}")
        until = time.monotonic() + (BESIDE if part(worker_runtime.WorkerRuntime).off_loop is None else IN_PLACE)
        while (refusal := self._known_refusal(turns) or await admission.enter_on_loop(turns)) is not None:
            if refusal.wait > STEP or time.monotonic() + refusal.wait > until:
                raise self._refused(index, refusal)
            await part(_Line).wait(refusal)
        self._held[index] = turns

    async def leave_on_loop(self, index: int, error: BaseException | None) -> None:
        """The same for a coroutine. Who waits on this loop for the permit asks next."""
        if turns := [turn for turn in self._held.pop(index, ()) if turn.is_held]:
            try:
                await asyncio.shield(blocking_threads.ask(admission.leave, turns, error))
            finally:
                part(_Line).wake(turns)

    # ---- both -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """The run has ended: give everything back, and tell which items wait."""
        self._let_go(list(self._kept))
        for index in list(self._held):
            admission.abandon(self._held.pop(index))
        admission.tell_postponed(list(self._refusals.values()))
        self._refusals.clear()

    def withdraw(self, indexes: Iterable[int], *, is_plain: bool) -> None:
        """The items at *indexes*, which have waited, are cancelled: others need not wait for them."""
        for index in indexes:
            ticket = self._envelope.id if is_plain else f"{self._envelope.id}:{self._envelope.positions[index]}"
            with suppress(Exception):  # An item that cannot be opened, or whose key cannot be told, has asked nobody.
                admission.withdraw(self._turns(self._envelope.item(index), ticket))

    def _turns(self, item: Any, ticket: str) -> list[Turn]:
        args, kwargs = item if self._envelope.unpack else ((item,), {})
        return self._source.turns(args, kwargs, ticket)

    def _known_refusal(self, turns: Sequence[Turn]) -> Refusal | None:
        """That of another item of this run, which has asked the same a moment ago."""
        now = time.monotonic()
        for turn in turns:
            until, refusal = self._shut.get(turn.primitive.prefix, (0.0, None))
            if refusal is not None and until > now:
                return Refusal(refusal.turn, until - now)
        return None

    def _refused(self, index: int, refusal: Refusal) -> Exception:
        self._shut[refusal.turn.primitive.prefix] = (time.monotonic() + refusal.wait, refusal)
        self._refusals[index] = refusal
        return refusal.error()


def _is_permit(turn: Turn) -> bool:
    return isinstance(turn.primitive, SharedSemaphore)


class _Line:
    """The coroutines of this process that wait for a permit, in the order in which they came, by its prefix."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    async def wait(self, refusal: Refusal) -> None:
        """Wait as long as *refusal* says, or until a permit has been given back here."""
        prefix = refusal.turn.primitive.prefix
        woken = asyncio.get_running_loop().create_future()
        line = self._waiting.setdefault(prefix, deque())
        line.append(woken)
        try:
            await asyncio.wait([woken], timeout=refusal.wait)
        finally:
            with suppress(ValueError):
                line.remove(woken)
            if not line:
                self._waiting.pop(prefix, None)

    def wake(self, turns: Sequence[Turn]) -> None:
        """One that waits for each of *turns* asks now."""
        for turn in turns:
            line = self._waiting.get(turn.primitive.prefix)
            if line:
                woken = line.popleft()
                if not woken.done():
                    woken.set_result(None)
