"""Flags and variables with which a model's texts are the same on every processor and beside every other text.

Without them commands compute in bfloat16, see `float32_unless_marked` in tests/conftest.py; processes that tests start
are out of its sight.
"""

from __future__ import annotations

ON_CPU = ("--device", "cpu", "--dtype", "float32")
ON_CPU_VARIABLES = {"PARALLELMIND_DEVICE": "cpu", "PARALLELMIND_DTYPE": "float32"}
"""The same for `parallelmind.server.app:app`."""
