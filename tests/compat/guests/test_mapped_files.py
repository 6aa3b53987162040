"""Files that calls map: where they are missing they are copied once, and copies end with their pool."""

from __future__ import annotations

import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from graft.config import keys
from graft.config.deployment import current
from graft.tasks.errors import GuestRefusedError, PayloadTooLargeError
from graft.tasks.guests import guest_program
from graft.tasks.guests.mapped_files import MARKER, Copies, MappedFile
from graft.tasks.guests.values import PIECE, SharedValues


@pytest.fixture
def array(tmp_path: Path) -> Path:
    path = tmp_path / "machine" / "arrays" / "0.pkl"
    path.parent.mkdir(parents=True)
    path.write_bytes(secrets.token_bytes(PIECE + 1))
    return path


def test_a_machine_without_the_file_fetches_it_once_under_its_path_until_the_pool_ends(array, redis: redis.Redis):
    pool, content = secrets.token_hex(8), array.read_bytes()
    file = MappedFile.of(str(array), may_be_copied=True)
    assert Copies(pool).fetch((file,)) == ()
    guest_program.store(pool, {})
    stored = SharedValues(pool)
    stored.store_file(file.path)
    shutil.rmtree(array.parent.parent)  # From here on this is another machine.
    guests, before = [Copies(pool) for _ in range(4)], redis.info("stats")["total_net_output_bytes"]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda copies: copies.fetch((file,)), guests)) == [()] * 4
    assert redis.info("stats")["total_net_output_bytes"] - before < 2 * len(content)
    assert array.read_bytes() == content
    assert array.parent.stat().st_mode & 0o777 == 0o700
    for copies in guests:
        copies.clear()
    assert list(array.parent.parent.iterdir()) == []
    guest_program.end(pool)
    stored.release((), [file.path])  # The program has removed its own, too.
    assert not [*redis.scan_iter(f"{keys.GUESTS}{pool}*")]
    assert Copies(pool).fetch((file,)) == (file.path,)


def test_a_file_that_calls_write_into_is_never_copied(array, redis):
    file = MappedFile.of(str(array), may_be_copied=False)
    assert Copies("pool").fetch((file,)) == ()
    content = array.read_bytes()
    array.rename(array.with_suffix(".before"))
    array.write_bytes(content)  # Another machine's file of the same name and size.
    with pytest.raises(GuestRefusedError, match=f"{array} as the program has it, and calls write into that; share"):
        Copies("pool").fetch((file,))


def test_copies_of_killed_hosts_go_when_the_next_pool_needs_room_and_those_of_living_pools_stay(array, redis):
    machine, pool = array.parent.parent, secrets.token_hex(8)
    file = MappedFile.of(str(array), may_be_copied=True)
    stored = SharedValues(pool)
    stored.store_file(file.path)
    shutil.rmtree(array.parent)
    guest_program.store("living", {})
    for name in ("living", "ended"):
        (machine / name).mkdir()
        (machine / f"{name}{MARKER}").write_text(name)
    copies = Copies(pool)
    assert copies.fetch((file,)) == ()
    assert {each.name for each in machine.iterdir()} == {"living", f"living{MARKER}", "arrays", f"arrays{MARKER}"}
    copies.clear()
    stored.clear()
    guest_program.end("living")


def test_a_file_above_the_limit_is_an_error_that_names_the_setting(array, monkeypatch, redis):
    with monkeypatch.context() as environ:
        environ.setenv("GRAFT_GUEST_VALUE_LIMIT", str(PIECE))
        current.reread_settings()
        with pytest.raises(PayloadTooLargeError, match=f"takes {PIECE + 1} bytes.*GRAFT_GUEST_VALUE_LIMIT"):
            SharedValues("pool").store_file(str(array))
    current.reread_settings()


def test_a_machine_that_cannot_keep_the_copy_says_so(array, redis):
    file = MappedFile.of(str(array), may_be_copied=True)
    shutil.rmtree(array.parent.parent)
    array.parent.parent.write_text("no folder")
    with pytest.raises(GuestRefusedError, match=r"cannot keep \d+ bytes at .* set JOBLIB_TEMP_FOLDER"):
        Copies("pool").fetch((file,))
