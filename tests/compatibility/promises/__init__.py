"""The promises, one module for each part of the documents; importing this package fills `contract.SECTIONS`."""

from __future__ import annotations

import importlib

for _part in ("inference", "training", "checks", "answering"):  # in the order of the document
    importlib.import_module(f"{__name__}.{_part}")
