"""Requests made from the OpenAPI document, by schemathesis: whatever they hold, the server never fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.server.serving import Running, running, tiny_engine

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
LENGTHS = ("max_tokens", "max_new_tokens", "max_completion_tokens")


@pytest.fixture(scope="module")
def limited() -> Iterator[Running]:
    """A branch gets few tokens, so that many requests are tried."""
    with running(tiny_engine, max_branches=8) as server:
        yield server


def made_cheap(body: Any) -> None:
    """Hundreds of tokens of a nonsense prompt prove no more than three, and take their time."""
    if not isinstance(body, dict):
        return
    for name in ("model", "adapter"):
        if isinstance(body.get(name), str):
            del body[name]  # a made-up name gets no further than 404
    given_lengths = [name for name in LENGTHS if name in body]
    for name in given_lengths:
        if type(body[name]) is int and body[name] > 3:
            body[name] = 3
    if not given_lengths:
        body["max_tokens"] = 3


def try_requests(operation: Any, mode: GenerationMode, examples: int) -> set[int]:
    """Statuses that an operation answered with."""
    seen: set[int] = set()

    @settings(
        max_examples=examples,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        made_cheap(case.body)
        seen.add(case.call_and_validate(checks=CHECKS, timeout=300).status_code)

    try:
        ask()
    except (ExceptionGroup, FailureGroup) as failures:
        raise AssertionError(f"{operation.label}: {failures.exceptions}") from failures
    except Unsatisfiable:
        pass  # without a parameter or body it cannot be called wrongly
    return seen


def check(server: Running, examples: int) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    seen = {
        operation.label: set().union(*(try_requests(operation, mode, examples) for mode in GenerationMode))
        for operation in operations
    }
    assert len(seen) == 13
    posts = [statuses for label, statuses in seen.items() if label.startswith("POST")]
    assert len(posts) == 5
    assert all(400 in statuses for statuses in posts), "bad requests were tried"
    assert any(200 in statuses for statuses in posts), "good requests were tried"
    assert server.service.health == "ready"
    server.wait_until(server.idle, "nothing is left running")


def test_no_request_makes_the_server_fail(limited: Running) -> None:
    check(limited, 6)


@pytest.mark.slow
def test_no_request_of_many_makes_the_server_fail(limited: Running) -> None:
    check(limited, 500)
