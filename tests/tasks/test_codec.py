from __future__ import annotations

import pickle
import threading
import traceback
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.config.deployment import current
from graft.tasks import codec
from graft.tasks.errors import PayloadTooLargeError, RemoteTraceback, SignatureError, UnpicklableError
from tests import samples


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    """Sets the deployment's signing keys for one test."""

    def use(*values: str) -> None:
        monkeypatch.setenv("GRAFT_SIGNING_KEY", ",".join(values))
        current.reread_settings()
        codec._keys.cache_clear()

    use("first-key-first-key")
    yield use
    monkeypatch.undo()
    current.reread_settings()
    codec._keys.cache_clear()


@given(content=st.binary(max_size=5000))
def test_what_was_sealed_comes_back(content):
    assert codec.unseal("envelope", codec.seal("envelope", content)) == content


@given(content=st.binary(min_size=1, max_size=200), at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_one_altered_bit_is_noticed(content, at, bit):
    from base64 import b64decode, b64encode

    sealed = bytearray(b64decode(codec.seal("envelope", content)))
    sealed[at % len(sealed)] ^= 1 << bit
    with pytest.raises(SignatureError):
        codec.unseal("envelope", b64encode(sealed).decode())


def test_an_outcome_is_no_envelope():
    with pytest.raises(SignatureError, match="envelope"):
        codec.unseal("envelope", codec.seal("outcome:1", b"x"))


@pytest.mark.parametrize("text", ["", "no base64!", "AAAA", "é", "A" * 400])
def test_text_that_was_never_sealed_is_refused(text):
    with pytest.raises(SignatureError):
        codec.unseal("envelope", text)


def test_a_pickle_is_not_opened_before_its_signature_is_checked(tmp_path, keys):
    trap = tmp_path / "opened"

    class Trap:
        def __reduce__(self):
            return open, (str(trap), "w")

    keys("another-key-another-key")
    forged = codec.seal("envelope", pickle.dumps(Trap()))
    keys("first-key-first-key")
    from graft.tasks.envelope import Envelope

    with pytest.raises(SignatureError):
        Envelope.open(forged, "id")
    assert not trap.exists()


def test_a_key_can_be_rotated(keys):
    old = codec.seal("envelope", b"x")
    keys("second-key-second-key", "first-key-first-key")
    assert codec.unseal("envelope", old) == b"x"
    new = codec.seal("envelope", b"y")
    keys("second-key-second-key")
    assert codec.unseal("envelope", new) == b"y"
    with pytest.raises(SignatureError):
        codec.unseal("envelope", old)


def test_without_a_key_nothing_is_pickled(keys):
    keys("")
    with pytest.raises(SignatureError, match="GRAFT_SIGNING_KEY"):
        codec.seal("envelope", b"x")


VALUES = [
    (1, "two", [3.0]),
    {1: "integer key", (2, 3): "tuple key"},
    {1, 2},
    frozenset("ab"),
    b"bytes",
    10**400,
    float("inf"),
    Decimal("1.10"),
    Fraction(1, 3),
    datetime(2026, 1, 2, tzinfo=UTC),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_come_back_equal_and_of_the_same_type(value):
    again = pickle.loads(codec.dump_item(value, 1 << 20, "item 0"))
    assert again == value
    assert type(again) is type(value)


def test_a_lock_is_refused_by_name():
    with pytest.raises(UnpicklableError, match=r"item 3 \(lock\) cannot be pickled"):
        codec.dump_item(threading.Lock(), 1 << 20, "item 3")


def test_an_item_over_the_limit_is_refused_with_both_numbers():
    with pytest.raises(PayloadTooLargeError, match=r"item 0 takes \d+ bytes, the limit is 1000"):
        codec.dump_item(b"x" * 2000, 1000, "item 0")


def test_what_refers_to_main_is_refused_and_what_only_says_so_is_not(monkeypatch):
    class Local:
        pass

    import __main__

    Local.__module__, Local.__qualname__ = "__main__", "Local"
    monkeypatch.setattr(__main__, "Local", Local, raising=False)
    with pytest.raises(UnpicklableError, match=r"refers to __main__\.Local"):
        codec.dump_item([1, {"a": Local()}], 1 << 20, "item 0")
    codec.dump_item({"name": "__main__", "Local": ["__main__", "Local"]}, 1 << 20, "item 0")


class Stubborn(Exception):
    """Its ``__init__`` does not take its ``args``, so plain pickle cannot bring it back."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(f"{host}:{port}")
        self.port = port


class WithLock(ValueError):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    "error",
    [ValueError("a", 1), KeyError("k"), FileNotFoundError(2, "No such file", "/x"), StopIteration(3), OSError("plain")],
    ids=lambda error: type(error).__name__,
)
def test_an_error_keeps_its_type_and_args(error):
    again = codec.load_error(codec.dump_error(raised(error)))
    assert type(again) is type(error)
    assert again.args == error.args
    assert getattr(again, "filename", None) == getattr(error, "filename", None)
    assert isinstance(again.__cause__, RemoteTraceback)
    assert "in raised" in str(again.__cause__)


def test_an_error_with_a_constructor_of_its_own_keeps_type_args_and_attributes():
    again = codec.load_error(codec.dump_error(raised(Stubborn("db", 5432))))
    assert type(again) is Stubborn
    assert (again.args, again.port) == (("db:5432",), 5432)


def test_an_error_that_cannot_be_pickled_comes_as_its_nearest_base():
    again = codec.load_error(codec.dump_error(raised(WithLock("text"))))
    assert type(again) is ValueError
    assert str(again) == "text"


def test_an_error_of_a_local_class_comes_as_its_nearest_base():
    class Here(LookupError):
        pass

    again = codec.load_error(codec.dump_error(raised(Here("text"))))
    assert type(again) is LookupError
    assert "Here: text" in str(again.__cause__)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a", 1), KeyError("k"), Stubborn("db", 5432), WithLock("text"), samples.Detailed(3, reason="asked"),
        RuntimeError(), OSError("two\nlines"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_an_error_is_described_without_being_made(error, monkeypatch):
    raised_one, bare = codec.dump_error(raised(error)), codec.dump_error(error.__class__.__new__(type(error), "bare"))
    monkeypatch.setattr(codec.pickle, "loads", None)
    name, text, trace = codec.describe_error(raised_one)
    assert (name, text, "in raised" in trace) == (type(error).__name__, str(error), True)
    # Without a traceback the pickle names it, if only by how it is made or by its nearest base.
    assert codec.describe_error(bare)[0] in (type(error).__name__, "ValueError", "_detailed")


def test_what_an_error_would_do_when_it_is_opened_is_not_done():
    frame = pickle.dumps((pickle.dumps(samples.RaisesWhenOpened(SystemExit)), ValueError, "text", ""))
    assert codec.describe_error(frame) == ("raise_", "text", "")


def test_unicode_errors_survive():
    try:
        b"\xff".decode()
    except UnicodeDecodeError as error:
        again = codec.load_error(codec.dump_error(error))
    assert isinstance(again, UnicodeDecodeError)
    assert again.start == 0


def test_an_endless_traceback_is_cut():
    def deeper(n: int) -> None:
        try:
            raise ValueError("x" * 1000)
        except ValueError:
            if n:
                deeper(n - 1)
            raise

    with pytest.raises(ValueError, match="x") as caught:
        deeper(100)
    assert len("".join(traceback.format_exception(caught.value))) > codec.TRACEBACK_LIMIT
    again = codec.load_error(codec.dump_error(caught.value))
    assert len(str(again.__cause__)) < codec.TRACEBACK_LIMIT + 100


def test_a_list_of_plain_values_travels_as_one_pickle():
    assert codec.plain_size([1, "a", None, 2.5, b"xy", True]) == 3
    assert codec.plain_size([(1, "ab"), ((), (2.5,))]) is not None

    class Number(int):
        pass

    assert codec.plain_size([Number(3)]) is None
    assert codec.plain_size([(1, Number(3))]) is None
    assert codec.plain_size([tuple(range(1000)), 1]) is None  # Better off with a pickle of its own.


def test_lists_and_dicts_travel_as_one_pickle_unless_two_would_become_one():
    first: list[int] = [1]
    assert codec.plain_size([first]) is None
    assert codec.plain_size([first, [1], {"a": [2]}], codec.CONTAINERS) is not None
    assert codec.plain_size([first, first], codec.CONTAINERS) is None
    assert codec.plain_size([(first,), {"a": first}], codec.CONTAINERS) is None
    first.append(first)  # type: ignore[arg-type]
    assert codec.plain_size([first], codec.CONTAINERS) is None
