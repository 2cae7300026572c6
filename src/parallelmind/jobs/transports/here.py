"""No transport at all: the work is done in the process of the coordinator."""

from __future__ import annotations

from collections.abc import Callable

from parallelmind.jobs.coordinator import Coordinator
from parallelmind.jobs.messages import Ask, Finished, FromWorker, Idle, Load, Rest, Stop, ToWorker
from parallelmind.jobs.opening import OpenJob
from parallelmind.jobs.task import WorkerInfo
from parallelmind.jobs.worker import Worker


def work_here(job: OpenJob, coordinator: Coordinator, on_poll: Callable[[], None]) -> None:
    """Bring every record to its result; `on_poll` is called often.

    Raises:
        ParallelMindError: the model cannot be loaded, or the disk is full; what was done is kept.
    """
    wanted: int | None = None
    is_loaded = False

    def receive() -> ToWorker:
        nonlocal wanted, is_loaded
        if not is_loaded:
            is_loaded = True
            return Load()
        if wanted is not None and (records := coordinator.lease(0, wanted)):
            wanted = None
            return records
        return Stop() if coordinator.is_over else Rest()

    def send(message: FromWorker) -> None:
        nonlocal wanted
        if isinstance(message, Finished):
            coordinator.accept(0, message)
            job.ledger.commit()
        elif isinstance(message, Ask | Idle):
            wanted = message.wanted
        on_poll()

    try:
        Worker(job.task, WorkerInfo(), receive=receive, send=send, in_time=False).run()
    finally:
        coordinator.close()
