import os
from pathlib import Path
from typing import Any

import pytest

from parallelmind.data.rows import RowLimits
from parallelmind.errors import SettingsError
from parallelmind.tasks.batch_options import BatchOptions


def options(**given: Any) -> BatchOptions:
    return BatchOptions(base_model="m", data_path=Path("in"), out_path=Path("out"), **given)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("branches_per_sample", 0),
        ("max_branches_per_sample", -1),
        ("min_branches_per_sample", 0),
        ("batch_size", 0),
        ("max_total_tokens", -1),
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("top_k", -1),
        ("min_p", -0.1),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
        ("seed", 2**64),
        ("num_workers", -1),
        ("max_samples", 0),
        ("lora_rank", 0),
        ("branch_stride", -1),
        ("rope_2d_ratio", 1.5),
        ("stop", ("a", "")),
    ],
)
def test_a_value_out_of_range_names_flag_value_and_remedy(name: str, value: Any) -> None:
    shown = "''" if name == "stop" else repr(value)
    with pytest.raises(SettingsError) as caught:
        options(**{name: value})
    assert str(caught.value).startswith(f"--{name} is {shown}; it must be ")


def test_a_minimum_needs_dynamic_mode_and_a_larger_maximum() -> None:
    with pytest.raises(SettingsError, match="--min_branches_per_sample 2 is for dynamic mode"):
        options(min_branches_per_sample=2)
    with pytest.raises(SettingsError, match="--min_branches_per_sample 5 is above --max_branches_per_sample 4"):
        options(min_branches_per_sample=5, max_branches_per_sample=4)


def test_rows() -> None:
    assert options(branches_per_sample=3, max_total_tokens=9).row_limits == RowLimits(most=3, max_tokens=9)
    assert options(max_branches_per_sample=6, min_branches_per_sample=2).row_limits == RowLimits(
        most=6, least=2, balanced=True
    )


def test_only_what_changes_answers_is_identity() -> None:
    same = options(batch_size=2, batch_by_samples=True, device="cpu", num_workers=5, retry_failed=True, overwrite=True)
    assert same.identity() == options().identity()
    for name, value in {"seed": 1, "stop": ("x",), "dtype": "float32", "visibility": "strict"}.items():
        assert options(**{name: value}).identity() != options().identity()


def test_a_model_or_adapter_edited_in_place_is_another_job(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("w")
    adapter = tmp_path / "adapter.pth"
    adapter.write_text("a")

    def prints() -> dict[str, str]:
        return BatchOptions(
            base_model=str(model), data_path=Path("in"), out_path=Path("out"), lora_path=str(adapter)
        ).file_prints()

    seen = [prints()]
    assert prints() == seen[0]
    adapter.write_text("b")
    seen.append(prints())
    adapter.with_suffix(".parallelmind.json").write_text("{}")
    seen.append(prints())
    os.utime(model / "weights", ns=(1, 1))
    seen.append(prints())
    assert all(a != b for n, a in enumerate(seen) for b in seen[:n])
