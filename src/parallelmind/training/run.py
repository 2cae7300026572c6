"""A training run from its options to its files."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.integrations import TensorBoardCallback

from parallelmind.columnar import sees_branches
from parallelmind.data.collator import ParallelPretrainCollator
from parallelmind.data.dataset import ParallelPretrainDataset
from parallelmind.errors import SettingsError, TrainingError, first_line, is_out_of_memory
from parallelmind.jobs.ranks import current_rank
from parallelmind.models.quantization import is_quantized
from parallelmind.training.arguments import training_arguments
from parallelmind.training.callbacks import EndOfData, Interruption, Reporting, SilentTraining, TrainProgress
from parallelmind.training.compiling import Compilation, failed_to_compile
from parallelmind.training.data import Batching, batching, load_data
from parallelmind.training.evaluation import Evaluation
from parallelmind.training.files import RunFiles
from parallelmind.training.forward import PackedForward
from parallelmind.training.meter import MetricsLog
from parallelmind.training.model import Trainee, load_trainee, training_device
from parallelmind.training.naming import ChosenRun, agreed, taken_run
from parallelmind.training.options import TrainOptions
from parallelmind.training.report import TrainingReport, write_report
from parallelmind.training.resolving import rope_of_run
from parallelmind.training.saving import save_adapter, save_model
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
    if sees_branches(trainee.settings.visibility) and not options.use_streaming and dataset.largest_row() == 1:
        notes = [*notes, _ALONE.format(visibility=trainee.settings.visibility)]
    if current_rank().rank == 0:
        for note in notes:
            _LOGGER.info("%s", note)
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
    metrics, interruption, end = MetricsLog(files.metrics), Interruption(), EndOfData()

    def save(step: int | None) -> Path:
        assert options.base_model is not None
        return save_adapter(trainee, files, options.base_model, step, as_newest=options.task == "lora")

    def on_saved(step: int) -> None:  # checkpoints are also written at the end and when interrupted
        if options.task != "pretrain" and step % options.save_interval == 0:
            save(step)

    trainer = _trainer(
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
        ended = ended or (total is not None and resumed_from >= total)
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
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        steps = trainer.state.global_step
        final: dict[str, float] = {}
        if evaluation is not None and not interruption.happened:
            at, final = trainer.evaluated
            if at != steps or arguments.load_best_model_at_end:  # the best model is another than the last
                final = trainer.evaluate()
    if interruption.happened:
        _LOGGER.warning("stopped after step %d; the same command continues from there", steps)
        interruption.raise_again()
    counts = dataset.counts.as_dict()
    if not counts["records"]:  # streamed in a process of its own
        counts = trainer.data_state.get("counts_with_block") or counts
    if sees_branches(trainee.settings.visibility) and counts["unrelated_rows"]:
        _LOGGER.warning(
            "%d rows hold several branches without a main, which --visibility %s lets see one another; if they are "
            "unrelated (as convert packs them), train with isolated, or convert with --branches_per_sample 1",
            counts["unrelated_rows"],
            trainee.settings.visibility,
        )
    written, report = files.model if options.task == "pretrain" else files.adapter(None), None
    if arguments.should_save:
        written = save_model(trainee, files) if options.task == "pretrain" else save(None)
        report = _write_report(options, files, settings, trainee, trainer, metrics, counts)
    return TrainReport(
        name=files.name,
        steps=steps,
        resumed_from=resumed_from,
        trained=not ended,
        data_counts=counts,
        evaluation=final,
        written=written,
        report=report,
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


def _trainer(files: RunFiles, **parts: Any) -> PackedTrainer:
    try:
        trainer = PackedTrainer(**parts)
        for callback in trainer.callback_handler.callbacks:
            # Beside our own log, rather than among the checkpoints.
            if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
                callback.logging_dir = str(files.metrics.parent)
        return trainer
    except (RuntimeError, ImportError, ValueError) as error:  # a logger of --report_to that is not installed, …
        raise SettingsError(f"transformers refuses to train with these settings: {error}") from error


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
            raise
        size = f"--batch_size {options.batch_size}"
        if options.max_tokens_per_batch is not None:
            size = f"--max_tokens_per_batch {options.max_tokens_per_batch}"
        raise TrainingError(
            f"out of memory with {size}; lower it and raise --accumulation_steps as much, "
            f"pass --gradient_checkpointing true, or --load_in_4bit. ({first_line(error)})"
        ) from error


def _write_report(
    options: TrainOptions,
    files: RunFiles,
    settings: dict[str, Any],
    trainee: Trainee,
    trainer: PackedTrainer,
    metrics: MetricsLog,
    counts: dict[str, Any],
) -> Path:
    row, loss_mask = trainer.example or (None, None)
    evaluations = [
        {"step": entry["step"]}
        | {name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")}
        for entry in metrics.entries
        if "eval_loss" in entry
    ]
    write_report(
        TrainingReport(
            title=files.name,
            settings={"batch_size": options.batch_size, "accumulation_steps": options.accumulation_steps} | settings,
            data_counts=counts,
            train_history=[entry for entry in metrics.entries if "loss" in entry],
            eval_history=evaluations,
            example_row=row,
            example_tokens=[] if row is None else [trainee.tokenizer.decode([t]) for t in row.input_ids.tolist()],
            visibility=trainee.settings.visibility,
            stride=trainee.settings.branch_stride,
            example_loss_mask=loss_mask,
        ),
        files.report,
    )
    return files.report
