"""The hardened Redis transport, for clients and workers alike: kombu's with our channel (channel.py)."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from kombu.connection import resolve_aliases
from kombu.transport import TRANSPORT_ALIASES
from redis.exceptions import MasterDownError, OutOfMemoryError, ReadOnlyError

from graft.config.deployment import settings
from graft.config.private_names import of_kombu, require
from graft.config.private_names.of_kombu import stock
from graft.config.settings import is_redis
from graft.config.transport.channel import OWN_OPTIONS, Channel

_SCHEMES: Final = (
    ("redis://", "graft://"),
    ("rediss://", "grafts://"),
    ("redis+socket://", "graft+socket://"),
    ("socket://", "graft+socket://"),
    ("unix://", "graft+socket://"),
)


class Transport(stock.Transport):
    """kombu's Redis transport with our channel."""

    Channel = Channel
    # A full or demoted server is an outage like any other: wait for it, do not end.
    connection_errors = (*stock.Transport.connection_errors, OutOfMemoryError, ReadOnlyError, MasterDownError)


class TlsTransport(Transport):
    """The same over TLS; kombu verifies no certificate when ``rediss://`` comes without options, this one does."""

    def __init__(self, client: Any, **kwargs: Any) -> None:
        if not isinstance(client.ssl, dict):
            client.ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
        super().__init__(client, **kwargs)


class SentinelChannel(Channel, stock.SentinelChannel):
    """The same on whichever server Sentinel calls the master."""

    from_transport_options = (*stock.SentinelChannel.from_transport_options, *OWN_OPTIONS)


class SentinelTransport(Transport):
    """kombu's Sentinel transport with our channel."""

    default_port = 26379
    Channel = SentinelChannel


@cache
def register() -> None:
    """Make the transport known to kombu, under the schemes that `transport_url` gives out."""
    require(of_kombu.TRANSPORT)
    TRANSPORT_ALIASES["graft"] = f"{__name__}:{Transport.__name__}"
    TRANSPORT_ALIASES["grafts"] = f"{__name__}:{TlsTransport.__name__}"
    # Under its own name: kombu picks the sentinels out of the addresses by it.
    TRANSPORT_ALIASES["sentinel"] = f"{__name__}:{SentinelTransport.__name__}"
    # Addresses are shown, to people and to Flower, in the form in which they were given.
    resolve_aliases.update(graft="redis", grafts="rediss")


def hardened(url: Any, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The address and kombu's options for a connection over this transport, where *url* is one of Redis.

    What ``transport_options`` says counts, but for ``visibility_timeout``: leases are renewed, so it is that of a
    worker that has died, and the one given is kept for the record of stock workers.
    """
    asked = dict(options)
    address = ";".join(url) if isinstance(url, list | tuple) else url
    if not is_redis(address):
        return url, asked
    asked["transport"] = None  # It is in the address.
    asked["transport_options"] = transport_options(asked.get("transport_options") or {})
    return transport_url(address), asked


def transport_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """*given* with what this transport needs beside it."""
    config = settings()
    theirs = {
        f"stock_{name}": given[name]
        for name in ("visibility_timeout", "unacked_key", "unacked_index_key")
        if name in given
    }
    return {
        # Celery sweeps every interval x throttle seconds: 10 x 10 by default.
        "unacked_restore_interval": max(0.5, min(5.0, config.visibility_timeout / 4)),
        "unacked_restore_throttle": 1,
        "unacked_restore_limit": 200,
        "socket_timeout": 10,
        "socket_connect_timeout": config.connect_timeout,
        "socket_keepalive": True,
        "health_check_interval": 10,
        **({"master_name": config.sentinel_master} if config.sentinel_master else {}),
        **{name: value for name, value in given.items() if f"stock_{name}" not in theirs},
        **theirs,
        "visibility_timeout": config.visibility_timeout,
    }


def transport_url(url: str) -> str:
    """*url* with the scheme of the hardened transport; several addresses may be separated by ``;``.

    ``redis://``, ``rediss://`` and the spellings of a Unix socket (``redis+socket://``, ``socket://``, ``unix://``)
    are mapped; ``sentinel://`` keeps its name, under which `register` has put our own transport.
    """
    register()
    return ";".join(_hardened(part) for part in url.split(";"))


def _hardened(url: str) -> str:
    for scheme, ours in _SCHEMES:
        if url.startswith(scheme):
            url = ours + url.removeprefix(scheme)
            # redis-py and kombu disagree on the name of the database in a socket's address.
            return url.replace("?db=", "?virtual_host=").replace("&db=", "&virtual_host=") if "+socket" in ours else url
    return url
