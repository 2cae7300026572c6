"""The data of a run: what to train on, for how many steps, and what is held out."""

from __future__ import annotations

import random

from parallelmind.columnar import sees_main
from parallelmind.data.dataset import BatchLimits, ParallelPretrainDataset, Share
from parallelmind.data.encoder import SampleEncoder
from parallelmind.data.rows import RowLimits
from parallelmind.data.sources import FilteredSource, HubSource, JsonlSource, RecordSource
from parallelmind.errors import SettingsError
from parallelmind.jobs.ranks import current_rank
from parallelmind.training.model import Trainee
from parallelmind.training.options import TrainOptions

__all__ = ["load_data"]


def load_data(
    options: TrainOptions, trainee: Trainee
) -> tuple[ParallelPretrainDataset, int | None, ParallelPretrainDataset | None]:
    """The training data, the number of steps (None: unknown), and the held-out data.

    Raises:
        SettingsError: a dataset is not found, a row is larger than a batch, or nothing is held out.
        DataError: a bad row, or nothing to learn.
    """
    rank = current_rank()
    encoder = SampleEncoder(
        trainee.tokenizer,
        max_seq_len=options.max_seq_len,
        max_model_len=trainee.max_model_len,
        vocab_size=trainee.vocab_size,
        sees_main=sees_main(trainee.settings.visibility),
        strict=options.strict,
    )
    limits = RowLimits(
        most=options.most_branches,
        least=options.min_branches_per_sample if options.max_branches_per_sample else 1,
        balanced=options.max_branches_per_sample > 0,
        max_tokens=options.max_total_tokens,
    )
    batch = BatchLimits(size=options.batch_size, by_samples=options.batch_by_samples)
    source: RecordSource
    if options.data_path is not None:
        source = JsonlSource(options.data_path, max_records=options.max_samples)
    else:
        assert options.hf_dataset is not None
        source = HubSource(
            options.hf_dataset,
            options.hf_subset,
            split=options.hf_split,
            streaming=options.use_streaming,
            max_records=options.max_samples,
        )
    held_out: RecordSource | None = None
    if options.eval_data_path is not None:
        held_out = JsonlSource(options.eval_data_path)
    elif options.eval_ratio:
        held_out = FilteredSource(source, lambda index: _is_held_out(options, index))
        source = FilteredSource(source, lambda index: not _is_held_out(options, index))
        _check_split(options.eval_ratio, source, held_out)
    dataset = ParallelPretrainDataset(
        source,
        encoder,
        limits=limits,
        batch=batch,
        epochs=options.epochs if options.max_steps < 0 else None,
        block_records=options.shuffle_buffer if options.use_streaming else None,
        shuffle=options.shuffle,
        seed=options.seed,
        learn_main=options.learn_main,
        share=Share(rank=rank.rank, world_size=rank.world_size, accumulation=options.accumulation_steps),
    )
    total: int | None = options.max_steps
    if not options.use_streaming:
        dataset.samples()
    if options.max_steps < 0:
        total = None if options.use_streaming else dataset.steps(options.epochs)
    if held_out is None:
        return dataset, total, None
    evaluation = ParallelPretrainDataset(
        held_out, encoder, limits=limits, batch=batch, shuffle=False, learn_main=options.learn_main
    )
    evaluation.samples()
    return dataset, total, evaluation


def _check_split(ratio: float, kept: RecordSource, held_out: RecordSource) -> None:
    first_kept, first_held_out = next(kept.read(), None), next(held_out.read(), None)
    if (first_kept is None) != (first_held_out is None):  # both: no records at all, which is said elsewhere
        count = "none" if first_held_out is None else "all"
        raise SettingsError(f"--eval_ratio {ratio} holds out {count} of the records of {kept.name}; change it.")


def _is_held_out(options: TrainOptions, index: int) -> bool:
    return random.Random(f"held out {options.seed} {index}").random() < options.eval_ratio
