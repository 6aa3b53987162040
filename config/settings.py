"""Every number and address of a deployment, read once from the environment and checked together.

The conventional variables keep their names (``CELERY_BROKER_URL``, ``CELERY_RESULT_BACKEND``); ours are ``GRAFT_*``.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, Self

from pydantic import AliasChoices, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

logger = logging.getLogger(__name__)

# Variables of ours that are no settings of a deployment: the command line's, the benchmark's, the tests' and so on.
OTHER_VARIABLES: Final = re.compile(r"GRAFT_(APP$|IMAGE$|HASH_SEED$|RAY|BENCH_|ECOSYSTEM_|EXPORTER_|TEST_)")

_PASSWORD = re.compile(r"(://[^:@/;]*:)[^@;]*(?=@)")


def without_password(address: str) -> str:
    """*address* for messages: one URL, or several of Sentinel's, with every password masked."""
    return _PASSWORD.sub(r"\1**", address)


REDIS: Final = ("redis://", "rediss://", "redis+socket://", "socket://", "unix://", "sentinel://")


def is_redis(address: object) -> bool:
    """Whether *address*, a broker's or a result backend's, leads to Redis."""
    return isinstance(address, str) and address.startswith(REDIS)


class SettingsError(ValueError):
    """Settings that cannot work: each by its variable, with the reason."""


class Settings(BaseSettings):
    """One deployment. Durations are float seconds, sizes are bytes."""

    model_config = SettingsConfigDict(
        env_prefix="GRAFT_", frozen=True, extra="ignore", populate_by_name=True, hide_input_in_errors=True
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError("; ".join(_reason(each) for each in error.errors(include_url=False))) from None

    broker_url: str = Field(
        "redis://127.0.0.1:6379/0",
        validation_alias=AliasChoices("CELERY_BROKER_URL", "broker_url"),
        description="Where messages wait: redis://, rediss://, redis+socket:// or sentinel://HOST:26379;sentinel://…",
        repr=False,
    )
    result_backend: str = Field(
        "",
        validation_alias=AliasChoices("CELERY_RESULT_BACKEND", "result_backend"),
        description="Where results are kept; the broker's Redis unless set.",
        repr=False,
    )
    signing_key: SecretStr = Field(
        SecretStr(""),
        description="Signs every pickled byte string. Several keys, separated by commas, are accepted while one is "
        "rotated out; the first signs. At least 16 characters each.",
    )
    replace: str = Field(
        "",
        description="Further old module names that workers redirect to the facades, OLD or OLD=FACADE, separated by "
        "commas: for modules that a program's functions live in and that import them.",
    )
    mode: Literal["cluster", "local"] = Field(
        "cluster",
        description="Where batches and the facades run callables; local keeps everything in the calling process.",
    )

    poc_tasks: bool = Field(
        False,
        description="For the tasks of the old proof of concept: callers route them to `default`, `batch` and `heavy`, "
        "and Beat sends cleanup_old_results (daily at 02:00 UTC) and collect_metrics (each minute). Without this the "
        "tasks run too, in `default`.",
    )

    progress: bool = Field(
        False, description="Show a bar to callers who wait for a batch, a map or an old call in a terminal."
    )

    connect_timeout: float = Field(3.5, gt=0, le=60, description="A broker that does not answer within this is down.")
    outage_grace: float = Field(
        30.0, ge=0, description="How long calls in flight outlive a broker that was reachable before."
    )

    signing: Literal["off", "sign", "require"] = Field(
        "require",
        description="Whether task messages and state-changing control commands bear the deployment's signature, and "
        "workers refuse those that do not. A project's app that is hardened begins at `off`, or at `sign` where there "
        "is a key; `celery -A … doctor` says when the next stage is safe.",
    )
    queues: str = Field(
        "",
        description="Further queues, separated by commas: workers that read the app's default queue read them too. Our "
        "own app declares them beside the seven.",
    )
    include: str = Field(
        "", description="Modules with tasks of your own that our own app's workers, Beat and Flower import; commas."
    )
    beat: bool = Field(True, description="Whether Beat sends our checks and upkeep, beside the entries of the app.")
    failure_letters: Literal["retried", "all", "none"] = Field(
        "retried",
        description="Which tasks leave a dead letter when they fail for good: those with retries, all, or none. A "
        "task's own `graft_letters` has the last word, and killers always leave one.",
    )
    failed_kept: int = Field(
        1000,
        ge=0,
        description="Failures that no retry policy covers are kept too, with the reason `failed`: the newest, so many "
        "in all, a tenth of them with one cause, 64 MiB together. 0 keeps none.",
    )
    redis_checks: Literal["refuse", "warn", "off"] = Field(
        "refuse", description="What a worker does on start about a Redis that would lose messages."
    )
    sentinel_master: str = Field(
        "", description="The name under which Sentinel knows the master, for sentinel:// addresses."
    )
    lost_after: float = Field(
        30.0,
        ge=1,
        description="An envelope unanswered for this long is searched for; one that is nowhere is sent again.",
    )

    soft_time_limit: float = Field(3540.0, gt=0, description="An envelope running longer is asked to stop.")
    hard_time_limit: float = Field(3600.0, gt=0, description="An envelope running longer is killed with its process.")
    visibility_timeout: float = Field(
        60.0, ge=1, description="A message whose worker has not renewed its lease for this long is given to another."
    )
    metrics_port: int = Field(
        0, ge=0, le=65535, description="Where a worker serves /metrics for Prometheus; 0 serves nothing."
    )
    metrics_address: str = Field("127.0.0.1", description="The address that metrics are served on.")
    tracing: bool = Field(False, description="Make OpenTelemetry spans from the caller to each item (extra otel).")
    scale_idle: float = Field(
        30.0, ge=0, description="How long a worker with --autoscale must have little to do before it shrinks."
    )
    drain_timeout: float = Field(
        0.0,
        ge=0,
        description="A worker that was asked to stop gives back what it still runs after this long; 0 waits for it. "
        "Keep it below the grace of whoever stops the process.",
    )
    run_limit: int = Field(
        3, ge=1, le=100, description="An item that was running when so many processes died is not run again."
    )
    due_after: float = Field(
        5.0,
        ge=0,
        description="A task whose time (eta, countdown, the wait before a retry) is further off than so many seconds "
        "waits in Redis until then, in no worker's memory. 0: workers hold all of them, as Celery's do.",
    )
    attempts_bytes: int = Field(
        20_000_000,
        ge=0,
        description="How each run of an envelope or task ended is kept for `celery -A … track ID` and Flower's page of "
        "calls: the latest, in about so many bytes of Redis's memory (by default some 100,000 runs). 0 keeps none.",
    )
    attempts_ttl: float = Field(86400.0, gt=0, description="How long the end of a run is kept.")
    dead_letter_ttl: float = Field(30 * 86400.0, gt=0, description="How long a dead letter is kept.")
    result_ttl: float = Field(3600.0, ge=60, description="How long results are kept under the id of their call.")
    batch_ttl: float = Field(
        7 * 86400.0, ge=60, description="How long a durable batch and its results are kept after its end."
    )
    spool_limit: int = Field(
        1 << 30, ge=1024, description="Bytes of items that one durable batch may keep in Redis until they have run."
    )

    item_limit: int = Field(4 << 20, ge=1024, description="Bytes of one pickled item or result.")
    guest_lease: float = Field(
        30.0, ge=1, description="Guest processes of `--pools` outlive a program that was killed for so long at most."
    )
    guest_value_limit: int = Field(
        256 << 20, ge=1024, description="Bytes of one pickled call or result of a pool under `--pools`."
    )
    envelope_limit: int = Field(1 << 20, ge=1024, description="Bytes of pickled items in one envelope.")
    envelope_items: int = Field(20_000, ge=1, description="Items in one envelope.")
    envelope_seconds: float = Field(0.5, gt=0, description="Work that one envelope should hold when sizes are learnt.")
    pubsub_limit: int = Field(
        256 << 10, ge=1024, description="Larger outcomes are fetched by key, not announced whole."
    )

    items_per_child: int | None = Field(
        None, ge=1, description="Items after which a pool process is replaced by a new one, between two envelopes."
    )

    pool: Literal["prefork", "direct"] = Field(
        "direct",
        description="Pool of a worker that is started with prefork, Celery's default. In direct, processes take their "
        "messages from Redis themselves; prefork is Celery's own.",
    )
    io_threads: int = Field(
        16, ge=1, le=1000, description="Plain functions that a worker of the io lane runs at once, beside its loop."
    )
    loop_lag: float = Field(
        0.5, gt=0, description="A task that keeps the io lane's event loop from its other tasks for longer is reported."
    )

    max_waiting: float = Field(
        30.0, gt=0, description="A message older than this is moved to the front, whatever its priority."
    )

    health_every: float = Field(30.0, gt=0, description="How often Beat has the deployment's health checked.")
    health_depth: int = Field(
        10_000, ge=1, description="A queue in which more messages wait is degraded, five times as many failing."
    )
    health_age: float = Field(300.0, gt=0, description="A queue whose oldest message is older is degraded.")
    health_round_trip: float = Field(60.0, gt=0, description="A canary message through a queue may take this long.")
    health_silence: float = Field(60.0, gt=0, description="Beat is failing when it has sent nothing for this long.")
    health_clock: float = Field(5.0, gt=0, description="Seconds that a worker's clock may differ from Redis's.")
    health_error_rate: float = Field(
        0.05, gt=0, le=1, description="The share of items that may fail, or be run again, within the window."
    )
    health_window: float = Field(300.0, gt=0, description="Rates and new dead letters are counted over this long.")
    health_memory: float = Field(0.8, gt=0, lt=1, description="The share of its memory limit that Redis may use.")
    health_dead_letters: int = Field(0, ge=0, description="Dead letters that may come within the window.")
    leaks_every: float = Field(30.0, gt=0, description="How often processes and Redis are checked for leaks.")
    leaks_hold: float = Field(300.0, gt=0, description="Seconds for which a connection may be borrowed from its pool.")
    leaks_recycle: bool = Field(
        False, description="Replace a leaking pool process by a new one, once it has finished what it runs."
    )
    webhook_url: str = Field(
        "", description="Receives every change of a health verdict: http:// or https://.", repr=False
    )
    webhook_key: SecretStr = Field(SecretStr(""), description="Signs what is sent to the webhook, HMAC-SHA256.")
    webhook_every: float = Field(60.0, gt=0, description="The webhook is called at most once in this time.")

    @model_validator(mode="after")
    def webhook_is_signed(self) -> Self:
        if self.webhook_url and not self.webhook_key.get_secret_value():
            raise ValueError("GRAFT_WEBHOOK_URL needs GRAFT_WEBHOOK_KEY, or its receiver could not tell who calls")
        if self.webhook_url and not self.webhook_url.startswith(("http://", "https://")):
            raise ValueError(f"GRAFT_WEBHOOK_URL={self.webhook_url.partition(':')[0]}:… must be http:// or https://")
        return self

    @model_validator(mode="after")
    def soft_limit_comes_before_the_hard_one(self) -> Self:
        if self.soft_time_limit >= self.hard_time_limit:
            raise ValueError(
                f"soft_time_limit={self.soft_time_limit:g} s must be below hard_time_limit={self.hard_time_limit:g} s, "
                "or a task is killed before it is asked to stop"
            )
        return self

    @model_validator(mode="after")
    def keys_are_long_enough(self) -> Self:
        short = [len(key) for key in self.signing_keys if len(key) < 16]
        if short:
            raise ValueError(
                f"GRAFT_SIGNING_KEY holds a key of {short[0]} characters; at least 16 are needed "
                "(for instance from: python -c 'import secrets; print(secrets.token_hex(32))')"
            )
        return self

    @model_validator(mode="after")
    def broker_is_redis(self) -> Self:
        for name, url in (("CELERY_BROKER_URL", self.broker_url), ("CELERY_RESULT_BACKEND", self.backend_url)):
            if not is_redis(url):
                raise ValueError(
                    f"{name}={without_password(url)} is not Redis; use redis://, rediss://, redis+socket:// or "
                    "sentinel://"
                )
            if url.startswith("sentinel://") and not self.sentinel_master:
                raise ValueError(f"{name} is Sentinel: set GRAFT_SENTINEL_MASTER to the name of its master")
        return self

    @property
    def signs(self) -> bool:
        """Whether messages are signed."""
        return self.signing != "off" and bool(self.signing_keys)

    @property
    def refuses_unsigned(self) -> bool:
        """Whether messages without a signature are refused, where there is a key to tell them by."""
        return self.signing == "require" and bool(self.signing_keys)

    @property
    def signing_keys(self) -> tuple[bytes, ...]:
        """The keys that are accepted, the signing one first."""
        parts = self.signing_key.get_secret_value().split(",")
        return tuple(part.strip().encode() for part in parts if part.strip())

    @property
    def backend_url(self) -> str:
        return self.result_backend or self.broker_url

    @property
    def broker_name(self) -> str:
        """The broker's address without its password, for messages."""
        return without_password(self.broker_url)


def variable(name: str) -> str:
    """The environment variable that the field *name* is read from."""
    alias = Settings.model_fields[name].validation_alias
    return str(alias.choices[0]) if isinstance(alias, AliasChoices) else f"GRAFT_{name.upper()}"


def warn_of_unknown(environ: Mapping[str, str] | None = None) -> None:
    """Log a warning for each ``GRAFT_…`` variable that changes nothing, with the one that was probably meant."""
    for name, meant in unknown(os.environ if environ is None else environ):
        advice = f"; did you mean {meant}?" if meant else "; docs/configuration.md lists those that there are"
        logger.warning("the environment variable %s is not known and changes nothing%s", name, advice)


def unknown(environ: Iterable[str]) -> list[tuple[str, str | None]]:
    """The names in *environ* that look like ours and are none, each with the nearest that there is.

    A project may read names of its own that begin with ``CELERY_``: of those only what is nearly one of ours.
    """
    known = {variable(name) for name in Settings.model_fields}
    found = []
    for name in sorted(environ):
        upper = name.upper()
        is_ours = upper.startswith("GRAFT_")
        if upper in known or OTHER_VARIABLES.match(upper) or not (is_ours or upper.startswith("CELERY_")):
            continue
        prefix = upper.partition("_")[0]
        alike = [one for one in known if one.startswith(prefix)]
        nearest = next(iter(difflib.get_close_matches(upper, alike, 1, 0.85)), None)
        if nearest or is_ours:
            found.append((name, nearest))
    return found


def _reason(error: Mapping[str, Any]) -> str:
    """One error of pydantic's for people; the value is shown where it cannot be a secret."""
    text = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:
        return text
    name = str(error["loc"][0])
    name = next((field for field in Settings.model_fields if name in (field, variable(field))), name)
    field = Settings.model_fields.get(name)
    if field is None:
        return f"{name}: {text}"
    is_shown = field.repr and field.annotation is not SecretStr
    value = f"={error['input']}" if is_shown else ""
    return f"{variable(name)}{value}: {text[:1].lower()}{text[1:]}"
