"""Where a run writes: adapters, checkpoints, its log and its report; and which checkpoint is whole."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallelmind.errors import TrainingError
from parallelmind.io.atomic import replacing

_STATE = "trainer_state.json"
"""The file of a checkpoint that transformers writes last."""


@dataclass(frozen=True)
class RunFiles:
    """The paths of a run named `name` under `out_dir`."""

    out_dir: Path
    name: str

    def adapter(self, step: int | None) -> Path:
        """The `.pth` of a step, or of the end; the PEFT folder beside it has the name without `.pth`."""
        return self.out_dir / "lora" / f"{self.name}_{'final' if step is None else f'step{step}'}.pth"

    @property
    def newest_adapter(self) -> Path:
        """The `.pth` that is written anew whenever one of a step or of the end is."""
        return self.out_dir / "lora" / f"{self.name}.pth"

    @property
    def model(self) -> Path:
        """The folder of a pretrained model."""
        return self.out_dir / "pretrain" / f"{self.name}_final"

    @property
    def checkpoints(self) -> Path:
        return self.out_dir / "checkpoints" / self.name

    @property
    def settings(self) -> Path:
        """What the run was told, so that it is not continued with something else."""
        return self.checkpoints / "run.json"

    @property
    def metrics(self) -> Path:
        return self.out_dir / "logs" / self.name / "metrics.jsonl"

    @property
    def report(self) -> Path:
        return self.out_dir / "logs" / self.name / "report.html"

    @property
    def environment(self) -> Path:
        """Versions and machine of the process that began or last continued the run."""
        return self.out_dir / "logs" / self.name / "environment.json"

    def last_checkpoint(self) -> Path | None:
        """The latest checkpoint that was written to its end."""
        found = sorted(self.checkpoints.glob("checkpoint-*"), key=_step, reverse=True)
        return next((path for path in found if is_whole(path)), None)

    def start_anew(self) -> None:
        """Forget an earlier run of this name; its adapters stay until they are written again."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        self.metrics.unlink(missing_ok=True)
        self.environment.unlink(missing_ok=True)

    def write_settings(self, settings: dict[str, Any]) -> None:
        write_json(self.settings, settings)

    def former_settings(self) -> dict[str, Any] | None:
        """The settings of the run that has this name; empty if they are not known, None if there is no such run."""
        try:
            former = json.loads(self.settings.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            former = None
        if isinstance(former, dict):
            return former
        return {} if self._left_something() else None

    def forget_if_empty(self) -> None:
        """Free the name of a run that was begun and left nothing to continue or to load."""
        if not self._left_something():
            with contextlib.suppress(OSError):
                self.settings.unlink(missing_ok=True)
                self.checkpoints.rmdir()

    def _left_something(self) -> bool:
        ends = (self.adapter(None), self.adapter(None).with_suffix(""), self.model)
        return self.last_checkpoint() is not None or any(path.exists() for path in ends)


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    try:
        state = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(state, dict) and "global_step" in state


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, complete or not at all. Raises TrainingError if it cannot be written."""
    with replacing(path, unwritable) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def unwritable(path: Path, error: OSError) -> TrainingError:
    """The error of a file of the run that the disk does not take."""
    return TrainingError(f"{path}: could not be written ({error.strerror}); make room, or give another --out_dir.")


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1
