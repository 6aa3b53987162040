"""What a scan has found: the lines for people, the JSON for programs, the exit code."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Final, Literal

from graft.compat.scan.calls import VERDICTS, Site
from graft.compat.scan.files import Unreadable

FailOn = Literal["never", "blocked", "unknown", "care"]
# From which verdict on the exit code is 1.
FAILS: Final[dict[FailOn, frozenset[str]]] = {
    "never": frozenset(),
    "blocked": frozenset({"not as it is"}),
    "unknown": frozenset({"not as it is", "unknown"}),
    "care": frozenset({"not as it is", "unknown", "with care"}),
}
READY, IN_THE_WAY, NOT_READ = 0, 1, 3


@dataclass(frozen=True)
class ScanReport:
    """The calls of a tree, and the files that were not read. *files* counts those that were."""

    files: int
    sites: Sequence[Site]
    unreadable: Sequence[Unreadable]

    def exit_code(self, fail_on: FailOn) -> int:
        """3 if a file could not be read, 1 if something stands in the way, else 0."""
        if self.unreadable:
            return NOT_READ
        return IN_THE_WAY if any(site.verdict in FAILS[fail_on] for site in self.sites) else READY

    def readiness(self) -> dict[str, dict[str, int]]:
        """By kind, and for ``all``: the number of calls by verdict."""
        kinds = [*dict.fromkeys(sorted(site.kind for site in self.sites)), "all"]
        counts = Counter((kind, site.verdict) for site in self.sites for kind in (site.kind, "all"))
        return {kind: {verdict: counts[kind, verdict] for verdict in VERDICTS} for kind in kinds}

    def as_json(self) -> str:
        return json.dumps(
            {
                "format": 1,
                "files": self.files,
                "calls": [asdict(site) | {"verdict": site.verdict} for site in self.sites],
                "readiness": self.readiness(),
                "not_read": [asdict(each) for each in self.unreadable],
            },
            indent=1,
        )

    def lines(self) -> Iterator[str]:
        """The report for people."""
        for path, sites in groupby(self.sites, key=lambda site: site.path):
            yield path
            for site in sites:
                name = f"  {site.callable}" if site.callable else ""
                yield f"  {site.line:>5}  {site.call}{name}: {site.verdict}"
                for obstacle in site.obstacles:
                    elsewhere = f"{obstacle.path}, " if obstacle.path != site.path else ""
                    yield f"         {obstacle.rule}: {obstacle.text} ({elsewhere}line {obstacle.line})"
                    yield f"           change: {obstacle.change}"
                if site.verdict in ("moves", "with care"):
                    yield f"         to move it: {site.change}"
            yield ""
        if self.sites:
            yield from self._table()
        for each in self.unreadable:
            line = f", line {each.line}" if each.line else ""
            yield f"not scanned: {each.path}{line}: {each.reason}"
        yield self._summary()

    def _table(self) -> Iterator[str]:
        rows = [["readiness", "calls", *VERDICTS]]
        for kind, counts in self.readiness().items():
            rows.append([kind, str(sum(counts.values())), *map(str, counts.values())])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            first, *others = (
                cell.ljust(w) if not i else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            yield "  ".join([first, *others])
        yield ""

    def _summary(self) -> str:
        files = f"{self.files} file{'' if self.files == 1 else 's'}"
        if not self.sites:
            return f"{files}: no executor, pool, joblib, asyncio pattern or old module was found."
        ready = sum(site.verdict in ("moves", "with care") for site in self.sites)
        return f"{files}: {ready} of {len(self.sites)} calls can move, {100 * ready // len(self.sites)} %."
