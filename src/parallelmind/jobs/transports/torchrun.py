"""Ranks that torchrun started: rank 0 leads, the others bring their worker to it through a socket.

Each rank watches a worker process below it, since torchrun ends all ranks when one dies. The ranks of one machine find
rank 0 through a private file that is named after their launcher, those of several machines through torchrun's own
store; both hold a key without which nobody is listened to. Records and results travel: no shared disk is needed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pickle
import secrets
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from parallelmind.errors import JobError, SettingsError
from parallelmind.jobs.messages import ToWorker
from parallelmind.jobs.options import RunOptions
from parallelmind.jobs.quarantine import Death
from parallelmind.jobs.ranks import Rank
from parallelmind.jobs.task import Task
from parallelmind.jobs.transports.base import Ended, Inbox, MakeTransport, Received
from parallelmind.jobs.transports.local import LocalTransport, Sender, assign

_POLL_SECONDS = 0.1
_LEADER_SECONDS = 3600.0
"""Rank 0 may have a large input to read before it listens."""
_END_SECONDS = 60.0
_LAST_SECONDS = 3.0
_ABANDON_SECONDS = 1.0
"""For ranks when the run failed or was interrupted."""
_STORE_SECONDS = 600
_job_numbers: Counter[Rank] = Counter()
"""All ranks run the same jobs in the same order, and number them."""


def next_job(rank: Rank) -> None:
    """Number the job that begins, on every rank and also if it fails at once: ranks of two jobs must not meet."""
    _job_numbers[rank] += 1


def transport(task: Task, options: RunOptions) -> MakeTransport:
    """The worker of this rank, which is the first, and those of the others.

    Raises:
        SettingsError: the ranks are on several machines and were not started by torchrun.
    """
    meeting = _Meeting(options.rank)
    assignments = assign([options.rank], options)

    def make(inbox: Inbox) -> TorchrunTransport:
        local = LocalTransport(task, assignments, options.set_up, inbox)
        return TorchrunTransport(local, options.rank.world_size, meeting, inbox)

    return make


def release(task: Task, options: RunOptions, error: str | None = None) -> None:
    """Tell the other ranks, if there are any, that there is nothing to do, or why the job cannot begin."""
    if options.rank.world_size > 1:
        transport(task, options)(SimpleQueue()).close(error)


class _Start(NamedTuple):
    """To another rank: start your worker."""


class _Kill(NamedTuple):
    """To another rank: end your worker at once."""


class _Forward(NamedTuple):
    """To another rank: something for your worker."""

    message: ToWorker


class _Over(NamedTuple):
    """To another rank: the job is over."""

    error: str | None


class _Left(NamedTuple):
    """From another rank: it has heard that the job is over, and its worker has ended."""


class TorchrunTransport:
    """Rank 0: a worker process of its own, and sockets to the others."""

    def __init__(self, local: LocalTransport, world_size: int, meeting: _Meeting, inbox: Inbox) -> None:
        self._local = local
        self._meeting = meeting
        self._inbox = inbox
        self._launcher = os.getppid()
        self._messages: dict[int, SimpleQueue[Any]] = {rank: SimpleQueue() for rank in range(1, world_size)}
        self._left = {rank: threading.Event() for rank in self._messages}
        self._killed: set[int] = set()
        """Ranks that were told to end their worker and have not said that it ended."""
        self._is_over = False
        self._key = secrets.token_bytes(32)
        self._server = socket.create_server((meeting.bind_to, 0))
        threading.Thread(target=self._accept, daemon=True).start()
        meeting.announce(self._server.getsockname()[1], self._key)

    def start(self, rank: int) -> None:
        if rank:
            self._messages[rank].put(_Start())
        else:
            self._local.start(0)

    def send(self, rank: int, message: ToWorker) -> None:
        if rank:
            self._messages[rank].put(_Forward(message))
        else:
            self._local.send(0, message)

    def kill(self, rank: int) -> None:
        if rank:
            self._killed.add(rank)
            self._messages[rank].put(_Kill())
        else:
            self._local.kill(0)

    def check(self) -> None:
        """Raises:
        JobError: the launcher is gone.
        """
        _check_launcher(self._launcher)

    def close(self, error: str | None) -> None:
        self._is_over = True
        for messages in self._messages.values():
            messages.put(_Over(error))
        self._local.close(error)
        now = time.monotonic()
        for rank, left in self._left.items():
            # One that does not even end its worker may stand still itself.
            seconds = _END_SECONDS if error is None and rank not in self._killed else _ABANDON_SECONDS
            left.wait(max(0.0, now + seconds - time.monotonic()))
        self._meeting.end()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connected, _ = self._server.accept()
                threading.Thread(target=self._listen, args=(_connection(connected),), daemon=True).start()

    def _listen(self, connection: Connection) -> None:
        try:
            deliver_challenge(connection, self._key)
            answer_challenge(connection, self._key)
        except (AuthenticationError, EOFError, OSError):
            connection.close()
            return
        rank: int = pickle.loads(connection.recv_bytes())
        Sender(connection, self._messages[rank])
        with contextlib.suppress(EOFError, OSError):
            while not isinstance(event := pickle.loads(connection.recv_bytes()), _Left):
                if isinstance(event, Ended):
                    self._killed.discard(rank)
                # Clocks of machines differ: the time of a sign of life is when it came here.
                self._inbox.put(Received(rank, event.message) if isinstance(event, Received) else event)
        connection.close()
        self._left[rank].set()
        if not self._is_over:
            self._inbox.put(Ended(rank, Death("is gone"), for_good=True))


def follow(task: Task, options: RunOptions) -> None:
    """Bring the worker of a rank that is not the first, and watch over it until the job is complete.

    Raises:
        JobError: the job ended early, or the launcher is gone.
    """
    meeting, launcher = _Meeting(options.rank), os.getppid()
    connection = _connect(meeting, task, launcher)
    events: SimpleQueue[Any] = SimpleQueue()
    rank = options.rank.rank
    local = LocalTransport(task, assign([options.rank], options), options.set_up, events)
    sender = Sender(connection)
    sender.send(rank)
    threading.Thread(target=_hear_leader, args=(connection, events), daemon=True).start()
    error: str | None = "interrupted"
    try:
        while True:
            with contextlib.suppress(Empty):
                match events.get(timeout=_POLL_SECONDS):
                    case _Start():
                        local.start(rank)
                    case _Kill():
                        local.kill(rank)
                    case _Forward(message):
                        local.send(rank, message)
                    case _Over(error):
                        break
                    case event:
                        sender.send(event)
            _check_launcher(launcher)
    finally:
        local.close(error)
        sender.send(_Left())
    if error is not None:
        raise JobError(f"the job of {task.out_path} ended early: {error}")


def _hear_leader(connection: Connection, events: SimpleQueue[Any]) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            events.put(pickle.loads(connection.recv_bytes()))
    events.put(_Over("rank 0 is gone"))


def _connect(meeting: _Meeting, task: Task, launcher: int) -> Connection:
    until = time.monotonic() + _LEADER_SECONDS
    while time.monotonic() < until and os.getppid() == launcher:
        with contextlib.suppress(OSError, EOFError):
            if found := meeting.find():
                host, port, key = found
                connection = _connection(socket.create_connection((host, port), timeout=_LEADER_SECONDS))
                answer_challenge(connection, key)
                deliver_challenge(connection, key)
                return connection
        time.sleep(_POLL_SECONDS)
    raise JobError(f"rank 0 did not begin the job of {task.out_path}; its log says why.")


def _connection(connected: socket.socket) -> Connection:
    connected.settimeout(None)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(connected.detach())


@contextlib.contextmanager
def ending_with_launcher(rank: Rank) -> Iterator[None]:
    """In this block the process of a rank ends soon after its launcher, whatever it is at.

    What it had stored is kept, as with every end.
    """
    over, launcher = threading.Event(), os.getppid()

    def watch() -> None:
        while not over.wait(_POLL_SECONDS):
            if os.getppid() != launcher:
                if not over.wait(_LAST_SECONDS):  # for an orderly end, see _check_launcher
                    os._exit(1)
                return

    if rank.world_size > 1:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _check_launcher(launcher: int) -> None:
    if os.getppid() != launcher:
        raise JobError("the launcher is gone; start the same command again: it continues where it was.")


class _Meeting:
    """Where the ranks of one run find rank 0 for their next job, and nobody else does.

    Raises:
        SettingsError: the ranks are on several machines and were not started by torchrun.
    """

    def __init__(self, rank: Rank, environ: Mapping[str, str] = os.environ) -> None:
        self._rank = rank
        self._environ = environ
        self._name = f"{environ.get('TORCHELASTIC_RESTART_COUNT', '0')}-{_job_numbers[rank]}"
        self._file: Path | None = None
        if environ.get("LOCAL_WORLD_SIZE") == str(rank.world_size):  # one machine: the launcher is everybody's parent
            import psutil

            launcher = psutil.Process(os.getppid())
            name = f"parallelmind-{launcher.pid}-{launcher.create_time()}-{self._name}.json"
            self._file = Path(tempfile.gettempdir()) / name
        elif "MASTER_ADDR" not in environ or "MASTER_PORT" not in environ:
            raise SettingsError(
                f"WORLD_SIZE is {rank.world_size}, but MASTER_ADDR and MASTER_PORT are not set; start with torchrun."
            )

    @property
    def bind_to(self) -> str:
        """The address at which rank 0 listens."""
        return "" if self._file is None else "127.0.0.1"

    def announce(self, port: int, key: bytes) -> None:
        """Called by rank 0: where it listens."""
        place = json.dumps({"port": port, "key": key.hex()})
        if self._file is None:
            self._open_store().set(f"parallelmind/{self._name}", place)
            return
        temporary = self._file.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(place)
        temporary.replace(self._file)

    def find(self) -> tuple[str, int, bytes] | None:
        """Called by the other ranks: host, port and key; None if rank 0 is not there yet."""
        if self._file is None:
            host, place = self._environ["MASTER_ADDR"], bytes(self._open_store().get(f"parallelmind/{self._name}"))
        else:
            host = "127.0.0.1"
            try:
                with self._file.open("rb") as file:
                    if os.fstat(file.fileno()).st_uid != os.getuid():
                        return None  # somebody else's trap
                    place = file.read()
            except FileNotFoundError:
                return None
        found = json.loads(place)
        return host, found["port"], bytes.fromhex(found["key"])

    def end(self) -> None:
        """Called by rank 0, when all others are gone."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _open_store(self) -> Any:
        agent_has_it = self._environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        is_master = self._rank.rank == 0 and not agent_has_it
        return _open_store(self._environ["MASTER_ADDR"], int(self._environ["MASTER_PORT"]), is_master)


@functools.cache
def _open_store(host: str, port: int, is_master: bool) -> Any:
    """The store of the run, one for all of its jobs: a rank must not find that of the job before, which is closing."""
    from datetime import timedelta

    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    timeout = timedelta(seconds=_STORE_SECONDS)
    return TCPStore(host, port, is_master=is_master, timeout=timeout, wait_for_workers=False)
