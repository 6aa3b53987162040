"""What became of each test of a project, read from pytest's report, and the comparison of two runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

Outcomes = Mapping[str, str]  # Test -> passed, failed or skipped.


def read(report: Path) -> dict[str, str]:
    """The outcome of each test in a JUnit report; a test that passed but failed to clean up has failed."""
    found: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - pytest wrote it a moment ago.
        name = f"{case.get('classname')}::{case.get('name')}"
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        if found.get(name) != "failed":
            found[name] = outcome
    return found


@dataclass(frozen=True)
class Comparison:
    """The outcomes of one project's tests, as stock Celery and hardened."""

    stock: Outcomes
    hardened: Outcomes

    @property
    def tests(self) -> int:
        return len(self.stock.keys() | self.hardened.keys())

    @property
    def passed_stock(self) -> int:
        return list(self.stock.values()).count("passed")

    @property
    def passed_hardened(self) -> int:
        return list(self.hardened.values()).count("passed")

    @property
    def lost(self) -> tuple[str, ...]:
        """The tests that pass in stock Celery, and fail, are skipped or do not run once it is hardened."""
        return tuple(sorted(self._that_differ(self.stock, self.hardened)))

    @property
    def gained(self) -> tuple[str, ...]:
        """The tests that pass only once it is hardened."""
        return tuple(sorted(self._that_differ(self.hardened, self.stock)))

    @staticmethod
    def _that_differ(passing: Outcomes, other: Outcomes) -> Iterator[str]:
        return (test for test, outcome in passing.items() if outcome == "passed" and other.get(test) != "passed")
