"""Results that outlived the time the deployment keeps them.

Celery gives each result an expiry when it is written. What stays behind was written with another setting or by hand,
or lost its expiry: an expiry that is too long keeps Redis full for as long.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from graft.config.deployment import settings
from graft.config.redis_client import shared

RESULTS: Final = "celery-task-meta-*"
PAGE: Final = 200

# Decided where the result lies, so that one that is written again meanwhile is not lost. ISO times of one zone (UTC)
# sort as text. What is not a result of Celery's is left alone.
_REMOVE: Final = """
local removed = 0
for _, key in ipairs(KEYS) do
  local text = redis.call('TYPE', key).ok == 'string' and redis.call('GET', key)
  local understood, result = pcall(cjson.decode, text or '')
  if understood and type(result) == 'table' and type(result.date_done) == 'string' and result.date_done < ARGV[1] then
    removed = removed + redis.call('UNLINK', key)
  end
end
return removed
"""


def remove(client: Any = None) -> int:
    """Remove the results of tasks that ended longer than ``result_ttl`` ago; how many."""
    client = client or shared()
    script = client.register_script(_REMOVE)
    oldest = (datetime.now(UTC) - timedelta(seconds=settings().result_ttl)).isoformat()
    removed, cursor = 0, 0
    while True:
        cursor, keys = client.scan(cursor, match=RESULTS, count=PAGE)
        if keys:
            removed += int(script(keys=keys, args=[oldest]))
        if cursor == 0:
            return removed
