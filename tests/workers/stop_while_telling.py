"""Has a worker that includes this module told to stop while it sends task events and a process runs a message."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from celery.events.dispatcher import EventDispatcher

from graft.config.celery_app import app
from graft.workers import active_runs

publish = EventDispatcher._publish


def tell_to_stop(dispatcher: EventDispatcher, event: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(event, list) and len(event) >= dispatcher.buffer_limit:
        EventDispatcher._publish = publish
        deadline = time.monotonic() + 10
        while not active_runs.unseen() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
    return publish(dispatcher, event, *args, **kwargs)


EventDispatcher._publish = tell_to_stop


@app.task(name="telling.nap")
def nap(seconds: float) -> None:
    time.sleep(seconds)
