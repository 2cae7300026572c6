"""How a run shows how far it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """Told how far the run is; called often, so it decides itself when to show something."""

    def start(self, *, total: int, done: int) -> None:
        """Work begins; `done` of `total` records have a result from before."""

    def update(self, *, done: int, failed: int, generated_tokens: int, by_worker: Mapping[int, int]) -> None:
        """Records done in all; records failed, tokens generated, and records of each worker process in this run."""

    def stop(self) -> None:
        """Nothing more will come, whether the run succeeded or not."""


class Silent:
    """Shows nothing."""

    def start(self, *, total: int, done: int) -> None: ...
    def update(self, *, done: int, failed: int, generated_tokens: int, by_worker: Mapping[int, int]) -> None: ...
    def stop(self) -> None: ...
