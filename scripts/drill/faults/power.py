"""A power cut: Redis comes back without the last part of what it had accepted."""

from __future__ import annotations

import os
import random
import time
from typing import Any

from graft.scripts.drill.fault import Fault, FaultResult
from graft.scripts.drill.ledger import Count
from graft.scripts.drill.stage import Stage


class PowerLoss(Fault):
    """Redis is killed, its append-only file is cut back to a random earlier byte, and it is started again."""

    name = "power-loss"
    limit = "every item answered, or its caller told that it is lost; workers live on"
    full_strikes = 10

    @property
    def lasts(self) -> float:
        return 4.0 * self.times()

    def work(self) -> dict[str, Any]:
        return {"answers": self.tasks, "seconds": 0.2}

    def inject(self, stage: Stage) -> None:
        for _ in range(self.times()):
            stage.kill_redis()
            self.strikes += cut_back(stage) > 0
            stage.start_redis()
            time.sleep(3.0)
            stage.restart_ended()

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        waiting = len(count.sent - count.answered - count.told)
        self.seen.append(f"{len(count.told)} callers told of a loss, {waiting} wait in vain")
        return super().passes(stage, count, result) and not waiting


def cut_back(stage: Stage) -> int:
    """Take a random part off the end of Redis's append-only file, of what was written since it began; the bytes."""
    assert stage.redis is not None
    (file,) = stage.redis.folder.glob("appendonlydir/*.incr.aof")
    size = file.stat().st_size
    kept = random.randrange(size // 2, size)
    os.truncate(file, kept)
    return size - kept
