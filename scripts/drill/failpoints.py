"""Makes a worker's process die at a chosen step of Celery's chord bookkeeping, once for each chord.

``before_part``: the result is stored, the part not counted. ``after_claim``: the last part has claimed the body and not
sent it. ``after_publish``: the body is sent, the claim not cleaned up.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from celery.backends.redis import RedisBackend

from graft.scripts.drill.ledger import note

POINTS = ("before_part", "after_claim", "after_publish")


def die_once(group: str, point: str) -> None:
    """End this process without any clean-up, unless one has died for this chord already."""
    try:
        Path(f"{os.environ['DRILL_LEDGER']}.died.{group}").touch(exist_ok=False)
    except FileExistsError:
        return
    note("died", point)
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str) -> None:
    """Have pool processes die at *point*. Only where pool processes are: a caller or Beat does not import this."""
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
