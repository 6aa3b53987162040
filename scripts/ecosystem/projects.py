"""The projects, each at a version whose source archive on the package index has its tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

REDIS: Final = "{redis}"  # In a value of ``environ``: the address of the private Redis.
HOST: Final = "{host}"
PORT: Final = "{port}"


@dataclass(frozen=True)
class Project:
    """One project and how its tests run. The broker is the private Redis, through ``CELERY_BROKER_URL``.

    ``needs`` is what its tests import, beside Celery; ``arguments`` are pytest's, and ``more`` stand in their place
    where everything is asked for, ``quick`` where CI does. An empty value in ``environ`` takes the variable away.
    ``keeps`` are the folders that are taken from its archive, if not all. ``edits`` are made for both runs: file ->
    what stands there, what takes its place. ``excused`` are tests that need not pass once hardened, each with the
    reason.
    """

    name: str
    version: str
    needs: Sequence[str]
    arguments: Sequence[str] = ()
    more: Sequence[str] = ()
    quick: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    path: str = "."
    keeps: Sequence[str] = ()
    edits: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    excused: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    limit: float = 600.0

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


DJANGO: Final = ("django==5.2.19", "pytest-django==4.14.0")

# Of Celery's own integration suite, the whole of which takes the better part of an hour each way.
CELERY_TESTS: Final = ("beat", "worker", "inspect")
QUICK: Final = (
    "basic_task", "wrong_arguments", "(ignore_result and not retry_preserves and not send_task_without)",
    "unicode_task", "class_based_task_retried", "simple_chain", "complex_chain", "group_results_in_chain",
    "chain_of_chords_with_two_tasks", "chord_soft_timeout_recuperation", "parent_ids", "nested_group",
    "callback_called_by_group", "add_chord_to_chord", "(link_error and not nested_chord)",
)  # fmt: skip
TASKS: Final = "t.integration.test_tasks.test_tasks"
BACKEND: Final = "t.integration.test_tasks.test_task_redis_result_backend"
INSPECT: Final = "t.integration.test_inspect.test_Inspect"
ACKNOWLEDGED: Final = (
    "it wants a running task to be acknowledged; ours is once it has run, so that a crash loses nothing"
)
TOLD_TOGETHER: Final = (
    "it looks into the worker's main process for the id of what a pool process has run; ours tells it how many ran"
)

PROJECTS: Final = (
    Project(
        "celery-longterm-scheduler", "1.3.1", ("pytest==8.4.2", "pendulum==3.2.0", "testing.redis==1.1.1"), path="src"
    ),
    Project(
        "celery-redbeat", "2.4.2",
        ("pytest==8.4.2", "fakeredis==2.41.0", "python-dateutil", "tenacity"),
        note="2 tests fail in stock Celery too, one since it expects no CELERY_BROKER_URL",
    ),
    Project(
        "django-celery-beat", "2.9.0",
        ("pytest==8.4.2", "pytest-timeout", *DJANGO, "ephem", "django-timezone-field", "cron-descriptor",
         "python-crontab"),
        environ={"DJANGO_SETTINGS_MODULE": "t.proj.settings"},
    ),
    Project(
        "django-celery-results", "2.6.0",
        ("pytest==8.4.2", *DJANGO, "pytest-benchmark==5.3.1", "pytz"),
        arguments=("t/unit",),
        environ={"DJANGO_SETTINGS_MODULE": "t.proj.settings"},
        note="13 tests fail in stock Celery 5.7 too; one that we read gives Celery a task's name for the task",
    ),
    Project(
        "flower", "2.2.0", ("pytest==8.4.2",), arguments=("tests/unit",),
        note="2 tests fail in stock Celery too, one since it expects no CELERY_BROKER_URL",
    ),
    Project(
        "opentelemetry-instrumentation-celery", "0.66b2",
        ("pytest==8.4.2", "opentelemetry-test-utils", "opentelemetry-instrumentation",
         "opentelemetry-semantic-conventions"),
        path="src:.",
    ),
    Project(
        "sentry-sdk", "2.75.0",
        ("pytest==8.4.2", "pytest-forked", "pytest-localserver", "pytest-asyncio", "werkzeug", "executing", "asttokens",
         "responses", "jsonschema", "pysocks", "socksio", "httpcore[http2]", "newrelic==9.13.0"),
        arguments=("tests/integrations/celery", "-o", "addopts="),
        environ={"CELERY_RESULT_BACKEND": REDIS, "GRAFT_BEAT": "false"},
        note="the tests of its Celery integration alone; 4 fail in stock Celery too: they want RabbitMQ; run with "
        "GRAFT_BEAT=false, since two of them take all that Beat sends for their own, which our checks are not",
    ),
    Project(
        "celery", "5.7.0",
        ("pytest==9.1.1", "pytest-celery==1.3.0", "pytest-rerunfailures==16.7", "pytest-timeout", "pytest-order",
         "pytest-click", "cryptography", "sqlalchemy", *DJANGO, "pymemcache", "python-memcached"),
        arguments=[f"t/integration/test_{name}.py" for name in CELERY_TESTS],
        more=("t/integration", "--ignore=t/integration/test_backend.py"),
        quick=("t/integration/test_tasks.py", "t/integration/test_canvas.py", "-k", " or ".join(QUICK)),
        environ={"TEST_BROKER": REDIS, "TEST_BACKEND": REDIS, "REDIS_HOST": HOST, "REDIS_PORT": PORT,
                 "CELERY_BROKER_URL": ""},
        keeps=("t", "pyproject.toml"),
        edits={"t/integration/conftest.py": ("if configured != {'celery'}", "if configured - {'graft'} != {'celery'}")},
        excused={
            f"{INSPECT}::test_active_queues": "it wants a worker to read one queue; ours reads a queue of our own too",
            f"{INSPECT}::test_active": ACKNOWLEDGED,
            f"{INSPECT}::test_query_task": ACKNOWLEDGED,
            f"{TASKS}::test_send_task_without_ignore_result_stores_result": TOLD_TOGETHER,
            f"{TASKS}::test_send_task_without_ignore_result_uses_task_ignore_result": TOLD_TOGETHER,
            f"{BACKEND}::test_retry_preserves_ignore_result_false": TOLD_TOGETHER,
            f"{BACKEND}::test_retry_preserves_ignore_result_true": TOLD_TOGETHER,
            "t.integration.test_backend_leak_in_fixture_teardown::test_fixture_teardown_releases_backend_connections":
                "it makes twenty apps in one process, and a process keeps the app that it hardens",
        },
        note="a part of its integration suite, on one worker (--everything runs all of it but test_backend.py, "
        "which is about Azure); one line is edited for both runs: it forbids the worker a second queue; with "
        "--everything, test_chord_header_id_duplicated_on_rabbitmq_msg_duplication is expected to fail on Redis, in "
        "stock Celery too, since it sends no duplicate (tests/hardened/test_duplicates.py does), and "
        "test_replaced_task_nesting_level_0 may fail where a worker is quick: it clears its note of the task after it "
        "has sent it, and test_pidbox_reset_after_repeated_control_errors fails in stock Celery too",
        limit=5400.0,
    ),
)  # fmt: skip
