"""The calls of one pool whose processes are guests.

    the pool's own queue of calls ── one thread ── items on the road ──► workers' guests
    the pool's own queue of results ◄── one thread: what a call wrote, then its result ◄──

The pool believes that it has processes (context.py). As many calls are on their way as it has of those. A guest that
ends in the middle of a call takes one of them with it: a ProcessPoolExecutor is broken then, as it always was.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterable
from concurrent.futures import CancelledError, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from graft.compat.guests import call_frames, output
from graft.compat.guests.call_frames import CallFrame
from graft.compat.guests.leases import Leases
from graft.compat.guests.pool_queues import CallsQueue, ResultsQueue
from graft.config.deployment import part, settings
from graft.tasks.errors import CancelledBatchError, EnvelopeError
from graft.tasks.guests import guest_program, values
from graft.tasks.guests.host import Answer, run_call

if TYPE_CHECKING:
    from graft.compat.dispatcher import CallDispatcher
    from graft.compat.guests.decision import Moved, PoolKind
    from graft.compat.guests.watched_calls import WatchedCalls
    from graft.compat.routes import Route
    from graft.tasks.guests.mapped_files import MappedFile

logger = logging.getLogger(__name__)

ENDS: Final = 5.0  # Seconds for which a terminated pool waits for workers to say that its calls have ended.
MOVED: Final = "its processes are guests on workers"


class Member(Protocol):
    """A process that the pool believes it has."""

    def note_end(self, exitcode: int) -> None:
        """It has ended."""


@dataclass(eq=False, slots=True)
class _Sent:
    """What is under way: a *step*, and for a call its frame as it travels, and the files that it maps."""

    step: str
    call: CallFrame | None
    packed: values.Call | None = None
    files: tuple[MappedFile, ...] = ()
    stored: set[str] = field(default_factory=set)  # Of its files: a worker's machine lacked them.


class Group:
    """The calls of one pool, from *calls_queue* to guests, and their results to *results_queue*."""

    def __init__(
        self, kind: PoolKind, moved: Moved, dispatcher: CallDispatcher, calls_queue: Any, results_queue: Any,
        watched: WatchedCalls,
    ) -> None:  # fmt: skip
        self.pool = moved.pool
        self._kind, self._dispatcher = kind, dispatcher
        self._calls, self._results = CallsQueue(kind, calls_queue), ResultsQueue(kind, results_queue)
        self._watched = watched
        self._changed = threading.Condition()
        self._members: list[Member] = []
        self._in_flight = 0
        self._has_begun = self._is_ending = self._is_interrupted = self._refuses = False
        self._interrupts = 0
        self._ended: queue.SimpleQueue[tuple[Future[Any], _Sent] | None] = queue.SimpleQueue()
        self._routes: dict[str, Route] = {}
        self._values = values.SharedValues(self.pool)
        self._sending = threading.Thread(target=self._send, name="graft-guests", daemon=True)
        part(Leases).add(self.pool, self)

    def join(self, member: Member) -> None:
        """One more process of the pool has started."""
        with self._changed:
            self._members.append(member)
            self._changed.notify_all()
            is_first, self._has_begun = not self._has_begun, True
        if is_first:
            self._sending.start()
            threading.Thread(target=self._receive, name="graft-guests", daemon=True).start()
        if self._kind.kind == "pool" and self._kind.initializer is not None:
            self._make("start", None)  # A pool's processes run it whether there are calls or not.

    def end(self, member: Member, exitcode: int) -> None:
        """*member* has ended; with the last one the pool has."""
        with self._changed:
            if member in self._members:
                self._members.remove(member)
            self._changed.notify_all()
            is_last = not self._members
        if is_last:
            self._finish()  # First: the program may end as soon as it hears of it.
        member.note_end(exitcode)

    def terminate(self, exitcode: int) -> None:
        """End the calls that run, on workers too; then all processes have ended."""
        with self._changed:
            if self._is_ending:
                return
            self._is_ending = True
        self._finish()
        self._dispatcher.end_running()
        threading.Thread(target=self._end_all, args=(exitcode,), name="graft-guests-end", daemon=True).start()

    def interrupt(self) -> None:
        """Ctrl-C: end the calls that run, as it would in processes of this machine."""
        if not self._kind.hears_interrupts:
            return
        with self._changed:
            self._is_interrupted = True
            self._interrupts += 1
            # Idle processes of an executor would end with it.
            self._refuses = self._refuses or (self._kind.kind == "executor" and not self._in_flight)
        self._dispatcher.end_running()

    def refuse_calls(self) -> None:
        """Ctrl-C came while the pool was made: processes would have ended with it, and so do its calls."""
        if self._kind.hears_interrupts:
            self._is_interrupted = self._refuses = True

    def lose(self) -> None:
        """The lease was lost: the guests have ended."""
        logger.error("the guests of a pool have ended: its lease in Redis was not renewed within %g s",
                     settings().guest_lease)  # fmt: skip
        for member in list(self._members):
            self.end(member, -9)

    # ---- on threads of its own --------------------------------------------------------------------------------------

    def _send(self) -> None:
        try:
            while (frame := self._next()) is not None:
                if frame == self._calls.farewell:
                    with self._changed:
                        member = self._members[-1] if self._members else None
                    if member is not None:
                        self.end(member, 0)
                    continue
                self._make("call", frame)
        except EOFError:  # The pool has closed its queue, and nothing is left in it.
            for member in list(self._members):
                self.end(member, 0)
        except Exception:
            logger.exception("the calls of a pool can no longer be sent")
            for member in list(self._members):
                self.end(member, 1)

    def _next(self) -> bytes | None:
        """The next frame of the pool's queue, once a process is free for it; None when there are no processes."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_ending or not self._members or self._is_free())
                if self._is_ending or not self._members:
                    return None
            if not self._calls.wait():
                return None
            if (frame := self._calls.take()) is not None:
                return frame

    def _is_free(self) -> bool:
        return self._in_flight < len(self._members)

    def _make(self, step: str, frame: bytes | None) -> None:
        sent = _Sent(step, None if frame is None else call_frames.read(frame, self._kind.kind))
        with self._changed:
            if step == "call":
                self._in_flight += 1
        try:
            if sent.call is not None and frame is not None:
                sent.files = self._kind.files_of(sent.call.work_id)
                sent.packed = self._values.store(frame)
        except Exception as error:
            self._fail(sent, error)
            return
        self._follow(sent)

    def _follow(self, sent: _Sent) -> None:
        interrupts = self._interrupts
        try:
            arguments = (self.pool, sent.step, sent.packed, sent.files)
            if self._refuses and sent.step == "call":
                raise BrokenProcessPool("Ctrl-C has ended the processes of the pool")
            future: Future[Any] = self._dispatcher.follow(self._route(sent.call), arguments, {})
            if self._interrupts != interrupts:  # Ctrl-C came before it could be ended.
                self._dispatcher.end_running()
            future.add_done_callback(lambda ended: self._ended.put((ended, sent)))
        except Exception as error:
            self._fail(sent, error)

    def _fail(self, sent: _Sent, error: Exception) -> None:
        future: Future[Any] = Future()
        future.set_exception(error)
        self._ended.put((future, sent))

    def _send_again(self, sent: _Sent, lacks: Iterable[str]) -> None:
        """A worker's machine lacks files that the call maps: send it with them."""
        try:
            for path in lacks:
                if path in sent.stored:
                    raise EnvelopeError(
                        f"a worker finds {path}, which a call maps, neither on its machine nor in Redis"
                    )
                self._values.store_file(path)
                sent.stored.add(path)
        except Exception as error:
            self._fail(sent, error)
            return
        self._follow(sent)

    def _route(self, call: CallFrame | None) -> Route:
        name = call.function if call else "?:initializer"
        route = self._routes.get(name)
        if route is None:
            module, _, qualname = name.partition(":")
            shown = cast("Any", SimpleNamespace(__module__=module, __qualname__=qualname))
            route = self._dispatcher.route(run_call, call="", batch_size=1, shown=shown)
            self._routes[name] = route
        return route

    def _receive(self) -> None:
        while (ended := self._ended.get()) is not None:
            future, sent = ended
            is_over = True
            try:
                is_over = self._take(future, sent)
                if is_over and sent.packed is not None:
                    self._values.release(sent.packed, sent.stored)
            except Exception:
                logger.exception("the result of a pool's call could not be taken")
            finally:
                if sent.call is not None and is_over:
                    with self._changed:
                        self._in_flight -= 1
                        self._changed.notify_all()
            del future, sent, ended

    def _take(self, future: Future[Any], sent: _Sent) -> bool:
        """Whether what was sent is over; else it was sent again."""
        call = sent.call
        try:
            answer = Answer.of(future.result())
            if not self._kind.is_silent:
                output.replay(answer.events)
            if answer.lacks and not self._is_ending:
                self._send_again(sent, answer.lacks)
                return False
            if call is not None:
                key = call.work_id if self._kind.kind == "executor" else (call.job, call.index)
                self._watched.note_work(key, answer.seconds, answer.cpu)
            if answer.exitcode is not None:
                self._note_dead_guest(call, answer.exitcode)
            elif call is not None and answer.result is not None:
                self._results.put(values.take(answer.result))
        except (Exception, CancelledError) as error:
            self._note_error(call, error)
        return True

    def _note_dead_guest(self, call: CallFrame | None, exitcode: int) -> None:
        if self._is_ending:
            return
        if self._kind.kind == "executor":  # It finds that one of its processes has ended, and is broken.
            with self._changed:
                member = self._members[-1] if self._members else None
            if member is not None:
                self.end(member, exitcode)
            return
        self._note_error(call, BrokenProcessPool(
            f"a process of the pool ended with exit code {exitcode} during the call; the standard library's pool would "
            "wait for it for ever"
        ))  # fmt: skip

    def _note_error(self, call: CallFrame | None, error: BaseException) -> None:
        if call is None:
            if not self._is_ending:
                logger.error("the initializer of a pool did not run on a worker: %s", error)
            return
        if isinstance(error, CancelledBatchError | CancelledError) and (self._is_interrupted or self._is_ending):
            error = KeyboardInterrupt()
        self._results.fail(call, error)

    def _end_all(self, exitcode: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._in_flight, ENDS)
        for member in list(self._members):
            self.end(member, exitcode)

    def _finish(self) -> None:
        """No process is left, or will be: the guests end."""
        if not self._calls.shut():
            return
        part(Leases).remove(self.pool)
        self._dispatcher.close()
        with suppress(Exception):  # The lease ends them too.
            guest_program.end(self.pool)
            self._values.clear()
        threading.Thread(target=self._close, name="graft-guests-end", daemon=True).start()

    def _close(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._in_flight and not self._members, 2 * ENDS)
        self._ended.put(None)
        self._sending.join()
        self._calls.close()
