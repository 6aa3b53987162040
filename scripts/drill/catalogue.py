"""Every fault of the drill, in the order in which they are played."""

from __future__ import annotations

from typing import Final

from graft.scripts.drill import faults, servers, soak
from graft.scripts.drill.fault import Fault

FAULTS: Final[tuple[type[Fault], ...]] = (
    faults.ChildKill, faults.WorkerKill, faults.Poison, faults.PoisonWorker, faults.RedisKill, faults.ConnectionsCut,
    faults.HalfOpen, servers.SilentNetwork, faults.LongTasks, faults.ResultsDown, faults.Chords, faults.Full,
    faults.Rolling, faults.BadMessages, faults.BadMessagesThreads, faults.BadMessagesSolo,
    servers.Failover, soak.Soak,
)  # fmt: skip
