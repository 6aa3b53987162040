from __future__ import annotations

from graft.config.redis_client import login, sentinels


def test_the_first_of_sentinels_addresses_carries_the_masters_login_and_database():
    hosts, master = sentinels("sentinel://worker:p%40ss%3Bword@a:26380/3;sentinel://b")
    assert hosts == [("a", 26380), ("b", 26379)]
    assert master == {"db": 3, "username": "worker", "password": "p@ss;word"}


def test_an_address_without_a_login_gives_none():
    assert login("redis://host/1") == {}
