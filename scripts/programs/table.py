"""The programs, their pinned versions, and what they are run on."""

from __future__ import annotations

import re
import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PINNED: Final = (
    "autoflake==2.4.0", "black==26.10.1", "dask[bag]==2026.8.0", "djlint==1.54.0", "emcee==3.1.6", "flake8==7.5.0",
    "gensim==4.4.0", "isort==9.0.2", "joblib==1.6.0", "lizard==1.24.3", "lxml_html_clean==0.4.6", "numpy==2.4.6",
    "pandarallel==1.6.5", "pandas==2.3.3", "pathos==0.3.5", "pylint==4.1.4", "scikit-learn==1.9.1", "scipy==1.17.1",
    "sqlfluff==4.5.0", "tqdm==4.70.1", "trafilatura==2.3.1", "yapf==0.43.0",
)  # fmt: skip
SAMPLES: Final = Path(__file__).with_name("samples")
STANDARD: Final = Path(sysconfig.get_paths()["stdlib"])


def python_files(folder: Path, *, packages: tuple[str, ...] = ("json", "importlib")) -> None:
    """A tree of real Python files, which no formatter has seen."""
    for name in packages:
        shutil.copytree(STANDARD / name, folder / "src" / name, ignore=shutil.ignore_patterns("__pycache__"))


def few_python_files(folder: Path) -> None:
    python_files(folder, packages=("json",))


def queries(folder: Path) -> None:
    """Files of SQL with something to complain about."""
    (folder / "src").mkdir()
    for number in range(8):
        text = f"SELECT a,b ,  c{number} from t{number} where a=1 AND b in (1,2)\n  order by a"  # noqa: S608
        (folder / "src" / f"query{number}.sql").write_text(text)


def pages(folder: Path) -> None:
    """HTML pages."""
    (folder / "src").mkdir()
    for number in range(8):
        lines = "".join(
            f"<p>Paragraph {each} of page {number}, which says enough to be kept.</p>" for each in range(400)
        )
        page = f"<html><head><title>Page {number}</title></head><body><article><h1>Page</h1>{lines}</article>"
        (folder / "src" / f"page{number}.html").write_text(f"{page}<img src='x.png'></body></html>\n")


def nothing(folder: Path) -> None:
    """The program needs no files."""


@dataclass(frozen=True)
class Program:
    """One program: ``python ARGUMENTS`` in a folder of its own, which *prepare* fills.

    Attributes:
        runs: how often it runs, one run after the other.
        is_unordered: its lines come in the order in which processes write them, so they are compared sorted.
        needs: packages that it is made of, as far as they are not called as it is.
        is_quick: it is one of the third that CI runs.
        stays: its pools stay at home, by rule.
    """

    name: str
    arguments: tuple[str, ...]
    prepare: Callable[[Path], None] = nothing
    runs: int = 1
    is_unordered: bool = False
    needs: tuple[str, ...] = ()
    is_quick: bool = False
    stays: bool = False

    @property
    def requirements(self) -> list[str]:
        """What has to be installed for it, pinned."""
        names = {re.split(r"[^\w.-]", self.name)[0], *self.needs}
        return [pinned for pinned in PINNED if re.split(r"[\[=]", pinned)[0] in names]


def _module(name: str, *arguments: str) -> tuple[str, ...]:
    return ("-m", name, *arguments)


def _sample(name: str) -> tuple[str, ...]:
    return (f"{name}.py",)


PROGRAMS: Final = (
    Program("black", _module("black", "--workers", "2", "src"), python_files, is_unordered=True, is_quick=True),
    Program("black --diff", _module("black", "--workers", "2", "--diff", "src"), python_files, is_unordered=True),
    Program("isort", _module("isort", "-j", "2", "src"), python_files, is_unordered=True),
    Program("isort --check", _module("isort", "-j", "2", "--check", "src"), python_files, is_unordered=True),
    Program("isort --diff", _module("isort", "-j", "2", "--diff", "src"), python_files, is_unordered=True,
            is_quick=True),
    Program("autoflake", _module("autoflake", "-j", "2", "-r", "src"), python_files, is_unordered=True),
    Program("yapf --diff", _module("yapf", "-p", "-r", "-d", "src"), few_python_files, is_unordered=True),
    Program("flake8, twice", _module("flake8", "-j", "2", "src"), python_files, runs=2, is_quick=True),
    Program("pylint, twice", _module("pylint", "-j", "2", "--exit-zero", "src/json"), few_python_files, runs=2),
    Program("compileall", _module("compileall", "-j", "2", "src"), python_files, is_unordered=True, is_quick=True),
    Program("djlint", _module("djlint", "--check", "src"), pages, is_unordered=True),
    Program("sqlfluff lint", _module("sqlfluff", "lint", "--dialect", "ansi", "-p", "2", "src"), queries,
            is_unordered=True),
    Program("trafilatura", _module("trafilatura.cli", "--input-dir", "src", "--output-dir", "out", "--parallel", "2"),
            pages, needs=("lxml_html_clean",)),
    Program("lizard", _module("lizard", "-t", "2", "src"), python_files, is_unordered=True, is_quick=True),
    Program("scikit-learn", _sample("sklearn_search"), needs=("numpy", "scipy")),
    Program("scipy", _sample("scipy_workers"), needs=("numpy",)),
    Program("emcee", _sample("emcee_sampler"), needs=("numpy",)),
    Program("dask.bag", _sample("dask_bag"), needs=("dask",)),
    Program("tqdm process_map", _sample("tqdm_map"), is_quick=True),
    Program("pathos", _sample("pathos_pool"), is_quick=True),
    Program("joblib", _sample("joblib_parallel"), needs=("numpy",), is_quick=True),
    Program("pandarallel", _sample("pandarallel_apply"), needs=("numpy", "pandas")),
    Program("gensim", _sample("gensim_lda"), needs=("numpy", "scipy"), stays=True),
)  # fmt: skip
