"""How values cross the wire: pickled once, signed, and verified before they are unpickled.

Sealed text is base64 over an HMAC-SHA256 and the content. The code is keyed with the deployment's key and the purpose
of the content, so that an outcome cannot be passed off as an envelope.
"""

from __future__ import annotations

import hmac
import io
import pickle
import re
import traceback
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from typing import Any, Final

from graft.config.deployment import settings
from graft.tasks.errors import (
    PayloadTooLargeError,
    RemoteTraceback,
    SignatureError,
    TaskQueueError,
    UnpicklableError,
)
from graft.tasks.worker_runtime import ends_process

PROTOCOL: Final = 5
MAC_BYTES: Final = 32
TRACEBACK_LIMIT: Final = 32 << 10

# Values of exactly these types pickle and unpickle everywhere, so a list of them travels as one pickle. Anything else
# is pickled item by item: one that cannot be opened must not cost its neighbours.
ATOMS: Final = frozenset({int, float, bool, str, bytes, complex, type(None)})
TEXTS: Final = frozenset({str, bytes})
TUPLES: Final = frozenset({tuple})
CONTAINERS: Final = frozenset({tuple, list, dict})
PARTS: Final = 32  # Of one value, on average: beyond, a pickle of its own costs little beside what is in it.
PART_BYTES: Final = 9  # A float.


@lru_cache(maxsize=64)  # Most purposes name one envelope; a few are met again and again.
def _keys(purpose: str) -> tuple[bytes, ...]:
    keys = settings().signing_keys
    if not keys:
        raise SignatureError(
            "no signing key: set GRAFT_SIGNING_KEY to the deployment's key (python -m graft.scripts.dev makes one for "
            "its own stack); without a key nothing is pickled or unpickled"
        )
    return tuple(hmac.digest(key, purpose.encode(), "sha256") for key in keys)


def sealed(purpose: str, content: bytes) -> bytes:
    """*content* signed for *purpose*."""
    return hmac.digest(_keys(purpose)[0], content, "sha256") + content


def as_text(signed: bytes) -> str:
    """Signed bytes, made by :func:`sealed`, as text."""
    return b64encode(signed).decode("ascii")


def seal(purpose: str, content: bytes) -> str:
    """*content* as signed text for *purpose*."""
    return as_text(sealed(purpose, content))


def unseal(purpose: str, given: str | bytes) -> bytes:
    """The content of signed text, or of signed bytes, once the signature for *purpose* has been verified.

    Raises:
        SignatureError: signed with another key, for another purpose, altered, or not sealed text at all.
    """
    return bytes(verified(purpose, given))


def verified(purpose: str, given: str | bytes) -> memoryview:
    """The same in place, for what may be large: to copy a MiB takes as long as to verify it.

    Raises:
        SignatureError: signed with another key, for another purpose, altered, or not sealed text at all.
    """
    try:
        signed = given if isinstance(given, bytes) else b64decode(given, validate=True)
    except (Base64Error, ValueError, TypeError) as error:
        raise SignatureError(f"this is not sealed text: {error}") from None
    mac, content = signed[:MAC_BYTES], memoryview(signed)[MAC_BYTES:]
    for key in _keys(purpose):
        if hmac.compare_digest(mac, hmac.digest(key, content, "sha256")):
            return content
    raise SignatureError(
        f"the signature of this {purpose.partition(':')[0]} does not verify; caller and workers must share "
        "GRAFT_SIGNING_KEY"
    )


def dump_item(value: Any, limit: int, what: str, position: int | None = None) -> bytes:
    """One value as a pickle that any process of the deployment can open; *what* (and *position*) name it in errors.

    Raises:
        UnpicklableError: it holds a lock, a socket, a local class, an instance of a class of ``__main__`` …
        PayloadTooLargeError: it takes more than *limit* bytes.
    """
    try:
        frame = pickle.dumps(value, PROTOCOL)
    except BaseException as error:
        if ends_process(error):
            raise
        name, shown = _named(what, position), error if isinstance(error, Exception) else repr(error)
        raise UnpicklableError(f"{name} ({type(value).__name__}) cannot be pickled: {shown}") from None
    if len(frame) > limit:
        raise PayloadTooLargeError(
            f"{_named(what, position)} takes {len(frame)} bytes, the limit is {limit}; pass a reference to it (a path, "
            "a key), or raise GRAFT_ITEM_LIMIT"
        )
    if b"__main__" in frame and (found := _main_reference(frame)):
        raise UnpicklableError(
            f"{_named(what, position)} refers to __main__.{found}, which a worker cannot import; define it in a module "
            "of its own"
        )
    return frame


def _named(what: str, position: int | None) -> str:
    return what if position is None else f"{what} {position}"


def _main_reference(frame: bytes) -> str | None:
    """The first name that *frame* would look up in ``__main__``, where every process has a different module."""
    import pickletools  # Few frames name __main__.

    memo: list[object] = []
    strings: list[object] = []
    for opcode, argument, _ in pickletools.genops(frame):
        if opcode.name == "MEMOIZE":
            memo.append(strings[-1] if strings else None)
        elif opcode.name in ("BINGET", "LONG_BINGET") and isinstance(argument, int):
            strings.append(memo[argument])
        elif opcode.name == "STACK_GLOBAL":
            if strings[-2:-1] == ["__main__"]:
                return str(strings[-1])
            strings.append(None)
        elif opcode.name != "FRAME":
            strings.append(argument if opcode.name.endswith("UNICODE") else None)
    return None


def dump_error(error: BaseException, *, skip_frames: int = 0) -> bytes:
    """An exception with its traceback as text, in a form that always pickles.

    The exception itself goes along when its class can be imported and it survives the round trip; otherwise its
    nearest base class that can, with the original text.
    """
    trace = error.__traceback__
    for _ in range(skip_frames):
        trace = trace and trace.tb_next
    if isinstance(error.__cause__, RemoteTraceback):
        text = error.__cause__.text  # It came from a worker already.
    elif trace is None and error.__cause__ is None:
        text = ""
    else:
        text = "".join(traceback.format_exception(type(error), error, trace))
    if len(text) > TRACEBACK_LIMIT:
        text = f"{text[: TRACEBACK_LIMIT // 2]}\n[…]\n{text[-TRACEBACK_LIMIT // 2 :]}"
    return pickle.dumps((_portable(error), _nearest_builtin(error), _text(error), text), PROTOCOL)


def load_error(blob: bytes) -> BaseException:
    """The exception in *blob*, its remote traceback as the cause."""
    portable, base, message, text = pickle.loads(blob)
    error: BaseException
    try:
        error = pickle.loads(portable)
    except BaseException as refusal:
        if ends_process(refusal):
            raise
        error = base(message)  # This process cannot import the class; the worker could.
    if text:
        error.__cause__ = RemoteTraceback(text)
    return error


def describe_error(blob: bytes) -> tuple[str, str, str]:
    """Type, text and traceback of the exception in *blob*, of which nothing is imported and nothing runs."""
    portable, base, message, text = _Nameless(io.BytesIO(blob)).load()
    line = re.escape(message.partition("\n")[0])
    if traced := re.findall(rf"^([\w.<>]+){f': {line}' if line else ''}$", text, re.MULTILINE):
        return traced[-1].rpartition(".")[2], message, text
    names = _Nameless(io.BytesIO(portable))
    with suppress(Exception):  # Whatever a stand-in for the exception cannot do, its class was named before.
        names.load()
    named = [name for name in names.named if name != _rebuild.__name__] or [base.name]
    return named[0], message, text


class _Nameless(pickle.Unpickler):
    """Reads a pickle with stand-ins for all that it names."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.named: list[str] = []

    def find_class(self, module: str, name: str) -> Any:
        self.named.append(name)
        return type("StandIn", (_StandIn,), {"name": name})


class _StandIn:
    name = ""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Whatever the exception was made of."""


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as refusal:
        if ends_process(refusal):
            raise
        return f"<{type(error).__name__} without text>"


def _portable(error: BaseException) -> bytes:
    for candidate in (lambda: error, lambda: _Rebuilt(error)):
        try:
            blob = pickle.dumps(candidate(), PROTOCOL)
            if b"__main__" in blob and _main_reference(blob):
                continue
            if type(pickle.loads(blob)) is type(error):
                return blob
        except BaseException as refusal:  # Whatever pickling an exception raises, the next form is tried.
            if ends_process(refusal):
                raise
    for base in type(error).__mro__[1:-1]:
        try:
            stand_in = base(_text(error))
            blob = pickle.dumps(stand_in, PROTOCOL)
            if not (b"__main__" in blob and _main_reference(blob)) and type(pickle.loads(blob)) is base:
                return blob
        except BaseException as refusal:
            if ends_process(refusal):
                raise
    return pickle.dumps(TaskQueueError(_text(error)), PROTOCOL)


def _nearest_builtin(error: BaseException) -> type[BaseException]:
    """A base class that every process has and that takes one text."""
    for base in type(error).__mro__:
        if base.__module__ == "builtins" and issubclass(base, Exception) and not issubclass(base, UnicodeError):
            return base
    return TaskQueueError


class _Rebuilt:
    """Pickles an exception whose ``__init__`` does not take its ``args``: type, args and attributes are kept."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self.error), self.error.args, vars(self.error))


def _rebuild(cls: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]) -> BaseException:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


def plain_size(values: Sequence[Any], containers: frozenset[type] = TUPLES) -> int | None:
    """About how many bytes *values* take, if they may travel as one pickle: atoms, and *containers* of such.

    None for all others; also where one list or dict occurs twice, which would be one and the same for the reader too.
    """
    size, room, layer = 0, PARTS * len(values), values
    changeable: list[int] = []
    while True:
        kinds = set(map(type, layer))
        texts, boxed = kinds & TEXTS, kinds - ATOMS
        if texts:
            size += sum(len(value) for value in layer if type(value) in texts)
        if not boxed:
            return size
        if not boxed <= containers:
            return None
        boxes = [value for value in layer if type(value) in boxed]
        changeable += (id(box) for box in boxes if type(box) is not tuple)
        parts = sum(map(len, boxes))
        room -= parts
        if room < 0 or len(set(changeable)) < len(changeable):
            return None
        size += PART_BYTES * parts
        layer = [*chain.from_iterable(boxes), *chain.from_iterable(box.values() for box in boxes if type(box) is dict)]
