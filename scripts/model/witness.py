"""What truly happened in the model, as nobody in it knows it: which code began, ended, and died with whom."""

from __future__ import annotations

from collections import Counter

from graft.scripts.model.actors import Scheduler


class Witness:
    """The part of the world that sees what tasks and their processes do."""

    scheduler: Scheduler
    log: list[str]

    def forget(self) -> None:
        """Begin anew."""
        self.log = []
        self.tags: dict[str, tuple[str, str]] = {}  # Worker and task by delivery tag.
        self.begun = Counter[str]()
        self.finished = Counter[str]()
        self.deaths = Counter[str]()  # Of processes while the code of this task ran.
        self.kills = Counter[str]()  # That the code itself has ended.
        self.lost = Counter[str]()  # Deliveries that went back while their worker lived.
        self.restarts = Counter[str]()  # Of workers that held this task when they were told to stop.
        self.told_of: dict[str, set[str]] = {}  # By worker: tasks that it knows to be cancelled, and that do not run.
        self.inside_of: dict[str, list[str]] = {}  # By worker: the code of which task or item it is in.
        self.wrong = ""  # What somebody has seen that must not be.

    def note(self, text: str) -> None:
        self.log.append(text)

    def note_begin(self, task_id: str) -> int:
        self.begun[task_id] += 1
        if task_id in self.told_of.get(self._here().partition(".")[0], ()):
            self.wrong = f"{task_id} begins where it was known to be cancelled"
        self.inside_of.setdefault(self._here().partition(".")[0], []).append(task_id)
        self.log.append(f"{self._here()} begins {task_id}, run {self.begun[task_id]}")
        return self.begun[task_id]

    def note_kill(self, task_id: str) -> None:
        self.kills[task_id] += 1

    def note_end(self, task_id: str) -> None:
        self.finished[task_id] += 1
        self.inside_of[self._here().partition(".")[0]].remove(task_id)

    def _here(self) -> str:
        actor = self.scheduler.current
        return "?" if actor is None else actor.process.name

    def fetched(self, name: str, task_id: str, tag: str) -> None:
        self.tags[tag] = (name, task_id)
        self.log.append(f"{name} has {task_id}")

    def died(self, name: str, task_id: str, *, has_begun: bool, is_told: bool) -> None:
        """A process of worker *name* ends while it runs a task; if its code *has_begun*, that is a death of its own."""
        inside = self.inside_of.pop(name, [])
        if has_begun and not is_told:
            self.deaths[task_id] += 1
            self.deaths.update(item for item in inside if item != task_id)
        self.log.append(f"{name}: the process of {task_id} ends")

    def let_go(self, name: str) -> None:
        self.log.append(f"{name} dies")
