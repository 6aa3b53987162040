"""The delivery protocol as a model: what is right stays right in every order, and known mistakes are found."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.scripts.model.variants import VARIANTS
from graft.scripts.model.wire import pack, split, steps
from graft.scripts.stack.local_stack import own_environ
from tests.stack import ROOT

words = st.lists(st.binary(max_size=40), min_size=1, max_size=6)


def model(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command: it turns its whole process into the model."""
    command = [sys.executable, "-m", "graft.scripts.model", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=own_environ(), capture_output=True, text=True, timeout=170, check=False
    )  # fmt: skip


@given(commands=st.lists(words, max_size=5))
def test_packed_commands_are_told_apart(commands):
    assert split(b"".join(map(pack, commands))) == commands


def test_a_transaction_is_one_step_and_every_other_command_its_own():
    commands = [[b"GET"], [b"MULTI"], [b"SET"], [b"DEL"], [b"EXEC"], [b"PING"]]
    assert [len(group) for group in steps(commands)] == [1, 4, 1]


@pytest.mark.redis
@pytest.mark.parametrize("name", VARIANTS)
def test_the_model_finds_a_protocol_that_is_known_to_be_wrong(redis_stack, name):
    done = model("variants", "--only", name, "--seconds", "120")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NOT FOUND" not in done.stdout


@pytest.mark.redis
@pytest.mark.parametrize(
    ("messages", "deaths", "jumps", "operator"),
    [
        ("fails-first-a", "1", "0", ""), ("retries-a", "1", "0", ""), ("chained-a", "1", "0", ""),
        ("plain-a,fails-first-b,raises-c", "1", "0", ""), ("plain-a", "1", "1", ""), ("items-a", "0", "0", ""),
        ("unique-a", "1", "0", ""), ("unique-a,unique-b", "0", "0", ""), ("pooled-a", "0", "0", ""),
        ("plain-a", "0", "0", "pause,resume"), ("plain-a", "0", "0", "cancel=plain-a"),
    ],
)  # fmt: skip
def test_every_order_of_a_small_deployment_keeps_the_guarantees(redis_stack, messages, deaths, jumps, operator):
    options = ["--messages", messages, "--deaths", deaths, "--jumps", jumps, "--operator", operator]
    done = model("explore", *options, "--seconds", "150")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all states" in done.stdout


@pytest.mark.redis
@pytest.mark.parametrize(
    ("messages", "deaths", "jumps"), [("plain-a", "0", "1"), ("plain-a,raises-b", "1", "0"), ("retries-a", "1", "0")]
)
def test_steps_that_nobody_can_notice_need_no_other_order(redis_stack, messages, deaths, jumps):
    found = []
    for orders in ((), ("--all-orders",)):
        options = ["--messages", messages, "--deaths", deaths, "--jumps", jumps, "--processes", "1"]
        done = model("explore", *options, "--seconds", "150", *orders)
        assert done.returncode == 0, done.stdout + done.stderr
        states, at_rest = map(int, re.findall(r"(\d+) (?:states|of them at rest)", done.stdout))
        assert done.stdout.endswith(": all states\n")
        found.append((states, at_rest))
    (fewer, ends), (all_of_them, all_ends) = found
    assert fewer < all_of_them
    assert ends == all_ends > 1


@pytest.mark.redis
@pytest.mark.parametrize(("messages", "deaths", "jumps"), [("plain-a", "0", "1"), ("plain-a,raises-b", "1", "0")])
def test_in_whatever_order_states_are_walked_they_are_the_same_and_good(redis_stack, messages, deaths, jumps):
    """Two states of one name go on in the same ways: else several walkers would not find those of a single one."""
    found = []
    for walkers in ("1", "3"):
        options = ["--messages", messages, "--deaths", deaths, "--jumps", jumps]
        done = model("explore", *options, "--seconds", "150", "--processes", walkers)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "all states" in done.stdout
        found.append(done.stdout.partition(" ")[0])
    assert found[0] == found[1]


@pytest.mark.redis
@pytest.mark.parametrize(("kind", "seed"), [("peaceful", "2"), ("violent", "2"), ("violent", "5")])
def test_random_histories_keep_the_guarantees(redis_stack, kind, seed):
    """In a peaceful one no process dies by itself: whatever the clocks and the network do, nobody is given up."""
    done = model("play", "--kind", kind, "--examples", "60", "--seed", seed)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"60 {kind} histories are good" in done.stderr
