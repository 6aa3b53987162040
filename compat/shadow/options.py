"""The options of ``python -m graft.compat`` for shadow and canary, and what becomes of the verdict at the end."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import Final

from graft.compat import shadow
from graft.compat.shadow.plan import KINDS, Plan
from graft.compat.shadow.verdicts import FAILS

FAILED: Final = 3  # The exit code of a program that has ended well, where the verdict is one that --fail-on names.
TWICE: Final = (
    "A SHADOWED CALL RUNS TWICE: once here, and once in the cluster, with all that it does elsewhere:\n"
    "mails, payments, rows in a database. Choose callables with --only and --except, and mark those\n"
    "that must never run twice with graft.compat.shadow.never_shadow (or func.graft_never_shadow = True).\n"
    "The old way answers each call, at its old speed but for the overhead that the verdict names. A\n"
    "canary call runs again, the old way, if the cluster does not answer."
)


def add_to(parser: argparse.ArgumentParser) -> frozenset[str]:
    """Add the options to *parser*; the names of those that take a value."""
    group = parser.add_argument_group("shadow and canary: before the switch, see whether it changes anything", TWICE)
    add = group.add_argument
    add(
        "--shadow",
        type=float,
        default=0.0,
        metavar="FRACTION",
        help="this share of the calls, 0 to 1, also runs in the cluster, and both runs are compared",
    )
    add("--canary", type=float, default=0.0, metavar="FRACTION", help="the cluster answers this share of the calls")
    add(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="these callables only: module:function or function; * and ? are wildcards. May be repeated",
    )
    add(
        "--except",
        action="append",
        default=[],
        metavar="NAME",
        dest="leave_out",
        help="not these callables. May be repeated",
    )
    add(
        "--equal",
        default=Plan.equal,
        metavar="RULE",
        help="how values are compared: == (the default), pickle, or module:function, called with both values",
    )
    add("--tolerance", type=float, default=0.0, metavar="SHARE", help="relative difference that floats may have")
    add("--ignore", action="append", default=[], choices=KINDS, help="a kind of difference that does not count")
    add(
        "--files",
        action="append",
        default=[],
        metavar="FOLDER",
        help="calls write below FOLDER: compare what they write; the cluster's runs write into copies",
    )
    add("--seed", default=Plan.seed, metavar="TEXT", help="choose other calls; the same seed chooses the same ones")
    add(
        "--limit",
        type=float,
        default=Plan.limit,
        metavar="SHARE",
        help=f"share of differences or errors from which on a callable goes back to the old way. Default: {Plan.limit}",
    )
    add(
        "--program",
        default="",
        metavar="NAME",
        help="the name for celery -A graft shadow. Default: that of the program's file or module",
    )
    add(
        "--verdict",
        action="append",
        default=[],
        metavar="FILE",
        help="write the verdict to FILE, too: HTML for .html, JSON for .json, else text. May be repeated",
    )
    add("--json", action="store_true", help="print the verdict as JSON")
    add("--fail-on", choices=tuple(FAILS), default="never",
        help=f"exit code {FAILED} for a program that ended well, where the verdict is differs, or cannot as well. "
        "Default: never")  # fmt: skip
    return frozenset({
        "--shadow", "--canary", "--only", "--except", "--equal", "--tolerance", "--ignore", "--files", "--seed",
        "--limit", "--program", "--verdict", "--fail-on",
    })  # fmt: skip


def plan_of(options: argparse.Namespace, program: Sequence[str]) -> Plan | None:
    """What is asked for; None where neither share is.

    Raises:
        ValueError: it cannot be carried out.
    """
    if not (options.shadow or options.canary):
        for name in ("verdict", "json", "only", "leave_out", "files"):
            if getattr(options, name):
                option = "--except" if name == "leave_out" else f"--{name}"
                raise ValueError(f"{option} says nothing without --shadow or --canary")
        return None
    for path in options.verdict:
        if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
            raise ValueError(f"--verdict {path}: there is no such folder; make it first")
    options.verdict = [os.path.abspath(path) for path in options.verdict]  # The program may change its folder.
    name = program[1] if program[0] == "-m" else os.path.splitext(os.path.basename(os.path.abspath(program[0])))[0]
    return Plan(
        shadow=options.shadow, canary=options.canary, program=options.program or name.replace(" ", "_"),
        seed=options.seed, only=tuple(options.only), leave_out=tuple(options.leave_out), equal=options.equal,
        tolerance=options.tolerance, ignore=frozenset(options.ignore), limit=options.limit,
        files=tuple(options.files),
    )  # fmt: skip


def conclude(options: argparse.Namespace, *, is_interrupted: bool) -> int:
    """Wait for what is outstanding, write the verdict; the exit code of a program that has ended well."""
    live = shadow.installed()
    if live is None:
        return 0
    live.finish(0.0 if is_interrupted else None)
    live.switch.stop()
    verdict = live.verdict()
    for path in options.verdict:
        with open(path, "w", encoding="utf-8") as file:
            file.write({".html": verdict.page, ".json": verdict.as_json}.get(os.path.splitext(path)[1], verdict.text)())
    stream = sys.__stdout__ if options.json else sys.__stderr__
    if stream is not None:
        text = verdict.as_json() if options.json else verdict.text()
        encoding = stream.encoding or "utf-8"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    return FAILED if verdict.is_failing(options.fail_on) else 0


def end_with(code: int) -> None:
    """End this process with *code*, after everything else."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
    os._exit(code)
