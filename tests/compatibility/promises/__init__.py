"""The promises, one module for each part of the documents; importing this package fills `contract.SECTIONS`."""

from __future__ import annotations

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
