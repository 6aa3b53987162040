"""Two versions of this project in one deployment: workers and callers of this commit and of the one before."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count as numbers
from pathlib import Path
from typing import ClassVar, Final

from graft.scripts.drill.fault import Fault, FaultResult
from graft.scripts.drill.ledger import Count
from graft.scripts.drill.stage import Stage

ROOT: Final = Path(__file__).resolve().parents[3]
PREVIOUS: Final = "DRILL_PREVIOUS"  # The variable that names another commit than the one before.


class VersionsStage(Stage):
    """Every other worker and every other caller has the code of an earlier commit, in the same environment."""

    def start(self) -> None:
        self._parity = numbers()
        self.runs_previous = True
        super().start()

    def launch(
        self, name: str, argv: Sequence[str], environ: Mapping[str, str] | None = None
    ) -> tuple[list[str], dict[str, str]]:
        arguments, made = super().launch(name, argv, environ)
        is_previous = self.runs_previous if name.startswith("worker") else next(self._parity) % 2
        if not is_previous:
            return arguments, made
        tree = self._tree()
        # Python looks for modules in the current folder first.
        enter = ["sh", "-c", 'cd "$0" && exec "$@"', str(tree)]
        return [*enter, *arguments], {**made, "PYTHONPATH": str(tree)}

    def replace(self, *, by_previous: bool) -> bool:
        """Replace the oldest worker by one of the previous version, or of this; False if it had to be killed."""
        self.runs_previous = by_previous
        worker = self.workers.pop(0)
        self.until(partial(self.is_ready, self.add_drill_worker()))
        worker.stop(30.0)
        return worker.status == 0

    def _tree(self) -> Path:
        """The files of the earlier commit, but for the drill, which is this one's in both."""
        tree = self.directory / "previous"
        if not tree.exists():
            tree.mkdir()
            archive = subprocess.run(["git", "archive", commit()], cwd=ROOT, check=True, capture_output=True).stdout
            subprocess.run(["tar", "-x", "-C", str(tree)], input=archive, check=True)
            shutil.rmtree(tree / "scripts" / "drill")
            shutil.copytree(ROOT / "scripts" / "drill", tree / "scripts" / "drill")
        return tree


class VersionMix(Fault):
    """Workers and callers of this version and of the commit before work together, and are rolled forward and back."""

    name = "version-mix"
    limit = "0 lost, 0 letters, 0 quarantined, every caller answered, doubled at most 2 x concurrency a replacement"
    full_strikes = 12
    on: ClassVar[type[Stage]] = VersionsStage

    @classmethod
    def unavailable(cls) -> str:
        try:
            commit()
        except (OSError, subprocess.CalledProcessError):
            return "there is no git history with an earlier commit here"
        return ""

    @property
    def lasts(self) -> float:
        return 5.0 * self.times()

    def times(self, full: int | None = None) -> int:
        return max(4, super().times(full))

    def prepare(self, stage: Stage) -> None:
        share = self.tasks // 4
        # They are to outlast the replacements, and to end before the drill does: other work goes first.
        seconds, patience = min(0.2, 2.5 * self.lasts / share), max(90.0, 900.0 * self.scale)
        for prefix in ("b", "c"):
            stage.produce(answers=share, seconds=seconds, prefix=prefix, patience=patience)
        stage.produce(count=share, rate=min(50.0, share / self.lasts), prefix="d")

    def inject(self, stage: Stage) -> None:
        assert isinstance(stage, VersionsStage)
        # Forward, and then back: both workers of this version, then both of the previous one.
        for number in range(self.times()):
            self.strikes += stage.replace(by_previous=number % 4 >= 2)

    def finally_(self, stage: Stage) -> None:
        self.letters, self.quarantined = stage.letters(), stage.quarantined()
        self.seen.append(f"{self.letters} dead letters, {self.quarantined} quarantined")

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        asked = {label for label in count.sent if label[0] in "bc"}
        waiting = len(asked - count.answered)
        self.seen.append(f"{waiting} of {len(asked)} items unanswered")
        kept = not (self.letters or self.quarantined or waiting)
        return super().passes(stage, count, result) and kept and result.doubled <= 4 * self.strikes >= 4 * self.times()


def commit() -> str:
    """The earlier commit. Raises CalledProcessError where there is none."""
    name = os.environ.get(PREVIOUS, "HEAD^")
    command = ["git", "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
