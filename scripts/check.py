"""The gate, as one command: format, lint, types, imports, tests."""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

from graft.scripts.console import messages

ROOT = Path(__file__).resolve().parent.parent


def steps(fix: bool, tests: bool) -> dict[str, list[str]]:
    """The steps by name, in order."""
    python = [sys.executable, "-m"]
    check = [] if fix else ["--check"]
    found = {
        "format": [*python, "ruff", "format", *check, "."],
        "lint": [*python, "ruff", "check", *(["--fix"] if fix else []), "."],
        "types": [*python, "mypy"],
        "imports": [str(Path(sysconfig.get_path("scripts"), "lint-imports"))],
    }
    if tests:
        # Most tests wait for other processes; each of pytest's own has a Redis and workers to itself.
        found["tests"] = [*python, "pytest", "-n", "3", "--dist", "loadfile", "--no-loadscope-reorder"]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m graft.scripts.check", description=__doc__)
    parser.add_argument("--fix", action="store_true", help="format, and mend what ruff can mend")
    parser.add_argument("--no-tests", action="store_true", help="leave the tests out")
    arguments = parser.parse_args(argv)
    failed = []
    for name, command in steps(arguments.fix, not arguments.no_tests).items():
        messages().rule(name, align="left")
        begun = time.monotonic()
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        messages().print(f"{name}: {'failed' if code else 'passed'} in {time.monotonic() - begun:.1f} s")
        if code:
            failed.append(name)
    messages().rule(align="left")
    messages().print(f"failed: {', '.join(failed)}" if failed else "everything passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
