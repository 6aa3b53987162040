from __future__ import annotations

import pytest
from pydantic import ValidationError

from graft.config.celeryconfig import defaults, options
from graft.config.settings import Settings


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
        ({"mode": "somewhere"}, "mode"),
        ({"run_limit": 0}, "run_limit"),
    ],
)
def test_values_that_cannot_work_are_refused_with_the_reason(values, told):
    with pytest.raises(ValidationError, match=told):
        Settings(**values)


def test_no_secret_is_shown():
    config = Settings(broker_url="redis://:hunter2@host/0", signing_key="canary-canary-canary")
    shown = f"{config!r} {config} {config.broker_name}"
    assert "hunter2" not in shown
    assert "canary" not in shown
    with pytest.raises(ValidationError) as refused:
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
