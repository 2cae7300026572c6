"""A training run from its options to its files."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.integrations import TensorBoardCallback

from parallelmind.columnar import sees_branches
from parallelmind.data.collator import ParallelPretrainCollator
from parallelmind.data.dataset import ParallelPretrainDataset
from parallelmind.errors import ParallelMindError, SettingsError, TrainingError, first_line, is_out_of_memory
from parallelmind.jobs.ranks import current_rank
from parallelmind.models.quantization import is_quantized
from parallelmind.models.whole_modules import untied
from parallelmind.training.arguments import training_arguments
from parallelmind.training.callbacks import (
    EarlyStopping,
    EndOfData,
    Interruption,
    Reporting,
    SilentTraining,
    TrainProgress,
)
from parallelmind.training.compiling import Compilation, failed_to_compile
from parallelmind.training.data import Batching, batching, load_data
from parallelmind.training.evaluation import Evaluation
from parallelmind.training.explaining import is_of_optimizer, refuse_shards, shown_flags
from parallelmind.training.facts import BestStep, environment
from parallelmind.training.files import RunFiles, write_json
from parallelmind.training.finishing import RunWriter, best_step
from parallelmind.training.forward import PackedForward
from parallelmind.training.meter import MetricsLog
from parallelmind.training.model import Trainee, load_trainee, training_device
from parallelmind.training.naming import ChosenRun, agreed, taken_run
from parallelmind.training.options import TrainOptions
from parallelmind.training.publishing import HubRepository, without_hub
from parallelmind.training.resolving import rope_of_run
from parallelmind.training.settings import effective_settings
from parallelmind.training.trainer import PackedTrainer

_LOGGER = logging.getLogger(__name__)
_FLEX_BLOCK = 128
"""FlexAttention computes blocks of this many tokens."""
_ALONE = (
    "every row has one branch, so the adapter never meets another one: with --visibility {visibility} several branches "
    "under one main are not what it was trained for; give data with several branches a record (parallelmind convert "
    "--branches_per_sample), or train with --visibility isolated"
)
_UNTIED = (
    "the model has one weight for embed_tokens and lm_head, and --modules_to_save {modules} gives it another one "
    "there: from here on they differ, and a merged model is larger by one of them"
)


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What a run did."""

    name: str
    steps: int
    resumed_from: int
    trained: bool
    """False: all steps were done before, and only the result was evaluated and written again."""
    data_counts: dict[str, Any]
    evaluation: dict[str, float]
    """Of the end; empty without held-out data."""
    written: Path
    """The final adapter, or the folder of the pretrained model; the first process writes it."""
    report: Path | None
    """None on all processes but the first."""
    best: BestStep | None = None
    """The best step, with `--load_best_model_at_end` or early stopping."""
    stopped_early: int | None = None
    """The step after which `--early_stopping_patience` ended the run."""
    pushed: str | None = None
    """Where the result is on the Hub, with `--push_to_hub`."""


def run_training(options: TrainOptions, *, progress: TrainProgress | None = None) -> TrainReport:
    """Train, save, evaluate and report; an earlier run of the same name and settings is continued.

    Raises:
        ParallelMindError: what the user can remedy, by the kinds of `errors.py`.
        KeyboardInterrupt: interrupted; the state was saved at the end of the step.
    """
    _check_launcher(options)
    device, note = training_device(options)
    rope = rope_of_run(options)
    batches = batching(options, rope.settings.visibility, multiple_of=_FLEX_BLOCK if device.startswith("cuda") else 1)
    layout = batches.layout(current_rank().world_size)
    settings = effective_settings(options, rope=rope, layout=layout)
    with taken_run(options, settings) as run, _explained(options):
        notes = [text for text in (*rope.notes, note, batches.note) if text]
        return _train(options, run, settings, batches, device, notes, progress or SilentTraining())


def _train(
    options: TrainOptions,
    run: ChosenRun,
    settings: dict[str, Any],
    batches: Batching,
    device: str,
    notes: list[str],
    progress: TrainProgress,
) -> TrainReport:
    """Train under the name that was taken."""
    compilation = Compilation.of(options)
    trainee = load_trainee(options, device=device)
    if not is_quantized(trainee.model):
        trainee.model.to(device)
    dataset, total, evaluation_data = load_data(options, trainee, batches)
    trainee.train_on_numbers(dataset.numbering.branch_range)
    alone = sees_branches(trainee.settings.visibility) and not options.use_streaming and dataset.largest_row() == 1
    if apart := untied(trainee.model):
        notes = [*notes, _UNTIED.format(modules=" and ".join(apart))]
    if current_rank().rank == 0:
        for note in notes:
            _LOGGER.info("%s", note)
        if alone:
            _LOGGER.warning("%s", _ALONE.format(visibility=trainee.settings.visibility))
    arguments = training_arguments(
        options,
        run.files,
        device=device,
        accumulation=batches.accumulation,
        total_steps=total,
        evaluates=evaluation_data is not None,
    )
    run = agreed(run, arguments.world_size)
    files, checkpoint = run.files, run.checkpoint
    arguments.output_dir, arguments.run_name = str(files.checkpoints), files.name
    if run.note and arguments.should_save:
        _LOGGER.warning("%s", run.note)
    recomputes = arguments.gradient_checkpointing or getattr(arguments, "activation_checkpointing", False)
    if options.task != "pretrain" and recomputes:
        trainee.model.enable_input_require_grads()  # frozen embeddings would cut the gradient off
    forward = PackedForward(
        trainee.model, visibility=trainee.settings.visibility, stride=trainee.settings.branch_stride
    )
    if compilation is not None:
        compilation.compile(trainee.model)
    collator = ParallelPretrainCollator(
        trainee.pad_token_id,
        stride=trainee.settings.branch_stride,
        visibility=trainee.settings.visibility,
        two_axes=forward.patched,
        pad_to_multiple_of=batches.batch.multiple_of,
    )
    evaluation = _evaluation(options, evaluation_data, trainee, collator, forward)
    _check_metric(arguments, evaluation)
    repository = None
    if arguments.should_save:
        repository = HubRepository.of(options.hf, default_name=files.name)
    metrics, interruption, end, early = MetricsLog(files.metrics), Interruption(), EndOfData(), _early(options)
    writer = RunWriter(
        options=options,
        files=files,
        settings=settings,
        trainee=trainee,
        metrics=metrics,
        evaluation=evaluation,
        repository=repository,
    )

    def on_saved(step: int) -> None:  # checkpoints are also written at the end and when interrupted
        if options.task != "pretrain" and step % options.save_interval == 0:
            writer.save_step(step, _counts(dataset, trainer))

    trainer = _trainer(
        options,
        files,
        model=trainee.model,
        args=arguments,
        dataset=dataset,
        collator=collator,
        forward=forward,
        evaluation=evaluation,
        loraplus_lr_ratio=options.loraplus_lr_ratio,
        on_saved=on_saved,
        callbacks=[
            Reporting(metrics, progress, epochs=options.epochs if options.max_steps < 0 else None),
            *([early] if early is not None else []),
            interruption,
            end,
        ],
    )
    end.trainer = trainer
    if arguments.should_save:
        if options.overwrite:
            files.start_anew()
        files.write_settings(settings)
    resumed_from = 0
    ended = False
    if checkpoint is not None:
        resumed_from, ended = trainer.load_data_state(checkpoint)
        ended = ended or (total is not None and resumed_from >= total) or _ended_early(early, trainer, checkpoint)
        if not ended:
            _LOGGER.info("continuing from %s", checkpoint)
    with forward.installed(trainee.model), interruption.caught(), _stopped(progress):
        if ended:
            assert checkpoint is not None
            trainer.finish_from(checkpoint)
            if arguments.should_save:
                metrics.open(resumed_from)
                progress.start(total=total, done=resumed_from)
        else:
            if arguments.should_save:
                write_json(files.environment, environment(processes=arguments.world_size, device=device))
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        steps = trainer.state.global_step
        final: dict[str, float] = {}
        if evaluation is not None and not interruption.happened:
            at, final = trainer.evaluated
            if arguments.load_best_model_at_end:  # the best model is another than the last, and was logged at its step
                final = trainer.measure()
            elif at != steps:
                final = trainer.evaluate()
    if interruption.happened:
        _LOGGER.warning("stopped after step %d; the same command continues from there", steps)
        interruption.raise_again()
    counts = _counts(dataset, trainer)
    if sees_branches(trainee.settings.visibility) and counts["unrelated_rows"]:
        _LOGGER.warning(
            "%d rows hold several branches without a main, which --visibility %s lets see one another; if they are "
            "unrelated (as convert packs them), train with isolated, or convert with --branches_per_sample 1",
            counts["unrelated_rows"],
            trainee.settings.visibility,
        )
    trainer.settle()
    best = best_step(trainer)
    written, report, pushed = files.model if options.task == "pretrain" else files.adapter(None), None, None
    if arguments.should_save:
        scores = {name.removeprefix("eval_"): value for name, value in final.items()}
        written, report, pushed = writer.finish(trainer, counts, scores, best)
    return TrainReport(
        name=files.name,
        steps=steps,
        resumed_from=resumed_from,
        trained=not ended,
        data_counts=counts,
        evaluation=final,
        written=written,
        report=report,
        best=best,
        stopped_early=None if early is None else early.stopped_at,
        pushed=pushed,
    )


def _counts(dataset: ParallelPretrainDataset, trainer: PackedTrainer) -> dict[str, Any]:
    counts = dataset.counts.as_dict()
    if not counts["records"]:  # streamed in a process of its own
        counts = trainer.data_state.get("counts_with_block") or counts
    return counts


def _early(options: TrainOptions) -> EarlyStopping | None:
    if options.early_stopping_patience is None:
        return None
    return EarlyStopping(patience=options.early_stopping_patience, threshold=options.early_stopping_threshold)


def _ended_early(early: EarlyStopping | None, trainer: PackedTrainer, checkpoint: Path) -> bool:
    """Whether a checkpoint is of the step at which early stopping ended the run."""
    if early is None:
        return False
    early.take_up(trainer.args, trainer.logged_until(checkpoint))
    return early.stopped_at is not None


def _check_metric(arguments: TrainingArguments, evaluation: Evaluation | None) -> None:
    """Raises SettingsError if what the best step is to be judged by is not found by an evaluation."""
    metric = arguments.metric_for_best_model
    if metric is None or evaluation is None:
        return
    if (name := metric.removeprefix("eval_")) not in evaluation.metrics:
        raise SettingsError(
            f"--metric_for_best_model {name} is not what the held-out data gives; it gives "
            f"{', '.join(evaluation.metrics)}."
        )


def _evaluation(
    options: TrainOptions,
    data: ParallelPretrainDataset | None,
    trainee: Trainee,
    collator: ParallelPretrainCollator,
    forward: PackedForward,
) -> Evaluation | None:
    if data is None:
        return None
    asked = data.samples()[: options.eval_samples]
    return Evaluation(
        list(data),
        asked,
        tokenizer=trainee.tokenizer,
        collator=collator,
        forward=forward,
        most=options.most_branches,
        branch_range=trainee.settings.branch_range,
    )


def _trainer(options: TrainOptions, files: RunFiles, **parts: Any) -> PackedTrainer:
    try:
        trainer = PackedTrainer(**parts)
        for callback in trainer.callback_handler.callbacks:
            # Beside our own log, rather than among the checkpoints.
            if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
                callback.logging_dir = str(files.metrics.parent)
    except (RuntimeError, ImportError, ValueError) as error:  # a logger of --report_to that is not installed, …
        given = shown_flags(without_hub(options.hf))
        raise SettingsError(f"{given}: transformers refuses to train with this: {first_line(error)}") from error
    refuse_shards(trainer)
    return trainer


def _check_launcher(options: TrainOptions) -> None:
    if options.ddp and "WORLD_SIZE" not in os.environ:
        raise SettingsError("--ddp needs a launcher: torchrun --nproc_per_node N … --ddp; without one, leave it out.")


@contextmanager
def _stopped(progress: TrainProgress) -> Iterator[None]:
    """However the block ends, the terminal is as it was."""
    try:
        yield
    finally:
        progress.stop()


@contextmanager
def _explained(options: TrainOptions) -> Iterator[None]:
    """Say what to do about errors of torch that a user can remedy."""
    try:
        yield
    except Exception as error:
        if failed_to_compile(error):
            raise TrainingError(
                f"--torch_compile: torch could not compile a layer ({first_line(error)}). On a CPU it needs a C++ "
                "compiler, on a GPU Triton; install what it names, or leave --torch_compile out."
            ) from error
        if not is_out_of_memory(error):
            if isinstance(error, ParallelMindError) or not is_of_optimizer(error):
                raise
            optim = options.hf.get("optim", "adamw_torch")
            raise SettingsError(
                f"--optim {getattr(optim, 'value', optim)} fails in a step on this machine: {first_line(error)}. "
                "Take another one, or leave --optim out."
            ) from error
        size = f"--batch_size {options.batch_size}"
        if options.max_tokens_per_batch is not None:
            size = f"--max_tokens_per_batch {options.max_tokens_per_batch}"
        raise TrainingError(
            f"out of memory with {size}; lower it and raise --accumulation_steps as much, "
            f"pass --gradient_checkpointing true, or --load_in_4bit. ({first_line(error)})"
        ) from error
