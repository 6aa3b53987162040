"""Tasks that write down what they do, and tasks that harm their worker."""

from __future__ import annotations

import builtins
import os
import time
from typing import Any

from celery import Task, shared_task
from celery.exceptions import Reject

import graft


def note(text: str) -> None:
    """Leave a line for the test."""
    with open(os.environ["SHOP_LEDGER"], "a") as ledger:
        ledger.write(f"{text}\n")


@shared_task
def write(text: str) -> str:
    note(text)
    return text


@shared_task
def slow(seconds: float) -> int:
    note("slow begins")
    time.sleep(seconds)
    note("slow ends")
    return os.getpid()


@shared_task
def kill() -> None:
    note("kill")
    os._exit(1)


@shared_task
def kill_with(text: str) -> None:
    kill()


@shared_task(graft_run_limit=1)
def kill_once() -> None:
    note("kill_once")
    os._exit(1)


@shared_task
def exhaust() -> None:
    note("exhaust")
    raise MemoryError("a matrix too many")


@shared_task
def leave() -> None:
    note("leave")
    raise SystemExit(3)


@shared_task
def report() -> str:
    return "a report"


@shared_task
def unencodable() -> object:
    return object()


@shared_task
def fail(text: str) -> None:
    raise LookupError(text)


@shared_task(autoretry_for=(LookupError,), max_retries=2, default_retry_delay=0.1)
def fail_on_and_on() -> None:
    note("fail_on_and_on")
    raise LookupError("not today")


def note_failed_run(failed: Any) -> None:
    note(f"{failed.name.rpartition('.')[2]}:{failed.run}/{failed.runs}")


@shared_task(policy=graft.RetryPolicy(6, waits=(0.1,), give_up_on=TimeoutError, on_retry=note_failed_run))
def by_policy(error: str, succeeds_at: int) -> str:
    note(f"by_policy:{error}")
    with open(os.environ["SHOP_LEDGER"]) as ledger:
        if ledger.read().count(f"by_policy:{error}") < succeeds_at:
            raise getattr(builtins, error)("not yet")
    return "at last"


@shared_task(policy=graft.RetryPolicy(99, waits=(0.5,), max_seconds=1.2))
def for_a_while() -> None:
    note("for_a_while")
    raise ConnectionError("for ever")


@shared_task(graft_letters=True)
def fail_with_letter() -> None:
    raise LookupError("kept")


@shared_task(time_limit=1)
def hang() -> None:
    note("hang")
    time.sleep(60)


@shared_task(acks_late=False)
def kill_acked_early() -> None:
    note("kill_acked_early")
    os._exit(1)


@shared_task(bind=True)
def reject_twice(self: Any) -> str:
    note("reject_twice")
    with open(os.environ["SHOP_LEDGER"]) as ledger:
        if ledger.read().count("reject_twice") < 6:
            raise Reject("not yet", requeue=True)
    return "done"


class Wrapped(Task):
    """A base class of the project's own, as for a context around each task."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        note("enters")
        try:
            return super().__call__(*args, **kwargs)
        finally:
            note("leaves")


@shared_task(base=Wrapped)
def wrapped(text: str) -> str:
    return text


@shared_task(base=Wrapped)
def wrapped_kill() -> None:
    note("kill")
    os._exit(1)


@shared_task(max_retries=0)
@graft.limit(rate="2/second", by="who")
def paced(who: str, number: int) -> int:
    note(f"paced {time.time():.6f}")
    return number


@shared_task(max_retries=0)
@graft.limit(rate="2/second", by=lambda who, number: who)
async def paced_async(who: str, number: int) -> int:
    note(f"paced {time.time():.6f}")
    return number


@shared_task
@graft.limit(semaphore=1, name="till")
def at_the_till(number: int) -> int:
    note(f"in {time.time():.6f}")
    time.sleep(0.2)
    note(f"out {time.time():.6f}")
    return number


@shared_task(bind=True, autoretry_for=(ConnectionError,), max_retries=3, retry_backoff=False, default_retry_delay=0)
@graft.limit(breaker=graft.BreakerRules(2, 1, 2.0, 1), name="bank")
def ask_the_bank(self: Any, number: int) -> int:
    note("asked")
    if os.path.exists(os.environ["SHOP_LEDGER"] + ".down"):
        raise ConnectionError("the bank is closed")
    return number


@shared_task
def step(before: int = 0, name: str = "", dies: str = "") -> int:
    note(f"{name} {before}")
    return before + 1


@shared_task
def total(values: list[int], name: str = "", dies: str = "") -> int:
    note(f"{name} of {len(values)}")
    return sum(values)


@shared_task(bind=True, max_retries=1)
def twice(self: Any, name: str, dies: str = "") -> int:
    note(f"{name} {self.request.retries}")
    if not self.request.retries:
        raise self.retry(countdown=0)
    return 0


@shared_task(bind=True)
def become(self: Any, name: str, dies: str = "") -> Any:
    note(f"{name} before")
    return self.replace(step.s(name=f"{name} after"))


@shared_task
def break_down(name: str, dies: str = "") -> None:
    note(f"{name} breaks")
    raise LookupError(name)


@shared_task(graft_unique="account")
def settle(account: str, number: int) -> str:
    note(f"{account} {number}")
    time.sleep(1)
    return f"{account} {number}"


@shared_task(graft_unique="customer")
def misnamed(account: str = "a") -> None: ...


@shared_task(bind=True, max_retries=3)
def tries(self: Any, text: str) -> str:
    note("tries")
    if self.request.retries < 2:
        raise self.retry(countdown=0.5)
    return "done"


@shared_task
def write_all(values: Any) -> Any:
    return values


@shared_task(bind=True, max_retries=3)
def slow_to_try(self: Any) -> str:
    note("slow_to_try")
    if not self.request.retries:
        raise self.retry(countdown=3)
    return "done"
