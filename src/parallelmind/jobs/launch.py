"""Who started this process, and with whom it works: the part of a run that knows launchers."""

from __future__ import annotations

import os
from collections.abc import Mapping

from parallelmind.errors import SettingsError
from parallelmind.jobs.ranks import Rank

_TOKEN_KEY = "parallelmind/run"
_TOKEN_SECONDS = 600


def run_token(rank: Rank, environ: Mapping[str, str] = os.environ) -> str:
    """A text that all ranks of this run have, and no other run.

    Raises:
        SettingsError: the ranks are on several machines and were not started by torchrun.
    """
    if rank.world_size == 1:
        return f"{os.getpid()}-{os.urandom(4).hex()}"
    restart = environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if environ.get("LOCAL_WORLD_SIZE") == str(rank.world_size):  # one machine: the launcher is everybody's parent
        import psutil

        launcher = psutil.Process(os.getppid())
        return f"{launcher.pid}-{launcher.create_time()}-{restart}"
    return f"{_shared_token(rank, environ, f'{_TOKEN_KEY}/{restart}')}-{restart}"


def local_place(rank: Rank, environ: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(number of this worker on its machine, workers on the machine)."""
    local = environ.get("LOCAL_RANK"), environ.get("LOCAL_WORLD_SIZE")
    if local[0] is None or local[1] is None:
        return rank.rank, rank.world_size
    return int(local[0]), int(local[1])


def _shared_token(rank: Rank, environ: Mapping[str, str], key: str) -> str:
    if "MASTER_ADDR" not in environ or "MASTER_PORT" not in environ:
        raise SettingsError(
            f"WORLD_SIZE is {rank.world_size}, but MASTER_ADDR and MASTER_PORT are not set; start with torchrun."
        )
    from datetime import timedelta

    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    agent_has_it = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        environ["MASTER_ADDR"],
        int(environ["MASTER_PORT"]),
        is_master=rank.rank == 0 and not agent_has_it,
        timeout=timedelta(seconds=_TOKEN_SECONDS),
        wait_for_workers=False,
    )
    if rank.rank == 0:
        store.set(key, os.urandom(8).hex())
    token = bytes(store.get(key)).decode()
    store.set(f"{key}/{rank.rank}", "seen")
    if rank.rank == 0:  # it may hold the store, which ends with it
        store.wait([f"{key}/{number}" for number in range(rank.world_size)])
    return token
