"""What a run leaves for inference: adapters, or a whole pretrained model."""

from __future__ import annotations

import filecmp
import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from parallelmind.errors import TrainingError
from parallelmind.models.lora import save_lora
from parallelmind.models.lora_layers import ADAPTER, lora_layers
from parallelmind.models.sidecar import sidecar_path, write_sidecar
from parallelmind.training.files import RunFiles
from parallelmind.training.model import Trainee

_LOGGER = logging.getLogger(__name__)


def save_adapter(
    trainee: Trainee, files: RunFiles, base_model: str, step: int | None, *, as_newest: bool = False
) -> Path:
    """Write the adapter as PEFT folder and as `.pth`, both with the sidecar; returns the path to load.

    With `as_newest` the `.pth` takes the place of the run's newest one as well. DoRA has no `.pth`, since W + B·A
    cannot express it. Raises AdapterError if it cannot be written.
    """
    pth = files.adapter(step)
    sidecar = trainee.sidecar(base_model)
    folder = save_lora(trainee.model, pth.with_suffix(""), sidecar=sidecar)
    if any(ADAPTER in layer.lora_variant for layer in lora_layers(trainee.model).values()):
        if step is None:
            _LOGGER.info(
                "DoRA is no W + B·A, so there is no .pth; the adapter, for --lora_path, is the PEFT folder %s", folder
            )
        return folder
    if as_newest:
        save_lora(trainee.model, files.newest_adapter, sidecar=sidecar)
    return save_lora(trainee.model, pth, sidecar=sidecar)


def save_model(trainee: Trainee, files: RunFiles) -> Path:
    """Write a pretrained model and its tokenizer as a Hugging Face folder, with the sidecar if it needs 2D RoPE.

    Files of the same content stay as they are, with their times: what was made with the model tells by these that it
    is the same. Raises TrainingError if it cannot be written.
    """
    folder = files.model
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            trainee.model.save_pretrained(temporary)
            trainee.tokenizer.save_pretrained(temporary)
            if trainee.patched:
                write_sidecar(temporary, trainee.sidecar(""))
            for written in Path(temporary).iterdir():
                former = folder / written.name
                if not (former.is_file() and filecmp.cmp(written, former, shallow=False)):
                    written.replace(former)
    except Exception as error:  # safetensors and tokenizers raise their own types on a full disk
        raise TrainingError(
            f"{folder}: the model could not be written ({error}); make room, then start the same command again."
        ) from error
    if not trainee.patched:
        sidecar_path(folder).unlink(missing_ok=True)
    return folder
