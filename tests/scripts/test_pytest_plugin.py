"""The pytest plugin that we ship, in a suite of somebody else's: a project with tasks, and tests of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stack import clean_environ

FILES = {
    "pyproject.toml": """
[tool.pytest.ini_options]
graft_app = "shop"
graft_env = ["SHOP_REDIS"]
""",
    "shop.py": """
import os
import graft
from celery import Celery

app = graft.harden(Celery("shop", broker=os.environ["SHOP_REDIS"], backend=os.environ["SHOP_REDIS"]))

@app.task
def place(order):
    pack.delay(order)
    return order

@app.task
def pack(order):
    if order < 0:
        raise ValueError(f"no order {order}")
    return os.getpid()
""",
    "tests/test_shop.py": """
import os
import graft
import pytest
from shop import pack, place

def double(x):
    return 2 * x

def test_all_that_waits_is_run_with_what_it_sends(graft_worker, graft_run_waiting):
    results = [place.delay(number) for number in range(5)]
    assert graft_run_waiting() == []
    assert [result.get(timeout=5) for result in results] == list(range(5))

def test_what_failed_is_told(graft_worker, graft_run_waiting):
    place.delay(-1)
    (letter,) = graft_run_waiting()
    assert (letter.reason, letter.task, letter.error) == ("failed", "shop.pack", "ValueError: no order -1")

def test_each_test_begins_anew(graft_run_waiting):
    assert graft_run_waiting() == []

def test_functions_of_the_tests_run_on_the_worker(graft_worker):
    assert graft.submit(double, [1, 2]).collect(timeout=30) == [2, 4]
    assert pack.delay(1).get(timeout=30) != os.getpid()

def test_a_task_whose_time_has_not_come_is_said_to_wait(graft_worker, graft_run_waiting):
    pack.apply_async([1], countdown=600)
    with pytest.raises(pytest.fail.Exception, match="messages still run|there wait"):
        graft_run_waiting(timeout=2)

def test_without_workers(graft_local):
    from graft.compat.executor import CeleryExecutor
    with CeleryExecutor() as executor:
        assert executor.submit(os.getpid).result(timeout=5) == os.getpid()
""",
}


def run(folder: Path, *options: str, files: dict[str, str]) -> str:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options], cwd=folder, env=clean_environ(os.environ),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.usefixtures("redis_stack")  # Skipped where there is no Redis; the suite has its own.
@pytest.mark.worker
def test_a_suite_of_somebody_elses_runs_on_a_private_redis_and_a_real_worker(tmp_path):
    told = run(tmp_path, files=FILES)
    assert "6 passed" in told, told
    assert "celery-graft: shop on a private Redis, redis://:**@127.0.0.1" in told


def test_without_the_setting_nothing_happens_and_a_fixture_says_what_to_set(tmp_path):
    test = "import sys\ndef test_a(): assert 'celery' not in sys.modules\ndef test_b(graft_worker): pass\n"
    told = run(tmp_path, "-p", "no:celery", files={"pyproject.toml": "", "test_a.py": test})
    assert "1 passed, 1 error" in told, told
    assert 'set graft_app = "MODULE"' in told
