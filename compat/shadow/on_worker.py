"""The cluster's run of a shadowed call, in a worker: called by the name of :func:`run` or :func:`run_async`."""

from __future__ import annotations

import inspect
import os
import pickle
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from graft.compat.shadow.folders import CannotCompareError, Folder, digests, guarded, moved
from graft.config.deployment import settings
from graft.tasks import codec
from graft.tasks.callables.references import FunctionRef, resolve
from graft.tasks.errors import CancelledBatchError, PayloadTooLargeError, UnpicklableError


class Answer(NamedTuple):
    """What the run did, as it travels: pickles, so that one that cannot be opened costs nothing else.

    ``cannot`` says why it cannot be compared; ``error`` is made by ``codec.dump_error``.
    """

    seconds: float = 0.0
    value: bytes | None = None
    error: bytes | None = None
    changed: bytes | None = None
    files: Mapping[str, str] = {}
    cannot: str = ""


def run(ref: FunctionRef, frame: bytes, folders: Sequence[Folder]) -> Any:
    """Call what *ref* names with the arguments in *frame*; an Answer, or an awaitable of one."""
    making = _Making(frame, folders)
    try:
        with guarded(making.real):
            func = making.prepared(ref)
            value = func(*making.args, **making.kwargs)
        if inspect.isawaitable(value):
            return making.awaited(value)
        return making.returned(value)
    except (Exception, SystemExit) as error:
        return making.raised(error)


async def run_async(ref: FunctionRef, frame: bytes, folders: Sequence[Folder]) -> Answer:
    """The same for an async callable."""
    making = _Making(frame, folders)
    try:
        with guarded(making.real):
            func = making.prepared(ref)
            value = func(*making.args, **making.kwargs)
        return await making.awaited(value)
    except (Exception, SystemExit) as error:
        return making.raised(error)


class _Making:
    """One run under way."""

    def __init__(self, frame: bytes, folders: Sequence[Folder]) -> None:
        self.folders = folders
        self.real = [folder.real for folder in folders]
        self._frame = frame
        self._began = time.perf_counter()
        self._before = b""
        self.args: Sequence[Any] = ()
        self.kwargs: Mapping[str, Any] = {}

    def prepared(self, ref: FunctionRef) -> Any:
        """The callable, once the arguments are there."""
        for folder in self.folders:
            if not os.path.isdir(folder.copy):
                raise CannotCompareError(f"the worker does not see {folder.copy}; it needs the same file system")
            if digests(folder.copy) != folder.before:
                raise CannotCompareError(f"the copy of {folder.real} was changed before the run began")
        func = resolve(ref)
        self.args, self.kwargs = moved(pickle.loads(self._frame), [(each.real, each.copy) for each in self.folders])
        self._before = pickle.dumps((self.args, self.kwargs), codec.PROTOCOL)
        self._began = time.perf_counter()
        return func

    async def awaited(self, value: Any) -> Answer:
        try:
            with guarded(self.real):
                value = await value
        except (Exception, SystemExit) as error:
            return self.raised(error)
        return self.returned(value)

    def returned(self, value: Any) -> Answer:
        seconds = time.perf_counter() - self._began
        try:
            dumped = codec.dump_item(self._at_home(value), settings().item_limit, "the value")
        except (UnpicklableError, PayloadTooLargeError) as error:
            return Answer(seconds, cannot=f"in the cluster the call fails: {error}")
        return self._with_effects(Answer(seconds, value=dumped))

    def raised(self, error: BaseException) -> Answer:
        seconds = time.perf_counter() - self._began
        if isinstance(error, CancelledBatchError):
            raise error  # From outside.
        if isinstance(error, CannotCompareError):
            return Answer(seconds, cannot=str(error))
        return self._with_effects(Answer(seconds, error=codec.dump_error(error)))

    def _with_effects(self, answer: Answer) -> Answer:
        changed = None
        try:
            after = pickle.dumps((self.args, self.kwargs), codec.PROTOCOL)
            if after != self._before:
                changed = pickle.dumps(self._at_home((self.args, self.kwargs)), codec.PROTOCOL)
        except Exception as error:
            return Answer(answer.seconds, cannot=f"its arguments cannot be pickled after the call: {error}")
        files: dict[str, str] = {}
        for folder in self.folders:
            try:
                written = folder.written(folder.copy)
            except CannotCompareError as error:
                return Answer(answer.seconds, cannot=str(error))
            files |= {os.path.join(folder.real, path): digest for path, digest in written.items()}
        return answer._replace(changed=changed, files=files)

    def _at_home(self, value: Any) -> Any:
        return moved(value, [(each.copy, each.real) for each in self.folders]) if self.folders else value
