"""What a run depends on, as it takes effect: a default that is spelled out is the default, a path is where it leads.

Two runs with equal effective settings are the same run, so one continues the other.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from parallelmind.data.sources import JsonlSource, file_source
from parallelmind.io.fingerprints import (
    fingerprint_of_content,
    fingerprint_of_folder,
    fingerprint_of_tree,
)
from parallelmind.io.jsonl import read_lines
from parallelmind.models.identity import fingerprint_of_adapter, real_name
from parallelmind.models.rope_settings import ResolvedRope
from parallelmind.settings.model import TINY_MODEL
from parallelmind.settings.setting import described, names
from parallelmind.training.options import TrainOptions
from parallelmind.training.resolving import new_model_values, resolve_rank

_NOT_THE_RUN = ("dataloader_", "ddp_", "hub_", "log_", "project", "push_", "report_", "run_", "save_", "trackio_")
"""Beginnings of fields of TrainingArguments that may change when a run is continued."""
_IN_EFFECT = {
    "base_model", "tokenizer_path", "model_config", "patch_rope", "rope_2d_ratio", "rope_2d_mode", "rope_2d_pairs",
    "stride", "visibility", "loss_on_main", "lora_rank", "load_lora", "lora_alpha", "target_modules", "use_rslora",
    "use_dora", "modules_to_save", "early_stopping_threshold", "shuffle_buffer", "max_samples",
    "data_path", "data_weights", "eval_data_path", "hf_dataset", "hf_subset", "hf_split",
    "branches_per_sample", "max_branches_per_sample", "min_branches_per_sample", "epochs", "max_steps",
}  # fmt: skip
"""Options of which what they come to counts; the others mean what they say."""
_CONTENT = "the content of --"
"""Beginning of the names under which the prints of files stand, before the flag that leads to them."""
_WITH_A_DEFAULT = ("tokenizer_path", "lora_alpha", "target_modules", "max_samples", "hf_subset")
"""Options that are always in effect: where a run has none of its own, the default that their help names holds."""


def effective_settings(options: TrainOptions, *, rope: ResolvedRope, layout: str) -> dict[str, Any]:
    """The settings of a run by name, without what is not in effect; as JSON gives them back.

    Args:
        rope: the 2D settings in force.
        layout: what the composition of steps depends on.
    Raises:
        SettingsError: the config of a new model cannot be read.
        AdapterError: the adapter to continue from cannot be read.
        DataError: the data cannot be read.
    """
    settings: dict[str, Any] = {name: value for name, value in options.identity().items() if name not in _IN_EFFECT}
    settings |= {
        "base_model": real_name(options.base_model),
        "tokenizer_path": _unless(real_name(options.tokenizer_path), real_name(options.base_model)),
        "the new model": new_model_values(options) if options.base_model is None else None,
        **_contents(options),
        "early_stopping_threshold": options.early_stopping_threshold if options.early_stopping_patience else None,
        "visibility": rope.settings.visibility,
        "patch_rope": rope.patched,
        "loss_on_main": options.learn_main,
        "the size of a step": layout,
    }
    if options.task != "pretrain":
        settings |= _of_the_adapter(options)
    if rope.rope is not None:
        settings |= {
            "rope_2d_ratio": rope.rope.ratio,
            "rope_2d_mode": rope.rope.mode,
            "rope_2d_pairs": rope.rope.pairs,
            "stride": rope.rope.branch_stride,
        }
    settings |= _of_the_data(options) | _of_the_rows(options)
    settings["max_steps" if options.max_steps > 0 else "epochs"] = (
        options.max_steps if options.max_steps > 0 else options.epochs
    )
    settings |= _of_trainer(options)
    kept = {name: value for name, value in settings.items() if value is not None}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain


def differences(settings: Mapping[str, Any], former: Mapping[str, Any]) -> list[str]:
    """What differs, in words: "--learning_rate 0.5 instead of 0.01", "the content of --load_lora"."""
    flags = set(names(TrainOptions))
    flags |= {item.name for item in dataclasses.fields(TrainingArguments)}
    found = []
    for name in sorted(settings.keys() | former.keys(), key=lambda name: (name not in flags, name)):
        value, before = settings.get(name), former.get(name)
        if value == before:
            continue
        if name.startswith(_CONTENT):
            flag = name.removeprefix(_CONTENT)
            if settings.get(flag) == former.get(flag):  # of another file, another content is not worth a word
                found.append(name)
            continue
        shown = f"--{name}" if name in flags else name
        value = _default(name, settings) if value is None else value
        before = _default(name, former) if before is None else before
        found.append(f"{shown} {_shown(value)} instead of {_shown(before)}")
    return found


def _default(name: str, settings: Mapping[str, Any]) -> Any:
    """What is in effect in a run whose settings lack this one; None: nothing."""
    if name in _WITH_A_DEFAULT:
        if "load_lora" in settings and name in ("lora_alpha", "target_modules"):
            return "the adapter's own"
        return next(one.setting.default for one in described(TrainOptions) if one.name == name)
    streams = bool(settings.get("use_streaming")) and "max_steps" not in settings
    return _trainer_defaults(steps_are_unknown=streams).get(name)


def _trainer_defaults(*, steps_are_unknown: bool) -> dict[str, Any]:
    """The values that fields of TrainingArguments have in a run where none was given."""
    defaults = {
        item.name: None if item.default is dataclasses.MISSING else item.default
        for item in dataclasses.fields(TrainingArguments)
    }
    if steps_are_unknown:
        defaults["lr_scheduler_type"] = "constant_with_warmup"
    return defaults


def _of_the_adapter(options: TrainOptions) -> dict[str, Any]:
    rank = resolve_rank(options)
    if options.load_lora is not None:
        return {"lora_rank": rank, "load_lora": str(Path(options.load_lora).resolve())}
    return {
        "lora_rank": rank,
        "lora_alpha": _unless(options.lora_alpha, rank),
        "target_modules": _unless(sorted(options.target_modules), ["all-linear"]) or None,
        "use_rslora": options.use_rslora,
        "use_dora": options.use_dora,
        "modules_to_save": sorted(options.modules_to_save) or None,
    }


def _of_the_data(options: TrainOptions) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "shuffle_buffer": options.shuffle_buffer if options.use_streaming else None,
        "max_samples": options.max_samples,
    }
    if options.max_samples and options.data_paths and not options.use_streaming:
        most = options.max_samples
        settings["max_samples"] = most if any(_has_more_than(most, path) for path in options.data_paths) else None
    if options.eval_data_path is not None:
        settings["eval_data_path"] = str(options.eval_data_path.resolve())
    if options.data_paths:
        paths = [str(path.resolve()) for path in options.data_paths]
        weights = list(options.data_weights) or None
        return settings | {"data_path": paths if len(paths) > 1 else paths[0], "data_weights": weights}
    assert options.hf_dataset is not None
    folder = Path(options.hf_dataset)
    name = str(folder.resolve()) if folder.is_dir() else options.hf_dataset
    return settings | {"hf_dataset": name, "hf_subset": options.hf_subset, "hf_split": options.hf_split}


def _contents(options: TrainOptions) -> dict[str, str]:
    """The prints of all local files and folders that the run reads: edited, they make it another run."""
    prints: dict[str, str] = {}
    tokenizer = _unless(real_name(options.tokenizer_path), real_name(options.base_model))
    for flag, name in (("base_model", real_name(options.base_model)), ("tokenizer_path", tokenizer)):
        if name not in (None, TINY_MODEL) and Path(name).is_dir():
            prints[flag] = fingerprint_of_folder(Path(name))
    if options.load_lora is not None:
        prints["load_lora"] = fingerprint_of_adapter(Path(options.load_lora))
    if options.data_paths:
        prints["data_path"] = " ".join(map(fingerprint_of_content, options.data_paths))
    if options.hf_dataset is not None and Path(options.hf_dataset).is_dir():
        prints["hf_dataset"] = fingerprint_of_tree(Path(options.hf_dataset))
    if options.eval_data_path is not None:
        prints["eval_data_path"] = fingerprint_of_content(options.eval_data_path)
    return {_CONTENT + flag: value for flag, value in prints.items()}


def _has_more_than(most: int, path: Path) -> bool:
    """Whether a file has more records; of files that are not lines it is not counted."""
    if not isinstance(file_source(path), JsonlSource):
        return True
    return sum(1 for _ in read_lines(path, max_records=most + 1)) > most


def _of_the_rows(options: TrainOptions) -> dict[str, Any]:
    if not options.max_branches_per_sample:
        return {"branches_per_sample": options.branches_per_sample}
    return {
        "max_branches_per_sample": options.max_branches_per_sample,
        "min_branches_per_sample": options.min_branches_per_sample,
    }


def _of_trainer(options: TrainOptions) -> dict[str, Any]:
    """Fields of TrainingArguments that were given another value than they have by themselves."""
    defaults = _trainer_defaults(steps_are_unknown=options.use_streaming and options.max_steps < 0)
    return {
        name: value
        for name, value in options.hf.items()
        if not name.startswith(_NOT_THE_RUN) and value != defaults.get(name)
    }


def _unless(value: Any, default: Any) -> Any:
    """A value that was given; None if it is what holds by itself."""
    return None if value == default else value


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
