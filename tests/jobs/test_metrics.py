"""The Prometheus port of a job, scraped."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client")

from parallelmind.errors import SettingsError
from parallelmind.jobs.metrics import serve_metrics
from parallelmind.jobs.options import RunOptions
from parallelmind.jobs.run import run_job
from parallelmind.jobs.statistics import JobStatistics, WorkerStatistics
from tests.jobs.tasks import Records, write_input


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def scrape(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def test_every_scrape_shows_the_numbers_of_that_moment() -> None:
    worker = WorkerStatistics(
        processed=5, successful=4, errors=1, tokens_in=70, tokens_out=30, retries=2, mean_seconds=1.0
    )
    now = JobStatistics(
        **vars(worker),
        records=9,
        seconds=2.0,
        records_in_this_run=5,
        seconds_percentiles={"p50": 0.5, "p99": 2.5},
        errors_by_class={"http_500": 1},
        workers={0: worker},
    )
    shown = [now]
    port = free_port()
    stop = serve_metrics(port, lambda: shown[0])
    try:
        assert scrape(port) == {
            "parallelmind_job_records": 9,
            'parallelmind_job_results_total{success="true",worker="0"}': 4,
            'parallelmind_job_results_total{success="false",worker="0"}': 1,
            'parallelmind_job_tokens_total{direction="in"}': 70,
            'parallelmind_job_tokens_total{direction="out"}': 30,
            'parallelmind_job_errors_total{class="http_500"}': 1,
            'parallelmind_job_record_seconds{percentile="p50"}': 0.5,
            'parallelmind_job_record_seconds{percentile="p99"}': 2.5,
            "parallelmind_job_retries_total": 2,
        }
        shown[0] = JobStatistics(**vars(now) | {"records": 10})
        assert scrape(port)["parallelmind_job_records"] == 10
    finally:
        stop()
    with pytest.raises(urllib.error.URLError):
        scrape(port)


def test_a_running_job_can_be_scraped_until_it_ends(tmp_path: Path) -> None:
    data = write_input(tmp_path / "in.jsonl", ({"n": n} for n in range(4)))
    port = free_port()
    found: list[dict[str, float]] = []

    class Scraping(Records):
        def _finish(self, batch: list[Any], write: Any) -> None:
            found.append(scrape(port))
            super()._finish(batch, write)

    run_job(Scraping(data, tmp_path / "out.jsonl"), RunOptions(prometheus_port=port))
    assert [metrics["parallelmind_job_records"] for metrics in found] == [4] * 5
    with pytest.raises(urllib.error.URLError):
        scrape(port)
    assert len([json.loads(row) for row in (tmp_path / "out.jsonl").read_text().splitlines()]) == 4


def test_a_port_in_use_is_an_error_that_names_the_flag() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"--prometheus_port {port} cannot be used \(Address already in use\)"):
            serve_metrics(port, lambda: pytest.fail("asked"))
