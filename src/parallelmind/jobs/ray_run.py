"""Run a job on a Ray cluster: this process leads it and keeps all state, actors on any node do the work.

Records travel to the actors and outcomes back, so the nodes need no shared disk. What a lost actor had is given to
another; a record that takes actors down is run alone, and given up if that takes them down too.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from parallelmind.errors import JobError, ParallelMindError, SettingsError
from parallelmind.io.jsonl import JsonLine
from parallelmind.jobs.gpus import gpus_of_actor
from parallelmind.jobs.job import HEAD_PART, Job, WorkItem
from parallelmind.jobs.plan import PlanReader
from parallelmind.jobs.ray_actor import Exchange, RayWorker
from parallelmind.jobs.sharing import Share, slice_bounds, whose_next
from parallelmind.jobs.spec import Completion
from parallelmind.jobs.task import Task, WorkerInfo

_LOGGER = logging.getLogger(__name__)
_DEATHS_ALONE = 2
_FAILED_STARTS = 3
_FIRST_FEED = 2
_LARGEST_FEED = 1024


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Where the cluster is and what each worker gets of it."""

    address: str | None = None
    """Of a running cluster, such as "auto" or "ray://host:10001"; None: one on this machine, for this run."""
    workers: int = 1
    gpus_per_worker: float | None = None
    """None: one if the cluster has GPUs."""
    record_timeout: float = 600.0
    keep_apart: bool = False
    """Each worker does no more than its own slice, see `sharing`."""


@dataclass
class _Actor:
    rank: int
    handle: Any
    held: dict[int, JsonLine] = field(default_factory=dict)
    """Records it has, by number."""
    feed: int = _FIRST_FEED
    """Records it is kept supplied with."""
    alone: bool = False
    ended: bool = True
    """It was told that nothing follows."""
    failed_starts: int = 0
    """How often in a row it was lost before it was ready."""
    todo: deque[int] = field(default_factory=deque)
    """Its slice of the records."""
    taken_at: float | None = None
    ready: bool = False
    """It has loaded what it needs. Until then it gets no records: they cannot be to blame."""


def run_on_ray(
    job: Job, task: Task, options: RayOptions, *, set_up: Callable[[int], None], on_poll: Callable[[], None]
) -> Completion:
    """Work on all records of an open job that have no result, then merge.

    Raises:
        SettingsError: Ray is not installed, or the cluster cannot be reached.
        JobError: no worker can work.
    """
    try:
        import ray
    except ImportError:
        raise SettingsError("--launcher ray needs Ray; install it with pip install 'parallelmind[ray]'.") from None
    started_here = not ray.is_initialized()
    if started_here:
        _connect(ray, options)
    try:
        with contextlib.closing(_RayRun(ray, job, task, options, set_up, on_poll)) as run:
            run.work()
    finally:
        if started_here:
            ray.shutdown()
    return job.finish()


def _connect(ray: Any, options: RayOptions) -> None:
    arguments: dict[str, Any] = {"log_to_driver": True, "logging_level": logging.WARNING}
    if options.address is None:
        arguments |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(address=options.address or "local", **arguments)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise SettingsError(
            f"--ray_address {options.address}: the cluster cannot be reached ({error}); leave it out to start one here."
        ) from error


def _gpus_of_each(ray: Any, options: RayOptions) -> float:
    """GPUs that each actor asks for. Nothing is added to a cluster of this run's own; a larger one may still grow."""
    there, wanted = float(ray.cluster_resources().get("GPU", 0.0)), options.gpus_per_worker
    if options.address is not None:
        if wanted and wanted * options.workers > there:
            _LOGGER.warning(
                "%d workers with --gpus_per_worker %g need %g GPUs, the cluster has %g: some wait until it has more",
                options.workers, wanted, wanted * options.workers, there,
            )  # fmt: skip
        return wanted or min(1.0, there)
    each = gpus_of_actor(options.workers, there, gpus_per_worker=wanted)
    if wanted and each != wanted:
        _LOGGER.warning("--gpus_per_worker is %g, but %g GPUs are there: each worker gets %.2g", wanted, there, each)
    return each


class _RayRun:
    def __init__(
        self,
        ray: Any,
        job: Job,
        task: Task,
        options: RayOptions,
        set_up: Callable[[int], None],
        on_poll: Callable[[], None],
    ) -> None:
        self._ray = ray
        self._job = job
        self._task = task
        self._options = options
        self._set_up = set_up
        self._on_poll = on_poll
        self._again: deque[JsonLine] = deque()
        """Records of lost actors that were not to blame, for any actor."""
        self._suspects: deque[JsonLine] = deque()
        """Records to run alone."""
        self._deaths_alone: Counter[int] = Counter()
        self._reader = PlanReader(job.input_path, job.plan.offsets, job.plan.numbers)
        gpus = _gpus_of_each(ray, options)
        # A call that was under way when its actor died must fail and not be repeated: its records are ours to give.
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=-1, max_task_retries=0)(RayWorker)
        self._actors = [
            _Actor(rank, remote.remote(task, WorkerInfo(rank, options.workers), set_up))
            for rank in range(options.workers)
        ]
        todo = job.todo().tolist()
        for actor, (start, stop) in zip(self._actors, slice_bounds(len(todo), options.workers), strict=True):
            actor.todo.extend(todo[start:stop])
        self._begun = time.monotonic()
        self._failures: dict[int, str] = {}

    def work(self) -> None:
        calls = {self._call(actor): actor for actor in self._actors}
        while self._left():
            ready, _ = self._ray.wait(list(calls), num_returns=1, timeout=1.0)
            for reference in ready:
                actor = calls.pop(reference)
                self._receive(actor, reference)
                if actor.rank not in self._failures:
                    calls[self._call(actor)] = actor
            if not calls:
                reasons = "; ".join(dict.fromkeys(reason.rstrip(".") for reason in self._failures.values()))
                raise JobError(
                    f"{reasons}. {self._left()} records have no result yet: with that mended, the command continues "
                    "where it was."
                )
            self._on_poll()

    def close(self) -> None:
        self._reader.close()
        for actor in self._actors:
            self._ray.kill(actor.handle)

    def _left(self) -> int:
        held = sum(len(actor.held) for actor in self._actors)
        return self._unread() + len(self._again) + len(self._suspects) + held

    def _unread(self) -> int:
        return sum(len(actor.todo) for actor in self._actors)

    def _whose(self, actor: _Actor) -> deque[int] | None:
        """The slice that the actor takes from."""
        shares = [Share(len(one.todo), one.taken_at, one.rank in self._failures) for one in self._actors]
        number = whose_next(
            shares, actor.rank, now=time.monotonic(), begun=self._begun, keep_apart=self._options.keep_apart
        )
        return None if number is None else self._actors[number].todo

    def _call(self, actor: _Actor) -> Any:
        lines = self._next_lines(actor)
        actor.held.update((line.index, line) for line in lines)
        if lines:
            actor.ended = False
        last = not actor.ended and (actor.alone or not (self._again or self._whose(actor)))
        actor.ended = actor.ended or last
        return actor.handle.exchange.remote(lines, last)

    def _next_lines(self, actor: _Actor) -> list[JsonLine]:
        if not actor.ready or (actor.held and (actor.alone or actor.ended)):
            return []  # what it was told to bring to an end comes first
        actor.alone = False
        lines: list[JsonLine] = []
        fair = max(1, (self._unread() + len(self._again)) // (2 * len(self._actors)))
        while len(actor.held) + len(lines) < min(actor.feed, len(actor.held) + fair):
            if self._again:
                lines.append(self._again.popleft())
            elif todo := self._whose(actor):
                lines.append(self._read(todo.popleft()))
                now = time.monotonic()
                if all(one.taken_at is None for one in self._actors):
                    self._begun = now
                actor.taken_at = now
            else:
                break
        if not lines and not actor.held and self._suspects:
            actor.alone = True
            lines.append(self._suspects.popleft())
        return lines

    def _read(self, record: int) -> JsonLine:
        import numpy as np

        return next(iter(self._reader.read(np.array([record]))))

    def _receive(self, actor: _Actor, reference: Any) -> None:
        try:
            exchange: Exchange = self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            self._lost(actor, "was lost", str(error).splitlines()[0])
            return
        actor.ready = exchange.ready
        for record, outcome in exchange.finished:
            line = actor.held.pop(record, None)
            if line is None:
                continue  # it was out of reach for a while, and others have its records
            self._job.write(WorkItem(line=line), outcome, part=actor.rank + 1)
        if exchange.error is not None:
            self._failed(actor, exchange.error)
        elif exchange.starved:
            actor.feed = min(2 * actor.feed, _LARGEST_FEED)
        if self._options.record_timeout and exchange.silent_for > self._options.record_timeout:
            self._ray.kill(actor.handle, no_restart=False)
            reason = f"made no progress for {exchange.silent_for:.0f} seconds (--record_timeout) and was ended"
            self._lost(actor, reason, "", error_class="Timeout")

    def _failed(self, actor: _Actor, error: BaseException) -> None:
        if not isinstance(error, ParallelMindError):
            _LOGGER.warning("worker %d failed (%s: %s)", actor.rank, type(error).__name__, error)
        self._failures[actor.rank] = str(error) or type(error).__name__
        self._again.extend(actor.held.values())
        actor.held.clear()
        self._ray.kill(actor.handle)

    def _lost(self, actor: _Actor, reason: str, detail: str, error_class: str = "WorkerDied") -> None:
        if actor.ready:
            told = f" ({detail})" if detail else ""
            _LOGGER.warning("worker %d %s%s; Ray starts a new one", actor.rank, reason, told)
        actor.failed_starts = 0 if actor.ready else actor.failed_starts + 1
        held, actor.held = list(actor.held.values()), {}
        if actor.alone and held:
            [line] = held
            self._deaths_alone[line.index] += 1
            if self._deaths_alone[line.index] >= _DEATHS_ALONE:
                text = f"line {line.number}: the worker {reason} each time it ran this record, with no other."
                item = WorkItem(line=line)
                self._job.write(item, self._task.failure(item, text, error_class), part=HEAD_PART)
                held = []
        self._suspects.extend(held)
        actor.alone, actor.ended, actor.feed, actor.ready = False, True, _FIRST_FEED, False
        if actor.failed_starts >= _FAILED_STARTS:
            self._failures[actor.rank] = f"worker {actor.rank} {reason} {_FAILED_STARTS} times before it could begin"
