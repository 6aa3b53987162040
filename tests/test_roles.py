"""``GRAFT_TEST_ACL=producer`` is no idle word: the tests' own calls and their workers are users that may be refused."""

from __future__ import annotations

import pytest
from redis.exceptions import NoPermissionError

import graft
from graft.config.redis_client import shared
from tests import roles, samples
from tests.roles import acting_as

pytestmark = pytest.mark.skipif(not roles.DEFAULT, reason="Redis knows no users here; GRAFT_TEST_ACL=producer has it")


@pytest.mark.acl_role("producer")
def test_callers_and_workers_are_users(stack, redis):
    assert graft.submit(samples.square, [3]).collect(60) == [9]
    assert {"caller", "worker"} <= {connection["user"] for connection in redis.client_list()}
    for refused in (shared().flushall, shared().client_list):
        with pytest.raises(NoPermissionError):
            refused()


@pytest.mark.acl_role("producer")
def test_a_few_lines_may_be_somebody_elses(stack):
    with pytest.raises(NoPermissionError):
        shared().scan(0)
    with acting_as("viewer"):
        shared().scan(0)
        with pytest.raises(NoPermissionError):
            shared().set("graft:pool:x", 1)
    with pytest.raises(NoPermissionError):
        shared().scan(0)
