"""A worker and a caller whose clocks are wrong by a day: nothing is refused, early, late or expired before its time."""

from __future__ import annotations

import pytest

from graft.scripts.drill.faults.clocks import ClockedStage, ClockJump

LACKING = ClockJump.unavailable()
pytestmark = [pytest.mark.redis, pytest.mark.worker, pytest.mark.skipif(bool(LACKING), reason=LACKING)]


@pytest.mark.parametrize(("worker", "caller"), [(0.0, 86_400.0), (86_400.0, 0.0), (-86_400.0, 0.0)])
def test_what_is_sent_runs_when_it_is_due(redis_stack, worker, caller):
    with ClockedStage("ours", workers=1) as stage:
        stage.set_clock("worker1", worker)
        stage.set_clock("caller", caller)
        for prefix, options in (("now", {}), ("due", {"countdown": 3.0}), ("fresh", {"expires": 60.0})):
            stage.run({"count": 3, "long_share": 0, "prefix": prefix, **options})
        assert stage.until(lambda: len(stage.count().sent) == 9 and not stage.count().lost, 60)
        count = stage.count()
        for number in range(3):
            assert count.first_at["start", f"due{number}"] - count.first_at["sent", f"due{number}"] > 2.0
        assert not count.doubled
