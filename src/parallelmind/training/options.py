"""The options of a training run: one field per flag, checked on construction. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from parallelmind.errors import SettingsError
from parallelmind.settings.model import (
    DEFAULT_RANGE,
    DEFAULT_STRIDE,
    LARGEST_RANGE,
    LARGEST_STRIDE,
    QuantizedLoadingSettings,
    RopeMode,
    RopeRatio,
    VisibilityOption,
)
from parallelmind.settings.rows import (
    BatchBySamples,
    BranchesPerSample,
    MaxBranchesPerSample,
    MaxSamples,
    MinBranchesPerSample,
)
from parallelmind.settings.setting import Flag, Setting, described

Task = Literal["parallel_lora", "lora", "pretrain"]
_LORA_ONLY = (
    "lora_rank", "load_lora", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "use_rslora",
    "use_dora", "loraplus_lr_ratio", "load_in_4bit", "load_in_8bit",
)  # fmt: skip
_JUDGING = ("early_stopping_patience", "load_best_model_at_end", "metric_for_best_model", "eval_on_start")
_OF_THE_ADAPTER = ("lora_alpha", "target_modules", "modules_to_save", "use_rslora", "use_dora")

_RUN = "run"
_MODEL = "model"
_LORA = "LoRA"
_DATA = "data"
_ROWS = "rows and batches"
_STEPS = "steps"

Weight = Annotated[float, Gt(0)]


@dataclass(frozen=True, kw_only=True)
class TrainOptions(QuantizedLoadingSettings):
    """The flags of `parallelmind train`.

    Raises:
        SettingsError: a value is out of range, or two flags contradict each other.
    """

    task: Annotated[Task, Setting("what to train", _RUN)] = "parallel_lora"
    seed: Annotated[int, Ge(0), Lt(2**32), Setting("same seed, same run", _RUN)] = 42
    out_dir: Annotated[
        Path,
        Setting("folder for all output", _RUN, identity=False, flag=Flag(also=("--output_dir",), metavar="DIR")),
    ] = Path("out")
    log_interval: Annotated[
        int,
        Ge(1),
        Setting("steps between log entries", _RUN, identity=False, flag=Flag(also=("--logging_steps",))),
    ] = 50
    save_interval: Annotated[
        int,
        Ge(1),
        Setting(
            "steps between checkpoints and saved adapters", _RUN, identity=False, flag=Flag(also=("--save_steps",))
        ),
    ] = 500
    resume_from_checkpoint: Annotated[
        Path | None,
        Setting(
            "continue from this checkpoint", _RUN, default="the last one of the same run", identity=False,
            flag=Flag(metavar="DIR"),
        ),
    ] = None  # fmt: skip
    overwrite: Annotated[
        bool, Setting("begin a run of this name anew, even if it could be continued", _RUN, identity=False)
    ] = False
    use_wandb: Annotated[
        bool, Setting("report to Weights & Biases; others: --report_to tensorboard, trackio", _RUN, identity=False)
    ] = False
    ddp: Annotated[
        bool,
        Setting("train in all processes of torchrun, which is done without this flag as well", _RUN, identity=False),
    ] = False
    dtype: Annotated[Literal["float32", "float16", "bfloat16"], Setting("number format to compute in", "loading")] = (
        "bfloat16"
    )

    base_model: Annotated[
        str | None, Setting("Hub name, local folder, or tiny: the bundled model", _MODEL, flag=Flag(metavar="MODEL"))
    ] = None
    tokenizer_path: Annotated[
        str | None,
        Setting("Hub name or folder of the tokenizer", _MODEL, default="the base model's", flag=Flag(metavar="PATH")),
    ] = None
    model_config: Annotated[
        Path | None, Setting("pretrain: config.json to make the model from", _MODEL, default="a small qwen2")
    ] = None
    model_overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of the new model's config, see `NewModelOptions`."""

    lora_rank: Annotated[
        int | None, Ge(1), Setting("rank of the adapter", _LORA, default="8, or that of --load_lora")
    ] = None
    lora_name: Annotated[
        str | None,
        Setting(
            "name of the adapter, with which its files begin", _LORA,
            default="hf_parallel_lora; with --task lora MODELTYPE_parallel_lora, such as qwen2_parallel_lora",
            identity=False, flag=Flag(metavar="NAME"),
        ),
    ] = None  # fmt: skip
    load_lora: Annotated[
        str | None,
        Setting("adapter to continue from: a .pth file or a PEFT folder", _LORA, flag=Flag(metavar="PATH")),
    ] = None
    lora_alpha: Annotated[float | None, Gt(0), Setting("scaling is alpha / rank", _LORA, default="the rank")] = None
    lora_dropout: Annotated[float, Ge(0), Lt(1), Setting("dropout before the adapter", _LORA)] = 0.0
    target_modules: Annotated[
        tuple[str, ...],
        Setting(
            "layers to adapt, by name or one pattern", _LORA, default="all linear layers",
            flag=Flag(metavar="NAME", form="list"),
        ),
    ] = ()  # fmt: skip
    modules_to_save: Annotated[
        tuple[str, ...],
        Setting(
            "modules to train and save whole beside the LoRA, such as embed_tokens lm_head", _LORA, default="none",
            flag=Flag(metavar="NAME", form="list"),
        ),
    ] = ()  # fmt: skip
    use_rslora: Annotated[bool, Setting("rank-stabilised scaling, alpha / sqrt(rank)", _LORA)] = False
    use_dora: Annotated[
        bool,
        Setting(
            "weight-decomposed LoRA; saved as a PEFT folder alone, since the W + B·A of a .pth cannot express it",
            _LORA,
        ),
    ] = False
    loraplus_lr_ratio: Annotated[
        float | None, Gt(0), Setting("LoRA+: the B matrices learn this many times faster", _LORA)
    ] = None

    patch_rope: Annotated[bool | None, Setting("turn 2D RoPE on", _MODEL, default="on", flag=Flag(form="pair"))] = None
    rope_2d_ratio: RopeRatio = None
    rope_2d_mode: RopeMode = None
    rope_2d_pairs: Annotated[
        Literal["low", "interleaved"] | None,
        Setting(
            "which pairs: the slowest, or spread evenly", _MODEL,
            default="the adapter's, else low; interleaved where branches see one another",
        ),
    ] = None  # fmt: skip
    stride: Annotated[
        int | None,
        Ge(0),
        Le(LARGEST_STRIDE),
        Setting(
            "branch position = branch id x stride", _MODEL, default=f"the adapter's, else {DEFAULT_STRIDE}",
            flag=Flag(also=("--branch_stride",)),
        ),
    ] = None  # fmt: skip
    branch_range: Annotated[
        int | None,
        Ge(0),
        Le(LARGEST_RANGE),
        Setting(
            "train the branch numbers 1 to R, each row with some of them at random; inference uses no others. 0: the "
            "numbers that branches have in their record",
            _MODEL,
            default=f"the branches of the largest row; where branches see one another at least {DEFAULT_RANGE}",
            flag=Flag(metavar="R"),
        ),
    ] = None
    visibility: VisibilityOption = None

    data_path: Annotated[
        tuple[Path, ...] | Path,
        Setting("the records: JSONL, Parquet, CSV or JSON files", _DATA, flag=Flag(metavar="FILE", form="list")),
    ] = ()
    data_weights: Annotated[
        tuple[Weight, ...],
        Setting(
            "the share of each --data_path in the records of an epoch", _DATA, default="every record once",
            flag=Flag(metavar="WEIGHT", form="list"),
        ),
    ] = ()  # fmt: skip
    data_cache: Annotated[
        Path | None,
        Setting(
            "folder for encoded data, which later runs find there", _DATA,
            default="parallelmind, in the folder of the package datasets", identity=False, flag=Flag(metavar="DIR"),
        ),
    ] = None  # fmt: skip
    preprocessing_num_workers: Annotated[
        int, Ge(1), Setting("processes that encode the data", _DATA, identity=False)
    ] = 1
    hf_dataset: Annotated[
        str | None,
        Setting("a Hugging Face dataset instead, by name or folder", _DATA, flag=Flag(metavar="NAME")),
    ] = None
    hf_subset: Annotated[str | None, Setting("its subset", _DATA, default="its default", flag=Flag(metavar="NAME"))] = (
        None
    )
    hf_split: Annotated[str, Setting("its split", _DATA, flag=Flag(metavar="NAME"))] = "train"
    use_streaming: Annotated[bool, Setting("read while training, with memory for --shuffle_buffer records", _DATA)] = (
        False
    )
    shuffle: Annotated[
        bool,
        Setting(
            "true: in another order every epoch, rows of similar length together; false: in the order of the data",
            _DATA, flag=Flag(form="value"),
        ),
    ] = True  # fmt: skip
    shuffle_buffer: Annotated[int, Ge(1), Setting("streaming: records read (and shuffled) together", _DATA)] = 10_000
    max_samples: MaxSamples = None
    eval_data_path: Annotated[Path | None, Setting("held-out file, in the same forms", _DATA)] = None
    eval_ratio: Annotated[float, Ge(0), Lt(1), Setting("share of the records to hold out instead", _DATA)] = 0.0
    eval_interval: Annotated[
        int | None,
        Ge(1),
        Setting(
            "steps between evaluations", _DATA, default="--save_interval", identity=False,
            flag=Flag(also=("--eval_steps",)),
        ),
    ] = None  # fmt: skip
    early_stopping_patience: Annotated[
        int | None,
        Ge(1),
        Setting(
            "end the run when so many evaluations in a row were no better than the best one (by "
            "--metric_for_best_model, default loss)",
            _DATA, flag=Flag(metavar="N"),
        ),
    ] = None  # fmt: skip
    early_stopping_threshold: Annotated[
        float, Ge(0), Setting("what an evaluation has to be better by, to count as better", _DATA)
    ] = 0.0
    eval_samples: Annotated[
        int,
        Ge(1),
        Setting("held-out records whose answers are generated and compared", _DATA, identity=False),
    ] = 100
    max_seq_len: Annotated[int, Ge(2), Setting("at most this many tokens in a branch", _DATA)] = 512
    strict: Annotated[bool, Setting("an error if anything would be cut or dropped", _DATA, identity=False)] = False
    loss_on_main: Annotated[
        bool | None,
        Setting(
            "true or false: compute the loss on main too", _DATA, default="in pretraining only", flag=Flag(form="value")
        ),
    ] = None
    branches_per_sample: BranchesPerSample = 8
    max_branches_per_sample: MaxBranchesPerSample = 0
    min_branches_per_sample: MinBranchesPerSample = 1
    max_total_tokens: Annotated[int, Ge(0), Setting("at most this many tokens in a row; 0 is no limit", _ROWS)] = 0
    batch_size: Annotated[
        int,
        Ge(1),
        Setting("branches in a batch of one process; a larger row is computed in parts", _ROWS, identity=False),
    ] = 16
    batch_by_samples: BatchBySamples = False
    max_tokens_per_batch: Annotated[
        int | None,
        Ge(2),
        Setting(
            "instead of --batch_size, at most this many tokens in a batch of one process, of as many rows as fit",
            _ROWS, default="no limit", identity=False, flag=Flag(metavar="N"),
        ),
    ] = None  # fmt: skip

    epochs: Annotated[int, Ge(1), Setting("passes over the data", _STEPS, flag=Flag(also=("--num_train_epochs",)))] = 1
    max_steps: Annotated[
        int,
        Ge(-1),
        Setting(
            "steps, however many passes that takes; -1: as many as --epochs takes", _STEPS,
            expected="1 or more, or -1 (what --epochs takes)",
        ),
    ] = -1  # fmt: skip
    learning_rate: Annotated[float, Gt(0), Setting("peak of the learning rate", _STEPS)] = 1e-4
    accumulation_steps: Annotated[
        int,
        Ge(1),
        Setting(
            "batches for one step of a process", _STEPS, identity=False,
            flag=Flag(also=("--gradient_accumulation_steps",)),
        ),
    ] = 1  # fmt: skip
    grad_clip: Annotated[
        float,
        Ge(0),
        Setting("largest norm of the gradient; 0 does not clip", _STEPS, flag=Flag(also=("--max_grad_norm",))),
    ] = 1.0
    hf: dict[str, Any] = field(default_factory=dict)
    """Further fields of transformers' TrainingArguments, by their own names."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_steps == 0:
            raise SettingsError("--max_steps is 0; it must be 1 or more, or -1 (what --epochs takes).")
        if self.lora_name is not None and not _is_file_name(self.lora_name):
            raise SettingsError(f"--lora_name is {self.lora_name!r}; it must be a file name without folders.")
        if self.min_branches_per_sample > self.most_branches:
            raise SettingsError(
                f"--min_branches_per_sample {self.min_branches_per_sample} is above the most branches of a row, "
                f"{self.most_branches}."
            )
        if self.branch_range and self.branch_range < self.most_branches:
            raise SettingsError(
                f"--branch_range {self.branch_range} is below the most branches of a row, {self.most_branches}, whose "
                "numbers must differ; raise it, or lower --branches_per_sample."
            )
        if self.max_tokens_per_batch is not None:
            for name in ("batch_size", "batch_by_samples"):
                if getattr(self, name) != _default(name):
                    raise SettingsError(
                        f"--max_tokens_per_batch and --{name} exclude each other: a batch is limited by its tokens, or "
                        "by its branches or rows; give one."
                    )
        self._check_sources()
        self._check_best()
        if self.task == "pretrain":
            if given := [name for name in _LORA_ONLY if getattr(self, name) != _default(name)]:
                raise SettingsError(f"--{given[0]} is about LoRA, which pretraining does not use; leave it out.")
            if self.base_model is None and self.tokenizer_path is None:
                raise SettingsError("--tokenizer_path is required: the tokenizer the new model is made for.")
        elif self.base_model is None:
            raise SettingsError("--base_model is required: a hub name, a local folder, or tiny.")
        describing = [*(["model_config"] if self.model_config is not None else []), *self.model_overrides]
        if describing and self.base_model is not None:
            raise SettingsError(
                f"--{describing[0]} describes a new model, and --base_model {self.base_model} is a finished one; "
                "leave one out."
            )
        given = [name for name in _OF_THE_ADAPTER if getattr(self, name) != _default(name)]
        if self.load_lora is not None and given:
            raise SettingsError(
                f"--{given[0]} contradicts --load_lora {self.load_lora}: the adapter has its own; leave it out."
            )

    @property
    def data_paths(self) -> tuple[Path, ...]:
        return (self.data_path,) if isinstance(self.data_path, Path) else self.data_path

    @property
    def most_branches(self) -> int:
        return self.max_branches_per_sample or self.branches_per_sample

    @property
    def learn_main(self) -> bool:
        return self.task == "pretrain" if self.loss_on_main is None else self.loss_on_main

    def _check_best(self) -> None:
        """What judges evaluations needs some."""
        if self.early_stopping_threshold and self.early_stopping_patience is None:
            raise SettingsError("--early_stopping_threshold needs --early_stopping_patience; give both, or neither.")
        if self.eval_data_path is not None or self.eval_ratio:
            return
        judging = {"early_stopping_patience": self.early_stopping_patience, **self.hf}
        for name in _JUDGING:
            if judging.get(name):
                raise SettingsError(f"--{name} goes by evaluations; give --eval_data_path or --eval_ratio as well.")

    def _check_sources(self) -> None:
        if bool(self.data_paths) == (self.hf_dataset is not None):
            given = "both were" if self.data_paths else "neither was"
            raise SettingsError(f"Give the data as --data_path (files) or as --hf_dataset; {given} given.")
        if self.data_weights and len(self.data_weights) != len(self.data_paths):
            raise SettingsError(
                f"--data_weights has {len(self.data_weights)} values and --data_path {len(self.data_paths)}; give one "
                "weight for each file."
            )
        if self.data_weights and self.use_streaming:
            raise SettingsError(
                "--data_weights needs to know how many records there are; leave --use_streaming out: memory does not "
                "grow with the data without it either."
            )
        if self.hf_subset is not None and self.hf_dataset is None:
            raise SettingsError("--hf_subset needs --hf_dataset; give both, or neither.")
        paths = [*(("data_path", path) for path in self.data_paths), ("eval_data_path", self.eval_data_path)]
        for flag, path in paths:
            if path is not None and not path.is_file():
                raise SettingsError(f"--{flag} {path}: no such file; check the path.")
        if self.eval_data_path is not None and self.eval_ratio:
            raise SettingsError("--eval_ratio and --eval_data_path exclude each other; give one.")
        if self.eval_ratio and self.use_streaming:
            raise SettingsError("--eval_ratio splits data in memory; with --use_streaming give --eval_data_path.")


def _default(name: str) -> Any:
    return next(one.default for one in described(TrainOptions) if one.name == name)


def _is_file_name(name: str) -> bool:
    return bool(name) and Path(name).name == name and name not in (".", "..")
