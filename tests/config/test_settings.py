from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from graft.config.celeryconfig import defaults, options
from graft.config.settings import OTHER_VARIABLES, Settings, SettingsError, unknown, variable


def test_the_conventional_variables_are_read(monkeypatch):
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://broker:6379/1")
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "redis://results:6379/2")
    config = Settings()
    assert (config.broker_url, config.backend_url) == ("redis://broker:6379/1", "redis://results:6379/2")


def test_results_live_beside_the_messages_unless_told_otherwise(monkeypatch):
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://broker:6379/1")
    monkeypatch.delenv("CELERY_RESULT_BACKEND", raising=False)
    assert Settings().backend_url == "redis://broker:6379/1"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"soft_time_limit": 60.0, "hard_time_limit": 60.0}, "soft_time_limit=60 s must be below hard_time_limit=60"),
        ({"signing_key": "short"}, "a key of 5 characters; at least 16"),
        ({"signing_key": "0123456789abcdef,short"}, "a key of 5 characters"),
        ({"broker_url": "amqp://u:secret@host//"}, "is not Redis"),
        ({"mode": "somewhere"}, "GRAFT_MODE=somewhere: input should be 'cluster' or 'local'"),
        ({"run_limit": 0}, "GRAFT_RUN_LIMIT=0: input should be greater than or equal to 1"),
        ({"webhook_key": 5}, "GRAFT_WEBHOOK_KEY: input should be"),
    ],
)
def test_values_that_cannot_work_are_refused_with_the_reason(values, told):
    with pytest.raises(SettingsError, match=told):
        Settings(**values)


def test_no_secret_is_shown():
    config = Settings(broker_url="redis://:hunter2@host/0", signing_key="canary-canary-canary")
    shown = f"{config!r} {config} {config.broker_name}"
    assert "hunter2" not in shown
    assert "canary" not in shown
    with pytest.raises(SettingsError) as refused:
        Settings(broker_url="amqp://u:hunter2@host//", signing_key="canary-canary-canary")
    assert "hunter2" not in str(refused.value)
    assert "canary" not in str(refused.value)


def test_nothing_switches_pipelined_publishing_off():
    transport = options(Settings())["broker_transport_options"]
    assert not {"retry", "retry_on_timeout", "retry_on_error"} & transport.keys()


def test_late_acknowledgement_comes_with_a_policy_for_lost_processes():
    configured = defaults(Settings()) | options(Settings())
    assert configured["task_acks_late"]
    assert configured["task_reject_on_worker_lost"]
    assert configured["accept_content"] == ["json"]


def test_an_unknown_variable_is_said_with_the_one_that_was_meant():
    environ = ["GRAFT_RUN_LIMT", "GRAFT_SIGNING_KEYS", "GRAFT_XYZ", "graft_mode", "GRAFT_BENCH_URL", "PATH"]
    assert unknown(environ) == [
        ("GRAFT_RUN_LIMT", "GRAFT_RUN_LIMIT"), ("GRAFT_SIGNING_KEYS", "GRAFT_SIGNING_KEY"), ("GRAFT_XYZ", None),
    ]  # fmt: skip
    assert unknown(map(variable, Settings.model_fields)) == []


def test_every_variable_that_the_source_reads_is_known():
    root = Path(__file__).resolve().parents[2]
    read = {
        name
        for folder in ("config", "tasks", "workers", "compat", "scripts", "graft")
        for path in (root / folder).rglob("*.py")
        for name in re.findall(r"GRAFT_[A-Z_]*[A-Z]", path.read_text())
    }
    known = {variable(name) for name in Settings.model_fields}
    assert {name for name in read - known if not OTHER_VARIABLES.match(name)} == set()


@pytest.mark.parametrize("command", [["celery", "-A", "graft", "worker"], ["celery", "-A", "graft", "batch", "list"]])
def test_the_command_line_says_what_is_wrong_without_a_traceback(redis_stack, command):
    env = {**redis_stack.env, "GRAFT_RUN_LIMIT": "zero", "GRAFT_RUN_LIMT": "3"}
    done = subprocess.run([sys.executable, "-m", *command], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("these settings cannot work: GRAFT_RUN_LIMIT=zero: input should be a valid integer")
    assert done.stderr.count("\n") == 1


def test_the_name_that_was_meant_is_logged_once(redis_stack):
    env = {**redis_stack.env, "GRAFT_RUN_LIMT": "3"}
    code = "from graft.config.deployment import current; current.settings; current.reread_settings(); current.settings"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stderr.count("GRAFT_RUN_LIMT is not known and changes nothing; did you mean GRAFT_RUN_LIMIT?") == 1
