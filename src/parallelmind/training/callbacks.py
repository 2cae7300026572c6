"""What happens at the steps of a run: progress, the log on disk, interruption, the end of the data."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType, SimpleNamespace
from typing import Any, Protocol

import torch
import torch.distributed as dist
from transformers import EarlyStoppingCallback, TrainerCallback

from parallelmind.training.arguments import UNKNOWN_STEPS
from parallelmind.training.meter import MetricsLog, peak_memory


class TrainProgress(Protocol):
    """Shows the progress of a run: `start`, then `step` and `log`, and `stop` at the end, also when the run failed."""

    def start(self, *, total: int | None, done: int) -> None: ...

    def step(self, done: int) -> None: ...

    def log(self, entry: dict[str, Any]) -> None: ...

    def stop(self) -> None: ...


class SilentTraining:
    """Shows nothing."""

    def start(self, *, total: int | None, done: int) -> None: ...
    def step(self, done: int) -> None: ...
    def log(self, entry: dict[str, Any]) -> None: ...
    def stop(self) -> None: ...


class Reporting(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Hands log entries to the log on disk and the progress display, on the main process.

    Args:
        epochs: passes over the data in the whole run; None: not known.
    """

    def __init__(
        self,
        metrics: MetricsLog,
        progress: TrainProgress,
        *,
        epochs: float | None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._metrics = metrics
        self._progress = progress
        self._epochs = epochs
        self._clock = clock
        self._started: float | None = None
        """When the run would have begun, had it never been interrupted."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self._metrics.open(state.global_step)
            self._begin()
            total = None if state.max_steps == UNKNOWN_STEPS else state.max_steps
            self._progress.start(total=total, done=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Trainer takes the whole stream for one epoch.
        if self._epochs is not None:
            state.epoch = self._epochs * state.global_step / state.max_steps
        if state.is_world_process_zero:
            self._progress.step(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            started = self._begin() if self._started is None else self._started
            entry = {"step": state.global_step, **logs}
            entry["seconds"] = round(self._clock() - started, 3)
            entry["peak_memory_bytes"] = max(peak_memory(), self._metrics.last("peak_memory_bytes", 0))
            self._metrics.append(entry)
            self._progress.log(entry)

    def _begin(self) -> float:
        self._started = self._clock() - float(self._metrics.last("seconds", 0.0))
        return self._started


class EarlyStopping(TrainerCallback):  # type: ignore[misc]
    """transformers' EarlyStoppingCallback, which a resumed run takes up where it was.

    The step at which it ends a run is saved, so that the same command knows the run as complete.
    """

    def __init__(self, *, patience: int, threshold: float):
        self._rule = EarlyStoppingCallback(patience, threshold)
        self.stopped_at: int | None = None
        """The step after which it ended the run."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.take_up(args, state.log_history)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        before = control.should_training_stop
        self._rule.on_evaluate(args, state, control, metrics)
        if control.should_training_stop and not before:
            self.stopped_at = state.global_step
            control.should_save = True

    def take_up(self, args: Any, history: Sequence[Mapping[str, Any]]) -> None:
        """Judge the evaluations of a log again, from the first on."""
        name = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
        state = SimpleNamespace(best_metric=None)
        self._rule.early_stopping_patience_counter = 0
        self.stopped_at = None
        for entry in history:
            if name not in entry:
                continue
            value = entry[name]
            self._rule.check_metric_value(args, state, None, value)
            better = state.best_metric is None or (value > state.best_metric) == bool(args.greater_is_better)
            state.best_metric = value if better else state.best_metric
            if self._rule.early_stopping_patience_counter >= self._rule.early_stopping_patience:
                self.stopped_at = entry["step"]


class EndOfData(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Ends the run after the step with the last micro-batch."""

    def __init__(self) -> None:
        self.trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.trainer.stream_ended:
            control.should_save = True
            control.should_training_stop = True


class Interruption(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Turns Ctrl-C and SIGTERM into a save at the end of the step; a second one stops at once."""

    def __init__(self) -> None:
        self._received: tuple[int, FrameType | None] | None = None

    @property
    def happened(self) -> bool:
        return self._received is not None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        happened = self.happened
        if args.world_size > 1:  # signals do not reach all processes in the same step
            flag = torch.tensor(int(happened), device=args.device)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            happened = bool(flag.item())
        if happened:
            self._received = self._received or (signal.SIGINT, None)
            control.should_save = True
            control.should_training_stop = True

    @contextmanager
    def caught(self) -> Iterator[None]:
        """The block in which signals wait for the end of the step; afterwards they have their usual effect."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former: dict[int, Any] = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

        def receive(number: int, frame: FrameType | None) -> None:
            self._received = (number, frame)
            signal.signal(number, former[number])

        for number in former:
            signal.signal(number, receive)
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def raise_again(self) -> None:
        """Raise what the signal would have raised."""
        if self._received is None:
            return
        handler = signal.getsignal(self._received[0])
        if callable(handler):
            handler(*self._received)
        raise KeyboardInterrupt
