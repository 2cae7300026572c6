"""Every documented command, flag, import and file format, proved; docs/compatibility.md is made from it."""

from tests.compatibility import promises as promises
