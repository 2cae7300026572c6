"""What a run leaves: adapters or a model with their cards, the report, and, if asked for, all of it on the Hub."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallelmind.models.sidecar import is_weights_file
from parallelmind.training.card import card_text, write_card
from parallelmind.training.evaluation import Evaluation
from parallelmind.training.facts import (
    BestStep,
    DataFile,
    RunFacts,
    adapter_facts,
    branch_facts,
    is_on_hub,
    read_environment,
    run_facts,
    shown_model,
)
from parallelmind.training.files import RunFiles
from parallelmind.training.meter import MetricsLog
from parallelmind.training.model import Trainee
from parallelmind.training.options import TrainOptions
from parallelmind.training.publishing import HubRepository, adapter_files, model_files
from parallelmind.training.report import TrainingReport, write_report
from parallelmind.training.saving import save_adapter, save_model
from parallelmind.training.trainer import PackedTrainer


@dataclass(kw_only=True)
class RunWriter:
    """Writes what a run leaves, on its first process."""

    options: TrainOptions
    files: RunFiles
    settings: Mapping[str, Any]
    trainee: Trainee
    metrics: MetricsLog
    evaluation: Evaluation | None
    repository: HubRepository | None

    def save_step(self, step: int, counts: Mapping[str, Any]) -> None:
        """Save the adapter of a step, and push it if that was asked for."""
        facts = self._facts(step, counts, self._scores_of(step), None)
        written = self._save_adapter(step, facts)
        if self.repository is not None:
            checkpoint = self.files.checkpoints / f"checkpoint-{step}"
            self.repository.push_at_step(step, self._adapter_files(written), checkpoint)

    def finish(
        self, trainer: PackedTrainer, counts: Mapping[str, Any], scores: Mapping[str, float], best: BestStep | None
    ) -> tuple[Path, Path, str | None]:
        """Write the result and the report, then push the result.

        Returns:
            The result, the report, and where the result is on the Hub.
        Raises:
            AdapterError, TrainingError: something could not be written or pushed.
        """
        facts = self._facts(trainer.state.global_step, counts, scores, best)
        if self.options.task == "pretrain":
            written = save_model(self.trainee, self.files)
            write_card(written, self._card(facts, written))
        else:
            written = self._save_adapter(None, facts)
        report = self._write_report(facts, trainer)
        if self.repository is None:
            return written, report, None
        pretrained = self.options.task == "pretrain"
        pushed = self.repository.push(
            dict(model_files(written)) if pretrained else self._adapter_files(written),
            f"{facts.name}, {facts.steps} steps",
            lies=f"the {'model' if pretrained else 'adapter'} is {written}",
        )
        return written, report, pushed

    def _save_adapter(self, step: int | None, facts: RunFacts) -> Path:
        assert self.options.base_model is not None
        written = save_adapter(
            self.trainee, self.files, self.options.base_model, step, as_newest=self.options.task == "lora"
        )
        folder = _folder(written)
        write_card(folder, self._card(facts, folder))
        return written

    def _adapter_files(self, written: Path) -> dict[str, Path | bytes]:
        pth = written if is_weights_file(written) else None
        return adapter_files(_folder(written), pth, self.files.name)

    def _card(self, facts: RunFacts, folder: Path) -> str:
        return card_text(
            facts, folder=folder.name, repository=None if self.repository is None else self.repository.name
        )

    def _scores_of(self, step: int) -> dict[str, float]:
        """Those of the log, where the step was evaluated."""
        entry: Mapping[str, Any] = next(
            (one for one in reversed(self.metrics.entries) if one["step"] == step and "eval_loss" in one), {}
        )
        return _scores(entry)

    def _facts(
        self, steps: int, counts: Mapping[str, Any], scores: Mapping[str, float], best: BestStep | None
    ) -> RunFacts:
        options, trainee = self.options, self.trainee
        base_model = options.base_model or ""
        return RunFacts(
            name=self.files.name,
            base_model=shown_model(base_model),
            base_model_on_hub=is_on_hub(base_model),
            rope=trainee.rope.rope,
            adapter=adapter_facts(trainee.model),
            branches=branch_facts(trainee.rope.rope, trainee.settings),
            run=run_facts(trainee.model, self.metrics.entries, steps=steps, loraplus=options.loraplus_lr_ratio),
            environment=read_environment(self.files.environment),
            data=_data_files(options, self.settings),
            counts=counts,
            steps=steps,
            evaluation=scores,
            best=best,
            samples=[] if self.evaluation is None else self.evaluation.samples,
        )

    def _write_report(self, facts: RunFacts, trainer: PackedTrainer) -> Path:
        row, loss_mask = trainer.example or (None, None)
        options, trainee = self.options, self.trainee
        evaluations = {  # a finished run that is asked for again is evaluated again
            entry["step"]: {"step": entry["step"]} | _scores(entry)
            for entry in self.metrics.entries
            if "eval_loss" in entry
        }
        write_report(
            TrainingReport(
                title=facts.name,
                settings={"batch_size": options.batch_size, "accumulation_steps": options.accumulation_steps}
                | dict(self.settings),
                data_counts=facts.counts,
                train_history=[entry for entry in self.metrics.entries if "loss" in entry],
                eval_history=list(evaluations.values()),
                example_row=row,
                example_tokens=[] if row is None else [trainee.tokenizer.decode([t]) for t in row.input_ids.tolist()],
                visibility=trainee.settings.visibility,
                stride=trainee.settings.branch_stride,
                example_loss_mask=loss_mask,
                facts=facts,
            ),
            self.files.report,
        )
        return self.files.report


def best_step(trainer: PackedTrainer) -> BestStep | None:
    """The step whose evaluation was best; None without `--load_best_model_at_end` or early stopping."""
    state, arguments = trainer.state, trainer.args
    if not state.best_global_step or arguments.metric_for_best_model is None:
        return None
    return BestStep(
        step=int(state.best_global_step),
        metric=arguments.metric_for_best_model.removeprefix("eval_"),
        value=float(state.best_metric),
        kept=bool(arguments.load_best_model_at_end),
    )


def _folder(written: Path) -> Path:
    """The PEFT folder of an adapter, which may lie beside a `.pth`."""
    return written.with_suffix("") if is_weights_file(written) else written


def _scores(entry: Mapping[str, Any]) -> dict[str, float]:
    return {name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")}


def _data_files(options: TrainOptions, settings: Mapping[str, Any]) -> list[DataFile]:
    def content(flag: str) -> str | None:
        return settings.get(f"the content of --{flag}")

    files = []
    contents = (content("data_path") or "").split()
    for path, hashed in itertools.zip_longest(options.data_paths, contents):
        files.append(DataFile(flag="trained on", name=path.name, content=hashed))
    if options.hf_dataset is not None:
        folder = Path(options.hf_dataset)
        local = folder.exists()
        name = folder.resolve().name if local else options.hf_dataset
        files.append(DataFile(flag="trained on", name=name, on_hub=not local))
    if options.eval_data_path is not None:
        name = options.eval_data_path.name
        files.append(DataFile(flag="held out", name=name, content=content("eval_data_path")))
    if options.eval_ratio:
        files.append(DataFile(flag="held out", name=f"{options.eval_ratio:.3g} of these records"))
    return files
