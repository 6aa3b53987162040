"""Large values of calls, kept in Redis in pieces beside the pool's key; what calls have in common is sent once.

    a call ──► parts: what is around its large objects, and those ──► the host puts them together again
                          an array that many calls take is one part, named by what it holds

A result is one value, and goes as soon as it has been read. A file that calls map is a part, stored when a machine
lacks it (mapped_files.py). None exceeds ``GRAFT_GUEST_VALUE_LIMIT``.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import pickletools
import secrets
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from graft.config import keys
from graft.config.deployment import settings
from graft.config.redis_client import shared
from graft.tasks import codec
from graft.tasks.errors import EnvelopeError, PayloadTooLargeError

INLINE: Final = 512 << 10  # Bytes of a value that travels in its message.
PIECE: Final = 8 << 20
OPCODES: Final = 20_000  # Of a pickle, looked at for large objects; programs put them into short ones.
BYTES: Final = {"BINBYTES": 5, "BINBYTES8": 9, "BYTEARRAY8": 9}  # And the length of what comes before the value.

Value = bytes | tuple[str, int]  # Itself, or its key and the number of its pieces.
Call = bytes | tuple[Value, ...]


class NotInRedisError(EnvelopeError):
    """A large value is not in Redis, or no longer."""


def store(pool: str, data: bytes) -> Value:
    """*data* as it travels, of *pool*.

    Raises:
        PayloadTooLargeError: larger than ``GRAFT_GUEST_VALUE_LIMIT``.
    """
    _check(len(data))
    return data if len(data) <= INLINE else _write(f"{keys.GUESTS}{pool}:value:{secrets.token_hex(8)}", data)


def take(value: Value) -> bytes:
    """What was stored as *value*, which is then gone."""
    data = _read(value)
    _delete([value])
    return data


class SharedValues:
    """The large parts of a pool's calls that are in Redis: of the calls under way, and those that calls share."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._parts: dict[str, _Part] = {}
        self._seen: deque[str] = deque(maxlen=1000)
        self._lock = threading.Lock()

    def store(self, frame: bytes) -> Call:
        """*frame* as it travels.

        Raises:
            PayloadTooLargeError: larger than ``GRAFT_GUEST_VALUE_LIMIT``.
        """
        _check(len(frame))
        if len(frame) <= INLINE:
            return frame
        return tuple(self._stored(part) for part in _parts(frame))

    def store_file(self, path: str) -> None:
        """Keep the file at *path*, which a call maps, until :meth:`release` is told of it.

        Raises:
            PayloadTooLargeError: larger than ``GRAFT_GUEST_VALUE_LIMIT``.
        """
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            _check(size)
            with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as content:
                self._keep(_key_of_file(self._pool, path), content, size, path)

    def release(self, call: Call, files: Iterable[str] = ()) -> None:
        """The call has ended: its parts go. The latest that others had too stay, up to the limit of one value."""
        with self._lock:
            for key in [*(key for key, _ in _large(call)), *(_key_of_file(self._pool, path) for path in files)]:
                if key in self._parts:
                    self._parts[key].users -= 1
            room = settings().guest_value_limit
            for key, part in reversed(list(self._parts.items())):  # The latest first.
                if part.users:
                    continue
                if part.is_shared and part.size <= room and (not part.path or os.path.exists(part.path)):
                    room -= part.size
                else:
                    del self._parts[key]
                    _delete([part.value])

    def clear(self) -> None:
        """The pool has ended."""
        with self._lock:
            _delete([part.value for part in self._parts.values()])
            self._parts.clear()

    def _stored(self, data: bytes) -> Value:
        if len(data) <= INLINE:
            return data
        return self._keep(_key_of_part(self._pool, data), data, len(data))

    def _keep(self, key: str, data: bytes | mmap.mmap, size: int, path: str = "") -> tuple[str, int]:
        with self._lock:
            part = self._parts.pop(key, None)
            if part is None or not _renew(part.value):
                part = _Part(_write(key, data), size, path, part.users if part else 0)
            part.users += 1
            part.is_shared = bool(path) or key in self._seen
            self._parts[key] = part  # The latest is the last.
            self._seen.append(key)
            return part.value


@dataclass
class _Part:
    value: tuple[str, int]
    size: int
    path: str  # Of a file.
    users: int
    is_shared: bool = False


class Received:
    """The large parts of the last call of a guest, should the next one have them too."""

    def __init__(self) -> None:
        self._parts: dict[tuple[str, int], bytes] = {}

    def read(self, call: Call) -> bytes:
        """The call that travelled as *call*, which stays: it may have to run again."""
        if isinstance(call, bytes):
            return call
        known = self._parts
        self._parts = {value: known.get(value) or _read(value) for value in _large(call)}
        return b"".join(value if isinstance(value, bytes) else self._parts[value] for value in call)

    def clear(self) -> None:
        """The pool has ended, and its program may not have been able to remove them: it was killed."""
        _delete(self._parts)
        self._parts = {}


def pieces_of_file(pool: str, path: str, size: int) -> Iterator[bytes]:
    """What :meth:`SharedValues.store_file` has kept of the file of *size* bytes at *path*.

    Raises:
        NotInRedisError: nothing, or no longer.
    """
    return _pieces((_key_of_file(pool, path), -(-size // PIECE)))


def _key_of_part(pool: str, data: bytes) -> str:
    return f"{keys.GUESTS}{pool}:part:{hashlib.blake2b(data, digest_size=16).hexdigest()}"


def _key_of_file(pool: str, path: str) -> str:
    return _key_of_part(pool, b"file " + os.fsencode(path))


def _large(call: Call) -> list[tuple[str, int]]:
    return [] if isinstance(call, bytes) else [value for value in call if not isinstance(value, bytes)]


def _check(size: int) -> None:
    limit = settings().guest_value_limit
    if size > limit:
        raise PayloadTooLargeError(
            f"an argument or result of a pool takes {size} bytes, the limit is {limit}; pass a reference to it "
            "(a path, a key), or raise GRAFT_GUEST_VALUE_LIMIT"
        )


def _parts(frame: bytes) -> Iterator[bytes]:
    """*frame*, cut around the large objects in it."""
    view, done = memoryview(frame), 0
    for begin, end in _objects(frame, 0):
        yield bytes(view[done:begin])
        yield bytes(view[begin:end])
        done = end
    yield bytes(view[done:])


def _objects(pickled: bytes, offset: int) -> Iterator[tuple[int, int]]:
    """Where the large bytes objects are in *pickled*; where one is a pickle itself, those in it."""
    try:
        for number, (opcode, value, position) in enumerate(pickletools.genops(pickled)):
            if number > OPCODES:
                return
            if opcode.name in BYTES and isinstance(value, bytes | bytearray) and len(value) > INLINE:
                begin = offset + (position or 0) + BYTES[opcode.name]
                inner = list(_objects(bytes(value), begin)) if value[:1] == b"\x80" else []
                yield from inner or [(begin, begin + len(value))]
    except ValueError:  # No pickle after all.
        return


def _write(key: str, data: bytes | mmap.mmap) -> tuple[str, int]:
    client, expires = shared(), int(settings().result_ttl * 1000)
    pieces = range(0, len(data), PIECE)
    for number, start in enumerate(pieces):
        client.set(f"{key}:{number}", codec.sealed(f"{key}:{number}", data[start : start + PIECE]), px=expires)
    return key, len(pieces)


def _read(value: Value) -> bytes:
    return value if isinstance(value, bytes) else b"".join(_pieces(value))


def _pieces(value: tuple[str, int]) -> Iterator[bytes]:
    client = shared()
    for name in _names([value]):
        piece = client.get(name)
        if piece is None:
            raise NotInRedisError("a large argument or result of a pool is no longer in Redis")
        yield codec.unseal(name, piece)


def _renew(value: tuple[str, int]) -> bool:
    expires = int(settings().result_ttl * 1000)
    with shared().pipeline(transaction=False) as pipe:
        for name in _names([value]):
            pipe.pexpire(name, expires)
        return all(pipe.execute())


def _delete(values: Iterable[Value]) -> None:
    if names := _names(values):
        shared().delete(*names)


def _names(values: Iterable[Value]) -> list[str]:
    return [
        f"{value[0]}:{number}" for value in values if not isinstance(value, bytes) for number in range(value[1])
    ]  # fmt: skip
