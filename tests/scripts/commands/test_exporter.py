"""The exporter, as Prometheus and a scaler see it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from graft.scripts.stack.redis_server import free_port
from tests.stack import ROOT, Stack, clean_environ, run_python, wait_until

EXPORTER = [sys.executable, "-m", "celery", "-A", "graft", "exporter"]


@pytest.fixture(scope="module")
def exported() -> Iterator[tuple[Stack, int]]:
    """A stack, and the port of its exporter."""
    port = free_port()
    with Stack({"cpu": 2}, clean_environ(os.environ)) as stack:
        process = subprocess.Popen(
            [*EXPORTER, f"--port={port}"], env=stack.env_of("viewer"), stderr=subprocess.PIPE, text=True
        )
        try:
            assert process.stderr is not None
            assert "/metrics" in process.stderr.readline()
            yield stack, port
        finally:
            process.terminate()
            process.communicate(timeout=20)


def page(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text: str = answer.read().decode()
        return text


def samples(port: int) -> dict[tuple[str, str], float]:
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(page(port))
        for sample in family.samples
    }


def test_the_figure_for_scalers_is_one_line_of_json(exported):
    stack, _ = exported
    done = subprocess.run(
        [*EXPORTER, "--json"], env=stack.env_of("viewer"), capture_output=True, text=True, timeout=60, check=True
    )
    found = json.loads(done.stdout)
    assert found["cpu"]["slots"] == 2
    assert {"cpu", "all"} <= set(found) <= {"cpu", "io", "all"}
    done = subprocess.run(
        [*EXPORTER, "--json", "--lane", "cpu"],
        env=stack.env_of("viewer"),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout)["lane"] == "cpu"


def test_a_redis_that_is_down_is_an_exit_code(stack):
    env = {**stack.env, "CELERY_BROKER_URL": "redis://127.0.0.1:1/0", "CELERY_RESULT_BACKEND": "redis://127.0.0.1:1/0"}
    done = subprocess.run([*EXPORTER, "--json"], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert "does not answer" in done.stderr


# ---- what Prometheus itself says of our files ----------------------------------------------------------------------

promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (Debian: prometheus)")


@promtool
def test_names_and_units_follow_the_conventions(exported):
    _, port = exported
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=page(port), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


@promtool
def test_the_alert_rules_are_valid_and_fire_when_they_should():
    rules = ROOT / "config" / "alerts.yml"
    done = subprocess.run(["promtool", "check", "rules", str(rules)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = ROOT / "tests" / "scripts" / "alerts_test.yml"
    done = subprocess.run(["promtool", "test", "rules", str(cases)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_dashboard_and_alerts_use_metrics_that_exist(exported):
    stack, port = exported
    run_python(stack, "import graft; from tests import samples; graft.submit(samples.square, range(3)).collect()")
    families = {family.name for family in text_string_to_metric_families(page(port))}
    known = families | {f"{name}_total" for name in families}
    conditional = {  # Not there on an idle stack without Beat.
        "graft_beat_silence_seconds", "graft_health_state", "graft_health_check_state",
        "graft_health_last_check_timestamp_seconds", "graft_health_check_value", "graft_health_check_limit",
    }  # fmt: skip
    text = (ROOT / "config" / "grafana.json").read_text() + (ROOT / "config" / "alerts.yml").read_text()
    used = set(re.findall(r"\bgraft_[a-z_]+\b", text))
    of_workers = {name for name in used if name.startswith("graft_worker_")}  # tests/workers/bootsteps/test_metrics.py
    assert used - of_workers - known - conditional == set()


NAMED = """
import asyncio
from graft.compat.async_patterns import bounded_pipeline, channel

async def main():
    sender, _ = channel(5, name="orders")
    for number in range(3):
        await sender.send(number)
    await bounded_pipeline([int, str], [1, 1], name="import").run("1234")

asyncio.run(main())
"""


def test_named_channels_and_pipelines_are_metrics(exported):
    stack, port = exported
    done = run_python(stack, NAMED)
    assert done.returncode == 0, done.stderr
    wait_until(lambda: ("graft_pipeline_items", "import,2") in samples(port), what="the pipeline's figures")
    found = samples(port)
    assert found["graft_channel_values", "orders"] == 3
    assert found["graft_channel_capacity", "orders"] == 5
    assert found["graft_channel_ends", "orders,receiver"] == 0
    assert found["graft_pipeline_items", "import,1"] == found["graft_pipeline_items", "import,2"] == 4
    assert ("graft_pipeline_waits", "import,1") in found


def test_it_tells_what_limits_let_begin_and_sent_back(exported, tmp_path):
    stack, port = exported
    code = f"""
import graft
from tests import limited
(folder := __import__("pathlib").Path({str(tmp_path)!r}) / "down").touch()
print(graft.submit(limited.once_an_hour, [{str(tmp_path)!r}] * 4, batch_size=4))
print([one.error for one in graft.submit(limited.service, [{str(tmp_path)!r}] * 3, batch_size=3).as_completed()])
graft.submit(limited.service, [{str(tmp_path)!r}] * 2, batch_size=2)
import time; time.sleep(1)
"""
    done = run_python(stack, code)
    assert done.stdout.count("ConnectionError") == 3, done.stderr

    def told(found: dict[tuple[str, str], float]) -> bool:
        return found.get(("graft_limit_postponed_items_total", "rate,tests.limited:once_an_hour"), 0) >= 3

    wait_until(lambda: told(samples(port)), what="the counts of a second")
    found = samples(port)
    assert found["graft_limit_admitted_items_total", "tests.limited:once_an_hour"] == 1
    assert found["graft_limit_waiting", "tests.limited:once_an_hour"] == 1
    assert found["graft_limit_breaker_openings_total", "tests.limited:service"] >= 1
    assert found["graft_limit_breakers_open", "tests.limited:service"] == 1
    assert str(tmp_path) not in page(port)  # A key may be a customer's name.
    live = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "graft", "health", "--live", "--json"], env=stack.env_of("operator"),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    (breaker,) = [one for one in json.loads(live.stdout)["verdicts"] if one["check"] == "breaker"]
    assert breaker["state"] == "degraded"
    assert "the last failure: ConnectionError: the service is down" in breaker["detail"]


# Last: it breaks the stack.
def test_it_tells_what_waits_what_runs_and_what_ran(exported):
    stack, port = exported
    code = "import graft; from tests import samples; graft.submit(samples.identity, range(30), batch_size=3).collect()"
    assert run_python(stack, code).returncode == 0
    items = "graft_items_total", "tests.samples:identity"
    wait_until(lambda: samples(port).get(items) == 30, 20, "the worker to tell what it ran")
    found = samples(port)
    assert found["graft_up", ""] == 1
    assert found["graft_cluster_slots", stack.worker.name] == 2
    assert found["graft_queue_workers", "batch"] == 1
    assert found["graft_dead_letters", ""] == 0

    stack.worker.kill()
    code = "import graft, time; from tests import samples; graft.submit(samples.square, range(30), batch_size=3)"
    code += "; time.sleep(3)"
    assert run_python(stack, code).returncode == 0
    found = samples(port)
    assert found["graft_queue_messages", "batch"] >= 4
    assert found["graft_queue_oldest_message_age_seconds", "batch"] > 0
    assert found["graft_scaling_demand_messages", "cpu"] >= 4

    stack.kill_redis()
    assert samples(port) == {("graft_up", ""): 0.0}
    stack.start_redis()
    wait_until(lambda: samples(port)["graft_up", ""] == 1, 20, "it finds Redis again")
