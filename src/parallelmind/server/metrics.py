"""What Prometheus can read about a server, at /metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from parallelmind.server.engine_thread import EngineLoad

_LATENCIES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300)


class Metrics:
    """Counters of one server; a registry of its own, so that two servers in a process do not mix.

    Args:
        load: the engine's load at present, and the number of requests in flight.
    """

    def __init__(self, load: Callable[[], tuple[EngineLoad, int]]):
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "parallelmind_requests", "Requests by endpoint and status", ["endpoint", "status"], registry=self.registry
        )
        self.branches = Counter(
            "parallelmind_branches", "Branches that ended, by finish reason", ["finish_reason"], registry=self.registry
        )
        self.errors = Counter(
            "parallelmind_branch_errors", "Branches that failed, by class", ["kind"], registry=self.registry
        )
        self.cancelled_requests = Counter(
            "parallelmind_cancelled_requests",
            "Requests ended early: the client was gone, did not read, asked for it, or the server stopped",
            ["reason"],
            registry=self.registry,
        )
        self.prefix_hits = Counter(
            "parallelmind_prefix_cache_hits",
            "Requests whose main was cached, wholly or in part",
            registry=self.registry,
        )
        self.prefix_queries = Counter(
            "parallelmind_prefix_cache_queries", "Requests that have a main", registry=self.registry
        )
        self.time_to_first_token = Histogram(
            "parallelmind_time_to_first_token_seconds",
            "From the arrival of a request to its first token",
            buckets=_LATENCIES,
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "parallelmind_request_seconds",
            "From the arrival of a request to its last token",
            buckets=_LATENCIES,
            registry=self.registry,
        )
        self.registry.register(_EngineCollector(load))

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    """Numbers the engine keeps anyway, read when asked for."""

    def __init__(self, load: Callable[[], tuple[EngineLoad, int]]):
        self._load = load

    def collect(self) -> Iterator[Metric]:
        load, requests = self._load()
        yield GaugeMetricFamily("parallelmind_requests_in_flight", "Requests not answered yet", requests)
        yield GaugeMetricFamily("parallelmind_branches_running", "Branches that decode", load.running_branches)
        yield GaugeMetricFamily("parallelmind_branches_waiting", "Branches in the queue", load.waiting_branches)
        yield GaugeMetricFamily("parallelmind_kv_cache_bytes", "Memory of keys and values", load.kv_cache_bytes)
        yield CounterMetricFamily("parallelmind_generated_tokens", "Tokens generated", load.generated_tokens)
        yield CounterMetricFamily(
            "parallelmind_prompt_tokens", "Tokens of mains and prompts computed", load.prompt_tokens
        )
        yield CounterMetricFamily(
            "parallelmind_prefix_cache_tokens", "Tokens of mains taken from the prefix cache", load.cached_main_tokens
        )
        yield CounterMetricFamily("parallelmind_forwards", "Forwards of the model", load.forwards)
