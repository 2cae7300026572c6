"""Training runs by their command line, in this process, with what reached transformers' trainer kept for a look."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from parallelmind.cli.main import main
from parallelmind.data.collator import MicroBatch
from tests.families import char_tokenizer

EOS = "<eos>"
_TOKENIZER = char_tokenizer()


@dataclass
class Ran:
    """What a run was told and what it did."""

    code: int = -1
    out: Path = Path()
    shown: str = ""
    model: Any = None
    arguments: Any = None
    rows: list[list[Any]] = field(default_factory=list)
    """The packed rows of each batch."""
    batches: list[dict[str, Any]] = field(default_factory=list)
    """Their tensors."""

    def log(self, key: str) -> dict[int, float]:
        """The values of a log entry by step."""
        path = self.out / "logs" / self.arguments.run_name / "metrics.jsonl"
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {entry["step"]: entry[key] for entry in entries if key in entry}

    def files(self) -> set[str]:
        return {path.name for path in (self.out / "lora").glob("*.pth")}

    def final(self) -> dict[str, torch.Tensor]:
        return adapter(self.out / "lora" / f"{self.arguments.run_name}_final.pth")

    def row_sizes(self) -> list[int]:
        """Branches of each row, in order."""
        return [len(set(row.row.branch_ids.tolist()) - {0}) for rows in self.rows for row in rows]

    def texts(self) -> list[list[str]]:
        """Main (or "") and the branches of each row, decoded one character a token."""
        return [
            [_text(row.row.input_ids[row.row.branch_ids == number].tolist()) for number in _numbers(row)]
            for rows in self.rows
            for row in rows
        ]

    def supervised(self) -> set[str]:
        """The supervised tokens of each branch, joined."""
        found = set()
        for row in (row for rows in self.rows for row in rows):
            for number in set(row.row.branch_ids.tolist()):
                chosen = (row.row.branch_ids == number) & row.loss_mask
                found.add(_text(row.row.input_ids[chosen].tolist()))
        return found - {""}


def _numbers(row: Any) -> list[int]:
    return [0, *sorted(set(row.row.branch_ids.tolist()) - {0})]


def _text(ids: list[int]) -> str:
    return "".join(_TOKENIZER.convert_ids_to_tokens(ids))


class Trainer:
    """Runs `parallelmind train` with flags; each run in a folder of its own unless `--out_dir` is given."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str] | None, *common: object) -> None:
        self._folder = folder
        self._capsys = capsys
        self._common = common
        self._runs = 0

    def __call__(self, *flags: object, expect: int = 0) -> Ran:
        self._runs += 1
        out = self._folder / f"run{self._runs}"
        given = [str(flag) for flag in ("--out_dir", out, *self._common, *flags)]
        with _recorded() as ran:
            ran.code = main(["train", *given])
        ran.out = Path(given[len(given) - given[::-1].index("--out_dir")])
        if self._capsys is not None:
            ran.shown = self._capsys.readouterr().err
        assert ran.code == expect, ran.shown
        return ran


def trainer_of(folder: Path, capsys: pytest.CaptureFixture[str] | None, model: Path, data: Path) -> Trainer:
    """Runs that are exact and in the order of the data, unless flags say otherwise."""
    common = ("--base_model", model, "--data_path", data, "--device", "cpu", "--dtype", "float32", "--shuffle", "false")
    return Trainer(folder, capsys, *common)


@contextmanager
def _recorded() -> Iterator[Ran]:
    ran = Ran()

    make = transformers.Trainer.__init__

    def make_recorded(trainer: Any, *, model: Any, args: Any, data_collator: Any, **more: Any) -> None:
        ran.model, ran.arguments = model, args

        def collate(batch: Any) -> dict[str, Any]:
            made: dict[str, Any] = data_collator(batch)
            ran.rows.append(list(batch.rows if isinstance(batch, MicroBatch) else batch))
            ran.batches.append(made)
            return made

        make(trainer, model=model, args=args, data_collator=collate, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.Trainer, "__init__", make_recorded)
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            patch.delenv(name, raising=False)
        yield ran


def adapter(path: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return loaded


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
