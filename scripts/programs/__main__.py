"""``python -m graft.scripts.programs``: real programs, run plainly and with ``--pools``, compared byte for byte."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from graft.scripts.programs.comparison import Verdict, compare, environ_for_programs
from graft.scripts.programs.table import PROGRAMS
from graft.scripts.stack.local_stack import LocalStack

ROOT: Final = Path(__file__).resolve().parents[2]
NEEDED: Final = 0.9  # The share of a program's calls that should run in the cluster.


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every program is the same both ways, on workers or at home by rule; else 1."""
    parser = argparse.ArgumentParser(prog="python -m graft.scripts.programs", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="programs whose names begin so; default: all")
    parser.add_argument("--quick", action="store_true", help="the third of them that CI runs, within two minutes")
    parser.add_argument("--environment", type=Path, help="a folder for the environment, kept for the next time")
    parser.add_argument("--processes", type=int, default=2, help="pool processes of the worker (default 2)")
    asked = parser.parse_args(arguments)
    chosen = [
        each for each in PROGRAMS
        if (not asked.names or each.name.startswith(tuple(asked.names))) and (each.is_quick or not asked.quick)
    ]  # fmt: skip
    if not chosen:
        parser.error(f"no program is called {asked.names}; there are: {', '.join(each.name for each in PROGRAMS)}")
    folder = asked.environment or Path(os.path.expanduser("~/.cache/celery-graft/programs"))
    python = environment(folder, sorted({needed for each in chosen for needed in each.requirements}))
    if python is None:
        print("programs: left out: no package index answers")
        return 0
    with LocalStack({"cpu": asked.processes}, environ=dict(os.environ)) as stack:
        environ = environ_for_programs({**os.environ, **stack.variables})
        is_well = True
        for program in chosen:
            verdict = compare(program, str(python), environ)
            is_well &= not verdict.differences and (program.stays or verdict.share >= NEEDED)
            print(_row(verdict), flush=True)
    return not is_well


def environment(folder: Path, requirements: Sequence[str]) -> Path | None:
    """The interpreter of an environment in *folder* with *requirements*; None where no index answers."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True, symlinks=True)
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as empty:
        asked = [*pip, "--retries", "1", "download", "--no-deps", "--dest", empty, *requirements[:1]]
        if requirements and subprocess.run(asked, capture_output=True, check=False).returncode:
            return None
    if requirements:
        subprocess.run([*pip, "install", *requirements], check=True)
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    ours = "\n".join([sysconfig.get_paths()["purelib"], str(ROOT)])
    Path(site, "zz_graft.pth").write_text(f"{ours}\n")  # The runner itself: after the programs' own packages.
    return python


def _row(verdict: Verdict) -> str:
    same = "differs" if verdict.differences else "identical"
    calls = f"{verdict.cluster}/{verdict.calls} calls in the cluster"
    lines = [f"{verdict.name:18} {same:10} {calls:34} {verdict.plain:6.1f} s {verdict.pools:6.1f} s"]
    lines += [f"    differs: {text[:300]}" for text in verdict.differences]
    lines += [f"    at home: {text[:300]}" for text in verdict.reasons]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
