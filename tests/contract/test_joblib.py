"""joblib: loky is the reference."""

from __future__ import annotations

import multiprocessing
import os
import threading

import joblib
import pytest
from joblib import Parallel, delayed, parallel_config
from joblib.parallel import AutoBatchingMixin

from graft.compat import call_report
from graft.compat.joblib_backend import CeleryBackend
from graft.compat.pool import register_joblib
from graft.tasks.errors import RemoteTraceback, UnreferenceableError
from tests import samples
from tests.conftest import LANES
from tests.contract import functions

CELERY = pytest.param("celery", marks=pytest.mark.worker)


@pytest.fixture(params=["loky", CELERY])
def backend(request):
    if request.param == "celery":
        request.getfixturevalue("stack").heal(LANES)
        register_joblib()
    return request.param


@pytest.fixture
def celery(stack):
    register_joblib()
    return "celery"


@pytest.mark.parametrize("n_jobs", [1, 2, -1])
def test_values_come_in_order(backend, n_jobs):
    jobs = (delayed(samples.square)(i) for i in range(300))
    assert Parallel(n_jobs=n_jobs, backend=backend)(jobs) == [i * i for i in range(300)]


def test_nothing_to_do(backend):
    assert Parallel(n_jobs=2, backend=backend)([]) == []


def test_keywords_and_functions_of_all_kinds(backend):
    jobs = [delayed(functions.arguments)(1, x=2), delayed(lambda x: x + 1)(1), delayed(pow)(2, 3)]
    assert Parallel(n_jobs=2, backend=backend)(jobs) == [((1,), {"x": 2}), 2, 8]


def test_the_first_error_is_raised(backend):
    with pytest.raises(ValueError, match="is odd"):
        Parallel(n_jobs=2, backend=backend)(delayed(samples.raise_value_error_if_odd)(i) for i in range(100))
    assert Parallel(n_jobs=2, backend=backend)([delayed(samples.square)(3)]) == [9]


@pytest.mark.parametrize("kind", ["generator", "generator_unordered"])
def test_values_as_a_generator(backend, kind):
    values = Parallel(n_jobs=2, backend=backend, return_as=kind)(delayed(samples.square)(i) for i in range(50))
    assert sorted(values) == [i * i for i in range(50)]


def test_a_timeout(backend):
    with pytest.raises(multiprocessing.TimeoutError):
        Parallel(n_jobs=2, backend=backend, timeout=0.05)(delayed(samples.pause)(i, 1) for i in range(2))


def test_what_was_given_up_after_a_timeout_keeps_nobody_waiting(backend, tmp_path):
    """On workers the next Parallel waited until it had ended."""
    ledger = str(tmp_path / "ledger")
    with pytest.raises((TimeoutError, multiprocessing.TimeoutError)):
        Parallel(n_jobs=2, backend=backend, timeout=1)(
            delayed(functions.sleep_and_note)(20.0, ledger) for _ in range(2)
        )
    assert Parallel(n_jobs=2, backend=backend)(delayed(pow)(n, 2) for n in range(4)) == [0, 1, 4, 9]
    assert not os.path.exists(ledger)


def test_one_instance_for_several_calls(backend):
    with Parallel(n_jobs=2, backend=backend) as parallel:
        for _ in range(3):
            assert parallel(delayed(samples.square)(i) for i in range(20)) == [i * i for i in range(20)]


def test_zero_jobs_mean_nothing(backend):
    with pytest.raises(ValueError, match="n_jobs == 0"):
        Parallel(n_jobs=0, backend=backend)([delayed(samples.square)(1)])


def test_it_runs_on_workers(celery):
    found = Parallel(n_jobs=2, backend=celery)(delayed(samples.process_id)() for _ in range(20))
    assert os.getpid() not in found


def test_all_slots_are_the_live_workers(celery):
    with parallel_config(backend=celery):
        assert joblib.effective_n_jobs(-1) >= LANES["cpu"]


def test_batches_grow(celery):
    assert issubclass(CeleryBackend, AutoBatchingMixin)
    call_report.calls().clear()
    Parallel(n_jobs=2, backend=celery)(delayed(samples.square)(i) for i in range(2_000))
    (row,) = [row for row in call_report.calls().rows() if row.call == "joblib.Parallel"]
    assert (row.call, row.func, row.where) == ("joblib.Parallel", "tests.samples:square", "cluster")
    assert row.calls < 1_000


def test_an_error_carries_the_remote_traceback(celery):
    with pytest.raises(ValueError, match="no 1") as caught:
        Parallel(n_jobs=2, backend=celery)([delayed(samples.raise_value_error)(1)])
    assert isinstance(caught.value.__cause__, RemoteTraceback)


def test_what_cannot_travel_stays(celery):
    seen, lock = [], threading.Lock()
    call_report.calls().clear()
    Parallel(n_jobs=2, backend=celery)(delayed(seen.append)(i) for i in range(10))
    assert sorted(seen) == list(range(10))
    assert Parallel(n_jobs=2, backend=celery)([delayed(samples.identity)(lock)] * 2) == [lock, lock]
    assert {row.where for row in call_report.calls().rows()} == {"local"}
    with pytest.raises(UnreferenceableError):
        Parallel(n_jobs=2, backend=celery, place="cluster")([delayed(threading.Lock().acquire)()])


def test_options_are_the_executors(celery):
    with parallel_config(backend=celery, queue="heavy", priority=2):
        assert Parallel(n_jobs=2)([delayed(samples.square)(3)]) == [9]
    with parallel_config(backend=celery, place="local"):
        assert Parallel(n_jobs=2)([delayed(samples.process_id)()]) == [os.getpid()]


def test_nested_calls_run_in_place(celery):
    found = Parallel(n_jobs=2, backend=celery)(delayed(functions.nested_joblib)(i) for i in range(3))
    assert found == [[i, i + 1] for i in range(3)]
