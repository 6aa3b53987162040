"""A pool process is replaced after so many items, whatever envelopes they came in."""

from __future__ import annotations

import json
from collections import Counter

from tests.stack import run_python

LIMIT = 60
PROGRAM = """
import graft, json, os
from tests.samples import process_id
print(json.dumps([graft.submit(process_id, range(20), batch_size=10).collect() for _ in range(10)]))
"""


def test_items_are_counted_and_not_envelopes(fresh_stack):
    stack = fresh_stack(cpu=1, GRAFT_ITEMS_PER_CHILD=str(LIMIT))
    done = run_python(stack, PROGRAM)
    assert done.returncode == 0, done.stderr
    ran = Counter(pid for batch in json.loads(done.stdout) for pid in batch)
    assert sum(ran.values()) == 200
    # Each ends with the envelope that reaches the limit; only the last may have run fewer.
    assert sorted(ran.values(), reverse=True)[:3] == [LIMIT] * 3
    assert len(ran) == 4
