"""The compose stack, run for real: what its containers may do, who may look, and that faults cost nothing."""

from __future__ import annotations

import json
import subprocess
import threading
import urllib.error
import urllib.request
from base64 import b64encode

from tests.containers.compose import Deployment, docker
from tests.containers.programs.old_work import slow_square
from tests.stack import wait_until

ITEMS = 1200


class Program:
    """The old program, running on this machine with its work in the containers."""

    def __init__(self, deployment: Deployment, count: int) -> None:
        self.done = 0
        self.count = count
        self._lines: list[str] = []
        self._process = deployment.start_program(
            "-m", "graft.compat", "--mode", "cluster", "old_program.py", str(count)
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, done: int) -> None:
        def is_there() -> bool:
            assert self._process.poll() is None or self.done >= done, self.log
            return self.done >= done

        wait_until(is_there, 120, f"{done} of {self.count} items; {self.done} are done:\n{self.log}")

    def results(self) -> dict[str, list[int]]:
        with self._process:  # Closes its pipes.
            assert self._process.stdout is not None
            output = self._process.stdout.read()
            assert self._process.wait(240) == 0, self.log
            self._reader.join(10)
        found: dict[str, list[int]] = json.loads(output)
        return found

    @property
    def log(self) -> str:
        return "".join(self._lines)

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._lines.append(line)
            if line.endswith(f" of {self.count}\n"):
                self.done = int(line.split()[0])


def expected(count: int) -> dict[str, list[int]]:
    return {"squares": [n * n for n in range(count)], "cubes": [n**3 for n in range(count)]}


def runs(deployment: Deployment) -> int:
    """The count of items of the old program, as the workers count them."""
    with deployment.connect() as client:
        return int(client.hget(f"graft:figures:old_work:{slow_square.__name__}", "items") or 0)


def fetch(deployment: Deployment, path: str, login: str = "", method: str = "GET") -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{deployment.flower_port}{path}", method=method)
    if login:
        request.add_header("Authorization", f"Basic {b64encode(login.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_no_container_can_write_or_become_more_than_it_is(deployment):
    for name, container in deployment.inspect().items():
        host = container["HostConfig"]
        assert container["Config"]["User"] not in ("", "0", "root"), name
        assert host["ReadonlyRootfs"], name
        assert host["CapDrop"] == ["ALL"], name
        assert any("no-new-privileges" in option for option in host["SecurityOpt"]), name
        assert host["Init"], name


def test_everything_published_is_on_loopback(deployment):
    published = [
        binding["HostIp"]
        for container in deployment.inspect().values()
        for bindings in container["HostConfig"]["PortBindings"].values()
        for binding in bindings
    ]
    assert published == ["127.0.0.1", "127.0.0.1"]


def test_an_old_program_outside_gets_its_results(deployment):
    program = Program(deployment, 40)
    assert program.results() == expected(40)
    assert runs(deployment) == 40


def test_flower_shows_nothing_without_the_password_and_changes_nothing_with_it(deployment):
    assert fetch(deployment, "/workers")[0] == 401
    status, page = fetch(deployment, "/workers", deployment.flower_login)
    assert status == 200
    assert "cpu@" in page
    assert fetch(deployment, "/api/task/revoke/1", deployment.flower_login, "POST")[0] == 403


def test_a_killed_worker_a_restarted_redis_and_a_deployment_under_way_lose_nothing(deployment):
    before = runs(deployment)
    program = Program(deployment, ITEMS)

    program.wait_for(ITEMS // 8)
    victim = deployment.containers("worker-cpu")[0]
    docker("kill", victim)  # SIGKILL for the worker and its pool processes, like the loss of a machine.
    docker("start", victim)

    program.wait_for(ITEMS // 4)
    deployment.compose("restart", "redis")

    program.wait_for(ITEMS // 2)
    deployment.compose("up", "-d", "--no-recreate", "--scale", "worker-cpu=3")
    assert len(deployment.containers("worker-cpu")) == 3

    program.wait_for(3 * ITEMS // 4)
    for container in deployment.containers("worker-cpu"):  # A rolling restart.
        docker("restart", "-t", "60", container)

    found = program.results()
    wanted = expected(ITEMS)
    lost = sum(left != right for name in wanted for left, right in zip(found[name], wanted[name], strict=True))
    doubled = runs(deployment) - before - ITEMS
    print(f"lost {lost} of {2 * ITEMS}; the workers counted {doubled:+} runs beyond {ITEMS}")
    assert lost == 0
    # What ran in the killed worker, and around the restart of Redis. (A killed worker may not have counted its last.)
    assert doubled <= 100
    deployment.wait_healthy()


def test_one_of_two_beats_fires_and_the_other_takes_over(deployment):
    def fired(service: str) -> int:
        return deployment.compose("--profile", "ha", "logs", "--no-color", service).count("Sending due task")

    both = ("beat", "beat-standby")
    wait_until(lambda: sum(map(fired, both)) >= 3, 90, "Beat fires")
    leader, standby = sorted(both, key=fired, reverse=True)
    assert fired(standby) == 0
    docker("kill", *deployment.containers(leader))
    wait_until(lambda: fired(standby) >= 2, 90, "the other Beat takes over")
    docker("start", *deployment.containers(leader))
    deployment.wait_healthy()


def test_work_handed_in_outlives_a_stop_of_everything(deployment):
    before = runs(deployment)
    deployment.compose("stop", "worker-cpu")
    code = "import graft, old_work, time; graft.submit(old_work.slow_square, range(300)); time.sleep(3)"
    submitter = deployment.start_program("-c", code)
    _, log = submitter.communicate(timeout=60)
    assert submitter.returncode == 0, log
    sent = 300 - unsent(log)
    assert sent > 0

    deployment.compose("--profile", "ha", "stop")
    for name, container in deployment.inspect().items():
        # 137 would be a kill: the grace was too short. Of the workers, each ended by itself.
        assert container["State"]["ExitCode"] in (0, 143), (name, docker("logs", "--tail", "30", container["Id"]))

    deployment.compose("--profile", "ha", "start")
    wait_until(lambda: runs(deployment) - before >= sent, 90, "what was handed in is run")
    assert runs(deployment) - before == sent
    deployment.wait_healthy()


def unsent(log: str) -> int:
    """The count of items that the submitter did not send, as it says."""
    said = [line for line in log.splitlines() if "were not sent" in line]
    return sum(int(line.split(" items ")[0].rsplit(None, 1)[-1]) for line in said)


def test_a_worker_that_is_stopped_in_the_middle_finishes_or_gives_back(deployment):
    deployment.compose("up", "-d", "--no-recreate", "--scale", "worker-cpu=1")
    program = Program(deployment, 200)
    program.wait_for(100)
    before = subprocess.run(["docker", "ps", "-q"], capture_output=True, text=True, check=True).stdout.count("\n")
    deployment.compose("stop", "worker-cpu")
    assert (
        subprocess.run(["docker", "ps", "-q"], capture_output=True, text=True, check=True).stdout.count("\n") < before
    )
    for container in deployment.inspect("worker-cpu").values():
        assert container["State"]["ExitCode"] == 0
    deployment.compose("start", "worker-cpu")
    assert program.results() == expected(200)
