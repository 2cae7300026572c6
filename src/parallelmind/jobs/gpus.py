"""Which GPUs each worker of a machine owns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from parallelmind.errors import SettingsError

__all__ = ["GpuShare", "assign_gpus", "visible_gpus"]


@dataclass(frozen=True, slots=True)
class GpuShare:
    """The GPUs of one worker."""

    devices: tuple[str, ...]
    """As CUDA_VISIBLE_DEVICES names them; empty: the CPU."""
    shared: bool
    """Other workers have them too."""

    @property
    def environment(self) -> dict[str, str]:
        """What to set for the worker."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.devices)}

    def __str__(self) -> str:
        if not self.devices:
            return "CPU"
        return f"GPU {', '.join(self.devices)}" + (" (shared)" if self.shared else "")


def assign_gpus(worker: int, num_workers: int, gpus: Sequence[str], *, gpus_per_worker: int | None = None) -> GpuShare:
    """The share of one worker: `len(gpus) // num_workers` each, worker 0 the first ones.

    Fewer GPUs than workers: each worker shares one, in turn. No GPU: the CPU.

    Raises:
        SettingsError: `gpus_per_worker` asks for more than there are.
    """
    if not 0 <= worker < num_workers:
        raise SettingsError(f"worker {worker} of {num_workers} does not exist; they are numbered from 0.")
    if not gpus:
        if gpus_per_worker:
            raise SettingsError(f"--gpus_per_worker is {gpus_per_worker}, but no GPU is visible; leave it out.")
        return GpuShare(devices=(), shared=False)
    if gpus_per_worker and gpus_per_worker * num_workers > len(gpus):
        raise SettingsError(
            f"{num_workers} workers with --gpus_per_worker {gpus_per_worker} need "
            f"{gpus_per_worker * num_workers} GPUs, {len(gpus)} are visible; start fewer workers."
        )
    size = gpus_per_worker or len(gpus) // num_workers
    if size:
        return GpuShare(devices=tuple(gpus[worker * size : (worker + 1) * size]), shared=False)
    return GpuShare(devices=(gpus[worker % len(gpus)],), shared=True)


def visible_gpus(environ: Mapping[str, str], count: int) -> list[str]:
    """The names of the GPUs this process may use: within CUDA_VISIBLE_DEVICES if it is set, else 0 to `count` - 1.

    `count` 0 is unknown, and then the variable is believed.
    """
    given = environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return [str(number) for number in range(count)]
    names = []
    for name in (part.strip() for part in given.split(",")):
        beyond = name.isdecimal() and 0 < count <= int(name)
        if not name or name == "-1" or beyond:  # CUDA ignores what follows an invalid entry
            break
        names.append(name)
    return names
