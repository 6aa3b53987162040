"""The Prometheus metrics of the whole deployment, read from Redis whenever somebody asks. No worker is asked."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import redis
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from graft.config import keys
from graft.config.redis_client import broker, server_time, shared
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.durable import feeder_lease
from graft.tasks.health import beat_ticks, measure, report_store
from graft.tasks.health.measurements import Queue
from graft.tasks.health.verdicts import ORDER, HealthReport
from graft.tasks.leaks import findings
from graft.tasks.monitoring import function_stats, worker_load
from graft.tasks.monitoring.worker_registry import WorkerBeat
from graft.tasks.shared import channel, limit_states, pipeline_figures
from graft.tasks.shared.limit_states import LimitState

logger = logging.getLogger(__name__)


class DeploymentCollector(Collector):
    """The deployment as metrics. While Redis does not answer, ``graft_up`` is 0 and there is no other metric."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            try:
                found = [*_everything(shared())]
                up = 1.0
            except (redis.RedisError, OSError) as error:
                logger.warning("Redis does not answer: %s", error)
                found, up = [], 0.0
        return [GaugeMetricFamily("graft_up", "Whether Redis answered", value=up), *found]


def _everything(client: Any) -> Iterator[Metric]:
    now = server_time(client)
    alive, beats = measure.workers(client, now)
    with broker() as queue_side:
        queues = measure.queues(queue_side, client, beats, now, remember=False)
        held = int(queue_side.hlen(keys.UNACKED))
    yield from _queues(queues, held)
    yield from _workers(beats, {worker.name: worker.silent for worker in alive})
    yield from _scaling(worker_load.loads({queue.name: queue.waiting for queue in queues}, beats, held))
    yield from _callables()
    yield from _channels(client)
    yield from _limits(limit_states.read(client))
    yield from _verdicts(report_store.last(client))
    yield _gauge("graft_dead_letters", "Dead letters kept", dead_letters.count())
    count, silent = feeder_lease.unfed(client, now)
    yield _gauge("graft_durable_batches_open", "Durable batches that are to be fed", count)
    yield _gauge("graft_durable_batches_unfed_seconds", "Time for which nobody has fed them", silent)
    silence = beat_ticks.silence(client, now)
    if silence is not None:
        yield _gauge("graft_beat_silence_seconds", "Time since Beat last sent a task", silence)
    growing = GaugeMetricFamily(
        "graft_leak_growth_per_hour", "Growth that the leak checks find", labels=["subject", "measure", "verdict"]
    )  # fmt: skip
    for finding in findings.read(client):
        growing.add_metric([finding.subject, finding.measure, finding.verdict], finding.per_hour)
    yield growing


def _queues(queues: Iterable[Queue], held: int) -> Iterator[Metric]:
    waits = GaugeMetricFamily("graft_queue_messages", "Messages waiting, all priorities", labels=["queue"])
    later = GaugeMetricFamily("graft_queue_later_messages", "Messages whose time has not come", labels=["queue"])
    age = GaugeMetricFamily("graft_queue_oldest_message_age_seconds", "Age of the oldest message", labels=["queue"])
    readers = GaugeMetricFamily("graft_queue_workers", "Live workers that read the queue", labels=["queue"])
    trip = GaugeMetricFamily("graft_queue_round_trip_seconds", "Round trip of the last canary", labels=["queue"])
    paused = GaugeMetricFamily("graft_queue_paused", "1 while the queue is paused", labels=["queue"])
    for queue in queues:
        waits.add_metric([queue.name], queue.waiting)
        later.add_metric([queue.name], queue.later)
        age.add_metric([queue.name], queue.oldest or 0.0)
        readers.add_metric([queue.name], queue.readers)
        paused.add_metric([queue.name], float(queue.is_paused))
        if queue.round_trip is not None:
            trip.add_metric([queue.name], queue.round_trip)
    yield from (waits, later, age, readers, trip, paused)
    yield _gauge("graft_unacknowledged_messages", "Messages fetched by workers and not acknowledged", held)


def _workers(beats: Iterable[WorkerBeat], silent: dict[str, float]) -> Iterator[Metric]:
    slots = GaugeMetricFamily("graft_cluster_slots", "Slots in the worker's pool", labels=["worker"])
    busy = GaugeMetricFamily("graft_cluster_running_tasks", "Task messages that it runs", labels=["worker"])
    ahead = GaugeMetricFamily("graft_cluster_prefetched_tasks", "Task messages it has fetched ahead", labels=["worker"])
    memory = GaugeMetricFamily(
        "graft_cluster_resident_memory_bytes", "Memory of its processes, shared pages for each", labels=["worker"]
    )  # fmt: skip
    heard = GaugeMetricFamily("graft_cluster_heartbeat_age_seconds", "Time since its last heartbeat", labels=["worker"])
    lag = GaugeMetricFamily("graft_cluster_event_loop_lag_seconds", "Delay of its event loop", labels=["worker"])
    for beat in beats:
        slots.add_metric([beat.name], beat.processes)
        busy.add_metric([beat.name], beat.busy)
        ahead.add_metric([beat.name], beat.waiting)
        memory.add_metric([beat.name], beat.memory)
        lag.add_metric([beat.name], beat.lag)
    for name, seconds in silent.items():
        heard.add_metric([name], seconds)
    yield from (slots, busy, ahead, memory, heard, lag)


def _scaling(loads: Iterable[worker_load.Load]) -> Iterator[Metric]:
    demand = GaugeMetricFamily(
        "graft_scaling_demand_messages", "Messages waiting, fetched or running", labels=["lane"]
    )  # fmt: skip
    slots = GaugeMetricFamily("graft_scaling_slots", "Slots of all workers", labels=["lane"])
    ratio = GaugeMetricFamily(
        "graft_scaling_demand_per_slot", "Demand divided by slots: at 1 there are exactly enough", labels=["lane"]
    )
    for load in loads:
        demand.add_metric([load.lane], load.demand)
        slots.add_metric([load.lane], load.slots)
        ratio.add_metric([load.lane], load.per_slot)
    yield from (demand, slots, ratio)


def _callables() -> Iterator[Metric]:
    items = CounterMetricFamily("graft_items", "Items run, by callable", labels=["callable"])
    errors = CounterMetricFamily("graft_item_errors", "Items that failed, retried ones included", labels=["callable"])
    retries = CounterMetricFamily("graft_item_retries", "Failed items that were retried", labels=["callable"])
    seconds = CounterMetricFamily("graft_item_busy_seconds", "Time spent in items", labels=["callable"])
    for name, totals in function_stats.read().items():
        items.add_metric([name], totals.items)
        errors.add_metric([name], totals.errors)
        retries.add_metric([name], totals.retries)
        seconds.add_metric([name], totals.seconds)
    yield from (items, errors, retries, seconds)


def _channels(client: Any) -> Iterator[Metric]:
    values = GaugeMetricFamily("graft_channel_values", "Values waiting in the named channel", labels=["channel"])
    capacity = GaugeMetricFamily("graft_channel_capacity", "Values that it holds at most", labels=["channel"])
    ends = GaugeMetricFamily("graft_channel_ends", "Living ends of it, by side", labels=["channel", "side"])
    for state in channel.channels(client):
        values.add_metric([state.name], state.waiting)
        capacity.add_metric([state.name], state.capacity)
        ends.add_metric([state.name, "sender"], state.senders)
        ends.add_metric([state.name, "receiver"], state.receivers)
    items = GaugeMetricFamily(
        "graft_pipeline_items", "Items that a stage of the named pipeline has processed", labels=["pipeline", "stage"]
    )
    waits = GaugeMetricFamily(
        "graft_pipeline_waits", "How often it waited for the next stage", labels=["pipeline", "stage"]
    )
    for figures in pipeline_figures.read(client):
        for family, counts in ((items, figures.processed), (waits, figures.waits)):
            for stage, count in enumerate(counts, 1):
                family.add_metric([figures.name, str(stage)], count)
    yield from (values, capacity, ends, items, waits)


def _limits(limits: Iterable[LimitState]) -> Iterator[Metric]:
    """A series for each limit, not for each of its keys: a tenant's name is in none."""
    admitted = CounterMetricFamily("graft_limit_admitted_items", "Items that the limit let begin", labels=["limit"])
    postponed = CounterMetricFamily(
        "graft_limit_postponed_items", "Items that it sent back for later, each time", labels=["limit", "kind"]
    )
    openings = CounterMetricFamily("graft_limit_breaker_openings", "Times that a breaker opened", labels=["limit"])
    is_open = GaugeMetricFamily("graft_limit_breakers_open", "Breakers open or half-open, by key", labels=["limit"])
    held = GaugeMetricFamily("graft_limit_permits_held", "Permits that are out", labels=["limit"])
    waiting = GaugeMetricFamily("graft_limit_waiting", "Items or envelopes in line", labels=["limit"])
    for limit in limits:
        admitted.add_metric([limit.name], limit.admitted)
        for kind, number in limit.postponed.items():
            postponed.add_metric([limit.name, kind], number)
        openings.add_metric([limit.name], limit.openings)
        is_open.add_metric([limit.name], len(limit.open))
        held.add_metric([limit.name], limit.held)
        waiting.add_metric([limit.name], limit.waiting)
    yield from (admitted, postponed, openings, is_open, held, waiting)


def _verdicts(report: HealthReport | None) -> Iterator[Metric]:
    if report is None:
        return
    yield _gauge("graft_health_last_check_timestamp_seconds", "Time of Beat's last health check", report.at)
    yield _gauge("graft_health_state", "Overall: 0 ok, 1 degraded, 2 failing", ORDER.index(report.state))
    state = GaugeMetricFamily("graft_health_check_state", "0 ok, 1 degraded, 2 failing", labels=["check", "subject"])
    value = GaugeMetricFamily(
        "graft_health_check_value", "Value that the check measured", labels=["check", "subject", "unit"]
    )
    limit = GaugeMetricFamily("graft_health_check_limit", "Limit of the check", labels=["check", "subject", "unit"])
    for verdict in report.verdicts:
        state.add_metric([verdict.check, verdict.subject], ORDER.index(verdict.state))
        if verdict.value is not None:
            value.add_metric([verdict.check, verdict.subject, verdict.unit], verdict.value)
        if verdict.limit is not None:
            limit.add_metric([verdict.check, verdict.subject, verdict.unit], verdict.limit)
    yield from (state, value, limit)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)
