"""The options of ``python -m graft.compat``: ours come before the program, and the rest of the line is its own."""

from __future__ import annotations

import argparse
import os
from typing import Final

from graft.compat import redirect
from graft.compat.shadow import options as shadow_options

PROGRAM: Final = "python -m graft.compat"
EXAMPLES: Final = """\
examples:
  python -m graft.compat program.py --its-own-option
      Run on the workers of the broker at CELERY_BROKER_URL.
  python -m graft.scripts.dev run -- python -m graft.compat program.py
      Start a private Redis and workers for this run only.
  python -m graft.compat --mode local program.py
      Run in this process, without a broker. The results must be the same.
  python -m graft.compat --replace acme.pools.async_worker_optimization program.py
      The old module is in another package.
  python -m graft.compat --replace acme.pools=async_worker_optimization --report calls.json -m acme.nightly
      The old module has another name; the report is JSON.
  python -m graft.compat --shadow 0.1 --except "*send*" --verdict verdict.html program.py
      Run a tenth of the calls, but not those that send, in the cluster as well, and compare.
  python -m graft.compat --pools -m black src
      Run on the workers what the program runs in ProcessPoolExecutor and multiprocessing.Pool.
  python -m graft.compat scan src
      Run nothing: say which pools and executors below src can move, and what stands in the way. (./scan is a program.)

The exit code is that of the program, or 2 if it never imported a module that --replace names.
"""


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our options, and the rest of the line: a program, or -m and a module, with its own arguments."""
    parser = _parser()
    valued = {"--replace", "--mode", "--report", "--report-html"} | shadow_options.add_to(parser)
    index = 0
    while index < len(arguments) and arguments[index].startswith("-") and not arguments[index].startswith("-m"):
        index += 2 if arguments[index] in valued else 1
    ours, program = arguments[:index], arguments[index:]
    if program and program[0].startswith("-m") and program[0] != "-m":
        program[:1] = ["-m", program[0][2:]]
    options = parser.parse_args(ours)
    if not program:
        parser.error("name a program to run, or a module with -m")
    if program == ["-m"]:
        parser.error("argument -m: expected the name of a module")
    if options.report != "-":
        options.report = _file(parser, "--report", options.report)
    options.report_html = _file(parser, "--report-html", options.report_html)
    options.named = program[1] if program[0] == "-m" else os.path.basename(program[0])
    if options.pools:
        from graft.compat.guests import install

        try:
            install.kinds_of(options.pools)
        except ValueError as error:
            parser.error(f"argument --pools: {error}")
    for item in options.replace:
        try:
            redirect.parse(item)
        except ValueError as error:
            parser.error(f"argument --replace: {error}")
    return options, program


def _file(parser: argparse.ArgumentParser, option: str, path: str) -> str:
    """*path*, absolute, as the program may change its folder; refused where it cannot be written."""
    if not path:
        return ""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        parser.error(f"argument {option}: there is no folder {folder}; make it first")
    if os.path.isdir(path):
        parser.error(f"argument {option}: {os.path.abspath(path)} is a folder; name a file in it")
    return os.path.abspath(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        usage="%(prog)s [--pools] [--replace OLD[=NEW]]... [--mode cluster|local] [--report FILE|-] program.py [args]\n"
        "       %(prog)s --shadow FRACTION [--only NAME]... [--verdict FILE]... program.py [args...]\n"
        "       %(prog)s [options] -m module [args...]\n"
        "       %(prog)s scan [--json] [--fail-on care|unknown|blocked|never] PATH...",
        description="Run an unchanged Python program on Celery workers: imports of its old worker-pool module give\n"
        "celery-graft. At the end, a report lists the calls that ran in the cluster, those that stayed in this\n"
        "process, and the reasons.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--replace",
        metavar="OLD[=NEW]",
        action="append",
        default=[],
        help="redirect imports of the module OLD to the facade NEW. Default for NEW: the last part of OLD. Facades: "
        f"{', '.join(redirect.FACADES)}. May be repeated",
    )
    parser.add_argument(
        "--pools",
        metavar="KINDS",
        nargs="?",
        const="processes",
        default="",
        help="run the process pools of the standard library, and joblib's, on workers: ProcessPoolExecutor, "
        "multiprocessing.Pool. Their processes are made for this program alone. --pools=processes,threads: the "
        "program's own ThreadPoolExecutors, too, as far as their calls share nothing with it. With single in the list, "
        "pools of one process, too, where no call uses what an earlier one left in it",
    )
    parser.add_argument("--mode", choices=("cluster", "local"), help="where callables run. Default: GRAFT_MODE")
    parser.add_argument(
        "--report",
        metavar="FILE",
        default="",
        help="write the call report to FILE; - is standard output, and a name that ends with .json gets JSON. Default: "
        "standard error",
    )
    parser.add_argument(
        "--report-html",
        metavar="FILE",
        default="",
        help="also write it to FILE as a page: each pool and function, where and why, what it took, and about what it "
        "would have taken at home",
    )
    return parser
