"""One trace from the caller to each item, with OpenTelemetry: the extra ``otel``, and ``GRAFT_TRACING=true``.

    caller's span ─ graft.submit ─► headers of each envelope ─► graft.batch (a worker) ─► a span for each item

Spans go where OpenTelemetry's own variables say (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME); a program that has
set up a provider of its own keeps it. Off, the cost is one flag that is read for each batch and each envelope.
"""

from __future__ import annotations

import functools
import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from celery import signals

from graft.config.deployment import part, settings

logger = logging.getLogger(__name__)

REMEMBERED: Final = 10_000  # Batches whose callers' spans are remembered; a stream older than that starts a trace anew.
FLUSH_MS: Final = 3000

_callers: OrderedDict[str, dict[str, str]] = OrderedDict()
_running: dict[str, Any] = {}  # Envelope id -> its span, in the process that runs it.


@cache
def is_on() -> bool:
    """Whether spans are made here."""
    if not settings().tracing:
        return False
    try:
        import opentelemetry.sdk.trace
    except ImportError:
        logger.warning("GRAFT_TRACING is set, but OpenTelemetry is missing: pip install celery-graft[otel]")
        return False
    listen()
    return bool(opentelemetry.sdk.trace)


def _make_tracer() -> Any:
    """The tracer of this process. Made at its first span: an exporter's thread would not outlive a fork."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        os.environ.setdefault("OTEL_SERVICE_NAME", "celery-graft")
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(provider)
    return trace.get_tracer("graft")


def _tracer() -> Any:
    return part(_make_tracer)


def note_caller(batch_id: str) -> None:
    """In the caller's thread: remember which span the batch belongs to."""
    if not is_on():
        return
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    with _tracer().start_as_current_span("graft.submit", attributes={"graft.batch": batch_id}):
        propagate.inject(carrier)
    _callers[batch_id] = carrier
    while len(_callers) > REMEMBERED:
        _callers.popitem(last=False)


def traced(func: Callable[..., Any], envelope_id: str, name: str, is_async: bool) -> Callable[..., Any]:
    """*func* with a span around each call, below that of the envelope; *func* itself where nothing is traced."""
    parent = _running.get(envelope_id)
    if parent is None:
        return func
    from opentelemetry import trace

    context = trace.set_span_in_context(parent)
    span = functools.partial(_tracer().start_as_current_span, name, context=context)
    if is_async:

        @functools.wraps(func)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            with span():
                return await func(*args, **kwargs)

        return call_async

    @functools.wraps(func)
    def call(*args: Any, **kwargs: Any) -> Any:
        with span():
            return func(*args, **kwargs)

    return call


@cache
def listen() -> None:
    """Follow messages out of this process, and into it."""
    signals.before_task_publish.connect(_leaving, weak=False)
    signals.task_prerun.connect(_began, weak=False)
    signals.task_postrun.connect(_ended, weak=False)
    signals.worker_process_shutdown.connect(_flush, weak=False)
    signals.worker_shutdown.connect(_flush, weak=False)


def _leaving(headers: Any = None, **_: Any) -> None:
    carrier = _callers.get((headers or {}).get("group") or "")
    if carrier:
        headers.update(carrier)


def _began(task_id: str = "", task: Any = None, **_: Any) -> None:
    from opentelemetry import propagate, trace

    request: Any = task.request
    _running[task_id] = _tracer().start_span(
        task.name,
        context=propagate.extract(request.headers or {}),
        kind=trace.SpanKind.CONSUMER,
        attributes={"messaging.message.id": task_id, "graft.worker": str(request.hostname)},
    )


def _ended(task_id: str = "", state: str | None = None, **_: Any) -> None:
    from opentelemetry import trace

    span = _running.pop(task_id, None)
    if span is not None:
        span.set_attribute("graft.state", str(state))
        if state == "FAILURE":
            span.set_status(trace.StatusCode.ERROR)
        span.end()


def _flush(**_: Any) -> None:
    """Before this process ends: pool processes end without their exit handlers, and what they hold would be lost."""
    from opentelemetry import trace

    flush = getattr(trace.get_tracer_provider(), "force_flush", None)
    if flush is not None:
        flush(FLUSH_MS)
