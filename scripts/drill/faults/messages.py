"""Messages that take long, belong together, or are none."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final

from graft.scripts.drill.fault import Fault, FaultResult
from graft.scripts.drill.garbage import BROADCASTS, GARBAGE
from graft.scripts.drill.ledger import Count
from graft.scripts.drill.stage import VISIBILITY, Kind, Stage

REST: Final = 5.0


class LongTasks(Fault):
    """Tasks that run, or wait for their time, three times as long as a message may be held."""

    name = "longer-than-lease"
    limit = "each exactly once"
    full_strikes = 200
    load: ClassVar[Mapping[str, Any]] = {"count": 4, "seconds": 3 * VISIBILITY, "long_share": 0, "prefix": "long"}

    def inject(self, stage: Stage) -> None:
        count = self.times() if self.scale < 1 else self.full_strikes
        later: dict[str, Any] = {
            "count": max(10, count),
            "rate": 200.0,
            "long_share": 0,
            "prefix": "eta",
            "countdown": 3 * VISIBILITY,
        }
        stage.run(later)
        self.strikes += 1

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        return super().passes(stage, count, result) and result.doubled == 0


class Chords(Fault):
    """The process that runs a part dies between its result and the count, with the claim, or after sending the body."""

    name = "chords"
    limit = "every body exactly once, within 60 s"
    full_strikes = 20
    lanes = ("cpu",)  # It ends the process that runs a part, which is the worker itself in the other.

    def play(self, kind: Kind) -> FaultResult:
        from graft.scripts.drill.failpoints import POINTS

        results = []
        for point in POINTS:
            with Stage(kind, worker_environ={"DRILL_FAILPOINT": point}) as stage:
                if kind == "ours":
                    stage.add_beat()
                began = time.monotonic()
                stage.run({"chords": self.times(), "prefix": point}, timeout=120)
                stage.settle(quiet=60.0)
                count = stage.count()
                self.strikes = count.died
                bodies = sum(count.ends[label] for label in count.sent)
                self.seen.append(f"{point}: {bodies} of {len(count.sent)}")
                results.append(self.result(stage, count, began))
        return replace(
            results[-1],
            passed=all(result.passed for result in results),
            seconds=None,
            **{
                name: sum(getattr(result, name) for result in results)
                for name in ("sent", "lost", "doubled", "ended", "strikes")
            },
        )

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        return super().passes(stage, count, result) and result.doubled == 0


class ChainKill(Fault):
    """The process of each step of a chain, and of the body of a chord in it, dies just before its result is stored."""

    name = "chain-kill"
    limit = "0 lost; a death doubles the step that died, and nothing behind it"
    full_strikes = 100
    lanes = ("cpu",)  # It ends the worker itself in the other.

    def play(self, kind: Kind) -> FaultResult:
        from graft.scripts.drill.failpoints import RESULT

        with Stage(kind, worker_environ={"DRILL_FAILPOINT": RESULT}) as stage:
            began = time.monotonic()
            stage.run({"chains": self.times()}, timeout=120)
            stage.settle(max(90.0, 600.0 * self.scale))
            time.sleep(REST)  # What has run once may be about to run again.
            count = stage.count()
            self.strikes = count.died
            most = max(count.starts.values(), default=0)
            self.seen.append(f"{count.died} deaths; a step ran {most} times at most")
            return replace(self.result(stage, count, began), seconds=None)

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        return super().passes(stage, count, result) and result.doubled == count.died == len(count.sent)


class BadMessages(Fault):
    """Five messages in a hundred are none: garbage, forged pickles, missing parts, unknown tasks."""

    name = "bad-messages"
    limit = "every good task once, every bad message kept, 0 restarts, 0 reconnects"
    # A signature would be missing from all of them; here each is to be refused for what else is wrong with it.
    stage: ClassVar[Mapping[str, Any]] = {"environ": {"GRAFT_SIGNING": "sign"}}

    def inject(self, stage: Stage) -> None:
        wanted = max(len(GARBAGE), self.tasks // 20)
        with stage.connect() as client:
            for number in range(wanted):
                client.lpush("default", GARBAGE[number % len(GARBAGE)])
                if number % 4 == 0:
                    client.publish("/0.celery.pidbox", BROADCASTS[number // 4 % len(BROADCASTS)])
                self.strikes += 1
                time.sleep(0.05)
                stage.restart_ended()

    def finally_(self, stage: Stage) -> None:
        stage.until(lambda: stage.quarantined() >= min(500, self.strikes), 10)
        self.kept = stage.quarantined()
        self.reconnects = stage.said("Connection to broker lost")
        self.seen.append(f"{self.kept} of {self.strikes} kept, {self.reconnects} reconnects")

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        kept = self.kept >= min(500, self.strikes)
        return super().passes(stage, count, result) and result.doubled == 0 and kept and not self.reconnects


class BadMessagesThreads(BadMessages):
    """The same for workers of threads."""

    name = "bad-messages-threads"
    lanes = ("cpu",)
    stage: ClassVar[Mapping[str, Any]] = {**BadMessages.stage, "pool": "threads"}
    lanes = ("cpu",)


class BadMessagesSolo(BadMessages):
    """The same for workers that run one task at a time, in their main process."""

    name = "bad-messages-solo"
    lanes = ("cpu",)
    stage: ClassVar[Mapping[str, Any]] = {**BadMessages.stage, "pool": "solo"}
    lanes = ("cpu",)
    load: ClassVar[Mapping[str, Any]] = {"long_share": 0, "rate": 50.0}
