"""Every fault of the drill, in the order in which they are played."""

from __future__ import annotations

from typing import Final

from graft.scripts.drill import soak
from graft.scripts.drill.fault import Fault
from graft.scripts.drill.faults import (
    batches,
    broker,
    clocks,
    fleet,
    freezes,
    hosts,
    limits,
    messages,
    network,
    power,
    processes,
    residue,
    resources,
    sentinel,
    sentinel_hosts,
    versions,
)

FAULTS: Final[tuple[type[Fault], ...]] = (
    processes.ChildKill, processes.WorkerKill, processes.Poison, processes.PoisonWorker, broker.RedisKill,
    broker.ConnectionsCut, broker.HalfOpen, network.SilentNetwork, network.SlowRedis, messages.LongTasks,
    broker.ResultsDown, messages.Chords, messages.ChainKill, broker.Full, processes.Rolling, messages.BadMessages,
    messages.BadMessagesThreads, messages.BadMessagesSolo, sentinel.Failover, clocks.ClockJump, clocks.ClockDrift,
    freezes.Freeze, resources.DescriptorLimit, resources.DiskFull, resources.OutOfMemory, power.PowerLoss,
    versions.VersionMix, hosts.Partition, sentinel_hosts.SentinelPartition, limits.SharedLimits,
    limits.PoolBound, limits.InOrder, batches.CallerKill, batches.FeederKill, fleet.Fleet,
    residue.Residue, soak.Soak,
)  # fmt: skip
