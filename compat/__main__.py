"""``python -m graft.compat program.py`` runs an unchanged program with its old imports redirected to the facades.

The program runs as under Python itself: as the module ``__main__``, with its own ``sys.argv`` and ``sys.path[0]``, its
own tracebacks and exit code. The call report is written after its last thread and ``atexit`` callback.
"""

from __future__ import annotations

import argparse
import atexit
import importlib.util
import os
import random
import signal
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pkgutil import get_importer
from types import CodeType, ModuleType, TracebackType
from typing import Any, Final, NoReturn

from graft.compat import redirect, runner_options, shadow
from graft.compat.call_report import calls
from graft.compat.runner_options import PROGRAM
from graft.compat.shadow import options as shadow_options

HASH_SEED: Final = "GRAFT_HASH_SEED"  # Tells the second start of Python what the first one drew.


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program that *arguments* name. Returns if it ends normally; its exits and errors are raised."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["scan"]:
        from graft.compat.scan import command

        raise SystemExit(command.main(given[1:]))
    options, program = runner_options.parse(given)
    seed = _with_known_hashes(is_own_process=arguments is None) if options.pools else None
    if options.mode:
        from graft.config.deployment import current

        os.environ["GRAFT_MODE"] = options.mode
        current.reread_settings()
    try:
        if (plan := shadow_options.plan_of(options, program)) is not None:
            shadow.start(plan)
    except ValueError as error:
        _refuse(str(error), 2)
    # Registered before anything of the program, so called after all of it.
    ending = _Ending(options)
    atexit.register(ending)
    redirect.install(*options.replace)
    if options.pools:
        from graft.compat.guests import install

        install.install(seed, install.kinds_of(options.pools))
    try:
        code, module = _module(program[1:]) if program[0] == "-m" else _program(program)
        # For good: threads and callbacks that outlive the body look themselves up in __main__.
        sys.modules["__main__"] = module
        if "__mp_main__" in sys.modules:  # multiprocessing has noted the one before.
            sys.modules["__mp_main__"] = module
        exec(code, vars(module))  # noqa: S102 - running the program is what this is for
    except _Refusal:
        atexit.unregister(ending)
        raise
    except SystemExit as error:
        ending.is_well = not _unused(options.replace) and error.code in (None, 0)
        if error.code in (None, 0) and not ending.is_well:
            raise SystemExit(2) from None
        raise
    except BaseException as error:
        ending.is_interrupted = isinstance(error, KeyboardInterrupt)
        _hide_frames()
        _unused(options.replace)
        raise
    if _unused(options.replace):
        raise SystemExit(2)
    ending.is_well = True


def _with_known_hashes(*, is_own_process: bool) -> str | None:
    """The seed of this process's hashes, which guests need as well; starts Python anew where nobody knows it."""
    seed = os.environ.pop(HASH_SEED, None)
    if seed is not None:
        del os.environ["PYTHONHASHSEED"]  # The program's environment is as it was.
    elif is_own_process and os.environ.get("PYTHONHASHSEED", "random") == "random" and sys.flags.hash_randomization:
        drawn = str(random.SystemRandom().randrange(1, 1 << 32))
        environ = {**os.environ, "PYTHONHASHSEED": drawn, HASH_SEED: drawn}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)  # noqa: S606 - this same program
    return seed


class _Refusal(SystemExit):
    """There is no program to run."""


def _refuse(message: str, code: int) -> NoReturn:
    print(f"{PROGRAM}: {message}", file=sys.stderr)
    raise _Refusal(code)


def _unused(replace: list[str]) -> bool:
    """Whether the program never imported a module that --replace names; prints a warning if so."""
    names = [old for old, _ in map(redirect.parse, replace) if old not in redirect.used()]
    if names:
        advice = "the program never imported that; check the name in its import lines"
        print(f"{PROGRAM}: --replace {', '.join(names)}: {advice}", file=sys.stderr)
    return bool(names)


class _Ending:
    """The last act of this process: flush, report, and end by the signal that interrupted the program."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.target = options, options.report
        self.process = os.getpid()
        self.is_interrupted = False
        self.is_well = False  # The program ends with exit code 0.

    def __call__(self) -> None:
        if os.getpid() != self.process:  # A forked child.
            return
        try:
            if sys.stdout is not None and not sys.stdout.closed:
                sys.stdout.flush()  # The program's output comes first, also if both streams go to one file.
            self.report()
            code = shadow_options.conclude(self.options, is_interrupted=self.is_interrupted)
        except (OSError, ValueError) as error:  # ValueError: the program closed the stream.
            print(f"{PROGRAM}: the call report could not be written: {error}", file=sys.__stderr__)
            code = 0
        if code and self.is_well:
            shadow_options.end_with(code)
        if self.is_interrupted:
            # As Python does, unless Python code runs after the interrupt, as here.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(self.process, signal.SIGINT)

    def report(self) -> None:
        if self.options.report_html:
            from graft.compat.call_report_page import page

            with open(self.options.report_html, "w", encoding="utf-8") as file:
                file.write(page(calls(), self.options.named))
        if self.target in ("", "-"):
            stream = sys.__stdout__ if self.target else sys.__stderr__
            if stream is not None:
                calls().render(stream)
                stream.flush()
            return
        with open(self.target, "w", encoding="utf-8") as file:
            if self.target.endswith(".json"):
                file.write(calls().as_json())
            else:
                calls().render(file)


def _program(arguments: list[str]) -> tuple[CodeType, ModuleType]:
    """The code of the script, folder or zip file that *arguments* begin with, and its ``__main__`` module."""
    sys.argv[:] = arguments
    path = os.path.join(os.getcwd(), arguments[0])
    if not os.path.exists(path):
        _refuse(f"can't open file {path!r}: [Errno 2] No such file or directory", 2)
    if importer := get_importer(path):
        _put_first(path)
        spec = importer.find_spec("__main__")
        if spec is None:
            _refuse(f"can't find '__main__' module in {arguments[0]!r}", 1)
        return _from_spec(spec)
    _put_first(os.path.dirname(os.path.realpath(path)))
    loader = SourceFileLoader("__main__", path)
    try:
        source = loader.get_data(path)
    except OSError as error:
        _refuse(f"can't open file {path!r}: {error}", 2)
    module = ModuleType("__main__")
    vars(module).update(__file__=path, __cached__=None, __loader__=loader, __package__=None)
    return loader.source_to_code(source, path), module


def _module(arguments: list[str]) -> tuple[CodeType, ModuleType]:
    """The code of the module that *arguments* begin with, or of its ``__main__`` if it is a package."""
    name = arguments[0]
    sys.argv[:] = ["-m", *arguments[1:]]  # As Python has it while it looks for the module.
    _put_first(os.getcwd())
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except ModuleNotFoundError as error:
        _refuse(f"Error while finding module specification for {name!r} ({type(error).__name__}: {error})", 1)
    if spec is None:
        _refuse(f"No module named {name}, or a package without __main__", 1)
    sys.argv[0] = spec.origin or name
    return _from_spec(spec)


def _from_spec(spec: ModuleSpec) -> tuple[CodeType, ModuleType]:
    loader: Any = spec.loader
    code = loader.get_code(spec.name) if hasattr(loader, "get_code") else None
    if code is None:
        _refuse(f"No code object available for {spec.name}", 1)
    module = ModuleType("__main__")
    module.__spec__ = spec
    vars(module).update(__file__=spec.origin, __cached__=spec.cached, __loader__=spec.loader, __package__=spec.parent)
    return code, module


def _put_first(folder: str) -> None:
    if not sys.flags.safe_path:  # With -P, sys.path[0] is no folder of ours.
        sys.path[0] = folder


def _hide_frames() -> None:
    """Begin tracebacks with the program's own frames, whatever hook prints them."""
    chosen = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        own = trace
        while own is not None and own.tb_frame.f_code.co_filename.startswith((main.__code__.co_filename, "<frozen ")):
            own = own.tb_next
        chosen(kind, error.with_traceback(own), own)

    sys.excepthook = hook


if __name__ == "__main__":
    main()
