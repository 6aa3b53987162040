"""``python -m graft.compat scan PATH``: which pools and executors of a source tree can move, and what is in the way."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from graft.compat import redirect
from graft.compat.scan import files
from graft.compat.scan.calls import sites
from graft.compat.scan.files import Unreadable
from graft.compat.scan.names import Tree
from graft.compat.scan.report import FAILS, ScanReport
from graft.compat.scan.scopes import Module

EPILOG: Final = """\
examples:
  python -m graft.compat scan src
  python -m graft.compat scan src tools/nightly.py --json >scan.json
  python -m graft.compat scan --replace acme.pools=async_worker_optimization src
  python -m graft.compat scan --fail-on care src      in CI: nothing may need a look

Nothing is run or imported. What a name stands for is found by reading; where that is not enough, the verdict is
"unknown", and the call report of `python -m graft.compat PROGRAM` knows.

exit code: 0 nothing stands in the way; 1 something does (--fail-on); 2 the command line is wrong; 3 a file or folder
could not be read, or is not Python: it is named, and the rest was scanned.
"""


def main(arguments: Sequence[str]) -> int:
    """Scan what *arguments* name, print the report, and return the exit code."""
    options = _parser().parse_args(arguments)
    renamed = dict(redirect.parse(name) for old in redirect.OLD_MODULES for name in (old, old.rpartition(".")[2]))
    try:
        renamed |= dict(redirect.parse(item) for item in options.replace)
    except ValueError as error:
        _parser().error(f"argument --replace: {error}")
    for path in options.paths:
        if not path.exists():
            _parser().error(f"there is no file or folder {path}")
    report = scan(options.paths, renamed)
    print(report.as_json() if options.json else "\n".join(report.lines()))
    return report.exit_code(options.fail_on)


def scan(paths: Sequence[Path], renamed: dict[str, str]) -> ScanReport:
    """Scan the files and folders *paths*; *renamed* has the old modules and the facades that take their places."""
    tree = Tree(renamed)
    unreadable: list[Unreadable] = []
    for root in paths:
        for path in files.python_files(root, unreadable):
            parsed = files.parse(path)
            if isinstance(parsed, Unreadable):
                unreadable.append(parsed)
                continue
            try:
                tree.add(Module(path, str(path), _import_names(path, root), *parsed))
            except RecursionError:
                unreadable.append(Unreadable(str(path), "its expressions are nested too deeply"))
    return ScanReport(len(tree.modules), sites(tree), unreadable)


def _import_names(path: Path, root: Path) -> tuple[str, ...]:
    """The names under which a program may import *path*: from the folder above its package, from *root* and ``src``."""
    whole = path.absolute()
    package = whole.parent
    while (package / "__init__.py").exists() and package != package.parent:
        package = package.parent
    top = (root if root.is_dir() else root.parent).absolute()
    found = []
    for start in (package, top, top / "src"):
        if whole.is_relative_to(start):
            parts = whole.relative_to(start).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            if parts and all(part.isidentifier() for part in parts):
                found.append(".".join(parts))
    return tuple(dict.fromkeys(found))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m graft.compat scan",
        description="Say which executors, pools, joblib calls, asyncio patterns and uses of the old modules in a\n"
        "source tree can move to workers, what stands in the way of the others, and what to change.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a file, or a folder with all below it")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument(
        "--fail-on",
        choices=tuple(FAILS),
        default="blocked",
        help="the exit code is 1 for calls that cannot move as they are (blocked, the default), also for unknown ones, "
        "also for those that need care, or never",
    )
    parser.add_argument(
        "--replace", metavar="OLD[=NEW]", action="append", default=[],
        help="OLD is an old module too, as for python -m graft.compat",
    )  # fmt: skip
    return parser
