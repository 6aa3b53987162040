"""Our own connections to the deployment's Redis, beside those that kombu and Celery keep.

redis-py gives a plain client a ``socket_timeout`` of 5 s and retries (8.1); both are set here on purpose, because a
retried command may run twice and a blocking read needs a longer patience.
"""

from __future__ import annotations

from typing import Any, Final

import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.connection import HiredisRespSerializer, PythonRespSerializer
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    MasterDownError,
    MaxConnectionsError,
    OutOfMemoryError,
    ReadOnlyError,
)
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelManagedConnection

from graft.config.addresses import Sentinels, as_redis_py, sentinels
from graft.config.deployment import current, part, settings
from graft.config.settings import Settings

LARGE: Final = 1 << 16  # Bytes of a value that is not copied once more to be sent.


class _Packer:
    """Packs commands as redis-py does, a large value beside its command: 1 MiB takes hiredis a millisecond.

    hiredis is for the small ones, which it packs in a third of the time.
    """

    def __init__(self) -> None:
        self._small: Any = HiredisRespSerializer()
        self._large: Any = PythonRespSerializer(LARGE, redis.ConnectionPool().get_encoder().encode)

    def pack(self, *arguments: Any) -> Any:
        is_large = any(type(each) is bytes and len(each) > LARGE for each in arguments)
        return (self._large if is_large else self._small).pack(*arguments)


def connect(config: Settings | None = None, *, socket_timeout: float | None = 10.0, **options: Any) -> Any:
    """A client of the result backend's Redis, where this project keeps its own keys. Connects on first use.

    Typed as Any: redis-py's own types cannot tell raw replies, which these are, from decoded ones.
    """
    config = config or settings()
    options = {
        "socket_timeout": socket_timeout,
        "socket_connect_timeout": config.connect_timeout,
        "socket_keepalive": True,
        "health_check_interval": 10,
        "client_name": "graft",
        "command_packer": _Packer(),
        **options,
    }
    options["retry"] = options.get("retry") or Retry(NoBackoff(), 0)
    found = sentinels(config.backend_url)
    if found is not None:
        return _master(found, config.sentinel_master, options)
    return redis.Redis.from_url(as_redis_py(config.backend_url), **options)


class _MasterConnection(SentinelManagedConnection):
    """Asks Sentinel for every attempt to connect.

    redis-py 8.1 asks only where a connection leaves its pool: a command that is tried again goes to the address of
    the master that was, until it gives up.
    """

    def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        if retry_socket_connect:
            self.connect()  # type: ignore[no-untyped-call]  # It comes by here again, with the address of now.
        else:
            super().connect_check_health(check_health, retry_socket_connect)


def _master(found: Sentinels, name: str, options: dict[str, Any]) -> Any:
    """A client of the server that Sentinel calls the master, asked again for every new connection."""
    asking = {key: options[key] for key in ("socket_timeout", "socket_connect_timeout", "retry")}
    sentinel: Any = Sentinel  # redis-py's own types stop here.
    return sentinel(found.hosts, sentinel_kwargs=asking).master_for(
        name, db=found.database, connection_class=_MasterConnection, **found.login, **options
    )


class _Patience:
    """How the shared client bears with an outage."""

    def __init__(self) -> None:
        self.retry = Retry(NoBackoff(), 0)

    def after_fork(self) -> None:
        """A pool process is as patient as its parent."""


def _shared() -> Any:
    return connect(retry=part(_Patience).retry)


def shared() -> Any:
    """This process's one pooled client for short commands; a forked child has one of its own."""
    return part(_shared)


def broker(**options: Any) -> Any:
    """A client of the broker's Redis, which may be another server than the result backend; ``with`` closes it."""
    return connect(settings().model_copy(update={"result_backend": settings().broker_url}), **options)


def _shared_broker() -> Any:
    return broker(retry=part(_Patience).retry)


def patient_broker() -> Any:
    """The same as :func:`shared` for the broker's Redis."""
    return shared() if settings().backend_url == settings().broker_url else part(_shared_broker)


def server_time(client: Any) -> float:
    """Redis's own time in seconds since the epoch: the one clock that all machines share."""
    seconds, microseconds = client.time()
    return float(seconds) + float(microseconds) / 1e6


def why_not(error: BaseException | None) -> tuple[str, str]:
    """What a Redis did that raised *error*, and the remedy: a server that refuses somebody need not be started."""
    text = str(error or "")
    if isinstance(error, AuthenticationError) or text.startswith(("WRONGPASS", "NOAUTH")):
        return "refuses the user or password", "correct them in CELERY_BROKER_URL or CELERY_RESULT_BACKEND"
    if isinstance(error, MaxConnectionsError) or "max number of clients" in text:
        return "refuses further connections", "raise its maxclients, or start fewer processes"
    if isinstance(error, OutOfMemoryError):
        return "is full, and takes nothing more", "raise its maxmemory, or wait until what is in it has run or expired"
    if isinstance(error, BusyLoadingError):
        return "still loads its data", "wait until it has"
    if "refused" in text or isinstance(error, ConnectionRefusedError):
        return "does not answer: nothing listens there", "start it, or set CELERY_BROKER_URL"
    return "does not answer", "start it, or set CELERY_BROKER_URL"


def be_patient(seconds: float) -> None:
    """Have :func:`shared` sit out an outage of about *seconds*: for workers, which must not blame a task for it.

    A server that is full or no longer the master is out as well. A command whose reply was lost runs twice then;
    everything sent through it allows that.
    """
    retry = Retry(ExponentialBackoff(cap=1.0, base=0.05), int(seconds) + 5)
    retry.update_supported_errors((OutOfMemoryError, ReadOnlyError, MasterDownError))
    part(_Patience).retry = retry
    for make in (_shared, _shared_broker):
        current.drop(make)
