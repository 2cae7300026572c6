"""`--push_to_hub`: what a run leaves, in a repository of the Hugging Face Hub."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars
from transformers.trainer_utils import HubStrategy

from parallelmind.errors import SettingsError, TrainingError, first_line
from parallelmind.models.lora_read import CONFIG_NAME
from parallelmind.models.sidecar import SIDECAR_NAME, sidecar_path
from parallelmind.training.facts import shown_model

_LOGGER = logging.getLogger(__name__)
_FIELDS = (
    "push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push", "hub_revision",
)  # fmt: skip
_BASE_MODEL = {CONFIG_NAME: "base_model_name_or_path", SIDECAR_NAME: "base_model"}
"""Fields that name the base model, which may be a folder of this machine."""
_Files = Mapping[str, Path | bytes]
"""Files by their path in the repository."""


def without_hub(given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of TrainingArguments that are not about the Hub: pushing is done here, and its token goes nowhere else."""
    return {name: value for name, value in given.items() if name not in _FIELDS}


@dataclass(kw_only=True)
class HubRepository:
    """A repository, which is there, and what goes into it when."""

    name: str
    """OWNER/NAME."""
    strategy: HubStrategy
    always: bool
    revision: str | None
    _api: HfApi = field(repr=False)
    _under_way: list[Future[CommitInfo]] = field(default_factory=list, repr=False)

    @classmethod
    def of(cls, given: Mapping[str, Any], *, default_name: str) -> HubRepository | None:
        """That of the fields of TrainingArguments, made if it was not there; None if nothing is to be pushed.

        Raises SettingsError if the Hub cannot be reached or does not let us write.
        """
        if not given.get("push_to_hub"):
            if useless := [name for name in _FIELDS if given.get(name)]:
                raise SettingsError(f"--{useless[0]} is about pushing; give --push_to_hub as well, or leave it out.")
            return None
        if not sys.stderr.isatty():
            disable_progress_bars()
        asked = given.get("hub_model_id") or default_name
        revision = given.get("hub_revision")
        api = HfApi(token=given.get("hub_token"), library_name="parallelmind")
        try:
            made = api.create_repo(asked, private=given.get("hub_private_repo"), exist_ok=True)
            if revision is not None:
                api.create_branch(made.repo_id, branch=revision, exist_ok=True)
        except Exception as error:
            reason = _reason(error, given.get("hub_token"))
            raise SettingsError(
                f"--push_to_hub: {asked} cannot be written to: {reason} Nothing was trained yet; leave "
                "--push_to_hub out to train without it, and the same command with it pushes what was trained."
            ) from error
        return cls(
            name=made.repo_id,
            strategy=HubStrategy(given.get("hub_strategy") or HubStrategy.EVERY_SAVE),
            always=bool(given.get("hub_always_push")),
            revision=revision,
            _api=api,
        )

    def push(self, files: _Files, message: str, *, lies: str) -> str:
        """Push what a run leaves, once what is under way has ended; returns the address.

        Args:
            lies: where the files are on this machine, for the error.
        Raises:
            TrainingError: that failed.
        """
        self._wait()
        try:
            self._commit(files, message).result()
        except Exception as error:
            reason = _reason(error, self._api.token)
            raise TrainingError(
                f"--push_to_hub: {self.name} could not be written to: {reason} Nothing is lost: {lies}. The "
                "same command trains nothing again, and pushes it."
            ) from error
        return f"{self._api.endpoint}/{self.name}"

    def push_at_step(self, step: int, files: _Files, checkpoint: Path) -> None:
        """Push in the background what `--hub_strategy` says of a step. What fails is only said."""
        if self.strategy == HubStrategy.END:
            return
        busy = [one for one in self._under_way if not one.done()]
        if busy and not self.always:
            return
        self._wait(only_done=True)
        self._under_way.append(self._commit(files, f"Step {step}"))
        folder = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: checkpoint.name}
        if self.strategy in folder:
            found = {f"{folder[self.strategy]}/{path.name}": path for path in checkpoint.iterdir() if path.is_file()}
            self._under_way.append(self._commit(found, f"Checkpoint of step {step}"))

    def _commit(self, files: _Files, message: str) -> Future[CommitInfo]:
        operations = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in files.items()
        ]
        future: Future[CommitInfo] = self._api.create_commit(
            self.name, operations, commit_message=message, revision=self.revision, run_as_future=True
        )
        return future

    def _wait(self, *, only_done: bool = False) -> None:
        ended = [one for one in self._under_way if one.done() or not only_done]
        self._under_way = [one for one in self._under_way if one not in ended]
        for one in ended:
            if (error := one.exception()) is not None:
                _LOGGER.warning(
                    "--push_to_hub: %s could not be written to: %s", self.name, _reason(error, self._api.token)
                )


def adapter_files(folder: Path, pth: Path | None, name: str) -> dict[str, Path | bytes]:
    """The files of an adapter in its repository: the PEFT folder and the `.pth` with its sidecar."""
    files: dict[str, Path | bytes] = {path.name: _public(path, path.name) for path in model_files(folder).values()}
    if pth is not None:
        sidecar = sidecar_path(pth)
        files |= {f"{name}.pth": pth, f"{name}.parallelmind.json": _public(sidecar, SIDECAR_NAME)}
    return files


def model_files(folder: Path) -> dict[str, Path]:
    """The files of a folder by name, without hidden ones."""
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")}


def _public(path: Path, kind: str) -> Path | bytes:
    """A file without the folder that the base model lies in on this machine."""
    if kind not in _BASE_MODEL:
        return path
    content = json.loads(path.read_text(encoding="utf-8"))
    name = _BASE_MODEL[kind]
    if not content.get(name) or shown_model(content[name]) == content[name]:
        return path
    return (json.dumps(content | {name: shown_model(content[name])}, indent=2) + "\n").encode()


def _reason(error: BaseException, token: str | bool | None) -> str:
    """Why the Hub did not do it, and what helps; without the token, which an error of a library may repeat."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it."
    if isinstance(error, HFValidationError):
        return f"--hub_model_id must be NAME or OWNER/NAME ({_clean(error, token)})."
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return "the Hub does not know the token (401); give --hub_token or HF_TOKEN, or run: hf auth login."
    if status == 403:
        return "the token may not write there (403); give one with write access, or another --hub_model_id."
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return "the Hub has no such repository or owner, or does not show it to this token (404); check --hub_model_id."
    if status is not None:
        return f"the Hub answered {status} ({_clean(error, token)})."
    return f"the Hub cannot be reached ({_clean(error, token)}); check the network."


def _clean(error: BaseException, token: str | bool | None) -> str:
    text = first_line(error).rstrip(".")
    return text.replace(token, "…") if isinstance(token, str) and token else text
