"""What is wrong with code, and which of its packages could not be judged."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from parallelmind.retrieval.check.guards import Kind

MAX_FINDINGS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One use of a package that its version does not have, will not have, or does not take so."""

    path: str
    line: int
    column: int
    """In characters, from 1."""
    kind: Kind
    name: str
    """Dotted, of what is used."""
    package: str
    version: str
    message: str
    proof: str
    replacement: str = ""
    replacement_source: str = ""

    def text(self) -> str:
        """As one line, such as compilers print."""
        instead = f"; use {self.replacement}" if self.replacement else ""
        source = f" ({self.replacement_source})" if instead and self.replacement_source else ""
        return f"{self.path}:{self.line}:{self.column}: {self.kind}: {self.message} ({self.proof}){instead}{source}"

    def fields(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Report:
    """The findings of one file, in order; after `MAX_FINDINGS` the rest of it is not judged."""

    findings: tuple[Finding, ...]
    imported: frozenset[str]
    """The first components of all that it imports."""
