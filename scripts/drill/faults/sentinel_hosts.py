"""Three Sentinels on three hosts, and the host of the master cut off from all others."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from graft.scripts.drill.faults.hosts import HOSTS, HostsStage, Partition
from graft.scripts.drill.faults.sentinel import Failover, WatchedStage
from graft.scripts.drill.stage import Stage

PLACES: Final = ("redis", "replica1", "replica2")
APART: Final = 15.0  # Seconds: time for the others to find that the master is away and to agree upon another.


class WatchedHostsStage(WatchedStage, HostsStage):
    """The master and two replicas have a Sentinel each on their hosts; workers and caller are on hosts of their own."""

    replicas = 2

    hosts: ClassVar[Sequence[str]] = (*HOSTS, *PLACES[1:])

    def place(self, number: int) -> tuple[str, list[str]]:
        host = PLACES[number]
        return self.address(host), self._enter(host)


class SentinelPartition(Failover):
    """The master's host, with one of three Sentinels, is cut off from all others; the two elect a replica."""

    name = "sentinel-partition"
    limit = "another master within 15 s, 0 lost, no gap between runs of 25 s, workers live on"
    on: ClassVar[type[Stage]] = WatchedHostsStage
    stage: ClassVar[Mapping[str, Any]] = {"environ": {"GRAFT_LOST_AFTER": "5"}}
    load: ClassVar[Mapping[str, Any]] = {"patience": 300.0}
    longest_gap = 25.0  # A connection on which nothing comes any more is noticed after up to 21 s.

    @classmethod
    def unavailable(cls) -> str:
        return Partition.unavailable()

    @property
    def lasts(self) -> float:
        return APART + 10.0

    def inject(self, stage: Stage) -> None:
        assert isinstance(stage, WatchedHostsStage)
        self._began = time.monotonic()
        before = stage.master()
        with stage.cut("redis", "both", [host for host in stage.hosts if host != "redis"]):
            stage.until(lambda: stage.master() not in ("", before), APART)
            self.seen.append(f"another master after {time.monotonic() - self._began:.1f} s")
            self.strikes += stage.master() != before
            time.sleep(max(0.0, self._began + APART - time.monotonic()))
