"""Makes a worker's process die at a chosen moment, once for each chord, or each step of a chain.

``before_result``: the next step of the chain is sent as far as Celery knows, the result is not stored. The others are
steps of Celery's chord bookkeeping. ``before_part``: the result is stored, the part not counted. ``after_claim``: the
last part has claimed the body and not sent it. ``after_publish``: the body is sent, the claim not cleaned up.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from celery.backends.base import Backend
from celery.backends.redis import RedisBackend

from graft.scripts.drill.ledger import note

RESULT = "before_result"
POINTS = ("before_part", "after_claim", "after_publish")


def die_once(name: str, point: str) -> None:
    """End this process without any clean-up, unless one has died for the chord or task *name* already."""
    try:
        Path(f"{os.environ['DRILL_LEDGER']}.died.{name}").touch(exist_ok=False)
    except FileExistsError:
        return
    note("died", point)
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str) -> None:
    """Have pool processes die at *point*. Only where pool processes are: a caller or Beat does not import this."""
    if point == RESULT:
        _arm_results()
        return
    backend: Any = RedisBackend
    part_return, expires = backend.on_chord_part_return, backend._chord_publish_claim_expires
    cleanup = backend._chord_cleanup_script.func

    def dying_part_return(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        self._drill_group = request.group
        if point == "before_part" and getattr(request, "task", "") == "drill.part" and request.group_index == 1:
            die_once(request.group, point)
        return part_return(self, request, *args, **kwargs)

    def dying_expires(self: Any, *args: Any) -> Any:
        if point == "after_claim":
            die_once(self._drill_group, point)
        return expires(self, *args)

    def dying_cleanup(self: Any) -> Any:
        script = cleanup(self)

        def run(*args: Any, **kwargs: Any) -> Any:
            if point == "after_publish":
                die_once(self._drill_group, point)
            return script(*args, **kwargs)

        return run

    backend.on_chord_part_return = dying_part_return
    backend._chord_publish_claim_expires = dying_expires
    backend._chord_cleanup_script = property(dying_cleanup)


def _arm_results() -> None:
    backend: Any = Backend
    store = backend.store_result

    def dying_store(self: Any, task_id: str, *args: Any, request: Any = None, **kwargs: Any) -> Any:
        if getattr(request, "task", "") in ("drill.step", "drill.body"):
            die_once(task_id, RESULT)
        return store(self, task_id, *args, request=request, **kwargs)

    backend.store_result = dying_store
