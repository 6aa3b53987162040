"""A worker's /metrics: what all its processes did, those included that are gone."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families

from graft.scripts.stack.redis_server import free_port
from tests.stack import run_python, wait_until


def read(port: int) -> dict[tuple[str, str], float]:
    """Samples by name and by their labels' values."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_tasks_are_counted_over_all_processes_and_over_their_replacement(fresh_stack):
    port = free_port()
    stack = fresh_stack(cpu=2, GRAFT_METRICS_PORT=str(port))
    done = "graft_worker_tasks_total", "success,graft.batch"
    code = "import graft; from tests import samples; graft.submit(samples.square, range(40), batch_size=2).collect()"

    assert run_python(stack, code).returncode == 0
    wait_until(lambda: read(port).get(done) == 20, 10, "20 envelopes are counted")
    assert read(port)["graft_worker_slots", ""] == 2
    assert read(port)["graft_worker_task_wait_seconds_count", "batch"] == 20
    assert read(port)["graft_worker_task_duration_seconds_count", "graft.batch"] == 20

    pool = {child.pid for child in stack.worker.process.children()}
    for pid in pool:
        psutil.Process(pid).terminate()
    wait_until(lambda: len({child.pid for child in stack.worker.process.children()} - pool) == 2, 20, "new processes")
    assert run_python(stack, code).returncode == 0
    wait_until(lambda: read(port).get(done) == 40, 10, "what the old processes ran still counts")


def test_the_one_process_of_the_io_lane_counts_too(fresh_stack):
    port = free_port()
    stack = fresh_stack(cpu=0, io=20, GRAFT_METRICS_PORT=str(port))
    code = "import graft; from tests import samples; graft.submit(samples.square, range(40), batch_size=10).collect()"
    assert run_python(stack, code).returncode == 0
    wait_until(lambda: read(port).get(("graft_worker_tasks_total", "success,graft.batch")) == 4, 10, "4 envelopes")


def test_a_port_that_is_taken_costs_the_metrics_and_not_the_worker(fresh_stack):
    port = free_port()
    stack = fresh_stack(cpu=1, GRAFT_METRICS_PORT=str(port))
    with stack.another_worker(concurrency=1) as second:
        wait_until(lambda: "give each worker of a machine its own" in Path(second.log).read_text(), what="the warning")
        assert second.status is None
