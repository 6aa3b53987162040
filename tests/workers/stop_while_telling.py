"""Has a worker that includes this module told to stop in the middle of sending task events, of which there are many."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from celery.events.dispatcher import EventDispatcher

from graft.config.celery_app import app

publish = EventDispatcher._publish


def tell_to_stop(dispatcher: EventDispatcher, event: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(event, list) and len(event) >= dispatcher.buffer_limit:
        EventDispatcher._publish = publish
        time.sleep(0.2)  # The next tasks begin.
        os.kill(os.getpid(), signal.SIGTERM)
    return publish(dispatcher, event, *args, **kwargs)


EventDispatcher._publish = tell_to_stop


@app.task(name="telling.nap")
def nap(seconds: float) -> None:
    time.sleep(seconds)
