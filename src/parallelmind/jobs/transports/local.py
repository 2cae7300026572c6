"""Worker processes of this machine, reached through pipes."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from parallelmind.jobs.gpus import GpuShare, assign_gpus, count_gpus, shortage, visible_gpus
from parallelmind.jobs.messages import FromWorker, ToWorker
from parallelmind.jobs.options import RunOptions
from parallelmind.jobs.quarantine import Death
from parallelmind.jobs.ranks import Rank, local_place
from parallelmind.jobs.task import Task, WorkerInfo
from parallelmind.jobs.transports.base import Ended, Inbox, MakeTransport, Received
from parallelmind.jobs.worker import Worker

_LOGGER = logging.getLogger(__name__)
_END_SECONDS = 30.0
"""For workers that were told to stop: they may have much to free."""
_TERMINATE_SECONDS = 10.0
_INTERRUPT_SECONDS = 0.3
"""For all workers together, where the run failed or was interrupted: one that is stopped hears nothing."""
_POLL_SECONDS = 1.0


def transport(task: Task, options: RunOptions) -> MakeTransport:
    """Starts `options.workers` processes."""
    ranks = [Rank(rank, options.world_size) for rank in range(options.world_size)]
    assignments = assign(ranks, options)
    return lambda inbox: LocalTransport(task, assignments, options.set_up, inbox)


@dataclass(frozen=True)
class Assignment:
    """What a worker process has."""

    info: WorkerInfo
    environment: Mapping[str, str]
    """Variables that differ from those of this process."""


def assign(ranks: list[Rank], options: RunOptions) -> list[Assignment]:
    """The shares of workers of this machine, of which the log tells."""
    names = visible_gpus(os.environ, count_gpus(), total=options.total_gpus)
    found = []
    for rank in ranks:
        gpus = gpu_share(rank, options, names)
        found.append(Assignment(WorkerInfo(rank.rank, rank.world_size, gpus), _environment(rank, gpus)))
    return found


def gpu_share(rank: Rank, options: RunOptions, names: list[str]) -> GpuShare | None:
    """The worker's share of the GPUs, which the log tells; None: there are none, and nobody asked for any."""
    if not names and options.gpus_per_worker is None and options.total_gpus is None:
        return None
    place, workers = local_place(rank)
    share = assign_gpus(place, workers, names, gpus_per_worker=options.gpus_per_worker)
    if place == 0 and (
        lacking := shortage(workers, len(names), gpus_per_worker=options.gpus_per_worker, total_gpus=options.total_gpus)
    ):
        _LOGGER.warning("%s", lacking)
    _LOGGER.info("worker %d: %s", rank.rank, share)
    return share


class LocalTransport:
    """Processes with the assignments that were given, by their rank."""

    def __init__(self, task: Task, assignments: list[Assignment], set_up: Callable[[int], None], inbox: Inbox) -> None:
        self._task = task
        self._assignments = {assignment.info.rank: assignment for assignment in assignments}
        self._set_up = set_up
        self._inbox = inbox
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[int, Any] = {}
        self._senders: dict[int, Sender] = {}
        self._listeners: dict[int, threading.Thread] = {}

    def start(self, rank: int) -> None:
        assignment = self._assignments[rank]
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(self._task, assignment.info, self._set_up, theirs), daemon=True, name=f"worker {rank}"
        )
        with _environment_of(assignment.environment):
            process.start()
        theirs.close()
        self._processes[rank], self._senders[rank] = process, Sender(ours)
        self._listeners[rank] = threading.Thread(target=self._listen, args=(rank, process, ours), daemon=True)
        self._listeners[rank].start()

    def send(self, rank: int, message: ToWorker) -> None:
        self._senders[rank].send(message)

    def kill(self, rank: int) -> None:
        self._processes[rank].kill()

    def check(self) -> None:
        """The processes are watched all the time."""

    def close(self, error: str | None) -> None:
        if error is None:
            self._wait(_END_SECONDS)
        for process in self._processes.values():
            process.terminate()
        self._wait(_TERMINATE_SECONDS if error is None else _INTERRUPT_SECONDS)
        for process in self._processes.values():
            process.kill()
        self._wait(_TERMINATE_SECONDS)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        for listener in self._listeners.values():
            listener.join(max(0.0, until - time.monotonic()))

    def _listen(self, rank: int, process: Any, connection: Connection) -> None:
        """Until the process has ended; nobody else waits for it."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                if connection.poll(_POLL_SECONDS):
                    self._inbox.put(Received(rank, pickle.loads(connection.recv_bytes())))
                elif process.exitcode is not None:
                    break  # a process of its own still holds its end of the pipe
        process.join()
        connection.close()
        self._inbox.put(Ended(rank, _death(process.exitcode)))


class Sender:
    """Sends messages from a thread of its own, so that nobody waits for a process that does not read."""

    def __init__(self, connection: Connection, messages: queue.SimpleQueue[Any] | None = None) -> None:
        self._connection = connection
        self._messages = queue.SimpleQueue[Any]() if messages is None else messages
        threading.Thread(target=self._run, daemon=True).start()

    def send(self, message: Any) -> None:
        self._messages.put(message)

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # it is gone, as whoever listens to it finds
            while True:
                self._connection.send_bytes(pickle.dumps(self._messages.get(), pickle.HIGHEST_PROTOCOL))


def _work(task: Task, info: WorkerInfo, set_up: Callable[[int], None], connection: Connection) -> None:
    """The worker process: ends with exit code 0 when the run is over."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinator decides
    messages: queue.SimpleQueue[ToWorker] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, messages), daemon=True).start()
    set_up(info.rank)

    def send(message: FromWorker) -> None:
        try:
            connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))
        except OSError:
            os._exit(1)  # the coordinator is gone

    code = 0 if Worker(task, info, receive=messages.get, send=send).run_or_give_up() else 1
    # Not sys.exit: threads of a backend that hang in the network must not hold up the end.
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _receive(connection: Connection, messages: queue.SimpleQueue[ToWorker]) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            messages.put(pickle.loads(connection.recv_bytes()))
    os._exit(1)  # the coordinator is gone


def _death(exit_code: int) -> Death:
    if exit_code >= 0:
        return Death(f"ended with exit code {exit_code}")
    name = signal.Signals(-exit_code).name if -exit_code in set(signal.Signals) else f"signal {-exit_code}"
    hint = ", perhaps for lack of memory" if name == "SIGKILL" else ""
    return Death(f"was killed by {name}{hint}")


def _environment(rank: Rank, gpus: GpuShare | None) -> dict[str, str]:
    variables = dict(gpus.environment) if gpus else {}
    _, workers = local_place(rank)
    if workers > 1 and "OMP_NUM_THREADS" not in os.environ:
        # Workers that each start a thread for every core take turns on the cores and all become slower.
        variables["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
    return variables


@contextlib.contextmanager
def _environment_of(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the process that is started inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
