"""A Prometheus port that shows a running job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from parallelmind.errors import SettingsError
from parallelmind.jobs.results import OTHER_COUNTS
from parallelmind.jobs.statistics import JobStatistics


class _Collector:
    """Asked by prometheus_client at every scrape."""

    def __init__(self, current: Callable[[], JobStatistics]) -> None:
        self._current = current

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        statistics = self._current()
        yield GaugeMetricFamily("parallelmind_job_records", "Records of the job", value=statistics.records)
        results = CounterMetricFamily(
            "parallelmind_job_results", "Records with a result, by worker and success", labels=["worker", "success"]
        )
        tokens = CounterMetricFamily("parallelmind_job_tokens", "Tokens read and written", labels=["direction"])
        for rank, worker in statistics.workers.items():
            results.add_metric([str(rank), "true"], worker.successful)
            results.add_metric([str(rank), "false"], worker.errors)
        tokens.add_metric(["in"], statistics.tokens_in)
        tokens.add_metric(["out"], statistics.tokens_out)
        errors = CounterMetricFamily("parallelmind_job_errors", "Failed records by class of error", labels=["class"])
        for name, count in statistics.errors_by_class.items():
            errors.add_metric([name], count)
        seconds = GaugeMetricFamily("parallelmind_job_record_seconds", "Seconds a record took", labels=["percentile"])
        for name, value in statistics.seconds_percentiles.items():
            seconds.add_metric([name], value)
        yield from (results, tokens, errors, seconds)
        for name, text in OTHER_COUNTS.items():
            yield CounterMetricFamily(f"parallelmind_job_{name}", text, value=getattr(statistics, name))


def serve_metrics(port: int, current: Callable[[], JobStatistics]) -> Callable[[], None]:
    """Serve the metrics on 127.0.0.1 until the returned function is called.

    Raises:
        SettingsError: prometheus_client is not installed, or the port cannot be used.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError:
        raise SettingsError(
            "--prometheus_port needs prometheus_client; install it with pip install 'parallelmind[api]'."
        ) from None
    registry = CollectorRegistry()
    registry.register(_Collector(current))
    try:
        server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError as error:
        raise SettingsError(f"--prometheus_port {port} cannot be used ({error.strerror}); choose another.") from error

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
