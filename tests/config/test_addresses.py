"""Addresses of Redis, with passwords that have to be quoted in them."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from kombu import Connection

from graft.config import addresses, redbeat, redis_client
from graft.config.settings import Settings
from graft.config.transport import register, transport_url

PASSWORD = "p@ss:w/rd?#%;é"
QUOTED = quote(PASSWORD, safe="")


def test_the_sentinels_the_login_and_the_database_are_read():
    found = addresses.sentinels(f"sentinel://me:{QUOTED}@one:1/2;sentinel://two;sentinel://[::1]:3")
    assert found is not None
    assert found.hosts == [("one", 1), ("two", 26379), ("::1", 3)]
    assert found.login == {"username": "me", "password": PASSWORD}
    assert found.database == 2
    bare = addresses.sentinels("sentinel://one")
    assert bare == ([("one", 26379)], {}, 0)


def test_the_address_of_a_server_has_no_sentinels():
    assert addresses.sentinels("redis://one:6379") is None
    assert addresses.login(f"redis://:{QUOTED}@one") == {"password": PASSWORD}
    assert addresses.as_redis_py("redis+socket:///a.sock") == addresses.as_redis_py("socket:///a.sock")
    assert addresses.as_redis_py("unix:///a.sock?db=1") == "unix:///a.sock?db=1"


@pytest.mark.parametrize("address", [f"sentinel://me:{QUOTED}@one/2;sentinel://two", f"redis://me:{QUOTED}@one/2"])
def test_every_client_logs_in_with_the_same_password(address):
    config = Settings(broker_url=address, result_backend=address, sentinel_master="main")
    options = redis_client.connect(config).connection_pool.connection_kwargs
    assert (options["username"], options["password"], options["db"]) == ("me", PASSWORD, 2)
    assert redbeat.options(config)["redbeat_redis_options"]["password"] == PASSWORD
    register()
    assert Connection(transport_url(address)).password == PASSWORD
