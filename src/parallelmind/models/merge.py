"""A base model and its adapter as one model folder, which still says which 2D RoPE it needs."""

from __future__ import annotations

import dataclasses
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from parallelmind.errors import AdapterError, SettingsError
from parallelmind.models.loader import load_model
from parallelmind.models.lora import adapter_rank, merge_lora
from parallelmind.models.merge_options import MergeOptions
from parallelmind.models.quantization import is_quantized
from parallelmind.models.sidecar import RopeSettings, Sidecar, write_sidecar
from parallelmind.settings.model import ModelOptions, dtype_name


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What was written."""

    output_dir: Path
    parameters: int
    dtype: str
    rope: RopeSettings | None
    """None: the adapter was trained without 2D RoPE, so the folder is an ordinary model."""
    notes: list[str]


def merge_to_folder(options: MergeOptions) -> MergeReport:
    """Merge the adapter into the base model and save it with its tokenizer, settings and model card.

    The folder appears complete or not at all.

    Raises:
        SettingsError: a flag is wrong, or the output folder exists or cannot be written.
        AdapterError: the adapter does not fit or is not safe to read.
    """
    output = Path(os.path.abspath(options.output_dir))
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise SettingsError(f"--output_dir {output} exists already; give a new name, or remove it first.")
    loaded = load_model(ModelOptions.of(options), options.lora_path)
    if is_quantized(loaded.model):
        raise SettingsError(
            f"--base_model {options.base_model} is stored quantized, so what the adapter adds would be rounded away; "
            "merge into the model that it was made of, or give both to the other commands, which take --lora_path."
        )
    model = merge_lora(loaded.model)
    rope = loaded.settings if loaded.patch_rope else None
    temporary = output.with_name(f".{output.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        model.save_pretrained(temporary)
        loaded.tokenizer.save_pretrained(temporary)
        if rope is not None:
            rank = adapter_rank(options.lora_path)
            write_sidecar(temporary, Sidecar(rope=rope, rank=rank, base_model=options.base_model))
        (temporary / "README.md").write_text(_model_card(options, output.name, rope), encoding="utf-8")
        temporary.replace(output)  # also in the place of an empty folder
    except AdapterError:
        raise
    except Exception as error:  # safetensors and tokenizers raise their own types on a full disk
        raise SettingsError(
            f"--output_dir {output}: the model could not be written ({error}); make room, or choose another."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return MergeReport(
        output_dir=output,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        dtype=dtype_name(model.dtype),
        rope=rope,
        notes=loaded.notes,
    )


def _model_card(options: MergeOptions, name: str, rope: RopeSettings | None) -> str:
    is_hub_name = options.base_model.count("/") == 1 and not os.path.exists(options.base_model)
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    if is_hub_name:
        lines.append(f"base_model: {options.base_model}")
    lines += ["tags:", "- parallelmind"] + (["- 2d-rope"] if rope is not None else []) + ["---", "", f"# {name}", ""]
    base = options.base_model if is_hub_name else Path(options.base_model).name
    lines += [f"`{base}` with the LoRA adapter `{Path(options.lora_path).name}` merged into its weights.", ""]
    if rope is None:
        lines += ["The adapter was trained without 2D RoPE: this is an ordinary model for transformers.", ""]
        return "\n".join(lines)
    lines += [
        "## This model needs 2D RoPE",
        "",
        "It was trained to answer in parallel branches: some frequency pairs of its rotary embedding turn by "
        "the position of the branch. Loaded by transformers alone it runs, but all branches stand at one "
        "position and it answers worse. Load it with ParallelMind, which finds the settings below in "
        "`parallelmind.json`:",
        "",
        "```python",
        "from parallelmind import Engine",
        "",
        f'engine = Engine.from_pretrained("{name}")',
        "```",
        "",
        f"or `parallelmind batch --base_model {name} --data_path … --out_path …`, without flags for 2D RoPE.",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {field} | {value} |" for field, value in dataclasses.asdict(rope).items()),
        "",
    ]
    return "\n".join(lines)
