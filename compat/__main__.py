"""``python -m graft.compat program.py``: runs an unchanged program with its old imports redirected to the facades.

The program runs as Python itself would run it: as the module ``__main__``, with its own ``sys.argv`` and
``sys.path[0]``, its own tracebacks and exit code. What it leaves running (threads, ``atexit`` callbacks) still belongs
to it, so the call report is written last of all.
"""

from __future__ import annotations

import argparse
import atexit
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pkgutil import get_importer
from types import CodeType, ModuleType, TracebackType
from typing import Any, Final, NoReturn

from graft.compat import redirect
from graft.compat.call_report import calls

PROGRAM: Final = "python -m graft.compat"
EXAMPLES: Final = """\
examples:
  python -m graft.compat program.py --its-own-option
      on the workers that CELERY_BROKER_URL leads to
  python -m graft.scripts.dev run -- python -m graft.compat program.py
      on workers of its own that end with it
  python -m graft.compat --mode local program.py
      in this process alone, without a broker: the results have to be the same
  python -m graft.compat --replace acme.pools.async_worker_optimization program.py
      the old module lies in another package
  python -m graft.compat --replace acme.pools=async_worker_optimization --report calls.json -m acme.nightly
      the old module has another name; the report becomes JSON

The exit code is the program's own, or 2 if a --replace named a module that it never imported.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program that *arguments* name. Returns when it ended normally; its exits and errors rise."""
    options, program = _parse(list(sys.argv[1:] if arguments is None else arguments))
    if options.mode:
        from graft.config.deployment import current

        os.environ["GRAFT_MODE"] = options.mode
        current.reread_settings()
    # Registered before the program can register anything, so called after all that it left to be done.
    ending = _Ending(options.report)
    atexit.register(ending)
    redirect.install(*options.replace)
    try:
        code, module = _module(program[1:]) if program[0] == "-m" else _program(program)
        # For good, not only while the body runs: what it leaves behind looks itself up in __main__ later on.
        sys.modules["__main__"] = module
        exec(code, vars(module))  # noqa: S102 - running the program is what this is for
    except _Refusal:
        atexit.unregister(ending)
        raise
    except SystemExit as error:
        if _unused(options.replace) and error.code in (None, 0):
            raise SystemExit(2) from None
        raise
    except BaseException as error:
        ending.is_interrupted = isinstance(error, KeyboardInterrupt)
        _hide_frames()
        _unused(options.replace)
        raise
    if _unused(options.replace):
        raise SystemExit(2)


class _Refusal(SystemExit):
    """There is no program to run."""


def _refuse(message: str, code: int) -> NoReturn:
    print(f"{PROGRAM}: {message}", file=sys.stderr)
    raise _Refusal(code)


def _unused(replace: list[str]) -> bool:
    """Whether the program never imported one of the modules that it was said to import; says so, too."""
    names = [old for old, _ in map(redirect.parse, replace) if old not in redirect.used()]
    if names:
        advice = "the program never imported that; check the name in its import lines"
        print(f"{PROGRAM}: --replace {', '.join(names)}: {advice}", file=sys.stderr)
    return bool(names)


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our options, and the rest of the line: a program, or -m and a module, with arguments that are left alone."""
    place = 0
    while place < len(arguments) and arguments[place].startswith("-") and not arguments[place].startswith("-m"):
        place += 2 if arguments[place] in ("--replace", "--mode", "--report") else 1
    ours, program = arguments[:place], arguments[place:]
    if program and program[0].startswith("-m") and program[0] != "-m":
        program[:1] = ["-m", program[0][2:]]
    parser = _parser()
    options = parser.parse_args(ours)
    if not program:
        parser.error("name a program to run, or a module with -m")
    if program == ["-m"]:
        parser.error("argument -m: expected the name of a module")
    if options.report not in ("", "-"):
        options.report = os.path.abspath(options.report)  # The program may change its folder.
        folder = os.path.dirname(options.report)
        if not os.path.isdir(folder):
            parser.error(f"argument --report: there is no folder {folder}; make it first")
        if os.path.isdir(options.report):
            parser.error(f"argument --report: {options.report} is a folder; name a file in it")
    for item in options.replace:
        try:
            redirect.parse(item)
        except (ValueError, ImportError) as error:
            parser.error(f"argument --replace: {error}")
    return options, program


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        usage="%(prog)s [--replace OLD[=NEW]]... [--mode cluster|local] [--report FILE|-] program.py [args...]\n"
        "       %(prog)s [options] -m module [args...]",
        description="Runs an unchanged program as Python would, but imports of its old worker-pool module give\n"
        "celery-graft. Ends with a report: which calls ran in the cluster, which stayed in this process, and why.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--replace",
        metavar="OLD[=NEW]",
        action="append",
        default=[],
        help="redirect imports of the module OLD as well, to the facade of the same last name or to NEW: "
        f"{', '.join(redirect.facades())}",
    )
    parser.add_argument("--mode", choices=("cluster", "local"), help="where callables run; GRAFT_MODE unless given")
    parser.add_argument(
        "--report",
        metavar="FILE",
        default="",
        help="where the call report goes: - is standard output, a name ending with .json gets JSON; standard error "
        "unless given",
    )
    return parser


class _Ending:
    """The last thing this process does: flush, report, and end by the signal that interrupted the program."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.process = os.getpid()
        self.is_interrupted = False

    def __call__(self) -> None:
        if os.getpid() != self.process:  # A child that the program forked ends here, too.
            return
        try:
            if sys.stdout is not None and not sys.stdout.closed:
                sys.stdout.flush()  # What the program said comes first, also where both streams end in one file.
            self.report()
        except (OSError, ValueError) as error:  # ValueError: the program closed the stream.
            print(f"{PROGRAM}: the call report could not be written: {error}", file=sys.__stderr__)
        if self.is_interrupted:
            # Python does so itself, unless Python code ran after the interrupt, as it has here.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(self.process, signal.SIGINT)

    def report(self) -> None:
        if self.target not in ("", "-"):
            with open(self.target, "w", encoding="utf-8") as file:
                if self.target.endswith(".json"):
                    file.write(calls().as_json())
                else:
                    calls().render(file)
            return
        stream = sys.__stdout__ if self.target else sys.__stderr__
        if stream is not None:
            calls().render(stream)
            stream.flush()


def _program(arguments: list[str]) -> tuple[CodeType, ModuleType]:
    """The code of the script, folder or zip file that *arguments* begin with, and the module it is to run in."""
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
    sys.argv[:] = ["-m", *arguments[1:]]  # As it is while Python looks for the module.
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
    if not sys.flags.safe_path:  # With -P there is no folder of ours to replace, and the program gets none.
        sys.path[0] = folder


def _hide_frames() -> None:
    """Have tracebacks begin with the program's own frames, whatever hook the program has chosen to print them."""
    chosen = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        own = trace
        while own is not None and own.tb_frame.f_code.co_filename.startswith((main.__code__.co_filename, "<frozen ")):
            own = own.tb_next
        chosen(kind, error.with_traceback(own), own)

    sys.excepthook = hook


if __name__ == "__main__":
    main()
