"""Early stopping, and what a run leaves with --load_best_model_at_end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from parallelmind.errors import SettingsError, TrainingError
from parallelmind.training.evaluation import Evaluation
from parallelmind.training.options import TrainOptions
from tests.training.runs import Killed, RecordedProgress, assert_equal, options, raises_killed, train, weights

BEST = "lora/hf_parallel_lora_step4.pth"
FINAL = "lora/hf_parallel_lora_final.pth"


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Evaluations find these losses one after the other, those of step 2, 4, …; the best is of step 4."""
    found = {"of": [3.0, 1.0, 2.0, 2.5, 4.0, 5.0], "asked": 0}

    def run(self: Evaluation, model: Any, **_: Any) -> dict[str, float]:
        del self, model
        found["asked"] += 1
        return {"loss": found["of"][min(found["asked"], len(found["of"])) - 1]}

    monkeypatch.setattr(Evaluation, "run", run)
    return found


def judged(model: Path, data: Path, out: Path, *, best: bool = True, **more: Any) -> TrainOptions:
    hf = {"load_best_model_at_end": True} if best else {}
    values: dict[str, Any] = {"eval_data_path": data, "eval_interval": 2, "save_interval": 4, "max_steps": 12, "hf": hf}
    return options(model, data, out, **(values | more))


def test_the_best_step_is_kept_and_named(model: Path, data: Path, tmp_path: Path, losses: dict[str, Any]) -> None:
    report = train(judged(model, data, tmp_path, save_interval=100))
    assert report.best is not None
    assert (report.best.step, report.best.metric, report.best.value, report.best.kept) == (4, "loss", 1.0, True)
    assert report.steps == 12
    assert report.stopped_early is None
    to_step_4 = train(judged(model, data, tmp_path / "other", best=False))
    assert to_step_4.best is None
    assert_equal(weights(tmp_path / FINAL), weights(tmp_path / "other" / BEST))
    for text in (
        (tmp_path / "lora/hf_parallel_lora_final/README.md").read_text(),
        (tmp_path / "logs/hf_parallel_lora/report.html").read_text(),
    ):
        assert "step 4, loss 1" in text
    # The same command once more writes the best step again, not the last.
    again = train(judged(model, data, tmp_path, save_interval=100))
    assert not again.trained
    assert again.best == report.best
    assert_equal(weights(tmp_path / FINAL), weights(tmp_path / "other" / BEST))


def test_a_best_step_that_is_gone_is_not_replaced_by_the_last(
    model: Path, data: Path, tmp_path: Path, losses: dict[str, Any]
) -> None:
    train(judged(model, data, tmp_path))
    written = weights(tmp_path / FINAL)
    (tmp_path / "checkpoints/hf_parallel_lora/checkpoint-4").rename(tmp_path / "gone")
    with pytest.raises(TrainingError, match=r"checkpoint of the best step is gone.*what was written stays"):
        train(judged(model, data, tmp_path))
    assert_equal(weights(tmp_path / FINAL), written)


@pytest.mark.parametrize(("patience", "threshold", "stopped"), [(1, 0.0, 6), (3, 0.0, 10), (2, 2.5, 6), (9, 0.0, None)])
def test_it_ends_when_evaluations_get_no_better(
    patience: int, threshold: float, stopped: int | None, model: Path, data: Path, tmp_path: Path,
    losses: dict[str, Any],
) -> None:  # fmt: skip
    more = {"early_stopping_patience": patience, "early_stopping_threshold": threshold}
    report = train(judged(model, data, tmp_path, **more))
    assert (report.stopped_early, report.steps) == (stopped, stopped or 12)
    assert report.best is not None
    assert report.best.step == 4


def test_the_same_command_knows_that_it_ended(model: Path, data: Path, tmp_path: Path, losses: dict[str, Any]) -> None:
    chosen = judged(model, data, tmp_path, best=False, early_stopping_patience=1, save_interval=100)
    first = train(chosen)
    assert (first.stopped_early, first.steps, first.trained) == (6, 6, True)
    assert first.best is not None
    assert not first.best.kept
    again = train(chosen)
    assert (again.stopped_early, again.steps, again.trained) == (6, 6, False)


def test_a_run_that_was_killed_counts_on(model: Path, data: Path, tmp_path: Path, losses: dict[str, Any]) -> None:
    def kill(step: int) -> None:
        if step == 9:
            raise Killed

    chosen = judged(model, data, tmp_path, early_stopping_patience=3, save_interval=2)
    with raises_killed():
        train(chosen, RecordedProgress(kill))
    report = train(chosen)
    assert (report.resumed_from, report.stopped_early, report.steps) == (8, 10, 10)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"eval_data_path": None, "early_stopping_patience": 2, "hf": {}}, "--early_stopping_patience goes by evalu"),
        ({"eval_data_path": None}, "--load_best_model_at_end goes by evaluations; give --eval_data_path or --eval"),
        ({"early_stopping_threshold": 0.1}, "--early_stopping_threshold needs --early_stopping_patience"),
        ({"early_stopping_patience": 0}, "--early_stopping_patience is 0; it must be 1 or more"),
        ({"hf": {"metric_for_best_model": "bleu"}}, r"--metric_for_best_model bleu .* it gives loss, exact, exact_1"),
    ],
)
def test_what_judges_needs_something_to_judge(
    more: dict[str, Any], message: str, model: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=message):
        train(judged(model, data, tmp_path, **more))


def test_by_exact_answers(model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = iter([0.1, 0.5, 0.3, 0.2, 0.2, 0.2, 0.2])
    monkeypatch.setattr(Evaluation, "run", lambda self, model, **_: {"loss": 1.0, "exact": next(exact)})
    hf = {"metric_for_best_model": "exact", "load_best_model_at_end": True}
    report = train(judged(model, data, tmp_path, hf=hf, early_stopping_patience=2))
    assert report.best is not None
    assert (report.best.step, report.best.metric, report.stopped_early) == (4, "exact", 8)


def test_weights_of_an_optimizer_without_a_schedule_are_those_to_use(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as schedule_free_adamw: it trains in one place, and its weights are in another."""

    class Shifted(torch.optim.SGD):
        shifted = 0.0

        def shift(self, by: float) -> None:
            for group in self.param_groups:
                for value in group["params"]:
                    value.data += by - self.shifted
            self.shifted = by

        def eval(self) -> None:
            self.shift(0.0)

        def train(self) -> None:
            self.shift(1.0)

    from transformers import Trainer

    plain = options(model, data, tmp_path / "plain", max_steps=3, hf={"optim": "sgd"}, learning_rate=1e-9)
    train(plain)
    monkeypatch.setattr(
        Trainer, "get_optimizer_cls_and_kwargs", staticmethod(lambda args, model=None: (Shifted, {"lr": 1e-9}))
    )
    train(options(model, data, tmp_path / "shifted", max_steps=3, learning_rate=1e-9, save_interval=2))
    for name in (FINAL, "lora/hf_parallel_lora_step2.pth"):
        assert_equal(weights(tmp_path / "shifted" / name), weights(tmp_path / "plain" / FINAL), tolerance=1e-5)
