"""The program of a guest process: a fresh interpreter that becomes what a process of a program's own pool would be.

    python guest_process.py FD        FD: a connection to the host (host.py)

    host ─► what it is made of, then calls        guest ─► prepared, log records, results

The pool's own code runs here, ``_process_worker`` or ``pool.worker`` of the standard library; only its queues lead to
the host. Imports the standard library alone, and leaves nothing of ours in ``sys.modules``.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Collection, Iterator
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))


def main(descriptor: int) -> int:
    _end_with_parent()
    from multiprocessing.connection import Connection

    host: Any = Connection(descriptor)
    try:
        import pickle

        spec = pickle.loads(host.recv_bytes())
        _become(spec)
        host.send_bytes(b"P" + pickle.dumps(_prepare(spec)))
        gift = host.recv_bytes()
        if gift[:1] == b"Q":
            return 0
        try:
            with _Silence(spec["method"] == "fork"):
                _take(spec, gift[1:])
            process = _process(spec, host)
        except BaseException as error:
            host.send_bytes(b"T" + f"{type(error).__name__}: {error}".encode("utf-8", "replace"))
            return 1
        host.send_bytes(b"T")
        code: int = process._bootstrap(host.fileno())
        return code
    except EOFError:
        return 0
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()


def _end_with_parent() -> None:
    """Have the kernel end this process when the one that made it ends (Linux)."""
    parent = int(sys.argv[2])
    try:
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    except (OSError, AttributeError, ImportError):
        return
    if os.getppid() != parent:
        os._exit(1)


def _become(spec: dict[str, Any]) -> None:
    """Have the folder, the environment, the path and the limits of the program."""
    os.environ.clear()
    os.environ.update(spec["env"])
    sys.path[:] = spec["sys_path"]
    sys.argv[:] = spec["sys_argv"]
    if spec["recursion"] != sys.getrecursionlimit():
        sys.setrecursionlimit(spec["recursion"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import importlib

    package: Any = importlib.import_module(spec["package"])
    process: Any = importlib.import_module(f"{spec['package']}.process")
    process.ORIGINAL_DIR = spec["orig_dir"]
    package.set_start_method(spec["default_method"], force=True)
    package.current_process().authkey = spec["authkey"]


class _Silence:
    """Drops what is written meanwhile: a fork would not have run it again."""

    def __init__(self, is_needed: bool) -> None:
        self.is_needed = is_needed
        self.saved: list[int] = []

    def __enter__(self) -> None:
        if self.is_needed:
            self.saved = [os.dup(1), os.dup(2)]
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            os.close(null)

    def __exit__(self, *_: object) -> None:
        if self.is_needed:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, saved in enumerate(self.saved, 1):
                os.dup2(saved, number)
                os.close(saved)


def _prepare(spec: dict[str, Any]) -> dict[str, Any]:
    """Import what the program has imported; what is missing here, and what differs from the program's."""
    import importlib

    report: dict[str, Any] = {"missing": {}, "differs": {}, "refused": "", "host": os.uname().nodename}
    with _Silence(spec["method"] == "fork"):
        try:
            _run_main(spec)
        except BaseException as error:
            report["refused"] = f"its main module cannot be run here: {type(error).__name__}: {error}"
            return report
        for name in spec["modules"]:
            try:
                importlib.import_module(name)
            except BaseException as error:
                report["missing"][name] = f"{type(error).__name__}: {error}"
    if spec["marks"]:
        state_marks = _state_marks()
        here = state_marks.marks(spec["marks"])
        for module, marks in spec["marks"].items():
            if module not in report["missing"]:
                own = here.get(module, {})
                differing = [name for name, mark in marks.items() if own.get(name) != mark]
                if differing:
                    report["differs"][module] = differing
    return report


def _state_marks() -> Any:
    from importlib.machinery import SourceFileLoader
    from types import ModuleType

    path = os.path.join(HERE, "state_marks.py")
    module = ModuleType("state_marks")
    code: Any = SourceFileLoader("state_marks", path).get_code("state_marks")
    exec(code, vars(module))  # noqa: S102 - ours, without a name in sys.modules
    return module


def _run_main(spec: dict[str, Any]) -> None:
    """Have the program's main module: run again as the start method *spawn* does, or its definitions alone."""
    import importlib

    process: Any = importlib.import_module(f"{spec['package']}.process")
    spawn: Any = importlib.import_module(f"{spec['package']}.spawn")
    if spec["main_kept"] is not None:
        _define_main(spec)
    elif spec["main_name"]:
        spawn._fixup_main_from_name(spec["main_name"])
    elif spec["main_path"]:
        process.current_process()._inheriting = True  # A pool made there is refused, as ever.
        try:
            spawn._fixup_main_from_path(spec["main_path"])
        finally:
            del process.current_process()._inheriting
    else:
        sys.modules["__main__"].__file__ = spec["main_file"]


def _define_main(spec: dict[str, Any]) -> None:
    import ast
    from types import ModuleType

    with open(spec["main_path"], "rb") as source:
        tree = ast.parse(source.read())
    kept = set(spec["main_kept"])
    tree.body = list(_chosen(tree.body, kept))
    module = ModuleType("__main__")
    module.__file__, module.__package__ = spec["main_file"], spec["main_package"]
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    exec(compile(tree, spec["main_path"], "exec"), vars(module))  # noqa: S102 - the program that this guest is for


def _chosen(body: Any, kept: Collection[tuple[int, int]]) -> Iterator[Any]:
    """The statements of *body* at the positions *kept*, and such inside the others."""
    for node in body:
        if (node.lineno, node.col_offset) in kept:
            yield node
            continue
        for inner in (node, *getattr(node, "handlers", ())):
            for name in ("body", "orelse", "finalbody"):
                yield from _chosen(getattr(inner, name, ()), kept)


def _take(spec: dict[str, Any], gift: bytes) -> None:
    """Take over what the program has set, and the state of the standard library that a fork would have had."""
    import pickle

    if gift:
        state_marks = _state_marks()
        for (module, name), value in pickle.loads(gift).items():
            state_marks.put(sys.modules[module], name, value)
    if spec["method"] != "fork":
        return
    state = pickle.loads(spec["state"])
    if "numpy" in state:
        import importlib

        numpy: Any = importlib.import_module("numpy")
        numpy.random.set_state(state["numpy"])
    if "warnings" in state:
        import importlib

        warnings: Any = importlib.import_module("warnings")
        warnings.filters[:] = state["warnings"]
        warnings._filters_mutated()
    if "locale" in state:
        import locale

        try:
            locale.setlocale(locale.LC_ALL, state["locale"])
        except locale.Error:
            pass


def _process(spec: dict[str, Any], host: Any) -> Any:
    """The process object that the program would have started, with queues that lead to the host."""
    import importlib
    import pickle

    package = spec["package"]
    context = importlib.import_module(f"{package}.context")
    pickler = importlib.import_module(f"{package}.reduction").ForkingPickler
    if spec["logging"] is not None:
        _forward_logging(host, spec["logging"])
    initializer, initargs, own = pickle.loads(spec["init"])
    calls, results = _Calls(host, pickler), _Results(host, pickler)
    if spec["kind"] == "executor":
        worker = importlib.import_module("concurrent.futures.process")._process_worker
        arguments: tuple[Any, ...] = (calls, results, initializer, initargs)
    else:
        worker = importlib.import_module(f"{package}.pool").worker
        arguments = (calls, results, initializer, initargs, None, spec["wrap"])
    process = (own or context._default_context.get_context(spec["method"]).Process)(target=worker, args=arguments)
    process.name = spec["name"]
    if spec["daemon"]:
        process.daemon = True
    process._parent_pid, process._parent_name = spec["parent_pid"], spec["parent_name"]
    return process


class _Calls:
    """The queue that the calls come from."""

    def __init__(self, host: Any, pickler: Any) -> None:
        self._host, self._pickler = host, pickler
        self._is_first = True

    def get(self, block: bool = True) -> Any:
        if self._is_first:  # The initializer has ended.
            self._is_first = False
            _flush()
            self._host.send_bytes(b"I")
        message = self._host.recv_bytes()
        if message[:1] == b"Q":
            return None
        return self._pickler.loads(message[1:])


class _Results:
    """The queue that the results go to."""

    def __init__(self, host: Any, pickler: Any) -> None:
        self._host, self._pickler = host, pickler

    def put(self, result: Any) -> None:
        frame = bytes(self._pickler.dumps(result))
        _flush()
        if not isinstance(result, int):  # The executor's way to say that it ends.
            self._host.send_bytes(b"R" + frame)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # The call has closed it.
            pass


def _forward_logging(host: Any, config: tuple[dict[str, tuple[int, bool]], int, bool]) -> None:
    """Have log records handled by the program, whose handlers and filters know what to do with them."""
    import logging
    import pickle
    import threading

    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            try:
                fields = dict(vars(record), msg=record.getMessage(), args=None)
                if record.exc_info:
                    fields["exc_text"] = record.exc_text or logging.Formatter().formatException(record.exc_info)
                    fields["exc_info"] = None
                try:
                    frame = pickle.dumps(fields)
                except Exception:
                    known = vars(logging.makeLogRecord({}))
                    frame = pickle.dumps({name: value for name, value in fields.items() if name in known})
                _flush()
                # What the call writes next comes after it: the host says when it has read so far.
                is_calling = threading.current_thread() is threading.main_thread()
                host.send_bytes((b"W" if is_calling else b"L") + frame)
                if is_calling:
                    host.recv_bytes()
            except Exception:
                self.handleError(record)

    levels, disabled_below, captures = config
    for name in tuple(logging.root.manager.loggerDict):
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.propagate = True
    for name, (level, disabled) in levels.items():
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.disabled = disabled
    logging.root.handlers[:] = [Forward()]
    logging.disable(disabled_below)
    logging.captureWarnings(captures)


if __name__ == "__main__":
    descriptor = int(sys.argv[1])
    code = main(descriptor)
    os._exit(code or 0)
