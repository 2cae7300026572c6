"""transformers' Trainer on packed rows: its loop, optimizer, schedule and precision; our data, loss and files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from parallelmind.columnar import IGNORE_INDEX, PAD_BRANCH, PackedRow
from parallelmind.data.collator import BatchInfo, ParallelPretrainCollator
from parallelmind.data.dataset import ParallelPretrainDataset
from parallelmind.errors import TrainingError
from parallelmind.training.evaluation import Evaluation
from parallelmind.training.explaining import explained_optimizer, explained_scheduler
from parallelmind.training.files import is_whole, write_json
from parallelmind.training.forward import PackedForward
from parallelmind.training.meter import Meter

_TRAINED = "trained.safetensors"
_DATA_STATE = "data_state.json"
_SHOWN_SOURCES = 5
_CALMER = "lower --learning_rate or --grad_clip, or use --dtype float32"


class PackedTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped here
    """Trains a model on a stream of packed micro-batches.

    A checkpoint holds the trained parameters alone (not the frozen base), the optimizer, schedule and random states,
    and the place in the data. One that could not be written whole is removed, and the former ones stay.

    Args:
        loraplus_lr_ratio: LoRA+ (Hayou et al., 2024, https://arxiv.org/abs/2402.12354): the B matrices learn this many
            times faster.
        on_saved: called on the main process when a checkpoint has been written.
    """

    def __init__(
        self,
        *,
        model: Any,
        args: TrainingArguments,
        dataset: ParallelPretrainDataset,
        collator: ParallelPretrainCollator,
        forward: PackedForward,
        evaluation: Evaluation | None = None,
        loraplus_lr_ratio: float | None = None,
        on_saved: Callable[[int], None] | None = None,
        callbacks: list[Any] | None = None,
    ):
        use_cache = model.config.use_cache
        super().__init__(
            model=model,
            args=args,
            train_dataset=dataset,
            eval_dataset=[] if evaluation is None else [evaluation],
            data_collator=collator,
            callbacks=callbacks,
        )
        # Trainer turns it off in the config, which a pretrained model is saved with.
        model.config.use_cache = use_cache
        for shown in (PrinterCallback, ProgressCallback):
            self.remove_callback(shown)
        # Makes Trainer count the supervised tokens of a whole step, and not divide the loss again.
        self.model_accepts_loss_kwargs = True
        self.control: Any
        self.optimizer: Any
        self.meter = Meter()
        self.stream_ended = False
        """The last micro-batch of the data has been seen."""
        self.evaluated: tuple[int, dict[str, float]] = (-1, {})
        """The last evaluation and its step."""
        self.data_state: dict[str, Any] = {}
        self.example: tuple[PackedRow, list[bool]] | None = None
        """The first row that was trained on, and which of its tokens are supervised."""
        self._forward = forward
        self._evaluation = evaluation
        self._loraplus_lr_ratio = loraplus_lr_ratio
        self._on_saved = on_saved

    def get_train_dataloader(self) -> DataLoader[Any]:
        # Not prepared by accelerate: the stream deals itself to the processes.
        return DataLoader(
            self.train_dataset,
            batch_size=None,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            # Of its own: a loader takes a number from the global generator when it starts, also when it starts again.
            generator=torch.Generator(),
        )

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        info: BatchInfo = inputs["info"]
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            shown = ", ".join(info.sources[:_SHOWN_SOURCES])
            more = f" and {len(info.sources) - _SHOWN_SOURCES} more" if len(info.sources) > _SHOWN_SOURCES else ""
            raise TrainingError(
                f"The loss became {float(loss)} in step {self.state.global_step + 1}, on {shown}{more}. "
                f"{self._last_checkpoint()} Look at these records; {_CALMER}."
            )
        if self.example is None:
            self.example = _first_row(inputs)
        self.meter.add(info)
        self.data_state = info.state
        self.stream_ended = self.stream_ended or info.last
        return loss

    def _check_weights(self) -> None:
        """Raises TrainingError if weights are no numbers: before they are saved, or another error speaks of them."""
        if not all(bool(value.isfinite().all()) for value in self._trained_parameters().values()):
            raise TrainingError(
                f"With step {self.state.global_step} weights became infinite or no numbers. {self._last_checkpoint()} "
                f"Begin anew, or go on from there with another --lora_name and --resume_from_checkpoint: {_CALMER}."
            )

    def _last_checkpoint(self) -> str:
        found = [path for path in Path(self.args.output_dir).glob("checkpoint-*") if is_whole(path)]
        if not found:
            return "No checkpoint was written before (--save_interval)."
        return f"The last whole checkpoint is {max(found, key=lambda path: int(path.name.rpartition('-')[2]))}."

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Tensor:
        """The supervised tokens of a step, of all processes. Trainer itself would count `shift_labels` alone."""
        count = torch.tensor(sum(batch["info"].supervised_tokens for batch in batch_samples), device=device)
        return self.accelerator.gather(count).sum() if self.args.world_size > 1 else count

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The sum over this micro-batch divided by the supervised tokens of the whole step, of all processes."""
        assert num_items_in_batch is not None
        assert not return_outputs
        total = self._forward.loss(model, inputs, label_smoothing=self.args.label_smoothing_factor)
        # DDP averages the gradients of the processes; the sum is wanted.
        count = torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)
        loss: Tensor = total * self.accelerator.num_processes / count
        return loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        with explained_optimizer(self.args):
            if self._loraplus_lr_ratio is None or self.optimizer is not None:
                made: torch.optim.Optimizer = super().create_optimizer(model)
                return made
            return self._loraplus_optimizer(self._loraplus_lr_ratio)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        with explained_scheduler(self.args):
            return super().create_scheduler(num_training_steps, optimizer)

    def _loraplus_optimizer(self, ratio: float) -> torch.optim.Optimizer:
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        if own := {"params", "model", "optimizer_dict"} & options.keys():
            raise ValueError(f"it groups the parameters itself ({', '.join(own)}), as --loraplus_lr_ratio does")
        fast: list[nn.Parameter] = []
        usual: list[nn.Parameter] = []
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                (fast if ".lora_B." in name else usual).append(parameter)
        decay = self.args.weight_decay
        groups = [
            {"params": usual, "weight_decay": decay},
            {"params": fast, "weight_decay": decay, "lr": self.args.learning_rate * ratio},
        ]
        optimizer: torch.optim.Optimizer = optimizer_class(groups, **options)
        self.optimizer = optimizer
        return optimizer

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate on the held-out data of the run, and log it."""
        del eval_dataset, ignore_keys
        metrics = self.measure(metric_key_prefix)
        self.evaluated = (self.state.global_step, metrics)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.meter.restart()
        return metrics

    def measure(self, prefix: str = "eval") -> dict[str, float]:
        """Evaluate on the held-out data of the run."""
        assert self._evaluation is not None
        self.settle()
        self._check_weights()
        found = self._evaluation.run(
            self.model,
            device=self.args.device,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            # A run that is finished from its checkpoint never had its model wrapped for training.
            autocast=self.accelerator.autocast(),
        )
        return {f"{prefix}_{name}": value for name, value in found.items()}

    def settle(self) -> None:
        """Let the weights be those to use: optimizers without a schedule train others, until the next step."""
        if callable(switch := getattr(self.optimizer, "eval", None)):
            switch()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self.meter.read(self.args.world_size)
        super().log(logs, start_time)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        best: bool = super()._determine_best_metric(metrics, trial)
        if best and self.args.load_best_model_at_end:  # else there would be nothing to load
            self.control.should_save = True
        return best

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        self.settle()
        self._check_weights()
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # torch and safetensors have own errors
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            raise TrainingError(
                f"{folder}: the checkpoint could not be written ({error}). Earlier checkpoints are whole: make room, "
                "then start the same command again, and it goes on from the last one."
            ) from error
        if self.args.should_save and self._on_saved is not None:
            self._on_saved(self.state.global_step)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        del state_dict
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        trained = {name: value.detach().cpu().contiguous() for name, value in self._trained_parameters().items()}
        safetensors.torch.save_file(trained, folder / _TRAINED)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.args.should_save:
            state = {"step": self.state.global_step, "ended": self.stream_ended, **self.data_state}
            write_json(Path(output_dir) / _DATA_STATE, state)
        # Process 0 marks the checkpoint as whole next: the others' files must be there.
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        del model
        path = Path(resume_from_checkpoint) / _TRAINED
        try:
            stored = safetensors.torch.load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise TrainingError(f"{path}: not readable ({error}); give another checkpoint, or --overwrite.") from error
        parameters = self._trained_parameters()
        if {name: value.shape for name, value in stored.items()} != {n: p.shape for n, p in parameters.items()}:
            raise TrainingError(
                f"{path} holds other parameters than this run trains; give the flags of the run it is from (rank, "
                "target modules, base model), or --overwrite to begin anew."
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(stored[name])

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def load_data_state(self, checkpoint: Path) -> tuple[int, bool]:
        """Let the data go on where it was when a checkpoint was written.

        Returns:
            The step of the checkpoint, and whether the data had ended with it.
        """
        path = checkpoint / _DATA_STATE
        try:
            self.data_state = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TrainingError(f"{path}: not readable ({error}); give another checkpoint, or --overwrite.") from error
        self.train_dataset.load_state_dict(self.data_state)
        epochs = self.train_dataset.epochs
        # The run that wrote it may have been told of fewer passes than this one.
        ended = self.data_state["ended"] and epochs is not None and self.data_state["epoch"] + 1 >= epochs
        return int(self.data_state["step"]), bool(ended)

    def logged_until(self, checkpoint: Path) -> list[dict[str, Any]]:
        """The log that a checkpoint was written with."""
        found: list[dict[str, Any]] = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).log_history
        return found

    def finish_from(self, checkpoint: Path) -> None:
        """Take over a checkpoint after whose step nothing is left to train: it, or the best one of its run."""
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        self.state.global_step = int(self.data_state["step"])
        self.state.best_metric, self.state.best_global_step = state.best_metric, state.best_global_step
        if self.args.load_best_model_at_end and state.best_global_step:
            checkpoint = checkpoint.with_name(f"checkpoint-{state.best_global_step}")
            if not checkpoint.is_dir():
                raise TrainingError(
                    f"{checkpoint}: the checkpoint of the best step is gone, so the result cannot be written again; "
                    "what was written stays. Begin anew with --overwrite."
                )
        self._load_from_checkpoint(str(checkpoint))

    def _trained_parameters(self) -> dict[str, nn.Parameter]:
        model = self.accelerator.unwrap_model(self.model)
        return {name: value for name, value in model.named_parameters() if value.requires_grad}


def _first_row(inputs: dict[str, Any]) -> tuple[PackedRow, list[bool]]:
    branch_ids, time_ids, row_ids = inputs["attention_mask"][0, 0].cpu().long().unbind(-1)
    kept = (branch_ids != PAD_BRANCH) & (row_ids == 0)
    row = PackedRow(input_ids=inputs["input_ids"][0].cpu()[kept], branch_ids=branch_ids[kept], time_ids=time_ids[kept])
    return row, (inputs["labels"][0].cpu()[kept] != IGNORE_INDEX).tolist()
