"""What dies with the killer of a whole worker, each time again, is not taken for a killer."""

from __future__ import annotations

import pytest

from graft.tasks.delivery import poison_isolation
from graft.tasks.delivery.poison_isolation import NotAloneError
from tests.stack import run_among_deaths

PROGRAM = """
import graft
from graft.tasks.errors import PoisonedError
from tests import samples

poison = graft.submit(samples.kill_worker, [1.5])
neighbour = graft.submit(samples.sleep, [3.0])
print(neighbour.collect(120))
try:
    poison.collect(120)
except PoisonedError as error:
    print("poisoned")
"""


def test_a_neighbour_of_what_kills_its_worker_runs_in_the_end(fresh_stack):
    stack = fresh_stack(cpu=2)
    output, deaths = run_among_deaths(stack, PROGRAM, {"cpu": 2})
    assert output == "[3.0]\npoisoned\n"
    assert deaths == 3
    with stack.connect() as client:
        assert client.zcard("graft:dead-letters:by-time") == 1


@pytest.fixture
def place():
    poison_isolation.prepare()
    yield
    poison_isolation.leave("first")


def test_a_second_suspect_is_kept_out_of_the_process(place):
    poison_isolation.enter("first")
    with pytest.raises(NotAloneError, match="first"):
        poison_isolation.enter("second")
    poison_isolation.leave("second")  # It was never in.
    with pytest.raises(NotAloneError):
        poison_isolation.enter("second")
    poison_isolation.leave("first")
    poison_isolation.enter("second")
    poison_isolation.leave("second")
