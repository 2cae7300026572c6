"""The data of a run: what to train on, for how many steps, and what is held out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec

from parallelmind.columnar import Visibility, sees_branches, sees_main
from parallelmind.data.batches import BatchLimits, StepPlanner
from parallelmind.data.dataset import ParallelPretrainDataset, Prepare, Share
from parallelmind.data.encoder import SampleEncoder
from parallelmind.data.mixture import Mixture
from parallelmind.data.numbering import Numbering
from parallelmind.data.rows import RowLimits
from parallelmind.data.sources import ChainedSource, FilteredSource, HubSource, RecordSource, file_source
from parallelmind.errors import SettingsError
from parallelmind.jobs.ranks import current_rank
from parallelmind.models.rope_lengths import RopeLengths
from parallelmind.models.sidecar import RopeSettings
from parallelmind.settings.model import DEFAULT_RANGE
from parallelmind.training.model import Trainee
from parallelmind.training.options import TrainOptions


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How a process divides its share of a step."""

    batch: BatchLimits
    accumulation: int
    note: str | None = None
    """For the user: where the batches differ from what the flags say."""

    def layout(self, processes: int) -> str:
        """What the composition of steps depends on."""
        return StepPlanner(self.batch, self.accumulation * processes).layout


def batching(options: TrainOptions, visibility: Visibility, *, multiple_of: int = 1) -> Batching:
    """The micro-batches of a run, whose sequences are padded to a multiple of some length.

    Branches that see one another cannot be computed apart: then a batch takes a whole row, and fewer of them are
    accumulated, so that a step has about as many branches as the flags say.
    """
    if options.max_tokens_per_batch is not None:
        most = options.max_tokens_per_batch
        limits = BatchLimits(
            size=most // multiple_of * multiple_of or most,
            by_tokens=True,
            whole_rows=sees_branches(visibility),
            multiple_of=multiple_of,
        )
        return Batching(batch=limits, accumulation=options.accumulation_steps)
    whole, rows = sees_branches(visibility), options.batch_by_samples
    size, accumulation, note = options.batch_size, options.accumulation_steps, None
    if whole and not rows and size < options.most_branches:
        size, asked = options.most_branches, size * accumulation
        accumulation = max(1, round(asked / size))
        note = (
            f"--batch_size {options.batch_size} is smaller than a row of up to {size} branches, which see one another "
            f"(--visibility {visibility}) and so are computed together: a batch is one row, {accumulation} of them to "
            f"a step of {accumulation * size} branches in each process ({asked} were asked for)"
        )
    return Batching(
        batch=BatchLimits(size=size, by_samples=rows, whole_rows=whole, multiple_of=multiple_of),
        accumulation=accumulation,
        note=note,
    )


def _numbering(options: TrainOptions, known: RopeSettings, dataset: ParallelPretrainDataset) -> Numbering:
    """The branch numbers of a run, over those that the adapter to continue from knows.

    Branches that do not see one another can share positions, so no more are trained than the data has in a row.
    """
    if options.branch_range is not None:
        return Numbering(branch_range=options.branch_range or None)
    least = options.most_branches if options.use_streaming else dataset.largest_row()
    if sees_branches(known.visibility):
        least = max(options.most_branches, DEFAULT_RANGE)
    return Numbering(branch_range=max(least, known.branch_range or 0))


def _row_limits(options: TrainOptions) -> RowLimits:
    """How large the rows of a run may be."""
    return RowLimits(
        most=options.most_branches,
        least=options.min_branches_per_sample if options.max_branches_per_sample else 1,
        balanced=options.max_branches_per_sample > 0,
        max_tokens=options.max_total_tokens,
    )


def load_data(
    options: TrainOptions, trainee: Trainee, batches: Batching
) -> tuple[ParallelPretrainDataset, int | None, ParallelPretrainDataset | None]:
    """The training data, the number of steps (None: unknown), and the held-out data.

    Raises:
        SettingsError: a dataset is not found, or nothing is held out.
        DataError: a bad row, or no supervised token.
    """
    rank = current_rank()
    encoder = SampleEncoder(
        trainee.tokenizer,
        max_seq_len=options.max_seq_len,
        max_model_len=trainee.max_model_len,
        vocab_size=trainee.vocab_size,
        sees_main=sees_main(trainee.settings.visibility),
        learn_main=options.learn_main,
        strict=options.strict,
    )
    limits, longest_short = _row_limits(options), RopeLengths(trainee.model).longest_short
    source = _source(options)
    held_out: RecordSource | None = None
    if options.eval_data_path is not None:
        held_out = file_source(options.eval_data_path)
    elif options.eval_ratio:
        source, held_out = _split(source, options.eval_ratio, options.seed)
        _check_split(options.eval_ratio, source, held_out)
    dataset = ParallelPretrainDataset(
        source,
        encoder,
        limits=limits,
        batch=batches.batch,
        epochs=options.epochs if options.max_steps < 0 else None,
        block_records=options.shuffle_buffer if options.use_streaming else None,
        shuffle=options.shuffle,
        seed=options.seed,
        learn_main=options.learn_main,
        share=Share(rank=rank.rank, world_size=rank.world_size, accumulation=batches.accumulation),
        prepare=_prepare(options),
        mixture=Mixture(options.data_weights),
        longest_short=longest_short,
    )
    total: int | None = options.max_steps
    if not options.use_streaming:
        dataset.store()
    if trainee.patched:
        dataset.numbering = _numbering(options, trainee.settings, dataset)
    if options.max_steps < 0:
        total = None if options.use_streaming else dataset.steps(options.epochs)
    if held_out is None:
        return dataset, total, None
    evaluation = ParallelPretrainDataset(
        held_out,
        encoder,
        limits=limits,
        batch=batches.batch,
        shuffle=False,
        learn_main=options.learn_main,
        numbering=replace(dataset.numbering, drawn=False),
        longest_short=longest_short,
    )
    evaluation.store()
    return dataset, total, evaluation


def _source(options: TrainOptions) -> RecordSource:
    """The records of a run, those that are held out among them."""
    if options.data_paths:
        return _together([file_source(path, max_records=options.max_samples) for path in options.data_paths])
    assert options.hf_dataset is not None
    return HubSource(
        options.hf_dataset,
        options.hf_subset,
        split=options.hf_split,
        streaming=options.use_streaming,
        max_records=options.max_samples,
    )


def _together(sources: Sequence[RecordSource]) -> RecordSource:
    return sources[0] if len(sources) == 1 else ChainedSource(sources)


def _prepare(options: TrainOptions) -> Prepare | None:
    """How samples are encoded: into the cache, or where that cannot be, into memory."""
    if find_spec("pyarrow") is None:
        if options.data_cache is not None:
            raise SettingsError(
                f"--data_cache {options.data_cache} needs the package pyarrow, which is not installed; run: pip "
                "install 'parallelmind[train]'"
            )
        return None
    from parallelmind.data.cache import SampleCache, default_folder

    folder = options.data_cache or default_folder()
    return SampleCache(folder, processes=options.preprocessing_num_workers).prepared


def _split(source: RecordSource, ratio: float, seed: int) -> tuple[RecordSource, RecordSource]:
    """The records of a source, and a share of them that is held out of each of its files."""
    kept: list[RecordSource] = []
    held_out: list[RecordSource] = []
    for number, file in enumerate(source.parts()):
        draw = f"held out {seed} {number} " if number else f"held out {seed} "
        rule = f"held out {ratio} {seed}{f' {number}' if number else ''}"
        kept.append(FilteredSource(file, partial(_is_drawn, False, ratio, draw), rule=f"not {rule}"))
        held_out.append(FilteredSource(file, partial(_is_drawn, True, ratio, draw), rule=rule))
    return _together(kept), _together(held_out)


def _is_drawn(wanted: bool, ratio: float, draw: str, index: int) -> bool:
    return (random.Random(f"{draw}{index}").random() < ratio) == wanted


def _check_split(ratio: float, kept: RecordSource, held_out: RecordSource) -> None:
    first_kept, first_held_out = next(kept.read(), None), next(held_out.read(), None)
    if (first_kept is None) != (first_held_out is None):  # both: no records at all, which is said elsewhere
        count = "none" if first_held_out is None else "all"
        raise SettingsError(f"--eval_ratio {ratio} holds out {count} of the records of {kept.name}; change it.")
