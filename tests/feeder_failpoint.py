"""Has the process that feeds die at a step of sending, once: a worker includes this module.

TEST_FEEDER_DIES: ``noted`` (envelopes are in the record, and not sent), ``sent`` (sent, and nobody was told).
"""

from __future__ import annotations

import os
from typing import Any

from graft.tasks.sending.publisher import Publisher
from tests.failpoints import die_once

_publish_fenced = Publisher._publish_fenced
_calls = 0


def _dying(self: Any, messages: Any, channel: Any) -> Any:
    global _calls
    _calls += any(message.fence for message in messages)
    if _calls == 5 and os.environ["TEST_FEEDER_DIES"] == "noted":
        die_once()
    left = _publish_fenced(self, messages, channel)
    if _calls == 5 and os.environ["TEST_FEEDER_DIES"] == "sent":
        die_once()
    return left


if os.environ.get("TEST_FEEDER_DIES"):
    Publisher._publish_fenced = _dying  # type: ignore[method-assign]
