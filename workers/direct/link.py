"""How the main process and a pool process of ``direct`` talk: pickled messages over a socket of the machine.

pool process ─► up · deliver · ended · back · events · counts · done · job ─► main process
pool process ◄── a job, or None, where it asked for one ◄────────── main process
pool process ◄── nothing: look at your orders ◄──────────────────── main process
"""

from __future__ import annotations

import pickle
import select
import socket
import struct
from typing import Any, Final

from billiard.einfo import ExceptionInfo
from billiard.pool import MaybeEncodingError

LENGTH: Final = struct.Struct("<I")
READ: Final = 1 << 18
SEND_SECONDS: Final = 5.0


class ProcessEnd:
    """The end of the pool process, which waits for what it asks for."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link

    def tell(self, *what: Any) -> None:
        """Send a message: its kind, and what belongs to it.

        Raises:
            SystemExit: the main process is gone.
        """
        text = _pickled(what)
        try:
            self._link.sendall(LENGTH.pack(len(text)) + text)
        except OSError as error:
            raise SystemExit(1) from error

    def receive(self) -> Any:
        """The answer to a question; what wakes a process that sleeps is no answer."""
        while True:
            (length,) = LENGTH.unpack(self._read(LENGTH.size))
            if length:
                return pickle.loads(self._read(length))  # From the process that this one was forked by.

    def sleep(self, seconds: float) -> None:
        """Wait until the main process has something to say, or *seconds* are over."""
        if select.select([self._link], [], [], seconds)[0] and not self._link.recv(64):
            raise SystemExit(0)

    def _read(self, count: int) -> bytes:
        parts = []
        while count:
            part = self._link.recv(min(count, READ))
            if not part:
                raise SystemExit(0)
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


class MainEnd:
    """The end of the main process, which waits for nobody."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._received = bytearray()
        link.setblocking(False)

    def fileno(self) -> int:
        return self._link.fileno()

    def close(self) -> None:
        self._link.close()

    def read(self) -> tuple[list[tuple[Any, ...]], bool]:
        """What the process has said, and whether it is gone."""
        is_gone = False
        while True:
            try:
                part = self._link.recv(READ)
            except BlockingIOError:
                break
            except OSError:
                part = b""
            self._received += part
            if len(part) < READ:
                is_gone = not part
                break
        return self._whole_messages(), is_gone

    def _whole_messages(self) -> list[tuple[Any, ...]]:
        found = []
        while len(self._received) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack_from(self._received)[0]
            if len(self._received) < end:
                break
            found.append(pickle.loads(bytes(self._received[LENGTH.size : end])))  # From a process of our own.
            del self._received[:end]
        return found

    def answer(self, text: bytes) -> None:
        """Send the answer to a question, for which the process waits.

        Raises:
            OSError: it ends, or was stopped.
        """
        self._link.settimeout(SEND_SECONDS)
        try:
            self._link.sendall(LENGTH.pack(len(text)) + text)
        finally:
            self._link.setblocking(False)

    def wake(self) -> None:
        """Have the process look at its orders, should it sleep."""
        try:
            self._link.send(LENGTH.pack(0))
        except OSError:  # It has been woken so often that the pipe is full, or it is gone.
            pass


def _pickled(what: tuple[Any, ...]) -> bytes:
    """*what*; the result of a run that cannot be pickled is an error of that run, as billiard has it."""
    try:
        return pickle.dumps(what)
    except Exception as error:
        if what[0] not in ("ended", "done"):
            raise
        try:
            raise MaybeEncodingError(error, what[2][1])
        except MaybeEncodingError:
            return pickle.dumps((*what[:2], (False, ExceptionInfo()), *what[3:]))
