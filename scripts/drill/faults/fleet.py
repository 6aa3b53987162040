"""Many workers in one deployment: what each costs, and what happens when many are lost or cut off at once."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import psutil

from graft.config import keys
from graft.config.queues import Lane
from graft.scripts.drill.fault import Fault, FaultResult
from graft.scripts.drill.ledger import Count
from graft.scripts.drill.stage import Stage
from graft.scripts.stack.guard import Child

FULL: Final = (50, 100, 200)
SMALL: Final = (20, 40)
WATCHED: Final = 20.0  # Seconds during which idle workers are measured.
LISTENED: Final = 10.0  # Seconds during which each command is read, of the smallest fleet.
PURPOSES: Final = (  # What a command is for, by the key that it names first; the first that fits.
    ((keys.WORKER, keys.WORKERS), "heartbeat"),
    ((keys.UNACKED_INDEX, "unacked_index"), "leases"),
    ((keys.UNACKED, "graft:taken"), "fetching"),
    ((keys.PAUSED,), "pauses"),
    ((keys.CANCELLED, keys.CANCEL), "cancelled work"),
    ((keys.DUE,), "due messages"),
    (("/", "_kombu", "celery"), "events and control"),
    (("graft:",), "upkeep"),
)


def purpose_of(command: str) -> str:
    """What *command*, as MONITOR shows it, is for. Whatever names no key of ours fetches from queues."""
    words = command.split(" ")
    at = {"EVAL": 3, "EVALSHA": 3, "OBJECT": 2}.get(words[0].upper(), 1)
    key = words[at] if len(words) > at else ""
    if words[0].upper() in ("PING", "CLIENT", "HELLO", "INFO", "TIME"):
        return "connections"
    return next((purpose for starts, purpose in PURPOSES if key.startswith(starts)), "fetching")


@dataclass(frozen=True)
class Reading:
    """What Redis and the workers had used at one moment."""

    at: float
    redis_seconds: float
    commands: int
    received: int
    connections: int
    memory: int
    worker_seconds: float

    def since(self, earlier: Reading, workers: int) -> str:
        """The cost of *workers* that were idle between the two."""
        seconds = self.at - earlier.at
        return (
            f"{workers} workers, idle: Redis {100 * (self.redis_seconds - earlier.redis_seconds) / seconds:.1f} % of a "
            f"processor, {(self.commands - earlier.commands) / seconds:.0f} commands/s, "
            f"{(self.received - earlier.received) / seconds / 1024:.0f} KiB/s in, {self.connections} connections, "
            f"{self.memory / 1048576:.1f} MiB, and a worker "
            f"{100 * (self.worker_seconds - earlier.worker_seconds) / seconds / workers:.2f} % of a processor"
        )


class FleetStage(Stage):
    """One usual worker, and as many more as are asked for."""

    def start(self) -> None:
        self.fleet: list[Child] = []
        self.size = 0
        super().start()

    def grow(self, size: int) -> bool:
        """Have *size* workers more than the usual one; whether all were ready within ten minutes."""
        log = self.directory / "fleet.log"
        argv = [sys.executable, "-m", "graft.scripts.drill.fleet", str(self.size), str(size - self.size), self._token]
        self.fleet.append(self.guard.start(*self.launch("fleet", argv), log=log))
        self.size = size
        return self.until(lambda: log.read_text(errors="replace").count(" ready.") >= size, 600)

    def members(self) -> list[psutil.Process]:
        """The processes of the fleet's workers."""
        return [child for part in self.fleet for child in psutil.Process(part.pid).children()]

    def answers(self, size: int) -> float | None:
        """Seconds until *size* workers had answered a ping; None if some had not after two minutes."""
        before = len(self.waits("pinged"))
        self.run({"pings": size}, timeout=150)
        found = self.waits("pinged")[before:]
        return found[0] if found else None

    def listen(self, workers: int) -> str:
        """What the commands of *workers* that are idle are for, of each a second; scripts count as one command."""
        found: Counter[str] = Counter()
        with self.connect() as client, client.monitor() as heard:
            until = time.monotonic() + LISTENED
            while time.monotonic() < until:
                one = heard.next_command()
                if one["client_type"] != "lua":
                    found[purpose_of(one["command"])] += 1
        told = (f"{purpose} {count / LISTENED / workers:.2f}" for purpose, count in found.most_common())
        return f"commands/s of each worker: {', '.join(told)}"

    def read(self) -> Reading:
        """What has been used until now."""
        with self.connect() as client:
            told = client.info()
        times = [member.cpu_times() for member in self.members()]
        return Reading(
            time.monotonic(), told["used_cpu_user"] + told["used_cpu_sys"], told["total_commands_processed"],
            told["total_net_input_bytes"], told["connected_clients"], told["used_memory"],
            sum(one.user + one.system for one in times),
        )  # fmt: skip


class Fleet(Fault):
    """Forty workers, two hundred at --scale 1; a tenth is killed, and the connections of all others are cut."""

    name = "fleet"
    limit = "0 lost, every worker that lives answers, doubled at most one for each that was killed"
    full_strikes = 2
    by_default: ClassVar[bool] = False
    on: ClassVar[type[Stage]] = FleetStage
    stage: ClassVar[Mapping[str, Any]] = {"workers": 1, "environ": {"GRAFT_VISIBILITY_TIMEOUT": "60"}}
    lanes: ClassVar[tuple[Lane, ...]] = ("cpu",)

    @property
    def tasks(self) -> int:
        return min(2000, super().tasks)

    @property
    def sizes(self) -> tuple[int, ...]:
        return FULL if self.scale >= 1 else SMALL

    @property
    def estimate(self) -> float:
        return 300.0 + 3.0 * self.sizes[-1]

    @property
    def lasts(self) -> float:
        return 30.0

    def prepare(self, stage: Stage) -> None:
        assert isinstance(stage, FleetStage)
        stage.add_beat()
        self.unready = 0
        for size in self.sizes:
            self.unready += not stage.grow(size)
            time.sleep(5.0)
            before = stage.read()
            time.sleep(WATCHED)
            self.seen.append(stage.read().since(before, size))
            if size == self.sizes[0]:
                self.seen.append(stage.listen(size + 1))
            self._ping(stage, size + 1)

    def _ping(self, stage: FleetStage, size: int) -> None:
        took = stage.answers(size)
        self.unready += took is None
        self.seen.append(f"{size} answer a ping in {took:.1f} s" if took else f"not all of {size} answer a ping")

    def inject(self, stage: Stage) -> None:
        assert isinstance(stage, FleetStage)
        victims = stage.members()[: stage.size // 10]
        for victim in victims:
            victim.kill()
        self.killed = len(victims)
        self.strikes += bool(victims)
        self.strikes += bool(stage.cut_connections())
        self._ping(stage, stage.size + 1 - self.killed)

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        return super().passes(stage, count, result) and not self.unready and result.doubled <= self.killed
