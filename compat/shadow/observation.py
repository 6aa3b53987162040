"""The caller's side of one call that the old way answers: what it did, recorded before the caller goes on."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graft.compat.shadow.compare import Run, error_of
from graft.compat.shadow.folders import CannotCompareError, Folder
from graft.compat.shadow.plan import Plan
from graft.compat.shadow.sender import Sender, Shadowed
from graft.config.deployment import settings
from graft.tasks import codec
from graft.tasks.errors import PayloadTooLargeError, UnpicklableError

if TYPE_CHECKING:
    from graft.compat.shadow.record import Record
    from graft.tasks.callables.references import FunctionRef


class Writers:
    """The calls that run now, and may write: what two of them wrote at once cannot be told apart."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[Observation] = set()

    def enter(self, call: Observation) -> None:
        with self._lock:
            self._running.add(call)
            if len(self._running) > 1:
                for each in self._running:
                    each.is_alone = False

    def leave(self, call: Observation) -> None:
        with self._lock:
            self._running.discard(call)


class Watching:
    """What the observations of one process share."""

    def __init__(self, plan: Plan, sender: Sender) -> None:
        self.files = plan.files
        self.sender = sender
        self.writers = Writers()


class Observation:
    """One call of the old way: begun when this is made, and ended by :meth:`returned` or :meth:`raised`.

    Only what is chosen is pickled: the arguments before, and after it the value and the arguments again. What cannot
    be recorded is a reason, and never an error of the caller's.
    """

    def __init__(
        self,
        watching: Watching,
        record: Record,
        number: int,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        ref: FunctionRef | None,
    ) -> None:
        began = time.perf_counter()
        self._watching, self._record, self._number, self._ref = watching, record, number, ref
        self._args, self._kwargs = args, kwargs
        self._cannot = ""
        self._frame = b""
        self._folders: list[Folder] = []
        self.is_alone = True
        if ref is not None:
            self._prepare()
        if watching.files:
            watching.writers.enter(self)
        self._began = time.perf_counter()
        self._overhead = self._began - began

    def returned(self, value: Any) -> None:
        """The call has returned *value*."""
        self._ended(value, None)

    def raised(self, error: BaseException) -> None:
        """The call has raised *error*."""
        self._ended(None, error)

    def _prepare(self) -> None:
        try:
            limit = settings().item_limit
            self._frame = codec.dump_item((tuple(self._args), dict(self._kwargs)), limit, "the arguments")
            for folder in self._watching.files:
                self._folders.append(Folder.copied(folder))
        except UnpicklableError as error:
            self._cannot = f"it stays in this process: {error}"
        except PayloadTooLargeError as error:
            self._cannot = f"in the cluster the call fails: {error}"
        except CannotCompareError as error:
            self._cannot = str(error)
        except Exception as error:
            self._cannot = f"its arguments could not be recorded: {error}"

    def _ended(self, value: Any, error: BaseException | None) -> None:
        now = time.perf_counter()
        seconds = now - self._began
        if self._watching.files:
            self._watching.writers.leave(self)
        self._record.note_old(seconds, failed=error is not None)
        if self._ref is None:
            return
        is_sent = False
        try:
            if not (self._cannot or isinstance(error, Exception | SystemExit | None)):
                self._cannot = f"the caller ended it: {type(error).__name__}"
            if not self._cannot:
                is_sent = self._send(seconds, value, error)
        except (UnpicklableError, PayloadTooLargeError) as refusal:
            self._cannot = f"in the cluster the call fails: {refusal}"
        except CannotCompareError as refusal:
            self._cannot = str(refusal)
        except Exception as refusal:
            self._cannot = f"what it did could not be recorded: {refusal}"
        if self._cannot:
            self._record.note_cannot(self._cannot)
        if not is_sent:
            for folder in self._folders:
                folder.remove()
        self._record.note_overhead(self._overhead + time.perf_counter() - now)

    def _send(self, seconds: float, value: Any, error: BaseException | None) -> bool:
        assert self._ref is not None
        limit = settings().item_limit
        after = pickle.dumps((tuple(self._args), dict(self._kwargs)), codec.PROTOCOL)
        files: dict[str, str] = {}
        for folder in self._folders:
            files |= {f"{folder.real}/{path}": digest for path, digest in folder.written(folder.real).items()}
        if self._folders and not self.is_alone:
            raise CannotCompareError("others ran at the same time, and who wrote which file cannot be told")
        run = Run(
            seconds,
            codec.dump_item(value, limit, "the value") if error is None else None,
            None if error is None else error_of(error),
            after if after != self._frame else None,
            files,
        )
        is_sent = self._watching.sender.take(
            Shadowed(self._record, self._number, self._ref, self._frame, run, self._folders)
        )
        if not is_sent:
            self._record.note_dropped()
        return is_sent
