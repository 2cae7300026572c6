"""Places, memory for bodies and threads are shared out between clients."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import pytest

from parallelmind.server.admission import Admission, Ticket
from parallelmind.server.clients import client_of
from parallelmind.server.lanes import Lane
from parallelmind.server.problems import ApiError


def come(admission: Admission, client: str, branches: int) -> Ticket:
    ticket = admission.ticket(client)
    ticket.ask(branches)
    ticket.is_running = True
    return ticket


def refused(admission: Admission, client: str, branches: int = 1) -> bool:
    """Whether a request is refused now; it is gone again at once."""
    found: ApiError | None = None
    try:
        ticket = admission.ticket(client)
        ticket.ask(branches)
        ticket.leave()
    except ApiError as error:
        found = error
    assert found is None or (found.status == 429 and int(found.headers["Retry-After"]) >= 1)
    return found is not None


def test_one_client_has_all_places_while_nobody_else_wants_them() -> None:
    admission = Admission(100, 1000)
    for _ in range(10):
        come(admission, "many", 10)
    assert admission.branches == 100
    assert refused(admission, "many")


def test_who_has_little_is_let_in_where_another_has_taken_all_places() -> None:
    admission = Admission(100, 1000)
    come(admission, "many", 100)
    few = [come(admission, "few", 10) for _ in range(5)]
    assert refused(admission, "few"), "half of the places is its share"
    assert refused(admission, "many")
    for _ in range(10):
        admission.branch_ended(few[0])
    assert not refused(admission, "few", 10)
    assert refused(admission, "many")
    come(admission, "third", 33)
    assert refused(admission, "few"), "a third is its share now"


def test_places_are_bounded_however_many_clients_there_are() -> None:
    admission = Admission(100, 1000)
    for number in range(1000):
        if not refused(admission, f"client {number}", 50):
            come(admission, f"client {number}", 50)
    assert 100 <= admission.branches <= 2 * 100 + 50


def test_a_request_larger_than_all_places_runs_alone() -> None:
    admission = Admission(10, 1000)
    ticket = come(admission, "a", 50)
    assert refused(admission, "a")
    for _ in range(50):
        admission.branch_ended(ticket)
    assert admission.branches == 0
    assert not refused(admission, "a", 50)


def test_what_is_asked_for_and_not_used_is_given_back() -> None:
    admission = Admission(10, 2**20)
    ticket = admission.ticket("a")
    assert admission.branches == 0, "a body that is still to come has no place"
    ticket.ask(7)
    ticket.hold(2**19)
    assert refused(admission, "a", 4)
    ticket.ask(2)
    assert not refused(admission, "a", 8)
    ticket.leave()
    assert admission.branches == admission.body_bytes == 0


def test_who_is_gone_takes_no_places_any_more() -> None:
    """A thread may still parse the body, and come to know how many branches it has."""
    admission = Admission(10, 2**20)
    ticket = admission.ticket("a")
    ticket.leave()
    ticket.ask(7)
    assert admission.branches == 0


def test_bodies_of_one_client_leave_memory_for_those_of_others() -> None:
    admission = Admission(1000, 2**20)
    for _ in range(8):
        admission.ticket("many").hold(2**20)
    with pytest.raises(ApiError, match="bytes of requests"):
        admission.ticket("many").hold(2**20)
    for _ in range(4):
        admission.ticket("few").hold(2**20)
    assert admission.body_bytes <= 16 * 2**20
    for _ in range(100):
        admission.ticket("many").hold(1000)  # small ones are always read


@pytest.mark.parametrize(
    ("host", "client"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.1"),
        ("testclient", "testclient"),
    ],
)
def test_an_address_is_a_client(host: str, client: str) -> None:
    assert client_of({"client": (host, 1)}) == client
    assert client_of({"client": None}) == client_of({}) == ""


def test_a_lane_takes_clients_by_turns_and_leaves_out_what_nobody_waits_for() -> None:
    lane, begun, go_on, done = Lane("test"), threading.Event(), threading.Event(), list[str]()
    first = lane.submit("a", lambda: begun.set() or go_on.wait(60))
    assert begun.wait(60)
    futures = [lane.submit(client, partial(done.append, f"{client}{n}")) for client in "ab" for n in range(3)]
    futures[1].cancel()
    go_on.set()
    assert first.result(60)
    for future in (futures[0], *futures[2:]):
        future.result(60)
    assert done == ["a0", "b0", "b1", "a2", "b2"]
    lane.stop()
    assert lane.submit("a", lambda: None).cancelled()


def test_an_error_in_a_lane_is_that_of_its_job_alone() -> None:
    lane = Lane("test")

    def broken() -> Any:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        lane.submit("a", broken).result(60)
    assert lane.submit("a", lambda: 1).result(60) == 1
    lane.stop()
