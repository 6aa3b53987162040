"""What a pool refuses before it has accepted it."""

from __future__ import annotations

import pytest

from graft.compat.worker_pool.placement import Placing, Work
from graft.config.deployment import settings
from graft.tasks.errors import PayloadTooLargeError
from tests.compat.worker_pool import work


@pytest.mark.parametrize("wrap", [str, lambda text: (text,), lambda text: [text]], ids=["text", "tuple", "list"])
def test_an_item_above_the_limit_is_refused_by_its_place(redis, wrap):
    large = "x" * (settings().item_limit + 1)
    with pytest.raises(PayloadTooLargeError, match=r"item 1 takes .* GRAFT_ITEM_LIMIT"):
        Placing("pool").place("map", Work(None, work.one, [wrap("small"), wrap(large)]))
