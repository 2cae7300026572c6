"""Workers as actors on a Ray cluster, on whatever node Ray puts them; no shared disk is needed."""

from __future__ import annotations

import contextlib
import logging
import pickle
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from parallelmind.errors import SettingsError
from parallelmind.jobs.gpus import gpus_of_actor
from parallelmind.jobs.messages import FromWorker, ToWorker
from parallelmind.jobs.options import RunOptions
from parallelmind.jobs.quarantine import Death
from parallelmind.jobs.task import Task, WorkerInfo
from parallelmind.jobs.transports.base import Ended, Inbox, MakeTransport, Received
from parallelmind.jobs.worker import Worker

_LOGGER = logging.getLogger(__name__)
_WAIT_SECONDS = 10.0
_END_SECONDS = 10.0


def transport(task: Task, options: RunOptions) -> MakeTransport:
    """Starts `options.workers` actors.

    Raises:
        SettingsError: Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise SettingsError("--launcher ray needs Ray; install it with pip install 'parallelmind[ray]'.") from None
    return lambda inbox: RayTransport(ray, task, options, inbox)


class RayTransport:
    """Actors of a cluster that is running, or of one that is started for this run.

    Raises:
        SettingsError: the cluster cannot be reached.
    """

    def __init__(self, ray: Any, task: Task, options: RunOptions, inbox: Inbox) -> None:
        self._ray = ray
        self._task = task
        self._options = options
        self._inbox = inbox
        self._started_here = not ray.is_initialized()
        if self._started_here:
            _connect(ray, options.ray_address)
        gpus = _gpus_of_each(ray, options)
        # Of two groups of calls each is in order, and one waits for results while the other brings records.
        self._actor = ray.remote(num_cpus=1, num_gpus=gpus, concurrency_groups={"give": 1, "take": 1})(_Actor)
        self._actors: dict[int, Any] = {}
        self._listeners: list[threading.Thread] = []

    def start(self, rank: int) -> None:
        info = WorkerInfo(rank, self._options.world_size)
        actor = self._actors[rank] = self._actor.remote(self._task, info, self._options.set_up)
        listener = threading.Thread(target=self._listen, args=(rank, actor), daemon=True)
        self._listeners.append(listener)
        listener.start()

    def send(self, rank: int, message: ToWorker) -> None:
        self._actors[rank].give.options(concurrency_group="give").remote(_packed(message))

    def kill(self, rank: int) -> None:
        self._ray.kill(self._actors[rank])

    def check(self) -> None:
        """Ray watches its actors."""

    def close(self, error: str | None) -> None:
        until = time.monotonic() + (_END_SECONDS if error is None else 0.0)
        for listener in self._listeners:
            listener.join(max(0.0, until - time.monotonic()))
        for actor in self._actors.values():
            self._ray.kill(actor)
        for listener in self._listeners:
            listener.join(_END_SECONDS)
        if self._started_here:
            self._ray.shutdown()

    def _listen(self, rank: int, actor: Any) -> None:
        """Until the actor ends."""
        while True:
            try:
                messages = self._ray.get(actor.take.options(concurrency_group="take").remote())
            except self._ray.exceptions.RayError as error:
                _LOGGER.debug("worker %d was lost: %s", rank, error)
                self._inbox.put(Ended(rank, Death("was lost")))
                return
            for message in map(pickle.loads, messages):
                if isinstance(message, _Last):
                    self._inbox.put(Ended(rank, Death(message.how)))
                    return
                self._inbox.put(Received(rank, message))


class _Last(NamedTuple):
    """Nothing follows from this actor."""

    how: str


class _Actor:
    """The worker in a thread of its own: records are given to it, messages are taken from it."""

    def __init__(self, task: Task, info: WorkerInfo, set_up: Callable[[int], None]) -> None:
        set_up(info.rank)
        self._incoming: queue.SimpleQueue[ToWorker] = queue.SimpleQueue()
        self._outgoing: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._worker = Worker(task, info, receive=self._incoming.get, send=self._send)
        threading.Thread(target=self._work, daemon=True).start()

    def give(self, message: bytes) -> None:
        self._incoming.put(pickle.loads(message))

    def take(self) -> list[bytes]:
        """The messages there are, after waiting a while for one."""
        messages = []
        with contextlib.suppress(queue.Empty):
            messages.append(self._outgoing.get(timeout=_WAIT_SECONDS))
            while True:
                messages.append(self._outgoing.get_nowait())
        return messages

    def _work(self) -> None:
        how = "ended"
        try:
            self._worker.run_or_give_up()
        except BaseException as error:  # the coordinator decides
            _LOGGER.warning("the worker failed", exc_info=True)
            how = f"failed ({type(error).__name__}: {error})"
        self._send(_Last(how))

    def _send(self, message: FromWorker | _Last) -> None:
        self._outgoing.put(_packed(message))


def _packed(message: ToWorker | FromWorker | _Last) -> bytes:
    return pickle.dumps(message, pickle.HIGHEST_PROTOCOL)


def _connect(ray: Any, address: str | None) -> None:
    arguments: dict[str, Any] = {"log_to_driver": True, "logging_level": logging.WARNING}
    if address is None:
        arguments |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(address=address or "local", **arguments)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise SettingsError(
            f"--ray_address {address}: the cluster cannot be reached ({error}); leave it out to start one here."
        ) from error


def _gpus_of_each(ray: Any, options: RunOptions) -> float:
    """GPUs that each actor asks for. Nothing is added to a cluster of this run's own; a larger one may still grow."""
    there, wanted = float(ray.cluster_resources().get("GPU", 0.0)), options.gpus_per_worker
    if options.ray_address is not None:
        if wanted and wanted * options.world_size > there:
            _LOGGER.warning(
                "%d workers with --gpus_per_worker %g need %g GPUs, the cluster has %g: some wait until it has more",
                options.world_size, wanted, wanted * options.world_size, there,
            )  # fmt: skip
        return wanted or min(1.0, there)
    each = gpus_of_actor(options.world_size, there, gpus_per_worker=wanted)
    if wanted and each != wanted:
        _LOGGER.warning("--gpus_per_worker is %g, but %g GPUs are there: each worker gets %.2g", wanted, there, each)
    return each
