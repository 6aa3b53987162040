"""The async patterns of the Rust chapter, as Python: local by default, cluster-wide by ``name=``.

streams, buffering, futures_unordered, generators
                                          elements one at a time, several at once, as they complete
limits, rates, fair_semaphore             semaphore, connection pool, rate limiter
retry, breaker, timeouts                  what to do with failures
channels, channel_ends, pipelines         bounded queues, and stages joined by them
remote, fan_out                           calls on the workers; chunks, keys, batches
debounce, cache                           debounce, throttle; one computation per key
"""

from __future__ import annotations

from graft.compat.async_patterns.breaker import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitError,
    CircuitOpenError,
    CircuitState,
)
from graft.compat.async_patterns.cache import AsyncCache
from graft.compat.async_patterns.channel_ends import ChannelClosedError
from graft.compat.async_patterns.channels import Receiver, Sender, channel
from graft.compat.async_patterns.debounce import debounce, throttle
from graft.compat.async_patterns.fan_out import batch_process, fan_out_fan_in, map_reduce, word_count
from graft.compat.async_patterns.futures_unordered import FuturesUnordered, JoinSet
from graft.compat.async_patterns.limits import Connection, ConnectionPool, Permit, RateLimiter, Semaphore
from graft.compat.async_patterns.pipelines import BoundedPipeline, PipelineMetrics, bounded_pipeline
from graft.compat.async_patterns.remote import on_workers
from graft.compat.async_patterns.retry import (
    JitterPolicy,
    JitterStrategy,
    RetryConfig,
    is_retryable,
    retry_with_backoff,
    retry_with_jitter,
    smart_retry,
)
from graft.compat.async_patterns.streams import Stream, countdown, pages, primes
from graft.compat.async_patterns.timeouts import (
    BodyTimeoutError,
    RequestTimeoutError,
    batch_with_timeout,
    request_with_timeouts,
)

__all__ = [
    "AsyncCache",
    "BodyTimeoutError",
    "BoundedPipeline",
    "ChannelClosedError",
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitError",
    "CircuitOpenError",
    "CircuitState",
    "Connection",
    "ConnectionPool",
    "FuturesUnordered",
    "JitterPolicy",
    "JitterStrategy",
    "JoinSet",
    "Permit",
    "PipelineMetrics",
    "RateLimiter",
    "Receiver",
    "RequestTimeoutError",
    "RetryConfig",
    "Semaphore",
    "Sender",
    "Stream",
    "batch_process",
    "batch_with_timeout",
    "bounded_pipeline",
    "channel",
    "countdown",
    "debounce",
    "fan_out_fan_in",
    "is_retryable",
    "map_reduce",
    "on_workers",
    "pages",
    "primes",
    "request_with_timeouts",
    "retry_with_backoff",
    "retry_with_jitter",
    "smart_retry",
    "throttle",
    "word_count",
]
