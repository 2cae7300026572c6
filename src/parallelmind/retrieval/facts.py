"""What may be asked about the versions of packages: whether a name is there, how it is called, and what changed.

`Facts` is all that checking code and the server for coding agents know about corpora.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from parallelmind.retrieval.changes import Change
from parallelmind.retrieval.corpus_rows import CorpusRow
from parallelmind.retrieval.replacement import Replacement

Status = Literal["present", "absent", "unknown"]
ParameterKind = Literal["positional only", "positional or keyword", "any positional", "keyword only", "any keyword"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a function, as a caller sees it: `self` and `cls` of a method are none."""

    name: str
    kind: ParameterKind
    has_default: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is known about a name in one version."""

    status: Status
    name: str
    evidence: str
    """Why the status is what it is, in words."""
    row: CorpusRow | None = None
    """What the corpus says about a name that is present."""
    deprecated: str = ""
    """What the version says about the end of a name that is present; "" if it is not deprecated."""
    replacement: Replacement | None = None
    parameters: tuple[Parameter, ...] | None = None
    """How it is called; None where that is not known for certain."""


class Facts(Protocol):
    """Answers from a corpus. Packages are import names, versions are those of the corpus."""

    def lookup(
        self, package: str, version: str, name: str, *, of_instance: bool = False, is_called: bool = False
    ) -> Verdict:
        """Whether the version has the dotted name.

        With `of_instance` the last component is asked of an instance of the class before it, which may have more
        attributes than its class: then `absent` takes proof that no instance has it, or, where it `is_called`, that
        it was a method in another version and is none in this one.
        """

    def diff(self, package: str, old: str, new: str) -> list[Change]:
        """What changed between two versions, in the order of names."""
