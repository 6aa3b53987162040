"""What travels by name, what travels as a copy, what stays: copies are opened by a Python process of their own."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import json
import math
import operator
import pickle
import re
import subprocess
import sys
import textwrap
import threading
import types
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.tasks.callables.importable import name_of
from graft.tasks.callables.references import FunctionRef, refer, resolve
from graft.tasks.errors import EnvelopeError, UnreferenceableError
from graft.tasks.policy import RetryPolicy

WORKER = """
import asyncio, inspect, pickle, sys
from graft.tasks.callables.references import FunctionRef, resolve
while True:
    try:
        fields, args = pickle.load(sys.stdin.buffer)
    except EOFError:
        break
    try:
        value = resolve(FunctionRef(*fields))(*args)
        answer = (True, asyncio.run(value) if inspect.isawaitable(value) else value)
    except Exception as error:
        answer = (False, f"{type(error).__name__}: {error}")
    pickle.dump(answer, sys.stdout.buffer)
    sys.stdout.buffer.flush()
"""


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    """``worker(ref, *args)`` calls what *ref* stands for in another process; an error comes back as its text."""
    script = tmp_path_factory.mktemp("worker") / "worker.py"
    script.write_text(WORKER)
    with subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:

        def call(ref, *args):
            pickle.dump((dataclasses.astuple(ref), args), process.stdin)
            process.stdin.flush()
            _, value = pickle.load(process.stdout)
            return value

        yield call
        process.stdin.close()


def program(source, **given_globals):
    """The globals of a ``__main__`` program after it ran."""
    space = {"__name__": "__main__", "__builtins__": __builtins__, **given_globals}
    exec(compile(textwrap.dedent(source), "program.py", "exec"), space)
    return space


def refused(func):
    with pytest.raises(UnreferenceableError) as caught:
        refer(func)
    return str(caught.value)


# What the tests refer to by name.


async def pause(seconds):
    return seconds


class Shape:
    sides = 0

    @classmethod
    def named(cls, name):
        return f"{cls.__name__} {name}"

    @staticmethod
    def double(x):
        return 2 * x

    def area(self):
        return 0


class Square(Shape):
    pass


class Colour(enum.Enum):
    RED = 1


class Point(collections.namedtuple("Point", "x y")):
    pass


def wrapped_twice(x):
    return x


@functools.lru_cache
def remembered(x):
    return x


# By import.


@pytest.mark.parametrize(
    ("func", "name"),
    [
        (json.dumps, "json:dumps"),
        (len, "builtins:len"),
        (int, "builtins:int"),
        (math.sqrt, "math:sqrt"),
        (str.upper, "builtins:str.upper"),
        (int.__add__, "builtins:int.__add__"),
        (operator.add, "_operator:add"),
        (dict.fromkeys, "builtins:dict.fromkeys"),
        (datetime.datetime.fromtimestamp, "datetime:datetime.fromtimestamp"),
        (decimal.Decimal.from_float, "decimal:Decimal.from_float"),
        (fractions.Fraction, "fractions:Fraction"),
        (Shape.named, f"{__name__}:Shape.named"),
        (Square.named, f"{__name__}:Square.named"),
        (Square.double, f"{__name__}:Shape.double"),
        (Shape.area, f"{__name__}:Shape.area"),
        (remembered, f"{__name__}:remembered"),
        (collections.abc.Sized, "collections.abc:Sized"),
    ],
)
def test_what_a_worker_can_import_goes_by_name(func, name):
    ref = refer(func)
    assert ref == FunctionRef("import", name, b"", False)
    assert resolve(ref) == func


def test_an_importable_function_is_the_same_object_on_arrival():
    assert resolve(refer(json.dumps)) is json.dumps


def test_the_worker_calls_it_by_name(worker):
    assert worker(refer(math.sqrt), 9.0) == 3.0
    assert worker(refer(datetime.date.fromisoformat), "2024-02-29") == datetime.date(2024, 2, 29)


def test_a_partial_over_an_importable_function_goes_by_name_with_what_it_binds(worker):
    ref = refer(functools.partial(functools.partial(json.dumps, indent=None), sort_keys=True))
    assert (ref.how, ref.name) == ("import", "json:dumps")
    assert worker(ref, {"b": 1, "a": [2]}) == '{"a": [2], "b": 1}'


def test_a_partial_may_bind_a_list():
    assert resolve(refer(functools.partial(max, [1, 5, 3])))() == 5


@pytest.mark.parametrize("bound", [threading.Lock(), sys.__stderr__, Shape])
def test_a_partial_that_binds_what_cannot_travel_is_refused(bound):
    local = type("Local", (), {"__module__": "__main__"})
    bound = local() if bound is Shape else bound
    message = refused(functools.partial(print, bound))
    assert message.startswith("a worker can import builtins:print, but not what the partial binds (")
    assert f"captures as argument 1 ({type(bound).__name__}), which is the caller's own state" in message


def test_a_partial_that_binds_a_lambda_is_copied(worker):
    ref = refer(functools.partial(functools.reduce, lambda a, b: a * b))
    assert ref.how == "value"
    assert worker(ref, [2, 3, 4]) == 24


def test_a_name_that_has_been_taken_over_is_no_longer_importable(monkeypatch):
    genuine = wrapped_twice
    assert refer(genuine).how == "import"
    monkeypatch.setattr(sys.modules[__name__], "wrapped_twice", lambda x: -x)
    assert refer(genuine).how == "value"


def test_the_function_below_a_decorator_is_not_mistaken_for_the_decorated(worker):
    assert refer(remembered.__wrapped__).how == "value"
    assert worker(refer(remembered.__wrapped__), 3) == 3


@pytest.mark.parametrize("how", ["no spec", "a spec from a file", "a spec of its own"])
def test_a_module_of_this_process_only_is_not_importable(how, monkeypatch, tmp_path, worker):
    source = "import math\nFACTOR = 3\ndef helper(x): return x * FACTOR\ndef work(x): return math.floor(helper(x))\n"
    name = f"only_here_{how.replace(' ', '_')}"
    module = types.ModuleType(name)
    if how == "a spec from a file":
        (tmp_path / "plugin.py").write_text(source)
        spec = importlib_spec_from_file(name, tmp_path / "plugin.py")
        module.__spec__ = spec
    elif how == "a spec of its own":
        module.__spec__ = types.SimpleNamespace(name=name, origin="nowhere")
    exec(source, vars(module))
    monkeypatch.setitem(sys.modules, name, module)
    ref = refer(module.work)
    assert (ref.how, ref.name) == ("value", f"{name}:work")
    assert worker(ref, 2.5) == 7
    assert not cloudpickle_registry()


def importlib_spec_from_file(name, path):
    import importlib.util

    return importlib.util.spec_from_file_location(name, path)


def cloudpickle_registry():
    import cloudpickle

    return cloudpickle.list_registry_pickle_by_value()


def test_a_stand_in_for_an_installed_module_is_not_taken_for_it(monkeypatch):
    stand_in = types.ModuleType("this")
    exec("def work(x): return x", vars(stand_in))
    monkeypatch.setitem(sys.modules, "this", stand_in)
    assert refer(stand_in.work).how == "value"


# By value.


def test_a_function_of_the_program_itself_travels_as_a_copy(worker):
    main = program(
        """
        import math, os.path
        from collections import Counter
        LIMIT = 10
        PATTERN = __import__("re").compile("a+")
        STAGES = (len, math.sqrt, LIMIT)
        def helper(x, *, by=2.0): return x * by
        def even(n): return True if n == 0 else odd(n - 1)
        def odd(n): return False if n == 0 else even(n - 1)
        def work(x):
            class Local:
                twice = property(lambda self: 2 * x)
            total = 0
            def add(n):
                nonlocal total
                total += n
            add(helper(x)); add(math.floor(x))
            return (total, LIMIT, Local().twice, even(x), bool(PATTERN.match("aa")), os.path.basename("a/b"),
                    Counter("aab")["a"], [f(y) for f, y in zip(STAGES, ("xy", 4))], __name__, undefined is None)
        """,
        undefined=None,
    )
    ref = refer(main["work"])
    assert (ref.how, ref.name, ref.is_async) == ("value", "__main__:work", False)
    assert worker(ref, 4) == main["work"](4)


def test_a_real_program_sends_its_own_function(tmp_path, worker):
    script = tmp_path / "old_program.py"
    script.write_text(
        "import dataclasses, pickle, sys\n"
        "from graft.tasks.callables.references import refer\n"
        "BASE = 7\n"
        "async def work(x: int) -> int:\n    return BASE + x\n"
        "if __name__ == '__main__':\n    sys.stdout.buffer.write(pickle.dumps(dataclasses.astuple(refer(work))))\n"
    )
    sent = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, check=True).stdout
    ref = FunctionRef(*pickle.loads(sent))
    assert (ref.how, ref.name, ref.is_async) == ("value", "__main__:work", True)
    assert worker(ref, 5) == 12


def test_a_function_of_a_spawned_child_s_main_module_is_copied(monkeypatch, worker):
    main = types.ModuleType("__mp_main__")
    main.__spec__ = sys.__spec__
    exec("def helper(x): return x + 1\ndef work(x): return helper(x)", vars(main))
    monkeypatch.setitem(sys.modules, "__mp_main__", main)
    ref = refer(main.work)
    assert (ref.how, ref.name) == ("value", "__mp_main__:work")
    assert worker(ref, 1) == 2


def test_a_lambda_a_nested_function_and_a_partial_over_one_are_copied(worker):
    factor = 3

    def nested(x, offset=0):
        return x * factor + offset

    def recursive(n):
        return 1 if n == 0 else n * recursive(n - 1)

    assert worker(refer(lambda x: math.sqrt(x)), 4) == 2
    assert worker(refer(nested), 2) == 6
    assert worker(refer(functools.partial(nested, offset=1)), 2) == 7
    assert worker(refer(recursive), 5) == 120
    assert name_of(functools.partial(nested)).endswith("<locals>.nested")


def test_a_copy_holds_what_is_captured_at_the_time_of_the_call():
    limit = 1

    def work():
        return limit

    first = refer(work)
    limit = 2
    assert (resolve(first)(), resolve(refer(work))()) == (1, 2)
    main = program("LIMIT = 1\ndef work(): return LIMIT")
    first = refer(main["work"])
    main["LIMIT"] = 2
    assert (resolve(first)(), resolve(refer(main["work"]))()) == (1, 2)


def test_the_same_function_makes_the_same_bytes():
    main = program("import math\nLIMIT = 3\ndef helper(x): return math.sqrt(x)\ndef work(x): return helper(x) + LIMIT")
    assert len({refer(main["work"]).payload for _ in range(5)}) == 1


IMMUTABLE = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.complex_numbers(allow_nan=False),
        st.text(),
        st.binary(),
        st.dates(),
        st.times(),
        st.datetimes(timezones=st.none() | st.timezones() | st.just(datetime.UTC)),
        st.timedeltas(),
        st.decimals(allow_nan=False),
        st.fractions(),
        st.uuids(),
        st.builds(range, st.integers(0, 9)),
        st.sampled_from([..., NotImplemented, re.compile("a|b"), Colour.RED, math.pi, Point(1, "y")]),
        st.builds(RetryPolicy, waits=st.lists(st.floats(0, 9), max_size=3).map(tuple)),
    ),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=6,
)


@given(value=IMMUTABLE)
def test_every_immutable_value_may_be_captured(value):
    assert resolve(refer(lambda: value))() == value


def test_a_frozen_value_that_holds_what_can_change_is_no_constant():
    value = RetryPolicy()
    object.__setattr__(value, "waits", [1.0])
    with pytest.raises(UnreferenceableError, match=r"captures 'value' \(RetryPolicy\), which holds one \(list\)"):
        refer(lambda: value)
    value = RetryPolicy()
    object.__setattr__(value, "more", 1)
    with pytest.raises(UnreferenceableError, match=r"captures 'value' \(RetryPolicy\)"):
        refer(lambda: value)


@given(value=IMMUTABLE)
def test_an_immutable_value_is_immutable_wherever_it_is_captured(value):
    space = program(
        "def reads(): return VALUE\ndef defaults(x=VALUE, *, y=VALUE): return x, y\nreads.note = VALUE", VALUE=value
    )
    assert resolve(refer(space["reads"]))() == value
    assert resolve(refer(space["defaults"]))() == (value, value)


@given(value=IMMUTABLE, state=st.sampled_from([[], {}, set(), bytearray(), object(), Shape()]))
def test_state_is_found_however_deep_it_is_captured(value, state):
    space = program("def reads(): return VALUE", VALUE=(value, (state,)))
    assert "captures 'VALUE' (tuple), which holds one (tuple), which holds one (" in refused(space["reads"])


def captures_a_list():
    results = []
    return lambda x: results.append(x)


def captures_it_through_a_helper():
    results = []

    def helper(x):
        results.append(x)

    def work(x):
        helper(x)

    return work


def counts():
    total = 0

    def work(x):
        nonlocal total
        total += x

    return work


def counts_in_a_nested_function():
    total = 0

    def work(x):
        def inner():
            nonlocal total
            total += x

        inner()

    return work


def forgets():
    total = 0

    def work():
        nonlocal total
        del total

    return work


def counts_on_itself():
    def work(x):
        work.calls += 1

    work.calls = 0
    return work


def keeps_a_cache_on_a_helper():
    def helper():
        return 1

    def work(x):
        helper.cache = x

    return work


def remembers_in_a_default():
    return lambda x, seen=[]: seen.append(x)


def remembers_in_a_keyword_default():
    return lambda x, *, seen={}: seen.update(x)


def carries_state():
    def work():
        return 1

    work.log = []
    return work


def captures_a_local_class():
    class Local:
        pass

    return lambda: Local()


def captures_a_local_enum():
    class Local(enum.Enum):
        A = 1

    member = Local.A
    return lambda: member


def captures_a_bound_method():
    method = Shape().area
    return lambda: method()


def captures_a_module_of_its_own():
    module = types.ModuleType("made_up")
    return lambda: module.x


def binds_a_list():
    return functools.partial(lambda seen, x: seen.append(x), [])


def binds_a_list_by_keyword():
    return functools.partial(lambda x, seen: seen.append(x), seen=[])


def captures_a_partial_over_state():
    collect = functools.partial(operator.add, [])
    return lambda x: collect(x)


def calls_globals():
    return lambda: globals()["results"]


def evaluates():
    return lambda text: eval(text)


def imports_the_program():
    def work():
        import __main__

        return __main__.__dict__

    return work


def reads_in_a_class_body():
    space = program("LIMIT = 1\ndef work():\n    class A:\n        limit = LIMIT\n    return A.limit")
    return space["work"]


def assigns_a_global():
    return program("TOTAL = 0\ndef work(x):\n    global TOTAL\n    TOTAL += x")["work"]


def assigns_a_global_for_the_first_time():
    return program("def work(x):\n    global TOTAL\n    TOTAL = x")["work"]


def uses_a_lock():
    lock = threading.Lock()

    def work():
        with lock:
            return 1

    return work


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (captures_a_list, "captures 'results' (list), which is the caller's own state"),
        (captures_it_through_a_helper, "captures 'helper' (function), which captures 'results' (list), which is the"),
        (counts, "assigns to 'total', which is the caller's own state"),
        (counts_in_a_nested_function, "assigns to 'total', which is the caller's own state"),
        (forgets, "assigns to 'total'"),
        (counts_on_itself, "sets attributes of 'work.calls'"),
        (keeps_a_cache_on_a_helper, "sets attributes of 'helper'"),
        (remembers_in_a_default, "captures the default of 'seen' (list)"),
        (remembers_in_a_keyword_default, "captures the default of 'seen' (dict)"),
        (carries_state, "captures its attribute 'log' (list)"),
        (captures_a_local_class, "captures 'Local' (class), which a worker cannot import"),
        (captures_a_local_enum, "captures 'member' (Local)"),
        (captures_a_bound_method, "captures 'method' (method)"),
        (captures_a_module_of_its_own, "captures 'module' (module), which exists in this process only"),
        (binds_a_list, "captures as argument 1 (list)"),
        (binds_a_list_by_keyword, "captures 'seen' (list)"),
        (captures_a_partial_over_state, "captures 'collect' (partial), which captures as argument 1 (list)"),
        (calls_globals, "calls globals()"),
        (evaluates, "calls eval()"),
        (imports_the_program, "imports __main__"),
        (reads_in_a_class_body, "reads 'LIMIT' in a class body"),
        (assigns_a_global, "assigns to 'TOTAL'"),
        (assigns_a_global_for_the_first_time, "assigns to 'TOTAL'"),
        (uses_a_lock, "captures 'lock' (lock)"),
    ],
)
def test_what_captures_the_callers_state_stays_and_the_message_says_why(make, reason):
    message = refused(make())
    assert message.startswith(f"a worker cannot import {name_of(make())}, and it {reason}")
    assert message.endswith("; pass it as an argument, or define it at the top level of an installed module")


class Doubler:
    def __call__(self, x):
        return 2 * x


class LazyProxy:
    """Like the proxies of web frameworks: any question is passed on to an object that may not be there."""

    def __call__(self):
        return 1

    def __getattr__(self, name):
        raise RuntimeError("no object bound")


@pytest.mark.parametrize(
    ("func", "reason"),
    [
        (Shape().area, "is bound to an object (Shape)"),
        ([].append, "is bound to an object (list)"),
        (Doubler(), "is an object (Doubler)"),
        (mock.Mock(), "is an object (Mock)"),
        (mock.MagicMock(), "is an object (MagicMock)"),
        (mock.AsyncMock(), "is an object (AsyncMock)"),
        (operator.itemgetter(1), "is an object (itemgetter)"),
        (type("Local", (), {}), "is a class of this process only"),
    ],
)
def test_objects_with_state_stay(func, reason):
    assert reason in refused(func)


def test_a_function_that_captures_a_lazy_proxy_is_refused_not_broken():
    proxy = LazyProxy()
    assert "captures 'proxy' (LazyProxy)" in refused(lambda: proxy)


def test_builtins_and_unknown_names_are_left_to_the_worker(worker):
    space = program("def work(): return nowhere_at_all\ndef leave(): return exit if False else print")
    assert worker(refer(space["work"])) == "NameError: name 'nowhere_at_all' is not defined"
    assert refer(space["leave"]).how == "value"


def test_a_variable_that_is_not_assigned_yet_is_left_to_the_worker(worker):
    def work():
        return later

    ref = refer(work)
    later = 1
    assert later == 1
    assert worker(ref).startswith("NameError: ")


# Forced.


def test_a_forced_copy_goes_whatever_it_captures(worker):
    results = [1]

    def work(x):
        results.append(x)
        return list(results)

    ref = refer(work, by_value=True)
    assert ref.how == "value"
    assert worker(ref, 2) == [1, 2]
    assert results == [1]


def test_a_forced_copy_of_a_bound_method_takes_its_object_along():
    ref = refer(Square().area, by_value=True)
    assert (ref.how, ref.name, resolve(ref)()) == ("value", f"{__name__}:Shape.area", 0)


def test_a_forced_copy_that_cannot_be_pickled_is_refused():
    lock = threading.Lock()
    with pytest.raises(UnreferenceableError, match=r"cannot be copied to a worker \(TypeError: cannot pickle .*lock"):
        refer(lambda: lock, by_value=True)


# Both.


@pytest.mark.parametrize("what", [None, 3, "json:dumps", [len], object()])
@pytest.mark.parametrize("by_value", [False, True])
def test_what_cannot_be_called_is_a_type_error(what, by_value):
    with pytest.raises(TypeError, match="is not callable") as caught:
        refer(what, by_value=by_value)
    assert not isinstance(caught.value, EnvelopeError)


class AsyncCall:
    async def __call__(self):
        return 1


def test_coroutine_functions_are_known_as_such():
    async def nested():
        return 1

    assert refer(pause).is_async
    assert refer(functools.partial(pause, 1)).is_async
    assert refer(nested).is_async
    assert refer(AsyncCall(), by_value=True).is_async
    assert not refer(json.dumps).is_async
    assert not refer(lambda: pause(1)).is_async


def test_a_worker_without_the_module_says_so():
    with pytest.raises(UnreferenceableError) as caught:
        resolve(FunctionRef("import", "foo_that_is_not:bar", b"", False))
    assert str(caught.value) == (
        "a worker cannot import foo_that_is_not:bar (No module named 'foo_that_is_not'); install it there, or add its "
        "folder to the worker's PYTHONPATH"
    )


def test_a_worker_with_another_version_of_the_module_says_so():
    with pytest.raises(UnreferenceableError, match=r"json:no_such \(module 'json' has no attribute 'no_such'\)"):
        resolve(FunctionRef("import", "json:no_such", b"", False))


@pytest.mark.parametrize("body", ["1 / 0", "raise SystemExit(3)"])
def test_a_module_that_fails_to_import_is_an_error_and_no_exit(body, tmp_path, monkeypatch):
    (tmp_path / "fails_on_import.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnreferenceableError, match=r"fails_on_import:work \((ZeroDivisionError|SystemExit): "):
        resolve(FunctionRef("import", "fails_on_import:work", b"", False))


def test_a_copy_that_needs_a_missing_module_says_so(tmp_path, monkeypatch, worker):
    (tmp_path / "not_on_the_worker.py").write_text("def helper(x): return x")
    monkeypatch.syspath_prepend(tmp_path)
    import not_on_the_worker

    ref = refer(lambda x: not_on_the_worker.helper(x))
    assert "what " in worker(ref, 1)
    assert "(No module named 'not_on_the_worker'); install it there, or add its folder to" in worker(ref, 1)


def test_a_copy_made_by_another_python_is_refused_before_it_is_opened():
    ref = refer(lambda: 1)
    other = dataclasses.replace(ref, payload=b"3.5 " + ref.payload.partition(b" ")[2])
    with pytest.raises(UnreferenceableError, match=r"was made by Python 3\.5 and this worker runs 3\.\d+"):
        resolve(other)


def test_threads_may_refer_at_once():
    main = program("def helper(x): return x\ndef work(x): return helper(x)")
    with ThreadPoolExecutor(8) as pool:
        refs = list(pool.map(refer, [main["work"], json.dumps] * 200))
    assert len(set(refs)) == 2


def test_a_uuid_and_a_path_differ():
    identity, place = uuid.uuid4(), Path()
    assert refer(lambda: identity).how == "value"
    assert "(PosixPath)" in refused(lambda: place)
