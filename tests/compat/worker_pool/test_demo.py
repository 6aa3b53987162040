"""B.7: the demo's output."""

from __future__ import annotations

import re

from tests.stack import run_python

LINES = r"""=== Worker Pool Pattern Demo ===
Creating worker pool with 5 workers...
Processing 1000 tasks...
(?:Worker [1-5] processing task \d+ \(compute: \d+\)
)+
Results Summary:
- Total tasks processed: 1000
- Total time: \d+\.\ds
- Throughput: \d+ tasks/sec
- Average latency: \d+ms
- Success rate: 100%
- Peak workers active: [1-5]

Graceful shutdown completed in \d+\.\ds
All workers stopped cleanly\.
"""


def test_the_demo_prints_the_old_demos_lines(stack):
    done = run_python(stack, "from graft.scripts.pool_demo import main; raise SystemExit(main([]))")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(LINES, done.stdout), done.stdout
