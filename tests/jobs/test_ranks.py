import pytest

from parallelmind.errors import SettingsError
from parallelmind.jobs.ranks import Rank, current_rank


def test_the_launcher_names_the_rank() -> None:
    assert current_rank({}) == Rank(0, 1)
    assert current_rank({"RANK": "3", "WORLD_SIZE": "4"}) == Rank(3, 4)


@pytest.mark.parametrize("environ", [{"RANK": "x"}, {"RANK": "1"}, {"RANK": "4", "WORLD_SIZE": "4"}, {"RANK": "-1"}])
def test_what_makes_no_sense_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="RANK"):
        current_rank(environ)
