"""Models of the Hugging Face Hub: what was downloaded from it lies in a folder of its own during the tests."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub.constants import HF_HUB_CACHE

_COMMIT = "0" * 40


def put_on_hub(name: str, folder: Path) -> None:
    """Let the files of a folder be those of a model that was downloaded."""
    repository = Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    for part in ("refs", "snapshots"):
        (repository / part).mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(_COMMIT)
    snapshot = repository / "snapshots" / _COMMIT
    snapshot.unlink(missing_ok=True)
    snapshot.symlink_to(folder.resolve())
