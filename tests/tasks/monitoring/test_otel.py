"""One trace from the caller to each item, received as a collector of OpenTelemetry would."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.stack import run_python, wait_until

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")

CALLER = """
import graft
from opentelemetry import trace
from graft.tasks.monitoring import otel
from tests import samples

otel.is_on()
with otel._tracer().start_as_current_span("the caller"):
    graft.submit(samples.square, range(4), batch_size=2).collect(timeout=60)
with otel._tracer().start_as_current_span("an async caller"):
    graft.submit(samples.async_square, range(2)).collect(timeout=60)
"""


class Collector:
    """Keeps the spans that are sent to it."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in resource.scope_spans:
                        spans.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def named(self, name: str) -> list[Any]:
        return [span for span in list(self.spans) if span.name == name]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def test_caller_envelopes_and_items_are_one_trace(fresh_stack, collector):
    quick = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}
    stack = fresh_stack(cpu=1, GRAFT_TRACING="true", **quick)
    done = run_python(stack, CALLER, 90)
    assert done.returncode == 0, done.stderr
    wait_until(lambda: len(collector.named("tests.samples:square")) == 4, 60, "a span for each item")
    wait_until(lambda: collector.named("the caller") and len(collector.named("graft.batch")) >= 3, 60, "those above")

    (caller,) = collector.named("the caller")
    wait_until(lambda: len(collector.named("tests.samples:async_square")) == 2, 60, "coroutines have theirs")
    (other,) = collector.named("an async caller")
    assert {span.trace_id for span in collector.named("tests.samples:async_square")} == {other.trace_id}

    (submit,) = [span for span in collector.named("graft.submit") if span.trace_id == caller.trace_id]
    assert submit.parent_span_id == caller.span_id
    envelopes = [span for span in collector.named("graft.batch") if span.trace_id == caller.trace_id]
    assert {span.parent_span_id for span in envelopes} == {submit.span_id}
    items = collector.named("tests.samples:square")
    assert {span.parent_span_id for span in items} == {span.span_id for span in envelopes}
    assert {span.trace_id for span in items + envelopes} == {caller.trace_id}


def test_without_the_setting_nothing_is_sent(fresh_stack, collector):
    stack = fresh_stack(cpu=1, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="200")
    done = run_python(stack, "import graft; from tests import samples; graft.submit(samples.square, [1]).collect()")
    assert done.returncode == 0, done.stderr
    stack.worker.stop()
    assert collector.spans == []
