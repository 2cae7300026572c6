"""How the branches of a record become rows and batches: shared by batch inference and training."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge

from parallelmind.settings.setting import Flag, Setting

_GROUP = "rows and batches"

BranchesPerSample = Annotated[int, Ge(1), Setting("fixed mode: branches in each row", _GROUP)]
MaxBranchesPerSample = Annotated[
    int, Ge(0), Setting("dynamic mode: at most this many branches in a row; 0 is fixed mode", _GROUP)
]
MinBranchesPerSample = Annotated[
    int, Ge(1), Setting("dynamic mode: at least this many branches in a row, where possible", _GROUP)
]
BatchBySamples = Annotated[bool, Setting("--batch_size counts rows instead of branches", _GROUP, identity=False)]
MaxSamples = Annotated[
    int | None,
    Ge(1),
    Setting("only the first N records", "files", default="all", identity=False, flag=Flag(metavar="N")),
]
