"""Clocks of day that jump: of one worker, of the caller, of Beat, while everybody else's goes on."""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Final

from graft.scripts.drill.fault import Fault, FaultResult
from graft.scripts.drill.ledger import Count
from graft.scripts.drill.stage import VISIBILITY, Stage
from graft.scripts.stack.redis_server import StackError

SOURCE: Final = Path(__file__).with_name("clock.c")
DAY: Final = 86_400.0
JUMPS: Final = (120.0, -120.0, DAY, -DAY)
WAITS: Final = 3.0  # Seconds until the tasks are due that are sent after each jump.
DRIFTS: Final = 60.0  # Seconds: at the end a clock is wrong by more than two leases.
LONG: Final = (
    12  # Tasks that outlast a lease; many more would keep due tasks and ticks waiting, whatever the clocks do.
)
LATE: Final = 15.0  # A due task or a tick of Beat may be so late on a busy machine, and no later.


class ClockedStage(Stage):
    """Each process has a clock of day of its own, which can be set while it runs."""

    def launch(
        self, name: str, argv: Sequence[str], environ: Mapping[str, str] | None = None
    ) -> tuple[list[str], dict[str, str]]:
        arguments, made = super().launch(name, argv, environ)
        file = self._file(name)
        if not file.exists():
            file.write_bytes(bytes(8))
        return arguments, {**made, "LD_PRELOAD": str(self._library()), "DRILL_CLOCK": str(file)}

    def set_clock(self, name: str, seconds: float) -> None:
        """Have the clock of the process *name* be *seconds* ahead of the machine's, from now on."""
        with self._file(name).open("r+b") as file:
            file.write(struct.pack("d", seconds))

    def _file(self, name: str) -> Path:
        return self.directory / f"clock.{name}"

    def _library(self) -> Path:
        library = self.directory / "clock.so"
        if not library.exists():
            command = ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(SOURCE), "-ldl"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise StackError(f"{SOURCE} does not compile:\n{done.stderr}")
        return library


class ClockJump(Fault):
    """The clock of a worker, of the caller and of Beat jumps by two minutes and by a day, forth and back."""

    name = "clock-jump"
    limit = "each exactly once, due tasks in time, Beat ticks on"
    full_strikes = 12
    on: ClassVar[type[Stage]] = ClockedStage
    load: ClassVar[Mapping[str, Any]] = {"long": 1.5 * VISIBILITY}

    @classmethod
    def unavailable(cls) -> str:
        return "" if shutil.which("cc") else "there is no C compiler (cc), to give one process a clock of its own"

    def times(self, full: int | None = None) -> int:
        return self.full_strikes  # Three clocks, four jumps.

    @property
    def lasts(self) -> float:
        return 4.0 * self.full_strikes

    def work(self) -> dict[str, Any]:
        return {**super().work(), "long_share": min(0.1, LONG / self.tasks)}

    def prepare(self, stage: Stage) -> None:
        stage.add_beat()

    def inject(self, stage: Stage) -> None:
        assert isinstance(stage, ClockedStage)
        for name in ("worker1", "caller", "beat"):
            for seconds in JUMPS:
                stage.set_clock(name, seconds)
                what = {"count": 5, "countdown": WAITS, "rate": 50.0, "long_share": 0, "prefix": f"due{self.strikes}-"}
                stage.run(what)
                time.sleep(WAITS)
                self.strikes += 1
            stage.set_clock(name, 0.0)
        time.sleep(LATE)
        self._over = time.monotonic()

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        waited = [
            at - count.first_at["sent", label]
            for (kind, label), at in count.first_at.items()
            if kind == "start" and label.startswith("due") and ("sent", label) in count.first_at
        ]
        early, late = sum(one < WAITS - 0.5 for one in waited), sum(one > WAITS + LATE for one in waited)
        ticks = [at for at in count.ticks if at < self._over]
        gap = max(later - earlier for earlier, later in pairwise([*(ticks or [0.0]), self._over]))
        self.seen.append(f"{early} due tasks early, {late} late; the longest gap between ticks was {gap:.0f} s")
        in_time = not early and not late and gap < LATE
        return super().passes(stage, count, result) and result.doubled == 0 and in_time


class ClockDrift(ClockJump):
    """The clocks of a worker and of Beat go a fifth too fast, that of the caller a fifth too slow."""

    name = "clock-drift"
    full_strikes = 3
    rates: ClassVar[Mapping[str, float]] = {"worker1": 0.2, "beat": 0.2, "caller": -0.2}

    @property
    def lasts(self) -> float:
        return DRIFTS

    def inject(self, stage: Stage) -> None:
        assert isinstance(stage, ClockedStage)
        began = asked = time.monotonic()
        while (elapsed := time.monotonic() - began) < DRIFTS:
            for name, rate in self.rates.items():
                stage.set_clock(name, rate * elapsed)
            if time.monotonic() - asked > DRIFTS / 4:
                asked = time.monotonic()
                self.strikes += 1
                stage.produce(count=5, countdown=WAITS, rate=50.0, long_share=0, prefix=f"due{self.strikes}-")
            time.sleep(0.05)
        time.sleep(LATE)
        self._over = time.monotonic()
