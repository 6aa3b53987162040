"""Shadow and canary of one process: chooses calls, keeps the records, goes back to the old way."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from graft.compat.shadow.observation import Observation, Watching
from graft.compat.shadow.plan import Plan, Purpose, draw
from graft.compat.shadow.pool_calls import PoolCalls
from graft.compat.shadow.record import Record
from graft.compat.shadow.sender import AT_END, Sender
from graft.compat.shadow.switch import Switch
from graft.compat.shadow.verdicts import Verdict
from graft.tasks.callables.importable import name_of
from graft.tasks.errors import BrokerUnavailable, EnvelopeError, UnpicklableError
from graft.tasks.shared.turns import turns_of

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

    from graft.tasks.callables.references import FunctionRef
    from graft.tasks.sending.call_future import Call

logger = logging.getLogger("graft.compat.shadow")

CALLABLES: Final = 1000  # Records; further callables share one.
LOOK: Final = 1.0  # Seconds after which a caller who waits for the cluster looks whether Redis still answers.


class Live:
    """A plan that is carried out in this process. A :class:`graft.compat.old_way.Watcher`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.is_here = True  # A forked child has none of the threads.
        self._lock = threading.Lock()
        self._records: dict[str, Record] = {}
        self._backs: Mapping[str, str] = {}
        self.switch = Switch(plan, self._note_backs, lambda: self.verdict().as_json())
        self.sender = Sender(plan, self.check)
        self.watching = Watching(plan, self.sender)

    def watch(
        self,
        func: Callable[..., Any],
        function: FunctionRef | None,
        reason: str,
        *,
        shown: Callable[..., Any] | None = None,
        on_loop: bool = False,
    ) -> WatchedCallable:
        """*func* as it is to be called; see :class:`graft.compat.old_way.Watcher`."""
        shown = shown or func
        name = name_of(shown)
        record = self._record(name)
        if function is None:
            record.stays = reason
        elif turns_of(func) is not None:
            record.left_out = "it has a limit (@limit), which a second run would take from"
        else:
            record.left_out = self.plan.why_not(shown, name)
        return WatchedCallable(self, record, func, None if record.left_out else function, on_loop=on_loop)

    def watch_pool(
        self, make_twin: Callable[[str], ProcessPoolExecutor | str], dumps: Callable[[Any], Any] | None = None
    ) -> PoolCalls:
        """Who chooses the calls of a pool; see :class:`graft.compat.old_way.Watcher`."""
        return PoolCalls(self, make_twin, dumps)

    def pool_record(self, shown: Callable[..., Any], why: str) -> Record:
        """The record of a pool's calls of *shown*, which stay at home where there is a reason *why*."""
        name = name_of(shown)
        record = self._record(name)
        record.stays = why
        record.left_out = self.plan.why_not(shown, name)
        return record

    def note_canary(self, record: Record, error: BaseException | None, *, is_taken_back: bool) -> None:
        """The cluster was to answer a call, and has, or has not."""
        record.note_canary(failed=error is not None, taken_back=is_taken_back)
        if is_taken_back:
            logger.warning("%s: the old way answers a call that the cluster did not: %s", record.name, error)
        self.check(record)

    def after_fork(self) -> None:
        """A child answers the old way, and compares nothing."""
        self.is_here = False

    def records(self) -> list[Record]:
        """By callable, in the order of the first calls."""
        with self._lock:
            return list(self._records.values())

    def verdict(self) -> Verdict:
        """What is known so far."""
        return Verdict.of(self.plan, self.records())

    def finish(self, within: float | None = None) -> None:
        """Wait for what is outstanding, up to ten seconds unless *within* says otherwise; not if Redis is down."""
        if not self.is_here:
            return
        patience = AT_END if within is None else within
        self.sender.finish(patience if self.switch.shares() else 0.0)

    def stop(self) -> None:
        """End the threads; what is outstanding is given up."""
        self.finish(0.0)
        self.sender.stop()
        self.switch.stop()

    def chosen(self, record: Record, number: int) -> Purpose | None:
        """What the cluster has to do with the call *number* of a callable, if anything."""
        if not self.is_here:
            return None
        now, plan = self.switch.shares(), self.plan
        shares = now or self.switch.own
        purpose: Purpose | None = None
        if shares.canary and not record.back and draw(plan.seed, "canary", record.name, number) < shares.canary:
            purpose = "canary"
        elif shares.shadow and draw(plan.seed, "shadow", record.name, number) < shares.shadow:
            purpose = "shadow"
        if purpose is not None and now is None:
            record.note_missed()
            return None
        return purpose

    @property
    def counts_errors(self) -> bool:
        """Whether the errors of the old way are counted, to be set against those of the cluster."""
        return (self.switch.shares() or self.switch.own).canary > 0

    def check(self, record: Record) -> None:
        """Have the callable go back to the old way where its share of differences or errors is above the limit."""
        shares = self.switch.shares() or self.switch.own
        if record.back or not (why := record.beyond(shares.limit)):
            return
        told = logging.ERROR if shares.canary else logging.INFO
        logger.log(told, "%s goes back to the old way: %s", record.name, why)
        self.switch.go_back(record.name, why)
        record.go_back(why)

    def _record(self, name: str) -> Record:
        found = self._records.get(name)
        if found is None:
            with self._lock:
                name = name if len(self._records) < CALLABLES else "further callables"
                found = self._records.setdefault(name, Record(name))
                found.back = found.back or self._backs.get(name, "")
        return found

    def _note_backs(self, backs: Mapping[str, str]) -> None:
        """The callables of this program that went back, in any of its processes."""
        self._backs = backs
        for record in self.records():
            why = backs.get(record.name, "")
            if why != record.back:
                logger.warning(
                    "%s: %s", record.name, f"went back: {why}" if why else "may be answered by the cluster again"
                )
                record.go_back(why)


class _Numbered(NamedTuple):
    """A call whose number was given before it is made."""

    number: int
    args: Sequence[Any]
    kwargs: Mapping[str, Any]


class WatchedCallable:
    """One callable in the caller's place. The old way answers its calls, but for those that are chosen as canary."""

    def __init__(
        self, live: Live, record: Record, func: Callable[..., Any], ref: FunctionRef | None, *, on_loop: bool
    ) -> None:
        self._live, self._record, self._func, self._ref, self._on_loop = live, record, func, ref, on_loop
        functools.update_wrapper(self, func, updated=())  # Whoever names it in a message names the caller's own.

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if args and type(args[0]) is _Numbered:
            return self._call(*args[0])
        return self._call(self._record.numbered(), args, kwargs)

    def spread(self, items: Sequence[Any], *, unpack: bool) -> tuple[Callable[..., Any], list[Any]]:
        """See :class:`graft.compat.old_way.Watched`."""
        first = self._record.numbered(len(items))
        pairs = items if unpack else [((item,), {}) for item in items]
        return self, [((_Numbered(number, *pair),), {}) for number, pair in enumerate(pairs, first)]

    def _call(self, number: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        live = self._live
        chosen = None if self._ref is None else live.chosen(self._record, number)
        if chosen == "canary":
            return self._by_cluster(args, kwargs)
        if chosen is None and not live.plan.files and not live.counts_errors:
            return self._func(*args, **kwargs)
        call = Observation(live.watching, self._record, number, args, kwargs, self._ref if chosen else None)
        try:
            value = self._func(*args, **kwargs)
        except BaseException as error:
            call.raised(error)
            raise
        if inspect.isawaitable(value):
            return _awaited(call, value)
        call.returned(value)
        return value

    def _by_cluster(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        assert self._ref is not None
        try:
            future = self._live.sender.ask(self._ref, args, kwargs)
        except UnpicklableError:  # Rule R2: such a call stays in this process in the cluster's deployment, too.
            return self._func(*args, **kwargs)
        except Exception as error:
            self._note(error, is_taken_back=True)
            return self._func(*args, **kwargs)
        if self._on_loop:
            return self._awaited_cluster(future, args, kwargs)
        deadline = self._deadline()
        try:
            while not future.done():
                wait([future], self._left(deadline))
            value = future.result()
        except BaseException as error:
            if not self._takes_back(error, future):
                raise
            return self._func(*args, **kwargs)
        self._note(None)
        return value

    async def _awaited_cluster(self, future: Call, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        deadline = self._deadline()
        answer = asyncio.wrap_future(future)
        try:
            while not answer.done():
                await asyncio.wait([answer], timeout=self._left(deadline))
            value = answer.result()
        except BaseException as error:
            if not self._takes_back(error, future):
                raise
            value = self._func(*args, **kwargs)
            return await value if inspect.isawaitable(value) else value
        self._note(None)
        return value

    def _deadline(self) -> float:
        return time.monotonic() + self._live.sender.patience(self._record)

    def _left(self, deadline: float) -> float:
        """Seconds to wait before the next look; raises _NoAnswer where nobody is to wait longer."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise _NoAnswer("the cluster had no answer in time")
        if self._live.switch.shares() is None:
            raise _NoAnswer("Redis does not answer")
        return min(left, LOOK)

    def _takes_back(self, error: BaseException, future: Call) -> bool:
        """Whether the old way is to answer, because the cluster has not; False for an error of the call's own."""
        if isinstance(error, _NoAnswer) or not isinstance(error, Exception):  # The caller is interrupted, or cancelled.
            future.cancel()
        if not isinstance(error, Exception):
            return False
        is_taken_back = isinstance(error, _NoAnswer | BrokerUnavailable | EnvelopeError)
        self._note(error, is_taken_back=is_taken_back)
        return is_taken_back

    def _note(self, error: Exception | None, *, is_taken_back: bool = False) -> None:
        self._live.note_canary(self._record, error, is_taken_back=is_taken_back)


class _NoAnswer(Exception):
    """The caller waits no longer for the cluster."""


async def _awaited(call: Observation, value: Awaitable[Any]) -> Any:
    try:
        found = await value
    except BaseException as error:
        call.raised(error)
        raise
    call.returned(found)
    return found
