"""`parallelmind check-workers`: numbers that make no sense are refused by flag and value."""

from __future__ import annotations

import pytest

from parallelmind.cli.main import main


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_samples", "-1"], "error: --num_samples is -1; it must be 0 or more.\n"),
        (["--num_workers", "0"], "error: --num_workers is 0; it must be 1 or more.\n"),
    ],
)
def test_wrong_numbers(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-workers", "--skip_inference", *flags]) == 1
    assert capsys.readouterr().err == message
